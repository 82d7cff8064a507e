//! [`Watch`]: where threads wait for the state to become something. Whoever changes it pays one load while nobody waits.

use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

#[derive(Default)]
pub(super) struct Watch {
    waiting: AtomicUsize,
    changes: Mutex<u64>,
    changed: Condvar,
}

impl Watch {
    /// Waits until `look` gives something, or until then. It is called again after every change.
    pub(super) fn wait<T>(&self, until: Option<Instant>, mut look: impl FnMut() -> Option<T>) -> Option<T> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(self);
        loop {
            let seen = *self.lock();
            fence(Ordering::SeqCst); // pairs with the one in `tell`: one of the two sees the other
            if let Some(value) = look() {
                return Some(value);
            }
            let mut changes = self.lock();
            while *changes == seen {
                changes = match until {
                    None => self.changed.wait(changes).unwrap_or_else(PoisonError::into_inner),
                    Some(until) => {
                        let left = until.checked_duration_since(Instant::now())?;
                        self.changed.wait_timeout(changes, left).unwrap_or_else(PoisonError::into_inner).0
                    }
                };
            }
        }
    }

    /// Something has changed.
    pub(super) fn tell(&self) {
        fence(Ordering::SeqCst); // pairs with the one in `wait`
        if self.waiting.load(Ordering::Relaxed) > 0 {
            *self.lock() += 1;
            self.changed.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, u64> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner) // a counter is never half changed
    }
}

struct Waiting<'a>(&'a Watch);

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
    fn every_change_is_seen() {
        let (watch, turn) = (Watch::default(), AtomicU32::new(0));
        // Two threads hand a number to and fro; a lost change hangs the test.
        std::thread::scope(|scope| {
            for me in 0..2 {
                let (watch, turn) = (&watch, &turn);
                scope.spawn(move || {
                    for round in 0..2_000 {
                        let mine = round * 2 + me;
                        watch.wait(None, || (turn.load(Ordering::Relaxed) == mine).then_some(())).unwrap();
                        turn.store(mine + 1, Ordering::Relaxed);
                        watch.tell();
                    }
                });
            }
        });
        assert_eq!(watch.wait(Some(Instant::now()), || None::<()>), None);
    }
}
