//! The thread that watches the other fabrics while the owner sleeps in one of them.
//!
//! What ends a sleep on futexes is a futex, so somebody has to turn what comes over sockets into one. The thread sleeps in the kernel on what the
//! fabrics name ([`Far::news`](crate::beside::Far::news)), which the owner asks for anew before each of its sleeps, once: while it is awake and looks for itself,
//! nobody else is woken.

use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;

use consort_dataplane::fabric::Doorbell;
use rustix::event::epoll::EventFlags;

use super::Kind;
use super::rouse::Bed;
use crate::watch::Watch;

/// The thread, and what it watches.
pub(super) struct Watcher {
    watch: Watch,
    known: Vec<RawFd>,
}

impl Watcher {
    pub(super) fn start(bed: Arc<Bed>, doorbell: Doorbell) -> std::io::Result<Self> {
        let watch = Watch::start(
            "consort-watch",
            || (),
            move |kinds| {
                bed.stir(kinds as u8); // as they were put there
                doorbell.ring();
            },
        )?;
        Ok(Self { watch, known: Vec::new() })
    }

    /// Rings, once, when `news` can be read; at once if it can be already.
    pub(super) fn watch(&mut self, kind: Kind, news: BorrowedFd<'_>) -> std::io::Result<()> {
        let (mark, once) = (u64::from(kind.bit()), EventFlags::IN | EventFlags::ONESHOT);
        if self.known.contains(&news.as_raw_fd()) {
            return self.watch.modify(news, mark, once);
        }
        self.watch.add(news, mark, once)?;
        self.known.push(news.as_raw_fd()); // it lives as long as its fabric, which lives as long as this
        Ok(())
    }
}
