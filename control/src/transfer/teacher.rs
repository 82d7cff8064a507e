//! [`Teacher`]: makes lessons of a snapshot, as fast as the pupil takes them.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Result};

use super::{CHUNK, Digest, Lesson, Took, WINDOW, digest};

/// The source's side of one snapshot. Pure but for the reader, which may block.
pub struct Teacher<R> {
    reader: R,
    /// The pupil has so many pieces from before: their bytes are sent only if they differ.
    held: u64,
    /// Pieces read, and taken by the pupil.
    read: u64,
    taken: u64,
    len: u64,
    whole: blake3::Hasher,
    is_read: bool,
    /// Pieces of which only the digest was sent.
    offered: VecDeque<(u64, Digest, Vec<u8>)>,
}

impl<R: Read> Teacher<R> {
    /// A snapshot for a pupil that has `held` pieces from before.
    pub fn new(reader: R, held: u64) -> Self {
        let whole = blake3::Hasher::new();
        Self { reader, held, read: 0, taken: 0, len: 0, whole, is_read: false, offered: VecDeque::new() }
    }

    /// Whether another lesson may be sent now.
    pub fn may_go_on(&self) -> bool {
        !self.is_read && self.read < self.taken.saturating_add(WINDOW)
    }

    /// Whether the pupil has everything.
    pub fn is_done(&self) -> bool {
        self.is_read && self.taken >= self.read
    }

    /// The next lesson. Blocks as the reader does.
    ///
    /// # Errors
    /// The reader's.
    pub fn next_lesson(&mut self) -> Result<Lesson> {
        let mut bytes = Vec::with_capacity(CHUNK);
        while bytes.len() < CHUNK {
            let have = bytes.len();
            match self.reader.by_ref().take((CHUNK - have) as u64).read_to_end(&mut bytes) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if bytes.is_empty() {
            self.is_read = true;
            let digest = *self.whole.finalize().as_bytes();
            return Ok(Lesson::Whole { chunks: self.read, len: self.len, digest });
        }
        let (number, digest) = (self.read, digest(&bytes));
        self.whole.update(&digest);
        self.len += bytes.len() as u64;
        self.read += 1;
        if number >= self.held {
            return Ok(Lesson::Chunk { number, digest, bytes: Some(bytes) });
        }
        self.offered.push_back((number, digest, bytes));
        Ok(Lesson::Chunk { number, digest, bytes: None })
    }

    /// The pupil says how far it is; if it lacks a piece, this is the lesson again, with the bytes.
    pub fn on_took(&mut self, took: Took) -> Option<Lesson> {
        match took {
            Took::Chunks(below) => {
                self.taken = self.taken.max(below.min(self.read));
                while self.offered.front().is_some_and(|(number, ..)| *number < self.taken) {
                    self.offered.pop_front();
                }
                None
            }
            Took::Lacks(wanted) => {
                let (number, digest, bytes) = self.offered.iter().find(|(number, ..)| *number == wanted)?;
                Some(Lesson::Chunk { number: *number, digest: *digest, bytes: Some(bytes.clone()) })
            }
            Took::Tail(_) => None,
        }
    }
}
