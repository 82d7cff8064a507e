//! `consort bench durable` and `bench restart`, so small that their figures mean nothing: that there are figures, that nothing is left behind however
//! they end, and what they refuse.

use std::path::Path;
use std::process::Stdio;

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::process::{Running, consort, run};

/// `--any-disk`, for a machine whose temporary directory is memory.
fn measured(place: &TempDir, bench: &str, more: &[&str]) -> Value {
    let dir = place.path().to_string_lossy();
    let mut args = vec!["bench", bench, "--json", "--any-disk", "--dir", &dir];
    args.extend(more);
    let ended = run(&args);
    assert_eq!(ended.code, Some(0), "{args:?}: {}", ended.stderr);
    let object = ended.json();
    assert_eq!(object["bench"], bench);
    assert!(is_empty(place.path()), "something was left behind");
    object
}

fn is_empty(place: &Path) -> bool {
    std::fs::read_dir(place).unwrap().next().is_none()
}

/// These fields are numbers above zero.
fn positive(object: &Value, place: &str, fields: &[&str]) {
    for field in fields {
        let value = object.pointer(&format!("{place}/{field}")).and_then(Value::as_f64);
        assert!(value.is_some_and(|it| it > 0.0 && it.is_finite()), "{place}/{field} in {object}");
    }
}

/// Long enough for a flush while other tests load the disk, too.
const SHORT: [&str; 6] = ["--duration", "1s", "--warmup", "50ms", "--runs", "1"];

#[test]
fn a_durable_group_has_its_figures_beside_bare_files() {
    for (fabric, sizes) in [("shm", &[1000, 10240][..]), ("tcp", &[64])] {
        let place = tempfile::tempdir().unwrap();
        let listed = sizes.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let more = [&SHORT[..], &["--fabric", fabric, "--sizes", &listed]].concat();
        let object = measured(&place, "durable", &more);
        assert_eq!((&object["fabric"], &object["members"]), (&fabric.into(), &3.into()));
        assert_eq!(object["throughput"].as_array().map(Vec::len), Some(sizes.len()));
        for (at, size) in sizes.iter().enumerate() {
            assert_eq!(object["throughput"][at]["size"], *size);
            for place in [format!("/throughput/{at}"), format!("/throughput/{at}/runs/0")] {
                positive(
                    &object,
                    &place,
                    &["msgs_per_s", "mb_per_s", "log_mb_per_s", "bytes_per_flush", "flushes_per_s"],
                );
                positive(&object, &place, &["floor_mb_per_s", "ratio", "log_ratio"]);
            }
        }
        for place in ["/latency", "/latency/runs/0"] {
            positive(
                &object,
                place,
                &["p50_us", "p99_us", "max_us", "uncorrected_p50_us", "bytes_per_flush"],
            );
            positive(&object, place, &["flush_alone_p50_us", "uncorrected_flush_alone_p50_us"]);
            positive(&object, place, &["flush_p50_us", "flush_p99_us", "flush_max_us", "ratio"]);
            positive(&object, place, &["uncorrected_flush_p50_us", "uncorrected_last_flush_p50_us"]);
            positive(&object, place, &["uncorrected_ratio"]);
        }
        for place in ["/volatile", "/volatile/runs/0"] {
            positive(
                &object,
                place,
                &["alone_msgs_per_s", "loaded_msgs_per_s", "durable_msgs_per_s", "ratio"],
            );
        }
        assert!(object["disk"].is_string() && object["wait"].is_string());
    }
}

#[test]
fn restarts_tell_everything_again_and_are_measured() {
    for fabric in ["shm", "tcp"] {
        let place = tempfile::tempdir().unwrap();
        let more = ["--fabric", fabric, "--log-size", "300KiB", "--size", "1000", "--runs", "2"];
        let object = measured(&place, "restart", &more);
        assert_eq!((&object["fabric"], &object["members"]), (&fabric.into(), &3.into()));
        // 300 KiB of records of 1056 bytes, 96 of each of three members, and a new one of each.
        assert_eq!((&object["size"], &object["messages"]), (&1000.into(), &291.into()));
        assert_eq!(object["runs"].as_array().map(Vec::len), Some(2));
        positive(&object, "", &["log_bytes", "fill_mib_per_s", "fill_memory_bytes"]);
        for place in ["", "/runs/0", "/runs/1"] {
            positive(&object, place, &["opened_ms", "told_again_ms", "first_new_ms", "mib_per_s"]);
            positive(&object, place, &["msgs_per_s", "memory_bytes"]);
        }
    }
}

#[test]
fn both_are_told_in_tables_too() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().to_string_lossy();
    let more = ["--any-disk", "--dir", &dir, "--members", "1", "--runs", "1"];
    let told = |bench: &str, own: &[&str], words: &[&str]| {
        let args = [&["bench", bench][..], &more, own].concat();
        let ended = run(&args);
        assert_eq!(ended.code, Some(0), "{args:?}: {}", ended.stderr);
        for word in words {
            assert!(ended.stdout.contains(word), "{word:?}: {}", ended.stdout);
        }
    };
    told("durable", &SHORT[..4], &["1.00 KiB", "10.0 KiB", "bare files", "a flush alone", "a loaded one"]);
    told("restart", &["--log-size", "20KiB"], &["told again", "first new", "memory", "filling:"]);
    assert!(is_empty(place.path()));
}

/// The keeper has its parent's standard error: that ends when the directory is gone.
#[test]
fn nothing_is_left_behind_by_one_that_is_killed_or_interrupted() {
    for signal in [Signal::KILL, Signal::TERM, Signal::INT] {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().to_string_lossy();
        let args = [
            "--log",
            "info",
            "bench",
            "restart",
            "--any-disk",
            "--dir",
            &dir,
            "--log-size",
            "300MiB",
            "--size",
            "64",
        ];
        let mut running = Running::start(consort(&args).stdin(Stdio::null()));
        let runs = |line: &String| line.contains("the group runs");
        while !running.next_log().as_ref().map(runs).expect("the group comes together") {}
        assert!(!is_empty(place.path()));
        running.signal(signal);
        let ended = running.end();
        assert_eq!(ended.code, None, "{signal:?}: {}", ended.stderr);
        assert!(is_empty(place.path()), "{signal:?}");
    }
}

#[test]
fn memory_is_no_disk_unless_any_will_do() {
    const TMPFS: i64 = 0x0102_1994;
    let shm = "/dev/shm";
    let kind = rustix::fs::statfs(shm).map(|it| it.f_type);
    if kind != Ok(TMPFS) {
        return; // nothing to refuse here
    }
    for bench in ["durable", "restart"] {
        let ended = run(&["bench", bench, "--dir", shm]);
        assert_eq!(ended.code, Some(2), "{}", ended.stderr);
        for word in ["tmpfs", "/dev/shm", "what to do:", "--any-disk"] {
            assert!(ended.stderr.contains(word), "{word:?}: {}", ended.stderr);
        }
    }
    let place = tempfile::tempdir_in(shm).unwrap();
    measured(&place, "restart", &["--log-size", "20KiB", "--runs", "1", "--members", "1"]);
}

#[test]
fn logs_that_the_disk_has_no_room_for_are_refused() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().to_string_lossy();
    let ended =
        run(&["bench", "restart", "--any-disk", "--dir", &dir, "--log-size", "1000GiB", "--members", "16"]);
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    assert!(ended.stderr.contains("free") && ended.stderr.contains("--log-size"), "{}", ended.stderr);
    assert!(is_empty(place.path()));
}
