//! Instructions that a message costs, counted by callgrind: `cargo bench -p consort-benches --bench instructions`. Times vary from run to run and from
//! machine to machine; these don't, so that a change of a few in a hundred shows, on a busy machine too. What they can't show is a
//! wait: for memory, for another core, for the kernel.
//!
//! The counts are held against those in `baseline.txt`, which are of one compiler and one valgrind: with others they are only shown. More than 3%
//! above is a failure. `-- --bless` writes them anew, after a change that is meant to cost what it costs, or to save it.
#![allow(clippy::print_stdout, clippy::print_stderr, missing_docs, reason = "a benchmark tells")]

mod parts;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, ExitCode};

use parts::{PARTS, Part};

/// What a part may cost more than it did.
const TOLERANCE: f64 = 1.03;

/// So often a part is done before and while it is counted.
const ROUNDS: u64 = 200;

/// Where the work of a part begins that callgrind counts: nothing before, and nothing of the start of a process.
#[inline(never)]
fn counted(work: &mut dyn FnMut()) {
    (0..ROUNDS).for_each(|_| work());
}

/// What ended it, for people.
type Wrong = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    run().unwrap_or_else(|wrong| {
        eprintln!("{wrong}");
        ExitCode::FAILURE
    })
}

fn run() -> Result<ExitCode, Wrong> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |name: &str| arguments.iter().any(|it| it == name);
    if let Some(at) = arguments.iter().position(|it| it == "--part") {
        let part = PARTS.iter().find(|part| arguments.get(at + 1).is_some_and(|name| part.name == name));
        let mut work = (part.ok_or("there is no such part")?.prepare)();
        (0..ROUNDS).for_each(|_| work());
        counted(&mut *work);
        return Ok(ExitCode::SUCCESS);
    }
    if has("--test") || !has("--bench") {
        for part in PARTS {
            println!("Testing {}", part.name);
            let mut work = (part.prepare)();
            (0..3).for_each(|_| work());
            println!("Success");
        }
        return Ok(ExitCode::SUCCESS);
    }
    let Some(tools) = tools() else {
        println!("SKIPPED: there is no valgrind; apt-get install valgrind");
        return Ok(ExitCode::SUCCESS);
    };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("instructions/baseline.txt");
    // Without one, all counts are new.
    let baseline = std::fs::read_to_string(&path).unwrap_or_default();
    let same = baseline.lines().next() == Some(&format!("# {tools}"));
    let known: BTreeMap<&str, f64> = baseline.lines().filter_map(known).collect();
    let (mut written, mut more) = (format!("# {tools}\n"), Vec::new());
    println!("instructions for one message, all members together ({tools})");
    for part in PARTS {
        let each = count(part)? as f64 / (ROUNDS * part.messages) as f64;
        writeln!(written, "{each:.1}\t{}", part.name)?;
        let before = known.get(part.name).copied();
        let ratio = before
            .map_or_else(|| "new".to_owned(), |before| format!("{:+.1}%", 100.0 * (each / before - 1.0)));
        println!("{each:>12.1}  {ratio:>7}  {}", part.name);
        if before.is_some_and(|before| each > before * TOLERANCE) {
            more.push(part.name);
        }
    }
    if has("--bless") {
        std::fs::write(&path, written).map_err(|cause| format!("can't write {}: {cause}", path.display()))?;
        println!("written to {}", path.display());
    } else if !same {
        println!(
            "SKIPPED: the counts to compare with are of {}",
            baseline.lines().next().unwrap_or("nothing")
        );
    } else if !more.is_empty() {
        return Err(format!(
            "these cost more than they did by over 3%: {}\nwhat to do: find out why; if it is worth it, \
             cargo xtask instructions --bless, and say so in the commit",
            more.join(", ")
        )
        .into());
    }
    Ok(ExitCode::SUCCESS)
}

/// A line of the baseline: a count, and a part's name.
fn known(line: &str) -> Option<(&str, f64)> {
    let (count, name) = line.split_once('\t')?;
    Some((name, count.parse().ok()?))
}

/// What the counts depend on: this compiler, and this valgrind with its idea of a processor.
fn tools() -> Option<String> {
    let said = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().ok().filter(|it| it.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).lines().next()?.trim().to_owned())
    };
    let rustc = said(&std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned()), &["--version"]);
    Some(format!("{}, {}", said("valgrind", &["--version"])?, rustc.unwrap_or_default()))
}

/// Instructions of all rounds of a part that are counted.
fn count(part: &Part) -> Result<u64, Wrong> {
    let place = tempfile::tempdir()?;
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--toggle-collect=*instructions*counted*"]);
    command.arg(format!("--callgrind-out-file={}", place.path().join("out").display()));
    command.arg(std::env::current_exe()?).args(["--part", part.name]);
    let output = command.output()?;
    let told = String::from_utf8_lossy(&output.stderr);
    let collected = told.lines().find_map(|line| line.split_once("Collected :"));
    let count = collected.and_then(|(_, count)| count.trim().parse().ok()).filter(|count| *count > 0);
    match count {
        Some(count) if output.status.success() => Ok(count),
        _ => Err(format!("{command:?} has counted nothing: {told}").into()),
    }
}
