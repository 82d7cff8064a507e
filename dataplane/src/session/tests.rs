//! A session among others over the simulated fabric: small stories. The long random ones are in `tests/`.
#![allow(clippy::unwrap_used, reason = "a test that can't go on should say where")]

use std::time::Duration;

use super::*;
use crate::fabric::FABRIC_PAGE;
use crate::names::{Time, ViewId};
use crate::plan::{Guarantee, Member};
use crate::record::{Header, Kind};
use crate::sim::{SimFabric, SimNetwork, SimOptions};

const RING: usize = 4096;

struct World {
    network: SimNetwork,
    fabrics: Vec<SimFabric>,
    sessions: Vec<Session>,
    senders: Vec<RingSender>,
    delivered: Vec<Vec<(u64, u8, Vec<u8>)>>,
    now: Time,
}

impl World {
    fn new(n: usize, guarantee: Guarantee) -> Self {
        let options = SimOptions {
            delay: (Duration::from_nanos(1), Duration::from_nanos(1)),
            tearing: 0,
            segment_bytes: FABRIC_PAGE + SessionPlan::region_bytes(RING),
        };
        let nodes: Vec<_> = (1..=n as u32).map(NodeId).collect();
        let (network, fabrics) = SimNetwork::linked(1, &nodes, options);
        let (sessions, senders) = (0..n)
            .map(|me| {
                let member = |rank: usize| Member {
                    node: nodes[rank],
                    slot: (rank != me).then_some(Slot(rank as u8)),
                    base: FABRIC_PAGE,
                };
                let members = (0..n).map(member).collect();
                let plan =
                    SessionPlan { view: ViewId(1), members, me: Rank(me as u8), ring_bytes: RING, guarantee };
                Session::start(plan, &fabrics[me]).unwrap()
            })
            .unzip();
        Self { network, fabrics, sessions, senders, delivered: vec![Vec::new(); n], now: Time(0) }
    }

    fn send(&self, at: usize, bytes: &[u8]) {
        let mut room = self.senders[at].try_reserve(bytes.len()).unwrap();
        room.copy_from_slice(bytes);
        room.send();
    }

    fn step(&mut self, at: usize) -> Result<bool, Fault> {
        self.now = Time(self.now.0 + 1);
        self.fabrics[at].poll(self.now);
        let log = &mut self.delivered[at];
        let stepped = self.sessions[at].step(&mut self.fabrics[at], &mut |d: &mut Delivery<'_>| {
            log.push((d.seq.0, d.rank.0, d.payload.to_vec()));
            Verdict::Taken
        });
        self.sessions[at].frontiers().validate().unwrap();
        stepped
    }

    fn settle(&mut self) {
        for _ in 0..20 {
            for at in 0..self.sessions.len() {
                self.step(at).unwrap();
                let fabric = &mut self.fabrics[at];
                self.sessions[at].settle(fabric);
                fabric.flush();
            }
        }
    }
}

// D6, D7: two hops, and equal rounds in rank order.
#[test]
fn concurrent_messages_are_delivered_in_one_order() {
    let mut w = World::new(3, Guarantee::Atomic);
    w.send(2, b"from the last");
    w.step(2).unwrap();
    w.send(0, b"from the first");
    w.step(0).unwrap();
    assert!(w.delivered.iter().all(Vec::is_empty), "nobody delivers before all have it");
    w.settle();
    assert_eq!(w.delivered[0].len(), 2);
    assert_eq!(w.delivered[0], w.delivered[1]);
    assert_eq!(w.delivered[0], w.delivered[2]);
}

// D5: members that never send hold nobody back.
#[test]
fn silence_does_not_hold_the_order_back() {
    let mut w = World::new(3, Guarantee::Atomic);
    let messages = if cfg!(miri) { 30 } else { 500u32 };
    for k in 0..messages {
        w.send(1, &k.to_le_bytes());
        w.settle();
    }
    assert_eq!(w.delivered[2].len(), messages as usize, "across several laps of the ring");
    let last = messages - 1;
    assert_eq!(w.delivered[2].last().unwrap(), &(u64::from(last), 1, last.to_le_bytes().to_vec()));
}

// D8: the three guarantees differ in what they wait for.
#[test]
fn guarantees_wait_for_what_they_promise() {
    for (guarantee, own_at_once) in
        [(Guarantee::Fifo, true), (Guarantee::Agreed, false), (Guarantee::Atomic, false)]
    {
        let mut w = World::new(2, guarantee);
        w.send(1, b"x");
        w.step(1).unwrap();
        assert_eq!(!w.delivered[1].is_empty(), own_at_once, "{guarantee}");
        w.settle();
        assert_eq!((w.delivered[0].len(), w.delivered[1].len()), (1, 1), "{guarantee}");
    }
}

// D10, D11: a loan keeps the room; the sender waits; the bytes stay as they were.
#[test]
fn a_loan_holds_the_ring_until_it_is_dropped() {
    let mut w = World::new(2, Guarantee::Atomic);
    w.send(0, &[1; 1000]);
    let mut loan = None;
    for _ in 0..5 {
        w.now = Time(w.now.0 + 1);
        w.step(0).unwrap();
        w.fabrics[1].poll(w.now);
        let mut keep = |d: &mut Delivery<'_>| {
            loan = d.lend();
            Verdict::Taken
        };
        w.sessions[1].step(&mut w.fabrics[1], &mut keep).unwrap();
    }
    let loan = loan.expect("delivered and lent");
    let mut sent = 0;
    for _ in 0..10 {
        if w.senders[0]
            .try_reserve(1000)
            .map(|mut r| {
                r.fill(2);
                r.send()
            })
            .is_ok()
        {
            sent += 1;
        }
        w.settle();
    }
    assert_eq!(sent, 3, "four records of 1,008 bytes fit, one is lent");
    assert_eq!(loan.payload(), [1; 1000]);
    assert!(!w.sessions[1].has_work());
    drop(loan);
    assert!(w.sessions[1].has_work(), "a returned loan is work");
    w.settle();
    w.send(0, &[3; 1000]);
    w.settle();
    assert_eq!(w.delivered[1].last().unwrap().2, [3; 1000]);
}

#[test]
fn a_refused_message_is_offered_again() {
    let mut w = World::new(1, Guarantee::Atomic);
    w.send(0, b"later");
    let mut calls = 0;
    let mut sink = |_: &mut Delivery<'_>| {
        calls += 1;
        if calls == 3 { Verdict::Taken } else { Verdict::Later }
    };
    for _ in 0..5 {
        w.sessions[0].step(&mut w.fabrics[0], &mut sink).unwrap();
    }
    assert_eq!(calls, 3);
}

// S1: each lie a peer can tell in its row or ring is found and blamed on it, and nothing is delivered from it.
#[test]
fn a_peer_that_lies_is_blamed() {
    let row = FABRIC_PAGE;
    let layout = Layout::new(2);
    let ring = row + layout.ring();
    let head = |position, promise| pack_head(Position(position), Round(promise));
    let record = |len, kind, round| Header { len, kind, round }.word();
    let lies: Vec<(&str, Vec<(usize, u64)>)> = vec![
        ("a head beyond the ring", vec![(row, head(RING as u64 + 8, 1))]),
        ("a promise that falls", vec![(row, u64::from(u32::MAX))]),
        (
            "a record longer than what was published",
            vec![(ring, record(100, Kind::Data, 0)), (row, head(16, 1))],
        ),
        (
            "a record over the ring's end",
            vec![(ring, record(RING, Kind::Data, 0)), (row, head(RING as u64, 1))],
        ),
        ("no kind of record", vec![(ring, 0), (row, head(16, 1))]),
        ("a round at its promise", vec![(ring, record(8, Kind::Data, 1)), (row, head(16, 1))]),
        ("a receipt of what was never sent", vec![(row + layout.received(0), 1 << 20)]),
        ("a release of what was never sent", vec![(row + layout.released(0), 1 << 20)]),
    ];
    for (lie, words) in lies {
        let mut w = World::new(2, Guarantee::Atomic);
        // Enough of its own for every check to be made.
        w.send(0, &[0; 1500]);
        w.send(0, &[0; 1500]);
        for (offset, word) in words {
            w.network.poke(1, 0, offset, word);
        }
        let fault = (0..3).find_map(|_| w.step(0).err());
        let Some(Fault::Peer { rank, node, .. }) = fault else { panic!("{lie}: not found") };
        assert_eq!((rank, node), (Rank(1), NodeId(2)), "{lie}");
        assert!(w.delivered[0].is_empty(), "{lie}");
    }
}

#[test]
fn a_receipt_that_falls_is_blamed() {
    let mut w = World::new(2, Guarantee::Atomic);
    w.send(0, b"1");
    w.settle();
    w.send(0, b"2");
    w.network.poke(1, 0, FABRIC_PAGE + Layout::new(2).received(0), 0);
    assert!((0..3).any(|_| w.step(0).is_err()));
}

// V2, V4: a wedged session is frozen, and then delivers exactly what lies below the trim.
#[test]
fn a_wedged_session_delivers_to_the_trim_and_no_further() {
    let mut w = World::new(3, Guarantee::Atomic);
    w.send(0, b"everyone has this");
    w.step(0).unwrap();
    w.step(1).unwrap();
    w.send(1, b"only the sender has this");
    w.step(1).unwrap();
    let reports: Vec<_> = [0, 1].map(|at| w.sessions[at].wedge()).into();
    assert_eq!(w.senders[1].try_reserve(1).unwrap_err(), crate::ring::ReserveError::Closed);
    assert!(!w.step(0).unwrap(), "frozen");
    let trim: Vec<_> = (0..3).map(|s| reports.iter().map(|r| r.senders[s].received).min().unwrap()).collect();
    for at in [0, 1] {
        let log = &mut w.delivered[at];
        let mut sink = |d: &mut Delivery<'_>| {
            log.push((d.seq.0, d.rank.0, d.payload.to_vec()));
            Verdict::Taken
        };
        assert!(w.sessions[at].cut(&trim, &mut sink).unwrap());
        assert_eq!(w.delivered[at], [(0, 0, b"everyone has this".to_vec())]);
    }
}

// D13: what a surviving sender sent and the trim cut off is handed back, once, even if it was committed after the wedge.
#[test]
fn messages_beyond_the_trim_are_handed_back_to_their_sender() {
    let mut w = World::new(2, Guarantee::Atomic);
    w.send(0, b"delivered");
    w.settle();
    w.send(0, b"published");
    w.step(0).unwrap();
    w.send(0, b"committed");
    let senders = w.senders.clone();
    let mut held = senders[0].try_reserve(8).unwrap();
    let trim = [w.sessions[1].frontiers().senders[0].received, Position(0)];
    w.sessions[0].wedge();
    assert!(w.sessions[0].cut(&trim, &mut |_: &mut Delivery<'_>| Verdict::Taken).unwrap());
    let mut again = Vec::new();
    let mut send = |_: Ticket, kind: Kind, payload: &[u8]| {
        assert_eq!(kind, Kind::Data);
        again.push(payload.to_vec());
    };
    assert!(!w.sessions[0].resend(&trim, &mut send), "a reservation is still out");
    held.copy_from_slice(b"held too");
    held.send();
    assert!(w.sessions[0].resend(&trim, &mut send));
    assert!(w.sessions[0].resend(&trim, &mut send));
    assert_eq!(again, [&b"published"[..], b"committed", b"held too"]);
}

// V11: a stall says who, which counter and which rule.
#[test]
fn a_stall_is_explained() {
    let mut w = World::new(3, Guarantee::Atomic);
    w.send(2, b"x");
    w.step(2).unwrap();
    w.step(0).unwrap();
    let blocked = w.sessions[0].blocked().unwrap();
    assert_eq!((blocked.sender, blocked.waits_for, blocked.clause), (NodeId(3), NodeId(2), "D6"));
    assert_eq!(w.sessions[2].blocked().map(|b| b.clause), Some("D6"));
    w.settle();
    assert_eq!(w.sessions[0].blocked(), None);
}

#[test]
fn an_end_is_told_to_all_and_takes_no_place() {
    let mut w = World::new(2, Guarantee::Atomic);
    w.senders[0].try_end().unwrap();
    w.settle();
    w.send(1, b"first");
    w.settle();
    assert_eq!(w.delivered[1], [(0, 0, vec![]), (0, 1, b"first".to_vec())]);
}
