//! How long nothing was delivered: the times between deliveries that are worth keeping.

/// Times without a delivery that are shorter than this, in nanoseconds, are not kept.
const SHORTEST: u64 = 20_000;

/// When nothing was delivered, on the machine's clock.
#[derive(Debug, Default)]
pub(crate) struct Gaps {
    last: Option<u64>,
    gaps: Vec<(u64, u64)>,
}

impl Gaps {
    /// Something was delivered.
    pub(crate) fn on_delivery(&mut self, now: u64) {
        if let Some(last) = self.last.replace(now)
            && now - last >= SHORTEST
        {
            self.gaps.push((last, now));
        }
    }

    /// The longest that ended between these times, wherever it began; 0 if none was long enough to be kept.
    pub(crate) fn longest(&self, since: u64, until: u64) -> u64 {
        let gaps = self.gaps.iter().filter(|&&(_, to)| since < to && to <= until);
        gaps.map(|(from, to)| to - from).max().unwrap_or(0)
    }

    /// The longest that lies in these times, or reaches into them; at `now` the last may still go on.
    pub(crate) fn longest_touching(&self, (since, until): (u64, u64), now: u64) -> u64 {
        let open = self.last.map(|last| (last, now));
        let gaps = self.gaps.iter().copied().chain(open);
        gaps.filter(|&(from, to)| from < until && since < to).map(|(from, to)| to - from).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_is_looked_for_where_it_ends() {
        let mut gaps = Gaps::default();
        let us = |n: u64| n * 1_000;
        for at in [100, 900, 905, 1_000, 1_400] {
            gaps.on_delivery(us(at));
        }
        assert_eq!(gaps.longest(0, us(2_000)), us(800));
        assert_eq!(gaps.longest(us(900), us(1_399)), us(95), "neither what ended before nor what ends after");
        assert_eq!(gaps.longest(us(1_200), us(1_400)), us(400), "it began before");
        assert_eq!(gaps.longest(us(900), us(905)), 0, "too short to count");
        assert_eq!(gaps.longest_touching((us(1_100), us(1_200)), us(1_500)), us(400), "it ends after");
        assert_eq!(gaps.longest_touching((us(1_420), us(1_450)), us(1_900)), us(500), "it goes on");
        assert_eq!(gaps.longest_touching((us(950), us(1_000)), us(1_900)), us(95), "nothing of the next");
    }
}
