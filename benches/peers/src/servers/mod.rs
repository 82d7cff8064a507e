//! Systems with servers of their own, three of each on loopback, and a client that speaks to the leader: [`nats`] and [`etcd`].
//!
//! The client is one thread, with the system's well-kept Rust library: requests and their answers are what is counted, so that nobody
//! has to be notified of a message, which is less than Consort does. It keeps so many requests outstanding; the best window counts.

pub(crate) mod etcd;
pub(crate) mod nats;

use std::future::Future;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;

use crate::child::{Server, finished};
use crate::failure::Failure;
use crate::figures::{Figures, Latencies, Quantiles, as_f64};
use crate::plan::{LARGE, Plan, SMALL};

/// Windows that are tried.
const SMALL_WINDOWS: [usize; 2] = [256, 1024];
const LARGE_WINDOWS: [usize; 2] = [32, 256];

/// How long servers may take to form a cluster.
const START: Duration = Duration::from_secs(30);

/// Between two looks whether they have.
const LOOK: Duration = Duration::from_millis(100);

/// Where a program is. Debian keeps some out of a user's path.
///
/// # Errors
/// It is nowhere.
pub(crate) fn program(name: &str) -> Result<PathBuf, Failure> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    directories.map(|it| it.join(name)).find(|it| it.is_file()).ok_or_else(|| {
        Failure::run(
            format!("{name} isn't installed"),
            "run scripts/peers, which installs what the peers need",
        )
    })
}

/// What a program says of its version: the first word of its first line that begins with a digit, or with v and a digit.
///
/// # Errors
/// It isn't installed, or fails.
pub(crate) fn version(name: &str, argument: &str) -> Result<String, Failure> {
    let mut command = std::process::Command::new(program(name)?);
    let output = finished(name, command.arg(argument), START)?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let words = said.split(|c: char| c.is_whitespace() || c == '\'').map(|it| it.trim_start_matches('v'));
    Ok(words.into_iter().find(|it| it.starts_with(|c: char| c.is_ascii_digit())).unwrap_or("?").to_owned())
}

/// Ports that are free now. Somebody may take one before a server does: that run fails, and says so.
fn ports<const N: usize>() -> Result<[u16; N], Failure> {
    let mut held = Vec::new();
    let mut ports = [0; N];
    for port in &mut ports {
        let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
        let socket = socket.map_err(|cause| Failure::socket("find a free port", cause))?;
        *port = socket.local_addr().map_err(|cause| Failure::socket("find a free port", cause))?.port();
        held.push(socket);
    }
    Ok(ports)
}

/// Tries until it succeeds, the servers are no more, or the time for it is up.
async fn until_ready<T, F: Future<Output = Result<T, Failure>>>(
    servers: &mut [Server],
    attempt: impl Fn() -> F,
) -> Result<T, Failure> {
    let until = Instant::now() + START;
    loop {
        let failure = match tokio::time::timeout(START, attempt()).await {
            Ok(Ok(done)) => return Ok(done),
            Ok(Err(failure)) => failure,
            Err(_) => Failure::run("no answer", "try again"),
        };
        for server in &mut *servers {
            server.runs()?;
        }
        if Instant::now() > until {
            return Err(Failure::run(
                format!("the servers did not form a cluster in {} s: {failure}", START.as_secs()),
                "run it again, on a machine with less to do",
            ));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Runs a client in this thread.
fn in_runtime<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    // One thread: two would wake each other for every message.
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|cause| Failure::io("start the client", cause, "see that memory and files are left"))?
        .block_on(work)
}

/// The latency of single requests and the throughput of many. `request` sends one of so many bytes, with a number.
async fn measure<F: Future<Output = Result<(), Failure>>>(
    plan: &Plan,
    request: impl Fn(usize, u64) -> F,
) -> Result<Figures, Failure> {
    let one = closed_loop(plan, 1, |number| request(SMALL, number)).await?;
    let (mut small, mut large) = (0.0_f64, 0.0_f64);
    for window in SMALL_WINDOWS {
        small = small.max(closed_loop(plan, window, |number| request(SMALL, number)).await?.per_s);
    }
    for window in LARGE_WINDOWS {
        large = large.max(closed_loop(plan, window, |number| request(LARGE, number)).await?.per_s);
    }
    Ok(Figures {
        p50_us: Some(one.latency.p50),
        p99_us: Some(one.latency.p99),
        small_per_s: Some(small),
        large_mb_per_s: Some(large * as_f64(LARGE as u64) / 1e6),
    })
}

struct Looped {
    latency: Quantiles,
    per_s: f64,
}

/// Keeps so many requests outstanding until the time is up.
async fn closed_loop<F: Future<Output = Result<(), Failure>>>(
    plan: &Plan,
    window: usize,
    request: impl Fn(u64) -> F,
) -> Result<Looped, Failure> {
    let timed = async |number| {
        let sent = Instant::now();
        request(number).await?;
        Ok::<_, Failure>(sent.elapsed())
    };
    let mut latencies = Latencies::new()?;
    let mut outstanding = FuturesUnordered::new();
    let mut number = 0;
    while outstanding.len() < window {
        outstanding.push(timed(number));
        number += 1;
    }
    let from = Instant::now() + plan.warmup;
    let (mut first, mut done) = (None, 0_u64);
    while let Some(latency) = outstanding.next().await {
        let latency = latency?;
        done += 1;
        let now = Instant::now();
        match first {
            None if now >= from => first = Some((now, done)),
            None => {}
            Some((since, before)) => {
                latencies.record(latency);
                if now >= since + plan.duration {
                    // What is under way is answered before the next part begins.
                    while outstanding.next().await.is_some() {}
                    let per_s = as_f64(done - before) / (now - since).as_secs_f64().max(1e-9);
                    return Ok(Looped { latency: latencies.quantiles(), per_s });
                }
            }
        }
        outstanding.push(timed(number));
        number += 1;
    }
    Err(Failure::bug("a loop without requests"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_keeps_its_window_and_counts_what_was_answered() {
        let plan = Plan {
            warmup: Duration::from_millis(5),
            duration: Duration::from_millis(50),
            consort: PathBuf::new(),
            disk: PathBuf::new(),
            memory: PathBuf::new(),
        };
        let (running, most) = (std::cell::Cell::new(0), std::cell::Cell::new(0));
        let looped = in_runtime(closed_loop(&plan, 7, async |_| {
            running.set(running.get() + 1);
            most.set(most.get().max(running.get()));
            tokio::time::sleep(Duration::from_millis(1)).await;
            running.set(running.get() - 1);
            Ok(())
        }))
        .unwrap();
        assert_eq!((most.get(), running.get()), (7, 0));
        assert!(looped.per_s > 0.0 && looped.latency.p50 > 900.0);
    }

    #[test]
    fn what_is_not_there_says_how_to_get_it() {
        assert!(program("no-such-program-anywhere").unwrap_err().remedy().contains("scripts/peers"));
    }
}
