//! Joining (V7), from both sides.
//!
//! A joiner dials whom it was told of. Any member answers its hello with the view ([`Message::Welcome`]); the joiner dials all members,
//! and both sides link their fabrics while the group runs. When the joiner is linked to everyone, and has the state of one of them if there
//! is a state to have ([`super::learning`]), it says so to all
//! ([`Message::Linked`]), and whoever leads begins a change that admits it, together with all others who are that far. The decision
//! reaches it like any member ([`crate::change::Saying::Decided`]); its first session begins with that view.
//!
//! If the view changes meanwhile, the joiner is told the new one and goes on from there. If it is lost, nobody but itself is the worse.

use std::collections::BTreeSet;
use std::time::Duration;

use consort_dataplane::names::{NodeId, Time};

use super::installed::AGAIN;
use super::{Decision, Joiner, Membership, Phase};
use crate::change::{Candidate, Next};
use crate::held::Logs;
use crate::link::message::{Hello, Message};
use crate::view::{Incarnation, Member, Role, View};

/// How often a joiner that found nobody looks again.
const SEEK: Duration = Duration::from_millis(500);

/// How long a joiner that has found the group tries to be admitted before it begins anew.
const JOIN_WITHIN: Duration = Duration::from_secs(5);

impl Membership {
    /// Dials whom it knows of.
    pub(super) fn seek(&mut self, now: Time) {
        for address in self.seeds.clone() {
            if address != self.address {
                self.decide(Decision::Seek(address));
            }
        }
        self.sought = now;
    }

    /// A joiner's time passes.
    pub(super) fn seek_again(&mut self, now: Time) {
        if self.detection.due() <= now {
            self.detection.pass(now);
            self.say_all(&Message::Alive);
            let view = if let Phase::Joining(view) = &self.phase { view.clone() } else { None };
            for node in self.detection.silent() {
                self.detection.forget(node);
                self.miss_teacher(now, node, "it is silent");
                if view.as_ref().is_none_or(|view| view.member(node).is_none()) {
                    self.decide(Decision::Forget(node));
                }
            }
        }
        let lonely = self.peers.values().all(|peer| peer.hello.is_none());
        if lonely {
            self.joining_since = now;
        } else if self.is_learning() {
            self.joining_since = now; // that takes as long as it takes
        } else if now.since(self.joining_since) >= JOIN_WITHIN {
            // The group is gone, or something on the way to it is stuck: all links are made anew.
            return self.renew(now);
        }
        if now.since(self.sought) >= SEEK {
            self.sought = now;
            let founder = !self.terms.joins && !self.others_go_on();
            if lonely && founder {
                return self.renew(now); // there is no group left to join
            }
            if lonely {
                self.phase = Phase::Joining(None);
                self.seek(now);
            }
            self.ask_again();
            self.linked(now);
        }
    }

    /// A member tells which view there is.
    pub(super) fn on_welcome(&mut self, now: Time, from: NodeId, view: &View) {
        let sender =
            self.peers.get(&from).and_then(|peer| peer.hello.as_ref()).map(|hello| hello.incarnation);
        if view.member(from).map(|member| member.incarnation) != sender || !Self::has_data(view) {
            return;
        }
        if let Phase::Joining(Some(known)) = &self.phase
            && known.id >= view.id
        {
            return;
        }
        let founding = self.phase == Phase::Gathering;
        if !matches!(self.phase, Phase::Joining(Some(_))) {
            self.joining_since = now;
        }
        self.phase = Phase::Joining(Some(view.clone()));
        self.tell_at = None;
        self.decide(Decision::Reword(self.hello(None)));
        if founding {
            // Who was told that this node founds a group is told otherwise.
            tracing::info!(%view, "the group runs already: joining it");
        }
        for node in self.links.nodes() {
            if view.member(node).is_none() {
                self.unlink(node);
            }
        }
        for member in &view.members {
            if member.node != self.terms.me {
                self.decide(Decision::Know(member.node, member.address));
                self.meet(now, member.node);
            }
        }
        self.linked(now);
    }

    /// A joiner has another control link to somebody: lessons on the way over the one before are lost.
    pub(super) fn meet_again(&mut self, now: Time, node: NodeId) {
        self.miss_teacher(now, node, "its control link is another");
        self.meet(now, node);
    }

    /// A joiner has a control link to somebody.
    pub(super) fn meet(&mut self, now: Time, node: NodeId) {
        self.link_data(node);
        self.linked(now);
    }

    /// A joiner has lost the link to somebody. It links again when the control link comes back.
    pub(super) fn missed(&mut self, now: Time, node: NodeId, incarnation: Incarnation) {
        self.miss_source(now, node, incarnation, "its control link broke");
        if self.links.incarnation(node) == Some(incarnation) {
            self.unlink(node);
        }
    }

    /// A fabric link between joiner and member is gone or never came: both begin again, from the hello on.
    pub(super) fn begin_again(&mut self, node: NodeId) {
        let address = self.peers.get(&node).and_then(|peer| peer.hello.as_ref()).map(|hello| hello.address);
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.hello = None;
        }
        self.decide(Decision::Forget(node));
        if let (Phase::Joining(_), Some(address)) = (&self.phase, address) {
            self.decide(Decision::Know(node, address));
        }
    }

    /// A joiner that is linked to all members says so.
    pub(super) fn linked(&mut self, now: Time) {
        let is_caught_up = self.learn(now);
        let Phase::Joining(Some(view)) = &self.phase else { return };
        let up: BTreeSet<_> = self.links.up().collect();
        let met = |member: &Member| {
            let hello = self.peers.get(&member.node).and_then(|peer| peer.hello.as_ref());
            hello.is_some_and(|hello| hello.incarnation == member.incarnation)
        };
        let needs = |member: &Member| self.role == Role::Data && member.role == Role::Data;
        let others = || view.members.iter().filter(|member| member.node != self.terms.me);
        if !is_caught_up
            || !others().all(|member| met(member) && (!needs(member) || up.contains(&member.incarnation)))
        {
            return;
        }
        // Witnesses have no link to be up, and none is needed.
        let to: BTreeSet<_> = up.into_iter().chain(others().map(|member| member.incarnation)).collect();
        let message = Message::Linked { to: to.into_iter().collect(), source: self.source() };
        self.say_all(&message);
    }

    /// A view has this joiner in it.
    pub(super) fn admitted(&mut self, now: Time, next: Next) {
        let me = self.me();
        if next.view.member(me.node).is_none_or(|member| member.incarnation != me.incarnation) {
            return;
        }
        tracing::info!(view = %next.view, "admitted");
        self.install(now, Next { cuts: Vec::new(), ..next }, None, Logs::default());
        self.check_state(now);
    }

    /// Somebody who is no member said hello while the group runs.
    pub(super) fn welcome(&mut self, now: Time, hello: &Hello) {
        let node = hello.node;
        if node == self.terms.me {
            return;
        }
        // Another life of a member is proof that the old one is gone.
        if let Some(old) = self.incarnation_of(node) {
            self.gone(now, node, old, "it was started again");
        }
        self.forget_peer(node);
        let Some(view) = self.view().cloned() else { return };
        let member = Member {
            node,
            incarnation: hello.incarnation,
            address: hello.address,
            role: hello.role,
            domain: hello.domain,
        };
        self.joiners.insert(
            node,
            Joiner { member, linked: BTreeSet::new(), source: None, try_at: now, pause: AGAIN },
        );
        self.say(node, Message::Welcome { view });
        // A link that this node's change still counts as a member's is cut by the change.
        if self.incarnation_of(node).is_none() {
            self.link_data(node);
        }
    }

    /// A joiner says whom it is linked to.
    pub(super) fn on_linked(
        &mut self,
        now: Time,
        node: NodeId,
        to: Vec<Incarnation>,
        source: Option<Incarnation>,
    ) {
        let Some(joiner) = self.joiners.get_mut(&node) else { return };
        joiner.source = source;
        joiner.linked = to.into_iter().collect();
        self.wish();
        self.look_for_reasons(now);
    }

    /// Whether a joiner can be admitted to the view after the installed one, as far as this node knows.
    pub(super) fn is_ready(&self, joiner: &Joiner) -> bool {
        let Some(view) = self.view() else { return false };
        let suspects = self.change.as_ref().map(crate::change::Change::suspects);
        let goes = |node: &NodeId| {
            self.leaving.contains(node) || suspects.is_some_and(|suspects| suspects.contains(node))
        };
        let reached = joiner.member.role == Role::Witness
            || self.role == Role::Witness
            || self.links.is_up(joiner.member.node)
                && self.links.incarnation(joiner.member.node) == Some(joiner.member.incarnation);
        let others = view.members.iter().filter(|member| !goes(&member.node));
        let learns = self.terms.is_taught() && joiner.member.role == Role::Data;
        let taught = |member: &Member| joiner.source == Some(member.incarnation);
        let has_state = !learns || view.data().any(|member| taught(member) && !goes(&member.node));
        reached
            && has_state
            && others
                .filter(|member| member.role == Role::Data)
                .all(|member| joiner.linked.contains(&member.incarnation))
    }

    /// All that can be admitted.
    pub(super) fn candidates(&self) -> Vec<Candidate> {
        let ready = self.joiners.values().filter(|joiner| self.is_ready(joiner));
        let ready = ready.map(|joiner| Candidate {
            member: joiner.member,
            linked: joiner.linked.clone(),
            source: joiner.source,
        });
        ready.collect()
    }

    /// Joiners that this node is linked to, for a report.
    pub(super) fn joiners_linked(&self) -> Vec<Incarnation> {
        let joiners = self.joiners.values().map(|joiner| joiner.member);
        joiners
            .filter(|member| {
                member.role == Role::Witness
                    || self.role == Role::Witness
                    || self.links.is_up(member.node)
                        && self.links.incarnation(member.node) == Some(member.incarnation)
            })
            .map(|member| member.incarnation)
            .collect()
    }
}
