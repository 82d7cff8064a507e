//! A member whose peer writes whatever the fuzzer likes into its row and its ring (S1): the session may blame it, and must
//! not panic, loop, or deliver a byte from outside the peer's ring.
//!
//! The input is a script of three-byte-led commands: where to write (row word, tag, ring word, or a plausible head or
//! record), what, and when to step. At the end the session is wedged, and a peer supplies whatever the rest of the script says.
#![no_main]

use std::time::Duration;

use consort_dataplane::fabric::Fabric;
use consort_dataplane::layout::Layout;
use consort_dataplane::names::{NodeId, Rank, Slot, Time, ViewId};
use consort_dataplane::plan::{Guarantee, Member, SessionPlan, Topology};
use consort_dataplane::record::{Header, Kind};
use consort_dataplane::session::{Delivery, Session, Verdict};
use consort_dataplane::sim::{SimNetwork, SimOptions};
use libfuzzer_sys::fuzz_target;

const RING: usize = 4096;
const VIEW: ViewId = ViewId(1);
const BASE: usize = SessionPlan::base(VIEW, RING);

fuzz_target!(|script: &[u8]| {
    let Some((&first, mut script)) = script.split_first() else { return };
    let guarantee = [Guarantee::Fifo, Guarantee::Agreed, Guarantee::Atomic, Guarantee::Durable][usize::from(first % 4)];
    let options = SimOptions {
        delay: (Duration::ZERO, Duration::ZERO),
        tearing: 0,
        segment_bytes: SessionPlan::segment_bytes(RING),
        relays: false,
        publishing_costs: true,
    };
    let nodes = [NodeId(1), NodeId(2), NodeId(3)];
    let (network, mut fabrics) = SimNetwork::linked(1, &nodes, options);
    let members = (0..3u8)
        .map(|rank| Member {
            node: nodes[usize::from(rank)],
            slot: (rank != 0).then_some(Slot(rank)),
            base: BASE,
        })
        .collect();
    let plan = SessionPlan { view: VIEW, members, me: Rank(0), ring_bytes: RING, guarantee, topology: Topology::Direct };
    let fabric = &mut fabrics[0];
    let (mut session, sender) = Session::start(plan, fabric).expect("a sound plan");
    let layout = Layout::new(3);
    // Nothing that an unborn peer writes is read: half of the scripts begin with all born.
    if first < 128 {
        for peer in [1, 2] {
            network.poke(peer, 0, BASE + layout.tag(), VIEW.0);
        }
    }
    let mut now = 0;
    let mut loans = Vec::new();
    while let [command, a, b, rest @ ..] = script {
        script = rest;
        let peer = 1 + usize::from(command >> 7);
        let mut word = [0; 8];
        let value = |word: &mut [u8; 8], script: &mut &[u8]| {
            let take = script.len().min(8);
            word[..take].copy_from_slice(&script[..take]);
            *script = &script[take..];
            u64::from_le_bytes(*word)
        };
        match command & 7 {
            0 => {
                let place = usize::from(*a) % (layout.end() / 8 + 1) * 8;
                let to = BASE + if place == layout.end() { layout.tag() } else { place };
                let what = value(&mut word, &mut script);
                network.poke(peer, 0, to, what);
            }
            1 => {
                let to = BASE + layout.ring() + (usize::from(*a) * 2 + usize::from(*b & 1)) * 8 % RING;
                let what = value(&mut word, &mut script);
                network.poke(peer, 0, to, what);
            }
            // A head of `a` words and promise `b`.
            2 => network.poke(peer, 0, BASE, u64::from(*a) << 32 | u64::from(*b)),
            3 => {
                let kind = [Kind::Data, Kind::Pad, Kind::End][usize::from(command >> 3) % 3];
                let header = Header { len: usize::from(*b) * 8, kind, round: u32::from(command >> 5 & 3) };
                network.poke(peer, 0, BASE + layout.ring() + usize::from(*a) % 512 * 8, header.word());
            }
            4 => {
                let to = BASE + layout.received(usize::from(*a) % 3);
                network.poke(peer, 0, to, u64::from(*b) * 8);
            }
            5 => {
                if let Ok(room) = sender.try_reserve(usize::from(*a)) {
                    room.send();
                }
            }
            6 if command >> 3 == 31 => break,
            6 => loans.clear(),
            _ => {
                now += 1;
                fabric.poll(Time(now));
                let mut sink = |delivery: &mut Delivery<'_>| {
                    assert!(delivery.payload.len() <= RING, "more than a ring was delivered");
                    std::hint::black_box(delivery.payload.iter().fold(0u8, |a, b| a ^ b));
                    loans.extend(delivery.lend());
                    Verdict::Taken
                };
                if session.step(fabric, &mut sink).is_err() {
                    return;
                }
                session.blocked();
                session.frontiers().validate().expect("sound frontiers");
            }
        }
    }
    // Whatever the peer wrote, a view change can wedge it, supply it, and cut what was received.
    let received = session.wedge().senders[1].received;
    let had = session.read(Rank(1), received..received);
    assert_eq!(had, Some(Vec::new()), "nothing is always here");
    let _ = session.supply(Rank(1), received, script);
    let frozen = session.frontiers();
    frozen.validate().expect("sound frontiers");
    let trim: Vec<_> = frozen.senders.iter().map(|s| s.received).collect();
    let _ = session.cut(&trim, &mut |_: &mut Delivery<'_>| Verdict::Taken);
});
