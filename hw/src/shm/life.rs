//! The word in which a node's death shows before anything else does (F5).
//!
//! The kernel takes a killed process apart in an order of its own: first each thread's robust futexes are looked through,
//! then the memory is freed, which takes milliseconds if there is much of it, and only then are the sockets closed. So a
//! hang-up tells of a death late. A *robust futex* is a word that says which thread holds it; of a thread that ends while
//! it does, the kernel sets [`DIED`] in the word. The fabric's own thread (`watcher`), which lives as long as the fabric,
//! holds one in the first page of the segment, where the peers look with each poll: a load from a line that
//! nobody writes.
//!
//! - *A set bit is a proof.* Only the kernel sets it, or the node that owns the segment, which can harm no one but itself so. Other
//!   threads of the dying process may run for some moments still, so whoever sees the bit fences as it would a peer that lives.
//! - *A clear one proves nothing.* Where the word can't be had it stays zero, and the hang-up tells, as it does of a thread
//!   that let the word go because its fabric was dropped.
//! - *Sleepers.* The word is among those that a sleeper waits on. The kernel wakes one of them; whoever sees the bit,
//!   woken or awake, wakes all ([`ShmFabric`](super::ShmFabric)). If the one that was woken dies too, the others have the hang-up.
//! - *A child that is forked off* has neither the thread, nor its robust list, nor the segment; its end says nothing of its
//!   parent. *A process that becomes another* (`execve`) loses its threads first: the node has died.
//!
//! The list is the bare one of the kernel (`set_robust_list(2)`, `Documentation/locking/robust-futex-ABI.rst`), set in a thread that
//! uses no robust mutex of the C library, and put back as it was.
//!
//! `unsafe` is allowed here (S2) for these system calls.
#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::ptr;
use std::sync::Arc;

use consort_dataplane::memory::{LINE, WORD};
use rustix::io::Errno;

use super::mapping::OwnMemory;
use super::sleep::{EPOCH, NAP};
use crate::beside::SHM_WORDS;

/// Where the word lies in the segment: read with every poll of the peers, and written at birth and death.
pub(super) const LIFE: usize = 6 * LINE;

const _: () = assert!(EPOCH + 2 * LINE <= LIFE && NAP + 2 * LINE <= LIFE, "a line that nobody writes");
const _: () = assert!(LIFE + WORD <= SHM_WORDS.end, "no other's words");

/// Set by the kernel when the holder ended (`FUTEX_OWNER_DIED`).
const DIED: u64 = 0x4000_0000;

/// The kernel is to wake a waiter then (`FUTEX_WAITERS`).
const WAITERS: u64 = 0x8000_0000;

/// Whether a peer's word says that it has died.
pub(super) fn tells_death(word: u64) -> bool {
    word & DIED != 0
}

/// Holds this node's word. To be kept, and dropped, by the thread that made it.
#[derive(Debug)]
pub(super) struct Life {
    memory: Arc<OwnMemory>,
    list: Box<List>,
    before: *mut libc::c_void,
    /// The list is a thread's.
    _thread: PhantomData<*mut ()>,
}

/// What the kernel reads when the thread ends: `struct robust_list_head`, and the one entry of its list.
#[repr(C)]
#[derive(Debug)]
struct List {
    first: *const Entry,
    /// From an entry to its word.
    offset: libc::c_long,
    pending: *const Entry,
    entry: Entry,
}

/// `struct robust_list`.
#[repr(C)]
#[derive(Debug)]
struct Entry {
    next: *const Entry,
}

/// What the kernel wants to hear for the length of a head.
const HEAD: usize = 3 * size_of::<usize>();
const _: () =
    assert!(HEAD == std::mem::offset_of!(List, entry) && size_of::<libc::c_long>() == size_of::<usize>());

impl Life {
    /// The calling thread holds the word from here on.
    pub(super) fn begin(memory: Arc<OwnMemory>) -> Result<Self, Errno> {
        let mut before = ptr::null_mut();
        let mut len = 0_usize;
        // SAFETY: the kernel writes a pointer and a length to two locals that have their sizes.
        let got = unsafe { libc::syscall(libc::SYS_get_robust_list, 0, &raw mut before, &raw mut len) };
        if got != 0 {
            return Err(last_error());
        }
        let mut list = Box::new(List {
            first: ptr::null(),
            offset: 0,
            pending: ptr::null(),
            entry: Entry { next: ptr::null() },
        });
        let head: *const List = &raw const *list;
        list.entry.next = head.cast(); // a ring: the head begins as an entry does
        list.first = &raw const list.entry;
        let word = memory.futex(LIFE).as_ptr() as usize;
        list.offset = word.wrapping_sub(&raw const list.entry as usize).cast_signed() as libc::c_long;
        let thread = rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs();
        memory.segment().store(LIFE, u64::from(thread) | WAITERS);
        let life = Self { memory, list, before, _thread: PhantomData };
        set((&raw const *life.list).cast_mut().cast())?; // if it fails, the drop takes all back
        Ok(life)
    }
}

/// The thread goes on without, or ends in order.
impl Drop for Life {
    fn drop(&mut self) {
        if set(self.before).is_err() {
            // Not seen: it was taken a moment ago. The list must not go before the thread does.
            Box::leak(std::mem::replace(&mut self.list, Box::new(List::EMPTY)));
        }
        self.memory.segment().store(LIFE, 0);
    }
}

impl List {
    const EMPTY: Self =
        Self { first: ptr::null(), offset: 0, pending: ptr::null(), entry: Entry { next: ptr::null() } };
}

/// Makes `list` the calling thread's robust list.
fn set(list: *mut libc::c_void) -> Result<(), Errno> {
    // SAFETY: the call keeps the address. What is there is a list that its `Life` keeps until the list of before is back, or the
    // thread has ended; or that list, which is its maker's to keep. The kernel looks at it when the thread ends, reads entries that
    // stay in place, and writes to the word alone, which is mapped as long as `Life` keeps the memory, and used as an
    // atomic by all.
    match unsafe { libc::syscall(libc::SYS_set_robust_list, list, HEAD) } {
        0 => Ok(()),
        _ => Err(last_error()),
    }
}

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> Arc<OwnMemory> {
        OwnMemory::new(1 << 14).unwrap()
    }

    #[test]
    fn a_thread_that_ends_holding_the_word_has_died() {
        let memory = memory();
        let theirs = memory.clone();
        let held = std::thread::spawn(move || {
            let life = Life::begin(theirs.clone()).unwrap();
            let held = theirs.segment().load(LIFE);
            std::mem::forget(life);
            held
        });
        let held = held.join().unwrap();
        assert!(held & WAITERS != 0 && held & !WAITERS != 0 && !tells_death(held));
        // The thread is joined when it runs no more code of ours, and the kernel may have the list still to look at.
        while !tells_death(memory.segment().load(LIFE)) {
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_thread_that_lets_the_word_go_has_not() {
        let memory = memory();
        let theirs = memory.clone();
        let ended = std::thread::spawn(move || {
            drop(Life::begin(theirs.clone()).unwrap());
            drop(Life::begin(theirs).unwrap());
            rustix::thread::gettid()
        });
        let thread = ended.join().unwrap();
        // Gone from the kernel's list of threads: what it does at a thread's end is done.
        while std::fs::exists(format!("/proc/self/task/{}", thread.as_raw_nonzero())).unwrap() {
            std::thread::yield_now();
        }
        assert_eq!(memory.segment().load(LIFE), 0);
    }
}
