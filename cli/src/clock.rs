//! The two clocks that the command reads: one that all processes of a machine share, and the process's own CPU time.

use rustix::time::{ClockId, Timespec, clock_gettime};

fn nanoseconds(time: Timespec) -> u64 {
    // Both clocks start at zero and never run backwards; a value that does not fit means half a millennium of uptime.
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

/// Nanoseconds since the machine started: `CLOCK_MONOTONIC`, the same in every process, so that a time taken by one
/// member can be set against one taken by another. About 20 ns a call; no system call.
pub(crate) fn now() -> u64 {
    nanoseconds(clock_gettime(ClockId::Monotonic))
}

/// Nanoseconds of CPU that all threads of this process have used, in the kernel and outside (what `getrusage` sums up,
/// at the resolution of the scheduler's own accounts).
pub(crate) fn cpu() -> u64 {
    nanoseconds(clock_gettime(ClockId::ProcessCPUTime))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clocks_run_forwards() {
        let (wall, used) = (now(), cpu());
        let spent = std::hint::black_box((0..2_000_000_u64).map(std::hint::black_box).sum::<u64>());
        assert!(spent > 0 && now() > wall && cpu() > used);
    }
}
