//! What is counted. Each part is one thread's work over memory of its own, so that it does the same every time.

use std::hint::black_box;

use consort_benches::group::{Group, SEGMENT};
use consort_benches::here::Here;
use consort_dataplane::log::{Entry, Index, Log, LogKind, LogOptions, Payload};
use consort_dataplane::names::{NodeId, Seq, ViewId};
use consort_dataplane::plan::Guarantee;
use consort_dataplane::record::{Header, Kind};
use consort_dataplane::sim::disk::{DiskFaults, SimDisk};

/// A round's work, prepared.
type Work = Box<dyn FnMut()>;

/// Something that is counted.
pub(super) struct Part {
    pub(super) name: &'static str,
    /// In one round.
    pub(super) messages: u64,
    pub(super) prepare: fn() -> Work,
}

/// A batch.
const BATCH: u64 = 256;

pub(super) const PARTS: &[Part] = &[
    Part { name: "record header there and back", messages: 1, prepare: header },
    Part { name: "one message, alone", messages: 1, prepare: || multicast(1, Guarantee::Atomic, 1, 64) },
    Part { name: "one message, 2 members", messages: 1, prepare: || multicast(2, Guarantee::Atomic, 1, 64) },
    Part { name: "one message, 3 members", messages: 1, prepare: || multicast(3, Guarantee::Atomic, 1, 64) },
    Part {
        name: "one message, 16 members",
        messages: 1,
        prepare: || multicast(16, Guarantee::Atomic, 1, 64),
    },
    Part {
        name: "256 messages, 3 members, fifo",
        messages: BATCH,
        prepare: || multicast(3, Guarantee::Fifo, BATCH, 64),
    },
    Part {
        name: "256 messages, 3 members, agreed",
        messages: BATCH,
        prepare: || multicast(3, Guarantee::Agreed, BATCH, 64),
    },
    Part {
        name: "256 messages, 3 members, atomic",
        messages: BATCH,
        prepare: || multicast(3, Guarantee::Atomic, BATCH, 64),
    },
    Part { name: "256 messages of each of 3 members", messages: 3 * BATCH, prepare: all_send },
    Part { name: "an idle turn of 3 members", messages: 1, prepare: idle },
    Part { name: "64 records appended to a log", messages: 64, prepare: append },
];

fn header() -> Work {
    Box::new(|| {
        let header = Header { len: black_box(64), kind: Kind::Data, round: black_box(7) };
        assert_eq!(Header::parse(black_box(header.word())), Some(header));
    })
}

fn multicast(members: usize, guarantee: Guarantee, count: u64, len: usize) -> Work {
    let mut group = Group::over(Here::nodes(members, SEGMENT), guarantee);
    Box::new(move || group.multicast(0, count, len))
}

fn all_send() -> Work {
    let mut group = Group::over(Here::nodes(3, SEGMENT), Guarantee::Atomic);
    Box::new(move || group.multicast_all(BATCH, 64))
}

fn idle() -> Work {
    let mut group = Group::over(Here::nodes(3, SEGMENT), Guarantee::Atomic);
    group.multicast(0, 1, 64);
    Box::new(move || group.turn())
}

/// A disk in memory, whose own work is in the count: it is the same every time.
fn append() -> Work {
    let options = LogOptions { segment_bytes: 1 << 20, ..LogOptions::default() };
    let disk = Box::new(SimDisk::new(1, DiskFaults::default()));
    let (mut log, _) =
        Log::open(disk, options, Index(0)).unwrap_or_else(|e| panic!("no log can be opened: {e}"));
    let payload = [7; 64];
    let mut seq = 0;
    Box::new(move || {
        for _ in 0..64 {
            let payload = Payload::Copied(&payload);
            let entry = Entry {
                kind: LogKind::Message,
                view: ViewId(1),
                seq: Seq(seq),
                sent: 1,
                sender: NodeId(1),
                payload,
            };
            while log.append(&entry).is_err() {
                turn(&mut log);
            }
            seq += 1;
        }
        while turn(&mut log) || !log.is_idle() {}
        assert_eq!(log.durable().0, seq);
    })
}

/// Takes in what the disk has done. Returns whether it has done anything.
fn turn(log: &mut Log) -> bool {
    log.turn().unwrap_or_else(|e| panic!("a disk in memory has failed: {e}"))
}
