//! Processes of one run: they end with it, however it ends.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::failure::Failure;

/// A command that the kernel kills when the thread that starts it is no more: a peer's server that goes on alone would
/// spoil every later measurement.
pub(crate) fn tied(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program).stdin(Stdio::null());
    command
}

/// Runs a command to its end, no longer than `patience`.
///
/// # Errors
/// It doesn't start, takes longer, or fails: what it said is the message.
pub(crate) fn finished(name: &str, command: &mut Command, patience: Duration) -> Result<Output, Failure> {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().map_err(|cause| not_started(name, cause))?;
    let pid = child.id();
    let (sender, done) = channel();
    let waiter = thread::spawn(move || {
        // The receiver is gone only if patience was.
        let _ = sender.send(child.wait_with_output());
    });
    let output = match done.recv_timeout(patience) {
        Ok(output) => output.map_err(|cause| Failure::io(format!("hear of {name}"), cause, "try again"))?,
        Err(_) => {
            // Nobody has waited for it yet, so that the pid is still its own.
            if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
            // Not joined: who inherited its output may hold that for longer.
            return Err(Failure::run(
                format!("{name} was not done after {} s", patience.as_secs()),
                "run it by hand to see what it waits for; on a busy machine give a longer --duration",
            ));
        }
    };
    let _ = waiter.join();
    if output.status.success() {
        return Ok(output);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim();
    Err(Failure::run(
        format!(
            "{name} ended with {}{}{}",
            output.status,
            if said.is_empty() { "" } else { ": " },
            tail(said)
        ),
        "run it by hand to see more",
    ))
}

/// A server: killed, by its own pid, when this is dropped.
pub(crate) struct Server {
    name: String,
    child: Child,
    log: std::path::PathBuf,
}

impl Server {
    /// Starts `command`. What it says goes to the file `log`, which tells why if it ends.
    ///
    /// # Errors
    /// The program isn't there or can't be run, or the file can't be written.
    pub(crate) fn start(name: &str, command: &mut Command, log: &Path) -> Result<Self, Failure> {
        let file = std::fs::File::create(log).map_err(|cause| Failure::file("write", log, cause))?;
        let second = file.try_clone().map_err(|cause| Failure::file("write", log, cause))?;
        let child = command.stdout(file).stderr(second).spawn().map_err(|cause| not_started(name, cause))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned() })
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// It has ended: the end of its log is in the message.
    pub(crate) fn runs(&mut self) -> Result<(), Failure> {
        let Ok(Some(status)) = self.child.try_wait() else { return Ok(()) };
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        Err(Failure::run(
            format!("{} ended with {status}: {}", self.name, tail(log.trim())),
            "see what it says; a port or a file may be in use",
        ))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself; either way it is waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A process that is talked to, a line of JSON at a time.
pub(crate) struct Talker {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    until: Instant,
}

impl Talker {
    /// Starts it; all that is heard of it must be heard within `patience` from now. Its standard error is this one's.
    ///
    /// # Errors
    /// It can't be started.
    pub(crate) fn start(name: String, command: &mut Command, patience: Duration) -> Result<Self, Failure> {
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = spawned.map_err(|cause| not_started(&name, cause))?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let (sender, lines) = channel();
        if let Some(stdout) = stdout {
            // Ends when the process does, which dropping this sees to.
            thread::spawn(move || {
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    if sender.send(line).is_err() {
                        break;
                    }
                }
            });
        }
        Ok(Self { name, child, stdin, lines, until: Instant::now() + patience })
    }

    /// As the kernel knows it.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Says something to it.
    ///
    /// # Errors
    /// It has ended.
    pub(crate) fn tell(&mut self, what: &impl Serialize) -> Result<(), Failure> {
        let ended = |cause| Failure::io(format!("speak to {}", self.name), cause, "see what it said above");
        let mut line = serde_json::to_string(what).map_err(|cause| ended(cause.into()))?;
        line.push('\n');
        match &mut self.stdin {
            Some(stdin) => stdin.write_all(line.as_bytes()).map_err(ended),
            None => Ok(()),
        }
    }

    /// Hears the next that it says.
    ///
    /// # Errors
    /// It ended, says nothing in time, or says something else.
    pub(crate) fn hear<T: DeserializeOwned>(&mut self) -> Result<T, Failure> {
        let left = self.until.saturating_duration_since(Instant::now());
        let line = self.lines.recv_timeout(left).map_err(|why| match why {
            RecvTimeoutError::Timeout => Failure::run(
                format!("{} said nothing for too long", self.name),
                "on a busy machine give a longer --duration, or try again",
            ),
            RecvTimeoutError::Disconnected => Failure::run(
                format!("{} ended without a word of how it went", self.name),
                "see what it said on standard error",
            ),
        })?;
        serde_json::from_str(&line)
            .map_err(|cause| Failure::bug(format!("{} says {line:?}: {cause}", self.name)))
    }
}

impl Drop for Talker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn not_started(name: &str, cause: std::io::Error) -> Failure {
    let remedy = if cause.kind() == std::io::ErrorKind::NotFound {
        "install it: scripts/peers does"
    } else {
        "see that it may be run"
    };
    Failure::io(format!("start {name}"), cause, remedy)
}

/// The last lines of what a program said: enough to know why.
fn tail(said: &str) -> String {
    let lines: Vec<&str> = said.lines().collect();
    lines[lines.len().saturating_sub(3)..].join(" | ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_waited_for_and_its_failure_told() {
        let patience = Duration::from_secs(60);
        let output = finished("echo", Command::new("sh").args(["-c", "echo told"]), patience).unwrap();
        assert_eq!(output.stdout, b"told\n");
        let failed = finished("sh", Command::new("sh").args(["-c", "echo why >&2; exit 7"]), patience);
        assert!(failed.unwrap_err().to_string().contains("why"));
        let absent = finished("none", &mut Command::new("/nowhere/none"), patience).unwrap_err();
        assert!(absent.remedy().contains("scripts/peers"));
    }

    #[test]
    fn patience_ends() {
        let late = finished("sleep", Command::new("sleep").arg("1000"), Duration::from_millis(10));
        assert!(late.unwrap_err().to_string().contains("not done"));
    }

    #[test]
    fn lines_go_both_ways() {
        let mut cat = Talker::start("cat".into(), &mut Command::new("cat"), Duration::from_secs(60)).unwrap();
        cat.tell(&[1, 2]).unwrap();
        assert_eq!(cat.hear::<Vec<u32>>().unwrap(), [1, 2]);
    }
}
