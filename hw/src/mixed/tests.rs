//! What happens when the best kind doesn't do. The contract that all fabrics share is tested elsewhere (`tests/all/conformance`).

use std::time::{Duration, Instant};

use consort_dataplane::fabric::{ConnectError, Fabric, LinkDown, LinkEvent};
use consort_dataplane::names::{NodeId, PeerSet, Slot, Time};

use super::offer::Offers;
use super::{Kind, MixedError, MixedFabric, MixedOptions, PATIENCE};

const SEGMENT: usize = 1 << 16;
const WORDS: std::ops::Range<usize> = 4096..4104;
const RING: std::ops::Range<usize> = 8192..8200;
const SLOT: Slot = Slot(3);
const WITHIN: Duration = Duration::from_secs(60);

fn options() -> MixedOptions {
    MixedOptions { segment_bytes: SEGMENT, ..Default::default() }
}

fn fabric(node: u32, options: MixedOptions) -> MixedFabric {
    MixedFabric::new(NodeId(node), options).unwrap()
}

fn now() -> Time {
    use std::sync::OnceLock;
    static BEGUN: OnceLock<Instant> = OnceLock::new();
    Time(BEGUN.get_or_init(Instant::now).elapsed().as_nanos() as u64)
}

/// Polls both until `done`.
fn until(pair: &mut [MixedFabric; 2], what: &str, mut done: impl FnMut(&mut [MixedFabric; 2]) -> bool) {
    let begun = Instant::now();
    while !done(pair) {
        for fabric in pair.iter_mut() {
            fabric.poll(now());
        }
        assert!(begun.elapsed() < WITHIN, "in vain: {what}");
        std::thread::yield_now();
    }
}

fn link(pair: &mut [MixedFabric; 2], offers: &[Vec<u8>; 2]) {
    let [one, two] = pair;
    one.connect(SLOT, NodeId(2), &offers[1], WITHIN).unwrap();
    two.connect(SLOT, NodeId(1), &offers[0], WITHIN).unwrap();
}

fn both_up(pair: &mut [MixedFabric; 2]) {
    let mut up = [false; 2];
    until(pair, "the link is up", |pair| {
        for (fabric, up) in pair.iter_mut().zip(&mut up) {
            match fabric.poll_event() {
                None => {}
                Some(LinkEvent::Up(SLOT)) if !*up => *up = true,
                Some(other) => panic!("{other:?} where the link comes up"),
            }
        }
        up == [true; 2]
    });
}

/// The offer of a node that nobody can share memory with: where its socket was, nobody listens any more.
fn without_door(fabric: &MixedFabric) -> Vec<u8> {
    let gone = self::fabric(fabric.node.0, options());
    let Offers(mut parts) = fabric.mine();
    parts[0] = gone.mine().0.remove(0);
    assert_eq!(parts[0].0, Kind::Shm);
    drop(gone);
    Offers(parts).encode()
}

/// Who dials finds out at once, who doesn't is ready for the next; and what was published meanwhile comes (F1).
#[test]
fn a_link_that_can_not_take_the_best_takes_the_next() {
    let mut pair = [fabric(1, options()), fabric(2, options())];
    let offers = [pair[0].offer(), without_door(&pair[1])];
    link(&mut pair, &offers);
    for fabric in &mut pair {
        fabric.segment().store(RING.start, 7);
        fabric.publish_ring(RING, PeerSet::EMPTY.with(SLOT));
        fabric.segment().store(WORDS.start, 8);
        fabric.publish_words(WORDS, PeerSet::EMPTY.with(SLOT));
        fabric.flush();
    }
    both_up(&mut pair);
    for fabric in &mut pair {
        assert_eq!(fabric.carrier(SLOT), Some("tcp"));
        fabric.flush();
    }
    until(&mut pair, "what was published early has come", |pair| {
        pair.iter().all(|fabric| {
            let mirror = fabric.mirror(SLOT).unwrap();
            let vouched = mirror.load(WORDS.start) == 8;
            assert!(!vouched || mirror.load(RING.start) == 7, "a word came before what it vouches for");
            vouched
        })
    });
    // What carries it now is what breaks it.
    let [mut one, two] = pair;
    drop(two);
    let begun = Instant::now();
    let down = loop {
        one.poll(now());
        if let Some(event) = one.poll_event() {
            break event;
        }
        assert!(begun.elapsed() < WITHIN, "in vain: the link is down");
    };
    assert!(matches!(down, LinkEvent::Down(SLOT, LinkDown::Broken(_))), "{down:?}");
    one.fence(SLOT);
    assert_eq!(one.carrier(SLOT), None);
}

/// F5: one failure is none as long as there is something to try; the last tells of all.
#[test]
fn a_link_fails_when_nothing_is_left_to_try() {
    let mut one = fabric(1, options());
    let two = fabric(2, options());
    let offer = without_door(&two);
    drop(two);
    one.connect(SLOT, NodeId(2), &offer, WITHIN).unwrap();
    let begun = Instant::now();
    let down = loop {
        one.poll(now());
        match one.poll_event() {
            Some(LinkEvent::Down(SLOT, LinkDown::Failed(why))) => break why,
            None => {}
            other => panic!("{other:?}"),
        }
        assert!(begun.elapsed() < WITHIN, "in vain: the link fails");
    };
    assert!(down.contains("shm: ") && down.contains("tcp: "), "{down}");
    assert_eq!(one.poll_event(), None);
    one.connect(SLOT, NodeId(2), &fabric(2, options()).offer(), WITHIN).unwrap(); // it never was: its slot is free
}

#[test]
fn a_peer_that_lacks_a_kind_is_linked_by_another() {
    let mut pair = [fabric(1, options()), fabric(2, MixedOptions { shm: false, ..options() })];
    assert_eq!((pair[0].name(), pair[1].name()), ("shm+tcp", "tcp"));
    let offers = [pair[0].offer(), pair[1].offer()];
    link(&mut pair, &offers);
    both_up(&mut pair);
    assert_eq!(pair.map(|fabric| fabric.carrier(SLOT)), [Some("tcp"); 2]);
}

#[test]
fn who_has_nothing_in_common_is_told_so() {
    let mut one = fabric(1, MixedOptions { tcp: false, machine: Some(1), ..options() });
    let two = fabric(2, MixedOptions { tcp: false, machine: Some(2), ..options() });
    let refused = one.connect(SLOT, NodeId(2), &two.offer(), WITHIN).unwrap_err();
    assert!(matches!(&refused, ConnectError::Offer(why) if why.contains("this node has shm")), "{refused}");
    let none =
        MixedFabric::new(NodeId(1), MixedOptions { shm: false, tcp: false, verbs: false, ..options() });
    assert!(matches!(none, Err(MixedError::None(_))));
}

/// Who doesn't dial waits for the best, and is not kept from it by being ready for the next.
#[test]
fn a_late_dialler_gets_the_best_all_the_same() {
    let mut pair = [fabric(1, options()), fabric(2, options())];
    let offers = [pair[0].offer(), pair[1].offer()];
    let [one, two] = &mut pair;
    two.connect(SLOT, NodeId(1), &offers[0], WITHIN).unwrap();
    two.poll(now());
    let due = two.due().expect("it loses patience some time");
    assert!(due.since(now()) <= PATIENCE);
    two.poll(due);
    assert!(two.due().is_none() && two.ways[3].as_ref().is_some_and(|way| way.trying.count_ones() == 2));
    one.connect(SLOT, NodeId(2), &offers[1], WITHIN).unwrap();
    both_up(&mut pair);
    assert_eq!(pair.each_ref().map(|fabric| fabric.carrier(SLOT)), [Some("shm"); 2]);
    assert_eq!(pair[1].ways[3].as_ref().map(|way| way.trying), Some(0), "the other attempt is over");
}

/// F3: whatever it sleeps over, and whatever it slept over before.
#[test]
fn the_doorbell_finds_the_owner_where_it_sleeps() {
    let mut pair = [fabric(1, options()), fabric(2, MixedOptions { shm: false, ..options() })];
    let offers = [pair[0].offer(), pair[1].offer()];
    link(&mut pair, &offers);
    both_up(&mut pair);
    let begun = Instant::now();
    for round in 0..10 {
        for fabric in &mut pair {
            fabric.poll(now());
            let bell = fabric.doorbell();
            fabric.wait(now(), now().plus(WITHIN), &mut || {
                bell.ring();
                true
            });
        }
        assert!(begun.elapsed() < WITHIN, "slept over a ring in round {round}");
        if round == 5 {
            pair[0].fence(SLOT); // from here on it has no links, and sleeps over shared memory
        }
    }
}
