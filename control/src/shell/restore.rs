//! [`Restore`]: a snapshot that is here, whole, for the application to read.

use std::fmt;
use std::fs::File;
use std::io::{Error, ErrorKind, Read, Result};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use consort_dataplane::fabric::Doorbell;
use consort_dataplane::log::snapshot::SnapshotReader;

use crate::transfer::{CHUNK, Digest, digest};

/// The application has begun to restore, has done so, or has given up.
const RESTORING: u8 = 0;
const RESTORED: u8 = 1;
const GIVEN_UP: u8 = 2;

/// A snapshot of another member's state (V7), or one that lies beside this node's log (P4): read it to its end, make it this node's state
/// instead of whatever there was, then call [`Restore::finish`]. What follows, messages and views, is what was delivered since. It may happen
/// again, with another snapshot, if the member that it came from was lost meanwhile, or has gone on without this node for too long.
///
/// May be kept and read on another thread; nothing is delivered until it is finished. Dropped without that, the node stops: it can't
/// go on without a state.
pub struct Restore {
    source: Source,
    /// Bytes that were read.
    at: u64,
    /// The piece that is being read, and how much of it was.
    piece: Vec<u8>,
    within: usize,
    progress: Arc<Progress>,
}

/// Where it is read.
pub(super) enum Source {
    /// What another member has taught.
    Taught(Pieces),
    /// Beside the log.
    Log(SnapshotReader),
}

/// A whole snapshot.
#[derive(Clone)]
pub(super) struct Pieces {
    pub(super) file: Arc<File>,
    pub(super) digests: Arc<[Digest]>,
    pub(super) len: u64,
}

/// How far the application is with restoring.
pub(super) struct Progress {
    state: AtomicU8,
    bell: Doorbell,
}

impl Restore {
    pub(super) fn new(source: Source, progress: Arc<Progress>) -> Self {
        Self { source, at: 0, piece: Vec::new(), within: 0, progress }
    }

    /// Bytes of the snapshot.
    #[expect(clippy::len_without_is_empty, reason = "an empty state is a state like others")]
    pub fn len(&self) -> u64 {
        match &self.source {
            Source::Taught(pieces) => pieces.len,
            Source::Log(reader) => reader.len(),
        }
    }

    /// The state is restored: go on.
    pub fn finish(self) {
        self.progress.set(RESTORED);
    }
}

impl Read for Restore {
    /// # Errors
    /// The file that keeps the snapshot can't be read, or what is read is not what was written.
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let left = self.len() - self.at;
        if left == 0 || buffer.is_empty() {
            return Ok(0);
        }
        if self.within == self.piece.len() {
            self.within = 0;
            self.source.read(self.at, left, &mut self.piece).inspect_err(|_| self.piece.clear())?;
        }
        let rest = &self.piece[self.within..];
        let len = buffer.len().min(rest.len());
        buffer[..len].copy_from_slice(&rest[..len]);
        self.within += len;
        self.at += len as u64;
        Ok(len)
    }
}

impl Source {
    /// Reads the piece that begins at `at`; `left` bytes are left of the state.
    fn read(&mut self, at: u64, left: u64, piece: &mut Vec<u8>) -> Result<()> {
        match self {
            Self::Taught(pieces) => {
                piece.resize(left.min(CHUNK as u64) as usize, 0);
                pieces.file.read_exact_at(piece, at)?;
                let known = pieces.digests.get((at / CHUNK as u64) as usize);
                if known != Some(&digest(piece)) {
                    let what =
                        "the file that keeps the snapshot changed under it, or another snapshot replaced it";
                    return Err(Error::new(ErrorKind::InvalidData, what));
                }
                Ok(())
            }
            Self::Log(reader) => {
                reader.read(piece).map_err(|error| Error::new(ErrorKind::InvalidData, error.to_string()))
            }
        }
    }
}

impl Drop for Restore {
    fn drop(&mut self) {
        if self.progress.state.load(Ordering::Acquire) == RESTORING {
            self.progress.set(GIVEN_UP);
        }
    }
}

impl fmt::Debug for Restore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Restore({} of {} bytes)", self.at, self.len())
    }
}

impl Progress {
    pub(super) fn new(bell: Doorbell) -> Arc<Self> {
        Arc::new(Self { state: AtomicU8::new(RESTORING), bell })
    }

    /// Whether it has; `None` while it is at it.
    pub(super) fn is_restored(&self) -> Option<bool> {
        match self.state.load(Ordering::Acquire) {
            RESTORING => None,
            state => Some(state == RESTORED),
        }
    }

    fn set(&self, state: u8) {
        self.state.store(state, Ordering::Release);
        self.bell.ring();
    }
}
