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
//! # A group that begins again (P3)
//! Nodes that have durable logs say in their hellos how far these are ([`crate::held`]). If anyone was ever in a view, the first view is not view 1, but
//! one behind the newest that counts; a majority of that one's members has to be there, and a log of each shard that has everything. When everyone who is configured is there, or
//! when nobody more has come for a while, the lowest of those who are there proposes. Whose log isn't the longest gets what it lacks once the view
//! stands, and nothing counts as durable before it has.
//!
//! The argument below holds for these, too: two majorities of the newest view share a member, which takes part in one proposal alone.
//!
//! # Why no two different views 1 can be installed
//! An incarnation takes part in one proposal, ever: it leaves *Linking* only by installing that view or by ceasing to be.
//! A view is installed, by anyone, only if every incarnation in it said ready (the proposer's own word included). So if two
//! different views were installed, no incarnation would be in both: their members are different lives of the
//! nodes, and the first view's were all gone, or never delivered an Atomic message together with the second's.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use consort_dataplane::names::{NodeId, Time, ViewId};

use super::{Membership, PATIENCE, Phase, proposer_of};
use crate::held::{self, Held, Logs, Restart};
use crate::layout;
use crate::link::message::{Message, Standing};
use crate::stop::Absent;
use crate::view::{Member, ShardId, View};

/// How long a group that begins again waits for those whom it doesn't need.
const GRACE: Duration = Duration::from_secs(3);

/// How long who is in a proposal may be a stranger to one who is in it, too.
const MEET_WITHIN: Duration = Duration::from_millis(500);

impl Membership {
    /// Something changed: maybe all are here, maybe the reasons for waiting are others.
    pub(super) fn gather(&mut self, now: Time) {
        if let Some((until, from, view)) = self.proposed.take() {
            match self.is_unmet(&view) {
                _ if !self.is_here(&view, from) => {} // it has begun anew
                false => return self.on_proposal(now, from, view),
                true if until <= now => return self.renew(now),
                true => self.proposed = Some((until, from, view)),
            }
        }
        let absent = self.absent();
        let here = self.here();
        let is_first = here.keys().next() == Some(&self.terms.me);
        // Where nobody came further than to agree to a first view, it begins anew.
        match self.restart(&here).filter(|restart| !restart.newest.members.is_empty()) {
            None if absent.is_empty() && is_first => return self.propose(now),
            None => self.enough_since = None,
            Some(restart) if !restart.is_enough => self.enough_since = None,
            Some(_) => {
                let is_all = here.len() == self.terms.members.len();
                let since = *self.enough_since.get_or_insert(now);
                if is_first && (is_all || since.plus(GRACE) <= now) {
                    return self.propose(now);
                }
            }
        }
        if absent != self.told && self.tell_at.is_none() {
            self.tell_at = Some(now.plus(PATIENCE));
        }
    }

    /// When a group that begins again waits no longer for those whom it doesn't need.
    pub(super) fn gather_due(&self) -> Option<Time> {
        let proposes = self
            .enough_since
            .map(|since| since.plus(GRACE))
            .filter(|_| self.here().keys().next() == Some(&self.terms.me));
        proposes.into_iter().chain(self.proposed.as_ref().map(|(until, ..)| *until)).min()
    }

    /// Who is here and free to found a group, this node included, with what each holds.
    fn here(&self) -> BTreeMap<NodeId, Option<&Held>> {
        let founders = self.founders.keys().filter_map(|node| {
            let hello = self.peers.get(node)?.hello.as_ref()?;
            let is_free = hello.engaged.is_none() && matches!(hello.standing, Standing::Founding { .. });
            is_free.then_some((*node, hello.held.as_deref()))
        });
        founders.chain([(self.terms.me, self.held.as_ref())]).collect()
    }

    fn restart(&self, here: &BTreeMap<NodeId, Option<&Held>>) -> Option<Restart> {
        held::restart(here, &self.terms.durable())
    }

    /// Of a group that is to begin again: whose logs are lacking. None if it isn't one, or if enough are here.
    pub(super) fn lacking(&self) -> Option<Vec<Absent>> {
        if self.phase != Phase::Gathering {
            return None;
        }
        let restart = self.restart(&self.here())?;
        let Restart { newest, lacks, is_enough, .. } =
            Some(restart).filter(|restart| !restart.newest.members.is_empty())?;
        if is_enough {
            return Some(Vec::new());
        }
        let needed = |why: &str| {
            let (id, most, all) = (newest.id, newest.majority(), newest.members.len());
            format!("{why}; the group begins again with the logs of {most} of the {all} members of view {id}")
        };
        let why = |node: NodeId, why: &'static str| {
            let trouble = self.peers.get(&node).and_then(|peer| peer.trouble.clone());
            let is_absent = self.peers.get(&node).is_none_or(|peer| peer.hello.is_none());
            needed(&trouble.filter(|_| is_absent).unwrap_or_else(|| why.to_owned()))
        };
        let lacks = lacks.into_iter().filter(|(node, _)| *node != self.terms.me || self.peers.is_empty());
        Some(lacks.map(|(node, it)| Absent { node, why: why(node, it) }).collect())
    }

    fn propose(&mut self, now: Time) {
        let nodes: Vec<_> = self.here().into_keys().collect();
        let view = self.first_view(self.members(&nodes));
        self.say_all(&Message::Propose(view.clone()));
        self.engage(now, view);
    }

    /// The first view, of these members: view 1, or the one behind the newest that they were in.
    fn first_view(&self, members: Vec<Member>) -> View {
        let (shapes, durable) = (&self.terms.shapes, self.terms.durable());
        let nodes: BTreeMap<_, _> =
            members.iter().map(|member| (member.node, self.held_by(member.node))).collect();
        let restart = self.restart(&nodes);
        let id = restart.as_ref().map_or(ViewId(0), |restart| restart.after);
        let none = View { id, members: Vec::new(), shards: layout::none(shapes) };
        let before = restart.map(|restart| restart.before(&members, &durable));
        // A cluster that was configured anew, with other groups, has nothing to follow on.
        let before = before.filter(|before| before.shards.len() == shapes.len()).unwrap_or(none);
        let ended: BTreeSet<_> = (0..).map(ShardId).take(shapes.len()).collect();
        let shards = layout::next(shapes, &before, &members, &BTreeSet::new(), &ended);
        View { id: before.id.next(), members, shards }
    }

    /// The view that a first one follows; one without members if it does follow none.
    pub(super) fn behind(&self, view: &View) -> View {
        let holds = view.nodes().into_iter().map(|node| (node, self.held_by(node))).collect();
        let none = View { id: ViewId(0), members: Vec::new(), shards: Vec::new() };
        self.restart(&holds).map_or(none, |restart| restart.newest)
    }

    fn held_by(&self, node: NodeId) -> Option<&Held> {
        if node == self.terms.me {
            return self.held.as_ref();
        }
        self.peers.get(&node)?.hello.as_ref()?.held.as_deref()
    }

    /// These as they have said hello, this node included, in ascending order: the first view's ranks.
    fn members(&self, nodes: &[NodeId]) -> Vec<Member> {
        let me = self.me();
        let hellos = nodes.iter().filter_map(|node| self.peers.get(node)?.hello.as_ref());
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

    /// Whether this node hasn't met, as one who is to found the group, a member of that view.
    fn is_unmet(&self, view: &View) -> bool {
        view.nodes().into_iter().any(|node| node != self.terms.me && !self.is_here(view, node))
    }

    /// Whether a member of that view has said hello as the one that is in it, and as one who is to found the group.
    fn is_here(&self, view: &View, node: NodeId) -> bool {
        let hello = self.peers.get(&node).and_then(|peer| peer.hello.as_ref());
        hello.is_some_and(|hello| {
            view.member(node).is_some_and(|member| member.incarnation == hello.incarnation)
                && matches!(hello.standing, Standing::Founding { .. })
        })
    }

    /// The proposer's word: this is to be the view.
    pub(super) fn on_proposal(&mut self, now: Time, from: NodeId, view: View) {
        let nodes = view.nodes();
        let all_are_founders = nodes.iter().all(|node| self.terms.members.contains(node));
        if self.is_unmet(&view) && all_are_founders && Some(&from) == nodes.first() {
            // It has met somebody whom this node hasn't, or another life of whom, or one who has turned to joining since. What that one holds
            // has to be known first.
            self.proposed = Some((now.plus(MEET_WITHIN), from, view));
            return;
        }
        let proposer =
            self.peers.get(&from).and_then(|peer| peer.hello.as_ref()).map(|hello| hello.incarnation);
        let holds: BTreeMap<_, _> = nodes.iter().map(|node| (*node, self.held_by(*node))).collect();
        let is_enough = match self.restart(&holds) {
            None => nodes == self.terms.members,
            Some(restart) if restart.newest.members.is_empty() => nodes == self.terms.members,
            Some(restart) => restart.is_enough && nodes.iter().all(|node| self.terms.members.contains(node)),
        };
        let sound = Some(from) == proposer_of(&view)
            && is_enough
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

    /// What this node's logs of the durable shards of a first view are worth.
    pub(super) fn logs(&self, view: &View) -> Logs {
        let holds: BTreeMap<_, _> = view.nodes().into_iter().map(|node| (node, self.held_by(node))).collect();
        let (me, durable) = (self.terms.me, self.terms.durable());
        let level = view.shards().filter(|(id, shard)| {
            durable.contains(id) && held::longest(&holds, *id, &shard.members).contains(&me)
        });
        let behind = self.restart(&holds).map(|restart| restart.newest.id);
        Logs { behind, level: level.map(|(id, _)| id).collect() }
    }

    /// From here on this incarnation belongs to this proposal.
    fn engage(&mut self, now: Time, view: View) {
        let proposer = view.members.first().map(|member| member.incarnation);
        let members = view.nodes();
        self.tell_at.get_or_insert(now.plus(PATIENCE));
        self.enough_since = None;
        self.phase = Phase::Linking { view, since: now, ready: false };
        self.decide(super::Decision::Reword(self.hello(proposer)));
        for node in members {
            self.link_to(now, node);
        }
        self.link(now);
    }
}
