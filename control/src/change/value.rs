//! What is reported and what is decided: the value of a view change (V3), computed from reports. Pure functions.

use std::collections::{BTreeMap, BTreeSet};

use consort_dataplane::names::{MAX_NODES, NodeId, ViewId};
use serde::{Deserialize, Serialize};

use crate::view::{GroupId, Incarnation, Member, Role, View, node_id, node_ids};

/// How far one session had come at one member when it was wedged there (V2).
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Frozen {
    /// Whose session.
    pub group: GroupId,
    /// By rank: up to which position of that member's ring everything is here, in bytes.
    pub received: Vec<u64>,
}

/// Where a member stands, said with its promise.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Its sessions; none at a witness.
    pub frozen: Vec<Frozen>,
    /// Members that it can't go on with: their data links are gone.
    #[serde(with = "node_ids")]
    pub severed: Vec<NodeId>,
    /// Joiners that it is linked to.
    pub linked: Vec<Incarnation>,
    /// It has retired the session whose memory the next view's will use (V10).
    pub free: bool,
}

/// Where a wedged session ends, for all who go on.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Cut {
    /// Whose session.
    pub group: GroupId,
    /// The trim, by rank: everything below it is delivered, nothing beyond it (V4).
    pub trim: Vec<u64>,
}

/// What a member that goes on lacks of a ring.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Missing {
    /// Whose session.
    pub group: GroupId,
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
    /// One for each session of the view that ends.
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
}

/// How trims are found.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Trimming {
    /// Delivery waited for stability: the least `received`. What was delivered anywhere was stable, so it lies below.
    Least,
    /// It did not: the greatest, and whoever lacks records gets them before there is a value.
    Greatest,
}

impl Report {
    /// Takes in a later report of the same member, or an earlier one that comes late: whatever only ever grows doesn't shrink.
    pub(super) fn take_in(&mut self, other: Self) {
        let Self { frozen, severed, linked, free } = other;
        for (ours, theirs) in self.frozen.iter_mut().zip(&frozen) {
            for (ours, theirs) in ours.received.iter_mut().zip(&theirs.received) {
                *ours = (*ours).max(*theirs);
            }
        }
        self.severed.extend(severed);
        self.severed.sort_unstable();
        self.severed.dedup();
        self.linked = linked;
        self.free |= free;
    }

    /// Up to where everything of a member's ring is here.
    pub(super) fn received(&mut self, rank: usize) -> Option<&mut u64> {
        self.frozen.first_mut()?.received.get_mut(rank)
    }
}

/// Whether a report says of every session what it must. One that doesn't is no report (S1).
pub(super) fn is_sound(view: &View, node: NodeId, report: &Report) -> bool {
    if view.member(node).is_some_and(|member| member.role == Role::Data) {
        matches!(&report.frozen[..], [frozen] if fits(view, frozen.group, &frozen.received))
    } else {
        report.frozen.is_empty()
    }
}

/// Whether this can be what comes after `view` (S1).
pub(super) fn is_next(view: &View, next: &Next) -> bool {
    let nodes: BTreeSet<_> = next.view.nodes().into_iter().collect();
    Some(next.view.id) == view.id.0.checked_add(1).map(ViewId)
        && nodes.len() == next.view.members.len()
        && matches!(&next.cuts[..], [cut] if fits(view, cut.group, &cut.trim))
}

/// There is one session: that of all members with data.
fn fits(view: &View, group: GroupId, by_rank: &[u64]) -> bool {
    group == GroupId::MAIN && by_rank.len() == view.data().count()
}

/// What those who would go on lack below the greatest `received` among them, and one who has it (V3).
pub(super) fn missing(
    view: &View,
    reports: &BTreeMap<NodeId, &Report>,
    suspects: &BTreeSet<NodeId>,
    leaving: &BTreeSet<NodeId>,
) -> BTreeMap<NodeId, Vec<Missing>> {
    let frozen = frozen(view, reports, &together(view, reports, suspects, leaving));
    let mut missing = BTreeMap::new();
    for rank in 0..view.data().count() {
        let received = |frozen: &Frozen| frozen.received.get(rank).copied().unwrap_or(0);
        let Some((holder, most)) = frozen.iter().max_by_key(|(_, frozen)| received(frozen)) else { continue };
        let (holder, to) = (*holder, received(most));
        for (node, frozen) in frozen.iter().filter(|(_, frozen)| received(frozen) < to) {
            let part = Missing { group: frozen.group, rank, to, holder };
            missing.entry(*node).or_insert_with(Vec::new).push(part);
        }
    }
    missing
}

/// The sessions of those who go on, in rank order.
fn frozen<'a>(
    view: &View,
    reports: &BTreeMap<NodeId, &'a Report>,
    stay: &BTreeSet<NodeId>,
) -> Vec<(NodeId, &'a Frozen)> {
    let stay = view.nodes().into_iter().filter(|node| stay.contains(node));
    stay.filter_map(|node| Some((node, reports.get(&node)?.frozen.first()?))).collect()
}

/// The value that follows from the reports: `None` while some member that would go on still holds the memory that the next view
/// needs (V10), or where no member with data would.
pub(super) fn choose(
    view: &View,
    reports: &BTreeMap<NodeId, &Report>,
    suspects: &BTreeSet<NodeId>,
    wishes: &Wishes,
    trimming: Trimming,
) -> Option<Next> {
    let stay = together(view, reports, suspects, &wishes.leaving);
    if !view.data().any(|member| stay.contains(&member.node)) {
        return None; // witnesses alone have nothing to go on with (V6)
    }
    let going = |member: &&Member| stay.contains(&member.node) && !wishes.leaving.contains(&member.node);
    let holds = |member: &Member| member.role == Role::Data && !reports[&member.node].free;
    // Who stays keeps its place among those who stay; who comes, comes last: ranks are by age.
    let mut members: Vec<_> = view.members.iter().filter(going).copied().collect();
    if members.iter().any(holds) {
        return None;
    }
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
    let next = View { id: view.id.next(), members };
    Some(Next { view: next, cuts: cuts(view, reports, &stay, trimming) })
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
/// then whom most others can't go on with, then who is younger.
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
    order.sort_by_key(|node| (leaves(node), count(*node)));
    let mut stay = BTreeSet::new();
    for node in order {
        if stay.iter().all(|other| !apart(node, *other)) {
            stay.insert(node);
        }
    }
    stay
}

/// The trims (V3), over those who deliver up to them.
fn cuts(
    view: &View,
    reports: &BTreeMap<NodeId, &Report>,
    stay: &BTreeSet<NodeId>,
    trimming: Trimming,
) -> Vec<Cut> {
    let frozen = frozen(view, reports, stay);
    let Some((_, first)) = frozen.first() else { return Vec::new() };
    let trim = (0..first.received.len()).map(|rank| {
        let column = frozen.iter().filter_map(|(_, frozen)| frozen.received.get(rank).copied());
        let trim = match trimming {
            Trimming::Least => column.min(),
            Trimming::Greatest => column.max(),
        };
        trim.unwrap_or(0)
    });
    vec![Cut { group: first.group, trim: trim.collect() }]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: u32) -> Member {
        let address = ([127, 0, 0, 1], 1).into();
        Member { node: NodeId(id), incarnation: Incarnation(id.into()), address, role: Role::Data }
    }

    // V7: who has its state from one that does not go on is not taken in, nor whose source comes with it.
    #[test]
    fn a_joiner_comes_in_only_with_its_source() {
        let view = View { id: ViewId(1), members: vec![member(1), member(2)] };
        let life = |id: u32| Incarnation(id.into());
        let frozen = || vec![Frozen { group: GroupId::MAIN, received: vec![0, 0] }];
        let linked = || vec![life(3), life(4)];
        let report = || Report { frozen: frozen(), severed: Vec::new(), linked: linked(), free: true };
        let (one, two) = (report(), report());
        let reports = BTreeMap::from([(NodeId(1), &one), (NodeId(2), &two)]);
        let joins = |id: u32, source: Option<u32>| Candidate {
            member: member(id),
            linked: (1..=4).map(life).collect(),
            source: source.map(life),
        };
        let admitted = |joining: Vec<Candidate>, leaving: &[u32]| {
            let leaving = leaving.iter().copied().map(NodeId).collect();
            let wishes = Wishes { joining, leaving };
            let next = choose(&view, &reports, &BTreeSet::new(), &wishes, Trimming::Least);
            next.map(|next| next.view.nodes().iter().map(|node| node.0).collect::<Vec<_>>())
        };
        assert_eq!(admitted(vec![joins(3, None), joins(4, Some(2))], &[]), Some(vec![1, 2, 3, 4]));
        assert_eq!(admitted(vec![joins(3, None), joins(4, Some(2))], &[2]), Some(vec![1, 3]));
        assert_eq!(admitted(vec![joins(3, Some(1)), joins(4, Some(3))], &[]), Some(vec![1, 2, 3]));
        assert_eq!(admitted(vec![joins(3, Some(9))], &[]), Some(vec![1, 2]));
    }
}
