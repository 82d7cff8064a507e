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
    /// Who went on to the end; the others crashed.
    pub survived: Vec<bool>,
    /// Whether the run ended by itself, with nobody crashed: then everything must have been delivered.
    pub complete: bool,
}

impl History {
    /// Checks no creation, no duplication, sender order, total order, all or nothing, and no loss.
    ///
    /// # Errors
    /// The first rule broken, with member and place.
    pub fn check(&self, guarantee: Guarantee) -> Result<(), String> {
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
            if self.complete && next != self.sent {
                return Err(format!("loss: member {member} delivered {next:?} of {:?}", self.sent));
            }
        }
        if !guarantee.ordered() {
            return Ok(());
        }
        let Some(longest) = self.delivered.iter().max_by_key(|log| log.len()) else { return Ok(()) };
        for (member, log) in self.delivered.iter().enumerate() {
            if let Some(place) = log.iter().zip(longest).position(|(a, b)| a != b) {
                let (a, b) = (log[place], longest[place]);
                return Err(format!("total order: member {member} has {a:?} at {place}, another has {b:?}"));
            }
            // All or nothing: those who went on agree to the end; who crashed delivered no more than they did.
            if self.survived[member] && log.len() != longest.len() {
                let (has, most) = (log.len(), longest.len());
                return Err(format!(
                    "all or nothing: member {member} went on with {has} of {most} deliveries"
                ));
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
    }
}
