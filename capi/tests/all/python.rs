//! The Python module: its structs are those of the header, its own tests pass, and its examples do what those in C do.

use std::collections::BTreeSet;
use std::process::Command;

use crate::abi::implemented;
use crate::header;
use crate::kit::{Process, goes_on, has, here, library, run, sockets};

fn python() -> Option<Command> {
    if !has("python3", "python3") {
        return None;
    }
    let mut command = Command::new("python3");
    command
        .env("CONSORT_LIBRARY", library().join("libconsort.so.0"))
        .env("PYTHONPATH", here().join("python"));
    // Nothing is written beside the sources.
    command.env("PYTHONDONTWRITEBYTECODE", "1").env_remove("LD_LIBRARY_PATH");
    Some(command)
}

#[test]
fn its_structs_and_functions_are_the_headers() {
    let Some(mut command) = python() else { return };
    let script = "
import ctypes
from consort import _abi
for name, struct in _abi.STRUCTS.items():
    print(f'{name} size={ctypes.sizeof(struct)}')
    for field, *_ in struct._fields_:
        print(f'{name} {field}={getattr(struct, field).offset}')
for name, parameters in _abi.FUNCTIONS.items():
    print(f'{name}()={len(parameters)}')
";
    let output = command.args(["-c", script]).output().unwrap();
    let output = String::from_utf8(output.stdout).unwrap();
    let seen: BTreeSet<_> = output.lines().map(str::to_owned).collect();
    let structs = implemented().into_iter().filter(|(name, _)| name.contains(' '));
    let functions = header::functions().into_iter().filter(|(_, (result, _))| result == "consort_status");
    let wanted = structs.map(|(name, value)| format!("{name}={value}"));
    let wanted: BTreeSet<_> = wanted
        .chain(functions.map(|(name, (_, parameters))| format!("{name}()={}", parameters.len())))
        .collect();
    let differ: Vec<_> = seen.symmetric_difference(&wanted).collect();
    assert!(differ.is_empty(), "{differ:?}");
}

#[test]
fn its_own_tests_pass() {
    let Some(mut command) = python() else { return };
    let output =
        command.args(["-m", "unittest", "discover", "-s"]).arg(here().join("python")).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && told.contains("\nOK") && !told.contains("Ran 0 tests"), "{told}");
}

fn three(example: &str) -> Option<Vec<Process>> {
    let sockets = sockets(3);
    let one = |at: usize| {
        let mut command = python()?;
        command.arg(here().join("python/examples").join(example)).args(["--id", &(at + 1).to_string()]);
        let others = sockets.iter().enumerate().filter(|(other, _)| *other != at);
        command.args(others.map(|(other, it)| format!("--peer={}={}", other + 1, it.address)));
        Some(run(command, Some(&sockets[at])))
    };
    (0..3).map(one).collect()
}

#[test]
fn hello_says_the_same_everywhere_and_goes_on() {
    let Some(mut members) = three("hello.py") else { return };
    members[0].say("a line");
    goes_on(members, 4);
}

#[test]
fn the_counter_counts_everywhere() {
    let Some(mut members) = three("counter.py") else { return };
    for member in &mut members {
        member.say("14");
        member.line();
    }
    for member in &mut members {
        member.say("get");
        assert_eq!(member.line(), "42");
    }
    for member in members {
        assert!(member.end().0.success());
    }
}

#[test]
fn ping_measures() {
    let Some(members) = three("ping.py") else { return };
    let ends: Vec<_> = members.into_iter().map(Process::end).collect();
    assert!(ends.iter().all(|(status, _)| status.success()), "{ends:?}");
    assert!(ends[0].1[0].starts_with("2000 messages of 64 bytes: "), "{ends:?}");
}
