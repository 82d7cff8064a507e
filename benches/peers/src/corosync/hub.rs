//! The process that joins the hosts: a bridge in a network namespace of its own, and what tells the hosts what to do.

use std::process::Command;
use std::time::Duration;

use super::{Outcome, Phase, Said, Task, apart, heard, said};
use crate::child::{Talker, finished};
use crate::failure::Failure;
use crate::figures::{Figures, as_f64};
use crate::plan::{LARGE, MEMBERS, SMALL};
use crate::process::{Orders, say};

/// Runs `ip` with these words.
pub(super) fn ip(words: &str) -> Result<(), Failure> {
    run("ip", words)
}

/// Runs a program of the system with these words.
pub(super) fn run(program: &str, words: &str) -> Result<(), Failure> {
    let mut command = Command::new(crate::servers::program(program)?);
    finished(&format!("{program} {words}"), command.args(words.split(' ')), Duration::from_secs(30)).map(drop)
}

/// The process: hears a task, says how it went.
///
/// # Errors
/// Nobody talks with it. Other failures are said.
pub(crate) fn process() -> Result<(), Failure> {
    let task: Task = Orders::begin().next()?;
    say(&said(measure(&task)))
}

fn measure(task: &Task) -> Result<Figures, Failure> {
    ip("link set lo up")?;
    ip("link add br0 type bridge")?;
    ip("link set br0 up")?;
    let mut hosts = Vec::new();
    for number in 1..=MEMBERS {
        let mut host = Talker::start(format!("host {number}"), &mut apart("corosync-host")?, task.patience)?;
        // It says something once it is in its namespace.
        heard(host.hear::<Said<()>>()?)?;
        ip(&format!("link add v{number} type veth peer name eth0 netns {}", host.pid()))?;
        if task.setting.tuned {
            ip(&format!("link set v{number} mtu 9000"))?;
        }
        ip(&format!("link set v{number} master br0 up"))?;
        host.tell(&(number, task))?;
        hosts.push(host);
    }
    for host in &mut hosts {
        heard(host.hear::<Said<()>>()?)?;
    }
    let mut number = 0;
    let mut phase = |size, one_outstanding| -> Result<Outcome, Failure> {
        number += 1;
        let phase = Phase { number, size, one_outstanding, warmup: task.warmup, duration: task.duration };
        for host in &mut hosts {
            host.tell(&phase)?;
        }
        let outcomes = hosts.iter_mut().map(|host| heard(host.hear::<Said<Outcome>>()?));
        let outcomes: Vec<Outcome> = outcomes.collect::<Result<_, _>>()?;
        Ok(outcomes[0])
    };
    let latency = phase(SMALL, true)?.latency;
    let small = phase(SMALL, false)?.msgs_per_s;
    let large = phase(LARGE, false)?.msgs_per_s;
    Ok(Figures {
        p50_us: latency.map(|it| it.p50),
        p99_us: latency.map(|it| it.p99),
        small_per_s: Some(small),
        large_mb_per_s: Some(large * as_f64(LARGE as u64) / 1e6),
    })
}
