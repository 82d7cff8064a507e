//! State transfer (V7) with real nodes: a replicated map, and a joiner that comes to have it while the others go on.
//!
//! `STATE_MIB=1024 cargo test --release -p consort-tests --test all a_joiner_has -- --nocapture` tells how long a gigabyte takes, and how
//! long the others' longest gap between two deliveries was, beside that of the same time before.

use std::collections::BTreeMap;
use std::io::{Cursor, Read};
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use consort::{Event, FabricChoice, Node, NodeBuilder, Restore};

/// The state: how often each key was written, with a block of bytes that never changes and makes it large.
struct Map {
    block: Arc<Vec<u8>>,
    counts: BTreeMap<u64, u64>,
    applied: u64,
}

impl Map {
    fn apply(&mut self, message: &[u8]) {
        let key = u64::from_le_bytes(message[..8].try_into().unwrap());
        *self.counts.entry(key).or_default() += 1;
        self.applied += 1;
    }

    /// Cheap where it is taken: the block is shared, and the counts are few.
    fn snapshot(&self) -> impl Read + Send + use<> {
        let words = [self.applied, self.block.len() as u64, self.counts.len() as u64].into_iter();
        let words = words.chain(self.counts.iter().flat_map(|(key, count)| [*key, *count]));
        let head: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        Cursor::new(head).chain(Block { block: self.block.clone(), at: 0 })
    }

    fn restore(mut from: Restore) -> Self {
        let word = |from: &mut Restore| {
            let mut bytes = [0; 8];
            from.read_exact(&mut bytes).unwrap();
            u64::from_le_bytes(bytes)
        };
        let (applied, len, entries) = (word(&mut from), word(&mut from), word(&mut from));
        let counts = (0..entries).map(|_| (word(&mut from), word(&mut from))).collect();
        let mut block = Vec::with_capacity(len as usize);
        from.read_to_end(&mut block).unwrap();
        assert_eq!(block.len() as u64, len);
        from.finish();
        Self { block: Arc::new(block), counts, applied }
    }
}

struct Block {
    block: Arc<Vec<u8>>,
    at: usize,
}

impl Read for Block {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let len = buffer.len().min(self.block.len() - self.at);
        buffer[..len].copy_from_slice(&self.block[self.at..self.at + len]);
        self.at += len;
        Ok(len)
    }
}

/// What a member had in the end, and its longest gap between two deliveries before somebody joined, and since.
struct Outcome {
    map: Map,
    gaps: [Duration; 2],
}

/// Takes events until `messages` were applied, in all.
fn member(
    node: &Node,
    mut map: Map,
    messages: u64,
    joined: &AtomicBool,
    restored: &mpsc::Sender<Instant>,
) -> Outcome {
    let mut gaps = [Duration::ZERO; 2];
    let mut last = Instant::now();
    let mut is_new = map.block.is_empty();
    while map.applied < messages {
        match node.recv().unwrap() {
            Event::Message(message) => {
                map.apply(&message);
                let gap = &mut gaps[usize::from(joined.load(Ordering::Relaxed))];
                *gap = (*gap).max(last.elapsed());
                last = Instant::now();
            }
            Event::Snapshot(request) => request.give(map.snapshot()),
            Event::Restore(state) => map = Map::restore(state),
            Event::View(view) if is_new && view.members.iter().any(|member| member.node.0 == 4) => {
                is_new = false;
                restored.send(Instant::now()).unwrap();
            }
            _ => {}
        }
    }
    Outcome { map, gaps }
}

fn a_joiner_has_the_state(fabric: FabricChoice) {
    let mib: usize = std::env::var("STATE_MIB").ok().map_or(1, |mib| mib.parse().unwrap());
    let block: Arc<Vec<u8>> = Arc::new((0..mib << 20).map(|at| (at / 7) as u8).collect());
    let listeners: Vec<_> = (0..4).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let addresses: Vec<SocketAddr> = listeners.iter().map(|it| it.local_addr().unwrap()).collect();
    let build = |id: u32, listener| {
        let builder = NodeBuilder::new(id).listener(listener).fabric(fabric).state(true).ring_bytes(1 << 18);
        builder.silence(Duration::from_secs(5)).start_within(Duration::from_secs(60))
    };
    let mut listeners = listeners.into_iter();
    let founders: Vec<_> = (1..=3u32)
        .map(|id| {
            let others = (1..=3u32).filter(|other| *other != id);
            let builder = build(id, listeners.next().unwrap());
            others.fold(builder, |it, other| it.peer(other, addresses[other as usize - 1])).start().unwrap()
        })
        .collect();
    let joined = AtomicBool::new(false);
    let (restored, is_restored) = mpsc::channel();
    let most = 40_000 + mib as u64 * 400;
    let enough = AtomicBool::new(false);
    let sender = founders[0].sender();
    let (outcomes, took) = thread::scope(|scope| {
        let (joined, enough) = (&joined, &enough);
        // Every message is written by one member, at a steady pace, until the joiner is in and a while longer.
        let load = scope.spawn(move || {
            for number in 0..most {
                sender.send(&(number % 97).to_le_bytes()).unwrap();
                if number % 20 == 0 {
                    thread::sleep(Duration::from_millis(if enough.load(Ordering::Relaxed) { 0 } else { 1 }));
                }
            }
        });
        let (tx, block) = (&restored, &block);
        let members: Vec<_> = founders
            .iter()
            .map(|node| {
                let map = Map { block: block.clone(), counts: BTreeMap::new(), applied: 0 };
                scope.spawn(move || member(node, map, most, joined, tx))
            })
            .collect();
        // In the middle of it.
        while founders[1].stats().delivered < 5_000 {
            thread::yield_now();
        }
        joined.store(true, Ordering::Relaxed);
        let begun = Instant::now();
        let fourth = build(4, listeners.next().unwrap()).join(addresses[1]).start().unwrap();
        let joiner = scope.spawn(move || {
            let map = Map { block: Arc::default(), counts: BTreeMap::new(), applied: 0 };
            let outcome = member(&fourth, map, most, joined, tx);
            (outcome, fourth)
        });
        let took = is_restored.recv_timeout(Duration::from_secs(120)).unwrap().duration_since(begun);
        enough.store(true, Ordering::Relaxed);
        load.join().unwrap();
        let mut outcomes: Vec<_> = members.into_iter().map(|it| it.join().unwrap()).collect();
        let (last, _fourth) = joiner.join().unwrap();
        outcomes.push(last);
        (outcomes, took)
    });
    for outcome in &outcomes {
        assert_eq!(outcome.map.applied, most);
        assert!(
            outcome.map.counts == outcomes[0].map.counts && outcome.map.block == block,
            "the states differ"
        );
    }
    let longest = |at: usize| outcomes[..3].iter().map(|outcome| outcome.gaps[at]).max().unwrap();
    println!(
        "{fabric}: {mib} MiB and a view in {took:.1?}, {:.0} MiB/s; the members' longest gap {:.1?}, before {:.1?}",
        mib as f64 / took.as_secs_f64(),
        longest(1),
        longest(0),
    );
}

#[test]
fn a_joiner_has_the_state_over_shared_memory() {
    a_joiner_has_the_state(FabricChoice::Shm);
}

#[test]
fn a_joiner_has_the_state_over_tcp() {
    a_joiner_has_the_state(FabricChoice::Tcp);
}
