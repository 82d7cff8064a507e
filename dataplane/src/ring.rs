//! The byte ring that holds this node's messages in a session (D2, D3): any number of threads reserve room in it, write
//! their message in place and commit; the engine takes what is committed, in the ring's order, stamps and publishes it.
//!
//! # How
//! `tail` is where the next reservation starts; a compare-and-swap moves it, so a reservation is a range that nobody
//! else has. Records are contiguous: one that doesn't fit before the ring's end leaves a pad there and starts at the
//! beginning. Commits may come in any order, so each word of the ring has a *mark* beside it, in private memory: the
//! committer sets the mark of the record's first word, the engine takes marks in order, clears each, and stops at
//! the first that is not set. Marks are beside the ring and not in it because whatever a header could say, an old
//! payload may happen to say too.
//!
//! # Why it is right
//! - *A thread's bytes are seen whole.* Marks are set with Release after the payload and taken with Acquire.
//! - *No room is lent twice.* `limit` grows (Release) only when every member has released the bytes (D11) and their
//!   marks are cleared; a reservation reads it with Acquire before it writes.
//! - *A full ring is no loss*: `try_reserve` refuses and leaves everything as it was.
//! - *No deadlock at the end of the ring*: a record takes at most half of it, so record and pad fit an empty ring.
#![allow(unsafe_code)]

use std::fmt;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut, Range};
use std::ptr;

use crossbeam_utils::CachePadded;

use crate::layout::ring_parts;
use crate::memory::{Segment, WORD};
use crate::names::{Position, RankSet};
use crate::record::{self, ADDRESS, HEADER, Header, Kind};
use crate::sync::{AtomicBool, AtomicU8, AtomicU64, Ordering, next_number};
use std::sync::Arc;

/// `tail` with this bit set takes no more reservations.
const CLOSED: u64 = 1 << 63;

/// What a batch claims at once, in bytes: little enough for other threads, whose messages wait for it, not to notice.
const BATCH: u64 = 16 << 10;

const EMPTY: u8 = 0;
const COMMITTED: u8 = 1;

/// Who has which part of the ring: the cursors and marks, without the bytes.
pub(crate) struct Claims {
    tail: CachePadded<AtomicU64>,
    limit: CachePadded<AtomicU64>,
    /// A reservation was refused since the engine last looked.
    starved: AtomicBool,
    marks: Box<[AtomicU8]>,
    size: u64,
}

/// A part of the ring that one thread has to itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Claim {
    /// Where the claim starts; there is a pad first if `pad` isn't zero.
    pub(crate) start: u64,
    /// Bytes left unused before the ring's end.
    pub(crate) pad: u64,
    /// Where it ends.
    pub(crate) end: u64,
}

/// Room can't be had now, or ever.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReserveError {
    /// Back-pressure, not a failure: not every member has released enough yet. Try again.
    #[error("the ring is full: some member has not yet taken what was sent before")]
    Full,
    /// The message can never fit.
    #[error(
        "a message of {len} bytes is too long: this ring takes at most {max}; give the group larger rings"
    )]
    TooLong {
        /// What was asked for, in bytes.
        len: usize,
        /// The longest that fits, in bytes.
        max: usize,
    },
    /// The session is wedged or over.
    #[error("the session takes no more messages: its view has ended")]
    Closed,
}

impl Claims {
    pub(crate) fn new(size: usize) -> Self {
        Self {
            tail: CachePadded::new(AtomicU64::new(0)),
            limit: CachePadded::new(AtomicU64::new(size as u64)),
            starved: AtomicBool::new(false),
            marks: (0..size / WORD).map(|_| AtomicU8::new(EMPTY)).collect(),
            size: size as u64,
        }
    }

    #[inline]
    fn mark(&self, position: u64) -> &AtomicU8 {
        &self.marks[((position & (self.size - 1)) / WORD as u64) as usize]
    }

    /// Takes `need` contiguous bytes, at most half the ring.
    #[inline(always)]
    pub(crate) fn claim(&self, need: u64) -> Result<Claim, ReserveError> {
        let mut tail = self.tail.load(Ordering::Relaxed);
        loop {
            if tail & CLOSED != 0 {
                return Err(ReserveError::Closed);
            }
            let place = tail & (self.size - 1);
            let pad = if place + need > self.size { self.size - place } else { 0 };
            let end = tail + pad + need;
            // Acquire pairs with the Release in `release`: what the members released and the engine cleared is ours.
            if end > self.limit.load(Ordering::Acquire) {
                self.starved.store(true, Ordering::Relaxed);
                return Err(ReserveError::Full);
            }
            // Acquire pairs with the Release in `give_back`.
            match self.tail.compare_exchange_weak(tail, end, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return Ok(Claim { start: tail, pad, end }),
                Err(now) => tail = now,
            }
        }
    }

    /// Takes room for as many messages as there are, that take `need` bytes each, at most half the ring: for one at least, and for more as far as they
    /// fit before the ring's end, and into [`BATCH`].
    #[inline]
    pub(crate) fn claim_many(&self, need: u64, count: usize) -> Result<Claim, ReserveError> {
        let tail = self.tail.load(Ordering::Relaxed);
        let limit = self.limit.load(Ordering::Acquire); // as in `claim`
        let place = tail & (self.size - 1);
        // `tail` has a bit more if the ring is closed: then there is no room.
        let room = limit.saturating_sub(tail).min(self.size - place).min(BATCH);
        let most = need.saturating_mul(count as u64);
        let end = tail + if most <= room { most } else { room - room % need };
        let claims = || self.tail.compare_exchange(tail, end, Ordering::Acquire, Ordering::Relaxed); // as in `claim`
        if end >= tail + need && claims().is_ok() {
            Ok(Claim { start: tail, pad: 0, end })
        } else {
            self.claim(need)
        }
    }

    /// Gives back what was claimed from `from` on to `end`. Returns false if somebody has claimed what comes after it.
    #[inline]
    pub(crate) fn give_back(&self, from: u64, end: u64) -> bool {
        // Release: something may have been written there (by a writer that panicked), and who claims it next writes there, too.
        self.tail.compare_exchange(end, from, Ordering::Release, Ordering::Relaxed).is_ok()
    }

    /// The record at `position` is written.
    pub(crate) fn commit(&self, position: u64) {
        self.mark(position).store(COMMITTED, Ordering::Release); // pairs with the Acquire in `take`
    }

    /// Whether there is a committed record at `position`; if so, its mark is cleared for the next lap.
    pub(crate) fn take(&self, position: u64) -> bool {
        let mark = self.mark(position);
        if mark.load(Ordering::Acquire) != COMMITTED {
            return false;
        }
        mark.store(EMPTY, Ordering::Relaxed); // the Release in `release` carries it to the next who claims the place
        true
    }

    /// Whether `take` would take.
    pub(crate) fn ready(&self, position: u64) -> bool {
        self.mark(position).load(Ordering::Relaxed) == COMMITTED
    }

    /// Everything before `position` may be used again.
    pub(crate) fn release(&self, position: u64) {
        self.limit.store(position + self.size, Ordering::Release);
    }

    /// Whether a reservation was refused since the last call.
    pub(crate) fn take_starved(&self) -> bool {
        self.starved.load(Ordering::Relaxed) && self.starved.swap(false, Ordering::Relaxed)
    }

    /// Takes no more reservations. Returns where they end.
    pub(crate) fn close(&self) -> u64 {
        self.tail.fetch_or(CLOSED, Ordering::Relaxed) & !CLOSED
    }
}

struct Ring {
    claims: Claims,
    segment: Segment,
    /// Where the ring starts in the segment.
    start: usize,
    /// No other ring of this process has it.
    number: u64,
}

impl Ring {
    #[inline]
    fn place(&self, position: u64) -> usize {
        self.start + (position & (self.claims.size - 1)) as usize
    }

    /// Where a reservation's payload is in the segment.
    #[inline]
    fn payload(&self, room: &Room) -> Range<usize> {
        let start = self.place(room.start) + room.before();
        start..start + room.len()
    }

    #[inline]
    fn put(&self, position: u64, kind: Kind, len: usize) {
        // The engine stamps the round when it takes the record (D4).
        self.put_word(position, Header { len, kind, round: 0 }.word());
    }

    #[inline]
    fn put_word(&self, position: u64, header: u64) {
        self.segment.store(self.place(position), header);
        self.claims.commit(position);
    }
}

/// Sends into a session, from any thread. Clones send into the same ring.
#[derive(Clone)]
pub struct RingSender {
    ring: Arc<Ring>,
}

/// Names one send among those of this node in its session: where its record ends in the node's ring. Later sends have
/// greater tickets, and messages are delivered in this order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Ticket(pub Position);

/// Room for one message, in the ring itself (D3). Write it and [`Reservation::send`] it; dropped unsent it
/// becomes a pad, which costs its room and is delivered to nobody. Until either happens nothing that was reserved later
/// can go out.
///
/// `H` is how it holds its ring: a borrow, or a handle of the caller's that keeps the ring for as long as the reservation
/// lives, whatever ring is the current one by then. The handle must lead to the same sender always.
pub struct Reservation<H: Deref<Target = RingSender>> {
    handle: H,
    room: Room,
}

/// What a reservation has of its ring. As little as that: a reservation is moved from call to call.
#[derive(Clone, Copy)]
struct Room {
    /// The ring's number.
    number: u64,
    /// Where the record starts.
    start: u64,
    /// Its header's word. If it is addressed, whom it is for stands before the payload, and is there already.
    header: u64,
}

impl Room {
    /// Bytes of the record before the payload.
    #[inline]
    fn before(&self) -> usize {
        HEADER + if record::is_addressed(self.header) { ADDRESS } else { 0 }
    }

    /// Bytes of the payload.
    #[inline]
    fn len(&self) -> usize {
        HEADER + record::len(self.header) - self.before()
    }

    /// Where the record ends.
    #[inline]
    fn end(&self) -> Position {
        Position(self.start + record::size(record::len(self.header)) as u64)
    }
}

/// Lends room for `len` bytes (with whatever bytes are there) in the ring that `handle` leads to, which the reservation
/// keeps. Never blocks.
///
/// # Errors
/// As [`RingSender::try_reserve`]; the handle is given back.
#[inline(always)]
pub fn try_reserve<H: Deref<Target = RingSender>>(
    handle: H,
    len: usize,
) -> Result<Reservation<H>, (H, ReserveError)> {
    match handle.try_claim(len) {
        Ok(room) => Ok(Reservation { handle, room }),
        Err(error) => Err((handle, error)),
    }
}

/// As [`try_reserve`], for a message that is delivered to the members in `to` alone (D12).
///
/// # Errors
/// As there. Such a message may be shorter than others by a word.
pub fn try_reserve_to<H: Deref<Target = RingSender>>(
    handle: H,
    to: RankSet,
    len: usize,
) -> Result<Reservation<H>, (H, ReserveError)> {
    match handle.try_claim_to(to, len) {
        Ok(room) => Ok(Reservation { handle, room }),
        Err(error) => Err((handle, error)),
    }
}

impl RingSender {
    /// The longest message that this ring takes, in bytes: just under half of it.
    pub fn max_len(&self) -> usize {
        (self.ring.claims.size as usize / 2 - HEADER).min(record::MAX_LEN)
    }

    /// Lends room for `len` bytes (with whatever bytes are there). Never blocks.
    ///
    /// # Errors
    /// [`ReserveError::Full`] is back-pressure: try again when others have taken more. The others are final.
    #[inline]
    pub fn try_reserve(&self, len: usize) -> Result<Reservation<&Self>, ReserveError> {
        Ok(Reservation { handle: self, room: self.try_claim(len)? })
    }

    #[inline(always)]
    fn try_claim(&self, len: usize) -> Result<Room, ReserveError> {
        if len > self.max_len() {
            return Err(ReserveError::TooLong { len, max: self.max_len() });
        }
        let ring = &*self.ring;
        let claim = ring.claims.claim(record::size(len) as u64)?;
        if claim.pad > 0 {
            ring.put(claim.start, Kind::Pad, claim.pad as usize - HEADER);
        }
        let start = claim.start + claim.pad;
        Ok(Room { number: ring.number, start, header: Header { len, kind: Kind::Data, round: 0 }.word() })
    }

    /// For many messages of this thread, one after the other.
    #[inline]
    pub fn batch(&self) -> Batch<'_> {
        Batch { sender: self, start: 0, at: 0, end: 0 }
    }

    /// Lends room for a message to the members in `to` alone (D12). Never blocks.
    ///
    /// # Errors
    /// As [`RingSender::try_reserve`].
    pub fn try_reserve_to(&self, to: RankSet, len: usize) -> Result<Reservation<&Self>, ReserveError> {
        Ok(Reservation { handle: self, room: self.try_claim_to(to, len)? })
    }

    fn try_claim_to(&self, to: RankSet, len: usize) -> Result<Room, ReserveError> {
        let too_long = |_| ReserveError::TooLong { len, max: self.max_len() - ADDRESS };
        let whole =
            len.checked_add(ADDRESS).filter(|whole| *whole <= self.max_len()).ok_or(()).map_err(too_long)?;
        let mut room = self.try_claim(whole)?;
        room.header = Header { len: whole, kind: Kind::Addressed, round: 0 }.word();
        self.ring.segment.store(self.ring.place(room.start) + HEADER, to.0);
        Ok(room)
    }

    /// Multicasts that this node sends nothing more in this session ([`Kind::End`]). Nothing stops it from sending all
    /// the same; the members only learn that it need not be waited for.
    ///
    /// # Errors
    /// As [`RingSender::try_reserve`].
    pub fn try_end(&self) -> Result<Ticket, ReserveError> {
        let mut end = self.try_reserve(0)?;
        end.room.header = Header { len: 0, kind: Kind::End, round: 0 }.word();
        Ok(end.send())
    }
}

/// Many messages of one thread: room is claimed for several at once. What is left of it is given back when this is dropped.
pub struct Batch<'a> {
    sender: &'a RingSender,
    /// The room that was claimed last,
    start: u64,
    /// from here on still empty.
    at: u64,
    end: u64,
}

impl Batch<'_> {
    /// Commits a message of `len` bytes, which `write` writes: the engine multicasts it with its next step. `more` messages are to follow, as
    /// far as that is known. Never blocks.
    ///
    /// # Errors
    /// As [`RingSender::try_reserve`].
    #[inline]
    pub fn send(
        &mut self,
        len: usize,
        more: usize,
        write: impl FnOnce(&mut [u8]),
    ) -> Result<Ticket, ReserveError> {
        let sender = self.sender;
        if len > sender.max_len() {
            return Err(ReserveError::TooLong { len, max: sender.max_len() });
        }
        let ring = &*sender.ring;
        let size = record::size(len) as u64;
        if size > self.end - self.at {
            self.give_back();
            let claim = ring.claims.claim_many(size, more.saturating_add(1))?;
            if claim.pad > 0 {
                ring.put(claim.start, Kind::Pad, claim.pad as usize - HEADER);
            }
            self.start = claim.start + claim.pad;
            (self.at, self.end) = (self.start, claim.end);
        }
        let payload = ring.place(self.at) + HEADER;
        // SAFETY: it lies in the claim, which is this batch's alone, and nothing is committed there yet: see `Reservation::deref_mut`.
        write(unsafe { ring.segment.bytes_mut(payload..payload + len) });
        ring.put(self.at, Kind::Data, len);
        self.at += size;
        Ok(Ticket(Position(self.at)))
    }

    #[inline]
    fn give_back(&mut self) {
        let ring = &*self.sender.ring;
        let left = self.end - self.at;
        // Somebody may have been refused because of it, and waits until what was sent is released: if nothing was, there must be a pad for that.
        if left > 0 && (self.at == self.start || !ring.claims.give_back(self.at, self.end)) {
            ring.put(self.at, Kind::Pad, left as usize - HEADER);
        }
        self.at = self.end;
    }
}

impl Drop for Batch<'_> {
    #[inline]
    fn drop(&mut self) {
        self.give_back();
    }
}

impl<H: Deref<Target = RingSender>> Reservation<H> {
    /// Commits the message: the engine multicasts it with its next step. Wake the engine if it may sleep
    /// ([`crate::fabric::Doorbell::ring`]).
    #[inline]
    pub fn send(self) -> Ticket {
        self.commit(|_, _| ()).0
    }

    /// As [`Reservation::send`], when `last` has written to it, and gives back what it held its ring by. `last` must not panic: what is reserved
    /// later would wait for ever.
    #[inline(always)]
    pub fn send_back(self, last: impl FnOnce(&mut [u8])) -> (Ticket, H) {
        self.commit(|ring, room| {
            // SAFETY: as in `deref_mut`; nothing of this room is borrowed, since the reservation was moved here.
            last(unsafe { ring.segment.bytes_mut(ring.payload(room)) });
        })
    }

    /// What it holds its ring by.
    pub fn handle(&self) -> &H {
        &self.handle
    }

    #[inline(always)]
    fn commit(self, last: impl FnOnce(&Ring, &Room)) -> (Ticket, H) {
        // Dropping it would make it a pad. Its fields are read one by one: moved as a whole, they are read in pieces of two words that
        // were stored one by one, which waits for the stores.
        let sent = ManuallyDrop::new(self);
        let room = sent.room;
        // SAFETY: `sent` is neither used nor dropped after this, so the handle has one owner as before.
        let handle = unsafe { ptr::read(&raw const sent.handle) };
        let ring = ring_of(&handle, room.number);
        last(ring, &room);
        ring.put_word(room.start, room.header);
        (Ticket(room.end()), handle)
    }

    #[inline]
    fn ring(&self) -> &Ring {
        ring_of(&self.handle, self.room.number)
    }

    #[inline]
    fn range(&self) -> Range<usize> {
        self.ring().payload(&self.room)
    }
}

/// The ring in which the claim was made. A handle that leads elsewhere by now is a bug of its author, and would lend
/// bytes that are somebody else's.
#[inline]
fn ring_of<H: Deref<Target = RingSender>>(handle: &H, number: u64) -> &Ring {
    let ring = &*handle.ring;
    assert!(ring.number == number, "a reservation's handle leads to another ring than before");
    ring
}

impl<H: Deref<Target = RingSender>> Drop for Reservation<H> {
    fn drop(&mut self) {
        self.ring().put(self.room.start, Kind::Pad, record::len(self.room.header));
    }
}

impl<H: Deref<Target = RingSender>> Deref for Reservation<H> {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: the claim is this reservation's alone until it is committed, `ring` checked that it is the claim's, and
        // it is borrowed for reading.
        unsafe { self.ring().segment.bytes(self.range()) }
    }
}

impl<H: Deref<Target = RingSender>> DerefMut for Reservation<H> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: the claim is this reservation's alone until it is committed (no other claim overlaps it, members have
        // released it, the engine and the fabric touch only what is committed), `ring` checked that it is the claim's,
        // and it is borrowed exclusively.
        unsafe { self.ring().segment.bytes_mut(self.range()) }
    }
}

/// A record of the own ring.
pub(crate) struct Own<'a> {
    pub(crate) kind: Kind,
    pub(crate) end: Position,
    /// Whom it is for, if not for all.
    pub(crate) to: Option<RankSet>,
    pub(crate) payload: &'a [u8],
}

/// A part of the ring that is for some members only (D12): the payload of an addressed record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Private {
    pub(crate) from: Position,
    /// Where its record ends.
    pub(crate) end: Position,
    pub(crate) to: RankSet,
}

/// The engine's side of the ring.
pub(crate) struct RingOwner {
    ring: Arc<Ring>,
    /// Up to here records were taken.
    taken: u64,
    /// Up to here every member has released.
    freed: u64,
    /// What of the batch that was taken last is not for all.
    private: Vec<Private>,
}

impl RingOwner {
    /// A ring of `size` bytes at `start` in the segment.
    pub(crate) fn new(segment: Segment, start: usize, size: usize) -> Self {
        let ring = Arc::new(Ring { claims: Claims::new(size), segment, start, number: next_number() });
        Self { ring, taken: 0, freed: 0, private: Vec::new() }
    }

    pub(crate) fn sender(&self) -> RingSender {
        RingSender { ring: self.ring.clone() }
    }

    /// Up to where records were taken.
    pub(crate) fn taken(&self) -> Position {
        Position(self.taken)
    }

    /// Takes all committed records and stamps them with `round` (D4, D9). Returns whether there were any.
    pub(crate) fn take(&mut self, round: u32) -> bool {
        let before = self.taken;
        self.private.clear();
        while self.ring.claims.take(self.taken) {
            let place = self.ring.place(self.taken);
            let word = self.ring.segment.load(place);
            self.ring.segment.store(place, record::stamp(word, round));
            let Some(header) = Header::parse(word) else {
                unreachable!("a committed record has a header: only `put` writes there")
            };
            let end = self.taken + header.size() as u64;
            if header.kind == Kind::Addressed {
                let to = RankSet(self.ring.segment.load(place + HEADER));
                let from = Position(self.taken + (HEADER + ADDRESS) as u64);
                self.private.push(Private { from, end: Position(end), to });
            }
            self.taken = end;
        }
        self.taken != before
    }

    /// What of the batch that was taken last is not for all, in the ring's order.
    pub(crate) fn private(&self) -> &[Private] {
        &self.private
    }

    /// Whether a record waits to be taken.
    pub(crate) fn ready(&self) -> bool {
        self.ring.claims.ready(self.taken)
    }

    /// The parts of the segment that hold the ring between two positions: two at a wrap.
    pub(crate) fn parts(&self, between: Range<Position>) -> [Range<usize>; 2] {
        ring_parts(between, self.ring.start, self.ring.claims.size as usize)
    }

    /// Whether it is worth finding out what the members released: a sender was refused, or half the ring is in use.
    pub(crate) fn wants_room(&self) -> bool {
        self.taken != self.freed
            && (self.taken - self.freed > self.ring.claims.size / 2 || self.ring.claims.take_starved())
    }

    /// Every member has released up to `position`.
    pub(crate) fn release(&mut self, position: Position) -> bool {
        let more = position.0 > self.freed;
        if more {
            self.freed = position.0;
            self.ring.claims.release(position.0);
        }
        more
    }

    /// Takes no more reservations. Returns where the last one ends.
    pub(crate) fn close(&self) -> Position {
        Position(self.ring.claims.close())
    }

    /// The first record at or after `from` that is no pad, and was taken.
    pub(crate) fn record(&self, mut from: Position) -> Option<Own<'_>> {
        while from.0 < self.taken {
            let place = self.ring.place(from.0);
            let header = Header::parse(self.ring.segment.load(place))?;
            let end = Position(from.0 + header.size() as u64);
            if header.kind != Kind::Pad {
                let (mut bytes, mut to) = (place + HEADER..place + HEADER + header.len, None);
                if header.kind == Kind::Addressed {
                    to = Some(RankSet(self.ring.segment.load(bytes.start)));
                    bytes.start += ADDRESS;
                }
                // SAFETY: the record was taken, so its sender is done with it, and it isn't reused while the caller
                // holds it: only this owner releases room, and it is borrowed.
                let payload = unsafe { self.ring.segment.bytes(bytes) };
                return Some(Own { kind: header.kind, end, to, payload });
            }
            from = end;
        }
        None
    }
}

impl fmt::Debug for RingSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RingSender({} bytes)", self.ring.claims.size)
    }
}

impl<H: Deref<Target = RingSender>> fmt::Debug for Reservation<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reservation({} bytes at {})", self.room.len(), self.room.start)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn ring(size: usize) -> (RingOwner, RingSender) {
        let owner = RingOwner::new(Segment::private(size), 0, size);
        let sender = owner.sender();
        (owner, sender)
    }

    fn send(sender: &RingSender, bytes: &[u8]) -> Result<Ticket, ReserveError> {
        let mut room = sender.try_reserve(bytes.len())?;
        room.copy_from_slice(bytes);
        Ok(room.send())
    }

    // D2, D3: contiguous records in order, whatever the order of the commits; nothing overwritten when full (D11).
    #[test]
    fn records_are_taken_in_the_rings_order() {
        let (mut owner, sender) = ring(4096);
        let first = sender.try_reserve(5).unwrap();
        let second = send(&sender, b"second").unwrap();
        assert!(!owner.take(1), "the first is not committed yet, so nothing after it goes out");
        let first = first.send();
        assert!(first < second && owner.take(7) && owner.taken() == second.0);
        assert_eq!(owner.parts(Position(0)..owner.taken()), [0..32, 0..0]);
        let header = Header::parse(owner.ring.segment.load(0)).unwrap();
        assert_eq!(header, Header { len: 5, kind: Kind::Data, round: 7 });
    }

    fn send_batched(batch: &mut Batch<'_>, bytes: &[u8], more: usize) -> Result<Ticket, ReserveError> {
        batch.send(bytes.len(), more, |room| room.copy_from_slice(bytes))
    }

    /// Payloads of all that was taken since `from`, and the lengths of pads.
    fn taken(owner: &RingOwner, mut from: u64) -> Vec<Result<Vec<u8>, usize>> {
        let mut all = Vec::new();
        while from < owner.taken().0 {
            let place = owner.ring.place(from);
            let Some(header) = Header::parse(owner.ring.segment.load(place)) else {
                panic!("no header at {from}")
            };
            from += header.size() as u64;
            // SAFETY: it was taken, and is not released.
            let payload = unsafe { owner.ring.segment.bytes(place + HEADER..place + HEADER + header.len) };
            all.push(if header.kind == Kind::Pad { Err(header.size()) } else { Ok(payload.to_vec()) });
        }
        all
    }

    #[test]
    fn a_batch_gives_back_what_it_has_not_used() {
        let (mut owner, sender) = ring(4096);
        let mut batch = sender.batch();
        assert_eq!(send_batched(&mut batch, b"one", 9), Ok(Ticket(Position(16))));
        assert!(owner.take(0), "the engine need not wait for the rest");
        assert_eq!(send_batched(&mut batch, b"the second", 8), Ok(Ticket(Position(40))));
        drop(batch);
        assert_eq!(send(&sender, b"next"), Ok(Ticket(Position(56))), "right behind");
        assert!(owner.take(0));
        assert_eq!(taken(&owner, 0), [&b"one"[..], b"the second", b"next"].map(|bytes| Ok(bytes.to_vec())));
    }

    #[test]
    fn what_a_batch_cannot_give_back_is_a_pad() {
        let (mut owner, sender) = ring(4096);
        let mut batch = sender.batch();
        send_batched(&mut batch, b"one", 2).unwrap();
        assert_eq!(send(&sender, b"other"), Ok(Ticket(Position(64))), "behind three of the first");
        // Longer than what is left: that is given up, and there is more behind the other's.
        assert_eq!(send_batched(&mut batch, &[7; 32], 0), Ok(Ticket(Position(104))));
        drop(batch);
        assert!(owner.take(0));
        let all = [Ok(b"one".to_vec()), Err(32), Ok(b"other".to_vec()), Ok(vec![7; 32])];
        assert_eq!(taken(&owner, 0), all);
    }

    #[test]
    fn a_batch_takes_what_room_there_is() {
        let (mut owner, sender) = ring(4096);
        let mut batch = sender.batch();
        let sent = (0..9).take_while(|_| send_batched(&mut batch, &[1; 1000], 99).is_ok()).count();
        assert_eq!(sent, 4, "4 × 1,008 bytes fit in 4,096");
        assert_eq!(send_batched(&mut batch, &[1; 1000], 0), Err(ReserveError::Full));
        assert_eq!(send_batched(&mut batch, b"64", 0), Ok(Ticket(Position(4048))), "what is shorter fits");
        assert!(owner.take(0) && owner.wants_room());
        owner.release(Position(2016));
        // A pad at the ring's end, and then as many as there is room for.
        assert_eq!(send_batched(&mut batch, &[2; 1000], 99), Ok(Ticket(Position(4096 + 1008))));
        assert_eq!(send_batched(&mut batch, &[2; 1000], 99), Ok(Ticket(Position(4096 + 2016))));
        assert_eq!(send_batched(&mut batch, &[2; 1000], 99), Err(ReserveError::Full));
        let max = sender.max_len();
        let too_long = batch.send(max + 1, 0, |_| unreachable!());
        assert_eq!(too_long, Err(ReserveError::TooLong { len: max + 1, max }));
        drop(batch);
        assert!(owner.take(0));
        let lengths: Vec<_> =
            taken(&owner, 4032).iter().map(|one| one.as_ref().map_or(0, Vec::len)).collect();
        assert_eq!(lengths, [2, 0, 1000, 1000]);
        owner.release(owner.taken());
        let mut batch = sender.batch();
        assert!(
            send_batched(&mut batch, &vec![3; max], usize::MAX).is_ok(),
            "one of the longest is a batch, too"
        );
    }

    #[test]
    fn a_panic_amid_a_batch_stops_nobody() {
        for before in [0, 1] {
            let (mut owner, sender) = ring(4096);
            let panics = std::panic::AssertUnwindSafe(|| {
                let mut batch = sender.batch();
                for _ in 0..before {
                    send_batched(&mut batch, b"one", 5).unwrap();
                }
                let _ = batch.send(3, 5, |_| std::panic::panic_any("the application's"));
            });
            assert!(std::panic::catch_unwind(panics).is_err());
            send(&sender, b"next").unwrap();
            assert!(owner.take(0));
            assert_eq!(taken(&owner, 0).last(), Some(&Ok(b"next".to_vec())));
            assert_eq!(
                taken(&owner, 0).len(),
                2,
                "the one before, or a pad: who was refused meanwhile waits for its release"
            );
        }
    }

    #[test]
    fn a_batch_ends_with_its_ring() {
        let (mut owner, sender) = ring(4096);
        let mut batch = sender.batch();
        send_batched(&mut batch, b"one", 1).unwrap();
        let end = owner.close();
        assert_eq!(end, Position(32), "two were claimed");
        send_batched(&mut batch, b"two", 1).unwrap();
        assert_eq!(send_batched(&mut batch, b"three", 1), Err(ReserveError::Closed));
        drop(batch);
        assert!(owner.take(0) && owner.taken() == end);
        let (mut owner, sender) = ring(4096);
        let mut batch = sender.batch();
        send_batched(&mut batch, b"one", 9).unwrap();
        let end = owner.close();
        drop(batch);
        assert!(owner.take(0) && owner.taken() == end, "the rest is a pad: it can't be given back any more");
    }

    #[test]
    fn a_full_ring_refuses_and_a_wrap_leaves_a_pad() {
        let (mut owner, sender) = ring(4096);
        let mut sent = 0;
        while send(&sender, &[7; 1000]).is_ok() {
            sent += 1;
        }
        assert_eq!(sent, 4, "4 × 1,008 bytes fit in 4,096");
        assert!(owner.take(0) && owner.wants_room());
        owner.release(Position(1008));
        assert_eq!(send(&sender, &[8; 1008]).unwrap_err(), ReserveError::Full, "the pad needs room too");
        let ticket = send(&sender, &[8; 1000]).unwrap();
        assert_eq!(ticket.0, Position(4096 + 1008));
        assert!(owner.take(0));
        assert_eq!(owner.parts(Position(4032)..owner.taken()), [4032..4096, 0..1008]);
        assert_eq!(Header::parse(owner.ring.segment.load(4032)).unwrap().kind, Kind::Pad);
    }

    #[test]
    fn the_longest_message_always_fits_an_empty_ring() {
        for first in [0, 8, 1000, 2040] {
            let (mut owner, sender) = ring(4096);
            send(&sender, &vec![0; first]).unwrap();
            assert!(owner.take(0));
            owner.release(owner.taken());
            send(&sender, &vec![1; sender.max_len()]).unwrap();
        }
        let (_, sender) = ring(4096);
        let max = sender.max_len();
        assert_eq!(sender.try_reserve(max + 1).unwrap_err(), ReserveError::TooLong { len: max + 1, max });
    }

    #[test]
    fn an_empty_ring_that_refuses_asks_for_room() {
        let (mut owner, sender) = ring(4096);
        send(&sender, &[0; 1500]).unwrap();
        assert!(owner.take(0) && !owner.wants_room());
        send(&sender, &[0; 500]).unwrap();
        send(&sender, &[0; 500]).unwrap();
        assert_eq!(send(&sender, &[0; 2000]).unwrap_err(), ReserveError::Full);
        assert!(owner.wants_room());
    }

    #[test]
    fn a_reservation_given_up_is_a_pad() {
        let (mut owner, sender) = ring(4096);
        drop(sender.try_reserve(100).unwrap());
        assert!(owner.take(0));
        assert_eq!(Header::parse(owner.ring.segment.load(0)).unwrap().kind, Kind::Pad);
    }

    /// A reservation outlives the place where its ring was found: the view changed meanwhile.
    #[test]
    fn a_reservation_keeps_its_ring() {
        let (mut owner, sender) = ring(4096);
        let mut current = Arc::new(sender);
        let mut room = try_reserve(current.clone(), 3).unwrap();
        let (next, sender) = ring(4096);
        current = Arc::new(sender);
        assert!(owner.close().0 == 16 && !owner.take(0));
        room.copy_from_slice(b"old");
        let ring = Arc::downgrade(&room.handle);
        assert_eq!(room.send(), Ticket(Position(16)));
        assert!(ring.upgrade().is_none(), "the handle is given up with it");
        assert!(owner.take(0) && !next.ready());
        assert_eq!(owner.record(Position(0)).unwrap().payload, b"old");
        next.close();
        let (current, error) = try_reserve(current, 3).unwrap_err();
        assert_eq!((error, current.max_len()), (ReserveError::Closed, 2040));
    }

    /// Leads to one ring at first, then to another.
    struct Astray(std::cell::Cell<bool>, [RingSender; 2]);

    impl Deref for Astray {
        type Target = RingSender;

        fn deref(&self) -> &RingSender {
            &self.1[usize::from(self.0.get())]
        }
    }

    #[test]
    fn a_handle_that_goes_astray_is_found_out() {
        let handle = Astray(false.into(), [ring(4096).1, ring(4096).1]);
        let room = try_reserve(handle, 3).map_err(|(_, error)| error).unwrap();
        room.handle.0.set(true);
        let bytes = std::panic::AssertUnwindSafe(|| room.len());
        assert!(std::panic::catch_unwind(bytes).is_err(), "lent from another ring");
        room.handle.0.set(false);
        assert_eq!(room.len(), 3);
    }

    #[test]
    fn a_closed_ring_takes_nothing_more() {
        let (owner, sender) = ring(4096);
        owner.close();
        assert_eq!(sender.try_reserve(1).unwrap_err(), ReserveError::Closed);
    }

    #[test]
    fn threads_share_a_ring() {
        let (mut owner, sender) = ring(4096);
        let each = if cfg!(miri) { 30 } else { 20_000u64 };
        let threads = 3;
        let mut next = [0u64; 3];
        let mut seen = 0;
        std::thread::scope(|scope| {
            for thread in 0..threads {
                let sender = sender.clone();
                scope.spawn(move || {
                    if thread == 0 {
                        let (mut batch, mut count) = (sender.batch(), 0);
                        while count < each {
                            let sent = batch.send(16, 5, |room| {
                                room[..8].copy_from_slice(&0_u64.to_le_bytes());
                                room[8..].copy_from_slice(&count.to_le_bytes());
                            });
                            match sent {
                                Ok(_) => count += 1,
                                Err(ReserveError::Full) => std::thread::yield_now(),
                                Err(other) => panic!("{other}"),
                            }
                        }
                        return;
                    }
                    for count in 0..each {
                        let mut room = loop {
                            match sender.try_reserve(16) {
                                Ok(room) => break room,
                                Err(ReserveError::Full) => std::thread::yield_now(),
                                Err(other) => panic!("{other}"),
                            }
                        };
                        room[..8].copy_from_slice(&(thread as u64).to_le_bytes());
                        room[8..].copy_from_slice(&count.to_le_bytes());
                        room.send();
                    }
                });
            }
            while seen < each * threads as u64 {
                let from = owner.taken();
                if !owner.take(0) {
                    std::thread::yield_now();
                }
                let mut at = from.0;
                while at < owner.taken().0 {
                    let place = owner.ring.place(at);
                    let header = Header::parse(owner.ring.segment.load(place)).unwrap();
                    if header.kind == Kind::Data {
                        let word = |k: usize| owner.ring.segment.load(place + 8 * k).to_le() as usize;
                        assert_eq!(word(2) as u64, next[word(1)], "each thread's messages stay in its order");
                        next[word(1)] += 1;
                        seen += 1;
                    }
                    at += header.size() as u64;
                }
                owner.release(owner.taken());
            }
        });
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use loom::cell::UnsafeCell;

    use super::*;

    const SIZE: usize = 32;

    /// The ring's bytes, as cells in which loom sees two threads at once.
    struct Cells(Vec<UnsafeCell<u64>>);

    impl Cells {
        fn new() -> Self {
            Self((0..SIZE / 8).map(|_| UnsafeCell::new(0)).collect())
        }

        fn write(&self, position: u64, value: u64) {
            for cell in &self.0[position as usize % SIZE / 8..][..2] {
                cell.with_mut(|p| {
                    // SAFETY: loom reports it if anyone else has the cell.
                    unsafe { *p = value };
                });
            }
        }

        fn read(&self, position: u64) -> [u64; 2] {
            let at = position as usize % SIZE / 8;
            [at, at + 1].map(|cell| {
                self.0[cell].with(|p| {
                    // SAFETY: loom reports it if anyone writes the cell.
                    unsafe { *p }
                })
            })
        }
    }

    /// Takes and releases what is committed, as the engine does; returns up to where.
    fn drain(claims: &Claims, cells: &Cells, mut taken: u64) -> u64 {
        while claims.take(taken) {
            let [a, b] = cells.read(taken);
            assert!(a == b && a != 0, "a record was torn: {a} {b}");
            taken += 16;
            claims.release(taken);
        }
        taken
    }

    /// D3, D11: two threads reserve, write and commit in a ring of two records that is in its second lap for one of them,
    /// while the engine takes and releases. Loom tries the schedules (up to three preemptions) and every outcome
    /// that the memory model allows, and reports a byte touched by two at once.
    #[test]
    fn loom_reservations_never_overlap_and_arrive_whole() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            let claims = Arc::new(Claims::new(SIZE));
            let cells = Arc::new(Cells::new());
            let sender = |name: u64, messages: u64| {
                let (claims, cells) = (claims.clone(), cells.clone());
                move || {
                    let mut sent = 0;
                    for _ in 0..messages {
                        if let Ok(claim) = claims.claim(16) {
                            cells.write(claim.start, name);
                            claims.commit(claim.start);
                            sent += 1;
                        }
                    }
                    sent
                }
            };
            let threads = [loom::thread::spawn(sender(1, 2)), loom::thread::spawn(sender(2, 1))];
            let taken = drain(&claims, &cells, 0);
            let sent: u64 = threads.into_iter().map(|t| t.join().unwrap()).sum();
            assert_eq!(drain(&claims, &cells, taken), sent * 16, "everything committed is taken");
        });
    }

    /// The same, of one thread that claims for two messages, sends one, and gives the rest back or leaves a pad there.
    #[test]
    fn loom_a_batch_and_a_reservation_never_overlap() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            let claims = Arc::new(Claims::new(SIZE));
            let cells = Arc::new(Cells::new());
            let (many, bytes) = (claims.clone(), cells.clone());
            let batch = loom::thread::spawn(move || {
                let Ok(claim) = many.claim_many(16, 2) else { return 0 };
                let half = claim.start + 16;
                bytes.write(claim.start, 1);
                many.commit(claim.start);
                if claim.end > half {
                    bytes.write(half, 3); // and thinks better of it
                }
                if claim.end == half || many.give_back(half, claim.end) {
                    return 1;
                }
                bytes.write(half, 1);
                many.commit(half);
                2
            });
            let (one, bytes) = (claims.clone(), cells.clone());
            let reservation = loom::thread::spawn(move || {
                let mut sent = 0;
                for _ in 0..2 {
                    if let Ok(claim) = one.claim(16) {
                        bytes.write(claim.start, 2);
                        one.commit(claim.start);
                        sent += 1;
                    }
                }
                sent
            });
            let taken = drain(&claims, &cells, 0);
            let sent: u64 = batch.join().unwrap() + reservation.join().unwrap();
            assert_eq!(drain(&claims, &cells, taken), sent * 16, "everything committed is taken");
        });
    }

    /// D1, D2: whoever reads a head has the bytes that it covers; a release read is a place that the reader left.
    #[test]
    fn loom_a_head_vouches_for_its_bytes() {
        loom::model(|| {
            let row = crate::memory::Segment::private(64);
            let mirror = row.mirror();
            let answers = crate::memory::Segment::private(64);
            let released = answers.mirror();
            let cells = Arc::new(Cells::new());
            let bytes = cells.clone();
            let sender = loom::thread::spawn(move || {
                bytes.write(0, 1);
                row.store(0, 16);
                // One lap later: the same place, if the reader left it.
                if released.load(0) == 16 {
                    bytes.write(0, 2);
                    row.store(0, 48);
                }
            });
            for _ in 0..2 {
                match mirror.load(0) {
                    16 => assert_eq!(cells.read(0), [1, 1]),
                    48 => assert_eq!(cells.read(0), [2, 2]),
                    _ => continue,
                }
                answers.store(0, 16);
                break;
            }
            sender.join().unwrap();
        });
    }

    /// F3: whoever goes to sleep and whoever brings work: one of the two sees the other.
    #[test]
    fn loom_a_bell_is_never_missed() {
        loom::model(|| {
            let woken = Arc::new(AtomicBool::new(false));
            let work = Arc::new(AtomicBool::new(false));
            let rung = woken.clone();
            // The flag stands for a wake-up that stays until the sleeper sees it, as an eventfd does.
            let bell = crate::fabric::Doorbell::new(move || rung.store(true, Ordering::SeqCst));
            let (ringer, done) = (bell.clone(), work.clone());
            let thread = loom::thread::spawn(move || {
                done.store(true, Ordering::Relaxed);
                ringer.ring();
            });
            bell.announce();
            let sees = work.load(Ordering::Relaxed);
            thread.join().unwrap();
            assert!(sees || woken.load(Ordering::SeqCst), "asleep with work to do");
        });
    }
}
