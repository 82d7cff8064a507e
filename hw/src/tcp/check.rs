//! The sum that guards frames and hellos: CRC32C (Castagnoli), as iSCSI and most storage have it.

use crc_fast::{CrcAlgorithm, Digest};

/// The CRC32C of bytes whose sum is `seed` (0: of none) and `bytes` behind them.
pub(crate) fn crc32c(seed: u32, bytes: &[u8]) -> u32 {
    // A sum is the register's complement, and so is what the register starts from.
    let mut digest = Digest::new_with_init_state(CrcAlgorithm::Crc32Iscsi, u64::from(!seed));
    digest.update(bytes);
    digest.finalize() as u32 // 32 bits of it count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_castagnoli_sum_however_it_is_cut() {
        // The check value of the catalogue of CRCs, and those of RFC 3720, B.4.
        assert_eq!(crc32c(0, b"123456789"), 0xE306_9283);
        assert_eq!(crc32c(0, &[0; 32]), 0x8A91_36AA);
        assert_eq!(crc32c(0, &[0xFF; 32]), 0x62A8_AB43);
        assert_eq!(crc32c(7, &[]), 7);
        let bytes: Vec<u8> = (0..100_000_u32).map(|n| (n.wrapping_mul(n) >> 3) as u8).collect();
        let whole = crc32c(0, &bytes);
        for cut in [0, 1, 7, 8, 63, 64, 255, 256, 4096, 65_537, 99_999] {
            assert_eq!(crc32c(crc32c(0, &bytes[..cut]), &bytes[cut..]), whole, "cut at {cut}");
        }
    }
}
