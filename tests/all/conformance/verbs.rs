//! The `verbs` fabric: where there is an RDMA device, as in the rig (`hw/rig/test`).

use std::net::IpAddr;
use std::time::Instant;

use consort_dataplane::fabric::Fabric;
use consort_dataplane::names::{NodeId, Time};
use consort_hw::verbs::{VerbsFabric, VerbsOptions};

use super::mixed::{MixedRig, Places, TwoHosts, each_link_takes_the_best};
use super::traffic::{SEGMENT, Writer};
use super::{Anew, HANG, RealRig, Rig, id, linked, others, real_now, with_seed};

pub(super) struct VerbsRig;

impl Rig for VerbsRig {
    type F = VerbsFabric;

    fn is_here() -> bool {
        // In the rig there is one, and not to find it is a failure.
        std::env::var_os("CONSORT_RIG").is_some()
            || consort_hw::verbs::names().is_ok_and(|names| !names.is_empty())
    }

    fn new(_: u64) -> Self {
        Self
    }

    fn nodes(&mut self, count: usize, segment_bytes: usize) -> Vec<VerbsFabric> {
        (0..count).map(|index| Self::node(id(index), segment_bytes)).collect()
    }

    fn now(&mut self) -> Time {
        real_now()
    }
}

impl Anew for VerbsRig {
    fn again(&mut self, index: usize, segment_bytes: usize) -> VerbsFabric {
        Self::node(id(index), segment_bytes)
    }
}

impl RealRig for VerbsRig {
    const NAME: &'static str = "verbs";

    fn node(id: NodeId, segment_bytes: usize) -> VerbsFabric {
        VerbsFabric::new(id, VerbsOptions { segment_bytes, ..Default::default() }).unwrap()
    }
}

super::conforms_in_turn!(VerbsRig);
super::conforms_anew!(VerbsRig);
super::conforms_for_real!(VerbsRig);

/// Nodes on two hosts, as far as they know: those of one share memory, and between the two there is RDMA.
pub(super) struct Cards;

impl Places for Cards {
    const NAME: &'static str = "auto-verbs";

    fn machine(node: NodeId) -> Option<u128> {
        TwoHosts::machine(node)
    }

    fn is_here() -> bool {
        VerbsRig::is_here()
    }

    /// The device's.
    fn address() -> IpAddr {
        let outlet = VerbsFabric::new(NodeId(1), VerbsOptions::default()).unwrap().outlet();
        let address = outlet.rsplit_once('(').and_then(|(_, rest)| rest.strip_suffix(')'));
        address.and_then(|address| address.parse().ok()).unwrap_or_else(|| panic!("an address in {outlet}"))
    }
}

mod mixed {
    use super::{Cards, MixedRig};
    crate::conformance::conforms_in_turn!(MixedRig<Cards>);
    crate::conformance::conforms_anew!(MixedRig<Cards>);
    crate::conformance::conforms_for_real!(MixedRig<Cards>);
}

#[test]
fn each_link_takes_the_best_that_both_ends_have() {
    if !VerbsRig::is_here() {
        println!("not run: there is no RDMA device");
        return;
    }
    with_seed("each_link_takes_the_best_that_both_ends_have", |seed| {
        each_link_takes_the_best::<Cards>("verbs", seed);
    });
}

/// A device need not say that nobody takes what it sends to a queue pair that is gone: the software one keeps silent sometimes.
#[test]
fn who_closes_last_does_not_wait_for_who_has_left() {
    if !VerbsRig::is_here() {
        println!("not run: there is no RDMA device");
        return;
    }
    with_seed("who_closes_last_does_not_wait_for_who_has_left", |seed| {
        for round in 0..16 {
            let mut fabrics = linked(&mut VerbsRig::new(seed), 2, SEGMENT);
            let (mut last, mut first) = (fabrics.pop().unwrap(), fabrics.pop().unwrap());
            let mut writer = Writer::new(seed.wrapping_add(round), others(1, 2));
            // Some of it arrives, some meets a queue pair that is going, and some none.
            let closing = std::thread::spawn(move || first.close(HANG));
            while writer.written < 1 + round && writer.has_room(&last) {
                writer.write(&mut last);
                last.flush();
            }
            let begun = Instant::now();
            last.close(HANG);
            assert!(begun.elapsed() < HANG / 2, "round {round} waited in vain");
            closing.join().unwrap();
        }
    });
}
