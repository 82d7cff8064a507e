//! `consort demo --crash N --join N`: members are killed and others join while all send, and what is left is still one
//! sequence.
//!
//! The input may be small, and a crash after the last message shows nothing. So members send it at a pace, and again and again,
//! until everything was done to them that was to be done; then each comes to the end of the pass that it is in. What was
//! sent and what was delivered is judged as the plain demo judges it ([`mod@verify`]); how long deliveries stood still is
//! told by those who were there.

mod member;
mod verify;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use comfy_table::{CellAlignment, Table};
use rustix::process::Signal;
use serde::Serialize;

use self::verify::{Expected, Killed, Lived, Verdict};
use super::Board;
use super::input::{Input, Survey};
use crate::args::{DemoArgs, GuaranteeArg, TopologyArg};
use crate::clock;
use crate::crew::{Crew, Ports};
use crate::failure::Failure;
use crate::group;
use crate::orders::{self, ChurnReport, ChurnTask, Deed, Said, Seat, Task, Told, Upheaval};
use crate::text;

pub(crate) use member::run as member;

/// A pass over the input takes about so long, in nanoseconds, if the machine can.
const PASS: u64 = 1_500_000_000;

/// The slowest pace, in nanoseconds from line to line: an input of one line is sent a thousand times a second.
const SLOWEST: u64 = 1_000_000;

/// An input of fewer lines counts as one of so many where it is about how much is under way.
const SOME_LINES: u64 = 500;

/// What is delivered between two upheavals, for each member, at least.
const BETWEEN: u64 = 100;

/// What the demo has to play with.
pub(super) struct Stage<'a> {
    pub(super) args: &'a DemoArgs,
    pub(super) log: &'a str,
    pub(super) input: Input,
    pub(super) survey: Survey,
    pub(super) out: PathBuf,
    /// Of all that are ever members.
    pub(super) logs: Vec<PathBuf>,
}

/// What was shown; `--json` prints it.
#[derive(Debug, Serialize)]
struct Shown {
    demo: &'static str,
    input: String,
    lines: u64,
    members: u32,
    crash: u32,
    join: u32,
    fabric: String,
    guarantee: GuaranteeArg,
    /// The logs of all who were left are the same bytes, and those of the killed a beginning of them.
    identical: bool,
    /// Every line of every member that was left is in the logs, in its order, once for each time that it was sent.
    complete: bool,
    /// Messages in each log.
    messages: u64,
    digest: String,
    /// Lines a second, of each member.
    pace_per_s: f64,
    upheavals: Vec<Moment>,
    /// The longest time without a delivery before the first of them.
    calm_ms: f64,
    out: PathBuf,
    seconds: f64,
    per_member: Vec<MemberRow>,
}

/// One upheaval, and how long deliveries stood still.
#[derive(Debug, Serialize)]
struct Moment {
    deed: Deed,
    member: u32,
    still_ms: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Part {
    Stayed,
    Killed,
    Joined,
}

#[derive(Debug, Serialize)]
struct MemberRow {
    id: u32,
    part: Part,
    /// Of its messages, how many are in the sequence.
    sent: u64,
    /// How often it sent the input; of one that was killed it is not known.
    passes: Option<u64>,
    /// Records in its log, and how many of them came with another member's.
    records: Option<u64>,
    restored: Option<u64>,
    /// Of one that was killed: how much there is of its log.
    log_bytes: Option<u64>,
    digest: Option<String>,
    log: PathBuf,
}

/// Refuses an input with which nothing can be shown.
///
/// # Errors
/// It has no lines.
pub(super) fn check(input: &Input, survey: &Survey) -> Result<(), Failure> {
    if survey.lines > 0 {
        return Ok(());
    }
    Err(Failure::usage(
        format!("{} has no lines: there would be nothing under way when a member goes or comes", input.name),
        "give an --input with lines, or leave out --crash and --join",
    ))
}

/// Runs the demo.
///
/// # Errors
/// Whatever keeps it from showing what it is there to show.
pub(super) fn run(stage: &Stage<'_>, board: &Board) -> Result<(), Failure> {
    let began = Instant::now();
    let played = Group::found(stage, board).and_then(Group::play);
    board.clear();
    let (upheavals, reports) = played?;
    let seconds = began.elapsed().as_secs_f64();
    let verdict = judge(stage, &upheavals, &reports)?;
    let shown = shown(stage, &upheavals, &reports, &verdict, seconds)?;
    text::print(&shown, stage.args.json, |shown| {
        format!("{}\n{}\n{}", table(shown), moments(shown), summary(shown))
    })
}

fn interval(survey: &Survey) -> u64 {
    (PASS / survey.lines.max(1)).min(SLOWEST)
}

/// The group, as its parent sees it. Member n has place n - 1 in the crew, for it was the n-th to be started.
struct Group<'a> {
    stage: &'a Stage<'a>,
    board: &'a Board,
    crew: Crew,
    ports: Ports,
    descriptor: i32,
    /// Who is a member now, or is to be.
    present: Vec<u32>,
    /// By member: the newest view in which it has delivered something, and how much it has delivered.
    views: BTreeMap<u32, Vec<u32>>,
    delivered: BTreeMap<u32, u64>,
    reports: BTreeMap<u32, ChurnReport>,
    upheavals: Vec<Upheaval>,
}

/// What bounds a wait.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Bound {
    /// Something must be delivered now and then.
    Progress,
    /// It must be over in time.
    End,
}

impl<'a> Group<'a> {
    fn found(stage: &'a Stage<'a>, board: &'a Board) -> Result<Self, Failure> {
        let args = stage.args;
        let mut group = Self {
            stage,
            board,
            crew: Crew::new(board.show()),
            ports: Ports::reserve(args.members + args.join)?,
            descriptor: stage.input.bequeath()?,
            present: (1..=args.members).collect(),
            views: BTreeMap::new(),
            delivered: BTreeMap::new(),
            reports: BTreeMap::new(),
            upheavals: Vec::new(),
        };
        for id in 1..=args.members {
            group.start(id, false)?;
        }
        group.all_see("the first view")?;
        Ok(group)
    }

    fn start(&mut self, id: u32, joins: bool) -> Result<(), Failure> {
        let Stage { args, survey, logs, .. } = self.stage;
        let known =
            self.ports.numbered().into_iter().filter(|(it, _)| *it == id || self.present.contains(it));
        let seat = Seat {
            id,
            addresses: known.collect(),
            fabric: args.fabric,
            guarantee: args.guarantee,
            topology: TopologyArg::Direct,
            wait: args.wait,
            ring_bytes: group::ring_bytes(survey.longest, group::LEAST_RING),
            idle_groups: 0,
        };
        let task = Task::Churn(ChurnTask {
            seat,
            joins,
            input: self.descriptor,
            log: logs[place(id)].clone(),
            longest: survey.longest,
            interval: interval(survey),
        });
        self.crew.start(&format!("member {id}"), self.stage.log, &task)?;
        Ok(())
    }

    /// The whole of it. Returns what was done, and what those say who are left.
    fn play(mut self) -> Result<(Vec<Upheaval>, BTreeMap<u32, ChurnReport>), Failure> {
        let args = self.stage.args;
        let third = self.stage.survey.lines.max(SOME_LINES) * u64::from(args.members) / 3;
        self.delivers(third)?;
        for victim in 1..=args.crash {
            self.kill(victim)?;
        }
        for newcomer in args.members + 1..=args.members + args.join {
            self.add(newcomer)?;
        }
        let finish = Told::Finish { members: self.present.clone(), upheavals: self.upheavals.clone() };
        for id in &self.present {
            self.crew.tell(place(*id), &finish)?;
        }
        self.wait("the end of the sequence", Bound::Progress, |group| {
            group.reports.len() == group.present.len()
        })?;
        self.crew.close(group::CLOSE_WITHIN + Duration::from_secs(5))?;
        Ok((self.upheavals, self.reports))
    }

    fn kill(&mut self, victim: u32) -> Result<(), Failure> {
        self.upheavals.push(Upheaval { deed: Deed::Crash, member: victim, at: clock::now() });
        self.crew.signal(place(victim), Signal::KILL)?;
        self.crew.end(place(victim))?;
        self.present.retain(|id| *id != victim);
        self.board.note(place(victim), "killed");
        self.all_see(&format!("a view without member {victim}, which was killed"))?;
        self.delivers(self.least() + BETWEEN * self.size())
    }

    fn add(&mut self, newcomer: u32) -> Result<(), Failure> {
        let at = clock::now();
        self.start(newcomer, true)?;
        self.upheavals.push(Upheaval { deed: Deed::Join, member: newcomer, at });
        self.present.push(newcomer);
        self.all_see(&format!("a view with member {newcomer}, which joins"))?;
        self.delivers(self.least() + BETWEEN * self.size())
    }

    fn size(&self) -> u64 {
        self.present.iter().map(|_| 1).sum()
    }

    /// What all who are there have delivered.
    fn least(&self) -> u64 {
        let each = self.present.iter().map(|id| self.delivered.get(id).copied().unwrap_or(0));
        each.min().unwrap_or(0)
    }

    fn delivers(&mut self, much: u64) -> Result<(), Failure> {
        self.wait("deliveries", Bound::Progress, |group| group.least() >= much)
    }

    /// Waits until all who should be there have delivered something in the view of just these.
    fn all_see(&mut self, what: &str) -> Result<(), Failure> {
        self.wait(what, Bound::End, |group| {
            group.present.iter().all(|id| group.views.get(id) == Some(&group.present))
        })
    }

    fn wait(&mut self, what: &str, bound: Bound, done: impl Fn(&Self) -> bool) -> Result<(), Failure> {
        let stall = self.stage.args.stall;
        let mut until = Instant::now() + stall;
        while !done(self) {
            let left = until.saturating_duration_since(Instant::now());
            let heard = if left.is_zero() { None } else { self.crew.hear(left)? };
            let Some((index, said)) = heard else {
                return Err(Failure::lost(
                    format!("waited {stall:?} in vain for {what}"),
                    "if the machine is very slow give a longer --stall; else run it again with --log debug and report what it shows",
                ));
            };
            if self.take(index, said)? && bound == Bound::Progress {
                until = Instant::now() + stall;
            }
        }
        Ok(())
    }

    /// Takes down what a member says. Returns whether it has delivered more.
    fn take(&mut self, index: usize, said: Said) -> Result<bool, Failure> {
        let Some(id) = (1..).nth(index) else { return Ok(false) };
        match said {
            Said::Progress { delivered } => {
                self.delivered.insert(id, delivered);
                self.board.at(index, delivered);
                return Ok(true);
            }
            Said::View { members } => {
                self.board.waiting(index, &[]);
                self.views.insert(id, members);
            }
            Said::Waiting { for_whom } => self.board.waiting(index, &for_whom),
            Said::Done { report } => {
                let report: ChurnReport = orders::report(report)?;
                self.board.at(index, report.records);
                self.reports.insert(id, report);
            }
            _ => {}
        }
        Ok(false)
    }
}

fn place(id: u32) -> usize {
    id as usize - 1
}

/// Those who were left, and those who were killed.
fn judge(
    stage: &Stage<'_>,
    upheavals: &[Upheaval],
    reports: &BTreeMap<u32, ChurnReport>,
) -> Result<Verdict, Failure> {
    let log = |id: u32| stage.logs[place(id)].as_path();
    let lived: Vec<Lived<'_>> = reports
        .iter()
        .map(|(&member, report)| Lived {
            member,
            log: log(member),
            digest: &report.digest,
            passes: report.passes,
        })
        .collect();
    let killed = upheavals.iter().filter(|it| it.deed == Deed::Crash);
    let killed: Vec<Killed<'_>> =
        killed.map(|it| Killed { member: it.member, log: log(it.member) }).collect();
    let Survey { lines, longest, .. } = stage.survey;
    verify::verify(&Expected { input: &stage.input, lines, longest }, &lived, &killed)
}

fn shown(
    stage: &Stage<'_>,
    upheavals: &[Upheaval],
    reports: &BTreeMap<u32, ChurnReport>,
    verdict: &Verdict,
    seconds: f64,
) -> Result<Shown, Failure> {
    let ms = |nanoseconds: u64| text::as_f64(nanoseconds) / 1e6;
    let moment = |(at, upheaval): (usize, &Upheaval)| {
        let still = reports.values().filter_map(|report| *report.still.get(at)?).max();
        let Upheaval { deed, member, .. } = *upheaval;
        still.map(|still| Moment { deed, member, still_ms: ms(still) }).ok_or_else(|| {
            let what =
                format!("nobody delivered anything in a view that shows the {deed:?} of member {member}");
            Failure::disagreement(what, "this must not happen: report it as a bug")
        })
    };
    let founders = stage.args.members;
    let killed = upheavals.iter().filter(|it| it.deed == Deed::Crash).map(|it| it.member);
    let killed: BTreeMap<u32, u64> = killed.zip(verdict.killed.iter().copied()).collect();
    let row = |(id, log): (u32, &Path)| {
        let sent = verdict.sent.get(&id).copied().unwrap_or(0);
        let report = reports.get(&id);
        MemberRow {
            id,
            part: match report {
                None => Part::Killed,
                Some(_) if id > founders => Part::Joined,
                Some(_) => Part::Stayed,
            },
            sent,
            passes: report.map(|it| it.passes),
            records: report.map(|it| it.records),
            restored: report.map(|it| it.restored),
            log_bytes: killed.get(&id).copied(),
            digest: report.map(|it| it.digest.clone()),
            log: log.to_owned(),
        }
    };
    let first = reports.values().next();
    Ok(Shown {
        demo: "one order over crashes and joins",
        input: stage.input.name.clone(),
        lines: stage.survey.lines,
        members: founders,
        crash: stage.args.crash,
        join: stage.args.join,
        fabric: first.map(|it| it.fabric.clone()).unwrap_or_default(),
        guarantee: stage.args.guarantee,
        identical: true,
        complete: true,
        messages: verdict.records,
        digest: first.map(|it| it.digest.clone()).unwrap_or_default(),
        pace_per_s: 1e9 / text::as_f64(interval(&stage.survey).max(1)),
        upheavals: upheavals.iter().enumerate().map(moment).collect::<Result<_, _>>()?,
        calm_ms: ms(reports.values().map(|it| it.calm).max().unwrap_or(0)),
        out: stage.out.clone(),
        seconds,
        per_member: (1..).zip(stage.logs.iter().map(PathBuf::as_path)).map(row).collect(),
    })
}

fn table(shown: &Shown) -> Table {
    let mut table = Table::new();
    table.load_preset(comfy_table::presets::UTF8_FULL_CONDENSED);
    table.set_header([
        "member",
        "part",
        "sent",
        "in its log",
        "of these got when it joined",
        "digest of the sequence",
    ]);
    let count = |number: Option<u64>| number.map_or("–".to_owned(), text::count);
    for row in &shown.per_member {
        let (part, log, digest) = match (row.part, &row.digest) {
            (Part::Killed, _) => {
                let log = text::bytes(row.log_bytes.unwrap_or(0));
                ("killed", log, "a beginning of it".to_owned())
            }
            (part, digest) => {
                let part = if part == Part::Joined { "joined" } else { "stayed" };
                let digest = digest.iter().flat_map(|it| it.chars().take(16)).collect();
                (part, count(row.records), digest)
            }
        };
        let restored = count(row.restored.filter(|_| row.part == Part::Joined));
        table.add_row([row.id.to_string(), part.to_owned(), text::count(row.sent), log, restored, digest]);
    }
    for column in [2, 3, 4] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn moments(shown: &Shown) -> Table {
    let mut table = Table::new();
    table.load_preset(comfy_table::presets::UTF8_FULL_CONDENSED);
    table.set_header(["what happened", "stood still for at most"]);
    table.add_row(["nothing, before that".to_owned(), text::micros(shown.calm_ms * 1e3)]);
    for moment in &shown.upheavals {
        let what = match moment.deed {
            Deed::Crash => format!("member {} was killed", moment.member),
            Deed::Join => format!("member {} joined", moment.member),
        };
        table.add_row([what, text::micros(moment.still_ms * 1e3)]);
    }
    if let Some(column) = table.column_mut(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn summary(shown: &Shown) -> String {
    let Shown { members, crash, join, lines, messages, fabric, guarantee, .. } = shown;
    let left = members - crash + join;
    format!(
        "Identical and complete: the {left} members that were left delivered the same {} messages in the same order\n\
         ({members} founded the group, {crash} of them killed with kill -9, {join} joined; each sent the {} lines of {} at {} a second,\n\
         over and over until all of that was done, and to the end; {guarantee} over {fabric}; {:.2} s in all).\nDigest {}\nLogs in {}",
        text::count(*messages),
        text::count(*lines),
        shown.input,
        text::rate(shown.pace_per_s),
        shown.seconds,
        shown.digest,
        shown.out.display()
    )
}
