//! The `verbs` fabric: where there is an RDMA device, as in the rig (`hw/rig/test`).

use consort_dataplane::names::{NodeId, Time};
use consort_hw::verbs::{VerbsFabric, VerbsOptions};

use super::{Anew, RealRig, Rig, id, real_now};

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
