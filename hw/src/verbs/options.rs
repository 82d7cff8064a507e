//! What the fabric is told at its start, and why it may refuse to start.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

/// How a [`VerbsFabric`](super::VerbsFabric) is set up. Start from [`VerbsOptions::default`].
#[derive(Clone, Debug)]
pub struct VerbsOptions {
    /// Bytes in this node's own segment; rounded up to whole pages.
    pub segment_bytes: usize,
    /// The address on which links are set up, over TCP; its port is the kernel's choice and is told in the offer.
    pub listen: IpAddr,
    /// The address that peers dial, where it is not `listen`.
    pub advertise: Option<IpAddr>,
    /// The RDMA device. If not set: the one that has this node's own address, else the first that carries traffic.
    pub device: Option<String>,
    /// Whether only a device with this node's own address will do, if none is named: no other is known to lead to the peers.
    pub of_own_address: bool,
    /// Its port, from 1. If not set: the first that carries traffic.
    pub port: Option<u8>,
    /// The index of the GID to use on Ethernet. If not set: see [`choose`](super::choose).
    pub gid_index: Option<u8>,
    /// The largest segment of a peer for which this node registers a mirror, in bytes (S3).
    pub max_mirror_bytes: usize,
    /// Connections that have not yet said who they are, at most; more are turned away.
    pub max_strangers: usize,
    /// Writes under way to a peer, at most; the device may have less.
    pub queue_depth: usize,
    /// Bytes that a write should be able to carry with it, without being fetched from memory; the device may have less.
    pub inline_bytes: usize,
    /// How long the device waits for an acknowledgement, as the verbs count it: 4.096 µs × 2ⁿ.
    pub timeout: u8,
    /// How often it asks again before the link is broken, up to 7. Devices may take up to four times as long as the two say.
    pub retries: u8,
    /// The traffic class of the packets (a switch's lossless class, often).
    pub traffic_class: u8,
    /// How long a peer's machine may leave a question whether it is there without an answer, on the connection beside the queue
    /// pair; the kernel counts in whole seconds.
    pub unanswered: Duration,
}

impl Default for VerbsOptions {
    fn default() -> Self {
        Self {
            segment_bytes: 16 << 20,
            listen: IpAddr::V4(Ipv4Addr::LOCALHOST),
            advertise: None,
            device: None,
            of_own_address: false,
            port: None,
            gid_index: None,
            max_mirror_bytes: 1 << 30,
            max_strangers: 32,
            queue_depth: 256,
            inline_bytes: 220,
            timeout: 15,
            retries: 7,
            traffic_class: 0,
            unanswered: Duration::from_secs(5),
        }
    }
}

/// Why a [`VerbsFabric`](super::VerbsFabric) could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerbsError {
    /// The kernel has no RDMA.
    #[error(
        "this machine's kernel has no RDMA ({0}): load the card's driver, or `modprobe rdma_rxe` and \
         `rdma link add rxe0 type rxe netdev DEVICE` for RDMA in software; or choose the fabric `tcp`"
    )]
    NoRdma(#[source] io::Error),
    /// There is no such device, or none at all.
    #[error("there is no RDMA device {wanted}; there are: {found}. See `ibv_devinfo -v`")]
    NoDevice {
        /// The one asked for, or what it should have been.
        wanted: String,
        /// What there is.
        found: String,
    },
    /// The device can't be opened.
    #[error("the RDMA device {device} can't be opened ({cause}): see the rights of /dev/infiniband/uverbs*")]
    Open {
        /// Its name.
        device: String,
        /// The system's answer.
        #[source]
        cause: io::Error,
    },
    /// No port of the device carries traffic, or not the one asked for.
    #[error(
        "port {port} of {device} carries no traffic: is the cable in, and the network device up (`ip link`)?"
    )]
    Port {
        /// Its device.
        device: String,
        /// Its number.
        port: u8,
    },
    /// No GID will do.
    #[error(
        "port {port} of {device} has no address (GID) that will do: give the network device an IP address \
         (`ip addr add`), or choose one of these by `gid_index`: {reasons}"
    )]
    Gid {
        /// Its device.
        device: String,
        /// Its number.
        port: u8,
        /// What there is, and why not.
        reasons: String,
    },
    /// Memory can't be registered.
    #[error(
        "{bytes} bytes of memory can't be registered with {device} ({cause}). The limit of locked memory is {limit}: \
         raise it (`ulimit -l unlimited`; LimitMEMLOCK=infinity in a service; `* - memlock unlimited` in \
         /etc/security/limits.conf)"
    )]
    Memory {
        /// The device.
        device: String,
        /// How many.
        bytes: usize,
        /// The limit in words.
        limit: String,
        /// The system's answer.
        #[source]
        cause: io::Error,
    },
    /// The listener could not be opened.
    #[error("can't listen for links on {address}: {cause}; give an address of this machine")]
    Listen {
        /// What was to be bound.
        address: IpAddr,
        /// The kernel's answer.
        #[source]
        cause: io::Error,
    },
    /// The listener is bound to a wildcard, which no peer can dial.
    #[error("peers can't dial {0}: set `advertise` to the address of this machine that they reach")]
    Wildcard(IpAddr),
    /// The segment is empty or too large to address.
    #[error("a segment of {0} bytes can't be: give at least 4,096 bytes and at most 32 GiB")]
    SegmentBytes(usize),
    /// The machine refused something else that the fabric needs.
    #[error("no {what} for the verbs fabric: {cause}; see `ulimit -n` and `ulimit -l`")]
    Machine {
        /// What was asked for.
        what: &'static str,
        /// The system's answer.
        #[source]
        cause: io::Error,
    },
}
