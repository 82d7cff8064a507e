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

/// What a thread knows of the calls of the program that it is in, in one place: in a shared library finding it costs a call.
pub(crate) struct Calls {
    stage: Cell<Option<NonNull<Actor<'static>>>>,
    inside: Cell<u32>,
    holds_state: Cell<bool>,
}

thread_local! {
    static CALLS: Calls =
        const { Calls { stage: Cell::new(None), inside: Cell::new(0), holds_state: Cell::new(false) } };
}

/// For who calls the program many times, of one thread.
#[inline]
pub(crate) fn calls<R>(body: impl FnOnce(&Calls) -> R) -> R {
    CALLS.with(body)
}

impl Calls {
    /// As [`within`].
    #[inline]
    pub(crate) fn within<R>(&self, body: impl FnOnce() -> R) -> R {
        struct Out<'a>(&'a Cell<u32>);
        impl Drop for Out<'_> {
            fn drop(&mut self) {
                self.0.set(self.0.get() - 1);
            }
        }
        self.inside.set(self.inside.get() + 1);
        let _out = Out(&self.inside);
        body()
    }

    /// As [`on_stage`].
    #[inline]
    pub(crate) fn on_stage<R>(&self, actor: &mut Actor<'_>, body: impl FnOnce() -> R) -> R {
        struct Exit<'a>(&'a Calls, Option<NonNull<Actor<'static>>>);
        impl Drop for Exit<'_> {
            fn drop(&mut self) {
                self.0.stage.set(self.1);
            }
        }
        let actor = NonNull::from(actor);
        // SAFETY: only the lifetime changes. The pointer is off the stage when this function ends, also by a panic, and `actor` is borrowed
        // exclusively until then.
        let actor = unsafe { std::mem::transmute::<NonNull<Actor<'_>>, NonNull<Actor<'static>>>(actor) };
        let _exit = Exit(self, self.stage.replace(Some(actor)));
        body()
    }
}

/// Calls the program on a thread that others wait for.
pub(crate) fn within<R>(body: impl FnOnce() -> R) -> R {
    calls(|calls| calls.within(body))
}

/// Whether this thread runs such a call.
#[inline]
pub(crate) fn inside() -> bool {
    calls(|calls| calls.inside.get() > 0)
}

/// As [`within`], while this thread has a replica's state locked.
pub(crate) fn holding_state<R>(body: impl FnOnce() -> R) -> R {
    struct Out(bool);
    impl Drop for Out {
        fn drop(&mut self) {
            calls(|calls| calls.holds_state.set(self.0));
        }
    }
    let _out = Out(calls(|calls| calls.holds_state.replace(true)));
    within(body)
}

/// Whether this thread has some replica's state locked: it must not wait for another's, nor for the same again.
pub(crate) fn holds_state() -> bool {
    calls(|calls| calls.holds_state.get())
}

/// Runs `body` while `actor` is on stage.
pub(crate) fn on_stage<R>(actor: &mut Actor<'_>, body: impl FnOnce() -> R) -> R {
    calls(|calls| calls.on_stage(actor, body))
}

/// Asks what is on stage on this thread; `None` if nothing is.
pub(crate) fn ask(ask: Ask<'_>) -> Option<Answer> {
    struct Back(NonNull<Actor<'static>>);
    impl Drop for Back {
        fn drop(&mut self) {
            calls(|calls| calls.stage.set(Some(self.0)));
        }
    }
    // Off the stage meanwhile: it can't be asked in its own answer.
    let back = Back(calls(|calls| calls.stage.take())?);
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
