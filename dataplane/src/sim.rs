//! The simulated fabric: every node of a test in one thread, links that delay, tear and break, in virtual time, all from
//! one seed. It keeps F1 to F5 and not a bit more than these, so that a protocol that leans on anything else falls.
//!
//! A publish becomes a list of words under way to one peer, due some time later but never before the publish ahead of it
//! on the same link. When it is due its words land in random order, and a look may come when only some have landed.
//! Bytes and words travel as they were when published.

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

/// Words under way; when they have landed, the link ends if `end` says so.
struct Publish {
    due: Time,
    words: Vec<(usize, u64)>,
    end: Option<LinkDown>,
}

/// One direction between two nodes.
#[derive(Default)]
struct Link {
    under_way: VecDeque<Publish>,
    state: LinkState,
}

#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum LinkState {
    /// Nobody asked for it.
    #[default]
    None,
    /// The node at its start asked for it, and waits for the other until then.
    Asked(Time),
    /// It carries what is published.
    Up,
    /// It was fenced, cut, closed, or its time ran out.
    Dead,
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
    /// Words and their values, for whom: as they were when published, which F1 allows for both kinds.
    queued: Vec<(Vec<(usize, u64)>, PeerSet)>,
    doorbell: Doorbell,
}

/// What every simulated node says to be linked to.
const OFFER: &[u8] = b"consort-sim";

impl SimNetwork {
    /// A network of `nodes`, all linked to each other from the start.
    pub fn linked(seed: u64, nodes: &[NodeId], options: SimOptions) -> (Self, Vec<SimFabric>) {
        let (network, fabrics) = Self::new(seed, nodes, options);
        for link in network.world.borrow_mut().links.iter_mut().flatten() {
            link.state = LinkState::Up;
        }
        (network, fabrics)
    }

    /// A network of `nodes`, not linked yet.
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
        world.links.iter().flatten().filter_map(|link| link.under_way.front().map(|p| p.due)).min()
    }

    /// Loses everything under way between two nodes from now on, and tells both (F5).
    pub fn cut(&self, one: usize, other: usize) {
        let mut world = self.world.borrow_mut();
        for (from, to) in [(one, other), (other, one)] {
            if world.kill(from, to) {
                let event = LinkEvent::Down(slot(from), LinkDown::Broken("cut by the simulation".into()));
                world.nodes[to].events.push_back(event);
            }
        }
    }

    /// The node dies: of what it published and is under way a random part still lands; then the others are told.
    pub fn crash(&self, node: usize) {
        let mut world = self.world.borrow_mut();
        for to in (0..world.nodes.len()).filter(|to| *to != node) {
            let len = world.links[node][to].under_way.len() as u64;
            let keep = world.choices.below(len + 1) as usize;
            world.links[node][to].under_way.truncate(keep);
            world.send(node, to, Vec::new(), Some(LinkDown::Broken("the node crashed".into())));
            world.kill(to, node);
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
    /// Puts words under way, due after all that is under way already.
    fn send(&mut self, from: usize, to: usize, words: Vec<(usize, u64)>, end: Option<LinkDown>) {
        if self.links[from][to].state != LinkState::Up {
            return;
        }
        let (least, most) = self.options.delay;
        let spread = most.saturating_sub(least).as_nanos() as u64;
        let delay = least.as_nanos() as u64 + self.choices.below(spread + 1);
        let link = &mut self.links[from][to];
        let due = Time(self.now.0 + delay).max(link.under_way.back().map_or(Time(0), |p| p.due));
        self.nodes[from].stats.bytes_out += (words.len() * WORD) as u64;
        link.under_way.push_back(Publish { due, words, end });
    }

    /// Ends one direction; whatever is under way is lost. Returns whether it was up.
    fn kill(&mut self, from: usize, to: usize) -> bool {
        let link = &mut self.links[from][to];
        link.under_way.clear();
        std::mem::replace(&mut link.state, LinkState::Dead) == LinkState::Up
    }

    /// Lands what is due on the links to `to`, and gives up links that nobody answered. Returns whether anything came.
    fn land(&mut self, to: usize) -> bool {
        let mut any = false;
        for from in 0..self.nodes.len() {
            if let LinkState::Asked(until) = self.links[to][from].state
                && until <= self.now
            {
                self.links[to][from].state = LinkState::Dead;
                let why = LinkDown::Failed("the peer did not link in time".into());
                self.nodes[to].events.push_back(LinkEvent::Down(slot(from), why));
                any = true;
            }
            while let Some(mut front) = self.links[from][to].under_way.pop_front() {
                if front.due > self.now {
                    self.links[from][to].under_way.push_front(front);
                    break;
                }
                let mirror = &self.nodes[to].mirrors[from];
                let part = front.words.len() > 1 && self.choices.chance(self.options.tearing);
                let landing = match front.words.len() {
                    len if part => 1 + self.choices.below(len as u64 - 1) as usize,
                    len => len,
                };
                any |= landing > 0 || front.end.is_some();
                for _ in 0..landing {
                    let pick = self.choices.below(front.words.len() as u64) as usize;
                    let (offset, value) = front.words.swap_remove(pick);
                    mirror.store(offset, value);
                }
                if part {
                    self.torn += 1;
                    self.links[from][to].under_way.push_front(front);
                    break;
                }
                if let Some(why) = front.end {
                    self.kill(from, to);
                    self.kill(to, from);
                    self.nodes[to].events.push_back(LinkEvent::Down(slot(from), why));
                }
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
        OFFER.to_vec()
    }

    fn connect(
        &mut self,
        to: Slot,
        peer: NodeId,
        offer: &[u8],
        within: Duration,
    ) -> Result<(), ConnectError> {
        let mut world = self.world.borrow_mut();
        let (me, other) = (self.me, usize::from(to.0));
        let known = world.nodes.get(other).is_some_and(|node| node.id == peer && other != me);
        if offer != OFFER || !known {
            return Err(ConnectError::Offer("not an offer of a node of this simulation".into()));
        }
        if world.links[me][other].state != LinkState::None {
            return Err(ConnectError::Taken(to));
        }
        world.links[me][other].state = LinkState::Asked(world.now.plus(within));
        if let LinkState::Asked(_) = world.links[other][me].state {
            for (from, to) in [(me, other), (other, me)] {
                world.links[from][to].state = LinkState::Up;
                world.nodes[to].events.push_back(LinkEvent::Up(slot(from)));
            }
        }
        Ok(())
    }

    fn mirror(&self, of: Slot) -> Option<&Mirror> {
        let other = usize::from(of.0);
        let state = self.world.borrow().links.get(self.me)?.get(other)?.state;
        matches!(state, LinkState::Up | LinkState::Dead).then(|| &self.mirrors[other])
    }

    fn publish_words(&mut self, range: Range<usize>, peers: PeerSet) {
        let words = range.step_by(WORD).map(|at| (at, self.segment.load(at))).collect();
        self.queued.push((words, peers));
    }

    fn publish_ring(&mut self, range: Range<usize>, peers: PeerSet) {
        self.publish_words(range, peers);
    }

    fn flush(&mut self) {
        let mut world = self.world.borrow_mut();
        let nodes = world.nodes.len();
        for (words, peers) in self.queued.drain(..) {
            for peer in peers.iter().map(|s| usize::from(s.0)).filter(|peer| *peer < nodes) {
                world.send(self.me, peer, words.clone(), None);
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

    fn fence(&mut self, peer: Slot) {
        let mut world = self.world.borrow_mut();
        let other = usize::from(peer.0);
        if other < world.nodes.len() && other != self.me && world.kill(other, self.me) {
            // The peer finds its link reset, some time later.
            world.send(self.me, other, Vec::new(), Some(LinkDown::Broken("fenced by the peer".into())));
        }
    }

    fn close(&mut self, _: Duration) {
        self.flush();
        let mut world = self.world.borrow_mut();
        for to in (0..world.nodes.len()).filter(|to| *to != self.me) {
            world.send(self.me, to, Vec::new(), Some(LinkDown::Closed));
        }
    }

    fn poll_event(&mut self) -> Option<LinkEvent> {
        self.world.borrow_mut().nodes[self.me].events.pop_front()
    }

    fn stats(&self) -> FabricStats {
        self.world.borrow().nodes[self.me].stats
    }
}
