//! Rings that travel along a chain (D14): every member sends its ring bytes to the member after it alone, which passes them on to the
//! next ([`Fabric::relay`]), until the one before their origin has them. So each link carries each byte about once. Rows go from each to
//! all, as ever: order, stability and trims are found out from the same words.
//!
//! # What has arrived
//! Where bytes come from their origin, its head comes behind them on the same link, and vouches for them (D2). Along a chain a head
//! comes straight and may be here long before the bytes. So two things are told apart that are one otherwise:
//!
//! - *Position.* What has arrived of s's ring is what the member before this one says to have *received* of it: it passes bytes on before it
//!   stores the word, so the word comes behind them on their link (F1). By induction along the chain they are what the origin sent.
//!   Of the origin itself, where that is the member before, the head says it. It is never believed beyond the origin's own head.
//! - *Promise.* It counts once everything up to the position in the same head has arrived (D6); until then the head waits in a queue. Under
//!   load there is always a newer head, so more than one is kept: else none would come to count before the chain has run empty.
//!
//! A member's own promise may follow one that doesn't count yet (D5): it says what this member will send, not what has arrived here.
//!
//! # Who may write where
//! Nothing is relayed to a member that isn't born, since it accepts nothing before ([`Fabric::allow_relay`]). And nothing of a member
//! counts any more once that one is lost: behind its fence its bytes are dropped, over whatever link they come, while what vouches for
//! them still arrives (F4).

use std::collections::VecDeque;
use std::ops::Range;

use super::{Blame, Cold, Fault, Peer, Session, rank_at};
use crate::fabric::Fabric;
use crate::layout::{ring_parts, unpack_head};
use crate::memory::WORD;
use crate::names::{Position, Round, Slot};

/// Heads kept of a sender whose bytes are on their way.
const HEADS: usize = 16;

/// This member's place in the chain, and what is on its way. See the [module](self). The next member's link is the session's `ring_to`: what is
/// passed on goes where the own ring goes.
pub(super) struct Chain {
    /// Which of the peers is the one before.
    before: usize,
    /// The rank of the one after.
    after: usize,
    /// What is known of each ring, by rank.
    rings: Vec<Coming>,
}

/// A ring that comes along the chain.
struct Coming {
    /// The newest head: how far the ring goes at its origin. What that promised is what was `heard` of the stream.
    position: Position,
    /// What the member before said last to have received.
    passed: Position,
    /// Heads whose bytes haven't all arrived.
    heads: VecDeque<(Position, Round)>,
}

impl Coming {
    /// A newer head than all before it.
    fn push(&mut self, position: Position, promise: Round) {
        self.position = position;
        if self.heads.len() == HEADS {
            self.heads.pop_back(); // what it promised, the newer one promises too
        }
        self.heads.push_back((position, promise));
    }
}

impl Session {
    /// Takes the session's place in a chain, if its plan has one: tells the fabric what to expect. It is the other members that relay, and they
    /// begin when they have seen this one's birth.
    pub(super) fn form_chain<F: Fabric + ?Sized>(&mut self, fabric: &mut F) {
        let n = self.streams.len();
        let (before_rank, after) = ((self.me + n - 1) % n, (self.me + 1) % n);
        let Some(before) = self.peers.iter().position(|peer| peer.rank == before_rank) else { return };
        let coming =
            || Coming { position: Position(0), passed: Position(0), heads: VecDeque::with_capacity(HEADS) };
        let rings = (0..n).map(|_| coming()).collect();
        self.chain = Some(Box::new(Chain { before, after, rings }));
        self.ring_to = self.plan.members[after].slot.into_iter().collect();
        self.expect_relays(fabric, self.plan.members[before_rank].slot);
    }

    fn expect_relays<F: Fabric + ?Sized>(&self, fabric: &mut F, by: Option<Slot>) {
        for peer in &self.peers {
            let Some(origin) = peer.slot else { continue };
            let start = self.plan.members[peer.rank].base + self.layout.ring();
            let by = by.filter(|by| *by != origin);
            fabric.allow_relay(origin, start..start + self.plan.ring_bytes, by);
        }
    }

    /// What comes from now on is not needed here, and when the memory has another session some day it mustn't come.
    #[cold]
    pub(super) fn leave_chain<F: Fabric + ?Sized>(&mut self, fabric: &mut F) {
        if self.chain.take().is_some() {
            self.expect_relays(fabric, None);
        }
    }

    /// Takes in what came along the chain, which the session has handed over for the call, and passes it on. Returns whether there were
    /// records, and the greatest promise heard.
    pub(super) fn receive_along<F: Fabric + ?Sized>(
        &mut self,
        chain: &mut Chain,
        fabric: &mut F,
    ) -> Result<(bool, Round), Cold> {
        let (mut received, mut seen) = (false, Round(0));
        for at in 0..self.peers.len() {
            self.hear(chain, at)?;
            received |= self.receive_relayed(chain, at, fabric)?;
            seen = seen.max(self.streams[self.peers[at].rank].heard);
        }
        Ok((received, seen))
    }

    /// Reads the head of peer `at`.
    #[inline]
    fn hear(&mut self, chain: &mut Chain, at: usize) -> Result<(), Cold> {
        let peer = &mut self.peers[at];
        let word = peer.mirror.load(peer.base + self.layout.head());
        if word == peer.head {
            return Ok(());
        }
        let (ring, stream) = (&mut chain.rings[peer.rank], &mut self.streams[peer.rank]);
        // S1, D11: as of any head.
        let limit = Position(stream.released.0 + self.plan.ring_bytes as u64);
        let Some((position, promise)) = unpack_head(word, ring.position, stream.heard, limit) else {
            let blame = Blame::Head { from: ring.position, promise: stream.heard, word };
            return Err(self.blame(self.peers[at].rank, blame));
        };
        peer.head = word;
        stream.heard = promise;
        ring.push(position, promise);
        #[cfg(feature = "mutants")]
        if self.mutant == Some(super::Mutant::PromiseAhead) {
            stream.promise = promise;
        }
        Ok(())
    }

    /// Finds out what has arrived of the ring of peer `at`, and passes it on. Returns whether anything has.
    #[inline]
    fn receive_relayed<F: Fabric + ?Sized>(
        &mut self,
        chain: &mut Chain,
        at: usize,
        fabric: &mut F,
    ) -> Result<bool, Cold> {
        let &Peer { rank, slot: origin, .. } = &self.peers[at];
        let upto = self.arrived(chain, rank)?;
        let passes_on = rank != chain.after;
        // Nobody expects anything before its birth. What isn't passed on isn't acknowledged.
        let is_held = passes_on && self.unborn & 1 << chain.after != 0;
        let is_lost = origin.is_none();
        #[cfg(feature = "mutants")]
        let is_lost = is_lost && self.mutant != Some(super::Mutant::LostCounts);
        if is_lost || is_held {
            return Ok(false);
        }
        let from = self.streams[rank].received;
        let more = upto > from;
        if more {
            #[cfg(feature = "mutants")]
            if self.mutant == Some(super::Mutant::AcknowledgedFirst) {
                let row = self.base..self.base + self.layout.urgent_end();
                self.segment.store(self.base + self.layout.received(rank), upto.0);
                fabric.publish_words(row, self.everyone);
                fabric.flush();
            }
            if passes_on && let Some(origin) = origin {
                self.pass_on((rank, origin), from..upto, fabric)?;
            }
            self.streams[rank].received = upto;
            self.pending |= 1 << rank;
            // Behind what it vouches for, on the link to the one after (F1).
            self.segment.store(self.base + self.layout.received(rank), upto.0);
        }
        // D6: a promise counts when all that was published with it is here.
        let stream = &mut self.streams[rank];
        let heads = &mut chain.rings[rank].heads;
        while let Some((position, promise)) = heads.front().copied()
            && position <= upto
        {
            stream.promise = stream.promise.max(promise);
            heads.pop_front();
        }
        Ok(more)
    }

    /// Relays a part of a ring to the one after, unless that one is lost.
    #[inline]
    fn pass_on<F: Fabric + ?Sized>(
        &self,
        (rank, origin): (usize, Slot),
        between: Range<Position>,
        fabric: &mut F,
    ) -> Result<(), Cold> {
        if self.ring_to.is_empty() {
            return Ok(());
        }
        let parts = ring_parts(between, self.streams[rank].ring, self.plan.ring_bytes);
        for part in parts.into_iter().filter(|part| !part.is_empty()) {
            if !fabric.relay(origin, part, self.ring_to) {
                let node = self.plan.members[rank].node;
                return Err(Cold(Box::new(Fault::Relay { rank: rank_at(rank), node })));
            }
        }
        Ok(())
    }

    /// Up to where `rank`'s ring has arrived here, as its bearer vouches.
    #[inline]
    fn arrived(&self, chain: &mut Chain, rank: usize) -> Result<Position, Cold> {
        let ring = &mut chain.rings[rank];
        #[cfg(feature = "mutants")]
        if self.mutant == Some(super::Mutant::HeadVouches) {
            return Ok(ring.position);
        }
        let bearer = &self.peers[chain.before];
        if rank == bearer.rank {
            return Ok(ring.position);
        }
        let to = Position(bearer.mirror.load(bearer.base + self.layout.received(rank)));
        // S1: monotone, and whole words. No more than the origin says to have sent, so no more than there is room for.
        if to < ring.passed || !to.0.is_multiple_of(WORD as u64) {
            let blame = Blame::Received { sender: rank_at(rank), from: ring.passed, to };
            return Err(self.blame(bearer.rank, blame));
        }
        ring.passed = to;
        Ok(to.min(ring.position))
    }
}
