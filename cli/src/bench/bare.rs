//! `consort bench floor`: the machine's floor alone, to know what to expect of a machine, or what changed on it.

use serde::Serialize;

use super::conduct::{Status, stderr_line};
use super::figures::{Quantiles, middle, nanoseconds};
use super::floor::{self, FloorRun, Setting};
use crate::args::{FabricArg, LoadArgs, WaitArg};
use crate::failure::Failure;
use crate::group;
use crate::latency;
use crate::orders::{FloorKind, Window};
use crate::text::{self, as_f64};

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report {
    bench: &'static str,
    members: u32,
    senders: u32,
    size: usize,
    wait: WaitArg,
    floors: Vec<Floor>,
}

#[derive(Debug, Serialize)]
struct Floor {
    fabric: &'static str,
    latency: &'static str,
    latency_us: Quantiles,
    throughput: &'static str,
    msgs_per_s: f64,
    gb_per_s: f64,
}

/// Measures.
///
/// # Errors
/// The machine refuses something.
pub(crate) fn run(args: &LoadArgs, log: &str) -> Result<(), Failure> {
    args.check()?;
    let fabrics: &[&'static str] = match args.group.fabric {
        FabricArg::Auto => &["shm", "tcp"],
        FabricArg::Shm => &["shm"],
        FabricArg::Tcp => &["tcp"],
        FabricArg::Verbs => &["verbs"],
    };
    let status = Status::new();
    let mut floors = Vec::new();
    for fabric in fabrics {
        status.show(&format!("the floor over {fabric}"));
        let (latency, rate) = (floor::latency_kind(fabric, args.size), floor::throughput_kind(fabric));
        let latencies = several(args, latency, log)?;
        let rates = several(args, rate, log)?;
        let quantiles: Vec<Quantiles> =
            latencies.iter().map(|run| Quantiles::from(&latency::corrected(&run.round_trips))).collect();
        let latency_us = middle(quantiles.iter().map(|q| q.p50)).map(|index| quantiles[index]);
        let msgs_per_s = middle(rates.iter().map(|run| run.msgs_per_s)).map(|index| rates[index].msgs_per_s);
        let msgs_per_s = msgs_per_s.unwrap_or_default();
        floors.push(Floor {
            fabric,
            latency: floor::describe(latency),
            latency_us: latency_us.unwrap_or_default(),
            throughput: floor::describe(rate),
            msgs_per_s,
            gb_per_s: msgs_per_s * as_f64(args.size as u64) / 1e9,
        });
    }
    status.clear();
    let (members, senders, size, wait) = (args.group.members, args.senders, args.size, args.group.wait);
    let report = Report { bench: "floor", members, senders, size, wait, floors };
    text::print(&report, args.group.json, describe)
}

fn several(args: &LoadArgs, kind: FloorKind, log: &str) -> Result<Vec<FloorRun>, Failure> {
    let setting = Setting {
        processes: args.group.members,
        senders: args.senders,
        size: args.size,
        ring_bytes: args.ring.unwrap_or_else(|| group::ring_bytes(args.size, group::LEAST_RING)),
        wait: args.group.wait,
        hosts: &args.hosts,
        window: Window { warmup: nanoseconds(args.warmup), measured: nanoseconds(args.group.duration) },
    };
    (0..args.group.runs).map(|_| floor::measure(kind, &setting, log, stderr_line())).collect()
}

fn describe(report: &Report) -> String {
    let mut told = format!(
        "floor: {} processes, {} sending {}, waiting {}",
        report.members,
        report.senders,
        text::bytes(report.size as u64),
        report.wait
    );
    for floor in &report.floors {
        let q = &floor.latency_us;
        told.push_str(&format!(
            "\n{}  p50 {}, p99 {}, p99.9 {} ({})\n     {} messages/s, {:.3} GB/s ({})",
            floor.fabric,
            text::micros(q.p50),
            text::micros(q.p99),
            text::micros(q.p999),
            floor.latency,
            text::rate(floor.msgs_per_s),
            floor.gb_per_s,
            floor.throughput
        ));
    }
    told
}
