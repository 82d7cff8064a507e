//! One connection's life, apart from its socket: preamble, proof, hello, then messages; or a question and its answer.

use std::sync::Arc;

use super::frame::{
    Direction, FrameError, HELLO_LEN, Incoming, PEER_LEN, Preamble, STRANGER_LEN, Seal, put_refusal,
};
use super::message::{Message, MessageError, PIECE_LEN, Question};
use crate::config::SharedKey;

/// The connection is not to be gone on with.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectionError {
    /// Bad bytes, no common ground, or a refusal of the peer.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A frame that holds no message.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// A message where another one was due.
    #[error("it said {0} where it may not")]
    Turn(&'static str),
    /// This node is nobody at the moment, so it has no hello to answer with.
    #[error("it is beginning anew and will answer in a moment")]
    Nobody,
}

/// One end of a connection.
pub struct Connection {
    dialled: bool,
    key: Option<SharedKey>,
    preamble: Preamble,
    opening: Opening,
    stage: Stage,
    incoming: Incoming,
    output: Vec<u8>,
}

/// What this end says when the other has proved itself.
enum Opening {
    /// Who this node is, encoded, if it is anyone.
    Hello(Option<Arc<[u8]>>),
    /// It is no node, and asks.
    Ask(Question),
}

enum Stage {
    /// Nothing of the peer is known.
    Preamble,
    /// It has not proved that it knows the key.
    Proof(Box<Seals>),
    /// It has not said who it is.
    Hello(Box<Seals>),
    /// All is said that must be.
    Open(Box<Seals>),
    /// Who dialled has asked, and waits for the answer.
    Asked(Box<Seals>),
    /// Refused or broken: what comes is thrown away.
    Over,
}

struct Seals {
    ours: Seal,
    theirs: Seal,
}

impl Connection {
    /// The end that dialled, or the one that listened. `nonce` must never have been used before. Without a hello it answers
    /// questions and nothing else.
    pub fn new(dialled: bool, key: Option<SharedKey>, nonce: [u8; 32], hello: Option<Arc<[u8]>>) -> Self {
        Self::open(dialled, key, nonce, Opening::Hello(hello))
    }

    /// The end of who dials a node to ask it something and is no node. What is heard is [`Message::Answer`]s.
    pub fn asking(key: Option<SharedKey>, nonce: [u8; 32], question: Question) -> Self {
        Self::open(true, key, nonce, Opening::Ask(question))
    }

    fn open(dialled: bool, key: Option<SharedKey>, nonce: [u8; 32], opening: Opening) -> Self {
        let preamble = Preamble::new(key.as_ref(), nonce);
        // Who listened says nothing to what doesn't begin like a node.
        let output = if dialled { preamble.bytes().to_vec() } else { Vec::new() };
        let incoming = Incoming::default();
        Self { dialled, key, preamble, opening, stage: Stage::Preamble, incoming, output }
    }

    /// Bytes came. Appends the messages after the proof to `heard`, hello or question first.
    ///
    /// # Errors
    /// The connection is not to be gone on with; the reason was written to the peer, unless it was the peer's. Messages
    /// heard before stay in `heard`.
    pub fn on_bytes(&mut self, bytes: &[u8], heard: &mut Vec<Message>) -> Result<(), ConnectionError> {
        if matches!(self.stage, Stage::Over) {
            return Ok(());
        }
        self.incoming.push(bytes);
        loop {
            match self.advance(heard) {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(error) => {
                    if !matches!(error, ConnectionError::Frame(FrameError::Refused(_))) {
                        self.refuse(&error.to_string());
                    }
                    self.stage = Stage::Over;
                    return Err(error);
                }
            }
        }
    }

    /// Takes the next whole thing that has come. Returns whether there was one.
    fn advance(&mut self, heard: &mut Vec<Message>) -> Result<bool, ConnectionError> {
        match &mut self.stage {
            Stage::Preamble => {
                let Some(theirs) = self.incoming.preamble()? else { return Ok(false) };
                if !self.dialled {
                    self.output.extend_from_slice(self.preamble.bytes());
                }
                self.preamble.agree(&theirs)?;
                let (dialler, listener) =
                    if self.dialled { (&self.preamble, &theirs) } else { (&theirs, &self.preamble) };
                let seal = |direction| Seal::new(self.key.as_ref(), dialler, listener, direction);
                let (out, back) = (seal(Direction::Out), seal(Direction::Back));
                let (ours, theirs) = if self.dialled { (out, back) } else { (back, out) };
                let mut seals = Box::new(Seals { ours, theirs });
                seals.ours.seal(&Message::Proof.encode(), &mut self.output);
                self.stage = Stage::Proof(seals);
                Ok(true)
            }
            Stage::Proof(seals) => {
                let Some(body) = self.incoming.frame(STRANGER_LEN, &mut seals.theirs)? else {
                    return Ok(false);
                };
                if Message::decode(body)? != Message::Proof {
                    return Err(ConnectionError::Turn("something else than its proof"));
                }
                let Stage::Proof(mut seals) = std::mem::replace(&mut self.stage, Stage::Over) else {
                    unreachable!("matched above")
                };
                self.stage = match &self.opening {
                    Opening::Ask(question) => {
                        seals.ours.seal(&Message::Ask(*question).encode(), &mut self.output);
                        Stage::Asked(seals)
                    }
                    Opening::Hello(hello) => {
                        // Who listens answers what the other opens with, hello or question.
                        if self.dialled {
                            let hello = hello.as_ref().ok_or(ConnectionError::Nobody)?;
                            seals.ours.seal(hello, &mut self.output);
                        }
                        Stage::Hello(seals)
                    }
                };
                Ok(true)
            }
            Stage::Hello(seals) => {
                let Some(body) = self.incoming.frame(HELLO_LEN, &mut seals.theirs)? else {
                    return Ok(false);
                };
                let message = Message::decode(body)?;
                let asks = match &message {
                    Message::Hello(_) => false,
                    Message::Ask(_) if !self.dialled => true,
                    _ => return Err(ConnectionError::Turn("something else than hello")),
                };
                if let Opening::Hello(hello) = &self.opening
                    && !asks
                    && !self.dialled
                {
                    let hello = hello.as_ref().ok_or(ConnectionError::Nobody)?;
                    seals.ours.seal(hello, &mut self.output);
                }
                heard.push(message);
                let Stage::Hello(seals) = std::mem::replace(&mut self.stage, Stage::Over) else {
                    unreachable!("matched above")
                };
                self.stage = if asks { Stage::Asked(seals) } else { Stage::Open(seals) };
                Ok(true)
            }
            Stage::Asked(seals) => {
                let most = if self.dialled { PEER_LEN } else { STRANGER_LEN };
                let Some(body) = self.incoming.frame(most, &mut seals.theirs)? else { return Ok(false) };
                match Message::decode(body)? {
                    answer @ Message::Answer { .. } if self.dialled => heard.push(answer),
                    _ => return Err(ConnectionError::Turn("something else than was asked for")),
                }
                Ok(true)
            }
            Stage::Open(seals) => {
                let Some(body) = self.incoming.frame(PEER_LEN, &mut seals.theirs)? else { return Ok(false) };
                let message = Message::decode(body)?;
                if matches!(message, Message::Hello(_) | Message::Proof) {
                    return Err(ConnectionError::Turn("hello twice"));
                }
                if matches!(message, Message::Ask(_) | Message::Answer { .. }) {
                    return Err(ConnectionError::Turn("a question"));
                }
                heard.push(message);
                Ok(true)
            }
            Stage::Over => Ok(false),
        }
    }

    /// Says something, once both hellos are said; before, and after a refusal, it is thrown away.
    pub fn send(&mut self, message: &Message) {
        if let Stage::Open(seals) = &mut self.stage {
            seals.ours.seal(&message.encode(), &mut self.output);
        }
    }

    /// Answers the question that was asked. Nothing more is said or heard.
    pub fn answer(&mut self, text: &str) {
        let Stage::Asked(seals) = &mut self.stage else { return };
        let mut rest = text;
        loop {
            let mut end = rest.len().min(PIECE_LEN);
            while !rest.is_char_boundary(end) {
                end -= 1;
            }
            let (piece, more) = rest.split_at(end);
            let answer = Message::Answer { last: more.is_empty(), text: piece.to_owned() };
            seals.ours.seal(&answer.encode(), &mut self.output);
            rest = more;
            if rest.is_empty() {
                break;
            }
        }
        self.stage = Stage::Over;
    }

    /// Tells the peer why this link is not to be. Nothing more is said or heard.
    pub fn refuse(&mut self, why: &str) {
        if !matches!(self.stage, Stage::Over) {
            put_refusal(why, &mut self.output);
            self.stage = Stage::Over;
        }
    }

    /// What is to be written to the socket. Take away what was.
    pub fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::frame::VERSIONS;
    use super::super::message::{Hello, Standing};
    use super::*;
    use crate::view::{Incarnation, Role};
    use consort_dataplane::names::NodeId;

    fn hello(node: u32) -> Message {
        Message::Hello(Hello {
            cluster: "test".to_owned(),
            node: NodeId(node),
            incarnation: Incarnation(7),
            engaged: None,
            address: ([127, 0, 0, 1], 7101).into(),
            standing: Standing::Founding { members: vec![1, 2] },
            role: Role::Data,
            fabric: "sim".to_owned(),
            guarantee: "atomic".to_owned(),
            ring_bytes: 4096,
            state: false,
            domain: Default::default(),
            groups: 0,
            offer: vec![1, 2, 3],
            held: None,
        })
    }

    fn ends(keys: [Option<&str>; 2]) -> [Connection; 2] {
        [0, 1].map(|at| {
            let key = keys[at].map(|key| SharedKey::new(key).unwrap());
            let hello = hello(u32::from(at as u8) + 1).encode().into();
            Connection::new(at == 0, key, [at as u8; 32], Some(hello))
        })
    }

    type Ends = [(Vec<Message>, Result<(), ConnectionError>); 2];

    /// Carries bytes to and fro, `at_once` in one piece, until nobody says anything more.
    fn talk(ends: &mut [Connection; 2], at_once: usize) -> Ends {
        let mut heard: Ends = [(Vec::new(), Ok(())), (Vec::new(), Ok(()))];
        let mut more = true;
        while more {
            more = false;
            for from in [0, 1] {
                let bytes = std::mem::take(ends[from].output());
                for chunk in bytes.chunks(at_once) {
                    more = true;
                    let (messages, result) = &mut heard[1 - from];
                    if let Err(error) = ends[1 - from].on_bytes(chunk, messages) {
                        *result = Err(error);
                    }
                }
            }
        }
        heard
    }

    proptest! {
        #[test]
        fn two_ends_come_to_hear_each_other(at_once in 1..300usize, keyed: bool) {
            let key = keyed.then_some("sixteen bytes at least");
            let mut ends = ends([key; 2]);
            let heard = talk(&mut ends, at_once);
            prop_assert_eq!(&heard, &[(vec![hello(2)], Ok(())), (vec![hello(1)], Ok(()))]);
            ends[0].send(&Message::Use);
            ends[0].send(&Message::Commit);
            prop_assert_eq!(&talk(&mut ends, at_once)[1].0, &vec![Message::Use, Message::Commit]);
        }

        // S1
        #[test]
        fn garbage_never_gets_as_far_as_hello(pieces: Vec<Vec<u8>>, dialled: bool, sound_start: bool) {
            let [dialler, listener] = ends([None; 2]);
            let mut end = if dialled { dialler } else { listener };
            let mut heard = Vec::new();
            if sound_start {
                let _ = end.on_bytes(Preamble::new(None, [9; 32]).bytes(), &mut heard);
            }
            for piece in pieces {
                let _ = end.on_bytes(&piece, &mut heard);
            }
            prop_assert!(heard.is_empty());
        }
    }

    // S3
    #[test]
    fn without_the_key_nothing_is_heard_and_both_are_told() {
        for (keys, why) in [
            ([Some("sixteen bytes at least"), Some("sixteen other bytes")], "the shared keys differ"),
            ([Some("sixteen bytes at least"), None], "one node has a shared key and the other has none"),
            ([None, Some("sixteen bytes at least")], "one node has a shared key and the other has none"),
        ] {
            let mut ends = ends(keys);
            for (heard, result) in talk(&mut ends, 1000) {
                assert_eq!(heard, []);
                assert!(result.unwrap_err().to_string().contains(why), "{why}");
            }
        }
    }

    #[test]
    fn a_stranger_hears_nothing_but_why() {
        let [_, mut listener] = ends([None; 2]);
        let error = listener.on_bytes(b"GET / HTTP/1.1\r\n", &mut Vec::new()).unwrap_err();
        assert_eq!(error, FrameError::Magic.into());
        assert_eq!(listener.output()[4], 0, "a refusal and nothing before it");
    }

    #[test]
    fn what_comes_out_of_turn_is_refused() {
        let mut ends = ends([None; 2]);
        let _ = talk(&mut ends, 1000);
        ends[0].send(&hello(1));
        let heard = talk(&mut ends, 1000);
        assert_eq!(heard[1].1, Err(ConnectionError::Turn("hello twice")));
        assert_eq!(heard[0].1.clone().unwrap_err().to_string(), "it said hello twice where it may not");
    }

    /// One who asks, and a node, or one that is nobody.
    fn asker(keys: [Option<&str>; 2], is_someone: bool) -> [Connection; 2] {
        let [ours, theirs] = keys.map(|key| key.map(|key| SharedKey::new(key).unwrap()));
        let hello = is_someone.then(|| hello(2).encode().into());
        [Connection::asking(ours, [0; 32], Question::Explain), Connection::new(false, theirs, [1; 32], hello)]
    }

    #[test]
    fn a_question_is_heard_and_its_answer_comes_whole_in_pieces() {
        for (is_someone, at_once) in [(true, 7), (false, 100_000)] {
            let mut ends = asker([Some("sixteen bytes at least"); 2], is_someone);
            let heard = talk(&mut ends, at_once);
            assert_eq!(heard, [(vec![], Ok(())), (vec![Message::Ask(Question::Explain)], Ok(()))]);
            // Cut nowhere within a character, though the pieces would have it so.
            for text in [String::new(), "{}".to_owned(), format!("a{}", "é".repeat(PIECE_LEN))] {
                let mut ends = asker([None; 2], is_someone);
                let _ = talk(&mut ends, at_once);
                ends[1].answer(&text);
                let [(heard, result), _] = talk(&mut ends, at_once);
                let pieces: Vec<_> = heard
                    .iter()
                    .map(|message| match message {
                        Message::Answer { last, text } => (*last, text.as_str()),
                        other => panic!("{other:?}"),
                    })
                    .collect();
                assert_eq!(result, Ok(()));
                assert_eq!(pieces.iter().map(|(_, text)| *text).collect::<String>(), text);
                let last = pieces.len() - 1;
                assert!(pieces.iter().enumerate().all(|(at, (is_last, _))| *is_last == (at == last)));
            }
        }
    }

    // S3: who has no key is told nothing, and nobody is asked twice.
    #[test]
    fn a_question_needs_the_key_and_is_all_that_may_be_said() {
        let mut ends = asker([Some("sixteen bytes at least"), Some("sixteen other bytes")], true);
        for (heard, result) in talk(&mut ends, 1000) {
            assert_eq!(heard, []);
            assert!(result.unwrap_err().to_string().contains("the shared keys differ"));
        }
        // A node doesn't ask, and who asked says no more.
        let mut nodes = self::ends([None; 2]);
        let _ = talk(&mut nodes, 1000);
        nodes[0].send(&Message::Ask(Question::Status));
        assert_eq!(talk(&mut nodes, 1000)[1].1, Err(ConnectionError::Turn("a question")));
        let mut ends = asker([None; 2], true);
        let _ = talk(&mut ends, 1000);
        let Stage::Asked(seals) = &mut ends[0].stage else { panic!("it has asked") };
        seals.ours.seal(&Message::Ask(Question::Status).encode(), &mut ends[0].output);
        let error = talk(&mut ends, 1000)[1].1.clone().unwrap_err();
        assert_eq!(error, ConnectionError::Turn("something else than was asked for"));
    }

    #[test]
    fn who_is_nobody_has_no_link_and_says_so() {
        let [dialler, _] = ends([None; 2]);
        let [_, nobody] = asker([None; 2], false);
        let heard = talk(&mut [dialler, nobody], 1000);
        assert_eq!(heard[1], (vec![], Err(ConnectionError::Nobody)));
        assert!(heard[0].1.clone().unwrap_err().to_string().contains("will answer in a moment"));
    }

    #[test]
    fn releases_that_share_no_version_say_so_and_others_take_the_greatest_of_both() {
        for versions in [(1, VERSIONS.0 - 1), (VERSIONS.1 + 1, VERSIONS.1 + 2)] {
            let [_, mut listener] = ends([None; 2]);
            let other = Preamble::of(versions, false, [9; 32]);
            let error = listener.on_bytes(other.bytes(), &mut Vec::new()).unwrap_err();
            assert_eq!(error, FrameError::Version { ours: VERSIONS, theirs: versions }.into());
            // This release's preamble, whose form never changes, and why.
            let (preamble, refusal) = listener.output().split_at(super::super::frame::PREAMBLE);
            let theirs = Preamble::parse(preamble).unwrap().unwrap();
            assert_eq!(other.agree(&theirs), Err(FrameError::Version { ours: versions, theirs: VERSIONS }));
            let (text, ours) =
                (String::from_utf8_lossy(refusal), format!("{} to {}", VERSIONS.0, VERSIONS.1));
            assert!(text.contains("no common protocol version") && text.contains(&ours), "{text}");
        }
        let [_, mut listener] = ends([None; 2]);
        let newer = Preamble::of((1, VERSIONS.1 + 1), false, [9; 32]);
        assert_eq!(listener.on_bytes(newer.bytes(), &mut Vec::new()), Ok(()));
        assert_eq!(newer.agree(&Preamble::new(None, [1; 32])), Ok(VERSIONS.1));
    }
}
