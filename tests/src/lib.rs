//! What the tests share: the simulation of whole sessions, the checkers of recorded histories, of one session, of a register and of a
//! group whose views change, and the model of a view change.

pub mod history;
pub mod linear;
pub mod record;
pub mod world;
pub mod model;
pub mod apportioned;
