//! `consort kv bench`: clients in a closed loop, each with a connection of its own, and what they saw.

use std::time::{Duration, Instant};

use comfy_table::Table;
use hdrhistogram::Histogram;
use serde::Serialize;

use super::client::Client;
use super::wire::{Answer, Request, VALUE_LEN};
use crate::args::KvBenchArgs;
use crate::bench::figures::{Quantiles, nanoseconds};
use crate::failure::Failure;
use crate::latency::{corrected, histogram};
use crate::text::{self, as_f64, count, micros, rate};

/// What one client saw.
struct Seen {
    puts: Histogram<u64>,
    gets: Histogram<u64>,
    /// Requests that failed, changes of which nothing is known among them.
    failed: u64,
    last: Option<String>,
}

/// What is printed with `--json`.
#[derive(Debug, Serialize)]
struct Report {
    bench: &'static str,
    clients: u32,
    seconds: f64,
    /// Bytes of a value.
    size: usize,
    keys: u32,
    reads_percent: u32,
    local: bool,
    puts: Figures,
    gets: Figures,
    failed: u64,
    /// How the latencies deal with coordinated omission.
    correction: &'static str,
}

#[derive(Debug, Serialize)]
struct Figures {
    done: u64,
    per_s: f64,
    latency_us: Quantiles,
    uncorrected_latency_us: Quantiles,
}

impl Figures {
    fn of(values: &Histogram<u64>, seconds: f64) -> Self {
        Self {
            done: values.len(),
            per_s: as_f64(values.len()) / seconds,
            latency_us: Quantiles::from(&corrected(values)),
            uncorrected_latency_us: Quantiles::from(values),
        }
    }
}

/// Measures.
///
/// # Errors
/// No request was answered, or values would be too long.
pub(super) fn run(args: &KvBenchArgs) -> Result<(), Failure> {
    if args.size > VALUE_LEN {
        return Err(Failure::usage(
            format!("no value has {} bytes", args.size),
            format!("give --size {VALUE_LEN} or less"),
        ));
    }
    let begun = Instant::now();
    let until = begun + args.seconds;
    let seen: Vec<Seen> = std::thread::scope(|scope| {
        let clients: Vec<_> =
            (0..args.clients).map(|client| scope.spawn(move || ask(args, client, until))).collect();
        let broken = || Failure::lost("a client's thread panicked", "report this as a bug");
        clients.into_iter().map(|it| it.join().unwrap_or_else(|_| Err(broken()))).collect::<Result<_, _>>()
    })?;
    let seconds = begun.elapsed().as_secs_f64();
    let (mut puts, mut gets) = (histogram()?, histogram()?);
    for it in &seen {
        let added = puts.add(&it.puts).and_then(|()| gets.add(&it.gets));
        added.map_err(|e| Failure::lost(format!("can't add histograms: {e}"), "report this as a bug"))?;
    }
    let failed = seen.iter().map(|it| it.failed).sum();
    if puts.is_empty() && gets.is_empty() {
        let why = seen.into_iter().find_map(|it| it.last).unwrap_or_else(|| "there was no time".to_owned());
        return Err(Failure::start(
            format!("no request was answered: {why}"),
            "give --server the addresses for clients of servers that run, or more --seconds",
        ));
    }
    let report = Report {
        bench: "kv",
        clients: args.clients,
        seconds,
        size: args.size,
        keys: args.keys,
        reads_percent: args.reads,
        local: args.local,
        puts: Figures::of(&puts, seconds),
        gets: Figures::of(&gets, seconds),
        failed,
        correction: "closed loop at one request in the mean latency",
    };
    text::print(&report, args.to.json, describe)
}

/// One client: a request, its answer, the next.
fn ask(args: &KvBenchArgs, client: u32, until: Instant) -> Result<Seen, Failure> {
    let mut servers = args.to.server.clone();
    // Not all at the first.
    let turn = usize::try_from(client).unwrap_or(0) % servers.len().max(1);
    servers.rotate_left(turn);
    let mut store = Client::new(&servers, args.to.within);
    let mut seen = Seen { puts: histogram()?, gets: histogram()?, failed: 0, last: None };
    let value = "v".repeat(args.size);
    let mut dice = u64::from(client) + 1;
    while Instant::now() < until {
        // A linear congruential generator with Knuth's constants; its upper bits are good enough to choose keys.
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let key = format!("bench-{}", (dice >> 33) % u64::from(args.keys));
        let is_get = (dice >> 20) % 100 < u64::from(args.reads);
        let request = if is_get {
            Request::Get { key, local: args.local }
        } else {
            Request::Put { key, value: value.clone(), if_version: None }
        };
        let asked = Instant::now();
        match store.ask(&request) {
            Ok(Answer::Done { .. } | Answer::Value { .. } | Answer::Absent) => {
                let to = if is_get { &mut seen.gets } else { &mut seen.puts };
                to.saturating_record(nanoseconds(asked.elapsed()));
            }
            Ok(other) => (seen.failed, seen.last) = (seen.failed + 1, Some(format!("{other:?}"))),
            Err(failure) => {
                (seen.failed, seen.last) = (seen.failed + 1, Some(failure.to_string()));
                std::thread::sleep(Duration::from_millis(1)); // what fails at once fails again
            }
        }
    }
    Ok(seen)
}

fn describe(report: &Report) -> String {
    let mut table = Table::new();
    table.load_preset(comfy_table::presets::UTF8_FULL_CONDENSED);
    table.set_header(["", "done", "per second", "p50", "p99", "p99.9", "max"]);
    for (name, it) in [("put", &report.puts), ("get", &report.gets)] {
        let latency = it.latency_us;
        table.add_row([
            name.to_owned(),
            count(it.done),
            rate(it.per_s),
            micros(latency.p50),
            micros(latency.p99),
            micros(latency.p999),
            micros(latency.max),
        ]);
    }
    let Report { clients, seconds, size, keys, failed, .. } = report;
    format!(
        "{table}\n{clients} clients, {seconds:.1} s, values of {size} bytes, {keys} keys, {failed} failed"
    )
}
