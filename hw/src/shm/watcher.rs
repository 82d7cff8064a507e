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

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use consort_dataplane::fabric::Doorbell;
use rustix::event::epoll::EventFlags;

use super::life::Life;
use super::mapping::OwnMemory;
use super::options::ShmError;
use super::sleep::Alarm;
use crate::watch::Watch;

const SOCKETS: u64 = 1;

/// Watches the epoll set `sockets`, as long as what is returned is kept.
pub(super) fn watch(
    sockets: BorrowedFd<'_>,
    memory: Arc<OwnMemory>,
    alarm: Arc<Alarm>,
    doorbell: Doorbell,
) -> Result<Watch, ShmError> {
    let failed = |error| ShmError::machine("starting the thread that watches the sockets", error);
    let live = || {
        Life::begin(memory)
            .inspect_err(|error| tracing::debug!(%error, "peers will see this node's death late"))
    };
    let watch = Watch::start("consort-shm", live, move |_| {
        alarm.call_attention();
        doorbell.ring();
    });
    let watch = watch.map_err(failed)?;
    watch.add(sockets, SOCKETS, EventFlags::IN | EventFlags::ET).map_err(failed)?;
    Ok(watch)
}
