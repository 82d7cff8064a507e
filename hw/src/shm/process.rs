//! Whether a peer's process has ended: one that has writes and reads no more.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::time::Timespec;

/// A process that was alive when this was made.
#[derive(Debug)]
pub(super) struct Process(OwnedFd);

impl Process {
    /// By its number; 0 is a process that this one's PID namespace doesn't show.
    ///
    /// If the number was given to another process meanwhile, its first owner has ended: so once this one is seen to end, the
    /// peer has for sure.
    pub(super) fn open(number: i32) -> Option<Self> {
        Pid::from_raw(number.max(0)).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()).map(Self)
    }

    /// Whether it has ended, or does so `within` a moment.
    pub(super) fn has_ended(&self, within: Duration) -> bool {
        let within =
            Timespec { tv_sec: within.as_secs().cast_signed(), tv_nsec: within.subsec_nanos().into() };
        rustix::event::poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&within))
            .is_ok_and(|ready| ready > 0)
    }
}

impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
