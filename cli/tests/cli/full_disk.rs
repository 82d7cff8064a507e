//! A real file system that is full: its member stops and says why, the others go on, and with room it comes again with what it had (P2, P3).

use std::io::{BufRead as _, BufReader, Lines, Write as _};
use std::path::Path;
use std::process::{ChildStdout, Command, Stdio};

use serde_json::{Value, json};

use crate::process::{Ports, Running, consort};

/// A log's first segment fits, and its second doesn't.
const SMALL: &str = "100m";
const LARGE: &str = "400m";

/// Runs the command that follows with a small file system at `$1`, and once more when that was made larger. In namespaces of its own, which
/// end, with all that is in them, with the process that made them.
const TWICE: &str = r#"
mount -t tmpfs -o size="$2" none "$1" || exit
place=$1 large=$3
shift 3
"$@"
echo "{\"type\":\"ended with\",\"code\":$?}"
mount -o remount,size="$large" "$place"
"$@"
"#;

struct Member {
    process: Running,
    lines: Lines<BufReader<ChildStdout>>,
    /// What it was told, by number, since it was started last.
    told: Vec<String>,
}

impl Member {
    fn start(id: usize, ports: &Ports, place: &Path, twice: bool) -> Self {
        let (own, data) = (id.to_string(), place.join(id.to_string()));
        std::fs::create_dir(&data).unwrap();
        let listen = ports.addresses[id - 1].to_string();
        let mut node = consort(&["node", "--id", &own, "--listen", &listen, "--fabric", "shm", "--data"]);
        node.arg(&data).args(["--guarantee", "durable"]);
        for other in (1..=3).filter(|other| *other != id) {
            node.arg("--peer").arg(format!("{other}={}", ports.addresses[other - 1]));
        }
        if twice {
            let mut within = Command::new("unshare");
            within.args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-c", TWICE, "sh"]);
            within.arg(&data).args([SMALL, LARGE]).arg(node.get_program()).args(node.get_args());
            node = within;
        }
        let mut process = Running::start(node.stdin(Stdio::piped()));
        let lines = process.stdout().lines();
        Self { process, lines, told: Vec::new() }
    }

    /// Reads until a line that is no message is as wanted.
    fn until(&mut self, is_it: impl Fn(&Value) -> bool) -> Value {
        loop {
            let line = self.lines.next().expect("it goes on").unwrap();
            if line.starts_with(r#"{"type":"message""#) {
                let data = line.rsplit_once(r#""data":""#).unwrap().1;
                self.told.push(data[..data.find(':').unwrap()].to_owned());
                continue;
            }
            let line: Value = serde_json::from_str(&line).unwrap();
            if is_it(&line) {
                return line;
            }
        }
    }

    fn view_of(&mut self, members: &[u32]) {
        self.until(|line| line["type"] == "view" && line["members"] == json!(members));
    }
}

#[test]
fn a_member_whose_disk_is_full_stops_and_comes_again_when_there_is_room() {
    let try_it = ["--mount", "--pid", "--fork", "mount", "-t", "tmpfs", "none", "/mnt"];
    let may = Command::new("unshare").args(try_it).stderr(Stdio::null()).status();
    if !may.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: no file system can be mounted here; run it as root");
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let ports = Ports::reserve(3);
    let mut members: Vec<_> = (1..=3).map(|id| Member::start(id, &ports, place.path(), id == 3)).collect();
    let mut full = members.pop().unwrap();
    full.view_of(&[1, 2, 3]);
    // More than fits. What its first life doesn't read its second sends.
    let mut stdin = full.process.stdin.take().unwrap();
    let feeding = std::thread::spawn(move || {
        let filling = "x".repeat(16_000);
        for number in 0.. {
            if writeln!(stdin, "{number}:{filling}").is_err() {
                return; // it is over
            }
        }
    });
    let reading: Vec<_> = members
        .into_iter()
        .map(|mut member| {
            std::thread::spawn(move || {
                for view in [&[1, 2, 3][..], &[1, 2], &[1, 2, 3]] {
                    member.view_of(view);
                }
                member
            })
        })
        .collect();

    let stopped = full.until(|line| line["type"] == "stopped");
    let reason = stopped["reason"].as_str().unwrap();
    assert!(reason.contains("No space left on device") && reason.contains("free some space"), "{reason}");
    let ended = full.until(|line| line["type"] == "ended with");
    assert_eq!(ended["code"], 5, "{reason}");
    full.told.clear();

    // The second life is told what the first had written, and goes on.
    full.view_of(&[1, 2, 3]);
    let members: Vec<_> = reading.into_iter().map(|thread| thread.join().unwrap()).collect();
    full.until(|line| line["type"] == "outcome" && line["status"] == "durable");
    for member in &members {
        let len = member.told.len().min(full.told.len());
        assert!(len > 100, "{len}");
        assert_eq!(member.told[..len], full.told[..len]);
    }
    drop((full, members));
    feeding.join().unwrap();
}
