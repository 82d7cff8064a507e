//! From runs to the report: which run counts, and how it is shown.

use hdrhistogram::Histogram;

use super::figures::{Curves, FloorFigures, Quantiles, Ratio, Report, RunFigures, middle};
use super::floor;
use super::load::{Bench, Floors, GroupRun};
use crate::failure::Failure;
use crate::latency;
use crate::orders::Pace;
use crate::text::{self, as_f64};

/// Chooses the runs in the middle and makes the report.
///
/// # Errors
/// There was no run.
pub(crate) fn summarize(bench: &Bench<'_>, runs: &[(Floors, GroupRun)]) -> Result<(Report, Curves), Failure> {
    let none = || Failure::usage("no runs", "give --runs 1 or more");
    let p50 = |histogram: &Histogram<u64>| Quantiles::from(histogram).p50;
    let corrected: Vec<[Histogram<u64>; 3]> = runs
        .iter()
        .map(|(floors, run)| {
            // The floors are closed loops, whatever the group does.
            [
                bench.correct(&run.own),
                bench.correct(&run.last),
                latency::corrected(&floors.latency.round_trips),
            ]
        })
        .collect();
    let run = if bench.floods() {
        middle(runs.iter().map(|(_, run)| run.msgs_per_s))
    } else {
        middle(corrected.iter().map(|[own, ..]| p50(own)))
    }
    .ok_or_else(none)?;
    let floor_latency = middle(corrected.iter().map(|[.., floor]| p50(floor))).ok_or_else(none)?;
    let floor_rate = middle(runs.iter().map(|(floors, _)| floors.throughput.msgs_per_s)).ok_or_else(none)?;

    let mut curves =
        Curves { own: latency::histogram()?, last: latency::histogram()?, floor: latency::histogram()? };
    for [own, last, floor] in &corrected {
        for (sum, part) in [(&mut curves.own, own), (&mut curves.last, last), (&mut curves.floor, floor)] {
            sum.add(part).map_err(|e| {
                Failure::lost(format!("histograms don't add up: {e}"), "report this as a bug")
            })?;
        }
    }
    let args = bench.args;
    let size = as_f64(args.size as u64);
    let chosen = &runs[run].1;
    let [own, last, _] = &corrected[run];
    let latency_us = Quantiles::from(own);
    let floor_us = Quantiles::from(&corrected[floor_latency][2]);
    let raw_floor = p50(&runs[floor_latency].0.latency.round_trips);
    let floor_msgs = runs[floor_rate].0.throughput.msgs_per_s;
    let kind = floor::latency_kind(&chosen.fabric, args.size);
    let floor = FloorFigures {
        latency: floor::describe(kind),
        p50_us: floor_us.p50,
        p99_us: floor_us.p99,
        uncorrected_p50_us: raw_floor,
        throughput: floor::describe(if bench.floods() {
            floor::throughput_kind(&chosen.fabric)
        } else {
            kind
        }),
        msgs_per_s: floor_msgs,
        gb_per_s: floor_msgs * size / 1e9,
    };
    let uncorrected_latency_us = Quantiles::from(&chosen.own);
    let ratio = Ratio {
        p50: latency_us.p50 / floor.p50_us,
        uncorrected_p50: uncorrected_latency_us.p50 / raw_floor,
        throughput: (!matches!(bench.pace, Pace::Rate(_))).then(|| chosen.msgs_per_s / floor_msgs),
    };
    let report = Report {
        bench: bench.name,
        fabric: chosen.fabric.clone(),
        engine: chosen.engine.clone(),
        members: args.group.members,
        senders: args.senders,
        size: args.size,
        guarantee: args.group.guarantee,
        wait: args.group.wait,
        ring_bytes: bench.ring_bytes(),
        rate: if let Pace::Rate(rate) = bench.pace { Some(rate) } else { None },
        messages: chosen.messages,
        seconds: chosen.seconds,
        msgs_per_s: chosen.msgs_per_s,
        gb_per_s: chosen.msgs_per_s * size / 1e9,
        latency_us,
        last_member_us: Quantiles::from(last),
        correction: match bench.pace {
            Pace::OneOutstanding => "closed loop, corrected with the mean as the expected interval",
            Pace::Rate(_) => "none needed: latency counts from when a message was due",
            Pace::Flood => "none: latency under saturation, sampled",
        },
        uncorrected_latency_us,
        cpu_s_per_million: chosen.cpu_s_per_million,
        system_calls_per_message: chosen.system_calls_per_message,
        floor,
        ratio,
        runs: runs
            .iter()
            .zip(&corrected)
            .map(|((floors, run), [own, last, floor])| {
                let quantiles = Quantiles::from(own);
                RunFigures {
                    p50_us: quantiles.p50,
                    p99_us: quantiles.p99,
                    last_member_p50_us: p50(last),
                    msgs_per_s: run.msgs_per_s,
                    floor_p50_us: p50(floor),
                    floor_msgs_per_s: floors.throughput.msgs_per_s,
                }
            })
            .collect(),
    };
    Ok((report, curves))
}

/// The report for people.
pub(crate) fn describe(report: &Report) -> String {
    use text::{bytes, micros, rate};
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::UTF8_FULL_CONDENSED);
    table.set_header(["", "p50", "p90", "p99", "p99.9", "max"]);
    for (name, q) in [("own delivery", &report.latency_us), ("last member", &report.last_member_us)] {
        table.add_row([
            name.to_string(),
            micros(q.p50),
            micros(q.p90),
            micros(q.p99),
            micros(q.p999),
            micros(q.max),
        ]);
    }
    let none = "–".to_string();
    table.add_row([
        "floor".to_string(),
        micros(report.floor.p50_us),
        none.clone(),
        micros(report.floor.p99_us),
        none.clone(),
        none,
    ]);
    for column in 1..6 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(comfy_table::CellAlignment::Right);
        }
    }
    let p50 = if report.ratio.p50.is_finite() && report.latency_us.p50 > 0.0 {
        format!(
            "p50 is {:.2} × the floor's ({}); uncorrected {} against {}",
            report.ratio.p50,
            report.floor.latency,
            micros(report.uncorrected_latency_us.p50),
            micros(report.floor.uncorrected_p50_us)
        )
    } else {
        "no latency: too few messages to sample".to_owned()
    };
    let throughput = match report.ratio.throughput {
        Some(ratio) => format!(
            "{} messages/s ({:.3} GB/s), {ratio:.2} × the floor's {} ({})",
            rate(report.msgs_per_s),
            report.gb_per_s,
            rate(report.floor.msgs_per_s),
            report.floor.throughput
        ),
        None => format!("{} messages/s, as asked for", rate(report.msgs_per_s)),
    };
    format!(
        "{}: {} members, {} sending {}, {} over {} ({}), waiting {}\n{table}\n\
         {p50}\n{throughput}\n\
         {:.2} CPU-seconds per million messages and {:.2} system calls per message, all members together\n\
         {} of {:.1} s; latency: {}",
        report.bench,
        report.members,
        report.senders,
        bytes(report.size as u64),
        report.guarantee,
        report.fabric,
        report.engine,
        report.wait,
        report.cpu_s_per_million,
        report.system_calls_per_message,
        if report.runs.len() == 1 {
            "one run".to_string()
        } else {
            format!("the middle one of {} runs", report.runs.len())
        },
        report.seconds,
        report.correction,
    )
}
