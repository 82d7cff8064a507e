//! View changes, model-checked: every step in every order, in small worlds (V1 to V8, V10), and that a rule that is broken is noticed.
//!
//! `CONSORT_MODEL` says how small: `small` is what CI looks at, `large` takes minutes. Without it the worlds are tiny, so that they
//! can be looked at by a test that nobody optimised.

use consort_control::change::{Mutant, Trimming};
use consort_control::view::Role;
use consort_tests::model::properties::{ALL_HERE, DELIVERED_BELOW, LINKED, MEMORY_FREE, NOT_STUCK, ONE_VIEW};
use consort_tests::model::{Bounds, Way, World, explore, seek};

const NOTHING: Bounds =
    Bounds { crashes: 0, suspicions: 0, patience: 0, losses: 0, reachable: 0, reasons: 0 };
const REASON: Bounds = Bounds { reasons: 1, ..NOTHING };
const SUSPICION: Bounds = Bounds { suspicions: 1, ..NOTHING };
const CRASH: Bounds = Bounds { crashes: 1, ..NOTHING };
const CRASH_IN_CHANGE: Bounds = Bounds { reasons: 1, ..CRASH };
const CRASH_AND_SUSPICION: Bounds = Bounds { suspicions: 1, ..CRASH };

/// All steps in all orders, within the bounds of the day.
fn holds(world: World, tiny: Bounds, small: Bounds, large: Bounds) {
    let (bounds, way) = match std::env::var("CONSORT_MODEL").as_deref() {
        Err(_) => (tiny, Way::Shortest),
        Ok("small") => (small, Way::Shortest),
        Ok("large") => (large, Way::Deepest),
        Ok(other) => panic!("CONSORT_MODEL={other}: small or large"),
    };
    let world = world.within(bounds);
    let found = explore(&world, way);
    println!("{}, {bounds}: {found}", world.name);
    assert!(found.broken.is_empty(), "{}: {found}", world.name);
    assert!(!found.idle, "{}: nothing is ever decided", world.name);
}

fn least(name: &'static str) -> World {
    World::new(name, Trimming::Least)
}

fn greatest(name: &'static str) -> World {
    World::new(name, Trimming::Greatest)
}

#[test]
fn model_a_member_dies_in_any_phase() {
    let large = Bounds { reasons: 1, ..CRASH_AND_SUSPICION };
    holds(least("a member dies"), REASON, CRASH_AND_SUSPICION, large);
}

#[test]
fn model_two_members_take_others_for_gone() {
    let two = Bounds { suspicions: 2, ..NOTHING };
    let large = Bounds { reasons: 1, ..two };
    holds(least("rivals"), SUSPICION, two, large);
}

#[test]
fn model_patience_ends() {
    let small = Bounds { suspicions: 1, patience: 1, ..NOTHING };
    let large = Bounds { suspicions: 1, patience: 2, ..NOTHING };
    holds(least("patience ends"), Bounds { reasons: 1, patience: 1, ..NOTHING }, small, large);
}

#[test]
fn model_what_is_said_gets_lost() {
    let tiny = Bounds { reasons: 1, losses: 1, ..NOTHING };
    let large = Bounds { patience: 2, losses: 2, ..tiny };
    holds(least("losses, patience ends"), tiny, Bounds { patience: 1, ..tiny }, large);
    let large = Bounds { patience: 1, reachable: 1, losses: 1, suspicions: 1, ..NOTHING };
    holds(least("losses, links come back"), tiny, Bounds { reachable: 1, ..tiny }, large);
}

#[test]
fn model_delivery_does_not_wait_for_others() {
    let world = World { sent: vec![1, 1], ..greatest("delivery as it comes") };
    let large = Bounds { patience: 1, ..CRASH_AND_SUSPICION };
    holds(world, SUSPICION, CRASH_IN_CHANGE, large);
    holds(greatest("delivery as it comes, one sends"), CRASH, CRASH_AND_SUSPICION, large);
}

#[test]
fn model_two_with_data_and_a_witness() {
    for (name, roles) in [
        ("the witness is the oldest", [Role::Witness, Role::Data, Role::Data]),
        ("the witness is the youngest", [Role::Data, Role::Data, Role::Witness]),
    ] {
        let large = Bounds { patience: 1, ..CRASH_AND_SUSPICION };
        let world = World { roles: roles.to_vec(), sent: vec![1, 1], ..greatest(name) };
        holds(world, CRASH, CRASH_AND_SUSPICION, large);
    }
}

#[test]
fn model_two_are_severed() {
    let world = World { severed: vec![(1, 2)], ..least("two are severed") };
    holds(world, REASON, CRASH_IN_CHANGE, CRASH_AND_SUSPICION);
}

#[test]
fn model_a_joiner() {
    let linked = World { joiner: Some(vec![0, 1, 2]), ..least("a joiner") };
    holds(linked, REASON, CRASH_IN_CHANGE, CRASH_AND_SUSPICION);
    let unlinked = World { joiner: Some(vec![0, 1]), ..least("a joiner that one is not linked to") };
    holds(unlinked, REASON, CRASH_IN_CHANGE, CRASH_AND_SUSPICION);
}

#[test]
fn model_a_leaver() {
    holds(
        World { leaving: vec![0], ..least("the leader leaves") },
        REASON,
        CRASH_IN_CHANGE,
        CRASH_AND_SUSPICION,
    );
    holds(
        World { leaving: vec![0, 1, 2], ..least("all leave") },
        REASON,
        CRASH_IN_CHANGE,
        CRASH_AND_SUSPICION,
    );
}

#[test]
fn model_memory_in_use() {
    let world = World { busy: vec![1, 2], ..least("memory in use") };
    let large = Bounds { losses: 1, patience: 1, ..CRASH_IN_CHANGE };
    holds(world, REASON, CRASH_IN_CHANGE, large);
}

// V2: what a change spares, and what it ends although nobody foresaw it.
#[test]
fn model_groups_of_some() {
    let some = |name, shards: &[&[usize]]| World {
        sent: Vec::new(),
        shards: shards.iter().map(|members| members.to_vec()).collect(),
        ..least(name)
    };
    let patient = Bounds { patience: 2, ..CRASH };
    let large = Bounds { suspicions: 1, patience: 2, ..CRASH };
    holds(some("a group of two of three", &[&[1, 2]]), SUSPICION, patient, large);
    let apart = World { leaving: vec![2], ..some("two groups, one loses a member", &[&[0, 1], &[1, 2]]) };
    holds(apart, REASON, Bounds { suspicions: 1, ..REASON }, CRASH_IN_CHANGE);
}

#[test]
fn model_four_voters() {
    let world = World { roles: vec![Role::Data; 4], ..least("four voters") };
    holds(world, CRASH, CRASH, SUSPICION);
}

/// The rule is broken; the property that it is for doesn't hold any more.
fn is_caught(mutant: Mutant, world: World, bounds: Bounds, property: &'static str) {
    let found = seek(&world.within(bounds).breaking(mutant), property);
    println!("{mutant:?}: {found}");
    assert!(found.broken.iter().any(|(name, _)| *name == property), "{mutant:?} goes unnoticed: {found}");
}

const RIVAL: Bounds = Bounds { reasons: 1, suspicions: 1, ..NOTHING };

// V1
#[test]
fn model_catches_a_decision_without_a_majority() {
    is_caught(Mutant::NoMajority, least("rivals"), RIVAL, ONE_VIEW);
}

// V2
#[test]
fn model_catches_a_report_before_the_sessions_are_frozen() {
    is_caught(Mutant::NotFrozen, least("a reason"), REASON, DELIVERED_BELOW);
}

// V3
#[test]
fn model_catches_a_proposer_that_does_not_take_what_was_accepted() {
    is_caught(Mutant::OwnValue, least("rivals"), RIVAL, ONE_VIEW);
}

// V3
#[test]
fn model_catches_a_blend_of_two_values() {
    is_caught(Mutant::Blend, World { sent: vec![0, 1], ..least("rivals") }, RIVAL, ONE_VIEW);
}

// V3
#[test]
fn model_catches_a_trim_that_not_all_have() {
    is_caught(Mutant::GreatestTrim, least("a reason"), REASON, ALL_HERE);
}

// V3
#[test]
fn model_catches_a_trim_below_what_was_delivered() {
    is_caught(Mutant::LeastTrim, greatest("a reason"), REASON, DELIVERED_BELOW);
}

// V3
#[test]
fn model_catches_a_value_before_all_have_what_is_below_its_trim() {
    is_caught(Mutant::Unfilled, greatest("a reason"), REASON, ALL_HERE);
}

// V3
#[test]
fn model_catches_two_that_go_on_without_a_link() {
    is_caught(Mutant::Severed, World { severed: vec![(1, 2)], ..least("severed") }, REASON, LINKED);
}

// V7
#[test]
fn model_catches_a_joiner_without_links() {
    is_caught(Mutant::Unlinked, World { joiner: Some(vec![0, 1]), ..least("a joiner") }, REASON, LINKED);
}

// V2
#[test]
fn model_catches_a_session_that_ends_where_it_runs_on() {
    let world = World { shards: vec![vec![0, 1, 2]], ..least("nobody foresaw it") };
    is_caught(Mutant::Unwedged, world, Bounds { suspicions: 1, patience: 1, ..REASON }, ALL_HERE);
}

// V10
#[test]
fn model_catches_a_view_in_memory_that_is_in_use() {
    is_caught(Mutant::NotFree, World { busy: vec![1], ..least("in use") }, REASON, MEMORY_FREE);
}

#[test]
fn model_catches_a_member_that_says_nothing_twice() {
    is_caught(Mutant::Mute, least("losses"), Bounds { losses: 1, ..REASON }, NOT_STUCK);
}
