//! A lock that guards a resource, and a resource that guards itself. A holder is taken for gone while it still means to write; the
//! next writes; and the first, when it comes to it, is refused by its token.
//!
//! ```text
//! cargo run --example lock
//! ```
#![allow(clippy::print_stdout, reason = "it shows something")]

use std::error::Error;
use std::net::TcpListener;
use std::sync::Mutex;

use consort::NodeBuilder;
use consort::coordination::{Coordinator, Fence, Stale, Token};

/// Somewhere else: a disk, a server. It knows nothing of groups, and remembers one token.
#[derive(Default)]
struct Ledger {
    fence: Fence,
    lines: Mutex<Vec<String>>,
}

impl Ledger {
    fn write(&self, token: Token, line: &str) -> Result<(), Stale> {
        self.fence
            .pass(token, || self.lines.lock().unwrap_or_else(|it| it.into_inner()).push(line.to_owned()))
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let listeners = (0..3).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<Vec<_>, _>>()?;
    let addresses = listeners.iter().map(TcpListener::local_addr).collect::<Result<Vec<_>, _>>()?;
    let start = |(id, listener)| {
        let others = (1..).zip(&addresses).filter(|(other, _)| *other != id);
        Coordinator::start(
            others.fold(NodeBuilder::new(id).listener(listener), |it, (other, at)| it.peer(other, *at)),
        )
    };
    let group = (1..).zip(listeners).map(start).collect::<Result<Vec<_>, _>>()?;
    let ledger = Ledger::default();

    let first = group[0].lock("ledger")?;
    ledger.write(first.token(), "one: opens the ledger")?;
    group[0].stop(); // the others go on without it; it doesn't know yet
    let second = group[1].lock("ledger")?;
    ledger.write(second.token(), "two: goes on")?;
    if let Err(refused) = ledger.write(first.token(), "one: writes as if nothing had happened") {
        println!("refused: {refused}");
    }
    println!("{:#?}", ledger.lines.lock().unwrap_or_else(|it| it.into_inner()));
    Ok(())
}
