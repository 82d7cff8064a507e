//! State transfer (V7, [`crate::transfer`]), from both sides: who learns from whom, and when that has come to nothing. Lessons
//! themselves pass through here from the control link to the driver, and back.
//!
//! A pupil asks one member after the other until one teaches it. It says that it is caught up when its application has taken all that has
//! come. Then it may be admitted, by a view in which its source goes on. If the source is lost before the last lesson, the pupil
//! asks another; if that happens when it has been admitted already, nobody else has what it lacks: it leaves in order, for it has a
//! vote, and comes again as another incarnation.

use consort_dataplane::names::{NodeId, Time};

use super::installed::AGAIN;
use super::{Membership, Phase};
use crate::link::message::Message;
use crate::orders::Order;
use crate::transfer::{Lesson, Pupil, Took};
use crate::view::{Incarnation, Member, Role, View};

/// This node as a pupil.
#[derive(Default)]
pub(super) struct Learning {
    /// Attempts so far.
    attempt: u64,
    source: Option<(NodeId, Incarnation)>,
    /// It has answered, in this attempt.
    answered: bool,
    /// Pieces of a snapshot that are here, of this attempt or an earlier one.
    held: u64,
    /// The application has had all that had come.
    caught_up: bool,
    /// Not to be asked before.
    again_at: Option<Time>,
    /// This node is a member, lacks what came before that, and the source of it is gone.
    failed: bool,
}

impl Learning {
    /// Another incarnation begins; what is held of a snapshot stays.
    pub(super) fn renew(&mut self) {
        *self = Self { attempt: self.attempt, held: self.held, ..Self::default() };
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failed
    }

    /// Whose state this node has, as far as it is one to go on with.
    pub(super) fn source(&self) -> Option<Incarnation> {
        self.source.filter(|_| self.caught_up).map(|(_, incarnation)| incarnation)
    }

    /// For people: from whom, and how much is here.
    pub(super) fn standing(&self) -> Option<(NodeId, u64, bool)> {
        self.source.map(|(node, _)| (node, self.held, self.caught_up))
    }
}

impl Membership {
    /// Whether this node, before it is a member, must have the state of one.
    pub(super) fn must_learn(&self) -> bool {
        self.terms.state && self.role == Role::Data
    }

    /// A joiner looks for somebody to learn from, unless it has somebody. Returns whether it is caught up.
    pub(super) fn learn(&mut self, now: Time) -> bool {
        if !self.must_learn() {
            return true;
        }
        let Phase::Joining(Some(view)) = &self.phase else { return false };
        if let Some((node, incarnation)) = self.learning.source {
            if self.can_teach(view, node, incarnation) {
                return self.learning.caught_up;
            }
            self.learning.source = None;
        }
        if self.learning.again_at.is_some_and(|at| at > now) {
            return false;
        }
        let able: Vec<&Member> =
            view.data().filter(|member| self.can_teach(view, member.node, member.incarnation)).collect();
        // Joiners that come together ask different members, and each another one every time.
        let choice = u64::from(self.terms.me.0).wrapping_add(self.learning.attempt);
        let Some(source) = able.get((choice % (able.len() as u64).max(1)) as usize) else { return false };
        let (node, incarnation) = (source.node, source.incarnation);
        let learning = &mut self.learning;
        learning.attempt += 1;
        (learning.source, learning.again_at) = (Some((node, incarnation)), None);
        (learning.caught_up, learning.answered) = (false, false);
        let (attempt, held) = (learning.attempt, learning.held);
        tracing::info!(source = %node, attempt, held, "catching up");
        self.drive(Order::Learn(attempt));
        self.say(node, Message::Learn { attempt, held });
        false
    }

    /// Asks once more: what was said may be lost, as long as there was no answer.
    pub(super) fn ask_again(&mut self) {
        let Learning { attempt, held, source, answered, .. } = self.learning;
        if let (Some((node, _)), false) = (source, answered) {
            self.say(node, Message::Learn { attempt, held });
        }
    }

    /// Whether that life of a node is a member that this one has a control link to.
    fn can_teach(&self, view: &View, node: NodeId, incarnation: Incarnation) -> bool {
        let met = self.peers.get(&node).and_then(|peer| peer.hello.as_ref());
        node != self.terms.me
            && view.member(node).is_some_and(|member| member.incarnation == incarnation)
            && met.is_some_and(|hello| hello.incarnation == incarnation)
    }

    /// To the pupil: its source says something.
    pub(super) fn on_lesson(&mut self, now: Time, from: NodeId, attempt: u64, lesson: Lesson) {
        if attempt != self.learning.attempt || self.learning.source.is_none_or(|(node, _)| node != from) {
            return;
        }
        self.joining_since = now;
        self.learning.answered = true;
        if let Lesson::Refused(reason) = lesson {
            return self.on_unlearned(now, attempt, &reason);
        }
        self.drive(Order::Lesson(attempt, lesson));
    }

    /// To the pupil, from its driver: so much is here.
    pub fn on_took(&mut self, now: Time, attempt: u64, took: Took) {
        let Some((node, _)) = self.learning.source.filter(|_| attempt == self.learning.attempt) else {
            return;
        };
        self.joining_since = now;
        if let Took::Chunks(below) = took {
            self.learning.held = self.learning.held.max(below);
        }
        self.say(node, Message::Took { attempt, took });
    }

    /// To the pupil, from its driver: the application has all that has come.
    pub fn on_caught_up(&mut self, now: Time, attempt: u64) {
        if attempt == self.learning.attempt && self.learning.source.is_some() {
            self.learning.caught_up = true;
            self.linked(now);
        }
    }

    /// To the pupil, from its driver: the application has everything up to the view that admits this node.
    pub fn on_learned(&mut self, attempt: u64) {
        if attempt == self.learning.attempt {
            self.learning.source = None;
        }
    }

    /// To the pupil: this attempt came to nothing.
    pub fn on_unlearned(&mut self, now: Time, attempt: u64, reason: &str) {
        let Some((node, _)) = self.learning.source.filter(|_| attempt == self.learning.attempt) else {
            return;
        };
        tracing::warn!(source = %node, reason, "its state can't be had");
        self.learning.again_at = Some(now.plus(AGAIN));
        self.lose_source(now, reason);
    }

    /// To the pupil: that life of a node is gone.
    pub(super) fn miss_source(&mut self, now: Time, node: NodeId, incarnation: Incarnation, why: &str) {
        if self.learning.source == Some((node, incarnation)) {
            self.lose_source(now, why);
        }
    }

    /// To the pupil: nothing comes from that node any more, whichever of its lives.
    pub(super) fn miss_teacher(&mut self, now: Time, node: NodeId, why: &str) {
        if self.learning.source.is_some_and(|(source, _)| source == node) {
            self.lose_source(now, why);
        }
    }

    /// Whether this joiner is on its way.
    pub(super) fn is_learning(&self) -> bool {
        self.learning.source.is_some() && !self.learning.caught_up
    }

    /// To the pupil: a view was installed that it is in. If its source isn't, what it lacks is gone.
    pub(super) fn check_source(&mut self, now: Time) {
        let (Phase::Installed(view) | Phase::Changing(view, _)) = &self.phase else { return };
        let is_in = |(node, life): (NodeId, Incarnation)| {
            view.member(node).is_some_and(|member| member.incarnation == life)
        };
        match self.learning.source {
            Some(source) if !is_in(source) => self.lose_source(now, "the group went on without it"),
            _ => {}
        }
    }

    /// To the pupil: a view admits it. Whatever it said to be caught up with may be gone since.
    pub(super) fn check_state(&mut self, now: Time) {
        if self.must_learn() && self.learning.source.is_none() {
            self.lose_source(now, "its source was lost when it was being admitted");
        }
    }

    fn lose_source(&mut self, now: Time, why: &str) {
        self.learning.source = None;
        self.learning.caught_up = false;
        if self.view().is_some() && !self.learning.failed {
            // A member with a vote, and without a state.
            tracing::warn!(why, "what this node lacks is gone with its source: it leaves and joins again");
            self.learning.failed = true;
            self.leave(now);
        }
    }

    /// To the source: a joiner wants to learn.
    pub(super) fn on_learn(&mut self, from: NodeId, attempt: u64, held: u64) {
        let incarnation = match self.joiners.get(&from) {
            Some(joiner) if self.must_learn() && self.view().is_some() => joiner.member.incarnation,
            _ => {
                let reason = "it is no member that has a state".to_owned();
                return self.say(from, Message::Lesson { attempt, lesson: Lesson::Refused(reason) });
            }
        };
        if self.learning.source.is_some() || self.learning.failed {
            let reason = "it has just been admitted, and learns itself".to_owned();
            return self.say(from, Message::Lesson { attempt, lesson: Lesson::Refused(reason) });
        }
        let pupil = Pupil { node: from, incarnation, attempt };
        if self.teaching.get(&from) == Some(&pupil) {
            return; // said twice
        }
        tracing::info!(node = %from, attempt, held, "teaching a joiner");
        self.teaching.insert(from, pupil);
        self.drive(Order::Teach(pupil, held));
    }

    /// To the source: its pupil says how far it is.
    pub(super) fn on_pupil_took(&mut self, from: NodeId, attempt: u64, took: Took) {
        if let Some(pupil) = self.teaching.get(&from).filter(|pupil| pupil.attempt == attempt).copied() {
            self.drive(Order::Took(pupil, took));
        }
    }

    /// To the source, from its driver: a lesson.
    pub fn on_taught(&mut self, pupil: Pupil, lesson: Lesson) {
        let met = self.peers.get(&pupil.node).and_then(|peer| peer.hello.as_ref());
        let is_there = met.is_some_and(|hello| hello.incarnation == pupil.incarnation);
        if is_there && self.teaching.get(&pupil.node) == Some(&pupil) {
            self.say(pupil.node, Message::Lesson { attempt: pupil.attempt, lesson });
        }
    }

    /// To the source: that life of a node is gone.
    pub(super) fn end_teaching(&mut self, node: NodeId, incarnation: Incarnation) {
        if self.teaching.get(&node).is_some_and(|pupil| pupil.incarnation == incarnation) {
            self.teaching.remove(&node);
            self.drive(Order::EndTeaching(node));
        }
    }
}
