//! State transfer (V7): a joiner ends up with the same state as the members, whatever happens meanwhile.

use std::time::Duration;

use consort_dataplane::names::NodeId;
use consort_dataplane::plan::Guarantee;

use super::host::Told;
use super::world::World;
use crate::membership::Stopped;
use crate::orders::{Order, Report};
use crate::transfer::Lesson;
use crate::view::ShardId;

const ALL: [Guarantee; 3] = [Guarantee::Fifo, Guarantee::Agreed, Guarantee::Atomic];

fn caught_up(world: &World, id: u32, attempt: u64) -> bool {
    world.hosts[&id].has(&Report::CaughtUp(ShardId::MAIN, attempt))
}

/// Goes on under load until it is so.
fn load_until(world: &mut World, is_so: impl Fn(&World) -> bool) {
    for _ in 0..5_000 {
        if is_so(world) {
            return;
        }
        world.load(1);
    }
    panic!("never");
}

#[test]
fn a_joiner_has_the_same_state_as_the_members() {
    for guarantee in ALL {
        for seed in 0..10 {
            println!("{guarantee} seed {seed}");
            let mut world = World::new(seed, 3, guarantee);
            let rounds = world.choices.below(80) as usize;
            world.load(rounds);
            world.add(4);
            let source = 1 + world.choices.below(3) as u32;
            let attempt = world.teach(source, 4, 0);
            if world.choices.chance(50) {
                // A view without the joiner comes in between, and somebody goes.
                let rounds = world.choices.below(40) as usize;
                world.load(rounds);
                let members: Vec<u32> =
                    (1..=3).filter(|id| *id == source || world.choices.chance(60)).collect();
                for id in (1..=3).filter(|id| !members.contains(id)) {
                    world.crash(id);
                }
                world.change(&members);
            }
            load_until(&mut world, |world| caught_up(world, 4, attempt));
            let rounds = world.choices.below(60) as usize;
            world.load(rounds);
            let members: Vec<_> = world.members().into_iter().chain([4]).collect();
            world.change(&members);
            world.load(30);
            world.settle();
            world.until("learned", |world| world.hosts[&4].has(&Report::Learned(ShardId::MAIN, attempt)));
            world.check();
            world.check_complete();
            world.check_states();
            assert!(!world.hosts[&4].state.is_empty());
        }
    }
}

#[test]
fn nothing_of_the_joiners_first_view_is_told_before_all_that_was_before_it() {
    let mut world = World::new(7, 2, Guarantee::Atomic);
    world.load(50);
    world.add(3);
    let attempt = world.teach(1, 3, 0);
    load_until(&mut world, |world| caught_up(world, 3, attempt));
    // The last lesson is late: it gets nothing more of what its source says.
    let course = world.courses.pop().unwrap();
    world.load(20);
    world.change(&[1, 2, 3]);
    world.load(20);
    world.rounds(200);
    assert!(!world.host(3).views().contains(&2));
    world.courses.push(course);
    world.settle();
    assert!(world.host(3).views().contains(&2));
    world.check();
    world.check_states();
}

#[test]
fn another_source_takes_over_and_only_what_differs_is_sent() {
    let mut world = World::new(3, 3, Guarantee::Atomic);
    for id in 1..=3 {
        world.host(id).state = (0..20_000).map(|number| (0, number)).collect(); // five pieces
    }
    world.rounds(100);
    world.add(4);
    let first = world.teach(1, 4, 0);
    world.until("caught up", |world| caught_up(world, 4, first));
    world.crash(1);
    world.load(20);
    world.change(&[2, 3]);
    world.load(20);
    let second = world.teach(2, 4, 4);
    world.pieces = (0, 0);
    load_until(&mut world, |world| caught_up(world, 4, second));
    // What both members have in common is only said to be there.
    assert_eq!(world.pieces, (1, 4));
    world.change(&[2, 3, 4]);
    world.load(20);
    world.settle();
    world.check_states();
    let restored = world.host(4).told.iter().filter(|it| matches!(it, Told::Restored(_))).count();
    assert_eq!(restored, 2);
}

#[test]
fn a_damaged_lesson_is_found_before_the_application_sees_anything() {
    let mut world = World::new(4, 2, Guarantee::Atomic);
    world.load(20);
    world.add(3);
    let attempt = 9;
    let host = world.host(3);
    host.order(Order::Learn(ShardId::MAIN, attempt));
    let digest = crate::transfer::digest(b"state");
    let chunk = Lesson::Chunk { number: 0, digest, bytes: Some(b"stale".to_vec()) };
    host.order(Order::Lesson(ShardId::MAIN, attempt, chunk));
    world.until("given up", |world| {
        world.hosts[&3].reports.iter().any(|it| matches!(it, Report::Unlearned(ShardId::MAIN, 9, _)))
    });
    // Whole, but not what it was.
    let host = world.host(3);
    host.order(Order::Learn(ShardId::MAIN, 10));
    host.order(Order::Lesson(
        ShardId::MAIN,
        10,
        Lesson::Chunk { number: 0, digest, bytes: Some(b"state".to_vec()) },
    ));
    host.order(Order::Lesson(ShardId::MAIN, 10, Lesson::Whole { chunks: 1, len: 5, digest: [1; 32] }));
    world.until("given up", |world| {
        world.hosts[&3].reports.iter().any(|it| matches!(it, Report::Unlearned(ShardId::MAIN, 10, _)))
    });
    assert_eq!(world.host(3).told, []);
}

#[test]
fn a_member_whose_application_gives_no_snapshot_says_so() {
    let mut world = World::new(5, 2, Guarantee::Atomic);
    world.add(3);
    world.host(1).is_stubborn = true;
    let attempt = world.teach(1, 3, 0);
    let course = world.courses.pop().unwrap();
    world.until("refused", |world| {
        let refused = |it: &Report| matches!(it, Report::Lesson(_, Lesson::Refused(_)));
        world.hosts[&1].reports.iter().any(refused)
    });
    assert_eq!(course.1.attempt, attempt);
    // Who learns no more is not recorded for.
    world.host(1).order(Order::EndTeaching(ShardId::MAIN, NodeId(3)));
    world.load(20);
    world.settle();
    world.check();
}

#[test]
fn who_does_not_finish_restoring_stops_and_says_why() {
    let mut world = World::new(6, 2, Guarantee::Atomic);
    world.load(20);
    world.add(3);
    world.host(3).is_stubborn = true;
    world.teach(1, 3, 0);
    world.until("stopped", |world| world.hosts[&3].stopped.is_some());
    let Some(Stopped::Machine(reason)) = world.host(3).stopped.clone() else { panic!() };
    assert!(reason.contains("restoring"), "{reason}");
    world.pass(Duration::from_millis(20));
}
