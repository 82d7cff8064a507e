//! Why a node waits, and why it stopped: values that say what to do.

use std::fmt;
use std::time::Duration;

use consort_dataplane::names::NodeId;

/// A member that the group can't start without, and why it isn't there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Absent {
    /// Who.
    pub node: NodeId,
    /// What is known of it, such as `not reached yet` or `refused: …`.
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
    /// A member is gone before it had ended.
    #[error(
        "node {node} is lost: {reason}. This group's members are fixed, so it can't go on without node {node}: \
         start all its nodes again, and look at node {node}'s log for why it went"
    )]
    PeerLost {
        /// Who.
        node: NodeId,
        /// How that is known.
        reason: String,
    },
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
    /// This node itself can't go on.
    #[error("this node can't go on: {0}")]
    Machine(String),
}

/// Absent members in one line.
pub(crate) fn list(absent: &[Absent]) -> String {
    absent.iter().map(Absent::to_string).collect::<Vec<_>>().join(", ")
}
