//! The page of `consort bench report`: tables and curves, in one file that needs no other.

use std::fmt::Write as _;

use plotters::prelude::*;

use super::super::figures::{Quantiles, Report};
use super::super::plot::{self, Area, Drawn as Done, FLOOR, LAST, OWN, escape};
use super::peers::Peers;
use super::{Drawn, Machine, Overload, Survey, bytes, name};
use crate::bench::failover;
use crate::failure::Failure;
use crate::text::{self, as_f64};

/// For as many curves in one picture as there may be kinds of group.
const COLOURS: [RGBColor; 8] = [
    OWN,
    LAST,
    RGBColor(0x2c, 0xa0, 0x2c),
    RGBColor(0x94, 0x67, 0xbd),
    RGBColor(0x8c, 0x56, 0x4b),
    RGBColor(0xe3, 0x77, 0xc2),
    RGBColor(0x17, 0xbe, 0xcf),
    RGBColor(0xbc, 0xbd, 0x22),
];

/// Draws the page.
///
/// # Errors
/// The drawing library's.
pub(super) fn page(survey: &Survey, drawn: &[Drawn]) -> Result<String, Failure> {
    let mut body = head(survey);
    body.push_str("<h2>Latency, one message at a time</h2>\n");
    body.push_str(&latencies(&survey.latency));
    for one in drawn {
        let picture = plot::svg(|area| plot::draw_distribution(area, &one.curves))?;
        let _ = writeln!(
            body,
            "<details><summary>{}: by percentile</summary>\n{picture}\n</details>",
            escape(&one.name)
        );
    }
    body.push_str("<h2>Throughput</h2>\n");
    body.push_str(&rates(&survey.throughput));
    let groups = groups(&survey.throughput);
    if groups.iter().any(|(_, reports)| reports.len() > 1) {
        body.push_str(&plot::svg(|area| draw_rates(area, &groups))?);
    }
    body.push_str("<h2>Beyond the most that goes through</h2>\n");
    body.push_str(
        "<p>One member sends at a fixed rate. Latency counts from when a message was due, so it grows for as long as more is offered than \
         goes through; a sender that waits for room instead sees what a full ring makes of it.</p>\n",
    );
    for one in &survey.overload {
        body.push_str(&overload(one));
        for draw in [draw_delivered, draw_lateness] {
            body.push_str(&plot::svg(|area| draw(area, one))?);
        }
    }
    if !survey.failover.is_empty() {
        body.push_str("<h2>Failover: a member is killed under load</h2>\n");
        body.push_str(&failovers(&survey.failover));
    }
    if let Some(peers) = &survey.peers {
        body.push_str("<h2>Beside other systems</h2>\n");
        body.push_str(&others(peers));
    }
    Ok(plot::whole("consort bench report", &body))
}

fn head(survey: &Survey) -> String {
    let Machine { cpus, cpu, kernel } = &survey.machine;
    format!(
        "<p>Consort {} on {}: {cpus} CPUs ({}), Linux {}. Atomic, default settings, medians of {} runs of {:.1} s. Beside each figure \
         stands the floor: what bare processes do here, in the same minutes, with the same payload and the same waiting.</p>\n",
        survey.version,
        escape(&survey.date),
        escape(cpu),
        escape(kernel),
        survey.runs,
        survey.seconds
    )
}

/// A table of these columns.
fn table(head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let line = |tag: &str, cells: &mut dyn Iterator<Item = &str>| {
        let cells: String = cells.map(|cell| format!("<{tag}>{}</{tag}>", escape(cell))).collect();
        format!("<tr>{cells}</tr>\n")
    };
    let head = line("th", &mut head.iter().copied());
    let rows: String = rows.into_iter().map(|row| line("td", &mut row.iter().map(String::as_str))).collect();
    format!("<table>{head}{rows}</table>\n")
}

fn latencies(reports: &[Report]) -> String {
    let rows = reports.iter().map(|report| {
        let us = &report.latency_us;
        let mut row = vec![name(report)];
        row.extend(
            [us.p50, us.p99, us.p999, us.max, report.floor.p50_us, report.floor.p99_us].map(text::micros),
        );
        row.push(format!("{:.2}", report.ratio.p50));
        row
    });
    table(&["", "p50", "p99", "p99.9", "max", "floor's p50", "floor's p99", "p50 ratio"], rows)
}

fn rates(reports: &[Report]) -> String {
    let rows = reports.iter().map(|report| {
        vec![
            name(report),
            report.senders.to_string(),
            text::rate(report.msgs_per_s),
            format!("{:.3}", report.gb_per_s),
            format!("{:.3}", report.floor.gb_per_s),
            report.ratio.throughput.map_or("–".to_owned(), |ratio| format!("{ratio:.2}")),
            format!("{:.2}", report.cpu_s_per_million),
            format!("{:.3}", report.system_calls_per_message),
        ]
    });
    let head = [
        "",
        "senders",
        "messages/s",
        "GB/s",
        "floor's GB/s",
        "ratio",
        "CPU s per million",
        "system calls per message",
    ];
    table(&head, rows)
}

/// By fabric, members and senders, in the order of sizes.
fn groups(reports: &[Report]) -> Vec<(String, Vec<&Report>)> {
    let mut groups: Vec<(String, Vec<&Report>)> = Vec::new();
    for report in reports {
        let of = format!("{}, {} members, {} sending", report.fabric, report.members, report.senders);
        match groups.iter_mut().find(|(name, _)| *name == of) {
            Some((_, reports)) => reports.push(report),
            None => groups.push((of, vec![report])),
        }
    }
    groups.iter_mut().for_each(|(_, reports)| reports.sort_by_key(|report| report.size));
    groups
}

/// The ends of an axis around these values, both above nothing.
fn ends(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values
        .filter(|value| *value > 0.0)
        .fold((f64::MAX, f64::MIN_POSITIVE), |(low, high), value| (low.min(value), high.max(value)));
    (low.min(high) * 0.8, high * 1.25)
}

fn draw_rates(area: &Area<'_>, groups: &[(String, Vec<&Report>)]) -> Done {
    area.fill(&WHITE)?;
    let all = || groups.iter().flat_map(|(_, reports)| reports.iter());
    let (left, right) = ends(all().map(|report| as_f64(report.size as u64)));
    let (low, high) = ends(all().flat_map(|report| [report.gb_per_s, report.floor.gb_per_s]));
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(80)
        .build_cartesian_2d((left..right).log_scale().base(4.0), (low..high).log_scale())?;
    chart
        .configure_mesh()
        .x_desc("payload of a message")
        .y_desc("GB/s; the floor is dotted")
        .x_label_formatter(&|size| text::bytes(size.round() as u64))
        .y_label_formatter(&|rate| format!("{rate:.2}"))
        .light_line_style(WHITE)
        .draw()?;
    for ((of, reports), colour) in groups.iter().zip(COLOURS.into_iter().cycle()) {
        let at = |rate: fn(&Report) -> f64| {
            reports.iter().map(move |report| (as_f64(report.size as u64), rate(report))).collect::<Vec<_>>()
        };
        chart
            .draw_series(LineSeries::new(at(|report| report.gb_per_s), colour.stroke_width(2)).point_size(3))?
            .label(of.as_str())
            .legend(move |at| plot::stroke(at, colour));
        chart.draw_series(DashedLineSeries::new(
            at(|report| report.floor.gb_per_s),
            3,
            5,
            colour.stroke_width(1),
        ))?;
    }
    plot::legend(&mut chart, SeriesLabelPosition::LowerRight)
}

fn overload(one: &Overload) -> String {
    let times = |us: &Quantiles| [us.p50, us.p99, us.p999].map(text::micros);
    let mut rows = vec![vec!["as fast as it goes".to_owned(), text::rate(one.peak_msgs_per_s)]];
    rows[0].extend(times(&one.peak_latency_us));
    rows.extend(one.points.iter().map(|point| {
        let offered = format!("{} ({:.0}%)", text::rate(point.offered_per_s), 100.0 * point.share);
        [offered, text::rate(point.msgs_per_s)].into_iter().chain(times(&point.latency_us)).collect()
    }));
    format!(
        "<h3>{}, {} members, {}: beyond it {:.0}% of the most at a fixed rate</h3>\n{}",
        escape(&one.fabric),
        one.members,
        escape(&bytes(one.size)),
        100.0 * one.beyond(),
        table(&["offered", "delivered", "p50", "p99", "p99.9"], rows)
    )
}

fn draw_delivered(area: &Area<'_>, one: &Overload) -> Done {
    area.fill(&WHITE)?;
    let points = one.points.iter().map(|point| (point.offered_per_s, point.msgs_per_s));
    let right = one.points.iter().map(|point| point.offered_per_s).fold(1.0, f64::max);
    let high = one.points.iter().map(|point| point.msgs_per_s).fold(one.peak_msgs_per_s, f64::max);
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(80)
        .build_cartesian_2d(0.0..right * 1.02, 0.0..high * 1.1)?;
    chart
        .configure_mesh()
        .x_desc("messages/s offered")
        .y_desc("messages/s delivered")
        .x_label_formatter(&|rate| text::rate(*rate))
        .y_label_formatter(&|rate| text::rate(*rate))
        .light_line_style(WHITE)
        .draw()?;
    let peak = [(0.0, one.peak_msgs_per_s), (right, one.peak_msgs_per_s)];
    chart.draw_series(DashedLineSeries::new(peak, 3, 5, FLOOR.stroke_width(1)))?;
    chart.draw_series(LineSeries::new(points, OWN.stroke_width(2)).point_size(3))?;
    Ok(())
}

fn draw_lateness(area: &Area<'_>, one: &Overload) -> Done {
    area.fill(&WHITE)?;
    let right = one.points.iter().map(|point| point.offered_per_s).fold(1.0, f64::max);
    let (low, high) = ends(one.points.iter().flat_map(|point| [point.latency_us.p50, point.latency_us.p99]));
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(80)
        .build_cartesian_2d(0.0..right * 1.02, (low..high).log_scale())?;
    chart
        .configure_mesh()
        .x_desc("messages/s offered")
        .y_desc("from due to delivered")
        .x_label_formatter(&|rate| text::rate(*rate))
        .y_label_formatter(&|us| text::micros(*us))
        .light_line_style(WHITE)
        .draw()?;
    for (of, colour, pick) in
        [("p50", OWN, (|us| us.p50) as fn(&Quantiles) -> f64), ("p99", LAST, |us| us.p99)]
    {
        let points = one.points.iter().map(|point| (point.offered_per_s, pick(&point.latency_us).max(low)));
        chart
            .draw_series(LineSeries::new(points, colour.stroke_width(2)).point_size(3))?
            .label(of)
            .legend(move |at| plot::stroke(at, colour));
    }
    plot::legend(&mut chart, SeriesLabelPosition::UpperLeft)
}

fn failovers(reports: &[failover::Report]) -> String {
    let rows = reports.iter().flat_map(|report| {
        let parts = [
            ("detection", report.detection_ms),
            ("outage", report.outage_ms),
            ("a bare process's end", report.machine_ms),
        ];
        parts.map(|(what, ms)| {
            let name =
                format!("{}, {} members, {} killed: {what}", report.fabric, report.members, report.kills);
            std::iter::once(name).chain([ms.p50, ms.p99, ms.max].map(|ms| format!("{ms:.2} ms"))).collect()
        })
    });
    table(&["", "p50", "p99", "max"], rows)
}

/// Other systems, and what they promise.
fn others(peers: &Peers) -> String {
    let dash = || "–".to_owned();
    let times = |ratio: Option<f64>| ratio.map_or_else(dash, |ratio| format!("{ratio:.1}"));
    let rows = peers.rows.iter().map(|peer| {
        let figures = [
            peer.p50_us.map_or_else(dash, text::micros),
            peer.p99_us.map_or_else(dash, text::micros),
            peer.small_per_s.map_or_else(dash, text::rate),
            peer.large_mb_per_s.map_or_else(dash, |rate| format!("{rate:.0}")),
            times(peer.ratio.latency),
            times(peer.ratio.throughput),
            times(peer.ratio.large),
        ];
        let promise =
            [&peer.order, &peer.done, &peer.durability, &peer.fabric].map(String::as_str).join("; ");
        let promise = peer.not_run.as_ref().map_or(promise, |why| format!("not run: {why}"));
        std::iter::once(peer.system.clone()).chain(figures).chain([promise]).collect()
    });
    let (small, large) = (text::bytes(peers.small_bytes), text::bytes(peers.large_bytes));
    let head = [
        "",
        "p50",
        "p99",
        &format!("{small}: messages/s"),
        &format!("{large}: MB/s"),
        "latency ×",
        "messages ×",
        "MB ×",
        "what it promises",
    ];
    format!(
        "<p>{} members, {} rounds of {:.1} s on {}. The last figures are ratios to Consort in the same rounds: above 1 is better for \
         Consort.</p>\n{}",
        peers.members,
        peers.runs,
        peers.seconds,
        escape(&peers.machine),
        table(&head, rows)
    )
}
