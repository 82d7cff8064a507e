//! Sleeping until any peer publishes, and waking only those who sleep (F3).
//!
//! # The words
//!
//! Each node keeps two words in the first page of its segment, where peers read them:
//!
//! - `epoch`: how often it has flushed. It is raised after everything that it announces, and is also the futex that
//!   the node's sleeping peers wait on: the kernel allows that through a read-only mapping.
//! - `nap`: raised when the node falls asleep and when it awakes: odd while it sleeps.
//!
//! and one word in private memory, the [`Alarm`], that its own doorbell and watcher raise.
//!
//! # Why no wake-up is lost
//!
//! ```text
//! who publishes                                 who sleeps
//! P1 stores what is to be published (Release)   W0 poll: snapshot := peer's epoch (Acquire); then reads mirrors
//! P2 stores epoch + 1 (Release)                 W1 stores nap + 1, odd (Release)
//! P3 fence (SeqCst)                             W2 fence (SeqCst)
//! P4 loads nap (Acquire)                        W3 looks for work once more: epoch ≠ snapshot: no sleep
//! P5 if odd: FUTEX_WAKE on epoch                W4 futex_waitv: sleeps only while epoch = snapshot
//! ```
//!
//! *A publish before W0's load* (that the load sees) is visible when the mirrors are read after it. *Any other* leaves the
//! snapshot behind the epoch. By the two fences either P4 sees the nap or W3 sees the new epoch. In the first case
//! P5 comes: if W4 has queued the sleeper it is woken; if W4 is still to come, the kernel compares the word
//! with the snapshot under the lock that P5 took, finds them different, and doesn't sleep.
//!
//! P2 to P4 are [`announce_epoch`], W1 to W4 [`nap`]; loom runs them under every schedule and memory order
//! (`cargo xtask loom`). The doorbell is the same dance in one process ([`Doorbell::ring`], [`Doorbell::announce`]), with
//! the alarm as the word: it is snapshot before the announcement and raised before the wake.
//!
//! [`Doorbell::ring`]: consort_dataplane::fabric::Doorbell::ring
//! [`Doorbell::announce`]: consort_dataplane::fabric::Doorbell::announce
//!
//! # Why two wake-ups a nap are enough
//!
//! A woken thread takes 20 µs to run, and until then its nap shows as odd: a publisher in full flow would
//! make a system call for each flush. But it need not. Let it see nap n in P4 of two flushes, the later of which
//! raised the epoch to e. The sleeper's snapshot was loaded before W1 (Release), W1 was seen by the earlier P4 (Acquire),
//! and e was stored after that: so the snapshot can't be e or more, and the wake-up at e, finding the sleeper queued
//! or on its way, ends nap n for sure. The *first* wake-up alone may not: its epoch may be in the snapshot already.
//! [`Naps`] keeps that count.
//!
//! The epoch counts to 2⁶⁴ and the kernel compares its lower half only: a sleep would be missed if a peer flushed
//! 2³² times between W3 and W4.

#[cfg(loom)]
use loom::sync::atomic::fence;
#[cfg(not(loom))]
use std::sync::atomic::fence;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use consort_dataplane::memory::{LINE, WORD};
use consort_dataplane::names::MAX_NODES;
use rustix::io::Errno;
use rustix::thread::futex::{self, Wait, WaitFlags, WaitPtr, WaitvFlags};
use rustix::time::{ClockId, Timespec};

use crate::beside::SHM_WORDS;

/// Where `epoch` lies in the segment: written with each flush, so in a line of its own, and of its neighbour's, which
/// processors fetch along.
pub(super) const EPOCH: usize = 2 * LINE;

/// Where `nap` lies: written when the node sleeps, read by every flush of its peers.
pub(super) const NAP: usize = 4 * LINE;

const _: () = assert!(NAP + WORD <= SHM_WORDS.end, "no other's words");

/// Where the half that the kernel compares lies in its word.
pub(super) const FUTEX_HALF: usize = if cfg!(target_endian = "little") { 0 } else { 4 };

/// The kernel waits on no more futexes at once.
const FUTEX_WAITV_MAX: usize = 128;
const _: () =
    assert!(2 * MAX_NODES <= FUTEX_WAITV_MAX, "two for each peer, which are fewer than nodes, and the alarm");

/// Raises the epoch, then looks who sleeps. Returns whether a wake-up is due.
pub(super) fn announce_epoch(raise: impl FnOnce(), must_wake: impl FnOnce() -> bool) -> bool {
    raise(); // P2
    fence(Ordering::SeqCst); // P3, pairs with the one in `nap`
    must_wake() // P4
}

/// Announces a nap, looks for work once more, and sleeps if there is none.
pub(super) fn nap(announce: impl FnOnce(), is_idle: impl FnOnce() -> bool, sleep: impl FnOnce()) {
    announce(); // W1
    fence(Ordering::SeqCst); // W2, pairs with the one in `announce_epoch`
    if is_idle() {
        // W3
        sleep(); // W4
    }
}

/// What threads of this process wake the owner with.
#[derive(Debug, Default)]
pub(super) struct Alarm {
    count: AtomicU32,
    /// The watcher saw something happen to a socket.
    attention: AtomicBool,
}

impl Alarm {
    /// Ends a sleep that has been announced.
    pub(super) fn raise(&self) {
        self.count.fetch_add(1, Ordering::Release); // pairs with the Acquire in `count`
        let _ = futex::wake(&self.count, futex::Flags::PRIVATE, 1);
    }

    /// To be taken before a sleep is announced.
    pub(super) fn count(&self) -> u32 {
        self.count.load(Ordering::Acquire)
    }

    /// There is something to see to. The owner must be rung after this.
    pub(super) fn call_attention(&self) {
        self.attention.store(true, Ordering::Release); // pairs with the Acquire in `take_attention`
    }

    /// Whether there is something to see to.
    pub(super) fn attention(&self) -> bool {
        self.attention.load(Ordering::Relaxed)
    }

    /// Whether there was something to see to: the caller sees to all of it now.
    pub(super) fn take_attention(&self) -> bool {
        self.attention() && self.attention.swap(false, Ordering::AcqRel)
    }
}

/// What a publisher knows of one peer's naps.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Naps {
    nap: u64,
    wakes: u8,
}

impl Naps {
    /// Whether a peer whose `nap` word was read after a flush must be woken.
    pub(super) fn must_wake(&mut self, nap: u64) -> bool {
        if nap & 1 == 0 {
            return false;
        }
        if nap != self.nap {
            *self = Self { nap, wakes: 0 };
        }
        let must = self.wakes < 2;
        self.wakes += u8::from(must);
        must
    }
}

/// Wakes all who wait on `word`, in any process. Returns how many.
pub(super) fn wake_all(word: &AtomicU32) -> u64 {
    futex::wake(word, futex::Flags::empty(), i32::MAX as u32).map_or(0, |woken| woken as u64)
}

/// What to wait on: the alarm, the epochs of up to [`MAX_NODES`] peers, and their lives.
pub(super) struct Waits {
    list: [Wait; FUTEX_WAITV_MAX],
    len: usize,
}

impl Waits {
    /// Ends with the alarm, if it was raised since it counted `count`.
    pub(super) fn on(alarm: &Alarm, count: u32) -> Self {
        let mut waits = Self { list: [Wait::new(); FUTEX_WAITV_MAX], len: 0 };
        waits.push(u64::from(count), alarm.count.as_ptr().cast(), WaitFlags::SIZE_U32 | WaitFlags::PRIVATE);
        waits
    }

    /// Ends also when the word at `word`, an epoch or a life in a mirror, isn't `seen` any more.
    pub(super) fn and(&mut self, word: *const u8, seen: u64) {
        let half = word.wrapping_add(FUTEX_HALF).cast_mut().cast();
        self.push(seen & u64::from(u32::MAX), half, WaitFlags::SIZE_U32);
    }

    fn push(&mut self, val: u64, address: *mut std::ffi::c_void, flags: WaitFlags) {
        if let Some(wait) = self.list.get_mut(self.len) {
            (wait.val, wait.uaddr, wait.flags) = (val, WaitPtr::new(address), flags);
            self.len += 1;
        }
    }

    /// Sleeps until one of the words has changed or for `nanoseconds` (for ever with `u64::MAX`), or for no reason.
    pub(super) fn sleep(&self, nanoseconds: u64) -> Result<(), Errno> {
        let until = (nanoseconds != u64::MAX).then(|| {
            let now = rustix::time::clock_gettime(ClockId::Monotonic);
            let (seconds, rest) = (nanoseconds / 1_000_000_000, nanoseconds % 1_000_000_000);
            let rest = now.tv_nsec.saturating_add_unsigned(rest);
            Timespec {
                tv_sec: now.tv_sec.saturating_add_unsigned(seconds).saturating_add(rest / 1_000_000_000),
                tv_nsec: rest % 1_000_000_000,
            }
        });
        let waits = &self.list[..self.len];
        match futex::waitv(waits, WaitvFlags::empty(), until.as_ref(), ClockId::Monotonic) {
            Ok(_) | Err(Errno::AGAIN | Errno::TIMEDOUT | Errno::INTR) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Whether the kernel lets us wait on several futexes: it refuses an empty list as invalid then.
pub(super) fn probe() -> Result<(), Errno> {
    match futex::waitv(&[], WaitvFlags::empty(), None, ClockId::Monotonic) {
        Ok(_) | Err(Errno::INVAL) => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn each_nap_is_woken_twice_at_most() {
        let mut naps = Naps::default();
        assert!(!naps.must_wake(0), "awake since the start");
        assert_eq!([naps.must_wake(1), naps.must_wake(1), naps.must_wake(1)], [true, true, false]);
        assert!(!naps.must_wake(2), "awake");
        assert_eq!([naps.must_wake(3), naps.must_wake(3), naps.must_wake(3)], [true, true, false]);
        assert!(naps.must_wake(7), "naps in between were none of our doing");
    }

    #[test]
    fn a_raised_alarm_is_not_slept_over() {
        probe().unwrap();
        let alarm = Alarm::default();
        let count = alarm.count();
        alarm.raise();
        let begun = std::time::Instant::now();
        Waits::on(&alarm, count).sleep(60_000_000_000).unwrap();
        assert!(begun.elapsed().as_secs() < 60, "slept over it");
    }

    #[test]
    fn attention_is_taken_once() {
        let alarm = Alarm::default();
        assert!(!alarm.take_attention());
        alarm.call_attention();
        assert!(alarm.attention() && alarm.take_attention() && !alarm.take_attention());
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use loom::sync::atomic::AtomicU64;
    use loom::sync::{Arc, Condvar, Mutex};

    use super::*;

    const FLUSHES: u64 = 3;

    /// What the two share, and the kernel's futex queue: compared and slept on under one lock.
    struct Shared {
        data: AtomicU64,
        epoch: AtomicU64,
        nap: AtomicU64,
        lock: Mutex<()>,
        queue: Condvar,
    }

    /// A wake-up that is lost is a thread that sleeps for ever: loom reports a deadlock.
    #[test]
    fn loom_no_wake_up_is_lost() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            let shared = Arc::new(Shared {
                data: AtomicU64::new(0),
                epoch: AtomicU64::new(0),
                nap: AtomicU64::new(0),
                lock: Mutex::new(()),
                queue: Condvar::new(),
            });
            let publisher = loom::thread::spawn({
                let shared = shared.clone();
                move || {
                    let mut naps = Naps::default();
                    for flush in 1..=FLUSHES {
                        shared.data.store(flush, Ordering::Release); // P1
                        let raise = || shared.epoch.store(flush, Ordering::Release);
                        if announce_epoch(raise, || naps.must_wake(shared.nap.load(Ordering::Acquire))) {
                            drop(shared.lock.lock().unwrap()); // P5: whoever compares later sees the epoch
                            shared.queue.notify_all();
                        }
                    }
                }
            });
            let mut naps = 0;
            loop {
                let seen = shared.epoch.load(Ordering::Acquire); // W0
                if shared.data.load(Ordering::Acquire) == FLUSHES {
                    break;
                }
                naps += 1;
                nap(
                    || shared.nap.store(naps, Ordering::Release),
                    || shared.epoch.load(Ordering::Acquire) == seen,
                    || {
                        let queue = shared.lock.lock().unwrap();
                        if shared.epoch.load(Ordering::Relaxed) == seen {
                            drop(shared.queue.wait(queue).unwrap());
                        }
                    },
                );
                naps += 1;
                shared.nap.store(naps, Ordering::Release);
            }
            publisher.join().unwrap();
        });
    }
}
