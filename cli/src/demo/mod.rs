//! `consort demo`: several processes, one order, checked.
//!
//! The parent surveys the input, starts the members with ports that it holds for them, follows their progress, and when
//! all have delivered everything, lets them leave and judges their logs itself ([`mod@verify`]). It fails if any member
//! dies or nothing moves any more, and it leaves no process behind however it ends ([`crate::crew`]).
//!
//! With `--crash` or `--join` members are killed and others join in the midst of it: that is [`churn`].

mod log;
pub(crate) mod input;
pub(crate) mod member;
mod verify;
mod churn;

use std::io::{IsTerminal as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use comfy_table::{CellAlignment, Table};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use self::input::{Input, Survey};
use self::verify::{Expected, verify};
use crate::args::{DemoArgs, GuaranteeArg, TopologyArg};
use crate::crew::{Crew, Ports, ShowLine};
use crate::failure::Failure;
use crate::group;
use crate::orders::{self, DemoReport, DemoTask, Said, Seat, Task};
use crate::text;

pub(crate) use churn::member as churn_member;

/// What the demo showed; `--json` prints it.
#[derive(Debug, Serialize)]
struct Shown {
    demo: &'static str,
    input: String,
    lines: u64,
    members: u32,
    fabric: String,
    guarantee: GuaranteeArg,
    /// All logs are the same bytes.
    identical: bool,
    /// Every line of every member is in every log exactly once, in the member's order.
    complete: bool,
    /// Messages in each log.
    messages: u64,
    digest: String,
    out: PathBuf,
    seconds: f64,
    per_member: Vec<MemberRow>,
}

#[derive(Debug, Serialize)]
struct MemberRow {
    id: u32,
    #[serde(flatten)]
    report: DemoReport,
    msgs_per_s: f64,
    log: PathBuf,
}

/// Runs the demo.
///
/// # Errors
/// Whatever keeps it from showing what it is there to show.
pub(crate) fn run(args: &DemoArgs, log: &str) -> Result<(), Failure> {
    args.check()?;
    let input = Input::open(args.input.as_deref())?;
    let survey = input.survey()?;
    let changes = args.crash + args.join > 0;
    if changes {
        churn::check(&input, &survey)?;
    }
    let out = directory(args.out.as_deref())?;
    let ever = args.members + args.join;
    let logs: Vec<PathBuf> = (1..=ever).map(|id| out.join(format!("member-{id}.log"))).collect();
    refuse_own_input(args.input.as_deref(), &logs)?;

    let board = Board::new(args, &survey);
    if changes {
        return churn::run(&churn::Stage { args, log, input, survey, out, logs }, &board);
    }
    let began = Instant::now();
    let reports = multicast(args, log, &input, &survey, &logs, &board);
    board.clear();
    let reports = reports?;
    let seconds = began.elapsed().as_secs_f64();

    let expected = Expected {
        input: &input,
        longest: survey.longest,
        members: args.members,
        total_order: args.guarantee != GuaranteeArg::Fifo,
    };
    let paths: Vec<&Path> = logs.iter().map(PathBuf::as_path).collect();
    let digests: Vec<String> = reports.iter().map(|report| report.digest.clone()).collect();
    let verdict = verify(&expected, &paths, &digests)?;
    let expected_records = survey.lines * u64::from(args.members);
    if verdict.records.iter().any(|records| *records != expected_records) {
        return Err(Failure::disagreement(
            format!("the logs hold {:?} messages; {expected_records} were to come", verdict.records),
            "if the input changed meanwhile run the demo again; else keep the logs and report it as a bug",
        ));
    }

    let shown = Shown {
        demo: "one order",
        input: input.name,
        lines: survey.lines,
        members: args.members,
        fabric: reports.first().map(|report| report.fabric.clone()).unwrap_or_default(),
        guarantee: args.guarantee,
        identical: verdict.identical,
        complete: true,
        messages: expected_records,
        digest: digests.first().cloned().unwrap_or_default(),
        out,
        seconds,
        per_member: (1..)
            .zip(reports)
            .zip(logs)
            .map(|((id, report), log)| MemberRow {
                id,
                msgs_per_s: text::as_f64(report.delivered) / report.seconds.max(1e-9),
                report,
                log,
            })
            .collect(),
    };
    text::print(&shown, args.json, |shown| format!("{}\n{}", table(shown), summary(shown)))
}

/// The directory for the logs: the user's, or a fresh one.
fn directory(asked: Option<&Path>) -> Result<PathBuf, Failure> {
    match asked {
        Some(path) => {
            std::fs::create_dir_all(path)
                .map_err(|cause| Failure::file("make the directory", path, cause))?;
            Ok(path.to_owned())
        }
        None => tempfile::Builder::new()
            .prefix("consort-demo-")
            .tempdir()
            .map(tempfile::TempDir::keep)
            .map_err(|cause| Failure::file("make a directory in", &std::env::temp_dir(), cause)),
    }
}

/// Members truncate their logs: the input must be none of them.
fn refuse_own_input(input: Option<&Path>, logs: &[PathBuf]) -> Result<(), Failure> {
    let identity = |path: &Path| std::fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
    let Some(input) = input.and_then(identity) else { return Ok(()) };
    match logs.iter().find(|log| identity(log) == Some(input)) {
        Some(log) => Err(Failure::usage(
            format!("{} is the input, and a member would write its log there", log.display()),
            "give another directory with --out",
        )),
        None => Ok(()),
    }
}

/// Runs the members until all have delivered everything and have left.
fn multicast(
    args: &DemoArgs,
    log: &str,
    input: &Input,
    survey: &Survey,
    logs: &[PathBuf],
    board: &Board,
) -> Result<Vec<DemoReport>, Failure> {
    let ports = Ports::reserve(args.members)?;
    let descriptor = input.bequeath()?;
    let mut crew = Crew::new(board.show());
    for ((id, _), path) in ports.numbered().into_iter().zip(logs) {
        let seat = Seat {
            id,
            addresses: ports.numbered(),
            fabric: args.fabric,
            guarantee: args.guarantee,
            topology: TopologyArg::Direct,
            wait: args.wait,
            ring_bytes: group::ring_bytes(survey.longest, group::LEAST_RING),
            idle_groups: 0,
        };
        let task = DemoTask { seat, input: descriptor, log: path.clone(), longest: survey.longest };
        crew.start(&format!("member {id}"), log, &Task::Demo(task))?;
    }
    let mut reports: Vec<Option<DemoReport>> = logs.iter().map(|_| None).collect();
    let mut delivered = vec![0; logs.len()];
    while reports.iter().any(Option::is_none) {
        match crew.hear(args.stall)? {
            Some((index, Said::Done { report })) => {
                let report: DemoReport = orders::report(report)?;
                board.at(index, report.delivered);
                reports[index] = Some(report);
            }
            Some((index, Said::Progress { delivered: so_far })) => {
                delivered[index] = so_far;
                board.at(index, so_far);
            }
            Some((index, Said::Waiting { for_whom })) => board.waiting(index, &for_whom),
            Some((index, Said::Ready)) => board.waiting(index, &[]),
            Some(_) => {}
            None => return Err(stalled(args.stall, &delivered, &reports)),
        }
    }
    crew.close(group::CLOSE_WITHIN + Duration::from_secs(5))?;
    Ok(reports.into_iter().flatten().collect())
}

fn stalled(after: Duration, delivered: &[u64], reports: &[Option<DemoReport>]) -> Failure {
    let each: Vec<String> = (1..)
        .zip(delivered.iter().zip(reports))
        .map(|(id, (count, report))| {
            let done = if report.is_some() { ", done" } else { "" };
            format!("member {id}: {count} delivered{done}")
        })
        .collect();
    Failure::lost(
        format!("nothing was delivered for {after:?} ({})", each.join("; ")),
        "if the machine is very slow give a longer --stall; else run it again with --log debug and report what it shows",
    )
}

/// A bar for each member, on a terminal; silence elsewhere.
struct Board {
    all: MultiProgress,
    bars: Vec<ProgressBar>,
}

impl Board {
    fn new(args: &DemoArgs, survey: &Survey) -> Self {
        let visible = std::io::stderr().is_terminal() && !args.json;
        let target = if visible { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let all = MultiProgress::with_draw_target(target);
        let style = ProgressStyle::with_template("{prefix} {bar:40} {percent:>3}% {per_sec:>14}  {msg}")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        let bars = (1..=args.members + args.join)
            .map(|id| {
                let bar = ProgressBar::new(survey.lines * u64::from(args.members)).with_style(style.clone());
                let bar = all.add(bar.with_prefix(format!("member {id}")));
                bar.tick();
                bar
            })
            .collect();
        Self { all, bars }
    }

    fn at(&self, index: usize, delivered: u64) {
        self.bars[index].set_position(delivered);
    }

    fn waiting(&self, index: usize, for_whom: &[u32]) {
        let names: Vec<String> = for_whom.iter().map(u32::to_string).collect();
        let message =
            if names.is_empty() { String::new() } else { format!("waiting for {}", names.join(", ")) };
        self.note(index, message);
    }

    fn note(&self, index: usize, message: impl Into<std::borrow::Cow<'static, str>>) {
        self.bars[index].set_message(message);
    }

    /// Prints a member's log line without disturbing the bars.
    fn show(&self) -> ShowLine {
        let all = self.all.clone();
        Arc::new(move |line| {
            all.suspend(|| {
                let _ = writeln!(std::io::stderr(), "{line}");
            });
        })
    }

    fn clear(&self) {
        for bar in &self.bars {
            bar.finish_and_clear();
        }
        // Nothing depends on whether the terminal took it.
        let _ = self.all.clear();
    }
}

fn table(shown: &Shown) -> Table {
    let mut table = Table::new();
    table.load_preset(comfy_table::presets::UTF8_FULL_CONDENSED);
    table.set_header(["member", "sent", "delivered", "digest of the sequence", "messages/s", "p50", "p99"]);
    for row in &shown.per_member {
        table.add_row([
            row.id.to_string(),
            text::count(row.report.sent),
            text::count(row.report.delivered),
            row.report.digest.chars().take(16).collect(),
            text::rate(row.msgs_per_s),
            text::micros(row.report.p50_us),
            text::micros(row.report.p99_us),
        ]);
    }
    for column in [1, 2, 4, 5, 6] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn summary(shown: &Shown) -> String {
    let Shown { members, lines, messages, fabric, guarantee, .. } = shown;
    let claim = if shown.identical {
        format!(
            "Identical and complete: {members} members delivered the same {} messages in the same order",
            text::count(*messages)
        )
    } else {
        format!(
            "Complete: {members} members delivered the same {} messages, each sender's in its order (fifo promises no more)",
            text::count(*messages)
        )
    };
    format!(
        "{claim}\n({} lines of {} from each; {guarantee} over {fabric}; {:.2} s in all).\nDigest {}\nLogs in {}",
        text::count(*lines),
        shown.input,
        shown.seconds,
        shown.digest,
        shown.out.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(identical: bool) -> Shown {
        let report = DemoReport {
            sent: 2_000,
            delivered: 6_000,
            digest: "0123456789abcdef0123".to_string(),
            seconds: 0.5,
            p50_us: 12.0,
            p99_us: 3_400.0,
            fabric: "shm".to_string(),
        };
        let row = |id| MemberRow {
            id,
            report: report.clone(),
            msgs_per_s: 12_000.0,
            log: PathBuf::from(format!("/x/member-{id}.log")),
        };
        Shown {
            demo: "one order",
            input: "in".to_string(),
            lines: 2_000,
            members: 3,
            fabric: "shm".to_string(),
            guarantee: GuaranteeArg::Atomic,
            identical,
            complete: true,
            messages: 6_000,
            digest: report.digest.clone(),
            out: PathBuf::from("/x"),
            seconds: 1.0,
            per_member: vec![row(1), row(2), row(3)],
        }
    }

    #[test]
    fn the_table_has_a_row_per_member() {
        let text = table(&shown(true)).to_string();
        for cell in ["2,000", "6,000", "0123456789abcdef ", "12.0 k", "12.0 µs", "3.40 ms"] {
            assert_eq!(text.matches(cell).count(), 3, "{cell} in\n{text}");
        }
        assert!(summary(&shown(true)).contains("Identical and complete"));
        assert!(!summary(&shown(false)).contains("Identical"));
    }

    #[test]
    fn json_has_the_members_fields_beside_each_other() {
        let value = serde_json::to_value(shown(true)).unwrap();
        assert_eq!(value["per_member"][2]["id"], 3);
        assert_eq!(value["per_member"][2]["digest"], value["digest"]);
        assert_eq!((&value["identical"], &value["guarantee"]), (&true.into(), &"atomic".into()));
    }

    #[test]
    fn the_input_is_never_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("member-1.log");
        assert!(refuse_own_input(Some(&log), std::slice::from_ref(&log)).is_ok(), "it isn't there");
        std::fs::write(&log, "precious").unwrap();
        let refused = refuse_own_input(Some(&log), std::slice::from_ref(&log)).unwrap_err();
        assert!(refused.code() == 2 && refused.remedy().contains("--out"));
    }
}
