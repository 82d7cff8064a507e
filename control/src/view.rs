//! [`View`]: an agreed, immutable membership (V1). A value: it is made once, compared, sent and printed, and never
//! changed. Sessions start from one ([`View::plan`]); where views come from is [`crate::membership`]'s business alone.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

use consort_dataplane::names::{NodeId, Rank, Slot, ViewId};
use consort_dataplane::plan::{self, Guarantee, SessionPlan};
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

/// A group's number within its cluster. For now there is one group, [`GroupId::MAIN`], of all members that hold data.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct GroupId(pub u32);

impl GroupId {
    /// The group of all members that hold data.
    pub const MAIN: Self = Self(0);
}

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
}

/// An agreed, immutable membership. See the [module](self).
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct View {
    /// Its number; a later view has a greater one.
    #[serde(with = "view_id")]
    pub id: ViewId,
    /// Who belongs to it, in rank order.
    pub members: Vec<Member>,
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

    /// What `me`'s session of this view starts from, given the slots of its links. `None` if `me` holds no data in the
    /// view. A member whose link is gone is one that says nothing: the view after this will be without it.
    pub fn plan(
        &self,
        me: NodeId,
        slots: &BTreeMap<NodeId, Slot>,
        session: &SessionShape,
    ) -> Option<SessionPlan> {
        let members = self.data().map(|member| {
            let slot = if member.node == me { None } else { slots.get(&member.node).copied() };
            // V10: in every member's segment the view's session lies in the same one of two places.
            let base = SessionPlan::base(self.id, session.ring_bytes);
            plan::Member { node: member.node, slot, base }
        });
        Some(SessionPlan {
            view: self.id,
            members: members.collect(),
            me: self.rank_of(me)?,
            ring_bytes: session.ring_bytes,
            guarantee: session.guarantee,
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

/// What all members of a session must have in common beside the view.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SessionShape {
    /// Bytes of every member's ring.
    pub ring_bytes: usize,
    /// What delivery promises.
    pub guarantee: Guarantee,
}

impl SessionShape {
    /// Bytes that a node's segment needs for its fabric, its session, and the session of the next view (V10).
    pub const fn segment_bytes(&self) -> usize {
        SessionPlan::segment_bytes(self.ring_bytes)
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
        });
        View { id: ViewId(1), members: members.collect() }
    }

    // V1
    #[test]
    fn two_majorities_always_share_a_voter() {
        for n in 1..=9 {
            let view = view(&vec![Role::Data; n]);
            assert!(2 * view.majority() > n && view.majority() <= n, "{n}");
        }
    }

    // V6
    #[test]
    fn a_witness_votes_and_has_no_rank() {
        let view = view(&[Role::Data, Role::Witness, Role::Data]);
        assert_eq!(view.majority(), 2);
        assert_eq!(view.rank_of(NodeId(2)), None);
        assert_eq!(view.rank_of(NodeId(3)), Some(Rank(1)));
        let slots = [(NodeId(1), Slot(0)), (NodeId(2), Slot(1))].into();
        let shape = SessionShape { ring_bytes: 1 << 16, guarantee: Guarantee::Atomic };
        let plan = view.plan(NodeId(3), &slots, &shape).unwrap();
        assert_eq!(plan.check(), Ok(()));
        assert_eq!((plan.me, plan.members.len()), (Rank(1), 2));
        assert_eq!(view.plan(NodeId(2), &slots, &shape), None, "a witness runs no session");
        let lost = view.plan(NodeId(1), &BTreeMap::new(), &shape).unwrap();
        assert_eq!((lost.check(), lost.members[1].slot), (Ok(()), None), "the link to node 3 is gone");
    }

    #[test]
    fn it_prints_who_and_which_life() {
        assert_eq!(view(&[Role::Data; 2]).to_string(), "view 1 of 1/00000001 2/00000002");
    }
}
