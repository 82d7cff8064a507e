//! Whole nodes: the real control plane and the real driver of each, over simulated wires and the simulated fabric, in one thread and in
//! virtual time. The plane's orders go to the driver, the driver's reports to the plane, each when it gets to it; applications send
//! all the time, and take what comes, or don't. Every run follows from its seed, and so does what goes wrong in it ([`world::Kind`]).
//!
//! # Always
//! Two lives that were told view k and view k+1 delivered the same messages in the same order in view k (V4). There is one view k+1 (V1). A life's
//! messages are delivered in the order in which it sent them, none missing and none twice, whatever views they were sent again in
//! (D13). Who dies, or is left out, has delivered what those who go on did (D8): under `Atomic` a beginning of it, under `Agreed` the same
//! in the same order and beyond that only what is lost or comes again, under `Fifo` that of each sender. An outcome says
//! "delivered" if and only if that is so (D12); who left in order has lost nothing (V8).
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

/// Runs without a word in the environment: what a test run has time for.
const SEEDS: u64 = 300;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|value| value.parse().ok())
}

/// One run. A panic is a failure like any other.
fn run(seed: u64, broken: Option<Broken>) -> Result<Counts, String> {
    let run = || {
        let mut world = World::new(seed, broken);
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

#[test]
fn whole_nodes_agree_whatever_befalls_them() {
    let one = number("SEED");
    let from = number("FROM").unwrap_or(0);
    let seeds = one.map_or(from..from + number("SEEDS").unwrap_or(SEEDS), |seed| seed..seed + 1);
    let mut sum = Counts::default();
    for seed in seeds {
        match run(seed, None) {
            Ok(counts) => sum.add(&counts),
            Err(error) => panic!(
                "{error}\nagain: SEED={seed} cargo test -p consort-control --release --lib whole_nodes_agree -- --nocapture"
            ),
        }
    }
    println!("{sum}");
    if sum.runs >= SEEDS {
        let rare = KINDS.into_iter().map(|kind| sum.faults.get(&kind).copied().unwrap_or(0)).min();
        assert!(
            rare > Some(30) && sum.told.resent > 300 && sum.supplied > 30 && sum.evicted > 30,
            "something hardly happened: {sum}"
        );
    }
}

#[test]
fn explore() {
    use crate::shell::driver::Mutant as Driver;
    let all = [
        Broken::Change(Mutant::NoMajority),
        Broken::Change(Mutant::NotFrozen),
        Broken::Change(Mutant::OwnValue),
        Broken::Change(Mutant::Blend),
        Broken::Change(Mutant::GreatestTrim),
        Broken::Change(Mutant::LeastTrim),
        Broken::Change(Mutant::Unfilled),
        Broken::Change(Mutant::Severed),
        Broken::Change(Mutant::Unlinked),
        Broken::Change(Mutant::NotFree),
        Broken::Change(Mutant::Mute),
        Broken::Orders(Disobedience::NotFrozen),
        Broken::Orders(Disobedience::BeyondTrim),
        Broken::Orders(Disobedience::NoFence),
        Broken::Driver(Driver::NoResend),
        Broken::Driver(Driver::ResendTwice),
    ];
    let seeds = number("SEEDS").unwrap_or(SEEDS);
    for (at, broken) in all.into_iter().enumerate() {
        if number("ONLY").is_some_and(|only| only != at as u64) {
            continue;
        }
        let mut found = 0;
        for seed in 0..seeds {
            if let Err(error) = run(seed, Some(broken)) {
                found += 1;
                println!("FOUND {at} {broken:?} {seed} {}", error.lines().next().unwrap_or_default());
                if found == number("FOUND").unwrap_or(4) {
                    break;
                }
            }
        }
        println!("FOUND {at} {broken:?} {found}");
    }
}
