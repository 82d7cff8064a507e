//! The `shm` fabric: nodes of one host share memory.

mod options;

use std::ops::Range;
use std::time::Duration;

use consort_dataplane::fabric::{ConnectError, Doorbell, Fabric, FabricStats, LinkEvent};
use consort_dataplane::memory::{Mirror, Segment};
use consort_dataplane::names::{NodeId, PeerSet, Slot, Time};

pub use options::{ShmError, ShmOptions};

/// A fabric whose mirrors are the peers' own memory.
#[derive(Debug)]
pub struct ShmFabric {
    segment: Segment,
    doorbell: Doorbell,
}

impl ShmFabric {
    /// Makes the segment and listens for peers. `node` is this node's name.
    ///
    /// # Errors
    /// The machine lacks what it takes.
    pub fn new(node: NodeId, options: ShmOptions) -> Result<Self, ShmError> {
        let _ = (node, ShmError::machine::<std::io::Error>, ShmError::memory::<std::io::Error>);
        Ok(Self { segment: Segment::private(options.segment_bytes), doorbell: Doorbell::new(|| {}) })
    }
}

impl Fabric for ShmFabric {
    fn name(&self) -> &'static str {
        "shm"
    }
    fn segment(&self) -> &Segment {
        &self.segment
    }
    fn offer(&self) -> Vec<u8> {
        Vec::new()
    }
    fn connect(&mut self, _: Slot, _: NodeId, _: &[u8], _: Duration) -> Result<(), ConnectError> {
        Err(ConnectError::Machine("links over shared memory are being built".to_owned()))
    }
    fn mirror(&self, _: Slot) -> Option<&Mirror> {
        None
    }
    fn publish_words(&mut self, _: Range<usize>, _: PeerSet) {}
    fn publish_ring(&mut self, _: Range<usize>, _: PeerSet) {}
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
