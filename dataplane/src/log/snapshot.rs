//! Snapshots (P4): the application's state behind some record, in a file of its own beside the segments. What is before it in the log may go.
//!
//! ```text
//! 0   magic "CONSSNP1"
//! 8   index of the last record in it      40  stamp of that        all little-endian
//! 16  its view                            48  chain behind it
//! 24  the sequence of what follows        52  zeros
//! 32  bytes of the view, v                60  sum of bytes 0 to 60
//! 64  the view as its record has it, then the state, as the application wrote it …
//! end - 16   bytes of both                end - 8  sum of both     end - 4  sum of these 12 bytes
//! ```
//! It is written under another name, flushed, and then given its own: a snapshot that is there is whole, or damaged. The view is there because
//! its record may have gone: it tells who the senders of what follows are.

use super::disk::{Batch, Disk, DiskError, DiskTrouble, Done, Job, Piece, UNFINISHED};
use super::format::{Stamp, sum};
use super::scan::Tip;
use super::{Index, numbered};
use crate::names::{Seq, ViewId};

const MAGIC: [u8; 8] = *b"CONSSNP1";
const HEADER: usize = 64;
const FOOTER: usize = 16;
/// Bytes read at once.
const PART: usize = 256 << 10;
/// The longest view.
const VIEW: u64 = 1 << 20;

/// The name of the file of the snapshot behind a record.
pub fn name(index: Index) -> String {
    format!("{:016x}.snap", index.0)
}

/// The snapshots in a directory with their bytes, newest first, whether sound or not.
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

/// Writes the snapshot of the state behind `tip`, in that view. `next` adds a part of the state to the empty buffer that it is given, until it adds nothing.
/// Returns how many bytes the file has.
///
/// # Errors
/// It can't be written; there is none then.
pub fn write(
    disk: &mut dyn Disk,
    tip: &Tip,
    view: &[u8],
    next: &mut dyn FnMut(&mut Vec<u8>) -> Result<(), DiskError>,
) -> Result<u64, DiskError> {
    let mut head = [0; HEADER];
    head[0..8].copy_from_slice(&MAGIC);
    let numbers = [tip.index.0, tip.view.0, tip.next_seq.0, view.len() as u64, tip.stamp.0];
    for (place, number) in head[8..48].chunks_exact_mut(8).zip(numbers) {
        place.copy_from_slice(&number.to_le_bytes());
    }
    head[48..52].copy_from_slice(&tip.chain.to_le_bytes());
    let of_head = sum(0, &head[..60]);
    head[60..].copy_from_slice(&of_head.to_le_bytes());
    let (mut begun, mut done, mut bytes, mut all) = (false, false, 0_u64, 0);
    disk.replace_with(&name(tip.index), &mut |part| {
        if done {
            return Ok(());
        }
        if !begun {
            begun = true;
            part.extend_from_slice(&head);
            part.extend_from_slice(view);
            (bytes, all) = (view.len() as u64, sum(0, view));
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
    })?;
    Ok((HEADER + FOOTER) as u64 + bytes)
}

fn damaged(name: &str, why: &str) -> DiskError {
    DiskError::new(DiskTrouble::Failed, format!("the snapshot {name} is damaged: {why}"))
}

/// What the first bytes of the snapshot behind a record say: where it stands, and how many bytes the view has.
fn head(index: Index, head: &[u8; HEADER]) -> Result<(Tip, u64), DiskError> {
    let number = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().unwrap_or_default());
    let word = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().unwrap_or_default());
    let is_one = head[0..8] == MAGIC && word(60) == sum(0, &head[..60]) && number(8) == index.0;
    if !is_one || number(32) > VIEW {
        return Err(damaged(&name(index), "no snapshot of that record begins like that"));
    }
    let (view, next_seq, stamp) = (ViewId(number(16)), Seq(number(24)), Stamp(number(40)));
    Ok((Tip { index, view, next_seq, stamp, chain: word(48) }, number(32)))
}

/// What the last bytes of a snapshot say, of which `bytes` are between these and the first: the sum of them.
fn foot(index: Index, footer: &[u8; FOOTER], bytes: u64) -> Result<u32, DiskError> {
    let [of_all, of_these] =
        [8, 12].map(|at| u32::from_le_bytes(footer[at..at + 4].try_into().unwrap_or_default()));
    let said = u64::from_le_bytes(footer[..8].try_into().unwrap_or_default());
    if of_these != sum(0, &footer[..12]) || said != bytes {
        return Err(damaged(&name(index), "it ends early, or not as a snapshot does"));
    }
    Ok(of_all)
}

/// A snapshot that is read, part by part. What it says counts only when all of it was read: the sum stands at the end.
pub struct SnapshotReader {
    disk: Box<dyn Disk>,
    tip: Tip,
    view: Vec<u8>,
    /// Where the next part is, and where the state ends.
    at: u64,
    end: u64,
    /// Bytes of the state.
    len: u64,
    /// The sum up to `at`, and what it is to be at the end.
    sum: u32,
    wanted: u32,
}

impl SnapshotReader {
    /// Opens the snapshot behind a record.
    ///
    /// # Errors
    /// It can't be read, or its ends are not those of one.
    pub fn open(mut disk: Box<dyn Disk>, index: Index) -> Result<Self, DiskError> {
        let size = list(&mut *disk)?.into_iter().find(|(it, _)| *it == index).map_or(0, |(_, bytes)| bytes);
        let name = name(index);
        let mut ends = ([0; HEADER], [0; FOOTER]);
        let got = disk.read(&name, 0, &mut ends.0)?;
        let Some(end) = size.checked_sub(FOOTER as u64).filter(|end| *end >= HEADER as u64) else {
            return Err(damaged(&name, "it ends early"));
        };
        let got = got + disk.read(&name, end, &mut ends.1)?;
        let (tip, view_len) = head(index, &ends.0)?;
        let between = end - HEADER as u64;
        let wanted = foot(index, &ends.1, between)?;
        let len = between.checked_sub(view_len).filter(|_| got == HEADER + FOOTER);
        let Some(len) = len else { return Err(damaged(&name, "it ends early")) };
        let mut view = vec![0; usize::try_from(view_len).unwrap_or(0)];
        if disk.read(&name, HEADER as u64, &mut view)? < view.len() {
            return Err(damaged(&name, "it ends early"));
        }
        let sum = sum(0, &view);
        Ok(Self { disk, tip, view, at: HEADER as u64 + view_len, end, len, sum, wanted })
    }

    /// Behind which record it is.
    pub fn tip(&self) -> &Tip {
        &self.tip
    }

    /// The view of that record's session, as its own record had it.
    pub fn view(&self) -> &[u8] {
        &self.view
    }

    /// Bytes of the state.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the state has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Fills `part`, which it empties first, with the next bytes of the state; leaves it empty at the end.
    ///
    /// # Errors
    /// It can't be read, or is not as it was written.
    pub fn read(&mut self, part: &mut Vec<u8>) -> Result<(), DiskError> {
        let left = usize::try_from(self.end - self.at).unwrap_or(PART).min(PART);
        part.clear();
        part.resize(left, 0);
        let name = name(self.tip.index);
        let got = self.disk.read(&name, self.at, part)?;
        if got < left {
            return Err(damaged(&name, "it ends early"));
        }
        (self.at, self.sum) = (self.at + left as u64, sum(self.sum, part));
        if self.at == self.end && self.sum != self.wanted {
            return Err(damaged(&name, "the sum of the state is another"));
        }
        Ok(())
    }
}

/// Reads a snapshot, all of it, and gives the state's parts to `each` in their order. What they say counts only once this returns. Returns
/// behind which record it is.
///
/// # Errors
/// It can't be read, or is not as it was written.
pub fn read(disk: &dyn Disk, index: Index, each: &mut dyn FnMut(&[u8])) -> Result<Tip, DiskError> {
    let mut reader = SnapshotReader::open(disk.beside(), index)?;
    let mut part = Vec::new();
    loop {
        reader.read(&mut part)?;
        if part.is_empty() {
            return Ok(reader.tip);
        }
        each(&part);
    }
}

/// The newest sound snapshot with its bytes, and how many newer ones are damaged.
///
/// # Errors
/// The directory can't be read.
pub fn newest(disk: &mut dyn Disk) -> Result<(Option<(Tip, u64)>, usize), DiskError> {
    let mut damaged = 0;
    for (index, bytes) in list(disk)? {
        match read(disk, index, &mut |_| {}) {
            Ok(tip) => return Ok((Some((tip, bytes)), damaged)),
            Err(_) => damaged += 1,
        }
    }
    Ok((None, damaged))
}

/// Another member's snapshot that comes to this disk, as the bytes of its file. It is written as it comes, under another name, and checked on
/// the way; when all of it is there and flushed, it is given its own.
#[derive(Debug)]
pub struct Arrival {
    index: Index,
    /// Bytes of the file, and how many of them have come.
    bytes: u64,
    got: u64,
    head: Vec<u8>,
    foot: Vec<u8>,
    sum: u32,
    tip: Option<Tip>,
    /// Bytes that wait for the disk.
    waiting: usize,
}

impl Arrival {
    /// Begins to take the snapshot behind a record, a file of so many bytes. Does not wait.
    pub fn begin(disk: &mut dyn Disk, index: Index, bytes: u64) -> Self {
        let name = unfinished(index);
        disk.submit(Job::Delete(name.clone()));
        disk.submit(Job::Create(name, bytes));
        let (head, foot) = (Vec::new(), Vec::new());
        Self { index, bytes, got: 0, head, foot, sum: 0, tip: None, waiting: 0 }
    }

    /// Behind which record it is, how many bytes its file has, and how many have come.
    pub fn place(&self) -> (Index, u64, u64) {
        (self.index, self.bytes, self.got)
    }

    /// Whether all of it has come: then it takes the log's place when that is written.
    pub fn is_complete(&self) -> bool {
        self.got == self.bytes
    }

    /// Bytes that have come and are not written yet.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Takes the next bytes. Does not wait.
    ///
    /// # Errors
    /// They are not those of a snapshot.
    pub fn take(&mut self, disk: &mut dyn Disk, part: &[u8]) -> Result<(), DiskError> {
        let (from, to) = (self.got, self.got.saturating_add(part.len() as u64));
        let end = self.bytes.saturating_sub(FOOTER as u64).max(HEADER as u64);
        // The part of these bytes that lies between two places of the file.
        let between = |start: u64, end: u64| {
            let within = |at: u64| usize::try_from(at.clamp(from, to) - from).unwrap_or(0);
            &part[within(start)..within(end)]
        };
        if to > self.bytes {
            return Err(damaged(&name(self.index), "there is more of it than was said"));
        }
        self.head.extend_from_slice(between(0, HEADER as u64));
        self.sum = sum(self.sum, between(HEADER as u64, end));
        self.foot.extend_from_slice(between(end, self.bytes));
        let batch = Batch {
            name: unfinished(self.index),
            at: from,
            staged: part.to_vec(),
            pieces: vec![Piece::Staged(0..part.len())],
        };
        disk.submit(Job::Write(batch));
        (self.got, self.waiting) = (to, self.waiting + part.len());
        if to < self.bytes {
            return Ok(());
        }
        let (Some(first), Some(last)) =
            (self.head.first_chunk::<HEADER>(), self.foot.first_chunk::<FOOTER>())
        else {
            return Err(damaged(&name(self.index), "it ends early"));
        };
        let (tip, view) = head(self.index, first)?;
        if foot(self.index, last, end - HEADER as u64)? != self.sum || view > end - HEADER as u64 {
            return Err(damaged(&name(self.index), "the sum of the state is another"));
        }
        self.tip = Some(tip);
        disk.submit(Job::Rename(unfinished(self.index), name(self.index)));
        Ok(())
    }

    /// It will not be finished. Does not wait.
    pub fn give_up(self, disk: &mut dyn Disk) {
        disk.submit(Job::Delete(unfinished(self.index)));
    }

    /// Whether a job is one of its own.
    pub fn is_own(&self, job: &Job) -> bool {
        let name = unfinished(self.index);
        match job {
            Job::Delete(it) | Job::Create(it, _) | Job::Rename(it, _) => *it == name,
            Job::Write(batch) => batch.name == name,
            Job::Replace(..) => false,
        }
    }

    /// A job of its own is over. Returns where the log goes on, when the snapshot is there.
    ///
    /// # Errors
    /// It can't be written.
    pub fn on_done(&mut self, done: Done) -> Result<Option<Tip>, DiskError> {
        match (&done.job, done.result) {
            (Job::Delete(_), _) => {}
            (Job::Rename(..), Ok(())) => return Ok(self.tip),
            (Job::Write(batch), Ok(())) => self.waiting = self.waiting.saturating_sub(batch.len()),
            (_, result) => result?,
        }
        Ok(None)
    }
}

/// What it is called until all of it is there.
fn unfinished(index: Index) -> String {
    format!("{}{UNFINISHED}", name(index))
}
