//! Memory that two processes share, and the system calls that make it safe to (S3).
//!
//! A node's segment is a memfd. Its owner maps it for writing and *then* seals it: from there on nobody can change its
//! size (so reading it can't fault) and nobody, given the descriptor, can map it for writing. A peer verifies size and
//! seals before it maps, so it depends on the kernel's word and not on the peer's.
//!
//! # Fencing (F4)
//!
//! The memory behind a mirror is the peer's own: a peer that is alive writes there whatever we think of it. So
//! [`PeerMemory::freeze`] copies it aside and moves the copy over the mapping in one `mremap`: all handles
//! to the mirror, loans included, see the same addresses and from then on bytes that nobody writes. A thread that reads
//! meanwhile sees the one or the other, since the kernel exchanges the mappings under the lock that page faults take.
//! Only pages that were ever written are copied. A peer whose process is known to have ended writes no more, and is
//! not copied at all (its memory lives as long as our mapping).
//!
//! What order (F1) does the copy keep, if the peer goes on writing while it is made? Pages are copied in
//! ascending order, and each until two readings of it agree (or a bound is met). So a word never vouches in the copy
//! for bytes *behind* it that the copy lacks: sessions lay out their counters in front of their rings, and ring bytes once
//! published stay until we release them (D11). Counters that straddle pages may come from slightly different
//! moments: so a session is wedged first and its peers fenced then (V2).
//!
//! `unsafe` is allowed here (S2). Invariant of both types: `base` is the start of a mapping of `len` bytes, whole
//! pages, that this value alone unmaps.
#![allow(unsafe_code)]

use std::alloc::{Layout, handle_alloc_error};
use std::ffi::c_void;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use consort_dataplane::fabric::FABRIC_PAGE;
use consort_dataplane::memory::{Mirror, Segment, WORD};
use rustix::fs::{MemfdFlags, SealFlags, SeekFrom};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, MprotectFlags, MremapFlags, ProtFlags};

use super::options::ShmError;

const PAGE: usize = 4096;
const PAGE_WORDS: usize = PAGE / WORD;

/// Readings of one page before the last is taken as it is.
const READINGS_MAX: usize = 16;

/// What a segment must be sealed against before anyone maps it.
const SEALS: SealFlags =
    SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::FUTURE_WRITE).union(SealFlags::SEAL);

/// This node's own segment.
#[derive(Debug)]
pub(super) struct OwnMemory {
    base: NonNull<u8>,
    len: usize,
    file: OwnedFd,
}

/// A peer's segment, mapped read-only.
#[derive(Debug)]
pub(super) struct PeerMemory {
    base: NonNull<u8>,
    len: usize,
    file: OwnedFd,
}

/// Why a peer's segment is not mapped.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("its segment has {actual} bytes where it promised {promised}")]
    Size { promised: u64, actual: u64 },
    #[error("its segment of {bytes} bytes is outside what this node maps ({FABRIC_PAGE} to {limit} bytes)")]
    Limit { bytes: u64, limit: usize },
    #[error("its segment is not sealed memory: it could shrink under the reader")]
    Seals,
    #[error("the kernel does not map its segment: {0}")]
    Kernel(#[from] Errno),
}

// SAFETY: the value only stands for the mapping; the bytes are reached through `Segment`, which is Send + Sync.
unsafe impl Send for OwnMemory {}
// SAFETY: as above.
unsafe impl Sync for OwnMemory {}
// SAFETY: the value only stands for the mapping; the bytes are reached through `Mirror`, which is Send + Sync.
unsafe impl Send for PeerMemory {}
// SAFETY: as above; `freeze` exchanges the mapping in one system call that leaves it readable throughout.
unsafe impl Sync for PeerMemory {}

impl OwnMemory {
    /// Zeroed memory of `bytes`, rounded up to whole pages, that can be shared and is sealed.
    pub(super) fn new(bytes: usize) -> Result<Arc<Self>, ShmError> {
        let size = || ShmError::Size { bytes };
        let len = bytes.checked_next_multiple_of(PAGE).ok_or_else(size)?;
        if len < FABRIC_PAGE || isize::try_from(len).is_err() {
            return Err(size());
        }
        let failed = |step| move |errno: Errno| ShmError::memory(step, len, errno);
        let file = memfd().map_err(failed("memfd_create"))?;
        rustix::fs::ftruncate(&file, len as u64).map_err(failed("ftruncate"))?;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory that is in use.
        let base = unsafe {
            rustix::mm::mmap(
                ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &file,
                0,
            )
        }
        .map_err(failed("mmap"))?;
        let base = NonNull::new(base.cast()).ok_or_else(size)?;
        let memory = Self { base, len, file };
        // After our own writable mapping: this seal forbids any further one.
        rustix::fs::fcntl_add_seals(&memory.file, SEALS).map_err(failed("sealing (F_ADD_SEALS)"))?;
        advise(base, len, Advice::LinuxHugepage);
        // A forked child must not write to memory that peers take for its parent's alone.
        advise(base, len, Advice::LinuxDontFork);
        Ok(Arc::new(memory))
    }

    /// The memory, to write and to publish.
    pub(super) fn segment(self: &Arc<Self>) -> Segment {
        // SAFETY: `base` is page-aligned, has `len` bytes that are readable and writable until `self` is dropped, which
        // the handle in `keep` prevents; this process uses them through `Segment` alone, and the seals keep
        // every other from writing.
        unsafe { Segment::from_mapping(self.base, self.len, self.clone()) }
    }

    /// The descriptor to hand to peers.
    pub(super) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// The 32-bit half of the word at `offset` that counts: what futex calls work on.
    pub(super) fn futex(&self, offset: usize) -> &std::sync::atomic::AtomicU32 {
        assert!(offset.is_multiple_of(WORD) && offset < self.len, "no word at byte {offset}");
        // SAFETY: in bounds by the assertion, so inside the mapping.
        let at = unsafe { self.base.as_ptr().add(offset + super::sleep::FUTEX_HALF) };
        // SAFETY: aligned to 4, mapped while `self` is borrowed, and memory that is accessed as atomics only. The
        // reference serves as an address for the kernel; nothing here loads or stores through it.
        unsafe { std::sync::atomic::AtomicU32::from_ptr(at.cast()) }
    }
}

impl PeerMemory {
    /// Maps what a peer sent, if it is what it `promised` and no more than `limit` bytes.
    pub(super) fn map(file: OwnedFd, promised: u64, limit: usize) -> Result<Arc<Self>, Refusal> {
        let len = match usize::try_from(promised) {
            Ok(len) if (FABRIC_PAGE..=limit).contains(&len) && len.is_multiple_of(PAGE) => len,
            _ => return Err(Refusal::Limit { bytes: promised, limit }),
        };
        // First the seals: without them the size could change after we looked.
        match rustix::fs::fcntl_get_seals(&file) {
            Ok(seals) if seals.contains(SEALS) => {}
            _ => return Err(Refusal::Seals),
        }
        let actual = u64::try_from(rustix::fs::fstat(&file)?.st_size).unwrap_or(0);
        if actual != promised {
            return Err(Refusal::Size { promised, actual });
        }
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory that is in use.
        let base =
            unsafe { rustix::mm::mmap(ptr::null_mut(), len, ProtFlags::READ, MapFlags::SHARED, &file, 0) }?;
        let base = NonNull::new(base.cast()).ok_or(Errno::NOMEM)?;
        advise(base, len, Advice::LinuxHugepage);
        Ok(Arc::new(Self { base, len, file }))
    }

    /// The memory, to read.
    pub(super) fn mirror(self: &Arc<Self>) -> Mirror {
        // SAFETY: `base` is page-aligned and has `len` bytes that stay readable until `self` is dropped, which the handle
        // in `keep` prevents: the file can't shrink (checked in `map`), and `freeze` replaces the mapping in one step.
        unsafe { Mirror::from_mapping(self.base, self.len, self.clone()) }
    }

    /// After this the bytes behind every handle to the mirror change no more, whatever the peer does.
    ///
    /// Without the memory for the copy the node can't go on in safety (S4): the process ends as it does whenever
    /// memory runs out.
    pub(super) fn freeze(&self) {
        if let Err(error) = self.try_freeze() {
            tracing::error!(%error, bytes = self.len, "no memory to keep a fenced peer's segment in");
            handle_alloc_error(Layout::from_size_align(self.len, PAGE).unwrap_or(Layout::new::<u8>()));
        }
    }

    fn try_freeze(&self) -> Result<(), Errno> {
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory that is in use.
        let aside = unsafe {
            rustix::mm::mmap_anonymous(
                ptr::null_mut(),
                self.len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }?;
        let Some(base) = NonNull::new(aside.cast::<u8>()) else { return Err(Errno::NOMEM) };
        advise(base, self.len, Advice::LinuxHugepage);
        let mut page = 0;
        while page < self.len {
            let extent = self.extent(page);
            page = extent.start;
            while page < extent.end {
                self.copy_page(page, base);
                page += PAGE;
            }
        }
        let moved = self.exchange(aside);
        if moved.is_err() {
            // SAFETY: `aside` was mapped above with this length, did not move, and is used by nobody else.
            let _ = unsafe { rustix::mm::munmap(aside, self.len) };
        }
        moved
    }

    /// The next run of pages from `start` on that were ever written.
    fn extent(&self, start: usize) -> std::ops::Range<usize> {
        let seek = |to| rustix::fs::seek(&self.file, to).map(|at| usize::try_from(at).unwrap_or(self.len));
        match seek(SeekFrom::Data(start as u64)) {
            Ok(data) => {
                let data = (data / PAGE * PAGE).clamp(start, self.len);
                let hole = seek(SeekFrom::Hole(data as u64)).unwrap_or(self.len);
                data..hole.checked_next_multiple_of(PAGE).unwrap_or(self.len).clamp(data, self.len)
            }
            Err(Errno::NXIO) => self.len..self.len, // nothing but untouched pages from here on
            Err(_) => start..self.len,
        }
    }

    /// Copies the page at byte `offset` to the same offset from `to`.
    fn copy_page(&self, offset: usize, to: NonNull<u8>) {
        assert!(offset.is_multiple_of(PAGE) && offset + PAGE <= self.len, "no page at byte {offset}");
        // SAFETY: in bounds by the assertion.
        let from = unsafe { self.base.as_ptr().add(offset) }.cast::<AtomicU64>();
        // SAFETY: in bounds by the assertion: `to` has `len` bytes as well.
        let to = unsafe { to.as_ptr().add(offset) }.cast::<u64>();
        // SAFETY: a page of our read-only mapping, aligned, which others change by whole words: so read as atomics.
        let from = unsafe { std::slice::from_raw_parts(from, PAGE_WORDS) };
        // SAFETY: a page of the fresh mapping, aligned and zeroed, of which nobody else knows.
        let to = unsafe { std::slice::from_raw_parts_mut(to, PAGE_WORDS) };
        for _ in 0..READINGS_MAX {
            let mut same = true;
            for (old, new) in to.iter_mut().zip(from) {
                let new = new.load(Ordering::Acquire); // in ascending order; pairs with the Release in Segment::store
                same &= *old == new;
                *old = new;
            }
            if same {
                return;
            }
        }
    }

    /// Puts the copy at `aside` in the place of the peer's memory.
    fn exchange(&self, aside: *mut c_void) -> Result<(), Errno> {
        // SAFETY: `aside` is a mapping of this length that nobody but the caller uses.
        unsafe { rustix::mm::mprotect(aside, self.len, MprotectFlags::READ) }?;
        // SAFETY: the target is the mapping that `self` owns, of the same length: what it hides, no one else's memory is.
        // Readers find readable bytes at every moment, and the bytes that they hold loans of are equal in both.
        unsafe {
            rustix::mm::mremap_fixed(
                aside,
                self.len,
                self.len,
                MremapFlags::MAYMOVE,
                self.base.as_ptr().cast(),
            )
        }?;
        Ok(())
    }
}

impl Drop for OwnMemory {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's (module invariant), and no handle to the memory is left: each keeps it.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

impl Drop for PeerMemory {
    fn drop(&mut self) {
        // SAFETY: as for `OwnMemory`.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// A memory file that is closed on exec and can be sealed; not executable where the kernel knows that (6.3).
fn memfd() -> Result<OwnedFd, Errno> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    match rustix::fs::memfd_create("consort-segment", flags | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => rustix::fs::memfd_create("consort-segment", flags),
        other => other,
    }
}

/// Advice is worth having and never needed: kernels that don't take it are as right, only slower.
fn advise(base: NonNull<u8>, len: usize, advice: Advice) {
    // SAFETY: the callers pass whole mappings of their own, and advices that change no contents.
    let _ = unsafe { rustix::mm::madvise(base.as_ptr().cast(), len, advice) };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer_of(own: &OwnMemory) -> Arc<PeerMemory> {
        let file = own.file().try_clone_to_owned().unwrap();
        PeerMemory::map(file, own.len as u64, own.len).unwrap()
    }

    /// S3: nothing that can be done with the descriptor changes size, seals or bytes.
    #[test]
    fn who_holds_the_descriptor_can_only_read() {
        let own = OwnMemory::new(10_000).unwrap();
        assert_eq!(own.len, 12_288);
        let file = own.file();
        for bytes in [0, 4096, 1 << 30] {
            assert_eq!(rustix::fs::ftruncate(file, bytes), Err(Errno::PERM));
        }
        assert_eq!(rustix::io::pwrite(file, b"foreign", 4096), Err(Errno::PERM));
        assert_eq!(rustix::fs::fcntl_add_seals(file, SealFlags::WRITE), Err(Errno::PERM));
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a mapping at an address of the kernel's choice; it is refused.
        let writable =
            unsafe { rustix::mm::mmap(ptr::null_mut(), 4096, protection, MapFlags::SHARED, file, 0) };
        assert_eq!(writable, Err(Errno::PERM));
        assert_eq!(peer_of(&own).mirror().load(4096), 0);
    }

    #[test]
    fn a_limit_is_a_limit() {
        let own = OwnMemory::new(8192).unwrap();
        let map = |promised, limit| {
            PeerMemory::map(own.file().try_clone_to_owned().unwrap(), promised, limit).map(|_| ())
        };
        assert!(map(8192, 8192).is_ok());
        assert!(matches!(map(8192, 8191), Err(Refusal::Limit { .. })));
        assert!(matches!(map(4096, 8192), Err(Refusal::Size { .. })));
        for promised in [0, 1, 4095, 8191, u64::MAX] {
            assert!(matches!(map(promised, usize::MAX), Err(Refusal::Limit { .. })), "{promised}");
        }
    }

    /// F4: every handle sees the frozen bytes, whatever the owner does; pages never written are zero still.
    #[test]
    fn a_frozen_mirror_is_a_picture() {
        let own = OwnMemory::new(64 * PAGE).unwrap();
        let segment = own.segment();
        let peer = peer_of(&own);
        let (mirror, handle) = (peer.mirror(), peer.mirror());
        let written = [0, 3, 4, 17, 63];
        for page in written {
            segment.store(page * PAGE + 8, 1000 + page as u64);
        }
        peer.freeze();
        for page in 0..64 {
            segment.store(page * PAGE + 8, 7);
            let frozen = if written.contains(&page) { 1000 + page as u64 } else { 0 };
            assert_eq!([mirror.load(page * PAGE + 8), handle.load(page * PAGE + 8)], [frozen; 2]);
            assert_eq!(segment.load(page * PAGE + 8), 7, "the owner has its own");
        }
        drop((peer, segment, own));
        assert_eq!(mirror.load(3 * PAGE + 8), 1003, "handles keep the picture");
    }

    /// A thread that reads while the mappings are exchanged sees the value from before, always, and never faults.
    #[test]
    fn readers_go_on_while_a_mirror_is_frozen() {
        use std::sync::atomic::AtomicBool;
        for _ in 0..50 {
            let own = OwnMemory::new(32 * PAGE).unwrap();
            let segment = own.segment();
            for page in 0..32 {
                segment.store(page * PAGE, 5);
            }
            let peer = peer_of(&own);
            let mirror = peer.mirror();
            let (stop, reads) = (AtomicBool::new(false), AtomicU64::new(0));
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        for page in 0..32 {
                            assert_eq!(mirror.load(page * PAGE), 5);
                        }
                        reads.fetch_add(1, Ordering::Relaxed);
                    }
                });
                let more = || {
                    let later = reads.load(Ordering::Relaxed) + 2;
                    while reads.load(Ordering::Relaxed) < later {
                        std::thread::yield_now();
                    }
                };
                more();
                peer.freeze();
                more();
                stop.store(true, Ordering::Relaxed);
            });
        }
    }
}
