//! What a node is started from, and what it tells about itself: plain values, with the reasons why it can't start or close.

use std::error::Error;
use std::fmt;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use consort_dataplane::fabric::{Fabric, FabricStats};
use consort_dataplane::log::LogCounts;
use consort_dataplane::names::{NodeId, ViewId};
use consort_dataplane::session::{Blocked, Frontiers};

use super::data::{DataError, MakeDisk};
use crate::config::{ConfigError, NodeConfig};
use crate::membership::{Absent, Lost, Stopped};
use crate::view::{ShardId, View};

/// A fabric, and what drives it (`io_uring`, `epoll`, `futex`), for people to read.
pub type MadeFabric = (Box<dyn Fabric + Send>, &'static str);

/// Makes the node's fabric: once at the start, and once more each time the node starts over before the group runs.
pub type MakeFabric = Box<dyn FnMut() -> Result<MadeFabric, Box<dyn Error + Send + Sync>> + Send>;

/// What a node is started from.
pub struct Start {
    /// What it is told.
    pub config: NodeConfig,
    /// A socket that listens already, instead of `config.listen`.
    pub listener: Option<TcpListener>,
    /// Its fabric.
    pub fabric: MakeFabric,
    /// What its durable groups are kept on; none is needed where there are none.
    pub disk: Option<MakeDisk>,
}

/// A node could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The configuration can't be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The control address can't be listened on.
    #[error(
        "can't listen on {address} for control links: {cause}; see that no other node runs there and that the address is this machine's"
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
    /// What it has on disk can't be used.
    #[error("no log: {0}")]
    Data(#[from] DataError),
    /// The fabric could not be made.
    #[error("no fabric: {0}")]
    Fabric(#[source] Box<dyn Error + Send + Sync>),
    /// The machine refused something else.
    #[error("can't get {what}: {cause}")]
    Machine {
        /// What was asked for.
        what: &'static str,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
}

/// What a node counted since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct NodeStats {
    /// Messages delivered here.
    pub delivered: u64,
    /// Of these, this node's own.
    pub sent: u64,
    /// The name of the fabric; of one of several kinds those that its links run over, such as `shm+tcp`.
    pub fabric: &'static str,
    /// What drives it: `io_uring`, `epoll`, `futex`, `rc`; of one of several kinds such as `futex+io_uring`.
    pub engine: &'static str,
    /// What the fabric counted: system calls, bytes, sleeps, wakes.
    pub counts: FabricStats,
    /// What the logs of its durable shards have written, together.
    pub logs: LogCounts,
}

/// Where a node stands.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Status {
    /// What membership does, in a word or two.
    pub phase: String,
    /// For whom the group's start waits; empty once it runs.
    pub waiting: Vec<Absent>,
    /// Whom this node has taken for gone, when and why: of each node the last life that it did so of.
    pub lost: Vec<Lost>,
    /// The newest view, once there is one.
    pub view: Option<View>,
    /// Members whose sends have ended.
    pub ended: Vec<NodeId>,
    /// The sessions, by shard and then in view order: one each, but for a while after a change of the view.
    pub sessions: Vec<SessionStatus>,
}

/// Where a session stands, here.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SessionStatus {
    /// Its shard.
    pub shard: ShardId,
    /// The view with which it began.
    pub view: ViewId,
    /// How far it is with its life.
    pub stage: Stage,
    /// Its counters.
    pub frontiers: Frontiers,
    /// What keeps the next message from being delivered (V11).
    pub blocked: Option<Blocked>,
}

/// How far a session is with its life (V11). Prints as a phrase.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Stage {
    /// It takes and delivers messages.
    Running,
    /// The view is changing: it takes and delivers nothing, and waits to learn where it ends.
    Wedged,
    /// It delivers what lies below the trim; the application has to take it.
    Delivering,
    /// All is delivered; some reservation of this node is neither sent nor dropped.
    Resending,
    /// Some message of it is still lent to the application, which has to drop it.
    Lending,
    /// Some member of the next view has not begun that yet.
    Unborn(Vec<NodeId>),
    /// It is over, here.
    Retired,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Running => f.write_str("running"),
            Self::Wedged => f.write_str("wedged, waits for the next view"),
            Self::Delivering => f.write_str("delivering the last messages"),
            Self::Resending => f.write_str("waits for a reservation to be sent or dropped"),
            Self::Lending => f.write_str("waits for a message to be dropped"),
            Self::Unborn(nodes) => write!(f, "waits for {} to begin with the next view", names(nodes)),
            Self::Retired => f.write_str("over"),
        }
    }
}

/// A node was closed in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Closed {
    /// Events that the application had not taken, and now never will.
    pub discarded: usize,
}

/// A node could not be closed in order. It is stopped all the same.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CloseError {
    /// It took longer than it may. The node is gone without order: the others find it lost.
    #[error("not closed in order within {within:?}: {waits_for}; give it more time")]
    Late {
        /// The time that was given.
        within: Duration,
        /// How far it had come.
        waits_for: Leaving,
    },
    /// Others hold it too, so it goes on.
    #[error("the node is still in use: drop the guards and clones that keep it first")]
    InUse,
    /// The node had stopped before, or did meanwhile.
    #[error("the node stopped before it could be closed: {0}")]
    Stopped(#[from] Stopped),
}

/// How far a node is with leaving (V11). Prints as a phrase.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Leaving {
    /// What it sent is to be delivered first.
    Delivering,
    /// The others are to agree on a view without it.
    Asked,
    /// It is no member any more; the last messages are to be taken by the application.
    Left,
}

impl fmt::Display for Leaving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Delivering => "not all that this node sent was delivered",
            Self::Asked => "the others had not agreed on a view without this node",
            Self::Left => "the application had not taken the last messages",
        })
    }
}

fn names(nodes: &[NodeId]) -> String {
    nodes.iter().map(|node| format!("node {node}")).collect::<Vec<_>>().join(", ")
}
