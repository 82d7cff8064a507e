//! The `tcp` fabric, on each of its engines.

use std::marker::PhantomData;

use consort_dataplane::names::{NodeId, Time};
use consort_hw::tcp::{TcpEngine, TcpFabric, TcpOptions};

use super::{Anew, RealRig, Rig, id, real_now};

/// Which engine the rig's fabrics run on.
pub(super) trait Runs: 'static {
    const ENGINE: TcpEngine;
    const NAME: &'static str;
}

pub(super) struct OnUring;

impl Runs for OnUring {
    const ENGINE: TcpEngine = TcpEngine::IoUring;
    const NAME: &'static str = "tcp-io_uring";
}

pub(super) struct OnEpoll;

impl Runs for OnEpoll {
    const ENGINE: TcpEngine = TcpEngine::Epoll;
    const NAME: &'static str = "tcp-epoll";
}

pub(super) struct TcpRig<E>(PhantomData<E>);

impl<E: Runs> Rig for TcpRig<E> {
    type F = TcpFabric;

    fn new(_: u64) -> Self {
        Self(PhantomData)
    }

    fn nodes(&mut self, count: usize, segment_bytes: usize) -> Vec<TcpFabric> {
        (0..count).map(|index| Self::node(id(index), segment_bytes)).collect()
    }

    fn now(&mut self) -> Time {
        real_now()
    }
}

impl<E: Runs> Anew for TcpRig<E> {
    fn again(&mut self, index: usize, segment_bytes: usize) -> TcpFabric {
        Self::node(id(index), segment_bytes)
    }
}

impl<E: Runs> RealRig for TcpRig<E> {
    const NAME: &'static str = E::NAME;

    fn node(id: NodeId, segment_bytes: usize) -> TcpFabric {
        TcpFabric::new(id, TcpOptions { segment_bytes, engine: E::ENGINE, ..Default::default() }).unwrap()
    }
}

mod io_uring {
    use super::{OnUring, TcpRig};
    crate::conformance::conforms_in_turn!(TcpRig<OnUring>);
    crate::conformance::conforms_anew!(TcpRig<OnUring>);
    crate::conformance::conforms_for_real!(TcpRig<OnUring>);
}

mod epoll {
    use super::{OnEpoll, TcpRig};
    crate::conformance::conforms_in_turn!(TcpRig<OnEpoll>);
    crate::conformance::conforms_anew!(TcpRig<OnEpoll>);
    crate::conformance::conforms_for_real!(TcpRig<OnEpoll>);
}
