//! Replicated objects: a state that every member keeps a copy of, changed by updates that all apply in the same order.
//!
//! An object says what an update does to it ([`StateMachine`]); a [`Replica`] does the rest: it multicasts updates, applies
//! everyone's in their order on a thread of its own, hands back the reply that was computed here, gives joiners the state, and
//! compares digests with the other members.
//!
//! ```no_run
//! use consort::NodeBuilder;
//! use consort::object::{Context, Replica, Snapshot, StateMachine};
//! use std::io;
//!
//! #[derive(Default)]
//! struct Counter(u64);
//!
//! impl StateMachine for Counter {
//!     type Update = u64;
//!     type Reply = u64;
//!
//!     fn apply(&mut self, _: &Context, by: u64) -> u64 {
//!         self.0 += by;
//!         self.0
//!     }
//!     fn snapshot(&self) -> Snapshot {
//!         Snapshot::of(&self.0)
//!     }
//!     fn restore(&mut self, from: &mut dyn io::Read) -> io::Result<()> {
//!         self.0 = Snapshot::read(from)?;
//!         Ok(())
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let node = NodeBuilder::new(1).peer(2, "10.0.0.2:7400".parse()?).peer(3, "10.0.0.3:7400".parse()?);
//! let counter = Replica::start(node, Counter::default())?;
//! let now = counter.update(&5)?; // after all that came before it, at every member
//! let seen = counter.query(|counter| counter.0)?; // at least `now`
//! # Ok(())
//! # }
//! ```
//!
//! # What is promised
//! | call | sees | costs |
//! |---|---|---|
//! | [`update`](Replica::update) | every update that comes before it in the one order | a message, delivered everywhere |
//! | [`update_all`](Replica::update_all) | the same; returns what every member answered, and who was lost | as an update, and a message from each member to this one |
//! | [`query`](Replica::query) | every update that had completed anywhere when it was called: linearizable | a round trip, no message; shared by many |
//! | [`query_local`](Replica::query_local) | what was applied here: a state that was current once, never older than this member saw before | nothing |
//!
//! Why a query sees that much is told in `docs/consistency.md`. An update that [`update`](Replica::update) returns a reply of is applied once, at
//! every member that goes on, also if the view changed in between. If the node stops or is left out first, it can't be known; the
//! [error](UpdateError) says so, and says it apart from an update that was never sent.
//!
//! # Deterministic, or stopped
//! All copies stay the same only if [`apply`](StateMachine::apply) and [`view_changed`](StateMachine::view_changed) depend on the state and
//! their arguments alone: no clock, no random numbers, no order of a hash map. Code that isn't like that is found: from time to time
//! ([`Options::digest_every`]) members publish a digest of their state, and one whose digest differs from the majority's stops and says
//! [at which message](Divergence). Where no majority agrees, nobody can be shown to be right, and all stop.
//!
//! # Modules, in reading order
//! What travels (`value`), what a user writes (`machine`), what is waited for (`pending`), updates to which all reply (`calls`) and what is replied (`answers`), whom a replica lives on (`host`),
//! who is right (`digests`), and the [`Replica`].

mod value;
mod machine;
mod pending;
mod calls;
mod answers;
mod host;
mod digests;
mod replica;

pub use calls::{Lost, Replies};
pub use digests::{Divergence, StateDigest};
pub use machine::{Context, Snapshot, StateMachine};
pub use pending::Pending;
pub use replica::{Answered, Halted, Options, QueryError, Replica, ReplicaError, UpdateError};
pub use value::{Bytes, Undecodable, Value};
