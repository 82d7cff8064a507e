//! Histories of deliveries, and what must hold of them.
//!
//! The checkers know nothing of rounds or rings: they compare what was sent with what was delivered. A total order is
//! checked by merging (every sequence against the longest), so a million deliveries take well under a second.

use consort_dataplane::plan::Guarantee;

/// One delivery: whose message, and the how-many-eth of that sender's it is, from 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Delivered {
    /// The sender, by rank.
    pub sender: usize,
    /// Which of its messages.
    pub index: usize,
}

/// What happened in a run.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Messages sent, by rank.
    pub sent: Vec<usize>,
    /// Deliveries, by rank, in their order.
    pub delivered: Vec<Vec<Delivered>>,
    /// Who went on to the end; the others crashed, or were left behind.
    pub survived: Vec<bool>,
    /// Whether the run ended by itself: then all that the survivors sent must have been delivered to them all.
    pub complete: bool,
}

impl History {
    /// Checks no creation, no duplication, sender order, total order, all or nothing, and no loss.
    ///
    /// # Errors
    /// The first rule broken, with member and place.
    pub fn check(&self, guarantee: Guarantee) -> Result<(), String> {
        let mut counts = Vec::with_capacity(self.delivered.len());
        for (member, log) in self.delivered.iter().enumerate() {
            let mut next = vec![0; self.sent.len()];
            for (place, one) in log.iter().enumerate() {
                let due = next.get_mut(one.sender).ok_or_else(|| {
                    format!(
                        "creation: member {member} delivered from {}, who doesn't exist, at {place}",
                        one.sender
                    )
                })?;
                if one.index != *due {
                    let what = if one.index < *due { "duplication" } else { "sender order or loss" };
                    return Err(format!(
                        "{what}: member {member} delivered {}'s message {} at {place}, {due} was next",
                        one.sender, one.index
                    ));
                }
                *due += 1;
                if one.index >= self.sent[one.sender] {
                    return Err(format!(
                        "creation: member {member} delivered {one:?} at {place}, never sent"
                    ));
                }
            }
            let lost = |s: usize| self.survived[s] && next[s] != self.sent[s];
            if self.complete && self.survived[member] && (0..next.len()).any(lost) {
                return Err(format!("loss: member {member} delivered {next:?} of {:?}", self.sent));
            }
            counts.push(next);
        }
        // All or nothing: those who went on have delivered the same (V4).
        let mut survivors = (0..counts.len()).filter(|member| self.survived[*member]);
        let Some(first) = survivors.next() else { return Ok(()) };
        if let Some(other) = survivors.find(|other| counts[*other] != counts[first]) {
            let (one, another) = (&counts[first], &counts[other]);
            return Err(format!(
                "all or nothing: of each sender, member {first} delivered {one:?}, member {other} {another:?}"
            ));
        }
        if !guarantee.ordered() {
            return Ok(());
        }
        let agreed = &self.delivered[first];
        for (member, log) in self.delivered.iter().enumerate() {
            // What a member delivered just before it crashed may be lost to the others (`Agreed`); what isn't lost stands
            // in their order.
            let may_lose = !guarantee.stable() && !self.survived[member];
            let kept = log.iter().filter(|one| !may_lose || one.index < counts[first][one.sender]);
            let mut rest = agreed.iter();
            for (place, a) in kept.enumerate() {
                let b = if may_lose { rest.find(|b| *b == a) } else { rest.next() };
                if b != Some(a) {
                    return Err(format!(
                        "total order: member {member} has {a:?} at {place}, another has {b:?}"
                    ));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(logs: [&[(usize, usize)]; 2], complete: bool) -> History {
        let log =
            |log: &[(usize, usize)]| log.iter().map(|&(sender, index)| Delivered { sender, index }).collect();
        History { sent: vec![2, 1], delivered: logs.map(log).into(), survived: vec![true; 2], complete }
    }

    #[test]
    fn the_checkers_bite() {
        let good: &[_] = &[(0, 0), (1, 0), (0, 1)];
        let broken: [(&str, &[(usize, usize)]); 6] = [
            ("total order", &[(1, 0), (0, 0), (0, 1)]),
            ("loss", &[(0, 0), (1, 0)]),
            ("duplication", &[(0, 0), (0, 0), (1, 0), (0, 1)]),
            ("sender order", &[(0, 1), (1, 0), (0, 0)]),
            ("creation", &[(0, 0), (1, 0), (0, 1), (1, 1)]),
            ("creation", &[(0, 0), (1, 0), (0, 1), (2, 0)]),
        ];
        assert_eq!(history([good, good], true).check(Guarantee::Atomic), Ok(()));
        for (rule, log) in broken {
            let error = history([good, log], true).check(Guarantee::Atomic).unwrap_err();
            assert!(error.contains(rule), "{log:?} should break {rule}: {error}");
        }
        let short = history([good, &good[..2]], false).check(Guarantee::Atomic).unwrap_err();
        assert!(short.contains("all or nothing"), "{short}");
        assert_eq!(history([good, broken[0].1], true).check(Guarantee::Fifo), Ok(()));
        let short = history([good, &good[..2]], false).check(Guarantee::Fifo).unwrap_err();
        assert!(short.contains("all or nothing"), "{short}");
    }

    #[test]
    fn what_a_crash_may_lose_depends_on_the_guarantee() {
        let crashed = |log| {
            let mut history = history([&[(0, 0), (0, 1)], log], false);
            history.survived[1] = false;
            history
        };
        let lost = crashed(&[(0, 0), (1, 0), (0, 1)]);
        assert_eq!(lost.check(Guarantee::Agreed), Ok(()));
        assert!(lost.check(Guarantee::Atomic).unwrap_err().contains("total order"));
        assert_eq!(crashed(&[(0, 0)]).check(Guarantee::Atomic), Ok(()));
        let mut swapped = history([&[(0, 0), (1, 0), (0, 1)], &[(1, 0), (0, 0)]], true);
        swapped.survived[1] = false;
        assert!(swapped.check(Guarantee::Agreed).unwrap_err().contains("total order"));
    }
}
