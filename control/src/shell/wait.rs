//! What the engine does after a turn in which nothing happened: the wait strategies.
//!
//! `Adaptive` has to be good on a core of its own and on one that it shares, and find out which it is:
//!
//! - It begins with *yields*: with nobody else to run they come back within a fraction of a microsecond, so
//!   the latency is nearly a spin's, and with other members of the group waiting for the core they are what lets
//!   these answer. (Three spinning processes on two cores: milliseconds a round; yielding ones: a microsecond.)
//! - How long a yield took tells who else is there. While they come back at once the core is ours, and a few *spins* go
//!   between two yields. When one took a time slice, somebody runs there who doesn't yield, and the next
//!   messages had better be waited for in the kernel, which puts a sleeper that wakes before such a one: for a while it
//!   *sleeps* at once.
//! - After [`LONG_IDLE`] of nothing it sleeps anyway: idle nodes use no CPU. But not before some yields have come back: where many members share a core,
//!   all of them have to have their turn, more than once, before an answer can be there, and who sleeps meanwhile has to be woken for it.
//!
//! Pure: the caller reads the clock, yields and sleeps.

use std::time::Duration;

use consort_dataplane::names::Time;

use crate::config::WaitStrategy;

/// From here on waiting costs more than waking.
const LONG_IDLE: Duration = Duration::from_micros(60);

/// Yields in a row without anything having happened, at least, before it sleeps for that.
const LONG_YIELDS: u32 = 8;

/// A yield that came back later than this let somebody else run.
const SHARED: Duration = Duration::from_micros(2);

/// A yield that came back later than this lost a time slice. The turns of all other members of a large group on a core take less together.
const CROWDED: Duration = Duration::from_micros(1000);

/// For how long it sleeps at once after that.
const CROWDED_FOR: Duration = Duration::from_millis(10);

/// Turns between two yields while the core is ours.
const SPINS: u32 = 32;

/// Yields in a row that must come back at once until the core counts as ours.
const ALONE: u32 = 64;

/// Where others want the core, they are told what was delivered when they have had it once: who is to send the next message, which tells them as well, may be
/// among them.
const TELL_AFTER: u32 = 1;

/// What could wait is published after so many turns of nothing at least: late enough not to cost a message of its own in a busy exchange
/// over shared memory, early enough for who waits for room. Where an exchange takes longer, it is found out, see [`Waiting::busy`], and
/// then room is all that is published so early, where there is enough of it to be waited for.
const SETTLE_AFTER: u32 = 24;

/// … and at most.
const SETTLE_LATEST: u32 = 1024;

/// What to do before the next turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Rest {
    /// Turn again at once.
    Spin,
    /// Let others run; tell [`Waiting::yielded`] how long it took.
    Yield,
    /// Publish what was delivered of this node's own messages, then turn again.
    Tell,
    /// Publish what somebody may wait for, then turn again.
    Release,
    /// Publish what could wait, then turn again.
    Settle,
    /// Publish what could wait, then sleep until something happens.
    Sleep,
}

/// How the engine waits.
pub(crate) struct Waiting {
    strategy: WaitStrategy,
    /// Turns in a row in which nothing happened.
    idle: u32,
    /// After how many it settles, and whether that is learned.
    settle_after: u32,
    learns: bool,
    /// When the clock was first read since, and how many yields have come back.
    since: Option<Time>,
    yields: u32,
    /// Yields to come back at once before the core counts as ours.
    shared: u32,
    crowded_until: Time,
}

impl Waiting {
    /// With `learns` what it publishes costs something, so that it had better wait until an exchange is over.
    pub(crate) fn new(strategy: WaitStrategy, learns: bool) -> Self {
        Self {
            strategy,
            idle: 0,
            settle_after: SETTLE_AFTER,
            learns,
            since: None,
            yields: 0,
            shared: ALONE,
            crowded_until: Time(0),
        }
    }

    /// Whether what it publishes costs something from now on, since links came or went.
    pub(crate) fn set_learns(&mut self, learns: bool) {
        if self.learns != learns {
            (self.learns, self.settle_after) = (learns, SETTLE_AFTER);
        }
    }

    /// A turn in which something happened, or a sleep, is over.
    ///
    /// If that came soon after it had settled, what it published then could have gone with the answer, and now the answer waits behind it: an exchange
    /// takes that many turns here, and it settles after twice as many from now on. If nothing came for long, it had all the time, and
    /// settles sooner again.
    pub(crate) fn busy(&mut self) {
        if self.learns && self.idle > self.settle_after {
            self.settle_after = if self.idle <= SETTLE_LATEST / 2 {
                2 * self.idle
            } else {
                (self.settle_after / 2).max(SETTLE_AFTER)
            };
        }
        self.idle = 0;
        self.since = None;
        self.yields = 0;
    }

    /// A turn in which nothing happened is over. Reads the clock no more often than it must.
    pub(crate) fn idle(&mut self, now: impl FnOnce() -> Time) -> Rest {
        let turn = self.idle;
        self.idle = turn.saturating_add(1);
        if turn == self.settle_after {
            return Rest::Settle;
        }
        if turn == SETTLE_AFTER {
            return Rest::Release;
        }
        if turn == TELL_AFTER && !self.is_alone() {
            return Rest::Tell;
        }
        match self.strategy {
            WaitStrategy::Spin => Rest::Spin,
            WaitStrategy::Block => Rest::Sleep,
            // The first turns are spins: an answer that is on its way comes within them.
            WaitStrategy::Adaptive if self.shared == 0 && !(turn + 1).is_multiple_of(SPINS) => Rest::Spin,
            WaitStrategy::Adaptive => {
                let now = now();
                let since = *self.since.get_or_insert(now);
                let is_long = now.since(since) >= LONG_IDLE && self.yields >= LONG_YIELDS;
                let sleep = now < self.crowded_until || is_long;
                if sleep { Rest::Sleep } else { Rest::Yield }
            }
        }
    }

    /// Nobody else wants the core, as far as is known: its yields come back at once, or it takes the core for itself.
    pub(crate) fn is_alone(&self) -> bool {
        self.strategy != WaitStrategy::Adaptive || self.shared == 0
    }

    /// A yield took from `before` to `after`.
    pub(crate) fn yielded(&mut self, before: Time, after: Time) {
        let took = after.since(before);
        self.yields = self.yields.saturating_add(1);
        if took >= CROWDED {
            self.crowded_until = after.plus(CROWDED_FOR);
        }
        self.shared = if took >= SHARED { ALONE } else { self.shared.saturating_sub(1) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Idle turns in which a yield takes `yield_ns` and a spin 50 ns, until it sleeps; what it did.
    fn idle(waiting: &mut Waiting, now: &mut Time, yield_ns: u64) -> Vec<Rest> {
        let mut done = Vec::new();
        waiting.busy();
        while done.len() < 100_000 {
            let rest = waiting.idle(|| *now);
            done.push(rest);
            match rest {
                Rest::Sleep => break,
                Rest::Yield => {
                    let before = *now;
                    now.0 += yield_ns;
                    waiting.yielded(before, *now);
                }
                Rest::Spin | Rest::Tell | Rest::Release | Rest::Settle => now.0 += 50,
            }
        }
        done
    }

    #[test]
    fn alone_it_learns_to_spin_and_still_sleeps() {
        let (mut waiting, mut now) = (Waiting::new(WaitStrategy::Adaptive, true), Time(0));
        let first = idle(&mut waiting, &mut now, 200);
        assert_eq!(first[0], Rest::Yield);
        let second = idle(&mut waiting, &mut now, 200);
        let spins = second.iter().filter(|rest| **rest == Rest::Spin).count();
        assert!(
            spins > second.len() / 2 && second.last() == Some(&Rest::Sleep),
            "{spins} of {}",
            second.len()
        );
        let before = now;
        idle(&mut waiting, &mut now, 200);
        assert!(now.since(before) < 2 * LONG_IDLE, "it sleeps when the time has come");
    }

    #[test]
    fn with_others_it_yields_every_turn() {
        let (mut waiting, mut now) = (Waiting::new(WaitStrategy::Adaptive, true), Time(0));
        idle(&mut waiting, &mut now, 200);
        let done = idle(&mut waiting, &mut now, 3_000);
        let after_notice = &done[SPINS as usize + 1..];
        assert!(!after_notice.contains(&Rest::Spin), "{after_notice:?}");
    }

    #[test]
    fn it_tells_soon_only_where_others_want_the_core() {
        let (mut waiting, mut now) = (Waiting::new(WaitStrategy::Adaptive, true), Time(0));
        let tells = |done: &[Rest]| done.iter().position(|rest| *rest == Rest::Tell);
        assert_eq!(tells(&idle(&mut waiting, &mut now, 3_000)), Some(1));
        idle(&mut waiting, &mut now, 200);
        assert_eq!(tells(&idle(&mut waiting, &mut now, 200)), None);
        assert!(waiting.is_alone());
    }

    #[test]
    fn with_many_others_it_waits_for_some_rounds_of_all_of_them() {
        let (mut waiting, mut now) = (Waiting::new(WaitStrategy::Adaptive, true), Time(0));
        let done = idle(&mut waiting, &mut now, 30_000);
        let yields = done.iter().filter(|rest| **rest == Rest::Yield).count();
        assert_eq!((yields, done.last()), (LONG_YIELDS as usize, Some(&Rest::Sleep)));
        waiting.busy();
        assert_eq!(waiting.yields, 0, "counted anew after each");
    }

    #[test]
    fn a_lost_time_slice_makes_it_sleep_at_once_for_a_while() {
        let (mut waiting, mut now) = (Waiting::new(WaitStrategy::Adaptive, true), Time(0));
        idle(&mut waiting, &mut now, 4_000_000);
        assert_eq!(idle(&mut waiting, &mut now, 200), [Rest::Sleep]);
        now = now.plus(CROWDED_FOR);
        assert_eq!(idle(&mut waiting, &mut now, 200)[0], Rest::Yield, "it tries again");
    }

    /// How often it settles in so many spells of `turns` turns of nothing.
    fn settles(waiting: &mut Waiting, turns: u32, spells: u32) -> usize {
        let mut settled = 0;
        for _ in 0..spells {
            settled += (0..turns).filter(|_| waiting.idle(|| Time(0)) == Rest::Settle).count();
            waiting.busy();
        }
        settled
    }

    #[test]
    fn an_exchange_is_not_settled_in_once_its_length_is_known() {
        let mut waiting = Waiting::new(WaitStrategy::Spin, true);
        assert_eq!(settles(&mut waiting, SETTLE_AFTER, 100), 0);
        // Lengths vary; up to twice the longest that was interrupted is an exchange.
        assert_eq!(settles(&mut waiting, 100, 100), 1);
        assert_eq!(settles(&mut waiting, 200, 100), 0);
        let release = (0..200).position(|_| waiting.idle(|| Time(0)) == Rest::Release);
        assert_eq!(release, Some(SETTLE_AFTER as usize));
        waiting.busy();
        assert_eq!(settles(&mut waiting, SETTLE_LATEST / 2, 100), 1);
        assert_eq!(settles(&mut waiting, SETTLE_LATEST, 100), 0);
    }

    #[test]
    fn where_it_costs_nothing_it_always_settles_soon() {
        let mut waiting = Waiting::new(WaitStrategy::Spin, false);
        assert_eq!(settles(&mut waiting, 100, 100), 100);
    }

    #[test]
    fn who_has_nothing_to_do_for_long_settles_each_time_and_soon() {
        let mut waiting = Waiting::new(WaitStrategy::Spin, true);
        settles(&mut waiting, SETTLE_LATEST / 2, 1);
        assert_eq!(waiting.settle_after, SETTLE_LATEST);
        assert_eq!(settles(&mut waiting, 2 * SETTLE_LATEST, 10), 10);
        assert_eq!(waiting.settle_after, SETTLE_AFTER);
    }

    #[test]
    fn the_plain_strategies_do_as_they_say() {
        let mut now = Time(0);
        assert_eq!(idle(&mut Waiting::new(WaitStrategy::Block, true), &mut now, 200), [Rest::Sleep]);
        let spin = idle(&mut Waiting::new(WaitStrategy::Spin, true), &mut now, 200);
        assert!(spin.iter().all(|rest| matches!(rest, Rest::Spin | Rest::Settle)));
        assert_eq!(spin.iter().filter(|rest| **rest == Rest::Settle).count(), 1);
    }
}
