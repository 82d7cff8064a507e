//! A node's whole table of control links, and peers that have its key, know how to seal, and say whatever the fuzzer likes,
//! while the node is told of peers, forgets them and begins anew (S1): nothing panics, what is held stays within its bounds,
//! and links go up and down in turn.
//!
//! The input is a script of three-byte commands, some followed by bytes.
//!
//! `cargo +nightly fuzz run --fuzz-dir control/fuzz links`
#![no_main]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use consort_control::link::frame::{Direction, Preamble, Seal};
use consort_control::link::message::{Hello, Message, Question, Standing};
use consort_control::link::table::{ConnectionId, GUESTS, LinkNews, Links, Random, Request, STRANGERS};
use consort_control::view::{Incarnation, Role};
use consort_dataplane::names::{NodeId, Time};
use libfuzzer_sys::fuzz_target;

const ME: u32 = 8;
/// Peers and seeds that the node is told of, at most.
const TOLD: usize = 32;

fn hello(node: u32, incarnation: u64) -> Hello {
    Hello {
        cluster: "fuzz".to_owned(),
        node: NodeId(node),
        incarnation: Incarnation(incarnation),
        engaged: None,
        address: address(node),
        standing: Standing::Joining,
        role: Role::Data,
        fabric: "sim".to_owned(),
        guarantee: "atomic".to_owned(),
        ring_bytes: 4096,
        state: false,
        domain: Default::default(),
        groups: 0,
        offer: Vec::new(),
        held: None,
    }
}

fn address(node: u32) -> SocketAddr {
    ([10, 0, 0, 1], node as u16).into()
}

/// The peer's end of a connection.
struct Peer {
    dialled: bool,
    preamble: Preamble,
    /// None before the node's preamble has come.
    seal: Option<Seal>,
    said_preamble: bool,
}

struct World {
    links: Links,
    peers: BTreeMap<ConnectionId, Peer>,
    up: BTreeMap<NodeId, Incarnation>,
    asked: Vec<ConnectionId>,
    nonce: u8,
    now: Time,
}

impl World {
    fn peer(&mut self, id: ConnectionId, dialled: bool) {
        self.nonce = self.nonce.wrapping_add(1);
        let preamble = Preamble::new(None, [self.nonce; 32]);
        self.peers.insert(id, Peer { dialled, preamble, seal: None, said_preamble: false });
    }

    fn bytes(&mut self, id: ConnectionId, bytes: &[u8]) {
        let judge =
            |hello: &Hello| if hello.ring_bytes == 4096 { Ok(()) } else { Err("rings differ".to_owned()) };
        self.links.on_bytes(id, self.now, bytes, &judge);
    }

    /// Says something, sealed as is right.
    fn say(&mut self, id: ConnectionId, body: &[u8]) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if !std::mem::replace(&mut peer.said_preamble, true) {
            let preamble = peer.preamble;
            self.bytes(id, preamble.bytes());
            self.settle();
        }
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let Some(seal) = &mut peer.seal else { return };
        let mut frame = Vec::new();
        seal.seal(body, &mut frame);
        self.bytes(id, &frame);
        self.settle();
    }

    /// Reads what the node says, and does what it wants.
    fn settle(&mut self) {
        loop {
            for id in self.links.talkative() {
                let Some(output) = self.links.output(id) else { continue };
                let bytes = std::mem::take(output);
                let Some(peer) = self.peers.get_mut(&id) else { continue };
                if let Ok(Some(theirs)) = Preamble::parse(&bytes)
                    && peer.seal.is_none()
                {
                    let (dialler, listener, direction) = if peer.dialled {
                        (&peer.preamble, &theirs, Direction::Out)
                    } else {
                        (&theirs, &peer.preamble, Direction::Back)
                    };
                    peer.seal = Some(Seal::new(None, dialler, listener, direction));
                }
            }
            match self.links.poll_request() {
                Some(Request::Dial(id, _)) => self.peer(id, false),
                Some(Request::Close(id, _)) => {
                    self.peers.remove(&id);
                }
                None => break,
            }
        }
        while let Some(news) = self.links.poll_news() {
            match news {
                LinkNews::Up(hello) => {
                    let old = self.up.insert(hello.node, hello.incarnation);
                    assert_eq!(old, None, "{} is up twice", hello.node);
                }
                LinkNews::Down { node, incarnation, .. } => {
                    assert_eq!(self.up.remove(&node), Some(incarnation), "{node} is down and wasn't up");
                }
                LinkNews::Said(node, message) => {
                    assert!(self.up.contains_key(&node), "{node} speaks and isn't up");
                    assert!(!matches!(
                        *message,
                        Message::Hello(_)
                            | Message::Proof
                            | Message::Use
                            | Message::Ask(_)
                            | Message::Answer { .. }
                    ));
                }
                LinkNews::Trouble(node, _) => assert!(!self.up.contains_key(&node), "{node} is up"),
                LinkNews::Unreached(..) => {}
                LinkNews::Asked(id, _) => self.asked.push(id),
            }
        }
    }
}

fuzz_target!(|script: &[u8]| {
    let mut links = Links::new(NodeId(ME), None, Random::new([1; 32]));
    links.restart(Time(0), Some(&hello(ME, 1)));
    let mut world = World {
        links,
        peers: BTreeMap::new(),
        up: BTreeMap::new(),
        asked: Vec::new(),
        nonce: 0,
        now: Time(0),
    };
    let mut script = script;
    while let [command, a, b, rest @ ..] = script {
        script = rest;
        let (node, now) = (u32::from(a % 16), world.now);
        let ids: Vec<_> = world.peers.keys().copied().collect();
        let id = ids.get(usize::from(*a) % ids.len().max(1)).copied();
        let mut take = || {
            let (taken, rest) = script.split_at(usize::from(*b).min(script.len()));
            script = rest;
            taken
        };
        match (command % 16, id) {
            (0, _) => {
                if let Some(id) = world.links.on_accepted(now) {
                    world.peer(id, true);
                    if *b >= 64 {
                        let hello = hello(node, u64::from(b % 4));
                        world.say(id, &Message::Proof.encode());
                        world.say(id, &Message::Hello(hello).encode());
                    }
                }
            }
            (1, Some(id)) => {
                let bytes = take();
                world.bytes(id, bytes);
            }
            (2, Some(id)) => world.say(id, &Message::Proof.encode()),
            (3, Some(id)) => {
                let hello = hello(u32::from(b % 16), u64::from(b / 16));
                world.say(id, &Message::Hello(hello).encode());
            }
            (4, Some(id)) => {
                let message = [Message::Use, Message::Alive, Message::Leaving, Message::Ready];
                world.say(id, &message[usize::from(b % 4)].encode());
            }
            (5, Some(id)) => world.say(id, &Message::Ask(Question::Explain).encode()),
            (6, Some(id)) => {
                let body = take();
                world.say(id, body);
            }
            (7, Some(id)) => {
                world.peers.remove(&id);
                world.links.on_closed(id, now, "closed");
            }
            (8, _) => {
                world.now = now.plus(Duration::from_millis(u64::from(*a) * u64::from(*b)));
                world.links.on_time(world.now);
                assert!(world.links.due().is_none_or(|due| due > world.now), "a date is due for ever");
            }
            (9, _) => world.links.know(NodeId(node), address(node + u32::from(*b % 2) * 100), now),
            (10, _) => {
                world.settle();
                world.links.forget(NodeId(node));
                world.up.remove(&NodeId(node));
            }
            (11, _) => world.links.seed(address(node), now),
            (12, _) => world.links.unseed(),
            (13, _) => {
                world.settle();
                let hello = hello(ME, u64::from(*a));
                world.links.restart(now, (b % 4 > 0).then_some(&hello));
                world.up.clear();
            }
            (14, _) => {
                if let Some(id) = world.asked.pop() {
                    world.links.answer(id, &"x".repeat(usize::from(*b)));
                }
            }
            (15, _) => world.links.send(NodeId(node), &Message::Alive),
            _ => {}
        }
        world.settle();
        assert!(world.peers.len() <= STRANGERS + GUESTS + 2 * TOLD, "{} connections", world.peers.len());
    }
});
