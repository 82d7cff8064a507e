//! What a C program has on loan: room to write a message in, messages to read. Made and given back once for each message, so it costs no
//! lock, no allocation and no shared counter.
//!
//! A loan lies in a *place* of a table that is never freed. The program has its *ticket*: the number of the place, and which of
//! the loans it is that lay there. Taking one out compares and swaps the place's word, so of two who give the same loan back, by two copies
//! of one struct or on two threads, one gets it, and the other learns that it is gone.
//!
//! ```text
//!            put: only who has popped the place from a list of free ones
//! word even ────────────────────────────────────────────────────────────► word odd
//!           ◄────────────────────────────────────────────────────────────
//!            take: who swaps the word; then the place goes on a list of free ones
//! ```
//! Threads keep lists of places of their own.
#![allow(unsafe_code)]

use std::cell::{Cell, UnsafeCell};
use std::mem::{ManuallyDrop, MaybeUninit};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

const PLACE_BITS: u32 = 20;
const CHUNK: usize = 1 << 10;
const CHUNKS: usize = (1 << PLACE_BITS) / CHUNK;

/// So many places a thread gets at once, and keeps twice as many of them.
const HERE: usize = 32;

/// Places that no thread has.
pub(crate) type Free = Mutex<Vec<u32>>;

/// A thread's list of free places. They are free for others when the thread ends.
pub(crate) struct Here {
    places: [Cell<u32>; 2 * HERE],
    len: Cell<usize>,
    free: &'static Free,
}

impl Here {
    pub(crate) const fn new(free: &'static Free) -> Self {
        Self { places: [const { Cell::new(0) }; 2 * HERE], len: Cell::new(0), free }
    }

    #[inline(always)]
    fn pop(&self) -> Option<u32> {
        let place = self.places.get(self.len.get().wrapping_sub(1))?;
        self.len.set(self.len.get() - 1);
        Some(place.get())
    }

    /// False: there is no room for it.
    #[inline(always)]
    fn push(&self, at: u32) -> bool {
        let Some(place) = self.places.get(self.len.get()) else { return false };
        place.set(at);
        self.len.set(self.len.get() + 1);
        true
    }

    /// Leaves so many here, and the others to all threads.
    #[cold]
    fn leave(&self, here: usize) {
        let spare = (here..self.len.get()).map_while(|_| self.pop());
        self.free.lock().unwrap_or_else(PoisonError::into_inner).extend(spare);
    }
}

impl Drop for Here {
    fn drop(&mut self) {
        self.leave(0);
    }
}

/// What may be lent. Each kind has lists of free places of its own.
pub(crate) trait Loanable: Send + Sized + 'static {
    /// This thread's list; `None` if it is gone, while the thread ends. (No field with the key of it: that would be a call for each loan.)
    fn here<R>(body: impl FnOnce(&Here) -> R) -> Option<R>;

    /// Where all those lists get their places from.
    fn free() -> &'static Free;
}

struct Place<T> {
    word: AtomicU64,
    loan: UnsafeCell<MaybeUninit<T>>,
}

// SAFETY: `loan` is touched by one thread at a time: see `Vacant::fill` and `Lent::take`; it may go from one to another because `T` may.
unsafe impl<T: Send> Sync for Place<T> {}

/// All loans of one kind.
pub(crate) struct Lent<T: 'static> {
    chunks: [OnceLock<Box<[Place<T>; CHUNK]>>; CHUNKS],
    /// Places from here on were never used.
    next: AtomicUsize,
}

impl<T: Loanable> Lent<T> {
    pub(crate) const fn new() -> Self {
        Self { chunks: [const { OnceLock::new() }; CHUNKS], next: AtomicUsize::new(0) }
    }

    /// Room for a loan; `None` if a million are out.
    #[inline(always)]
    pub(crate) fn vacant(&'static self) -> Option<Vacant<T>> {
        let at = self.free_place()?;
        Some(Vacant { lent: self, at, place: self.place(at)? })
    }

    /// Takes it back. `None` if it isn't lent (any more).
    #[inline(always)]
    pub(crate) fn take(&self, ticket: u64) -> Option<T> {
        let (at, word) = ((ticket % (1 << PLACE_BITS)) as u32, ticket >> PLACE_BITS);
        let place = self.place(at).filter(|_| word % 2 == 1)?;
        let free = (word + 1) & u64::MAX >> PLACE_BITS;
        place.word.compare_exchange(word, free, Ordering::Acquire, Ordering::Relaxed).ok()?;
        // SAFETY: the word was odd, so a loan lies there, and this thread alone made it even; nobody puts another before the place is
        // on a list again.
        let loan = unsafe { place.loan.get().cast::<T>().read() };
        self.give_back(at);
        Some(loan)
    }

    /// Looks at a loan, which then lies there again under the same ticket. Meanwhile it isn't lent, for others. `None` if it is not lent.
    pub(crate) fn with<R>(&self, ticket: u64, body: impl FnOnce(&mut T) -> R) -> Option<R> {
        let (at, word) = ((ticket % (1 << PLACE_BITS)) as u32, ticket >> PLACE_BITS);
        let place = self.place(at).filter(|_| word % 2 == 1)?;
        let busy = (word + 1) & u64::MAX >> PLACE_BITS;
        place.word.compare_exchange(word, busy, Ordering::Acquire, Ordering::Relaxed).ok()?;
        // SAFETY: as in `take`: this thread alone made the word even, so nobody else takes; and the place is on no list, so nobody puts.
        let loan = unsafe { &mut *place.loan.get().cast::<T>() };
        let back = Back { word: &place.word, value: word };
        let result = body(loan);
        drop(back);
        Some(result)
    }

    #[inline(always)]
    fn place(&self, at: u32) -> Option<&Place<T>> {
        let at = at as usize;
        self.chunks[at / CHUNK].get().map(|chunk| &chunk[at % CHUNK])
    }

    #[inline(always)]
    fn free_place(&self) -> Option<u32> {
        T::here(Here::pop).flatten().or_else(|| self.more())
    }

    #[cold]
    fn more(&self) -> Option<u32> {
        let mut free = T::free().lock().unwrap_or_else(PoisonError::into_inner);
        let mut got: Vec<u32> = (0..HERE).map_while(|_| free.pop()).collect();
        drop(free);
        if got.is_empty() {
            let first = self.next.fetch_add(HERE, Ordering::Relaxed);
            if first >= CHUNK * CHUNKS {
                self.next.fetch_sub(HERE, Ordering::Relaxed);
                return None;
            }
            self.chunks[first / CHUNK].get_or_init(|| {
                let place =
                    || Place { word: AtomicU64::new(0), loan: UnsafeCell::new(MaybeUninit::uninit()) };
                let chunk: Box<[_]> = (0..CHUNK).map(|_| place()).collect();
                chunk.try_into().unwrap_or_else(|_| unreachable!("it has as many places as were made"))
            });
            got = (first as u32..(first + HERE) as u32).rev().collect(); // a chunk is a multiple of HERE
        }
        let one = got.pop();
        // A list that is empty has room for all of them; a thread that ends has none.
        let kept = T::here(|here| got.iter().take_while(|at| here.push(**at)).count());
        let rest = got.drain(kept.unwrap_or(0)..);
        T::free().lock().unwrap_or_else(PoisonError::into_inner).extend(rest);
        one
    }

    #[inline(always)]
    fn give_back(&self, at: u32) {
        if T::here(|here| here.push(at)) != Some(true) {
            self.spare(at);
        }
    }

    /// A thread that only takes must not end up with all of them.
    #[cold]
    fn spare(&self, at: u32) {
        let kept = T::here(|here| {
            here.leave(HERE);
            here.push(at)
        });
        if kept != Some(true) {
            T::free().lock().unwrap_or_else(PoisonError::into_inner).push(at);
        }
    }
}

/// Stores a place's word when dropped, also by a panic.
struct Back<'a> {
    word: &'a AtomicU64,
    value: u64,
}

impl Drop for Back<'_> {
    fn drop(&mut self) {
        self.word.store(self.value, Ordering::Release); // pairs with the Acquire in `take`
    }
}

/// A place that is free, and this value's alone.
pub(crate) struct Vacant<T: Loanable> {
    lent: &'static Lent<T>,
    at: u32,
    place: &'static Place<T>,
}

impl<T: Loanable> Vacant<T> {
    /// Lends it. Returns its ticket, which is not 0.
    #[inline(always)]
    pub(crate) fn fill(self, loan: T) -> u64 {
        let vacant = ManuallyDrop::new(self);
        let (at, place) = (vacant.at, vacant.place);
        let word = place.word.load(Ordering::Relaxed) + 1;
        // SAFETY: this thread popped the place from a list of free ones, where each is once, so nobody else puts; and as its word is even
        // nobody takes. What lay there was moved out.
        unsafe { place.loan.get().cast::<T>().write(loan) };
        place.word.store(word, Ordering::Release); // pairs with the Acquire in `take`
        word << PLACE_BITS | u64::from(at)
    }
}

impl<T: Loanable> Drop for Vacant<T> {
    fn drop(&mut self) {
        self.lent.give_back(self.at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    thread_local! {
        static HERE_TOO: Here = const { Here::new(&FREE_TOO) };
    }
    static FREE_TOO: Free = Mutex::new(Vec::new());
    static BOXES: Lent<Box<u64>> = Lent::new();

    impl Loanable for Box<u64> {
        fn here<R>(body: impl FnOnce(&Here) -> R) -> Option<R> {
            HERE_TOO.try_with(body).ok()
        }

        fn free() -> &'static Free {
            &FREE_TOO
        }
    }

    thread_local! {
        static HERE_ALONE: Here = const { Here::new(&FREE_ALONE) };
    }
    static FREE_ALONE: Free = Mutex::new(Vec::new());
    static ALONE: Lent<u64> = Lent::new();

    impl Loanable for u64 {
        fn here<R>(body: impl FnOnce(&Here) -> R) -> Option<R> {
            HERE_ALONE.try_with(body).ok()
        }

        fn free() -> &'static Free {
            &FREE_ALONE
        }
    }

    fn put(number: u64) -> u64 {
        BOXES.vacant().unwrap().fill(Box::new(number))
    }

    #[test]
    fn a_loan_comes_back_once() {
        let first = put(1);
        let second = put(2);
        assert_eq!((BOXES.take(first), BOXES.take(first)), (Some(Box::new(1)), None));
        let third = put(3);
        assert_eq!(
            (third % (1 << PLACE_BITS), third == first),
            (first % (1 << PLACE_BITS), false),
            "the same place"
        );
        assert_eq!(
            (BOXES.take(first), BOXES.take(third), BOXES.take(second)),
            (None, Some(Box::new(3)), Some(Box::new(2)))
        );
        assert_eq!((BOXES.take(0), BOXES.take(u64::MAX)), (None, None));
    }

    #[test]
    fn of_two_who_give_one_back_one_does() {
        for round in 0..2_000 {
            let ticket = put(round);
            let taken = std::thread::scope(|scope| {
                let other = scope.spawn(|| BOXES.take(ticket).is_some());
                let here = BOXES.take(ticket).is_some();
                (here, other.join().unwrap())
            });
            assert!(matches!(taken, (true, false) | (false, true)), "{taken:?}");
        }
    }

    #[test]
    fn a_thread_that_ends_leaves_its_places_to_others() {
        for number in 0..100 {
            let thread = std::thread::spawn(move || {
                let ticket = ALONE.vacant().unwrap().fill(number);
                assert_eq!(ALONE.take(ticket), Some(number));
            });
            thread.join().unwrap();
        }
        assert_eq!(ALONE.next.load(Ordering::Relaxed), HERE, "they are used again");
    }

    #[test]
    fn places_go_round_between_threads() {
        let (give, take) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for at in 0..100_000 {
                    give.send(put(at)).unwrap();
                }
            });
            for (at, ticket) in take.into_iter().enumerate() {
                assert_eq!(BOXES.take(ticket), Some(Box::new(at as u64)));
            }
        });
    }
}
