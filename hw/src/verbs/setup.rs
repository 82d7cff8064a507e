//! How links come up and how their connections end. See [`super::hello`] for what is said.
//!
//! Strangers are bounded as in the `tcp` fabric: whoever connects has proven nothing until its hello has; there are at most
//! `max_strangers`, each for a few seconds, and the oldest that says nothing makes room.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use consort_dataplane::fabric::{LinkDown, LinkEvent};
use consort_dataplane::names::{NodeId, PeerSet, Slot, Time};

use crate::tcp::hello::{HELLO, Hello, Role, Token, Unwelcome};
use crate::tcp::sys::{self, is_later};

use super::VerbsFabric;
use super::device::Report;
use super::hello::{ENDS, Ends, GOODBYE, GREETING, READY};
use super::link::{Dial, Link, Phase};
use super::outgoing::RINGS;
use super::page::PAGE;

/// How long a stranger has for its greeting.
const GREETING_WITHIN: Duration = Duration::from_secs(3);

/// How long a stranger with a right hello may wait for this node to be told of it.
const WELCOME_WITHIN: Duration = Duration::from_secs(30);

/// How long the listener is left alone when the machine refuses to accept.
const ACCEPT_AGAIN: Duration = Duration::from_millis(200);

/// Connections taken in at once.
const ACCEPTS: usize = 16;

/// Receives that wait for rings.
pub(super) const RECEIVES: usize = 16;

const _: () = assert!(RECEIVES > RINGS, "those under way when a nap begins, and one in it");

/// Who connected and is not yet linked.
pub(super) struct Stranger {
    socket: OwnedFd,
    bytes: [u8; GREETING],
    got: usize,
    /// Its hello, which is for this node and knows its token.
    hello: Option<Hello>,
    deadline: Time,
}

impl VerbsFabric {
    /// Looks at everything beside the queue pairs: strangers, connections, reports of the device.
    pub(super) fn attend(&mut self, now: Time) {
        self.accept(now);
        self.hear_strangers(now);
        for slot in self.slots(|link| matches!(link.phase, Phase::Dialling(_))).iter() {
            if let Err(why) = self.dial(slot) {
                self.take_down(slot, LinkDown::Failed(why));
            }
        }
        // Before the connections: if this node's own device is gone, that is why all links are over, not that the peers hang up.
        while let Some(report) = self.outlet.context.next_report() {
            self.on_report(report);
        }
        for slot in self.slots(|link| matches!(link.phase, Phase::Answered(_) | Phase::Up(_))).iter() {
            self.hear(slot);
        }
        for slot in self.slots(Link::is_being_set_up).iter() {
            let Some(link) = self.link_mut(slot) else { continue };
            let deadline = *link.deadline.get_or_insert(now.plus(link.within));
            if now >= deadline {
                let who = match link.phase {
                    Phase::Expected => "the peer has not dialled",
                    Phase::Answered(_) => "the peer has not connected its queue pair",
                    _ => "the peer has not answered",
                };
                let why = format!("{who} within {:?}", link.within);
                self.take_down(slot, LinkDown::Failed(why));
            }
        }
        self.setting_up =
            !self.strangers.is_empty() || self.links.iter().flatten().any(|link| link.is_being_set_up());
    }

    pub(super) fn on_report(&mut self, report: Report) {
        match report {
            Report::Device(why) => {
                for slot in self.slots(|link| !link.is_over()).iter() {
                    self.take_down(slot, LinkDown::Own(why.clone()));
                }
            }
            Report::Pair(name, why) => {
                let named = |link: &Link| link.pair.as_ref().is_some_and(|pair| pair.name() == name);
                for slot in self.slots(named).iter() {
                    self.break_down(slot, &why);
                }
            }
            Report::Other(what) => {
                tracing::info!(device = self.outlet.context.name(), port = self.outlet.number, "{what}");
            }
        }
    }

    /// The slots whose links fulfil a condition.
    pub(super) fn slots(&self, condition: impl Fn(&Link) -> bool) -> PeerSet {
        self.links.iter().flatten().filter(|link| condition(link)).map(|link| link.slot).collect()
    }

    fn accept(&mut self, now: Time) {
        if self.accept_again.is_some_and(|at| now < at) {
            return;
        }
        self.accept_again = None;
        for _ in 0..ACCEPTS {
            let socket = match sys::accept(self.listener.as_fd()) {
                Ok(socket) => socket,
                Err(cause) => {
                    if !is_later(&cause) && cause.kind() != io::ErrorKind::ConnectionAborted {
                        tracing::warn!(%cause, "a connection could not be accepted; see `ulimit -n`");
                        self.accept_again = Some(now.plus(ACCEPT_AGAIN));
                    }
                    return;
                }
            };
            if self.strangers.len() >= self.options.max_strangers.max(1) {
                self.refused += 1;
                let Some(oldest) = self.strangers.iter().position(|stranger| stranger.hello.is_none()) else {
                    continue;
                };
                self.strangers.remove(oldest);
            }
            self.watch_socket(&socket);
            let deadline = now.plus(GREETING_WITHIN);
            self.strangers.push(Stranger { socket, bytes: [0; GREETING], got: 0, hello: None, deadline });
        }
        self.look = true; // there may be more, of which nobody tells again
    }

    fn hear_strangers(&mut self, now: Time) {
        let mut at = 0;
        while at < self.strangers.len() {
            match self.hear_stranger(at, now) {
                Ok(false) => at += 1,
                Ok(true) => {} // it is linked, and gone from the list
                Err(why) => {
                    self.strangers.remove(at);
                    self.refused += 1;
                    tracing::debug!(node = %self.node, why, "a connection to the listener was turned away");
                }
            }
        }
    }

    /// Hears one stranger. Returns whether it is linked, or why it has to go.
    fn hear_stranger(&mut self, at: usize, now: Time) -> Result<bool, String> {
        let stranger = &mut self.strangers[at];
        if now >= stranger.deadline {
            return Err("it said no greeting in time, or nobody expected it".to_owned());
        }
        if stranger.hello.is_none() {
            if !fill(&stranger.socket, &mut stranger.bytes, &mut stranger.got)? {
                return Ok(false);
            }
            let (node, token) = (self.node, self.token);
            let check = |hello: Hello| -> Result<Hello, Unwelcome> {
                hello.check_for(node, &token, Role::Dialler)?;
                Ok(hello)
            };
            let (hello, _) = parts(&stranger.bytes);
            let hello = Hello::decode(&hello).and_then(check).map_err(|why| why.to_string())?;
            stranger.hello = Some(hello);
            stranger.deadline = now.plus(WELCOME_WITHIN);
        }
        let Some(hello) = stranger.hello else { return Ok(false) };
        let (_, ends) = parts(&stranger.bytes);
        let known = |link: &Link| {
            !link.is_over() && link.peer == hello.from && link.offer.token.matches(&hello.from_token)
        };
        // There may be a link to an earlier incarnation of the same node.
        let Some(link) = self.links.iter().flatten().find(|link| known(link)) else {
            return Ok(false); // not yet told of it
        };
        if !matches!(link.phase, Phase::Expected) {
            return Err("there is a link to that node already".to_owned());
        }
        hello.check_from(&link.offer).map_err(|why| why.to_string())?;
        let slot = link.slot;
        let stranger = self.strangers.remove(at);
        // It has proven itself, so what fails from here on is the end of the link.
        if let Err(why) = self.welcome(stranger.socket, &hello, &ends, slot) {
            self.take_down(slot, LinkDown::Failed(why));
        }
        Ok(true)
    }

    /// Connects to a peer that dialled, and answers.
    fn welcome(
        &mut self,
        socket: OwnedFd,
        hello: &Hello,
        ends: &[u8; ENDS],
        slot: Slot,
    ) -> Result<(), String> {
        let ends = Ends::decode(ends)?;
        self.connect_pair(slot, &ends)?;
        let answer = self.greeting(slot, hello.from, hello.from_token, Role::Acceptor)?;
        tune(&socket, self.options.unanswered)?;
        sys::send_all(socket.as_fd(), &answer).map_err(|cause| cause.to_string())?;
        if let Some(link) = self.link_mut(slot) {
            link.phase = Phase::Answered(socket);
        }
        Ok(())
    }

    /// One turn of dialling.
    fn dial(&mut self, slot: Slot) -> Result<(), String> {
        let (node, token) = (self.node, self.token);
        let Some(link) = self.link_mut(slot) else { return Ok(()) };
        let address = link.offer.address;
        let Phase::Dialling(dial) = &mut link.phase else { return Ok(()) };
        if !dial.said {
            // It fails so for as long as the connection is not there, and then with what became of it.
            match sys::send_all(dial.socket.as_fd(), &dial.greeting) {
                Ok(()) => dial.said = true,
                Err(cause) if is_later(&cause) => return Ok(()),
                Err(cause) => return Err(format!("dialling {address}: {cause}")),
            }
        }
        let whole = fill(&dial.socket, &mut dial.answer, &mut dial.got)
            .map_err(|why| format!("waiting for the answer of {address}: {why}"))?;
        if !whole {
            return Ok(());
        }
        let (hello, ends) = parts(&dial.answer);
        let check = |hello: Hello| {
            hello.check_for(node, &token, Role::Acceptor)?;
            hello.check_from(&link.offer)
        };
        Hello::decode(&hello).and_then(check).map_err(|why| format!("{address} is not the peer: {why}"))?;
        let ends = Ends::decode(&ends)?;
        let Phase::Dialling(dial) = std::mem::replace(&mut link.phase, Phase::Expected) else {
            return Ok(());
        };
        self.connect_pair(slot, &ends)?;
        tune(&dial.socket, self.options.unanswered)?;
        sys::send_all(dial.socket.as_fd(), &[READY])
            .map_err(|cause| format!("telling {address}: {cause}"))?;
        self.bring_up(slot, dial.socket);
        Ok(())
    }

    /// Reads the connection of a link: that the peer is ready, that it leaves, that it is gone.
    pub(super) fn hear(&mut self, slot: Slot) {
        loop {
            let Some(link) = self.link_mut(slot) else { return };
            let (socket, up) = match &link.phase {
                Phase::Up(socket) => (socket, true),
                Phase::Answered(socket) => (socket, false),
                _ => return,
            };
            let mut word = [0];
            let why = match sys::receive_some(socket.as_fd(), &mut word) {
                Ok(0) if up => LinkDown::Broken(
                    "the peer's end of the connection is gone: its process ended, or it cut the link"
                        .to_owned(),
                ),
                Ok(0) => LinkDown::Failed("the peer hung up before its queue pair was connected".to_owned()),
                Ok(_) if word == [READY] && !up => {
                    let phase = std::mem::replace(&mut link.phase, Phase::Expected);
                    if let Phase::Answered(socket) = phase {
                        self.bring_up(slot, socket);
                    }
                    continue;
                }
                Ok(_) if word == [GOODBYE] && up => LinkDown::Closed,
                Ok(_) => LinkDown::Corrupt(format!("byte {} on its connection", word[0])),
                Err(cause) if is_later(&cause) => return,
                Err(cause) if up => {
                    LinkDown::Broken(format!("the connection beside the queue pair: {cause}"))
                }
                Err(cause) => LinkDown::Failed(cause.to_string()),
            };
            self.take_down(slot, why);
            return;
        }
    }

    /// This node's hello to a peer, and its end.
    pub(super) fn greeting(
        &self,
        slot: Slot,
        to: NodeId,
        to_token: Token,
        role: Role,
    ) -> Result<[u8; GREETING], String> {
        let mut nonce = [0; 8];
        getrandom::fill(&mut nonce).map_err(|cause| format!("no random numbers: {cause}"))?;
        let hello = Hello {
            role,
            from: self.node,
            to,
            segment_bytes: self.segment.size(),
            to_token,
            from_token: self.token,
            nonce: u64::from_le_bytes(nonce),
        };
        let link = self.links.get(usize::from(slot.0)).and_then(Option::as_ref);
        let Some((link, pair)) = link.and_then(|link| Some((link, link.pair.as_ref()?))) else {
            return Err("there is no queue pair".to_owned());
        };
        let ends = Ends::of(&self.outlet, pair, link.sequence);
        let mut greeting = [0; GREETING];
        greeting[..HELLO].copy_from_slice(&hello.encode());
        greeting[HELLO..].copy_from_slice(&ends.encode());
        Ok(greeting)
    }

    /// Connects this end's queue pair to the peer's.
    fn connect_pair(&mut self, slot: Slot, ends: &Ends) -> Result<(), String> {
        let sequence = self.links[usize::from(slot.0)].as_ref().map_or(0, |link| link.sequence);
        let path = ends.path(&self.outlet, &self.options, sequence)?;
        let device = self.outlet.context.name().to_owned();
        let gid = crate::gid::address(ends.peer.gid);
        let Some(pair) = self.link_mut(slot).and_then(|link| link.pair.as_mut()) else { return Ok(()) };
        pair.connect(ends.peer, &path, RECEIVES).map_err(|cause| {
            format!(
                "the queue pair of {device} can't be connected to GID {gid} from GID index {}: {cause}; see `ibv_devinfo -v`",
                path.gid_index
            )
        })
    }

    fn bring_up(&mut self, slot: Slot, socket: OwnedFd) {
        let segment = self.segment.clone();
        let Some(link) = self.link_mut(slot) else { return };
        link.phase = Phase::Up(socket);
        link.was_up = true;
        // What the peer is to know of this node's page, and an epoch behind all that was published meanwhile.
        link.outgoing.publish_words(&segment, PAGE);
        link.tells = false;
        link.naps.on_publish();
        self.up = self.up.with(slot);
        self.tell(slot);
        self.pump(slot, false);
        // What came before this node knew that the link is up has not been looked at: the first poll will find it new.
        if self.link_mut(slot).is_some_and(|link| link.is_up()) {
            self.events.push_back(LinkEvent::Up(slot));
        }
    }

    /// The next instant at which setting up has to look at the clock.
    pub(super) fn next_deadline(&self) -> Option<Time> {
        let links = self.links.iter().flatten();
        let links = links.filter(|link| link.is_being_set_up()).filter_map(|link| link.deadline);
        let strangers = self.strangers.iter().map(|stranger| stranger.deadline);
        links.chain(strangers).chain(self.accept_again).min()
    }
}

impl Dial {
    pub(super) fn new(socket: OwnedFd, greeting: [u8; GREETING]) -> Box<Self> {
        Box::new(Self { socket, greeting, said: false, answer: [0; GREETING], got: 0 })
    }
}

/// Reads on. Returns whether all is there.
fn fill(socket: &OwnedFd, bytes: &mut [u8; GREETING], got: &mut usize) -> Result<bool, String> {
    while *got < GREETING {
        match sys::receive_some(socket.as_fd(), &mut bytes[*got..]) {
            Ok(0) => {
                return Err("it hung up: it is another node, or was started anew since its offer".to_owned());
            }
            Ok(more) => *got += more,
            Err(cause) if is_later(&cause) => return Ok(false),
            Err(cause) => return Err(cause.to_string()),
        }
    }
    Ok(true)
}

fn parts(greeting: &[u8; GREETING]) -> ([u8; HELLO], [u8; ENDS]) {
    let (mut hello, mut ends) = ([0; HELLO], [0; ENDS]);
    hello.copy_from_slice(&greeting[..HELLO]);
    ends.copy_from_slice(&greeting[HELLO..]);
    (hello, ends)
}

fn tune(socket: &OwnedFd, unanswered: Duration) -> Result<(), String> {
    rustix::net::sockopt::set_tcp_nodelay(socket, true).map_err(|cause| cause.to_string())?;
    sys::keep_alive(socket.as_fd(), unanswered).map_err(|cause| cause.to_string())
}
