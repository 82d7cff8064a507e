//! `consort bench durable`: what a durable group makes of a disk, beside bare files on the same disk in the same round, and what a volatile
//! group beside it loses.
//!
//! The load is that of `bench latency` and `bench throughput`. After each run of the group the floor writes batches of the size that the log had
//! just reached, so that it has the same to do for each flush.

mod disk;

use serde::Serialize;
use tempfile::TempDir;

use self::disk::{DiskRun, Setting};
use super::conduct::Status;
use super::figures::{Quantiles, median, nanoseconds};
use super::load::{Bench, GroupRun, group_run};
use super::place::Place;
use crate::args::{DurableArgs, WaitArg};
use crate::failure::Failure;
use crate::latency;
use crate::orders::{Pace, WhichGroup, Window};
use crate::text::{self, as_f64};

/// One round's throughput, or the median of all.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Throughput {
    msgs_per_s: f64,
    /// Payload, counted once, in 10^6 bytes a second.
    mb_per_s: f64,
    /// What the slowest member's log wrote.
    log_mb_per_s: f64,
    bytes_per_flush: f64,
    flushes_per_s: f64,
    /// Bare files: the slowest of them, written through the kernel's cache or past it, whichever was quicker.
    floor_mb_per_s: f64,
    cached_floor_mb_per_s: f64,
    direct_floor_mb_per_s: f64,
    /// Payload over floor.
    ratio: f64,
    /// The log's bytes over floor.
    log_ratio: f64,
    /// By a group that delivers without waiting for the disks.
    logged_msgs_per_s: f64,
}

/// Of one size.
#[derive(Debug, Serialize)]
struct Sized {
    size: usize,
    #[serde(flatten)]
    median: Throughput,
    runs: Vec<Throughput>,
}

/// One round's latency, or the median of all.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Latency {
    /// From send to delivery at the sender.
    p50_us: f64,
    p99_us: f64,
    max_us: f64,
    /// As measured.
    uncorrected_p50_us: f64,
    /// In a group that delivers without waiting for the disks.
    logged_p50_us: f64,
    logged_p99_us: f64,
    logged_max_us: f64,
    uncorrected_logged_p50_us: f64,
    /// Bytes of the log and of the bare files with each flush.
    bytes_per_flush: f64,
    /// A write with its flush of one file alone.
    flush_alone_p50_us: f64,
    uncorrected_flush_alone_p50_us: f64,
    /// … of one of as many files as members.
    flush_p50_us: f64,
    flush_p99_us: f64,
    flush_max_us: f64,
    uncorrected_flush_p50_us: f64,
    /// … and of the last of them to be done.
    uncorrected_last_flush_p50_us: f64,
    /// p50 over that of one of as many files as members.
    ratio: f64,
    /// The same as measured. Where it differs much the machine was busy with something else.
    uncorrected_ratio: f64,
}

/// Of the one size.
#[derive(Debug, Serialize)]
struct OneAtATime {
    size: usize,
    #[serde(flatten)]
    median: Latency,
    runs: Vec<Latency>,
}

/// One round of a volatile group beside a durable one, or the median of all.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Volatile {
    /// While nothing is sent in the durable group.
    alone_msgs_per_s: f64,
    /// While as much is as it takes.
    loaded_msgs_per_s: f64,
    /// What it took.
    durable_msgs_per_s: f64,
    /// While a volatile group carries as many messages as that did.
    beside_volatile_msgs_per_s: f64,
    /// What that carried.
    volatile_msgs_per_s: f64,
    /// Loaded over alone.
    ratio: f64,
    /// Loaded over beside a volatile group: what is lost because that one is durable.
    durability_ratio: f64,
}

/// Of the one size.
#[derive(Debug, Serialize)]
struct Beside {
    size: usize,
    #[serde(flatten)]
    median: Volatile,
    runs: Vec<Volatile>,
}

/// What `--json` prints: medians of the rounds, and each of them.
#[derive(Debug, Serialize)]
struct Report {
    bench: &'static str,
    fabric: String,
    engine: String,
    /// What writes the logs.
    disk: &'static str,
    members: u32,
    wait: WaitArg,
    seconds: f64,
    throughput: Vec<Sized>,
    latency: OneAtATime,
    volatile: Beside,
}

/// What is measured, round after round.
struct Rounds<'a> {
    args: &'a DurableArgs,
    log: &'a str,
    status: &'a Status,
    place: &'a Place,
    fabric: String,
    engine: String,
}

/// Measures.
///
/// # Errors
/// The directory is no disk, a group does not start or is stopped, or the disk refuses something.
pub(crate) fn run(args: &DurableArgs, log: &str) -> Result<(), Failure> {
    args.check()?;
    let place = Place::new(&args.disk)?;
    let status = Status::new();
    let mut rounds =
        Rounds { args, log, status: &status, place: &place, fabric: String::new(), engine: String::new() };
    let measured = rounds.measure();
    status.clear();
    drop(place);
    text::print(&measured?, args.json, describe)
}

impl Rounds<'_> {
    fn measure(&mut self) -> Result<Report, Failure> {
        let args = self.args;
        // The parser takes no empty list.
        let first = args.sizes.first().copied().unwrap_or_default();
        let (mut sized, mut latency, mut volatile) =
            (vec![Vec::new(); args.sizes.len()], Vec::new(), Vec::new());
        for number in 1..=args.runs {
            let round = format!("round {number} of {}", args.runs);
            for (size, runs) in args.sizes.iter().zip(&mut sized) {
                runs.push(self.throughput(&round, *size)?);
            }
            latency.push(self.latency(&round, first)?);
            volatile.push(self.volatile(&round, first, number.is_multiple_of(2))?);
        }
        let throughput = args.sizes.iter().zip(sized);
        Ok(Report {
            bench: "durable",
            fabric: std::mem::take(&mut self.fabric),
            engine: std::mem::take(&mut self.engine),
            disk: consort::log::Directory::engine(),
            members: args.members,
            wait: args.wait,
            seconds: args.duration.as_secs_f64(),
            throughput: throughput
                .map(|(size, runs)| Sized { size: *size, median: Throughput::median(&runs), runs })
                .collect(),
            latency: OneAtATime { size: first, median: Latency::median(&latency), runs: latency },
            volatile: Beside { size: first, median: Volatile::median(&volatile), runs: volatile },
        })
    }

    /// One group, and the directory with its logs. Whoever compares says when it goes: removing it is work for the disk.
    fn group(&mut self, size: usize, pace: Pace, which: WhichGroup) -> Result<(GroupRun, TempDir), Failure> {
        let senders = if pace == Pace::OneOutstanding { 1 } else { self.args.members };
        let load = self.args.load(size, senders);
        let part = self.place.part()?;
        let durable = Some((part.path(), which));
        let run = group_run(&Bench { name: "durable", args: &load, pace, durable, log: self.log })?;
        (self.fabric, self.engine) = (run.fabric.clone(), run.engine.clone());
        Ok((run, part))
    }

    /// Bare files, with as many bytes a flush as a log had, and their directory, as for a group.
    fn floor(
        &self,
        bytes_per_flush: f64,
        files: u32,
        (together, direct): (bool, bool),
    ) -> Result<(DiskRun, TempDir), Failure> {
        let part = self.place.part()?;
        let batch = whole(bytes_per_flush);
        let window = Window {
            warmup: nanoseconds(self.args.warmup),
            measured: (nanoseconds(self.args.duration) / 2).max(50_000_000),
        };
        let setting = Setting { place: part.path(), files: files as usize, batch, together, direct, window };
        Ok((disk::measure(setting)?, part))
    }

    fn throughput(&mut self, round: &str, size: usize) -> Result<Throughput, Failure> {
        self.status.show(&format!("{round}: {} messages, the group", text::bytes(size as u64)));
        self.place.flush()?; // with what was removed before
        let (run, logs) = self.group(size, Pace::Flood, WhichGroup::Measured)?;
        // On some disks blocks that were never written are far slower. Removed now, and that flushed, the logs leave the floor blocks that were
        // written; which of them it gets, if any, is the file system's choice.
        drop(logs);
        self.place.flush()?;
        let bytes_per_flush = bytes_per_flush(&run)?;
        self.status.show(&format!("{round}: {} messages, bare files", text::bytes(size as u64)));
        let mut floors = [0.0; 2];
        for (floor, direct) in floors.iter_mut().zip([false, true]) {
            let (run, files) = self.floor(bytes_per_flush, self.args.members, (false, direct))?;
            drop(files);
            self.place.flush()?;
            *floor = run.bytes_per_s / 1e6;
        }
        let [cached_floor_mb_per_s, direct_floor_mb_per_s] = floors;
        self.status.show(&format!("{round}: {} messages, the group `logged`", text::bytes(size as u64)));
        let (ahead, _logs) = self.group(size, Pace::Flood, WhichGroup::MeasuredAhead)?;
        Ok(Throughput {
            logged_msgs_per_s: ahead.msgs_per_s,
            msgs_per_s: run.msgs_per_s,
            mb_per_s: run.msgs_per_s * as_f64(size as u64) / 1e6,
            log_mb_per_s: as_f64(run.log_bytes) / run.seconds / 1e6,
            bytes_per_flush,
            flushes_per_s: as_f64(run.flushes) / run.seconds,
            floor_mb_per_s: cached_floor_mb_per_s.max(direct_floor_mb_per_s),
            cached_floor_mb_per_s,
            direct_floor_mb_per_s,
            ..Throughput::default()
        }
        .with_ratios())
    }

    fn latency(&mut self, round: &str, size: usize) -> Result<Latency, Failure> {
        self.status.show(&format!("{round}: one message at a time"));
        self.place.flush()?; // with what was removed before
        let (run, _logs) = self.group(size, Pace::OneOutstanding, WhichGroup::Measured)?;
        let bytes_per_flush = bytes_per_flush(&run)?;
        self.status.show(&format!("{round}: bare flushes"));
        let (alone, _file) = self.floor(bytes_per_flush, 1, (false, false))?;
        let alone = alone.each;
        let (shared, _files) = self.floor(bytes_per_flush, self.args.members, (true, false))?;
        self.status.show(&format!("{round}: one message at a time, the group `logged`"));
        self.place.flush()?;
        let (ahead, _ahead_logs) = self.group(size, Pace::OneOutstanding, WhichGroup::MeasuredAhead)?;
        let [ahead, ahead_raw] = [latency::corrected(&ahead.own), ahead.own].map(|it| Quantiles::from(&it));
        let [own, raw] = [latency::corrected(&run.own), run.own].map(|it| Quantiles::from(&it));
        let [lone, lone_raw] = [latency::corrected(&alone), alone].map(|it| Quantiles::from(&it));
        let [each, each_raw] = [latency::corrected(&shared.each), shared.each].map(|it| Quantiles::from(&it));
        Ok(Latency {
            p50_us: own.p50,
            p99_us: own.p99,
            max_us: own.max,
            uncorrected_p50_us: raw.p50,
            logged_p50_us: ahead.p50,
            logged_p99_us: ahead.p99,
            logged_max_us: ahead.max,
            uncorrected_logged_p50_us: ahead_raw.p50,
            bytes_per_flush,
            flush_alone_p50_us: lone.p50,
            uncorrected_flush_alone_p50_us: lone_raw.p50,
            flush_p50_us: each.p50,
            flush_p99_us: each.p99,
            flush_max_us: each.max,
            uncorrected_flush_p50_us: each_raw.p50,
            uncorrected_last_flush_p50_us: Quantiles::from(&shared.slowest).p50,
            ..Latency::default()
        }
        .with_ratios())
    }

    /// Which comes first changes from round to round.
    fn volatile(&mut self, round: &str, size: usize, loaded_first: bool) -> Result<Volatile, Failure> {
        self.place.flush()?; // with what was removed before
        let mut one = |which| {
            let other = match which {
                WhichGroup::BesideIdle => "an idle durable",
                WhichGroup::BesideVolatile(_) => "a volatile",
                _ => "a loaded durable",
            };
            self.status.show(&format!("{round}: a volatile group beside {other} one"));
            self.group(size, Pace::Flood, which)
        };
        let early = if loaded_first { Some(one(WhichGroup::BesideLoaded)?) } else { None };
        let (alone, _logs) = one(WhichGroup::BesideIdle)?;
        let (loaded, _others) = match early {
            Some(run) => run,
            None => one(WhichGroup::BesideLoaded)?,
        };
        let rate = loaded.beside_per_s.round() as u64; // far below 2^53, and positive
        let (beside_volatile, _no_logs) = one(WhichGroup::BesideVolatile(rate))?;
        Ok(Volatile {
            alone_msgs_per_s: alone.msgs_per_s,
            loaded_msgs_per_s: loaded.msgs_per_s,
            durable_msgs_per_s: loaded.beside_per_s,
            beside_volatile_msgs_per_s: beside_volatile.msgs_per_s,
            volatile_msgs_per_s: beside_volatile.beside_per_s,
            ..Volatile::default()
        }
        .with_ratios())
    }
}

fn bytes_per_flush(run: &GroupRun) -> Result<f64, Failure> {
    if run.flushes == 0 {
        return Err(Failure::lost(
            "the log flushed nothing in the measured time",
            "give a longer --duration; if the disk is this slow, see what else uses it",
        ));
    }
    Ok(as_f64(run.log_bytes) / as_f64(run.flushes))
}

/// Bytes of a flush as the floor writes them.
fn whole(bytes_per_flush: f64) -> usize {
    let bytes = bytes_per_flush.round() as usize; // far below 2^53, and positive
    bytes.max(1)
}

/// The median of each field of some runs; fields that are computed of others are so of the medians.
macro_rules! medians {
    ($runs:expr, $kind:ident { $($field:ident),* $(,)? }) => {
        $kind {
            $($field: median($runs.iter().map(|run| run.$field).collect()),)*
            ..$kind::default()
        }
    };
}

impl Throughput {
    fn median(runs: &[Self]) -> Self {
        medians!(
            runs,
            Self {
                msgs_per_s,
                mb_per_s,
                log_mb_per_s,
                bytes_per_flush,
                flushes_per_s,
                floor_mb_per_s,
                cached_floor_mb_per_s,
                direct_floor_mb_per_s,
                logged_msgs_per_s
            }
        )
        .with_ratios()
    }

    fn with_ratios(self) -> Self {
        Self {
            ratio: self.mb_per_s / self.floor_mb_per_s,
            log_ratio: self.log_mb_per_s / self.floor_mb_per_s,
            ..self
        }
    }
}

impl Latency {
    fn median(runs: &[Self]) -> Self {
        medians!(
            runs,
            Self {
                p50_us,
                p99_us,
                max_us,
                uncorrected_p50_us,
                logged_p50_us,
                logged_p99_us,
                logged_max_us,
                uncorrected_logged_p50_us,
                bytes_per_flush,
                flush_alone_p50_us,
                uncorrected_flush_alone_p50_us,
                flush_p50_us,
                flush_p99_us,
                flush_max_us,
                uncorrected_flush_p50_us,
                uncorrected_last_flush_p50_us,
            }
        )
        .with_ratios()
    }

    fn with_ratios(self) -> Self {
        Self {
            ratio: self.p50_us / self.flush_p50_us,
            uncorrected_ratio: self.uncorrected_p50_us / self.uncorrected_flush_p50_us,
            ..self
        }
    }
}

impl Volatile {
    fn median(runs: &[Self]) -> Self {
        medians!(
            runs,
            Self {
                alone_msgs_per_s,
                loaded_msgs_per_s,
                durable_msgs_per_s,
                beside_volatile_msgs_per_s,
                volatile_msgs_per_s
            }
        )
        .with_ratios()
    }

    fn with_ratios(self) -> Self {
        Self {
            ratio: self.loaded_msgs_per_s / self.alone_msgs_per_s,
            durability_ratio: self.loaded_msgs_per_s / self.beside_volatile_msgs_per_s,
            ..self
        }
    }
}

fn describe(report: &Report) -> String {
    let table = |header: &[&str]| {
        let mut table = comfy_table::Table::new();
        table.load_preset(comfy_table::presets::UTF8_FULL_CONDENSED);
        table.set_header(header);
        table
    };
    let size = |size: usize| text::bytes(size as u64);
    let ratio = |ratio: f64| format!("{ratio:.2}");
    let mut flood = table(&[
        "all send",
        "messages/s",
        "MB/s",
        "bare files MB/s",
        "ratio",
        "log MB/s",
        "log ratio",
        "a flush",
        "flushes/s",
        "logged messages/s",
    ]);
    for it in &report.throughput {
        let all = &it.median;
        flood.add_row([
            size(it.size),
            text::rate(all.msgs_per_s),
            text::rate(all.mb_per_s),
            text::rate(all.floor_mb_per_s),
            ratio(all.ratio),
            text::rate(all.log_mb_per_s),
            ratio(all.log_ratio),
            text::bytes(whole(all.bytes_per_flush) as u64),
            text::rate(all.flushes_per_s),
            text::rate(all.logged_msgs_per_s),
        ]);
    }
    let one = &report.latency.median;
    let mut single = table(&["one at a time", "p50", "p99", "max", "p50 as measured"]);
    let files = format!("a flush, {} files", report.members);
    for (what, figures) in [
        (
            size(report.latency.size),
            [Some(one.p50_us), Some(one.p99_us), Some(one.max_us), Some(one.uncorrected_p50_us)],
        ),
        (
            format!("{}, logged", size(report.latency.size)),
            [
                Some(one.logged_p50_us),
                Some(one.logged_p99_us),
                Some(one.logged_max_us),
                Some(one.uncorrected_logged_p50_us),
            ],
        ),
        (
            files,
            [
                Some(one.flush_p50_us),
                Some(one.flush_p99_us),
                Some(one.flush_max_us),
                Some(one.uncorrected_flush_p50_us),
            ],
        ),
        ("the last of them".to_owned(), [None, None, None, Some(one.uncorrected_last_flush_p50_us)]),
        (
            "a flush alone".to_owned(),
            [Some(one.flush_alone_p50_us), None, None, Some(one.uncorrected_flush_alone_p50_us)],
        ),
        ("ratio".to_owned(), [None; 4]),
    ] {
        let mut cells = vec![what];
        cells.extend(figures.map(|us| us.map(text::micros).unwrap_or_default()));
        if cells[0] == "ratio" {
            (cells[1], cells[4]) = (ratio(one.ratio), ratio(one.uncorrected_ratio));
        }
        single.add_row(cells);
    }
    let beside = &report.volatile.median;
    let mut volatile =
        table(&["volatile, beside", "messages/s", "messages/s there", "a loaded durable one's ratio"]);
    volatile.add_row([
        "an idle durable group",
        &text::rate(beside.alone_msgs_per_s),
        "",
        &ratio(beside.ratio),
    ]);
    volatile.add_row([
        "a loaded one",
        &text::rate(beside.loaded_msgs_per_s),
        &text::rate(beside.durable_msgs_per_s),
        "",
    ]);
    volatile.add_row([
        "a volatile one with as many",
        &text::rate(beside.beside_volatile_msgs_per_s),
        &text::rate(beside.volatile_msgs_per_s),
        &ratio(beside.durability_ratio),
    ]);
    let Report { members, fabric, engine, disk, wait, .. } = report;
    format!(
        "durable: {members} members over {fabric} ({engine}), logs by {disk}, waiting {wait}\n{flood}\n{single}\n{volatile}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_one_of_medians() {
        let run = |mb_per_s, floor_mb_per_s| Throughput { mb_per_s, floor_mb_per_s, ..Throughput::default() };
        let median = Throughput::median(&[run(10.0, 40.0), run(30.0, 20.0), run(20.0, 30.0)]);
        assert_eq!((median.mb_per_s, median.floor_mb_per_s), (20.0, 30.0));
        assert!((median.ratio - 2.0 / 3.0).abs() < 1e-9);
    }
}
