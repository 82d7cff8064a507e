//! A durable group whose members are killed (kill -9), one, several or all of them, under load, and started again with what they have on disk:
//! what an outcome called durable is never missing, the logs are one, and every member is told the same history again (P1 to P4).
//!
//! `cargo xtask crash --rounds 500` for the long campaign; the seed is printed, and `CONSORT_CRASH_SEED` sets it.

#![allow(clippy::print_stdout, reason = "the seed of a campaign has to be seen")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, Write as _};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use consort::log::{Condition, Directory, LogKind, scan_each};
use rustix::process::Signal;
use serde_json::Value;

use crate::process::{PATIENCE, Ports, Running, consort};

const NODES: usize = 3;

/// Lines of a member that have no outcome yet, at most, and of one life in all: what is written is read again in each round.
const WINDOW: usize = 32;
const LINES: usize = 1500;

/// After so many rounds it begins with empty directories.
const ROUNDS_A_GROUP: u64 = 20;

/// A small source of choices (splitmix64).
struct Choices(u64);

impl Choices {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) % end
    }
}

/// What a member has said that the test waits for.
enum Said {
    View(Vec<u64>),
    Durable,
    Stopped,
}

/// A message as a log or a member has it.
type Had = (u64, u64, String);

/// A member that sends all the time.
struct Member {
    process: Running,
    said: Receiver<Said>,
    messages: Arc<Mutex<Vec<Had>>>,
}

/// What was reported as durable, over all rounds.
type Durable = Arc<Mutex<BTreeSet<String>>>;

impl Member {
    fn start(
        id: usize,
        (life, guarantee): (&str, &str),
        place: &Path,
        ports: &Ports,
        durable: &Durable,
    ) -> Self {
        let (listen, data) = (ports.addresses[id - 1].to_string(), place.join(id.to_string()));
        let own = id.to_string();
        let mut command = consort(&["node", "--id", &own, "--listen", &listen, "--fabric", "shm"]);
        command
            .args(["--guarantee", guarantee, "--silence", "500ms", "--quorum-within", "2s", "--data"])
            .arg(data);
        for other in (1..=NODES).filter(|other| *other != id) {
            command.arg("--peer").arg(format!("{other}={}", ports.addresses[other - 1]));
        }
        let mut process = Running::start(command.stdin(Stdio::piped()));
        let mut stdin = process.stdin.take().unwrap();
        let prefix = format!("{life}-{id}-");
        let (tell, told) = channel::<()>();
        std::thread::spawn({
            let prefix = prefix.clone();
            move || {
                // Ends when the process does: nobody reads then.
                for number in 0..LINES {
                    if number >= WINDOW && told.recv().is_err() {
                        return;
                    }
                    let filling = "x".repeat(number % 97 * 11);
                    if writeln!(stdin, "{prefix}{number}:{filling}").is_err() {
                        return;
                    }
                }
                let _ = told.iter().count(); // its input stays open as long as it lives
            }
        });
        let lines = process.stdout().lines();
        let (say, said) = channel();
        let (messages, durable) = (Arc::new(Mutex::new(Vec::new())), durable.clone());
        std::thread::spawn({
            let messages = messages.clone();
            move || {
                for line in lines.map_while(Result::ok) {
                    // The last line of a process that was killed may be half of one.
                    let Ok(line) = serde_json::from_str::<Value>(&line) else { return };
                    let told = match line["type"].as_str() {
                        Some("message") => {
                            let number = |key: &str| line[key].as_u64().unwrap();
                            let data = line["data"].as_str().unwrap().to_owned();
                            messages.lock().unwrap().push((number("view"), number("seq"), data));
                            continue;
                        }
                        Some("outcome") if line["status"] == "durable" => {
                            let number = line["send"].as_u64().unwrap();
                            durable.lock().unwrap().insert(format!("{prefix}{number}:"));
                            let _ = tell.send(());
                            Said::Durable
                        }
                        Some("view") => Said::View(
                            line["members"].as_array().unwrap().iter().filter_map(Value::as_u64).collect(),
                        ),
                        Some("stopped") => Said::Stopped,
                        _ => continue,
                    };
                    if say.send(told).is_err() {
                        return;
                    }
                }
            }
        });
        Self { process, said, messages }
    }

    /// Waits for a view of all members.
    fn sees_all(&self) {
        let all: Vec<u64> = (1..=NODES as u64).collect();
        loop {
            let said = self.said.recv_timeout(PATIENCE).expect("a view of all members");
            match said {
                Said::View(mut members) => {
                    members.sort_unstable();
                    if members == all {
                        return;
                    }
                }
                Said::Stopped => panic!("it stopped"),
                Said::Durable => {}
            }
        }
    }

    /// Waits until so many more of its messages are durable.
    fn has_durable(&self, mut count: u64) {
        while count > 0 {
            match self.said.recv_timeout(PATIENCE).expect("messages become durable") {
                Said::Durable => count -= 1,
                Said::Stopped => panic!("it stopped"),
                Said::View(_) => {}
            }
        }
    }

    /// Kills it, and gives back all that it has printed.
    fn kill(self) -> Vec<Had> {
        let Self { mut process, messages, said } = self;
        process.signal(Signal::KILL);
        process.end();
        while said.recv_timeout(Duration::from_millis(1)).is_ok() {}
        Arc::try_unwrap(messages)
            .map_or_else(|kept| kept.lock().unwrap().clone(), |all| all.into_inner().unwrap())
    }
}

/// The messages of a node's log, and its views.
fn logged(place: &Path, id: usize) -> Vec<Had> {
    let mut had = Vec::new();
    let directory: PathBuf = place.join(id.to_string()).join("shard-0");
    let scan = scan_each(&mut Directory::look(&directory).unwrap(), &mut |header, payload| {
        if header.kind == LogKind::Message {
            had.push((header.view.0, header.seq.0, String::from_utf8(payload.to_vec()).unwrap()));
        }
    });
    let scan = scan.unwrap();
    assert!(!matches!(scan.condition, Condition::Damaged(_)), "node {id}: {:?}", scan.condition);
    had
}

/// One log is a beginning of the other.
fn agree(one: &[Had], other: &[Had], what: &str) {
    let len = one.len().min(other.len());
    let at = (0..len).find(|at| one[*at] != other[*at]);
    assert_eq!(at, None, "{what}: {:?} and {:?}", one.get(at.unwrap_or(0)), other.get(at.unwrap_or(0)));
}

/// What all must be after some or all were killed. Under `logged` members may have been told more than any log has.
fn check(place: &Path, durable: &Durable, printed: &[Vec<Had>], (round, guarantee): (u64, &str)) {
    let logs: Vec<_> = (1..=NODES).map(|id| logged(place, id)).collect();
    let longest = logs.iter().max_by_key(|log| log.len()).unwrap();
    for (log, id) in logs.iter().zip(1..) {
        agree(log, longest, &format!("round {round}, the log of node {id}"));
    }
    for printed in printed {
        agree(printed, longest, &format!("round {round}, what a member was told"));
        let is_ahead = printed.len() > longest.len();
        assert!(!is_ahead || guarantee == "logged", "round {round}: told what no log has");
    }
    let mut known: BTreeMap<&str, usize> = BTreeMap::new();
    for (.., data) in logs.iter().flatten() {
        let key = &data[..=data.find(':').unwrap()];
        *known.entry(key).or_default() += 1;
    }
    for key in durable.lock().unwrap().iter() {
        let count = known.get(key.as_str()).copied().unwrap_or(0);
        assert!(count >= 2, "round {round}: {key} was durable, and {count} logs have it");
    }
    let mut seen = BTreeSet::new();
    assert!(longest.iter().all(|(.., data)| seen.insert(data)), "round {round}: a message twice");
}

#[test]
fn what_was_durable_survives_any_kill() {
    let number = |name: &str| std::env::var(name).ok().and_then(|it| it.parse::<u64>().ok());
    let rounds = number("CONSORT_CRASH_ROUNDS").unwrap_or(3);
    let seed = number("CONSORT_CRASH_SEED").unwrap_or_else(|| {
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64
    });
    println!("CONSORT_CRASH_SEED={seed}");
    let mut choices = Choices(seed);
    let mut round = 0;
    while round < rounds {
        let last = rounds.min(round + ROUNDS_A_GROUP);
        campaign(&mut choices, round..last);
        round = last;
    }
}

fn campaign(choices: &mut Choices, rounds: Range<u64>) {
    let end = rounds.end;
    let place = tempfile::tempdir().unwrap();
    let ports = Ports::reserve(NODES);
    let durable: Durable = Arc::default();
    let start = |id: usize, life: &str, guarantee| {
        Member::start(id, (life, guarantee), place.path(), &ports, &durable)
    };
    for round in rounds {
        // The logs are the same, whenever messages are delivered.
        let guarantee = if round % 2 == 0 { "durable" } else { "logged" };
        let mut members: Vec<_> = (1..=NODES).map(|id| start(id, &format!("r{round}"), guarantee)).collect();
        members.iter().for_each(Member::sees_all);
        members[choices.below(3) as usize].has_durable(1 + choices.below(200));
        let mut printed = Vec::new();
        if choices.below(2) == 0 {
            // One dies, the others go on, and it comes again.
            let victim = choices.below(3) as usize;
            let came = start_again(&mut members, victim, &mut printed, |others| {
                others[0].has_durable(1 + choices.below(100));
                start(victim + 1, &format!("r{round}b"), guarantee)
            });
            came.sees_all();
            came.has_durable(1 + choices.below(50));
            members.insert(victim, came);
        }
        // Then all, in any order, at one moment or with something in between.
        while !members.is_empty() {
            let victim = choices.below(members.len() as u64) as usize;
            printed.push(members.remove(victim).kill());
            if members.len() == 2 && choices.below(3) == 0 {
                members[0].has_durable(1 + choices.below(30));
            }
        }
        check(place.path(), &durable, &printed, (round, guarantee));
        println!("round {round}: {} messages durable so far", durable.lock().unwrap().len());
    }
    // In the end all come together, and have one log with everything in it.
    let members: Vec<_> = (1..=NODES).map(|id| start(id, "end", "durable")).collect();
    members.iter().for_each(Member::sees_all);
    members.iter().for_each(|member| member.has_durable(5));
    // What becomes durable while they are killed one after the other may be so in a view of two.
    let everywhere = durable.lock().unwrap().clone();
    let printed: Vec<_> = members.into_iter().map(Member::kill).collect();
    check(place.path(), &durable, &printed, (end, "durable"));
    let logs: Vec<BTreeSet<_>> = (1..=NODES)
        .map(|id| {
            logged(place.path(), id)
                .into_iter()
                .map(|(.., data)| data[..=data.find(':').unwrap()].to_owned())
                .collect()
        })
        .collect();
    assert!(everywhere.len() > 15, "{}", everywhere.len());
    for key in &everywhere {
        assert!(logs.iter().all(|log| log.contains(key)), "{key} was durable, and not everyone has it");
    }
}

/// Kills one, does something with the others, and gives the one that takes its place.
fn start_again(
    members: &mut Vec<Member>,
    victim: usize,
    printed: &mut Vec<Vec<Had>>,
    go_on: impl FnOnce(&[Member]) -> Member,
) -> Member {
    printed.push(members.remove(victim).kill());
    go_on(members)
}
