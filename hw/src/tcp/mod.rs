//! The `tcp` fabric: a connection per pair of nodes, over any network card.
//!
//! Each node has its segment in private memory, and a mirror of each peer's in private memory too. What is published
//! travels as *frames*, `{segment offset, length}` and bytes, and is put in the same place of the mirror at the other
//! end. In reading order:
//!
//! | module | |
//! |---|---|
//! | `check` | the sum over what travels |
//! | `relay` | what may come of one peer over the link to another (F6) |
//! | `frame` | what travels: the header, byte by byte, its checks and its bounds |
//! | `hello` | offers and hellos: how two nodes find and prove themselves |
//! | `outgoing` | publishes become frames, in F1's order, merged while a link is busy |
//! | `incoming` | bytes, cut anywhere, become words and ring bytes of the mirror, or damage |
//! | `sys` | the kernel's calls |
//! | `engine`, `epoll`, `uring` | what drives the sockets |
//! | `link` | a peer, its mirror and the connection between |
//! | `lifeline` | a second connection, which ends first when a process dies |
//! | `setup`, `traffic` | links come up; links carry, break and end |
//!
//! # How the contract is kept
//!
//! - **F1** TCP keeps the order of frames; `outgoing` makes them in an order that a reader can't tell from that of the
//!   publishes; `incoming` stores each small frame at once, and places large ring payloads where no word vouches for
//!   them yet.
//! - **F2** The mirror is this process's memory.
//! - **F3** [`Fabric::poll`] receives by calls that do not block; [`Fabric::wait`] sleeps in the engine.
//! - **F4** Bytes are only ever received by a call of this fabric on that link. A fenced link has no socket any more, and
//!   nothing is under way in the kernel that could still write. What others relay of it has no place any more.
//! - **F6** Relayed bytes stand among the frames of the one that relays, in the order of its publishes, and name their origin.
//!   They land only where they are expected (S3).
//! - **F5** The end of a process shows as the end of its lifeline, and a while later of its stream (without a goodbye: it broke; with
//!   one: it was closed), a reset as a reset, both at once; a machine that no longer answers shows within [`TcpOptions::unanswered`], by
//!   keepalive when idle and by its missing acknowledgements when not.
//! - A damaged frame breaks the link, never the order: CRC32C of header and payload, beside TCP's own sum, and a peer
//!   whose numbers lead out of its segment is cut off (S1).
//!
//! # Threads
//!
//! As every fabric: one owner at a time, who may change; the doorbell is for all. A thread of the fabric's own holds the lifelines,
//! and does nothing else.

pub(crate) mod check;
mod relay;
pub(crate) mod frame;
mod parts;
mod outgoing;
mod incoming;
mod options;
mod counts;
pub(crate) mod hello;
mod engine;
pub(crate) mod sys;
mod backing;
mod epoll;
pub(crate) mod uring;
mod link;
mod lifeline;
mod setup;
mod traffic;
#[cfg(any(test, fuzzing))]
mod feed;
#[cfg(fuzzing)]
pub mod fuzzing;
#[cfg(test)]
mod stream_tests;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use consort_dataplane::fabric::{ConnectError, Doorbell, Fabric, FabricStats, LinkDown, LinkEvent, Relaying};
use consort_dataplane::memory::{Mirror, Segment, WORD};
use consort_dataplane::names::{MAX_NODES, NodeId, PeerSet, Slot, Time};

use backing::Backing;
use counts::Counts;
use engine::{Engine, Ready, Token, Watch};
use epoll::Epoll;
use hello::{Offer, Role, Token as Token128, is_wildcard};
use lifeline::Lifeline;
use link::{Dial, Held, Link, Phase};
use outgoing::{MAX_FRAME, Sums};
use relay::Relays;
use setup::Stranger;
use uring::Uring;

use crate::beside::{Far, Rouse};

pub use options::{TcpEngine, TcpError, TcpOptions};

/// Polls between two looks at the listener when nobody is expected.
const POLLS_PER_ACCEPT: u32 = 4096;

/// How long a fabric that ends waits for the kernel to let go memory that it still sends from.
const LET_GO_WITHIN: Duration = Duration::from_millis(500);

/// A fabric whose links are TCP connections. See the [module](self).
pub struct TcpFabric {
    node: NodeId,
    options: TcpOptions,
    segment: Segment,
    backing: Backing,
    token: Token128,
    listener: OwnedFd,
    address: SocketAddr,
    bell: Arc<OwnedFd>,
    doorbell: Doorbell,
    /// Where the machine has none, links tell of a death later.
    lifeline: Option<Lifeline>,
    engine: Box<dyn Engine>,
    /// What a sleep elsewhere ends for, where this is one of several fabrics.
    aside: Option<Epoll>,
    /// By slot.
    links: Vec<Option<Box<Link>>>,
    /// The links that are up.
    up: PeerSet,
    strangers: Vec<Stranger>,
    /// Somebody is expected, dialled or heard.
    setting_up: bool,
    /// The listener is to be left alone until then.
    accept_again: Option<Time>,
    polls: u32,
    /// Whose turn it is among the silent.
    turn: u32,
    next_number: u32,
    vigil_at: Option<Time>,
    events: VecDeque<LinkEvent>,
    counts: Counts,
    /// Memory that the kernel still reads for links that are gone.
    orphans: Vec<((Slot, u32), Held)>,
    /// What the engine found, for the next poll.
    found_readable: PeerSet,
    found_setup: bool,
    parts: parts::Parts,
    relays: Relays,
}

impl TcpFabric {
    /// Binds the data listener and sets up the engine. `node` is this node's name.
    ///
    /// # Errors
    /// The listener can't be bound, io_uring is demanded and denied, or the machine lacks resources.
    pub fn new(node: NodeId, options: TcpOptions) -> Result<Self, TcpError> {
        Self::with_memory(node, options, None, Doorbell::new)
    }

    /// The same with a segment that is there, as one of several fabrics that share it; `doorbell` makes the doorbell of what rouses the
    /// owner out of this fabric's sleep.
    pub(crate) fn with_memory(
        node: NodeId,
        options: TcpOptions,
        memory: Option<Segment>,
        doorbell: impl FnOnce(Rouse) -> Doorbell,
    ) -> Result<Self, TcpError> {
        if options.segment_bytes == 0 || options.segment_bytes > frame::MAX_SEGMENT {
            return Err(TcpError::SegmentBytes(options.segment_bytes));
        }
        let (listener, bound) = sys::listen(options.listen)
            .map_err(|cause| TcpError::Listen { address: options.listen, cause })?;
        let address = SocketAddr::new(options.advertise.unwrap_or(options.listen), bound.port());
        if is_wildcard(address.ip()) {
            return Err(TcpError::Wildcard(address.ip()));
        }
        let token = Token128::random().map_err(|cause| TcpError::Machine {
            what: "random numbers",
            cause: std::io::Error::other(cause.to_string()),
        })?;
        let bell = sys::bell().map_err(|cause| TcpError::Machine { what: "event counter", cause })?;
        let engine = choose(options.engine)?;
        let machine = |what: &'static str| move |cause| TcpError::Machine { what, cause };
        let aside = memory.is_some().then(Epoll::new).transpose().map_err(machine("epoll"))?;
        let segment = match memory {
            Some(memory) => memory, // it is for who made it to back it
            None => {
                let memory = sys::memory(options.segment_bytes).map_err(machine("memory for the segment"))?;
                if memory.size() <= options.prefault_up_to {
                    memory.prefault(0..memory.size());
                }
                memory
            }
        };
        let backing =
            Backing::start().map_err(|cause| TcpError::Machine { what: "a thread for memory", cause })?;
        let bell = Arc::new(bell);
        let rope = Arc::clone(&bell);
        let lifeline = Lifeline::start(options.listen, &bell, options.unanswered)
            .inspect_err(
                |cause| tracing::debug!(%cause, "no lifelines: peers will see this node's death late"),
            )
            .ok();
        tracing::debug!(%node, %address, engine = engine.name(), "the tcp fabric listens");
        Ok(Self {
            node,
            options,
            segment,
            backing,
            token,
            listener,
            address,
            bell,
            doorbell: doorbell(Box::new(move || sys::ring(rope.as_fd()))),
            lifeline,
            engine,
            aside,
            links: (0..MAX_NODES).map(|_| None).collect(),
            up: PeerSet::EMPTY,
            strangers: Vec::new(),
            setting_up: false,
            accept_again: None,
            polls: 0,
            turn: 0,
            next_number: 0,
            vigil_at: None,
            events: VecDeque::new(),
            counts: Counts::default(),
            orphans: Vec::new(),
            found_readable: PeerSet::EMPTY,
            found_setup: false,
            parts: parts::Parts::default(),
            relays: Relays::new(),
        })
    }

    /// What drives the sockets: `io_uring` or `epoll`.
    pub fn engine(&self) -> &'static str {
        self.engine.name()
    }

    /// Connections to the data listener that were turned away since the start: garbage, strangers, the late.
    pub fn strangers(&self) -> u64 {
        self.counts.strangers
    }

    /// Where the data listener listens, as peers are told.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Links to those of `peers` to whom there is one, or is to be one.
    fn for_each(&mut self, peers: PeerSet, mut act: impl FnMut(&mut Link)) {
        for slot in peers.iter() {
            if let Some(link) = self.links.get_mut(usize::from(slot.0)).and_then(Option::as_mut)
                && !link.is_over()
            {
                act(link);
            }
        }
    }

    /// Sleeps in the engine until something comes, at most for `timeout`.
    fn sleep(&mut self, now: Time, timeout: Duration) -> Ready {
        let listener = self.accept_again.is_none_or(|at| now >= at).then_some(&self.listener);
        let watches = watches(&self.bell, listener, &self.strangers, &self.links);
        self.counts.fabric.sleeps += 1;
        self.engine.sleep(&watches, timeout, &mut self.counts)
    }

    /// No socket is watched for `token` any more.
    fn forget(&mut self, token: Token, socket: BorrowedFd<'_>) {
        self.engine.forget(token, socket);
        if let Some(aside) = &mut self.aside {
            aside.forget(token, socket);
        }
    }

    /// Whether sending could go on at once.
    fn could_send(&self) -> bool {
        self.up
            .iter()
            .any(|slot| self.links[usize::from(slot.0)].as_ref().is_some_and(|link| link.can_send()))
    }
}

/// All that a sleep ends for.
fn watches<'a>(
    bell: &'a OwnedFd,
    listener: Option<&'a OwnedFd>,
    strangers: &'a [Stranger],
    links: &'a [Option<Box<Link>>],
) -> Vec<Watch<'a>> {
    let mut watches = vec![Watch { token: Token::Bell, socket: bell.as_fd(), writing: false }];
    if let Some(listener) = listener {
        watches.push(Watch { token: Token::Listener, socket: listener.as_fd(), writing: false });
    }
    // A stranger whose hello is in says nothing more: it waits for us.
    for stranger in strangers.iter().filter(|stranger| stranger.owes_hello()) {
        watches.push(Watch { token: stranger.token, socket: stranger.socket.as_fd(), writing: false });
    }
    for link in links.iter().flatten() {
        match &link.phase {
            Phase::Up { socket, .. } => {
                watches.push(Watch { token: link.token(), socket: socket.as_fd(), writing: false });
            }
            Phase::Dialling(dial) => {
                let socket = dial.socket.as_fd();
                watches.push(Watch { token: dial.token, socket, writing: !dial.said });
            }
            Phase::Expected | Phase::Down => {}
        }
    }
    watches
}

/// The engine asked for, or the best that the machine allows.
fn choose(wanted: TcpEngine) -> Result<Box<dyn Engine>, TcpError> {
    let epoll = || match Epoll::new() {
        Ok(epoll) => Ok(Box::new(epoll) as Box<dyn Engine>),
        Err(cause) => Err(TcpError::Machine { what: "epoll", cause }),
    };
    match wanted {
        TcpEngine::Epoll => epoll(),
        TcpEngine::IoUring => Ok(Box::new(Uring::new()?)),
        TcpEngine::Auto => match Uring::new() {
            Ok(uring) => Ok(Box::new(uring)),
            Err(denied) => {
                tracing::warn!(cause = %denied, "the tcp fabric runs on epoll instead of io_uring");
                epoll()
            }
        },
    }
}

/// Panics unless `range` may be published or relayed.
fn placed(range: &Range<usize>, segment: &Segment) {
    // S4: not a peer's doing, but this node's own mistake.
    assert!(
        range.start.is_multiple_of(WORD)
            && range.end.is_multiple_of(WORD)
            && frame::within(range.start, range.len(), segment.size()),
        "published bytes {range:?} are no whole words behind the first page of a segment of {} bytes",
        segment.size()
    );
}

impl Fabric for TcpFabric {
    fn name(&self) -> &'static str {
        "tcp"
    }

    fn segment(&self) -> &Segment {
        &self.segment
    }

    fn offer(&self) -> Vec<u8> {
        let (node, address, token) = (self.node, self.address, self.token);
        let lifelines = self.lifeline.as_ref().map_or(0, Lifeline::port);
        Offer { node, address, token, segment_bytes: self.segment.size(), lifelines }.encode().to_vec()
    }

    fn connect(
        &mut self,
        slot: Slot,
        peer: NodeId,
        offer: &[u8],
        within: Duration,
    ) -> Result<(), ConnectError> {
        let offer = Offer::decode(offer).map_err(ConnectError::Offer)?;
        offer.check((self.node, peer), self.options.max_mirror_bytes).map_err(ConnectError::Offer)?;
        if usize::from(slot.0) >= MAX_NODES {
            return Err(ConnectError::Machine(format!("there are no more than {MAX_NODES} slots")));
        }
        let mut links = self.links.iter().flatten().filter(|link| !link.is_over());
        if let Some(taken) = links.find(|link| link.slot == slot || link.offer.token.matches(&offer.token)) {
            return Err(ConnectError::Taken(taken.slot));
        }
        let mirror = self
            .backing
            .mirror(offer.segment_bytes, offer.segment_bytes <= self.options.prefault_up_to)
            .map_err(|cause| ConnectError::Machine(format!("memory for its mirror: {cause}")))?;
        let mut failed = None;
        // The lesser dials.
        let phase = if self.node < peer {
            let hello = self.hello_to(peer, offer.token, Role::Dialler).map_err(ConnectError::Machine)?;
            self.counts.called();
            match sys::dial(offer.address, (!is_wildcard(self.options.listen)).then_some(self.options.listen))
            {
                Ok(socket) => Phase::Dialling(Dial::new(socket, self.new_setup_token(), hello.encode())),
                Err(cause) => {
                    failed = Some(LinkDown::Failed(format!("dialling {}: {cause}", offer.address)));
                    Phase::Expected
                }
            }
        } else {
            Phase::Expected
        };
        self.next_number = self.next_number.wrapping_add(1);
        let link = Link::new((slot, self.next_number), offer, mirror, phase, within);
        self.links[usize::from(slot.0)] = Some(Box::new(link));
        self.setting_up = true;
        if let Some(why) = failed {
            self.take_down(slot, why);
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
        placed(&range, &self.segment);
        self.for_each(peers, |link| link.outgoing.publish_words(range.clone()));
    }

    fn publish_ring(&mut self, range: Range<usize>, peers: PeerSet) {
        if range.is_empty() {
            return;
        }
        placed(&range, &self.segment);
        let segment = self.segment.clone();
        for start in range.clone().step_by(MAX_FRAME) {
            let part = start..(start + MAX_FRAME).min(range.end);
            let mut sums = Sums::new(&segment, part);
            self.for_each(peers, |link| link.outgoing.publish_ring(&mut sums));
        }
    }

    fn flush(&mut self) {
        for slot in self.up.iter() {
            let Some(link) = self.links[usize::from(slot.0)].as_mut() else { continue };
            link.due |= link.outgoing.has_work();
        }
        self.pump();
    }

    fn poll(&mut self, now: Time) -> bool {
        let events = self.events.len();
        if self.engine.has_news() {
            let news = self.engine.poll(&mut self.counts);
            self.on_ready(&news);
        }
        self.look_at_lifelines();
        self.polls = self.polls.wrapping_add(1);
        if self.setting_up || self.found_setup || self.polls.is_multiple_of(POLLS_PER_ACCEPT) {
            self.found_setup = false;
            self.set_up(now);
        }
        let came = self.receive_some();
        if self.could_send() {
            self.pump();
        }
        self.keep_vigil(now);
        came || self.events.len() > events
    }

    fn wait(&mut self, now: Time, until: Time, idle: &mut dyn FnMut() -> bool) {
        if !self.events.is_empty() || self.could_send() {
            return;
        }
        self.doorbell.announce();
        if idle() {
            let bounds = [self.next_deadline(), self.next_vigil()];
            let until = bounds.into_iter().flatten().fold(until, Time::min);
            let ready = self.sleep(now, until.since(now));
            self.on_ready(&ready);
        }
        self.doorbell.awake();
    }

    fn doorbell(&self) -> Doorbell {
        self.doorbell.clone()
    }

    fn fence(&mut self, slot: Slot) {
        if usize::from(slot.0) < MAX_NODES {
            self.cut(slot, false);
            // What is left of it: mirrors that were given out keep their memory.
            self.links[usize::from(slot.0)] = None;
            self.relays.on_fence(slot);
            self.events
                .retain(|event| !matches!(event, LinkEvent::Up(of) | LinkEvent::Down(of, _) if *of == slot));
        }
    }

    // `renew` does nothing, as by default: a peer's mirror of this node is private memory of the peer, into which nothing of
    // ours comes once the link is cut. What this node writes later, wherever in its segment, a fenced peer never sees.

    fn close(&mut self, within: Duration) {
        let start = Instant::now();
        for slot in self.slots(Link::is_being_set_up).iter() {
            self.cut(slot, false);
        }
        for link in self.links.iter_mut().flatten().filter(|link| link.is_up()) {
            link.outgoing.say_goodbye();
        }
        self.flush();
        loop {
            // The peer answers the goodbye by hanging up; until then it may still be reading what was sent.
            for link in self.links.iter_mut().flatten() {
                if link.is_up() && !link.outgoing.has_work() && !link.sending_ended {
                    link.sending_ended = true;
                    if let Some(socket) = link.socket() {
                        sys::end_sending(socket);
                    }
                }
            }
            for slot in self.up.iter() {
                self.receive(slot);
            }
            let left = within.saturating_sub(start.elapsed());
            if self.up.is_empty() || left.is_zero() {
                break;
            }
            if !self.could_send() {
                // No protocol time is known here; what has bounds by it is not waited for.
                let ready = self.sleep(Time(0), left);
                self.on_ready(&ready);
            }
            self.pump();
        }
        for slot in self.up.iter() {
            self.cut(slot, true);
        }
    }

    fn relaying(&self) -> Relaying {
        Relaying::Carried
    }

    fn relay(&mut self, origin: Slot, range: Range<usize>, peers: PeerSet) -> bool {
        let Some(link) = self.links.get(usize::from(origin.0)).and_then(Option::as_ref) else { return false };
        if !link.was_up {
            return false;
        }
        let (name, memory) = (link.offer.origin(), link.memory.clone());
        placed(&range, &memory);
        let segment = self.segment.clone();
        for start in range.clone().step_by(MAX_FRAME) {
            let mut sums = Sums::new(&memory, start..(start + MAX_FRAME).min(range.end));
            self.for_each(peers, |link| link.outgoing.relay(name, &mut sums, &segment));
        }
        true
    }

    fn allow_relay(&mut self, origin: Slot, range: Range<usize>, by: Option<Slot>) {
        if let Some(link) = self.links.get(usize::from(origin.0)).and_then(Option::as_ref) {
            placed(&range, &link.memory);
            self.relays.allow(origin, range, by);
        }
    }

    fn poll_event(&mut self) -> Option<LinkEvent> {
        self.events.pop_front()
    }

    fn stats(&self) -> FabricStats {
        self.counts.fabric
    }
}

impl Far for TcpFabric {
    fn lie_beside(&mut self, now: Time, _: Time, _: &dyn Fn() -> bool) -> Option<Time> {
        self.counts.called();
        sys::hush(&self.bell);
        self.look_at_lifelines(); // which ring the bell
        let blocked = self.slots(|link| link.is_up() && link.blocked);
        let found = !self.found_readable.is_empty() || self.found_setup || !self.events.is_empty();
        if found || self.could_send() {
            return None;
        }
        let listener = self.accept_again.is_none_or(|at| now >= at).then_some(&self.listener);
        let watches = watches(&self.bell, listener, &self.strangers, &self.links);
        self.aside.as_mut()?.watch(&watches, blocked, &mut self.counts);
        let bounds = [self.next_deadline(), self.next_vigil()];
        Some(bounds.into_iter().flatten().fold(Time(u64::MAX), Time::min))
    }

    fn rise(&mut self) {
        if let Some(aside) = &mut self.aside {
            let ready = aside.ask(Duration::ZERO, &mut self.counts);
            self.on_ready(&ready);
        }
    }

    fn news(&self) -> Option<BorrowedFd<'_>> {
        self.aside.as_ref().map(Epoll::set)
    }
}

impl Drop for TcpFabric {
    fn drop(&mut self) {
        // Whoever is still linked sees a reset, which is what dropping without `close` is.
        for slot in self.up.iter() {
            self.cut(slot, false);
        }
        // The kernel may still read ring bytes and headers for zero-copy sends; a reset makes it let them go.
        let start = Instant::now();
        while !self.orphans.is_empty() && start.elapsed() < LET_GO_WITHIN {
            let ready = self.engine.sleep(&[], LET_GO_WITHIN / 10, &mut self.counts);
            self.on_ready(&ready);
        }
        if !self.orphans.is_empty() {
            std::mem::forget(std::mem::take(&mut self.orphans));
            std::mem::forget(self.segment.clone());
        }
    }
}

/// A fabric may go to the thread that is to own it.
const _: fn() = || {
    fn is_send<T: Send>() {}
    is_send::<TcpFabric>();
};

impl fmt::Debug for TcpFabric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpFabric")
            .field("node", &self.node)
            .field("address", &self.address)
            .field("engine", &self.engine.name())
            .field("up", &self.up)
            .finish_non_exhaustive()
    }
}
