//! `consort bench failover`: how long a group stands still when a member dies.
//!
//! Members run under a steady load. One of them is killed (in turn the leader and each of the others), the survivors say what they saw, the victim is started anew and joins, and so on. *Detection* is from
//! the kill until the first survivor takes the victim for gone; *outage* is the longest time from one delivery to the next
//! at any survivor, from the kill to the first delivery in the view without the victim.
//!
//! Beside it stands what the machine itself takes to tell of a death: a bare process with as much memory as a member and a
//! connection to here is killed, and its connection ends here.
//!
//! If that is wanted, each half of the members is a group of its own, too, and the half without the victim says for how long
//! nothing was delivered there around the kill, and in an equally long time without one.

mod member;
mod prey;

use std::time::Duration;

use rustix::process::Signal;
use serde::Serialize;

use super::conduct::{Status, stderr_line};
use super::figures::nanoseconds;
use crate::args::FailoverArgs;
use crate::clock;
use crate::crew::{Crew, Ports};
use crate::failure::Failure;
use crate::group;
use crate::orders::{FailoverTask, Said, Seat, Survived, Task, Told};
use crate::text::{self, as_f64};

pub(crate) use member::run as member;
pub(crate) use prey::run as prey;

/// How long the whole group runs before the next kill.
const SETTLE: Duration = Duration::from_millis(200);

/// How long a group without the victim is watched after the view that has it no more: what the change did to it shows by then.
const AFTERMATH: Duration = Duration::from_millis(100);

/// How long survivors, or a member that joins, may take beside the bound on silence.
const PATIENCE: Duration = Duration::from_secs(30);

/// One failover.
#[derive(Debug, Serialize)]
struct Kill {
    victim: u32,
    detection_ms: f64,
    outage_ms: f64,
    machine_ms: f64,
    #[serde(flatten)]
    spared: Option<Spared>,
}

/// The longest times without a delivery in a group that the victim is no member of.
#[derive(Debug, Serialize)]
struct Spared {
    spared_ms: f64,
    /// In an equally long time without a failure.
    no_failure_ms: f64,
}

/// A distribution in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Milliseconds {
    pub(super) p50: f64,
    pub(super) p99: f64,
    pub(super) max: f64,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    bench: &'static str,
    pub(super) fabric: String,
    pub(super) members: u32,
    pub(super) kills: usize,
    /// Whether victims were stopped, so that only their silence told, and the bound on that.
    silent: bool,
    silence_ms: f64,
    pub(super) detection_ms: Milliseconds,
    pub(super) outage_ms: Milliseconds,
    /// From the kill of a bare process to the end of its connection.
    pub(super) machine_ms: Milliseconds,
    /// The longest time without a delivery in a group without the victim.
    #[serde(skip_serializing_if = "Option::is_none")]
    spared_ms: Option<Milliseconds>,
    #[serde(skip_serializing_if = "Option::is_none")]
    no_failure_ms: Option<Milliseconds>,
    runs: Vec<Kill>,
}

/// The group: who plays which member now.
struct Group<'a> {
    args: &'a FailoverArgs,
    log: &'a str,
    ports: Ports,
    crew: Crew,
    /// By member, from 1: its place in the crew.
    places: Vec<usize>,
    /// The members, in the order of the view: the first leads.
    view: Vec<u32>,
}

/// Measures.
///
/// # Errors
/// The group does not start, or does not survive.
pub(crate) fn run(args: &FailoverArgs, log: &str) -> Result<(), Failure> {
    args.check()?;
    let status = Status::new();
    let measured = report(args, log, &status);
    status.clear();
    text::print(&measured?, args.json, describe)
}

/// Measures, for whoever prints it.
///
/// # Errors
/// As [`run`].
pub(super) fn report(args: &FailoverArgs, log: &str, status: &Status) -> Result<Report, Failure> {
    let (fabric, runs) = measure(args, log, status)?;
    let of = |what: fn(&Kill) -> f64| milliseconds(runs.iter().map(what).collect());
    let beside = |what: fn(&Spared) -> f64| {
        let values: Vec<f64> = runs.iter().filter_map(|kill| kill.spared.as_ref()).map(what).collect();
        (!values.is_empty()).then(|| milliseconds(values))
    };
    Ok(Report {
        bench: "failover",
        fabric,
        members: args.members,
        kills: runs.len(),
        silent: args.silent,
        silence_ms: args.silence.as_secs_f64() * 1e3,
        detection_ms: of(|kill| kill.detection_ms),
        outage_ms: of(|kill| kill.outage_ms),
        machine_ms: of(|kill| kill.machine_ms),
        spared_ms: beside(|spared| spared.spared_ms),
        no_failure_ms: beside(|spared| spared.no_failure_ms),
        runs,
    })
}

/// All kills; and over what.
fn measure(args: &FailoverArgs, log: &str, status: &Status) -> Result<(String, Vec<Kill>), Failure> {
    status.show("the group starts");
    let mut group = Group::found(args, log)?;
    let mut fabric = String::new();
    let mut kills = Vec::new();
    for (number, place) in (1..=args.kills).zip((0..args.members as usize).cycle()) {
        let victim = group.view[place];
        status.show(&format!("kill {number} of {}: member {victim}", args.kills));
        group.pass_time(SETTLE)?;
        let (memory, at) = group.kill(victim)?;
        let survived = group.survivors(victim, at)?;
        fabric = survived.first().map(|it| it.fabric.clone()).unwrap_or_default();
        if args.spared {
            group.pass_time(AFTERMATH)?;
        }
        let until = clock::now();
        let machine_ms = ms(prey::hunt(memory, log)?);
        status.show(&format!("kill {number} of {}: member {victim} joins again", args.kills));
        group.start_anew(victim)?;
        kills.push(Kill {
            victim,
            detection_ms: detection(victim, at, &survived)?,
            outage_ms: survived.iter().map(|it| ms(it.outage)).fold(0.0, f64::max),
            machine_ms,
            spared: if args.spared { Some(group.spared(victim, (at, until))?) } else { None },
        });
    }
    group.crew.close(group::CLOSE_WITHIN + Duration::from_secs(5))?;
    Ok((fabric, kills))
}

/// From the kill until the first took the victim for gone.
fn detection(victim: u32, at: u64, survived: &[Survived]) -> Result<f64, Failure> {
    let first = survived.iter().filter_map(|it| it.detected).min();
    first.map(|first| ms(first.saturating_sub(at))).ok_or_else(|| {
        Failure::disagreement(
            format!("the group went on without member {victim}, and nobody took it for gone"),
            "this must not happen: report it as a bug",
        )
    })
}

impl<'a> Group<'a> {
    fn found(args: &'a FailoverArgs, log: &'a str) -> Result<Self, Failure> {
        let ports = Ports::reserve(args.members)?;
        let mut group =
            Self { args, log, ports, crew: Crew::new(stderr_line()), places: Vec::new(), view: Vec::new() };
        for id in 1..=args.members {
            group.start(id, false)?;
        }
        group.complete()?;
        Ok(group)
    }

    fn start(&mut self, id: u32, joins: bool) -> Result<(), Failure> {
        let seat = Seat::plain(id, self.ports.numbered(), self.args.fabric, group::LEAST_RING);
        let task =
            FailoverTask { seat, joins, silence: nanoseconds(self.args.silence), groups: self.halves() };
        let place = self.crew.start(&format!("member {id}"), self.log, &Task::Failover(task))?;
        let of = id as usize - 1;
        match self.places.get_mut(of) {
            Some(old) => *old = place,
            None => self.places.push(place),
        }
        Ok(())
    }

    /// The groups beside the main one.
    fn halves(&self) -> Vec<(String, Vec<u32>)> {
        let (half, all) = (self.args.members / 2, self.args.members);
        if !self.args.spared {
            return Vec::new();
        }
        vec![("lower".to_owned(), (1..=half).collect()), ("upper".to_owned(), (half + 1..=all).collect())]
    }

    fn place(&self, id: u32) -> usize {
        self.places[id as usize - 1]
    }

    fn id(&self, place: usize) -> Option<u32> {
        (1..).zip(&self.places).find(|(_, known)| **known == place).map(|(id, _)| id)
    }

    /// What the next member says.
    fn hear(&mut self, waits_for: &str) -> Result<(u32, Said), Failure> {
        let patience = self.args.silence * 4 + PATIENCE;
        loop {
            let heard = self.crew.hear(patience)?;
            let Some((place, said)) = heard else {
                return Err(Failure::lost(
                    format!("waited {patience:?} in vain for {waits_for}"),
                    "run it again with --log debug to see what the members wait for",
                ));
            };
            if let Some(id) = self.id(place) {
                return Ok((id, said));
            }
        }
    }

    /// Waits until all members are in one view and deliver in it.
    fn complete(&mut self) -> Result<(), Failure> {
        let all: Vec<u32> = (1..=self.args.members).collect();
        let mut there = vec![false; all.len()];
        while there.contains(&false) {
            if let (id, Said::View { members }) = self.hear("a view of all members")? {
                let mut sorted = members.clone();
                sorted.sort_unstable();
                there[id as usize - 1] = sorted == all;
                self.view = members;
            }
        }
        Ok(())
    }

    fn pass_time(&mut self, time: Duration) -> Result<(), Failure> {
        let until = clock::now() + nanoseconds(time);
        loop {
            let left = until.saturating_sub(clock::now());
            if left == 0 {
                return Ok(());
            }
            self.crew.hear(Duration::from_nanos(left))?;
        }
    }

    /// Kills, or only stops. Returns how much memory the victim had, and when it was.
    fn kill(&mut self, victim: u32) -> Result<(usize, u64), Failure> {
        let place = self.place(victim);
        let memory = prey::resident(self.crew.process(place));
        let signal = if self.args.silent { Signal::STOP } else { Signal::KILL };
        let at = clock::now();
        self.crew.signal(place, signal)?;
        Ok((memory, at))
    }

    /// What the others saw of it.
    fn survivors(&mut self, victim: u32, at: u64) -> Result<Vec<Survived>, Failure> {
        let mut survived = Vec::new();
        while survived.len() + 1 < self.places.len() {
            match self.hear("the survivors")? {
                // Only now, so that nothing disturbs them meanwhile.
                (id, Said::View { members }) if !members.contains(&victim) => {
                    self.crew.tell(self.place(id), &Told::Killed { node: victim, at })?;
                }
                (_, Said::Survived(report)) => survived.push(report),
                _ => {}
            }
        }
        Ok(survived)
    }

    /// The longest gaps in the half without the victim, in that time and in one as long from now on.
    fn spared(&mut self, victim: u32, (since, until): (u64, u64)) -> Result<Spared, Failure> {
        self.pass_time(SETTLE)?;
        let (quiet, window) = (clock::now(), until - since);
        self.pass_time(Duration::from_nanos(window))?;
        let halves = self.halves().into_iter().map(|(_, members)| members);
        let spared: Vec<u32> = halves.filter(|half| !half.contains(&victim)).flatten().collect();
        for id in &spared {
            let windows = vec![(since, until), (quiet, quiet + window)];
            self.crew.tell(self.place(*id), &Told::Gaps { windows })?;
        }
        let mut gaps = Vec::new();
        while gaps.len() < spared.len() {
            if let (_, Said::Gaps { longest, .. }) = self.hear("the gaps of those who were spared")? {
                gaps.push(longest);
            }
        }
        let longest = |at: usize| ms(gaps.iter().filter_map(|gaps| gaps.get(at)).max().copied().unwrap_or(0));
        Ok(Spared { spared_ms: longest(0), no_failure_ms: longest(1) })
    }

    fn start_anew(&mut self, victim: u32) -> Result<(), Failure> {
        self.crew.end(self.place(victim))?;
        self.start(victim, true)?;
        self.complete()
    }
}

fn ms(nanoseconds: u64) -> f64 {
    as_f64(nanoseconds) / 1e6
}

/// Quantiles by the nearest rank.
fn milliseconds(mut values: Vec<f64>) -> Milliseconds {
    values.sort_by(f64::total_cmp);
    let at = |percent: usize| {
        let rank = (values.len() * percent).div_ceil(100).max(1);
        values.get(rank - 1).copied().unwrap_or_default()
    };
    Milliseconds { p50: at(50), p99: at(99), max: at(100) }
}

pub(super) fn describe(report: &Report) -> String {
    let Report { fabric, members, kills, .. } = report;
    let how = if report.silent {
        format!("stopped (taken for gone after {} ms of silence)", report.silence_ms)
    } else {
        "killed".to_owned()
    };
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::UTF8_FULL_CONDENSED);
    table.set_header(["ms", "p50", "p99", "max"]);
    for (name, of) in [
        ("detection", Some(report.detection_ms)),
        ("outage", Some(report.outage_ms)),
        ("spared: longest gap", report.spared_ms),
        ("spared: no failure", report.no_failure_ms),
        ("a bare process's end", Some(report.machine_ms)),
    ] {
        let Some(of) = of else { continue };
        let figures = [of.p50, of.p99, of.max].map(|value| format!("{value:.2}"));
        table.add_row(std::iter::once(name.to_owned()).chain(figures));
    }
    format!("failover: {members} members over {fabric}, {kills} {how}\n{table}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_there() {
        let of = |count: u32| milliseconds((1..=count).rev().map(f64::from).collect());
        assert_eq!(of(1), Milliseconds { p50: 1.0, p99: 1.0, max: 1.0 });
        assert_eq!(of(4), Milliseconds { p50: 2.0, p99: 4.0, max: 4.0 });
        assert_eq!(of(200), Milliseconds { p50: 100.0, p99: 198.0, max: 200.0 });
        assert_eq!(milliseconds(Vec::new()).max, 0.0);
    }
}
