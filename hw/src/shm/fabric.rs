//! [`ShmFabric`] itself: the hot path, which makes no system call unless somebody sleeps.

use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::Duration;

use consort_dataplane::fabric::{
    ConnectError, Doorbell, Fabric, FabricStats, Kept, LinkEvent, Relaying, RenewError,
};
use consort_dataplane::memory::{Mirror, Segment};
use consort_dataplane::names::{NodeId, PeerSet, Slot, Time};

use super::hello::{Offer, Place, Token};
use super::life::{LIFE, tells_death};
use super::links::Links;
use super::mapping::OwnMemory;
use super::options::{ShmError, ShmOptions};
use super::sleep::{self, Alarm, EPOCH, NAP, Naps, Waits};
use super::watcher;
use crate::beside::Rouse;
use crate::watch::Watch;

/// A fabric whose mirrors are the peers' own memory. See the [module](super).
#[derive(Debug)]
pub struct ShmFabric {
    // The watcher first: it must end before the epoll set that it watches.
    _watcher: Watch,
    links: Links,
    /// The links that are up, as the hot path wants them.
    peers: Vec<Peer>,
    memory: Arc<OwnMemory>,
    segment: Segment,
    alarm: Arc<Alarm>,
    doorbell: Doorbell,
    /// Who has something to see that was published since the last flush.
    dirty: PeerSet,
    epoch: u64,
    nap: u64,
    stats: FabricStats,
}

#[derive(Debug)]
struct Peer {
    slot: Slot,
    mirror: Mirror,
    /// The peer's epoch as of the last poll.
    seen: u64,
    /// Its life, likewise.
    life: u64,
    naps: Naps,
}

impl ShmFabric {
    /// Makes the segment and listens for peers. `node` is this node's id.
    ///
    /// Starts a thread, which sleeps until a peer connects or is gone; it ends when the fabric is dropped. Does not block.
    ///
    /// # Errors
    /// The segment's size is out of range, or the machine refuses memory, sockets, a thread or `futex_waitv`.
    pub fn new(node: NodeId, options: ShmOptions) -> Result<Self, ShmError> {
        Self::with_doorbell(node, options, Doorbell::new)
    }

    /// The same, where `doorbell` makes the doorbell of what rouses the owner out of this fabric's sleep.
    #[expect(clippy::needless_pass_by_value, reason = "as all fabrics: options are made for one of them")]
    pub(crate) fn with_doorbell(
        node: NodeId,
        options: ShmOptions,
        doorbell: impl FnOnce(Rouse) -> Doorbell,
    ) -> Result<Self, ShmError> {
        let ShmOptions { segment_bytes, peer_segment_bytes_max, machine } = options;
        sleep::probe().map_err(|error| ShmError::Futex { source: error.into() })?;
        let memory = OwnMemory::new(segment_bytes)?;
        let segment = memory.segment();
        let me = introduce(node, segment.size(), machine)?;
        let links = Links::new(me, memory.clone(), peer_segment_bytes_max)?;
        let alarm = Arc::new(Alarm::default());
        let doorbell = doorbell({
            let alarm = alarm.clone();
            Box::new(move || alarm.raise())
        });
        let watcher = watcher::watch(links.sockets(), memory.clone(), alarm.clone(), doorbell.clone())?;
        Ok(Self {
            _watcher: watcher,
            links,
            peers: Vec::new(),
            memory,
            segment,
            alarm,
            doorbell,
            dirty: PeerSet::EMPTY,
            epoch: 0,
            nap: 0,
            stats: FabricStats::default(),
        })
    }

    /// Connections that were turned away because who made them was no peer: not of this user, without this node's token,
    /// or speaking another language.
    pub fn refused(&self) -> u64 {
        self.links.refused()
    }

    /// Whether the peer that made `offer` is where its memory can be shared, as far as both ends can tell: the other end says the same of
    /// this one's.
    pub(crate) fn reaches(&self, offer: &[u8]) -> bool {
        self.links.reaches(offer)
    }

    /// How often a part of the segment was put in another place.
    pub(crate) fn renewals(&self) -> u64 {
        self.links.renewals()
    }

    /// Sees to the sockets: off the hot path.
    #[cold]
    fn tend(&mut self, now: Time) -> bool {
        if self.links.tend(now) {
            self.alarm.call_attention(); // the rest at the next poll
        }
        self.regroup();
        self.links.has_event() | self.links.take_renewed()
    }

    /// Takes over into the hot path which links are up.
    fn regroup(&mut self) {
        if !self.links.take_changed() {
            return;
        }
        let mut old = std::mem::take(&mut self.peers);
        for (slot, mirror) in self.links.up() {
            let peer = match old.iter().position(|peer| peer.slot == slot) {
                Some(known) => old.swap_remove(known),
                None => {
                    let (seen, life) = (mirror.load(EPOCH), mirror.load(LIFE));
                    Peer { slot, mirror: mirror.clone(), seen, life, naps: Naps::default() }
                }
            };
            self.peers.push(peer);
        }
    }

    /// Takes down the links to those whose word says that they have died (F5), and wakes who sleeps on it.
    #[cold]
    fn bury(&mut self) {
        for peer in self.peers.iter().filter(|peer| tells_death(peer.life)) {
            self.stats.system_calls += 1;
            self.stats.wakes += self.links.on_death(peer.slot);
        }
        self.regroup();
    }

    #[cfg(test)]
    pub(super) fn has_attention(&self) -> bool {
        self.alarm.attention()
    }

    /// Whether nothing has come since the last poll.
    pub(crate) fn quiet(&self) -> bool {
        let same = |peer: &Peer| peer.mirror.load(EPOCH) == peer.seen && peer.mirror.load(LIFE) == peer.life;
        !self.alarm.attention() && self.peers.iter().all(same)
    }
}

impl Fabric for ShmFabric {
    fn name(&self) -> &'static str {
        "shm"
    }

    fn segment(&self) -> &Segment {
        &self.segment
    }

    fn offer(&self) -> Vec<u8> {
        self.links.offer().encode()
    }

    fn connect(
        &mut self,
        slot: Slot,
        peer: NodeId,
        offer: &[u8],
        within: Duration,
    ) -> Result<(), ConnectError> {
        self.links.connect(slot, peer, offer, within)?;
        self.alarm.call_attention();
        Ok(())
    }

    fn mirror(&self, slot: Slot) -> Option<&Mirror> {
        self.links.mirror(slot)
    }

    fn publishing_costs(&self) -> bool {
        false
    }

    fn publish_words(&mut self, _: Range<usize>, peers: PeerSet) {
        // Segment::store has released the words in the order of the stores, which is the order of F1.
        self.dirty.0 |= peers.0;
    }

    fn publish_ring(&mut self, _: Range<usize>, peers: PeerSet) {
        // The bytes are there. What vouches for them is stored after this call, with Release.
        self.dirty.0 |= peers.0;
    }

    fn flush(&mut self) {
        let dirty = std::mem::take(&mut self.dirty);
        if dirty.is_empty() {
            return;
        }
        self.epoch += 1;
        let raise = || self.segment.store(EPOCH, self.epoch);
        let wake = sleep::announce_epoch(raise, || {
            let mut wake = false;
            for peer in self.peers.iter_mut().filter(|peer| dirty.contains(peer.slot)) {
                wake |= peer.naps.must_wake(peer.mirror.load(NAP));
            }
            wake
        });
        if wake {
            self.stats.system_calls += 1;
            self.stats.wakes += sleep::wake_all(self.memory.futex(EPOCH)); // P5
        }
    }

    fn poll(&mut self, now: Time) -> bool {
        let (mut came, mut died) = (false, false);
        if self.alarm.take_attention() || now >= self.links.due() {
            came = self.tend(now);
        }
        for peer in &mut self.peers {
            let epoch = peer.mirror.load(EPOCH); // W0: before the caller reads mirrors
            came |= epoch != peer.seen;
            peer.seen = epoch;
            peer.life = peer.mirror.load(LIFE);
            died |= tells_death(peer.life);
        }
        if died {
            self.bury();
            came = true;
        }
        came
    }

    fn wait(&mut self, now: Time, until: Time, idle: &mut dyn FnMut() -> bool) {
        let until = until.min(self.links.due());
        if until <= now || self.links.has_event() || !self.quiet() {
            return;
        }
        let rung = self.alarm.count();
        self.nap += 1;
        let mut slept = Ok(false);
        sleep::nap(
            || {
                self.segment.store(NAP, self.nap);
                self.doorbell.announce();
            },
            || idle() && self.quiet(),
            || {
                let mut waits = Waits::on(&self.alarm, rung);
                for peer in &self.peers {
                    waits.and(peer.mirror.as_ptr().wrapping_add(EPOCH), peer.seen);
                }
                for peer in &self.peers {
                    waits.and(peer.mirror.as_ptr().wrapping_add(LIFE), peer.life);
                }
                let nanoseconds = if until == Time(u64::MAX) { u64::MAX } else { until.0 - now.0 };
                slept = waits.sleep(nanoseconds).map(|()| true);
            },
        );
        self.doorbell.awake();
        self.nap += 1;
        self.segment.store(NAP, self.nap);
        match slept {
            Ok(slept) => {
                self.stats.sleeps += u64::from(slept);
                self.stats.system_calls += u64::from(slept);
            }
            Err(error) => {
                // Allowed at the start and refused now: a filter was put in place since. Go on awake.
                tracing::error!(%error, "the shm fabric can't sleep: futex_waitv is refused");
                std::thread::yield_now();
            }
        }
    }

    fn doorbell(&self) -> Doorbell {
        self.doorbell.clone()
    }

    fn fence(&mut self, slot: Slot) {
        self.links.fence(slot, None);
        self.regroup();
    }

    fn fence_keeping(&mut self, slot: Slot, kept: &Kept<'_>) {
        self.links.fence(slot, Some(kept));
        self.regroup();
    }

    fn renew(&mut self, range: Range<usize>) -> Result<(), RenewError> {
        if self.links.renew(range)? {
            self.alarm.call_attention(); // for the rest, at the next poll
        }
        Ok(())
    }

    fn close(&mut self, _within: Duration) {
        // What was published is in the peers' sight already, and stays there as long as they map it: nothing to wait for.
        self.flush();
        self.links.close();
        self.regroup();
    }

    fn relaying(&self) -> Relaying {
        Relaying::Needless // a mirror is the origin's memory, whoever it publishes to
    }

    fn relay(&mut self, origin: Slot, _: Range<usize>, _: PeerSet) -> bool {
        self.mirror(origin).is_some()
    }

    fn poll_event(&mut self) -> Option<LinkEvent> {
        self.links.poll_event()
    }

    fn stats(&self) -> FabricStats {
        let mut stats = self.stats;
        stats.system_calls += self.links.system_calls();
        stats
    }
}

/// Makes up what peers are told of this node.
fn introduce(node: NodeId, segment: usize, machine: Option<u128>) -> Result<Offer, ShmError> {
    let mut random = [0; 24];
    getrandom::fill(&mut random).map_err(|error| {
        ShmError::machine("drawing random numbers", std::io::Error::other(error.to_string()))
    })?;
    let (token, unique) = random.split_at(16);
    let process = std::process::id();
    let unique: String = unique.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Offer {
        node,
        process,
        segment: segment as u64,
        token: Token(token.try_into().unwrap_or([0; 16])),
        place: place(machine),
        name: format!("consort-shm-{process}-{unique}").into_bytes(),
    })
}

/// Where this process runs; what can't be found out stays zero.
fn place(machine: Option<u128>) -> Place {
    let machine = machine.unwrap_or_else(|| {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let digits: String = boot.chars().filter(char::is_ascii_hexdigit).collect();
        u128::from_str_radix(&digits, 16).unwrap_or(0)
    });
    let network = std::fs::metadata("/proc/self/ns/net").map_or(0, |namespace| namespace.ino());
    Place { machine: machine.to_be_bytes(), network }
}
