//! Locks, elections and barriers on real nodes, some of which are lost.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use consort::coordination::{Broken, CoordinationError, Coordinator, Fence, OnLoss};
use consort::{FabricChoice, NodeId};

use crate::objects::founders;

fn group(count: u32, fabric: FabricChoice) -> Vec<Coordinator> {
    founders(count, fabric).0.into_iter().map(|builder| Coordinator::start(builder).unwrap()).collect()
}

/// Never two at once, tokens grow, and nobody who comes later has a smaller one.
fn one_holder_at_a_time(fabric: FabricChoice) {
    let group = group(3, fabric);
    let (fence, inside) = (Fence::default(), AtomicU64::new(0));
    thread::scope(|scope| {
        for coordinator in &group {
            for _ in 0..2 {
                let (fence, inside) = (&fence, &inside);
                scope.spawn(move || {
                    for _ in 0..30 {
                        let guard = coordinator.lock("it").unwrap();
                        let before = fence.last();
                        fence
                            .pass(guard.token(), || assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0))
                            .unwrap();
                        assert!(before < Some(guard.token()) && guard.is_held());
                        inside.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        }
    });
    // A lock that is taken is refused to who doesn't wait.
    let guard = group[0].lock("it").unwrap();
    assert!(group[1].try_lock("it").unwrap().is_none());
    assert!(group[1].lock_timeout("it", std::time::Duration::from_millis(1)).unwrap().is_none());
    drop(guard);
    assert!(group[2].lock("it").is_ok());
}

#[test]
fn one_holder_at_a_time_over_shared_memory() {
    one_holder_at_a_time(FabricChoice::Shm);
}

#[test]
fn one_holder_at_a_time_over_tcp() {
    one_holder_at_a_time(FabricChoice::Tcp);
}

/// The holder is lost, without a word; the next has its turn, and what the lost one still writes is refused.
fn a_lost_holder_is_replaced_and_fenced(fabric: FabricChoice) {
    let mut group = group(3, fabric);
    let lost = group.pop().unwrap();
    let (guard, office) = (lost.lock("it").unwrap(), lost.campaign("office").unwrap());
    let known = group[0].next_leader("office", None).unwrap();
    assert_eq!(known.node, NodeId(3));
    let (old, fence) = (guard.token(), Fence::default());
    fence.pass(old, || ()).unwrap();
    thread::scope(|scope| {
        let waits = scope.spawn(|| group[0].lock("it").unwrap());
        let stands = scope.spawn(|| group[1].campaign("office").unwrap());
        // Its process ends: no guard gives anything back.
        std::mem::forget((guard, office));
        lost.stop();
        let next = waits.join().unwrap();
        assert!(next.token() > old);
        fence.pass(next.token(), || ()).unwrap();
        assert_eq!(fence.pass(old, || ()).unwrap_err().last, next.token());
        let elected = stands.join().unwrap();
        let leader = group[0].next_leader("office", Some(known)).unwrap();
        assert_eq!((leader.node, leader.token), (NodeId(2), elected.token()));
        assert!(leader.token > known.token);
    });
}

#[test]
fn a_lost_holder_is_replaced_and_fenced_over_shared_memory() {
    a_lost_holder_is_replaced_and_fenced(FabricChoice::Shm);
}

#[test]
fn a_lost_holder_is_replaced_and_fenced_over_tcp() {
    a_lost_holder_is_replaced_and_fenced(FabricChoice::Tcp);
}

#[test]
fn barriers_do_with_losses_as_they_are_told() {
    let mut group = group(3, FabricChoice::Shm);
    let all: Vec<_> = (1..=3).map(NodeId).collect();
    thread::scope(|scope| {
        for coordinator in &group {
            scope.spawn(|| (0..20).for_each(|_| coordinator.barrier("step", &all, OnLoss::Break).unwrap()));
        }
    });
    assert_eq!(group[0].barrier("step", &all[1..], OnLoss::Break), Err(Broken::NoParty.into()));
    let lost = group.pop().unwrap();
    thread::scope(|scope| {
        let wait = |at: usize, name, on_loss| {
            let (coordinator, all) = (&group[at], &all);
            scope.spawn(move || coordinator.barrier(name, all, on_loss))
        };
        let breaks = [0, 1].map(|at| wait(at, "breaks", OnLoss::Break));
        let goes_on = [0, 1].map(|at| wait(at, "goes on", OnLoss::GoOn));
        // They have come before it is lost: what it takes after them is behind them in the order.
        while lost.waits_at("breaks").unwrap() + lost.waits_at("goes on").unwrap() < 4 {
            thread::yield_now();
        }
        lost.stop();
        for waits in breaks {
            assert_eq!(waits.join().unwrap(), Err(CoordinationError::Broken(Broken::Lost(NodeId(3)))));
        }
        for waits in goes_on {
            assert_eq!(waits.join().unwrap(), Ok(()));
        }
    });
}
