//! [`Ahead`]: blocks of a log's file that are written before the log comes to them.
//!
//! That room is in use, and no longer only reserved, is something that the file system has to note with the first flush of it: the flush
//! waits for more than its own bytes. A block that was written once is flushed without that. So while batches are small, where what counts is how long a
//! flush takes, zeros are written in front of them, which is what is there already: a log's files are made as zeros, and written from their beginning to
//! their end. A log that is busy with many bytes isn't made to write them twice.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use consort_dataplane::log::disk::Batch;

use super::direct::{self, ZEROS};

/// So far ahead.
const FAR: u64 = 1 << 20;

/// As long as so much is left, more can wait until there is nothing else to do.
const HALF: u64 = FAR / 2;

/// A batch of more is one of a log for which bytes count. At a thousand flushes a second that is 32 MB/s.
pub(super) const SMALL: u64 = 32 << 10;

/// What is written ahead shares no block with the last batch.
const BLOCK: u64 = direct::BLOCK as u64;

/// When zeros are to be written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum When {
    /// Not before the next batch.
    Later,
    /// When there is nothing else to do.
    Idle,
    /// The next batch would come to blocks that weren't written.
    Now,
}

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Ahead {
    /// The file of the last batch.
    name: String,
    /// Where that batch ended.
    batch_end: u64,
    /// How far the file is written.
    end: u64,
    /// That is to its end.
    is_full: bool,
    is_small: bool,
}

impl Ahead {
    /// A batch was written.
    pub(super) fn on_written(&mut self, batch: &Batch) {
        if self.name != batch.name {
            self.name.clone_from(&batch.name);
            (self.end, self.is_full) = (0, false);
        }
        let len = batch.len() as u64;
        self.batch_end = batch.at + len;
        self.end = self.end.max(self.batch_end.next_multiple_of(BLOCK));
        self.is_small = len <= SMALL;
    }

    /// Whether zeros are to be written.
    pub(super) fn when(&self) -> When {
        if !self.is_small || self.is_full {
            return When::Later;
        }
        match self.end - self.batch_end {
            0..=SMALL => When::Now,
            left if left < HALF => When::Idle,
            _ => When::Later,
        }
    }

    /// Writes and flushes them. What can't be written is left to the batches.
    ///
    /// # Errors
    /// The flush failed: then nobody knows what of the file is there (P2).
    pub(super) fn write(&mut self, directory: &Path) -> io::Result<()> {
        self.is_small = false; // whatever comes of it, not again before the next batch
        let path = directory.join(&self.name);
        let Some((file, size)) = direct::open(&path).or_else(|| open(&path)) else { return Ok(()) };
        let to = (self.batch_end + FAR).min(size) / BLOCK * BLOCK;
        self.is_full = to + BLOCK > size;
        let zeros = vec![ZEROS; usize::try_from(to.saturating_sub(self.end) / BLOCK).unwrap_or(0)];
        if let Err(cause) = file.write_all_at(direct::bytes(&zeros), self.end) {
            tracing::debug!(%cause, file = self.name, "nothing is written ahead");
            return Ok(());
        }
        self.end = self.end.max(to);
        file.sync_data()
    }
}

/// Through the kernel's cache, as its batches are written then, too.
fn open(path: &Path) -> Option<(File, u64)> {
    let file = OpenOptions::new().write(true).open(path).ok()?;
    let size = file.metadata().ok()?.len();
    Some((file, size))
}

#[cfg(test)]
mod tests {
    use consort_dataplane::log::disk::Piece;

    use super::*;

    fn batch(at: u64, len: usize) -> Batch {
        Batch { name: "file".to_owned(), at, staged: vec![1; len], pieces: vec![Piece::Staged(0..len)] }
    }

    #[test]
    fn zeros_go_between_the_last_batch_and_the_files_end_and_no_farther() {
        let place = std::env::temp_dir().join(format!("consort-ahead-{}", std::process::id()));
        std::fs::create_dir_all(&place).unwrap();
        let (path, size) = (place.join("file"), 3 * FAR + 100);
        // What lies ahead isn't zeros here, so that it shows where these are written.
        std::fs::write(&path, vec![1; size as usize]).unwrap();
        let zeros = || {
            let content = std::fs::read(&path).unwrap();
            assert_eq!(content.len() as u64, size);
            let from = content.iter().position(|byte| *byte == 0).unwrap_or(0);
            let len = content[from..].iter().position(|byte| *byte != 0).unwrap_or(content.len() - from);
            from as u64..(from + len) as u64
        };
        let mut ahead = Ahead::default();
        let when = |ahead: &mut Ahead, at, len| {
            ahead.on_written(&batch(at, len));
            ahead.when()
        };
        assert_eq!(ahead.when(), When::Later, "before there is a batch");
        assert_eq!(when(&mut Ahead::default(), 0, SMALL as usize + 1), When::Later, "a large batch");
        assert_eq!(when(&mut ahead, 0, 5000), When::Now);
        ahead.write(&place).unwrap();
        assert_eq!((ahead.when(), zeros()), (When::Later, 2 * BLOCK..FAR + BLOCK));
        assert_eq!(when(&mut ahead, HALF, BLOCK as usize), When::Later, "just enough");
        assert_eq!(when(&mut ahead, HALF, BLOCK as usize + 1), When::Idle);
        assert_eq!(when(&mut ahead, FAR, 100), When::Now);
        ahead.write(&place).unwrap();
        assert_eq!(zeros(), 2 * BLOCK..2 * FAR, "it goes on where it was");
        assert_eq!(when(&mut ahead, 2 * FAR + BLOCK, 5000), When::Now, "a batch has overtaken it");
        ahead.write(&place).unwrap();
        let content = std::fs::read(&path).unwrap();
        let [from, to] = [2 * FAR + 3 * BLOCK, 3 * FAR].map(|at| at as usize);
        assert!(content[from..to].iter().all(|byte| *byte == 0) && content[to..] == [1; 100], "whole blocks");
        assert_eq!(when(&mut ahead, 3 * FAR, 10), When::Later, "that was all of it");
        std::fs::remove_dir_all(&place).unwrap();
    }

    #[test]
    fn a_file_that_is_gone_is_nobodys_loss() {
        let mut ahead = Ahead::default();
        ahead.on_written(&batch(0, 10));
        assert_eq!(ahead.when(), When::Now);
        ahead.write(Path::new("/nowhere")).unwrap();
        assert_eq!(ahead.when(), When::Later, "it is not tried again and again");
    }
}
