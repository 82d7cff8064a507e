//! What peers are told: the offers of all kinds, one after the other. Of foreign making until it was read here (S1); each part is checked
//! by its own kind.
//!
//! ```text
//! 0 magic "COFM"   4 version u8, 1   5 parts u8   6 for each: kind u8 (0 shm, 1 verbs, 2 tcp), length u16, bytes
//! at the end: CRC32C of all before, u32
//! ```
//! Integers are little-endian. Kinds come in ascending order; one that is not known is passed over.

use super::{KINDS, Kind};
use crate::tcp::check::crc32c;

const MAGIC: &[u8; 4] = b"COFM";
const VERSION: u8 = 1;

/// What a node offers, by kind.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Offers(pub(super) Vec<(Kind, Vec<u8>)>);

impl Offers {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.push(VERSION);
        bytes.push(u8::try_from(self.0.len()).unwrap_or(0)); // no more than there are kinds
        for (kind, offer) in &self.0 {
            bytes.push(*kind as u8);
            bytes.extend(u16::try_from(offer.len()).unwrap_or(u16::MAX).to_le_bytes());
            bytes.extend(offer);
        }
        bytes.extend(crc32c(0, &bytes).to_le_bytes());
        bytes
    }

    /// Reads an offer that the control plane brought. The text of a refusal goes to the user.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, String> {
        if !bytes.starts_with(MAGIC) {
            return Err("it is none of the auto fabric".to_owned());
        }
        let damaged = || "it is damaged".to_owned();
        let (all, sum) = bytes.split_last_chunk().ok_or_else(damaged)?;
        if crc32c(0, all).to_le_bytes() != *sum {
            return Err(damaged());
        }
        let ([_, _, _, _, version, parts], mut rest) = all.split_first_chunk().ok_or_else(damaged)?;
        if *version != VERSION {
            return Err(format!("it is of version {version}, and this node speaks version {VERSION}"));
        }
        let mut offers = Vec::with_capacity(KINDS);
        let mut last = None;
        for _ in 0..*parts {
            let ([kind, low, high], tail) = rest.split_first_chunk().ok_or_else(damaged)?;
            let length = usize::from(u16::from_le_bytes([*low, *high]));
            let (offer, tail) = tail.split_at_checked(length).ok_or_else(damaged)?;
            if last.is_some_and(|last| last >= *kind) {
                return Err(damaged());
            }
            (last, rest) = (Some(*kind), tail);
            if let Some(kind) = Kind::ALL.into_iter().find(|known| *known as u8 == *kind) {
                offers.push((kind, offer.to_vec()));
            }
        }
        if rest.is_empty() { Ok(Self(offers)) } else { Err(damaged()) }
    }

    /// The kinds, for people.
    pub(super) fn names(&self) -> String {
        let names: Vec<_> = self.0.iter().map(|(kind, _)| kind.name()).collect();
        if names.is_empty() { "none that is known here".to_owned() } else { names.join(", ") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offers() -> Offers {
        Offers(vec![(Kind::Shm, vec![1; 90]), (Kind::Tcp, vec![2; 64])])
    }

    #[test]
    fn offers_come_back_as_they_were() {
        assert_eq!(Offers::decode(&offers().encode()), Ok(offers()));
        assert_eq!(offers().names(), "shm, tcp");
    }

    #[test]
    fn an_offer_that_is_cut_or_too_long_is_refused() {
        let bytes = offers().encode();
        for at in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[at / 8] ^= 1 << (at % 8);
            assert!(Offers::decode(&bad).is_err(), "bit {at}");
        }
        for length in 0..bytes.len() {
            assert!(Offers::decode(&bytes[..length]).is_err(), "{length} bytes");
        }
        assert!(Offers::decode(&[&bytes[..], &[0]].concat()).is_err());
    }

    #[test]
    fn kinds_of_the_future_are_passed_over_and_none_comes_twice() {
        let mut bytes = offers().encode();
        bytes.truncate(bytes.len() - 4);
        bytes[5] = 3;
        bytes.extend([9, 1, 0, 7]);
        let sealed = |bytes: &[u8]| [bytes, &crc32c(0, bytes).to_le_bytes()].concat();
        assert_eq!(Offers::decode(&sealed(&bytes)), Ok(offers()));
        let twice = Offers(vec![(Kind::Tcp, vec![1]), (Kind::Tcp, vec![2])]);
        assert!(Offers::decode(&twice.encode()).is_err());
        bytes[4] = 2;
        assert!(Offers::decode(&sealed(&bytes)).unwrap_err().contains("version 2"));
    }
}
