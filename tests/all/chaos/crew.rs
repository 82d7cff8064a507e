//! The scenarios' processes, what they have told so far, and whether it holds.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use consort::Question;
use consort_tests::record::{Chapter, Numbered, Records, Sent, Stay};
use rustix::net::{AddressFamily, SocketType, sockopt};
use rustix::process::{Pid, Signal, kill_process};

use super::member;

/// So long may anything take before a scenario gives up: far beyond what it takes on a loaded machine, and far below
/// [`NEVER`].
const PATIENCE: Duration = Duration::from_secs(120);

/// A bound on silence that can't be why anything happened.
pub(super) const NEVER: Duration = Duration::from_secs(3600);

/// How often the histories are looked at.
const LOOK: Duration = Duration::from_millis(2);

/// What all members of a crew have in common.
pub(super) struct Crew {
    fabric: &'static str,
    silence: Duration,
    rejoin: bool,
    /// What some nodes are beside that, in the words of [`member::SELF`].
    words: BTreeMap<u32, &'static str>,
    /// Where node 1, 2, … listen.
    addresses: Vec<SocketAddr>,
    /// What their processes are started by: words before the command, node by node.
    prefixes: Vec<Vec<String>>,
    /// Addresses that nobody else gets.
    _held: Vec<OwnedFd>,
    /// In the order of their starts; a process that is started again is another one.
    pub(super) processes: Vec<Process>,
}

/// One process. It is killed at the latest when this is dropped.
pub(super) struct Process {
    pub(super) node: u32,
    /// It is told of views, and of nothing else.
    witness: bool,
    child: Child,
    stdin: Option<ChildStdin>,
    file: File,
    read: u64,
    /// It was killed or told to leave: its end is none of its doing.
    sent_away: bool,
    pub(super) told: Told,
}

/// What one process has told.
#[derive(Default)]
pub(super) struct Told {
    pub(super) stays: Vec<Stay>,
    /// The newest stay has come to its end.
    out: bool,
    pub(super) sent: Sent,
    /// Outcomes that don't say delivered.
    failed: u64,
    /// Why it was out, each time: `Evicted`, `NoQuorum`.
    pub(super) evictions: Vec<String>,
    pub(super) stopped: Option<String>,
    pub(super) closed: bool,
    /// The same of the groups beside the main one.
    groups: BTreeMap<String, Told>,
}

/// The group of all.
const MAIN: &str = "main";

impl Crew {
    /// A crew on this host, of up to `size` nodes; none is started.
    pub(super) fn new(size: usize, fabric: &'static str, silence: Duration, rejoin: bool) -> Self {
        let (held, addresses) = (0..size).map(|_| reserve()).unzip();
        let prefixes = vec![Vec::new(); size];
        let words = BTreeMap::new();
        Self { fabric, silence, rejoin, words, addresses, prefixes, _held: held, processes: Vec::new() }
    }

    /// A crew elsewhere: an address and the words that start a command there, for each node.
    pub(super) fn at(
        places: Vec<(SocketAddr, Vec<String>)>,
        fabric: &'static str,
        silence: Duration,
        rejoin: bool,
    ) -> Self {
        let (addresses, prefixes) = places.into_iter().unzip();
        let words = BTreeMap::new();
        Self { fabric, silence, rejoin, words, addresses, prefixes, _held: Vec::new(), processes: Vec::new() }
    }

    /// Says more of a node before it is started, in the words of [`member::SELF`].
    pub(super) fn also(&mut self, node: u32, words: &'static str) {
        self.words.insert(node, words);
    }

    /// Starts nodes 1 to `count`, which found the group, and waits until they all send and hear each other.
    pub(super) fn found(&mut self, count: u32) {
        (1..=count).for_each(|node| self.start(node, count));
        let all: Vec<u32> = (1..=count).collect();
        self.all_see(&all);
        self.goes_on(&all);
    }

    /// Starts a node that knows nodes 1 to `founders` as its peers.
    pub(super) fn start(&mut self, node: u32, founders: u32) {
        let peers: Vec<_> = (1..=founders)
            .filter(|peer| *peer != node)
            .map(|peer| format!("{peer}={}", self.address(peer)))
            .collect();
        self.spawn(node, &peers.join(" "), "");
    }

    /// Starts a node that joins by these members.
    pub(super) fn join(&mut self, node: u32, by: &[u32]) {
        let by: Vec<_> = by.iter().map(|member| self.address(*member).to_string()).collect();
        self.spawn(node, "", &by.join(" "));
    }

    fn address(&self, node: u32) -> SocketAddr {
        self.addresses[node as usize - 1]
    }

    fn spawn(&mut self, node: u32, peers: &str, join: &str) {
        let process = self.processes.len();
        let (address, silence) = (self.address(node), self.silence.as_millis());
        let rejoin = if self.rejoin { " rejoin" } else { "" };
        let words = self.words.get(&node).copied().unwrap_or_default();
        let file = tempfile::tempfile().unwrap();
        let mut child = command(&self.prefixes[node as usize - 1], "chaos::member::member")
            .env(
                member::SELF,
                format!("{node} {process} {address} {} {silence}{rejoin} {words}", self.fabric),
            )
            .env(member::PEERS, peers)
            .env(member::JOIN, join)
            .stdin(Stdio::piped())
            .stdout(Stdio::from(file.try_clone().unwrap()))
            .spawn()
            .unwrap();
        let (stdin, told, witness) = (child.stdin.take(), Told::default(), words.contains("witness"));
        self.processes.push(Process { node, witness, child, stdin, file, read: 0, sent_away: false, told });
    }

    /// The newest process of that node.
    pub(super) fn node(&mut self, node: u32) -> &mut Process {
        self.processes.iter_mut().rfind(|process| process.node == node).unwrap()
    }

    /// Kills these, one right after the other, and reaps them.
    pub(super) fn kill(&mut self, nodes: &[u32]) {
        for node in nodes {
            let process = self.node(*node);
            process.sent_away = true;
            process.child.kill().unwrap();
        }
        for node in nodes {
            self.node(*node).child.wait().unwrap();
        }
    }

    /// Waits until something is true of the histories.
    pub(super) fn wait(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let begun = Instant::now();
        loop {
            for process in &mut self.processes {
                process.read();
            }
            if done(self) {
                return;
            }
            if begun.elapsed() > PATIENCE {
                panic!("in vain: {what}\n{}", self.picture());
            }
            for process in &mut self.processes {
                let ended = !process.sent_away && process.child.try_wait().unwrap().is_some();
                assert!(!ended, "node {} has ended by itself, while waiting: {what}", process.node);
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Waits until the newest view of each of these is of these, and the same.
    pub(super) fn all_see(&mut self, nodes: &[u32]) -> u64 {
        self.wait(&format!("a view of {nodes:?}"), |crew| crew.agree(nodes));
        self.node(nodes[0]).view_of(nodes).unwrap()
    }

    /// Whether the newest view of each of these is of these, and the same.
    pub(super) fn agree(&mut self, nodes: &[u32]) -> bool {
        let views: Vec<_> = nodes.iter().map(|node| self.node(*node).view_of(nodes)).collect();
        views[0].is_some() && views.iter().all(|view| *view == views[0])
    }

    /// Waits until these have delivered new messages of each of these.
    pub(super) fn goes_on(&mut self, nodes: &[u32]) {
        self.group_goes_on(MAIN, nodes);
    }

    /// The same of a group.
    pub(super) fn group_goes_on(&mut self, group: &str, nodes: &[u32]) {
        let marks: Vec<u64> = nodes.iter().map(|node| self.node(*node).told.of(group).sent.count).collect();
        let processes: Vec<u32> = nodes.iter().map(|node| self.process(*node)).collect();
        self.wait(&format!("{nodes:?} deliver what they send in {group}"), |crew| {
            nodes.iter().all(|node| {
                let told = crew.node(*node).told.of(group);
                processes.iter().zip(&marks).all(|(process, mark)| {
                    // Among the last messages one of each, well beyond what was begun before.
                    let last = told.stays.last().and_then(|stay| stay.chapters.last());
                    last.is_some_and(|chapter| {
                        let new = chapter.messages.iter().rev().take(256).map(|(_, message)| message);
                        new.clone().any(|it| it.process == *process && it.number > *mark + 20)
                    })
                })
            })
        });
    }

    /// Waits until this node has begun to send so many more.
    pub(super) fn sends(&mut self, node: u32, more: u64) {
        self.node(node).read();
        let mark = self.node(node).told.sent.count + more;
        self.wait(&format!("node {node} sends"), |crew| crew.node(node).told.sent.count >= mark);
    }

    /// Asks a node as `consort status` and `consort explain` do.
    pub(super) fn ask(&self, node: u32, question: Question) -> serde_json::Value {
        let answer = consort::ask(self.address(node), None, question, PATIENCE).unwrap();
        serde_json::from_str(&answer).unwrap()
    }

    fn process(&self, node: u32) -> u32 {
        u32::try_from(self.processes.iter().rposition(|process| process.node == node).unwrap()).unwrap()
    }

    /// These stop sending; waits until they know what became of all that they sent and have delivered the same, then checks
    /// what all have told.
    pub(super) fn settle(&mut self, nodes: &[u32]) -> Records {
        self.settle_group(MAIN, nodes)
    }

    /// The same of a group. (They stop sending in all.)
    pub(super) fn settle_group(&mut self, group: &str, nodes: &[u32]) -> Records {
        nodes.iter().for_each(|node| self.node(*node).say("quiet"));
        self.wait(&format!("all is told that {nodes:?} sent in {group}"), |crew| {
            let ends: Vec<_> = nodes.iter().map(|node| crew.node(*node).told.of(group).end()).collect();
            ends.iter().all(|end| end.is_some() && *end == ends[0])
        });
        for process in &mut self.processes {
            process.read();
        }
        let mut records = Records::default();
        for (number, process) in (0..).zip(&mut self.processes).filter(|(_, process)| !process.witness) {
            let told = process.told.of(group);
            records.stays.extend(told.stays.iter().cloned());
            records.sent.insert(number, told.sent.clone());
        }
        if let Err(error) = records.check() {
            panic!("{group}: {error}\n{}", self.picture());
        }
        for node in nodes {
            let told = self.node(*node).told.of(group);
            assert!(told.failed == 0 || told.sent.evicted, "node {node}: {} sends failed", told.failed);
        }
        records
    }

    /// For people: where everyone stands.
    fn picture(&self) -> String {
        let line = |process: &Process| {
            let told = &process.told;
            let views = told.stays.iter().flat_map(|stay| &stay.chapters).map(|chapter| {
                let members: Vec<_> = chapter.members.iter().map(|(node, _)| node.to_string()).collect();
                format!("{} of {} ({} messages)", chapter.view, members.join(","), chapter.messages.len())
            });
            let views: Vec<_> = views.collect();
            format!(
                "node {}: {} sent, {} delivered, {} failed, evicted {:?}, stopped {:?}; views {}\n",
                process.node,
                told.sent.count,
                told.sent.delivered.len(),
                told.failed,
                told.evictions,
                told.stopped,
                views.join("; ")
            )
        };
        let stand: String = self.processes.iter().map(line).collect();
        let nodes =
            (1..).zip(&self.addresses).filter(|(node, _)| self.processes.iter().any(|it| it.node == *node));
        // Those who can be asked from here.
        let asked = nodes.map(|(node, address)| {
            let answer = consort::ask(*address, None, Question::Explain, Duration::from_secs(2));
            format!("node {node} waits: {}\n", answer.unwrap_or_else(|error| error.to_string()))
        });
        stand + &asked.collect::<String>()
    }
}

impl Process {
    pub(super) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub(super) fn say(&mut self, word: &str) {
        self.sent_away |= word == "leave";
        writeln!(self.stdin.as_ref().unwrap(), "{word}").unwrap();
    }

    /// The number of its newest view, if that is of these and it is in it still.
    fn view_of(&self, nodes: &[u32]) -> Option<u64> {
        let chapter = self.told.now()?;
        let mut members: Vec<u32> = chapter.members.iter().map(|(node, _)| *node).collect();
        members.sort_unstable(); // one that came again has the last rank
        (members == nodes).then_some(chapter.view)
    }

    /// Reads on in its history.
    fn read(&mut self) {
        for line in lines_behind(&self.file, &mut self.read) {
            self.told.line(self.node, &line);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill(); // also where it is stopped
        let _ = self.child.wait();
    }
}

impl Told {
    /// What was told of that group.
    fn of(&mut self, group: &str) -> &mut Self {
        if group == MAIN { self } else { self.groups.entry(group.to_owned()).or_default() }
    }

    /// The chapter that it is in.
    pub(super) fn now(&self) -> Option<&Chapter> {
        if self.out || self.stopped.is_some() {
            return None;
        }
        self.stays.last()?.chapters.last()
    }

    /// Its view and how much it has delivered there, once it knows what became of all that it sent.
    fn end(&self) -> Option<(u64, usize)> {
        let known = self.sent.delivered.len() as u64 + self.failed;
        let chapter = self.now().filter(|_| known == self.sent.count)?;
        Some((chapter.view, chapter.messages.len()))
    }

    fn line(&mut self, me: u32, line: &str) {
        let (what, rest) = line.split_once(' ').unwrap_or((line, ""));
        let numbers = || -> Vec<u64> { rest.split(' ').map(|word| word.parse().unwrap()).collect() };
        match what {
            "view" => self.view(me, rest),
            "message" => {
                let [view, place, process, number] = numbers()[..] else { panic!("{line}") };
                let chapter = self.stays.last_mut().and_then(|stay| stay.chapters.last_mut());
                let chapter = chapter.filter(|_| !self.out).expect("a message comes in a view");
                assert_eq!(chapter.view, view, "node {me}: {line}");
                let process = u32::try_from(process).unwrap();
                chapter.messages.push((place, Numbered { process, number }));
            }
            "send" => {
                assert_eq!(numbers(), [self.sent.count]);
                self.sent.count += 1;
            }
            "delivered" => {
                let [number, view, place] = numbers()[..] else { panic!("{line}") };
                self.sent.delivered.insert(number, (view, place));
            }
            "failed" => self.failed += 1,
            "evicted" => {
                self.out = true;
                self.sent.evicted = true;
                self.evictions.push(rest.split(' ').next().unwrap().to_owned());
            }
            "stopped" => {
                self.sent.evicted = true;
                self.stopped = Some(rest.to_owned());
            }
            "closed" => self.closed = true,
            "in" => {
                let (group, line) = rest.split_once(' ').unwrap();
                self.of(group).line(me, line);
            }
            other => panic!("{other}: not understood"),
        }
    }

    fn view(&mut self, me: u32, words: &str) {
        let mut words = words.split(' ');
        let view = words.next().unwrap().parse().unwrap();
        let members: Vec<(u32, u64)> = words
            .map(|word| word.split_once(':').unwrap())
            .map(|(node, incarnation)| (node.parse().unwrap(), incarnation.parse().unwrap()))
            .collect();
        // A view without itself is told to one that leaves.
        let Some(&me) = members.iter().find(|(node, _)| *node == me) else {
            self.out = true;
            return;
        };
        if self.out || self.stays.last().is_none_or(|stay| stay.me != me) {
            self.stays.push(Stay { me, chapters: Vec::new() });
            self.out = false;
        }
        let stay = self.stays.last_mut().expect("it is there now");
        stay.chapters.push(Chapter { view, members, messages: Vec::new() });
    }
}

/// What runs one of this binary's own tests as a process, where these words lead to.
pub(super) fn command(prefix: &[String], test: &str) -> Command {
    let this = std::env::current_exe().unwrap();
    let mut command = match prefix {
        [] => Command::new(this),
        [first, more @ ..] => {
            let mut command = Command::new(first);
            command.args(more).arg(this);
            command
        }
    };
    command.args(["--exact", test, "--ignored", "--nocapture", "--test-threads=1"]);
    command
}

/// What was appended to a file behind so many bytes, as far as it is whole lines; those that begin with `@`, without that.
pub(super) fn lines_behind(file: &File, read: &mut u64) -> Vec<String> {
    let mut new = Vec::new();
    let mut piece = vec![0; 64 << 10];
    loop {
        let length = file.read_at(&mut piece, *read + new.len() as u64).unwrap();
        if length == 0 {
            break;
        }
        new.extend_from_slice(&piece[..length]);
    }
    // What has no newline yet is not a line.
    new.truncate(new.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1));
    *read += new.len() as u64;
    let text = String::from_utf8(new).unwrap();
    text.lines().filter_map(|line| line.strip_prefix('@')).map(str::to_owned).collect()
}

/// An address that is the crew's: bound and not listening, so that a node that names it can have it, and nobody else gets
/// it by chance.
pub(super) fn reserve() -> (OwnedFd, SocketAddr) {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC).unwrap();
    sockopt::set_socket_reuseaddr(&socket, true).unwrap();
    rustix::net::bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = SocketAddr::try_from(rustix::net::getsockname(&socket).unwrap()).unwrap();
    (socket, address)
}
