//! What the tests publish: records in a ring whose bytes follow from seed and number, so that a reader knows what must be
//! there, and a counter that vouches for them.
//!
//! ```text
//! BASE  +0 count (records published)   +64 acknowledged (the reader's)   +128 first   +192 second   +256 pulse
//! RING  SLOTS places of RECORD bytes; record i lies in place i % SLOTS
//! ```

use consort_dataplane::fabric::{FABRIC_PAGE, Fabric};
use consort_dataplane::memory::{Mirror, WORD};
use consort_dataplane::names::PeerSet;
use consort_dataplane::sim::Choices;

const BASE: usize = FABRIC_PAGE;
const COUNT: usize = BASE;
const ACKNOWLEDGED: usize = BASE + 64;
const FIRST: usize = BASE + 128;
const SECOND: usize = BASE + 192;
const PULSE: usize = BASE + 256;
const RING: usize = BASE + 4096;
const RECORD: usize = 1024;

/// Records in the ring.
pub(super) const SLOTS: u64 = 16;

/// What the segment must hold.
pub(super) const SEGMENT: usize = RING + SLOTS as usize * RECORD;

/// Where all records lie.
pub(super) const BYTES: std::ops::Range<usize> = RING..SEGMENT;

/// Where a record begins.
pub(super) fn place(record: u64) -> usize {
    RING + (record % SLOTS) as usize * RECORD
}

/// The words of a record: their number and values follow from the seed.
fn words(seed: u64, record: u64) -> impl Iterator<Item = u64> {
    let mut choices = Choices::new(seed ^ record.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let count = 1 + choices.below((RECORD / WORD) as u64);
    (0..count).map(move |_| choices.any())
}

/// The bytes of a record.
pub(super) fn range(seed: u64, record: u64) -> std::ops::Range<usize> {
    let start = place(record);
    start..start + words(seed, record).count() * WORD
}

/// A node that publishes records.
pub(super) struct Writer {
    seed: u64,
    pub(super) written: u64,
    peers: PeerSet,
}

impl Writer {
    pub(super) fn new(seed: u64, peers: PeerSet) -> Self {
        Self { seed, written: 0, peers }
    }

    /// Whether the ring has room: every peer has acknowledged what lies there.
    pub(super) fn has_room(&self, fabric: &impl Fabric) -> bool {
        self.peers.iter().all(|peer| acknowledged(fabric, peer) + SLOTS > self.written)
    }

    /// Whether everything has been acknowledged.
    pub(super) fn is_acknowledged(&self, fabric: &impl Fabric) -> bool {
        self.peers.iter().all(|peer| acknowledged(fabric, peer) == self.written)
    }

    /// Publishes one record: the ring bytes first, then what vouches for them (D2), then two words in order. To be flushed.
    pub(super) fn write(&mut self, fabric: &mut impl Fabric) {
        let at = place(self.written);
        let bytes: Vec<u8> = words(self.seed, self.written).flat_map(u64::to_ne_bytes).collect();
        fabric.segment().store_words(at, &bytes);
        fabric.publish_ring(at..at + bytes.len(), self.peers);
        self.written += 1;
        for word in [COUNT, FIRST, SECOND] {
            fabric.segment().store(word, self.written);
            fabric.publish_words(word..word + WORD, self.peers);
        }
    }

    /// Changes and publishes a word of no meaning. To be flushed.
    pub(super) fn pulse(&self, fabric: &mut impl Fabric) {
        let beat = fabric.segment().load(PULSE) + 1;
        fabric.segment().store(PULSE, beat);
        fabric.publish_words(PULSE..PULSE + WORD, self.peers);
    }
}

/// How many records a peer says to have.
pub(super) fn acknowledged(fabric: &impl Fabric, peer: consort_dataplane::names::Slot) -> u64 {
    fabric.mirror(peer).map_or(0, |mirror| mirror.load(ACKNOWLEDGED))
}

/// A node that reads them.
pub(super) struct Reader {
    seed: u64,
    pub(super) read: u64,
}

impl Reader {
    pub(super) fn new(seed: u64) -> Self {
        Self { seed, read: 0 }
    }

    /// Checks what has come, and returns whether there was something new. `F1`: whatever the count vouches for is there.
    pub(super) fn read(&mut self, mirror: &Mirror) -> bool {
        let second = mirror.load(SECOND);
        let first = mirror.load(FIRST);
        let count = mirror.load(COUNT);
        assert!(second <= first, "the later word says {second}, the earlier one {first} still");
        assert!(first <= count, "the later word says {first}, the earlier one {count} still");
        assert!(
            (self.read..=self.read + SLOTS).contains(&count),
            "the count went from {} to {count}",
            self.read
        );
        let new = count > self.read;
        for record in self.read..count {
            check(self.seed, record, mirror);
        }
        self.read = count;
        new
    }

    /// Acknowledges what was read to `peers`. To be flushed.
    pub(super) fn acknowledge(&self, fabric: &mut impl Fabric, peers: PeerSet) {
        acknowledge(fabric, self.read, peers);
    }
}

/// Says to have so many records. To be flushed.
pub(super) fn acknowledge(fabric: &mut impl Fabric, records: u64, peers: PeerSet) {
    fabric.segment().store(ACKNOWLEDGED, records);
    fabric.publish_words(ACKNOWLEDGED..ACKNOWLEDGED + WORD, peers);
}

/// Whether the mirror holds the record.
pub(super) fn check(seed: u64, record: u64, mirror: &Mirror) {
    for (at, expected) in words(seed, record).enumerate() {
        let found = mirror.load(place(record) + at * WORD);
        assert_eq!(
            found, expected,
            "word {at} of record {record}, which the count covers (seed {seed}): F1 is broken"
        );
    }
}

/// How many records a mirror vouches for.
pub(super) fn count(mirror: &Mirror) -> u64 {
    mirror.load(COUNT)
}

/// All words of a mirror, for comparing.
pub(super) fn picture(mirror: &Mirror) -> Vec<u64> {
    (0..mirror.size()).step_by(WORD).map(|at| mirror.load(at)).collect()
}
