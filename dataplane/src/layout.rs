//! Where a session's words and ring lie in a segment. The one place that knows; all else asks.
//!
//! ```text
//! base ──► row, 4,096 bytes
//!            0                head                      ┐ what a delivery waits for: in the first
//!            8 + 8·s          received[s], s = 0..n     ┘ lines, one line for up to 7 members
//!            B                delivered                 ┐ B: the next cache line.
//!            B + 8            persisted                 │ What flow control and watchers read: later
//!            B + 16           heartbeat                 │ is early enough
//!            B + 24 + 8·s     released[s], s = 0..n     ┘
//!            C                asked                     ┐ C: the next cache line. Written only when
//!            C + 8            digest                    │ somebody asks, so that looking at it costs
//!            C + 16 + 8·r     answered[r], r = 0..n     ┘ nothing while nobody does
//!            4,088            tag: whose session's words these are
//! base + 4,096 ──► ring, `ring_bytes`
//! ```
//!
//! `head` packs the ring's published position (in words) and the promise, both modulo 2^32, into one word, so that
//! they are never seen apart (D1). The reader unwraps them; that is right while neither can advance by 2^31 between two
//! looks of a reader:
//!
//! - position: at most one ring, since the reader must release what it has read: `ring_bytes ≤ 2^30` bytes.
//! - promise: it grows by one only with a record published, and all records that a reader hasn't released lie in the
//!   rings: `members × ring_bytes / 8 < 2^31`.
//!
//! `heartbeat` is two counters in one word, modulo 2^32 each: the engine's below, the application's above.
//!
//! The `tag` is the view of the session that the row belongs to, and 0 while the row is made ready for the next one in the
//! same place. It is the last word of the page, where no number of members puts another, so that it can be read before
//! anything else of the row is believed (V10).
//!
//! The sleeper flag of D1 is one for the node, not for the session: it lies in the fabric's page.

use std::ops::Range;

use crate::memory::{LINE, WORD};
use crate::names::{Position, Round};
use crate::record;

/// Bytes of a row: a page, whatever the number of members.
pub const ROW_BYTES: usize = 4096;

/// The smallest ring.
pub const LEAST_RING: usize = 4096;

/// The largest ring: a head's position counts 2^32 words, and half of that must tell ahead from behind.
pub const MOST_RING: usize = 1 << 30;

/// Offsets from a session's base, for a number of members.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    members: usize,
    later: usize,
    rare: usize,
}

const _: () =
    assert!(Layout::new(crate::names::MAX_NODES).end() <= Layout::new(1).tag(), "a row must fit its page");
const _: () = assert!(MOST_RING / WORD <= 1 << 31, "a ring's positions must be told apart modulo 2^32 words");
const _: () = assert!(LEAST_RING / 2 > record::HEADER, "half a ring must hold a record");
const _: () = assert!(ROW_BYTES.is_multiple_of(LINE), "the ring must start on a line");

impl Layout {
    /// The layout of a session of `members`.
    pub const fn new(members: usize) -> Self {
        let later = (WORD + WORD * members).next_multiple_of(LINE);
        Self { members, later, rare: (later + 3 * WORD + WORD * members).next_multiple_of(LINE) }
    }

    /// Checks a ring's size against the inequalities above; the refusal is the largest size that these members can have.
    pub(crate) fn check_ring(ring_bytes: usize, members: usize) -> Result<(), usize> {
        let mut most = MOST_RING;
        while members * (most / WORD) >= 1 << 31 {
            most /= 2;
        }
        if ring_bytes.is_power_of_two() && (LEAST_RING..=most).contains(&ring_bytes) {
            Ok(())
        } else {
            Err(most)
        }
    }

    /// Where `head` is.
    pub const fn head(self) -> usize {
        0
    }

    /// Where `received[rank]` is.
    pub const fn received(self, rank: usize) -> usize {
        WORD + WORD * rank
    }

    /// Where `delivered` is.
    pub const fn delivered(self) -> usize {
        self.later
    }

    /// Where `persisted` is.
    pub const fn persisted(self) -> usize {
        self.later + WORD
    }

    /// Where the heartbeat is.
    pub const fn heartbeat(self) -> usize {
        self.later + 2 * WORD
    }

    /// Where `released[rank]` is.
    pub const fn released(self, rank: usize) -> usize {
        self.later + 3 * WORD + WORD * rank
    }

    /// Where the tag is: the same place for any number of members, as a reader knows it before it knows the session.
    pub const fn tag(self) -> usize {
        ROW_BYTES - WORD
    }

    /// The end of the words that a delivery waits for.
    pub const fn urgent_end(self) -> usize {
        WORD + WORD * self.members
    }

    /// The end of the words that a delivery and flow control need.
    pub const fn later_end(self) -> usize {
        self.released(self.members)
    }

    /// Where `asked` is, how many questions for a read point this member has asked: the first of the words that rarely change.
    pub const fn asked(self) -> usize {
        self.rare
    }

    /// Where the digest of the application's state is.
    pub const fn digest(self) -> usize {
        self.rare + WORD
    }

    /// Where `answered[rank]` is: how many of that member's questions this one has seen, while it ran.
    pub const fn answered(self, rank: usize) -> usize {
        self.rare + 2 * WORD + WORD * rank
    }

    /// The end of all words but the tag.
    pub const fn end(self) -> usize {
        self.answered(self.members)
    }

    /// Where the ring starts.
    pub const fn ring(self) -> usize {
        ROW_BYTES
    }
}

/// A head as one word. `position` must be a whole number of words.
pub(crate) const fn pack_head(position: Position, promise: Round) -> u64 {
    (position.0 / WORD as u64) << 32 | promise.0 & 0xffff_ffff
}

/// What follows `last` in a counter of which only the low half was read; `None` if it lies more than `most` ahead,
/// which is also how a counter that fell reads.
#[inline]
pub(crate) const fn unwrap(last: u64, low: u32, most: u64) -> Option<u64> {
    let ahead = low.wrapping_sub(last as u32) as u64;
    if ahead <= most { Some(last + ahead) } else { None }
}

/// A head from a word that anyone may have written (S1): the position and promise that follow `position` and `promise`;
/// `None` where the position lies beyond `limit` or either fell.
#[inline]
pub(crate) fn unpack_head(
    word: u64,
    position: Position,
    promise: Round,
    limit: Position,
) -> Option<(Position, Round)> {
    let words = WORD as u64;
    let next = unwrap(position.0 / words, (word >> 32) as u32, limit.0.saturating_sub(position.0) / words)?;
    let round = unwrap(promise.0, word as u32, (1 << 31) - 1)?;
    Some((Position(next * words), Round(round)))
}

/// Where what lies between two positions of a ring has its bytes, in a ring of `size` bytes that starts at `ring`: two parts at a wrap.
#[inline]
pub(crate) fn ring_parts(between: Range<Position>, ring: usize, size: usize) -> [Range<usize>; 2] {
    let (place, len) = (between.start.0 as usize & (size - 1), (between.end.0 - between.start.0) as usize);
    let first = len.min(size - place);
    [ring + place..ring + place + first, ring..ring + len - first]
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        // D1: both halves come back across any number of wraps, and what fell or ran ahead is refused (S1).
        #[test]
        fn a_head_is_unwrapped(
            at in 0..1u64 << 40, ahead in 0..1u64 << 27, round in 0..1u64 << 40, later in 0..1u64 << 31, back in 1..1u64 << 20,
        ) {
            let (at, promise) = (Position(at * 8), Round(round));
            let (next, then) = (Position(at.0 + ahead * 8), Round(round + later));
            let limit = Position(at.0 + (1 << 30));
            prop_assert_eq!(unpack_head(pack_head(next, then), at, promise, limit), Some((next, then)));
            prop_assert_eq!(unpack_head(pack_head(Position(at.0.wrapping_sub(back * 8)), promise), at, promise, limit), None);
            prop_assert_eq!(unpack_head(pack_head(at, Round(round.wrapping_sub(back))), at, promise, limit), None);
            prop_assert_eq!(unpack_head(pack_head(Position(limit.0 + 8), then), at, promise, limit), None);
        }
    }

    #[test]
    fn rows_keep_apart_what_is_urgent_and_what_is_not() {
        for n in 1..=64 {
            let row = Layout::new(n);
            assert_eq!(row.received(n - 1) + WORD, row.urgent_end());
            assert!(row.delivered() >= row.urgent_end() && row.delivered().is_multiple_of(LINE));
            assert!(row.released(n - 1) + WORD == row.later_end() && row.asked() >= row.later_end());
            assert!(row.asked().is_multiple_of(LINE) && row.digest() / LINE == row.asked() / LINE);
            assert!(row.answered(n - 1) + WORD == row.end() && row.end() <= row.tag());
        }
        assert!(Layout::new(7).urgent_end() <= LINE, "seven members share a line");
    }

    #[test]
    fn rings_are_bounded_by_the_inequalities() {
        assert!(Layout::check_ring(1 << 30, 8).is_ok());
        for (bytes, members) in [(0, 2), (4095, 2), (2048, 2), (3 << 20, 2), (1 << 31, 2), (1 << 30, 64)] {
            assert!(Layout::check_ring(bytes, members).is_err(), "{bytes} bytes for {members}");
        }
    }
}
