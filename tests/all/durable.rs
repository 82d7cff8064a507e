//! Durable groups (P1, P2) with real nodes and real directories.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;

use consort::log::{Condition, Directory, LogKind, Scan, Stamp, scan_each};
use consort::object::{Context, Replica, Snapshot, StateMachine};
use consort::{Event, FabricChoice, Group, GroupConfig, Guarantee, Node, NodeBuilder};

/// What a log or an application has of a message.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Had {
    view: u64,
    seq: u64,
    sender: u32,
    stamp: u64,
    payload: Vec<u8>,
}

fn founders(place: &Path, count: u32) -> Vec<Node> {
    builders(place, count).map(|builder| builder.start().unwrap()).collect()
}

fn builders(place: &Path, count: u32) -> impl Iterator<Item = NodeBuilder> {
    let listeners: Vec<_> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let addresses: Vec<SocketAddr> =
        listeners.iter().map(|listener| listener.local_addr().unwrap()).collect();
    listeners.into_iter().zip(1..).map(move |(listener, id)| {
        let builder = NodeBuilder::new(id)
            .listener(listener)
            .fabric(FabricChoice::Shm)
            .guarantee(Guarantee::Durable)
            .ring_bytes(1 << 16)
            .data(place.join(id.to_string()));
        let others = addresses.iter().zip(1..).filter(|(_, other)| *other != id);
        others.fold(builder, |builder, (address, other)| builder.peer(other, *address))
    })
}

/// The messages in a node's log, which is sound.
fn logged(place: &Path, id: u32) -> Vec<Had> {
    let mut had = Vec::new();
    let mut disk = Directory::look(&place.join(id.to_string()).join("shard-0")).unwrap();
    let scan = scan_each(&mut disk, &mut |header, payload| {
        if header.kind == LogKind::Message {
            let (view, seq, sender, Stamp(stamp)) =
                (header.view.0, header.seq.0, header.sender.0, header.stamp);
            had.push(Had { view, seq, sender, stamp, payload: payload.to_vec() });
        }
    });
    assert_eq!(scan.unwrap().condition, Condition::Sound, "node {id}");
    had
}

/// Takes events until so many messages have come in all.
fn take(node: &Node, had: &mut Vec<Had>, count: usize) {
    while had.len() < count {
        if let Event::Message(message) = node.recv().unwrap() {
            let (view, seq, sender) = (message.view.0, message.seq.0, message.sender.0);
            had.push(Had { view, seq, sender, stamp: message.stamp, payload: message.to_vec() });
        }
    }
}

fn message(from: u32, number: u32) -> Vec<u8> {
    let len = if number.is_multiple_of(7) { 10_000 } else { number as usize * 13 % 300 };
    let mut bytes = format!("{from}:{number}:").into_bytes();
    bytes.resize(bytes.len() + len, number as u8);
    bytes
}

const EACH: u32 = 150;

// P1, P2
#[test]
fn what_is_delivered_is_in_every_log_the_same() {
    let place = tempfile::tempdir().unwrap();
    let nodes = founders(place.path(), 3);
    let total = 3 * EACH as usize;
    let had: Vec<Vec<Had>> = std::thread::scope(|scope| {
        let taking: Vec<_> = nodes
            .iter()
            .map(|node| {
                scope.spawn(|| {
                    let mut had = Vec::new();
                    take(node, &mut had, total);
                    had
                })
            })
            .collect();
        for node in &nodes {
            scope.spawn(|| {
                let (sender, id) = (node.sender(), node.id().0);
                let outcomes: Vec<_> =
                    (0..EACH).map(|number| sender.send_tracked(&message(id, number)).unwrap()).collect();
                for (outcome, number) in outcomes.into_iter().zip(0..) {
                    let delivered = outcome.wait().unwrap();
                    // Durable: it is in the files by now, at everyone.
                    if number % 50 == 0 {
                        for other in 1..=3 {
                            let is_it = |had: &Had| {
                                (had.view, had.seq) == (delivered.view.0, delivered.seq.0)
                                    && had.payload == message(id, number)
                            };
                            assert!(
                                in_the_midst(place.path(), other).iter().any(is_it),
                                "{id}:{number} at {other}"
                            );
                        }
                    }
                }
            });
        }
        taking.into_iter().map(|taking| taking.join().unwrap()).collect()
    });
    assert!(had.iter().all(|other| *other == had[0]));
    assert!(had[0].windows(2).all(|pair| pair[0].stamp < pair[1].stamp));
    for node in nodes {
        node.close(Duration::from_secs(60)).unwrap();
    }
    for id in 1..=3 {
        assert_eq!(logged(place.path(), id), had[0], "node {id}");
    }
}

/// What is in a log that is being written.
fn in_the_midst(place: &Path, id: u32) -> Vec<Had> {
    let mut had = Vec::new();
    let mut disk = Directory::look(&place.join(id.to_string()).join("shard-0")).unwrap();
    let scan = scan_each(&mut disk, &mut |header, payload| {
        let (view, seq, sender, Stamp(stamp)) = (header.view.0, header.seq.0, header.sender.0, header.stamp);
        had.push(Had { view, seq, sender, stamp, payload: payload.to_vec() });
    });
    scan.unwrap();
    had
}

// V4, P2: a member dies; the others go on, and what they deliver is in their logs.
#[test]
fn a_durable_group_goes_on_without_a_member() {
    let place = tempfile::tempdir().unwrap();
    let mut nodes = founders(place.path(), 3);
    let dead = nodes.pop().unwrap();
    let mut had: Vec<Vec<Had>> = vec![Vec::new(); 2];
    let (mut outcomes, mut lost) = (Vec::new(), Vec::new());
    for number in 0..40 {
        outcomes.push(send(&nodes, &mut had, Some(&dead), &nodes[0], &message(1, number)));
        lost.push(send(&nodes, &mut had, Some(&dead), &dead, &message(3, number)));
    }
    drop((dead, lost));
    for number in 40..80 {
        outcomes.push(send(&nodes, &mut had, None, &nodes[1], &message(2, number)));
    }
    // All of node 1's and node 2's come; of the dead one's, a beginning.
    let is_all = |had: &[Had]| had.iter().filter(|had| had.sender != 3).count() == 80;
    for (had, node) in had.iter_mut().zip(&nodes) {
        while !is_all(had) {
            let more = had.len() + 1;
            take(node, had, more);
        }
    }
    let views: Vec<_> = outcomes.into_iter().map(|outcome| outcome.wait().unwrap().view.0).collect();
    assert!(views.iter().all(|view| (1..=2).contains(view)), "{views:?}");
    assert_eq!(had[0], had[1]);
    let status = nodes[0].status();
    assert_eq!(status.view.unwrap().members.len(), 2);
    for node in nodes {
        node.close(Duration::from_secs(60)).unwrap();
    }
    for id in 1..=2 {
        assert_eq!(logged(place.path(), id), had[0], "node {id}");
    }
    let third = logged(place.path(), 3);
    assert_eq!(third[..], had[0][..third.len()], "what the dead one has is a beginning");
}

/// Sends, and takes what comes meanwhile: what nobody takes keeps its room.
fn send(
    nodes: &[Node],
    had: &mut [Vec<Had>],
    other: Option<&Node>,
    from: &Node,
    bytes: &[u8],
) -> consort::Outcome {
    loop {
        had.iter_mut().zip(nodes).for_each(|(had, node)| drain(node, had));
        if let Some(other) = other {
            drain(other, &mut Vec::new());
        }
        match from.sender().try_reserve(bytes.len()) {
            Ok(mut room) => {
                room.copy_from_slice(bytes);
                return room.send_tracked();
            }
            Err(_) => std::thread::yield_now(), // full, or not begun, or changing
        }
    }
}

fn drain(node: &Node, had: &mut Vec<Had>) {
    while let Some(event) = node.try_recv().unwrap() {
        if let Event::Message(message) = event {
            let (view, seq, sender) = (message.view.0, message.seq.0, message.sender.0);
            had.push(Had { view, seq, sender, stamp: message.stamp, payload: message.to_vec() });
        }
    }
}

// P3: all are lost at once and come again; the application is told everything once more, and then what is new.
#[test]
fn a_group_begins_again_with_what_it_had() {
    let place = tempfile::tempdir().unwrap();
    let mut before: Vec<Had> = Vec::new();
    for round in 0..3 {
        let nodes = founders(place.path(), 3);
        let mut had: Vec<Vec<Had>> = vec![Vec::new(); 3];
        let mut outcomes = Vec::new();
        for number in 0..20 {
            for node in &nodes {
                outcomes.push(send(&nodes, &mut had, None, node, &message(node.id().0 * 10 + round, number)));
            }
        }
        let total = before.len() + 60;
        for (had, node) in had.iter_mut().zip(&nodes) {
            take(node, had, total);
        }
        assert!(outcomes.into_iter().all(|outcome| outcome.wait().is_ok()));
        for had in &had {
            assert_eq!(had[..before.len()], before[..], "round {round}: the same once more, stamps and all");
            assert!(had.windows(2).all(|pair| pair[0].stamp < pair[1].stamp));
        }
        assert!(had.iter().all(|other| *other == had[0]));
        // Without a word.
        drop(nodes);
        before = had.swap_remove(0);
    }
    for id in 1..=3 {
        assert_eq!(logged(place.path(), id), before, "node {id}");
    }
    // One of them gets an empty directory: it counts for nothing, and is made whole. It is the one that went first: the newest view may be
    // one of the two others, and needs both.
    std::fs::remove_dir_all(place.path().join("1")).unwrap();
    let nodes = founders(place.path(), 3);
    let mut again = Vec::new();
    take(&nodes[0], &mut again, before.len());
    assert_eq!(again, before);
}

// P3: a blank log is no vote, and who waits says for whom.
#[test]
fn a_majority_of_blank_logs_begins_nothing() {
    let place = tempfile::tempdir().unwrap();
    let nodes = founders(place.path(), 3);
    let mut had: Vec<Vec<Had>> = vec![Vec::new(); 3];
    send(&nodes, &mut had, None, &nodes[0], b"kept").wait().unwrap();
    drop(nodes);
    for blank in ["1", "2", "3"] {
        let last = logged(place.path(), 3);
        if blank != "3" {
            std::fs::remove_dir_all(place.path().join(blank)).unwrap();
        }
        assert!(blank == "3" || last.len() == 1);
    }
    let nodes = founders(place.path(), 3);
    loop {
        match nodes[2].recv().unwrap() {
            Event::Waiting { for_whom } if !for_whom.is_empty() => {
                let words: Vec<_> = for_whom.iter().map(|absent| absent.why.clone()).collect();
                if words.iter().any(|why| why.contains("its disk is blank") && why.contains("begins again")) {
                    break;
                }
            }
            Event::View(view) => panic!("{view}"),
            _ => {}
        }
    }
}

#[test]
fn a_durable_group_needs_a_directory_of_its_own() {
    let error = NodeBuilder::new(1).guarantee(Guarantee::Durable).start().map(drop).unwrap_err();
    assert!(error.to_string().contains("`data`"), "{error}");
    let place = tempfile::tempdir().unwrap();
    let start = |id| NodeBuilder::new(id).guarantee(Guarantee::Durable).data(place.path()).start();
    let first = start(1).unwrap();
    let error = start(1).map(drop).unwrap_err();
    assert!(error.to_string().contains("in use by another process"), "{error}");
    drop(first);
    let error = start(2).map(drop).unwrap_err();
    assert!(error.to_string().contains("node 1 of cluster"), "{error}");
}

// P3: what nobody had before is fetched from nobody.
#[test]
fn a_durable_group_of_nodes_that_come_later_begins_with_nothing() {
    let place = tempfile::tempdir().unwrap();
    let listeners: Vec<_> = (0..4).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let addresses: Vec<SocketAddr> =
        listeners.iter().map(|listener| listener.local_addr().unwrap()).collect();
    let start = |(listener, id): (TcpListener, u32)| {
        let builder = NodeBuilder::new(id)
            .listener(listener)
            .fabric(FabricChoice::Shm)
            .group(GroupConfig::new("late").nodes([3, 4]).guarantee(Guarantee::Durable).ring_bytes(1 << 16))
            .data(place.path().join(id.to_string()));
        let builder = match id {
            1 => builder.peer(2, addresses[1]),
            2 => builder.peer(1, addresses[0]),
            _ => builder.join(addresses[0]),
        };
        builder.start().unwrap()
    };
    let mut nodes = listeners.into_iter().zip(1..);
    let founders: Vec<_> = nodes.by_ref().take(2).map(start).collect();
    let until_told = |group: &Group, payload: &[u8]| loop {
        if let Event::Message(message) = group.recv().unwrap() {
            assert_eq!(&message[..], payload);
            return message.stamp;
        }
    };
    let third = start(nodes.next().unwrap());
    let late = third.group("late").unwrap();
    while !matches!(late.recv().unwrap(), Event::View(_)) {}
    late.sender().send(b"first").unwrap();
    let stamp = until_told(&late, b"first");
    let fourth = start(nodes.next().unwrap());
    let also = fourth.group("late").unwrap();
    assert_eq!(until_told(&also, b"first"), stamp, "fetched from the third");
    also.sender().send(b"second").unwrap();
    assert_eq!(until_told(&also, b"second"), until_told(&late, b"second"));
    drop(founders);
}

/// The last bytes that were written under each number, and how many updates there were.
#[derive(Default)]
struct Register {
    written: BTreeMap<u64, Vec<u8>>,
    updates: u64,
}

impl StateMachine for Register {
    type Update = (u64, Vec<u8>);
    type Reply = u64;

    fn apply(&mut self, _: &Context, (key, bytes): (u64, Vec<u8>)) -> u64 {
        self.written.insert(key, bytes);
        self.updates += 1;
        self.updates
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot::of(&(&self.written, self.updates))
    }

    fn restore(&mut self, from: &mut dyn Read) -> io::Result<()> {
        (self.written, self.updates) = Snapshot::read(from)?;
        Ok(())
    }
}

// P4: a log is bounded by snapshots, and the object is what it was: after the loss of all, and at a member that has lost its disk.
#[test]
fn a_replicated_object_comes_back_from_a_snapshot_and_what_follows() {
    const EVERY: u64 = 1 << 20;
    let place = tempfile::tempdir().unwrap();
    let start = || -> Vec<Replica<Register>> {
        let replica =
            |builder: NodeBuilder| Replica::start(builder.snapshot_every(EVERY), Register::default());
        builders(place.path(), 3).map(|builder| replica(builder).unwrap()).collect()
    };
    let bytes = |number: u64| vec![number as u8; 8 << 10];
    let logs = || (1..=3).map(|id| scan_log(place.path(), id)).collect::<Vec<_>>();
    let mut done = 0;
    for life in 0..3 {
        let replicas = start();
        assert_eq!(replicas[0].query(|it| it.updates).unwrap(), done, "in life {life}");
        // Until every member has taken a snapshot, and the log is shorter for it; and a little more.
        let mut rest = 20;
        while rest > 0 {
            let all = (1..=3).all(|id| first(place.path(), id) > 1 + 400 * life);
            rest -= u64::from(all);
            done += 1;
            assert_eq!(replicas[done as usize % 3].update(&(done % 7, bytes(done))).unwrap(), done);
            assert!(
                done < 20_000,
                "no snapshot bounds the log of one of {:?} in life {life}",
                [1, 2, 3].map(|id| first(place.path(), id))
            );
        }
        for replica in &replicas {
            assert_eq!(
                replica.query(|it| (it.updates, it.written.clone())).unwrap(),
                (done, (0..7).map(|key| (key, bytes(done - (done + 7 - key) % 7))).collect())
            );
        }
        drop(replicas);
        for scan in logs() {
            assert_eq!(scan.condition, Condition::Sound);
            let used: u64 = scan.segments.iter().map(|segment| segment.end).sum();
            assert!(used < 4 * EVERY, "{used} bytes in a log of {done} updates of 8 KiB");
        }
        if life == 1 {
            std::fs::remove_dir_all(place.path().join("2")).unwrap();
        }
    }
}

fn scan_log(place: &Path, id: u32) -> Scan {
    let mut disk = Directory::look(&place.join(id.to_string()).join("shard-0")).unwrap();
    scan_each(&mut disk, &mut |_, _| {}).unwrap()
}

/// The first record that is in the log of a node that runs, as the names of its files tell.
fn first(place: &Path, id: u32) -> u64 {
    let files = std::fs::read_dir(place.join(id.to_string()).join("shard-0")).unwrap();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    let snapshots = names.filter_map(|name| u64::from_str_radix(name.strip_suffix(".snap")?, 16).ok());
    snapshots.max().map_or(1, |index| index + 1)
}

// P3: what a log tells again was answered by a former life.
#[test]
fn calls_that_are_told_again_are_answered_by_nobody() {
    const CALLS: u64 = 3000;
    let place = tempfile::tempdir().unwrap();
    let start = || -> Vec<Replica<Register>> {
        let replica = |builder: NodeBuilder| Replica::start(builder, Register::default());
        builders(place.path(), 3).map(|builder| replica(builder).unwrap()).collect()
    };
    let replicas = start();
    // So many that those who are told them again come to send meanwhile.
    let asked: Vec<_> =
        (1..=CALLS).map(|number| replicas[0].submit_all(&(number % 7, vec![1])).unwrap()).collect();
    for (number, asked) in (1..).zip(asked) {
        let answered = asked.wait().unwrap();
        assert!(answered.lost.is_empty());
        assert!(answered.replies.iter().map(|(_, updates)| *updates).eq([number; 3]), "{answered:?}");
    }
    drop(replicas);
    let messages = || (1..=3).map(|id| scan_log(place.path(), id).messages.0).max().unwrap();
    let before = messages();
    let replicas = start();
    assert_eq!(replicas[0].query(|it| it.updates).unwrap(), CALLS);
    for replica in &replicas {
        replica.update(&(7, vec![2])).unwrap();
    }
    // Whoever would answer to what was told again has done so before this.
    assert_eq!(replicas[1].update_all(&(8, vec![3])).unwrap().replies.len(), 3);
    drop(replicas);
    assert_eq!(messages(), before + 3 + 1 + 2, "three updates, a call, and two answers to that");
}
