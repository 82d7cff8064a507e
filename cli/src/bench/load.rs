//! Latency and throughput: runs of the group and of the floor in turn.

use std::fs::File;
use std::path::Path;

use hdrhistogram::Histogram;

use super::conduct::{Status, conduct, stderr_line};
use super::figures::{PerMessage, nanoseconds};
use super::floor::{self, FloorRun, Setting};
use super::samples::{self, Series, merge};
use crate::args::LoadArgs;
use crate::crew::{Crew, Ports, bequeath};
use crate::failure::Failure;
use crate::group;
use crate::latency;
use crate::orders::{Counts, Durable, LoadReport, LoadTask, Pace, Seat, Task, WhichGroup, Window};
use crate::text::as_f64;

/// How long the floor that isn't the measurement's own runs (a throughput run has a latency floor for scale).
const SIDE_FLOOR: Window = Window { warmup: 50_000_000, measured: 200_000_000 };

/// A measurement that sends.
pub(crate) struct Bench<'a> {
    pub(crate) name: &'static str,
    pub(crate) args: &'a LoadArgs,
    pub(crate) pace: Pace,
    /// Where the members' data directories are, and which group is durable, if one is.
    pub(crate) durable: Option<(&'a Path, WhichGroup)>,
    pub(crate) log: &'a str,
}

/// One run of the group.
pub(crate) struct GroupRun {
    /// Nanoseconds from send to delivery at the sender, as they were.
    pub(crate) own: Histogram<u64>,
    /// … and to delivery at the last member.
    pub(crate) last: Histogram<u64>,
    pub(crate) messages: u64,
    pub(crate) seconds: f64,
    pub(crate) msgs_per_s: f64,
    pub(crate) cpu_s_per_million: f64,
    pub(crate) system_calls_per_message: f64,
    /// What each member delivered, and its fabric counted meanwhile.
    pub(crate) counts: Vec<(u64, Counts)>,
    /// Of the slowest member's log.
    pub(crate) log_bytes: u64,
    pub(crate) flushes: u64,
    /// Delivered of the durable group beside this one, at the member where that was least.
    pub(crate) beside_per_s: f64,
    pub(crate) fabric: String,
    pub(crate) engine: String,
}

/// The two floors beside a run.
pub(crate) struct Floors {
    pub(crate) latency: FloorRun,
    pub(crate) throughput: FloorRun,
}

impl Bench<'_> {
    pub(crate) fn closed_loop(&self) -> bool {
        self.pace == Pace::OneOutstanding
    }

    pub(crate) fn floods(&self) -> bool {
        self.pace == Pace::Flood
    }

    /// What a latency run's histogram becomes before it is looked at.
    pub(crate) fn correct(&self, raw: &Histogram<u64>) -> Histogram<u64> {
        if self.closed_loop() { latency::corrected(raw) } else { raw.clone() }
    }

    pub(crate) fn ring_bytes(&self) -> usize {
        self.args.ring.unwrap_or_else(|| group::ring_bytes(self.args.size, group::LEAST_RING))
    }

    fn window(&self) -> Window {
        Window { warmup: nanoseconds(self.args.warmup), measured: nanoseconds(self.args.group.duration) }
    }
}

/// Runs group and floor in turn, as often as asked for. `status` says which it is.
///
/// # Errors
/// A group doesn't start or is stopped, or the machine refuses something.
pub(crate) fn measure(bench: &Bench<'_>, status: &Status) -> Result<Vec<(Floors, GroupRun)>, Failure> {
    let total = bench.args.group.runs;
    let mut runs = Vec::new();
    for number in 1..=total {
        status.show(&format!("run {number} of {total}: the group"));
        let run = group_run(bench)?;
        status.show(&format!("run {number} of {total}: the floor"));
        // Which floor it is depends on the fabric, which `auto` leaves to the library: the group's run tells.
        runs.push((floor_runs(bench, &run.fabric)?, run));
    }
    Ok(runs)
}

/// The floors beside one run: the measurement's own in full, the other briefly.
fn floor_runs(bench: &Bench<'_>, fabric: &str) -> Result<Floors, Failure> {
    let args = bench.args;
    let setting = |window: Window, senders: u32| Setting {
        processes: args.group.members,
        senders,
        size: args.size,
        ring_bytes: bench.ring_bytes(),
        wait: args.group.wait,
        hosts: &args.hosts,
        window,
    };
    let whole = bench.window();
    // Half as long as the group's run: the floor has less to vary.
    let own =
        Window { warmup: whole.warmup.min(200_000_000), measured: (whole.measured / 2).max(50_000_000) };
    let show = stderr_line();
    let latency = setting(if bench.floods() { SIDE_FLOOR } else { own }, 1);
    let latency = floor::measure(floor::latency_kind(fabric, args.size), &latency, bench.log, show.clone())?;
    let throughput = if bench.floods() {
        floor::measure(floor::throughput_kind(fabric), &setting(own, args.senders), bench.log, show)?
    } else {
        // One message at a time is what this measurement does, too: round trips a second are its floor.
        FloorRun {
            round_trips: latency::histogram()?,
            messages: latency.messages,
            msgs_per_s: latency.msgs_per_s,
        }
    };
    Ok(Floors { latency, throughput })
}

/// Runs the group once.
///
/// # Errors
/// The group doesn't start or is stopped, or the machine refuses something.
pub(crate) fn group_run(bench: &Bench<'_>) -> Result<GroupRun, Failure> {
    let args = bench.args;
    let ports = Ports::reserve(args.group.members)?.at(args.hosts.iter().map(|host| host.address));
    let refused = |cause: std::io::Error| Failure::stream("make", "a file for samples", cause);
    let mut samples = Vec::new();
    let mut crew = Crew::new(stderr_line());
    for (id, _) in ports.numbered() {
        let file = rustix::fs::memfd_create("consort-samples", rustix::fs::MemfdFlags::CLOEXEC);
        let file = File::from(file.map_err(|e| refused(e.into()))?);
        let seat = Seat {
            id,
            addresses: ports.numbered(),
            fabric: args.group.fabric,
            guarantee: args.group.guarantee,
            topology: args.topology,
            wait: args.group.wait,
            ring_bytes: bench.ring_bytes(),
            idle_groups: args.idle_groups,
        };
        let task = LoadTask {
            seat,
            sends: id <= args.senders,
            size: args.size,
            pace: bench.pace,
            window: bench.window(),
            samples: bequeath(&file).map_err(refused)?,
            durable: bench.durable.map(|(place, which)| Durable { data: place.join(id.to_string()), which }),
        };
        let before = args.hosts.get(samples.len()).map_or(&[][..], |host| &host.command);
        samples.push(file);
        crew.start_by(before, &format!("member {id}"), bench.log, &Task::Load(task))?;
    }
    let (reports, start): (Vec<LoadReport>, u64) = conduct(crew, samples.len(), bench.window())?;
    let window = start + nanoseconds(args.warmup);
    let window = window..window + nanoseconds(args.group.duration);
    let mut files = Vec::new();
    for mut file in samples {
        // Members wrote through descriptions of their own; this one is still at the beginning, but say so.
        std::io::Seek::rewind(&mut file).map_err(refused)?;
        files.push(samples::read(&file).map_err(|cause| Failure::stream("read", "the samples", cause))?);
    }
    let (own, last) = distributions(&files, args.senders as usize, &window)?;
    combine(&reports, own, last)
}

/// Sets the members' times against each other. `files` holds for each member the deliveries of every sender, and
/// behind them, for senders, the own sends.
fn distributions(
    files: &[Vec<Series>],
    senders: usize,
    window: &std::ops::Range<u64>,
) -> Result<(Histogram<u64>, Histogram<u64>), Failure> {
    let broken = |what: String| Failure::disagreement(what, "this must not happen: report it as a bug");
    let (mut own, mut last) = (latency::histogram()?, latency::histogram()?);
    for sender in 0..senders {
        let all: Option<Vec<&Series>> = files.iter().map(|member| member.get(sender)).collect();
        let (Some(all), Some(mine)) = (all, files.get(sender).and_then(|member| member.get(sender))) else {
            return Err(broken(format!("the samples of member {} are incomplete", sender + 1)));
        };
        let Some(sent) = files[sender].get(files.len()) else {
            return Err(broken(format!("member {} did not say when it sent", sender + 1)));
        };
        let merged = merge(sent, mine, &all, window.clone())
            .map_err(|what| broken(format!("of member {}'s messages, {what}", sender + 1)))?;
        for latency in merged {
            own.saturating_record(latency.own);
            last.saturating_record(latency.last);
        }
    }
    Ok((own, last))
}

fn combine(reports: &[LoadReport], own: Histogram<u64>, last: Histogram<u64>) -> Result<GroupRun, Failure> {
    let rate = |report: &LoadReport| as_f64(report.delivered) * 1e9 / as_f64(report.elapsed.max(1));
    let slowest = reports.iter().min_by(|a, b| rate(a).total_cmp(&rate(b)));
    let slowest = slowest.ok_or_else(|| Failure::lost("a run without members", "report this as a bug"))?;
    if slowest.delivered == 0 {
        return Err(Failure::lost(
            "nothing was delivered in the measured time",
            "give a longer --duration, or fewer members if the machine is very loaded",
        ));
    }
    let messages = as_f64(slowest.delivered);
    let total = |what: fn(&LoadReport) -> u64| as_f64(reports.iter().map(what).sum::<u64>());
    let counts: Vec<_> = reports.iter().map(|report| (report.delivered, report.counts)).collect();
    Ok(GroupRun {
        own,
        last,
        messages: slowest.delivered,
        seconds: as_f64(slowest.elapsed) / 1e9,
        msgs_per_s: rate(slowest),
        cpu_s_per_million: total(|r| r.cpu) / 1e9 / messages * 1e6,
        system_calls_per_message: PerMessage::new(&counts).system_calls,
        counts,
        log_bytes: slowest.log_bytes,
        flushes: slowest.flushes,
        beside_per_s: reports
            .iter()
            .map(|r| as_f64(r.beside) * 1e9 / as_f64(r.elapsed.max(1)))
            .min_by(f64::total_cmp)
            .unwrap_or_default(),
        fabric: slowest.fabric.clone(),
        engine: slowest.engine.clone(),
    })
}
