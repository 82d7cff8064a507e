//! The engine for machines that deny io_uring: the same links over `epoll`, `recvmsg` and `sendmsg`.
//!
//! Sockets are registered, level-triggered, from the first sleep that watches them on. While the owner polls, `epoll`
//! is not asked at all, unless a full socket is waited for: links are received from directly.

use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use consort_dataplane::names::{PeerSet, Slot};
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};

use super::counts::Counts;
use super::engine::{Engine, Ready, Sends, Token, Watch};
use super::sys;

/// Events taken at once; what does not fit comes with the next call.
const EVENTS: usize = 64;

/// See the [module](self).
pub(super) struct Epoll {
    epoll: OwnedFd,
    /// What is registered, and for what.
    interest: HashMap<RawFd, EventFlags>,
    /// Links whose sockets were full.
    writing: PeerSet,
}

impl Epoll {
    pub(super) fn new() -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        Ok(Self { epoll, interest: HashMap::new(), writing: PeerSet::EMPTY })
    }

    /// Registers `socket`, or changes what it is registered for.
    fn register(&mut self, token: Token, socket: BorrowedFd<'_>, flags: EventFlags, counts: &mut Counts) {
        let data = EventData::new_u64(token.encode());
        let result = match self.interest.insert(socket.as_raw_fd(), flags) {
            Some(known) if known == flags => return,
            Some(_) => epoll::modify(&self.epoll, socket, data, flags),
            None => epoll::add(&self.epoll, socket, data, flags),
        };
        counts.called();
        if let Err(cause) = result {
            // Out of memory or of watches: the sleep's bound is what is left then.
            tracing::warn!(%cause, "a socket can't be watched; see /proc/sys/fs/epoll/max_user_watches");
            self.interest.remove(&socket.as_raw_fd());
        }
    }

    /// The set, which can be read when one of what was watched last is ready.
    pub(super) fn set(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// Watches these, and for the links that are `blocked` whether they take bytes again.
    pub(super) fn watch(&mut self, watches: &[Watch<'_>], blocked: PeerSet, counts: &mut Counts) {
        self.writing = blocked;
        for watch in watches {
            let flags = match watch.token {
                // A link that is full stays registered for both; else writing is not asked for, or it would not sleep.
                Token::Link(slot, _) if self.writing.contains(slot) => EventFlags::IN | EventFlags::OUT,
                _ if watch.writing => EventFlags::OUT,
                _ => EventFlags::IN,
            };
            self.register(watch.token, watch.socket, flags, counts);
        }
    }

    pub(super) fn ask(&mut self, timeout: Duration, counts: &mut Counts) -> Ready {
        let mut ready = Ready::default();
        let timeout = Timespec::try_from(timeout).ok();
        counts.called();
        let mut room = [const { MaybeUninit::<Event>::uninit() }; EVENTS];
        let events = match epoll::wait(&self.epoll, &mut room, timeout.as_ref()) {
            Ok((events, _)) => events,
            Err(cause) => {
                if cause != rustix::io::Errno::INTR {
                    tracing::error!(%cause, "epoll_wait failed");
                }
                return ready;
            }
        };
        for event in events {
            let (flags, data) = (event.flags, event.data.u64());
            let readable = flags.intersects(!EventFlags::OUT);
            match Token::decode(data) {
                Some(Token::Link(slot, _)) => {
                    if readable {
                        ready.readable = ready.readable.with(slot);
                    }
                    if flags.contains(EventFlags::OUT) && self.writing.contains(slot) {
                        ready.writable = ready.writable.with(slot);
                    }
                }
                Some(Token::Bell) => ready.bell = true,
                Some(Token::Listener | Token::Setup(_)) => ready.setup = true,
                None => {}
            }
        }
        self.writing = PeerSet(self.writing.0 & !ready.writable.0);
        ready
    }
}

impl Engine for Epoll {
    fn name(&self) -> &'static str {
        "epoll"
    }

    fn can_zero_copy(&self) -> bool {
        false
    }

    fn gathers(&self, _: u32) -> bool {
        false
    }

    fn send(&mut self, sends: &mut Sends<'_>, counts: &mut Counts) {
        sys::send_each(sends, counts);
    }

    fn take_renewed(&mut self) -> bool {
        false
    }

    fn has_news(&self) -> bool {
        !self.writing.is_empty()
    }

    fn watch_writable(&mut self, slot: Slot, generation: u32, socket: BorrowedFd<'_>, counts: &mut Counts) {
        self.writing = self.writing.with(slot);
        let both = EventFlags::IN | EventFlags::OUT;
        self.register(Token::Link(slot, generation), socket, both, counts);
    }

    fn poll(&mut self, counts: &mut Counts) -> Ready {
        self.ask(Duration::ZERO, counts)
    }

    fn sleep(&mut self, watches: &[Watch<'_>], timeout: Duration, counts: &mut Counts) -> Ready {
        self.watch(watches, self.writing, counts);
        self.ask(timeout, counts)
    }

    fn forget(&mut self, token: Token, socket: BorrowedFd<'_>) {
        if let Token::Link(slot, _) = token {
            self.writing = self.writing.without(slot);
        }
        if self.interest.remove(&socket.as_raw_fd()).is_some() {
            // It can only fail if the socket is not registered, which is what is wanted.
            let _ = epoll::delete(self.epoll.as_fd(), socket);
        }
    }
}
