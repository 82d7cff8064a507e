//! The table, for people and as JSON.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;

use crate::args::Args;
use crate::consort;
use crate::figures::{Figures, median};
use crate::plan::{LARGE, MEMBERS, SMALL};
use crate::promise::{Against, Aim, Promise};
use crate::rounds::{Measured, PeerRuns};

/// All that was measured, and under what promise.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    members: usize,
    small_bytes: usize,
    large_bytes: usize,
    runs: u32,
    seconds: f64,
    machine: String,
    rows: Vec<Row>,
}

/// One system. Figures are medians of its runs.
#[derive(Debug, Serialize)]
struct Row {
    /// As `--peers` takes it, of a peer.
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'static str>,
    system: String,
    #[serde(flatten)]
    promise: Promise,
    #[serde(flatten)]
    figures: Figures,
    /// Which of Consort's rows the ratios compare with.
    #[serde(skip_serializing_if = "Option::is_none")]
    against: Option<Against>,
    ratio: Ratio,
    aim: Aim,
    #[serde(skip_serializing_if = "Option::is_none")]
    not_run: Option<String>,
}

/// Medians of the pairs' ratios: above one is better for Consort.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Ratio {
    /// The peer's p50 over Consort's.
    latency: Option<f64>,
    /// Consort's small messages a second over the peer's.
    throughput: Option<f64>,
    /// The same of large ones.
    large: Option<f64>,
}

impl Ratio {
    fn of(pairs: &[(Figures, Figures)]) -> Self {
        let of = |ratio: fn(&Figures, &Figures) -> Option<f64>| {
            median(pairs.iter().filter_map(|(consort, peer)| ratio(consort, peer)).collect())
        };
        Self {
            latency: of(|consort, peer| Some(peer.p50_us? / consort.p50_us?)),
            throughput: of(|consort, peer| Some(consort.small_per_s? / peer.small_per_s?)),
            large: of(|consort, peer| Some(consort.large_mb_per_s? / peer.large_mb_per_s?)),
        }
    }
}

impl Report {
    pub(crate) fn new(args: &Args, measured: &Measured) -> Self {
        let mut rows = Vec::new();
        for (against, title, promise) in [
            (Against::Volatile, "Consort", consort::VOLATILE),
            (Against::Durable, "Consort, durable", consort::DURABLE),
        ] {
            let of_kind = measured.references.iter().filter(|(kind, _)| *kind == against);
            let runs: Vec<_> = of_kind.map(|(_, reference)| *reference).collect();
            if runs.is_empty() {
                continue;
            }
            let figures: Vec<Figures> = runs.iter().map(|run| run.figures).collect();
            rows.push(Row::own(format!("{title} {}", measured.consort_version), promise, &figures));
            let floors: Vec<Figures> = runs.iter().filter_map(|run| run.floor).collect();
            if !floors.is_empty() {
                rows.push(Row::own("TCP without a system (floor)".to_owned(), consort::FLOOR, &floors));
            }
        }
        rows.extend(measured.peers.iter().map(Row::peer));
        Self {
            members: MEMBERS,
            small_bytes: SMALL,
            large_bytes: LARGE,
            runs: args.runs,
            seconds: args.duration.as_secs_f64(),
            machine: machine(),
            rows,
        }
    }

    /// Whether a peer did not run.
    pub(crate) fn lacks_any(&self) -> bool {
        self.rows.iter().any(|row| row.not_run.is_some())
    }

    /// For people: the figures, then what each row is.
    pub(crate) fn describe(&self) -> String {
        let mut figures = Table::new();
        figures.load_preset(presets::UTF8_FULL_CONDENSED).set_header([
            "system",
            "p50 µs",
            "p99 µs",
            "64 B msg/s",
            "10 KiB MB/s",
            "latency ×",
            "64 B ×",
            "10 KiB ×",
        ]);
        let mut promises = Table::new();
        // Sentences: they are broken to a width that terminals have, whatever they are written to.
        promises.set_content_arrangement(ContentArrangement::Dynamic).set_width(PROMISES_WIDTH);
        promises.load_preset(presets::UTF8_FULL_CONDENSED).set_header([
            "system",
            "order",
            "done when; client",
            "durability",
            "fabric",
        ]);
        for row in &self.rows {
            let Row { figures: own, ratio, aim, promise, .. } = row;
            let mut cells = vec![row.system.clone()];
            if row.not_run.is_some() && row.figures == Figures::default() {
                cells.push("not run".to_owned());
                figures.add_row(cells);
            } else {
                cells.extend([own.p50_us, own.p99_us].map(|it| shown(it, 1)));
                cells.extend([own.small_per_s, own.large_mb_per_s].map(|it| shown(it, 0)));
                cells.push(aimed(ratio.latency, aim.latency));
                cells.push(aimed(ratio.throughput, aim.throughput));
                cells.push(aimed(ratio.large, None));
                figures.add_row(cells);
            }
            promises.add_row([&row.system, promise.order, promise.done, promise.durability, promise.fabric]);
        }
        for column in figures.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let mut text = format!(
            "{} members on {}; medians of {} rounds of {} s\n{figures}\n{promises}\n{NOTES}",
            self.members, self.machine, self.runs, self.seconds
        );
        for row in &self.rows {
            if let Some(reason) = &row.not_run {
                let how_far = if row.figures == Figures::default() { "" } else { " to the end" };
                text.push_str(&format!("\n{}: not run{how_far}: {reason}", row.system));
            }
        }
        text
    }
}

/// About as wide as the figures above them.
const PROMISES_WIDTH: u16 = 130;

const NOTES: &str = "\
latency: one 64 B message outstanding, corrected for coordinated omission with the mean as the expected interval, all alike.
latency ×: the peer's p50 over Consort's. 64 B ×, 10 KiB ×: Consort's throughput over the peer's. All are medians of the ratios
of pairs, Consort's run and the peer's after it; above 1 is better for Consort. (≥ …): the project's aim, reported, not asserted.
A ratio compares what the rows promise, too: read both. Durable peers are set beside Consort's durable group.";

impl Row {
    fn own(system: String, promise: Promise, runs: &[Figures]) -> Self {
        Self {
            name: None,
            system,
            promise,
            figures: Figures::median(runs),
            against: None,
            ratio: Ratio::default(),
            aim: Aim::default(),
            not_run: None,
        }
    }

    fn peer(runs: &PeerRuns) -> Self {
        let peer = runs.peer;
        let figures: Vec<Figures> = runs.pairs.iter().map(|(_, figures)| *figures).collect();
        Self {
            name: Some(peer.name),
            system: format!("{} {}", peer.title, runs.version).trim_end().to_owned(),
            promise: peer.promise,
            figures: Figures::median(&figures),
            against: Some(peer.against),
            ratio: Ratio::of(&runs.pairs),
            aim: peer.aim,
            not_run: runs.not_run.clone(),
        }
    }
}

fn shown(figure: Option<f64>, digits: usize) -> String {
    figure.map_or_else(|| "–".to_owned(), |figure| format!("{figure:.digits$}"))
}

fn aimed(ratio: Option<f64>, aim: Option<f64>) -> String {
    let shown = shown(ratio, 2);
    match aim {
        Some(aim) => format!("{shown} (≥ {aim})"),
        None => shown,
    }
}

/// What ran it, as far as it explains figures.
fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{cores} cores, Linux {}", kernel.trim())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consort::Reference;
    use crate::peers::PEERS;

    fn figures(p50: f64, rate: f64) -> Figures {
        Figures { p50_us: Some(p50), p99_us: Some(p50), small_per_s: Some(rate), large_mb_per_s: None }
    }

    #[test]
    fn ratios_are_of_pairs_and_what_did_not_run_is_told() {
        let reference = Reference { figures: figures(10.0, 1000.0), floor: Some(figures(5.0, 2000.0)) };
        let ran = PeerRuns {
            peer: &PEERS[1],
            version: "1".into(),
            pairs: vec![
                (figures(10.0, 1000.0), figures(20.0, 100.0)),
                (figures(1.0, 10.0), figures(3.0, 1.0)),
            ],
            not_run: None,
        };
        let lacks = PeerRuns {
            peer: &PEERS[2],
            version: String::new(),
            pairs: Vec::new(),
            not_run: Some("it isn't installed".into()),
        };
        let measured = Measured {
            consort_version: "0".into(),
            references: vec![(Against::Volatile, reference)],
            peers: vec![ran, lacks],
            consort_failed: false,
        };
        let args = <Args as clap::Parser>::parse_from(["peers"]);
        let report = Report::new(&args, &measured);
        assert!(report.lacks_any());
        let text = report.describe();
        assert!(text.contains("not run: it isn't installed") && text.contains("2.00 (≥ 1)"), "{text}");
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["rows"][2]["ratio"]["throughput"], 10.0);
        assert_eq!(json["rows"][2]["order"], PEERS[1].promise.order);
        assert_eq!(json["rows"].as_array().unwrap().len(), 4);
    }
}
