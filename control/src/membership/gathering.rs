//! Gathering: until everyone's hello is here, and somebody proposes.

use consort_dataplane::names::{NodeId, Time, ViewId};

use super::{Membership, PATIENCE, Phase};
use crate::link::message::Message;
use crate::view::{Member, Role, View};

impl Membership {
    /// Something changed: maybe all are here, maybe the reasons for waiting are others.
    pub(super) fn gather(&mut self, now: Time) {
        let absent = self.absent();
        if absent.is_empty() && self.terms.me == self.terms.proposer() {
            return self.propose(now);
        }
        if absent != self.told && self.tell_at.is_none() {
            self.tell_at = Some(now.plus(PATIENCE));
        }
    }

    fn propose(&mut self, now: Time) {
        let view = View { id: ViewId(1), members: self.members() };
        self.say_all(&Message::Propose(view.clone()));
        self.engage(now, view);
    }

    /// Everyone as they have said hello, this node included, in ascending order: the first view's ranks.
    fn members(&self) -> Vec<Member> {
        let me = Member {
            node: self.terms.me,
            incarnation: self.incarnation,
            address: self.address,
            role: Role::Data,
        };
        let others = self.peers.values().filter_map(|peer| peer.hello.as_ref()).map(|hello| Member {
            node: hello.node,
            incarnation: hello.incarnation,
            address: hello.address,
            role: Role::Data,
        });
        let mut members: Vec<_> = others.chain([me]).collect();
        members.sort_unstable_by_key(|member| member.node);
        members
    }

    /// The proposer's word: this is to be the view.
    pub(super) fn on_proposal(&mut self, now: Time, from: NodeId, view: View) {
        let proposer =
            self.peers.get(&from).and_then(|peer| peer.hello.as_ref()).map(|hello| hello.incarnation);
        let sound = from == self.terms.proposer()
            && view.id == ViewId(1)
            && view.nodes() == self.terms.members
            && view.members.iter().all(|member| member.role == Role::Data)
            && view.member(self.terms.me).is_some_and(|me| me.incarnation == self.incarnation)
            && view.member(from).is_some_and(|member| Some(member.incarnation) == proposer);
        if sound {
            self.engage(now, view);
        } else {
            let reason = format!("it proposed {view}, which isn't its to propose");
            self.misbehaved(from, reason);
        }
    }

    /// From here on this incarnation belongs to this proposal.
    fn engage(&mut self, now: Time, view: View) {
        let proposer = view.member(self.terms.proposer()).map(|member| member.incarnation);
        let members = view.nodes();
        self.tell_at.get_or_insert(now.plus(PATIENCE));
        self.phase = Phase::Linking { view, since: now, ready: false };
        self.decide(super::Decision::Reword(self.hello(proposer)));
        for node in members {
            self.link_to(now, node);
        }
        self.link();
    }
}
