//! `consort bench join`: what it costs a group that runs when a member with a large state joins.
//!
//! Members run under a light, steady load; one joins and gets the state from another. Its worth is in two comparisons, both within
//! the same run: the longest gap in delivery at the others while it joins, beside the longest in an equally long time after it has
//! left again, which is the machine's own jitter; and the bytes a second of the transfer, beside those of a bare TCP stream.

mod member;
mod stream;

use std::time::Duration;

use serde::Serialize;

use super::conduct::{Status, stderr_line};
use super::figures::{median, ms};
use crate::args::JoinArgs;
use crate::clock;
use crate::crew::{Crew, Ports};
use crate::failure::Failure;
use crate::group;
use crate::orders::{self, JoinReport, JoinTask, Said, Seat, Task, Told};
use crate::text::{self, as_f64};

pub(crate) use member::run as member;
pub(crate) use stream::run as sink;

/// How long the group runs before a member joins.
const SETTLE: Duration = Duration::from_millis(300);

/// How long a joiner may take, beside what [`LEAST_RATE`] needs.
const PATIENCE: Duration = Duration::from_secs(60);

/// Bytes a second with which a state comes at the least.
const LEAST_RATE: u64 = 4 << 20;

/// One join.
#[derive(Debug, Serialize)]
struct Run {
    /// The longest time without a delivery at any of the others, while it joined.
    gap_ms: f64,
    /// The same in an equally long time in which nobody did.
    quiet_gap_ms: f64,
    /// From the start of the joiner's process until all deliver in a view with it: the length of these times.
    window_ms: f64,
    /// From the start of the joiner's node until the state is there, whole.
    transfer_ms: f64,
    transfer_mib_per_s: f64,
    /// A bare TCP stream with as many bytes.
    stream_mib_per_s: f64,
    /// What the application took to read it.
    restore_ms: f64,
    /// From then on until its first delivery in a view with it.
    catch_up_ms: f64,
}

/// What `--json` prints: medians of the runs, and each of them.
#[derive(Debug, Serialize)]
struct Report {
    bench: &'static str,
    fabric: String,
    members: u32,
    state_bytes: usize,
    gap_ms: f64,
    quiet_gap_ms: f64,
    transfer_mib_per_s: f64,
    stream_mib_per_s: f64,
    catch_up_ms: f64,
    runs: Vec<Run>,
}

/// The group. The joiner's number is one above the others'.
struct Group<'a> {
    args: &'a JoinArgs,
    log: &'a str,
    ports: Ports,
    crew: Crew,
    /// By member, from 1: the newest view in which it delivered something.
    views: Vec<Vec<u32>>,
    /// The joiner's place in the crew.
    joiner: Option<usize>,
    report: Option<JoinReport>,
    gaps: Vec<Vec<u64>>,
    fabric: String,
}

/// Measures.
///
/// # Errors
/// The group does not start, or the joiner does not get in.
pub(crate) fn run(args: &JoinArgs, log: &str) -> Result<(), Failure> {
    args.check()?;
    let status = Status::new();
    let measured = measure(args, log, &status);
    status.clear();
    let (fabric, runs) = measured?;
    let of = |what: fn(&Run) -> f64| median(runs.iter().map(what).collect());
    let report = Report {
        bench: "join",
        fabric,
        members: args.members,
        state_bytes: args.state,
        gap_ms: of(|run| run.gap_ms),
        quiet_gap_ms: of(|run| run.quiet_gap_ms),
        transfer_mib_per_s: of(|run| run.transfer_mib_per_s),
        stream_mib_per_s: of(|run| run.stream_mib_per_s),
        catch_up_ms: of(|run| run.catch_up_ms),
        runs,
    };
    text::print(&report, args.json, describe)
}

fn measure(args: &JoinArgs, log: &str, status: &Status) -> Result<(String, Vec<Run>), Failure> {
    status.show("the group starts");
    let mut group = Group::found(args, log)?;
    let mut runs = Vec::new();
    for number in 1..=args.runs {
        status.show(&format!("run {number} of {}", args.runs));
        runs.push(group.join()?);
    }
    let fabric = group.fabric.clone();
    group.crew.close(group::CLOSE_WITHIN + Duration::from_secs(5))?;
    Ok((fabric, runs))
}

impl<'a> Group<'a> {
    fn found(args: &'a JoinArgs, log: &'a str) -> Result<Self, Failure> {
        let mut group = Self {
            args,
            log,
            ports: Ports::reserve(args.members + 1)?,
            crew: Crew::new(stderr_line()),
            views: vec![Vec::new(); args.members as usize],
            joiner: None,
            report: None,
            gaps: Vec::new(),
            fabric: String::new(),
        };
        for id in 1..=args.members {
            group.start(id)?;
        }
        group.all_see(args.members)?;
        Ok(group)
    }

    fn start(&mut self, id: u32) -> Result<usize, Failure> {
        let joins = id > self.args.members;
        let known =
            self.ports.numbered().into_iter().filter(|(other, _)| joins || *other <= self.args.members);
        let seat = Seat::plain(id, known.collect(), self.args.fabric, group::LEAST_RING);
        let task = JoinTask { seat, joins, state: self.bytes() };
        self.crew.start(&format!("member {id}"), self.log, &Task::Join(task))
    }

    fn bytes(&self) -> u64 {
        u64::try_from(self.args.state).unwrap_or(u64::MAX)
    }

    /// One joins, is measured, and leaves again.
    fn join(&mut self) -> Result<Run, Failure> {
        let members = self.args.members;
        self.pass_time(SETTLE)?;
        self.report = None;
        let since = clock::now();
        let place = self.start(members + 1)?;
        self.joiner = Some(place);
        self.all_see(members + 1)?;
        self.wait("the joiner's report", |group| group.report.is_some())?;
        let until = clock::now();
        self.crew.release(place)?;
        self.all_see(members)?;
        self.crew.end(place)?;
        self.joiner = None;
        self.pass_time(SETTLE)?;
        let quiet = clock::now();
        let window = until - since;
        self.pass_time(Duration::from_nanos(window))?;
        let windows = vec![(since, until), (quiet, quiet + window)];
        self.gaps.clear();
        for place in 0..members as usize {
            self.crew.tell(place, &Told::Gaps { windows: windows.clone() })?;
        }
        self.wait("the members' gaps", |group| group.gaps.len() == members as usize)?;
        let longest =
            |at: usize| self.gaps.iter().filter_map(|gaps| gaps.get(at)).max().copied().unwrap_or(0);
        let (gap, quiet_gap) = (longest(0), longest(1));
        let stream = stream::measure(self.bytes(), self.log)?;
        let JoinReport { started, arrived, restored, viewed } = self.report.take().unwrap_or_default();
        let rate =
            |nanoseconds: u64| as_f64(self.bytes()) / f64::from(1 << 20) / (as_f64(nanoseconds.max(1)) / 1e9);
        Ok(Run {
            gap_ms: ms(gap),
            quiet_gap_ms: ms(quiet_gap),
            window_ms: ms(window),
            transfer_ms: ms(arrived.saturating_sub(started)),
            transfer_mib_per_s: rate(arrived.saturating_sub(started)),
            stream_mib_per_s: rate(stream),
            restore_ms: ms(restored.saturating_sub(arrived)),
            catch_up_ms: ms(viewed.saturating_sub(restored)),
        })
    }

    fn pass_time(&mut self, time: Duration) -> Result<(), Failure> {
        let until = clock::now() + super::figures::nanoseconds(time);
        loop {
            let left = until.saturating_sub(clock::now());
            if left == 0 {
                return Ok(());
            }
            if let Some((place, said)) = self.crew.hear(Duration::from_nanos(left))? {
                self.take(place, said)?;
            }
        }
    }

    /// Waits until all deliver in a view of so many.
    fn all_see(&mut self, count: u32) -> Result<(), Failure> {
        let what = format!("a view of {count} members");
        self.wait(&what, |group| group.views.iter().all(|view| view.len() == count as usize))
    }

    fn wait(&mut self, what: &str, done: impl Fn(&Self) -> bool) -> Result<(), Failure> {
        let patience = PATIENCE + Duration::from_secs(self.bytes() / LEAST_RATE);
        let until = clock::now() + super::figures::nanoseconds(patience);
        while !done(self) {
            let left = until.saturating_sub(clock::now());
            let heard = if left == 0 { None } else { self.crew.hear(Duration::from_nanos(left))? };
            let Some((place, said)) = heard else {
                return Err(Failure::lost(
                    format!("waited {patience:?} in vain for {what}"),
                    "run it again with --log debug to see what the members wait for",
                ));
            };
            self.take(place, said)?;
        }
        Ok(())
    }

    fn take(&mut self, place: usize, said: Said) -> Result<(), Failure> {
        match said {
            Said::View { members } => {
                if let Some(view) = self.views.get_mut(place) {
                    *view = members;
                }
            }
            Said::Done { report } if self.joiner == Some(place) => {
                self.report = Some(orders::report(report)?);
            }
            Said::Gaps { longest, fabric } => {
                self.gaps.push(longest);
                self.fabric = fabric;
            }
            _ => {}
        }
        Ok(())
    }
}

fn describe(report: &Report) -> String {
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::UTF8_FULL_CONDENSED);
    table.set_header([
        "run",
        "longest gap",
        "without a join",
        "transfer MiB/s",
        "bare TCP MiB/s",
        "restoring",
        "catching up",
        "in all",
    ]);
    let time = |ms: f64| text::micros(ms * 1e3);
    for (number, run) in (1..).zip(&report.runs) {
        let cells: [String; 8] = [
            i32::to_string(&number),
            time(run.gap_ms),
            time(run.quiet_gap_ms),
            text::rate(run.transfer_mib_per_s),
            text::rate(run.stream_mib_per_s),
            time(run.restore_ms),
            time(run.catch_up_ms),
            time(run.window_ms),
        ];
        table.add_row(cells);
    }
    let Report { members, fabric, .. } = report;
    let state = text::bytes(u64::try_from(report.state_bytes).unwrap_or(u64::MAX));
    let whom = if *members == 1 { "member" } else { "members" };
    format!("join: one with {state} of state joins {members} {whom} over {fabric}\n{table}")
}
