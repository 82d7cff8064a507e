//! [`Stream`]: one shard as this node has it: its sessions one after the other, and the one stream of events that its application
//! sees of them (V4): the messages of a session, the view that ends it, the messages of the next.
//!
//! A node has a stream for every shard of its cluster, also of those that it is no member of: it may become one. Streams share
//! the fabric, the engine's thread and the node's links, and nothing else: one that waits, for its application or for a view, keeps
//! no other from going on.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use consort_dataplane::fabric::{Doorbell, Fabric, RenewError};
use consort_dataplane::names::{NodeId, Slot, Time, ViewId};
use consort_dataplane::plan::PlanError;
use consort_dataplane::ring::Ticket;
use consort_dataplane::session::{Begun, Fault, Verdict};

use super::clock;
use super::control::Reports;
use super::durable::{ShardLog, Wanted};
use super::event::Incoming;
use super::learning::{Learned, Learner};
use super::outcome::OutcomeError;
use super::reading::Reading;
use super::running::{Application, Running, Taker, Unsent};
use super::shared::Channel;
use super::teaching::{SnapshotRequest, Teaching};
use crate::membership::{Absent, Stopped};
use crate::orders::{LinkNumber, Report};
use crate::view::{Incarnation, Shard, ShardId, ShardShape, View};

/// What the application couldn't take when it happened.
pub(super) enum Untold {
    Waiting(Vec<Absent>),
    Evicted(Stopped),
    /// Told after everything of the sessions before it.
    View(View),
    /// Told between two deliveries.
    Snapshot(SnapshotRequest),
}

/// A shard's sessions at this node. See the [module](self).
pub(super) struct Stream {
    pub(super) id: ShardId,
    shape: ShardShape,
    /// One after the other. All but the last are trimmed.
    pub(super) sessions: Vec<Running>,
    /// Retired, and kept as long as some member may lack what was delivered here (V3).
    pub(super) past: Vec<Running>,
    /// The newest view has this node among the shard's members.
    is_member: bool,
    /// Some member of the newest session wasn't in the one before.
    newcomers: bool,
    /// The newest session's ring is open to senders.
    is_open: bool,
    /// Nothing that is written down is to be told before the sessions' messages.
    is_told_again: bool,
    /// Those with whom the newest session is wedged are too few to go on.
    too_few: TooFew,
    /// What was sent in old sessions, delivered in none, and waits for one to be sent in again (D13).
    unsent: BTreeMap<Ticket, Unsent>,
    /// Where the next session's tickets begin.
    tickets: u64,
    pub(super) channel: Arc<Channel>,
    /// Pupils that get their state here (V7),
    pub(super) teaching: Teaching,
    /// and what this node gets.
    pub(super) learner: Learner,
    /// Read points that were asked for, and digests.
    reading: Reading,
    /// Members whose sends have ended, as the application was told.
    pub(super) ended: Vec<(NodeId, Incarnation)>,
    pub(super) untold: VecDeque<Untold>,
    /// The application refused something in the last turn.
    pub(super) refused: bool,
    /// Where it is written down, if it is durable.
    pub(super) log: Option<ShardLog>,
    /// The last turn looked for room for a sender on this thread: until a peer releases more, there is none to be found.
    pub(super) looked: bool,
    /// Looks at it until it counts as quiet, if nothing happens; 0: it does.
    pub(super) looks: u16,
    #[cfg(test)]
    pub(super) mutant: Option<Mutant>,
}

/// A rule to break on purpose, so that tests can show that they would notice.
#[cfg(test)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mutant {
    /// D13: what no view delivered is not sent again.
    NoResend,
    /// D13: it is, twice.
    ResendTwice,
    /// D12: it is, to all, whomever it was for.
    ResendToAll,
    /// Read points are told as soon as they are asked for.
    HastyPoint,
    /// P2: what is in the log counts as flushed.
    HastyFlush,
    /// P4: the application is asked for a snapshot before all members have come to the session.
    HastySnapshot,
    /// P4: it is asked for one of what not all have flushed.
    SnapshotAhead,
}

/// For how long something has been so. Of a time in which this process did nothing little counts: one that was stopped has found out nothing meanwhile.
#[derive(Default)]
struct TooFew {
    last: Option<Time>,
    waited: Duration,
}

impl TooFew {
    /// As much of it at most.
    const PAUSE: Duration = Duration::from_secs(1);

    /// It is so, still.
    fn waited(&mut self, now: Time) -> Duration {
        let since = self.last.replace(now).map_or(Duration::ZERO, |last| now.since(last));
        self.waited += since.min(Self::PAUSE);
        self.waited
    }
}

/// Why a stream can't go on.
pub(super) enum Trouble {
    /// A peer broke the protocol in the session at this place.
    Fault(usize, Fault),
    /// This node can't go on.
    Broken(String),
}

impl Stream {
    pub(super) fn new(id: ShardId, shape: ShardShape, channel: Arc<Channel>) -> Self {
        channel.outbox.asked.set_guarantee(shape.guarantee);
        Self {
            id,
            shape,
            sessions: Vec::new(),
            past: Vec::new(),
            is_member: false,
            newcomers: false,
            is_open: false,
            is_told_again: true,
            too_few: TooFew::default(),
            unsent: BTreeMap::new(),
            tickets: 0,
            channel,
            teaching: Teaching::default(),
            learner: Learner::default(),
            reading: Reading::default(),
            ended: Vec::new(),
            untold: VecDeque::new(),
            refused: false,
            log: None,
            looked: false,
            looks: 0,
            #[cfg(test)]
            mutant: None,
        }
    }

    /// Breaks a rule from now on.
    #[cfg(test)]
    pub(super) fn mutate(&mut self, mutant: Mutant) {
        self.reading.is_hasty = mutant == Mutant::HastyPoint;
        self.mutant = Some(mutant);
    }

    /// Wants of the newest session what was asked for and hasn't come.
    #[inline]
    pub(super) fn want(&mut self) {
        let newest = self.sessions.last_mut().map(|newest| &mut newest.session);
        self.reading.want(&self.channel.outbox.asked, newest);
    }

    /// Whether something was asked for since.
    pub(super) fn wants(&self) -> bool {
        self.reading.has_work(&self.channel.outbox.asked)
    }

    /// Whether there is one session, which runs, and nothing else to be done but its steps.
    #[inline]
    pub(super) fn is_steady(&self) -> bool {
        matches!(&self.sessions[..], [only] if only.is_live())
            && self.is_open
            && self.untold.is_empty()
            && self.is_told_again
    }

    /// The session whose turn it is to deliver (V4): what lies below the trim, then the view, then its messages. `None` if something
    /// else comes first.
    fn delivering(&self) -> Option<usize> {
        let at = self.sessions.iter().position(|running| !running.is_over())?;
        let view = self.sessions[at].since();
        let comes_first = |untold: &Untold| matches!(untold, Untold::View(untold) if untold.id <= view);
        let is_held = self.refused || self.learner.is_active() || self.untold.iter().any(comes_first);
        (self.is_told_again && !is_held).then_some(at)
    }

    /// Whether a session has something to do that nobody will wake this node for, and that it comes to in its turn.
    pub(super) fn has_work(&self) -> bool {
        let delivers = if self.is_steady() { Some(0) } else { self.delivering() };
        self.sessions.iter().enumerate().any(|(at, running)| running.has_work(delivers == Some(at)))
    }

    /// Whether there is nothing here that could have anything to do.
    #[inline]
    pub(super) fn is_absent(&self) -> bool {
        self.sessions.is_empty()
            && self.untold.is_empty()
            && !self.learner.is_active()
            && self.unsent.is_empty()
    }

    /// One step of the one session that there is, and runs.
    pub(super) fn step(
        &mut self,
        fabric: &mut dyn Fabric,
        app: &mut dyn Application,
    ) -> Result<bool, Trouble> {
        let Self { id, sessions, ended, channel, teaching, reading, refused, log, .. } = self;
        let (tails, log) = (&mut teaching.tails, log.as_mut());
        let mut taker = Taker { shard: *id, app, ended, channel, tails, reading, refused, log, holds: false };
        sessions[0].step(fabric, &mut taker).map_err(|fault| Trouble::Fault(0, fault))
    }

    /// A turn while views change: the first session that isn't over delivers.
    pub(super) fn go_on(
        &mut self,
        fabric: &mut dyn Fabric,
        app: &mut dyn Application,
        bell: &Doorbell,
        reports: &Reports,
    ) -> Result<bool, Trouble> {
        let mut busy = self.learn(app, bell, reports)?;
        if !self.is_told_again && !self.tell_again(app, bell, &mut busy)? {
            self.resend();
            return Ok(busy);
        }
        loop {
            busy |= self.tell(app);
            let Some(at) = self.delivering() else { break };
            busy |= self.deliver(at, fabric, app)?;
            if !self.sessions[at].is_over() {
                break;
            }
        }
        self.resend();
        Ok(busy)
    }

    /// P3: what was written down before the first session of this life is told first. Returns whether that is done.
    fn tell_again(
        &mut self,
        app: &mut dyn Application,
        bell: &Doorbell,
        busy: &mut bool,
    ) -> Result<bool, Trouble> {
        // That it was evicted is told before what comes of joining again, and for whom it waits before it is in any view.
        while let Some(untold) = self.untold.front() {
            let verdict = match untold {
                Untold::Waiting(absent) => app.take(self.id, Incoming::Waiting(absent)),
                Untold::Evicted(reason) => app.take(self.id, Incoming::Evicted(reason)),
                Untold::View(_) | Untold::Snapshot(_) => break,
            };
            if verdict == Verdict::Later {
                self.refused = true;
                return Ok(false);
            }
            self.untold.pop_front();
            *busy = true;
        }
        let (id, Some(log)) = (self.id, &mut self.log) else { return Ok(true) };
        let told = log.tell_again(&mut |incoming| app.take(id, incoming), bell, &mut self.refused);
        let (is_all, any) = told
            .map_err(|error| Trouble::Broken(format!("what is written down can't be told again: {error}")))?;
        *busy |= any;
        self.is_told_again = is_all;
        Ok(is_all)
    }

    /// P3: goes on with fetching what this node's log lacks.
    fn fetch(&mut self, reports: &Reports) -> Result<bool, Trouble> {
        let (shard, Some(log)) = (self.id, &mut self.log) else { return Ok(false) };
        let (any, wanted) = log.fetch().map_err(|why| {
            Trouble::Broken(format!("another member's log doesn't follow on its own: {why}"))
        })?;
        if let Some(Wanted { node, since, behind, chain, at }) = wanted {
            reports.tell(Report::WantLog { node, shard, since, behind, chain, at });
        }
        Ok(any)
    }

    /// V7: what was before the first session of this node comes from a member, not from rings.
    fn learn(
        &mut self,
        app: &mut dyn Application,
        bell: &Doorbell,
        reports: &Reports,
    ) -> Result<bool, Trouble> {
        // That it was evicted is told before what comes of joining again.
        let is_late = self.untold.iter().any(|untold| matches!(untold, Untold::Evicted(_)));
        if !self.learner.is_active() || is_late {
            return Ok(false);
        }
        let shard = self.id;
        match self.learner.turn(&mut |incoming| app.take(shard, incoming), bell, &mut self.refused) {
            Learned::Nothing => return Ok(false),
            Learned::Something => {}
            Learned::CaughtUp(attempt) => reports.tell(Report::CaughtUp(shard, attempt)),
            Learned::All(attempt) => reports.tell(Report::Learned(shard, attempt)),
            Learned::Broken(attempt, reason) => reports.tell(Report::Unlearned(shard, attempt, reason)),
            Learned::GivenUp => {
                let reason = "the application did not finish restoring the state that it was given";
                return Err(Trouble::Broken(reason.to_owned()));
            }
        }
        Ok(true)
    }

    /// Delivers what is due of a session.
    fn deliver(
        &mut self,
        at: usize,
        fabric: &mut dyn Fabric,
        app: &mut dyn Application,
    ) -> Result<bool, Trouble> {
        // A snapshot is of what no restart can take back: it waits until the logs have what was told.
        let holds = self.log.is_some() && matches!(self.untold.front(), Some(Untold::Snapshot(_)));
        let Self { id, sessions, ended, channel, teaching, reading, refused, log, .. } = self;
        let (tails, log) = (&mut teaching.tails, log.as_mut());
        let mut taker = Taker { shard: *id, app, ended, channel, tails, reading, refused, log, holds };
        let running = &mut sessions[at];
        match running.deliver(fabric, &mut taker) {
            Ok(busy) => {
                if busy {
                    fabric.flush();
                }
                Ok(busy)
            }
            Err(fault) if running.is_trimmed() => {
                // Nothing beyond the bad record can be delivered, here or anywhere: all received the same bytes.
                let since = running.since();
                Err(Trouble::Broken(format!(
                    "what the session of view {since} left can't be delivered: {fault}"
                )))
            }
            Err(fault) => Err(Trouble::Fault(at, fault)),
        }
    }

    /// P2: writes down what the sessions hand over, and tells the others how far that is flushed. `home` is the last view that the node's
    /// home has flushed; after `patience` without a majority the node stops.
    pub(super) fn persist(
        &mut self,
        fabric: &mut dyn Fabric,
        home: ViewId,
        patience: Duration,
        (me, reports, bell): (NodeId, &Reports, &Doorbell),
    ) -> Result<bool, Trouble> {
        let mut busy = self.fetch(reports)?;
        let is_alone =
            self.sessions.len() == 1 && self.is_member && self.untold.is_empty() && self.is_told_again;
        let Self { sessions, log: Some(log), too_few, .. } = self else { return Ok(false) };
        // A view stands behind all that the sessions before it left.
        for (at, running) in sessions.iter_mut().enumerate() {
            if !log.has_begun(running.since()) && !log.begin(&running.view) {
                break;
            }
            busy |= running.write_down(log).map_err(|fault| Trouble::Fault(at, fault))?;
            if !running.session.is_logged() {
                break;
            }
        }
        busy |= log.turn().map_err(|error| Trouble::Broken(format!("its log can't be written: {error}")))?;
        let Some((newest, before)) = sessions.split_last_mut() else { return Ok(busy) };
        let persisted = log.persisted(newest.since(), home);
        #[cfg(test)]
        let persisted = match self.mutant {
            Some(Mutant::HastyFlush) => log.appended(newest.since()),
            _ => persisted,
        };
        if newest.session.persist(fabric, persisted) {
            fabric.flush();
            busy = true;
        }
        log.keep();
        if before.is_empty() && newest.is_live() {
            let is_begun = newest.session.persisted() > 0;
            #[cfg(test)]
            let is_begun = is_begun || self.mutant == Some(Mutant::HastySnapshot);
            if is_alone
                && is_begun
                && let Some(request) = log.ask_for_snapshot(me, bell)
            {
                self.untold.push_back(Untold::Snapshot(request));
                busy = true;
            }
            return Ok(busy);
        }
        // What the sessions before left is with all who go on, once they say that they have the newest view: their logs have that
        // behind it. A node that is in no further session is told nothing more, and has what it has itself.
        let place = before.len();
        let others = newest.view.members.len() - newest.session.plan().members.len();
        let begun = newest.session.begun(others).map_err(|fault| Trouble::Fault(place, fault))?;
        let is_known = match begun {
            Begun::Everywhere => true,
            Begun::NotYet => false,
            // Without a majority the node stops after `patience`. If it doesn't, there is one, over control links alone, and waits for this.
            Begun::AtTooFew => too_few.waited(clock::now()) >= 2 * patience,
        };
        if begun != Begun::AtTooFew {
            *too_few = TooFew::default();
        }
        if is_known {
            before.iter_mut().for_each(|running| running.session.all_persisted());
        }
        if !self.is_member && log.is_flushed() {
            sessions.iter_mut().for_each(|running| running.session.all_persisted());
        }
        Ok(busy)
    }

    /// Tells the application what it couldn't take before.
    fn tell(&mut self, app: &mut dyn Application) -> bool {
        let (id, mut any) = (self.id, false);
        while let Some(untold) = self.untold.front() {
            let verdict = match untold {
                Untold::Waiting(absent) => app.take(id, Incoming::Waiting(absent)),
                Untold::Evicted(reason) => app.take(id, Incoming::Evicted(reason)),
                Untold::View(view) => {
                    let is_before = |running: &Running| running.since() < view.id && !running.is_over();
                    // V7: what was before its first session comes first.
                    if self.learner.is_active() || self.sessions.iter().any(is_before) {
                        return any;
                    }
                    app.take(id, Incoming::View(view))
                }
                Untold::Snapshot(request) => {
                    let is_ahead = self.sessions.iter().any(|running| running.session.is_ahead());
                    #[cfg(test)]
                    let is_ahead = is_ahead && self.mutant != Some(Mutant::SnapshotAhead);
                    if is_ahead {
                        return any;
                    }
                    request.told_at(|| self.log.as_ref().and_then(ShardLog::place));
                    app.take(id, Incoming::Snapshot(request))
                }
            };
            if verdict == Verdict::Later {
                self.refused = true;
                return any;
            }
            any = true;
            match self.untold.pop_front() {
                Some(Untold::View(view)) => {
                    if let Some(log) = &mut self.log {
                        log.on_view_told(&view);
                    }
                    self.teaching.tails.view(&view);
                    // A node that comes again begins anew.
                    let is_in = |life: &(NodeId, Incarnation)| {
                        view.member(life.0).is_some_and(|member| member.incarnation == life.1)
                    };
                    self.ended.retain(is_in);
                }
                Some(Untold::Snapshot(request)) => self.teaching.begin(&request),
                _ => {}
            }
        }
        any
    }

    pub(super) fn wedge(&mut self, at: usize) {
        let running = &mut self.sessions[at];
        running.wedge();
        self.tickets = self.tickets.max(running.next_base());
        // Whoever waits for room has to wait for the next session now.
        self.channel.outbox.gate.open();
    }

    /// Stops the newest session (V2), if it doesn't end already.
    pub(super) fn wedge_newest(&mut self) {
        if let Some(last) = self.sessions.len().checked_sub(1)
            && !self.sessions[last].is_trimmed()
        {
            self.wedge(last);
        }
    }

    /// Sends again what the old sessions left (D13), and opens the newest ring when that is done.
    fn resend(&mut self) {
        if self.is_open {
            return;
        }
        let mut is_all = true;
        for running in self.sessions.iter_mut().filter(|running| running.is_trimmed()) {
            is_all &= running.take_unsent(&mut self.unsent);
        }
        let Some(newest) = self.sessions.last_mut().filter(|newest| newest.is_live()) else {
            if is_all && !self.is_member {
                self.fail_unsent(&OutcomeError::Moved);
            }
            return;
        };
        // Tickets are in the order of the sends, whatever ring they were in last.
        while let Some((ticket, unsent)) = self.unsent.pop_first() {
            #[cfg(test)]
            let unsent = match self.mutant {
                Some(Mutant::NoResend) => continue,
                Some(Mutant::ResendTwice) => {
                    newest.send_again(ticket, unsent.copy());
                    unsent
                }
                Some(Mutant::ResendToAll) => unsent.without_address(),
                _ => unsent,
            };
            newest.send_again(ticket, unsent);
        }
        let outbox = &self.channel.outbox;
        // The others know already that this node has ended its sends; a member that is new would wait for ever.
        let repeats_end = self.newcomers && outbox.is_end_sent();
        if is_all && (!repeats_end || newest.open.ring().try_end().is_ok()) {
            self.is_open = true;
            outbox.open(&newest.open);
        }
    }

    /// Gives up the sessions that nobody needs here any more (V10).
    pub(super) fn retire(&mut self, links: &BTreeMap<Slot, LinkNumber>, reports: &Reports) -> bool {
        let mut any = false;
        while self.is_retirable(links) {
            let running = self.sessions.remove(0);
            reports.tell(Report::Retired(self.id, running.since()));
            if !self.shape.guarantee.stable() {
                self.past.push(running);
            }
            any = true;
        }
        any
    }

    /// Whether the oldest session is over and its memory not needed any more.
    pub(super) fn is_retirable(&self, links: &BTreeMap<Slot, LinkNumber>) -> bool {
        self.sessions.first().is_some_and(|first| first.is_free() && unborn(&self.sessions, links).is_empty())
    }

    /// This incarnation is over.
    pub(super) fn end(&mut self, reason: &OutcomeError) {
        for at in 0..self.sessions.len() {
            self.wedge(at);
            self.sessions[at].end(reason);
        }
        self.sessions.clear();
        self.past.clear();
        self.fail_unsent(reason);
        (self.is_open, self.is_member) = (false, false);
        self.teaching.clear();
        self.learner.end();
        if let Some(log) = &mut self.log {
            log.end();
        }
    }

    /// This node stops. What there is of sessions stays to be asked for.
    pub(super) fn stop(&mut self, reason: &Stopped) {
        let failed = OutcomeError::Stopped(reason.clone());
        self.teaching.clear();
        self.learner.end();
        for at in 0..self.sessions.len() {
            self.wedge(at);
            self.sessions[at].end(&failed);
        }
        self.fail_unsent(&failed);
        self.channel.outbox.stop(reason);
    }

    /// Whether messages in ring memory wait for the application, or are kept by it: else it holds up nobody (D11).
    pub(super) fn lends(&self) -> bool {
        self.sessions.iter().chain(&self.past).any(|running| running.session.lends())
    }

    fn fail_unsent(&mut self, reason: &OutcomeError) {
        for (_, unsent) in std::mem::take(&mut self.unsent) {
            unsent.fail(reason);
        }
    }

    /// Whether a view has another session for this shard than the one that is here.
    fn is_another(&self, shard: &Shard, me: NodeId) -> bool {
        let mine = self.sessions.last().filter(|last| !last.is_trimmed()).map(Running::since);
        mine.is_some_and(|since| since != shard.since)
            || shard.members.contains(&me) && mine != Some(shard.since)
    }

    /// A view is installed: its session takes the place of the one that was cut (V4), if it has another.
    /// `trim` is where the one before ends, if it does; `is_level`: no other member has more in its log; `renew`: its memory must be fresh.
    pub(super) fn install(
        &mut self,
        me: NodeId,
        view: &View,
        slots: &BTreeMap<NodeId, Slot>,
        (trim, is_level, renew): (Option<&[u64]>, bool, bool),
        fabric: &mut dyn Fabric,
    ) -> Result<(), Refusal> {
        let Some(shard) = view.shard(self.id) else { return Ok(()) };
        self.is_member = shard.members.contains(&me);
        self.channel.outbox.belong(self.is_member);
        if !self.is_another(shard, me) {
            // A witness has no session, and sees the members change all the same (V6).
            if self.id == ShardId::MAIN && !self.is_member && shard.since == view.id {
                self.untold.push_back(Untold::View(view.clone()));
            }
            return Ok(());
        }
        let mut before = BTreeSet::new();
        // P3: who was in the session before has what it left; who comes gets it from one who was. If that takes longer than a session, what
        // it missed is still what came before its first one.
        let was_in = self.sessions.last().is_some_and(|last| !last.is_trimmed());
        if let Some(log) = self.log.as_mut().filter(|_| self.is_member) {
            let others: Vec<_> = shard.members.iter().copied().filter(|node| *node != me).collect();
            if was_in {
                log.lack_from(others);
            } else if !is_level {
                log.lack(shard.since, others);
            }
        }
        if let Some(last) = self.sessions.last().filter(|last| !last.is_trimmed()) {
            before = last.session.members().map(|(_, node)| node).collect();
            let since = last.since();
            self.wedge_newest();
            let Some(last) = self.sessions.last_mut() else { return Err(Refusal::Uncut(since)) };
            // V8: who leaves may be left behind, with a session that nobody else was in: then nobody says where it ends. It has had all that it
            // sent delivered, and ends where it is.
            let ends = match trim {
                Some(trim) => last.trim(trim),
                None => !self.is_member && last.trim(&last.delivered()),
            };
            if !ends {
                return Err(Refusal::Uncut(since));
            }
        }
        self.newcomers = shard.members.iter().any(|node| !before.contains(node));
        self.untold.push_back(Untold::View(view.clone()));
        self.is_open = false;
        self.is_told_again = self.log.is_none() || was_in && self.is_told_again;
        let Some(plan) = view.plan(shard, me, slots, &self.shape) else { return Ok(()) };
        if renew {
            fabric.renew(self.shape.region(shard.second)).map_err(Refusal::Fabric)?;
        }
        // Who lacks anything of a session there had it before it retired that: nobody asks any more (V10).
        self.past.retain(|running| running.second != shard.second);
        let running = Running::start(view, (self.id, shard), slots.clone(), plan, self.tickets, fabric);
        self.sessions.push(running.map_err(Refusal::Plan)?);
        self.reading.renew();
        Ok(())
    }
}

/// Why a view can't be installed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("the next view doesn't say where the session of view {0} ends")]
    Uncut(ViewId),
    #[error(transparent)]
    Fabric(RenewError),
    #[error(transparent)]
    Plan(PlanError),
}

/// The members of the session after the first that haven't begun it, and still may. Before they have, what they sent in
/// the first may be under way to this node.
pub(super) fn unborn(sessions: &[Running], links: &BTreeMap<Slot, LinkNumber>) -> Vec<NodeId> {
    let Some(next) = sessions.get(1) else { return Vec::new() };
    let is_linked = |node: &NodeId| next.slot(*node).is_some_and(|slot| links.contains_key(&slot));
    next.session.unborn().filter(is_linked).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_was_stopped_has_hardly_waited() {
        let at = |seconds| Time(0).plus(Duration::from_secs(seconds));
        let mut too_few = TooFew::default();
        assert_eq!(too_few.waited(at(100)), Duration::ZERO);
        assert_eq!(too_few.waited(at(100).plus(Duration::from_millis(300))), Duration::from_millis(300));
        assert_eq!(too_few.waited(at(3600)), Duration::from_millis(1300), "it was stopped for an hour");
    }
}
