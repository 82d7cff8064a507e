//! Which files lie where in a segment whose parts were renewed.
//!
//! A segment begins as one file. A renewal lays another file over a range of it; what lies beneath is mapped no more. Those
//! who map the segment keep the list of what was laid, in order, and drop from it what another layer covers wholly: the owner to
//! hand it to peers that link later, a peer to know what it maps. Both come to the same list, so both can bound it (S3): a peer
//! makes us hold no more than [`RENEWALS_MAX`] descriptors and twice as many mappings, over no more bytes than its
//! segment has.

use std::ops::Range;
use std::os::fd::OwnedFd;

use consort_dataplane::fabric::FABRIC_PAGE;

use super::hello::{RENEWALS_MAX, Renewal};

/// What the kernel maps.
pub(super) const PAGE: usize = 4096;

const _: () = assert!(FABRIC_PAGE == PAGE, "the first page is the fabric's, and never renewed");

/// What was laid over a segment, oldest first.
#[derive(Debug, Default)]
pub(super) struct Layers {
    list: Vec<Layer>,
    /// How often something was laid.
    count: u64,
}

/// A file over a range of a segment.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) range: Range<usize>,
    pub(super) file: OwnedFd,
    /// The how manieth it was, from 1. The segment's first file counts as number 0.
    pub(super) number: u64,
}

/// Why nothing can be laid there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum LayerError {
    #[error("bytes {range:?} are no whole pages behind the first of a segment of {segment} bytes")]
    Range { range: Range<u64>, segment: usize },
    #[error("a segment in more than {RENEWALS_MAX} pieces")]
    Pieces,
}

impl Layers {
    /// How often something was laid.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// What no other layer covers wholly, oldest first.
    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = &Layer> {
        self.list.iter()
    }

    /// Whether `renewal` may be laid over a segment of `segment` bytes.
    pub(super) fn check(&self, renewal: Renewal, segment: usize) -> Result<Range<usize>, LayerError> {
        let end = renewal.start.checked_add(renewal.bytes).and_then(|end| usize::try_from(end).ok());
        let range = match (usize::try_from(renewal.start), end) {
            (Ok(start), Some(end))
                if start >= PAGE
                    && start < end
                    && end <= segment
                    && start.is_multiple_of(PAGE)
                    && end.is_multiple_of(PAGE) =>
            {
                start..end
            }
            _ => {
                let range = renewal.start..renewal.start.saturating_add(renewal.bytes);
                return Err(LayerError::Range { range, segment });
            }
        };
        let left = self.list.iter().filter(|layer| !covers(&range, &layer.range)).count();
        if left < RENEWALS_MAX { Ok(range) } else { Err(LayerError::Pieces) }
    }

    /// Lays `file` over `range`, which was [checked](Self::check).
    pub(super) fn lay(&mut self, range: Range<usize>, file: OwnedFd) {
        self.list.retain(|layer| !covers(&range, &layer.range));
        self.count += 1;
        self.list.push(Layer { range, file, number: self.count });
    }

    /// The top layers of `range` from its start to its end; `None` is the segment's first file.
    pub(super) fn tops(&self, range: Range<usize>) -> impl Iterator<Item = (Range<usize>, Option<&Layer>)> {
        let mut start = range.start;
        std::iter::from_fn(move || {
            if start >= range.end {
                return None;
            }
            let top = self.list.iter().rposition(|layer| layer.range.contains(&start));
            let above = &self.list[top.map_or(0, |top| top + 1)..];
            let ends = above.iter().map(|layer| layer.range.start).filter(|&other| other > start);
            let own = top.map(|top| self.list[top].range.end);
            let end = ends.chain(own).fold(range.end, usize::min);
            let part = start..end;
            start = end;
            Some((part, top.map(|top| &self.list[top])))
        })
    }

    /// The least number of the files that lie open in `range`: whoever was handed only older ones sees nothing there.
    pub(super) fn oldest(&self, range: Range<usize>) -> u64 {
        self.tops(range).map(|(_, top)| top.map_or(0, |layer| layer.number)).min().unwrap_or(0)
    }
}

impl Layer {
    /// As peers are told.
    pub(super) fn renewal(&self) -> Renewal {
        Renewal { start: self.range.start as u64, bytes: self.range.len() as u64 }
    }
}

fn covers(outer: &Range<usize>, inner: &Range<usize>) -> bool {
    outer.start <= inner.start && inner.end <= outer.end
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGES: usize = 2 * (RENEWALS_MAX + 2);
    const SEGMENT: usize = PAGES * PAGE;

    fn pages(range: Range<usize>) -> Range<usize> {
        range.start * PAGE..range.end * PAGE
    }

    fn renewal(range: &Range<usize>) -> Renewal {
        Renewal { start: range.start as u64, bytes: range.len() as u64 }
    }

    fn lay(layers: &mut Layers, range: Range<usize>) -> Result<(), LayerError> {
        let range = layers.check(renewal(&pages(range)), SEGMENT)?;
        layers.lay(range, std::fs::File::open("/dev/null").unwrap().into());
        Ok(())
    }

    /// Each page's file, as if it had been looked up one by one.
    #[test]
    fn tops_are_what_was_laid_last() {
        let mut layers = Layers::default();
        let mut expected = [0u64; PAGES];
        let laid = [1..32, 32..64, 4..8, 30..34, 1..32, 10..11, 32..64, 9..12, 20..21];
        for (number, range) in (1..).zip(laid) {
            expected[range.clone()].fill(number);
            lay(&mut layers, range).unwrap();
            let mut found = [u64::MAX; PAGES];
            for (part, top) in layers.tops(0..SEGMENT) {
                assert!(!part.is_empty() && part.start.is_multiple_of(PAGE));
                found[part.start / PAGE..part.end / PAGE].fill(top.map_or(0, |layer| layer.number));
            }
            assert_eq!(found, expected, "after {number}");
            for (start, end) in [(0, PAGES), (1, 32), (5, 6), (32, 64), (9, 12), (63, 64)] {
                let least = expected[start..end].iter().min().copied().unwrap();
                assert_eq!(layers.oldest(pages(start..end)), least, "{start}..{end} after {number}");
            }
        }
        let left: Vec<_> = layers.iter().map(|layer| layer.number).collect();
        assert_eq!(left, [4, 5, 7, 8, 9], "what another covers wholly is gone");
    }

    /// S3: whatever is asked for, few things are held and none lies outside.
    #[test]
    fn layers_are_bounded() {
        let mut layers = Layers::default();
        for at in 1..=RENEWALS_MAX {
            lay(&mut layers, 2 * at..2 * at + 1).unwrap();
        }
        assert_eq!(lay(&mut layers, 1..2), Err(LayerError::Pieces));
        lay(&mut layers, 2..3).unwrap(); // in the place of one
        lay(&mut layers, 1..PAGES).unwrap(); // of all
        assert_eq!((layers.iter().count(), layers.count()), (1, RENEWALS_MAX as u64 + 2));
        for (start, bytes) in [
            (0, PAGE as u64),
            (PAGE as u64, 0),
            (PAGE as u64, 100),
            (PAGE as u64 + 8, PAGE as u64),
            (PAGE as u64, SEGMENT as u64),
            (SEGMENT as u64, PAGE as u64),
            (u64::MAX - 4095, 4096),
            (PAGE as u64, u64::MAX),
        ] {
            let refused = layers.check(Renewal { start, bytes }, SEGMENT);
            assert!(matches!(refused, Err(LayerError::Range { .. })), "{start} + {bytes}: {refused:?}");
        }
    }
}
