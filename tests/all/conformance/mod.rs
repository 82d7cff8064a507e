//! One suite for all fabrics: the contract F1 to F6 of `consort_dataplane::fabric`, tried on each.
//!
//! Five circles, each of which asks more of a fabric:
//! - [`in_turn`]: all nodes in one thread, looked after in turn. Any fabric, the simulated one included.
//! - [`anew`]: the same, with nodes that come again as new incarnations.
//! - [`relayed`]: the same, where bytes go from member to member.
//! - [`threads`]: a thread for each node, real time, real sleep. Fabrics of real machines.
//! - [`processes`]: peers that are processes of their own, and are killed, stopped and closed.
//!
//! A fabric joins by a [`Rig`] of its own and a call of the macros below, see `shm.rs`. All choices follow from
//! a seed, which is part of every message about a failure; `CONSORT_CONFORMANCE_SEED` replays one.

mod in_turn;
mod anew;
mod relayed;
mod threads;
mod processes;
mod traffic;
mod sim;
mod shm;
mod tcp;
mod mixed;
#[cfg(feature = "verbs")]
mod verbs;
#[cfg(feature = "verbs")]
mod verbs_faults;

use std::time::{Duration, Instant};

use consort_dataplane::fabric::{Fabric, LinkEvent};
use consort_dataplane::names::{NodeId, PeerSet, Slot, Time};

/// Whoever doesn't get there in this time hangs. No property is about time; this only turns a hang into a failure.
const HANG: Duration = Duration::from_secs(60);

/// Long enough for any link on this machine.
const LINK_WITHIN: Duration = Duration::from_secs(30);

/// How to make nodes of one kind of fabric, and tell them the time.
pub(crate) trait Rig: Sized {
    /// The fabric under test.
    type F: Fabric;

    /// Whether this machine has what the fabric needs. Where it has not, the tests say so and do nothing.
    fn is_here() -> bool {
        true
    }

    /// A world with nothing in it.
    fn new(seed: u64) -> Self;

    /// Makes the nodes 1 to `count`, with segments of `segment_bytes`, not yet linked. Node i + 1 is to be linked in slot i.
    fn nodes(&mut self, count: usize, segment_bytes: usize) -> Vec<Self::F>;

    /// The time, which goes on with each call.
    fn now(&mut self) -> Time;

    /// Ends a node as if its process had died.
    fn kill(&mut self, index: usize, fabric: Self::F) {
        let _ = index;
        drop(fabric);
    }
}

/// A rig whose nodes can come again.
pub(crate) trait Anew: Rig {
    /// Makes a new incarnation of a node, as [`Rig::nodes`] does. The one before it may live on.
    fn again(&mut self, index: usize, segment_bytes: usize) -> Self::F;
}

/// A fabric of a real machine: its nodes live in threads and processes of their own.
pub(crate) trait RealRig: Anew + Rig<F: Send + 'static> {
    /// The name by which a child process finds its rig.
    const NAME: &'static str;

    /// Makes one node.
    fn node(id: NodeId, segment_bytes: usize) -> Self::F;
}

/// The tests of [`in_turn`] for a rig.
macro_rules! conforms_in_turn {
    ($rig:ty) => {
        $crate::conformance::conforms!(in_turn, $rig: publishes_arrive_in_order, words_are_whole,
            mirrors_are_read_without_the_peer, fence_freezes_the_mirror, a_killed_peer_is_reported,
            a_closed_peer_is_reported_after_all_it_published, a_link_that_nobody_answers_fails,
            garbage_offers_are_refused, a_taken_slot_is_refused, a_second_fence_and_unknown_slots_do_nothing,
            a_fence_keeps_what_is_named);
    };
}

/// The tests of [`anew`] and [`relayed`] for a rig.
macro_rules! conforms_anew {
    ($rig:ty) => {
        $crate::conformance::conforms!(anew, $rig: a_fenced_slot_is_free_for_a_new_incarnation,
            a_fence_takes_back_what_was_not_heard, a_new_incarnation_may_come_early,
            two_incarnations_are_linked_at_once);
        $crate::conformance::conforms!(relayed, $rig: a_chain_passes_on_in_order, a_fence_stops_what_others_relay,
            a_fenced_peer_relays_nothing, what_was_relayed_outlives_a_fence_of_its_origin,
            what_was_not_asked_for_does_not_land, relays_of_one_incarnation_do_not_reach_the_next);
    };
}

/// The tests of [`threads`] and [`processes`] for a rig.
macro_rules! conforms_for_real {
    ($rig:ty) => {
        $crate::conformance::conforms!(threads, $rig: publishes_arrive_in_order_under_load, fence_in_full_flow,
            two_sleepers_wake_each_other, three_sleepers_wake_each_other, the_doorbell_wakes,
            what_came_before_the_sleep_ends_it, what_comes_after_the_last_look_ends_the_sleep,
            a_ring_after_the_last_look_ends_the_sleep, a_sleep_ends_at_its_time, work_found_late_ends_the_sleep,
            a_link_that_dies_wakes_the_sleeper, a_link_that_comes_up_wakes_the_sleeper);
        $crate::conformance::conforms!(processes, $rig: a_killed_process_is_reported, a_closing_process_is_reported,
            a_fenced_process_that_lives_changes_nothing, a_fenced_process_that_lives_sees_nothing_new);
    };
}

macro_rules! conforms {
    ($circle:ident, $rig:ty: $($test:ident),*) => {$(
        #[test]
        fn $test() {
            if !<$rig as $crate::conformance::Rig>::is_here() {
                println!("not run: this machine has not what {} needs", stringify!($rig));
                return;
            }
            $crate::conformance::with_seed(stringify!($test), |seed| {
                $crate::conformance::$circle::$test::<$rig>(seed);
            });
        }
    )*};
}
use {conforms, conforms_anew, conforms_for_real, conforms_in_turn};

/// Runs a test under the seed asked for, or a new one: it is printed if the test fails.
fn with_seed(test: &str, run: impl FnOnce(u64)) {
    let seed = match std::env::var("CONSORT_CONFORMANCE_SEED") {
        Ok(text) => text.parse().unwrap_or_else(|e| panic!("CONSORT_CONFORMANCE_SEED={text}: {e}")),
        Err(_) => random(),
    };
    println!("{test}: replay with CONSORT_CONFORMANCE_SEED={seed}");
    run(seed);
}

/// Hash maps are seeded by the system, and so is this.
fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish()
}

/// The nodes of `rig`, each linked to each.
fn linked<R: Rig>(rig: &mut R, count: usize, segment_bytes: usize) -> Vec<R::F> {
    let mut fabrics = rig.nodes(count, segment_bytes);
    let offers: Vec<_> = fabrics.iter().map(Fabric::offer).collect();
    for (me, fabric) in fabrics.iter_mut().enumerate() {
        for (peer, offer) in offers.iter().enumerate().filter(|(peer, _)| *peer != me) {
            fabric.connect(slot(peer), id(peer), offer, LINK_WITHIN).unwrap();
        }
    }
    let mut up = vec![PeerSet::EMPTY; count];
    until(rig, &mut fabrics, "all links are up", |at, fabric| {
        while let Some(event) = fabric.poll_event() {
            match event {
                LinkEvent::Up(slot) => up[at] = up[at].with(slot),
                other => panic!("node {} while linking: {other:?}", id(at)),
            }
        }
        up[at] == others(at, count)
    });
    fabrics
}

/// Polls all in turn until `done` is true of each at once.
fn until<R: Rig>(
    rig: &mut R,
    fabrics: &mut [R::F],
    what: &str,
    mut done: impl FnMut(usize, &mut R::F) -> bool,
) {
    let begun = Instant::now();
    let mut idle = 0u32;
    loop {
        let mut all = true;
        idle += 1;
        for (at, fabric) in fabrics.iter_mut().enumerate() {
            if fabric.poll(rig.now()) {
                idle = 0;
            }
            all &= done(at, fabric);
        }
        if all {
            return;
        }
        assert!(begun.elapsed() < HANG, "in vain: {what}");
        if idle > 100 {
            std::thread::yield_now(); // whatever is to come must come from elsewhere
        }
    }
}

/// Time goes by for all, and what is under way arrives.
fn settle<R: Rig>(rig: &mut R, fabrics: &mut [R::F]) {
    for _ in 0..200 {
        for fabric in fabrics.iter_mut() {
            fabric.poll(rig.now());
        }
    }
}

fn slot(index: usize) -> Slot {
    Slot(u8::try_from(index).unwrap())
}

fn id(index: usize) -> NodeId {
    NodeId(u32::try_from(index + 1).unwrap())
}

fn others(me: usize, count: usize) -> PeerSet {
    (0..count).filter(|at| *at != me).map(slot).collect()
}

/// The clock of this machine since some instant.
fn real_now() -> Time {
    use std::sync::OnceLock;
    static BEGUN: OnceLock<Instant> = OnceLock::new();
    Time(u64::try_from(BEGUN.get_or_init(Instant::now).elapsed().as_nanos()).unwrap())
}
