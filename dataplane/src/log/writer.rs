//! [`Log`]: the log that is written. One owner, who appends and takes turns; nothing here waits for the disk once it is open.
//!
//! # Invariants
//! `durable ≤ under way ≤ appended`; at most one write is under way, and the next begins only when it is flushed, on which
//! the reader's judgement of what is torn and what is damaged rests ([`super::format`]). A segment's file is there before anything is written
//! to it: jobs are done in their order.

use std::collections::VecDeque;
use std::ops::Range;

use super::disk::{Batch, Disk, DiskError, Done, Job, Piece};
use super::format::{LogKind, RECORD_HEADER, RecordHeader, SEGMENT_HEADER, SegmentHeader, record_size};
use super::scan::{
    Condition, Look, Rules, Scan, SegmentInfo, Spot, Tip, Window, follows, look, scan_with, segment_files,
    segment_header,
};
use super::snapshot::Arrival;
use super::{Index, segment_name, segment_number, snapshot};
use crate::memory::Mirror;
use crate::names::{NodeId, Seq, ViewId};

/// Pieces of one write: as many as the kernel gathers at once, less what one record adds.
const MOST_PIECES: usize = 1000;

/// How a log is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogOptions {
    /// Whose log it is.
    pub shard: u32,
    /// Bytes of a segment's file.
    pub segment_bytes: u64,
    /// A payload of so many bytes is written from where it lies.
    pub lying_from: usize,
    /// So many bytes may wait for the disk; then the log refuses.
    pub most_waiting: usize,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self { shard: 0, segment_bytes: 64 << 20, lying_from: 4 << 10, most_waiting: 64 << 20 }
    }
}

/// What is to be appended.
#[derive(Clone, Debug)]
pub struct Entry<'a> {
    /// What it is.
    pub kind: LogKind,
    /// The view with which its session began.
    pub view: ViewId,
    /// Its place in the session's order.
    pub seq: Seq,
    /// Nanoseconds since 1970 when it was sent, by its sender's clock.
    pub sent: u64,
    /// Its sender.
    pub sender: NodeId,
    /// The rest.
    pub payload: Payload<'a>,
}

/// A payload, and where it lies.
#[derive(Clone, Debug)]
pub enum Payload<'a> {
    /// Anywhere: it is copied.
    Copied(&'a [u8]),
    /// In ring memory, at that range of it. A long one is written from there, so nobody may write there before it is
    /// [durable](Log::durable).
    Lying(&'a [u8], &'a Mirror, Range<usize>),
}

impl Payload<'_> {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Copied(bytes) | Self::Lying(bytes, ..) => bytes,
        }
    }
}

/// A record was not appended.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AppendError {
    /// The disk is behind: when it has caught up there is room again.
    #[error("{0} bytes wait for the disk already")]
    Behind(usize),
    /// A write or flush failed (P2).
    #[error("the log can't be written any more: {0}")]
    Broken(DiskError),
}

/// Another member's records can't be appended.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CopyError {
    /// They are not as they were written.
    #[error("a record that is not as it was written")]
    Unsound,
    /// They don't follow on this log.
    #[error("its record is not the one that follows record {0} here: the logs are of different histories")]
    Other(Index),
    /// A write or flush failed (P2).
    #[error("the log can't be written any more: {0}")]
    Broken(DiskError),
}

/// A log can't be opened.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The disk refuses.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Something is bad that had been flushed (P4).
    #[error(
        "the log is damaged: {spot}. {sound} records before that are sound; `consort log repair` keeps these, and the rest is to be had \
         from the other members"
    )]
    Damaged {
        /// Where.
        spot: Spot,
        /// How many records are sound.
        sound: u64,
    },
}

/// What a log has written since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogCounts {
    /// Bytes written and flushed, the records' headers included.
    pub bytes: u64,
    /// Flushes: one for each batch.
    pub flushes: u64,
}

impl LogCounts {
    /// Of both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { bytes: self.bytes + other.bytes, flushes: self.flushes + other.flushes }
    }
}

/// See the [module](self).
pub struct Log {
    disk: Box<dyn Disk>,
    options: LogOptions,
    segments: Vec<SegmentInfo>,
    /// The last segment's header was appended.
    is_begun: bool,
    /// The file of the segment after the last one is being made, with so many bytes.
    prepared: Option<u64>,
    /// Behind the last record appended.
    tip: Tip,
    /// What is appended to,
    open: Batch,
    /// from this record on.
    open_from: Index,
    /// Batches that are closed and wait, each with its last record.
    ready: VecDeque<(Batch, Index)>,
    /// The last record of the batch that is being written.
    under_way: Option<Index>,
    durable: Index,
    /// Bytes appended that are not durable.
    waiting: usize,
    counts: LogCounts,
    /// Buffers to use again.
    spare: Vec<Batch>,
    broken: Option<DiskError>,
    /// The newest snapshot, and the bytes of its file.
    snapshot: Option<(Tip, u64)>,
    /// One that comes from another member.
    arrival: Option<Arrival>,
    #[cfg(feature = "mutants")]
    mutant: Option<super::Mutant>,
}

impl Log {
    /// Opens the log that lies there, or begins one. A torn tail is cut off. `flushed` is how far it is known to have been flushed.
    /// Waits for the disk.
    ///
    /// # Errors
    /// The disk refuses, or the log is damaged; then nothing was changed.
    pub fn open(
        mut disk: Box<dyn Disk>,
        options: LogOptions,
        flushed: Index,
    ) -> Result<(Self, Scan), OpenError> {
        let (snapshot, _) = snapshot::newest(&mut *disk)?;
        let tip = snapshot.map(|(tip, _)| tip).unwrap_or_default();
        let scan = scan_with(&mut *disk, flushed, tip, Rules::default(), &mut |_, _| {})?;
        let (mut log, mut scan) = Self::open_scanned(disk, options, scan)?;
        log.snapshot = snapshot;
        // What a node didn't come to delete.
        for (index, _) in snapshot::list(&mut *log.disk)?.into_iter().filter(|(index, _)| *index < tip.index)
        {
            log.disk.delete(&snapshot::name(index))?;
        }
        if log.tip.index < tip.index {
            // It came from another member, and what is here is older than that.
            log.restart_behind(tip);
            (scan.tip, scan.segments) = (tip, log.segments.clone());
        }
        Ok((log, scan))
    }

    /// As [`Log::open`], breaking a rule.
    ///
    /// # Errors
    /// As there.
    #[cfg(feature = "mutants")]
    pub fn open_mutant(
        mut disk: Box<dyn Disk>,
        options: LogOptions,
        mutant: super::Mutant,
    ) -> Result<(Self, Scan), OpenError> {
        let rules = Rules { mutant: Some(mutant) };
        let scan = scan_with(&mut *disk, Index(0), Tip::default(), rules, &mut |_, _| {})?;
        let (mut log, scan) = Self::open_scanned(disk, options, scan)?;
        log.mutant = Some(mutant);
        Ok((log, scan))
    }

    fn open_scanned(
        mut disk: Box<dyn Disk>,
        options: LogOptions,
        scan: Scan,
    ) -> Result<(Self, Scan), OpenError> {
        if let Condition::Damaged(spot) = &scan.condition {
            return Err(OpenError::Damaged { spot: spot.clone(), sound: sound(&scan) });
        }
        clear_behind(&mut *disk, &scan)?;
        // What a process wrote that was killed, or whose flush failed, may be in the kernel's memory alone, and the kernel may not even
        // know that (P2). So what isn't known to have been flushed is written again, and is then what it is taken for.
        if let Some(last) = scan.segments.last() {
            disk.rewrite(&last.name, scan.batch_at..last.end)?;
        }
        let mut log = Self {
            disk,
            options,
            segments: scan.segments.clone(),
            is_begun: true,
            prepared: None,
            tip: scan.tip,
            open: Batch::default(),
            open_from: Index(0),
            ready: VecDeque::new(),
            under_way: None,
            durable: scan.tip.index,
            waiting: 0,
            counts: LogCounts::default(),
            spare: Vec::new(),
            broken: None,
            snapshot: None,
            arrival: None,
            #[cfg(feature = "mutants")]
            mutant: None,
        };
        if log.segments.is_empty() {
            log.begin_first()?;
        }
        Ok((log, scan))
    }

    /// Makes the first segment of an empty log.
    fn begin_first(&mut self) -> Result<(), DiskError> {
        let (number, bytes) = (1, self.options.segment_bytes);
        self.disk.create(&segment_name(number), bytes)?;
        self.begin(number, bytes);
        Ok(())
    }

    /// Appends from here on to a segment whose file is there, or is being made.
    fn begin(&mut self, number: u64, bytes: u64) {
        let (first, end) = (self.tip.index.next(), SEGMENT_HEADER as u64);
        self.segments.push(SegmentInfo { name: segment_name(number), number, bytes, first, records: 0, end });
        self.is_begun = false;
    }

    /// Appends a record. It is durable some [turns](Log::turn) later. Never waits. Returns what follows from it: its index, its stamp, the chain.
    ///
    /// # Errors
    /// The disk is behind, or has failed. Nothing was appended.
    pub fn append(&mut self, entry: &Entry<'_>) -> Result<Tip, AppendError> {
        if let Some(error) = &self.broken {
            return Err(AppendError::Broken(error.clone()));
        }
        let payload = entry.payload.bytes();
        let size = record_size(payload.len());
        if self.waiting > 0 && self.waiting + size > self.options.most_waiting {
            return Err(AppendError::Behind(self.waiting));
        }
        self.make_room(size as u64);
        let index = self.tip.index.next();
        if self.open.pieces.is_empty() {
            self.open_from = index;
            let segment = self.segments.last();
            let (name, at) =
                segment.map_or(("", 0), |it| (&it.name[..], if self.is_begun { it.end } else { 0 }));
            name.clone_into(&mut self.open.name);
            self.open.at = at;
        }
        if !self.is_begun {
            self.is_begun = true;
            let number = self.segments.last().map_or(1, |it| it.number);
            let Tip { stamp, chain, view, next_seq, .. } = self.tip;
            let shard = self.options.shard;
            let header = SegmentHeader { number, first: index, stamp, shard, chain, view, next_seq };
            stage(&mut self.open, &header.encode());
        }
        let header = RecordHeader {
            len: payload.len(),
            kind: entry.kind,
            index,
            view: entry.view,
            seq: entry.seq,
            stamp: self.tip.stamp.after(entry.sent),
            sender: entry.sender,
            chain: self.tip.chain,
            batch: self.open_from,
        };
        let (head, content) = header.encode(payload);
        stage(&mut self.open, &head);
        match &entry.payload {
            Payload::Lying(bytes, memory, range) if bytes.len() >= self.options.lying_from => {
                self.open.pieces.push(Piece::Lying((*memory).clone(), range.clone()));
            }
            _ => stage(&mut self.open, payload),
        }
        stage(&mut self.open, &[0; 8][..size - RECORD_HEADER - payload.len()]);
        if let Some(segment) = self.segments.last_mut() {
            segment.end += size as u64;
            segment.records += 1;
        }
        self.tip = Tip::behind(&header, content);
        self.waiting += size;
        if self.open.pieces.len() >= MOST_PIECES {
            self.close_batch();
        }
        Ok(self.tip)
    }

    /// Appends the records that `bytes` begins with, as another member's log has them ([`super::Reader::copy`]), as far as they are whole here;
    /// `each` is told of every one, and says whether to go on. Returns how many bytes these were: what is left is the beginning of one, or waits until the disk has caught up.
    ///
    /// # Errors
    /// A record is not as it was written, or not the one that follows here: this log and the other's are of different histories.
    /// Those before it are appended.
    pub fn append_copied(
        &mut self,
        bytes: &[u8],
        each: &mut dyn FnMut(&RecordHeader) -> bool,
    ) -> Result<usize, CopyError> {
        let mut done = 0;
        while let Some(head) = bytes[done..].first_chunk::<RECORD_HEADER>() {
            let header = RecordHeader::parse(head).ok_or(CopyError::Unsound)?;
            let size = record_size(header.len);
            let Some(padded) = bytes.get(done + RECORD_HEADER..done + size) else { break };
            let content = RecordHeader::check(head, padded).ok_or(CopyError::Unsound)?;
            follows(&self.tip, &header, Rules::default()).map_err(|_| CopyError::Other(self.tip.index))?;
            let RecordHeader { kind, view, seq, sender, stamp, .. } = header;
            let payload = &padded[..header.len];
            let entry = Entry { kind, view, seq, sent: stamp.0, sender, payload: Payload::Copied(payload) };
            match self.append(&entry) {
                Ok(tip) if tip == Tip::behind(&header, content) => {}
                Ok(_) => return Err(CopyError::Unsound), // a stamp that doesn't follow
                Err(AppendError::Behind(_)) => break,
                Err(AppendError::Broken(error)) => return Err(CopyError::Broken(error)),
            }
            done += size;
            if !each(&header) {
                break;
            }
        }
        Ok(done)
    }

    /// Begins another segment if the last one has no room for so much, and prepares for the next.
    fn make_room(&mut self, size: u64) {
        let Some(last) = self.segments.last() else { return };
        let (number, bytes, end) = (last.number, last.bytes, last.end);
        if end + size > bytes && (last.records > 0 || self.is_begun && end > SEGMENT_HEADER as u64) {
            self.close_batch();
            self.begin_next(number + 1, size);
        } else if end + size > bytes {
            // Empty, and too small for this one record all the same.
            self.segments.pop();
            self.disk.submit(Job::Delete(segment_name(number)));
            self.prepared = None;
            self.begin_next(number, size);
        } else if self.prepared.is_none() && end + size > bytes / 2 {
            self.prepared = Some(self.options.segment_bytes);
            self.disk.submit(Job::Create(segment_name(number + 1), self.options.segment_bytes));
        }
    }

    fn begin_next(&mut self, number: u64, size: u64) {
        let bytes = self.options.segment_bytes.max(SEGMENT_HEADER as u64 + size);
        let prepared = self.prepared.take();
        if prepared != Some(bytes) {
            if prepared.is_some() {
                self.disk.submit(Job::Delete(segment_name(number)));
            }
            self.disk.submit(Job::Create(segment_name(number), bytes));
        }
        self.begin(number, bytes);
    }

    fn close_batch(&mut self) {
        if !self.open.pieces.is_empty() {
            let next = self.spare.pop().unwrap_or_default();
            let batch = std::mem::replace(&mut self.open, next);
            self.ready.push_back((batch, self.tip.index));
        }
    }

    /// Takes in what the disk has done, and gives it what there is to do. Never waits. Returns whether anything happened.
    ///
    /// # Errors
    /// A write or flush failed. From then on nothing is written any more (P2).
    pub fn turn(&mut self) -> Result<bool, DiskError> {
        let mut any = false;
        while let Some(done) = self.disk.poll() {
            any = true;
            match (done.job, done.result) {
                (Job::Write(batch), Ok(())) if segment_number(&batch.name).is_some() => {
                    if let Some(last) = self.under_way.take() {
                        self.durable = self.durable.max(last);
                    }
                    self.waiting = self.waiting.saturating_sub(batch.len());
                    self.counts.bytes += batch.len() as u64;
                    self.counts.flushes += 1;
                    self.recycle(batch);
                }
                #[cfg(feature = "mutants")]
                (Job::Write(mut batch), Err(_)) if self.mutant == Some(super::Mutant::RetryFlush) => {
                    batch.pieces.clear(); // it was written, after all
                    self.disk.submit(Job::Write(batch));
                }
                (job, result) if self.arrival.as_ref().is_some_and(|arrival| arrival.is_own(&job)) => {
                    self.on_arrival(Done { job, result });
                }
                // P2: not tried again, and nothing after it either. What an old segment that can't be deleted costs is room.
                (Job::Delete(name), Err(error)) => {
                    let _ = (name, error);
                }
                (_, Err(error)) => {
                    self.broken.get_or_insert(error);
                }
                (_, Ok(())) => {}
            }
        }
        if let Some(error) = &self.broken {
            return Err(error.clone());
        }
        if self.under_way.is_none() || self.does_not_wait() {
            if self.ready.is_empty() {
                self.close_batch();
            }
            if let Some((batch, last)) = self.ready.pop_front() {
                self.under_way = Some(last);
                self.disk.submit(Job::Write(batch));
                any = true;
            }
        }
        Ok(any)
    }

    fn does_not_wait(&self) -> bool {
        #[cfg(feature = "mutants")]
        return self.mutant == Some(super::Mutant::NoWait);
        #[cfg(not(feature = "mutants"))]
        false
    }

    fn recycle(&mut self, mut batch: Batch) {
        if self.spare.len() < 4 {
            batch.staged.clear();
            batch.pieces.clear();
            self.spare.push(batch);
        }
    }

    /// Whether the disk has done something since the last turn.
    pub fn has_news(&self) -> bool {
        self.disk.has_news()
    }

    /// Up to this record everything is flushed.
    pub fn durable(&self) -> Index {
        self.durable
    }

    /// Behind the last record appended.
    pub fn tip(&self) -> &Tip {
        &self.tip
    }

    /// The first record that is here; that of the next one if there is none.
    pub fn first(&self) -> Index {
        self.segments.first().map_or(self.tip.index.next(), |segment| segment.first)
    }

    /// Whether all that was appended is durable, and nothing is under way.
    pub fn is_idle(&self) -> bool {
        self.durable == self.tip.index && self.under_way.is_none()
    }

    /// What was written since it was opened.
    pub fn counts(&self) -> LogCounts {
        self.counts
    }

    /// Why it is written no more, if so.
    pub fn broken(&self) -> Option<&DiskError> {
        self.broken.as_ref()
    }

    /// Bytes that wait for the disk.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Its segments, the last of them being written.
    pub fn segments(&self) -> &[SegmentInfo] {
        &self.segments
    }

    /// Its disk, for what lies beside the log.
    pub fn disk(&mut self) -> &mut dyn Disk {
        &mut *self.disk
    }

    /// Takes what is behind a record off the log, for good (P3). Nothing may be under way. Waits for the disk.
    ///
    /// # Errors
    /// The disk refuses; or the record isn't here, and nothing was changed.
    pub fn truncate_after(&mut self, index: Index) -> Result<(), OpenError> {
        if index >= self.tip.index {
            return Ok(());
        }
        let place = self.segments.iter().rposition(|segment| Index(segment.first.0 - 1) <= index);
        let (Some(place), true) = (place, self.is_idle()) else {
            let what = format!(
                "record {index} can't be made the last: the log begins with {} and is at {}",
                self.first(),
                self.durable
            );
            return Err(DiskError::new(super::DiskTrouble::Failed, what).into());
        };
        let segment = self.segments[place].clone();
        let (tip, end) = tip_behind(&mut *self.disk, &segment, index)?;
        // From the back, so that what is there after a crash is a log at every moment.
        let behind =
            segment_files(&mut *self.disk)?.into_iter().filter(|(number, ..)| *number > segment.number);
        for (_, name, _) in behind.collect::<Vec<_>>().into_iter().rev() {
            self.disk.delete(&name)?;
        }
        self.disk.cut(&segment.name, end, segment.bytes)?;
        self.segments.truncate(place + 1);
        if let Some(last) = self.segments.last_mut() {
            (last.end, last.records) = (end, index.0 + 1 - last.first.0);
        }
        (self.tip, self.durable, self.prepared) = (tip, index, None);
        Ok(())
    }

    /// Forgets everything, and goes on behind a snapshot. Nothing may be under way. Does not wait: the files go from the back, in their
    /// turn among the jobs, so that what is there after a crash is older than the snapshot.
    fn restart_behind(&mut self, tip: Tip) {
        let prepared =
            self.segments.last().filter(|_| self.prepared.is_some()).map(|it| segment_name(it.number + 1));
        let names = self.segments.drain(..).map(|it| it.name).chain(prepared);
        for name in names.collect::<Vec<_>>().into_iter().rev() {
            self.disk.submit(Job::Delete(name));
        }
        (self.tip, self.durable, self.prepared) = (tip, tip.index, None);
        let (number, bytes) = (1, self.options.segment_bytes);
        self.disk.submit(Job::Create(segment_name(number), bytes));
        self.begin(number, bytes);
    }

    /// The newest snapshot, and the bytes of its file.
    pub fn snapshot(&self) -> Option<(Tip, u64)> {
        self.snapshot
    }

    /// A snapshot is there ([`snapshot::write`]): lets older ones go, and the segments of which it has all. Does not wait.
    pub fn on_snapshot(&mut self, tip: Tip, bytes: u64) {
        if let Some((before, _)) = self.snapshot.replace((tip, bytes))
            && before.index != tip.index
        {
            self.disk.submit(Job::Delete(snapshot::name(before.index)));
        }
        // Whoever reads what follows finds where that begins, if anything of it is flushed.
        while let [first, second, ..] = &self.segments[..]
            && second.first <= tip.index.next()
            && second.first <= self.durable
        {
            self.disk.submit(Job::Delete(first.name.clone()));
            self.segments.remove(0);
        }
    }

    /// Takes the next part of another member's snapshot behind that record, a file of so many bytes; the first part begins it, or begins it anew. When all of it is
    /// there, some [turns](Log::turn) later, it takes the place of everything that is here. Does not wait.
    ///
    /// # Errors
    /// It isn't sound.
    pub fn take_snapshot(
        &mut self,
        (index, bytes): (Index, u64),
        at: u64,
        part: &[u8],
    ) -> Result<(), DiskError> {
        if at == 0 {
            if let Some(before) = self.arrival.take() {
                before.give_up(&mut *self.disk);
            }
            self.arrival = Some(Arrival::begin(&mut *self.disk, index, bytes));
        }
        let Some(mut arrival) = self.arrival.take_if(|arrival| arrival.place() == (index, bytes, at)) else {
            return Ok(());
        };
        if let Err(error) = arrival.take(&mut *self.disk, part) {
            arrival.give_up(&mut *self.disk);
            return Err(error);
        }
        self.arrival = Some(arrival);
        Ok(())
    }

    /// The snapshot that comes from another member, if one does.
    pub fn arrival(&self) -> Option<&Arrival> {
        self.arrival.as_ref()
    }

    /// A job of the snapshot that comes is over.
    fn on_arrival(&mut self, done: Done) {
        let Some(arrival) = &mut self.arrival else { return };
        let (_, bytes, _) = arrival.place();
        match arrival.on_done(done) {
            Ok(None) => {}
            Ok(Some(tip)) => {
                self.arrival = None;
                self.restart_behind(tip);
                self.on_snapshot(tip, bytes);
            }
            Err(error) => {
                self.arrival = None;
                self.broken.get_or_insert(error);
            }
        }
    }
}

/// Adds bytes of the batch's own.
fn stage(batch: &mut Batch, bytes: &[u8]) {
    let from = batch.staged.len();
    batch.staged.extend_from_slice(bytes);
    let to = batch.staged.len();
    match batch.pieces.last_mut() {
        Some(Piece::Staged(range)) if range.end == from => range.end = to,
        _ if from == to => {}
        _ => batch.pieces.push(Piece::Staged(from..to)),
    }
}

/// How many records of it are sound.
fn sound(scan: &Scan) -> u64 {
    scan.segments.iter().map(|segment| segment.records).sum()
}

/// Where a record of a segment ends, and what the log is behind it.
fn tip_behind(disk: &mut dyn Disk, segment: &SegmentInfo, index: Index) -> Result<(Tip, u64), OpenError> {
    let mut window = Window::default();
    let damaged = |at, index, why: &str| OpenError::Damaged {
        spot: Spot { name: segment.name.clone(), at, index, why: why.to_owned() },
        sound: index.0.saturating_sub(segment.first.0),
    };
    let Some(header) = segment_header(disk, &mut window, (segment.number, &segment.name))? else {
        return Err(damaged(0, segment.first, "no segment of this log begins like that"));
    };
    let mut tip = Tip::before(&header);
    let mut end = SEGMENT_HEADER as u64;
    while tip.index < index {
        let rules = Rules::default();
        match look(disk, &mut window, (&segment.name, segment.bytes), end, rules)? {
            Look::Record(header, _, content) => {
                follows(&tip, &header, rules).map_err(|why| damaged(end, tip.index.next(), why))?;
                end += record_size(header.len) as u64;
                tip = Tip::behind(&header, content);
            }
            Look::Nothing => return Err(damaged(end, tip.index.next(), "nothing is there")),
            Look::Bad(why) => return Err(damaged(end, tip.index.next(), why)),
        }
    }
    Ok((tip, end))
}

/// Removes whatever lies behind the sound records, from the back.
fn clear_behind(disk: &mut dyn Disk, scan: &Scan) -> Result<(), DiskError> {
    for name in scan.beyond.iter().rev() {
        disk.delete(name)?;
    }
    if scan.condition != Condition::Sound
        && let Some(last) = scan.segments.last()
    {
        disk.cut(&last.name, last.end, last.bytes)?;
    }
    Ok(())
}

/// Makes a sound log of what is sound of one: what is behind that is removed. Returns what was there. Who calls this on a damaged log sees
/// to it that the node's [`super::Meta`] says so first: the log lacks something then.
///
/// # Errors
/// The disk refuses.
pub fn repair(disk: &mut dyn Disk, flushed: Index) -> Result<Scan, DiskError> {
    let (snapshot, damaged) = snapshot::newest(disk)?;
    let tip = snapshot.map(|(tip, _)| tip).unwrap_or_default();
    let scan = scan_with(disk, flushed, tip, Rules::default(), &mut |_, _| {})?;
    clear_behind(disk, &scan)?;
    if damaged > 0 {
        let newest = tip.index;
        for (index, _) in snapshot::list(disk)?.into_iter().filter(|(index, _)| *index > newest) {
            disk.delete(&snapshot::name(index))?;
        }
    }
    Ok(scan)
}
