//! `consort bench counts`: what the fabric does for one message. Counts, not times: they say what a design asks of a device,
//! whatever the device, and so mean something in the rig, too, where times mean nothing.

use serde::Serialize;

use super::conduct::Status;
use super::figures::middle;
use super::load::{self, Bench, GroupRun};
use crate::args::{CountsArgs, GuaranteeArg, WaitArg};
use crate::failure::Failure;
use crate::orders::{Counts, Pace};
use crate::text::{self, as_f64};

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

/// Of all members together, for one message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
struct PerMessage {
    work_requests: f64,
    doorbells: f64,
    signalled: f64,
    inline: f64,
    completions: f64,
    wakes: f64,
    system_calls: f64,
    bytes: f64,
}

impl PerMessage {
    /// Of each member: what it delivered, and what its fabric counted meanwhile. Their looks at the counters are not at the same
    /// instant, so each is divided by its own deliveries.
    fn new(members: &[(u64, Counts)]) -> Self {
        let each = |count: fn(&Counts) -> u64| {
            let shares =
                members.iter().map(|(delivered, counts)| as_f64(count(counts)) / as_f64((*delivered).max(1)));
            shares.sum::<f64>()
        };
        Self {
            work_requests: each(|counts| counts.work_requests),
            doorbells: each(|counts| counts.doorbells),
            signalled: each(|counts| counts.signalled),
            inline: each(|counts| counts.inline),
            completions: each(|counts| counts.completions),
            wakes: each(|counts| counts.wakes),
            system_calls: each(|counts| counts.system_calls),
            bytes: each(|counts| counts.bytes_out),
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_member_counts_by_what_it_delivered_itself() {
        let counted = |work_requests, bytes_out| Counts { work_requests, bytes_out, ..Counts::default() };
        let each =
            PerMessage::new(&[(100, counted(300, 6_400)), (50, counted(100, 400)), (0, Counts::default())]);
        let expected = PerMessage { work_requests: 5.0, bytes: 72.0, ..PerMessage::default() };
        assert_eq!(each, expected);
    }
}
