//! What a message holds while it is measured, the same for the group and for the floor: senders fill every byte,
//! receivers read every byte. The functions are not inlined, so that both sides run the very same instructions.

/// Fills the whole payload with words made of `stamp`, the number of the message.
#[inline(never)]
pub(crate) fn fill(payload: &mut [u8], stamp: u64) {
    let word = stamp.to_ne_bytes();
    let (words, rest) = payload.as_chunks_mut::<8>();
    words.fill(word);
    rest.copy_from_slice(&word[..rest.len()]);
}

/// Reads the whole payload: the wrapping sum of its words, a last part of a word as a word of its own.
#[inline(never)]
pub(crate) fn sum(payload: &[u8]) -> u64 {
    let (words, rest) = payload.as_chunks::<8>();
    let total = words.iter().fold(0_u64, |sum, word| sum.wrapping_add(u64::from_ne_bytes(*word)));
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    total.wrapping_add(u64::from_ne_bytes(last))
}

/// What [`sum`] gives for a payload of `length` bytes that was [filled](fill) with `stamp`.
pub(crate) fn expected(length: usize, stamp: u64) -> u64 {
    let words = u64::try_from(length / 8).unwrap_or(u64::MAX);
    let mut last = [0; 8];
    let rest = length % 8;
    last[..rest].copy_from_slice(&stamp.to_ne_bytes()[..rest]);
    words.wrapping_mul(stamp).wrapping_add(u64::from_ne_bytes(last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_written_and_read() {
        for length in 0..100 {
            let mut payload = vec![0xee; length];
            fill(&mut payload, 0x0123_4567_89ab_cdef);
            assert_eq!(sum(&payload), expected(length, 0x0123_4567_89ab_cdef), "{length}");
            for at in 0..length {
                let mut damaged = payload.clone();
                damaged[at] ^= 0x10;
                assert_ne!(sum(&damaged), sum(&payload), "byte {at} of {length}");
            }
        }
    }
}
