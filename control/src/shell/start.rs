//! What a node is started from, and what it tells about itself: plain values, with the reasons why it can't start or close.

use std::error::Error;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use consort_dataplane::fabric::{Fabric, FabricStats};
use consort_dataplane::names::NodeId;
use consort_dataplane::session::{Blocked, Frontiers};

use crate::config::{ConfigError, NodeConfig};
use crate::membership::{Absent, Stopped};
use crate::view::View;

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
    /// The name of the fabric.
    pub fabric: &'static str,
    /// What drives it: `io_uring`, `epoll`, `futex`.
    pub engine: &'static str,
    /// What the fabric counted: system calls, bytes, sleeps, wakes.
    pub counts: FabricStats,
}

/// Where a node stands.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Status {
    /// What membership does, in a word or two.
    pub phase: String,
    /// For whom the group's start waits; empty once it runs.
    pub waiting: Vec<Absent>,
    /// The view, once there is one.
    pub view: Option<View>,
    /// Members whose sends have ended.
    pub ended: Vec<NodeId>,
    /// The session's counters.
    pub frontiers: Option<Frontiers>,
    /// What keeps the next message from being delivered (V11).
    pub blocked: Option<Blocked>,
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
    /// Some members had not ended in time: messages may be missing here or there.
    #[error("not closed in order within {within:?}: {} had not ended; let all members end, or give more time", names(.open))]
    Late {
        /// The time that was given.
        within: Duration,
        /// The members that had not ended.
        open: Vec<NodeId>,
    },
    /// The node had stopped before, or did meanwhile.
    #[error("the node stopped before it could be closed: {0}")]
    Stopped(#[from] Stopped),
}

fn names(nodes: &[NodeId]) -> String {
    nodes.iter().map(|node| format!("node {node}")).collect::<Vec<_>>().join(", ")
}
