//! [`Direct`]: batches written as whole blocks, past the kernel's cache of files.
//!
//! A log is written once, flushed at once and hardly ever read: the cache's pages would be found, filled, noted, written and dropped for nothing, which
//! takes longer than a quick disk does. Written directly (`O_DIRECT`) a batch goes from memory of ours to the device. Such a write has to be of
//! whole blocks: the first has what lies in it before the batch, the last has zeros behind it, which is what is there (the log's
//! files are made as zeros, and written from their beginning to their end). A block of which a part is flushed is written again with the same in
//! that part, as the kernel does with its pages.
//!
//! `unsafe` is allowed here (S2) for reading ring memory that a batch lends, and for showing blocks as bytes.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use consort_dataplane::log::disk::{Batch, Piece};
use rustix::fs::{AtFlags, StatxFlags, statx};

/// What is written begins and ends at multiples of this, in the file and in memory. More than any device asks for that files are on.
pub(super) const BLOCK: usize = 4096;

/// Blocks that are written at once, at most: 8 MiB.
const MOST: usize = 2048;

/// Bytes that lie at a multiple of their number.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(4096))]
pub(super) struct Block([u8; BLOCK]);

pub(super) const ZEROS: Block = Block([0; BLOCK]);

/// Some blocks as bytes.
pub(super) fn bytes(blocks: &[Block]) -> &[u8] {
    // SAFETY: a block is its bytes and nothing else, and the slice lives as long as they do.
    unsafe { std::slice::from_raw_parts(blocks.as_ptr().cast(), blocks.len() * BLOCK) }
}

/// Opens a file to be written directly, and says how long it is; none where that can't be, or the system doesn't say how.
pub(super) fn open(path: &Path) -> Option<(File, u64)> {
    let file = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(path).ok()?;
    // No times: a kernel that was asked for a file's times notes the next change to the nanosecond, which is one more block to flush.
    let asked = StatxFlags::SIZE | StatxFlags::DIOALIGN;
    let told = statx(file.as_fd(), c"", AtFlags::EMPTY_PATH, asked).ok()?;
    let fits = |align: u32| align > 0 && BLOCK.is_multiple_of(align as usize);
    let is_told = told.stx_mask & StatxFlags::DIOALIGN.bits() != 0;
    (is_told && fits(told.stx_dio_mem_align) && fits(told.stx_dio_offset_align))
        .then_some((file, told.stx_size))
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Direct {
    /// What is written at once, and what is left of earlier batches.
    blocks: Vec<Block>,
    /// The last batch's file, where it ended there, and the block in which that was, with zeros behind it. A batch that doesn't begin there, because
    /// the file was cut, or is another of that name, finds in the file what lies before it.
    name: String,
    end: u64,
    last: Block,
}

/// Writes blocks to a place in a file, and flushes them if they are the last.
type Write<'a> = dyn FnMut(&File, &[Block], u64, bool) -> io::Result<()> + 'a;

impl Direct {
    pub(super) fn new() -> Self {
        Self { blocks: Vec::new(), name: String::new(), end: 0, last: ZEROS }
    }

    fn block(&mut self, at: usize) -> &mut Block {
        while self.blocks.len() <= at {
            self.blocks.push(ZEROS);
        }
        &mut self.blocks[at]
    }

    /// Has a batch written to the file at `path`. Returns false, and has written nothing, if that can't be done with whole blocks, or not directly.
    ///
    /// # Errors
    /// Those of `write`, and of reading what lies before the batch. Then nobody knows what is there.
    pub(super) fn write(&mut self, path: &Path, batch: &Batch, write: &mut Write<'_>) -> io::Result<bool> {
        let follows = self.name == batch.name && self.end == batch.at;
        self.name.clear(); // until it is written
        let Some((file, size)) = open(path) else { return Ok(false) };
        let end = batch.at + batch.len() as u64;
        if end.next_multiple_of(BLOCK as u64) > size || end == batch.at {
            return Ok(false);
        }
        let within = (batch.at % BLOCK as u64) as usize; // less than a block
        let mut at = batch.at - within as u64;
        if !follows {
            self.last = ZEROS;
            File::open(path)?.read_exact_at(&mut self.last.0[..within], at)?;
        }
        self.block(0).0 = self.last.0;
        let mut filled = within;
        for piece in &batch.pieces {
            let mut rest = slice(batch, piece)?;
            while !rest.is_empty() {
                if filled == MOST * BLOCK {
                    write(&file, &self.blocks[..MOST], at, false)?;
                    at += filled as u64;
                    filled = 0;
                }
                let from = filled % BLOCK;
                let (part, more) = rest.split_at(rest.len().min(BLOCK - from));
                self.block(filled / BLOCK).0[from..from + part.len()].copy_from_slice(part);
                filled += part.len();
                rest = more;
            }
        }
        // There is at least one byte of the batch in them.
        let count = filled.div_ceil(BLOCK);
        let last = self.block(count - 1);
        last.0[filled - (count - 1) * BLOCK..].fill(0);
        self.last = *last;
        write(&file, &self.blocks[..count], at, true)?;
        self.name.clone_from(&batch.name);
        self.end = end;
        Ok(true)
    }
}

/// The bytes of a piece.
pub(super) fn slice<'a>(batch: &'a Batch, piece: &'a Piece) -> io::Result<&'a [u8]> {
    match piece {
        Piece::Staged(range) => batch.staged.get(range.clone()).ok_or(io::ErrorKind::InvalidInput.into()),
        Piece::Lying(memory, range) if range.start <= range.end && range.end <= memory.size() => {
            // SAFETY: whoever submitted the batch sees to it that nobody writes there before the job is done.
            Ok(unsafe { memory.bytes(range.clone()) })
        }
        Piece::Lying(..) => Err(io::ErrorKind::InvalidInput.into()),
    }
}
