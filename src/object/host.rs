//! [`Host`]: what a replica lives on. The one place here that knows of a [`Node`].

use std::time::Duration;

use crate::{
    Departure, Event, Node, ReadPoint, ReadPointError, Reservation, SendError, Sender, Status, Stopped,
};

pub(super) struct Host {
    node: Node,
    sender: Sender,
}

impl Host {
    pub(super) fn new(node: Node) -> Self {
        Self { sender: node.sender(), node }
    }

    /// The next event. Blocks until there is one; fails when no more will come.
    pub(super) fn recv(&self) -> Result<Event, Stopped> {
        self.node.recv()
    }

    /// Room for a message. Blocks while the ring is full or the group isn't there.
    pub(super) fn reserve(&self, len: usize) -> Result<Reservation<'_>, SendError> {
        self.sender.reserve(len)
    }

    pub(super) fn read_point(&self) -> Result<ReadPoint, ReadPointError> {
        self.sender.read_point()
    }

    pub(super) fn publish_digest(&self, digest: u64) {
        self.sender.publish_digest(digest);
    }

    /// Begins to leave; the events go on to the end.
    pub(super) fn leave(&self, within: Duration) -> Departure {
        self.node.leave(within)
    }

    /// Stops at once.
    pub(super) fn stop(&self) {
        self.node.stop();
    }

    pub(super) fn status(&self) -> Status {
        self.node.status()
    }
}
