//! What a parent and its member processes say to each other: one JSON value a line, orders on the member's standard
//! input, answers on its standard output. Bulk data (samples, input files) goes through inherited file descriptors that
//! the orders name by number, and that are opened anew through `/proc/self/fd`.
//!
//! The life of a member: it reads its [`Task`], says [`Said::Waiting`] as long as peers are missing, [`Said::Ready`]
//! when the group runs, gets [`Told::Go`] where a common start matters, reports [`Said::Done`], and keeps the
//! engine going for the others' sake until [`Told::Close`], or end of input, lets it leave.

use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::RawFd;
use std::path::PathBuf;

use consort::FabricStats;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::args::{FabricArg, GuaranteeArg, TopologyArg, WaitArg};
use crate::failure::Failure;

/// What a member process is for.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "task", rename_all = "kebab-case")]
pub(crate) enum Task {
    /// Multicast a file, log what is delivered.
    Demo(DemoTask),
    /// The same over and over, while members are killed and others join.
    Churn(ChurnTask),
    /// Send or receive under a stopwatch.
    Load(LoadTask),
    /// Fill a log, or be told what is in it.
    Restart(RestartTask),
    /// Do nothing in a group, and say what that costs.
    Idle(IdleTask),
    /// Update and query a replicated object.
    Replicas(ReplicasTask),
    /// Update the shards that it has, while nodes die.
    Repair(RepairTask),
    /// Send steadily while members die.
    Failover(FailoverTask),
    /// Hold memory and a connection, and be killed.
    Prey(PreyTask),
    /// Send steadily with a large state, while another joins and gets it.
    Join(JoinTask),
    /// Read a bare stream.
    Sink(SinkTask),
    /// Do without Consort what the machine can do at best.
    Floor(FloorTask),
}

/// A place in a group: what a member needs to start.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Seat {
    /// This member.
    pub(crate) id: u32,
    /// All members and their control addresses, this one included.
    pub(crate) addresses: Vec<(u32, SocketAddr)>,
    pub(crate) fabric: FabricArg,
    pub(crate) guarantee: GuaranteeArg,
    pub(crate) topology: TopologyArg,
    pub(crate) wait: WaitArg,
    pub(crate) ring_bytes: usize,
    /// Groups beside the main one, in which nothing is sent.
    pub(crate) idle_groups: u32,
}

impl Seat {
    /// One where nothing else is chosen: atomic, direct, and adaptive in its waiting.
    pub(crate) fn plain(
        id: u32,
        addresses: Vec<(u32, SocketAddr)>,
        fabric: FabricArg,
        ring_bytes: usize,
    ) -> Self {
        let (guarantee, topology, wait) = (GuaranteeArg::Atomic, TopologyArg::Direct, WaitArg::Adaptive);
        Self { id, addresses, fabric, guarantee, topology, wait, ring_bytes, idle_groups: 0 }
    }
}

/// See [`crate::demo`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct DemoTask {
    pub(crate) seat: Seat,
    /// Descriptor of the input.
    pub(crate) input: RawFd,
    /// The log to write; it must not exist.
    pub(crate) log: PathBuf,
    /// The longest line.
    pub(crate) longest: usize,
}

/// What a demo member did.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct DemoReport {
    pub(crate) sent: u64,
    pub(crate) delivered: u64,
    /// Of the log as it was written, in hexadecimal.
    pub(crate) digest: String,
    /// From the view to the last delivery.
    pub(crate) seconds: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) fabric: String,
}

/// See [`crate::demo`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ChurnTask {
    pub(crate) seat: Seat,
    /// The group runs: join it.
    pub(crate) joins: bool,
    /// Descriptor of the input.
    pub(crate) input: RawFd,
    /// The log to write; it must not exist.
    pub(crate) log: PathBuf,
    /// The longest line.
    pub(crate) longest: usize,
    /// Nanoseconds from one line to the next.
    pub(crate) interval: u64,
}

/// What was done to a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Deed {
    Crash,
    Join,
}

/// A change of a group's members that the parent brought about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Upheaval {
    pub(crate) deed: Deed,
    pub(crate) member: u32,
    /// On the machine's clock: just before the kill, or before the start of the joiner's process.
    pub(crate) at: u64,
}

/// What a member did that lived to the end of a demo with crashes and joins.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct ChurnReport {
    pub(crate) sent: u64,
    /// How often it sent the input.
    pub(crate) passes: u64,
    /// Records in its log.
    pub(crate) records: u64,
    /// How many of these came with another member's log when it joined.
    pub(crate) restored: u64,
    /// Of the log as it was written, in hexadecimal.
    pub(crate) digest: String,
    /// For each upheaval, the longest time without a delivery here, from its beginning to the first delivery in a view that
    /// has it; `None` where that was before this member's time.
    pub(crate) still: Vec<Option<u64>>,
    /// The longest before the first of them.
    pub(crate) calm: u64,
    pub(crate) fabric: String,
}

/// How a sender paces itself.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Pace {
    /// The next message on the delivery of the last.
    OneOutstanding,
    /// At fixed times; messages a second.
    Rate(f64),
    /// As fast as the group takes it.
    Flood,
}

/// See [`crate::bench::member`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct LoadTask {
    pub(crate) seat: Seat,
    pub(crate) sends: bool,
    pub(crate) size: usize,
    pub(crate) pace: Pace,
    pub(crate) window: Window,
    /// Descriptor of the file for samples.
    pub(crate) samples: RawFd,
    /// What of it is durable; nothing, most often.
    pub(crate) durable: Option<Durable>,
}

/// A durable group, instead of the one that is measured or beside it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Durable {
    /// The member's data directory.
    pub(crate) data: PathBuf,
    pub(crate) which: WhichGroup,
}

/// Which group is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum WhichGroup {
    /// The one that is measured.
    Measured,
    /// The one that is measured, delivered without waiting for the disks.
    MeasuredAhead,
    /// One beside it, in which nothing is sent.
    BesideIdle,
    /// One beside it, in which as much is sent as it takes.
    BesideLoaded,
    /// None: the one beside it is volatile, too, and in that so many messages a second are sent, by all members together.
    BesideVolatile(u64),
}

/// See [`crate::bench::restart`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RestartTask {
    pub(crate) seat: Seat,
    pub(crate) durable: Durable,
    /// Bytes of a message that fills the log.
    pub(crate) size: usize,
    /// How many of these each member has sent by the end of its first life.
    pub(crate) filling: u64,
    /// How many times the group was started before.
    pub(crate) life: u64,
}

/// What a member of a restart saw of one life. Times are on the machine's clock.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct RestartReport {
    /// Its log was read and judged, and its node is there.
    pub(crate) opened: u64,
    /// The last view: this life's, which comes behind everything that is told again.
    pub(crate) viewed: u64,
    /// All that was in its log when it ended was told.
    pub(crate) told: u64,
    /// The first new message.
    pub(crate) fresh: u64,
    /// Messages told, the new ones included.
    pub(crate) messages: u64,
    /// Bytes of its log that it wrote in this life.
    pub(crate) log_bytes: u64,
    /// The most memory that was resident, in bytes.
    pub(crate) memory: u64,
    pub(crate) fabric: String,
}

/// When a run counts, from its common start on, in nanoseconds.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Window {
    pub(crate) warmup: u64,
    pub(crate) measured: u64,
}

/// What a member counted in the measured window.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct LoadReport {
    /// Messages delivered.
    pub(crate) delivered: u64,
    /// Nanoseconds between the two looks at the counters.
    pub(crate) elapsed: u64,
    /// Nanoseconds of CPU.
    pub(crate) cpu: u64,
    pub(crate) counts: Counts,
    /// Bytes and flushes of the log of its durable group, and what was delivered of that if it is the one beside.
    pub(crate) log_bytes: u64,
    pub(crate) flushes: u64,
    pub(crate) beside: u64,
    pub(crate) fabric: String,
    pub(crate) engine: String,
}

/// What a member's fabric counted in the measured window; see [`FabricStats`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counts {
    pub(crate) system_calls: u64,
    pub(crate) bytes_out: u64,
    pub(crate) wakes: u64,
    pub(crate) work_requests: u64,
    pub(crate) doorbells: u64,
    pub(crate) signalled: u64,
    pub(crate) inline: u64,
    pub(crate) completions: u64,
}

impl From<FabricStats> for Counts {
    fn from(stats: FabricStats) -> Self {
        Self {
            system_calls: stats.system_calls,
            bytes_out: stats.bytes_out,
            wakes: stats.wakes,
            work_requests: stats.work_requests,
            doorbells: stats.doorbells,
            signalled: stats.signalled,
            inline: stats.inline,
            completions: stats.completions,
        }
    }
}

impl Counts {
    /// What came since `first`.
    pub(crate) fn since(self, first: Self) -> Self {
        Self {
            system_calls: self.system_calls - first.system_calls,
            bytes_out: self.bytes_out - first.bytes_out,
            wakes: self.wakes - first.wakes,
            work_requests: self.work_requests - first.work_requests,
            doorbells: self.doorbells - first.doorbells,
            signalled: self.signalled - first.signalled,
            inline: self.inline - first.inline,
            completions: self.completions - first.completions,
        }
    }
}

/// See [`crate::bench::idle`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct IdleTask {
    pub(crate) seat: Seat,
    pub(crate) window: Window,
}

/// See [`crate::bench::replicas`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ReplicasTask {
    pub(crate) seat: Seat,
    pub(crate) updates: bool,
    /// Bytes of an update.
    pub(crate) size: usize,
    /// Its measured time is that of each part.
    pub(crate) window: Window,
}

/// What a member with a replica counted.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct ReplicasReport {
    /// Updates applied while nobody asked.
    pub(crate) applied: u64,
    /// Nanoseconds between the two looks at that counter.
    pub(crate) elapsed: u64,
    /// Queries under load: nanoseconds, and how many took so long (to three digits).
    pub(crate) loaded: Vec<(u64, u64)>,
    /// … while nobody updated.
    pub(crate) quiet: Vec<(u64, u64)>,
    pub(crate) fabric: String,
}

/// See [`crate::bench::repair`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RepairTask {
    pub(crate) seat: Seat,
    pub(crate) shards: usize,
    /// Of each shard.
    pub(crate) replicas: usize,
    /// What the node fails with.
    pub(crate) domain: String,
    /// Bytes of an update.
    pub(crate) size: usize,
    /// Nanoseconds from one update of a shard to the next.
    pub(crate) interval: u64,
}

/// See [`crate::bench::failover`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct FailoverTask {
    pub(crate) seat: Seat,
    /// The group runs: join it.
    pub(crate) joins: bool,
    /// Nanoseconds until a member that says nothing is taken for gone.
    pub(crate) silence: u64,
    /// Groups beside the main one: names and members.
    pub(crate) groups: Vec<(String, Vec<u32>)>,
}

/// See [`crate::bench::failover`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct PreyTask {
    /// Where the parent listens.
    pub(crate) address: SocketAddr,
    /// Bytes to hold.
    pub(crate) memory: usize,
}

/// What a survivor saw of a death.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Survived {
    /// When it took the victim for gone, on the machine's clock; `None` if another survivor's word came first.
    pub(crate) detected: Option<u64>,
    /// Nanoseconds without a delivery.
    pub(crate) outage: u64,
    pub(crate) fabric: String,
}

/// See [`crate::bench::join`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct JoinTask {
    pub(crate) seat: Seat,
    /// The group runs: join it.
    pub(crate) joins: bool,
    /// Bytes of state.
    pub(crate) state: u64,
}

/// See [`crate::bench::join`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SinkTask {
    /// Where the parent listens.
    pub(crate) address: SocketAddr,
    /// Bytes to read.
    pub(crate) bytes: u64,
}

/// A joiner's times, on the machine's clock.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct JoinReport {
    /// Its node was started.
    pub(crate) started: u64,
    /// The state was there, whole.
    pub(crate) arrived: u64,
    /// The application had read it.
    pub(crate) restored: u64,
    /// The first delivery in a view with it.
    pub(crate) viewed: u64,
}

/// See [`crate::bench::floor`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct FloorTask {
    pub(crate) kind: FloorKind,
    /// This process, from 0.
    pub(crate) index: usize,
    pub(crate) processes: usize,
    pub(crate) senders: usize,
    pub(crate) size: usize,
    pub(crate) ring_bytes: usize,
    pub(crate) wait: WaitArg,
    /// More processes than cores.
    pub(crate) crowded: bool,
    /// This process's own address.
    pub(crate) listen: IpAddr,
    pub(crate) window: Window,
    /// Descriptor of the shared memory (where the kind has one).
    pub(crate) memory: Option<RawFd>,
}

/// What a floor does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum FloorKind {
    /// Shared memory: a token once round.
    Token,
    /// Shared memory: root fills a payload, all read it and answer.
    Star,
    /// Shared memory: rings.
    Ring,
    /// TCP: root sends, all answer.
    TcpRoundTrip,
    /// TCP: streams.
    TcpStream,
    /// RDMA: root writes, all write back.
    VerbsRoundTrip,
}

/// What a floor process counted in the measured window.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct FloorReport {
    /// Messages read (or round trips made by the root).
    pub(crate) messages: u64,
    /// Nanoseconds between the two looks at the counter.
    pub(crate) elapsed: u64,
    /// Round trips: nanoseconds, and how many took so long (to three digits).
    pub(crate) round_trips: Vec<(u64, u64)>,
    /// Sum of all that was read, so that reading can't be left out.
    pub(crate) checksum: u64,
}

/// From a member to its parent.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "said", rename_all = "kebab-case")]
pub(crate) enum Said {
    /// Where it listens (floors over TCP and RDMA).
    Listening { address: SocketAddr },
    /// Members that are not there yet.
    Waiting { for_whom: Vec<u32> },
    /// The group runs.
    Ready,
    /// So much was delivered until now. Said only when there is more than before.
    Progress { delivered: u64 },
    /// A view of these members, in its order, and something was delivered in it.
    View { members: Vec<u32> },
    /// A view of a shard with these members was told here, then on the machine's clock.
    Shard { shard: usize, view: u64, members: Vec<u32>, at: u64 },
    /// The view is one without the member that was killed.
    Survived(Survived),
    /// The longest times without a delivery in the windows that were asked for, in nanoseconds.
    Gaps { longest: Vec<u64>, fabric: String },
    /// The task is done; the member stays until it is told to close.
    Done { report: serde_json::Value },
    /// It can't go on.
    Failed { code: u8, message: String, remedy: String },
}

/// Reads the report of a member that is done.
///
/// # Errors
/// It is another task's.
pub(crate) fn report<T: DeserializeOwned>(report: serde_json::Value) -> Result<T, Failure> {
    serde_json::from_value(report)
        .map_err(|e| Failure::lost(format!("a member's report makes no sense: {e}"), "report this as a bug"))
}

/// From the parent to a member, after the task.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "told", rename_all = "kebab-case")]
pub(crate) enum Told {
    /// Where the others listen (floors over TCP and RDMA).
    Peers { addresses: Vec<SocketAddr> },
    /// The common start, on the machine's clock.
    Go { at: u64 },
    /// That member was killed then, on the machine's clock.
    Killed { node: u32, at: u64 },
    /// Say for how long nothing was delivered in each of these windows, on the machine's clock.
    Gaps { windows: Vec<(u64, u64)> },
    /// The same, of these shards.
    ShardGaps { shards: Vec<usize>, windows: Vec<(u64, u64)> },
    /// Come to an end of sending; these are the members that do so, and that was done to them.
    Finish { members: Vec<u32>, upheavals: Vec<Upheaval> },
    /// Nobody needs you any more.
    Close,
}

/// Opens what an inherited descriptor refers to, from its beginning and with a position of its own.
///
/// # Errors
/// The descriptor was not inherited, or `/proc` is not mounted.
pub(crate) fn inherited(descriptor: RawFd, write: bool) -> io::Result<File> {
    File::options().read(true).write(write).open(format!("/proc/self/fd/{descriptor}"))
}
