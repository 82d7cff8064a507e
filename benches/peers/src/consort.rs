//! Consort itself, measured by its own command, and the bare floor that the same command measures beside it.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

use crate::child::{finished, tied};
use crate::failure::Failure;
use crate::figures::{Figures, Quantiles};
use crate::plan::{LARGE, MEMBERS, Plan, SMALL};
use crate::promise::{Against, Promise};

pub(crate) const VOLATILE: Promise = Promise {
    order: "total, of all members' messages",
    done: "delivered: all 3 members have it; latency with 1 sender, throughput with 3, each in a member",
    durability: "memory of all members",
    fabric: "TCP, loopback",
};

pub(crate) const DURABLE: Promise = Promise {
    order: "total, of all members' messages",
    done: "delivered: all 3 members have flushed it; latency with 1 sender, throughput with 3",
    durability: "fdatasync at all members before delivery",
    fabric: "TCP, loopback; logs on one disk",
};

pub(crate) const ONE_SENDER: Promise = Promise {
    done: "delivered: all 3 members have it; 1 sender, in a member, as with a leader's client",
    ..VOLATILE
};

pub(crate) const FLOOR: Promise = Promise {
    order: "none",
    done: "latency: a message to each and their answers; throughput: bare streams, large writes, 3 senders",
    durability: "none",
    fabric: "TCP, loopback",
};

/// What `consort bench latency` and `throughput` say, as far as it is used.
#[derive(Debug, Deserialize)]
struct Load {
    fabric: String,
    msgs_per_s: f64,
    gb_per_s: f64,
    latency_us: Quantiles,
    floor: LoadFloor,
}

#[derive(Debug, Deserialize)]
struct LoadFloor {
    p50_us: f64,
    p99_us: f64,
    msgs_per_s: f64,
    gb_per_s: f64,
}

/// What `consort bench durable` says, as far as it is used.
#[derive(Debug, Deserialize)]
struct Durable {
    throughput: Vec<DurableSize>,
    latency: DurableLatency,
}

#[derive(Debug, Deserialize)]
struct DurableSize {
    size: usize,
    msgs_per_s: f64,
    mb_per_s: f64,
}

#[derive(Debug, Deserialize)]
struct DurableLatency {
    p50_us: f64,
    p99_us: f64,
}

/// A run of Consort, with the floor where there is one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reference {
    pub(crate) figures: Figures,
    pub(crate) floor: Option<Figures>,
}

/// Measures what a peer is set beside.
///
/// # Errors
/// The command fails, or says something else than expected.
pub(crate) fn reference(against: Against, plan: &Plan) -> Result<Reference, Failure> {
    match against {
        Against::Volatile => volatile(plan, MEMBERS),
        Against::Durable => durable(plan),
    }
}

/// Measures the group with one sender throughout.
///
/// # Errors
/// As those of [`reference`].
pub(crate) fn one_sender(plan: &Plan) -> Result<Figures, Failure> {
    volatile(plan, 1).map(|reference| reference.figures)
}

fn volatile(plan: &Plan, senders: usize) -> Result<Reference, Failure> {
    let load = |bench: &str, senders: usize, size: usize| {
        let (senders, size) = (senders.to_string(), size.to_string());
        let run: Load = ask(plan, bench, &["--fabric", "tcp", "--senders", &senders, "--size", &size])?;
        if run.fabric == "tcp" { Ok(run) } else { Err(Failure::bug("consort measured another fabric")) }
    };
    let latency = load("latency", 1, SMALL)?;
    let small = load("throughput", senders, SMALL)?;
    let large = load("throughput", senders, LARGE)?;
    Ok(Reference {
        figures: Figures {
            p50_us: Some(latency.latency_us.p50),
            p99_us: Some(latency.latency_us.p99),
            small_per_s: Some(small.msgs_per_s),
            large_mb_per_s: Some(large.gb_per_s * 1e3),
        },
        floor: Some(Figures {
            p50_us: Some(latency.floor.p50_us),
            p99_us: Some(latency.floor.p99_us),
            small_per_s: Some(small.floor.msgs_per_s),
            large_mb_per_s: Some(large.floor.gb_per_s * 1e3),
        }),
    })
}

fn durable(plan: &Plan) -> Result<Reference, Failure> {
    let sizes = format!("{SMALL},{LARGE}");
    let disk = plan.disk.to_string_lossy();
    let run: Result<Durable, Failure> =
        ask(plan, "durable", &["--fabric", "tcp", "--sizes", &sizes, "--dir", &disk]);
    let run = run.map_err(|failure| {
        Failure::run(
            failure.to_string(),
            "give a directory on a disk with --disk, not on a file system that is memory",
        )
    })?;
    let of = |size| run.throughput.iter().find(|it| it.size == size);
    Ok(Reference {
        figures: Figures {
            p50_us: Some(run.latency.p50_us),
            p99_us: Some(run.latency.p99_us),
            small_per_s: of(SMALL).map(|it| it.msgs_per_s),
            large_mb_per_s: of(LARGE).map(|it| it.mb_per_s),
        },
        floor: None,
    })
}

/// Runs `consort bench` once.
fn ask<T: for<'a> Deserialize<'a>>(plan: &Plan, bench: &str, args: &[&str]) -> Result<T, Failure> {
    let millis = |time: std::time::Duration| format!("{}ms", time.as_millis());
    let mut command = tied(&plan.consort);
    command.args(["bench", bench, "--json", "--runs", "1", "--members", &MEMBERS.to_string()]);
    command.args(["--duration", &millis(plan.duration), "--warmup", &millis(plan.warmup)]).args(args);
    // `bench durable` has several parts of this length, each with groups of its own.
    let output = finished(&format!("consort bench {bench}"), &mut command, plan.patience() * 8)?;
    serde_json::from_slice(&output.stdout).map_err(|cause| {
        Failure::run(
            format!("consort bench {bench} says something else than expected: {cause}"),
            "build the command from this tree: cargo build --release -p consort-cli",
        )
    })
}

/// The command's version.
///
/// # Errors
/// It doesn't run.
pub(crate) fn version(consort: &Path) -> Result<String, Failure> {
    let patience = std::time::Duration::from_secs(30);
    let output = finished("consort", Command::new(consort).arg("--version"), patience)?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().trim_start_matches("consort ").to_owned())
}

/// Finds the command: beside this one, where cargo puts it, or in the path.
///
/// # Errors
/// It is nowhere.
pub(crate) fn find(named: Option<&Path>) -> Result<PathBuf, Failure> {
    if let Some(named) = named {
        return if named.is_file() {
            Ok(named.to_owned())
        } else {
            Err(Failure::usage(
                format!("there is no command {}", named.display()),
                "build it with `cargo build --release -p consort-cli` and give its path to --consort",
            ))
        };
    }
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join("consort")));
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let built = target.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let candidates = beside.into_iter().chain([built.join("release/consort")]);
    candidates
        .chain(std::env::split_paths(&path).map(|it| it.join("consort")))
        .find(|it| it.is_file())
        .ok_or_else(|| {
            Failure::usage(
                "the command `consort` was not found",
                "build it with `cargo build --release -p consort-cli`, or say where it is with --consort",
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_command_says_is_understood() {
        let said = r#"{"bench":"latency","fabric":"tcp","members":3,"msgs_per_s":2.0,"gb_per_s":0.5,
            "latency_us":{"p50":1.0,"p90":2.0,"p99":3.0,"p999":4.0,"max":5.0,"mean":1.5},
            "floor":{"latency":"x","p50_us":0.5,"p99_us":0.7,"msgs_per_s":9.0,"gb_per_s":1.0}}"#;
        let load: Load = serde_json::from_str(said).unwrap();
        assert_eq!((load.latency_us.p99, load.floor.msgs_per_s), (3.0, 9.0));
        let said = r#"{"throughput":[{"size":64,"msgs_per_s":7.0,"mb_per_s":1.0,"runs":[]}],
            "latency":{"size":64,"p50_us":6.0,"p99_us":8.0}}"#;
        let durable: Durable = serde_json::from_str(said).unwrap();
        assert_eq!((durable.throughput[0].size, durable.latency.p99_us), (64, 8.0));
    }

    #[test]
    fn a_command_that_is_not_there_is_bad_usage() {
        let refused = find(Some(Path::new("/nowhere/consort"))).unwrap_err();
        assert!(matches!(refused, Failure::Usage { .. }) && refused.remedy().contains("cargo build"));
    }
}
