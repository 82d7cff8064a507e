//! Keeping the process's signals away from the threads of fabrics.
//!
//! `unsafe` is allowed here (S2) for these calls.
#![allow(unsafe_code)]

/// For the calling thread. Signals of the process are for the threads that it made itself: a handler that ran here would surprise it.
pub(crate) fn block_signals() {
    // SAFETY: a signal set is plain data, for which all zeroes is a valid value; `sigfillset` then fills it.
    let mut all: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `all` is a local that outlives the call.
    unsafe { libc::sigfillset(&raw mut all) };
    // SAFETY: both pointers are valid or null as the call allows; only this thread's mask changes.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, std::ptr::null_mut()) };
}
