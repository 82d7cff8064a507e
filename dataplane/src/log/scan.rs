//! Reading a log from the front: which of what lies there is the log (P4).
//!
//! The log is the longest run of records from its first on of which each has its sum, the next index and the right chain. What
//! follows the run is one of three:
//!
//! - *nothing*: zeros to the end of the last segment. The log is **sound**.
//! - *torn*: something else, and nothing says that it was ever flushed. Nobody was told that it is durable; the next start cuts it off.
//! - *damaged*: something else, and it had been flushed: a record of a later batch lies behind it, or a later segment has begun,
//!   or the log's owner had noted down how far it was. Nothing from there on is served. What is sound before it is what is left, and the rest
//!   is to be had from other members.
//!
//! A prepared segment, in which nothing was ever written, is no part of the log.

use std::fmt;

use super::disk::{Disk, DiskError};
use super::format::{
    LogKind, RECORD_HEADER, RecordHeader, SEGMENT_HEADER, SegmentHeader, Stamp, link, record_size,
};
use super::{Index, segment_number};
use crate::names::{Seq, ViewId};

/// Bytes read at once.
const WINDOW: usize = 64 << 10;

/// What most of a segment is while it fills up.
static ZEROS: [u8; 16 << 10] = [0; 16 << 10];

/// Where a log stands behind a record: all that the next one follows from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tip {
    /// The last record; 0 if there is none.
    pub index: Index,
    /// Its view.
    pub view: ViewId,
    /// Messages of that session up to it: the sequence that the next one has.
    pub next_seq: Seq,
    /// Its stamp.
    pub stamp: Stamp,
    /// The chain behind it.
    pub chain: u32,
}

impl Tip {
    /// Where a segment begins.
    pub(crate) fn before(header: &SegmentHeader) -> Self {
        let SegmentHeader { first, view, next_seq, stamp, chain, .. } = *header;
        Self { index: Index(first.0 - 1), view, next_seq, stamp, chain }
    }

    /// Behind that record.
    pub(crate) fn behind(header: &RecordHeader, content: u32) -> Self {
        let next_seq = match header.kind {
            LogKind::Message => Seq(header.seq.0.saturating_add(1)),
            LogKind::View => Seq(0),
        };
        Self {
            index: header.index,
            view: header.view,
            next_seq,
            stamp: header.stamp,
            chain: link(header.chain, content),
        }
    }
}

/// A segment that is part of the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SegmentInfo {
    /// Its file.
    pub name: String,
    /// Its number.
    pub number: u64,
    /// Bytes of the file.
    pub bytes: u64,
    /// Its first record, whether that is there yet or not.
    pub first: Index,
    /// How many records of it are sound.
    pub records: u64,
    /// Where the last sound one ends.
    pub end: u64,
}

/// What follows the sound records.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Condition {
    /// Nothing.
    Sound,
    /// What was being written when the machine or the process stopped.
    Torn(Spot),
    /// What had been flushed, and isn't as it was.
    Damaged(Spot),
}

/// A place at which a log stops.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Spot {
    /// The file.
    pub name: String,
    /// The byte.
    pub at: u64,
    /// The record that should be there.
    pub index: Index,
    /// Why that isn't it.
    pub why: String,
}

impl fmt::Display for Spot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at byte {}, where record {} should be: {}", self.name, self.at, self.index, self.why)
    }
}

/// What lies in a directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Scan {
    /// The segments, in their order; empty if there are none, or if the first of them can't be read.
    pub segments: Vec<SegmentInfo>,
    /// Segments behind these in which nothing was written, or nothing sound.
    pub beyond: Vec<String>,
    /// Behind the last sound record.
    pub tip: Tip,
    /// Where its batch begins in the last segment; what is before that was flushed for certain.
    pub batch_at: u64,
    /// What follows it.
    pub condition: Condition,
    /// Messages, and bytes of their payloads.
    pub messages: (u64, u64),
    /// Views.
    pub views: u64,
    /// The stamp of the first record.
    pub since: Option<Stamp>,
}

/// How strict a reader is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Rules {
    /// A rule to break on purpose, so that tests can show that they would notice.
    #[cfg(feature = "mutants")]
    pub(crate) mutant: Option<super::Mutant>,
}

impl Rules {
    fn checks_chain(self) -> bool {
        #[cfg(feature = "mutants")]
        return self.mutant != Some(super::Mutant::NoChain);
        #[cfg(not(feature = "mutants"))]
        true
    }

    fn checks_sums(self) -> bool {
        #[cfg(feature = "mutants")]
        return self.mutant != Some(super::Mutant::NoSum);
        #[cfg(not(feature = "mutants"))]
        true
    }
}

/// A part of a file, read in large pieces.
#[derive(Default)]
pub(crate) struct Window {
    name: String,
    from: u64,
    bytes: Vec<u8>,
}

impl Window {
    /// Forgets what it has: the file may have changed.
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
    }

    /// Whether what it gives next is read then.
    pub(crate) fn is_clear(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The bytes of a file from `at` on: `len` of them, or fewer at the end of the file.
    pub(crate) fn get(
        &mut self,
        disk: &mut dyn Disk,
        name: &str,
        at: u64,
        len: usize,
    ) -> Result<&[u8], DiskError> {
        let end = at.saturating_add(len as u64);
        let is_here = self.name == name && self.from <= at && end <= self.from + self.bytes.len() as u64;
        if !is_here {
            if self.name != name {
                name.clone_into(&mut self.name);
            }
            self.bytes.clear();
            self.bytes.resize(len.max(WINDOW), 0);
            self.from = at;
            let got = disk.read(name, at, &mut self.bytes).inspect_err(|_| self.name.clear())?;
            self.bytes.truncate(got);
        }
        let from = usize::try_from(at - self.from).unwrap_or(usize::MAX).min(self.bytes.len());
        let to = from.saturating_add(len).min(self.bytes.len());
        Ok(&self.bytes[from..to])
    }
}

/// What lies at a place where a record should be.
pub(crate) enum Look<'a> {
    Record(RecordHeader, &'a [u8], u32),
    /// Nothing was written there, or the file ends.
    Nothing,
    Bad(&'static str),
}

/// Looks at one place of a file of `bytes`, without regard to what comes before it.
pub(crate) fn look<'a>(
    disk: &mut dyn Disk,
    window: &'a mut Window,
    (name, bytes): (&str, u64),
    at: u64,
    rules: Rules,
) -> Result<Look<'a>, DiskError> {
    let head = window.get(disk, name, at, RECORD_HEADER)?;
    let Some(head) = head.first_chunk::<RECORD_HEADER>().copied() else {
        return Ok(if head.iter().all(|byte| *byte == 0) {
            Look::Nothing
        } else {
            Look::Bad("the file ends in the middle of it")
        });
    };
    let Some(header) = RecordHeader::parse(&head) else {
        let nothing = head.iter().all(|byte| *byte == 0);
        return Ok(if nothing { Look::Nothing } else { Look::Bad("no record begins like that") });
    };
    let size = record_size(header.len);
    if size as u64 > bytes.saturating_sub(at) {
        return Ok(Look::Bad("it is longer than the file"));
    }
    let all = window.get(disk, name, at, size)?;
    if all.len() < size {
        return Ok(Look::Bad("the file ends in the middle of it"));
    }
    let padded = &all[RECORD_HEADER..];
    let sum = RecordHeader::check(&head, padded).or_else(|| (!rules.checks_sums()).then_some(0));
    Ok(match sum {
        Some(content) => Look::Record(header, &padded[..header.len], content),
        None => Look::Bad("its sum is another"),
    })
}

/// Whether a record is the one that follows `tip`; if not, why.
pub(crate) fn follows(tip: &Tip, header: &RecordHeader, rules: Rules) -> Result<(), &'static str> {
    if header.index != tip.index.next() {
        return Err("it is a record of another place");
    }
    if rules.checks_chain() && header.chain != tip.chain {
        return Err("it is not the record that followed: the chain is broken");
    }
    if header.stamp <= tip.stamp || header.view < tip.view {
        return Err("its stamp or its view is older than that of the record before it");
    }
    Ok(())
}

/// The segment files, by number.
pub(crate) fn segment_files(disk: &mut dyn Disk) -> Result<Vec<(u64, String, u64)>, DiskError> {
    let named =
        disk.list()?.into_iter().filter_map(|(name, bytes)| Some((segment_number(&name)?, name, bytes)));
    let mut files: Vec<_> = named.collect();
    files.sort_unstable();
    Ok(files)
}

/// Reads the header of a segment; none if there is no sound one of that number.
pub(crate) fn segment_header(
    disk: &mut dyn Disk,
    window: &mut Window,
    (number, name): (u64, &str),
) -> Result<Option<SegmentHeader>, DiskError> {
    let head = window.get(disk, name, 0, SEGMENT_HEADER)?;
    let head = head.first_chunk::<SEGMENT_HEADER>().and_then(SegmentHeader::parse);
    Ok(head.filter(|head| head.number == number))
}

/// Reads all of a log, and changes nothing. `flushed` is how far it is known to have been flushed; 0 if nothing is known. `tip` is
/// behind which record there is a snapshot, or nothing.
///
/// # Errors
/// The directory can't be read. What it holds is no error: see [`Scan::condition`].
pub fn scan(disk: &mut dyn Disk, flushed: Index, tip: Tip) -> Result<Scan, DiskError> {
    scan_with(disk, flushed, tip, Rules::default(), &mut |_, _| {})
}

pub(crate) fn scan_with(
    disk: &mut dyn Disk,
    flushed: Index,
    tip: Tip,
    rules: Rules,
    each: &mut dyn FnMut(&RecordHeader, &[u8]),
) -> Result<Scan, DiskError> {
    let files = segment_files(disk)?;
    let mut window = Window::default();
    let mut scan = Scan {
        segments: Vec::new(),
        beyond: Vec::new(),
        tip,
        batch_at: 0,
        condition: Condition::Sound,
        messages: (0, 0),
        views: 0,
        since: None,
    };
    let mut stop = None;
    let mut at = 0;
    while let Some((number, name, bytes)) = files.get(at) {
        let header = segment_header(disk, &mut window, (*number, name))?;
        let is_next = scan.segments.last().is_none_or(|last| *number == last.number + 1);
        // The first segment there is says where the log begins. What is before that has to be in a snapshot (P4).
        if let (0, Some(header)) = (at, &header) {
            if header.first > tip.index.next() {
                let why = format!(
                    "the log begins with record {}, and no snapshot has what was before",
                    header.first
                );
                scan.beyond = files.iter().map(|(_, name, _)| name.clone()).collect();
                scan.condition =
                    Condition::Damaged(Spot { name: name.clone(), at: 0, index: tip.index.next(), why });
                return Ok(scan);
            }
            scan.tip = Tip::before(header);
        }
        let follows_on = |header: &SegmentHeader| {
            is_next
                && header.first == scan.tip.index.next()
                && (header.chain == scan.tip.chain || !rules.checks_chain())
        };
        let Some(header) = header.filter(follows_on) else { break };
        // What stopped the segment before was its end, then.
        stop = None;
        scan.segments.push(SegmentInfo {
            name: name.clone(),
            number: *number,
            bytes: *bytes,
            first: header.first,
            records: 0,
            end: SEGMENT_HEADER as u64,
        });
        at += 1;
        let end = walk(disk, &mut window, &mut scan, rules, each)?;
        if let Some(why) = end {
            stop = Some((name.clone(), scan.segments.last().map_or(0, |it| it.end), why));
        }
    }
    let rest = &files[at..];
    scan.beyond = rest.iter().map(|(_, name, _)| name.clone()).collect();
    if stop.is_none()
        && let Some((_, name, _)) = rest.first()
        && !is_blank(disk, &mut window, name)?
    {
        stop = Some((name.clone(), 0, "no segment of this log begins like that"));
    }
    let next = scan.tip.index.next();
    let spot = |(name, at, why): (String, u64, &str)| Spot { name, at, index: next, why: why.to_owned() };
    let from = scan.segments.last().map(|last| (last.name.clone(), last.bytes, last.end));
    let (proof, noise) = find_later(disk, &mut window, from, rest, next)?;
    if stop.is_none()
        && let Some((name, _)) = noise
    {
        // Parts of a write, of which the first never came.
        let at = scan.segments.last().filter(|last| last.name == name).map_or(0, |last| last.end);
        stop = Some((name, at, "nothing is there, but there is something behind it"));
    }
    scan.condition = if let Some(proof) = proof {
        let (name, at, why) = stop.unwrap_or_else(|| {
            let last = scan.segments.last();
            let here =
                last.map(|last| (last.name.clone(), last.end)).or_else(|| Some((rest.first()?.1.clone(), 0)));
            let (name, at) = here.unwrap_or_default();
            (name, at, "nothing is there")
        });
        Condition::Damaged(Spot { name, at, index: next, why: format!("{why}; yet {proof}") })
    } else if scan.tip.index < flushed {
        let last =
            scan.segments.last().map_or((String::from("the log"), 0), |last| (last.name.clone(), last.end));
        let (name, at, why) = stop.unwrap_or((last.0, last.1, "nothing is there"));
        let why = format!("{why}; yet it was flushed up to record {flushed}");
        Condition::Damaged(Spot { name, at, index: next, why })
    } else {
        stop.map_or(Condition::Sound, |stop| Condition::Torn(spot(stop)))
    };
    Ok(scan)
}

/// Goes through the last segment of `scan`. Returns why it stopped, if it wasn't at its end.
fn walk(
    disk: &mut dyn Disk,
    window: &mut Window,
    scan: &mut Scan,
    rules: Rules,
    each: &mut dyn FnMut(&RecordHeader, &[u8]),
) -> Result<Option<&'static str>, DiskError> {
    let Some(segment) = scan.segments.last_mut() else { return Ok(None) };
    // The segment's own header is of its first batch.
    scan.batch_at = 0;
    let mut batch = segment.first;
    loop {
        let (header, payload, content) =
            match look(disk, window, (&segment.name, segment.bytes), segment.end, rules)? {
                Look::Record(header, payload, content) => (header, payload, content),
                Look::Nothing => return Ok(None),
                Look::Bad(why) => return Ok(Some(why)),
            };
        if let Err(why) = follows(&scan.tip, &header, rules) {
            return Ok(Some(why));
        }
        if header.batch != batch {
            (scan.batch_at, batch) = (segment.end, header.batch);
        }
        scan.tip = Tip::behind(&header, content);
        segment.records += 1;
        segment.end += record_size(header.len) as u64;
        scan.since.get_or_insert(header.stamp);
        match header.kind {
            LogKind::Message => {
                scan.messages = (scan.messages.0 + 1, scan.messages.1 + header.len as u64);
            }
            LogKind::View => scan.views += 1,
        }
        each(&header, payload);
    }
}

/// Whether nothing was ever written to a segment.
fn is_blank(disk: &mut dyn Disk, window: &mut Window, name: &str) -> Result<bool, DiskError> {
    Ok(window.get(disk, name, 0, SEGMENT_HEADER)?.iter().all(|byte| *byte == 0))
}

/// Something that shows that a record had been flushed; and where anything lies at all.
type Later = (Option<String>, Option<(String, u64)>);

/// Looks for something that shows that record `next` had been flushed: something that was only written after that.
fn find_later(
    disk: &mut dyn Disk,
    window: &mut Window,
    from: Option<(String, u64, u64)>,
    rest: &[(u64, String, u64)],
    next: Index,
) -> Result<Later, DiskError> {
    let mut noise = None;
    for (number, name, _) in rest {
        if let Some(header) = segment_header(disk, window, (*number, name))?
            && header.first >= next
        {
            // Written in the first batch of that segment, so everything before that was flushed.
            if header.first > next {
                return Ok((Some(format!("{name} begins with record {}", header.first)), None));
            }
        }
    }
    let rest = rest.iter().map(|(_, name, bytes)| (name.clone(), *bytes, 0));
    for (name, bytes, start) in from.into_iter().chain(rest) {
        let mut at = start.next_multiple_of(8);
        while at + RECORD_HEADER as u64 <= bytes {
            // Most of it is zeros: a page of them is passed over at once.
            let page = window.get(disk, &name, at, ZEROS.len())?;
            if page.is_empty() {
                break;
            }
            if page == &ZEROS[..page.len()] {
                at += (page.len() / 8 * 8).max(8) as u64;
                continue;
            }
            let zeros = page.iter().take_while(|byte| **byte == 0).count();
            // A record's header begins with its length and kind, which are not all zero, so not before the last word of the zeros.
            at += (zeros / 8 * 8) as u64;
            noise.get_or_insert_with(|| (name.clone(), at));
            let head = window.get(disk, &name, at, RECORD_HEADER)?;
            let plausible = head.first_chunk().and_then(RecordHeader::parse).filter(|header| {
                header.index > next && header.batch > next && header.index.0 - next.0 < 1 << 40
            });
            if plausible.is_some()
                && let Look::Record(header, _, _) = look(disk, window, (&name, bytes), at, Rules::default())?
            {
                let proof = format!(
                    "record {} lies at byte {at} of {name}, and was written after that",
                    header.index
                );
                return Ok((Some(proof), noise));
            }
            at += 8;
        }
    }
    Ok((None, noise))
}
