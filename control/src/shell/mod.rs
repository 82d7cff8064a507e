//! The shell: the one module with threads, a clock and sockets, around what is pure. Everything in it is thin; where a
//! decision is to be made, it is made in [`crate::plane`] or in the data plane.
//!
//! A node has two threads, or one and its caller's:
//!
//! ```text
//!  application's threads        engine's thread, or the caller's         control thread
//!  Sender ──── ring, bell ────► Driver: fabric, sessions ◄── orders ──── Control: sockets, plane
//!  Node ◄───── events ───────── (turn, rest, turn, rest …) ─── reports ──►  (sleeps in epoll)
//! ```
//!
//! A snapshot that a joiner needs, or the log, is read on a thread of its own, which ends with it ([`SnapshotRequest`]).
//!
//! The engine is woken by the fabric's bell, whoever wants it: a sender, the control thread, a question, a loan that came
//! back. Nobody waits for a time to pass; the one bound on its sleep is the heartbeat's.
//!
//! A thread of the application never makes the engine wait: what they share are the ring, a queue with room for
//! 1,024 events (when it is full, delivery stops until there is room, D11), and flags.

mod clock;
mod ask;
mod gate;
mod wait;
mod outcome;
mod points;
mod sender;
mod data;
mod start;
mod shared;
mod control;
mod keeping;
mod teaching;
mod restore;
mod event;
mod durable;
mod reading;
mod running;
mod learning;
mod stream;
mod driver;
mod node;

pub use ask::{AskError, ask};
pub use data::{DataError, MakeDisk};
pub use event::{Event, Incoming, Message};
#[doc(hidden)]
pub use gate::Gate;
pub use node::{Departure, DrivenNode, Group, Node};
pub use outcome::{Delivered, Outcome, OutcomeError};
pub use points::{ReadPoint, ReadPointError};
pub use restore::Restore;
pub use sender::{Reservation, SendError, Sender};
pub use start::{
    CloseError, Closed, Leaving, MadeFabric, MakeFabric, NodeStats, SessionStatus, Stage, Start, StartError,
    Status,
};
pub use teaching::SnapshotRequest;

#[cfg(test)]
mod tests;
