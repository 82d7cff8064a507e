//! What comes from one peer: a stream of bytes, cut anywhere, becomes words and ring bytes in that peer's mirror.
//!
//! Pure: it says where the next bytes may be received to ([`Incoming::room`]) and is told how many came
//! ([`Incoming::on_received`]). All that comes is an allegation (S1) until a check has held:
//!
//! - Words become visible only when their whole frame has come and its check holds; then all of it is stored in one go,
//!   by the thread that owns the fabric, which is the one that reads the words.
//! - Small ring frames likewise: they are gathered in the *stage*, a buffer of this link, checked there, and copied.
//! - A large ring frame, once its header has proven where it belongs, is received straight into the mirror, and checked as
//!   it comes. Its bytes are so in place before the check holds, which is harmless: no `head` that this link can still
//!   deliver covers them if it does not, because the link breaks before any later frame is looked at.
//!
//! Bytes that the peer relays go into the mirror of their origin, by the same rules, if they are expected there
//! ([`super::relay`]); if not they are checked and dropped. Whether they are is asked anew for each piece of a large frame: in its
//! middle the origin may be fenced (F4), or its session over, and the rest is dropped too.
//!
//! Nothing is allocated on the peer's word except the gathering of a words frame too large for the stage: it grows with
//! the bytes that have really come, up to what the segment's words can take.

use std::ops::Range;

use consort_dataplane::memory::{Segment, WORD};

use super::check::crc32c;
use super::frame::{Damage, Direction, HEADER, Header, runs};
use super::parts;
use super::relay::{Expected, Origin};

/// Bytes of the stage: what one receive takes of small frames.
pub(super) const STAGE: usize = 64 << 10;

/// Bytes received behind a large payload, and where one is to be expected: enough for the frames of a few words, and
/// little to copy if a large payload follows.
const STAGE_BEHIND: usize = 4 << 10;

/// The largest payload that is gathered in the stage before it is looked at.
const SMALL: usize = 8 << 10;

/// Ring payload from which copying it out of the stage costs more than the call that avoids it.
const LARGE: usize = 32 << 10;

/// Frames from one peer. See the [module](self).
#[derive(Debug)]
pub(super) struct Incoming {
    mirror: Segment,
    direction: Direction,
    sequence: u32,
    stage: Box<[u8]>,
    /// The part of the stage that has come and was not looked at.
    held: Range<usize>,
    /// The last ring frame was a large one: the next may be too, and should not be caught by the stage.
    large_lately: bool,
    state: State,
}

#[derive(Debug)]
enum State {
    /// A header is due.
    Between,
    /// The header's payload is due, and is gathered in the stage.
    Gather(Header),
    /// Ring bytes that go straight into `rest` of the mirror, or of another's; `sum` is that of those before.
    Ring { rest: Range<usize>, sum: u32, check: u32, relayed: Option<(Origin, Segment)> },
    /// Relayed bytes that go nowhere; `sum` is that of those before.
    Dropped { left: usize, sum: u32, check: u32 },
    /// Words too many for the stage.
    Words { runs: usize, len: usize, check: u32, got: Vec<u8> },
    /// The goodbye came.
    Ended,
}

/// What a receive brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// A frame is complete: the mirror changed.
    pub(super) changed: bool,
    /// The peer said goodbye.
    pub(super) ended: bool,
}

/// Where the next bytes may go: first all of `direct` (bytes of the mirror; may be empty), then `stage`.
#[derive(Debug)]
pub(super) struct Room<'a> {
    pub(super) mirror: &'a Segment,
    pub(super) direct: Range<usize>,
    pub(super) stage: &'a mut [u8],
}

impl Room<'_> {
    /// Bytes of it.
    pub(super) fn len(&self) -> usize {
        self.direct.len() + self.stage.len()
    }
}

impl Incoming {
    /// The stream of frames into `mirror`, which nobody else writes.
    pub(super) fn new(mirror: Segment, salt: u32) -> Self {
        let direction = Direction { salt, segment_bytes: mirror.size() };
        Self {
            mirror,
            direction,
            sequence: 0,
            stage: vec![0; STAGE].into_boxed_slice(),
            held: 0..0,
            large_lately: false,
            state: State::Between,
        }
    }

    /// Where to receive to. Never empty.
    pub(super) fn room(&mut self, expected: Expected<'_>) -> Room<'_> {
        self.drop_unexpected(expected);
        if self.held.start > 0 {
            // What is left is less than a header and a small payload.
            self.stage.copy_within(self.held.clone(), 0);
            self.held = 0..self.held.len();
        }
        let direct = self.direct();
        let free = &mut self.stage[self.held.end..];
        let most = match &self.state {
            State::Dropped { left, .. } => left + STAGE_BEHIND,
            _ if !direct.is_empty() || self.large_lately => STAGE_BEHIND,
            _ => STAGE,
        };
        let most = most.min(free.len());
        let mirror = match &self.state {
            State::Ring { relayed: Some((_, memory)), .. } => memory,
            _ => &self.mirror,
        };
        Room { mirror, direct, stage: &mut free[..most] }
    }

    /// What is relayed lands only as long as it is expected, and only in the memory in which it began.
    fn drop_unexpected(&mut self, expected: Expected<'_>) {
        if let State::Ring { rest, sum, check, relayed: Some((origin, memory)) } = &self.state
            && expected.place(*origin, rest).is_none_or(|now| now.as_ptr() != memory.as_ptr())
        {
            self.state = State::Dropped { left: rest.len(), sum: *sum, check: *check };
        }
    }

    /// Bytes of memory that a frame made this gather so far.
    #[cfg(test)]
    pub(super) fn gathered(&self) -> usize {
        if let State::Words { got, .. } = &self.state { got.capacity() } else { 0 }
    }

    fn direct(&self) -> Range<usize> {
        match &self.state {
            State::Ring { rest, .. } => rest.clone(),
            _ => 0..0,
        }
    }

    /// `n` bytes were received to where [`Incoming::room`] said.
    ///
    /// # Errors
    /// The stream is damaged, or the peer is not sound. It must not be read on; what it vouched for before stands.
    pub(super) fn on_received(&mut self, n: usize, expected: Expected<'_>) -> Result<Progress, Damage> {
        let mut progress = Progress::default();
        let direct = self.direct();
        let landed = n.min(direct.len());
        if let State::Ring { rest, sum, check, relayed } = &mut self.state
            && landed > 0
        {
            let mirror = relayed.as_ref().map_or(&self.mirror, |(_, memory)| memory);
            *sum = parts::sum(mirror, direct.start..direct.start + landed, *sum);
            rest.start += landed;
            if rest.start == rest.end {
                if *sum != *check {
                    return Err(Damage::PayloadCheck);
                }
                self.state = State::Between;
                progress.changed = true;
            }
        }
        self.held.end += n - landed;
        assert!(self.held.end <= self.stage.len(), "more bytes received than there was room for");
        self.parse(&mut progress, expected)?;
        Ok(progress)
    }

    /// Looks at what the stage holds, as far as it goes.
    fn parse(&mut self, progress: &mut Progress, expected: Expected<'_>) -> Result<(), Damage> {
        loop {
            let held = &self.stage[self.held.clone()];
            match &mut self.state {
                State::Between => {
                    let Some((header, _)) = held.split_first_chunk::<HEADER>() else { return Ok(()) };
                    let header = Header::decode(header, self.direction, self.sequence)?;
                    self.sequence = self.sequence.wrapping_add(1);
                    self.held.start += HEADER;
                    if let Header::Ring { len, .. } | Header::Relay { len, .. } = header {
                        self.large_lately = len >= LARGE;
                    }
                    self.state = State::Gather(header);
                }
                State::Gather(header) => {
                    let header = *header;
                    if let Some(payload) = held.get(..header.payload()) {
                        take(header, payload, &self.mirror, self.direction, expected)?;
                        self.held.start += payload.len();
                        progress.changed = true;
                        progress.ended = header == Header::Goodbye;
                        self.state = if progress.ended { State::Ended } else { State::Between };
                        continue;
                    }
                    match header {
                        Header::Ring { offset, len, check } if len > SMALL => {
                            place(&self.mirror, offset, held);
                            let rest = offset + held.len()..offset + len;
                            self.state = State::Ring { rest, sum: crc32c(0, held), check, relayed: None };
                        }
                        Header::Relay { origin, offset, len, check } if len > SMALL => {
                            let (left, sum) = (len - held.len(), crc32c(0, held));
                            self.state = match expected.place(origin, &(offset..offset + len)) {
                                Some(memory) => {
                                    place(memory, offset, held);
                                    let rest = offset + held.len()..offset + len;
                                    State::Ring { rest, sum, check, relayed: Some((origin, memory.clone())) }
                                }
                                None => State::Dropped { left, sum, check },
                            };
                        }
                        Header::Words { runs, len, check } if len > SMALL => {
                            self.state = State::Words { runs, len, check, got: held.to_vec() };
                        }
                        _ => return Ok(()),
                    }
                    self.held.start = self.held.end;
                }
                State::Words { runs, len, check, got } => {
                    let more = held.len().min(*len - got.len());
                    got.extend_from_slice(&held[..more]);
                    self.held.start += more;
                    if got.len() < *len {
                        return Ok(());
                    }
                    let header = Header::Words { runs: *runs, len: *len, check: *check };
                    take(header, got, &self.mirror, self.direction, expected)?;
                    progress.changed = true;
                    self.state = State::Between;
                }
                State::Dropped { left, sum, check } => {
                    let now = held.len().min(*left);
                    *sum = crc32c(*sum, &held[..now]);
                    *left -= now;
                    self.held.start += now;
                    if *left > 0 {
                        return Ok(());
                    }
                    if sum != check {
                        return Err(Damage::PayloadCheck);
                    }
                    self.state = State::Between;
                }
                // Bytes are in the stage only when the direct part is complete.
                State::Ring { .. } => return Ok(()),
                State::Ended if held.is_empty() => return Ok(()),
                State::Ended => return Err(Damage::AfterGoodbye),
            }
        }
    }
}

/// A whole frame has come: checks it and makes it visible.
fn take(
    header: Header,
    payload: &[u8],
    mirror: &Segment,
    direction: Direction,
    expected: Expected<'_>,
) -> Result<(), Damage> {
    match header {
        Header::Goodbye => Ok(()),
        Header::Ring { check, .. } | Header::Words { check, .. } | Header::Relay { check, .. }
            if crc32c(0, payload) != check =>
        {
            Err(Damage::PayloadCheck)
        }
        Header::Relay { origin, offset, len, .. } => {
            if let Some(memory) = expected.place(origin, &(offset..offset + len)) {
                memory.store_words(offset, payload);
            }
            Ok(())
        }
        Header::Ring { offset, .. } => {
            mirror.store_words(offset, payload);
            Ok(())
        }
        Header::Words { runs: count, .. } => {
            runs(payload, count, direction.segment_bytes, &mut |offset, words| {
                mirror.store_words(offset, words);
            })
        }
    }
}

/// Puts bytes that end anywhere into the mirror from a word's boundary on. The rest of the last word is left as it is.
fn place(mirror: &Segment, offset: usize, bytes: &[u8]) {
    let (whole, rest) = bytes.split_at(bytes.len() / WORD * WORD);
    mirror.store_words(offset, whole);
    if !rest.is_empty() {
        let at = offset + whole.len();
        let mut word = mirror.load(at).to_ne_bytes();
        word[..rest.len()].copy_from_slice(rest);
        mirror.store(at, u64::from_ne_bytes(word));
    }
}
