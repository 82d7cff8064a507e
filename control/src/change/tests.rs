//! Golden transcripts of changes: stories of members that die, suspect each other and come and go, as files in `golden/`. Each
//! is a list of commands with what they led to; run with `UPDATE_GOLDENS=1` to write the outcomes anew, and read the diff.
//!
//! ```text
//! members 1 2 3w [greatest]    a new view; `w` is a witness; trims are the least, or the greatest
//! shards 1 2 / 2 3             groups beside the main one, of these nodes; and nothing ends but what must
//! received 2 8 0 0             what node 2 has of every ring of the main group, by rank, when it is wedged
//! has 2 1 8 0                  the same of shard 1
//! severed 2 3                  there is no data link between them
//! busy 2 | free 2              the memory that the next view needs is in use at node 2, or free again
//! join 9 linked 1 2            a joiner that is linked to all; of the members, these are linked to it
//! leave 2                      node 2 wants to leave
//! reason 1                     node 1 sees a reason for a change
//! suspect 1 3 | patience 1 | reachable 1 2
//! wedge 1                      the driver of node 1 has wedged and fenced
//! deliver 1 2                  what 1 said to 2 arrives
//! supply 2                     what node 2 fetches is there
//! cut 1 2 | heal               what they say to each other is lost, until all is healed
//! crash 2
//! settle                       everything that is under way arrives, drivers and fetches are quick
//! explain                      where everybody stands
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::path::PathBuf;

use consort_dataplane::names::{NodeId, ViewId};
use consort_dataplane::plan::Guarantee;

use super::*;
use crate::config::{GroupConfig, GroupMembers, NodeConfig};
use crate::view::{Domain, Incarnation, Member, Role};

fn member(id: u32, role: Role) -> Member {
    let address = ([10, 0, 0, 1], 7101).into();
    let (incarnation, domain) = (Incarnation(u64::from(id) << 32), Domain::default());
    Member { node: NodeId(id), incarnation, address, role, domain }
}

fn view(ids: &[(u32, Role)]) -> View {
    View::of(ViewId(1), ids.iter().map(|(id, role)| member(*id, *role)).collect())
}

/// What is known of the main group, and of shards of these nodes.
fn shapes(trimming: Trimming, shards: &[Vec<u32>]) -> Arc<[ShardShape]> {
    let mut config = NodeConfig::new(NodeId(1));
    if trimming == Trimming::Greatest {
        config.guarantee = Guarantee::Agreed;
    }
    for (nodes, at) in shards.iter().zip(0..) {
        let mut group = GroupConfig::new(&format!("group-{at}"));
        group.members = GroupMembers::Nodes(nodes.iter().copied().map(NodeId).collect());
        group.guarantee = config.guarantee;
        config.groups.push(group);
    }
    config.shapes().into()
}

/// Nodes 1 to `n`, all with data.
fn of(n: u32) -> View {
    view(&(1..=n).map(|id| (id, Role::Data)).collect::<Vec<_>>())
}

struct World {
    view: View,
    nodes: BTreeMap<u32, Node>,
    under_way: BTreeMap<(u32, u32), VecDeque<Saying>>,
    severed: BTreeSet<(u32, u32)>,
    cut: BTreeSet<(u32, u32)>,
    joiner: Option<(u32, Vec<u32>)>,
    leaving: BTreeSet<NodeId>,
    log: String,
}

struct Node {
    change: Change,
    /// By shard.
    received: BTreeMap<ShardId, Vec<u64>>,
    wedged: BTreeSet<ShardId>,
    fenced: BTreeSet<NodeId>,
    wedging: bool,
    fetches: Vec<Fetch>,
    busy: bool,
}

impl World {
    /// The main group's session ends in any case, as if it had been wedged before.
    fn new(view: View, trimming: Trimming) -> Self {
        Self::with(view, &shapes(trimming, &[]), &[ShardId::MAIN].into())
    }

    fn with(view: View, shapes: &Arc<[ShardShape]>, wedged: &BTreeSet<ShardId>) -> Self {
        let none = |(id, shard): (ShardId, &Shard)| (id, vec![0; shard.members.len()]);
        let node = |id: NodeId| Node {
            change: Change::new(id, view.clone(), shapes.clone(), wedged.clone()),
            received: view.shards().map(none).collect(),
            wedged: BTreeSet::new(),
            fenced: BTreeSet::new(),
            wedging: false,
            fetches: Vec::new(),
            busy: false,
        };
        Self {
            nodes: view.nodes().into_iter().map(|id| (id.0, node(id))).collect(),
            view,
            under_way: BTreeMap::new(),
            severed: BTreeSet::new(),
            cut: BTreeSet::new(),
            joiner: None,
            leaving: BTreeSet::new(),
            log: String::new(),
        }
    }

    fn run(&mut self, command: &str) -> String {
        let words: Vec<_> = command.split_whitespace().collect();
        let numbers: Vec<u64> = words.iter().filter_map(|word| word.parse().ok()).collect();
        let ids: Vec<u32> = numbers.iter().map(|number| *number as u32).collect();
        match words[0] {
            "members" => {
                let greatest = words.contains(&"greatest");
                let members = words[1..].iter().filter(|word| **word != "greatest").map(|word| {
                    let role = if word.ends_with('w') { Role::Witness } else { Role::Data };
                    (word.trim_end_matches('w').parse().unwrap(), role)
                });
                let view = view(&members.collect::<Vec<_>>());
                *self = Self::new(view, if greatest { Trimming::Greatest } else { Trimming::Least });
            }
            "shards" => {
                let shards = words[1..].split(|word| *word == "/");
                let shards: Vec<Vec<u32>> =
                    shards.map(|nodes| nodes.iter().map(|id| id.parse().unwrap()).collect()).collect();
                let shapes = shapes(Trimming::Least, &shards);
                let before =
                    View { id: ViewId(0), members: Vec::new(), shards: crate::layout::none(&shapes) };
                let members = self.view.members.clone();
                let (none, open) = (BTreeSet::new(), BTreeSet::new());
                let shards = crate::layout::next(&shapes, &before, &members, &none, &open);
                *self = Self::with(View { id: ViewId(1), members, shards }, &shapes, &open);
            }
            "received" => {
                self.node(ids[0]).received.insert(ShardId::MAIN, numbers[1..].to_vec());
            }
            "has" => {
                self.node(ids[0]).received.insert(ShardId(ids[1]), numbers[2..].to_vec());
            }
            "severed" => {
                self.severed.extend([(ids[0], ids[1]), (ids[1], ids[0])]);
            }
            "busy" => self.node(ids[0]).busy = true,
            "free" => {
                self.node(ids[0]).busy = false;
                self.tell(ids[0], |change| change.on_free(OTHER_HALF));
            }
            "join" => {
                self.joiner = Some((ids[0], ids[1..].to_vec()));
                self.wish();
            }
            "leave" => {
                self.leaving.insert(NodeId(ids[0]));
                self.wish();
            }
            "reason" => self.tell(ids[0], Change::on_reason),
            "suspect" => self.tell(ids[0], |change| change.on_suspect(NodeId(ids[1]))),
            "patience" => self.tell(ids[0], Change::on_patience),
            "reachable" => self.tell(ids[0], |change| change.on_reachable(NodeId(ids[1]))),
            "wedge" => self.wedge(ids[0]),
            "deliver" => self.deliver(ids[0], ids[1]),
            "supply" => self.supply(ids[0]),
            "cut" => {
                self.cut.extend([(ids[0], ids[1]), (ids[1], ids[0])]);
            }
            "heal" => self.cut.clear(),
            "crash" => {
                self.nodes.remove(&ids[0]);
                self.under_way.retain(|(_, to), _| *to != ids[0]);
            }
            "settle" => self.settle(),
            "explain" => {
                for (id, node) in &self.nodes {
                    let _ = writeln!(self.log, "{id} is {}", node.change.phase());
                }
            }
            _ => panic!("no command {command:?}"),
        }
        std::mem::take(&mut self.log)
    }

    fn node(&mut self, id: u32) -> &mut Node {
        self.nodes.get_mut(&id).unwrap_or_else(|| panic!("node {id} lives"))
    }

    fn wish(&mut self) {
        let joining = self.joiner.iter().map(|(id, _)| Candidate {
            member: member(*id, Role::Data),
            linked: self.view.members.iter().map(|member| member.incarnation).collect(),
            source: None,
        });
        let wishes =
            Wishes { joining: joining.collect(), leaving: self.leaving.clone(), ready: BTreeSet::new() };
        for node in self.nodes.values_mut() {
            node.change.on_wishes(wishes.clone());
        }
    }

    /// Gives a member an event, and writes down what it wants.
    fn tell(&mut self, id: u32, event: impl FnOnce(&mut Change)) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        event(&mut node.change);
        while let Some(effect) = node.change.poll_effect() {
            let _ = match effect {
                Effect::Wedge { shards, fence } => {
                    node.wedging = true;
                    node.wedged.extend(shards.iter().copied());
                    node.fenced.extend(fence.iter().copied());
                    let what = if shards == [ShardId::MAIN] { String::new() } else { named(&shards) };
                    writeln!(self.log, "{id} wedges{what}{}", list(", fencing", &fence))
                }
                Effect::Say(to, saying) => {
                    let told = tell(&saying);
                    self.under_way.entry((id, to.0)).or_default().push_back(saying);
                    writeln!(self.log, "{id} to {to}: {told}")
                }
                Effect::Fetch(fetch) => {
                    node.fetches.push(fetch);
                    let Fetch { rank, from, to, holder, .. } = fetch;
                    writeln!(self.log, "{id} fetches {from} to {to} of rank {rank}'s ring from {holder}")
                }
                Effect::Decided(next) => writeln!(self.log, "{id} decides {}", value(&next)),
            };
        }
    }

    fn wedge(&mut self, id: u32) {
        let severed = |other: &NodeId| self.severed.contains(&(id, other.0));
        let node = &self.nodes[&id];
        let is_data = |id: NodeId| self.view.rank_of(id).is_some();
        let others = self.view.nodes().into_iter().filter(|other| is_data(*other) && is_data(NodeId(id)));
        let mine = self
            .view
            .shards()
            .filter(|(shard, it)| node.wedged.contains(shard) && it.members.contains(&NodeId(id)));
        let frozen = mine.map(|(shard, _)| Frozen { shard, received: node.received[&shard].clone() });
        let joiner = self.joiner.iter().filter(|(_, linked)| linked.contains(&id));
        let report = Report {
            frozen: frozen.collect(),
            severed: others.filter(|other| severed(other) || node.fenced.contains(other)).collect(),
            linked: joiner.map(|(id, _)| member(*id, Role::Data).incarnation).collect(),
            busy: if node.busy { vec![OTHER_HALF] } else { Vec::new() },
            ..Report::default()
        };
        self.node(id).wedging = false;
        self.tell(id, |change| change.on_wedged(report));
    }

    fn deliver(&mut self, from: u32, to: u32) {
        for saying in self.under_way.remove(&(from, to)).unwrap_or_default() {
            if !self.cut.contains(&(from, to)) {
                self.tell(to, |change| change.on_said(NodeId(from), saying));
            }
        }
    }

    fn supply(&mut self, id: u32) {
        let fetches = std::mem::take(&mut self.node(id).fetches);
        let (due, others) = fetches.into_iter().partition(|fetch| self.can_supply(fetch));
        self.node(id).fetches = others;
        let due: Vec<Fetch> = due;
        for Fetch { shard, rank, to, .. } in due {
            let received = &mut self.node(id).received.get_mut(&shard).unwrap()[rank];
            *received = to.max(*received);
            self.tell(id, |change| change.on_supplied(shard, rank, to));
        }
    }

    fn can_supply(&self, fetch: &Fetch) -> bool {
        self.nodes
            .get(&fetch.holder.0)
            .is_some_and(|holder| holder.received[&fetch.shard][fetch.rank] >= fetch.to)
    }

    fn settle(&mut self) {
        for _ in 0..1000 {
            let wedging = self.nodes.iter().find(|(_, node)| node.wedging).map(|(id, _)| *id);
            let due = |node: &Node| node.fetches.iter().any(|fetch| self.can_supply(fetch));
            let fetching = self.nodes.iter().find(|(_, node)| due(node)).map(|(id, _)| *id);
            if let Some(id) = wedging {
                self.wedge(id);
            } else if let Some((from, to)) = self.under_way.keys().next().copied() {
                self.deliver(from, to);
            } else if let Some(id) = fetching {
                self.supply(id);
            } else {
                return;
            }
        }
        panic!("it doesn't settle:\n{}", self.log);
    }
}

/// Where the main group's next session lies.
const OTHER_HALF: Place = Place { shard: ShardId::MAIN, second: false };

fn named(shards: &[ShardId]) -> String {
    if shards.is_empty() {
        return " nothing".to_owned();
    }
    format!(" shards {}", shards.iter().map(ShardId::to_string).collect::<Vec<_>>().join(" "))
}

fn list(what: &str, nodes: &[NodeId]) -> String {
    if nodes.is_empty() {
        return String::new();
    }
    format!("{what} {}", nodes.iter().map(NodeId::to_string).collect::<Vec<_>>().join(" "))
}

fn numbers(numbers: &[u64]) -> String {
    numbers.iter().map(u64::to_string).collect::<Vec<_>>().join(" ")
}

fn value(next: &Next) -> String {
    let nodes = if next.view.members.is_empty() { " nobody" } else { &list("", &next.view.nodes()) };
    let trim = |cut: &Cut| match cut.shard {
        ShardId::MAIN => format!(", trim {}", numbers(&cut.trim)),
        other => format!(", trim of shard {other} {}", numbers(&cut.trim)),
    };
    format!("view {} of{nodes}{}", next.view.id, next.cuts.iter().map(trim).collect::<String>())
}

fn tell(saying: &Saying) -> String {
    match saying {
        Saying::Nudge => "nudge".to_owned(),
        Saying::Prepare { ballot, suspects, ending } => {
            let what = if *ending == [ShardId::MAIN] { String::new() } else { format!(",{}", named(ending)) };
            format!("prepare {ballot}{what}{}", list(", suspects", suspects))
        }
        Saying::Promise { ballot, report, accepted } => {
            let mut told = format!("promise {ballot}");
            for frozen in &report.frozen {
                let shard = frozen.shard;
                let what = if shard == ShardId::MAIN { String::new() } else { format!(" of shard {shard}") };
                told += &format!(", received{what} {}", numbers(&frozen.received));
            }
            told += &list(", severed", &report.severed);
            told += &list(", suspects", &report.suspects);
            if !report.linked.is_empty() {
                told += ", linked";
            }
            if !report.busy.is_empty() {
                told += ", not free";
            }
            if let Some((ballot, next)) = accepted {
                told += &format!(", accepted in {ballot}: {}", value(next));
            }
            told
        }
        Saying::Outbid { ballot, by } => format!("{ballot} is outbid by {by}"),
        Saying::Fill { ballot, missing } => {
            let part = |it: &Missing| format!("rank {}'s ring up to {} from {}", it.rank, it.to, it.holder);
            format!("{ballot}: get {}", missing.iter().map(part).collect::<Vec<_>>().join(", "))
        }
        Saying::Accept { ballot, next } => format!("accept {ballot}: {}", value(next)),
        Saying::Accepted { ballot } => format!("accepted {ballot}"),
        Saying::Decided(next) => format!("decided {}", value(next)),
    }
}

/// Runs a transcript; returns it with the outcomes of this run.
fn replay(transcript: &str) -> String {
    let mut world = World::new(of(3), Trimming::Least);
    let mut replayed = String::new();
    let mut outcome = false;
    for line in transcript.lines() {
        match line {
            "----" => outcome = true,
            "" => {
                outcome = false;
                replayed.push('\n');
            }
            _ if outcome => {}
            comment if comment.starts_with('#') => replayed += &format!("{comment}\n"),
            command => {
                let told = world.run(command);
                replayed += &format!("{command}\n----\n{told}");
            }
        }
    }
    replayed
}

fn golden(name: &str) {
    let file: PathBuf = [env!("CARGO_MANIFEST_DIR"), "src/change/golden", name].iter().collect();
    let recorded = std::fs::read_to_string(&file).unwrap();
    let replayed = replay(&recorded);
    if std::env::var_os("UPDATE_GOLDENS").is_some() {
        std::fs::write(&file, &replayed).unwrap();
    } else {
        assert_eq!(recorded, replayed, "{name} tells another story; see the module's documentation");
    }
}

// V1, V3
#[test]
fn a_proposer_dies_in_every_phase() {
    golden("proposer.txt");
}

// V1
#[test]
fn two_of_five_die_at_once() {
    golden("two_of_five.txt");
}

// V1
#[test]
fn rivals_come_to_one_decision() {
    golden("rivals.txt");
}

// V1, V5
#[test]
fn a_partition_heals() {
    golden("partition.txt");
}

// V3, V7, V8
#[test]
fn members_come_and_go() {
    golden("come_and_go.txt");
}

// V6
#[test]
fn a_witness_helps_to_decide() {
    golden("witness.txt");
}

// V10
#[test]
fn memory_in_use_delays_the_value() {
    golden("memory.txt");
}

// V3
#[test]
fn what_is_missing_is_fetched_before_there_is_a_value() {
    golden("fetch.txt");
}

/// A member that leads a change, and has its own report.
fn leader(n: u32) -> World {
    let mut world = World::new(of(n), Trimming::Least);
    world.run("reason 1");
    world.run("wedge 1");
    world
}

fn report(received: &[u64]) -> Report {
    let frozen = Frozen { shard: ShardId::MAIN, received: received.to_vec() };
    Report { frozen: vec![frozen], ..Report::default() }
}

fn ballot(round: u64, node: u32) -> Ballot {
    Ballot { round, node: NodeId(node) }
}

fn next(view: u64, ids: &[u32], trim: &[u64]) -> Next {
    let members = ids.iter().map(|id| member(*id, Role::Data)).collect();
    let cut = Cut { shard: ShardId::MAIN, trim: trim.to_vec() };
    Next { view: View::of(ViewId(view), members), cuts: vec![cut] }
}

/// What a member says and does when it is told something.
fn told(world: &mut World, to: u32, from: u32, saying: Saying) -> String {
    world.tell(to, |change| change.on_said(NodeId(from), saying));
    std::mem::take(&mut world.log)
}

// S1
#[test]
fn unsound_reports_are_no_reports() {
    let sound = report(&[0, 0, 0]);
    let frozen = sound.frozen[0].clone();
    let unsound = [
        Report { frozen: vec![frozen.clone(), frozen.clone()], ..sound.clone() },
        Report { frozen: vec![Frozen { shard: ShardId(7), ..frozen }], ..sound.clone() },
        report(&[]),
        report(&[0, 0]),
        report(&[0, 0, 0, 0]),
    ];
    let promise = |report: &Report, accepted| Saying::Promise {
        ballot: ballot(1, 1),
        report: report.clone(),
        accepted,
    };
    let mut world = leader(3);
    world.run("suspect 1 3");
    world.run("wedge 1");
    for report in &unsound {
        assert_eq!(told(&mut world, 1, 2, promise(report, None)), "", "{report:?}");
    }
    // From who is none of them, in another ballot, with a value that can't be or a ballot that can't.
    assert_eq!(told(&mut world, 1, 9, promise(&sound, None)), "");
    let other = Saying::Promise { ballot: ballot(2, 1), report: sound.clone(), accepted: None };
    assert_eq!(told(&mut world, 1, 2, other), "");
    for (ballot, next) in [
        (ballot(1, 1), next(3, &[1, 2], &[0, 0, 0])),
        (ballot(1, 1), next(2, &[1, 1], &[0, 0, 0])),
        (ballot(1, 1), next(2, &[1, 2], &[0, 0])),
        (ballot(u64::MAX, 2), next(2, &[1, 2], &[0, 0, 0])),
    ] {
        let saying = promise(&sound, Some((ballot, next)));
        assert_eq!(told(&mut world, 1, 2, saying.clone()), "", "{saying:?}");
    }
    assert!(told(&mut world, 1, 2, promise(&sound, None)).contains("accept"));
}

// S1
#[test]
fn a_witness_reports_no_session() {
    let mut world = World::new(view(&[(1, Role::Data), (2, Role::Witness)]), Trimming::Least);
    world.run("reason 1");
    world.run("wedge 1");
    let promise = |report| Saying::Promise { ballot: ballot(1, 1), report, accepted: None };
    assert_eq!(told(&mut world, 1, 2, promise(report(&[0]))), "");
    assert!(told(&mut world, 1, 2, promise(Report::default())).contains("accept"));
}

// S1
#[test]
fn absurd_ballots_do_no_harm() {
    let mut world = leader(3);
    for round in [0, u64::MAX / 2 + 1, u64::MAX - 1, u64::MAX] {
        let absurd = ballot(round, 2);
        for saying in [
            Saying::Prepare { ballot: absurd, suspects: Vec::new(), ending: vec![ShardId::MAIN] },
            Saying::Accept { ballot: absurd, next: next(2, &[1, 2, 3], &[0, 0, 0]) },
            Saying::Fill { ballot: absurd, missing: Vec::new() },
            Saying::Outbid { ballot: ballot(1, 1), by: absurd },
        ] {
            assert_eq!(told(&mut world, 1, 2, saying.clone()), "", "{saying:?}");
        }
    }
    // The most that is listened to can still be outbid without a panic; and nobody speaks for another.
    let most = ballot(u64::MAX / 2, 2);
    assert_eq!(told(&mut world, 1, 2, Saying::Outbid { ballot: ballot(1, 1), by: most }), "");
    assert!(world.run("patience 1").contains("prepare"));
    let foreign = Saying::Prepare { ballot: ballot(5, 3), suspects: Vec::new(), ending: vec![ShardId::MAIN] };
    assert_eq!(told(&mut world, 1, 2, foreign), "");
    let own = Saying::Prepare { ballot: ballot(5, 1), suspects: Vec::new(), ending: vec![ShardId::MAIN] };
    assert_eq!(told(&mut world, 1, 1, own), "");
}

// S1
#[test]
fn values_that_can_not_be_are_not_accepted() {
    let mut world = World::new(of(3), Trimming::Greatest);
    for next in
        [next(1, &[2], &[0; 3]), next(3, &[2], &[0; 3]), next(2, &[2, 2], &[0; 3]), next(2, &[2], &[0; 4])]
    {
        let accept = Saying::Accept { ballot: ballot(1, 2), next: next.clone() };
        assert_eq!(told(&mut world, 1, 2, accept), "", "{next:?}");
        assert_eq!(told(&mut world, 1, 2, Saying::Decided(next)), "");
    }
    let none = Next { cuts: Vec::new(), ..next(2, &[2], &[0; 3]) };
    assert_eq!(told(&mut world, 1, 2, Saying::Decided(none)), "");
}

// S1
#[test]
fn nothing_is_fetched_that_is_no_part_of_a_ring() {
    let mut world = World::new(of(3), Trimming::Greatest);
    told(
        &mut world,
        1,
        2,
        Saying::Prepare { ballot: ballot(1, 2), suspects: Vec::new(), ending: vec![ShardId::MAIN] },
    );
    world.run("received 1 8 8 8");
    world.run("wedge 1");
    let fill = |rank, to, holder| {
        let missing = Missing { shard: ShardId::MAIN, rank, to, holder: NodeId(holder) };
        Saying::Fill { ballot: ballot(1, 2), missing: vec![missing] }
    };
    for saying in [fill(3, 16, 2), fill(usize::MAX, 16, 2), fill(1, 8, 2), fill(1, 16, 1), fill(1, 16, 9)] {
        assert!(!told(&mut world, 1, 2, saying.clone()).contains("fetches"), "{saying:?}");
    }
    assert!(told(&mut world, 1, 2, fill(1, 16, 3)).contains("fetches 8 to 16"));
}

// V10
#[test]
fn a_report_that_comes_late_takes_nothing_back() {
    let mut world = leader(3);
    let promise = |free| {
        let busy = if free { Vec::new() } else { vec![OTHER_HALF] };
        let report = Report { busy, ..report(&[0; 3]) };
        Saying::Promise { ballot: ballot(1, 1), report, accepted: None }
    };
    assert_eq!(told(&mut world, 1, 2, promise(true)), "");
    assert_eq!(told(&mut world, 1, 2, promise(false)), "");
    assert!(told(&mut world, 1, 3, promise(true)).contains("accept"));
}

// V10: whoever isn't reached any more gives nothing free, so it is said whom a change waits for.
#[test]
fn who_has_yet_to_give_memory_free_is_named() {
    let mut world = leader(3);
    let promise = |busy| {
        let report = Report { busy, ..report(&[0; 3]) };
        Saying::Promise { ballot: ballot(1, 1), report, accepted: None }
    };
    let held = |world: &mut World| world.node(1).change.held_up_by();
    told(&mut world, 1, 3, promise(vec![OTHER_HALF]));
    assert_eq!(held(&mut world), [], "a report is awaited");
    assert_eq!(told(&mut world, 1, 2, promise(Vec::new())), "");
    assert_eq!(held(&mut world), [NodeId(3)]);
    assert!(told(&mut world, 1, 3, promise(Vec::new())).contains("accept"));
    assert_eq!(held(&mut world), []);
}

// V10
#[test]
fn memory_that_is_freed_while_the_driver_wedges_is_free() {
    let mut world = leader(2);
    let mut other = World::new(of(2), Trimming::Least);
    told(
        &mut other,
        2,
        1,
        Saying::Prepare { ballot: ballot(1, 1), suspects: Vec::new(), ending: vec![ShardId::MAIN] },
    );
    other.run("busy 2");
    other.tell(2, |change| change.on_free(OTHER_HALF));
    assert_eq!(std::mem::take(&mut other.log), "");
    let promise = other.run("wedge 2");
    assert!(promise.contains("promise") && !promise.contains("not free"), "{promise}");
    let saying = other.under_way.remove(&(2, 1)).unwrap().pop_back().unwrap();
    assert!(told(&mut world, 1, 2, saying).contains("accept"));
}

// V4, V8: who leaves is told the next view if it ends where the others do.
#[test]
fn a_leaver_ends_where_the_others_do_or_is_told_nothing() {
    let covers = |trimming, received: &[u64]| {
        let mut change = Change::new(NodeId(2), of(3), shapes(trimming, &[]), BTreeSet::new());
        change.on_wedged(report(received));
        change.covers(&next(2, &[1], &[8, 16, 8]))
    };
    for trimming in [Trimming::Least, Trimming::Greatest] {
        assert!(covers(trimming, &[8, 16, 8]));
        assert!(!covers(trimming, &[8, 16, 0]), "it lacks something");
    }
    assert!(covers(Trimming::Least, &[8, 16, 24]), "what is beyond was not stable, and so not delivered");
    assert!(!covers(Trimming::Greatest, &[8, 16, 24]), "it may have delivered what is lost");
}
