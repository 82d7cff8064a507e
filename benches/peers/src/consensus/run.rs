//! Starts three member processes and makes figures of what they say.

use std::net::{SocketAddr, TcpListener};
use std::process::Command;

use super::Library;
use super::member::{Outcome, Task, take_part};
use crate::child::Talker;
use crate::failure::Failure;
use crate::figures::{Figures, as_f64};
use crate::plan::{LARGE, MEMBERS, Plan, SMALL};
use crate::process::{Orders, say};

/// Windows that are tried; what is best counts. One too small starves the followers, one too large leaves the cache.
const SMALL_WINDOWS: [u64; 2] = [256, 1024];
const LARGE_WINDOWS: [u64; 2] = [32, 256];

/// Measures a library.
///
/// # Errors
/// A process doesn't start or doesn't come to the end.
pub(crate) fn measure(library: Library, plan: &Plan) -> Result<Figures, Failure> {
    let one = |size, window| group(library, size, window, plan);
    let latency = one(SMALL, 1)?.latency_us;
    let best = |size, windows: [u64; 2]| -> Result<f64, Failure> {
        windows.iter().try_fold(0.0, |best: f64, window| Ok(best.max(one(size, *window)?.msgs_per_s)))
    };
    Ok(Figures {
        p50_us: latency.map(|it| it.p50),
        p99_us: latency.map(|it| it.p99),
        small_per_s: Some(best(SMALL, SMALL_WINDOWS)?),
        large_mb_per_s: Some(best(LARGE, LARGE_WINDOWS)? * as_f64(LARGE as u64) / 1e6),
    })
}

/// Runs three processes once.
fn group(library: Library, size: usize, window: u64, plan: &Plan) -> Result<super::member::Led, Failure> {
    let exe = std::env::current_exe()
        .map_err(|cause| Failure::io("find this program's own file", cause, "start it by its path"))?;
    let mut members = Vec::new();
    for me in 1..=MEMBERS as u64 {
        let task =
            Task { library, me, size, window, warmup: plan.warmup, duration: plan.duration, most: u64::MAX };
        let mut command = Command::new(&exe);
        let mut member = Talker::start(format!("member {me}"), command.arg("member"), plan.patience())?;
        member.tell(&task)?;
        members.push(member);
    }
    let addresses: Vec<SocketAddr> = members.iter_mut().map(Talker::hear).collect::<Result<_, _>>()?;
    for member in &mut members {
        member.tell(&addresses)?;
    }
    let outcomes: Vec<Outcome> = members.iter_mut().map(Talker::hear).collect::<Result<_, _>>()?;
    if outcomes.iter().any(|outcome| outcome.applied != outcomes[0].applied) {
        return Err(Failure::bug(format!("the members applied different logs: {outcomes:?}")));
    }
    outcomes.iter().find_map(|outcome| outcome.led).ok_or_else(|| Failure::bug("nobody led the group"))
}

/// The process of one member: hears its task and the others' addresses on standard input, and says its own address and how it
/// went on standard output.
///
/// # Errors
/// As those of [`take_part`].
pub(crate) fn process() -> Result<(), Failure> {
    let mut orders = Orders::begin();
    let task: Task = orders.next()?;
    let listener = TcpListener::bind("127.0.0.1:0").map_err(|cause| Failure::socket("listen", cause))?;
    let address = listener.local_addr().map_err(|cause| Failure::socket("listen", cause))?;
    say(&address)?;
    let addresses: Vec<SocketAddr> = orders.next()?;
    say(&take_part(&task, &listener, &addresses)?)
}
