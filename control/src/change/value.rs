//! What is reported and what is decided: the value of a view change (V3), computed from reports. Pure functions.

use std::collections::{BTreeMap, BTreeSet};

use consort_dataplane::names::NodeId;
use serde::{Deserialize, Serialize};

use crate::view::{GroupId, Incarnation, Member, Role, View, node_id_option, node_ids};

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
    /// By rank, where not everybody has everything below the trim: one who has.
    pub holders: Vec<Holder>,
}

/// A member that has all of a sender's records below a trim.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Holder(#[serde(with = "node_id_option")] pub Option<NodeId>);

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
    /// It did not: the greatest, and who lacks records gets them.
    Greatest,
}

/// Whether a report says of every session what it must. One that doesn't is no report.
pub(super) fn is_sound(view: &View, node: NodeId, report: &Report) -> bool {
    let ranks = view.data().count();
    let data = view.member(node).is_some_and(|member| member.role == Role::Data);
    if data {
        matches!(&report.frozen[..], [frozen] if frozen.received.len() == ranks)
    } else {
        report.frozen.is_empty()
    }
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
    let stay = together(view, reports, suspects);
    if !view.data().any(|member| stay.contains(&member.node)) {
        return None; // witnesses alone have nothing to go on with (V6)
    }
    let going = |member: &Member| stay.contains(&member.node) && !wishes.leaving.contains(&member.node);
    let holds = |member: &&Member| member.role == Role::Data && !reports[&member.node].free;
    if view.members.iter().filter(|member| going(member)).any(|member| holds(&member)) {
        return None;
    }
    // Who stays keeps its place among those who stay; who comes, comes last: ranks are by age.
    let mut members: Vec<_> = view.members.iter().filter(|member| going(member)).copied().collect();
    for candidate in &wishes.joining {
        let known = |member: &Member| {
            candidate.linked.contains(&member.incarnation)
                && reports
                    .get(&member.node)
                    .is_none_or(|it| it.linked.contains(&candidate.member.incarnation))
        };
        let name_is_free = members.iter().all(|member| member.node != candidate.member.node);
        if name_is_free && members.iter().filter(|member| member.role == Role::Data).all(known) {
            members.push(candidate.member);
        }
    }
    let next = View { id: view.id.next(), members };
    Some(Next { view: next, cuts: cuts(view, reports, &stay, trimming) })
}

/// The reporters that can go on with each other: of two without a data link between them one has to go. Whom most others can't go
/// on with goes first, then who is younger.
fn together(
    view: &View,
    reports: &BTreeMap<NodeId, &Report>,
    suspects: &BTreeSet<NodeId>,
) -> BTreeSet<NodeId> {
    let apart = |one: NodeId, other: NodeId| {
        let severs = |a: NodeId, b: NodeId| reports.get(&a).is_some_and(|report| report.severed.contains(&b));
        severs(one, other) || severs(other, one)
    };
    let mut order: Vec<_> = view
        .nodes()
        .into_iter()
        .filter(|node| reports.contains_key(node) && !suspects.contains(node))
        .collect();
    let all = order.clone();
    order.sort_by_key(|node| all.iter().filter(|other| **other != *node && apart(*node, **other)).count());
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
    let frozen: Vec<_> = view
        .nodes()
        .into_iter()
        .filter(|node| stay.contains(node))
        .filter_map(|node| Some((node, reports[&node].frozen.first()?)))
        .collect();
    let Some((_, first)) = frozen.first() else { return Vec::new() };
    let column = |rank: usize| frozen.iter().map(move |(node, frozen)| (frozen.received[rank], *node));
    let (mut trim, mut holders) = (Vec::new(), Vec::new());
    for rank in 0..first.received.len() {
        let least = column(rank).map(|(at, _)| at).min().unwrap_or(0);
        let greatest = column(rank).map(|(at, _)| at).max().unwrap_or(0);
        match trimming {
            Trimming::Greatest if least < greatest => {
                trim.push(greatest);
                holders.push(Holder(column(rank).find(|(at, _)| *at == greatest).map(|(_, node)| node)));
            }
            _ => {
                trim.push(least);
                holders.push(Holder(None));
            }
        }
    }
    vec![Cut { group: first.group, trim, holders }]
}
