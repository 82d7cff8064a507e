//! Founding, second part: a view is proposed; every member links to every other, the proposer counts who is ready.

use std::time::Duration;

use consort_dataplane::names::{NodeId, Time};

use super::{Absent, Decision, Membership, Phase, proposer_of};
use crate::change::Next;
use crate::link::message::Message;

/// How long all of it may take.
pub(super) const WITHIN: Duration = Duration::from_secs(10);

/// The pause before the second attempt to start; it doubles from there.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

impl Membership {
    /// Links the fabric to a member whose control link is there. If it isn't the one in the view, the attempt is over.
    pub(super) fn link_to(&mut self, now: Time, node: NodeId) {
        let Phase::Linking { view, .. } = &self.phase else { return };
        let (Some(member), Some(peer)) = (view.member(node), self.peers.get(&node)) else { return };
        let Some(hello) = &peer.hello else { return };
        if hello.incarnation != member.incarnation {
            return self.fail(now, node, "it was started again");
        }
        self.link_data(node);
        self.link(now);
    }

    /// Something changed: maybe this node is ready, maybe all are.
    pub(super) fn link(&mut self, now: Time) {
        let Phase::Linking { view, .. } = &self.phase else { return };
        let proposer = proposer_of(view).unwrap_or(self.terms.me);
        let others: Vec<_> = view.nodes().into_iter().filter(|node| *node != self.terms.me).collect();
        let met = |node| self.peers.get(node).is_some_and(|peer| peer.hello.is_some());
        let linked =
            others.iter().all(|node| met(node) && (self.links.is_up(*node) || !self.wants_link(*node)));
        let Phase::Linking { ready, view, .. } = &mut self.phase else { return };
        if !linked {
            return;
        }
        let before = std::mem::replace(ready, true);
        let view = view.clone();
        self.note(&view, Some(self.behind(&view)));
        if proposer != self.terms.me {
            if !before {
                self.decide(Decision::Say(proposer, Message::Ready));
            }
        } else if others.iter().all(|node| self.peers.get(node).is_some_and(|peer| peer.ready)) {
            self.say_all(&Message::Commit);
            self.found(now);
        }
    }

    /// To the proposer: that member is ready.
    pub(super) fn on_ready(&mut self, now: Time, from: NodeId) {
        let Some(peer) = self.peers.get_mut(&from) else { return };
        peer.ready = true;
        self.link(now);
    }

    /// From the proposer: all are ready.
    pub(super) fn on_commit(&mut self, now: Time, from: NodeId) {
        let Phase::Linking { view, .. } = &self.phase else { return };
        if Some(from) == proposer_of(view) {
            self.found(now);
        } else {
            let reason = "it committed what another proposed".to_owned();
            self.misbehaved(now, from, reason);
        }
    }

    fn found(&mut self, now: Time) {
        let Phase::Linking { view, .. } = &self.phase else { return };
        let next = Next { view: view.clone(), cuts: Vec::new() };
        let logs = self.logs(&next.view);
        self.install(now, next, None, logs);
    }

    pub(super) fn too_slow(&mut self, now: Time) {
        let absent = self.absent();
        self.renew(now);
        for Absent { node, why } in absent {
            if let Some(peer) = self.peers.get_mut(&node) {
                peer.trouble = Some(format!("{why}, after {WITHIN:?}"));
            }
        }
    }

    /// The attempt came to nothing, because of that member.
    pub(super) fn fail(&mut self, now: Time, node: NodeId, why: &str) {
        self.renew(now);
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.trouble = Some(why.to_owned());
        }
    }

    /// This incarnation is spent, another begins.
    pub(super) fn renew(&mut self, now: Time) {
        let pause = FIRST_PAUSE.saturating_mul(1 << self.failures.min(20)).min(LONGEST_PAUSE);
        self.failures += 1;
        self.peers = self.founders.keys().map(|node| (*node, super::Peer::default())).collect();
        self.links.clear();
        self.doubts.clear();
        self.joiners.clear();
        self.leaving.clear();
        self.teaching.clear();
        self.forget_lessons();
        self.early.clear();
        self.change = None;
        self.changing = super::changing::Changing::default();
        self.before = None;
        self.places.clear();
        self.wedged.clear();
        self.lacking.clear();
        self.phase = Phase::Renewing { at: now.plus(pause), asked: false };
        self.decide(Decision::Isolate);
    }
}
