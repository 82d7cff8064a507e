//! The `verbs` fabric: RDMA WRITEs, over InfiniBand or Ethernet (RoCE), into memory that each peer has opened to this node alone.
//!
//! Each node has its segment in registered memory, and for each peer a mirror in registered memory, into which that peer
//! writes without this node's doing. In reading order:
//!
//! | module | |
//! |---|---|
//! | `device` | the machine's devices: calls of libibverbs |
//! | `options` | what the fabric is told, and why it may not start |
//! | `choose` | which device and port to use |
//! | `queue` | domains, regions, queue pairs: calls of libibverbs |
//! | `outgoing` | publishes become writes, in F1's order |
//! | `page` | how a node learns that something came, and how sleepers are woken |
//! | `hello` | what two nodes tell each other to connect |
//! | `link` | a peer, its mirror and what lies between |
//! | `setup` | links come up and end |
//! | [`bare`] | no part of the fabric: a round trip by the same calls without it, to be compared with |
//!
//! # How the contract is kept
//!
//! - **F1** One reliable connection per peer: the device makes writes visible in the order in which they were posted, and the counter that
//!   vouches for ring bytes is always in a later write than they. Regions are not registered for relaxed ordering. Words are written whole by every
//!   device that is known to us; the verbs promise less, see `docs/rdma.md`.
//! - **F2** The mirror is this process's memory.
//! - **F3** [`Fabric::poll`] takes completions and looks whether words have changed that tell of a batch, without a system call but every 50 µs; [`Fabric::wait`] sleeps
//!   until the device tells of a ring. See `page`.
//! - **F4** A fence moves the queue pair to the error state, revokes the key to the mirror and destroys the queue pair. Each link has a protection domain of
//!   its own, so its key never opened the mirror to anybody else (S3).
//! - **F5** Beside each queue pair stands a TCP connection, by which it was set up. Its end is the end of the peer's process, seen once the kernel has freed that
//!   one's memory and closed its descriptors (there is no lifeline as `tcp` has one); a machine that is gone shows when the
//!   device has asked [`VerbsOptions::retries`] times in vain; a device that is gone reports it, and is then what is to blame, not the peers.
//! - **F6** is not done here (`Relaying::Unsupported`): a key opens a mirror to the one peer whose mirror it is (S3), so nobody else can
//!   write there. Groups that relay are refused over this fabric.
//!
//! # Threads
//!
//! As every fabric: one owner at a time, who may change; the doorbell is for all. The fabric has no thread of its own.

mod device;
mod options;
mod choose;
mod queue;
mod outgoing;
mod page;
mod hello;
mod link;
mod setup;
pub mod bare;

use std::collections::VecDeque;
use std::fmt;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use consort_dataplane::fabric::{
    ConnectError, Doorbell, FABRIC_PAGE, Fabric, FabricStats, LinkDown, LinkEvent,
};
use consort_dataplane::memory::{Mirror, Segment, WORD};
use consort_dataplane::names::{MAX_NODES, NodeId, PeerSet, Slot, Time};
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};

use crate::beside::{Far, Rouse};
use crate::tcp::hello::{Offer, Role, Token, is_wildcard};
use crate::tcp::{frame, sys};

use choose::Outlet;
use link::{Dial, Link, Phase};
use outgoing::{Outgoing, STAGE};
use page::{EPOCH, NAP, Watch};
use queue::{Channel, Completion, Depths, Pair, Requests, Write};
use setup::{RECEIVES, Stranger};

pub use crate::gid::{Choice, Gid, GidKind, choose};
pub use device::{Port, names};
pub use options::{VerbsError, VerbsOptions};

/// Between two looks at the connections while nothing is being set up: a system call each.
const LOOK_EVERY: Duration = Duration::from_micros(50);

/// How long a step of falling asleep takes at most before the clock is looked at.
const SETTLE_STEP: Duration = Duration::from_millis(1);

/// Who closes looks so often whether those whom it waits for have left.
const HEAR_EVERY: Duration = Duration::from_millis(10);

/// What a watched descriptor tells of: the device has done something, or anything else.
const DONE: u64 = 1;
const BESIDE: u64 = 0;

/// A fabric whose links are queue pairs. See the [module](self).
pub struct VerbsFabric {
    node: NodeId,
    options: VerbsOptions,
    /// By slot. Before what they are made of: they end first.
    links: Vec<Option<Box<Link>>>,
    channel: Arc<Channel>,
    outlet: Outlet,
    segment: Segment,
    token: Token,
    listener: OwnedFd,
    address: SocketAddr,
    doorbell: Doorbell,
    epoll: OwnedFd,
    _bell: Arc<OwnedFd>,
    /// The links that are up.
    up: PeerSet,
    strangers: Vec<Stranger>,
    /// Somebody is expected, dialled or heard.
    setting_up: bool,
    /// There is news beside the queue pairs.
    look: bool,
    look_at: Time,
    accept_again: Option<Time>,
    /// Slept since the last poll: rings may have come.
    slept: bool,
    watch: Watch,
    epoch: u64,
    nap: u64,
    events: VecDeque<LinkEvent>,
    refused: u64,
    stats: FabricStats,
    writes: Vec<Write>,
    requests: Requests,
    found: Vec<Completion>,
}

impl VerbsFabric {
    /// Opens a device, registers nothing yet, and listens for links. `node` is this node's name.
    ///
    /// # Errors
    /// There is no RDMA, no device or no address that will do, or the machine lacks resources; each says what to do.
    pub fn new(node: NodeId, options: VerbsOptions) -> Result<Self, VerbsError> {
        Self::with_memory(node, options, None, Doorbell::new)
    }

    /// The same with a segment that is there, as one of several fabrics that share it; `doorbell` makes the doorbell of what rouses the
    /// owner out of this fabric's sleep.
    pub(crate) fn with_memory(
        node: NodeId,
        options: VerbsOptions,
        memory: Option<Segment>,
        doorbell: impl FnOnce(Rouse) -> Doorbell,
    ) -> Result<Self, VerbsError> {
        if options.segment_bytes == 0 || options.segment_bytes > frame::MAX_SEGMENT {
            return Err(VerbsError::SegmentBytes(options.segment_bytes));
        }
        let outlet = choose::outlet(&options)?;
        let (listener, bound) = sys::listen(options.listen)
            .map_err(|cause| VerbsError::Listen { address: options.listen, cause })?;
        let address = SocketAddr::new(options.advertise.unwrap_or(options.listen), bound.port());
        if is_wildcard(address.ip()) {
            return Err(VerbsError::Wildcard(address.ip()));
        }
        let token = Token::random().map_err(|cause| VerbsError::Machine {
            what: "random numbers",
            cause: std::io::Error::other(cause.to_string()),
        })?;
        let machine = |what: &'static str| move |cause| VerbsError::Machine { what, cause };
        let bell = Arc::new(sys::bell().map_err(machine("event counter"))?);
        let rope = Arc::clone(&bell);
        let channel = Channel::new(&outlet.context).map_err(machine("completion channel"))?;
        let segment = match memory {
            Some(memory) => memory,
            None => sys::memory(options.segment_bytes).map_err(machine("memory for the segment"))?,
        };
        segment.prefault(0..segment.size());
        let epoll = epoll::create(CreateFlags::CLOEXEC).map_err(|cause| machine("epoll")(cause.into()))?;
        let all = [
            (listener.as_fd(), BESIDE),
            (bell.as_fd(), BESIDE),
            (outlet.context.reports(), BESIDE),
            (channel.as_fd(), DONE),
        ];
        for (watched, what) in all {
            epoll::add(&epoll, watched, EventData::new_u64(what), EventFlags::IN | EventFlags::ET)
                .map_err(|cause| machine("place among the watched descriptors")(cause.into()))?;
        }
        let fabric = Self {
            node,
            options,
            links: (0..MAX_NODES).map(|_| None).collect(),
            channel,
            outlet,
            segment,
            token,
            listener,
            address,
            doorbell: doorbell(Box::new(move || sys::ring(rope.as_fd()))),
            epoll,
            _bell: bell,
            up: PeerSet::EMPTY,
            strangers: Vec::new(),
            setting_up: false,
            look: false,
            look_at: Time(0),
            accept_again: None,
            slept: false,
            watch: Watch::default(),
            epoch: 0,
            nap: 0,
            events: VecDeque::new(),
            refused: 0,
            stats: FabricStats::default(),
            writes: Vec::new(),
            requests: Requests::default(),
            found: Vec::new(),
        };
        fabric.try_registering()?;
        tracing::debug!(%node, outlet = fabric.outlet(), "the verbs fabric is ready");
        Ok(fabric)
    }

    /// The way out, in words: device, port, and address on Ethernet.
    pub fn outlet(&self) -> String {
        let Outlet { context, number, port, gid_index, gid, .. } = &self.outlet;
        let name = context.name();
        if port.ethernet {
            let address = std::net::Ipv6Addr::from(*gid);
            let address = address.to_ipv4_mapped().map_or_else(|| address.to_string(), |v4| v4.to_string());
            format!("{name} port {number}, GID {gid_index} ({address})")
        } else {
            format!("{name} port {number}, LID {}", port.lid)
        }
    }

    /// Connections that were turned away since the start: garbage, strangers, the late.
    pub fn strangers(&self) -> u64 {
        self.refused
    }

    /// Registers the segment once and lets it go: a limit that is too low is better known now than at the first link.
    fn try_registering(&self) -> Result<(), VerbsError> {
        let tried = queue::Domain::new(&self.outlet.context)
            .and_then(|domain| queue::Region::new(&domain, &self.segment, queue::Access::Source).map(drop));
        tried.map_err(|cause| VerbsError::Memory {
            device: self.outlet.context.name().to_owned(),
            bytes: self.segment.size(),
            limit: locked_memory(),
            cause,
        })
    }

    fn publishable(&self, range: &Range<usize>) {
        // S4: not a peer's doing, but this node's own mistake.
        assert!(
            range.start.is_multiple_of(WORD)
                && range.end.is_multiple_of(WORD)
                && range.start >= FABRIC_PAGE
                && range.end <= self.segment.size(),
            "published bytes {range:?} are no whole words behind the first page of a segment of {} bytes",
            self.segment.size()
        );
    }

    fn link_mut(&mut self, slot: Slot) -> Option<&mut Link> {
        self.links.get_mut(usize::from(slot.0))?.as_deref_mut()
    }

    /// Watches a connection; looked at when anything happens to it.
    fn watch_socket(&self, socket: &OwnedFd) {
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        if let Err(cause) = epoll::add(&self.epoll, socket, EventData::new_u64(BESIDE), flags) {
            tracing::warn!(%cause, "a connection can't be watched; see /proc/sys/fs/epoll/max_user_watches");
        }
    }

    /// Posts what is due on a link, as far as the device takes it. With `settle`, its arrival will be told.
    fn pump(&mut self, slot: Slot, settle: bool) {
        let Self { links, writes, requests, stats, .. } = self;
        let Some(link) = links[usize::from(slot.0)].as_deref_mut() else { return };
        let mut failed = None;
        if let (Phase::Up(_), Some(pair)) = (&link.phase, link.pair.as_mut()) {
            while failed.is_none() && link.outgoing.can_post() {
                link.outgoing.fill(settle, writes);
                if writes.is_empty() {
                    break;
                }
                stats.doorbells += 1;
                for write in &*writes {
                    stats.work_requests += 1;
                    stats.signalled += u64::from(write.signalled || write.rings);
                    stats.inline += u64::from(write.from.len() <= pair.inline());
                    stats.wakes += u64::from(write.rings);
                    stats.bytes_out += write.from.len() as u64;
                }
                failed = pair.post(writes, requests).err();
            }
            link.due = link.outgoing.has_work();
        }
        if let Some(cause) = failed {
            self.break_down(slot, &format!("the device takes no writes: {cause}"));
        }
    }

    /// Takes completions of a link. Returns whether the peer rang.
    fn collect(&mut self, slot: Slot) -> bool {
        let mut found = std::mem::take(&mut self.found);
        found.clear();
        let Some(link) = self.link_mut(slot) else { return false };
        let mut rung = false;
        let mut failed = None;
        if let Some(pair) = link.pair.as_mut() {
            pair.completions(&mut found);
            for completion in &found {
                match completion {
                    Completion::Written(count) => link.outgoing.on_written(*count),
                    Completion::Rung => {
                        rung = true;
                        failed = failed.or(pair.expect(1).err().map(|cause| cause.to_string()));
                    }
                    Completion::Failed(why) => failed = failed.or(Some(why.clone())),
                }
            }
        }
        self.stats.completions += found.len() as u64;
        self.found = found;
        if let Some(why) = failed {
            self.break_down(slot, &why);
        }
        rung
    }

    /// Takes completions where the device has no room for what is to be posted, as far as is known: a publisher may do nothing but flush, and
    /// what it flushed must reach a sleeper all the same (F3).
    fn make_room(&mut self, slot: Slot) {
        if self.link_mut(slot).is_some_and(|link| link.outgoing.is_stuck()) {
            self.collect(slot);
        }
    }

    /// Rings the peer if it may sleep over what was published to it.
    fn ring(&mut self, slot: Slot) {
        self.make_room(slot);
        let segment = self.segment.clone();
        let Some(link) = self.links[usize::from(slot.0)].as_deref_mut() else { return };
        if link.outgoing.can_ring() && link.naps.must_ring(link.mirror.load(NAP)) {
            link.outgoing.ring(&segment, EPOCH..EPOCH + WORD);
            self.pump(slot, false);
        }
    }

    /// Queues a batch's epoch where the batch does not tell of itself.
    fn tell(&mut self, slot: Slot) {
        let Self { links, segment, epoch, .. } = self;
        let Some(link) = links[usize::from(slot.0)].as_deref_mut() else { return };
        if !link.tells {
            *epoch += 1;
            segment.store(EPOCH, *epoch);
            link.outgoing.publish_words(segment, EPOCH..EPOCH + WORD);
            link.tells = true;
        }
        link.due |= link.outgoing.has_work();
    }

    /// A queue pair failed. If this node's own device is gone, or the peer had said that it leaves, that is why.
    fn break_down(&mut self, slot: Slot, why: &str) {
        while let Some(report) = self.outlet.context.next_report() {
            self.on_report(report);
        }
        self.hear(slot);
        let Outlet { context, number, .. } = &self.outlet;
        let (name, why) = (context.name(), why.to_owned());
        let why = match context.port(*number) {
            Ok(port) if port.active => LinkDown::Broken(why),
            Ok(_) => LinkDown::Own(format!("port {number} of {name} carries no traffic any more ({why})")),
            Err(cause) => LinkDown::Own(format!("{name} does not answer any more ({cause}; {why})")),
        };
        self.take_down(slot, why);
    }

    /// The link is over, unless it was already.
    fn take_down(&mut self, slot: Slot, why: LinkDown) {
        let Some(link) = self.link_mut(slot) else { return };
        if link.is_over() {
            return;
        }
        tracing::debug!(peer = %link.peer, %why, "a link ends");
        link.cut();
        self.up = self.up.without(slot);
        self.events.push_back(LinkEvent::Down(slot, why));
    }

    /// Whether anything came since the last poll.
    fn is_news(&self) -> bool {
        let new = |link: &Link| link.is_up() && link.sight.is_new(&link.mirror);
        self.look || !self.events.is_empty() || self.links.iter().flatten().any(|link| new(link))
    }

    /// Sleeps until the device, a connection or the doorbell has something to tell.
    fn sleep(&mut self, timeout: Option<Duration>) {
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let mut room = [const { MaybeUninit::<Event>::uninit() }; 16];
        self.stats.system_calls += 1;
        match epoll::wait(&self.epoll, &mut room, timeout.as_ref()) {
            Ok((events, _)) => {
                for event in events {
                    if event.data.u64() == DONE {
                        self.channel.quiet();
                    } else {
                        self.look = true;
                    }
                }
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(cause) => tracing::error!(%cause, "epoll_wait failed"),
        }
    }

    /// Sees to completions and rings of all links. Returns whether one was rung.
    fn collect_all(&mut self, settle: bool) -> bool {
        let mut rung = false;
        for slot in self.up.iter() {
            rung |= self.collect(slot);
            self.ring(slot);
            if self.link_mut(slot).is_some_and(|link| link.due) {
                self.pump(slot, settle);
            }
        }
        rung
    }

    fn arm_all(&mut self) {
        for slot in self.up.iter() {
            if let Some(pair) = self.link_mut(slot).and_then(|link| link.pair.as_mut()) {
                pair.arm();
            }
        }
    }

    /// Tells the peers that this node is about to sleep. Returns whether all know, and nothing has come: who publishes from then on rings.
    /// Not if `stop` says so meanwhile, or it is time.
    fn announce_nap(&mut self, until: Option<Instant>, stop: impl Fn(&Self) -> bool) -> bool {
        self.slept = true;
        self.nap += 1;
        self.segment.store(NAP, self.nap);
        for slot in self.up.iter() {
            self.tell(slot);
            let segment = self.segment.clone();
            if let Some(link) = self.link_mut(slot) {
                link.outgoing.publish_words(&segment, NAP..NAP + WORD);
            }
            self.pump(slot, true);
        }
        // The last look comes after the nap is known everywhere.
        self.settle(until, stop) && !self.is_news()
    }

    /// Has the device tell of what it does next. Returns whether nothing is left that it has told already.
    fn is_still(&mut self) -> bool {
        self.arm_all();
        let rung = self.collect_all(true);
        !rung && !self.is_news() && self.is_settled()
    }

    fn is_settled(&self) -> bool {
        self.links.iter().flatten().all(|link| !link.is_up() || link.outgoing.is_settled())
    }

    /// Waits until all that was published has arrived. Returns whether it has; not if there is news for which to stop, or it is time.
    fn settle(&mut self, until: Option<Instant>, stop: impl Fn(&Self) -> bool) -> bool {
        loop {
            // A ring is one for this nap, and there will be no other in it: the nap is over.
            if self.collect_all(true) {
                return false;
            }
            if self.is_settled() {
                return true;
            }
            if stop(self) {
                return false;
            }
            self.arm_all();
            if self.collect_all(true) {
                return false;
            }
            if self.is_settled() {
                return true;
            }
            let left = until.map_or(Duration::MAX, |until| until.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return false;
            }
            self.sleep(Some(left.min(SETTLE_STEP)));
        }
    }
}

impl Fabric for VerbsFabric {
    fn name(&self) -> &'static str {
        "verbs"
    }

    fn segment(&self) -> &Segment {
        &self.segment
    }

    fn offer(&self) -> Vec<u8> {
        let (node, address, token) = (self.node, self.address, self.token);
        let offer = Offer { node, address, token, segment_bytes: self.segment.size(), lifelines: 0 };
        offer.encode_as(hello::OFFER_MAGIC).to_vec()
    }

    fn connect(
        &mut self,
        slot: Slot,
        peer: NodeId,
        offer: &[u8],
        within: Duration,
    ) -> Result<(), ConnectError> {
        let offer = Offer::decode_as(offer, hello::OFFER_MAGIC, "verbs").map_err(ConnectError::Offer)?;
        offer.check((self.node, peer), self.options.max_mirror_bytes).map_err(ConnectError::Offer)?;
        if usize::from(slot.0) >= MAX_NODES {
            return Err(ConnectError::Machine(format!("there are no more than {MAX_NODES} slots")));
        }
        let mut links = self.links.iter().flatten().filter(|link| !link.is_over());
        if let Some(taken) = links.find(|link| link.slot == slot || link.offer.token.matches(&offer.token)) {
            return Err(ConnectError::Taken(taken.slot));
        }
        let machine = |what: &str| {
            let what = format!(
                "{what}, with a limit of locked memory of {}; raise it (`ulimit -l unlimited`; LimitMEMLOCK=infinity in a service)",
                locked_memory()
            );
            move |cause: std::io::Error| ConnectError::Machine(format!("{what}: {cause}"))
        };
        let memory = registrable(offer.segment_bytes).map_err(machine("memory for its mirror"))?;
        let stage = registrable(STAGE).map_err(machine("memory for a stage"))?;
        // V10: pinned now, before the link is of use to anybody.
        let limits = self.outlet.limits;
        let sends = self.options.queue_depth.clamp(8, limits.queue_depth.max(8));
        let sends = sends.min(limits.completions.saturating_sub(RECEIVES + 1).max(8));
        let depths = Depths { sends, receives: RECEIVES, inline: self.options.inline_bytes };
        let pair = Pair::new(&self.channel, (&self.segment, &stage, &memory), depths)
            .map_err(machine("a queue pair and its memory"))?;
        let sequence = hello::first_sequence()
            .map_err(|cause| ConnectError::Machine(format!("random numbers: {cause}")))?;
        let outgoing = Outgoing::new(stage, sends);
        let (address, peer_token) = (offer.address, offer.token);
        let link = Link::new(slot, offer, &memory, (pair, sequence), outgoing, within);
        self.links[usize::from(slot.0)] = Some(Box::new(link));
        self.setting_up = true;
        // The lesser dials.
        if self.node < peer {
            let greeting =
                self.greeting(slot, peer, peer_token, Role::Dialler).map_err(ConnectError::Machine)?;
            let from = (!is_wildcard(self.options.listen)).then_some(self.options.listen);
            match sys::dial(address, from) {
                Ok(socket) => {
                    self.watch_socket(&socket);
                    if let Some(link) = self.link_mut(slot) {
                        link.phase = Phase::Dialling(Dial::new(socket, greeting));
                    }
                }
                Err(cause) => {
                    self.take_down(slot, LinkDown::Failed(format!("dialling {address}: {cause}")));
                }
            }
        }
        Ok(())
    }

    fn mirror(&self, slot: Slot) -> Option<&Mirror> {
        let link = self.links.get(usize::from(slot.0))?.as_ref()?;
        link.was_up.then_some(&link.mirror)
    }

    fn publish_words(&mut self, range: Range<usize>, peers: PeerSet) {
        if range.is_empty() {
            return;
        }
        self.publishable(&range);
        let Self { links, segment, watch, .. } = self;
        let live = |link: &&mut Box<Link>| !link.is_over();
        let tells = watch.covers(segment, &range, |page| {
            for link in links.iter_mut().flatten().filter(live) {
                link.outgoing.publish_words(segment, page.clone());
            }
        });
        for slot in peers.iter() {
            let link = links.get_mut(usize::from(slot.0)).and_then(Option::as_mut);
            if let Some(link) = link.filter(live) {
                link.outgoing.publish_words(segment, range.clone());
                link.tells = tells;
                link.naps.on_publish();
            }
        }
    }

    fn publish_ring(&mut self, range: Range<usize>, peers: PeerSet) {
        if range.is_empty() {
            return;
        }
        self.publishable(&range);
        for slot in peers.iter() {
            if let Some(link) = self.link_mut(slot)
                && !link.is_over()
            {
                link.outgoing.publish_ring(range.clone());
                link.tells = false;
                link.naps.on_publish();
            }
        }
    }

    fn flush(&mut self) {
        for slot in self.up.iter() {
            self.tell(slot);
            self.make_room(slot);
            if self.link_mut(slot).is_some_and(|link| link.due) {
                self.pump(slot, false);
            }
            self.ring(slot);
        }
    }

    fn poll(&mut self, now: Time) -> bool {
        self.look |= self.accept_again.is_some_and(|at| now >= at);
        let events = self.events.len();
        if self.setting_up || self.look || now >= self.look_at {
            self.look_at = now.plus(LOOK_EVERY);
            if !self.look && !self.setting_up {
                self.sleep(Some(Duration::ZERO));
            }
            if self.setting_up || std::mem::take(&mut self.look) {
                self.look = false;
                self.attend(now);
            }
        }
        let mut came = false;
        let slept = std::mem::take(&mut self.slept);
        for slot in self.up.iter() {
            let Some(link) = self.link_mut(slot) else { continue };
            if slept || link.outgoing.awaits() {
                self.collect(slot);
            }
            let Some(link) = self.link_mut(slot) else { continue };
            match link.sight.take(&link.mirror) {
                Ok(any) => came |= any,
                Err(why) => self.take_down(slot, LinkDown::Corrupt(why)),
            }
            self.ring(slot);
            if self.link_mut(slot).is_some_and(|link| link.due && link.outgoing.can_post()) {
                self.pump(slot, false);
            }
        }
        came || self.events.len() > events
    }

    fn wait(&mut self, now: Time, until: Time, idle: &mut dyn FnMut() -> bool) {
        let until = self.next_deadline().map_or(until, |at| until.min(at));
        if until <= now || self.is_news() {
            return;
        }
        let until = instant(now, until);
        // The doorbell is not heard before.
        if !self.announce_nap(until, Self::is_news) {
            return;
        }
        self.doorbell.announce();
        if idle() && self.is_still() {
            self.stats.sleeps += 1;
            self.sleep(until.map(|until| until.saturating_duration_since(Instant::now())));
        }
        self.doorbell.awake();
    }

    fn doorbell(&self) -> Doorbell {
        self.doorbell.clone()
    }

    fn fence(&mut self, slot: Slot) {
        if let Some(place) = self.links.get_mut(usize::from(slot.0))
            && let Some(mut link) = place.take()
        {
            // What is left of it: mirrors that were given out keep their memory.
            link.cut();
            self.up = self.up.without(slot);
            self.events
                .retain(|event| !matches!(event, LinkEvent::Up(of) | LinkEvent::Down(of, _) if *of == slot));
        }
    }

    // `renew` does nothing, as by default: what a peer sees of this node is its own copy, into which nothing comes once the queue
    // pair is gone.

    fn close(&mut self, within: Duration) {
        let until = Instant::now().checked_add(within);
        for slot in self.slots(Link::is_being_set_up).iter() {
            if let Some(link) = self.link_mut(slot) {
                link.cut();
            }
        }
        for slot in self.up.iter() {
            // One more write, whose arrival tells of all before it.
            if let Some(link) = self.link_mut(slot) {
                link.tells = false;
            }
            self.tell(slot);
            self.pump(slot, true);
        }
        loop {
            let step = Instant::now() + HEAR_EVERY;
            if self.settle(Some(until.map_or(step, |until| until.min(step))), |_| false) {
                break;
            }
            // Who has left takes nothing any more, and the device need not say so.
            for slot in self.up.iter() {
                self.hear(slot);
            }
            if until.is_some_and(|until| Instant::now() >= until) {
                break;
            }
        }
        for slot in self.up.iter() {
            if let Some(link) = self.link_mut(slot) {
                if let (Phase::Up(socket), true) = (&link.phase, link.outgoing.is_settled()) {
                    // A peer that is gone needs none.
                    let _ = sys::send_all(socket.as_fd(), &[hello::GOODBYE]);
                    sys::end_sending(socket.as_fd());
                }
                link.cut();
            }
            self.up = self.up.without(slot);
        }
    }

    fn poll_event(&mut self) -> Option<LinkEvent> {
        self.events.pop_front()
    }

    fn stats(&self) -> FabricStats {
        self.stats
    }
}

impl Far for VerbsFabric {
    fn lie_beside(&mut self, now: Time, until: Time, stop: &dyn Fn() -> bool) -> Option<Time> {
        let until = instant(now, until);
        let still = !self.is_news()
            && self.announce_nap(until, |me: &Self| me.is_news() || stop())
            && self.is_still();
        still.then(|| self.next_deadline().unwrap_or(Time(u64::MAX)))
    }

    fn rise(&mut self) {
        self.sleep(Some(Duration::ZERO));
    }

    fn news(&self) -> Option<BorrowedFd<'_>> {
        Some(self.epoll.as_fd())
    }

    fn on_renewed(&mut self) -> std::io::Result<()> {
        let Self { links, segment, .. } = self;
        for link in links.iter_mut().flatten() {
            if let Some(pair) = link.pair.as_mut() {
                pair.renew(segment)?;
            }
        }
        Ok(())
    }
}

/// A time as the machine's clock has it; none for ever.
fn instant(now: Time, until: Time) -> Option<Instant> {
    (until != Time(u64::MAX)).then(|| Instant::now() + until.since(now))
}

/// Memory for a device to read or write, backed beforehand.
fn registrable(bytes: usize) -> std::io::Result<Segment> {
    let memory = sys::memory(bytes)?;
    memory.prefault(0..memory.size());
    Ok(memory)
}

/// How much memory this process may lock, in words.
fn locked_memory() -> String {
    match rustix::process::getrlimit(rustix::process::Resource::Memlock).current {
        Some(bytes) => format!("{bytes} bytes"),
        None => "unlimited".to_owned(),
    }
}

/// A fabric may go to the thread that is to own it.
const _: fn() = || {
    fn is_send<T: Send>() {}
    is_send::<VerbsFabric>();
};

impl fmt::Debug for VerbsFabric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerbsFabric")
            .field("node", &self.node)
            .field("address", &self.address)
            .field("outlet", &self.outlet())
            .field("up", &self.up)
            .finish_non_exhaustive()
    }
}
