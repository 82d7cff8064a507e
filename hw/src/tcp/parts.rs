//! Parts of segments: summed where they lie, and listed for gathering.
//!
//! One of the modules in which `unsafe` is allowed (S2): for bytes of segments, whose contracts say when they may be read,
//! and for addresses that rest in a list between two calls.
#![allow(unsafe_code)]

use std::ops::Range;

use consort_dataplane::memory::Segment;

use super::check::crc32c;

/// The CRC32C of bytes whose sum is `seed` and the bytes of `range` behind them.
///
/// For the segment of this node: only while `range` is published as ring bytes and not released. For the memory of a
/// mirror: by its fabric, which alone writes it, and by one thread at a time.
pub(super) fn sum(segment: &Segment, range: Range<usize>, seed: u32) -> u32 {
    // SAFETY: nobody writes `range` meanwhile. Of this node's own segment these are ring bytes inside `publish_ring`,
    // whose contract is that they don't change until the peers have released them, and releases are taken in by this
    // same thread, later. A mirror is written by receives of this fabric alone, and this thread is
    // between two of them.
    let bytes = unsafe { segment.bytes(range) };
    crc32c(seed, bytes)
}

/// Addresses to gather from: the memory of a list that is filled, used and emptied within one call.
#[derive(Default)]
pub(super) struct Parts(pub(super) Vec<libc::iovec>);

// SAFETY: what is sent to another thread between calls are addresses that are not looked at again: `Sends::new` clears
// them first.
unsafe impl Send for Parts {}
