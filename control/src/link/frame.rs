//! Frames: lengths, bounds and seals. See the [parent](super) for the form.

use std::ops::Range;

use crate::config::SharedKey;

/// The longest frame of a peer that has not yet proved itself and said hello, in bytes after the length.
pub const STRANGER_LEN: usize = 4096;

/// The longest hello. A node with durable groups says in it what it has on disk: views, and how far its logs are.
pub const HELLO_LEN: usize = 128 << 10;

/// The longest frame of a peer that has. What is said in a view change is said whole: a value with the trims of 64 sessions of 64
/// members, and a report of as many, are some 120 KB.
pub const PEER_LEN: usize = 256 << 10;

/// Bytes of a preamble.
pub const PREAMBLE: usize = 48;

/// The protocol versions that this release speaks, least and greatest. One number for the control messages and for the layout
/// of segments, rows and records: nodes must agree on both.
pub const VERSIONS: (u16, u16) = (6, 6);

const MAGIC: [u8; 8] = *b"CONSORT\0";
const KEYED: u32 = 1;
const TAG: usize = blake3::OUT_LEN;
const REFUSAL: u8 = 0;
const SEALED: u8 = 1;
/// Length and kind.
const HEAD: usize = 5;
/// A refusal is a line or two.
const REFUSAL_LEN: usize = 1024;

/// Bytes that no sound peer sends, or a peer that this node can't talk to.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// It isn't Consort.
    #[error(
        "what connected doesn't speak Consort's control protocol; see that the address and port are a node's"
    )]
    Magic,
    /// No common version.
    #[error(
        "no common protocol version: one node speaks {} to {}, the other {} to {}; run releases that overlap",
        .ours.0, .ours.1, .theirs.0, .theirs.1
    )]
    Version {
        /// Least and greatest of this node.
        ours: (u16, u16),
        /// Least and greatest of the peer.
        theirs: (u16, u16),
    },
    /// One has a shared key, the other has none.
    #[error("one node has a shared key and the other has none; give all nodes the same `key_file`")]
    Keyed,
    /// A frame longer than this peer may send now.
    #[error("a frame of {len} bytes, where at most {most} may come")]
    Length {
        /// What it said.
        len: usize,
        /// What may be.
        most: usize,
    },
    /// A frame of no known kind, or too short for its kind.
    #[error("a frame of an unknown form")]
    Form,
    /// The first seal is wrong.
    #[error("the shared keys differ; give all nodes the same `key_file`")]
    Key,
    /// A later seal is wrong.
    #[error("a frame was damaged or changed on the way")]
    Seal,
    /// The peer refuses.
    #[error("{0}")]
    Refused(String),
}

/// What a side opens with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Preamble([u8; PREAMBLE]);

impl Preamble {
    /// This node's, with a nonce that was never used before.
    pub fn new(key: Option<&SharedKey>, nonce: [u8; 32]) -> Self {
        Self::of(VERSIONS, key.is_some(), nonce)
    }

    pub(crate) fn of(versions: (u16, u16), keyed: bool, nonce: [u8; 32]) -> Self {
        let mut bytes = [0; PREAMBLE];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&versions.0.to_le_bytes());
        bytes[10..12].copy_from_slice(&versions.1.to_le_bytes());
        bytes[12..16].copy_from_slice(&(if keyed { KEYED } else { 0 }).to_le_bytes());
        bytes[16..].copy_from_slice(&nonce);
        Self(bytes)
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// A peer's, if `bytes` has come so far; `None` as long as more is needed.
    ///
    /// # Errors
    /// It is no preamble; told as soon as the first wrong byte is there.
    pub fn parse(bytes: &[u8]) -> Result<Option<Self>, FrameError> {
        let magic = bytes.len().min(MAGIC.len());
        if bytes[..magic] != MAGIC[..magic] {
            return Err(FrameError::Magic);
        }
        Ok(bytes.get(..PREAMBLE).and_then(|bytes| bytes.try_into().ok()).map(Self))
    }

    /// The version that both speak.
    ///
    /// # Errors
    /// There is none, or only one of them has a shared key.
    pub fn agree(&self, theirs: &Self) -> Result<u16, FrameError> {
        let (ours, flags) = self.fields();
        let (peers, peers_flags) = theirs.fields();
        if ours.1.min(peers.1) < ours.0.max(peers.0) {
            return Err(FrameError::Version { ours, theirs: peers });
        }
        if (flags ^ peers_flags) & KEYED != 0 {
            return Err(FrameError::Keyed);
        }
        Ok(ours.1.min(peers.1))
    }

    fn fields(&self) -> ((u16, u16), u32) {
        let b = &self.0;
        let versions = (u16::from_le_bytes([b[8], b[9]]), u16::from_le_bytes([b[10], b[11]]));
        (versions, u32::from_le_bytes([b[12], b[13], b[14], b[15]]))
    }
}

/// Seals, or checks the seals of, one direction of a link.
#[derive(Clone)]
pub struct Seal {
    key: [u8; 32],
    frames: u64,
}

/// Which way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// From who dialled to who listened.
    Out,
    /// Back.
    Back,
}

impl Seal {
    /// For one direction of the link that these preambles opened.
    pub fn new(
        key: Option<&SharedKey>,
        dialler: &Preamble,
        listener: &Preamble,
        direction: Direction,
    ) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key(match direction {
            Direction::Out => "consort 2026-11 control link, from dialler to listener",
            Direction::Back => "consort 2026-11 control link, from listener to dialler",
        });
        hasher.update(dialler.bytes()).update(listener.bytes());
        if let Some(key) = key {
            hasher.update(key.expose());
        }
        Self { key: *hasher.finalize().as_bytes(), frames: 0 }
    }

    /// Appends `body` as a sealed frame.
    pub fn seal(&mut self, body: &[u8], to: &mut Vec<u8>) {
        let tag = self.tag(body);
        put_head(SEALED, body.len() + TAG, to);
        to.extend_from_slice(body);
        to.extend_from_slice(tag.as_bytes());
        self.frames += 1;
    }

    /// The body of a sealed frame.
    fn open<'a>(&mut self, sealed: &'a [u8]) -> Result<&'a [u8], FrameError> {
        let Some((body, tag)) = sealed.split_last_chunk::<TAG>() else { return Err(FrameError::Form) };
        // Comparing hashes takes the same time whatever they are.
        if self.tag(body) != blake3::Hash::from_bytes(*tag) {
            return Err(if self.frames == 0 { FrameError::Key } else { FrameError::Seal });
        }
        self.frames += 1;
        Ok(body)
    }

    fn tag(&self, body: &[u8]) -> blake3::Hash {
        blake3::Hasher::new_keyed(&self.key).update(&self.frames.to_le_bytes()).update(body).finalize()
    }
}

/// Appends a refusal.
pub fn put_refusal(why: &str, to: &mut Vec<u8>) {
    let mut end = why.len().min(REFUSAL_LEN);
    while !why.is_char_boundary(end) {
        end -= 1;
    }
    let why = &why[..end];
    put_head(REFUSAL, why.len(), to);
    to.extend_from_slice(why.as_bytes());
}

fn put_head(kind: u8, len: usize, to: &mut Vec<u8>) {
    // Bodies are bounded far below 2^32 where they are made.
    to.extend_from_slice(&(u32::try_from(len + 1).unwrap_or(u32::MAX)).to_le_bytes());
    to.push(kind);
}

/// Bytes that have come and are not yet taken.
#[derive(Default, Debug)]
pub struct Incoming {
    bytes: Vec<u8>,
    taken: usize,
}

impl Incoming {
    /// More has come. Take what is whole after each call: then the buffer never holds more than one call's bytes and a
    /// frame's.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.taken);
        self.taken = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// The preamble, when it is whole.
    ///
    /// # Errors
    /// It is none, or a refusal.
    pub fn preamble(&mut self) -> Result<Option<Preamble>, FrameError> {
        match Preamble::parse(&self.bytes[self.taken..]) {
            Ok(preamble) => {
                self.taken += preamble.map_or(0, |_| PREAMBLE);
                Ok(preamble)
            }
            Err(not_one) => match self.whole(REFUSAL_LEN + 1) {
                Ok(None) => Ok(None),
                Ok(Some((REFUSAL, body))) => Err(refusal(&self.bytes[body])),
                _ => Err(not_one),
            },
        }
    }

    /// The next frame's body, when it is whole and its seal is right.
    ///
    /// # Errors
    /// It is longer than `most`, of no known form, wrongly sealed, or a refusal.
    pub fn frame(&mut self, most: usize, seal: &mut Seal) -> Result<Option<&[u8]>, FrameError> {
        let Some((kind, body)) = self.whole(most)? else { return Ok(None) };
        match kind {
            SEALED => seal.open(&self.bytes[body]).map(Some),
            REFUSAL => Err(refusal(&self.bytes[body])),
            _ => Err(FrameError::Form),
        }
    }

    fn whole(&mut self, most: usize) -> Result<Option<(u8, Range<usize>)>, FrameError> {
        let Some((head, _)) = self.bytes[self.taken..].split_first_chunk::<HEAD>() else { return Ok(None) };
        let len = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
        if len == 0 {
            return Err(FrameError::Form);
        }
        if len > most {
            return Err(FrameError::Length { len, most });
        }
        let body = self.taken + HEAD..self.taken + HEAD - 1 + len;
        if self.bytes.len() < body.end {
            return Ok(None);
        }
        self.taken = body.end;
        Ok(Some((head[4], body)))
    }
}

/// A peer's text, made fit for a log.
fn refusal(text: &[u8]) -> FrameError {
    let text = &text[..text.len().min(REFUSAL_LEN)];
    let text = String::from_utf8_lossy(text).chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    FrameError::Refused(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pair(key: Option<&SharedKey>) -> (Seal, Seal) {
        let (a, b) = (Preamble::new(key, [1; 32]), Preamble::new(key, [2; 32]));
        (Seal::new(key, &a, &b, Direction::Out), Seal::new(key, &a, &b, Direction::Out))
    }

    fn frames(bytes: &[u8], at_once: usize, open: &mut Seal) -> Result<Vec<Vec<u8>>, FrameError> {
        let (mut incoming, mut bodies) = (Incoming::default(), Vec::new());
        for chunk in bytes.chunks(at_once) {
            incoming.push(chunk);
            while let Some(body) = incoming.frame(PEER_LEN, open)? {
                bodies.push(body.to_vec());
            }
        }
        Ok(bodies)
    }

    proptest! {
        #[test]
        fn frames_survive_any_cutting(bodies: Vec<Vec<u8>>, at_once in 1..100usize) {
            let (mut seal, mut open) = pair(None);
            let mut wire = Vec::new();
            bodies.iter().for_each(|body| seal.seal(body, &mut wire));
            prop_assert_eq!(frames(&wire, at_once, &mut open).unwrap(), bodies);
        }

        // S1: whatever comes, it is refused or waited for, and nothing is held beyond a frame and a push.
        #[test]
        fn garbage_is_refused_and_allocates_nothing(garbage: Vec<u8>, at_once in 1..100usize) {
            let (_, mut open) = pair(None);
            let (mut incoming, mut preambles) = (Incoming::default(), Incoming::default());
            for chunk in garbage.chunks(at_once) {
                incoming.push(chunk);
                while let Ok(Some(_)) = incoming.frame(STRANGER_LEN, &mut open) {
                    prop_assert!(false, "garbage has no seal");
                }
                prop_assert!(incoming.bytes.capacity() <= 2 * (garbage.len() + 8));
                preambles.push(chunk);
                let _ = preambles.preamble();
            }
        }

        // A changed bit anywhere behind the length breaks the seal.
        #[test]
        fn damage_is_noticed(body in proptest::collection::vec(any::<u8>(), 0..80), at: prop::sample::Index, bit in 0..8u8) {
            let (mut seal, mut open) = pair(None);
            let mut wire = Vec::new();
            seal.seal(b"first", &mut wire);
            let first = wire.len();
            seal.seal(&body, &mut wire);
            let at = first + 4 + at.index(wire.len() - first - 4);
            wire[at] ^= 1u8 << bit;
            let error = frames(&wire, wire.len(), &mut open).unwrap_err();
            prop_assert!(matches!(error, FrameError::Seal | FrameError::Form | FrameError::Refused(_)), "{error}");
        }
    }

    #[test]
    fn a_length_beyond_the_bound_is_refused_at_once() {
        let (_, mut open) = pair(None);
        let mut incoming = Incoming::default();
        incoming.push(&[0xff, 0xff, 0xff, 0x7f, SEALED]);
        let error = incoming.frame(STRANGER_LEN, &mut open).unwrap_err();
        assert_eq!(error, FrameError::Length { len: 0x7fff_ffff, most: STRANGER_LEN });
        assert!(incoming.bytes.capacity() < 64);
    }

    // S3
    #[test]
    fn another_key_another_nonce_or_the_other_direction_is_no_seal() {
        let (right, wrong) = (SharedKey::new([1; 32]).ok(), SharedKey::new([2; 32]).ok());
        let (a, b) = (Preamble::new(right.as_ref(), [1; 32]), Preamble::new(right.as_ref(), [2; 32]));
        let mut wire = Vec::new();
        Seal::new(right.as_ref(), &a, &b, Direction::Out).seal(b"", &mut wire);
        for mut open in [
            Seal::new(wrong.as_ref(), &a, &b, Direction::Out),
            Seal::new(right.as_ref(), &a, &Preamble::new(right.as_ref(), [3; 32]), Direction::Out),
            Seal::new(right.as_ref(), &a, &b, Direction::Back),
        ] {
            assert_eq!(frames(&wire, 7, &mut open), Err(FrameError::Key));
        }
        let mut open = Seal::new(right.as_ref(), &a, &b, Direction::Out);
        let twice = [wire.clone(), wire.clone()].concat();
        assert_eq!(frames(&twice, 7, &mut open), Err(FrameError::Seal), "a frame said twice");
    }

    #[test]
    fn versions_agree_on_the_lower_or_say_why_not() {
        let of = |versions| Preamble::of(versions, false, [0; 32]);
        assert_eq!(of((1, 3)).agree(&of((2, 9))), Ok(3));
        let error = of((1, 1)).agree(&of((2, 3))).unwrap_err().to_string();
        assert!(error.contains("1 to 1") && error.contains("2 to 3"), "{error}");
        assert_eq!(of((1, 1)).agree(&Preamble::of((1, 1), true, [0; 32])), Err(FrameError::Keyed));
    }

    #[test]
    fn a_refusal_is_read_whole_and_made_harmless() {
        let mut wire = Vec::new();
        put_refusal(&format!("no\x1b[31m{}", "é".repeat(2000)), &mut wire);
        let mut incoming = Incoming::default();
        let (last, most) = wire.split_last().unwrap();
        incoming.push(most);
        assert_eq!(incoming.preamble(), Ok(None), "it isn't whole");
        incoming.push(&[*last]);
        let Err(FrameError::Refused(why)) = incoming.preamble() else { panic!("a refusal") };
        assert!(why.starts_with("no [31m") && why.len() <= REFUSAL_LEN + 2, "{why}");
    }
}
