//! [`View`]: an agreed, immutable membership (V1). A value: it is made once, compared, sent and printed, and never
//! changed. Sessions start from one ([`View::plan`]); where views come from is [`crate::membership`]'s business alone.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

use consort_dataplane::names::{NodeId, Rank, Slot, ViewId};
use consort_dataplane::plan::{self, Guarantee, SessionPlan, Topology};
use serde::{Deserialize, Serialize};

/// One start of a node. A node that comes back after a crash is another incarnation: it shares nothing with the old
/// one but its name, and no vote of the old one counts as its own (V1). Drawn at random, so that nobody has to
/// remember the last one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Incarnation(pub u64);

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0 >> 32) // enough to tell two apart in a log
    }
}

impl fmt::Debug for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "i{self}")
    }
}

/// A shard's number within its cluster: the shards of all groups are counted through, in the order in which the configuration has
/// them, the same at all nodes. A group that isn't split has one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct ShardId(pub u32);

impl ShardId {
    /// The main group's: all members that hold data.
    pub const MAIN: Self = Self(0);
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// What fails together: a rack, a host, a zone. Replicas of a shard are spread over as many as there are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Domain([u8; Self::LEN]);

impl Domain {
    /// The longest name, in bytes.
    pub const LEN: usize = 16;

    /// The domain of that name; an empty one is none, and then a node is a domain of its own.
    ///
    /// # Errors
    /// The name is too long, or has a character in it that can't be read.
    pub fn new(name: &str) -> Result<Self, BadDomain> {
        let mut bytes = [0; Self::LEN];
        let fits = name.len() <= Self::LEN && name.bytes().all(|byte| byte.is_ascii_graphic());
        let place = bytes.get_mut(..name.len()).filter(|_| fits).ok_or_else(|| BadDomain(name.to_owned()))?;
        place.copy_from_slice(name.as_bytes());
        Ok(Self(bytes))
    }

    /// Whether none was declared.
    pub fn is_none(&self) -> bool {
        self.0[0] == 0
    }
}

impl std::str::FromStr for Domain {
    type Err = BadDomain;

    fn from_str(name: &str) -> Result<Self, BadDomain> {
        Self::new(name)
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A peer may have sent anything (S1).
        let bytes = self.0.iter().copied().take_while(u8::is_ascii_graphic);
        f.write_str(&bytes.map(char::from).collect::<String>())
    }
}

impl fmt::Debug for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Domain({self})")
    }
}

/// That can't be a domain's name.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?} is no failure domain: take 1 to 16 printable characters without blanks")]
pub struct BadDomain(String);

/// What a member does in a view.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Role {
    /// Holds data and votes.
    Data,
    /// Votes only (V6): it is in no session.
    Witness,
}

/// No role is called that.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("no role is called {0:?}; take data or witness")]
pub struct UnknownRole(String);

impl std::str::FromStr for Role {
    type Err = UnknownRole;

    fn from_str(name: &str) -> Result<Self, UnknownRole> {
        match name {
            "data" => Ok(Self::Data),
            "witness" => Ok(Self::Witness),
            _ => Err(UnknownRole(name.to_owned())),
        }
    }
}

/// A member of a view.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Member {
    /// Its name.
    #[serde(with = "node_id")]
    pub node: NodeId,
    /// Which of its lives.
    pub incarnation: Incarnation,
    /// Where its control links are to be dialled.
    pub address: SocketAddr,
    /// What it does.
    pub role: Role,
    /// What it fails with.
    pub domain: Domain,
}

/// A shard of a group in a view: who has it, and which session is its.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Shard {
    /// Its members, in rank order. None, if it was lost with the last of them, or there was never a node to put it on.
    #[serde(with = "node_ids")]
    pub members: Vec<NodeId>,
    /// Members of the view that get its state, to become members of it then (V7).
    #[serde(with = "node_ids")]
    pub learners: Vec<NodeId>,
    /// The view with which its session began. As long as this stays the session goes on: the views between don't touch it.
    #[serde(with = "view_id")]
    pub since: ViewId,
    /// In which of its two places in the segments the session lies: each has the other than the one before (V10).
    pub second: bool,
}

impl Shard {
    /// Whether it once had members and has none any more: its state is gone.
    pub fn is_lost(&self) -> bool {
        self.members.is_empty() && self.since != ViewId(0)
    }

    /// The rank of `node` among its members.
    pub fn rank_of(&self, node: NodeId) -> Option<Rank> {
        let rank = self.members.iter().position(|member| *member == node)?;
        u8::try_from(rank).ok().map(Rank)
    }
}

/// An agreed, immutable membership. See the [module](self).
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct View {
    /// Its number; a later view has a greater one.
    #[serde(with = "view_id")]
    pub id: ViewId,
    /// Who belongs to it, in rank order.
    pub members: Vec<Member>,
    /// Who has which shard, by [`ShardId`].
    pub shards: Vec<Shard>,
}

impl View {
    /// How many voters make a majority (V1). Any two majorities share a voter.
    pub fn majority(&self) -> usize {
        self.members.len() / 2 + 1
    }

    /// The member called `node`.
    pub fn member(&self, node: NodeId) -> Option<&Member> {
        self.members.iter().find(|m| m.node == node)
    }

    /// The rank of `node` among the members that hold data; `None` if it isn't one of them.
    pub fn rank_of(&self, node: NodeId) -> Option<Rank> {
        let rank = self.data().position(|m| m.node == node)?;
        u8::try_from(rank).ok().map(Rank)
    }

    /// The members that hold data, in rank order.
    pub fn data(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|m| m.role == Role::Data)
    }

    /// The names of the members, in rank order.
    pub fn nodes(&self) -> Vec<NodeId> {
        self.members.iter().map(|m| m.node).collect()
    }

    /// A view where there is only the main group, whose session begins with it.
    pub fn of(id: ViewId, members: Vec<Member>) -> Self {
        let data = members.iter().filter(|member| member.role == Role::Data);
        let main = Shard {
            members: data.map(|member| member.node).collect(),
            learners: Vec::new(),
            since: id,
            second: id.0 % 2 == 1,
        };
        Self { id, members, shards: vec![main] }
    }

    /// One shard.
    pub fn shard(&self, id: ShardId) -> Option<&Shard> {
        self.shards.get(usize::try_from(id.0).ok()?)
    }

    /// All shards, with their numbers.
    pub fn shards(&self) -> impl Iterator<Item = (ShardId, &Shard)> {
        (0..).map(ShardId).zip(&self.shards)
    }

    /// What `me`'s session of a shard starts from, given the slots of its links. `None` if `me` isn't one of its members.
    /// A member whose link is gone is one that says nothing: the view after this will be without it.
    pub fn plan(
        &self,
        shard: &Shard,
        me: NodeId,
        slots: &BTreeMap<NodeId, Slot>,
        shape: &ShardShape,
    ) -> Option<SessionPlan> {
        let members = shard.members.iter().map(|node| {
            let slot = if *node == me { None } else { slots.get(node).copied() };
            // V10: in every member's segment the session lies in the same one of two places.
            plan::Member { node: *node, slot, base: shape.base(shard.second) }
        });
        Some(SessionPlan {
            view: shard.since,
            members: members.collect(),
            me: shard.rank_of(me)?,
            ring_bytes: shape.ring_bytes,
            guarantee: shape.guarantee,
            topology: shape.topology,
        })
    }
}

impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "view {} of", self.id)?;
        for member in &self.members {
            write!(f, " {}/{}", member.node, member.incarnation)?;
        }
        Ok(())
    }
}

/// Which nodes are to have a shard.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Spread {
    /// All that hold data.
    All,
    /// These, as far as they are members.
    Nodes(Vec<NodeId>),
    /// So many, wherever there is room.
    Replicas(usize),
}

/// What all nodes know of a shard, whatever the view.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ShardShape {
    /// Where its memory begins in every segment, in bytes.
    pub at: usize,
    /// Bytes of every member's ring.
    pub ring_bytes: usize,
    /// What delivery promises.
    pub guarantee: Guarantee,
    /// Which way the rings' bytes go.
    pub topology: Topology,
    /// Its application has a state: who comes has to get it first (V7), or, where the log tells it, snapshots bound that (P4).
    pub state: bool,
    /// Who is to have it.
    pub spread: Spread,
}

impl ShardShape {
    /// Whether who comes is taught the state by a member before it is one (V7). Where there are logs these tell it.
    pub const fn is_taught(&self) -> bool {
        self.state && !self.guarantee.durable()
    }

    /// Bytes of a segment that it takes: its session, and the one that comes after (V10).
    pub const fn bytes(&self) -> usize {
        SessionPlan::REGIONS * SessionPlan::region_bytes(self.ring_bytes)
    }

    /// Where the session in its first or second place lies.
    pub const fn base(&self, second: bool) -> usize {
        self.at + second as usize * SessionPlan::region_bytes(self.ring_bytes)
    }

    /// All of the session in its first or second place.
    pub const fn region(&self, second: bool) -> std::ops::Range<usize> {
        let base = self.base(second);
        base..base + SessionPlan::region_bytes(self.ring_bytes)
    }
}

/// The data plane's vocabulary knows no wire; these are its forms on it.
macro_rules! as_number {
    ($module:ident, $name:ident, $number:ty) => {
        pub(crate) mod $module {
            use super::$name;
            use serde::{Deserialize, Deserializer, Serialize, Serializer};

            pub(crate) fn serialize<S: Serializer>(value: &$name, to: S) -> Result<S::Ok, S::Error> {
                value.0.serialize(to)
            }

            pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<$name, D::Error> {
                <$number>::deserialize(from).map($name)
            }
        }
    };
}
as_number!(node_id, NodeId, u32);
as_number!(view_id, ViewId, u64);

/// The same for several nodes.
pub(crate) mod node_ids {
    use super::NodeId;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(nodes: &[NodeId], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(nodes.iter().map(|node| node.0))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<NodeId>, D::Error> {
        Ok(Vec::<u32>::deserialize(from)?.into_iter().map(NodeId).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(roles: &[Role]) -> View {
        let members = roles.iter().zip(1..).map(|(role, node)| Member {
            node: NodeId(node),
            incarnation: Incarnation(u64::from(node) << 32),
            address: ([127, 0, 0, 1], 7100).into(),
            role: *role,
            domain: Domain::default(),
        });
        View::of(ViewId(1), members.collect())
    }

    // V1
    #[test]
    fn two_majorities_always_share_a_voter() {
        for n in 1..=9 {
            let view = view(&vec![Role::Data; n]);
            assert!(2 * view.majority() > n && view.majority() <= n, "{n}");
        }
    }

    // V6, V10
    #[test]
    fn a_session_starts_from_its_shard() {
        let view = view(&[Role::Data, Role::Witness, Role::Data]);
        assert_eq!(view.majority(), 2);
        assert_eq!(view.rank_of(NodeId(2)), None);
        assert_eq!(view.rank_of(NodeId(3)), Some(Rank(1)));
        let slots = [(NodeId(1), Slot(0)), (NodeId(2), Slot(1))].into();
        let shape = ShardShape {
            at: 8192,
            ring_bytes: 1 << 16,
            guarantee: Guarantee::Atomic,
            topology: Topology::Direct,
            state: false,
            spread: Spread::All,
        };
        let members = vec![NodeId(1), NodeId(3)];
        let shard = Shard { members, learners: Vec::new(), since: ViewId(1), second: true };
        let plan = view.plan(&shard, NodeId(3), &slots, &shape).unwrap();
        assert_eq!(plan.check(), Ok(()));
        assert_eq!((plan.me, plan.members.len(), plan.view), (Rank(1), 2, ViewId(1)));
        assert_eq!(plan.members[0].base, 8192 + SessionPlan::region_bytes(1 << 16));
        assert_eq!(shape.region(true).end, shape.at + shape.bytes());
        assert_eq!(view.plan(&shard, NodeId(2), &slots, &shape), None, "a witness runs no session");
        let lost = view.plan(&shard, NodeId(1), &BTreeMap::new(), &shape).unwrap();
        assert_eq!((lost.check(), lost.members[1].slot), (Ok(()), None), "the link to node 3 is gone");
    }

    #[test]
    fn a_domain_has_a_name_that_can_be_read() {
        assert_eq!(Domain::new("rack-1").unwrap().to_string(), "rack-1");
        assert!(Domain::new("").unwrap().is_none() && !Domain::new("a").unwrap().is_none());
        for bad in ["a name of more than sixteen", "a b", "é"] {
            assert!(Domain::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn it_prints_who_and_which_life() {
        assert_eq!(view(&[Role::Data; 2]).to_string(), "view 1 of 1/00000001 2/00000002");
    }
}
