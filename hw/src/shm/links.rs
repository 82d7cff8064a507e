//! Links from the first word to the last: dialling, introductions, proof of life, and the end.
//!
//! # How two nodes meet
//!
//! Each node listens at a Unix address of its own, which its [`Offer`] names. The node with the lower id dials. It sends one
//! packet: its [`Hello`] with its segment attached. The hello holds two tokens: the one out of *our* offer, which
//! shows that the control plane gave it to the dialler, and the one out of *its* offer, which we were given, and which
//! shows who it is. The other side maps the segment and answers in kind. Then the link is up, and the connection
//! stays open as the proof of life.
//!
//! ```text
//! Dial ──► Greeted ──┐
//!                    ├──► Up ──► Down ──► Fenced        (a setup that fails goes Down as well)
//! Awaited ───────────┘
//! ```
//!
//! # Strangers
//!
//! Any process of the host can connect. One of another user is dropped at once; one that says anything but a proper
//! hello with our token, or says nothing for a while, is dropped and counted (S1). Nothing is allocated on a guest's
//! word, and no more than [`GUESTS_MAX`] are kept. A guest whose hello is right may come before our own
//! side has called `connect` for it: it is kept until then, or until it hangs up.
//!
//! Whoever knows both tokens is the peer: what it then sends wrong (an unsealed segment, another size) is its blame
//! ([`LinkDown::Corrupt`]).

use std::collections::VecDeque;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use consort_dataplane::fabric::{ConnectError, LinkDown, LinkEvent};
use consort_dataplane::memory::Mirror;
use consort_dataplane::names::{MAX_NODES, NodeId, Slot, Time};
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::time::Timespec;

use super::hello::{GOODBYE, Hello, Offer};
use super::mapping::{OwnMemory, PeerMemory, Refusal, error_text};
use super::options::ShmError;
use super::socket::{Credentials, Listener, Packet, Received, Socket};

/// Connections that are no links yet.
pub(super) const GUESTS_MAX: usize = 2 * MAX_NODES;

/// How long a guest may be silent. It sent its hello before we accepted it, if it is one of ours.
pub(super) const HELLO_WITHIN: Duration = Duration::from_secs(2);

/// When to try again what the machine has no room for just now.
const AGAIN_AFTER: Duration = Duration::from_millis(5);

/// Looks at the sockets in one call of [`Links::tend`]; the rest waits for the next.
const ROUNDS_MAX: usize = 8;

/// How long a fence waits for a process to end whose connection has broken: less than the copy would take.
const EXIT_WITHIN: Timespec = Timespec { tv_sec: 0, tv_nsec: 2_000_000 };

const AT_ONCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// All links of a node, its listener and its guests.
#[derive(Debug)]
pub(super) struct Links {
    me: Offer,
    user: u32,
    peer_bytes_max: usize,
    memory: Arc<OwnMemory>,
    listener: Option<Listener>,
    sockets: OwnedFd,
    table: Vec<Option<Link>>,
    guests: Vec<Guest>,
    guests_ever: u64,
    accept_again: Option<Time>,
    due: Time,
    events: VecDeque<LinkEvent>,
    changed: bool,
    refused: u64,
    system_calls: u64,
}

#[derive(Debug)]
struct Link {
    offer: Offer,
    phase: Phase,
    within: Duration,
    /// Set by the first `tend` after `connect`: time is an argument here too.
    deadline: Option<Time>,
    memory: Option<Arc<PeerMemory>>,
    mirror: Option<Mirror>,
    process: Option<OwnedFd>,
}

#[derive(Debug)]
enum Phase {
    /// We dial; the peer's queue was full.
    Dial,
    /// We dialled and said hello.
    Greeted(Socket),
    /// The peer dials.
    Awaited,
    /// The link is there.
    Up(Socket),
    /// It is gone, and that was reported; the mirror may still change.
    Down,
    /// It is gone, and the mirror is frozen.
    Fenced,
}

#[derive(Debug)]
struct Guest {
    id: u64,
    socket: Socket,
    credentials: Credentials,
    deadline: Time,
    /// A hello with our token.
    hello: Option<(Hello, OwnedFd)>,
}

/// What an epoll event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum About {
    Listener,
    Guest(u64),
    Link(Slot),
    Process(Slot),
}

impl About {
    fn data(self) -> EventData {
        EventData::new_u64(match self {
            Self::Listener => 0,
            Self::Guest(id) => 1 | id << 8,
            Self::Link(slot) => 2 | u64::from(slot.0) << 8,
            Self::Process(slot) => 3 | u64::from(slot.0) << 8,
        })
    }

    fn of(data: EventData) -> Self {
        let id = data.u64() >> 8;
        let slot = Slot(u8::try_from(id & 0xff).unwrap_or(0));
        match data.u64() & 0xff {
            0 => Self::Listener,
            1 => Self::Guest(id),
            2 => Self::Link(slot),
            _ => Self::Process(slot),
        }
    }
}

impl Links {
    /// Listens at the address that `me` names.
    pub(super) fn new(me: Offer, memory: Arc<OwnMemory>, peer_bytes_max: usize) -> Result<Self, ShmError> {
        let failed = |step| move |errno: Errno| ShmError::machine(step, errno);
        let listener = Listener::at(&me.name).map_err(failed("listening at a Unix socket"))?;
        let sockets = epoll::create(CreateFlags::CLOEXEC).map_err(failed("making an epoll set"))?;
        epoll::add(&sockets, &listener, About::Listener.data(), EventFlags::IN).map_err(failed("epoll"))?;
        Ok(Self {
            me,
            user: rustix::process::geteuid().as_raw(),
            peer_bytes_max,
            memory,
            listener: Some(listener),
            sockets,
            table: (0..MAX_NODES).map(|_| None).collect(),
            guests: Vec::new(),
            guests_ever: 0,
            accept_again: None,
            due: Time(u64::MAX),
            events: VecDeque::new(),
            changed: false,
            refused: 0,
            system_calls: 0,
        })
    }

    /// What peers are told of this node.
    pub(super) fn offer(&self) -> &Offer {
        &self.me
    }

    /// The epoll set with everything in it that may need [`Links::tend`].
    pub(super) fn sockets(&self) -> BorrowedFd<'_> {
        self.sockets.as_fd()
    }

    /// When `tend` is to be called at the latest.
    pub(super) fn due(&self) -> Time {
        self.due
    }

    /// Whether links came up or went down since the last call.
    pub(super) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// The links that are up, with their mirrors.
    pub(super) fn up(&self) -> impl Iterator<Item = (Slot, &Mirror)> {
        self.table.iter().zip(0u8..).filter_map(|(link, slot)| match link {
            Some(Link { phase: Phase::Up(_), mirror: Some(mirror), .. }) => Some((Slot(slot), mirror)),
            _ => None,
        })
    }

    pub(super) fn mirror(&self, slot: Slot) -> Option<&Mirror> {
        self.table.get(usize::from(slot.0))?.as_ref()?.mirror.as_ref()
    }

    pub(super) fn poll_event(&mut self) -> Option<LinkEvent> {
        self.events.pop_front()
    }

    pub(super) fn has_event(&self) -> bool {
        !self.events.is_empty()
    }

    /// Connections dropped because those who made them were none of ours.
    pub(super) fn refused(&self) -> u64 {
        self.refused
    }

    pub(super) fn system_calls(&self) -> u64 {
        self.system_calls
    }

    /// Starts a link. `tend` must be called after it.
    pub(super) fn connect(
        &mut self,
        slot: Slot,
        peer: NodeId,
        offer: &[u8],
        within: Duration,
    ) -> Result<(), ConnectError> {
        let offer = Offer::decode(offer).map_err(|garbage| ConnectError::Offer(garbage.to_string()))?;
        self.check(&offer, peer).map_err(ConnectError::Offer)?;
        if self.listener.is_none() {
            return Err(ConnectError::Machine("this fabric was closed; make a new one".to_owned()));
        }
        let dials = self.me.node < peer;
        match self.table.get_mut(usize::from(slot.0)) {
            None => return Err(ConnectError::Machine(format!("a node has {MAX_NODES} links at most"))),
            // A mirror that was never frozen may be in use: its slot is free after a fence only.
            Some(
                Some(Link { phase: Phase::Fenced, .. } | Link { phase: Phase::Down, memory: None, .. })
                | None,
            ) => {}
            Some(_) => return Err(ConnectError::Taken(slot)),
        }
        let phase = if dials { Phase::Dial } else { Phase::Awaited };
        self.table[usize::from(slot.0)] =
            Some(Link { offer, phase, within, deadline: None, memory: None, mirror: None, process: None });
        if let Err(error @ (Errno::MFILE | Errno::NFILE | Errno::NOMEM)) = self.dial(slot) {
            self.table[usize::from(slot.0)] = None;
            return Err(ConnectError::Machine(error_text(error)));
        }
        Ok(())
    }

    fn check(&self, offer: &Offer, peer: NodeId) -> Result<(), String> {
        let (mine, theirs) = (self.me.place, offer.place);
        if peer == self.me.node {
            Err(format!("{peer} is this node's own id: give each node another"))
        } else if offer.node != peer {
            Err(format!("it was made by node {}, not by node {peer}", offer.node))
        } else if mine.machine != theirs.machine && mine.machine != [0; 16] && theirs.machine != [0; 16] {
            Err("it was made on another machine, whose memory can't be shared: choose the tcp fabric"
                .to_owned())
        } else if mine.network != theirs.network && mine.network != 0 && theirs.network != 0 {
            Err("it was made in another network namespace, which Unix sockets don't reach: share the namespace or \
                 choose the tcp fabric"
                .to_owned())
        } else if usize::try_from(offer.segment).map_or(true, |bytes| bytes > self.peer_bytes_max) {
            Err(format!(
                "its segment has {} bytes, more than peer_segment_bytes_max ({})",
                offer.segment, self.peer_bytes_max
            ))
        } else {
            Ok(())
        }
    }

    /// Dials, if that is what the link in `slot` waits for.
    fn dial(&mut self, slot: Slot) -> Result<(), Errno> {
        let Some(link) = self.table[usize::from(slot.0)].as_mut() else { return Ok(()) };
        if !matches!(link.phase, Phase::Dial) {
            return Ok(());
        }
        self.system_calls += 5;
        let socket = match Socket::connect(&link.offer.name) {
            Ok(socket) => socket,
            Err(Errno::WOULDBLOCK | Errno::INTR) => return Ok(()),
            Err(error @ (Errno::MFILE | Errno::NFILE | Errno::NOMEM)) => return Err(error),
            Err(Errno::CONNREFUSED) => {
                let process = link.offer.process;
                self.down(
                    slot,
                    LinkDown::Failed(format!("nobody listens for process {process} any more: it ended")),
                );
                return Ok(());
            }
            Err(error) => {
                self.down(slot, LinkDown::Failed(error_text(error)));
                return Ok(());
            }
        };
        let user = socket.credentials().map(|them| them.user);
        let hello = hello_to(&self.me, &link.offer);
        let said = if user.as_ref().is_ok_and(|&user| trusted(self.user, user)) {
            socket
                .send(&hello, Some(self.memory.file()))
                .and_then(|()| epoll::add(&self.sockets, &socket, About::Link(slot).data(), EventFlags::IN))
        } else {
            Err(Errno::PERM)
        };
        match said {
            Ok(()) => link.phase = Phase::Greeted(socket),
            Err(Errno::PERM) => {
                let why = "the socket that the peer's offer names belongs to another user: run all nodes of a host as one";
                self.down(slot, LinkDown::Failed(why.to_owned()));
            }
            Err(error) => self.down(slot, LinkDown::Failed(error_text(error))),
        }
        Ok(())
    }

    /// Sees to everything that the sockets hold and that time has brought. Never blocks. Returns whether more is left.
    pub(super) fn tend(&mut self, now: Time) -> bool {
        let mut more = true;
        for _ in 0..ROUNDS_MAX {
            let mut space = [MaybeUninit::uninit(); 32];
            self.system_calls += 1;
            let Ok((ready, _)) = epoll::wait(&self.sockets, &mut space, Some(&AT_ONCE)) else { continue };
            if ready.is_empty() {
                more = false;
                break;
            }
            for event in ready.iter() {
                let data = event.data;
                match About::of(data) {
                    About::Listener => self.accept(now),
                    About::Guest(id) => self.hear_guest(id),
                    About::Link(slot) => self.hear_link(slot),
                    About::Process(slot) => self.on_exit(slot),
                }
            }
            if self.accept_again.is_some() {
                more = false; // the listener stays ready until there is room; `due` comes back to it
                break;
            }
        }
        self.pair();
        self.pass_time(now);
        more
    }

    fn accept(&mut self, now: Time) {
        if self.accept_again.is_some_and(|at| now < at) {
            return;
        }
        self.accept_again = None;
        let Some(listener) = &self.listener else { return };
        self.system_calls += 1;
        let socket = match listener.accept() {
            Ok(socket) => socket,
            Err(error @ (Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS)) => {
                tracing::warn!(error = error_text(error), "a peer can't be let in now; trying again");
                self.accept_again = Some(now.plus(AGAIN_AFTER));
                return;
            }
            Err(_) => return, // gone again, or nothing there
        };
        self.system_calls += 2;
        let credentials = match socket.credentials() {
            Ok(them) if trusted(self.user, them.user) => them,
            other => return self.refuse(&format!("it runs as another user ({other:?})")),
        };
        if self.guests.len() >= GUESTS_MAX {
            match self.guests.iter().position(|guest| guest.hello.is_none()) {
                Some(silent) => {
                    self.guests.remove(silent);
                    self.refuse("it was the longest silent of too many");
                }
                None => return self.refuse("there are too many guests"),
            }
        }
        self.guests_ever += 1;
        let id = self.guests_ever;
        if epoll::add(&self.sockets, &socket, About::Guest(id).data(), EventFlags::IN).is_ok() {
            let deadline = now.plus(HELLO_WITHIN);
            self.guests.push(Guest { id, socket, credentials, deadline, hello: None });
        }
    }

    fn refuse(&mut self, why: &str) {
        self.refused += 1;
        tracing::warn!(node = %self.me.node, why, "a stranger at the shm fabric's socket was turned away");
    }

    /// A guest said something or hung up.
    fn hear_guest(&mut self, id: u64) {
        let Some(at) = self.guests.iter().position(|guest| guest.id == id) else { return };
        self.system_calls += 1;
        let why = match self.guests[at].socket.receive() {
            Ok(Received::Nothing) => return,
            Ok(Received::Packet(packet)) if self.guests[at].hello.is_none() => match self.introduce(packet) {
                Ok((hello, file)) => {
                    // Its node may have tried before and given up: the newest counts.
                    self.guests[at].hello = Some((hello, file));
                    let older = |guest: &Guest| {
                        guest.id != id && guest.hello.as_ref().is_some_and(|it| it.0 == hello)
                    };
                    self.guests.retain(|guest| !older(guest));
                    return;
                }
                Err(why) => why,
            },
            Ok(Received::Packet(_)) => "it spoke before it was answered".to_owned(),
            Ok(Received::Oversize) => "it sent more than any hello".to_owned(),
            // One that had introduced itself and left is a peer that gave up.
            Ok(Received::End) | Err(_) if self.guests[at].hello.is_some() => {
                self.guests.remove(at);
                return;
            }
            Ok(Received::End) | Err(_) => "it left without a word".to_owned(),
        };
        self.guests.remove(at);
        self.refuse(&why);
    }

    fn introduce(&self, packet: Packet) -> Result<(Hello, OwnedFd), String> {
        let hello = Hello::decode(packet.bytes()).map_err(|garbage| format!("its hello: {garbage}"))?;
        if hello.given != self.me.token || hello.to != self.me.node {
            return Err("it was never given this node's offer".to_owned());
        }
        let file = packet.attached.ok_or("it brought no segment")?;
        Ok((hello, file))
    }

    /// Lets in the guests for whom `connect` has been called.
    fn pair(&mut self) {
        let mut at = 0;
        while at < self.guests.len() {
            let wanted = self.guests[at].hello.as_ref().and_then(|(hello, _)| {
                self.table.iter().position(|link| {
                    link.as_ref().is_some_and(|link| {
                        matches!(link.phase, Phase::Awaited)
                            && link.offer.node == hello.from
                            && link.offer.token == hello.own
                    })
                })
            });
            let Some(slot) = wanted.and_then(|slot| u8::try_from(slot).ok()).map(Slot) else {
                at += 1;
                continue;
            };
            let guest = self.guests.remove(at);
            if let Some((hello, file)) = guest.hello {
                self.answer(slot, guest.socket, guest.credentials, hello, file);
            }
        }
    }

    /// The peer of `slot` has dialled: says hello to it in turn.
    fn answer(&mut self, slot: Slot, socket: Socket, them: Credentials, hello: Hello, file: OwnedFd) {
        let Some(link) = self.table[usize::from(slot.0)].as_ref() else { return };
        self.system_calls += 6;
        let memory = match map(&link.offer, &hello, file, self.peer_bytes_max) {
            Ok(memory) => memory,
            Err(why) => return self.down(slot, why),
        };
        let said = socket
            .send(&hello_to(&self.me, &link.offer), Some(self.memory.file()))
            .and_then(|()| epoll::modify(&self.sockets, &socket, About::Link(slot).data(), EventFlags::IN));
        match said {
            Ok(()) => self.on_up(slot, socket, them, memory),
            Err(error) => self.down(slot, LinkDown::Failed(error_text(error))),
        }
    }

    /// A link's socket has something, or was hung up.
    fn hear_link(&mut self, slot: Slot) {
        let Some(link) = self.table[usize::from(slot.0)].as_mut() else { return };
        self.system_calls += 1;
        let why = match &link.phase {
            Phase::Greeted(socket) => match socket.receive() {
                Ok(Received::Nothing) => return,
                Ok(Received::Packet(packet)) => return self.on_answer(slot, packet),
                Ok(Received::Oversize) => LinkDown::Corrupt("more than any hello".to_owned()),
                Ok(Received::End) => {
                    LinkDown::Failed("the peer hung up before it answered: see its log".to_owned())
                }
                Err(error) => LinkDown::Failed(error_text(error)),
            },
            Phase::Up(socket) => match socket.receive() {
                Ok(Received::Nothing) => return,
                Ok(Received::Packet(packet)) if packet.bytes() == GOODBYE => LinkDown::Closed,
                Ok(Received::Packet(_) | Received::Oversize) => {
                    LinkDown::Corrupt("a packet that is no goodbye, over a link that is up".to_owned())
                }
                Ok(Received::End) => LinkDown::Broken(format!("process {} hung up", link.offer.process)),
                Err(error) => LinkDown::Broken(error_text(error)),
            },
            Phase::Dial | Phase::Awaited | Phase::Down | Phase::Fenced => return,
        };
        self.down(slot, why);
    }

    /// The peer of `slot`, whom we dialled, has answered.
    fn on_answer(&mut self, slot: Slot, packet: Packet) {
        let Some(link) = self.table[usize::from(slot.0)].as_mut() else { return };
        self.system_calls += 6;
        let hello = Hello::decode(packet.bytes()).map_err(|garbage| format!("its hello: {garbage}"));
        let (hello, file) = match (hello, packet.attached) {
            (Ok(hello), Some(file)) => (hello, file),
            (Ok(_), None) => return self.down(slot, LinkDown::Corrupt("it brought no segment".to_owned())),
            (Err(why), _) => return self.down(slot, LinkDown::Corrupt(why)),
        };
        let fits = hello.given == self.me.token
            && hello.to == self.me.node
            && hello.own == link.offer.token
            && hello.from == link.offer.node;
        if !fits {
            return self.down(slot, LinkDown::Corrupt("its hello is not by who made the offer".to_owned()));
        }
        let memory = match map(&link.offer, &hello, file, self.peer_bytes_max) {
            Ok(memory) => memory,
            Err(why) => return self.down(slot, why),
        };
        if let Phase::Greeted(socket) = std::mem::replace(&mut link.phase, Phase::Down) {
            let them = socket.credentials().unwrap_or(Credentials { process: 0, user: self.user });
            self.on_up(slot, socket, them, memory);
        }
    }

    fn on_up(&mut self, slot: Slot, socket: Socket, them: Credentials, memory: Arc<PeerMemory>) {
        let Some(link) = self.table[usize::from(slot.0)].as_mut() else { return };
        // If the number was given to another process meanwhile, its first owner has ended: so once this
        // one is seen to end, the peer has for sure. Without a descriptor the connection alone is the proof of life.
        link.process = Pid::from_raw(them.process.max(0))
            .and_then(|process| pidfd_open(process, PidfdFlags::empty()).ok())
            .filter(|process| {
                epoll::add(&self.sockets, process, About::Process(slot).data(), EventFlags::IN).is_ok()
            });
        link.mirror = Some(memory.mirror());
        link.memory = Some(memory);
        link.phase = Phase::Up(socket);
        self.changed = true;
        self.events.push_back(LinkEvent::Up(slot));
    }

    /// The peer's process has ended (F5).
    fn on_exit(&mut self, slot: Slot) {
        self.hear_link(slot); // a goodbye may have come first
        let Some(link) = self.table[usize::from(slot.0)].as_ref() else { return };
        if matches!(link.phase, Phase::Up(_)) {
            let why = format!("process {} has ended", link.offer.process);
            self.down(slot, LinkDown::Broken(why));
        }
    }

    fn down(&mut self, slot: Slot, why: LinkDown) {
        let Some(link) = self.table[usize::from(slot.0)].as_mut() else { return };
        link.phase = Phase::Down; // and so the socket is closed
        if let Some(process) = &link.process {
            let _ = epoll::delete(&self.sockets, process);
        }
        self.changed = true;
        self.events.push_back(LinkEvent::Down(slot, why));
    }

    /// Starts, acts on and looks ahead to deadlines.
    fn pass_time(&mut self, now: Time) {
        let before = self.guests.len();
        self.guests.retain(|guest| guest.hello.is_some() || now < guest.deadline);
        for _ in self.guests.len()..before {
            self.refuse("it said nothing");
        }
        let mut due = self.accept_again.unwrap_or(Time(u64::MAX));
        for guest in self.guests.iter().filter(|guest| guest.hello.is_none()) {
            due = due.min(guest.deadline);
        }
        for slot in (0u8..).map(Slot).take(MAX_NODES) {
            if let Err(error) = self.dial(slot) {
                self.down(slot, LinkDown::Failed(error_text(error)));
            }
            let Some(link) = self.table[usize::from(slot.0)].as_mut() else { continue };
            let why = match link.phase {
                Phase::Dial => "the peer has too many to let in",
                Phase::Greeted(_) => "the peer did not answer: did it call connect for this node?",
                Phase::Awaited => "the peer did not dial: did it call connect for this node?",
                Phase::Up(_) | Phase::Down | Phase::Fenced => continue,
            };
            let deadline = *link.deadline.get_or_insert_with(|| now.plus(link.within));
            if now >= deadline {
                let within = link.within;
                self.down(slot, LinkDown::Failed(format!("{why} (waited {within:?})")));
                continue;
            }
            let again = if matches!(link.phase, Phase::Dial) { now.plus(AGAIN_AFTER) } else { deadline };
            due = due.min(deadline).min(again);
        }
        self.due = due;
    }

    /// Cuts a link and freezes its mirror (F4).
    pub(super) fn fence(&mut self, slot: Slot) {
        let Some(Some(link)) = self.table.get_mut(usize::from(slot.0)) else { return };
        let hung_up = match std::mem::replace(&mut link.phase, Phase::Fenced) {
            Phase::Fenced => return,
            Phase::Down => true,
            _ => false,
        };
        if let Some(process) = &link.process {
            let _ = epoll::delete(&self.sockets, process); // fails where `down` did it already
        }
        if let Some(memory) = &link.memory
            && !link.process.as_ref().is_some_and(|process| ended(process, hung_up))
        {
            memory.freeze();
        }
        link.process = None;
        self.changed = true;
    }

    /// Says goodbye to all peers and lets nobody in any more.
    pub(super) fn close(&mut self) {
        self.listener = None;
        self.guests.clear();
        for link in self.table.iter_mut().flatten() {
            if let Phase::Up(socket) = &link.phase {
                self.system_calls += 1;
                let _ = socket.send(&GOODBYE, None); // a peer that is gone needs none
            }
            if !matches!(link.phase, Phase::Fenced) {
                link.phase = Phase::Down;
            }
            if let Some(process) = &link.process {
                let _ = epoll::delete(&self.sockets, process);
            }
        }
        self.due = Time(u64::MAX);
        self.changed = true;
    }
}

/// Nodes of one user share memory; root may look at all of it anyway.
fn trusted(we: u32, they: u32) -> bool {
    they == we || they == 0
}

fn hello_to(me: &Offer, them: &Offer) -> [u8; super::hello::HELLO_BYTES] {
    let hello = Hello { from: me.node, to: them.node, segment: me.segment, given: them.token, own: me.token };
    hello.encode()
}

/// Maps the segment that came with a hello, if it is as the offer said.
fn map(offer: &Offer, hello: &Hello, file: OwnedFd, limit: usize) -> Result<Arc<PeerMemory>, LinkDown> {
    if hello.segment != offer.segment {
        let why = format!("its segment has {} bytes, its offer said {}", hello.segment, offer.segment);
        return Err(LinkDown::Corrupt(why));
    }
    PeerMemory::map(file, hello.segment, limit).map_err(|refusal| match refusal {
        Refusal::Kernel(error) => LinkDown::Failed(error_text(error)),
        refusal => LinkDown::Corrupt(refusal.to_string()),
    })
}

/// Whether a process has ended; one that `hung_up` is given a moment to.
fn ended(process: &OwnedFd, hung_up: bool) -> bool {
    let within = if hung_up { EXIT_WITHIN } else { AT_ONCE };
    rustix::event::poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&within))
        .is_ok_and(|ready| ready > 0)
}
