//! io_uring, tried: rings are set up as the fabric `tcp` and the writer of logs do it. Version numbers and switches don't tell what a container forbids.

use serde::Serialize;

use crate::disk::Writer;
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
    let found = Ring { writes_and_flushes: Writer::has_ring(), ..Ring::default() };
    match uring::probe() {
        Ok(can) => Ring { usable: true, deferred: can.deferred, zero_copy: can.zero_copy, ..found },
        Err(TcpError::IoUring { cause, remedy }) => {
            Ring { denied: Some(cause.to_string()), remedy: Some(remedy), ..found }
        }
        Err(other) => Ring { denied: Some(other.to_string()), ..found },
    }
}
