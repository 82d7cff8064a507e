//! Who is silent (V9). Proof that a node is gone comes from elsewhere (F5); here is what has to be inferred.
//!
//! - *The process*: control threads tell each other that they live. Who says nothing for the configured bound is suspected.
//! - *The data plane*: engines count a heartbeat up in their rows. One that stands still while its process lives is a callback that
//!   doesn't return, or a core that is never given: named as that, and the groups' slow-member policies decide.
//! - *The application*: in each session the engine counts another one up as long as the application takes what is delivered there. One that
//!   stands still holds up this group, and sooner or later all its senders; this group's policy decides. With the engine all stand still.
//!
//! Silence is counted in time during which this node itself was awake. Its clock runs on while it is paused, and a node that
//! measured its own pause as the others' silence would take all of them for dead when it wakes. So each look
//! counts at most two intervals, however long ago the last one was.

use std::collections::BTreeMap;
use std::time::Duration;

use consort_dataplane::names::{NodeId, Time};

use crate::orders::Pulse;
use crate::view::ShardId;

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

impl Beats {
    fn on_count(&mut self, count: u64, awake: Duration) {
        if self.count == count {
            self.still += awake;
        } else {
            *self = Self { count, still: Duration::ZERO };
        }
    }
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
    takes: BTreeMap<(ShardId, NodeId), Beats>,
    pulsed: Time,
}

impl Detection {
    pub(super) fn new(bound: Duration, now: Time) -> Self {
        let (silent, beats, takes) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { bound, looked: now, silent, beats, takes, pulsed: now }
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
        self.takes.retain(|(_, of), _| *of != node);
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

    /// The engine tells how often the others' have beaten, and their applications. What it takes to tell, and so what a pause of its own
    /// can't count against anyone, is at most two intervals again.
    pub(super) fn on_pulse(&mut self, now: Time, pulse: &Pulse) {
        let awake = now.since(self.pulsed).min(Duration::from_millis(200));
        self.pulsed = now;
        for (node, count) in &pulse.beats {
            self.beats.entry(*node).or_default().on_count(*count, awake);
        }
        for (shard, node, count) in &pulse.takes {
            self.takes.entry((*shard, *node)).or_default().on_count(*count, awake);
        }
    }

    /// Who stands still in which shard, although its process lives, for longer than that shard's bound, if there is one; and that.
    pub(super) fn blocked(
        &self,
        bound: impl Fn(ShardId) -> Option<Duration>,
    ) -> Vec<(ShardId, NodeId, Duration)> {
        let blocked = self.takes.iter().filter_map(|(&(shard, node), beats)| {
            let bound = bound(shard).filter(|bound| beats.still >= *bound)?;
            Some((shard, node, bound))
        });
        blocked.collect()
    }

    /// For how long a node's engine has stood still.
    pub(super) fn engine_still(&self, node: NodeId) -> Duration {
        self.beats.get(&node).map(|beats| beats.still).unwrap_or_default()
    }

    /// A view begins: heartbeats are counted from its sessions' begin.
    pub(super) fn on_view(&mut self, now: Time) {
        self.beats.clear();
        self.takes.clear();
        self.pulsed = now;
    }

    pub(super) fn beats(&self) -> &BTreeMap<NodeId, Beats> {
        &self.beats
    }

    pub(super) fn takes(&self) -> &BTreeMap<(ShardId, NodeId), Beats> {
        &self.takes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: Duration = Duration::from_millis(800);

    fn at(milliseconds: u64) -> Time {
        Time(milliseconds * 1_000_000)
    }

    fn pulse(beats: &[(u32, u64)], takes: &[(u32, u32, u64)]) -> Pulse {
        Pulse {
            beats: beats.iter().map(|(node, count)| (NodeId(*node), *count)).collect(),
            takes: takes
                .iter()
                .map(|(shard, node, count)| (ShardId(*shard), NodeId(*node), *count))
                .collect(),
            sessions: Vec::new(),
        }
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
        detection.on_pulse(at(3_600_000), &pulse(&[(2, 5)], &[(0, 2, 5)]));
        detection.on_pulse(at(7_200_000), &pulse(&[(2, 5)], &[(0, 2, 5)]));
        assert!(detection.blocked(|_| Some(BOUND)).is_empty());
    }

    #[test]
    fn a_data_plane_that_stands_still_is_seen_apart_from_its_process() {
        let mut detection = Detection::new(BOUND, at(0));
        for tick in 0..20 {
            detection.on_heard(NodeId(2));
            detection.pass(at(tick * 100));
            let (engines, applications) = ([(2, 7), (3, tick)], [(0, 2, 7), (0, 3, tick)]);
            detection.on_pulse(at(tick * 100), &pulse(&engines, &applications));
        }
        assert_eq!(detection.blocked(|_| Some(BOUND)), [(ShardId::MAIN, NodeId(2), BOUND)]);
        assert!(detection.engine_still(NodeId(2)) >= BOUND && detection.engine_still(NodeId(3)) < BOUND);
        assert!(detection.silent().is_empty());
    }

    // V9, D11
    #[test]
    fn an_application_stands_still_in_one_group_by_that_groups_bound() {
        let mut detection = Detection::new(BOUND, at(0));
        let bounds = |shard: ShardId| [Some(BOUND * 2), None, Some(BOUND)][shard.0 as usize];
        for tick in 0..16 {
            // 2 stands still in 1 and in 2, 3 in the main group.
            let applications = [(0, 2, tick), (1, 2, 7), (2, 2, 7), (0, 3, 7), (2, 3, tick)];
            detection.on_pulse(at(tick * 100), &pulse(&[(2, tick), (3, tick)], &applications));
        }
        assert_eq!(detection.blocked(bounds), [(ShardId(2), NodeId(2), BOUND)]);
        assert_eq!(detection.engine_still(NodeId(2)), Duration::ZERO);
        detection.on_pulse(at(1600), &pulse(&[], &[(2, 2, 8), (0, 3, 7)]));
        assert_eq!(
            detection.blocked(bounds),
            [(ShardId::MAIN, NodeId(3), BOUND * 2)],
            "2 has taken something"
        );
        detection.forget(NodeId(3));
        assert!(detection.blocked(bounds).is_empty());
    }
}
