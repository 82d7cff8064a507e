//! Fabrics on real machines, how one node's memory reaches another's (DESIGN.md §3), and what a durable group's log is kept on; and
//! what of a machine matters to them. In reading order.
//!
//! Each fabric implements [`consort_dataplane::fabric::Fabric`] and keeps its contract, F1 to F6; one suite of tests
//! holds them all to it (`tests/all/conformance`). Nothing here knows what a message, a round or a view is.

mod signals;
mod watch;
pub(crate) mod beside;
pub mod shm;
pub mod tcp;
#[cfg(not(loom))]
pub mod disk;
pub mod gid;
#[cfg(not(loom))]
pub mod machine;
#[cfg(feature = "verbs")]
pub mod verbs;
pub mod mixed;
