//! `consort bench replicas`: a replicated object in total order and along a chain, side by side, with the machine's floor.
//!
//! All members come through three parts together, by the clock: updates alone, updates and queries, queries alone. Nobody waits for
//! anybody at their borders: a border is a time, and what crosses it counts where it ends.

use std::collections::VecDeque;
use std::io::Read;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use consort::object::{Bytes, Context, Options, Pending, Replica, Snapshot, StateMachine, UpdateError};
use hdrhistogram::Histogram;
use serde::Serialize;

use super::conduct::{Status, conduct, stderr_line};
use super::figures::{Quantiles, middle, nanoseconds};
use super::floor::{self, Setting};
use crate::args::{GuaranteeArg, ReplicasArgs, TopologyArg, WaitArg};
use crate::clock;
use crate::crew::{Crew, Ports};
use crate::failure::Failure;
use crate::group;
use crate::latency;
use crate::orders::{ReplicasReport, ReplicasTask, Said, Seat, Task, Told, Window};
use crate::parent::Parent;
use crate::text::{self, as_f64};

/// Updates of one member under way at once.
const UNDER_WAY: usize = 256;

/// What the floor's round trips carry.
const FLOOR_BYTES: usize = 64;

/// Parts of a run.
const PARTS: u64 = 3;

/// One kind of replication, in the run in the middle.
#[derive(Clone, Debug, Serialize)]
struct Kind {
    topology: TopologyArg,
    /// Applied at the slowest member.
    updates_per_s: f64,
    gb_per_s: f64,
    /// Queries at all members while updates run.
    loaded_us: Quantiles,
    /// … while none do.
    quiet_us: Quantiles,
    queries: u64,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report {
    bench: &'static str,
    fabric: String,
    members: u32,
    updaters: u32,
    size: usize,
    wait: WaitArg,
    kinds: Vec<Kind>,
    floor: &'static str,
    floor_us: Quantiles,
}

/// Measures.
///
/// # Errors
/// A group does not start, or is stopped.
pub(crate) fn run(args: &ReplicasArgs, log: &str) -> Result<(), Failure> {
    args.check()?;
    let status = Status::new();
    let measured = measure(args, log, &status);
    status.clear();
    text::print(&measured?, args.json, describe)
}

fn measure(args: &ReplicasArgs, log: &str, status: &Status) -> Result<Report, Failure> {
    let topologies = [TopologyArg::Direct, TopologyArg::Chain];
    let (mut runs, mut floors) = ([Vec::new(), Vec::new()], Vec::new());
    let mut fabric = String::new();
    for number in 1..=args.runs {
        for (topology, runs) in topologies.into_iter().zip(&mut runs) {
            status.show(&format!("run {number} of {}: {topology}", args.runs));
            let (on, kind) = one_run(args, topology, log)?;
            fabric = on;
            runs.push(kind);
        }
        status.show(&format!("run {number} of {}: the floor", args.runs));
        let setting = Setting {
            processes: args.members,
            senders: 1,
            size: FLOOR_BYTES,
            ring_bytes: group::LEAST_RING,
            hosts: &[],
            wait: args.wait,
            window: Window { warmup: nanoseconds(args.warmup), measured: nanoseconds(args.duration) / 2 },
        };
        let run = floor::measure(floor::latency_kind(&fabric, FLOOR_BYTES), &setting, log, stderr_line())?;
        floors.push(Quantiles::from(&latency::corrected(&run.round_trips)));
    }
    let kinds = runs.into_iter().filter_map(|runs| {
        middle(runs.iter().map(|run: &Kind| run.updates_per_s)).map(|at| runs[at].clone())
    });
    Ok(Report {
        bench: "replicas",
        members: args.members,
        updaters: args.updaters,
        size: args.size,
        wait: args.wait,
        kinds: kinds.collect(),
        floor: floor::describe(floor::latency_kind(&fabric, FLOOR_BYTES)),
        floor_us: middle(floors.iter().map(|run| run.p50)).map(|at| floors[at]).unwrap_or_default(),
        fabric,
    })
}

fn one_run(args: &ReplicasArgs, topology: TopologyArg, log: &str) -> Result<(String, Kind), Failure> {
    let window = Window { warmup: nanoseconds(args.warmup), measured: nanoseconds(args.duration) };
    let ports = Ports::reserve(args.members)?;
    let mut crew = Crew::new(stderr_line());
    for (id, _) in ports.numbered() {
        let seat = Seat {
            id,
            addresses: ports.numbered(),
            fabric: args.fabric,
            guarantee: GuaranteeArg::Atomic,
            topology,
            wait: args.wait,
            ring_bytes: group::ring_bytes(args.size, group::LEAST_RING),
            idle_groups: 0,
        };
        let task = ReplicasTask { seat, updates: id <= args.updaters, size: args.size, window };
        crew.start(&format!("member {id}"), log, &Task::Replicas(task))?;
    }
    // The parts count to the conductor's patience, too.
    let whole = Window { measured: PARTS * window.measured, ..window };
    let (reports, _): (Vec<ReplicasReport>, u64) = conduct(crew, args.members as usize, whole)?;
    let rate = |report: &ReplicasReport| as_f64(report.applied) * 1e9 / as_f64(report.elapsed.max(1));
    let updates_per_s = reports.iter().map(rate).min_by(f64::total_cmp).unwrap_or_default();
    let together = |of: fn(&ReplicasReport) -> &Vec<(u64, u64)>| -> Result<Histogram<u64>, Failure> {
        let mut all = latency::histogram()?;
        for (nanoseconds, count) in reports.iter().flat_map(of) {
            all.saturating_record_n(*nanoseconds, *count);
        }
        Ok(all)
    };
    let (loaded, quiet) = (together(|report| &report.loaded)?, together(|report| &report.quiet)?);
    if updates_per_s == 0.0 || loaded.is_empty() || quiet.is_empty() {
        return Err(Failure::lost(
            "nothing was updated, or nothing asked, in the measured time",
            "give a longer --duration, or fewer members if the machine is very loaded",
        ));
    }
    let kind = Kind {
        topology,
        updates_per_s,
        gb_per_s: updates_per_s * as_f64(args.size as u64) / 1e9,
        loaded_us: Quantiles::from(&latency::corrected(&loaded)),
        quiet_us: Quantiles::from(&latency::corrected(&quiet)),
        queries: loaded.len() + quiet.len(),
    };
    Ok((reports.first().map(|report| report.fabric.clone()).unwrap_or_default(), kind))
}

fn describe(report: &Report) -> String {
    let Report { members, updaters, fabric, wait, .. } = report;
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::UTF8_FULL_CONDENSED);
    table.set_header(["", "updates/s", "GB/s", "query under load: p50", "p99", "quiet: p50", "p99"]);
    for kind in &report.kinds {
        let name = match kind.topology {
            TopologyArg::Direct => "total order",
            TopologyArg::Chain => "chain",
        };
        let times = [kind.loaded_us.p50, kind.loaded_us.p99, kind.quiet_us.p50, kind.quiet_us.p99];
        let mut cells =
            vec![name.to_owned(), text::rate(kind.updates_per_s), format!("{:.3}", kind.gb_per_s)];
        cells.extend(times.map(text::micros));
        table.add_row(cells);
    }
    let floor = &report.floor_us;
    format!(
        "replicas: {members} members over {fabric}, {updaters} updating with {}, waiting {wait}\n{table}\nfloor: p50 {}, p99 {} ({})",
        text::bytes(report.size as u64),
        text::micros(floor.p50),
        text::micros(floor.p99),
        report.floor
    )
}

/// The object: it counts, and looks at all that it is given.
#[derive(Default)]
pub(super) struct Tally {
    updates: u64,
    sum: u64,
}

impl StateMachine for Tally {
    type Update = Bytes;
    type Reply = u64;

    fn apply(&mut self, _: &Context, update: Bytes) -> u64 {
        self.updates += 1;
        self.sum =
            update.0.iter().fold(self.sum, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
        self.updates
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot::of(&(self.updates, self.sum))
    }

    fn restore(&mut self, from: &mut dyn Read) -> std::io::Result<()> {
        (self.updates, self.sum) = Snapshot::read(from)?;
        Ok(())
    }
}

/// A member with a replica.
///
/// # Errors
/// The group.
pub(crate) fn member(task: &ReplicasTask, parent: &mut Parent) -> Result<(), Failure> {
    let id = task.seat.id;
    let halted = |error: &dyn std::fmt::Display| {
        Failure::lost(format!("member {id}'s replica stopped: {error}"), "run it again with --log debug")
    };
    let not_started = |error: &dyn std::fmt::Display| {
        let message = format!("member {id} can't start: {error}");
        Failure::start(message, "see the reason above; --log debug tells more")
    };
    let node = group::founder(&task.seat).state(true).start().map_err(|error| not_started(&error))?;
    let node = Arc::new(node);
    let options = Options::default().digest_every(0); // whoever measures doesn't want to wait for one
    let replica = Replica::on(&node, node.main(), Tally::default(), options);
    let replica = replica.map_err(|error| not_started(&error))?;
    // Waits for the group to start, as any update does.
    replica.update(&Bytes(vec![0; task.size])).map_err(|error| halted(&error))?;
    parent.say(&Said::Ready);
    let Some(Told::Go { at }) = parent.told() else { return Ok(()) };
    let begin = |part: u64| at + task.window.warmup + part * task.window.measured;
    let report = thread::scope(|scope| {
        let asking = scope.spawn(|| ask(&replica, [begin(1), begin(2), begin(3)]));
        let updating = task.updates.then(|| scope.spawn(|| update(&replica, task.size, begin(2))));
        pass_time(begin(0));
        let (from, before) = (clock::now(), replica.applied());
        pass_time(begin(1));
        let (elapsed, applied) = (clock::now() - from, replica.applied() - before);
        let panicked = || Failure::lost(format!("a thread of member {id} panicked"), "report this as a bug");
        if let Some(updating) = updating {
            updating.join().map_err(|_| panicked())?.map_err(|error| halted(&error))?;
        }
        let [loaded, quiet] = asking.join().map_err(|_| panicked())??;
        let fabric = node.stats().fabric.to_owned();
        Ok::<_, Failure>(ReplicasReport {
            applied,
            elapsed,
            loaded: steps(&loaded),
            quiet: steps(&quiet),
            fabric,
        })
    })?;
    parent.done(&report)?;
    // The others may still be measuring: leaving would disturb them.
    parent.told();
    node.leave(group::CLOSE_WITHIN).wait().map_err(|error| group::not_closed(id, &error))
}

/// Updates as fast as the group takes it, until then.
fn update(replica: &Replica<Tally>, size: usize, until: u64) -> Result<(), UpdateError> {
    let update = Bytes(vec![7; size]);
    let mut under_way: VecDeque<Pending<Result<u64, UpdateError>>> = VecDeque::new();
    while clock::now() < until {
        if under_way.len() == UNDER_WAY
            && let Some(first) = under_way.pop_front()
        {
            first.wait()?;
        }
        under_way.push_back(replica.submit(&update)?);
    }
    under_way.into_iter().try_for_each(|update| update.wait().map(|_| ()))
}

/// Asks, one query after the other, from the first of these times to the last; how long it took before and after the second.
fn ask(replica: &Replica<Tally>, [from, border, until]: [u64; 3]) -> Result<[Histogram<u64>; 2], Failure> {
    let (mut loaded, mut quiet) = (latency::histogram()?, latency::histogram()?);
    pass_time(from);
    let mut now = clock::now();
    while now < until {
        let updates = replica.query(|it| it.updates);
        updates.map_err(|error| {
            Failure::lost(format!("a query failed: {error}"), "run it again with --log debug")
        })?;
        let then = clock::now();
        let took = if then < border { &mut loaded } else { &mut quiet };
        took.saturating_record(then - now);
        now = then;
    }
    Ok([loaded, quiet])
}

fn steps(times: &Histogram<u64>) -> Vec<(u64, u64)> {
    times.iter_recorded().map(|step| (step.value_iterated_to(), step.count_at_value())).collect()
}

fn pass_time(until: u64) {
    thread::sleep(Duration::from_nanos(until.saturating_sub(clock::now())));
}
