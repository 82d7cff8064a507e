//! Whether a history of a register is linearizable: whether each operation can be given one moment between its call and its
//! end, so that every read finds what was written last before it.
//!
//! The search is Wing and Gong's, with Lowe's memory: the next in order may be any operation that was called before all others that
//! are left have ended; what was tried from the same set of operations and the same value is not tried again. Sorted by
//! calls, only those that overlap are looked at, so long histories of few clients are fast. A map is as many registers as it has
//! keys: check each by itself.

use std::collections::HashSet;

/// What an operation did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Wrote a value.
    Write(u64),
    /// Found that value, or none.
    Read(Option<u64>),
}

/// An operation of some client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Operation {
    /// When it was called.
    pub call: u64,
    /// When it ended; `None` for a write of which nothing is known: it may have happened at any time since, or not.
    pub end: Option<u64>,
    /// What it did.
    pub kind: Kind,
}

/// Checks the history of one register, which begins without a value.
///
/// # Errors
/// There is no such order: says how far any got, and what comes after that in none.
pub fn check(history: &[Operation]) -> Result<(), String> {
    let mut ops = history.to_vec();
    ops.sort_by_key(|op| op.call);
    let end = |op: &Operation| op.end.unwrap_or(u64::MAX);
    let mut done = vec![0u64; ops.len().div_ceil(64)];
    let is_done = |done: &[u64], at: usize| done[at / 64] >> (at % 64) & 1 == 1;
    let mut seen = HashSet::new();
    // What was done, and the value before it.
    let mut stack: Vec<(usize, Option<u64>)> = Vec::new();
    let (mut value, mut from, mut furthest) = (None, 0, Vec::new());
    loop {
        let left = || (0..ops.len()).filter(|at| !is_done(&done, *at));
        if left().all(|at| ops[at].end.is_none()) {
            return Ok(());
        }
        // Nothing that was called after this can be next.
        let mut least = u64::MAX;
        let mut candidates = Vec::new();
        for at in left() {
            if ops[at].call > least {
                break;
            }
            least = least.min(end(&ops[at]));
            candidates.push(at);
        }
        candidates.retain(|at| ops[*at].call <= least && *at >= from);
        let next = candidates.into_iter().find_map(|at| {
            let after = match ops[at].kind {
                Kind::Write(written) => Some(written),
                Kind::Read(found) if found == value => value,
                Kind::Read(_) => return None,
            };
            let mut with = done.clone();
            with[at / 64] |= 1 << (at % 64);
            seen.insert((with, after)).then_some((at, after))
        });
        match next {
            Some((at, after)) => {
                stack.push((at, value));
                done[at / 64] |= 1 << (at % 64);
                (value, from) = (after, 0);
                if stack.len() > furthest.len() {
                    furthest = stack.iter().map(|(at, _)| *at).collect();
                }
            }
            None => {
                let Some((at, before)) = stack.pop() else {
                    let stuck = (0..ops.len()).find(|at| !furthest.contains(at)).map(|at| ops[at]);
                    let last = furthest.last().map(|at| ops[*at]);
                    return Err(format!(
                        "not linearizable: {} of {} operations have an order, which ends with {last:?}; {stuck:?} has no place",
                        furthest.len(),
                        ops.len()
                    ));
                };
                done[at / 64] &= !(1 << (at % 64));
                (value, from) = (before, at + 1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(call: u64, end: u64, value: u64) -> Operation {
        Operation { call, end: Some(end), kind: Kind::Write(value) }
    }

    fn read(call: u64, end: u64, found: impl Into<Option<u64>>) -> Operation {
        Operation { call, end: Some(end), kind: Kind::Read(found.into()) }
    }

    #[test]
    fn right_histories_pass() {
        let unknown = Operation { call: 1, end: None, kind: Kind::Write(9) };
        let right: [&[Operation]; 6] = [
            &[],
            &[read(0, 1, None), write(2, 3, 1), read(4, 5, 1)],
            // Overlapping, so either order will do; and a read may see a write that hasn't ended.
            &[write(0, 9, 1), write(1, 8, 2), read(10, 11, 1)],
            &[write(0, 9, 1), read(1, 2, None), read(3, 4, 1)],
            // A write of which nothing is known happened late, or never.
            &[unknown, read(2, 3, None), read(4, 5, 9)],
            &[unknown, read(2, 3, None)],
        ];
        for history in right {
            assert_eq!(check(history), Ok(()), "{history:?}");
        }
    }

    #[test]
    fn wrong_histories_do_not() {
        let wrong: [&[Operation]; 6] = [
            // Stale; lost; from nowhere; back in time, twice; two orders at once.
            &[write(0, 1, 1), write(2, 3, 2), read(4, 5, 1)],
            &[write(0, 1, 1), read(2, 3, None)],
            &[read(0, 1, 5)],
            &[write(0, 9, 1), read(1, 2, 1), read(3, 4, None)],
            &[write(0, 1, 1), write(2, 9, 2), read(3, 4, 2), read(5, 6, 1)],
            &[write(0, 9, 1), write(0, 9, 2), read(10, 11, 1), read(12, 13, 2)],
        ];
        for history in wrong {
            assert!(check(history).unwrap_err().contains("not linearizable"), "{history:?}");
        }
    }

    #[test]
    fn long_histories_are_checked_to_their_end() {
        // Four clients in step, each writing and reading what the last of them wrote.
        let mut history = Vec::new();
        for round in 0..500 {
            let at = round * 100;
            history.extend((0..4).map(|client| write(at + client, at + 50 + client, round * 4 + client)));
            history.extend((0..4).map(|client| read(at + 60 + client, at + 90, round * 4 + 2)));
        }
        assert_eq!(check(&history), Ok(()));
        history.push(read(60_000, 60_001, 3));
        assert!(check(&history).is_err());
    }
}
