//! [`Driver`]: the engine of a node. It owns the fabric and the sessions, takes turns, and rests in between; one thread at a
//! time calls it, the node's own or the application's.
//!
//! A turn that finds nothing to do makes no system call beyond the fabric's, takes no lock and allocates nothing.
//! What others want of the driver (the control thread's orders, the application's questions) lies in queues behind one flag,
//! and whoever puts something there rings the node's bell.
//!
//! # A change of the view
//! The driver decides nothing; it obeys. *Wedge*: the session stops, its links to the lost are fenced, and where it
//! stands is reported. *Install*: where it ends is known. The next session starts at once, in the other half of the segment (V10), and
//! exchanges while the application still takes what lies below the trim. So there may be several [`Running`] sessions, in
//! view order, and the stream that the application sees is theirs one after the other (V4): the messages of a view, the next
//! view, its messages. What this node sent beyond the trim is sent again in the newest (D13), and then its ring opens to senders.
//! An old session that nobody needs here is reported as retired, and only after that its memory may be used again.

use std::collections::{BTreeMap, VecDeque};
use std::error::Error;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use consort_dataplane::fabric::{Fabric, LinkDown, LinkEvent};
use consort_dataplane::names::{NodeId, Slot, Time, ViewId};
use consort_dataplane::plan::SessionPlan;
use consort_dataplane::ring::Ticket;
use consort_dataplane::session::{Fault, Needed, Verdict};

use super::clock;
use super::control::Reports;
use super::event::Incoming;
use super::learning::{Learned, Learner};
use super::outcome::OutcomeError;
use super::reading::Reading;
use super::running::{Application, Running, Taker, Unsent};
use super::shared::{Ask, Shared};
use super::start::{CloseError, Leaving, MadeFabric, MakeFabric, NodeStats, Status};
use super::teaching::{SnapshotRequest, Teaching};
use super::wait::{Rest, Waiting};
use crate::config::NodeConfig;
use crate::membership::{Absent, Stopped};
use crate::orders::{Install, LinkNumber, Order, Pulse, Report};
use crate::view::{GroupId, Incarnation, View};

/// How long the fabric may take to link to a peer. Longer than membership's patience: that one decides.
const LINK_WITHIN: Duration = Duration::from_secs(15);

/// A sleep's bound, and how often a node's heartbeat is counted up.
const BEAT: Duration = Duration::from_millis(100);

/// The bound of the first sleep on another thread than before. A sender on the old one that still takes itself for the
/// driving thread doesn't ring the bell; what it has sent is found then.
const BRIEF: Duration = Duration::from_millis(1);

/// Turns for which a reading of the clock is good enough while there is work.
const TURNS_A_READING: u32 = 32;

/// Why a node stops whose engine panics.
pub(crate) const PANICKED: &str = "the engine panicked; this is a bug of Consort (S4)";

/// The engine of a node. See the [module](self).
pub(crate) struct Driver {
    config: NodeConfig,
    make: MakeFabric,
    fabric: Box<dyn Fabric + Send>,
    engine: &'static str,
    /// The links that were ordered and not fenced.
    links: BTreeMap<Slot, LinkNumber>,
    /// In view order. All but the last are trimmed.
    sessions: Vec<Running>,
    /// Retired, and kept as long as some member may lack what was delivered here (V3).
    past: Vec<Running>,
    /// The newest view; it may be one without this node.
    view: Option<View>,
    /// Some member of `view` wasn't in the view before.
    newcomers: bool,
    /// The newest session's ring is open to senders.
    is_open: bool,
    /// What was sent in old views, delivered in none, and waits for one to be sent in again (D13).
    unsent: BTreeMap<Ticket, Unsent>,
    /// Where the next session's tickets begin.
    tickets: u64,
    shared: Arc<Shared>,
    orders: mpsc::Receiver<Order>,
    asks: mpsc::Receiver<Ask>,
    reports: Reports,
    /// Joiners that get their state here (V7),
    teaching: Teaching,
    /// and what this node gets.
    learner: Learner,
    /// Read points that were asked for, and digests.
    reading: Reading,
    /// Members whose sends have ended, as the application was told.
    ended: Vec<(NodeId, Incarnation)>,
    /// What the application couldn't take when it happened.
    untold: VecDeque<Untold>,
    /// The application refused something in the last turn.
    refused: bool,
    /// The last turn looked for room for a sender on this thread: until a peer releases more, there is none to be found.
    looked: bool,
    waiting: Waiting,
    now: Time,
    turns: u32,
    beat_at: Time,
    /// Another thread drives from now on; see [`BRIEF`].
    moved: bool,
    closing: Option<Closing>,
    stopped: Option<Stopped>,
    #[cfg(test)]
    mutant: Option<Mutant>,
}

/// A rule to break on purpose, so that tests can show that they would notice.
#[cfg(test)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mutant {
    /// D13: what no view delivered is not sent again.
    NoResend,
    /// D13: it is, twice.
    ResendTwice,
    /// Read points are told as soon as they are asked for.
    HastyPoint,
}

enum Untold {
    Waiting(Vec<Absent>),
    Evicted(Stopped),
    /// Told after everything of the views before it.
    View(View),
    /// Told between two deliveries.
    Snapshot(SnapshotRequest),
}

struct Closing {
    within: Duration,
    until: Time,
    stage: Leaving,
    /// Membership has let this node go: to be stopped as soon as the application has taken everything.
    released: bool,
    answer: mpsc::Sender<Result<(), CloseError>>,
}

impl Driver {
    pub(crate) fn new(
        config: NodeConfig,
        make: MakeFabric,
        (fabric, engine): MadeFabric,
        shared: Arc<Shared>,
        (orders, asks): (mpsc::Receiver<Order>, mpsc::Receiver<Ask>),
        reports: Reports,
    ) -> Self {
        shared.outbox.asked.set_guarantee(config.guarantee);
        Self {
            waiting: Waiting::new(config.wait),
            config,
            make,
            fabric,
            engine,
            links: BTreeMap::new(),
            sessions: Vec::new(),
            past: Vec::new(),
            view: None,
            newcomers: false,
            is_open: false,
            unsent: BTreeMap::new(),
            tickets: 0,
            shared,
            orders,
            asks,
            reports,
            teaching: Teaching::default(),
            learner: Learner::default(),
            reading: Reading::default(),
            ended: Vec::new(),
            untold: VecDeque::new(),
            refused: false,
            looked: false,
            now: clock::now(),
            turns: 0,
            beat_at: Time(0),
            moved: false,
            closing: None,
            stopped: None,
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

    /// One turn. Never blocks, but for making a fabric while the node is no member. Returns whether anything happened.
    pub(crate) fn turn(&mut self, app: &mut Application<'_>) -> Result<bool, Stopped> {
        let mut busy = false;
        if self.shared.called.load(Ordering::Relaxed) && self.shared.called.swap(false, Ordering::Acquire) {
            self.obey();
            busy = true;
        }
        if let Some(reason) = &self.stopped {
            return Err(reason.clone());
        }
        if self.turns.is_multiple_of(TURNS_A_READING) {
            self.now = clock::now();
        }
        self.turns = self.turns.wrapping_add(1);
        if self.now >= self.beat_at {
            self.beat();
        }
        self.refused = false;

        busy |= self.fabric.poll(self.now);
        busy |= self.tell_of_links();
        self.looked = self.shared.outbox.take_wanted_here();
        let wanted = self.shared.outbox.take_wanted();
        self.reading
            .want(&self.shared.outbox.asked, self.sessions.last_mut().map(|newest| &mut newest.session));
        busy |= match &self.sessions[..] {
            [only] if only.is_live() && self.is_open && self.untold.is_empty() => self.step(app),
            _ => self.change(app),
        };
        if !self.teaching.tails.is_empty() {
            self.teaching.go_on(&self.reports);
        }
        #[cfg(test)]
        self.teaching.read_in_turn(&self.reports);
        // Who waits for room looks for itself; here it is enough to say now and then that it may be worth it.
        if self.shared.outbox.gate.is_waited_at()
            && (busy || wanted || self.turns.is_multiple_of(TURNS_A_READING))
        {
            self.shared.outbox.gate.open();
        }
        if self.closing.is_some() {
            busy |= self.close();
        }
        if busy {
            self.waiting.busy();
        }
        match &self.stopped {
            Some(reason) => Err(reason.clone()),
            None => Ok(busy),
        }
    }

    /// What to do after a turn in which nothing happened, and does it. `room` says whether the application can
    /// take again what it refused.
    pub(crate) fn rest(&mut self, room: &dyn Fn() -> bool) {
        let rest = self.waiting.idle(|| {
            self.now = clock::now();
            self.now
        });
        match rest {
            Rest::Spin => std::hint::spin_loop(),
            Rest::Yield => {
                let before = self.now;
                std::thread::yield_now();
                self.now = clock::now();
                self.waiting.yielded(before, self.now);
            }
            Rest::Settle => self.settle(),
            Rest::Sleep => {
                self.now = clock::now();
                self.sleep(room);
                self.now = clock::now();
                self.waiting.busy();
            }
        }
    }

    /// Another thread drives than before.
    pub(crate) fn moved(&mut self) {
        self.moved = true;
    }

    fn settle(&mut self) {
        for running in &mut self.sessions {
            running.session.settle(&mut *self.fabric);
        }
        self.fabric.flush();
    }

    fn sleep(&mut self, room: &dyn Fn() -> bool) {
        self.settle();
        self.shared.outbox.gate.open();
        let mut until = self.closing.as_ref().map_or(self.beat_at, |closing| closing.until.min(self.beat_at));
        if std::mem::take(&mut self.moved) {
            until = until.min(self.now.plus(BRIEF));
        }
        let (sessions, links, shared, learner) = (&self.sessions, &self.links, &self.shared, &self.learner);
        let (refused, looked, reading) = (self.refused, self.looked, &self.reading);
        // The node's own bell before the fabric's, whose announcement is part of the wait: see `Shared::new`.
        shared.bell.announce();
        self.fabric.wait(self.now, until, &mut || {
            let work = sessions.iter().any(Running::has_work)
                || shared.called.load(Ordering::Relaxed)
                || shared.outbox.is_wanted()
                || reading.has_work(&shared.outbox.asked)
                || !looked && shared.outbox.is_wanted_here()
                || refused && room()
                || !refused && learner.has_work()
                || is_retirable(sessions, links);
            !work
        });
        shared.bell.awake();
    }

    /// Counts this node's heartbeat up, and tells membership of the others' (V9).
    fn beat(&mut self) {
        self.beat_at = self.now.plus(BEAT);
        for running in &mut self.sessions {
            running.session.beat(&mut *self.fabric);
        }
        self.fabric.flush();
        let newest = self.sessions.last().filter(|running| running.is_live());
        let pulse = Pulse {
            beats: newest.map(Running::pulse).unwrap_or_default(),
            sessions: self.sessions.iter().map(Running::state).collect(),
        };
        self.reports.tell(Report::Pulse(pulse));
    }

    /// Tells membership what happened to links.
    fn tell_of_links(&mut self) -> bool {
        let mut any = false;
        while let Some(event) = self.fabric.poll_event() {
            any = true;
            let (LinkEvent::Up(slot) | LinkEvent::Down(slot, _)) = &event else { continue };
            let Some(number) = self.links.get(slot).copied() else { continue };
            self.reports.tell(match event {
                LinkEvent::Down(_, why) => Report::Down(number, why),
                _ => Report::Up(number),
            });
        }
        any
    }

    /// One step of the one session that there is, and runs.
    fn step(&mut self, app: &mut Application<'_>) -> bool {
        let Self { sessions, fabric, ended, shared, teaching, reading, refused, .. } = self;
        let mut taker = Taker { app, ended, shared, tails: &mut teaching.tails, reading, refused };
        match sessions[0].step(&mut **fabric, &mut taker) {
            Ok(busy) => busy,
            Err(fault) => self.on_fault(0, &fault),
        }
    }

    /// A turn while views change: every session exchanges, the first that isn't over delivers.
    fn change(&mut self, app: &mut Application<'_>) -> bool {
        let mut busy = false;
        for at in 0..self.sessions.len() {
            match self.sessions[at].session.exchange(&mut *self.fabric) {
                Ok(any) => busy |= any,
                Err(fault) => busy |= self.on_fault(at, &fault),
            }
        }
        self.fabric.flush();
        busy |= self.learn(app);
        // V4: what lies below the trim, then the view, then its messages.
        loop {
            busy |= self.tell(app);
            let Some(at) = self.sessions.iter().position(|running| !running.is_over()) else { break };
            let view = self.sessions[at].view.id;
            let comes_first = |untold: &Untold| matches!(untold, Untold::View(untold) if untold.id <= view);
            if self.refused || self.learner.is_active() || self.untold.iter().any(comes_first) {
                break;
            }
            busy |= self.deliver(at, app);
            if !self.sessions[at].is_over() {
                break;
            }
        }
        self.resend();
        busy | self.retire()
    }

    /// V7: what was before the first view of this node comes from a member, not from rings.
    fn learn(&mut self, app: &mut Application<'_>) -> bool {
        // That it was evicted is told before what comes of joining again.
        let is_late = self.untold.iter().any(|untold| matches!(untold, Untold::Evicted(_)));
        if !self.learner.is_active() || is_late {
            return false;
        }
        let learned = self.learner.turn(app, &self.shared.bell, &mut self.refused);
        match learned {
            Learned::Nothing => return false,
            Learned::Something => {}
            Learned::CaughtUp(attempt) => self.reports.tell(Report::CaughtUp(attempt)),
            Learned::All(attempt) => self.reports.tell(Report::Learned(attempt)),
            Learned::Broken(attempt, reason) => self.reports.tell(Report::Unlearned(attempt, reason)),
            Learned::GivenUp => {
                let reason = "the application did not finish restoring the state that it was given";
                self.break_off(reason.to_owned());
            }
        }
        true
    }

    /// Delivers what is due of a session.
    fn deliver(&mut self, at: usize, app: &mut Application<'_>) -> bool {
        let Self { sessions, fabric, ended, shared, teaching, reading, refused, .. } = self;
        let mut taker = Taker { app, ended, shared, tails: &mut teaching.tails, reading, refused };
        let running = &mut sessions[at];
        match running.deliver(&mut **fabric, &mut taker) {
            Ok(busy) => {
                if busy {
                    fabric.flush();
                }
                busy
            }
            Err(fault) if running.is_trimmed() => {
                // Nothing beyond the bad record can be delivered, here or anywhere: all received the same bytes.
                self.break_off(format!("what {} left can't be delivered: {fault}", self.sessions[at].view));
                true
            }
            Err(fault) => self.on_fault(at, &fault),
        }
    }

    /// A peer broke the protocol: it is cut off (F4) and named, and the session stopped. Its view has to change.
    #[cold]
    fn on_fault(&mut self, at: usize, fault: &Fault) -> bool {
        self.wedge(at);
        match fault {
            Fault::Peer { node, blame, .. } => {
                if let Some(slot) = self.sessions[at].slot(*node) {
                    self.unlink(slot);
                }
                self.reports.tell(Report::Fault(*node, blame.to_string()));
            }
            fault => self.break_off(fault.to_string()),
        }
        true
    }

    /// This node can't go on, and says so once: what follows is membership's to say.
    fn break_off(&mut self, reason: String) {
        self.reports.tell(Report::Broken(reason.clone()));
        self.stop(Stopped::Machine(reason));
    }

    fn wedge(&mut self, at: usize) {
        let running = &mut self.sessions[at];
        running.wedge();
        self.tickets = self.tickets.max(running.next_base());
        // Whoever waits for room has to wait for the next view now.
        self.shared.outbox.gate.open();
    }

    /// Sends again what the old views left (D13), and opens the newest ring when that is done.
    fn resend(&mut self) {
        if self.is_open {
            return;
        }
        let mut is_all = true;
        for running in self.sessions.iter_mut().filter(|running| running.is_trimmed()) {
            is_all &= running.take_unsent(&mut self.unsent);
        }
        let Some(newest) = self.sessions.last_mut().filter(|newest| newest.is_live()) else { return };
        // Tickets are in the order of the sends, whatever ring they were in last.
        while let Some((ticket, unsent)) = self.unsent.pop_first() {
            #[cfg(test)]
            match self.mutant {
                Some(Mutant::NoResend) => continue,
                Some(Mutant::ResendTwice) => newest.send_again(ticket, unsent.copy()),
                _ => {}
            }
            newest.send_again(ticket, unsent);
        }
        // The others know already that this node has ended its sends; a member that is new would wait for ever.
        let repeats_end = self.newcomers && self.shared.outbox.is_end_sent();
        if is_all && (!repeats_end || newest.open.ring().try_end().is_ok()) {
            self.is_open = true;
            self.shared.outbox.open(&newest.open);
        }
    }

    fn retire(&mut self) -> bool {
        let mut any = false;
        while is_retirable(&self.sessions, &self.links) {
            let running = self.sessions.remove(0);
            self.reports.tell(Report::Retired(running.view.id));
            if !self.config.guarantee.stable() {
                self.past.push(running);
            }
            any = true;
        }
        any
    }

    /// Tells the application what it couldn't take before.
    fn tell(&mut self, app: &mut Application<'_>) -> bool {
        let mut any = false;
        while let Some(untold) = self.untold.front() {
            let verdict = match untold {
                Untold::Waiting(absent) => app(Incoming::Waiting(absent)),
                Untold::Evicted(reason) => app(Incoming::Evicted(reason)),
                Untold::View(view) => {
                    let is_before = |running: &Running| running.view.id < view.id && !running.is_over();
                    // V7: what was before its first view comes first.
                    if self.learner.is_active() || self.sessions.iter().any(is_before) {
                        return any;
                    }
                    app(Incoming::View(view))
                }
                Untold::Snapshot(request) => app(Incoming::Snapshot(request)),
            };
            if verdict == Verdict::Later {
                self.refused = true;
                return any;
            }
            any = true;
            match self.untold.pop_front() {
                Some(Untold::View(view)) => {
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

    fn obey(&mut self) {
        while let Ok(order) = self.orders.try_recv() {
            if self.stopped.is_none() {
                self.carry_out(order);
            }
        }
        while let Ok(ask) = self.asks.try_recv() {
            self.answer(ask);
        }
    }

    fn carry_out(&mut self, order: Order) {
        match order {
            Order::Prepare(number) => self.prepare(number),
            Order::Link { slot, number, node, offer } => {
                self.tell_of_links();
                if let Err(error) = self.fabric.connect(slot, node, &offer, LINK_WITHIN) {
                    return self.reports.tell(Report::Down(number, LinkDown::Failed(error.to_string())));
                }
                self.links.insert(slot, number);
            }
            Order::Unlink(slot) => self.unlink(slot),
            Order::Wedge { view, fence } => self.on_wedge(view, &fence),
            Order::Read(part) => {
                let bytes = self.sessions_of(part.view).find_map(|running| running.read(&part));
                self.reports.tell(Report::Bytes(part, bytes));
            }
            Order::Supply { part, bytes } => {
                let running = self.sessions.iter_mut().find(|running| running.view.id == part.view);
                let supplied = running.is_some_and(|running| running.supply(&part, &bytes));
                self.reports.tell(Report::Supplied(part, supplied));
            }
            Order::Install(install) => self.install(install),
            Order::Teach(pupil, held) => {
                let request = self.teaching.request(pupil, held, &self.reports);
                self.untold.push_back(Untold::Snapshot(request));
            }
            Order::Took(pupil, took) => self.teaching.on_took(pupil, took),
            Order::EndTeaching(node) => self.teaching.end(node),
            Order::Learn(attempt) => {
                if let Err(error) = self.learner.begin(attempt) {
                    self.reports.tell(Report::Unlearned(attempt, format!("no file to keep it in: {error}")));
                }
            }
            Order::Lesson(attempt, lesson) => match self.learner.on_lesson(attempt, &lesson) {
                Ok(Some(took)) => self.reports.tell(Report::Took(attempt, took)),
                Ok(None) => {}
                Err(error) => {
                    self.learner.give_up();
                    self.reports.tell(Report::Unlearned(attempt, error.to_string()));
                }
            },
            Order::Wait(absent) => {
                // Only the last word counts.
                self.untold.retain(|untold| !matches!(untold, Untold::Waiting(_)));
                self.untold.push_back(Untold::Waiting(absent));
            }
            Order::Over(reason) => self.over(&reason),
            Order::Stop(Stopped::Closed) if self.has_last_words() => {
                if let Some(closing) = &mut self.closing {
                    closing.released = true;
                }
            }
            Order::Stop(reason) => self.stop_as_told(reason),
        }
    }

    /// This incarnation is over: nothing of its views is delivered any more, and the application is told why.
    fn over(&mut self, reason: &Stopped) {
        self.end_sessions(&OutcomeError::Evicted);
        (self.view, self.is_open) = (None, false);
        self.teaching.clear();
        self.learner.end();
        self.untold.clear();
        self.untold.push_back(Untold::Evicted(reason.clone()));
    }

    /// This incarnation is over, another begins with another fabric.
    fn prepare(&mut self, number: u64) {
        self.end_sessions(&OutcomeError::Evicted);
        self.links.clear();
        (self.view, self.is_open) = (None, false);
        self.teaching.clear();
        self.learner.end();
        self.untold.retain(|untold| !matches!(untold, Untold::View(_) | Untold::Snapshot(_)));
        if let Some(closing) = &mut self.closing {
            closing.stage = Leaving::Delivering;
        }
        match self.make_anew() {
            Ok((fabric, engine)) => {
                (self.fabric, self.engine) = (fabric, engine);
                self.shared.renew(self.fabric.doorbell());
                self.reports.tell(Report::Prepared(number, self.fabric.offer()));
            }
            Err(error) => self.break_off(format!("no fabric: {error}")),
        }
    }

    fn make_anew(&mut self) -> Result<MadeFabric, Box<dyn Error + Send + Sync>> {
        self.fabric.close(Duration::ZERO);
        (self.make)()
    }

    /// Nothing more is delivered of any session.
    fn end_sessions(&mut self, reason: &OutcomeError) {
        for at in 0..self.sessions.len() {
            self.wedge(at);
            self.sessions[at].end(reason);
        }
        self.sessions.clear();
        self.past.clear();
        for (_, unsent) in std::mem::take(&mut self.unsent) {
            unsent.fail(reason);
        }
    }

    /// Fences a link and gives its slot up (F4).
    fn unlink(&mut self, slot: Slot) {
        // What is known of it is told under its own number: the slot may have another soon.
        self.tell_of_links();
        self.links.remove(&slot);
        let mut needed = Needed::default();
        for running in self.sessions.iter().chain(&self.past) {
            running.needed(slot, &mut needed);
        }
        for running in &mut self.sessions {
            running.session.lose(slot);
        }
        self.fabric.fence_keeping(slot, &needed.kept());
    }

    fn on_wedge(&mut self, view: ViewId, fence: &[Slot]) {
        let mut frozen = Vec::new();
        for at in 0..self.sessions.len() {
            if self.sessions[at].view.id == view {
                self.wedge(at);
                frozen.push(self.sessions[at].wedge().clone());
            }
        }
        for slot in fence {
            self.unlink(*slot);
        }
        self.reports.tell(Report::Wedged(view, frozen));
    }

    fn sessions_of(&self, view: ViewId) -> impl Iterator<Item = &Running> {
        self.sessions.iter().chain(&self.past).filter(move |running| running.view.id == view)
    }

    fn install(&mut self, install: Install) {
        let Install { view, slots, cut, renew } = install;
        if self.view.as_ref().is_some_and(|newest| newest.id >= view.id) {
            return; // said twice
        }
        if let Some(last) = self.sessions.len().checked_sub(1) {
            self.wedge(last);
            let cut = cut.iter().flatten().find(|cut| cut.group == GroupId::MAIN);
            if !cut.is_some_and(|cut| self.sessions[last].trim(&cut.trim)) {
                let reason = format!("{view} doesn't say where {} ends", self.sessions[last].view);
                return self.break_off(reason);
            }
        }
        let is_new = |node: &NodeId| self.view.as_ref().is_none_or(|before| before.member(*node).is_none());
        self.newcomers = view.nodes().iter().any(is_new);
        self.untold.push_back(Untold::View(view.clone()));
        self.view = Some(view.clone());
        self.is_open = false;
        let me = self.config.id;
        if view.rank_of(me).is_none() {
            if let Some(closing) = &mut self.closing {
                closing.stage = Leaving::Left;
            }
            return;
        }
        let shape = self.config.session();
        if renew {
            let base = SessionPlan::base(view.id, shape.ring_bytes);
            if let Err(error) = self.fabric.renew(base..base + SessionPlan::region_bytes(shape.ring_bytes)) {
                return self.break_off(error.to_string());
            }
        }
        // Who lacks anything of a session there had it before it retired that: nobody asks any more (V10).
        self.past.retain(|running| running.view.id.0 % 2 != view.id.0 % 2);
        let Some(plan) = view.plan(me, &slots, &shape) else { return };
        match Running::start(view, slots, plan, self.tickets, &mut *self.fabric) {
            Ok(running) => self.sessions.push(running),
            Err(error) => self.break_off(error.to_string()),
        }
    }

    fn answer(&mut self, ask: Ask) {
        match ask {
            Ask::Status(to) => {
                let _ = to.send(self.status());
            }
            Ask::Stats(to) => {
                let _ = to.send(self.stats());
            }
            Ask::Close(_, to) if self.stopped.is_some() => {
                let reason = self.stopped.clone().unwrap_or(Stopped::Closed);
                let _ = to.send(Err(CloseError::Stopped(reason)));
            }
            Ask::Close(within, answer) => self.begin_to_close(within, answer),
            Ask::Leave => self.leave(),
        }
    }

    pub(crate) fn begin_to_close(&mut self, within: Duration, answer: mpsc::Sender<Result<(), CloseError>>) {
        let until = clock::now().plus(within);
        let stage = Leaving::Delivering;
        self.closing = Some(Closing { within, until, stage, released: false, answer });
    }

    /// Goes on with closing (V8). Returns whether it is over.
    fn close(&mut self) -> bool {
        // Behind all that was sent; when it is delivered, everything is.
        self.shared.outbox.try_end_for_good();
        let me = self.config.id;
        let is_delivered = self.view.is_none() || self.ended.iter().any(|(node, _)| *node == me);
        let is_taken = !self.has_last_words();
        self.now = clock::now();
        let Some(closing) = &mut self.closing else { return false };
        if closing.stage == Leaving::Delivering && is_delivered {
            closing.stage = Leaving::Asked;
            self.reports.tell(Report::Leaving);
        }
        if closing.released && is_taken {
            self.stop_as_told(Stopped::Closed);
            return true;
        }
        if self.now >= closing.until {
            let Closing { within, stage: waits_for, answer, .. } = closing;
            let (late, answer) =
                (CloseError::Late { within: *within, waits_for: *waits_for }, answer.clone());
            self.leave();
            let _ = answer.send(Err(late));
            return true;
        }
        false
    }

    /// Whether this node is leaving and the application has not taken all that is to be delivered here.
    fn has_last_words(&self) -> bool {
        let is_due = |running: &Running| running.is_trimmed() && !running.is_over();
        self.closing.is_some() && (!self.untold.is_empty() || self.sessions.iter().any(is_due))
    }

    /// Membership says so.
    fn stop_as_told(&mut self, reason: Stopped) {
        let closing = self.closing.take_if(|_| reason == Stopped::Closed);
        if let Some(Closing { until, .. }) = &closing {
            // What this node has to say of the last messages must reach the others before it goes.
            self.settle();
            self.fabric.close(Duration::from_nanos(until.0.saturating_sub(clock::now().0)));
        }
        self.stop(reason);
        if let Some(Closing { answer, .. }) = closing {
            let _ = answer.send(Ok(()));
        }
    }

    /// Stops without order.
    pub(crate) fn leave(&mut self) {
        if self.stopped.is_none() {
            self.reports.tell(Report::Left);
            self.stop(Stopped::Closed);
        }
    }

    fn stop(&mut self, reason: Stopped) {
        if self.stopped.is_some() {
            return;
        }
        self.teaching.clear();
        self.learner.end();
        for at in 0..self.sessions.len() {
            self.wedge(at);
            self.sessions[at].end(&OutcomeError::Stopped(reason.clone()));
        }
        for (_, unsent) in std::mem::take(&mut self.unsent) {
            unsent.fail(&OutcomeError::Stopped(reason.clone()));
        }
        self.shared.outbox.stop(&reason);
        if let Some(closing) = self.closing.take()
            && reason != Stopped::Closed
        {
            let _ = closing.answer.send(Err(CloseError::Stopped(reason.clone())));
        }
        self.stopped = Some(reason);
    }

    pub(crate) fn stats(&self) -> NodeStats {
        NodeStats {
            delivered: self.shared.delivered.load(Ordering::Relaxed),
            sent: self.shared.sent.load(Ordering::Relaxed),
            fabric: self.fabric.name(),
            engine: self.engine,
            counts: self.fabric.stats(),
        }
    }

    pub(crate) fn status(&self) -> Status {
        let (phase, waiting, lost) = self.reports.standing();
        let sessions = self.sessions.iter().enumerate();
        Status {
            phase,
            waiting,
            lost,
            view: self.view.clone(),
            ended: self.ended.iter().map(|(node, _)| *node).collect(),
            sessions: sessions
                .map(|(at, running)| running.status(unborn(&self.sessions[at..], &self.links)))
                .collect(),
        }
    }
}

/// How it stood stays to be asked for.
impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.shared.last.set((self.stats(), self.status()));
        if std::thread::panicking() && self.stopped.is_none() {
            self.break_off(PANICKED.to_owned());
        }
        self.leave();
    }
}

/// Whether the oldest session is over and its memory not needed any more.
fn is_retirable(sessions: &[Running], links: &BTreeMap<Slot, LinkNumber>) -> bool {
    sessions.first().is_some_and(|first| first.is_free() && unborn(sessions, links).is_empty())
}

/// The members of the session after the first that haven't begun it, and still may. Before they have, what they sent in
/// the first may be under way to this node.
fn unborn(sessions: &[Running], links: &BTreeMap<Slot, LinkNumber>) -> Vec<NodeId> {
    let Some(next) = sessions.get(1) else { return Vec::new() };
    let is_linked = |node: &NodeId| next.slot(*node).is_some_and(|slot| links.contains_key(&slot));
    next.session.unborn().filter(is_linked).collect()
}
