//! What a node is told at its start: parsed once, checked once, passed on as a value.
//!
//! # As a file
//! ```toml
//! cluster = "orders"            # nodes of different clusters refuse each other; default "consort"
//! id = 1                        # this node's name in the cluster; 1 or more
//! listen = "10.0.0.1:7101"      # where its control links are accepted
//! # advertise = "…:7101"        # the address that peers reach it by, if `listen` is 0.0.0.0 or translated
//!
//! fabric = "auto"               # auto | shm | tcp | verbs: how messages travel; the same at all nodes
//! guarantee = "atomic"          # fifo | agreed | atomic | durable | logged: when a message is delivered; the same at all nodes
//! topology = "direct"           # direct | chain: which way the bytes of messages go; the same at all nodes
//! wait = "adaptive"             # spin | adaptive | block: what this node does while nothing happens
//! ring = "4 MiB"                # memory for messages under way, per member: a power of two; the same at all nodes
//!
//! # start_within = "1m"         # give up if the group hasn't started by then; default: wait for ever
//! # join = ["10.0.0.2:7101"]    # join the group that runs at one of these, instead of founding one with `[peers]`
//! # rejoin = true               # join again, as a new incarnation, when the others went on without this node
//! # state = true              # the application has a state, which joiners get from a member; the same at all nodes
//! # role = "witness"            # data | witness: a witness votes and holds no data
//! # silence = "1s"              # how long a member may say nothing before it is taken for gone
//! # quorum_within = "10s"       # how long to look for a majority before this node gives up
//! # slow = "wait"               # wait | a time such as "5s": how long a member may stand still before it is left out
//! # key_file = "cluster.key"    # a secret that all nodes share, beside this file; without one, no authentication
//!
//! # data = "/var/lib/app/1"     # where durable groups are written down: a directory of this node's own, beside this file if relative
//! # snapshot_every = "256 MiB" # how much a log grows before its application, if it has a state, is asked for a snapshot in its place
//! # domain = "rack-1"           # what this node fails with: replicas of a shard are spread over domains
//!
//! [peers]                       # everyone else; at every node the same members
//! 2 = "10.0.0.2:7101"
//! 3 = "10.0.0.3:7101"
//!
//! # [groups.audit]              # a group beside the main one, which all are in; the same at all nodes
//! # nodes = [1, 2]              # who is in it; left out: all
//! # guarantee = "agreed"        # each group has its own; default atomic
//! # topology = "chain"          # direct | chain: which way the bytes of its messages go; default direct
//! # ring = "256 KiB"            # default 1 MiB
//! # slow = "5s"                 # wait | a time: how long a member may stand still in this group; default: what is said above
//!
//! # [groups.kv]
//! # shards = 3                  # split in three, each
//! # replicas = 2                # on two nodes, which the view names
//! # state = true                # who comes gets the state from a member first
//! ```
//! Unknown keys are refused, and every error names file, line and key and says what to write instead:
//!
//! ```
//! use consort_control::config::NodeConfig;
//! let text = "id = 1\nlisten = \"127.0.0.1:7101\"\nring = \"5 MiB\"\n[peers]\n2 = \"127.0.0.1:7102\"\n";
//! let error = NodeConfig::from_toml(text, "node.toml".as_ref(), &["auto", "shm", "tcp"]).unwrap_err();
//! assert!(error.to_string().starts_with("node.toml:3: `ring`: "), "{error}");
//! ```

mod key;
mod groups;
mod file;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use consort_dataplane::fabric::FABRIC_PAGE;
use consort_dataplane::names::{MAX_NODES, NodeId, Rank, Slot, ViewId};
use consort_dataplane::plan::{Guarantee, Member, PlanError, SessionPlan, Topology};

use crate::view::{Domain, Role};

pub use groups::{GROUP_LEN, GroupConfig, GroupMembers, MAIN, SHARDS};
pub use key::{KeyError, SharedKey};

/// The longest name of a cluster, in bytes.
pub const CLUSTER_LEN: usize = 64;

/// The shortest bound on silence: shorter ones take scheduling for death.
pub const LEAST_SILENCE: Duration = Duration::from_millis(20);

/// The longest name of a fabric, in bytes.
pub const FABRIC_LEN: usize = 16;

/// What a node is told. Start from [`NodeConfig::new`] or [`NodeConfig::from_file`], change what is to be changed, and
/// let [`NodeConfig::check`] look at it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct NodeConfig {
    /// The name of the cluster: nodes of different clusters refuse each other.
    pub cluster: String,
    /// This node's name.
    pub id: NodeId,
    /// Where its control links are accepted.
    pub listen: SocketAddr,
    /// The address that peers reach it by, where that isn't `listen`.
    pub advertise: Option<SocketAddr>,
    /// Everyone else, and where their control links are accepted.
    pub peers: BTreeMap<NodeId, SocketAddr>,
    /// The name of the fabric. What names there are is known to who links the fabrics in; this crate isn't one.
    pub fabric: String,
    /// When a message is delivered (D8).
    pub guarantee: Guarantee,
    /// Which way the bytes of the main group's messages go (D14).
    pub topology: Topology,
    /// What the engine does while nothing happens.
    pub wait: WaitStrategy,
    /// Bytes of each member's ring: a power of two.
    pub ring_bytes: usize,
    /// Give up if the group hasn't started by then. `None`: wait for ever.
    pub start_within: Option<Duration>,
    /// The secret that all nodes share.
    pub key: Option<SharedKey>,
    /// Where a group runs that this node joins (V7). Empty: it founds one with its peers, or joins the one that they are in.
    pub join: Vec<SocketAddr>,
    /// When the others went on without this node, or it can't reach a majority: join again as a new incarnation (V5).
    pub rejoin: bool,
    /// The application has a state: a joiner gets a snapshot from a member and what was delivered since, before a view admits it (V7). In a durable group
    /// snapshots bound the log (P4).
    pub state: bool,
    /// When a durable shard's log has grown by so many bytes, its application is asked for a snapshot, if it has a state (P4).
    pub snapshot_every: u64,
    /// What it does in a view (V6).
    pub role: Role,
    /// How long a member may be silent before it is taken for gone (V9).
    pub silence: Duration,
    /// How long a node that is cut off from the majority tries before it stops (V5).
    pub quorum_within: Duration,
    /// What becomes of a member that stands still although its process lives (V9): in the main group, and in all groups that don't say
    /// otherwise.
    pub slow: SlowPolicy,
    /// What this node fails with: replicas of a shard are spread over as many domains as there are.
    pub domain: Domain,
    /// The groups beside the main one, which all members that hold data are in; the same at all nodes.
    pub groups: Vec<GroupConfig>,
    /// The directory for the logs of durable groups: this node's alone.
    pub data: Option<PathBuf>,
}

/// What becomes of a member that stands still in a group: its application takes nothing of what is delivered there, for all that messages wait, or
/// its engine does nothing at all, in a callback that doesn't return or for want of a processor. An engine that stands still does so in
/// all groups of the node.
///
/// So with [`SlowPolicy::Evict`] whatever the application does with one event has to be over within the bound, while others wait: applying an
/// update and restoring a state too. The engine of a node that is driven by its application runs on the application's own thread; there the
/// shortest bound of any of the node's groups counts, for each callback and for whatever is done between two turns.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[non_exhaustive]
pub enum SlowPolicy {
    /// The group waits for it (D11).
    #[default]
    Wait,
    /// After so long the next view goes without it.
    Evict(Duration),
}

/// What the engine does while nothing happens.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[non_exhaustive]
pub enum WaitStrategy {
    /// Never sleeps and never yields: for a core that is this node's alone. With fewer cores than spinning threads it
    /// is thousands of times slower than the others.
    Spin,
    /// Yields at first, then sleeps; notices when it shares its core. Right unless you have measured otherwise.
    #[default]
    Adaptive,
    /// Sleeps at once: least CPU, some tens of microseconds more when cores are idle.
    Block,
}

impl fmt::Display for WaitStrategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Spin => "spin",
            Self::Adaptive => "adaptive",
            Self::Block => "block",
        })
    }
}

/// No wait strategy is called that.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("no wait strategy is called {0:?}; take spin, adaptive or block")]
pub struct UnknownWait(String);

impl FromStr for WaitStrategy {
    type Err = UnknownWait;

    fn from_str(name: &str) -> Result<Self, UnknownWait> {
        match name {
            "spin" => Ok(Self::Spin),
            "adaptive" => Ok(Self::Adaptive),
            "block" => Ok(Self::Block),
            _ => Err(UnknownWait(name.to_owned())),
        }
    }
}

/// A configuration can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file can't be read.
    #[error("can't read {}: {cause}; give the path of a file as `consort node --help` shows it", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
    /// The file isn't TOML, has a key that doesn't exist, or lacks one.
    #[error("{place}: {message}")]
    Syntax {
        /// Where.
        place: Place,
        /// What the parser says.
        message: String,
    },
    /// A value can't be.
    #[error("{}`{key}`: {problem}", place.as_ref().map(|p| format!("{p}: ")).unwrap_or_default())]
    Value {
        /// Where, if it was in a file.
        place: Option<Place>,
        /// The name of the setting.
        key: String,
        /// What is wrong, and what to write instead.
        problem: String,
    },
}

/// A line of a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// The file.
    pub file: PathBuf,
    /// The line, from 1.
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

impl NodeConfig {
    /// What node `id` does if nothing else is said: no peers, `127.0.0.1` and a port of the kernel's choice, fabric
    /// `auto`, `Atomic`, `Adaptive`, rings of 4 MiB, no key, and it waits for ever for its peers.
    pub fn new(id: NodeId) -> Self {
        Self {
            cluster: "consort".to_owned(),
            id,
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            advertise: None,
            peers: BTreeMap::new(),
            fabric: "auto".to_owned(),
            guarantee: Guarantee::default(),
            topology: Topology::default(),
            wait: WaitStrategy::default(),
            ring_bytes: 4 << 20,
            snapshot_every: 256 << 20,
            start_within: None,
            key: None,
            join: Vec::new(),
            rejoin: false,
            state: false,
            role: Role::Data,
            silence: Duration::from_secs(1),
            quorum_within: Duration::from_secs(10),
            slow: SlowPolicy::Wait,
            domain: Domain::default(),
            groups: Vec::new(),
            data: None,
        }
    }

    /// All members, this node included, in ascending order.
    pub fn members(&self) -> Vec<NodeId> {
        let mut members: Vec<_> = self.peers.keys().copied().chain([self.id]).collect();
        members.sort_unstable();
        members
    }

    /// The address that peers reach this node by.
    pub fn address(&self) -> SocketAddr {
        self.advertise.unwrap_or(self.listen)
    }

    /// Checks what can be checked before anything is started.
    ///
    /// # Errors
    /// Names the first setting that can't be, and what to write instead.
    pub fn check(&self) -> Result<(), ConfigError> {
        self.first_fault()
            .map_or(Ok(()), |(key, problem)| Err(ConfigError::Value { place: None, key, problem }))
    }

    fn first_fault(&self) -> Option<(String, String)> {
        let fault = |key: &str, problem: String| Some((key.to_owned(), problem));
        if self.cluster.is_empty() || self.cluster.len() > CLUSTER_LEN {
            return fault(
                "cluster",
                format!("a name of 1 to {CLUSTER_LEN} bytes, not {}", self.cluster.len()),
            );
        }
        if self.id == NodeId(0) {
            return fault("id", "0 is no node; give each node a number of its own, from 1".to_owned());
        }
        if self.fabric.is_empty() || self.fabric.len() > FABRIC_LEN {
            return fault("fabric", format!("no fabric is called {:?}", self.fabric));
        }
        if !self.peers.is_empty() && unreachable(self.address().ip()) {
            let problem = format!(
                "peers can't dial {}: set `advertise` to the address of this machine that they reach",
                self.address()
            );
            return fault(if self.advertise.is_some() { "advertise" } else { "listen" }, problem);
        }
        if self.silence < LEAST_SILENCE {
            return fault(
                "silence",
                format!(
                    "{:?}; take {LEAST_SILENCE:?} or more: a busy machine is silent for as long",
                    self.silence
                ),
            );
        }
        if self.quorum_within < self.silence {
            return fault(
                "quorum_within",
                format!("{:?}; take at least `silence`, {:?}", self.quorum_within, self.silence),
            );
        }
        if self.snapshot_every == 0 {
            let problem = "0 bytes; take as many as a log may keep beside a snapshot, such as \"256 MiB\"";
            return fault("snapshot_every", problem.to_owned());
        }
        if !self.join.is_empty() && !self.peers.is_empty() {
            return fault(
                "join",
                "a node joins a group or founds one: give `join` or `peers`, not both".to_owned(),
            );
        }
        if let Some(address) = self.join.iter().find(|at| at.port() == 0 || unreachable(at.ip())) {
            return fault(
                "join",
                format!("{address} can't be dialled: write what some member has as `listen`"),
            );
        }
        if self.members().len() > MAX_NODES {
            return fault(
                "peers",
                format!("{} members; a group has at most {MAX_NODES}", self.members().len()),
            );
        }
        let mut addresses = BTreeMap::from([(self.address(), self.id)]);
        for (&node, &address) in &self.peers {
            let key = format!("peers.{node}");
            if node == NodeId(0) {
                return fault(&key, "0 is no node; give each node a number of its own, from 1".to_owned());
            }
            if node == self.id {
                return fault(&key, "this is the node itself: list only the others, and see that every node has an `id` of its own".to_owned());
            }
            if address.port() == 0 || unreachable(address.ip()) {
                return fault(
                    &key,
                    format!("{address} can't be dialled: write what node {node} has as `listen`"),
                );
            }
            if let Some(other) = addresses.insert(address, node) {
                return fault(&key, format!("{address} is already node {other}'s: every node needs its own"));
            }
        }
        match self.plan_check(self.ring_bytes) {
            Err(error @ PlanError::Ring { .. }) => return fault("ring", error.to_string()),
            Err(error) => return fault("peers", error.to_string()),
            Ok(()) => {}
        }
        self.first_fault_of_groups()
    }

    fn first_fault_of_groups(&self) -> Option<(String, String)> {
        let mut names = std::collections::BTreeSet::new();
        for group in &self.groups {
            let key = |key: &str| format!("groups.{}.{key}", group.name);
            if let Some((setting, problem)) = group.first_fault() {
                return Some((key(setting), problem));
            }
            if !names.insert(&group.name) {
                return Some((key("name"), "two groups have this name; give each its own".to_owned()));
            }
            if let Err(error) = self.plan_check(group.ring_bytes) {
                return Some((key("ring"), error.to_string()));
            }
        }
        let shards = 1 + self.groups.iter().map(GroupConfig::shards).sum::<usize>();
        let is_durable =
            self.guarantee.durable() || self.groups.iter().any(|group| group.guarantee.durable());
        let named = "name a directory that is this node's alone";
        let no_data = match &self.data {
            Some(directory) if directory.as_os_str().is_empty() => {
                Some(format!("the directory has no name: {named}, or leave this out"))
            }
            None if is_durable && self.role == Role::Data => {
                Some(format!("a durable group is written down: {named}"))
            }
            _ => None,
        };
        if let Some(problem) = no_data {
            return Some(("data".to_owned(), problem));
        }
        (shards > SHARDS).then(|| {
            let problem =
                format!("{shards} shards in all, the main group's among them; at most {SHARDS} can be");
            ("groups".to_owned(), problem)
        })
    }

    /// What the data plane says to a session of these members.
    fn plan_check(&self, ring_bytes: usize) -> Result<(), PlanError> {
        let members = self.members();
        let me = members.iter().position(|node| *node == self.id).and_then(|at| u8::try_from(at).ok());
        let me = Rank(me.ok_or(PlanError::Members(members.len()))?);
        let members = members.into_iter().zip(0..).map(|(node, at)| {
            let slot = (node != self.id).then_some(Slot(at));
            Member { node, slot, base: FABRIC_PAGE }
        });
        let (guarantee, topology) = (self.guarantee, self.topology);
        SessionPlan { view: ViewId(1), members: members.collect(), me, ring_bytes, guarantee, topology }
            .check()
    }
}

fn unreachable(ip: IpAddr) -> bool {
    ip.is_unspecified() || ip.is_multicast()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: u32, peers: &[(u32, &str)]) -> NodeConfig {
        let mut config = NodeConfig::new(NodeId(id));
        config.listen = "127.0.0.1:7101".parse().unwrap();
        config.peers = peers.iter().map(|(id, address)| (NodeId(*id), address.parse().unwrap())).collect();
        config
    }

    #[test]
    fn what_is_sound_passes() {
        node(1, &[(2, "127.0.0.1:7102"), (3, "[::1]:7103")]).check().unwrap();
        node(7, &[]).check().unwrap();
        let mut behind = node(1, &[(2, "10.0.0.2:7101")]);
        behind.listen = "0.0.0.0:7101".parse().unwrap();
        behind.advertise = Some("10.0.0.1:7101".parse().unwrap());
        behind.check().unwrap();
        assert_eq!(node(2, &[(3, "[::1]:1"), (1, "[::1]:2")]).members(), [NodeId(1), NodeId(2), NodeId(3)]);
    }

    #[test]
    fn what_is_not_is_named_with_its_remedy() {
        let peers: &[(u32, &str)] = &[(2, "127.0.0.1:7102")];
        let many: Vec<_> = (2..66).map(|id| (id, format!("10.0.0.{id}:1"))).collect();
        let many: Vec<_> = many.iter().map(|(id, address)| (*id, address.as_str())).collect();
        let change = |f: fn(&mut NodeConfig)| {
            let mut config = node(1, peers);
            f(&mut config);
            config
        };
        for (config, key, remedy) in [
            (node(0, peers), "id", "from 1"),
            (node(1, &[(1, "127.0.0.1:7102")]), "peers.1", "list only the others"),
            (node(1, &[(0, "127.0.0.1:7102")]), "peers.0", "from 1"),
            (node(1, &[(2, "127.0.0.1:7101")]), "peers.2", "already node 1's"),
            (node(1, &[(2, "127.0.0.1:7102"), (3, "127.0.0.1:7102")]), "peers.3", "already node 2's"),
            (node(1, &[(2, "127.0.0.1:0")]), "peers.2", "`listen`"),
            (node(1, &[(2, "0.0.0.0:7102")]), "peers.2", "`listen`"),
            (node(1, &many), "peers", "at most 64"),
            (change(|c| c.cluster = String::new()), "cluster", "1 to 64 bytes"),
            (change(|c| c.guarantee = Guarantee::Durable), "data", "name a directory"),
            (change(|c| c.data = Some(PathBuf::new())), "data", "name a directory"),
            (change(|c| c.cluster = "x".repeat(65)), "cluster", "1 to 64 bytes"),
            (change(|c| c.fabric = String::new()), "fabric", "no fabric"),
            (change(|c| c.ring_bytes = 5 << 20), "ring", "power of two"),
            (change(|c| c.ring_bytes = 64), "ring", "power of two"),
            (change(|c| c.listen = "0.0.0.0:7101".parse().unwrap()), "listen", "set `advertise`"),
            (change(|c| c.advertise = "[::]:7101".parse().ok()), "advertise", "set `advertise`"),
        ] {
            let error = config.check().unwrap_err().to_string();
            assert!(error.starts_with(&format!("`{key}`: ")) && error.contains(remedy), "{error}");
        }
    }

    #[test]
    fn a_key_is_long_and_never_printed() {
        assert!(matches!(SharedKey::new("too short"), Err(KeyError::Length(9))));
        let key = SharedKey::new("a secret that nobody may read").unwrap();
        assert!(!format!("{key:?}").contains("secret"));
    }
}
