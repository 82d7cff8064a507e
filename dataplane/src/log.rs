//! The log of a durable group at one of its members (P1, P4): an append-only run of records in segment files, and what there is
//! beside it in a data directory.
//!
//! # One record's life
//! 1. The engine has a message that is ordered and stable, and [appends](Log::append) it: the record's header and sums are made, a short
//!    payload is copied behind it into the open batch, a long one stays where it lies in ring memory.
//! 2. In its [turn](Log::turn) the log finds that no write is under way, and hands the open batch to the [`disk`]: all that was
//!    appended since the last time, in one write and one flush (D9). While that is under way the next batch fills up.
//! 3. The flush is over: [`Log::durable`] moves on, over all of the batch at once.
//!
//! A flush that fails is never tried again (P2): the kernel may have thrown the bytes away and call the next one a success. The log takes
//! and says nothing more, and its member stops.
//!
//! # Coming back
//! [`Log::open`] reads everything there is ([`scan()`]). A torn tail is cut off: nobody was told that it is durable. A log that is
//! *damaged*, in which something is bad that had been flushed, isn't opened: [`OpenError::Damaged`] says where it
//! ends, and [`repair`] makes a sound one of what is before that, marked as one that lacks something, so that it is never taken for
//! all that its member once had (P3).
//!
//! # Files
//! ```text
//! DIR/meta                        who this node is, its last view, the marks (see `meta`)
//! DIR/shard-0/0000000000000001.log  segments, by number
//! DIR/shard-0/0000000000000800.snap a snapshot: the application's state behind that record
//! ```
//!
//! # Modules, in reading order
//! [`disk`]: a directory as the log needs it; [`format`](mod@format): the bytes; [`scan`](mod@scan): which of them are the log; [`reader`]: from a place on;
//! [`snapshot`]; [`meta`]; [`writer`]: the log that is written.

pub mod disk;
pub mod format;
pub mod scan;
pub mod reader;
pub mod snapshot;
pub mod meta;
pub mod writer;

use std::fmt;

pub use disk::{Disk, DiskError, DiskTrouble};
pub use format::{LogKind, RecordHeader, Stamp};
pub use meta::Meta;
pub use reader::{From, ReadError, Reader};
pub use scan::{Condition, Scan, Spot, Tip, scan};
pub use writer::{AppendError, CopyError, Entry, Log, LogCounts, LogOptions, OpenError, Payload, repair};

/// A record's number in a log, from 1, counted through all views; 0 is before the first. The same at all members of a shard.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Index(pub u64);

impl Index {
    /// The number of the record after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// As [`scan()`], behind the newest snapshot that is sound, telling every record that is.
///
/// # Errors
/// As there.
pub fn scan_each(disk: &mut dyn Disk, each: &mut dyn FnMut(&RecordHeader, &[u8])) -> Result<Scan, DiskError> {
    let (snapshot, _) = snapshot::newest(disk)?;
    let tip = snapshot.map(|(tip, _)| tip).unwrap_or_default();
    scan::scan_with(disk, Index(0), tip, scan::Rules::default(), each)
}

/// Rules to break on purpose, so that tests can show that they would notice.
#[cfg(feature = "mutants")]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mutant {
    /// P2: a flush that failed is tried again.
    RetryFlush,
    /// The chain isn't looked at.
    NoChain,
    /// Sums aren't looked at.
    NoSum,
    /// A write doesn't wait for the flush of the one before.
    NoWait,
}

/// The name of the file of a segment.
pub fn segment_name(number: u64) -> String {
    format!("{number:016x}.log")
}

/// Which segment's file that is.
pub fn segment_number(name: &str) -> Option<u64> {
    numbered(name, ".log")
}

fn numbered(name: &str, end: &str) -> Option<u64> {
    let digits = name.strip_suffix(end)?;
    let is_plain = digits.len() == 16 && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if is_plain { u64::from_str_radix(digits, 16).ok() } else { None }
}

#[cfg(all(test, not(loom)))]
mod tests;
