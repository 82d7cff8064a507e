//! What simulations of control planes share: nodes' configurations, an agenda of what happens when, and the wires between planes. Bytes come in pieces, late,
//! in order; connections break; what is between two nodes can be held up, in one direction or both.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

use consort_dataplane::names::{NodeId, Time};
use consort_dataplane::sim::Choices;

use crate::config::{NodeConfig, SharedKey};
use crate::link::table::{ConnectionId, Request};
use crate::plane::Plane;

pub(crate) const MILLISECOND: u64 = 1_000_000;

/// Node `id` of so many, of which the first `founders` found the group unless it is `founded`, and the others join it.
pub(crate) fn config(id: u32, members: u32, founders: u32, founded: bool) -> NodeConfig {
    let address = |id: u32| ([10, 0, 0, id as u8], 7101).into();
    let others = |of: u32| (1..=of).filter(move |other| *other != id);
    let mut config = NodeConfig::new(NodeId(id));
    config.listen = address(id);
    if id > founders || founded {
        config.join = others(members).map(address).collect();
    } else {
        config.peers = others(founders).map(|other| (NodeId(other), address(other))).collect();
    }
    config.key = SharedKey::new("a key for the simulation").ok();
    config
}

/// What is to happen, in the order of its times, and of the same time in the order in which it was put there.
pub(crate) struct Agenda<H> {
    queue: BinaryHeap<Reverse<(Time, u64)>>,
    happenings: BTreeMap<u64, H>,
    next: u64,
}

impl<H> Agenda<H> {
    pub(crate) fn new() -> Self {
        Self { queue: BinaryHeap::new(), happenings: BTreeMap::new(), next: 0 }
    }

    pub(crate) fn push(&mut self, at: Time, happening: H) {
        self.queue.push(Reverse((at, self.next)));
        self.happenings.insert(self.next, happening);
        self.next += 1;
    }

    pub(crate) fn pop(&mut self) -> Option<(Time, H)> {
        let Reverse((at, number)) = self.queue.pop()?;
        self.happenings.remove(&number).map(|happening| (at, happening))
    }
}

/// One end of a connection: a node's start, and its number there.
pub(crate) type End = (usize, ConnectionId);

/// What comes over the wires.
pub(crate) enum Arrival {
    /// A dial reaches the node that it is meant for: tell [`Wires::on_accept`].
    Accept(End, u32),
    Bytes(End, Vec<u8>),
    /// Tell [`Wires::on_closed`].
    Closed(End),
}

/// What came of a dial.
pub(crate) enum Dialled {
    /// It is under way still.
    Held,
    Accepted,
    /// The dialler is to be told that there is nobody.
    Refused,
}

/// All control connections of a simulation.
pub(crate) struct Wires {
    choices: Choices,
    /// Most pieces take at most so long, and some of them so long.
    pub(crate) delays: (u64, u64),
    /// The node of each start. A connection's other end never reaches the next start.
    starts: Vec<u32>,
    ends: BTreeMap<End, End>,
    /// Bytes don't overtake each other.
    arrives: BTreeMap<End, Time>,
    /// What comes there later than that is lost.
    lost: BTreeMap<End, Time>,
    /// Until when what the one says to the other is held up.
    held: BTreeMap<(u32, u32), Time>,
    arrivals: Vec<(Time, Arrival)>,
}

impl Wires {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            choices: Choices::new(seed),
            delays: (2 * MILLISECOND, 30 * MILLISECOND),
            starts: Vec::new(),
            ends: BTreeMap::new(),
            arrives: BTreeMap::new(),
            lost: BTreeMap::new(),
            held: BTreeMap::new(),
            arrivals: Vec::new(),
        }
    }

    /// A node starts. Returns the number of the start.
    pub(crate) fn add(&mut self, node: u32) -> usize {
        self.starts.push(node);
        self.starts.len() - 1
    }

    /// What is under way since this was asked last, and when it is there.
    pub(crate) fn arrivals(&mut self) -> Vec<(Time, Arrival)> {
        std::mem::take(&mut self.arrivals)
    }

    /// When what is sent now would be there.
    pub(crate) fn soon(&mut self, now: Time) -> Time {
        let most = if self.choices.chance(5) { self.delays.1 } else { self.delays.0 };
        Time(now.0 + 1000 + self.choices.below(most))
    }

    /// What `from` says to `to` is held up until then.
    pub(crate) fn hold(&mut self, from: u32, to: u32, until: Time) {
        let held = self.held.entry((from, to)).or_default();
        *held = until.max(*held);
    }

    /// Nothing is held up any more, but for what is under way.
    pub(crate) fn let_go(&mut self) {
        self.held.clear();
    }

    /// Until when what the one says to the other is held up, if it is.
    pub(crate) fn held(&self, now: Time, from: u32, to: u32) -> Option<Time> {
        self.held.get(&(from, to)).copied().filter(|until| now < *until)
    }

    /// Carries out what a plane wants done with its sockets.
    pub(crate) fn serve(&mut self, now: Time, at: usize, plane: &mut Plane) {
        loop {
            for id in plane.talkative() {
                // A dial that isn't answered yet keeps what it has to say.
                if self.ends.contains_key(&(at, id))
                    && let Some(output) = plane.output(id)
                {
                    let bytes = std::mem::take(output);
                    self.send(now, (at, id), &bytes);
                }
            }
            match plane.poll_request() {
                Some(Request::Dial(id, address)) => {
                    let std::net::IpAddr::V4(ip) = address.ip() else { unreachable!("10.0.0.x") };
                    let accept = Arrival::Accept((at, id), u32::from(ip.octets()[3]));
                    let soon = self.soon(now);
                    self.arrivals.push((soon, accept));
                }
                Some(Request::Close(id, last)) => {
                    self.send(now, (at, id), &last);
                    self.break_off(now, (at, id));
                }
                None => return,
            }
        }
    }

    /// A dial is there; `listener` is the start that listens, if any does, and what its clock shows.
    pub(crate) fn on_accept(
        &mut self,
        now: Time,
        dialler: End,
        to: u32,
        listener: Option<(usize, &mut Plane, Time)>,
    ) -> Dialled {
        let from = self.starts[dialler.0];
        if let Some(until) = self.held(now, from, to).max(self.held(now, to, from)) {
            let soon = self.soon(now);
            self.arrivals.push((until.max(soon), Arrival::Accept(dialler, to)));
            return Dialled::Held;
        }
        let Some((at, id)) = listener.and_then(|(at, plane, now)| Some((at, plane.on_accepted(now)?))) else {
            return Dialled::Refused;
        };
        self.ends.insert(dialler, (at, id));
        self.ends.insert((at, id), dialler);
        Dialled::Accepted
    }

    /// Whether what comes there now is heard.
    pub(crate) fn is_heard(&self, now: Time, end: End) -> bool {
        self.ends.contains_key(&end) && self.lost.get(&end).is_none_or(|at| now < *at)
    }

    /// One of all ends there are.
    pub(crate) fn any(&mut self) -> Option<End> {
        let at = self.choices.below(self.ends.len() as u64) as usize;
        self.ends.keys().nth(at).copied()
    }

    /// The other end of a connection sees its end, after all that was said to it.
    fn break_off(&mut self, now: Time, end: End) {
        if let Some(other) = self.ends.remove(&end) {
            let soon = self.soon(now);
            let at = self.arrives.get(&other).copied().unwrap_or_default().max(soon);
            self.arrivals.push((at, Arrival::Closed(other)));
        }
    }

    /// The other end of a connection sees its end, after a part of what was said to it; nothing more comes to this one.
    pub(crate) fn cut(&mut self, now: Time, end: End) {
        self.cut_later(now, end, Duration::ZERO);
    }

    fn cut_later(&mut self, now: Time, end: End, after: Duration) {
        if let Some(other) = self.ends.remove(&end) {
            let soon = self.soon(now);
            let last = self.arrives.get(&other).copied().unwrap_or_default();
            let at = Time(now.0 + self.choices.below(last.0.saturating_sub(now.0)));
            self.lost.insert(other, at);
            self.arrivals.push((soon.max(now.plus(after)), Arrival::Closed(other)));
        }
    }

    /// That end has come to its end.
    pub(crate) fn on_closed(&mut self, end: End) {
        self.ends.remove(&end);
    }

    /// A process has ended. What it said last arrives.
    pub(crate) fn end(&mut self, now: Time, at: usize) {
        for end in self.ends_of(at) {
            self.break_off(now, end);
        }
    }

    /// A process is killed, and a part of what it said is lost. The others find out only after so long.
    pub(crate) fn kill(&mut self, now: Time, at: usize, after: Duration) {
        for end in self.ends_of(at) {
            self.cut_later(now, end, after);
        }
    }

    fn ends_of(&self, at: usize) -> Vec<End> {
        self.ends.keys().filter(|end| end.0 == at).copied().collect()
    }

    fn send(&mut self, now: Time, from: End, bytes: &[u8]) {
        let Some(to) = self.ends.get(&from).copied() else { return };
        let cut = 1 + self.choices.below(200) as usize;
        for piece in bytes.chunks(cut) {
            let soon = self.soon(now);
            let held = self.held(now, self.starts[from.0], self.starts[to.0]);
            let soon = held.map_or(soon, |until| until.max(soon));
            let at = self.arrives.get(&to).copied().unwrap_or_default().max(soon);
            self.arrives.insert(to, at);
            self.arrivals.push((at, Arrival::Bytes(to, piece.to_vec())));
        }
    }
}
