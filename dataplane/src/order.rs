//! The order (D6), as arithmetic on rounds: no memory, no messages.
//!
//! A record is keyed by (round, sender's rank); two records of one sender in one round stay in ring order. A record
//! (r, k) may be delivered once no record with a smaller key can come any more: every other member j has promised to send
//! nothing below round r, or, where k's rank comes first, nothing below r + 1... read the other way round: the
//! first round of k that must still wait is the least over j of `promise[j]`, plus one where k goes before j in rank.

use crate::names::Round;

/// A record's place in the order, but for its place in its sender's ring.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Key {
    pub(crate) round: Round,
    pub(crate) rank: usize,
}

/// The first round in which `rank` may have no record delivered yet, given what every member promised (its own
/// entry doesn't count).
#[inline]
pub(crate) fn horizon(rank: usize, promises: impl Iterator<Item = Round>) -> Round {
    let mut least = Round(u64::MAX);
    for (other, promise) in promises.enumerate() {
        if other != rank {
            least = least.min(Round(promise.0 + u64::from(tie(rank, other))));
        }
    }
    least
}

/// The first round in which `rank`'s record would come after `next`.
#[inline]
pub(crate) fn before(rank: usize, next: Key) -> Round {
    Round(next.round.0 + u64::from(tie(rank, next.rank)))
}

/// Whether `rank` goes first in a round that both have records in (D6's tie-break).
#[inline]
fn tie(rank: usize, other: usize) -> bool {
    rank < other
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        // D6, word for word, against the arithmetic.
        #[test]
        fn the_horizon_is_d6(rank in 0..4usize, promises in proptest::array::uniform4(0..6u64), round in 0..8u64) {
            let ordered = (0..4).filter(|j| *j != rank)
                .all(|j| promises[j] > round || promises[j] == round && j > rank);
            let horizon = horizon(rank, promises.into_iter().map(Round));
            prop_assert_eq!(Round(round) < horizon, ordered);
        }

        #[test]
        fn runs_stop_where_another_sender_comes_first(k in 0..4usize, j in 0..4usize, r in 0..5u64, s in 0..5u64) {
            prop_assume!(k != j);
            let (mine, next) = (Key { round: Round(r), rank: k }, Key { round: Round(s), rank: j });
            prop_assert_eq!(Round(r) < before(k, next), mine < next);
        }
    }
}
