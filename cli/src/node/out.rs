//! What `consort node` prints: JSON, one object a line, by two threads that share standard output.
//!
//! Lines are buffered and flushed when the one who writes has nothing more to write just now, so a flood costs few system
//! calls and a single message is seen at once. A reader that takes nothing blocks the writer, and through it the
//! group: nothing is dropped. A reader that went away is an error, kept until someone asks.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::io::{self, BufWriter, Write};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Serialize;

/// A line of output.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub(crate) enum Line<'a> {
    /// The group can't start without these members, and why each isn't there.
    Waiting {
        #[serde(rename = "for")]
        for_whom: Vec<u32>,
        why: Vec<String>,
    },
    /// The group runs, with these members from here on.
    View { view: u64, members: Vec<u32> },
    /// A message was delivered.
    Message {
        view: u64,
        seq: u64,
        sender: u32,
        data: Cow<'a, str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        encoding: Option<&'static str>,
    },
    /// What became of a line of input.
    Outcome {
        send: u64,
        #[serde(flatten)]
        fate: Fate,
    },
    /// That member sends nothing more.
    Ended { sender: u32 },
    /// The group went on without this member, which joins again; the next view is another life's.
    Evicted { reason: String },
    /// The last line.
    Stopped { reason: &'a str },
}

/// What became of a send.
#[derive(Debug, Serialize)]
#[serde(tag = "status", rename_all = "lowercase")]
pub(crate) enum Fate {
    Delivered {
        view: u64,
        seq: u64,
    },
    /// In a durable group: delivered, and in every member's log.
    Durable {
        view: u64,
        seq: u64,
    },
    Failed {
        reason: String,
    },
}

impl<'a> Line<'a> {
    /// A message line; bytes that are no UTF-8 travel as base64.
    pub(crate) fn message(view: u64, seq: u64, sender: u32, payload: &'a [u8]) -> Self {
        let (data, encoding) = match std::str::from_utf8(payload) {
            Ok(text) => (Cow::Borrowed(text), None),
            Err(_) => (Cow::Owned(BASE64_STANDARD.encode(payload)), Some("base64")),
        };
        Self::Message { view, seq, sender, data, encoding }
    }
}

/// Standard output, shared.
pub(crate) struct Out<W: Write> {
    to: Mutex<State<W>>,
}

struct State<W: Write> {
    to: BufWriter<W>,
    failure: Option<io::Error>,
}

/// A thread that panicked while it held the lock left a half-written line at worst.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<W: Write> Out<W> {
    pub(crate) fn new(to: W) -> Self {
        Self { to: Mutex::new(State { to: BufWriter::with_capacity(64 << 10, to), failure: None }) }
    }

    /// Writes a line. Blocks while the reader takes nothing.
    pub(crate) fn line(&self, line: &Line<'_>) {
        let mut state = lock(&self.to);
        if state.failure.is_none() {
            let written = serde_json::to_writer(&mut state.to, line).map_err(io::Error::from);
            state.failure = written.and_then(|()| state.to.write_all(b"\n")).err();
        }
    }

    /// Shows the reader what was written.
    pub(crate) fn flush(&self) {
        let mut state = lock(&self.to);
        if state.failure.is_none() {
            state.failure = state.to.flush().err();
        }
    }

    /// Why nothing can be written any more, if so. Told once.
    pub(crate) fn take_failure(&self) -> Option<io::Error> {
        lock(&self.to).failure.take()
    }
}

/// The sends whose outcomes are not printed yet, in the order of the input; bounded, so that input waits for output.
pub(crate) struct Pending<T> {
    state: Mutex<(VecDeque<T>, bool)>,
    changed: Condvar,
}

/// Outcomes that may be open at a time.
const MOST_PENDING: usize = 4096;

impl<T> Pending<T> {
    pub(crate) fn new() -> Self {
        Self { state: Mutex::new((VecDeque::new(), false)), changed: Condvar::new() }
    }

    /// Adds a send; blocks while there are too many. False if nobody takes them any more.
    pub(crate) fn push(&self, send: T) -> bool {
        let state = lock(&self.state);
        let full = |(queue, closed): &mut (VecDeque<T>, bool)| queue.len() >= MOST_PENDING && !*closed;
        let mut state = self.changed.wait_while(state, full).unwrap_or_else(PoisonError::into_inner);
        if state.1 {
            return false;
        }
        state.0.push_back(send);
        self.changed.notify_all();
        true
    }

    /// The next send, if there is one.
    pub(crate) fn try_pop(&self) -> Option<T> {
        let send = lock(&self.state).0.pop_front();
        self.changed.notify_all();
        send
    }

    /// The next send, waiting for it; `None` when closed and empty.
    pub(crate) fn pop(&self) -> Option<T> {
        let state = lock(&self.state);
        let idle = |(queue, closed): &mut (VecDeque<T>, bool)| queue.is_empty() && !*closed;
        let mut state = self.changed.wait_while(state, idle).unwrap_or_else(PoisonError::into_inner);
        let send = state.0.pop_front();
        self.changed.notify_all();
        send
    }

    /// Nothing more comes: those who push are refused, those who pop get what is left.
    pub(crate) fn close(&self) {
        lock(&self.state).1 = true;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(line: &Line<'_>) -> String {
        serde_json::to_string(line).unwrap()
    }

    #[test]
    fn lines_look_as_help_shows_them() {
        let view = Line::View { view: 1, members: vec![1, 2, 3] };
        assert_eq!(printed(&view), r#"{"type":"view","view":1,"members":[1,2,3]}"#);
        assert_eq!(
            printed(&Line::message(1, 0, 2, "grüße".as_bytes())),
            r#"{"type":"message","view":1,"seq":0,"sender":2,"data":"grüße"}"#
        );
        assert_eq!(
            printed(&Line::message(1, 7, 2, b"\xff\x00")),
            r#"{"type":"message","view":1,"seq":7,"sender":2,"data":"/wA=","encoding":"base64"}"#
        );
        assert_eq!(
            printed(&Line::Outcome { send: 0, fate: Fate::Delivered { view: 1, seq: 5 } }),
            r#"{"type":"outcome","send":0,"status":"delivered","view":1,"seq":5}"#
        );
        let failed = Line::Outcome { send: 1, fate: Fate::Failed { reason: "gone".to_string() } };
        assert_eq!(printed(&failed), r#"{"type":"outcome","send":1,"status":"failed","reason":"gone"}"#);
        let waiting = Line::Waiting { for_whom: vec![2], why: vec!["x".to_string()] };
        assert_eq!(printed(&waiting), r#"{"type":"waiting","for":[2],"why":["x"]}"#);
        let evicted = Line::Evicted { reason: "gone".to_string() };
        assert_eq!(printed(&evicted), r#"{"type":"evicted","reason":"gone"}"#);
        assert_eq!(printed(&Line::Ended { sender: 2 }), r#"{"type":"ended","sender":2}"#);
    }

    #[test]
    fn a_reader_that_went_away_is_told_once() {
        struct Gone;
        impl Write for Gone {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let out = Out::new(Gone);
        out.line(&Line::Ended { sender: 1 });
        assert!(out.take_failure().is_none(), "it lies in the buffer");
        out.flush();
        assert_eq!(out.take_failure().map(|e| e.kind()), Some(io::ErrorKind::BrokenPipe));
        assert!(out.take_failure().is_none());
    }

    #[test]
    fn pending_sends_keep_their_order_and_end() {
        let pending = Pending::new();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for n in 0..3 * MOST_PENDING {
                    assert!(pending.push(n));
                }
                pending.close();
            });
            let mut next = 0;
            while let Some(n) = pending.try_pop().or_else(|| pending.pop()) {
                assert_eq!(n, next);
                next += 1;
            }
            assert_eq!(next, 3 * MOST_PENDING);
        });
        assert!(!pending.push(0) && pending.pop().is_none());
    }
}
