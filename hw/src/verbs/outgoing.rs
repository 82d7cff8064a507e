//! What one peer is still to get, as RDMA WRITEs in the order of the publishes (F1).
//!
//! Pure: it says which writes to post ([`Outgoing::fill`]) and is told what has arrived ([`Outgoing::on_written`]).
//!
//! - *Ring bytes* are written from where they lie. They don't change before the peer has released them, which is later than
//!   it received them; a device that sends them again after that, because an acknowledgement was lost, sends what the
//!   peer's device drops as a duplicate.
//! - *Words* are copied when they are published, into the link's *stage*, and written from there. A device reads memory some time
//!   after it was told to. If it read words from the segment, it could find one that vouches for ring bytes which were
//!   published later and have not gone out yet. The stage is a ring of its own; a place in it is free when a
//!   completion says that what was written from it has arrived.
//! - Words that don't fit into the stage wait on the heap. That happens on a link that is being set up, on one on which
//!   nothing arrives any more until its queue pair gives up, and to a batch of more words than the stage holds. Nothing bounds it but that.
//! - A publish that continues the last one, not yet posted, becomes part of it. Nothing else is merged: two writes land one
//!   after the other, and a reader may look in between.
//!
//! Writes to the device are bounded by its queue, and by how many are *signalled*: one in [`Outgoing::signal_every`] tells of
//! its arrival, and by that of all before it.

use std::collections::VecDeque;
use std::ops::Range;

use consort_dataplane::memory::{Segment, WORD};

use super::queue::{Source, Write};

/// Bytes of the stage.
pub(super) const STAGE: usize = 64 << 10;

/// Most bytes of words in one write.
const WORDS_MAX: usize = 4 << 10;

/// Most bytes of ring in one write: far below what any device takes.
const RING_MAX: usize = 1 << 20;

/// Rings under way to a peer, at most. See `page` for how many receives that takes.
pub(super) const RINGS: usize = 8;

/// Writes for one peer. See the [module](self).
#[derive(Debug)]
pub(super) struct Outgoing {
    /// Only this link's stage is written to, by this value alone.
    stage: Segment,
    /// Bytes ever put on the stage, those passed over at its end included.
    staged: u64,
    /// Of these, the free, and those that were posted.
    freed: u64,
    staged_posted: u64,
    queue: VecDeque<Item>,
    /// How many of these wait for room on the stage, and how many ring.
    late: usize,
    rings: usize,
    /// Writes posted and arrived, modulo 2³².
    posted: u32,
    arrived: u32,
    /// Since the last signalled one.
    unsignalled: usize,
    unsignalled_bytes: u64,
    /// Signalled writes under way: their count, and what is free once they have arrived.
    signals: VecDeque<(u32, u64)>,
    depth: usize,
    /// Rings of the peer that have not arrived, as far as is known: their counts.
    ringing: VecDeque<u32>,
}

#[derive(Debug)]
struct Item {
    what: What,
    to: usize,
    len: usize,
    rings: bool,
}

#[derive(Debug)]
enum What {
    /// Bytes of the segment, from the place where they go.
    Ring,
    /// Bytes on the stage, and how many were ever staged with them.
    Staged { at: usize, end: u64 },
    /// Words that wait for room on the stage.
    Late(Vec<u8>),
}

impl Outgoing {
    /// Nothing to send, through a queue of `depth`.
    pub(super) fn new(stage: Segment, depth: usize) -> Self {
        assert!(stage.size() >= STAGE && depth >= 4, "a stage of {} bytes, {depth} writes", stage.size());
        Self {
            stage,
            staged: 0,
            freed: 0,
            staged_posted: 0,
            queue: VecDeque::new(),
            late: 0,
            rings: 0,
            posted: 0,
            arrived: 0,
            unsignalled: 0,
            unsignalled_bytes: 0,
            signals: VecDeque::new(),
            depth,
            ringing: VecDeque::new(),
        }
    }

    /// Queues ring bytes.
    pub(super) fn publish_ring(&mut self, range: Range<usize>) {
        for start in range.clone().step_by(RING_MAX) {
            let len = RING_MAX.min(range.end - start);
            match self.queue.back_mut() {
                Some(Item { what: What::Ring, to, len: tail, .. })
                    if *to + *tail == start && *tail + len <= RING_MAX =>
                {
                    *tail += len;
                }
                _ => self.queue.push_back(Item { what: What::Ring, to: start, len, rings: false }),
            }
        }
    }

    /// Queues the words in `range`, as they are now.
    pub(super) fn publish_words(&mut self, segment: &Segment, range: Range<usize>) {
        for start in range.clone().step_by(WORDS_MAX) {
            self.words(segment, start..(start + WORDS_MAX).min(range.end), false);
        }
    }

    /// Queues words that ring the peer when they arrive.
    pub(super) fn ring(&mut self, segment: &Segment, range: Range<usize>) {
        self.words(segment, range, true);
    }

    /// Whether the peer may be rung. It has receives for only so many rings.
    pub(super) fn can_ring(&self) -> bool {
        self.ringing.len() + self.rings < RINGS
    }

    fn words(&mut self, segment: &Segment, range: Range<usize>, rings: bool) {
        let words = segment.mirror();
        if let Some(Item { what, to, len, rings: false }) = self.queue.back_mut()
            && !rings
            && *to == range.start
            && *len == range.len()
        {
            // The same words again, and the last thing that was published: only their latest values matter.
            match what {
                What::Staged { at, .. } => {
                    for offset in range.step_by(WORD) {
                        self.stage.store(*at + offset - *to, words.load(offset));
                    }
                    return;
                }
                What::Late(bytes) => {
                    bytes.clear();
                    words.append_words(range, bytes);
                    return;
                }
                What::Ring => {}
            }
        }
        let (to, len) = (range.start, range.len());
        // Places on the stage are taken and given back in the order of the queue.
        let what = match (self.late == 0).then(|| self.place(len)).flatten() {
            Some((at, end)) => {
                for offset in range.step_by(WORD) {
                    self.stage.store(at + offset - to, words.load(offset));
                }
                What::Staged { at, end }
            }
            None => {
                let mut bytes = Vec::new();
                words.append_words(range, &mut bytes);
                self.late += 1;
                What::Late(bytes)
            }
        };
        self.rings += usize::from(rings);
        self.queue.push_back(Item { what, to, len, rings });
    }

    /// Takes a place on the stage. Returns where, and what is then staged.
    fn place(&mut self, len: usize) -> Option<(usize, u64)> {
        let at = (self.staged % STAGE as u64) as usize;
        let skipped = if at + len > STAGE { STAGE - at } else { 0 };
        let end = self.staged + (skipped + len) as u64;
        if end - self.freed > STAGE as u64 {
            return None;
        }
        self.staged = end;
        Some(((at + skipped) % STAGE, end))
    }

    /// Whether anything is queued.
    pub(super) fn has_work(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Whether something is queued for which there is room at the device.
    pub(super) fn can_post(&self) -> bool {
        self.has_work() && self.room() > 0
    }

    /// Whether there is no room for more, or for another ring, before it is known that something has arrived.
    pub(super) fn is_stuck(&self) -> bool {
        self.room() == 0 || !self.can_ring()
    }

    /// Whether everything has arrived, as far as is known.
    pub(super) fn is_settled(&self) -> bool {
        self.queue.is_empty() && self.posted == self.arrived
    }

    /// Whether completions are to come.
    pub(super) fn awaits(&self) -> bool {
        !self.signals.is_empty()
    }

    /// One write of so many is signalled.
    fn signal_every(&self) -> usize {
        self.depth / 4
    }

    fn room(&self) -> usize {
        self.depth - self.posted.wrapping_sub(self.arrived) as usize
    }

    /// The next writes to post, in order, as many as the device has room for. All of them are to be posted; what is not must be
    /// the end of the link. With `settle` the last one is signalled.
    pub(super) fn fill(&mut self, settle: bool, writes: &mut Vec<Write>) {
        writes.clear();
        let mut room = self.room();
        while room > 0 {
            let Some(item) = self.queue.front_mut() else { break };
            if let What::Late(bytes) = &mut item.what {
                let bytes = std::mem::take(bytes);
                match self.place(bytes.len()) {
                    Some((at, end)) => {
                        self.stage.store_words(at, &bytes);
                        self.late -= 1;
                        if let Some(item) = self.queue.front_mut() {
                            item.what = What::Staged { at, end };
                        }
                    }
                    None => {
                        if let Some(item) = self.queue.front_mut() {
                            item.what = What::Late(bytes);
                        }
                        break;
                    }
                }
            }
            let Some(item) = self.queue.pop_front() else { break };
            let (source, from) = match item.what {
                What::Ring => (Source::Segment, item.to..item.to + item.len),
                What::Staged { at, end } => {
                    self.staged_posted = end;
                    (Source::Stage, at..at + item.len)
                }
                What::Late(_) => unreachable!("put on the stage above"),
            };
            room -= 1;
            self.posted = self.posted.wrapping_add(1);
            self.unsignalled += 1;
            self.unsignalled_bytes += item.len as u64;
            if item.rings {
                self.rings -= 1;
                self.ringing.push_back(self.posted);
            }
            let full = room == 0 || self.unsignalled_bytes >= STAGE as u64 / 4;
            let signalled = item.rings || full || self.unsignalled >= self.signal_every();
            writes.push(Write { source, from, to: item.to, signalled, rings: item.rings });
            if signalled {
                self.on_signalled();
            }
        }
        if settle
            && self.unsignalled > 0
            && let Some(last) = writes.last_mut()
        {
            last.signalled = true;
            self.on_signalled();
        }
    }

    /// The last write posted is signalled.
    fn on_signalled(&mut self) {
        self.signals.push_back((self.posted, self.staged_posted));
        self.unsignalled = 0;
        self.unsignalled_bytes = 0;
    }

    /// All writes up to the `count`-th have arrived.
    pub(super) fn on_written(&mut self, count: u32) {
        while let Some((signal, free)) = self.signals.front().copied() {
            if count.wrapping_sub(signal).cast_signed() < 0 {
                break;
            }
            self.arrived = signal;
            self.freed = self.freed.max(free);
            if self.ringing.front() == Some(&signal) {
                self.ringing.pop_front();
            }
            self.signals.pop_front();
        }
    }

    /// Drops all that is queued.
    pub(super) fn clear(&mut self) {
        self.queue.clear();
        (self.late, self.rings) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A device that lands writes in a mirror, and tells of those that are signalled.
    struct Device {
        segment: Segment,
        stage: Segment,
        mirror: Segment,
        outgoing: Outgoing,
        landed: u32,
        signals: Vec<u32>,
        under_way: VecDeque<Write>,
    }

    impl Device {
        fn new(depth: usize) -> Self {
            let stage = Segment::private(STAGE);
            let outgoing = Outgoing::new(stage.clone(), depth);
            let (segment, mirror) = (Segment::private(1 << 20), Segment::private(1 << 20));
            let under_way = VecDeque::new();
            Self { segment, stage, mirror, outgoing, landed: 0, signals: Vec::new(), under_way }
        }

        fn post(&mut self, settle: bool) -> usize {
            let mut writes = Vec::new();
            self.outgoing.fill(settle, &mut writes);
            let count = writes.len();
            self.under_way.extend(writes);
            count
        }

        /// Lands one write.
        fn land(&mut self) -> bool {
            let Some(write) = self.under_way.pop_front() else { return false };
            let source = match write.source {
                Source::Segment => &self.segment,
                Source::Stage => &self.stage,
            };
            let mut bytes = Vec::new();
            source.mirror().append_words(write.from.clone(), &mut bytes);
            self.mirror.store_words(write.to, &bytes);
            self.landed += 1;
            if write.signalled || write.rings {
                self.signals.push(self.landed);
            }
            true
        }

        fn tell(&mut self) {
            for count in self.signals.drain(..) {
                self.outgoing.on_written(count);
            }
        }

        fn word(&mut self, offset: usize, value: u64) {
            self.segment.store(offset, value);
            self.outgoing.publish_words(&self.segment, offset..offset + WORD);
        }
    }

    // F1: what was published behind words that had no room on the stage keeps its place there until it has arrived.
    #[test]
    fn what_comes_behind_late_words_is_not_written_over() {
        let mut device = Device::new(64);
        let publish = |device: &mut Device, from: usize, len: usize| {
            (from..from + len).step_by(WORD).for_each(|at| device.segment.store(at, at as u64 + 1));
            device.outgoing.publish_words(&device.segment, from..from + len);
        };
        // All of the stage but eight bytes, then words that are late, a ring, and one word that would fit.
        publish(&mut device, 0, 15 * WORDS_MAX);
        publish(&mut device, 15 * WORDS_MAX, WORDS_MAX - WORD);
        publish(&mut device, 20 * WORDS_MAX, WORDS_MAX);
        device.outgoing.publish_ring(30 * WORDS_MAX..30 * WORDS_MAX + WORD);
        publish(&mut device, 40 * WORDS_MAX, WORD);
        while device.post(false) > 0 {
            while device.under_way.len() > 2 {
                device.land();
            }
            device.tell();
        }
        publish(&mut device, 50 * WORDS_MAX, 15 * WORDS_MAX);
        while device.post(true) > 0 || device.land() {
            device.tell();
        }
        assert_eq!(device.mirror.mirror().load(40 * WORDS_MAX), 40 * WORDS_MAX as u64 + 1);
        assert!(device.outgoing.late == 0 && device.outgoing.is_settled());
    }

    #[test]
    fn words_land_as_they_were_when_they_were_published() {
        let mut device = Device::new(16);
        device.word(4096, 1);
        device.segment.store(8192, 7);
        device.outgoing.publish_ring(8192..8200);
        device.word(4096, 2);
        assert_eq!(device.post(false), 3);
        assert!(device.land());
        // The second value vouches for the ring byte, which has not landed.
        assert_eq!((device.mirror.load(4096), device.mirror.load(8192)), (1, 0));
        assert!(device.land() && device.land());
        assert_eq!((device.mirror.load(4096), device.mirror.load(8192)), (2, 7));
    }

    #[test]
    fn only_what_continues_the_last_publish_is_merged() {
        let mut device = Device::new(64);
        device.outgoing.publish_ring(8192..8256);
        device.outgoing.publish_ring(8256..8320);
        device.word(4096, 1);
        device.word(4096, 2);
        device.word(4104, 1);
        device.word(4096, 3);
        assert_eq!(device.post(false), 4);
        device.land();
        device.land();
        assert_eq!(device.mirror.load(4096), 2, "the value before the other word's");
    }

    #[test]
    fn a_device_that_takes_little_gets_everything_in_order() {
        let mut device = Device::new(8);
        // Far more than stage and queue hold, and only now and then is anything told.
        let (mut published, mut seen) = (0, 0);
        while seen < 50_000 {
            for _ in 0..7 {
                if published < 50_000 {
                    published += 1;
                    device.word(4096, published);
                    device.word(4104, published);
                }
            }
            device.post(false);
            for _ in 0..5 {
                device.land();
                let (first, second) = (device.mirror.load(4096), device.mirror.load(4104));
                assert!(second <= first && first <= second + 1, "{first}, {second}");
                assert!(second >= seen);
                seen = second;
            }
            if published % 3 == 0 || published == 50_000 {
                device.tell();
            }
            if published == 50_000 {
                device.post(true);
            }
        }
        while device.land() {}
        device.tell();
        assert!(device.outgoing.is_settled() && !device.outgoing.awaits());
    }

    #[test]
    fn few_writes_are_signalled_and_the_last_when_it_matters() {
        let mut device = Device::new(256);
        for at in 0..32 {
            device.word(4096 + 8 * (at % 2), at as u64);
        }
        device.post(false);
        assert!(device.under_way.iter().all(|write| !write.signalled));
        device.word(4096, 99);
        device.post(true);
        assert!(device.under_way.back().unwrap().signalled);
        while device.land() {}
        assert!(!device.outgoing.is_settled());
        device.tell();
        assert!(device.outgoing.is_settled());
    }

    #[test]
    fn rings_are_under_way_until_they_have_arrived() {
        let mut device = Device::new(2 * RINGS);
        for _ in 0..RINGS {
            // One whose arrival is not yet known does not keep the next nap from being rung in.
            assert!(device.outgoing.can_ring());
            device.outgoing.ring(&device.segment, 128..136);
        }
        assert!(!device.outgoing.can_ring() && device.outgoing.is_stuck());
        device.post(false);
        assert!(!device.outgoing.can_ring());
        device.land();
        device.tell();
        assert!(device.outgoing.can_ring() && !device.outgoing.is_stuck());
    }

    #[test]
    fn large_ranges_are_cut() {
        let mut device = Device::new(1024);
        device.outgoing.publish_ring(4096..(1 << 20));
        device.outgoing.publish_words(&device.segment, 4096..4096 + 3 * WORDS_MAX + 8);
        assert_eq!(device.post(false), 1 + 4);
        let whole: usize = device.under_way.iter().map(|write| write.from.len()).sum();
        assert_eq!(whole, (1 << 20) - 4096 + 3 * WORDS_MAX + 8);
    }
}
