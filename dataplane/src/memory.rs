//! Memory that is published: a node's own [`Segment`], and its view of a peer's, a [`Mirror`].
//!
//! Both are runs of 8-byte words. A word is read and written atomically, always: whoever shares the memory
//! (another thread, another process, a network card) changes whole words (F1). Bytes between words, the rings'
//! payload, are handed out as plain slices, but only by unsafe functions whose callers hold the proof that nobody
//! writes there at the time: the sender until `head` covers them, nobody from then until every member released them
//! (D11).
//!
//! This is one of the few modules in which `unsafe` is allowed (S2). Its invariant: `base` points to `len` bytes,
//! aligned to 8, that stay mapped while `keep` lives; no bytes of it are touched by other than the functions here.
#![allow(unsafe_code)]

use std::any::Any;
use std::fmt;
use std::ops::Range;
use std::ptr::NonNull;

use crate::sync::{AtomicU64, Ordering};
use std::sync::Arc;

/// Bytes in a word.
pub const WORD: usize = 8;

/// Bytes in a cache line, as the layouts here assume; wrong is slow, not unsound.
pub const LINE: usize = 64;

/// A mapping or allocation and what keeps it alive.
#[derive(Clone)]
struct Memory {
    base: NonNull<AtomicU64>,
    len: usize,
    /// Dropping the last clone unmaps.
    #[allow(dead_code, reason = "held for its drop")]
    keep: Arc<dyn Any + Send + Sync>,
}

// SAFETY: the words are atomics, and slices are handed out only by unsafe functions that make their callers
// prove exclusive or read-only use, so the pointer may go to and be used from any thread; `keep` is Send + Sync.
unsafe impl Send for Memory {}
// SAFETY: as above; no method changes `Memory` itself through a shared reference.
unsafe impl Sync for Memory {}

impl Memory {
    fn word(&self, offset: usize) -> &AtomicU64 {
        assert!(
            offset.is_multiple_of(WORD) && offset < self.len,
            "word at byte {offset} of a segment of {} bytes",
            self.len
        );
        // SAFETY: the assertion keeps the offset inside the `len` bytes that `base` stands for.
        let at = unsafe { self.base.add(offset / WORD) };
        // SAFETY: in bounds and aligned to a word; mapped while `self` lives; only ever used as an atomic.
        unsafe { at.as_ref() }
    }

    fn checked(&self, range: &Range<usize>) {
        assert!(
            range.start <= range.end && range.end <= self.len,
            "bytes {range:?} of a segment of {} bytes",
            self.len
        );
    }
}

/// The memory that this node owns and publishes. Clones are handles to the same memory.
#[derive(Clone)]
pub struct Segment(Memory);

/// A peer's segment as this node sees it: for reading only (F2). Clones are handles to the same memory.
#[derive(Clone)]
pub struct Mirror(Memory);

impl Segment {
    /// Private memory, zeroed, page-aligned; `len` is rounded up to whole pages (4,096 bytes).
    ///
    /// It is reserved here and backed by the kernel at first touch; see [`Segment::prefault`].
    pub fn private(len: usize) -> Self {
        let pages = Pages::zeroed(len);
        let (base, len) = (pages.base(), pages.len());
        Self(Memory { base, len, keep: Arc::new(pages) })
    }

    /// Takes over memory that something else mapped (a memfd, a registered region).
    ///
    /// # Safety
    /// `base` must be aligned to 8 and point to `len` bytes that stay readable and writable until `keep` is dropped,
    /// that nothing else in this process turns into references, and that no other process writes.
    pub unsafe fn from_mapping(base: NonNull<u8>, len: usize, keep: Arc<dyn Any + Send + Sync>) -> Self {
        Self(Memory { base: base.cast(), len, keep })
    }

    /// The same memory, for reading.
    pub fn mirror(&self) -> Mirror {
        Mirror(self.0.clone())
    }

    /// Bytes in it.
    pub fn size(&self) -> usize {
        self.0.len
    }

    /// Reads the word at byte `offset`. Panics if that is no word of the segment.
    pub fn load(&self, offset: usize) -> u64 {
        self.0.word(offset).load(Ordering::Relaxed) // only the owner writes: it sees its own stores
    }

    /// Stores the word at byte `offset`, after everything that this thread stored before it.
    /// Panics if that is no word of the segment.
    pub fn store(&self, offset: usize, value: u64) {
        self.0.word(offset).store(value, Ordering::Release); // pairs with the Acquire in Mirror::load
    }

    /// Copies `bytes` (whole words) to `offset`, word by word, in ascending order: how a fabric lands what a peer
    /// published into the memory behind that peer's [`Mirror`].
    ///
    /// Panics unless offset and length are multiples of 8 within the segment.
    pub fn store_words(&self, offset: usize, bytes: &[u8]) {
        self.0.checked(&(offset..offset + bytes.len()));
        assert!(bytes.len().is_multiple_of(WORD), "{} bytes are no whole words", bytes.len());
        for (at, word) in bytes.chunks_exact(WORD).enumerate() {
            let value =
                u64::from_ne_bytes([word[0], word[1], word[2], word[3], word[4], word[5], word[6], word[7]]);
            self.store(offset + at * WORD, value);
        }
    }

    /// The bytes in `range`, for reading.
    ///
    /// # Safety
    /// Nobody may write to `range` while the slice lives.
    pub unsafe fn bytes(&self, range: Range<usize>) -> &[u8] {
        // SAFETY: the caller's promise is this one's.
        unsafe { bytes(&self.0, range) }
    }

    /// The bytes in `range`, for writing.
    ///
    /// # Safety
    /// Nobody may read or write `range` while the slice lives; the memory outlives it (the borrow of `self` is that).
    #[allow(
        clippy::mut_from_ref,
        reason = "disjoint parts are lent to different threads; the caller proves it"
    )]
    pub unsafe fn bytes_mut(&self, range: Range<usize>) -> &mut [u8] {
        self.0.checked(&range);
        // SAFETY: checked above to lie within the `len` bytes at `base`.
        let start = unsafe { self.0.base.as_ptr().cast::<u8>().add(range.start) };
        // SAFETY: in bounds as above, mapped while `self` lives, and the caller promises exclusive use.
        unsafe { std::slice::from_raw_parts_mut(start, range.len()) }
    }

    /// The address of the first byte: for system calls and devices that take addresses.
    pub fn as_ptr(&self) -> *mut u8 {
        self.0.base.as_ptr().cast()
    }

    /// Touches every page in `range`, so that no page fault comes later, in the middle of a message.
    pub fn prefault(&self, range: Range<usize>) {
        self.0.checked(&range);
        for page in range.step_by(4096) {
            // Writes the page without changing it, whoever else may use the word. Adding zero would be optimised away.
            let word = self.0.word(page / WORD * WORD);
            let value = word.load(Ordering::Relaxed);
            let same = std::hint::black_box(value);
            let _ = word.compare_exchange(value, same, Ordering::Relaxed, Ordering::Relaxed);
        }
    }
}

impl Mirror {
    /// A peer's memory, mapped read-only.
    ///
    /// # Safety
    /// `base` must be aligned to 8 and point to `len` bytes that stay readable until `keep` is dropped (a file that
    /// its owner could shrink is none: check the seals first, S3).
    pub unsafe fn from_mapping(base: NonNull<u8>, len: usize, keep: Arc<dyn Any + Send + Sync>) -> Self {
        Self(Memory { base: base.cast(), len, keep })
    }

    /// Bytes in it.
    pub fn size(&self) -> usize {
        self.0.len
    }

    /// Reads the word at byte `offset`, and with it everything that its writer stored before it.
    /// Panics if that is no word of the mirror.
    pub fn load(&self, offset: usize) -> u64 {
        self.0.word(offset).load(Ordering::Acquire) // pairs with the Release in Segment::store
    }

    /// Appends the words in `range` to `bytes`, each as it was at some time from now on, whoever writes there meanwhile.
    /// Panics unless `range` is whole words of the mirror.
    pub fn append_words(&self, range: Range<usize>, bytes: &mut Vec<u8>) {
        assert!(range.len().is_multiple_of(WORD), "bytes {range:?} are no whole words");
        bytes.reserve(range.len());
        for offset in range.step_by(WORD) {
            bytes.extend_from_slice(&self.load(offset).to_ne_bytes());
        }
    }

    /// The bytes in `range`.
    ///
    /// # Safety
    /// Nobody may write to `range` while the slice lives: the caller must have read a `head` that covers it
    /// and must not have released it.
    pub unsafe fn bytes(&self, range: Range<usize>) -> &[u8] {
        // SAFETY: the caller's promise is this one's.
        unsafe { bytes(&self.0, range) }
    }

    /// Asks the processor to fetch the line that holds byte `offset`; does nothing beyond the end.
    #[inline]
    pub fn prefetch(&self, offset: usize) {
        #[cfg(all(target_arch = "x86_64", not(miri), not(loom)))]
        if offset < self.0.len {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            // SAFETY: in bounds by the check above.
            let at = unsafe { self.0.base.as_ptr().cast::<i8>().add(offset) };
            // SAFETY: a prefetch has no effect that a program can observe.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(at) };
        }
        #[cfg(not(all(target_arch = "x86_64", not(miri), not(loom))))]
        let _ = offset;
    }

    /// The address of the first byte: for system calls that take addresses.
    pub fn as_ptr(&self) -> *const u8 {
        self.0.base.as_ptr().cast()
    }
}

/// # Safety
/// Nobody may write to `range` while the slice lives.
unsafe fn bytes(memory: &Memory, range: Range<usize>) -> &[u8] {
    memory.checked(&range);
    // SAFETY: checked above to lie within the `len` bytes at `base`.
    let start = unsafe { memory.base.as_ptr().cast::<u8>().add(range.start) };
    // SAFETY: in bounds as above, mapped while `memory` lives, and the caller promises that nobody writes.
    unsafe { std::slice::from_raw_parts(start, range.len()) }
}

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Segment({} bytes)", self.0.len)
    }
}

impl fmt::Debug for Mirror {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mirror({} bytes)", self.0.len)
    }
}

#[cfg(not(loom))]
mod pages {
    use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
    use std::ptr::NonNull;

    use super::AtomicU64;

    /// Zeroed, page-aligned memory of this process.
    pub(super) struct Pages {
        base: NonNull<AtomicU64>,
        layout: Layout,
    }

    // SAFETY: `Pages` only owns the allocation; it never looks at the bytes.
    unsafe impl Send for Pages {}
    // SAFETY: as above.
    unsafe impl Sync for Pages {}

    impl Pages {
        pub(super) fn zeroed(len: usize) -> Self {
            let layout = Layout::from_size_align(len.max(1).next_multiple_of(4096), 4096)
                .unwrap_or_else(|e| panic!("a segment of {len} bytes: {e}"));
            // SAFETY: the layout's size is at least one page, so not zero.
            let memory = unsafe { alloc_zeroed(layout) };
            let Some(base) = NonNull::new(memory.cast::<AtomicU64>()) else { handle_alloc_error(layout) };
            Self { base, layout }
        }

        pub(super) fn base(&self) -> NonNull<AtomicU64> {
            self.base
        }

        pub(super) fn len(&self) -> usize {
            self.layout.size()
        }
    }

    impl Drop for Pages {
        fn drop(&mut self) {
            // SAFETY: `base` came from `alloc_zeroed` with this very layout.
            unsafe { dealloc(self.base.as_ptr().cast(), self.layout) };
        }
    }
}

#[cfg(loom)]
mod pages {
    use std::ptr::NonNull;

    use super::AtomicU64;

    /// Loom's atomics are no plain words: an array of them stands for the memory, and no bytes can be had.
    pub(super) struct Pages(Box<[AtomicU64]>);

    impl Pages {
        pub(super) fn zeroed(len: usize) -> Self {
            Self((0..len.div_ceil(super::WORD)).map(|_| AtomicU64::new(0)).collect())
        }

        pub(super) fn base(&self) -> NonNull<AtomicU64> {
            NonNull::from(&self.0[0])
        }

        pub(super) fn len(&self) -> usize {
            self.0.len() * super::WORD
        }
    }
}

use pages::Pages;

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn words_written_are_words_read() {
        let own = Segment::private(10_000);
        assert_eq!(own.size(), 12_288);
        own.prefault(0..own.size());
        own.store(16, 7);
        own.store_words(24, &[1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
        let mirror = own.mirror();
        assert_eq!(
            [mirror.load(16), mirror.load(24), mirror.load(32)],
            [7, u64::from_ne_bytes(1u64.to_le_bytes()), 2]
        );
        let mut bytes = vec![9];
        mirror.append_words(32..48, &mut bytes);
        assert_eq!(bytes, [9, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        drop(own);
        assert_eq!(mirror.load(16), 7, "the mirror keeps the memory");
    }

    #[test]
    #[should_panic(expected = "of a segment of 4096 bytes")]
    fn a_word_out_of_bounds_is_refused() {
        Segment::private(1).load(4096);
    }

    #[test]
    #[should_panic(expected = "of a segment of 4096 bytes")]
    fn a_word_off_its_boundary_is_refused() {
        Segment::private(1).load(4);
    }
}
