//! How two nodes find each other and prove that the control plane brought them together: the [`Offer`], which the
//! control plane carries, and the [`Hello`], the first bytes on a connection in each direction.
//!
//! The node with the lesser [`NodeId`] dials, says hello, and waits for the other's. Each hello names both nodes
//! and carries both *tokens*: 128 random bits that each fabric draws at its start and tells nobody but in its
//! offer. So a stranger who finds the port can't be taken for a peer, nor a node from before a restart for the one
//! after it, nor a peer of another cluster for one of ours. Nothing is allocated before a hello has been proven: the
//! mirror's size comes from the offer, and was bounded when that came (S3).
//!
//! The two hellos, in the order dialler, acceptor, and the sender's name give the *salt* that the frames' checks
//! start from; each carries a nonce, so no two connections have the same.
//!
//! ```text
//! offer, 64 bytes                               hello, 80 bytes
//!   0 u32  "COFR"                                 0 u64  "CONSORTL"
//!   4 u16  version, 1                             8 u16  version, 1
//!   6 u8   byte order: 1 little, 2 big           10 u8   byte order: 1 little, 2 big
//!   7 u8   address family: 4, 6                  11 u8   1 from the dialler, 2 from the acceptor
//!   8 u32  node                                  12 u32  0
//!  12 u16  port                                  16 u32  from: the sender
//!  14 u16  port of its lifelines, or 0            20 u32  to: the receiver
//!  16 16 B token                                 24 u64  bytes of the sender's segment
//!  32 u64  bytes of the segment                  32 16 B the receiver's token
//!  40 16 B address (IPv4: the first four)        48 16 B the sender's token
//!  56 u32  scope of an IPv6 address              64 u64  nonce
//!  60 u32  CRC32C of the bytes before            72 u32  0
//!                                                76 u32  CRC32C of the bytes before
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use consort_dataplane::fabric::FABRIC_PAGE;
use consort_dataplane::names::NodeId;

use super::check::crc32c;
use super::frame::MAX_SEGMENT;
use super::relay::Origin;

pub(super) const OFFER: usize = 64;
pub(crate) const HELLO: usize = 80;

const OFFER_MAGIC: &[u8; 4] = b"COFR";
const HELLO_MAGIC: &[u8; 8] = b"CONSORTL";
const VERSION: u16 = 1;
const BYTE_ORDER: u8 = if cfg!(target_endian = "little") { 1 } else { 2 };

/// 128 random bits that prove to have been told by the node itself.
#[derive(Clone, Copy)]
pub(crate) struct Token(pub(crate) [u8; 16]);

impl Token {
    pub(crate) fn random() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// Looks at all bytes, whichever differ, so that the time taken tells nothing of them.
    pub(crate) fn matches(&self, other: &Self) -> bool {
        self.0.iter().zip(other.0).fold(0, |all, (a, b)| all | (a ^ b)) == 0
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)") // it is a secret of the cluster: not for logs
    }
}

/// What a peer must know to link to a node.
#[derive(Clone, Debug)]
pub(crate) struct Offer {
    pub(crate) node: NodeId,
    pub(crate) address: SocketAddr,
    pub(crate) token: Token,
    pub(crate) segment_bytes: usize,
    /// The port, at the same address, where it has its lifelines dialled; 0 if it has none.
    pub(crate) lifelines: u16,
}

impl Offer {
    /// What frames call this incarnation of the node where others relay its bytes.
    pub(super) fn origin(&self) -> Origin {
        Origin(u64::from(self.node.0) << 32 | u64::from(crc32c(0, &self.token.0)))
    }

    /// Whether a node may take it for a link to that peer, and bears a mirror of that size: what is allocated on a peer's word is bounded
    /// beforehand (S3).
    pub(crate) fn check(&self, (own, peer): (NodeId, NodeId), most: usize) -> Result<(), String> {
        if self.node != peer || peer == own {
            return Err(format!("it was made by node {}, for a link of {own} to {peer}", self.node));
        }
        if self.segment_bytes > most {
            return Err(format!(
                "its segment has {} bytes and max_mirror_bytes is {most}: raise it, or make the peer's segment smaller",
                self.segment_bytes
            ));
        }
        Ok(())
    }

    pub(super) fn encode(&self) -> [u8; OFFER] {
        self.encode_as(OFFER_MAGIC)
    }

    /// For fabrics that set up their links in the same way: with first bytes of their own.
    pub(crate) fn encode_as(&self, magic: &[u8; 4]) -> [u8; OFFER] {
        let mut bytes = [0; OFFER];
        bytes[..4].copy_from_slice(magic);
        bytes[4..6].copy_from_slice(&VERSION.to_le_bytes());
        bytes[6] = BYTE_ORDER;
        bytes[8..12].copy_from_slice(&self.node.0.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.address.port().to_le_bytes());
        bytes[14..16].copy_from_slice(&self.lifelines.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.token.0);
        bytes[32..40].copy_from_slice(&(self.segment_bytes as u64).to_le_bytes());
        match self.address {
            SocketAddr::V4(v4) => {
                bytes[7] = 4;
                bytes[40..44].copy_from_slice(&v4.ip().octets());
            }
            SocketAddr::V6(v6) => {
                bytes[7] = 6;
                bytes[40..56].copy_from_slice(&v6.ip().octets());
                bytes[56..60].copy_from_slice(&v6.scope_id().to_le_bytes());
            }
        }
        seal(&mut bytes);
        bytes
    }

    /// Reads an offer that the control plane brought. The text of a refusal goes to the user.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, String> {
        Self::decode_as(bytes, OFFER_MAGIC, "tcp")
    }

    /// As [`Offer::decode`], of the fabric called `name`.
    pub(crate) fn decode_as(bytes: &[u8], magic: &[u8; 4], name: &str) -> Result<Self, String> {
        if bytes.get(..4) != Some(magic) {
            return Err(format!("it is none of the {name} fabric"));
        }
        let Ok(bytes) = <&[u8; OFFER]>::try_from(bytes) else {
            return Err(format!(
                "it has {} bytes and not {OFFER}: is the peer of another version?",
                bytes.len()
            ));
        };
        if !sealed(bytes) {
            return Err("it is damaged".to_owned());
        }
        let version = u16::from_le_bytes([bytes[4], bytes[5]]);
        if version != VERSION {
            return Err(format!("it is of version {version}, and this node speaks version {VERSION}"));
        }
        if bytes[6] != BYTE_ORDER {
            return Err("the peer's machine has another byte order".to_owned());
        }
        let node = NodeId(le32(bytes, 8));
        let port = u16::from_le_bytes([bytes[12], bytes[13]]);
        let address = match bytes[7] {
            4 => SocketAddr::from((Ipv4Addr::from(array::<4>(bytes, 40)), port)),
            6 => SocketAddrV6::new(Ipv6Addr::from(array::<16>(bytes, 40)), port, 0, le32(bytes, 56)).into(),
            family => return Err(format!("it names an address of unknown family {family}")),
        };
        if node.0 == 0 || port == 0 || is_wildcard(address.ip()) {
            return Err(format!("it names no node that can be reached: {node} at {address}"));
        }
        let segment_bytes = usize::try_from(u64::from_le_bytes(array(bytes, 32))).unwrap_or(usize::MAX);
        if !sound_segment(segment_bytes) {
            return Err(format!("it speaks of a segment of {segment_bytes} bytes"));
        }
        let lifelines = u16::from_le_bytes([bytes[14], bytes[15]]);
        let offer = Self { node, address, token: Token(array(bytes, 16)), segment_bytes, lifelines };
        // What is to be zero is zero.
        if offer.encode_as(magic) == *bytes { Ok(offer) } else { Err("it does not make sense".to_owned()) }
    }
}

/// Who dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Dialler = 1,
    Acceptor = 2,
}

/// The first bytes on a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hello {
    pub(crate) role: Role,
    pub(crate) from: NodeId,
    pub(crate) to: NodeId,
    pub(crate) segment_bytes: usize,
    pub(crate) to_token: Token,
    pub(crate) from_token: Token,
    pub(crate) nonce: u64,
}

/// Why a hello is turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unwelcome {
    #[error("it does not speak this protocol")]
    Magic,
    #[error("its hello is damaged")]
    Damaged,
    #[error(
        "it speaks version {0} and this node version {VERSION}: install the same version of Consort on all nodes"
    )]
    Version(u16),
    #[error("its machine has another byte order")]
    ByteOrder,
    #[error("its hello does not make sense")]
    Senseless,
    #[error("it wants another node than this one")]
    WrongNode,
    #[error("it does not know this node's token")]
    Token,
    #[error("it is not the peer that made the offer")]
    NotThePeer,
}

impl Hello {
    pub(crate) fn encode(&self) -> [u8; HELLO] {
        let mut bytes = [0; HELLO];
        bytes[..8].copy_from_slice(HELLO_MAGIC);
        bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
        bytes[10] = BYTE_ORDER;
        bytes[11] = self.role as u8;
        bytes[16..20].copy_from_slice(&self.from.0.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.to.0.to_le_bytes());
        bytes[24..32].copy_from_slice(&(self.segment_bytes as u64).to_le_bytes());
        bytes[32..48].copy_from_slice(&self.to_token.0);
        bytes[48..64].copy_from_slice(&self.from_token.0);
        bytes[64..72].copy_from_slice(&self.nonce.to_le_bytes());
        seal(&mut bytes);
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; HELLO]) -> Result<Self, Unwelcome> {
        if &bytes[..8] != HELLO_MAGIC {
            return Err(Unwelcome::Magic);
        }
        if !sealed(bytes) {
            return Err(Unwelcome::Damaged);
        }
        let version = u16::from_le_bytes([bytes[8], bytes[9]]);
        if version != VERSION {
            return Err(Unwelcome::Version(version));
        }
        if bytes[10] != BYTE_ORDER {
            return Err(Unwelcome::ByteOrder);
        }
        let role = match bytes[11] {
            1 => Role::Dialler,
            2 => Role::Acceptor,
            _ => return Err(Unwelcome::Senseless),
        };
        let segment_bytes = usize::try_from(u64::from_le_bytes(array(bytes, 24))).unwrap_or(usize::MAX);
        if le32(bytes, 12) != 0 || le32(bytes, 72) != 0 || !sound_segment(segment_bytes) {
            return Err(Unwelcome::Senseless);
        }
        Ok(Self {
            role,
            from: NodeId(le32(bytes, 16)),
            to: NodeId(le32(bytes, 20)),
            segment_bytes,
            to_token: Token(array(bytes, 32)),
            from_token: Token(array(bytes, 48)),
            nonce: u64::from_le_bytes(array(bytes, 64)),
        })
    }

    /// Whether this hello is for `me`, from one who was told so by the control plane. Says nothing about who it is.
    pub(crate) fn check_for(&self, me: NodeId, token: &Token, role: Role) -> Result<(), Unwelcome> {
        if self.role != role {
            return Err(Unwelcome::Senseless);
        }
        if self.to != me {
            return Err(Unwelcome::WrongNode);
        }
        if !token.matches(&self.to_token) {
            return Err(Unwelcome::Token);
        }
        Ok(())
    }

    /// Whether this hello comes from who made `offer`.
    pub(crate) fn check_from(&self, offer: &Offer) -> Result<(), Unwelcome> {
        let same = self.from == offer.node && self.segment_bytes == offer.segment_bytes;
        if same && offer.token.matches(&self.from_token) { Ok(()) } else { Err(Unwelcome::NotThePeer) }
    }
}

/// What the header checks of the frames from `sender` start from. Of the hellos' contents, not their seals: a CRC over
/// bytes and their own CRC is the same whatever the bytes.
pub(super) fn salt(dialler: &[u8; HELLO], acceptor: &[u8; HELLO], sender: NodeId) -> u32 {
    let contents = HELLO - 4;
    let both = crc32c(crc32c(0, &dialler[..contents]), &acceptor[..contents]);
    crc32c(both, &sender.0.to_le_bytes())
}

/// Whether a segment can have this size.
pub(super) fn sound_segment(bytes: usize) -> bool {
    (FABRIC_PAGE..=MAX_SEGMENT).contains(&bytes) && bytes.is_multiple_of(4096)
}

/// Whether nobody can dial `address`.
pub(crate) fn is_wildcard(address: IpAddr) -> bool {
    address.is_unspecified() || address.is_multicast()
}

/// Puts the sum of an offer or hello into its last four bytes.
pub(crate) fn seal(bytes: &mut [u8]) {
    let end = bytes.len() - 4;
    let sum = crc32c(0, &bytes[..end]);
    bytes[end..].copy_from_slice(&sum.to_le_bytes());
}

/// Whether the last four bytes are the sum of those before.
pub(crate) fn sealed(bytes: &[u8]) -> bool {
    let end = bytes.len() - 4;
    crc32c(0, &bytes[..end]) == le32(bytes, end)
}

fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(bytes, at))
}

/// `N` of the bytes, from `at`. The callers' messages have a fixed size and hold them.
fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(address: &str) -> Offer {
        Offer {
            node: NodeId(3),
            address: address.parse().unwrap(),
            token: Token([9; 16]),
            segment_bytes: 1 << 20,
            lifelines: 7001,
        }
    }

    fn hello() -> Hello {
        Hello {
            role: Role::Dialler,
            from: NodeId(3),
            to: NodeId(5),
            segment_bytes: 1 << 20,
            to_token: Token([7; 16]),
            from_token: Token([9; 16]),
            nonce: 11,
        }
    }

    #[test]
    fn offers_come_back_as_they_were() {
        for address in ["127.0.0.1:7000", "[::1]:7000", "[fe80::1%3]:7000"] {
            let made = offer(address);
            let read = Offer::decode(&made.encode()).unwrap();
            assert_eq!(
                (read.node, read.address, read.segment_bytes, read.lifelines),
                (made.node, made.address, made.segment_bytes, made.lifelines)
            );
            assert!(read.token.matches(&Token([9; 16])));
        }
    }

    #[test]
    fn a_damaged_foreign_or_short_offer_is_refused() {
        let bytes = offer("127.0.0.1:7000").encode();
        for bit in 0..OFFER * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Offer::decode(&bad).is_err(), "bit {bit}");
        }
        for len in 0..OFFER {
            assert!(Offer::decode(&bytes[..len]).is_err());
        }
        assert!(Offer::decode(&offer("0.0.0.0:7000").encode()).is_err());
        assert!(Offer::decode(&offer("127.0.0.1:0").encode()).is_err());
        let huge = Offer { segment_bytes: usize::MAX & !4095, ..offer("127.0.0.1:1") };
        assert!(Offer::decode(&huge.encode()).is_err());
    }

    #[test]
    fn a_hello_convinces_only_whom_it_should() {
        let bytes = hello().encode();
        let read = Hello::decode(&bytes).unwrap();
        assert_eq!(read.check_for(NodeId(5), &Token([7; 16]), Role::Dialler), Ok(()));
        assert_eq!(read.check_from(&offer("127.0.0.1:1")), Ok(()));
        assert_eq!(read.check_for(NodeId(6), &Token([7; 16]), Role::Dialler), Err(Unwelcome::WrongNode));
        assert_eq!(read.check_for(NodeId(5), &Token([6; 16]), Role::Dialler), Err(Unwelcome::Token));
        assert_eq!(read.check_for(NodeId(5), &Token([7; 16]), Role::Acceptor), Err(Unwelcome::Senseless));
        let larger = Offer { segment_bytes: 2 << 20, ..offer("127.0.0.1:1") };
        assert_eq!(read.check_from(&larger), Err(Unwelcome::NotThePeer));
        let restarted = Offer { token: Token([8; 16]), ..offer("127.0.0.1:1") };
        assert_eq!(read.check_from(&restarted), Err(Unwelcome::NotThePeer));
    }

    #[test]
    fn no_flipped_bit_gets_through_a_hello() {
        let bytes = hello().encode();
        for bit in 0..HELLO * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Hello::decode(&bad).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn the_salt_tells_links_and_directions_apart() {
        let (dialler, other) = (hello().encode(), Hello { nonce: 12, ..hello() }.encode());
        let acceptor = Hello { role: Role::Acceptor, ..hello() }.encode();
        let ours = salt(&dialler, &acceptor, NodeId(3));
        assert_ne!(ours, salt(&dialler, &acceptor, NodeId(5)));
        assert_ne!(ours, salt(&other, &acceptor, NodeId(3)));
    }

    #[test]
    fn a_token_is_not_printed() {
        assert_eq!(format!("{:?}", Token([9; 16])), "Token(…)");
    }
}
