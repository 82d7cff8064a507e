//! The memory that floor processes share: words to signal with, and a ring per writer.
//!
//! ```text
//! 0        station of process 0: five lines            all words are alone in their line but for `released`
//! 512      station of process 1 …
//! 65536    ring of writer 0 …, one after the other
//! ```
//! A station: its `word` (token), its bell (a futex and a flag), its `head` as a writer, `done` as a writer, and up to
//! where it has released each writer's ring.
//!
//! The ring is the plainest that works: slots of one size, a head that the writer moves, a position that each reader
//! moves. It has no headers, no order between writers, no acknowledgements beyond the release. That is what makes it a
//! floor.
//!
//! All processes that map this memory run this module; they are children of one parent, which made it for them alone.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::thread::futex;

const LINE: usize = 64;
const STATION: usize = 512;
const RINGS: usize = 64 << 10;

/// The most processes that the stations have room for.
pub(crate) const MOST_PROCESSES: usize = 16;

/// Bytes of memory that so many writers with rings of `ring_bytes` need.
pub(crate) fn size(writers: usize, ring_bytes: usize) -> usize {
    RINGS + writers * ring_bytes.next_multiple_of(4096)
}

/// The mapping. It is never moved, and unmapped when dropped.
pub(crate) struct Shared {
    base: NonNull<u8>,
    length: usize,
}

impl Shared {
    /// Maps the whole of `file`, which its maker has given its size, and touches all of it.
    ///
    /// # Errors
    /// The kernel's, or the file is too small for the stations.
    pub(crate) fn map(file: &File) -> io::Result<Self> {
        let length = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        if length < RINGS {
            return Err(io::Error::other("the shared memory is too small"));
        }
        let flags = MapFlags::SHARED | MapFlags::POPULATE;
        // SAFETY: a new mapping at an address of the kernel's choice; the file is a memfd of fixed size that the parent
        // made for this and that nobody shrinks.
        let base = unsafe {
            mmap(std::ptr::null_mut(), length, ProtFlags::READ | ProtFlags::WRITE, flags, file, 0)?
        };
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mapped at address 0"))?;
        Ok(Self { base, length })
    }

    fn word_at(&self, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8) && offset + 8 <= RINGS);
        // SAFETY: in bounds: the mapping is at least as long as RINGS.
        let word = unsafe { self.base.add(offset) };
        // SAFETY: aligned (checked above, and the base is a page's); these bytes are used as an atomic word by all who
        // map them, for as long as the mapping lives, which is as long as `self`.
        unsafe { AtomicU64::from_ptr(word.as_ptr().cast()) }
    }

    fn half_at(&self, offset: usize) -> &AtomicU32 {
        assert!(offset.is_multiple_of(4) && offset + 4 <= RINGS);
        // SAFETY: in bounds: the mapping is at least as long as RINGS.
        let half = unsafe { self.base.add(offset) };
        // SAFETY: as in `word_at`; no byte is used both as a part of a word and as a half.
        unsafe { AtomicU32::from_ptr(half.as_ptr().cast()) }
    }

    fn station(&self, process: usize, line: usize) -> usize {
        assert!(process < MOST_PROCESSES && line * LINE < STATION);
        process * STATION + line * LINE
    }

    /// The word that a process is signalled by.
    pub(crate) fn word(&self, process: usize) -> &AtomicU64 {
        self.word_at(self.station(process, 0))
    }

    /// How to wake a process that sleeps.
    pub(crate) fn bell(&self, process: usize) -> Bell<'_> {
        let at = self.station(process, 1);
        Bell { epoch: self.half_at(at), asleep: self.half_at(at + 4) }
    }

    fn head(&self, writer: usize) -> &AtomicU64 {
        self.word_at(self.station(writer, 2))
    }

    fn done(&self, writer: usize) -> &AtomicU64 {
        self.word_at(self.station(writer, 3))
    }

    fn released(&self, reader: usize, writer: usize) -> &AtomicU64 {
        assert!(writer < MOST_PROCESSES);
        self.word_at(self.station(reader, 4) + writer * 8)
    }

    /// A slot of a writer's ring.
    fn slot(&self, writer: usize, shape: &Shape, place: u64) -> NonNull<u8> {
        let index = usize::try_from(place % shape.slots).unwrap_or(0);
        let offset = size(writer, shape.ring_bytes) + index * shape.stride;
        assert!(offset + shape.size <= self.length);
        // SAFETY: within the mapping, as just checked.
        unsafe { self.base.add(offset) }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: this is the whole mapping, and references into it can't outlive `self`. A failure leaves it mapped.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.length) };
    }
}

/// Wakes a process: only for the `block` strategy; the others look for themselves.
pub(crate) struct Bell<'a> {
    epoch: &'a AtomicU32,
    asleep: &'a AtomicU32,
}

impl Bell<'_> {
    /// To be read before looking for work, and given to [`Bell::sleep`] when there was none.
    pub(crate) fn epoch(&self) -> u32 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Sleeps unless the bell was rung since `epoch` was read.
    pub(crate) fn sleep(&self, epoch: u32) {
        self.asleep.store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst); // pairs with the one in `ring`: either it sees the flag, or we see its epoch
        if self.epoch.load(Ordering::Relaxed) == epoch {
            // Returns at once if the epoch has changed; a signal or a spurious wake-up only costs another look.
            let _ = futex::wait(self.epoch, futex::Flags::empty(), epoch, None);
        }
        self.asleep.store(0, Ordering::Relaxed);
    }

    /// Wakes the process if it sleeps.
    pub(crate) fn ring(&self) {
        self.epoch.fetch_add(1, Ordering::Release);
        fence(Ordering::SeqCst); // pairs with the one in `sleep`
        if self.asleep.load(Ordering::Relaxed) == 1 {
            let _ = futex::wake(self.epoch, futex::Flags::empty(), 1);
        }
    }
}

/// How rings are cut, the same for all.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    size: usize,
    stride: usize,
    slots: u64,
    ring_bytes: usize,
}

impl Shape {
    /// Rings of about `ring_bytes` for messages of `size` bytes; `slots` bounds the messages under way.
    pub(crate) fn new(size: usize, ring_bytes: usize, slots: u64) -> Self {
        let stride = size.next_multiple_of(8).max(8);
        let room = u64::try_from(ring_bytes / stride).unwrap_or(1).max(1);
        Self { size, stride, slots: room.min(slots), ring_bytes: ring_bytes.max(stride) }
    }

    /// Bytes of a ring.
    pub(crate) fn ring_bytes(&self) -> usize {
        self.ring_bytes
    }
}

/// The writing end of a ring; one per ring.
pub(crate) struct Writer<'a> {
    shared: &'a Shared,
    shape: Shape,
    me: usize,
    processes: usize,
    next: u64,
    /// All readers are known to have released up to here.
    free: u64,
}

impl<'a> Writer<'a> {
    pub(crate) fn new(shared: &'a Shared, shape: Shape, me: usize, processes: usize) -> Self {
        Self { shared, shape, me, processes, next: 0, free: 0 }
    }

    /// Up to where every reader has released.
    pub(crate) fn released(&mut self) -> u64 {
        let readers = (0..self.processes).filter(|&reader| reader != self.me);
        // Acquire: pairs with the Release in `Reader::release`; what they read they have read.
        let positions = readers.map(|reader| self.shared.released(reader, self.me).load(Ordering::Acquire));
        self.free = positions.min().unwrap_or(self.next);
        self.free
    }

    /// Lets `fill` write the next message, unless the ring is full. It is visible after [`Writer::publish`].
    pub(crate) fn try_write(&mut self, fill: impl FnOnce(&mut [u8], u64)) -> bool {
        if self.next - self.free == self.shape.slots && self.next - self.released() == self.shape.slots {
            return false;
        }
        let slot = self.shared.slot(self.me, &self.shape, self.next);
        // SAFETY: in bounds (see `slot`). Nobody else touches the slot: this is the ring's only writer, every reader
        // has released what was in it before (checked above), and none reads it again before `publish` covers it.
        let slot = unsafe { std::slice::from_raw_parts_mut(slot.as_ptr(), self.shape.size) };
        fill(slot, self.next);
        self.next += 1;
        true
    }

    /// Makes visible what was written.
    pub(crate) fn publish(&self) {
        self.shared.head(self.me).store(self.next, Ordering::Release); // pairs with the Acquire in `Reader::available`
    }

    /// How many messages were written.
    pub(crate) fn written(&self) -> u64 {
        self.next
    }

    /// Nothing more will be written.
    pub(crate) fn finish(&self) {
        self.shared.done(self.me).store(1, Ordering::Release); // pairs with the Acquire in `Reader::finished`
    }
}

/// A reading end of a ring; one per ring and reader.
pub(crate) struct Reader<'a> {
    shared: &'a Shared,
    shape: Shape,
    me: usize,
    writer: usize,
    at: u64,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(shared: &'a Shared, shape: Shape, me: usize, writer: usize) -> Self {
        Self { shared, shape, me, writer, at: 0 }
    }

    /// Reads all that is there and releases it. Returns how many messages that were.
    pub(crate) fn read_all(&mut self, mut read: impl FnMut(&[u8])) -> u64 {
        let head = self.shared.head(self.writer).load(Ordering::Acquire); // pairs with the Release in `Writer::publish`
        let before = self.at;
        while self.at < head {
            let slot = self.shared.slot(self.writer, &self.shape, self.at);
            // SAFETY: in bounds (see `slot`). The head covers the slot, so it is written and the writer leaves it alone
            // until this reader's release covers it, below.
            read(unsafe { std::slice::from_raw_parts(slot.as_ptr(), self.shape.size) });
            self.at += 1;
        }
        if self.at > before {
            // Pairs with the Acquire in `Writer::released`.
            self.shared.released(self.me, self.writer).store(self.at, Ordering::Release);
        }
        self.at - before
    }

    /// Whether the writer has finished and all of it was read.
    pub(crate) fn finished(&self) -> bool {
        self.shared.done(self.writer).load(Ordering::Acquire) == 1 // pairs with the Release in `Writer::finish`
            && self.shared.head(self.writer).load(Ordering::Acquire) == self.at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared(writers: usize, ring_bytes: usize) -> Shared {
        let file = tempfile::tempfile().unwrap();
        file.set_len(size(writers, ring_bytes) as u64).unwrap();
        Shared::map(&file).unwrap()
    }

    #[test]
    fn a_ring_carries_every_message_once_and_in_order() {
        let shape = Shape::new(24, 200, u64::MAX);
        let shared = shared(2, shape.ring_bytes());
        let (mut writer, mut reader) = (Writer::new(&shared, shape, 1, 2), Reader::new(&shared, shape, 0, 1));
        let mut seen = Vec::new();
        for _ in 0..50 {
            while writer.try_write(crate::bench::payload::fill) {}
            assert_eq!(reader.read_all(|_| panic!("unpublished")), 0);
            writer.publish();
            assert_eq!(reader.read_all(|slot| seen.push(crate::bench::payload::sum(slot) / 3)), 8);
        }
        assert_eq!(seen, (0..400).collect::<Vec<u64>>());
        assert!(!reader.finished());
        writer.finish();
        assert!(reader.finished() && writer.released() == writer.written());
    }

    #[test]
    fn the_slowest_reader_holds_the_writer() {
        let shape = Shape::new(8, 64, 4);
        let shared = shared(1, shape.ring_bytes());
        let mut writer = Writer::new(&shared, shape, 0, 3);
        let (mut fast, mut slow) = (Reader::new(&shared, shape, 1, 0), Reader::new(&shared, shape, 2, 0));
        for _ in 0..4 {
            assert!(writer.try_write(|_, _| {}));
        }
        writer.publish();
        assert_eq!(fast.read_all(|_| {}), 4);
        assert!(!writer.try_write(|_, _| {}));
        assert_eq!(slow.read_all(|_| {}), 4);
        assert!(writer.try_write(|_, _| {}));
    }

    #[test]
    fn a_bell_rung_before_the_sleep_ends_it() {
        let shared = shared(0, 0);
        let bell = shared.bell(3);
        let epoch = bell.epoch();
        bell.ring();
        bell.sleep(epoch); // would hang otherwise
        std::thread::scope(|scope| {
            let epoch = bell.epoch();
            let other = shared.bell(3);
            scope.spawn(move || other.ring());
            bell.sleep(epoch);
        });
    }
}
