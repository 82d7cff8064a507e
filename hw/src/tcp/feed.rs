//! Streams without sockets: bytes handed to [`Incoming`] as a socket would, cut anywhere. For tests and fuzzing.

use consort_dataplane::fabric::FABRIC_PAGE;
use consort_dataplane::memory::{Segment, WORD};
use consort_dataplane::names::Slot;

use super::check::crc32c;
use super::frame::{Damage, HEADER};
use super::incoming::{Incoming, Progress, Room};
use super::relay::{Expected, Origin, Relays};

/// Hands over `bytes`, in one piece as far as there is room for.
pub(super) fn feed(incoming: &mut Incoming, bytes: &[u8]) -> Result<Progress, Damage> {
    feed_expecting(incoming, bytes, Relays::new().over(Slot(0)))
}

/// The same, over a link from which relayed bytes are expected.
pub(super) fn feed_expecting(
    incoming: &mut Incoming,
    mut bytes: &[u8],
    expected: Expected<'_>,
) -> Result<Progress, Damage> {
    let mut all = Progress::default();
    while !bytes.is_empty() {
        let mut room = incoming.room(expected);
        let n = room.len().min(bytes.len());
        assert!(n > 0, "there is always room");
        fill(&mut room, &bytes[..n]);
        let progress = incoming.on_received(n, expected)?;
        all.changed |= progress.changed;
        all.ended |= progress.ended;
        bytes = &bytes[n..];
    }
    Ok(all)
}

/// Puts bytes where a receive would.
fn fill(room: &mut Room<'_>, bytes: &[u8]) {
    let direct = room.direct.clone();
    assert!(direct.is_empty() || direct.start >= FABRIC_PAGE && direct.end <= room.mirror.size());
    let (first, second) = bytes.split_at(direct.len().min(bytes.len()));
    for (offset, byte) in direct.zip(first) {
        let at = offset / WORD * WORD;
        let mut word = room.mirror.load(at).to_ne_bytes();
        word[offset - at] = *byte;
        room.mirror.store(at, u64::from_ne_bytes(word));
    }
    room.stage[..second.len()].copy_from_slice(second);
}

/// A frame with right checks and any numbers, as a peer that knows the link's secrets but is not sound could send it.
pub(super) fn forge(salt: u32, sequence: u32, kind: u8, place: u64, length: u64, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; HEADER];
    frame[0] = kind;
    frame[4..8].copy_from_slice(&sequence.to_le_bytes());
    frame[8..16].copy_from_slice(&place.to_le_bytes());
    frame[16..24].copy_from_slice(&length.to_le_bytes());
    frame[24..28].copy_from_slice(&crc32c(0, payload).to_le_bytes());
    let sum = crc32c(salt, &frame[..28]);
    frame[28..].copy_from_slice(&sum.to_le_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// A stream of frames out of a fuzzer's bytes, most of them with right checks, and how it is to be cut; fed to a mirror.
/// Panics if anything happens that must not.
#[cfg_attr(not(fuzzing), allow(dead_code, reason = "the fuzz targets call it"))]
pub(super) fn fuzz_frames(data: &[u8]) {
    const SIZE: usize = 64 << 10;
    const SALT: u32 = 7;
    let mut data = data.iter().copied();
    let mut byte = || data.next();
    let mut stream = Vec::new();
    let cut = usize::from(byte().unwrap_or(0)) * 37 + 1;
    let mut sequence = 0_u32;
    while let Some(what) = byte() {
        let mut number = || {
            let low = u64::from(byte().unwrap_or(0)) | u64::from(byte().unwrap_or(0)) << 8;
            match low >> 14 {
                0 => low & 0x3FFF,                              // anything small
                1 => (FABRIC_PAGE as u64) + (low & 0x3FFF) * 8, // most of them inside
                2 => (SIZE as u64).wrapping_sub(low & 0x3F),    // about the end
                _ => u64::MAX.wrapping_sub(low & 0x3FFF),       // about where sums overflow
            }
        };
        match what % 8 {
            0 => stream.extend([what; 40]), // no frame at all
            1..=3 => {
                let (place, len) = (number(), number());
                let payload: Vec<u8> = (0..len.min(40_000)).map(|at| at as u8 ^ what).collect();
                stream.extend(forge(SALT, sequence, 1, place, len, &payload));
            }
            4..=6 => {
                let count = u64::from(what >> 3);
                let mut payload = Vec::new();
                let mut words = 0;
                for _ in 0..count {
                    let (first, run) = (number() / 8, number() % 64);
                    payload.extend_from_slice(&(first as u32).to_le_bytes());
                    payload.extend_from_slice(&(run as u32).to_le_bytes());
                    words += run as usize;
                }
                let more = if what & 1 == 0 { 0 } else { number() as usize % 64 };
                payload.resize(payload.len() + words * WORD + more, what);
                let runs = if what & 2 == 0 { count } else { number() };
                stream.extend(forge(SALT, sequence, 2, runs, payload.len() as u64, &payload));
            }
            _ if what & 8 == 0 => stream.extend(forge(SALT, sequence, what >> 3, number(), number(), &[])),
            _ => {
                let (first, len) = (number() / 8, number() / 8);
                let payload: Vec<u8> = (0..len.min(5_000) * 8).map(|at| at as u8 ^ what).collect();
                let origin = u64::from(what >> 4 & 1);
                stream.extend(forge(SALT, sequence, 4, origin, len << 32 | first & 0xFFFF_FFFF, &payload));
            }
        }
        sequence = sequence.wrapping_add(1);
        if stream.len() > 1 << 20 {
            break;
        }
    }
    let (mirror, other) = (Segment::private(SIZE), Segment::private(SIZE));
    let mut relays = Relays::new();
    relays.on_link(Slot(1), Origin(1), other.clone());
    let expected = FABRIC_PAGE..3 * FABRIC_PAGE;
    relays.allow(Slot(1), expected.clone(), Some(Slot(0)));
    let mut incoming = Incoming::new(mirror.clone(), SALT);
    for (at, piece) in stream.chunks(cut).enumerate() {
        if at == 40 || at == 50 {
            relays.allow(Slot(1), expected.clone(), (at == 50).then_some(Slot(0)));
        }
        if feed_expecting(&mut incoming, piece, relays.over(Slot(0))).is_err() {
            break;
        }
    }
    assert!(
        (0..FABRIC_PAGE).step_by(WORD).all(|at| mirror.load(at) == 0),
        "the first page is not the peer's"
    );
    assert!(
        (0..SIZE).step_by(WORD).all(|at| expected.contains(&at) || other.load(at) == 0),
        "another's mirror is written only where that is expected"
    );
}
