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

    fn mark(&self, position: u64) -> &AtomicU8 {
        &self.marks[((position & (self.size - 1)) / WORD as u64) as usize]
    }

    /// Takes `need` contiguous bytes, at most half the ring.
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
            match self.tail.compare_exchange_weak(tail, end, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Ok(Claim { start: tail, pad, end }),
                Err(now) => tail = now,
            }
        }
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
    fn place(&self, position: u64) -> usize {
        self.start + (position & (self.claims.size - 1)) as usize
    }

    fn put(&self, position: u64, kind: Kind, len: usize) {
        // The engine stamps the round when it takes the record (D4).
        self.segment.store(self.place(position), Header { len, kind, round: 0 }.word());
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

/// What a reservation has of its ring.
#[derive(Clone, Copy)]
struct Room {
    /// The ring's number.
    number: u64,
    /// Where the record starts and ends.
    start: u64,
    end: u64,
    /// Where its payload is in the segment.
    payload: usize,
    len: usize,
    /// It is for some of the members: whom, stands before the payload.
    addressed: bool,
}

/// Lends room for `len` bytes (with whatever bytes are there) in the ring that `handle` leads to, which the reservation
/// keeps. Never blocks.
///
/// # Errors
/// As [`RingSender::try_reserve`]; the handle is given back.
#[inline]
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
    pub fn try_reserve(&self, len: usize) -> Result<Reservation<&Self>, ReserveError> {
        Ok(Reservation { handle: self, room: self.try_claim(len)? })
    }

    #[inline]
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
        let payload = ring.place(start) + HEADER;
        Ok(Room { number: ring.number, start, end: claim.end, payload, len, addressed: false })
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
        self.ring.segment.store(room.payload, to.0);
        (room.payload, room.len, room.addressed) = (room.payload + ADDRESS, len, true);
        Ok(room)
    }

    /// Multicasts that this node sends nothing more in this session ([`Kind::End`]). Nothing stops it from sending all
    /// the same; the members only learn that it need not be waited for.
    ///
    /// # Errors
    /// As [`RingSender::try_reserve`].
    pub fn try_end(&self) -> Result<Ticket, ReserveError> {
        Ok(self.try_reserve(0)?.commit(Kind::End).0)
    }
}

impl<H: Deref<Target = RingSender>> Reservation<H> {
    /// Commits the message: the engine multicasts it with its next step. Wake the engine if it may sleep
    /// ([`crate::fabric::Doorbell::ring`]).
    #[inline]
    pub fn send(self) -> Ticket {
        self.commit(Kind::Data).0
    }

    /// As [`Reservation::send`], and gives back what it held its ring by.
    #[inline]
    pub fn send_back(self) -> (Ticket, H) {
        self.commit(Kind::Data)
    }

    /// What it holds its ring by.
    pub fn handle(&self) -> &H {
        &self.handle
    }

    #[inline]
    fn commit(self, kind: Kind) -> (Ticket, H) {
        // Dropping it would make it a pad.
        let sent = ManuallyDrop::new(self);
        let Room { start, len, addressed, .. } = sent.room;
        let (kind, len) = if addressed { (Kind::Addressed, len + ADDRESS) } else { (kind, len) };
        sent.ring().put(start, kind, len);
        let ticket = Ticket(Position(sent.room.end));
        // SAFETY: `sent` is neither used nor dropped after this, so the handle has one owner as before.
        (ticket, unsafe { ptr::read(&raw const sent.handle) })
    }

    /// The ring in which the claim was made. A handle that leads elsewhere by now is a bug of its author, and would lend
    /// bytes that are somebody else's.
    fn ring(&self) -> &Ring {
        let ring = &*self.handle.ring;
        assert!(ring.number == self.room.number, "a reservation's handle leads to another ring than before");
        ring
    }

    fn range(&self) -> Range<usize> {
        self.room.payload..self.room.payload + self.room.len
    }
}

impl<H: Deref<Target = RingSender>> Drop for Reservation<H> {
    fn drop(&mut self) {
        let address = if self.room.addressed { ADDRESS } else { 0 };
        self.ring().put(self.room.start, Kind::Pad, self.room.len + address);
    }
}

impl<H: Deref<Target = RingSender>> Deref for Reservation<H> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the claim is this reservation's alone until it is committed, `ring` checked that it is the claim's, and
        // it is borrowed for reading.
        unsafe { self.ring().segment.bytes(self.range()) }
    }
}

impl<H: Deref<Target = RingSender>> DerefMut for Reservation<H> {
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
        write!(f, "Reservation({} bytes at {})", self.room.len, self.room.start)
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
