//! Members that are killed, come again, join and leave, and the rest that goes on: real processes.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Lines, Write as _};
use std::process::{ChildStdout, Stdio};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::process::{Ports, Running, consort, run};

/// A member whose lines are read as the test needs them.
struct Member {
    process: Running,
    lines: Lines<BufReader<ChildStdout>>,
    /// Every message it has printed so far: sequence and payload, with its view.
    messages: Vec<(u64, u64, String)>,
    outcomes: VecDeque<Value>,
}

impl Member {
    fn start(id: usize, ports: &Ports, fabric: &str, more: &[String]) -> Self {
        let (id, listen) = (id.to_string(), ports.addresses[id - 1].to_string());
        let mut command = consort(&["node", "--id", &id, "--listen", &listen, "--fabric", fabric]);
        let mut process = Running::start(command.args(more).stdin(Stdio::piped()));
        let lines = process.stdout().lines();
        Self { process, lines, messages: Vec::new(), outcomes: VecDeque::new() }
    }

    /// One of the three that found the group.
    fn founder(id: usize, ports: &Ports, fabric: &str) -> Self {
        let others = (1..=3).filter(|other| *other != id);
        let peers: Vec<String> = others
            .flat_map(|other| ["--peer".to_owned(), format!("{other}={}", ports.addresses[other - 1])])
            .collect();
        Self::start(id, ports, fabric, &peers)
    }

    /// Takes the next line, and keeps what later checks look at.
    fn next(&mut self) -> Value {
        let line = self.lines.next().expect("it goes on").unwrap();
        let line: Value = serde_json::from_str(&line).unwrap();
        if line["type"] == "message" {
            let number = |key: &str| line[key].as_u64().unwrap();
            let data = line["data"].as_str().unwrap().to_owned();
            self.messages.push((number("view"), number("seq"), data));
        } else if line["type"] == "outcome" {
            self.outcomes.push_back(line.clone());
        }
        line
    }

    /// Reads until a view of these members comes; its number.
    fn view_of(&mut self, members: &[u32]) -> u64 {
        loop {
            let line = self.next();
            assert_ne!(line["type"], "stopped", "{line}");
            if line["type"] == "view" && line["members"] == json!(members) {
                return line["view"].as_u64().unwrap();
            }
        }
    }

    /// Reads until this message is delivered.
    fn hears(&mut self, text: &str) {
        while self.messages.last().is_none_or(|(.., data)| data != text) {
            let line = self.next();
            assert_ne!(line["type"], "stopped", "{line}");
        }
    }

    fn says(&self, text: &str) {
        writeln!(self.process.stdin.as_ref().unwrap(), "{text}").unwrap();
    }

    /// The next outcome says that the line was delivered, and where: as this member printed it.
    fn sent(&mut self, text: &str) {
        while self.outcomes.is_empty() {
            self.next();
        }
        let outcome = self.outcomes.pop_front().unwrap();
        assert_eq!(outcome["status"], "delivered", "{outcome}");
        let number = |key: &str| outcome[key].as_u64().unwrap();
        let told = (number("view"), number("seq"), text.to_owned());
        // Two threads print them, so either may come first.
        while !self.messages.contains(&told) {
            self.next();
        }
    }
}

/// All come to a view of these, the same one. (Which number it has depends on how many attempts it took.)
fn all_see(members: &mut [&mut Member], whom: &[u32]) -> u64 {
    let views: Vec<_> = members.iter_mut().map(|member| member.view_of(whom)).collect();
    assert!(views.iter().all(|view| *view == views[0]), "{views:?}");
    views[0]
}

/// One says it and everyone hears it.
fn exchange(members: &mut [&mut Member], text: &str) {
    members[0].says(text);
    members.iter_mut().for_each(|member| member.hears(text));
    members[0].sent(text);
}

fn come_and_go(fabric: &str) {
    let ports = Ports::reserve(4);
    let mut founders = (1..=3).map(|id| Member::founder(id, &ports, fabric));
    let (mut one, mut two, mut three) =
        (founders.next().unwrap(), founders.next().unwrap(), founders.next().unwrap());
    assert_eq!(all_see(&mut [&mut one, &mut two, &mut three], &[1, 2, 3]), 1);
    exchange(&mut [&mut one, &mut two, &mut three], "before");

    // Lost: the others agree on a view without it and go on, with what was under way.
    one.says("while it dies");
    two.process.signal(Signal::KILL);
    all_see(&mut [&mut one, &mut three], &[1, 3]);
    assert_eq!(two.process.end().code, None, "it was killed");
    one.sent("while it dies");
    exchange(&mut [&mut one, &mut three], "after");
    exchange(&mut [&mut three, &mut one], "from the other");

    // Started again in the same way, it joins what it once founded.
    let mut two = Member::founder(2, &ports, fabric);
    all_see(&mut [&mut one, &mut two, &mut three], &[1, 2, 3]);
    exchange(&mut [&mut two, &mut one, &mut three], "from the one that came again");
    exchange(&mut [&mut three, &mut one, &mut two], "to the one that came again");

    let address = ports.addresses[0].to_string();
    let join = ["--join".to_owned(), format!("{address},{}", ports.addresses[2])];
    let mut four = Member::start(4, &ports, fabric, &join);
    let joined = all_see(&mut [&mut one, &mut two, &mut three, &mut four], &[1, 2, 3, 4]);
    exchange(&mut [&mut four, &mut one, &mut two, &mut three], "from the fourth");

    let status = run(&["status", &address, "--json"]);
    assert_eq!(status.code, Some(0), "{}", status.stderr);
    let view = &status.json()["view"];
    assert_eq!(
        (&view["view"], &view["majority"], &view["may_lose_at_once"]),
        (&json!(joined), &json!(3), &json!(1))
    );
    let table = run(&["status", &address]);
    for words in [&format!("{joined} of 4 members"), "may lose at once  1", "suspected"] {
        assert!(table.stdout.contains(words), "{words:?} in {}", table.stdout);
    }
    let explained = run(&["explain", &address, "--json"]);
    assert_eq!((explained.code, &explained.json()["node"]), (Some(0), &json!(1)));
    assert_eq!(run(&["explain", &address]).code, Some(0));

    // It leaves in order: with code 0, and at once a view without it.
    three.process.signal(Signal::TERM);
    all_see(&mut [&mut one, &mut two, &mut four], &[1, 2, 4]);
    let last = loop {
        let line = three.next();
        if line["type"] == "stopped" {
            break line;
        }
    };
    assert_eq!(last["reason"], "SIGTERM");
    let ended = three.process.end();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(!ended.stderr.contains("did not leave in order"), "{}", ended.stderr);
    exchange(&mut [&mut two, &mut one, &mut four], "without the one that left");

    // One sequence: whole at whom was there all along, and its end at who came later.
    let heard: Vec<&str> = one.messages.iter().map(|(.., data)| data.as_str()).collect();
    assert_eq!(heard.len(), 8, "{heard:?}");
    assert!(one.messages.starts_with(&three.messages) && three.messages.len() == 7, "{heard:?}");
    assert!(one.messages.ends_with(&two.messages) && two.messages.len() == 4, "{heard:?}");
    assert!(one.messages.ends_with(&four.messages) && four.messages.len() == 2, "{heard:?}");
}

#[test]
fn members_come_and_go_over_shared_memory() {
    come_and_go("shm");
}

#[test]
fn members_come_and_go_over_tcp() {
    come_and_go("tcp");
}

#[test]
fn the_end_of_input_waits_for_no_one_who_is_gone() {
    let ports = Ports::reserve(3);
    let mut members: Vec<Member> = (1..=3)
        .map(|id| {
            let others = (1..=3).filter(|other| *other != id);
            let peers = others
                .flat_map(|other| ["--peer".to_owned(), format!("{other}={}", ports.addresses[other - 1])]);
            let more: Vec<String> = peers.chain(["--until-eof".to_owned()]).collect();
            Member::start(id, &ports, "shm", &more)
        })
        .collect();
    members.iter_mut().for_each(|member| assert_eq!(member.view_of(&[1, 2, 3]), 1));
    // It never comes to the end of its input, and two of three go on without it.
    members[2].process.signal(Signal::KILL);
    for member in &mut members[..2] {
        member.view_of(&[1, 2]);
        member.says("the last");
        drop(member.process.stdin.take());
    }
    for member in &mut members[..2] {
        while member.next()["type"] != "stopped" {}
        let ended = member.process.end();
        assert_eq!((ended.code, member.messages.len()), (Some(0), 2), "{}", ended.stderr);
    }
}

#[test]
fn who_can_reach_no_majority_ends_with_a_code_of_its_own() {
    let ports = Ports::reserve(3);
    let mut members: Vec<Member> = (1..=3)
        .map(|id| {
            let others = (1..=3).filter(|other| *other != id);
            let peers = others
                .flat_map(|other| ["--peer".to_owned(), format!("{other}={}", ports.addresses[other - 1])]);
            let more: Vec<String> = peers.chain(["--quorum-within".to_owned(), "1s".to_owned()]).collect();
            Member::start(id, &ports, "shm", &more)
        })
        .collect();
    members.iter_mut().for_each(|member| assert_eq!(member.view_of(&[1, 2, 3]), 1));
    members[1..].iter().for_each(|member| member.process.signal(Signal::STOP));
    members[1..].iter().for_each(|member| member.process.signal(Signal::KILL));
    while members[0].next()["type"] != "stopped" {}
    let ended = members[0].process.end();
    assert_eq!(ended.code, Some(7), "{}", ended.stderr);
    assert!(ended.stderr.contains("what to do:") && ended.stderr.contains("majority"), "{}", ended.stderr);
}

/// Three founders with more to say on their command lines, in their first view.
fn founded(ports: &Ports, fabric: &str, more: &[&str]) -> [Member; 3] {
    let mut members = [1, 2, 3].map(|id: usize| {
        let others = (1..=3).filter(|other| *other != id);
        let peers =
            others.flat_map(|other| ["--peer".to_owned(), format!("{other}={}", ports.addresses[other - 1])]);
        let more: Vec<String> = peers.chain(more.iter().map(|word| (*word).to_owned())).collect();
        Member::start(id, ports, fabric, &more)
    });
    members.iter_mut().for_each(|member| assert_eq!(member.view_of(&[1, 2, 3]), 1));
    members
}

/// V9: a stopped process is noticed, also over TCP. V5: when it goes on it delivers nothing that the others did without it,
/// suspects nobody, and is told.
fn one_that_was_stopped_is_left_out(fabric: &str) {
    let ports = Ports::reserve(3);
    let [mut one, mut two, mut three] = founded(&ports, fabric, &["--silence", "1s"]);
    exchange(&mut [&mut one, &mut two, &mut three], "with it");
    three.process.signal(Signal::STOP);
    all_see(&mut [&mut one, &mut two], &[1, 2]);
    exchange(&mut [&mut two, &mut one], "without it");
    three.process.signal(Signal::CONT);
    while three.next()["type"] != "stopped" {}
    let ended = three.process.end();
    assert_eq!(ended.code, Some(6), "{}", ended.stderr);
    assert!(ended.stderr.contains("what to do:") && ended.stderr.contains("rejoin"), "{}", ended.stderr);
    assert_eq!(three.messages.len(), 1, "{:?}", three.messages);
    exchange(&mut [&mut one, &mut two], "as before");
}

#[test]
fn one_that_was_stopped_is_left_out_over_shared_memory() {
    one_that_was_stopped_is_left_out("shm");
}

#[test]
fn one_that_was_stopped_is_left_out_over_tcp() {
    one_that_was_stopped_is_left_out("tcp");
}

/// V5: a suspicion that was false is not for ever. The same process says that it was evicted, and is a member again.
fn one_that_was_left_out_rejoins(fabric: &str) {
    let ports = Ports::reserve(3);
    let [mut one, mut two, mut three] = founded(&ports, fabric, &["--silence", "1s", "--rejoin"]);
    exchange(&mut [&mut three, &mut one, &mut two], "before");
    three.process.signal(Signal::STOP);
    all_see(&mut [&mut one, &mut two], &[1, 2]);
    exchange(&mut [&mut one, &mut two], "missed");
    three.process.signal(Signal::CONT);
    let told = loop {
        let line = three.next();
        assert_ne!(line["type"], "stopped", "{line}");
        assert_ne!(line["type"], "view", "a view before it says why it was left out: {line}");
        if line["type"] == "evicted" {
            break line;
        }
    };
    assert!(told["reason"].as_str().is_some_and(|reason| reason.contains("without this node")), "{told}");
    all_see(&mut [&mut one, &mut two, &mut three], &[1, 2, 3]);
    exchange(&mut [&mut three, &mut one, &mut two], "from the one that rejoined");
    exchange(&mut [&mut two, &mut three, &mut one], "to the one that rejoined");
    let heard: Vec<&str> = three.messages.iter().map(|(.., data)| data.as_str()).collect();
    assert_eq!(heard, ["before", "from the one that rejoined", "to the one that rejoined"]);
    assert_eq!((&one.messages, one.messages.len()), (&two.messages, 4));
}

#[test]
fn one_that_was_left_out_rejoins_over_shared_memory() {
    one_that_was_left_out_rejoins("shm");
}

#[test]
fn one_that_was_left_out_rejoins_over_tcp() {
    one_that_was_left_out_rejoins("tcp");
}
