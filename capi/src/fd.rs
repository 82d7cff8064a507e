//! A descriptor that is readable while there may be events, for programs that wait for more than these in a loop of their own.
//!
//! It is raised by who brings events and lowered by who finds none, who then looks once more:
//!
//! ```text
//!  engine: put the event in, fence, raised? ─ no ─► raised, write        program: none there ► read, not raised, fence, look again
//! ```
//! Either the engine sees that it isn't raised, or the program sees the event.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering, fence};

use rustix::event::{EventfdFlags, eventfd};

use crate::error::{Error, Status};

/// See the [module](self).
pub(crate) struct Bell {
    descriptor: OwnedFd,
    raised: AtomicBool,
}

impl Bell {
    pub(crate) fn new() -> Result<Self, Error> {
        let descriptor = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(|cause| {
            Error::new(
                Status::Machine,
                format_args!("can't get an eventfd: {cause}; raise the limit of open files"),
            )
        })?;
        Ok(Self { descriptor, raised: AtomicBool::new(false) })
    }

    pub(crate) fn number(&self) -> i32 {
        self.descriptor.as_raw_fd()
    }

    /// There may be something.
    pub(crate) fn raise(&self) {
        fence(Ordering::SeqCst); // what was put in before; pairs with the one in `lower`
        if !self.raised.swap(true, Ordering::Relaxed) {
            // It can't be full: it is read before it is written again.
            let _ = rustix::io::write(&self.descriptor, &1_u64.to_ne_bytes());
        }
    }

    /// There was nothing. Look once more after this.
    pub(crate) fn lower(&self) {
        // Also when it isn't raised: a write may be late.
        let _ = rustix::io::read(&self.descriptor, &mut [0; 8]);
        self.raised.store(false, Ordering::Relaxed);
        fence(Ordering::SeqCst); // pairs with the one in `raise`
    }
}
