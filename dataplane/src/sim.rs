//! The simulated fabric: every node of a test in one thread, links that delay, tear and break, in virtual time, all from
//! one seed. It keeps F1 to F6 and not a bit more than these, so that a protocol that leans on anything else falls.
//!
//! A publish becomes a list of words under way to one peer, due some time later but never before the publish ahead of it
//! on the same link. When it is due its words land in random order, and a look may come when only some have landed.
//! Bytes and words travel as they were when published.
//!
//! # Nodes come and go
//! Each call of [`SimNetwork::add`] makes an *end*: one incarnation of a node, with a number of its own. A node that restarts
//! is another end under the same name, and its offer says which. Links are made by both ends' `connect`, in slots that
//! each chooses for itself, and come up at different times at the two of them. A slot that was fenced is free, and nothing
//! of the old link is seen in it again. Every link has a mirror of its own, zero at first. What need not be kept of a mirror
//! is zero after a fence, and memory that is renewed is zero or not, as it happens; at the
//! peers too, where nothing is relayed.
//!
//! # Trouble
//! | what | what the others learn |
//! |---|---|
//! | [`SimNetwork::cut`] | both ends are told at once (F5) |
//! | [`SimNetwork::crash`] | a part of what was under way, and then that it broke |
//! | [`SimNetwork::crash_silently`] | a part of what was under way, and then nothing ever |
//! | [`SimNetwork::cut_one_way`] | nothing, until [`SimNetwork::heal`] |
//! | not polling an end | nothing: a pause is made by leaving it alone |

pub mod disk;

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::fabric::{
    ConnectError, Doorbell, FABRIC_PAGE, Fabric, FabricStats, Kept, LinkDown, LinkEvent, Relaying, RenewError,
};
use crate::memory::{Mirror, Segment, WORD};
use crate::names::{MAX_NODES, NodeId, PeerSet, Slot, Time};

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
    /// Bytes can be relayed (F6). A renewal changes nothing at the peers then.
    pub relays: bool,
    /// What the fabric says of itself: [`Fabric::publishing_costs`].
    pub publishing_costs: bool,
}

/// Words by their offsets, with their values.
type Words = Vec<(usize, u64)>;

/// Words under way, and what happens to the link once they have landed.
struct Publish {
    due: Time,
    words: Words,
    /// The end whose mirror they are for, if not that of the end that sends them (F6).
    origin: Option<usize>,
    then: Option<Then>,
}

/// Words that were published or relayed and not flushed.
struct Queued {
    words: Words,
    origin: Option<usize>,
    peers: PeerSet,
}

/// A part of a mirror in which relayed words may land.
struct Allowed {
    origin: Slot,
    range: Range<usize>,
    by: Slot,
}

enum Then {
    Up,
    Down(LinkDown),
}

/// One end's side of a link, and what is under way to it.
struct Hold {
    /// The other end.
    peer: usize,
    phase: Phase,
    /// The link's number, the same at both ends, and the slot that the other has it in; once it has answered.
    link: Option<(u64, usize)>,
    /// What the other published here.
    mirror: Option<Segment>,
    under_way: VecDeque<Publish>,
    /// What vanished in a cut that nobody knows of, and everything behind it (F1).
    withheld: VecDeque<(Words, Option<usize>, Option<Then>)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// This end asked for it, and waits until then for the other to answer.
    Asked(Time),
    /// The other has answered, which this end hasn't learned yet; it still waits until then.
    Answered(Time),
    /// It carries what is published.
    Up,
    /// It broke, or was closed, or its time ran out.
    Over,
}

/// One incarnation of a node.
struct End {
    id: NodeId,
    /// It has neither crashed nor was it closed.
    lives: bool,
    /// By slot.
    holds: Vec<Option<Hold>>,
    allowed: Vec<Allowed>,
    events: VecDeque<LinkEvent>,
    stats: FabricStats,
}

struct World {
    options: SimOptions,
    choices: Choices,
    now: Time,
    ends: Vec<End>,
    /// Links made so far.
    links: u64,
    /// What is published from the one to the other vanishes.
    cuts: BTreeSet<(NodeId, NodeId)>,
    /// Publishes that were seen in part: counted, so that tests see that it happens.
    torn: u64,
}

/// The network under all nodes of one simulation. Clones are handles to the same network. Ends are named by number, in the
/// order in which they were added, from 0.
#[derive(Clone)]
pub struct SimNetwork {
    world: Arc<Mutex<World>>,
}

/// One end of a [`SimNetwork`]: what one incarnation of a node has of it.
pub struct SimFabric {
    world: Arc<Mutex<World>>,
    me: usize,
    segment: Segment,
    /// By slot: of the link that came up there.
    mirrors: Vec<Option<Mirror>>,
    /// Words and their values as they were when published, which F1 allows for both kinds.
    queued: Vec<Queued>,
    doorbell: Doorbell,
}

/// What every simulated end says to be linked to; its number follows.
const OFFER: &[u8] = b"consort-sim";

impl SimNetwork {
    /// A network with nobody in it.
    pub fn empty(seed: u64, options: SimOptions) -> Self {
        let world = World {
            options,
            choices: Choices::new(seed),
            now: Time(0),
            ends: Vec::new(),
            links: 0,
            cuts: BTreeSet::new(),
            torn: 0,
        };
        Self { world: Arc::new(Mutex::new(world)) }
    }

    /// A network of `nodes`, not linked yet.
    pub fn new(seed: u64, nodes: &[NodeId], options: SimOptions) -> (Self, Vec<SimFabric>) {
        let network = Self::empty(seed, options);
        let fabrics = nodes.iter().map(|node| network.add(*node)).collect();
        (network, fabrics)
    }

    /// A network of `nodes`, all linked to each other from the start, each in the slot of its place among them.
    pub fn linked(seed: u64, nodes: &[NodeId], options: SimOptions) -> (Self, Vec<SimFabric>) {
        let (network, mut fabrics) = Self::new(seed, nodes, options);
        let mut world = network.lock();
        for one in 0..nodes.len() {
            for other in 0..one {
                world.links += 1;
                for (me, peer) in [(one, other), (other, one)] {
                    let mirror = Segment::private(options.segment_bytes);
                    fabrics[me].mirrors[peer] = Some(mirror.mirror());
                    let link = Some((world.links, me));
                    world.ends[me].holds[peer] = Some(Hold {
                        phase: Phase::Up,
                        link,
                        mirror: Some(mirror),
                        ..Hold::new(peer, Time(0))
                    });
                }
            }
        }
        drop(world);
        (network, fabrics)
    }

    /// Another end: a node that is new, or one that starts again.
    pub fn add(&self, node: NodeId) -> SimFabric {
        let mut world = self.lock();
        world.ends.push(End {
            id: node,
            lives: true,
            holds: (0..MAX_NODES).map(|_| None).collect(),
            allowed: Vec::new(),
            events: VecDeque::new(),
            stats: FabricStats::default(),
        });
        SimFabric {
            world: self.world.clone(),
            me: world.ends.len() - 1,
            segment: Segment::private(world.options.segment_bytes),
            mirrors: vec![None; MAX_NODES],
            queued: Vec::new(),
            doorbell: Doorbell::new(|| {}),
        }
    }

    /// The number of the last end added for `node`.
    pub fn end_of(&self, node: NodeId) -> Option<usize> {
        self.lock().ends.iter().rposition(|end| end.id == node)
    }

    /// Sets the clock; it never goes back.
    pub fn advance_to(&self, now: Time) {
        let mut world = self.lock();
        world.now = world.now.max(now);
    }

    /// When the next publish is due, if any is under way on a live link.
    pub fn next_due(&self) -> Option<Time> {
        let world = self.lock();
        let holds = world.ends.iter().flat_map(|end| &end.holds).flatten();
        holds.filter_map(|hold| hold.under_way.front().map(|publish| publish.due)).min()
    }

    /// Loses everything under way between two ends, breaks their link, and tells both (F5).
    pub fn cut(&self, one: usize, other: usize) {
        let mut world = self.lock();
        for (from, to) in [(one, other), (other, one)] {
            for slot in world.slots(to, from) {
                world.end_now(to, slot, LinkDown::Broken("cut by the simulation".into()));
            }
        }
    }

    /// From now on what is published by `from` to `to`, whichever ends of these nodes, vanishes, and nobody is told. What is
    /// under way still lands, and what `to` publishes to `from` arrives. No link comes up between the two.
    pub fn cut_one_way(&self, from: NodeId, to: NodeId) {
        self.lock().cuts.insert((from, to));
    }

    /// Ends a [`SimNetwork::cut_one_way`]. Of each link in which something vanished either all of it arrives late, as if
    /// it had been sent again, or the link turns out to be broken: never a later publish without an earlier one (F1).
    pub fn heal(&self, from: NodeId, to: NodeId) {
        let mut world = self.lock();
        world.cuts.remove(&(from, to));
        world.heal(from, to);
    }

    /// The end dies: of what it published and is under way a random part still lands; then the others are told (F5).
    pub fn crash(&self, end: usize) {
        self.lock().crash(end, true);
    }

    /// As [`SimNetwork::crash`], but nobody is told: its machine is gone too.
    pub fn crash_silently(&self, end: usize) {
        self.lock().crash(end, false);
    }

    /// Replaces a word of `from`'s segment in `to`'s mirror: what a peer that breaks the protocol does.
    pub fn poke(&self, from: usize, to: usize, offset: usize, word: u64) {
        let world = self.lock();
        for slot in world.slots(to, from) {
            if let Some(mirror) = world.ends[to].holds[slot].as_ref().and_then(|hold| hold.mirror.as_ref()) {
                mirror.store(offset, word);
            }
        }
    }

    /// How often a look found a publish landed in part.
    pub fn torn(&self) -> u64 {
        self.lock().torn
    }

    fn lock(&self) -> MutexGuard<'_, World> {
        lock(&self.world)
    }
}

/// A test that panicked with the lock held has failed anyhow.
fn lock(world: &Mutex<World>) -> MutexGuard<'_, World> {
    world.lock().unwrap_or_else(PoisonError::into_inner)
}

fn relayable(range: &Range<usize>, size: usize) {
    assert!(
        range.start.is_multiple_of(WORD) && range.len().is_multiple_of(WORD),
        "relayed bytes {range:?} are no whole words"
    );
    assert!(FABRIC_PAGE <= range.start && range.end <= size, "relayed bytes {range:?} of a mirror of {size}");
}

fn slot(index: usize) -> Slot {
    Slot(u8::try_from(index).unwrap_or(u8::MAX))
}

impl Hold {
    fn new(peer: usize, until: Time) -> Self {
        Self {
            peer,
            phase: Phase::Asked(until),
            link: None,
            mirror: None,
            under_way: VecDeque::new(),
            withheld: VecDeque::new(),
        }
    }

    /// The other end, and its mirror, which others may relay to until it is fenced: that its link broke doesn't matter.
    fn relayed_to(&self) -> Option<(usize, Segment)> {
        Some((self.peer, self.mirror.clone()?))
    }

    /// Nothing lands here any more.
    fn end(&mut self) {
        self.phase = Phase::Over;
        self.under_way.clear();
        self.withheld.clear();
    }
}

impl World {
    /// In which slots `end` has links to `peer` that are there or coming up.
    fn slots(&self, end: usize, peer: usize) -> Vec<usize> {
        let linked = |hold: &Hold| hold.peer == peer && matches!(hold.phase, Phase::Answered(_) | Phase::Up);
        let holds = self.ends[end].holds.iter().enumerate();
        holds.filter(|(_, hold)| hold.as_ref().is_some_and(linked)).map(|(slot, _)| slot).collect()
    }

    /// Where what `end` publishes in `slot` goes to, if the other side of the link is still there.
    fn other_side(&self, end: usize, slot: usize) -> Option<(usize, usize)> {
        let hold = self.ends[end].holds[slot].as_ref()?;
        let (link, far) = hold.link?;
        let other = self.ends[hold.peer].holds[far].as_ref()?;
        let there = other.phase != Phase::Over && other.link.is_some_and(|(number, _)| number == link);
        there.then_some((hold.peer, far))
    }

    /// Puts words under way, due after all that is under way already.
    fn send(
        &mut self,
        from: usize,
        from_slot: usize,
        words: Words,
        origin: Option<usize>,
        then: Option<Then>,
    ) {
        let Some((to, slot)) = self.other_side(from, from_slot) else { return };
        self.ends[from].stats.bytes_out += (words.len() * WORD) as u64;
        let vanishes = self.cuts.contains(&(self.ends[from].id, self.ends[to].id));
        let Some(hold) = &mut self.ends[to].holds[slot] else { return };
        if vanishes || !hold.withheld.is_empty() {
            hold.withheld.push_back((words, origin, then));
        } else {
            self.put(to, slot, words, origin, then);
        }
    }

    fn put(&mut self, to: usize, slot: usize, words: Words, origin: Option<usize>, then: Option<Then>) {
        let (least, most) = self.options.delay;
        let spread = most.saturating_sub(least).as_nanos() as u64;
        let delay = least.as_nanos() as u64 + self.choices.below(spread + 1);
        let Some(hold) = &mut self.ends[to].holds[slot] else { return };
        let due = Time(self.now.0 + delay).max(hold.under_way.back().map_or(Time(0), |publish| publish.due));
        hold.under_way.push_back(Publish { due, words, origin, then });
    }

    /// Ends a link at one of its ends, which is told.
    fn end_now(&mut self, end: usize, at: usize, why: LinkDown) {
        let End { holds, events, .. } = &mut self.ends[end];
        if let Some(hold) = &mut holds[at] {
            hold.end();
            events.push_back(LinkEvent::Down(slot(at), why));
        }
    }

    /// Makes a link if both ends ask for it and can reach each other.
    fn pair(&mut self, me: usize, my_slot: usize) {
        let asks = |end: &End, at: usize, peer: usize| match &end.holds[at] {
            Some(Hold { phase: Phase::Asked(until), peer: of, .. }) if *of == peer => Some(*until),
            _ => None,
        };
        let Some(peer) = self.ends[me].holds[my_slot].as_ref().map(|hold| hold.peer) else { return };
        let Some(mine) = asks(&self.ends[me], my_slot, peer) else { return };
        let (id, other) = (self.ends[me].id, self.ends[peer].id);
        let answer = (0..MAX_NODES).find_map(|at| Some((at, asks(&self.ends[peer], at, me)?)));
        let Some((far, theirs)) = answer else { return };
        if self.cuts.contains(&(id, other)) || self.cuts.contains(&(other, id)) {
            return;
        }
        self.links += 1;
        let sides = [(me, my_slot, far, mine), (peer, far, my_slot, theirs)];
        for (end, at, far, until) in sides {
            if let Some(hold) = &mut self.ends[end].holds[at] {
                (hold.phase, hold.link) = (Phase::Answered(until), Some((self.links, far)));
            }
        }
        for (end, at, ..) in sides {
            self.send(end, at, Vec::new(), None, Some(Then::Up));
        }
    }

    fn heal(&mut self, from: NodeId, to: NodeId) {
        for end in 0..self.ends.len() {
            for at in 0..MAX_NODES {
                let Some(Hold { peer, link, .. }) = self.ends[end].holds[at] else { continue };
                if self.ends[end].id != to || self.ends[peer].id != from {
                    continue;
                }
                let hold = self.ends[end].holds[at].as_mut();
                let withheld = hold.map(|hold| std::mem::take(&mut hold.withheld)).unwrap_or_default();
                if !withheld.is_empty() && self.choices.chance(50) {
                    let why = || LinkDown::Broken("given up after a silence".into());
                    if let Some((_, far)) = link
                        && self.other_side(peer, far) == Some((end, at))
                    {
                        self.end_now(peer, far, why());
                    }
                    self.put(end, at, Vec::new(), None, Some(Then::Down(why())));
                } else {
                    for (words, origin, then) in withheld {
                        self.put(end, at, words, origin, then);
                    }
                }
            }
        }
        for end in 0..self.ends.len() {
            for at in 0..MAX_NODES {
                self.pair(end, at);
            }
        }
    }

    fn crash(&mut self, end: usize, proof: bool) {
        for at in 0..MAX_NODES {
            let Some((to, far)) = self.other_side(end, at) else { continue };
            if let Some(hold) = &mut self.ends[to].holds[far] {
                // A beginning of all of it: what a cut withholds comes after the rest, and not without it (F1).
                let (first, all) = (hold.under_way.len(), hold.under_way.len() + hold.withheld.len());
                let keep = self.choices.below(all as u64 + 1) as usize;
                hold.under_way.truncate(keep);
                hold.withheld.truncate(keep.saturating_sub(first));
            }
            if proof {
                let why = LinkDown::Broken("the node crashed".into());
                self.send(end, at, Vec::new(), None, Some(Then::Down(why)));
            }
        }
        let End { lives, holds, events, .. } = &mut self.ends[end];
        *lives = false;
        holds.fill_with(|| None);
        events.clear();
    }

    /// Lands what is due at `to`, and gives up links that nobody answered. Returns whether anything came.
    fn land(&mut self, to: usize) -> bool {
        let mut any = false;
        for at in 0..MAX_NODES {
            let Some(hold) = &self.ends[to].holds[at] else { continue };
            if let Phase::Asked(until) | Phase::Answered(until) = hold.phase
                && until <= self.now
            {
                let why = LinkDown::Broken("the peer gave up".into());
                self.send(to, at, Vec::new(), None, Some(Then::Down(why)));
                self.end_now(to, at, LinkDown::Failed("the peer did not link in time".into()));
                any = true;
            }
            any |= self.land_in(to, at);
        }
        any
    }

    fn land_in(&mut self, to: usize, at: usize) -> bool {
        let Self { ends, choices, options, now, torn, .. } = self;
        let End { holds, allowed, events, .. } = &mut ends[to];
        let relays = |hold: &Hold| hold.under_way.iter().any(|publish| publish.origin.is_some());
        let mut mirrors = Vec::new();
        if holds[at].as_ref().is_some_and(relays) {
            mirrors.extend(holds.iter().map(|hold| hold.as_ref()?.relayed_to()));
        }
        let Some(hold) = &mut holds[at] else { return false };
        let mut any = false;
        while let Some(front) = hold.under_way.front_mut() {
            if front.due > *now {
                break;
            }
            // F6: whose mirror it is for may be fenced by now, and where it goes may be none of the sender's business.
            let relayed = front.origin.map(|origin| {
                let of = mirrors.iter().position(|it| it.as_ref().is_some_and(|(peer, _)| *peer == origin));
                let may = |word: usize| {
                    let is_it =
                        |it: &Allowed| Some(usize::from(it.origin.0)) == of && it.range.contains(&word);
                    allowed.iter().any(|it| is_it(it) && it.by == slot(at))
                };
                let is_allowed = front.words.iter().all(|(word, _)| may(*word));
                of.filter(|_| is_allowed).and_then(|of| Some(&mirrors[of].as_ref()?.1))
            });
            if matches!(relayed, Some(None)) {
                front.words.clear(); // judged as a whole: what is left of it after a part is not another
            }
            let words = front.words.len();
            let part = words > 1 && choices.chance(options.tearing);
            let landing = if part { 1 + choices.below(words as u64 - 1) as usize } else { words };
            any |= landing > 0 || front.then.is_some();
            for _ in 0..landing {
                let pick = choices.below(front.words.len() as u64) as usize;
                let (offset, value) = front.words.swap_remove(pick);
                if let Some(mirror) = relayed.unwrap_or(hold.mirror.as_ref()) {
                    mirror.store(offset, value);
                }
            }
            if part {
                *torn += 1;
                break;
            }
            match hold.under_way.pop_front().and_then(|landed| landed.then) {
                None => {}
                Some(Then::Up) => {
                    hold.phase = Phase::Up;
                    hold.mirror = Some(Segment::private(options.segment_bytes));
                    events.push_back(LinkEvent::Up(slot(at)));
                }
                Some(Then::Down(why)) => {
                    hold.end();
                    events.push_back(LinkEvent::Down(slot(at), why));
                    let (peer, link) = (hold.peer, hold.link);
                    // What this end had under way to one that closed is lost with the link.
                    if let Some((number, far)) = link
                        && let Some(other) = &mut ends[peer].holds[far]
                        && other.link.is_some_and(|(same, _)| same == number)
                    {
                        other.end();
                    }
                    break;
                }
            }
        }
        any
    }
}

impl SimFabric {
    /// Its number in the network, for [`SimNetwork::crash`] and its like.
    pub fn end(&self) -> usize {
        self.me
    }

    fn lock(&self) -> MutexGuard<'_, World> {
        lock(&self.world)
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
        [OFFER, &(self.me as u64).to_le_bytes()].concat()
    }

    fn connect(
        &mut self,
        to: Slot,
        peer: NodeId,
        offer: &[u8],
        within: Duration,
    ) -> Result<(), ConnectError> {
        let mut world = lock(&self.world);
        let number = offer.strip_prefix(OFFER).and_then(|rest| rest.try_into().ok()).map(u64::from_le_bytes);
        let other = number
            .and_then(|number| usize::try_from(number).ok())
            .filter(|other| *other != self.me && world.ends.get(*other).is_some_and(|end| end.id == peer));
        let Some(other) = other else {
            return Err(ConnectError::Offer("not an offer of a node of this simulation".into()));
        };
        if !world.ends[self.me].lives {
            return Err(ConnectError::Machine("this end has crashed or was closed".into()));
        }
        let index = usize::from(to.0);
        if index >= MAX_NODES {
            return Err(ConnectError::Machine(format!("there are no more than {MAX_NODES} slots")));
        }
        // A link that was up once keeps its slot until it is fenced: its mirror may be in use.
        let is_taken = |hold: &Hold| hold.phase != Phase::Over || hold.mirror.is_some();
        if world.ends[self.me].holds[index].as_ref().is_some_and(is_taken) {
            return Err(ConnectError::Taken(to));
        }
        let is_same = |hold: &Hold| hold.phase != Phase::Over && hold.peer == other;
        let mut holds = world.ends[self.me].holds.iter();
        if let Some(same) = holds.position(|hold| hold.as_ref().is_some_and(is_same)) {
            return Err(ConnectError::Taken(slot(same)));
        }
        let until = world.now.plus(within);
        world.ends[self.me].holds[index] = Some(Hold::new(other, until));
        world.pair(self.me, index);
        Ok(())
    }

    fn mirror(&self, of: Slot) -> Option<&Mirror> {
        self.mirrors.get(usize::from(of.0))?.as_ref()
    }

    fn publishing_costs(&self) -> bool {
        self.lock().options.publishing_costs
    }

    fn publish_words(&mut self, range: Range<usize>, peers: PeerSet) {
        let words = range.step_by(WORD).map(|at| (at, self.segment.load(at))).collect();
        self.queued.push(Queued { words, origin: None, peers });
    }

    fn publish_ring(&mut self, range: Range<usize>, peers: PeerSet) {
        self.publish_words(range, peers);
    }

    fn flush(&mut self) {
        let mut world = lock(&self.world);
        for Queued { words, origin, peers } in self.queued.drain(..) {
            for peer in peers.iter().map(|slot| usize::from(slot.0)) {
                if world.ends[self.me].holds[peer].as_ref().is_some_and(|hold| hold.phase == Phase::Up) {
                    world.send(self.me, peer, words.clone(), origin, None);
                }
            }
        }
    }

    fn poll(&mut self, now: Time) -> bool {
        let mut world = lock(&self.world);
        world.now = world.now.max(now);
        let any = world.land(self.me);
        for (hold, mirror) in world.ends[self.me].holds.iter().zip(&mut self.mirrors) {
            if let (None, Some(Hold { mirror: Some(segment), .. })) = (&mirror, hold) {
                *mirror = Some(segment.mirror());
            }
        }
        any
    }

    fn wait(&mut self, _: Time, _: Time, idle: &mut dyn FnMut() -> bool) {
        // Virtual time: whoever schedules the nodes decides when this one looks again.
        let sleeps = idle();
        self.lock().ends[self.me].stats.sleeps += u64::from(sleeps);
    }

    fn doorbell(&self) -> Doorbell {
        self.doorbell.clone()
    }

    fn fence(&mut self, peer: Slot) {
        let mut world = lock(&self.world);
        let at = usize::from(peer.0);
        if at >= MAX_NODES {
            return;
        }
        for queued in &mut self.queued {
            queued.peers = queued.peers.without(peer);
        }
        // The peer finds its link reset, some time later.
        let why = LinkDown::Broken("fenced by the peer".into());
        world.send(self.me, at, Vec::new(), None, Some(Then::Down(why)));
        let End { holds, allowed, events, .. } = &mut world.ends[self.me];
        holds[at] = None;
        allowed.retain(|it| it.origin != peer && it.by != peer);
        self.mirrors[at] = None;
        events.retain(|event| {
            let (LinkEvent::Up(of) | LinkEvent::Down(of, _)) = event;
            *of != peer
        });
    }

    fn fence_keeping(&mut self, peer: Slot, kept: &Kept<'_>) {
        let at = usize::from(peer.0);
        let mirror = self.lock().ends[self.me].holds.get(at).and_then(|hold| hold.as_ref()?.mirror.clone());
        self.fence(peer);
        let Some(mirror) = mirror else { return };
        let is_kept = |word: &usize| kept.words.iter().chain(kept.ring).any(|range| range.contains(word));
        for word in (0..mirror.size()).step_by(WORD).filter(|word| !is_kept(word)) {
            mirror.store(word, 0);
        }
    }

    fn renew(&mut self, range: Range<usize>) -> Result<(), RenewError> {
        if self.lock().choices.chance(50) {
            for word in range.clone().step_by(WORD) {
                self.segment.store(word, 0);
            }
            // The peers see it some time later, and not after what is written there anew (F1).
            if self.relaying() != Relaying::Carried {
                self.publish_words(range, PeerSet(u64::MAX));
            }
        }
        Ok(())
    }

    fn close(&mut self, _: Duration) {
        self.flush();
        let mut world = lock(&self.world);
        for at in 0..MAX_NODES {
            world.send(self.me, at, Vec::new(), None, Some(Then::Down(LinkDown::Closed)));
        }
        let End { lives, holds, .. } = &mut world.ends[self.me];
        *lives = false;
        holds.iter_mut().flatten().filter(|hold| hold.link.is_none()).for_each(Hold::end);
    }

    fn relaying(&self) -> Relaying {
        if self.lock().options.relays { Relaying::Carried } else { Relaying::Unsupported }
    }

    fn relay(&mut self, origin: Slot, range: Range<usize>, peers: PeerSet) -> bool {
        let Some(mirror) = self.mirror(origin).filter(|_| self.relaying() == Relaying::Carried) else {
            return false;
        };
        relayable(&range, mirror.size());
        let words = range.step_by(WORD).map(|at| (at, mirror.load(at))).collect();
        let hold = self.lock().ends[self.me].holds[usize::from(origin.0)].as_ref().map(|hold| hold.peer);
        let is_linked = hold.is_some();
        if is_linked {
            self.queued.push(Queued { words, origin: hold, peers });
        }
        is_linked
    }

    fn allow_relay(&mut self, origin: Slot, range: Range<usize>, by: Option<Slot>) {
        let Some(mirror) = self.mirror(origin) else { return };
        relayable(&range, mirror.size());
        let mut world = self.lock();
        let allowed = &mut world.ends[self.me].allowed;
        allowed
            .retain(|it| it.origin != origin || it.range.end <= range.start || range.end <= it.range.start);
        allowed.extend(by.map(|by| Allowed { origin, range, by }));
    }

    fn poll_event(&mut self) -> Option<LinkEvent> {
        self.lock().ends[self.me].events.pop_front()
    }

    fn stats(&self) -> FabricStats {
        self.lock().ends[self.me].stats
    }
}

#[cfg(test)]
mod tests;
