//! The clock: read in the shell and nowhere else.

use consort_dataplane::names::Time;
use rustix::time::{ClockId, clock_gettime};

/// `CLOCK_MONOTONIC`: the one that the kernel's waits count by, the same for all processes of a machine.
pub(crate) fn now() -> Time {
    let time = clock_gettime(ClockId::Monotonic);
    Time(time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs())
}
