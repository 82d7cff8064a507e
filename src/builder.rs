//! Building a node in code or from a file, with the fabrics linked in.

use std::error::Error;
use std::fmt;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use consort_control::config::{ConfigError, GroupConfig, NodeConfig, SharedKey, SlowPolicy};
use consort_control::shell::{DrivenNode, MakeDisk, MakeFabric, Node, Start, StartError};
use consort_dataplane::fabric::Fabric;
use consort_dataplane::log::Disk;
use consort_hw::disk::Directory;
use consort_hw::mixed::{MixedFabric, MixedOptions};
use consort_hw::shm::{ShmFabric, ShmOptions};
use consort_hw::tcp::{TcpFabric, TcpOptions};

use crate::{Domain, Guarantee, NodeId, Role, Topology, WaitStrategy};

/// The names that `fabric` may have in a configuration.
const FABRICS: &[&str] = &["auto", "shm", "tcp", "verbs"];

/// How messages travel between the nodes. All nodes of a group choose the same.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[non_exhaustive]
pub enum FabricChoice {
    /// For each link the best that both ends have: shared memory between nodes of one machine, RDMA (in builds with it, where a card has the
    /// node's own address), TCP. What a link runs over is in the node's status; where the best fails at its start, the next is taken, with a
    /// warning in the log.
    ///
    /// [Chains](Topology::Chain) take one kind of fabric. With them this is `Shm` if the control addresses of all nodes that are named are this
    /// machine's own, else `Tcp`.
    #[default]
    Auto,
    /// Shared memory: all nodes on one machine.
    Shm,
    /// TCP, over io_uring where the kernel allows it: any machines.
    Tcp,
    /// RDMA, over InfiniBand or RoCE: machines with such cards. Only in builds with the feature `verbs`; others say so at the start.
    Verbs,
}

/// No fabric is called that.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnknownFabric(String);

impl fmt::Display for UnknownFabric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no fabric is called {:?}; take {}", self.0, FABRICS.join(", "))
    }
}

impl Error for UnknownFabric {}

impl fmt::Display for FabricChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Shm => "shm",
            Self::Tcp => "tcp",
            Self::Verbs => "verbs",
        })
    }
}

impl FromStr for FabricChoice {
    type Err = UnknownFabric;

    fn from_str(name: &str) -> Result<Self, UnknownFabric> {
        match name {
            "auto" => Ok(Self::Auto),
            "shm" => Ok(Self::Shm),
            "tcp" => Ok(Self::Tcp),
            "verbs" => Ok(Self::Verbs),
            _ => Err(UnknownFabric(name.to_owned())),
        }
    }
}

/// Builds a node: says who it is, who the others are, and how they talk.
#[derive(Debug)]
#[must_use = "a builder does nothing until `start` or `driven`"]
pub struct NodeBuilder {
    config: NodeConfig,
    listener: Option<TcpListener>,
}

impl NodeBuilder {
    /// Starts building node `id`: its name in the cluster, from 1, which no other node has.
    pub fn new(id: u32) -> Self {
        Self { config: NodeConfig::new(NodeId(id)), listener: None }
    }

    /// Reads a configuration file ([its form](crate::config)).
    ///
    /// # Errors
    /// Names file, line and key, and what to write instead.
    pub fn from_toml(file: &Path) -> Result<Self, ConfigError> {
        Ok(Self { config: NodeConfig::from_file(file, FABRICS)?, listener: None })
    }

    /// The cluster's name: nodes of different clusters refuse each other. `consort` if not set.
    pub fn cluster(mut self, name: impl Into<String>) -> Self {
        self.config.cluster = name.into();
        self
    }

    /// Where this node's control links are accepted.
    pub fn listen(mut self, address: SocketAddr) -> Self {
        self.config.listen = address;
        self
    }

    /// The address that peers reach this node by, where that isn't [`NodeBuilder::listen`].
    pub fn advertise(mut self, address: SocketAddr) -> Self {
        self.config.advertise = Some(address);
        self
    }

    /// A socket that listens already, instead of [`NodeBuilder::listen`]: handed down by a supervisor, or bound to
    /// a port that the kernel chose.
    pub fn listener(mut self, listener: TcpListener) -> Self {
        self.listener = Some(listener);
        self
    }

    /// Another member of the first view, and where its control links are accepted. Every founder lists all others.
    pub fn peer(mut self, id: u32, address: SocketAddr) -> Self {
        self.config.peers.insert(NodeId(id), address);
        self
    }

    /// Joins the group that runs, instead of founding one with [`NodeBuilder::peer`]: the control address of some member.
    /// Give several, and any of them that is there will do.
    pub fn join(mut self, address: SocketAddr) -> Self {
        self.config.join.push(address);
        self
    }

    /// When the others went on without this node, or it can't reach a majority: whether it joins again, as a new
    /// incarnation ([`Event::Evicted`](crate::Event::Evicted) tells). If not set, it stops.
    pub fn rejoin(mut self, rejoin: bool) -> Self {
        self.config.rejoin = rejoin;
        self
    }

    /// Whether the application has a state that joiners need (V7): then a joiner gets one member's
    /// ([`Event::Snapshot`](crate::Event::Snapshot)) and what was delivered since ([`Event::Restore`](crate::Event::Restore)), before a view
    /// admits it. The same at all nodes; not if not set.
    pub fn state(mut self, state: bool) -> Self {
        self.config.state = state;
        self
    }

    /// Makes it a witness: it has a vote on views, and holds no data.
    pub fn witness(mut self) -> Self {
        self.config.role = Role::Witness;
        self
    }

    /// How long a member may say nothing before it is taken for gone; a second if not set. Shorter finds the dead sooner,
    /// and takes the living for dead where machines are busy.
    pub fn silence(mut self, bound: Duration) -> Self {
        self.config.silence = bound;
        self
    }

    /// How long a node that is cut off from the majority tries to reach it before it gives up; ten seconds if not set.
    pub fn quorum_within(mut self, within: Duration) -> Self {
        self.config.quorum_within = within;
        self
    }

    /// What becomes of a member that stands still although its process lives: in the main group, and in every group that doesn't
    /// [say otherwise](GroupConfig::slow). [`SlowPolicy::Wait`] if not set.
    pub fn slow(mut self, policy: SlowPolicy) -> Self {
        self.config.slow = policy;
        self
    }

    /// How messages travel; [`FabricChoice::Auto`] if not set.
    pub fn fabric(mut self, choice: FabricChoice) -> Self {
        self.config.fabric = choice.to_string();
        self
    }

    /// When a message is delivered; [`Guarantee::Atomic`] if not set.
    pub fn guarantee(mut self, guarantee: Guarantee) -> Self {
        self.config.guarantee = guarantee;
        self
    }

    /// Which way the bytes of messages go; [`Topology::Direct`] if not set. Over RDMA there are no chains.
    pub fn topology(mut self, topology: Topology) -> Self {
        self.config.topology = topology;
        self
    }

    /// What the engine does while nothing happens; [`WaitStrategy::Adaptive`] if not set.
    pub fn wait(mut self, strategy: WaitStrategy) -> Self {
        self.config.wait = strategy;
        self
    }

    /// Bytes of every member's ring, a power of two; 4 MiB if not set. A message takes at most half of it.
    pub fn ring_bytes(mut self, bytes: usize) -> Self {
        self.config.ring_bytes = bytes;
        self
    }

    /// A group beside the main one ([`Node::group`]); the same at all nodes.
    pub fn group(mut self, group: GroupConfig) -> Self {
        self.config.groups.push(group);
        self
    }

    /// What this node fails with, a rack or a zone: replicas of a shard are spread over as many domains as there are.
    pub fn domain(mut self, domain: Domain) -> Self {
        self.config.domain = domain;
        self
    }

    /// The directory in which this node's durable groups are written down ([`Guarantee::Durable`]); no other node may have it.
    pub fn data(mut self, directory: impl Into<PathBuf>) -> Self {
        self.config.data = Some(directory.into());
        self
    }

    /// How many bytes the log of a durable shard may grow by before its application, if it has a [state](NodeBuilder::state), is asked for a
    /// snapshot ([`Event::Snapshot`](crate::Event::Snapshot)), which takes the place of what is behind it; 256 MiB if not set. A node that starts is given its
    /// snapshot first ([`Event::Restore`](crate::Event::Restore)), then what follows.
    pub fn snapshot_every(mut self, bytes: u64) -> Self {
        self.config.snapshot_every = bytes;
        self
    }

    /// Gives up if the group hasn't started by then; if not set, it waits for ever.
    pub fn start_within(mut self, within: Duration) -> Self {
        self.config.start_within = Some(within);
        self
    }

    /// A secret that all nodes share: control links are authenticated with it (S3).
    pub fn shared_key(mut self, key: SharedKey) -> Self {
        self.config.key = Some(key);
        self
    }

    /// What was set so far.
    pub fn config(&self) -> &NodeConfig {
        &self.config
    }

    /// Starts the node with its engine on a thread of its own. Returns before its peers are there.
    ///
    /// # Errors
    /// The configuration can't be, the control address is taken, or the machine refuses what the fabric needs.
    pub fn start(self) -> Result<Node, StartError> {
        Node::start(self.resolve()?)
    }

    /// Starts the node for the caller to drive; only its control links have a thread of their own.
    ///
    /// # Errors
    /// As [`NodeBuilder::start`].
    pub fn driven(self) -> Result<DrivenNode, StartError> {
        DrivenNode::start(self.resolve()?)
    }

    /// Puts the choice of a fabric into effect: control knows none.
    fn resolve(self) -> Result<Start, StartError> {
        let Self { mut config, listener } = self;
        if let Some(listener) = &listener {
            config.listen = listener
                .local_addr()
                .map_err(|cause| StartError::Machine { what: "the listener's address", cause })?;
        }
        config.check()?;
        let choice = config.fabric.parse().map_err(|error: UnknownFabric| ConfigError::Value {
            place: None,
            key: "fabric".to_owned(),
            problem: error.to_string(),
        })?;
        let chains = config.topology == Topology::Chain
            || config.groups.iter().any(|group| group.topology == Topology::Chain);
        let choice = match choice {
            FabricChoice::Auto if chains => {
                let near = named(&config).all(|other| is_ours(other.ip()));
                if near { FabricChoice::Shm } else { FabricChoice::Tcp }
            }
            chosen => chosen,
        };
        config.fabric = choice.to_string();
        if choice == FabricChoice::Verbs && !cfg!(feature = "verbs") {
            let problem = "this build has no verbs; build with `--features verbs`, which takes libibverbs-dev, \
                           librdmacm-dev and libclang-dev, or take tcp";
            return Err(ConfigError::Value {
                place: None,
                key: "fabric".to_owned(),
                problem: problem.to_owned(),
            }
            .into());
        }
        let (id, segment_bytes) = (config.id, config.segment_bytes());
        let (listen, advertise) = (config.listen.ip(), config.advertise.map(|address| address.ip()));
        let fabric: MakeFabric = Box::new(move || {
            if choice == FabricChoice::Auto {
                let options = MixedOptions { segment_bytes, listen, advertise, ..Default::default() };
                let fabric = MixedFabric::new(id, options)?;
                let engine = fabric.engine();
                return Ok((Box::new(fabric) as Box<dyn Fabric + Send>, engine));
            }
            if choice == FabricChoice::Shm {
                let options = ShmOptions { segment_bytes, ..Default::default() };
                let fabric = ShmFabric::new(id, options)?;
                return Ok((Box::new(fabric) as Box<dyn Fabric + Send>, "futex"));
            }
            #[cfg(feature = "verbs")]
            if choice == FabricChoice::Verbs {
                use consort_hw::verbs::{VerbsFabric, VerbsOptions};
                let options = VerbsOptions { segment_bytes, listen, advertise, ..Default::default() };
                let fabric = VerbsFabric::new(id, options)?;
                return Ok((Box::new(fabric) as Box<dyn Fabric + Send>, "rc"));
            }
            {
                let options = TcpOptions { segment_bytes, listen, advertise, ..Default::default() };
                let fabric = TcpFabric::new(id, options)?;
                let engine = fabric.engine();
                Ok((Box::new(fabric) as Box<dyn Fabric + Send>, engine))
            }
        });
        let disk: MakeDisk = Box::new(|path| Ok(Box::new(Directory::open(path)?) as Box<dyn Disk>));
        Ok(Start { config, listener, fabric, disk: Some(disk) })
    }
}

/// Where the others are, as far as this node was told: those that it founds a group with, or those that it joins.
fn named(config: &NodeConfig) -> impl Iterator<Item = &SocketAddr> {
    config.peers.values().chain(&config.join)
}

/// Whether an address is this machine's own: only then can a socket be bound to it.
fn is_ours(ip: IpAddr) -> bool {
    ip.is_loopback() || UdpSocket::bind((ip, 0)).is_ok()
}
