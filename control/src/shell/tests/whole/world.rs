//! The world in which whole nodes live: what happens when, to whom, and what becomes of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use consort_dataplane::log::{Disk, DiskError, Index, Log, LogOptions, Meta, OpenError, repair};
use consort_dataplane::names::{NodeId, Seq, Time, ViewId};
use consort_dataplane::plan::{Guarantee, Topology};
use consort_dataplane::sim::disk::{DiskFaults, SimDisk};
use consort_dataplane::sim::{Choices, SimNetwork, SimOptions};

use super::history::{self, Nodes, Past, Sent};
use super::node::{Clock, Disobedience, Node, OnMachine};
use crate::change::Mutant;
use crate::config::{GroupConfig, NodeConfig, SlowPolicy, WaitStrategy};
use crate::membership::{Phase, Stopped};
use crate::orders::{Order, Report};
use crate::plane::Plane;
use crate::shell::data::{DataError, MakeDisk};
use crate::shell::durable::Data;
use crate::shell::outcome::Delivered;
use crate::shell::sender::SendError;
use crate::shell::start::{MadeFabric, Stage};
use crate::shell::tests::host::{App, Host, Told, views};
use crate::shell::{clock, stream};
use crate::view::{Role, Shard, ShardId, View};
use crate::wires::{self, Agenda, Arrival, Dialled, MILLISECOND, Wires};

const MICROSECOND: u64 = 1000;
/// Faults begin until then,
const FAULTS: u64 = 1_200 * MILLISECOND;
/// and last no longer than this.
const LONGEST: u64 = 500 * MILLISECOND;
/// Everyone must have everything by then.
const END: u64 = 60_000 * MILLISECOND;

/// A kind of trouble; each is off in about half of the runs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Kind {
    /// A process is killed, and its machine tells; it is started again.
    Crash,
    /// A machine dies.
    SilentCrash,
    /// A process does nothing for a while.
    Pause,
    /// Its driver alone doesn't.
    Stall,
    /// Its control thread alone doesn't.
    Deaf,
    /// The nodes are in two parts.
    Part,
    /// Two nodes can't reach each other: over the fabric, the control links, or both.
    Cut,
    /// One can't reach another, which can.
    OneWay,
    /// A control connection breaks.
    Break,
    /// A fabric's link breaks.
    Sever,
    /// A node leaves in order; it is started again.
    Leave,
    /// An application takes nothing for a while, or no views, or keeps what it takes.
    Refuse,
    /// Another fault while a view changes.
    Cascade,
    /// Clocks go differently.
    Drift,
    /// Everything takes its time.
    Slow,
}

pub(super) const KINDS: [Kind; 15] = [
    Kind::Crash,
    Kind::SilentCrash,
    Kind::Pause,
    Kind::Stall,
    Kind::Deaf,
    Kind::Part,
    Kind::Cut,
    Kind::OneWay,
    Kind::Break,
    Kind::Sever,
    Kind::Leave,
    Kind::Refuse,
    Kind::Cascade,
    Kind::Drift,
    Kind::Slow,
];

/// Which ways something takes.
#[derive(Clone, Copy)]
struct Layers {
    fabric: bool,
    control: bool,
}

enum Happening {
    Start(u32),
    /// To whom; or to anyone.
    Fault(Kind, Option<u32>),
    Wire(Arrival),
    /// What the driver told reaches the control thread.
    Reports(usize),
    Timer(usize),
    Turn(usize),
    /// What was cut is whole again.
    Heal(Vec<(u32, u32)>),
    /// An application takes what comes again.
    Take(usize),
    /// Whoever runs the nodes starts those again that find no group.
    Operator,
    /// All crash at once.
    Blackout,
    /// A node's disk fails to flush, until the node is started again.
    BadDisk,
    /// Looks whether all is well.
    Look,
}

/// What is broken on purpose.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Broken {
    Change(Mutant),
    Orders(Disobedience),
    Driver(stream::Mutant),
}

/// What happened.
#[derive(Clone, Debug, Default)]
pub(super) struct Counts {
    pub(super) faults: BTreeMap<Kind, u64>,
    pub(super) runs: u64,
    pub(super) foundings: u64,
    pub(super) told: history::Counts,
    pub(super) shards: history::Counts,
    pub(super) sent: u64,
    pub(super) supplied: u64,
    pub(super) evicted: u64,
    pub(super) witnesses: u64,
    /// Read points that came.
    pub(super) read: u64,
    /// Runs with a group whose messages travel along a chain.
    pub(super) chains: u64,
    /// All were lost at once.
    pub(super) blackouts: u64,
    /// Nodes whose disk failed to flush; bits that were flipped; logs that were repaired.
    pub(super) failed: u64,
    pub(super) flipped: u64,
    pub(super) repaired: u64,
    /// Nodes that stopped because the group began again without what they were told; durable outcomes whose logs were looked at.
    pub(super) taken_back: u64,
    pub(super) flushed: u64,
}

impl Counts {
    pub(super) fn add(&mut self, other: &Self) {
        for (kind, times) in &other.faults {
            *self.faults.entry(*kind).or_default() += times;
        }
        self.runs += other.runs;
        self.foundings += other.foundings;
        self.told.add(&other.told);
        self.shards.add(&other.shards);
        self.sent += other.sent;
        self.supplied += other.supplied;
        self.evicted += other.evicted;
        self.witnesses += other.witnesses;
        self.read += other.read;
        self.chains += other.chains;
        self.failed += other.failed;
        self.flipped += other.flipped;
        self.repaired += other.repaired;
        self.taken_back += other.taken_back;
        self.flushed += other.flushed;
        self.blackouts += other.blackouts;
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let history::Counts { views, delivered, resent, last_words, restored, addressed, ahead: _ } =
            self.told;
        writeln!(
            f,
            "{} runs, {} groups, {} with a witness; {} views; {} messages sent, {} deliveries, of these {} in last \
             views; {addressed} messages for some only; {} messages sent again, {} parts of rings supplied; {} evictions; {} read points",
            self.runs,
            self.foundings,
            self.witnesses,
            views,
            self.sent,
            delivered,
            last_words,
            resent,
            self.supplied,
            self.evicted,
            self.read
        )?;
        let history::Counts { views, delivered, last_words, .. } = self.shards;
        writeln!(
            f,
            "other shards: {views} views; {delivered} deliveries, of these {last_words} in last views; {} runs with a chain",
            self.chains
        )?;
        let snapshots = restored + self.shards.restored;
        write!(
            f,
            "faults: {:?}, {} times all at once; {snapshots} snapshots of logs restored; {} disks failed, {} bits \
             flipped, {} logs repaired; {} messages told ahead were lost, {} nodes had to begin anew; {} durable outcomes held against the disks",
            self.faults,
            self.blackouts,
            self.failed,
            self.flipped,
            self.repaired,
            self.told.ahead + self.shards.ahead,
            self.taken_back,
            self.flushed
        )
    }
}

/// The groups beside the main one, in half of the worlds.
fn groups(choices: &mut Choices, guarantee: Guarantee) -> Vec<GroupConfig> {
    let state = choices.chance(60);
    let group = match choices.below(8) {
        // A shard whose members are all lost is lost, durable or not (docs/durability.md, Limits): here those of all nodes.
        0..4 if guarantee.durable() => GroupConfig::new("all").state(state),
        _ if guarantee.durable() => return Vec::new(),
        0 => GroupConfig::new("all"),
        1 => GroupConfig::new("pair").nodes([1, 2]).state(state),
        2 => GroupConfig::new("kv").sharded(2, 2).state(state),
        3 => GroupConfig::new("kv").sharded(1, 3).state(state),
        _ => return Vec::new(),
    };
    let is_chain = choices.chance(60) && !guarantee.durable();
    let topology = if is_chain { Topology::Chain } else { Topology::Direct };
    vec![group.guarantee(guarantee).ring_bytes(4096).topology(topology)]
}

/// P2: what was durable for its sender just now is on the disks of all members of its session, or, when that is over, of enough of those who go on.
/// Returns how often that was looked at.
fn check_flushed(node: &mut Node, disks: &BTreeMap<u32, Disks>, failure: &mut Option<String>) -> u64 {
    let Some(host) = &mut node.host else { return 0 };
    let has =
        |member: &NodeId, view, seq| disks.get(&member.0).is_some_and(|disks| disks.has_flushed(view, seq));
    // What a session left when it ended, those have who go on: a majority of the view after it, if not all who were in it.
    let newest = node.plane.as_ref().and_then(Plane::view);
    let is_flushed = |of: &View, is_over: bool, seq| {
        let having = |it: &View| it.shards[0].members.iter().filter(|member| has(member, of.id, seq)).count();
        let have_enough = |it: &View| {
            let witnesses = it.members.len() - it.shards[0].members.len();
            2 * (having(it) + witnesses) > it.members.len()
        };
        having(of) == of.shards[0].members.len() || is_over && newest.is_some_and(have_enough)
    };
    // P4: nothing that a restart may take back is in a snapshot.
    if let Some((view, seq)) = host.snapshot_behind.take() {
        // What sessions before left, those have who have begun this one.
        let last = host.told.iter().rev().find_map(|told| match told {
            Told::View(it) => Some(it),
            _ => None,
        });
        let of = last.filter(|of| of.id == view);
        let sessions = host.driver.status().sessions;
        let is_over = !sessions.iter().any(|it| it.view == view && it.stage == Stage::Running);
        if of.is_some_and(|of| !is_flushed(of, is_over, seq)) {
            *failure = Some(format!(
                "taken back: node {} was asked for a snapshot behind {view}{seq}, which not enough have flushed (P4)",
                node.id
            ));
        }
    }
    let host = &*host;
    let mut looked = 0;
    // They come in the order of the sends.
    while let Some((number, outcome)) = host.outcomes.get(node.settled)
        && let Some(result) = outcome.try_get()
    {
        node.settled += 1;
        let Ok(Delivered { view, seq }) = result else { continue };
        // Reading a log takes its time.
        if !number.is_multiple_of(64) {
            continue;
        }
        let sessions = host.driver.status().sessions;
        // Who leaves has them itself, and more is not said (docs/durability.md, Limits).
        let Some(session) = sessions.iter().find(|session| session.view == view) else { continue };
        let is_in = |told: &Told| matches!(told, Told::View(view) if view.member(NodeId(node.id)).is_some());
        if !host.told.iter().rev().find(|told| matches!(told, Told::View(_))).is_some_and(is_in) {
            continue;
        }
        let told = host.told.iter().rev().find_map(|told| match told {
            Told::View(it) if it.id == view => Some(it),
            _ => None,
        });
        let is_over = session.stage != Stage::Running;
        let is_enough = told.is_none_or(|of| is_flushed(of, is_over, seq));
        looked += 1;
        if !is_enough {
            *failure = Some(format!(
                "not flushed: {number:x} of node {} was durable in view {view} ({:?}), told as {told:?} and followed by {newest:?}, and not enough have flushed it (P2)",
                node.id, session.stage
            ));
        }
    }
    looked
}

fn number(told: &Told) -> Option<u64> {
    if let Told::Message { number, .. } = told { Some(*number) } else { None }
}

pub(super) struct World {
    choices: Choices,
    pub(super) now: Time,
    agenda: Agenda<Happening>,
    wires: Wires,
    network: SimNetwork,
    members: u32,
    guarantee: Guarantee,
    /// Applications have a state, which joiners get (V7).
    stateful: bool,
    /// In some worlds, some messages are for some nodes only (D12), chosen here. Applications have no state there: each would have another.
    addressing: Option<Choices>,
    /// The messages that are.
    for_some: BTreeSet<u64>,
    ring_bytes: usize,
    /// Beside the main one; the same at all nodes.
    groups: Vec<GroupConfig>,
    /// Drivers look at one quiet shard a turn.
    passes_over: bool,
    kinds: BTreeSet<Kind>,
    clocks: Vec<Clock>,
    /// The least time between two turns of a driver, and the mean time between two sends.
    pace: u64,
    load: u64,
    slow: SlowPolicy,
    /// The node with the highest id joins instead of founding; it is a witness.
    last_joins: bool,
    last_witnesses: bool,
    /// There is a group: who starts now joins it.
    founded: bool,
    /// Every start of every node.
    nodes: Vec<Node>,
    pasts: Vec<Past>,
    /// Of the shards beside the main group.
    pasts_of: Vec<Vec<Past>>,
    /// What any application was told: of every process the last number, and the view in which it was told first.
    completed: BTreeMap<u64, (u64, u64)>,
    /// Who wants to read, so that the other choices don't depend on it.
    readers: Choices,
    /// How often what the one publishes to the other is cut.
    cuts: BTreeMap<(u32, u32), u32>,
    /// The disks of a durable group's nodes, by directory.
    disks: Option<BTreeMap<u32, Disks>>,
    quiet: bool,
    /// The session in which everyone has to send something more.
    probing: ViewId,
    done: bool,
    broken: Option<Broken>,
    pub(super) counts: Counts,
    failure: Option<String>,
}

/// A disk did what [`Happening::BadDisk`] makes it do.
const FAILED: &str = "the flush of ";

/// The group began again without what an application that lives was told.
const TAKEN_BACK: &str = "began again without";

/// What a node has on its disks: one for each directory.
#[derive(Clone, Default)]
struct Disks(Arc<Mutex<BTreeMap<PathBuf, SimDisk>>>);

impl Disks {
    fn open(&self, directory: &Path, seed: u64) -> SimDisk {
        let mut disks = self.0.lock().unwrap();
        let faults = DiskFaults { slow: seed % 60, ..DiskFaults::default() };
        disks.entry(directory.to_owned()).or_insert_with(|| SimDisk::new(seed, faults)).clone()
    }

    /// From now on it fails to flush, now and then; or does no more.
    fn set_bad(&self, is_bad: bool, slow: u64) {
        let flush_fails = if is_bad { 30 } else { 0 };
        for disk in self.0.lock().unwrap().values() {
            disk.set_faults(DiskFaults { slow, flush_fails, ..DiskFaults::default() });
        }
    }

    /// P2: whether the log of the main group has a message on the disk, whatever happens to it. One that can't be read is none of this check's.
    fn has_flushed(&self, view: ViewId, seq: Seq) -> bool {
        let disks = self.0.lock().unwrap();
        let Some(disk) = disks.get(Path::new("data/shard-0")) else { return false };
        let log = Log::open(Box::new(disk.flushed()), LogOptions::default(), Index(0));
        log.map_or(true, |(log, _)| (log.tip().view, log.tip().next_seq) > (view, seq))
    }

    /// Flips a bit of what is written in some log, or beside it.
    fn flip(&self, choices: &mut Choices) -> bool {
        let disks = self.0.lock().unwrap();
        let mut files = Vec::new();
        for (path, disk) in
            disks.iter().filter(|(path, _)| path.ends_with("shard-0") || path.ends_with("shard-1"))
        {
            let all = disk.clone().list().unwrap();
            let all = all.into_iter().map(|(name, _)| name);
            files.extend(
                all.filter(|name| name.ends_with(".log") || name.ends_with(".snap"))
                    .map(|name| (path.clone(), name)),
            );
        }
        if files.is_empty() {
            return false;
        }
        let (path, name) = &files[choices.below(files.len() as u64) as usize];
        let written =
            disks[path].content(name).iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        written > 0 && disks[path].flip(name, written).is_some()
    }

    /// What `consort log repair` does.
    fn repair(&self, directory: &Path) -> Result<(), DiskError> {
        let disks = self.0.lock().unwrap();
        let (mut home, mut disk) = (disks[Path::new("data")].clone(), disks[directory].clone());
        let shard = directory.to_str().and_then(|path| path.rsplit_once('-')?.1.parse().ok());
        let mut meta = Meta::read(&mut home)?.unwrap_or_default();
        meta.set_damaged(shard.unwrap());
        meta.write(&mut home)?;
        repair(&mut disk, Index(0)).map(drop)
    }

    /// A process is killed, or its machine stops: then what was not flushed is lost, or kept in parts.
    fn crash(&self, machine: bool) {
        let mut disks = self.0.lock().unwrap();
        disks.values_mut().for_each(|disk| *disk = if machine { disk.crash() } else { disk.kill() });
    }
}

impl World {
    pub(super) fn new(seed: u64, broken: Option<Broken>) -> Self {
        Self::with(seed, broken, false)
    }

    /// A durable group, whose members may all be lost at once.
    pub(super) fn durable(seed: u64, broken: Option<Broken>) -> Self {
        Self::with(seed, broken, true)
    }

    fn with(seed: u64, broken: Option<Broken>, durable: bool) -> Self {
        let mut choices = Choices::new(seed);
        let members = 3 + choices.below(3) as u32;
        let guarantee = match choices.below(10) {
            _ if durable && Choices::new(seed ^ 0x106).chance(50) => Guarantee::Logged,
            _ if durable => Guarantee::Durable,
            0..5 => Guarantee::Atomic,
            5..9 => Guarantee::Agreed,
            _ => Guarantee::Fifo,
        };
        let kinds: BTreeSet<_> = KINDS.into_iter().filter(|_| choices.chance(50)).collect();
        let slow = kinds.contains(&Kind::Slow);
        let ring_bytes = 4096 << choices.below(2);
        let mut config = NodeConfig::new(NodeId(1));
        config.ring_bytes = ring_bytes;
        config.groups = groups(&mut Choices::new(seed.rotate_left(17)), guarantee);
        let options = SimOptions {
            delay: (
                Duration::from_micros(1),
                Duration::from_micros([20, 200, if slow { 5000 } else { 1000 }][choices.below(3) as usize]),
            ),
            tearing: choices.below(2) * choices.below(50),
            segment_bytes: config.segment_bytes(),
            relays: config.groups.iter().any(|group| group.topology == Topology::Chain),
            publishing_costs: seed.is_multiple_of(2),
        };
        let mut wires = Wires::new(choices.any());
        wires.delays =
            if slow { (3 * MILLISECOND, 40 * MILLISECOND) } else { (MILLISECOND, 5 * MILLISECOND) };
        let clocks = (0..=members).map(|_| match kinds.contains(&Kind::Drift) {
            true => Clock { began: 1 + choices.below(1 << 50), rate: 900_000 + choices.below(200_000) },
            false => Clock { began: 1, rate: 1_000_000 },
        });
        let clocks = clocks.collect();
        let mut addressing = Choices::new(seed ^ 0xd12);
        let addresses = guarantee == Guarantee::Atomic && addressing.chance(50);
        let mut world = Self {
            now: Time(0),
            agenda: Agenda::new(),
            wires,
            network: SimNetwork::empty(choices.any(), options),
            members,
            guarantee,
            stateful: !addresses && Choices::new(!seed).chance(50),
            addressing: addresses.then_some(addressing),
            for_some: BTreeSet::new(),
            ring_bytes,
            groups: config.groups,
            passes_over: !seed.is_multiple_of(2),
            clocks,
            pace: [20, 100, 300][choices.below(3) as usize] * MICROSECOND,
            load: [300, 1000, 5000][choices.below(3) as usize] * MICROSECOND,
            slow: match choices.chance(30) {
                true => SlowPolicy::Evict(Duration::from_millis(300)),
                false => SlowPolicy::Wait,
            },
            last_joins: choices.chance(30) && !durable,
            last_witnesses: choices.chance(25),
            founded: false,
            nodes: Vec::new(),
            pasts: Vec::new(),
            pasts_of: Vec::new(),
            completed: BTreeMap::new(),
            readers: Choices::new(seed ^ 0x5eed),
            cuts: BTreeMap::new(),
            disks: durable.then(BTreeMap::new),
            quiet: false,
            probing: ViewId(0),
            done: false,
            broken,
            counts: Counts { runs: 1, chains: u64::from(options.relays), ..Counts::default() },
            failure: None,
            kinds,
            choices,
        };
        world.counts.witnesses = u64::from(world.last_witnesses);
        for id in 1..=members {
            let at = world.choices.below(20 * MILLISECOND);
            world.push(Time(at), Happening::Start(id));
        }
        for kind in world.kinds.clone() {
            match kind {
                Kind::Cascade => {}
                Kind::Drift | Kind::Slow => world.count(kind),
                _ => {
                    for _ in 0..world.choices.below(5) {
                        let at = world.choices.below(FAULTS);
                        world.push(Time(at), Happening::Fault(kind, None));
                    }
                }
            }
        }
        if durable {
            for _ in 0..world.choices.below(4) {
                let at = world.choices.below(FAULTS);
                world.push(Time(at), Happening::Blackout);
            }
            for _ in 0..world.choices.below(3) {
                let at = world.choices.below(FAULTS);
                world.push(Time(at), Happening::BadDisk);
            }
        } else {
            world.push(Time(300 * MILLISECOND), Happening::Operator);
        }
        world.push(Time(FAULTS + LONGEST), Happening::Look);
        world
    }

    fn count(&mut self, kind: Kind) {
        *self.counts.faults.entry(kind).or_default() += 1;
    }

    fn push(&mut self, at: Time, happening: Happening) {
        self.agenda.push(at.max(self.now), happening);
    }

    fn later(&mut self, most: u64) -> Time {
        Time(self.now.0 + self.choices.below(most))
    }

    fn any(&mut self) -> u32 {
        1 + self.choices.below(u64::from(self.members)) as u32
    }

    fn alive(&self, id: u32) -> Option<usize> {
        self.nodes.iter().rposition(|node| node.id == id).filter(|at| self.nodes[*at].lives())
    }

    /// Runs to the end, and checks.
    pub(super) fn run(&mut self) -> Result<(), String> {
        let mut result = Ok(());
        while let Some((at, happening)) = self.agenda.pop() {
            self.now = at;
            self.happen(happening);
            for (at, arrival) in self.wires.arrivals() {
                self.push(at, Happening::Wire(arrival));
            }
            if let Some(failure) = self.failure.take() {
                result = Err(failure);
                break;
            }
            if self.done {
                break;
            }
            if at.0 > END {
                result = Err(format!("not everyone has everything:\n{}", self.standing()));
                break;
            }
        }
        for mut node in std::mem::take(&mut self.nodes) {
            self.keep(node.pasts_of_shards());
            self.pasts.push(node.past());
        }
        self.counts.sent = self.pasts.iter().map(|past| past.sent.len() as u64).sum();
        // What is wrong with what was told is worse than whatever else there is.
        if self.disks.is_some() {
            let guarantee = self.guarantee;
            if guarantee.ahead_of_logs() && result.is_err() {
                return result; // what is in the log in the end is what those have been told who are there then
            }
            self.counts.told = history::check_durable(&mut self.pasts, guarantee)?;
            for (pasts, shard) in self.pasts_of.iter_mut().zip(1..) {
                let told = history::check_durable(pasts, guarantee);
                self.counts.shards.add(&told.map_err(|error| format!("shard {shard}: {error}"))?);
            }
            return result;
        }
        self.counts.told = history::check(&self.pasts, self.guarantee)?;
        for (pasts, shard) in self.pasts_of.iter().zip(1..) {
            let told = history::check(pasts, self.guarantee);
            self.counts.shards.add(&told.map_err(|error| format!("shard {shard}: {error}"))?);
        }
        result
    }

    fn keep(&mut self, pasts: Vec<Past>) {
        self.pasts_of.resize_with(self.pasts_of.len().max(pasts.len()), Vec::new);
        for (known, past) in self.pasts_of.iter_mut().zip(pasts) {
            known.push(past);
        }
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Start(id) => self.start(id),
            Happening::Fault(kind, whom) => self.fault(kind, whom),
            Happening::Wire(arrival) => self.arrive(arrival),
            Happening::Reports(at) => {
                if let Some(until) = self.deaf(at) {
                    return self.push(until, Happening::Reports(at));
                }
                let node = &mut self.nodes[at];
                let now = node.clock.shows(self.now);
                let reports: Vec<_> = node.inbox.drain(..).collect();
                for report in reports {
                    if let Report::Broken(reason) = &report
                        && reason.contains(FAILED)
                    {
                        self.counts.failed += 1;
                    } else if let Report::Broken(reason) = &report
                        && reason.contains(TAKEN_BACK)
                        && self.guarantee.ahead_of_logs()
                    {
                        self.counts.taken_back += 1;
                    } else if let Report::Fault(..) | Report::Broken(_) = &report {
                        self.failure = Some(format!("node {} reports {report:?}", node.id));
                    }
                    self.counts.supplied += u64::from(matches!(report, Report::Supplied(_, true)));
                    if let Some(plane) = &mut node.plane {
                        plane.on_report(now, report);
                    }
                }
                self.go_on(at);
            }
            Happening::Timer(at) => {
                if self.nodes[at].timer != Some(self.now) {
                    return; // one that was due sooner has taken its place
                }
                self.nodes[at].timer = None;
                if let Some(until) = self.deaf(at) {
                    return self.timer_at(at, until);
                }
                let node = &mut self.nodes[at];
                if let Some(plane) = &mut node.plane {
                    plane.on_time(node.clock.shows(self.now));
                }
                self.go_on(at);
            }
            Happening::Turn(at) => self.turn(at),
            Happening::Heal(cut) => {
                for (from, to) in cut {
                    let times = self.cuts.entry((from, to)).or_default();
                    *times -= 1;
                    if *times == 0 {
                        self.network.advance_to(self.now);
                        self.network.heal(NodeId(from), NodeId(to));
                    }
                }
            }
            Happening::Take(at) => {
                if let Some(host) = &mut self.nodes[at].host {
                    (host.room, host.refuses_views, host.keeps) = (usize::MAX, false, false);
                    host.loans.clear();
                    self.wake(at);
                }
            }
            Happening::Operator => {
                let again = Time(self.now.0 + 300 * MILLISECOND);
                self.push(again, Happening::Operator);
                let alive = || self.nodes.iter().filter(|node| node.lives());
                if self.founded
                    && !alive().any(|node| node.plane.as_ref().is_some_and(|plane| plane.view().is_some()))
                {
                    let ids: Vec<_> = alive().map(|node| node.id).collect();
                    self.founded = false;
                    self.completed.clear(); // nobody is left who has it
                    for id in ids {
                        if let Some(at) = self.alive(id) {
                            self.crash(at, true);
                        }
                        self.push(self.now, Happening::Start(id));
                    }
                }
            }
            Happening::BadDisk => {
                let id = self.any();
                if let Some(disks) = self.disks.as_ref().and_then(|disks| disks.get(&id)) {
                    disks.set_bad(true, self.choices.below(60));
                }
            }
            Happening::Blackout => {
                self.counts.blackouts += 1;
                let is_well = self.has_spare_logs();
                for id in 1..=self.members {
                    if let Some(at) = self.alive(id) {
                        let proof = self.choices.chance(50);
                        self.crash(at, proof);
                    }
                    let again = self.later(300 * MILLISECOND);
                    self.push(again, Happening::Start(id));
                }
                let id = self.any();
                let disks = self.disks.as_ref().and_then(|disks| disks.get(&id)).filter(|_| is_well);
                if disks.is_some_and(|disks| disks.flip(&mut self.choices)) {
                    self.counts.flipped += 1;
                }
            }
            Happening::Look => self.look(),
        }
    }

    /// Until when a node's control thread does nothing.
    fn deaf(&self, at: usize) -> Option<Time> {
        let until = self.nodes[at].control_until;
        (self.nodes[at].plane.is_some() && self.now < until).then_some(until)
    }

    fn arrive(&mut self, arrival: Arrival) {
        let now = self.now;
        match arrival {
            Arrival::Accept(dialler, to) => {
                let listener = self.alive(to).filter(|_| self.nodes[dialler.0].plane.is_some());
                if let Some(until) = listener.and_then(|at| self.deaf(at)) {
                    return self.push(until, Happening::Wire(Arrival::Accept(dialler, to)));
                }
                let listener = listener.and_then(|at| {
                    let Node { plane, clock, .. } = &mut self.nodes[at];
                    Some((at, plane.as_mut()?, clock.shows(now)))
                });
                match self.wires.on_accept(now, dialler, to, listener) {
                    Dialled::Held => {}
                    Dialled::Accepted => self.go_on(dialler.0),
                    Dialled::Refused => self.closed(dialler),
                }
            }
            Arrival::Bytes(end, bytes) => {
                if let Some(until) = self.deaf(end.0) {
                    return self.push(until, Happening::Wire(Arrival::Bytes(end, bytes)));
                }
                let Node { plane, clock, .. } = &mut self.nodes[end.0];
                if let Some(plane) = plane.as_mut().filter(|_| self.wires.is_heard(now, end)) {
                    plane.on_bytes(end.1, clock.shows(now), &bytes);
                    self.go_on(end.0);
                }
            }
            Arrival::Closed(end) => {
                if let Some(until) = self.deaf(end.0) {
                    return self.push(until, Happening::Wire(Arrival::Closed(end)));
                }
                self.wires.on_closed(end);
                self.closed(end);
            }
        }
    }

    fn closed(&mut self, end: wires::End) {
        let Node { plane, clock, .. } = &mut self.nodes[end.0];
        if let Some(plane) = plane {
            plane.on_closed(end.1, clock.shows(self.now), "closed");
            self.go_on(end.0);
        }
    }

    /// A fault of this kind happens to somebody.
    fn fault(&mut self, kind: Kind, whom: Option<u32>) {
        let (id, other) = (whom.unwrap_or_else(|| self.any()), self.any());
        let at = self.alive(id);
        let length = match self.choices.chance(50) {
            true => self.choices.below(LONGEST),
            false => self.choices.below(30 * MILLISECOND),
        };
        let until = Time(self.now.0 + length);
        match (kind, at) {
            (Kind::Crash | Kind::SilentCrash, Some(at)) => {
                self.crash(at, kind == Kind::Crash);
                let again = self.later(300 * MILLISECOND);
                self.push(again, Happening::Start(id));
            }
            (Kind::Pause | Kind::Stall | Kind::Deaf, Some(at)) => {
                let node = &mut self.nodes[at];
                if kind != Kind::Stall {
                    node.control_until = until.max(node.control_until);
                }
                if kind != Kind::Deaf {
                    node.engine_until = until.max(node.engine_until);
                }
            }
            (Kind::Part, _) => {
                let mut side: BTreeSet<_> =
                    (1..=self.members).filter(|_| whom.is_none() && self.choices.chance(50)).collect();
                side.insert(id);
                let far = |node: &u32| !side.contains(node);
                let pairs =
                    side.iter().flat_map(|one| (1..=self.members).filter(far).map(|other| (*one, other)));
                let pairs = pairs.flat_map(|(one, other)| [(one, other), (other, one)]).collect();
                self.cut(pairs, Layers { fabric: true, control: true }, until);
            }
            (Kind::Cut | Kind::OneWay, _) if id != other => {
                let layers = match self.choices.below(3) {
                    0 => Layers { fabric: true, control: false },
                    1 => Layers { fabric: false, control: true },
                    _ => Layers { fabric: true, control: true },
                };
                let back = (kind == Kind::Cut).then_some((other, id));
                self.cut([(id, other)].into_iter().chain(back).collect(), layers, until);
            }
            (Kind::Break, _) => {
                let Some(end) = self.wires.any() else { return };
                self.wires.cut(self.now, end);
                self.closed(end);
            }
            (Kind::Sever, Some(_)) if id != other && self.alive(other).is_some() => {
                let ends = [id, other].map(|id| self.network.end_of(NodeId(id)));
                if let [Some(one), Some(other)] = ends {
                    self.network.cut(one, other);
                }
            }
            (Kind::Leave, Some(at)) => {
                let node = &mut self.nodes[at];
                let Some(host) = node.host.as_ref().filter(|_| node.leaving.is_none()) else { return };
                node.leaving = Some(host.close(Duration::from_secs(3)));
                self.wake(at);
            }
            (Kind::Refuse, Some(at)) => {
                let how = self.choices.below(3);
                let Some(host) = &mut self.nodes[at].host else { return };
                match how {
                    0 => host.room = 0,
                    1 => host.refuses_views = true,
                    _ => host.keeps = true,
                }
                self.push(until, Happening::Take(at));
            }
            _ => return,
        }
        self.count(kind);
    }

    fn cut(&mut self, pairs: Vec<(u32, u32)>, layers: Layers, until: Time) {
        for (from, to) in pairs.iter().copied() {
            if layers.control {
                self.wires.hold(from, to, until);
            }
            if layers.fabric {
                *self.cuts.entry((from, to)).or_default() += 1;
                self.network.cut_one_way(NodeId(from), NodeId(to));
            }
        }
        if layers.fabric {
            self.push(until, Happening::Heal(pairs));
        }
    }

    fn start(&mut self, id: u32) {
        if self.alive(id).is_some() {
            return;
        }
        let founders = self.members - u32::from(self.last_joins);
        // Those of a durable group begin it again themselves.
        let mut config = wires::config(id, self.members, founders, self.founded && self.disks.is_none());
        if id == self.members && self.last_witnesses {
            config.role = Role::Witness;
        }
        config.guarantee = self.guarantee;
        config.groups.clone_from(&self.groups);
        config.state = self.stateful;
        config.snapshot_every = 48 << 10;
        config.ring_bytes = self.ring_bytes;
        config.wait = WaitStrategy::Block;
        config.silence = Duration::from_millis(100);
        config.quorum_within = Duration::from_secs(1);
        config.slow = self.slow;
        config.rejoin = self.choices.chance(50);
        let mut seed = [0; 32];
        seed.fill_with(|| self.choices.any() as u8);
        let at = self.wires.add(id);
        let clock = self.clocks[id as usize];
        clock::pretend(clock.shows(self.now));
        self.network.advance_to(self.now);
        let mut plane = Plane::new(&config, seed, clock.shows(self.now));
        if let Some(Broken::Change(mutant)) = self.broken {
            plane.mutate(mutant);
        }
        let closed = Arc::new(AtomicBool::new(false));
        let (network, flag) = (self.network.clone(), closed.clone());
        let data = match self.data(id, &mut config) {
            Ok(data) => data,
            Err(error) => return self.failure = Some(format!("node {id}: {error}")),
        };
        let make = move || -> MadeFabric { (Box::new(OnMachine::new(&network, id, flag.clone())), "sim") };
        let mut host = Host::with_data(config, make, at as u64, data);
        host.driver.tell_held();
        host.is_stateful = self.stateful;
        // No two starts send messages of the same number.
        host.sent = (at as u64) << 32;
        let shards = host.shards.len();
        for (app, shard) in host.shards.iter_mut().zip(1..) {
            app.next = (at as u64) << 32 | shard << 24;
        }
        if let Some(Broken::Driver(mutant)) = self.broken {
            host.driver.mutate(mutant);
        }
        if self.passes_over {
            host.driver.set_quiet_a_turn(1);
        }
        let prepared = Report::Prepared(0, host.offer.clone());
        self.nodes.push(Node {
            id,
            clock,
            plane: Some(plane),
            inbox: host.told_membership().chain([prepared]).collect(),
            host: Some(host),
            closed,
            timer: None,
            turn_at: Time(u64::MAX),
            rest: self.pace,
            control_until: Time(0),
            engine_until: Time(0),
            send_at: self.now,
            ordered: None,
            belongs: None,
            sent: Vec::new(),
            sent_to: vec![Vec::new(); shards],
            leaving: None,
            cascaded: None,
            probed: false,
            settled: 0,
        });
        self.push(self.now, Happening::Reports(at));
        self.wake(at);
    }

    /// What a node finds on its disk, if it has one.
    fn data(&mut self, id: u32, config: &mut NodeConfig) -> Result<Option<Data>, DataError> {
        let Some(disks) = &mut self.disks else { return Ok(None) };
        config.data = Some(PathBuf::from("data"));
        let disks = disks.entry(id).or_default().clone();
        disks.crash(false); // whatever of a life before is under way
        disks.set_bad(false, self.choices.below(60));
        let seed = self.choices.any();
        let opened = disks.clone();
        let mut make: MakeDisk =
            Box::new(move |directory| Ok(Box::new(opened.open(directory, seed)) as Box<dyn Disk>));
        loop {
            match Data::open(config, Some(&mut make)) {
                Err(DataError::Log { directory, cause: OpenError::Damaged { .. } }) => {
                    disks.repair(&directory)?;
                    self.counts.repaired += 1;
                }
                opened => return opened,
            }
        }
    }

    /// Whether all nodes are in one view, and each has all of every log: so any majority has what one of them loses.
    fn has_spare_logs(&self) -> bool {
        let mut views = BTreeSet::new();
        let all = (1..=self.members).all(|id| {
            let Some(at) = self.alive(id) else { return false };
            let (Some(plane), Some(host)) = (&self.nodes[at].plane, &self.nodes[at].host) else {
                return false;
            };
            let Some(view) = plane.view() else { return false }; // it may have been in a later one than the others are
            let sessions = host.driver.status().sessions;
            views.insert((view.id, view.members.len()));
            host.driver.is_whole() && sessions.iter().all(|it| it.stage == Stage::Running)
        });
        let is_of_all = |(_, members): &(ViewId, usize)| *members == self.members as usize;
        all && !self.last_witnesses && views.len() == 1 && views.iter().all(is_of_all)
    }

    /// A process is killed.
    fn crash(&mut self, at: usize, proof: bool) {
        let id = self.nodes[at].id;
        if let Some(disks) = self.disks.as_ref().and_then(|disks| disks.get(&id)) {
            disks.crash(!proof);
        }
        self.network.advance_to(self.now);
        self.end_fabric(at, proof);
        // A machine that is gone resets no connection; others' kernels give it up in time.
        let after = if proof { Duration::ZERO } else { Duration::from_secs(2) };
        self.wires.kill(self.now, at, after);
        self.nodes[at].plane = None;
        self.bury(at);
    }

    fn end_fabric(&mut self, at: usize, proof: bool) {
        let node = &self.nodes[at];
        if node.host.is_some() && !node.closed.load(Ordering::Relaxed) {
            let end = self.network.end_of(NodeId(node.id));
            if let Some(end) = end {
                if proof { self.network.crash(end) } else { self.network.crash_silently(end) }
            }
        }
    }

    /// Keeps what is known of a process whose driver is over.
    fn bury(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let Some(host) = node.host.take() else { return };
        if let Some(Ok(Ok(()))) = node.leaving.take().map(|answer| answer.try_recv())
            && let Some(belongs) = node.belongs
        {
            // V8: nothing that it sent is lost, and it knows.
            let own: BTreeSet<_> = host.messages().into_iter().filter(|(of, _)| *of == node.id).collect();
            let mine = node.sent.iter().filter(|sent| sent.life == belongs.life && sent.to.has(node.id));
            if let Some(lost) = mine.clone().find(|sent| !own.contains(&(node.id, sent.number))) {
                self.failure = Some(format!("node {} left in order, and {lost:x?} is lost (V8)", node.id));
            }
        }
        let stopped = host.stopped.is_some();
        let outcomes = host.outcomes.iter().map(|(number, outcome)| (*number, outcome.try_get())).collect();
        let sent = std::mem::take(&mut node.sent);
        let all = host.shards.iter().zip(std::mem::take(&mut node.sent_to));
        let of_shards: Vec<_> = all
            .map(|(app, sent)| Past {
                node: node.id,
                told: app.told.clone(),
                sent,
                outcomes: app.outcomes.iter().map(|(number, outcome)| (*number, outcome.try_get())).collect(),
                stopped,
                is_last: false,
            })
            .collect();
        let id = node.id;
        clock::pretend(node.clock.shows(self.now));
        let Host { told, driver, .. } = host;
        drop(driver);
        self.counts.evicted += told.iter().filter(|told| **told == Told::Evicted).count() as u64;
        self.pasts.push(Past { node: id, told, sent, outcomes, stopped, is_last: false });
        self.keep(of_shards);
    }

    /// Carries out what a plane wants.
    fn go_on(&mut self, at: usize) {
        let now = self.now;
        let obeys = match self.broken {
            Some(Broken::Orders(how)) => Some(how),
            _ => None,
        };
        let mut any = false;
        loop {
            let node = &mut self.nodes[at];
            let Some(plane) = &mut node.plane else { break };
            self.wires.serve(now, at, plane);
            let Some(order) = plane.poll_order() else { break };
            if let Order::Stop(reason) | Order::Over(reason) = &order
                && ![FAILED, TAKEN_BACK].iter().any(|known| reason.to_string().contains(known))
                && matches!(reason, Stopped::Machine(_) | Stopped::PeerMisbehaved { .. })
            {
                self.failure = Some(format!("node {} stops: {reason}", node.id));
            }
            if let Order::Install(install) = &order {
                self.counts.foundings += u64::from(install.view.id.0 == 1 && !self.founded);
                self.founded = true;
            }
            node.order(order, obeys);
            any = true;
        }
        let node = &mut self.nodes[at];
        if let Some(plane) = &node.plane {
            if plane.is_over() {
                node.plane = None;
                self.wires.end(now, at);
                if self.nodes[at].host.is_none() {
                    self.start_again(at);
                }
            } else {
                let due = plane.due().map(|due| node.clock.when(due));
                if let Some(due) = due {
                    self.timer_at(at, due);
                }
            }
        }
        if !self.nodes[at].inbox.is_empty() {
            self.push(now, Happening::Reports(at));
        }
        if any {
            self.wake(at);
        }
        self.cascade(at);
    }

    /// While a view changes is when another fault does most.
    fn cascade(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let Some(Phase::Changing(view, phase)) = node.plane.as_ref().map(Plane::phase) else { return };
        let step = (view.id.0, std::mem::discriminant(phase));
        if node.cascaded == Some(step) || self.now.0 > FAULTS || !self.kinds.contains(&Kind::Cascade) {
            return;
        }
        node.cascaded = Some(step);
        let id = node.id;
        let also = [
            Kind::Crash,
            Kind::SilentCrash,
            Kind::Pause,
            Kind::Stall,
            Kind::Part,
            Kind::Cut,
            Kind::OneWay,
            Kind::Break,
            Kind::Sever,
        ];
        let also: Vec<_> = also.into_iter().filter(|kind| self.kinds.contains(kind)).collect();
        if !also.is_empty() && self.choices.chance(6) {
            self.count(Kind::Cascade);
            let kind = also[self.choices.below(also.len() as u64) as usize];
            let soon = if self.choices.chance(50) { MILLISECOND } else { 15 * MILLISECOND };
            let (soon, whom) = (self.later(soon), self.choices.chance(50).then_some(id));
            self.push(soon, Happening::Fault(kind, whom));
        }
    }

    /// There is something for a driver to do.
    fn wake(&mut self, at: usize) {
        self.nodes[at].rest = self.pace;
        let soon = self.later(self.pace);
        self.turn_at(at, soon);
    }

    /// The clock of a node rings then, if not before.
    fn timer_at(&mut self, at: usize, when: Time) {
        let (when, node) = (when.max(self.now), &mut self.nodes[at]);
        if node.timer.is_none_or(|timer| when < timer) {
            node.timer = Some(when);
            self.push(when, Happening::Timer(at));
        }
    }

    fn turn_at(&mut self, at: usize, when: Time) {
        let node = &mut self.nodes[at];
        if when < node.turn_at {
            node.turn_at = when;
            self.push(when, Happening::Turn(at));
        }
    }

    fn turn(&mut self, at: usize) {
        let now = self.now;
        let node = &mut self.nodes[at];
        if node.turn_at != now || node.host.is_none() {
            return; // another comes before or after
        }
        node.turn_at = Time(u64::MAX);
        if now < node.engine_until {
            let until = node.engine_until;
            return self.turn_at(at, until);
        }
        self.network.advance_to(now);
        clock::pretend(node.clock.shows(now));
        self.send(at);
        let node = &mut self.nodes[at];
        let Some(host) = &mut node.host else { return };
        let (told, read) = (host.told.len(), host.read);
        let busy = host.take_turn();
        for told in &host.told[told..] {
            if let Told::Message { view, number, .. } = *told
                && !self.for_some.contains(&number)
            {
                let last = self.completed.entry(number >> 32).or_insert((number, view));
                *last = if number > last.0 { (number, view) } else { *last };
            }
        }
        self.counts.read += host.read - read;
        if let Some(disks) = &self.disks {
            self.counts.flushed += check_flushed(node, disks, &mut self.failure);
        }
        let Some(host) = &mut node.host else { return };
        if let Some((process, (number, view))) = host.stale {
            self.failure = Some(format!(
                "stale: node {} had not been told {number:x} of process {process} at a read point, and somebody had, in view {view}",
                node.id
            ));
        }
        if let Some(belongs) = node.ordered.take() {
            node.belongs = belongs;
        }
        let before = node.inbox.len();
        node.inbox.extend(host.told_membership());
        let tells = node.inbox.len() > before;
        let stopped = host.stopped.is_some();
        // Who is in no view looks less often.
        let longest = if node.belongs.is_some() { MILLISECOND } else { 5 * MILLISECOND };
        node.rest = if busy { self.pace } else { (node.rest * 2).min(longest) };
        let rest = node.rest;
        if tells {
            let soon = self.later(200 * MICROSECOND);
            self.push(soon, Happening::Reports(at));
        }
        if stopped {
            self.end_fabric(at, true);
            self.bury(at);
            if self.nodes[at].plane.is_none() {
                self.start_again(at);
            }
            return;
        }
        let next = Time(now.0 + rest / 2 + self.choices.below(rest));
        self.turn_at(at, next);
    }

    /// A process has come to its end, and whoever runs it starts it again.
    fn start_again(&mut self, at: usize) {
        let id = self.nodes[at].id;
        let pause = self.later(200 * MILLISECOND);
        self.push(pause, Happening::Start(id));
    }

    /// The application sends, if it is time to.
    fn send(&mut self, at: usize) {
        let quiet = self.quiet;
        let node = &mut self.nodes[at];
        if quiet && node.probed || node.send_at > self.now {
            return;
        }
        let Some(host) = &mut node.host else { return };
        let load = if self.now.0 < FAULTS { self.load } else { self.load * 5 };
        if self.disks.is_none()
            && self.readers.chance(20)
            && let Ok(point) = host.sender.read_point()
        {
            host.asked.push_back((point, self.completed.clone()));
        }
        node.send_at = Time(self.now.0 + self.choices.below(load));
        for _ in 0..1 + self.choices.below(3) * self.choices.below(2) {
            let most = if self.choices.chance(5) { self.ring_bytes as u64 / 5 } else { 100 };
            let (len, tracked) = (self.choices.below(most) as usize, self.choices.chance(40));
            let number = host.sent;
            // In the end to all, so that all know when they have everything.
            let to = self.addressing.as_mut().filter(|_| !quiet);
            let to = to.and_then(|choices| choices.chance(40).then(|| choices.below(1 << self.members) << 1));
            let to = to.map_or(Nodes::ALL, |to| Nodes(to as u32));
            let list = (to != Nodes::ALL).then(|| to.list());
            match host.send_to(list.as_deref(), node.id, len, tracked) {
                Err(SendError::NoSuchMember(_) | SendError::NoDestination) => continue,
                Err(_) => return,
                Ok(()) => {}
            }
            self.for_some.extend(list.map(|_| number));
            let Some(belongs) = node.belongs else {
                self.failure = Some(format!("node {} could send, and is in no view", node.id));
                return;
            };
            node.sent.push(Sent { number, life: belongs.life, view: belongs.view, to });
            node.probed = quiet;
            for (app, sent) in host.shards.iter_mut().zip(&mut node.sent_to) {
                // In a shard that it is no member of it can't.
                if let Ok(number) = app.send(tracked) {
                    sent.push(Sent { number, life: belongs.life, view: belongs.view, to: Nodes::ALL });
                }
            }
        }
    }

    /// The view that all nodes are in.
    fn common(&self) -> Option<&View> {
        let view = |id| match self.nodes[self.alive(id)?].plane.as_ref()?.phase() {
            Phase::Installed(view) => Some(view),
            _ => None,
        };
        let first = view(1)?;
        let everyone = first.members.len() == self.members as usize;
        (everyone && (2..=self.members).all(|id| view(id) == Some(first))).then_some(first)
    }

    /// Once all are together again, the load stops when each has sent something more, and everything must arrive.
    fn look(&mut self) {
        let again = Time(self.now.0 + 5 * MILLISECOND);
        self.push(again, Happening::Look);
        let Some(view) = self.common().cloned() else { return };
        let data: Vec<_> = view.data().map(|member| (member.node.0, member.incarnation)).collect();
        // Who came since has heard of nothing that was sent before.
        if !self.quiet || self.probing != view.shards[0].since {
            (self.quiet, self.probing) = (true, view.shards[0].since);
            self.nodes.iter_mut().for_each(|node| node.probed = false);
        }
        let mut sent = Vec::new();
        for (id, life) in &data {
            let Some(node) = self.alive(*id).map(|at| &self.nodes[at]) else { return };
            if !node.probed || node.belongs.map(|it| it.life) != Some(*life) {
                return;
            }
            sent.extend(node.sent.iter().rev().take_while(|sent| sent.life == *life).map(|it| (*id, it)));
        }
        let view = view.shards[0].since.0;
        for (id, life) in &data {
            let host = self.alive(*id).and_then(|at| self.nodes[at].host.as_ref());
            let Some(host) = host else { return };
            let told: BTreeSet<_> = host.messages().into_iter().collect();
            // Who came later has heard of none before.
            let last =
                |of: u32| sent.iter().filter(|(sender, _)| *sender == of).map(|(_, it)| it.number).max();
            let has_last =
                data.iter().all(|(of, _)| last(*of).is_some_and(|number| told.contains(&(*of, number))));
            let mut own = sent.iter().filter(|(sender, it)| sender == id && it.to.has(*id));
            let all_own = own.all(|(_, own)| told.contains(&(*id, own.number)));
            let known = host.outcomes.iter().all(|(_, outcome)| outcome.try_get().is_some());
            if !has_last || !all_own || !known || !host.asked.is_empty() || host.views().last() != Some(&view)
            {
                return;
            }
            let _ = life;
        }
        let Some(common) = self.common() else { return };
        for (id, shard) in common.shards().skip(1) {
            if !self.is_well(id, shard) {
                return;
            }
        }
        self.done = true;
        let states: Vec<_> = data
            .iter()
            .filter_map(|(id, _)| Some((*id, &self.nodes[self.alive(*id)?].host.as_ref()?.state)))
            .collect();
        if self.stateful
            && let Some(pair) = states.windows(2).find(|pair| !self.agree(pair[0].1, pair[1].1))
        {
            let [(one, its), (other, others)] = [pair[0], pair[1]];
            self.failure = Some(format!(
                "the states of node {one}, {} messages, and node {other}, {}, differ (V7)",
                its.len(),
                others.len()
            ));
        }
    }

    /// Whether a shard has as many members as it can, and they have everything, in the same order.
    fn is_well(&self, id: ShardId, shard: &Shard) -> bool {
        if shard.is_lost() {
            return true; // its state went with its last member
        }
        let apps = shard.members.iter().map(|node| {
            let node = &self.nodes[self.alive(node.0)?];
            Some((node, node.host.as_ref()?.shards.get(id.0 as usize - 1)?))
        });
        let Some(apps) = apps.collect::<Option<Vec<_>>>() else { return false };
        let is_complete = |(node, app): &(&Node, &App)| {
            let told: BTreeSet<_> = app.told.iter().filter_map(number).collect();
            let life = node.belongs.map(|it| it.life);
            let sent = &node.sent_to[id.0 as usize - 1];
            let mut own = sent.iter().filter(|sent| Some(sent.life) == life);
            own.all(|own| told.contains(&own.number))
                && app.outcomes.iter().all(|(_, outcome)| outcome.try_get().is_some())
                && views(&app.told).last() == Some(&shard.since.0)
        };
        shard.learners.is_empty()
            && apps.iter().all(is_complete)
            && apps.windows(2).all(|pair| {
                let (one, other) = (&pair[0].1.state, &pair[1].1.state);
                let is_whole = !self.groups.iter().any(|group| group.state) || one.len() == other.len();
                is_whole && (!self.groups.iter().any(|group| group.state) || self.agree(one, other))
            })
    }

    /// Whether one of two states is the other, further on.
    fn agree(&self, one: &[(u32, u64)], other: &[(u32, u64)]) -> bool {
        let is_further =
            |one: &[(u32, u64)], other: &[(u32, u64)]| one.iter().zip(other).all(|(one, other)| one == other);
        if self.guarantee != Guarantee::Fifo {
            return is_further(one, other);
        }
        let of = |state: &[(u32, u64)], id: u32| -> Vec<_> {
            state.iter().copied().filter(|(sender, _)| *sender == id).collect()
        };
        (1..=self.members).all(|id| is_further(&of(one, id), &of(other, id)))
    }

    /// Where everyone stands, and why it doesn't go on (V11).
    fn standing(&self) -> String {
        let mut text = String::new();
        for node in self.nodes.iter().filter(|node| node.lives()) {
            let now = node.clock.shows(self.now);
            if let Some(plane) = &node.plane {
                text += &format!("node {} is {}\n  {}\n", node.id, plane.phase(), plane.explain(now));
            }
            if let Some(host) = &node.host {
                let status = host.driver.status();
                let sessions = status.sessions.iter().map(|it| format!("{}: {}", it.view, it.stage));
                text += &format!(
                    "  its driver has {:?}, told {:?}, of its sessions {}\n",
                    status.view.map(|view| view.to_string()),
                    host.views().last(),
                    sessions.collect::<Vec<_>>().join(", ")
                );
                let view = node.plane.as_ref().and_then(Plane::view);
                let shards = view.into_iter().flat_map(|view| view.shards().skip(1));
                for ((id, shard), (app, sent)) in shards.zip(host.shards.iter().zip(&node.sent_to)) {
                    let life = node.belongs.map(|it| it.life);
                    let told: BTreeSet<_> = app.told.iter().filter_map(number).collect();
                    let missing =
                        sent.iter().filter(|it| Some(it.life) == life && !told.contains(&it.number));
                    let open = app.outcomes.iter().filter(|(_, outcome)| outcome.try_get().is_none());
                    text += &format!(
                        "  shard {id}: {shard:?}, told {:?}, a state of {} ({:?}), {} of its own missing, {} open\n",
                        views(&app.told).last(),
                        app.state.len(),
                        app.state.first(),
                        missing.count(),
                        open.count()
                    );
                }
            }
        }
        text
    }
}
