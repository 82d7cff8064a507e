//! Who is silent (V9). Proof that a node is gone comes from elsewhere (F5); here is what has to be inferred.
//!
//! - *The process*: control threads tell each other that they live. Who says nothing for the configured bound is suspected.
//! - *The data plane*: engines count a heartbeat up in their rows. One that stands still while its process lives is a callback that
//!   doesn't return, or a core that is never given: named as that, and the group's slow-member policy decides.
//!
//! Silence is counted in time during which this node itself was awake. Its clock runs on while it is paused, and a node that
//! measured its own pause as the others' silence would take all of them for dead when it wakes. So each look
//! counts at most two intervals, however long ago the last one was.

use std::collections::BTreeMap;
use std::time::Duration;

use consort_dataplane::names::{NodeId, Time};

/// How often nodes say that they live, in parts of the bound.
const PARTS: u32 = 8;

/// What is known of others' data planes, for people.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Beats {
    /// The heartbeat as last seen.
    pub count: u64,
    /// For how long it has stood still, as far as this node was awake.
    pub still: Duration,
}

/// For how long a node has said nothing, and for how much of that it was suspected already.
#[derive(Clone, Copy, Default)]
struct Silence {
    all: Duration,
    suspected: Duration,
}

/// See the [module](self).
pub(super) struct Detection {
    bound: Duration,
    looked: Time,
    silent: BTreeMap<NodeId, Silence>,
    beats: BTreeMap<NodeId, Beats>,
    pulsed: Time,
}

impl Detection {
    pub(super) fn new(bound: Duration, now: Time) -> Self {
        Self { bound, looked: now, silent: BTreeMap::new(), beats: BTreeMap::new(), pulsed: now }
    }

    /// Everything begins anew.
    pub(super) fn restart(&mut self, now: Time) {
        *self = Self::new(self.bound, now);
    }

    /// How often to look, and to say that this node lives.
    pub(super) fn interval(&self) -> Duration {
        self.bound / PARTS
    }

    pub(super) fn due(&self) -> Time {
        self.looked.plus(self.interval())
    }

    /// That node has said something.
    pub(super) fn on_heard(&mut self, node: NodeId) {
        self.silent.insert(node, Silence::default());
    }

    /// That node is suspected of being silent: it is again, if at all, after as long.
    pub(super) fn begin_anew(&mut self, node: NodeId) {
        if let Some(silence) = self.silent.get_mut(&node) {
            silence.suspected = silence.all;
        }
    }

    /// Whether that node has said something within the bound.
    pub(super) fn hears(&self, node: NodeId) -> bool {
        self.silent.get(&node).is_some_and(|silence| silence.all < self.bound)
    }

    /// Watch that node no more.
    pub(super) fn forget(&mut self, node: NodeId) {
        self.silent.remove(&node);
        self.beats.remove(&node);
    }

    /// Time passes. Returns for how long this node was awake of it.
    pub(super) fn pass(&mut self, now: Time) -> Duration {
        let awake = now.since(self.looked).min(self.interval() * 2);
        self.looked = now;
        for silence in self.silent.values_mut() {
            silence.all += awake;
        }
        awake
    }

    /// Who has been silent for too long.
    pub(super) fn silent(&self) -> Vec<NodeId> {
        let is_due = |silence: &Silence| silence.all - silence.suspected >= self.bound;
        self.silent.iter().filter(|(_, silence)| is_due(silence)).map(|(node, _)| *node).collect()
    }

    /// The engine tells how often the others' have beaten. What it takes to tell, and so what a pause of its own can't
    /// count against anyone, is at most two intervals again.
    pub(super) fn on_pulse(&mut self, now: Time, beats: &[(NodeId, u64)]) {
        let awake = now.since(self.pulsed).min(Duration::from_millis(200));
        self.pulsed = now;
        for (node, count) in beats {
            let known = self.beats.entry(*node).or_default();
            if known.count == *count {
                known.still += awake;
            } else {
                *known = Beats { count: *count, still: Duration::ZERO };
            }
        }
    }

    /// Whose data plane stands still for longer than `bound` although its process lives.
    pub(super) fn blocked(&self, bound: Duration) -> Vec<NodeId> {
        self.beats.iter().filter(|(_, beats)| beats.still >= bound).map(|(node, _)| *node).collect()
    }

    /// A view begins: heartbeats are counted from its sessions' begin.
    pub(super) fn on_view(&mut self, now: Time) {
        self.beats.clear();
        self.pulsed = now;
    }

    pub(super) fn beats(&self) -> &BTreeMap<NodeId, Beats> {
        &self.beats
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: Duration = Duration::from_millis(800);

    fn at(milliseconds: u64) -> Time {
        Time(milliseconds * 1_000_000)
    }

    // V9
    #[test]
    fn silence_counts_and_a_word_ends_it() {
        let mut detection = Detection::new(BOUND, at(0));
        detection.on_heard(NodeId(2));
        detection.on_heard(NodeId(3));
        for tick in 1..8 {
            detection.pass(at(tick * 100));
            detection.on_heard(NodeId(3));
        }
        assert!(detection.silent().is_empty());
        detection.pass(at(800));
        assert_eq!(detection.silent(), [NodeId(2)]);
        // Suspected once, and unheard all the same until it says something.
        detection.begin_anew(NodeId(2));
        assert!(detection.silent().is_empty());
        assert!(!detection.hears(NodeId(2)) && detection.hears(NodeId(3)));
        detection.on_heard(NodeId(2));
        assert!(detection.hears(NodeId(2)));
    }

    // V9: its own pause, however long, is no silence of the others.
    #[test]
    fn who_was_paused_suspects_nobody() {
        let mut detection = Detection::new(BOUND, at(0));
        detection.on_heard(NodeId(2));
        detection.pass(at(100));
        detection.pass(at(3_600_000));
        assert!(detection.silent().is_empty());
        detection.on_pulse(at(3_600_000), &[(NodeId(2), 5)]);
        detection.on_pulse(at(7_200_000), &[(NodeId(2), 5)]);
        assert!(detection.blocked(BOUND).is_empty());
    }

    #[test]
    fn a_data_plane_that_stands_still_is_seen_apart_from_its_process() {
        let mut detection = Detection::new(BOUND, at(0));
        for tick in 0..20 {
            detection.on_heard(NodeId(2));
            detection.pass(at(tick * 100));
            detection.on_pulse(at(tick * 100), &[(NodeId(2), 7), (NodeId(3), tick)]);
        }
        assert_eq!(detection.blocked(BOUND), [NodeId(2)]);
        assert!(detection.silent().is_empty());
    }
}
