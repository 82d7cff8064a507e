//! What a wedged session lacks below the trim, and how it gets it (V3). Where delivery didn't wait for stability, the trim is
//! the greatest `received` among those who go on, so some of them must be given what others have.
//!
//! A mirror is a peer's memory, and can't be written to. So what is supplied goes, with what is here, into memory of
//! the session's own, laid out like the ring, which takes the mirror's place for this sender.
//!
//! # Why the bytes are still there
//! Who lacks them hasn't received them, so it hasn't released them, so their sender hasn't written over them, at anyone (D11).

use std::ops::Range;

use super::{Session, Stream};
use crate::fabric::Kept;
use crate::layout::{ROW_BYTES, ring_parts, unwrap};
use crate::memory::{Segment, WORD};
use crate::names::{Position, Rank, Round, Slot};
use crate::record::Header;

/// What was supplied can't be used; the session is as it was.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SupplyError {
    /// It is for wedged sessions.
    #[error("the session still runs: wedge it first")]
    Running,
    /// Nobody has that rank, or it is this node's own.
    #[error("nothing can be supplied of rank {0}'s ring: there is none, or it is this node's own")]
    Rank(Rank),
    /// It doesn't begin where this member's ends.
    #[error("bytes from {from} on were supplied, but those from {received} on are missing")]
    Place {
        /// Up to here it is here.
        received: Position,
        /// Where the bytes supplied begin.
        from: Position,
    },
    /// More than the sender can have sent, or no whole words.
    #[error("{len} bytes were supplied: more than the ring can hold, or no whole words")]
    Length {
        /// How many.
        len: usize,
    },
    /// A header that no sound sender writes. Whoever supplied it is to blame, whoever made it.
    #[error("the record supplied for {at} has the header {word:#018x}")]
    Record {
        /// Where.
        at: Position,
        /// What it is.
        word: u64,
    },
}

/// What a session may still need of a mirror, in bytes of it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Needed {
    /// Words, which the peer may be changing.
    pub words: Vec<Range<usize>>,
    /// Ring bytes, which it may not.
    pub ring: Vec<Range<usize>>,
}

impl Needed {
    /// As a fence takes it.
    pub fn kept(&self) -> Kept<'_> {
        Kept { words: &self.words, ring: &self.ring }
    }
}

impl Session {
    /// Gives a wedged session what it lacks of `rank`'s ring: `bytes` from `from` on, where what was received here ends
    /// (V3). They are what [`Session::read`] gave at a member that has them, up to what that or another member has
    /// received: whole records.
    ///
    /// Loans stay as they are. What is here then lies in memory of its own: a ring's worth is copied.
    ///
    /// # Errors
    /// The bytes don't fit what is here, or aren't records. Nothing has changed then.
    pub fn supply(&mut self, rank: Rank, from: Position, bytes: &[u8]) -> Result<(), SupplyError> {
        if !self.is_wedged() {
            return Err(SupplyError::Running);
        }
        let at = usize::from(rank.0);
        let size = self.plan.ring_bytes as u64;
        let stream = self.streams.get_mut(at).filter(|_| at != self.me).ok_or(SupplyError::Rank(rank))?;
        if from != stream.received {
            return Err(SupplyError::Place { received: stream.received, from });
        }
        let to = Position(from.0 + bytes.len() as u64);
        // D11: nobody sends more than a ring beyond what this member released.
        if to.0 > stream.released.0 + size || !bytes.len().is_multiple_of(WORD) {
            return Err(SupplyError::Length { len: bytes.len() });
        }
        let Some(promise) = check(bytes, from, stream.promise, size)? else { return Ok(()) };

        let memory = Segment::private(self.plan.ring_bytes);
        let oldest = Position(to.0.saturating_sub(size));
        lay(&memory, oldest, &stream.copy(oldest..from, size), size);
        lay(&memory, from, bytes, size);
        stream.memory = memory.mirror();
        stream.ring = 0;
        stream.received = to;
        (stream.promise, stream.heard) = (promise, promise.max(stream.heard));
        self.pending |= 1 << at;
        self.loans.move_ring(at, stream.memory.clone());
        Ok(())
    }

    /// What this session may still need of the mirror behind `slot`, when that member is to be fenced:
    /// for [`Fabric::fence_keeping`](crate::fabric::Fabric::fence_keeping). Nothing if it is no member. A session that is not
    /// wedged must be told to [lose](Session::lose) that member before the fence.
    pub fn needed(&self, slot: Slot) -> Needed {
        let mut needed = Needed::default();
        let Some(peer) = self.peers.iter().find(|peer| peer.slot == Some(slot)) else { return needed };
        let stream = &self.streams[peer.rank];
        let base = self.plan.members[peer.rank].base;
        let ring = base + self.layout.ring();
        let parts = |between: Range<Position>| {
            ring_parts(between, ring, self.plan.ring_bytes).into_iter().filter(|part| !part.is_empty())
        };
        needed.words.push(base..base + self.layout.ring());
        needed.ring.extend(parts(stream.released..stream.received));
        if !self.plan.guarantee.stable() {
            // V3: others may lack what was released here long ago. What lies before that may be written over at this moment.
            let oldest = Position(stream.received.0.saturating_sub(self.plan.ring_bytes as u64));
            needed.words.extend(parts(oldest..stream.released));
        }
        needed
    }

    /// The member behind `slot` is about to be fenced: up to here it was heard, and no further. What it acknowledged counts; records
    /// that it published and that were not received yet don't, for a fence need not keep their bytes. Call it between
    /// [`Session::needed`] and the fence.
    pub fn lose(&mut self, slot: Slot) {
        let Some(peer) = self.peers.iter_mut().find(|peer| peer.slot == Some(slot)) else { return };
        // The slot may be another's soon.
        peer.slot = None;
        self.everyone = self.everyone.without(slot);
        self.ring_to = self.ring_to.without(slot);
        if peer.unborn.take().is_some() {
            self.unborn &= !(1 << peer.rank); // its row is the page of zeros, and stays that
            return;
        }
        let row = Segment::private(ROW_BYTES);
        for word in (0..self.layout.end()).step_by(WORD) {
            row.store(word, peer.mirror.load(peer.base + word));
        }
        row.store(self.layout.head(), peer.head);
        (peer.mirror, peer.base) = (row.mirror(), 0);
    }

    /// The bytes of `rank`'s ring in `range`, for a member that lacks them ([`Session::supply`]). `None` where they haven't
    /// all been received here, or lie more than a ring back; what every member has released may be anything.
    pub fn read(&self, rank: Rank, range: Range<Position>) -> Option<Vec<u8>> {
        let stream = self.streams.get(usize::from(rank.0))?;
        let size = self.plan.ring_bytes as u64;
        let is_whole = [range.start, range.end].iter().all(|at| at.0.is_multiple_of(WORD as u64));
        let is_here = range.start <= range.end
            && range.end <= stream.received
            && range.start.0 + size >= stream.received.0;
        (is_whole && is_here).then(|| stream.copy(range, size))
    }
}

impl Stream {
    /// Its ring's bytes as they are. Word by word: what nobody needs any more may be written over meanwhile.
    fn copy(&self, range: Range<Position>, size: u64) -> Vec<u8> {
        let mut bytes = Vec::with_capacity((range.end.0 - range.start.0) as usize);
        for part in ring_parts(range, self.ring, size as usize) {
            self.memory.append_words(part, &mut bytes);
        }
        bytes
    }
}

/// Puts `bytes` to their places in a ring of its own.
fn lay(memory: &Segment, from: Position, bytes: &[u8], size: u64) {
    let to = Position(from.0 + bytes.len() as u64);
    let [first, second] = ring_parts(from..to, 0, size as usize);
    let (before, after) = bytes.split_at(first.len());
    memory.store_words(first.start, before);
    memory.store_words(second.start, after);
}

/// Checks that `bytes` are records that can follow `from`, where the sender promised `promise` (S1). Returns what it has
/// promised after them; `None` if there are none.
fn check(bytes: &[u8], from: Position, promise: Round, size: u64) -> Result<Option<Round>, SupplyError> {
    let to = Position(from.0 + bytes.len() as u64);
    let (mut at, mut round) = (from, promise);
    while at < to {
        let mut word = [0; WORD];
        let offset = (at.0 - from.0) as usize;
        word.copy_from_slice(&bytes[offset..offset + WORD]);
        let word = u64::from_ne_bytes(word);
        // As when a record is looked at that came from its sender. D4, D5: sent after a promise, so not of an earlier round.
        let sound = Header::parse(word).and_then(|header| {
            let end = Position(at.0 + header.size() as u64);
            let next = unwrap(round.0, header.round, (1 << 31) - 1).map(Round)?;
            let fits = end <= to && (at.0 & (size - 1)) + header.size() as u64 <= size;
            fits.then_some((end, next))
        });
        let Some((end, next)) = sound else { return Err(SupplyError::Record { at, word }) };
        (at, round) = (end, next);
    }
    Ok((to > from).then_some(Round(round.0 + 1)))
}
