//! Who connects to this node: let in, listened to, and turned away if they are strangers.
//!
//! Any process of the host can connect to an abstract socket. One of another user is dropped at once; one that says
//! anything but a proper hello with our token, or says nothing for a while, is dropped and counted (S1). Nothing is
//! allocated on a guest's word, and no more than [`GUESTS_MAX`] are kept. A guest whose hello is right may come before
//! our own side has called `connect` for it: it waits until then, or until it hangs up.

use std::os::fd::OwnedFd;
use std::time::Duration;

use consort_dataplane::names::{MAX_NODES, NodeId, Time};
use rustix::io::Errno;

use super::hello::{Hello, Token};
use super::options::{ShmError, error_text};
use super::socket::{Credentials, Listener, Packet, Received, Socket};
use super::sockets::{About, Sockets};

/// Connections that are no links yet.
pub(super) const GUESTS_MAX: usize = 2 * MAX_NODES;

/// How long a guest may be silent. One of ours has said its hello before we let it in.
const HELLO_WITHIN: Duration = Duration::from_secs(2);

/// When to let in again when the machine had no room.
const AGAIN_AFTER: Duration = Duration::from_millis(5);

/// The listener and those it let in.
#[derive(Debug)]
pub(super) struct Guests {
    node: NodeId,
    token: Token,
    user: u32,
    /// None once the fabric was closed.
    listener: Option<Listener>,
    list: Vec<Guest>,
    ever: u64,
    accept_again: Option<Time>,
    starved: bool,
    refused: u64,
    system_calls: u64,
}

#[derive(Debug)]
struct Guest {
    id: u64,
    socket: Socket,
    credentials: Credentials,
    deadline: Time,
    /// A hello with our token, and the files of the segment that came with it.
    hello: Option<(Hello, Vec<OwnedFd>)>,
}

/// A guest that has introduced itself.
#[derive(Debug)]
pub(super) struct Introduced {
    pub(super) socket: Socket,
    pub(super) credentials: Credentials,
    pub(super) hello: Hello,
    pub(super) files: Vec<OwnedFd>,
}

impl Guests {
    /// Listens at `name` for those who know `token`.
    pub(super) fn new(node: NodeId, token: Token, name: &[u8], sockets: &Sockets) -> Result<Self, ShmError> {
        let failed = |errno: Errno| ShmError::machine("listening at a Unix socket", errno);
        let listener = Listener::at(name).map_err(failed)?;
        sockets.add(&listener, About::Listener).map_err(failed)?;
        Ok(Self {
            node,
            token,
            user: own_user(),
            listener: Some(listener),
            list: Vec::new(),
            ever: 0,
            accept_again: None,
            starved: false,
            refused: 0,
            system_calls: 0,
        })
    }

    pub(super) fn refused(&self) -> u64 {
        self.refused
    }

    pub(super) fn system_calls(&self) -> u64 {
        self.system_calls
    }

    pub(super) fn is_closed(&self) -> bool {
        self.listener.is_none()
    }

    /// Whether somebody waits whom the machine has no room for just now: the listener stays ready.
    pub(super) fn is_starved(&self) -> bool {
        self.accept_again.is_some()
    }

    /// Lets nobody in any more and sends all away.
    pub(super) fn close(&mut self) {
        self.listener = None;
        self.accept_again = None;
        self.list.clear();
    }

    /// Lets in one who connects.
    pub(super) fn accept(&mut self, now: Time, sockets: &Sockets) {
        if self.accept_again.is_some_and(|at| now < at) {
            return;
        }
        self.accept_again = None;
        let Some(listener) = &self.listener else { return };
        self.system_calls += 1;
        let socket = match listener.accept() {
            Ok(socket) => socket,
            Err(error @ (Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS)) => {
                if !std::mem::replace(&mut self.starved, true) {
                    tracing::warn!(error = error_text(error), "a peer can't be let in; trying again");
                }
                self.accept_again = Some(now.plus(AGAIN_AFTER));
                return;
            }
            Err(_) => return, // gone again
        };
        self.starved = false;
        self.system_calls += 2;
        let credentials = match socket.credentials() {
            Ok(them) if trusted(self.user, them.user) => them,
            other => return self.refuse(&format!("it runs as another user ({other:?})")),
        };
        if self.list.len() >= GUESTS_MAX {
            let Some(silent) = self.list.iter().position(|guest| guest.hello.is_none()) else {
                return self.refuse("there are too many guests");
            };
            self.list.remove(silent);
            self.refuse("it was the longest silent of too many");
        }
        self.ever += 1;
        let id = self.ever;
        if sockets.add(&socket, About::Guest(id)).is_ok() {
            let deadline = now.plus(HELLO_WITHIN);
            self.list.push(Guest { id, socket, credentials, deadline, hello: None });
            self.hear(id); // it has said hello already, if it is one of ours
        }
    }

    /// A guest said something or hung up.
    pub(super) fn hear(&mut self, id: u64) {
        let Some(at) = self.list.iter().position(|guest| guest.id == id) else { return };
        self.system_calls += 1;
        let why = match self.list[at].socket.receive() {
            Ok(Received::Nothing) => return,
            Ok(Received::Packet(packet)) if self.list[at].hello.is_none() => match self.introduce(packet) {
                Ok((hello, files)) => {
                    let who = (hello.from, hello.own);
                    self.list[at].hello = Some((hello, files));
                    // Its node may have dialled before and given up: the newest counts.
                    self.list.retain(|guest| {
                        let same = |other: &Hello| (other.from, other.own) == who;
                        guest.id == id || !guest.hello.as_ref().is_some_and(|(other, _)| same(other))
                    });
                    return;
                }
                Err(why) => why,
            },
            Ok(Received::Packet(_)) => "it spoke before it was answered".to_owned(),
            Ok(Received::Oversize) => "it sent more than any hello".to_owned(),
            // One that had introduced itself is a peer that gave up.
            Ok(Received::End) | Err(_) if self.list[at].hello.is_some() => {
                self.list.remove(at);
                return;
            }
            Ok(Received::End) | Err(_) => "it left without a word".to_owned(),
        };
        self.list.remove(at);
        self.refuse(&why);
    }

    /// The guest who made the offer with `token`, if it is there.
    pub(super) fn take(&mut self, node: NodeId, token: Token) -> Option<Introduced> {
        let is_it = |guest: &Guest| {
            guest.hello.as_ref().is_some_and(|(hello, _)| hello.from == node && hello.own == token)
        };
        let Guest { socket, credentials, hello, .. } = self.list.remove(self.list.iter().position(is_it)?);
        let (hello, files) = hello?;
        Some(Introduced { socket, credentials, hello, files })
    }

    /// Sends away who has been silent for too long. Returns when to look again.
    pub(super) fn pass_time(&mut self, now: Time) -> Time {
        let before = self.list.len();
        self.list.retain(|guest| guest.hello.is_some() || now < guest.deadline);
        for _ in self.list.len()..before {
            self.refuse("it said nothing");
        }
        let silent = self.list.iter().filter(|guest| guest.hello.is_none());
        silent.map(|guest| guest.deadline).chain(self.accept_again).min().unwrap_or(Time(u64::MAX))
    }

    fn introduce(&self, packet: Packet) -> Result<(Hello, Vec<OwnedFd>), String> {
        let hello = Hello::decode(&packet.bytes).map_err(|garbage| format!("its hello: {garbage}"))?;
        if hello.given != self.token || hello.to != self.node {
            return Err("it was never given this node's offer".to_owned());
        }
        if packet.attached.len() != 1 + hello.renewals.as_slice().len() {
            return Err("it did not bring the segment of which it spoke".to_owned());
        }
        Ok((hello, packet.attached))
    }

    fn refuse(&mut self, why: &str) {
        self.refused += 1;
        tracing::warn!(node = %self.node, why, "a stranger at the shm fabric's socket was turned away");
    }
}

/// The user as whom this process acts.
pub(super) fn own_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Nodes of one user share memory; root may look at all of it anyway.
pub(super) fn trusted(we: u32, they: u32) -> bool {
    they == we || they == 0
}
