//! The parent's side of member processes: start them, hear them, never leave one behind.
//!
//! Each member has three pipes and three threads: one thread reads what it says, one passes on what it logs (and keeps
//! the last lines for a failure's sake); orders are written by the caller. All that is heard goes through one channel,
//! so that the parent waits in one place.
//!
//! A member can't outlive its parent: [`Crew`] kills by process id and reaps whomever is left when it is dropped, on
//! whatever path; if the parent itself is killed the kernel kills the members (each asks for that at its start, see
//! [`crate::member`]). The death signal is tied to the *thread* that started the process, so a crew is started from
//! the main thread.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::FdFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use rustix::process::{Pid, PidfdFlags, Signal};

use crate::failure::Failure;
use crate::orders::{Said, Task, Told};

/// How much of what a member logged is kept for the message about its end.
const LAST_LINES: usize = 12;

/// Shows a line that a member logged.
pub(crate) type ShowLine = std::sync::Arc<dyn Fn(&str) + Send + Sync>;

/// Member processes, in the order in which they were started.
pub(crate) struct Crew {
    hands: Vec<Hand>,
    heard: Receiver<(usize, Heard)>,
    say: Sender<(usize, Heard)>,
    show: ShowLine,
}

struct Hand {
    name: String,
    child: Child,
    orders: Option<ChildStdin>,
    /// Ends when the member's standard error does, with the last lines of it.
    log: Option<JoinHandle<VecDeque<String>>>,
    ended: Option<ExitStatus>,
    /// It may end now: it was told to, or it said that it will.
    released: bool,
}

enum Heard {
    Said(Said),
    Garbled(String),
    /// End of its standard output.
    Silent,
}

impl Crew {
    /// Nobody yet. `show` prints what members log.
    pub(crate) fn new(show: ShowLine) -> Self {
        let (say, heard) = channel();
        Self { hands: Vec::new(), heard, say, show }
    }

    /// Starts one more member and gives it its task. Returns its place. Call it from the main thread.
    ///
    /// # Errors
    /// The machine refuses another process.
    pub(crate) fn start(&mut self, name: &str, log: &str, task: &Task) -> Result<usize, Failure> {
        self.start_by(&[], name, log, task)
    }

    /// The same with a command in front of the member's own, which it must become as it is: a member knows its parent by number.
    ///
    /// # Errors
    /// As [`Crew::start`].
    pub(crate) fn start_by(
        &mut self,
        before: &[String],
        name: &str,
        log: &str,
        task: &Task,
    ) -> Result<usize, Failure> {
        let refused = |cause: std::io::Error| {
            let what = format!("can't start a process for {name}: {cause}");
            match before {
                [first, ..] if cause.kind() == std::io::ErrorKind::NotFound => Failure::start(
                    what,
                    format!("there is no command {first:?}: see the --host of this member"),
                ),
                _ => Failure::start(
                    what,
                    "check the limit on processes (ulimit -u) and free memory, or run fewer members",
                ),
            }
        };
        let program = std::env::current_exe().map_err(refused)?;
        let mut command = match before {
            [] => Command::new(program),
            [first, rest @ ..] => {
                let mut command = Command::new(first);
                command.args(rest).arg(program);
                command
            }
        };
        let mut child = command
            .args(["member", "--parent", &std::process::id().to_string(), "--name", name, "--log", log])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(refused)?;
        tracing::info!("{name} is process {}", child.id());
        let index = self.hands.len();
        let (orders, said, logged) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        // From here on the crew owns the process: whatever fails now, drop ends it.
        let show = self.show.clone();
        let label = name.to_string();
        let log = std::thread::spawn(move || match logged {
            Some(logged) => pass_on(logged, &label, &show),
            None => VecDeque::new(),
        });
        let say = self.say.clone();
        if let Some(said) = said {
            std::thread::spawn(move || hear(said, index, &say));
        }
        self.hands.push(Hand {
            name: name.to_string(),
            child,
            orders,
            log: Some(log),
            ended: None,
            released: false,
        });
        self.write(index, task)?;
        Ok(index)
    }

    /// Its process.
    pub(crate) fn process(&self, index: usize) -> u32 {
        self.hands[index].child.id()
    }

    /// Sends a member a signal that it may die of: from here on its end is no failure.
    ///
    /// # Errors
    /// It is gone.
    pub(crate) fn signal(&mut self, index: usize, signal: Signal) -> Result<(), Failure> {
        let hand = &mut self.hands[index];
        // Not yet waited for, so the number is still this child's.
        if hand.ended.is_none() && rustix::process::kill_process(Pid::from_child(&hand.child), signal).is_ok()
        {
            hand.released = true;
            return Ok(());
        }
        Err(self.post_mortem(index))
    }

    /// Lets one member leave: from here on its end is no failure.
    ///
    /// # Errors
    /// As [`Crew::tell`].
    pub(crate) fn release(&mut self, index: usize) -> Result<(), Failure> {
        self.tell(index, &Told::Close)?;
        self.hands[index].released = true;
        Ok(())
    }

    /// Kills a member, if it isn't dead, and waits until it is.
    ///
    /// # Errors
    /// It can't be waited for.
    pub(crate) fn end(&mut self, index: usize) -> Result<(), Failure> {
        let hand = &mut self.hands[index];
        hand.released = true;
        let ended = hand.child.kill().and_then(|()| hand.child.wait());
        let ended = ended
            .map_err(|cause| Failure::lost(format!("can't wait for {}: {cause}", hand.name), "try again"))?;
        hand.ended = Some(ended);
        Ok(())
    }

    /// Tells one member something.
    ///
    /// # Errors
    /// The member is gone: the message says which and why.
    pub(crate) fn tell(&mut self, index: usize, told: &Told) -> Result<(), Failure> {
        self.write(index, told)
    }

    /// Tells all.
    ///
    /// # Errors
    /// As [`Crew::tell`].
    pub(crate) fn tell_all(&mut self, told: &Told) -> Result<(), Failure> {
        (0..self.hands.len()).try_for_each(|index| self.tell(index, told))
    }

    fn write<T: serde::Serialize>(&mut self, index: usize, order: &T) -> Result<(), Failure> {
        let line = serde_json::to_string(order)
            .map_err(|e| Failure::lost(format!("an order can't be written: {e}"), "report this as a bug"))?;
        let hand = &mut self.hands[index];
        let written = hand.orders.as_mut().is_some_and(|orders| writeln!(orders, "{line}").is_ok());
        if written { Ok(()) } else { Err(self.post_mortem(index)) }
    }

    /// Waits for the next thing that any member says, for at most `within`; `Ok(None)` when nobody said anything.
    ///
    /// # Errors
    /// A member failed, or died before it was released: which, and why.
    pub(crate) fn hear(&mut self, within: Duration) -> Result<Option<(usize, Said)>, Failure> {
        loop {
            match self.heard.recv_timeout(within) {
                Ok((index, Heard::Said(Said::Failed { code, message, remedy }))) => {
                    return Err(self.root_cause(index, Failure::from_code(code, message, remedy)));
                }
                Ok((index, Heard::Said(said))) => return Ok(Some((index, said))),
                Ok((index, Heard::Garbled(line))) => {
                    return Err(Failure::lost(
                        format!("{} said what is no answer: {line}", self.hands[index].name),
                        "nothing else may write to a member's standard output; report this as a bug",
                    ));
                }
                Ok((index, Heard::Silent)) if self.hands[index].released => {}
                Ok((index, Heard::Silent)) => return Err(self.post_mortem(index)),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return Ok(None),
            }
        }
    }

    /// Lets all members leave and waits until they have.
    ///
    /// # Errors
    /// A member did not end well, or not `within`.
    pub(crate) fn close(mut self, within: Duration) -> Result<(), Failure> {
        let until = Instant::now() + within;
        for hand in &mut self.hands {
            hand.released = true;
            if let Some(mut orders) = hand.orders.take() {
                // One that is gone already can't be told; its exit status says how it went.
                let _ = serde_json::to_string(&Told::Close).map(|line| writeln!(orders, "{line}"));
            }
        }
        let mut left = self.hands.iter().filter(|hand| hand.ended.is_none()).count();
        while left > 0 {
            match self.heard.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok((index, Heard::Said(Said::Failed { code, message, remedy }))) => {
                    return Err(self.root_cause(index, Failure::from_code(code, message, remedy)));
                }
                // One that was ended before.
                Ok((index, Heard::Silent)) if self.hands[index].ended.is_some() => {}
                Ok((index, Heard::Silent)) => {
                    left -= 1;
                    let status = self.hands[index].child.wait().map_err(|cause| {
                        Failure::lost(
                            format!("can't wait for {}: {cause}", self.hands[index].name),
                            "try again",
                        )
                    })?;
                    self.hands[index].ended = Some(status);
                    if !status.success() {
                        return Err(self.post_mortem(index));
                    }
                }
                Ok(_) => {}
                Err(_) => {
                    let late: Vec<&str> =
                        self.hands.iter().filter(|h| h.ended.is_none()).map(|h| h.name.as_str()).collect();
                    return Err(Failure::lost(
                        format!("still running after {within:?}: {}", late.join(", ")),
                        "run it again with --log debug to see what they wait for",
                    ));
                }
            }
        }
        Ok(())
    }

    /// A member lost the group. If that is so because another member died, that is the news: the survivors only saw its
    /// links break, and may say so before the dead one's pipes are seen to close.
    fn root_cause(&mut self, witness: usize, failure: Failure) -> Failure {
        if !matches!(failure, Failure::Lost { .. }) {
            return failure;
        }
        let until = Instant::now() + Duration::from_millis(500);
        while let Ok((index, heard)) =
            self.heard.recv_timeout(until.saturating_duration_since(Instant::now()))
        {
            match heard {
                // Its own reason to end comes first if it isn't a loss, too.
                Heard::Said(Said::Failed { code, message, remedy }) if code != failure.code() => {
                    return Failure::from_code(code, message, remedy);
                }
                Heard::Silent if index != witness => {
                    let status = wait_or_kill(&mut self.hands[index].child);
                    self.hands[index].ended = status.as_ref().ok().copied();
                    if status.is_ok_and(|status| status.code() != Some(i32::from(failure.code()))) {
                        return self.post_mortem(index);
                    }
                }
                _ => {}
            }
        }
        failure
    }

    /// Which member ended, how, and what it logged last. Waits for its end, kills it if it only closed its pipes.
    fn post_mortem(&mut self, index: usize) -> Failure {
        // What it said before it died explains more than how it died.
        while let Ok((_, heard)) = self.heard.try_recv() {
            if let Heard::Said(Said::Failed { code, message, remedy }) = heard {
                return Failure::from_code(code, message, remedy);
            }
        }
        let hand = &mut self.hands[index];
        let pid = hand.child.id();
        let how = match hand.ended.map_or_else(|| wait_or_kill(&mut hand.child), Ok) {
            Ok(status) => {
                hand.ended = Some(status);
                ending(status)
            }
            Err(cause) => format!("ended, and can't be waited for ({cause})"),
        };
        let last = hand.log.take().and_then(|log| log.join().ok()).unwrap_or_default();
        let mut message = format!("{} (process {pid}) {how}", hand.name);
        if !last.is_empty() {
            message.push_str("; its last words:");
            for line in last {
                message.push_str("\n    ");
                message.push_str(&line);
            }
        }
        Failure::lost(
            message,
            "if it was killed for memory (dmesg says so) use shorter lines or fewer members; else run again with --log debug",
        )
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        for hand in &mut self.hands {
            if hand.ended.is_none() {
                // Fails only if it has ended, which is what is wanted.
                let _ = hand.child.kill();
            }
        }
        for hand in &mut self.hands {
            let _ = hand.child.wait();
        }
    }
}

/// A member that has closed its standard output is ending; one that does not end within two seconds is ended.
fn wait_or_kill(child: &mut Child) -> std::io::Result<ExitStatus> {
    // Not yet waited for, so the number is still this child's.
    if let Some(status) = child.try_wait()? {
        return Ok(status);
    }
    let ending = rustix::process::pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    let patience = Timespec { tv_sec: 2, tv_nsec: 0 };
    poll(&mut [PollFd::new(&ending, PollFlags::IN)], Some(&patience))?;
    if let Some(status) = child.try_wait()? {
        return Ok(status);
    }
    child.kill()?;
    child.wait()
}

/// How a process ended, in words.
fn ending(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(0), _) => "left before it was done".to_string(),
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, Some(9)) => "was killed (SIGKILL)".to_string(),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => format!("ended: {status}"),
    }
}

/// Reads what a member says until it closes the pipe.
fn hear(said: impl Read, index: usize, say: &Sender<(usize, Heard)>) {
    for line in BufReader::new(said).lines() {
        let heard = match line {
            Ok(line) => match serde_json::from_str(&line) {
                Ok(said) => Heard::Said(said),
                Err(_) => Heard::Garbled(line.chars().take(200).collect()),
            },
            Err(_) => break,
        };
        if say.send((index, heard)).is_err() {
            return;
        }
    }
    let _ = say.send((index, Heard::Silent));
}

/// Shows what a member logs, and keeps its last lines.
fn pass_on(logged: impl Read, name: &str, show: &ShowLine) -> VecDeque<String> {
    let mut last = VecDeque::new();
    let mut logged = BufReader::new(logged);
    let mut line = Vec::new();
    while logged.by_ref().take(4096).read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
        let text = String::from_utf8_lossy(&line).trim_end().to_string();
        line.clear();
        show(&format!("{name}: {text}"));
        if last.len() == LAST_LINES {
            last.pop_front();
        }
        last.push_back(text);
    }
    last
}

/// Control addresses that are this group's own until the reservation is dropped.
///
/// Each is a socket bound to a port that the kernel chose, and never listening. Nobody else gets such a port by chance:
/// not as the port of a new connection, and not by asking for any port. A member that names it can bind it nevertheless
/// and listen on it, because both sockets allow reuse and this one doesn't listen. So there is no moment in which a port
/// was chosen but not held.
pub(crate) struct Ports {
    _held: Vec<OwnedFd>,
    addresses: Vec<SocketAddr>,
}

impl Ports {
    /// Reserves `count` addresses on the loopback interface.
    ///
    /// # Errors
    /// The machine has no loopback address, or no port left.
    pub(crate) fn reserve(count: u32) -> Result<Self, Failure> {
        let mut held = Vec::new();
        let mut addresses = Vec::new();
        for _ in 0..count {
            let (socket, address) = reserve_port().map_err(|cause| {
                Failure::start(
                    format!("can't reserve a port on 127.0.0.1: {cause}"),
                    "bring the loopback interface up (ip link set lo up), or free some ports",
                )
            })?;
            held.push(socket);
            addresses.push(address);
        }
        Ok(Self { _held: held, addresses })
    }

    /// The same ports at other addresses, one for each, where nobody holds them.
    pub(crate) fn at(mut self, hosts: impl IntoIterator<Item = IpAddr>) -> Self {
        for (address, host) in self.addresses.iter_mut().zip(hosts) {
            address.set_ip(host);
        }
        self
    }

    /// The addresses with the numbers of the members that they are for, from 1.
    pub(crate) fn numbered(&self) -> Vec<(u32, SocketAddr)> {
        (1..).zip(self.addresses.iter().copied()).collect()
    }
}

fn reserve_port() -> std::io::Result<(OwnedFd, SocketAddr)> {
    let socket =
        rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0))?;
    let address = rustix::net::getsockname(&socket)?;
    let address =
        SocketAddr::try_from(address).map_err(|_| std::io::Error::other("not an internet address"))?;
    Ok((socket, address))
}

/// Makes a descriptor survive into member processes, and says its number.
///
/// # Errors
/// The kernel's.
pub(crate) fn bequeath(file: &impl AsFd) -> std::io::Result<std::os::fd::RawFd> {
    use std::os::fd::AsRawFd as _;
    rustix::io::fcntl_setfd(file, FdFlags::empty())?;
    Ok(file.as_fd().as_raw_fd())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reserved_port_can_be_listened_on_by_name_only() {
        let ports = Ports::reserve(3).unwrap();
        let mut own: Vec<u16> = ports.addresses.iter().map(SocketAddr::port).collect();
        own.dedup();
        assert_eq!(own.len(), 3);
        let listener = std::net::TcpListener::bind(ports.addresses[0]).unwrap();
        std::net::TcpStream::connect(ports.addresses[0]).unwrap();
        drop(listener);
        // Whoever asks for any port gets another one.
        let others: Vec<_> = (0..200).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        for other in &others {
            assert!(!own.contains(&other.local_addr().unwrap().port()));
        }
    }

    #[test]
    fn endings_are_told_in_words() {
        assert_eq!(ending(ExitStatus::from_raw(9)), "was killed (SIGKILL)");
        assert_eq!(ending(ExitStatus::from_raw(3 << 8)), "ended with exit code 3");
        assert_eq!(ending(ExitStatus::from_raw(0)), "left before it was done");
    }

    #[test]
    fn a_members_last_lines_are_kept() {
        let text: String = (0..100).map(|n| format!("line {n}\n")).collect();
        let last = pass_on(text.as_bytes(), "m", &(std::sync::Arc::new(|_: &str| {}) as ShowLine));
        assert_eq!(last.len(), LAST_LINES);
        assert_eq!(last.back().map(String::as_str), Some("line 99"));
    }
}
