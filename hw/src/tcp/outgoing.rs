//! What one peer is still to get: ranges of ring bytes and words, made into frames in the order of F1.
//!
//! Pure: it hands out batches of bytes to gather ([`Outgoing::slices`]) and is told how many of them went
//! ([`Outgoing::on_sent`]). The order:
//!
//! - Ring bytes are queued by reference, never copied, with their CRC32C. A range that continues the last one, not yet
//!   made into a frame, becomes part of it: a link that is busy gets few large frames.
//! - Relayed bytes (F6) are ring bytes too, of another node's mirror, and stand in the same queue. That memory is kept until they have
//!   gone: the mirror's link may be fenced meanwhile, and what was relayed before goes out all the same, since words that are published
//!   behind it may vouch for it.
//! - Words are only *marked* when they are published, and read when a frame is made of them: a link that is busy gets
//!   the latest value, once. All words marked at that time go into one frame, which the receiver stores in one go, and
//!   behind all ring bytes published by then. So what a reader sees is always the state of some moment at the writer:
//!   no publish without those before it (F1), whatever was merged.
//! - Ring bytes may so overtake words that were published *before* them, on a link that is busy. Nobody can tell: ring
//!   bytes are looked at only when a word vouches for them, and their place was free only because the peer had
//!   released it. But words must not be put off for ever by a stream of ring bytes, and large rings must not
//!   arrive as one piece: after [`QUANTUM`] bytes of ring the words marked so far are read and queued.
//!
//! A batch is built when the one before it has gone completely, so it holds all that has gathered meanwhile (D9).
//! What a batch takes from the ring must not change until the peer has released it: it can't have before it received
//! it, so the batch has gone by then.

use std::collections::VecDeque;
use std::ops::Range;

use consort_dataplane::memory::{Segment, WORD};

use super::check::crc32c;
use super::frame::{HEADER, Header, RUN};
use super::parts;
use super::relay::Origin;

/// Most bytes of ring in one frame.
pub(super) const MAX_FRAME: usize = 256 << 10;

/// Bytes of ring after which marked words are put between.
const QUANTUM: usize = 32 << 10;

/// Bytes after which a batch is not filled further: about what a socket takes at once.
const MAX_BATCH: usize = 1 << 20;

/// Parts after which a batch is not filled further: well below the kernel's limit of 1,024 per call.
const MAX_PARTS: usize = 256;

/// Ring bytes up to so many are copied behind their header: cheaper than one more address to gather.
const SMALL: usize = 512;

/// Runs kept apart before they are sorted and merged.
const MAX_RUNS: usize = 32;

/// Frames for one peer. See the [module](self).
#[derive(Debug)]
pub(super) struct Outgoing {
    salt: u32,
    sequence: u32,
    queue: VecDeque<Item>,
    /// Bytes of ring queued since words were.
    ring_since_words: usize,
    marked: Marks,
    goodbye: Goodbye,
    batch: Batch,
}

#[derive(Debug)]
enum Item {
    Ring { range: Range<usize>, check: u32 },
    Relay { origin: Origin, memory: Segment, range: Range<usize>, check: u32 },
    Words { runs: usize, payload: Vec<u8> },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goodbye {
    No,
    Due,
    Framed,
}

/// The CRC32C of one range of ring bytes, computed once for all peers whose queues are alike.
#[derive(Debug)]
pub(super) struct Sums<'a> {
    segment: &'a Segment,
    range: Range<usize>,
    /// Seed and sum, of the seeds met.
    known: [Option<(u32, u32)>; 4],
    next: usize,
}

impl<'a> Sums<'a> {
    /// `range` was published as ring bytes: they don't change while this lives.
    pub(super) fn new(segment: &'a Segment, range: Range<usize>) -> Self {
        Self { segment, range, known: [None; 4], next: 0 }
    }

    /// The sum of bytes whose sum is `seed` and the range behind them.
    fn after(&mut self, seed: u32) -> u32 {
        if let Some((_, sum)) = self.known.iter().flatten().find(|(known, _)| *known == seed) {
            return *sum;
        }
        let sum = parts::sum(self.segment, self.range.clone(), seed);
        self.known[self.next % self.known.len()] = Some((seed, sum));
        self.next += 1;
        sum
    }
}

impl Outgoing {
    /// Nothing to send. `salt` is that of this node's frames on this link; see [`Outgoing::open`].
    pub(super) fn new() -> Self {
        Self {
            salt: 0,
            sequence: 0,
            queue: VecDeque::new(),
            ring_since_words: 0,
            marked: Marks::default(),
            goodbye: Goodbye::No,
            batch: Batch::default(),
        }
    }

    /// The link is up: frames can be made, of what was published since it was begun too.
    pub(super) fn open(&mut self, salt: u32) {
        self.salt = salt;
    }

    /// Queues a range of ring bytes, of at most [`MAX_FRAME`].
    pub(super) fn publish_ring(&mut self, sums: &mut Sums<'_>) {
        let range = sums.range.clone();
        self.count_ring(range.len(), sums.segment);
        match self.queue.back_mut() {
            Some(Item::Ring { range: tail, check })
                if tail.end == range.start && tail.len() + range.len() <= MAX_FRAME =>
            {
                *check = sums.after(*check);
                tail.end = range.end;
            }
            _ => {
                let check = sums.after(0);
                self.queue.push_back(Item::Ring { range, check });
            }
        }
    }

    /// Queues a range of ring bytes of `origin`, of at most [`MAX_FRAME`]; `sums` is of the memory behind its mirror, `segment` this
    /// node's own.
    pub(super) fn relay(&mut self, origin: Origin, sums: &mut Sums<'_>, segment: &Segment) {
        let range = sums.range.clone();
        self.count_ring(range.len(), segment);
        match self.queue.back_mut() {
            Some(Item::Relay { origin: of, range: tail, check, .. })
                if *of == origin && tail.end == range.start && tail.len() + range.len() <= MAX_FRAME =>
            {
                *check = sums.after(*check);
                tail.end = range.end;
            }
            _ => {
                let check = sums.after(0);
                self.queue.push_back(Item::Relay { origin, memory: sums.segment.clone(), range, check });
            }
        }
    }

    /// Ring bytes are to be queued: words that have waited for enough of them go first.
    fn count_ring(&mut self, len: usize, segment: &Segment) {
        if self.ring_since_words >= QUANTUM && !self.marked.is_empty() {
            let mut payload = Vec::new();
            let runs = self.marked.take(segment, &mut payload);
            self.queue.push_back(Item::Words { runs, payload });
            self.ring_since_words = 0;
        }
        self.ring_since_words += len;
    }

    /// Marks words to be sent.
    pub(super) fn publish_words(&mut self, range: Range<usize>) {
        self.marked.add(range);
    }

    /// The stream ends behind what is published so far.
    pub(super) fn say_goodbye(&mut self) {
        if self.goodbye == Goodbye::No {
            self.goodbye = Goodbye::Due;
        }
    }

    /// Whether anything is still to go.
    pub(super) fn has_work(&self) -> bool {
        self.batch.left > 0
            || !self.queue.is_empty()
            || !self.marked.is_empty()
            || self.goodbye == Goodbye::Due
    }

    /// Drops all that is queued: the peer gets nothing more. Returns the memory of the current batch's headers.
    pub(super) fn clear(&mut self) -> Vec<u8> {
        self.queue = VecDeque::new();
        self.marked = Marks::default();
        self.goodbye = Goodbye::Framed;
        std::mem::take(&mut self.batch).heads
    }

    /// Builds the next batch if the last one has gone. Returns whether there are bytes to send.
    pub(super) fn fill(&mut self, segment: &Segment) -> bool {
        if self.batch.left > 0 {
            return true;
        }
        self.batch.reset();
        while self.batch.left < MAX_BATCH && self.batch.parts.len() < MAX_PARTS {
            match self.queue.pop_front() {
                Some(Item::Ring { range, check }) => {
                    let header = Header::Ring { offset: range.start, len: range.len(), check };
                    self.header(header);
                    if range.len() <= SMALL {
                        self.batch.copy_ring(segment, range);
                    } else {
                        self.batch.push_ring(range);
                    }
                }
                Some(Item::Relay { origin, memory, range, check }) => {
                    self.header(Header::Relay { origin, offset: range.start, len: range.len(), check });
                    if range.len() <= SMALL {
                        self.batch.copy_ring(&memory, range);
                    } else {
                        self.batch.push_relay(memory, range);
                    }
                }
                Some(Item::Words { runs, payload }) => {
                    let check = crc32c(0, &payload);
                    self.header(Header::Words { runs, len: payload.len(), check });
                    self.batch.push_head(&payload);
                }
                None => {
                    self.finish(segment);
                    break;
                }
            }
        }
        self.batch.left > 0
    }

    /// All ring bytes are in the batch: the words come now, and then the goodbye.
    fn finish(&mut self, segment: &Segment) {
        self.ring_since_words = 0;
        if !self.marked.is_empty() {
            let at = self.batch.heads.len();
            self.batch.heads.resize(at + HEADER, 0);
            let runs = self.marked.take(segment, &mut self.batch.heads);
            let payload = &self.batch.heads[at + HEADER..];
            let header = Header::Words { runs, len: payload.len(), check: crc32c(0, payload) };
            self.batch.heads[at..at + HEADER].copy_from_slice(&header.encode(self.salt, self.sequence));
            self.sequence = self.sequence.wrapping_add(1);
            self.batch.cover_head(at);
        }
        if self.goodbye == Goodbye::Due {
            self.goodbye = Goodbye::Framed;
            self.header(Header::Goodbye);
        }
    }

    fn header(&mut self, header: Header) {
        self.batch.push_head(&header.encode(self.salt, self.sequence));
        self.sequence = self.sequence.wrapping_add(1);
    }

    /// The batch's unsent bytes, as addresses to gather: stable and unchanged until [`Outgoing::on_sent`] is told that
    /// they have gone, or [`Outgoing::clear`].
    pub(super) fn slices(&self, segment: &Segment, out: &mut Vec<libc::iovec>) {
        let mut skip = self.batch.skip;
        for part in &self.batch.parts[self.batch.first..] {
            let (base, range) = match part {
                Part::Head(range) => (self.batch.heads.as_ptr(), range),
                Part::Ring(range) => (segment.as_ptr().cast_const(), range),
                Part::Relay(memory, range) => (memory.as_ptr().cast_const(), range),
            };
            let start = base.wrapping_add(range.start + skip);
            out.push(libc::iovec { iov_base: start.cast_mut().cast(), iov_len: range.len() - skip });
            skip = 0;
        }
    }

    /// The batch's unsent bytes, gathered.
    #[cfg(test)]
    pub(super) fn gathered(&self, segment: &Segment) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut skip = self.batch.skip;
        for part in &self.batch.parts[self.batch.first..] {
            match part {
                Part::Head(range) => {
                    bytes.extend_from_slice(&self.batch.heads[range.start + skip..range.end]);
                }
                Part::Ring(range) => {
                    let words = range.clone().step_by(WORD).map(|at| segment.load(at).to_ne_bytes());
                    bytes.extend(words.flatten().skip(skip));
                }
                Part::Relay(memory, range) => {
                    let words = range.clone().step_by(WORD).map(|at| memory.load(at).to_ne_bytes());
                    bytes.extend(words.flatten().skip(skip));
                }
            }
            skip = 0;
        }
        bytes
    }

    /// The batch's unsent bytes, if they lie in one piece and apart from the ring.
    pub(super) fn as_one(&self) -> Option<&[u8]> {
        match &self.batch.parts[self.batch.first..] {
            [Part::Head(range)] => Some(&self.batch.heads[range.start + self.batch.skip..range.end]),
            _ => None,
        }
    }

    /// Bytes of the own ring in the batch; none if there are others' too, whose memory nobody keeps for a kernel that still reads it.
    pub(super) fn batch_ring_bytes(&self) -> usize {
        if self.batch.relays { 0 } else { self.batch.ring_bytes }
    }

    /// Unsent bytes of the batch.
    pub(super) fn batch_left(&self) -> usize {
        self.batch.left
    }

    /// The first `sent` of the batch's unsent bytes have gone.
    pub(super) fn on_sent(&mut self, sent: usize) {
        self.batch.advance(sent);
    }

    /// The memory of the headers of a batch that has gone, for a kernel that may still look at it.
    pub(super) fn take_heads(&mut self) -> Vec<u8> {
        assert_eq!(self.batch.left, 0, "headers of a batch that has not gone");
        let heads = std::mem::take(&mut self.batch.heads);
        self.batch.reset();
        heads
    }
}

/// Bytes to gather for one send.
#[derive(Debug, Default)]
struct Batch {
    /// Headers, tables and words, one after the other. Not touched while bytes of it are to go.
    heads: Vec<u8>,
    parts: Vec<Part>,
    left: usize,
    ring_bytes: usize,
    /// There are others' ring bytes among the parts.
    relays: bool,
    /// The first part that has not gone, and how much of it has.
    first: usize,
    skip: usize,
}

#[derive(Debug)]
enum Part {
    Head(Range<usize>),
    Ring(Range<usize>),
    Relay(Segment, Range<usize>),
}

impl Batch {
    fn reset(&mut self) {
        self.heads.clear();
        self.parts.clear();
        self.left = 0;
        self.ring_bytes = 0;
        self.relays = false;
        self.first = 0;
        self.skip = 0;
    }

    fn push_head(&mut self, bytes: &[u8]) {
        let at = self.heads.len();
        self.heads.extend_from_slice(bytes);
        self.cover_head(at);
    }

    /// The bytes of `heads` from `at` on are part of the batch.
    fn cover_head(&mut self, at: usize) {
        let end = self.heads.len();
        self.left += end - at;
        match self.parts.last_mut() {
            Some(Part::Head(range)) => range.end = end,
            _ => self.parts.push(Part::Head(at..end)),
        }
    }

    fn copy_ring(&mut self, segment: &Segment, range: Range<usize>) {
        let at = self.heads.len();
        self.ring_bytes += range.len();
        for offset in range.step_by(WORD) {
            self.heads.extend_from_slice(&segment.load(offset).to_ne_bytes());
        }
        self.cover_head(at);
    }

    fn push_ring(&mut self, range: Range<usize>) {
        self.left += range.len();
        self.ring_bytes += range.len();
        self.parts.push(Part::Ring(range));
    }

    fn push_relay(&mut self, memory: Segment, range: Range<usize>) {
        self.left += range.len();
        self.relays = true;
        self.parts.push(Part::Relay(memory, range));
    }

    fn advance(&mut self, mut sent: usize) {
        assert!(sent <= self.left, "{sent} bytes sent of {}", self.left);
        self.left -= sent;
        while sent > 0 {
            let len = match &self.parts[self.first] {
                Part::Head(range) | Part::Ring(range) | Part::Relay(_, range) => range.len() - self.skip,
            };
            if sent < len {
                self.skip += sent;
                return;
            }
            sent -= len;
            self.first += 1;
            self.skip = 0;
        }
    }
}

/// Words that are to be sent, by their byte ranges.
#[derive(Debug, Default)]
struct Marks {
    runs: Vec<Range<usize>>,
}

impl Marks {
    fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    fn add(&mut self, range: Range<usize>) {
        if range.is_empty() {
            return;
        }
        for run in &mut self.runs {
            if range.start <= run.end && run.start <= range.end {
                run.start = run.start.min(range.start);
                run.end = run.end.max(range.end);
                return;
            }
        }
        if self.runs.len() >= MAX_RUNS && self.runs.len().is_power_of_two() {
            self.merge();
        }
        self.runs.push(range);
    }

    /// Sorts the runs and makes them disjoint.
    fn merge(&mut self) {
        self.runs.sort_unstable_by_key(|run| run.start);
        self.runs.dedup_by(|next, run| {
            let touch = next.start <= run.end;
            if touch {
                run.end = run.end.max(next.end);
            }
            touch
        });
    }

    /// Reads the words marked and appends the payload of their frame to `out`. Returns the number of runs.
    fn take(&mut self, segment: &Segment, out: &mut Vec<u8>) -> usize {
        if self.runs.len() > 1 {
            self.merge();
        }
        for run in &self.runs {
            // Both fit: a segment has at most 2³² words (MAX_SEGMENT), and the first page is never published.
            out.extend_from_slice(&((run.start / WORD) as u32).to_le_bytes());
            out.extend_from_slice(&((run.len() / WORD) as u32).to_le_bytes());
        }
        for run in &self.runs {
            for offset in run.clone().step_by(WORD) {
                out.extend_from_slice(&segment.load(offset).to_ne_bytes());
            }
        }
        let runs = self.runs.len();
        self.runs.clear();
        runs
    }
}

const _: () = assert!(RUN == 8, "the table's entries as `Marks::take` writes them");
