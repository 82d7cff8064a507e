//! What the tests share: the simulation of whole sessions, and the checkers of recorded histories.

pub mod history;
pub mod world;
