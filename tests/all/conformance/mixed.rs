//! The fabric of several kinds: all on one machine, and half of the nodes on another, as far as they know.

use std::marker::PhantomData;
use std::net::{IpAddr, Ipv4Addr};

use consort_dataplane::fabric::Fabric;
use consort_dataplane::names::{NodeId, Time};
use consort_hw::mixed::{MixedFabric, MixedOptions};

use super::{Anew, RealRig, Rig, id, linked, real_now, slot, with_seed};

/// On which machine a node is.
pub(super) trait Places: 'static {
    const NAME: &'static str;

    fn machine(node: NodeId) -> Option<u128>;

    fn is_here() -> bool {
        true
    }

    /// Where links between machines are set up.
    fn address() -> IpAddr {
        Ipv4Addr::LOCALHOST.into()
    }
}

/// All share memory.
pub(super) struct OneHost;

impl Places for OneHost {
    const NAME: &'static str = "auto-one-host";

    fn machine(_: NodeId) -> Option<u128> {
        None
    }
}

/// Nodes with odd ids share memory, and so do those with even ones.
pub(super) struct TwoHosts;

impl Places for TwoHosts {
    const NAME: &'static str = "auto-two-hosts";

    fn machine(node: NodeId) -> Option<u128> {
        Some(u128::from(node.0 % 2) + 1)
    }
}

pub(super) struct MixedRig<P>(PhantomData<P>);

impl<P: Places> Rig for MixedRig<P> {
    type F = MixedFabric;

    fn is_here() -> bool {
        P::is_here()
    }

    fn new(_: u64) -> Self {
        Self(PhantomData)
    }

    fn nodes(&mut self, count: usize, segment_bytes: usize) -> Vec<MixedFabric> {
        (0..count).map(|index| Self::node(id(index), segment_bytes)).collect()
    }

    fn now(&mut self) -> Time {
        real_now()
    }
}

impl<P: Places> Anew for MixedRig<P> {
    fn again(&mut self, index: usize, segment_bytes: usize) -> MixedFabric {
        Self::node(id(index), segment_bytes)
    }
}

impl<P: Places> RealRig for MixedRig<P> {
    const NAME: &'static str = P::NAME;

    fn node(id: NodeId, segment_bytes: usize) -> MixedFabric {
        let (listen, machine) = (P::address(), P::machine(id));
        let options = MixedOptions { segment_bytes, listen, machine, ..Default::default() };
        MixedFabric::new(id, options).unwrap()
    }
}

mod one_host {
    use super::{MixedRig, OneHost};
    crate::conformance::conforms_in_turn!(MixedRig<OneHost>);
    crate::conformance::conforms_anew!(MixedRig<OneHost>);
    crate::conformance::conforms_for_real!(MixedRig<OneHost>);
}

mod two_hosts {
    use super::{MixedRig, TwoHosts};
    crate::conformance::conforms_in_turn!(MixedRig<TwoHosts>);
    crate::conformance::conforms_anew!(MixedRig<TwoHosts>);
    crate::conformance::conforms_for_real!(MixedRig<TwoHosts>);
}

/// DESIGN.md §3: the best that both ends of a link have; shared memory, or `far` between nodes on two hosts.
pub(super) fn each_link_takes_the_best<P: Places>(far: &str, seed: u64) {
    let fabrics = linked(&mut MixedRig::<P>::new(seed), 4, 1 << 16);
    for (at, fabric) in fabrics.iter().enumerate() {
        for peer in (0..4).filter(|peer| *peer != at) {
            let best = if at % 2 == peer % 2 { "shm" } else { far };
            assert_eq!(fabric.carrier(slot(peer)), Some(best), "from {at} to {peer}");
        }
        assert_eq!(fabric.carrier(slot(9)), None);
    }
}

#[test]
fn each_link_takes_the_best_that_both_ends_have() {
    with_seed("each_link_takes_the_best_that_both_ends_have", |seed| {
        each_link_takes_the_best::<TwoHosts>("tcp", seed);
    });
}
