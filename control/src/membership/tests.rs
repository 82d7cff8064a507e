//! Golden transcripts of membership: stories of nodes that start, crash and come back, as files in `golden/`. Each is a list of
//! commands with what they led to; run with `UPDATE_GOLDENS=1` to write the outcomes anew, and read the diff.
//!
//! ```text
//! start 1 2 3 [of 1 2 3] [key=value]   start nodes; each knows the members 1 2 3, or those given
//! meet 1 2                             their control link comes up (if both want it)
//! cut 1 2                              it breaks
//! deliver 1 2                          what 1 said to 2 arrives
//! fabric 1 2                           the fabric links that both want come up
//! fabric-down 1 2 WHY                  1 sees its fabric link to 2 go down
//! still 1 2                            1 sees that 2's application has taken nothing for 200 ms
//! crash 2                              it dies; its links break
//! new                                  everything from the beginning
//! later 500ms                          time passes
//! patience                             two seconds pass, and everybody does what is left to do
//! settle                               everybody meets, everything arrives, until nothing is left to do
//! wedged 1                             the driver of 1 has wedged the view's sessions
//! retired 1 2                          the sessions of view 2 are over at 1
//! teaches 1 refused                    the driver of 1 has a lesson for its pupil
//! took 4 | caught-up 4 | learned 4     what the driver of a joiner reports of its lessons
//! leaving 1 | left 1 | fault 1 2 WHY   what else the driver of 1 reports
//! join 4                               start a node that joins where 1 to 3 are; `key=value` as for start
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use consort_dataplane::fabric::LinkDown;
use consort_dataplane::names::{NodeId, Slot, Time, ViewId};

use super::{Decision, Membership, Phase};
use crate::change::{Frozen, Saying};
use crate::config::{NodeConfig, SlowPolicy};
use crate::held::{Held, HeldTip};
use crate::link::message::{Hello, Message, Standing};
use crate::link::table::Random;
use crate::orders::{LinkNumber, Order, Pulse};
use crate::transfer::{Digest, Lesson, Pupil, Took};
use crate::view::{Domain, Incarnation, Member, Role, Shard, ShardId, View};

struct World {
    now: Time,
    nodes: BTreeMap<u32, Node>,
    /// What was said and hasn't arrived, by who said it to whom.
    under_way: BTreeMap<(u32, u32), VecDeque<Message>>,
    starts: BTreeMap<u32, u8>,
    /// Names for incarnations: `2b` is node 2's second.
    names: Vec<(String, String)>,
    log: String,
}

struct Node {
    membership: Membership,
    hello: Option<Hello>,
    /// The peers to which there is a control link.
    met: Vec<u32>,
    /// As whom they said hello.
    said: BTreeMap<u32, Incarnation>,
    /// The peers to which the fabric was told to link, under which number, and whether it is.
    fabric: BTreeMap<u32, (LinkNumber, Slot, bool)>,
    /// Views whose sessions are to be wedged, and how many ranks they have.
    wedging: Vec<ViewId>,
    /// The view that is installed, and its ranks; the one that ended with it.
    session: Option<(ViewId, usize)>,
    over: Vec<ViewId>,
    phase: String,
    /// Whom it teaches, and the how manyth attempt to learn this is.
    pupil: Option<Pupil>,
    attempt: u64,
}

impl World {
    fn new() -> Self {
        Self {
            now: Time(0),
            nodes: BTreeMap::new(),
            under_way: BTreeMap::new(),
            starts: BTreeMap::new(),
            names: Vec::new(),
            log: String::new(),
        }
    }

    fn run(&mut self, command: &str) -> String {
        let words: Vec<_> = command.split_whitespace().collect();
        let id = |at: usize| -> u32 { words[at].parse().unwrap_or_else(|_| panic!("a node in {command:?}")) };
        match words[0] {
            "start" => self.start(&words[1..], false),
            "join" => self.start(&words[1..], true),
            "meet" => {
                self.meet(id(1), id(2));
            }
            "cut" => self.cut(id(1), id(2)),
            "deliver" => self.deliver(id(1), id(2)),
            "fabric" => {
                self.fabric(id(1), id(2));
            }
            "fabric-down" => {
                let why = words[3..].join(" ");
                let why = match why.as_str() {
                    "closed" => LinkDown::Closed,
                    "corrupt" => LinkDown::Corrupt("a bad frame".to_owned()),
                    "dead" => LinkDown::Dead("its process has ended".to_owned()),
                    "own" => LinkDown::Own("its card was removed".to_owned()),
                    _ => LinkDown::Broken(why),
                };
                if let Some((number, ..)) =
                    self.nodes.get_mut(&id(1)).and_then(|node| node.fabric.remove(&id(2)))
                {
                    self.tell(id(1), |membership, now| membership.on_fabric_down(now, number, &why));
                }
            }
            "still" => {
                for after in [0, 200] {
                    self.now = self.now.plus(Duration::from_millis(after));
                    let takes = vec![(ShardId::MAIN, NodeId(id(2)), 1)];
                    let pulse = Pulse { takes, beats: vec![(NodeId(id(2)), after)], sessions: Vec::new() };
                    self.tell(id(1), |membership, now| membership.on_pulse(now, pulse));
                }
            }
            "wedged" => self.wedged(id(1)),
            "retired" => {
                let view = ViewId(u64::from(id(2)));
                self.tell(id(1), |membership, now| membership.on_retired(now, ShardId::MAIN, view));
            }
            "crash" => self.crash(id(1)),
            "later" => {
                self.now =
                    self.now.plus(Duration::from_millis(words[1].trim_end_matches("ms").parse().unwrap()));
                for id in self.ids() {
                    self.tell(id, Membership::on_time);
                }
            }
            "settle" => self.settle(),
            "patience" => {
                // Until those who wait for others wait no longer.
                for _ in 0..8 {
                    self.now = self.now.plus(Duration::from_millis(250));
                    for id in self.ids() {
                        self.tell(id, Membership::on_time);
                    }
                    self.settle();
                }
            }
            "new" => {
                let starts = std::mem::take(&mut self.starts);
                *self = Self { starts, ..Self::new() };
            }
            "leaving" => self.tell(id(1), Membership::on_leave),
            "teaches" => {
                let Some(pupil) = self.nodes[&id(1)].pupil else { return "nobody".to_owned() };
                let lesson = match words[2] {
                    "refused" => Lesson::Refused("it is busy".to_owned()),
                    "last" => Lesson::Tail { number: 0, bytes: Vec::new() },
                    _ => Lesson::Whole { chunks: 0, len: 0, digest: Digest::default() },
                };
                self.tell(id(1), |membership, _| membership.on_taught(pupil, lesson));
            }
            "took" => {
                let attempt = self.nodes[&id(1)].attempt;
                self.tell(id(1), |membership, now| {
                    membership.on_took(now, ShardId::MAIN, attempt, Took::Chunks(3));
                });
            }
            "caught-up" => {
                let attempt = self.nodes[&id(1)].attempt;
                self.tell(id(1), |membership, now| membership.on_caught_up(now, ShardId::MAIN, attempt));
            }
            "learned" => {
                let attempt = self.nodes[&id(1)].attempt;
                self.tell(id(1), |membership, _| membership.on_learned(ShardId::MAIN, attempt));
            }
            "left" => self.tell(id(1), |membership, _| membership.on_left()),
            "fault" => {
                let (peer, why) = (NodeId(id(2)), words[3..].join(" "));
                self.tell(id(1), |membership, now| membership.on_fault(now, peer, why));
            }
            _ => panic!("no command {command:?}"),
        }
        let mut log = std::mem::take(&mut self.log);
        for (incarnation, name) in &self.names {
            log = log.replace(incarnation, name);
        }
        log
    }

    fn ids(&self) -> Vec<u32> {
        self.nodes.keys().copied().collect()
    }

    fn start(&mut self, words: &[&str], joins: bool) {
        let (settings, words): (Vec<&str>, Vec<&str>) =
            words.iter().copied().partition(|word| word.contains('='));
        let mut lists = words
            .split(|word| *word == "of")
            .map(|list| list.iter().map(|word| word.parse().unwrap()).collect::<Vec<u32>>());
        let started = lists.next().unwrap();
        let members = lists.next().unwrap_or_else(|| vec![1, 2, 3]);
        for id in started {
            let mut config = NodeConfig::new(NodeId(id));
            let address = |id: u32| ([10, 0, 0, id as u8], 7101).into();
            config.listen = address(id);
            config.fabric = "sim".to_owned();
            config.peers = members
                .iter()
                .filter(|member| **member != id)
                .map(|peer| (NodeId(*peer), address(*peer)))
                .collect();
            if joins {
                config.join = config.peers.values().copied().collect();
                config.peers.clear();
            }
            for setting in &settings {
                match setting.split_once('=').unwrap() {
                    ("guarantee", value) => config.guarantee = value.parse().unwrap(),
                    ("ring", value) => config.ring_bytes = value.parse().unwrap(),
                    ("cluster", value) => config.cluster = value.to_owned(),
                    ("fabric", value) => config.fabric = value.to_owned(),
                    ("within", value) => {
                        config.start_within = Some(Duration::from_millis(value.parse().unwrap()));
                    }
                    ("slow", value) => {
                        config.slow = SlowPolicy::Evict(Duration::from_millis(value.parse().unwrap()));
                    }
                    ("rejoin", value) => config.rejoin = value == "yes",
                    ("state", value) => config.state = value == "yes",
                    ("role", value) => config.role = value.parse().unwrap(),
                    _ => panic!("no setting {setting:?}"),
                }
            }
            let starts = self.starts.entry(id).or_default();
            *starts += 1;
            let seed = [id as u8, *starts].repeat(16).try_into().unwrap();
            let membership = Membership::new(&config, Random::new(seed), self.now);
            let node = Node {
                membership,
                hello: None,
                met: Vec::new(),
                said: BTreeMap::new(),
                fabric: BTreeMap::new(),
                wedging: Vec::new(),
                session: None,
                over: Vec::new(),
                pupil: None,
                attempt: 0,
                phase: String::new(),
            };
            self.nodes.insert(id, node);
            self.prepared(id);
        }
    }

    /// Gives a node an event, carries out what it decides, and writes both down.
    fn tell(&mut self, id: u32, event: impl FnOnce(&mut Membership, Time)) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        event(&mut node.membership, self.now);
        while let Some(decision) = self.nodes.get_mut(&id).and_then(|node| node.membership.poll_decision()) {
            self.carry_out(id, decision);
        }
        if let Some(node) = self.nodes.get_mut(&id) {
            let phase = node.membership.phase().to_string();
            if phase != node.phase {
                let _ = writeln!(self.log, "{id} is {phase}");
                node.phase = phase;
            }
        }
    }

    fn carry_out(&mut self, id: u32, decision: Decision) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        match decision {
            Decision::Isolate => {
                node.hello = None;
                node.fabric.clear();
                let _ = writeln!(self.log, "{id} cuts its links");
                for peer in std::mem::take(&mut node.met) {
                    self.lose(peer, id, "it closed the connection");
                }
            }
            Decision::Prepare => {
                let _ = writeln!(self.log, "{id} makes a new fabric");
                self.prepared(id);
            }
            Decision::Greet(hello) => {
                let known =
                    self.names.iter().filter(|(_, name)| name.starts_with(&id.to_string())).count() / 2;
                let name = format!("{id}{}", char::from(b'a' + known as u8));
                self.names.push((format!("{id}/{}", hello.incarnation), name.clone()));
                self.names.push((hello.incarnation.to_string(), name));
                node.hello = Some(hello);
            }
            Decision::Reword(hello) => node.hello = Some(hello),
            Decision::Say(to, message) => {
                let words = match &message {
                    Message::Alive => None,
                    Message::Propose(view) => Some(format!("propose {view}")),
                    Message::Change { saying, .. } => Some(words(saying)),
                    Message::Welcome { view } => Some(format!("welcome to {view}")),
                    Message::Retired(_, since) => Some(format!("retired {since}")),
                    message => Some(format!("{message:?}")),
                };
                if let Some(words) = words {
                    let _ = writeln!(self.log, "{id} to {to}: {words}");
                }
                self.under_way.entry((id, to.0)).or_default().push_back(message);
            }
            Decision::Know(..) | Decision::Seek(_) => {}
            Decision::Forget(peer) => {
                if node.met.contains(&peer.0) {
                    self.lose(peer.0, id, "it closed the connection");
                    self.lose(id, peer.0, "it was closed");
                }
            }
            Decision::Drive(order) => self.obey(id, order),
        }
    }

    fn obey(&mut self, id: u32, order: Order) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        match order {
            Order::Link { slot, number, node: peer, .. } => {
                node.fabric.insert(peer.0, (number, slot, false));
            }
            Order::Unlink(slot) => self.fence(id, slot),
            Order::Note { .. } | Order::ReadLog { .. } | Order::LogPart { .. } => {} // no durable groups here
            Order::Wedge { view, fence, .. } => {
                node.wedging.push(view);
                let fenced = fence.len();
                let _ = writeln!(self.log, "{id} wedges view {view} and cuts {fenced} off");
                for slot in fence {
                    self.fence(id, slot);
                }
            }
            Order::Install(install) => {
                let (view, slots) = (&install.view, install.slots.len());
                let end = match install.cut.as_deref() {
                    Some([cut, ..]) => format!(", ending the last at {:?}", cut.trim),
                    _ => String::new(),
                };
                let renew = if !install.renew.is_empty() { ", in fresh memory" } else { "" };
                let _ = writeln!(self.log, "{id} installs {view} over {slots} links{end}{renew}");
                if let Some((view, _)) = node.session.take() {
                    node.over.push(view);
                }
                node.session = Some((view.id, view.data().count()));
            }
            Order::Wait(absent) => {
                let absent: Vec<_> = absent.iter().map(ToString::to_string).collect();
                let _ = writeln!(self.log, "{id} waits for {}", absent.join(", "));
            }
            Order::Over(reason) => {
                let _ = writeln!(self.log, "{id} is out: {reason}");
            }
            Order::Stop(reason) => {
                node.hello = None;
                node.phase = Phase::Stopped(reason.clone()).to_string();
                let _ = writeln!(self.log, "{id} stops: {reason}");
                for peer in std::mem::take(&mut node.met) {
                    self.lose(peer, id, "it closed the connection");
                }
            }
            Order::Teach(pupil, held) => {
                node.pupil = Some(pupil);
                let _ =
                    writeln!(self.log, "{id} takes a snapshot for {}, which has {held} pieces", pupil.node);
            }
            Order::EndTeaching(_, pupil) => {
                let _ = writeln!(self.log, "{id} teaches {pupil} no more");
            }
            Order::Learn(_, attempt) => {
                node.attempt = attempt;
                let _ = writeln!(self.log, "{id} begins to learn, for the {attempt}. time");
            }
            Order::Lesson(_, _, lesson) => {
                let _ = writeln!(self.log, "{id} learns {lesson:?}");
            }
            Order::Took(pupil, took) => {
                let _ = writeln!(self.log, "{id} hears that {} has {took:?}", pupil.node);
            }
            Order::Prepare(_) | Order::Read(_) | Order::Supply { .. } | Order::Unlearn(_) => {}
        }
    }

    /// The peer finds its end cut.
    fn fence(&mut self, id: u32, slot: Slot) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let peer = node.fabric.iter().find(|(_, (_, known, _))| *known == slot).map(|(peer, _)| *peer);
        let Some(peer) = peer else { return };
        node.fabric.remove(&peer);
        if let Some((number, _, true)) = self.nodes.get_mut(&peer).and_then(|node| node.fabric.remove(&id)) {
            let why = LinkDown::Broken("cut off".to_owned());
            self.tell(peer, |membership, now| membership.on_fabric_down(now, number, &why));
        }
    }

    /// The driver has wedged: everybody has received the same.
    fn wedged(&mut self, id: u32) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let Some(view) = node.wedging.pop() else { return };
        let ranks = node.session.filter(|(known, _)| *known == view).map_or(0, |(_, ranks)| ranks);
        let frozen = Frozen { shard: ShardId::MAIN, received: vec![64; ranks] };
        let frozen = if ranks > 0 { vec![frozen] } else { Vec::new() };
        self.tell(id, |membership, now| membership.on_wedged(now, view, frozen));
        self.wedged(id);
    }

    fn prepared(&mut self, id: u32) {
        self.tell(id, |membership, now| membership.on_prepared(now, vec![id as u8]));
    }

    /// Returns whether there is a link now that wasn't there before.
    fn meet(&mut self, one: u32, other: u32) -> bool {
        let hello = |id: u32| self.nodes.get(&id).and_then(|node| node.hello.clone());
        let (Some(first), Some(second)) = (hello(one), hello(other)) else { return false };
        let knows = |id: u32, peer: u32| self.nodes[&id].met.contains(&peer);
        if knows(one, other) && knows(other, one) {
            return false;
        }
        for (id, hello) in [(one, &second), (other, &first)] {
            if let Err(why) = self.nodes[&id].membership.judge(hello) {
                let _ = writeln!(self.log, "{id} refuses {}: {why}", hello.node);
                for (id, peer) in [(one, other), (other, one)] {
                    let why = format!("refused: {why}");
                    self.tell(id, |membership, now| membership.on_trouble(now, NodeId(peer), why));
                }
                return false;
            }
        }
        for (id, peer) in [(one, other), (other, one)] {
            self.lose(id, peer, "it was started again");
        }
        if self.nodes[&one].hello.is_none() || self.nodes[&other].hello.is_none() {
            return true; // that was the end of what one of them was
        }
        for (id, hello) in [(one, &second), (other, &first)] {
            let node = self.nodes.get_mut(&id).unwrap();
            node.met.push(hello.node.0);
            node.said.insert(hello.node.0, hello.incarnation);
        }
        for (id, hello) in [(one, second), (other, first)] {
            self.tell(id, |membership, now| membership.on_up(now, hello));
        }
        true
    }

    fn cut(&mut self, one: u32, other: u32) {
        self.lose(one, other, "connection reset by peer");
        self.lose(other, one, "connection reset by peer");
    }

    fn lose(&mut self, id: u32, peer: u32, why: &str) {
        // What was said arrives before the end is seen.
        if why.starts_with("it closed") {
            self.deliver(peer, id);
        }
        self.under_way.remove(&(peer, id));
        let Some(node) = self.nodes.get_mut(&id) else { return };
        if let Some(at) = node.met.iter().position(|met| *met == peer) {
            node.met.swap_remove(at);
            let incarnation = node.said.remove(&peer).unwrap_or(Incarnation(0));
            self.tell(id, |membership, now| membership.on_down(now, NodeId(peer), incarnation, why));
        }
    }

    fn deliver(&mut self, from: u32, to: u32) {
        while let Some(message) = self.under_way.get_mut(&(from, to)).and_then(VecDeque::pop_front) {
            self.tell(to, |membership, now| membership.on_said(now, NodeId(from), message));
        }
    }

    /// Returns whether a link came up.
    fn fabric(&mut self, one: u32, other: u32) -> bool {
        let wants = |id, peer| {
            let node: &Node = self.nodes.get(&id)?;
            node.fabric.get(&peer).map(|(_, _, up)| *up)
        };
        if wants(one, other) != Some(false) || wants(other, one) != Some(false) {
            return false;
        }
        for (id, peer) in [(one, other), (other, one)] {
            let Some((number, _, up)) = self.nodes.get_mut(&id).and_then(|it| it.fabric.get_mut(&peer))
            else {
                continue;
            };
            *up = true;
            let number = *number;
            self.tell(id, |membership, now| membership.on_fabric_up(now, number, "sim"));
        }
        true
    }

    fn crash(&mut self, id: u32) {
        let Some(node) = self.nodes.remove(&id) else { return };
        for (peer, (number, ..)) in node.fabric {
            // Only the control link's end is told of: one proof is enough for these stories.
            let _ = number;
            if let Some(other) = self.nodes.get_mut(&peer) {
                other.fabric.remove(&id);
            }
        }
        for peer in node.met {
            self.lose(peer, id, "it closed the connection");
        }
        self.under_way.retain(|(from, to), _| *from != id && *to != id);
    }

    fn settle(&mut self) {
        for _ in 0..100 {
            let mut more = false;
            let ids = self.ids();
            let pairs = || ids.iter().flat_map(|a| ids.iter().map(move |b| (*a, *b)));
            for (a, b) in pairs().filter(|(a, b)| a < b) {
                more |= self.meet(a, b);
            }
            for (a, b) in pairs() {
                more |= self.under_way.get(&(a, b)).is_some_and(|queue| !queue.is_empty());
                self.deliver(a, b);
            }
            for (a, b) in pairs().filter(|(a, b)| a < b) {
                more |= self.fabric(a, b);
            }
            for id in &ids {
                if self.nodes.get(id).is_some_and(|node| !node.wedging.is_empty()) {
                    more = true;
                    self.wedged(*id);
                }
                if let Some(view) = self.nodes.get_mut(id).and_then(|node| node.over.pop()) {
                    more = true;
                    self.tell(*id, |membership, now| membership.on_retired(now, ShardId::MAIN, view));
                }
                let renewing =
                    |node: &Node| matches!(node.membership.phase(), Phase::Renewing { asked: false, .. });
                if self.nodes.get(id).is_some_and(renewing) {
                    more = true;
                    self.now = self.now.plus(Duration::from_millis(50));
                    self.tell(*id, Membership::on_time);
                }
            }
            if !more {
                return;
            }
        }
        panic!("it doesn't settle:\n{}", self.log);
    }
}

/// What is said about a change, short.
fn words(saying: &Saying) -> String {
    match saying {
        Saying::Prepare { ballot, suspects, .. } => format!("prepare {ballot}, suspecting {suspects:?}"),
        Saying::Promise { ballot, accepted, .. } => match accepted {
            None => format!("promise {ballot}"),
            Some((before, next)) => format!("promise {ballot}; {before} accepted: {}", next.view),
        },
        Saying::Accept { ballot, next } => format!("accept {ballot}: {}", next.view),
        Saying::Accepted { ballot } => format!("accepted {ballot}"),
        Saying::Decided(next) => format!("decided: {}", next.view),
        Saying::Outbid { by, .. } => format!("outbid by {by}"),
        saying => format!("{saying:?}"),
    }
}

/// Runs a transcript; returns it with the outcomes of this run.
fn replay(transcript: &str) -> String {
    let mut world = World::new();
    let mut replayed = String::new();
    let mut outcome = false;
    for line in transcript.lines() {
        match line {
            "----" => outcome = true,
            "" => {
                outcome = false;
                replayed.push('\n');
            }
            _ if outcome => {}
            comment if comment.starts_with('#') => replayed += &format!("{comment}\n"),
            command => replayed += &format!("{command}\n----\n{}", world.run(command)),
        }
    }
    replayed
}

fn golden(name: &str) {
    let file: PathBuf = [env!("CARGO_MANIFEST_DIR"), "src/membership/golden", name].iter().collect();
    let recorded = std::fs::read_to_string(&file).unwrap();
    let replayed = replay(&recorded);
    if std::env::var_os("UPDATE_GOLDENS").is_some() {
        std::fs::write(Path::new(&file), &replayed).unwrap();
    } else {
        assert_eq!(recorded, replayed, "{name} tells another story; see the module's documentation");
    }
}

#[test]
fn nodes_start_in_any_order() {
    golden("start.txt");
}

#[test]
fn a_member_that_was_started_again_replaces_its_old_self() {
    golden("restart.txt");
}

#[test]
fn a_proposal_that_fails_begins_anew() {
    golden("attempt.txt");
}

#[test]
fn a_proposer_that_dies_leaves_no_two_views() {
    golden("proposer.txt");
}

#[test]
fn who_differs_is_told_in_what() {
    golden("differences.txt");
}

// V7
#[test]
fn a_joiner_learns_before_it_is_admitted() {
    golden("learning.txt");
}

// V1 to V4
#[test]
fn a_member_that_dies_is_left_out() {
    golden("crash.txt");
}

// V1: in every phase there is a next leader.
#[test]
fn a_leader_that_dies_has_successors() {
    golden("leader.txt");
}

// V7
#[test]
fn a_joiner_is_admitted_by_a_view() {
    golden("join.txt");
}

// V8
#[test]
fn a_member_leaves_by_a_view() {
    golden("leave.txt");
}

// V5
#[test]
fn who_is_left_out_stops_or_comes_again() {
    golden("evicted.txt");
}

// F5
#[test]
fn who_has_lost_its_own_card_is_out_and_takes_nobody_for_gone() {
    golden("card.txt");
}

// V9
#[test]
fn who_finds_another_slow_stays() {
    golden("slow.txt");
}

// F5, V9
#[test]
fn a_broken_link_is_proof_when_its_time_is_over() {
    golden("doubt.txt");
}

#[test]
fn a_doubt_ends_in_time() {
    let mut world = World::new();
    for command in ["start 1 2 3", "settle", "fabric-down 2 3 connection reset by peer"] {
        world.run(command);
    }
    let due = world.nodes[&2].membership.due().unwrap();
    assert_eq!(due.since(world.now), Duration::from_millis(50));
}

// V6
#[test]
fn a_witness_keeps_two_members_alive() {
    golden("witness.txt");
}

// S1: what is said of shards that there aren't is not kept.
#[test]
fn nothing_is_kept_of_shards_that_there_are_not() {
    let config = NodeConfig::new(NodeId(1));
    let mut membership = Membership::new(&config, Random::new([1; 32]), Time(0));
    membership.peers.insert(NodeId(2), super::Peer::default());
    for shard in [1, 7, u32::MAX] {
        let (shard, source) = (ShardId(shard), Incarnation(9));
        membership.on_said(Time(1), NodeId(2), Message::Caught { shard, source });
        membership.on_said(Time(1), NodeId(2), Message::Retired(shard, ViewId(3)));
    }
    assert!(membership.ready.is_empty() && membership.peers[&NodeId(2)].retired.is_empty());
    membership.on_said(Time(1), NodeId(2), Message::Retired(ShardId::MAIN, ViewId(3)));
    assert_eq!(membership.peers[&NodeId(2)].retired.len(), 1);
}

// P3: a proposal is judged by what its members hold. Who isn't known, or has turned to joining since, says nothing of that.
#[test]
fn who_proposes_somebody_that_another_has_not_met_breaks_nothing() {
    let members = |id: u32| Member {
        node: NodeId(id),
        incarnation: Incarnation(id.into()),
        address: ([10, 0, 0, id as u8], 7101).into(),
        role: Role::Data,
        domain: Domain::default(),
    };
    let nodes: Vec<_> = (1..=3).map(NodeId).collect();
    let shard = Shard { members: nodes, since: ViewId(1), ..Shard::default() };
    let view = View { id: ViewId(1), members: (1..=3).map(members).collect(), shards: vec![shard] };
    let begin = |id: u32| {
        let mut config = NodeConfig::new(NodeId(id));
        (config.listen, config.fabric) = (members(id).address, "sim".to_owned());
        config.guarantee = "durable".parse().unwrap();
        config.peers =
            (1..=3).filter(|peer| *peer != id).map(|it| (NodeId(it), members(it).address)).collect();
        let mut membership = Membership::new(&config, Random::new([id as u8; 32]), Time(0));
        let tips = vec![HeldTip { shard: ShardId::MAIN, view: 1, index: 5, chain: 7, damaged: None }];
        membership.on_held(Some(Held { view: view.clone(), behind: ViewId(0), next: Vec::new(), tips }));
        membership.on_prepared(Time(0), Vec::new());
        let decisions = std::iter::from_fn(|| membership.poll_decision()).collect::<Vec<_>>();
        let hello = decisions
            .into_iter()
            .find_map(|it| if let Decision::Greet(hello) = it { Some(hello) } else { None });
        (membership, hello.unwrap())
    };
    // Who is proposed, as the second knows it by then: unknown, or joining; and what comes of it.
    for (joins, comes) in [(false, true), (true, true), (true, false), (false, false)] {
        let ((mut one, first), (mut two, second), (_, third)) = (begin(1), begin(2), begin(3));
        one.on_up(Time(1), second);
        one.on_up(Time(1), third.clone());
        let proposal = std::iter::from_fn(|| one.poll_decision()).find_map(|decision| match decision {
            Decision::Say(NodeId(2), message @ Message::Propose(_)) => Some(message),
            _ => None,
        });
        two.on_up(Time(1), first);
        if joins {
            two.on_up(Time(1), Hello { standing: Standing::Joining, held: None, ..third.clone() });
        }
        two.on_said(Time(1), NodeId(1), proposal.unwrap());
        assert!(matches!(two.phase(), Phase::Gathering), "it waits: {}", two.phase());
        if comes {
            two.on_up(Time(2), third);
            assert!(matches!(two.phase(), Phase::Linking { .. }), "{}", two.phase());
            continue;
        }
        for _ in 0..2 {
            let due = two.due().filter(|due| *due <= Time(1).plus(Duration::from_secs(1))).unwrap();
            two.on_time(due);
        }
        assert!(matches!(two.phase(), Phase::Renewing { .. }), "not for ever: {}", two.phase());
    }
}
