//! The steps in sequence, the table of their times, and the one line that says how it went.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::shell::{Tally, Workspace};
use crate::steps::{Done, FUZZ_SECONDS, SIM_SEEDS, Sim, Step};

/// What to run before a commit: no test among it.
pub(crate) const CHECK: [Step; 5] = [Step::Fmt, Step::Layers, Step::Clippy, Step::Docs, Step::Deny];

/// What CI runs: the quick and the likely to fail first.
pub(crate) const ALL: [Step; 15] = [
    Step::Fmt,
    Step::Layers,
    Step::Clippy,
    Step::Docs,
    Step::Test { filter: None },
    Step::Sim(Sim::Seeds(SIM_SEEDS)),
    Step::Model { large: false, filter: None },
    Step::BenchTest,
    Step::Instructions { bless: false },
    Step::Valgrind,
    Step::Verbs,
    Step::Loom,
    Step::Miri,
    Step::Fuzz { seconds: FUZZ_SECONDS, target: None },
    Step::Deny,
];

/// No command of a sequence takes longer than this unless it hangs.
const LIMIT: Duration = Duration::from_secs(15 * 60);

/// One line of the closing table.
struct Line {
    step: &'static str,
    took: Duration,
    end: String,
}

/// Runs `steps` one after the other, all of them even after a failure. A single step runs without a limit of time.
pub(crate) fn run(workspace: &Workspace, steps: &[Step]) -> ExitCode {
    let limit = (steps.len() > 1).then_some(LIMIT);
    let start = Instant::now();
    let (mut total, mut table, mut again) = (Tally::default(), Vec::new(), Vec::new());
    for (place, step) in steps.iter().enumerate() {
        println!("==> {} ({} of {}, {} so far)", step.name(), place + 1, steps.len(), clock(start.elapsed()));
        let began = Instant::now();
        let (mut tally, result) = step.run(workspace, limit);
        let took = began.elapsed();
        let end = match result {
            Ok(Done::Passed(passed)) => {
                tally = passed;
                format!("ok, {} passed", tally.passed)
            }
            Ok(Done::Skipped(why)) => format!("SKIPPED: {why}"),
            Err(trouble) => {
                // A step that fails without a failed test has failed as a whole.
                tally.failed = tally.failed.max(1);
                again.push(step.again());
                format!("FAILED: {trouble}")
            }
        };
        println!("<== {}: {end} ({})", step.name(), clock(took));
        total += tally;
        table.push(Line { step: step.name(), took, end });
    }
    if steps.len() > 1 {
        println!("\n{:<12} {:>8}  result", "step", "time");
        for Line { step, took, end } in &table {
            println!("{step:<12} {:>8}  {end}", clock(*took));
        }
        println!("{:<12} {:>8}", "total", clock(start.elapsed()));
    }
    for line in &again {
        println!("again: {line}");
    }
    let verdict = if again.is_empty() { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {verdict}. {} passed; {} failed; {} ignored",
        total.passed, total.failed, total.ignored
    );
    println!("{} passed, {} failed", total.passed, total.failed);
    if again.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Minutes and seconds.
fn clock(time: Duration) -> String {
    format!("{}:{:04.1}", time.as_secs() / 60, time.as_secs_f64() % 60.0)
}
