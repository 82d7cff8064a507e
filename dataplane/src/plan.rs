//! What a session is started from: who its members are, where each keeps the session in its segment, and what a
//! delivery promises. A plan is a value: control makes it from a view, the same at every member but for `me` and the
//! slots.

use std::fmt;
use std::str::FromStr;

use crate::fabric::FABRIC_PAGE;
use crate::layout::{self, Layout};
use crate::names::{MAX_NODES, NodeId, Rank, Slot, ViewId};

/// When a message is delivered (D8).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Guarantee {
    /// As received: in each sender's order, with no order between senders.
    Fifo,
    /// Ordered: every member delivers the same sequence, but what a member delivered just before it crashed may be
    /// lost to the others.
    Agreed,
    /// Ordered and stable, hence uniform: what any member delivers, every survivor delivers. The default.
    #[default]
    Atomic,
    /// As [`Atomic`](Self::Atomic), and written down: delivered once every member of the shard has flushed it to its log (P2).
    Durable,
    /// Written down as with [`Durable`](Self::Durable), and delivered as with [`Atomic`](Self::Atomic), without waiting for the logs: that every
    /// member has flushed a message is said later, to its sender alone, by its outcome (P2).
    Logged,
}

impl Guarantee {
    /// Whether delivery waits until the order is known (D6).
    pub const fn ordered(self) -> bool {
        !matches!(self, Self::Fifo)
    }

    /// Whether delivery waits until every member has received (D7).
    pub const fn stable(self) -> bool {
        matches!(self, Self::Atomic | Self::Durable | Self::Logged)
    }

    /// Whether messages are written down, and their outcomes wait until every member has flushed them (P1, P2).
    pub const fn durable(self) -> bool {
        matches!(self, Self::Durable | Self::Logged)
    }

    /// Whether they are delivered before that.
    pub const fn ahead_of_logs(self) -> bool {
        matches!(self, Self::Logged)
    }
}

impl fmt::Display for Guarantee {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fifo => "fifo",
            Self::Agreed => "agreed",
            Self::Atomic => "atomic",
            Self::Durable => "durable",
            Self::Logged => "logged",
        })
    }
}

impl FromStr for Guarantee {
    type Err = PlanError;

    fn from_str(name: &str) -> Result<Self, PlanError> {
        match name {
            "fifo" => Ok(Self::Fifo),
            "agreed" => Ok(Self::Agreed),
            "atomic" => Ok(Self::Atomic),
            "durable" => Ok(Self::Durable),
            "logged" => Ok(Self::Logged),
            _ => Err(PlanError::Guarantee(name.to_owned())),
        }
    }
}

/// Which way the bytes of a ring go (D14). Rows go from each to all either way.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Topology {
    /// From their origin to every member: one hop, and the origin's link carries each byte once for every member. The default.
    #[default]
    Direct,
    /// From member to member, in rank order from their origin on: every link carries each byte about once, and the last
    /// member has it after as many hops as there are others. The fabric must be one that [relays](crate::fabric::Fabric::relay).
    Chain,
}

impl fmt::Display for Topology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Direct => "direct",
            Self::Chain => "chain",
        })
    }
}

impl FromStr for Topology {
    type Err = PlanError;

    fn from_str(name: &str) -> Result<Self, PlanError> {
        match name {
            "direct" => Ok(Self::Direct),
            "chain" => Ok(Self::Chain),
            _ => Err(PlanError::Topology(name.to_owned())),
        }
    }
}

/// A member of a session, as one of them sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Member {
    /// Who it is.
    pub node: NodeId,
    /// The link to it; `None` for the node itself, and for a member whose link is gone before the session begins.
    pub slot: Option<Slot>,
    /// Where the session's region starts in that member's segment, in bytes.
    pub base: usize,
}

/// What a session is started from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SessionPlan {
    /// The view that the session belongs to.
    pub view: ViewId,
    /// Its members in rank order.
    pub members: Vec<Member>,
    /// This node's rank among them.
    pub me: Rank,
    /// Size of every member's ring in bytes: a power of two.
    pub ring_bytes: usize,
    /// What delivery promises.
    pub guarantee: Guarantee,
    /// Which way the rings' bytes go.
    pub topology: Topology,
}

impl SessionPlan {
    /// Sessions for which a segment has room: one that goes, whose loans may still be out, and one that comes (V10).
    pub const REGIONS: usize = 2;

    /// Bytes that a session takes in a segment.
    pub const fn region_bytes(ring_bytes: usize) -> usize {
        layout::ROW_BYTES + ring_bytes
    }

    /// Where the session of a view starts in every segment: views take turns in the regions, so that the next view's
    /// memory is there before it is needed (V10).
    pub const fn base(view: ViewId, ring_bytes: usize) -> usize {
        FABRIC_PAGE + (view.0 % Self::REGIONS as u64) as usize * Self::region_bytes(ring_bytes)
    }

    /// Bytes of a segment with all its regions.
    pub const fn segment_bytes(ring_bytes: usize) -> usize {
        FABRIC_PAGE + Self::REGIONS * Self::region_bytes(ring_bytes)
    }

    /// Whether its members may send to some of them alone (D12). Where delivery doesn't wait until all have a message, and where all write it down,
    /// some may have to be given what others have, who must have it then; and along a chain all have every message on its way.
    pub const fn addresses(&self) -> bool {
        matches!((self.guarantee, self.topology), (Guarantee::Atomic, Topology::Direct))
    }

    /// Checks what the protocol relies on.
    ///
    /// # Errors
    /// Names the first rule that the plan breaks, and what to change.
    pub fn check(&self) -> Result<(), PlanError> {
        let n = self.members.len();
        if n == 0 || n > MAX_NODES {
            return Err(PlanError::Members(n));
        }
        if self.view == ViewId(0) {
            return Err(PlanError::View);
        }
        if usize::from(self.me.0) >= n {
            return Err(PlanError::Rank(self.me, n));
        }
        let bytes = self.ring_bytes;
        Layout::check_ring(bytes, n).map_err(|most| PlanError::Ring {
            bytes,
            members: n,
            least: layout::LEAST_RING,
            most,
        })?;
        for (rank, member) in self.members.iter().enumerate() {
            if member.slot.is_some() && rank == usize::from(self.me.0) {
                return Err(PlanError::Slots);
            }
            if !member.base.is_multiple_of(crate::memory::LINE) {
                return Err(PlanError::Base(member.base));
            }
            if self.members[..rank].iter().any(|m| m.node == member.node) {
                return Err(PlanError::Twice(member.node));
            }
        }
        Ok(())
    }
}

/// A session can't be started like this.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// Too few or too many.
    #[error("a session of {0} members: it takes 1 to 64")]
    Members(usize),
    /// The tag of no session.
    #[error("a session of view 0: views are counted from 1")]
    View,
    /// A rank that nobody has.
    #[error("rank {0} in a session of {1} members")]
    Rank(Rank, usize),
    /// A link to itself.
    #[error("this node itself has no link's slot")]
    Slots,
    /// A region off its boundary.
    #[error("a session's region at byte {0}: it must start at a multiple of 64")]
    Base(usize),
    /// A node named twice.
    #[error("node {0} is named twice; give every node an id of its own")]
    Twice(NodeId),
    /// A ring of an impossible size.
    #[error("a ring of {bytes} bytes for {members} members; take a power of two from {least} to {most}")]
    Ring {
        /// What was asked for.
        bytes: usize,
        /// Members of the session.
        members: usize,
        /// The smallest ring that works.
        least: usize,
        /// The largest ring for so many members.
        most: usize,
    },
    /// The segment or a mirror ends before the session's region does.
    #[error(
        "the segment of node {node} has {bytes} bytes, the session needs {needed}; make the segments larger"
    )]
    Segment {
        /// Whose.
        node: NodeId,
        /// Bytes that it has.
        bytes: usize,
        /// Bytes that it must have.
        needed: usize,
    },
    /// A member's link isn't up.
    #[error("there is no link to node {0} yet; start the session when all links are up")]
    Unlinked(NodeId),
    /// No such guarantee.
    #[error("no guarantee is called {0:?}; take fifo, agreed, atomic, durable or logged")]
    Guarantee(String),
    /// No such topology.
    #[error("no topology is called {0:?}; take direct or chain")]
    Topology(String),
    /// A chain over a fabric that can't relay.
    #[error(
        "the fabric {0} has no relays, so nothing can go along a chain; take the topology direct, or another fabric"
    )]
    Relays(&'static str),
}
