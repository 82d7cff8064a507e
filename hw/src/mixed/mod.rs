//! The fabric `auto`: several kinds at once, and for each link the best one that both ends have (DESIGN.md §3).
//!
//! Nodes of one machine share memory, others write over RDMA or talk over TCP. All kinds publish from one segment, and each peer's mirror is
//! that of the kind which carries its link. In reading order:
//!
//! | module | |
//! |---|---|
//! | `options` | what the fabric is told, and why it may not start |
//! | `offer` | what peers are told: the offers of all kinds, one after the other |
//! | `way` | one link's way: which kinds come into question, which is tried, which has taken it |
//! | `rouse` | one doorbell, wherever the owner sleeps |
//! | `watcher` | while the owner sleeps over one kind, a thread watches the others |
//!
//! # Which kind a link takes
//!
//! Both ends read both offers and come to the same list: shared memory if both are in the same place, RDMA, TCP, as far as both have them.
//! The node with the lesser id dials, over the first; if that fails before the link is there, over the next, and so on. The other end can't
//! know how far the dialler is: it is ready for the first, and after a while (`PATIENCE`) without a link for the next as well. Whichever comes up takes the
//! link, for as long as it lives. An attempt that failed is told in the log; [`Fabric::carrier`] tells what a link runs over.
//!
//! # How the contract is kept
//!
//! - **F1, F4** are about one link at a time, and so are kept by the kind that carries it. What is published to a peer before its link
//!   is up is queued by the kind that is tried, and told again to the one that is tried next.
//! - **F3** The owner sleeps in the kind that has the quickest wake-up, of those that have links; the others are watched (`watcher`).
//!   So a message over TCP wakes a node that shares memory with others by way of one more thread. A node whose links are all of one kind
//!   sleeps there, as it would without the others.
//! - **F5** An attempt that failed is no link that broke: it is told when nothing is left to try.
//! - **F6** is not done here where there may be links of more than one kind: bytes that were read over one can't be passed on over another. Groups that relay take
//!   one kind of fabric.
//! - [`Fabric::renew`] is for those who share memory; a device reads the segment by pages that it was told of, and is told of the new.

mod options;
mod offer;
mod way;
mod rouse;
mod watcher;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use consort_dataplane::fabric::{
    ConnectError, Doorbell, Fabric, FabricStats, Kept, LinkDown, LinkEvent, Relaying, RenewError,
};
use consort_dataplane::memory::{Mirror, Segment};
use consort_dataplane::names::{MAX_NODES, NodeId, PeerSet, Slot, Time};

use crate::beside::Far;
use crate::shm::{ShmFabric, ShmOptions};
use crate::tcp::{TcpFabric, TcpOptions};

pub use options::{MixedError, MixedOptions};

use offer::Offers;
use rouse::Bed;
use watcher::Watcher;
use way::Way;

/// How long the end that doesn't dial waits for a link over one kind before it is ready for the next too. Nothing rests on it: who dials
/// earlier than that waits at the door.
const PATIENCE: Duration = Duration::from_millis(200);

/// A kind of fabric, the best first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Kind {
    Shm = 0,
    Verbs = 1,
    Tcp = 2,
}

/// How many kinds there are.
const KINDS: usize = 3;

/// What is published: which calls of a fabric it takes.
#[derive(Clone, Copy)]
enum What {
    Words,
    Ring,
}

impl Kind {
    const ALL: [Self; KINDS] = [Self::Shm, Self::Verbs, Self::Tcp];

    const fn name(self) -> &'static str {
        match self {
            Self::Shm => "shm",
            Self::Verbs => "verbs",
            Self::Tcp => "tcp",
        }
    }

    /// Its place in a set of kinds.
    const fn bit(self) -> u8 {
        1 << self as u8
    }

    /// The names of several, by number.
    const fn names(kinds: [bool; KINDS]) -> &'static str {
        match kinds {
            [true, false, false] => "shm",
            [true, true, false] => "shm+verbs",
            [true, false, true] => "shm+tcp",
            [true, true, true] => "shm+verbs+tcp",
            [false, true, false] => "verbs",
            [false, true, true] => "verbs+tcp",
            [false, false, true] => "tcp",
            [false, false, false] => "none",
        }
    }
}

/// A fabric of several kinds. See the [module](self).
pub struct MixedFabric {
    node: NodeId,
    // The watcher first: it must end before what it watches.
    watcher: Option<Watcher>,
    near: Option<ShmFabric>,
    far: Vec<(Kind, Box<dyn Far>)>,
    segment: Segment,
    doorbell: Doorbell,
    bed: Arc<Bed>,
    /// By slot.
    ways: Vec<Option<Box<Way>>>,
    /// By kind: whose link it carries, or tries to.
    reach: [PeerSet; KINDS],
    /// Whose links are not there yet.
    unsettled: PeerSet,
    events: VecDeque<LinkEvent>,
    /// The names of all kinds that it has.
    has: &'static str,
    /// What drives the best of its kinds for other machines.
    engine: &'static str,
}

impl MixedFabric {
    /// Makes a fabric of each kind that the options allow and the machine has. `node` is this node's id.
    ///
    /// # Errors
    /// None can be had, or the machine lacks memory or a thread.
    #[expect(clippy::needless_pass_by_value, reason = "as all fabrics: options are made for one of them")]
    pub fn new(node: NodeId, options: MixedOptions) -> Result<Self, MixedError> {
        let bed = Arc::new(Bed::default());
        let doorbell = Doorbell::new({
            let bed = bed.clone();
            move || bed.rouse()
        });
        let MixedOptions { segment_bytes, listen, advertise, shm, verbs, tcp, machine } = options;
        let mut refused = Vec::new();
        let mut near = None;
        if shm {
            let options = ShmOptions { segment_bytes, machine, ..Default::default() };
            match ShmFabric::with_doorbell(node, options, |rouse| bed.put(Kind::Shm, rouse, &doorbell)) {
                Ok(fabric) => near = Some(fabric),
                Err(error) => refused.push(format!("shm: {error}")),
            }
        }
        let segment = match &near {
            Some(near) => near.segment().clone(),
            None => crate::tcp::sys::memory(segment_bytes).map_err(MixedError::Memory)?,
        };
        let segment_bytes = segment.size();
        let mut far: Vec<(Kind, Box<dyn Far>)> = Vec::new();
        let mut engine = "futex";
        #[cfg(feature = "verbs")]
        if verbs {
            use crate::verbs::{VerbsFabric, VerbsOptions};
            // A device of another network may lead anywhere: only the one by which the peers reach this node is taken unasked.
            let options =
                VerbsOptions { segment_bytes, listen, advertise, of_own_address: true, ..Default::default() };
            let made = VerbsFabric::with_memory(node, options, Some(segment.clone()), |rouse| {
                bed.put(Kind::Verbs, rouse, &doorbell)
            });
            match made {
                Ok(fabric) => {
                    engine = "rc";
                    far.push((Kind::Verbs, Box::new(fabric)));
                }
                Err(error) => refused.push(format!("verbs: {error}")),
            }
        }
        let _ = verbs; // in builds without it
        if tcp {
            let options = TcpOptions { segment_bytes, listen, advertise, ..Default::default() };
            let made = TcpFabric::with_memory(node, options, Some(segment.clone()), |rouse| {
                bed.put(Kind::Tcp, rouse, &doorbell)
            });
            match made {
                Ok(fabric) => {
                    engine = if far.is_empty() { fabric.engine() } else { engine };
                    far.push((Kind::Tcp, Box::new(fabric)));
                }
                Err(error) => refused.push(format!("tcp: {error}")),
            }
        }
        for why in &refused {
            tracing::info!(%node, "not among the fabrics of this node: {why}");
        }
        let has = |kind| far.iter().any(|(other, _)| *other == kind);
        if near.is_none() && far.is_empty() {
            return Err(MixedError::None(refused.join("; ")));
        }
        let name = Kind::names([near.is_some(), has(Kind::Verbs), has(Kind::Tcp)]);
        let watcher = if far.len() + usize::from(near.is_some()) > 1 {
            Some(Watcher::start(bed.clone(), doorbell.clone()).map_err(MixedError::Watcher)?)
        } else {
            None
        };
        Ok(Self {
            node,
            watcher,
            near,
            far,
            segment,
            doorbell,
            bed,
            ways: (0..MAX_NODES).map(|_| None).collect(),
            reach: [PeerSet::EMPTY; KINDS],
            unsettled: PeerSet::EMPTY,
            events: VecDeque::new(),
            has: name,
            engine,
        })
    }

    /// What drives its links: `futex` those over shared memory, `io_uring` or `epoll` those over TCP, `rc` those over RDMA.
    pub fn engine(&self) -> &'static str {
        match (&self.near, self.engine) {
            (Some(_), "io_uring") => "futex+io_uring",
            (Some(_), "epoll") => "futex+epoll",
            (Some(_), "rc") => "futex+rc",
            (_, engine) => engine,
        }
    }

    fn part(&mut self, kind: Kind) -> Option<&mut dyn Fabric> {
        part(&mut self.near, &mut self.far, kind)
    }

    fn mine(&self) -> Offers {
        let near = self.near.as_ref().map(|near| (Kind::Shm, near.offer()));
        Offers(near.into_iter().chain(self.far.iter().map(|(kind, far)| (*kind, far.offer()))).collect())
    }

    /// The kinds that both ends have, best first, with what the peer offers for each.
    fn common(&self, theirs: Offers) -> Vec<(Kind, Vec<u8>)> {
        let is_common = |kind: Kind, offer: &[u8]| match kind {
            Kind::Shm => self.near.as_ref().is_some_and(|near| near.reaches(offer)),
            _ => self.far.iter().any(|(other, _)| *other == kind),
        };
        theirs.0.into_iter().filter(|(kind, offer)| is_common(*kind, offer)).collect()
    }

    /// Tries the next kind for a link that can be tried.
    ///
    /// # Errors
    /// There is none: of the last, why it can't.
    fn try_next(&mut self, slot: Slot) -> Result<(), ConnectError> {
        let Self { near, far, ways, reach, .. } = self;
        let mut refusal = ConnectError::Offer("both ends have no kind of fabric in common".to_owned());
        let Some(way) = ways[usize::from(slot.0)].as_deref_mut() else { return Err(refusal) };
        while let Some((kind, offer)) = way.next() {
            let Some(part) = part(near, far, kind) else { continue };
            match part.connect(slot, way.peer, &offer, way.within) {
                Ok(()) => {
                    way.trying |= kind.bit();
                    reach[kind as usize] = reach[kind as usize].with(slot);
                    way.early.tell(part, PeerSet::EMPTY.with(slot));
                    return Ok(());
                }
                Err(error) => {
                    way.note(kind, &error.to_string());
                    refusal = error;
                }
            }
        }
        Err(refusal)
    }

    /// What a kind tells of a link. Returns whether it matters to the owner.
    fn on_event(&mut self, kind: Kind, event: LinkEvent) -> bool {
        let (LinkEvent::Up(slot) | LinkEvent::Down(slot, _)) = event else { return false };
        let Some(way) = self.ways[usize::from(slot.0)].as_deref_mut() else { return false };
        match event {
            LinkEvent::Up(_) if way.taken.is_none() && !way.is_over => {
                way.taken = Some(kind);
                way.early = way::Early::default();
                let others = std::mem::replace(&mut way.trying, 0) & !kind.bit();
                if let Some(why) = way.detour() {
                    let (node, peer) = (self.node, way.peer);
                    tracing::warn!(%node, %peer, "the link goes over {}: {why}", kind.name());
                }
                self.unsettled = self.unsettled.without(slot);
                for other in Kind::ALL.into_iter().filter(|other| others & other.bit() != 0) {
                    self.reach[other as usize] = self.reach[other as usize].without(slot);
                    if let Some(part) = self.part(other) {
                        part.fence(slot);
                    }
                }
                self.events.push_back(LinkEvent::Up(slot));
                true
            }
            LinkEvent::Down(_, why) if way.taken == Some(kind) => {
                way.is_over = true;
                self.reach[kind as usize] = self.reach[kind as usize].without(slot);
                self.events.push_back(LinkEvent::Down(slot, why));
                true
            }
            LinkEvent::Down(_, why) if way.trying & kind.bit() != 0 => {
                way.trying &= !kind.bit();
                let is_last = way.trying == 0;
                way.note(kind, &why.to_string());
                self.reach[kind as usize] = self.reach[kind as usize].without(slot);
                if let Some(part) = self.part(kind) {
                    part.fence(slot);
                }
                if is_last && self.try_next(slot).is_err() {
                    self.give_up(slot, why);
                }
                true
            }
            _ => false,
        }
    }

    /// Nothing is left to try.
    fn give_up(&mut self, slot: Slot, last: LinkDown) {
        let Some(way) = self.ways[usize::from(slot.0)].as_deref_mut() else { return };
        way.is_over = true;
        self.unsettled = self.unsettled.without(slot);
        // Whoever is to blame is so whatever else was tried.
        let why = match last {
            LinkDown::Corrupt(_) => last,
            _ => LinkDown::Failed(way.failures.join("; ")),
        };
        self.events.push_back(LinkEvent::Down(slot, why));
    }

    /// Who has waited in vain is made ready for the next kind too.
    #[cold]
    fn lose_patience(&mut self, now: Time) {
        for slot in self.unsettled.iter() {
            let Some(way) = self.ways[usize::from(slot.0)].as_deref_mut() else { continue };
            if way.is_impatient(now) {
                // With none left to try, what is tried goes on.
                let _ = self.try_next(slot);
            }
        }
    }

    /// When somebody loses patience next.
    fn due(&self) -> Option<Time> {
        if self.unsettled.is_empty() {
            return None;
        }
        self.ways.iter().flatten().filter_map(|way| way.due()).min()
    }

    /// The kinds with links, or attempts at any: bits by number.
    fn active(&self) -> u8 {
        let active = |kind: &Kind| !self.reach[*kind as usize].is_empty();
        Kind::ALL.into_iter().filter(active).fold(0, |all, kind| all | kind.bit())
    }

    fn publish(&mut self, what: What, range: Range<usize>, peers: PeerSet) {
        for slot in PeerSet(self.unsettled.0 & peers.0).iter() {
            if let Some(way) = self.ways[usize::from(slot.0)].as_deref_mut() {
                match what {
                    What::Words => way.early.words(range.clone()),
                    What::Ring => way.early.ring(range.clone()),
                }
            }
        }
        if let Some(near) = &mut self.near {
            publish_to(near, what, &range, PeerSet(self.reach[Kind::Shm as usize].0 & peers.0));
        }
        for (kind, far) in &mut self.far {
            publish_to(&mut **far, what, &range, PeerSet(self.reach[*kind as usize].0 & peers.0));
        }
    }
}

fn part<'a>(
    near: &'a mut Option<ShmFabric>,
    far: &'a mut [(Kind, Box<dyn Far>)],
    kind: Kind,
) -> Option<&'a mut dyn Fabric> {
    if kind == Kind::Shm {
        return near.as_mut().map(|near| near as &mut dyn Fabric);
    }
    let (_, far) = far.iter_mut().find(|(other, _)| *other == kind)?;
    Some(&mut **far)
}

#[inline]
fn publish_to<F: Fabric + ?Sized>(part: &mut F, what: What, range: &Range<usize>, peers: PeerSet) {
    match what {
        _ if peers.is_empty() => {}
        What::Words => part.publish_words(range.clone(), peers),
        What::Ring => part.publish_ring(range.clone(), peers),
    }
}

impl Fabric for MixedFabric {
    /// What its links run over; before there are any, what they could.
    fn name(&self) -> &'static str {
        let mut over = [false; KINDS];
        for way in self.ways.iter().flatten().filter(|way| !way.is_over) {
            if let Some(kind) = way.taken {
                over[kind as usize] = true;
            }
        }
        if over == [false; KINDS] { self.has } else { Kind::names(over) }
    }

    fn segment(&self) -> &Segment {
        &self.segment
    }

    fn offer(&self) -> Vec<u8> {
        self.mine().encode()
    }

    fn connect(
        &mut self,
        slot: Slot,
        peer: NodeId,
        offer: &[u8],
        within: Duration,
    ) -> Result<(), ConnectError> {
        let theirs = Offers::decode(offer).map_err(ConnectError::Offer)?;
        let names = theirs.names();
        let common = self.common(theirs);
        if common.is_empty() {
            return Err(ConnectError::Offer(format!(
                "this node has {}, and the peer {names}, elsewhere",
                self.has
            )));
        }
        let Some(place) = self.ways.get_mut(usize::from(slot.0)) else {
            return Err(ConnectError::Machine(format!("there are no more than {MAX_NODES} slots")));
        };
        // A mirror that was never frozen may be in use: its slot is free after a fence only.
        if place.as_ref().is_some_and(|way| !way.is_over || way.taken.is_some()) {
            return Err(ConnectError::Taken(slot));
        }
        *place = Some(Box::new(Way::new(peer, common, self.node < peer, within)));
        self.unsettled = self.unsettled.with(slot);
        self.try_next(slot).inspect_err(|_| {
            self.ways[usize::from(slot.0)] = None;
            self.unsettled = self.unsettled.without(slot);
        })
    }

    fn mirror(&self, slot: Slot) -> Option<&Mirror> {
        match self.ways.get(usize::from(slot.0))?.as_ref()?.taken? {
            Kind::Shm => self.near.as_ref()?.mirror(slot),
            kind => self.far.iter().find(|(other, _)| *other == kind)?.1.mirror(slot),
        }
    }

    fn carrier(&self, slot: Slot) -> Option<&'static str> {
        self.ways.get(usize::from(slot.0))?.as_ref()?.taken.map(Kind::name)
    }

    fn publishing_costs(&self) -> bool {
        self.name() != Kind::Shm.name()
    }

    fn publish_words(&mut self, range: Range<usize>, peers: PeerSet) {
        self.publish(What::Words, range, peers);
    }

    fn publish_ring(&mut self, range: Range<usize>, peers: PeerSet) {
        self.publish(What::Ring, range, peers);
    }

    fn flush(&mut self) {
        if let Some(near) = &mut self.near {
            near.flush();
        }
        for (kind, part) in &mut self.far {
            if !self.reach[*kind as usize].is_empty() {
                part.flush();
            }
        }
    }

    fn poll(&mut self, now: Time) -> bool {
        let stirred = self.bed.take_stirred();
        let mut came = false;
        if let Some(near) = &mut self.near {
            came |= near.poll(now);
            while let Some(event) = self.near.as_mut().and_then(Fabric::poll_event) {
                came |= self.on_event(Kind::Shm, event);
            }
        }
        for at in 0..self.far.len() {
            let (kind, part) = &mut self.far[at];
            let kind = *kind;
            if stirred & kind.bit() != 0 {
                part.rise();
            }
            // Who dials before it is expected waits at the door.
            if !self.reach[kind as usize].is_empty() {
                came |= part.poll(now);
            }
            while let Some(event) = self.far[at].1.poll_event() {
                came |= self.on_event(kind, event);
            }
        }
        if !self.unsettled.is_empty() {
            self.lose_patience(now);
        }
        came
    }

    fn wait(&mut self, now: Time, until: Time, idle: &mut dyn FnMut() -> bool) {
        if !self.events.is_empty() {
            return;
        }
        let mut until = self.due().map_or(until, |due| until.min(due));
        let active = self.active();
        let is_active = |kind: Kind| active & kind.bit() != 0;
        let first = match (Kind::ALL.into_iter().find(|kind| is_active(*kind)), &self.near) {
            (Some(kind), _) => kind,
            (None, Some(_)) => Kind::Shm,
            (None, None) => self.far.first().map_or(Kind::Tcp, |(kind, _)| *kind),
        };
        let bed = self.bed.clone();
        let near = self.near.as_ref();
        // What comes meanwhile to where nobody watches yet is not to wait for a peer elsewhere that doesn't answer.
        let stop = || bed.is_stirred() || near.is_some_and(|near| !near.quiet());
        for (kind, part) in self.far.iter_mut().filter(|(kind, _)| *kind != first && is_active(*kind)) {
            let Some(due) = part.lie_beside(now, until, &stop) else { return };
            until = until.min(due);
            if let (Some(watcher), Some(news)) = (&mut self.watcher, part.news())
                && let Err(cause) = watcher.watch(*kind, news)
            {
                tracing::error!(%cause, "the {} fabric can't be watched in this node's sleep", kind.name());
                std::thread::yield_now();
                return;
            }
        }
        bed.lie_down(first);
        if let Some(part) = self.part(first) {
            part.wait(now, until, &mut || !bed.is_stirred() && idle());
        }
    }

    fn doorbell(&self) -> Doorbell {
        self.doorbell.clone()
    }

    fn fence(&mut self, slot: Slot) {
        self.fence_keeping_or_all(slot, None);
    }

    fn fence_keeping(&mut self, slot: Slot, kept: &Kept<'_>) {
        self.fence_keeping_or_all(slot, Some(kept));
    }

    fn renew(&mut self, range: Range<usize>) -> Result<(), RenewError> {
        let Some(near) = &mut self.near else { return Ok(()) };
        let before = near.renewals();
        near.renew(range)?;
        if near.renewals() != before {
            for (_, far) in &mut self.far {
                far.on_renewed().map_err(|cause| RenewError::Machine(cause.to_string()))?;
            }
        }
        Ok(())
    }

    fn close(&mut self, within: Duration) {
        let begun = Instant::now();
        for kind in Kind::ALL {
            if let Some(part) = self.part(kind) {
                part.close(within.saturating_sub(begun.elapsed()));
            }
        }
    }

    fn relaying(&self) -> Relaying {
        match &self.near {
            Some(near) if self.far.is_empty() => near.relaying(),
            _ => Relaying::Unsupported,
        }
    }

    fn relay(&mut self, origin: Slot, range: Range<usize>, peers: PeerSet) -> bool {
        match &mut self.near {
            Some(near) if self.far.is_empty() => near.relay(origin, range, peers),
            _ => false,
        }
    }

    fn poll_event(&mut self) -> Option<LinkEvent> {
        self.events.pop_front()
    }

    fn stats(&self) -> FabricStats {
        let near = self.near.as_ref().map(Fabric::stats).unwrap_or_default();
        self.far.iter().fold(near, |all, (_, far)| all.and(far.stats()))
    }
}

impl MixedFabric {
    fn fence_keeping_or_all(&mut self, slot: Slot, kept: Option<&Kept<'_>>) {
        let Some(way) = self.ways.get_mut(usize::from(slot.0)).and_then(Option::take) else { return };
        self.unsettled = self.unsettled.without(slot);
        for kind in Kind::ALL.into_iter().filter(|kind| way.concerns(*kind)) {
            self.reach[kind as usize] = self.reach[kind as usize].without(slot);
            match (self.part(kind), kept) {
                (Some(part), Some(kept)) if way.taken == Some(kind) => part.fence_keeping(slot, kept),
                (Some(part), _) => part.fence(slot),
                (None, _) => {}
            }
        }
        self.events
            .retain(|event| !matches!(event, LinkEvent::Up(of) | LinkEvent::Down(of, _) if *of == slot));
    }
}

/// A fabric may go to the thread that is to own it.
const _: fn() = || {
    fn is_send<T: Send>() {}
    is_send::<MixedFabric>();
};

impl fmt::Debug for MixedFabric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MixedFabric")
            .field("node", &self.node)
            .field("kinds", &self.has)
            .field("reach", &self.reach)
            .field("unsettled", &self.unsettled)
            .finish_non_exhaustive()
    }
}
