//! Questions to a node from who is none.

use std::net::TcpListener;
use std::time::Duration;

use consort::{AskError, FabricChoice, NodeBuilder, Question, SharedKey, ask};

const AMPLE: Duration = Duration::from_secs(60);

// S3
#[test]
fn a_node_answers_who_has_its_key_even_while_it_waits_for_others() {
    let [mine, missing] = [0; 2].map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
    let [address, peer] = [&mine, &missing].map(|listener| listener.local_addr().unwrap());
    let key = || SharedKey::new("sixteen bytes at least").unwrap();
    let builder =
        NodeBuilder::new(1).listener(mine).peer(2, peer).fabric(FabricChoice::Tcp).shared_key(key());
    let node = builder.driven().unwrap();
    for question in [Question::Status, Question::Explain] {
        let answer = ask(address, Some(&key()), question, AMPLE).unwrap();
        assert!(answer.starts_with('{') && answer.ends_with('}'), "{answer}");
        let error = ask(address, None, question, AMPLE).unwrap_err();
        assert!(matches!(error, AskError::Refused { .. }), "{error}");
    }
    drop(node);
}
