//! The same group over the fabrics of real machines, still in one thread: what publishing, framing and the system calls add
//! to the engine. Nobody sleeps here, so nobody is woken.

use consort_benches::group::{Group, SEGMENT};
use consort_dataplane::fabric::Fabric;
use consort_dataplane::names::NodeId;
use consort_dataplane::plan::Guarantee;
use consort_hw::shm::{ShmFabric, ShmOptions};
use consort_hw::tcp::{TcpEngine, TcpFabric, TcpOptions};
use criterion::{BenchmarkId, Criterion, Throughput};

const MEMBERS: u32 = 3;

fn shm() -> Option<Vec<ShmFabric>> {
    nodes("shm", |node| ShmFabric::new(node, ShmOptions { segment_bytes: SEGMENT, ..ShmOptions::default() }))
}

fn tcp(engine: TcpEngine) -> Option<Vec<TcpFabric>> {
    nodes("tcp", |node| {
        TcpFabric::new(node, TcpOptions { segment_bytes: SEGMENT, engine, ..TcpOptions::default() })
    })
}

/// The fabrics of all members; none where the machine has not what it takes, which is said and is no failure: the other
/// engine has its own benchmark.
fn nodes<F, E: std::fmt::Display>(name: &str, make: impl Fn(NodeId) -> Result<F, E>) -> Option<Vec<F>> {
    let made = (1..=MEMBERS).map(|node| make(NodeId(node))).collect::<Result<_, _>>();
    #[allow(clippy::print_stderr, reason = "a benchmark talks to its terminal")]
    made.inspect_err(|error| eprintln!("{name} is left out: {error}")).ok()
}

fn bench<F: Fabric>(
    criterion: &mut Criterion,
    title: &str,
    fabric: &str,
    fabrics: Option<Vec<F>>,
    (count, len): (u64, usize),
) {
    let Some(fabrics) = fabrics else { return };
    let mut group = Group::over(fabrics, Guarantee::Atomic);
    let mut all = criterion.benchmark_group(title);
    all.throughput(Throughput::Elements(count));
    all.bench_function(BenchmarkId::from_parameter(fabric), |b| b.iter(|| group.multicast(0, count, len)));
}

fn over_all(criterion: &mut Criterion, title: &str, batch: (u64, usize)) {
    bench(criterion, title, "shm", shm(), batch);
    bench(criterion, title, "tcp io_uring", tcp(TcpEngine::IoUring), batch);
    bench(criterion, title, "tcp epoll", tcp(TcpEngine::Epoll), batch);
}

pub(super) fn one_message(criterion: &mut Criterion) {
    over_all(criterion, "fabric/one message of 64 bytes to 3 members", (1, 64));
}

pub(super) fn batches(criterion: &mut Criterion) {
    over_all(criterion, "fabric/256 messages of 64 bytes to 3 members", (256, 64));
    over_all(criterion, "fabric/32 messages of 10 KiB to 3 members", (32, 10_240));
}
