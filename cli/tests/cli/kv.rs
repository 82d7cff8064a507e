//! The key-value store: real servers, real clients, and servers that are killed.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::Stdio;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::process::{Ended, PATIENCE, Ports, Running, consort, run};

/// Servers of a store, by number from 1. All end with it.
pub(crate) struct Servers {
    ports: Ports,
    running: Vec<Option<Running>>,
}

impl Servers {
    pub(crate) fn found(count: usize, fabric: &str, more: &[&str]) -> Self {
        // The first half are the servers', the second their clients'.
        let ports = Ports::reserve(2 * count);
        let mut servers = Self { ports, running: (0..count).map(|_| None).collect() };
        (1..=count).for_each(|id| servers.start(id, fabric, more));
        servers
    }

    /// A founder of the store, also if it was that before.
    fn start(&mut self, id: usize, fabric: &str, more: &[&str]) {
        let (count, addresses) = (self.running.len(), &self.ports.addresses);
        let peers = (1..=count).filter(|other| *other != id);
        let peers =
            peers.flat_map(|other| ["--peer".to_owned(), format!("{other}={}", addresses[other - 1])]);
        let mut command = consort(&["kv", "serve", "--fabric", fabric, "--silence", "5s"]);
        command.args(["--id", &id.to_string(), "--listen", &addresses[id - 1].to_string()]);
        command.args(["--clients", &addresses[count + id - 1].to_string()]);
        self.running[id - 1] = Some(Running::start(command.args(peers).args(more).stdin(Stdio::null())));
    }

    pub(crate) fn clients(&self, id: usize) -> SocketAddr {
        self.ports.addresses[self.running.len() + id - 1]
    }

    /// Clients' addresses of all servers, those that were killed among them.
    pub(crate) fn all(&self) -> String {
        let all: Vec<_> = (1..=self.running.len()).map(|id| self.clients(id).to_string()).collect();
        all.join(",")
    }

    pub(crate) fn kill(&mut self, id: usize) {
        let mut server = self.running[id - 1].take().unwrap();
        server.signal(Signal::KILL);
        assert_eq!(server.end().code, None, "it was killed");
    }

    /// What `consort kv …` says at these servers.
    fn ask(&self, servers: &str, args: &[&str]) -> Ended {
        run(&[&["kv"], args, &["--server", servers, "--within", "60s", "--json"]].concat())
    }

    /// The same, of a request that succeeds.
    pub(crate) fn done(&self, servers: &str, args: &[&str]) -> Value {
        let ended = self.ask(servers, args);
        assert_eq!(ended.code, Some(0), "{args:?}: {}", ended.stderr);
        ended.json()
    }

    /// And of one that the store says no to.
    fn no(&self, args: &[&str], words: &str) {
        let ended = self.ask(&self.all(), args);
        assert_eq!((ended.code, &ended.json()["code"]), (Some(8), &json!(8)), "{args:?}: {}", ended.stderr);
        assert!(ended.stderr.contains(words) && ended.stderr.contains("what to do:"), "{}", ended.stderr);
    }

    /// The shards of the store as a server sees them.
    fn shards(&self, id: usize) -> Vec<Value> {
        let status = run(&["status", &self.ports.addresses[id - 1].to_string(), "--json"]);
        assert_eq!(status.code, Some(0), "{}", status.stderr);
        let status = status.json();
        let shards = status["view"]["shards"].as_array().cloned().unwrap_or_default();
        shards.into_iter().filter(|it| it["shard"].as_str().unwrap().starts_with("kv")).collect()
    }

    /// Asks a server until every shard has three members, none of them `lost`.
    pub(crate) fn wait_until_whole(&self, id: usize, lost: u64) {
        let patience = std::time::Instant::now() + PATIENCE;
        loop {
            let shards = self.shards(id);
            let is_whole = |shard: &Value| {
                let members = shard["members"].as_array().unwrap();
                members.len() == 3 && !members.contains(&json!(lost))
            };
            if shards.len() == 3 && shards.iter().all(is_whole) {
                return;
            }
            assert!(std::time::Instant::now() < patience, "not whole again: {shards:?}");
        }
    }
}

fn three_servers(fabric: &str) {
    let mut servers = Servers::found(3, fabric, &[]);
    let all = servers.all();
    assert_eq!(servers.done(&all, &["put", "colour", "red"]), json!({"key": "colour", "version": 1}));
    let one = servers.clients(1).to_string();
    // Linearizable wherever it is asked.
    for id in 1..=3 {
        let found = servers.done(&servers.clients(id).to_string(), &["get", "colour"]);
        assert_eq!(found, json!({"key": "colour", "value": "red", "version": 1}));
    }
    assert_eq!(servers.done(&one, &["get", "colour", "--local"])["value"], "red");
    servers.no(&["get", "shape"], "no key");
    servers.no(&["delete", "shape"], "no key");

    // One of two who found the same version succeeds.
    let conditional = ["put", "colour", "green", "--if-version", "1"];
    assert_eq!(servers.done(&one, &conditional)["version"], 2);
    servers.no(&conditional, "has version 2");
    servers.no(&["put", "colour", "blue", "--if-version", "0"], "has version 2");
    servers.no(&["delete", "colour", "--if-version", "1"], "has version 2");
    assert_eq!(servers.done(&one, &["put", "lock", "mine", "--if-version", "0"])["version"], 1);
    assert_eq!(servers.done(&one, &["delete", "lock"])["deleted"], true);
    servers.no(&["get", "lock"], "no key");
    assert_eq!(servers.done(&one, &["put", "lock", "yours", "--if-version", "0"])["version"], 2);

    // Any text is a value, and text output is the value alone.
    let odd = "two\nlines, \"quoted\", \u{1f600}";
    servers.done(&one, &["put", "odd", odd]);
    assert_eq!(servers.done(&one, &["get", "odd"])["value"], odd);
    assert_eq!(run(&["kv", "get", "odd", "--server", &one]).stdout, format!("{odd}\n"));

    // What is acknowledged outlives a server, and the others go on.
    servers.kill(1);
    assert_eq!(servers.done(&all, &["get", "colour"])["value"], "green");
    for n in 0..6 {
        let key = format!("after-{n}");
        servers.done(&all, &["put", &key, "it", "--if-version", "0"]);
        assert_eq!(servers.done(&all, &["get", &key])["value"], "it");
    }
    assert_eq!(servers.done(&all, &["delete", "colour"])["version"], 2);
    servers.no(&["get", "colour"], "no key");

    // It comes again, and gets what it missed.
    servers.start(1, fabric, &[]);
    servers.wait_until_whole(2, 0);
    servers.done(&all, &["put", "last", "one"]);
    servers.kill(2);
    for key in ["odd", "after-0", "after-5", "last"] {
        let seen = servers.done(&one, &["get", key]);
        assert_eq!(servers.done(&one, &["get", key, "--local"]), seen);
    }
    servers.no(&["get", "colour"], "no key");
}

#[test]
fn three_servers_over_shared_memory() {
    three_servers("shm");
}

#[test]
fn three_servers_over_tcp() {
    three_servers("tcp");
}

#[test]
fn shards_of_a_server_that_is_lost_go_to_others_with_all_values() {
    let mut servers = Servers::found(5, "shm", &["--shards", "3", "--replicas", "3"]);
    let all = servers.all();
    let keys: Vec<String> = (0..12).map(|n| format!("key-{n}")).collect();
    for key in &keys {
        // Also by way of servers that haven't got its shard.
        assert_eq!(
            servers.done(&servers.clients(5).to_string(), &["put", key, &format!("of {key}")])["version"],
            1
        );
    }
    servers.wait_until_whole(1, 0);
    servers.kill(2);
    servers.wait_until_whole(1, 2);
    for key in &keys {
        assert_eq!(servers.done(&all, &["get", key])["value"], format!("of {key}"));
        assert_eq!(servers.done(&servers.clients(4).to_string(), &["put", key, "again"])["version"], 2);
    }
}

#[test]
fn watchers_see_changes_in_their_order() {
    let servers = Servers::found(3, "shm", &[]);
    let one = servers.clients(1).to_string();
    servers.done(&one, &["put", "door", "shut"]);
    let mut command = consort(&["kv", "watch", "door", "--server", &one, "--json"]);
    let mut watcher = Running::start(command.stdin(Stdio::null()));
    let mut lines = watcher.stdout().lines();
    let mut next = || -> Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    assert_eq!(next(), json!({"key": "door", "value": "shut", "version": 1, "deleted": false}));
    let elsewhere = servers.clients(2).to_string();
    servers.done(&elsewhere, &["put", "window", "open"]);
    servers.done(&elsewhere, &["put", "door", "open"]);
    servers.done(&elsewhere, &["delete", "door"]);
    assert_eq!(next(), json!({"key": "door", "value": "open", "version": 2, "deleted": false}));
    assert_eq!(next(), json!({"key": "door", "value": null, "version": 2, "deleted": true}));
}

#[test]
fn a_benchmark_counts_both_kinds() {
    let servers = Servers::found(3, "shm", &[]);
    // It waits for the store.
    servers.done(&servers.all(), &["put", "ready", "yes"]);
    let ended =
        run(&["kv", "bench", "--server", &servers.all(), "--seconds", "1", "--clients", "3", "--json"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let report = ended.json();
    assert_eq!((&report["bench"], &report["failed"]), (&json!("kv"), &json!(0)), "{report}");
    for kind in ["puts", "gets"] {
        assert!(report[kind]["done"].as_u64().unwrap() > 0, "{report}");
        assert!(report[kind]["latency_us"]["p50"].as_f64().unwrap() > 0.0, "{report}");
    }
}

#[test]
fn what_is_no_request_is_answered_and_a_server_that_is_told_to_leaves() {
    let mut servers = Servers::found(3, "shm", &[]);
    servers.done(&servers.all(), &["put", "a", "b"]);
    let stream = TcpStream::connect(servers.clients(1)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut answers = BufReader::new(stream.try_clone().unwrap());
    let mut say = |bytes: &[u8]| -> Value {
        (&stream).write_all(bytes).unwrap();
        let mut answer = String::new();
        answers.read_line(&mut answer).unwrap();
        serde_json::from_str(&answer).unwrap()
    };
    for wrong in
        [&b"hello\n"[..], b"\n", b"{\"do\":\"get\"}\n", b"\xff\xfe\n", b"{\"do\":\"get\",\"key\":\"\"}\n"]
    {
        assert_eq!(say(wrong)["is"], "refused", "{}", wrong.escape_ascii());
    }
    // And the connection is as good as before.
    assert_eq!(say(b"{\"do\":\"get\",\"key\":\"a\"}\n"), json!({"is": "value", "value": "b", "version": 1}));
    // A line without end is refused, and that is the end.
    let endless = vec![b'x'; 1 << 20];
    let _ = (&stream).write_all(&endless);
    let _ = answers.read_to_end(&mut Vec::new());
    let long = "k".repeat(513);
    let ended = servers.ask(&servers.all(), &["get", &long]);
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    assert_eq!(servers.done(&servers.all(), &["get", "a"])["value"], "b");

    let mut server = servers.running[2].take().unwrap();
    server.signal(Signal::TERM);
    let ended = server.end();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
    assert_eq!(servers.done(&servers.all(), &["put", "a", "c"])["version"], 2);
}

#[test]
fn a_store_that_is_not_there_is_said_to_be() {
    let ports = Ports::reserve(1);
    let address = ports.addresses[0].to_string();
    for args in [&["put", "a", "b"][..], &["get", "a"], &["delete", "a"], &["watch"]] {
        let ended = run(&[&["kv"], args, &["--server", &address, "--within", "100ms", "--json"]].concat());
        assert_eq!((ended.code, &ended.json()["code"]), (Some(4), &json!(4)), "{}", ended.stderr);
        assert!(ended.stderr.contains(&address) && ended.stderr.contains("--server"), "{}", ended.stderr);
    }
    let serve = ["kv", "serve", "--id", "1", "--listen", &address, "--clients", "127.0.0.1:0"];
    for (more, words) in [
        (&["--shards", "99"][..], "shards"),
        (&["--replicas", "0"], "replicas"),
        (&["--domain", "a domain of too many words"], "--domain"),
        (&["--peer", "2=127.0.0.1:2", "--join", "127.0.0.1:2"], "--join and --peer"),
    ] {
        let ended = run(&[&serve[..], more].concat());
        assert_eq!(ended.code, Some(2), "{}", ended.stderr);
        assert!(ended.stderr.contains(words) && ended.stderr.contains("what to do:"), "{}", ended.stderr);
    }
}
