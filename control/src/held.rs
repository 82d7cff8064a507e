//! [`Held`]: what a node has on disk from an earlier life, as it tells the others before there is a group; and what follows from all of
//! their words when a group whose members were all lost begins again (P3). Values and pure functions.
//!
//! # Why nothing is lost
//! What was reported as durable in view k is in the log of every member of the shard in that view, behind the view itself. View k+1 has a majority of
//! view k's members among its own, and nothing is durable in it before all of these have it in their logs. So any majority of the members of the
//! newest view that *it* knows of either knows of a newer one, or there is none that matters; and each of its members has everything that is durable.
//! What one has more than another is the ragged edge: it was reported by nobody.
//!
//! A log that is blank, or that lacks something that it once had, says nothing about that: it counts for no majority, and is made whole from the
//! others.

use std::collections::{BTreeMap, BTreeSet};

use consort_dataplane::names::NodeId;
use serde::{Deserialize, Serialize};

use crate::view::{Member, ShardId, View};

/// What a node has on disk.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Held {
    /// The last view that it installed.
    pub view: View,
    /// Its logs have everything that they ever had.
    pub sound: bool,
    /// How far the logs of the durable shards are.
    pub tips: Vec<HeldTip>,
}

/// How far a shard's log is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct HeldTip {
    /// Which shard.
    pub shard: ShardId,
    /// The view of the last record.
    pub view: u64,
    /// The last record; 0 if there is none.
    pub index: u64,
    /// The chain behind it.
    pub chain: u32,
}

impl Held {
    /// How far the log of a shard is: the view of its last record, and its index.
    pub fn tip(&self, shard: ShardId) -> (u64, u64) {
        self.tips.iter().find(|tip| tip.shard == shard).map_or((0, 0), |tip| (tip.view, tip.index))
    }
}

/// What the group that is to begin again follows on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Restart {
    /// The newest view that any of them was in.
    pub newest: View,
    /// Its members that are needed yet, and why each doesn't count so far.
    pub lacks: Vec<(NodeId, &'static str)>,
    /// A majority of its members is there, and of each durable shard somebody.
    pub is_enough: bool,
}

/// What follows from what these nodes hold, of which `durable` are the durable shards; none if no one of them was ever in a view.
pub fn restart(all: &BTreeMap<NodeId, Option<&Held>>, durable: &BTreeSet<ShardId>) -> Option<Restart> {
    let newest = all.values().flatten().map(|held| &held.view).max_by_key(|view| view.id)?.clone();
    let why = |node: &NodeId| match all.get(node) {
        None => Some("it is not here"),
        Some(None) => Some("its log is blank"),
        Some(Some(held)) if !held.sound => Some("its log lacks something"),
        Some(Some(_)) => None,
    };
    let counts = |node: &NodeId| why(node).is_none();
    let present = newest.members.iter().filter(|member| counts(&member.node)).count();
    let is_had = |(id, shard): (ShardId, &crate::view::Shard)| {
        !durable.contains(&id) || shard.members.is_empty() || shard.members.iter().any(counts)
    };
    let is_enough = present >= newest.majority() && newest.shards().all(is_had);
    let lacks = newest.members.iter().filter_map(|member| Some((member.node, why(&member.node)?)));
    Some(Restart { lacks: lacks.collect(), is_enough, newest })
}

impl Restart {
    /// The view from which the first one follows: the newest, with the lives that its members have now. Shards that are not durable begin anew.
    pub fn before(&self, members: &[Member], durable: &BTreeSet<ShardId>) -> View {
        let mut before = self.newest.clone();
        for member in &mut before.members {
            if let Some(now) = members.iter().find(|now| now.node == member.node) {
                *member = *now;
            }
        }
        for (id, shard) in (0..).map(ShardId).zip(&mut before.shards) {
            if !durable.contains(&id) {
                *shard = crate::view::Shard::default();
            }
            shard.learners.clear();
        }
        before
    }
}

/// The members of a shard whose log is the longest: whose word it is.
pub fn longest(all: &BTreeMap<NodeId, Option<&Held>>, shard: ShardId, members: &[NodeId]) -> Vec<NodeId> {
    let sound = members.iter().filter_map(|node| Some((*node, (*all.get(node)?)?)));
    let tips: Vec<_> =
        sound.filter(|(_, held)| held.sound).map(|(node, held)| (node, held.tip(shard))).collect();
    let most = tips.iter().map(|(_, tip)| *tip).max().unwrap_or_default();
    if most == (0, 0) {
        return members.to_vec();
    }
    tips.into_iter().filter(|(_, tip)| *tip == most).map(|(node, _)| node).collect()
}

#[cfg(test)]
mod tests {
    use consort_dataplane::names::ViewId;

    use super::*;
    use crate::view::{Domain, Incarnation, Role};

    fn view(id: u64, nodes: &[u32]) -> View {
        let members = nodes.iter().map(|node| Member {
            node: NodeId(*node),
            incarnation: Incarnation(u64::from(*node)),
            address: ([127, 0, 0, 1], 7100).into(),
            role: Role::Data,
            domain: Domain::default(),
        });
        View::of(ViewId(id), members.collect())
    }

    fn held(id: u64, nodes: &[u32], index: u64, sound: bool) -> Held {
        let tips = vec![HeldTip { shard: ShardId::MAIN, view: id, index, chain: 7 }];
        Held { view: view(id, nodes), sound, tips }
    }

    /// The newest view, whether enough are there, and what is lacking.
    type Told = (u64, bool, Vec<(u32, &'static str)>);

    fn told(all: &[(u32, Option<Held>)]) -> Option<Told> {
        let all: BTreeMap<_, _> = all.iter().map(|(node, held)| (NodeId(*node), held.as_ref())).collect();
        let restart = restart(&all, &[ShardId::MAIN].into())?;
        let lacks = restart.lacks.into_iter().map(|(node, why)| (node.0, why)).collect();
        Some((restart.newest.id.0, restart.is_enough, lacks))
    }

    // P3
    #[test]
    fn a_majority_of_the_newest_view_is_needed() {
        let full = |id, index| Some(held(id, &[1, 2, 3], index, true));
        assert_eq!(told(&[(1, None), (2, None)]), None, "nobody was ever in a view");
        assert_eq!(
            told(&[(1, full(4, 9))]),
            Some((4, false, vec![(2, "it is not here"), (3, "it is not here")]))
        );
        assert_eq!(told(&[(1, full(4, 9)), (2, full(4, 8))]), Some((4, true, vec![(3, "it is not here")])));
        // One that hadn't got the newest view yet is one of its members all the same.
        assert!(told(&[(1, full(4, 9)), (2, full(3, 8))]).unwrap().1);
        let blank = told(&[(1, full(4, 9)), (2, None), (3, None)]).unwrap();
        assert_eq!(blank, (4, false, vec![(2, "its log is blank"), (3, "its log is blank")]));
        let damaged = told(&[(1, full(4, 9)), (2, Some(held(4, &[1, 2, 3], 2, false)))]).unwrap();
        assert_eq!(damaged, (4, false, vec![(2, "its log lacks something"), (3, "it is not here")]));
    }

    // P3
    #[test]
    fn who_was_left_out_brings_nothing_back() {
        let old = || Some(held(2, &[1, 2, 3], 500, true));
        let new = || Some(held(3, &[1, 2], 90, true));
        assert!(!told(&[(3, old()), (1, new())]).unwrap().1, "the evicted one is no voter of view 3");
        let all = [(1, new()), (2, new()), (3, old())];
        assert_eq!(told(&all), Some((3, true, vec![])));
        // Alone with others of its kind it would be a majority of what it knows, if there were another.
        assert_eq!(told(&[(3, old())]), Some((2, false, vec![(1, "it is not here"), (2, "it is not here")])));
    }

    #[test]
    fn the_longest_log_is_the_one_to_have() {
        let (one, two, three) =
            (held(4, &[1, 2, 3], 9, true), held(4, &[1, 2, 3], 12, true), held(4, &[1, 2, 3], 99, false));
        let all =
            [(NodeId(1), Some(&one)), (NodeId(2), Some(&two)), (NodeId(3), Some(&three)), (NodeId(4), None)];
        let nodes = all.map(|(node, _)| node);
        assert_eq!(
            longest(&all.into(), ShardId::MAIN, &nodes),
            [NodeId(2)],
            "one that lacks something doesn't count"
        );
        let (old, new) = (held(2, &[1, 2, 3], 500, true), held(3, &[1, 2], 90, true));
        let all = [(NodeId(1), Some(&new)), (NodeId(3), Some(&old))];
        assert_eq!(longest(&all.into(), ShardId::MAIN, &nodes), [NodeId(1)], "a later view's, however short");
        let fresh = [(NodeId(1), None), (NodeId(2), None)];
        assert_eq!(longest(&fresh.into(), ShardId::MAIN, &nodes[..2]), nodes[..2]);
    }
}
