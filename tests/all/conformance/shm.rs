//! The `shm` fabric.

use consort_dataplane::names::{NodeId, Time};
use consort_hw::shm::{ShmFabric, ShmOptions};

use super::{RealRig, Rig, id, real_now};

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

impl RealRig for ShmRig {
    const NAME: &'static str = "shm";

    fn node(id: NodeId, segment_bytes: usize) -> ShmFabric {
        ShmFabric::new(id, ShmOptions { segment_bytes, ..Default::default() }).unwrap()
    }
}

super::conforms_in_turn!(ShmRig);
super::conforms_for_real!(ShmRig);
