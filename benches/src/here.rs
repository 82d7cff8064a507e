//! The fabric that costs nothing: all nodes in one process, each mirror the peer's segment itself. What remains when a group
//! runs over it is the engine.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use consort_dataplane::fabric::{ConnectError, Doorbell, Fabric, FabricStats, LinkEvent};
use consort_dataplane::memory::{Mirror, Segment};
use consort_dataplane::names::{NodeId, PeerSet, Slot, Time};

/// One node's end. Its slots are the nodes' indexes.
pub struct Here {
    segment: Segment,
    mirrors: Vec<Mirror>,
    linked: PeerSet,
    events: VecDeque<LinkEvent>,
    doorbell: Doorbell,
}

impl Here {
    /// `count` nodes that see each other's memory.
    pub fn nodes(count: usize, segment_bytes: usize) -> Vec<Self> {
        let segments: Vec<_> = (0..count).map(|_| Segment::private(segment_bytes)).collect();
        let node = |segment: &Segment| Self {
            segment: segment.clone(),
            mirrors: segments.iter().map(Segment::mirror).collect(),
            linked: PeerSet::EMPTY,
            events: VecDeque::new(),
            doorbell: Doorbell::new(|| ()),
        };
        segments.iter().map(node).collect()
    }
}

impl Fabric for Here {
    fn name(&self) -> &'static str {
        "here"
    }

    fn segment(&self) -> &Segment {
        &self.segment
    }

    fn offer(&self) -> Vec<u8> {
        Vec::new()
    }

    fn connect(&mut self, slot: Slot, _: NodeId, _: &[u8], _: Duration) -> Result<(), ConnectError> {
        self.linked = self.linked.with(slot);
        self.events.push_back(LinkEvent::Up(slot));
        Ok(())
    }

    fn mirror(&self, slot: Slot) -> Option<&Mirror> {
        self.mirrors.get(usize::from(slot.0)).filter(|_| self.linked.contains(slot))
    }

    fn publishing_costs(&self) -> bool {
        false
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

    fn fence(&mut self, slot: Slot) {
        self.linked = self.linked.without(slot);
    }

    fn close(&mut self, _: Duration) {
        self.linked = PeerSet::EMPTY;
    }

    fn poll_event(&mut self) -> Option<LinkEvent> {
        self.events.pop_front()
    }

    fn stats(&self) -> FabricStats {
        FabricStats::default()
    }
}
