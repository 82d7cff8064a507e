//! What goes wrong with RDMA on real machines, made to go wrong: each is told in words that say what to do, and nothing hangs. Only in the
//! rig (`hw/rig/test`), which has hosts to spoil: each case is this test binary, started again on a host or with rights of its own.

use std::fmt::Display;
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use consort::{FabricChoice, NodeBuilder};
use consort_dataplane::fabric::{ConnectError, Fabric, LinkDown, LinkEvent};
use consort_dataplane::names::{NodeId, PeerSet};
use consort_hw::verbs::{VerbsError, VerbsFabric, VerbsOptions};

use super::traffic::{Reader, SEGMENT, Writer};
use super::verbs::VerbsRig;
use super::{HANG, LINK_WITHIN, Rig, id, linked, real_now, slot};

/// Hosts of the rig that cases spoil; the others are for the suite.
const REMOVED: u32 = 2;
const ADDRESS: u32 = 3;
const BARE: u32 = 4;

/// The device may ask eight times, 134 ms apart and up to four times as long, before a link is over; far from a hang.
const GIVES_UP_WITHIN: Duration = Duration::from_secs(15);

const CASE: &str = "CONSORT_VERBS_FAULT";

fn is_rig() -> bool {
    let here = std::env::var_os("CONSORT_RIG").is_some();
    if !here {
        println!("not run: only the rig has hosts to spoil");
    }
    here
}

/// Runs a case below `command`, to its end or until it hangs.
fn run(case: &str, command: &[&str]) {
    let exe = std::env::current_exe().unwrap();
    let mut child = Command::new(command[0])
        .args(&command[1..])
        .arg(exe)
        .args(["--exact", "conformance::verbs_faults::case", "--ignored", "--nocapture", "--test-threads=1"])
        .env(CASE, case)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if begun.elapsed() > HANG {
            let _ = child.kill();
            let _ = child.wait();
            panic!("{case} hangs");
        }
        std::thread::yield_now();
    };
    let mut told = String::new();
    child.stdout.take().unwrap().read_to_string(&mut told).unwrap();
    assert!(status.success(), "{case}: {status}\n{told}");
    assert!(told.contains("1 passed"), "{case} did not run:\n{told}");
}

fn on(host: u32, case: &str) {
    run(case, &["on", &host.to_string()]);
}

/// Runs a command that belongs to the rig.
fn rig(command: &str) {
    let status = Command::new("sh").args(["-c", command]).status().unwrap();
    assert!(status.success(), "{command}: {status}");
}

fn says(error: impl Display, words: &[&str]) {
    let told = error.to_string();
    println!("{told}");
    for word in words {
        assert!(told.contains(word), "it should say {word:?}: {told}");
    }
}

/// What a whole node says at its start.
fn a_node_says(words: &[&str]) {
    let listen = "127.0.0.1:0".parse().unwrap();
    match NodeBuilder::new(1).listen(listen).fabric(FabricChoice::Verbs).start() {
        Ok(_) => panic!("a node started where its fabric can't"),
        Err(error) => says(error, words),
    }
}

fn new(options: VerbsOptions) -> Result<VerbsFabric, VerbsError> {
    VerbsFabric::new(NodeId(1), VerbsOptions { segment_bytes: SEGMENT, ..options })
}

#[test]
fn no_device() {
    if is_rig() {
        rig(&format!("on {BARE} rdma link delete rxe{BARE}"));
        on(BARE, "no_device");
    }
}

#[test]
fn the_wrong_gid() {
    if is_rig() {
        on(ADDRESS, "gid_that_is_not_there");
        on(ADDRESS, "gid_that_goes_before_the_link");
        on(ADDRESS, "gid_that_goes_under_load");
    }
}

#[test]
fn too_little_locked_memory() {
    if is_rig() {
        // Root may pass over the limit: that right is given up.
        let limited =
            |kilobytes: u32| format!("ulimit -l {kilobytes}; exec setpriv --bounding-set=-ipc_lock \"$@\"");
        run("no_memory_for_the_segment", &["bash", "-c", &limited(8), "-"]);
        run("no_memory_for_a_mirror", &["bash", "-c", &limited(40), "-"]);
    }
}

#[test]
fn a_device_that_is_removed_under_load() {
    if is_rig() {
        on(REMOVED, "removed");
    }
}

/// Not a test: the process that the tests above start.
#[test]
#[ignore = "a process that other tests start"]
fn case() {
    let Ok(case) = std::env::var(CASE) else { return };
    match case.as_str() {
        "no_device" => no_device_here(),
        "gid_that_is_not_there" => gid_that_is_not_there(),
        "gid_that_goes_before_the_link" => gid_that_goes_before_the_link(),
        "gid_that_goes_under_load" => gid_that_goes_under_load(),
        "no_memory_for_the_segment" => no_memory_for_the_segment(),
        "no_memory_for_a_mirror" => no_memory_for_a_mirror(),
        "removed" => removed(),
        other => panic!("{CASE}={other}: no such case"),
    }
}

fn no_device_here() {
    let error = new(VerbsOptions::default()).unwrap_err();
    assert!(matches!(error, VerbsError::NoDevice { .. }), "{error:?}");
    says(error, &["no RDMA device", "there are: none", "ibv_devinfo"]);
    let error =
        new(VerbsOptions { device: Some("mlx5_0".to_owned()), ..VerbsOptions::default() }).unwrap_err();
    says(error, &["no RDMA device mlx5_0"]);
    a_node_says(&["no RDMA device"]);
}

fn gid_that_is_not_there() {
    let error = new(VerbsOptions { gid_index: Some(200), ..VerbsOptions::default() }).unwrap_err();
    assert!(matches!(error, VerbsError::Gid { .. }), "{error:?}");
    says(error, &["ip addr add", "gid_index", "GID 200: asked for, and empty", "10.0.0.3"]);
}

/// An address for a while: its GID's index, once it is there.
fn with_address(address: &str) -> u8 {
    rig(&format!("ip addr replace {address}/24 dev eth0"));
    let begun = Instant::now();
    let own = address.parse().unwrap();
    loop {
        let machine = consort::machine::Machine::read("/".as_ref(), Some(own));
        let gids = machine.rdma.devices.iter().flat_map(|device| &device.ports).flat_map(|port| &port.gids);
        if let Some(gid) = gids.into_iter().find(|gid| gid.address == own) {
            assert!(gid.taken, "a node's own address is taken: {gid:?}");
            return u8::try_from(gid.index).unwrap();
        }
        assert!(begun.elapsed() < HANG, "in vain: a GID for {address}");
        std::thread::yield_now();
    }
}

fn without_address(address: &str) {
    rig(&format!("ip addr del {address}/24 dev eth0"));
}

/// Polls both until a link is over, which it must be soon. Says why it is.
fn over(fabrics: &mut [VerbsFabric], within: Duration, mut work: impl FnMut(&mut [VerbsFabric])) -> LinkDown {
    let begun = Instant::now();
    loop {
        for fabric in fabrics.iter_mut() {
            fabric.poll(real_now());
            while let Some(event) = fabric.poll_event() {
                if let LinkEvent::Down(_, why) = event {
                    return why;
                }
            }
        }
        work(fabrics);
        assert!(begun.elapsed() < within, "in vain: the end of a link");
        std::thread::yield_now();
    }
}

fn gid_that_goes_before_the_link() {
    let gid_index = Some(with_address("10.0.9.3"));
    let mut fabrics: Vec<_> = (0..2)
        .map(|at| {
            VerbsFabric::new(
                id(at),
                VerbsOptions { segment_bytes: SEGMENT, gid_index, ..VerbsOptions::default() },
            )
        })
        .collect::<Result<_, _>>()
        .unwrap();
    let offers: Vec<_> = fabrics.iter().map(Fabric::offer).collect();
    without_address("10.0.9.3");
    let [a, b] = &mut fabrics[..] else { unreachable!("two were made") };
    let connected = a.connect(slot(1), id(1), &offers[1], LINK_WITHIN);
    let other = b.connect(slot(0), id(0), &offers[0], LINK_WITHIN);
    if let Err(error) = connected.and(other) {
        says(error, &["GID"]);
        return;
    }
    let why = over(&mut fabrics, GIVES_UP_WITHIN, |_| {});
    says(why, &["GID 10.0.9.3", "GID index", "ibv_devinfo"]);
}

/// Writes and reads, as far as the link lets.
struct Load {
    writer: Writer,
    reader: Reader,
}

impl Load {
    fn new(seed: u64) -> Self {
        Self { writer: Writer::new(seed, PeerSet::EMPTY.with(slot(1))), reader: Reader::new(seed) }
    }

    fn turn(&mut self, fabrics: &mut [VerbsFabric]) {
        if self.writer.has_room(&fabrics[0]) {
            self.writer.write(&mut fabrics[0]);
            fabrics[0].flush();
        }
        if let Some(mirror) = fabrics[1].mirror(slot(0)).cloned()
            && self.reader.read(&mirror)
        {
            self.reader.acknowledge(&mut fabrics[1], PeerSet::EMPTY.with(slot(0)));
            fabrics[1].flush();
        }
    }

    /// Until so much has been read.
    fn until(&mut self, enough: u64, fabrics: &mut [VerbsFabric]) {
        let begun = Instant::now();
        while self.reader.read < enough {
            for fabric in fabrics.iter_mut() {
                fabric.poll(real_now());
            }
            self.turn(fabrics);
            assert!(begun.elapsed() < HANG, "in vain: {enough} records");
        }
    }
}

fn gid_that_goes_under_load() {
    with_address("10.0.9.3");
    let listen = "10.0.9.3".parse().unwrap();
    let mut fabrics: Vec<_> = (0..2)
        .map(|at| {
            VerbsFabric::new(
                id(at),
                VerbsOptions { segment_bytes: SEGMENT, listen, ..VerbsOptions::default() },
            )
        })
        .collect::<Result<_, _>>()
        .unwrap();
    let offers: Vec<_> = fabrics.iter().map(Fabric::offer).collect();
    fabrics[0].connect(slot(1), id(1), &offers[1], LINK_WITHIN).unwrap();
    fabrics[1].connect(slot(0), id(0), &offers[0], LINK_WITHIN).unwrap();
    let mut load = Load::new(7);
    load.until(100, &mut fabrics);
    without_address("10.0.9.3");
    let read = load.reader.read;
    let why = over(&mut fabrics, GIVES_UP_WITHIN, |fabrics| load.turn(fabrics));
    println!("{} more records came", load.reader.read - read);
    assert!(matches!(why, LinkDown::Broken(_)), "{why:?}");
    // What the device reports first depends on it.
    says(why, &["GID"]);
}

fn no_memory_for_the_segment() {
    let error = new(VerbsOptions::default()).unwrap_err();
    assert!(matches!(error, VerbsError::Memory { .. }), "{error:?}");
    says(error, &["limit of locked memory is 8192 bytes", "ulimit -l unlimited", "LimitMEMLOCK=infinity"]);
    a_node_says(&["ulimit -l unlimited"]);
}

fn no_memory_for_a_mirror() {
    let mut fabric = new(VerbsOptions::default()).unwrap();
    let peer = VerbsRig::new(0).nodes(2, SEGMENT).remove(1);
    let error = fabric.connect(slot(1), id(1), &peer.offer(), LINK_WITHIN).unwrap_err();
    assert!(matches!(error, ConnectError::Machine(_)), "{error:?}");
    says(error, &["limit of locked memory of 40960 bytes", "ulimit -l unlimited"]);
}

fn removed() {
    let mut fabrics = linked(&mut VerbsRig::new(0), 2, SEGMENT);
    let mut load = Load::new(11);
    load.until(1_000, &mut fabrics);
    rig(&format!("rdma link delete rxe{REMOVED}"));
    for at in 0..2 {
        let why = over(&mut fabrics[at..=at], GIVES_UP_WITHIN, |_| {});
        assert!(matches!(why, LinkDown::Own(_)), "{why:?}");
        says(why, &["removed"]);
    }
    // A fabric without its device does no harm, and comes to an end.
    for fabric in &mut fabrics {
        fabric.fence(slot(0));
        fabric.fence(slot(1));
        fabric.close(HANG);
    }
    drop(fabrics);
    says(new(VerbsOptions::default()).unwrap_err(), &["no RDMA device"]);
}
