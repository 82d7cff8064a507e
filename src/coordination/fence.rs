//! [`Fence`]: what a resource does with tokens.

use std::sync::{Mutex, PoisonError};

use super::state::Token;

/// Someone comes with the token of a grant that is over.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{came} is over: {last} has been here since; give up the work, and take the lock again for more")]
pub struct Stale {
    /// With what it came.
    pub came: Token,
    /// The greatest that has come.
    pub last: Token,
}

/// Keeps a resource from those whose grant is over: lives where the resource is, which need not be a member of any group. One for each
/// lock; what it remembers has to last as long as the resource.
#[derive(Debug, Default)]
pub struct Fence(Mutex<Option<Token>>);

impl Fence {
    /// Of a resource that was last used with that token.
    pub fn after(last: Token) -> Self {
        Self(Mutex::new(Some(last)))
    }

    /// Does something to the resource for a holder of that token, unless a later one was here. One at a time.
    ///
    /// # Errors
    /// A later one was here; nothing is done.
    pub fn pass<T>(&self, came: Token, work: impl FnOnce() -> T) -> Result<T, Stale> {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner); // one word
        match *last {
            Some(last) if last > came => Err(Stale { came, last }),
            _ => {
                *last = Some(came);
                Ok(work())
            }
        }
    }

    /// The greatest token that has come.
    pub fn last(&self) -> Option<Token> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_passes_after_a_later_one() {
        let [first, second, third] = [(1, 9), (2, 0), (2, 1)].map(|(view, place)| Token { view, place });
        let fence = Fence::after(first);
        assert_eq!(fence.pass(second, || 1), Ok(1));
        assert_eq!(fence.pass(second, || 2), Ok(2), "the same may come again");
        assert_eq!(fence.pass(first, || 3), Err(Stale { came: first, last: second }));
        assert_eq!((fence.pass(third, || 4), fence.last()), (Ok(4), Some(third)));
    }
}
