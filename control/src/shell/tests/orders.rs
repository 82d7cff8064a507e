//! Single orders: what is done, what is reported, what is refused.

use std::time::Duration;

use consort_dataplane::fabric::LinkDown;
use consort_dataplane::layout::Layout;
use consort_dataplane::names::{NodeId, Slot, ViewId};
use consort_dataplane::plan::{Guarantee, SessionPlan};

use super::host::Told;
use super::world::{RING, World};
use crate::change::Cut;
use crate::membership::Stopped;
use crate::orders::{Install, LinkNumber, Order, Part, Report};
use crate::shell::outcome::OutcomeError;
use crate::shell::sender::SendError;
use crate::shell::start::Stage;
use crate::view::ShardId;

// V2
#[test]
fn a_wedged_session_stays_as_it_was() {
    let mut world = World::new(20, 3, Guarantee::Atomic);
    world.load(20);
    world.wedge(&[1], &[]);
    let (first, told) = (world.host(1).frozen(ViewId(1)).unwrap(), world.host(1).told.len());
    world.load(20);
    assert_eq!(world.host(1).told.len(), told, "nothing is delivered without a trim");
    assert_eq!(world.host(1).driver.status().sessions[0].stage, Stage::Wedged);
    world.host(1).reports.clear();
    let slot = world.host(1).links.remove(&3).unwrap().0;
    world.host(1).order(Order::Wedge { view: ViewId(1), shards: vec![ShardId::MAIN], fence: vec![slot] });
    world.until("wedged again", |world| world.hosts[&1].has(&Report::Wedged(ViewId(1), vec![first.clone()])));
    // What was said of a view that this node is not in.
    world.host(1).order(Order::Wedge { view: ViewId(7), shards: vec![ShardId::MAIN], fence: Vec::new() });
    world.until("nothing to wedge", |world| world.hosts[&1].has(&Report::Wedged(ViewId(7), Vec::new())));
}

// V2: what was supplied since is no part of where it stood.
#[test]
fn what_is_frozen_stays_so_whatever_is_supplied() {
    let mut world = World::new(30, 2, Guarantee::Agreed);
    world.settle();
    world.wedge(&[1], &[]);
    world.host(2).send(2, 0, false).unwrap();
    world.rounds(50);
    world.wedge(&[2], &[]);
    let before = world.host(1).frozen(ViewId(1)).unwrap();
    let cut = world.cut(&[1, 2]);
    assert_ne!(before.received, cut.trim);
    world.host(1).reports.clear();
    world.host(1).order(Order::Wedge { view: ViewId(1), shards: vec![ShardId::MAIN], fence: Vec::new() });
    world.until("wedged", |world| world.hosts[&1].frozen(ViewId(1)).is_some());
    assert_eq!(world.host(1).frozen(ViewId(1)), Some(before));
}

// D12: a message between two views is lost with its node.
#[test]
fn what_waits_for_a_view_to_be_sent_in_fails_when_none_comes() {
    for reason in [None, Some(Stopped::Machine("told so".to_owned()))] {
        let mut world = World::new(31, 2, Guarantee::Atomic);
        world.wedge(&[1], &[]);
        world.host(2).send(2, 0, true).unwrap();
        world.rounds(50);
        world.wedge(&[2], &[]);
        let cut = world.cut(&[1, 2]);
        let view = world.next(&[1, 2]);
        world.install(view, Some(&cut), &[2]);
        world.host(2).order(Order::Wedge { view: ViewId(2), shards: vec![ShardId::MAIN], fence: Vec::new() });
        world.rounds(50);
        assert_eq!(world.host(2).outcomes[0].1.try_get(), None);
        let error = match reason {
            None => {
                world.host(2).order(Order::Prepare(1));
                OutcomeError::Evicted
            }
            Some(reason) => {
                world.host(2).order(Order::Stop(reason.clone()));
                OutcomeError::Stopped(reason)
            }
        };
        world.rounds(50);
        assert_eq!(world.host(2).outcomes[0].1.try_get(), Some(Err(error)));
    }
}

#[test]
fn news_of_a_link_has_its_own_number() {
    let mut world = World::new(21, 2, Guarantee::Atomic);
    world.add(3);
    world.link(1, 3);
    world.link(2, 3);
    let (slot, old) = world.host(1).links[&3];
    // The link breaks, and before its driver has looked, the slot goes to another start of the node.
    let ends = [1, 3].map(|id| world.network.end_of(NodeId(id)).unwrap());
    world.network.cut(ends[0], ends[1]);
    world.add(3);
    let new = LinkNumber(77);
    let offer = world.host(3).offer.clone();
    world.host(1).reports.clear();
    world.host(1).order(Order::Unlink(slot));
    world.host(1).order(Order::Link { slot, number: new, node: NodeId(3), offer });
    let offer = world.host(1).offer.clone();
    world.host(3).order(Order::Link { slot: Slot(9), number: LinkNumber(5), node: NodeId(1), offer });
    world.until("linked", |world| world.hosts[&1].has(&Report::Up(new, "sim")));
    let down = |report: &Report| matches!(report, Report::Down(number, _) if *number == old);
    assert!(down(&world.host(1).reports[0]), "{:?}", world.host(1).reports);
    assert_eq!(world.host(1).reports.len(), 2);
    world.host(1).order(Order::Link {
        slot: Slot(40),
        number: LinkNumber(8),
        node: NodeId(3),
        offer: vec![1],
    });
    world.until("refused", |world| {
        let failed = |report: &Report| matches!(report, Report::Down(LinkNumber(8), LinkDown::Failed(_)));
        world.hosts[&1].reports.iter().any(failed)
    });
}

// V9
#[test]
fn the_pulse_shows_whose_data_plane_stands_still() {
    let mut world = World::new(22, 3, Guarantee::Atomic);
    let beats = |world: &World, of: u32| {
        let last = world.hosts[&1].pulses.last().unwrap();
        last.iter().find(|(node, _)| node.0 == of).unwrap().1
    };
    // Idle for two seconds.
    world.pass(Duration::from_secs(2));
    assert!(world.host(1).pulses.len() > 15);
    let (two, three) = (beats(&world, 2), beats(&world, 3));
    assert!(two > 10 && three > 10);
    let blocked = world.hosts.remove(&3).unwrap();
    world.pass(Duration::from_secs(1));
    assert!(beats(&world, 2) > two + 5 && beats(&world, 3) <= three + 1);
    world.hosts.insert(3, blocked);
    // With nothing to beat in it beats on all the same.
    world.wedge(&[1, 2, 3], &[]);
    world.host(1).pulses.clear();
    world.pass(Duration::from_secs(1));
    assert!(world.host(1).pulses.len() > 5 && world.host(1).pulses.last().unwrap().is_empty());
}

// S1, F4
#[test]
fn who_breaks_the_protocol_is_cut_off_and_the_view_can_change() {
    let mut world = World::new(23, 3, Guarantee::Atomic);
    world.load(20);
    world.settle();
    let ends = [3, 1].map(|id| world.network.end_of(NodeId(id)).unwrap());
    let head = SessionPlan::base(ViewId(1), RING) + Layout::new(3).head();
    world.network.poke(ends[0], ends[1], head, u64::MAX);
    world.until("a fault", |world| {
        world.hosts[&1].reports.iter().any(|report| matches!(report, Report::Fault(NodeId(3), _)))
    });
    assert_eq!(world.host(1).send(1, 0, true), Err(SendError::Changing));
    assert!(world.host(1).stopped.is_none());
    world.crash(3);
    world.change(&[1, 2]);
    world.load(20);
    world.settle();
    world.check();
}

#[test]
fn a_view_that_can_t_be_is_not_begun() {
    let empty = Cut { shard: ShardId::MAIN, trim: Vec::new() };
    for cut in [None, Some(Vec::new()), Some(vec![empty])] {
        let mut world = World::new(24, 2, Guarantee::Atomic);
        world.wedge(&[1], &[]);
        let (view, slots) = (world.next(&[1, 2]), [(NodeId(2), world.host(1).links[&2].0)].into());
        world.host(1).order(Order::Install(Install {
            behind: None,
            view,
            slots,
            cut,
            level: Vec::new(),
            renew: Vec::new(),
        }));
        world.until("stopped", |world| matches!(world.hosts[&1].stopped, Some(Stopped::Machine(_))));
        assert!(world.host(1).reports.iter().any(|report| matches!(report, Report::Broken(_))));
    }
}

// V8: who leaves and was left behind with a session that nobody else was in is not told where that ends.
#[test]
fn who_leaves_ends_where_it_is_if_nobody_says_where() {
    let mut world = World::new(28, 2, Guarantee::Atomic);
    world.load(20);
    let closed = world.host(2).close(Duration::from_secs(1000));
    world.until("leaving", |world| world.hosts[&2].has(&Report::Leaving));
    let told = world.host(2).messages();
    world.wedge(&[2], &[]);
    let (view, slots) = (world.next(&[1]), [].into());
    let install =
        Install { view, behind: None, slots, cut: Some(Vec::new()), level: Vec::new(), renew: Vec::new() };
    world.host(2).order(Order::Install(install));
    world.host(2).order(Order::Stop(Stopped::Closed));
    world.until("closed", |world| world.hosts[&2].stopped == Some(Stopped::Closed));
    assert_eq!(closed.try_recv(), Ok(Ok(())));
    assert_eq!(world.host(2).views(), [1, 2], "the view without it is the last");
    assert_eq!(world.host(2).messages(), told);
}

#[test]
fn a_view_that_is_said_twice_is_installed_once() {
    let mut world = World::new(26, 2, Guarantee::Atomic);
    world.load(20);
    world.change(&[1, 2]);
    world.load(20);
    let (view, slots) = (world.view.clone(), [(NodeId(2), world.host(1).links[&2].0)].into());
    world.host(1).order(Order::Install(Install {
        behind: None,
        view,
        slots,
        cut: None,
        level: Vec::new(),
        renew: Vec::new(),
    }));
    world.load(20);
    world.settle();
    world.check();
    world.check_complete();
}

// V3
#[test]
fn parts_of_rings_are_read_and_supplied_where_they_can_be() {
    let mut world = World::new(27, 2, Guarantee::Agreed);
    world.load(20);
    world.settle();
    let part = Part { view: ViewId(1), shard: ShardId::MAIN, rank: 1, from: 0, to: 8 };
    world.host(1).order(Order::Read(part));
    world.until("refused", |world| world.hosts[&1].has(&Report::Bytes(part, None)));
    world.host(1).order(Order::Supply { part, bytes: vec![0; 8] });
    world.host(1).reports.clear();
    world.wedge(&[1, 2], &[]);
    let frozen = world.host(1).frozen(ViewId(1)).unwrap().received;
    let part = |rank, from, to| Part { view: ViewId(1), shard: ShardId::MAIN, rank, from, to };
    let beyond = part(1, frozen[1], frozen[1] + 8);
    for no in [beyond, part(7, 0, 8), part(700, 0, 8), part(1, frozen[1], frozen[1] - 8)] {
        world.host(1).order(Order::Read(no));
        world.until("refused", |world| world.hosts[&1].has(&Report::Bytes(no, None)));
    }
    for no in [beyond, part(7, 0, 8), part(700, 0, 8)] {
        world.host(1).order(Order::Supply { part: no, bytes: vec![0xff; 8] });
        world.until("refused", |world| world.hosts[&1].has(&Report::Supplied(no, false)));
    }
    // It is here already: as good as supplied.
    let here = part(1, frozen[1] - 8, frozen[1]);
    world.host(1).order(Order::Supply { part: here, bytes: vec![0xff; 8] });
    world.until("supplied", |world| world.hosts[&1].has(&Report::Supplied(here, true)));
    // Who lacks something may ask long after this node is done with it.
    let last = part(1, frozen[1] - 8, frozen[1]);
    world.change(&[1, 2]);
    world.until("retired", |world| world.hosts[&1].has(&Report::Retired(ShardId::MAIN, ViewId(1))));
    world.host(1).order(Order::Read(last));
    world.until("read", |world| {
        world.hosts[&1].reports.iter().any(|it| matches!(it, Report::Bytes(part, Some(_)) if *part == last))
    });
    world.change(&[1, 2]);
    world.host(1).reports.clear();
    world.host(1).order(Order::Read(last));
    world.until("gone", |world| world.hosts[&1].has(&Report::Bytes(last, None)));
}

// V5: a node that was given up begins anew.
#[test]
fn another_incarnation_has_nothing_of_the_one_before() {
    let mut world = World::new(28, 3, Guarantee::Atomic);
    world.load(20);
    let evicted = world.host(3).sender.clone();
    let mut held = evicted.try_reserve(16).unwrap();
    held.fill(0);
    world.wedge(&[1], &[]); // so that something is under way
    for id in [2, 3] {
        world.load(3);
        let _ = world.host(id).send(id, 0, true);
    }
    world.host(3).order(Order::Prepare(5));
    world.host(3).reports.clear();
    world.until("prepared", |world| {
        world.hosts[&3].reports.iter().any(|report| matches!(report, Report::Prepared(5, _)))
    });
    assert_eq!(evicted.try_reserve(8).unwrap_err(), SendError::Changing);
    let lost = held.send_tracked();
    assert_eq!(lost.try_get(), Some(Err(OutcomeError::Evicted)), "told at once: nobody will deliver it");
    let outcomes = &world.host(3).outcomes;
    assert!(outcomes.iter().all(|(_, outcome)| outcome.try_get().is_some()));
    assert!(outcomes.iter().any(|(_, outcome)| outcome.try_get() == Some(Err(OutcomeError::Evicted))));
    world.check();
    world.change(&[1, 2]);
    // Its driver and its application go on; the group takes it for another.
    let offer = world.host(3).reports.iter().find_map(|report| match report {
        Report::Prepared(5, offer) => Some(offer.clone()),
        _ => None,
    });
    let host = world.host(3);
    (host.offer, host.life) = (offer.unwrap(), 99);
    host.links.clear();
    host.outcomes.clear();
    let (told, sent) = (host.told.len(), host.sent);
    world.change(&[1, 2, 3]);
    world.until("there", |world| world.hosts[&3].views().last() == Some(&3));
    world.until("open", |_| evicted.try_reserve(8).is_ok());
    assert!(
        matches!(&world.host(3).told[told], Told::View(view) if view.member(NodeId(3)).unwrap().incarnation.0 == 99)
    );
    world.host(3).send(3, 0, true).unwrap();
    world.until("delivered", |world| world.hosts.values().all(|host| host.messages().contains(&(3, sent))));
    assert!(matches!(world.host(3).outcomes[0].1.try_get(), Some(Ok(at)) if at.view == ViewId(3)));
    assert!(world.host(3).tickets.windows(2).all(|pair| pair[0] < pair[1]));
}

#[test]
fn who_is_stopped_tells_everyone_why() {
    let mut world = World::new(29, 2, Guarantee::Atomic);
    world.wedge(&[1], &[]);
    world.host(2).send(2, 0, true).unwrap();
    let sender = world.host(2).sender.clone();
    let held = sender.try_reserve(8).unwrap();
    let closed = world.host(2).close(Duration::from_secs(9));
    let why = Stopped::Machine("told so".to_owned());
    world.host(2).order(Order::Stop(why.clone()));
    world.until("stopped", |world| world.hosts[&2].stopped == Some(why.clone()));
    let failed = OutcomeError::Stopped(why.clone());
    assert_eq!(world.host(2).outcomes[0].1.try_get(), Some(Err(failed.clone())));
    assert_eq!(held.send_tracked().try_get(), Some(Err(failed)));
    assert_eq!(sender.max_len(), Some(RING / 2 - 8));
    assert!(matches!(sender.try_reserve(1), Err(SendError::Ended | SendError::Stopped(_))));
    drop(closed);
}
