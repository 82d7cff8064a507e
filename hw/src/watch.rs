//! A thread that sleeps in the kernel until something can be read, and tells of it: for owners of fabrics, who are busy or sleep elsewhere.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

use crate::signals::block_signals;

const QUIT: u64 = u64::MAX;

/// The thread, which ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Watch {
    set: Arc<OwnedFd>,
    quit: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Starts it; it watches nothing yet. It holds what `begin` makes, and calls `tell` with the marks, all in one word, of what could be read.
    ///
    /// # Errors
    /// The machine has no descriptor or no thread left.
    pub(crate) fn start<T>(
        name: &str,
        begin: impl FnOnce() -> T + Send + 'static,
        mut tell: impl FnMut(u64) + Send + 'static,
    ) -> io::Result<Self> {
        let quit = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let set = Arc::new(epoll::create(CreateFlags::CLOEXEC)?);
        epoll::add(&set, &quit, EventData::new_u64(QUIT), EventFlags::IN)?;
        let watched = set.clone();
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            block_signals();
            let _held = begin();
            while let Some(marks) = wait(&watched) {
                tell(marks);
            }
        })?;
        Ok(Self { set, quit, thread: Some(thread) })
    }

    /// Watches `fd` from now on. `mark` is one bit, and not the highest.
    pub(crate) fn add(&self, fd: BorrowedFd<'_>, mark: u64, flags: EventFlags) -> io::Result<()> {
        Ok(epoll::add(&self.set, fd, EventData::new_u64(mark), flags)?)
    }

    /// Watches for something else what is watched, or was, once.
    pub(crate) fn modify(&self, fd: BorrowedFd<'_>, mark: u64, flags: EventFlags) -> io::Result<()> {
        Ok(epoll::modify(&self.set, fd, EventData::new_u64(mark), flags)?)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let told = rustix::io::write(&self.quit, &1u64.to_ne_bytes());
        if let (Ok(_), Some(thread)) = (told, self.thread.take()) {
            let _ = thread.join();
        }
    }
}

/// The marks of what can be read, once anything can; `None` when it is time to end.
fn wait(set: &OwnedFd) -> Option<u64> {
    loop {
        let mut room = [MaybeUninit::uninit(); 4];
        match epoll::wait(set, &mut room, None) {
            Ok((events, _)) => {
                let marks = events.iter().fold(0, |marks, event| marks | event.data.u64());
                return (marks != QUIT).then_some(marks);
            }
            Err(Errno::INTR) => {}
            Err(error) => {
                // None of the documented reasons can arise. Say so; what is missed is found by heartbeats (V9).
                tracing::error!(%error, "a fabric's descriptors can't be watched any more");
                return None;
            }
        }
    }
}
