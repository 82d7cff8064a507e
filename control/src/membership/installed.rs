//! Installed: the view stands until there is a reason for another: somebody is gone, leaves, or wants to come.

use std::time::Duration;

use consort_dataplane::names::{NodeId, Time, ViewId};

use super::{Decision, Lost, Membership, Peer, Phase, Stopped, Used, changing::Changing};
use crate::change::{Change, Next, Place, Saying, Wishes};
use crate::config::SlowPolicy;
use crate::held::Logs;
use crate::link::message::{Goodbye, Hello, Message, Standing};
use crate::orders::{Install, Order, Pulse};
use crate::view::{Incarnation, Role, Shard, ShardId, View};

/// How long a joiner that could not be admitted waits for the next attempt.
pub(super) const AGAIN: Duration = Duration::from_millis(200);

impl Membership {
    /// Installs a decided view, which ends `old` (V4). If this node isn't in it, the sessions of `old` are ended and no more.
    pub(super) fn install(&mut self, now: Time, next: Next, old: Option<View>, logs: Logs) {
        let view = next.view.clone();
        let new = self.begun_anew(old.as_ref(), &view);
        self.tell_at = None;
        // Whoever is not in it is told, then cut off (F4, V9).
        for member in old.iter().flat_map(|old| old.members.iter()) {
            if member.node != self.terms.me && view.member(member.node).is_none() {
                self.unlink(member.node);
                self.detection.forget(member.node);
                self.leaving.remove(&member.node);
            }
        }
        for member in &view.members {
            if let (Some(old), None) = (&old, old.as_ref().and_then(|old| old.member(member.node))) {
                let decided = Message::Change { view: old.id, saying: Saying::Decided(next.clone()) };
                self.say(member.node, decided);
            }
            self.joiners.remove(&member.node);
        }
        let renew = self.take_places(&view);
        let cut = old.as_ref().map(|_| next.cuts.clone());
        let slots = self.links.slots();
        let slots = slots.into_iter().filter(|(node, _)| view.member(*node).is_some()).collect();
        let Logs { behind, mut level } = logs;
        level.extend(new);
        self.drive(Order::Install(Install { view: view.clone(), behind, slots, cut, level, renew }));
        self.before = old;
        self.last = Some(next);
        self.changing = Changing::default();
        // What a value spared that had been wedged already ends with the view after.
        let (me, shapes) = (self.terms.me, self.terms.shapes.clone());
        self.wedged.retain(|(id, since)| {
            view.shard(*id).is_some_and(|it| it.since == *since && it.members.contains(&me))
        });
        let wedged = self.wedged.iter().map(|(id, _)| *id).collect();
        self.change = Some(Change::new(me, view.clone(), shapes, wedged));
        #[cfg(test)]
        if let (Some(mutant), Some(change)) = (self.mutant, &mut self.change) {
            change.mutate(mutant);
        }
        self.phase = Phase::Installed(view.clone());
        self.detection.on_view(now);
        self.failures = 0;
        self.still.clear();
        self.decide(Decision::Reword(self.hello(None)));
        for node in self.joiners.keys().copied().collect::<Vec<_>>() {
            self.link_data(node); // if an older life of it was in the way
            self.say(node, Message::Welcome { view: view.clone() });
        }
        for member in view.members {
            if member.node != self.terms.me {
                self.seeds.insert(member.address);
                self.decide(Decision::Know(member.node, member.address));
                self.check_member(now, member.node, member.incarnation);
            }
        }
        // Who came before there was a view to tell of.
        let strangers = self.peers.values().filter_map(|peer| peer.hello.clone());
        let was_member = |hello: &Hello| {
            let old = self.before.as_ref().and_then(|old| old.member(hello.node));
            old.is_some_and(|old| old.incarnation == hello.incarnation)
        };
        let strangers: Vec<_> = strangers
            .filter(|hello| self.incarnation_of(hello.node) != Some(hello.incarnation) && !was_member(hello))
            .filter(|hello| !self.joiners.contains_key(&hello.node))
            .filter(|hello| !matches!(hello.standing, Standing::Member { .. }))
            .collect();
        for hello in strangers {
            self.welcome(now, &hello);
        }
        self.catch_up(now);
        self.check_source(now);
        self.check_shards(now);
        self.learn_shards(now);
        self.look_for_reasons(now);
    }

    /// The durable shards that nobody had before, as far as this node knows: they begin with nothing, and nobody has to have any of it (P3).
    fn begun_anew(&self, old: Option<&View>, view: &View) -> Vec<ShardId> {
        let before = match &self.phase {
            Phase::Joining(Some(before)) if before.id.next() == view.id => Some(before),
            _ => old,
        };
        let never = |shard: &Shard| shard.members.is_empty() && shard.since == ViewId(0);
        let durable = self.terms.durable();
        let all = before.into_iter().flat_map(View::shards);
        all.filter(|(id, shard)| durable.contains(id) && never(shard)).map(|(id, _)| id).collect()
    }

    /// A member that is gone already when the view begins.
    fn check_member(&mut self, now: Time, node: NodeId, incarnation: Incarnation) {
        let met = self.peers.get(&node).and_then(|peer| peer.hello.as_ref()).map(|hello| hello.incarnation);
        if met != Some(incarnation) {
            let known = met.is_some();
            let why = if known { "it was started again" } else { "its control link is down" };
            self.gone(now, node, incarnation, why);
        } else if self.wants_link(node) && !self.links.is_up(node) && !self.is_doubted(node, incarnation) {
            self.gone(now, node, incarnation, "its fabric link is down");
        }
    }

    /// V10: takes the places of the sessions that this node begins with the view. Returns the shards of which someone who is no member
    /// any more may still read what lay there before: a member of that session, which never said that it is done with it.
    fn take_places(&mut self, view: &View) -> Vec<ShardId> {
        let life = |node: NodeId| view.member(node).map(|member| member.incarnation);
        let me = self.terms.me;
        let mut renew = Vec::new();
        for (id, shard) in view.shards() {
            if shard.since != view.id || !shard.members.contains(&me) {
                continue;
            }
            let members = shard.members.iter().filter_map(|node| Some((*node, life(*node)?))).collect();
            let used = Used { since: shard.since, members, retired: false };
            let Some(before) = self.places.insert(Place { shard: id, second: shard.second }, used) else {
                continue;
            };
            let reads = |(node, incarnation): &(NodeId, Incarnation)| {
                let retired = self.peers.get(node).and_then(|peer| peer.retired.get(&id));
                let is_gone = life(*node) != Some(*incarnation);
                *node != me && is_gone && retired.is_none_or(|retired| *retired < before.since)
            };
            if before.members.iter().any(reads) {
                renew.push(id);
            }
        }
        renew
    }

    /// V10: where a session lies that ended in an earlier change and is needed here yet.
    pub(super) fn busy(&self) -> Vec<Place> {
        let Some(view) = self.view() else { return Vec::new() };
        let goes_on =
            |place: &Place, used: &Used| view.shard(place.shard).is_some_and(|it| it.since == used.since);
        let busy = self.places.iter().filter(|(place, used)| !used.retired && !goes_on(place, used));
        busy.map(|(place, _)| *place).collect()
    }

    /// The incarnation of a member of the installed view.
    pub(super) fn incarnation_of(&self, node: NodeId) -> Option<Incarnation> {
        self.view()?.member(node).map(|member| member.incarnation)
    }

    /// That life of a node is gone, as far as this node knows (F5, V9).
    pub(super) fn gone(&mut self, now: Time, node: NodeId, incarnation: Incarnation, why: &str) {
        self.end_teaching(node, incarnation);
        if self.joiners.get(&node).is_some_and(|joiner| joiner.member.incarnation == incarnation) {
            self.joiners.remove(&node);
            self.unlink(node);
            self.wish();
            if self.incarnation_of(node).is_none() {
                return self.begin_again(node);
            }
        }
        if self.incarnation_of(node) != Some(incarnation) {
            if self.incarnation_of(node).is_none() && !self.joiners.contains_key(&node) {
                self.decide(Decision::Forget(node));
            }
            return;
        }
        let Some(change) = &mut self.change else { return };
        if !change.suspects().contains(&node) {
            tracing::info!(%node, why, "a member is taken for gone");
            change.on_suspect(node);
            self.lost.insert(node, Lost { node, incarnation, at: now, why: why.to_owned() });
        }
        self.pump(now, node);
        self.miss_source(now, node, incarnation, why);
    }

    /// The fabric's link to a member is of no use any more.
    pub(super) fn sever(&mut self, node: NodeId) {
        self.unlink(node);
    }

    /// Gives up the fabric's link to a node (F4).
    pub(super) fn unlink(&mut self, node: NodeId) {
        if let Some(slot) = self.links.end(node) {
            self.drive(Order::Unlink(slot));
        }
    }

    /// Links the fabric to a node that said hello, if both hold data and there is no link to this life of it.
    pub(super) fn link_data(&mut self, node: NodeId) {
        let Some(hello) = self.peers.get(&node).and_then(|peer| peer.hello.clone()) else { return };
        if !self.wants_link(node) {
            return;
        }
        if self.links.incarnation(node).is_some_and(|incarnation| incarnation != hello.incarnation) {
            self.unlink(node);
        }
        if let Some((slot, number)) = self.links.begin(node, hello.incarnation) {
            self.drive(Order::Link { slot, number, node, offer: hello.offer });
        }
    }

    /// A control link is up while the group runs: a member's came back, or somebody wants to join.
    pub(super) fn greeted(&mut self, now: Time, node: NodeId) {
        let Some(hello) = self.peers.get(&node).and_then(|peer| peer.hello.clone()) else { return };
        if self.incarnation_of(node) == Some(hello.incarnation) {
            // What was said while there was no link is lost: said again.
            let retired = self.places.iter().filter(|(_, used)| used.retired);
            for (shard, since) in retired.map(|(place, used)| (place.shard, used.since)).collect::<Vec<_>>() {
                self.say(node, Message::Retired(shard, since));
            }
            if self.leaving.contains(&self.terms.me) {
                self.say(node, Message::Leaving);
            }
            if let Some(change) = self.change.as_mut().filter(|change| change.has_begun()) {
                change.on_reachable(node);
                self.pump(now, node);
            }
            return;
        }
        if let Standing::Member { view } = hello.standing {
            // It was one, and may not have heard that the group went on without it.
            if let Some(last) = self.last.clone() {
                self.say(node, Message::Change { view, saying: Saying::Decided(last) });
            }
            return;
        }
        self.welcome(now, &hello);
    }

    /// A member says goodbye, or a node that wanted to be one.
    pub(super) fn on_goodbye(&mut self, now: Time, node: NodeId, goodbye: &Goodbye) {
        let why = match goodbye {
            Goodbye::Ended | Goodbye::Left => "it left without order".to_owned(),
            Goodbye::Broken(reason) => format!("it couldn't go on: {reason}"),
            Goodbye::Lost { reason, .. } | Goodbye::Misbehaved { reason, .. } => {
                format!("it stopped: {reason}")
            }
        };
        let hello = self.peers.get(&node).and_then(|peer| peer.hello.as_ref());
        if let Some(incarnation) = hello.map(|hello| hello.incarnation) {
            self.on_down(now, node, incarnation, &why);
        }
    }

    /// Wants to leave in order (V8): all that this node sent is delivered.
    pub(super) fn leave(&mut self, now: Time) {
        if self.view().is_none() {
            return self.stop(Goodbye::Left, Stopped::Closed);
        }
        self.leaving.insert(self.terms.me);
        self.say_all(&Message::Leaving);
        self.wish();
        self.look_for_reasons(now);
    }

    pub(super) fn on_leaving(&mut self, now: Time, node: NodeId) {
        if self.incarnation_of(node).is_some() {
            self.leaving.insert(node);
            self.wish();
            self.look_for_reasons(now);
        }
    }

    /// Tells the change who wants to come and go.
    pub(super) fn wish(&mut self) {
        let wishes =
            Wishes { joining: self.candidates(), leaving: self.leaving.clone(), ready: self.ready() };
        if let Some(change) = &mut self.change {
            change.on_wishes(wishes);
        }
    }

    /// Begins a change, or asks who leads to, if there is a reason for one.
    pub(super) fn look_for_reasons(&mut self, now: Time) {
        let Phase::Installed(view) = &self.phase else { return };
        let leavers = self.leaving.iter().any(|node| view.member(*node).is_some());
        let joiners = self.joiners.values().any(|joiner| joiner.try_at <= now && self.is_ready(joiner));
        let suspects = self.change.as_ref().is_some_and(|change| !change.suspects().is_empty());
        let others = !self.wedged.is_empty() || !self.ready().is_empty();
        if !leavers && !joiners && !suspects && !others {
            return;
        }
        let members: Vec<_> = view.members.iter().map(|member| member.node).collect();
        if joiners {
            for joiner in self.joiners.values_mut().filter(|joiner| joiner.try_at <= now) {
                joiner.try_at = now.plus(joiner.pause);
                joiner.pause *= 2;
            }
        }
        if members == [self.terms.me] && leavers {
            // The last one: there is nobody to agree with.
            return self.stop(Goodbye::Left, Stopped::Closed);
        }
        self.wish();
        if let Some(change) = &mut self.change {
            change.on_reason();
        }
        self.pump(now, self.terms.me);
    }

    /// Looks who is silent, says that this node lives, and gives a change that is under way its time.
    pub(super) fn watch(&mut self, now: Time) {
        self.end_doubts(now);
        if self.detection.due() <= now {
            let awake = self.detection.pass(now);
            self.say_all(&Message::Alive);
            if self.leaving.contains(&self.terms.me) {
                // Who had not come to the view that admits this node when it was said first did not know a member that leaves.
                self.say_all(&Message::Leaving);
            }
            for node in self.detection.silent() {
                self.detection.begin_anew(node);
                if let Some(incarnation) = self.incarnation_of(node) {
                    self.gone(now, node, incarnation, "it is silent");
                } else {
                    self.joiners.remove(&node);
                    self.unlink(node);
                    self.decide(Decision::Forget(node));
                }
            }
            self.ask_again();
            self.learn_shards(now);
            self.be_patient(now, awake);
        } else {
            self.be_patient(now, Duration::ZERO);
        }
        self.look_for_reasons(now);
    }

    pub(super) fn watch_due(&self) -> Option<Time> {
        let joiners =
            self.joiners.values().filter(|joiner| self.is_ready(joiner)).map(|joiner| joiner.try_at);
        let joiners = joiners.filter(|_| matches!(self.phase, Phase::Installed(_)));
        joiners.chain(self.changing.due()).chain(self.doubts_due()).chain([self.detection.due()]).min()
    }

    /// V9: a member that stands still in a group while its process lives is slow, not dead; that group's policy decides.
    pub(super) fn pulse(&mut self, now: Time, pulse: Pulse) {
        self.detection.on_pulse(now, &pulse);
        self.sessions = pulse.sessions;
        self.pulsed = Some(now);
        let policies = &self.slow;
        let bound = |shard: ShardId| match policies.get(usize::try_from(shard.0).ok()?)? {
            SlowPolicy::Wait => None,
            SlowPolicy::Evict(after) => Some(*after),
        };
        for (shard, node, after) in self.detection.blocked(bound) {
            let Some(incarnation) = self.incarnation_of(node) else { continue };
            let why = if self.detection.engine_still(node) >= after {
                format!("its engine has stood still for {after:?}: a callback that doesn't return")
            } else {
                let group = self.terms.name(shard);
                format!("its application has taken nothing of what waits for it in {group} for {after:?}")
            };
            self.still.insert(node);
            self.gone(now, node, incarnation, &why);
        }
    }

    /// Forgets what was known of a node's link when another life of it comes.
    pub(super) fn forget_peer(&mut self, node: NodeId) {
        if let Some(peer) = self.peers.get_mut(&node) {
            *peer = Peer { hello: peer.hello.take(), ..Peer::default() };
        }
    }

    /// Whether there is a member with data among those who go on.
    pub(super) fn has_data(view: &View) -> bool {
        view.members.iter().any(|member| member.role == Role::Data)
    }
}
