//! What the benchmarks share: a whole group in one thread, over any fabric.
//!
//! Processes, threads and the scheduler are left out on purpose: what is measured is the work that a message costs, and a
//! change in it shows even on a busy machine. How fast a group of processes is, `consort bench` measures.

pub mod here;
pub mod group;
