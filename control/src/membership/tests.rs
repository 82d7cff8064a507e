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
//! crash 2                              it dies; its links break
//! new                                  everything from the beginning
//! later 500ms                          time passes
//! settle                               everybody meets, everything arrives, until nothing is left to do
//! ended 1 | left 1 | fault 1 2 WHY     what the driver of 1 reports
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use consort_dataplane::fabric::LinkDown;
use consort_dataplane::names::{NodeId, Slot, Time};

use super::{Decision, Membership, Phase};
use crate::config::NodeConfig;
use crate::link::message::{Hello, Message};
use crate::link::table::Random;

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
    /// The peers to which the fabric was told to link, and whether it is.
    fabric: BTreeMap<u32, bool>,
    /// Its peers, by slot.
    peers: Vec<u32>,
    phase: String,
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
            "start" => self.start(&words[1..]),
            "meet" => {
                self.meet(id(1), id(2));
            }
            "cut" => self.cut(id(1), id(2)),
            "deliver" => self.deliver(id(1), id(2)),
            "fabric" => {
                self.fabric(id(1), id(2));
            }
            "fabric-down" => {
                let slot = self.slot(id(1), id(2));
                let why = words[3..].join(" ");
                let why = match why.as_str() {
                    "closed" => LinkDown::Closed,
                    "corrupt" => LinkDown::Corrupt("a bad frame".to_owned()),
                    _ => LinkDown::Broken(why),
                };
                self.tell(id(1), |membership, now| membership.on_fabric_down(now, slot, why));
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
            "new" => {
                let starts = std::mem::take(&mut self.starts);
                *self = Self { starts, ..Self::new() };
            }
            "ended" => self.tell(id(1), |membership, _| membership.on_ended()),
            "left" => self.tell(id(1), |membership, _| membership.on_left()),
            "fault" => {
                let (peer, why) = (NodeId(id(2)), words[3..].join(" "));
                self.tell(id(1), |membership, _| membership.on_fault(peer, why));
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

    fn start(&mut self, words: &[&str]) {
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
            for setting in &settings {
                match setting.split_once('=').unwrap() {
                    ("guarantee", value) => config.guarantee = value.parse().unwrap(),
                    ("ring", value) => config.ring_bytes = value.parse().unwrap(),
                    ("cluster", value) => config.cluster = value.to_owned(),
                    ("fabric", value) => config.fabric = value.to_owned(),
                    ("within", value) => {
                        config.start_within = Some(Duration::from_millis(value.parse().unwrap()));
                    }
                    _ => panic!("no setting {setting:?}"),
                }
            }
            let starts = self.starts.entry(id).or_default();
            *starts += 1;
            let seed = [id as u8, *starts].repeat(16).try_into().unwrap();
            let membership = Membership::new(&config, Random::new(seed), self.now);
            let peers = config.peers.keys().map(|node| node.0).collect();
            let (met, fabric, phase) = (Vec::new(), BTreeMap::new(), String::new());
            let node = Node { membership, hello: None, met, fabric, peers, phase };
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
                let _ = match &message {
                    Message::Propose(view) => writeln!(self.log, "{id} to {to}: propose {view}"),
                    message => writeln!(self.log, "{id} to {to}: {message:?}"),
                };
                self.under_way.entry((id, to.0)).or_default().push_back(message);
            }
            Decision::Link { node: peer, .. } => {
                node.fabric.insert(peer.0, false);
            }
            Decision::Install { view, slots } => {
                let _ = writeln!(self.log, "{id} installs {view} over {} links", slots.len());
            }
            Decision::Wait(absent) => {
                let absent: Vec<_> = absent.iter().map(ToString::to_string).collect();
                let _ = writeln!(self.log, "{id} waits for {}", absent.join(", "));
            }
            Decision::Stop(reason) => {
                node.hello = None;
                node.phase = Phase::Stopped(reason.clone()).to_string();
                let _ = writeln!(self.log, "{id} stops: {reason}");
                for peer in std::mem::take(&mut node.met) {
                    self.lose(peer, id, "it closed the connection");
                }
            }
        }
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
        for (id, peer) in [(one, other), (other, one)] {
            self.nodes.get_mut(&id).unwrap().met.push(peer);
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
        let before = node.met.len();
        node.met.retain(|met| *met != peer);
        if node.met.len() < before {
            self.tell(id, |membership, now| membership.on_down(now, NodeId(peer), why));
        }
    }

    fn deliver(&mut self, from: u32, to: u32) {
        while let Some(message) = self.under_way.get_mut(&(from, to)).and_then(VecDeque::pop_front) {
            self.tell(to, |membership, now| membership.on_said(now, NodeId(from), message));
        }
    }

    /// Returns whether a link came up.
    fn fabric(&mut self, one: u32, other: u32) -> bool {
        let wants = |id, peer| self.nodes.get(&id).and_then(|node: &Node| node.fabric.get(&peer)).copied();
        if wants(one, other) != Some(false) || wants(other, one) != Some(false) {
            return false;
        }
        for (id, peer) in [(one, other), (other, one)] {
            self.nodes.get_mut(&id).unwrap().fabric.insert(peer, true);
            let slot = self.slot(id, peer);
            self.tell(id, |membership, _| membership.on_fabric_up(slot));
        }
        true
    }

    fn slot(&self, id: u32, peer: u32) -> Slot {
        Slot(self.nodes[&id].peers.iter().position(|node| *node == peer).unwrap() as u8)
    }

    fn crash(&mut self, id: u32) {
        let Some(node) = self.nodes.remove(&id) else { return };
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

#[test]
fn an_installed_view_ends_with_a_member() {
    golden("installed.txt");
}
