//! Outcomes: waited for, polled, or told to a callback.

use std::ffi::CStr;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context as Task, Poll, Wake, Waker};
use std::time::Duration;

use consort::{Outcome, OutcomeError};

use crate::border::{Context, Handle, Out, export};
use crate::callback::{inside, within};
use crate::error::{Error, Status, TIMED_OUT};
use crate::handles::{Kind, Registry};
use crate::layout::{Delivered, OnOutcome};
use crate::node::{lock, timeout, try_lock, would_deadlock};

/// Behind a lock, since a callback takes it out.
static OUTCOMES: Registry<Mutex<Option<Outcome>>> = Registry::new(Kind::Outcome);

/// A handle without an outcome yet: to be had before the message is sent, which can't be undone.
pub(crate) struct Empty(Option<Handle>);

pub(crate) fn place() -> Result<Empty, Error> {
    Ok(Empty(Some(OUTCOMES.put(Mutex::new(None))?)))
}

impl Empty {
    pub(crate) fn fill(mut self, outcome: Outcome) -> Handle {
        let handle = self.0.take().unwrap_or(Handle::of(0)); // it is there: this is called once
        if let Ok(empty) = OUTCOMES.find(handle) {
            *lock(&empty) = Some(outcome);
        }
        handle
    }
}

impl Drop for Empty {
    fn drop(&mut self) {
        if let Some(handle) = self.0.take() {
            drop(OUTCOMES.take(handle));
        }
    }
}

/// Whether a call must not wait, in a callback or with a timeout of 0; else it may.
pub(crate) fn only_looks(timeout_ms: i64) -> bool {
    timeout_ms == 0 || inside()
}

/// What a call says that has waited as long as it may.
#[cold]
pub(crate) fn not_yet(timeout_ms: i64) -> Error {
    if timeout_ms != 0 && inside() { would_deadlock() } else { TIMED_OUT }
}

/// Locks what threads wait for, one at a time, with the lock held. As long as another one does it isn't there yet, for who only looks.
pub(crate) fn lock_to_wait<T>(slot: &Mutex<T>, timeout_ms: i64) -> Result<MutexGuard<'_, T>, Error> {
    if only_looks(timeout_ms) { try_lock(slot).ok_or_else(|| not_yet(timeout_ms)) } else { Ok(lock(slot)) }
}

fn delivered(outcome: consort::Delivered) -> Delivered {
    Delivered { view: outcome.view.0, seq: outcome.seq.0 }
}

/// Something that a callback is to be told, once, by whoever wakes it.
pub(crate) struct Then<F: Future + Unpin + Send, D: FnOnce(F::Output) + Send> {
    waits: Mutex<Option<(F, D)>>,
}

impl<F: Future + Unpin + Send + 'static, D: FnOnce(F::Output) + Send + 'static> Then<F, D> {
    /// Calls `done` with what comes of `future`: at once, on this thread, if it is there; or else on the thread that brings it.
    pub(crate) fn start(future: F, done: D) {
        let then = Arc::new(Self { waits: Mutex::new(Some((future, done))) });
        then.look();
    }

    fn look(self: &Arc<Self>) {
        let waker = Waker::from(self.clone());
        let mut waits = lock(&self.waits);
        let Some((mut future, done)) = waits.take() else { return };
        match Pin::new(&mut future).poll(&mut Task::from_waker(&waker)) {
            Poll::Pending => *waits = Some((future, done)),
            Poll::Ready(value) => {
                drop(waits);
                within(|| done(value));
            }
        }
    }
}

impl<F: Future + Unpin + Send + 'static, D: FnOnce(F::Output) + Send + 'static> Wake for Then<F, D> {
    fn wake(self: Arc<Self>) {
        self.look();
    }
}

const TOLD: (Status, &CStr) = (Status::BadHandle, c"this outcome is told to a callback already: wait there");

type Known = Option<Result<consort::Delivered, OutcomeError>>;

/// Looks at an outcome, or waits for it.
fn wait(
    outcome: Handle,
    timeout_ms: i64,
    where_: Out<Delivered>,
    look: fn(&Outcome) -> Known,
    wait: fn(&Outcome, Duration) -> Known,
) -> Result<(), Error> {
    let within = timeout(timeout_ms)?;
    OUTCOMES.with(outcome, |slot| {
        let outcome = lock_to_wait(slot, timeout_ms)?;
        let Some(outcome) = &*outcome else {
            return Err(Error::fixed(&TOLD));
        };
        let known = if only_looks(timeout_ms) {
            look(outcome)
        } else {
            wait(outcome, within.unwrap_or(Duration::MAX))
        };
        where_.set(delivered(known.ok_or_else(|| not_yet(timeout_ms))??));
        Ok(())
    })
}

export! {
    fn consort_outcome_wait(outcome: Handle, timeout_ms: i64, where_: Out<Delivered>) {
        wait(outcome, timeout_ms, where_, Outcome::try_get, Outcome::wait_timeout)
    }

    fn consort_outcome_wait_stable(outcome: Handle, timeout_ms: i64, where_: Out<Delivered>) {
        wait(outcome, timeout_ms, where_, Outcome::try_stable, Outcome::wait_stable)
    }

    fn consort_outcome_then(outcome: Handle, on_outcome: OnOutcome, context: Context) {
        let on_outcome = on_outcome.ok_or_else(|| Error::invalid("`on_outcome` is NULL: pass the function to be called"))?;
        let slot = OUTCOMES.find(outcome)?;
        let mut held = lock_to_wait(&slot, -1)?;
        OUTCOMES.take(outcome)?;
        let Some(outcome) = held.take() else {
            return Err(Error::fixed(&(Status::BadHandle, c"this outcome is told to a callback already")));
        };
        drop(held);
        Then::start(outcome, move |result| {
            let (status, place) = match result {
                Ok(it) => (Status::Ok, delivered(it)),
                Err(error) => (Error::from(error).tell(), Delivered::default()),
            };
            on_outcome(context, status as i32, &raw const place);
        });
        Ok(())
    }

    fn consort_outcome_free(outcome: Handle) {
        OUTCOMES.take(outcome).map(drop)
    }
}
