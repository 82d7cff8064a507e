//! Locks, leader election and barriers: what a group of processes reaches for first. One replicated object
//! ([`crate::object`]) keeps them all; a [`Coordinator`] is a member's hand on it.
//!
//! ```no_run
//! use consort::NodeBuilder;
//! use consort::coordination::Coordinator;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let store = |_: consort::coordination::Token, _: &str| {};
//! let node = NodeBuilder::new(1).peer(2, "10.0.0.2:7400".parse()?).peer(3, "10.0.0.3:7400".parse()?);
//! let coordinator = Coordinator::start(node)?;
//! let lock = coordinator.lock("printer")?; // waits until it is this one's turn
//! store(lock.token(), "page one");
//! drop(lock); // the next in the queue has it
//! # Ok(())
//! # }
//! ```
//!
//! # A lock protects a resource only with its token
//! A holder that is stopped for a while, by a debugger or by its kernel, may be taken for gone; the lock goes to the next, and the first
//! wakes up and writes all the same. No lock of any system can hinder that, but the resource can: a grant has a [`Token`], greater than those of
//! all grants of that lock before, and the resource refuses whoever comes with a smaller one than it has seen ([`Fence`] does that). A
//! token is made of the view and the place in its order at which the grant was delivered; a group that is founded anew begins anew.
//!
//! # When a member is lost
//! The view that is without it takes its locks, its candidacies and its places in queues from it, at the same place in the order for
//! everyone, and the next in each queue has its turn there. So a leader that is killed is replaced in the time that a change of the view
//! takes. A [barrier](Coordinator::barrier) goes on without the lost or breaks, as its [`OnLoss`] says.
//!
//! # Modules, in reading order
//! The state (`state`), a resource's side of tokens (`fence`), and the [`Coordinator`].

mod state;
mod fence;
mod coordinator;

pub use coordinator::{CoordinationError, Coordinator, Guard, Leader};
pub use fence::{Fence, Stale};
pub use state::{Broken, OnLoss, Token};
