//! How far a session is, for people and for view changes: every counter by its name, and what delivery waits for.

use std::fmt;

use super::{Session, rank_at};
use crate::names::{NodeId, Position, Rank, Round, Seq};
use crate::order::Key;
use crate::record::{HEADER, Header};

/// A session's counters at one member, at one moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frontiers {
    /// Messages delivered.
    pub delivered: Seq,
    /// By sender, in rank order.
    pub senders: Vec<SenderFrontiers>,
    /// The size of every ring, in bytes.
    pub ring_bytes: usize,
}

/// One sender's stream, as one member has it; positions in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SenderFrontiers {
    /// Who sends.
    pub node: NodeId,
    /// It sends nothing below this round.
    pub promise: Round,
    /// Up to here its records have arrived. In a wedged session this is the report (V2).
    pub received: Position,
    /// Up to here every member is known to have them.
    pub stable: Position,
    /// Up to here they were delivered.
    pub delivered: Position,
    /// Up to here the sender may reuse its ring, for all that this member cares.
    pub released: Position,
}

impl Frontiers {
    /// Checks the inequalities that always hold.
    ///
    /// # Errors
    /// The first one that doesn't, in words.
    pub fn validate(&self) -> Result<(), String> {
        for s in &self.senders {
            let chain = [("released", s.released), ("delivered", s.delivered), ("received", s.received)];
            for pair in chain.windows(2) {
                if pair[0].1 > pair[1].1 {
                    return Err(format!(
                        "of {}: {} {} > {} {}",
                        s.node, pair[0].0, pair[0].1, pair[1].0, pair[1].1
                    ));
                }
            }
            if s.stable > s.received {
                return Err(format!("of {}: stable {} > received {}", s.node, s.stable, s.received));
            }
            if s.received.0 - s.released.0 > self.ring_bytes as u64 {
                return Err(format!(
                    "of {}: more than a ring between {} and {}",
                    s.node, s.released, s.received
                ));
            }
        }
        Ok(())
    }
}

/// What the next delivery waits for (V11).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Blocked {
    /// The sender of the message that waits.
    pub sender: NodeId,
    /// The message's round.
    pub round: Round,
    /// The member that it waits for.
    pub waits_for: NodeId,
    /// The rule that makes it wait.
    pub clause: &'static str,
    /// That member's counter and the value that it needs, in words.
    pub counter: String,
}

impl fmt::Display for Blocked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "a message of node {} in round {} waits for node {} ({}): {}",
            self.sender, self.round, self.waits_for, self.clause, self.counter
        )
    }
}

impl Session {
    /// The counters now.
    pub fn frontiers(&self) -> Frontiers {
        let senders = self.streams.iter().zip(&self.plan.members).map(|(stream, member)| SenderFrontiers {
            node: member.node,
            promise: stream.promise,
            received: stream.received,
            stable: stream.stable,
            delivered: self.delivered_upto(stream),
            released: stream.released,
        });
        Frontiers {
            delivered: self.delivered(),
            senders: senders.collect(),
            ring_bytes: self.plan.ring_bytes,
        }
    }

    /// Messages delivered so far.
    pub fn delivered(&self) -> Seq {
        if self.plan.guarantee.durable() { self.durable.told } else { self.seq }
    }

    /// What keeps the next message from being delivered; `None` if none is here, or if nothing does.
    pub fn blocked(&self) -> Option<Blocked> {
        if self.plan.guarantee.durable()
            && let Some(blocked) = self.not_persisted()
        {
            return Some(blocked);
        }
        let mut first: Option<(Key, Position)> = None;
        for (rank, stream) in self.streams.iter().enumerate() {
            let Some((round, end)) = self.first_record(rank, stream.at) else { continue };
            let key = Key::new(round, rank);
            if first.is_none_or(|(least, _)| key < least) {
                first = Some((key, end));
            }
        }
        let (key, end) = first?;
        let blocked = |rank: usize, clause, counter| Blocked {
            sender: self.plan.members[key.rank()].node,
            round: key.round(),
            waits_for: self.plan.members[rank].node,
            clause,
            counter,
        };
        if self.plan.guarantee.ordered() {
            for (rank, stream) in self.streams.iter().enumerate() {
                if rank != key.rank() && Key::new(stream.promise, rank) < key {
                    let needed = key.round().0 + u64::from(rank < key.rank());
                    return Some(blocked(
                        rank,
                        "D6",
                        format!("its promise is {}, not yet {needed}", stream.promise),
                    ));
                }
            }
        }
        if self.plan.guarantee.stable() {
            for peer in &self.peers {
                let acked = peer.mirror.load(peer.base + self.layout.received(key.rank()));
                if peer.rank != key.rank() && acked < end.0 {
                    let counter = format!("it has received up to {acked}, not yet {end}");
                    return Some(blocked(peer.rank, "D7", counter));
                }
            }
        }
        None
    }

    /// Round and end of the first record at or after `at` that is no pad.
    fn first_record(&self, rank: usize, mut at: Position) -> Option<(Round, Position)> {
        let stream = &self.streams[rank];
        while at < stream.received {
            let place = at.0 & (self.plan.ring_bytes as u64 - 1);
            let header = Header::parse(stream.memory.load(stream.ring + place as usize))?;
            let end = Position(at.0 + header.size().max(HEADER) as u64);
            if header.kind != crate::record::Kind::Pad {
                let round = crate::layout::unwrap(stream.round.0, header.round, (1 << 31) - 1)?;
                return Some((Round(round), end));
            }
            at = end;
        }
        None
    }

    /// Who the members are, in rank order.
    pub fn members(&self) -> impl Iterator<Item = (Rank, NodeId)> {
        self.plan.members.iter().enumerate().map(|(rank, member)| (rank_at(rank), member.node))
    }
}
