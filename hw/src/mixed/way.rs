//! One link's way: which kinds come into question, which are tried, which has taken it.

use std::ops::Range;
use std::time::Duration;

use consort_dataplane::fabric::Fabric;
use consort_dataplane::names::{NodeId, PeerSet, Time};

use super::{Kind, PATIENCE};

/// The way to one peer.
pub(super) struct Way {
    pub(super) peer: NodeId,
    /// What is still to be tried, the best last, with what the peer offers for it.
    left: Vec<(Kind, Vec<u8>)>,
    pub(super) within: Duration,
    /// Who doesn't dial must be ready for what the dialler tries.
    dials: bool,
    /// When it is to be ready for the next kind; counted from the first call that brought the time.
    patience: Option<Time>,
    /// Bits by kind.
    pub(super) trying: u8,
    /// What carries the link, or carried it.
    pub(super) taken: Option<Kind>,
    pub(super) is_over: bool,
    /// Why what was tried did not do.
    pub(super) failures: Vec<String>,
    pub(super) early: Early,
}

impl Way {
    pub(super) fn new(
        peer: NodeId,
        mut choices: Vec<(Kind, Vec<u8>)>,
        dials: bool,
        within: Duration,
    ) -> Self {
        choices.reverse();
        Self {
            peer,
            left: choices,
            within,
            dials,
            patience: None,
            trying: 0,
            taken: None,
            is_over: false,
            failures: Vec::new(),
            early: Early::default(),
        }
    }

    /// The best of what was not tried yet.
    pub(super) fn next(&mut self) -> Option<(Kind, Vec<u8>)> {
        self.patience = None;
        self.left.pop()
    }

    pub(super) fn note(&mut self, kind: Kind, why: &str) {
        self.failures.push(format!("{}: {why}", kind.name()));
    }

    /// Why the link doesn't take the best kind that both ends have; `None` if it does.
    pub(super) fn detour(&self) -> Option<String> {
        (!self.failures.is_empty()).then(|| self.failures.join("; "))
    }

    /// Whether what is tried has had its time, so that the next is to be tried as well.
    pub(super) fn is_impatient(&mut self, now: Time) -> bool {
        if self.dials || self.left.is_empty() || self.taken.is_some() || self.is_over {
            return false;
        }
        now >= *self.patience.get_or_insert(now.plus(PATIENCE))
    }

    /// When it will be impatient.
    pub(super) fn due(&self) -> Option<Time> {
        self.patience.filter(|_| !self.left.is_empty() && self.taken.is_none() && !self.is_over)
    }

    /// Whether a kind has or had to do with it.
    pub(super) fn concerns(&self, kind: Kind) -> bool {
        self.taken == Some(kind) || self.trying & kind.bit() != 0
    }
}

/// What was published to a peer before its link was there, for a kind that is tried later.
#[derive(Default)]
pub(super) struct Early {
    words: Vec<Range<usize>>,
    ring: Vec<Range<usize>>,
}

impl Early {
    pub(super) fn words(&mut self, range: Range<usize>) {
        merge(&mut self.words, range);
    }

    pub(super) fn ring(&mut self, range: Range<usize>) {
        merge(&mut self.ring, range);
    }

    /// Tells it again. Words are sent as they are by now, and may vouch for any of the ring bytes: so these come first (F1).
    pub(super) fn tell(&self, part: &mut dyn Fabric, peer: PeerSet) {
        for range in &self.ring {
            part.publish_ring(range.clone(), peer);
        }
        for range in &self.words {
            part.publish_words(range.clone(), peer);
        }
    }
}

/// Adds a range to some of which none touches another.
fn merge(ranges: &mut Vec<Range<usize>>, mut new: Range<usize>) {
    if new.is_empty() {
        return;
    }
    ranges.retain(|old| {
        let touches = old.start <= new.end && new.start <= old.end;
        if touches {
            new = new.start.min(old.start)..new.end.max(old.end);
        }
        !touches
    });
    ranges.push(new);
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLISECOND: u64 = 1_000_000;

    fn way(dials: bool) -> Way {
        let choices = vec![(Kind::Shm, vec![1]), (Kind::Verbs, vec![2]), (Kind::Tcp, vec![3])];
        Way::new(NodeId(2), choices, dials, Duration::from_secs(1))
    }

    #[test]
    fn the_best_is_tried_first_and_nothing_twice() {
        let mut way = way(true);
        let tried: Vec<_> = std::iter::from_fn(|| way.next()).collect();
        assert_eq!(tried, [(Kind::Shm, vec![1]), (Kind::Verbs, vec![2]), (Kind::Tcp, vec![3])]);
    }

    #[test]
    fn who_dials_is_patient_and_who_does_not_gets_ready_for_the_next() {
        let (mut dials, mut waits) = (way(true), way(false));
        for way in [&mut dials, &mut waits] {
            way.next();
            assert!(!way.is_impatient(Time(5)));
        }
        let later = Time(5).plus(PATIENCE);
        assert_eq!((dials.due(), waits.due()), (None, Some(later)));
        assert!(!dials.is_impatient(later) && waits.is_impatient(later));
        waits.next();
        assert!(!waits.is_impatient(later), "the next has its time too");
        waits.next();
        assert!(!waits.is_impatient(Time(later.0 + 1_000_000 * MILLISECOND)), "nothing is left");
    }

    #[test]
    fn ranges_that_touch_are_one() {
        let mut ranges = Vec::new();
        for range in [0..8, 64..72, 8..16, 128..136, 72..128, 200..200] {
            merge(&mut ranges, range);
        }
        assert_eq!(ranges, [0..16, 64..136]);
    }
}
