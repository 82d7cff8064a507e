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
//! Whoever knows both tokens is the peer: what it then sends wrong (an unsealed segment, another size) is its blame
//! ([`LinkDown::Corrupt`]).

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use consort_dataplane::fabric::{ConnectError, LinkDown, LinkEvent};
use consort_dataplane::memory::Mirror;
use consort_dataplane::names::{MAX_NODES, NodeId, Slot, Time};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::time::Timespec;

use super::guests::{Guests, Introduced, own_user, trusted};
use super::hello::{GOODBYE, HELLO_BYTES, Hello, Offer};
use super::mapping::{OwnMemory, PeerMemory, Refusal};
use super::options::{ShmError, error_text};
use super::socket::{Credentials, Packet, Received, Socket};
use super::sockets::{About, Sockets};

/// When to dial again where too many dial.
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
    peer_bytes_max: usize,
    memory: Arc<OwnMemory>,
    sockets: Sockets,
    guests: Guests,
    table: Vec<Option<Link>>,
    due: Time,
    events: VecDeque<LinkEvent>,
    changed: bool,
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

impl Links {
    /// Listens at the address that `me` names.
    pub(super) fn new(me: Offer, memory: Arc<OwnMemory>, peer_bytes_max: usize) -> Result<Self, ShmError> {
        let sockets = Sockets::new().map_err(|errno| ShmError::machine("making an epoll set", errno))?;
        let guests = Guests::new(me.node, me.token, &me.name, &sockets)?;
        Ok(Self {
            me,
            peer_bytes_max,
            memory,
            sockets,
            guests,
            table: (0..MAX_NODES).map(|_| None).collect(),
            due: Time(u64::MAX),
            events: VecDeque::new(),
            changed: false,
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
        self.guests.refused()
    }

    pub(super) fn system_calls(&self) -> u64 {
        self.system_calls + self.guests.system_calls()
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
        if self.guests.is_closed() {
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
        let said = if user.as_ref().is_ok_and(|&user| trusted(own_user(), user)) {
            socket
                .send(&hello, Some(self.memory.file()))
                .and_then(|()| self.sockets.add(&socket, About::Link(slot)))
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
            self.system_calls += 1;
            let ready = self.sockets.ready();
            for about in &ready {
                match *about {
                    About::Listener => self.guests.accept(now, &self.sockets),
                    About::Guest(id) => self.guests.hear(id),
                    About::Link(slot) => self.hear(slot),
                    About::Process(slot) => self.on_exit(slot),
                }
            }
            if ready.is_empty() || self.guests.is_starved() {
                more = false; // where the machine has no room, `due` comes back to it
                break;
            }
        }
        for slot in (0u8..).map(Slot).take(MAX_NODES) {
            let wanted = self.table[usize::from(slot.0)].as_ref();
            if let Some(link) = wanted.filter(|link| matches!(link.phase, Phase::Awaited))
                && let Some(guest) = self.guests.take(link.offer.node, link.offer.token)
            {
                self.answer(slot, guest);
            }
        }
        self.pass_time(now);
        more
    }

    /// The peer of `slot` has dialled: says hello to it in turn.
    fn answer(&mut self, slot: Slot, guest: Introduced) {
        let Introduced { socket, credentials, hello, file } = guest;
        let Some(link) = self.table[usize::from(slot.0)].as_ref() else { return };
        self.system_calls += 6;
        let memory = match map(&link.offer, &hello, file, self.peer_bytes_max) {
            Ok(memory) => memory,
            Err(why) => return self.down(slot, why),
        };
        let said = socket
            .send(&hello_to(&self.me, &link.offer), Some(self.memory.file()))
            .and_then(|()| self.sockets.rename(&socket, About::Link(slot)));
        match said {
            Ok(()) => self.on_up(slot, socket, credentials, memory),
            Err(error) => self.down(slot, LinkDown::Failed(error_text(error))),
        }
    }

    /// A link's socket has something, or was hung up.
    fn hear(&mut self, slot: Slot) {
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
            let them = socket.credentials().unwrap_or(Credentials { process: 0, user: own_user() });
            self.on_up(slot, socket, them, memory);
        }
    }

    fn on_up(&mut self, slot: Slot, socket: Socket, them: Credentials, memory: Arc<PeerMemory>) {
        let Some(link) = self.table[usize::from(slot.0)].as_mut() else { return };
        // If the number was given to another process meanwhile, its first owner has ended: so once this
        // one is seen to end, the peer has for sure. Without a descriptor the connection alone is the proof of life.
        link.process = Pid::from_raw(them.process.max(0))
            .and_then(|process| pidfd_open(process, PidfdFlags::empty()).ok())
            .filter(|process| self.sockets.add(process, About::Process(slot)).is_ok());
        link.mirror = Some(memory.mirror());
        link.memory = Some(memory);
        link.phase = Phase::Up(socket);
        self.changed = true;
        self.events.push_back(LinkEvent::Up(slot));
    }

    /// The peer's process has ended (F5).
    fn on_exit(&mut self, slot: Slot) {
        self.hear(slot); // a goodbye may have come first
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
            self.sockets.remove(process);
        }
        self.changed = true;
        self.events.push_back(LinkEvent::Down(slot, why));
    }

    /// Starts, acts on and looks ahead to deadlines.
    fn pass_time(&mut self, now: Time) {
        let mut due = self.guests.pass_time(now);
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
            self.sockets.remove(process);
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
        self.guests.close();
        for link in self.table.iter_mut().flatten() {
            if let Phase::Up(socket) = &link.phase {
                self.system_calls += 1;
                let _ = socket.send(&GOODBYE, None); // a peer that is gone needs none
            }
            if !matches!(link.phase, Phase::Fenced) {
                link.phase = Phase::Down;
            }
            if let Some(process) = &link.process {
                self.sockets.remove(process);
            }
        }
        self.due = Time(u64::MAX);
        self.changed = true;
    }
}

fn hello_to(me: &Offer, them: &Offer) -> [u8; HELLO_BYTES] {
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
