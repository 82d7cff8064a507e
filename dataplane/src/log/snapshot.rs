//! Snapshots: the application's state behind some record, in a file of its own beside the segments. What is before it in the log may go.
//!
//! ```text
//! 0   magic "CONSSNP1"
//! 8   index of the last record in it      40  stamp of that        all little-endian
//! 16  its view                            48  chain behind it
//! 24  the sequence of what follows        52  zeros
//! 32  zeros                               60  sum of bytes 0 to 60
//! 64  the state, as the application wrote it …
//! end - 16   bytes of the state           end - 8  sum of the state      end - 4  sum of these 12 bytes
//! ```
//! It is written under another name, flushed, and then given its own: a snapshot that is there is whole, or damaged.

use super::disk::{Disk, DiskError, DiskTrouble};
use super::format::{Stamp, sum};
use super::scan::Tip;
use super::{Index, numbered};
use crate::names::{Seq, ViewId};

const MAGIC: [u8; 8] = *b"CONSSNP1";
const HEADER: usize = 64;
const FOOTER: usize = 16;
/// Bytes read at once.
const PART: usize = 1 << 20;

/// The name of the file of the snapshot behind a record.
pub fn name(index: Index) -> String {
    format!("{:016x}.snap", index.0)
}

/// The snapshots in a directory, newest first, whether sound or not.
///
/// # Errors
/// The directory can't be read.
pub fn list(disk: &mut dyn Disk) -> Result<Vec<(Index, u64)>, DiskError> {
    let files = disk.list()?.into_iter();
    let mut all: Vec<_> =
        files.filter_map(|(name, bytes)| Some((Index(numbered(&name, ".snap")?), bytes))).collect();
    all.sort_unstable_by(|one, other| other.cmp(one));
    Ok(all)
}

/// Writes the snapshot of the state behind `tip`. `next` adds a part of the state to the empty buffer that it is given, until it adds nothing.
///
/// # Errors
/// It can't be written; there is none then.
pub fn write(
    disk: &mut dyn Disk,
    tip: &Tip,
    next: &mut dyn FnMut(&mut Vec<u8>) -> Result<(), DiskError>,
) -> Result<(), DiskError> {
    let mut head = [0; HEADER];
    head[0..8].copy_from_slice(&MAGIC);
    let numbers = [tip.index.0, tip.view.0, tip.next_seq.0, 0, tip.stamp.0];
    for (place, number) in head[8..48].chunks_exact_mut(8).zip(numbers) {
        place.copy_from_slice(&number.to_le_bytes());
    }
    head[48..52].copy_from_slice(&tip.chain.to_le_bytes());
    let of_head = sum(0, &head[..60]);
    head[60..].copy_from_slice(&of_head.to_le_bytes());
    let (mut begun, mut done, mut bytes, mut all) = (false, false, 0_u64, 0);
    disk.replace_with(&name(tip.index), &mut |part| {
        if !begun {
            begun = true;
            part.extend_from_slice(&head);
            return Ok(());
        }
        if done {
            return Ok(());
        }
        next(part)?;
        (bytes, all) = (bytes + part.len() as u64, sum(all, part));
        if part.is_empty() {
            done = true;
            part.extend_from_slice(&bytes.to_le_bytes());
            part.extend_from_slice(&all.to_le_bytes());
            let of_these = sum(0, part);
            part.extend_from_slice(&of_these.to_le_bytes());
        }
        Ok(())
    })
}

/// Reads a snapshot, all of it, and gives its parts to `each` in their order. What they say counts only once this returns: the sum
/// stands at the end. Returns behind which record it is.
///
/// # Errors
/// It can't be read, or is not as it was written.
pub fn read(disk: &mut dyn Disk, index: Index, each: &mut dyn FnMut(&[u8])) -> Result<Tip, DiskError> {
    let name = name(index);
    let damaged =
        |why: &str| DiskError::new(DiskTrouble::Failed, format!("the snapshot {name} is damaged: {why}"));
    let mut head = [0; HEADER];
    let got = disk.read(&name, 0, &mut head)?;
    let number = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().unwrap_or_default());
    let word = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().unwrap_or_default());
    if got < HEADER || head[0..8] != MAGIC || word(60) != sum(0, &head[..60]) || number(8) != index.0 {
        return Err(damaged("no snapshot of that record begins like that"));
    }
    let tip = Tip {
        index,
        view: ViewId(number(16)),
        next_seq: Seq(number(24)),
        stamp: Stamp(number(40)),
        chain: word(48),
    };
    let (mut at, mut all) = (HEADER as u64, 0);
    // What may be the footer is held back until more has come.
    let mut held: Vec<u8> = Vec::new();
    loop {
        let kept = held.len();
        held.resize(kept + PART, 0);
        let got = disk.read(&name, at, &mut held[kept..])?;
        held.truncate(kept + got);
        at += got as u64;
        if got == 0 {
            break;
        }
        let state = held.len().saturating_sub(FOOTER);
        all = sum(all, &held[..state]);
        each(&held[..state]);
        held.drain(..state);
    }
    let Some(footer) = held.first_chunk::<FOOTER>() else { return Err(damaged("it ends early")) };
    let [of_state, of_these] =
        [8, 12].map(|at| u32::from_le_bytes(footer[at..at + 4].try_into().unwrap_or_default()));
    let bytes = u64::from_le_bytes(footer[..8].try_into().unwrap_or_default());
    if of_these != sum(0, &footer[..12]) || bytes != at - (HEADER + FOOTER) as u64 {
        return Err(damaged("it ends early, or not as a snapshot does"));
    }
    if of_state != all {
        return Err(damaged("the sum of the state is another"));
    }
    Ok(tip)
}

/// The newest sound snapshot, and how many newer ones are damaged.
///
/// # Errors
/// The directory can't be read.
pub fn newest(disk: &mut dyn Disk) -> Result<(Option<Tip>, usize), DiskError> {
    let mut damaged = 0;
    for (index, _) in list(disk)? {
        match read(disk, index, &mut |_| {}) {
            Ok(tip) => return Ok((Some(tip), damaged)),
            Err(_) => damaged += 1,
        }
    }
    Ok((None, damaged))
}
