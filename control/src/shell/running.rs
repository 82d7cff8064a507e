//! [`Running`]: a session with all that the driver knows of it, from its start to its end.
//!
//! ```text
//!            wedge (V2)          trim known            all below it delivered, all beyond it sent again,
//!            or a peer's fault   (V4)                  no loan out, all of the next view born (V10)
//! running ─────────────► wedged ──────► delivering … ──────────────────────► retired
//! ```
//! What lies below the trim is delivered as fast as the application takes it. What this node sent beyond it is taken out at once,
//! whatever the application does, and sent in the next session: senders must not wait for who takes. It is copied on its
//! way, for it may be that there is no session to send it in, and the one that will be needs this one's memory (V10).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use consort_dataplane::fabric::Fabric;
use consort_dataplane::names::{NodeId, Position, Rank, Slot, ViewId};
use consort_dataplane::plan::{PlanError, SessionPlan};
use consort_dataplane::record::Kind;
use consort_dataplane::ring::Ticket;
use consort_dataplane::session::{
    Beyond, Delivery, Fault, Flushed, Heartbeat, Logged, Needed, SENT, Session, Sink, Verdict,
};

use super::durable::ShardLog;
use super::event::Incoming;
use super::outcome::{Delivered, Moved, OutcomeError, Pending};
use super::reading::Reading;
use super::sender::Open;
use super::shared::Channel;
use super::start::{SessionStatus, Stage};
use crate::change::Frozen;
use crate::orders::{Part, SessionState};
use crate::transfer::Tails;
use crate::view::{Incarnation, Shard, ShardId, View};

/// Who takes what is told, of which shard; it may refuse what it can't take yet.
pub(crate) trait Application {
    /// Takes a message.
    ///
    /// By itself: what wraps an application in another passes a pointer on. An [`Incoming`] would be copied, and a copy of words that
    /// were stored one by one just now waits until they, and all stores before them, have left the processor's store buffer.
    fn message(&mut self, shard: ShardId, delivery: &mut Delivery<'_>) -> Verdict;

    /// Takes anything.
    fn take(&mut self, shard: ShardId, incoming: Incoming<'_, '_>) -> Verdict;
}

impl<F: FnMut(ShardId, Incoming<'_, '_>) -> Verdict> Application for F {
    #[inline]
    fn message(&mut self, shard: ShardId, delivery: &mut Delivery<'_>) -> Verdict {
        self(shard, Incoming::Message(delivery))
    }

    fn take(&mut self, shard: ShardId, incoming: Incoming<'_, '_>) -> Verdict {
        self(shard, incoming)
    }
}

/// A session and its senders' ring. See the [module](self).
pub(crate) struct Running {
    pub(super) session: Session,
    shard: ShardId,
    /// In which of the shard's two places it lies.
    pub(super) second: bool,
    pub(super) view: View,
    slots: BTreeMap<NodeId, Slot>,
    pub(super) open: Arc<Open>,
    pending: Pending,
    /// What was sent in an earlier view first: under which ticket, by where it ends in this ring.
    again: BTreeMap<Position, Ticket>,
    /// Where it stood when it was wedged.
    frozen: Option<Frozen>,
    trim: Option<Vec<Position>>,
    is_over: bool,
    is_resent: bool,
}

/// A message of this node that no view has delivered, on its way from one to another.
pub(crate) struct Unsent {
    kind: Kind,
    /// Whom it is for, if not for all (D12): members, not whoever comes in their place.
    to: Option<Vec<(NodeId, Incarnation)>>,
    payload: Box<[u8]>,
    tracked: Option<Moved>,
}

impl Unsent {
    /// The same once more, and nobody waits for it.
    #[cfg(test)]
    pub(super) fn copy(&self) -> Self {
        Self { kind: self.kind, to: self.to.clone(), payload: self.payload.clone(), tracked: None }
    }

    /// The same, for all.
    #[cfg(test)]
    pub(super) fn without_address(self) -> Self {
        Self { to: None, ..self }
    }

    /// It is not sent again.
    pub(crate) fn fail(self, reason: &OutcomeError) {
        if let Some(tracked) = self.tracked {
            tracked.fail(reason);
        }
    }
}

/// Where deliveries go.
pub(crate) struct Taker<'a> {
    pub(crate) shard: ShardId,
    pub(crate) app: &'a mut dyn Application,
    /// Who has ended its sends.
    pub(crate) ended: &'a mut Vec<(NodeId, Incarnation)>,
    pub(crate) channel: &'a Channel,
    /// What is recorded for joiners (V7).
    pub(crate) tails: &'a mut Tails,
    pub(crate) reading: &'a mut Reading,
    /// The application refused something.
    pub(crate) refused: &'a mut bool,
    /// Where a durable shard's messages are written down.
    pub(crate) log: Option<&'a mut ShardLog>,
    /// Nothing more is told now: only what is told is done with.
    pub(crate) holds: bool,
}

/// A session's deliveries, on their way to the application.
struct Deliveries<'a, 't> {
    taker: &'a mut Taker<'t>,
    view: &'a View,
    open: &'a Open,
    pending: &'a mut Pending,
    again: &'a mut BTreeMap<Position, Ticket>,
}

impl Sink for Deliveries<'_, '_> {
    fn deliver(&mut self, delivery: &mut Delivery<'_>) -> Verdict {
        if self.taker.holds {
            return Verdict::Later;
        }
        deliver(delivery, self.taker, self.view, self.open, self.pending, self.again)
    }

    fn log(&mut self, logged: &Logged<'_>) -> Option<u64> {
        let stamp = self.taker.log.as_mut()?.append(logged)?;
        if logged.is_own {
            let place = logged.payload.as_ptr().wrapping_sub(SENT);
            let delivered = Delivered { view: logged.view, seq: logged.seq };
            self.pending.stable(&self.open.registry, place, delivered);
        }
        Some(stamp)
    }

    fn flushed(&mut self, flushed: &Flushed) {
        if flushed.ticket.is_some() {
            let delivered = Delivered { view: flushed.view, seq: flushed.seq };
            self.pending.delivered(&self.open.registry, flushed.place, delivered);
        }
    }
}

/// The log alone: nothing is delivered.
struct Written<'a>(&'a mut ShardLog);

impl Sink for Written<'_> {
    fn deliver(&mut self, _: &mut Delivery<'_>) -> Verdict {
        Verdict::Later
    }

    fn log(&mut self, logged: &Logged<'_>) -> Option<u64> {
        self.0.append(logged)
    }
}

impl Taker<'_> {
    /// Tells what a session has found out, after what it delivered.
    fn read(&mut self, session: &mut Session) -> bool {
        let (shard, app) = (self.shard, &mut *self.app);
        self.reading.tell(session, &mut |incoming| app.take(shard, incoming), self.refused)
    }
}

impl Running {
    /// Starts a shard's session of a view; its tickets begin at `base`.
    pub(crate) fn start(
        view: &View,
        (id, shard): (ShardId, &Shard),
        slots: BTreeMap<NodeId, Slot>,
        plan: SessionPlan,
        base: u64,
        fabric: &mut dyn Fabric,
    ) -> Result<Self, PlanError> {
        let (session, ring) = Session::start(plan, fabric)?;
        let open = Open::new(ring, base, session.plan());
        Ok(Self {
            session,
            shard: id,
            second: shard.second,
            view: view.clone(),
            slots,
            open: Arc::new(open),
            pending: Pending::default(),
            again: BTreeMap::new(),
            frozen: None,
            trim: None,
            is_over: false,
            is_resent: false,
        })
    }

    /// Exchanges and delivers, while it runs.
    pub(crate) fn step(&mut self, fabric: &mut dyn Fabric, taker: &mut Taker<'_>) -> Result<bool, Fault> {
        let Self { session, view, open, pending, again, .. } = self;
        let busy = session.step(fabric, &mut Deliveries { taker, view, open, pending, again })?;
        Ok(taker.read(session) || busy)
    }

    /// Delivers what is due: in its course, or up to the trim (V4). Returns whether anything was.
    pub(crate) fn deliver(&mut self, fabric: &mut dyn Fabric, taker: &mut Taker<'_>) -> Result<bool, Fault> {
        let Self { session, view, open, pending, again, trim, is_over, .. } = self;
        let before = session.delivered();
        let mut sink = Deliveries { taker, view, open, pending, again };
        let any = match trim {
            Some(trim) => {
                *is_over = session.cut(trim, &mut sink)?;
                *is_over || session.delivered() != before
            }
            None => session.deliver(fabric, &mut sink)?,
        };
        Ok(taker.read(session) || any)
    }

    /// In a durable shard: writes down what lies below the trim, if that is known, before it can be delivered. Returns whether
    /// anything was.
    pub(crate) fn write_down(&mut self, log: &mut ShardLog) -> Result<bool, Fault> {
        match &self.trim {
            Some(trim) if !self.session.is_logged() => self.session.log_below(trim, &mut Written(log)),
            _ => Ok(false),
        }
    }

    /// Stops it for good (V2). Returns where it stood when it was stopped first.
    pub(crate) fn wedge(&mut self) -> &Frozen {
        let (session, shard) = (&mut self.session, self.shard);
        self.frozen.get_or_insert_with(|| {
            let received = session.wedge().senders.iter().map(|sender| sender.received.0).collect();
            Frozen { shard, received }
        })
    }

    /// The view with which it began.
    pub(crate) fn since(&self) -> ViewId {
        self.session.plan().view
    }

    /// It runs: neither stopped nor over.
    pub(crate) fn is_live(&self) -> bool {
        self.frozen.is_none()
    }

    /// The first ticket that none of its sends has, once it is stopped.
    pub(crate) fn next_base(&self) -> u64 {
        let Ticket(Position(base)) = self.open.ticket(self.session.end().unwrap_or_default());
        base
    }

    /// It ends there, by rank. Returns false if that can't be: it says nothing of some member.
    pub(crate) fn trim(&mut self, trim: &[u64]) -> bool {
        let fits = trim.len() == self.session.plan().members.len();
        if fits && self.trim.is_none() {
            self.trim = Some(trim.iter().copied().map(Position).collect());
        }
        fits
    }

    /// Up to where each sender's messages were delivered, by rank.
    pub(crate) fn delivered(&self) -> Vec<u64> {
        self.session.frontiers().senders.iter().map(|sender| sender.delivered.0).collect()
    }

    /// Where it ends is known.
    pub(crate) fn is_trimmed(&self) -> bool {
        self.trim.is_some()
    }

    /// Everything that is to be delivered of it was.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over
    }

    /// Takes out what this node sent here beyond the trim, to be sent again in a later view (D13). Returns whether that is all;
    /// if not, some reservation is neither committed nor dropped.
    pub(crate) fn take_unsent(&mut self, unsent: &mut BTreeMap<Ticket, Unsent>) -> bool {
        let Self { session, view, open, pending, again, trim, is_resent, .. } = self;
        let Some(trim) = trim else { return false };
        let life = |node| Some((node, view.member(node)?.incarnation));
        *is_resent = *is_resent
            || session.resend(trim, |beyond| {
                let &Beyond { ticket: Ticket(end), kind, to, payload } = beyond;
                let ticket = again.remove(&end).unwrap_or_else(|| open.ticket(end));
                let tracked = pending.take(&open.registry, payload.as_ptr());
                let to = to.map(|ranks| open.nodes(ranks).into_iter().filter_map(life).collect());
                unsent.insert(ticket, Unsent { kind, to, payload: payload.into(), tracked });
            });
        *is_resent
    }

    /// Sends again what had this ticket first.
    pub(crate) fn send_again(&mut self, ticket: Ticket, unsent: Unsent) {
        let Unsent { kind, to, payload, tracked } = unsent;
        if kind == Kind::End {
            let ended = self.open.ring().try_end();
            assert!(ended.is_ok(), "{FITS}");
            return;
        }
        let ring = self.open.ring();
        let remains = |&(node, life): &(NodeId, Incarnation)| {
            self.view.member(node).is_some_and(|member| member.incarnation == life).then_some(node)
        };
        let to: Option<Vec<_>> = to.map(|members| members.iter().filter_map(remains).collect());
        let reserved = match to.map(|nodes| self.open.ranks(&nodes)) {
            None => ring.try_reserve(payload.len()),
            Some(ranks) if ranks.is_empty() => {
                // D12: whom it was for is gone.
                if let Some(tracked) = tracked {
                    tracked.fail(&OutcomeError::NoDestination);
                }
                return;
            }
            Some(ranks) => ring.try_reserve_to(ranks, payload.len()),
        };
        let Ok(mut room) = reserved else { unreachable!("{FITS}") };
        room.copy_from_slice(&payload);
        if let Some(tracked) = tracked {
            self.pending.put(room.as_ptr(), tracked);
        }
        let Ticket(end) = room.send();
        self.again.insert(end, ticket);
    }

    /// Whether there is something to do here that nobody will wake this node for. It has to do with digests only if it `delivers`.
    pub(crate) fn has_work(&self, delivers: bool) -> bool {
        let goes_on = if self.trim.is_none() { self.is_live() } else { !self.is_resent };
        goes_on && if delivers { self.session.has_work() } else { self.session.has_own_work() }
    }

    /// The memory of this session isn't needed here any more.
    pub(crate) fn is_free(&self) -> bool {
        self.trim.is_some() && self.session.is_free()
    }

    /// The link to a member.
    pub(crate) fn slot(&self, node: NodeId) -> Option<Slot> {
        self.slots.get(&node).copied()
    }

    /// What a fence of that link is to keep for it.
    pub(crate) fn needed(&self, slot: Slot, needed: &mut Needed) {
        let mine = self.session.needed(slot);
        needed.words.extend(mine.words);
        needed.ring.extend(mine.ring);
    }

    /// A part of a ring, if all of it is here (V3).
    pub(crate) fn read(&self, part: &Part) -> Option<Vec<u8>> {
        let rank = Rank(u8::try_from(part.rank).ok()?);
        if self.is_live() {
            return None;
        }
        self.session.read(rank, Position(part.from)..Position(part.to))
    }

    /// Here is what was missing of a ring (V3). Returns whether it is there now.
    pub(crate) fn supply(&mut self, part: &Part, bytes: &[u8]) -> bool {
        let Ok(rank) = u8::try_from(part.rank) else { return false };
        let frontiers = self.session.frontiers();
        let is_here = frontiers.senders.get(part.rank).is_some_and(|sender| sender.received.0 >= part.to);
        // Said twice is as good as once.
        is_here || self.session.supply(Rank(rank), Position(part.from), bytes).is_ok()
    }

    /// Nothing of it is delivered any more: who waits for its outcome is told why.
    pub(crate) fn end(&mut self, reason: &OutcomeError) {
        self.wedge();
        self.open.end(reason);
        self.pending.fail(&self.open.registry, reason);
    }

    /// How often every other member's heart has beaten, as seen here.
    pub(crate) fn pulse(&self) -> impl Iterator<Item = (NodeId, Heartbeat)> {
        let members = self.session.members().filter(|(rank, _)| *rank != self.session.plan().me);
        members.filter_map(|(rank, node)| Some((node, self.session.heartbeat(rank)?)))
    }

    /// How far it is, for who asks.
    pub(crate) fn state(&self) -> SessionState {
        SessionState {
            shard: self.shard,
            view: self.since(),
            wedged: !self.is_live(),
            frontiers: self.session.frontiers(),
            blocked: self.session.blocked().filter(|_| self.is_live()),
            digests: self.session.digests(),
        }
    }

    /// Where it stands; `unborn` are the members of the next session that haven't begun it.
    pub(crate) fn status(&self, unborn: Vec<NodeId>) -> SessionStatus {
        let stage = if self.is_live() {
            Stage::Running
        } else if self.trim.is_none() {
            Stage::Wedged
        } else if !self.is_over {
            Stage::Delivering
        } else if !self.is_resent {
            Stage::Resending
        } else if !self.session.is_free() {
            Stage::Lending
        } else if !unborn.is_empty() {
            Stage::Unborn(unborn)
        } else {
            Stage::Retired
        };
        SessionStatus {
            shard: self.shard,
            view: self.since(),
            stage,
            frontiers: self.session.frontiers(),
            blocked: self.session.blocked().filter(|_| self.is_live()),
        }
    }
}

/// Why what is sent again has room: it had room in a ring of the same size, together with whatever was released there, and here
/// nothing comes before it.
const FITS: &str = "what one ring held fits into an empty one";

/// Gives the application a delivery, and tells outcomes and endings.
fn deliver(
    delivery: &mut Delivery<'_>,
    taker: &mut Taker<'_>,
    view: &View,
    open: &Open,
    pending: &mut Pending,
    again: &mut BTreeMap<Position, Ticket>,
) -> Verdict {
    let verdict = match delivery.kind {
        Kind::Data => {
            // Copied before the application has the delivery: it may lend the payload, not change these.
            let own = delivery.ticket;
            let (place, outcome) = (delivery.place(), Delivered { view: delivery.view, seq: delivery.seq });
            if let Some(Ticket(end)) = own {
                let first = if again.is_empty() { None } else { again.get(&end).copied() };
                delivery.ticket = Some(first.unwrap_or_else(|| open.ticket(end)));
            }
            let payload = delivery.payload;
            let verdict = taker.app.message(taker.shard, delivery);
            if verdict == Verdict::Taken {
                if !taker.tails.is_empty() {
                    let sender = (delivery.rank, delivery.sender);
                    taker.tails.message(outcome.view, outcome.seq, sender, payload);
                }
                if let Some(log) = &mut taker.log {
                    log.on_told(outcome.view, outcome.seq);
                }
                count(&taker.channel.delivered);
                if let Some(Ticket(end)) = own {
                    count(&taker.channel.sent);
                    if !again.is_empty() {
                        again.remove(&end);
                    }
                    if taker.log.is_none() {
                        pending.delivered(&open.registry, place, outcome);
                    } else {
                        // It may have been written down in a turn that told nothing. That all have flushed it is told on its own.
                        pending.stable(&open.registry, place, outcome);
                    }
                }
            }
            verdict
        }
        Kind::Addressed => {
            // D12: for others. If it is this node's own, it is delivered to them now.
            if let Some(Ticket(end)) = delivery.ticket {
                let outcome = Delivered { view: delivery.view, seq: delivery.seq };
                count(&taker.channel.sent);
                again.remove(&end);
                pending.delivered(&open.registry, delivery.payload.as_ptr(), outcome);
            }
            Verdict::Taken
        }
        _ => end(delivery.sender, taker, view),
    };
    *taker.refused |= verdict == Verdict::Later;
    verdict
}

/// A member has ended its sends: told once in each of its lives, in whatever view it says so.
fn end(node: NodeId, taker: &mut Taker<'_>, view: &View) -> Verdict {
    let life = (node, view.member(node).map_or(Incarnation(0), |member| member.incarnation));
    if taker.ended.contains(&life) {
        return Verdict::Taken;
    }
    let verdict = taker.app.take(taker.shard, Incoming::Ended(node));
    if verdict == Verdict::Taken {
        taker.ended.push(life);
    }
    verdict
}

/// One more. Only the driver's thread counts, so this needs no atomic addition.
fn count(counter: &AtomicU64) {
    counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}
