//! The machine's floor: what processes do on this machine without Consort, by the barest means that reach all of them.
//!
//! A latency or a rate says little by itself: the same code is ten times slower on a machine with two busy cores. So
//! each measured run has a floor beside it, taken in the same minute, with as many processes and the same payload,
//! filled and read by the same functions ([`crate::bench::payload`]), waiting by the same strategy. The floors promise
//! nothing: no order between senders, no stability, no failure noticed. They are written to be as fast as such code gets,
//! so that the ratio is an honest price of what Consort adds.

mod memory;
mod shm;
mod tcp;
#[cfg(feature = "verbs")]
mod verbs;
#[cfg(not(feature = "verbs"))]
mod no_verbs;
#[cfg(not(feature = "verbs"))]
use no_verbs as verbs;

use std::fs::File;
use std::net::Ipv4Addr;
use std::time::Duration;

use hdrhistogram::Histogram;

use self::memory::{Shape, Shared};
use crate::args::{HostArg, WaitArg};
use crate::bench::figures;
use crate::clock;
use crate::crew::{Crew, ShowLine, bequeath};
use crate::failure::Failure;
use crate::latency;
use crate::orders::{self, FloorKind, FloorReport, FloorTask, Said, Task, Told, Window, inherited};
use crate::parent::Parent;
use crate::text::as_f64;

/// What to measure a floor with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setting<'a> {
    pub(crate) processes: u32,
    pub(crate) senders: u32,
    pub(crate) size: usize,
    pub(crate) ring_bytes: usize,
    pub(crate) wait: WaitArg,
    /// Where they run, if not all here.
    pub(crate) hosts: &'a [HostArg],
    pub(crate) window: Window,
}

/// One run of a floor.
#[derive(Debug)]
pub(crate) struct FloorRun {
    /// Nanoseconds of round trips, as they were; empty for kinds that have none.
    pub(crate) round_trips: Histogram<u64>,
    /// Messages at the slowest process, or round trips.
    pub(crate) messages: u64,
    pub(crate) msgs_per_s: f64,
}

/// Tokens and stars wait for each other; a payload of this size or less travels with the word that announces it.
const TOKEN_PAYLOAD: usize = 64;

/// The floor under latencies over `fabric`.
pub(crate) fn latency_kind(fabric: &str, size: usize) -> FloorKind {
    match fabric {
        "shm" if size <= TOKEN_PAYLOAD => FloorKind::Token,
        "shm" => FloorKind::Star,
        "verbs" => FloorKind::VerbsRoundTrip,
        _ => FloorKind::TcpRoundTrip,
    }
}

/// The floor under rates over `fabric`. Over RDMA the verbs' own programs measure that (`ib_write_bw`): TCP's stands in.
pub(crate) fn throughput_kind(fabric: &str) -> FloorKind {
    if fabric == "shm" { FloorKind::Ring } else { FloorKind::TcpStream }
}

/// What a floor is, for people.
pub(crate) fn describe(kind: FloorKind) -> &'static str {
    match kind {
        FloorKind::Token => "a token once round all processes in shared memory",
        FloorKind::Star => "a payload in shared memory, read by all, and their answers",
        FloorKind::Ring => "bare rings in shared memory",
        FloorKind::TcpRoundTrip => "a message over TCP to each, and their answers",
        FloorKind::TcpStream => "bare TCP streams, large writes",
        FloorKind::VerbsRoundTrip => "an RDMA write into each one's memory, and their writes back",
    }
}

/// Runs a floor once. Blocks until it is over; call it from the main thread.
///
/// # Errors
/// The machine refuses something, or a process died.
pub(crate) fn measure(
    kind: FloorKind,
    setting: &Setting<'_>,
    log: &str,
    show: ShowLine,
) -> Result<FloorRun, Failure> {
    #[cfg(not(feature = "verbs"))]
    if kind == FloorKind::VerbsRoundTrip {
        return Err(Failure::no_verbs());
    }
    let memory = match kind {
        FloorKind::Token => Some(shared_memory(0, 0)?),
        FloorKind::Star => Some(shared_memory(1, Shape::new(setting.size, setting.size, 1).ring_bytes())?),
        FloorKind::Ring => {
            let shape = Shape::new(setting.size, setting.ring_bytes, u64::MAX);
            Some(shared_memory(setting.senders as usize, shape.ring_bytes())?)
        }
        FloorKind::TcpRoundTrip | FloorKind::TcpStream | FloorKind::VerbsRoundTrip => None,
    };
    let memory = memory.as_ref().map(bequeath).transpose();
    let memory = memory.map_err(|cause| Failure::stream("pass on", "the floor's memory", cause))?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut crew = Crew::new(show);
    let processes = setting.processes as usize;
    for index in 0..processes {
        let task = FloorTask {
            kind,
            index,
            processes,
            senders: setting.senders as usize,
            size: setting.size,
            ring_bytes: setting.ring_bytes,
            wait: setting.wait,
            crowded: processes > cores,
            listen: setting.hosts.get(index).map_or(Ipv4Addr::LOCALHOST.into(), |host| host.address),
            window: setting.window,
            memory,
        };
        let before = setting.hosts.get(index).map_or(&[][..], |host| &host.command);
        crew.start_by(before, &format!("floor process {index}"), log, &Task::Floor(task))?;
    }
    let reports = conduct(crew, processes, setting.window)?;
    summarize(kind, &reports)
}

fn shared_memory(writers: usize, ring_bytes: usize) -> Result<File, Failure> {
    let refused = |cause: std::io::Error| Failure::stream("get", "shared memory for the floor", cause);
    let file = rustix::fs::memfd_create("consort-floor", rustix::fs::MemfdFlags::CLOEXEC);
    let file = File::from(file.map_err(|e| refused(e.into()))?);
    file.set_len(memory::size(writers, ring_bytes) as u64).map_err(refused)?;
    Ok(file)
}

/// Introduces the processes to each other where they need it, starts them together, and hears their reports.
fn conduct(mut crew: Crew, processes: usize, window: Window) -> Result<Vec<FloorReport>, Failure> {
    let patience = Duration::from_nanos(window.warmup + window.measured) + Duration::from_secs(30);
    let mut addresses = vec![None; processes];
    let mut ready = 0;
    let mut reports: Vec<Option<FloorReport>> = vec![None; processes];
    while reports.iter().any(Option::is_none) {
        let Some((index, said)) = crew.hear(patience)? else {
            return Err(Failure::lost(
                "the floor came to no end",
                "the machine may be too loaded: try again with fewer --members, or --wait adaptive",
            ));
        };
        match said {
            Said::Listening { address } => {
                addresses[index] = Some(address);
                if let Some(addresses) = addresses.iter().copied().collect::<Option<Vec<_>>>() {
                    crew.tell_all(&Told::Peers { addresses })?;
                }
            }
            Said::Ready => {
                ready += 1;
                if ready == processes {
                    crew.tell_all(&Told::Go { at: clock::now() + figures::LEAD })?;
                }
            }
            Said::Done { report } => {
                let report = orders::report(report)?;
                reports[index] = Some(report);
            }
            _ => {}
        }
    }
    crew.close(Duration::from_secs(10))?;
    Ok(reports.into_iter().flatten().collect())
}

fn summarize(kind: FloorKind, reports: &[FloorReport]) -> Result<FloorRun, Failure> {
    let mut round_trips = latency::histogram()?;
    let rate = |report: &FloorReport| as_f64(report.messages) * 1e9 / as_f64(report.elapsed.max(1));
    let slowest = match kind {
        FloorKind::Ring | FloorKind::TcpStream => reports.iter().min_by(|a, b| rate(a).total_cmp(&rate(b))),
        FloorKind::Token | FloorKind::Star | FloorKind::TcpRoundTrip | FloorKind::VerbsRoundTrip => {
            reports.first()
        }
    };
    let slowest =
        slowest.ok_or_else(|| Failure::lost("a floor without processes", "report this as a bug"))?;
    for &(nanoseconds, count) in &slowest.round_trips {
        round_trips.saturating_record_n(nanoseconds, count);
    }
    Ok(FloorRun { round_trips, messages: slowest.messages, msgs_per_s: rate(slowest) })
}

/// What the root of a round trip reports.
fn round_trip_report(task: &FloorTask, round_trips: &Histogram<u64>) -> FloorReport {
    FloorReport {
        messages: round_trips.len(),
        elapsed: task.window.measured,
        round_trips: round_trips
            .iter_recorded()
            .map(|step| (step.value_iterated_to(), step.count_at_value()))
            .collect(),
        checksum: 0,
    }
}

/// A floor process.
///
/// # Errors
/// The machine refuses something, or the parent has gone.
pub(crate) fn run(task: &FloorTask, parent: &mut Parent) -> Result<(), Failure> {
    let refused = |cause| Failure::stream("run", format!("floor process {}", task.index), cause);
    let histogram = latency::histogram()?;
    let shared = match task.memory {
        Some(descriptor) => {
            Some(inherited(descriptor, true).and_then(|file| Shared::map(&file)).map_err(refused)?)
        }
        None => None,
    };
    let mesh = match task.kind {
        FloorKind::TcpRoundTrip | FloorKind::TcpStream => {
            Some(tcp::Mesh::connect(task, parent).map_err(refused)?)
        }
        _ => None,
    };
    let mut star = match task.kind {
        FloorKind::VerbsRoundTrip => Some(verbs::Star::connect(task, parent)?),
        _ => None,
    };
    parent.say(&Said::Ready);
    let Some(Told::Go { at }) = parent.told() else { return Ok(()) };
    let report = match (task.kind, &shared, &mesh) {
        (FloorKind::VerbsRoundTrip, ..) => match &mut star {
            Some(star) => Some(verbs::round_trip(task, star, at, histogram).map_err(refused)?),
            None => None,
        },
        (FloorKind::Token, Some(shared), _) => Some(shm::token(task, shared, at, histogram)),
        (FloorKind::Star, Some(shared), _) => Some(shm::star(task, shared, at, histogram)),
        (FloorKind::Ring, Some(shared), _) => shm::rings(task, shared, at),
        (FloorKind::TcpRoundTrip, _, Some(mesh)) => {
            Some(tcp::round_trip(task, mesh, at, histogram).map_err(refused)?)
        }
        (FloorKind::TcpStream, _, Some(mesh)) => tcp::streams(task, mesh, at).map_err(refused)?,
        _ => None,
    };
    let report = report.ok_or_else(|| {
        Failure::lost(
            "a floor process never saw both ends of the run",
            "the machine is too loaded: try again",
        )
    })?;
    // The root's links close when it leaves: those who wait for that get it now.
    drop(mesh);
    parent.done(&report)?;
    // Queue pairs stay until all are done: who goes sooner leaves the other's last write without an acknowledgement.
    parent.told();
    Ok(())
}
