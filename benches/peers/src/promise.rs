//! What a system promises, and what it has to show against Consort: the words of the table.

use serde::Serialize;

/// What is behind a figure: two systems that promise different things are not faster or slower than each other without saying so.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Promise {
    /// Among whose messages there is an order.
    pub(crate) order: &'static str,
    /// When a message counts as done, at whom, and who was the client.
    pub(crate) done: &'static str,
    /// What survives what.
    pub(crate) durability: &'static str,
    pub(crate) fabric: &'static str,
}

/// At least so many times Consort's latency, and at most one part in so many of its throughput: the project's aims, which are
/// reported beside what was measured and never asserted.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Aim {
    pub(crate) latency: Option<f64>,
    pub(crate) throughput: Option<f64>,
}

/// Which of Consort's figures a peer stands beside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Against {
    /// The group in memory, `Atomic`, over TCP.
    Volatile,
    /// The group with logs on the disk.
    Durable,
}
