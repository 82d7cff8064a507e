//! Replicated objects on real nodes.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use consort::object::{
    Context, Halted, Lost, Options, QueryError, Replica, ReplicaError, Snapshot, StateDigest, StateMachine,
    UpdateError,
};
use consort::{
    Domain, FabricChoice, GroupConfig, Guarantee, Node, NodeBuilder, NodeId, ReadPointError, SendError,
    Topology,
};
use consort_control::shell::Gate;
use consort_tests::linear::{self, Kind, Operation};

/// Far beyond what anything takes.
const LONG: Duration = Duration::from_secs(60);

/// Builders of nodes that found a group, and the addresses to join it by.
pub(super) fn founders(count: u32, fabric: FabricChoice) -> (Vec<NodeBuilder>, Vec<SocketAddr>) {
    let listeners: Vec<_> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let addresses: Vec<SocketAddr> = listeners.iter().map(|it| it.local_addr().unwrap()).collect();
    let build = |(id, listener): (u32, TcpListener)| {
        let others = (1..=count).filter(|other| *other != id);
        let builder = node(id, fabric).listener(listener);
        others.fold(builder, |it, other| it.peer(other, addresses[other as usize - 1]))
    };
    ((1..).zip(listeners).map(build).collect(), addresses)
}

/// A node that takes nobody for gone without proof.
pub(super) fn node(id: u32, fabric: FabricChoice) -> NodeBuilder {
    NodeBuilder::new(id)
        .fabric(fabric)
        .ring_bytes(1 << 16)
        .silence(LONG)
        .quorum_within(LONG)
        .start_within(LONG)
}

/// A counter, which is wrong from some update on if it is told to be.
#[derive(Default)]
struct Counter {
    sum: u64,
    views: u64,
    wrong_from: Option<u64>,
    panics: bool,
}

impl StateMachine for Counter {
    type Update = u64;
    type Reply = u64;

    fn apply(&mut self, context: &Context, by: u64) -> u64 {
        assert!(!self.panics, "as it was told");
        self.sum += by + u64::from(self.wrong_from.is_some_and(|from| context.index >= from));
        self.sum
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot::of(&(self.sum, self.views))
    }

    fn restore(&mut self, from: &mut dyn Read) -> io::Result<()> {
        (self.sum, self.views) = Snapshot::read(from)?;
        Ok(())
    }

    fn view_changed(&mut self, _: &consort::View) {
        self.views += 1;
    }
}

fn counters(count: u32, fabric: FabricChoice) -> (Vec<Replica<Counter>>, Vec<SocketAddr>) {
    let (builders, addresses) = founders(count, fabric);
    let start = |builder| {
        Replica::start_with(builder, Counter::default(), Options::default().digest_every(16)).unwrap()
    };
    (builders.into_iter().map(start).collect(), addresses)
}

/// Every reply is the sum at one place in the order, and a query at another member has every update that was answered before.
fn replies_and_queries_agree(fabric: FabricChoice) {
    const UPDATES: u64 = 200;
    let (replicas, addresses) = counters(3, fabric);
    let mut replies: Vec<u64> = thread::scope(|scope| {
        let member = |at: usize| {
            let (mine, other) = (&replicas[at], &replicas[(at + 1) % 3]);
            move || -> Vec<u64> {
                let update = |_| {
                    let sum = mine.update(&1).unwrap();
                    assert!(mine.query_local(|it| it.sum).unwrap() >= sum, "its own is applied here");
                    assert!(other.query(|it| it.sum).unwrap() >= sum, "stale");
                    sum
                };
                (0..UPDATES).map(update).collect()
            }
        };
        let members: Vec<_> = (0..3).map(|at| scope.spawn(member(at))).collect();
        members.into_iter().flat_map(|it| it.join().unwrap()).collect()
    });
    replies.sort_unstable();
    assert!(replies.iter().copied().eq(1..=3 * UPDATES), "each update has its own place");
    for replica in &replicas {
        assert_eq!(replica.query(|it| it.sum).unwrap(), 3 * UPDATES);
        assert_eq!((replica.applied(), replica.halted()), (3 * UPDATES, None));
    }
    // Who asks how a member stands is told the digests of all three, and of the last time they are the same.
    let last = 3 * UPDATES / 16;
    loop {
        let answer = consort::ask(addresses[1], None, consort::Question::Status, LONG).unwrap();
        let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
        let word = |digest: &serde_json::Value| {
            u64::from_str_radix(digest["word"].as_str().unwrap().trim_start_matches("0x"), 16).unwrap()
        };
        let told = answer["sessions"][0]["digests"].as_array(); // none before its engine was heard
        let digests: Vec<_> =
            told.into_iter().flatten().filter_map(|it| StateDigest::from_word(word(it))).collect();
        if digests.len() == 3 && digests.iter().all(|it| it.ordinal == last) {
            assert_eq!((digests[0], digests[1]), (digests[1], digests[2]));
            break;
        }
        thread::yield_now();
    }
    for replica in replicas {
        replica.close(LONG).unwrap();
    }
}

#[test]
fn replies_and_queries_agree_over_shared_memory() {
    replies_and_queries_agree(FabricChoice::Shm);
}

#[test]
fn replies_and_queries_agree_over_tcp() {
    replies_and_queries_agree(FabricChoice::Tcp);
}

/// A member is lost and another joins while all send: what was answered is applied once, everywhere, and the joiner has it.
fn members_come_and_go(fabric: FabricChoice) {
    let (mut replicas, addresses) = counters(3, fabric);
    let lost = replicas.pop().unwrap();
    let send = |replica: &Replica<Counter>, count: u64| {
        (0..count).for_each(|_| assert!(replica.update(&1).unwrap() > 0));
        count
    };
    let (sent, joiner) = thread::scope(|scope| {
        let senders: Vec<_> = replicas.iter().map(|replica| scope.spawn(|| send(replica, 600))).collect();
        let extra = lost.update(&1).unwrap();
        assert!(extra >= 1);
        drop(lost);
        replicas[0].wait_for(|it| (it.views > 1).then_some(())).unwrap();
        let joins = node(4, fabric).join(addresses[0]).join(addresses[1]);
        let joiner =
            Replica::start_with(joins, Counter::default(), Options::default().digest_every(16)).unwrap();
        let more = send(&joiner, 50);
        (senders.into_iter().map(|it| it.join().unwrap()).sum::<u64>() + more + 1, joiner)
    });
    replicas.push(joiner);
    for replica in &replicas {
        let (sum, views) = replica.query(|it| (it.sum, it.views)).unwrap();
        assert!(sum == sent && views >= 3, "{sum} of {sent}, {views} views");
        assert_eq!(replica.halted(), None, "the digests agree");
    }
}

#[test]
fn members_come_and_go_over_shared_memory() {
    members_come_and_go(FabricChoice::Shm);
}

#[test]
fn members_come_and_go_over_tcp() {
    members_come_and_go(FabricChoice::Tcp);
}

/// One of three whose code isn't deterministic is found within two digests, names itself and its message, and is gone; the others go on.
fn who_is_not_deterministic_is_stopped(fabric: FabricChoice) {
    let (builders, _) = founders(3, fabric);
    let start = |(at, builder)| {
        let object = Counter { wrong_from: (at == 1).then_some(100), ..Counter::default() };
        Replica::start_with(builder, object, Options::default().digest_every(16)).unwrap()
    };
    let replicas: Vec<_> = builders.into_iter().enumerate().map(start).collect();
    let mut updates = 0;
    while replicas[1].halted().is_none() {
        replicas[0].update(&1).unwrap();
        updates += 1;
    }
    let Some(Halted::Diverged(found)) = replicas[1].halted() else { panic!("{:?}", replicas[1].halted()) };
    assert_eq!(found.node, Some(NodeId(2)));
    assert!((100..100 + 2 * 16 + updates - replicas[1].applied()).contains(&found.index), "{found}");
    assert_eq!(found.seq.0, found.index, "the place in the order is named, here that of the first view");
    assert!(matches!(replicas[1].query_local(|it| it.sum), Err(QueryError::Stopped(Halted::Diverged(_)))));
    assert!(matches!(replicas[1].update(&1), Err(UpdateError::Stopped(_))));
    replicas[0].wait_for(|it| (it.views > 1).then_some(())).unwrap();
    assert_eq!(replicas[2].update(&1).unwrap(), updates + 1);
    assert_eq!((replicas[0].halted(), replicas[2].halted()), (None, None));
}

#[test]
fn who_is_not_deterministic_is_stopped_over_shared_memory() {
    who_is_not_deterministic_is_stopped(FabricChoice::Shm);
}

#[test]
fn who_is_not_deterministic_is_stopped_over_tcp() {
    who_is_not_deterministic_is_stopped(FabricChoice::Tcp);
}

/// Of two that differ neither is believed.
#[test]
fn two_that_differ_both_stop() {
    let (builders, _) = founders(2, FabricChoice::Shm);
    let start = |(at, builder)| {
        let object = Counter { wrong_from: (at == 1).then_some(20), ..Counter::default() };
        Replica::start_with(builder, object, Options::default().digest_every(8)).unwrap()
    };
    let replicas: Vec<_> = builders.into_iter().enumerate().map(start).collect();
    while replicas[0].update(&1).is_ok() {}
    for replica in &replicas {
        replica.wait_for(|_| None::<()>).unwrap_err();
        let why = replica.halted().unwrap();
        assert!(matches!(&why, Halted::Diverged(found) if found.node.is_none()), "{why}");
    }
}

#[test]
fn code_that_panics_stops_its_own_member() {
    let (builders, _) = founders(3, FabricChoice::Shm);
    let start =
        |(at, builder)| Replica::start(builder, Counter { panics: at == 2, ..Counter::default() }).unwrap();
    let replicas: Vec<_> = builders.into_iter().enumerate().map(start).collect();
    let failed = replicas[2].update(&1).unwrap_err();
    assert!(failed.may_be_applied() && failed.to_string().contains("as it was told"), "{failed}");
    assert!(matches!(replicas[2].halted(), Some(Halted::Panicked(_))));
    assert_eq!(replicas[0].query(|it| it.sum).unwrap(), 1, "it was applied where it could be");
}

#[test]
fn what_has_no_order_or_no_points_is_refused() {
    let alone =
        |guarantee| node(1, FabricChoice::Tcp).listen("127.0.0.1:0".parse().unwrap()).guarantee(guarantee);
    let fifo = Replica::start(alone(Guarantee::Fifo), Counter::default());
    assert!(matches!(fifo, Err(ReplicaError::Unordered)), "{fifo:?}");
    let agreed = Replica::start(alone(Guarantee::Agreed), Counter::default()).unwrap();
    assert_eq!(agreed.update(&2), Ok(2));
    let refused = agreed.query(|it| it.sum).unwrap_err();
    assert_eq!(refused, QueryError::NoPoints(ReadPointError::Guarantee(Guarantee::Agreed)));
    assert_eq!(agreed.query_local(|it| it.sum), Ok(2));
}

#[test]
fn whoever_waits_is_told_that_it_is_over() {
    let (builders, _) = founders(2, FabricChoice::Shm);
    // The second never starts, so nothing is ever delivered.
    let first = Replica::start(builders.into_iter().next().unwrap(), Counter::default()).unwrap();
    let fresh = first.fresh().unwrap();
    first.close(Duration::ZERO).unwrap_err();
    assert!(matches!(fresh.wait(), Err(QueryError::Stopped(_))));
}

/// What a member's own code does in [`Speaker`]; nothing of it is state.
#[derive(Default)]
struct Manner {
    name: u32,
    /// Updates of this number wait here until the door is open.
    waits_at: Option<u64>,
    door: Gate,
    is_open: AtomicBool,
    /// Bytes of a reply to the number 2.
    long: usize,
}

/// Opens the door when the test ends, however it does.
struct Opens(Arc<Manner>);

impl Drop for Opens {
    fn drop(&mut self) {
        self.0.open();
    }
}

impl Manner {
    fn open(&self) {
        self.is_open.store(true, Ordering::SeqCst);
        self.door.open();
    }
}

/// A sum whose every copy answers in its own name.
#[derive(Default)]
struct Speaker {
    sum: u64,
    manner: Arc<Manner>,
}

/// What a speaker answers: its name, the sum, and more.
type Speech = (u32, u64, Vec<u8>);

impl StateMachine for Speaker {
    type Update = u64;
    type Reply = Speech;

    fn apply(&mut self, _: &Context, by: u64) -> Speech {
        let manner = &self.manner;
        if manner.waits_at == Some(by) {
            manner.door.wait(None, || manner.is_open.load(Ordering::SeqCst).then_some(()));
        }
        self.sum += by;
        let more = vec![7; if by == 2 { manner.long } else { 0 }];
        (manner.name, self.sum, more)
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot::of(&self.sum)
    }

    fn restore(&mut self, from: &mut dyn Read) -> io::Result<()> {
        self.sum = Snapshot::read(from)?;
        Ok(())
    }
}

fn speech(name: u32, sum: u64) -> (NodeId, Speech) {
    (NodeId(name), (name, sum, vec![]))
}

fn speaker(builder: NodeBuilder, manner: Manner) -> (Replica<Speaker>, Arc<Manner>) {
    let manner = Arc::new(manner);
    let object = Speaker { sum: 0, manner: manner.clone() };
    (Replica::start_with(builder, object, Options::default().digest_every(16)).unwrap(), manner)
}

/// Three that answer in their names; what the third does besides is told.
fn speakers(build: impl Fn(NodeBuilder) -> NodeBuilder, third: Manner) -> (Vec<Replica<Speaker>>, Opens) {
    let mut builders = founders(3, FabricChoice::Shm).0.into_iter().map(build);
    let plain = |name| Manner { name, ..Manner::default() };
    let first = speaker(builders.next().unwrap(), plain(1)).0;
    let second = speaker(builders.next().unwrap(), plain(2)).0;
    let (third, manner) = speaker(builders.next().unwrap(), third);
    (vec![first, second, third], Opens(manner))
}

/// Every member's reply to one update, each in its place in the one order, whoever asks and however many at once; answers count as no
/// updates.
fn all_members_answer(build: impl Fn(NodeBuilder) -> NodeBuilder) {
    const CALLS: u64 = 200;
    let (replicas, _opens) = speakers(build, Manner { name: 3, ..Manner::default() });
    let asks = |replica: &Replica<Speaker>| {
        let mut sums = Vec::new();
        let pending: Vec<_> = (0..CALLS).map(|_| replica.submit_all(&1).unwrap()).collect();
        for pending in pending {
            let answered = pending.wait().unwrap();
            let sum = answered.replies[0].1.1;
            assert_eq!(answered.replies, [speech(1, sum), speech(2, sum), speech(3, sum)]);
            assert_eq!(answered.lost, []);
            sums.push(sum);
        }
        sums
    };
    let mut sums: Vec<u64> = thread::scope(|scope| {
        let asked: Vec<_> = replicas.iter().map(|replica| scope.spawn(move || asks(replica))).collect();
        asked.into_iter().flat_map(|it| it.join().unwrap()).collect()
    });
    sums.sort_unstable();
    assert!(sums.iter().copied().eq(1..=3 * CALLS), "each has its own place");
    for (replica, more) in replicas.iter().zip(1..) {
        assert_eq!(replica.update(&0).map(|it| it.1), Ok(3 * CALLS));
        assert_eq!(replica.applied(), 3 * CALLS + more, "answers are no updates");
        assert_eq!(replica.halted(), None);
    }
}

#[test]
fn all_members_answer_an_update() {
    all_members_answer(|builder| builder);
}

// There each member is sent every answer, and passes over those of others.
#[test]
fn all_members_answer_where_no_message_is_for_some() {
    all_members_answer(|builder| builder.guarantee(Guarantee::Agreed));
}

#[test]
fn all_members_answer_over_tcp() {
    all_members_answer(|builder| builder.fabric(FabricChoice::Tcp));
}

// Where an update takes effect at the last member, it answers like the others.
#[test]
fn all_members_of_a_chain_answer() {
    all_members_answer(|builder| builder.topology(Topology::Chain));
}

// More than fits is under way at all members at once: who applies must not wait for room to answer.
#[test]
fn answers_wait_for_room_without_holding_up_updates() {
    all_members_answer(|builder| builder.ring_bytes(4096));
}

// Who is gone before it answers is lost to the call, not waited for; and what the others answered is told.
#[test]
fn who_is_gone_is_lost_to_a_call() {
    let third = Manner { name: 3, waits_at: Some(5), ..Manner::default() };
    let (replicas, _opens) = speakers(|builder| builder, third);
    let pending = replicas[0].submit_all(&5).unwrap();
    replicas[0].wait_for(|it| (it.sum == 5).then_some(())).unwrap();
    let after = replicas[1].submit_all(&1).unwrap();
    replicas[0].wait_for(|it| (it.sum == 6).then_some(())).unwrap();
    let pending = pending.wait_timeout(Duration::ZERO).expect_err("one has not answered");
    replicas[2].stop();
    let gone = [(NodeId(3), Lost::Gone)];
    let answered = pending.wait().unwrap();
    assert_eq!((&answered.replies[..], &answered.lost[..]), (&[speech(1, 5), speech(2, 5)][..], &gone[..]));
    let answered = after.wait().unwrap();
    assert_eq!((&answered.replies[..], &answered.lost[..]), (&[speech(1, 6), speech(2, 6)][..], &gone[..]));
    let answered = replicas[1].update_all(&1).unwrap();
    assert_eq!((answered.replies, answered.lost), (vec![speech(1, 7), speech(2, 7)], vec![]));
}

// Who stops first doesn't know what the others answer, and says so.
#[test]
fn who_stops_gives_its_calls_up() {
    let third = Manner { name: 3, waits_at: Some(5), ..Manner::default() };
    let (replicas, _opens) = speakers(|builder| builder, third);
    let pending = replicas[0].submit_all(&5).unwrap();
    replicas[0].wait_for(|it| (it.sum == 5).then_some(())).unwrap();
    replicas[0].stop();
    let told = pending.wait().unwrap_err();
    assert!(matches!(told, UpdateError::Unknown(Halted::Node(_))), "{told:?}");
}

// A bounded number of calls is under way, so that a bounded number of replies waits at the others; updates are not held up.
#[test]
fn calls_wait_for_those_before_them() {
    const BOUND: u64 = 64;
    let third = Manner { name: 3, waits_at: Some(0), ..Manner::default() };
    let (replicas, opens) = speakers(|builder| builder, third);
    thread::scope(|scope| {
        let opens = Opens(opens.0.clone()); // before the scope waits for its threads, also if this fails
        let calls = scope.spawn(|| {
            let pending: Vec<_> =
                (0..=BOUND).map(|call| replicas[0].submit_all(&call.min(1)).unwrap()).collect();
            pending.into_iter().for_each(|it| assert_eq!(it.wait().unwrap().replies.len(), 3));
        });
        replicas[0].wait_for(|it| (it.sum == BOUND - 1).then_some(())).unwrap();
        // Time enough for one more, if it were not held up.
        (0..50).for_each(|_| assert!(replicas[0].update(&1).is_ok()));
        assert_eq!(replicas[0].applied(), BOUND + 50);
        drop(opens);
        calls.join().unwrap();
    });
}

// A reply that fits in no ring is told to be so, by the one who has it.
#[test]
fn a_reply_that_is_too_long_is_not_said() {
    let third = Manner { name: 3, long: 1 << 16, ..Manner::default() };
    let (replicas, _opens) = speakers(|builder| builder, third);
    let answered = replicas[0].update_all(&2).unwrap();
    assert_eq!(answered.replies, [speech(1, 2), speech(2, 2)]);
    let [(NodeId(3), Lost::Unsaid(why))] = &answered.lost[..] else { panic!("{:?}", answered.lost) };
    assert!(why.contains("too long"), "{why}");
    assert_eq!(replicas[2].update_all(&1).unwrap().replies.len(), 3, "it goes on");
}

/// Registers by number.
#[derive(Default)]
struct Registers(BTreeMap<u32, u64>);

impl StateMachine for Registers {
    type Update = (u32, u64);
    type Reply = ();

    fn apply(&mut self, _: &Context, (key, value): (u32, u64)) {
        self.0.insert(key, value);
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot::of(&self.0)
    }

    fn restore(&mut self, from: &mut dyn Read) -> io::Result<()> {
        self.0 = Snapshot::read(from)?;
        Ok(())
    }
}

/// Two clients at each of three members write and query two registers, and one member is lost in the middle: every history is
/// linearizable.
fn histories_are_linearizable(fabric: FabricChoice) {
    histories_over_a_loss_are_linearizable(fabric, Topology::Direct, 2);
}

fn histories_over_a_loss_are_linearizable(fabric: FabricChoice, topology: Topology, lost: u64) {
    const KEYS: u32 = 2;
    let start =
        |builder: NodeBuilder| Replica::start(builder.topology(topology), Registers::default()).unwrap();
    let replicas: Vec<_> = founders(3, fabric).0.into_iter().map(start).collect();
    // Moments, in an order that all threads agree on.
    let clock = AtomicU64::new(0);
    let now = || clock.fetch_add(1, Ordering::SeqCst);
    let operations: Vec<(u32, Operation)> = thread::scope(|scope| {
        let clients: Vec<_> = (0..6u64)
            .map(|client| {
                let (replica, now) = (&replicas[client as usize % 3], &now);
                scope.spawn(move || {
                    let mut done = Vec::new();
                    for round in 0..300 {
                        if client == lost && round == 150 {
                            replica.stop();
                        }
                        let (key, call) = (round as u32 / 3 % KEYS, now());
                        let (kind, end) = if (round + client) % 3 == 0 {
                            let value = client << 32 | round;
                            match replica.update(&(key, value)) {
                                Ok(()) => (Kind::Write(value), Some(now())),
                                Err(error) if error.may_be_applied() => (Kind::Write(value), None),
                                Err(_) => break,
                            }
                        } else {
                            let Ok(found) = replica.query(|it| it.0.get(&key).copied()) else { break };
                            (Kind::Read(found), Some(now()))
                        };
                        done.push((key, Operation { call, end, kind }));
                    }
                    done
                })
            })
            .collect();
        clients.into_iter().flat_map(|it| it.join().unwrap()).collect()
    });
    assert!(operations.len() > 4 * 300, "those at the others go on");
    for key in 0..KEYS {
        let of_key: Vec<_> = operations.iter().filter(|(of, _)| *of == key).map(|(_, it)| *it).collect();
        linear::check(&of_key).unwrap_or_else(|error| panic!("register {key}: {error}"));
    }
}

#[test]
fn histories_are_linearizable_over_shared_memory() {
    histories_are_linearizable(FabricChoice::Shm);
}

#[test]
fn histories_are_linearizable_over_tcp() {
    histories_are_linearizable(FabricChoice::Tcp);
}

/// Whoever is lost, the head of the chain, the middle or the tail, for the others' messages as well as for its own.
#[test]
fn histories_along_a_chain_are_linearizable_whoever_is_lost() {
    for lost in 0..3 {
        histories_over_a_loss_are_linearizable(FabricChoice::Tcp, Topology::Chain, lost);
    }
}

/// A chain of four loses a member in each position in turn, and another joins at its end, while all send: every update is applied once,
/// everywhere, and whoever comes has it all.
#[test]
fn a_chain_is_mended_whoever_is_lost() {
    let chain = |builder: NodeBuilder| {
        let options = Options::default().digest_every(16);
        Replica::start_with(builder.topology(Topology::Chain), Counter::default(), options).unwrap()
    };
    let (builders, mut addresses) = founders(4, FabricChoice::Tcp);
    let mut replicas: Vec<_> = (1..).zip(builders.into_iter().map(chain)).collect();
    let order = |replicas: &[(u32, Replica<Counter>)]| {
        let view = replicas[0].1.view();
        view.map(|view| view.nodes().iter().map(|node| node.0).collect::<Vec<_>>()).unwrap_or_default()
    };
    let mut sum = 0;
    for (position, new) in [(0, 5), (1, 6), (2, 7), (3, 8)] {
        for (_, replica) in &replicas {
            sum += 1;
            replica.update(&1).unwrap();
        }
        let place = order(&replicas)[position];
        let at = replicas.iter().position(|(id, _)| *id == place).unwrap();
        thread::scope(|scope| {
            let (before, rest) = replicas.split_at(at);
            let others: Vec<_> = before.iter().chain(&rest[1..]).collect();
            let senders: Vec<_> = others
                .iter()
                .map(|(_, replica)| scope.spawn(|| (0..40).for_each(|_| assert!(replica.update(&1).is_ok()))))
                .collect();
            rest[0].1.stop();
            senders.into_iter().for_each(|it| it.join().unwrap());
        });
        sum += 40 * 3;
        drop(replicas.remove(at));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        addresses.push(listener.local_addr().unwrap());
        let joins =
            addresses.iter().fold(node(new, FabricChoice::Tcp).listener(listener), |it, at| it.join(*at));
        replicas.push((new, chain(joins)));
        sum += 1;
        replicas[3].1.update(&1).unwrap();
        for (id, replica) in &replicas {
            assert_eq!(replica.query(|it| it.sum), Ok(sum), "node {id} after position {position} was lost");
        }
        assert_eq!(order(&replicas).last(), Some(&new), "who comes is the last");
    }
    assert!(replicas.iter().all(|(_, replica)| replica.halted().is_none()), "the digests agree");
}

/// Nodes whose group `counters` is split, with an object on every shard.
struct Sharded {
    nodes: BTreeMap<u32, (Arc<Node>, Vec<Replica<Counter>>)>,
}

impl Sharded {
    fn new(count: u32, fabric: FabricChoice, shards: usize, replicas: usize) -> Self {
        let (builders, _) = founders(count, fabric);
        let start = |(id, builder): (u32, NodeBuilder)| {
            let group =
                GroupConfig::new("counters").sharded(shards, replicas).state(true).ring_bytes(1 << 14);
            let node = Arc::new(builder.group(group).start().unwrap());
            let group = node.group("counters").unwrap();
            let on = |shard| {
                let (group, options) = (group.shard(shard).unwrap(), Options::default().digest_every(16));
                Replica::on(&node, &group, Counter::default(), options).unwrap()
            };
            let objects = (0..shards).map(on).collect();
            (id, (node, objects))
        };
        Self { nodes: (1..).zip(builders).map(start).collect() }
    }

    fn members(&self, shard: usize) -> Vec<u32> {
        let (node, _) = self.nodes.values().next().unwrap();
        let id = node.group("counters").unwrap().shard(shard).unwrap().id();
        let view = node.status().view;
        let shard = view.as_ref().and_then(|view| view.shard(id)).cloned().unwrap_or_default();
        shard.members.iter().map(|node| node.0).collect()
    }

    fn until(&self, what: &str, is_so: impl Fn() -> bool) {
        for _ in 0..30_000 {
            if is_so() {
                return;
            }
            thread::sleep(Duration::from_millis(2));
        }
        panic!("not {what} after a minute");
    }
}

// An object on every shard: replies and queries where the node is a member, refusals where it isn't, and the state where it becomes one.
#[test]
fn objects_live_on_shards() {
    for fabric in [FabricChoice::Shm, FabricChoice::Tcp] {
        let mut cluster = Sharded::new(4, fabric, 2, 2);
        cluster.until("founded", || (0..2).all(|shard| cluster.members(shard).len() == 2));
        for shard in 0..2 {
            let members = cluster.members(shard);
            for (id, (_, objects)) in &cluster.nodes {
                let object = &objects[shard];
                if members.contains(id) {
                    assert!(object.update(&1).unwrap() >= 1);
                    // All of the shard, and nobody else.
                    let answered = object.update_all(&0).unwrap();
                    let mut who: Vec<_> = answered.replies.iter().map(|(node, _)| node.0).collect();
                    who.sort_unstable();
                    let mut all = members.clone();
                    all.sort_unstable();
                    assert_eq!((who, answered.lost), (all, vec![]));
                } else {
                    let refused = object.update(&1);
                    assert_eq!(refused, Err(UpdateError::NotSent(SendError::NotMember)), "node {id}");
                    let refused = object.update_all(&1).map(|answered| answered.replies.len());
                    assert_eq!(refused, Err(UpdateError::NotSent(SendError::NotMember)), "node {id}");
                    let refused = object.query(|it| it.sum);
                    assert_eq!(refused, Err(QueryError::NoPoints(ReadPointError::NotMember)));
                    assert_eq!(object.query_local(|it| it.sum), Err(QueryError::NotMember));
                }
            }
            for id in &members {
                assert_eq!(cluster.nodes[id].1[shard].query(|it| it.sum), Ok(2));
            }
        }
        let gone = cluster.members(0)[0];
        let (node, objects) = cluster.nodes.remove(&gone).unwrap();
        node.stop();
        drop(objects);
        cluster.until("whole again", || {
            let is_whole = |members: Vec<u32>| members.len() == 2 && !members.contains(&gone);
            (0..2).all(|shard| is_whole(cluster.members(shard)))
        });
        for shard in 0..2 {
            for id in cluster.members(shard) {
                let object = &cluster.nodes[&id].1[shard];
                cluster.until("told", || object.is_member());
                assert!(object.query(|it| it.sum).unwrap() >= 2, "shard {shard} of node {id} has it all");
            }
            let first = &cluster.nodes[&cluster.members(shard)[0]].1[shard];
            let sum = first.update(&5).unwrap();
            for id in cluster.members(shard) {
                assert_eq!(cluster.nodes[&id].1[shard].query(|it| it.sum), Ok(sum));
            }
        }
    }
}

#[test]
fn a_group_without_a_state_bears_no_object() {
    let (mut builders, _) = founders(1, FabricChoice::Shm);
    let groups = [GroupConfig::new("plain"), GroupConfig::new("fast").guarantee(Guarantee::Fifo).state(true)];
    let builder = groups.into_iter().fold(builders.remove(0), NodeBuilder::group);
    let node = Arc::new(builder.start().unwrap());
    let on = |name| Replica::on(&node, &node.group(name).unwrap(), Counter::default(), Options::default());
    assert!(matches!(on("plain"), Err(ReplicaError::Stateless(name)) if name == "plain"));
    assert!(matches!(on("fast"), Err(ReplicaError::Unordered)));
}

// A replica whose node gives its place in the shard away, and lives: nobody waits there in vain.
#[test]
fn who_waits_where_a_shard_moves_away_is_told() {
    let (builders, addresses) = founders(2, FabricChoice::Shm);
    let group = || GroupConfig::new("counters").sharded(1, 2).state(true).ring_bytes(1 << 14);
    let start = |(id, builder, domain): (u32, NodeBuilder, &str)| {
        let domain = Domain::new(domain).unwrap();
        let node = Arc::new(builder.domain(domain).group(group()).start().unwrap());
        let shard = node.group("counters").unwrap();
        let object = Replica::on(&node, &shard, Counter::default(), Options::default()).unwrap();
        (id, object)
    };
    let mut objects: Vec<_> = (1..).zip(builders).map(|(id, builder)| start((id, builder, "a"))).collect();
    assert_eq!(objects[0].1.update(&1), Ok(1));
    while !objects[1].1.is_member() {
        thread::yield_now(); // it has not been told of the first view yet
    }
    let waiting: Vec<_> = thread::scope(|scope| {
        let waits = |(id, object): &(u32, Replica<Counter>)| {
            let (id, object) = (*id, object);
            // Whoever stays sees the sum in time; whoever moves must not wait for it.
            (id, object.wait_for(|it| (it.sum >= 10).then_some(it.sum)))
        };
        let handles: Vec<_> = objects.iter().map(|it| scope.spawn(move || waits(it))).collect();
        let joiner = node(3, FabricChoice::Shm).join(addresses[0]);
        let joiner = start((3, joiner, "b"));
        joiner.1.wait_for(|it| (it.sum >= 1).then_some(())).ok();
        while !joiner.1.is_member() {
            thread::yield_now();
        }
        joiner.1.update(&9).unwrap();
        let told = handles.into_iter().map(|it| it.join().unwrap()).collect();
        drop(joiner);
        told
    });
    let moved: Vec<_> = waiting.iter().filter(|(_, told)| *told == Err(QueryError::NotMember)).collect();
    let stayed: Vec<_> = waiting.iter().filter(|(_, told)| *told == Ok(10)).collect();
    assert_eq!((moved.len(), stayed.len()), (1, 1), "{waiting:?}");
    objects.clear();
}

#[test]
fn digests_that_could_be_mistaken_are_refused() {
    let (mut builders, _) = founders(1, FabricChoice::Shm);
    let builder = builders.remove(0).ring_bytes(64 << 20);
    let refused = Replica::start_with(builder, Counter::default(), Options::default().digest_every(16));
    assert!(matches!(refused, Err(ReplicaError::Digests { every: 16, least: 129, .. })), "{refused:?}");
}
