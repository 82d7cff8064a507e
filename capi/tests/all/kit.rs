//! Builds C programs against the header and the library, and runs them as processes that end with their test.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use rustix::io::{FdFlags, fcntl_setfd};

/// Longer than anything that is sure to come takes: a test that hangs ends all the same.
const AMPLE: Duration = Duration::from_secs(120);

/// The crate's directory.
pub(crate) fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A directory with the library under the names that C programs know it by.
pub(crate) fn library() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| {
        let exe = std::env::current_exe().unwrap();
        // Beside the test itself: what lies one above is of the last `cargo build`.
        let built = exe.parent().unwrap();
        let made = Path::new(env!("CARGO_TARGET_TMPDIR")).join("libconsort");
        std::fs::create_dir_all(&made).unwrap();
        for (name, of) in [
            ("libconsort.so", "libconsort_c.so"),
            ("libconsort.so.0", "libconsort_c.so"),
            ("libconsort.a", "libconsort_c.a"),
        ] {
            let link = made.join(name);
            let _ = std::fs::remove_file(&link);
            std::os::unix::fs::symlink(built.join(of), link).unwrap();
        }
        made
    })
}

/// Whether the machine has a tool. If not, says which test goes without.
pub(crate) fn has(tool: &str, package: &str) -> bool {
    let found = Command::new("sh").args(["-c", &format!("command -v {tool}")]).stdout(Stdio::null()).status();
    let found = found.is_ok_and(|status| status.success());
    if !found {
        skips(&format!("no {tool} here; apt-get install {package}"));
    }
    found
}

/// Says that this test goes without something, and why: past what the harness captures, so that nobody takes it for done.
pub(crate) fn skips(why: &str) {
    let thread = std::thread::current();
    let _ = writeln!(std::io::stderr(), "SKIPPED in {}: {why}", thread.name().unwrap_or("a test"));
}

/// How a program is built.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Build {
    Plain,
    /// With AddressSanitizer and UndefinedBehaviorSanitizer.
    Sanitized,
}

/// Compiles a source file, or all C files of a directory, with every warning an error.
pub(crate) fn compile(source: &Path, build: Build) -> PathBuf {
    let name = source.file_stem().and_then(OsStr::to_str).unwrap();
    let is_cpp = source.extension().is_some_and(|it| it == "cpp");
    let plus = if is_cpp { "++" } else { "" };
    let to =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}{plus}-{build:?}-{}", thread_number()));
    let mut compiler = Command::new(if is_cpp { "g++" } else { "gcc" });
    compiler.arg(if is_cpp { "-std=c++17" } else { "-std=c99" }).args(["-D_GNU_SOURCE", "-g", "-O1"]);
    compiler.args(["-Wall", "-Wextra", "-Werror", "-pedantic"]);
    if build == Build::Sanitized {
        compiler.args([
            "-fsanitize=address,undefined",
            "-fno-sanitize-recover=all",
            "-fno-omit-frame-pointer",
        ]);
    }
    for headers in ["include", "examples", "tests/c"] {
        compiler.arg("-I").arg(here().join(headers));
    }
    if source.is_dir() {
        let files = std::fs::read_dir(source).unwrap().map(|file| file.unwrap().path());
        compiler.args(files.filter(|file| file.extension().is_some_and(|it| it == "c")));
    } else {
        compiler.arg(source);
    }
    compiler.arg("-o").arg(&to);
    compiler.arg("-L").arg(library()).args(["-lconsort", "-pthread"]);
    compiler.arg(format!("-Wl,-rpath,{}", library().display()));
    let output = compiler.output().unwrap();
    assert!(output.status.success(), "{compiler:?}\n{}", String::from_utf8_lossy(&output.stderr));
    to
}

/// Tests that build the same program at once don't get in each other's way.
fn thread_number() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A member's socket, bound by the test so that no two tests get the same port.
pub(crate) struct Socket {
    listener: TcpListener,
    pub(crate) address: SocketAddr,
}

/// So many of them.
pub(crate) fn sockets(count: usize) -> Vec<Socket> {
    let one = |_| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        Socket { listener, address }
    };
    (0..count).map(one).collect()
}

/// A process, its input, and its output line by line. Killed when dropped.
pub(crate) struct Process {
    child: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
    heard: Vec<String>,
}

/// Runs a program; with a socket it is given to the program as `--listen-fd`.
pub(crate) fn run(mut command: Command, socket: Option<&Socket>) -> Process {
    // A descriptor that children inherit would be inherited by all that start meanwhile.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(socket) = socket {
        fcntl_setfd(&socket.listener, FdFlags::empty()).unwrap();
        command.args(["--listen-fd", &socket.listener.as_raw_fd().to_string()]);
    }
    // Cargo sets it, and it would come before where the program was told to look.
    command.env_remove("LD_LIBRARY_PATH");
    let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn();
    if let Some(socket) = socket {
        fcntl_setfd(&socket.listener, FdFlags::CLOEXEC).unwrap();
    }
    drop(one);
    let mut child = spawned.unwrap();
    let (tell, lines) = channel();
    let output = child.stdout.take().unwrap();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if tell.send(line).is_err() {
                return;
            }
        }
    });
    Process { input: child.stdin.take(), child, lines, heard: Vec::new() }
}

/// A member of a group of examples: number `at` of all these sockets.
pub(crate) fn member(program: &Path, at: usize, sockets: &[Socket], more: &[&str]) -> Process {
    let mut command = Command::new(program);
    command.args(["--id", &(at + 1).to_string()]).args(more);
    for (other, socket) in sockets.iter().enumerate().filter(|(other, _)| *other != at) {
        command.args(["--peer", &format!("{}={}", other + 1, socket.address)]);
    }
    run(command, Some(&sockets[at]))
}

/// Three members hear the same, so many lines, and go on when one is killed.
pub(crate) fn goes_on(mut members: Vec<Process>, lines: usize) {
    let heard: Vec<Vec<_>> = members.iter_mut().map(|it| (0..lines).map(|_| it.line()).collect()).collect();
    assert!(heard.iter().all(|lines| *lines == heard[0]), "{heard:?}");
    members.remove(1).kill();
    for member in &mut members {
        member.until(|line| line == "# view 2 of 1 3");
    }
    members[1].say("it goes on");
    for member in &mut members {
        assert_eq!(member.line(), "3: it goes on");
    }
    members.iter_mut().for_each(Process::hush);
    for member in members {
        assert!(member.end().0.success());
    }
}

impl Process {
    pub(crate) fn say(&mut self, line: &str) {
        writeln!(self.input.as_mut().unwrap(), "{line}").unwrap();
    }

    /// The last of its input, without the end of a line.
    pub(crate) fn say_all(&mut self, text: &str) {
        self.input.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }

    /// The end of its input.
    pub(crate) fn hush(&mut self) {
        self.input = None;
    }

    /// Its next line, without those that begin with `#`, which depend on when who came.
    pub(crate) fn line(&mut self) -> String {
        loop {
            let line = self.any_line();
            if !line.starts_with('#') {
                return line;
            }
        }
    }

    /// Its next line.
    pub(crate) fn any_line(&mut self) -> String {
        let line = self.lines.recv_timeout(AMPLE);
        let line = line.unwrap_or_else(|_| panic!("it says nothing more after {:?}", self.heard));
        self.heard.push(line.clone());
        line
    }

    /// Reads on until a line fits.
    pub(crate) fn until(&mut self, fits: impl Fn(&str) -> bool) -> String {
        loop {
            let line = self.any_line();
            if fits(&line) {
                return line;
            }
        }
    }

    /// As `kill -9` does.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// As `kill` does: asks it to end.
    pub(crate) fn terminate(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }

    /// Waits for its end, and gives the rest of its lines but those that begin with `#`.
    pub(crate) fn end(mut self) -> (ExitStatus, Vec<String>) {
        self.input = None;
        let mut lines = Vec::new();
        loop {
            match self.lines.recv_timeout(AMPLE) {
                Ok(line) => lines.push(line),
                Err(RecvTimeoutError::Disconnected) => break, // its output is closed: it ends
                Err(RecvTimeoutError::Timeout) => {
                    let _ = self.child.kill(); // it hangs, and the status will say so
                    break;
                }
            }
        }
        let status = self.child.wait().unwrap();
        lines.retain(|line| !line.starts_with('#'));
        (status, lines)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // By its own number, which is its until it is waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
