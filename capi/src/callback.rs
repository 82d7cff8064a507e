//! What is so while the library calls the program.
//!
//! A thread that the engine or a replica waits for must not wait for them: [`inside`] tells, and what would block there refuses
//! (`CONSORT_WOULD_DEADLOCK`). And what the library has borrowed only for the call (a delivery, a reader) is *on stage*: calls that come
//! back in from the same thread can reach it there, and nobody else can.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::io;
use std::ptr::NonNull;

use consort::Loan;

/// What a call that came back in wants of what is on stage.
pub(crate) enum Ask<'a> {
    /// The message that is delivered, past the call, if its bytes lie there.
    Keep(*const u8),
    /// More of what is read.
    Read(&'a mut [u8]),
}

/// What it gets.
pub(crate) enum Answer {
    Loan(Option<Loan>),
    Read(io::Result<usize>),
    /// Something else is on stage.
    Nothing,
}

type Actor<'a> = dyn FnMut(Ask<'_>) -> Answer + 'a;

thread_local! {
    static STAGE: Cell<Option<NonNull<Actor<'static>>>> = const { Cell::new(None) };
    static INSIDE: Cell<u32> = const { Cell::new(0) };
    static HOLDS_STATE: Cell<bool> = const { Cell::new(false) };
}

/// Calls the program on a thread that others wait for.
pub(crate) fn within<R>(body: impl FnOnce() -> R) -> R {
    struct Out;
    impl Drop for Out {
        fn drop(&mut self) {
            INSIDE.set(INSIDE.get() - 1);
        }
    }
    INSIDE.set(INSIDE.get() + 1);
    let _out = Out;
    body()
}

/// Whether this thread runs such a call.
#[inline]
pub(crate) fn inside() -> bool {
    INSIDE.get() > 0
}

/// As [`within`], while this thread has a replica's state locked.
pub(crate) fn holding_state<R>(body: impl FnOnce() -> R) -> R {
    struct Out(bool);
    impl Drop for Out {
        fn drop(&mut self) {
            HOLDS_STATE.set(self.0);
        }
    }
    let _out = Out(HOLDS_STATE.replace(true));
    within(body)
}

/// Whether this thread has some replica's state locked: it must not wait for another's, nor for the same again.
pub(crate) fn holds_state() -> bool {
    HOLDS_STATE.get()
}

/// Runs `body` while `actor` is on stage.
pub(crate) fn on_stage<R>(actor: &mut Actor<'_>, body: impl FnOnce() -> R) -> R {
    struct Exit(Option<NonNull<Actor<'static>>>);
    impl Drop for Exit {
        fn drop(&mut self) {
            STAGE.set(self.0);
        }
    }
    let actor = NonNull::from(actor);
    // SAFETY: only the lifetime changes. The pointer is off the stage when this function ends, also by a panic, and `actor` is borrowed
    // exclusively until then.
    let actor = unsafe { std::mem::transmute::<NonNull<Actor<'_>>, NonNull<Actor<'static>>>(actor) };
    let _exit = Exit(STAGE.replace(Some(actor)));
    body()
}

/// Asks what is on stage on this thread; `None` if nothing is.
pub(crate) fn ask(ask: Ask<'_>) -> Option<Answer> {
    struct Back(NonNull<Actor<'static>>);
    impl Drop for Back {
        fn drop(&mut self) {
            STAGE.set(Some(self.0));
        }
    }
    // Off the stage meanwhile: it can't be asked in its own answer.
    let back = Back(STAGE.take()?);
    let mut actor = back.0;
    // SAFETY: `on_stage` is running on this thread, and has it borrowed exclusively for as long; and it was taken off the stage, so this is
    // the one use of it.
    let actor = unsafe { actor.as_mut() };
    Some(actor(ask))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_on_stage_is_reached_and_nobody_after() {
        assert!(ask(Ask::Keep(std::ptr::null())).is_none());
        let mut reads = 0;
        let mut actor = |ask: Ask<'_>| match ask {
            Ask::Read(buffer) => {
                reads += 1;
                Answer::Read(Ok(buffer.len()))
            }
            Ask::Keep(_) => Answer::Nothing,
        };
        on_stage(&mut actor, || {
            assert!(matches!(ask(Ask::Read(&mut [0; 3])), Some(Answer::Read(Ok(3)))));
            on_stage(&mut |_| Answer::Nothing, || {
                assert!(matches!(ask(Ask::Read(&mut [0; 3])), Some(Answer::Nothing)));
            });
            assert!(matches!(ask(Ask::Read(&mut [0; 2])), Some(Answer::Read(Ok(2)))));
            assert!(!inside() && within(inside) && !inside());
        });
        assert!(ask(Ask::Keep(std::ptr::null())).is_none());
        assert_eq!(reads, 2);
    }
}
