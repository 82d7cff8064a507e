//! The thread that watches the sockets while the owner is busy or asleep.
//!
//! The owner polls words in memory; a system call per turn to look at sockets would cost more than the turn. So this
//! thread sleeps in the kernel until something happens to a socket (a peer dials, says a word, or is gone), raises a flag
//! that costs the owner one load per turn, and rings the doorbell. It never touches the sockets: the owner does
//! what there is to do, in [`Fabric::poll`](consort_dataplane::fabric::Fabric::poll).
//!
//! As the thread that lives as long as the fabric does, it also holds the word in which this node's death shows (`life`).
//!
//! It waits on the owner's epoll set through an edge-triggered one of its own: so it hears once of each event, and
//! doesn't turn in circles while the owner has not come to it.

use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use consort_dataplane::fabric::Doorbell;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

use super::life::Life;
use super::mapping::OwnMemory;
use super::options::ShmError;
use super::sleep::Alarm;
use crate::signals::block_signals;

const QUIT: u64 = 0;
const SOCKETS: u64 = 1;

/// The thread, which ends when this is dropped.
#[derive(Debug)]
pub(super) struct Watcher {
    quit: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    /// Watches the epoll set `sockets`.
    pub(super) fn start(
        sockets: BorrowedFd<'_>,
        memory: Arc<OwnMemory>,
        alarm: Arc<Alarm>,
        doorbell: Doorbell,
    ) -> Result<Self, ShmError> {
        let failed = |step| move |errno: Errno| ShmError::machine(step, errno);
        let quit = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(failed("making an eventfd"))?;
        let outer = epoll::create(CreateFlags::CLOEXEC).map_err(failed("making an epoll set"))?;
        epoll::add(&outer, &quit, EventData::new_u64(QUIT), EventFlags::IN).map_err(failed("epoll"))?;
        epoll::add(&outer, sockets, EventData::new_u64(SOCKETS), EventFlags::IN | EventFlags::ET)
            .map_err(failed("epoll"))?;
        let thread = std::thread::Builder::new()
            .name("consort-shm".to_owned())
            .spawn(move || {
                block_signals();
                let _life = Life::begin(memory)
                    .inspect_err(|error| tracing::debug!(%error, "peers will see this node's death late"));
                watch(&outer, &alarm, &doorbell);
            })
            .map_err(|error| ShmError::machine("starting the thread that watches the sockets", error))?;
        Ok(Self { quit, thread: Some(thread) })
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let told = rustix::io::write(&self.quit, &1u64.to_ne_bytes());
        if let (Ok(_), Some(thread)) = (told, self.thread.take()) {
            let _ = thread.join();
        }
    }
}

fn watch(outer: &OwnedFd, alarm: &Alarm, doorbell: &Doorbell) {
    loop {
        let mut events = [MaybeUninit::uninit(); 2];
        match epoll::wait(outer, &mut events, None) {
            Ok((events, _)) => {
                if events.iter().any(|event| event.data.u64() == QUIT) {
                    return;
                }
                alarm.call_attention();
                doorbell.ring();
            }
            Err(Errno::INTR) => {}
            Err(error) => {
                // None of the documented reasons can arise. Links would die unseen: say so, and let silence be detected
                // by heartbeats (V9).
                tracing::error!(%error, "the shm fabric's sockets can't be watched any more");
                return;
            }
        }
    }
}
