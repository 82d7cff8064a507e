//! The change from one view to the next: one member's part in the single decree that decides view k+1 (V1 to V4), as a pure
//! state machine. It knows no time: who waits, and for how long, is [`crate::membership`]'s business, which says
//! [`Change::on_patience`] when it has waited enough. So the model checker can take every step of it in every order.
//!
//! # How view k+1 is decided
//! ```text
//!   leader (lowest voter that it doesn't suspect)          every voter, the leader included
//!     │ prepare(ballot, suspects, sessions) ─────────────►  promise the ballot; wedge the sessions that end (V2),
//!     │                                                     fence the suspects (F4); then report what is frozen
//!     │ ◄───────────────── promise(ballot, report, accepted)
//!     │ all whom it doesn't suspect, or enough patience and a majority: is all there that the value needs?
//!     │ fill(ballot, missing) ───────────────────────────►  where delivery does not wait for stability: get what others
//!     │ ◄───────────────── promise(ballot, report, accepted)  have, then promise again (V3)
//!     │ accept(ballot, next) ────────────────────────────►  accept
//!     │ ◄──────────────────────────────── accepted(ballot)
//!     │ a majority: decided
//!     └ decided(next) ───────────────────────────────────►  cut, deliver, install (V4); or: left out, stop (V5)
//! ```
//! - *One view at most* (V1). It is Paxos: an acceptor that promised a ballot takes part in no lower one, a proposer that hears of
//!   accepted values proposes the one with the highest ballot, *whole* (V3), and any two majorities share a voter. Votes are as old
//!   as the incarnation: a node that starts again is no voter of the old view.
//! - *The trim is right* (V4). Before a report is given the sessions are frozen; so nobody acknowledges anything afterwards, and what was
//!   stable anywhere before is received at every reporter. Hence it lies below the least `received` of any set of reporters. Where
//!   delivery did not wait for stability, the trim is the greatest, and there is no value before all who go on have everything
//!   below it. It must not be left to those who accept: a majority may be witnesses and one member with the records, which can
//!   still be lost. So whoever goes on has, when a value is decided, all that it is to deliver.
//! - *Only what must end ends.* A session goes on over the change if its shard has the same members in the next view and nobody has wedged
//!   it. Which ones end the proposer foresees, from whom it suspects and who comes; where the reports say that others end too, it
//!   asks again in a higher ballot. Whatever was wedged anywhere ends, in this change or, if a value that spares it was accepted already,
//!   in the next.
//! - *Any proposer can die* in any phase: what it left is promises and accepted values at the acceptors, and the next
//!   leader finds both.
//! - *Suspects vote too*, if they can be reached: they are only not waited for, and not taken into the next view. So members that have all
//!   lost sight of each other and found it again still come to a decision.
//!
//! # What a decision does not say
//! That the others live. A member of the next view that is gone by then is the next change's business.

mod value;
mod ballot;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::Arc;

use consort_dataplane::names::NodeId;

use crate::view::{Shard, ShardId, ShardShape, View};

pub use ballot::{Ballot, Saying};
use value::Choice;
pub use value::{Candidate, Cut, Frozen, Missing, Next, Place, Report, Trimming, Wishes};

/// What is to be done for a change.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Effect {
    /// Wedge the sessions of these shards and cut the links to these members; then tell [`Change::on_wedged`] of all sessions that are
    /// wedged here. One that is said while another is carried out adds to it: tell once, when all is done.
    Wedge {
        /// What ends.
        shards: Vec<ShardId>,
        /// Whom to fence.
        fence: Vec<NodeId>,
    },
    /// Say something to a member, if it can be reached.
    Say(NodeId, Saying),
    /// Get what is missing of a ring from one who has it, then tell [`Change::on_supplied`].
    Fetch(Fetch),
    /// The next view is decided.
    Decided(Next),
}

/// A part of a ring that is missing here.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Fetch {
    /// Whose session.
    pub shard: ShardId,
    /// The rank of the ring's owner there.
    pub rank: usize,
    /// Where the missing part begins.
    pub from: u64,
    /// Where it ends.
    pub to: u64,
    /// Who has it.
    pub holder: NodeId,
}

/// Where a member stands in a change (V11). Prints as a phrase.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Phase {
    /// Nothing has begun.
    Idle,
    /// The sessions are being wedged and the suspects fenced.
    Wedging,
    /// It leads, and waits for the reports of these.
    Reporting(Vec<NodeId>),
    /// It leads, and waits until these have what they lack below the trims.
    Filling(Vec<NodeId>),
    /// It leads, and waits until these have freed the memory of the view before.
    Freeing(Vec<NodeId>),
    /// It leads, and waits for a member that has all of these shards' logs.
    Lacking(Vec<ShardId>),
    /// It leads, and waits for a majority to accept.
    Accepting {
        /// Who has.
        accepted: Vec<NodeId>,
        /// How many it takes.
        needed: usize,
    },
    /// It has promised, and waits for who leads.
    Promised(Ballot),
    /// It gets what is missing below the trims.
    Fetching,
    /// It has accepted, and waits for the decision.
    Accepted(Ballot),
    /// It is decided.
    Decided,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list =
            |nodes: &[NodeId]| nodes.iter().map(|n| format!("node {n}")).collect::<Vec<_>>().join(", ");
        match self {
            Self::Idle => f.write_str("not begun"),
            Self::Wedging => f.write_str("stopping the sessions and cutting off suspects (V2)"),
            Self::Reporting(nodes) => write!(f, "leading, waiting for the report of {} (V3)", list(nodes)),
            Self::Filling(nodes) => {
                write!(f, "leading, waiting for {} to get what others have (V3)", list(nodes))
            }
            Self::Freeing(nodes) => {
                write!(
                    f,
                    "leading, waiting for {} to let go the messages of the view before (V10)",
                    list(nodes)
                )
            }
            Self::Lacking(shards) => {
                let shards = shards.iter().map(|id| format!("shard {id}")).collect::<Vec<_>>().join(", ");
                write!(
                    f,
                    "leading, waiting for a member that has all of the log of {shards}: those that had it were lost while the others \
                     fetched it (P3)"
                )
            }
            Self::Accepting { accepted, needed } => {
                write!(f, "leading, {} of {needed} have accepted (V1)", accepted.len())
            }
            Self::Promised(ballot) => write!(f, "promised {ballot}, waiting for its value (V3)"),
            Self::Fetching => f.write_str("getting records that are missing below the trim (V3)"),
            Self::Accepted(ballot) => write!(f, "accepted {ballot}, waiting for the decision (V1)"),
            Self::Decided => f.write_str("decided"),
        }
    }
}

/// A rule to break on purpose, so that tests can show that they would notice.
#[cfg(any(test, feature = "mutants"))]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Mutant {
    /// V1: one voter is enough.
    NoMajority,
    /// V2: a report is given before the sessions are frozen: it tells what was received when they began.
    NotFrozen,
    /// V3: a proposer that learns of an accepted value proposes its own.
    OwnValue,
    /// V3: it takes the accepted view, but with trims of its own: a blend.
    Blend,
    /// V3: the trim is the greatest where it must be the least: not all have what lies below it.
    GreatestTrim,
    /// V3: the trim is the least where it must be the greatest: not all that was delivered lies below it.
    LeastTrim,
    /// V3: a value is proposed before all who go on have what lies below its trim.
    Unfilled,
    /// V3: two members go on with each other that have no link.
    Severed,
    /// V7: a joiner is taken in that not everyone is linked to.
    Unlinked,
    /// V10: nobody waits for the memory of the view before.
    NotFree,
    /// V2: a session ends that not all who go on have wedged.
    Unwedged,
    /// What got lost is not said again.
    Mute,
}

/// One member's part in a change. See the [module](self).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Change {
    me: NodeId,
    view: View,
    shapes: Arc<[ShardShape]>,
    wishes: Wishes,
    suspects: BTreeSet<NodeId>,
    /// The shards whose sessions end, as far as is known here: those that were wedged stay so.
    ending: BTreeSet<ShardId>,
    /// Takes part in nothing lower.
    promised: Ballot,
    /// The highest that was heard of: what to outbid.
    highest: Ballot,
    accepted: Option<(Ballot, Next)>,
    /// Where this member stood when it was wedged, and what it got since.
    report: Option<Report>,
    /// The driver is wedging and fencing: there is more to come than `report` tells.
    wedging: bool,
    /// Places that were freed since (V10).
    freed: BTreeSet<Place>,
    /// What it is getting, for the ballot that is promised: of which ring, up to where.
    filling: BTreeMap<(ShardId, usize), u64>,
    proposal: Option<Proposal>,
    decided: Option<Next>,
    effects: VecDeque<Effect>,
    #[cfg(any(test, feature = "mutants"))]
    mutant: Option<Mutant>,
}

/// What a leader has of its ballot.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct Proposal {
    promises: BTreeMap<NodeId, Promise>,
    /// Who was asked to get what.
    asked: BTreeMap<NodeId, Vec<Missing>>,
    /// It has waited long enough for who has not reported.
    patient: bool,
    /// The value, once it is chosen.
    next: Option<Next>,
    accepted: BTreeSet<NodeId>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Promise {
    report: Report,
    accepted: Option<(Ballot, Next)>,
}

impl Proposal {
    fn reports(&self) -> BTreeMap<NodeId, &Report> {
        self.promises.iter().map(|(node, promise)| (*node, &promise.report)).collect()
    }

    /// The value with the highest ballot that anyone accepted.
    fn accepted_before(&self) -> Option<&Next> {
        let accepted = self.promises.values().filter_map(|promise| promise.accepted.as_ref());
        accepted.max_by_key(|(ballot, _)| *ballot).map(|(_, next)| next)
    }
}

impl Change {
    /// The change that ends `view` at member `me`. In `wedged` are the shards whose sessions were wedged here in the change before,
    /// and spared by its value.
    pub fn new(me: NodeId, view: View, shapes: Arc<[ShardShape]>, wedged: BTreeSet<ShardId>) -> Self {
        Self {
            me,
            view,
            shapes,
            wishes: Wishes::default(),
            suspects: BTreeSet::new(),
            ending: wedged,
            promised: Ballot::NONE,
            highest: Ballot::NONE,
            accepted: None,
            report: None,
            wedging: false,
            freed: BTreeSet::new(),
            filling: BTreeMap::new(),
            proposal: None,
            decided: None,
            effects: VecDeque::new(),
            #[cfg(any(test, feature = "mutants"))]
            mutant: None,
        }
    }

    /// The view that ends.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// The value that this member accepted last, and in which ballot.
    pub fn accepted(&self) -> Option<&(Ballot, Next)> {
        self.accepted.as_ref()
    }

    /// What came of it, if it is decided.
    pub fn decided(&self) -> Option<&Next> {
        self.decided.as_ref()
    }

    /// Whether this member can end where a value says: it has everything below the trims, and has delivered nothing beyond. Whoever
    /// goes on can; who leaves may have been left behind, or, where delivery did not wait for stability, be ahead with what is lost.
    pub fn covers(&self, next: &Next) -> bool {
        let Some(report) = self.report.as_ref().filter(|_| !self.wedging) else { return false };
        next.cuts.iter().all(|cut| {
            let shape = usize::try_from(cut.shard.0).ok().and_then(|at| self.shapes.get(at));
            let trimming = shape.map_or(Trimming::Least, Trimming::of);
            let ends = |(to, at): (&u64, &u64)| match trimming {
                Trimming::Least => to <= at,
                Trimming::Greatest => to == at, // what it received it may have delivered
            };
            let is_mine = self.view.shard(cut.shard).is_some_and(|shard| shard.members.contains(&self.me));
            let frozen = report.of(cut.shard);
            !is_mine || frozen.is_some_and(|frozen| cut.trim.iter().zip(&frozen.received).all(ends))
        })
    }

    /// Whether the sessions are wedged, or about to be: there is no way back to the view.
    pub fn has_begun(&self) -> bool {
        self.promised != Ballot::NONE
    }

    /// Whom this member takes for gone.
    pub fn suspects(&self) -> &BTreeSet<NodeId> {
        &self.suspects
    }

    /// Who is to propose, as this member sees it: the lowest in rank of the voters whom it doesn't suspect.
    pub fn leader(&self) -> NodeId {
        self.view.nodes().into_iter().find(|node| !self.suspects.contains(node)).unwrap_or(self.me)
    }

    /// Where it stands.
    pub fn phase(&self) -> Phase {
        if self.decided.is_some() {
            return Phase::Decided;
        }
        if !self.has_begun() {
            return Phase::Idle;
        }
        if self.wedging {
            return Phase::Wedging;
        }
        if let Some(proposal) = &self.proposal {
            return self.leading(proposal);
        }
        match &self.accepted {
            Some((ballot, _)) if *ballot == self.promised => Phase::Accepted(*ballot),
            _ if !self.filling.is_empty() => Phase::Fetching,
            _ => Phase::Promised(self.promised),
        }
    }

    /// What a leader waits for.
    fn leading(&self, proposal: &Proposal) -> Phase {
        if proposal.next.is_some() {
            let accepted = proposal.accepted.iter().copied().collect();
            return Phase::Accepting { accepted, needed: self.view.majority() };
        }
        let all = self.view.nodes();
        let silent = all.iter().copied().filter(|node| !proposal.promises.contains_key(node));
        if self.waits_for_reports(proposal) {
            // Suspects vote too: where there are not enough others, it waits for any of them.
            let (suspects, others): (Vec<_>, Vec<_>) =
                silent.partition(|node| proposal.patient || self.suspects.contains(node));
            return Phase::Reporting(if others.is_empty() { suspects } else { others });
        }
        let missing = self.missing(proposal);
        if !missing.is_empty() {
            return Phase::Filling(missing.into_keys().collect());
        }
        match self.value(proposal) {
            Choice::Lacks(shards) => Phase::Lacking(shards),
            Choice::Busy(nodes) => Phase::Freeing(nodes),
            _ => Phase::Reporting(silent.collect()),
        }
    }

    /// What is to be done, in this order.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// Who wants to come and go, now. It counts for values that are chosen from here on.
    pub fn on_wishes(&mut self, wishes: Wishes) {
        self.wishes = wishes;
    }

    /// There is a reason for a change: begins one, if this member leads and none is under way; else tells who may lead.
    pub fn on_reason(&mut self) {
        if self.decided.is_some() {
            return;
        }
        if self.leader() == self.me {
            self.begin();
        } else if !self.has_begun() {
            self.nudge();
        }
    }

    /// Tells all who may lead. Whom this member suspects, the others may follow: it is told too, if it can be reached.
    fn nudge(&mut self) {
        let older = self.view.nodes().into_iter().take_while(|node| *node != self.me);
        for node in older.collect::<Vec<_>>() {
            self.say(node, Saying::Nudge);
        }
    }

    /// A member is taken for gone (V9): it is fenced, not waited for, and not taken into the next view.
    pub fn on_suspect(&mut self, node: NodeId) {
        if node == self.me || self.view.member(node).is_none() || !self.suspects.insert(node) {
            return;
        }
        if self.decided.is_some() {
            return; // who hears of the decision fences whom it leaves out
        }
        if let Some(proposal) = &mut self.proposal {
            proposal.asked.clear(); // it may have been to supply others
        }
        let before = self.promised;
        self.on_reason();
        if self.has_begun() && self.promised == before && node != self.promised.node {
            self.wedge();
        }
    }

    /// The link to a member is gone: who has reported already reports that too.
    pub fn on_severed(&mut self) {
        if self.has_begun() && self.decided.is_none() {
            self.wedge();
        }
    }

    /// Enough time has passed without a decision. Whom it waits for, it waits for no longer; what got lost is said again.
    pub fn on_patience(&mut self) {
        if self.decided.is_some() {
            return;
        }
        if !self.has_begun() {
            if !self.suspects.is_empty() {
                self.on_reason();
            }
            return;
        }
        #[cfg(any(test, feature = "mutants"))]
        if self.mutant == Some(Mutant::Mute) && self.proposal.is_none() {
            return;
        }
        let Some(proposal) = &mut self.proposal else {
            if self.leader() == self.me {
                return self.propose();
            }
            return self.nudge();
        };
        let had_value = proposal.next.is_some();
        if !had_value {
            proposal.patient = true;
            proposal.asked.clear();
            self.go_on();
        }
        let Some(proposal) = &self.proposal else { return };
        if proposal.next.is_some() != had_value {
            return; // all were asked just now
        }
        let answered = |node: &NodeId| match (&proposal.next, proposal.promises.get(node)) {
            (Some(_), _) => proposal.accepted.contains(node),
            (None, promise) => promise.is_some_and(|promise| promise.report.busy.is_empty()),
        };
        let others = self.view.nodes().into_iter().filter(|node| *node != self.me && !answered(node));
        let others: Vec<_> = others.collect();
        #[cfg(any(test, feature = "mutants"))]
        let others = if self.mutant == Some(Mutant::Mute) { Vec::new() } else { others };
        for node in others {
            self.ask(node);
        }
    }

    /// A member can be reached (again): what it may have missed is said once more.
    pub fn on_reachable(&mut self, node: NodeId) {
        if node == self.me || self.view.member(node).is_none() {
            return;
        }
        if let Some(next) = &self.decided {
            let decided = Saying::Decided(next.clone());
            return self.say(node, decided);
        }
        if self.proposal.is_some() {
            self.ask(node);
        } else if self.promised.node == node {
            self.promise();
        }
    }

    /// The sessions are wedged, all suspects so far are fenced, and this is where things stand.
    pub fn on_wedged(&mut self, report: Report) {
        let mut report = report;
        if let Some(before) = self.report.take() {
            let Report { severed, linked, .. } = report.clone();
            report.take_in(before);
            (report.severed, report.linked) = (severed, linked);
        }
        report.busy.retain(|place| !self.freed.contains(place));
        report.suspects = self.suspects.iter().copied().collect();
        self.report = Some(report);
        self.wedging = false;
        self.promise();
    }

    /// What was missing of a ring is here.
    pub fn on_supplied(&mut self, shard: ShardId, rank: usize, to: u64) {
        let received = self.report.as_mut().and_then(|report| report.received(shard, rank));
        let Some(received) = received.filter(|received| to > **received) else { return };
        *received = to;
        self.filling.retain(|filling, most| *filling != (shard, rank) || *most > to);
        // It may have been asked for in a ballot before this one: whoever leads is told all the same.
        if self.filling.is_empty() {
            self.promise();
        }
    }

    /// A session that ended in an earlier change is retired here now: its place is free (V10).
    pub fn on_free(&mut self, place: Place) {
        self.freed.insert(place);
        let Some(report) = &mut self.report else { return };
        let before = report.busy.len();
        report.busy.retain(|busy| *busy != place);
        if report.busy.len() < before {
            self.promise();
        }
    }

    /// This member's log of a shard lacks nothing any more (P3).
    pub fn on_whole(&mut self, shard: ShardId) {
        let Some(report) = &mut self.report else { return };
        let before = report.lacks.len();
        report.lacks.retain(|lacks| *lacks != shard);
        if report.lacks.len() < before {
            self.promise();
        }
    }

    /// A leader's: the durable shards of which nobody would go on who has all of the log.
    pub fn lacking(&self) -> Vec<ShardId> {
        if let Some(Choice::Lacks(shards)) = self.chosen() { shards } else { Vec::new() }
    }

    /// A leader's: members who would go on, and still read what the next view's sessions would write over (V10).
    pub fn held_up_by(&self) -> Vec<NodeId> {
        if let Some(Choice::Busy(nodes)) = self.chosen() { nodes } else { Vec::new() }
    }

    /// A leader's: what follows from the reports, once they are there, as long as it has not asked anyone to accept it.
    fn chosen(&self) -> Option<Choice> {
        let proposal = self.proposal.as_ref().filter(|proposal| proposal.next.is_none())?;
        (!self.wedging && !self.waits_for_reports(proposal)).then(|| self.value(proposal))
    }

    /// A member of the view says something.
    pub fn on_said(&mut self, from: NodeId, saying: Saying) {
        if self.view.member(from).is_none() {
            return;
        }
        if let Some(next) = &self.decided {
            // Whoever still asks has not heard.
            if matches!(
                saying,
                Saying::Nudge | Saying::Prepare { .. } | Saying::Accept { .. } | Saying::Promise { .. }
            ) {
                let decided = Saying::Decided(next.clone());
                self.say(from, decided);
            }
            return;
        }
        match saying {
            Saying::Nudge => self.begin(),
            Saying::Prepare { ballot, ending, .. } => self.on_prepare(from, ballot, ending),
            Saying::Promise { ballot, report, accepted } => {
                let sane =
                    accepted.as_ref().is_none_or(|it| it.0.is_sane() && value::is_next(&self.view, &it.1));
                if sane && value::is_sound(&self.view, from, &report) {
                    self.on_promise(from, ballot, Promise { report, accepted });
                }
            }
            Saying::Outbid { ballot, by } => {
                if by.is_sane() {
                    self.highest = self.highest.max(by);
                    if self.is_mine(ballot) && by > ballot {
                        // The rival goes on. If it can't, patience brings another attempt.
                        self.proposal = None;
                    }
                }
            }
            Saying::Fill { ballot, missing } => self.on_fill(from, ballot, &missing),
            Saying::Accept { ballot, next } => self.on_accept(from, ballot, next),
            Saying::Accepted { ballot } => {
                if self.is_mine(ballot) {
                    self.count(from);
                }
            }
            Saying::Decided(next) => {
                if value::is_next(&self.view, &next) {
                    self.decide(next);
                }
            }
        }
    }

    /// Proposes, if this member leads and nobody else is at it whom it could wait for.
    fn begin(&mut self) {
        let rival = self.has_begun() && self.promised.node != self.me;
        let waits = rival && !self.suspects.contains(&self.promised.node);
        if self.leader() == self.me && self.proposal.is_none() && !waits {
            self.propose();
        }
    }

    /// The proposer's: starts an attempt above all that was heard of.
    fn propose(&mut self) {
        self.ending.extend(value::expected(&self.view, &self.suspects, &self.wishes, &self.shapes));
        self.highest = self.highest.max(self.promised);
        self.promised = Ballot { round: self.highest.round + 1, node: self.me };
        self.proposal = Some(Proposal::default());
        self.filling.clear();
        for node in self.view.nodes() {
            self.ask(node);
        }
        self.wedge();
    }

    /// The proposer's: says to a member what it is to answer next.
    fn ask(&mut self, node: NodeId) {
        let Some(proposal) = &self.proposal else { return };
        let ballot = self.promised;
        let saying = match &proposal.next {
            Some(next) => Saying::Accept { ballot, next: next.clone() },
            None => Saying::Prepare {
                ballot,
                suspects: self.suspects.iter().copied().collect(),
                ending: self.ending.iter().copied().collect(),
            },
        };
        if node != self.me {
            self.say(node, saying);
        }
    }

    /// V2: nothing is reported before everything is frozen, and the suspects are fenced.
    ///
    /// Fenced are those whom this member suspects itself. A proposer's word is not enough: one that was left out, and takes
    /// everyone else for gone, would have members cut each other off who go on together. Nor is it needed: what is wedged reads nothing
    /// any more, and whom the value leaves out is fenced by the decision.
    fn wedge(&mut self) {
        // Whoever leads, and is heard, is not gone. If the link to it is, the reports say so.
        let fence = self.suspects.iter().copied().filter(|node| *node != self.promised.node).collect();
        self.wedging = true;
        // Who is fenced says nothing more: what it took part in can't go on here.
        let has_suspect = |shard: &Shard| shard.members.iter().any(|it| self.suspects.contains(it));
        let broken = self.view.shards().filter(|(_, shard)| has_suspect(shard)).map(|(id, _)| id);
        let broken: Vec<_> = broken.collect();
        self.ending.extend(broken);
        let shards = self.ending.iter().copied().collect();
        self.effects.push_back(Effect::Wedge { shards, fence });
        #[cfg(any(test, feature = "mutants"))]
        if self.mutant == Some(Mutant::NotFrozen) && self.report.is_none() {
            let mine = self.view.shards().filter(|(_, shard)| shard.members.contains(&self.me));
            let frozen = mine.filter(|(id, _)| self.ending.contains(id));
            let frozen = frozen.map(|(shard, it)| Frozen { shard, received: vec![0; it.members.len()] });
            self.report = Some(Report { frozen: frozen.collect(), ..Report::default() });
            self.wedging = false;
            self.promise();
        }
    }

    fn on_prepare(&mut self, from: NodeId, ballot: Ballot, ending: Vec<ShardId>) {
        if self.is_current(from, ballot) {
            self.promise(); // it was said twice, or the answer got lost
        } else if ballot > self.promised && self.is_proposal(from, ballot) {
            self.ending.extend(ending.into_iter().filter(|shard| self.view.shard(*shard).is_some()));
            self.follow(ballot);
        }
    }

    /// Whether that is the ballot that is promised. If it is a lower one, its proposer is told.
    fn is_current(&mut self, from: NodeId, ballot: Ballot) -> bool {
        if !self.is_proposal(from, ballot) {
            return false;
        }
        self.highest = self.highest.max(ballot);
        if ballot < self.promised {
            self.say(from, Saying::Outbid { ballot, by: self.promised });
        }
        ballot == self.promised
    }

    /// Whether a member can have proposed this (S1).
    fn is_proposal(&self, from: NodeId, ballot: Ballot) -> bool {
        ballot.node == from && from != self.me && ballot.is_sane()
    }

    /// Promises a ballot of another member, as soon as there is something to report.
    fn follow(&mut self, ballot: Ballot) {
        self.promised = ballot;
        self.proposal = None;
        self.filling.clear();
        self.wedge();
    }

    /// Answers the ballot that is promised, once there is something to report, and again when there is more.
    fn promise(&mut self) {
        let Some(report) = self.report.clone() else { return };
        if self.wedging || !self.has_begun() || self.decided.is_some() {
            return;
        }
        let (ballot, accepted) = (self.promised, self.accepted.clone());
        if ballot.node != self.me {
            self.say(ballot.node, Saying::Promise { ballot, report, accepted });
        } else {
            self.on_promise(self.me, ballot, Promise { report, accepted });
        }
    }

    fn on_promise(&mut self, from: NodeId, ballot: Ballot, promise: Promise) {
        let is_mine = self.is_mine(ballot);
        let Some(proposal) = self.proposal.as_mut().filter(|it| is_mine && it.next.is_none()) else { return };
        match proposal.promises.entry(from) {
            Entry::Vacant(place) => {
                place.insert(promise);
            }
            // Said again. What it accepted before this ballot is the same.
            Entry::Occupied(mut known) => known.get_mut().report.take_in(promise.report),
        }
        self.go_on();
    }

    fn is_mine(&self, ballot: Ballot) -> bool {
        self.proposal.is_some() && ballot == self.promised
    }

    /// V3: all whom it doesn't suspect, or patience; a majority at least.
    fn waits_for_reports(&self, proposal: &Proposal) -> bool {
        let missing = |node: &NodeId| !self.suspects.contains(node) && !proposal.promises.contains_key(node);
        proposal.promises.len() < self.majority()
            || !proposal.patient && self.view.nodes().iter().any(missing)
    }

    fn majority(&self) -> usize {
        #[cfg(any(test, feature = "mutants"))]
        if self.mutant == Some(Mutant::NoMajority) {
            return 1;
        }
        self.view.majority()
    }

    /// The leader's next step, if there is one to take: have what is missing filled in, choose the value, ask to accept it.
    fn go_on(&mut self) {
        let Some(proposal) = &self.proposal else { return };
        if proposal.next.is_some() || self.wedging || self.waits_for_reports(proposal) {
            return;
        }
        let next = match self.value(proposal) {
            Choice::Wedge(more) => {
                self.ending.extend(more);
                return self.propose();
            }
            _ if !self.missing(proposal).is_empty() => return self.fill(self.missing(proposal)),
            Choice::None | Choice::Busy(_) | Choice::Lacks(_) => return,
            Choice::Next(next) => next,
        };
        let ballot = self.promised;
        if let Some(proposal) = &mut self.proposal {
            proposal.next = Some(next.clone());
        }
        for node in self.view.nodes() {
            self.ask(node);
        }
        self.accept(ballot, next);
    }

    /// V3: what those who would go on must get before there is a value. A value that was accepted before was chosen when its
    /// members had everything.
    fn missing(&self, proposal: &Proposal) -> BTreeMap<NodeId, Vec<Missing>> {
        if proposal.accepted_before().is_some() {
            return BTreeMap::new();
        }
        #[cfg(any(test, feature = "mutants"))]
        if matches!(self.mutant, Some(Mutant::Unfilled | Mutant::LeastTrim)) {
            return BTreeMap::new();
        }
        value::missing(&self.view, &proposal.reports(), &self.suspects, &self.wishes.leaving, &self.shapes)
    }

    /// Sees to it that they get it.
    fn fill(&mut self, missing: BTreeMap<NodeId, Vec<Missing>>) {
        let ballot = self.promised;
        for (node, missing) in missing {
            let Some(proposal) = &mut self.proposal else { return };
            let parts =
                |missing: &[Missing]| missing.iter().map(|it| (it.shard, it.rank, it.to)).collect::<Vec<_>>();
            // Who else has it by now is no reason to ask another.
            if proposal.asked.get(&node).is_some_and(|asked| parts(asked) == parts(&missing)) {
                continue;
            }
            proposal.asked.insert(node, missing.clone());
            if node == self.me {
                self.fetch(&missing);
                if self.filling.is_empty() {
                    return self.promise(); // it came in the meantime
                }
            } else {
                self.say(node, Saying::Fill { ballot, missing });
            }
        }
    }

    fn on_fill(&mut self, from: NodeId, ballot: Ballot, missing: &[Missing]) {
        if self.is_current(from, ballot) {
            self.fetch(missing);
            if self.filling.is_empty() {
                self.promise(); // it has it already
            }
        }
    }

    /// Gets what is missing here.
    fn fetch(&mut self, missing: &[Missing]) {
        let Some(report) = &mut self.report else { return };
        self.filling.clear();
        for Missing { shard, rank, to, holder } in missing.iter().copied() {
            if let Some(from) =
                report.received(shard, rank).map(|received| *received).filter(|from| *from < to)
                && holder != self.me
                && self.view.shard(shard).is_some_and(|shard| shard.members.contains(&holder))
            {
                self.filling.insert((shard, rank), to);
                self.effects.push_back(Effect::Fetch(Fetch { shard, rank, from, to, holder }));
            }
        }
    }

    /// V3: the accepted value with the highest ballot, whole, if there is one; else what follows from the reports.
    fn value(&self, proposal: &Proposal) -> Choice {
        let accepted = proposal.accepted_before();
        let reports = proposal.reports();
        let wishes = &self.wishes;
        #[cfg(not(any(test, feature = "mutants")))]
        let trimming = Trimming::of;
        #[cfg(any(test, feature = "mutants"))]
        let trimming = |shape: &ShardShape| match self.mutant {
            Some(Mutant::GreatestTrim) => Trimming::Greatest,
            Some(Mutant::LeastTrim) => Trimming::Least,
            _ => Trimming::of(shape),
        };
        #[cfg(any(test, feature = "mutants"))]
        let mended: BTreeMap<NodeId, Report> =
            reports.iter().map(|(node, report)| (*node, self.break_rules(*node, report))).collect();
        #[cfg(any(test, feature = "mutants"))]
        let reports = mended.iter().map(|(node, report)| (*node, report)).collect();
        let own = || value::choose(&self.view, &reports, &self.suspects, wishes, &self.shapes, &trimming);
        #[cfg(any(test, feature = "mutants"))]
        match (self.mutant, accepted) {
            (Some(Mutant::OwnValue), _) => return own(),
            (Some(Mutant::Blend), Some(next)) => {
                let Choice::Next(Next { cuts, .. }) = own() else { return own() };
                return Choice::Next(Next { cuts, ..next.clone() });
            }
            _ => {}
        }
        accepted.cloned().map_or_else(own, Choice::Next)
    }

    /// A report as a proposer takes it that breaks a rule.
    #[cfg(any(test, feature = "mutants"))]
    fn break_rules(&self, node: NodeId, report: &Report) -> Report {
        let mut report = report.clone();
        match self.mutant {
            Some(Mutant::Severed) => report.severed.clear(),
            Some(Mutant::Unlinked) => {
                report.linked = self.wishes.joining.iter().map(|it| it.member.incarnation).collect();
            }
            Some(Mutant::NotFree) => report.busy.clear(),
            Some(Mutant::Unwedged) => {
                let mine = self.view.shards().filter(|(_, shard)| shard.members.contains(&node));
                let open: Vec<_> = mine.filter(|(id, _)| report.of(*id).is_none()).collect();
                let open = open.into_iter().filter(|(id, _)| self.ending.contains(id));
                let frozen = open.map(|(shard, it)| Frozen { shard, received: vec![0; it.members.len()] });
                report.frozen.extend(frozen.collect::<Vec<_>>());
            }
            _ => {}
        }
        report
    }

    fn on_accept(&mut self, from: NodeId, ballot: Ballot, next: Next) {
        if !value::is_next(&self.view, &next) {
            return;
        }
        if !self.is_current(from, ballot) {
            if ballot < self.promised || !self.is_proposal(from, ballot) {
                return;
            }
            self.follow(ballot); // its prepare got lost
        }
        self.accept(ballot, next);
    }

    /// Accepts a value of the ballot that is promised. What a voter has received doesn't matter: those who go on have
    /// reported, and have everything.
    fn accept(&mut self, ballot: Ballot, next: Next) {
        self.filling.clear();
        self.accepted = Some((ballot, next));
        if ballot.node == self.me {
            self.count(self.me);
        } else {
            self.say(ballot.node, Saying::Accepted { ballot });
        }
    }

    /// To the proposer: that voter accepted.
    fn count(&mut self, node: NodeId) {
        let majority = self.majority();
        let Some(proposal) = &mut self.proposal else { return };
        proposal.accepted.insert(node);
        if proposal.accepted.len() >= majority
            && let Some(next) = proposal.next.clone()
        {
            self.decide(next);
        }
    }

    /// It is decided; whoever may not know is told.
    fn decide(&mut self, next: Next) {
        if self.decided.is_some() {
            return;
        }
        for node in self.view.nodes() {
            // The proposer knows. The others may hear it from nobody else, if the proposer dies now.
            if node != self.me && (self.promised.node == self.me || !next.view.nodes().contains(&node)) {
                self.say(node, Saying::Decided(next.clone()));
            }
        }
        self.proposal = None;
        self.decided = Some(next.clone());
        self.effects.push_back(Effect::Decided(next));
    }

    fn say(&mut self, to: NodeId, saying: Saying) {
        self.effects.push_back(Effect::Say(to, saying));
    }

    /// Breaks a rule from now on, for tests of the tests.
    #[cfg(any(test, feature = "mutants"))]
    pub fn mutate(&mut self, mutant: Mutant) {
        self.mutant = Some(mutant);
    }
}

#[cfg(test)]
mod tests;
