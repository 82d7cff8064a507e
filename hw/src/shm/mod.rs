//! The `shm` fabric: nodes of one host share memory.
//!
//! Each node owns one segment of memory and alone writes to it. Its peers map the same pages for reading: the
//! mirror *is* the segment. So publishing copies nothing, one copy of a message serves any number of receivers, and a
//! system call is made only to wake a peer that sleeps.
//!
//! # One link's life
//!
//! 1. [`ShmFabric::new`] makes a memfd, maps it for writing and seals it (`mapping`); it listens at a Unix address and
//!    starts a thread that watches the sockets (`watcher`).
//! 2. The control plane carries [`offer`](Fabric::offer)s around (`hello`), and both sides call
//!    [`connect`](Fabric::connect). One dials, both introduce themselves and hand over their segments (`links`, `socket`).
//!    Each checks the other's size and seals and maps it.
//! 3. From then on words are stored and loaded, and [`poll`](Fabric::poll) and [`flush`](Fabric::flush) cost a
//!    few loads, a store and a fence (`fabric`). Who finds nothing to do sleeps on its peers' epoch words (`sleep`).
//! 4. The process dies, which shows in a word of its segment (`life`); or the connection ends, with the process or after a
//!    goodbye, which the watcher sees; and the link is down (F5).
//!    A fence freezes the mirror (F4, `mapping`) and frees the slot; it can't keep a living peer from reading what it maps of
//!    ours (`former`), so before that is used for something else it is [renewed](Fabric::renew) for the others (`layers`).
//!
//! # Invariants
//!
//! - Nothing that a peer says makes this node allocate, map or wait before it is checked against its offer and our
//!   limits (S1, S3).
//! - Nothing that a peer does to its segment or connection can fault, block or panic this node.
//! - A segment has one writing process: a child that is forked off has no mapping of it, and must not use its parent's fabric.
//! - No system call in `poll`, `publish_*` and `flush` while links are up and nobody sleeps.
//!
//! [`Fabric::offer`]: consort_dataplane::fabric::Fabric::offer

mod hello;
mod sockets;
mod socket;
mod sleep;
mod options;
mod guests;
mod layers;
mod mapping;
mod life;
mod process;
mod former;
mod links;
mod watcher;
mod fabric;
#[cfg(test)]
mod tests;

pub use fabric::ShmFabric;
pub use options::{ShmError, ShmOptions};

#[cfg(doc)]
use consort_dataplane::fabric::Fabric;
