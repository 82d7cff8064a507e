//! What one thread at a time is in, and nobody waits for: a lock that costs one barrier, where a mutex costs two.
#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering};

/// For one thread at a time.
pub(crate) struct Seat<T> {
    is_taken: AtomicBool,
    it: UnsafeCell<T>,
}

// SAFETY: who reaches `it` has set `is_taken`, and so is the only one; what the one before did happened before.
unsafe impl<T: Send> Sync for Seat<T> {}

/// Who sits there has this, and gets up when it is dropped. Between threads it is what an exclusive reference is.
pub(crate) struct Seated<'a, T>(&'a Seat<T>, PhantomData<&'a mut T>);

impl<T> Seat<T> {
    pub(crate) const fn new(it: T) -> Self {
        Self { is_taken: AtomicBool::new(false), it: UnsafeCell::new(it) }
    }

    /// `None`: somebody sits there.
    #[inline]
    pub(crate) fn take(&self) -> Option<Seated<'_, T>> {
        let was_taken = self.is_taken.swap(true, Ordering::Acquire); // pairs with the Release in `drop`
        (!was_taken).then(|| Seated(self, PhantomData))
    }
}

impl<T> Deref for Seated<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: `is_taken` was set by `take`, so nobody else has it, and shared for as long as `self` is.
        unsafe { &*self.0.it.get() }
    }
}

impl<T> DerefMut for Seated<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above, and `self` is borrowed exclusively.
        unsafe { &mut *self.0.it.get() }
    }
}

impl<T> Drop for Seated<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.0.is_taken.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_at_a_time() {
        let seat = Seat::new(0_u64);
        let threads = 4;
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    let mut got = 0;
                    while got < 10_000 {
                        let Some(mut number) = seat.take() else {
                            std::thread::yield_now();
                            continue;
                        };
                        assert!(seat.take().is_none());
                        *number += 1;
                        got += 1;
                    }
                });
            }
        });
        assert_eq!(*seat.take().unwrap(), threads * 10_000);
    }
}
