//! [`Pending`]: something that will be there, waited for by a thread or awaited in any runtime.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// What a call will give. Dropping it loses interest, not the effect.
#[must_use = "what becomes of it is told here; drop it on purpose if it doesn't matter"]
pub struct Pending<T>(Arc<Cell<T>>);

/// The other end.
pub(super) struct Promise<T>(Arc<Cell<T>>);

struct Cell<T> {
    state: Mutex<State<T>>,
    there: Condvar,
}

struct State<T> {
    value: Option<T>,
    waker: Option<Waker>,
}

impl<T> Cell<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner) // never half changed
    }
}

impl<T> Promise<T> {
    pub(super) fn new() -> (Self, Pending<T>) {
        let state = Mutex::new(State { value: None, waker: None });
        let cell = Arc::new(Cell { state, there: Condvar::new() });
        (Self(cell.clone()), Pending(cell))
    }

    /// It is there.
    pub(super) fn keep(self, value: T) {
        let mut state = self.0.lock();
        state.value = Some(value);
        let waker = state.waker.take();
        drop(state);
        self.0.there.notify_all();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<T> Pending<T> {
    /// Blocks until it is there.
    pub fn wait(self) -> T {
        let mut state = self.0.lock();
        loop {
            if let Some(value) = state.value.take() {
                return value;
            }
            state = self.0.there.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// As [`Pending::wait`], for at most `within`.
    ///
    /// # Errors
    /// It isn't there by then: the same again, to go on waiting.
    pub fn wait_timeout(self, within: Duration) -> Result<T, Self> {
        // A time that is beyond all dates is for ever.
        let until = Instant::now().checked_add(within);
        let mut state = self.0.lock();
        loop {
            if let Some(value) = state.value.take() {
                return Ok(value);
            }
            state = match until {
                None => self.0.there.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(until) => {
                    let Some(left) = until.checked_duration_since(Instant::now()) else { break };
                    self.0.there.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        drop(state);
        Err(self)
    }
}

impl<T> Future for Pending<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let mut state = self.0.lock();
        match state.value.take() {
            Some(value) => Poll::Ready(value),
            None => {
                state.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl<T> fmt::Debug for Pending<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pending")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_waits_is_told() {
        let (promise, pending) = Promise::new();
        let pending = pending.wait_timeout(Duration::ZERO).unwrap_err();
        let waiter = std::thread::spawn(move || pending.wait());
        promise.keep(5);
        assert_eq!(waiter.join().unwrap(), 5);

        let (promise, mut pending) = Promise::new();
        let mut context = Context::from_waker(Waker::noop());
        assert!(Pin::new(&mut pending).poll(&mut context).is_pending());
        promise.keep(6);
        assert_eq!(Pin::new(&mut pending).poll(&mut context), Poll::Ready(6));
    }
}
