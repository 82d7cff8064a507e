//! What all members must agree on before they are a group, and the words for where they don't.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use consort_dataplane::names::NodeId;

use crate::config::NodeConfig;
use crate::link::message::{Hello, Standing};
use crate::view::{Domain, Incarnation, Role, ShardId, ShardShape};

/// What this node takes the group to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Terms {
    /// This node.
    pub me: NodeId,
    /// The cluster's name.
    pub cluster: String,
    /// It joins a group that runs, rather than found one.
    pub joins: bool,
    /// All founders, in ascending order.
    pub members: Vec<NodeId>,
    /// The fabric's name.
    pub fabric: String,
    /// When messages are delivered.
    pub guarantee: String,
    /// Bytes of every member's ring.
    pub ring_bytes: u64,
    /// What is known of every shard; the main group's comes first.
    pub shapes: Arc<[ShardShape]>,
    /// What people call the shards, by number.
    pub names: Vec<String>,
    /// The groups beside the main one, in words, and what stands for them in a hello.
    pub groups: (String, u64),
    /// What this node fails with.
    pub domain: Domain,
}

impl Terms {
    /// As configured.
    pub fn new(config: &NodeConfig) -> Self {
        Self {
            me: config.id,
            cluster: config.cluster.clone(),
            joins: !config.join.is_empty(),
            members: config.members(),
            fabric: config.fabric.clone(),
            guarantee: config.guarantee.to_string(),
            ring_bytes: config.ring_bytes as u64,
            shapes: config.shapes().into(),
            names: config.shard_names(),
            groups: (config.groups_in_words(), stands_for(&config.groups_in_words())),
            domain: config.domain,
        }
    }

    /// Whether there is a shard of that number.
    pub fn has(&self, shard: ShardId) -> bool {
        usize::try_from(shard.0).is_ok_and(|at| at < self.shapes.len())
    }

    /// What people call a shard.
    pub fn name(&self, shard: ShardId) -> &str {
        let at = usize::try_from(shard.0).unwrap_or(usize::MAX);
        self.names.get(at).map_or("no shard", String::as_str)
    }

    /// Whether the main group's application has a state.
    pub fn state(&self) -> bool {
        self.shapes.first().is_some_and(|main| main.state)
    }

    /// Whether who comes to the main group is taught its state before it is a member (V7).
    pub fn is_taught(&self) -> bool {
        self.shapes.first().is_some_and(ShardShape::is_taught)
    }

    /// The durable shards.
    pub fn durable(&self) -> BTreeSet<ShardId> {
        let shapes = (0..).map(ShardId).zip(self.shapes.iter());
        shapes.filter(|(_, shape)| shape.guarantee.durable()).map(|(id, _)| id).collect()
    }

    /// This node's hello.
    pub(super) fn hello(
        &self,
        incarnation: Incarnation,
        engaged: Option<Incarnation>,
        standing: Standing,
        role: Role,
        address: SocketAddr,
        offer: Vec<u8>,
    ) -> Hello {
        Hello {
            cluster: self.cluster.clone(),
            node: self.me,
            incarnation,
            engaged,
            address,
            standing,
            role,
            fabric: self.fabric.clone(),
            guarantee: self.guarantee.clone(),
            ring_bytes: self.ring_bytes,
            state: self.state(),
            domain: self.domain,
            groups: self.groups.1,
            offer,
            held: None,
        }
    }

    /// Names the first difference between this node and who said `hello`, and what to do, in words that fit both
    /// sides. Founders must name the same members; who joins takes the group as it is.
    ///
    /// # Errors
    /// There is one.
    pub fn judge(&self, hello: &Hello, founding: bool) -> Result<(), String> {
        let (me, you) = (self.me, hello.node);
        let differ =
            |what: &str, mine: &dyn std::fmt::Display, yours: &dyn std::fmt::Display, remedy: &str| {
                Err(format!("{what}: node {me} has {mine}, node {you} has {yours}; {remedy}"))
            };
        if hello.cluster != self.cluster {
            let remedy = "nodes of different clusters don't mix: correct the name, or the address";
            return differ("cluster", &quoted(&self.cluster), &quoted(&hello.cluster), remedy);
        }
        if you == me {
            return Err(format!("two nodes call themselves node {me}; give every node an id of its own"));
        }
        if hello.held.as_ref().is_some_and(|held| !held.is_sane()) {
            return Err(format!("node {you} says that it had a view of an impossible number"));
        }
        if let Standing::Founding { members } = &hello.standing
            && founding
            && !self.joins
            && (!self.members.contains(&you)
                || !members.iter().copied().eq(self.members.iter().map(|node| node.0)))
        {
            let (mine, yours) = (list(self.members.iter().map(|node| node.0)), list(members.iter().copied()));
            return differ("members", &mine, &yours, "list the same members at all nodes");
        }
        if hello.fabric != self.fabric {
            let remedy =
                "set the same `fabric` at all nodes; `auto` takes for each link the best that both ends have";
            return differ("fabric", &quoted(&self.fabric), &quoted(&hello.fabric), remedy);
        }
        if hello.guarantee != self.guarantee {
            let remedy = "set the same `guarantee` at all nodes";
            return differ("guarantee", &quoted(&self.guarantee), &quoted(&hello.guarantee), remedy);
        }
        if hello.ring_bytes != self.ring_bytes {
            let remedy = "set the same `ring` at all nodes";
            return differ(
                "ring",
                &format_args!("{} bytes", self.ring_bytes),
                &format_args!("{} bytes", hello.ring_bytes),
                remedy,
            );
        }
        if hello.state != self.state() {
            let remedy = "set the same `state` at all nodes";
            return differ("state", &self.state(), &hello.state, remedy);
        }
        if hello.groups != self.groups.1 {
            let mine = if self.groups.0.is_empty() { "only the main group" } else { &self.groups.0 };
            let remedy = "set the same `[groups]` at all nodes";
            return differ("groups", &quoted(mine), &"others", remedy);
        }
        Ok(())
    }
}

/// A number that differs where the words do.
fn stands_for(words: &str) -> u64 {
    let (number, _) = blake3::hash(words.as_bytes())
        .as_bytes()
        .split_first_chunk()
        .map_or(([0; 8], &[][..]), |(it, rest)| (*it, rest));
    u64::from_le_bytes(number)
}

/// A name that a stranger gave, made fit for a log.
fn quoted(name: &str) -> String {
    format!("{name:?}")
}

fn list(nodes: impl Iterator<Item = u32>) -> String {
    nodes.map(|node| node.to_string()).collect::<Vec<_>>().join(" ")
}
