//! What is reported and what is decided: the value of a view change (V3), computed from reports. Pure functions.

use std::collections::{BTreeMap, BTreeSet};

use consort_dataplane::names::{MAX_NODES, NodeId, ViewId};
use serde::{Deserialize, Serialize};

use crate::layout::{self, Ready};
use crate::view::{Incarnation, Member, Role, Shard, ShardId, ShardShape, View, node_id, node_ids};

/// How far one session had come at one member when it was wedged there (V2).
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Frozen {
    /// Whose session.
    pub shard: ShardId,
    /// By rank: up to which position of that member's ring everything is here, in bytes.
    pub received: Vec<u64>,
}

/// One of the two places of a shard's sessions in a node's segment (V10).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Place {
    /// Whose sessions.
    pub shard: ShardId,
    /// Which of the two.
    pub second: bool,
}

/// Where a member stands, said with its promise.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Its sessions that are wedged, by shard; none at a witness.
    pub frozen: Vec<Frozen>,
    /// Members that it can't go on with: their data links are gone, or they stand still.
    #[serde(with = "node_ids")]
    pub severed: Vec<NodeId>,
    /// Members that it takes for gone.
    #[serde(with = "node_ids")]
    pub suspects: Vec<NodeId>,
    /// Joiners that it is linked to.
    pub linked: Vec<Incarnation>,
    /// Where it has not retired a session yet that ended in an earlier change: no new one may begin there (V10).
    pub busy: Vec<Place>,
    /// Durable shards of which its log lacks something, and gets it (P3).
    pub lacks: Vec<ShardId>,
}

/// Where a wedged session ends, for all who go on.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Cut {
    /// Whose session.
    pub shard: ShardId,
    /// The trim, by rank: everything below it is delivered, nothing beyond it (V4).
    pub trim: Vec<u64>,
}

/// What a member that goes on lacks of a ring.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Missing {
    /// Whose session.
    pub shard: ShardId,
    /// The rank of the ring's owner.
    pub rank: usize,
    /// Up to where.
    pub to: u64,
    /// Who has it.
    #[serde(with = "node_id")]
    pub holder: NodeId,
}

/// The value: the next view, and where the sessions of this one end.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Next {
    /// The view.
    pub view: View,
    /// One for each session that ends, by shard.
    pub cuts: Vec<Cut>,
}

/// A joiner that has caught up.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Candidate {
    /// What it will be.
    pub member: Member,
    /// Whom it is linked to.
    pub linked: BTreeSet<Incarnation>,
    /// From whom it has its state (V7): who delivers the view that ends to its end, and passes that on. `None` where there is no state
    /// to have.
    pub source: Option<Incarnation>,
}

/// Who wants to come and go.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Wishes {
    /// Joiners that have caught up.
    pub joining: Vec<Candidate>,
    /// Members that leave in order (V8).
    pub leaving: BTreeSet<NodeId>,
    /// Learners that have caught up with a shard.
    pub ready: BTreeSet<Ready>,
}

/// How trims are found.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Trimming {
    /// Delivery waited for stability: the least `received`. What was delivered anywhere was stable, so it lies below.
    Least,
    /// It did not: the greatest, and whoever lacks records gets them before there is a value.
    Greatest,
}

/// What follows from the reports.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Choice {
    /// There is no value yet: nobody with data would go on (V6).
    None,
    /// There is no value yet: these members would go on, and still hold the memory that a new session needs (V10).
    Busy(Vec<NodeId>),
    /// There is no value yet: of these durable shards nobody would go on who has all of the log.
    Lacks(Vec<ShardId>),
    /// These sessions end too, and not all who go on have wedged them.
    Wedge(BTreeSet<ShardId>),
    /// The value.
    Next(Next),
}

impl Trimming {
    /// How the trims of a shard's sessions are found.
    pub fn of(shape: &ShardShape) -> Self {
        if shape.guarantee.stable() { Self::Least } else { Self::Greatest }
    }
}

impl Report {
    /// Takes in a later report of the same member, or an earlier one that comes late: whatever only ever grows doesn't shrink.
    pub(super) fn take_in(&mut self, other: Self) {
        let Self { frozen, severed, suspects, linked, busy, lacks } = other;
        for theirs in frozen {
            match self.frozen.iter_mut().find(|ours| ours.shard == theirs.shard) {
                Some(ours) => {
                    for (ours, theirs) in ours.received.iter_mut().zip(&theirs.received) {
                        *ours = (*ours).max(*theirs);
                    }
                }
                None => self.frozen.push(theirs),
            }
        }
        self.frozen.sort_unstable_by_key(|frozen| frozen.shard);
        self.severed.extend(severed);
        self.severed.sort_unstable();
        self.severed.dedup();
        self.suspects.extend(suspects);
        self.suspects.sort_unstable();
        self.suspects.dedup();
        self.linked = linked;
        self.busy.retain(|place| busy.contains(place));
        self.lacks.retain(|shard| lacks.contains(shard));
    }

    /// Where the session of a shard was stopped.
    pub(super) fn of(&self, shard: ShardId) -> Option<&Frozen> {
        self.frozen.iter().find(|frozen| frozen.shard == shard)
    }

    /// Up to where everything of a member's ring is here.
    pub(super) fn received(&mut self, shard: ShardId, rank: usize) -> Option<&mut u64> {
        self.frozen.iter_mut().find(|frozen| frozen.shard == shard)?.received.get_mut(rank)
    }
}

/// Whether a report can be that member's (S1).
pub(super) fn is_sound(view: &View, node: NodeId, report: &Report) -> bool {
    let shards: BTreeSet<_> = report.frozen.iter().map(|frozen| frozen.shard).collect();
    let is_one = |frozen: &Frozen| {
        let shard = view.shard(frozen.shard);
        shard.is_some_and(|it| it.members.contains(&node) && it.members.len() == frozen.received.len())
    };
    shards.len() == report.frozen.len() && report.frozen.iter().all(is_one)
}

/// Whether this can be what comes after `view` (S1).
pub(super) fn is_next(view: &View, next: &Next) -> bool {
    let nodes: BTreeSet<_> = next.view.nodes().into_iter().collect();
    let cuts: BTreeMap<_, _> = next.cuts.iter().map(|cut| (cut.shard, cut)).collect();
    Some(next.view.id) == view.id.0.checked_add(1).map(ViewId)
        && nodes.len() == next.view.members.len()
        && next.view.shards.len() == view.shards.len()
        && cuts.len() == next.cuts.len()
        && cuts.keys().all(|shard| view.shard(*shard).is_some())
        && next.view.shards().zip(&view.shards).all(|((id, shard), before)| {
            has_sound_members(&next.view, shard)
                && follows(view, &next.view, before, shard)
                && is_sound_cut(&next.view, before, shard, cuts.get(&id).copied())
        })
}

fn has_sound_members(view: &View, shard: &Shard) -> bool {
    let all: BTreeSet<_> = shard.members.iter().chain(&shard.learners).copied().collect();
    all.len() == shard.members.len() + shard.learners.len()
        && shard.members.len() <= MAX_NODES
        && all.iter().all(|node| view.rank_of(*node).is_some())
}

/// Whether a shard goes on as it was, the same members in the same lives, or begins a session of its own.
fn follows(before: &View, view: &View, old: &Shard, shard: &Shard) -> bool {
    let life = |view: &View, node: NodeId| view.member(node).map(|member| member.incarnation);
    let same = |node: &NodeId| life(before, *node) == life(view, *node);
    if shard.since == old.since {
        shard.second == old.second && shard.members == old.members && shard.members.iter().all(same)
    } else {
        shard.since == view.id && shard.second != old.second
    }
}

/// Whether a session that ends is cut, if anyone goes on who has to know where, and no other.
fn is_sound_cut(view: &View, old: &Shard, shard: &Shard, cut: Option<&Cut>) -> bool {
    match cut {
        Some(cut) => shard.since == view.id && cut.trim.len() == old.members.len(),
        None => shard.since == old.since || !old.members.iter().any(|node| view.member(*node).is_some()),
    }
}

/// What those who would go on lack below the greatest `received` among them, and one who has it (V3): of the sessions where delivery did
/// not wait for stability.
pub(super) fn missing(
    view: &View,
    reports: &BTreeMap<NodeId, &Report>,
    suspects: &BTreeSet<NodeId>,
    leaving: &BTreeSet<NodeId>,
    shapes: &[ShardShape],
) -> BTreeMap<NodeId, Vec<Missing>> {
    let stay = together(view, reports, suspects, leaving);
    let mut missing = BTreeMap::new();
    for ((id, shard), shape) in view.shards().zip(shapes) {
        if Trimming::of(shape) == Trimming::Least {
            continue;
        }
        let frozen = frozen(shard, id, reports, &stay);
        for rank in 0..shard.members.len() {
            let received = |frozen: &Frozen| frozen.received.get(rank).copied().unwrap_or(0);
            let Some((holder, most)) = frozen.iter().max_by_key(|(_, it)| received(it)) else { continue };
            let (holder, to) = (*holder, received(most));
            for (node, _) in frozen.iter().filter(|(_, frozen)| received(frozen) < to) {
                let part = Missing { shard: id, rank, to, holder };
                missing.entry(*node).or_insert_with(Vec::new).push(part);
            }
        }
    }
    missing
}

/// Where a session was stopped at those of its members who go on, in rank order.
fn frozen<'a>(
    shard: &Shard,
    id: ShardId,
    reports: &BTreeMap<NodeId, &'a Report>,
    stay: &BTreeSet<NodeId>,
) -> Vec<(NodeId, &'a Frozen)> {
    let stay = shard.members.iter().filter(|node| stay.contains(node));
    stay.filter_map(|node| Some((*node, reports.get(node)?.of(id)?))).collect()
}

/// The sessions that would end if all went on whom `suspects` and `leaving` leave, and all came who wish to.
pub(super) fn expected(
    view: &View,
    suspects: &BTreeSet<NodeId>,
    wishes: &Wishes,
    shapes: &[ShardShape],
) -> BTreeSet<ShardId> {
    let goes = |node: &NodeId| suspects.contains(node) || wishes.leaving.contains(node);
    let mut members: Vec<_> = view.members.iter().filter(|member| !goes(&member.node)).copied().collect();
    for candidate in &wishes.joining {
        if members.iter().all(|member| member.node != candidate.member.node) {
            members.push(candidate.member);
        }
    }
    let shards = layout::next(shapes, view, &members, &wishes.ready, &BTreeSet::new());
    ending(view, &shards).collect()
}

/// The shards whose sessions end.
fn ending<'a>(view: &'a View, shards: &'a [Shard]) -> impl Iterator<Item = ShardId> + 'a {
    let both = view.shards().zip(shards);
    both.filter(|((_, old), new)| old.since != new.since && !old.members.is_empty()).map(|((id, _), _)| id)
}

/// The value that follows from the reports.
pub(super) fn choose(
    view: &View,
    reports: &BTreeMap<NodeId, &Report>,
    suspects: &BTreeSet<NodeId>,
    wishes: &Wishes,
    shapes: &[ShardShape],
    trimming: &dyn Fn(&ShardShape) -> Trimming,
) -> Choice {
    let stay = together(view, reports, suspects, &wishes.leaving);
    if !view.data().any(|member| stay.contains(&member.node)) {
        return Choice::None; // witnesses alone have nothing to go on with (V6)
    }
    let going = |member: &&Member| stay.contains(&member.node) && !wishes.leaving.contains(&member.node);
    // Who stays keeps its place among those who stay; who comes, comes last: ranks are by age.
    let mut members: Vec<_> = view.members.iter().filter(going).copied().collect();
    let remain: Vec<_> = members.iter().map(|member| member.node).collect();
    if members.iter().all(|member| member.role == Role::Witness) {
        members.clear(); // all who had data have left: there is nothing to go on with, nor to join
    } else {
        let mut admitted: Vec<&Candidate> = Vec::new();
        for candidate in &wishes.joining {
            if is_admissible(candidate, &members, reports, &admitted) {
                members.push(candidate.member);
                admitted.push(candidate);
            }
        }
    }
    // What is wedged anywhere never goes on.
    let ended = reports.values().flat_map(|report| &report.frozen).map(|frozen| frozen.shard).collect();
    let shards = layout::next(shapes, view, &members, &wishes.ready, &ended);
    let open = |id: &ShardId| {
        let shard = view.shard(*id);
        let mut members = shard.iter().flat_map(|it| &it.members).filter(|node| stay.contains(node));
        members.any(|node| reports.get(node).is_some_and(|report| report.of(*id).is_none()))
    };
    let open: BTreeSet<_> = ending(view, &shards).filter(open).collect();
    if !open.is_empty() {
        return Choice::Wedge(open);
    }
    let id = view.id.next();
    let begins = |place: &Place| {
        let shard = usize::try_from(place.shard.0).ok().and_then(|at| shards.get(at));
        shard.is_some_and(|shard| shard.since == id && shard.second == place.second)
    };
    // P3: whoever has all of a log is waited for. Without them nobody could say what there was, nor be done with
    // the sessions before.
    let is_whole = |shard: ShardId, node: &NodeId| {
        remain.contains(node) && reports.get(node).is_some_and(|report| !report.lacks.contains(&shard))
    };
    let is_lost = |((shard, old), new): ((ShardId, &Shard), &Shard)| {
        let begins = new.since == id && !old.members.is_empty() && !new.members.is_empty();
        begins && !new.members.iter().any(|node| old.members.contains(node) && is_whole(shard, node))
    };
    let durable = shapes.iter().map(|shape| shape.guarantee.durable());
    let lost = view.shards().zip(&shards).zip(durable).filter(|(both, durable)| *durable && is_lost(*both));
    let lost: Vec<_> = lost.map(|(((shard, _), _), _)| shard).collect();
    if !lost.is_empty() {
        return Choice::Lacks(lost);
    }
    // Whoever goes on may still read what lies there, whether it is a member of the shard now or was one before.
    let is_busy = |node: &NodeId| reports.get(node).is_some_and(|report| report.busy.iter().any(begins));
    let busy: Vec<_> = remain.iter().copied().filter(is_busy).collect();
    if !busy.is_empty() {
        return Choice::Busy(busy);
    }
    let cuts = cuts(view, &shards, reports, &stay, shapes, trimming);
    Choice::Next(Next { view: View { id, members, shards }, cuts })
}

/// Whether a joiner and all who would be its peers know of their links to each other.
fn is_admissible(
    candidate: &Candidate,
    members: &[Member],
    reports: &BTreeMap<NodeId, &Report>,
    admitted: &[&Candidate],
) -> bool {
    let it = candidate.member;
    let linked = |member: &Member| {
        let before = admitted.iter().find(|before| before.member.node == member.node);
        let to_it = match before {
            Some(before) => before.linked.contains(&it.incarnation),
            None => reports.get(&member.node).is_some_and(|report| report.linked.contains(&it.incarnation)),
        };
        to_it && candidate.linked.contains(&member.incarnation)
    };
    let data = || members.iter().filter(|member| member.role == Role::Data);
    // By then the source is none that was admitted with it: that one has its state from somebody itself.
    let goes_on = |source: Incarnation| {
        data().any(|member| member.incarnation == source)
            && admitted.iter().all(|before| before.member.incarnation != source)
    };
    let has_source = candidate.source.is_none_or(goes_on);
    let has_room = it.role == Role::Witness || data().count() < MAX_NODES;
    has_room && has_source && members.iter().all(|member| member.node != it.node) && data().all(linked)
}

/// The reporters that can go on with each other: of two without a data link between them one has to go. Who leaves anyhow goes first,
/// then whom most others can't go on with, then whom more take for gone, then who is younger. That a link broke tells nothing of who is to
/// blame; that one end of it takes the other for gone and not the other way round does: it cut the link.
fn together(
    view: &View,
    reports: &BTreeMap<NodeId, &Report>,
    suspects: &BTreeSet<NodeId>,
    leaving: &BTreeSet<NodeId>,
) -> BTreeSet<NodeId> {
    let apart = |one: NodeId, other: NodeId| {
        let severs = |a: NodeId, b: NodeId| reports.get(&a).is_some_and(|report| report.severed.contains(&b));
        one != other && (severs(one, other) || severs(other, one))
    };
    let reported = |node: &NodeId| reports.contains_key(node);
    let trusted = |node: &NodeId| !suspects.contains(node);
    let leaves = |node: &NodeId| leaving.contains(node);
    let mut order: Vec<_> = view.nodes().into_iter().filter(reported).collect();
    // Who proposes may be a witness, or leave, and suspect all others who have data. Those who have reported nevertheless are
    // the only ones to go on (V6).
    if view.data().map(|member| &member.node).any(|node| reported(node) && trusted(node) && !leaves(node)) {
        order.retain(trusted);
    }
    let remaining: Vec<_> = order.iter().copied().filter(|node| !leaves(node)).collect();
    let count = |node: NodeId| remaining.iter().filter(|other| apart(node, **other)).count();
    let suspected = |node: NodeId| {
        remaining
            .iter()
            .filter(|other| reports.get(other).is_some_and(|it| it.suspects.contains(&node)))
            .count()
    };
    order.sort_by_key(|node| (leaves(node), count(*node), suspected(*node)));
    let mut stay = BTreeSet::new();
    for node in order {
        if stay.iter().all(|other| !apart(node, *other)) {
            stay.insert(node);
        }
    }
    stay
}

/// The trims (V3) of the sessions that end, over those who deliver up to them.
fn cuts(
    view: &View,
    shards: &[Shard],
    reports: &BTreeMap<NodeId, &Report>,
    stay: &BTreeSet<NodeId>,
    shapes: &[ShardShape],
    trimming: &dyn Fn(&ShardShape) -> Trimming,
) -> Vec<Cut> {
    let ending: BTreeSet<_> = ending(view, shards).collect();
    let ends = view.shards().zip(shapes).filter(|((id, _), _)| ending.contains(id));
    let cuts = ends.filter_map(|((id, shard), shape)| {
        let frozen = frozen(shard, id, reports, stay);
        let (_, first) = frozen.first()?;
        let trim = (0..first.received.len()).map(|rank| {
            let column = frozen.iter().filter_map(|(_, frozen)| frozen.received.get(rank).copied());
            let trim = match trimming(shape) {
                Trimming::Least => column.min(),
                Trimming::Greatest => column.max(),
            };
            trim.unwrap_or(0)
        });
        Some(Cut { shard: id, trim: trim.collect() })
    });
    cuts.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::NodeConfig;
    use crate::view::Domain;

    fn member(id: u32) -> Member {
        let address = ([127, 0, 0, 1], 1).into();
        let (incarnation, domain) = (Incarnation(id.into()), Domain::default());
        Member { node: NodeId(id), incarnation, address, role: Role::Data, domain }
    }

    // V7: who has its state from one that does not go on is not taken in, nor whose source comes with it.
    #[test]
    fn a_joiner_comes_in_only_with_its_source() {
        let view = View::of(ViewId(1), vec![member(1), member(2)]);
        let life = |id: u32| Incarnation(id.into());
        let frozen = || vec![Frozen { shard: ShardId::MAIN, received: vec![0, 0] }];
        let linked = || vec![life(3), life(4)];
        let report =
            || Report { frozen: frozen(), severed: Vec::new(), linked: linked(), ..Report::default() };
        let (one, two) = (report(), report());
        let reports = BTreeMap::from([(NodeId(1), &one), (NodeId(2), &two)]);
        let joins = |id: u32, source: Option<u32>| Candidate {
            member: member(id),
            linked: (1..=4).map(life).collect(),
            source: source.map(life),
        };
        let admitted = |joining: Vec<Candidate>, leaving: &[u32]| {
            let leaving = leaving.iter().copied().map(NodeId).collect();
            let wishes = Wishes { joining, leaving, ready: BTreeSet::new() };
            let shapes = NodeConfig::new(NodeId(1)).shapes();
            match choose(&view, &reports, &BTreeSet::new(), &wishes, &shapes, &Trimming::of) {
                Choice::Next(next) => Some(next.view.nodes().iter().map(|node| node.0).collect::<Vec<_>>()),
                _ => None,
            }
        };
        assert_eq!(admitted(vec![joins(3, None), joins(4, Some(2))], &[]), Some(vec![1, 2, 3, 4]));
        assert_eq!(admitted(vec![joins(3, None), joins(4, Some(2))], &[2]), Some(vec![1, 3]));
        assert_eq!(admitted(vec![joins(3, Some(1)), joins(4, Some(3))], &[]), Some(vec![1, 2, 3]));
        assert_eq!(admitted(vec![joins(3, Some(9))], &[]), Some(vec![1, 2]));
    }
}
