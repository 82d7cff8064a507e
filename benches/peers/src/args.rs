//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};

/// Consort and other systems of its kind, run in turn on this machine, in one table
///
/// For each peer in each round Consort is measured, then the peer; ratios are those of such pairs. `scripts/peers` installs and
/// builds what this needs.
#[derive(Debug, Parser)]
#[command(version, after_help = EXIT_CODES, args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    /// Which peers: names, or their beginnings up to a hyphen (`nats` is nats-memory and nats-file) [default: all]
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    pub(crate) peers: Vec<String>,
    /// How many rounds; medians count
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) runs: u32,
    /// How long each part of a run measures
    #[arg(long, default_value = "3s", value_parser = duration, value_name = "TIME")]
    pub(crate) duration: Duration,
    /// Run so long before anything counts
    #[arg(long, default_value = "300ms", value_parser = duration, value_name = "TIME")]
    pub(crate) warmup: Duration,
    /// Print one JSON object rather than a table
    #[arg(long)]
    pub(crate) json: bool,
    /// Write to this file rather than to standard output
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// The command `consort` [default: beside this one, where cargo puts it, or in the path]
    #[arg(long, value_name = "FILE")]
    pub(crate) consort: Option<PathBuf>,
    /// A directory on the disk that durable systems write to [default: the working directory]
    #[arg(long, default_value = ".", hide_default_value = true, value_name = "DIR")]
    pub(crate) disk: PathBuf,
    #[command(subcommand)]
    pub(crate) part: Option<Part>,
}

const EXIT_CODES: &str = "\
Exit codes:
  0  done; a peer that was not named and can't be run here is shown as such
  1  a peer that was named, or Consort itself, did not run
  2  the command line makes no sense
  3  a file or stream can't be read or written";

/// Processes that this starts of itself.
#[derive(Debug, Subcommand)]
pub(crate) enum Part {
    /// A member of a group of a consensus library
    #[command(hide = true)]
    Member,
    /// The network of Corosync's hosts
    #[command(hide = true)]
    CorosyncHub,
    /// A host with Corosync
    #[command(hide = true)]
    CorosyncHost,
}

/// A time with its unit.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is no time: write it as 500ms or 3s");
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let number: u64 = text[..digits].parse().map_err(|_| wrong())?;
    let time = match &text[digits..] {
        "ms" => Duration::from_millis(number),
        "s" => Duration::from_secs(number),
        _ => return Err(wrong()),
    };
    if time.is_zero() || time > Duration::from_secs(3600) {
        return Err(format!("`{text}` is too short or longer than an hour"));
    }
    Ok(time)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Args::command().debug_assert();
        let args = Args::parse_from(["peers", "--peers", "a,b", "--duration", "500ms"]);
        assert_eq!((args.peers.len(), args.duration), (2, Duration::from_millis(500)));
        for wrong in ["", "3", "s", "3h", "0s", "99999999999999999999s", "4000s"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
