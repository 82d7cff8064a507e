//! State transfer (V7): how a joiner comes to have the application's state, as values and pure parts. It is sent over the control link
//! between the joiner (the *pupil*) and one member that has the state (the *source*), while the group runs on.
//!
//! ```text
//!  pupil                               source
//!  Learn ───────────────────────────►  asks its application for a snapshot, at some place in the order; from there on it
//!                                      records what it delivers
//!        ◄─── Chunk, Chunk, … Whole    the snapshot, in pieces of 64 KiB, each with its digest
//!        ◄─── Tail, Tail, …            the record: messages and views, in order
//!  Took ────────────────────────────►  so far; the source is at most WINDOW pieces ahead
//!  restores, then delivers the tail
//!  Linked, to all members ──────────►  a view admits it
//!        ◄─── … Tail                   to the end of the view before, and the word that it is: the next messages are the ring's
//! ```
//!
//! - **Nothing half.** The pupil keeps the snapshot aside until all of it is there and its digest is right; only then does the
//!   application see it.
//! - **Resumable.** If the source is lost the pupil asks another, whose snapshot is another's, of another place in the order. Of the pieces
//!   that the pupil has, the new source sends only the digests at first, and the bytes of those that differ.
//! - **Complete.** The source records everything that its application is given after the snapshot. The pupil may be admitted only by a view in
//!   which its source goes on: so the source delivers the view before to its end, which is where the pupil's own session begins.
//!   If the source is lost after that and before it has said the last, the pupil leaves and comes again.

use consort_dataplane::names::NodeId;
use serde::{Deserialize, Serialize};

use crate::view::{Incarnation, ShardId};

mod teacher;
mod tail;

pub use tail::{Entry, Tails, TornTail};
pub use teacher::Teacher;

/// Bytes of one piece; the last may have less.
pub const CHUNK: usize = 64 << 10;

/// How many pieces the source may be ahead of what the pupil has taken.
pub const WINDOW: u64 = 32;

/// What is known of bytes that were not compared.
pub type Digest = [u8; blake3::OUT_LEN];

/// A joiner that learns, and the how manyth time it tries.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Pupil {
    /// What it learns.
    pub shard: ShardId,
    /// Who.
    pub node: NodeId,
    /// Which of its lives.
    pub incarnation: Incarnation,
    /// Counts its attempts, over all sources.
    pub attempt: u64,
}

/// From the source.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Lesson {
    /// A piece of the snapshot.
    Chunk {
        /// Which, from 0, without a gap.
        number: u64,
        /// The digest of its bytes.
        digest: Digest,
        /// Its bytes; left out if the pupil said that it has so many pieces from before.
        #[serde(with = "serde_bytes")]
        bytes: Option<Vec<u8>>,
    },
    /// The snapshot is that long.
    Whole {
        /// Pieces.
        chunks: u64,
        /// Bytes.
        len: u64,
        /// The digest of all pieces' digests.
        digest: Digest,
    },
    /// A piece of what was delivered since ([`Entry`]).
    Tail {
        /// Which, from 0, without a gap.
        number: u64,
        /// Its bytes.
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
    },
    /// There will be no more, and why.
    Refused(String),
}

/// What a member gives of the log of a durable shard (P3).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Given {
    /// What lies there; none if there is no more yet.
    Records(#[serde(with = "serde_bytes")] Vec<u8>),
    /// That has gone. This lies there in the file of the snapshot which took its place (P4),
    Snapshot {
        /// behind that record,
        index: u64,
        /// of so many bytes.
        len: u64,
        /// The part.
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
    },
    /// What it is to follow on is not in this log: the other's is of another history.
    Other,
}

impl Given {
    /// How many bytes of the log it gives.
    pub fn len(&self) -> usize {
        match self {
            Self::Records(bytes) | Self::Snapshot { bytes, .. } => bytes.len(),
            Self::Other => 0,
        }
    }

    /// Whether it gives what stands for the records.
    pub fn is_snapshot(&self) -> bool {
        matches!(self, Self::Snapshot { .. })
    }

    /// Whether that is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// From the pupil: how far it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Took {
    /// It has all pieces of the snapshot below this one.
    Chunks(u64),
    /// It has another piece than that one: send its bytes.
    Lacks(u64),
    /// It has all pieces of the tail below this one.
    Tail(u64),
}

impl Lesson {
    /// A refusal, for a reason that is cut to the length that it may have.
    pub fn refused(mut reason: String) -> Self {
        while reason.len() > REASON {
            reason.pop();
        }
        Self::Refused(reason)
    }

    /// Whether its parts have the length that they may have.
    pub fn is_bounded(&self) -> bool {
        match self {
            Self::Chunk { bytes, .. } => bytes.as_ref().is_none_or(|bytes| bytes.len() <= CHUNK),
            Self::Tail { bytes, .. } => bytes.len() <= CHUNK,
            Self::Refused(reason) => reason.len() <= REASON,
            Self::Whole { .. } => true,
        }
    }
}

/// The longest reason for a refusal, in bytes.
pub const REASON: usize = 1024;

/// The digest of bytes.
pub fn digest(bytes: &[u8]) -> Digest {
    *blake3::hash(bytes).as_bytes()
}

/// The digest of a whole snapshot.
pub fn whole(digests: &[Digest]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    for digest in digests {
        hasher.update(digest);
    }
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests;
