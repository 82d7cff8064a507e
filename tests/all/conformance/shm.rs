//! The `shm` fabric.

use consort_dataplane::fabric::{Fabric, LinkDown};
use consort_dataplane::names::{NodeId, Time};
use consort_hw::shm::{ShmFabric, ShmOptions};

use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use super::processes::{down, under_way};
use super::{Anew, RealRig, Rig, id, real_now, slot, with_seed};

pub(super) struct ShmRig;

impl Rig for ShmRig {
    type F = ShmFabric;

    fn new(_: u64) -> Self {
        Self
    }

    fn nodes(&mut self, count: usize, segment_bytes: usize) -> Vec<ShmFabric> {
        (0..count).map(|index| Self::node(id(index), segment_bytes)).collect()
    }

    fn now(&mut self) -> Time {
        real_now()
    }
}

impl Anew for ShmRig {
    fn again(&mut self, index: usize, segment_bytes: usize) -> ShmFabric {
        Self::node(id(index), segment_bytes)
    }
}

impl RealRig for ShmRig {
    const NAME: &'static str = "shm";

    fn node(id: NodeId, segment_bytes: usize) -> ShmFabric {
        ShmFabric::new(id, ShmOptions { segment_bytes, ..Default::default() }).unwrap()
    }
}

super::conforms_in_turn!(ShmRig);
super::conforms_anew!(ShmRig);
super::conforms_for_real!(ShmRig);

/// F5: the process is dead, and its connection is held open by someone who inherited it: here, by us.
#[test]
fn a_dead_process_whose_socket_lives_on_is_reported() {
    with_seed("a_dead_process_whose_socket_lives_on_is_reported", |seed| {
        let (mut peer, mut fabric, mut reader) = under_way::<ShmRig>(seed, 100);
        let process = pidfd_open(Pid::from_child(&peer.child), PidfdFlags::empty()).unwrap();
        let mut held = Vec::new();
        for entry in std::fs::read_dir(format!("/proc/{}/fd", peer.child.id())).unwrap() {
            let entry = entry.unwrap().path();
            if std::fs::read_link(&entry).is_ok_and(|to| to.to_string_lossy().starts_with("socket:")) {
                let number = entry.file_name().unwrap().to_str().unwrap().parse().unwrap();
                match pidfd_getfd(&process, number, PidfdGetfdFlags::empty()) {
                    Ok(socket) => held.push(socket),
                    Err(rustix::io::Errno::PERM) => return, // a machine that doesn't let us
                    Err(error) => panic!("{error}"),
                }
            }
        }
        assert!(!held.is_empty(), "the child has a connection");
        peer.child.kill().unwrap();
        let why = down::<ShmRig>(&mut fabric, &mut reader);
        assert!(matches!(&why, LinkDown::Dead(why) if why.contains("has ended")), "{why:?}");
    });
}

/// V10: whoever has ended reads nothing, so nothing is to be done. Fresh memory would be zero.
#[test]
fn nothing_is_renewed_for_the_dead() {
    with_seed("nothing_is_renewed_for_the_dead", |seed| {
        let (mut peer, mut fabric, mut reader) = under_way::<ShmRig>(seed, 100);
        fabric.segment().store(8192, 7);
        peer.child.kill().unwrap();
        assert!(matches!(down::<ShmRig>(&mut fabric, &mut reader), LinkDown::Dead(_) | LinkDown::Broken(_)));
        peer.child.wait().unwrap();
        fabric.renew(8192..16384).unwrap();
        assert_eq!(fabric.segment().load(8192), 7, "it was down");
        fabric.fence(slot(0));
        fabric.renew(8192..16384).unwrap();
        assert_eq!(fabric.segment().load(8192), 7, "it was fenced");
    });
}
