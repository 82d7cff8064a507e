//! The fabric's links as membership sees them: to which life of which node, in which slot, under which number.

use std::collections::BTreeMap;

use consort_dataplane::names::{MAX_NODES, NodeId, Slot};

use crate::orders::LinkNumber;
use crate::view::Incarnation;

/// All of them. A node has one link at a time.
#[derive(Default)]
pub(super) struct DataLinks {
    links: BTreeMap<NodeId, DataLink>,
    /// Links made so far.
    made: u64,
    /// The slot that was given out last.
    slot: u8,
}

struct DataLink {
    incarnation: Incarnation,
    slot: Slot,
    number: LinkNumber,
    /// Over which kind of fabric it is up.
    up: Option<&'static str>,
}

impl DataLinks {
    /// A slot and a number for a new link. `None`: there is one to this life of the node already, or no slot is free. A slot is used
    /// again as late as can be.
    pub(super) fn begin(&mut self, node: NodeId, incarnation: Incarnation) -> Option<(Slot, LinkNumber)> {
        if self.links.contains_key(&node) {
            return None;
        }
        let most = MAX_NODES as u8;
        let taken = |slot: Slot| self.links.values().any(|link| link.slot == slot);
        let slot = (1..=most).map(|step| Slot((self.slot + step) % most)).find(|slot| !taken(*slot))?;
        self.slot = slot.0;
        self.made += 1;
        let number = LinkNumber(self.made);
        self.links.insert(node, DataLink { incarnation, slot, number, up: None });
        Some((slot, number))
    }

    /// It is up. `None` if that is old news.
    pub(super) fn on_up(&mut self, number: LinkNumber, carrier: &'static str) -> Option<NodeId> {
        let (node, link) = self.links.iter_mut().find(|(_, link)| link.number == number)?;
        link.up = Some(carrier);
        Some(*node)
    }

    /// Gives up the link to a node; its slot is to be fenced.
    pub(super) fn end(&mut self, node: NodeId) -> Option<Slot> {
        self.links.remove(&node).map(|link| link.slot)
    }

    /// Whose link this is.
    pub(super) fn node_of(&self, number: LinkNumber) -> Option<(NodeId, Incarnation)> {
        let found = self.links.iter().find(|(_, link)| link.number == number);
        found.map(|(node, link)| (*node, link.incarnation))
    }

    /// To which life of a node there is a link, up or not.
    pub(super) fn incarnation(&self, node: NodeId) -> Option<Incarnation> {
        self.links.get(&node).map(|link| link.incarnation)
    }

    pub(super) fn is_up(&self, node: NodeId) -> bool {
        self.carrier(node).is_some()
    }

    /// Over which kind of fabric the link to a node is up.
    pub(super) fn carrier(&self, node: NodeId) -> Option<&'static str> {
        self.links.get(&node).and_then(|link| link.up)
    }

    /// The slots of all links that are up.
    pub(super) fn slots(&self) -> BTreeMap<NodeId, Slot> {
        self.links
            .iter()
            .filter(|(_, link)| link.up.is_some())
            .map(|(node, link)| (*node, link.slot))
            .collect()
    }

    /// Whom there is a link to that is up.
    pub(super) fn up(&self) -> impl Iterator<Item = Incarnation> {
        self.links.values().filter(|link| link.up.is_some()).map(|link| link.incarnation)
    }

    /// All nodes with a link, up or not.
    pub(super) fn nodes(&self) -> Vec<NodeId> {
        self.links.keys().copied().collect()
    }

    /// Forgets all: the fabric is replaced.
    pub(super) fn clear(&mut self) {
        self.links.clear();
    }
}
