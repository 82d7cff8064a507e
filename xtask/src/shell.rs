//! Runs commands, shows what they say while they say it, and adds up what test binaries report.
//!
//! A step that runs tests is only as good as the tests that really ran: the counts come from the lines that libtest
//! prints, not from an exit status, so that a filter which matches nothing is seen.

use std::env;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::ops::AddAssign;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

/// Where the repository is.
pub(crate) struct Workspace {
    /// Its top directory.
    pub(crate) root: PathBuf,
    /// Where builds go.
    pub(crate) target: PathBuf,
}

impl Workspace {
    /// The repository that this command was built from.
    pub(crate) fn here() -> Self {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
        let root = manifest.parent().unwrap_or(manifest).to_owned();
        let target =
            env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |dir| root.join(dir));
        Self { root, target }
    }

    /// A command that runs at the top of the repository.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.root);
        command
    }

    /// The cargo that runs this command.
    pub(crate) fn cargo(&self) -> Command {
        self.command(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
    }

    /// `cargo test` of all crates, to be narrowed to some targets. Were it some crates, their dependencies would have other features, and be
    /// built once more beside those of the step that runs all tests.
    pub(crate) fn tests(&self) -> Command {
        let mut command = self.cargo();
        command.args(["test", "--workspace"]);
        command
    }

    /// The cargo of the nightly toolchain, through rustup.
    pub(crate) fn nightly_cargo(&self) -> Command {
        let mut command = self.command("rustup");
        command.args(["run", "nightly", "cargo"]);
        // Set by the pinned toolchain that runs this command; they would lead back to it.
        command.env_remove("RUSTUP_TOOLCHAIN").env_remove("CARGO").env_remove("RUSTC").env_remove("RUSTDOC");
        command
    }
}

/// What a step did not get done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Trouble {
    /// The command ran and found fault; in which tests, where it ran any.
    #[error("{command} ended with {status}{}", named(failed))]
    Failed { command: String, status: ExitStatus, failed: Vec<String> },
    /// The command took longer than CI allows.
    #[error("{command} was stopped after {} s", limit.as_secs())]
    TooLong { command: String, limit: Duration },
    /// The command could not be started.
    #[error("{command} could not be run: {cause}")]
    Missing { command: String, cause: std::io::Error },
    /// Our own checks found fault; it has been printed.
    #[error("{0}")]
    Found(String),
}

/// The tests that failed, for the end of a sentence.
fn named(failed: &[String]) -> String {
    if failed.is_empty() { String::new() } else { format!(": {}", failed.join(", ")) }
}

/// How many tests passed, failed and were left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) ignored: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }
}

impl Tally {
    /// Reads a closing line of libtest: `test result: ok. 3 passed; 0 failed; 1 ignored; …`.
    fn of_line(line: &str) -> Option<Self> {
        let counts = line.trim_start().strip_prefix("test result: ")?.split_once(". ")?.1;
        let mut tally = Self::default();
        for part in counts.split("; ") {
            let Some((number, what)) = part.split_once(' ') else { continue };
            let place = match what {
                "passed" => &mut tally.passed,
                "failed" => &mut tally.failed,
                "ignored" => &mut tally.ignored,
                _ => continue,
            };
            *place = number.parse().ok()?;
        }
        Some(tally)
    }

    /// Adds what Criterion prints for a benchmark that ran as a test.
    fn of_bench_line(line: &str) -> Option<Self> {
        (line.starts_with("Testing ") || line == "Success")
            .then(|| Self { passed: u64::from(line == "Success"), ..Self::default() })
    }
}

/// Runs `command` and shows its output; tests that it runs are counted whether or not it succeeds.
pub(crate) fn run(command: Command, limit: Option<Duration>) -> (Tally, Result<(), Trouble>) {
    let shown = show(&command);
    println!("    $ {shown}");
    let mut command = limited(command, limit);
    let missing = |cause| Trouble::Missing { command: shown.clone(), cause };
    let mut child = match command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn() {
        Ok(child) => child,
        Err(cause) => return (Tally::default(), Err(missing(cause))),
    };
    let (mut tally, mut failed, mut listing) = (Tally::default(), Vec::new(), false);
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
            let text = String::from_utf8_lossy(&line);
            println!("{text}");
            if let Some(more) = Tally::of_line(&text).or_else(|| Tally::of_bench_line(&text)) {
                tally += more;
            }
            // Libtest's list of names, which follows on what each of them said.
            listing = match text.strip_prefix("    ") {
                Some(name) if listing => {
                    failed.push(name.to_owned());
                    true
                }
                _ => text == "failures:",
            };
        }
    }
    let result = match (child.wait(), limit) {
        (Ok(status), _) if status.success() => Ok(()),
        (Ok(status), Some(limit)) if status.code() == Some(TIMED_OUT) => {
            let _ = status;
            Err(Trouble::TooLong { command: shown, limit })
        }
        (Ok(status), _) => Err(Trouble::Failed { command: shown, status, failed }),
        (Err(cause), _) => Err(missing(cause)),
    };
    (tally, result)
}

/// As [`run`], several at once.
pub(crate) fn run_beside(commands: Vec<Command>, limit: Option<Duration>) -> (Tally, Result<(), Trouble>) {
    std::thread::scope(|scope| {
        let running: Vec<_> =
            commands.into_iter().map(|command| scope.spawn(move || run(command, limit))).collect();
        let (mut tally, mut result) = (Tally::default(), Ok(()));
        for run in running {
            let (more, ended) = run.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            tally += more;
            result = result.and(ended);
        }
        (tally, result)
    })
}

/// Runs `command` for its effect, showing only what it says on standard error.
pub(crate) fn quiet(mut command: Command) -> Result<String, Trouble> {
    let shown = show(&command);
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|cause| Trouble::Missing { command: shown.clone(), cause })?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(Trouble::Failed { command: shown, status: output.status, failed: Vec::new() })
    }
}

/// Whether `command` can be run and succeeds; it is not heard.
pub(crate) fn succeeds(mut command: Command) -> bool {
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// The exit status by which timeout(1) says that the time was up.
const TIMED_OUT: i32 = 124;

/// The same command under timeout(1), which stops the command's children too.
fn limited(command: Command, limit: Option<Duration>) -> Command {
    let Some(limit) = limit else { return command };
    let mut outer = Command::new("timeout");
    outer.arg("--kill-after=10").arg(limit.as_secs().to_string()).arg(command.get_program());
    outer.args(command.get_args());
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => outer.env(key, value),
            None => outer.env_remove(key),
        };
    }
    if let Some(directory) = command.get_current_dir() {
        outer.current_dir(directory);
    }
    outer
}

/// The command as one would type it.
fn show(command: &Command) -> String {
    let name = Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    let mut words: Vec<String> = command
        .get_envs()
        .filter_map(|(key, value)| Some(format!("{}={}", key.to_string_lossy(), quoted(value?))))
        .collect();
    words.push(quoted(name));
    words.extend(command.get_args().map(quoted));
    words.join(" ")
}

fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    if word.contains(char::is_whitespace) { format!("'{word}'") } else { word.into_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_from_libtest() {
        let line =
            "test result: ok. 12 passed; 0 failed; 3 ignored; 0 measured; 7 filtered out; finished in 0.05s";
        assert_eq!(Tally::of_line(line), Some(Tally { passed: 12, failed: 0, ignored: 3 }));
        let line = "test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out";
        assert_eq!(Tally::of_line(line), Some(Tally { passed: 1, failed: 2, ignored: 0 }));
        assert_eq!(Tally::of_line("test ring::wraps ... ok"), None);
    }

    #[test]
    fn tests_of_a_command_that_fails_are_counted() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo 'test result: FAILED. 4 passed; 1 failed; 0 ignored'; exit 101"]);
        let (tally, result) = run(command, None);
        assert_eq!((tally.passed, tally.failed), (4, 1));
        assert!(matches!(result, Err(Trouble::Failed { status, .. }) if status.code() == Some(101)));
    }

    #[test]
    fn tests_that_failed_are_named() {
        let mut command = Command::new("sh");
        let said =
            r"failures:\n\n---- a::b stdout ----\n    left: 1\n\nfailures:\n    a::b\n    c\n\n    no name\n";
        command.args(["-c", &format!("printf '{said}'; exit 101")]);
        let said = run(command, None).1.map_err(|trouble| trouble.to_string());
        assert!(said.as_ref().is_err_and(|said| said.ends_with("101: a::b, c")), "{said:?}");
    }

    #[test]
    fn a_command_that_hangs_is_stopped() {
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 600 & wait"]);
        let (_, result) = run(command, Some(Duration::from_secs(1)));
        assert!(matches!(result, Err(Trouble::TooLong { .. })), "{result:?}");
    }

    #[test]
    fn a_command_that_is_not_there_is_named() {
        let (_, result) = run(Command::new("/nonexistent/cargo-frobnicate"), None);
        assert!(result.is_err_and(|trouble| trouble.to_string().contains("cargo-frobnicate")));
    }
}
