//! The first page of a segment, which is the fabric's: what tells a peer that something came, and when a node sleeps.
//!
//! ```text
//!  512  EPOCH    batches published of which nothing below tells
//!  640  NAP      this node's sleeps, counted; it is about to sleep, or asleep, from the moment it counts one
//!  768  WATCHED  how often the list below was changed
//!  776  LIST     PLACES words: which words tell of a batch by themselves. First word of the range | words in it << 48
//! ```
//!
//! What is before that is shared memory's, which may publish from the same segment.
//!
//! # What came
//!
//! A device writes into memory and tells nobody. [`Fabric::wait`](consort_dataplane::fabric::Fabric::wait) must know all the same whether something has come since the
//! last poll. One more write per batch that counts an epoch up would do, and would be a third of all writes at small
//! messages. But nearly every batch ends with the same few words, the sender's row in the shared state table. So a node
//! tells its peers once which words it publishes so, [`Watch`], and a peer looks whether these have changed: [`Sight`]. Only a batch that
//! ends with anything else costs a write of `EPOCH`.
//!
//! # Sleep
//!
//! A node that wants to sleep counts `NAP` up, publishes it, and waits until this has *arrived* everywhere. Then it looks whether
//! anything has come, and sleeps if not. A peer that has published anything since it last rang looks at `NAP` afterwards: when it
//! flushes, at each poll, and before it sleeps itself, which it does only when all that it published has arrived. If there is a nap
//! that it has not yet rung in, it rings: a write with immediate data, which ends the sleep. So of a publish and a nap:
//!
//! - the publish arrived before the sleeper's look: it is seen there;
//! - it arrived later, and so after `NAP` was at the publisher, who sees it when it looks after that: and it does look, as
//!   it doesn't sleep before its publish has arrived.
//!
//! Each ring takes one of the receives that the sleeper has posted. A peer rings at most once in a nap and has at most `RINGS` under
//! way, and a sleeper posts anew what was taken before it counts the next nap. So what is taken in a nap are rings that were under way when it
//! began, and one more: receives don't run out. There may be more than one ring under way because a publisher may do nothing after its flush: it then learns
//! late that the last one has arrived, and must ring all the same in a nap that began after that.

use std::ops::Range;

use consort_dataplane::memory::{LINE, Mirror, Segment, WORD};

use crate::beside::VERBS_WORDS;

pub(super) const EPOCH: usize = VERBS_WORDS.start;
pub(super) const NAP: usize = EPOCH + 2 * LINE;
const WATCHED: usize = NAP + 2 * LINE;
const LIST: usize = WATCHED + WORD;

/// Ranges in the list.
const PLACES: usize = 8;

/// Words in a range that is watched: looking at them is part of every poll.
const WORDS_MAX: usize = 64;

/// What a new peer is to see of the page.
pub(super) const PAGE: Range<usize> = EPOCH..LIST + PLACES * WORD;

const _: () = assert!(PAGE.start >= VERBS_WORDS.start && PAGE.end <= VERBS_WORDS.end, "no other's words");
const _: () = assert!(NAP >= EPOCH + LINE && WATCHED >= NAP + LINE, "a line for each word");

/// The words that tell of this node's batches by themselves.
#[derive(Debug, Default)]
pub(super) struct Watch {
    ranges: [Option<Range<usize>>; PLACES],
    changes: u64,
}

impl Watch {
    /// Whether a publish of these words tells of itself; if it could, it does from now on, and what is then to be published before
    /// it, in this order, is handed to `publish`.
    pub(super) fn covers(
        &mut self,
        segment: &Segment,
        range: &Range<usize>,
        mut publish: impl FnMut(Range<usize>),
    ) -> bool {
        let inside = |known: &Range<usize>| known.start <= range.start && range.end <= known.end;
        if self.ranges.iter().flatten().any(inside) {
            return true;
        }
        if range.len() > WORDS_MAX * WORD || range.end >= 1 << 48 {
            return false;
        }
        // A longer one of the same kind takes the place of a shorter; else the oldest has to go.
        let shorter = |known: &Range<usize>| known.start == range.start;
        let same = self.ranges.iter().position(|known| known.as_ref().is_some_and(shorter));
        let place = same.unwrap_or((self.changes % PLACES as u64) as usize);
        self.ranges[place] = Some(range.clone());
        self.changes += 1;
        let words = (range.len() / WORD) as u64;
        segment.store(LIST + place * WORD, (range.start / WORD) as u64 | words << 48);
        publish(LIST..LIST + PLACES * WORD);
        segment.store(WATCHED, self.changes);
        publish(WATCHED..WATCHED + WORD);
        true
    }
}

/// What a peer's mirror showed at the last poll.
#[derive(Debug, Default)]
pub(super) struct Sight {
    epoch: u64,
    changes: u64,
    ranges: Vec<Range<usize>>,
    values: Vec<u64>,
}

impl Sight {
    /// Whether anything came since the last [`Sight::take`].
    pub(super) fn is_new(&self, mirror: &Mirror) -> bool {
        mirror.load(EPOCH) != self.epoch
            || mirror.load(WATCHED) != self.changes
            || self.offsets().zip(&self.values).any(|(offset, value)| mirror.load(offset) != *value)
    }

    /// Takes in what has come. Returns whether there is anything.
    ///
    /// # Errors
    /// The peer's list names what can't be watched (S1).
    pub(super) fn take(&mut self, mirror: &Mirror) -> Result<bool, String> {
        let (epoch, changes) = (mirror.load(EPOCH), mirror.load(WATCHED));
        let mut came = epoch != self.epoch;
        self.epoch = epoch;
        if changes != self.changes {
            came = true;
            self.changes = changes;
            self.ranges.clear();
            for place in 0..PLACES {
                let entry = mirror.load(LIST + place * WORD);
                if entry != 0 {
                    self.ranges.push(read_entry(entry, mirror.size())?);
                }
            }
            self.values = self.offsets().map(|offset| mirror.load(offset)).collect();
            return Ok(came);
        }
        let ranges = self.ranges.iter().flat_map(|range| range.clone().step_by(WORD));
        for (offset, value) in ranges.zip(&mut self.values) {
            let now = mirror.load(offset);
            came |= now != *value;
            *value = now;
        }
        Ok(came)
    }

    fn offsets(&self) -> impl Iterator<Item = usize> {
        self.ranges.iter().flat_map(|range| range.clone().step_by(WORD))
    }
}

/// Reads an entry of a peer's list.
fn read_entry(entry: u64, size: usize) -> Result<Range<usize>, String> {
    let words = (entry >> 48) as usize;
    let start = usize::try_from(entry & ((1 << 48) - 1)).ok().and_then(|first| first.checked_mul(WORD));
    let range = start.and_then(|start| Some(start..start.checked_add(words * WORD)?));
    range
        .filter(|range| words > 0 && words <= WORDS_MAX && range.end <= size)
        .ok_or_else(|| format!("it has {entry:#x} watched in a segment of {size} bytes"))
}

/// What is known of a peer's naps.
#[derive(Debug, Default)]
pub(super) struct Naps {
    /// The last in which it was rung.
    rung: u64,
    /// Something was published to it since.
    unseen: bool,
}

impl Naps {
    /// Something was published to the peer.
    pub(super) fn on_publish(&mut self) {
        self.unseen = true;
    }

    /// Whether to ring the peer now. `nap` is its word; whoever asks rings if so.
    pub(super) fn must_ring(&mut self, nap: u64) -> bool {
        let ring = self.unseen && nap != self.rung;
        if ring {
            self.rung = nap;
            self.unseen = false;
        }
        ring
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Carries ranges of one node's segment into the other's mirror.
    fn carry(from: &Segment, to: &Segment, range: Range<usize>) {
        let mut bytes = Vec::new();
        from.mirror().append_words(range.clone(), &mut bytes);
        to.store_words(range.start, &bytes);
    }

    #[test]
    fn what_is_watched_tells_of_itself() {
        let (own, there) = (Segment::private(1 << 16), Segment::private(1 << 16));
        let (mut watch, mut sight) = (Watch::default(), Sight::default());
        let row = 8192..8192 + 10 * WORD;
        assert!(watch.covers(&own, &row, |range| carry(&own, &there, range)));
        assert!(sight.is_new(&there.mirror()) && sight.take(&there.mirror()).unwrap());
        assert!(!sight.is_new(&there.mirror()) && !sight.take(&there.mirror()).unwrap());
        there.store(8192 + 9 * WORD, 1);
        assert!(sight.is_new(&there.mirror()) && sight.take(&there.mirror()).unwrap());
        assert!(!sight.is_new(&there.mirror()));
        // A part of it needs no more telling, a longer one does.
        assert!(watch.covers(&own, &(8200..8216), |_| panic!("it is known")));
        let mut told = 0;
        assert!(watch.covers(&own, &(8192..8192 + 20 * WORD), |_| told += 1));
        assert_eq!((told, watch.ranges.iter().flatten().count()), (2, 1));
        assert!(!watch.covers(&own, &(8192..8192 + 65 * WORD), |_| panic!("it is too long")));
    }

    #[test]
    fn the_list_is_bounded_and_the_oldest_goes() {
        let own = Segment::private(1 << 16);
        let (mut watch, mut sight) = (Watch::default(), Sight::default());
        for at in 0..20 {
            let start = 8192 + at * 512;
            assert!(watch.covers(&own, &(start..start + 64), |_| {}));
            assert!(sight.take(&own.mirror()).unwrap());
        }
        own.store(8192, 1);
        assert!(!sight.is_new(&own.mirror()), "the first is not watched any more");
        own.store(8192 + 19 * 512, 1);
        assert!(sight.is_new(&own.mirror()));
        assert!(watch.covers(&own, &(8192..8256), |_| {}));
    }

    #[test]
    fn what_a_peer_has_watched_is_checked() {
        let size = 1 << 16;
        let end = (size / WORD) as u64;
        for bad in [1, 65 << 48, 1 << 48 | end, 2 << 48 | (end - 1), u64::MAX, 0xffff << 48] {
            assert!(read_entry(bad, size).is_err(), "{bad:#x}");
        }
        assert_eq!(read_entry(2 << 48 | (end - 2), size), Ok(size - 16..size));
    }

    #[test]
    fn one_ring_for_one_nap_and_none_without_a_publish() {
        let mut naps = Naps::default();
        assert!(!naps.must_ring(1), "nothing was published");
        naps.on_publish();
        assert!(naps.must_ring(1));
        naps.on_publish();
        assert!(!naps.must_ring(1), "it was rung already");
        assert!(naps.must_ring(2), "what was published before may have come after its look");
        assert!(!naps.must_ring(3));
    }
}
