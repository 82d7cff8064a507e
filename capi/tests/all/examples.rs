//! The examples, as processes: they do what they say, at all members the same, also when one is killed.

use std::path::Path;

use crate::kit::{Build, Process, compile, here, member, sockets};

fn example(file: &str, build: Build) -> std::path::PathBuf {
    compile(&here().join("examples").join(file), build)
}

fn three(program: &Path) -> Vec<Process> {
    let sockets = sockets(3);
    (0..3).map(|at| member(program, at, &sockets, &[])).collect()
}

/// All end well, and have said the same.
fn agree(members: Vec<Process>) -> Vec<String> {
    let ends: Vec<_> = members.into_iter().map(Process::end).collect();
    assert!(ends.iter().all(|(status, _)| status.success()), "{ends:?}");
    assert!(ends.iter().all(|(_, lines)| *lines == ends[0].1), "{ends:?}");
    ends[0].1.clone()
}

fn hello(build: Build) {
    let mut members = three(&example("hello.c", build));
    for (at, member) in members.iter_mut().enumerate() {
        member.say(&format!("a line of {}", at + 1));
    }
    // Each has heard all six before any leaves, so all have heard the same.
    let heard: Vec<Vec<_>> = members.iter_mut().map(|it| (0..6).map(|_| it.line()).collect()).collect();
    assert!(heard.iter().all(|lines| *lines == heard[0]), "{heard:?}");

    members[2].kill();
    for member in &mut members[..2] {
        member.until(|line| line.starts_with("# view 2 of 1 2"));
    }
    members[0].say("it goes on");
    for member in &mut members[..2] {
        assert_eq!(member.line(), "1: it goes on");
    }
    members.pop();
    members.iter_mut().for_each(Process::hush);
    let ends: Vec<_> = members.into_iter().map(Process::end).collect();
    assert!(ends.iter().all(|(status, _)| status.success()), "{ends:?}");
}

#[test]
fn hello_is_said_in_one_order_and_goes_on_when_one_is_killed() {
    hello(Build::Plain);
}

#[test]
fn hello_under_sanitizers() {
    hello(Build::Sanitized);
}

fn hello_in_cpp(build: Build) {
    let said = agree(three(&example("hello.cpp", build)));
    let mut sorted = said.clone();
    sorted.sort();
    assert_eq!(sorted, ["1: hello from 1", "2: hello from 2", "3: hello from 3"], "{said:?}");
}

#[test]
fn hello_in_cpp_says_the_same_everywhere() {
    hello_in_cpp(Build::Plain);
}

#[test]
fn hello_in_cpp_under_sanitizers() {
    hello_in_cpp(Build::Sanitized);
}

fn counter(build: Build) {
    let mut members = three(&example("counter.c", build));
    for (at, member) in members.iter_mut().enumerate() {
        member.say(&(10_i64.pow(at as u32)).to_string());
        member.line();
    }
    for member in &mut members {
        member.say("get");
        assert_eq!(member.line(), "111", "every update had completed");
    }
    members[0].kill();
    for (member, sum) in members[1..].iter_mut().zip(["112", "113"]) {
        member.say("1");
        assert_eq!(member.line(), sum);
    }
    members[1].say("get");
    assert_eq!(members[1].line(), "113");
    members.remove(0);
    let ends: Vec<_> = members.into_iter().map(Process::end).collect();
    assert!(ends.iter().all(|(status, _)| status.success()), "{ends:?}");
}

#[test]
fn the_counter_is_the_same_at_all_members() {
    counter(Build::Plain);
}

#[test]
fn the_counter_under_sanitizers() {
    counter(Build::Sanitized);
}

#[test]
fn a_counter_that_joins_gets_what_was_counted() {
    let (program, sockets) = (example("counter.c", Build::Sanitized), sockets(3));
    let mut members: Vec<_> = (0..2).map(|at| member(&program, at, &sockets[..2], &[])).collect();
    members[0].say("41");
    assert_eq!(members[0].line(), "41");
    let mut command = std::process::Command::new(&program);
    command.args(["--id", "3", "--join", &sockets[0].address.to_string()]);
    let mut joiner = crate::kit::run(command, Some(&sockets[2]));
    joiner.say("1");
    assert_eq!(joiner.line(), "42");
    members.push(joiner);
    let ends: Vec<_> = members.into_iter().map(Process::end).collect();
    assert!(ends.iter().all(|(status, _)| status.success()), "{ends:?}");
}

fn in_a_loop(build: Build) {
    let mut members = three(&example("loop.c", build));
    for (at, member) in members.iter_mut().enumerate() {
        for line in 0..50 {
            member.say(&format!("line {line} of {}", at + 1));
        }
        member.hush();
    }
    let lines = agree(members);
    assert_eq!(lines.len(), 150);
    for sender in 1..=3 {
        let own: Vec<_> = lines.iter().filter(|line| line.starts_with(&format!("{sender}: "))).collect();
        let wanted: Vec<_> = (0..50).map(|line| format!("{sender}: line {line} of {sender}")).collect();
        assert!(own.iter().zip(&wanted).all(|(own, wanted)| **own == *wanted) && own.len() == 50, "{own:?}");
    }
}

#[test]
fn one_loop_for_input_and_group() {
    in_a_loop(Build::Plain);
}

#[test]
fn one_loop_under_sanitizers() {
    in_a_loop(Build::Sanitized);
}

#[test]
fn a_loop_loses_no_input_that_finds_no_room() {
    let (program, sockets) = (example("loop.c", Build::Sanitized), sockets(2));
    let mut first = member(&program, 0, &sockets, &[]);
    // More than it has room for, before there is a group to send it to; and a line that never fits in one piece.
    for line in 0..1000 {
        first.say(&format!("line {line}"));
    }
    first.say(&"x".repeat(10_000));
    first.say_all("the last, without an end");
    first.hush();
    let mut second = member(&program, 1, &sockets, &[]);
    second.hush();
    let lines = agree(vec![first, second]);
    let lines: Vec<_> = lines.iter().map(|line| line.strip_prefix("1: ").unwrap()).collect();
    let first_lost = (0..1000).find(|at| lines.get(*at).is_none_or(|line| *line != format!("line {at}")));
    assert_eq!((first_lost, lines.len() > 1001), (None, true));
    assert_eq!(
        (lines[1000..lines.len() - 1].concat(), *lines.last().unwrap()),
        ("x".repeat(10_000), "the last, without an end")
    );
}

fn ping(build: Build, window: &str, batch: &str) {
    let (program, sockets) = (example("ping.c", build), sockets(2));
    let pinger = member(&program, 0, &sockets, &["--count", "2000", "--window", window, "--batch", batch]);
    let other = member(&program, 1, &sockets, &[]);
    let (status, lines) = pinger.end();
    assert!(status.success() && lines[0].starts_with("2000 messages of 64 bytes: "), "{status} {lines:?}");
    assert!(other.end().0.success());
}

#[test]
fn ping_measures() {
    ping(Build::Plain, "1", "1");
    ping(Build::Plain, "100", "1");
    ping(Build::Plain, "100", "64");
}

#[test]
fn ping_under_sanitizers() {
    ping(Build::Sanitized, "100", "1");
    ping(Build::Sanitized, "100", "64");
}
