//! `cargo xtask`: one command for everything a developer does, and for what CI does.
//!
//! Each step is a subcommand, so that what fails in CI is repeated by one line. `cargo xtask ci` runs them all, in the
//! order in which they fail soonest, goes on after a failure, and ends with a table of times and one line of counts.
//!
//! Modules in reading order, each leaning only on those above it: [`shell`] runs commands and reads what tests say,
//! [`tools`] finds or installs what a step needs, [`source`] reads the modules of a crate, [`layers`] judges who imports
//! whom, [`archive`] makes the static C library and [`install`] installs it with the other, [`deb`] makes
//! packages of that, [`steps`] are the steps themselves, [`ci`] is their sequence.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it talks to whoever sits at the terminal")]

mod shell;
mod tools;
mod source;
mod layers;
mod archive;
mod install;
mod deb;
mod steps;
mod ci;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::shell::Workspace;
use crate::steps::{Sim, Step};

/// Consort's developer command.
///
/// Run it from anywhere in the repository. Every subcommand is one step of CI; `check` is what to run before a commit,
/// `ci` is all there is.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Format, lints as errors, documentation, layers and licences: everything that runs no test
    Check,
    /// Formatting, as rustfmt.toml has it
    Fmt,
    /// Clippy over all crates and targets, warnings as errors
    Clippy,
    /// Documentation of all crates, warnings as errors
    Docs,
    /// Who imports whom: between the crates, and between the modules inside each
    Layers,
    /// Licences, sources and duplicates of the dependencies, as deny.toml has them (cargo-deny)
    Deny,
    /// Unit tests, integration tests and the examples in the documentation
    Test {
        /// Run only tests whose name contains this
        filter: Option<String>,
    },
    /// Groups of sessions, and of whole nodes, over the simulated fabric, many seeds, every history checked
    Sim {
        /// How many seeds; a part of them for whole nodes
        #[arg(long, default_value_t = steps::SIM_SEEDS)]
        seeds: u64,
        /// Only this seed, to repeat a failure
        #[arg(long, conflicts_with = "seeds")]
        seed: Option<u64>,
    },
    /// Real processes under load, faults at random, every history checked; the seed is printed
    Chaos {
        /// Go on for so long
        #[arg(long, default_value_t = steps::CHAOS_SECONDS)]
        seconds: u64,
        /// Begin with this seed, to repeat a failure
        #[arg(long)]
        seed: Option<u64>,
        /// Over this fabric alone; if not given, over all by turns
        #[arg(long, value_parser = ["shm", "tcp", "auto"])]
        fabric: Option<String>,
    },
    /// A durable group whose members are killed under load and started again, round after round; the seed is printed
    Crash {
        /// How many rounds
        #[arg(long, default_value_t = steps::CRASH_ROUNDS)]
        rounds: u64,
        /// With this seed, to repeat a failure
        #[arg(long)]
        seed: Option<u64>,
    },
    /// View changes in small worlds, every step in every order, and that a broken rule is noticed (Stateright)
    Model {
        /// Larger worlds, which take many minutes and gigabytes
        #[arg(long)]
        large: bool,
        /// Only worlds whose test's name begins with this
        filter: Option<String>,
    },
    /// The concurrent parts under every schedule and every memory order that loom can think of
    Loom,
    /// The data plane under miri: undefined behaviour, weak memory
    Miri,
    /// The parsers of foreign bytes under libFuzzer
    Fuzz {
        /// Seconds for each target
        #[arg(long, default_value_t = steps::FUZZ_SECONDS)]
        seconds: u64,
        /// Only targets whose name contains this
        #[arg(long)]
        target: Option<String>,
    },
    /// Each benchmark once, as a test, so that none rots
    BenchTest,
    /// Instructions that a message costs in the engine, by callgrind: none may cost over 3% more than it did
    Instructions {
        /// Take what they cost now for what they may cost
        #[arg(long)]
        bless: bool,
    },
    /// The C library's misuse tests under valgrind
    Valgrind,
    /// RDMA as far as it needs no card: that it builds, and the tests of its parts; the rest is hw/rig/test
    Verbs,
    /// Everything that CI does, in order
    Ci,
    /// Builds libconsort, the C library, and installs it with its header and what pkg-config and CMake ask for
    Install {
        /// Where: to PREFIX/lib and PREFIX/include
        #[arg(long, default_value = "/usr/local")]
        prefix: PathBuf,
        /// Put it all below this directory instead of `/`, for who makes packages
        #[arg(long)]
        destdir: Option<PathBuf>,
        /// Cargo's profile
        #[arg(long, default_value = "release")]
        profile: String,
    },
    /// Builds Debian packages of libconsort: libconsort0, for programs that run, and libconsort-dev, to build them
    Deb {
        /// The directory to put them in
        #[arg(long, default_value = ".")]
        out: PathBuf,
        /// Whom the packages name as their maintainer
        #[arg(long, default_value = "Consort <consort@localhost>")]
        maintainer: String,
        /// Cargo's profile
        #[arg(long, default_value = "release")]
        profile: String,
    },
}

fn main() -> ExitCode {
    let workspace = Workspace::here();
    let one = |step: Step| ci::run(&workspace, &[step]);
    match Arguments::parse().command {
        Command::Check => ci::run(&workspace, &ci::CHECK),
        Command::Fmt => one(Step::Fmt),
        Command::Clippy => one(Step::Clippy),
        Command::Docs => one(Step::Docs),
        Command::Layers => one(Step::Layers),
        Command::Deny => one(Step::Deny),
        Command::Test { filter } => one(Step::Test { filter }),
        Command::Sim { seeds, seed } => one(Step::Sim(seed.map_or(Sim::Seeds(seeds), Sim::Seed))),
        Command::Chaos { seconds, seed, fabric } => one(Step::Chaos { seconds, seed, fabric }),
        Command::Crash { rounds, seed } => one(Step::Crash { rounds, seed }),
        Command::Model { large, filter } => one(Step::Model { large, filter }),
        Command::Loom => one(Step::Loom),
        Command::Miri => one(Step::Miri),
        Command::Fuzz { seconds, target } => one(Step::Fuzz { seconds, target }),
        Command::BenchTest => one(Step::BenchTest),
        Command::Instructions { bless } => one(Step::Instructions { bless }),
        Command::Valgrind => one(Step::Valgrind),
        Command::Verbs => one(Step::Verbs),
        Command::Ci => ci::run(&workspace, &ci::ALL),
        Command::Install { prefix, destdir, profile } => {
            done(install::install(&workspace, &prefix, destdir.as_deref(), &profile).map(drop))
        }
        Command::Deb { out, maintainer, profile } => done(deb::deb(&workspace, &out, &maintainer, &profile)),
    }
}

fn done(result: Result<(), shell::Trouble>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(trouble) => {
            eprintln!("{trouble}");
            ExitCode::FAILURE
        }
    }
}
