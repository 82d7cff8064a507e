//! The worked example of docs/protocol.md is a transcript, and this is what keeps it true: the commands in it are run
//! on three real sessions over the simulated fabric, and what they print must be what stands there.
//!
//! After a change of the protocol run with `CONSORT_WRITE_STORY=1`, which writes the new outcome into the page, and read the
//! diff.

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use consort_dataplane::fabric::Fabric;
use consort_dataplane::names::{NodeId, Rank, Slot, Time, ViewId};
use consort_dataplane::plan::{Guarantee, Member, SessionPlan, Topology};
use consort_dataplane::ring::RingSender;
use consort_dataplane::session::{Delivery, Session, Verdict};
use consort_dataplane::sim::{SimFabric, SimNetwork, SimOptions};

const NAMES: [&str; 3] = ["A", "B", "C"];
const RING: usize = 4096;
const HOP: Duration = Duration::from_nanos(10);

const OPEN: &str = "```story\n";
const CLOSE: &str = "```\n";

/// D1, D4 to D8: the page's example is what happens.
#[test]
fn the_worked_example_is_what_happens() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/protocol.md");
    let text = std::fs::read_to_string(&page).unwrap();
    let mut stage = Stage::new(false);
    let (mut told, mut rest) = (String::new(), text.as_str());
    let mut scenes = 0;
    while let Some((before, after)) = rest.split_once(OPEN) {
        let (scene, after) = after.split_once(CLOSE).expect("a story block that ends");
        told += before;
        told += OPEN;
        for line in scene.lines().filter(|line| line.starts_with("> ")) {
            told += line;
            told += "\n";
            told += &stage.play(&line[2..]);
        }
        told += CLOSE;
        rest = after;
        scenes += 1;
    }
    told += rest;
    assert!(scenes > 0, "{} has no story", page.display());
    if std::env::var_os("CONSORT_WRITE_STORY").is_some() {
        std::fs::write(&page, &told).unwrap();
    }
    if let Some((stands, happens)) =
        text.lines().zip(told.lines()).find(|(stands, happens)| stands != happens)
    {
        panic!(
            "docs/protocol.md says\n  {stands}\nbut what happens is\n  {happens}\nIf that is meant: CONSORT_WRITE_STORY=1 \
             cargo test -p consort-tests --test all story, and read the diff"
        );
    }
    assert_eq!(text, told);
}

/// Three members whose publishes arrive when the story says so.
struct Stage {
    network: SimNetwork,
    fabrics: Vec<SimFabric>,
    sessions: Vec<Session>,
    senders: Vec<RingSender>,
    now: Time,
}

impl Stage {
    fn new(publishing_costs: bool) -> Self {
        let segment_bytes = SessionPlan::segment_bytes(RING);
        let options =
            SimOptions { delay: (HOP, HOP), tearing: 0, segment_bytes, relays: false, publishing_costs };
        let view = ViewId(1);
        let nodes: Vec<_> = (1..=NAMES.len() as u32).map(NodeId).collect();
        let (network, mut fabrics) = SimNetwork::linked(1, &nodes, options);
        let start = |me: usize| {
            let member = |rank: usize| {
                let slot = (rank != me).then_some(Slot(rank as u8));
                Member { node: nodes[rank], slot, base: SessionPlan::base(view, RING) }
            };
            let members = (0..nodes.len()).map(member).collect();
            let me_rank = Rank(me as u8);
            let guarantee = Guarantee::Atomic;
            let plan = SessionPlan {
                view,
                members,
                me: me_rank,
                ring_bytes: RING,
                guarantee,
                topology: Topology::Direct,
            };
            Session::start(plan, &mut fabrics[me]).unwrap()
        };
        let (sessions, senders) = (0..nodes.len()).map(start).unzip();
        Self { network, fabrics, sessions, senders, now: Time(0) }
    }

    /// Does what a line says and tells what came of it.
    fn play(&mut self, line: &str) -> String {
        let mut words = line.split_whitespace();
        let who = words.next().unwrap();
        let what = words.next().unwrap();
        if (who, what) == ("publishing", "costs") {
            *self = Self::new(true);
            return String::new();
        }
        let passes = match (who, what) {
            ("everything", "arrives") => HOP,
            ("half", "a") => HOP / 2,
            _ => Duration::ZERO,
        };
        if !passes.is_zero() {
            self.now = self.now.plus(passes);
            self.network.advance_to(self.now);
            return String::new();
        }
        if (who, what) == ("all", "step") {
            return (0..NAMES.len()).map(|member| self.step(member)).collect();
        }
        let member = NAMES.iter().position(|name| *name == who).expect("a member's name");
        match what {
            "sends" => {
                for message in words {
                    let mut room = self.senders[member].try_reserve(message.len()).unwrap();
                    room.copy_from_slice(message.as_bytes());
                    room.send();
                }
                String::new()
            }
            "steps" => self.step(member),
            "tells" => {
                let told = self.sessions[member].settle_delivered(&mut self.fabrics[member]);
                assert!(told, "{line}: it has nothing to tell");
                self.fabrics[member].flush();
                String::new()
            }
            _ => panic!("no such line in a story: {line}"),
        }
    }

    fn step(&mut self, member: usize) -> String {
        let mut delivered = Vec::new();
        let (fabric, session) = (&mut self.fabrics[member], &mut self.sessions[member]);
        fabric.poll(self.now);
        let mut sink = |delivery: &mut Delivery<'_>| {
            delivered.push(String::from_utf8_lossy(delivery.payload).into_owned());
            Verdict::Taken
        };
        session.step(fabric, &mut sink).unwrap();
        let frontiers = session.frontiers();
        frontiers.validate().unwrap();
        let own = &frontiers.senders[member];
        let mut told =
            format!("  {}: head {:>2}, promise {}; received", NAMES[member], own.received, own.promise);
        for (name, sender) in NAMES.iter().zip(&frontiers.senders) {
            write!(told, " {name}:{}", sender.received).unwrap();
        }
        if !delivered.is_empty() {
            write!(told, "; delivers {}", delivered.join(" ")).unwrap();
        }
        told += "\n";
        if let Some(blocked) = session.blocked() {
            let mut why = blocked.to_string();
            for (node, name) in NAMES.iter().enumerate() {
                why = why.replace(&format!("node {}", node + 1), name);
            }
            writeln!(told, "     {why}").unwrap();
        }
        told
    }
}
