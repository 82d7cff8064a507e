//! `consort bench repair`: how long shards lack a replica when a node dies, and what the others notice.
//!
//! Nodes with the shards of one group on them, an object on each, run under a steady load. One node is killed, then another, and none comes in its
//! place. *Repaired* is from the kill until every shard has as many replicas as before, or as nodes suffice for, by the word of each of those that
//! have it: the new ones among them have the state, and are told of a view that has them. Shards that the victim had no replica of, and whose
//! session goes on through it all, say for how long nothing was delivered in them meanwhile, and in an equally long time without a failure.

mod member;

use std::collections::BTreeMap;
use std::time::Duration;

use rustix::process::Signal;
use serde::Serialize;

use super::conduct::{Status, stderr_line};
use super::figures::{ms, nanoseconds};
use crate::args::RepairArgs;
use crate::clock;
use crate::crew::{Crew, Ports};
use crate::failure::Failure;
use crate::group;
use crate::orders::{RepairTask, Said, Seat, Task, Told};
use crate::text;

pub(crate) use member::run as member;

/// How long all run before the next kill.
const SETTLE: Duration = Duration::from_millis(500);

/// How long the spared shards are watched after the repair: what it did to them shows by then.
const AFTERMATH: Duration = Duration::from_millis(100);

/// How long a repair may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// The ring of a shard's member, if updates are not so long as to need a larger one.
const LEAST_RING: usize = 1 << 18;

/// One kill.
#[derive(Debug, Serialize)]
struct Kill {
    run: u32,
    victim: u32,
    /// Shards that it had a replica of.
    hit: usize,
    repaired_ms: f64,
    /// Replicas that are on nodes where they were not before.
    moved: usize,
    /// Shards that were not touched,
    spared: usize,
    /// the longest time without a delivery in one of them,
    #[serde(skip_serializing_if = "Option::is_none")]
    spared_ms: Option<f64>,
    /// and in an equally long time without a failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    no_failure_ms: Option<f64>,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report {
    bench: &'static str,
    fabric: String,
    nodes: u32,
    domains: u32,
    shards: usize,
    replicas: usize,
    /// Updates a second that each node sends to each shard that it has.
    rate: f64,
    size: usize,
    kills: Vec<Kill>,
}

/// Measures.
///
/// # Errors
/// The nodes do not start, or a shard is not repaired.
pub(crate) fn run(args: &RepairArgs, log: &str) -> Result<(), Failure> {
    args.check()?;
    let status = Status::new();
    let measured = measure(args, log, &status);
    status.clear();
    let (fabric, kills) = measured?;
    let report = Report {
        bench: "repair",
        fabric,
        nodes: args.nodes,
        domains: args.domains,
        shards: args.shards,
        replicas: args.replicas,
        rate: args.rate,
        size: args.size,
        kills,
    };
    text::print(&report, args.json, describe)
}

fn measure(args: &RepairArgs, log: &str, status: &Status) -> Result<(String, Vec<Kill>), Failure> {
    let (mut fabric, mut kills) = (String::new(), Vec::new());
    for run in 1..=args.runs {
        status.show(&format!("run {run} of {}: the nodes start", args.runs));
        let mut cluster = Cluster::found(args, log)?;
        for number in 1..=args.kills {
            status.show(&format!("run {run} of {}: kill {number} of {}", args.runs, args.kills));
            cluster.pass_time(SETTLE)?;
            kills.push(cluster.kill(run)?);
        }
        fabric = cluster.fabric;
        cluster.crew.close(group::CLOSE_WITHIN + Duration::from_secs(5))?;
    }
    Ok((fabric, kills))
}

/// A view of a shard: its members, and when each was told of it.
#[derive(Clone, Debug, Default)]
struct Seen {
    members: Vec<u32>,
    told: BTreeMap<u32, u64>,
}

/// The shards, as the nodes tell of them: each one's views, by number.
struct Layout(Vec<BTreeMap<u64, Seen>>);

impl Layout {
    fn new(shards: usize) -> Self {
        Self(vec![BTreeMap::new(); shards])
    }

    fn on_shard(&mut self, node: u32, shard: usize, view: u64, (members, at): (Vec<u32>, u64)) {
        if let Some(views) = self.0.get_mut(shard) {
            let seen = views.entry(view).or_default();
            seen.members = members;
            seen.told.insert(node, at);
        }
    }

    /// When the last member was told of the newest view, if every shard has so many members there, all of them alive.
    fn whole(&self, replicas: usize, alive: &[u32]) -> Option<u64> {
        let of = |views: &BTreeMap<u64, Seen>| {
            let (_, newest) = views.last_key_value()?;
            let is_whole =
                newest.members.len() == replicas && newest.members.iter().all(|it| alive.contains(it));
            let told: Option<Vec<u64>> =
                newest.members.iter().map(|node| newest.told.get(node).copied()).collect();
            told.filter(|_| is_whole)?.into_iter().max()
        };
        let all: Option<Vec<u64>> = self.0.iter().map(of).collect();
        all?.into_iter().max()
    }

    /// Each shard's newest view and its members.
    fn newest(&self) -> Vec<(u64, Vec<u32>)> {
        let of = |views: &BTreeMap<u64, Seen>| {
            views.last_key_value().map(|(view, seen)| (*view, seen.members.clone()))
        };
        self.0.iter().map(|views| of(views).unwrap_or_default()).collect()
    }
}

/// The node that has most shards, but not all of them if that can be: some are to be spared.
fn victim(layout: &[(u64, Vec<u32>)], alive: &[u32]) -> Option<u32> {
    let has = |node: u32| layout.iter().filter(|(_, members)| members.contains(&node)).count();
    // The first of several.
    alive.iter().copied().rev().max_by_key(|node| (has(*node) < layout.len(), has(*node)))
}

/// Who is there, and what is known of the shards.
struct Cluster<'a> {
    args: &'a RepairArgs,
    crew: Crew,
    _ports: Ports,
    /// By node, from 1: its place in the crew is one less.
    alive: Vec<u32>,
    layout: Layout,
    fabric: String,
}

impl<'a> Cluster<'a> {
    fn found(args: &'a RepairArgs, log: &str) -> Result<Self, Failure> {
        let ports = Ports::reserve(args.nodes)?;
        let mut crew = Crew::new(stderr_line());
        for id in 1..=args.nodes {
            let ring_bytes = group::ring_bytes(args.size, LEAST_RING);
            let task = RepairTask {
                seat: Seat::plain(id, ports.numbered(), args.fabric, ring_bytes),
                shards: args.shards,
                replicas: args.replicas,
                domain: format!("domain-{}", (id - 1) % args.domains + 1),
                size: args.size,
                interval: nanoseconds(Duration::from_secs_f64(1.0 / args.rate)),
            };
            crew.start(&format!("node {id}"), log, &Task::Repair(task))?;
        }
        let (alive, layout) = ((1..=args.nodes).collect(), Layout::new(args.shards));
        let mut cluster = Self { args, crew, _ports: ports, alive, layout, fabric: String::new() };
        cluster.repaired()?;
        Ok(cluster)
    }

    /// How many replicas of a shard the nodes suffice for.
    fn replicas(&self) -> usize {
        self.args.replicas.min(self.alive.len())
    }

    /// Waits until every shard has all its replicas, and says since when.
    fn repaired(&mut self) -> Result<u64, Failure> {
        let until = clock::now() + nanoseconds(PATIENCE);
        loop {
            if let Some(at) = self.layout.whole(self.replicas(), &self.alive) {
                return Ok(at);
            }
            if clock::now() >= until {
                return Err(Failure::lost(
                    format!("not every shard had {} replicas after {PATIENCE:?}", self.replicas()),
                    "run it again with --log debug to see what the nodes wait for",
                ));
            }
            self.hear(until)?;
        }
    }

    /// Hears one thing, if there is one by then: the gaps that it tells of.
    fn hear(&mut self, until: u64) -> Result<Option<Vec<u64>>, Failure> {
        let left = Duration::from_nanos(until.saturating_sub(clock::now()));
        match self.crew.hear(left)? {
            Some((place, Said::Shard { shard, view, members, at })) => {
                let node = (1..).nth(place).unwrap_or_default();
                self.layout.on_shard(node, shard, view, (members, at));
            }
            Some((_, Said::Gaps { longest, fabric })) => {
                self.fabric = fabric;
                return Ok(Some(longest));
            }
            _ => {}
        }
        Ok(None)
    }

    fn pass_time(&mut self, time: Duration) -> Result<(), Failure> {
        let until = clock::now() + nanoseconds(time);
        while clock::now() < until {
            self.hear(until)?;
        }
        Ok(())
    }

    /// Kills a node, and waits until all is as well as it can be.
    fn kill(&mut self, run: u32) -> Result<Kill, Failure> {
        let before = self.layout.newest();
        let Some(victim) = victim(&before, &self.alive) else {
            return Err(Failure::lost("no node is left to be killed", "report this as a bug"));
        };
        self.alive.retain(|node| *node != victim);
        let (place, at) = (victim as usize - 1, clock::now());
        self.crew.signal(place, Signal::KILL)?;
        let repaired = self.repaired()?; // long before the kill, if it had no shard
        self.pass_time(AFTERMATH)?;
        let until = clock::now();
        self.crew.end(place)?;
        let after = self.layout.newest();
        let both = || before.iter().zip(&after);
        let moved = both().map(|(old, new)| new.1.iter().filter(|node| !old.1.contains(node)).count()).sum();
        let spared: Vec<_> =
            both().enumerate().filter(|(_, (old, new))| old == new).map(|(shard, _)| shard).collect();
        let gaps = self.spared(&spared, (at, until))?;
        let gap = |at: usize| (!spared.is_empty()).then(|| ms(gaps[at]));
        Ok(Kill {
            run,
            victim,
            hit: before.iter().filter(|(_, members)| members.contains(&victim)).count(),
            repaired_ms: ms(repaired.saturating_sub(at)),
            moved,
            spared: spared.len(),
            spared_ms: gap(0),
            no_failure_ms: gap(1),
        })
    }

    /// The longest gaps in these shards, in that time and in one as long from now on.
    fn spared(&mut self, shards: &[usize], (since, until): (u64, u64)) -> Result<[u64; 2], Failure> {
        self.pass_time(SETTLE)?;
        let (quiet, window) = (clock::now(), until - since);
        self.pass_time(Duration::from_nanos(window))?;
        let windows = vec![(since, until), (quiet, quiet + window)];
        let newest = self.layout.newest();
        for node in &self.alive {
            let has = |shard: &&usize| newest[**shard].1.contains(node);
            let shards = shards.iter().filter(has).copied().collect();
            self.crew.tell(*node as usize - 1, &Told::ShardGaps { shards, windows: windows.clone() })?;
        }
        let (mut heard, mut gaps) = (0, [0; 2]);
        let patience = clock::now() + nanoseconds(PATIENCE);
        while heard < self.alive.len() {
            if clock::now() >= patience {
                return Err(Failure::lost("a node doesn't answer", "run it again with --log debug"));
            }
            if let Some(longest) = self.hear(patience)? {
                heard += 1;
                gaps.iter_mut().zip(longest).for_each(|(most, gap)| *most = gap.max(*most));
            }
        }
        Ok(gaps)
    }
}

fn describe(report: &Report) -> String {
    let Report { fabric, nodes, domains, shards, replicas, .. } = report;
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::UTF8_FULL_CONDENSED);
    table.set_header([
        "run",
        "killed",
        "shards hit",
        "repaired ms",
        "moved",
        "spared",
        "longest gap ms",
        "no failure ms",
    ]);
    for kill in &report.kills {
        let gap = |gap: Option<f64>| gap.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.2}"));
        table.add_row([
            kill.run.to_string(),
            format!("node {}", kill.victim),
            kill.hit.to_string(),
            format!("{:.2}", kill.repaired_ms),
            kill.moved.to_string(),
            kill.spared.to_string(),
            gap(kill.spared_ms),
            gap(kill.no_failure_ms),
        ]);
    }
    format!(
        "repair: {shards} shards of {replicas} replicas on {nodes} nodes in {domains} domains over {fabric}, {} updates/s of {} to each \
         shard from each node that has it\n{table}",
        report.rate,
        text::bytes(report.size as u64)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_is_whole_when_all_its_members_say_so() {
        let mut layout = Layout::new(2);
        for (node, at) in [(1, 10), (2, 11), (3, 12)] {
            layout.on_shard(node, 0, 1, (vec![1, 2, 3], at));
        }
        assert_eq!(layout.whole(3, &[1, 2, 3, 4]), None, "nothing is known of the other");
        for (node, at) in [(1, 13), (2, 9), (4, 8)] {
            layout.on_shard(node, 1, 1, (vec![1, 2, 4], at));
        }
        assert_eq!(layout.whole(3, &[1, 2, 3, 4]), Some(13));
        assert_eq!(layout.whole(3, &[1, 2, 4]), None, "one of its members is dead");
        layout.on_shard(1, 0, 2, (vec![1, 2], 20));
        layout.on_shard(2, 0, 2, (vec![1, 2], 21));
        assert_eq!(layout.whole(3, &[1, 2, 4]), None, "it lacks one");
        for (node, at) in [(1, 30), (2, 31)] {
            layout.on_shard(node, 0, 3, (vec![1, 2, 4], at));
        }
        assert_eq!(layout.whole(3, &[1, 2, 4]), None, "the new one is not there yet");
        layout.on_shard(4, 0, 3, (vec![1, 2, 4], 32));
        assert_eq!(layout.whole(3, &[1, 2, 4]), Some(32));
        assert_eq!(layout.newest(), [(3, vec![1, 2, 4]), (1, vec![1, 2, 4])]);
    }

    #[test]
    fn the_victim_leaves_a_shard_that_is_spared() {
        let layout = [(1, vec![1, 2, 3]), (1, vec![1, 4, 5]), (1, vec![1, 2, 4])];
        assert_eq!(victim(&layout, &[1, 2, 3, 4, 5]), Some(2), "1 has them all");
        assert_eq!(victim(&layout, &[1]), Some(1));
        assert_eq!(victim(&layout, &[]), None);
    }
}
