//! The bytes that two nodes tell each other to share memory: the [`Offer`], carried by the control plane; the
//! [`Hello`], said over the Unix socket; and later, when a part of a segment is made anew, the [`Renewal`]. All are of
//! foreign making until they have been read here (S1): fixed layouts, little-endian, every field checked, nothing
//! allocated on their word.
//!
//! ```text
//! offer   0 magic "cnsrtshm"   8 version u32      12 node u32        16 process u32    20 length of the name u32
//!        24 segment bytes u64  32 token [16]      48 machine [16]    64 network u64    72 name (1 to 100 bytes)
//! hello   0 magic "cnsrtshm"   8 version u32      12 from u32        16 to u32         20 renewals u32, up to 128
//!        24 segment bytes u64  32 token of the one spoken to [16]    48 token of the speaker [16]
//!        64 for each renewal: start u64, bytes u64
//! renewal 0 magic "renewal."   8 start u64        16 bytes u64       24 (end)
//! ```
//!
//! With a hello come the file of the segment and those of the renewals, with a renewal comes its file.

use std::fmt;

use consort_dataplane::names::NodeId;

const MAGIC: [u8; 8] = *b"cnsrtshm";

/// Counts up with every change of the offer, the hello, or the fabric's page.
const VERSION: u32 = 3;

const OFFER_HEADER: usize = 72;
const NAME_MAX: usize = 100; // 107 fit into an abstract Unix address

/// Renewed pieces that a segment may have, at any time. A node has up to 64 shards, with memory for two sessions each, and every one of these
/// can be a piece of its own. Each is a descriptor at both ends.
pub(super) const RENEWALS_MAX: usize = 128;

/// Bytes in a [`Hello`] of a segment of which nothing was renewed.
const HELLO_BYTES: usize = 64;

/// Bytes in the longest packet, which is a [`Hello`].
pub(super) const PACKET_MAX: usize = HELLO_BYTES + RENEWALS_MAX * 16;

const RENEWAL_MAGIC: [u8; 8] = *b"renewal.";

/// The last packet over a link: its sender leaves in order.
pub(super) const GOODBYE: [u8; 8] = *b"goodbye.";

/// 128 random bits by which a node knows who was given its offer. They are as secret as the control links make them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Token(pub(super) [u8; 16]);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(secret)")
    }
}

/// Which kernel, and which network namespace in it: abstract sockets reach no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) struct Place {
    /// The kernel's boot id; zero if unknown.
    pub(super) machine: [u8; 16],
    /// The inode of the network namespace; zero if unknown.
    pub(super) network: u64,
}

/// What a node tells the others of itself, through the control plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Offer {
    pub(super) node: NodeId,
    pub(super) process: u32,
    pub(super) segment: u64,
    pub(super) token: Token,
    pub(super) place: Place,
    pub(super) name: Vec<u8>,
}

/// What both ends of a new connection say first, with the segment's file descriptors attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hello {
    pub(super) from: NodeId,
    pub(super) to: NodeId,
    pub(super) segment: u64,
    /// The token out of the offer of the one spoken to: the speaker was given it.
    pub(super) given: Token,
    /// The token out of the speaker's own offer: it is the one who made it.
    pub(super) own: Token,
    pub(super) renewals: Renewals,
}

/// Other memory in the place of a part of a segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Renewal {
    pub(super) start: u64,
    pub(super) bytes: u64,
}

/// All renewals of a segment, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Renewals(Vec<Renewal>);

/// Why bytes are no offer or no hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Garbage {
    #[error("it is not one of an shm fabric")]
    Kind,
    #[error("it has version {0}, this node speaks version {VERSION}")]
    Version(u32),
    #[error("it is damaged")]
    Damaged,
}

impl Offer {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(OFFER_HEADER + self.name.len());
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(self.node.0.to_le_bytes());
        bytes.extend(self.process.to_le_bytes());
        bytes.extend(u32::try_from(self.name.len()).unwrap_or(u32::MAX).to_le_bytes());
        bytes.extend(self.segment.to_le_bytes());
        bytes.extend(self.token.0);
        bytes.extend(self.place.machine);
        bytes.extend(self.place.network.to_le_bytes());
        bytes.extend(&self.name);
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Garbage> {
        let mut fields = Fields::open(bytes)?;
        let offer = Self {
            node: NodeId(fields.u32()?),
            process: fields.u32()?,
            name: Vec::new(),
            segment: {
                let length = fields.u32()? as usize;
                if !(1..=NAME_MAX).contains(&length) || bytes.len() != OFFER_HEADER + length {
                    return Err(Garbage::Damaged);
                }
                fields.u64()?
            },
            token: Token(fields.take()?),
            place: Place { machine: fields.take()?, network: fields.u64()? },
        };
        if offer.node.0 == 0 {
            return Err(Garbage::Damaged);
        }
        Ok(Self { name: fields.0.to_vec(), ..offer })
    }
}

impl Hello {
    pub(super) fn encode(&self) -> Vec<u8> {
        let renewals = self.renewals.as_slice();
        let mut bytes = Vec::with_capacity(PACKET_MAX);
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(self.from.0.to_le_bytes());
        bytes.extend(self.to.0.to_le_bytes());
        bytes.extend(u32::try_from(renewals.len()).unwrap_or(u32::MAX).to_le_bytes());
        bytes.extend(self.segment.to_le_bytes());
        bytes.extend(self.given.0);
        bytes.extend(self.own.0);
        for renewal in renewals {
            bytes.extend(renewal.start.to_le_bytes());
            bytes.extend(renewal.bytes.to_le_bytes());
        }
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Garbage> {
        let mut fields = Fields::open(bytes)?;
        let (from, to, count) = (fields.u32()?, fields.u32()?, fields.u32()?);
        let mut hello = Self {
            from: NodeId(from),
            to: NodeId(to),
            segment: fields.u64()?,
            given: Token(fields.take()?),
            own: Token(fields.take()?),
            renewals: Renewals::default(),
        };
        for _ in 0..count {
            let renewal = Renewal { start: fields.u64()?, bytes: fields.u64()? };
            hello.renewals.push(renewal).ok_or(Garbage::Damaged)?;
        }
        if from == 0 || !fields.0.is_empty() { Err(Garbage::Damaged) } else { Ok(hello) }
    }
}

impl Renewal {
    pub(super) fn encode(self) -> [u8; 24] {
        let mut bytes = [0; 24];
        bytes[0..8].copy_from_slice(&RENEWAL_MAGIC);
        bytes[8..16].copy_from_slice(&self.start.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.bytes.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Garbage> {
        let mut fields = Fields(bytes);
        if fields.take().map_err(|_| Garbage::Kind)? != RENEWAL_MAGIC {
            return Err(Garbage::Kind);
        }
        let renewal = Self { start: fields.u64()?, bytes: fields.u64()? };
        if fields.0.is_empty() { Ok(renewal) } else { Err(Garbage::Damaged) }
    }
}

impl Renewals {
    /// One more; `None` if there are too many.
    pub(super) fn push(&mut self, renewal: Renewal) -> Option<()> {
        (self.0.len() < RENEWALS_MAX).then(|| self.0.push(renewal))
    }

    pub(super) fn as_slice(&self) -> &[Renewal] {
        &self.0
    }
}

/// What is left to read.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// Reads magic and version.
    fn open(bytes: &'a [u8]) -> Result<Self, Garbage> {
        let mut fields = Self(bytes);
        if fields.take().map_err(|_| Garbage::Kind)? != MAGIC {
            return Err(Garbage::Kind);
        }
        match fields.u32()? {
            VERSION => Ok(fields),
            other => Err(Garbage::Version(other)),
        }
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], Garbage> {
        let (field, rest) = self.0.split_first_chunk::<N>().ok_or(Garbage::Damaged)?;
        self.0 = rest;
        Ok(*field)
    }

    fn u32(&mut self) -> Result<u32, Garbage> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Garbage> {
        self.take().map(u64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer() -> Offer {
        Offer {
            node: NodeId(7),
            process: 4711,
            segment: 1 << 20,
            token: Token([171; 16]),
            place: Place { machine: [3; 16], network: 42 },
            name: b"a-name".to_vec(),
        }
    }

    fn hello() -> Hello {
        let mut renewals = Renewals::default();
        renewals.push(Renewal { start: 4096, bytes: 8192 }).unwrap();
        renewals.push(Renewal { start: 12288, bytes: 4096 }).unwrap();
        Hello {
            from: NodeId(1),
            to: NodeId(2),
            segment: 16384,
            given: Token([4; 16]),
            own: Token([5; 16]),
            renewals,
        }
    }

    #[test]
    fn what_was_said_is_understood() {
        assert_eq!(Offer::decode(&offer().encode()), Ok(offer()));
        assert_eq!(Hello::decode(&hello().encode()), Ok(hello()));
        let renewal = Renewal { start: 4096, bytes: 1 << 40 };
        assert_eq!(Renewal::decode(&renewal.encode()), Ok(renewal));
    }

    #[test]
    fn a_hello_has_no_more_renewals_than_it_may() {
        let mut renewals = Renewals::default();
        for _ in 0..RENEWALS_MAX {
            renewals.push(Renewal { start: 4096, bytes: 4096 }).unwrap();
        }
        assert_eq!(renewals.push(Renewal::default()), None);
        let full = Hello { renewals, ..hello() };
        let mut bytes = full.encode();
        assert_eq!((bytes.len(), Hello::decode(&bytes)), (PACKET_MAX, Ok(full)));
        bytes[20] += 1;
        bytes.extend([0; 16]);
        assert_eq!(Hello::decode(&bytes), Err(Garbage::Damaged));
        bytes[20..24].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(Hello::decode(&bytes), Err(Garbage::Damaged));
    }

    #[test]
    fn no_piece_of_an_offer_hello_or_renewal_is_one() {
        let (offer, hello) = (offer().encode(), hello().encode());
        let renewal = Renewal { start: 4096, bytes: 4096 }.encode();
        for end in 0..renewal.len() {
            assert!(Renewal::decode(&renewal[..end]).is_err(), "{end} bytes of a renewal");
        }
        assert_eq!(Renewal::decode(&[&renewal[..], &[0]].concat()), Err(Garbage::Damaged));
        for end in 0..offer.len() {
            assert!(Offer::decode(&offer[..end]).is_err(), "{end} bytes of an offer");
        }
        for end in 0..hello.len() {
            assert!(Hello::decode(&hello[..end]).is_err(), "{end} bytes of a hello");
        }
        assert_eq!(Offer::decode(&[offer, vec![0]].concat()), Err(Garbage::Damaged));
        assert_eq!(Hello::decode(&[&hello[..], &[0]].concat()), Err(Garbage::Damaged));
    }

    #[test]
    fn a_name_is_as_long_as_it_says_and_fits_an_address() {
        let mut bytes = offer().encode();
        bytes[20..24].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(Offer::decode(&bytes), Err(Garbage::Damaged));
        let long = Offer { name: vec![b'x'; NAME_MAX + 1], ..offer() };
        assert_eq!(Offer::decode(&long.encode()), Err(Garbage::Damaged));
        let none = Offer { name: Vec::new(), ..offer() };
        assert_eq!(Offer::decode(&none.encode()), Err(Garbage::Damaged));
    }

    #[test]
    fn other_kinds_and_versions_are_told_apart() {
        let mut bytes = offer().encode();
        bytes[8] = 1;
        assert_eq!(Offer::decode(&bytes), Err(Garbage::Version(1)));
        bytes[0] = 0;
        assert_eq!(Offer::decode(&bytes), Err(Garbage::Kind));
        assert_eq!(Hello::decode(b"GET / HTTP/1.1\r\n"), Err(Garbage::Kind));
        assert_eq!(Renewal::decode(&hello().encode()), Err(Garbage::Kind));
    }

    #[test]
    fn a_token_is_not_printed() {
        let secret = Hello { given: Token([171; 16]), own: Token([171; 16]), ..hello() };
        assert!(!format!("{:?} {secret:?}", offer()).contains("171"));
    }
}
