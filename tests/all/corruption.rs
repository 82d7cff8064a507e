//! Damage that TCP lets through: a packet filter in a network namespace of the test's own changes a byte of the payload
//! after the sender's checksum was taken, and the receiver's kernel hands the wrong bytes over. The frame's checksum must
//! notice: the link breaks with the reason, and no wrong byte is ever vouched for.
//!
//! Needs root, `unshare`, `ip` and `nft`; says so and passes where these can't be had, and runs in CI, where they can.

use std::process::Command;
use std::time::{Duration, Instant};

use consort_dataplane::fabric::{FABRIC_PAGE, Fabric, LinkDown, LinkEvent};
use consort_dataplane::names::{NodeId, PeerSet, Slot, Time};
use consort_hw::tcp::{TcpEngine, TcpFabric, TcpOptions};

const INSIDE: &str = "CONSORT_TEST_INSIDE_NAMESPACE";
const RING: usize = FABRIC_PAGE + 4096;

/// Runs the test `name` again in a process in a network namespace of its own, with only a loopback device.
fn in_a_namespace(name: &str) -> bool {
    let probe = Command::new("unshare").args(["--net", "nft", "list", "ruleset"]).output();
    if !probe.is_ok_and(|probe| probe.status.success()) {
        println!("not run: this needs root, unshare (util-linux) and nft (nftables)");
        return false;
    }
    let test = std::env::current_exe().unwrap();
    let status = Command::new("unshare")
        .args(["--net", "--"])
        .arg(test)
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, "1")
        .status()
        .unwrap();
    assert!(status.success(), "the run inside the namespace failed");
    true
}

fn run(program: &str, arguments: &[&str]) {
    let done = Command::new(program).args(arguments).output().unwrap();
    assert!(done.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
}

fn damaged_on_the_way(engine: TcpEngine) {
    run("ip", &["link", "set", "lo", "up"]);
    let options = || TcpOptions { segment_bytes: FABRIC_PAGE + 65536, engine, ..TcpOptions::default() };
    let mut fabrics = [1, 2].map(|id| TcpFabric::new(NodeId(id), options()).unwrap());
    let offers = [fabrics[0].offer(), fabrics[1].offer()];
    fabrics[0].connect(Slot(0), NodeId(2), &offers[1], Duration::from_secs(10)).unwrap();
    fabrics[1].connect(Slot(0), NodeId(1), &offers[0], Duration::from_secs(10)).unwrap();
    let begun = Instant::now();
    let step = |fabrics: &mut [TcpFabric; 2]| {
        assert!(begun.elapsed() < Duration::from_secs(60), "nothing more happens");
        fabrics.each_mut().map(|fabric| {
            fabric.poll(Time(begun.elapsed().as_nanos() as u64));
            std::thread::yield_now();
            fabric.poll_event()
        })
    };
    let mut up = 0;
    while up < 2 {
        up += step(&mut fabrics).iter().filter(|event| **event == Some(LinkEvent::Up(Slot(0)))).count();
    }
    let publish = |fabric: &mut TcpFabric, count: u64| {
        let bytes = vec![count as u8; 16384];
        fabric.segment().store_words(RING, &bytes);
        fabric.publish_ring(RING..RING + bytes.len(), PeerSet::EMPTY.with(Slot(0)));
        fabric.segment().store(FABRIC_PAGE, count);
        fabric.publish_words(FABRIC_PAGE..FABRIC_PAGE + 8, PeerSet::EMPTY.with(Slot(0)));
        fabric.flush();
    };
    publish(&mut fabrics[0], 1);
    while fabrics[1].mirror(Slot(0)).unwrap().load(FABRIC_PAGE) != 1 {
        assert_eq!(step(&mut fabrics), [None, None], "nothing is wrong yet");
    }
    // From now on every packet with payload has one byte changed: behind the frame's header, in its bytes.
    run("nft", &["add", "table", "ip", "damage"]);
    run("nft", &["add", "chain", "ip", "damage", "in", "{ type filter hook prerouting priority -300 ; }"]);
    run(
        "nft",
        &["add", "rule", "ip", "damage", "in", "tcp", "flags", "psh", "@th,1024,8", "set", "0xee", "counter"],
    );
    publish(&mut fabrics[0], 2);
    loop {
        let [_, event] = step(&mut fabrics);
        assert_eq!(
            fabrics[1].mirror(Slot(0)).unwrap().load(FABRIC_PAGE),
            1,
            "damaged bytes were vouched for"
        );
        match event {
            None => {}
            Some(LinkEvent::Down(Slot(0), LinkDown::Corrupt(reason))) => {
                println!("found: {reason}");
                break;
            }
            Some(other) => panic!("{other:?} where a frame was damaged"),
        }
    }
}

fn test(name: &str, engine: TcpEngine) {
    if std::env::var_os(INSIDE).is_some() {
        damaged_on_the_way(engine);
    } else {
        in_a_namespace(name);
    }
}

/// S1, and the frames' checksum (DESIGN.md §3).
#[test]
fn damage_past_tcps_checksum_breaks_the_link_io_uring() {
    test("corruption::damage_past_tcps_checksum_breaks_the_link_io_uring", TcpEngine::IoUring);
}

/// As above, over epoll.
#[test]
fn damage_past_tcps_checksum_breaks_the_link_epoll() {
    test("corruption::damage_past_tcps_checksum_breaks_the_link_epoll", TcpEngine::Epoll);
}
