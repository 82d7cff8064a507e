//! Delivery: the records that are here, in their order, as far as the guarantee lets them go (D6, D7, D8), and the
//! release of their room (D10, D11).
//!
//! Senders are merged by (round, rank). The merge works in runs: the sender with the least next key delivers until another
//! sender's record comes first, its own order horizon, or the end of what is stable: one comparison a record, and
//! one header read.
#![allow(unsafe_code)]

use std::ops::Range;

use super::{Blame, Fault, Held, Session, rank_at};
use crate::fabric::Fabric;
use crate::layout::unwrap;
use crate::loan::{Loan, Loans};
use crate::names::{NodeId, Position, Rank, Round, Seq, ViewId};
use crate::order::{self, Key};
use crate::record::{HEADER, Header, Kind};
use crate::ring::Ticket;

/// Where deliveries go.
pub trait Sink {
    /// A message is due. The payload is lent for the call; [`Delivery::lend`] keeps it longer.
    fn deliver(&mut self, delivery: &mut Delivery<'_>) -> Verdict;
}

impl<F: FnMut(&mut Delivery<'_>) -> Verdict> Sink for F {
    fn deliver(&mut self, delivery: &mut Delivery<'_>) -> Verdict {
        self(delivery)
    }
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

/// A message that is due, in ring memory.
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
    /// [`Kind::Data`] or [`Kind::End`].
    pub kind: Kind,
    /// Which of this node's sends it is; `None` for other senders'.
    pub ticket: Option<Ticket>,
    /// The message.
    pub payload: &'a [u8],
    range: Range<usize>,
    loans: &'a mut Loans,
    lent: Option<u64>,
}

impl Delivery<'_> {
    /// Keeps the payload where it is past the call, without a copy. The sender can't reuse the room, nor any that was
    /// delivered after it, until the loan is dropped. `None` when [`crate::loan::MAX_LOANS`] are out, or when called
    /// twice: answer [`Verdict::Later`], or copy.
    pub fn lend(&mut self) -> Option<Loan> {
        if self.lent.is_some() {
            return None;
        }
        // SAFETY: the range was received (its head was read) and lies in this sender's ring (checked when its header was
        // read); `Session::run` records the loan and releases nothing at or after it before it is back.
        let (loan, number) = unsafe { self.loans.lend(self.rank.0, self.range.clone()) }?;
        self.lent = Some(number);
        Some(loan)
    }
}

/// A record that was looked at and not delivered yet.
#[derive(Clone, Copy)]
pub(super) struct Next {
    round: Round,
    kind: Kind,
    len: usize,
    end: Position,
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
        if self.wedged {
            return Ok(false);
        }
        let delivered = self.deliver_due(None, sink)?;
        let back = self.take_back_loans();
        if delivered || back {
            self.release(fabric);
        }
        Ok(delivered || back)
    }

    /// Delivers exactly what lies below `trim`, in order, in a wedged session (V4). Returns false if the sink said
    /// [`Verdict::Later`]: call again.
    ///
    /// # Errors
    /// A dead or fenced member left a record that no sound member writes: nothing from there on can be delivered.
    pub fn cut(&mut self, trim: &[Position], sink: &mut dyn Sink) -> Result<bool, Fault> {
        debug_assert!(self.wedged && trim.len() == self.streams.len());
        self.deliver_due(Some(trim), sink)?;
        Ok(self.streams.iter().zip(trim).all(|(stream, trim)| stream.at >= *trim))
    }

    /// Delivers runs until nothing is due. With `trim`, everything below it is due.
    fn deliver_due(&mut self, trim: Option<&[Position]>, sink: &mut dyn Sink) -> Result<bool, Fault> {
        let mut any = false;
        loop {
            let mut first: Option<Key> = None;
            let mut second: Option<Key> = None;
            for rank in 0..self.streams.len() {
                let end = trim.map_or(self.streams[rank].received, |trim| trim[rank]);
                let Some(key) = self.peek(rank, end)? else { continue };
                if first.is_none_or(|f| key < f) {
                    second = first;
                    first = Some(key);
                } else if second.is_none_or(|s| key < s) {
                    second = Some(key);
                }
            }
            let Some(Key { rank, .. }) = first else { return Ok(any) };
            let ran = match trim {
                Some(trim) => {
                    let horizon = second.map_or(Round(u64::MAX), |next| order::before(rank, next));
                    self.run(rank, horizon, trim[rank], trim[rank], sink)?
                }
                None if self.plan.guarantee.ordered() => {
                    let mut horizon = self.horizon(rank);
                    if let Some(next) = second {
                        horizon = horizon.min(order::before(rank, next));
                    }
                    let end = self.deliverable(rank)?;
                    self.run(rank, horizon, end, self.streams[rank].received, sink)?
                }
                None => {
                    // Fifo: every sender goes as far as it is received.
                    let mut ran = Run::default();
                    for rank in 0..self.streams.len() {
                        let end = self.streams[rank].received;
                        let one = self.run(rank, Round(u64::MAX), end, end, sink)?;
                        ran = Run { any: ran.any || one.any, refused: ran.refused || one.refused };
                    }
                    any |= ran.any;
                    return Ok(any);
                }
            };
            any |= ran.any;
            if ran.refused || !ran.any {
                return Ok(any);
            }
        }
    }

    /// Up to where a sender's records may be delivered, apart from the order: what is stable (D7), or received.
    fn deliverable(&mut self, rank: usize) -> Result<Position, Fault> {
        #[cfg(feature = "mutants")]
        if self.mutant == Some(super::Mutant::NotStable) {
            return Ok(self.streams[rank].received);
        }
        let stream = &self.streams[rank];
        if !self.plan.guarantee.stable() || stream.stable == stream.received {
            return Ok(stream.received);
        }
        let mut least = stream.received;
        for at in 0..self.peers.len() {
            let peer = &mut self.peers[at];
            if peer.rank == rank {
                continue; // it has what it sent
            }
            let from = peer.received[rank];
            let to = Position(peer.mirror.load(peer.base + self.layout.received(rank)));
            // S1: monotone, and for the own ring not beyond what was sent. What it claims of others' rings can't be
            // checked here, and needs no check: stable never exceeds what this member has itself.
            if to < from || rank == self.me && to > self.streams[rank].received {
                let blame = Blame::Received { sender: rank_at(rank), from, to };
                return Err(self.blame(self.peers[at].rank, blame));
            }
            peer.received[rank] = to;
            least = least.min(to);
        }
        let stream = &mut self.streams[rank];
        stream.stable = stream.stable.max(least);
        Ok(stream.stable)
    }

    fn horizon(&self, rank: usize) -> Round {
        #[cfg(feature = "mutants")]
        if self.mutant == Some(super::Mutant::NoTieBreak) {
            let least = self.streams.iter().enumerate().filter(|(j, _)| *j != rank).map(|(_, s)| s.promise.0);
            return Round(least.min().map_or(u64::MAX, |p| p + 1));
        }
        order::horizon(rank, self.streams.iter().map(|s| s.promise))
    }

    /// The key of a sender's next record below `end`; pads are passed over.
    #[inline]
    fn peek(&mut self, rank: usize, end: Position) -> Result<Option<Key>, Fault> {
        let size = self.plan.ring_bytes as u64;
        let stream = &mut self.streams[rank];
        loop {
            if let Some(next) = stream.next {
                return Ok((next.end <= end).then_some(Key { round: next.round, rank }));
            }
            if stream.at >= end {
                return Ok(None);
            }
            let place = stream.at.0 & (size - 1);
            // S1: one read into a local, then all checks on that.
            let word = stream.memory.load(stream.ring + place as usize);
            let sound = Header::parse(word).and_then(|header| {
                let end = Position(stream.at.0 + header.size() as u64);
                let round = unwrap(stream.round.0, header.round, (1 << 31) - 1).map(Round)?;
                let fits = end <= stream.received && place + header.size() as u64 <= size;
                (fits && round < stream.promise).then_some((header, end, round))
            });
            let Some((header, end, round)) = sound else {
                let blame = Blame::Record { at: stream.at, word };
                return Err(self.blame(rank, blame));
            };
            stream.round = round;
            if header.kind == Kind::Pad {
                stream.at = end;
            } else {
                stream.next = Some(Next { round, kind: header.kind, len: header.len, end });
            }
        }
    }

    /// Delivers `rank`'s records in rounds before `horizon` that end at or before `end`.
    fn run(
        &mut self,
        rank: usize,
        horizon: Round,
        end: Position,
        received: Position,
        sink: &mut dyn Sink,
    ) -> Result<Run, Fault> {
        let mut ran = Run::default();
        while self.peek(rank, received)?.is_some() {
            let stream = &mut self.streams[rank];
            let Some(next) = stream.next else { break };
            if next.round >= horizon || next.end > end {
                break;
            }
            let place = (stream.at.0 & (self.plan.ring_bytes as u64 - 1)) as usize;
            let from = stream.ring + place + HEADER;
            let range = from..from + next.len;
            // SAFETY: `peek` found the record below `received`, so a head that covers it was read (or this node
            // published it), and it isn't released: `at` hasn't passed it. A sound sender writes nothing there; `len`
            // was checked to stay within the ring.
            let payload = unsafe { stream.memory.bytes(range.clone()) };
            let mut delivery = Delivery {
                view: self.plan.view,
                seq: self.seq,
                rank: rank_at(rank),
                sender: self.plan.members[rank].node,
                kind: next.kind,
                ticket: (rank == self.me).then_some(Ticket(next.end)),
                payload,
                range,
                loans: &mut self.loans,
                lent: None,
            };
            let verdict = sink.deliver(&mut delivery);
            let lent = delivery.lent;
            if verdict == Verdict::Later {
                if let Some(loan) = lent {
                    // Lent and refused all the same: the room waits for the loan, the message is offered again.
                    self.held.push_back(Held { rank, end: stream.at, loan: Some(loan) });
                }
                ran.refused = true;
                break;
            }
            if next.kind == Kind::Data {
                self.seq.0 += 1;
            }
            stream.at = next.end;
            stream.next = None;
            ran.any = true;
            if lent.is_some() {
                self.held.push_back(Held { rank, end: next.end, loan: lent });
            } else if !self.held.is_empty() {
                match self.held.back_mut() {
                    Some(Held { rank: last, end, loan: None }) if *last == rank => *end = next.end,
                    _ => self.held.push_back(Held { rank, end: next.end, loan: None }),
                }
            }
        }
        Ok(ran)
    }

    pub(super) fn loan_is_back(&self) -> bool {
        self.held.front().is_some_and(|held| held.loan.is_none_or(|loan| self.loans.came_back(loan)))
    }

    /// Moves `released` over what came back, in the order of delivery.
    fn take_back_loans(&mut self) -> bool {
        let mut any = false;
        while let Some(held) = self.held.front() {
            if held.loan.is_some_and(|loan| !self.loans.returned(loan)) {
                break;
            }
            let stream = &mut self.streams[held.rank];
            stream.released = stream.released.max(held.end);
            self.held.pop_front();
            any = true;
        }
        any
    }

    /// Stores what was delivered and released; publishes it once a sender may be short of room (D11).
    fn release<F: Fabric + ?Sized>(&mut self, fabric: &mut F) {
        let hurry = self.plan.ring_bytes as u64 / 8;
        let mut hurried = false;
        for (rank, stream) in self.streams.iter_mut().enumerate() {
            if self.held.is_empty() {
                stream.released = stream.at;
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
        self.segment.store(self.base + self.layout.delivered(), self.seq.0);
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
