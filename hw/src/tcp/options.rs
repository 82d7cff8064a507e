//! What the fabric is told at its start, and why it may refuse to start.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;
use std::time::Duration;

/// How a [`TcpFabric`](super::TcpFabric) is set up. Start from [`TcpOptions::default`].
#[derive(Clone, Debug)]
pub struct TcpOptions {
    /// Bytes in this node's own segment; rounded up to whole pages.
    pub segment_bytes: usize,
    /// The address that the data listener binds; its port is the kernel's choice and is told in the offer.
    pub listen: IpAddr,
    /// The address that peers dial, where it is not `listen` (which may be a wildcard, or behind a translation).
    pub advertise: Option<IpAddr>,
    /// What drives the sockets.
    pub engine: TcpEngine,
    /// The largest segment of a peer for which this node allocates a mirror, in bytes (S3).
    pub max_mirror_bytes: usize,
    /// Connections that have not yet said who they are, at most; more are turned away.
    pub max_strangers: usize,
    /// Kernel buffer asked for per socket and direction, in bytes; the kernel may grant less. `None` leaves it to the
    /// kernel, which lets buffers grow as they are needed.
    pub socket_buffer: Option<usize>,
    /// Congestion control asked for per socket; what the kernel does not grant is left as it is.
    pub congestion: Option<String>,
    /// How long a peer's machine may leave what was sent, or a question whether it is there, without an answer before
    /// the link is broken; the kernel counts in whole seconds. A member that is slow or stopped on a machine that
    /// answers is not meant by it.
    pub unanswered: Duration,
    /// Ring payload from which a send is tried without copying, in bytes; `None` never tries.
    pub zero_copy_from: Option<usize>,
    /// Segments and mirrors of up to so many bytes are touched beforehand, so that no page fault comes later in the middle of a message.
    /// That costs the memory at once; larger ones are backed as they are used, since a group with long rings may never use most of them.
    pub prefault_up_to: usize,
}

impl Default for TcpOptions {
    fn default() -> Self {
        Self {
            segment_bytes: 16 << 20,
            listen: IpAddr::V4(Ipv4Addr::LOCALHOST),
            advertise: None,
            engine: TcpEngine::Auto,
            max_mirror_bytes: 1 << 30,
            max_strangers: 32,
            socket_buffer: None,
            congestion: Some("cubic".to_owned()),
            unanswered: Duration::from_secs(5),
            zero_copy_from: Some(64 << 10),
            prefault_up_to: 256 << 20,
        }
    }
}

/// What drives the sockets of a [`TcpFabric`](super::TcpFabric).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum TcpEngine {
    /// io_uring where the kernel allows it, else epoll, with a warning in the log.
    #[default]
    Auto,
    /// io_uring, or no start.
    IoUring,
    /// epoll.
    Epoll,
}

impl fmt::Display for TcpEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::IoUring => "io_uring",
            Self::Epoll => "epoll",
        })
    }
}

impl FromStr for TcpEngine {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "auto" => Ok(Self::Auto),
            "io_uring" => Ok(Self::IoUring),
            "epoll" => Ok(Self::Epoll),
            _ => Err(format!("there is no engine {name:?}; choose auto, io_uring or epoll")),
        }
    }
}

/// Why a [`TcpFabric`](super::TcpFabric) could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TcpError {
    /// The data listener could not be opened.
    #[error("can't listen for data links on {address}: {cause}; give an address of this machine")]
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
    /// io_uring was asked for and the machine denies it.
    #[error("the kernel denies io_uring ({cause}): {remedy}; or choose the engine `auto` or `epoll`")]
    IoUring {
        /// The kernel's answer.
        #[source]
        cause: io::Error,
        /// What to do about it.
        remedy: String,
    },
    /// The machine refused something else that the fabric needs.
    #[error("no {what} for the tcp fabric: {cause}; see `ulimit -n` and `ulimit -l`")]
    Machine {
        /// What was asked for.
        what: &'static str,
        /// The kernel's answer.
        #[source]
        cause: io::Error,
    },
}
