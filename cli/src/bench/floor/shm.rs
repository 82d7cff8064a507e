//! Floors in shared memory: a token, a star, rings.

use hdrhistogram::Histogram;

use std::sync::atomic::Ordering;

use super::memory::{Reader, Shape, Shared, Writer};
use crate::bench::payload::{fill, sum};
use crate::bench::window::{Idler, Watch};
use crate::clock;
use crate::orders::{FloorReport, FloorTask};

/// The token that ends the run.
const STOP: u64 = u64::MAX;

/// A token goes once round: process 0, 1, …, and back. One round is one round trip.
pub(super) fn token(
    task: &FloorTask,
    shared: &Shared,
    start: u64,
    mut round_trips: Histogram<u64>,
) -> FloorReport {
    let (me, next) = (task.index, (task.index + 1) % task.processes);
    let (own, ahead) = (shared.word(me), shared.word(next));
    let (bell, next_bell) = (shared.bell(me), shared.bell(next));
    let mut idler = Idler::new(task.wait, task.crowded);
    let pass = |token: u64, idler: &Idler| {
        ahead.store(token, Ordering::Release);
        if idler.sleeps() {
            next_bell.ring();
        }
    };
    let receive = |last: u64, idler: &mut Idler| loop {
        let epoch = bell.epoch();
        let token = own.load(Ordering::Acquire);
        if token != last {
            idler.busy();
            return token;
        }
        idler.idle(|| bell.sleep(epoch));
    };
    if me != 0 {
        let mut token = 0;
        while token != STOP {
            token = receive(token, &mut idler);
            if token != STOP || next != 0 {
                pass(token, &idler);
            }
        }
        return FloorReport::default();
    }
    let watch = Watch::<()>::new(start, task.window);
    let mut began = clock::now();
    let mut token = 0;
    while began < watch.end() {
        pass(token + 1, &idler);
        token = receive(token, &mut idler);
        let ended = clock::now();
        if watch.counts(began) {
            round_trips.saturating_record(ended - began);
        }
        began = ended;
    }
    pass(STOP, &idler);
    super::round_trip_report(task, &round_trips)
}

/// Process 0 fills a payload, all others read it whole and release it; when all have, that is one round trip.
pub(super) fn star(
    task: &FloorTask,
    shared: &Shared,
    start: u64,
    mut round_trips: Histogram<u64>,
) -> FloorReport {
    let shape = Shape::new(task.size, task.size, 1);
    let mut idler = Idler::new(task.wait, task.crowded);
    let bell = shared.bell(task.index);
    if task.index != 0 {
        let mut reader = Reader::new(shared, shape, task.index, 0);
        let mut checksum = 0_u64;
        while !reader.finished() {
            let epoch = bell.epoch();
            if reader.read_all(|payload| checksum = checksum.wrapping_add(sum(payload))) > 0 {
                idler.busy();
                if idler.sleeps() {
                    shared.bell(0).ring();
                }
            } else if !reader.finished() {
                idler.idle(|| bell.sleep(epoch));
            }
        }
        return FloorReport { checksum, ..FloorReport::default() };
    }
    let watch = Watch::<()>::new(start, task.window);
    let mut writer = Writer::new(shared, shape, 0, task.processes);
    let wake_all = |idler: &Idler| {
        if idler.sleeps() {
            (1..task.processes).for_each(|reader| shared.bell(reader).ring());
        }
    };
    let mut began = clock::now();
    while began < watch.end() {
        writer.try_write(fill);
        writer.publish();
        wake_all(&idler);
        loop {
            let epoch = bell.epoch();
            if writer.released() == writer.written() {
                break;
            }
            idler.idle(|| bell.sleep(epoch));
        }
        idler.busy();
        let ended = clock::now();
        if watch.counts(began) {
            round_trips.saturating_record(ended - began);
        }
        began = ended;
    }
    writer.finish();
    wake_all(&idler);
    super::round_trip_report(task, &round_trips)
}

/// Bytes that a writer puts into its ring before it makes them visible: enough that small messages don't pay for it one by
/// one, little enough that readers find them in the cache.
const PUBLISH_BYTES: usize = 4 << 10;

/// Writes of that size between two looks at what others wrote.
const PUBLISHES_A_TURN: usize = 8;

/// Every sender writes its ring as fast as the slowest reader lets it; all others read it.
pub(super) fn rings(task: &FloorTask, shared: &Shared, start: u64) -> Option<FloorReport> {
    let shape = Shape::new(task.size, task.ring_bytes, u64::MAX);
    let bell = shared.bell(task.index);
    let mut idler = Idler::new(task.wait, task.crowded);
    let mut watch = Watch::new(start, task.window);
    let mut writer =
        (task.index < task.senders).then(|| Writer::new(shared, shape, task.index, task.processes));
    let mut readers: Vec<Reader<'_>> = (0..task.senders)
        .filter(|&writer| writer != task.index)
        .map(|writer| Reader::new(shared, shape, task.index, writer))
        .collect();
    let batch = (PUBLISH_BYTES / task.size).max(1);
    let (mut read, mut checksum) = (0_u64, 0_u64);
    loop {
        let epoch = bell.epoch();
        let now = clock::now();
        let mut busy = false;
        let mut written = true;
        if let Some(writer) = &mut writer {
            watch.look(now, || read + writer.released());
            if now < watch.end() {
                let before = writer.written();
                for _ in 0..PUBLISHES_A_TURN {
                    if !(0..batch).all(|_| writer.try_write(fill)) {
                        writer.publish();
                        break;
                    }
                    writer.publish();
                }
                busy |= writer.written() > before;
                written = false;
            } else {
                writer.finish();
                written = writer.released() == writer.written();
            }
        } else {
            watch.look(now, || read);
        }
        for reader in &mut readers {
            let count = reader.read_all(|payload| checksum = checksum.wrapping_add(sum(payload)));
            read += count;
            busy |= count > 0;
        }
        if written && readers.iter().all(Reader::finished) {
            break;
        }
        if idler.sleeps() && (busy || now >= watch.end()) {
            (0..task.processes).filter(|&p| p != task.index).for_each(|process| shared.bell(process).ring());
        }
        if busy {
            idler.busy();
        } else {
            idler.idle(|| bell.sleep(epoch));
        }
    }
    // Whoever still waits for this process's last release or end must see it.
    (0..task.processes).filter(|&p| p != task.index).for_each(|process| shared.bell(process).ring());
    // A reader's writers may have ended before it looked a second time: then it has seen the end of the load.
    watch.look(clock::now(), || read + writer.as_mut().map_or(0, Writer::released));
    let (elapsed, first, last) = watch.taken()?;
    Some(FloorReport { messages: last - first, elapsed, checksum, ..FloorReport::default() })
}
