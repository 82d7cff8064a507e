//! What is refused before anything starts: with the right exit code, naming the trouble, saying what to do.

use crate::process::{Ports, run};

/// Refused with this code, and these words.
fn refused(args: &[&str], code: i32, words: &[&str]) {
    let ended = run(args);
    assert_eq!(ended.code, Some(code), "{args:?}: {}", ended.stderr);
    assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
    for word in words {
        assert!(ended.stderr.contains(word), "{args:?} should say {word:?}: {}", ended.stderr);
    }
}

#[test]
fn help_teaches() {
    for (args, words) in [
        (&["--help"][..], &["consort demo", "Exit codes", "Examples"][..2]),
        (&["demo", "--help"], &["--crash", "stood still"]),
        (&["demo", "--help"], &["SEQ SENDER LENGTH", "Examples:", "Exit codes:"]),
        (&["node", "--help"], &["\"type\":\"view\"", "[peers]", "--until-eof", "Exit codes:"]),
        (&["node", "--help"], &["--join", "--rejoin", "Members come and go:"]),
        (&["status", "--help"], &["may lose at once", "Examples:", "Exit codes:"]),
        (&["explain", "--help"], &["nothing waits", "Exit codes:"]),
        (&["bench", "latency", "--help"], &["coordinated omission", "The floor:", "Exit codes:"]),
        (&["bench", "floor", "--help"], &["The floor:", "verbs root writes", "--host <COMMAND=ADDRESS>"]),
        (&["bench", "throughput", "--help"], &["GB/s", "The floor:"]),
        (&["kv", "--help"], &["serve", "bench", "Versions:", "Exit codes:"]),
        (&["kv", "put", "--help"], &["--if-version", "--server", "Examples", "Exit codes:"]),
        (&["log", "verify", "--help"], &["torn", "damaged", "Examples:", "Exit codes:"]),
        (&["hw", "--help"], &["--address", "locked memory", "Examples:", "Exit codes:"]),
        (&["bench", "report", "--help"], &["What it writes:", "--out", "Exit codes:"]),
        (&["bench", "counts", "--help"], &["doorbells", "signalled", "Exit codes:"]),
        (&["bench", "failover", "--help"], &["outage", "--silent", "Exit codes:"]),
        (&["bench", "repair", "--help"], &["moved", "longest gap", "--domains", "Exit codes:"]),
        (&["bench", "join", "--help"], &["longest gap", "bare TCP", "--state", "Exit codes:"]),
        (&["bench", "durable", "--help"], &["fdatasync", "--any-disk", "log ratio", "Exit codes:"]),
        (&["bench", "restart", "--help"], &["told again", "VmHWM", "--log-size", "Exit codes:"]),
    ] {
        let ended = run(args);
        assert_eq!(ended.code, Some(0));
        for word in words {
            assert!(ended.stdout.contains(word), "{args:?} should say {word:?}: {}", ended.stdout);
        }
        for internal in ["member --parent", "keeps a directory"] {
            assert!(!ended.stdout.contains(internal), "what is internal isn't shown");
        }
    }
}

#[test]
fn arguments_that_make_no_sense_are_refused_with_code_2() {
    refused(&["demo", "--members", "0"], 2, &["--members"]);
    refused(&["demo", "--members", "99"], 2, &["--members", "1..=16"]);
    refused(&["demo", "--fabric", "smoke"], 2, &["smoke", "auto, shm, tcp"]);
    refused(&["demo", "--guarantee", "total"], 2, &["fifo, agreed, atomic"]);
    refused(&["demo", "--stall", "soon"], 2, &["500ms"]);
    refused(&["demo", "--crash", "2"], 2, &["no majority", "--crash 1", "--members 5"]);
    refused(&["demo", "--members", "16", "--join", "1"], 2, &["--join", "16"]);
    refused(&["demo", "--join", "1", "--guarantee", "fifo"], 2, &["fifo", "--guarantee atomic"]);
    refused(&["--log", "a=b=c", "demo"], 2, &["--log", "what to do:"]);
    refused(&["bench", "throughput", "--senders", "4"], 2, &["4 senders", "--senders 3"]);
    refused(&["bench", "latency", "--size", "0"], 2, &["--size"]);
    refused(&["bench", "latency", "--rate", "-1"], 2, &["rate"]);
    refused(&["bench", "latency", "--host", "10.0.0.1"], 2, &["--host", "ip netns exec one=10.0.0.1"]);
    refused(&["bench", "latency", "--host", "on 1=here"], 2, &["--host", "ip netns exec one=10.0.0.1"]);
    refused(&["bench", "latency", "--fabric", "tcp", "--host", "env=127.0.0.1"], 2, &["1 hosts", "3 times"]);
    let hosts = ["bench", "floor", "--members", "2", "--host", "env=127.0.0.1", "--host", "env=127.0.0.2"];
    refused(&hosts, 2, &["share no memory", "--fabric tcp"]);
    refused(&["bench", "failover", "--members", "2"], 2, &["--members", "3..=16"]);
    refused(&["bench", "failover", "--silence", "1ms"], 2, &["--silence", "20ms"]);
    refused(&["bench", "failover", "--spared"], 2, &["3 members", "--members 4"]);
    refused(&["bench", "repair", "--nodes", "4", "--kills", "3"], 2, &["4 nodes", "--kills 2"]);
    refused(&["bench", "repair", "--replicas", "6"], 2, &["5 nodes", "--replicas"]);
    refused(&["bench", "report", "--out", "report.json"], 2, &["report.json", ".html"]);
    refused(&["bench", "report", "--out", "no/such/place/report.html"], 3, &["no/such/place/report.html"]);
    refused(&["bench", "report", "--peers", "no/such/file.json"], 3, &["no/such/file.json"]);
    refused(&["bench", "report", "--sizes", "0"], 2, &["--sizes"]);
    refused(&["bench", "repair", "--domains", "6"], 2, &["5 nodes", "--domains"]);
    refused(&["bench", "repair", "--rate", "0"], 2, &["--rate"]);
    refused(&["bench", "join", "--state", "0"], 2, &["--state", "64GiB"]);
    refused(&["bench", "join", "--state", "65GiB"], 2, &["--state", "64GiB"]);
    refused(&["bench", "join", "--state", "much"], 2, &["--state"]);
    refused(&["bench", "join", "--members", "16"], 2, &["--members", "1..=15"]);
    refused(&["bench", "durable", "--sizes", "1KiB,0"], 2, &["--sizes between"]);
    refused(&["bench", "durable", "--sizes", "much"], 2, &["--sizes"]);
    refused(&["bench", "durable", "--duration", "1ms"], 2, &["--duration", "50ms"]);
    refused(&["bench", "restart", "--size", "8"], 2, &["--size", "16"]);
    refused(&["bench", "restart", "--log-size", "1KiB"], 2, &["--log-size", "3072"]);
    refused(&["node"], 2, &["--id", "--listen"]);
    refused(&["node", "--id", "0", "--listen", "127.0.0.1:1"], 2, &["--id"]);
    refused(&["node", "--id", "1", "--listen", "127.0.0.1:1", "--peer", "2"], 2, &["2=127.0.0.1:7102"]);
    refused(&["node", "--id", "1", "--listen", "here"], 2, &["--listen"]);
    refused(
        &["node", "--id", "1", "--listen", "127.0.0.1:1", "--peer", "1=127.0.0.1:2"],
        2,
        &["what to do:"],
    );
    refused(&["node", "--id", "1", "--listen", "127.0.0.1:1", "--ring", "5000"], 2, &["power of two"]);
    let joining = ["node", "--id", "1", "--listen", "127.0.0.1:1", "--join", "127.0.0.1:2"];
    refused(&[&joining[..], &["--peer", "2=127.0.0.1:2"]].concat(), 2, &["--join and --peer", "what to do:"]);
    refused(&[&joining[..], &["--silence", "1ms"]].concat(), 2, &["silence", "20ms"]);
    refused(&["status", "here"], 2, &["ADDRESS"]);
    refused(&["kv", "get", "colour"], 2, &["--server"]);
    refused(&["kv", "get", "", "--server", "127.0.0.1:1"], 2, &["1 to 512", "what to do:"]);
    refused(&["kv", "bench", "--server", "127.0.0.1:1", "--reads", "101"], 2, &["--reads", "0..=100"]);
    refused(&["explode"], 2, &["explode"]);
}

/// What stands in front of a member's command may not be there.
#[test]
fn a_host_whose_command_is_not_there_is_named() {
    let args = ["bench", "latency", "--fabric", "tcp", "--members", "2", "--runs", "1"];
    let hosts = ["--host", "env=127.0.0.1", "--host", "no-such-command=127.0.0.1"];
    refused(&[&args[..], &hosts].concat(), 4, &["member 2", "no-such-command", "--host"]);
}

/// The floor over RDMA is refused as the group is.
#[cfg(not(feature = "verbs"))]
#[test]
fn a_build_without_verbs_says_so() {
    for bench in ["latency", "floor"] {
        let args = ["bench", bench, "--fabric", "verbs", "--members", "2", "--runs", "1"];
        refused(&args, 4, &["this build has no verbs", "--features verbs", "libibverbs-dev", "tcp"]);
    }
}

#[test]
fn files_that_cant_be_used_are_refused_with_code_3() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_string_lossy().into_owned();
    refused(&["demo", "--input", &path("missing")], 3, &["missing", "check the path"]);
    refused(&["demo", "--input", &path("")], 3, &["it is a directory", "what to do:"]);
    refused(&["demo", "--input", "/dev/null"], 3, &["it is a device", "what to do:"]);
    std::fs::write(path("file"), "text\n").unwrap();
    refused(&["demo", "--out", &path("file/sub")], 3, &["file/sub", "what to do:"]);
    refused(&["node", "--config", &path("node.toml")], 3, &["node.toml", "check the path"]);
    refused(&["status", "127.0.0.1:1", "--key-file", &path("key")], 3, &["key", "check the path"]);
    refused(&["bench", "latency", "--plot", &path("none/plot.html")], 3, &["plot.html"]);
    for bench in ["durable", "restart"] {
        refused(&["bench", bench, "--dir", &path("none")], 3, &["none", "check the path"]);
        refused(&["bench", bench, "--any-disk", "--dir", &path("file")], 3, &["file", "what to do:"]);
    }
}

#[test]
fn a_configuration_that_cant_be_is_refused_where_it_is_wrong() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("node.toml");
    std::fs::write(&file, "id = 1\nlisten = \"127.0.0.1:7101\"\nfabric = \"smoke\"\n").unwrap();
    let file = file.to_string_lossy().into_owned();
    refused(&["node", "--config", &file], 2, &["node.toml:3", "fabric"]);
    refused(&["node", "--config", &file, "--id", "2"], 2, &["--config"]);
    std::fs::write(&file, "id = 1\nlisten = \"127.0.0.1:7101\"\nstate = true\n").unwrap();
    refused(&["node", "--config", &file], 2, &["state = true", "leave `state` out"]);
}

#[test]
fn with_json_a_failure_is_an_object_too() {
    let ended = run(&["demo", "--json", "--input", "/nowhere/at/all"]);
    assert_eq!(ended.code, Some(3));
    let object = ended.json();
    assert_eq!(object["code"], 3);
    assert!(object["error"].as_str().unwrap().contains("/nowhere/at/all"));
    assert!(!object["remedy"].as_str().unwrap().is_empty());
}

#[test]
fn an_address_in_use_is_named_with_code_4() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let ports = Ports::reserve(1);
    let peer = format!("2={}", ports.addresses[0]);
    refused(&["node", "--id", "1", "--listen", &address, "--peer", &peer], 4, &[&address, "what to do:"]);
}

#[test]
fn asking_where_no_member_runs_says_what_to_do() {
    let ports = Ports::reserve(1);
    let address = ports.addresses[0].to_string();
    refused(&["status", &address], 4, &[&address, "what to do:", "--listen"]);
    refused(&["explain", &address], 4, &[&address, "what to do:", "--listen"]);
    let ended = run(&["status", &address, "--json"]);
    assert_eq!((ended.code, &ended.json()["code"]), (Some(4), &serde_json::json!(4)));
}

#[test]
fn a_member_without_a_parent_does_nothing() {
    refused(&["member", "--parent", "1", "--name", "stray"], 4, &[]);
}

// That there is no RDMA is no failure, and said in words.
#[test]
fn hw_tells_of_the_machine_whatever_it_has() {
    let ended = run(&["hw"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    for word in ["kernel", "locked memory", "io_uring", "Fabrics:", "libibverbs"] {
        assert!(ended.stdout.contains(word), "it should say {word:?}: {}", ended.stdout);
    }
    let ended = run(&["hw", "--json", "--address", "127.0.0.1"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let object = ended.json();
    let fabrics: Vec<_> =
        object["fabrics"].as_array().unwrap().iter().map(|it| it["fabric"].as_str().unwrap()).collect();
    assert_eq!(fabrics, ["shm", "tcp", "verbs"]);
    assert!(
        object["rdma"]["devices"].is_array() && object["advice"].is_array() && object["kernel"].is_string()
    );
    for advice in object["advice"].as_array().unwrap() {
        assert!(
            ["about", "why", "command"]
                .iter()
                .all(|field| advice[field].as_str().is_some_and(|it| !it.is_empty()))
        );
    }
    refused(&["hw", "--address", "here"], 2, &["--address"]);
}
