//! [`Sender`]: how the application multicasts, from any thread. Room for a message is lent in the ring itself (D3), written
//! in place, and committed; then the engine is woken if it sleeps. A full ring is back-pressure: `try_` refuses,
//! blocking waits, nothing is ever lost (D11).
//!
//! # Views change, senders stay
//! Every view's session has a ring of its own. While the view changes the old ring is closed and the next is not open yet:
//! `try_` says so ([`SendError::Changing`]), blocking waits. The next opens when everything that the old view left
//! undelivered has been sent again in it (D13), so a sender's messages keep their order over all views. A reservation that is held
//! meanwhile keeps its own ring; when it is committed it is sent again like the rest, and until then nothing else is.
//!
//! # How a sender finds the current ring
//! Without a lock, a shared counter or an allocation: each thread keeps the [`Open`] ring that it used last, lends it to its
//! reservation, and gets it back when that is sent. One load tells whether it is still the current one; only if not (once a
//! view, while a thread holds several reservations, after one that was dropped) it takes the way over [`Outbox::current`]. So a
//! thread that sends no more keeps the last ring's memory from being given back, until it ends.

use std::cell::Cell;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, compiler_fence, fence};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use consort_dataplane::fabric::Doorbell;
use consort_dataplane::names::{NodeId, Position, Rank, RankSet};
use consort_dataplane::plan::SessionPlan;
use consort_dataplane::ring::{self, ReserveError, RingSender, Ticket};
use consort_dataplane::session::SENT;

use super::clock;
use super::gate::Gate;
use super::outcome::{Outcome, OutcomeError, Registry};
use super::points::{Asked, ReadPoint, ReadPointError};
use crate::membership::Stopped;

/// How long a blocked sender yields before it sleeps: room mostly comes back within a few microseconds.
const YIELD: Duration = Duration::from_micros(50);

/// Multicasts to the group. Clones send in the same name; any thread may.
#[derive(Clone)]
pub struct Sender {
    outbox: Arc<Outbox>,
}

/// What senders and engine share.
pub(crate) struct Outbox {
    /// The number of the current ring; 0 while there never was one.
    number: AtomicU64,
    current: ArcSwapOption<Open>,
    /// There is a view, and this node is no member of the shard in it.
    apart: AtomicBool,
    stopped: OnceLock<Stopped>,
    /// Nothing more is to be sent.
    ended: AtomicBool,
    /// The members were told so.
    end_sent: AtomicBool,
    /// Read points and digests.
    pub(crate) asked: Asked,
    /// Where senders wait for a view, or for room.
    pub(crate) gate: Gate,
    /// A sender found no room since the engine last looked.
    wanted: AtomicBool,
    /// … on the thread that drives the engine, which does not look while it tries.
    wanted_here: AtomicBool,
    /// Rouses the engine.
    bell: Doorbell,
    /// The thread that drives the engine and runs the application's code in it, as [`this_thread`] numbers it: one for all shards.
    driving: Arc<AtomicU64>,
}

/// The ring of one session.
pub(crate) struct Open {
    ring: RingSender,
    /// No other ring of this process has it; never 0.
    number: u64,
    /// Where this ring's tickets begin: behind all those of the rings before it.
    base: u64,
    /// The members, by rank.
    members: Box<[NodeId]>,
    /// Messages to some members only are possible here.
    addresses: bool,
    /// Bytes before each message for the clock, in a durable shard.
    dated: usize,
    pub(crate) registry: Registry,
    /// What is sent from now on is lost, and why.
    over: OnceLock<OutcomeError>,
}

thread_local! {
    /// This thread's number; 0 while it has none.
    static NUMBER: Cell<u64> = const { Cell::new(0) };
    static MINE: Mine = const { Mine { last: Cell::new(None), number: Cell::new(0) } };
}

/// What a thread needs for each send, in one place: in a shared library finding it costs a call.
struct Mine {
    /// The ring that this thread used last, unless it is lent to a reservation.
    last: Cell<Option<Arc<Open>>>,
    /// A copy of [`NUMBER`], or 0. (That is there also when this is gone, while a thread ends.)
    number: Cell<u64>,
}

/// A ring, from this thread's [`Mine`], where it goes back to.
struct Lease(Arc<Open>);

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
    /// The members are agreeing on the next view, which takes some milliseconds: try again, or block. Only `try_` says this.
    #[error("the view is changing: try again in a moment, or block")]
    Changing,
    /// The view has this node in the cluster, but not among the members of this shard.
    #[error("this node is no member of the shard: send from one that is")]
    NotMember,
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
    /// A message is to be for a node that is no member.
    #[error("{0} is no member of the shard in this view, so nothing can be sent to it")]
    NoSuchMember(NodeId),
    /// A message for nobody.
    #[error("the list of destinations is empty: name those whom the message is for")]
    NoDestination,
    /// Where delivery doesn't wait until all have a message, what is for some can't be recovered from the others; and along a chain all
    /// have every message on its way.
    #[error(
        "only groups with the guarantee `atomic` and the topology `direct` take messages for some of their members: send it to all"
    )]
    NotAddressable,
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
///
/// It may be held over a change of the view. Then its message is sent in the next one, and all sends of this node
/// wait for it; and so does, for the memory it lies in, the change after that, at all members.
pub struct Reservation<'a> {
    room: ring::Reservation<Lease>,
    outbox: &'a Outbox,
}

impl Sender {
    pub(crate) fn new(outbox: Arc<Outbox>) -> Self {
        Self { outbox }
    }

    /// Lends room for `len` bytes, with whatever bytes are there. Blocks until the group has started, or has come through a
    /// change of the view, and there is room.
    ///
    /// On the thread that drives a [`DrivenNode`](crate::DrivenNode) it does not block but refuses
    /// ([`SendError::WouldDeadlock`]) where it would have to.
    ///
    /// # Errors
    /// The message is too long, the node has ended or stopped, or this thread would wait for itself.
    pub fn reserve(&self, len: usize) -> Result<Reservation<'_>, SendError> {
        self.blocking(|| self.try_reserve(len))
    }

    /// As [`Sender::reserve`], for a message that is delivered to the nodes in `to` alone (D12): at a place in the order that all members
    /// agree on, in which the others see a gap. They are not sent its bytes; over shared memory, which is one for all, they leave them
    /// unread. This node gets it only if it is in the list. The longest message is 8 bytes shorter than others.
    ///
    /// Its outcome tells that all of these who are members have it. Should the view change first, it goes to those that remain, in the next
    /// one; if there are none, the outcome is [`OutcomeError::NoDestination`]. Who goes and comes again is another member, whom it isn't for.
    ///
    /// # Errors
    /// As there; and [`SendError::NoSuchMember`], [`SendError::NoDestination`] or [`SendError::NotAddressable`].
    pub fn reserve_to(&self, to: &[NodeId], len: usize) -> Result<Reservation<'_>, SendError> {
        self.blocking(|| self.try_reserve_to(to, len))
    }

    fn blocking<'a>(
        &'a self,
        mut reserve: impl FnMut() -> Result<Reservation<'a>, SendError>,
    ) -> Result<Reservation<'a>, SendError> {
        match reserve() {
            Err(error) if error.passes() => {}
            done => return done,
        }
        if self.outbox.is_driven_here() {
            return Err(SendError::WouldDeadlock);
        }
        let until = Instant::now() + YIELD;
        while Instant::now() < until {
            std::thread::yield_now();
            match reserve() {
                Err(error) if error.passes() => {}
                done => return done,
            }
        }
        let reserved = self.outbox.gate.wait(None, || match reserve() {
            Err(error) if error.passes() => None,
            done => Some(done),
        });
        reserved.unwrap_or(Err(SendError::Full)) // not reached: a wait without a bound has a value
    }

    /// As [`Sender::reserve`], without ever blocking.
    ///
    /// # Errors
    /// As there; and [`SendError::Full`], [`SendError::Changing`] or [`SendError::NotStarted`] when it isn't possible just now.
    #[inline(always)]
    pub fn try_reserve(&self, len: usize) -> Result<Reservation<'_>, SendError> {
        let lease = self.lease()?;
        let dated = lease.0.dated;
        self.reserved(ring::try_reserve(lease, len.saturating_add(dated)), dated)
    }

    /// As [`Sender::reserve_to`], without ever blocking.
    ///
    /// # Errors
    /// As there and at [`Sender::try_reserve`].
    pub fn try_reserve_to(&self, to: &[NodeId], len: usize) -> Result<Reservation<'_>, SendError> {
        let lease = self.lease()?;
        match lease.0.addressed(to) {
            Ok(ranks) => self.reserved(ring::try_reserve_to(lease, ranks, len), 0),
            Err(error) => {
                lease.give_back();
                Err(error)
            }
        }
    }

    #[inline(always)]
    fn lease(&self) -> Result<Lease, SendError> {
        let outbox = &*self.outbox;
        if outbox.ended.load(Ordering::Relaxed) {
            return Err(SendError::Ended);
        }
        outbox.lease().ok_or_else(|| outbox.stop_or(SendError::NotStarted))
    }

    #[inline(always)]
    fn reserved(
        &self,
        room: Result<ring::Reservation<Lease>, (Lease, ReserveError)>,
        dated: usize,
    ) -> Result<Reservation<'_>, SendError> {
        let outbox = &*self.outbox;
        match room {
            Ok(room) => Ok(Reservation { room, outbox }),
            Err((lease, error)) => {
                lease.give_back();
                Err(outbox.refused(error, dated))
            }
        }
    }

    /// Multicasts a copy of `message` to the nodes in `to` alone; blocks like [`Sender::reserve_to`].
    ///
    /// # Errors
    /// As there.
    pub fn send_to(&self, to: &[NodeId], message: &[u8]) -> Result<Ticket, SendError> {
        let mut room = self.reserve_to(to, message.len())?;
        room.copy_from_slice(message);
        Ok(room.send())
    }

    /// As [`Sender::send_to`], and tells what becomes of it.
    ///
    /// # Errors
    /// As [`Sender::reserve_to`].
    pub fn send_to_tracked(&self, to: &[NodeId], message: &[u8]) -> Result<Outcome, SendError> {
        let mut room = self.reserve_to(to, message.len())?;
        room.copy_from_slice(message);
        Ok(room.send_tracked())
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

    /// Multicasts copies of as many of these messages as there is room for, in their order, and rouses the engine once for all of them. `sent`
    /// is called with the ticket of each, and how often it is called says how many were sent. Never blocks. It is for who has many small
    /// messages at once: for each the way to the ring is shorter than by [`Sender::try_reserve`].
    ///
    /// A batch is no unit: between two messages of it there may be others' in the order, and a view may end. Room is claimed for as many as the
    /// iterator says are to come at least ([`Iterator::size_hint`]), some 16 KiB at once.
    ///
    /// # Errors
    /// As [`Sender::try_reserve`], for the first message that was not sent.
    #[inline]
    pub fn try_send_many<'a>(
        &self,
        messages: impl IntoIterator<Item = &'a [u8]>,
        sent: impl FnMut(Ticket),
    ) -> Result<(), SendError> {
        self.send_each(
            messages.into_iter(),
            |message| message.len(),
            |message, room| room.copy_from_slice(message),
            sent,
        )
    }

    /// As [`Sender::try_send_many`], of messages that `write` writes in place: it is called for each of these lengths for which there is room, with
    /// that, and whatever bytes are there. What other threads send meanwhile waits for it, so it is not to wait for anything. If it panics,
    /// the messages before that are sent.
    ///
    /// # Errors
    /// As there.
    #[inline]
    pub fn try_write_many(
        &self,
        lengths: impl IntoIterator<Item = usize>,
        mut write: impl FnMut(&mut [u8]),
        sent: impl FnMut(Ticket),
    ) -> Result<(), SendError> {
        self.send_each(lengths.into_iter(), |len| *len, |_, room| write(room), sent)
    }

    #[inline(always)]
    fn send_each<T>(
        &self,
        mut messages: impl Iterator<Item = T>,
        len: impl Fn(&T) -> usize,
        mut write: impl FnMut(T, &mut [u8]),
        mut sent: impl FnMut(Ticket),
    ) -> Result<(), SendError> {
        let outbox = &*self.outbox;
        let mut batch = Batch { lease: Some(self.lease()?), outbox, is_any: false };
        let Some(Lease(open)) = &batch.lease else { return Ok(()) }; // not reached
        let mut rooms = open.ring.batch();
        while let Some(message) = messages.next() {
            let whole = len(&message).saturating_add(open.dated);
            let written = rooms.send(whole, messages.size_hint().0, |room| {
                let (date, payload) = room.split_at_mut(open.dated);
                write_date(date);
                write(message, payload);
            });
            match written {
                Ok(Ticket(end)) => {
                    batch.is_any = true;
                    sent(open.ticket(end));
                }
                Err(error) => return Err(outbox.refused(error, open.dated)),
            }
        }
        Ok(())
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

    /// Asks for a read point: a place in this node's stream of events at which all has been told that any member had been told before
    /// this call. [`Event::ReadPoint`](crate::Event::ReadPoint) says that it is reached; a state kept by applying the messages is fresh
    /// enough there for a linearizable query. It costs a round trip between the members and no message, and many points that are asked for
    /// at once share one. Never blocks.
    ///
    /// A point comes, in this view or a later one, unless the node stops; while this node reaches no majority, none does.
    ///
    /// # Errors
    /// The group's guarantee isn't [`Guarantee::Atomic`](consort_dataplane::plan::Guarantee::Atomic), this node isn't a member of the shard,
    /// or it stopped.
    pub fn read_point(&self) -> Result<ReadPoint, ReadPointError> {
        if let Some(reason) = self.outbox.stopped.get() {
            return Err(ReadPointError::Stopped(reason.clone()));
        }
        if self.outbox.apart.load(Ordering::Acquire) {
            return Err(ReadPointError::NotMember);
        }
        let point = self.outbox.asked.point()?;
        self.outbox.bell.ring();
        Ok(point)
    }

    /// Publishes a word to the other members, beside the counters of the protocol: the digest of this node's state, for those who compare
    /// ([`Event::Digest`](crate::Event::Digest)). Only the last one counts, and who looks late sees no other; 0 says nothing.
    pub fn publish_digest(&self, digest: u64) {
        self.outbox.asked.publish(digest);
        self.outbox.bell.ring();
    }

    /// The longest message that fits, in bytes, the same in all views; `None` before the group has started.
    pub fn max_len(&self) -> Option<usize> {
        self.outbox.current.load().as_ref().map(|open| open.ring.max_len().saturating_sub(open.dated))
    }
}

impl SendError {
    /// Whether it may be different in a moment.
    const fn passes(&self) -> bool {
        matches!(self, Self::Full | Self::NotStarted | Self::Changing)
    }
}

impl Reservation<'_> {
    /// Multicasts the message. Never blocks.
    #[inline(always)]
    pub fn send(self) -> Ticket {
        let dated = self.dated();
        let Self { room, outbox } = self;
        let (Ticket(end), lease) = room.send_back(|room| write_date(&mut room[..dated]));
        let ticket = lease.0.ticket(end);
        let me = lease.give_back();
        outbox.rouse(me);
        ticket
    }

    /// As [`Reservation::send`], and tells what becomes of it.
    pub fn send_tracked(mut self) -> Outcome {
        self.date();
        let open = self.room.handle().0.clone();
        let registered = open.registry.register(self.room.as_ptr());
        let Ticket(end) = self.room.send();
        self.outbox.bell.ring();
        // Pairs with the fence in `Open::end`: either the engine's last look sees the registration, or this sees
        // the end. (`ring` began with the fence; one more costs nothing beside it and doesn't rely on that.)
        fence(Ordering::SeqCst);
        if let Some(reason) = open.over.get() {
            open.registry.fail(reason);
        }
        registered.outcome(open.ticket(end))
    }

    /// Bytes before the message for the clock.
    #[inline]
    fn dated(&self) -> usize {
        self.room.handle().0.dated
    }

    /// Writes down when this is sent, where that is kept.
    #[inline]
    fn date(&mut self) {
        let dated = self.dated();
        write_date(&mut self.room[..dated]);
    }
}

/// Writes down the time, where a message has room for it.
#[inline]
fn write_date(date: &mut [u8]) {
    if !date.is_empty() {
        date.copy_from_slice(&clock::since_1970().to_le_bytes());
    }
}

/// A batch that is being sent. However that ends, also by a panic of who gives the messages, the engine is told of those that went.
struct Batch<'a> {
    /// There until it is dropped.
    lease: Option<Lease>,
    outbox: &'a Outbox,
    is_any: bool,
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        let me = self.lease.take().map_or_else(this_thread, Lease::give_back);
        if self.is_any {
            self.outbox.rouse(me);
        }
    }
}

impl Deref for Reservation<'_> {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        &self.room[self.dated()..]
    }
}

impl DerefMut for Reservation<'_> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        let dated = self.dated();
        &mut self.room[dated..]
    }
}

impl Open {
    /// The ring of a session whose tickets begin at `base`. In one that is durable each message begins with the sender's clock.
    pub(crate) fn new(ring: RingSender, base: u64, plan: &SessionPlan) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let members = plan.members.iter().map(|member| member.node).collect();
        let addresses = plan.addresses();
        let dated = if plan.guarantee.durable() { SENT } else { 0 };
        let (registry, over) = (Registry::default(), OnceLock::new());
        Self { ring, number, base, members, addresses, dated, registry, over }
    }

    /// The ranks of those whom a message is to be for (D12).
    fn addressed(&self, to: &[NodeId]) -> Result<RankSet, SendError> {
        if !self.addresses {
            return Err(SendError::NotAddressable);
        }
        if to.is_empty() {
            return Err(SendError::NoDestination);
        }
        match to.iter().find(|node| !self.members.contains(node)) {
            Some(node) => Err(SendError::NoSuchMember(*node)),
            None => Ok(self.ranks(to)),
        }
    }

    /// The ranks of those of these nodes that are members.
    pub(crate) fn ranks(&self, nodes: &[NodeId]) -> RankSet {
        let ranks = self.members.iter().zip(0u8..).filter(|(member, _)| nodes.contains(member));
        ranks.map(|(_, rank)| Rank(rank)).collect()
    }

    /// The members that have these ranks.
    pub(crate) fn nodes(&self, ranks: RankSet) -> Vec<NodeId> {
        let members = self.members.iter().zip(0u8..).filter(|(_, rank)| ranks.contains(Rank(*rank)));
        members.map(|(node, _)| *node).collect()
    }

    /// The engine's way past the [`Outbox`]: for what is sent again.
    pub(crate) fn ring(&self) -> &RingSender {
        &self.ring
    }

    /// The ticket of what ends at `end` in the ring.
    pub(crate) fn ticket(&self, end: Position) -> Ticket {
        Ticket(Position(self.base + end.0))
    }

    /// What is committed from now on is lost. The session must be wedged. Fail what waits there after this.
    pub(crate) fn end(&self, reason: &OutcomeError) {
        let _ = self.over.set(reason.clone());
        fence(Ordering::SeqCst); // pairs with the one in `Reservation::send_tracked`
    }
}

impl Lease {
    /// For this thread's next reservation. Returns this thread's number.
    #[inline(always)]
    fn give_back(self) -> u64 {
        let number = MINE.try_with(|mine| {
            mine.last.set(Some(self.0));
            mine.number.get()
        });
        match number {
            Ok(number) if number != 0 => number,
            _ => this_thread(), // a thread that ends needs no ring
        }
    }
}

impl Deref for Lease {
    type Target = RingSender;

    #[inline]
    fn deref(&self) -> &RingSender {
        &self.0.ring
    }
}

impl Outbox {
    /// Without a ring. `bell` rouses the engine.
    pub(crate) fn new(bell: Doorbell, driving: Arc<AtomicU64>) -> Self {
        Self {
            number: AtomicU64::new(0),
            current: ArcSwapOption::empty(),
            apart: AtomicBool::new(false),
            stopped: OnceLock::new(),
            ended: AtomicBool::new(false),
            end_sent: AtomicBool::new(false),
            asked: Asked::default(),
            gate: Gate::default(),
            wanted: AtomicBool::new(false),
            wanted_here: AtomicBool::new(false),
            bell,
            driving,
        }
    }

    /// The current ring.
    #[inline(always)]
    fn lease(&self) -> Option<Lease> {
        // Whichever is read: the old ring refuses, and the new one is found at the next try.
        let number = self.number.load(Ordering::Relaxed);
        match MINE.try_with(|mine| mine.last.take()) {
            Ok(Some(open)) if open.number == number => Some(Lease(open)),
            _ => self.lease_anew(),
        }
    }

    #[cold]
    fn lease_anew(&self) -> Option<Lease> {
        self.current.load_full().map(Lease)
    }

    /// A view's ring is there, and everything that must come first is in it: senders may go on.
    pub(crate) fn open(&self, open: &Arc<Open>) {
        self.current.store(Some(open.clone()));
        self.number.store(open.number, Ordering::Release);
        self.gate.open();
    }

    /// A view is installed, and this node is a member of the shard in it, or isn't.
    pub(crate) fn belong(&self, is_member: bool) {
        if self.apart.swap(!is_member, Ordering::Release) == is_member {
            self.gate.open();
        }
    }

    /// The node has stopped: senders are refused, those who wait are let go. The sessions must be wedged.
    pub(crate) fn stop(&self, reason: &Stopped) {
        let _ = self.stopped.set(reason.clone());
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

    /// Something was committed, by the thread with that number.
    #[inline]
    fn rouse(&self, me: u64) {
        // The thread that drives the engine is not asleep, and its next turn takes the message: no fence on its way.
        compiler_fence(Ordering::SeqCst); // the commit comes before the look at who drives
        if self.driving.load(Ordering::Relaxed) != me {
            self.bell.ring();
        }
    }

    /// Whether the calling thread is the one that drives the engine.
    fn is_driven_here(&self) -> bool {
        self.driving.load(Ordering::Relaxed) == this_thread()
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
        let current = self.current.load();
        let Some(open) = &*current else {
            return match self.stop_or(SendError::NotStarted) {
                error if error.passes() => None,
                error => Some(Err(error)),
            };
        };
        match open.ring.try_end() {
            Ok(_) => {
                self.end_sent.store(true, Ordering::Relaxed);
                self.bell.ring();
                Some(Ok(()))
            }
            Err(error) => match self.refused(error, 0) {
                error if error.passes() => None,
                error => Some(Err(error)),
            },
        }
    }

    /// Whether the members were told that nothing more is sent.
    pub(crate) fn is_end_sent(&self) -> bool {
        self.end_sent.load(Ordering::Relaxed)
    }

    #[cold]
    fn refused(&self, error: ReserveError, dated: usize) -> SendError {
        match error {
            ReserveError::Full => {
                // The engine may sleep although there is room to be had: it looks only when asked.
                if self.is_driven_here() {
                    self.wanted_here.store(true, Ordering::Relaxed);
                } else {
                    self.wanted.store(true, Ordering::Relaxed);
                    self.bell.ring();
                }
                SendError::Full
            }
            ReserveError::TooLong { len, max } => {
                SendError::TooLong { len: len.saturating_sub(dated), max: max.saturating_sub(dated) }
            }
            _ => self.stop_or(SendError::Changing),
        }
    }

    #[cold]
    fn stop_or(&self, otherwise: SendError) -> SendError {
        let otherwise = if self.apart.load(Ordering::Acquire) { SendError::NotMember } else { otherwise };
        self.stopped.get().map_or(otherwise, |reason| SendError::Stopped(reason.clone()))
    }
}

/// The calling thread drives an engine from now on. Returns whether another did before.
pub(super) fn drive_here(driving: &AtomicU64) -> bool {
    let me = this_thread();
    let before = driving.load(Ordering::Relaxed);
    if before == me {
        return false;
    }
    driving.store(me, Ordering::Relaxed);
    before != 0
}

/// A number that this thread shares with no other of the process; never 0.
#[inline]
fn this_thread() -> u64 {
    match MINE.try_with(|mine| mine.number.get()) {
        Ok(number) if number != 0 => number,
        _ => name_thread(),
    }
}

#[cold]
fn name_thread() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    if NUMBER.get() == 0 {
        NUMBER.set(NEXT.fetch_add(1, Ordering::Relaxed));
    }
    let number = NUMBER.get();
    let _ = MINE.try_with(|mine| mine.number.set(number)); // a thread that ends asks again
    number
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
