//! Many groups on a node, of which most are quiet.

use consort_dataplane::plan::Guarantee;

use super::host::{App, Host, Told};
use super::world::World;
use crate::shell::driver::QUIET_A_TURN;

/// More than are looked at in two turns.
const GROUPS: u32 = 3 * QUIET_A_TURN as u32;

/// One of them.
const LAST: usize = GROUPS as usize - 1;

/// Turns in which all are looked at one after the other, also while one is lively.
const ROUND: usize = 5;

/// A node in whose groups nothing has happened for long.
fn quiet() -> World {
    let mut world = World::with_groups(90, 1, Guarantee::Atomic, GROUPS);
    world.until("there", |world| {
        world.hosts.values().all(|host| host.shards.iter().all(|app| !app.told.is_empty()))
    });
    world.rounds(1000);
    world
}

/// How many messages were told in a group beside the main one.
fn messages(app: &App) -> usize {
    app.told.iter().filter(|told| matches!(told, Told::Message { .. })).count()
}

/// In how many of them there were any.
fn told(host: &Host) -> usize {
    host.shards.iter().filter(|app| messages(app) > 0).count()
}

/// Sends in the main group, so that the next turn is not one of nothing.
fn stir(host: &mut Host) {
    host.send(1, 8, false).unwrap();
}

#[test]
fn a_lively_group_doesn_t_wait_for_the_quiet_ones_nor_keep_them_waiting() {
    let mut world = quiet();
    let host = world.host(1);
    stir(host);
    assert!(host.take_turn());
    for app in &mut host.shards {
        app.send(false).unwrap();
    }
    stir(host);
    let before = host.messages().len();
    assert!(host.take_turn());
    assert_eq!(host.messages().len(), before + 1);
    assert!(told(host) <= QUIET_A_TURN, "{} were looked at", told(host));
    for _ in 1..ROUND {
        stir(host);
        assert!(host.take_turn());
    }
    assert_eq!(told(host), GROUPS as usize);
}

#[test]
fn what_is_lively_is_looked_at_in_every_turn() {
    let mut world = quiet();
    let host = world.host(1);
    for _ in 0..4 * ROUND {
        host.shards[LAST].send(false).unwrap();
        stir(host);
        assert!(host.take_turn());
    }
    // The first may have waited for its turn.
    let before = messages(&host.shards[LAST]);
    for sent in 1..=ROUND {
        host.shards[LAST].send(false).unwrap();
        stir(host);
        assert!(host.take_turn());
        assert_eq!(messages(&host.shards[LAST]), before + sent);
    }
}

// Who polls now and then finds what there is.
#[test]
fn after_a_turn_of_nothing_without_a_rest_all_are_looked_at() {
    let mut world = quiet();
    let host = world.host(1);
    stir(host);
    while host.poll() {}
    for app in &mut host.shards {
        app.send(false).unwrap();
    }
    host.poll();
    assert_eq!(told(host), GROUPS as usize);
}

// What came to a group that was passed over would wake nobody.
#[test]
fn it_looks_at_all_before_it_sleeps_and_after_that() {
    let mut world = quiet();
    let host = world.host(1);
    let sleeps = |host: &Host| host.driver.stats().counts.sleeps;
    let before = sleeps(host);
    stir(host);
    while host.take_turn() {}
    assert_eq!(sleeps(host), before);
    host.take_turn();
    assert_eq!(sleeps(host), before + 1);
    for app in &mut host.shards {
        app.send(false).unwrap();
    }
    host.take_turn();
    assert_eq!(told(host), GROUPS as usize);
}
