//! What the fabric is told at its start, and why it may refuse to start.

use std::io;
use std::net::{IpAddr, Ipv4Addr};

/// How a [`MixedFabric`](super::MixedFabric) is set up. Start from [`MixedOptions::default`].
#[derive(Clone, Debug)]
pub struct MixedOptions {
    /// Bytes in this node's own segment; rounded up to whole pages.
    pub segment_bytes: usize,
    /// The address on which links to other machines are set up; their ports are the kernel's choice and are told in the offer.
    pub listen: IpAddr,
    /// The address that peers dial, where it is not `listen`.
    pub advertise: Option<IpAddr>,
    /// Whether memory is shared with nodes of this machine, if the machine allows it.
    pub shm: bool,
    /// Whether RDMA is used, in builds that have it, if there is a device with the address of this node.
    pub verbs: bool,
    /// Whether TCP is used.
    pub tcp: bool,
    /// The number of this machine: see [`ShmOptions::machine`](crate::shm::ShmOptions::machine).
    pub machine: Option<u128>,
}

impl Default for MixedOptions {
    fn default() -> Self {
        Self {
            segment_bytes: 16 << 20,
            listen: IpAddr::V4(Ipv4Addr::LOCALHOST),
            advertise: None,
            shm: true,
            verbs: true,
            tcp: true,
            machine: None,
        }
    }
}

/// Why a [`MixedFabric`](super::MixedFabric) could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MixedError {
    /// No kind of fabric can be had.
    #[error("no fabric can be had here: {0}")]
    None(String),
    /// The kernel refused memory.
    #[error("no memory for the segment: {0}; give the process more, or the rings less")]
    Memory(#[source] io::Error),
    /// The kernel refused a thread or descriptors.
    #[error("no thread that watches the fabrics: {0}; see `ulimit -n` and `ulimit -u`, or choose one fabric")]
    Watcher(#[source] io::Error),
}
