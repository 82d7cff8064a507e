//! [`ask`]: what an operator's tool asks a running node, without being one.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::clock;
use crate::config::SharedKey;
use crate::link::connection::{Connection, ConnectionError};
use crate::link::message::{Message, Question};
use crate::link::table::ANSWER_LEN;

/// A node did not answer, and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AskError {
    /// No connection to it.
    #[error(
        "can't reach {address}: {cause}; see that a node runs there, and that this is its `listen` address"
    )]
    Unreached {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
    /// It accepted the connection, maybe, and gave no whole answer in time.
    #[error(
        "no answer from {address} within {within:?}: its machine or its process hangs, or a firewall drops what is sent there; \
         give it more time, or look at the process"
    )]
    Late {
        /// Who.
        address: SocketAddr,
        /// The time that was given.
        within: Duration,
    },
    /// It closed the connection before it had answered.
    #[error(
        "{address} closed the connection without an answer: the node is stopping, or too many ask at once; ask again"
    )]
    Closed {
        /// Who.
        address: SocketAddr,
    },
    /// The connection broke.
    #[error("the connection to {address} broke: {cause}")]
    Broken {
        /// To whom.
        address: SocketAddr,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
    /// It or this side refuses: another key, another release, no node at all.
    #[error("{address} and this program don't get on: {why}")]
    Refused {
        /// Who.
        address: SocketAddr,
        /// Why.
        #[source]
        why: ConnectionError,
    },
    /// This machine has no random numbers.
    #[error("can't get random numbers: {0}")]
    Random(#[source] getrandom::Error),
}

/// Asks the node that listens for control links at `address`, and returns its answer, in JSON. Blocks for at most about
/// `within`. A node that has a shared key answers nobody without it (S3).
///
/// # Errors
/// There is no answer, and why.
pub fn ask(
    address: SocketAddr,
    key: Option<&SharedKey>,
    question: Question,
    within: Duration,
) -> Result<String, AskError> {
    let until = clock::now().plus(within);
    let late = || AskError::Late { address, within };
    // Not zero: that would mean forever.
    let left = || match until.since(clock::now()) {
        Duration::ZERO => Err(late()),
        left => Ok(left),
    };
    let mut nonce = [0; 32];
    getrandom::fill(&mut nonce).map_err(AskError::Random)?;
    let mut stream = TcpStream::connect_timeout(&address, left()?).map_err(|cause| match cause.kind() {
        ErrorKind::TimedOut | ErrorKind::WouldBlock => late(),
        _ => AskError::Unreached { address, cause },
    })?;
    let broken = |cause: std::io::Error| match cause.kind() {
        ErrorKind::TimedOut | ErrorKind::WouldBlock => late(),
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => AskError::Closed { address },
        _ => AskError::Broken { address, cause },
    };
    let mut connection = Connection::asking(key.cloned(), nonce, question);
    let (mut buffer, mut answer) = (vec![0; 16 << 10], String::new());
    loop {
        let output = std::mem::take(connection.output());
        stream.set_write_timeout(Some(left()?)).map_err(broken)?;
        stream.write_all(&output).map_err(broken)?;
        stream.set_read_timeout(Some(left()?)).map_err(broken)?;
        let len = match stream.read(&mut buffer) {
            Ok(0) => return Err(AskError::Closed { address }),
            Ok(len) => len,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(broken(error)),
        };
        let mut heard = Vec::new();
        let result = connection.on_bytes(&buffer[..len], &mut heard);
        for message in heard {
            let Message::Answer { last, text } = message else { continue };
            answer.push_str(&text);
            if answer.len() > ANSWER_LEN {
                let why = ConnectionError::Turn("more than an answer may be");
                return Err(AskError::Refused { address, why });
            }
            if last {
                return Ok(answer);
            }
        }
        if let Err(why) = result {
            // What this side has to say about it, if it has not been told by the other.
            let _ = stream.write_all(connection.output());
            return Err(AskError::Refused { address, why });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::link::frame::{FrameError, Preamble, VERSIONS};

    /// Long enough for anything that is sure to come.
    const AMPLE: Duration = Duration::from_secs(60);

    /// Asks who accepts one connection and does with it what `server` does.
    fn ask_of(
        key: Option<&SharedKey>,
        within: Duration,
        server: impl FnOnce(TcpStream) + Send + 'static,
    ) -> Result<String, AskError> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let thread = std::thread::spawn(move || server(listener.accept().unwrap().0));
        let answer = ask(address, key, Question::Explain, within);
        thread.join().unwrap();
        answer
    }

    fn key(text: &str) -> SharedKey {
        SharedKey::new(text).unwrap()
    }

    /// Answers like a node, until the asker closes.
    fn node(key: Option<SharedKey>, answer: String) -> impl FnOnce(TcpStream) + Send {
        move |mut stream| {
            let mut connection = Connection::new(false, key, [1; 32], None);
            let (mut buffer, mut heard) = ([0; 1000], Vec::new());
            while let Ok(len @ 1..) = stream.read(&mut buffer) {
                let result = connection.on_bytes(&buffer[..len], &mut heard);
                if heard == [Message::Ask(Question::Explain)] {
                    connection.answer(&answer);
                }
                let _ = stream.write_all(&std::mem::take(connection.output()));
                if result.is_err() {
                    return;
                }
            }
        }
    }

    #[test]
    fn an_answer_of_any_length_comes_whole() {
        for (key, len) in [(None, 2), (Some(key("sixteen bytes at least")), ANSWER_LEN)] {
            let text = "é".repeat(len / 2);
            assert_eq!(ask_of(key.as_ref(), AMPLE, node(key.clone(), text.clone())).unwrap(), text);
        }
        let error = ask_of(None, AMPLE, node(None, "x".repeat(ANSWER_LEN + 1))).unwrap_err();
        assert!(error.to_string().contains("more than an answer may be"), "{error}");
    }

    // S3
    #[test]
    fn without_the_right_key_there_is_no_answer() {
        let right = key("sixteen bytes at least");
        for (asker, why) in [
            (None, "one node has a shared key and the other has none"),
            (Some(key("sixteen other bytes")), "the shared keys differ"),
        ] {
            let error =
                ask_of(asker.as_ref(), AMPLE, node(Some(right.clone()), "secret".to_owned())).unwrap_err();
            assert!(matches!(error, AskError::Refused { .. }) && error.to_string().contains(why), "{error}");
        }
    }

    #[test]
    fn where_no_node_answers_it_says_what_to_do() {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let error = ask(address, None, Question::Status, AMPLE).unwrap_err();
        assert!(error.to_string().contains("see that a node runs there"), "{error}");

        let error = ask_of(None, AMPLE, drop).unwrap_err();
        assert!(error.to_string().contains("ask again"), "{error}");

        let error = ask_of(None, AMPLE, |mut stream| {
            let _ = stream.write_all(b"SSH-2.0-OpenSSH_9.6\r\n");
            let _ = stream.read_to_end(&mut Vec::new());
        });
        assert!(error.unwrap_err().to_string().contains("doesn't speak Consort's control protocol"));

        // It listens, and nobody accepts.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, within) = (listener.local_addr().unwrap(), Duration::from_millis(20));
        for within in [within, Duration::ZERO] {
            let error = ask(address, None, Question::Status, within).unwrap_err();
            assert!(matches!(error, AskError::Late { .. }), "{error}");
        }
    }

    #[test]
    fn another_release_is_named() {
        let older = Preamble::of((1, 1), false, [2; 32]);
        let error = ask_of(None, AMPLE, move |mut stream| {
            let _ = stream.write_all(older.bytes());
            let _ = stream.read_to_end(&mut Vec::new());
        })
        .unwrap_err();
        let AskError::Refused { why, .. } = &error else { panic!("{error}") };
        assert_eq!(*why, FrameError::Version { ours: VERSIONS, theirs: (1, 1) }.into());
        assert!(error.to_string().contains("run releases that overlap"), "{error}");
    }
}
