//! Who is right: digests of the state at the same update, of all members, compared. Pure: words go in, verdicts come out.
//!
//! A digest travels as one word, so that it is never seen in part:
//!
//! ```text
//!  63    62     56 55                34 33                                0
//! ┌─────┬─────────┬────────────────────┬───────────────────────────────────┐
//! │  1  │ period  │ ordinal            │ digest                            │
//! └─────┴─────────┴────────────────────┴───────────────────────────────────┘
//! ```
//!
//! The *ordinal* counts the times at which digests are taken, since the group was founded, modulo 2^22. Nobody gets ahead of another by
//! more updates than the rings hold, so it can't be mistaken while these are less than 2^21 times the updates between two digests
//! ([`least_every`]). The *period* is a mark of how often one is
//! taken: words of a member that was told otherwise mean something else, and are passed over.
//!
//! Only the last word of a member is seen, so some may be missed. A state that went wrong stays wrong: the next will do.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use consort_dataplane::names::MAX_NODES;

use crate::{NodeId, Seq, ViewId};

/// A word that a replica has published about its state, as another program sees it ([`Event::Digest`](crate::Event::Digest), `consort status`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct StateDigest {
    /// Which of its digests it is, counted modulo 2^22 from the founding of the group on. Only those with the same number compare.
    pub ordinal: u64,
    /// Of the state: the lower 34 bits of a hash.
    pub digest: u64,
}

impl StateDigest {
    /// Out of the word; `None` if no replica published it.
    pub fn from_word(word: u64) -> Option<Self> {
        let (ordinal, digest) = (word >> DIGEST_BITS & (ORDINALS - 1), word & DIGEST);
        (word >> 63 == 1).then_some(Self { ordinal, digest })
    }
}

const DIGEST_BITS: u32 = 34;
const ORDINALS: u64 = 1 << 22;
const DIGEST: u64 = (1 << DIGEST_BITS) - 1;

/// The least bytes of a ring that an update takes.
const LEAST_RECORD: u64 = 16;

/// The fewest updates between two digests with which ordinals can't be mistaken, whatever the number of members, for rings of so many bytes.
pub(super) fn least_every(ring_bytes: usize) -> u64 {
    let most = MAX_NODES as u64 * ring_bytes as u64 / LEAST_RECORD;
    most / (ORDINALS / 2) + 1
}

/// Times of which digests are remembered.
const REMEMBERED: usize = 64;

/// The members' states differ: some member's code isn't deterministic, or its memory isn't what was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub struct Divergence {
    /// Whose state differs from the majority's; `None` where no majority agrees, so that nobody can be shown to be right.
    pub node: Option<NodeId>,
    /// The view,
    pub view: ViewId,
    /// the place in its order,
    pub seq: Seq,
    /// and the number of the update, since the group was founded, after which it differed. It may have done so before, but not before
    /// the last digest that agreed.
    pub index: u64,
}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { node, view, seq, index } = self;
        match node {
            Some(node) => write!(f, "the state of node {node} differs from the majority's")?,
            None => f.write_str("the members' states differ, and no majority agrees")?,
        }
        write!(
            f,
            " after update {index}, at {seq} of view {view}; look for what `apply` does that doesn't follow from the state and \
             the update alone"
        )
    }
}

/// Where a digest was taken here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Place {
    pub(super) view: ViewId,
    pub(super) seq: Seq,
    pub(super) index: u64,
}

/// The digests of all members, as far as they are known. See the [module](self).
pub(super) struct Digests {
    me: NodeId,
    every: u64,
    members: BTreeSet<NodeId>,
    /// This member's own last ordinal.
    last: u64,
    /// By ordinal.
    own: BTreeMap<u64, (u64, Place)>,
    heard: BTreeMap<u64, BTreeMap<NodeId, u64>>,
    /// Others that were found to be wrong.
    named: BTreeSet<NodeId>,
}

impl Digests {
    /// Of a member that takes one after every so many updates; 0 is never.
    pub(super) fn new(me: NodeId, every: u64) -> Self {
        Self {
            me,
            every,
            members: BTreeSet::new(),
            last: 0,
            own: BTreeMap::new(),
            heard: BTreeMap::new(),
            named: BTreeSet::new(),
        }
    }

    /// The ordinal of this member's last one.
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// Whether one is to be taken after so many updates.
    pub(super) fn is_due(&self, applied: u64) -> bool {
        self.every > 0 && applied.is_multiple_of(self.every)
    }

    /// Another state begins: of so many updates.
    pub(super) fn restart(&mut self, applied: u64) {
        self.last = applied.checked_div(self.every).unwrap_or_default();
        self.own.clear();
        self.heard.clear();
        self.named.clear();
    }

    /// Who has a state.
    pub(super) fn set_members(&mut self, members: impl Iterator<Item = NodeId>) {
        self.members = members.collect();
        self.named.retain(|node| self.members.contains(node));
    }

    /// The digest here, after the update at `place`. Returns the word to publish.
    pub(super) fn take(&mut self, digest: u64, place: Place) -> u64 {
        self.last = (place.index + 1) / self.every;
        self.own.insert(self.last, (digest & DIGEST, place));
        while self.own.len() > REMEMBERED {
            self.own.pop_first();
        }
        let oldest = self.own.first_key_value().map_or(0, |(ordinal, _)| *ordinal);
        self.heard.retain(|ordinal, _| *ordinal >= oldest);
        1 << 63 | self.period() << 56 | (self.last % ORDINALS) << DIGEST_BITS | digest & DIGEST
    }

    /// What another member published. Returns the ordinal that it is of.
    pub(super) fn hear(&mut self, node: NodeId, word: u64) -> Option<u64> {
        if word >> 63 == 0 || word >> 56 & 0x7f != self.period() {
            return None;
        }
        let low = word >> DIGEST_BITS & (ORDINALS - 1);
        // The nearest to the own one, before or after.
        let most = self.last + ORDINALS / 2;
        let base = most.saturating_sub(most.wrapping_sub(low) % ORDINALS);
        self.heard.entry(base).or_default().insert(node, word & DIGEST);
        while self.heard.len() > 2 * REMEMBERED {
            self.heard.pop_first();
        }
        Some(base)
    }

    /// What follows of what is known of that time: who is wrong. Each other member is named once.
    pub(super) fn judge(&mut self, ordinal: u64) -> Vec<Divergence> {
        let Some((own, place)) = self.own.get(&ordinal).copied() else { return Vec::new() };
        let mut known = self.heard.get(&ordinal).cloned().unwrap_or_default();
        known.retain(|node, _| self.members.contains(node));
        known.insert(self.me, own);
        let mut classes: BTreeMap<u64, usize> = BTreeMap::new();
        for digest in known.values() {
            *classes.entry(*digest).or_default() += 1;
        }
        let majority = self.members.len() / 2 + 1;
        let Some((right, votes)) = classes.into_iter().max_by_key(|(_, votes)| *votes) else {
            return Vec::new();
        };
        let Place { view, seq, index } = place;
        let differs = |node| Divergence { node, view, seq, index };
        let unknown = self.members.len().saturating_sub(known.len());
        if votes + unknown < majority {
            return vec![differs(None)];
        }
        if votes < majority {
            return Vec::new();
        }
        let wrong = known.into_iter().filter(|(_, digest)| *digest != right).map(|(node, _)| node);
        let wrong: Vec<_> = wrong.filter(|node| !self.named.contains(node)).collect();
        self.named.extend(wrong.iter().copied());
        wrong.into_iter().map(|node| differs(Some(node))).collect()
    }

    fn period(&self) -> u64 {
        self.every.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 57
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(members: u32) -> Vec<Digests> {
        let ids = (1..=members).map(NodeId);
        let all = ids.clone();
        let make = move |me| {
            let mut digests = Digests::new(me, 10);
            digests.set_members(all.clone());
            digests
        };
        ids.map(make).collect()
    }

    fn place(index: u64) -> Place {
        Place { view: ViewId(1), seq: Seq(index), index }
    }

    /// Everyone takes a digest after update `index`, hears all others, and says who is wrong.
    fn round(group: &mut [Digests], index: u64, digests: &[u64]) -> Vec<Vec<Option<u32>>> {
        let words: Vec<_> =
            group.iter_mut().zip(digests).map(|(it, digest)| it.take(*digest, place(index))).collect();
        let mut verdicts = Vec::new();
        for it in group {
            let mut wrong = Vec::new();
            for (at, word) in words.iter().enumerate() {
                let node = NodeId(at as u32 + 1);
                if node != it.me {
                    let ordinal = it.hear(node, *word).unwrap();
                    assert_eq!(ordinal, (index + 1) / 10);
                    wrong.extend(it.judge(ordinal));
                }
            }
            assert!(wrong.iter().all(|it| it.index == index));
            verdicts.push(wrong.iter().map(|it| it.node.map(|node| node.0)).collect());
        }
        verdicts
    }

    #[test]
    fn one_that_differs_from_the_majority_is_named_by_all_and_once() {
        let mut three = group(3);
        assert_eq!(round(&mut three, 9, &[5, 5, 5]), [[]; 3]);
        assert_eq!(round(&mut three, 19, &[5, 6, 5]), [[Some(2)]; 3]);
        assert_eq!(round(&mut three, 29, &[5, 6, 5]), [[]; 3]);
    }

    #[test]
    fn without_a_majority_nobody_is_believed() {
        assert_eq!(round(&mut group(2), 9, &[5, 6]), [[None]; 2]);
        let four = round(&mut group(4), 9, &[5, 6, 5, 6]);
        assert!(four.iter().all(|verdict| verdict == &[None]), "{four:?}");
        let five = round(&mut group(5), 9, &[5, 6, 5, 6, 7]);
        assert!(five.iter().all(|verdict| verdict.contains(&None)), "{five:?}");
    }

    #[test]
    fn who_is_not_heard_may_yet_agree() {
        let mut group = group(3);
        let word = group[1].take(6, place(9));
        group[0].take(5, place(9));
        let ordinal = group[0].hear(NodeId(2), word).unwrap();
        assert_eq!(group[0].judge(ordinal), [], "the third decides");
        let word = group[2].take(6, place(9));
        group[0].hear(NodeId(3), word);
        assert_eq!(group[0].judge(ordinal)[0].node, Some(NodeId(1)));
    }

    #[test]
    fn ordinals_go_on_over_their_end() {
        let mut group = group(2);
        for lap in [1, ORDINALS - 1, ORDINALS, ORDINALS + 1, 5 * ORDINALS + 7] {
            let index = lap * 10 - 1;
            group.iter_mut().for_each(|it| it.restart(index));
            // One is ahead of the other, and the other of the one.
            let ahead = group[0].take(5, place(index + 10));
            assert_eq!(group[1].hear(NodeId(1), ahead), Some(lap + 1));
            let behind = group[1].take(5, place(index));
            assert_eq!(group[0].hear(NodeId(2), behind), Some(lap));
        }
    }

    #[test]
    fn who_takes_them_at_other_times_is_passed_over() {
        let mut other = Digests::new(NodeId(2), 11);
        let word = other.take(5, place(10));
        assert_eq!((group(2)[0].hear(NodeId(2), word), group(2)[0].hear(NodeId(2), 0)), (None, None));
        assert!(!Digests::new(NodeId(1), 0).is_due(0) && other.is_due(22) && !other.is_due(21));
    }
}
