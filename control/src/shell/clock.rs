//! The clock: read in the shell and nowhere else.

use consort_dataplane::names::Time;
use rustix::time::{ClockId, clock_gettime};

/// `CLOCK_MONOTONIC`: the one that the kernel's waits count by, the same for all processes of a machine.
pub(crate) fn now() -> Time {
    #[cfg(test)]
    if let Some(now) = PRETENDED.get() {
        return now;
    }
    let time = clock_gettime(ClockId::Monotonic);
    Time(time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs())
}

/// Nanoseconds since 1970, by the machine's calendar clock: for people, and for stamps, which are never set against [`now`].
pub(crate) fn since_1970() -> u64 {
    #[cfg(test)]
    if let Some(now) = PRETENDED.get() {
        return now.0;
    }
    let time = clock_gettime(ClockId::Realtime);
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

#[cfg(test)]
thread_local! {
    /// What this thread takes for the time.
    static PRETENDED: std::cell::Cell<Option<Time>> = const { std::cell::Cell::new(None) };
}

/// From now on it is `now` for this thread, until it is told otherwise.
#[cfg(test)]
pub(crate) fn pretend(now: Time) {
    PRETENDED.set(Some(now));
}
