//! [`Held`]: what a node has on disk from an earlier life, as it tells the others before there is a group; and what follows from all of
//! their words when a group whose members were all lost begins again (P3). Values and pure functions.
//!
//! # What is on disk, and when
//! - The view that a node agrees to have next is *noted* before it says so: a vote for it (V1), or that it is ready for the first one. So among any
//!   majority of a view's members somebody has noted its successor, if it has one. With a first view the one that it follows is noted: whoever heard of
//!   that from others, and agreed to go on behind it, must not forget it. Nor may one be forgotten because it looks void: others may go on behind it.
//! - The view that is installed replaces it. Nothing of a session counts as durable before all its members have on disk the view with which it began, and
//!   all that the sessions before it left. If they can't come to that any more, because the view ends, the last messages of the session before are durable
//!   for a member when it has them so itself, and so have all others that it can reach. Whoever goes on to the next view has them, too (V10).
//!
//! # Why nothing is lost
//! A view is *void* if half of its members are here, and all of those of each durable shard whose session begins with it, who don't have it installed. Then
//! it has no successor, which would take one of these, who would have installed it before; and nothing was durable because of it, which would take one, too.
//! The group begins again behind the newest view that is not void. Of its members a majority is needed: who had a part in its successor would be among
//! them, and two groups can't both have one.
//!
//! Of each durable shard a log is needed in which is everything. That of a member that has begun the session is one. If no such member is here, all of the
//! session's members must be here: then nothing was durable because of it, and the longest log of those that go on from the session before has what was
//! durable before. What one has more than another is the ragged edge, which was reported by nobody.
//!
//! A log that is being fetched begins no session before all of that is there, so it needs no mark. A disk that is blank says nothing about what its node agreed
//! to: it counts for nothing. A log that lacks something that it once had doesn't tell what the shard had; its node knows its views all the same. Where all of a
//! session's members have to be here, it does for one of them if it lost that before the session was made: it has told nobody anything since that isn't in
//! the logs of those who have come as far as it had.

use std::collections::{BTreeMap, BTreeSet};

use consort_dataplane::names::{NodeId, ViewId};
use serde::{Deserialize, Serialize};

use crate::view::{Member, Shard, ShardId, View, view_id};

/// What a node has on disk.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Held {
    /// The last view that it installed.
    pub view: View,
    /// The one that this followed; those between were void when it was made.
    #[serde(with = "view_id")]
    pub behind: ViewId,
    /// Those that it agreed to have after that, and those that first views among them were to follow.
    pub next: Vec<View>,
    /// The logs of the durable shards.
    pub tips: Vec<HeldTip>,
}

/// How far a shard's log is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HeldTip {
    /// Which shard.
    pub shard: ShardId,
    /// The view of the last record.
    pub view: u64,
    /// The last record; 0 if there is none.
    pub index: u64,
    /// The chain behind it.
    pub chain: u32,
    /// Something that it had is gone: the last view that its node had installed when that was found.
    pub damaged: Option<u64>,
}

/// The largest number of a view that is believed in (S1): who counts up from there never comes to the end.
const MOST: u64 = u64::MAX / 2;

impl Held {
    /// Whether a node can have this.
    pub fn is_sane(&self) -> bool {
        let views = [&self.view].into_iter().chain(&self.next);
        views.map(|view| view.id.0).chain(self.tips.iter().map(|tip| tip.view)).all(|id| id <= MOST)
    }

    fn tip(&self, shard: ShardId) -> Option<&HeldTip> {
        self.tips.iter().find(|tip| tip.shard == shard)
    }

    /// The log of a shard that this node was a member of, if nothing that it had is gone.
    fn sound(&self, shard: ShardId, me: NodeId) -> Option<&HeldTip> {
        let is_member = self.view.shard(shard).is_some_and(|shard| shard.members.contains(&me));
        self.tip(shard).filter(|tip| is_member && tip.damaged.is_none())
    }
}

/// What nodes hold, and those who hold nothing.
pub type Holds<'a> = BTreeMap<NodeId, Option<&'a Held>>;

/// What the group that is to begin again follows on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Restart {
    /// The newest view that counts.
    pub newest: View,
    /// The first view is numbered behind this.
    pub after: ViewId,
    /// Members that are needed yet, and why each doesn't count so far.
    pub lacks: Vec<(NodeId, &'static str)>,
    /// A majority of its members is there, and of each durable shard a log that has everything.
    pub is_enough: bool,
}

/// What a node's logs are worth with which a group begins again.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Logs {
    /// The view that its first one follows.
    pub behind: Option<ViewId>,
    /// The durable shards of which nobody has more.
    pub level: Vec<ShardId>,
}

/// What follows from what these nodes hold, of which `durable` are the durable shards; none if no one of them was ever in a view.
pub fn restart(all: &Holds<'_>, durable: &BTreeSet<ShardId>) -> Option<Restart> {
    let helds = || all.values().flatten();
    let known = || helds().flat_map(|held| [&held.view].into_iter().chain(&held.next));
    let most =
        known().map(|view| view.id.0).chain(helds().flat_map(|held| &held.tips).map(|tip| tip.view)).max();
    // What somebody agreed to, and others did not: they have another view of that number, or one that was made when it was void.
    let came_to_nothing = |view: &View| {
        helds().any(|held| {
            held.view.id == view.id && held.view != *view || held.behind < view.id && view.id < held.view.id
        })
    };
    // The last have left: it goes on behind the view before.
    let is_end = |view: &View| view.members.is_empty() && view.id != ViewId(0);
    let mut views: Vec<_> = known().filter(|view| !is_end(view) && !came_to_nothing(view)).collect();
    views.sort_by_key(|view| view.id);
    // If all are void nobody had anything; the oldest does as well as any. So does none, if nobody here was ever in one: where all are here
    // who are to found the group, nobody else has anything either.
    let none = views.first().filter(|_| helds().all(|held| held.view.members.is_empty()));
    let newest = none.or(views.iter().rev().find(|view| !is_void(all, view, durable))).or(views.first())?;
    let mut lacks = BTreeMap::new();
    let mut present = 0;
    for member in &newest.members {
        match all.get(&member.node) {
            None => _ = lacks.insert(member.node, "it is not here"),
            Some(None) => _ = lacks.insert(member.node, "its disk is blank"),
            Some(Some(_)) => present += 1,
        }
    }
    let mut is_enough = present >= newest.majority();
    for (id, shard) in newest.shards().filter(|(id, _)| durable.contains(id)) {
        if !is_had(all, id, shard) {
            is_enough = false;
            for node in &shard.members {
                lacks.entry(*node).or_insert("its log is not known to have everything");
            }
        }
    }
    let after = ViewId(most.unwrap_or_default());
    Some(Restart { newest: (*newest).clone(), after, lacks: lacks.into_iter().collect(), is_enough })
}

/// Whether enough are here who don't have a view for it to have left nothing that counts.
fn is_void(all: &Holds<'_>, view: &View, durable: &BTreeSet<ShardId>) -> bool {
    let is_without =
        |node: &NodeId| all.get(node).copied().flatten().is_some_and(|held| held.view.id < view.id);
    let begins = |(id, shard): &(ShardId, &Shard)| durable.contains(id) && shard.since == view.id;
    let nodes = view.nodes();
    2 * nodes.iter().filter(|node| is_without(node)).count() >= nodes.len()
        && view.shards().filter(begins).all(|(_, shard)| shard.members.iter().all(is_without))
}

/// Whether a log is here in which is everything that was durable in a shard.
fn is_had(all: &Holds<'_>, id: ShardId, shard: &Shard) -> bool {
    let members = || shard.members.iter().filter_map(|node| Some((*node, (*all.get(node)?)?)));
    // What comes before a session is there when it begins.
    let has_begun = |(node, held): (NodeId, &Held)| {
        held.view.id >= shard.since && held.sound(id, node).is_some_and(|tip| tip.view >= shard.since.0)
    };
    // Who lost something before it came to the session was told nothing of the one before since. Others are that far and have lost nothing.
    let is_spare = |damaged: u64| {
        let is_sound =
            |(node, held): (NodeId, &Held)| held.view.id.0 >= damaged && held.sound(id, node).is_some();
        damaged < shard.since.0 && members().any(is_sound)
    };
    let is_no_loss =
        |(_, held): &(NodeId, &Held)| held.tip(id).and_then(|tip| tip.damaged).is_none_or(is_spare);
    members().any(has_begun) || members().filter(is_no_loss).count() == shard.members.len()
}

impl Restart {
    /// The view from which the first one follows: the newest, with the lives that its members have now. Shards that are not durable begin anew.
    pub fn before(&self, members: &[Member], durable: &BTreeSet<ShardId>) -> View {
        let mut before = self.newest.clone();
        before.id = self.after;
        for member in &mut before.members {
            if let Some(now) = members.iter().find(|now| now.node == member.node) {
                *member = *now;
            }
        }
        for (id, shard) in (0..).map(ShardId).zip(&mut before.shards) {
            if !durable.contains(&id) {
                *shard = Shard::default();
            }
            shard.learners.clear();
        }
        before
    }
}

/// The members of a shard whose log is the longest: whose word it is. All of them, if nobody has anything.
pub fn longest(all: &Holds<'_>, shard: ShardId, members: &[NodeId]) -> Vec<NodeId> {
    let here = || members.iter().filter_map(|node| Some((*node, (*all.get(node)?)?)));
    let sound = here().filter_map(|(node, held)| Some((node, held.sound(shard, node)?)));
    let mut tips: Vec<_> = sound.map(|(node, tip)| (node, (tip.view, tip.index))).collect();
    if tips.is_empty() {
        // A shard that begins with these members: there is nothing of it, or nobody's word.
        tips = here()
            .filter_map(|(node, held)| held.tip(shard).map(|tip| (node, (tip.view, tip.index))))
            .collect();
    }
    let Some(most) = tips.iter().map(|(_, tip)| *tip).max() else { return members.to_vec() };
    tips.into_iter().filter(|(_, tip)| *tip == most).map(|(node, _)| node).collect()
}

#[cfg(test)]
mod tests;
