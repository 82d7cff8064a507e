//! Processes that end with the test, and what they said.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketType, sockopt};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

/// So long may anything take before a test gives up: far beyond what it takes on a loaded machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// The command under test.
pub(crate) fn consort(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_consort"));
    command.args(args);
    command
}

/// How a command ended.
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    /// The one JSON object that was printed.
    pub(crate) fn json(&self) -> serde_json::Value {
        assert_eq!(self.stdout.lines().count(), 1, "one object: {}\n{}", self.stdout, self.stderr);
        serde_json::from_str(&self.stdout).unwrap()
    }
}

/// Runs the command to its end.
pub(crate) fn run(args: &[&str]) -> Ended {
    let mut running = Running::start(consort(args).stdin(Stdio::null()));
    running.end()
}

/// A process that is killed when dropped.
pub(crate) struct Running {
    child: Child,
    pub(crate) stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
    log: Receiver<String>,
    logged: String,
}

impl Running {
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (say, log) = channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| say.send(line)));
        Self { stdin: child.stdin.take(), stdout: child.stdout.take(), child, log, logged: String::new() }
    }

    /// The next line of standard error; `None` at its end.
    pub(crate) fn next_log(&mut self) -> Option<String> {
        let line = self.log.recv_timeout(PATIENCE).ok()?;
        self.logged.push_str(&line);
        self.logged.push('\n');
        Some(line)
    }

    /// Standard output, to be read by the test.
    pub(crate) fn stdout(&mut self) -> BufReader<ChildStdout> {
        BufReader::new(self.stdout.take().unwrap())
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for the end.
    pub(crate) fn end(&mut self) -> Ended {
        drop(self.stdin.take());
        let mut stdout = String::new();
        if let Some(mut from) = self.stdout.take() {
            std::io::Read::read_to_string(&mut from, &mut stdout).unwrap();
        }
        while self.next_log().is_some() {}
        let code = self.child.wait().unwrap().code();
        Ended { code, stdout, stderr: std::mem::take(&mut self.logged) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Feeds standard input from a thread and closes it.
pub(crate) fn feed(mut stdin: ChildStdin, text: Vec<u8>) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        // A process that has ended takes no more.
        let _ = stdin.write_all(&text);
    })
}

/// A process that isn't a child of ours.
pub(crate) struct Stranger(Option<OwnedFd>);

impl Stranger {
    pub(crate) fn new(pid: i32) -> Self {
        Self(pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()).ok())
    }

    /// Whether it has ended, waiting for that.
    pub(crate) fn has_ended(&self) -> bool {
        let Some(process) = &self.0 else { return true };
        let patience = Timespec { tv_sec: PATIENCE.as_secs().cast_signed(), tv_nsec: 0 };
        poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&patience)).unwrap() == 1
    }
}

/// Addresses that are this test's until dropped: bound and not listening, so that a node that names one can have it, and
/// nobody else gets it by chance.
pub(crate) struct Ports {
    _held: Vec<OwnedFd>,
    pub(crate) addresses: Vec<SocketAddr>,
}

impl Ports {
    pub(crate) fn reserve(count: usize) -> Self {
        let (held, addresses) = (0..count)
            .map(|_| {
                let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
                rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC).unwrap();
                sockopt::set_socket_reuseaddr(&socket, true).unwrap();
                rustix::net::bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).unwrap();
                let address = SocketAddr::try_from(rustix::net::getsockname(&socket).unwrap()).unwrap();
                (socket, address)
            })
            .unzip();
        Self { _held: held, addresses }
    }
}
