//! Drivers over the simulated fabric, without membership: [`world::World`] plays that, with orders written by hand.
#![allow(clippy::unwrap_used, reason = "a test that can't go on should say where")]

mod host;
mod world;
mod changes;
mod many;
mod orders;
mod senders;
mod states;
mod threads;
mod told;
mod whole;
