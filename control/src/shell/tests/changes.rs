//! Views that change under load, whatever dies: what applications are told.

use std::time::Duration;

use consort_dataplane::names::{NodeId, Seq, ViewId};
use consort_dataplane::plan::Guarantee;

use super::host::Told;
use super::world::{RING, World};
use crate::membership::Stopped;
use crate::orders::{Order, Report};
use crate::shell::outcome::{Delivered, OutcomeError};
use crate::shell::sender::SendError;
use crate::shell::start::{CloseError, Leaving, Stage};
use crate::view::ShardId;

const ALL: [Guarantee; 3] = [Guarantee::Fifo, Guarantee::Agreed, Guarantee::Atomic];

// V2 to V4, D12, D13: crash upon crash, joins in between, always under load.
#[test]
fn survivors_agree_and_nothing_of_theirs_is_lost() {
    for guarantee in ALL {
        for seed in 0..12 {
            println!("{guarantee} seed {seed}");
            let mut world = World::new(seed, 4, guarantee);
            let mut next = 5;
            for _ in 0..5 {
                let rounds = world.choices.below(60) as usize;
                world.load(rounds);
                let mut members = world.members();
                if members.len() > 1 && world.choices.chance(60) {
                    let at = world.choices.below(members.len() as u64) as usize;
                    let id = members.remove(at);
                    world.crash(id);
                    let rounds = world.choices.below(20) as usize;
                    world.load(rounds);
                }
                if world.choices.chance(40) {
                    world.add(next);
                    members.push(next);
                    next += 1;
                }
                world.change(&members);
                world.check();
            }
            world.load(30);
            world.settle();
            world.check();
            world.check_complete();
        }
    }
}

// D13: what was under way is told in the next view, by the outcome as well.
#[test]
fn what_is_beyond_the_trim_is_sent_again_once() {
    let mut world = World::new(1, 2, Guarantee::Atomic);
    world.rounds(50);
    world.wedge(&[1], &[]);
    // It goes into a ring that nobody looks at any more.
    for _ in 0..3 {
        world.host(2).send(2, 5, true).unwrap();
    }
    world.rounds(50);
    assert!(world.host(2).outcomes.iter().all(|(_, outcome)| outcome.try_get().is_none()));
    world.wedge(&[2], &[]);
    let cut = world.finish(&[1, 2]);
    let view = world.next(&[1, 2]);
    world.install(view, Some(&cut), &[1, 2]);
    world.settle();
    let there = world.host(2).outcomes.iter().map(|(_, outcome)| outcome.try_get().unwrap().unwrap());
    let expected = (0..3).map(|seq| Delivered { view: ViewId(2), seq: Seq(seq) });
    assert_eq!(there.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
    world.check();
    world.check_complete();
}

// D13: even a ring full to the last byte fits.
#[test]
fn a_full_ring_is_sent_again_whole() {
    let mut world = World::new(2, 2, Guarantee::Atomic);
    world.load(40); // somewhere in the ring
    world.settle();
    world.wedge(&[1], &[]);
    while world.host(2).send(2, 0, true).is_ok() {}
    assert!(world.host(2).sent > RING as u64 / 32);
    world.change(&[1, 2]);
    world.settle();
    world.check();
    world.check_complete();
}

// V4: the stream waits for the application; the group and its next view don't.
#[test]
fn a_slow_application_sees_the_views_in_order() {
    let mut world = World::new(3, 3, Guarantee::Atomic);
    world.load(30);
    world.host(1).room = 0;
    world.load(10);
    world.crash(3);
    world.change(&[1, 2]);
    world.until("the others are in the next view", |world| world.hosts[&2].views() == [1, 2]);
    // Senders need not wait for who takes: neither at the slow node nor elsewhere.
    world.until("open", |world| world.hosts[&1].sender.try_reserve(8).is_ok());
    assert_eq!(world.host(1).views(), [1]);
    let status = world.host(1).driver.status();
    let stages: Vec<_> =
        status.sessions.iter().map(|session| (session.view.0, session.stage.clone())).collect();
    assert_eq!(stages, [(1, Stage::Delivering), (2, Stage::Running)]);
    // The next view is wedged before this application has heard of it; the first view's memory is in use so long.
    world.load(10);
    world.wedge(&[1, 2], &[]);
    world.rounds(200);
    assert!(!world.host(1).has(&Report::Retired(ShardId::MAIN, ViewId(1))));
    let due = world.host(2).messages().len() - world.host(1).messages().len();
    world.host(1).room = due + 1;
    let cut = world.finish(&[1, 2]);
    let view = world.next(&[1, 2]);
    world.install(view, Some(&cut), &[1, 2]);
    world.until("the others are in the third view", |world| world.hosts[&2].views() == [1, 2, 3]);
    world.load(10);
    assert!(world.host(1).views().len() < 3);
    world.settle();
    assert_eq!(world.host(1).views(), [1, 2, 3]);
    world.check();
    world.check_complete();
}

// V4: room that comes between the view and its messages is no reason to swap them.
#[test]
fn nothing_of_a_view_comes_before_the_view() {
    let mut world = World::new(13, 2, Guarantee::Atomic);
    world.load(20);
    world.host(1).refuses_views = true;
    world.change(&[1, 2]);
    world.until("the other is there", |world| world.hosts[&2].views() == [1, 2]);
    world.load(20);
    assert_eq!(world.host(1).views(), [1]);
    world.host(1).refuses_views = false;
    world.settle();
    world.check();
    world.check_complete();
}

// V10: lent messages of an old view keep its memory, and nothing else.
#[test]
fn a_lent_message_outlives_its_view() {
    for guarantee in ALL {
        let mut world = World::new(4, 2, guarantee);
        world.host(1).keeps = true;
        world.load(3);
        world.until("lent", |world| !world.hosts[&1].loans.is_empty());
        world.host(1).keeps = false;
        let kept: Vec<_> = world.host(1).loans.iter().map(|loan| loan.to_vec()).collect();
        world.change(&[1, 2]);
        world.load(40);
        assert!(!world.host(1).has(&Report::Retired(ShardId::MAIN, ViewId(1))));
        assert_eq!(world.host(1).driver.status().sessions[0].stage, Stage::Lending);
        assert!(world.host(1).loans.iter().zip(&kept).all(|(loan, kept)| **loan == **kept));
        let loans = std::mem::take(&mut world.host(1).loans);
        std::thread::spawn(|| drop(loans)).join().unwrap();
        world.until("retired", |world| world.hosts[&1].has(&Report::Retired(ShardId::MAIN, ViewId(1))));
        world.change(&[1, 2]);
        world.load(40);
        world.settle();
        world.check();
        world.check_complete();
    }
}

// V10: who is done says so only when nothing of the old view can be under way to it.
#[test]
fn an_old_view_is_retired_when_the_next_has_begun_everywhere() {
    let mut world = World::new(5, 3, Guarantee::Atomic);
    world.load(20);
    world.wedge(&[1, 2, 3], &[]);
    let cut = world.finish(&[1, 2, 3]);
    let view = world.next(&[1, 2, 3]);
    world.install(view.clone(), Some(&cut), &[1, 2]);
    world.rounds(500);
    assert!(!world.host(1).has(&Report::Retired(ShardId::MAIN, ViewId(1))));
    let status = world.host(1).driver.status();
    assert_eq!(status.sessions[0].stage, Stage::Unborn(vec![NodeId(3)]));
    // Another change begins before the third is there: births are still seen.
    for id in [1, 2] {
        world.host(id).order(Order::Wedge {
            view: ViewId(2),
            shards: vec![ShardId::MAIN],
            fence: Vec::new(),
        });
    }
    world.rounds(100);
    let slots = world.host(3).links.iter().map(|(node, (slot, _))| (NodeId(*node), *slot)).collect();
    let install = crate::orders::Install {
        view,
        behind: None,
        slots,
        cut: Some(vec![cut]),
        level: Vec::new(),
        renew: Vec::new(),
    };
    world.host(3).order(Order::Install(install));
    world.until("retired", |world| {
        world.hosts.values().all(|host| host.has(&Report::Retired(ShardId::MAIN, ViewId(1))))
    });
    world.change(&[1, 2, 3]);
    world.load(20);
    world.settle();
    world.check();
    world.check_complete();
}

// V10: and whom the others have given up is not waited for.
#[test]
fn a_member_that_never_began_is_not_waited_for() {
    let mut world = World::new(6, 3, Guarantee::Atomic);
    world.load(20);
    world.wedge(&[1, 2, 3], &[]);
    let cut = world.finish(&[1, 2, 3]);
    world.crash(3);
    let view = world.next(&[1, 2, 3]);
    world.install(view, Some(&cut), &[1, 2]);
    world.rounds(300);
    assert!(!world.host(1).has(&Report::Retired(ShardId::MAIN, ViewId(1))));
    world.change(&[1, 2]);
    world.load(20);
    world.settle();
    world.check();
    world.check_complete();
}

#[test]
fn ended_is_told_once_in_every_life() {
    let mut world = World::new(7, 3, Guarantee::Atomic);
    let me = world.host(2).sender.clone();
    me.end().unwrap();
    world.until("told", |world| world.hosts.values().all(|host| host.count(&Told::Ended(2)) == 1));
    assert_eq!(me.try_reserve(1).unwrap_err(), SendError::Ended);
    // A node that is new hears it too, the others not again.
    world.add(4);
    world.change(&[1, 2, 3, 4]);
    world.until("told to the new one", |world| world.hosts[&4].count(&Told::Ended(2)) == 1);
    world.rounds(300);
    assert!(world.hosts.values().all(|host| host.count(&Told::Ended(2)) == 1));
    assert_eq!(me.try_reserve(1).unwrap_err(), SendError::Ended);
    // Its next life says it for itself.
    world.crash(2);
    world.add(2);
    world.change(&[1, 3, 4, 2]);
    world.until("there", |world| world.hosts[&1].views() == [1, 2, 3]);
    assert_eq!(world.host(1).driver.status().ended, []);
    let again = world.host(2).sender.clone();
    world.until("open", |_| again.try_reserve(8).is_ok());
    again.end().unwrap();
    world.until("told again", |world| [1, 3, 4].iter().all(|id| world.hosts[id].count(&Told::Ended(2)) == 2));
}

// D13: what says that nothing more comes is sent again like the rest.
#[test]
fn an_end_under_way_is_not_lost() {
    let mut world = World::new(8, 2, Guarantee::Atomic);
    world.wedge(&[1], &[]);
    world.host(2).send(2, 0, false).unwrap();
    world.host(2).sender.end().unwrap();
    world.change(&[1, 2]);
    world.until("told", |world| world.hosts.values().all(|host| host.count(&Told::Ended(2)) == 1));
    let told = &world.host(1).told;
    assert!(matches!(told[told.len() - 2..], [Told::Message { sender: 2, .. }, Told::Ended(2)]));
}

// V8
#[test]
fn who_leaves_has_everything_delivered_first() {
    let mut world = World::new(9, 3, Guarantee::Atomic);
    world.load(30);
    let sent = world.host(3).sent;
    let closed = world.host(3).close(Duration::from_secs(1000));
    world.host(3).turn();
    assert_eq!(world.host(3).send(3, 0, false), Err(SendError::Ended));
    world.until("leaving", |world| world.hosts[&3].has(&Report::Leaving));
    let own =
        |world: &mut World| world.host(3).messages().iter().filter(|(sender, _)| *sender == 3).count() as u64;
    assert_eq!(own(&mut world), sent);
    // The view changes without it, and it takes its part in what is delivered.
    world.host(3).room = 1;
    world.load(8);
    world.wedge(&[1, 2, 3], &[]);
    let cut = world.finish(&[1, 2, 3]);
    let view = world.next(&[1, 2]);
    world.install(view, Some(&cut), &[1, 2, 3]);
    world.host(3).order(Order::Stop(Stopped::Closed));
    world.rounds(200);
    assert!(closed.try_recv().is_err() && world.host(3).stopped.is_none(), "its application is slow");
    assert_eq!(world.host(3).driver.status().sessions[0].stage, Stage::Delivering);
    world.host(3).room = usize::MAX;
    world.until("closed", |world| world.hosts[&3].stopped == Some(Stopped::Closed));
    assert_eq!(closed.try_recv(), Ok(Ok(())));
    assert_eq!(world.host(3).views(), [1, 2], "the view without it is the last");
    assert!(!world.host(3).has(&Report::Left));
    world.load(20);
    world.settle();
    world.check();
    world.check_complete();
    assert_eq!(own(&mut world), sent);
}

#[test]
fn who_can_t_leave_in_time_leaves_without_order() {
    let mut world = World::new(10, 2, Guarantee::Atomic);
    let closed = world.host(2).close(Duration::from_micros(500));
    world.until("stopped", |world| world.hosts[&2].stopped.is_some());
    let late = CloseError::Late { within: Duration::from_micros(500), waits_for: Leaving::Asked };
    assert_eq!(closed.try_recv(), Ok(Err(late)));
    assert!(world.host(2).has(&Report::Leaving) && world.host(2).has(&Report::Left));
    // While the view changes nothing is delivered, so it isn't even asked to.
    let mut world = World::new(11, 2, Guarantee::Atomic);
    world.wedge(&[1], &[]);
    world.host(2).send(2, 0, true).unwrap();
    let closed = world.host(2).close(Duration::from_micros(500));
    world.until("stopped", |world| world.hosts[&2].stopped.is_some());
    let late = CloseError::Late { within: Duration::from_micros(500), waits_for: Leaving::Delivering };
    assert_eq!(closed.try_recv(), Ok(Err(late)));
    let failed = world.host(2).outcomes[0].1.try_get();
    assert_eq!(failed, Some(Err(OutcomeError::Stopped(Stopped::Closed))), "never success for what was lost");
}

// V8: before there is a view there is nothing to wait for.
#[test]
fn a_node_without_a_view_leaves_at_once() {
    let mut world = World::new(12, 1, Guarantee::Atomic);
    world.add(2);
    let closed = world.host(2).close(Duration::from_secs(1));
    world.until("leaving", |world| world.hosts[&2].has(&Report::Leaving));
    world.host(2).order(Order::Stop(Stopped::Closed));
    world.until("stopped", |world| world.hosts[&2].stopped.is_some());
    assert_eq!(closed.try_recv(), Ok(Ok(())));
}
