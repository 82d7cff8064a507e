//! Groups beside the main one, and the shards that all of them come to: where each has its memory, who is to have it.

use std::collections::BTreeSet;
use std::fmt;

use consort_dataplane::fabric::FABRIC_PAGE;
use consort_dataplane::names::{MAX_NODES, NodeId};
use consort_dataplane::plan::{Guarantee, Topology};

use super::{NodeConfig, SlowPolicy};
use crate::view::{ShardShape, Spread};

/// The most shards that a cluster has, the main group's among them.
pub const SHARDS: usize = 64;

/// The longest name of a group, in bytes.
pub const GROUP_LEN: usize = 32;

/// The name of the group that every member is in.
pub const MAIN: &str = "main";

/// A group beside the main one: a stream of its own, of some of the nodes.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct GroupConfig {
    /// Its name; no two have the same.
    pub name: String,
    /// Which nodes are in it.
    pub members: GroupMembers,
    /// When a message is delivered (D8).
    pub guarantee: Guarantee,
    /// Which way the bytes of its messages go (D14): from their sender to every member, or along a chain.
    pub topology: Topology,
    /// Bytes of each member's ring: a power of two. A message takes at most half of it.
    pub ring_bytes: usize,
    /// Its application has a state: who comes gets it from a member first (V7).
    pub state: bool,
    /// What becomes of a member that stands still in it (V9). `None`: as the node has it. Nodes may have it differently; the shortest time
    /// of any member of the group counts.
    pub slow: Option<SlowPolicy>,
}

/// Which nodes are in a group.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum GroupMembers {
    /// All that hold data.
    All,
    /// These, as far as they are members of the view.
    Nodes(BTreeSet<NodeId>),
    /// It is split in shards, each with so many replicas: which node has what, the view says.
    Sharded {
        /// How many shards.
        shards: usize,
        /// How many replicas each.
        replicas: usize,
    },
}

impl GroupConfig {
    /// A group of all members that hold data: Atomic, rings of 1 MiB, no state.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            members: GroupMembers::All,
            guarantee: Guarantee::default(),
            topology: Topology::default(),
            ring_bytes: 1 << 20,
            state: false,
            slow: None,
        }
    }

    /// Of these nodes, as far as they are members of the view.
    #[must_use]
    pub fn nodes(mut self, nodes: impl IntoIterator<Item = u32>) -> Self {
        self.members = GroupMembers::Nodes(nodes.into_iter().map(NodeId).collect());
        self
    }

    /// Split in so many shards of so many replicas, laid out over the nodes by the view.
    #[must_use]
    pub fn sharded(mut self, shards: usize, replicas: usize) -> Self {
        self.members = GroupMembers::Sharded { shards, replicas };
        self
    }

    /// When a message is delivered.
    #[must_use]
    pub fn guarantee(mut self, guarantee: Guarantee) -> Self {
        self.guarantee = guarantee;
        self
    }

    /// Which way the bytes of its messages go: [`Topology::Chain`] where messages are large, or a member's link is the bottleneck.
    #[must_use]
    pub fn topology(mut self, topology: Topology) -> Self {
        self.topology = topology;
        self
    }

    /// Bytes of each member's ring, a power of two.
    #[must_use]
    pub fn ring_bytes(mut self, bytes: usize) -> Self {
        self.ring_bytes = bytes;
        self
    }

    /// Whether its application has a state, which who comes gets from a member first (V7).
    #[must_use]
    pub fn state(mut self, state: bool) -> Self {
        self.state = state;
        self
    }

    /// What becomes of a member that stands still in it: its application takes nothing of what is delivered there, or its engine does
    /// nothing at all. If not set, what [`NodeConfig::slow`] says.
    #[must_use]
    pub fn slow(mut self, policy: SlowPolicy) -> Self {
        self.slow = Some(policy);
        self
    }

    /// How many shards it has; one, if it isn't split.
    pub fn shards(&self) -> usize {
        if let GroupMembers::Sharded { shards, .. } = self.members { shards } else { 1 }
    }

    fn spread(&self) -> Spread {
        match &self.members {
            GroupMembers::All => Spread::All,
            GroupMembers::Nodes(nodes) => Spread::Nodes(nodes.iter().copied().collect()),
            GroupMembers::Sharded { replicas, .. } => Spread::Replicas(*replicas),
        }
    }

    /// What is wrong with it: the setting, and what to write instead.
    pub(super) fn first_fault(&self) -> Option<(&'static str, String)> {
        let named = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if self.name.is_empty() || self.name.len() > GROUP_LEN || !self.name.bytes().all(named) {
            let problem = format!(
                "{:?} is no name for a group: take 1 to {GROUP_LEN} letters, digits, '-', '_' or '.'",
                self.name
            );
            return Some(("name", problem));
        }
        if self.name == MAIN {
            return Some(("name", "the main group is there anyway; call this one something else".to_owned()));
        }
        match &self.members {
            GroupMembers::Nodes(nodes) if nodes.is_empty() || nodes.len() > MAX_NODES => {
                Some(("nodes", format!("{} nodes; a group has 1 to {MAX_NODES}", nodes.len())))
            }
            GroupMembers::Nodes(nodes) if nodes.contains(&NodeId(0)) => {
                Some(("nodes", "0 is no node; nodes are numbered from 1".to_owned()))
            }
            GroupMembers::Sharded { shards, .. } if *shards == 0 || *shards >= SHARDS => {
                Some(("shards", format!("{shards}; take 1 to {}", SHARDS - 1)))
            }
            GroupMembers::Sharded { replicas, .. } if *replicas == 0 || *replicas > MAX_NODES => {
                Some(("replicas", format!("{replicas}; take 1 to {MAX_NODES}")))
            }
            _ => None,
        }
    }
}

/// As all nodes must have it: the words for where they don't.
impl fmt::Display for GroupConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not `slow`, in which nodes may differ.
        let Self { name, members, guarantee, topology, ring_bytes, state, slow: _ } = self;
        write!(f, "{name}: {members}, {guarantee}, rings of {ring_bytes} bytes")?;
        if *topology != Topology::default() {
            write!(f, ", {topology}")?;
        }
        f.write_str(if *state { ", with a state" } else { "" })
    }
}

impl fmt::Display for GroupMembers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all nodes"),
            Self::Nodes(nodes) => {
                let nodes: Vec<_> = nodes.iter().map(ToString::to_string).collect();
                write!(f, "nodes {}", nodes.join(" "))
            }
            Self::Sharded { shards, replicas } => write!(f, "{shards} shards of {replicas}"),
        }
    }
}

impl NodeConfig {
    /// What all nodes know of the shards, by [`ShardId`](crate::view::ShardId): the main group's, then those of the other groups, in the order of their names.
    pub fn shapes(&self) -> Vec<ShardShape> {
        let mut at = FABRIC_PAGE;
        let mut place = |ring_bytes, guarantee, topology, state, spread| {
            let shape = ShardShape { at, ring_bytes, guarantee, topology, state, spread };
            at += shape.bytes();
            shape
        };
        let mut shapes = vec![place(self.ring_bytes, self.guarantee, self.topology, self.state, Spread::All)];
        for group in self.groups_by_name() {
            for _ in 0..group.shards() {
                let GroupConfig { ring_bytes, guarantee, topology, state, .. } = *group;
                shapes.push(place(ring_bytes, guarantee, topology, state, group.spread()));
            }
        }
        shapes
    }

    /// The groups beside the main one, in the order in which their shards are counted.
    pub fn groups_by_name(&self) -> Vec<&GroupConfig> {
        let mut groups: Vec<_> = self.groups.iter().collect();
        groups.sort_by(|one, other| one.name.cmp(&other.name));
        groups
    }

    /// What people call each shard, by number: its group, and which of its shards it is if there are several.
    pub fn shard_names(&self) -> Vec<String> {
        let mut names = vec![MAIN.to_owned()];
        for group in self.groups_by_name() {
            match group.shards() {
                1 => names.push(group.name.clone()),
                shards => names.extend((0..shards).map(|shard| format!("{}/{shard}", group.name))),
            }
        }
        names
    }

    /// What becomes of who stands still, by shard.
    pub(crate) fn slow_by_shard(&self) -> Vec<SlowPolicy> {
        let of = |group: &GroupConfig| std::iter::repeat_n(group.slow.unwrap_or(self.slow), group.shards());
        std::iter::once(self.slow).chain(self.groups_by_name().into_iter().flat_map(of)).collect()
    }

    /// Bytes that this node's segment needs, for its fabric and all shards.
    pub fn segment_bytes(&self) -> usize {
        self.shapes().last().map_or(FABRIC_PAGE, |last| last.at + last.bytes())
    }

    /// What all nodes must have configured alike, in words, of groups beside the main one; and of that one where it isn't as usual.
    pub(crate) fn groups_in_words(&self) -> String {
        let main = (self.topology != Topology::default()).then(|| format!("{MAIN}: {}", self.topology));
        let all: Vec<_> =
            main.into_iter().chain(self.groups_by_name().iter().map(ToString::to_string)).collect();
        all.join("; ")
    }
}
