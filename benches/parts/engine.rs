//! The engine alone: what a message costs when the fabric costs nothing. The time is that of all members together, one
//! after the other in one thread, the application's filling and reading of the payload included.

use std::hint::black_box;

use consort_benches::group::{Group, SEGMENT};
use consort_benches::here::Here;
use consort_dataplane::plan::Guarantee;
use consort_dataplane::record::{Header, Kind};
use criterion::{BenchmarkId, Criterion, Throughput};

/// One message at a time: reserve, commit, order, acknowledge, deliver, release.
pub(super) fn one_message(criterion: &mut Criterion) {
    let mut all = criterion.benchmark_group("engine/one message of 64 bytes");
    for members in [1, 2, 3, 8] {
        let mut group = Group::over(Here::nodes(members, SEGMENT), Guarantee::Atomic);
        all.bench_function(BenchmarkId::new("members", members), |b| b.iter(|| group.multicast(0, 1, 64)));
    }
}

/// Many messages of one sender at once: what batching makes of it.
pub(super) fn batches(criterion: &mut Criterion) {
    let mut all = criterion.benchmark_group("engine/batch to 3 members");
    for (count, len) in [(256, 64), (256, 1024), (32, 10_240)] {
        let mut group = Group::over(Here::nodes(3, SEGMENT), Guarantee::Atomic);
        all.throughput(Throughput::Elements(count));
        all.bench_function(BenchmarkId::new(format!("{count} messages of bytes"), len), |b| {
            b.iter(|| group.multicast(0, count, len));
        });
    }
}

/// What the order costs (D6), and stability (D7).
pub(super) fn guarantees(criterion: &mut Criterion) {
    let mut all = criterion.benchmark_group("engine/256 messages of 64 bytes to 3 members");
    all.throughput(Throughput::Elements(256));
    for guarantee in [Guarantee::Fifo, Guarantee::Agreed, Guarantee::Atomic] {
        let mut group = Group::over(Here::nodes(3, SEGMENT), guarantee);
        all.bench_function(BenchmarkId::from_parameter(guarantee), |b| {
            b.iter(|| group.multicast(1, 256, 64));
        });
    }
}

/// A record's header, written and read: this much is paid for each message by each receiver.
pub(super) fn headers(criterion: &mut Criterion) {
    criterion.bench_function("record/header there and back", |b| {
        b.iter(|| {
            let header = Header { len: black_box(64), kind: Kind::Data, round: black_box(7) };
            let back = Header::parse(black_box(header.word()));
            assert_eq!(back, Some(header));
            back
        });
    });
}
