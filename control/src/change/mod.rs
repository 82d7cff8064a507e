//! The change from one view to the next: one member's part in the single decree that decides view k+1 (V1 to V4), as a pure
//! state machine. It knows no time: who waits, and for how long, is [`crate::membership`]'s business, which says
//! [`Change::on_patience`] when it has waited enough. So the model checker can take every step of it in every order.
//!
//! # How view k+1 is decided
//! ```text
//!   leader (lowest voter that it doesn't suspect)          every voter, the leader included
//!     │ prepare(ballot, suspects) ───────────────────────►  promise the ballot; wedge the sessions of view k (V2),
//!     │                                                     fence the suspects (F4); then report what is frozen
//!     │ ◄───────────────── promise(ballot, report, accepted)
//!     │ all whom it doesn't suspect, or enough patience and a majority: the value (V3)
//!     │ accept(ballot, next) ────────────────────────────►  fetch what is missing below the trim, then accept
//!     │ ◄──────────────────────────────── accepted(ballot)
//!     │ a majority: decided
//!     └ decided(next) ───────────────────────────────────►  cut, deliver, install (V4); or: left out, stop (V5)
//! ```
//! - *One view at most* (V1). It is Paxos: an acceptor that promised a ballot takes part in no lower one, a proposer that hears of
//!   accepted values proposes the one with the highest ballot, *whole* (V3), and any two majorities share a voter. Votes are as old
//!   as the incarnation: a node that starts again is no voter of the old view.
//! - *The trim is right* (V4). Before a report is given the sessions are frozen; so nobody acknowledges anything afterwards, and what was
//!   stable anywhere before is received at every reporter. Hence it lies below the least `received` of any set of reporters. Where
//!   delivery did not wait for stability, the trim is the greatest, and nobody accepts a value before it has everything
//!   below the trims: then a majority has it when the value is decided, and whoever lacks it later can get it.
//! - *Any proposer can die* in any phase: what it left is promises and accepted values at the acceptors, and the next
//!   leader finds both.
//! - *Suspects vote too*, if they can be reached: they are only not waited for, and not taken into the next view. So members that have all
//!   lost sight of each other and found it again still come to a decision.
//!
//! # What a decision does not say
//! That the others live. A member of the next view that is gone by then is the next change's business.

mod ballot;
mod value;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;

use consort_dataplane::names::NodeId;

use crate::view::{GroupId, View};

pub use ballot::{Ballot, Saying};
pub use value::{Candidate, Cut, Frozen, Holder, Next, Report, Trimming, Wishes};

/// What is to be done for a change.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Effect {
    /// Wedge the view's sessions and cut the links to these members; then tell [`Change::on_wedged`].
    Wedge {
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
    pub group: GroupId,
    /// The rank of the ring's owner.
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
    /// It leads, and waits until these have freed the memory of the view before.
    Freeing(Vec<NodeId>),
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
            Self::Freeing(nodes) => {
                write!(
                    f,
                    "leading, waiting for {} to let go the messages of the view before (V10)",
                    list(nodes)
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
    /// V1: any two voters are enough.
    NoMajority,
    /// V2: a report is given before the sessions are frozen: it tells what was received at the first one.
    NotFrozen,
    /// V3: a proposer that learns of an accepted value proposes its own.
    OwnValue,
    /// V3: it takes the accepted view, but with trims of its own: a blend.
    Blend,
    /// V3: the trim is the greatest where it must be the least.
    GreatestTrim,
}

/// One member's part in a change. See the [module](self).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Change {
    me: NodeId,
    view: View,
    trimming: Trimming,
    wishes: Wishes,
    suspects: BTreeSet<NodeId>,
    /// Takes part in nothing lower.
    promised: Ballot,
    /// The highest that was heard of: what to outbid.
    highest: Ballot,
    accepted: Option<(Ballot, Next)>,
    /// What is frozen here. `None` while the driver is at it, or before.
    report: Option<Report>,
    /// A value that waits for what is missing below its trims.
    fetching: Option<(Ballot, Next)>,
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

impl Change {
    /// The change that ends `view` at member `me`.
    pub fn new(me: NodeId, view: View, trimming: Trimming) -> Self {
        Self {
            me,
            view,
            trimming,
            wishes: Wishes::default(),
            suspects: BTreeSet::new(),
            promised: Ballot::NONE,
            highest: Ballot::NONE,
            accepted: None,
            report: None,
            fetching: None,
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

    /// What came of it, if it is decided.
    pub fn decided(&self) -> Option<&Next> {
        self.decided.as_ref()
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
        if self.report.is_none() {
            return Phase::Wedging;
        }
        if let Some(proposal) = &self.proposal {
            let but = |has: &dyn Fn(&NodeId) -> bool| {
                self.view
                    .nodes()
                    .into_iter()
                    .filter(|node| !self.suspects.contains(node) && !has(node))
                    .collect()
            };
            let reported = |node: &NodeId| proposal.promises.contains_key(node);
            return match &proposal.next {
                Some(_) => {
                    let accepted = proposal.accepted.iter().copied().collect();
                    Phase::Accepting { accepted, needed: self.view.majority() }
                }
                None if self.waits_for_reports(proposal) => Phase::Reporting(but(&reported)),
                None => {
                    let free = |node: &NodeId| proposal.promises.get(node).is_none_or(|it| it.report.free);
                    Phase::Freeing(but(&free))
                }
            };
        }
        match (&self.fetching, &self.accepted) {
            (Some(_), _) => Phase::Fetching,
            (None, Some((ballot, _))) if *ballot == self.promised => Phase::Accepted(*ballot),
            _ => Phase::Promised(self.promised),
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

    /// Begins, if this member leads and has not: there is a reason for a change.
    pub fn on_reason(&mut self) {
        if self.decided.is_none() && self.proposal.is_none() && self.leader() == self.me {
            self.propose();
        }
    }

    /// A member is taken for gone (V9): it is fenced, not waited for, and not taken into the next view.
    pub fn on_suspect(&mut self, node: NodeId) {
        if node == self.me || self.view.member(node).is_none() || !self.suspects.insert(node) {
            return;
        }
        if self.decided.is_some() {
            return;
        }
        if self.proposal.is_some() {
            // It is told to nobody: who hears of the decision fences whom it leaves out.
            self.effects.push_back(Effect::Wedge { fence: vec![node] });
            self.report = None;
        } else {
            self.on_reason();
        }
    }

    /// Enough time has passed without a decision. Whom it waits for, it waits for no longer; what got lost is said again.
    pub fn on_patience(&mut self) {
        if self.decided.is_some() || !self.has_begun() {
            return;
        }
        let leads = self.leader() == self.me;
        match &mut self.proposal {
            Some(proposal) if proposal.next.is_none() => {
                proposal.patient = true;
                self.go_on();
            }
            Some(_) => self.propose(),
            None if leads => self.propose(),
            None => {}
        }
    }

    /// A member can be reached (again): what it may have missed is said once more.
    pub fn on_reachable(&mut self, node: NodeId) {
        if node == self.me {
            return;
        }
        if let Some(next) = &self.decided {
            let decided = Saying::Decided(next.clone());
            return self.say(node, decided);
        }
        match &self.proposal {
            Some(Proposal { next: Some(next), .. }) => {
                let accept = Saying::Accept { ballot: self.promised, next: next.clone() };
                self.say(node, accept);
            }
            Some(_) => {
                let prepare = self.prepare();
                self.say(node, prepare);
            }
            None => {
                if self.promised.node == node {
                    self.promise();
                }
            }
        }
    }

    /// The sessions are wedged, all suspects so far are fenced, and this is where things stand.
    pub fn on_wedged(&mut self, report: Report) {
        #[cfg(any(test, feature = "mutants"))]
        let report = match (&self.report, self.mutant) {
            (Some(first), Some(Mutant::NotFrozen)) => Report { frozen: first.frozen.clone(), ..report },
            _ => report,
        };
        self.report = Some(report);
        self.promise();
    }

    /// What was missing of a ring is here.
    pub fn on_supplied(&mut self, rank: usize, to: u64) {
        if let Some(frozen) = self.report.as_mut().and_then(|report| report.frozen.first_mut())
            && let Some(received) = frozen.received.get_mut(rank)
        {
            *received = (*received).max(to);
        }
        if let Some((ballot, next)) = self.fetching.take() {
            self.accept(ballot, next);
        }
    }

    /// The memory that the next view needs is free here now (V10).
    pub fn on_free(&mut self) {
        let Some(report) = self.report.as_mut().filter(|report| !report.free) else { return };
        report.free = true;
        if self.decided.is_some() {
            return;
        }
        if self.promised.node == self.me {
            self.freed(self.me);
        } else if self.has_begun() {
            self.say(self.promised.node, Saying::Free);
        }
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
            Saying::Nudge => self.on_reason(),
            Saying::Prepare { ballot, suspects } => self.on_prepare(from, ballot, suspects),
            Saying::Promise { ballot, report, accepted } => {
                if self.is_mine(ballot) && value::is_sound(&self.view, from, &report) {
                    let Some(proposal) = &mut self.proposal else { return };
                    proposal.promises.insert(from, Promise { report, accepted });
                    self.go_on();
                }
            }
            Saying::Outbid { ballot, by } => {
                self.highest = self.highest.max(by);
                if self.is_mine(ballot) {
                    // The rival goes on. If it can't, patience brings another attempt.
                    self.proposal = None;
                }
            }
            Saying::Free => self.freed(from),
            Saying::Accept { ballot, next } => self.on_accept(from, ballot, next),
            Saying::Accepted { ballot } => {
                if self.is_mine(ballot) {
                    self.count(from);
                }
            }
            Saying::Decided(next) => self.decide(next),
        }
    }

    /// The proposer's: starts an attempt above all that was heard of.
    fn propose(&mut self) {
        self.highest = self.highest.max(self.promised);
        self.promised = Ballot { round: self.highest.round + 1, node: self.me };
        self.proposal = Some(Proposal::default());
        self.fetching = None;
        let prepare = self.prepare();
        for node in self.view.nodes() {
            if node != self.me {
                self.say(node, prepare.clone());
            }
        }
        self.wedge(self.suspects.iter().copied().collect());
    }

    fn prepare(&self) -> Saying {
        Saying::Prepare { ballot: self.promised, suspects: self.suspects.iter().copied().collect() }
    }

    /// V2: nothing is reported before everything is frozen and the suspects are fenced.
    fn wedge(&mut self, fence: Vec<NodeId>) {
        #[cfg(any(test, feature = "mutants"))]
        if self.mutant == Some(Mutant::NotFrozen) && self.report.is_some() {
            self.effects.push_back(Effect::Wedge { fence });
            return self.promise();
        }
        self.report = None;
        self.effects.push_back(Effect::Wedge { fence });
    }

    fn on_prepare(&mut self, from: NodeId, ballot: Ballot, suspects: Vec<NodeId>) {
        if ballot.node != from {
            return;
        }
        self.highest = self.highest.max(ballot);
        if ballot < self.promised {
            return self.say(from, Saying::Outbid { ballot, by: self.promised });
        }
        if ballot == self.promised {
            return self.promise(); // it was said twice
        }
        self.promised = ballot;
        self.proposal = None;
        self.fetching = None;
        self.wedge(suspects.into_iter().filter(|node| *node != self.me && *node != from).collect());
    }

    /// Answers the ballot that is promised, once there is something to report.
    fn promise(&mut self) {
        let Some(report) = self.report.clone().filter(|_| self.has_begun() && self.decided.is_none()) else {
            return;
        };
        let accepted = self.accepted.clone();
        let ballot = self.promised;
        if ballot.node != self.me {
            self.say(ballot.node, Saying::Promise { ballot, report, accepted });
        } else if let Some(proposal) = &mut self.proposal {
            proposal.promises.insert(self.me, Promise { report, accepted });
            self.go_on();
        }
    }

    fn is_mine(&self, ballot: Ballot) -> bool {
        self.proposal.is_some() && ballot == self.promised
    }

    fn freed(&mut self, node: NodeId) {
        if let Some(promise) = self.proposal.as_mut().and_then(|proposal| proposal.promises.get_mut(&node)) {
            promise.report.free = true;
            self.go_on();
        }
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

    /// The leader's next step, if there is one to take: choose the value and ask to accept it.
    fn go_on(&mut self) {
        let Some(proposal) = &self.proposal else { return };
        if proposal.next.is_some() || self.report.is_none() || self.waits_for_reports(proposal) {
            return;
        }
        let Some(next) = self.value(proposal) else { return };
        let ballot = self.promised;
        for node in self.view.nodes() {
            if node != self.me {
                self.say(node, Saying::Accept { ballot, next: next.clone() });
            }
        }
        if let Some(proposal) = &mut self.proposal {
            proposal.next = Some(next.clone());
        }
        self.accept(ballot, next);
    }

    /// V3: the accepted value with the highest ballot, whole, if there is one; else what follows from the reports.
    fn value(&self, proposal: &Proposal) -> Option<Next> {
        let accepted = proposal.promises.values().filter_map(|promise| promise.accepted.as_ref());
        let accepted = accepted.max_by_key(|(ballot, _)| *ballot).map(|(_, next)| next.clone());
        let reports = proposal.promises.iter().map(|(node, promise)| (*node, &promise.report)).collect();
        let trimming = self.trimming;
        #[cfg(any(test, feature = "mutants"))]
        let trimming = if self.mutant == Some(Mutant::GreatestTrim) { Trimming::Greatest } else { trimming };
        let own = || value::choose(&self.view, &reports, &self.suspects, &self.wishes, trimming);
        #[cfg(any(test, feature = "mutants"))]
        match self.mutant {
            Some(Mutant::OwnValue) => return own(),
            Some(Mutant::Blend) if accepted.is_some() => {
                let cuts = own()?.cuts;
                return accepted.map(|next| Next { cuts, ..next });
            }
            _ => {}
        }
        accepted.or_else(own)
    }

    fn on_accept(&mut self, from: NodeId, ballot: Ballot, next: Next) {
        if ballot.node != from {
            return;
        }
        self.highest = self.highest.max(ballot);
        if ballot < self.promised {
            return self.say(from, Saying::Outbid { ballot, by: self.promised });
        }
        if ballot > self.promised {
            // Its prepare got lost. Accepting promises; but nothing is accepted before the sessions are frozen.
            self.on_prepare(from, ballot, Vec::new());
        }
        self.accept(ballot, next);
    }

    /// Accepts a value of the ballot that is promised, as soon as everything below its trims is here.
    fn accept(&mut self, ballot: Ballot, next: Next) {
        if ballot != self.promised || self.decided.is_some() {
            return;
        }
        let Some(report) = &self.report else {
            // It will be asked again: a promise follows when the sessions are frozen, and the proposer answers it.
            return;
        };
        let missing = self.missing(report, &next);
        if !missing.is_empty() {
            for fetch in missing {
                self.effects.push_back(Effect::Fetch(fetch));
            }
            self.fetching = Some((ballot, next));
            return;
        }
        self.fetching = None;
        self.accepted = Some((ballot, next));
        if ballot.node == self.me {
            self.count(self.me);
        } else {
            self.say(ballot.node, Saying::Accepted { ballot });
        }
    }

    /// What this member lacks below the trims, if it is to deliver up to them.
    fn missing(&self, report: &Report, next: &Next) -> Vec<Fetch> {
        let mut missing = Vec::new();
        for (cut, frozen) in next.cuts.iter().zip(&report.frozen) {
            for (rank, (to, from)) in cut.trim.iter().zip(&frozen.received).enumerate() {
                if let Some(Holder(Some(holder))) = cut.holders.get(rank)
                    && from < to
                {
                    missing.push(Fetch { group: cut.group, rank, from: *from, to: *to, holder: *holder });
                }
            }
        }
        missing
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
