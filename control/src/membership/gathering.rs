//! Founding, first part: until everyone's hello is here, and somebody proposes.
//!
//! - Control links come up in any order, each with a hello: who the peer is, which
//!   [incarnation](crate::view::Incarnation), what it takes the group to be, and its fabric's offer. A hello that doesn't
//!   agree with this node's configuration is refused, and the difference is named on both sides
//!   ([`Terms::judge`](super::Terms::judge)). A peer that was started again replaces its old incarnation.
//! - The member with the lowest id *proposes* view 1 as soon as it has everyone's hello: all members, by incarnation.
//! - *Linking*: everyone links its fabric to exactly these incarnations, says *ready* when all links are up, and
//!   the proposer, when all have, *commits*: the view is installed.
//! - If anyone is lost on the way, nobody can tell who knows what. So whoever took part *renews* itself: it cuts its links,
//!   takes a new incarnation and a new fabric (fresh memory, new offer), and gathers again.
//!
//! # Why no two different views 1 can be installed
//! An incarnation takes part in one proposal, ever: it leaves *Linking* only by installing that view or by ceasing to be.
//! A view is installed, by anyone, only if every incarnation in it said ready (the proposer's own word included). So if two
//! different views were installed, no incarnation would be in both: their members are different lives of the
//! nodes, and the first view's were all gone, or never delivered an Atomic message together with the second's.

use std::collections::BTreeSet;

use consort_dataplane::names::{NodeId, Time, ViewId};

use super::{Membership, PATIENCE, Phase};
use crate::layout;
use crate::link::message::Message;
use crate::view::{Member, View};

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
        let view = self.first_view(self.members());
        self.say_all(&Message::Propose(view.clone()));
        self.engage(now, view);
    }

    /// View 1, of these members.
    fn first_view(&self, members: Vec<Member>) -> View {
        let before = View { id: ViewId(0), members: Vec::new(), shards: layout::none(&self.terms.shapes) };
        let shapes = &self.terms.shapes;
        let shards = layout::next(shapes, &before, &members, &BTreeSet::new(), &BTreeSet::new());
        View { id: ViewId(1), members, shards }
    }

    /// Everyone as they have said hello, this node included, in ascending order: the first view's ranks.
    fn members(&self) -> Vec<Member> {
        let me = self.me();
        let hellos = self.founders.keys().filter_map(|node| self.peers.get(node)?.hello.as_ref());
        let others = hellos.map(|hello| Member {
            node: hello.node,
            incarnation: hello.incarnation,
            address: hello.address,
            role: hello.role,
            domain: hello.domain,
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
            && view == self.first_view(view.members.clone())
            && view.member(self.terms.me).is_some_and(|me| me.incarnation == self.incarnation)
            && view.member(from).is_some_and(|member| Some(member.incarnation) == proposer);
        if sound {
            self.engage(now, view);
        } else {
            let reason = format!("it proposed {view}, which isn't its to propose");
            self.misbehaved(now, from, reason);
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
        self.link(now);
    }
}
