//! The order (D6), as arithmetic on keys: no memory, no messages.
//!
//! A record's [`Key`] is its round and its sender's rank; records are delivered by ascending key, and two of one key, which
//! are one sender's, in ring order. A promise is a key too: a member that promised round p may yet send (p, its rank) and
//! nothing smaller. So D6 (every other sender j is past the record (r, k): `promise_j > r`, or `promise_j = r` and `j > k`)
//! says just this: the record's key is smaller than every other member's promise.

use crate::names::{MAX_NODES, Round};

/// Round and rank in one word: the round above, the rank in the low six bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Key(u64);

const RANK_BITS: u32 = MAX_NODES.trailing_zeros();

const _: () = assert!(1 << RANK_BITS == MAX_NODES, "a rank must fill its bits");

impl Key {
    /// After every key.
    pub(crate) const NEVER: Self = Self(u64::MAX);

    #[inline]
    pub(crate) const fn new(round: Round, rank: usize) -> Self {
        Self(round.0 << RANK_BITS | rank as u64)
    }

    #[inline]
    pub(crate) const fn round(self) -> Round {
        Round(self.0 >> RANK_BITS)
    }

    #[inline]
    pub(crate) const fn rank(self) -> usize {
        (self.0 & (MAX_NODES as u64 - 1)) as usize
    }
}

/// The least and the second least of some keys; [`Key::NEVER`] where there are not so many.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Least {
    pub(crate) first: Key,
    pub(crate) second: Key,
}

impl Least {
    pub(crate) const NONE: Self = Self { first: Key::NEVER, second: Key::NEVER };

    #[inline]
    pub(crate) fn add(&mut self, key: Key) {
        if key < self.first {
            self.second = self.first;
            self.first = key;
        } else if key < self.second {
            self.second = key;
        }
    }

    /// The least of those that aren't `rank`'s: given all promises, where `rank`'s records stop being ordered (D6).
    #[inline]
    pub(crate) fn but(self, rank: usize) -> Key {
        if self.first != Key::NEVER && self.first.rank() == rank { self.second } else { self.first }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        // D6, word for word, against the arithmetic.
        #[test]
        fn a_record_is_ordered_as_d6_says(rank in 0..4usize, promises in proptest::array::uniform4(0..6u64), round in 0..8u64) {
            let ordered = (0..4).filter(|j| *j != rank)
                .all(|j| promises[j] > round || promises[j] == round && j > rank);
            let mut least = Least::NONE;
            for (j, promise) in promises.into_iter().enumerate() {
                least.add(Key::new(Round(promise), j));
            }
            prop_assert_eq!(Key::new(Round(round), rank) < least.but(rank), ordered);
        }

        #[test]
        fn a_key_keeps_what_it_was_made_of(round in 0..1u64 << 40, rank in 0..64usize) {
            let key = Key::new(Round(round), rank);
            prop_assert_eq!((key.round(), key.rank()), (Round(round), rank));
        }
    }

    #[test]
    fn alone_nothing_waits() {
        let mut least = Least::NONE;
        least.add(Key::new(Round(3), 0));
        assert_eq!(least.but(0), Key::NEVER);
        assert_eq!(Least::NONE.but(63), Key::NEVER);
    }
}
