//! Groups and shards of real nodes: streams that wait for no other, layouts that repair themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Cursor, Read};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use consort::{
    Domain, Event, FabricChoice, Group, GroupConfig, Guarantee, Node, NodeBuilder, NodeId, SendError, Shard,
    SlowPolicy, Stopped, Topology, View,
};

/// Far beyond what anything takes.
const LONG: Duration = Duration::from_secs(60);

/// What an application has made of one shard's events.
#[derive(Default)]
struct Told {
    /// Sender and number of every message, those before a restored state among them: the state.
    state: Vec<(u32, u64)>,
    /// Sender, number, and the view of the session, of what came by the rings.
    live: Vec<(u32, u64, u64)>,
    views: Vec<View>,
    restored: usize,
}

type Log = Arc<Mutex<Told>>;

fn lock(log: &Log) -> MutexGuard<'_, Told> {
    log.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes a shard's events until the node stops.
fn take(group: Group, log: Log) -> JoinHandle<()> {
    thread::spawn(move || {
        while let Ok(event) = group.recv() {
            let mut told = lock(&log);
            match event {
                Event::Message(message) => {
                    let number = u64::from_le_bytes(message[..8].try_into().unwrap());
                    told.state.push((message.sender.0, number));
                    told.live.push((message.sender.0, number, message.view.0));
                }
                Event::View(view) => told.views.push(view),
                Event::Snapshot(request) => {
                    let words = told.state.iter().flat_map(|(sender, number)| [u64::from(*sender), *number]);
                    let bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
                    request.give(Cursor::new(bytes));
                }
                Event::Restore(mut state) => {
                    let mut bytes = Vec::new();
                    state.read_to_end(&mut bytes).unwrap();
                    state.finish();
                    let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
                    told.state = bytes.chunks(16).map(|it| (word(&it[..8]) as u32, word(&it[8..]))).collect();
                    told.restored += 1;
                }
                _ => {}
            }
        }
    })
}

struct Member {
    node: Node,
    /// By group and shard.
    logs: BTreeMap<(String, usize), Log>,
    takers: Vec<JoinHandle<()>>,
}

impl Member {
    fn group(&self, name: &str, shard: usize) -> Group {
        self.node.group(name).unwrap().shard(shard).unwrap()
    }

    fn log(&self, name: &str, shard: usize) -> MutexGuard<'_, Told> {
        lock(&self.logs[&(name.to_owned(), shard)])
    }

    /// Who has a group's shard, as this node sees it.
    fn shard(&self, name: &str, shard: usize) -> Shard {
        let id = self.group(name, shard).id();
        self.node.status().view.and_then(|view| view.shard(id).cloned()).unwrap_or_default()
    }

    /// Without order: the others find it lost.
    fn stop(self) {
        drop(self.node);
        self.takers.into_iter().for_each(|taker| taker.join().unwrap());
    }
}

struct Cluster {
    members: BTreeMap<u32, Member>,
    fabric: FabricChoice,
    groups: Vec<GroupConfig>,
    addresses: Vec<SocketAddr>,
}

impl Cluster {
    fn new(fabric: FabricChoice, domains: &[&str], groups: &[GroupConfig]) -> Self {
        let listeners: Vec<_> = domains.iter().map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let addresses: Vec<SocketAddr> = listeners.iter().map(|it| it.local_addr().unwrap()).collect();
        let mut cluster = Self { members: BTreeMap::new(), fabric, groups: groups.to_vec(), addresses };
        for (id, (listener, domain)) in (1..).zip(listeners.into_iter().zip(domains)) {
            let mut builder = NodeBuilder::new(id).listener(listener);
            for (peer, address) in (1..).zip(&cluster.addresses).filter(|(peer, _)| *peer != id) {
                builder = builder.peer(peer, *address);
            }
            cluster.start(id, builder, domain);
        }
        cluster.until("founded", || cluster.members.values().all(|it| !it.log("main", 0).views.is_empty()));
        cluster
    }

    /// Another node, which joins.
    fn join(&mut self, id: u32, domain: &str) {
        let builder = self.addresses.iter().fold(NodeBuilder::new(id), |builder, at| builder.join(*at));
        self.start(id, builder, domain);
    }

    fn start(&mut self, id: u32, builder: NodeBuilder, domain: &str) {
        let builder = builder
            .fabric(self.fabric)
            .ring_bytes(1 << 16)
            .domain(Domain::new(domain).unwrap())
            .silence(Duration::from_secs(5))
            .start_within(Duration::from_secs(60));
        let builder = self.groups.iter().fold(builder, |builder, group| builder.group(group.clone()));
        let node = builder.start().unwrap();
        let (mut logs, mut takers) = (BTreeMap::new(), Vec::new());
        for group in node.groups() {
            for shard in 0..group.shards() {
                let log = Log::default();
                logs.insert((group.name().to_owned(), shard), log.clone());
                takers.push(take(group.shard(shard).unwrap(), log));
            }
        }
        self.members.insert(id, Member { node, logs, takers });
    }

    fn until(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        for _ in 0..30_000 {
            if is_so() {
                return;
            }
            thread::sleep(Duration::from_millis(2));
        }
        let standing: Vec<_> = self.members.iter().map(|(id, it)| (id, it.node.status())).collect();
        panic!("not {what} after a minute: {standing:#?}");
    }

    fn send(&self, id: u32, name: &str, shard: usize, numbers: std::ops::Range<u64>) {
        let sender = self.members[&id].group(name, shard).sender();
        for number in numbers {
            sender.send(&number.to_le_bytes()).unwrap();
        }
    }

    fn has(&self, id: u32, name: &str, shard: usize, messages: usize) -> bool {
        self.members[&id].log(name, shard).state.len() >= messages
    }

    fn stop(self) {
        self.members.into_values().for_each(Member::stop);
    }
}

const FABRICS: [FabricChoice; 2] = [FabricChoice::Shm, FabricChoice::Tcp];

// Every group has its members, its guarantee and its order, and who isn't in it hears nothing.
#[test]
fn groups_are_streams_of_their_own() {
    for fabric in FABRICS {
        let pair = GroupConfig::new("pair").nodes([1, 2]).guarantee(Guarantee::Agreed).ring_bytes(1 << 14);
        let cluster = Cluster::new(fabric, &["", "", ""], &[pair, GroupConfig::new("all")]);
        thread::scope(|scope| {
            for id in 1..=3 {
                let cluster = &cluster;
                scope.spawn(move || cluster.send(id, "all", 0, 0..500));
                scope.spawn(move || cluster.send(id, "main", 0, 0..500));
                if id < 3 {
                    scope.spawn(move || cluster.send(id, "pair", 0, 0..500));
                }
            }
        });
        let outsider = cluster.members[&3].group("pair", 0).sender();
        assert_eq!(outsider.try_reserve(8).map(|_| ()), Err(SendError::NotMember));
        assert_eq!(outsider.send(&[0; 8]), Err(SendError::NotMember));
        for (name, members) in [("all", &[1, 2, 3][..]), ("main", &[1, 2, 3]), ("pair", &[1, 2])] {
            let all = 500 * members.len();
            cluster.until(name, || members.iter().all(|id| cluster.has(*id, name, 0, all)));
            let first = cluster.members[&1].log(name, 0).state.clone();
            assert!(members.iter().all(|id| cluster.members[id].log(name, 0).state == first), "{name}");
            let own: Vec<_> = first.iter().filter(|(sender, _)| *sender == 2).map(|it| it.1).collect();
            assert_eq!(own, (0..500).collect::<Vec<_>>());
        }
        assert!(cluster.members[&3].log("pair", 0).state.is_empty());
        assert!(cluster.members[&1].node.group("nobody").is_none());
        cluster.stop();
    }
}

// D14: along a chain the sender's link carries a message once, whoever many there are; and all have the same, also when one is lost.
#[test]
fn along_a_chain_all_have_the_same_and_no_link_carries_it_twice() {
    const MESSAGES: u64 = 60;
    for fabric in FABRICS {
        let chain = GroupConfig::new("chain").topology(Topology::Chain).ring_bytes(1 << 18);
        let mut cluster = Cluster::new(fabric, &["", "", "", ""], &[chain]);
        let sent = |cluster: &Cluster, id: u32| cluster.members[&id].node.stats().counts.bytes_out;
        cluster.until("there", || cluster.members.values().all(|it| !it.log("chain", 0).views.is_empty()));
        let before = [1, 2, 3, 4].map(|id| sent(&cluster, id));
        let sender = cluster.members[&2].group("chain", 0).sender();
        let mut message = vec![1; 50_000];
        for number in 0..MESSAGES {
            message[..8].copy_from_slice(&number.to_le_bytes());
            sender.send(&message).unwrap();
        }
        let of = |cluster: &Cluster, id: u32| cluster.members[&id].log("chain", 0).state.clone();
        cluster.until("delivered", || (1..=4).all(|id| of(&cluster, id).len() as u64 == MESSAGES));
        let all: Vec<_> = (0..MESSAGES).map(|number| (2, number)).collect();
        assert!((1..=4).all(|id| of(&cluster, id) == all));
        let payload = MESSAGES * message.len() as u64;
        let out: Vec<_> = (1..=4).zip(before).map(|(id, before)| sent(&cluster, id) - before).collect();
        let times: Vec<_> = out.iter().map(|out| (out + payload / 2) / payload).collect();
        // From 2 over 3 and 4 to 1; rows and the other streams are small beside it.
        assert_eq!(times, if fabric == FabricChoice::Tcp { [0, 1, 1, 1] } else { [0; 4] }, "{out:?}");

        // The view mends the chain: it goes on without the one in the middle.
        cluster.members.remove(&3).unwrap().stop();
        let rest = [1, 2, 4].map(NodeId);
        cluster.until("mended", || cluster.members.values().all(|it| it.shard("chain", 0).members == rest));
        cluster.send(2, "chain", 0, 100..120);
        cluster.send(4, "chain", 0, 200..220);
        let len = MESSAGES as usize + 40;
        cluster.until("delivered", || [1, 2, 4].iter().all(|id| of(&cluster, *id).len() == len));
        assert!([2, 4].iter().all(|id| of(&cluster, *id) == of(&cluster, 1)));
        cluster.stop();
    }
}

// A group of whose events nobody takes any stands still; the others go on (D11).
#[test]
fn a_group_that_nobody_takes_holds_up_no_other() {
    let slow = GroupConfig::new("slow").ring_bytes(4096);
    let listeners: Vec<_> = (0..2).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let addresses: Vec<SocketAddr> = listeners.iter().map(|it| it.local_addr().unwrap()).collect();
    let nodes: Vec<_> = (0..2usize)
        .zip(listeners)
        .map(|(at, listener)| {
            let builder = NodeBuilder::new(at as u32 + 1).listener(listener).group(slow.clone());
            builder.peer(2 - at as u32, addresses[1 - at]).start().unwrap()
        })
        .collect();
    let stuck = nodes[0].group("slow").unwrap().sender();
    stuck.send(&[0; 64]).unwrap(); // waits for the group to start
    let mut room = 0;
    while stuck.try_reserve(1000).map(|room| room.send()).is_ok() {
        room += 1;
    }
    assert!(room <= 4, "the ring is full by then");
    let sender = nodes[0].sender();
    for number in 0..2000_u64 {
        sender.send(&number.to_le_bytes()).unwrap();
    }
    for node in &nodes {
        let mut numbers = 0..2000_u64;
        while !numbers.is_empty() {
            if let Event::Message(message) = node.recv().unwrap() {
                assert_eq!(message[..], numbers.next().unwrap().to_le_bytes());
            }
        }
    }
    for node in nodes {
        drop(node);
    }
}

/// Three nodes with these groups, all in each.
fn three(node: impl Fn(NodeBuilder) -> NodeBuilder, groups: &[GroupConfig]) -> Vec<Node> {
    let listeners: Vec<_> = (0..3).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let addresses: Vec<SocketAddr> = listeners.iter().map(|it| it.local_addr().unwrap()).collect();
    let start = |(at, listener)| {
        let builder = NodeBuilder::new(at as u32 + 1).listener(listener).silence(LONG).quorum_within(LONG);
        let others = (0..3).filter(|other| *other != at);
        let builder = others.fold(builder, |it, other| it.peer(other as u32 + 1, addresses[other]));
        node(groups.iter().cloned().fold(builder, NodeBuilder::group)).start().unwrap()
    };
    listeners.into_iter().enumerate().map(start).collect()
}

/// Takes events of a group until the view is one of these members.
fn until_view(group: &Group, members: &[u32]) {
    loop {
        match group.recv().unwrap() {
            Event::View(view) if view.nodes().iter().map(|node| node.0).eq(members.iter().copied()) => return,
            _ => {}
        }
    }
}

// V9, D11: each group has its own policy for a member whose application takes nothing of what waits for it there. In `patient` it is waited for, though
// its bound in `strict` is long over; there it is left out, and told so, although it takes everything of the other.
#[test]
fn each_group_has_its_own_policy_for_who_takes_nothing() {
    let bound = Duration::from_secs(2);
    let groups = [
        GroupConfig::new("patient").ring_bytes(1 << 14).slow(SlowPolicy::Wait),
        GroupConfig::new("strict").ring_bytes(1 << 14),
    ];
    let nodes = three(|builder| builder.slow(SlowPolicy::Evict(bound)), &groups);
    let take = |node: &Node, group: &str, count: usize| {
        let group = node.group(group).unwrap();
        let mut taken = 0;
        while taken < count {
            taken += usize::from(matches!(group.recv().unwrap(), Event::Message(_)));
        }
    };
    let send = |group: &str, count: u64| {
        let sender = nodes[0].group(group).unwrap().sender();
        (0..count).for_each(|number| assert!(sender.send(&number.to_le_bytes()).is_ok()));
    };
    // The third takes nothing of `patient` for twice the bound, in which all take what comes in `strict`.
    send("patient", 3);
    [0, 1].iter().for_each(|at| take(&nodes[*at], "patient", 3));
    let until = Instant::now() + 2 * bound;
    while Instant::now() < until {
        send("strict", 1);
        nodes.iter().for_each(|node| take(node, "strict", 1));
    }
    let view = nodes[0].status().view.unwrap();
    assert_eq!(view.nodes().len(), 3, "it is waited for: {:?}", nodes[0].status().lost);
    take(&nodes[2], "patient", 3);
    // Now nothing of `strict`.
    send("strict", 2);
    thread::scope(|scope| {
        for node in &nodes[..2] {
            scope.spawn(|| until_view(&node.group("strict").unwrap(), &[1, 2]));
        }
    });
    // Whoever saw it first says why, once its control thread has told of the view.
    let until = Instant::now() + LONG;
    let why = || [0, 1].map(|at| format!("{:?}", nodes[at].status().lost));
    let is_told = |lost: &String| lost.contains("taken nothing of what waits for it in strict");
    while !why().iter().any(is_told) {
        assert!(Instant::now() < until, "{:?}", why());
        thread::yield_now();
    }
    let stopped = loop {
        if let Err(stopped) = nodes[2].group("patient").unwrap().recv() {
            break stopped;
        }
    };
    assert!(matches!(stopped, Stopped::Evicted { .. }), "{stopped:?}");
}

// V9: who takes no views, and no messages because none come, holds up nobody.
#[test]
fn who_has_nothing_to_take_is_not_slow() {
    let bound = Duration::from_secs(2);
    let nodes = three(|builder| builder.slow(SlowPolicy::Evict(bound)), &[GroupConfig::new("quiet")]);
    // Of the main group the third takes nothing, of the other each takes what comes, and keeps the last message for long.
    nodes[..2].iter().for_each(|node| until_view(node.main(), &[1, 2, 3]));
    let group = |at: usize| nodes[at].group("quiet").unwrap();
    group(0).sender().send(&[1]).unwrap();
    let kept: Vec<_> = (0..3)
        .map(|at| {
            loop {
                if let Event::Message(message) = group(at).recv().unwrap() {
                    break message;
                }
            }
        })
        .collect();
    thread::sleep(2 * bound); // nothing is to happen
    assert_eq!(nodes[0].status().view.unwrap().nodes().len(), 3, "{:?}", nodes[0].status().lost);
    drop(kept);
}

// V2: a change ends only the sessions whose members change.
#[test]
fn a_change_spares_the_groups_that_it_does_not_concern() {
    for fabric in FABRICS {
        let groups = [
            GroupConfig::new("left").nodes([1, 2, 3]).ring_bytes(1 << 14),
            GroupConfig::new("right").nodes([3, 4, 5]).ring_bytes(1 << 14),
        ];
        let mut cluster = Cluster::new(fabric, &[""; 5], &groups);
        cluster.until("left has started", || {
            [1, 2, 3].iter().all(|id| !cluster.members[id].log("left", 0).views.is_empty())
        });
        let gone = cluster.members.remove(&5).unwrap();
        thread::scope(|scope| {
            let cluster = &cluster;
            for id in [1, 2, 3] {
                scope.spawn(move || cluster.send(id, "left", 0, 0..3000));
            }
            for id in [3, 4] {
                scope.spawn(move || cluster.send(id, "right", 0, 0..3000));
            }
            gone.stop();
        });
        cluster.until("left", || [1, 2, 3].iter().all(|id| cluster.has(*id, "left", 0, 9000)));
        cluster.until("right", || [3, 4].iter().all(|id| cluster.has(*id, "right", 0, 6000)));
        for id in [1, 2, 3] {
            let told = cluster.members[&id].log("left", 0);
            assert!(told.live.iter().all(|(_, _, view)| *view == 1), "its session has gone on");
            assert_eq!(told.views.len(), 1, "and nothing else was told");
        }
        for id in [3, 4] {
            let told = cluster.members[&id].log("right", 0);
            assert_eq!(told.views.iter().map(|view| view.id.0).collect::<Vec<_>>(), [1, 2]);
        }
        let states = [3, 4].map(|id| cluster.members[&id].log("right", 0).state.clone());
        assert_eq!(states[0], states[1]);
        cluster.stop();
    }
}

// V7: shards are laid out over the domains, and have all their replicas again, with the whole state, as soon as nodes suffice; nobody
// moves who need not.
#[test]
fn shards_repair_themselves() {
    for fabric in FABRICS {
        let kv = GroupConfig::new("kv").sharded(3, 3).state(true).ring_bytes(1 << 14);
        let mut cluster = Cluster::new(fabric, &["a", "a", "b", "b", "c"], &[kv]);
        let domain = |id: u32| [0, 0, 1, 1, 2][id as usize - 1];
        let ids = |shard: &Shard| shard.members.iter().map(|node| node.0).collect::<Vec<_>>();
        let mut before: Vec<Vec<u32>> =
            (0..3).map(|shard| ids(&cluster.members[&1].shard("kv", shard))).collect();
        for members in &before {
            let domains: BTreeSet<_> = members.iter().map(|id| domain(*id)).collect();
            assert_eq!((members.len(), domains.len()), (3, 3), "{members:?}: one in each domain");
        }
        let mut sent = [0_u64; 3];
        for gone in [2, 3] {
            thread::scope(|scope| {
                let (cluster, before) = (&mut cluster, &before);
                let gone = cluster.members.remove(&gone).unwrap();
                let cluster = &*cluster;
                for (shard, members) in before.iter().enumerate() {
                    let sender = *members.iter().find(|id| cluster.members.contains_key(id)).unwrap();
                    let from = sent[shard];
                    scope.spawn(move || cluster.send(sender, "kv", shard, from..from + 2000));
                }
                gone.stop();
            });
            sent = sent.map(|sent| sent + 2000);
            cluster.until("whole again", || {
                let is_whole = |shard: &Shard| shard.members.len() == 3 && !ids(shard).contains(&gone);
                (0..3).all(|shard| cluster.members.values().all(|it| is_whole(&it.shard("kv", shard))))
            });
            for (shard, before) in before.iter_mut().enumerate() {
                let now = ids(&cluster.members[&1].shard("kv", shard));
                let stayed: Vec<_> = before.iter().copied().filter(|id| *id != gone).collect();
                assert_eq!(now[..stayed.len()], stayed, "shard {shard}: who had it has it");
                cluster.until("caught up", || {
                    now.iter().all(|id| {
                        let told = cluster.members[id].log("kv", shard);
                        told.state.len() as u64 >= sent[shard]
                    })
                });
                let states: Vec<_> =
                    now.iter().map(|id| cluster.members[id].log("kv", shard).state.clone()).collect();
                assert!(states.iter().all(|state| *state == states[0]), "shard {shard}: one state");
                let numbers: BTreeSet<_> = states[0].iter().collect();
                assert_eq!(numbers.len() as u64, sent[shard], "each once");
                *before = now;
            }
        }
        let restored: usize =
            cluster.members.values().flat_map(|it| it.logs.values()).map(|log| lock(log).restored).sum();
        assert!(restored >= 2, "somebody has learned a shard: {restored}");
        cluster.stop();
    }
}

// A replica moves to a domain that has none, while its node goes on, and comes back when that domain is lost: it learns the state anew each time.
#[test]
fn a_replica_that_moved_away_comes_back() {
    for fabric in FABRICS {
        let kv = GroupConfig::new("kv").sharded(1, 2).state(true).ring_bytes(1 << 14);
        let mut cluster = Cluster::new(fabric, &["a", "a"], &[kv]);
        let (mut sent, mut stayed) = (0, 1);
        for _ in 0..6 {
            cluster.join(3, "b");
            let members = |cluster: &Cluster| -> Vec<u32> {
                cluster.members[&stayed].shard("kv", 0).members.iter().map(|node| node.0).collect()
            };
            cluster.until("spread", || matches!(members(&cluster)[..], [1 | 2, 3]));
            stayed = members(&cluster)[0];
            let moved = 3 - stayed;
            cluster.until("told", || {
                let told = cluster.members[&moved].log("kv", 0);
                told.views
                    .last()
                    .is_some_and(|view| view.shards[1].members.iter().all(|node| node.0 != moved))
            });
            let sender = cluster.members[&moved].group("kv", 0).sender();
            assert_eq!(sender.send(&[0; 8]), Err(SendError::NotMember));
            cluster.send(stayed, "kv", 0, sent..sent + 500);
            sent += 500;
            cluster.members.remove(&3).unwrap().stop();
            cluster.until("back", || {
                let shard = cluster.members[&stayed].shard("kv", 0);
                shard.members.len() == 2 && shard.members.iter().all(|node| node.0 != 3)
            });
            cluster.send(stayed, "kv", 0, sent..sent + 500);
            sent += 500;
            cluster.until("whole", || {
                [1, 2].iter().all(|id| cluster.members[id].log("kv", 0).state.len() as u64 >= sent)
            });
            let states = [1, 2].map(|id| cluster.members[&id].log("kv", 0).state.clone());
            assert_eq!(states[0], states[1]);
            assert_eq!(states[0].iter().map(|it| it.1).collect::<Vec<_>>(), (0..sent).collect::<Vec<_>>());
        }
        cluster.stop();
    }
}

// V8: whoever is the only one in a session can leave, too.
#[test]
fn the_last_of_a_shard_leaves_in_order() {
    for fabric in FABRICS {
        let groups = [GroupConfig::new("single").sharded(1, 1).ring_bytes(1 << 14)];
        let mut cluster = Cluster::new(fabric, &["a", "b", "c"], &groups);
        let holder = cluster.members[&1].shard("single", 0).members[0].0;
        cluster.send(holder, "single", 0, 0..50);
        cluster.until("all is delivered", || cluster.has(holder, "single", 0, 50));
        let Member { node, logs, takers } = cluster.members.remove(&holder).unwrap();
        node.close(Duration::from_secs(60)).unwrap();
        takers.into_iter().for_each(|taker| taker.join().unwrap());
        assert_eq!(lock(&logs[&("single".to_owned(), 0)]).live.len(), 50, "{fabric:?}");
        let is_another =
            |it: &Member| it.shard("single", 0).members.first().is_some_and(|node| node.0 != holder);
        cluster.until("its shard is another's", || cluster.members.values().all(is_another));
        let next = cluster.members.values().next().unwrap().shard("single", 0).members[0].0;
        cluster.send(next, "single", 0, 100..110);
        cluster.until("the other has it", || cluster.members[&next].log("single", 0).live.len() == 10);
        cluster.stop();
    }
}

/// Over shared memory a view change gives every session fresh memory, since one that is out may still read the old: of as many groups as a node
/// can have, at each change anew. Whoever is out lives on here, in this process.
#[test]
fn as_many_groups_as_there_can_be_change_their_views() {
    const GROUPS: usize = 63;
    let sockets = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let addresses: Vec<SocketAddr> = sockets.iter().map(|socket| socket.local_addr().unwrap()).collect();
    let name = |number: usize| format!("group-{number}");
    let builder = |id: u32| {
        let builder = NodeBuilder::new(id).fabric(FabricChoice::Shm).start_within(LONG);
        (0..GROUPS).fold(builder, |builder, number| {
            builder.group(GroupConfig::new(&name(number)).ring_bytes(64 << 10))
        })
    };
    let mut nodes: Vec<Node> = (1..)
        .zip(sockets)
        .map(|(id, socket)| {
            let peers = (1..).zip(&addresses).filter(|(peer, _)| *peer != id);
            peers.fold(builder(id).listener(socket), |it, (peer, at)| it.peer(peer, *at)).start().unwrap()
        })
        .collect();
    // Each group of each of these nodes comes to a view of so many, in which a message of node 1 is delivered at all.
    let comes_to = |nodes: &[Node], members: usize| {
        for number in 0..GROUPS {
            let groups: Vec<_> = nodes.iter().map(|node| node.group(&name(number)).unwrap()).collect();
            for group in &groups {
                loop {
                    match group.recv_timeout(LONG).unwrap().expect("a view") {
                        Event::View(view) if view.members.len() == members => break,
                        _ => {}
                    }
                }
            }
            groups[0].sender().send(&[number as u8]).unwrap();
            for group in &groups {
                let message = loop {
                    if let Event::Message(message) = group.recv_timeout(LONG).unwrap().expect("the message") {
                        break message;
                    }
                };
                assert_eq!(*message, [number as u8]);
            }
        }
    };
    comes_to(&nodes, 3);
    for _ in 0..3 {
        nodes.pop().unwrap().close(LONG).unwrap();
        comes_to(&nodes, 2);
        nodes.push(builder(3).join(addresses[0]).join(addresses[1]).start().unwrap());
        comes_to(&nodes, 3);
    }
}
