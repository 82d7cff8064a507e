//! Replicated objects in processes that are killed, stopped and cut off: what all their clients saw of a map of registers is held against
//! [linearizability](consort_tests::linear), and whoever had a lock against whoever else had it.
//!
//! Each process runs a replica and some clients of it, and writes down what they do, with the machine's clock, which all processes
//! share. What a killed process has begun and not finished may have happened, or not.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read, Write as _};
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{Child, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use consort::coordination::{CoordinationError, Coordinator};
use consort::object::{Context, Options, Replica, Snapshot, StateMachine};
use consort::{NodeBuilder, WaitStrategy};
use consort_tests::linear::{self, Kind, Operation};
use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};
use rustix::time::{ClockId, clock_gettime};

use super::crew::{command, lines_behind, reserve};
use super::network;
use super::network::Network;

/// Node, process, address, fabric, and `registers` or `lock`.
const SELF: &str = "CONSORT_CHAOS_OBJECT";
/// `NODE=ADDRESS` of each peer; none: it joins by the addresses in [`JOIN`].
const PEERS: &str = "CONSORT_CHAOS_PEERS";
const JOIN: &str = "CONSORT_CHAOS_JOIN";

/// The bound on silence.
const SILENCE: Duration = Duration::from_secs(1);

/// So long may anything take before a scenario gives up.
const PATIENCE: Duration = Duration::from_secs(120);

/// Clients of a process.
const CLIENTS: u64 = 2;

/// Between two operations of a client.
const PACE: Duration = Duration::from_millis(1);

/// For so long clients use the same registers, in nanoseconds, so that no history is too long to be checked.
const AGE: u64 = 100_000_000;

/// A moment, of all processes' clock.
fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap() * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap()
}

/// Registers by their numbers.
#[derive(Default)]
struct Registers(BTreeMap<u64, u64>);

impl StateMachine for Registers {
    type Update = (u64, u64);
    type Reply = ();

    fn apply(&mut self, _: &Context, (register, value): (u64, u64)) {
        self.0.insert(register, value);
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot::of(&self.0)
    }

    fn restore(&mut self, from: &mut dyn Read) -> io::Result<()> {
        self.0 = Snapshot::read(from)?;
        Ok(())
    }
}

/// Not a test: the process that the scenarios start.
#[test]
#[ignore = "a process that other tests start"]
fn object() {
    let Ok(who) = std::env::var(SELF) else { return };
    set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
    let words: Vec<&str> = who.split(' ').collect();
    let [id, process, listen, fabric, what] = words[..] else { panic!("{who}") };
    let mut builder = NodeBuilder::new(id.parse().unwrap())
        .listen(listen.parse().unwrap())
        .fabric(fabric.parse().unwrap())
        .silence(SILENCE)
        .quorum_within(SILENCE * 2)
        .ring_bytes(64 << 10)
        .wait(WaitStrategy::Block)
        .rejoin(true);
    for peer in std::env::var(PEERS).unwrap().split_whitespace() {
        let (id, address) = peer.split_once('=').unwrap();
        builder = builder.peer(id.parse().unwrap(), address.parse().unwrap());
    }
    for address in std::env::var(JOIN).unwrap().split_whitespace() {
        builder = builder.join(address.parse().unwrap());
    }
    let mut file = File::from(io::stdout().as_fd().try_clone_to_owned().unwrap());
    file.write_all(b"\n").unwrap(); // the harness has begun a line
    let (file, process) = (Mutex::new(file), process.parse::<u64>().unwrap());
    let told = |line: std::fmt::Arguments<'_>| {
        file.lock().unwrap().write_all(format!("@{line}\n").as_bytes()).unwrap();
    };
    if what == "registers" {
        let options = Options::default().digest_every(16);
        let replica = Replica::start_with(builder, Registers::default(), options).unwrap();
        std::thread::scope(|scope| {
            for client in 0..CLIENTS {
                let (replica, told) = (&replica, &told);
                scope.spawn(move || read_and_write(replica, process * CLIENTS + client, told));
            }
        });
    } else {
        take_and_leave(&Coordinator::start(builder).unwrap(), &told);
    }
}

fn read_and_write(replica: &Replica<Registers>, client: u64, told: &dyn Fn(std::fmt::Arguments<'_>)) -> ! {
    for number in 0.. {
        let (call, value) = (now(), client << 32 | number);
        let register = call / AGE * 2 + number % 2;
        if (number + client).is_multiple_of(3) {
            told(format_args!("write {value} {register} {call}"));
            match replica.update(&(register, value)) {
                Ok(()) => told(format_args!("wrote {value} {}", now())),
                Err(error) if !error.may_be_applied() => told(format_args!("unsent {value}")),
                Err(_) => {}
            }
        } else if let Ok(found) = replica.query(|it| it.0.get(&register).copied()) {
            let found = found.map_or("none".to_owned(), |value| value.to_string());
            told(format_args!("read {register} {found} {call} {}", now()));
        }
        std::thread::sleep(PACE);
    }
    unreachable!("it is killed")
}

fn take_and_leave(coordinator: &Coordinator, told: &dyn Fn(std::fmt::Arguments<'_>)) -> ! {
    loop {
        let asked = now();
        match coordinator.lock_timeout("it", SILENCE) {
            Ok(Some(guard)) => {
                let (token, got) = (guard.token(), now());
                told(format_args!("got {} {} {asked} {got}", token.view, token.place));
                std::thread::sleep(PACE);
                told(format_args!("left {} {} {}", token.view, token.place, now()));
                drop(guard);
            }
            Ok(None) | Err(CoordinationError::Lost) => {}
            Err(_) => std::thread::sleep(PACE), // it is out, and will be in again
        }
    }
}

/// A process, killed when this is dropped.
struct Process {
    child: Child,
    file: File,
    node: usize,
    /// Something was done to it: it may hold a lock for longer than it has it.
    is_disturbed: bool,
}

impl Process {
    fn signal(&mut self, signal: Signal) {
        self.is_disturbed = true;
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// The whole lines that it has written.
    fn lines(&self) -> Vec<String> {
        lines_behind(&self.file, &mut 0)
    }

    /// How many operations of it have ended.
    fn done(&self) -> usize {
        let ended = |line: &&String| ["wrote", "read", "left"].iter().any(|word| line.starts_with(word));
        self.lines().iter().filter(ended).count()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Crew {
    what: &'static str,
    fabric: &'static str,
    places: Vec<(SocketAddr, Vec<String>)>,
    _held: Vec<OwnedFd>,
    processes: Vec<Process>,
}

impl Crew {
    fn new(what: &'static str, fabric: &'static str, places: Option<Vec<(SocketAddr, Vec<String>)>>) -> Self {
        let (held, here): (Vec<_>, Vec<_>) = (0..5).map(|_| reserve()).unzip();
        let places = places.unwrap_or_else(|| here.into_iter().map(|at| (at, Vec::new())).collect());
        let mut crew = Self { what, fabric, places, _held: held, processes: Vec::new() };
        (1..=5).for_each(|node| crew.start(node, false));
        crew.go_on(&[1, 2, 3, 4, 5]);
        crew
    }

    fn start(&mut self, node: usize, joins: bool) {
        let others = (1..).zip(&self.places).filter(|(other, _)| *other != node);
        let peers: Vec<_> = others.clone().map(|(other, (at, _))| format!("{other}={at}")).collect();
        let join: Vec<_> = others.map(|(_, (at, _))| at.to_string()).collect();
        let (address, prefix) = &self.places[node - 1];
        let file = tempfile::tempfile().unwrap();
        let child = command(prefix, "chaos::objects::object")
            .env(SELF, format!("{node} {} {address} {} {}", self.processes.len(), self.fabric, self.what))
            .env(PEERS, if joins { String::new() } else { peers.join(" ") })
            .env(JOIN, if joins { join.join(" ") } else { String::new() })
            .stdin(Stdio::null())
            .stdout(Stdio::from(file.try_clone().unwrap()))
            .spawn()
            .unwrap();
        self.processes.push(Process { child, file, node, is_disturbed: false });
    }

    fn node(&mut self, node: usize) -> &mut Process {
        self.processes.iter_mut().rfind(|process| process.node == node).unwrap()
    }

    /// Waits until some more operations of each of these have ended.
    fn go_on(&mut self, nodes: &[usize]) {
        let more = if self.what == "lock" { 5 } else { 150 };
        let marks: Vec<usize> = nodes.iter().map(|node| self.node(*node).done() + more).collect();
        let begun = Instant::now();
        while !nodes.iter().zip(&marks).all(|(node, mark)| self.node(*node).done() >= *mark) {
            assert!(begun.elapsed() < PATIENCE, "of {nodes:?} some do nothing");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Kills, stops and cuts off, with a majority undisturbed all the time.
    fn disturb(&mut self, network: Option<&Network>) {
        self.node(1).signal(Signal::KILL);
        self.go_on(&[2, 3, 4, 5]);
        self.start(1, true);
        self.go_on(&[1, 2, 3, 4, 5]);
        // Stopped until the others have gone on without it; then it finds itself out.
        self.node(2).signal(Signal::STOP);
        self.go_on(&[1, 3, 4, 5]);
        self.node(3).signal(Signal::KILL);
        self.go_on(&[1, 4, 5]);
        self.node(2).signal(Signal::CONT);
        self.start(3, true);
        self.go_on(&[1, 2, 3, 4, 5]);
        if let Some(network) = network {
            // Nodes 4 and 5.
            [4, 5].into_iter().for_each(|node| self.node(node).is_disturbed = true);
            network.part(&[4, 5], &[1, 2, 3]);
            self.go_on(&[1, 2, 3]);
            network.heal();
            self.go_on(&[1, 2, 3, 4, 5]);
        }
    }
}

/// With cuts, where a network can be made.
fn disturbed(what: &'static str, fabric: &'static str) -> Crew {
    let network = if fabric == "tcp" { network(5) } else { None };
    let mut crew = Crew::new(what, fabric, network.as_ref().map(|network| network.places()));
    crew.disturb(network.as_ref());
    // All stand still before any is killed, so that none takes over what another had at the end.
    let alive = |process: &mut Process| process.child.try_wait().unwrap().is_none();
    for process in crew.processes.iter_mut().filter_map(|process| alive(process).then_some(process)) {
        kill_process(Pid::from_child(&process.child), Signal::STOP).unwrap();
    }
    crew
}

fn numbers(words: &str) -> Vec<u64> {
    words.split(' ').map(|word| word.parse().unwrap()).collect()
}

/// All clients' reads and writes of each register have one order, whatever happens to the processes that they are in.
fn registers_are_linearizable(fabric: &'static str) {
    let crew = disturbed("registers", fabric);
    let mut histories: BTreeMap<u64, Vec<Operation>> = BTreeMap::new();
    let (mut reads, mut unknown) = (0, 0);
    for process in &crew.processes {
        let mut writes: BTreeMap<u64, (u64, Operation)> = BTreeMap::new();
        for line in process.lines() {
            let (what, rest) = line.split_once(' ').unwrap();
            match what {
                "write" => {
                    let [value, register, call] = numbers(rest)[..] else { panic!("{line}") };
                    writes.insert(value, (register, Operation { call, end: None, kind: Kind::Write(value) }));
                }
                "wrote" => {
                    let [value, end] = numbers(rest)[..] else { panic!("{line}") };
                    writes.get_mut(&value).unwrap().1.end = Some(end);
                }
                "unsent" => drop(writes.remove(&numbers(rest)[0])),
                "read" => {
                    let [register, found, call, end] = rest.split(' ').collect::<Vec<_>>()[..] else {
                        panic!("{line}")
                    };
                    let kind = Kind::Read(if found == "none" { None } else { Some(found.parse().unwrap()) });
                    let operation =
                        Operation { call: call.parse().unwrap(), end: Some(end.parse().unwrap()), kind };
                    histories.entry(register.parse().unwrap()).or_default().push(operation);
                    reads += 1;
                }
                _ => panic!("{line}"),
            }
        }
        unknown += writes.values().filter(|(_, write)| write.end.is_none()).count();
        for (register, write) in writes.into_values() {
            histories.entry(register).or_default().push(write);
        }
    }
    println!("{} registers, {reads} reads, {unknown} writes of which nothing is known", histories.len());
    for (register, history) in histories {
        linear::check(&history).unwrap_or_else(|error| panic!("register {register}: {error}"));
    }
}

#[test]
fn registers_are_linearizable_over_shared_memory() {
    registers_are_linearizable("shm");
}

#[test]
fn registers_are_linearizable_over_tcp() {
    registers_are_linearizable("tcp");
}

/// A time in which a process had the lock, as far as it knew.
struct Held {
    token: (u64, u64),
    asked: u64,
    got: u64,
    /// When it gave it back; it may have been killed before.
    left: Option<u64>,
    process: usize,
}

/// Nobody has a lock while another has it who is well; and whoever has it later has the greater token, also where the one before was
/// stopped and believes that it has it still.
fn locks_exclude(fabric: &'static str) {
    let crew = disturbed("lock", fabric);
    let mut all: Vec<Held> = Vec::new();
    for (process, it) in crew.processes.iter().enumerate() {
        for line in it.lines() {
            let (what, rest) = line.split_once(' ').unwrap();
            match (what, &numbers(rest)[..]) {
                ("got", &[view, place, asked, got]) => {
                    all.push(Held { token: (view, place), asked, got, left: None, process });
                }
                ("left", &[view, place, left]) => {
                    let held = all.iter_mut().rfind(|held| held.process == process).unwrap();
                    assert_eq!(held.token, (view, place));
                    held.left = Some(left);
                }
                _ => panic!("{line}"),
            }
        }
    }
    all.sort_by_key(|held| held.token);
    let tokens: BTreeSet<_> = all.iter().map(|held| held.token).collect();
    assert_eq!(tokens.len(), all.len(), "a token was given twice");
    for (before, after) in all.iter().zip(&all[1..]) {
        // Whoever asked after another had given it back has a greater token than that, so nobody in the order of tokens gave it back
        // before … was asked for.
        assert!(
            after.left.is_none_or(|left| left >= before.asked),
            "{:?} was given back before {:?} was asked for",
            after.token,
            before.token
        );
        if !crew.processes[before.process].is_disturbed {
            assert!(
                before.left.is_some_and(|left| left <= after.got),
                "{:?} was got while node {} had it as {:?}",
                after.token,
                crew.processes[before.process].node,
                before.token
            );
        }
    }
    println!("the lock was had {} times, by {} processes", all.len(), crew.processes.len());
    assert!(all.len() > 30);
}

#[test]
fn locks_exclude_over_shared_memory() {
    locks_exclude("shm");
}

#[test]
fn locks_exclude_over_tcp() {
    locks_exclude("tcp");
}
