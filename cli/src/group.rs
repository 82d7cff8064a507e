//! From a [`Seat`] to a started node, and from the library's errors to this command's.

use std::time::Duration;

use consort::{
    CloseError, Domain, DrivenNode, FabricChoice, GroupConfig, Guarantee, Node, NodeBuilder, StartError,
    Stopped, Topology, WaitStrategy,
};

use crate::args::{FabricArg, GuaranteeArg, NodeGuaranteeArg, TopologyArg, WaitArg};
use crate::failure::Failure;
use crate::orders::{Durable, FailoverTask, RepairTask, Seat, WhichGroup};

/// How long the processes of one machine may take to come together.
const START_WITHIN: Duration = Duration::from_secs(30);

/// How long a member with a state may say nothing: a busy machine is no proof that it is gone, and a killed process is
/// missed at once all the same.
const SILENCE: Duration = Duration::from_secs(5);

/// The ring of a member, if messages are not so long as to need a larger one.
pub(crate) const LEAST_RING: usize = 4 << 20;

/// The ring of a group in which nothing is sent.
const IDLE_RING: usize = 64 << 10;

/// How long a node may take to leave.
pub(crate) const CLOSE_WITHIN: Duration = Duration::from_secs(10);

impl From<FabricArg> for FabricChoice {
    fn from(arg: FabricArg) -> Self {
        match arg {
            FabricArg::Auto => Self::Auto,
            FabricArg::Shm => Self::Shm,
            FabricArg::Tcp => Self::Tcp,
            FabricArg::Verbs => Self::Verbs,
        }
    }
}

impl From<GuaranteeArg> for Guarantee {
    fn from(arg: GuaranteeArg) -> Self {
        match arg {
            GuaranteeArg::Fifo => Self::Fifo,
            GuaranteeArg::Agreed => Self::Agreed,
            GuaranteeArg::Atomic => Self::Atomic,
        }
    }
}

impl From<TopologyArg> for Topology {
    fn from(arg: TopologyArg) -> Self {
        match arg {
            TopologyArg::Direct => Self::Direct,
            TopologyArg::Chain => Self::Chain,
        }
    }
}

impl From<NodeGuaranteeArg> for Guarantee {
    fn from(arg: NodeGuaranteeArg) -> Self {
        match arg {
            NodeGuaranteeArg::Fifo => Self::Fifo,
            NodeGuaranteeArg::Agreed => Self::Agreed,
            NodeGuaranteeArg::Atomic => Self::Atomic,
            NodeGuaranteeArg::Durable => Self::Durable,
            NodeGuaranteeArg::Logged => Self::Logged,
        }
    }
}

impl From<WaitArg> for WaitStrategy {
    fn from(arg: WaitArg) -> Self {
        match arg {
            WaitArg::Spin => Self::Spin,
            WaitArg::Adaptive => Self::Adaptive,
            WaitArg::Block => Self::Block,
        }
    }
}

fn builder(seat: &Seat) -> NodeBuilder {
    let mut builder = lone_builder(seat);
    for &(id, address) in &seat.addresses {
        builder = if id == seat.id { builder.listen(address) } else { builder.peer(id, address) };
    }
    builder
}

/// Without the others.
fn lone_builder(seat: &Seat) -> NodeBuilder {
    let idle = (1..=seat.idle_groups)
        .map(|number| GroupConfig::new(&format!("idle-{number}")).ring_bytes(IDLE_RING));
    idle.fold(NodeBuilder::new(seat.id), NodeBuilder::group)
        .fabric(seat.fabric.into())
        .guarantee(seat.guarantee.into())
        .topology(seat.topology.into())
        .wait(seat.wait.into())
        .ring_bytes(seat.ring_bytes)
        .start_within(START_WITHIN)
}

/// A node that this thread drives.
///
/// # Errors
/// It can't start.
pub(crate) fn drive(seat: &Seat) -> Result<DrivenNode, Failure> {
    builder(seat).driven().map_err(|error| not_started(seat.id, &error))
}

/// The name of a group beside the main one.
pub(crate) const BESIDE: &str = "beside";

/// A node that this thread drives, with a durable group.
///
/// # Errors
/// It can't start.
pub(crate) fn drive_durable(seat: &Seat, durable: &Durable) -> Result<DrivenNode, Failure> {
    let builder = builder(seat).silence(SILENCE).data(&durable.data);
    let builder = match durable.which {
        WhichGroup::Measured => builder.guarantee(Guarantee::Durable),
        WhichGroup::MeasuredAhead => builder.guarantee(Guarantee::Logged),
        WhichGroup::BesideIdle | WhichGroup::BesideLoaded | WhichGroup::BesideVolatile(_) => {
            let is_volatile = matches!(durable.which, WhichGroup::BesideVolatile(_));
            let guarantee = if is_volatile { seat.guarantee.into() } else { Guarantee::Durable };
            builder.group(GroupConfig::new(BESIDE).guarantee(guarantee).ring_bytes(seat.ring_bytes))
        }
    };
    builder.driven().map_err(|error| not_started(seat.id, &error))
}

/// A node whose engine has a thread of its own.
///
/// # Errors
/// It can't start.
pub(crate) fn start(seat: &Seat) -> Result<Node, Failure> {
    builder(seat).start().map_err(|error| not_started(seat.id, &error))
}

/// A node of a group whose members come and go.
///
/// # Errors
/// It can't start.
pub(crate) fn start_failover(task: &FailoverTask) -> Result<Node, Failure> {
    let mut builder = coming(&task.seat, task.joins).silence(Duration::from_nanos(task.silence));
    for (name, nodes) in &task.groups {
        builder = builder.group(GroupConfig::new(name).nodes(nodes.iter().copied()));
    }
    builder.start().map_err(|error| not_started(task.seat.id, &error))
}

/// A node of such a group whose members have a state that those who join get.
///
/// # Errors
/// It can't start.
pub(crate) fn start_with_state(seat: &Seat, joins: bool) -> Result<Node, Failure> {
    coming(seat, joins).state(true).silence(SILENCE).start().map_err(|error| not_started(seat.id, &error))
}

/// A node of a founding group, for an object to be put on.
pub(crate) fn founder(seat: &Seat) -> NodeBuilder {
    builder(seat).silence(SILENCE)
}

/// The name of a group that is split in shards.
pub(crate) const SHARDED: &str = "shards";

/// A node with shards, each with a state.
///
/// # Errors
/// It can't start.
pub(crate) fn start_repair(task: &RepairTask) -> Result<Node, Failure> {
    let group = GroupConfig::new(SHARDED).sharded(task.shards, task.replicas).state(true);
    let domain = Domain::new(&task.domain).map_err(|error| {
        Failure::lost(error.to_string(), "report this as a bug") // the bench has made the name
    })?;
    let builder = founder(&task.seat).domain(domain).group(group.ring_bytes(task.seat.ring_bytes));
    builder.start().map_err(|error| not_started(task.seat.id, &error))
}

/// A founder, or one that joins by any of the others.
fn coming(seat: &Seat, joins: bool) -> NodeBuilder {
    if !joins {
        return builder(seat);
    }
    let others = seat.addresses.iter();
    others.fold(lone_builder(seat), |builder, &(id, address)| {
        if id == seat.id { builder.listen(address) } else { builder.join(address) }
    })
}

/// Why a node did not start.
pub(crate) fn not_started(id: u32, error: &StartError) -> Failure {
    Failure::start(
        format!("member {id} can't start: {}", chain(error)),
        "see the reason above; --log debug tells more",
    )
}

/// Why a node can't go on.
pub(crate) fn stopped(id: u32, stopped: &Stopped) -> Failure {
    let message = format!("member {id} was stopped: {}", chain(stopped));
    match stopped {
        Stopped::Evicted { .. } => Failure::evicted(
            message,
            "start it again: it joins the group that runs; with --rejoin a member does so by itself. If it was only slow, \
             give all members a longer --silence",
        ),
        Stopped::NoQuorum { .. } | Stopped::NoLog { .. } => Failure::no_quorum(
            message,
            "see that the members that it names run and can be reached, and start it again; with --rejoin a member goes on \
             trying by itself",
        ),
        Stopped::NoFabric(_) => Failure::lost(
            message,
            "give it back its device, or start it over another fabric (--fabric auto takes what there is); it joins the group that runs. With \
             --rejoin a member does so by itself",
        ),
        _ => Failure::lost(message, "start it again; --log debug tells more"),
    }
}

/// Why a node could not leave in order.
pub(crate) fn not_closed(id: u32, error: &CloseError) -> Failure {
    Failure::lost(
        format!("member {id} did not leave in order: {}", chain(error)),
        "see the reason above; --log debug tells more",
    )
}

/// An error with its causes, unless it tells them itself.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut told = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !told.contains(&text) {
            told.push_str(": ");
            told.push_str(&text);
        }
        cause = error.source();
    }
    told
}

/// The size of ring that takes messages of `longest` bytes: a power of two in which at least four of them fit, and
/// never less than `least`.
pub(crate) fn ring_bytes(longest: usize, least: usize) -> usize {
    // A record has a header and is padded to whole words.
    (longest.saturating_add(64).saturating_mul(4)).max(least).next_power_of_two()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_hold_four_of_the_longest() {
        assert_eq!(ring_bytes(0, 4 << 20), 4 << 20);
        assert_eq!(ring_bytes(1 << 20, 4 << 20), 8 << 20);
    }
}
