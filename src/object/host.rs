//! [`Host`]: what a replica lives on: a node of its own, or a shard of a node that others use too. What it
//! asks of a [`Node`] it asks here.

use std::sync::Arc;
use std::time::Duration;

use crate::{
    Departure, Event, Group, Node, ReadPoint, ReadPointError, Reservation, SendError, Sender, ShardId,
    Status, Stopped,
};

pub(super) struct Host {
    node: Arc<Node>,
    group: Group,
    sender: Sender,
    /// The node is there for this replica alone.
    is_own: bool,
}

impl Host {
    /// On the main group of a node of its own.
    pub(super) fn own(node: Node) -> Self {
        let group = node.main().clone();
        Self { sender: group.sender(), group, node: Arc::new(node), is_own: true }
    }

    /// On a shard of a node that others use too.
    pub(super) fn shared(node: Arc<Node>, group: Group) -> Self {
        Self { sender: group.sender(), group, node, is_own: false }
    }

    /// Bytes of every member's ring.
    pub(super) fn ring_bytes(&self) -> usize {
        self.group.ring_bytes()
    }

    /// Whether what was applied is told again after every loss.
    pub(super) fn is_durable(&self) -> bool {
        self.group.guarantee().durable()
    }

    /// Whether the node is there for this replica alone.
    pub(super) fn is_own(&self) -> bool {
        self.is_own
    }

    /// The shard.
    pub(super) fn id(&self) -> ShardId {
        self.group.id()
    }

    /// The next event. Blocks until there is one; fails when no more will come.
    pub(super) fn recv(&self) -> Result<Event, Stopped> {
        self.group.recv()
    }

    /// Room for a message. Blocks while the ring is full or the group isn't there.
    pub(super) fn reserve(&self, len: usize) -> Result<Reservation<'_>, SendError> {
        self.sender.reserve(len)
    }

    /// Whence other threads send in the same name.
    pub(super) fn sender(&self) -> Sender {
        self.sender.clone()
    }

    pub(super) fn read_point(&self) -> Result<ReadPoint, ReadPointError> {
        self.sender.read_point()
    }

    pub(super) fn publish_digest(&self, digest: u64) {
        self.sender.publish_digest(digest);
    }

    /// Begins to leave, if the node is its own; the events go on to the end.
    pub(super) fn leave(&self, within: Duration) -> Option<Departure> {
        if self.is_own {
            return Some(self.node.leave(within));
        }
        self.group.release();
        None
    }

    /// Ends at once: the node, if it is its own.
    pub(super) fn stop(&self) {
        if self.is_own { self.node.stop() } else { self.group.release() }
    }

    /// Stops the node, whoever else uses it: what it says is not to be believed.
    pub(super) fn halt(&self) {
        self.node.stop();
    }

    pub(super) fn status(&self) -> Status {
        self.node.status()
    }
}
