//! `consort bench report`: the whole in one run and one page: latency, throughput by size and members, what happens beyond the most that
//! goes through, and failover, each beside the machine's floor.
//!
//! Everything is measured as the single benchmarks measure it, one after the other, and is in the object that they print. [`page`] draws it.

mod peers;
mod page;

use std::path::Path;
use std::time::SystemTime;

use serde::Serialize;

use super::conduct::Status;
use super::figures::{Curves, Quantiles, Report, middle};
use super::load::{self, Bench};
use super::{failover, plot, report};
use crate::args::{FailoverArgs, LoadArgs, ReportArgs};
use crate::failure::Failure;
use crate::orders::Pace;
use crate::text;

/// Offered rates, as shares of the greatest at which messages went through.
const SHARES: [f64; 9] = [0.1, 0.25, 0.5, 0.75, 0.9, 1.0, 1.25, 1.5, 2.0];

/// The member count of what is not measured for several.
const MEMBERS: u32 = 3;

/// What `--json` prints, and what stands beside the page.
#[derive(Debug, Serialize)]
struct Survey {
    bench: &'static str,
    /// Of Consort.
    version: &'static str,
    /// When it began, UTC.
    date: String,
    machine: Machine,
    runs: u32,
    /// Of each run.
    seconds: f64,
    latency: Vec<Report>,
    throughput: Vec<Report>,
    overload: Vec<Overload>,
    failover: Vec<failover::Report>,
    /// Other systems, measured before.
    #[serde(skip_serializing_if = "Option::is_none")]
    peers: Option<peers::Peers>,
}

/// Where it ran.
#[derive(Debug, Serialize)]
struct Machine {
    /// CPUs that this process may use.
    cpus: usize,
    cpu: String,
    kernel: String,
}

/// What becomes of ever more messages a second.
#[derive(Debug, Serialize)]
struct Overload {
    fabric: String,
    members: u32,
    size: usize,
    /// Delivered at all members when one sends as fast as it can.
    peak_msgs_per_s: f64,
    /// From send to delivery then: what a full ring makes of it.
    peak_latency_us: Quantiles,
    points: Vec<Point>,
}

/// One offered rate.
#[derive(Debug, Serialize)]
struct Point {
    /// Of the peak.
    share: f64,
    offered_per_s: f64,
    msgs_per_s: f64,
    /// From when a message was due, so that it grows for as long as more is offered than goes through.
    latency_us: Quantiles,
}

/// One latency measurement, to be drawn.
struct Drawn {
    name: String,
    curves: Curves,
}

/// Measures, and writes the page and its figures.
///
/// # Errors
/// The arguments make no sense, a file can't be written, or a group doesn't start or is stopped.
pub(crate) fn run(args: &ReportArgs, log: &str) -> Result<(), Failure> {
    args.check()?;
    let peers = args.peers.as_deref().map(peers::read).transpose()?;
    let figures = args.out.with_extension("json");
    plot::writable(&args.out)?;
    plot::writable(&figures)?;
    let status = Status::new();
    let measured = measure(args, log, &status);
    status.clear();
    let (mut survey, drawn) = measured?;
    survey.peers = peers;
    let write = |path: &Path, text: &str| {
        std::fs::write(path, text).map_err(|cause| Failure::file("write", path, cause))
    };
    write(&args.out, &page::page(&survey, &drawn)?)?;
    let json = serde_json::to_string_pretty(&survey)
        .map_err(|cause| Failure::file("write", &figures, cause.into()))?;
    write(&figures, &json)?;
    text::print(&survey, args.json, |survey| {
        format!(
            "{}\n{} shows it all; {} has the figures",
            describe(survey),
            args.out.display(),
            figures.display()
        )
    })
}

fn measure(args: &ReportArgs, log: &str, status: &Status) -> Result<(Survey, Vec<Drawn>), Failure> {
    let mut survey = Survey {
        bench: "report",
        version: env!("CARGO_PKG_VERSION"),
        date: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        machine: machine(),
        runs: args.runs,
        seconds: args.duration.as_secs_f64(),
        latency: Vec::new(),
        throughput: Vec::new(),
        overload: Vec::new(),
        failover: Vec::new(),
        peers: None,
    };
    let mut drawn = Vec::new();
    let one = |status: &Status, load: &LoadArgs, pace: Pace, name: &'static str| {
        let bench = Bench { name, args: load, pace, durable: None, log };
        report::summarize(&bench, &load::measure(&bench, status)?)
    };
    for &fabric in &args.fabric {
        for &members in &args.members {
            for &size in args.sizes.iter().take(2) {
                let load = args.load(fabric, members, size, 1);
                let status = status.within(&format!("latency, {fabric}, {members} members, {}", bytes(size)));
                let (report, curves) = one(&status, &load, Pace::OneOutstanding, "latency")?;
                drawn.push(Drawn { name: name(&report), curves });
                survey.latency.push(report);
            }
            for &size in &args.sizes {
                let mut senders = vec![1, members];
                senders.dedup();
                for senders in senders {
                    let load = args.load(fabric, members, size, senders);
                    let what = format!(
                        "throughput, {fabric}, {members} members, {senders} sending, {}",
                        bytes(size)
                    );
                    let (report, _) = one(&status.within(&what), &load, Pace::Flood, "throughput")?;
                    survey.throughput.push(report);
                }
            }
        }
        let members =
            args.members.iter().copied().find(|members| *members >= MEMBERS).unwrap_or(args.members[0]);
        let load = args.load(fabric, members, args.sizes[0], 1);
        survey.overload.push(overload(&load, log, &status.within(&format!("overload, {fabric}")))?);
        if args.kills > 0 {
            let silence = std::time::Duration::from_secs(1);
            let members = members.max(MEMBERS);
            let args = FailoverArgs {
                members,
                fabric,
                kills: args.kills,
                silence,
                silent: false,
                spared: false,
                json: false,
            };
            survey.failover.push(failover::report(
                &args,
                log,
                &status.within(&format!("failover, {fabric}")),
            )?);
        }
    }
    Ok((survey, drawn))
}

/// Offers ever more, and sees what comes through, and when.
fn overload(load: &LoadArgs, log: &str, status: &Status) -> Result<Overload, Failure> {
    let runs = load.group.runs;
    let run = |pace: Pace| -> Result<load::GroupRun, Failure> {
        let bench = Bench { name: "overload", args: load, pace, durable: None, log };
        let runs: Vec<_> = (0..runs).map(|_| load::group_run(&bench)).collect::<Result<_, _>>()?;
        let chosen = middle(runs.iter().map(|run| run.msgs_per_s));
        let none = || Failure::usage("no runs", "give --runs 1 or more");
        chosen.and_then(|at| runs.into_iter().nth(at)).ok_or_else(none)
    };
    status.show("as fast as it goes");
    let peak = run(Pace::Flood)?;
    let mut points = Vec::new();
    for share in SHARES {
        let offered_per_s = share * peak.msgs_per_s;
        status.show(&format!("{} messages a second", text::rate(offered_per_s)));
        let run = run(Pace::Rate(offered_per_s))?;
        points.push(Point {
            share,
            offered_per_s,
            msgs_per_s: run.msgs_per_s,
            latency_us: Quantiles::from(&run.own),
        });
    }
    Ok(Overload {
        fabric: peak.fabric,
        members: load.group.members,
        size: load.size,
        peak_msgs_per_s: peak.msgs_per_s,
        peak_latency_us: Quantiles::from(&peak.own),
        points,
    })
}

fn machine() -> Machine {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("model name"))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    });
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    Machine { cpus, cpu: cpu.unwrap_or_else(|| "unknown".to_owned()), kernel }
}

fn bytes(size: usize) -> String {
    text::bytes(size as u64)
}

/// Which of several measurements it is.
fn name(report: &Report) -> String {
    format!("{}, {} members, {}", report.fabric, report.members, bytes(report.size))
}

fn describe(survey: &Survey) -> String {
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::UTF8_FULL_CONDENSED);
    table.set_header(["one at a time", "p50", "p99", "p99.9", "floor's p50", "ratio"]);
    for report in &survey.latency {
        let us = &report.latency_us;
        let times = [us.p50, us.p99, us.p999, report.floor.p50_us].map(text::micros);
        let ratio = format!("{:.2}", report.ratio.p50);
        table.add_row(std::iter::once(name(report)).chain(times).chain([ratio]));
    }
    let mut rates = comfy_table::Table::new();
    rates.load_preset(comfy_table::presets::UTF8_FULL_CONDENSED);
    rates.set_header(["saturated", "senders", "messages/s", "GB/s", "floor's messages/s", "ratio"]);
    for report in &survey.throughput {
        rates.add_row([
            name(report),
            report.senders.to_string(),
            text::rate(report.msgs_per_s),
            format!("{:.3}", report.gb_per_s),
            text::rate(report.floor.msgs_per_s),
            report.ratio.throughput.map_or("–".to_owned(), |ratio| format!("{ratio:.2}")),
        ]);
    }
    let mut lines: Vec<String> = survey
        .overload
        .iter()
        .filter_map(|it| {
            let last = it.points.last()?;
            Some(format!(
                "{}, {} members, {}: {} messages/s at most; when {} are offered, {} go through, {:.0}% of the most at a fixed rate",
                it.fabric,
                it.members,
                bytes(it.size),
                text::rate(it.peak_msgs_per_s),
                text::rate(last.offered_per_s),
                text::rate(last.msgs_per_s),
                100.0 * it.beyond()
            ))
        })
        .collect();
    lines.extend(survey.failover.iter().map(failover::describe));
    let Machine { cpus, cpu, kernel } = &survey.machine;
    format!(
        "report of {}: {cpus} CPUs ({cpu}), Linux {kernel}; medians of {} runs of {:.1} s\n{table}\n{rates}\n{}",
        survey.date,
        survey.runs,
        survey.seconds,
        lines.join("\n")
    )
}

impl Overload {
    /// What went through at the highest rate that was offered, as a share of the most that went through at any. (Who keeps a rate looks at the clock
    /// for each message: that is less than who sends as fast as it can gets through.)
    fn beyond(&self) -> f64 {
        let most = self.points.iter().map(|point| point.msgs_per_s).fold(f64::MIN_POSITIVE, f64::max);
        self.points.last().map_or(0.0, |last| last.msgs_per_s / most)
    }
}
