//! [`Answers`]: what this member answers to others' calls, on its way to them.
//!
//! A thread of its own sends them. The thread that applies updates can't: where every member's ring is full, each would wait for room that
//! only the others' taking of messages makes, and take none.
//!
//! # How many wait
//! A node has so many calls under way and no more ([`CALLS`]), and what is answered first is sent first. So if more wait for one node, the
//! oldest are answers to a former life of it, and nobody waits for them. What is left of these goes with the next view: an
//! answer is of no use when either life is over.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::calls::{CALLS, Head};
use crate::{Incarnation, NodeId, SendError, Sender};

/// One, on its way.
pub(super) struct Answer {
    /// To whom,
    pub(super) to: NodeId,
    /// in which of its lives,
    pub(super) life: Incarnation,
    /// and in which of this node's own.
    pub(super) own: Incarnation,
    pub(super) head: Head,
    pub(super) bytes: Vec<u8>,
}

/// The way to the thread that sends them. Dropping it ends the thread.
pub(super) struct Answers {
    me: NodeId,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Answer>,
    is_over: bool,
}

impl Answers {
    /// Nobody waits for the thread to end: it may itself wait for a view, or for room.
    pub(super) fn new(me: NodeId, sender: Sender) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let answers = Self { me, shared: shared.clone() };
        std::thread::Builder::new().name(format!("consort-{me}-answer")).spawn(move || {
            while let Some(answer) = shared.next() {
                send(&sender, answer);
            }
        })?;
        Ok(answers)
    }

    pub(super) fn push(&self, answer: Answer) {
        self.shared.lock().push(answer);
        self.shared.changed.notify_one();
    }

    /// A view begins, with these lives of the shard's members.
    pub(super) fn on_view(&self, lives: &BTreeMap<NodeId, Incarnation>) {
        self.shared.lock().on_view(self.me, lives);
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        let mut queue = self.shared.lock();
        queue.is_over = true;
        queue.waiting.clear();
        drop(queue);
        self.shared.changed.notify_one();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner) // never half changed
    }

    fn next(&self) -> Option<Answer> {
        let mut queue = self.lock();
        loop {
            if queue.is_over {
                return None;
            }
            if let Some(answer) = queue.waiting.pop_front() {
                return Some(answer);
            }
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Queue {
    fn push(&mut self, answer: Answer) {
        let to = answer.to;
        self.waiting.push_back(answer);
        if self.waiting.iter().filter(|it| it.to == to).count() > CALLS {
            let oldest = self.waiting.iter().position(|it| it.to == to);
            oldest.and_then(|at| self.waiting.remove(at));
        }
    }

    fn on_view(&mut self, me: NodeId, lives: &BTreeMap<NodeId, Incarnation>) {
        let is_there = |node, life| lives.get(&node) == Some(&life);
        self.waiting.retain(|it| is_there(it.to, it.life) && is_there(me, it.own));
    }
}

/// Sends it to whom it is for, or to all where messages can't be for some. It is dropped where nobody waits for it any more.
fn send(sender: &Sender, mut answer: Answer) {
    loop {
        let len = answer.bytes.len();
        let room = match sender.reserve_to(&[answer.to], len) {
            Err(SendError::NotAddressable) => sender.reserve(len),
            room => room,
        };
        match room {
            Ok(mut room) => {
                room.copy_from_slice(&answer.bytes);
                room.send();
                return;
            }
            Err(why @ SendError::TooLong { .. }) => {
                let kind = answer.bytes[..1].to_vec();
                let excuse = answer.head.excuse(kind, &why.to_string());
                if excuse.len() >= len {
                    return; // not reached: a ring has room for a line
                }
                answer.bytes = excuse;
            }
            Err(_) => return, // the node has stopped or has ended its sends, or one of the two is no member any more
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Seq, ViewId};

    fn answer(to: u32, life: u64, own: u64, seq: u64) -> Answer {
        let head = Head::new((ViewId(1), Seq(seq)), Incarnation(own));
        Answer { to: NodeId(to), life: Incarnation(life), own: Incarnation(own), head, bytes: vec![] }
    }

    fn seqs(queue: &Queue) -> Vec<u64> {
        queue.waiting.iter().map(|it| it.head.place().1.0).collect()
    }

    #[test]
    fn of_too_many_answers_to_one_node_the_oldest_go() {
        let mut queue = Queue::default();
        queue.push(answer(2, 0, 0, 1000));
        (0..CALLS as u64 + 2).for_each(|seq| queue.push(answer(1, 0, 0, seq)));
        let expected: Vec<_> = [1000].into_iter().chain(2..CALLS as u64 + 2).collect();
        assert_eq!(seqs(&queue), expected);
    }

    #[test]
    fn answers_of_and_to_former_lives_go_with_the_view() {
        let mut queue = Queue::default();
        queue.push(answer(1, 10, 30, 0)); // to a life that is over
        queue.push(answer(1, 11, 30, 1));
        queue.push(answer(2, 20, 30, 2)); // to one that is gone
        queue.push(answer(1, 11, 29, 3)); // of a life that is over
        let lives = [(1, 11), (3, 30)].map(|(node, life)| (NodeId(node), Incarnation(life)));
        queue.on_view(NodeId(3), &lives.into());
        assert_eq!(seqs(&queue), [1]);
    }
}
