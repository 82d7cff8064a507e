//! Links from the first word to the last: dialling, introductions, proof of life, and the end.
//!
//! # How two nodes meet
//!
//! Each node listens at a Unix address of its own, which its [`Offer`] names. The node with the lower id dials. It sends one
//! packet: its [`Hello`] with its segment attached. The hello holds two tokens: the one out of *our* offer, which
//! shows that the control plane gave it to the dialler, and the one out of *its* offer, which we were given, and which
//! shows who it is. The other side maps the segment and answers in kind. Then the link is up, and the connection
//! stays open as the proof of life. All it carries from then on are renewals of either segment, and a goodbye.
//!
//! ```text
//! Dial ──► Greeted ──┐
//!                    ├──► Up ──► Down       (a setup that fails goes Down as well)
//! Awaited ───────────┘
//! ```
//!
//! A fence takes a link out of the table in whatever phase it is: its slot is free, and the table knows nothing of it any
//! more. What is remembered is that the peer was handed our memory, if it was ([`Former`]).
//!
//! Whoever knows both tokens is the peer: what it then sends wrong (an unsealed segment, another size) is its blame
//! ([`LinkDown::Corrupt`]).

use std::collections::VecDeque;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use consort_dataplane::fabric::{ConnectError, Kept, LinkDown, LinkEvent, RenewError};
use consort_dataplane::memory::Mirror;
use consort_dataplane::names::{MAX_NODES, NodeId, Slot, Time};
use rustix::io::Errno;

use super::former::Former;
use super::guests::{Guests, Introduced, own_user, trusted};
use super::hello::{GOODBYE, Hello, Offer, Place, RENEWALS_MAX, Renewal, Renewals};
use super::layers::{LayerError, Layers};
use super::life::LIFE;
use super::mapping::{OwnMemory, PeerMemory, Refusal};
use super::options::{ShmError, error_text};
use super::process::Process;
use super::sleep;
use super::socket::{Packet, Received, Socket};
use super::sockets::{About, Sockets};

/// When to dial again where too many dial, and to pass on a renewal that the machine did not take.
const AGAIN_AFTER: Duration = Duration::from_millis(5);

/// Looks at the sockets in one call of [`Links::tend`]; the rest waits for the next.
const ROUNDS_MAX: usize = 8;

/// How long a fence waits for a process to end whose connection has broken. A process that dies gives up its memory first,
/// closes its connections then, and is seen to have ended some 20 µs later: so this is less than the copy would take, and if
/// it lives after all, little.
const EXIT_WITHIN: Duration = Duration::from_micros(200);

/// All links of a node, its listener and its guests.
#[derive(Debug)]
pub(super) struct Links {
    me: Offer,
    peer_bytes_max: usize,
    memory: Arc<OwnMemory>,
    /// What was renewed of it.
    layers: Layers,
    former: Former,
    sockets: Sockets,
    guests: Guests,
    table: Vec<Option<Link>>,
    due: Time,
    events: VecDeque<LinkEvent>,
    changed: bool,
    /// A mirror has memory of which the owner has not heard yet.
    renewed: bool,
    system_calls: u64,
}

#[derive(Debug)]
struct Link {
    offer: Offer,
    phase: Phase,
    within: Duration,
    /// Set by the first `tend` after `connect`: time is an argument here too.
    deadline: Option<Time>,
    peer: Option<Peer>,
    process: Option<Process>,
    /// The newest of our files that the peer was handed, by its number in [`Links::layers`].
    handed: Option<u64>,
    /// The peer's word said that it has died, which its process is not seen to have for milliseconds.
    dying: bool,
}

/// The other end's memory.
#[derive(Debug)]
struct Peer {
    memory: Arc<PeerMemory>,
    layers: Layers,
    mirror: Mirror,
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
            layers: Layers::default(),
            former: Former::default(),
            sockets,
            guests,
            table: (0..MAX_NODES).map(|_| None).collect(),
            due: Time(u64::MAX),
            events: VecDeque::new(),
            changed: false,
            renewed: false,
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

    /// Whether a mirror was renewed since the last call.
    pub(super) fn take_renewed(&mut self) -> bool {
        std::mem::take(&mut self.renewed)
    }

    /// The links that are up, with their mirrors.
    pub(super) fn up(&self) -> impl Iterator<Item = (Slot, &Mirror)> {
        self.table.iter().zip(0u8..).filter_map(|(link, slot)| match link {
            Some(Link { phase: Phase::Up(_), peer: Some(peer), .. }) => Some((Slot(slot), &peer.mirror)),
            _ => None,
        })
    }

    pub(super) fn mirror(&self, slot: Slot) -> Option<&Mirror> {
        self.table.get(usize::from(slot.0))?.as_ref()?.peer.as_ref().map(|peer| &peer.mirror)
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
        let Some(place) = self.table.get_mut(usize::from(slot.0)) else {
            return Err(ConnectError::Machine(format!("a node has {MAX_NODES} links at most")));
        };
        match place.take() {
            None => {}
            Some(Link { phase: Phase::Down, peer: None, process, handed, .. }) => {
                self.former.note(process, handed);
            }
            // A mirror that was never frozen may be in use: its slot is free after a fence only.
            taken @ Some(_) => {
                *place = taken;
                return Err(ConnectError::Taken(slot));
            }
        }
        let phase = if dials { Phase::Dial } else { Phase::Awaited };
        let link = Link {
            offer,
            phase,
            within,
            deadline: None,
            peer: None,
            process: None,
            handed: None,
            dying: false,
        };
        self.table[usize::from(slot.0)] = Some(link);
        if let Err(error @ (Errno::MFILE | Errno::NFILE | Errno::NOMEM)) = self.dial(slot) {
            self.table[usize::from(slot.0)] = None;
            return Err(ConnectError::Machine(error_text(error)));
        }
        Ok(())
    }

    /// Whether who made `offer` is in the same place, known to be.
    pub(super) fn reaches(&self, offer: &[u8]) -> bool {
        let (mine, unknown) = (self.me.place, Place::default());
        let is_known = mine.machine != unknown.machine && mine.network != unknown.network;
        is_known && Offer::decode(offer).is_ok_and(|offer| offer.place == mine)
    }

    /// How many files were laid over the segment.
    pub(super) fn renewals(&self) -> u64 {
        self.layers.count()
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
        let said = match socket.credentials() {
            Ok(them) if trusted(own_user(), them.user) => {
                link.process = Process::open(them.process);
                link.greet(&self.me, &self.memory, &self.layers, &socket)
                    .and_then(|()| self.sockets.add(&socket, About::Link(slot)))
            }
            _ => Err(Errno::PERM),
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
        let Introduced { socket, credentials, hello, files } = guest;
        let Some(link) = self.table[usize::from(slot.0)].as_mut() else { return };
        self.system_calls += 7;
        let peer = match map(&link.offer, &hello, files, self.peer_bytes_max) {
            Ok(peer) => peer,
            Err(why) => return self.down(slot, why),
        };
        link.process = Process::open(credentials.process);
        let said = link
            .greet(&self.me, &self.memory, &self.layers, &socket)
            .and_then(|()| self.sockets.rename(&socket, About::Link(slot)));
        match said {
            Ok(()) => self.on_up(slot, socket, peer),
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
                Ok(Received::Packet(packet)) if packet.bytes == GOODBYE => LinkDown::Closed,
                Ok(Received::Packet(packet)) => match link.on_renewal(packet) {
                    Ok(()) => {
                        self.renewed = true;
                        return;
                    }
                    Err(why) => why,
                },
                Ok(Received::Oversize) => LinkDown::Corrupt("more than any renewal".to_owned()),
                Ok(Received::End) => LinkDown::Broken(format!("process {} hung up", link.offer.process)),
                Err(error @ (Errno::MFILE | Errno::NFILE)) => LinkDown::Own(error_text(error)),
                Err(error) => LinkDown::Broken(error_text(error)),
            },
            Phase::Dial | Phase::Awaited | Phase::Down => return,
        };
        self.down(slot, why);
    }

    /// The peer of `slot`, whom we dialled, has answered.
    fn on_answer(&mut self, slot: Slot, packet: Packet) {
        let Some(link) = self.table[usize::from(slot.0)].as_mut() else { return };
        self.system_calls += 6;
        let hello = Hello::decode(&packet.bytes).map_err(|garbage| format!("its hello: {garbage}"));
        let hello = match hello {
            Ok(hello) => hello,
            Err(why) => return self.down(slot, LinkDown::Corrupt(why)),
        };
        let fits = hello.given == self.me.token
            && hello.to == self.me.node
            && hello.own == link.offer.token
            && hello.from == link.offer.node;
        if !fits {
            return self.down(slot, LinkDown::Corrupt("its hello is not by who made the offer".to_owned()));
        }
        let peer = match map(&link.offer, &hello, packet.attached, self.peer_bytes_max) {
            Ok(peer) => peer,
            Err(why) => return self.down(slot, why),
        };
        if let Phase::Greeted(socket) = std::mem::replace(&mut link.phase, Phase::Down) {
            self.on_up(slot, socket, peer);
        }
    }

    fn on_up(&mut self, slot: Slot, socket: Socket, peer: Peer) {
        let Some(link) = self.table[usize::from(slot.0)].as_mut() else { return };
        if let Some(process) = &link.process {
            // Where it can't be watched the connection alone is the proof of life.
            let _ = self.sockets.add(process, About::Process(slot));
        }
        link.peer = Some(peer);
        link.phase = Phase::Up(socket);
        link.pass_on(&self.layers); // what was renewed since we said hello
        self.changed = true;
        self.events.push_back(LinkEvent::Up(slot));
    }

    /// The peer's process has ended (F5).
    fn on_exit(&mut self, slot: Slot) {
        for _ in 0..=RENEWALS_MAX {
            self.hear(slot); // a goodbye may have come first, behind renewals
        }
        let Some(link) = self.table[usize::from(slot.0)].as_ref() else { return };
        if matches!(link.phase, Phase::Up(_)) {
            let why = format!("process {} has ended", link.offer.process);
            self.down(slot, LinkDown::Dead(why));
        }
    }

    /// The peer of `slot` has died, as its word says (F5). Wakes all who sleep on that word; returns how many.
    pub(super) fn on_death(&mut self, slot: Slot) -> u64 {
        let Some(link) = self.table.get_mut(usize::from(slot.0)).and_then(Option::as_mut) else { return 0 };
        link.dying = true;
        let woken = link.peer.as_ref().map_or(0, |peer| sleep::wake_all(peer.memory.futex(LIFE)));
        self.on_exit(slot);
        woken
    }

    fn down(&mut self, slot: Slot, why: LinkDown) {
        let Some(link) = self.table[usize::from(slot.0)].as_mut() else { return };
        link.hang_up(&self.sockets);
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
            if link.pass_on(&self.layers) {
                due = due.min(now.plus(AGAIN_AFTER));
            }
            let why = match link.phase {
                Phase::Dial => "the peer has too many to let in",
                Phase::Greeted(_) => "the peer did not answer: did it call connect for this node?",
                Phase::Awaited => "the peer did not dial: did it call connect for this node?",
                Phase::Up(_) | Phase::Down => continue,
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

    /// Cuts a link, freezes its mirror (F4), all of it or what is to be kept, and frees its slot.
    pub(super) fn fence(&mut self, slot: Slot, kept: Option<&Kept<'_>>) {
        let Some(mut link) = self.table.get_mut(usize::from(slot.0)).and_then(Option::take) else { return };
        let hung_up = matches!(link.phase, Phase::Down);
        link.hang_up(&self.sockets);
        self.events
            .retain(|event| !matches!(event, LinkEvent::Up(of) | LinkEvent::Down(of, _) if *of == slot));
        let within = if hung_up && !link.dying { EXIT_WITHIN } else { Duration::ZERO };
        let ended = link.process.as_ref().is_some_and(|process| process.has_ended(within));
        if let Some(peer) = link.peer
            && !ended
        {
            match kept {
                Some(kept) => peer.memory.freeze_keeping(kept),
                None => peer.memory.freeze(&peer.layers),
            }
        }
        if !ended {
            self.former.note(link.process, link.handed);
        }
        self.changed = true;
    }

    /// Lays other memory under `range` of our segment, if any but the linked may read what is there, and hands it to these.
    /// Returns whether some of them have to wait for it.
    pub(super) fn renew(&mut self, range: Range<usize>) -> Result<bool, RenewError> {
        let renewal = Renewal { start: range.start as u64, bytes: range.len() as u64 };
        let range = match self.layers.check(renewal, self.memory.len()) {
            Ok(range) => range,
            Err(LayerError::Pieces) => return Err(RenewError::Pieces { pieces: self.layers.iter().count() }),
            Err(error @ LayerError::Range { .. }) => panic!("{error}"), // our own mistake (S4)
        };
        let oldest = self.layers.oldest(range.clone());
        let down = self.table.iter().flatten().filter(|link| matches!(link.phase, Phase::Down));
        let mut down = down.filter(|link| link.handed.is_some_and(|newest| newest >= oldest));
        let lives = |process: &Process| !process.has_ended(Duration::ZERO);
        if !self.former.may_read(oldest) && !down.any(|link| link.process.as_ref().is_none_or(lives)) {
            return Ok(false);
        }
        let file = self.memory.renew(&range).map_err(|error| RenewError::Machine(error.to_string()))?;
        self.layers.lay(range, file);
        let mut waiting = false;
        for link in self.table.iter_mut().flatten() {
            waiting |= link.pass_on(&self.layers);
        }
        Ok(waiting)
    }

    /// Says goodbye to all peers and lets nobody in any more.
    pub(super) fn close(&mut self) {
        self.guests.close();
        for link in self.table.iter_mut().flatten() {
            if let Phase::Up(socket) = &link.phase {
                self.system_calls += 1;
                let _ = socket.send(&GOODBYE, &[]); // a peer that is gone needs none
            }
            link.hang_up(&self.sockets);
        }
        self.due = Time(u64::MAX);
        self.changed = true;
    }
}

impl Link {
    /// Says hello to the peer, and hands it our memory.
    fn greet(
        &mut self,
        me: &Offer,
        memory: &OwnMemory,
        layers: &Layers,
        socket: &Socket,
    ) -> Result<(), Errno> {
        let mut renewals = Renewals::default();
        let mut files = vec![memory.file()];
        for layer in layers.iter() {
            renewals.push(layer.renewal()).ok_or(Errno::MSGSIZE)?;
            files.push(layer.file.as_fd());
        }
        let (from, to, segment) = (me.node, self.offer.node, me.segment);
        let hello = Hello { from, to, segment, given: self.offer.token, own: me.token, renewals };
        socket.send(&hello.encode(), &files)?;
        self.handed = Some(layers.count());
        Ok(())
    }

    /// Hands the peer what was renewed since it was handed something last, if the link is up. Returns whether it has to be
    /// tried again.
    fn pass_on(&mut self, layers: &Layers) -> bool {
        let (Phase::Up(socket), Some(handed)) = (&self.phase, &mut self.handed) else { return false };
        let before = *handed;
        for layer in layers.iter().filter(|layer| layer.number > before) {
            match socket.send(&layer.renewal().encode(), &[layer.file.as_fd()]) {
                Ok(()) => *handed = layer.number,
                // It does not read, or there are too many descriptors under way.
                Err(Errno::WOULDBLOCK | Errno::INTR | Errno::NOBUFS | Errno::NOMEM | Errno::TOOMANYREFS) => {
                    return true;
                }
                Err(_) => return false, // it is gone, and that will be reported
            }
        }
        false
    }

    /// The peer says that a part of its segment lies elsewhere now.
    fn on_renewal(&mut self, packet: Packet) -> Result<(), LinkDown> {
        let corrupt = |why: String| LinkDown::Corrupt(why);
        let renewal = Renewal::decode(&packet.bytes)
            .map_err(|_| corrupt("what it said over a link that is up is no renewal".to_owned()))?;
        let Ok([file]) = <[OwnedFd; 1]>::try_from(packet.attached) else {
            return Err(corrupt("its renewal did not bring one file".to_owned()));
        };
        let Some(peer) = &mut self.peer else { return Ok(()) };
        peer.lay(renewal, file).map_err(blame)
    }

    /// Ends the connection, and forgets what the sockets were about.
    fn hang_up(&mut self, sockets: &Sockets) {
        // Taken out before they are closed: a child that was forked off may hold them open.
        if let Phase::Greeted(socket) | Phase::Up(socket) = std::mem::replace(&mut self.phase, Phase::Down) {
            sockets.remove(&socket);
        }
        if let Some(process) = &self.process {
            sockets.remove(process);
        }
    }
}

impl Peer {
    /// Maps `file` where the renewal says (S3).
    fn lay(&mut self, renewal: Renewal, file: OwnedFd) -> Result<(), Refusal> {
        let range = self.layers.check(renewal, self.memory.len())?;
        self.memory.renew(&range, &file)?;
        self.layers.lay(range, file);
        Ok(())
    }
}

/// Maps the segment that came with a hello, if it is as the offer said.
fn map(offer: &Offer, hello: &Hello, files: Vec<OwnedFd>, limit: usize) -> Result<Peer, LinkDown> {
    if hello.segment != offer.segment {
        let why = format!("its segment has {} bytes, its offer said {}", hello.segment, offer.segment);
        return Err(LinkDown::Corrupt(why));
    }
    let renewals = hello.renewals.as_slice();
    let mut files = files.into_iter();
    let Some(file) = files.next().filter(|_| files.len() == renewals.len()) else {
        return Err(LinkDown::Corrupt("it did not bring the segment of which it spoke".to_owned()));
    };
    let memory = PeerMemory::map(file, hello.segment, limit).map_err(blame)?;
    let mut peer = Peer { mirror: memory.mirror(), memory, layers: Layers::default() };
    for (renewal, file) in renewals.iter().zip(files) {
        peer.lay(*renewal, file).map_err(blame)?;
    }
    Ok(peer)
}

/// Whose fault it is that nothing was mapped.
fn blame(refusal: Refusal) -> LinkDown {
    match refusal {
        Refusal::Kernel(error) => LinkDown::Failed(error_text(error)),
        refusal => LinkDown::Corrupt(refusal.to_string()),
    }
}
