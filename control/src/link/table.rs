//! All control links of a node: whom to dial and when, which of two connections counts, who is there.
//!
//! Pure like the rest: `on_*` says what the sockets and the clock did, `poll_*` what is to be done and what came of it.
//!
//! # Whom it knows
//! Nobody, at first. A node comes to be known in one of three ways:
//! - *told of* ([`Links::know`]): it is dialled until it is there, and again when it is lost, until it is
//!   [forgotten](Links::forget);
//! - *found* behind a [seed](Links::seed), an address that is known before who lives there is: from its hello on it is as if told of;
//! - *a guest*: it came by itself, and `judge` has nothing against it. It is dialled again when it is lost, but only
//!   until dials have failed for [`LONGEST_PAUSE`]: then it is gone for good, and forgotten. There are [`GUESTS`] at most.
//!
//! And there are those who are no nodes and only ask: they get an answer, if [`Links::answer`] gives one, and are closed.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use consort_dataplane::names::{MAX_NODES, NodeId, Time};

use super::connection::Connection;
use super::message::{Hello, Message, Question};
use crate::config::SharedKey;
use crate::view::Incarnation;

/// Connections that have not said hello, at most; more are turned away.
pub const STRANGERS: usize = 64;

/// Nodes at most that are linked though nobody told of them: as many joiners as there may be members, with their old lives.
pub const GUESTS: usize = 2 * MAX_NODES;

/// Questions at most that are being answered; more are turned away.
pub const ASKERS: usize = 8;

/// The longest answer to a question, in bytes.
pub const ANSWER_LEN: usize = 1 << 20;

/// How long a connection may take to say hello and be chosen, or to ask and be answered.
pub const HANDSHAKE: Duration = Duration::from_secs(5);

/// The pause after the first failed dial; it doubles from there.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// The longest pause between dials.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(1);

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
    Down {
        /// The peer.
        node: NodeId,
        /// Which of its lives: another may be up by the time this is heard.
        incarnation: Incarnation,
        /// Why.
        why: String,
    },
    /// A peer says something.
    Said(NodeId, Box<Message>),
    /// There is still no link to that peer, and this is why.
    Trouble(NodeId, String),
    /// Nobody was found yet behind that seed, and this is why.
    Unreached(SocketAddr, String),
    /// Who is no node asks; see [`Links::answer`].
    Asked(ConnectionId, Question),
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

/// All control links of a node. See the [module](self).
pub struct Links {
    me: NodeId,
    key: Option<SharedKey>,
    random: Random,
    /// Who this node is; without that nobody is dialled and nobody linked.
    hello: Option<Own>,
    peers: BTreeMap<NodeId, Peer>,
    seeds: BTreeMap<SocketAddr, Seed>,
    connections: BTreeMap<ConnectionId, Entry>,
    next: usize,
    requests: VecDeque<Request>,
    news: VecDeque<LinkNews>,
}

/// This node's hello.
struct Own {
    incarnation: Incarnation,
    encoded: Arc<[u8]>,
}

impl Own {
    fn new(hello: &Hello) -> Self {
        Self { incarnation: hello.incarnation, encoded: Message::Hello(hello.clone()).encode().into() }
    }
}

struct Peer {
    address: SocketAddr,
    /// It is dialled until it is forgotten; else it is a guest.
    told: bool,
    up: Option<Up>,
    dials: Dials,
}

/// An address to dial before it is known who lives there.
struct Seed {
    found: Option<NodeId>,
    dials: Dials,
}

/// When to dial, and how long to wait after that.
#[derive(Clone, Copy)]
struct Dials {
    at: Time,
    pause: Duration,
}

impl Dials {
    fn new(at: Time) -> Self {
        Self { at, pause: FIRST_PAUSE }
    }

    /// Returns whether dials have failed for the longest pause.
    fn failed(&mut self, now: Time) -> bool {
        let longest = self.pause == LONGEST_PAUSE;
        self.at = now.plus(self.pause);
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        longest
    }
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
    dialled: Option<Target>,
    since: Time,
    /// What the peer said, once it did.
    hello: Option<Box<Hello>>,
    stage: Stage,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Target {
    Peer(NodeId),
    Seed(SocketAddr),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// Hellos are being said, or one of several connections chosen.
    Greeting,
    /// This is the link to that peer.
    Chosen,
    /// Who dialled waits for an answer.
    Asked,
    /// It has one, which is being written.
    Answered,
}

impl Links {
    /// No links yet, and nobody to link to.
    pub fn new(me: NodeId, key: Option<SharedKey>, random: Random) -> Self {
        Self {
            me,
            key,
            random,
            hello: None,
            peers: BTreeMap::new(),
            seeds: BTreeMap::new(),
            connections: BTreeMap::new(),
            next: 0,
            requests: VecDeque::new(),
            news: VecDeque::new(),
        }
    }

    /// Dials this peer until there is a link, and again whenever it is lost. Told again of another address, it is dialled there;
    /// a link that is up stays.
    pub fn know(&mut self, node: NodeId, address: SocketAddr, now: Time) {
        if node == self.me {
            return;
        }
        let fresh = || Peer { address, told: true, up: None, dials: Dials::new(now) };
        let peer = self.peers.entry(node).or_insert_with(fresh);
        peer.told = true;
        if peer.address != address {
            peer.address = address;
            peer.dials = Dials::new(now);
            // Whoever is being dialled at the old address needn't be waited for.
            let dialled =
                |entry: &mut Entry| entry.dialled == Some(Target::Peer(node)) && entry.hello.is_none();
            self.close_all(dialled);
        }
        self.dial(now);
    }

    /// Closes what connects this node with that peer, and dials it no more. Nothing of it is told any more; if it comes by itself, it is
    /// a guest.
    pub fn forget(&mut self, node: NodeId) {
        self.peers.remove(&node);
        self.close_all(|entry| {
            entry.dialled == Some(Target::Peer(node))
                || entry.hello.as_ref().is_some_and(|hello| hello.node == node)
        });
        self.news.retain(|news| match news {
            LinkNews::Up(hello) => hello.node != node,
            LinkNews::Down { node: of, .. } | LinkNews::Said(of, _) | LinkNews::Trouble(of, _) => *of != node,
            LinkNews::Unreached(..) | LinkNews::Asked(..) => true,
        });
    }

    /// Dials this address until a node is found there, which is known from then on.
    pub fn seed(&mut self, address: SocketAddr, now: Time) {
        if let Some(peer) = self.peers.values_mut().find(|peer| peer.address == address) {
            peer.told = true;
            return;
        }
        let seed = self.seeds.entry(address).or_insert(Seed { found: None, dials: Dials::new(now) });
        if seed.found.is_some_and(|node| node != self.me && !self.peers.contains_key(&node)) {
            *seed = Seed { found: None, dials: Dials::new(now) };
        }
        self.dial(now);
    }

    /// Dials no seeds any more, found or not: this node knows whom to link to. Whoever was found stays known.
    pub fn unseed(&mut self) {
        self.seeds.clear();
        self.close_all(|entry| matches!(entry.dialled, Some(Target::Seed(_))));
    }

    /// Cuts all links and begins anew, as whom `hello` says; without one, stays alone. Nothing of the old links is told
    /// any more. Guests are forgotten; questions are still answered.
    pub fn restart(&mut self, now: Time, hello: Option<&Hello>) {
        self.hello = hello.map(Own::new);
        self.close_all(|entry| !matches!(entry.stage, Stage::Asked | Stage::Answered));
        self.news.retain(|news| matches!(news, LinkNews::Asked(..)));
        self.peers.retain(|_, peer| peer.told);
        for peer in self.peers.values_mut() {
            peer.up = None;
            peer.dials.at = now;
        }
        for seed in self.seeds.values_mut() {
            seed.dials.at = now;
        }
        self.dial(now);
    }

    /// Says the same hello with another engagement on connections to come.
    pub fn reword(&mut self, hello: &Hello) {
        self.hello = Some(Own::new(hello));
    }

    /// Somebody dialled this node. `None`: turn it away.
    pub fn on_accepted(&mut self, now: Time) -> Option<ConnectionId> {
        let is_stranger = |entry: &&Entry| entry.stage != Stage::Chosen && entry.dialled.is_none();
        let strangers = self.connections.values().filter(is_stranger).count();
        (strangers < STRANGERS).then(|| self.insert(None, now))
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
            self.gone(id, &entry, now, why);
        }
    }

    /// The time is now.
    pub fn on_time(&mut self, now: Time) {
        let late: Vec<_> = self
            .connections
            .iter()
            .filter(|(_, entry)| entry.stage != Stage::Chosen && now.since(entry.since) >= HANDSHAKE)
            .map(|(id, entry)| (*id, entry.stage))
            .collect();
        for (id, stage) in late {
            let why = match stage {
                Stage::Greeting | Stage::Chosen => "it took too long to say hello",
                Stage::Asked => "the answer took too long",
                Stage::Answered => "it took too long to take its answer",
            };
            self.end(id, now, why);
        }
        self.dial(now);
    }

    /// When [`Links::on_time`] is due at the latest.
    pub fn due(&self) -> Option<Time> {
        let under_way = self.connections.values().filter(|entry| entry.stage != Stage::Chosen);
        let late = under_way.map(|entry| entry.since.plus(HANDSHAKE));
        late.chain(self.targets().map(|(_, _, at)| at)).min()
    }

    /// Says something to a peer; without a link to it, nothing.
    pub fn send(&mut self, to: NodeId, message: &Message) {
        let up = self.peers.get(&to).and_then(|peer| peer.up);
        if let Some(entry) = up.and_then(|up| self.connections.get_mut(&up.connection)) {
            entry.connection.send(message);
        }
    }

    /// Answers a question, with a text of at most [`ANSWER_LEN`] bytes; the connection is closed when it is written.
    pub fn answer(&mut self, id: ConnectionId, text: &str) {
        let Some(entry) = self.connections.get_mut(&id).filter(|entry| entry.stage == Stage::Asked) else {
            return; // who asked has gone
        };
        if text.len() <= ANSWER_LEN {
            entry.connection.answer(text);
        } else {
            let len = text.len();
            entry
                .connection
                .refuse(&format!("the answer has {len} bytes, more than may be sent ({ANSWER_LEN})"));
        }
        entry.stage = Stage::Answered;
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
        if self.requests.is_empty() {
            self.close_all(|entry| entry.stage == Stage::Answered && entry.connection.output().is_empty());
        }
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
            Message::Hello(hello) => self.on_hello(id, now, hello, judge),
            Message::Ask(question) => {
                let askers = self.connections.values().filter(|entry| entry.stage == Stage::Asked).count();
                if askers >= ASKERS {
                    self.end(id, now, "too many ask at once; ask again");
                    return false;
                }
                if let Some(entry) = self.connections.get_mut(&id) {
                    entry.stage = Stage::Asked;
                }
                self.news.push_back(LinkNews::Asked(id, question));
                true
            }
            Message::Use => {
                let Some(node) = entry.hello.as_ref().map(|hello| hello.node).filter(|node| *node < self.me)
                else {
                    self.end(id, now, "it chose a connection that isn't its to choose");
                    return false;
                };
                self.up(id, node, now)
            }
            message if entry.stage == Stage::Chosen => {
                let Some(node) = entry.hello.as_ref().map(|hello| hello.node) else { return false };
                self.news.push_back(LinkNews::Said(node, Box::new(message)));
                true
            }
            _ => {
                self.end(id, now, "it spoke on a connection that wasn't chosen");
                false
            }
        }
    }

    /// Returns whether the connection goes on.
    fn on_hello(
        &mut self,
        id: ConnectionId,
        now: Time,
        hello: Hello,
        judge: &dyn Fn(&Hello) -> Result<(), String>,
    ) -> bool {
        let Some(entry) = self.connections.get(&id) else { return false };
        let node = hello.node;
        let dialled = entry.dialled;
        if node == self.me && self.hello.as_ref().is_some_and(|own| own.incarnation == hello.incarnation) {
            match dialled {
                // One of the seeds is this node itself.
                Some(Target::Seed(address)) => {
                    if let Some(seed) = self.seeds.get_mut(&address) {
                        seed.found = Some(node);
                    }
                    self.close(id);
                    return false;
                }
                // The other end of that: it closes, when it has heard who answers.
                None => return true,
                Some(Target::Peer(_)) => {}
            }
        }
        let judged = match dialled {
            Some(Target::Peer(peer)) if peer != node => {
                Err(format!("node {node} answers where node {}'s peers have node {peer}", self.me))
            }
            _ => judge(&hello).and_then(|()| self.room_for(node)),
        };
        if let Err(why) = judged {
            self.end_refusing(id, now, Some(node), &why);
            return false;
        }
        if let Some(Target::Seed(address)) = dialled {
            self.found(address, node, &hello, now);
        }
        if let Some(entry) = self.connections.get_mut(&id) {
            entry.dialled = dialled.map(|_| Target::Peer(node));
            entry.hello = Some(Box::new(hello));
        }
        // One decides which connection counts: the lower id.
        if self.me < node { self.choose(id, node, now) } else { true }
    }

    /// A node answers behind a seed: from here on it is known.
    fn found(&mut self, address: SocketAddr, node: NodeId, hello: &Hello, now: Time) {
        if let Some(seed) = self.seeds.get_mut(&address) {
            seed.found = Some(node);
        }
        let fresh = || Peer { address: hello.address, told: true, up: None, dials: Dials::new(now) };
        self.peers.entry(node).or_insert_with(fresh).told = true;
    }

    /// Whether that node is known, or may become so by itself.
    fn room_for(&self, node: NodeId) -> Result<(), String> {
        let guests = self.peers.values().filter(|peer| !peer.told).count();
        if self.peers.contains_key(&node) || guests < GUESTS {
            Ok(())
        } else {
            Err(format!("node {} is linked to {guests} nodes already that are no members", self.me))
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
        self.up(id, node, now)
    }

    /// That connection is the link. Returns whether it is.
    fn up(&mut self, id: ConnectionId, node: NodeId, now: Time) -> bool {
        if let Err(why) = self.room_for(node) {
            self.end_refusing(id, now, Some(node), &why);
            return false;
        }
        let Some(entry) = self.connections.get_mut(&id) else { return false };
        let Some(hello) = entry.hello.clone() else { return false };
        if entry.stage == Stage::Chosen {
            return true;
        }
        entry.stage = Stage::Chosen;
        let up = Up { connection: id, incarnation: hello.incarnation, since: now };
        let fresh = || Peer { address: hello.address, told: false, up: None, dials: Dials::new(now) };
        let peer = self.peers.entry(node).or_insert_with(fresh);
        if !peer.told {
            peer.address = hello.address;
        }
        let old = peer.up.replace(up);
        peer.dials = Dials::new(now);
        if let Some(Up { connection, incarnation, .. }) = old {
            let why = if incarnation == up.incarnation {
                "it linked anew".to_owned()
            } else {
                format!("node {node} was started again (as {}, it was {incarnation})", up.incarnation)
            };
            self.close(connection);
            self.news.push_back(LinkNews::Down { node, incarnation, why });
        }
        self.news.push_back(LinkNews::Up(hello));
        true
    }

    /// Ends a connection from this side; the peer was told why by the connection itself.
    fn end(&mut self, id: ConnectionId, now: Time, why: &str) {
        self.end_refusing(id, now, None, why);
    }

    /// Ends a connection and tells the peer why, if it wasn't told yet. `who` said hello on it.
    fn end_refusing(&mut self, id: ConnectionId, now: Time, who: Option<NodeId>, why: &str) {
        let Some(mut entry) = self.connections.remove(&id) else { return };
        entry.connection.refuse(why);
        self.gone(id, &entry, now, why);
        if let Some(who) = who.filter(|who| entry.dialled != Some(Target::Peer(*who))) {
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

    fn close_all(&mut self, which: impl Fn(&mut Entry) -> bool) {
        let ids: Vec<_> =
            self.connections.iter_mut().filter_map(|(id, entry)| which(entry).then_some(*id)).collect();
        for id in ids {
            self.close(id);
        }
    }

    /// A connection is gone: who was linked by it is down, who was dialled is to be dialled again.
    fn gone(&mut self, id: ConnectionId, entry: &Entry, now: Time, why: &str) {
        let linked = self.peers.iter_mut().find(|(_, peer)| peer.up.is_some_and(|up| up.connection == id));
        if let Some((node, peer)) = linked
            && let Some(up) = peer.up.take()
        {
            peer.dials.at = now;
            let down = LinkNews::Down { node: *node, incarnation: up.incarnation, why: why.to_owned() };
            self.news.push_back(down);
            return;
        }
        match entry.dialled {
            Some(Target::Peer(node)) => {
                let Some(peer) = self.peers.get_mut(&node) else { return };
                let for_good = peer.dials.failed(now) && !peer.told && peer.up.is_none();
                self.trouble(node, why.to_owned());
                if for_good {
                    self.peers.remove(&node);
                }
            }
            Some(Target::Seed(address)) => {
                let Some(seed) = self.seeds.get_mut(&address) else { return };
                seed.dials.failed(now);
                self.news.push_back(LinkNews::Unreached(address, why.to_owned()));
            }
            None => {}
        }
    }

    fn trouble(&mut self, node: NodeId, why: String) {
        if self.peers.get(&node).is_some_and(|peer| peer.up.is_none()) {
            self.news.push_back(LinkNews::Trouble(node, why));
        }
    }

    /// Whom this node wants to dial, where and when.
    fn targets(&self) -> impl Iterator<Item = (Target, SocketAddr, Time)> {
        let peers = self.peers.iter().filter(|(_, peer)| peer.up.is_none());
        let peers = peers.map(|(node, peer)| (Target::Peer(*node), peer.address, peer.dials.at));
        let seeds = self.seeds.iter().filter(|(_, seed)| seed.found.is_none());
        let seeds = seeds.map(|(address, seed)| (Target::Seed(*address), *address, seed.dials.at));
        peers.chain(seeds).filter(|(target, _, _)| {
            self.hello.is_some() && self.connections.values().all(|entry| entry.dialled != Some(*target))
        })
    }

    fn dial(&mut self, now: Time) {
        let due: Vec<_> = self.targets().filter(|(_, _, at)| *at <= now).collect();
        for (target, address, _) in due {
            let id = self.insert(Some(target), now);
            self.requests.push_back(Request::Dial(id, address));
        }
    }

    fn insert(&mut self, dialled: Option<Target>, now: Time) -> ConnectionId {
        let hello = self.hello.as_ref().map(|own| own.encoded.clone());
        let id = ConnectionId(self.next);
        self.next += 1;
        let connection = Connection::new(dialled.is_some(), self.key.clone(), self.random.bytes(), hello);
        let stage = Stage::Greeting;
        self.connections.insert(id, Entry { connection, dialled, since: now, hello: None, stage });
        id
    }
}

#[cfg(test)]
mod tests;
