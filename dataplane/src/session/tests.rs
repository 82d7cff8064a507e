//! A session among others over the simulated fabric: small stories. The long random ones are in `tests/`.
#![allow(clippy::unwrap_used, reason = "a test that can't go on should say where")]

use std::time::Duration;

use super::*;
use crate::loan::Loan;
use crate::names::{Time, ViewId};
use crate::plan::{Guarantee, Member, Topology};
use crate::record::{Header, Kind};
use crate::ring::ReserveError;
use crate::sim::{SimFabric, SimNetwork, SimOptions};

const RING: usize = 4096;

/// The message; nothing if it is for others.
fn seen(delivery: &Delivery<'_>) -> Vec<u8> {
    if delivery.kind == Kind::Addressed { Vec::new() } else { delivery.payload.to_vec() }
}

/// Where the first view's session is.
const BASE: usize = SessionPlan::base(ViewId(1), RING);

struct World {
    network: SimNetwork,
    nodes: Vec<NodeId>,
    guarantee: Guarantee,
    topology: Topology,
    fabrics: Vec<SimFabric>,
    sessions: Vec<Session>,
    senders: Vec<RingSender>,
    delivered: Vec<Vec<(u64, u8, Vec<u8>)>>,
    now: Time,
}

impl World {
    fn new(n: usize, guarantee: Guarantee) -> Self {
        Self::of(n, guarantee, Topology::Direct)
    }

    fn of(n: usize, guarantee: Guarantee, topology: Topology) -> Self {
        Self::with(n, guarantee, topology, false)
    }

    /// Over a fabric where it costs something to publish.
    fn costly(n: usize) -> Self {
        Self::with(n, Guarantee::Atomic, Topology::Direct, true)
    }

    fn with(n: usize, guarantee: Guarantee, topology: Topology, publishing_costs: bool) -> Self {
        let options = SimOptions {
            delay: (Duration::from_nanos(1), Duration::from_nanos(1)),
            tearing: 0,
            segment_bytes: SessionPlan::segment_bytes(RING),
            relays: true,
            publishing_costs,
        };
        let nodes: Vec<_> = (1..=n as u32).map(NodeId).collect();
        let (network, fabrics) = SimNetwork::linked(1, &nodes, options);
        let mut world = Self {
            network,
            nodes,
            guarantee,
            topology,
            fabrics,
            sessions: Vec::new(),
            senders: Vec::new(),
            delivered: vec![Vec::new(); n],
            now: Time(0),
        };
        (world.sessions, world.senders) = (0..n).map(|me| world.start(1, me)).unzip();
        world.pass();
        world
    }

    fn start(&mut self, view: u64, me: usize) -> (Session, RingSender) {
        let view = ViewId(view);
        let member = |rank: usize| Member {
            node: self.nodes[rank],
            slot: (rank != me).then_some(Slot(rank as u8)),
            base: SessionPlan::base(view, RING),
        };
        let members = (0..self.nodes.len()).map(member).collect();
        let (me_rank, guarantee, topology) = (Rank(me as u8), self.guarantee, self.topology);
        let plan = SessionPlan { view, members, me: me_rank, ring_bytes: RING, guarantee, topology };
        Session::start(plan, &mut self.fabrics[me]).unwrap()
    }

    /// What is under way arrives.
    fn pass(&mut self) {
        self.now = Time(self.now.0 + 1);
        for fabric in &mut self.fabrics {
            fabric.poll(self.now);
        }
    }

    /// All that was received by anyone at all is delivered to `at`, whose session ends.
    fn end(&mut self, at: usize) {
        let trim: Vec<_> = self.sessions[at].wedge().senders.iter().map(|s| s.received).collect();
        let log = &mut self.delivered[at];
        let mut sink = |d: &mut Delivery<'_>| {
            log.push((d.seq.0, d.rank.0, seen(d)));
            Verdict::Taken
        };
        assert!(self.sessions[at].cut(&trim, &mut sink).unwrap());
        assert!(self.sessions[at].resend(&trim, |_| {}));
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
            log.push((d.seq.0, d.rank.0, seen(d)));
            Verdict::Taken
        });
        self.sessions[at].frontiers().validate().unwrap();
        stepped
    }

    /// Until nothing has happened for some rounds, in which what was under way would have arrived.
    fn settle(&mut self) {
        let (mut quiet, mut rounds) = (0, 0);
        while quiet < 3 {
            rounds += 1;
            assert!(rounds <= 100, "it never comes to rest");
            let mut any = false;
            for at in 0..self.sessions.len() {
                any |= self.step(at).unwrap();
                let fabric = &mut self.fabrics[at];
                self.sessions[at].settle(fabric);
                fabric.flush();
            }
            quiet = if any { 0 } else { quiet + 1 };
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

/// What `at` sees `of` say to have received of the first member's ring.
fn seen_received(w: &World, at: usize, of: usize) -> u64 {
    let peer = w.sessions[at].peers.iter().find(|peer| peer.rank == of).unwrap();
    peer.mirror.load(peer.base + Layout::new(3).received(0))
}

// D7, D9: where publishing costs something, who waits for an acknowledgement gets it, after two hops as ever; the others deliver on the
// sender's word, which comes with its next message, and get their acknowledgements once nothing else goes out.
#[test]
fn who_sent_a_message_is_told_and_tells_the_others() {
    let mut w = World::costly(3);
    w.settle();
    w.send(0, b"1");
    for at in [0, 1, 2, 0] {
        w.step(at).unwrap();
    }
    w.pass();
    assert_eq!(w.delivered[0].len(), 1, "two hops");
    w.step(1).unwrap();
    assert_eq!((seen_received(&w, 0, 2), seen_received(&w, 1, 2)), (16, 0), "it has no need to know yet");
    assert!(w.delivered[1].is_empty());
    w.send(0, b"2");
    for at in [0, 1, 2] {
        w.step(at).unwrap();
    }
    assert_eq!(
        (w.delivered[1].len(), w.delivered[2].len()),
        (1, 1),
        "so far the sender says to have delivered"
    );
    assert_eq!(w.sessions[1].frontiers().senders[0].stable, Position(16));
    w.step(0).unwrap();
    assert_eq!(w.delivered[0].len(), 2);
    // Without a third the acknowledgements go out by themselves.
    for at in [1, 2] {
        let fabric = &mut w.fabrics[at];
        assert!(w.sessions[at].settle_received(fabric));
        assert!(!w.sessions[at].settle_received(fabric), "once");
        fabric.flush();
    }
    for at in [1, 2] {
        w.step(at).unwrap();
    }
    assert_eq!((w.delivered[1].len(), w.delivered[2].len()), (2, 2));
}

// D7: what a sender has delivered it says to all, once, and only where they are not told with its next message.
#[test]
fn what_a_sender_has_delivered_is_told_once() {
    let mut w = World::costly(3);
    w.settle();
    let tells = |w: &mut World, at: usize| {
        let fabric = &mut w.fabrics[at];
        let any = w.sessions[at].settle_delivered(fabric);
        fabric.flush();
        any
    };
    w.send(0, b"1");
    for at in [0, 1, 2] {
        w.step(at).unwrap();
    }
    assert!(!tells(&mut w, 0), "it is not delivered");
    w.step(0).unwrap();
    assert!(tells(&mut w, 0) && !tells(&mut w, 0));
    for at in [1, 2] {
        w.step(at).unwrap();
    }
    assert!(w.delivered.iter().all(|log| log.len() == 1));
    assert!(!tells(&mut w, 1), "it sent nothing");
    w.send(0, b"2");
    for at in [0, 1, 2, 0] {
        w.step(at).unwrap();
    }
    w.send(0, b"3");
    w.step(0).unwrap();
    assert!(!tells(&mut w, 0), "the next message told them");
}

// D7: a message waits for those that come before it as well, so its sender is told whatever is received until it is delivered here.
#[test]
fn who_waits_for_others_messages_is_told_of_them_too() {
    let mut w = World::costly(3);
    w.settle();
    // The second member's message comes to the third before the first one's, which comes first in the order.
    w.send(0, b"first");
    w.send(1, b"second");
    w.step(1).unwrap();
    w.step(2).unwrap();
    w.sessions[0].exchange(&mut w.fabrics[0]).unwrap(); // which has not looked what has come
    w.fabrics[0].flush();
    for at in [2, 1, 0, 1] {
        w.step(at).unwrap();
    }
    let order = [(0, 0, b"first".to_vec()), (1, 1, b"second".to_vec())];
    assert_eq!(
        (&w.delivered[0][..], &w.delivered[1][..]),
        (&order[..], &order[..]),
        "and nobody has settled"
    );
}

// D7: who has no room to send takes nobody along with its next message, so it says at once what it has delivered.
#[test]
fn a_sender_without_room_says_what_it_has_delivered() {
    let mut w = World::costly(3);
    w.settle();
    w.send(0, &[0; 400]);
    for at in [0, 1, 2] {
        w.step(at).unwrap();
    }
    for long in [1600, 1800] {
        w.send(0, &vec![1; long]);
    }
    assert_eq!(w.senders[0].try_reserve(400).unwrap_err(), ReserveError::Full);
    w.sessions[0].exchange(&mut w.fabrics[0]).unwrap(); // which has not looked what has come
    w.fabrics[0].flush();
    for at in [0, 1, 2] {
        w.step(at).unwrap();
    }
    assert!(w.delivered.iter().all(|log| log.len() == 1));
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
    let row = BASE;
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
    w.network.poke(1, 0, BASE + Layout::new(2).received(0), 0);
    assert!((0..3).any(|_| w.step(0).is_err()));
}

#[test]
fn a_count_of_deliveries_that_falls_is_blamed() {
    let mut w = World::costly(3);
    for _ in 0..2 {
        w.send(0, b"1");
        w.settle();
    }
    w.send(1, b"2");
    w.step(1).unwrap();
    w.step(2).unwrap(); // it looks, since not everybody has this message
    w.network.poke(0, 2, BASE + Layout::new(3).delivered(), 1);
    let blame = Blame::Delivered { from: Seq(2), to: Seq(1) };
    assert_eq!(w.step(2), Err(Fault::Peer { rank: Rank(0), node: NodeId(1), blame }));
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
    assert_eq!(w.senders[1].try_reserve(1).unwrap_err(), ReserveError::Closed);
    assert!(!w.step(0).unwrap(), "frozen");
    let trim: Vec<_> = (0..3).map(|s| reports.iter().map(|r| r.senders[s].received).min().unwrap()).collect();
    for at in [0, 1] {
        let log = &mut w.delivered[at];
        let mut sink = |d: &mut Delivery<'_>| {
            log.push((d.seq.0, d.rank.0, seen(d)));
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
    let mut send = |beyond: &Beyond<'_>| {
        assert_eq!((beyond.kind, beyond.to), (Kind::Data, None));
        again.push(beyond.payload.to_vec());
    };
    assert!(!w.sessions[0].resend(&trim, &mut send), "a reservation is still out");
    held.copy_from_slice(b"held too");
    held.send();
    assert!(w.sessions[0].resend(&trim, &mut send));
    assert!(w.sessions[0].resend(&trim, &mut send));
    assert_eq!(again, [&b"published"[..], b"committed", b"held too"]);
}

// D12: who isn't addressed gets the place and whom it is for, and none of the bytes; overlapping lists stand in one order.
#[test]
fn an_addressed_message_has_its_place_everywhere_and_its_bytes_where_it_is_for() {
    let mut w = World::new(3, Guarantee::Atomic);
    let send = |w: &World, at: usize, to: &[u8], text: &[u8]| {
        let to = to.iter().copied().map(Rank).collect();
        let mut room = w.senders[at].try_reserve_to(to, text.len()).unwrap();
        room.copy_from_slice(text);
        room.send();
    };
    send(&w, 0, &[1], b"for k1 alone");
    send(&w, 0, &[0, 2], b"k0 and k2");
    w.send(0, b"for all");
    send(&w, 1, &[1, 2], b"k1 and k2");
    drop(w.senders[1].try_reserve_to(RankSet(1), 100).unwrap());
    w.settle();
    let of = |at: usize| -> Vec<(u64, String)> {
        let log = w.delivered[at].iter().filter(|(_, _, text)| !text.is_empty());
        log.map(|(seq, _, text)| (*seq, String::from_utf8_lossy(text).into_owned())).collect()
    };
    let own =
        |list: &[(u64, &str)]| list.iter().map(|(at, text)| (*at, (*text).to_owned())).collect::<Vec<_>>();
    assert_eq!(of(0), own(&[(1, "k0 and k2"), (2, "for all")]));
    assert_eq!(of(1), own(&[(0, "for k1 alone"), (2, "for all"), (3, "k1 and k2")]));
    assert_eq!(of(2), own(&[(1, "k0 and k2"), (2, "for all"), (3, "k1 and k2")]));
    let has = |at: usize, text: &[u8]| {
        let mirror = w.fabrics[at].mirror(Slot(0)).unwrap();
        let mut bytes = Vec::new();
        mirror.append_words(0..mirror.size(), &mut bytes);
        // What a message says begins at a word.
        (0..bytes.len()).step_by(8).any(|at| bytes[at..].starts_with(text))
    };
    assert!(has(1, b"for k1 alone") && !has(2, b"for k1 alone"));
    assert!(has(2, b"k0 and k2") && !has(1, b"k0 and k2"));
    assert!(has(1, b"for all") && has(2, b"for all"));
}

// D11: what was reserved and given up has its room back, also where nothing else is sent.
#[test]
fn room_that_was_given_up_is_used_again() {
    for members in 1..=if cfg!(miri) { 1 } else { 3 } {
        let mut w = World::new(members, Guarantee::Atomic);
        w.settle();
        for round in 0..2 * RING / 1000 {
            let room = w.senders[0].try_reserve(1000);
            assert!(room.is_ok(), "{members} members, round {round}: {room:?}");
            drop(room);
            w.settle();
        }
    }
}

// S1: an addressed record has room for the word that says whom it is for.
#[test]
fn an_addressed_record_too_short_for_its_address_is_blamed() {
    assert_eq!(Header::parse(Header { len: 0, kind: Kind::Addressed, round: 0 }.word()), None);
    let mut w = World::new(2, Guarantee::Atomic);
    assert!(matches!(
        w.senders[0].try_reserve_to(RankSet(2), usize::MAX - 3),
        Err(ReserveError::TooLong { .. })
    ));
    let max = w.senders[0].max_len();
    assert!(w.senders[0].try_reserve_to(RankSet(2), max - 8).is_ok());
    assert!(w.senders[0].try_reserve_to(RankSet(2), max - 7).is_err());
    w.settle();
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

// V10: a session begins where an earlier one was, and a member that is behind still has that one's words in its mirror.
#[test]
fn what_an_earlier_session_left_is_never_read() {
    let mut w = World::new(2, Guarantee::Atomic);
    w.send(0, &[1; 1000]);
    w.send(1, &[1; 1000]);
    w.settle();
    w.end(0);
    w.end(1);
    assert!(w.sessions.iter().all(Session::is_free));
    let layout = Layout::new(2);
    let stale = w.fabrics[0].mirror(Slot(1)).unwrap().clone();
    (w.sessions[0], w.senders[0]) = w.start(3, 0);
    w.delivered[0].clear();

    // Node 2 hasn't begun: what node 1 sees of it is an earlier session's head and receipt, which cover this message.
    w.send(0, b"new");
    for _ in 0..3 {
        w.step(0).unwrap();
    }
    assert!(stale.load(BASE) != 0 && stale.load(BASE + layout.received(0)) >= 1008, "the words are there");
    assert!(w.delivered[0].is_empty(), "nobody else has it yet");
    assert!(w.sessions[0].unborn().eq([NodeId(2)]));
    assert_eq!(w.sessions[0].frontiers().senders[1].received, Position(0));

    // Node 2 begins: its row is zero, for all to see, before it is its row.
    (w.sessions[1], w.senders[1]) = w.start(3, 1);
    w.delivered[1].clear();
    w.settle();
    assert_eq!(w.delivered, [[(0, 0, b"new".to_vec())], [(0, 0, b"new".to_vec())]]);
    assert_eq!(stale.load(BASE + layout.tag()), 3);
    assert_eq!(w.sessions[0].unborn().count(), 0);
}

// V10: a view may end before this member has seen the others begin it. It sees that all the same: else it would wait for ever.
#[test]
fn births_are_seen_by_a_session_that_is_wedged() {
    let mut w = World::new(2, Guarantee::Atomic);
    w.settle();
    w.end(0);
    w.end(1);
    (w.sessions[0], w.senders[0]) = w.start(3, 0);
    w.sessions[0].wedge();
    assert!(w.sessions[0].unborn().eq([NodeId(2)]));
    (w.sessions[1], w.senders[1]) = w.start(3, 1);
    for _ in 0..3 {
        w.step(0).unwrap();
    }
    assert_eq!(w.sessions[0].unborn().count(), 0);
}

// V10: the zeros under a tag are seen by whoever sees the tag, even where words show before they are published.
#[test]
fn a_birth_is_published_in_order() {
    let mut w = World::new(2, Guarantee::Fifo);
    w.send(0, b"before");
    w.settle();
    w.end(0);
    w.end(1);
    let mirror = w.fabrics[1].mirror(Slot(0)).unwrap().clone();
    let layout = Layout::new(2);
    w.start(3, 0);
    let own = w.fabrics[0].segment();
    assert_eq!((own.load(BASE), own.load(BASE + layout.tag())), (0, 3));
    assert_eq!(mirror.load(BASE + layout.tag()), 1);
    w.pass();
    assert_eq!((mirror.load(BASE), mirror.load(BASE + layout.tag())), (0, 3));
}

// V10: a session is over when it was cut, its messages were handed back, and no loan is out.
#[test]
fn a_session_is_free_when_nothing_of_it_is_needed() {
    let mut w = World::new(2, Guarantee::Atomic);
    w.send(0, &[1; 100]);
    w.send(0, &[2; 100]);
    w.pass();
    w.step(0).unwrap();
    w.pass();
    let held = w.senders[1].try_reserve(8).unwrap();
    let mut loans = Vec::new();
    let mut calls = 0;
    let mut sink = |d: &mut Delivery<'_>| {
        calls += 1;
        if calls == 2 {
            return Verdict::Later;
        }
        loans.extend(d.lend());
        Verdict::Taken
    };
    w.sessions[1].exchange(&mut w.fabrics[1]).unwrap();
    let trim: Vec<_> = w.sessions[1].wedge().senders.iter().map(|s| s.received).collect();
    assert!(!w.sessions[1].cut(&trim, &mut sink).unwrap(), "refused once");
    assert!(w.sessions[1].cut(&trim, &mut sink).unwrap());
    assert!(!w.sessions[1].resend(&trim, |_| {}), "a reservation is out");
    assert!(!w.sessions[1].is_free());
    drop(held);
    assert!(w.sessions[1].resend(&trim, |_| {}));
    assert!(!w.sessions[1].is_free(), "two loans are out");
    loans.remove(0);
    assert!(!w.sessions[1].is_free(), "one is");
    assert_eq!(loans.pop().unwrap().payload(), [2; 100]);
    assert!(w.sessions[1].is_free());
}

/// Node 1 has sent ten records that lie around the end of its ring; all have them, but node 2 has only the first `has`, of
/// which it keeps one as a loan.
fn one_lacks(guarantee: Guarantee, has: usize) -> (World, Vec<Loan>) {
    let mut w = World::new(3, guarantee);
    for _ in 0..3 {
        w.send(0, &[0; 992]);
        w.settle();
    }
    w.delivered.iter_mut().for_each(Vec::clear);
    let mut loans = Vec::new();
    for k in 0..10u8 {
        w.send(0, &[k; 200]);
        w.step(0).unwrap();
        w.pass();
        w.step(2).unwrap();
        if usize::from(k) < has {
            let log = &mut w.delivered[1];
            let mut sink = |d: &mut Delivery<'_>| {
                log.push((d.seq.0, d.rank.0, seen(d)));
                if loans.is_empty() {
                    loans.extend(d.lend());
                }
                Verdict::Taken
            };
            w.sessions[1].step(&mut w.fabrics[1], &mut sink).unwrap();
        }
    }
    (w, loans)
}

// V3, V4: who lacks what lies below the trim is given it by one who has it, and then delivers as the others do.
#[test]
fn what_one_lacks_is_supplied() {
    for guarantee in [Guarantee::Fifo, Guarantee::Agreed] {
        let (mut w, mut loans) = one_lacks(guarantee, 4);
        let reports = [1, 2].map(|at| w.sessions[at].wedge());
        let received = reports.map(|report| report.senders[0].received);
        assert!(received[0] < received[1]);
        let trim = [received[1], Position(0), Position(0)];
        let mut log = std::mem::take(&mut w.delivered[1]);
        let before = log.len();
        let mut sink = |d: &mut Delivery<'_>| {
            log.push((d.seq.0, d.rank.0, seen(d)));
            loans.extend(d.lend());
            Verdict::Taken
        };
        assert!(!w.sessions[1].cut(&trim, &mut sink).unwrap(), "nothing before all is here");
        let bytes = w.sessions[2].read(Rank(0), received[0]..received[1]).unwrap();
        w.sessions[1].supply(Rank(0), received[0], &bytes).unwrap();
        assert!(w.sessions[1].cut(&trim, &mut sink).unwrap());
        w.sessions[1].frontiers().validate().unwrap();
        assert!(before >= 1 && log.len() == 10, "{before} of {}", log.len());
        assert!(log.iter().zip(0..).all(|(entry, k)| entry.2 == [k; 200]));
        let lent = loans.iter().map(|loan| [loan.payload()[0], loan.payload()[199]]);
        assert!(
            lent.eq([0].into_iter().chain(before as u8..10).map(|k| [k, k])),
            "loans of before, and from the supply"
        );
        w.end(2);
        assert_eq!(w.delivered[2], log);
        // Who was supplied can supply others, with all that they can lack.
        assert_eq!(w.sessions[1].read(Rank(0), received[0]..received[1]), Some(bytes));
        let oldest = Position(received[1].0 - RING as u64);
        let all = [1, 2].map(|at| w.sessions[at].read(Rank(0), oldest..received[1]).unwrap());
        assert!(all[0] == all[1], "a whole ring is kept");
        // The room is the sender's again when every loan is back, wherever it lies.
        assert!(w.sessions[1].resend(&trim, |_| {}) && !w.sessions[1].is_free());
        loans.clear();
        assert!(w.sessions[1].is_free());
    }
}

#[test]
fn only_what_is_here_is_read() {
    let (mut w, _loans) = one_lacks(Guarantee::Fifo, 10);
    let end = w.sessions[1].wedge().senders[0].received;
    let read =
        |from: u64, to: u64| w.sessions[1].read(Rank(0), Position(from)..Position(to)).map(|b| b.len());
    assert_eq!(read(end.0, end.0), Some(0));
    assert_eq!(read(end.0 - RING as u64, end.0), Some(RING));
    for (from, to) in [
        (end.0 - 8, end.0 + 8),
        (end.0 - RING as u64 - 8, end.0),
        (0, 8),
        (end.0, end.0 - 8),
        (end.0 - 4, end.0),
        (u64::MAX - 7, end.0),
    ] {
        assert_eq!(read(from, to), None, "{from} to {to} of {end}");
    }
    assert_eq!(w.sessions[1].read(Rank(3), Position(0)..Position(0)), None);
}

// V2, V3: what a fence must leave of a member's mirror: its row, what was not released, and what others may lack.
#[test]
fn what_is_still_needed_of_a_mirror_is_named() {
    for guarantee in [Guarantee::Agreed, Guarantee::Atomic] {
        let (mut w, loans) = one_lacks(guarantee, 10);
        let frozen = w.sessions[1].wedge().senders[0];
        assert!(
            loans.len() == 1 && frozen.released.0 % RING as u64 > frozen.received.0 % RING as u64,
            "a wrap"
        );
        let needed = w.sessions[1].needed(Slot(0));
        let ring = BASE + Layout::new(3).ring();
        let place = |at: Position| ring + at.0 as usize % RING;
        let held = [place(frozen.released)..ring + RING, ring..place(frozen.received)];
        assert_eq!(needed.kept().ring, held);
        let row = BASE..ring;
        let rest = place(frozen.received)..place(frozen.released);
        assert_eq!(needed.words, if guarantee.stable() { vec![row] } else { vec![row, rest] });
        assert_eq!(w.sessions[1].needed(Slot(1)), Needed::default(), "its own");
    }
}

// S1: what is supplied comes from a peer. A bad word blames it, and nothing has changed.
#[test]
fn what_is_supplied_is_checked() {
    let (mut w, _loans) = one_lacks(Guarantee::Agreed, 4);
    assert_eq!(w.sessions[1].supply(Rank(0), Position(0), &[]), Err(SupplyError::Running));
    let [before, after] = [1, 2].map(|at| w.sessions[at].wedge().senders[0]);
    let (from, to) = (before.received, after.received);
    let good = w.sessions[2].read(Rank(0), from..to).unwrap();
    let word = |bytes: &[u8], at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap());
    let header = Header::parse(word(&good, 0)).unwrap();
    let with = |at: usize, header: Header| {
        let mut bytes = good.clone();
        bytes[at..at + 8].copy_from_slice(&header.word().to_ne_bytes());
        bytes
    };
    let early = before.promise.0 as u32 - 1;
    let lies = [
        ("a round before the promise", with(0, Header { round: early, ..header })),
        ("a round that falls", with(header.size(), header)),
        (
            "a record that ends behind the end",
            with(good.len() - header.size(), Header { len: 208, ..header }),
        ),
        ("half a record", good[..good.len() - 8].to_vec()),
        ("no kind", [&[0; 8], &good[8..]].concat()),
        ("words beyond", [&good[..], &[0; 8]].concat()),
    ];
    let untouched = w.sessions[1].frontiers();
    for (lie, bytes) in lies {
        let refused = w.sessions[1].supply(Rank(0), from, &bytes);
        if lie == "a round that falls" {
            // One round later than the one before it, or the test shows nothing.
            assert_ne!(word(&good, header.size()) >> 32, word(&good, 0) >> 32);
        }
        assert!(matches!(refused, Err(SupplyError::Record { .. })), "{lie}: {refused:?}");
    }
    let supply = |w: &mut World, rank: u8, from: u64, bytes: &[u8]| {
        w.sessions[1].supply(Rank(rank), Position(from), bytes).unwrap_err()
    };
    assert_eq!(supply(&mut w, 1, 0, &[]), SupplyError::Rank(Rank(1)), "its own ring");
    assert_eq!(supply(&mut w, 3, 0, &[]), SupplyError::Rank(Rank(3)));
    let place = SupplyError::Place { received: from, from: Position(from.0 + 8) };
    assert_eq!(supply(&mut w, 0, from.0 + 8, &good), place);
    assert_eq!(supply(&mut w, 0, from.0, &good[..12]), SupplyError::Length { len: 12 });
    assert_eq!(supply(&mut w, 0, from.0, &[0; RING + 8]), SupplyError::Length { len: RING + 8 });
    assert_eq!(w.sessions[1].frontiers(), untouched);
    w.sessions[1].supply(Rank(0), from, &[]).unwrap();
    assert_eq!(w.sessions[1].frontiers(), untouched);
    w.sessions[1].supply(Rank(0), from, &good).unwrap();
    assert_eq!(w.sessions[1].frontiers().senders[0].received, to);
}

// F4: what a member published and nobody has looked at is lost with the link, in a session that goes on too: a fence keeps what was
// received and no more, so beyond it are zeros.
#[test]
fn nothing_more_is_read_of_a_member_that_is_fenced() {
    for has_heard in [false, true] {
        let mut w = World::new(3, Guarantee::Agreed);
        if has_heard {
            w.send(0, b"first");
            w.settle();
        }
        // This is there, and not looked at.
        w.send(0, b"second");
        w.step(0).unwrap();
        w.pass();
        let before = w.sessions[1].frontiers().senders[0].received;
        let needed = w.sessions[1].needed(Slot(0));
        w.sessions[1].lose(Slot(0));
        w.fabrics[1].fence_keeping(Slot(0), &needed.kept());
        for _ in 0..5 {
            w.step(1).unwrap();
            w.step(2).unwrap();
        }
        assert_eq!(w.sessions[1].frontiers().senders[0].received, before);
        assert_eq!(w.sessions[1].unborn().count(), 0);
        assert_eq!(w.delivered[1].len(), usize::from(has_heard));
    }
}

/// Wants a read point, and has members take steps until `at` has it due.
fn point(w: &mut World, at: usize, upto: u64) -> Option<u64> {
    assert!(w.sessions[at].want_read_point(upto));
    w.settle();
    w.sessions[at].poll_read_point()
}

// A point is due after everything that was received when it was asked for, and costs no message.
#[test]
fn a_read_point_comes_after_what_was_delivered_anywhere() {
    let mut w = World::new(3, Guarantee::Atomic);
    w.settle();
    assert_eq!(
        (point(&mut w, 1, 1), w.sessions[1].poll_read_point()),
        (Some(1), None),
        "an idle group answers"
    );
    w.send(0, b"one");
    while w.delivered[0].is_empty() {
        for at in 0..3 {
            if at != 1 || w.sessions[1].streams[0].received == Position(0) {
                w.step(at).unwrap(); // the reader receives it and goes no further
            }
        }
    }
    assert!(w.delivered[1].is_empty());
    assert!(w.sessions[1].want_read_point(2));
    w.sessions[1].exchange(&mut w.fabrics[1]).unwrap();
    assert_eq!(w.sessions[1].poll_read_point(), None);
    w.settle();
    assert_eq!((w.delivered[1].len(), w.sessions[1].poll_read_point()), (1, Some(2)));
    assert_eq!(
        w.sessions.iter().map(|session| session.delivered()).max(),
        Some(Seq(1)),
        "no message was sent for it"
    );
}

// Many share a question: while one is under way, whatever is wanted waits for the next.
#[test]
fn read_points_share_questions() {
    let mut w = World::new(3, Guarantee::Atomic);
    w.settle();
    for upto in 1..=100 {
        assert!(w.sessions[0].want_read_point(upto));
        w.step(0).unwrap();
    }
    assert_eq!(w.sessions[0].reads.asked, 1);
    w.settle();
    assert_eq!(w.sessions[0].poll_read_point(), Some(100));
    assert_eq!(w.sessions[0].reads.asked, 2);
    assert!(w.sessions[0].want_read_point(100), "wanting it again changes nothing");
    w.settle();
    assert_eq!((w.sessions[0].poll_read_point(), w.sessions[0].reads.asked), (None, 2));
}

// What a wedged member doesn't answer is never due in that session; what was confirmed before is due at the cut.
#[test]
fn a_wedged_member_answers_nothing() {
    let mut w = World::new(3, Guarantee::Atomic);
    w.settle();
    w.sessions[2].wedge();
    assert_eq!(point(&mut w, 0, 1), None);
    assert!(!w.sessions[2].want_read_point(1), "nor asks");
    let trim = vec![Position(0); 3];
    w.sessions[0].wedge();
    let mut sink = |_: &mut Delivery<'_>| Verdict::Taken;
    assert!(w.sessions[0].cut(&trim, &mut sink).unwrap());
    assert_eq!(w.sessions[0].poll_read_point(), None);
}

#[test]
fn a_confirmed_point_is_due_at_the_cut() {
    let mut w = World::new(2, Guarantee::Atomic);
    w.settle();
    w.send(0, b"one");
    w.step(0).unwrap();
    // Received here, and never to be known as received by the sender.
    assert!(w.sessions[1].want_read_point(7));
    w.fabrics[1].poll(Time(w.now.0 + 1));
    w.sessions[1].exchange(&mut w.fabrics[1]).unwrap();
    w.fabrics[1].flush();
    w.sessions[0].answer();
    w.pass();
    w.pass();
    w.sessions[0].answer();
    w.sessions[0].publish_reads(&mut w.fabrics[0]);
    w.fabrics[0].flush();
    w.pass();
    w.pass();
    w.sessions[1].exchange(&mut w.fabrics[1]).unwrap();
    assert_eq!(w.sessions[1].poll_read_point(), None, "what it received isn't delivered");
    w.sessions[1].wedge();
    let mut sink = |_: &mut Delivery<'_>| Verdict::Taken;
    assert!(w.sessions[1].cut(&[Position(0); 2], &mut sink).unwrap());
    assert_eq!(w.sessions[1].poll_read_point(), Some(7), "and lies beyond the trim");
}

// S1: what was stable stays below the frontier though a row says less by now.
#[test]
fn a_row_that_falls_lowers_no_read_point() {
    let mut w = World::new(3, Guarantee::Atomic);
    w.settle();
    w.send(0, b"delivered elsewhere");
    let mut refuse = |_: &mut Delivery<'_>| Verdict::Later;
    let mut turn = |w: &mut World| {
        for at in [0, 2] {
            w.step(at).unwrap();
            w.sessions[at].settle(&mut w.fabrics[at]);
            w.fabrics[at].flush();
        }
        w.fabrics[1].poll(w.now);
        w.sessions[1].step(&mut w.fabrics[1], &mut refuse).unwrap();
    };
    (0..10).for_each(|_| turn(&mut w));
    assert_eq!((w.delivered[0].len(), w.delivered[1].len()), (1, 0));
    w.network.poke(2, 1, BASE + Layout::new(3).received(0), 0);
    assert!(w.sessions[1].want_read_point(1));
    (0..10).for_each(|_| turn(&mut w));
    assert_eq!(w.sessions[1].poll_read_point(), None, "what was delivered elsewhere is not delivered here");
    w.settle();
    assert_eq!((w.delivered[1].len(), w.sessions[1].poll_read_point()), (1, Some(1)));
}

#[test]
fn there_are_no_read_points_without_stability() {
    for guarantee in [Guarantee::Fifo, Guarantee::Agreed] {
        let mut w = World::new(2, guarantee);
        assert!(!w.sessions[0].want_read_point(1));
        w.settle();
        assert_eq!(w.sessions[0].poll_read_point(), None);
    }
    let mut alone = World::new(1, Guarantee::Atomic);
    assert_eq!(point(&mut alone, 0, 1), Some(1), "whoever is alone knows everything");
}

// S1
#[test]
fn an_answer_to_what_was_not_asked_is_blamed() {
    let mut w = World::new(2, Guarantee::Atomic);
    w.settle();
    let answered = BASE + w.sessions[1].layout.answered(0);
    w.sessions[1].segment.store(answered, 9);
    assert!(w.sessions[0].want_read_point(1));
    w.step(0).unwrap();
    let everyone = w.sessions[1].everyone;
    w.fabrics[1].publish_words(answered..answered + WORD, everyone);
    w.fabrics[1].flush();
    w.pass();
    w.pass();
    let Err(Fault::Peer { node, blame, .. }) = w.step(0) else { panic!("it was believed") };
    assert_eq!((node, blame), (NodeId(2), Blame::Answered { asked: 1, answered: 9 }));
}

#[test]
fn digests_are_told_once_and_not_in_between() {
    let mut w = World::new(3, Guarantee::Atomic);
    w.settle();
    assert_eq!(w.sessions[0].poll_digest(), None);
    w.sessions[1].publish_digest(7);
    w.sessions[2].publish_digest(8);
    w.settle();
    let told: Vec<_> = std::iter::from_fn(|| w.sessions[0].poll_digest()).collect();
    assert_eq!(told, [(NodeId(2), 7), (NodeId(3), 8)]);
    w.sessions[1].publish_digest(9);
    w.sessions[1].publish_digest(10);
    w.settle();
    assert_eq!((w.sessions[0].poll_digest(), w.sessions[0].poll_digest()), (Some((NodeId(2), 10)), None));
}

// Who settles before a sleep takes digests in, and nobody wakes it for what it has already.
#[test]
fn a_digest_that_came_before_a_sleep_is_work() {
    let mut w = World::new(3, Guarantee::Atomic);
    w.settle();
    w.sessions[1].publish_digest(7);
    w.step(1).unwrap();
    w.pass();
    assert!(!w.sessions[0].has_work());
    w.sessions[0].settle(&mut w.fabrics[0]);
    assert!(w.sessions[0].has_work() && !w.sessions[0].has_own_work());
    assert_eq!(w.sessions[0].poll_digest(), Some((NodeId(2), 7)));
    assert!(!w.sessions[0].has_work());
    // Who is wedged tells nothing more of others.
    w.sessions[1].publish_digest(8);
    w.step(1).unwrap();
    w.pass();
    w.sessions[0].settle(&mut w.fabrics[0]);
    w.sessions[0].wedge();
    assert!(!w.sessions[0].has_work());
}

/// What each member has handed to its links for one message of `bytes` of member 0, and who delivered it.
fn carried(topology: Topology, n: usize, bytes: usize) -> Vec<u64> {
    let mut w = World::of(n, Guarantee::Atomic, topology);
    w.settle();
    let out = |w: &World| w.fabrics.iter().map(|fabric| fabric.stats().bytes_out).collect::<Vec<_>>();
    let before = out(&w);
    w.send(0, &vec![7; bytes]);
    w.settle();
    assert!(w.delivered.iter().all(|log| *log == [(0, 0, vec![7; bytes])]), "{topology}");
    out(&w).iter().zip(before).map(|(after, before)| after - before).collect()
}

// D14: along a chain every link carries a message's bytes once, the origin's and the others'.
#[test]
fn along_a_chain_no_member_sends_a_message_twice() {
    for (n, bytes) in [(3, 1800), (5, 2000)] {
        let sends = |out: &[u64]| out.iter().map(|out| out / bytes as u64).collect::<Vec<_>>();
        let direct = carried(Topology::Direct, n, bytes);
        assert_eq!(sends(&direct)[0], n as u64 - 1, "{direct:?}");
        let chain = carried(Topology::Chain, n, bytes);
        let mut once = vec![1; n];
        once[n - 1] = 0; // the last has nobody to pass it on to
        assert_eq!(sends(&chain), once, "{chain:?}");
    }
}

#[test]
fn two_members_are_no_chain_and_a_chain_needs_relays() {
    assert!(World::of(2, Guarantee::Atomic, Topology::Chain).sessions[0].chain.is_none());
    let options = SimOptions {
        delay: (Duration::ZERO, Duration::ZERO),
        tearing: 0,
        segment_bytes: SessionPlan::segment_bytes(RING),
        relays: false,
        publishing_costs: true,
    };
    let (_, mut fabrics) = SimNetwork::linked(1, &[NodeId(1), NodeId(2)], options);
    let member = |node, slot| Member { node: NodeId(node), slot, base: BASE };
    let plan = SessionPlan {
        view: ViewId(1),
        members: vec![member(1, None), member(2, Some(Slot(1)))],
        me: Rank(0),
        ring_bytes: RING,
        guarantee: Guarantee::Atomic,
        topology: Topology::Chain,
    };
    assert_eq!(Session::start(plan, &mut fabrics[0]).err(), Some(PlanError::Relays("sim")));
}

// D6, D2: a head that comes before the bytes that it covers says what is on its way, and vouches for nothing.
#[test]
fn along_a_chain_a_head_waits_for_its_bytes() {
    let mut w = World::of(3, Guarantee::Agreed, Topology::Chain);
    w.settle();
    w.send(0, b"first");
    w.step(0).unwrap();
    w.send(2, b"after it");
    // The head is at the last member, the bytes are at the one between.
    w.step(2).unwrap();
    let seen = &w.sessions[2].frontiers().senders[0];
    assert_eq!((seen.promise, seen.received), (Round(0), Position(0)));
    assert_eq!(w.sessions[2].streams[0].heard, Round(1), "and it is followed already (D5)");
    assert!(w.sessions[2].frontiers().senders[2].promise > Round(1));
    w.step(2).unwrap();
    assert!(w.delivered[2].is_empty(), "what comes first isn't here");
    w.step(1).unwrap();
    w.step(2).unwrap();
    let seen = &w.sessions[2].frontiers().senders[0];
    assert_eq!((seen.promise, seen.received), (Round(1), Position(16)));
    w.settle();
    let both = [(0, 0, b"first".to_vec()), (1, 2, b"after it".to_vec())];
    assert!(w.delivered.iter().all(|log| *log == both));
}

// S1: what the member before says is checked like all that a peer writes, and is believed of no more than the origin has sent.
#[test]
fn along_a_chain_the_member_before_is_blamed_for_what_it_says() {
    let layout = Layout::new(3);
    let word = BASE + layout.received(0);
    for lie in [8, 12, u64::MAX] {
        let mut w = World::of(3, Guarantee::Atomic, Topology::Chain);
        w.settle();
        w.send(0, b"once");
        w.settle();
        w.network.poke(1, 2, word, lie);
        let fault = (0..3).find_map(|_| w.step(2).err());
        let Some(Fault::Peer { rank, blame, .. }) = fault else { panic!("{lie}: not found") };
        assert_eq!(rank, Rank(1), "{lie}: {blame}");
        let is_it =
            matches!(blame, Blame::Received { sender: Rank(0), from: Position(16), to } if to.0 == lie);
        assert!(is_it, "{blame}");
    }
    let mut w = World::of(3, Guarantee::Atomic, Topology::Chain);
    w.settle();
    w.network.poke(1, 2, word, 1 << 20);
    w.step(2).unwrap();
    assert_eq!(w.sessions[2].frontiers().senders[0].received, Position(0), "the origin has sent nothing");
}

// F4: behind a fence the bytes of a member are dropped, so what others say to have of them is no longer taken for a proof.
#[test]
fn along_a_chain_nothing_of_a_lost_member_counts() {
    let mut w = World::of(3, Guarantee::Atomic, Topology::Chain);
    w.settle();
    w.send(0, b"on its way");
    w.step(0).unwrap();
    w.step(2).unwrap(); // has the head
    let needed = w.sessions[2].needed(Slot(0));
    w.sessions[2].lose(Slot(0));
    w.fabrics[2].fence_keeping(Slot(0), &needed.kept());
    for _ in 0..5 {
        w.step(1).unwrap();
        w.step(2).unwrap();
    }
    let of = |at: usize| w.sessions[at].frontiers().senders[0].received;
    assert_eq!((of(1), of(2)), (Position(24), Position(0)));
}

// F6: where a link was fenced that the session counts on, those behind this member wait in vain: it says so instead of trying for ever.
#[test]
fn along_a_chain_a_refused_relay_is_a_fault() {
    let mut w = World::of(3, Guarantee::Atomic, Topology::Chain);
    w.settle();
    w.send(0, b"not passed on");
    w.step(0).unwrap();
    w.pass();
    w.fabrics[1].fence(Slot(0));
    assert_eq!(w.step(1), Err(Fault::Relay { rank: Rank(0), node: NodeId(1) }));
    assert_eq!(w.sessions[1].frontiers().senders[0].received, Position(0), "it isn't acknowledged");
    // Where the session was told it is no fault: nothing of that one counts.
    w.sessions[1].lose(Slot(0));
    w.step(1).unwrap();
}

// Whoever isn't born accepts no relay, so what comes for it waits at the one before it, who acknowledges nothing of it.
#[test]
fn along_a_chain_bytes_wait_for_the_next_ones_birth() {
    let mut w = World::of(3, Guarantee::Atomic, Topology::Chain);
    w.settle();
    for at in [0, 1, 2] {
        w.end(at);
    }
    // The second session in the same memory begins at the first two members only.
    let begun: Vec<_> = [0, 1].map(|at| w.start(3, at)).into();
    for (at, (session, sender)) in begun.into_iter().enumerate() {
        (w.sessions[at], w.senders[at]) = (session, sender);
    }
    w.send(0, b"early");
    for _ in 0..5 {
        w.step(0).unwrap();
        w.step(1).unwrap();
    }
    assert_eq!(w.sessions[1].frontiers().senders[0].received, Position(0));
    (w.sessions[2], w.senders[2]) = w.start(3, 2);
    w.settle();
    assert!(w.delivered.iter().all(|log| log.last() == Some(&(0, 0, b"early".to_vec()))));
}

// What is here and not yet everywhere holds no query up: along a chain that would be for as long as its bytes travel.
#[test]
fn a_read_point_does_not_wait_for_what_is_on_its_way_along_a_chain() {
    let mut w = World::of(4, Guarantee::Atomic, Topology::Chain);
    w.settle();
    w.send(0, b"dirty");
    w.step(0).unwrap();
    w.step(1).unwrap();
    let here = w.sessions[1].streams[0].received;
    assert!(w.sessions[1].want_read_point(1));
    w.step(1).unwrap();
    for at in [3, 0, 2] {
        w.step(at).unwrap();
        w.sessions[at].settle(&mut w.fabrics[at]); // as before a sleep: it answers
        w.fabrics[at].flush();
    }
    assert_eq!(w.sessions[1].poll_read_point(), None);
    w.step(1).unwrap();
    assert_eq!((here, w.sessions[1].poll_read_point()), (Position(16), Some(1)));
    assert!(
        w.delivered.iter().all(Vec::is_empty),
        "the last member hasn't got it: nobody can have delivered it"
    );
    w.settle();
    assert!(w.delivered.iter().all(|log| log.len() == 1));
}

/// The first member delivers a message of its own; the second, which hasn't, asks for a read point.
fn ask_of_what_another_delivered(w: &mut World) {
    w.send(0, b"delivered elsewhere");
    for at in [0, 1, 2, 0] {
        w.step(at).unwrap();
    }
    assert_eq!((w.delivered[0].len(), w.delivered[1].len()), (1, 0));
    assert!(w.sessions[1].want_read_point(1));
    w.sessions[1].exchange(&mut w.fabrics[1]).unwrap();
    w.fabrics[1].flush();
}

/// Asks at a member whose rows are old, of a message that another has delivered; returns what was due before and after it was delivered.
fn asks_with_old_rows(prepare: impl FnOnce(&mut Session)) -> [Option<u64>; 2] {
    let mut w = World::new(3, Guarantee::Atomic);
    w.settle();
    prepare(&mut w.sessions[1]);
    // The last row has come to member 0, and lies unseen at this one.
    ask_of_what_another_delivered(&mut w);
    for at in [0, 2] {
        w.step(at).unwrap();
        w.sessions[at].settle(&mut w.fabrics[at]);
        w.fabrics[at].flush();
    }
    w.pass();
    [Verdict::Later, Verdict::Taken].map(|verdict| {
        w.sessions[1].exchange(&mut w.fabrics[1]).unwrap();
        w.sessions[1].deliver(&mut w.fabrics[1], &mut |_: &mut Delivery<'_>| verdict).unwrap();
        w.sessions[1].poll_read_point()
    })
}

// The rows say what must be there once the answers have come, and not before.
#[test]
fn a_read_point_goes_by_what_the_rows_say_when_they_are_answered() {
    assert_eq!(asks_with_old_rows(|_| {}), [None, Some(1)]);
    #[cfg(feature = "mutants")]
    assert_eq!(asks_with_old_rows(|session| session.mutate(Mutant::EarlyFrontier)), [Some(1), None]);
}

/// Asks at a member that was told of nothing yet, of a message that its sender has delivered; returns what was due before it was delivered here.
fn asks_who_was_not_told(prepare: impl Fn(&mut Session)) -> Option<u64> {
    let mut w = World::costly(3);
    w.settle();
    w.sessions.iter_mut().for_each(prepare);
    ask_of_what_another_delivered(&mut w);
    w.pass();
    for at in [0, 2] {
        (0..8).for_each(|_| {
            w.sessions[at].exchange(&mut w.fabrics[at]).unwrap();
        });
        w.fabrics[at].flush();
    }
    w.pass();
    w.sessions[1].exchange(&mut w.fabrics[1]).unwrap();
    w.sessions[1].deliver(&mut w.fabrics[1], &mut |_: &mut Delivery<'_>| Verdict::Later).unwrap();
    w.sessions[1].poll_read_point()
}

// Where an acknowledgement is owed, it goes before the answer: else the frontier would be lowered below what was delivered.
#[test]
fn a_read_point_is_answered_after_what_was_received() {
    assert_eq!(asks_who_was_not_told(|_| {}), None);
    #[cfg(feature = "mutants")]
    assert_eq!(asks_who_was_not_told(|session| session.mutate(Mutant::AnswersFirst)), Some(1));
}

/// Keeps what it is given to write down, and what it is given to deliver.
#[derive(Default)]
struct Book {
    logged: Vec<(u64, u64, Vec<u8>)>,
    delivered: Vec<(u64, u64, Vec<u8>)>,
    /// What everybody has flushed, and whether it was this member's own.
    flushed: Vec<(u64, bool)>,
    ended: usize,
    is_full: bool,
    /// Takes nothing that is delivered.
    refuses: bool,
    /// Keeps what is delivered.
    keeps: bool,
    kept: Vec<Loan>,
}

impl Sink for Book {
    fn deliver(&mut self, delivery: &mut Delivery<'_>) -> Verdict {
        if self.refuses {
            return Verdict::Later;
        }
        if self.keeps {
            self.kept.extend(delivery.lend());
        }
        if delivery.kind == Kind::End {
            self.ended += 1;
            return Verdict::Taken;
        }
        assert_eq!(delivery.place().wrapping_add(SENT), delivery.payload.as_ptr());
        self.delivered.push((delivery.seq.0, delivery.stamp, delivery.payload.to_vec()));
        Verdict::Taken
    }

    fn log(&mut self, logged: &Logged<'_>) -> Option<u64> {
        if self.is_full {
            return None;
        }
        assert!(logged.memory.size() > logged.range.end);
        self.logged.push((logged.seq.0, logged.sent, logged.payload.to_vec()));
        Some(100 + logged.sent)
    }

    fn flushed(&mut self, flushed: &Flushed) {
        assert_eq!(flushed.seq.0 as usize, self.flushed.len());
        assert!(flushed.seq.0 < self.delivered.len() as u64, "delivered first");
        self.flushed.push((flushed.seq.0, flushed.ticket.is_some()));
    }
}

struct Durables {
    world: World,
    books: Vec<Book>,
}

impl Durables {
    fn new() -> Self {
        Self::of(Guarantee::Durable)
    }

    fn of(guarantee: Guarantee) -> Self {
        let world = World::new(3, guarantee);
        Self { world, books: (0..3).map(|_| Book::default()).collect() }
    }

    fn send(&self, at: usize, sent: u64, text: &[u8]) {
        self.world.send(at, &[&sent.to_le_bytes()[..], text].concat());
    }

    fn settle(&mut self) {
        let World { fabrics, sessions, now, .. } = &mut self.world;
        let (mut quiet, mut rounds) = (0, 0);
        while quiet < 3 {
            rounds += 1;
            assert!(rounds <= 100, "it never comes to rest");
            let mut any = false;
            for ((fabric, session), book) in fabrics.iter_mut().zip(sessions.iter_mut()).zip(&mut self.books)
            {
                *now = Time(now.0 + 1);
                fabric.poll(*now);
                any |= session.step(fabric, book).unwrap();
                session.settle(fabric);
                fabric.flush();
                session.frontiers().validate().unwrap();
            }
            quiet = if any { 0 } else { quiet + 1 };
        }
    }

    fn persist(&mut self, at: usize, word: u64) {
        let World { fabrics, sessions, .. } = &mut self.world;
        sessions[at].persist(&mut fabrics[at], word);
        fabrics[at].flush();
        self.settle();
    }

    fn counts(&self) -> Vec<(usize, usize)> {
        self.books.iter().map(|book| (book.logged.len(), book.delivered.len())).collect()
    }
}

// P1, P2
#[test]
fn what_is_durable_is_delivered_once_all_have_it() {
    let mut group = Durables::new();
    group.send(0, 7, b"one");
    group.send(1, 5, b"two");
    group.settle();
    assert_eq!(group.counts(), [(2, 0); 3], "written down everywhere, delivered nowhere");
    let blocked = group.world.sessions[0].blocked().unwrap();
    assert_eq!((blocked.clause, blocked.sender), ("P2", NodeId(1)), "{blocked}");
    group.persist(0, 3);
    group.persist(1, 3);
    group.persist(2, 1);
    assert_eq!(group.counts(), [(2, 0); 3], "the third has flushed no more than the view");
    let blocked = group.world.sessions[0].blocked().unwrap();
    assert!(blocked.waits_for == NodeId(3) && blocked.counter.contains("0 messages"), "{blocked}");
    group.persist(2, 2);
    assert_eq!(group.counts(), [(2, 1); 3]);
    group.persist(2, 3);
    for book in &group.books {
        assert_eq!(book.logged, [(0, 7, b"one".to_vec()), (1, 5, b"two".to_vec())]);
        assert_eq!(book.delivered, [(0, 107, b"one".to_vec()), (1, 105, b"two".to_vec())]);
    }
    assert_eq!(group.world.sessions[0].delivered(), Seq(2));
    assert_eq!(group.world.sessions[0].blocked(), None);
}

// P2: under `Logged` a message is delivered when it is stable, and what all have flushed is told on its own.
#[test]
fn what_is_logged_is_delivered_before_all_have_it() {
    let mut group = Durables::of(Guarantee::Logged);
    group.send(0, 7, b"one");
    group.send(1, 5, b"two");
    group.settle();
    assert_eq!(group.counts(), [(2, 2); 3]);
    assert_eq!(group.books[0].delivered, [(0, 107, b"one".to_vec()), (1, 105, b"two".to_vec())]);
    assert!(group.books.iter().all(|book| book.flushed.is_empty()));
    assert_eq!(group.world.sessions[0].delivered(), Seq(2));
    assert!(group.world.sessions[0].is_ahead());
    let blocked = group.world.sessions[0].blocked().unwrap();
    assert_eq!((blocked.clause, blocked.sender), ("P2", NodeId(1)), "its outcome waits: {blocked}");
    group.persist(0, 3);
    group.persist(1, 3);
    assert!(group.books.iter().all(|book| book.flushed.is_empty()), "the third has nothing yet");
    group.persist(2, 2);
    assert_eq!([0, 1].map(|at| group.books[at].flushed.clone()), [[(0, true)], [(0, false)]]);
    group.persist(2, 3);
    assert_eq!(group.books[1].flushed, [(0, false), (1, true)]);
    assert!(!group.world.sessions[0].is_ahead());
    // A read point is due when what was sent before it is delivered, whatever the logs have.
    group.send(2, 9, b"three");
    group.settle();
    assert!(group.world.sessions[0].want_read_point(1));
    group.settle();
    assert_eq!((group.world.sessions[0].poll_read_point(), group.books[0].flushed.len()), (Some(1), 2));
}

// P1, D11: the log writes from ring memory, so what is delivered ahead of it keeps its room until all have flushed it, and until every loan is back.
#[test]
fn what_is_delivered_ahead_keeps_its_room_until_it_is_flushed() {
    let mut group = Durables::of(Guarantee::Logged);
    (0..3).for_each(|at| group.persist(at, 1));
    let len = SENT + if cfg!(miri) { 892 } else { 92 };
    // Member 2 keeps the first of them alone.
    let fill = |group: &mut Durables| {
        group.books[1].keeps = true;
        let mut sent = 0_u64;
        loop {
            let Ok(mut room) = group.world.senders[0].try_reserve(len) else { return sent };
            room[..SENT].copy_from_slice(&1_u64.to_le_bytes());
            room.send();
            sent += 1;
            group.settle();
            group.books[1].keeps = false;
        }
    };
    let mut sent = fill(&mut group);
    assert_eq!(group.counts(), [(sent as usize, sent as usize); 3]);
    assert!(!group.world.sessions[1].has_own_work(), "nothing to do but to wait");
    let full = |group: &Durables| group.world.senders[0].try_reserve(len).is_err();
    (0..3).for_each(|at| group.persist(at, 1 + sent));
    assert!(full(&group), "one keeps the first");
    assert!(group.world.sessions[1].lends());
    group.books[1].kept.clear();
    assert!(group.world.sessions[1].has_own_work());
    group.settle();
    assert!(!full(&group));

    // The other way round: back, and not flushed.
    sent += fill(&mut group);
    group.books[1].kept.clear();
    group.settle();
    assert!(full(&group) && !group.world.sessions[1].lends() && !group.world.sessions[1].has_own_work());
    // All but the last is flushed: so much room is there.
    (0..3).for_each(|at| group.persist(at, sent));
    assert!(!full(&group));
}

// V4, P2: the end of a session is over when those who go on have it; what was delivered of it is not delivered again.
#[test]
fn the_end_of_a_session_that_delivers_ahead_waits_for_the_logs_too() {
    let mut group = Durables::of(Guarantee::Logged);
    (0..3).for_each(|at| group.persist(at, 1));
    group.send(0, 7, b"one");
    group.settle();
    group.books[0].refuses = true;
    group.send(0, 8, b"two");
    group.settle();
    assert_eq!(group.counts(), [(2, 1), (2, 2), (2, 2)]);
    let World { sessions, .. } = &mut group.world;
    let trim: Vec<_> = sessions[0].wedge().senders.iter().map(|sender| sender.received).collect();
    let book = &mut group.books[0];
    assert!(!sessions[0].cut(&trim, book).unwrap() && sessions[0].is_logged());
    sessions[0].all_persisted();
    assert!(!sessions[0].cut(&trim, book).unwrap(), "the second is not delivered");
    assert_eq!(book.flushed, [(0, true)]);
    book.refuses = false;
    assert!(sessions[0].cut(&trim, book).unwrap());
    assert_eq!((book.delivered.len(), book.flushed.len()), (2, 2));
}

// P2, against a member that delivers what it has flushed itself.
#[cfg(feature = "mutants")]
#[test]
fn a_member_that_looks_at_its_own_log_alone_is_noticed() {
    let mut group = Durables::new();
    group.world.sessions[0].mutate(Mutant::OwnLogOnly);
    group.send(0, 7, b"one");
    group.persist(0, 2);
    assert_eq!(group.counts(), [(1, 1), (1, 0), (1, 0)], "the test above would fail");
}

// P1, D11: what the disk can't keep up with keeps its room, and the senders wait.
#[test]
fn a_slow_disk_holds_the_senders_back() {
    let mut group = Durables::new();
    (0..3).for_each(|at| group.persist(at, 1));
    let len = SENT + if cfg!(miri) { 892 } else { 92 };
    let mut sent = 0;
    loop {
        let Ok(mut room) = group.world.senders[0].try_reserve(len) else { break };
        room[..SENT].copy_from_slice(&1_u64.to_le_bytes());
        room.send();
        sent += 1;
        group.settle();
    }
    assert!(sent * len > RING / 4 * 3, "{sent}");
    assert_eq!(group.counts(), [(sent, 0); 3]);
    (0..3).for_each(|at| group.persist(at, 1 + sent as u64));
    assert_eq!(group.counts(), [(sent, sent); 3]);
    assert!(group.world.senders[0].try_reserve(len).is_ok(), "there is room again");
    // A log that takes nothing stops only what is behind.
    group.books[1].is_full = true;
    group.send(2, 9, b"later");
    group.world.senders[2].try_end().unwrap();
    group.settle();
    assert_eq!((group.books[0].logged.len(), group.books[1].logged.len()), (sent + 1, sent));
    group.books[1].is_full = false;
    (0..3).for_each(|at| group.persist(at, 2 + sent as u64));
    assert_eq!(group.counts(), [(sent + 1, sent + 1); 3]);
    assert!(group.books.iter().all(|book| book.ended == 1));
}

// V4, P2: the last messages of a view are delivered once those who go on have them.
#[test]
fn the_end_of_a_durable_session_waits_for_who_goes_on() {
    let mut group = Durables::new();
    (0..3).for_each(|at| group.persist(at, 1));
    group.send(0, 7, b"one");
    group.send(0, 8, b"two");
    group.settle();
    group.persist(0, 2);
    let World { sessions, .. } = &mut group.world;
    let trim: Vec<_> = sessions[0].wedge().senders.iter().map(|sender| sender.received).collect();
    let book = &mut group.books[0];
    assert!(!sessions[0].cut(&trim, book).unwrap() && sessions[0].is_logged());
    assert_eq!((book.logged.len(), book.delivered.len()), (2, 0));
    sessions[0].all_persisted();
    assert!(sessions[0].cut(&trim, book).unwrap());
    assert_eq!(book.delivered.len(), 2);
}

// V4, P2: the next view may end before everyone has said that it has it; what the one before left must not wait for a view that waits for it.
#[test]
fn a_wedged_session_still_tells_what_is_written_down() {
    let mut group = Durables::new();
    group.settle();
    group.world.sessions.iter_mut().for_each(|session| drop(session.wedge()));
    let begun = |group: &mut Durables| {
        group.world.pass();
        group.world.sessions[0].begun(0).unwrap() == Begun::Everywhere
    };
    for at in 0..3 {
        assert!(!begun(&mut group), "{at} of 3 have said so");
        let World { fabrics, sessions, .. } = &mut group.world;
        sessions[at].persist(&mut fabrics[at], 1);
        fabrics[at].flush();
    }
    assert!(begun(&mut group));

    // A member that is lost is not waited for.
    let mut group = Durables::new();
    group.settle();
    let World { fabrics, sessions, .. } = &mut group.world;
    sessions.iter_mut().for_each(|session| drop(session.wedge()));
    for at in 0..2 {
        sessions[at].persist(&mut fabrics[at], 1);
        fabrics[at].flush();
    }
    assert!(!begun(&mut group), "the third may go on");
    group.world.sessions[0].lose(Slot(2));
    assert!(begun(&mut group));
    group.world.sessions[0].lose(Slot(1));
    let alone = &mut group.world.sessions[0];
    assert_eq!(
        alone.begun(0).unwrap(),
        Begun::AtTooFew,
        "the others may go on, and what have they written down?"
    );
    assert_eq!(alone.begun(2).unwrap(), Begun::Everywhere, "with two more that vote");
    // One that has not written it down itself has nothing to say.
    group.world.sessions[2].lose(Slot(0));
    group.world.sessions[2].lose(Slot(1));
    assert_eq!(group.world.sessions[2].begun(2).unwrap(), Begun::NotYet);
}

// S1
#[test]
fn a_message_too_short_for_its_clock_or_a_log_that_shrinks_is_blamed() {
    let mut group = Durables::new();
    group.persist(0, 3);
    let at = BASE + Layout::new(3).persisted();
    group.world.network.poke(0, 1, at, 1);
    let (fabric, session) = (&mut group.world.fabrics[1], &mut group.world.sessions[1]);
    let fault = session.step(fabric, &mut group.books[1]).unwrap_err();
    assert!(
        matches!(fault, Fault::Peer { node: NodeId(1), blame: Blame::Persisted { from: 3, to: 1 }, .. }),
        "{fault}"
    );

    let mut group = Durables::new();
    group.world.send(0, b"short");
    let mut blamed = None;
    for _ in 0..20 {
        for at in 0..3 {
            group.world.now = Time(group.world.now.0 + 1);
            let fabric = &mut group.world.fabrics[at];
            fabric.poll(group.world.now);
            blamed = group.world.sessions[at].step(fabric, &mut group.books[at]).err().or(blamed);
        }
    }
    assert!(
        matches!(blamed, Some(Fault::Peer { node: NodeId(1), blame: Blame::Record { .. }, .. })),
        "{blamed:?}"
    );
}
