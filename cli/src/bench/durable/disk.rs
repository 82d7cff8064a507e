//! The disk without Consort: files that are appended to and flushed, one write and one flush after the other, by a thread each.
//!
//! What a log does without being one: the file has its room beforehand (`fallocate`, in pieces of a segment's size), a batch is one write at
//! the end, through the kernel's cache or past it, and `fdatasync` follows it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Barrier, Mutex, PoisonError};
use std::thread;

use hdrhistogram::Histogram;
use rustix::fs::{FallocateFlags, OFlags, fallocate};

use crate::bench::window::Watch;
use crate::clock;
use crate::failure::Failure;
use crate::latency;
use crate::orders::Window;
use crate::text::as_f64;

/// Room that a file gets at once: that of a log's segment.
const ROOM: u64 = 64 << 20;

/// Of what a direct write is a multiple, in memory and in the file.
const BLOCK: usize = 4096;

/// What is done.
#[derive(Clone, Copy)]
pub(super) struct Setting<'a> {
    pub(super) place: &'a Path,
    /// As many threads.
    pub(super) files: usize,
    /// Bytes of a write.
    pub(super) batch: usize,
    /// All begin each write at the same time.
    pub(super) together: bool,
    /// Past the kernel's cache, where the file system can: then a write is of whole blocks.
    pub(super) direct: bool,
    pub(super) window: Window,
}

/// What it came to.
pub(super) struct DiskRun {
    /// Of the slowest file.
    pub(super) bytes_per_s: f64,
    /// Nanoseconds of a write with its flush, at all files.
    pub(super) each: Histogram<u64>,
    /// Of those that began together, the last to be done.
    pub(super) slowest: Histogram<u64>,
}

/// What the threads share.
struct Shared<'a> {
    setting: Setting<'a>,
    start: u64,
    barrier: Barrier,
    /// The longest of those that began together.
    longest: AtomicU64,
    /// A thread's disk has refused.
    failed: AtomicBool,
    /// Said only by who decides, and only while the others wait at the first barrier, or the others would leave it waiting at the second.
    over: AtomicBool,
    slowest: Mutex<Histogram<u64>>,
}

/// Measures.
///
/// # Errors
/// The disk's.
pub(super) fn measure(setting: Setting<'_>) -> Result<DiskRun, Failure> {
    let shared = Shared {
        setting,
        start: clock::now(),
        barrier: Barrier::new(setting.files),
        longest: AtomicU64::new(0),
        failed: AtomicBool::new(false),
        over: AtomicBool::new(false),
        slowest: Mutex::new(latency::histogram()?),
    };
    let empty = latency::histogram()?;
    let mut each = empty.clone();
    let mut bytes_per_s = f64::INFINITY;
    let parts: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..setting.files)
            .map(|number| {
                let (shared, empty) = (&shared, empty.clone());
                scope.spawn(move || shared.append(number, empty))
            })
            .collect();
        threads.into_iter().map(thread::ScopedJoinHandle::join).collect()
    });
    for part in parts {
        let part =
            part.map_err(|_| Failure::lost("a thread of the floor panicked", "report this as a bug"))?;
        let (times, rate) = part.map_err(|cause| Failure::file("write in", setting.place, cause))?;
        each.add(times)
            .map_err(|e| Failure::lost(format!("can't add times: {e}"), "report this as a bug"))?;
        bytes_per_s = bytes_per_s.min(rate);
    }
    let slowest = shared.slowest.into_inner().unwrap_or_else(PoisonError::into_inner);
    if each.is_empty() || bytes_per_s == 0.0 {
        return Err(Failure::lost(
            "the disk flushed nothing in the measured time",
            "give a longer --duration; if the disk is this slow, see what else uses it",
        ));
    }
    Ok(DiskRun { bytes_per_s, each, slowest })
}

impl Shared<'_> {
    /// One file's thread: times of its flushes, and its bytes a second.
    fn append(&self, number: usize, mut times: Histogram<u64>) -> io::Result<(Histogram<u64>, f64)> {
        let Setting { place, batch, together, direct, window, .. } = self.setting;
        let len = if direct { batch.next_multiple_of(BLOCK) } else { batch };
        let memory: Vec<u8> = (0..len + BLOCK).map(|at| u8::try_from(at % 251).unwrap_or(0)).collect();
        let whole = memory.as_ptr().align_offset(BLOCK).min(BLOCK);
        let bytes = &memory[whole..whole + len];
        let mut watch = Watch::new(self.start, window);
        let made = create(&place.join(number.to_string()), direct);
        let (mut at, mut room, mut result) = (0_u64, 0_u64, Ok(()));
        loop {
            if together {
                self.barrier.wait();
            }
            if self.over.load(Ordering::Relaxed) {
                break;
            }
            let began = clock::now();
            watch.look(began, || at);
            let written = made.as_ref().map_err(|cause| cause.kind().into()).and_then(|file| {
                if at + bytes.len() as u64 > room {
                    room = reserve(file, at, bytes.len() as u64)?;
                }
                file.write_all_at(bytes, at)?;
                file.sync_data()
            });
            let ended = clock::now();
            at += bytes.len() as u64;
            if watch.counts(began) {
                times.saturating_record(ended - began);
            }
            if let Err(cause) = written {
                result = Err(cause);
                self.failed.store(true, Ordering::Relaxed);
            }
            // Who appends together ends together: one of them says when.
            let mut decides = true;
            if together {
                self.longest.fetch_max(ended - began, Ordering::Relaxed);
                decides = self.barrier.wait().is_leader();
                if decides {
                    // The others wait at the barrier above until this one comes there.
                    let longest = self.longest.swap(0, Ordering::Relaxed);
                    if watch.counts(began) {
                        let mut slowest = self.slowest.lock().unwrap_or_else(PoisonError::into_inner);
                        slowest.saturating_record(longest);
                    }
                }
            }
            if decides && (ended >= watch.end() || self.failed.load(Ordering::Relaxed)) {
                self.over.store(true, Ordering::Relaxed);
            }
        }
        watch.look(clock::now(), || at);
        result?;
        let rate = watch
            .taken()
            .map_or(0.0, |(elapsed, first, last)| as_f64(last - first) * 1e9 / as_f64(elapsed.max(1)));
        Ok((times, rate))
    }
}

/// Makes a file that is written directly, if that is wanted and can be.
fn create(path: &Path, direct: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    if direct && let Ok(file) = options.clone().custom_flags(OFlags::DIRECT.bits().cast_signed()).open(path) {
        return Ok(file);
    }
    options.open(path)
}

/// Gives a file more room, where the file system can; returns how far it goes now.
fn reserve(file: &File, at: u64, least: u64) -> io::Result<u64> {
    let more = least.max(ROOM);
    match fallocate(file, FallocateFlags::empty(), at, more) {
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => file.set_len(at + more)?,
        other => other?,
    }
    Ok(at + more)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_appended_to_alone_and_together() {
        let place = tempfile::tempdir().unwrap();
        let window = Window { warmup: 1_000_000, measured: 50_000_000 };
        for (files, together, direct) in [(1, false, false), (3, false, true), (3, true, false)] {
            let setting = Setting { place: place.path(), files, batch: 1000, together, direct, window };
            let run = measure(setting).unwrap();
            assert!(run.bytes_per_s > 0.0 && !run.each.is_empty());
            assert_eq!(run.slowest.is_empty(), !together);
            for number in 0..files {
                let written = std::fs::read(place.path().join(number.to_string())).unwrap();
                // As they lie in what is written, whatever that begins with.
                let from = |at: usize| (usize::from(written[0]) + at..).map(|byte| byte % 251).take(5);
                let found = |at: usize| written[at..at + 5].iter().map(|byte| usize::from(*byte));
                assert!(found(0).eq(from(0)), "what was measured was written");
                assert_eq!(found(1000).eq(from(1000)), direct, "what is written directly is whole blocks");
            }
        }
    }

    #[test]
    fn a_disk_that_refuses_is_no_deadlock() {
        let window = Window { warmup: 0, measured: 1_000_000 };
        let setting = Setting {
            place: Path::new("/nowhere"),
            files: 3,
            batch: 10,
            together: true,
            direct: true,
            window,
        };
        assert!(measure(setting).is_err_and(|failure| failure.code() == 3));
    }
}
