//! The simulated fabric: it must keep the same contract, or what holds over it says nothing of the others.

use std::time::Duration;

use consort_dataplane::names::{NodeId, Time};
use consort_dataplane::sim::{SimFabric, SimNetwork, SimOptions};

use super::{Anew, Rig, id};

pub(super) struct SimRig {
    seed: u64,
    now: Time,
    network: Option<SimNetwork>,
}

impl Rig for SimRig {
    type F = SimFabric;

    fn new(seed: u64) -> Self {
        Self { seed, now: Time(0), network: None }
    }

    fn nodes(&mut self, count: usize, segment_bytes: usize) -> Vec<SimFabric> {
        let options = SimOptions {
            delay: (Duration::ZERO, Duration::from_micros(10)),
            tearing: 30,
            segment_bytes,
            relays: true,
            publishing_costs: true,
        };
        let ids: Vec<NodeId> = (0..count).map(id).collect();
        let (network, fabrics) = SimNetwork::new(self.seed, &ids, options);
        self.network = Some(network);
        fabrics
    }

    fn now(&mut self) -> Time {
        self.now = self.now.plus(Duration::from_micros(1));
        self.now
    }

    fn kill(&mut self, index: usize, fabric: SimFabric) {
        drop(fabric);
        if let Some(network) = &self.network {
            network.crash(index);
        }
    }
}

impl Anew for SimRig {
    fn again(&mut self, index: usize, _: usize) -> SimFabric {
        self.network.as_ref().expect("a node that comes again was there before").add(id(index))
    }
}

super::conforms_in_turn!(SimRig);
super::conforms_anew!(SimRig);
