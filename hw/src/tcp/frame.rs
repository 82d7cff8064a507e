//! What travels on a link once it is up: a stream of frames, each a header of 32 bytes and its payload.
//!
//! ```text
//!   0      1         4           8                   16                  24           28           32
//!   +------+---------+-----------+-------------------+-------------------+------------+------------+---------
//!   | kind | 0  0  0 | sequence  | place             | length            | payload    | header     | payload
//!   | u8   |         | u32       | u64               | u64, bytes        | check, u32 | check, u32 | …
//!   +------+---------+-----------+-------------------+-------------------+------------+------------+---------
//! ```
//!
//! All numbers are little-endian. `sequence` counts the frames of this link and direction from 0, modulo 2³².
//!
//! | kind | place | payload |
//! |---|---|---|
//! | 1 ring | offset of the bytes in the sender's segment | the bytes |
//! | 2 words | number of runs | a table of `{first word u32, words u32}` per run, then the words of all runs |
//! | 3 goodbye | 0 | none: nothing follows, the sender leaves in order |
//! | 4 relay | the origin: `{32 bits of its incarnation u32, node u32}` | ring bytes of the origin |
//!
//! The length of a relay is `{first word u32, words u32}`, as of a run: the place in the origin's segment is in it.
//!
//! Offsets and lengths are whole words, inside the segment that the sender announced and outside its first page.
//! Words travel as their owner stores them; both ends of a link have the same byte order (the hello sees to it).
//!
//! # The checks
//!
//! TCP's sum of 16 bits lets damage through, so there are two CRC32C. The header's own is there so that a damaged
//! header never places bytes: nothing of a header is used before its check has held. It starts from the link's *salt*,
//! which both ends derive from their hellos, so that bytes of another link, or of the other direction, don't pass
//! either; and it covers the sequence, so that a segment of the stream that is lost, doubled or swapped by damage to
//! TCP's own numbers is seen even when it is cut exactly between two frames.
//!
//! What a frame may do is proven here once: [`Header::decode`] gives bounds that hold ([`runs`] those of a table),
//! and who has them need not look again.

use consort_dataplane::fabric::FABRIC_PAGE;
use consort_dataplane::memory::WORD;

use super::check::crc32c;
use super::relay::Origin;

/// Bytes of a header.
pub(super) const HEADER: usize = 32;

/// Bytes of one run in the table of a words frame.
pub(super) const RUN: usize = 8;

/// The largest segment that a run's two numbers can speak of: 2³² words.
pub(crate) const MAX_SEGMENT: usize = 1 << 35;

const KIND_RING: u8 = 1;
const KIND_WORDS: u8 = 2;
const KIND_GOODBYE: u8 = 3;
const KIND_RELAY: u8 = 4;

/// A header whose numbers hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Header {
    /// `len` bytes of a ring, whose place is `offset`.
    Ring { offset: usize, len: usize, check: u32 },
    /// `runs` runs of words in `len` bytes of payload.
    Words { runs: usize, len: usize, check: u32 },
    /// `len` bytes of a ring of another node, whose place in that one's segment is `offset`. They lie behind the first page of what a
    /// segment can be; whether they lie in that segment, and may come over this link, is the [`super::relay`]'s to say.
    Relay { origin: Origin, offset: usize, len: usize, check: u32 },
    /// The end of the stream.
    Goodbye,
}

/// Why a stream can't be read on. Its text goes into the blame of the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Damage {
    #[error("a frame's header does not match its check")]
    HeaderCheck,
    #[error("frame {found} came where {due} was due")]
    Sequence { due: u32, found: u32 },
    #[error("there is no frame of kind {0}")]
    Kind(u8),
    #[error("bytes of a header that must be zero are not")]
    Reserved,
    #[error("{len} bytes of ring at {offset} are no whole words inside a segment of {size} bytes")]
    Ring { offset: u64, len: u64, size: usize },
    #[error("{words} words of a ring at word {first} are no part of any segment")]
    Relay { first: u32, words: u32 },
    #[error("{runs} runs in {len} bytes don't fit a segment of {size} bytes")]
    Words { runs: u64, len: u64, size: usize },
    #[error("{words} words at word {first} are outside a segment of {size} bytes")]
    Run { first: u32, words: u32, size: usize },
    #[error("a table of runs does not add up to its frame")]
    Table,
    #[error("a frame's payload does not match its check")]
    PayloadCheck,
    #[error("bytes came after the goodbye")]
    AfterGoodbye,
}

/// The link's two agreements on one direction: what a header's check starts from, and what the sender's segment
/// measures.
#[derive(Clone, Copy, Debug)]
pub(super) struct Direction {
    /// See [`super::hello`].
    pub(super) salt: u32,
    /// Bytes in the sender's segment.
    pub(super) segment_bytes: usize,
}

impl Header {
    /// Bytes of payload that follow.
    pub(super) fn payload(self) -> usize {
        match self {
            Self::Ring { len, .. } | Self::Words { len, .. } | Self::Relay { len, .. } => len,
            Self::Goodbye => 0,
        }
    }

    pub(super) fn encode(self, salt: u32, sequence: u32) -> [u8; HEADER] {
        let (kind, place, len, check) = match self {
            Self::Ring { offset, len, check } => (KIND_RING, offset as u64, len as u64, check),
            Self::Words { runs, len, check } => (KIND_WORDS, runs as u64, len as u64, check),
            Self::Relay { origin, offset, len, check } => {
                (KIND_RELAY, origin.0, ((len / WORD) as u64) << 32 | (offset / WORD) as u64, check)
            }
            Self::Goodbye => (KIND_GOODBYE, 0, 0, 0),
        };
        let mut bytes = [0; HEADER];
        bytes[0] = kind;
        bytes[4..8].copy_from_slice(&sequence.to_le_bytes());
        bytes[8..16].copy_from_slice(&place.to_le_bytes());
        bytes[16..24].copy_from_slice(&len.to_le_bytes());
        bytes[24..28].copy_from_slice(&check.to_le_bytes());
        let sum = crc32c(salt, &bytes[..28]);
        bytes[28..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Reads a header and proves it: what it speaks of lies inside the segment.
    pub(super) fn decode(bytes: &[u8; HEADER], direction: Direction, due: u32) -> Result<Self, Damage> {
        if crc32c(direction.salt, &bytes[..28]) != le32(&bytes[28..]) {
            return Err(Damage::HeaderCheck);
        }
        let found = le32(&bytes[4..]);
        if found != due {
            return Err(Damage::Sequence { due, found });
        }
        if bytes[1..4] != [0; 3] {
            return Err(Damage::Reserved);
        }
        let size = direction.segment_bytes;
        let (place, length, check) = (le64(&bytes[8..]), le64(&bytes[16..]), le32(&bytes[24..]));
        match bytes[0] {
            KIND_RING => {
                let (Ok(offset), Ok(len)) = (usize::try_from(place), usize::try_from(length)) else {
                    return Err(Damage::Ring { offset: place, len: length, size });
                };
                if len == 0 || !len.is_multiple_of(WORD) || !within(offset, len, size) {
                    return Err(Damage::Ring { offset: place, len: length, size });
                }
                Ok(Self::Ring { offset, len, check })
            }
            KIND_WORDS => {
                // Runs are disjoint, so both the table and the words are bounded by the words of the segment.
                let most = size / WORD;
                let (Ok(runs), Ok(len)) = (usize::try_from(place), usize::try_from(length)) else {
                    return Err(Damage::Words { runs: place, len: length, size });
                };
                if runs == 0 || runs > most || !len.is_multiple_of(WORD) || len <= runs * RUN {
                    return Err(Damage::Words { runs: place, len: length, size });
                }
                if len - runs * RUN > size {
                    return Err(Damage::Words { runs: place, len: length, size });
                }
                Ok(Self::Words { runs, len, check })
            }
            KIND_RELAY => {
                let (first, words) = (length as u32, (length >> 32) as u32); // the halves
                let (offset, len) = (first as usize * WORD, words as usize * WORD);
                if len == 0 || !within(offset, len, MAX_SEGMENT) {
                    return Err(Damage::Relay { first, words });
                }
                Ok(Self::Relay { origin: Origin(place), offset, len, check })
            }
            KIND_GOODBYE if place == 0 && length == 0 && check == 0 => Ok(Self::Goodbye),
            KIND_GOODBYE => Err(Damage::Reserved),
            kind => Err(Damage::Kind(kind)),
        }
    }
}

/// Proves the payload of a words frame and calls `each` with every run's byte offset and words, in the frame's order.
/// `each` is called for none before all are proven.
pub(super) fn runs(
    payload: &[u8],
    runs: usize,
    segment_bytes: usize,
    each: &mut dyn FnMut(usize, &[u8]),
) -> Result<(), Damage> {
    let Some((table, words)) = payload.split_at_checked(runs.saturating_mul(RUN)) else {
        return Err(Damage::Table);
    };
    let run = |entry: &[u8]| {
        let (first, words) = (le32(entry), le32(&entry[4..]));
        let (offset, len) = (first as usize * WORD, words as usize * WORD);
        if len == 0 || !within(offset, len, segment_bytes) {
            return Err(Damage::Run { first, words, size: segment_bytes });
        }
        Ok((offset, len))
    };
    let mut total = 0_usize;
    for entry in table.chunks_exact(RUN) {
        total = run(entry)?.1.saturating_add(total);
    }
    if total != words.len() {
        return Err(Damage::Table);
    }
    let mut at = 0;
    for entry in table.chunks_exact(RUN) {
        let (offset, len) = run(entry)?;
        each(offset, &words[at..at + len]);
        at += len;
    }
    Ok(())
}

/// Whether `len` bytes at `offset` start on a word, inside a segment of `size` bytes and behind its first page.
pub(super) fn within(offset: usize, len: usize, size: usize) -> bool {
    offset >= FABRIC_PAGE
        && offset.is_multiple_of(WORD)
        && offset.checked_add(len).is_some_and(|end| end <= size)
}

fn le32(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

fn le64(bytes: &[u8]) -> u64 {
    u64::from(le32(bytes)) | u64::from(le32(&bytes[4..])) << 32
}

const _: () =
    assert!(size_of::<usize>() == 8, "offsets of segments are 64 bits wide on the wire and in memory");

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: usize = 1 << 20;
    const DIRECTION: Direction = Direction { salt: 7, segment_bytes: SIZE };

    /// A header with these numbers and right checks, as an attacker who knows the salt would make it.
    fn forged(kind: u8, place: u64, len: u64) -> [u8; HEADER] {
        let mut bytes = Header::Goodbye.encode(7, 0);
        bytes[0] = kind;
        bytes[8..16].copy_from_slice(&place.to_le_bytes());
        bytes[16..24].copy_from_slice(&len.to_le_bytes());
        let sum = crc32c(7, &bytes[..28]);
        bytes[28..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    #[test]
    fn headers_come_back_as_they_were() {
        for header in [
            Header::Ring { offset: FABRIC_PAGE, len: SIZE - FABRIC_PAGE, check: 0xDEAD_BEEF },
            Header::Words { runs: 2, len: 2 * RUN + 24, check: 1 },
            Header::Relay { origin: Origin(u64::MAX - 3), offset: MAX_SEGMENT - 16, len: 16, check: 9 },
            Header::Goodbye,
        ] {
            assert_eq!(Header::decode(&header.encode(7, 9), DIRECTION, 9), Ok(header));
        }
    }

    #[test]
    fn no_flipped_bit_gets_through_a_header() {
        let header = Header::Ring { offset: FABRIC_PAGE, len: 64, check: 5 }.encode(7, 0);
        for bit in 0..HEADER * 8 {
            let mut bytes = header;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Header::decode(&bytes, DIRECTION, 0), Err(Damage::HeaderCheck), "bit {bit}");
        }
    }

    #[test]
    fn another_link_or_place_in_the_stream_does_not_pass() {
        let bytes = Header::Goodbye.encode(7, 3);
        assert_eq!(Header::decode(&bytes, Direction { salt: 8, ..DIRECTION }, 3), Err(Damage::HeaderCheck));
        assert_eq!(Header::decode(&bytes, DIRECTION, 4), Err(Damage::Sequence { due: 4, found: 3 }));
    }

    #[test]
    fn what_lies_outside_is_refused_however_well_it_is_signed() {
        let size = SIZE as u64;
        let page = FABRIC_PAGE as u64;
        for (place, len) in [
            (0, 8),
            (page - 8, 8),
            (page + 4, 8),
            (page, 0),
            (page, 12),
            (page, size - page + 8),
            (size, 8),
            (size - 8, 16),
            (u64::MAX - 7, 8),
            (page, u64::MAX - 7),
        ] {
            let got = Header::decode(&forged(KIND_RING, place, len), DIRECTION, 0);
            assert_eq!(got, Err(Damage::Ring { offset: place, len, size: SIZE }));
        }
        for (runs, len) in [
            (0, 16),
            (1, 8),
            (1, 12),
            (size / 8 + 1, size * 2),
            (1, 8 + size + 8),
            (u64::MAX, u64::MAX - 7),
            (u64::MAX / 8, 64),
        ] {
            let got = Header::decode(&forged(KIND_WORDS, runs, len), DIRECTION, 0);
            assert_eq!(got, Err(Damage::Words { runs, len, size: SIZE }));
        }
        let word = page / 8;
        for (first, words) in [(word - 1, 1), (word, 0), (u64::from(u32::MAX), 2), (0, u64::from(u32::MAX))] {
            let got = Header::decode(&forged(KIND_RELAY, 1, words << 32 | first), DIRECTION, 0);
            assert_eq!(got, Err(Damage::Relay { first: first as u32, words: words as u32 }));
        }
        assert_eq!(Header::decode(&forged(0, 0, 0), DIRECTION, 0), Err(Damage::Kind(0)));
        assert_eq!(Header::decode(&forged(KIND_GOODBYE, 0, 8), DIRECTION, 0), Err(Damage::Reserved));
    }

    #[test]
    fn a_table_is_proven_before_any_of_it_counts() {
        let entry = |first: u32, words: u32| [first.to_le_bytes(), words.to_le_bytes()].concat();
        let page = (FABRIC_PAGE / WORD) as u32;
        let good = [entry(page, 1), entry(page + 4, 2), vec![1; 24]].concat();
        let mut seen = Vec::new();
        runs(&good, 2, SIZE, &mut |offset, words| seen.push((offset, words.len()))).unwrap();
        assert_eq!(seen, [(FABRIC_PAGE, 8), (FABRIC_PAGE + 32, 16)]);

        let mut none = |_: usize, _: &[u8]| panic!("a run of a bad table was used");
        let outside = [entry(page, 1), entry((SIZE / WORD) as u32, 2), vec![1; 24]].concat();
        assert!(matches!(runs(&outside, 2, SIZE, &mut none), Err(Damage::Run { .. })));
        let in_the_page = [entry(page - 1, 1), vec![1; 8]].concat();
        assert!(matches!(runs(&in_the_page, 1, SIZE, &mut none), Err(Damage::Run { .. })));
        let empty = [entry(page, 0), entry(page, 1), vec![1; 8]].concat();
        assert!(matches!(runs(&empty, 2, SIZE, &mut none), Err(Damage::Run { .. })));
        assert_eq!(runs(&good[..good.len() - 8], 2, SIZE, &mut none), Err(Damage::Table));
        assert_eq!(runs(&good, usize::MAX, SIZE, &mut none), Err(Damage::Table));
        let huge = [entry(page, u32::MAX), vec![1; 8]].concat();
        assert!(matches!(runs(&huge, 1, SIZE, &mut none), Err(Damage::Run { .. })));
    }
}
