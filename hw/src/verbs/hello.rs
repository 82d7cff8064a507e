//! What two nodes tell each other to connect their queue pairs, over a TCP connection of their own.
//!
//! The control plane carries the *offer* (as the `tcp` fabric's, with another first word), and by it the token that proves
//! who dials. On the connection each then says hello, as there, and where its end is:
//!
//! ```text
//! dialler                                acceptor
//!   hello, ends            ────────▶
//!                          ◀────────     hello, ends       its queue pair is connected: it takes and may send
//!   ready, 1               ────────▶     both are
//!        …  the connection stays: its end is the end of the peer's process (F5)  …
//!   goodbye, 2             ────────▶     the peer left in order
//!
//! ends, 64 bytes
//!   0 u32  number of the queue pair          16 u64  where the mirror of the other begins
//!   4 u32  its first packet sequence number  24 u32  the key to it
//!   8 u16  LID                               28 u32  0
//!  10 u8   MTU, as the verbs number it        32 16 B GID
//!  11 u8   1 Ethernet, 2 InfiniBand          48 12 B 0
//!  12 u32  0                                 60 u32  CRC32C of the bytes before
//! ```

use crate::tcp::hello::{HELLO, seal, sealed};

use super::choose::Outlet;
use super::options::VerbsOptions;
use super::queue::{Pair, Path, Peer};

/// First bytes of an offer of this fabric.
pub(super) const OFFER_MAGIC: &[u8; 4] = b"COFV";

pub(super) const ENDS: usize = 64;

/// A hello and the ends behind it.
pub(super) const GREETING: usize = HELLO + ENDS;

/// What the dialler says when its queue pair is connected.
pub(super) const READY: u8 = 1;

/// What one says who leaves in order.
pub(super) const GOODBYE: u8 = 2;

/// Where one end is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ends {
    pub(super) peer: Peer,
    pub(super) mtu: u8,
    pub(super) ethernet: bool,
}

/// The number of an end's first packet (S3: nobody can guess it).
pub(super) fn first_sequence() -> Result<u32, getrandom::Error> {
    let mut sequence = [0; 4];
    getrandom::fill(&mut sequence)?;
    Ok(u32::from_le_bytes(sequence) & 0xff_ffff)
}

impl Ends {
    /// This node's end: a queue pair of `outlet`, and the number of its first packet.
    pub(super) fn of(outlet: &Outlet, pair: &Pair, sequence: u32) -> Self {
        let (address, key) = pair.target();
        let peer =
            Peer { pair: pair.number(), sequence, gid: outlet.gid, lid: outlet.port.lid, address, key };
        Self { peer, mtu: outlet.port.mtu, ethernet: outlet.port.ethernet }
    }

    /// The way to this end from `outlet`, whose first packet has the number `sequence`.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn path(
        &self,
        outlet: &Outlet,
        options: &VerbsOptions,
        sequence: u32,
    ) -> Result<Path, String> {
        if self.ethernet != outlet.port.ethernet {
            return Err("one end of the link is on Ethernet and the other on InfiniBand".to_owned());
        }
        Ok(Path {
            port: outlet.number,
            ethernet: outlet.port.ethernet,
            gid_index: outlet.gid_index,
            mtu: outlet.port.mtu.min(self.mtu),
            traffic_class: options.traffic_class,
            sequence,
            timeout: options.timeout,
            retries: options.retries,
        })
    }

    pub(super) fn encode(&self) -> [u8; ENDS] {
        let mut bytes = [0; ENDS];
        bytes[..4].copy_from_slice(&self.peer.pair.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.peer.sequence.to_le_bytes());
        bytes[8..10].copy_from_slice(&self.peer.lid.to_le_bytes());
        bytes[10] = self.mtu;
        bytes[11] = if self.ethernet { 1 } else { 2 };
        bytes[16..24].copy_from_slice(&self.peer.address.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.peer.key.to_le_bytes());
        bytes[32..48].copy_from_slice(&self.peer.gid);
        seal(&mut bytes);
        bytes
    }

    /// Reads what a peer said (S1). The text of a refusal goes to the user.
    pub(super) fn decode(bytes: &[u8; ENDS]) -> Result<Self, String> {
        if !sealed(bytes) {
            return Err("what it says of its queue pair is damaged".to_owned());
        }
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let mut gid = [0; 16];
        gid.copy_from_slice(&bytes[32..48]);
        let address = u64::from(word(16)) | u64::from(word(20)) << 32;
        let lid = u16::from_le_bytes([bytes[8], bytes[9]]);
        let peer = Peer { pair: word(0), sequence: word(4), gid, lid, address, key: word(24) };
        let ends = Self { peer, mtu: bytes[10], ethernet: bytes[11] == 1 };
        let sound = (1..=5).contains(&ends.mtu) && peer.pair >> 24 == 0 && peer.sequence >> 24 == 0;
        if !sound || ends.encode() != *bytes {
            return Err("what it says of its queue pair does not make sense".to_owned());
        }
        Ok(ends)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends() -> Ends {
        let peer =
            Peer { pair: 17, sequence: 0xab_cdef, gid: [7; 16], lid: 3, address: 1 << 40 | 4096, key: 99 };
        Ends { peer, mtu: 3, ethernet: true }
    }

    #[test]
    fn ends_come_back_as_they_were() {
        assert_eq!(Ends::decode(&ends().encode()), Ok(ends()));
        let other = Ends { ethernet: false, ..ends() };
        assert_eq!(Ends::decode(&other.encode()), Ok(other));
    }

    #[test]
    fn damaged_or_senseless_ends_are_refused() {
        let bytes = ends().encode();
        for bit in 0..ENDS * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Ends::decode(&bad).is_err(), "bit {bit}");
        }
        for bad in [Ends { mtu: 0, ..ends() }, Ends { mtu: 6, ..ends() }] {
            assert!(Ends::decode(&bad.encode()).is_err());
        }
        let bad = Ends { peer: Peer { pair: 1 << 24, ..ends().peer }, ..ends() };
        assert!(Ends::decode(&bad.encode()).is_err());
    }
}
