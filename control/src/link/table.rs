//! All control links of a node: whom to dial and when, which of two connections counts, who is there.
//!
//! Pure like the rest: `on_*` says what the sockets and the clock did, `poll_*` what is to be done and what came of it.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use consort_dataplane::names::{NodeId, Time};

use super::connection::Connection;
use super::message::{Hello, Message};
use crate::config::SharedKey;
use crate::view::Incarnation;

/// Connections that have not said hello, at most; more are turned away.
pub const STRANGERS: usize = 64;

/// How long a connection may take to say hello and be chosen.
pub const HANDSHAKE: Duration = Duration::from_secs(5);

/// The pause after the first failed dial; it doubles from there.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A connection, as long as the node lives.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ConnectionId(pub usize);

/// Something to be done with a socket.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Request {
    /// Open a connection; tell [`Links::on_closed`] if it fails.
    Dial(ConnectionId, SocketAddr),
    /// Write these last words, if the socket takes them at once, and close it. Nothing of it is to be told any more.
    Close(ConnectionId, Vec<u8>),
}

/// Something that came of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LinkNews {
    /// The link to a peer is there.
    Up(Box<Hello>),
    /// It is gone.
    Down(NodeId, String),
    /// A peer says something.
    Said(NodeId, Message),
    /// There is still no link to that peer, and this is why.
    Trouble(NodeId, String),
}

/// Unpredictable numbers that never repeat, from one seed.
#[derive(Debug)]
pub struct Random {
    seed: [u8; 32],
    drawn: u64,
}

impl Random {
    /// From 32 bytes that nobody else knows.
    pub fn new(seed: [u8; 32]) -> Self {
        Self { seed, drawn: 0 }
    }

    /// 32 bytes.
    pub fn bytes(&mut self) -> [u8; 32] {
        self.drawn += 1;
        *blake3::keyed_hash(&self.seed, &self.drawn.to_le_bytes()).as_bytes()
    }

    /// A number.
    pub fn number(&mut self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.bytes();
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }
}

/// All control links of a node.
pub struct Links {
    me: NodeId,
    key: Option<SharedKey>,
    random: Random,
    /// This node's hello, encoded; without one nobody is dialled and nobody let in.
    hello: Option<Arc<[u8]>>,
    peers: BTreeMap<NodeId, Peer>,
    connections: BTreeMap<ConnectionId, Entry>,
    next: usize,
    requests: VecDeque<Request>,
    news: VecDeque<LinkNews>,
}

struct Peer {
    address: SocketAddr,
    up: Option<Up>,
    dial_at: Time,
    pause: Duration,
}

#[derive(Clone, Copy)]
struct Up {
    connection: ConnectionId,
    incarnation: Incarnation,
    since: Time,
}

struct Entry {
    connection: Connection,
    /// Whom this node dialled.
    dialled: Option<NodeId>,
    since: Time,
    /// What the peer said, once it did.
    hello: Option<Box<Hello>>,
    /// This is the link to that peer.
    chosen: bool,
}

impl Links {
    /// No links yet. `peers` are all others and where they listen.
    pub fn new(
        me: NodeId,
        key: Option<SharedKey>,
        peers: &BTreeMap<NodeId, SocketAddr>,
        random: Random,
    ) -> Self {
        let peer = |&address| Peer { address, up: None, dial_at: Time(0), pause: FIRST_PAUSE };
        Self {
            me,
            key,
            random,
            hello: None,
            peers: peers.iter().map(|(node, address)| (*node, peer(address))).collect(),
            connections: BTreeMap::new(),
            next: 0,
            requests: VecDeque::new(),
            news: VecDeque::new(),
        }
    }

    /// Cuts all links and begins anew, as whom `hello` says; without one, stays alone. Nothing of the old links is told
    /// any more.
    pub fn restart(&mut self, now: Time, hello: Option<&Hello>) {
        self.hello = hello.map(|hello| Message::Hello(hello.clone()).encode().into());
        for (id, mut entry) in std::mem::take(&mut self.connections) {
            let last = std::mem::take(entry.connection.output());
            self.requests.push_back(Request::Close(id, last));
        }
        self.news.clear();
        for peer in self.peers.values_mut() {
            peer.up = None;
            peer.dial_at = now;
        }
        self.dial(now);
    }

    /// Says the same hello with another engagement on connections to come.
    pub fn reword(&mut self, hello: &Hello) {
        self.hello = Some(Message::Hello(hello.clone()).encode().into());
    }

    /// Somebody dialled this node. `None`: turn it away.
    pub fn on_accepted(&mut self, now: Time) -> Option<ConnectionId> {
        let strangers =
            self.connections.values().filter(|entry| !entry.chosen && entry.dialled.is_none()).count();
        if strangers < STRANGERS { self.insert(None, now) } else { None }
    }

    /// Bytes came. `judge` says of a hello why this node won't have a link with who said it, if so.
    pub fn on_bytes(
        &mut self,
        id: ConnectionId,
        now: Time,
        bytes: &[u8],
        judge: &dyn Fn(&Hello) -> Result<(), String>,
    ) {
        let Some(entry) = self.connections.get_mut(&id) else { return };
        let mut heard = Vec::new();
        let result = entry.connection.on_bytes(bytes, &mut heard);
        for message in heard {
            if !self.on_message(id, now, message, judge) {
                return;
            }
        }
        if let Err(error) = result {
            self.end(id, now, &error.to_string());
        }
    }

    /// A connection is gone, or could not be made.
    pub fn on_closed(&mut self, id: ConnectionId, now: Time, why: &str) {
        if let Some(entry) = self.connections.remove(&id) {
            self.forget(id, &entry, now, why);
        }
    }

    /// The time is now.
    pub fn on_time(&mut self, now: Time) {
        let late: Vec<_> = self
            .connections
            .iter()
            .filter(|(_, entry)| !entry.chosen && now.since(entry.since) >= HANDSHAKE)
            .map(|(id, _)| *id)
            .collect();
        for id in late {
            self.end(id, now, "it took too long to say hello");
        }
        self.dial(now);
    }

    /// When [`Links::on_time`] is due at the latest.
    pub fn due(&self) -> Option<Time> {
        let late =
            self.connections.values().filter(|entry| !entry.chosen).map(|entry| entry.since.plus(HANDSHAKE));
        let dials = self
            .peers
            .iter()
            .filter(|(node, peer)| self.wants_dial(**node, peer))
            .map(|(_, peer)| peer.dial_at);
        late.chain(dials).min()
    }

    /// Says something to a peer; without a link to it, nothing.
    pub fn send(&mut self, to: NodeId, message: &Message) {
        let up = self.peers.get(&to).and_then(|peer| peer.up);
        if let Some(entry) = up.and_then(|up| self.connections.get_mut(&up.connection)) {
            entry.connection.send(message);
        }
    }

    /// What is to be written to a connection's socket. Take away what was.
    pub fn output(&mut self, id: ConnectionId) -> Option<&mut Vec<u8>> {
        self.connections.get_mut(&id).map(|entry| entry.connection.output())
    }

    /// The connections that have something to be written.
    pub fn talkative(&mut self) -> Vec<ConnectionId> {
        let talks =
            |(id, entry): (&ConnectionId, &mut Entry)| (!entry.connection.output().is_empty()).then_some(*id);
        self.connections.iter_mut().filter_map(talks).collect()
    }

    /// What is to be done with the sockets.
    pub fn poll_request(&mut self) -> Option<Request> {
        self.requests.pop_front()
    }

    /// What happened.
    pub fn poll_news(&mut self) -> Option<LinkNews> {
        self.news.pop_front()
    }

    /// Returns whether the connection goes on.
    fn on_message(
        &mut self,
        id: ConnectionId,
        now: Time,
        message: Message,
        judge: &dyn Fn(&Hello) -> Result<(), String>,
    ) -> bool {
        let Some(entry) = self.connections.get_mut(&id) else { return false };
        match message {
            Message::Hello(hello) => {
                let expected = entry.dialled.is_none_or(|dialled| dialled == hello.node);
                let judged = if expected {
                    judge(&hello)
                } else {
                    let [said, dialled] = [Some(hello.node), entry.dialled].map(|n| n.unwrap_or(NodeId(0)));
                    Err(format!("node {said} answers where node {}'s peers have node {dialled}", self.me))
                };
                if let Err(why) = judged {
                    self.end_refusing(id, now, Some(hello.node), &why);
                    return false;
                }
                let node = hello.node;
                entry.hello = Some(Box::new(hello));
                // One decides which connection counts: the lower id.
                if self.me < node { self.choose(id, node, now) } else { true }
            }
            Message::Use => {
                let Some(node) = entry.hello.as_ref().map(|hello| hello.node).filter(|node| *node < self.me)
                else {
                    self.end(id, now, "it chose a connection that isn't its to choose");
                    return false;
                };
                self.up(id, node, now);
                true
            }
            message if entry.chosen => {
                let Some(node) = entry.hello.as_ref().map(|hello| hello.node) else { return false };
                self.news.push_back(LinkNews::Said(node, message));
                true
            }
            _ => {
                self.end(id, now, "it spoke on a connection that wasn't chosen");
                false
            }
        }
    }

    /// Both hellos are said on a connection with a higher id. Returns whether it is to be the link.
    fn choose(&mut self, id: ConnectionId, node: NodeId, now: Time) -> bool {
        let incarnation =
            self.connections.get(&id).and_then(|e| e.hello.as_ref()).map(|hello| hello.incarnation);
        let up = self.peers.get(&node).and_then(|peer| peer.up);
        // Its dial may have crossed with the choice of the one that is up; such a dial says hello within the time of
        // a handshake. What comes later, comes because the peer has lost the link, whatever it looks like here.
        if let Some(up) = up
            && Some(up.incarnation) == incarnation
            && now.since(up.since) < HANDSHAKE
        {
            self.close(id);
            return false;
        }
        if let Some(entry) = self.connections.get_mut(&id) {
            entry.connection.send(&Message::Use);
        }
        self.up(id, node, now);
        true
    }

    fn up(&mut self, id: ConnectionId, node: NodeId, now: Time) {
        let (Some(entry), Some(peer)) = (self.connections.get_mut(&id), self.peers.get_mut(&node)) else {
            return;
        };
        let Some(hello) = entry.hello.clone() else { return };
        if entry.chosen {
            return;
        }
        entry.chosen = true;
        let up = Up { connection: id, incarnation: hello.incarnation, since: now };
        let old = peer.up.replace(up);
        peer.pause = FIRST_PAUSE;
        if let Some(old) = old {
            let why = if old.incarnation == up.incarnation {
                "it linked anew".to_owned()
            } else {
                format!("node {node} was started again (as {}, it was {})", up.incarnation, old.incarnation)
            };
            self.close(old.connection);
            self.news.push_back(LinkNews::Down(node, why));
        }
        self.news.push_back(LinkNews::Up(hello));
    }

    /// Ends a connection from this side; the peer was told why by the connection itself.
    fn end(&mut self, id: ConnectionId, now: Time, why: &str) {
        self.end_refusing(id, now, None, why);
    }

    /// Ends a connection and tells the peer why, if it wasn't told yet. `who` said hello on it.
    fn end_refusing(&mut self, id: ConnectionId, now: Time, who: Option<NodeId>, why: &str) {
        let Some(mut entry) = self.connections.remove(&id) else { return };
        entry.connection.refuse(why);
        self.forget(id, &entry, now, why);
        if let Some(who) = who.filter(|who| entry.dialled != Some(*who)) {
            self.trouble(who, format!("refused: {why}"));
        }
        let last = std::mem::take(entry.connection.output());
        self.requests.push_back(Request::Close(id, last));
    }

    fn close(&mut self, id: ConnectionId) {
        if let Some(mut entry) = self.connections.remove(&id) {
            let last = std::mem::take(entry.connection.output());
            self.requests.push_back(Request::Close(id, last));
        }
    }

    fn forget(&mut self, id: ConnectionId, entry: &Entry, now: Time, why: &str) {
        let linked = self.peers.iter_mut().find(|(_, peer)| peer.up.is_some_and(|up| up.connection == id));
        if let Some((node, peer)) = linked {
            peer.up = None;
            peer.dial_at = now;
            self.news.push_back(LinkNews::Down(*node, why.to_owned()));
        } else if let Some(node) = entry.dialled
            && let Some(peer) = self.peers.get_mut(&node)
        {
            peer.dial_at = now.plus(peer.pause);
            peer.pause = (peer.pause * 2).min(LONGEST_PAUSE);
            self.trouble(node, why.to_owned());
        }
    }

    fn trouble(&mut self, node: NodeId, why: String) {
        if self.peers.get(&node).is_some_and(|peer| peer.up.is_none()) {
            self.news.push_back(LinkNews::Trouble(node, why));
        }
    }

    fn wants_dial(&self, node: NodeId, peer: &Peer) -> bool {
        self.hello.is_some()
            && peer.up.is_none()
            && !self.connections.values().any(|entry| entry.dialled == Some(node))
    }

    fn dial(&mut self, now: Time) {
        let due: Vec<_> = self
            .peers
            .iter()
            .filter(|(node, peer)| peer.dial_at <= now && self.wants_dial(**node, peer))
            .map(|(node, peer)| (*node, peer.address))
            .collect();
        for (node, address) in due {
            if let Some(id) = self.insert(Some(node), now) {
                self.requests.push_back(Request::Dial(id, address));
            }
        }
    }

    fn insert(&mut self, dialled: Option<NodeId>, now: Time) -> Option<ConnectionId> {
        let hello = self.hello.clone()?;
        let id = ConnectionId(self.next);
        self.next += 1;
        let connection = Connection::new(dialled.is_some(), self.key.clone(), self.random.bytes(), hello);
        self.connections.insert(id, Entry { connection, dialled, since: now, hello: None, chosen: false });
        Some(id)
    }
}
