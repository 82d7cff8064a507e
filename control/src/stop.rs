//! Why a node waits, and why it stopped: values that say what to do.

use std::fmt;
use std::time::Duration;

use consort_dataplane::names::{NodeId, Time, ViewId};

use crate::view::{Incarnation, ShardId};

/// A member that the group can't start without, and why it isn't there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Absent {
    /// Who.
    pub node: NodeId,
    /// What is known of it, such as `not reached yet` or `refused: …`.
    pub why: String,
}

/// A member that was taken for gone, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lost {
    /// Who.
    pub node: NodeId,
    /// Which life of it.
    pub incarnation: Incarnation,
    /// When this node took it for gone, in nanoseconds of `CLOCK_MONOTONIC`.
    pub at: Time,
    /// By what proof (F5), or for what silence (V9).
    pub why: String,
}

impl fmt::Display for Absent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {} ({})", self.node, self.why)
    }
}

/// The node stopped, for good: it delivers nothing more. Why, and what to do.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Stopped {
    /// The application closed it.
    #[error("the node was closed")]
    Closed,
    /// The others went on without this node: they could not reach it, or it broke the protocol, as they saw it.
    #[error(
        "node {by} says that the group went on to view {view} without this node: it was taken for gone. Start it again \
         to join the group, or set `rejoin`"
    )]
    Evicted {
        /// The view that doesn't have it.
        view: ViewId,
        /// Who said so.
        by: NodeId,
    },
    /// This node can't reach a majority of its view, so it must not go on (V1).
    #[error(
        "no majority of view {view} within {within:?}: this node can't reach {}. A majority goes on by itself; start this node again when the network is whole, or set `rejoin`",
        nodes(.unreached)
    )]
    NoQuorum {
        /// The last view that it had.
        view: ViewId,
        /// How long it tried.
        within: Duration,
        /// Whom it could not reach.
        unreached: Vec<NodeId>,
    },
    /// Of a durable shard nobody is left in the view who has all of the log: those were lost while the others fetched it (P3).
    #[error(
        "nobody in view {view} has all of the log of shard {} within {within:?}: the members that had it were lost while the others fetched it. \
         Start these again; the group begins again with them, this node too if it is started again or has `rejoin`",
        .shards.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    )]
    NoLog {
        /// The last view that it had.
        view: ViewId,
        /// How long it waited.
        within: Duration,
        /// Which shards.
        shards: Vec<ShardId>,
    },
    /// This node was admitted, and the member whose state it was learning was lost before it had told everything. It joins again.
    #[error(
        "the member whose state this node was given was lost before all of it was here; this node joins again"
    )]
    Unlearned,
    /// A member did what no sound member does. It was cut off (F4).
    #[error(
        "node {node} breaks the protocol and was cut off: {reason}. See that all nodes run the same release; if \
         they do, its memory or its program is damaged"
    )]
    PeerMisbehaved {
        /// Who.
        node: NodeId,
        /// What it did.
        reason: String,
    },
    /// The group did not start in the time that the configuration gives it.
    #[error("the group did not start within {within:?}; waiting for {}", list(.waiting))]
    NotStarted {
        /// The time that was given.
        within: Duration,
        /// Who was missing.
        waiting: Vec<Absent>,
    },
    /// What this node reaches the others by is gone. They are there, for all that is known, and go on without it.
    #[error(
        "this node's own end of its links is gone: {0}. The others go on; give this node what it lacks and start it again, or set `rejoin`"
    )]
    NoFabric(String),
    /// This node itself can't go on.
    #[error("this node can't go on: {0}")]
    Machine(String),
}

fn nodes(nodes: &[NodeId]) -> String {
    nodes.iter().map(|node| format!("node {node}")).collect::<Vec<_>>().join(", ")
}

/// Absent members in one line.
pub(crate) fn list(absent: &[Absent]) -> String {
    absent.iter().map(Absent::to_string).collect::<Vec<_>>().join(", ")
}
