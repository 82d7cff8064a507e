//! What was delivered since the snapshot: an [`Entry`] for each message and view, recorded at the source for every pupil ([`Tails`]) and
//! read by the pupil in the same order.

use std::collections::VecDeque;

use consort_dataplane::names::{NodeId, Rank, Seq, ViewId};
use serde::{Deserialize, Serialize};

use super::{CHUNK, Lesson, Pupil, WINDOW};
use crate::view::View;

/// How many bytes may wait at the source for a pupil that is slower than the group. More, and it has to begin anew.
const MOST: usize = 64 << 20;

/// The longest head of an entry: a view of as many members and shards as may be.
const HEAD: usize = 64 << 10;

/// Lengths of head and payload before each entry.
const LENGTHS: usize = 8;

/// Something that the application was given after the snapshot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Entry {
    /// A message; its payload is of that many bytes, and lies behind the head.
    Message {
        /// The view in which it was delivered.
        view: ViewId,
        /// Its place in the order.
        seq: Seq,
        /// The sender's rank there.
        rank: Rank,
        /// The sender.
        sender: NodeId,
    },
    /// A view without the pupil.
    View(View),
    /// The next view admits the pupil, and what follows comes by the rings: the last entry.
    Admitted,
}

#[derive(Serialize, Deserialize)]
enum Head {
    Message { view: u64, seq: u64, rank: u8, sender: u32 },
    View(View),
    Admitted,
}

/// Bytes that are no entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("what was delivered since the snapshot can't be read")]
pub struct TornTail;

impl Entry {
    /// How many bytes the entry that begins with these takes, head and payload; `None` if more are needed to know.
    ///
    /// # Errors
    /// It is none.
    pub fn len(bytes: &[u8]) -> Result<Option<usize>, TornTail> {
        let Some((head, payload)) = lengths(bytes) else { return Ok(None) };
        if head > HEAD { Err(TornTail) } else { Ok(Some(LENGTHS + head + payload)) }
    }

    /// The entry that these bytes are, all of them, and its payload.
    ///
    /// # Errors
    /// They are none.
    pub fn decode(bytes: &[u8]) -> Result<(Self, &[u8]), TornTail> {
        let (head, payload) = lengths(bytes).ok_or(TornTail)?;
        let rest = bytes.get(LENGTHS..).ok_or(TornTail)?;
        if head > HEAD || rest.len() != head + payload {
            return Err(TornTail);
        }
        let (head, payload) = rest.split_at(head);
        let (head, left) = postcard::take_from_bytes::<Head>(head).map_err(|_| TornTail)?;
        if !left.is_empty() {
            return Err(TornTail);
        }
        let entry = match head {
            Head::Message { view, seq, rank, sender } => {
                Self::Message { view: ViewId(view), seq: Seq(seq), rank: Rank(rank), sender: NodeId(sender) }
            }
            Head::View(view) => Self::View(view),
            Head::Admitted => Self::Admitted,
        };
        Ok((entry, payload))
    }
}

fn lengths(bytes: &[u8]) -> Option<(usize, usize)> {
    let (head, rest) = bytes.split_first_chunk::<4>()?;
    let (payload, _) = rest.split_first_chunk::<4>()?;
    Some((u32::from_le_bytes(*head) as usize, u32::from_le_bytes(*payload) as usize))
}

/// The source's records, one for each pupil whose snapshot was asked for.
#[derive(Default)]
pub struct Tails {
    pupils: Vec<Tail>,
    /// Lengths and head of an entry that is being made.
    scratch: Vec<u8>,
}

struct Tail {
    pupil: Pupil,
    pieces: VecDeque<Vec<u8>>,
    len: usize,
    /// Pieces sent, and taken by the pupil.
    sent: u64,
    taken: u64,
    /// The last entry is recorded.
    is_closed: bool,
}

impl Tails {
    /// Whether nobody learns from here: then there is nothing to record.
    pub fn is_empty(&self) -> bool {
        self.pupils.is_empty()
    }

    /// Records for this pupil from now on.
    pub fn begin(&mut self, pupil: Pupil) {
        self.end(pupil.node);
        let pieces = VecDeque::new();
        self.pupils.push(Tail { pupil, pieces, len: 0, sent: 0, taken: 0, is_closed: false });
    }

    /// That node learns no more.
    pub fn end(&mut self, node: NodeId) {
        self.pupils.retain(|tail| tail.pupil.node != node);
    }

    /// Nobody does.
    pub fn clear(&mut self) {
        self.pupils.clear();
    }

    /// The application has a message.
    pub fn message(&mut self, view: ViewId, seq: Seq, (rank, sender): (Rank, NodeId), payload: &[u8]) {
        let head = Head::Message { view: view.0, seq: seq.0, rank: rank.0, sender: sender.0 };
        self.encode(&head, payload.len());
        for tail in self.pupils.iter_mut().filter(|tail| !tail.is_closed) {
            tail.push(&self.scratch);
            tail.push(payload);
        }
    }

    /// The application was told a view: for those whom it admits it is the last entry.
    pub fn view(&mut self, view: &View) {
        for at in 0..self.pupils.len() {
            let Pupil { shard, node, incarnation, .. } = self.pupils[at].pupil;
            let admitted = view.member(node).is_some_and(|member| member.incarnation == incarnation)
                && view.shard(shard).is_some_and(|shard| shard.members.contains(&node));
            let head = if admitted { Head::Admitted } else { Head::View(view.clone()) };
            self.encode(&head, 0);
            let tail = &mut self.pupils[at];
            if !tail.is_closed {
                tail.push(&self.scratch);
                tail.is_closed = admitted;
            }
        }
    }

    /// A pupil has all pieces below this one.
    pub fn on_taken(&mut self, pupil: Pupil, below: u64) {
        if let Some(tail) = self.pupils.iter_mut().find(|tail| tail.pupil == pupil) {
            tail.taken = tail.taken.max(below.min(tail.sent));
        }
    }

    /// What is to be sent now.
    pub fn poll(&mut self) -> Option<(Pupil, Lesson)> {
        let may_send = |tail: &Tail| tail.len > 0 && tail.sent < tail.taken.saturating_add(WINDOW);
        let at = self.pupils.iter().position(|tail| tail.len > MOST || may_send(tail))?;
        let tail = &mut self.pupils[at];
        let pupil = tail.pupil;
        if tail.len > MOST {
            self.pupils.remove(at);
            let reason = format!("it is slower than the group: {MOST} bytes were waiting for it");
            return Some((pupil, Lesson::Refused(reason)));
        }
        let bytes = tail.pieces.pop_front()?;
        tail.len -= bytes.len();
        let number = tail.sent;
        tail.sent += 1;
        if tail.is_closed && tail.len == 0 {
            self.pupils.remove(at);
        }
        Some((pupil, Lesson::Tail { number, bytes }))
    }

    fn encode(&mut self, head: &Head, payload: usize) {
        let mut bytes = std::mem::take(&mut self.scratch);
        bytes.clear();
        bytes.extend_from_slice(&[0; LENGTHS]);
        // Nothing in a head fails to encode.
        self.scratch = postcard::to_extend(head, bytes).unwrap_or_default();
        let lengths = [self.scratch.len().saturating_sub(LENGTHS), payload];
        for (bytes, len) in self.scratch.chunks_exact_mut(4).zip(lengths) {
            bytes.copy_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes());
        }
    }
}

impl Tail {
    fn push(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.pieces.back().is_none_or(|piece| piece.len() == CHUNK) {
                self.pieces.push_back(Vec::with_capacity(CHUNK));
            }
            let Some(piece) = self.pieces.back_mut() else { return };
            let (now, later) = bytes.split_at(bytes.len().min(CHUNK - piece.len()));
            piece.extend_from_slice(now);
            self.len += now.len();
            bytes = later;
        }
    }
}
