//! The bytes of a log, and nothing else of it: what a segment and a record begin with, and how the sums are taken. Drawn byte by byte in
//! docs/log-format.md. All numbers are little-endian, everything begins at a multiple of eight.
//!
//! ```text
//! segment   0  magic "CONSLOG1"      record   0  length in bytes (28 bits), kind (4 bits)
//!           8  number                         4  sum: of the content, then of bytes 44 to 56
//!          16  index of its first record      8  index
//!          24  stamp before that             16  view
//!          32  shard                         24  sequence
//!          36  chain before that             32  stamp
//!          40  view before that              40  sender
//!          48  sequence after that
//!          56  zeros
//!          60  sum of bytes 0 to 60          44  chain before it
//!          64  records …                     48  index of the first record of its batch
//!                                            56  payload, padded with zeros to eight
//! ```
//! A record's *content* is its bytes 0 to 4 and 8 to 44 and the padded payload: all that is the same at every member.
//!
//! # Two sums
//! A record's own sum (CRC32C) says that it is as it was written. It doesn't say that it belongs there: a disk that lost a write still has what
//! lay there before, whole and with a right sum. So each record also has the *chain* before it, the sum over the sums of the contents of
//! all records up to there: a record that isn't the one that followed is seen, and so is one that is missing. And members whose
//! chains are the same at an index have the same log up to there.
//!
//! # Batches
//! What is written together is flushed together, and nothing of a batch is written before the batch before it is flushed. So whoever finds a
//! record of batch b knows that everything before b was flushed: if some of that is bad, the disk has damaged it. What is
//! bad and has only records of its own batch behind it may be just not flushed yet (P4, see `scan`).

use crc_fast::{CrcAlgorithm, Digest};

use super::Index;
use crate::names::{NodeId, Seq, ViewId};
use crate::record::MAX_LEN;

/// Bytes with which a segment begins.
pub const SEGMENT_HEADER: usize = 64;

/// Bytes with which a record begins.
pub const RECORD_HEADER: usize = 56;

/// The first bytes of a segment. The last of them is the version of the format.
pub const MAGIC: [u8; 8] = *b"CONSLOG1";

/// Nanoseconds since 1970 that never fall from one record to the next: a hybrid logical clock. The same at all members.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Stamp(pub u64);

impl Stamp {
    /// The stamp of what comes after this one, and was sent when its sender's clock showed `at`.
    #[must_use]
    pub fn after(self, at: u64) -> Self {
        Self(at.max(self.0.saturating_add(1)))
    }
}

/// What a record is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
#[non_exhaustive]
pub enum LogKind {
    /// A message.
    Message = 1,
    /// A view began: the payload is the view, as control writes it.
    View = 2,
}

/// All of a record but its payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecordHeader {
    /// Bytes of payload.
    pub len: usize,
    /// What it is.
    pub kind: LogKind,
    /// Its number in the log, counted through all views.
    pub index: Index,
    /// The view with which its session began.
    pub view: ViewId,
    /// Its place in the session's order.
    pub seq: Seq,
    /// When.
    pub stamp: Stamp,
    /// Who sent it; 0 for a view.
    pub sender: NodeId,
    /// The chain before it.
    pub chain: u32,
    /// The first record of its batch.
    pub batch: Index,
}

/// What a segment begins with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentHeader {
    /// Which of the log's segments it is, from 1.
    pub number: u64,
    /// Its first record.
    pub first: Index,
    /// The stamp of the record before that.
    pub stamp: Stamp,
    /// Whose log it is, for those who find the file somewhere else.
    pub shard: u32,
    /// The chain before the first record.
    pub chain: u32,
    /// The view of the record before that,
    pub view: ViewId,
    /// and what the sequence of a message behind it would be.
    pub next_seq: Seq,
}

/// The CRC32C of bytes whose sum is `seed` and `bytes` behind them.
pub(crate) fn sum(seed: u32, bytes: &[u8]) -> u32 {
    let mut digest = Digest::new_with_init_state(CrcAlgorithm::Crc32Iscsi, u64::from(!seed));
    digest.update(bytes);
    digest.finalize() as u32 // 32 bits of it count
}

/// Bytes that a record with so much payload takes.
pub const fn record_size(len: usize) -> usize {
    RECORD_HEADER + len.next_multiple_of(8)
}

const fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

const fn u64_at(bytes: &[u8], at: usize) -> u64 {
    (u32_at(bytes, at + 4) as u64) << 32 | u32_at(bytes, at) as u64
}

impl RecordHeader {
    /// Its bytes, and the sum of the content. `payload` is not padded.
    pub(crate) fn encode(&self, payload: &[u8]) -> ([u8; RECORD_HEADER], u32) {
        let mut bytes = [0; RECORD_HEADER];
        let word = (self.len as u32) | (self.kind as u32) << 28;
        bytes[0..4].copy_from_slice(&word.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.index.0.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.view.0.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.seq.0.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.stamp.0.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.sender.0.to_le_bytes());
        bytes[44..48].copy_from_slice(&self.chain.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.batch.0.to_le_bytes());
        let content = Self::content(&bytes, payload);
        let all = sum(content, &bytes[44..]);
        bytes[4..8].copy_from_slice(&all.to_le_bytes());
        (bytes, content)
    }

    /// The sum of the content of a record with these bytes; the payload may be padded already or not.
    fn content(header: &[u8; RECORD_HEADER], payload: &[u8]) -> u32 {
        let unpadded = sum(sum(sum(0, &header[0..4]), &header[8..44]), payload);
        let pad = payload.len().next_multiple_of(8) - payload.len();
        sum(unpadded, &[0; 8][..pad])
    }

    /// A header from bytes that may be anything, without a look at the payload; none if nobody writes such a header.
    pub(crate) fn parse(bytes: &[u8; RECORD_HEADER]) -> Option<Self> {
        let word = u32_at(bytes, 0);
        let kind = match word >> 28 {
            1 => LogKind::Message,
            2 => LogKind::View,
            _ => return None,
        };
        let header = Self {
            len: word as usize & MAX_LEN,
            kind,
            index: Index(u64_at(bytes, 8)),
            view: ViewId(u64_at(bytes, 16)),
            seq: Seq(u64_at(bytes, 24)),
            stamp: Stamp(u64_at(bytes, 32)),
            sender: NodeId(u32_at(bytes, 40)),
            chain: u32_at(bytes, 44),
            batch: Index(u64_at(bytes, 48)),
        };
        (header.index.0 != 0 && header.batch.0 != 0 && header.batch <= header.index).then_some(header)
    }

    /// The sum of the content, if header and padded payload have the sum that the header names.
    pub(crate) fn check(bytes: &[u8; RECORD_HEADER], padded: &[u8]) -> Option<u32> {
        let content = Self::content(bytes, padded);
        (sum(content, &bytes[44..]) == u32_at(bytes, 4)).then_some(content)
    }
}

/// The chain behind a record whose content has that sum; `before` is the chain before it.
pub(crate) fn link(before: u32, content: u32) -> u32 {
    sum(before, &content.to_le_bytes())
}

impl SegmentHeader {
    /// Its bytes.
    pub(crate) fn encode(&self) -> [u8; SEGMENT_HEADER] {
        let mut bytes = [0; SEGMENT_HEADER];
        bytes[0..8].copy_from_slice(&MAGIC);
        bytes[8..16].copy_from_slice(&self.number.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.first.0.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.stamp.0.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.shard.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.chain.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.view.0.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.next_seq.0.to_le_bytes());
        let sum = sum(0, &bytes[..60]);
        bytes[60..64].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// A header from bytes that may be anything.
    pub(crate) fn parse(bytes: &[u8; SEGMENT_HEADER]) -> Option<Self> {
        let sound = bytes[0..8] == MAGIC && sum(0, &bytes[..60]) == u32_at(bytes, 60);
        let first = Index(u64_at(bytes, 16));
        (sound && first.0 != 0).then(|| Self {
            number: u64_at(bytes, 8),
            first,
            stamp: Stamp(u64_at(bytes, 24)),
            shard: u32_at(bytes, 32),
            chain: u32_at(bytes, 36),
            view: ViewId(u64_at(bytes, 40)),
            next_seq: Seq(u64_at(bytes, 48)),
        })
    }
}

const _: () = assert!(
    SEGMENT_HEADER.is_multiple_of(8) && RECORD_HEADER.is_multiple_of(8),
    "everything begins at a word"
);
const _: () = assert!(MAX_LEN == 0x0fff_ffff, "a length leaves four bits to the kind");

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_sum_is_castagnoli_s_however_it_is_cut() {
        // The check value of the catalogue of CRCs, and one of RFC 3720, B.4.
        assert_eq!(sum(0, b"123456789"), 0xE306_9283);
        assert_eq!(sum(0, &[0; 32]), 0x8A91_36AA);
        assert_eq!(sum(sum(0, b"1234"), b"56789"), 0xE306_9283);
    }

    #[test]
    fn stamps_never_fall() {
        assert_eq!(Stamp(5).after(9), Stamp(9));
        assert_eq!(Stamp(9).after(9), Stamp(10));
        assert_eq!(Stamp(9).after(0), Stamp(10));
    }

    proptest! {
        #[test]
        fn headers_read_as_written(
            len in 0..=MAX_LEN, kind in 1..3u8, index in 1..u64::MAX, back: u64, view: u64, seq: u64, stamp: u64, sender: u32, chain: u32,
        ) {
            let kind = [LogKind::Message, LogKind::View][usize::from(kind) - 1];
            let header = RecordHeader {
                len, kind, index: Index(index), view: ViewId(view), seq: Seq(seq), stamp: Stamp(stamp), sender: NodeId(sender), chain,
                batch: Index(index - back % index),
            };
            let (bytes, sum) = header.encode(b"hello");
            prop_assert_eq!(RecordHeader::parse(&bytes), Some(header));
            prop_assert_eq!(RecordHeader::check(&bytes, b"hello\0\0\0"), Some(sum));
            prop_assert_eq!(RecordHeader::check(&bytes, b"hello\0\0\x01"), None);
            let segment = SegmentHeader {
                number: view, first: Index(index), stamp: Stamp(stamp), shard: sender, chain,
                view: ViewId(view), next_seq: Seq(seq),
            };
            prop_assert_eq!(SegmentHeader::parse(&segment.encode()), Some(segment));
        }

        #[test]
        fn any_bytes_are_a_header_or_none(bytes: [u8; 56], more: [u8; 8]) {
            if let Some(header) = RecordHeader::parse(&bytes) {
                prop_assert!(header.batch <= header.index && header.len <= MAX_LEN);
            }
            let mut segment = [0; 64];
            segment[..56].copy_from_slice(&bytes);
            segment[56..].copy_from_slice(&more);
            prop_assert_eq!(SegmentHeader::parse(&segment), None);
        }
    }
}
