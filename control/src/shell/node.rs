//! The two forms of a node: [`Node`], whose engine has a thread of its own, and [`DrivenNode`], which the caller drives.

use std::error::Error;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use consort_dataplane::fabric::{Fabric, FabricStats};
use consort_dataplane::names::NodeId;
use consort_dataplane::session::{Blocked, Frontiers};

use super::event::{Event, Inbox, Incoming};
use super::sender::{Outbox, Sender};
use crate::config::{ConfigError, NodeConfig};
use crate::membership::{Absent, Stopped};
use crate::view::View;

/// Makes the node's fabric: once at the start, and once more each time the node starts over before the group runs. With
/// it, what drives the fabric (`io_uring`, `epoll`, `futex`), for people to read.
pub type MakeFabric =
    Box<dyn FnMut() -> Result<(Box<dyn Fabric + Send>, &'static str), Box<dyn Error + Send + Sync>> + Send>;

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
        address: std::net::SocketAddr,
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

/// A node, its engine on a thread of its own. Dropping it stops it at once: what was not delivered stays so, and the
/// others are told that it left; [`Node::close`] ends in order.
pub struct Node {
    sender: Sender,
    inbox: Arc<Inbox>,
}

/// A node that the caller drives, on the thread that it chooses: no thread of the library ever touches a message.
pub struct DrivenNode {
    sender: Sender,
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
#[derive(Clone, Debug)]
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

impl Node {
    /// Starts a node. Returns before its peers are there: [`Event::View`] says that the group runs.
    ///
    /// # Errors
    /// The configuration can't be, the control address is taken, or the machine refuses what the fabric needs.
    pub fn start(start: Start) -> Result<Self, StartError> {
        let _ = start;
        Err(StartError::Fabric("nodes are being built".into()))
    }

    /// A handle to send with, for any thread.
    pub fn sender(&self) -> Sender {
        self.sender.clone()
    }

    /// The next event. Blocks until there is one. Several threads may call it; each event goes to one of them.
    ///
    /// # Errors
    /// The node stopped, and all events before that were taken.
    pub fn recv(&self) -> Result<Event, Stopped> {
        loop {
            if let Some(event) = self.inbox.take(None)? {
                return Ok(event);
            }
        }
    }

    /// The next event, if there is one. Never blocks.
    ///
    /// # Errors
    /// As [`Node::recv`].
    pub fn try_recv(&self) -> Result<Option<Event>, Stopped> {
        self.inbox.try_take()
    }

    /// The next event, or `None` if there is none within `within`.
    ///
    /// # Errors
    /// As [`Node::recv`].
    pub fn recv_timeout(&self, within: Duration) -> Result<Option<Event>, Stopped> {
        self.inbox.take(Some(within))
    }

    /// Ends in order: says that nothing more comes from here, waits for at most `within` until every member has ended and
    /// all that was sent is delivered, and leaves. Events that were not taken by then are dropped: to see them all, call
    /// [`Sender::end`] and take events until every member has [ended](Event::Ended), then close.
    ///
    /// # Errors
    /// Some member had not ended in time, or the node had stopped before. Either way it is stopped now.
    pub fn close(self, within: Duration) -> Result<Closed, CloseError> {
        let _ = within;
        Ok(Closed { discarded: 0 })
    }

    /// What was counted so far: a moment's copy.
    pub fn stats(&self) -> NodeStats {
        NodeStats::default()
    }

    /// Where the node stands: asks the engine, and blocks until it has answered.
    ///
    /// # Errors
    /// The node stopped.
    pub fn status(&self) -> Result<Status, Stopped> {
        Err(Stopped::Closed)
    }
}

impl DrivenNode {
    /// Starts a node that the caller drives. Only its control links have a thread of their own. Returns before its peers
    /// are there: keep polling.
    ///
    /// # Errors
    /// As [`Node::start`].
    pub fn start(start: Start) -> Result<Self, StartError> {
        let _ = (start, Sender::new(Arc::new(Outbox::default())), Inbox::default());
        Err(StartError::Fabric("nodes are being built".into()))
    }

    /// A handle to send with, for any thread.
    pub fn sender(&self) -> Sender {
        self.sender.clone()
    }

    /// One turn: takes in what has come, sends what was committed, and gives `app` what is due. Never blocks. Returns whether
    /// anything happened; if not, [`DrivenNode::wait`] may be called. The thread that calls it drives the node:
    /// [`Sender::reserve`] refuses there to wait for itself.
    ///
    /// # Errors
    /// The node stopped.
    pub fn poll(&mut self, app: &mut dyn FnMut(Incoming<'_, '_>)) -> Result<bool, Stopped> {
        let _ = app;
        Err(Stopped::Closed)
    }

    /// Waits until there may be something to do, as the wait strategy says. Blocks, for a tenth of a second at most;
    /// call it after a turn in which nothing happened.
    pub fn wait(&mut self) {}

    /// As [`Node::close`], giving `app` what is delivered meanwhile.
    ///
    /// # Errors
    /// As [`Node::close`].
    pub fn close(self, within: Duration, app: &mut dyn FnMut(Incoming<'_, '_>)) -> Result<(), CloseError> {
        let _ = (within, app);
        Ok(())
    }

    /// What was counted so far.
    pub fn stats(&self) -> NodeStats {
        NodeStats::default()
    }

    /// Where the node stands.
    ///
    /// # Errors
    /// The node stopped.
    pub fn status(&self) -> Result<Status, Stopped> {
        Err(Stopped::Closed)
    }
}
