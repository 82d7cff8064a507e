//! The thread that watches the other fabrics while the owner sleeps in one of them.
//!
//! What ends a sleep on futexes is a futex, so somebody has to turn what comes over sockets into one. The thread sleeps in the kernel on what the
//! fabrics name ([`Far::news`](crate::beside::Far::news)), which the owner asks for anew before each of its sleeps, once: while it is awake and looks for itself,
//! nobody else is woken.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use consort_dataplane::fabric::Doorbell;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

use super::Kind;
use super::rouse::Bed;
use crate::signals::block_signals;

const QUIT: u64 = u64::MAX;

/// The thread, which ends when this is dropped.
pub(super) struct Watcher {
    set: Arc<OwnedFd>,
    quit: OwnedFd,
    /// What is in the set.
    known: Vec<RawFd>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    pub(super) fn start(bed: Arc<Bed>, doorbell: Doorbell) -> std::io::Result<Self> {
        let quit = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let set = Arc::new(epoll::create(CreateFlags::CLOEXEC)?);
        epoll::add(&set, &quit, EventData::new_u64(QUIT), EventFlags::IN)?;
        let watched = set.clone();
        let thread = std::thread::Builder::new().name("consort-watch".to_owned()).spawn(move || {
            block_signals();
            watch(&watched, &bed, &doorbell);
        })?;
        Ok(Self { set, quit, known: Vec::new(), thread: Some(thread) })
    }

    /// Rings, once, when `news` can be read; at once if it can be already.
    pub(super) fn watch(&mut self, kind: Kind, news: BorrowedFd<'_>) -> std::io::Result<()> {
        let data = EventData::new_u64(kind.bit().into());
        let once = EventFlags::IN | EventFlags::ONESHOT;
        if self.known.contains(&news.as_raw_fd()) {
            epoll::modify(self.set.as_fd(), news, data, once)?;
        } else {
            epoll::add(self.set.as_fd(), news, data, once)?;
            self.known.push(news.as_raw_fd()); // it lives as long as its fabric, which lives as long as this
        }
        Ok(())
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

fn watch(set: &OwnedFd, bed: &Bed, doorbell: &Doorbell) {
    loop {
        let mut room = [MaybeUninit::uninit(); 4];
        match epoll::wait(set, &mut room, None) {
            Ok((events, _)) => {
                let mut kinds = 0;
                for event in events {
                    let data = event.data.u64();
                    if data == QUIT {
                        return;
                    }
                    kinds |= data as u8; // as it was put there
                }
                bed.stir(kinds);
                doorbell.ring();
            }
            Err(Errno::INTR) => {}
            Err(error) => {
                // None of the documented reasons can arise. Say so; a sleep is bounded by the node's heartbeats.
                tracing::error!(%error, "the fabrics can't be watched any more");
                return;
            }
        }
    }
}
