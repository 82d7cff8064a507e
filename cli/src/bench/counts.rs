//! `consort bench counts`: what the fabric does for one message. Counts, not times: they say what a design asks of a device,
//! whatever the device, and so mean something in the rig, too, where times mean nothing.

use serde::Serialize;

use super::conduct::Status;
use super::figures::{PerMessage, middle};
use super::load::{self, Bench, GroupRun};
use crate::args::{CountsArgs, GuaranteeArg, WaitArg};
use crate::failure::Failure;
use crate::orders::Pace;
use crate::text;

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report {
    bench: &'static str,
    fabric: String,
    engine: String,
    members: u32,
    guarantee: GuaranteeArg,
    wait: WaitArg,
    cells: Vec<Cell>,
}

/// One load.
#[derive(Debug, Serialize)]
struct Cell {
    /// Bytes of payload.
    size: usize,
    senders: u32,
    load: &'static str,
    /// Delivered at all members, in the run in the middle by work requests and system calls.
    messages: u64,
    per_message: PerMessage,
}

/// Counts.
///
/// # Errors
/// The arguments make no sense, or a group doesn't start or is stopped.
pub(crate) fn run(args: &CountsArgs, log: &str) -> Result<(), Failure> {
    args.check()?;
    let status = Status::new();
    let (mut cells, mut driven) = (Vec::new(), None);
    let mut senders = vec![1, args.group.members];
    senders.dedup();
    for &size in &args.sizes {
        for &senders in &senders {
            for (pace, name) in [(Pace::OneOutstanding, "one at a time"), (Pace::Flood, "saturated")] {
                status.show(&format!("{}, {senders} sending, {name}", text::bytes(size as u64)));
                let args = args.load(size, senders);
                let bench = Bench { name: "counts", args: &args, pace, durable: None, log };
                let runs: Vec<GroupRun> =
                    (0..args.group.runs).map(|_| load::group_run(&bench)).collect::<Result<_, _>>()?;
                let counted: Vec<PerMessage> = runs.iter().map(|run| PerMessage::new(&run.counts)).collect();
                let chosen = middle(counted.iter().map(|counts| counts.work_requests + counts.system_calls))
                    .ok_or_else(|| Failure::usage("no runs", "give --runs 1 or more"))?;
                let (messages, per_message) = (runs[chosen].messages, counted[chosen]);
                cells.push(Cell { size, senders, load: name, messages, per_message });
                driven = runs.into_iter().next().map(|run| (run.fabric, run.engine));
            }
        }
    }
    status.clear();
    let (fabric, engine) = driven.unwrap_or_default();
    let (members, guarantee, wait) = (args.group.members, args.group.guarantee, args.group.wait);
    let report = Report { bench: "counts", fabric, engine, members, guarantee, wait, cells };
    text::print(&report, args.group.json, describe)
}

/// Under load much less than one of anything may be done for a message.
fn figure(count: f64) -> String {
    if count < 1.0 { format!("{count:.3}") } else { format!("{count:.2}") }
}

fn describe(report: &Report) -> String {
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::UTF8_FULL_CONDENSED);
    table.set_header([
        "payload",
        "senders",
        "load",
        "requests",
        "doorbells",
        "signalled",
        "completions",
        "inline",
        "wakes",
        "system calls",
        "bytes",
    ]);
    for cell in &report.cells {
        let each = &cell.per_message;
        let mut row = vec![text::bytes(cell.size as u64), cell.senders.to_string(), cell.load.to_string()];
        let counts = [each.work_requests, each.doorbells, each.signalled, each.completions, each.inline];
        row.extend(counts.iter().chain([&each.wakes, &each.system_calls]).map(|count| figure(*count)));
        row.push(format!("{:.0}", each.bytes));
        table.add_row(row);
    }
    for column in 3..11 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(comfy_table::CellAlignment::Right);
        }
    }
    format!(
        "counts: {} members, {} over {} ({}), waiting {}; for one message, all members together\n{table}",
        report.members, report.guarantee, report.fabric, report.engine, report.wait
    )
}
