//! Whole nodes: the real control plane and the real driver of each, over simulated wires and the simulated fabric, in one thread and in
//! virtual time. The plane's orders go to the driver, the driver's reports to the plane, each when it gets to it; applications send
//! all the time, and take what comes, or don't. Every run follows from its seed, and so does what goes wrong in it ([`world::Kind`]).
//!
//! # Always
//! Two lives that were told view k and view k+1 delivered the same messages in the same order in view k (V4). There is one view k+1 (V1). A life's
//! messages are delivered in the order in which it sent them, none missing and none twice, whatever views they were sent again in
//! (D13). Who dies, or is left out, has delivered what those who go on did (D8): under `Atomic` a beginning of it, under `Agreed` the same
//! in the same order and beyond that only what is lost or comes again, under `Fifo` that of each sender. An outcome says
//! "delivered" if and only if that is so (D12); who left in order has lost nothing (V8). At a read point an application has been told
//! whatever any was told before the point was asked for.
//!
//! # In the end
//! When faults have stopped and whoever stopped was started again, all are in one view, each sends something more, and all of it
//! arrives. If not, it is said where everyone stands.

mod history;
mod node;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use node::Disobedience;
use world::{Broken, Counts, KINDS, World};

use crate::change::Mutant;
use crate::shell::stream;

/// Runs without a word in the environment: what a test run has time for.
const SEEDS: u64 = 300;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|value| value.parse().ok())
}

/// One run. A panic is a failure like any other.
fn run(seed: u64, broken: Option<Broken>) -> Result<Counts, String> {
    run_world(|| World::new(seed, broken))
}

fn run_world(world: impl FnOnce() -> World) -> Result<Counts, String> {
    let run = || {
        let mut world = world();
        let result = world.run();
        let at = std::time::Duration::from_nanos(world.now.0);
        result.map(|()| world.counts).map_err(|error| format!("at {at:?}: {error}"))
    };
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(format!("a panic: {}", text.unwrap_or_default()))
    })
}

/// Runs the seeds that the environment names.
fn run_all(test: &str, run: impl Fn(u64) -> Result<Counts, String>) -> Counts {
    let one = number("SEED");
    let from = number("FROM").unwrap_or(0);
    let seeds = one.map_or(from..from + number("SEEDS").unwrap_or(SEEDS), |seed| seed..seed + 1);
    let mut sum = Counts::default();
    for seed in seeds {
        match run(seed) {
            Ok(counts) => sum.add(&counts),
            Err(error) => panic!(
                "{error}\nagain: SEED={seed} cargo test -p consort-control --release --lib {test} -- --nocapture"
            ),
        }
    }
    println!("{sum}");
    sum
}

// P2, P3
#[test]
fn whole_durable_nodes_lose_nothing_whatever_befalls_them() {
    let sum = run_all("whole_durable_nodes", |seed| run_world(|| World::durable(seed, None)));
    if sum.runs >= SEEDS {
        assert!(
            sum.blackouts > 300
                && sum.told.delivered > 10_000
                && sum.evicted > 30
                && sum.told.restored > 30
                && sum.shards.restored > 30
                && sum.failed > 30
                && sum.flipped > 30
                && sum.repaired > 5
                && sum.told.ahead + sum.shards.ahead > 30
                && sum.flushed > 300,
            "something hardly happened: {sum}"
        );
    }
}

#[test]
fn whole_nodes_agree_whatever_befalls_them() {
    let sum = run_all("whole_nodes_agree", |seed| run(seed, None));
    if sum.runs >= SEEDS {
        let rare = KINDS.into_iter().map(|kind| sum.faults.get(&kind).copied().unwrap_or(0)).min();
        assert!(
            rare > Some(30)
                && sum.told.resent > 300
                && sum.supplied > 30
                && sum.evicted > 30
                && sum.read > 300
                && sum.told.addressed > 300
                && sum.chains > 30,
            "something hardly happened: {sum}"
        );
    }
}

/// What is broken is noticed, as this, by one of the first `most` runs.
fn caught(broken: Broken, most: u64, how: &str) {
    let caught = (0..most).find(|seed| run(*seed, Some(broken)).is_err_and(|error| error.contains(how)));
    println!("{broken:?}: {caught:?}");
    assert!(caught.is_some(), "{broken:?} went unnoticed");
}

/// It is the cheapest to find that nobody gets any further; wrong messages would be found in other runs.
const STUCK: &str = "not everyone has everything";

#[test]
fn a_run_follows_from_its_seed() {
    for seed in 0..5 {
        let counts = || run(seed, None).map(|counts| counts.to_string());
        assert_eq!(counts(), counts());
    }
}

// V1
#[test]
fn a_decision_without_a_majority_is_caught() {
    caught(Broken::Change(Mutant::NoMajority), 50, "two views");
}

// V2
#[test]
fn a_report_before_the_sessions_are_frozen_is_caught() {
    caught(Broken::Change(Mutant::NotFrozen), 50, "duplicate");
}

// V2
#[test]
fn a_session_that_runs_on_when_it_is_to_stop_is_caught() {
    caught(Broken::Orders(Disobedience::NotFrozen), 50, "duplicate");
}

// V2, F4: a slot that nobody gives up is not there for who comes next.
#[test]
fn a_driver_that_fences_nobody_is_caught() {
    caught(Broken::Orders(Disobedience::NoFence), 200, STUCK);
}

// V3
#[test]
fn a_proposer_that_passes_over_what_was_accepted_is_caught() {
    caught(Broken::Change(Mutant::OwnValue), 1000, "two views");
}

// V3
#[test]
fn a_blend_of_two_values_is_caught() {
    caught(Broken::Change(Mutant::Blend), 200, STUCK);
}

// V3
#[test]
fn a_trim_that_not_all_have_is_caught() {
    caught(Broken::Change(Mutant::GreatestTrim), 50, STUCK);
    caught(Broken::Change(Mutant::Unfilled), 50, STUCK);
}

// V3
#[test]
fn a_trim_below_what_was_delivered_is_caught() {
    caught(Broken::Change(Mutant::LeastTrim), 50, "duplicate");
}

// V3
#[test]
fn two_that_go_on_without_a_link_are_caught() {
    caught(Broken::Change(Mutant::Severed), 200, STUCK);
}

// V4
#[test]
fn delivery_beyond_the_trim_is_caught() {
    caught(Broken::Orders(Disobedience::BeyondTrim), 50, "differs");
}

// V10: memory in use is written over, and whatever is there then is delivered.
#[test]
fn a_view_in_memory_that_is_in_use_is_caught() {
    caught(Broken::Change(Mutant::NotFree), 400, "");
}

// D13
#[test]
fn what_is_not_sent_again_is_missed() {
    caught(Broken::Driver(stream::Mutant::NoResend), 50, "sender order");
}

// D13
#[test]
fn what_is_sent_again_twice_is_caught() {
    caught(Broken::Driver(stream::Mutant::ResendTwice), 50, "duplicate");
}

// D12, D13
#[test]
fn what_is_sent_again_to_others_than_it_was_for_is_caught() {
    caught(Broken::Driver(stream::Mutant::ResendToAll), 100, "not addressed");
}

#[test]
fn read_points_that_wait_for_nothing_are_caught() {
    caught(Broken::Driver(stream::Mutant::HastyPoint), 50, "stale");
}

// P2
#[test]
fn who_says_that_it_has_flushed_what_it_has_not_is_caught() {
    let broken = Some(Broken::Driver(stream::Mutant::HastyFlush));
    let found = (0..200).find_map(|seed| run_world(|| World::durable(seed, broken)).err());
    assert!(found.is_some_and(|error| {
        ["not flushed", "taken back", "differs", "lost"].iter().any(|how| error.contains(how))
    }));
}

// P4: who fetches then finds a snapshot from behind the view that it is to come to.
#[test]
fn a_snapshot_before_all_have_come_is_caught() {
    let broken = Some(Broken::Driver(stream::Mutant::HastySnapshot));
    let found = (0..400).find_map(|seed| run_world(|| World::durable(seed, broken)).err());
    assert!(found.is_some_and(|error| error.contains("another history") || error.contains("follows there")));
}

// P4
#[test]
fn a_snapshot_of_what_a_restart_may_take_back_is_caught() {
    let broken = Some(Broken::Driver(stream::Mutant::SnapshotAhead));
    let found = (0..50).find_map(|seed| run_world(|| World::durable(seed, broken)).err());
    assert!(found.is_some_and(|error| error.contains("taken back")));
}

// P3: nobody writes down what it agrees to, and says so all the same. What comes of it here is a group that doesn't begin again; that it can
// lose something, too, takes more runs than a test has time for: `crate::held`'s model finds that.
#[test]
fn who_forgets_what_it_agreed_to_is_caught() {
    let broken = Some(Broken::Orders(Disobedience::NoNote));
    let caught = |error: String| error.contains(STUCK).then_some(error);
    assert!(
        (0..400).find_map(|seed| run_world(|| World::durable(seed, broken)).err().and_then(caught)).is_some()
    );
}
