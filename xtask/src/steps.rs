//! The steps: what each runs, how long CI waits for it, and the command that repeats it.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crate::layers;
use crate::shell::{Tally, Trouble, Workspace, quiet, run, run_beside, succeeds};
use crate::tools;

/// Simulated runs in CI, of sessions alone.
pub(crate) const SIM_SEEDS: u64 = 20_000;

/// For so many runs of sessions alone there is one of whole nodes.
const RUNS_A_WHOLE: u64 = 20;

/// Seconds for each fuzz target in CI: enough to run the corpus and to see that the target still bites; the long runs are
/// made by hand.
pub(crate) const FUZZ_SECONDS: u64 = 8;

/// Seconds of a campaign of random faults; its short share is among the tests.
pub(crate) const CHAOS_SECONDS: u64 = 60;

/// Rounds of the campaign of kills; a few are among the tests.
pub(crate) const CRASH_ROUNDS: u64 = 500;

/// The crates that have a `fuzz/` directory of their own.
const FUZZED: [&str; 3] = ["dataplane", "hw", "control"];

/// One thing that CI does.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Fmt,
    Layers,
    Deny,
    Clippy,
    Docs,
    Test { filter: Option<String> },
    Sim(Sim),
    Chaos { seconds: u64, seed: Option<u64>, fabric: Option<String> },
    Crash { rounds: u64, seed: Option<u64> },
    Model { large: bool, filter: Option<String> },
    Loom,
    Miri,
    Fuzz { seconds: u64, target: Option<String> },
    BenchTest,
    Instructions { bless: bool },
    Valgrind,
    Verbs,
}

/// Which simulated runs.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Sim {
    /// The first so many seeds.
    Seeds(u64),
    /// This one.
    Seed(u64),
}

/// How a step ended, when it ended well or could not begin.
pub(crate) enum Done {
    /// It ran. What counts as one passed check where it has no tests.
    Passed(Tally),
    /// It can't be run here, and why.
    Skipped(String),
}

/// What came of a step, and what its tests said.
pub(crate) type Outcome = (Tally, Result<Done, Trouble>);

impl Step {
    /// The subcommand.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Fmt => "fmt",
            Self::Layers => "layers",
            Self::Deny => "deny",
            Self::Clippy => "clippy",
            Self::Docs => "docs",
            Self::Test { .. } => "test",
            Self::Sim(_) => "sim",
            Self::Chaos { .. } => "chaos",
            Self::Crash { .. } => "crash",
            Self::Model { .. } => "model",
            Self::Loom => "loom",
            Self::Miri => "miri",
            Self::Fuzz { .. } => "fuzz",
            Self::BenchTest => "bench-test",
            Self::Instructions { .. } => "instructions",
            Self::Valgrind => "valgrind",
            Self::Verbs => "verbs",
        }
    }

    /// The command line that runs this step again.
    pub(crate) fn again(&self) -> String {
        let mut line = format!("cargo xtask {}", self.name());
        match self {
            Self::Test { filter: Some(filter) } => line += &format!(" {filter}"),
            Self::Sim(Sim::Seeds(seeds)) => line += &format!(" --seeds {seeds}"),
            Self::Sim(Sim::Seed(seed)) => line += &format!(" --seed {seed}"),
            Self::Chaos { seconds, seed, fabric } => {
                line += &format!(" --seconds {seconds}");
                line += &seed.map(|seed| format!(" --seed {seed}")).unwrap_or_default();
                line += &fabric.as_ref().map(|fabric| format!(" --fabric {fabric}")).unwrap_or_default();
            }
            Self::Crash { rounds, seed } => {
                line += &format!(" --rounds {rounds}");
                line += &seed.map(|seed| format!(" --seed {seed}")).unwrap_or_default();
            }
            Self::Model { large, filter } => {
                line += if *large { " --large" } else { "" };
                if let Some(filter) = filter {
                    line += &format!(" {filter}");
                }
            }
            Self::Fuzz { seconds, target } => {
                line += &format!(" --seconds {seconds}");
                if let Some(target) = target {
                    line += &format!(" --target {target}");
                }
            }
            _ => {}
        }
        line
    }

    /// Runs it; each command of it for at most `limit`.
    pub(crate) fn run(&self, workspace: &Workspace, limit: Option<Duration>) -> Outcome {
        let plain = |command: Command| {
            let (tally, result) = run(command, limit);
            (tally, result.map(|()| Done::Passed(Tally { passed: 1, ..Tally::default() })))
        };
        match self {
            Self::Fmt => {
                let mut command = workspace.cargo();
                command.args(["fmt", "--all", "--check"]);
                plain(command)
            }
            Self::Layers => {
                let result = layers::check(workspace);
                (Tally::default(), result.map(|passed| Done::Passed(Tally { passed, ..Tally::default() })))
            }
            Self::Deny => match tools::DENY.ready(workspace) {
                Ok(deny) => {
                    let mut command = workspace.command(deny);
                    command.args(["--workspace", "check", "licenses", "bans", "sources"]);
                    plain(command)
                }
                Err(trouble) => (Tally::default(), Err(trouble)),
            },
            Self::Clippy => {
                let mut command = workspace.cargo();
                command.args(["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"]);
                plain(command)
            }
            Self::Docs => {
                let mut command = workspace.cargo();
                command
                    .args(["doc", "--workspace", "--no-deps", "--quiet"])
                    .env("RUSTDOCFLAGS", "-D warnings");
                plain(command)
            }
            Self::Test { filter } => {
                let mut command = workspace.tests();
                command.arg("--no-fail-fast").args(filter);
                counted(run(command, limit))
            }
            Self::Sim(which) => {
                let (mut sessions, mut nodes) = (workspace.tests(), workspace.tests());
                sessions.args(["--test", "all", "--", "sim"]);
                nodes.args(["--lib", "--", "whole"]);
                match which {
                    Sim::Seeds(seeds) => {
                        sessions.env("CONSORT_SIM_SEEDS", seeds.to_string());
                        nodes.env("SEEDS", seeds.div_ceil(RUNS_A_WHOLE).to_string());
                    }
                    Sim::Seed(seed) => {
                        sessions.env("CONSORT_SIM_SEED", seed.to_string()).arg("--nocapture");
                        nodes.env("SEED", seed.to_string()).arg("--nocapture");
                    }
                }
                let (mut tally, result) = counted(run(sessions, limit));
                if result.is_err() {
                    return (tally, result);
                }
                let (more, result) = counted(run(nodes, limit));
                tally += more;
                (tally, result.map(|_| Done::Passed(tally)))
            }
            Self::Chaos { seconds, seed, fabric } => {
                let mut command = workspace.cargo();
                command.args(["test", "-p", "consort-tests", "--test", "all", "--", "--exact"]);
                command.args(["chaos::campaign::campaign", "--ignored", "--nocapture"]);
                command.env("CONSORT_CHAOS_SECONDS", seconds.to_string());
                if let Some(seed) = seed {
                    command.env("CONSORT_CHAOS_SEED", seed.to_string());
                }
                if let Some(fabric) = fabric {
                    command.env("CONSORT_CHAOS_FABRIC", fabric);
                }
                counted(run(command, limit))
            }
            Self::Crash { rounds, seed } => {
                let mut command = workspace.cargo();
                command.args(["test", "-p", "consort-cli", "--test", "cli", "crash::", "--", "--nocapture"]);
                command.env("CONSORT_CRASH_ROUNDS", rounds.to_string());
                if let Some(seed) = seed {
                    command.env("CONSORT_CRASH_SEED", seed.to_string());
                }
                counted(run(command, limit))
            }
            Self::Model { large, filter } => {
                let mut command = workspace.tests();
                command.args(large.then_some("--release")).args(["--test", "all"]);
                command.arg(format!("model::model_{}", filter.as_deref().unwrap_or_default()));
                // One after the other: each takes all processors. What it found is said even where all is well.
                command.args(["--", "--nocapture", "--test-threads=1"]);
                command.env("CONSORT_MODEL", if *large { "large" } else { "small" });
                counted(run(command, limit))
            }
            Self::Loom => {
                let mut command = workspace.cargo();
                command.args([
                    "test",
                    "-p",
                    "consort-dataplane",
                    "-p",
                    "consort-hw",
                    "--release",
                    "--lib",
                    "loom",
                ]);
                // A directory of its own: other flags would rebuild everything at each change of mind.
                command.arg("--target-dir").arg(workspace.target.join("loom"));
                command.env("RUSTFLAGS", "--cfg loom");
                counted(run(command, limit))
            }
            Self::Miri => miri(workspace, limit),
            Self::Fuzz { seconds, target } => fuzz(workspace, limit, *seconds, target.as_deref()),
            Self::Valgrind => valgrind(workspace, limit),
            Self::Verbs => verbs(workspace, limit),
            Self::BenchTest => {
                let mut command = workspace.tests();
                command.args(["--bench", "*", "--", "--test"]);
                counted(run(command, limit))
            }
            Self::Instructions { bless } => {
                let mut command = workspace.cargo();
                command.args(["bench", "--quiet", "-p", "consort-benches", "--bench", "instructions", "--"]);
                command.args(bless.then_some("--bless"));
                let result = quiet(command).map(|told| {
                    print!("{told}");
                    match told.lines().find_map(|line| line.strip_prefix("SKIPPED: ")) {
                        Some(why) => Done::Skipped(why.to_owned()),
                        None => Done::Passed(Tally { passed: 1, ..Tally::default() }),
                    }
                });
                (Tally::default(), result)
            }
        }
    }
}

/// A step that runs tests and runs none is broken, whatever its exit status says.
fn counted((tally, result): (Tally, Result<(), Trouble>)) -> Outcome {
    let result = match result {
        Ok(()) if tally.passed == 0 => {
            Err(Trouble::Found("no test ran: the filter matches nothing".to_owned()))
        }
        Ok(()) => Ok(Done::Passed(tally)),
        Err(trouble) => Err(trouble),
    };
    (tally, result)
}

/// An interpreter, of one thread: so the tests are dealt out to as many of it as there are processors.
fn miri(workspace: &Workspace, limit: Option<Duration>) -> Outcome {
    if let Err(why) = tools::nightly(workspace, &["miri", "rust-src"]) {
        return (Tally::default(), Ok(Done::Skipped(why)));
    }
    let command = || {
        let mut command = workspace.nightly_cargo();
        command.args(["miri", "test", "--quiet", "-p", "consort-dataplane", "--lib"]);
        command.arg("--target-dir").arg(workspace.target.join("miri"));
        // Property tests read the environment and keep their failures in files.
        command.env("MIRIFLAGS", "-Zmiri-disable-isolation").env("PROPTEST_CASES", "8");
        command.arg("--");
        command
    };
    // The simulated network and the log have no unsafe code that miri could judge, and take it minutes and hours.
    let mut list = command();
    list.args(["--list", "--format=terse", "--skip", "sim::", "--skip", "log::"]);
    let list = match quiet(list) {
        Ok(list) => list,
        Err(trouble) => return (Tally::default(), Err(trouble)),
    };
    let tests: Vec<_> = list.lines().filter_map(|line| line.strip_suffix(": test")).collect();
    // None, and it would run all there are.
    if tests.is_empty() {
        return counted((Tally::default(), Ok(())));
    }
    let hands = std::thread::available_parallelism().map_or(1, usize::from).min(tests.len());
    let dealt = (0..hands).map(|hand| {
        let mut command = command();
        command.args(["--exact", "--format=pretty"]).args(tests.iter().skip(hand).step_by(hands));
        command
    });
    // Hundreds of times slower than what it runs, so it gets more time before it counts as hanging.
    counted(run_beside(dealt.collect(), limit.map(|limit| limit * 2)))
}

/// The C library under valgrind, which hides the kernel's own page from a process: so in a build that makes its system calls through libc.
fn valgrind(workspace: &Workspace, limit: Option<Duration>) -> Outcome {
    let mut version = workspace.command("valgrind");
    version.arg("--version");
    if !succeeds(version) {
        return (Tally::default(), Ok(Done::Skipped("no valgrind; apt-get install valgrind".to_owned())));
    }
    let target = workspace.target.join("valgrind");
    let mut build = workspace.cargo();
    build.args(["build", "--quiet", "-p", "consort-capi", "--target-dir"]).arg(&target);
    build.env("RUSTFLAGS", "--cfg rustix_use_libc");
    if let Err(trouble) = quiet(build) {
        return (Tally::default(), Err(trouble));
    }
    let mut command = workspace.cargo();
    command.args(["test", "-p", "consort-capi", "--test", "all", "valgrind"]);
    command.env("CONSORT_VALGRIND_LIBRARY", target.join("debug/libconsort_c.so"));
    counted(run(command, limit))
}

/// What of RDMA needs no card: that it builds, without a warning, and the tests of its parts. The rest is `hw/rig/test`.
fn verbs(workspace: &Workspace, limit: Option<Duration>) -> Outcome {
    let mut library = workspace.command("pkg-config");
    library.args(["--exists", "libibverbs", "librdmacm"]);
    if !succeeds(library) {
        let why = "no libibverbs; apt-get install libibverbs-dev librdmacm-dev libclang-dev";
        return (Tally::default(), Ok(Done::Skipped(why.to_owned())));
    }
    let mut clippy = workspace.cargo();
    clippy.args([
        "clippy",
        "-p",
        "consort-hw",
        "-p",
        "consort-cli",
        "-p",
        "consort-tests",
        "--all-targets",
        "--quiet",
    ]);
    clippy.args([
        "--features",
        "consort-hw/verbs,consort-cli/verbs,consort-tests/verbs",
        "--",
        "-D",
        "warnings",
    ]);
    let (tally, result) = run(clippy, limit);
    if let Err(trouble) = result {
        return (tally, Err(trouble));
    }
    let mut command = workspace.cargo();
    command.args(["test", "-p", "consort-hw", "--features", "verbs", "--lib", "verbs"]);
    counted(run(command, limit))
}

fn fuzz(workspace: &Workspace, limit: Option<Duration>, seconds: u64, only: Option<&str>) -> Outcome {
    let mut tally = Tally::default();
    let result = fuzz_all(workspace, limit, seconds, only, &mut tally);
    (tally, result)
}

fn fuzz_all(
    workspace: &Workspace,
    limit: Option<Duration>,
    seconds: u64,
    only: Option<&str>,
    tally: &mut Tally,
) -> Result<Done, Trouble> {
    if let Err(why) = tools::nightly(workspace, &[]) {
        return Ok(Done::Skipped(why));
    }
    let fuzzer = tools::FUZZ.ready(workspace)?;
    let cargo_fuzz = |verb: &str, directory: &PathBuf| {
        let mut command = workspace.command(&fuzzer);
        command.args(["fuzz", verb, "--fuzz-dir"]).arg(directory);
        // cargo-fuzz calls the cargo of its environment, and only a nightly one instruments.
        command.env("RUSTUP_TOOLCHAIN", "nightly").env_remove("CARGO").env_remove("RUSTC");
        command
    };
    let mut first = Ok(());
    for name in FUZZED {
        let directory = workspace.root.join(name).join("fuzz");
        if !directory.join("Cargo.toml").is_file() {
            println!("    {name} has no fuzz targets");
            continue;
        }
        let targets = quiet(cargo_fuzz("list", &directory))?;
        for target in targets.lines().filter(|target| only.is_none_or(|only| target.contains(only))) {
            let mut command = cargo_fuzz("run", &directory);
            command.arg(target).arg("--target-dir").arg(workspace.target.join("fuzz")).arg("--");
            command.args([
                &format!("-max_total_time={seconds}"),
                "-rss_limit_mb=2048",
                "-print_final_stats=1",
            ]);
            match run(command, limit).1 {
                Ok(()) => tally.passed += 1,
                Err(trouble) => {
                    tally.failed += 1;
                    first = first.and(Err(trouble));
                }
            }
        }
    }
    first?;
    if tally.passed == 0 {
        return Err(Trouble::Found("no fuzz target ran".to_owned()));
    }
    Ok(Done::Passed(*tally))
}
