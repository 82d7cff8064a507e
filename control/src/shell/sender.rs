//! [`Sender`]: how the application multicasts, from any thread. Room for a message is lent in the ring itself (D3), written
//! in place, and committed; then the engine is woken if it sleeps. A full ring is back-pressure: `try_` refuses,
//! blocking waits, nothing is ever lost (D11).

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use consort_dataplane::fabric::Doorbell;
use consort_dataplane::ring::{self, ReserveError, RingSender, Ticket};

use super::gate::Gate;
use super::outcome::{Outcome, Registry};
use crate::membership::Stopped;

/// How long a blocked sender yields before it sleeps: room mostly comes back within a few microseconds.
const YIELD: Duration = Duration::from_micros(50);

/// Multicasts to the group. Clones send in the same name; any thread may.
#[derive(Clone)]
pub struct Sender {
    outbox: Arc<Outbox>,
}

/// What senders and engine share.
#[derive(Default)]
pub(crate) struct Outbox {
    /// There once a view is installed.
    open: OnceLock<Open>,
    stopped: OnceLock<Stopped>,
    /// Nothing more is to be sent.
    ended: AtomicBool,
    /// The members were told so.
    end_sent: AtomicBool,
    /// Where senders wait for a view, or for room.
    pub(crate) gate: Gate,
    /// A sender found no room since the engine last looked.
    wanted: AtomicBool,
    /// … on the thread that drives the engine, which does not look while it tries.
    wanted_here: AtomicBool,
    pub(crate) registry: Registry,
    /// The thread that drives the engine and runs the application's code in it, as [`this_thread`] numbers it.
    driving: AtomicU64,
}

struct Open {
    ring: RingSender,
    bell: Doorbell,
}

/// A message can't be sent.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// Back-pressure, not a failure: not every member has taken enough yet. Only `try_` says this.
    #[error("the ring is full: some member has not yet taken what was sent before; try again, or block")]
    Full,
    /// The group isn't there yet. Only `try_` says this.
    #[error("the group has not started: wait for the first view")]
    NotStarted,
    /// The message can never fit.
    #[error(
        "a message of {len} bytes is too long: these rings take at most {max}; set `ring` to at least four times the message"
    )]
    TooLong {
        /// What was asked for, in bytes.
        len: usize,
        /// The longest that fits, in bytes.
        max: usize,
    },
    /// [`Sender::end`] was called: the members were told that nothing more comes.
    #[error("this node has ended its sends; start another node to send more")]
    Ended,
    /// The node stopped.
    #[error("the node stopped: {0}")]
    Stopped(Stopped),
    /// The thread that drives the node would wait for itself.
    #[error(
        "this thread drives the node, so nothing would make room while it waits: use `try_reserve` and go on polling"
    )]
    WouldDeadlock,
}

/// Room for one message, in the ring itself (D3). Write it and send it. Dropped unsent it costs its room and is
/// delivered to nobody; until either happens nothing that was reserved later can go out, so don't keep it.
pub struct Reservation<'a> {
    room: ring::Reservation<&'a RingSender>,
    outbox: &'a Outbox,
    bell: &'a Doorbell,
}

impl Sender {
    pub(crate) fn new(outbox: Arc<Outbox>) -> Self {
        Self { outbox }
    }

    /// Lends room for `len` bytes, with whatever bytes are there. Blocks until the group has started and there is room.
    ///
    /// On the thread that drives a [`DrivenNode`](crate::DrivenNode) it does not block but refuses
    /// ([`SendError::WouldDeadlock`]) where it would have to.
    ///
    /// # Errors
    /// The message is too long, the node has ended or stopped, or this thread would wait for itself.
    pub fn reserve(&self, len: usize) -> Result<Reservation<'_>, SendError> {
        match self.try_reserve(len) {
            Err(SendError::Full | SendError::NotStarted) => {}
            done => return done,
        }
        if self.outbox.is_driven_here() {
            return Err(SendError::WouldDeadlock);
        }
        let until = Instant::now() + YIELD;
        while Instant::now() < until {
            std::thread::yield_now();
            match self.try_reserve(len) {
                Err(SendError::Full | SendError::NotStarted) => {}
                done => return done,
            }
        }
        let reserved = self.outbox.gate.wait(None, || match self.try_reserve(len) {
            Err(SendError::Full | SendError::NotStarted) => None,
            done => Some(done),
        });
        reserved.unwrap_or(Err(SendError::Full)) // not reached: a wait without a bound has a value
    }

    /// As [`Sender::reserve`], without ever blocking.
    ///
    /// # Errors
    /// As there; and [`SendError::Full`] or [`SendError::NotStarted`] when it isn't possible just now.
    pub fn try_reserve(&self, len: usize) -> Result<Reservation<'_>, SendError> {
        let outbox = &*self.outbox;
        if outbox.ended.load(Ordering::Relaxed) {
            return Err(SendError::Ended);
        }
        let Some(open) = outbox.open.get() else { return Err(outbox.stop_or(SendError::NotStarted)) };
        match open.ring.try_reserve(len) {
            Ok(room) => Ok(Reservation { room, outbox, bell: &open.bell }),
            Err(error) => Err(outbox.refused(error, &open.bell)),
        }
    }

    /// Multicasts a copy of `message`; blocks like [`Sender::reserve`]. To write it in place instead, reserve.
    ///
    /// # Errors
    /// As [`Sender::reserve`].
    pub fn send(&self, message: &[u8]) -> Result<Ticket, SendError> {
        let mut room = self.reserve(message.len())?;
        room.copy_from_slice(message);
        Ok(room.send())
    }

    /// As [`Sender::send`], and tells what becomes of it.
    ///
    /// # Errors
    /// As [`Sender::reserve`].
    pub fn send_tracked(&self, message: &[u8]) -> Result<Outcome, SendError> {
        let mut room = self.reserve(message.len())?;
        room.copy_from_slice(message);
        Ok(room.send_tracked())
    }

    /// Multicasts that this node sends nothing more, after all that it has sent; every member sees
    /// [`Event::Ended`](crate::Event::Ended). Blocks like [`Sender::reserve`]; calling it again changes nothing.
    ///
    /// # Errors
    /// As [`Sender::reserve`].
    pub fn end(&self) -> Result<(), SendError> {
        let outbox = &*self.outbox;
        outbox.ended.store(true, Ordering::Relaxed);
        let ended = match outbox.try_end() {
            Some(ended) => ended,
            None if outbox.is_driven_here() => Err(SendError::WouldDeadlock),
            None => outbox.gate.wait(None, || outbox.try_end()).unwrap_or(Err(SendError::Full)),
        };
        if ended.is_err() {
            outbox.ended.store(false, Ordering::Relaxed);
        }
        ended
    }

    /// The longest message that fits, in bytes; `None` before the group has started.
    pub fn max_len(&self) -> Option<usize> {
        self.outbox.open.get().map(|open| open.ring.max_len())
    }
}

impl Reservation<'_> {
    /// Multicasts the message. Never blocks.
    pub fn send(self) -> Ticket {
        let ticket = self.room.send();
        // The thread that drives the engine is not asleep, and its next turn takes the message: no fence on its way.
        if !self.outbox.is_driven_here() {
            self.bell.ring();
        }
        ticket
    }

    /// As [`Reservation::send`], and tells what becomes of it.
    pub fn send_tracked(self) -> Outcome {
        let registered = self.outbox.registry.register(self.room.as_ptr());
        let ticket = self.room.send();
        self.bell.ring();
        // Pairs with the fence in `Outbox::stop`: either the engine's last look sees the registration, or this sees
        // the stop. (`ring` began with the fence; one more costs nothing beside it and doesn't rely on that.)
        fence(Ordering::SeqCst);
        if let Some(reason) = self.outbox.stopped.get() {
            self.outbox.registry.fail(reason);
        }
        registered.outcome(ticket)
    }
}

impl Deref for Reservation<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.room
    }
}

impl DerefMut for Reservation<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.room
    }
}

impl Outbox {
    /// A session has started: senders may go on.
    pub(crate) fn open(&self, ring: RingSender, bell: Doorbell) {
        let _ = self.open.set(Open { ring, bell });
        self.gate.open();
    }

    /// The node has stopped: senders are refused, those who wait are let go. The session must be wedged.
    pub(crate) fn stop(&self, reason: &Stopped) {
        let _ = self.stopped.set(reason.clone());
        fence(Ordering::SeqCst); // pairs with the one in `Reservation::send_tracked`
        self.gate.open();
    }

    /// Whether a sender found no room since the last call; the engine should look for some and open the gate.
    pub(crate) fn take_wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed) && self.wanted.swap(false, Ordering::Relaxed)
    }

    /// Whether [`Outbox::take_wanted`] would say yes.
    pub(crate) fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed)
    }

    /// As [`Outbox::take_wanted`], for a sender on the thread that drives the engine.
    pub(crate) fn take_wanted_here(&self) -> bool {
        self.wanted_here.load(Ordering::Relaxed) && self.wanted_here.swap(false, Ordering::Relaxed)
    }

    /// Whether [`Outbox::take_wanted_here`] would say yes.
    pub(crate) fn is_wanted_here(&self) -> bool {
        self.wanted_here.load(Ordering::Relaxed)
    }

    /// Whether the calling thread is the one that drives the engine.
    fn is_driven_here(&self) -> bool {
        self.driving.load(Ordering::Relaxed) == this_thread()
    }

    /// The calling thread drives the engine from now on.
    pub(crate) fn driven_here(&self) {
        self.driving.store(this_thread(), Ordering::Relaxed);
    }

    /// For closing: no more sends, and the members told so. Returns whether that is done, or can't be.
    pub(crate) fn try_end_for_good(&self) -> bool {
        self.ended.store(true, Ordering::Relaxed);
        self.try_end().is_some()
    }

    /// `None` if it must be tried again. Should two threads get here at once, the members hear it twice, which is as
    /// good as once.
    fn try_end(&self) -> Option<Result<(), SendError>> {
        if self.end_sent.load(Ordering::Relaxed) {
            return Some(Ok(()));
        }
        let Some(open) = self.open.get() else {
            return self.stopped.get().map(|reason| Err(SendError::Stopped(reason.clone())));
        };
        match open.ring.try_end() {
            Ok(_) => {
                self.end_sent.store(true, Ordering::Relaxed);
                open.bell.ring();
                Some(Ok(()))
            }
            Err(error) => match self.refused(error, &open.bell) {
                SendError::Full => None,
                error => Some(Err(error)),
            },
        }
    }

    fn refused(&self, error: ReserveError, bell: &Doorbell) -> SendError {
        match error {
            ReserveError::Full => {
                // The engine may sleep although there is room to be had: it looks only when asked.
                if self.is_driven_here() {
                    self.wanted_here.store(true, Ordering::Relaxed);
                } else {
                    self.wanted.store(true, Ordering::Relaxed);
                    bell.ring();
                }
                SendError::Full
            }
            ReserveError::TooLong { len, max } => SendError::TooLong { len, max },
            _ => self.stop_or(SendError::Stopped(Stopped::Closed)),
        }
    }

    fn stop_or(&self, otherwise: SendError) -> SendError {
        self.stopped.get().map_or(otherwise, |reason| SendError::Stopped(reason.clone()))
    }
}

/// A number that this thread shares with no other of the process; never 0.
fn this_thread() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    thread_local!(static MINE: u64 = NEXT.fetch_add(1, Ordering::Relaxed));
    MINE.with(|mine| *mine)
}

impl fmt::Debug for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sender")
    }
}

impl fmt::Debug for Reservation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reservation({} bytes)", self.len())
    }
}
