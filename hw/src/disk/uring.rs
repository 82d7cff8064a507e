//! Writing a batch and flushing it: a little one by one plain call, any other in one call of io_uring, or in two plain ones.
//!
//! `unsafe` is allowed here (S2) for handing the kernel addresses: of blocks, of a batch's own bytes, and of ring memory that its pieces keep mapped. They
//! are good until both operations are over, and this waits for that, or never lets the batch go.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use consort_dataplane::log::disk::Batch;
use io_uring::types::{Fd, FsyncFlags};
use io_uring::{IoUring, opcode, squeue};
use rustix::io::{Errno, ReadWriteFlags, pwritev2, retry_on_intr};

use super::ahead::SMALL;
use super::direct::{self, Direct};

/// Entries of a ring that has two operations at once.
const ENTRIES: u32 = 4;

const WRITE: u64 = 1;
const FLUSH: u64 = 2;

fn set_up() -> io::Result<IoUring> {
    let ring = IoUring::builder().setup_single_issuer().build(ENTRIES);
    ring.or_else(|_| IoUring::new(ENTRIES)) // a kernel that doesn't know single issuers
}

/// Writes batches.
pub(crate) struct Writer {
    /// None where it is denied.
    ring: Option<IoUring>,
    /// Memory to use again.
    parts: Vec<libc::iovec>,
    direct: Direct,
}

impl Writer {
    pub(super) fn new() -> Self {
        let ring = set_up()
            .inspect_err(|cause| tracing::warn!(%cause, "logs are written without io_uring: it is denied"))
            .ok();
        Self { ring, parts: Vec::new(), direct: Direct::new() }
    }

    /// Whether it would have io_uring.
    pub(crate) fn has_ring() -> bool {
        set_up().is_ok()
    }

    /// With io_uring or without.
    #[cfg(test)]
    pub(super) fn with_ring(ring: bool) -> Self {
        let ring = ring.then(|| IoUring::new(ENTRIES).expect("io_uring"));
        Self { ring, parts: Vec::new(), direct: Direct::new() }
    }

    pub(super) fn name(&self) -> &'static str {
        if self.ring.is_some() { "io_uring" } else { "plain" }
    }

    /// Writes a batch to the file at `path` and flushes it. After an error nobody knows what is there.
    pub(super) fn write(&mut self, path: &Path, batch: &mut Batch) -> io::Result<()> {
        // A handle that is kept may be of a file that is gone, and another in its place: opened for each batch, which costs nothing beside a flush.
        if self.write_direct(path, batch)? {
            return Ok(());
        }
        self.write_cached(&OpenOptions::new().write(true).open(path)?, batch)
    }

    /// Past the cache, if that can be.
    fn write_direct(&mut self, path: &Path, batch: &Batch) -> io::Result<bool> {
        let Self { ring, parts, direct } = self;
        let mut is_lost = false;
        let written = direct.write(path, batch, &mut |file, blocks, at, is_last| {
            let bytes = direct::bytes(blocks);
            let mut written = Written::default();
            let is_little = batch.len() as u64 <= SMALL; // so these are all of its blocks
            if is_little && let Some(it) = write_flushed(file, bytes, at)? {
                written = it;
            } else if let Some(ring) = ring.as_mut().filter(|_| is_last) {
                parts.clear();
                parts.push(libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() });
                written = write_linked(ring, file, parts, at).inspect_err(|_| is_lost = true)??;
            }
            if written.is_flushed {
                return Ok(());
            }
            file.write_all_at(&bytes[written.bytes..], at + written.bytes as u64)?;
            if is_last { file.sync_data() } else { Ok(()) }
        });
        if is_lost {
            // The kernel may have the operations still: what they name is never freed, nor the ring used again.
            std::mem::forget((std::mem::replace(direct, Direct::new()), std::mem::take(parts), ring.take()));
        }
        written
    }

    /// Through the kernel's cache, from where the pieces lie.
    fn write_cached(&mut self, file: &File, batch: &mut Batch) -> io::Result<()> {
        self.parts.clear();
        for piece in &batch.pieces {
            let bytes = direct::slice(batch, piece)?;
            let iov_base = bytes.as_ptr().cast_mut().cast();
            self.parts.push(libc::iovec { iov_base, iov_len: bytes.len() });
        }
        let written = match &mut self.ring {
            Some(ring) => match write_linked(ring, file, &self.parts, batch.at) {
                Ok(result) => result?,
                Err(cause) => {
                    // As above.
                    std::mem::forget((
                        std::mem::take(batch),
                        std::mem::take(&mut self.parts),
                        self.ring.take(),
                    ));
                    return Err(cause);
                }
            },
            None => Written::default(),
        };
        if written.is_flushed {
            return Ok(());
        }
        // The rest, if the kernel took a part, and all of it where there is no ring.
        write_all(file, &mut self.parts, batch.at, written.bytes)?;
        file.sync_data()
    }
}

/// Writes a little and flushes that by one call. `None`, and nothing is written, if the system doesn't know such a call.
///
/// What counts for a little is how long it takes. io_uring has a flush done by another thread, which has to be woken and to get a processor. And a
/// device that can writes this past its own cache, and has nothing to flush.
fn write_flushed(file: &File, all: &[u8], at: u64) -> io::Result<Option<Written>> {
    match retry_on_intr(|| pwritev2(file, &[IoSlice::new(all)], at, ReadWriteFlags::DSYNC)) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(None),
        bytes => bytes
            .map(|bytes| Some(Written { bytes, is_flushed: bytes == all.len() }))
            .map_err(io::Error::from),
    }
}

/// What a write and its flush came to.
#[derive(Default)]
struct Written {
    bytes: usize,
    is_flushed: bool,
}

/// Submits both and waits for both. The outer error is one of the ring: the operations may be under way.
fn write_linked(
    ring: &mut IoUring,
    file: &File,
    parts: &[libc::iovec],
    at: u64,
) -> io::Result<io::Result<Written>> {
    let (descriptor, count) = (Fd(file.as_raw_fd()), u32::try_from(parts.len()).unwrap_or(u32::MAX));
    let write = opcode::Writev::new(descriptor, parts.as_ptr(), count).offset(at).build();
    let flush = opcode::Fsync::new(descriptor).flags(FsyncFlags::DATASYNC).build().user_data(FLUSH);
    let both = [write.user_data(WRITE).flags(squeue::Flags::IO_LINK), flush];
    // SAFETY: the file is open and the parts, and what they name, are readable until both are over: the caller holds the batch, and
    // frees nothing of it before this has returned well.
    unsafe { ring.submission().push_multiple(&both) }.map_err(io::Error::other)?;
    let (mut wrote, mut flushed) = (None, None);
    while wrote.is_none() || flushed.is_none() {
        match ring.submit_and_wait(1) {
            Ok(_) => {}
            Err(cause) if matches!(cause.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)) => {}
            Err(cause) => return Err(cause),
        }
        for completion in ring.completion() {
            let place = if completion.user_data() == WRITE { &mut wrote } else { &mut flushed };
            *place = Some(completion.result());
        }
    }
    let failed = |result: i32| io::Error::from_raw_os_error(-result);
    let (wrote, flushed) = (wrote.unwrap_or(-libc::EIO), flushed.unwrap_or(-libc::EIO));
    let Ok(bytes) = usize::try_from(wrote) else { return Ok(Err(failed(wrote))) };
    let is_all = bytes == parts.iter().map(|part| part.iov_len).sum::<usize>();
    Ok(match flushed {
        0 => Ok(Written { bytes, is_flushed: is_all }),
        // The write took only a part, so the flush didn't begin.
        canceled if canceled == -libc::ECANCELED && !is_all => Ok(Written { bytes, is_flushed: false }),
        other => Err(failed(other)),
    })
}

/// Writes what is left of the parts behind `done` bytes.
fn write_all(file: &File, parts: &mut [libc::iovec], at: u64, mut done: usize) -> io::Result<()> {
    let all: usize = parts.iter().map(|part| part.iov_len).sum();
    let (mut first, mut skip) = (0, done);
    while done < all {
        while parts.get(first).is_some_and(|part| part.iov_len <= skip) {
            skip -= parts[first].iov_len;
            first += 1;
        }
        let Some(part) = parts.get_mut(first) else { return Err(io::ErrorKind::WriteZero.into()) };
        part.iov_base = part.iov_base.wrapping_byte_add(skip);
        part.iov_len -= skip;
        let rest = &parts[first..];
        let count = i32::try_from(rest.len().min(1024)).unwrap_or(1024);
        let offset = i64::try_from(at + done as u64).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: the parts name memory that the caller's batch keeps readable; the call keeps no address.
        let wrote = unsafe { libc::pwritev(file.as_raw_fd(), rest.as_ptr(), count, offset) };
        match usize::try_from(wrote) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(more) => (done, skip) = (done + more, more),
            Err(_) => {
                let cause = io::Error::last_os_error();
                if cause.kind() != io::ErrorKind::Interrupted {
                    return Err(cause);
                }
                skip = 0;
            }
        }
    }
    Ok(())
}

// SAFETY: the addresses in `parts` are looked at only in `write`, which sets them first.
unsafe impl Send for Writer {}
