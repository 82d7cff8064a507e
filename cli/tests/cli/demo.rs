//! `consort demo` on input that is no friend.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;

use rustix::process::Signal;

use crate::process::{Running, Stranger, consort, run};

/// Empty lines, binary bytes, a line of a mebibyte, lines that look like a log's headers, carriage returns, and no newline
/// at the end.
fn nasty() -> Vec<u8> {
    let mut text = b"\n\nfirst\n\r\n0 1 5\n1 2 3\nabc\n\n".to_vec();
    text.extend((0..=255).filter(|byte| *byte != b'\n'));
    text.extend(b"\n\xff\xfe\0\0\n");
    text.extend((0..1 << 20).map(|n: u32| if n % 251 == 10 { 11 } else { (n % 251) as u8 }));
    text.extend(b"\n\n");
    for n in 0..2_000 {
        text.extend(format!("line {n} {}\n", "·".repeat(n % 40)).bytes());
    }
    text.extend(b"\nno newline at the end");
    text
}

/// The lines of a text: what the demo's help says they are.
fn lines(text: &[u8]) -> Vec<&[u8]> {
    let mut lines: Vec<&[u8]> = text.split(|byte| *byte == b'\n').collect();
    if lines.last() == Some(&&b""[..]) {
        lines.pop();
    }
    lines
}

/// The records of a log by sender, read as the help says that they are written.
fn by_sender(log: &[u8]) -> BTreeMap<u32, Vec<&[u8]>> {
    let mut senders: BTreeMap<u32, Vec<&[u8]>> = BTreeMap::new();
    let mut rest = log;
    let mut last = None;
    while !rest.is_empty() {
        let end = rest.iter().position(|byte| *byte == b'\n').unwrap();
        let header = std::str::from_utf8(&rest[..end]).unwrap();
        let words: Vec<u64> = header.split(' ').map(|word| word.parse().unwrap()).collect();
        let (seq, sender, length) =
            (words[0], u32::try_from(words[1]).unwrap(), usize::try_from(words[2]).unwrap());
        assert!(last < Some(seq), "sequence numbers rise");
        last = Some(seq);
        senders.entry(sender).or_default().push(&rest[end + 1..end + 1 + length]);
        assert_eq!(rest[end + 1 + length], b'\n');
        rest = &rest[end + 2 + length..];
    }
    senders
}

/// Runs the demo on `text` and checks the logs by this test's own lights.
fn demo(text: &[u8], members: u32, more: &[&str]) {
    let directory = tempfile::tempdir().unwrap();
    let input = directory.path().join("input");
    std::fs::write(&input, text).unwrap();
    let out = directory.path().join("out");
    let (input, out_text) = (input.to_string_lossy(), out.to_string_lossy());
    let count = members.to_string();
    let mut args = vec!["demo", "--json", "--members", &count, "--input", &input, "--out", &out_text];
    args.extend(more);
    let ended = run(&args);
    assert_eq!(ended.code, Some(0), "{args:?}: {}", ended.stderr);

    let expected = lines(text);
    let total_order = !more.contains(&"fifo");
    let logs: Vec<Vec<u8>> =
        (1..=members).map(|id| std::fs::read(out.join(format!("member-{id}.log"))).unwrap()).collect();
    for log in &logs {
        let senders = by_sender(log);
        for id in 1..=members {
            let sent = senders.get(&id).map_or(&[][..], Vec::as_slice);
            assert!(sent == expected, "member {id}'s lines, each once and in order");
        }
        assert!(!total_order || log == &logs[0], "all logs are the same bytes");
    }
    let object = ended.json();
    assert_eq!((&object["complete"], &object["lines"]), (&true.into(), &expected.len().into()));
    assert_eq!(object["identical"], logs.iter().all(|log| log == &logs[0]));
    for (member, log) in object["per_member"].as_array().unwrap().iter().zip(&logs) {
        assert_eq!(member["digest"], blake3::hash(log).to_hex().to_string());
        assert_eq!(member["delivered"], expected.len() * members as usize);
        let [p50, p99, seconds] =
            ["p50_us", "p99_us", "seconds"].map(|field| member[field].as_f64().unwrap());
        assert!(p50 <= p99 && p99 <= seconds * 1.01e6, "no message took longer than all of them: {member}");
        assert!(expected.is_empty() || p50 > 0.1,);
    }
}

#[test]
fn nasty_input_over_shared_memory() {
    demo(&nasty(), 3, &["--fabric", "shm"]);
}

#[test]
fn nasty_input_over_tcp() {
    demo(&nasty(), 3, &["--fabric", "tcp"]);
}

#[test]
fn five_members_and_the_other_guarantees() {
    demo(&nasty(), 5, &["--guarantee", "agreed", "--wait", "block"]);
    demo(&nasty(), 2, &["--guarantee", "fifo", "--fabric", "tcp"]);
}

#[test]
fn very_little_input() {
    demo(b"", 3, &["--fabric", "shm"]);
    demo(b"\n", 2, &["--fabric", "tcp"]);
    demo(b"one member alone", 1, &[]);
}

#[test]
fn many_short_lines() {
    let mut text = Vec::new();
    for n in 0..20_000 {
        text.extend(format!("{n}\n").bytes());
    }
    demo(&text, 3, &[]);
}

#[test]
fn the_shipped_file_a_fresh_directory_and_a_table() {
    let ended = run(&["demo"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    for words in ["messages/s", "Identical and complete: 3 members", "Digest ", "Logs in "] {
        assert!(ended.stdout.contains(words), "{words}: {}", ended.stdout);
    }
    let out = ended.stdout.lines().find_map(|line| line.strip_prefix("Logs in ")).unwrap();
    let logs: Vec<Vec<u8>> =
        (1..=3).map(|id| std::fs::read(Path::new(out).join(format!("member-{id}.log"))).unwrap()).collect();
    assert!(!logs[0].is_empty() && logs[0] == logs[1] && logs[1] == logs[2]);
    assert!(out.contains("consort-demo-"), "it is the demo's own directory");
    std::fs::remove_dir_all(out).unwrap();
}

#[test]
fn input_from_a_pipe() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().to_string_lossy();
    let args = ["demo", "--json", "--input", "/dev/stdin", "--out", &out];
    let mut running = Running::start(consort(&args).stdin(Stdio::piped()));
    crate::process::feed(running.stdin.take().unwrap(), b"a\nb\n\nc".to_vec()).join().unwrap();
    let ended = running.end();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(ended.json()["lines"], 4);
}

#[test]
fn the_input_is_never_overwritten() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("member-1.log");
    std::fs::write(&log, "precious\n").unwrap();
    let (log_text, out) = (log.to_string_lossy(), directory.path().to_string_lossy());
    let ended = run(&["demo", "--input", &log_text, "--out", &out]);
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    assert_eq!(std::fs::read(&log).unwrap(), b"precious\n");
}

/// Runs the demo with crashes and joins on `text`, and checks the logs by this test's own lights.
fn churn(text: &[u8], members: u32, crash: u32, join: u32, fabric: &str) {
    let directory = tempfile::tempdir().unwrap();
    let input = directory.path().join("input");
    std::fs::write(&input, text).unwrap();
    let out = directory.path().join("out");
    let (input, out_text) = (input.to_string_lossy(), out.to_string_lossy());
    let [founders, kills, joins] = [members, crash, join].map(|number| number.to_string());
    let args = ["demo", "--json", "--fabric", fabric, "--input", &input, "--out", &out_text];
    let ended = run(&[&args[..], &["--members", &founders, "--crash", &kills, "--join", &joins]].concat());
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let object = ended.json();

    let lines = lines(text);
    let logs: Vec<Vec<u8>> =
        (1..=members + join).map(|id| std::fs::read(out.join(format!("member-{id}.log"))).unwrap()).collect();
    let whole = &logs[crash as usize];
    let senders = by_sender(whole);
    let rows = object["per_member"].as_array().unwrap();
    assert_eq!(rows.len(), logs.len());
    for (row, log) in rows.iter().zip(&logs) {
        let id = row["id"].as_u64().unwrap() as u32;
        let sent = senders.get(&id).map_or(&[][..], Vec::as_slice);
        assert!(sent.iter().eq(lines.iter().cycle().take(sent.len())), "member {id}'s lines, in order");
        assert_eq!(row["sent"], sent.len());
        if id <= crash {
            assert_eq!(row["part"], "killed");
            assert!(whole.starts_with(log), "member {id}'s log is a beginning of the others'");
        } else {
            assert_eq!(row["part"], if id > members { "joined" } else { "stayed" });
            assert!(log == whole, "member {id}'s log is that of all");
            assert!(sent.len() >= lines.len() && sent.len().is_multiple_of(lines.len()), "whole passes");
            assert_eq!(row["digest"], blake3::hash(log).to_hex().to_string());
            assert_eq!(
                row["restored"].as_u64().unwrap() > 0,
                id > members,
                "joiners get what was before them"
            );
        }
    }
    let upheavals = object["upheavals"].as_array().unwrap();
    assert_eq!(upheavals.len(), (crash + join) as usize);
    let still = upheavals.iter().map(|upheaval| upheaval["still_ms"].as_f64().unwrap());
    assert!(still.into_iter().all(|still| still > 0.0), "nobody goes on in no time: {upheavals:?}");
}

#[test]
fn a_crash_and_a_join_leave_one_sequence() {
    churn(&nasty(), 3, 1, 1, "shm");
    churn(&nasty(), 3, 1, 1, "tcp");
}

#[test]
fn crashes_alone_and_joins_alone() {
    churn(b"one line, over and over", 5, 2, 0, "shm");
    churn(b"\n\nx\n", 1, 0, 2, "tcp");
}

#[test]
fn a_crash_and_a_join_are_told_to_people() {
    let directory = tempfile::tempdir().unwrap();
    let ended = run(&["demo", "--crash", "1", "--join", "1", "--out", &directory.path().to_string_lossy()]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    for words in [
        "member 1 was killed",
        "member 4 joined",
        "a beginning of it",
        "Identical and complete: the 3 members",
    ] {
        assert!(ended.stdout.contains(words), "{words}: {}", ended.stdout);
    }
}

/// A demo that has far too much to do, with the process ids of its members.
fn long_demo(out: &Path) -> (Running, Vec<i32>) {
    let input = out.join("input");
    std::fs::write(&input, "some line that takes its time\n".repeat(400_000)).unwrap();
    let (input, out) = (input.to_string_lossy(), out.to_string_lossy());
    let args = ["--log", "consort=info,warn", "demo", "--input", &input, "--out", &out];
    let mut running = Running::start(consort(&args).stdin(Stdio::null()));
    let mut pids = Vec::new();
    while pids.len() < 3 {
        let line = running.next_log().expect("the demo logs its members' process ids");
        if let Some((_, pid)) = line.split_once("is process ") {
            pids.push(pid.trim().parse().unwrap());
        }
    }
    (running, pids)
}

#[test]
fn a_member_that_dies_is_named_and_nobody_is_left_behind() {
    let directory = tempfile::tempdir().unwrap();
    let (mut running, pids) = long_demo(directory.path());
    let members: Vec<Stranger> = pids.iter().map(|pid| Stranger::new(*pid)).collect();
    rustix::process::kill_process(rustix::process::Pid::from_raw(pids[1]).unwrap(), Signal::KILL).unwrap();
    let ended = running.end();
    assert_eq!(ended.code, Some(5), "{}", ended.stderr);
    for words in ["member 2", "SIGKILL", "what to do:"] {
        assert!(ended.stderr.contains(words), "{words}: {}", ended.stderr);
    }
    assert!(members.iter().all(Stranger::has_ended));
}

#[test]
fn members_die_with_their_parent() {
    let directory = tempfile::tempdir().unwrap();
    let (running, pids) = long_demo(directory.path());
    let members: Vec<Stranger> = pids.iter().map(|pid| Stranger::new(*pid)).collect();
    drop(running); // kills it
    assert!(members.iter().all(Stranger::has_ended));
}
