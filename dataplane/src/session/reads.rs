//! Read points: where in the stream of deliveries a member's state is fresh enough for a linearizable query, found out without
//! a message; and the digests of the applications' states, which travel beside.
//!
//! # A read point
//! A member that wants one notes up to where it has *received* every ring (the point's *frontier*), counts up the word `asked`
//! of its row and publishes it. Every other member stores in `answered[r]` how many questions of member r it has seen, as long as
//! its session runs. When all the others have answered, the point is *confirmed*: the frontier is lowered to what all rows say by
//! then to have received, and the point is *due* in the stream once
//! everything below its frontier is delivered. One question at a time: whatever is wanted meanwhile shares the next.
//!
//! Lowering it is what makes queries *apportioned*: any member answers from its own state, and what is here but not yet everywhere (*dirty*)
//! holds no query up, which along a chain would be for as long as its bytes travel.
//!
//! # Why the state is fresh there
//! Claim: whatever any member had delivered before the question was asked is delivered here before the point.
//!
//! 1. In this session: under `Atomic` what is delivered anywhere is stable (D7): every member had received it and said so, before it answered.
//!    So this member had received it when it asked, and sees it in all rows when the answers are here (F1): it lies
//!    below the frontier. The rows must be looked at after the answers: what they say when the question is asked may be old.
//! 2. In earlier ones: it lies below their trims (V4), and this member delivers those before anything of this session.
//! 3. In later ones there was nothing yet. A later view needs the report of a member of this session (V3, V6), given after that
//!    member had wedged it (V2). This member has not, or it would take no answers any more; and the others have all answered after
//!    the question was asked, which nobody does who has wedged.
//!
//! A session that is wedged before the answers are there answers nothing itself, and its caller asks again in the next. One that is
//! wedged later keeps its point: what was delivered anywhere lies below the trim as well as below the frontier, so the point is
//! due at the latest when the session is cut.

use std::collections::VecDeque;

use super::{Blame, Cold, Session};
use crate::fabric::Fabric;
use crate::names::{NodeId, Position};

/// This member's questions, and what it has to publish of them and of others'.
#[derive(Default)]
pub(super) struct Reads {
    /// Questions asked in this session.
    pub(super) asked: u64,
    /// The greatest point that the caller wanted, and the greatest that was asked for.
    wanted: u64,
    sought: u64,
    /// The question that not everyone has answered.
    open: Option<Point>,
    /// Points that everyone has confirmed, and that aren't due yet.
    confirmed: VecDeque<Point>,
    /// Frontiers to be used again.
    spare: Vec<Vec<Position>>,
    /// This member's digest, as published.
    digest: u64,
    /// The peers, as bits by their place among them, whose digest changed since the caller was told.
    digests: u64,
    /// Words were stored and not published.
    dirty: bool,
    /// Exchanges so far.
    exchanges: u32,
}

/// At every so manieth exchange others' questions are looked for; and before a sleep.
const EXCHANGES_A_LOOK: u32 = 8;

impl Reads {
    /// There are digests that the caller wasn't told.
    #[inline]
    pub(super) fn has_digests(&self) -> bool {
        self.digests != 0
    }
}

struct Point {
    /// The caller's name for it, and for all before it.
    upto: u64,
    frontier: Vec<Position>,
}

impl Session {
    /// Wants a read point, which the caller numbers: it stands for every lower number too. It is found out with the next
    /// [exchange](Session::exchange), or, if another is being found out, after that; [`Session::poll_read_point`] says when it is
    /// due. Wanting one twice changes nothing.
    ///
    /// A session that is wedged before the others have answered never has it due: want it in the next view's then. Returns false where
    /// there are none: delivery doesn't wait for stability, so nobody can know what others have delivered; or the session is
    /// wedged.
    pub fn want_read_point(&mut self, upto: u64) -> bool {
        let has_any = self.plan.guarantee.stable() && !self.is_wedged();
        if has_any {
            self.reads.wanted = self.reads.wanted.max(upto);
        }
        has_any
    }

    /// The greatest read point that is due now, after all that was delivered so far; each is said once.
    pub fn poll_read_point(&mut self) -> Option<u64> {
        let mut due = None;
        while let Some(point) = self.reads.confirmed.front() {
            let mut passed = self.streams.iter().zip(&point.frontier);
            let is_delivered = self.is_cut || passed.all(|(stream, end)| self.delivered_upto(stream) >= *end);
            #[cfg(feature = "mutants")]
            let is_delivered = is_delivered || self.mutant == Some(super::Mutant::UndeliveredPoint);
            if !is_delivered {
                break;
            }
            let Some(Point { upto, frontier }) = self.reads.confirmed.pop_front() else { break };
            self.reads.spare.push(frontier);
            due = Some(upto);
        }
        due
    }

    /// Publishes the digest of this member's application's state with the next exchange, if it is another than the last; 0 is
    /// that of none. What it is of, and how much of it, is the caller's to put into it: it is one word, so it is never seen in part.
    pub fn publish_digest(&mut self, digest: u64) {
        if digest != self.reads.digest && !self.is_wedged() {
            self.reads.digest = digest;
            self.segment.store(self.base + self.layout.digest(), digest);
            self.reads.dirty = true;
        }
    }

    /// The digests that the members have published, this one included, by rank; without those who have published none.
    pub fn digests(&self) -> Vec<(NodeId, u64)> {
        let theirs =
            self.peers.iter().map(|peer| (peer.rank, peer.mirror.load(peer.base + self.layout.digest())));
        let mut digests: Vec<_> = theirs.chain([(self.me, self.reads.digest)]).collect();
        digests.sort_unstable();
        let published = digests.into_iter().filter(|(_, digest)| *digest != 0);
        published.map(|(rank, digest)| (self.plan.members[rank].node, digest)).collect()
    }

    /// A member whose published digest changed since this was asked last, and what it is now. What it was in between is not told.
    pub fn poll_digest(&mut self) -> Option<(NodeId, u64)> {
        let at = self.reads.digests.trailing_zeros() as usize;
        let peer = self.peers.get(at)?;
        self.reads.digests &= self.reads.digests - 1;
        Some((self.plan.members[peer.rank].node, peer.digest))
    }

    /// Whether [`Session::poll_read_point`] or [`Session::poll_digest`] may have something to say.
    #[inline]
    pub fn has_read_news(&self) -> bool {
        self.reads.has_digests() || !self.reads.confirmed.is_empty()
    }

    /// Answers the others, takes their answers, and asks what is wanted: at every exchange while it waits itself, else at some, for
    /// whoever waits for a message must not wait for this. Returns whether anything was published.
    #[inline]
    pub(super) fn look_for_reads<F: Fabric + ?Sized>(&mut self, fabric: &mut F) -> Result<bool, Cold> {
        self.reads.exchanges = self.reads.exchanges.wrapping_add(1);
        let waits = self.reads.open.is_some() || self.reads.wanted > self.reads.sought;
        if !waits && !self.reads.exchanges.is_multiple_of(EXCHANGES_A_LOOK) {
            // A digest was published, perhaps.
            return Ok(self.publish_reads(fabric));
        }
        self.answer();
        if self.reads.open.is_some() {
            self.confirm()?;
        }
        if self.reads.open.is_none() && self.reads.wanted > self.reads.sought {
            self.ask();
        }
        Ok(self.publish_reads(fabric))
    }

    /// Looks for questions, and for digests, which lie beside. Only a session that runs may do this.
    #[inline]
    pub(super) fn answer(&mut self) {
        for (at, peer) in self.peers.iter_mut().enumerate() {
            let asked = peer.mirror.load(peer.base + self.layout.asked());
            // S1: one that fell is no question, whoever wrote it.
            if asked > peer.answered {
                peer.answered = asked;
                self.segment.store(self.base + self.layout.answered(peer.rank), asked);
                self.reads.dirty = true;
            }
            let digest = peer.mirror.load(peer.base + self.layout.digest());
            if digest != peer.digest {
                peer.digest = digest;
                self.reads.digests |= 1 << at;
            }
        }
    }

    /// Looks whether everyone has answered.
    #[cold]
    fn confirm(&mut self) -> Result<(), Cold> {
        let mut all = true;
        for at in 0..self.peers.len() {
            let peer = &self.peers[at];
            let answered = peer.mirror.load(peer.base + self.layout.answered(self.me));
            if answered > self.reads.asked {
                let blame = Blame::Answered { asked: self.reads.asked, answered };
                return Err(self.blame(self.peers[at].rank, blame));
            }
            all &= answered == self.reads.asked;
        }
        #[cfg(feature = "mutants")]
        let all = all || self.mutant == Some(super::Mutant::UnconfirmedPoint);
        if all && let Some(mut point) = self.reads.open.take() {
            #[cfg(feature = "mutants")]
            let is_early = self.mutant == Some(super::Mutant::EarlyFrontier);
            #[cfg(not(feature = "mutants"))]
            let is_early = false;
            if !is_early {
                self.lower(&mut point.frontier);
            }
            self.reads.confirmed.push_back(point);
        }
        Ok(())
    }

    /// Lowers a frontier to what every member says to have received. Only after their answers: each has stored and published what it
    /// had received before those (F1).
    #[cold]
    fn lower(&self, frontier: &mut [Position]) {
        for peer in &self.peers {
            for (rank, end) in frontier.iter_mut().enumerate().filter(|(rank, _)| *rank != peer.rank) {
                let says = Position(peer.mirror.load(peer.base + self.layout.received(rank)));
                // S1: what it said before holds, whatever it says now: messages may have been delivered on that.
                *end = (*end).min(says.max(peer.received[rank]));
            }
        }
    }

    /// Asks the next question, for all that is wanted.
    #[cold]
    fn ask(&mut self) {
        let mut frontier = self.reads.spare.pop().unwrap_or_default();
        frontier.clear();
        frontier.extend(self.streams.iter().map(|stream| stream.received));
        #[cfg(feature = "mutants")]
        if self.mutant == Some(super::Mutant::EarlyFrontier) {
            self.lower(&mut frontier);
        }
        self.reads.sought = self.reads.wanted;
        let point = Point { upto: self.reads.wanted, frontier };
        if self.peers.is_empty() {
            return self.reads.confirmed.push_back(point);
        }
        self.reads.open = Some(point);
        self.reads.asked += 1;
        self.segment.store(self.base + self.layout.asked(), self.reads.asked);
        self.reads.dirty = true;
    }

    /// Publishes the words above, if any changed. Returns whether any did.
    #[inline]
    pub(super) fn publish_reads<F: Fabric + ?Sized>(&mut self, fabric: &mut F) -> bool {
        if !self.reads.dirty {
            return false;
        }
        self.reads.dirty = false;
        // Who is answered must see what was received before (F1); and nothing else may tell it.
        #[cfg(feature = "mutants")]
        let first = self.mutant != Some(super::Mutant::AnswersFirst);
        #[cfg(not(feature = "mutants"))]
        let first = true;
        if first {
            self.settle_received(fabric);
        }
        let (from, to) = (self.base + self.layout.asked(), self.base + self.layout.end());
        fabric.publish_words(from..to, self.everyone);
        true
    }
}
