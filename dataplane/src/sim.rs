//! The simulated fabric: every node of a test in one thread, links that delay, tear and break, in virtual time, all from
//! one seed. It keeps F1 to F5 and not a bit more than these, so that a protocol that leans on anything else falls.
//!
//! A publish becomes a list of words under way to one peer, due some time later but never before the publish ahead of it
//! on the same link. When it is due its words land in random order, and a look may come when only some have landed.
//! Ring bytes travel as they were when published; row words as they are when flushed.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use crate::fabric::{ConnectError, Doorbell, Fabric, FabricStats, LinkDown, LinkEvent};
use crate::memory::{Mirror, Segment, WORD};
use crate::names::{NodeId, PeerSet, Slot, Time};

/// A seeded source of choices (splitmix64): small, fast, the same everywhere. Not for secrets.
#[derive(Clone, Debug)]
pub struct Choices(u64);

impl Choices {
    /// Choices that follow from `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any 64 bits.
    pub fn any(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// A number below `end`; 0 if `end` is 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.any() % end.max(1)
    }

    /// True in `percent` of 100 cases.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// How the simulated network behaves.
#[derive(Clone, Copy, Debug)]
pub struct SimOptions {
    /// The least and the greatest delay of a publish.
    pub delay: (Duration, Duration),
    /// In how many of 100 looks a due publish has landed only in part.
    pub tearing: u64,
    /// Bytes of every node's segment.
    pub segment_bytes: usize,
}

struct Publish {
    due: Time,
    words: Vec<(usize, u64)>,
}

#[derive(Default)]
struct Link {
    under_way: VecDeque<Publish>,
    /// Frozen by the receiver (F4) or cut.
    dead: bool,
}

struct Node {
    id: NodeId,
    segment: Segment,
    /// What each other node published here, by its index.
    mirrors: Vec<Segment>,
    events: VecDeque<LinkEvent>,
    stats: FabricStats,
}

struct World {
    options: SimOptions,
    choices: Choices,
    now: Time,
    nodes: Vec<Node>,
    /// `links[from][to]`.
    links: Vec<Vec<Link>>,
    /// Links that were torn apart in the middle of a publish: counted, so that tests see that it happens.
    torn: u64,
}

/// The network under all nodes of one simulation.
#[derive(Clone)]
pub struct SimNetwork {
    world: Rc<RefCell<World>>,
}

/// One node's end of a [`SimNetwork`]. Its slots are the other nodes' indexes.
pub struct SimFabric {
    world: Rc<RefCell<World>>,
    me: usize,
    segment: Segment,
    mirrors: Vec<Mirror>,
    queued: Vec<(Queued, PeerSet)>,
    doorbell: Doorbell,
}

enum Queued {
    Ring(Vec<(usize, u64)>),
    Words(Range<usize>),
}

impl SimNetwork {
    /// A network of `nodes`, all linked to each other.
    pub fn new(seed: u64, nodes: &[NodeId], options: SimOptions) -> (Self, Vec<SimFabric>) {
        let n = nodes.len();
        let make = |id: &NodeId| Node {
            id: *id,
            segment: Segment::private(options.segment_bytes),
            mirrors: (0..n).map(|_| Segment::private(options.segment_bytes)).collect(),
            events: VecDeque::new(),
            stats: FabricStats::default(),
        };
        let world = Rc::new(RefCell::new(World {
            options,
            choices: Choices::new(seed),
            now: Time(0),
            nodes: nodes.iter().map(make).collect(),
            links: (0..n).map(|_| (0..n).map(|_| Link::default()).collect()).collect(),
            torn: 0,
        }));
        let fabrics = (0..n).map(|me| {
            let borrowed = world.borrow();
            let node = &borrowed.nodes[me];
            SimFabric {
                world: world.clone(),
                me,
                segment: node.segment.clone(),
                mirrors: node.mirrors.iter().map(Segment::mirror).collect(),
                queued: Vec::new(),
                doorbell: Doorbell::new(|| {}),
            }
        });
        let fabrics = fabrics.collect();
        (Self { world }, fabrics)
    }

    /// Sets the clock; it never goes back.
    pub fn advance_to(&self, now: Time) {
        let mut world = self.world.borrow_mut();
        world.now = world.now.max(now);
    }

    /// When the next publish is due, if any is under way on a live link.
    pub fn next_due(&self) -> Option<Time> {
        let world = self.world.borrow();
        let due = |link: &Link| if link.dead { None } else { link.under_way.front().map(|p| p.due) };
        world.links.iter().flatten().filter_map(due).min()
    }

    /// Loses everything under way from one node to another from now on, and tells both ends (F5).
    pub fn cut(&self, one: usize, other: usize) {
        let mut world = self.world.borrow_mut();
        for (from, to) in [(one, other), (other, one)] {
            let link = &mut world.links[from][to];
            if !link.dead {
                link.dead = true;
                link.under_way.clear();
                let event = LinkEvent::Down(slot(from), LinkDown::Broken("cut by the simulation".into()));
                world.nodes[to].events.push_back(event);
            }
        }
    }

    /// The node dies: what it published and is under way may still land in part, or not at all; the others are told.
    pub fn crash(&self, node: usize) {
        let mut world = self.world.borrow_mut();
        let n = world.nodes.len();
        for to in (0..n).filter(|to| *to != node) {
            // Keep a random part of what is under way: it has left the node.
            let len = world.links[node][to].under_way.len() as u64;
            let keep = world.choices.below(len + 1) as usize;
            world.links[node][to].under_way.truncate(keep);
        }
        for from in 0..n {
            world.links[from][node].dead = true;
        }
    }

    /// Replaces a word of `from`'s segment in `to`'s mirror: what a peer that breaks the protocol does.
    pub fn poke(&self, from: usize, to: usize, offset: usize, word: u64) {
        self.world.borrow().nodes[to].mirrors[from].store(offset, word);
    }

    /// How often a look found a publish landed in part.
    pub fn torn(&self) -> u64 {
        self.world.borrow().torn
    }
}

fn slot(index: usize) -> Slot {
    Slot(u8::try_from(index).unwrap_or(u8::MAX))
}

impl World {
    /// Lands what is due on the links to `to`. Returns whether any word landed.
    fn land(&mut self, to: usize) -> bool {
        let mut any = false;
        for from in 0..self.nodes.len() {
            let link = &mut self.links[from][to];
            if link.dead {
                continue;
            }
            while let Some(front) = link.under_way.front_mut() {
                if front.due > self.now {
                    break;
                }
                let mirror = &self.nodes[to].mirrors[from];
                let part = front.words.len() > 1 && self.choices.chance(self.options.tearing);
                let landing = if part {
                    1 + self.choices.below(front.words.len() as u64 - 1) as usize
                } else {
                    front.words.len()
                };
                any |= landing > 0;
                for _ in 0..landing {
                    let pick = self.choices.below(front.words.len() as u64) as usize;
                    let (offset, value) = front.words.swap_remove(pick);
                    mirror.store(offset, value);
                }
                if part {
                    self.torn += 1;
                    break;
                }
                link.under_way.pop_front();
            }
        }
        any
    }
}

impl Fabric for SimFabric {
    fn name(&self) -> &'static str {
        "sim"
    }

    fn segment(&self) -> &Segment {
        &self.segment
    }

    fn offer(&self) -> Vec<u8> {
        b"sim".to_vec()
    }

    fn connect(&mut self, slot: Slot, peer: NodeId, offer: &[u8], _: Duration) -> Result<(), ConnectError> {
        let mut world = self.world.borrow_mut();
        if offer != b"sim" || world.nodes.get(usize::from(slot.0)).is_none_or(|node| node.id != peer) {
            return Err(ConnectError::Offer("not an offer of this simulation".into()));
        }
        world.nodes[self.me].events.push_back(LinkEvent::Up(slot));
        Ok(())
    }

    fn mirror(&self, slot: Slot) -> Option<&Mirror> {
        self.mirrors.get(usize::from(slot.0))
    }

    fn publish_words(&mut self, range: Range<usize>, peers: PeerSet) {
        self.queued.push((Queued::Words(range), peers));
    }

    fn publish_ring(&mut self, range: Range<usize>, peers: PeerSet) {
        let words = range.step_by(WORD).map(|at| (at, self.segment.load(at))).collect();
        self.queued.push((Queued::Ring(words), peers));
    }

    fn flush(&mut self) {
        let mut world = self.world.borrow_mut();
        let world = &mut *world;
        for (queued, peers) in self.queued.drain(..) {
            let words = match queued {
                Queued::Ring(words) => words,
                Queued::Words(range) => range.step_by(WORD).map(|at| (at, self.segment.load(at))).collect(),
            };
            for peer in peers.iter().map(|s| usize::from(s.0)) {
                let link = &mut world.links[self.me][peer];
                if link.dead || peer == self.me {
                    continue;
                }
                let (least, most) = world.options.delay;
                let spread = (most.saturating_sub(least)).as_nanos() as u64;
                let delay = least.as_nanos() as u64 + world.choices.below(spread + 1);
                let due = Time(world.now.0 + delay).max(link.under_way.back().map_or(Time(0), |p| p.due));
                world.nodes[self.me].stats.bytes_out += (words.len() * WORD) as u64;
                link.under_way.push_back(Publish { due, words: words.clone() });
            }
        }
    }

    fn poll(&mut self, now: Time) -> bool {
        let mut world = self.world.borrow_mut();
        world.now = world.now.max(now);
        world.land(self.me)
    }

    fn wait(&mut self, _: Time, _: Time, idle: &mut dyn FnMut() -> bool) {
        // Virtual time: whoever schedules the nodes decides when this one looks again.
        idle();
    }

    fn doorbell(&self) -> Doorbell {
        self.doorbell.clone()
    }

    fn fence(&mut self, slot: Slot) {
        let mut world = self.world.borrow_mut();
        let (from, to) = (usize::from(slot.0), self.me);
        for (a, b) in [(from, to), (to, from)] {
            if let Some(link) = world.links.get_mut(a).and_then(|links| links.get_mut(b)) {
                link.dead = true;
                link.under_way.clear();
            }
        }
    }

    fn close(&mut self, _: Duration) {
        self.flush();
        let mut world = self.world.borrow_mut();
        let me = slot(self.me);
        for to in 0..world.nodes.len() {
            if to != self.me && !world.links[self.me][to].dead {
                world.nodes[to].events.push_back(LinkEvent::Down(me, LinkDown::Closed));
            }
        }
    }

    fn poll_event(&mut self) -> Option<LinkEvent> {
        self.world.borrow_mut().nodes[self.me].events.pop_front()
    }

    fn stats(&self) -> FabricStats {
        self.world.borrow().nodes[self.me].stats
    }
}
