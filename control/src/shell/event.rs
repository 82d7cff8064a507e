//! What a node tells its application: as owned [`Event`]s from a queue between the engine's thread and the
//! application's, or borrowed ([`Incoming`]) on the application's own thread. Either way a message's payload lies in ring
//! memory and is not copied (D10).

use std::cell::Cell;
use std::fmt;
use std::ops::Deref;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use std::time::{Duration, Instant};

use consort_dataplane::fabric::Doorbell;
use consort_dataplane::loan::Loan;
use consort_dataplane::names::{NodeId, Seq, ViewId};
use consort_dataplane::ring::Ticket;
use consort_dataplane::session::{Delivery, Verdict};
use crossbeam_queue::ArrayQueue;

use super::gate::Gate;
use super::points::ReadPoint;
use super::restore::Restore;
use super::teaching::SnapshotRequest;
use crate::membership::{Absent, Stopped};
use crate::view::View;

/// How many events wait for the application at most; then the group waits too (D11).
const EVENTS: usize = 1024;

/// Something that the application should know, in the order in which it happened.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// The group can't start yet. Comes again when the reasons change.
    Waiting {
        /// For whom, and why each isn't there.
        for_whom: Vec<Absent>,
    },
    /// The others went on without this node, or it could not reach a majority. It delivers nothing more as who it was, and joins again
    /// as another incarnation (`rejoin` is set): what follows begins with a view that has nothing to do with those before. What
    /// was delivered meanwhile is missed.
    Evicted {
        /// Why.
        reason: Stopped,
    },
    /// A view is installed: the group runs, with these members. It comes after all messages of the view before it and before
    /// the first of its own, at every member. A view without this node is the last one, told when this node leaves; and one
    /// with another incarnation of this node says that the group went on without it for a while.
    View(View),
    /// A message of some member, this node included.
    Message(Message),
    /// A joiner needs the state that this application has after all that was told so far (V7); or, in a durable group, the log is to go on from it
    /// (P4). Comes only to nodes that are built with a [state](crate::config::NodeConfig::state).
    Snapshot(SnapshotRequest),
    /// Here is a state to begin with: another member's, where this node joins (V7), or of a durable group the one that lies beside its log (P4). The
    /// events after it tell what was delivered since, with views of which this node is not yet a member, until one has it in it.
    Restore(Restore),
    /// That member sends nothing more; no message of it follows, in whatever view.
    Ended {
        /// Who.
        node: NodeId,
    },
    /// This point is reached ([`Sender::read_point`](crate::shell::Sender::read_point)), and every point that was asked for before it.
    ReadPoint(ReadPoint),
    /// Another member has published a digest ([`Sender::publish_digest`](crate::shell::Sender::publish_digest)). It has no place in the order.
    Digest {
        /// Who.
        node: NodeId,
        /// What.
        digest: u64,
    },
}

/// An [`Event`], borrowed for a call of the application's code.
#[non_exhaustive]
pub enum Incoming<'a, 'd> {
    /// As [`Event::Waiting`].
    Waiting(&'a [Absent]),
    /// As [`Event::Evicted`].
    Evicted(&'a Stopped),
    /// As [`Event::View`].
    View(&'a View),
    /// A message, in ring memory. [`Delivery::lend`] keeps it past the call.
    Message(&'a mut Delivery<'d>),
    /// As [`Event::Snapshot`]; clone it to answer later.
    Snapshot(&'a SnapshotRequest),
    /// As [`Event::Restore`]: take it. What takes longer than a bound on slow members ([`SlowPolicy`](crate::config::SlowPolicy)) is not for
    /// this call, in which the engine stands still: read it on another thread, and finish it there.
    Restore(&'a mut Option<Restore>),
    /// As [`Event::Ended`].
    Ended(NodeId),
    /// As [`Event::ReadPoint`].
    ReadPoint(ReadPoint),
    /// As [`Event::Digest`].
    Digest(NodeId, u64),
}

/// A delivered message, lent from the ring of its sender. The sender can't reuse that room, nor any that came after it, until
/// the message is dropped, on whatever thread: keep it as long as you read it, and copy what you keep longer.
pub struct Message {
    /// The view in which it was delivered.
    pub view: ViewId,
    /// Its place in the order, the same at all members (but under `Fifo`: there it counts this member's deliveries).
    pub seq: Seq,
    /// Who sent it.
    pub sender: NodeId,
    /// Which of this node's own sends it is; `None` for others'.
    pub ticket: Option<Ticket>,
    /// In a durable group: when it was sent, as all members have it: nanoseconds since 1970 that never fall from one message to the next. Else 0.
    pub stamp: u64,
    // In this order: the engine is roused when the loan is back.
    loan: Loan,
    _returned: Returned,
}

impl Message {
    /// Its bytes.
    pub fn payload(&self) -> &[u8] {
        &self.loan
    }

    /// Drops many, and rouses the engine once for all of them: for who has taken many at once. On any thread.
    pub fn give_back(messages: impl IntoIterator<Item = Self>) {
        let mut last: Option<Returned> = None;
        for Self { loan, _returned: returned, .. } in messages {
            drop(loan);
            if let Some(before) = last.replace(returned) {
                before.unless_rung_by(last.as_ref());
            }
        }
    }
}

impl Deref for Message {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.loan
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Message({}{} of {}, {} bytes)", self.view, self.seq, self.sender, self.loan.len())
    }
}

/// Rouses the engine when dropped: a sender elsewhere may wait for the room.
struct Returned(Option<Doorbell>);

impl Returned {
    /// Drops this; the other, which is dropped later, rouses the same engine, or another.
    #[inline]
    fn unless_rung_by(mut self, other: Option<&Self>) {
        if let (Some(bell), Some(Self(Some(other)))) = (&self.0, other)
            && bell.is(other)
        {
            self.0 = None;
        }
    }
}

impl Drop for Returned {
    fn drop(&mut self) {
        if let Some(bell) = &self.0 {
            bell.ring();
        }
    }
}

/// What the engine puts into the queue: an [`Event`] without what only the taker needs.
pub(crate) enum Entry {
    Waiting(Vec<Absent>),
    Evicted(Stopped),
    View(View),
    Message { view: ViewId, seq: Seq, sender: NodeId, ticket: Option<Ticket>, stamp: u64, loan: Loan },
    Snapshot(SnapshotRequest),
    Restore(Restore),
    Ended(NodeId),
    ReadPoint(ReadPoint),
    Digest(NodeId, u64),
}

/// The queue between the engine's thread and the application's.
pub(crate) struct Inbox {
    queue: ArrayQueue<Entry>,
    stopped: OnceLock<Stopped>,
    /// Where the application waits for events.
    gate: Gate,
    /// Called where the gate is opened, for an application that waits elsewhere.
    waker: OnceLock<Box<dyn Fn() + Send + Sync>>,
    /// Set at a heartbeat that finds events waiting; the next one that is taken takes it back.
    unmoved: AtomicBool,
    /// The engine found the queue full, and is to be told when it no longer is.
    full: AtomicBool,
    /// Rouses the engine.
    bell: Doorbell,
    /// The application takes nothing more: messages are counted, and dropped.
    discards: AtomicBool,
    discarded: AtomicUsize,
}

impl Inbox {
    /// An empty queue; `bell` rouses the engine.
    pub(crate) fn new(bell: Doorbell) -> Self {
        Self {
            queue: ArrayQueue::new(EVENTS),
            stopped: OnceLock::new(),
            gate: Gate::default(),
            waker: OnceLock::new(),
            unmoved: AtomicBool::new(false),
            full: AtomicBool::new(false),
            bell,
            discards: AtomicBool::new(false),
            discarded: AtomicUsize::new(0),
        }
    }

    /// The engine's side: what the application is given when it takes from the queue. `full` is set if the queue is the
    /// reason for a refusal.
    pub(crate) fn offer(&self, incoming: Incoming<'_, '_>, full: &Cell<bool>) -> Verdict {
        if self.discards.load(Ordering::Relaxed) {
            if matches!(incoming, Incoming::Message(_)) {
                self.discarded.fetch_add(1, Ordering::Relaxed);
            }
            return Verdict::Taken;
        }
        if self.queue.is_full() {
            self.full.store(true, Ordering::Relaxed);
            full.set(true);
            return Verdict::Later;
        }
        let entry = match incoming {
            Incoming::Waiting(absent) => Entry::Waiting(absent.to_vec()),
            Incoming::Evicted(reason) => Entry::Evicted(reason.clone()),
            Incoming::View(view) => Entry::View(view.clone()),
            Incoming::Snapshot(request) => Entry::Snapshot(request.clone()),
            Incoming::Restore(restore) => match restore.take() {
                Some(restore) => Entry::Restore(restore),
                None => return Verdict::Later, // not reached: it is there
            },
            Incoming::Ended(node) => Entry::Ended(node),
            Incoming::ReadPoint(point) => Entry::ReadPoint(point),
            Incoming::Digest(node, digest) => Entry::Digest(node, digest),
            Incoming::Message(delivery) => {
                // None: as many loans are out as can be. One that comes back rings the bell.
                let Some(loan) = delivery.lend() else { return Verdict::Later };
                let Delivery { view, seq, sender, ticket, stamp, .. } = *delivery;
                Entry::Message { view, seq, sender, ticket, stamp, loan }
            }
        };
        match self.queue.push(entry) {
            Ok(()) => Verdict::Taken,
            Err(_) => Verdict::Later, // not reached: only the engine pushes, and there was room
        }
    }

    /// The application takes nothing more. What it has not taken, and what comes yet, is dropped.
    pub(crate) fn discard(&self) {
        self.discards.store(true, Ordering::Relaxed);
        while let Ok(Some(event)) = self.try_take() {
            if matches!(event, Event::Message(_)) {
                self.discarded.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.bell.ring();
    }

    /// How many messages were dropped.
    pub(crate) fn discarded(&self) -> usize {
        self.discarded.load(Ordering::Relaxed)
    }

    /// Waits until nothing more will come, and says why. What comes meanwhile is dropped.
    pub(crate) fn ended(&self) -> Stopped {
        loop {
            self.discard();
            if let Err(reason) = self.take(None) {
                return reason;
            }
        }
    }

    /// Wakes the application if it waits. Once after a number of pushes.
    pub(crate) fn tell(&self) {
        self.gate.open();
        if let Some(waker) = self.waker.get() {
            waker();
        }
    }

    /// Has `waker` called where [`Inbox::tell`] or [`Inbox::stop`] is from now on. False: there is one already.
    pub(crate) fn set_waker(&self, waker: Box<dyn Fn() + Send + Sync>) -> bool {
        self.waker.set(waker).is_ok()
    }

    /// Whether the engine must wait for the application before it can push.
    pub(crate) fn is_full(&self) -> bool {
        self.queue.is_full()
    }

    /// Whether events wait of which the application has taken none since this was asked last.
    pub(crate) fn stands(&self) -> bool {
        !self.queue.is_empty() && self.unmoved.swap(true, Ordering::Relaxed)
    }

    /// Nothing more will come.
    pub(crate) fn stop(&self, reason: &Stopped) {
        let _ = self.stopped.set(reason.clone());
        self.tell();
    }

    /// The next event, if there is one.
    pub(crate) fn try_take(&self) -> Result<Option<Event>, Stopped> {
        // Looked at before the queue: what was pushed before the stop is still to be had.
        let stopped = self.stopped.get();
        match (self.queue.pop(), stopped) {
            (Some(entry), _) => {
                self.moved();
                Ok(Some(self.event(entry)))
            }
            (None, Some(reason)) => Err(reason.clone()),
            (None, None) => Ok(None),
        }
    }

    /// As [`Inbox::try_take`], of so many events at most, and as long as `take` says that it takes another. Returns how many it was called with.
    pub(crate) fn try_take_many(
        &self,
        most: usize,
        take: &mut dyn FnMut(Event) -> bool,
    ) -> Result<usize, Stopped> {
        // The engine is told of the room once, also if `take` panics.
        struct Moved<'a>(&'a Inbox);
        impl Drop for Moved<'_> {
            fn drop(&mut self) {
                self.0.moved();
            }
        }
        let stopped = self.stopped.get(); // before the queue, as there
        let (mut taken, mut moved) = (0, None);
        while taken < most
            && let Some(entry) = self.queue.pop()
        {
            moved.get_or_insert_with(|| Moved(self));
            taken += 1;
            if !take(self.event(entry)) {
                break;
            }
        }
        drop(moved);
        match stopped {
            Some(reason) if taken == 0 && most > 0 => Err(reason.clone()),
            _ => Ok(taken),
        }
    }

    /// The next event, waiting for it.
    pub(crate) fn take(&self, within: Option<Duration>) -> Result<Option<Event>, Stopped> {
        if let Some(event) = self.try_take()? {
            return Ok(Some(event));
        }
        // A time that is beyond all dates is for ever.
        let until = within.and_then(|within| Instant::now().checked_add(within));
        self.gate.wait(until, || self.try_take().transpose()).transpose()
    }

    /// Events were taken.
    fn moved(&self) {
        if self.unmoved.load(Ordering::Relaxed) {
            self.unmoved.store(false, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst); // the room before the look at `full`; the engine fences in `Doorbell::announce`
        if self.full.load(Ordering::Relaxed) && self.full.swap(false, Ordering::Relaxed) {
            self.bell.ring();
        }
    }

    fn event(&self, entry: Entry) -> Event {
        match entry {
            Entry::Waiting(for_whom) => Event::Waiting { for_whom },
            Entry::Evicted(reason) => Event::Evicted { reason },
            Entry::View(view) => Event::View(view),
            Entry::Message { view, seq, sender, ticket, stamp, loan } => {
                let returned = Returned(Some(self.bell.clone()));
                Event::Message(Message { view, seq, sender, ticket, stamp, loan, _returned: returned })
            }
            Entry::Snapshot(request) => Event::Snapshot(request),
            Entry::Restore(restore) => Event::Restore(restore),
            Entry::Ended(node) => Event::Ended { node },
            Entry::ReadPoint(point) => Event::ReadPoint(point),
            Entry::Digest(node, digest) => Event::Digest { node, digest },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use consort_dataplane::names::Rank;

    use super::*;

    /// A bell whose owner sleeps, and how often it was woken.
    fn bell() -> (Doorbell, Arc<AtomicUsize>) {
        let woken = Arc::new(AtomicUsize::new(0));
        let counted = woken.clone();
        let bell = Doorbell::new(move || {
            counted.fetch_add(1, Ordering::Relaxed);
        });
        bell.announce();
        (bell, woken)
    }

    fn node(event: &Event) -> u32 {
        match event {
            Event::Ended { node } => node.0,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn many_events_are_taken_in_order_as_far_as_wanted() {
        let (bell, woken) = bell();
        let (inbox, full) = (Inbox::new(bell), Cell::new(false));
        let mut taken = Vec::new();
        assert_eq!(inbox.try_take_many(9, &mut |_| unreachable!()), Ok(0));
        let mut offered = 0;
        while inbox.offer(Incoming::Ended(NodeId(offered)), &full) == Verdict::Taken {
            offered += 1;
        }
        assert!(full.get() && !inbox.stands() && inbox.stands());
        assert_eq!(inbox.try_take_many(0, &mut |_| unreachable!()), Ok(0));
        assert_eq!(woken.load(Ordering::Relaxed), 0, "there is no room yet");
        let mut take = |event: Event| {
            taken.push(node(&event));
            taken.len() != 5
        };
        assert_eq!(inbox.try_take_many(3, &mut take), Ok(3));
        assert_eq!(woken.load(Ordering::Relaxed), 1, "the engine waits for room");
        assert!(!inbox.stands(), "something was taken");
        assert_eq!(inbox.try_take_many(9, &mut take), Ok(2), "it wants no more");
        inbox.stop(&Stopped::Closed);
        assert_eq!(inbox.try_take_many(offered as usize, &mut take), Ok(offered as usize - 5));
        assert_eq!(inbox.try_take_many(1, &mut take), Err(Stopped::Closed));
        assert_eq!(inbox.try_take_many(0, &mut take), Ok(0));
        assert!(taken.iter().copied().eq(0..offered));
    }

    #[test]
    fn who_gives_many_back_rouses_every_engine() {
        let bells: Vec<_> = (0..3).map(|_| bell()).collect();
        let message = |at: usize| {
            let mut delivery = Delivery::of_another(ViewId(1), Seq(0), (Rank(0), NodeId(1)), b"x");
            let loan = delivery.lend().unwrap();
            let returned = Returned(Some(bells[at].0.clone()));
            let Delivery { view, seq, sender, ticket, stamp, .. } = delivery;
            Message { view, seq, sender, ticket, stamp, loan, _returned: returned }
        };
        Message::give_back([0, 0, 1, 0].map(message));
        let woken: Vec<_> = bells.iter().map(|(_, woken)| woken.load(Ordering::Relaxed)).collect();
        assert_eq!(woken, [1, 1, 0]);
        Message::give_back([]);
    }
}
