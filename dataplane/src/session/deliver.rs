//! Delivery: the records that are here, in their order, as far as the guarantee lets them go (D6, D7, D8), and the
//! release of their room (D10, D11).
//!
//! Senders are merged by [`Key`]. The merge works in runs: the sender with the least key delivers until another sender's
//! record comes first, until a record isn't ordered yet, or to the end of what is stable: a record costs one
//! header read and two comparisons.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::ops::Range;

use super::durable::{Due, SENT};
use super::{Blame, Cold, Fault, Held, Session, Stream, rank_at};
use crate::fabric::Fabric;
use crate::layout::unwrap;
use crate::loan::{Loan, Loans};
use crate::memory::Mirror;
use crate::names::{NodeId, Position, Rank, RankSet, Round, Seq, ViewId};
use crate::order::{Key, Least};
use crate::record::{ADDRESS, HEADER, Header, Kind};
use crate::ring::Ticket;

/// How far before what is delivered the processor is asked for the bytes, which another one has written.
const AHEAD: u64 = 1024;

/// Where deliveries go.
pub trait Sink {
    /// A message is due. The payload is lent for the call; [`Delivery::lend`] keeps it longer.
    fn deliver(&mut self, delivery: &mut Delivery<'_>) -> Verdict;

    /// In a durable session: a message has its place in the order, and is to be written down. It is delivered later, with the stamp that this
    /// returns. `None`: not now, as with [`Verdict::Later`].
    fn log(&mut self, _logged: &Logged<'_>) -> Option<u64> {
        Some(0)
    }

    /// In a durable session: every member has flushed a message that was delivered (P2).
    fn flushed(&mut self, _flushed: &Flushed) {}
}

impl<F: FnMut(&mut Delivery<'_>) -> Verdict> Sink for F {
    fn deliver(&mut self, delivery: &mut Delivery<'_>) -> Verdict {
        self(delivery)
    }
}

/// A message that is to be written down (P1), in ring memory: it stays as it is there until it is delivered.
pub struct Logged<'a> {
    /// The session's view.
    pub view: ViewId,
    /// The message's place in the session's order.
    pub seq: Seq,
    /// The sender,
    pub sender: NodeId,
    /// which is this node.
    pub is_own: bool,
    /// When it was sent, by the sender's clock: nanoseconds since 1970.
    pub sent: u64,
    /// The message,
    pub payload: &'a [u8],
    /// and where it lies: at this range of this memory.
    pub memory: &'a Mirror,
    /// As above.
    pub range: Range<usize>,
}

/// A delivered message that every member has flushed.
#[derive(Clone, Copy, Debug)]
pub struct Flushed {
    /// The session's view.
    pub view: ViewId,
    /// The message's place in the session's order.
    pub seq: Seq,
    /// Which of this node's sends it is; `None` for other senders'.
    pub ticket: Option<Ticket>,
    /// As [`Delivery::place`]; nothing lies there any more when somebody reads it.
    pub place: *const u8,
}

/// What became of a delivery.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It is delivered.
    Taken,
    /// Not now: nothing further is delivered in this step, and the next one offers the same message again. While it
    /// lasts the senders' rings fill up and they wait (D11).
    Later,
}

/// A message that is due, in ring memory; or one that another member delivered, for a node that comes to know of it later
/// ([`Delivery::of_another`]).
pub struct Delivery<'a> {
    /// The session's view.
    pub view: ViewId,
    /// The message's place in the session's order, the same at all members; meaningless under `Fifo`, where it counts
    /// what this member delivered. An [`Kind::End`] takes no place: it has that of the next message.
    pub seq: Seq,
    /// The sender's rank.
    pub rank: Rank,
    /// The sender.
    pub sender: NodeId,
    /// [`Kind::Data`] or [`Kind::End`]; or [`Kind::Addressed`] for a message that is not for this member (D12): it has its place in the
    /// order and no payload here.
    pub kind: Kind,
    /// Those whom it is for, if not for all.
    pub to: Option<RankSet>,
    /// Which of this node's sends it is; `None` for other senders'.
    pub ticket: Option<Ticket>,
    /// In a durable session: its stamp in the log, the same at all members; else 0.
    pub stamp: u64,
    /// The message.
    pub payload: &'a [u8],
    range: Range<usize>,
    /// None where the payload lies in no ring of this node.
    loans: Option<&'a mut Loans>,
    lent: Option<u64>,
}

impl<'a> Delivery<'a> {
    /// What another member delivered, with a payload that lies wherever it lies; [`Delivery::lend`] copies it.
    pub fn of_another(view: ViewId, seq: Seq, (rank, sender): (Rank, NodeId), payload: &'a [u8]) -> Self {
        let (kind, range) = (Kind::Data, 0..payload.len());
        Self {
            view,
            seq,
            rank,
            sender,
            kind,
            to: None,
            ticket: None,
            stamp: 0,
            payload,
            range,
            loans: None,
            lent: None,
        }
    }
}

impl Delivery<'_> {
    /// Where the record's payload begins in the ring: what its sender was lent to write to.
    pub fn place(&self) -> *const u8 {
        let is_dated = self.stamp != 0 && self.kind == Kind::Data;
        self.payload.as_ptr().wrapping_sub(if is_dated { SENT } else { 0 })
    }
}

impl Delivery<'_> {
    /// Keeps the payload where it is past the call, without a copy. The sender can't reuse the room, nor any that was
    /// delivered after it, until the loan is dropped. `None` when [`crate::loan::MAX_LOANS`] are out, or when called
    /// twice: answer [`Verdict::Later`], or copy.
    pub fn lend(&mut self) -> Option<Loan> {
        if self.lent.is_some() {
            return None;
        }
        let Some(loans) = &mut self.loans else { return Some(Loan::copied(self.payload)) };
        // SAFETY: the range was received (its head was read) and lies in this sender's ring (checked when its header was
        // read); `Session::run` records the loan and releases nothing at or after it before it is back.
        let (loan, number) = unsafe { loans.lend(self.rank.0, self.range.clone()) }?;
        self.lent = Some(number);
        Some(loan)
    }
}

/// A record that was looked at and not delivered yet.
#[derive(Clone, Copy)]
pub(super) struct Next {
    key: Key,
    pub(super) kind: Kind,
    len: usize,
    pub(super) end: Position,
}

/// What all records of a session keep to.
#[derive(Clone, Copy)]
struct Rules {
    /// Bytes of a ring.
    ring: u64,
    /// A message begins with its sender's clock.
    dated: bool,
    /// Messages may be for some members only (D12).
    addresses: bool,
}

impl Stream {
    /// Reads headers from `at` on until one is a record's; `None` if there is none below `end`. Pads are passed over.
    #[inline]
    fn look(
        &mut self,
        rank: usize,
        end: Position,
        rules: Rules,
        passed_pads: &mut bool,
    ) -> Result<Option<Next>, Blame> {
        while self.at < end {
            let place = self.at.0 & (rules.ring - 1);
            // S1: one read into a local, then all checks on that.
            let word = self.memory.load(self.ring + place as usize);
            let sound = Header::parse(word).and_then(|header| {
                let end = Position(self.at.0 + header.size() as u64);
                let round = unwrap(self.round.0, header.round, (1 << 31) - 1).map(Round)?;
                let fits = end <= self.received && place + header.size() as u64 <= rules.ring;
                let may_be = match header.kind {
                    Kind::Data => header.len >= SENT || !rules.dated,
                    Kind::Addressed => rules.addresses,
                    _ => true,
                };
                (fits && may_be && round < self.heard).then_some((header, end, round))
            });
            let Some((header, end, round)) = sound else {
                return Err(Blame::Record { at: self.at, word });
            };
            self.round = round;
            if header.kind != Kind::Pad {
                return Ok(Some(Next {
                    key: Key::new(round, rank),
                    kind: header.kind,
                    len: header.len,
                    end,
                }));
            }
            self.at = end;
            *passed_pads = true;
        }
        Ok(None)
    }
}

/// Whether what was delivered has a place in the order: so have all messages, whomever they are for (D12).
fn has_place(kind: Kind) -> bool {
    kind != Kind::End
}

/// Remembers that what was delivered up to `end` can't be released before a loan, its own or an earlier one, is back.
fn hold(held: &mut VecDeque<Held>, rank: usize, upto: Position, loan: Option<u64>) {
    match held.back_mut() {
        Some(Held { rank: last, end, loan: None }) if loan.is_none() && *last == rank => *end = upto,
        _ => held.push_back(Held { rank, end: upto, loan }),
    }
}

impl Session {
    /// The second half of a step: delivers what is due and releases it.
    ///
    /// # Errors
    /// As [`Session::step`].
    pub fn deliver<F: Fabric + ?Sized>(
        &mut self,
        fabric: &mut F,
        sink: &mut dyn Sink,
    ) -> Result<bool, Fault> {
        if self.is_wedged() {
            return Ok(false);
        }
        let mut delivered = self.deliver_due(None, sink)?;
        if self.plan.guarantee.durable() {
            self.look_for_persisted()?;
            delivered |= self.deliver_durable(sink);
        }
        let back = self.take_back_loans();
        // D11: what nobody gets takes room like any message.
        let passed = std::mem::take(&mut self.passed_pads);
        if delivered || back || passed {
            self.release(fabric);
        }
        Ok(delivered || back || passed)
    }

    /// Delivers exactly what lies below `trim`, in order, in a wedged session (V4). Returns whether that is done. If not,
    /// call again, with the same trim: the sink said [`Verdict::Later`], or something below the trim never came here, and
    /// nothing is delivered before [`Session::supply`] has brought all of it.
    ///
    /// # Errors
    /// A dead or fenced member left a record that no sound member writes: nothing from there on can be delivered.
    pub fn cut(&mut self, trim: &[Position], sink: &mut dyn Sink) -> Result<bool, Fault> {
        debug_assert!(self.is_wedged() && trim.len() == self.streams.len());
        self.take_back_loans();
        if self.streams.iter().zip(trim).any(|(stream, trim)| stream.received < *trim) {
            return Ok(false);
        }
        self.deliver_due(Some(trim), sink)?;
        let is_passed = self.streams.iter().zip(trim).all(|(stream, trim)| stream.at >= *trim);
        if self.plan.guarantee.durable() {
            self.durable.is_logged = is_passed;
            self.deliver_durable(sink);
        }
        self.is_cut = is_passed && self.durable.is_empty();
        Ok(self.is_cut)
    }

    /// The first half of [`Session::cut`], in a durable session: hands what lies below the trim to the log, and delivers nothing.
    ///
    /// # Errors
    /// As there.
    pub fn log_below(&mut self, trim: &[Position], sink: &mut dyn Sink) -> Result<bool, Fault> {
        debug_assert!(self.is_wedged() && trim.len() == self.streams.len());
        if self.streams.iter().zip(trim).any(|(stream, trim)| stream.received < *trim) {
            return Ok(false);
        }
        let any = self.deliver_due(Some(trim), sink)?;
        self.durable.is_logged = self.streams.iter().zip(trim).all(|(stream, trim)| stream.at >= *trim);
        Ok(any)
    }

    /// Delivers runs until nothing is due. With `trim`, everything below it is due.
    fn deliver_due(&mut self, trim: Option<&[Position]>, sink: &mut dyn Sink) -> Result<bool, Cold> {
        if self.pending == 0 {
            return Ok(false);
        }
        if trim.is_none() && !self.plan.guarantee.ordered() {
            return self.deliver_unordered(sink);
        }
        let mut promises = Least::NONE;
        if trim.is_none() {
            for (rank, stream) in self.streams.iter().enumerate() {
                promises.add(Key::new(stream.promise, rank));
            }
        }
        let mut any = false;
        loop {
            let mut records = Least::NONE;
            let mut pending = self.pending;
            while pending != 0 {
                let rank = pending.trailing_zeros() as usize;
                pending &= pending - 1;
                let end = trim.map_or(self.streams[rank].received, |trim| trim[rank]);
                if let Some(next) = self.peek(rank, end)? {
                    records.add(next.key);
                }
            }
            if records.first == Key::NEVER {
                return Ok(any);
            }
            let rank = records.first.rank();
            let (limit, end) = match trim {
                Some(trim) => (Key::NEVER, trim[rank]),
                None => (self.ordered_below(promises, rank), self.deliverable(rank)?),
            };
            let mut ran = self.run(rank, limit.min(records.second), end, sink)?;
            if !ran.any && !ran.refused && self.defers && trim.is_none() {
                ran = self.run_as_told(rank, records.second, sink)?;
            }
            any |= ran.any;
            self.owes |= ran.any && self.defers && rank == self.me;
            if ran.refused || !ran.any {
                return Ok(any);
            }
        }
    }

    /// Delivers `rank`'s records, which come first of what is here, as far as another member says to have delivered the order.
    fn run_as_told(&mut self, rank: usize, limit: Key, sink: &mut dyn Sink) -> Result<Run, Cold> {
        let mut told = self.seq;
        for at in 0..self.peers.len() {
            let peer = &mut self.peers[at];
            let (from, to) = (peer.delivered, Seq(peer.mirror.load(peer.base + self.layout.delivered())));
            // S1: monotone. More can't be checked, as with what it received of others' rings; and no more is delivered here than there is.
            if to < from {
                return Err(self.blame(self.peers[at].rank, Blame::Delivered { from, to }));
            }
            peer.delivered = to;
            told = told.max(to);
        }
        if told == self.seq {
            return Ok(Run::default());
        }
        #[cfg(feature = "mutants")]
        let told = if self.mutant == Some(super::Mutant::ToldTooMuch) { Seq(u64::MAX) } else { told };
        let end = self.end_of(told.0 - self.seq.0, rank);
        let ran = self.run(rank, limit, end, sink)?;
        let stream = &mut self.streams[rank];
        stream.stable = stream.stable.max(stream.at);
        Ok(ran)
    }

    /// Where so many of `rank`'s messages end that are due next, or all that are here if those are fewer.
    fn end_of(&self, messages: u64, rank: usize) -> Position {
        let stream = &self.streams[rank];
        let (mut at, mut left) = (stream.at, messages);
        while left > 0 && at < stream.received {
            let place = at.0 & (self.plan.ring_bytes as u64 - 1);
            // S1: what is no header ends it; all else about these records is checked where they are delivered.
            let Some(header) = Header::parse(stream.memory.load(stream.ring + place as usize)) else { break };
            left -= u64::from(matches!(header.kind, Kind::Data | Kind::Addressed));
            at.0 += header.size() as u64;
        }
        at.min(stream.received)
    }

    /// `Fifo`: every sender's records go as far as they are here.
    fn deliver_unordered(&mut self, sink: &mut dyn Sink) -> Result<bool, Cold> {
        let mut any = false;
        for rank in 0..self.streams.len() {
            any |= self.run(rank, Key::NEVER, self.streams[rank].received, sink)?.any;
        }
        Ok(any)
    }

    /// Below this key `rank`'s records are ordered (D6), given what all members promised.
    fn ordered_below(&self, promises: Least, rank: usize) -> Key {
        #[cfg(feature = "mutants")]
        if self.mutant == Some(super::Mutant::NoTieBreak) {
            let limit = promises.but(rank);
            return if limit == Key::NEVER { limit } else { Key::new(Round(limit.round().0 + 1), 0) };
        }
        promises.but(rank)
    }

    /// Up to where a sender's records may be delivered, apart from the order: what is stable (D7), or received.
    fn deliverable(&mut self, rank: usize) -> Result<Position, Cold> {
        #[cfg(feature = "mutants")]
        if self.mutant == Some(super::Mutant::NotStable) {
            return Ok(self.streams[rank].received);
        }
        let stream = &self.streams[rank];
        if !self.plan.guarantee.stable() || stream.stable == stream.received {
            return Ok(stream.received);
        }
        let sent = if rank == self.me { stream.received } else { Position(u64::MAX) };
        let mut least = stream.received;
        for peer in &mut self.peers {
            if peer.rank == rank {
                continue; // it has what it sent
            }
            let from = peer.received[rank];
            let to = Position(peer.mirror.load(peer.base + self.layout.received(rank)));
            // S1: monotone, and for the own ring not beyond what was sent. What it claims of others' rings can't be
            // checked here, and needs no check: stable never exceeds what this member has itself.
            if to < from || to > sent {
                let blamed = peer.rank;
                return Err(self.blame(blamed, Blame::Received { sender: rank_at(rank), from, to }));
            }
            peer.received[rank] = to;
            least = least.min(to);
        }
        let stream = &mut self.streams[rank];
        stream.stable = stream.stable.max(least);
        Ok(stream.stable)
    }

    /// A sender's next record that ends at or before `end`; pads are passed over.
    #[inline]
    fn peek(&mut self, rank: usize, end: Position) -> Result<Option<Next>, Cold> {
        if self.streams[rank].next.is_none() {
            let rules = self.rules();
            let stream = &mut self.streams[rank];
            match stream.look(rank, end, rules, &mut self.passed_pads) {
                Ok(next) => stream.next = next,
                Err(bad) => return Err(self.blame(rank, bad)),
            }
            self.pass(rank);
        }
        Ok(self.streams[rank].next.filter(|next| next.end <= end))
    }

    /// Nothing is pending of a sender all of whose records were passed over or delivered.
    #[inline]
    fn pass(&mut self, rank: usize) {
        let stream = &self.streams[rank];
        if stream.at == stream.received {
            self.pending &= !(1 << rank);
        }
    }

    #[inline]
    fn rules(&self) -> Rules {
        Rules {
            ring: self.plan.ring_bytes as u64,
            dated: self.plan.guarantee.durable(),
            addresses: self.plan.addresses(),
        }
    }

    /// Delivers `rank`'s records that come before `limit` and end at or before `end`.
    fn run(&mut self, rank: usize, limit: Key, end: Position, sink: &mut dyn Sink) -> Result<Run, Cold> {
        if self.plan.guarantee.durable() {
            return self.run_to_log(rank, limit, end, sink);
        }
        let (mut any, mut refused) = (false, None);
        let rules = self.rules();
        let (sender, mine, me) = (self.plan.members[rank].node, rank == self.me, rank_at(self.me));
        #[cfg(feature = "mutants")]
        let has_place =
            if self.mutant == Some(super::Mutant::NoPlace) { |kind| kind == Kind::Data } else { has_place };
        // Once for each record of a batch: what it takes is in registers and one cache line, as far as that can be had.
        let Self { plan, streams, loans, held, seq, passed_pads, .. } = self;
        let stream = &mut streams[rank];
        let mut looked = stream.next.take();
        loop {
            let next = match looked.take() {
                Some(next) => next,
                None => match stream.look(rank, end, rules, passed_pads) {
                    Ok(Some(next)) => next,
                    Ok(None) => break,
                    Err(bad) => return Err(self.blame(rank, bad)),
                },
            };
            if next.end > end || next.key >= limit {
                stream.next = Some(next);
                break;
            }
            let ahead = stream.at.0 + AHEAD;
            if ahead < end.0 {
                stream.memory.prefetch(stream.ring + (ahead & (rules.ring - 1)) as usize);
            }
            let from = stream.ring + (stream.at.0 & (rules.ring - 1)) as usize + HEADER;
            let mut range = from..from + next.len;
            let (mut kind, mut to) = (next.kind, None);
            if kind == Kind::Addressed {
                // D12. Its header's check saw to it that there is such a word, which was published with the header to all.
                let ranks = RankSet(stream.memory.load(from));
                to = Some(ranks);
                range.start += ADDRESS;
                if ranks.contains(me) {
                    kind = Kind::Data;
                } else if !mine {
                    range.end = range.start; // what lies there was never published to this member
                }
            }
            // SAFETY: `look` found the record below `received`, so a head that covers it was read (or this node
            // published it), and it isn't released: `at` hasn't passed it. A sound sender writes nothing there; `len`
            // was checked to stay within the ring.
            let payload = unsafe { stream.memory.bytes(range.clone()) };
            let mut delivery = Delivery {
                view: plan.view,
                seq: *seq,
                rank: rank_at(rank),
                sender,
                kind,
                to,
                ticket: mine.then_some(Ticket(next.end)),
                stamp: 0,
                payload,
                range,
                loans: Some(&mut *loans),
                lent: None,
            };
            let verdict = sink.deliver(&mut delivery);
            let lent = delivery.lent;
            if verdict == Verdict::Later {
                stream.next = Some(next);
                refused = Some(lent);
                break;
            }
            seq.0 += u64::from(has_place(kind));
            stream.at = next.end;
            any = true;
            if lent.is_some() || !held.is_empty() {
                hold(held, rank, next.end, lent);
            }
        }
        if let Some(lent) = refused {
            self.hold_refused(rank, lent);
        }
        self.pass(rank);
        Ok(Run { any, refused: refused.is_some() })
    }

    /// The same of a durable session: into the log. They are delivered later.
    fn run_to_log(
        &mut self,
        rank: usize,
        limit: Key,
        end: Position,
        sink: &mut dyn Sink,
    ) -> Result<Run, Cold> {
        let mut ran = Run::default();
        let mask = self.plan.ring_bytes as u64 - 1;
        while let Some(next) = self.peek(rank, end)?.filter(|next| next.key < limit) {
            let stream = &self.streams[rank];
            let from = stream.ring + (stream.at.0 & mask) as usize + HEADER;
            ran.refused = !self.log(rank, next, from..from + next.len, sink);
            if ran.refused {
                break;
            }
            ran.any = true;
        }
        self.pass(rank);
        Ok(ran)
    }

    /// Hands a record of a durable session to the log. Returns false if that doesn't take it now.
    fn log(&mut self, rank: usize, next: Next, range: Range<usize>, sink: &mut dyn Sink) -> bool {
        let stream = &mut self.streams[rank];
        let mut due = Due { rank, kind: next.kind, seq: self.seq, end: next.end, range, stamp: 0 };
        if next.kind == Kind::Data {
            let sent = u64::from_le_bytes(stream.memory.load(due.range.start).to_ne_bytes());
            due.range.start += SENT;
            // SAFETY: as in `run`: received, and not released before it was delivered, which comes later.
            let payload = unsafe { stream.memory.bytes(due.range.clone()) };
            let (view, seq, sender) = (self.plan.view, self.seq, self.plan.members[rank].node);
            let memory = &stream.memory;
            let is_own = rank == self.me;
            let logged =
                Logged { view, seq, sender, is_own, sent, payload, memory, range: due.range.clone() };
            let Some(stamp) = sink.log(&logged) else { return false };
            due.stamp = stamp;
            self.seq.0 += 1;
        }
        stream.at = next.end;
        stream.next = None;
        self.durable.push(due);
        true
    }

    /// Delivers what was logged: as far as every member has it in its log (P2), or as it is. What was delivered and everybody has is done with.
    fn deliver_durable(&mut self, sink: &mut dyn Sink) -> bool {
        let ahead = self.plan.guarantee.ahead_of_logs();
        let mut any = false;
        while let Some(due) = self.durable.next(ahead) {
            let (rank, end) = (due.rank, due.end);
            let stream = &mut self.streams[rank];
            // SAFETY: as in `run`: received, and not released, as `released` never passes `flushed`, which doesn't pass what isn't delivered.
            let payload = unsafe { stream.memory.bytes(due.range.clone()) };
            let mut delivery = Delivery {
                view: self.plan.view,
                seq: due.seq,
                rank: rank_at(rank),
                sender: self.plan.members[rank].node,
                kind: due.kind,
                to: None,
                ticket: (rank == self.me).then_some(Ticket(end)),
                stamp: due.stamp,
                payload,
                range: due.range.clone(),
                loans: Some(&mut self.loans),
                lent: None,
            };
            let verdict = sink.deliver(&mut delivery);
            let lent = delivery.lent;
            if verdict == Verdict::Later {
                self.hold_refused(rank, lent);
                break;
            }
            self.streams[rank].delivered = end;
            self.durable.delivered();
            any = true;
            if lent.is_some() || !self.held.is_empty() || ahead {
                hold(&mut self.held, rank, end, lent);
            }
        }
        while let Some(due) = self.durable.take_flushed() {
            let Due { rank, kind, seq, end, range, .. } = due;
            let stream = &mut self.streams[rank];
            stream.flushed = end;
            if kind == Kind::Data {
                // SAFETY: as above.
                let payload = unsafe { stream.memory.bytes(range) };
                let place = payload.as_ptr().wrapping_sub(SENT);
                let ticket = (rank == self.me).then_some(Ticket(end));
                sink.flushed(&Flushed { view: self.plan.view, seq, ticket, place });
            }
            any = true;
        }
        any
    }

    /// Lent and refused all the same: the room waits for the loan, the message is offered again.
    fn hold_refused(&mut self, rank: usize, lent: Option<u64>) {
        if lent.is_some() {
            let end = self.delivered_upto(&self.streams[rank]);
            self.held.push_back(Held { rank, end, loan: lent });
        }
    }

    pub(super) fn loan_is_back(&self) -> bool {
        self.held.front().is_some_and(|held| match held.loan {
            Some(loan) => self.loans.came_back(loan),
            None => {
                let stream = &self.streams[held.rank];
                stream.released < held.end.min(self.flushed_upto(stream))
            }
        })
    }

    /// Moves `released` over what came back and is flushed, in the order of delivery.
    fn take_back_loans(&mut self) -> bool {
        let mut any = false;
        let is_flushed = self.durable.is_empty();
        while let Some(held) = self.held.front_mut() {
            if held.loan.is_some_and(|loan| !self.loans.returned(loan)) {
                break;
            }
            let stream = &mut self.streams[held.rank];
            let upto = if is_flushed { stream.at } else { stream.flushed };
            let released = stream.released.max(held.end.min(upto));
            any |= held.loan.take().is_some() || released > stream.released;
            stream.released = released;
            if held.end > upto {
                break;
            }
            self.held.pop_front();
            any = true;
        }
        any
    }

    /// Stores what was delivered and released; publishes it once a sender may be short of room (D11).
    fn release<F: Fabric + ?Sized>(&mut self, fabric: &mut F) {
        let hurry = self.plan.ring_bytes as u64 / 8;
        // Others deliver on this member's word; and while it can't send, no message takes that along.
        let mut hurried = self.defers && self.is_short;
        // Of a durable session, what somebody has not flushed is needed yet; what is no message is not.
        let waits = !self.durable.is_empty();
        for (rank, stream) in self.streams.iter_mut().enumerate() {
            if !waits {
                (stream.delivered, stream.flushed) = (stream.at, stream.at);
            }
            if self.held.is_empty() {
                stream.released = stream.flushed;
            }
            #[cfg(feature = "mutants")]
            if self.mutant == Some(super::Mutant::EarlyRelease) {
                stream.released = stream.received;
            }
            if stream.released > stream.released_published {
                self.segment.store(self.base + self.layout.released(rank), stream.released.0);
                hurried |= stream.released.0 - stream.released_published.0 >= hurry;
            }
        }
        self.segment.store(self.base + self.layout.delivered(), self.delivered().0);
        self.later = true;
        if hurried {
            self.publish(fabric);
        }
    }
}

#[derive(Clone, Copy, Default)]
struct Run {
    any: bool,
    refused: bool,
}
