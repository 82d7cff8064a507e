//! Read points, as an application asks for them, and digests of states: words that senders and engine share.
//!
//! An application asks by counting up a number, which is the point's name; the driver wants it of the newest session as long as it
//! hasn't come, in whatever view that is. So a point comes, or the node stops. Nobody is woken by a point that another question
//! stands for: one event says it of all up to its number.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use consort_dataplane::plan::Guarantee;

use crate::membership::Stopped;

/// A place in the stream of events at which all is told that any member had been told when it was asked for
/// ([`Sender::read_point`](crate::shell::Sender::read_point)). A later one is greater.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ReadPoint(pub(crate) u64);

impl ReadPoint {
    /// Its number: that of a later point is greater.
    pub fn number(self) -> u64 {
        self.0
    }
}

/// There will be no such point.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadPointError {
    /// Delivery doesn't wait until every member has a message, so nobody can know what others have delivered.
    #[error(
        "a group with the guarantee {0} has no read points: what is delivered at one member may not be known at another; \
         take atomic"
    )]
    Guarantee(Guarantee),
    /// This node is no member of the shard.
    #[error("this node is no member of the shard: ask one that is")]
    NotMember,
    /// The node stopped.
    #[error("the node stopped: {0}")]
    Stopped(Stopped),
}

/// What the application asks for: senders and engine share it.
#[derive(Default)]
pub(crate) struct Asked {
    guarantee: OnceLock<Guarantee>,
    /// The last point that was asked for.
    points: AtomicU64,
    digest: AtomicU64,
}

impl Asked {
    pub(crate) fn set_guarantee(&self, guarantee: Guarantee) {
        let _ = self.guarantee.set(guarantee);
    }

    /// Asks for another point. Ring the engine's bell after it.
    pub(crate) fn point(&self) -> Result<ReadPoint, ReadPointError> {
        match self.guarantee.get() {
            Some(guarantee) if !guarantee.stable() => Err(ReadPointError::Guarantee(*guarantee)),
            _ => Ok(ReadPoint(self.points.fetch_add(1, Ordering::Relaxed) + 1)),
        }
    }

    /// Publishes another digest. Ring the engine's bell after it.
    pub(crate) fn publish(&self, digest: u64) {
        self.digest.store(digest, Ordering::Relaxed);
    }

    pub(crate) fn load(&self) -> (u64, u64) {
        (self.points.load(Ordering::Relaxed), self.digest.load(Ordering::Relaxed))
    }
}
