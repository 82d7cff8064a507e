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
//! Only pages that were ever written are copied, and of these, where the caller names what is still needed, only those
//! ([`PeerMemory::freeze_keeping`]): most of a ring's bytes have been released by the time of a fence, and a fence is part of every
//! failover. Copying is the smaller half of the cost, fresh memory the larger one, so large copies are made into large
//! pages. A peer whose process is known to have ended writes no more, and is not copied at all (its memory lives as
//! long as our mapping).
//!
//! What order (F1) does the copy keep, if the peer goes on writing while it is made? Pages are copied in
//! ascending order, and each until two readings of it agree (or a bound is met). So a word never vouches in the copy
//! for bytes *behind* it that the copy lacks: sessions lay out their counters in front of their rings, and ring bytes once
//! published stay until we release them (D11). Counters that straddle pages may come from slightly different
//! moments: so a session is wedged first and its peers fenced then (V2).
//!
//! # Renewal
//!
//! A fence can't take away what the *peer* maps. Where this node's memory is to be used again, and such a peer may live,
//! the owner maps another file over the range ([`OwnMemory::renew`]) and hands that to those who are linked
//! ([`PeerMemory::renew`]). Both exchange the mapping in one step, at the same addresses.
//!
//! `unsafe` is allowed here (S2). Invariant of [`Mapping`], on which all of it rests: `base` is the start of a mapping of `len`
//! bytes, whole pages, that this value alone unmaps, and that stays readable (and writable, if it was made so) all the while.
#![allow(unsafe_code)]

use std::alloc::{Layout, handle_alloc_error};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use consort_dataplane::fabric::{FABRIC_PAGE, Kept};
use consort_dataplane::memory::{Mirror, Segment, WORD};
use rustix::fs::{MemfdFlags, SealFlags, SeekFrom};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, MprotectFlags, MremapFlags, ProtFlags};

use super::layers::{LayerError, Layers, PAGE};
use super::options::ShmError;

const PAGE_WORDS: usize = PAGE / WORD;

/// Readings of one page before the last is taken as it is.
const READINGS_MAX: usize = 16;

/// Copies of so many bytes are made into large pages; for less, zeroing one costs more than the faults that it saves.
const LARGE_FROM: usize = 512 << 10;

/// What a segment must be sealed against before anyone maps it.
const SEALS: SealFlags =
    SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::FUTURE_WRITE).union(SealFlags::SEAL);

/// This node's own segment.
#[derive(Debug)]
pub(super) struct OwnMemory {
    mapping: Mapping,
    file: OwnedFd,
}

/// A peer's segment, mapped read-only.
#[derive(Debug)]
pub(super) struct PeerMemory {
    mapping: Mapping,
    file: OwnedFd,
}

/// Pages of this process, unmapped when this is dropped.
#[derive(Debug)]
struct Mapping {
    base: NonNull<u8>,
    len: usize,
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
    #[error("its segment can't be renewed so: {0}")]
    Layer(#[from] LayerError),
    #[error("the kernel does not map its segment: {0}")]
    Kernel(#[from] Errno),
}

// SAFETY: the value only stands for the mapping; the bytes are reached through `Segment` and `Mirror`, which are Send + Sync.
unsafe impl Send for Mapping {}
// SAFETY: as above; `replace` exchanges pages in one system call that leaves them readable throughout.
unsafe impl Sync for Mapping {}

impl OwnMemory {
    /// Zeroed memory of `bytes`, rounded up to whole pages, that can be shared and is sealed.
    pub(super) fn new(bytes: usize) -> Result<Arc<Self>, ShmError> {
        let size = || ShmError::Size { bytes };
        let len = bytes.checked_next_multiple_of(PAGE).ok_or_else(size)?;
        if len < FABRIC_PAGE || isize::try_from(len).is_err() {
            return Err(size());
        }
        Self::sealed(len).map(Arc::new)
    }

    /// Zeroed memory of `len` bytes, whole pages.
    fn sealed(len: usize) -> Result<Self, ShmError> {
        let failed = |step| move |errno: Errno| ShmError::memory(step, len, errno);
        let file = memfd().map_err(failed("memfd_create"))?;
        rustix::fs::ftruncate(&file, len as u64).map_err(failed("ftruncate"))?;
        let mapping = Mapping::of(&file, len, ProtFlags::READ | ProtFlags::WRITE).map_err(failed("mmap"))?;
        // After our own writable mapping: this seal forbids any further one.
        rustix::fs::fcntl_add_seals(&file, SEALS).map_err(failed("sealing (F_ADD_SEALS)"))?;
        // A forked child must not write to memory that peers take for its parent's alone.
        mapping.advise(Advice::LinuxDontFork);
        Ok(Self { mapping, file })
    }

    /// Puts zeroed memory in the place of `range` (whole pages) and returns its file. Those who map the old memory keep it, and
    /// see nothing of the new. Whatever fails leaves everything as it was.
    pub(super) fn renew(&self, range: &Range<usize>) -> Result<OwnedFd, ShmError> {
        let Self { mapping, file } = Self::sealed(range.len())?;
        self.mapping
            .replace(range, mapping)
            .map_err(|errno| ShmError::memory("mremap", range.len(), errno))?;
        Ok(file)
    }

    /// The memory, to write and to publish.
    pub(super) fn segment(self: &Arc<Self>) -> Segment {
        let Mapping { base, len } = self.mapping;
        // SAFETY: `base` is page-aligned, has `len` bytes that are readable and writable until `self` is dropped, which
        // the handle in `keep` prevents; this process uses them through `Segment` alone, and the seals keep
        // every other from writing.
        unsafe { Segment::from_mapping(base, len, self.clone()) }
    }

    /// The descriptor to hand to peers, with what was renewed since.
    pub(super) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Bytes in it.
    pub(super) fn len(&self) -> usize {
        self.mapping.len
    }

    /// The 32-bit half of the word at `offset` that counts: what futex calls work on.
    pub(super) fn futex(&self, offset: usize) -> &AtomicU32 {
        self.mapping.futex(offset)
    }
}

impl PeerMemory {
    /// Maps what a peer sent, if it is what it `promised` and no more than `limit` bytes.
    pub(super) fn map(file: OwnedFd, promised: u64, limit: usize) -> Result<Arc<Self>, Refusal> {
        let len = match usize::try_from(promised) {
            Ok(len) if (FABRIC_PAGE..=limit).contains(&len) && len.is_multiple_of(PAGE) => len,
            _ => return Err(Refusal::Limit { bytes: promised, limit }),
        };
        let mapping = map(&file, len)?;
        Ok(Arc::new(Self { mapping, file }))
    }

    /// As [`OwnMemory::futex`].
    pub(super) fn futex(&self, offset: usize) -> &AtomicU32 {
        self.mapping.futex(offset)
    }

    /// Maps what a peer sent in the place of `range`, which lies within what is mapped already.
    pub(super) fn renew(&self, range: &Range<usize>, file: &OwnedFd) -> Result<(), Refusal> {
        self.mapping.replace(range, map(file, range.len())?)?;
        Ok(())
    }

    /// Bytes in it.
    pub(super) fn len(&self) -> usize {
        self.mapping.len
    }

    /// The memory, to read.
    pub(super) fn mirror(self: &Arc<Self>) -> Mirror {
        let Mapping { base, len } = self.mapping;
        // SAFETY: `base` is page-aligned and has `len` bytes that stay readable until `self` is dropped, which the handle
        // in `keep` prevents: no file can shrink (checked in `map`), and `replace` exchanges pages in one step.
        unsafe { Mirror::from_mapping(base, len, self.clone()) }
    }

    /// After this the bytes behind every handle to the mirror change no more, whatever the peer does. `layers` are what was
    /// renewed.
    pub(super) fn freeze(&self, layers: &Layers) {
        let written = || {
            layers.tops(0..self.len()).flat_map(|(range, top)| {
                let (file, base) = top.map_or((&self.file, 0), |layer| (&layer.file, layer.range.start));
                written(file, range.start - base..range.end - base)
                    .map(move |part| part.start + base..part.end + base)
            })
        };
        let bytes = written().map(|part| part.len()).sum();
        // Looked for again while it is copied: a page that nobody had written to is passed over only after all before it were copied,
        // so no word before it, in the copy, vouches for bytes in it.
        self.or_end(self.try_freeze(written(), &[], bytes));
    }

    /// As [`PeerMemory::freeze`], and what is not kept reads as zero.
    pub(super) fn freeze_keeping(&self, kept: &Kept<'_>) {
        let bytes = kept.words.iter().chain(kept.ring).map(ExactSizeIterator::len).sum();
        self.or_end(self.try_freeze(kept.words.iter().cloned(), kept.ring, bytes));
    }

    /// Without the memory for the copy the node can't go on in safety (S4): the process ends as it does whenever memory runs out.
    fn or_end(&self, frozen: Result<(), Errno>) {
        if let Err(error) = frozen {
            tracing::error!(%error, bytes = self.len(), "no memory to keep a fenced peer's segment in");
            handle_alloc_error(Layout::from_size_align(self.len(), PAGE).unwrap_or(Layout::new::<u8>()));
        }
    }

    /// Keeps these parts, of about so many bytes in all.
    fn try_freeze(
        &self,
        words: impl Iterator<Item = Range<usize>>,
        ring: &[Range<usize>],
        bytes: usize,
    ) -> Result<(), Errno> {
        let aside = Mapping::anonymous(self.len())?;
        if bytes >= LARGE_FROM {
            aside.advise(Advice::LinuxHugepage);
        }
        for page in words.flat_map(|part| pages(&part)) {
            let (from, to) = (self.mapping.words(page), aside.fresh_words(page));
            for _ in 0..READINGS_MAX {
                let mut same = true;
                for (old, new) in to.iter_mut().zip(from) {
                    let new = new.load(Ordering::Acquire); // in ascending order; pairs with the Release in Segment::store
                    same &= *old == new;
                    *old = new;
                }
                if same {
                    break;
                }
            }
        }
        for page in ring.iter().flat_map(pages) {
            let (from, to) = (self.mapping.words(page), aside.fresh_words(page));
            for (old, new) in to.iter_mut().zip(from) {
                *old = new.load(Ordering::Relaxed); // what matters of it changes no more since its head was seen (D11)
            }
        }
        aside.make_read_only()?;
        self.mapping.replace(&(0..self.len()), aside)
    }
}

impl Mapping {
    /// The first `len` bytes of a file, shared with all who map it.
    fn of(file: impl AsFd, len: usize, protection: ProtFlags) -> Result<Self, Errno> {
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory that is in use.
        let base = unsafe { rustix::mm::mmap(ptr::null_mut(), len, protection, MapFlags::SHARED, file, 0) }?;
        let base = NonNull::new(base.cast()).ok_or(Errno::NOMEM)?;
        let mapping = Self { base, len };
        mapping.advise(Advice::LinuxHugepage);
        Ok(mapping)
    }

    /// Zeroed memory of this process alone, writable, backed as it is touched.
    fn anonymous(len: usize) -> Result<Self, Errno> {
        let (protection, flags) =
            (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::NORESERVE);
        // SAFETY: as in `of`.
        let base = unsafe { rustix::mm::mmap_anonymous(ptr::null_mut(), len, protection, flags) }?;
        let base = NonNull::new(base.cast()).ok_or(Errno::NOMEM)?;
        Ok(Self { base, len })
    }

    /// Advice is worth having and never needed: kernels that don't take it are as right, only slower.
    fn advise(&self, advice: Advice) {
        // SAFETY: the whole of a mapping of our own, and the callers give advice that changes no contents.
        let _ = unsafe { rustix::mm::madvise(self.base.as_ptr().cast(), self.len, advice) };
    }

    fn futex(&self, offset: usize) -> &AtomicU32 {
        assert!(offset.is_multiple_of(WORD) && offset < self.len, "no word at byte {offset}");
        // SAFETY: in bounds by the assertion, so inside the mapping.
        let at = unsafe { self.base.as_ptr().add(offset + super::sleep::FUTEX_HALF) };
        // SAFETY: aligned to 4, mapped while `self` is borrowed, and memory that is accessed as atomics only. The
        // reference serves as an address for the kernel; nothing here loads or stores through it.
        unsafe { AtomicU32::from_ptr(at.cast()) }
    }

    fn make_read_only(&self) -> Result<(), Errno> {
        // SAFETY: the whole of a mapping of our own; the caller has no references into it any more.
        unsafe { rustix::mm::mprotect(self.base.as_ptr().cast(), self.len, MprotectFlags::READ) }
    }

    /// The words of the page at byte `offset`, which others change.
    fn words(&self, offset: usize) -> &[AtomicU64] {
        assert!(offset.is_multiple_of(PAGE) && offset + PAGE <= self.len, "no page at byte {offset}");
        // SAFETY: in bounds by the assertion.
        let page = unsafe { self.base.as_ptr().add(offset) }.cast();
        // SAFETY: a page that is mapped while `self` is borrowed, aligned, which others change by whole words.
        unsafe { std::slice::from_raw_parts(page, PAGE_WORDS) }
    }

    /// The words of a page of an [anonymous](Self::anonymous) mapping that only its maker knows of yet.
    #[expect(clippy::mut_from_ref, reason = "one page at a time, by the one who made the mapping")]
    fn fresh_words(&self, offset: usize) -> &mut [u64] {
        assert!(offset.is_multiple_of(PAGE) && offset + PAGE <= self.len, "no page at byte {offset}");
        // SAFETY: in bounds by the assertion.
        let page = unsafe { self.base.as_ptr().add(offset) }.cast();
        // SAFETY: a page that is mapped while `self` is borrowed, aligned, writable until `make_read_only`; nobody else has
        // the address, and `try_freeze` holds one such slice at a time.
        unsafe { std::slice::from_raw_parts_mut(page, PAGE_WORDS) }
    }

    /// Puts `other`'s pages in the place of `range` of this mapping's, in one step: those who read find either. If it fails
    /// nothing has changed.
    fn replace(&self, range: &Range<usize>, other: Self) -> Result<(), Errno> {
        assert!(
            pages(range).len() * PAGE == other.len
                && range.start.is_multiple_of(PAGE)
                && range.end <= self.len,
            "{} bytes in the place of {range:?} of {}",
            other.len,
            self.len
        );
        // SAFETY: in bounds by the assertion.
        let target = unsafe { self.base.as_ptr().add(range.start) };
        // SAFETY: what is moved is all of `other`'s mapping, which nobody else uses. The target is a part, of the same length, of
        // the one that `self` owns: no one else's memory is hidden. Its bytes stay readable at every moment, and as writable as
        // before; that nobody holds on to what they were is the contract of `Fabric::renew` and of a fence, which copies
        // what is lent.
        unsafe {
            let flags = MremapFlags::MAYMOVE;
            rustix::mm::mremap_fixed(other.base.as_ptr().cast(), other.len, other.len, flags, target.cast())
        }?;
        std::mem::forget(other); // it lies at the target now, and is unmapped with `self`
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's, and no handle to the memory is left: each keeps it.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// The offsets of the pages that `range` touches.
fn pages(range: &Range<usize>) -> std::iter::StepBy<Range<usize>> {
    let start = if range.is_empty() { range.end } else { range.start / PAGE * PAGE };
    (start..range.end).step_by(PAGE)
}

/// Maps a peer's file of `len` bytes, if its size is that and stays so.
fn map(file: &OwnedFd, len: usize) -> Result<Mapping, Refusal> {
    // First the seals: without them the size could change after we looked.
    match rustix::fs::fcntl_get_seals(file) {
        Ok(seals) if seals.contains(SEALS) => {}
        _ => return Err(Refusal::Seals),
    }
    let (promised, actual) = (len as u64, u64::try_from(rustix::fs::fstat(file)?.st_size).unwrap_or(0));
    if actual != promised {
        return Err(Refusal::Size { promised, actual });
    }
    Ok(Mapping::of(file, len, ProtFlags::READ)?)
}

/// The runs of pages in `range` of a file that were ever written, as far as the file system tells.
fn written(file: &OwnedFd, range: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        let seek = |to| {
            rustix::fs::seek(file, to).map(|at| usize::try_from(at).map_or(range.end, |at| at.min(range.end)))
        };
        let data = match seek(SeekFrom::Data(at as u64)) {
            Ok(data) => (data / PAGE * PAGE).max(at),
            Err(Errno::NXIO) => range.end, // nothing but untouched pages from here on
            Err(_) => at,
        };
        let hole = seek(SeekFrom::Hole(data as u64)).unwrap_or(range.end);
        at = hole.next_multiple_of(PAGE).clamp(data + PAGE, range.end.max(data + PAGE));
        (data < range.end).then_some(data..at)
    })
}

/// A memory file that is closed on exec and can be sealed; not executable where the kernel knows that (6.3).
fn memfd() -> Result<OwnedFd, Errno> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    match rustix::fs::memfd_create("consort-segment", flags | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => rustix::fs::memfd_create("consort-segment", flags),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer_of(own: &OwnMemory) -> Arc<PeerMemory> {
        let file = own.file().try_clone_to_owned().unwrap();
        PeerMemory::map(file, own.len() as u64, own.len()).unwrap()
    }

    /// F4: what is named stays; the rest is frozen too, as zero.
    #[test]
    fn what_is_kept_of_a_mirror_stays() {
        for (pages, huge) in [(64, false), (1024, true)] {
            let own = OwnMemory::new(pages * PAGE).unwrap();
            let segment = own.segment();
            for page in 0..pages {
                segment.store(page * PAGE, 1000 + page as u64);
                segment.store(page * PAGE + PAGE - WORD, 2000 + page as u64);
            }
            let peer = peer_of(&own);
            let mirror = peer.mirror();
            let ring = [40 * PAGE - 8..40 * PAGE + 8, 50 * PAGE..50 * PAGE, 60 * PAGE..pages * PAGE];
            assert_eq!(ring[2].len() >= LARGE_FROM, huge);
            let words = 5 * PAGE + 64..5 * PAGE + 72;
            peer.freeze_keeping(&Kept { words: std::slice::from_ref(&words), ring: &ring });
            for page in 0..pages {
                segment.store(page * PAGE, 7);
                let kept = [5, 39, 40].contains(&page) || page >= 60;
                let frozen = [mirror.load(page * PAGE), mirror.load(page * PAGE + PAGE - WORD)];
                let as_they_were = [1000 + page as u64, 2000 + page as u64];
                assert_eq!(frozen, if kept { as_they_were } else { [0; 2] }, "page {page}");
            }
        }
    }

    #[test]
    #[should_panic(expected = "no page at byte 8192")]
    fn what_is_beyond_the_mirror_cannot_be_kept() {
        let own = OwnMemory::new(2 * PAGE).unwrap();
        let words = 0..3 * PAGE;
        peer_of(&own).freeze_keeping(&Kept { words: std::slice::from_ref(&words), ring: &[] });
    }

    /// V10: those who are handed the new memory see it, those who are not keep the old; and both can be frozen.
    #[test]
    fn renewed_memory_is_seen_by_whom_it_is_handed() {
        let own = OwnMemory::new(16 * PAGE).unwrap();
        let segment = own.segment();
        let (with, without) = (peer_of(&own), peer_of(&own));
        let (seeing, blind) = (with.mirror(), without.mirror());
        for page in 0..16 {
            segment.store(page * PAGE, 1);
        }
        let mut layers = Layers::default();
        for (value, range) in [(2, 4 * PAGE..12 * PAGE), (3, 8 * PAGE..16 * PAGE)] {
            let file = own.renew(&range).unwrap();
            assert_eq!(segment.load(range.start), 0);
            with.renew(&range, &file).unwrap();
            layers.lay(range.clone(), file);
            segment.store(range.start + PAGE, value);
            segment.store(2 * PAGE, value);
            assert_eq!([segment.load(range.start + PAGE), seeing.load(range.start + PAGE)], [value; 2]);
        }
        let expected = [1, 1, 3, 1, 0, 2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0];
        let found = |mirror: &Mirror| (0..16).map(|page| mirror.load(page * PAGE)).collect::<Vec<_>>();
        assert_eq!(found(&seeing), expected);
        let mut old = [1; 16];
        old[2] = 3; // what was not renewed is still one and the same
        assert_eq!(found(&blind), old);
        with.freeze(&layers);
        without.freeze(&Layers::default());
        for page in 0..16 {
            segment.store(page * PAGE, 9);
        }
        assert_eq!([found(&seeing), found(&blind)], [expected.to_vec(), old.to_vec()]);
    }

    /// S3, where a part of a segment is renewed: the same is demanded, and a refusal changes nothing.
    #[test]
    fn renewed_memory_must_be_sealed_and_as_large_as_the_range() {
        let own = OwnMemory::new(8 * PAGE).unwrap();
        own.segment().store(4 * PAGE, 5);
        let peer = peer_of(&own);
        let range = 2 * PAGE..6 * PAGE;
        let other = |pages: usize| OwnMemory::new(pages * PAGE).unwrap().file().try_clone_to_owned().unwrap();
        for pages in [3, 5] {
            assert!(matches!(peer.renew(&range, &other(pages)), Err(Refusal::Size { .. })));
        }
        let unsealed = memfd().unwrap();
        rustix::fs::ftruncate(&unsealed, range.len() as u64).unwrap();
        assert!(matches!(peer.renew(&range, &unsealed), Err(Refusal::Seals)));
        assert_eq!(peer.mirror().load(4 * PAGE), 5);
        peer.renew(&range, &other(4)).unwrap();
        assert_eq!(peer.mirror().load(4 * PAGE), 0);
    }

    /// S3: nothing that can be done with the descriptor changes size, seals or bytes.
    #[test]
    fn who_holds_the_descriptor_can_only_read() {
        let own = OwnMemory::new(10_000).unwrap();
        assert_eq!(own.len(), 12_288);
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
        peer.freeze(&Layers::default());
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
                peer.freeze(&Layers::default());
                more();
                stop.store(true, Ordering::Relaxed);
            });
        }
    }
}
