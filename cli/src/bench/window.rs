//! When a measurement counts, and how a thread passes the time when there is nothing to do.

use crate::args::WaitArg;
use crate::orders::Window;

/// How long senders go on after the measured time: until everyone has surely looked at the counters under load.
const COOLDOWN: u64 = 50_000_000;

/// A window on the machine's clock, and what was counted at its two ends.
pub(crate) struct Watch<T> {
    from: u64,
    until: u64,
    first: Option<(u64, T)>,
    last: Option<(u64, T)>,
}

impl<T> Watch<T> {
    /// The window of a run that starts at `start`.
    pub(crate) fn new(start: u64, window: Window) -> Self {
        let from = start + window.warmup;
        Self { from, until: from + window.measured, first: None, last: None }
    }

    /// Looks at the counters if the clock has reached an end of the window. Call it at every turn: a rate is taken
    /// between the two looks, not between the ends of the window, so that a late look does no harm.
    #[inline]
    pub(crate) fn look(&mut self, now: u64, counters: impl FnOnce() -> T) {
        if now < self.from {
            return;
        }
        if self.first.is_none() {
            self.first = Some((now, counters()));
        } else if now >= self.until && self.last.is_none() {
            self.last = Some((now, counters()));
        }
    }

    /// Whether what began at `time` counts.
    #[inline]
    pub(crate) fn counts(&self, time: u64) -> bool {
        (self.from..self.until).contains(&time)
    }

    /// When senders stop.
    pub(crate) fn end(&self) -> u64 {
        self.until + COOLDOWN
    }

    /// Nanoseconds between the two looks, and what was counted at each; `None` unless both were taken.
    pub(crate) fn taken(self) -> Option<(u64, T, T)> {
        let ((from, first), (until, last)) = (self.first?, self.last?);
        Some((until - from, first, last))
    }
}

/// Waits as the strategy says, where Consort's own engine isn't there to do it: in the floors.
pub(crate) struct Idler {
    wait: WaitArg,
    /// More processes than cores.
    crowded: bool,
    turns: u32,
}

/// Turns of polling before the first yield, if every process could have a core: about as long as a round trip takes then. If
/// none came by then, something else is on one of the cores.
const PATIENCE: u32 = 64;

impl Idler {
    pub(crate) fn new(wait: WaitArg, crowded: bool) -> Self {
        Self { wait, crowded, turns: 0 }
    }

    /// There was something to do.
    #[inline]
    pub(crate) fn busy(&mut self) {
        self.turns = 0;
    }

    /// There was nothing to do. `sleep` is called by the strategy that sleeps.
    #[inline]
    pub(crate) fn idle(&mut self, sleep: impl FnOnce()) {
        match self.wait {
            WaitArg::Spin => std::hint::spin_loop(),
            WaitArg::Adaptive if self.crowded || self.turns >= PATIENCE => std::thread::yield_now(),
            WaitArg::Adaptive => {
                self.turns += 1;
                std::hint::spin_loop();
            }
            WaitArg::Block => sleep(),
        }
    }

    /// Whether those who sleep must be woken.
    pub(crate) fn sleeps(&self) -> bool {
        self.wait == WaitArg::Block
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_looked_at_once_at_each_end() {
        let mut watch = Watch::new(1_000, Window { warmup: 100, measured: 500 });
        let mut looks = 0;
        for now in (900..2_000).step_by(7) {
            watch.look(now, || {
                looks += 1;
                now * 10
            });
        }
        assert_eq!(looks, 2);
        assert!(watch.counts(1_100) && watch.counts(1_599) && !watch.counts(1_600) && !watch.counts(1_099));
        let (elapsed, first, last) = watch.taken().unwrap();
        assert_eq!(last - first, elapsed * 10);
        assert!((490..520).contains(&elapsed));
    }

    #[test]
    fn a_window_cut_short_has_no_result() {
        let mut watch = Watch::new(0, Window { warmup: 1, measured: 10 });
        watch.look(5, || ());
        assert!(watch.taken().is_none());
    }

    #[test]
    fn only_block_sleeps() {
        for (wait, crowded) in [(WaitArg::Spin, true), (WaitArg::Adaptive, true), (WaitArg::Adaptive, false)]
        {
            let mut idler = Idler::new(wait, crowded);
            for _ in 0..200 {
                idler.idle(|| panic!("{wait} slept"));
            }
            idler.busy();
        }
        let mut slept = false;
        Idler::new(WaitArg::Block, false).idle(|| slept = true);
        assert!(slept);
    }
}
