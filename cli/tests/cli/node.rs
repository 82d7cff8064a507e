//! `consort node`: three processes, lines in, JSON lines out.

use std::io::{BufRead as _, Write as _};
use std::process::Stdio;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::process::{Ports, Running, consort, feed};

/// Starts members 1, 2, 3.
fn group(fabric: &str, more: &[&str]) -> (Vec<Running>, Ports) {
    let ports = Ports::reserve(3);
    let addresses: Vec<String> = ports.addresses.iter().map(ToString::to_string).collect();
    let nodes = (0..3)
        .map(|me| {
            let id = (me + 1).to_string();
            let mut command = consort(&["node", "--id", &id, "--listen", &addresses[me], "--fabric", fabric]);
            for other in (0..3).filter(|other| *other != me) {
                command.arg("--peer").arg(format!("{}={}", other + 1, addresses[other]));
            }
            Running::start(command.args(more).stdin(Stdio::piped()))
        })
        .collect();
    (nodes, ports)
}

fn parsed(stdout: &str) -> Vec<Value> {
    stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn of_type<'a>(lines: &'a [Value], kind: &str) -> Vec<&'a Value> {
    lines.iter().filter(|line| line["type"] == kind).collect()
}

fn payload(message: &Value) -> Vec<u8> {
    let data = message["data"].as_str().unwrap();
    match message["encoding"].as_str() {
        None => data.as_bytes().to_vec(),
        Some("base64") => BASE64_STANDARD.decode(data).unwrap(),
        Some(other) => panic!("{other}"),
    }
}

/// Three members send `texts` to the end and leave; checks all that they print. `decoded` says what a line stands for.
fn all_to_the_end(fabric: &str, more: &[&str], texts: &[Vec<u8>; 3], decoded: fn(&[u8]) -> Vec<u8>) {
    let mut args = vec!["--until-eof"];
    args.extend(more);
    let (mut nodes, _ports) = group(fabric, &args);
    for (node, text) in nodes.iter_mut().zip(texts) {
        feed(node.stdin.take().unwrap(), text.clone());
    }
    let ended: Vec<_> = std::thread::scope(|scope| {
        let ends: Vec<_> = nodes.iter_mut().map(|node| scope.spawn(|| node.end())).collect();
        ends.into_iter().map(|end| end.join().unwrap()).collect()
    });
    let printed: Vec<Vec<Value>> = ended.iter().map(|end| parsed(&end.stdout)).collect();
    let first = of_type(&printed[0], "message");
    for (me, (lines, end)) in printed.iter().zip(&ended).enumerate() {
        assert_eq!(end.code, Some(0), "{}", end.stderr);
        // More may follow, when others have left before this member did.
        let views = of_type(lines, "view");
        assert_eq!(views[0]["members"], json!([1, 2, 3]));
        let messages = of_type(lines, "message");
        assert_eq!(messages, first, "all members deliver one sequence");
        let mut own = Vec::new();
        for (sender, text) in texts.iter().enumerate() {
            let theirs: Vec<&Value> =
                messages.iter().copied().filter(|message| message["sender"] == sender + 1).collect();
            let mut expected: Vec<Vec<u8>> = text.split(|byte| *byte == b'\n').map(decoded).collect();
            if text.is_empty() || text.ends_with(b"\n") {
                expected.pop();
            }
            assert_eq!(theirs.iter().map(|message| payload(message)).collect::<Vec<_>>(), expected);
            if sender == me {
                own = theirs;
            }
        }
        let outcomes = of_type(lines, "outcome");
        assert_eq!(outcomes.len(), own.len());
        for (number, (outcome, message)) in outcomes.iter().zip(&own).enumerate() {
            assert_eq!(
                **outcome,
                json!({"type": "outcome", "send": number, "status": "delivered",
                       "view": message["view"], "seq": message["seq"]})
            );
        }
        let mut senders: Vec<u64> =
            of_type(lines, "ended").iter().map(|line| line["sender"].as_u64().unwrap()).collect();
        senders.sort_unstable();
        assert_eq!(senders, [1, 2, 3]);
        assert_eq!(lines.last().unwrap()["type"], "stopped");
    }
}

fn texts() -> [Vec<u8>; 3] {
    let many: String = (0..3_000).map(|n| format!("order {n}\n")).collect();
    [many.into_bytes(), b"one\n\n\xff\xfe binary \x00\nno newline".to_vec(), Vec::new()]
}

#[test]
fn three_members_to_the_end_over_shared_memory() {
    all_to_the_end("shm", &[], &texts(), <[u8]>::to_vec);
}

#[test]
fn three_members_to_the_end_over_tcp() {
    all_to_the_end("tcp", &[], &texts(), <[u8]>::to_vec);
}

#[test]
fn base64_carries_any_bytes() {
    let encode = |messages: &[&[u8]]| -> Vec<u8> {
        messages.iter().flat_map(|bytes| (BASE64_STANDARD.encode(bytes) + "\n").into_bytes()).collect()
    };
    let texts = [encode(&[b"two\nlines", b"\0\n\xff", b""]), encode(&[b"\n"]), encode(&[])];
    all_to_the_end("shm", &["--base64"], &texts, |line| BASE64_STANDARD.decode(line).unwrap());
}

#[test]
fn a_line_that_cant_be_sent_has_an_outcome_and_the_rest_goes_on() {
    let (mut nodes, _ports) = group("shm", &["--until-eof", "--ring", "64KiB"]);
    let mut text = vec![b'x'; 70_000];
    text.extend(b"\nafter\n");
    let mut text = Some(text);
    for node in &mut nodes {
        feed(node.stdin.take().unwrap(), text.take().unwrap_or_default());
    }
    let ended: Vec<_> = std::thread::scope(|scope| {
        let ends: Vec<_> = nodes.iter_mut().map(|node| scope.spawn(|| node.end())).collect();
        ends.into_iter().map(|end| end.join().unwrap()).collect()
    });
    let lines = parsed(&ended[0].stdout);
    let outcomes = of_type(&lines, "outcome");
    assert_eq!((&outcomes[0]["status"], &outcomes[1]["status"]), (&json!("failed"), &json!("delivered")));
    assert!(outcomes[0]["reason"].as_str().unwrap().contains("70000"), "{}", outcomes[0]);
    for end in &ended {
        assert_eq!(end.code, Some(0), "{}", end.stderr);
        let lines = parsed(&end.stdout);
        assert_eq!(of_type(&lines, "message").len(), 1);
    }
}

#[test]
fn a_reader_that_takes_its_time_misses_nothing() {
    let (mut nodes, _ports) = group("shm", &["--until-eof", "--ring", "64KiB"]);
    let line = "y".repeat(1_000);
    let text: String = (0..2_000).map(|n| format!("{n} {line}\n")).collect();
    let fed = feed(nodes[0].stdin.take().unwrap(), text.into_bytes());
    for node in &mut nodes[1..] {
        drop(node.stdin.take());
    }
    // Two megabytes through rings, pipes and queues that hold far less: the writer goes on only as this reader, who parses
    // and checks every line, takes what comes.
    let mut slow = nodes.pop().unwrap();
    let mut lines = slow.stdout().lines();
    let mut messages = 0;
    std::thread::scope(|scope| {
        let ends: Vec<_> = nodes.iter_mut().map(|node| scope.spawn(|| node.end())).collect();
        for line in lines.by_ref() {
            let line: Value = serde_json::from_str(&line.unwrap()).unwrap();
            if line["type"] == "message" {
                let (expected, data) = (format!("{messages} "), line["data"].as_str().unwrap());
                assert!(data.starts_with(&expected), "{data}");
                messages += 1;
            }
        }
        for end in ends {
            assert_eq!(end.join().unwrap().code, Some(0));
        }
    });
    fed.join().unwrap();
    assert_eq!(messages, 2_000);
    assert_eq!(slow.end().code, Some(0));
}

/// Reads lines until one of this type comes.
fn until(lines: &mut impl Iterator<Item = std::io::Result<String>>, kind: &str) -> Value {
    for line in lines {
        let line: Value = serde_json::from_str(&line.unwrap()).unwrap();
        if line["type"] == kind {
            return line;
        }
    }
    panic!("no line of type {kind}");
}

#[test]
fn sigterm_ends_a_group_cleanly() {
    let (mut nodes, _ports) = group("tcp", &[]);
    let mut outputs: Vec<_> = nodes.iter_mut().map(|node| node.stdout().lines()).collect();
    for output in &mut outputs {
        until(output, "view");
    }
    writeln!(nodes[0].stdin.as_ref().unwrap(), "hello").unwrap();
    for output in &mut outputs {
        assert_eq!(until(output, "message")["data"], "hello");
    }
    nodes.iter().for_each(|node| node.signal(Signal::TERM));
    for (node, output) in nodes.iter_mut().zip(&mut outputs) {
        assert_eq!(until(output, "stopped")["reason"], "SIGTERM");
        assert!(output.next().is_none(), "that is the last line");
        assert_eq!(node.end().code, Some(0));
    }
}

#[test]
fn sigterm_ends_a_member_that_waits_for_others() {
    let ports = Ports::reserve(2);
    let (own, other) = (ports.addresses[0].to_string(), format!("2={}", ports.addresses[1]));
    let args = ["node", "--id", "1", "--listen", &own, "--peer", &other];
    let mut node = Running::start(consort(&args).stdin(Stdio::piped()));
    let mut output = node.stdout().lines();
    assert_eq!(until(&mut output, "waiting")["for"], json!([2]));
    node.signal(Signal::TERM);
    assert_eq!(until(&mut output, "stopped")["reason"], "SIGTERM");
    assert_eq!(node.end().code, Some(0));
}

#[test]
fn who_waits_in_vain_says_for_whom() {
    let ports = Ports::reserve(2);
    let (own, other) = (ports.addresses[0].to_string(), format!("2={}", ports.addresses[1]));
    let args = ["node", "--id", "1", "--listen", &own, "--peer", &other, "--start-within", "300ms"];
    let ended = Running::start(consort(&args).stdin(Stdio::null())).end();
    assert_eq!(ended.code, Some(4), "{}", ended.stderr);
    assert!(ended.stderr.contains("node 2") && ended.stderr.contains("what to do:"), "{}", ended.stderr);
    assert_eq!(parsed(&ended.stdout).last().unwrap()["type"], "stopped");
}

#[test]
fn a_file_configures_a_member() {
    let ports = Ports::reserve(2);
    let directory = tempfile::tempdir().unwrap();
    let mut nodes: Vec<Running> = (0..2)
        .map(|me| {
            let file = directory.path().join(format!("node{me}.toml"));
            let text = format!(
                "id = {}\nlisten = \"{}\"\nfabric = \"shm\"\nguarantee = \"agreed\"\n[peers]\n{} = \"{}\"\n",
                me + 1,
                ports.addresses[me],
                2 - me,
                ports.addresses[1 - me]
            );
            std::fs::write(&file, text).unwrap();
            let file = file.to_string_lossy();
            let args = ["node", "--config", &file, "--until-eof"];
            Running::start(consort(&args).stdin(Stdio::piped()))
        })
        .collect();
    writeln!(nodes[0].stdin.as_ref().unwrap(), "from a file").unwrap();
    nodes.iter_mut().for_each(|node| drop(node.stdin.take()));
    for node in &mut nodes {
        let ended = node.end();
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        let lines = parsed(&ended.stdout);
        assert_eq!(of_type(&lines, "message")[0]["data"], "from a file");
    }
}
