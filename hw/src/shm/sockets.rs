//! Everything whose readiness matters, in one epoll set, and what each event is about.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use consort_dataplane::names::Slot;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use rustix::time::Timespec;

const AT_ONCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// Events taken by one look.
const EVENTS_MAX: usize = 32;

/// The set. Level-triggered: what is not seen to comes again. A descriptor leaves it by being closed.
#[derive(Debug)]
pub(super) struct Sockets(OwnedFd);

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum About {
    /// Somebody connects.
    Listener,
    /// A connection that is no link yet, by its number.
    Guest(u64),
    /// The connection of a link.
    Link(Slot),
    /// The process at the other end of a link: it has ended.
    Process(Slot),
}

impl Sockets {
    pub(super) fn new() -> Result<Self, Errno> {
        epoll::create(CreateFlags::CLOEXEC).map(Self)
    }

    pub(super) fn add(&self, what: impl AsFd, about: About) -> Result<(), Errno> {
        epoll::add(&self.0, what, about.data(), EventFlags::IN)
    }

    /// What is in the set is about something else from now on.
    pub(super) fn rename(&self, what: impl AsFd, about: About) -> Result<(), Errno> {
        epoll::modify(&self.0, what, about.data(), EventFlags::IN)
    }

    /// Takes out what stays open; no matter if it isn't in.
    pub(super) fn remove(&self, what: impl AsFd) {
        let _ = epoll::delete(&self.0, what);
    }

    /// What is ready now. A guest or slot may be gone or another by the time one looks: events are hints.
    pub(super) fn ready(&self) -> Vec<About> {
        let mut space = [MaybeUninit::uninit(); EVENTS_MAX];
        let Ok((events, _)) = epoll::wait(&self.0, &mut space, Some(&AT_ONCE)) else { return Vec::new() };
        events.iter().map(|event| About::of(event.data)).collect()
    }
}

impl AsFd for Sockets {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl About {
    fn data(self) -> EventData {
        EventData::new_u64(match self {
            Self::Listener => 0,
            Self::Guest(id) => 1 | id << 8,
            Self::Link(slot) => 2 | u64::from(slot.0) << 8,
            Self::Process(slot) => 3 | u64::from(slot.0) << 8,
        })
    }

    fn of(data: EventData) -> Self {
        let id = data.u64() >> 8;
        let slot = Slot(id.to_le_bytes()[0]);
        match data.u64() & 0xff {
            0 => Self::Listener,
            1 => Self::Guest(id),
            2 => Self::Link(slot),
            _ => Self::Process(slot),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_event_is_about_survives_the_kernel() {
        let all = [About::Listener, About::Guest(0), About::Guest(1 << 40), About::Link(Slot(63))];
        for about in all.into_iter().chain([About::Process(Slot(0)), About::Process(Slot(255))]) {
            assert_eq!(About::of(about.data()), about);
        }
    }
}
