//! What the tests share: the simulation of whole sessions, the checkers of recorded histories, and the model of a view change.

pub mod history;
pub mod world;
pub mod model;
