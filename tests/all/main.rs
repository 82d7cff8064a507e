//! One binary of integration tests.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test that can't go on should say where")]

mod sim;
mod states;
mod durable;
mod groups;
mod destinations;
mod objects;
mod coordination;
mod corruption;
mod story;
mod driven;
mod ask;
mod conformance;
mod chaos;
mod model;
mod apportioned;
