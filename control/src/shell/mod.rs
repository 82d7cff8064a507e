//! The shell.
mod gate;
mod outcome;
mod sender;
mod event;
mod node;

pub use event::{Event, Incoming, Message};
pub use node::{CloseError, Closed, DrivenNode, MakeFabric, Node, NodeStats, Start, StartError, Status};
pub use outcome::{Delivered, Outcome, OutcomeError};
pub use sender::{Reservation, SendError, Sender};
