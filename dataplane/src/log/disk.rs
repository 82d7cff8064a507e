//! [`Disk`]: one directory, as a log needs it. Real ones are in the crate for machines; [`crate::sim::disk`] has one that fails
//! on purpose.
//!
//! Two ways in. While a log is opened, read or repaired its owner waits for each call. While it is written, [`Disk::submit`] takes
//! jobs, which are done one after the other by somebody else, and [`Disk::poll`] tells of those that are done: neither waits.
//!
//! # The contract
//! - *Flushed is kept.* When a [`Job::Write`] is done well, what it wrote is there after any crash; so is every file that a job or call
//!   has created, replaced, cut or deleted.
//! - *Not flushed is anything*: after a crash any part of a write may be there, in whatever order, whole or torn.
//! - *A failure is final.* After a write or flush has failed nobody knows what is there; trying again proves nothing (P2).

use std::fmt;
use std::ops::Range;

use crate::fabric::Doorbell;
use crate::memory::Mirror;

/// How the name of a file ends that isn't finished. The next who opens the directory to write removes it.
pub const UNFINISHED: &str = ".tmp";

/// What kind of failure, as far as it tells what to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum DiskTrouble {
    /// There is no room left.
    Full,
    /// Nothing may be written there.
    ReadOnly,
    /// There is no such file.
    Missing,
    /// Somebody else uses the directory.
    InUse,
    /// Anything else: the device, most likely.
    Failed,
}

/// A disk refused something. Prints with what to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DiskError {
    /// What kind.
    pub trouble: DiskTrouble,
    /// What was being done, to which file, and the system's words.
    pub what: String,
}

impl DiskError {
    /// An error of that kind.
    pub fn new(trouble: DiskTrouble, what: impl Into<String>) -> Self {
        Self { trouble, what: what.into() }
    }

    /// What to do about it.
    pub fn remedy(&self) -> &'static str {
        match self.trouble {
            DiskTrouble::Full => {
                "free some space, or take snapshots more often, so that old segments can go; then start the node again"
            }
            DiskTrouble::ReadOnly => {
                "make the directory writable for this user, and its file system mounted for writing"
            }
            DiskTrouble::Missing => "check the path of the data directory",
            DiskTrouble::InUse => "stop the process that uses the data directory, or give this node another",
            DiskTrouble::Failed => {
                "look at the kernel's log for the device's state; if it is failing, give the node an empty directory on another \
                 device: it gets its log from the other members"
            }
        }
    }
}

impl fmt::Display for DiskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.what, self.remedy())
    }
}

impl std::error::Error for DiskError {}

/// A part of what is to be written.
#[derive(Clone, Debug)]
pub enum Piece {
    /// Of the batch's own bytes.
    Staged(Range<usize>),
    /// Where it lies, in ring memory: whoever submits it sees to it that nobody writes there before the job is done. The handle keeps the
    /// memory mapped; what is read of bytes that changed all the same is caught by the record's sum.
    Lying(Mirror, Range<usize>),
}

impl Piece {
    /// Bytes in it.
    pub fn len(&self) -> usize {
        match self {
            Self::Staged(range) | Self::Lying(_, range) => range.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What is written at once and flushed once: records that lie one after the other in one file.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Into which file,
    pub name: String,
    /// from which byte on.
    pub at: u64,
    /// The batch's own bytes.
    pub staged: Vec<u8>,
    /// What is written, in this order.
    pub pieces: Vec<Piece>,
}

impl Batch {
    /// Bytes that it writes.
    pub fn len(&self) -> usize {
        self.pieces.iter().map(Piece::len).sum()
    }

    /// Whether it writes none.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }
}

/// Something to be done while the log goes on.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Job {
    /// Write these, and flush.
    Write(Batch),
    /// As [`Disk::create`].
    Create(String, u64),
    /// As [`Disk::delete`].
    Delete(String),
    /// As [`Disk::replace`].
    Replace(String, Vec<u8>),
    /// Gives the first file the name of the second, and takes the place of whatever has it.
    Rename(String, String),
}

/// A job that is over, handed back with its buffers.
#[derive(Debug)]
pub struct Done {
    /// Which.
    pub job: Job,
    /// How it went.
    pub result: Result<(), DiskError>,
}

/// A directory. See the [module](self).
pub trait Disk: Send {
    /// The files, with their sizes in bytes, in any order.
    ///
    /// # Errors
    /// The directory can't be read.
    fn list(&mut self) -> Result<Vec<(String, u64)>, DiskError>;

    /// Fills `into` with what lies from `at` on, as far as the file goes. Returns how much that was.
    ///
    /// # Errors
    /// The file can't be read.
    fn read(&mut self, name: &str, at: u64, into: &mut [u8]) -> Result<usize, DiskError>;

    /// Reads a part of a file, writes the same there and flushes it.
    ///
    /// # Errors
    /// It can't be done (P2).
    fn rewrite(&mut self, name: &str, range: Range<u64>) -> Result<(), DiskError>;

    /// Makes a file of so many zeros, with room reserved for all of it.
    ///
    /// # Errors
    /// There is one, or it can't be made.
    fn create(&mut self, name: &str, bytes: u64) -> Result<(), DiskError>;

    /// Makes zeros of what lies from `at` on, up to a size of `bytes`.
    ///
    /// # Errors
    /// It can't be done.
    fn cut(&mut self, name: &str, at: u64, bytes: u64) -> Result<(), DiskError>;

    /// Puts a file there, or another in its place: at every moment, and after every crash, there is the old one or the new one, whole.
    ///
    /// # Errors
    /// It can't be done. The old one is there still.
    fn replace(&mut self, name: &str, content: &[u8]) -> Result<(), DiskError>;

    /// As [`Disk::replace`], with content that comes in parts: `next` adds to the empty buffer that it is given, until it adds nothing.
    ///
    /// # Errors
    /// As there, and what `next` fails with.
    fn replace_with(
        &mut self,
        name: &str,
        next: &mut dyn FnMut(&mut Vec<u8>) -> Result<(), DiskError>,
    ) -> Result<(), DiskError>;

    /// Removes a file.
    ///
    /// # Errors
    /// It can't be done; that there is none is no failure.
    fn delete(&mut self, name: &str) -> Result<(), DiskError>;

    /// Takes a job. Never waits.
    fn submit(&mut self, job: Job);

    /// A job that is over, in the order in which they were taken. Never waits.
    fn poll(&mut self) -> Option<Done>;

    /// A second handle, to read what this one writes.
    fn beside(&self) -> Box<dyn Disk>;

    /// Whether [`Disk::poll`] would have something to tell.
    fn has_news(&self) -> bool;

    /// What to ring when a job is over.
    fn set_bell(&mut self, bell: Doorbell);
}
