//! io_uring, tried: a ring is set up as the fabric `tcp` does it. Version numbers and switches don't tell what a container forbids.

use serde::Serialize;

use crate::tcp::TcpError;
use crate::tcp::uring;

/// What the kernel's io_uring does for this process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Ring {
    /// The fabric `tcp` uses it.
    pub usable: bool,
    /// Why not, if it was tried in vain.
    pub denied: Option<String>,
    /// What to do about that.
    pub remedy: Option<String>,
    /// Completions wait for their owner to ask (`DEFER_TASKRUN`, Linux 6.1).
    pub deferred: bool,
    /// Large sends without a copy (`SENDMSG_ZC`, Linux 6.1).
    pub zero_copy: bool,
    /// Logs are written and flushed in one call.
    pub writes_and_flushes: bool,
}

pub(super) fn probe() -> Ring {
    match uring::probe() {
        Ok(can) => Ring {
            usable: true,
            deferred: can.deferred,
            zero_copy: can.zero_copy,
            writes_and_flushes: can.writes_and_flushes,
            ..Ring::default()
        },
        Err(TcpError::IoUring { cause, remedy }) => {
            Ring { denied: Some(cause.to_string()), remedy: Some(remedy), ..Ring::default() }
        }
        Err(other) => Ring { denied: Some(other.to_string()), ..Ring::default() },
    }
}
