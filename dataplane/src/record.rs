//! One message in a ring (D2): a header word, then the payload, padded to whole words.
//!
//! ```text
//!  63            32 31    28 27                  0
//! +----------------+--------+---------------------+----------------------+---------+
//! | round, low 32  |  kind  |  length in bytes    | payload              | 0 to 7  |
//! +----------------+--------+---------------------+----------------------+---------+
//!  one 8-byte word, native byte order               `length` bytes         to a word
//! ```
//!
//! An *addressed* record (D12) has one word more before its payload, counted in its length: who it is for, as bits by rank.
//!
//! Eight bytes and no more: for a 64-byte message that is an eighth on top. The round is unwrapped by the reader, who
//! knows a lower bound (rounds never fall within a ring) and that less than 2^31 rounds fit in all rings together
//! ([`crate::layout`]).

use crate::memory::WORD;

/// Bytes of a header.
pub const HEADER: usize = WORD;

/// Bytes by which an addressed record's payload begins later: the word that says whom it is for.
pub const ADDRESS: usize = WORD;

/// The longest payload that a header can say, in bytes; a ring may set a lower bound.
pub const MAX_LEN: usize = (1 << 28) - 1;

/// What a record is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Kind {
    /// A message of the application.
    Data = 1,
    /// Nothing: room that could not be used (the end of the ring, a reservation given up).
    Pad = 2,
    /// "I send nothing more in this session."
    End = 3,
    /// A message for some of the members (D12). The others have its place in the order, and whom it is for, and no more.
    Addressed = 4,
}

/// A record's header, decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Bytes of payload.
    pub len: usize,
    /// What the record is.
    pub kind: Kind,
    /// The low half of its round.
    pub round: u32,
}

impl Header {
    /// As one word.
    pub const fn word(self) -> u64 {
        (self.round as u64) << 32 | (self.kind as u64) << 28 | self.len as u64
    }

    /// From a word that anyone may have written (S1); `None` if no sound writer wrote it.
    #[inline]
    pub const fn parse(word: u64) -> Option<Self> {
        // In this way it is the number itself, and no jump.
        let kind = match word >> 28 & 0xf {
            0 | 5.. => return None,
            1 => Kind::Data,
            2 => Kind::Pad,
            3 => Kind::End,
            4 => Kind::Addressed,
        };
        let len = len(word);
        if matches!(kind, Kind::Addressed) && len < ADDRESS {
            return None;
        }
        Some(Self { len, kind, round: (word >> 32) as u32 })
    }

    /// Bytes that the record takes in the ring.
    pub const fn size(self) -> usize {
        size(self.len)
    }
}

/// Bytes that a record with `len` bytes of payload takes in the ring.
pub const fn size(len: usize) -> usize {
    HEADER + len.next_multiple_of(WORD)
}

/// The length in a sound header's word.
pub(crate) const fn len(word: u64) -> usize {
    (word & MAX_LEN as u64) as usize
}

/// Whether a sound header's word is an addressed record's.
pub(crate) const fn is_addressed(word: u64) -> bool {
    word >> 28 & 0xf == Kind::Addressed as u64
}

/// The word with its round set to `round`: the engine stamps what the senders wrote (D4).
pub(crate) const fn stamp(word: u64, round: u32) -> u64 {
    word & 0xffff_ffff | (round as u64) << 32
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_header_reads_as_written(len in 0..=MAX_LEN, kind in 1..5u8, round: u32) {
            let kind = [Kind::Data, Kind::Pad, Kind::End, Kind::Addressed][usize::from(kind) - 1];
            let len = if kind == Kind::Addressed { len.max(ADDRESS) } else { len };
            let header = Header { len, kind, round };
            prop_assert_eq!(Header::parse(header.word()), Some(header));
            prop_assert_eq!(Header::parse(stamp(header.word(), !round)), Some(Header { round: !round, ..header }));
        }

        #[test]
        fn any_word_is_a_header_or_refused(word: u64) {
            if let Some(header) = Header::parse(word) {
                prop_assert_eq!(header.word(), word);
                prop_assert!(header.size() >= HEADER + header.len && header.size() % WORD == 0);
            }
        }
    }
}
