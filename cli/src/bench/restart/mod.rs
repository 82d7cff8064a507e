//! `consort bench restart`: how long a durable group takes to begin again when all its members were killed, and what memory that takes.
//!
//! The logs are filled once. Then, as often as asked for, all members are killed and started again; a life ends when each was told everything and
//! has delivered a new message of each. So what the next is to be told is known to the message.

mod member;

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{Advice, fadvise};
use rustix::process::Signal;
use serde::Serialize;

use super::conduct::{Status, stderr_line};
use super::figures::{median, ms};
use super::place::Place;
use crate::args::RestartArgs;
use crate::clock;
use crate::crew::{Crew, Ports};
use crate::failure::Failure;
use crate::group;
use crate::orders::{self, Durable, RestartReport, RestartTask, Said, Seat, Task, WhichGroup};
use crate::text::{self, as_f64};

pub(crate) use member::run as member;

/// How long nothing may be heard of any member. They say how far they are as soon as they are told anything; until then they read their logs.
const PATIENCE: Duration = Duration::from_secs(60);

/// Bytes a second with which a log is read at the least.
const LEAST_RATE: u64 = 8 << 20;

/// Room on the disk beside the logs' contents: segments are made in their full size, and one ahead.
const AHEAD: u64 = 192 << 20;

/// One restart. Times are from the start of the processes, at the member where it took longest unless it says otherwise.
#[derive(Clone, Copy, Debug, Serialize)]
struct Run {
    opened_ms: f64,
    told_again_ms: f64,
    /// At the first member.
    first_new_ms: f64,
    /// The log's bytes by the time until all was told again.
    mib_per_s: f64,
    msgs_per_s: f64,
    /// The most that was resident of any member, in bytes.
    memory_bytes: u64,
}

/// What `--json` prints: medians of the restarts, and each of them.
#[derive(Debug, Serialize)]
struct Report {
    bench: &'static str,
    fabric: String,
    members: u32,
    size: usize,
    /// Of each member.
    log_bytes: u64,
    messages: u64,
    opened_ms: f64,
    told_again_ms: f64,
    first_new_ms: f64,
    mib_per_s: f64,
    msgs_per_s: f64,
    /// The most of all restarts.
    memory_bytes: u64,
    fill_mib_per_s: f64,
    /// The most that was resident of any member while the logs were filled.
    fill_memory_bytes: u64,
    runs: Vec<Run>,
}

/// The group, life after life.
struct Lives<'a> {
    args: &'a RestartArgs,
    log: &'a str,
    status: &'a Status,
    place: &'a Path,
    ports: Ports,
    /// Messages that each member sends to fill the logs.
    filling: u64,
}

/// Measures.
///
/// # Errors
/// The directory is no disk or has no room, the group does not start, or something was lost.
pub(crate) fn run(args: &RestartArgs, log: &str) -> Result<(), Failure> {
    args.check()?;
    let place = Place::new(&args.disk)?;
    let size = u64::try_from(args.log_size).unwrap_or(u64::MAX);
    place.needs((size + size / 16 + AHEAD) * u64::from(args.members))?;
    let status = Status::new();
    let part = place.part()?;
    let record = consort::log::format::record_size(args.size) * args.members as usize;
    let filling = u64::try_from(args.log_size / record).unwrap_or(u64::MAX).max(1);
    let ports = Ports::reserve(args.members)?;
    let measured = Lives { args, log, status: &status, place: part.path(), ports, filling }.measure();
    status.clear();
    drop((part, place));
    text::print(&measured?, args.json, describe)
}

impl Lives<'_> {
    fn measure(&self) -> Result<Report, Failure> {
        let began = clock::now();
        let first = self.live(0, "filling the logs")?;
        let log_bytes = first.iter().map(|it| it.log_bytes).max().unwrap_or_default();
        let messages = first.first().map(|it| it.messages).unwrap_or_default();
        let filled = first.iter().map(|it| it.fresh).max().unwrap_or_default();
        let fill_ms = ms(filled.saturating_sub(first.iter().map(|it| it.viewed).max().unwrap_or(began)));
        let mut runs = Vec::new();
        for number in 1..=self.args.runs {
            let what = format!("restart {number} of {}", self.args.runs);
            self.status.show(&what);
            forget(self.place);
            let since = clock::now();
            let life = self.live(number.into(), &what)?;
            runs.push(Run::of(&life, since, log_bytes));
        }
        let of = |what: fn(&Run) -> f64| median(runs.iter().map(what).collect());
        Ok(Report {
            bench: "restart",
            fabric: first.first().map(|it| it.fabric.clone()).unwrap_or_default(),
            members: self.args.members,
            size: self.args.size,
            log_bytes,
            messages,
            opened_ms: of(|run| run.opened_ms),
            told_again_ms: of(|run| run.told_again_ms),
            first_new_ms: of(|run| run.first_new_ms),
            mib_per_s: of(|run| run.mib_per_s),
            msgs_per_s: of(|run| run.msgs_per_s),
            memory_bytes: runs.iter().map(|run| run.memory_bytes).max().unwrap_or_default(),
            fill_mib_per_s: mib_per_s(log_bytes, fill_ms),
            fill_memory_bytes: most_resident(&first),
            runs,
        })
    }

    /// One life: all are started, come to their ends, and are killed.
    fn live(&self, life: u64, what: &str) -> Result<Vec<RestartReport>, Failure> {
        let mut crew = Crew::new(stderr_line());
        let members = self.args.members as usize;
        for (id, _) in self.ports.numbered() {
            let seat = Seat::plain(
                id,
                self.ports.numbered(),
                self.args.fabric,
                group::ring_bytes(self.args.size, group::LEAST_RING),
            );
            let durable = Durable { data: self.place.join(id.to_string()), which: WhichGroup::Measured };
            let task = RestartTask { seat, durable, size: self.args.size, filling: self.filling, life };
            crew.start(&format!("member {id}"), self.log, &Task::Restart(task))?;
        }
        let mut reports: Vec<Option<RestartReport>> = vec![None; members];
        let bytes = u64::try_from(self.args.log_size).unwrap_or(u64::MAX);
        let patience = PATIENCE + Duration::from_secs(bytes / LEAST_RATE);
        let total = self.filling * u64::from(self.args.members);
        let mut heard = Instant::now();
        while reports.iter().any(Option::is_none) {
            match crew.hear(Duration::from_secs(1))? {
                Some((index, Said::Done { report })) => {
                    reports[index] = Some(orders::report(report)?);
                    heard = Instant::now();
                }
                Some((_, Said::Progress { delivered })) => {
                    self.status.show(&format!("{what}: {}%", delivered.saturating_mul(100) / total.max(1)));
                    heard = Instant::now();
                }
                Some(_) => heard = Instant::now(),
                None if heard.elapsed() > patience => {
                    return Err(Failure::lost(
                        format!("{what}: nothing was heard of any member for {patience:?}"),
                        "see what else uses the disk; run it again with --log debug to see what the members wait for",
                    ));
                }
                None => {}
            }
        }
        // All at once, as far as that goes: nobody has the time to say anything to the others.
        (0..members).try_for_each(|index| crew.signal(index, Signal::KILL))?;
        (0..members).try_for_each(|index| crew.end(index))?;
        Ok(reports.into_iter().flatten().collect())
    }
}

impl Run {
    fn of(life: &[RestartReport], since: u64, log_bytes: u64) -> Self {
        let last = |what: fn(&RestartReport) -> u64| {
            ms(life.iter().map(what).max().unwrap_or_default().saturating_sub(since))
        };
        let told_again_ms = last(|it| it.told);
        let messages = life.iter().map(|it| it.messages).max().unwrap_or_default();
        Self {
            opened_ms: last(|it| it.opened),
            told_again_ms,
            first_new_ms: ms(life.iter().map(|it| it.fresh).min().unwrap_or_default().saturating_sub(since)),
            mib_per_s: mib_per_s(log_bytes, told_again_ms),
            msgs_per_s: as_f64(messages) * 1e3 / told_again_ms.max(1e-6),
            memory_bytes: most_resident(life),
        }
    }
}

/// Of any member.
fn most_resident(life: &[RestartReport]) -> u64 {
    life.iter().map(|it| it.memory).max().unwrap_or_default()
}

fn mib_per_s(bytes: u64, ms: f64) -> f64 {
    as_f64(bytes) / f64::from(1 << 20) * 1e3 / ms.max(1e-6)
}

/// Asks the kernel to keep nothing of these files in memory, so that they are read from the disk. It may do as it likes, so nothing depends on it.
fn forget(place: &Path) {
    let Ok(entries) = fs::read_dir(place) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            forget(&path);
        } else if let Ok(file) = File::open(&path) {
            let _ = fadvise(&file, 0, None, Advice::DontNeed);
        }
    }
}

fn describe(report: &Report) -> String {
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::UTF8_FULL_CONDENSED);
    table.set_header(["restart", "opened", "told again", "first new", "MiB/s", "messages/s", "memory"]);
    let time = |ms: f64| text::micros(ms * 1e3);
    for (number, run) in (1..).zip(&report.runs) {
        table.add_row([
            i32::to_string(&number),
            time(run.opened_ms),
            time(run.told_again_ms),
            time(run.first_new_ms),
            text::rate(run.mib_per_s),
            text::rate(run.msgs_per_s),
            text::bytes(run.memory_bytes),
        ]);
    }
    let Report { members, fabric, .. } = report;
    format!(
        "restart: {members} members over {fabric}, each with {} of log, {} messages of {}\n{table}\nfilling: {} MiB/s a member, memory {}",
        text::bytes(report.log_bytes),
        text::count(report.messages),
        text::bytes(report.size as u64),
        text::rate(report.fill_mib_per_s),
        text::bytes(report.fill_memory_bytes),
    )
}
