//! A session: one shard of one group in one view, the unit of ordering. One struct, one owner thread.
//!
//! [`Session::step`] does a message's whole life, each part for all that is there (D9):
//!
//! 1. *receive* (`exchange`): read every peer's `head`: ring bytes up to its position are here (F1, D2), its promise holds
//!    (where rings travel along a `chain`, see there);
//! 2. *send*: take what was committed to the own ring, stamp it with the current round, publish the bytes;
//! 3. *acknowledge*: store `received`, raise the promise to the greatest seen (D5), then store `head`, publish the words;
//! 4. *deliver* (`deliver`): in the order (D6), as far as stable (D7), into the caller's [`Sink`]; in a durable session into its log,
//!    and to be delivered once all members have flushed it, or before (`durable`, P2);
//! 5. *release*: what was delivered and not lent may be overwritten by its sender (D11).
//!
//! # Whom an acknowledgement is for
//! Whether a message may be delivered each member finds out from the words of all. If each of n members tells each other, a message costs
//! n·(n-1) acknowledgements; and where several members share a core they are done one after the other, while its sender waits.
//! So where publishing costs something, those hear of it at once who have sent what was not delivered here: they wait for it. All others hear
//! of it later ([`Session::settle_received`], [`Session::settle`], or with whatever goes to all), and mostly have no need to any more: by then a
//! member that delivered the message, as its sender does first, has told how much it has *delivered*, with the next message it sends or, if there is none, by itself ([`Session::settle_delivered`]). What
//! one member has delivered is ordered and stable (D6, D7), so every member has it here, and it is what comes first in the order of what is here: it is
//! delivered on that word alone.
//!
//! A sender still waits for two hops, and misses no word: whatever is received here after a message of its own, until that one is delivered here, it is told of
//! at once; what was received before went out with the acknowledgement of that message, which is the whole row.
//! Of the other guarantees, what was delivered says too little (not stable) or comes too late (once it is written down): there all are told at once.
//!
//! # Invariants, checked as [`Frontiers::validate`]
//! For every sender s, at every member: `released[s] ≤ delivered up to ≤ stable[s] ≤ received[s] ≤ head of s`
//! (`delivered ≤ stable` for `Atomic` only), all monotone; `head of s - released[s] ≤ ring`.
//! And `received[s]` is published only after every byte below it was here.
//!
//! # Birth and end
//! A session begins in memory that an earlier one used, here and at its members at different times. So it is *born* (V10):
//! [`Session::start`] zeroes the own row and only then sets its tag to the view; and a peer is *unborn*, all its counters
//! zero, until its tag says this view. Whatever words of an earlier session still lie in its mirror, or are under way to
//! it, come before the tag (F1) and are never read.
//!
//! It ends when it is wedged (V2): [`Session::wedge`] freezes it. Then, each in as many calls as it takes:
//! [`Session::supply`] brings what is below the trim and never came here (V3), [`Session::cut`] delivers all that is below
//! the trim (V4), [`Session::resend`] hands back what this node sent beyond it (D13). When that is done and every loan is
//! back, [`Session::is_free`] says so: its memory is not needed here any more.

mod chain;
mod frontiers;
mod durable;
mod deliver;
mod supply;
mod reads;

use std::collections::VecDeque;
use std::ops::Range;

use crate::fabric::{Fabric, Relaying};
use crate::layout::{Layout, ROW_BYTES, pack_head, unpack_head};
use crate::loan::Loans;
use crate::memory::{Mirror, Segment, WORD};
use crate::names::{NodeId, PeerSet, Position, Rank, RankSet, Round, Seq, Slot};
use crate::plan::{Guarantee, PlanError, SessionPlan, Topology};
use crate::record::Kind;
use crate::ring::{RingOwner, RingSender, Ticket};

pub use deliver::{Delivery, Flushed, Logged, Sink, Verdict};
pub use durable::{Begun, SENT};
pub use frontiers::{Blocked, Frontiers, SenderFrontiers};
pub use supply::{Needed, SupplyError};

/// A session can't go on.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// A peer wrote what no sound member writes (S1). Fence it: it is not to be trusted further.
    #[error("member {node} broke the protocol: {blame}")]
    Peer {
        /// Its rank.
        rank: Rank,
        /// Who it is.
        node: NodeId,
        /// What it did.
        blame: Blame,
    },
    /// Along a chain, the fabric would not pass on what a member sent (F6): its link was fenced, and the session was not told to
    /// [lose](Session::lose) it before. Those behind this node wait for the bytes in vain, so the view has to change.
    #[error(
        "the fabric passes on nothing of member {node} any more, and the session was not told that it is lost: leave the view"
    )]
    Relay {
        /// Its rank.
        rank: Rank,
        /// Who it is.
        node: NodeId,
    },
}

/// What a peer did that no sound member does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Blame {
    /// The published position or promise fell, or the position ran over bytes that aren't released.
    #[error("its head went from position {from}, promise {promise} to the word {word:#018x}")]
    Head {
        /// The last sound position.
        from: Position,
        /// The last sound promise.
        promise: Round,
        /// What was read.
        word: u64,
    },
    /// An acknowledgement fell, or covers what was never sent.
    #[error("its acknowledgement of rank {sender}'s ring went from {from} to {to}")]
    Received {
        /// Whose ring.
        sender: Rank,
        /// The last sound value.
        from: Position,
        /// What was read.
        to: Position,
    },
    /// It released what it didn't have, or took a release back.
    #[error("it released this node's ring up to {to}, after {from}")]
    Released {
        /// The last sound value.
        from: Position,
        /// What was read.
        to: Position,
    },
    /// It took back what it said to have written down.
    #[error("it had written down {from} of the session, and now says {to}")]
    Persisted {
        /// The last sound value.
        from: u64,
        /// What was read.
        to: u64,
    },
    /// It took back what it said to have delivered.
    #[error("it had delivered {from} messages of the session, and now says {to}")]
    Delivered {
        /// The last sound value.
        from: Seq,
        /// What was read.
        to: Seq,
    },
    /// It answered more questions than were asked.
    #[error("it answered {answered} questions of the {asked} that this node has asked")]
    Answered {
        /// Questions asked.
        asked: u64,
        /// What was read.
        answered: u64,
    },
    /// A header that no sound sender writes.
    #[error("the record at {at} of its ring has the header {word:#018x}")]
    Record {
        /// Where.
        at: Position,
        /// What was read.
        word: u64,
    },
}

/// A fault on its way out: a pointer, so that what returns it in the hot path stays small.
struct Cold(Box<Fault>);

impl From<Cold> for Fault {
    fn from(cold: Cold) -> Self {
        *cold.0
    }
}

/// How another member is seen.
struct Peer {
    rank: usize,
    slot: Option<Slot>,
    /// Where its row is: in its mirror, or in a page of zeros while it is unborn.
    mirror: Mirror,
    base: usize,
    /// Its mirror, while it is unborn.
    unborn: Option<Mirror>,
    /// The last head read, as it was.
    head: u64,
    /// `received[s]` of this peer, for each s.
    received: Vec<Position>,
    /// Up to where it released this node's ring.
    released: Position,
    /// How much of the session it has written down.
    persisted: u64,
    /// How much of it it has delivered, as far as was looked.
    delivered: Seq,
    /// How many of its questions for a read point were answered.
    answered: u64,
    /// The digest of its application's state that was read last.
    digest: u64,
}

/// One sender's stream, as this member has it.
struct Stream {
    /// Where the ring's bytes are: the peer's mirror, or the own segment; or a copy, once something was supplied.
    memory: Mirror,
    /// Where the ring starts there.
    ring: usize,
    /// Up to here its records are here.
    received: Position,
    /// It sends nothing below this round any more, and all that it sent below is here.
    promise: Round,
    /// The same, whatever is here: no record of it has this round or a later one. Another than `promise` along a chain only.
    heard: Round,
    /// Up to here every member has its records, as far as was looked.
    stable: Position,
    /// Up to here its records were delivered; in a durable session: logged.
    at: Position,
    /// In a durable session: up to here they were delivered,
    delivered: Position,
    /// and every member has flushed them.
    flushed: Position,
    /// The round of its last record looked at.
    round: Round,
    /// The record at `at`, if looked at already.
    next: Option<deliver::Next>,
    /// Up to here its room was released, and the value last published.
    released: Position,
    released_published: Position,
}

/// A member's heartbeats in a session (V9), of which it matters only whether they change: by the next 2^32 somebody has looked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Heartbeat {
    /// Its engine's, which runs.
    pub engine: u32,
    /// Its application's, which takes what is delivered in the session. It never beats when the engine doesn't.
    pub application: u32,
}

impl Heartbeat {
    const fn pack(self) -> u64 {
        (self.application as u64) << 32 | self.engine as u64
    }

    const fn unpack(word: u64) -> Self {
        Self { engine: word as u32, application: (word >> 32) as u32 }
    }
}

/// A delivered record whose room can't be released yet: it is lent, or not flushed.
struct Held {
    rank: usize,
    end: Position,
    /// The loan that must come back first; `None` if it only waits for those before it.
    loan: Option<u64>,
}

/// A message of this node that lies beyond the trim: nobody has delivered it ([`Session::resend`]).
#[derive(Debug)]
pub struct Beyond<'a> {
    /// Which send it was.
    pub ticket: Ticket,
    /// What it is.
    pub kind: Kind,
    /// The members that it was for, if not for all (D12).
    pub to: Option<RankSet>,
    /// The message.
    pub payload: &'a [u8],
}

/// The engine of one session. See the [module](self).
pub struct Session {
    plan: SessionPlan,
    me: usize,
    layout: Layout,
    segment: Segment,
    base: usize,
    ring: RingOwner,
    peers: Vec<Peer>,
    everyone: PeerSet,
    /// Whom the own ring's bytes are sent to: everyone, or the next along the chain.
    ring_to: PeerSet,
    /// Rings travel from member to member, until it is wedged.
    chain: Option<Box<chain::Chain>>,
    /// Others wait for what this member has received.
    hurries: bool,
    /// Those who don't are told later; and some have not been told.
    defers: bool,
    deferred: bool,
    /// Messages of this member were delivered, and the others, who are told of it with the next one, have not been told.
    owes: bool,
    /// Nothing was sent in the last exchange, and senders may be short of room.
    is_short: bool,
    /// The peers that are unborn, as bits by rank.
    unborn: u64,
    streams: Vec<Stream>,
    /// The streams, as bits by rank, of which something is here that wasn't passed over or delivered.
    pending: u64,
    /// Messages delivered; in a durable session: logged.
    seq: Seq,
    /// In a durable session: what was logged, and not delivered or not flushed by all, in order, and how it stands.
    durable: durable::Durable,
    held: VecDeque<Held>,
    loans: Loans,
    reads: reads::Reads,
    /// Words that may wait were stored and not published.
    later: bool,
    beats: Heartbeat,
    /// Where the own ring ends, once wedged.
    wedged: Option<Position>,
    /// [`Session::cut`] has delivered all that it had to.
    is_cut: bool,
    /// Up to where [`Session::resend`] has gone, and whether that is all.
    resent: Position,
    is_resent: bool,
    /// Pads were passed over whose room wasn't released yet.
    passed_pads: bool,
    #[cfg(feature = "mutants")]
    mutant: Option<Mutant>,
}

/// Rules to break on purpose, so that tests can show that they would notice.
#[cfg(feature = "mutants")]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mutant {
    /// D2: the head goes out before the ring bytes that it covers.
    HeadFirst,
    /// D5: a silent member keeps its promise where it is.
    SilentPromise,
    /// D6: equal rounds are delivered without looking at ranks.
    NoTieBreak,
    /// D7: delivery doesn't wait for the others to have received.
    NotStable,
    /// D11: room is released when a record is received, before it is delivered.
    EarlyRelease,
    /// V10: peers count as born from the start, whatever their tags say.
    IgnoreTags,
    /// A wedged member goes on answering questions for read points.
    AnswersWhenWedged,
    /// A read point is due before the others have answered.
    UnconfirmedPoint,
    /// A read point is due before what lay below its frontier is delivered.
    UndeliveredPoint,
    /// D12: the payload of an addressed message is published to nobody.
    PayloadToNone,
    /// D12: an addressed message takes no place in the order at those whom it isn't for.
    NoPlace,
    /// A read point goes by what the rows said when its question was asked, not when it was answered.
    EarlyFrontier,
    /// D6: along a chain a promise counts before the bytes that it was published with have come.
    PromiseAhead,
    /// D2: along a chain a head vouches for bytes that come another way.
    HeadVouches,
    /// F6: along a chain a member acknowledges before it has passed on.
    AcknowledgedFirst,
    /// F4: along a chain what others vouch for counts though its origin is fenced.
    LostCounts,
    /// P2: what this member has written down is delivered, whatever the others have.
    OwnLogOnly,
    /// D7: what one member has delivered is delivered here as far as there is anything, not as far as it says.
    ToldTooMuch,
    /// A question is answered before what was received is told.
    AnswersFirst,
}

impl Session {
    /// Starts a session, and tells the members so. The links to all of them must be up. Whatever lies in the session's
    /// region, here and in the mirrors, is overwritten or passed over; but nobody may need it any more: all members of an
    /// earlier session in the same region must be done with that one ([`Session::is_free`]).
    ///
    /// # Errors
    /// The plan breaks a rule, a segment is too small for it, a member isn't linked, or the fabric can't do what it asks for.
    pub fn start<F: Fabric + ?Sized>(
        plan: SessionPlan,
        fabric: &mut F,
    ) -> Result<(Self, RingSender), PlanError> {
        plan.check()?;
        let relaying = fabric.relaying();
        if plan.topology == Topology::Chain && relaying == Relaying::Unsupported {
            return Err(PlanError::Relays(fabric.name()));
        }
        let me = usize::from(plan.me.0);
        let n = plan.members.len();
        let layout = Layout::new(n);
        let segment = fabric.segment().clone();
        let mut peers = Vec::with_capacity(n - 1);
        let mut streams = Vec::with_capacity(n);
        let mut everyone = PeerSet::EMPTY;
        let mut unborn = 0;
        let zeros = Segment::private(ROW_BYTES).mirror();
        for (rank, member) in plan.members.iter().enumerate() {
            let needed = member.base + SessionPlan::region_bytes(plan.ring_bytes);
            let memory = match member.slot {
                None if rank == me => segment.mirror(),
                // Its link is gone already: it never begins the session, as far as this member will ever see.
                None => Segment::private(needed).mirror(),
                Some(slot) => fabric.mirror(slot).cloned().ok_or(PlanError::Unlinked(member.node))?,
            };
            if memory.size() < needed {
                return Err(PlanError::Segment { node: member.node, bytes: memory.size(), needed });
            }
            if rank != me {
                everyone = member.slot.map_or(everyone, |slot| everyone.with(slot));
                unborn |= 1 << rank;
                peers.push(Peer {
                    rank,
                    slot: member.slot,
                    mirror: zeros.clone(),
                    base: 0,
                    unborn: Some(memory.clone()),
                    head: 0,
                    received: vec![Position(0); n],
                    released: Position(0),
                    persisted: 0,
                    delivered: Seq(0),
                    answered: 0,
                    digest: 0,
                });
            }
            streams.push(Stream {
                memory,
                ring: member.base + layout.ring(),
                received: Position(0),
                promise: Round(0),
                heard: Round(0),
                stable: Position(0),
                at: Position(0),
                delivered: Position(0),
                flushed: Position(0),
                round: Round(0),
                next: None,
                released: Position(0),
                released_published: Position(0),
            });
        }
        let base = plan.members[me].base;
        let ring = RingOwner::new(segment.clone(), base + layout.ring(), plan.ring_bytes);
        let sender = ring.sender();
        let loans = Loans::new(streams.iter().map(|s| s.memory.clone()).collect());
        let mut session = Self {
            me,
            layout,
            segment,
            base,
            ring,
            peers,
            everyone,
            ring_to: everyone,
            chain: None,
            hurries: plan.guarantee.stable(),
            // Of two members the other one is the sender; along a chain it is not the sender who knows first.
            defers: plan.guarantee == Guarantee::Atomic
                && plan.topology == Topology::Direct
                && n > 2
                && fabric.publishing_costs(),
            deferred: false,
            owes: false,
            is_short: false,
            unborn,
            streams,
            pending: 0,
            seq: Seq(0),
            durable: durable::Durable::default(),
            held: VecDeque::new(),
            loans,
            reads: reads::Reads::default(),
            later: false,
            beats: Heartbeat::default(),
            wedged: None,
            is_cut: false,
            resent: Position(0),
            is_resent: false,
            passed_pads: false,
            plan,
            #[cfg(feature = "mutants")]
            mutant: None,
        };
        // Two are no chain; and where all see the origin's memory there is nothing to pass on.
        if session.plan.topology == Topology::Chain && n > 2 && relaying == Relaying::Carried {
            session.hurries = true;
            session.form_chain(fabric);
        }
        session.be_born(fabric);
        Ok((session, sender))
    }

    /// Makes the own row this session's (V10): nobody sees the tag before the zeros under it (F1).
    fn be_born<F: Fabric + ?Sized>(&mut self, fabric: &mut F) {
        let tag = self.base + self.layout.tag();
        self.segment.store(tag, 0);
        fabric.publish_words(tag..tag + WORD, self.everyone);
        fabric.flush();
        let row = self.words(self.layout.end());
        for word in row.clone().step_by(WORD) {
            self.segment.store(word, 0);
        }
        fabric.publish_words(row, self.everyone);
        fabric.flush();
        self.segment.store(tag, self.plan.view.0);
        fabric.publish_words(tag..tag + WORD, self.everyone);
        fabric.flush();
    }

    /// Finds out which peers were born since the last look: their rows are read from now on.
    #[cold]
    fn look_for_births(&mut self) {
        for peer in &mut self.peers {
            let Some(memory) = &peer.unborn else { continue };
            let base = self.plan.members[peer.rank].base;
            // Pairs with the Release in Segment::store: who sees the tag sees the zeros, or what came after them.
            let is_born = memory.load(base + self.layout.tag()) == self.plan.view.0;
            #[cfg(feature = "mutants")]
            let is_born = is_born || self.mutant == Some(Mutant::IgnoreTags);
            if is_born && let Some(memory) = peer.unborn.take() {
                (peer.mirror, peer.base) = (memory, base);
                self.unborn &= !(1 << peer.rank);
            }
        }
    }

    /// What the session was started from.
    pub fn plan(&self) -> &SessionPlan {
        &self.plan
    }

    /// The members whose session hasn't begun, as far as is known here: nothing of theirs counts yet.
    ///
    /// When there are none, whatever the members published in earlier sessions has arrived here, or never will: their births
    /// come behind it (F1). So a node that is done with an earlier session says so only then, and its members can write over
    /// ring bytes that a fabric would otherwise still have to send. A session that was wedged before it saw anything is asked too: so
    /// this looks at the memory, and a peer that is in a later session by now counts as born.
    pub fn unborn(&self) -> impl Iterator<Item = NodeId> {
        // Not where its ring is read: that may be a copy by now, if something of it was supplied.
        let is_unborn = |peer: &&Peer| {
            let tag = self.plan.members[peer.rank].base + self.layout.tag();
            peer.unborn.as_ref().is_some_and(|memory| memory.load(tag) < self.plan.view.0)
        };
        self.peers.iter().filter(is_unborn).map(|peer| self.plan.members[peer.rank].node)
    }

    /// One step: receive, send, acknowledge, deliver, release, and flush the fabric. Returns whether anything happened.
    /// Never blocks; what `sink` does with a message is the caller's.
    ///
    /// # Errors
    /// A peer broke the protocol: the session is as it was before the bad word; fence the peer. Or nothing can be passed on along the chain.
    pub fn step<F: Fabric + ?Sized>(&mut self, fabric: &mut F, sink: &mut dyn Sink) -> Result<bool, Fault> {
        let exchanged = self.exchange(fabric)?;
        // A session in which nothing happens is to cost little: there may be many beside the one that is used.
        if exchanged || self.chain.is_some() {
            fabric.flush();
        }
        let delivered = self.deliver(fabric, sink)?;
        if delivered {
            fabric.flush();
        }
        Ok(exchanged || delivered)
    }

    /// The first half of a step, for callers with many sessions: receive, send, acknowledge. Flush the fabric after it:
    /// others wait for what it published.
    ///
    /// # Errors
    /// As [`Session::step`].
    pub fn exchange<F: Fabric + ?Sized>(&mut self, fabric: &mut F) -> Result<bool, Fault> {
        // A wedged session looks too: who is done with the one before it must still learn of the births.
        if self.unborn != 0 {
            self.look_for_births();
        }
        if self.is_wedged() {
            self.leave_chain(fabric);
            #[cfg(feature = "mutants")]
            if self.mutant == Some(Mutant::AnswersWhenWedged) {
                self.answer();
                self.publish_reads(fabric);
            }
            return Ok(false);
        }
        let mut promise = self.streams[self.me].promise;
        let (received, seen) = match self.chain.take() {
            None => self.receive_all()?,
            Some(mut chain) => {
                let came = self.receive_along(&mut chain, fabric);
                self.chain = Some(chain);
                came?
            }
        };

        // D5: at least what anyone promised. For a sender this is also the round that it stamps next (D4).
        if self.raises_promises() {
            promise = promise.max(seen);
        }
        let from = self.ring.taken();
        let sent = self.ring.take(promise.0 as u32);
        if sent {
            #[cfg(feature = "mutants")]
            if self.mutant == Some(Mutant::HeadFirst) {
                let head = pack_head(self.ring.taken(), Round(promise.0 + 1));
                self.segment.store(self.base + self.layout.head(), head);
                fabric.publish_words(self.words(self.layout.urgent_end()), self.everyone);
                fabric.flush();
            }
            // D2: the bytes first, then the head that covers them.
            if self.ring.private().is_empty() {
                self.publish_between(from..self.ring.taken(), self.ring_to, fabric);
            } else {
                self.publish_addressed(from, fabric);
            }
            promise = Round(promise.0 + 1);
            let own = &mut self.streams[self.me];
            own.received = self.ring.taken();
            self.pending |= 1 << self.me;
            self.segment.store(self.base + self.layout.received(self.me), own.received.0);
        }

        let raised = promise > self.streams[self.me].promise;
        if raised {
            let own = &mut self.streams[self.me];
            (own.promise, own.heard) = (promise, promise);
            // D1: position and promise in one word.
            self.segment.store(self.base + self.layout.head(), pack_head(self.ring.taken(), promise));
        }
        // What the others wait for goes out at once; what they don't need for a delivery goes with it, or later.
        let wanted = sent || raised && self.plan.guarantee.ordered() || received && self.hurries;
        if wanted && self.defers && !sent {
            self.acknowledge(fabric);
        } else if wanted {
            self.publish(fabric);
        } else {
            self.later |= raised || received;
        }
        let wants_room = self.ring.wants_room();
        if wants_room {
            self.make_room()?;
        }
        self.is_short = wants_room && !sent;
        let asked = self.look_for_reads(fabric)?;
        Ok(sent || received || raised || asked)
    }

    /// Publishes a part of the own ring.
    #[inline]
    fn publish_between<F: Fabric + ?Sized>(&self, between: Range<Position>, peers: PeerSet, fabric: &mut F) {
        let [first, second] = self.ring.parts(between);
        fabric.publish_ring(first, peers);
        if !second.is_empty() {
            fabric.publish_ring(second, peers);
        }
    }

    /// Publishes the ring from `from` on, the payload of what is addressed to those alone whom it is for (D12).
    #[cold]
    fn publish_addressed<F: Fabric + ?Sized>(&self, mut from: Position, fabric: &mut F) {
        for private in self.ring.private() {
            let addressed = |peer: &&Peer| private.to.contains(rank_at(peer.rank));
            let peers: PeerSet = self.peers.iter().filter(addressed).filter_map(|peer| peer.slot).collect();
            #[cfg(feature = "mutants")]
            let peers = if self.mutant == Some(Mutant::PayloadToNone) { PeerSet::EMPTY } else { peers };
            self.publish_between(from..private.from, self.everyone, fabric);
            if private.from < private.end && !peers.is_empty() {
                self.publish_between(private.from..private.end, peers, fabric);
            }
            from = private.end;
        }
        if from < self.ring.taken() {
            self.publish_between(from..self.ring.taken(), self.everyone, fabric);
        }
    }

    /// Takes in what all peers published since the last look. Returns whether there were records, and the greatest promise.
    #[inline]
    fn receive_all(&mut self) -> Result<(bool, Round), Cold> {
        let (mut received, mut seen) = (false, Round(0));
        for at in 0..self.peers.len() {
            received |= self.receive(at)?;
            seen = seen.max(self.streams[self.peers[at].rank].promise);
        }
        Ok((received, seen))
    }

    /// Takes in what peer `at` published since the last look. Returns whether there were records.
    #[inline]
    fn receive(&mut self, at: usize) -> Result<bool, Cold> {
        let peer = &mut self.peers[at];
        let word = peer.mirror.load(peer.base + self.layout.head());
        if word == peer.head {
            return Ok(false);
        }
        let stream = &mut self.streams[peer.rank];
        // S1, D11: nobody may publish over what this member hasn't released.
        let limit = Position(stream.released.0 + self.plan.ring_bytes as u64);
        let Some((position, promise)) = unpack_head(word, stream.received, stream.promise, limit) else {
            let blame = Blame::Head { from: stream.received, promise: stream.promise, word };
            return Err(self.blame(self.peers[at].rank, blame));
        };
        peer.head = word;
        let more = position > stream.received;
        // D6: the promise counts with all that was published with it; both come from the one word.
        (stream.promise, stream.heard) = (promise, promise);
        stream.received = position;
        let rank = peer.rank;
        if more {
            self.pending |= 1 << rank;
            self.segment.store(self.base + self.layout.received(rank), position.0);
        }
        Ok(more)
    }

    /// Finds out what every member released of the own ring, and lets senders have it (D11).
    fn make_room(&mut self) -> Result<(), Cold> {
        let mut least = self.streams[self.me].released;
        for at in 0..self.peers.len() {
            let peer = &mut self.peers[at];
            let to = Position(peer.mirror.load(peer.base + self.layout.released(self.me)));
            if to < peer.released || to > self.streams[self.me].received {
                let blame = Blame::Released { from: peer.released, to };
                return Err(self.blame(self.peers[at].rank, blame));
            }
            peer.released = to;
            least = least.min(to);
        }
        self.ring.release(least);
        Ok(())
    }

    /// Publishes the row to those who wait for it: who has sent what was not delivered here. The others are told later.
    fn acknowledge<F: Fabric + ?Sized>(&mut self, fabric: &mut F) {
        let mut to = PeerSet::EMPTY;
        for peer in &self.peers {
            if self.pending & 1 << peer.rank != 0
                && let Some(slot) = peer.slot
            {
                to = to.with(slot);
                // Nobody else waits for what this member released of its ring.
                let stream = &mut self.streams[peer.rank];
                stream.released_published = stream.released;
            }
        }
        if to == self.everyone {
            return self.publish(fabric);
        }
        if !to.is_empty() {
            fabric.publish_words(self.words(self.layout.later_end()), to);
        }
        (self.later, self.deferred) = (true, true);
    }

    /// Publishes the row: all of it if words that could wait have changed.
    fn publish<F: Fabric + ?Sized>(&mut self, fabric: &mut F) {
        let end = if self.later { self.layout.later_end() } else { self.layout.urgent_end() };
        fabric.publish_words(self.words(end), self.everyone);
        (self.deferred, self.owes) = (false, false);
        if self.later {
            self.later = false;
            for stream in &mut self.streams {
                stream.released_published = stream.released;
            }
        }
    }

    fn words(&self, end: usize) -> Range<usize> {
        self.base..self.base + end
    }

    /// Publishes what could wait so far. Call it when a step found nothing to do and before sleeping: others may wait
    /// for room. Flush the fabric after it.
    pub fn settle<F: Fabric + ?Sized>(&mut self, fabric: &mut F) {
        if self.is_wedged() {
            return;
        }
        if self.later {
            self.publish(fabric);
        }
        // Whoever asked something is not to wait for this member's sleep.
        self.answer();
        self.publish_reads(fabric);
    }

    /// The part of [`Session::settle`] that others wait for to deliver, if no message of another member tells them sooner: publishes
    /// what was received, if not all have been told. Flush the fabric after it. Returns whether it published.
    pub fn settle_received<F: Fabric + ?Sized>(&mut self, fabric: &mut F) -> bool {
        let publishes = self.deferred && !self.is_wedged();
        if publishes {
            self.publish(fabric);
        }
        publishes
    }

    /// Another part of [`Session::settle`], which comes sooner: publishes what was delivered here of this member's own messages, if no other message has taken that
    /// along. Flush the fabric after it. Returns whether it published.
    pub fn settle_delivered<F: Fabric + ?Sized>(&mut self, fabric: &mut F) -> bool {
        let publishes = self.owes && !self.is_wedged();
        if publishes {
            self.publish(fabric);
        }
        publishes
    }

    /// The part of [`Session::settle`] that others may wait for: publishes if room was released that is no small part of a ring and that nobody
    /// knows of. Flush the fabric after it. Returns whether it published.
    pub fn settle_room<F: Fabric + ?Sized>(&mut self, fabric: &mut F) -> bool {
        let much = self.plan.ring_bytes as u64 / 64;
        let is_much = |stream: &Stream| stream.released.0 - stream.released_published.0 >= much;
        let publishes = !self.is_wedged() && self.later && self.streams.iter().any(is_much);
        if publishes {
            self.publish(fabric);
        }
        publishes
    }

    /// Whether there is something to do that no peer will wake this node for: messages committed, loans returned, digests taken in by
    /// [`Session::settle`] that [`Session::poll_digest`] has not told. In a wedged session: whether there are committed messages that
    /// [`Session::resend`] has not handed back.
    pub fn has_work(&self) -> bool {
        // Not `has_read_news`: a point that isn't due waits for what others publish.
        self.has_own_work() || !self.is_wedged() && self.reads.has_digests()
    }

    /// The same without the digests: for a session that is not asked for them yet.
    pub fn has_own_work(&self) -> bool {
        self.ring.ready() || !self.is_wedged() && self.loan_is_back()
    }

    /// Counts the heartbeat up by one and publishes it; `takes`: so has the application, which takes what is delivered, or nothing
    /// waits for it. Flush the fabric after it.
    pub fn beat<F: Fabric + ?Sized>(&mut self, fabric: &mut F, takes: bool) {
        if !self.is_wedged() {
            self.beats.engine = self.beats.engine.wrapping_add(1);
            self.beats.application = self.beats.application.wrapping_add(u32::from(takes));
            self.segment.store(self.base + self.layout.heartbeat(), self.beats.pack());
            self.later = true;
            self.publish(fabric);
        }
    }

    /// The heartbeat of a member, as last published; `None` if there is no such member.
    pub fn heartbeat(&self, rank: Rank) -> Option<Heartbeat> {
        if usize::from(rank.0) == self.me {
            return Some(self.beats);
        }
        let peer = self.peers.iter().find(|p| p.rank == usize::from(rank.0))?;
        Some(Heartbeat::unpack(peer.mirror.load(peer.base + self.layout.heartbeat())))
    }

    /// Stops the session for good: its frontiers freeze, its ring takes nothing more (V2). Returns the frozen frontiers,
    /// of which `received` is the report.
    pub fn wedge(&mut self) -> Frontiers {
        if self.wedged.is_none() {
            self.wedged = Some(self.ring.close());
        }
        self.frontiers()
    }

    /// Whether [`Session::wedge`] was called.
    pub fn is_wedged(&self) -> bool {
        self.wedged.is_some()
    }

    /// Where this node's own ring ends, once wedged: no message of it lies beyond.
    pub fn end(&self) -> Option<Position> {
        self.wedged
    }

    /// Gives `send` this node's messages that lie beyond the trim, in their order, each once over all calls: nobody has
    /// delivered them in this view, so the caller sends them again in the next (D13). Call it in a wedged session, with the
    /// trim of [`Session::cut`], whether that is done or not: it doesn't touch what lies below.
    ///
    /// Returns false while threads still hold reservations that they made before the wedge: those messages
    /// come with a later call, so keep the session until it returns true.
    pub fn resend(&mut self, trim: &[Position], mut send: impl FnMut(&Beyond<'_>)) -> bool {
        let Some(end) = self.wedged else { return false };
        // What was committed and never stamped, or not even committed at the wedge. It is not published any more.
        self.ring.take(0);
        self.resent = self.resent.max(trim[self.me]);
        while let Some(own) = self.ring.record(self.resent) {
            send(&Beyond { ticket: Ticket(own.end), kind: own.kind, to: own.to, payload: own.payload });
            self.resent = own.end;
        }
        self.is_resent = self.ring.taken() == end;
        self.is_resent
    }

    /// Whether a delivered message is lent (D10): its room, and what comes after it, is not released yet.
    pub fn lends(&self) -> bool {
        self.held.iter().any(|held| held.loan.is_some_and(|loan| !self.loans.came_back(loan)))
    }

    /// Whether the session is over here, and its memory not needed any more: it is cut, all that was to be sent again was
    /// handed back, and every loan has come back.
    pub fn is_free(&self) -> bool {
        let is_back = |held: &Held| held.loan.is_none_or(|loan| self.loans.came_back(loan));
        self.is_cut && self.is_resent && self.held.iter().all(is_back)
    }

    /// The rank of the member behind `slot`.
    pub fn rank_of(&self, slot: Slot) -> Option<Rank> {
        self.peers.iter().find(|p| p.slot == Some(slot)).and_then(|p| u8::try_from(p.rank).ok()).map(Rank)
    }

    #[cold]
    fn blame(&self, rank: usize, blame: Blame) -> Cold {
        Cold(Box::new(Fault::Peer { rank: rank_at(rank), node: self.plan.members[rank].node, blame }))
    }

    fn raises_promises(&self) -> bool {
        #[cfg(feature = "mutants")]
        if self.mutant == Some(Mutant::SilentPromise) {
            return false;
        }
        true
    }

    /// Breaks a rule from now on, for tests of the tests.
    #[cfg(feature = "mutants")]
    pub fn mutate(&mut self, mutant: Mutant) {
        self.mutant = Some(mutant);
    }
}

#[cfg(all(test, not(loom)))]
mod tests;

/// A rank from an index into the members, of which there are at most [`crate::names::MAX_NODES`].
fn rank_at(index: usize) -> Rank {
    Rank(index as u8)
}
