//! `consort bench idle`: what a member costs while nothing is sent. Its engine has a thread of its own, as most users
//! have it; the CPU of the whole process counts, control links included.

use std::io::Write as _;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::conduct::{conduct, stderr_line};
use super::figures::{middle, nanoseconds};
use crate::args::{GuaranteeArg, IdleArgs, TopologyArg, WaitArg};
use crate::clock;
use crate::crew::{Crew, Ports};
use crate::failure::Failure;
use crate::group;
use crate::orders::{IdleTask, Said, Seat, Task, Told, Window};
use crate::parent::Parent;
use crate::text::as_f64;

/// How long the group is left alone before it counts: starting is not idling.
const SETTLE: Duration = Duration::from_millis(500);

#[derive(Debug, Serialize, Deserialize)]
struct IdleReport {
    /// Nanoseconds.
    cpu: u64,
    elapsed: u64,
    system_calls: u64,
    fabric: String,
    engine: String,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report {
    bench: &'static str,
    fabric: String,
    engine: String,
    members: u32,
    guarantee: GuaranteeArg,
    wait: WaitArg,
    seconds: f64,
    /// Of one core, the mean of the members, in the run in the middle.
    cpu_percent_per_member: f64,
    /// Of one core, the busiest member of any run.
    cpu_percent_worst: f64,
    system_calls_per_second: f64,
    runs: Vec<f64>,
}

/// Measures.
///
/// # Errors
/// The group does not start, or is stopped.
pub(crate) fn run(args: &IdleArgs, log: &str) -> Result<(), Failure> {
    args.group.check()?;
    let mut runs = Vec::new();
    for _ in 0..args.group.runs {
        runs.push(one_run(args, log)?);
    }
    let percent = |report: &IdleReport| as_f64(report.cpu) * 100.0 / as_f64(report.elapsed.max(1));
    let mean = |values: &mut dyn Iterator<Item = f64>| values.sum::<f64>() / f64::from(args.group.members);
    let means: Vec<f64> = runs.iter().map(|run| mean(&mut run.iter().map(percent))).collect();
    let chosen = middle(means.iter().copied()).map(|index| (&runs[index], means[index]));
    let (run, cpu) = chosen.ok_or_else(|| Failure::usage("no runs", "give --runs 1 or more"))?;
    let report = Report {
        bench: "idle",
        fabric: run.first().map(|r| r.fabric.clone()).unwrap_or_default(),
        engine: run.first().map(|r| r.engine.clone()).unwrap_or_default(),
        members: args.group.members,
        guarantee: args.group.guarantee,
        wait: args.group.wait,
        seconds: args.group.duration.as_secs_f64(),
        cpu_percent_per_member: cpu,
        cpu_percent_worst: runs.iter().flatten().map(percent).fold(0.0, f64::max),
        system_calls_per_second: mean(
            &mut run.iter().map(|r| as_f64(r.system_calls) * 1e9 / as_f64(r.elapsed.max(1))),
        ),
        runs: means,
    };
    let mut out = std::io::stdout().lock();
    let written = if args.group.json {
        serde_json::to_string(&report).map_err(std::io::Error::from).and_then(|line| writeln!(out, "{line}"))
    } else {
        writeln!(
            out,
            "idle: {} members over {} ({}), waiting {}\n  {:.2}% of a core per member (the busiest of any run {:.2}%), {:.1} system calls a second",
            report.members,
            report.fabric,
            report.engine,
            report.wait,
            report.cpu_percent_per_member,
            report.cpu_percent_worst,
            report.system_calls_per_second
        )
    };
    written.map_err(|cause| Failure::stream("write", "standard output", cause))
}

fn one_run(args: &IdleArgs, log: &str) -> Result<Vec<IdleReport>, Failure> {
    let group = &args.group;
    let window = Window { warmup: nanoseconds(SETTLE), measured: nanoseconds(group.duration) };
    let ports = Ports::reserve(group.members)?;
    let mut crew = Crew::new(stderr_line());
    for (id, _) in ports.numbered() {
        let seat = Seat {
            id,
            addresses: ports.numbered(),
            fabric: group.fabric,
            guarantee: group.guarantee,
            topology: TopologyArg::Direct,
            wait: group.wait,
            ring_bytes: group::LEAST_RING,
            idle_groups: args.idle_groups,
        };
        crew.start(&format!("member {id}"), log, &Task::Idle(IdleTask { seat, window }))?;
    }
    Ok(conduct(crew, group.members as usize, window)?.0)
}

/// A member that does nothing.
///
/// # Errors
/// The group.
pub(crate) fn member(task: &IdleTask, parent: &mut Parent) -> Result<(), Failure> {
    let id = task.seat.id;
    let node = group::start(&task.seat)?;
    loop {
        match node.recv().map_err(|stop| group::stopped(id, &stop))? {
            consort::Event::View(_) => break,
            consort::Event::Waiting { for_whom } => {
                let for_whom = for_whom.iter().map(|absent| absent.node.0).collect();
                parent.say(&Said::Waiting { for_whom });
            }
            _ => {}
        }
    }
    parent.say(&Said::Ready);
    let Some(Told::Go { at }) = parent.told() else { return Ok(()) };
    let from = at + task.window.warmup;
    pass_time(&node, id, from)?;
    let (began, cpu, calls) = (clock::now(), clock::cpu(), node.stats().counts.system_calls);
    pass_time(&node, id, from + task.window.measured)?;
    let stats = node.stats();
    parent.done(&IdleReport {
        cpu: clock::cpu() - cpu,
        elapsed: clock::now() - began,
        system_calls: stats.counts.system_calls - calls,
        fabric: stats.fabric.to_string(),
        engine: stats.engine.to_string(),
    })?;
    // The others may still be measuring: leaving would disturb them. And who leaves first must not be missed.
    parent.told();
    node.sender().end().map_err(|error| {
        Failure::lost(format!("member {id} can't end: {error}"), "run it again with --log debug")
    })?;
    let mut open = task.seat.addresses.len();
    while open > 0 {
        let event = node.recv().map_err(|stop| group::stopped(id, &stop))?;
        open -= usize::from(matches!(event, consort::Event::Ended { .. }));
    }
    node.close(group::CLOSE_WITHIN).map_err(|error| group::not_closed(id, &error))?;
    Ok(())
}

/// Waits for events, of which there should be none, until the clock says `until`.
fn pass_time(node: &consort::Node, id: u32, until: u64) -> Result<(), Failure> {
    loop {
        let now = clock::now();
        if now >= until {
            return Ok(());
        }
        node.recv_timeout(Duration::from_nanos(until - now)).map_err(|stop| group::stopped(id, &stop))?;
    }
}
