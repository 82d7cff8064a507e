//! A thread for each node, on the clock of the machine: order under load, and sleep (F3).
//!
//! Those who sleep do so for a minute; no test waits for that. A wake-up that is lost is a minute's sleep, and fails the test.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use consort_dataplane::fabric::{Fabric, LinkDown, LinkEvent};
use consort_dataplane::memory::WORD;
use consort_dataplane::names::PeerSet;
use consort_dataplane::sim::Choices;

use super::traffic::{Reader, SEGMENT, Writer, check, count, picture};
use super::{HANG, LINK_WITHIN, RealRig, id, linked, others, real_now, settle, slot};

/// The word that the token tests pass on.
const TOKEN: usize = 4096;

/// Turns a hang into a failure.
struct Patience(Cell<Instant>);

impl Patience {
    fn new() -> Self {
        Self(Cell::new(Instant::now()))
    }

    /// Something came: however slow the machine is, it doesn't hang.
    fn renew(&self) {
        self.0.set(Instant::now());
    }

    fn check(&self, what: &str) {
        assert!(self.0.get().elapsed() < HANG, "in vain: {what}");
    }

    /// Sleeps as long as nothing wakes it; to be roused before a minute is over.
    fn sleep(&self, fabric: &mut impl Fabric, what: &str) {
        let now = real_now();
        fabric.wait(now, now.plus(HANG), &mut || true);
        self.check(what);
    }
}

/// Runs each node in a thread; the first panic is the test's.
fn together<F: Fabric + Send + 'static>(
    fabrics: Vec<F>,
    node: impl Fn(usize, F) + Send + Sync + Copy + 'static,
) {
    let threads: Vec<_> = fabrics
        .into_iter()
        .enumerate()
        .map(|(at, fabric)| std::thread::spawn(move || node(at, fabric)))
        .collect();
    for thread in threads {
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    }
}

fn dawdle(choices: &mut Choices) {
    for _ in 0..choices.below(300) {
        std::hint::spin_loop();
    }
}

/// F1, F3: thousands of records to two readers; all of them sleep or stay awake by the dice when there is nothing to do.
pub(super) fn publishes_arrive_in_order_under_load<R: RealRig>(seed: u64) {
    const RECORDS: u64 = 20_000;
    let fabrics = linked(&mut R::new(seed), 3, SEGMENT);
    together(fabrics, move |at, mut fabric| {
        let patience = Patience::new();
        let mut choices = Choices::new(seed + at as u64);
        let mut writer = Writer::new(seed, others(0, 3));
        let mut reader = Reader::new(seed);
        loop {
            fabric.poll(real_now());
            let mut did = false;
            if at == 0 {
                while writer.written < RECORDS && writer.has_room(&fabric) {
                    writer.write(&mut fabric);
                    did = true;
                    if choices.chance(40) {
                        break;
                    }
                }
                fabric.flush();
                if writer.written == RECORDS && writer.is_acknowledged(&fabric) {
                    return fabric.close(HANG);
                }
            } else {
                let mirror = fabric.mirror(slot(0)).unwrap().clone();
                if reader.read(&mirror) {
                    did = true;
                    reader.acknowledge(&mut fabric, PeerSet::EMPTY.with(slot(0)));
                    fabric.flush();
                }
                if reader.read == RECORDS {
                    return fabric.close(HANG);
                }
            }
            dawdle(&mut choices);
            if did {
                patience.renew();
            }
            if !did && choices.chance(50) {
                patience.sleep(&mut fabric, "records and acknowledgements");
            }
            patience.check("records and acknowledgements");
        }
    });
}

/// F4 with F1: a fence in the middle of full flow leaves a mirror in which whatever is vouched for is there.
pub(super) fn fence_in_full_flow<R: RealRig>(seed: u64) {
    for round in 0..40 {
        let seed = seed.wrapping_add(round);
        let mut choices = Choices::new(seed);
        let mut fabrics = linked(&mut R::new(seed), 2, SEGMENT);
        let mut reading = fabrics.pop().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let turns = Arc::new(AtomicU64::new(0));
        let writing = std::thread::spawn({
            let (stop, turns) = (stop.clone(), turns.clone());
            let mut fabric = fabrics.pop().unwrap();
            move || {
                let mut writer = Writer::new(seed, PeerSet::EMPTY.with(slot(1)));
                while !stop.load(Ordering::Relaxed) {
                    fabric.poll(real_now());
                    if writer.has_room(&fabric) {
                        writer.write(&mut fabric);
                    }
                    writer.pulse(&mut fabric);
                    fabric.flush();
                    turns.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        let patience = Patience::new();
        let mut reader = Reader::new(seed);
        let enough = choices.below(300);
        while reader.read < enough {
            reading.poll(real_now());
            let mirror = reading.mirror(slot(0)).unwrap().clone();
            if reader.read(&mirror) {
                reader.acknowledge(&mut reading, PeerSet::EMPTY.with(slot(0)));
                reading.flush();
            } else {
                std::thread::yield_now();
            }
            patience.check("records before the fence");
        }
        dawdle(&mut choices);
        let mirror = reading.mirror(slot(0)).unwrap().clone();
        reading.fence(slot(0));
        let frozen = picture(&mirror);
        assert!(count(&mirror) >= reader.read, "a fence loses nothing that was there");
        for record in reader.read..count(&mirror) {
            check(seed, record, &mirror);
        }
        // The writer goes on for a while, and so does the reader's fabric.
        let later = turns.load(Ordering::Relaxed) + 50;
        while turns.load(Ordering::Relaxed) < later {
            reading.poll(real_now());
            patience.check("turns of the writer");
            std::thread::yield_now();
        }
        stop.store(true, Ordering::Relaxed);
        writing.join().unwrap();
        settle(&mut R::new(seed), std::slice::from_mut(&mut reading));
        assert!(picture(&mirror) == frozen, "the mirror changed after the fence (seed {seed})");
    }
}

/// F3: a token between two who sleep whenever they don't hold it.
pub(super) fn two_sleepers_wake_each_other<R: RealRig>(seed: u64) {
    token_among_sleepers::<R>(seed, 2, 10_000);
}

/// F3: among three, so that each sleeps on several peers.
pub(super) fn three_sleepers_wake_each_other<R: RealRig>(seed: u64) {
    token_among_sleepers::<R>(seed, 3, 5_000);
}

fn token_among_sleepers<R: RealRig>(seed: u64, nodes: usize, rounds: u64) {
    let fabrics = linked(&mut R::new(seed), nodes, SEGMENT);
    together(fabrics, move |at, mut fabric| {
        let patience = Patience::new();
        let mut choices = Choices::new(seed + at as u64);
        let previous = slot((at + nodes - 1) % nodes);
        let next = PeerSet::EMPTY.with(slot((at + 1) % nodes));
        for round in 1..=rounds {
            // Who comes after node 0 waits for this round's token, node 0 for the last round's.
            let expected = if at == 0 { round - 1 } else { round };
            patience.renew();
            loop {
                fabric.poll(real_now());
                if fabric.mirror(previous).unwrap().load(TOKEN) >= expected {
                    break;
                }
                dawdle(&mut choices);
                patience.sleep(&mut fabric, "the token");
            }
            fabric.segment().store(TOKEN, round);
            fabric.publish_words(TOKEN..TOKEN + WORD, next);
            dawdle(&mut choices);
            fabric.flush();
        }
        // Node 0 stays until the token is back: it may be what keeps the others' links up.
        while at == 0 && fabric.mirror(previous).unwrap().load(TOKEN) < rounds {
            fabric.poll(real_now());
            patience.check("the last token");
            std::thread::yield_now();
        }
        fabric.close(HANG);
    });
}

/// F3: another thread has left work and rings.
pub(super) fn the_doorbell_wakes<R: RealRig>(seed: u64) {
    const ROUNDS: u64 = 10_000;
    let mut fabric = linked(&mut R::new(seed), 2, SEGMENT).remove(0);
    let bell = fabric.doorbell();
    let (work, done) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let ringing = std::thread::spawn({
        let (work, done) = (work.clone(), done.clone());
        let mut choices = Choices::new(seed);
        move || {
            let patience = Patience::new();
            for round in 1..=ROUNDS {
                patience.renew();
                while done.load(Ordering::Acquire) + 1 < round {
                    patience.check("the sleeper to wake");
                    std::thread::yield_now();
                }
                dawdle(&mut choices);
                work.store(round, Ordering::Release);
                bell.ring();
            }
        }
    });
    let patience = Patience::new();
    let mut choices = Choices::new(!seed);
    for round in 1..=ROUNDS {
        patience.renew();
        while work.load(Ordering::Acquire) < round {
            fabric.poll(real_now());
            while fabric.poll_event().is_some() {}
            dawdle(&mut choices);
            let now = real_now();
            fabric.wait(now, now.plus(HANG), &mut || work.load(Ordering::Acquire) < round);
            patience.check("the bell");
        }
        done.store(round, Ordering::Release);
    }
    ringing.join().unwrap();
}

/// F3: what was published after the last look, and before the sleep, is not slept over.
pub(super) fn what_came_before_the_sleep_ends_it<R: RealRig>(seed: u64) {
    let mut rig = R::new(seed);
    let mut fabrics = linked(&mut rig, 2, SEGMENT);
    let mut sleeping = fabrics.pop().unwrap();
    let mut awake = fabrics.pop().unwrap();
    let patience = Patience::new();
    for round in 1..=200 {
        sleeping.poll(real_now());
        awake.segment().store(TOKEN, round);
        awake.publish_words(TOKEN..TOKEN + WORD, PeerSet::EMPTY.with(slot(1)));
        awake.flush();
        // No look in between: the sleep itself must notice, and it is the poll after it that brings it in. Who published goes on
        // looking, as every owner does: what was under way when the sleeper looked is told of later, by a ring.
        let come = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let begun = Instant::now();
                while !come.load(Ordering::Relaxed) && begun.elapsed() < 2 * HANG {
                    awake.poll(real_now());
                    std::thread::yield_now();
                }
            });
            loop {
                patience.sleep(&mut sleeping, "what had been published");
                sleeping.poll(real_now());
                if sleeping.mirror(slot(0)).unwrap().load(TOKEN) == round {
                    break;
                }
            }
            come.store(true, Ordering::Relaxed);
        });
    }
}

/// F3: nor is what is published when the sleeper has looked for the last time: `idle` is that very moment.
pub(super) fn what_comes_after_the_last_look_ends_the_sleep<R: RealRig>(seed: u64) {
    let mut fabrics = linked(&mut R::new(seed), 2, SEGMENT);
    let mut sleeping = fabrics.pop().unwrap();
    let mut awake = fabrics.pop().unwrap();
    let patience = Patience::new();
    let (mut published, mut rounds) = (0, 0);
    while rounds < 200 {
        sleeping.poll(real_now());
        let before = published;
        let now = real_now();
        sleeping.wait(now, now.plus(HANG), &mut || {
            published += 1;
            awake.segment().store(TOKEN, published);
            awake.publish_words(TOKEN..TOKEN + WORD, PeerSet::EMPTY.with(slot(1)));
            awake.flush();
            true
        });
        patience.check("what was published in the last moment");
        rounds += u64::from(published > before);
        while sleeping.mirror(slot(0)).unwrap().load(TOKEN) < published {
            sleeping.poll(real_now());
            awake.poll(real_now());
            patience.check("what was published");
        }
    }
}

/// F3: nor a ring in that moment.
pub(super) fn a_ring_after_the_last_look_ends_the_sleep<R: RealRig>(seed: u64) {
    let mut fabric = linked(&mut R::new(seed), 2, SEGMENT).remove(0);
    let bell = fabric.doorbell();
    let patience = Patience::new();
    let mut rounds = 0;
    while rounds < 200 {
        fabric.poll(real_now());
        while fabric.poll_event().is_some() {}
        let now = real_now();
        fabric.wait(now, now.plus(HANG), &mut || {
            rounds += 1;
            bell.ring();
            true
        });
        patience.check("a bell rung in the last moment");
    }
}

/// F3: a sleep is over at its time, whatever happens; and one whose time is past is none.
pub(super) fn a_sleep_ends_at_its_time<R: RealRig>(seed: u64) {
    let mut fabrics = linked(&mut R::new(seed), 2, SEGMENT);
    let patience = Patience::new();
    let until = real_now().plus(Duration::from_millis(30));
    while real_now() < until {
        fabrics[0].poll(real_now());
        fabrics[0].wait(real_now(), until, &mut || true);
        patience.check("the end of a sleep of 30 ms");
    }
    fabrics[0].wait(real_now(), until, &mut || true);
    patience.check("the end of a sleep whose time is past");
}

/// F3: the last look before the sleep finds work.
pub(super) fn work_found_late_ends_the_sleep<R: RealRig>(seed: u64) {
    let mut fabrics = linked(&mut R::new(seed), 2, SEGMENT);
    let patience = Patience::new();
    let mut looked = 0;
    // What is left of linking may end sleeps before they are announced.
    while looked < 10 {
        fabrics[0].poll(real_now());
        let now = real_now();
        fabrics[0].wait(now, now.plus(HANG), &mut || {
            looked += 1;
            false
        });
        patience.check("a sleep with work to do");
    }
}

/// F3, F5: a sleeper hears at once that a peer is gone.
pub(super) fn a_link_that_dies_wakes_the_sleeper<R: RealRig>(seed: u64) {
    for round in 0..30 {
        let mut choices = Choices::new(seed.wrapping_add(round));
        let mut fabrics = linked(&mut R::new(seed), 2, SEGMENT);
        let dying = fabrics.pop().unwrap();
        let mut sleeping = fabrics.pop().unwrap();
        let (announce, announced) = mpsc::channel();
        let sleeper = std::thread::spawn(move || {
            let patience = Patience::new();
            loop {
                sleeping.poll(real_now());
                match sleeping.poll_event() {
                    Some(LinkEvent::Down(_, LinkDown::Broken(_))) => return,
                    Some(other) => panic!("{other:?} where the peer died"),
                    None => {}
                }
                let now = real_now();
                sleeping.wait(now, now.plus(HANG), &mut || {
                    let _ = announce.send(());
                    true
                });
                patience.check("word of the peer's death");
            }
        });
        announced.recv().unwrap();
        dawdle(&mut choices);
        drop(dying);
        sleeper.join().unwrap();
    }
}

/// F3: a sleeper hears that its link is there, whichever side came first.
pub(super) fn a_link_that_comes_up_wakes_the_sleeper<R: RealRig>(seed: u64) {
    for _ in 0..30 {
        let fabrics: Vec<_> = R::new(seed).nodes(2, SEGMENT);
        let offers: Vec<_> = fabrics.iter().map(Fabric::offer).collect();
        let linking: Vec<_> = fabrics
            .into_iter()
            .enumerate()
            .map(|(at, mut fabric)| {
                let (peer, offer) = (1 - at, offers[1 - at].clone());
                std::thread::spawn(move || {
                    let patience = Patience::new();
                    fabric.connect(slot(peer), id(peer), &offer, LINK_WITHIN).unwrap();
                    loop {
                        fabric.poll(real_now());
                        match fabric.poll_event() {
                            Some(LinkEvent::Up(_)) => return fabric,
                            Some(other) => panic!("{other:?} while linking"),
                            None => {}
                        }
                        patience.sleep(&mut fabric, "the link");
                    }
                })
            })
            .collect();
        // Both live until both are linked.
        let linked: Vec<_> = linking.into_iter().map(|thread| thread.join().unwrap()).collect();
        drop(linked);
    }
}
