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

const PENDING: u8 = 0;
/// Pending, and someone is to be woken.
const AWAITED: u8 = 1;
const DELIVERED: u8 = 2;
const FAILED: u8 = 3;

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
        match self.state.load(Ordering::Acquire) {
            DELIVERED => {
                let view = ViewId(self.view.load(Ordering::Relaxed));
                Some(Ok(Delivered { view, seq: Seq(self.seq.load(Ordering::Relaxed)) }))
            }
            FAILED => {
                let reason = self.failure.get().cloned().unwrap_or(OutcomeError::Stopped(Stopped::Closed));
                Some(Err(reason))
            }
            _ => None,
        }
    }

    fn settle(&self, state: u8) {
        if self.state.swap(state, Ordering::AcqRel) == AWAITED {
            let waker = self.waker.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    /// Has `waker` woken when the result is there; if it is there already, returns false.
    fn awaken(&self, waker: &Waker) -> bool {
        // While the state is PENDING the engine doesn't touch the waker's lock, so it never waits for this thread.
        let _ = self.state.compare_exchange(AWAITED, PENDING, Ordering::Relaxed, Ordering::Relaxed);
        let mut slot = self.waker.lock().unwrap_or_else(PoisonError::into_inner);
        if !slot.as_ref().is_some_and(|known| known.will_wake(waker)) {
            *slot = Some(waker.clone());
        }
        drop(slot);
        self.state.compare_exchange(PENDING, AWAITED, Ordering::Release, Ordering::Relaxed).is_ok()
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
        // A time that is beyond all dates is for ever.
        let until = Instant::now().checked_add(within);
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        loop {
            if let Some(result) = self.cell.result() {
                return Some(result);
            }
            if self.cell.awaken(&waker) {
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
            if self.cell.awaken(context.waker()) {
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
    /// This node delivered its own message that lies at `place`.
    pub(crate) fn delivered(&mut self, registry: &Registry, place: *const u8, delivered: Delivered) {
        if let Some(Moved(cell)) = self.take(registry, place) {
            cell.view.store(delivered.view.0, Ordering::Relaxed);
            cell.seq.store(delivered.seq.0, Ordering::Relaxed);
            cell.settle(DELIVERED);
        }
    }

    /// The registration of the send whose payload lies at `place`, if it is tracked: it is not waited for here any more.
    pub(crate) fn take(&mut self, registry: &Registry, place: *const u8) -> Option<Moved> {
        // A pop of nothing costs a fence, which a message that nobody tracks is not to pay. A registration comes before the commit that led here.
        while !registry.registered.is_empty()
            && let Some((place, cell)) = registry.registered.pop()
        {
            self.cells.insert(place, cell);
        }
        if self.cells.is_empty() {
            return None;
        }
        self.cells.remove(&(place as usize)).map(Moved)
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

    #[test]
    fn what_comes_after_the_end_fails_too() {
        let (registry, mut pending, outcome) = registered();
        assert_eq!(outcome.wait_timeout(Duration::ZERO), None);
        pending.fail(&registry, &CLOSED);
        assert!(outcome.wait().is_err());
    }
}
