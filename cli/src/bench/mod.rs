//! `consort bench`: a report of it all; latency, throughput, what the fabric does for a message, replicated objects, durable groups, idle cost, failover, repairs,
//! joins and restarts of real member processes, beside the machine's floor.
//!
//! Runs alternate: group, floor, group, floor, so that what the machine does meanwhile falls on both. Every run of the group
//! is a new group of new processes; they start together at a time that the parent names, warm up, are measured, and end
//! in order. What they took down (times of messages, counters at the two ends of the measured window) goes to the
//! parent, which makes the figures: [`samples`] sets the members' times against each other, [`figures`] corrects and
//! chooses, [`plot`] draws.

pub(crate) mod figures;
mod plot;
mod conduct;
pub(crate) mod idle;
mod samples;
mod window;
mod payload;
pub(crate) mod failover;
pub(crate) mod join;
pub(crate) mod place;
pub(crate) mod restart;
pub(crate) mod floor;
mod bare;
mod load;
mod durable;
mod report;
mod survey;
mod counts;
pub(crate) mod replicas;
pub(crate) mod repair;
pub(crate) mod member;

use self::conduct::Status;
use self::load::Bench;
use crate::args::BenchCommand;
use crate::failure::Failure;
use crate::orders::Pace;

/// Runs a measurement.
///
/// # Errors
/// The arguments make no sense, or the group doesn't start or is stopped.
pub(crate) fn run(command: &BenchCommand, log: &str) -> Result<(), Failure> {
    match command {
        BenchCommand::Report(args) => survey::run(args, log),
        BenchCommand::Counts(args) => counts::run(args, log),
        BenchCommand::Idle(args) => idle::run(args, log),
        BenchCommand::Failover(args) => failover::run(args, log),
        BenchCommand::Join(args) => join::run(args, log),
        BenchCommand::Replicas(args) => replicas::run(args, log),
        BenchCommand::Repair(args) => repair::run(args, log),
        BenchCommand::Durable(args) => durable::run(args, log),
        BenchCommand::Restart(args) => restart::run(args, log),
        BenchCommand::Floor(args) => bare::run(&args.load, log),
        BenchCommand::Latency(args) => {
            args.load.check()?;
            let pace = args.rate.map_or(Pace::OneOutstanding, Pace::Rate);
            run_load(&Bench { name: "latency", args: &args.load, pace, durable: None, log })
        }
        BenchCommand::Throughput(args) => {
            args.load.check()?;
            run_load(&Bench { name: "throughput", args: &args.load, pace: Pace::Flood, durable: None, log })
        }
    }
}

/// Measures under load, draws if asked to, and prints.
fn run_load(bench: &Bench<'_>) -> Result<(), Failure> {
    if let Some(path) = &bench.args.plot {
        plot::writable(path)?;
    }
    let status = Status::new();
    let runs = load::measure(bench, &status);
    status.clear();
    let (report, curves) = report::summarize(bench, &runs?)?;
    if let Some(path) = &bench.args.plot {
        let page = plot::page(&report, &curves)?;
        std::fs::write(path, page).map_err(|cause| Failure::file("write", path, cause))?;
    }
    crate::text::print(&report, bench.args.group.json, report::describe)
}
