//! How links come up: the data listener, strangers at it, and the two hellos. See [`super::hello`] for their contents.
//!
//! Whoever connects is a stranger until its hello has proven that the control plane sent it. Of strangers there are at
//! most `max_strangers`, each with 80 bytes of memory and a few seconds; when there are too many, the oldest that
//! has not proven itself has to go, so that a crowd can't keep a peer out, who says its hello at once. A stranger whose
//! hello is right, but whom this node was not yet told to connect to, waits for that.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use consort_dataplane::fabric::{LinkDown, LinkEvent};
use consort_dataplane::names::{NodeId, PeerSet, Slot, Time};

use super::TcpFabric;
use super::engine::Token;
use super::hello::{HELLO, Hello, Role, Token as Token128, Unwelcome, salt};
use super::incoming::Incoming;
use super::lifeline::Hold;
use super::link::{Dial, Link, Phase};
use super::sys::{self, is_later};

/// How long a stranger has for its hello.
const HELLO_WITHIN: Duration = Duration::from_secs(3);

/// How long a stranger with a right hello may wait for this node to be told of it.
const WELCOME_WITHIN: Duration = Duration::from_secs(30);

/// How long the listener is left alone when the machine refuses to accept.
const ACCEPT_AGAIN: Duration = Duration::from_millis(200);

/// Connections taken in at once.
const ACCEPTS: usize = 16;

/// Who connected and is not yet linked.
pub(super) struct Stranger {
    pub(super) socket: OwnedFd,
    pub(super) token: Token,
    bytes: [u8; HELLO],
    got: usize,
    /// Its hello, which is for this node and knows its token.
    hello: Option<Hello>,
    deadline: Time,
}

impl Stranger {
    /// Whether it is awaited that it says something.
    pub(super) fn owes_hello(&self) -> bool {
        self.hello.is_none()
    }
}

impl TcpFabric {
    /// One turn of setting up. Returns whether anything happened.
    pub(super) fn set_up(&mut self, now: Time) -> bool {
        let before = self.events.len();
        self.accept(now);
        self.hear_strangers(now);
        for slot in self.slots(|link| matches!(link.phase, Phase::Dialling(_))).iter() {
            self.dial(slot);
        }
        for slot in self.slots(|link| link.is_being_set_up()).iter() {
            let Some(link) = self.links[usize::from(slot.0)].as_mut() else { continue };
            let deadline = *link.deadline.get_or_insert(now.plus(link.within));
            if now >= deadline {
                let who = match link.phase {
                    Phase::Expected => "the peer has not dialled",
                    _ => "the peer has not answered",
                };
                let why = format!("{who} within {:?}", link.within);
                self.take_down(slot, LinkDown::Failed(why));
            }
        }
        self.setting_up =
            !self.strangers.is_empty() || self.links.iter().flatten().any(|link| link.is_being_set_up());
        self.events.len() > before
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
            self.counts.called();
            let socket = match sys::accept(self.listener.as_fd()) {
                Ok(socket) => socket,
                Err(cause) => {
                    if !is_later(&cause) && cause.kind() != io::ErrorKind::ConnectionAborted {
                        // The connection stays where it is, and the listener ready: not to be looked at all the time.
                        tracing::warn!(%cause, "a connection could not be accepted; see `ulimit -n`");
                        self.accept_again = Some(now.plus(ACCEPT_AGAIN));
                    }
                    return;
                }
            };
            if self.strangers.len() >= self.options.max_strangers.max(1) {
                let Some(oldest) = self.strangers.iter().position(Stranger::owes_hello) else {
                    self.turn_away("there are too many connections already");
                    continue;
                };
                self.dismiss(oldest, "there are too many connections that say nothing");
            }
            let token = self.new_setup_token();
            self.strangers.push(Stranger {
                socket,
                token,
                bytes: [0; HELLO],
                got: 0,
                hello: None,
                deadline: now.plus(HELLO_WITHIN),
            });
        }
    }

    pub(super) fn new_setup_token(&mut self) -> Token {
        self.next_number = self.next_number.wrapping_add(1);
        Token::Setup(self.next_number)
    }

    fn hear_strangers(&mut self, now: Time) {
        let mut at = 0;
        while at < self.strangers.len() {
            match self.hear(at, now) {
                Ok(false) => at += 1,
                Ok(true) => {} // it is linked, and gone from the list
                Err(why) => self.dismiss(at, &why),
            }
        }
    }

    /// Hears one stranger. Returns whether it is linked, or why it has to go.
    fn hear(&mut self, at: usize, now: Time) -> Result<bool, String> {
        let stranger = &mut self.strangers[at];
        if now >= stranger.deadline {
            return Err("it said no hello in time, or nobody expected it".to_owned());
        }
        if stranger.hello.is_none() {
            self.counts.called();
            // No byte beyond the hello: what follows are frames.
            match sys::receive_some(stranger.socket.as_fd(), &mut stranger.bytes[stranger.got..]) {
                Ok(0) => return Err("it hung up before its hello".to_owned()),
                Ok(n) => {
                    stranger.got += n;
                    self.counts.fabric.bytes_in += n as u64;
                }
                Err(cause) if is_later(&cause) => return Ok(false),
                Err(cause) => return Err(cause.to_string()),
            }
            if stranger.got < HELLO {
                return Ok(false);
            }
            let check = |hello: Hello| -> Result<Hello, Unwelcome> {
                hello.check_for(self.node, &self.token, Role::Dialler)?;
                Ok(hello)
            };
            let hello = Hello::decode(&stranger.bytes).and_then(check).map_err(|why| why.to_string())?;
            stranger.hello = Some(hello);
            stranger.deadline = now.plus(WELCOME_WITHIN);
        }
        let Some(hello) = stranger.hello else { return Ok(false) };
        let mut links = self.links.iter().flatten().filter(|link| !link.is_over());
        // There may be a link to an earlier incarnation of the same node.
        let Some(link) =
            links.find(|link| link.peer == hello.from && link.offer.token.matches(&hello.from_token))
        else {
            return Ok(false); // not yet told of it
        };
        if !matches!(link.phase, Phase::Expected) {
            return Err("there is a link to that node already".to_owned());
        }
        hello.check_from(&link.offer).map_err(|why| why.to_string())?;
        let slot = link.slot;
        self.welcome(at, &hello, slot)?;
        Ok(true)
    }

    /// Answers a peer's hello: the link is up.
    fn welcome(&mut self, at: usize, hello: &Hello, slot: Slot) -> Result<(), String> {
        let answer = self.hello_to(hello.from, hello.from_token, Role::Acceptor)?.encode();
        let stranger = self.strangers.remove(at);
        self.forget(stranger.token, stranger.socket.as_fd());
        self.counts.called();
        let tuned = sys::tune(stranger.socket.as_fd(), &self.options);
        match tuned.and_then(|()| sys::send_all(stranger.socket.as_fd(), &answer)) {
            Ok(()) => {
                self.counts.fabric.bytes_out += HELLO as u64;
                self.bring_up(slot, stranger.socket, &stranger.bytes, &answer);
            }
            // It proved itself, so this is the end of its only connection.
            Err(cause) => self.take_down(slot, LinkDown::Failed(cause.to_string())),
        }
        Ok(())
    }

    /// One turn of dialling.
    fn dial(&mut self, slot: Slot) {
        match self.try_dial(slot) {
            Ok(None) => {}
            Ok(Some((socket, hello, answer))) => self.bring_up(slot, socket, &hello, &answer),
            Err(why) => self.take_down(slot, LinkDown::Failed(why)),
        }
    }

    #[allow(clippy::type_complexity, reason = "a connection and its two hellos, for one caller")]
    fn try_dial(&mut self, slot: Slot) -> Result<Option<(OwnedFd, [u8; HELLO], [u8; HELLO])>, String> {
        let Some(link) = self.links[usize::from(slot.0)].as_mut() else { return Ok(None) };
        let (address, offer) = (link.offer.address, &link.offer);
        let Phase::Dialling(dial) = &mut link.phase else { return Ok(None) };
        if !dial.said {
            self.counts.called();
            // It fails so for as long as the connection is not there, and then with what became of it.
            match sys::send_all(dial.socket.as_fd(), &dial.hello) {
                Ok(()) => {
                    dial.said = true;
                    self.counts.fabric.bytes_out += HELLO as u64;
                }
                Err(cause) if is_later(&cause) => return Ok(None),
                Err(cause) => return Err(format!("dialling {address}: {cause}")),
            }
        }
        self.counts.called();
        match sys::receive_some(dial.socket.as_fd(), &mut dial.answer[dial.got..]) {
            Ok(0) => {
                return Err(format!(
                    "{address} hung up on the hello: it is another node, or was started anew since its offer"
                ));
            }
            Ok(n) => {
                dial.got += n;
                self.counts.fabric.bytes_in += n as u64;
            }
            Err(cause) if is_later(&cause) => return Ok(None),
            Err(cause) => return Err(format!("waiting for the hello of {address}: {cause}")),
        }
        if dial.got < HELLO {
            return Ok(None);
        }
        let check = |hello: Hello| {
            hello.check_for(self.node, &self.token, Role::Acceptor)?;
            hello.check_from(offer)
        };
        Hello::decode(&dial.answer)
            .and_then(check)
            .map_err(|why| format!("{address} is not the peer: {why}"))?;
        sys::tune(dial.socket.as_fd(), &self.options).map_err(|cause| cause.to_string())?;
        let Phase::Dialling(dial) = std::mem::replace(&mut link.phase, Phase::Expected) else {
            return Ok(None);
        };
        self.forget(dial.token, dial.socket.as_fd());
        Ok(Some((dial.socket, dial.hello, dial.answer)))
    }

    /// This node's hello to a peer.
    pub(super) fn hello_to(&self, to: NodeId, to_token: Token128, role: Role) -> Result<Hello, String> {
        let mut nonce = [0; 8];
        getrandom::fill(&mut nonce).map_err(|cause| format!("no random numbers: {cause}"))?;
        Ok(Hello {
            role,
            from: self.node,
            to,
            segment_bytes: self.segment.size(),
            to_token,
            from_token: self.token,
            nonce: u64::from_le_bytes(nonce),
        })
    }

    /// Both hellos are said: frames follow.
    fn bring_up(&mut self, slot: Slot, socket: OwnedFd, dialler: &[u8; HELLO], acceptor: &[u8; HELLO]) {
        let Some(link) = self.links[usize::from(slot.0)].as_mut() else { return };
        let incoming = Incoming::new(link.memory.clone(), salt(dialler, acceptor, link.peer));
        link.outgoing.open(salt(dialler, acceptor, self.node));
        link.phase = Phase::Up { socket, incoming };
        link.was_up = true;
        self.relays.on_link(slot, link.offer.origin(), link.memory.clone());
        link.due = link.outgoing.has_work(); // published, and perhaps flushed, before
        self.up = self.up.with(slot);
        if let (Some(lifeline), 1..) = (&self.lifeline, link.offer.lifelines) {
            let mut there = link.offer.address;
            there.set_port(link.offer.lifelines);
            // As with the link: the lesser dials.
            let dial = (self.node < link.peer).then_some(there);
            let (own, peer) = (self.token, link.offer.token);
            lifeline.hold(Hold { who: (slot, link.generation), dial, own, peer });
        }
        self.events.push_back(LinkEvent::Up(slot));
    }

    fn dismiss(&mut self, at: usize, why: &str) {
        let stranger = self.strangers.remove(at);
        self.forget(stranger.token, stranger.socket.as_fd());
        sys::end(stranger.socket.as_fd());
        self.turn_away(why);
    }

    fn turn_away(&mut self, why: &str) {
        self.counts.strangers += 1;
        tracing::debug!(node = %self.node, why, "a connection to the data listener was turned away");
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
    pub(super) fn new(socket: OwnedFd, token: Token, hello: [u8; HELLO]) -> Self {
        Self { socket, token, hello, said: false, answer: [0; HELLO], got: 0 }
    }
}
