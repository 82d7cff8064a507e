//! `consort log` on logs that the library wrote, sound and not.

use std::path::{Path, PathBuf};

use consort::log::{Directory, Entry, Index, Log, LogKind, LogOptions, Meta, Payload, segment_name};
use consort::{NodeId, Seq, ViewId};
use serde_json::Value;

use crate::process::run;

fn data(place: &Path, records: u64) -> PathBuf {
    let meta = Meta { cluster: "north".to_owned(), node: NodeId(2), view: ViewId(4), ..Meta::default() };
    meta.write(&mut Directory::open(place).unwrap()).unwrap();
    let shard = place.join("shard-0");
    let options = LogOptions { segment_bytes: 2048, ..LogOptions::default() };
    let (mut log, _) = Log::open(Box::new(Directory::open(&shard).unwrap()), options, Index(0)).unwrap();
    for seq in 0..records {
        let payload = format!("message {seq}");
        let sender = NodeId(seq as u32 % 3 + 1);
        let (kind, payload) = (LogKind::Message, Payload::Copied(payload.as_bytes()));
        log.append(&Entry {
            kind,
            view: ViewId(4),
            seq: Seq(seq),
            sent: seq * 1_000_000_000,
            sender,
            payload,
        })
        .unwrap();
        while log.turn().unwrap() || !log.is_idle() {
            std::thread::yield_now();
        }
    }
    shard
}

fn json(args: &[&str], code: i32) -> Value {
    let ended = run(args);
    assert_eq!(ended.code, Some(code), "{args:?}: {} {}", ended.stdout, ended.stderr);
    serde_json::from_str(ended.stdout.lines().next().unwrap()).unwrap()
}

fn flip(file: &Path, at: usize) {
    let mut content = std::fs::read(file).unwrap();
    content[at] ^= 1;
    std::fs::write(file, content).unwrap();
}

#[test]
fn a_sound_log_is_verified_counted_and_dumped() {
    let place = tempfile::tempdir().unwrap();
    data(place.path(), 100);
    let dir = place.path().to_str().unwrap();
    let found = json(&["log", "verify", dir, "--json"], 0);
    assert_eq!((&found["sound"], &found["node"]["cluster"]), (&true.into(), &"north".into()));
    let shard = &found["shards"][0];
    assert_eq!(
        (&shard["last"], &shard["condition"], &shard["in_view"]),
        (&100.into(), &"sound".into(), &100.into())
    );
    let told = run(&["log", "stat", dir]);
    assert_eq!(told.code, Some(0));
    for word in ["north", "100 messages", "shard-0", "sender", "sound"] {
        assert!(told.stdout.contains(word), "{word}: {}", told.stdout);
    }
    let dumped = run(&["log", "dump", dir, "--from", "98", "--json"]);
    let lines: Vec<Value> = dumped.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 3);
    assert_eq!(
        (&lines[0]["data"], &lines[0]["sender"], &lines[0]["seq"]),
        (&"message 97".into(), &2.into(), &97.into())
    );
    let since = run(&["log", "dump", dir, "--since", "42", "--limit", "1"]);
    assert!(since.stdout.contains("message 42") && since.stdout.lines().count() == 1, "{}", since.stdout);
    let followed = run(&["log", "follow", dir, "--limit", "100"]);
    assert_eq!((followed.code, followed.stdout.lines().count()), (Some(0), 100));
}

#[test]
fn a_damaged_log_is_refused_and_repaired() {
    let place = tempfile::tempdir().unwrap();
    let shard = data(place.path(), 100);
    let dir = place.path().to_str().unwrap();
    flip(&shard.join(segment_name(2)), 300);
    let ended = run(&["log", "verify", dir]);
    assert_eq!(ended.code, Some(9), "{}", ended.stderr);
    assert!(
        ended.stderr.contains("consort log repair") && ended.stdout.contains("damaged"),
        "{}",
        ended.stderr
    );
    let found = json(&["log", "verify", dir, "--json"], 9);
    let record = found["shards"][0]["at"]["record"].as_u64().unwrap();
    assert!((2..100).contains(&record), "{found}");
    let dumped = run(&["log", "dump", dir]);
    assert_eq!(
        (dumped.code, dumped.stdout.lines().count() as u64),
        (Some(9), record - 1),
        "{}",
        dumped.stderr
    );
    let repaired = json(&["log", "repair", dir, "--json"], 0);
    assert_eq!(
        (&repaired["shards"][0]["last"], &repaired["node"]["mark"]),
        (&(record - 1).into(), &"damaged".into())
    );
    let ended = run(&["log", "verify", dir]);
    assert_eq!(ended.code, Some(9), "it lacks something: {}", ended.stdout);
    assert!(ended.stderr.contains("start the node"), "{}", ended.stderr);
}

#[test]
fn who_repairs_one_shard_says_so_where_its_node_looks() {
    let place = tempfile::tempdir().unwrap();
    let shard = data(place.path(), 100);
    flip(&shard.join(segment_name(2)), 300);
    let (dir, own) = (place.path().to_str().unwrap(), shard.to_str().unwrap());
    let meta = place.path().join("meta");
    let kept = std::fs::read(&meta).unwrap();
    std::fs::remove_file(&meta).unwrap();
    for path in [own, dir] {
        let ended = run(&["log", "repair", path]);
        assert_eq!(ended.code, Some(2), "{}", ended.stderr);
        assert!(ended.stderr.contains("nothing was changed"), "{}", ended.stderr);
    }
    assert_eq!(json(&["log", "verify", own, "--json"], 9)["shards"][0]["condition"], "damaged", "still");
    std::fs::write(&meta, kept).unwrap();
    assert_eq!(run(&["log", "repair", own]).code, Some(0));
    assert_eq!(json(&["log", "verify", dir, "--json"], 9)["node"]["mark"], "damaged");
}

#[test]
fn a_torn_log_is_said_to_be_torn() {
    let place = tempfile::tempdir().unwrap();
    let shard = data(place.path(), 10);
    let dir = place.path().to_str().unwrap();
    let end =
        json(&["log", "verify", dir, "--json"], 0)["shards"][0]["segments"][0]["used"].as_u64().unwrap();
    flip(&shard.join(segment_name(1)), end as usize - 3);
    let found = json(&["log", "verify", dir, "--json"], 9);
    assert_eq!((&found["shards"][0]["condition"], &found["shards"][0]["last"]), (&"torn".into(), &9.into()));
    let repaired = run(&["log", "repair", dir]);
    assert!(repaired.stdout.contains("nothing that was durable is missing"), "{}", repaired.stdout);
    assert_eq!(run(&["log", "verify", shard.to_str().unwrap()]).code, Some(0), "a shard's own directory");
}

#[test]
fn what_is_no_data_directory_is_refused() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().to_str().unwrap();
    for args in [&["log", "verify", dir][..], &["log", "dump", dir]] {
        let ended = run(args);
        assert_eq!(ended.code, Some(2), "{}", ended.stderr);
        assert!(ended.stderr.contains("--data"), "{}", ended.stderr);
    }
    assert_eq!(run(&["log", "verify", "/nowhere/at/all"]).code, Some(3));
    let shard = data(place.path(), 1);
    let held = Directory::open(&shard).unwrap();
    let ended = run(&["log", "repair", dir]);
    assert_eq!(ended.code, Some(3));
    assert!(ended.stderr.contains("stop the node first"), "{}", ended.stderr);
    drop(held);
    std::fs::write(place.path().join("meta"), b"nonsense").unwrap();
    let ended = run(&["log", "repair", dir]);
    assert_eq!(ended.code, Some(9), "{}", ended.stderr);
    assert!(ended.stderr.contains("empty one"), "{}", ended.stderr);
}
