//! `consort bench`, run so briefly that its figures mean nothing: what is checked is that there are figures.

use serde_json::Value;

use crate::process::run;

const BRIEF: [&str; 8] = ["--duration", "100ms", "--runs", "1", "--json", "--members", "3", "--fabric"];

fn measured(bench: &str, fabric: &str, more: &[&str]) -> Value {
    let mut args = vec!["bench", bench];
    args.extend(BRIEF);
    args.push(fabric);
    args.extend(more);
    if bench != "idle" {
        args.extend(["--warmup", "20ms"]);
    }
    let ended = run(&args);
    assert_eq!(ended.code, Some(0), "{args:?}: {}", ended.stderr);
    let object = ended.json();
    assert_eq!(object["bench"], bench);
    object
}

/// The field at `path` is a number above zero.
fn positive(object: &Value, path: &str) {
    let value = object.pointer(path).and_then(Value::as_f64);
    assert!(value.is_some_and(|value| value > 0.0 && value.is_finite()), "{path} in {object}");
}

fn complete(object: &Value, fabric: &str) {
    assert_eq!((&object["fabric"], &object["members"]), (&fabric.into(), &3.into()));
    for field in ["senders", "size", "messages", "seconds", "msgs_per_s", "gb_per_s", "cpu_s_per_million"] {
        positive(object, &format!("/{field}"));
    }
    for latency in ["latency_us", "last_member_us"] {
        for quantile in ["p50", "p99", "p999", "max"] {
            positive(object, &format!("/{latency}/{quantile}"));
        }
    }
    for field in ["floor/p50_us", "floor/msgs_per_s", "floor/gb_per_s", "ratio/p50", "ratio/throughput"] {
        positive(object, &format!("/{field}"));
    }
    assert!(object["guarantee"].is_string() && object["system_calls_per_message"].is_number());
}

#[test]
fn latency_has_all_its_figures() {
    for fabric in ["shm", "tcp"] {
        complete(&measured("latency", fabric, &[]), fabric);
    }
}

/// What stands in front of a member's command becomes it: the parent still knows it, and ends it.
#[test]
fn members_and_floor_run_where_they_are_put() {
    let hosts = ["env=127.0.0.1", "env CONSORT=1=127.0.0.2", "env=127.0.0.3"].map(|host| ["--host", host]);
    complete(&measured("latency", "tcp", &hosts.concat()), "tcp");
}

#[test]
fn counts_are_there_for_each_load() {
    let object = measured("counts", "tcp", &["--sizes", "64"]);
    let cells = object["cells"].as_array().unwrap();
    let loads: Vec<_> = cells.iter().map(|cell| (cell["senders"].as_u64(), cell["load"].as_str())).collect();
    let expected =
        [1, 3].map(|senders| ["one at a time", "saturated"].map(|load| (Some(senders), Some(load))));
    assert_eq!(loads, expected.concat());
    for cell in cells {
        positive(cell, "/messages");
        positive(cell, "/per_message/system_calls");
        // Two others get the payload.
        assert!(cell["per_message"]["bytes"].as_f64().unwrap() >= 2.0 * 64.0, "{cell}");
        assert_eq!(cell["per_message"]["work_requests"], 0.0, "TCP has no device: {cell}");
    }
}

#[test]
fn along_a_chain_there_are_the_same_figures() {
    complete(&measured("throughput", "tcp", &["--topology", "chain", "--size", "10KiB"]), "tcp");
}

#[test]
fn replicas_are_compared_in_total_order_and_along_a_chain() {
    for fabric in ["shm", "tcp"] {
        let object = measured("replicas", fabric, &["--updaters", "2"]);
        assert_eq!((&object["fabric"], &object["members"]), (&fabric.into(), &3.into()));
        for (kind, topology) in ["direct", "chain"].into_iter().enumerate() {
            assert_eq!(object["kinds"][kind]["topology"], topology);
            for field in ["updates_per_s", "gb_per_s", "queries", "loaded_us/p50", "quiet_us/p99"] {
                positive(&object, &format!("/kinds/{kind}/{field}"));
            }
        }
        positive(&object, "/floor_us/p50");
    }
}

#[test]
fn latency_at_a_rate_has_no_throughput_to_compare() {
    let object = measured("latency", "shm", &["--rate", "2000", "--size", "1KiB"]);
    assert!(object["ratio"]["throughput"].is_null());
    positive(&object, "/latency_us/p50");
}

#[test]
fn throughput_has_all_its_figures_and_a_page() {
    let directory = tempfile::tempdir().unwrap();
    let plot = directory.path().join("plot.html");
    let plot_text = plot.to_string_lossy();
    complete(&measured("throughput", "shm", &["--senders", "3", "--plot", &plot_text]), "shm");
    complete(&measured("throughput", "tcp", &["--size", "10KiB"]), "tcp");
    let page = std::fs::read_to_string(&plot).unwrap();
    assert!(page.starts_with("<!DOCTYPE html>") && page.contains("<svg"));
}

#[test]
fn idle_members_are_counted() {
    let object = measured("idle", "shm", &[]);
    assert!(object["cpu_percent_per_member"].is_number() && object["runs"].as_array().unwrap().len() == 1);
}

#[test]
fn the_floor_stands_alone() {
    for wait in ["adaptive", "block"] {
        for size in ["64", "100KiB"] {
            let object = measured("floor", "auto", &["--wait", wait, "--size", size, "--senders", "2"]);
            for floor in 0..2 {
                for field in ["latency_us/p50", "msgs_per_s", "gb_per_s"] {
                    positive(&object, &format!("/floors/{floor}/{field}"));
                }
            }
        }
    }
}

/// Every kill is survived, and there are figures.
#[test]
fn failovers_are_survived_and_counted() {
    for (fabric, members, more) in [
        ("shm", 3, &[][..]),
        ("tcp", 3, &[]),
        ("shm", 3, &["--silent", "--silence", "100ms"]),
        ("shm", 4, &["--spared", "--members", "4"]),
        ("tcp", 4, &["--spared", "--members", "4"]),
    ] {
        let mut args = vec!["bench", "failover", "--kills", "2", "--json", "--fabric", fabric];
        args.extend(more);
        let ended = run(&args);
        assert_eq!(ended.code, Some(0), "{args:?}: {}", ended.stderr);
        let object = ended.json();
        assert_eq!((&object["bench"], &object["fabric"]), (&"failover".into(), &fabric.into()));
        assert_eq!((&object["members"], &object["kills"]), (&members.into(), &2.into()));
        assert_eq!(object["silent"], more.contains(&"--silent"));
        for figures in ["spared_ms", "no_failure_ms"] {
            assert_eq!(object[figures].is_null(), members == 3, "{object}");
            if members > 3 {
                positive(&object, &format!("/{figures}/max"));
                positive(&object, &format!("/runs/1/{figures}"));
            }
        }
        for figures in ["detection_ms", "outage_ms", "machine_ms"] {
            for quantile in ["p50", "p99", "max"] {
                positive(&object, &format!("/{figures}/{quantile}"));
            }
        }
        assert_eq!(object["runs"].as_array().map(Vec::len), Some(2));
    }
}

/// One page, which needs nothing else, and the same figures beside it as on standard output.
#[test]
fn a_report_is_one_page_and_its_figures() {
    let place = tempfile::tempdir().unwrap();
    let page = place.path().join("all.html");
    let out = page.to_str().unwrap();
    let brief = ["--duration", "200ms", "--warmup", "10ms", "--runs", "1", "--kills", "1", "--json"];
    let what = ["--fabric", "shm", "--members", "2", "--sizes", "64,1KiB", "--out", out];
    let ended = run(&[&["bench", "report"][..], &brief, &what].concat());
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let object = ended.json();
    let beside = std::fs::read_to_string(page.with_extension("json")).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&beside).unwrap(), object);
    let count = |part: &str| object[part].as_array().map(Vec::len);
    assert_eq!(["latency", "throughput", "overload", "failover"].map(count), [2, 4, 1, 1].map(Some));
    positive(&object, "/overload/0/peak_msgs_per_s");
    (0..9).for_each(|point| positive(&object, &format!("/overload/0/points/{point}/msgs_per_s")));
    positive(&object, "/failover/0/outage_ms/p50");
    let page = std::fs::read_to_string(page).unwrap();
    assert_eq!(page.matches("<svg").count(), 2 + 1 + 2, "distributions, throughput, overload");
    let elsewhere = page.replace("http://www.w3.org/2000/svg", "");
    assert!(!elsewhere.contains("http") && !elsewhere.contains("src="), "it needs nothing else");
    for text in ["shm, 2 members, 1.00 KiB", "2 sending", "at a fixed rate", "outage"] {
        assert!(page.contains(text), "{text}");
    }
}

/// Every shard has its replicas again after each kill, and there are figures of those that were not touched.
#[test]
fn repairs_are_waited_for_and_counted() {
    for fabric in ["shm", "tcp"] {
        let args = [
            "bench",
            "repair",
            "--runs",
            "1",
            "--rate",
            "100",
            "--domains",
            "3",
            "--json",
            "--fabric",
            fabric,
        ];
        let ended = run(&args);
        assert_eq!(ended.code, Some(0), "{args:?}: {}", ended.stderr);
        let object = ended.json();
        assert_eq!((&object["bench"], &object["fabric"]), (&"repair".into(), &fabric.into()));
        let kills = object["kills"].as_array().unwrap();
        assert_eq!(kills.len(), 2, "{object}");
        for kill in kills {
            assert!(
                kill["hit"].as_u64() >= Some(1) && kill["moved"].as_u64() >= kill["hit"].as_u64(),
                "{object}"
            );
            positive(kill, "/repaired_ms");
        }
        assert!(kills[0]["spared"].as_u64() >= Some(1), "{object}");
        positive(&object, "/kills/0/spared_ms");
        positive(&object, "/kills/0/no_failure_ms");
    }
}

#[test]
fn joins_with_a_state_are_measured_beside_quiet_and_a_bare_stream() {
    for fabric in ["shm", "tcp"] {
        let args = [
            "bench",
            "join",
            "--state",
            "300KiB",
            "--members",
            "2",
            "--runs",
            "2",
            "--json",
            "--fabric",
            fabric,
        ];
        let ended = run(&args);
        assert_eq!(ended.code, Some(0), "{args:?}: {}", ended.stderr);
        let object = ended.json();
        assert_eq!((&object["bench"], &object["fabric"]), (&"join".into(), &fabric.into()));
        assert_eq!((&object["members"], &object["state_bytes"]), (&2.into(), &(300 << 10).into()));
        assert_eq!(object["runs"].as_array().map(Vec::len), Some(2));
        for place in ["", "/runs/0", "/runs/1"] {
            for figure in ["gap_ms", "quiet_gap_ms", "transfer_mib_per_s", "stream_mib_per_s", "catch_up_ms"]
            {
                positive(&object, &format!("{place}/{figure}"));
            }
        }
        for figure in ["window_ms", "transfer_ms", "restore_ms"] {
            positive(&object, &format!("/runs/0/{figure}"));
        }
    }
}

#[test]
fn joins_are_told_in_a_table_too() {
    let ended = run(&["bench", "join", "--state", "1", "--members", "1", "--runs", "1"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    for word in ["one with 1 B of state joins 1 member over", "longest gap", "bare TCP"] {
        assert!(ended.stdout.contains(word), "{word:?}: {}", ended.stdout);
    }
}
