//! State transfer (V7, [`crate::transfer`]), from both sides: who learns from whom, and when that has come to nothing. Lessons
//! themselves pass through here from the control link to the driver, and back.
//!
//! A pupil asks one member after the other until one teaches it. It says that it is caught up when its application has taken all that has
//! come. Then it may be admitted, by a view in which its source goes on. If the source is lost before the last lesson, the pupil
//! asks another; if that happens when it has been admitted already, nobody else has what it lacks: it leaves in order, for it has a
//! vote, and comes again as another incarnation.
//!
//! The main group's state a node learns before it is a member at all; that of a shard, as a member that a view names as its learner.

use std::collections::BTreeSet;

use consort_dataplane::names::{NodeId, Time};

use super::installed::AGAIN;
use super::{Membership, Phase};
use crate::layout::Ready;
use crate::link::message::Message;
use crate::orders::Order;
use crate::transfer::{Lesson, Pupil, Took};
use crate::view::{Incarnation, Role, ShardId, View};

/// This node as a pupil, in one shard.
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
    /// The application has all up to where this node is a member.
    done: bool,
}

impl Learning {
    /// Begins anew. What is held of a snapshot stays; and attempts are counted on, so that a source tells a new one from one that it
    /// hears of again.
    fn renew(&mut self) {
        *self = Self { attempt: self.attempt, held: self.held, ..Self::default() };
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
    /// Another incarnation begins, with nothing learned but what there is of the main group's snapshot.
    pub(super) fn forget_lessons(&mut self) {
        self.learning.retain(|shard, _| *shard == ShardId::MAIN);
        self.learning.values_mut().for_each(Learning::renew);
        self.ready.clear();
    }

    /// Whether this node, before it is a member, must have the state of one.
    pub(super) fn must_learn(&self) -> bool {
        self.terms.is_taught() && self.role == Role::Data
    }

    /// A joiner looks for somebody to learn from, unless it has somebody. Returns whether it is caught up.
    pub(super) fn learn(&mut self, now: Time) -> bool {
        if !self.must_learn() {
            return true;
        }
        let Phase::Joining(Some(view)) = &self.phase else { return false };
        let view = view.clone();
        self.learn_from(now, ShardId::MAIN, &view)
    }

    /// Looks for somebody to learn a shard from. Returns whether this node is caught up with it.
    fn learn_from(&mut self, now: Time, shard: ShardId, view: &View) -> bool {
        let learning = self.learning.entry(shard).or_default();
        if let Some((node, incarnation)) = learning.source {
            let caught_up = learning.caught_up;
            if self.can_teach(view, shard, node, incarnation) {
                return caught_up;
            }
            self.learning.entry(shard).or_default().source = None;
        }
        let learning = self.learning.entry(shard).or_default();
        if learning.again_at.is_some_and(|at| at > now) {
            return false;
        }
        // Pupils that come together ask different members, and each another one every time.
        let choice = u64::from(self.terms.me.0).wrapping_add(learning.attempt);
        let members = view.shard(shard).into_iter().flat_map(|shard| &shard.members);
        let members = members.filter_map(|node| view.member(*node));
        let able = members.filter(|member| self.can_teach(view, shard, member.node, member.incarnation));
        let able: Vec<_> = able.map(|member| (member.node, member.incarnation)).collect();
        let Some(source) = able.get((choice % (able.len() as u64).max(1)) as usize) else { return false };
        let learning = self.learning.entry(shard).or_default();
        learning.attempt += 1;
        (learning.source, learning.again_at) = (Some(*source), None);
        (learning.caught_up, learning.answered) = (false, false);
        let (attempt, held) = (learning.attempt, learning.held);
        tracing::info!(source = %source.0, %shard, attempt, held, "catching up");
        self.drive(Order::Learn(shard, attempt));
        self.say(source.0, Message::Learn { shard, attempt, held });
        false
    }

    /// A member gets the state of the shards that the view names it a learner of, and says so to all when it has it.
    pub(super) fn learn_shards(&mut self, now: Time) {
        let Some(view) = self.view().cloned() else { return };
        let me = self.terms.me;
        let known: Vec<_> = self.learning.keys().copied().filter(|id| *id != ShardId::MAIN).collect();
        for id in known {
            let shard = view.shard(id);
            let is_in = shard.is_some_and(|it| it.learners.contains(&me) || it.members.contains(&me));
            let Some(learning) = self.learning.get_mut(&id).filter(|_| !is_in) else { continue };
            if learning.source.is_some() {
                self.drive(Order::Unlearn(id));
            }
            self.learning.entry(id).or_default().renew();
        }
        for (id, shard) in view.shards() {
            if !shard.learners.contains(&me) {
                continue;
            }
            if let Some(learning) = self.learning.get_mut(&id).filter(|learning| learning.done) {
                learning.renew(); // it was a member once, and comes again
            }
            if self.learn_from(now, id, &view) {
                self.say_caught(id);
            }
        }
    }

    /// Says to all that this node is caught up with a shard.
    fn say_caught(&mut self, shard: ShardId) {
        let source = self.learning.get(&shard).and_then(Learning::source);
        let Some(source) = source else { return };
        self.say_all(&Message::Caught { shard, source });
        self.ready.insert(Ready { shard, node: self.terms.me, source });
    }

    /// A learner says that it has caught up.
    pub(super) fn on_caught(&mut self, now: Time, node: NodeId, shard: ShardId, source: Incarnation) {
        if !self.terms.has(shard) {
            return; // S1: nothing is kept of what there isn't
        }
        self.ready.retain(|ready| (ready.shard, ready.node) != (shard, node));
        self.ready.insert(Ready { shard, node, source });
        self.wish();
        self.look_for_reasons(now);
    }

    /// The learners that the next view may make members, as far as this node knows.
    pub(super) fn ready(&self) -> BTreeSet<Ready> {
        let Some(view) = self.view() else { return BTreeSet::new() };
        let suspects = self.change.as_ref().map(crate::change::Change::suspects);
        let goes = |node: &NodeId| {
            self.leaving.contains(node) || suspects.is_some_and(|suspects| suspects.contains(node))
        };
        let is_due = |ready: &&Ready| {
            let Some(shard) = view.shard(ready.shard) else { return false };
            let life = |node: &NodeId| view.member(*node).map(|member| member.incarnation);
            let mut sources = shard.members.iter().filter(|node| !goes(node));
            shard.learners.contains(&ready.node)
                && !goes(&ready.node)
                && sources.any(|node| life(node) == Some(ready.source))
        };
        self.ready.iter().filter(is_due).copied().collect()
    }

    /// Whose state of the main group this node has, as far as it is one to go on with.
    pub(super) fn source(&self) -> Option<Incarnation> {
        self.learning.get(&ShardId::MAIN).and_then(Learning::source)
    }

    /// Asks once more: what was said may be lost, as long as there was no answer.
    pub(super) fn ask_again(&mut self) {
        let unanswered = self.learning.iter().filter(|(_, learning)| !learning.answered);
        let asked = unanswered.filter_map(|(shard, learning)| {
            let (node, _) = learning.source?;
            let Learning { attempt, held, .. } = *learning;
            Some((node, Message::Learn { shard: *shard, attempt, held }))
        });
        for (node, message) in asked.collect::<Vec<_>>() {
            self.say(node, message);
        }
    }

    /// Whether that life of a node is a member of the shard that this one has a control link to.
    fn can_teach(&self, view: &View, shard: ShardId, node: NodeId, incarnation: Incarnation) -> bool {
        let met = self.peers.get(&node).and_then(|peer| peer.hello.as_ref());
        node != self.terms.me
            && view.shard(shard).is_some_and(|shard| shard.members.contains(&node))
            && view.member(node).is_some_and(|member| member.incarnation == incarnation)
            && met.is_some_and(|hello| hello.incarnation == incarnation)
    }

    /// The source of an attempt, if that is the one that is under way.
    fn source_of(&self, shard: ShardId, attempt: u64) -> Option<NodeId> {
        let learning = self.learning.get(&shard).filter(|learning| learning.attempt == attempt)?;
        learning.source.map(|(node, _)| node)
    }

    /// To the pupil: its source says something.
    pub(super) fn on_lesson(
        &mut self,
        now: Time,
        from: NodeId,
        shard: ShardId,
        attempt: u64,
        lesson: Lesson,
    ) {
        if self.source_of(shard, attempt) != Some(from) {
            return;
        }
        self.joining_since = now;
        self.learning.entry(shard).or_default().answered = true;
        if let Lesson::Refused(reason) = lesson {
            return self.on_unlearned(now, shard, attempt, &reason);
        }
        self.drive(Order::Lesson(shard, attempt, lesson));
    }

    /// To the pupil, from its driver: so much is here.
    pub fn on_took(&mut self, now: Time, shard: ShardId, attempt: u64, took: Took) {
        let Some(node) = self.source_of(shard, attempt) else { return };
        self.joining_since = now;
        if let Took::Chunks(below) = took {
            let learning = self.learning.entry(shard).or_default();
            learning.held = learning.held.max(below);
        }
        self.say(node, Message::Took { shard, attempt, took });
    }

    /// To the pupil, from its driver: the application has all that has come.
    pub fn on_caught_up(&mut self, now: Time, shard: ShardId, attempt: u64) {
        if self.source_of(shard, attempt).is_none() {
            return;
        }
        self.learning.entry(shard).or_default().caught_up = true;
        if shard == ShardId::MAIN {
            return self.linked(now);
        }
        self.say_caught(shard);
        self.wish();
        self.look_for_reasons(now);
    }

    /// To the pupil, from its driver: the application has everything up to the view that admits this node.
    pub fn on_learned(&mut self, shard: ShardId, attempt: u64) {
        let learning = self.learning.get_mut(&shard).filter(|learning| learning.attempt == attempt);
        if let Some(learning) = learning {
            (learning.source, learning.done) = (None, true);
        }
    }

    /// To the pupil: this attempt came to nothing.
    pub fn on_unlearned(&mut self, now: Time, shard: ShardId, attempt: u64, reason: &str) {
        let Some(node) = self.source_of(shard, attempt) else { return };
        tracing::warn!(source = %node, %shard, reason, "its state can't be had");
        self.learning.entry(shard).or_default().again_at = Some(now.plus(AGAIN));
        self.lose_source(now, shard, reason);
    }

    /// The shards that this node has from a source of which this is so.
    fn learned_from(&self, is_it: impl Fn(NodeId, Incarnation) -> bool) -> Vec<ShardId> {
        let has = |learning: &Learning| learning.source.is_some_and(|(node, life)| is_it(node, life));
        self.learning.iter().filter(|(_, learning)| has(learning)).map(|(id, _)| *id).collect()
    }

    /// To the pupil: that life of a node is gone.
    pub(super) fn miss_source(&mut self, now: Time, node: NodeId, incarnation: Incarnation, why: &str) {
        for shard in self.learned_from(|source, life| (source, life) == (node, incarnation)) {
            self.lose_source(now, shard, why);
        }
    }

    /// To the pupil: nothing comes from that node any more, whichever of its lives.
    pub(super) fn miss_teacher(&mut self, now: Time, node: NodeId, why: &str) {
        for shard in self.learned_from(|source, _| source == node) {
            self.lose_source(now, shard, why);
        }
    }

    /// Whether this joiner is on its way.
    pub(super) fn is_learning(&self) -> bool {
        let main = self.learning.get(&ShardId::MAIN);
        main.is_some_and(|learning| learning.source.is_some() && !learning.caught_up)
    }

    /// What this node lacks of some shard is gone: it leaves, to come again.
    pub(super) fn has_failed(&self) -> bool {
        self.learning.values().any(|learning| learning.failed)
    }

    /// To the pupil: a view was installed that it is in. If its source isn't, what it lacks is gone.
    pub(super) fn check_source(&mut self, now: Time) {
        let Some(view) = self.view().cloned() else { return };
        let is_in = |node, life| {
            view.member(node).is_some_and(|member: &crate::view::Member| member.incarnation == life)
        };
        for shard in self.learned_from(|node, life| !is_in(node, life)) {
            self.lose_source(now, shard, "the group went on without it");
        }
    }

    /// To the pupil: a view admits it. Whatever it said to be caught up with may be gone since.
    pub(super) fn check_state(&mut self, now: Time) {
        let has_source = |learning: &Learning| learning.source.is_some();
        if self.must_learn() && !self.learning.get(&ShardId::MAIN).is_some_and(has_source) {
            self.lose_source(now, ShardId::MAIN, "its source was lost when it was being admitted");
        }
    }

    /// To the pupil: a view makes it a member of shards. As there.
    pub(super) fn check_shards(&mut self, now: Time) {
        let (Some(view), Some(before)) = (self.view().cloned(), self.before.clone()) else { return };
        let me = self.terms.me;
        for ((id, shard), old) in view.shards().zip(&before.shards) {
            let is_new = shard.members.contains(&me) && old.learners.contains(&me);
            let has_source = |learning: &Learning| learning.source.is_some() || learning.done;
            if is_new && !self.learning.get(&id).is_some_and(has_source) {
                self.lose_source(now, id, "its source was lost when it was being admitted");
            }
        }
    }

    fn lose_source(&mut self, now: Time, shard: ShardId, why: &str) {
        let me = self.terms.me;
        let is_member =
            self.view().and_then(|view| view.shard(shard)).is_some_and(|it| it.members.contains(&me));
        self.ready.retain(|ready| (ready.shard, ready.node) != (shard, me));
        let learning = self.learning.entry(shard).or_default();
        learning.source = None;
        learning.caught_up = false;
        if is_member && !learning.failed {
            // A member with a vote, and without a state.
            learning.failed = true;
            tracing::warn!(why, %shard, "what this node lacks is gone with its source: it leaves and joins again");
            self.leave(now);
        }
    }

    /// To the source: a joiner, or a learner, wants to learn.
    pub(super) fn on_learn(&mut self, from: NodeId, shard: ShardId, attempt: u64, held: u64) {
        let refuse = |this: &mut Self, reason: &str| {
            let lesson = Lesson::Refused(reason.to_owned());
            this.say(from, Message::Lesson { shard, attempt, lesson });
        };
        let me = self.terms.me;
        let here = self.view().and_then(|view| view.shard(shard)).filter(|it| it.members.contains(&me));
        let learns = here.is_some_and(|shard| shard.learners.contains(&from));
        let incarnation = match (here, self.joiners.get(&from)) {
            (Some(_), Some(joiner)) if shard == ShardId::MAIN && self.must_learn() => {
                joiner.member.incarnation
            }
            (Some(_), _) if learns => self.incarnation_of(from).unwrap_or(Incarnation(0)),
            _ => return refuse(self, "it is no member that has a state"),
        };
        let learning = self.learning.get(&shard);
        if learning.is_some_and(|learning| learning.source.is_some() || learning.failed) {
            return refuse(self, "it has just been admitted, and learns itself");
        }
        let pupil = Pupil { shard, node: from, incarnation, attempt };
        if self.teaching.get(&(shard, from)) == Some(&pupil) {
            return; // said twice
        }
        tracing::info!(node = %from, %shard, attempt, held, "teaching");
        self.teaching.insert((shard, from), pupil);
        self.drive(Order::Teach(pupil, held));
    }

    /// To the source: its pupil says how far it is.
    pub(super) fn on_pupil_took(&mut self, from: NodeId, shard: ShardId, attempt: u64, took: Took) {
        let pupil = self.teaching.get(&(shard, from)).filter(|pupil| pupil.attempt == attempt);
        if let Some(pupil) = pupil.copied() {
            self.drive(Order::Took(pupil, took));
        }
    }

    /// To the source, from its driver: a lesson.
    pub fn on_taught(&mut self, pupil: Pupil, lesson: Lesson) {
        let Pupil { shard, node, incarnation, attempt } = pupil;
        let met = self.peers.get(&node).and_then(|peer| peer.hello.as_ref());
        let is_there = met.is_some_and(|hello| hello.incarnation == incarnation);
        if is_there && self.teaching.get(&(shard, node)) == Some(&pupil) {
            self.say(node, Message::Lesson { shard, attempt, lesson });
        }
    }

    /// To the source: that life of a node is gone.
    pub(super) fn end_teaching(&mut self, node: NodeId, incarnation: Incarnation) {
        let ended: Vec<_> =
            self.teaching.values().filter(|it| (it.node, it.incarnation) == (node, incarnation)).collect();
        for shard in ended.into_iter().map(|pupil| pupil.shard).collect::<Vec<_>>() {
            self.teaching.remove(&(shard, node));
            self.drive(Order::EndTeaching(shard, node));
        }
    }
}
