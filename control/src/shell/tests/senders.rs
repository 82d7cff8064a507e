//! Senders over a change of the view.

use consort_dataplane::names::ViewId;
use consort_dataplane::plan::Guarantee;

use super::host::Told;
use super::world::{RING, World};
use crate::orders::Report;
use crate::shell::sender::SendError;
use crate::view::ShardId;

#[test]
fn a_sender_is_told_what_it_has_to_wait_for() {
    let mut world = World::new(40, 2, Guarantee::Atomic);
    world.add(3);
    let waiting = world.host(3).sender.clone();
    assert_eq!(waiting.try_reserve(1).unwrap_err(), SendError::NotStarted);
    assert_eq!(waiting.max_len(), None);
    let sender = world.host(1).sender.clone();
    let max = RING / 2 - 8;
    assert_eq!(sender.try_reserve(max + 1).unwrap_err(), SendError::TooLong { len: max + 1, max });
    while world.host(1).send(1, 100, false).is_ok() {}
    assert_eq!(sender.try_reserve(100).unwrap_err(), SendError::Full);
    world.wedge(&[1, 2], &[]);
    assert_eq!(sender.try_reserve(100).unwrap_err(), SendError::Changing, "room will come in the next view");
    let cut = world.finish(&[1, 2]);
    let view = world.next(&[1, 2]);
    // The next view isn't there before what is under way was sent again in it.
    world.install(view, Some(&cut), &[1, 2]);
    world.until("open", |_| sender.try_reserve(8).is_ok());
    world.settle();
    world.check();
    world.check_complete();
}

#[test]
fn a_batch_is_sent_as_far_as_there_is_room() {
    let mut world = World::new(43, 2, Guarantee::Atomic);
    world.add(3);
    let waiting = world.host(3).sender.clone();
    let none = |_| panic!("nothing can be sent");
    assert_eq!(waiting.try_send_many([&[0; 1][..]], none), Err(SendError::NotStarted));
    let sender = world.host(1).sender.clone();
    let (max, long) = (RING / 2 - 8, [0; RING]);
    let mut tickets = Vec::new();
    let too_long = SendError::TooLong { len: RING, max };
    let messages = [&long[..8], &long[..0], &long, &long[..8]];
    assert_eq!(sender.try_send_many(messages, |ticket| tickets.push(ticket)), Err(too_long));
    assert_eq!(tickets.len(), 2, "those before it");
    let many = std::iter::repeat_n(&long[..max / 8], 64);
    assert_eq!(sender.try_send_many(many, |ticket| tickets.push(ticket)), Err(SendError::Full));
    assert!((2 + 8..2 + 64).contains(&tickets.len()) && tickets.is_sorted_by(|one, next| one < next));
    world.wedge(&[1, 2], &[]);
    assert_eq!(sender.try_send_many([&long[..1]], none), Err(SendError::Changing));
    assert_eq!(sender.try_send_many([], none), Ok(()));
}

#[test]
fn a_batch_is_written_in_place() {
    let mut world = World::new(47, 2, Guarantee::Atomic);
    world.load(20);
    let sender = world.host(1).sender.clone();
    let (mut number, mut tickets) = (world.host(1).sent, Vec::new());
    let write = |room: &mut [u8]| {
        room.copy_from_slice(&number.to_le_bytes());
        number += 1;
    };
    sender.try_write_many([8; 5], write, |ticket| tickets.push(ticket)).unwrap();
    assert!(tickets.len() == 5 && tickets.is_sorted_by(|one, next| one < next));
    world.host(1).sent += 5;
    world.host(1).tickets.extend(tickets);
    world.settle();
    world.check();
    world.check_complete();
}

// D13: a reservation that is held is sent in the next view, before everything that is sent after it.
#[test]
fn a_reservation_is_held_over_a_change() {
    let mut world = World::new(41, 3, Guarantee::Atomic);
    world.load(20);
    world.settle();
    let sender = world.host(1).sender.clone();
    let number = world.host(1).sent;
    let mut held = sender.try_reserve(8).unwrap();
    held.copy_from_slice(&number.to_le_bytes());
    world.host(1).sent += 1;
    world.host(1).send(1, 0, true).unwrap(); // committed behind it
    world.rounds(50);
    world.crash(3);
    world.change(&[1, 2]);
    world.rounds(300);
    assert_eq!(sender.try_reserve(8).unwrap_err(), SendError::Changing);
    assert!(!world.host(1).has(&Report::Retired(ShardId::MAIN, ViewId(1))), "its memory is lent");
    // The others don't wait.
    let theirs = world.host(2).sent;
    world.host(2).send(2, 0, true).unwrap();
    world.until("delivered", |world| world.hosts[&1].messages().contains(&(2, theirs)));
    // The next change begins, and has to wait for that memory.
    world.wedge(&[1, 2], &[]);
    world.rounds(100);
    assert!(!world.host(1).has(&Report::Retired(ShardId::MAIN, ViewId(1))));
    let outcome = held.send_tracked();
    let before = world.host(1).tickets.len() - 1;
    world.host(1).tickets.insert(before, outcome.ticket());
    world.host(1).outcomes.push((number, outcome));
    // There is no view to send it in just now. It makes room for the one that will be.
    world.change(&[1, 2]);
    world.until("open", |_| sender.try_reserve(8).is_ok());
    world.host(1).send(1, 0, true).unwrap();
    world.settle();
    let own = world.host(1).told.iter().filter_map(|told| match told {
        Told::Message { view, sender: 1, number: it, .. } if *it >= number => Some((*view, *it)),
        _ => None,
    });
    assert_eq!(own.collect::<Vec<_>>(), [(3, number), (3, number + 1), (3, number + 2)]);
    world.check();
    world.check_complete();
}

#[test]
fn a_reservation_given_up_holds_nothing_back() {
    let mut world = World::new(42, 2, Guarantee::Atomic);
    let sender = world.host(1).sender.clone();
    let held = sender.try_reserve(8).unwrap();
    world.change(&[1, 2]);
    world.rounds(100);
    assert_eq!(sender.try_reserve(8).unwrap_err(), SendError::Changing);
    drop(held);
    world.until("open", |_| sender.try_reserve(8).is_ok());
    world.until("retired", |world| world.hosts[&1].has(&Report::Retired(ShardId::MAIN, ViewId(1))));
    world.load(10);
    world.settle();
    world.check();
    world.check_complete();
}

// A thread may hold several reservations, of several nodes; each finds its way.
#[test]
fn reservations_of_one_thread_don_t_mix() {
    let mut world = World::new(43, 2, Guarantee::Atomic);
    let senders = [1, 2].map(|id| world.host(id).sender.clone());
    let mut rooms: Vec<_> = (0..6).map(|at| (at, senders[at % 2].try_reserve(8).unwrap())).collect();
    for (at, room) in &mut rooms {
        room.copy_from_slice(&(*at as u64 / 2).to_le_bytes());
    }
    for (_, room) in rooms.into_iter().rev() {
        room.send();
    }
    for id in [1, 2] {
        world.host(id).sent = 3;
    }
    world.settle();
    let mut told = world.host(1).messages();
    told.sort_unstable();
    assert_eq!(told, [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)]);
}

// D13: two reservations are held over a change that another one interrupts, and come in one after the other.
#[test]
fn what_comes_in_late_keeps_its_order_whatever_the_views_do() {
    let mut world = World::new(44, 2, Guarantee::Atomic);
    let sender = world.host(1).sender.clone();
    let mut held: Vec<_> = (0..2u64)
        .map(|number| {
            let mut room = sender.try_reserve(8).unwrap();
            room.copy_from_slice(&number.to_le_bytes());
            room
        })
        .collect();
    world.host(1).sent = 2;
    world.change(&[1, 2]);
    world.rounds(100);
    world.wedge(&[1, 2], &[]);
    world.rounds(100);
    for room in held.drain(..) {
        let ticket = room.send();
        world.host(1).tickets.push(ticket);
        world.rounds(100);
    }
    world.change(&[1, 2]);
    world.until("delivered", |world| world.hosts[&1].messages().len() == 2);
    world.rounds(200);
    assert_eq!(world.host(1).messages(), [(1, 0), (1, 1)]);
    world.check();
    world.check_complete();
}
