//! What a durable session has more than others (P1, P2): between the order and the delivery stands the log.
//!
//! A record that is ordered and stable is handed to the log ([`Sink::log`](super::Sink::log)), and waits here. The log's owner says how far
//! that is flushed ([`Session::persist`]); the row's word `persisted` tells the others; and what all have is delivered. So a delivery takes one hop
//! more, and the members' flushes, which go on side by side. Under [`Guarantee::Logged`](crate::plan::Guarantee::Logged) it is delivered as soon as the log has
//! taken it. Either way [`Sink::flushed`](super::Sink::flushed) says when all have it, and its room is needed until then: the log writes from there.
//!
//! # The word
//! 0: nothing of this session is written down here, not even that it began. 1 + n: everything before the session, the view with which it began, and
//! n messages of it. So who has seen 1 of all members of a session knows that what the sessions before it left is with them all:
//! that is when the last messages of a wedged session are delivered, whose own rows say nothing any more ([`Session::all_persisted`]).
//!
//! # When it was sent
//! A message begins with eight bytes of its sender's clock: the stamps in the log come from these, so all members have the same.

use std::collections::VecDeque;
use std::ops::Range;

use super::{Blame, Blocked, Cold, Fault, Session, Stream};
use crate::fabric::Fabric;
use crate::names::{Position, Seq};
use crate::record::Kind;

/// Bytes before a message in which its sender's clock stands: nanoseconds since 1970, little-endian.
pub const SENT: usize = 8;

/// A record that was logged, and that some member hasn't flushed yet, or that was not delivered.
pub(super) struct Due {
    pub(super) rank: usize,
    pub(super) kind: Kind,
    pub(super) seq: Seq,
    pub(super) end: Position,
    /// Where the message lies, without the sender's clock.
    pub(super) range: Range<usize>,
    pub(super) stamp: u64,
}

impl Due {
    /// The word `persisted` that every member must have.
    fn needs(&self) -> u64 {
        self.seq.0 + 1 + u64::from(self.kind == Kind::Data)
    }
}

/// Where the view of a durable session is written down ([`Session::begun`]).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Begun {
    /// Somebody who is there has not done so.
    NotYet,
    /// All who are there have, in a session that is wedged; but they are no majority. It may be the others who go on, if they are lost to this member alone,
    /// and what they have nobody knows.
    AtTooFew,
    /// Everybody has who goes on.
    Everywhere,
}

/// See the [module](self).
#[derive(Default)]
pub(super) struct Durable {
    due: VecDeque<Due>,
    /// So many of them, the first ones, were delivered.
    delivered: usize,
    /// The own word, and the least of all.
    own: u64,
    least: u64,
    /// Messages delivered.
    pub(super) told: Seq,
    /// In a session that is being cut: all below the trim was logged.
    pub(super) is_logged: bool,
}

impl Durable {
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.due.is_empty()
    }

    pub(super) fn push(&mut self, due: Due) {
        self.due.push_back(due);
    }

    /// What is to be delivered next: if every member has it, or `ahead` of that.
    pub(super) fn next(&self, ahead: bool) -> Option<&Due> {
        self.due.get(self.delivered).filter(|due| ahead || due.needs() <= self.least)
    }

    /// That was delivered.
    pub(super) fn delivered(&mut self) {
        let Some(due) = self.due.get(self.delivered) else { return };
        self.told.0 += u64::from(due.kind == Kind::Data);
        self.delivered += 1;
    }

    /// The first that was delivered, if every member has it: it is not kept any longer.
    pub(super) fn take_flushed(&mut self) -> Option<Due> {
        let is_flushed = self.delivered > 0 && self.due.front()?.needs() <= self.least;
        if !is_flushed {
            return None;
        }
        self.delivered -= 1;
        self.due.pop_front()
    }

    /// Whether all that was logged was delivered.
    pub(super) fn is_all_delivered(&self) -> bool {
        self.delivered == self.due.len()
    }
}

impl Session {
    /// Of a durable session: so much of it is flushed here, in terms of the word `persisted`: 0 for nothing, else one more than so many
    /// messages. Publishes it if it is more than before; flush the fabric after it. Returns whether it was.
    pub fn persist<F: Fabric + ?Sized>(&mut self, fabric: &mut F, persisted: u64) -> bool {
        if persisted <= self.durable.own {
            return false;
        }
        self.durable.own = persisted;
        // In a wedged session, too: the one before it may wait for this.
        self.segment.store(self.base + self.layout.persisted(), persisted);
        self.later = true;
        self.publish(fabric);
        true
    }

    /// Of a durable session: whether all its members have written down the view with which it began, and so everything before it. Of a wedged
    /// one, this member and those who are not [lost](Session::lose): whoever goes on from it has done so, if these are enough to go on. `others`
    /// are the view's voters that the session doesn't know; they count as there.
    ///
    /// # Errors
    /// As [`Session::deliver`].
    pub fn begun(&mut self, others: usize) -> Result<Begun, Fault> {
        self.look_for_persisted()?;
        if !self.is_wedged() {
            return Ok(if self.durable.least > 0 { Begun::Everywhere } else { Begun::NotYet });
        }
        let here = self.peers.iter().filter(|peer| peer.slot.is_some());
        if self.durable.own == 0 || here.clone().any(|peer| peer.persisted == 0) {
            return Ok(Begun::NotYet);
        }
        let (there, voters) = (1 + here.count() + others, self.plan.members.len() + others);
        Ok(if 2 * there > voters { Begun::Everywhere } else { Begun::AtTooFew })
    }

    /// Of a durable session: the least that any member has written down, as far as is known.
    pub fn persisted(&self) -> u64 {
        self.durable.least
    }

    /// Of a durable session that is wedged: every member of a later one has written down all that this one left below the trim.
    pub fn all_persisted(&mut self) {
        if self.durable.is_logged {
            self.durable.least = u64::MAX;
        }
    }

    /// Whether all below the trim is in the log, of a durable session that is being cut.
    pub fn is_logged(&self) -> bool {
        self.durable.is_logged
    }

    /// Looks how far the others are.
    pub(super) fn look_for_persisted(&mut self) -> Result<(), Cold> {
        let mut least = self.durable.own;
        for at in 0..self.peers.len() {
            let peer = &mut self.peers[at];
            let to = peer.mirror.load(peer.base + self.layout.persisted());
            // S1: it never falls. Who says more than is so can only lie of itself.
            let from = peer.persisted;
            if to < from {
                let rank = peer.rank;
                return Err(self.blame(rank, Blame::Persisted { from, to }));
            }
            peer.persisted = to;
            least = least.min(to);
        }
        #[cfg(feature = "mutants")]
        if self.mutant == Some(super::Mutant::OwnLogOnly) {
            least = self.durable.own;
        }
        self.durable.least = self.durable.least.max(least);
        Ok(())
    }

    /// Up to where a sender's records were delivered.
    pub(super) fn delivered_upto(&self, stream: &Stream) -> Position {
        if self.durable.is_all_delivered() { stream.at } else { stream.delivered }
    }

    /// Up to where its room is not needed for what was delivered, apart from loans.
    pub(super) fn flushed_upto(&self, stream: &Stream) -> Position {
        if self.durable.is_empty() { stream.at } else { stream.flushed }
    }

    /// Whether something was delivered that some member has not flushed.
    pub fn is_ahead(&self) -> bool {
        self.durable.delivered > 0
    }

    /// Who has not written down the first message that some member has not flushed.
    pub(super) fn not_persisted(&self) -> Option<Blocked> {
        let due = self.durable.due.front()?;
        let needed = due.needs();
        let own = (self.me, self.durable.own);
        let all = self.peers.iter().map(|peer| (peer.rank, peer.persisted)).chain([own]);
        let (rank, word) = all.min_by_key(|(_, word)| *word).filter(|(_, word)| *word < needed)?;
        let counter = match word.checked_sub(1) {
            Some(flushed) => {
                format!("its log has {flushed} messages of the view flushed, not yet {}", needed - 1)
            }
            None => "its log has not got the view yet".to_owned(),
        };
        Some(Blocked {
            sender: self.plan.members[due.rank].node,
            round: self.streams[due.rank].round,
            waits_for: self.plan.members[rank].node,
            clause: "P2",
            counter,
        })
    }
}
