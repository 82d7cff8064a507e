//! [`Gate`]: where threads of the application wait for the engine, without a lock on the engine's way.
//!
//! The engine opens the gate after it has changed something that may be waited for; with nobody there that is
//! one load. Who waits looks once more after saying so, and the engine looks whether anybody waits after its change,
//! both behind a fence: one of the two sees the other (the pattern of
//! [`Doorbell::ring`](consort_dataplane::fabric::Doorbell::ring)). Replicated objects let their callers wait at one too.

use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// See the [module](self).
#[doc(hidden)]
#[derive(Default)]
pub struct Gate {
    waiting: AtomicUsize,
    openings: Mutex<u64>,
    opened: Condvar,
}

impl Gate {
    /// Waits until `ready` gives something, or until then; `None` is for ever.
    pub fn wait<T>(&self, until: Option<Instant>, mut ready: impl FnMut() -> Option<T>) -> Option<T> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(self);
        loop {
            let seen = *self.lock();
            fence(Ordering::SeqCst); // pairs with the one in `open`
            if let Some(value) = ready() {
                return Some(value);
            }
            let mut openings = self.lock();
            while *openings == seen {
                openings = match until {
                    None => self.opened.wait(openings).unwrap_or_else(PoisonError::into_inner),
                    Some(until) => {
                        let left = until.checked_duration_since(Instant::now())?;
                        self.opened.wait_timeout(openings, left).unwrap_or_else(PoisonError::into_inner).0
                    }
                };
            }
        }
    }

    /// Lets everyone who waits look again. Call it after the change that they wait for.
    pub fn open(&self) {
        fence(Ordering::SeqCst); // pairs with the one in `wait`
        if self.is_waited_at() {
            *self.lock() += 1;
            self.opened.notify_all();
        }
    }

    /// Whether anybody waits, as far as this thread can see without a fence.
    pub(crate) fn is_waited_at(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    fn lock(&self) -> MutexGuard<'_, u64> {
        self.openings.lock().unwrap_or_else(PoisonError::into_inner) // a counter is never half changed
    }
}

struct Waiting<'a>(&'a Gate);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    #[test]
    fn every_opening_is_seen() {
        const ROUNDS: u32 = 2_000;
        let (gate, turn) = (Gate::default(), AtomicU32::new(0));
        // Two threads hand a number to and fro; a lost opening hangs the test.
        std::thread::scope(|scope| {
            for me in 0..2 {
                let (gate, turn) = (&gate, &turn);
                scope.spawn(move || {
                    for round in 0..ROUNDS {
                        let mine = round * 2 + me;
                        gate.wait(None, || (turn.load(Ordering::Relaxed) == mine).then_some(())).unwrap();
                        turn.store(mine + 1, Ordering::Relaxed);
                        gate.open();
                    }
                });
            }
        });
        assert_eq!(turn.into_inner(), 2 * ROUNDS);
    }

    #[test]
    fn a_wait_ends_with_its_time() {
        assert_eq!(Gate::default().wait(Some(Instant::now()), || None::<()>), None);
        assert_eq!(Gate::default().wait(Some(Instant::now()), || Some(1)), Some(1));
    }
}
