//! Campaigns: groups of three to five processes under load, and faults at random, several at once, one upon the other.
//!
//! A campaign is rounds, a round is steps. A round founds a group; a step disturbs some of its members and lets others come,
//! waits until the rest goes on without whom it lost, takes back what can be taken back, and waits until all are together.
//! At a round's end all that anybody told is checked. A seed decides who, what and in which order; it can't decide when
//! exactly anything happens, for these are real processes, but a fault that is found once is mostly found again.
//!
//! *The budget.* In each step the undisturbed are a majority of the newest view, so the group has to go on. Everyone is set to
//! join again when it was left out, also of a pause that was too long for a machine that has other things to do.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use consort_dataplane::sim::Choices;
use rustix::process::Signal;

use super::crew::Crew;
use super::network;
use super::network::Network;

/// The bound on silence.
const SILENCE: Duration = Duration::from_secs(2);

/// A pause that is shorter, in milliseconds.
const PAUSE: u64 = 400;

/// Nodes that a round may use, and members that it has at most.
const NODES: u32 = 7;

/// Where each lives, if nodes share hosts.
const HOSTS: [u8; NODES as usize] = [1, 2, 3, 1, 2, 3, 1];
const MOST: usize = 5;

/// Steps of a round.
const STEPS: u64 = 8;

/// From so long a campaign on, each kind of fault that is possible must have fired.
const LONG: Duration = Duration::from_secs(60);

/// What can be done to a group.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Kind {
    /// Killed.
    Kill,
    /// Stopped for less than the bound on silence.
    Pause,
    /// Stopped until the others go on without it.
    Stall,
    /// Told to leave.
    Leave,
    /// Cut off, with all others that this happens to in the same step.
    Cut,
    /// Hears nothing, and is heard.
    Deafen,
    /// A new node joins.
    Join,
    /// One that was killed or has left joins again.
    Return,
}

impl Kind {
    const ALL: [Self; 8] = [
        Self::Kill,
        Self::Pause,
        Self::Stall,
        Self::Leave,
        Self::Cut,
        Self::Deafen,
        Self::Join,
        Self::Return,
    ];

    fn possible(self, network: bool) -> bool {
        network || !matches!(self, Self::Cut | Self::Deafen)
    }

    /// Whether it is something that comes, rather than a trouble of one that is there.
    fn comes(self) -> bool {
        matches!(self, Self::Join | Self::Return)
    }

    /// Whether the others go on without it.
    fn is_missed(self) -> bool {
        !self.comes() && self != Self::Pause
    }

    /// Whether it is over for good.
    fn is_final(self) -> bool {
        matches!(self, Self::Kill | Self::Leave)
    }
}

/// How often each kind was done.
type Fired = BTreeMap<Kind, u64>;

struct Round {
    crew: Crew,
    network: Option<Network>,
    /// Every node has a host of its own, so that it can be cut off.
    can_cut: bool,
    choices: Choices,
    /// Kinds that are to come next: each once, then again in another order.
    bag: Vec<Kind>,
    present: Vec<u32>,
    /// Were there once.
    away: Vec<u32>,
    /// Were never there.
    fresh: Vec<u32>,
    fired: Fired,
}

/// What is done in a step, and to whom.
type Plan = Vec<(Kind, u32)>;

impl Round {
    fn new(fabric: &'static str, seed: u64) -> Self {
        let network = match fabric {
            "tcp" => network(NODES as u8),
            "auto" => network(3),
            _ => None,
        };
        let crew = match &network {
            Some(network) if fabric == "auto" => Crew::at(network.places_on(&HOSTS), "auto", SILENCE, true),
            Some(network) => Crew::at(network.places(), fabric, SILENCE, true),
            None => Crew::new(NODES as usize, fabric, SILENCE, true),
        };
        let mut choices = Choices::new(seed);
        let founders = 3 + choices.below(3) as u32;
        let mut round = Self {
            crew,
            can_cut: network.is_some() && fabric == "tcp",
            network,
            choices,
            bag: Vec::new(),
            present: (1..=founders).collect(),
            away: Vec::new(),
            fresh: (founders + 1..=NODES).collect(),
            fired: Fired::new(),
        };
        round.crew.found(founders);
        round
    }

    fn one_of(&mut self, nodes: &[u32]) -> u32 {
        nodes[self.choices.below(nodes.len() as u64) as usize]
    }

    /// The next kind that can be, of those that are due.
    fn draw(&mut self, can: impl Fn(Kind) -> bool) -> Option<Kind> {
        for _ in 0..2 {
            if let Some(at) = self.bag.iter().position(|kind| can(*kind)) {
                return Some(self.bag.remove(at));
            }
            let can_cut = self.can_cut;
            let mut all: Vec<_> = Kind::ALL.into_iter().filter(|kind| kind.possible(can_cut)).collect();
            while !all.is_empty() {
                let at = self.choices.below(all.len() as u64) as usize;
                self.bag.push(all.swap_remove(at));
            }
        }
        None
    }

    /// Up to three things at once, within the budget.
    fn plan(&mut self) -> Plan {
        let mut plan = Plan::new();
        let budget = (self.present.len() - 1) / 2;
        for _ in 0..=self.choices.below(3) {
            let disturbed = plan.iter().filter(|(kind, _)| !kind.comes()).count();
            let taken = |node: &u32| plan.iter().any(|(_, it)| it == node);
            let steady: Vec<u32> = self.present.iter().copied().filter(|node| !taken(node)).collect();
            let away: Vec<u32> = self.away.iter().copied().filter(|node| !taken(node)).collect();
            let fresh: Vec<u32> = self.fresh.iter().copied().filter(|node| !taken(node)).collect();
            let room = self.present.len() + (plan.len() - disturbed) < MOST;
            let Some(kind) = self.draw(|kind| match kind {
                Kind::Join => room && !fresh.is_empty(),
                Kind::Return => room && !away.is_empty(),
                _ => disturbed < budget,
            }) else {
                break;
            };
            let of = match kind {
                Kind::Join => &fresh,
                Kind::Return => &away,
                _ => &steady,
            };
            plan.push((kind, self.one_of(of)));
        }
        plan
    }

    /// One step. Returns what was done.
    fn step(&mut self) -> Plan {
        let plan = self.plan();
        let nodes = |which: fn(Kind) -> bool| -> Vec<u32> {
            plan.iter().filter(|(kind, _)| which(*kind)).map(|(_, node)| *node).collect()
        };
        let disturbed = nodes(|kind| !kind.comes());
        let steady: Vec<u32> = self.present.iter().copied().filter(|it| !disturbed.contains(it)).collect();
        assert!(
            steady.len() * 2 > self.present.len(),
            "the budget: {plan:?} in a view of {:?}",
            self.present
        );
        for &(kind, node) in &plan {
            self.fire(kind, node, &nodes(|kind| kind == Kind::Cut), &steady);
            *self.fired.entry(kind).or_default() += 1;
            // The next comes at once, or when the group has begun to deal with this one.
            if self.choices.chance(50) {
                let more = self.choices.below(20);
                self.crew.sends(steady[0], more);
            }
        }
        let pauses = nodes(|kind| kind == Kind::Pause);
        if !pauses.is_empty() {
            // So long is the trouble; nobody waits for anything here.
            std::thread::sleep(Duration::from_millis(self.choices.below(PAUSE)));
        }
        pauses.iter().for_each(|node| self.crew.node(*node).signal(Signal::CONT));

        let missed = nodes(Kind::is_missed);
        self.crew.wait(&format!("{steady:?} go on without {missed:?}"), |crew| {
            steady.iter().all(|node| {
                let now = crew.node(*node).told.now();
                now.is_some_and(|chapter| chapter.members.iter().all(|(it, _)| !missed.contains(it)))
            })
        });
        for node in nodes(|kind| kind == Kind::Stall) {
            self.crew.node(node).signal(Signal::CONT);
        }
        if let Some(network) = &self.network {
            network.heal();
        }
        for node in nodes(|kind| kind == Kind::Leave) {
            self.crew.wait("it has left in order", |crew| crew.node(node).told.closed);
        }
        let (over, came) = (nodes(Kind::is_final), nodes(Kind::comes));
        self.present.retain(|node| !over.contains(node));
        self.present.extend(&came);
        self.present.sort_unstable();
        self.away.retain(|node| !came.contains(node));
        self.fresh.retain(|node| !came.contains(node));
        self.away.extend(over);
        let all = self.present.clone();
        self.crew.all_see(&all);
        self.crew.goes_on(&all);
        plan
    }

    fn fire(&mut self, kind: Kind, node: u32, cut: &[u32], steady: &[u32]) {
        let others = |those: &[u32]| -> Vec<u8> {
            (1..=NODES).filter(|it| !those.contains(it)).map(|it| it as u8).collect()
        };
        match (kind, &self.network) {
            (Kind::Kill, _) => self.crew.kill(&[node]),
            (Kind::Pause | Kind::Stall, _) => self.crew.node(node).signal(Signal::STOP),
            (Kind::Leave, _) => self.crew.node(node).say("leave"),
            (Kind::Cut, Some(network)) => {
                // Those that are cut off hear each other.
                network.part(&[node as u8], &others(cut));
            }
            (Kind::Deafen, Some(network)) => network.deafen(node as u8, &others(&[node])),
            (Kind::Join | Kind::Return, _) => self.crew.join(node, steady),
            (Kind::Cut | Kind::Deafen, None) => unreachable!("not possible without a network"),
        }
    }
}

/// One round. Returns what was done in it, and whether links could be cut.
fn round(fabric: &'static str, seed: u64, steps: u64, word: &dyn Fn(u64, &str)) -> (Fired, bool) {
    println!("replay with: cargo xtask chaos --fabric {fabric} --seed {seed} --seconds 1");
    let mut round = Round::new(fabric, seed);
    for step in 1..=steps {
        let before = round.present.clone();
        let plan = round.step();
        let done: Vec<_> = plan.iter().map(|(kind, node)| format!("{kind:?} {node}")).collect();
        word(step, &format!("{before:?}: {} -> {:?}", done.join(", "), round.present));
    }
    let all = round.present.clone();
    round.crew.settle(&all);
    (round.fired, round.can_cut)
}

/// Rounds until the time is up; at least one.
fn rounds(fabrics: &[&'static str], seed: u64, time: Duration) {
    let begun = Instant::now();
    let (mut fired, mut cuts) = (Fired::new(), false);
    for (number, fabric) in (0..).zip(fabrics.iter().cycle()) {
        let seed = seed.wrapping_add(number);
        let (more, network) = round(fabric, seed, STEPS, &|step, what| {
            let (at, number) = (begun.elapsed().as_secs(), number + 1);
            println!("{at:>4} s  round {number} ({fabric}, seed {seed}), step {step}: {what}");
        });
        more.into_iter().for_each(|(kind, times)| *fired.entry(kind).or_default() += times);
        cuts |= network;
        if begun.elapsed() >= time {
            let counts: Vec<_> = fired.iter().map(|(kind, times)| format!("{times} {kind:?}")).collect();
            println!("{} rounds in {} s: {}", number + 1, begun.elapsed().as_secs(), counts.join(", "));
            break;
        }
    }
    let never: Vec<_> =
        Kind::ALL.into_iter().filter(|it| it.possible(cuts) && !fired.contains_key(it)).collect();
    assert!(time < LONG || never.is_empty(), "a campaign of {time:?} without {never:?}");
}

fn short(fabric: &'static str, seed: u64) {
    let (fired, _) = round(fabric, seed, 5, &|step, what| println!("step {step}: {what}"));
    assert!(!fired.is_empty());
}

#[test]
fn a_short_campaign_over_shared_memory() {
    short("shm", 1);
}

#[test]
fn a_short_campaign_over_tcp() {
    short("tcp", 1);
}

#[test]
fn a_short_campaign_over_what_each_link_has() {
    short("auto", 1);
}

/// `cargo xtask chaos`.
#[test]
#[ignore = "takes as long as it is told"]
fn campaign() {
    let number = |name: &str| -> Option<u64> {
        std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|e| panic!("{name}={text}: {e}")))
    };
    let seconds = number("CONSORT_CHAOS_SECONDS").unwrap_or(60);
    let seed = number("CONSORT_CHAOS_SEED").unwrap_or_else(|| u64::from(std::process::id()) << 16);
    let fabrics = match std::env::var("CONSORT_CHAOS_FABRIC").as_deref() {
        Ok("shm") => &["shm"][..],
        Ok("tcp") => &["tcp"],
        Ok("auto") => &["auto"],
        Ok(other) => panic!("CONSORT_CHAOS_FABRIC={other}: shm, tcp or auto"),
        Err(_) => &["shm", "tcp", "auto"],
    };
    rounds(fabrics, seed, Duration::from_secs(seconds));
}
