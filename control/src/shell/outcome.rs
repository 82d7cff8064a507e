//! What became of one send (D12): an [`Outcome`] is told by the engine when this node delivers its own message, and
//! waited for by a thread, polled, or awaited in any runtime.
//!
//! A send that is tracked registers itself *before* it is committed, under the address of its place in the ring:
//! nobody else can get that place before this node has delivered what lies there, so the address names the send, and
//! the engine is certain to find the registration when it delivers (the commit publishes it). The engine takes
//! no lock unless somebody waits for that very outcome.
//!
//! Every session has a registry of its own. A message that is sent again in the next view (D13) takes its
//! registration along: out of the old session's, under its new place into the new one's.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use consort_dataplane::names::{Seq, ViewId};
use consort_dataplane::ring::Ticket;
use crossbeam_queue::SegQueue;

use crate::membership::Stopped;

/// A message was delivered, here and, as far as the group's guarantee says, everywhere.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Delivered {
    /// The view in which it was.
    pub view: ViewId,
    /// Its place in the session's order.
    pub seq: Seq,
}

/// It isn't known that the message was delivered. It may have been, elsewhere.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutcomeError {
    /// The node stopped before this node delivered the message.
    #[error("the node stopped before the message was delivered here ({0}); others may have delivered it")]
    Stopped(Stopped),
    /// The group went on without this node before it had delivered the message; it may join again, as another incarnation.
    #[error(
        "this node ceased to be a member before the message was delivered here; others may have delivered it: \
         find out before you send it again"
    )]
    Evicted,
    /// This node gave its place in the shard to another before anyone had delivered the message, and nobody will.
    #[error(
        "this node is no member of the shard any more, and nobody has delivered the message: send it from one that is"
    )]
    Moved,
    /// It was for some members only, and none of them is a member any more.
    #[error("none of the nodes that the message was for is a member any more, and nobody has delivered it")]
    NoDestination,
}

/// What becomes of one send. Dropping it loses interest, not the message.
#[derive(Debug)]
#[must_use = "an outcome that nobody looks at need not be tracked: use `send`"]
pub struct Outcome {
    ticket: Ticket,
    cell: Arc<Cell>,
}

/// How far it is, in bits of one word: every member has received it,
const STABLE: u8 = 1;
/// it is delivered, and flushed if the group is durable,
const DELIVERED: u8 = 2;
/// or it isn't known that it will be.
const FAILED: u8 = 4;
/// Someone is to be woken when one of the last two is so,
const AWAITED: u8 = 8;
/// or any.
const AWAITED_STABLE: u8 = 16;

#[derive(Debug, Default)]
struct Cell {
    state: AtomicU8,
    view: AtomicU64,
    seq: AtomicU64,
    failure: OnceLock<OutcomeError>,
    waker: Mutex<Option<Waker>>,
}

impl Cell {
    fn result(&self) -> Option<Result<Delivered, OutcomeError>> {
        // Acquire pairs with the AcqRel in `settle`: the result was stored before.
        let state = self.state.load(Ordering::Acquire);
        if state & DELIVERED != 0 {
            Some(Ok(self.place()))
        } else if state & FAILED != 0 {
            Some(Err(self.failure.get().cloned().unwrap_or(OutcomeError::Stopped(Stopped::Closed))))
        } else {
            None
        }
    }

    /// The same of whether it is stable.
    fn stable(&self) -> Option<Result<Delivered, OutcomeError>> {
        // As above.
        let is_stable = self.state.load(Ordering::Acquire) & STABLE != 0;
        if is_stable { Some(Ok(self.place())) } else { self.result() }
    }

    fn place(&self) -> Delivered {
        let view = ViewId(self.view.load(Ordering::Relaxed));
        Delivered { view, seq: Seq(self.seq.load(Ordering::Relaxed)) }
    }

    fn set_place(&self, delivered: Delivered) {
        self.view.store(delivered.view.0, Ordering::Relaxed);
        self.seq.store(delivered.seq.0, Ordering::Relaxed);
    }

    /// It has come so far.
    fn settle(&self, state: u8) {
        let awaited = if state == STABLE { AWAITED_STABLE } else { AWAITED | AWAITED_STABLE };
        let before = self.state.fetch_or(state, Ordering::AcqRel);
        if before & awaited == 0 {
            return;
        }
        self.state.fetch_and(!awaited, Ordering::Relaxed);
        let waker = self.waker.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Has `waker` woken when the result is there, or what `awaits` says; if it is there already, returns false.
    fn awaken(&self, waker: &Waker, awaits: u8) -> bool {
        // While nothing is awaited the engine doesn't touch the waker's lock, so it never waits for this thread.
        self.state.fetch_and(!(AWAITED | AWAITED_STABLE), Ordering::Relaxed);
        let mut slot = self.waker.lock().unwrap_or_else(PoisonError::into_inner);
        if !slot.as_ref().is_some_and(|known| known.will_wake(waker)) {
            *slot = Some(waker.clone());
        }
        drop(slot);
        let there = DELIVERED | FAILED | if awaits == AWAITED_STABLE { STABLE } else { 0 };
        // Release: the engine that finds it awaited finds the waker.
        let is_pending = |state| (state & there == 0).then_some(state | awaits);
        self.state.fetch_update(Ordering::Release, Ordering::Relaxed, is_pending).is_ok()
    }
}

impl Outcome {
    /// Which send it is of.
    pub fn ticket(&self) -> Ticket {
        self.ticket
    }

    /// The outcome, if it is in. Never blocks.
    ///
    /// # Errors
    /// It isn't known that it was delivered: [`OutcomeError`] says why.
    pub fn try_get(&self) -> Option<Result<Delivered, OutcomeError>> {
        self.cell.result()
    }

    /// Blocks until the outcome is in. Not for the thread that drives a [`DrivenNode`](crate::DrivenNode): nothing would
    /// be delivered meanwhile.
    ///
    /// # Errors
    /// As [`Outcome::try_get`].
    pub fn wait(self) -> Result<Delivered, OutcomeError> {
        loop {
            if let Some(result) = self.wait_timeout(Duration::MAX) {
                return result;
            }
        }
    }

    /// As [`Outcome::wait`], for at most `within`; `None` if it isn't in by then.
    ///
    /// # Errors
    /// As [`Outcome::try_get`].
    pub fn wait_timeout(&self, within: Duration) -> Option<Result<Delivered, OutcomeError>> {
        self.wait_for(AWAITED, within)
    }

    /// Whether every member has received the message and it has its place in the order: the step before, in a durable group, where the outcome
    /// waits for the logs. From then on it is lost only if all of those who have it are, before they have written it down; who goes on delivers it.
    /// In other groups the same as [`Outcome::try_get`]. Never blocks.
    ///
    /// # Errors
    /// As there; what was stable stays so.
    pub fn try_stable(&self) -> Option<Result<Delivered, OutcomeError>> {
        self.cell.stable()
    }

    /// Blocks until [`Outcome::try_stable`] says something, for at most `within`; `None` if it doesn't by then. Not for the thread that drives a
    /// [`DrivenNode`](crate::DrivenNode).
    ///
    /// # Errors
    /// As there.
    pub fn wait_stable(&self, within: Duration) -> Option<Result<Delivered, OutcomeError>> {
        self.wait_for(AWAITED_STABLE, within)
    }

    fn wait_for(&self, awaits: u8, within: Duration) -> Option<Result<Delivered, OutcomeError>> {
        // A time that is beyond all dates is for ever.
        let until = Instant::now().checked_add(within);
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        loop {
            let result = if awaits == AWAITED_STABLE { self.cell.stable() } else { self.cell.result() };
            if result.is_some() {
                return result;
            }
            if self.cell.awaken(&waker, awaits) {
                match until {
                    None => std::thread::park(),
                    Some(until) => std::thread::park_timeout(until.checked_duration_since(Instant::now())?),
                }
            }
        }
    }
}

impl Future for Outcome {
    type Output = Result<Delivered, OutcomeError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            if let Some(result) = self.cell.result() {
                return Poll::Ready(result);
            }
            if self.cell.awaken(context.waker(), AWAITED) {
                return Poll::Pending;
            }
        }
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// The senders' side: where the sends of a session register.
#[derive(Default)]
pub(crate) struct Registry {
    registered: SegQueue<(usize, Arc<Cell>)>,
}

/// A registered send that isn't committed yet.
pub(crate) struct Registered(Arc<Cell>);

impl Registry {
    /// Registers the send whose payload lies at `place`. Commit it after this.
    pub(crate) fn register(&self, place: *const u8) -> Registered {
        let cell = Arc::new(Cell::default());
        self.registered.push((place as usize, cell.clone()));
        Registered(cell)
    }

    /// Everything that was registered and that the engine hasn't seen fails.
    pub(crate) fn fail(&self, reason: &OutcomeError) {
        while let Some((_, cell)) = self.registered.pop() {
            fail(&cell, reason);
        }
    }
}

impl Registered {
    pub(crate) fn outcome(self, ticket: Ticket) -> Outcome {
        Outcome { ticket, cell: self.0 }
    }
}

/// The engine's side: the sends of a session that wait for their delivery.
#[derive(Default)]
pub(crate) struct Pending {
    cells: HashMap<usize, Arc<Cell>>,
}

/// A send that is to be made again elsewhere.
pub(crate) struct Moved(Arc<Cell>);

impl Moved {
    /// Nothing comes of it.
    pub(crate) fn fail(self, reason: &OutcomeError) {
        fail(&self.0, reason);
    }
}

impl Pending {
    /// This node delivered its own message that lies at `place`, and in a durable group everyone has flushed it.
    #[inline]
    pub(crate) fn delivered(&mut self, registry: &Registry, place: *const u8, delivered: Delivered) {
        // Without a call where nothing is tracked.
        if self.cells.is_empty() && registry.registered.is_empty() {
            return;
        }
        if let Some(Moved(cell)) = self.take(registry, place) {
            cell.set_place(delivered);
            cell.settle(DELIVERED);
        }
    }

    /// In a durable group: everyone has received it.
    pub(crate) fn stable(&mut self, registry: &Registry, place: *const u8, delivered: Delivered) {
        self.look(registry);
        if let Some(cell) = self.cells.get(&(place as usize)) {
            cell.set_place(delivered);
            cell.settle(STABLE);
        }
    }

    /// The registration of the send whose payload lies at `place`, if it is tracked: it is not waited for here any more.
    pub(crate) fn take(&mut self, registry: &Registry, place: *const u8) -> Option<Moved> {
        self.look(registry);
        if self.cells.is_empty() {
            return None;
        }
        self.cells.remove(&(place as usize)).map(Moved)
    }

    /// Takes in what was registered.
    fn look(&mut self, registry: &Registry) {
        // A pop of nothing costs a fence, which a message that nobody tracks is not to pay. A registration comes before the commit that led here.
        while !registry.registered.is_empty()
            && let Some((place, cell)) = registry.registered.pop()
        {
            self.cells.insert(place, cell);
        }
    }

    /// What was registered elsewhere is waited for here, at `place`.
    pub(crate) fn put(&mut self, place: *const u8, moved: Moved) {
        self.cells.insert(place as usize, moved.0);
    }

    /// Nothing more will be delivered.
    pub(crate) fn fail(&mut self, registry: &Registry, reason: &OutcomeError) {
        for (_, cell) in self.cells.drain() {
            fail(&cell, reason);
        }
        registry.fail(reason);
    }
}

fn fail(cell: &Cell, reason: &OutcomeError) {
    let _ = cell.failure.set(reason.clone());
    cell.settle(FAILED);
}

#[cfg(test)]
mod tests {
    use consort_dataplane::names::Position;

    use super::*;

    const TICKET: Ticket = Ticket(Position(72));
    const THERE: Delivered = Delivered { view: ViewId(1), seq: Seq(5) };

    const CLOSED: OutcomeError = OutcomeError::Stopped(Stopped::Closed);

    /// Stands for a place in the ring.
    static PLACE: u8 = 0;

    fn registered() -> (Registry, Pending, Outcome) {
        let registry = Registry::default();
        let outcome = registry.register(&raw const PLACE).outcome(TICKET);
        (registry, Pending::default(), outcome)
    }

    // D12
    #[test]
    fn an_outcome_is_told_to_its_own_send_alone() {
        let registry = Registry::default();
        let places = [1u8, 2];
        let first = registry.register(&raw const places[0]).outcome(TICKET);
        let second = registry.register(&raw const places[1]).outcome(TICKET);
        let mut pending = Pending::default();
        pending.delivered(&registry, &raw const places[1], THERE);
        assert_eq!((first.try_get(), second.try_get()), (None, Some(Ok(THERE))));
        pending.fail(&registry, &CLOSED);
        assert_eq!(first.wait(), Err(OutcomeError::Stopped(Stopped::Closed)));
        assert_eq!(second.wait(), Ok(THERE), "what was delivered stays delivered");
    }

    // D13
    #[test]
    fn an_outcome_goes_along_with_a_message_that_is_sent_again() {
        let (registry, mut pending, outcome) = registered();
        let (next, mut after) = (Registry::default(), Pending::default());
        let again = 1u8;
        let moved = pending.take(&registry, &raw const PLACE).unwrap();
        after.put(&raw const again, moved);
        pending.fail(&registry, &CLOSED);
        assert_eq!(outcome.try_get(), None, "the old session has nothing to do with it any more");
        after.delivered(&next, &raw const again, THERE);
        assert_eq!(outcome.wait(), Ok(THERE));
    }

    #[test]
    fn a_thread_that_waits_is_woken() {
        for _ in 0..200 {
            let (registry, mut pending, outcome) = registered();
            std::thread::scope(|scope| {
                let waiter = scope.spawn(move || outcome.wait());
                pending.delivered(&registry, &raw const PLACE, THERE);
                assert_eq!(waiter.join().unwrap(), Ok(THERE));
            });
        }
    }

    #[test]
    fn a_future_wakes_the_last_that_polled_it() {
        struct Count(AtomicU8);
        impl Wake for Count {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let (registry, mut pending, mut outcome) = registered();
        let wakers = [Arc::new(Count(AtomicU8::new(0))), Arc::new(Count(AtomicU8::new(0)))];
        for waker in &wakers {
            let waker = Waker::from(waker.clone());
            assert!(Pin::new(&mut outcome).poll(&mut Context::from_waker(&waker)).is_pending());
        }
        pending.delivered(&registry, &raw const PLACE, THERE);
        assert_eq!(wakers.each_ref().map(|w| w.0.load(Ordering::Relaxed)), [0, 1]);
        let polled = Pin::new(&mut outcome).poll(&mut Context::from_waker(Waker::noop()));
        assert_eq!(polled, Poll::Ready(Ok(THERE)));
    }

    // P2: the steps of a durable group's message.
    #[test]
    fn who_waits_for_stable_is_not_kept_until_it_is_flushed_and_the_other_way_round() {
        struct Count(AtomicU8);
        impl Wake for Count {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let (registry, mut pending, mut outcome) = registered();
        let count = Arc::new(Count(AtomicU8::new(0)));
        let waker = Waker::from(count.clone());
        assert_eq!((outcome.try_stable(), outcome.wait_stable(Duration::ZERO)), (None, None));
        assert!(Pin::new(&mut outcome).poll(&mut Context::from_waker(&waker)).is_pending());
        pending.stable(&registry, &raw const PLACE, THERE);
        assert_eq!(count.0.load(Ordering::Relaxed), 0, "it waits for the logs");
        assert_eq!((outcome.try_stable(), outcome.try_get()), (Some(Ok(THERE)), None));
        assert!(!outcome.cell.awaken(&waker, AWAITED_STABLE) && outcome.cell.awaken(&waker, AWAITED));
        pending.delivered(&registry, &raw const PLACE, THERE);
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
        assert_eq!((outcome.try_stable(), outcome.try_get()), (Some(Ok(THERE)), Some(Ok(THERE))));

        let (registry, mut pending, outcome) = registered();
        assert!(outcome.cell.awaken(&waker, AWAITED_STABLE));
        pending.stable(&registry, &raw const PLACE, THERE);
        assert_eq!(count.0.load(Ordering::Relaxed), 2);
        pending.fail(&registry, &CLOSED);
        assert_eq!(outcome.try_stable(), Some(Ok(THERE)), "what was stable stays so");
        assert_eq!(outcome.wait(), Err(OutcomeError::Stopped(Stopped::Closed)));

        let (registry, mut pending, outcome) = registered();
        assert!(outcome.cell.awaken(&waker, AWAITED_STABLE));
        pending.fail(&registry, &CLOSED);
        assert_eq!(count.0.load(Ordering::Relaxed), 3);
        assert_eq!(outcome.try_stable(), Some(Err(CLOSED)));
    }

    #[test]
    fn what_comes_after_the_end_fails_too() {
        let (registry, mut pending, outcome) = registered();
        assert_eq!(outcome.wait_timeout(Duration::ZERO), None);
        pending.fail(&registry, &CLOSED);
        assert!(outcome.wait().is_err());
    }
}
