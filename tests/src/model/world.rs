//! What a small world is like: who is in it, and what may go wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use consort_control::change::{Candidate, Mutant, Trimming, Wishes};
use consort_control::config::{GroupConfig, NodeConfig};
use consort_control::layout;
use consort_control::view::{Domain, Incarnation, Member, Role, ShardId, ShardShape, View};
use consort_dataplane::names::{NodeId, ViewId};
use consort_dataplane::plan::Guarantee;

/// How often each kind of trouble may happen in one run.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Bounds {
    /// Members that crash.
    pub crashes: u8,
    /// Suspicions of members that live. Those of the dead are free.
    pub suspicions: u8,
    /// Ends of a member's patience.
    pub patience: u8,
    /// Messages that get lost.
    pub losses: u8,
    /// Times that a member hears that another can be reached again.
    pub reachable: u8,
    /// Reasons for a change that are nobody's failure.
    pub reasons: u8,
}

impl fmt::Display for Bounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { crashes, suspicions, patience, losses, reachable, reasons } = *self;
        let all = [
            (reasons, "reasons"),
            (crashes, "crashes"),
            (suspicions, "suspicions"),
            (patience, "patience"),
            (losses, "losses"),
            (reachable, "reachable"),
        ];
        let some = all.iter().filter(|(bound, _)| *bound > 0).map(|(bound, of)| format!("{of} {bound}"));
        f.write_str(&some.collect::<Vec<_>>().join(" "))
    }
}

/// A world to look at.
#[derive(Clone, Debug)]
pub struct World {
    /// What it is for.
    pub name: &'static str,
    /// The members, in rank order; member `i` is node `i + 1`.
    pub roles: Vec<Role>,
    /// How trims are found.
    pub trimming: Trimming,
    /// By rank: how much that member has sent to the main group.
    pub sent: Vec<u64>,
    /// Groups beside the main one, by place of their members; the first member of each has sent something. Where there are any, nothing
    /// ends but what must; else the main group's session ends whatever the reason.
    pub shards: Vec<Vec<usize>>,
    /// What may go wrong.
    pub bounds: Bounds,
    /// Members between whom there is no data link.
    pub severed: Vec<(usize, usize)>,
    /// A joiner that takes itself for linked to all, and who of the members is linked to it.
    pub joiner: Option<Vec<usize>>,
    /// Who wants to leave.
    pub leaving: Vec<usize>,
    /// Who has not yet freed the memory that the next view needs.
    pub busy: Vec<usize>,
    /// The rule that all members break.
    pub mutant: Option<Mutant>,
}

impl World {
    /// Three members with data, of which the first has sent something, and no trouble.
    pub fn new(name: &'static str, trimming: Trimming) -> Self {
        Self {
            name,
            roles: vec![Role::Data; 3],
            trimming,
            sent: vec![1],
            shards: Vec::new(),
            bounds: Bounds::default(),
            severed: Vec::new(),
            joiner: None,
            leaving: Vec::new(),
            busy: Vec::new(),
            mutant: None,
        }
    }

    /// The same with other bounds.
    #[must_use]
    pub fn within(self, bounds: Bounds) -> Self {
        Self { bounds, ..self }
    }

    /// The same, but all members break a rule.
    #[must_use]
    pub fn breaking(self, mutant: Mutant) -> Self {
        Self { mutant: Some(mutant), ..self }
    }

    pub(super) fn member(&self, at: usize) -> Member {
        let role = self.roles.get(at).copied().unwrap_or(Role::Data);
        let address = ([10, 0, 0, 1], 7101).into();
        let (incarnation, domain) = (Incarnation(at as u64 + 1), Domain::default());
        Member { node: node(at), incarnation, address, role, domain }
    }

    pub(super) fn view(&self) -> View {
        let members: Vec<_> = (0..self.roles.len()).map(|at| self.member(at)).collect();
        let shapes = self.shapes();
        let before = View { id: ViewId(0), members: Vec::new(), shards: layout::none(&shapes) };
        let shards = layout::next(&shapes, &before, &members, &BTreeSet::new(), &BTreeSet::new());
        View { id: ViewId(1), members, shards }
    }

    pub(super) fn shapes(&self) -> Arc<[ShardShape]> {
        let mut config = NodeConfig::new(NodeId(1));
        config.guarantee = match self.trimming {
            Trimming::Least => Guarantee::Atomic,
            Trimming::Greatest => Guarantee::Agreed,
        };
        for (members, name) in self.shards.iter().zip('a'..) {
            let nodes = members.iter().map(|at| node(*at).0);
            let group = GroupConfig::new(&name.to_string()).nodes(nodes).guarantee(config.guarantee);
            config.groups.push(group);
        }
        config.shapes().into()
    }

    /// The sessions that end in any case.
    pub(super) fn ending(&self) -> BTreeSet<ShardId> {
        if self.shards.is_empty() { [ShardId::MAIN].into() } else { BTreeSet::new() }
    }

    /// The shards that the member in place `at` is in, and by rank the places of their members.
    pub(super) fn shards_of(&self, at: usize) -> BTreeMap<ShardId, Vec<usize>> {
        let view = self.view();
        let mine = view.shards().filter(|(_, shard)| shard.members.contains(&node(at)));
        mine.map(|(id, shard)| (id, shard.members.iter().map(|it| place(*it)).collect())).collect()
    }

    pub(super) fn wishes(&self) -> Wishes {
        let members = (0..self.roles.len()).map(|at| self.member(at).incarnation);
        let candidate =
            Candidate { member: self.member(self.roles.len()), linked: members.collect(), source: None };
        let joining = self.joiner.iter().map(|_| candidate.clone()).collect();
        let leaving = self.leaving.iter().map(|at| node(*at)).collect();
        Wishes { joining, leaving, ready: BTreeSet::new() }
    }

    pub(super) fn is_data(&self, at: usize) -> bool {
        self.roles.get(at) == Some(&Role::Data)
    }

    pub(super) fn has_link(&self, one: usize, other: usize) -> bool {
        !self.severed.contains(&(one, other)) && !self.severed.contains(&(other, one))
    }

    /// How much the member of that rank has sent in a shard.
    fn sent(&self, shard: ShardId, rank: usize) -> u64 {
        match shard {
            ShardId::MAIN => self.sent.get(rank).copied().unwrap_or(0),
            _ => u64::from(rank == 0),
        }
    }

    /// The rings, by shard and rank, as the member in place `at` has them when nothing has arrived yet.
    pub(super) fn begun(&self, at: usize) -> Received {
        let rings = |(shard, members): (ShardId, Vec<usize>)| {
            let sent = |(rank, owner): (usize, &usize)| if *owner == at { self.sent(shard, rank) } else { 0 };
            (shard, members.iter().enumerate().map(sent).collect())
        };
        self.shards_of(at).into_iter().map(rings).collect()
    }

    /// How much the member in place `at` may have received of the ring of a rank in a shard.
    pub(super) fn most(&self, at: usize, shard: ShardId, rank: usize) -> u64 {
        let owner = self.shards_of(at).get(&shard).and_then(|members| members.get(rank)).copied();
        let linked = owner.is_some_and(|owner| owner == at || self.has_link(at, owner));
        if linked { self.sent(shard, rank) } else { 0 }
    }
}

/// How much has been received of every ring, by shard and rank.
pub(super) type Received = BTreeMap<ShardId, Vec<u64>>;

pub(super) fn node(at: usize) -> NodeId {
    NodeId(at as u32 + 1)
}

pub(super) fn place(node: NodeId) -> usize {
    node.0 as usize - 1
}
