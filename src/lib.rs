//! Consort is for processes that must agree: a group of processes multicasts messages, and every member delivers the same
//! messages in the same order, all or nothing. Messages travel by one-sided writes, over shared memory or TCP, and are never
//! copied on the way: a sender writes into its ring, a receiver reads them where they arrive.
//!
//! # Twenty lines
//! Three nodes, each on a thread here and in a process of its own elsewhere; each multicasts one greeting, and all of them
//! see the same three greetings in the same order.
//! ```
//! use std::{net::TcpListener, thread, time::Duration};
//! use consort::{Event, NodeBuilder};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
//! let listeners: Vec<_> = (0..3).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
//! let addresses: Vec<_> = listeners.iter().map(TcpListener::local_addr).collect::<Result<_, _>>()?;
//! let members: Vec<_> = (1..).zip(listeners).map(|(id, listener)| {
//!     let peers: Vec<_> = (1..).zip(addresses.clone()).filter(|(peer, _)| *peer != id).collect();
//!     thread::spawn(move || -> Result<Vec<String>, Box<dyn std::error::Error + Send + Sync>> {
//!         let builder = NodeBuilder::new(id).listener(listener).start_within(Duration::from_secs(60));
//!         let node = peers.into_iter().fold(builder, |b, (peer, at)| b.peer(peer, at)).start()?;
//!         node.sender().send(format!("hello from {id}").as_bytes())?; // waits for the group to start
//!         node.sender().end()?;
//!         let (mut seen, mut ended) = (Vec::new(), 0);
//!         while ended < 3 {
//!             match node.recv()? {
//!                 Event::Message(message) => seen.push(String::from_utf8_lossy(&message).into_owned()),
//!                 Event::Ended { .. } => ended += 1,
//!                 _ => {} // a view, or for whom the start waits
//!             }
//!         }
//!         node.close(Duration::from_secs(10))?;
//!         Ok(seen)
//!     })
//! }).collect();
//! let seen: Vec<_> = members.into_iter().map(|member| member.join().unwrap()).collect::<Result<_, _>>()?;
//! assert!(seen[0].len() == 3 && seen.iter().all(|order| *order == seen[0]));
//! # Ok(())
//! # }
//! ```
//!
//! # A node, and who drives it
//! A [`NodeBuilder`] says who the node is, who the others are, and how they talk; or [reads it from a
//! file](NodeBuilder::from_toml) ([its form](config)). Then:
//!
//! - [`NodeBuilder::start`] gives a [`Node`], whose engine has a thread of its own. Take [`Event`]s from
//!   [`Node::recv`], from as many threads as you like.
//! - [`NodeBuilder::driven`] gives a [`DrivenNode`], which your thread drives: [`DrivenNode::poll`] takes one turn and
//!   calls you for what is due; [`DrivenNode::wait`] waits as the [`WaitStrategy`] says. No message changes threads, so
//!   this is the fastest way.
//!
//! Both start before their peers are there, in any order, and say for whom they wait ([`Event::Waiting`]); [`Event::View`] says
//! that the group runs.
//!
//! # Sending
//! [`Sender`]s are handles for any thread. [`Sender::reserve`] lends room in the ring, to write the message where it will be
//! read; [`Sender::send`] copies. A full ring is back-pressure, by whoever is slowest: `reserve` waits,
//! [`Sender::try_reserve`] refuses; nothing is ever dropped. [`Sender::send_tracked`] gives an [`Outcome`], to
//! [wait](Outcome::wait) for, to poll, or to `await` in any runtime: it is there when this node has delivered its own
//! message.
//!
//! # What is promised
//! | [`Guarantee`] | a message is delivered |
//! |---|---|
//! | [`Fifo`](Guarantee::Fifo) | as it comes, each sender's in its order |
//! | [`Agreed`](Guarantee::Agreed) | in one order, the same at all members |
//! | [`Atomic`](Guarantee::Atomic) | in that order, and only once every member has it (the default) |
//! | [`Durable`](Guarantee::Durable) | in that order, and only once every member has flushed it to its [`log`] ([`NodeBuilder::data`]) |
//! | [`Logged`](Guarantee::Logged) | when `Atomic` would; that every member has flushed it, its [`Outcome`] says later |
//!
//! When the members change, every member that goes on delivers the same messages, then the next [`Event::View`], then that
//! view's messages. What was under way is delivered in the old view or sent again in the new one, once and in its sender's
//! order; an [`Outcome`] says in which. While the change is under way, `try_` says [`SendError::Changing`], and `send` and
//! `reserve` wait.
//!
//! Nodes that know each other as peers found a group, or join the one that runs; [`NodeBuilder::join`] never founds one. A node that the
//! others went on without, or that can't reach a majority, delivers nothing more: it [stops](Stopped), or, with
//! [`NodeBuilder::rejoin`], says [`Event::Evicted`] and joins again.
//!
//! # State
//! Applications with a state, kept by applying the messages in their order, set [`NodeBuilder::state`] at all nodes. Then a node that
//! joins gets it while the group goes on: some member's application is asked for a snapshot ([`Event::Snapshot`]), the joiner's is
//! given it ([`Event::Restore`]) and then what was delivered since, and only when it is that far a view admits it.
//! ```no_run
//! use std::io::{Cursor, Read};
//! use consort::{Event, Node};
//!
//! # fn run(node: &Node) -> Result<(), Box<dyn std::error::Error>> {
//! let mut state: Vec<u8> = Vec::new();
//! loop {
//!     match node.recv()? {
//!         Event::Message(message) => state.extend_from_slice(&message),
//!         Event::Snapshot(request) => request.give(Cursor::new(state.clone())),
//!         Event::Restore(mut snapshot) => {
//!             state.clear();
//!             snapshot.read_to_end(&mut state)?;
//!             snapshot.finish();
//!         }
//!         _ => {}
//!     }
//! }
//! # }
//! ```
//! An [`object::Replica`] does all this by itself, hands out replies, and answers linearizable queries; locks, elections and barriers
//! are in [`coordination`].
//!
//! A snapshot is of the place in the order at which it is asked for; it is read later, on a thread of its own, in pieces with digests.
//! A group that is founded anew, by its view 1, has no state but what its applications begin with.
//!
//! # Durable groups
//! With [`Guarantee::Durable`] every member writes every message to a [`log`] in its own directory ([`NodeBuilder::data`]), and a message is delivered, and
//! its [`Outcome`] in, once all members of the shard have flushed it. Messages then carry a [stamp](Message::stamp), the same at all members. When the
//! members come again, one or all of them, each application is told everything once more, views and messages, in the same order and with the same
//! stamps, and then what is new. After the loss of all, the group begins again when a majority of the newest view's members is there, and of each
//! shard a log that is known to have everything; [`Event::Waiting`] says who is missing. A disk that fails to flush stops its member. See docs/durability.md.
//!
//! With [`Guarantee::Logged`] deliveries don't wait for the disks, and outcomes do: a state machine goes on at the speed of the network, and tells nobody
//! outside of what hangs on a message before its outcome is there. With either, [`Outcome::try_stable`] says when every member has received a message.
//! What was delivered and not flushed is lost if all members are, at once; a process that alone outlives that stops when it comes back to the group, and is
//! to be started anew. The reply of a [replica](object)'s update comes with its delivery.
//!
//! Logs grow for ever, unless the application has a [state](NodeBuilder::state): then it is asked for a snapshot ([`Event::Snapshot`]) whenever its log has grown by
//! [`NodeBuilder::snapshot_every`], and what the snapshot has goes from the log. Who starts is given the snapshot first ([`Event::Restore`]), and
//! then what follows; so does a member that lacks more than the others' logs still have.
//!
//! # Messages for some
//! [`Sender::send_to`] sends to some of the members alone. The message has a place in the same order as all others, which the others pass
//! over; they are not sent its bytes.
//!
//! # Groups and shards
//! All nodes are in the main group, which is the [`Node`] itself. Beside it there may be others ([`NodeBuilder::group`]), the same at all
//! nodes: of all nodes or of some, each with its guarantee, ring and state; or split in shards with so many replicas each, which the
//! view lays out over the nodes and their [failure domains](NodeBuilder::domain). [`Node::group`] gives one; its events and its
//! [`Sender`] are its own.
//! ```no_run
//! use consort::{Event, GroupConfig, NodeBuilder};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let node = NodeBuilder::new(1)
//!     .peer(2, "10.0.0.2:7101".parse()?)
//!     .group(GroupConfig::new("audit").nodes([1, 2]))
//!     .group(GroupConfig::new("orders").sharded(3, 2).state(true))
//!     .start()?;
//! let orders = node.group("orders").and_then(|group| group.shard(2)).ok_or("no such shard")?;
//! if let Event::View(view) = orders.recv()? {
//!     println!("shard {} of orders is at {:?}", orders.index(), view.shard(orders.id()));
//! }
//! # Ok(())
//! # }
//! ```
//! When a member is lost, only the groups that it was in are interrupted. Its shards' places go to other nodes, which get the state first;
//! nobody else moves. A shard with a state whose last member is lost stays [lost](Shard::is_lost). A group of whose events nobody takes any
//! stands still in time, for all its members, and only that one.
//!
//! # Ending
//! [`Sender::end`] tells the members that nothing more comes from here; [`Event::Ended`] tells the application that a member
//! has done so. [`Node::close`] leaves in order: when all that this node has sent is delivered, the others agree on a view without
//! it. To see everything that the others have to say, wait until all have ended, then close. Dropping a node instead stops it at
//! once, and the others find it lost.

mod builder;
pub mod object;
pub mod coordination;

/// The log of a durable group, to read and to repair: what [`NodeBuilder`] is given a data directory for, record by record.
pub mod log {
    pub use consort_dataplane::log::*;
    pub use consort_hw::disk::Directory;
}

pub use builder::{FabricChoice, NodeBuilder, UnknownFabric};
pub use consort_control::config;
pub use consort_control::config::{
    ConfigError, GroupConfig, GroupMembers, KeyError, SharedKey, SlowPolicy, WaitStrategy,
};
pub use consort_control::link::message::Question;
pub use consort_control::membership::{Absent, Lost, Stopped};
pub use consort_control::shell::{
    AskError, CloseError, Closed, DataError, Delivered, Departure, DrivenNode, Event, Group, Incoming,
    Leaving, Message, Node, NodeStats, Outcome, OutcomeError, ReadPoint, ReadPointError, Reservation,
    Restore, SendError, Sender, SessionStatus, SnapshotRequest, Stage, StartError, Status, ask,
};
pub use consort_control::view::{Domain, Incarnation, Member, Role, Shard, ShardId, View};
pub use consort_dataplane::fabric::FabricStats;
pub use consort_dataplane::loan::Loan;
pub use consort_dataplane::names::{NodeId, Rank, Seq, Time, ViewId};
pub use consort_dataplane::plan::{Guarantee, Topology};
pub use consort_dataplane::ring::Ticket;
pub use consort_dataplane::session::{Blocked, Delivery, Frontiers};
/// What of a machine matters to latency, and what to change.
pub use consort_hw::machine;
/// The benchmarks' round trip over RDMA without a group. No part of what is promised to stay.
#[cfg(feature = "verbs")]
#[doc(hidden)]
pub use consort_hw::verbs::bare as bare_verbs;

/// The README's example is compiled and run with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
