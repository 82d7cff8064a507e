//! Several drivers in one thread and in virtual time; the membership over them does what it should, in the plainest way.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use consort_dataplane::names::{NodeId, Slot, Time, ViewId};
use consort_dataplane::plan::Guarantee;
use consort_dataplane::sim::{Choices, SimNetwork, SimOptions};

use crate::change::Cut;
use crate::config::{GroupConfig, NodeConfig, WaitStrategy};
use crate::orders::{Install, LinkNumber, Order, Part, Report};
use crate::shell::clock;
use crate::shell::start::MadeFabric;
use crate::transfer::{Lesson, Pupil};
use crate::view::{Domain, Incarnation, Member, Role, ShardId, View};

use super::host::{Host, Told, views};

pub(super) const RING: usize = 4096;

/// Rounds within which whatever is waited for must have happened.
const PATIENCE: usize = 20_000;

/// Of a node.
fn config(id: NodeId, guarantee: Guarantee, groups: u32, wait: WaitStrategy) -> NodeConfig {
    let mut config = NodeConfig::new(id);
    (config.ring_bytes, config.guarantee, config.wait) = (RING, guarantee, wait);
    let group = |number| GroupConfig::new(&format!("{number}")).guarantee(guarantee).ring_bytes(RING);
    config.groups = (0..groups).map(group).collect();
    config
}

pub(super) struct World {
    pub(super) network: SimNetwork,
    pub(super) choices: Choices,
    pub(super) guarantee: Guarantee,
    /// Groups of all members, beside the main one.
    groups: u32,
    wait: WaitStrategy,
    pub(super) hosts: BTreeMap<u32, Host>,
    pub(super) view: View,
    pub(super) now: Time,
    lives: u64,
    /// Everything that anyone was told by one that is gone.
    pub(super) gone: Vec<(u32, Vec<Told>)>,
    /// Who teaches whom (V7).
    pub(super) courses: Vec<(u32, Pupil)>,
    /// Pieces of snapshots that were said with their bytes, and without.
    pub(super) pieces: (u32, u32),
}

impl World {
    /// Nodes from 1, in view 1.
    pub(super) fn new(seed: u64, nodes: u32, guarantee: Guarantee) -> Self {
        Self::with_groups(seed, nodes, guarantee, 0)
    }

    /// With so many groups of all members beside the main one. Its view can't change.
    pub(super) fn with_groups(seed: u64, nodes: u32, guarantee: Guarantee, groups: u32) -> Self {
        Self::with(seed, nodes, guarantee, groups, WaitStrategy::Block)
    }

    /// As [`World::new`], with drivers that wait like this, and without tearing: what comes is all seen in one turn.
    pub(super) fn waiting(seed: u64, nodes: u32, guarantee: Guarantee, wait: WaitStrategy) -> Self {
        Self::with(seed, nodes, guarantee, 0, wait)
    }

    fn with(seed: u64, nodes: u32, guarantee: Guarantee, groups: u32, wait: WaitStrategy) -> Self {
        let options = SimOptions {
            delay: (Duration::from_nanos(100), Duration::from_micros(30)),
            tearing: if wait == WaitStrategy::Block { 20 } else { 0 },
            segment_bytes: config(NodeId(1), guarantee, groups, wait).segment_bytes(),
            relays: false,
            publishing_costs: seed.is_multiple_of(2),
        };
        clock::pretend(Time(1));
        let mut world = Self {
            network: SimNetwork::empty(seed, options),
            choices: Choices::new(!seed),
            guarantee,
            groups,
            wait,
            hosts: BTreeMap::new(),
            view: View::of(ViewId(0), Vec::new()),
            now: Time(1),
            lives: 0,
            gone: Vec::new(),
            courses: Vec::new(),
            pieces: (0, 0),
        };
        for id in 1..=nodes {
            world.add(id);
        }
        let all: Vec<_> = (1..=nodes).collect();
        world.change(&all);
        world.until("there", |world| world.hosts.values().all(|host| host.views() == [1]));
        world
    }

    /// A node, not linked to anyone.
    pub(super) fn add(&mut self, id: u32) {
        let config = config(NodeId(id), self.guarantee, self.groups, self.wait);
        let network = self.network.clone();
        let make = move || -> MadeFabric { (Box::new(network.add(NodeId(id))), "sim") };
        self.lives += 1;
        let host = Host::new(config, make, self.lives);
        self.hosts.insert(id, host);
    }

    pub(super) fn host(&mut self, id: u32) -> &mut Host {
        self.hosts.get_mut(&id).unwrap()
    }

    pub(super) fn members(&self) -> Vec<u32> {
        self.view.nodes().iter().map(|node| node.0).collect()
    }

    /// A turn of everyone, some time later.
    pub(super) fn round(&mut self) {
        self.now = Time(self.now.0 + 1 + self.choices.below(20_000));
        clock::pretend(self.now);
        self.network.advance_to(self.now);
        for host in self.hosts.values_mut() {
            if self.choices.chance(80) {
                host.turn();
            }
        }
        self.relay();
    }

    /// Carries lessons and answers, as membership does, while both live.
    fn relay(&mut self) {
        for (source, pupil) in self.courses.clone() {
            let take = |host: &mut Host, is_one: &dyn Fn(&Report) -> bool| {
                let (these, others) = std::mem::take(&mut host.reports).into_iter().partition(is_one);
                host.reports = others;
                let these: Vec<Report> = these;
                these
            };
            if !self.hosts.contains_key(&source) || !self.hosts.contains_key(&pupil.node.0) {
                continue;
            }
            let lessons = take(self.host(source), &|it| matches!(it, Report::Lesson(to, _) if *to == pupil));
            for report in lessons {
                let Report::Lesson(_, lesson) = report else { continue };
                match &lesson {
                    Lesson::Chunk { bytes: Some(_), .. } => self.pieces.0 += 1,
                    Lesson::Chunk { bytes: None, .. } => self.pieces.1 += 1,
                    _ => {}
                }
                self.hosts[&pupil.node.0].order(Order::Lesson(ShardId::MAIN, pupil.attempt, lesson));
            }
            let answers = take(
                self.host(pupil.node.0),
                &|it| matches!(it, Report::Took(_, of, _) if *of == pupil.attempt),
            );
            for report in answers {
                let Report::Took(_, _, took) = report else { continue };
                self.hosts[&source].order(Order::Took(pupil, took));
            }
        }
    }

    /// One node begins to learn from another.
    pub(super) fn teach(&mut self, source: u32, id: u32, held: u64) -> u64 {
        let attempt = self.courses.len() as u64 + 1;
        let incarnation = Incarnation(self.hosts[&id].life);
        let pupil = Pupil { shard: ShardId::MAIN, node: NodeId(id), incarnation, attempt };
        self.hosts[&id].order(Order::Learn(ShardId::MAIN, attempt));
        self.hosts[&source].order(Order::Teach(pupil, held));
        self.courses.push((source, pupil));
        attempt
    }

    /// Who has the same history has the same state (V7).
    pub(super) fn check_states(&self) {
        let mut states: Vec<_> =
            self.members().iter().map(|id| (*id, self.hosts[id].state.clone())).collect();
        if self.guarantee == Guarantee::Fifo {
            states.iter_mut().for_each(|(_, state)| state.sort_unstable());
        }
        for pair in states.windows(2) {
            assert_eq!(pair[0].1, pair[1].1, "the states of {} and {} differ (V7)", pair[0].0, pair[1].0);
        }
    }

    /// So much time passes.
    pub(super) fn pass(&mut self, time: Duration) {
        let until = self.now.plus(time);
        while self.now < until {
            self.now = self.now.plus(Duration::from_millis(5));
            self.round();
        }
    }

    pub(super) fn rounds(&mut self, rounds: usize) {
        for _ in 0..rounds {
            self.round();
        }
    }

    /// Goes on until it is so.
    pub(super) fn until(&mut self, what: &str, is_so: impl Fn(&Self) -> bool) {
        for _ in 0..PATIENCE {
            if is_so(self) {
                return;
            }
            self.round();
        }
        let hosts = self.hosts.iter();
        let status: Vec<_> = hosts.map(|(id, host)| (id, host.driver.status(), host.views())).collect();
        panic!("never {what}: {status:?}");
    }

    /// A turn of everyone, in which who can sends something.
    pub(super) fn load(&mut self, rounds: usize) {
        for _ in 0..rounds {
            let ids: Vec<_> = self.hosts.keys().copied().collect();
            for id in ids {
                for _ in 0..self.choices.below(4) {
                    let (len, tracked) = (self.choices.below(300) as usize, self.choices.chance(50));
                    let _ = self.host(id).send(id, len, tracked);
                }
            }
            self.round();
        }
    }

    /// The node dies.
    pub(super) fn crash(&mut self, id: u32) {
        let end = self.network.end_of(NodeId(id)).unwrap();
        if self.choices.chance(50) {
            self.network.crash(end);
        } else {
            self.network.crash_silently(end);
        }
        let host = self.hosts.remove(&id).unwrap();
        self.gone.push((id, host.told));
    }

    /// Links two nodes.
    pub(super) fn link(&mut self, one: u32, other: u32) {
        for (me, peer) in [(one, other), (other, one)] {
            let offer = self.hosts[&peer].offer.clone();
            let host = self.host(me);
            let (slot, number) = (Slot((host.numbers % 64) as u8), LinkNumber(100 * host.numbers));
            host.numbers += 1;
            host.links.insert(peer, (slot, number));
            host.order(Order::Link { slot, number, node: NodeId(peer), offer });
        }
        self.until("linked", |world| {
            [(one, other), (other, one)].iter().all(|(me, peer)| {
                let host = &world.hosts[me];
                host.has(&Report::Up(host.links[peer].1, "sim"))
            })
        });
    }

    /// Ends the sessions of the view at those who go on, and at those who leave in order; `gone` are fenced.
    pub(super) fn wedge(&mut self, among: &[u32], gone: &[u32]) {
        let view = self.view.id;
        for id in among {
            let fence: Vec<_> = gone.iter().filter_map(|node| self.host(*id).links.remove(node)).collect();
            let fence = fence.into_iter().map(|(slot, _)| slot).collect();
            self.host(*id).order(Order::Wedge { view, shards: vec![ShardId::MAIN], fence });
        }
        let among = among.to_vec();
        self.until("wedged", |world| among.iter().all(|id| world.hosts[id].frozen(view).is_some()));
    }

    /// Where the view's session ends for these (V3). Who lacks what lies below gets it.
    pub(super) fn cut(&mut self, among: &[u32]) -> Cut {
        let view = self.view.id;
        let frozen: BTreeMap<_, _> =
            among.iter().map(|id| (*id, self.hosts[id].frozen(view).unwrap().received)).collect();
        let ranks = self.view.members.len();
        let mut cut = Cut { shard: ShardId::MAIN, trim: Vec::new() };
        for rank in 0..ranks {
            let column = frozen.values().map(|received| received[rank]);
            let stable = self.guarantee.stable();
            cut.trim.push(if stable { column.min().unwrap() } else { column.max().unwrap() });
            let to = cut.trim[rank];
            let holder = *frozen.iter().find(|(_, received)| received[rank] >= to).unwrap().0;
            for (id, received) in frozen.iter().filter(|(_, received)| received[rank] < to) {
                let part = Part { view, shard: ShardId::MAIN, rank, from: received[rank], to };
                self.host(holder).order(Order::Read(part));
                let bytes = |world: &Self| {
                    world.hosts[&holder].reports.iter().find_map(|report| match report {
                        Report::Bytes(of, bytes) if *of == part => Some(bytes.clone().unwrap()),
                        _ => None,
                    })
                };
                self.until("read", |world| bytes(world).is_some());
                let bytes = bytes(self).unwrap();
                self.host(*id).order(Order::Supply { part, bytes });
                self.until("supplied", |world| world.hosts[id].has(&Report::Supplied(part, true)));
            }
        }
        cut
    }

    /// The view after this one.
    pub(super) fn next(&self, members: &[u32]) -> View {
        let member = |id: &u32| Member {
            node: NodeId(*id),
            incarnation: Incarnation(self.hosts.get(id).map_or(0, |host| host.life)),
            address: ([127, 0, 0, 1], 7100).into(),
            role: Role::Data,
            domain: Domain::default(),
        };
        let mut view = View::of(self.view.id.next(), members.iter().map(member).collect());
        let main = view.shards[0].clone();
        view.shards.resize(1 + self.groups as usize, main);
        view
    }

    /// Orders a view at these nodes; the cut goes to those who were in the view before.
    pub(super) fn install(&mut self, view: View, cut: Option<&Cut>, at: &[u32]) {
        for id in at {
            let before = self.view.member(NodeId(*id));
            let is_old = before.is_some_and(|member| member.incarnation.0 == self.hosts[id].life);
            let host = self.host(*id);
            let slots = host.links.iter().map(|(node, (slot, _))| (NodeId(*node), *slot)).collect();
            let cut = cut.filter(|_| is_old).map(|cut| vec![cut.clone()]);
            host.installed.push(view.id);
            host.order(Order::Install(Install {
                behind: None,
                view: view.clone(),
                slots,
                cut,
                level: Vec::new(),
                renew: vec![ShardId::MAIN],
            }));
        }
        self.view = view;
    }

    /// A change of the view, from its beginning to its end: these are the members of the next.
    pub(super) fn change(&mut self, members: &[u32]) {
        let before = self.members();
        let stay: Vec<_> = before
            .iter()
            .copied()
            .filter(|id| {
                let life = self.hosts.get(id).map(|host| Incarnation(host.life));
                members.contains(id) && self.view.member(NodeId(*id)).map(|member| member.incarnation) == life
            })
            .collect();
        if !stay.is_empty() {
            let gone: Vec<_> = before.iter().copied().filter(|id| !stay.contains(id)).collect();
            self.wedge(&stay, &gone);
        }
        for (at, id) in members.iter().enumerate() {
            for other in &members[..at] {
                if !self.hosts[id].links.contains_key(other) || !self.hosts[other].links.contains_key(id) {
                    self.link(*id, *other);
                }
            }
        }
        let cut = (!stay.is_empty()).then(|| self.finish(&stay));
        let view = self.next(members);
        self.install(view, cut.as_ref(), members);
    }

    /// Waits until nobody needs the memory that the next view's sessions will use (V10), and finds where this view's end.
    pub(super) fn finish(&mut self, among: &[u32]) -> Cut {
        let past = ViewId(self.view.id.0 - 1);
        self.until("retired", |world| {
            let hosts = among.iter().map(|id| &world.hosts[id]);
            hosts.into_iter().all(|host| {
                !host.installed.contains(&past) || host.has(&Report::Retired(ShardId::MAIN, past))
            })
        });
        self.cut(among)
    }

    /// Everyone has everything, and says so.
    pub(super) fn settle(&mut self) {
        for id in self.members() {
            self.host(id).room = usize::MAX;
        }
        self.until("delivered", |world| {
            world.members().iter().all(|id| {
                let host = &world.hosts[id];
                host.messages().iter().filter(|(sender, _)| sender == id).count() as u64 == host.sent
            })
        });
        self.rounds(500);
    }

    /// What must hold of all that anyone was told, whatever happened.
    pub(super) fn check(&self) {
        let now = self.hosts.iter().map(|(id, host)| (*id, &host.told));
        let all: Vec<_> = self.gone.iter().map(|(id, told)| (*id, told)).chain(now).collect();
        let mut in_view: BTreeMap<u64, Vec<(u32, Vec<Told>, bool)>> = BTreeMap::new();
        for (id, told) in &all {
            let (mut view, mut next) = (0, BTreeMap::<u32, u64>::new());
            // What is told of the time before a node was a member shows in its state (V7).
            let is_own = |it: &Told| matches!(it, Told::View(view) if view.member(NodeId(*id)).is_some());
            let restored = told.iter().any(|it| matches!(it, Told::Restored(_)));
            let from = if restored { told.iter().position(is_own).unwrap_or(told.len()) } else { 0 };
            for it in &told[from..] {
                match it {
                    Told::View(it) => {
                        assert!(it.id.0 > view, "node {id}: views in order");
                        view = it.id.0;
                        in_view.entry(view).or_default().push((*id, Vec::new(), false));
                    }
                    Told::Message { view: of, sender, number, .. } => {
                        assert_eq!(*of, view, "node {id}: a message of another view (V4)");
                        let next = next.entry(*sender).or_insert(*number);
                        assert_eq!(
                            *number, *next,
                            "node {id}: of {sender}, in its order, once, none missing (D13)"
                        );
                        *next += 1;
                        in_view.get_mut(&view).unwrap().last_mut().unwrap().1.push(it.clone());
                    }
                    Told::Ended(_) | Told::Evicted | Told::Restored(_) => {}
                }
            }
            let last = *views(&told[from..]).last().unwrap_or(&0);
            for (view, seen) in &mut in_view {
                seen.iter_mut().filter(|(of, ..)| of == id).for_each(|it| it.2 = *view < last);
            }
        }
        for (view, seen) in in_view {
            let ended: Vec<_> = seen.iter().filter(|it| it.2).collect();
            for pair in ended.windows(2) {
                let [one, other] = [&pair[0].1, &pair[1].1].map(|told| match self.guarantee {
                    Guarantee::Fifo => in_any_order(told),
                    _ => told.iter().map(plain).collect(),
                });
                assert_eq!(one, other, "view {view}: {} and {} differ (V4)", pair[0].0, pair[1].0);
            }
            // Uniform: who is gone had nothing that those who went on lack.
            if self.guarantee == Guarantee::Atomic
                && let Some(whole) = ended.first()
            {
                for (id, told, _) in &seen {
                    assert!(
                        told.len() <= whole.1.len() && whole.1[..told.len()] == told[..],
                        "view {view}: {id}"
                    );
                }
            }
        }
        for (id, host) in &self.hosts {
            for (number, outcome) in &host.outcomes {
                if let Some(Ok(at)) = outcome.try_get() {
                    let (view, seq) = (at.view.0, at.seq.0);
                    let it = Told::Message { view, seq, sender: *id, number: *number };
                    assert_eq!(host.count(&it), 1, "node {id}: told of {number} at {at:?} (D12)");
                }
            }
            assert!(host.tickets.windows(2).all(|pair| pair[0] < pair[1]), "node {id}: tickets grow");
            let retired: Vec<_> =
                host.reports.iter().filter(|it| matches!(it, Report::Retired(..))).collect();
            assert_eq!(
                retired.len(),
                retired.iter().map(|it| format!("{it:?}")).collect::<BTreeSet<_>>().len()
            );
        }
    }

    /// All that the members sent while they were members is delivered, and they know it.
    pub(super) fn check_complete(&self) {
        for id in self.members() {
            let host = &self.hosts[&id];
            let own: Vec<_> = host.messages().into_iter().filter(|(sender, _)| *sender == id).collect();
            assert_eq!(own, (0..host.sent).map(|number| (id, number)).collect::<Vec<_>>());
            assert_eq!(host.own, host.tickets, "node {id}: its messages keep their tickets");
            assert!(host.outcomes.iter().all(|(_, outcome)| matches!(outcome.try_get(), Some(Ok(_)))));
            assert!(!host.reports.iter().any(|it| matches!(it, Report::Broken(_) | Report::Fault(..))));
        }
    }
}

fn plain(told: &Told) -> (u64, u32, u64) {
    match told {
        Told::Message { seq, sender, number, .. } => (*seq, *sender, *number),
        _ => (0, 0, 0),
    }
}

fn in_any_order(told: &[Told]) -> Vec<(u64, u32, u64)> {
    let mut told: Vec<_> = told.iter().map(|it| (0, plain(it).1, plain(it).2)).collect();
    told.sort_unstable();
    told
}
