//! A state of a small world, and the steps that lead to the next.

use std::collections::BTreeSet;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use consort_control::change::{Change, Effect, Fetch, Frozen, Next, Phase, Place, Report, Saying};
use consort_control::view::ShardId;

use super::world::{Bounds, Received, World, node, place};

/// A value with its hash: states share what a step leaves as it is, and hash it once.
#[derive(Clone)]
pub struct Shared<T>(Arc<(u64, T)>);

impl<T: Hash> Shared<T> {
    fn new(value: T) -> Self {
        let mut hasher = DefaultHasher::new();
        value.hash(&mut hasher);
        Self(Arc::new((hasher.finish(), value)))
    }
}

impl<T> Shared<T> {
    fn key(&self) -> u64 {
        self.0.0
    }
}

impl<T> std::ops::Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.1
    }
}

impl<T> Hash for Shared<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.key());
    }
}

impl<T> PartialEq for Shared<T> {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl<T> Eq for Shared<T> {}

impl<T: fmt::Debug> fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.1.fmt(f)
    }
}

/// Where the main group's next session lies.
const NEXT: Place = Place { shard: ShardId::MAIN, second: false };

/// Something that was said and has not arrived.
#[derive(Clone, Hash, Debug)]
pub struct Envelope {
    from: usize,
    to: usize,
    saying: Saying,
}

/// A member.
#[derive(Clone, Hash, Debug)]
pub struct Node {
    /// Its part in the change; `None` once it is dead.
    pub(super) change: Option<Change>,
    /// How much it has of each ring. Until a session is frozen nobody has looked: it may be anything that was sent.
    pub(super) received: Received,
    /// What of it came before it was wedged: where delivery doesn't wait for others, it may have delivered that.
    pub(super) delivered: Received,
    /// It was asked to wedge these and has not said that it did.
    pub(super) wedging: Option<BTreeSet<ShardId>>,
    /// The shards whose sessions are wedged; none before it was asked.
    pub(super) frozen: BTreeSet<ShardId>,
    /// It has reported.
    pub(super) reported: bool,
    /// Whom it has fenced.
    pub(super) fenced: BTreeSet<usize>,
    pub(super) fetches: Vec<Fetch>,
    pub(super) free: bool,
    pub(super) decided: Option<Next>,
}

/// A state of the world.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct State {
    pub(super) nodes: Vec<Shared<Node>>,
    /// What is under way: a set, as saying the same twice is as good as once; in the order of the hashes.
    pub(super) envelopes: Vec<Shared<Envelope>>,
    pub(super) left: Bounds,
}

/// A step.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// Something that was said arrives.
    Arrive(Shared<Envelope>),
    /// Or doesn't.
    Lose(Shared<Envelope>),
    /// What a member was to wedge and fence, it has; and so much it had received.
    Wedged(usize, Received),
    /// A part that a member fetches has come.
    Supply(usize, usize),
    /// It frees the memory that the next view needs.
    Free(usize),
    /// It takes another for gone.
    Suspect(usize, usize),
    /// It dies.
    Crash(usize),
    /// Its patience ends.
    Patience(usize),
    /// It can reach another again.
    Reachable(usize, usize),
    /// It sees a reason for a change.
    Reason(usize),
}

impl State {
    pub(super) fn new(world: &World) -> Self {
        let nodes = (0..world.roles.len()).map(|at| {
            let mut change = Change::new(node(at), world.view(), world.shapes(), world.ending());
            if let Some(mutant) = world.mutant {
                change.mutate(mutant);
            }
            change.on_wishes(world.wishes());
            let free = !world.busy.contains(&at);
            Shared::new(Node {
                change: Some(change),
                received: world.begun(at),
                delivered: world.begun(at),
                wedging: None,
                frozen: BTreeSet::new(),
                reported: false,
                fenced: BTreeSet::new(),
                fetches: Vec::new(),
                free,
                decided: None,
            })
        });
        Self { nodes: nodes.collect(), envelopes: Vec::new(), left: world.bounds }
    }

    pub(super) fn alive(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.nodes.len()).filter(|at| self.nodes[*at].change.is_some())
    }

    pub(super) fn is_alive(&self, at: usize) -> bool {
        self.nodes[at].change.is_some()
    }

    /// Changes a member and carries out what its change wants.
    fn at(&mut self, at: usize, step: impl FnOnce(&mut Node)) {
        let mut node = Node::clone(&self.nodes[at]);
        step(&mut node);
        while let Some(effect) = node.change.as_mut().and_then(Change::poll_effect) {
            match effect {
                Effect::Wedge { shards, fence } => {
                    node.wedging.get_or_insert_default().extend(shards);
                    node.fenced.extend(fence.into_iter().map(place));
                }
                Effect::Say(to, saying) => {
                    let to = place(to);
                    if self.nodes.get(to).is_some_and(|node| node.change.is_some()) {
                        self.post(Shared::new(Envelope { from: at, to, saying }));
                    }
                }
                Effect::Fetch(fetch) => {
                    node.fetches.retain(|known| (known.shard, known.rank) != (fetch.shard, fetch.rank));
                    node.fetches.push(fetch);
                }
                Effect::Decided(next) => node.decided = Some(next),
            }
        }
        if let Some(change) = &node.change {
            self.forget(at, &change.phase());
        }
        self.nodes[at] = Shared::new(node);
    }

    fn post(&mut self, envelope: Shared<Envelope>) {
        if let Err(place) = self.envelopes.binary_search_by_key(&envelope.key(), Shared::key) {
            self.envelopes.insert(place, envelope);
        }
    }

    /// Forgets what was said to a member and can't matter to it any more: it would only multiply the states.
    fn forget(&mut self, at: usize, phase: &Phase) {
        let asks_no_more =
            !matches!(phase, Phase::Wedging | Phase::Reporting(_) | Phase::Filling(_) | Phase::Freeing(_));
        let counts_no_votes = !matches!(phase, Phase::Wedging | Phase::Accepting { .. });
        let is_over = *phase == Phase::Decided;
        let matters = |saying: &Saying| match saying {
            Saying::Promise { .. } => is_over || !asks_no_more, // whoever promises has not heard
            Saying::Accepted { .. } => !counts_no_votes,
            Saying::Decided(_) | Saying::Outbid { .. } | Saying::Fill { .. } => !is_over,
            Saying::Nudge | Saying::Prepare { .. } | Saying::Accept { .. } => true,
        };
        self.envelopes.retain(|envelope| envelope.to != at || matters(&envelope.saying));
    }

    pub(super) fn take(&mut self, envelope: &Shared<Envelope>) {
        if let Ok(place) = self.envelopes.binary_search_by_key(&envelope.key(), Shared::key) {
            self.envelopes.remove(place);
        }
    }

    pub(super) fn change(&mut self, at: usize, event: impl FnOnce(&mut Change)) {
        self.at(at, |node| {
            if let Some(change) = &mut node.change {
                event(change);
            }
        });
    }

    pub(super) fn arrive(&mut self, envelope: &Shared<Envelope>) {
        self.take(envelope);
        let Envelope { from, to, saying } = Envelope::clone(envelope);
        self.change(to, |change| change.on_said(node(from), saying));
    }

    /// What a member can have received when it says that it is wedged.
    pub(super) fn may_have_received(&self, world: &World, at: usize) -> Vec<Received> {
        let node = &self.nodes[at];
        let mut all = vec![node.received.clone()];
        let due = node.wedging.iter().flatten().filter(|shard| !node.frozen.contains(shard));
        for (shard, rings) in due.filter_map(|shard| Some((*shard, node.received.get(shard)?))) {
            for (rank, known) in rings.iter().copied().enumerate() {
                let longer = |begun: &Received| {
                    let begun = begun.clone();
                    (known..=world.most(at, shard, rank)).map(move |received| {
                        let mut longer = begun.clone();
                        if let Some(rings) = longer.get_mut(&shard) {
                            rings[rank] = received;
                        }
                        longer
                    })
                };
                all = all.iter().flat_map(longer).collect();
            }
        }
        all
    }

    pub(super) fn wedged(&mut self, world: &World, at: usize, received: &Received) {
        self.at(at, |it| {
            let due: Vec<_> = it.wedging.take().into_iter().flatten().collect();
            for shard in due {
                if let Some(rings) = received.get(&shard)
                    && it.received.contains_key(&shard)
                    && it.frozen.insert(shard)
                {
                    it.delivered.insert(shard, rings.clone());
                    it.received.insert(shard, rings.clone());
                }
            }
            it.reported = true;
            let frozen = it.received.iter().filter(|(shard, _)| it.frozen.contains(shard));
            let frozen = frozen.map(|(shard, rings)| Frozen { shard: *shard, received: rings.clone() });
            let is_data = |at: &usize| world.is_data(*at);
            let cut = |other: &usize| it.fenced.contains(other) || !world.has_link(at, *other);
            let severed = (0..world.roles.len()).filter(|other| is_data(other) && is_data(&at) && cut(other));
            let joiner = world.joiner.iter().filter(|linked| linked.contains(&at));
            let report = Report {
                severed: severed.map(node).collect(),
                frozen: frozen.collect(),
                linked: joiner.map(|_| world.member(world.roles.len()).incarnation).collect(),
                busy: if it.free { Vec::new() } else { vec![NEXT] },
                ..Report::default()
            };
            if let Some(change) = &mut it.change {
                change.on_wedged(report);
            }
        });
    }

    /// Whether a part that a member fetches can be had.
    pub(super) fn can_supply(&self, fetch: &Fetch) -> bool {
        let holder = &self.nodes[place(fetch.holder)];
        let has = holder.received.get(&fetch.shard).is_some_and(|rings| rings[fetch.rank] >= fetch.to);
        holder.change.is_some() && holder.frozen.contains(&fetch.shard) && has
    }

    pub(super) fn supply(&mut self, at: usize, index: usize) {
        self.at(at, |node| {
            let fetch = node.fetches.remove(index);
            if let Some(rings) = node.received.get_mut(&fetch.shard) {
                rings[fetch.rank] = rings[fetch.rank].max(fetch.to);
            }
            if let Some(change) = &mut node.change {
                change.on_supplied(fetch.shard, fetch.rank, fetch.to);
            }
        });
    }

    pub(super) fn free(&mut self, at: usize) {
        self.at(at, |node| {
            node.free = true;
            if let Some(change) = &mut node.change {
                change.on_free(NEXT);
            }
        });
    }

    pub(super) fn crash(&mut self, at: usize) {
        self.at(at, |node| {
            node.change = None;
            node.wedging = None;
            node.fetches.clear();
        });
        self.envelopes.retain(|envelope| envelope.to != at);
    }

    /// Nothing is under way that must come.
    pub(super) fn is_quiet(&self) -> bool {
        self.envelopes.is_empty() && self.nodes.iter().all(|node| node.wedging.is_none())
    }

    /// Everything that is under way comes, in some order.
    fn settle(&mut self, world: &World) {
        while let Some(step) = self.due() {
            match step {
                Step::Arrive(envelope) => self.arrive(&envelope),
                Step::Wedged(at, received) => self.wedged(world, at, &received),
                Step::Supply(at, index) => self.supply(at, index),
                Step::Free(at) => self.free(at),
                _ => return,
            }
        }
    }

    /// A step that nobody can keep from being taken in the end.
    fn due(&self) -> Option<Step> {
        if let Some(envelope) = self.envelopes.first() {
            return Some(Step::Arrive(envelope.clone()));
        }
        self.alive().find_map(|at| {
            let node = &self.nodes[at];
            if node.wedging.is_some() {
                return Some(Step::Wedged(at, node.received.clone()));
            }
            if !node.free {
                return Some(Step::Free(at));
            }
            let index = node.fetches.iter().position(|fetch| self.can_supply(fetch))?;
            Some(Step::Supply(at, index))
        })
    }

    /// Whether all who live come to a decision, if nothing more goes wrong, the dead are suspected by all, and
    /// patience ends now here, now there.
    pub(super) fn comes_to_an_end(&self, world: &World) -> bool {
        let alive: Vec<_> = self.alive().collect();
        let begun = |at: &usize| {
            self.nodes[*at].change.as_ref().is_some_and(|it| it.has_begun() || !it.suspects().is_empty())
        };
        if alive.len() < world.view().majority()
            || !alive.iter().any(|at| world.is_data(*at))
            || alive.len() == self.nodes.len() && !alive.iter().any(begun)
        {
            return true;
        }
        let mut state = self.clone();
        for at in &alive {
            for dead in (0..state.nodes.len()).filter(|at| !alive.contains(at)) {
                state.change(*at, |change| change.on_suspect(node(dead)));
            }
        }
        state.settle(world);
        for _ in 0..2 * alive.len() {
            for at in &alive {
                if alive.iter().all(|at| state.nodes[*at].decided.is_some()) {
                    return true;
                }
                state.change(*at, Change::on_patience);
                state.settle(world);
            }
        }
        alive.iter().all(|at| state.nodes[*at].decided.is_some())
    }

    pub(super) fn decided(&self) -> impl Iterator<Item = &Next> {
        self.nodes.iter().filter_map(|node| node.decided.as_ref())
    }

    /// All values that were decided or accepted by anyone that lives.
    pub(super) fn values(&self) -> impl Iterator<Item = &Next> {
        let accepted = self.nodes.iter().filter_map(|node| Some(&node.change.as_ref()?.accepted()?.1));
        self.decided().chain(accepted)
    }

    /// The members that go on with a value.
    pub(super) fn goes_on<'a>(
        &'a self,
        world: &'a World,
        next: &'a Next,
    ) -> impl Iterator<Item = (usize, &'a Node)> {
        let places = next.view.members.iter().map(|member| place(member.node));
        places.filter(|at| *at < world.roles.len()).map(|at| (at, &*self.nodes[at]))
    }
}
