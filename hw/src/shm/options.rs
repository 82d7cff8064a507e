//! What a user may set, and what can go wrong before there is a fabric.

use std::io;

use consort_dataplane::fabric::FABRIC_PAGE;

/// How a [`ShmFabric`](super::ShmFabric) is made.
#[derive(Clone, Debug)]
pub struct ShmOptions {
    /// Size of this node's own segment in bytes, the fabric's page (4,096 bytes) included; rounded up to whole pages.
    /// The kernel backs it as it is touched.
    pub segment_bytes: usize,
    /// The largest segment of a peer that this node will map, in bytes: what a peer asks for beyond it is refused
    /// before anything is mapped.
    pub peer_segment_bytes_max: usize,
    /// The number of this machine, by which nodes know that they can share memory. If not set: what the kernel drew at its boot,
    /// which virtual machines that were cloned while they ran have in common.
    pub machine: Option<u128>,
}

impl Default for ShmOptions {
    fn default() -> Self {
        Self { segment_bytes: 16 << 20, peer_segment_bytes_max: 16 << 30, machine: None }
    }
}

/// Shared memory can't be used on this machine, or not so.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ShmError {
    /// `segment_bytes` is out of range.
    #[error(
        "a segment of {bytes} bytes can't be made; set segment_bytes to at least {FABRIC_PAGE} and to no more than \
         this process can address"
    )]
    Size {
        /// What was asked for.
        bytes: usize,
    },
    /// The kernel can't wait on several futexes at once.
    #[error(
        "this kernel does not let the process call futex_waitv ({source}), by which a node sleeps until any peer \
         publishes: run Linux 5.16 or newer, allow futex_waitv in the seccomp profile, or choose the tcp fabric"
    )]
    Futex {
        /// What the kernel answered.
        source: io::Error,
    },
    /// The kernel refused memory that can be shared and sealed.
    #[error("{step} failed for a shared segment of {bytes} bytes ({source}); {remedy}")]
    Memory {
        /// The call that failed.
        step: &'static str,
        /// The size of the segment.
        bytes: usize,
        /// What the kernel answered.
        source: io::Error,
        /// What may help.
        remedy: &'static str,
    },
    /// The kernel refused a socket, a descriptor or a thread.
    #[error("{step} failed ({source}); {remedy}")]
    Machine {
        /// The call that failed.
        step: &'static str,
        /// What the kernel answered.
        source: io::Error,
        /// What may help.
        remedy: &'static str,
    },
}

impl ShmError {
    pub(super) fn machine<E: Into<io::Error>>(step: &'static str, source: E) -> Self {
        let source = source.into();
        let remedy = remedy(&source);
        Self::Machine { step, source, remedy }
    }

    pub(super) fn memory<E: Into<io::Error>>(step: &'static str, bytes: usize, source: E) -> Self {
        let source = source.into();
        let remedy = remedy(&source);
        Self::Memory { step, bytes, source, remedy }
    }
}

/// An error of the machine, with what may help against it.
pub(super) fn error_text(error: impl Into<io::Error>) -> String {
    let error = error.into();
    format!("{error}; {}", remedy(&error))
}

fn remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EMFILE) => "raise the limit of open files of the process (ulimit -n)",
        Some(libc::ENFILE) => "raise the limit of open files of the machine (sysctl fs.file-max)",
        Some(libc::ENOMEM | libc::ENOSPC | libc::EFBIG | libc::EAGAIN) => {
            "give the process more memory (ulimit -v, ulimit -u, the cgroup's limits) or the segment less"
        }
        Some(libc::ENOSYS | libc::EPERM | libc::EACCES | libc::EINVAL) => {
            "shm needs Linux 5.16 or newer and a seccomp profile that allows the call; the tcp fabric needs less"
        }
        _ => "the tcp fabric does without it",
    }
}
