//! What applications were told, and what must hold of it. Knows nothing of rings, rounds or ballots: only views, messages, and who
//! sent what.

use std::collections::{BTreeMap, HashMap, HashSet};

use consort_dataplane::names::{NodeId, ViewId};
use consort_dataplane::plan::Guarantee;

use crate::shell::outcome::{Delivered, OutcomeError};
use crate::shell::tests::host::Told;
use crate::view::{Incarnation, View};

/// A message that was sent: its number, which no other has, by which life of its sender, and in which view.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    pub(super) number: u64,
    pub(super) life: Incarnation,
    pub(super) view: u64,
    pub(super) to: Nodes,
}

/// Nodes, as bits by their number.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Nodes(pub(super) u32);

impl Nodes {
    pub(super) const ALL: Self = Self(u32::MAX);

    pub(super) const fn has(self, node: u32) -> bool {
        self.0 >> node & 1 == 1
    }

    pub(super) fn list(self) -> Vec<NodeId> {
        (0..u32::BITS).filter(|node| self.has(*node)).map(NodeId).collect()
    }
}

/// All that was sent.
#[derive(Default)]
struct AllSent {
    by_number: HashMap<u64, Sent>,
    /// Of each life of a sender and each view that it sent in, who was a member there, if anybody was told of that view.
    members: HashMap<(Incarnation, u64), Vec<(u32, Incarnation)>>,
}

impl AllSent {
    fn get(&self, number: u64) -> Option<&Sent> {
        self.by_number.get(&number)
    }

    /// Whether a message is for this life of a node (D12): one that was a member when it was sent. None if that can't be known.
    fn is_for(&self, number: u64, node: u32, life: Incarnation) -> Option<bool> {
        match self.get(number) {
            Some(sent) if sent.to != Nodes::ALL => {
                let members = self.members.get(&(sent.life, sent.view));
                if sent.to.has(node) { Some(members?.contains(&(node, life))) } else { Some(false) }
            }
            _ => Some(true),
        }
    }
}

/// One process from its start to its end.
pub(super) struct Past {
    pub(super) node: u32,
    pub(super) told: Vec<Told>,
    pub(super) sent: Vec<Sent>,
    /// Of what was tracked, by number.
    pub(super) outcomes: Vec<(u64, Option<Result<Delivered, OutcomeError>>)>,
    /// It was not killed: nobody may wait for an outcome any more.
    pub(super) stopped: bool,
    /// It is there in the end.
    pub(super) is_last: bool,
}

/// A message, as it was delivered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Got {
    seq: u64,
    sender: u32,
    number: u64,
}

/// One life's time in one view.
#[derive(Debug)]
struct Stay {
    node: u32,
    life: Incarnation,
    view: View,
    got: Vec<Got>,
    /// It was told the next view.
    ended: bool,
    /// The view that it was told next. Those between have the same members, and leave the session as it is.
    next: Option<ViewId>,
}

/// What a simulation counts of its histories.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) views: u64,
    pub(super) delivered: u64,
    pub(super) resent: u64,
    /// Snapshots that took the place of a part of a log.
    pub(super) restored: u64,
    /// Of a view, by one that was told no other.
    pub(super) last_words: u64,
    /// For some of the members only.
    pub(super) addressed: u64,
    /// Told before the logs had it, and lost with all who had it.
    pub(super) ahead: u64,
}

impl Counts {
    pub(super) fn add(&mut self, other: &Self) {
        self.views += other.views;
        self.delivered += other.delivered;
        self.resent += other.resent;
        self.last_words += other.last_words;
        self.restored += other.restored;
        self.addressed += other.addressed;
        self.ahead += other.ahead;
    }
}

/// Checks what was told of a durable group: everyone is told everything from the beginning, the same in the same order, and nothing that
/// anyone was told, or that an outcome called durable, is missing in the end, whoever was lost (P2, P3). Who leaves is told the last messages of its
/// session when it has flushed them itself, which is less (docs/durability.md, Limits).
/// What is told ahead of the logs may be lost with all who were told, if no outcome called it durable: nobody is told anything behind that.
pub(super) fn check_durable(pasts: &mut [Past], guarantee: Guarantee) -> Result<Counts, String> {
    let mut counts = Counts::default();
    if guarantee.ahead_of_logs() {
        counts.ahead = forget_what_was_ahead(pasts)?;
    }
    let pasts = &*pasts;
    let is_last = |told: &Told, node| matches!(told, Told::View(view) if view.member(NodeId(node)).is_none());
    let has_left =
        |past: &Past| past.stopped && past.told.last().is_some_and(|told| is_last(told, past.node));
    // What is in a snapshot was told (P4).
    let mut messages = |past: &Past| -> Vec<(u32, u64)> {
        let (mut all, mut before) = (Vec::new(), 0);
        for told in &past.told {
            match told {
                Told::Message { sender, number, .. } => all.push((*sender, *number)),
                Told::View(view) if view.member(NodeId(past.node)).is_some() => before = all.len(),
                Told::Restored(state) => {
                    counts.restored += 1;
                    all.clone_from(state);
                }
                _ => {}
            }
        }
        if has_left(past) {
            all.truncate(before);
        }
        all
    };
    let mut longest = Vec::new();
    let mut all: Vec<_> = pasts.iter().map(|past| (past.node, messages(past))).collect();
    all.sort_by_key(|(_, told)| told.len());
    for (node, told) in all {
        counts.delivered += told.len() as u64;
        if let Some(at) = longest.iter().zip(&told).position(|(one, other)| one != other) {
            return Err(format!(
                "differs: node {node} was told {:x?} as message {at} of the log, and another {:x?}",
                told[at], longest[at]
            ));
        }
        longest = told;
    }
    let mut places = HashMap::new();
    for (at, (_, number)) in longest.iter().enumerate() {
        if places.insert(*number, at).is_some() {
            return Err(format!("duplicate: {number:x} is in the log twice"));
        }
    }
    for past in pasts {
        counts.views += past.told.iter().filter(|told| matches!(told, Told::View(_))).count() as u64;
        for (number, outcome) in &past.outcomes {
            match outcome {
                Some(Ok(_)) if !places.contains_key(number) && !has_left(past) => {
                    return Err(format!(
                        "lost: {number:x} of node {} was durable, and is in no log",
                        past.node
                    ));
                }
                None if past.stopped => {
                    return Err(format!("node {} never says what became of {number:x}", past.node));
                }
                _ => {}
            }
        }
        let mut lives: HashMap<Incarnation, (bool, Option<usize>)> = HashMap::new();
        for sent in &past.sent {
            let (is_over, last) = lives.entry(sent.life).or_default();
            match places.get(&sent.number) {
                Some(_) if *is_over => {
                    return Err(format!(
                        "sender order: {:x} is in the log, and one before it isn't",
                        sent.number
                    ));
                }
                Some(at) if last.is_some_and(|last| last > *at) => {
                    return Err(format!(
                        "sender order: {:x} comes before one that was sent before it",
                        sent.number
                    ));
                }
                Some(at) => *last = Some(*at),
                None => *is_over = true,
            }
        }
    }
    Ok(counts)
}

/// Takes out of what was told what no log has in the end. Returns how much that is.
fn forget_what_was_ahead(pasts: &mut [Past]) -> Result<u64, String> {
    let mut places = HashMap::new();
    for told in pasts.iter().flat_map(|past| &past.told) {
        if let Told::Message { view, seq, sender, number, .. } = told
            && *places.entry((*view, *seq)).or_insert((*sender, *number)) != (*sender, *number)
        {
            return Err(format!(
                "differs: one was told {number:x} as {view}#{seq}, and another another message"
            ));
        }
    }
    let mut logged = HashSet::new();
    for told in pasts.iter().filter(|past| past.is_last).flat_map(|past| &past.told) {
        match told {
            Told::Message { number, .. } => drop(logged.insert(*number)),
            Told::Restored(state) => logged.extend(state.iter().map(|(_, number)| *number)),
            _ => {}
        }
    }
    let mut ahead = 0;
    for past in pasts {
        let mut is_ahead = false;
        let mut kept = Vec::new();
        for told in std::mem::take(&mut past.told) {
            match &told {
                Told::Message { number, .. } if !logged.contains(number) => {
                    (is_ahead, ahead) = (true, ahead + 1);
                    if past.is_last {
                        return Err(format!("lost: {number:x} is in no log, and node {} goes on", past.node));
                    }
                    continue;
                }
                Told::Message { number, .. } if is_ahead => {
                    return Err(format!(
                        "lost: node {} was told {number:x} behind what is in no log",
                        past.node
                    ));
                }
                Told::Restored(_) => is_ahead = false,
                _ => {}
            }
            kept.push(told);
        }
        past.told = kept;
    }
    Ok(ahead)
}

/// Checks everything.
pub(super) fn check(pasts: &[Past], guarantee: Guarantee) -> Result<Counts, String> {
    let mut senders = AllSent::default();
    let mut first = HashMap::new();
    for sent in pasts.iter().flat_map(|past| &past.sent) {
        senders.by_number.insert(sent.number, *sent);
        first.entry(sent.life).or_insert(sent.number);
    }
    let mut stays = Vec::new();
    for (at, past) in pasts.iter().enumerate() {
        let others = pasts.iter().enumerate().filter(|(other, _)| *other != at);
        let others = others.flat_map(|(_, other)| &other.sent).map(|sent| sent.life).collect();
        stays.extend(of_one(past, &others)?);
        truthful(past, &others, &senders)?;
    }
    for stay in &stays {
        let members: Vec<_> =
            stay.view.members.iter().map(|member| (member.node.0, member.incarnation)).collect();
        let of = members.iter().map(|(_, life)| ((*life, stay.view.id.0), members.clone()));
        senders.members.extend(of);
    }
    for stay in &stays {
        for got in &stay.got {
            let life = stay.view.member(NodeId(got.sender)).map(|member| member.incarnation);
            if life.is_none() || senders.get(got.number).map(|sent| sent.life) != life {
                return Err(format!(
                    "created: node {} delivered {got:?} in {}, which nobody sent as that",
                    stay.node, stay.view
                ));
            }
            if senders.is_for(got.number, stay.node, stay.life) == Some(false) {
                return Err(format!(
                    "not addressed: node {} delivered {got:?} in {}, which is for others (D12)",
                    stay.node, stay.view
                ));
            }
        }
    }
    let groups = agreed(&stays)?;
    let mut counts = Counts::default();
    let mut addressed = Addressed::default();
    for group in groups {
        let mut next: HashMap<Incarnation, Option<u64>> = HashMap::new();
        let mut whole = true;
        for (_, stays) in group {
            counts.views += 1;
            let canon = one_view(&stays, guarantee, &senders)?;
            whole &= canon.ended;
            let ended: Vec<_> =
                stays.iter().filter(|stay| stay.ended).map(|stay| (stay.node, stay.life)).collect();
            let all = merged(&stays, canon, guarantee)?;
            addressed.note(canon, &ended, &all, &senders);
            for got in &all {
                let Some(sent) = senders.get(got.number) else { continue };
                counts.resent += u64::from(sent.view != canon.view.id.0);
                counts.addressed += u64::from(sent.to != Nodes::ALL);
                let due =
                    next.entry(sent.life).or_insert_with(|| first.get(&sent.life).copied().filter(|_| whole));
                // What is for none of those who know how this view ended, nobody need have.
                while due.is_some_and(|due| {
                    let is_for = |(node, life): &(u32, _)| senders.is_for(due, *node, *life) == Some(true);
                    let is_addressed = senders.get(due).is_some_and(|sent| sent.to != Nodes::ALL);
                    due != got.number && is_addressed && !ended.iter().any(is_for)
                }) {
                    *due = due.map(|due| due + 1);
                }
                if due.is_some_and(|due| due != got.number) {
                    return Err(format!(
                        "sender order: in {} comes {:x} of node {}, and {:x} was next",
                        canon.view,
                        got.number,
                        got.sender,
                        due.unwrap_or_default()
                    ));
                }
                *due = Some(got.number + 1);
            }
            if !canon.ended {
                next.clear(); // nobody is left who knows how this view ended
            }
            for stay in &stays {
                counts.delivered += stay.got.len() as u64;
                counts.last_words += u64::from(!stay.ended) * stay.got.len() as u64;
            }
        }
    }
    addressed.check(pasts, &senders)?;
    Ok(counts)
}

/// D12: what senders are told of messages that are not for them.
#[derive(Default)]
struct Addressed {
    /// Where messages were delivered, by number.
    places: HashMap<u64, (u64, u64)>,
    /// Of those who were members together with a life, who was told how a view ended.
    ended: HashMap<(Incarnation, u64), Vec<(u32, Incarnation)>>,
}

impl Addressed {
    fn note(&mut self, canon: &Stay, ended: &[(u32, Incarnation)], all: &[Got], senders: &AllSent) {
        let view = canon.view.id.0;
        let is_addressed = |got: &&Got| senders.get(got.number).is_some_and(|sent| sent.to != Nodes::ALL);
        self.places.extend(all.iter().filter(is_addressed).map(|got| (got.number, (view, got.seq))));
        self.ended
            .extend(canon.view.members.iter().map(|member| ((member.incarnation, view), ended.to_vec())));
    }

    fn check(&self, pasts: &[Past], senders: &AllSent) -> Result<(), String> {
        for past in pasts {
            for (number, outcome) in &past.outcomes {
                let Some(sent) = senders.get(*number).filter(|sent| !sent.to.has(past.node)) else {
                    continue;
                };
                let place = self.places.get(number).copied();
                let is_true = match outcome {
                    Some(Ok(at)) => match place {
                        Some(place) => place == (at.view.0, at.seq.0),
                        // Whom it is for may be gone without a word.
                        None => {
                            let is_for =
                                |(node, life): &(u32, _)| senders.is_for(*number, *node, *life) == Some(true);
                            let ended = self.ended.get(&(sent.life, at.view.0));
                            !ended.is_some_and(|ended| ended.iter().any(is_for))
                        }
                    },
                    Some(Err(OutcomeError::NoDestination)) => place.is_none(),
                    _ => true,
                };
                if !is_true {
                    return Err(format!(
                        "untrue: node {} was told {outcome:?} of {number:x}, delivered at {place:?} (D12)",
                        past.node
                    ));
                }
            }
        }
        Ok(())
    }
}

/// What one process was told, as the stays of its lives.
fn of_one(past: &Past, others: &HashSet<Incarnation>) -> Result<Vec<Stay>, String> {
    let admissions = admissions(past, others);
    let node = past.node;
    let mut stays: Vec<Stay> = Vec::new();
    let mut is_open = false;
    // What is told of the time before a life was a member is of its source's (V7).
    let mut learns = None;
    for (at, told) in past.told.iter().enumerate() {
        match told {
            Told::Restored(_) => learns = admissions.get(&at).copied(),
            Told::View(view) if learns.is_some_and(|life| is_life(view, node) != life || life.is_none()) => {}
            Told::Message { .. } if learns.is_some() => {}
            Told::View(view) => {
                let life = view.member(NodeId(node)).map(|member| member.incarnation);
                if is_open && let Some(last) = stays.last_mut() {
                    if view.id <= last.view.id {
                        return Err(format!("node {node} was told {view} after {}", last.view));
                    }
                    if life.is_some_and(|life| life != last.life) {
                        return Err(format!("node {node} is another in {view} and was not told why"));
                    }
                    last.ended = true;
                    last.next = Some(view.id);
                }
                is_open = life.is_some();
                learns = None;
                if let Some(life) = life {
                    stays.push(Stay {
                        node,
                        life,
                        view: view.clone(),
                        got: Vec::new(),
                        ended: false,
                        next: None,
                    });
                }
            }
            Told::Message { view, seq, sender, number } => {
                let Some(stay) = stays.last_mut().filter(|stay| is_open && stay.view.id.0 == *view) else {
                    return Err(format!("node {node} was told {told:?}, and is not in that view (V4)"));
                };
                if stay.got.last().is_some_and(|last| last.seq >= *seq) {
                    return Err(format!("node {node}: sequence numbers of {} fall", stay.view));
                }
                stay.got.push(Got { seq: *seq, sender: *sender, number: *number });
            }
            Told::Evicted => (is_open, learns) = (false, None),
            Told::Ended(_) => {}
        }
    }
    let mut seen = HashMap::new();
    for stay in &stays {
        for got in &stay.got {
            if let Some(before) = seen.insert(got.number, stay.view.id) {
                return Err(format!(
                    "duplicate: node {node} delivered {:x} of node {} in view {before} and in view {} (D13)",
                    got.number, got.sender, stay.view.id
                ));
            }
        }
    }
    Ok(stays)
}

fn is_life(view: &View, node: u32) -> Option<Incarnation> {
    view.member(NodeId(node)).map(|member| member.incarnation)
}

/// As what a node that has restored a state is admitted, by where it is told of the state. Earlier lives of it may be members of views
/// that it is told before (V7); `others` are those of other processes.
fn admissions(past: &Past, others: &HashSet<Incarnation>) -> HashMap<usize, Option<Incarnation>> {
    let (mut mine, mut admissions) = (HashSet::new(), HashMap::new());
    let mut learns = false;
    for (at, told) in past.told.iter().enumerate() {
        match told {
            Told::Restored(_) => {
                let rest = &past.told[at + 1..];
                let end = rest.iter().position(|told| matches!(told, Told::Restored(_) | Told::Evicted));
                let (segment, next) = rest.split_at(end.unwrap_or(rest.len()));
                let lives = segment.iter().filter_map(|told| match told {
                    Told::View(view) => is_life(view, past.node),
                    _ => None,
                });
                let mut own = lives.filter(|life| !mine.contains(life) && !others.contains(life));
                let life = own.next_back().filter(|_| !matches!(next.first(), Some(Told::Restored(_))));
                mine.extend(life);
                admissions.insert(at, life);
                learns = true;
            }
            Told::Evicted => learns = false,
            Told::View(view) if !learns => mine.extend(is_life(view, past.node)),
            _ => {}
        }
    }
    admissions
}

/// D12: an outcome says that a message was delivered if and only if it was, here, and where it was.
fn truthful(past: &Past, others: &HashSet<Incarnation>, senders: &AllSent) -> Result<(), String> {
    let admissions = admissions(past, others);
    let mut own = BTreeMap::new();
    let mut learns = None;
    for (at, told) in past.told.iter().enumerate() {
        match told {
            Told::Restored(_) => learns = admissions.get(&at).copied(),
            Told::View(view)
                if learns.is_some_and(|life| is_life(view, past.node) == life && life.is_some()) =>
            {
                learns = None;
            }
            Told::Evicted => learns = None,
            _ => {}
        }
        if let Told::Message { view, seq, sender, number } = told
            && *sender == past.node
            && learns.is_none()
        {
            own.insert(*number, (*view, *seq));
        }
    }
    for (number, outcome) in &past.outcomes {
        let says = match outcome {
            Some(Ok(at)) => Some((at.view.0, at.seq.0)),
            _ => None,
        };
        let is_own = senders.get(*number).is_none_or(|sent| sent.to.has(past.node));
        if is_own && says != own.get(number).copied() {
            return Err(format!(
                "untrue: node {} was told {outcome:?} of {number:x}, which it delivered at {:?} (D12)",
                past.node,
                own.get(number)
            ));
        }
        if past.stopped && outcome.is_none() {
            return Err(format!("node {} stopped and says nothing of {number:x} (D12)", past.node));
        }
    }
    Ok(())
}

/// The stays by view, of each group of views that have to do with each other: no two of them have the same number (V1).
fn agreed(stays: &[Stay]) -> Result<Vec<BTreeMap<u64, Vec<&Stay>>>, String> {
    // Views with a life in common belong to the same group.
    let mut group_of: HashMap<Incarnation, usize> = HashMap::new();
    let mut groups: Vec<BTreeMap<u64, Vec<&Stay>>> = Vec::new();
    for stay in stays {
        let lives: Vec<_> = stay.view.members.iter().map(|member| member.incarnation).collect();
        let known: std::collections::BTreeSet<_> =
            lives.iter().filter_map(|life| group_of.get(life).copied()).collect();
        let mut known = known.into_iter();
        let group = known.next().unwrap_or_else(|| {
            groups.push(BTreeMap::new());
            groups.len() - 1
        });
        for other in known {
            for (view, mut stays) in std::mem::take(&mut groups[other]) {
                groups[group].entry(view).or_default().append(&mut stays);
            }
            group_of.values_mut().filter(|it| **it == other).for_each(|it| *it = group);
        }
        group_of.extend(lives.into_iter().map(|life| (life, group)));
        groups[group].entry(stay.view.id.0).or_default().push(stay);
    }
    for stays in groups.iter().flat_map(BTreeMap::values) {
        if let Some(other) = stays.iter().find(|stay| stay.view != stays[0].view) {
            return Err(format!(
                "two views {}: node {} was told {}, node {} {} (V1)",
                other.view.id, stays[0].node, stays[0].view, other.node, other.view
            ));
        }
    }
    Ok(groups)
}

/// What must hold of one view. Returns who knows how it ended; or, if nobody does, who has come furthest.
fn one_view<'a>(stays: &[&'a Stay], guarantee: Guarantee, senders: &AllSent) -> Result<&'a Stay, String> {
    let holds_data = |stay: &&&Stay| stay.view.rank_of(NodeId(stay.node)).is_some();
    let canon = stays.iter().filter(holds_data).max_by_key(|stay| (stay.ended, stay.got.len()));
    let Some(canon) = canon.copied() else { return Ok(stays[0]) };
    for stay in stays.iter().filter(holds_data) {
        if stay.ended && stay.next != canon.next {
            let (one, other) = (stay.next, canon.next);
            return Err(format!(
                "after view {} node {} was told {one:?}, node {} {other:?}",
                stay.view.id, stay.node, canon.node
            ));
        }
        // Whom a message is for makes a difference under this one alone (D12), and then not all others are like the furthest.
        let others = stays.iter().filter(holds_data).filter(|other| {
            if guarantee == Guarantee::Atomic { other.node != stay.node } else { other.node == canon.node }
        });
        for other in others {
            let (got, others) = for_both(stay, other, senders);
            if !is_same((stay, &got), (other, &others), guarantee) {
                return Err(format!(
                    "{} ({guarantee:?}) differs: node {} (told the next view: {}) and node {} (told the next view: {}) delivered\n{}\n{} (V4)",
                    canon.view,
                    stay.node,
                    stay.ended,
                    other.node,
                    other.ended,
                    difference(&got, &others),
                    difference(&others, &got),
                ));
            }
        }
    }
    Ok(canon)
}

/// What two were told that is for both.
fn for_both(one: &Stay, other: &Stay, senders: &AllSent) -> (Vec<Got>, Vec<Got>) {
    let is_for = |number, stay: &Stay| senders.is_for(number, stay.node, stay.life) == Some(true);
    let of = |stay: &Stay| -> Vec<Got> {
        let got = stay.got.iter().filter(|got| is_for(got.number, one) && is_for(got.number, other));
        got.copied().collect()
    };
    (of(one), of(other))
}

/// Whether one has been told what the other has, as far as it has come.
fn is_same((stay, one): (&Stay, &[Got]), (other, two): (&Stay, &[Got]), guarantee: Guarantee) -> bool {
    match guarantee {
        _ if stay.ended && other.ended => sorted(one, guarantee) == sorted(two, guarantee),
        Guarantee::Fifo => is_part(&by_sender(one), &by_sender(two)),
        Guarantee::Agreed => {
            // Beyond what the others have it may have delivered what is lost, or sent again.
            let known: HashSet<_> = two.iter().map(|got| got.number).collect();
            // So may the other, if nobody is left who knows how the view ended.
            let here: HashSet<_> = one.iter().map(|got| got.number).collect();
            let got = one.iter().filter(|got| known.contains(&got.number));
            let others = two.iter().filter(|got| other.ended || here.contains(&got.number));
            got.zip(others).all(|(one, other)| one.number == other.number)
        }
        _ if stay.ended => one.starts_with(two),
        _ if other.ended => two.starts_with(one),
        _ => one.iter().zip(two).all(|(one, two)| one == two),
    }
}

/// What was delivered in a view, whomever it was for.
fn merged(stays: &[&Stay], canon: &Stay, guarantee: Guarantee) -> Result<Vec<Got>, String> {
    if guarantee != Guarantee::Atomic {
        return Ok(canon.got.clone());
    }
    let mut all = BTreeMap::new();
    for got in stays.iter().flat_map(|stay| &stay.got) {
        if let Some(other) = all.insert(got.seq, *got).filter(|other| other != got) {
            return Err(format!("differs: {got:x?} and {other:x?} have one place in {} (D12)", canon.view));
        }
    }
    Ok(all.into_values().collect())
}

fn sorted(got: &[Got], guarantee: Guarantee) -> Vec<Got> {
    match guarantee {
        Guarantee::Fifo => {
            let mut got: Vec<_> = got.iter().map(|got| Got { seq: 0, ..*got }).collect();
            got.sort_by_key(|got| got.sender);
            got
        }
        _ => got.to_vec(),
    }
}

fn by_sender(got: &[Got]) -> BTreeMap<u32, Vec<u64>> {
    let mut senders: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
    for got in got {
        senders.entry(got.sender).or_default().push(got.number);
    }
    senders
}

/// Of each sender the one begins as the other.
fn is_part(one: &BTreeMap<u32, Vec<u64>>, other: &BTreeMap<u32, Vec<u64>>) -> bool {
    one.iter().all(|(sender, one)| {
        let other = other.get(sender).map_or(&[][..], Vec::as_slice);
        one.iter().zip(other).all(|(one, other)| one == other)
    })
}

/// The first that the one has in another place than the other, and how many there are.
fn difference(one: &[Got], other: &[Got]) -> String {
    let at = one.iter().zip(other).take_while(|(one, other)| one == other).count();
    format!("{} messages, from place {at} on {:x?}", one.len(), &one[at..one.len().min(at + 5)])
}

#[cfg(test)]
mod tests {
    use consort_dataplane::names::Seq;

    use super::*;
    use crate::view::{Member, Role};

    fn view(id: u64, nodes: &[u32]) -> Told {
        let member = |node: &u32| Member {
            node: NodeId(*node),
            incarnation: Incarnation(u64::from(*node)),
            address: ([10, 0, 0, 1], 7101).into(),
            role: Role::Data,
            domain: crate::view::Domain::default(),
        };
        Told::View(View::of(ViewId(id), nodes.iter().map(member).collect()))
    }

    fn message(view: u64, seq: u64, sender: u32, number: u64) -> Told {
        Told::Message { view, seq, sender, number: u64::from(sender) << 32 | number }
    }

    fn past(node: u32, told: Vec<Told>) -> Past {
        let sent = (0..4).map(|number| Sent {
            number: u64::from(node) << 32 | number,
            life: Incarnation(u64::from(node)),
            view: 1,
            to: Nodes::ALL,
        });
        Past { node, told, sent: sent.collect(), outcomes: Vec::new(), stopped: true, is_last: false }
    }

    #[track_caller]
    fn found(pasts: &[Past], guarantee: Guarantee, what: &str) {
        let Err(error) = check(pasts, guarantee) else { panic!("{what} goes unnoticed") };
        assert!(error.contains(what), "{error}");
    }

    fn good() -> [Past; 2] {
        let told = || {
            vec![
                view(1, &[1, 2, 3]),
                message(1, 0, 1, 0),
                message(1, 1, 2, 0),
                view(2, &[1, 2]),
                message(2, 0, 1, 1),
            ]
        };
        [past(1, told()), past(2, told())]
    }

    #[test]
    fn each_kind_of_fault_is_found() {
        let all = [Guarantee::Fifo, Guarantee::Agreed, Guarantee::Atomic];
        for guarantee in all {
            let counts = check(&good(), guarantee).unwrap();
            assert_eq!((counts.views, counts.delivered, counts.resent), (2, 6, 1));

            let mut it = good();
            it[1].told.remove(1);
            found(&it, guarantee, "differs");
            let mut it = good();
            it[1].told[3] = view(2, &[2, 3]);
            it[1].told.truncate(4);
            found(&it, guarantee, "two views");
            let mut it = good();
            it.iter_mut().for_each(|it| it.told[4] = message(2, 0, 1, 2));
            found(&it, guarantee, "sender order");
            let mut it = good();
            it.iter_mut().for_each(|it| it.told[4] = message(2, 0, 1, 0));
            found(&it, guarantee, "duplicate");
            let mut it = good();
            it.iter_mut().for_each(|it| it.told[4] = message(2, 0, 1, 9));
            found(&it, guarantee, "created");
            let mut it = good();
            it[0].told.swap(2, 3);
            found(&it, guarantee, "not in that view");
            let mut it = good();
            it[0].told[3] = view(3, &[1, 2]);
            it[0].told[4] = message(3, 0, 1, 1);
            found(&it, guarantee, "after view 1");
            let mut it = good();
            it[0].outcomes.push((1 << 32, None));
            found(&it, guarantee, "untrue");
            let mut it = good();
            let at = Delivered { view: ViewId(1), seq: Seq(0) };
            it[0].outcomes.push((1 << 32 | 3, Some(Ok(at))));
            found(&it, guarantee, "untrue");
            let mut it = good();
            it[0].outcomes.push((1 << 32 | 3, None));
            found(&it, guarantee, "says nothing");
        }
    }

    /// Nodes 1 and 2, and of the first messages of 1 one is for 2 alone.
    fn addressed() -> [Past; 2] {
        let mut it = good();
        it[0].sent[0].to = Nodes(1 << 2);
        it[0].told.remove(1);
        it[0].outcomes = vec![(1 << 32, Some(Ok(Delivered { view: ViewId(1), seq: Seq(0) })))];
        it
    }

    // D12
    #[test]
    fn what_is_for_some_is_at_these_alone_and_told_truly() {
        let all = Guarantee::Atomic;
        assert_eq!(check(&addressed(), all).unwrap().addressed, 1);
        let mut it = addressed();
        it[0].told.insert(1, message(1, 0, 1, 0));
        found(&it, all, "not addressed");
        let mut it = addressed();
        it[1].told.remove(1);
        found(&it, all, "untrue");
        it[0].outcomes.clear();
        it.iter_mut().for_each(|it| it.told.push(view(3, &[1, 2])));
        found(&it, all, "sender order");
        let mut it = addressed();
        it[1].told[1] = message(1, 1, 1, 0);
        it[1].told[2] = message(1, 2, 2, 0);
        found(&it, all, "differs");
        let mut it = addressed();
        it[0].outcomes[0].1 = Some(Err(OutcomeError::NoDestination));
        found(&it, all, "untrue");
        // Whom it was for is gone without it.
        let mut it = addressed();
        it[1].told.truncate(1);
        check(&it, all).unwrap();
    }

    #[test]
    fn who_is_gone_may_have_delivered_what_its_guarantee_says() {
        let told = |more: Vec<Told>| past(3, [vec![view(1, &[1, 2, 3]), message(1, 0, 1, 0)], more].concat());
        let with = |third: Past| good().into_iter().chain([third]).collect::<Vec<_>>();
        // What is lost, after all that the others have.
        let lost = || with(told(vec![message(1, 1, 2, 0), message(1, 2, 3, 0)]));
        check(&lost(), Guarantee::Agreed).unwrap();
        found(&lost(), Guarantee::Atomic, "differs");
        // Two that are gone, and nobody knows how the view ended.
        let gone = |second: u32, third: [u32; 2]| {
            let of = |node: u32, senders: &[u32]| {
                let got = (0..).zip(senders).map(|(at, sender)| message(1, at, *sender, 0));
                past(node, [view(1, &[1, 2, 3])].into_iter().chain(got).collect())
            };
            vec![past(1, vec![view(1, &[1, 2, 3])]), of(2, &[1, second]), of(3, &third)]
        };
        check(&gone(2, [1, 3]), Guarantee::Agreed).unwrap();
        found(&gone(2, [1, 3]), Guarantee::Atomic, "differs");
        found(&gone(3, [3, 1]), Guarantee::Agreed, "differs");
        // Another order.
        let swapped = || with(past(3, vec![view(1, &[1, 2, 3]), message(1, 0, 2, 0), message(1, 1, 1, 0)]));
        check(&swapped(), Guarantee::Fifo).unwrap();
        found(&swapped(), Guarantee::Agreed, "differs");
        // A gap in one sender's.
        let gap = || with(past(3, vec![view(1, &[1, 2, 3]), message(1, 0, 1, 1)]));
        found(&gap(), Guarantee::Fifo, "differs");
    }
}
