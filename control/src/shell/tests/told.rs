//! When a driver tells others what they have no need to know at once: over a fabric where that costs something, to those who haven't sent
//! what came, and of what was delivered.

use std::time::Duration;

use consort_dataplane::plan::Guarantee;

use super::world::World;
use crate::config::WaitStrategy;
use crate::shell::clock;

/// Longer than anything is under way.
const HOP: Duration = Duration::from_micros(31);

/// Three members over a costly fabric (an even seed).
fn world(wait: WaitStrategy) -> World {
    let mut world = World::waiting(60, 3, Guarantee::Atomic, wait);
    hop(&mut world);
    world
}

/// A message of the first member on its way to the others, who haven't looked.
fn sent(world: &mut World) {
    world.host(1).send(1, 8, false).unwrap();
    world.host(1).poll();
    hop(world);
}

/// What is under way arrives.
fn hop(world: &mut World) {
    world.now = world.now.plus(HOP);
    clock::pretend(world.now);
    world.network.advance_to(world.now);
}

/// How many messages each member was told.
fn told(world: &World) -> Vec<usize> {
    world.hosts.values().map(|host| host.messages().len()).collect()
}

// Who calls the driver without resting may be away for long afterwards.
#[test]
fn who_does_not_rest_tells_all_when_there_is_nothing_else_to_do() {
    let mut world = world(WaitStrategy::Spin);
    let poll = |world: &mut World, ids: &[u32]| {
        ids.iter().for_each(|id| while world.host(*id).poll() {});
        hop(world);
    };
    poll(&mut world, &[1, 2, 3]);
    sent(&mut world);
    poll(&mut world, &[2, 3]);
    poll(&mut world, &[2, 3]);
    assert_eq!(told(&world), [0, 1, 1], "what was received");
    sent(&mut world);
    poll(&mut world, &[1]);
    poll(&mut world, &[2, 3]);
    poll(&mut world, &[1]);
    poll(&mut world, &[2]);
    assert_eq!(told(&world)[..2], [2, 2], "and what was delivered");
}

// Others may wait though something else always happens here.
#[test]
fn who_never_has_nothing_to_do_tells_all_now_and_then() {
    let mut world = world(WaitStrategy::Spin);
    world.hosts.values_mut().for_each(|host| while host.take_turn() {});
    let busy = |world: &mut World, ids: &[u32]| {
        for id in ids {
            (0..16).for_each(|_| {
                world.host(*id).shared.call();
                world.host(*id).poll();
            });
        }
        hop(world);
    };
    sent(&mut world);
    busy(&mut world, &[2, 3]);
    busy(&mut world, &[2, 3]);
    assert_eq!(told(&world), [0, 1, 1]);
    sent(&mut world);
    world.host(2).poll();
    world.host(3).poll();
    hop(&mut world);
    busy(&mut world, &[1]);
    world.host(2).poll();
    world.host(3).poll();
    assert_eq!(told(&world), [2, 2, 2]);
}

// Where others want the core, a member that delivered its own message says so after they had it once; the acknowledgements need not go out then.
#[test]
fn among_others_a_sender_says_first_what_it_has_delivered() {
    let mut world = world(WaitStrategy::Adaptive);
    let turn = |world: &mut World, id: u32| world.host(id).take_turn();
    sent(&mut world);
    assert!(turn(&mut world, 2) && turn(&mut world, 3));
    hop(&mut world);
    assert!(turn(&mut world, 1));
    assert_eq!(told(&world), [1, 0, 0]);
    hop(&mut world);
    assert!(!turn(&mut world, 1), "it yields");
    hop(&mut world);
    assert!(!turn(&mut world, 2) && !turn(&mut world, 3));
    assert!(!turn(&mut world, 1), "it tells");
    hop(&mut world);
    turn(&mut world, 2);
    turn(&mut world, 3);
    assert_eq!(told(&world), [1, 1, 1]);
}

// Who has the core for itself tells all, soon.
#[test]
fn alone_on_a_core_all_are_told_after_some_turns() {
    let turns = |world: &mut World, ids: &[u32]| {
        for id in ids {
            (0..30).for_each(|_| {
                world.host(*id).take_turn();
            });
        }
        hop(world);
    };
    let mut world = world(WaitStrategy::Spin);
    // They learn that an exchange takes longer, so that they don't settle in the next ones.
    for _ in 0..2 {
        sent(&mut world);
        (0..3).for_each(|_| turns(&mut world, &[1, 2, 3]));
    }
    sent(&mut world);
    turns(&mut world, &[2, 3]);
    turns(&mut world, &[2, 3]);
    assert_eq!(told(&world), [2, 3, 3], "what was received");
    turns(&mut world, &[1]);
    sent(&mut world);
    assert!(world.host(2).take_turn() && world.host(3).take_turn());
    hop(&mut world);
    turns(&mut world, &[1]);
    world.host(2).take_turn();
    world.host(3).take_turn();
    assert_eq!(told(&world), [4, 4, 4], "and what was delivered");
}
