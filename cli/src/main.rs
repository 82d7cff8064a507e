//! The `consort` command: shows what the library does ([`demo`]), is one member of a group ([`node`]), asks one
//! how it stands ([`ask`]), measures ([`mod@bench`]), reads and repairs the logs of durable groups ([`mod@log`]),
//! tells of the machine ([`hw`]), and has an application to
//! show and to use: a key-value store ([`kv`]).
//!
//! Everything that runs here is real: members are processes of their own, started from this same program through a hidden
//! subcommand ([`member`]); the library is used through its public interface alone, as any application would.
//!
//! What goes where: results on standard output (text for people, one JSON object with `--json`), everything else on
//! standard error. Exit codes are in [`failure`]; every failure says what to do next.

mod clock;
mod failure;
mod text;
mod args;
mod orders;
mod group;
mod node;
mod ask;
mod parent;
mod crew;
mod latency;
mod gaps;
mod demo;
mod bench;
mod kv;
mod log;
mod hw;
mod member;

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use tracing_subscriber::EnvFilter;

use crate::args::{BenchCommand, Cli, Command, KvCommand, LogCommand};
use crate::failure::Failure;

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Err(failure) = log_to_stderr(&cli.log) {
        return fail(&failure, false);
    }
    let (result, json) = match &cli.command {
        Command::Demo(args) => (demo::run(args, &cli.log), args.json),
        Command::Node(args) => (node::run(args), false),
        Command::Status(args) => (ask::status(args), args.json),
        Command::Explain(args) => (ask::explain(args), args.json),
        Command::Bench(command) => (bench::run(command, &cli.log), wants_json(command)),
        Command::Kv(command) => (kv::run(command), kv_wants_json(command)),
        Command::Hw(args) => (hw::run(args), args.json),
        Command::Log(command) => (log::run(command), log_wants_json(command)),
        Command::Keep { within } => return bench::place::keep(within),
        Command::Member { parent, .. } => return member::run(*parent),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => fail(&failure, json),
    }
}

fn wants_json(command: &BenchCommand) -> bool {
    match command {
        BenchCommand::Latency(args) => args.load.group.json,
        BenchCommand::Throughput(args) | BenchCommand::Floor(args) => args.load.group.json,
        BenchCommand::Idle(args) => args.group.json,
        BenchCommand::Counts(args) => args.group.json,
        BenchCommand::Replicas(args) => args.json,
        BenchCommand::Failover(args) => args.json,
        BenchCommand::Repair(args) => args.json,
        BenchCommand::Join(args) => args.json,
        BenchCommand::Durable(args) => args.json,
        BenchCommand::Restart(args) => args.json,
        BenchCommand::Report(args) => args.json,
    }
}

fn log_wants_json(command: &LogCommand) -> bool {
    match command {
        LogCommand::Verify(args) | LogCommand::Stat(args) | LogCommand::Repair(args) => args.json,
        LogCommand::Dump(args) | LogCommand::Follow(args) => args.json,
    }
}

fn kv_wants_json(command: &KvCommand) -> bool {
    match command {
        KvCommand::Serve(_) => false,
        KvCommand::Put(args) => args.to.json,
        KvCommand::Get(args) => args.to.json,
        KvCommand::Delete(args) => args.to.json,
        KvCommand::Watch(args) => args.to.json,
        KvCommand::Bench(args) => args.to.json,
    }
}

/// Sends the library's log to standard error, as far as `filter` lets it through.
fn log_to_stderr(filter: &str) -> Result<(), Failure> {
    let filter = EnvFilter::try_new(filter).map_err(|e| {
        Failure::usage(
            format!("--log {filter} is no filter: {e}"),
            "give a level (error, warn, info, debug, trace) or a filter such as consort_hw=debug,warn",
        )
    })?;
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    // Fails only if there is a subscriber already; there is none.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colours)
        .without_time()
        .try_init();
    Ok(())
}

/// Says what failed and what to do, and turns it into the exit code.
fn fail(failure: &Failure, json: bool) -> ExitCode {
    // Nothing to be done if these can't be written: the exit code says it, too.
    let _ = writeln!(std::io::stderr(), "error: {failure}\n  what to do: {}", failure.remedy());
    if json {
        let object = serde_json::json!({
            "error": failure.to_string(), "remedy": failure.remedy(), "code": failure.code(),
        });
        let _ = writeln!(std::io::stdout(), "{object}");
    }
    ExitCode::from(failure)
}
