//! Consort and its peers, side by side: the same machine, the same minutes, one table.
//!
//! [`peers`] is the list of systems, each with what it promises; [`rounds`] runs Consort and a peer in turn, as often as asked for;
//! [`report`] makes the table. [`consort`] asks the product's own command for its figures. [`consensus`] runs consensus libraries over
//! a minimal TCP transport, [`servers`] what comes with servers of its own, [`corosync`] a group of hosts in network namespaces.

mod failure;
mod args;
mod plan;
mod figures;
mod promise;
mod child;
mod process;
mod consort;
mod consensus;
mod servers;
mod corosync;
mod peers;
mod rounds;
mod report;

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;

use crate::args::{Args, Part};
use crate::failure::Failure;

fn main() -> ExitCode {
    let args = Args::parse();
    let done = match &args.part {
        Some(Part::Member) => consensus::run::process().map(|()| ExitCode::SUCCESS),
        Some(Part::CorosyncHub) => corosync::hub::process().map(|()| ExitCode::SUCCESS),
        Some(Part::CorosyncHost) => corosync::host::process().map(|()| ExitCode::SUCCESS),
        None => compare(&args),
    };
    done.unwrap_or_else(|failure| {
        rounds::tell(&format!("error: {failure}\n  {}", failure.remedy()));
        failure.code()
    })
}

/// Measures and reports. The code says whether all ran that were named.
fn compare(args: &Args) -> Result<ExitCode, Failure> {
    let peers = peers::chosen(&args.peers)?;
    // Better to fail now than after the measurement.
    if let Some(path) = &args.out {
        std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)
            .map_err(|cause| Failure::file("write", path, cause))?;
    }
    let measured = rounds::measure(args, &peers)?;
    let report = report::Report::new(args, &measured);
    let text = if args.json {
        serde_json::to_string_pretty(&report).map_err(|cause| Failure::bug(format!("no JSON: {cause}")))?
    } else {
        report.describe()
    };
    let written = match &args.out {
        Some(path) => std::fs::write(path, text + "\n").map_err(|cause| Failure::file("write", path, cause)),
        None => writeln!(std::io::stdout().lock(), "{text}")
            .map_err(|cause| Failure::io("write the report", cause, "see who reads standard output")),
    };
    written?;
    let lacking = measured.consort_failed || (!args.peers.is_empty() && report.lacks_any());
    Ok(if lacking { ExitCode::from(1) } else { ExitCode::SUCCESS })
}
