//! The command line, as types. What can be refused without starting anything is refused here, with the remedy.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::failure::{EXIT_CODES, Failure};
use crate::text::{parse_bytes, parse_duration};

/// The most members that one machine is asked to run: each is a process that may be busy.
pub(crate) const MOST_MEMBERS: u32 = 16;

/// The most groups beside the one that is measured.
const MOST_GROUPS: u32 = 63;

const ABOUT: &str = "Group communication: every member delivers the same messages in the same order";

const START_HERE: &str = "\
Start here:
  consort demo                          three processes, one order, checked; over the best fabric there is
  consort demo --fabric tcp --members 5 --input server.log --out /tmp/logs
  consort node --id 1 --listen 127.0.0.1:7101 --peer 2=127.0.0.1:7102 --peer 3=127.0.0.1:7103
  consort status 127.0.0.1:7101         how that member and its group stand; `consort explain` says what it waits for
  consort bench latency                 microseconds from send to delivery, beside the machine's own floor
  consort kv --help                     a replicated, sharded key-value store: an application to use and to learn from
  consort hw                            what of this machine matters to latency, and what to change
  consort log verify DIR                whether a durable member's log is sound
  consort help demo                     all about one of them";

/// `consort`.
#[derive(Debug, Parser)]
#[command(name = "consort", version, about = ABOUT, after_help = START_HERE, after_long_help = format!("{START_HERE}\n\n{EXIT_CODES}"))]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    /// What to log on standard error: error, warn, info, debug, trace, or a filter such as `consort_hw=debug`
    #[arg(long, global = true, value_name = "FILTER", default_value = "warn")]
    pub(crate) log: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run real member processes that all multicast a file, and check that they deliver one sequence
    Demo(Box<DemoArgs>),
    /// Be one member of a group: lines in, ordered messages out as JSON lines
    Node(Box<NodeArgs>),
    /// Ask a running member how it and its group stand
    Status(AskArgs),
    /// Ask a running member what it waits for: which member, which counter, which rule
    Explain(AskArgs),
    /// Measure latency, throughput, durable groups, idle cost, failover, repairs, joins or restarts, beside the machine's own floor
    #[command(subcommand)]
    Bench(BenchCommand),
    /// A replicated, sharded key-value store: serve it, use it, measure it
    #[command(subcommand)]
    Kv(KvCommand),
    /// The logs of durable groups: verify, dump, count, follow, repair
    #[command(subcommand)]
    Log(LogCommand),
    /// What of this machine matters to latency: RDMA, memory, CPUs, io_uring; which fabrics can be used, and what to change
    Hw(HwArgs),
    /// A process that `bench` started: it keeps a directory, and removes it when its parent is gone
    #[command(hide = true)]
    Keep {
        /// Where it makes the directory
        within: PathBuf,
    },
    /// A process that `demo` or `bench` started (it takes its orders from standard input)
    #[command(hide = true)]
    Member {
        /// The parent's process id: without its parent a member ends
        #[arg(long)]
        parent: u32,
        /// Whose part it plays; only for those who read the process list
        #[arg(long)]
        name: String,
    },
}

/// How the members' memory reaches each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum FabricArg {
    /// For each link the best that both ends have: shared memory, RDMA, TCP
    Auto,
    /// Shared memory (one machine)
    Shm,
    /// TCP, over io_uring where the kernel allows it
    Tcp,
    /// RDMA, over InfiniBand or RoCE (in builds with the feature `verbs`)
    Verbs,
}

/// What a delivery promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum GuaranteeArg {
    /// Each sender's messages in its order
    Fifo,
    /// One order at all members
    Agreed,
    /// One order, and delivered only once every member has the message
    Atomic,
}

/// Which way the bytes of messages go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum TopologyArg {
    /// From the sender to every member
    Direct,
    /// From member to member
    Chain,
}

/// What a delivery promises, of a long-lived member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum NodeGuaranteeArg {
    /// Each sender's messages in its order
    Fifo,
    /// One order at all members
    Agreed,
    /// One order, and delivered only once every member has the message
    Atomic,
    /// As atomic, and only once every member has flushed it to its log (--data)
    Durable,
    /// When atomic would, and written down: the outcome comes once every member has flushed it (--data)
    Logged,
}

/// What a member does while nothing happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum WaitArg {
    /// Keep a core busy
    Spin,
    /// Spin, yield, then sleep
    Adaptive,
    /// Sleep at once
    Block,
}

macro_rules! shown {
    ($($choice:ty),*) => {$(
        impl std::fmt::Display for $choice {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.to_possible_value().as_ref().map_or("?", |value| value.get_name()))
            }
        }
    )*};
}
shown!(FabricArg, GuaranteeArg, TopologyArg, WaitArg);

const DEMO_HELP: &str = "\
What it does:
  Starts the members as processes of their own on this machine. Every member multicasts every line of the file, all
  at the same time. Each writes what it delivers, in the order of delivery, to DIR/member-<id>.log. At the end the logs
  are compared byte for byte with each other and line for line with the input: every line of every member exactly once,
  in each sender's order. Only then the exit code is 0.

The logs:
  One record per message: a header line `SEQ SENDER LENGTH`, then LENGTH bytes, then a newline. Bytes are as they were
  sent, whatever they are. So `cmp member-1.log member-2.log` shows whether two members agree, and the digest in the
  table is that of the file (b3sum). With --guarantee fifo only each sender's order is promised, and checked.

Lines:
  A line ends at a newline, which is not part of the message; the last line need not have one. Empty lines are empty
  messages. Lines may hold any bytes.

Crashes and joins (--crash, --join):
  Members send the file at a pace at which it takes about 1.5 s, and again and again until all was done that was to be done
  to them. When a third of it is delivered, members are killed (kill -9), one after the other; then new members are
  started, which get the log of another and what is delivered since, and then send the file too. In the end the logs of
  all who are left, the new ones included, are compared byte for byte; every line of theirs must be there, in order, once;
  what a killed member sent must be a beginning of what it was to send, and its own log a beginning of the others'.
    stood still   the longest time from one delivery to the next, at any member, from the kill (or the start of the new
                  member's process) to the first delivery in the view without (or with) it; beside it the longest such
                  time before the first of them
  In these logs SEQ counts the records from 0. The guarantee must be atomic.

Latency in the table is from send to the member's own delivery while all send as fast as they can: it shows queues.
For the latency of a message alone see `consort bench latency`.

Examples:
  consort demo
  consort demo --members 5 --fabric tcp --input /usr/share/dict/words
  consort demo --crash 1 --join 1
  consort demo --members 5 --crash 2 --join 2 --fabric tcp
  zcat access.log.gz | consort demo --input /dev/stdin --out /tmp/order && cmp /tmp/order/member-1.log /tmp/order/member-3.log
  consort demo --json | jq .identical";

/// `consort demo`.
#[derive(Debug, Args)]
#[command(after_help = "See `consort demo --help` for what the logs hold, and examples.")]
#[command(after_long_help = format!("{DEMO_HELP}\n\n{EXIT_CODES}"))]
pub(crate) struct DemoArgs {
    /// How many member processes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST_MEMBERS)))]
    pub(crate) members: u32,
    /// How their memory reaches each other
    #[arg(long, value_enum, default_value_t = FabricArg::Auto)]
    pub(crate) fabric: FabricArg,
    /// Kill so many members in the midst of it (kill -9), the leader first; a majority must be left
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=i64::from(MOST_MEMBERS)))]
    pub(crate) crash: u32,
    /// Have so many new members join in the midst of it
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=i64::from(MOST_MEMBERS)))]
    pub(crate) join: u32,
    /// The file (or pipe) whose lines are multicast; without it, an order book's day that ships with the command
    #[arg(long, value_name = "FILE")]
    pub(crate) input: Option<PathBuf>,
    /// What a delivery promises
    #[arg(long, value_enum, default_value_t = GuaranteeArg::Atomic)]
    pub(crate) guarantee: GuaranteeArg,
    /// Where the logs go; without it, a fresh directory that is named at the end
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// What a member does while nothing happens
    #[arg(long, value_enum, default_value_t = WaitArg::Adaptive)]
    pub(crate) wait: WaitArg,
    /// Give up when no member delivers anything for so long
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_duration)]
    pub(crate) stall: Duration,
    /// Print one JSON object instead of the table
    #[arg(long)]
    pub(crate) json: bool,
}

impl DemoArgs {
    /// What the parser of single values can't see.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        let Self { members, crash, join, .. } = *self;
        if crash > 0 && crash * 2 >= members {
            let most = (members - 1) / 2;
            return Err(Failure::usage(
                format!(
                    "without {crash} of {members} members there is no majority, and the group would stop"
                ),
                format!("give --crash {most} or less, or --members {} or more", crash * 2 + 1),
            ));
        }
        if members + join > MOST_MEMBERS {
            return Err(Failure::usage(
                format!("{members} members and {join} that join are more than one machine is asked to run"),
                format!("give --members and --join that are {MOST_MEMBERS} or less together"),
            ));
        }
        if crash + join > 0 && self.guarantee != GuaranteeArg::Atomic {
            return Err(Failure::usage(
                format!(
                    "{} doesn't promise that what a killed member delivered is what the others deliver",
                    self.guarantee
                ),
                "leave --guarantee out, or give --guarantee atomic, with --crash and --join",
            ));
        }
        Ok(())
    }
}

const NODE_HELP: &str = "\
Standard input: each line is multicast to the group (without its newline; with --base64 each line is decoded first, so
that a message may hold any bytes, newlines too). Reading stops while the group's memory is full: nothing is dropped.

Standard output: one JSON object a line.
  {\"type\":\"waiting\",\"for\":[2],\"why\":[\"…\"]}            these members are not there yet
  {\"type\":\"view\",\"view\":1,\"members\":[1,2,3]}          the group runs; nothing is sent before it. Each change is
                                                       a view, after all messages of the one before it
  {\"type\":\"message\",\"view\":1,\"seq\":0,\"sender\":2,\"data\":\"…\"}   with \"encoding\":\"base64\" where data is not UTF-8
  {\"type\":\"outcome\",\"send\":0,\"status\":\"delivered\",\"view\":1,\"seq\":5}   send counts the lines of input from 0
  {\"type\":\"outcome\",\"send\":1,\"status\":\"failed\",\"reason\":\"…\"}          whether others delivered it is not known
  {\"type\":\"evicted\",\"reason\":\"…\"}                     the group went on without this member, which joins again (--rejoin);
                                                       messages were missed, and the next view begins anew
  {\"type\":\"ended\",\"sender\":2}                         member 2 has come to the end of its input
  {\"type\":\"stopped\",\"reason\":\"…\"}                     the last line: why this member ended
A reader that doesn't keep up slows the group down; nothing is dropped for it.

Members come and go:
  The members that --peer names found the group; its first view has all of them. A member that is lost (killed, cut off,
  silent for longer than --silence) is left out of the next view, and the rest goes on as long as it is a majority of
  the view before. Start it again with the same command, and it joins the group that runs. Any other member joins with
  --join and the address of some member. No line of input is lost or sent twice by a change of the view.
  A member that the others left out, or that can't reach a majority for --quorum-within, stops (exit codes 6 and 7), or
  with --rejoin joins again; outcomes that it can't tell any more are `failed`.
  How a member and its group stand, and what it waits for, is shown by:
  consort status 127.0.0.1:7101
  consort explain 127.0.0.1:7101

The end: on SIGTERM or SIGINT it leaves in order, and the others go on. With --until-eof it leaves at the end of its
input, once all its outcomes are in and every other member of the view has come to the end of its input, too.

The configuration file (TOML) says the same as the flags, which go first where both speak:
  id = 1
  listen = \"127.0.0.1:7101\"
  fabric = \"tcp\"                # auto, shm, tcp, verbs
  guarantee = \"atomic\"          # fifo, agreed, atomic, durable, logged
  # data = \"/var/lib/app/1\"     # with durable and logged: where this member's log is kept
  # join = [\"127.0.0.1:7102\"]   # instead of [peers]
  # rejoin = true
  # role = \"witness\"            # data, witness
  # silence = \"1s\"
  # quorum_within = \"10s\"
  # slow = \"5s\"                 # leave out a member that stands still for so long; default: wait for it
  # key_file = \"cluster.key\"
  [peers]
  2 = \"127.0.0.1:7102\"
  3 = \"127.0.0.1:7103\"

Examples, in three terminals:
  consort node --id 1 --listen 127.0.0.1:7101 --peer 2=127.0.0.1:7102 --peer 3=127.0.0.1:7103
  consort node --id 2 --listen 127.0.0.1:7102 --peer 1=127.0.0.1:7101 --peer 3=127.0.0.1:7103
  consort node --id 3 --listen 127.0.0.1:7103 --peer 1=127.0.0.1:7101 --peer 2=127.0.0.1:7102
a fourth, later:
  consort node --id 4 --listen 127.0.0.1:7104 --join 127.0.0.1:7101,127.0.0.1:7102
or from files:
  consort node --config node.toml --until-eof < orders.txt > ordered.jsonl";

/// `consort node`.
#[derive(Debug, Args)]
#[command(after_help = "See `consort node --help` for what goes in and comes out, and examples.")]
#[command(after_long_help = format!("{NODE_HELP}\n\n{EXIT_CODES}"))]
pub(crate) struct NodeArgs {
    /// Read the configuration from this TOML file
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// This member's number in the group, from 1
    #[arg(long, required_unless_present = "config", conflicts_with = "config", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) id: Option<u32>,
    /// The control address of this member; the others name it in --peer
    #[arg(long, value_name = "ADDRESS", required_unless_present = "config")]
    pub(crate) listen: Option<SocketAddr>,
    /// Another founder of the group and its control address; once for each of them
    #[arg(long = "peer", value_name = "ID=ADDRESS", value_parser = parse_peer)]
    pub(crate) peers: Vec<(u32, SocketAddr)>,
    /// Join the group that runs at one of these control addresses, instead of founding one with --peer
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    pub(crate) join: Vec<SocketAddr>,
    /// When the group went on without this member, or no majority can be reached: join again instead of ending
    #[arg(long)]
    pub(crate) rejoin: bool,
    /// Vote on views and hold no data
    #[arg(long)]
    pub(crate) witness: bool,
    /// How long a member may say nothing before it is taken for gone [default: 1s]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub(crate) silence: Option<Duration>,
    /// How long to look for a majority before giving up [default: 10s]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub(crate) quorum_within: Option<Duration>,
    /// The secret that all members share, in a file that only its owner may read; without one, anyone may join
    #[arg(long, value_name = "FILE")]
    pub(crate) key_file: Option<PathBuf>,
    /// How the members' memory reaches each other; the same at all members [default: auto]
    #[arg(long, value_enum)]
    pub(crate) fabric: Option<FabricArg>,
    /// What a delivery promises; the same at all members [default: atomic]
    #[arg(long, value_enum)]
    pub(crate) guarantee: Option<NodeGuaranteeArg>,
    /// Where this member's log is kept, with --guarantee durable or logged: a directory of its own (see `consort log`)
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// What this member does while nothing happens [default: adaptive]
    #[arg(long, value_enum)]
    pub(crate) wait: Option<WaitArg>,
    /// Memory for messages in flight, per member; the longest message takes at most a part of it; the same at all members
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub(crate) ring: Option<usize>,
    /// Give up when the others are not there after so long; without it, wait for them
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub(crate) start_within: Option<Duration>,
    /// Each line of input is base64
    #[arg(long)]
    pub(crate) base64: bool,
    /// Leave at the end of input (see below); without it the member stays and delivers
    #[arg(long)]
    pub(crate) until_eof: bool,
}

const ASK_HELP: &str = "\
What is asked:
  The member that listens at ADDRESS, over its control port. It answers from what it knows, also while its engine is stuck
  or its view is changing; two members may know different things, so ask each of them.

status:
  phase       what membership does: founding, running, changing the view, joining, stopped
  majority    how many members of this view must agree on the next one; may lose at once: how many can go together
              before too few are left (one after the other, more can)
  reached     whether this member has a link to that one; suspected: whether it takes it for gone
  lost        whom this member took for gone, when and why
  engine      how long that member's engine has stood still although its process lives
  sessions    for each sender: what it has promised to send, and what of it is received, stable (at every member),
              delivered and released (its room free again) here

explain:
  One line a reason: the rule (V1 majority, V2 view change, V5 eviction, V7 joining, V9 suspicion, D… delivery) and what it
  waits for. `nothing waits` if all is well.

Examples:
  consort status 127.0.0.1:7101
  consort status 127.0.0.1:7101 --json | jq '.view.members[] | select(.reached | not)'
  consort explain 127.0.0.1:7101 --key-file cluster.key";

/// `consort status` and `consort explain`.
#[derive(Debug, Args)]
#[command(after_help = "See `consort status --help` for what the words mean, and examples.")]
#[command(after_long_help = format!("{ASK_HELP}\n\n{EXIT_CODES}"))]
pub(crate) struct AskArgs {
    /// The control address of a member: its --listen
    pub(crate) address: SocketAddr,
    /// The secret that the group's members share, if they do
    #[arg(long, value_name = "FILE")]
    pub(crate) key_file: Option<PathBuf>,
    /// How long to wait for the answer
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = parse_duration)]
    pub(crate) within: Duration,
    /// Print the member's answer as it is: one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

const HW_HELP: &str = "\
What it tells:
  RDMA devices, their ports and addresses (GIDs), which of these a node would take and why; the limit of locked memory; NUMA nodes, CPUs, huge
  pages; what io_uring does for this process, found out by trying; which fabrics can be used; and what to change for lower latency, each with
  the command. It changes nothing. That there is no RDMA device is no failure. Neither libibverbs nor a build with verbs is needed.

Examples:
  consort hw
  consort hw --address 10.0.0.1
  consort hw --json | jq '.fabrics, .advice'";

/// `consort hw`.
#[derive(Args, Debug)]
#[command(after_long_help = format!("{HW_HELP}\n\n{EXIT_CODES}"))]
pub(crate) struct HwArgs {
    /// The address by which others reach a node here: the one of --listen. The GID that stands for it is taken
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) address: Option<IpAddr>,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

const LOG_HELP: &str = "\
What DIR is:
  The data directory of a node (what its --data names), with a log for each durable shard in it; or one shard's directory.
  verify, dump, stat and follow only read, and may be run while the node writes; repair wants the node stopped.

Conditions:
  sound     every record to the end has its sum, its place, and the chain of all before it
  torn      behind the last sound record lies a write that was never flushed: nobody was told that it is durable, and the
            next start of the node cuts it off (while a node writes, its last write may look so)
  damaged   something that had been flushed is not as it was; nothing from there on is served. repair keeps what is before,
            and notes that this log lacks something; the node gets the rest from the other members when it starts

Examples:
  consort log verify /var/lib/consort/1
  consort log dump /var/lib/consort/1 --from 1000 --limit 20
  consort log dump /var/lib/consort/1 --since 1765432100.5 --json
  consort log follow /var/lib/consort/1 --shard 2";

/// `consort log`.
#[derive(Debug, Subcommand)]
pub(crate) enum LogCommand {
    /// Read everything and say whether it is sound (exit code 0 only then)
    #[command(after_long_help = format!("{LOG_HELP}\n\n{EXIT_CODES}"))]
    Verify(LogArgs),
    /// Print records
    #[command(after_long_help = format!("{LOG_HELP}\n\n{EXIT_CODES}"))]
    Dump(LogDumpArgs),
    /// Count records and bytes, by segment and by sender
    #[command(after_long_help = format!("{LOG_HELP}\n\n{EXIT_CODES}"))]
    Stat(LogArgs),
    /// Print records as they are written, until interrupted
    #[command(after_long_help = format!("{LOG_HELP}\n\n{EXIT_CODES}"))]
    Follow(LogDumpArgs),
    /// Keep what is sound, remove what is not
    #[command(after_long_help = format!("{LOG_HELP}\n\n{EXIT_CODES}"))]
    Repair(LogArgs),
}

/// Which logs.
#[derive(Args, Debug)]
pub(crate) struct LogArgs {
    /// A node's data directory, or a shard's in it
    pub(crate) dir: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// Which records.
#[derive(Args, Debug)]
pub(crate) struct LogDumpArgs {
    /// A node's data directory, or a shard's in it
    pub(crate) dir: PathBuf,
    /// Which shard, if DIR has several
    #[arg(long)]
    pub(crate) shard: Option<u32>,
    /// Begin with this record
    #[arg(long, value_name = "INDEX", conflicts_with = "since")]
    pub(crate) from: Option<u64>,
    /// Begin with the first record that is not older: seconds since 1970
    #[arg(long, value_name = "SECONDS")]
    pub(crate) since: Option<f64>,
    /// At most so many records
    #[arg(long)]
    pub(crate) limit: Option<u64>,
    /// Print JSON, one object a record
    #[arg(long)]
    pub(crate) json: bool,
}

/// `--peer 2=127.0.0.1:7102`.
fn parse_peer(text: &str) -> Result<(u32, SocketAddr), String> {
    let (id, address) =
        text.split_once('=').ok_or_else(|| format!("`{text}` is no peer; write it like 2=127.0.0.1:7102"))?;
    let id = id.trim().parse::<u32>().ok().filter(|&id| id > 0);
    let id = id.ok_or_else(|| {
        format!("a peer's number is 1 or more, in `{text}`; write it like 2=127.0.0.1:7102")
    })?;
    let address = address.trim().parse().map_err(|_| {
        format!("`{address}` is no address with a port; write it like 127.0.0.1:7102 or [::1]:7102")
    })?;
    Ok((id, address))
}

/// `consort bench`.
#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// All in one page: latency, throughput by size and members, overload and failover
    #[command(after_long_help = format!("{REPORT_HELP}\n\n{EXIT_CODES}"))]
    Report(Box<ReportArgs>),
    /// Microseconds from send to delivery: one message outstanding, or a fixed rate
    #[command(after_long_help = format!("{BENCH_HELP}\n\n{LATENCY_HELP}\n\n{EXIT_CODES}"))]
    Latency(Box<LatencyArgs>),
    /// Messages and bytes a second, delivered at all members
    #[command(after_long_help = format!("{BENCH_HELP}\n\n{THROUGHPUT_HELP}\n\n{EXIT_CODES}"))]
    Throughput(Box<ThroughputArgs>),
    /// The machine's floor alone: what bare processes do without Consort
    #[command(after_long_help = format!("{BENCH_HELP}\n\n{EXIT_CODES}"))]
    Floor(Box<ThroughputArgs>),
    /// What the fabric does for one message: work requests, doorbells, completions, system calls, bytes
    #[command(after_long_help = format!("{COUNTS_HELP}\n\n{EXIT_CODES}"))]
    Counts(Box<CountsArgs>),
    /// Share of a core that a member uses while nothing is sent
    #[command(after_long_help = EXIT_CODES)]
    Idle(Box<IdleArgs>),
    /// A replicated object in total order and along a chain, side by side: updates a second, microseconds of a query
    #[command(after_long_help = format!("{REPLICAS_HELP}\n\n{EXIT_CODES}"))]
    Replicas(Box<ReplicasArgs>),
    /// Milliseconds that a group stands still when a member dies
    #[command(after_long_help = format!("{FAILOVER_HELP}\n\n{EXIT_CODES}"))]
    Failover(Box<FailoverArgs>),
    /// How long shards lack a replica when a node dies, and what the other shards notice
    #[command(after_long_help = format!("{REPAIR_HELP}\n\n{EXIT_CODES}"))]
    Repair(Box<RepairArgs>),
    /// What a member that joins with a large state costs the others, and how fast the state comes
    #[command(after_long_help = format!("{JOIN_HELP}\n\n{EXIT_CODES}"))]
    Join(Box<JoinArgs>),
    /// A durable group beside bare files that are written and flushed; and what it costs a volatile group beside it
    #[command(after_long_help = format!("{DURABLE_HELP}\n\n{EXIT_CODES}"))]
    Durable(Box<DurableArgs>),
    /// How long a durable group takes to begin again when all its members were killed
    #[command(after_long_help = format!("{RESTART_HELP}\n\n{EXIT_CODES}"))]
    Restart(Box<RestartArgs>),
}

const REPORT_HELP: &str = "\
What it measures:
  For each fabric and each number of members: latency of one message at a time (of the first two sizes), and what goes through
  when one member sends and when all do, of each size. For each fabric, of the first size: what goes through, and how late, when ever
  more is offered, up to twice of what can go through; and how long a group stands still when a member is killed. All as the single
  benchmarks measure it (`consort bench latency --help` and so on), each beside the machine's floor.

  Groups over shm and tcp of 2 and 3 members take about 8 minutes. Nothing else should run meanwhile.

What it writes:
  A page that needs nothing else to be looked at, and a file beside it, named .json, with all figures. The tables go to standard output, or with --json
  the figures.";

const BENCH_HELP: &str = "\
How it measures:
  Members are processes of their own, one thread each, which drives the engine and the application. Senders fill the
  whole payload of every message in place; receivers read all of it. Nothing counts before the warm-up is over.
  Every run is a new group. Figures are medians over the runs; --json has each run.

The floor:
  What the same machine does at the same minute without Consort, with as many processes, the same payload filled and
  read, and the same wait strategy: a run of the floor, then a run of the group, and so on in turn, so that the
  machine's drift falls on both.
                latency                                        throughput
    shm   a token that goes once round all processes     a ring in shared memory, its writers and readers
    tcp   root sends to each, and all answer             streams from each sender to each other, large writes
    verbs root writes into the memory of each, which     as over tcp
          each looks at, and all write back
  With shm and more than 64 bytes the latency floor is: root fills a payload, all read it and answer.
  Adaptive waiting in the floor is polling, with a yield at each turn if there are more processes than cores (pure
  polling would wait for time slices), otherwise after 64 turns in vain.";

const LATENCY_HELP: &str = "\
Latency:
  `own` is from send to delivery at the sender; `last member` is from send to delivery at whichever member is last (the
  clock is the machine's, the same for all). A sender keeps one message outstanding: it sends the next on its own
  delivery of the last. A stall then hides the messages that would have been sent meanwhile (coordinated omission), so
  figures are corrected: the loop kept a pace of one message in its mean latency; for a message that took longer than
  that, those are added that would have followed it at this pace, each with what it would have waited. The floor is
  corrected in the same way; --json has the uncorrected figures, too. With --rate the sender sends at fixed times whatever is outstanding, and latency counts from the time at which a message was due;
  that needs no correction.

Examples:
  consort bench latency --members 2 --fabric shm
  consort bench latency --fabric tcp --size 1KiB --rate 20000 --duration 5s
  consort bench latency --members 2 --fabric verbs --wait spin
  consort bench latency --runs 5 --json --plot latency.html";

const THROUGHPUT_HELP: &str = "\
Throughput:
  Senders send as fast as the group takes it. A message counts when the slowest member has delivered it. GB/s counts
  payload once, however many receive it. Latencies shown are those of sampled messages under this load.

Examples:
  consort bench throughput --fabric shm --size 10KiB
  consort bench throughput --members 3 --senders 3 --fabric tcp
  consort bench throughput --json | jq '{msgs_per_s, ratio}'";

const COUNTS_HELP: &str = "\
How it counts:
  Members are processes of their own, as in `bench latency` and `bench throughput`. For each size: one sends, and all send; one message at
  a time of each sender, and as fast as the group takes it. What every member's fabric counted in the measured time is divided by the
  messages that this member delivered in it, and summed over the members. Unlike times, these figures are much the same on any machine.
    requests    work requests given to RDMA devices: writes
    doorbells   times that a device was told of a list of them
    signalled   work requests of which the device was to tell that they are done; completions: what was taken of these and of wakes
    inline      work requests that carry their bytes, which the device then need not fetch
    wakes       sleeping members woken: each is a work request, too, or a system call
    bytes       bytes of these writes; over TCP, bytes handed to the kernel; over shared memory nothing is copied
  The first four are 0 where there is no RDMA. A message that is sent to n others is n times its bytes.

Examples:
  consort bench counts --fabric verbs
  consort bench counts --fabric verbs --members 5 --sizes 64,1KiB --json | jq '.cells[] | {size, senders, load, per_message}'";

const REPLICAS_HELP: &str = "\
How it measures:
  Members are processes of their own, each with a replica of one object. Some update it, with many updates under way at
  once, and in every member one thread asks it, one linearizable query after the other. Each run has three parts:
    updates        nobody asks: updates a second, applied at the slowest member
    under load     the same updates, and queries at all members: how long a query takes
    quiet          nobody updates: how long a query takes
  Who asks asks again when it has the answer, so times are corrected for what a stall hides, as `bench latency` does.
  A run in total order (each sends to all), a run along a chain (each sends to the next), the floor, and so on in turn.
  The floor is what `bench latency` has: a round between as many bare processes, with 64 bytes.
  Over shared memory a chain carries nothing, and both are the same.

Examples:
  consort bench replicas --fabric tcp --size 10KiB
  consort bench replicas --fabric tcp --members 5 --updaters 5 --json";

const REPAIR_HELP: &str = "\
How it measures:
  Nodes are processes of their own, spread over failure domains, with the shards of one group on them and an object on each, which every
  node that has it updates steadily. One node is killed (kill -9), then another; none comes in its place. It is the one
  that has most shards, but not all, so that some are spared.
    repaired    from the kill until every shard has --replicas members again, or as many as there are nodes left; each of
                them has the state by then and was told of a view that has it
    moved       replicas that are on nodes where they were not before
    spared      shards whose session went on through it all
    longest gap the longest time from one update to the next in those, at any of their members, from the kill until 100 ms
                after the repair
    no failure  the same in an equally long time afterwards: what the machine does by itself
  Each run begins with new nodes.

Examples:
  consort bench repair --fabric tcp
  consort bench repair --nodes 7 --domains 7 --shards 5 --kills 3 --json";

const FAILOVER_HELP: &str = "\
How it measures:
  Members are processes of their own that all send small messages steadily. One is killed (kill -9), in turn the leader and
  each of the others; the survivors say what they saw; it is started again and joins, and so on.
    detection   from the kill until the first survivor takes the victim for gone
    outage      the longest time from one delivery to the next, at any survivor, from the kill until the first delivery in
                the view without the victim
  With --silent the victim is stopped (SIGSTOP) instead: nothing proves that it is gone, and its silence has to tell, for
  which --silence is the bound.
  With --spared each half of the members is a group, too, and sends in it. The victim's death is no concern of the other half:
    spared      the longest time from one delivery to the next in that group, at any member, from the kill until 100 ms after
                the view without the victim
    no failure  the same in an equally long time after the victim has joined again: what the machine does by itself
  Beside them: from the kill of a bare process with as much memory as a member to the end of its connection to another,
  which is what the machine takes to close what a dead process held open.

Examples:
  consort bench failover --fabric shm
  consort bench failover --fabric tcp --members 5 --kills 100 --json
  consort bench failover --silent --silence 500ms
  consort bench failover --spared --members 5";

const JOIN_HELP: &str = "\
How it measures:
  Members are processes of their own that all send small messages steadily. Another one is started, gets the state from one of
  them while the group goes on, joins, and leaves again.
    longest gap       the longest time from one delivery to the next, at any of the others, from the start of its process until
                      all deliver in a view with it
    without a join    the same in an equally long time after it has left: what the machine does by itself
    transfer          from the start of its node until the state is there, whole and checked
    bare TCP          as many bytes over one connection on the loopback interface, from process to process, in the same run
    restoring         what the application took to read the state, and to see that it is the right one
    catching up       from then until its first delivery in a view with it
  The state costs the others no memory: it is one pattern, over and over. The joiner's copy is kept by the library.

Examples:
  consort bench join --fabric shm
  consort bench join --fabric tcp --state 1GiB --runs 1 --json";

const DURABLE_HELP: &str = "\
How it measures:
  Members are processes of their own, one thread each, which drives the engine and the application; a second one writes the log.
  Their data directories are on one disk. In each round, one after the other:
    throughput   of each of --sizes: all members send as fast as the group takes it. A message counts when the slowest member has
                 delivered it, which is when all have flushed it
    floor        as many bare files as members, on the same disk at the same time, a thread each: a write at the end and fdatasync, and
                 so on, with as many bytes a write as the log had just reached on average. Once through the kernel's cache and once past it
                 (O_DIRECT, where the file system can); the quicker counts. MB/s (10^6) are those of the slowest file
    latency      of the first of --sizes: one member sends, the next message when the last is delivered to it
    flush        a write with fdatasync, of as many bytes as the log had with one message at a time: one file alone, and as many files as
                 members, all at the same moment
    logged       throughput and latency once more, of a group whose guarantee is `logged`: delivery waits for no disk, room for more messages does
    beside       a volatile group and a durable one in the same nodes, and all members send in the volatile one as fast as it takes it:
                 while nothing is sent in the durable one, and while there, too, as much is sent as it takes
  Figures are medians over the rounds; --json has each. The ratio is the payload's bytes a second to the floor's bytes a second; log ratio is the
  same with what the log adds to the payload. Who sends one message after the other, or flushes so, hides what a stall would have delayed:
  quantiles are corrected for that, as `bench latency` does; --json has the medians as measured, too.

The disk:
  The files are in a new directory within --dir, which is removed at the end, whatever the end is. A file system in memory is refused, for
  a flush there is nothing.

Examples:
  consort bench durable --dir /var/tmp
  consort bench durable --sizes 64,1KiB,100KiB --runs 5 --json | jq '.throughput[] | {size, mb_per_s, ratio}'";

const RESTART_HELP: &str = "\
How it measures:
  Members are processes of their own. They fill their logs with as much as --log-size says, each; then all are killed (kill -9), the kernel is
  asked to forget what it keeps of the files in memory, and all are started again, which each tells everything that is in its log and sends
  one new message; and so on. From the start of the processes on:
    opened       every member has read its log through and judged it
    told again   every member was told everything that had been delivered; each message was looked at, and was what had been sent
    first new    the first delivery of a new message, at any member
    rate         the log's bytes by the time until all was told again
    memory       the most that was ever resident of a member (VmHWM), its shared memory included; beside it that of the life that filled
                 the logs

The disk:
  The files are in a new directory within --dir, which is removed at the end, whatever the end is. A file system in memory is refused.

Examples:
  consort bench restart --log-size 1GiB --dir /var/tmp
  consort bench restart --log-size 100MiB --size 10KiB --runs 1 --json";

/// Where measurements of the disk write.
#[derive(Debug, Args)]
pub(crate) struct DiskArgs {
    /// Where to make the directory for the files [default: the working directory]
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// Take a file system that is memory, too
    #[arg(long)]
    pub(crate) any_disk: bool,
}

/// What all measurements have in common.
#[derive(Clone, Debug, Args)]
pub(crate) struct GroupArgs {
    /// How many member processes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST_MEMBERS)))]
    pub(crate) members: u32,
    /// How their memory reaches each other
    #[arg(long, value_enum, default_value_t = FabricArg::Auto)]
    pub(crate) fabric: FabricArg,
    /// What a delivery promises
    #[arg(long, value_enum, default_value_t = GuaranteeArg::Atomic)]
    pub(crate) guarantee: GuaranteeArg,
    /// What a member (and the floor) does while nothing happens
    #[arg(long, value_enum, default_value_t = WaitArg::Adaptive)]
    pub(crate) wait: WaitArg,
    /// How long each run measures
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = parse_duration)]
    pub(crate) duration: Duration,
    /// How many runs; the median counts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=99))]
    pub(crate) runs: u32,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// Where a member runs: what stands in front of its command, and its address there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostArg {
    pub(crate) command: Vec<String>,
    pub(crate) address: IpAddr,
}

fn parse_host(text: &str) -> Result<HostArg, String> {
    let wanted = || format!("{text:?} is no command and address; give them as 'ip netns exec one=10.0.0.1'");
    let (command, address) = text.rsplit_once('=').ok_or_else(wanted)?;
    let command: Vec<String> = command.split_whitespace().map(str::to_owned).collect();
    let address = address.parse().map_err(|_| wanted())?;
    if command.is_empty() { Err(wanted()) } else { Ok(HostArg { command, address }) }
}

/// What the measurements that send have in common.
#[derive(Debug, Args)]
pub(crate) struct LoadArgs {
    #[command(flatten)]
    pub(crate) group: GroupArgs,
    /// How many of them send
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST_MEMBERS)))]
    pub(crate) senders: u32,
    /// Payload of a message
    #[arg(long, value_name = "BYTES", default_value = "64", value_parser = parse_bytes)]
    pub(crate) size: usize,
    /// Which way its bytes go
    #[arg(long, value_enum, default_value_t = TopologyArg::Direct)]
    pub(crate) topology: TopologyArg,
    /// Memory for messages in flight, per member (and of the floor's ring) [default: by the size]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub(crate) ring: Option<usize>,
    /// Start the next member (and the floor's process) by this command in front of its own, at this address: one for each. For network
    /// namespaces, so that members have a network between them; all are on this machine
    #[arg(long = "host", value_name = "COMMAND=ADDRESS", value_parser = parse_host)]
    pub(crate) hosts: Vec<HostArg>,
    /// So many groups beside the measured one, of the same members, in which nothing is sent
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=i64::from(MOST_GROUPS)))]
    pub(crate) idle_groups: u32,
    /// Run so long before anything counts
    #[arg(long, value_name = "TIME", default_value = "300ms", value_parser = parse_duration)]
    pub(crate) warmup: Duration,
    /// Write a page with the plots to this file; it needs nothing else to be looked at
    #[arg(long, value_name = "FILE.html")]
    pub(crate) plot: Option<PathBuf>,
}

/// `consort bench latency`.
#[derive(Debug, Args)]
pub(crate) struct LatencyArgs {
    #[command(flatten)]
    pub(crate) load: LoadArgs,
    /// Send at this rate (messages a second and sender) instead of one after the other
    #[arg(long, value_name = "PER_SECOND", value_parser = parse_rate, allow_negative_numbers = true)]
    pub(crate) rate: Option<f64>,
}

/// `consort bench throughput`.
#[derive(Debug, Args)]
pub(crate) struct ThroughputArgs {
    #[command(flatten)]
    pub(crate) load: LoadArgs,
}

/// `consort bench report`.
#[derive(Debug, Args)]
pub(crate) struct ReportArgs {
    /// Over which fabrics
    #[arg(long, value_enum, value_delimiter = ',', default_value = "shm,tcp")]
    pub(crate) fabric: Vec<FabricArg>,
    /// How many member processes
    #[arg(long, value_delimiter = ',', default_value = "2,3", value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST_MEMBERS)))]
    pub(crate) members: Vec<u32>,
    /// Payloads of messages
    #[arg(long, value_name = "BYTES", value_delimiter = ',', default_value = "64,10KiB,1KiB,100KiB,1MiB", value_parser = parse_bytes)]
    pub(crate) sizes: Vec<usize>,
    /// How many members die, one after the other; 0: none
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    pub(crate) kills: u32,
    /// How long each run measures
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = parse_duration)]
    pub(crate) duration: Duration,
    /// How many runs; the median counts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=99))]
    pub(crate) runs: u32,
    /// Run so long before anything counts
    #[arg(long, value_name = "TIME", default_value = "300ms", value_parser = parse_duration)]
    pub(crate) warmup: Duration,
    /// Other systems beside Consort, to be shown too: what `scripts/peers --json --out FILE` wrote
    #[arg(long, value_name = "FILE.json")]
    pub(crate) peers: Option<PathBuf>,
    /// Where the page goes; the figures go beside it
    #[arg(long, value_name = "FILE.html", default_value = "consort-report.html")]
    pub(crate) out: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

impl ReportArgs {
    /// What the parser of single values can't see.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        if self.out.extension().is_none_or(|of| of != "html") {
            return Err(Failure::usage(
                format!("{} is no name of a page", self.out.display()),
                "give --out a name that ends in .html; the figures go to one that ends in .json",
            ));
        }
        self.sizes.iter().try_for_each(|&size| check_payload(size, "--sizes"))?;
        self.load(FabricArg::Auto, 1, 1, 1).check()
    }

    /// One of the loads that are measured.
    pub(crate) fn load(&self, fabric: FabricArg, members: u32, size: usize, senders: u32) -> LoadArgs {
        let group = GroupArgs {
            members,
            fabric,
            guarantee: GuaranteeArg::Atomic,
            wait: WaitArg::Adaptive,
            duration: self.duration,
            runs: self.runs,
            json: false,
        };
        let (topology, warmup) = (TopologyArg::Direct, self.warmup);
        let (ring, hosts, plot) = (None, Vec::new(), None);
        LoadArgs { group, senders, size, topology, idle_groups: 0, ring, hosts, warmup, plot }
    }
}

/// `consort bench replicas`.
#[derive(Debug, Args)]
pub(crate) struct ReplicasArgs {
    /// How many member processes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(2..=i64::from(MOST_MEMBERS)))]
    pub(crate) members: u32,
    /// How many of them update
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST_MEMBERS)))]
    pub(crate) updaters: u32,
    /// Bytes of an update
    #[arg(long, value_name = "BYTES", default_value = "64", value_parser = parse_bytes)]
    pub(crate) size: usize,
    /// How their memory reaches each other
    #[arg(long, value_enum, default_value_t = FabricArg::Tcp)]
    pub(crate) fabric: FabricArg,
    /// What a member (and the floor) does while nothing happens
    #[arg(long, value_enum, default_value_t = WaitArg::Adaptive)]
    pub(crate) wait: WaitArg,
    /// How long each part of a run measures
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = parse_duration)]
    pub(crate) duration: Duration,
    /// Run so long before anything counts
    #[arg(long, value_name = "TIME", default_value = "300ms", value_parser = parse_duration)]
    pub(crate) warmup: Duration,
    /// How many runs of each kind; the median counts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=99))]
    pub(crate) runs: u32,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

impl ReplicasArgs {
    /// What the parser of single values can't see.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        if self.updaters > self.members {
            return Err(Failure::usage(
                format!("{} of {} members can't update", self.updaters, self.members),
                "give no more --updaters than --members",
            ));
        }
        if self.fabric == FabricArg::Verbs {
            return Err(Failure::usage("there are no chains over RDMA", "give --fabric tcp or shm"));
        }
        Ok(())
    }
}

/// `consort bench counts`.
#[derive(Debug, Args)]
pub(crate) struct CountsArgs {
    #[command(flatten)]
    pub(crate) group: GroupArgs,
    /// Payloads of messages
    #[arg(long, value_name = "BYTES", value_delimiter = ',', default_value = "64,10KiB", value_parser = parse_bytes)]
    pub(crate) sizes: Vec<usize>,
    /// Run so long before anything counts
    #[arg(long, value_name = "TIME", default_value = "300ms", value_parser = parse_duration)]
    pub(crate) warmup: Duration,
}

impl CountsArgs {
    /// One of the loads that are counted.
    pub(crate) fn load(&self, size: usize, senders: u32) -> LoadArgs {
        let (group, warmup) = (self.group.clone(), self.warmup);
        let (topology, ring, hosts, plot) = (TopologyArg::Direct, None, Vec::new(), None);
        LoadArgs { group, senders, size, topology, idle_groups: 0, ring, hosts, warmup, plot }
    }

    /// What the parser of single values can't see.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        self.sizes.iter().try_for_each(|&size| check_payload(size, "--sizes"))?;
        self.load(1, 1).check()
    }
}

/// `consort bench idle`.
#[derive(Debug, Args)]
pub(crate) struct IdleArgs {
    #[command(flatten)]
    pub(crate) group: GroupArgs,
    /// So many groups beside the main one, of the same members
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=i64::from(MOST_GROUPS)))]
    pub(crate) idle_groups: u32,
}

/// `consort bench failover`.
#[derive(Debug, Args)]
pub(crate) struct FailoverArgs {
    /// How many member processes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(3..=i64::from(MOST_MEMBERS)))]
    pub(crate) members: u32,
    /// How their memory reaches each other
    #[arg(long, value_enum, default_value_t = FabricArg::Auto)]
    pub(crate) fabric: FabricArg,
    /// How many members die, one after the other
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) kills: u32,
    /// How long a member may say nothing before it is taken for gone
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = parse_duration)]
    pub(crate) silence: Duration,
    /// Stop the victims instead of killing them: only their silence tells
    #[arg(long)]
    pub(crate) silent: bool,
    /// Measure a group that the victim is no member of, too
    #[arg(long)]
    pub(crate) spared: bool,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

impl FailoverArgs {
    /// What the parser of single values can't see.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        if self.silence < Duration::from_millis(20) || self.silence > Duration::from_secs(60) {
            return Err(Failure::usage(
                format!("a bound on silence of {:?} can't be measured", self.silence),
                "give --silence between 20ms and 60s",
            ));
        }
        if self.spared && self.members < LEAST_SPARED {
            return Err(Failure::usage(
                format!("{} members make no two groups of two or more", self.members),
                format!("give --members {LEAST_SPARED} or more with --spared"),
            ));
        }
        Ok(())
    }
}

/// As many members make two groups that have something to tell each other.
const LEAST_SPARED: u32 = 4;

/// `consort bench repair`.
#[derive(Debug, Args)]
pub(crate) struct RepairArgs {
    /// How many node processes
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(3..=i64::from(MOST_MEMBERS)))]
    pub(crate) nodes: u32,
    /// Over how many failure domains they are spread
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST_MEMBERS)))]
    pub(crate) domains: u32,
    /// How many shards
    #[arg(long, default_value_t = 3, value_parser = parse_shards)]
    pub(crate) shards: usize,
    /// How many nodes have each shard
    #[arg(long, default_value_t = 3, value_parser = parse_shards)]
    pub(crate) replicas: usize,
    /// How many nodes die in a run, one after the other
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST_MEMBERS)))]
    pub(crate) kills: u32,
    /// Updates a second that a node sends to each shard that it has
    #[arg(long, value_name = "PER-SECOND", default_value_t = 1000.0)]
    pub(crate) rate: f64,
    /// Bytes of an update
    #[arg(long, value_name = "BYTES", default_value = "64", value_parser = parse_bytes)]
    pub(crate) size: usize,
    /// How their memory reaches each other
    #[arg(long, value_enum, default_value_t = FabricArg::Auto)]
    pub(crate) fabric: FabricArg,
    /// How many runs
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=99))]
    pub(crate) runs: u32,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

impl RepairArgs {
    /// What the parser of single values can't see.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        if self.kills + 2 > self.nodes {
            return Err(Failure::usage(
                format!(
                    "of {} nodes that die one after the other {} can't: the last two are no majority without each other",
                    self.nodes, self.kills
                ),
                format!("give --kills {} or fewer, or more --nodes", self.nodes - 2),
            ));
        }
        if self.replicas > self.nodes as usize {
            return Err(Failure::usage(
                format!("{} nodes are too few for {} replicas of each shard", self.nodes, self.replicas),
                "give no more --replicas than --nodes",
            ));
        }
        if self.domains > self.nodes {
            return Err(Failure::usage(
                format!("{} nodes can't be in {} domains", self.nodes, self.domains),
                "give no more --domains than --nodes",
            ));
        }
        if !(self.rate >= 1.0 && self.rate <= 100_000.0) {
            return Err(Failure::usage(
                format!("a rate of {} updates a second can't be kept", self.rate),
                "give --rate between 1 and 100000",
            ));
        }
        Ok(())
    }
}

fn parse_shards(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|count| (1..=16).contains(count))
        .ok_or_else(|| "give a number from 1 to 16".to_owned())
}

/// `consort bench durable`.
#[derive(Debug, Args)]
pub(crate) struct DurableArgs {
    /// How many member processes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST_MEMBERS)))]
    pub(crate) members: u32,
    /// How their memory reaches each other
    #[arg(long, value_enum, default_value_t = FabricArg::Auto)]
    pub(crate) fabric: FabricArg,
    /// What a member does while nothing happens
    #[arg(long, value_enum, default_value_t = WaitArg::Adaptive)]
    pub(crate) wait: WaitArg,
    /// Payloads of the messages
    #[arg(long, value_name = "SIZES", default_value = "1KiB,10KiB", value_delimiter = ',', value_parser = parse_bytes)]
    pub(crate) sizes: Vec<usize>,
    /// Memory for messages in flight, per member [default: by the size]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub(crate) ring: Option<usize>,
    /// How long each part of a round measures; bare files half as long
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = parse_duration)]
    pub(crate) duration: Duration,
    /// Run so long before anything counts
    #[arg(long, value_name = "TIME", default_value = "300ms", value_parser = parse_duration)]
    pub(crate) warmup: Duration,
    /// How many rounds; the median counts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=99))]
    pub(crate) runs: u32,
    #[command(flatten)]
    pub(crate) disk: DiskArgs,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

impl DurableArgs {
    /// As a measurement under load has it, of that size.
    pub(crate) fn load(&self, size: usize, senders: u32) -> LoadArgs {
        let Self { members, fabric, wait, ring, duration, warmup, runs, json, .. } = *self;
        let guarantee = GuaranteeArg::Atomic;
        LoadArgs {
            group: GroupArgs { members, fabric, guarantee, wait, duration, runs, json },
            senders,
            size,
            topology: TopologyArg::Direct,
            idle_groups: 0,
            ring,
            hosts: Vec::new(),
            warmup,
            plot: None,
        }
    }

    /// What the parser of single values can't see.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        self.sizes.iter().try_for_each(|size| {
            check_payload(*size, "--sizes")?;
            self.load(*size, self.members).check()
        })
    }
}

/// `consort bench restart`.
#[derive(Debug, Args)]
pub(crate) struct RestartArgs {
    /// How many member processes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST_MEMBERS)))]
    pub(crate) members: u32,
    /// How their memory reaches each other
    #[arg(long, value_enum, default_value_t = FabricArg::Auto)]
    pub(crate) fabric: FabricArg,
    /// How long the log of each member is when they are killed
    #[arg(long, value_name = "SIZE", default_value = "1GiB", value_parser = parse_bytes)]
    pub(crate) log_size: usize,
    /// Payload of the messages that fill it
    #[arg(long, value_name = "BYTES", default_value = "1KiB", value_parser = parse_bytes)]
    pub(crate) size: usize,
    /// How many times they are killed and started again; the median counts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=99))]
    pub(crate) runs: u32,
    #[command(flatten)]
    pub(crate) disk: DiskArgs,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

impl RestartArgs {
    /// What the parser of single values can't see.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        if self.size < LEAST_FILLING || self.size > LARGEST_PAYLOAD {
            return Err(Failure::usage(
                format!("logs can't be filled with messages of {} bytes", self.size),
                format!("give --size between {LEAST_FILLING} and {LARGEST_PAYLOAD} bytes"),
            ));
        }
        let least = self.size * self.members as usize;
        if self.log_size < least || self.log_size > LARGEST_LOG {
            return Err(Failure::usage(
                format!("a log of {} bytes can't be measured", self.log_size),
                format!("give --log-size between {least} bytes, with a message of each member, and 1TiB"),
            ));
        }
        Ok(())
    }
}

/// The least payload that fills logs: new messages are shorter, by which they are known.
const LEAST_FILLING: usize = 16;

/// The longest log that is measured.
const LARGEST_LOG: usize = 1 << 40;

/// `consort bench join`.
#[derive(Debug, Args)]
pub(crate) struct JoinArgs {
    /// How many member processes, beside the one that joins
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST_MEMBERS) - 1))]
    pub(crate) members: u32,
    /// How their memory reaches each other
    #[arg(long, value_enum, default_value_t = FabricArg::Auto)]
    pub(crate) fabric: FabricArg,
    /// How large the state is
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = parse_bytes)]
    pub(crate) state: usize,
    /// How many times one joins
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=99))]
    pub(crate) runs: u32,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// `consort kv`.
#[derive(Debug, Subcommand)]
#[command(after_long_help = format!("{KV_HELP}\n\n{EXIT_CODES}"))]
pub(crate) enum KvCommand {
    /// Be one server of the store
    #[command(after_long_help = format!("{KV_HELP}\n\n{EXIT_CODES}"))]
    Serve(Box<KvServeArgs>),
    /// Put a value, and print its version
    #[command(after_long_help = format!("{KV_HELP}\n\n{EXIT_CODES}"))]
    Put(Box<KvPutArgs>),
    /// Print a key's value
    #[command(after_long_help = format!("{KV_HELP}\n\n{EXIT_CODES}"))]
    Get(Box<KvGetArgs>),
    /// Delete a key
    #[command(after_long_help = format!("{KV_HELP}\n\n{EXIT_CODES}"))]
    Delete(Box<KvDeleteArgs>),
    /// Print changes as one server applies them: of a key, or of all that it has
    #[command(after_long_help = format!("{KV_HELP}\n\n{EXIT_CODES}"))]
    Watch(Box<KvWatchArgs>),
    /// Requests a second, and how long they take, with clients that each send one after the other
    #[command(after_long_help = format!("{KV_HELP}\n\n{EXIT_CODES}"))]
    Bench(Box<KvBenchArgs>),
}

const KV_HELP: &str = "\
The store:
  Keys are spread over shards by a hash; each shard is an object with replicas at some of the servers, laid out by the
  view. When a server is lost its places go to others, which get the shard's state first. A server that hasn't got a
  key's shard says who has, and the client goes there. Nothing is written to disk: what all replicas of a shard held
  is gone when all of them are.
  put and delete are answered when they are applied, in one order at all replicas. get is linearizable: it sees every
  change that had been answered when it was asked; with --local it sees what that server has.
  Keys have 1 to 512 bytes, values up to 64 KiB.

Versions:
  Each put of a key gives it the next version. A new key begins with 1, or above the versions that deleted keys of its
  shard had: so a key that comes again has none that it had before. With
  --if-version V a put or a delete is done only if that is the version, and 0 means that the key isn't there; otherwise
  the exit code is 8. So of several who try the same change one succeeds.

When a server doesn't answer:
  Another is asked. But a change that was sent and not answered may have been made; then the exit code is 5, and the
  message says so.

Clients connect to another port than servers: --clients, or 1000 above the port of --listen. They speak JSON lines:
  {\"do\":\"put\",\"key\":\"colour\",\"value\":\"red\"}   with \"if_version\" if wanted
  {\"do\":\"get\",\"key\":\"colour\"}   {\"do\":\"delete\",\"key\":\"colour\"}   {\"do\":\"watch\"}

Examples, in three terminals:
  consort kv serve --id 1 --listen 127.0.0.1:7101 --peer 2=127.0.0.1:7102 --peer 3=127.0.0.1:7103
  consort kv serve --id 2 --listen 127.0.0.1:7102 --peer 1=127.0.0.1:7101 --peer 3=127.0.0.1:7103
  consort kv serve --id 3 --listen 127.0.0.1:7103 --peer 1=127.0.0.1:7101 --peer 2=127.0.0.1:7102
a fourth, later:
  consort kv serve --id 4 --listen 127.0.0.1:7104 --join 127.0.0.1:7101,127.0.0.1:7102
and in another:
  consort kv put colour red --server 127.0.0.1:8101,127.0.0.1:8102
  consort kv get colour --server 127.0.0.1:8103
  consort kv put colour green --if-version 1 --server 127.0.0.1:8101
  consort kv watch --server 127.0.0.1:8101 --json
  consort kv bench --clients 8 --reads 90 --server 127.0.0.1:8101,127.0.0.1:8102,127.0.0.1:8103
  consort status 127.0.0.1:7101         who has which shard";

/// `consort kv serve`.
#[derive(Debug, Args)]
pub(crate) struct KvServeArgs {
    /// This server's number, from 1
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) id: u32,
    /// The control address of this server; the others name it in --peer
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) listen: SocketAddr,
    /// Another founder of the store and its control address; once for each of them
    #[arg(long = "peer", value_name = "ID=ADDRESS", value_parser = parse_peer)]
    pub(crate) peers: Vec<(u32, SocketAddr)>,
    /// Join the store that runs at one of these control addresses, instead of founding one with --peer
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    pub(crate) join: Vec<SocketAddr>,
    /// How many shards; the same at all servers
    #[arg(long, default_value_t = 3)]
    pub(crate) shards: usize,
    /// How many servers have each shard, as far as there are so many; the same at all servers
    #[arg(long, default_value_t = 3)]
    pub(crate) replicas: usize,
    /// How updates reach a shard's replicas: from the server that takes them to each, or along a chain; the same at all servers
    #[arg(long, value_enum, default_value_t = TopologyArg::Direct)]
    pub(crate) topology: TopologyArg,
    /// What this server fails with, a rack or a zone: a shard's replicas are spread over as many as there are
    #[arg(long, value_name = "NAME")]
    pub(crate) domain: Option<String>,
    /// Where clients are served [default: the port 1000 above that of --listen]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) clients: Option<SocketAddr>,
    /// How the servers' memory reaches each other; the same at all servers
    #[arg(long, value_enum, default_value_t = FabricArg::Auto)]
    pub(crate) fabric: FabricArg,
    /// When the store went on without this server, or no majority can be reached: join again instead of ending
    #[arg(long)]
    pub(crate) rejoin: bool,
    /// How long a server may say nothing before it is taken for gone [default: 1s]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub(crate) silence: Option<Duration>,
    /// The secret that all servers share, in a file that only its owner may read
    #[arg(long, value_name = "FILE")]
    pub(crate) key_file: Option<PathBuf>,
}

/// Whom the store's clients ask.
#[derive(Debug, Args)]
pub(crate) struct KvClientArgs {
    /// Servers' addresses for clients: some that are there
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',', required = true)]
    pub(crate) server: Vec<SocketAddr>,
    /// How long to look for a server that can do it, and to wait for it
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    pub(crate) within: Duration,
    /// Print JSON: one object, or one a change
    #[arg(long)]
    pub(crate) json: bool,
}

impl JoinArgs {
    /// What the parser of single values can't see.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        if self.state == 0 || self.state > LARGEST_STATE {
            return Err(Failure::usage(
                format!("the transfer of a state of {} bytes can't be measured", self.state),
                "give --state between 1 and 64GiB",
            ));
        }
        Ok(())
    }
}

/// The largest state that is measured: the joiner has to keep it.
const LARGEST_STATE: usize = 64 << 30;

/// `consort kv put`.
#[derive(Debug, Args)]
pub(crate) struct KvPutArgs {
    /// The key
    pub(crate) key: String,
    /// Its value from now on
    pub(crate) value: String,
    /// Only if that is its version; 0 is that it isn't there
    #[arg(long, value_name = "VERSION")]
    pub(crate) if_version: Option<u64>,
    #[command(flatten)]
    pub(crate) to: KvClientArgs,
}

/// `consort kv get`.
#[derive(Debug, Args)]
pub(crate) struct KvGetArgs {
    /// The key
    pub(crate) key: String,
    /// What one server has, which may be older than what others were answered
    #[arg(long)]
    pub(crate) local: bool,
    #[command(flatten)]
    pub(crate) to: KvClientArgs,
}

/// `consort kv delete`.
#[derive(Debug, Args)]
pub(crate) struct KvDeleteArgs {
    /// The key
    pub(crate) key: String,
    /// Only if that is its version
    #[arg(long, value_name = "VERSION")]
    pub(crate) if_version: Option<u64>,
    #[command(flatten)]
    pub(crate) to: KvClientArgs,
}

/// `consort kv watch`.
#[derive(Debug, Args)]
pub(crate) struct KvWatchArgs {
    /// The key, whose value is printed at once if there is one; without it, all that the server has
    pub(crate) key: Option<String>,
    #[command(flatten)]
    pub(crate) to: KvClientArgs,
}

/// `consort kv bench`.
#[derive(Debug, Args)]
pub(crate) struct KvBenchArgs {
    /// How many clients, each with a connection and one request at a time
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(crate) clients: u32,
    /// How long
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = parse_duration)]
    pub(crate) seconds: Duration,
    /// How many of a hundred requests are gets
    #[arg(long, value_name = "PERCENT", default_value_t = 50, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub(crate) reads: u32,
    /// Gets see what the server has, instead of every change that was answered
    #[arg(long)]
    pub(crate) local: bool,
    /// Bytes of a value
    #[arg(long, value_name = "BYTES", default_value = "64", value_parser = parse_bytes)]
    pub(crate) size: usize,
    /// How many keys they choose from
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) keys: u32,
    #[command(flatten)]
    pub(crate) to: KvClientArgs,
}

fn parse_rate(text: &str) -> Result<f64, String> {
    match text.trim().parse::<f64>() {
        Ok(rate) if rate.is_finite() && rate > 0.0 && rate <= 1e9 => Ok(rate),
        _ => Err(format!("`{text}` is not a rate; give messages a second, more than 0, like 20000")),
    }
}

impl GroupArgs {
    /// What the parser of single values can't see.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        if self.duration < Duration::from_millis(50) || self.duration > Duration::from_secs(3600) {
            return Err(Failure::usage(
                "a run shorter than 50 ms or longer than an hour tells nothing",
                "give --duration between 50ms and 60min",
            ));
        }
        Ok(())
    }
}

/// The largest payload that a measurement takes: the rings of all members must fit in memory several times.
const LARGEST_PAYLOAD: usize = 256 << 20;

impl LoadArgs {
    pub(crate) fn check(&self) -> Result<(), Failure> {
        self.group.check()?;
        if self.senders > self.group.members {
            return Err(Failure::usage(
                format!("{} senders can't be among {} members", self.senders, self.group.members),
                format!("give --senders {} or less, or more --members", self.group.members),
            ));
        }
        check_payload(self.size, "--size")?;
        let (hosts, members) = (self.hosts.len(), self.group.members);
        if hosts > 0 && hosts != members as usize {
            return Err(Failure::usage(
                format!("{hosts} hosts are not one for each of {members} members"),
                format!("give --host {members} times, or not at all"),
            ));
        }
        if hosts > 0 && matches!(self.group.fabric, FabricArg::Auto | FabricArg::Shm) {
            return Err(Failure::usage(
                "members with a network between them share no memory",
                "give --fabric tcp or verbs with --host",
            ));
        }
        if self.warmup > Duration::from_secs(60) {
            return Err(Failure::usage(
                "a warm-up of more than a minute warms nothing",
                "give a shorter --warmup",
            ));
        }
        Ok(())
    }
}

/// Refuses a payload that can't be measured, and names the option that gave it.
fn check_payload(size: usize, option: &str) -> Result<(), Failure> {
    if size == 0 || size > LARGEST_PAYLOAD {
        return Err(Failure::usage(
            format!("a payload of {size} bytes can't be measured"),
            format!("give {option} between 1 and {LARGEST_PAYLOAD} bytes"),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn examples_in_the_help_parse() {
        let mut examples = 0;
        for line in [
            START_HERE,
            DEMO_HELP,
            NODE_HELP,
            KV_HELP,
            LATENCY_HELP,
            THROUGHPUT_HELP,
            COUNTS_HELP,
            HW_HELP,
            FAILOVER_HELP,
            JOIN_HELP,
            REPAIR_HELP,
            REPLICAS_HELP,
            DURABLE_HELP,
            RESTART_HELP,
            LOG_HELP,
            ASK_HELP,
        ]
        .iter()
        .flat_map(|help| help.lines())
        {
            let Some(at) = line.find("consort ") else { continue };
            if !line.starts_with("  ") || line.contains("consort help") || line.contains("--help") {
                continue;
            }
            // What the shell or a remark takes for itself is not the command's.
            let command = line[at..].split("   ").next().unwrap().split(['|', '<', '&']).next().unwrap();
            if let Err(refused) = Cli::try_parse_from(command.split_whitespace()) {
                panic!("{command}: {refused}");
            }
            examples += 1;
        }
        assert!(examples >= 12, "only {examples} examples found");
    }

    #[test]
    fn peers_are_numbers_with_addresses() {
        assert_eq!(parse_peer("2=127.0.0.1:7102"), Ok((2, "127.0.0.1:7102".parse().unwrap())));
        assert_eq!(parse_peer("3=[::1]:7"), Ok((3, "[::1]:7".parse().unwrap())));
        for wrong in ["2", "=127.0.0.1:1", "0=127.0.0.1:1", "2=127.0.0.1", "2=localhost:1", "x=1.2.3.4:5"] {
            assert!(parse_peer(wrong).unwrap_err().contains("7102") || wrong.starts_with('0'), "{wrong}");
        }
    }

    #[test]
    fn loads_that_make_no_sense_are_refused_with_a_remedy() {
        let load = |line: &str| -> LoadArgs {
            match Cli::try_parse_from(line.split_whitespace()).unwrap().command {
                Command::Bench(BenchCommand::Throughput(args)) => args.load,
                other => panic!("{other:?}"),
            }
        };
        assert!(load("consort bench throughput").check().is_ok());
        for wrong in ["--senders 4", "--size 0", "--size 1GiB", "--duration 1ms", "--warmup 2min"] {
            let refused = load(&format!("consort bench throughput {wrong}")).check().unwrap_err();
            assert!(refused.code() == 2 && refused.remedy().contains("--"), "{wrong}: {refused}");
        }
        assert!(Cli::try_parse_from("consort bench latency --rate 0".split_whitespace()).is_err());
    }
}
