//! The `tcp` fabric: a link per pair of nodes, over any network card.

mod options;

use std::time::Duration;

use consort_dataplane::fabric::{ConnectError, Doorbell, Fabric, FabricStats, LinkEvent};
use consort_dataplane::memory::{Mirror, Segment};
use consort_dataplane::names::{NodeId, PeerSet, Slot, Time};

pub use options::{TcpEngine, TcpError, TcpOptions};

/// A fabric whose links are TCP connections.
#[derive(Debug)]
pub struct TcpFabric {
    segment: Segment,
    doorbell: Doorbell,
}

impl TcpFabric {
    /// Binds the data listener and sets up the engine. `node` is this node's name.
    ///
    /// # Errors
    /// The listener can't be bound, io_uring is demanded and denied, or the machine lacks resources.
    pub fn new(node: NodeId, options: TcpOptions) -> Result<Self, TcpError> {
        let _ = node;
        let TcpOptions { segment_bytes, .. } = options;
        Ok(Self { segment: Segment::private(segment_bytes), doorbell: Doorbell::new(|| {}) })
    }

    /// What drives the sockets: `io_uring` or `epoll`.
    pub fn engine(&self) -> &'static str {
        "epoll"
    }
}

impl Fabric for TcpFabric {
    fn name(&self) -> &'static str {
        "tcp"
    }

    fn segment(&self) -> &Segment {
        &self.segment
    }

    fn offer(&self) -> Vec<u8> {
        Vec::new()
    }

    fn connect(&mut self, _: Slot, _: NodeId, _: &[u8], _: Duration) -> Result<(), ConnectError> {
        Err(ConnectError::Machine("links over tcp are being built".to_owned()))
    }

    fn mirror(&self, _: Slot) -> Option<&Mirror> {
        None
    }

    fn publish_words(&mut self, _: std::ops::Range<usize>, _: PeerSet) {}

    fn publish_ring(&mut self, _: std::ops::Range<usize>, _: PeerSet) {}

    fn flush(&mut self) {}

    fn poll(&mut self, _: Time) -> bool {
        false
    }

    fn wait(&mut self, _: Time, _: Time, _: &mut dyn FnMut() -> bool) {}

    fn doorbell(&self) -> Doorbell {
        self.doorbell.clone()
    }

    fn fence(&mut self, _: Slot) {}

    fn close(&mut self, _: Duration) {}

    fn poll_event(&mut self) -> Option<LinkEvent> {
        None
    }

    fn stats(&self) -> FabricStats {
        FabricStats::default()
    }
}
