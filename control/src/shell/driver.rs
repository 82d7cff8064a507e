//! [`Driver`]: the engine of a node. It owns the fabric and the sessions, takes turns, and rests in between; one thread at a
//! time calls it, the node's own or the application's.
//!
//! A turn that finds nothing to do makes no system call beyond the fabric's, takes no lock and allocates nothing.
//! What others want of the driver (the control thread's orders, the application's questions) lies in queues behind one flag,
//! and whoever puts something there rings the fabric's bell.

use std::collections::{BTreeMap, VecDeque};
use std::error::Error;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, mpsc};
use std::time::Duration;

use consort_dataplane::fabric::{Fabric, LinkDown, LinkEvent};
use consort_dataplane::names::{NodeId, Slot, Time};
use consort_dataplane::record::Kind;
use consort_dataplane::session::{Delivery, Fault, Session, Verdict};

use super::clock;
use super::control::Reports;
use super::event::Incoming;
use super::outcome::{Delivered, Pending, Registry};
use super::shared::{Ask, Shared};
use super::start::{CloseError, MadeFabric, MakeFabric, NodeStats, Status};
use super::wait::{Rest, Waiting};
use crate::config::NodeConfig;
use crate::membership::{Absent, Stopped};
use crate::plane::{Order, Report};
use crate::view::{SessionShape, View};

/// How long the fabric may take to link to a peer. Longer than membership's patience: that one decides.
const LINK_WITHIN: Duration = Duration::from_secs(15);

/// A sleep's bound, and how often an idle node's heartbeat is counted up.
const BEAT: Duration = Duration::from_millis(100);

/// Turns for which a reading of the clock is good enough while there is work.
const TURNS_A_READING: u32 = 32;

/// What the application is given; it may refuse what it can't take yet.
pub(crate) type Application<'a> = dyn FnMut(Incoming<'_, '_>) -> Verdict + 'a;

/// The engine of a node. See the [module](self).
pub(crate) struct Driver {
    config: NodeConfig,
    make: MakeFabric,
    fabric: Box<dyn Fabric + Send>,
    engine: &'static str,
    /// The number under which the fabric was ordered.
    number: u64,
    sessions: Vec<Running>,
    shared: Arc<Shared>,
    orders: mpsc::Receiver<Order>,
    asks: mpsc::Receiver<Ask>,
    reports: Reports,
    pending: Pending,
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
    closing: Option<Closing>,
    stopped: Option<Stopped>,
}

/// A session that runs.
struct Running {
    session: Session,
    view: View,
    slots: BTreeMap<NodeId, Slot>,
    /// Members whose sends have ended.
    ended: Vec<NodeId>,
}

enum Untold {
    Waiting(Vec<Absent>),
    View(View),
}

struct Closing {
    within: Duration,
    until: Time,
    /// This node's own end is sent.
    ended: bool,
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
        Self {
            waiting: Waiting::new(config.wait),
            config,
            make,
            fabric,
            engine,
            number: 0,
            sessions: Vec::new(),
            shared,
            orders,
            asks,
            reports,
            pending: Pending::default(),
            untold: VecDeque::new(),
            refused: false,
            looked: false,
            now: clock::now(),
            turns: 0,
            beat_at: Time(0),
            closing: None,
            stopped: None,
        }
    }

    /// One turn. Never blocks, but for making a fabric before the group runs. Returns whether anything happened.
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
        self.refused = false;
        self.tell(app);

        busy |= self.fabric.poll(self.now);
        while let Some(event) = self.fabric.poll_event() {
            self.reports.tell(match event {
                LinkEvent::Up(slot) => Report::Up(self.number, slot),
                LinkEvent::Down(slot, why) => Report::Down(self.number, slot, why),
                _ => continue,
            });
            busy = true;
        }
        self.looked = self.shared.outbox.take_wanted_here();
        let wanted = self.shared.outbox.take_wanted();
        for at in 0..self.sessions.len() {
            busy |= self.step(at, app);
        }
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

    fn settle(&mut self) {
        for running in &mut self.sessions {
            running.session.settle(&mut *self.fabric);
        }
        self.fabric.flush();
    }

    fn sleep(&mut self, room: &dyn Fn() -> bool) {
        if self.now >= self.beat_at {
            self.beat_at = self.now.plus(BEAT);
            for running in &mut self.sessions {
                running.session.beat(&mut *self.fabric);
            }
        }
        self.settle();
        self.shared.outbox.gate.open();
        let until = self.closing.as_ref().map_or(self.beat_at, |closing| closing.until.min(self.beat_at));
        let (sessions, shared) = (&self.sessions, &self.shared);
        let (refused, looked) = (self.refused, self.looked);
        self.fabric.wait(self.now, until, &mut || {
            let work = sessions.iter().any(|running| running.session.has_work())
                || shared.called.load(Ordering::Relaxed)
                || shared.outbox.is_wanted()
                || !looked && shared.outbox.is_wanted_here()
                || refused && room();
            !work
        });
    }

    /// One step of a session. A peer that breaks the protocol is cut off (F4), named, and the session frozen.
    fn step(&mut self, at: usize, app: &mut Application<'_>) -> bool {
        let Running { session, ended, slots, .. } = &mut self.sessions[at];
        if !self.untold.is_empty() {
            // Nothing of a view before the view itself.
            return session.exchange(&mut *self.fabric).is_ok_and(|busy| {
                self.fabric.flush();
                busy
            });
        }
        let (pending, registry) = (&mut self.pending, &self.shared.outbox.registry);
        let (delivered, sent, refused) = (&self.shared.delivered, &self.shared.sent, &mut self.refused);
        let mut sink = |delivery: &mut Delivery<'_>| {
            let verdict = deliver(delivery, app, pending, registry, ended);
            if verdict == Verdict::Later {
                *refused = true;
            } else if delivery.kind == Kind::Data {
                count(delivered);
                if delivery.ticket.is_some() {
                    count(sent);
                }
            }
            verdict
        };
        match session.step(&mut *self.fabric, &mut sink) {
            Ok(busy) => busy,
            Err(fault) => {
                if let Fault::Peer { node, blame, .. } = &fault {
                    if let Some(slot) = slots.get(node) {
                        self.fabric.fence(*slot);
                    }
                    self.reports.tell(Report::Fault(*node, blame.to_string()));
                } else {
                    self.reports.tell(Report::Broken(fault.to_string()));
                }
                session.wedge();
                true
            }
        }
    }

    /// Tells the application what it couldn't take before.
    fn tell(&mut self, app: &mut Application<'_>) {
        while let Some(untold) = self.untold.front() {
            let verdict = match untold {
                Untold::Waiting(absent) => app(Incoming::Waiting(absent)),
                Untold::View(view) => app(Incoming::View(view)),
            };
            if verdict == Verdict::Later {
                self.refused = true;
                return;
            }
            self.untold.pop_front();
        }
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
            Order::Prepare(number) => match self.make_anew() {
                Ok((fabric, engine)) => {
                    (self.fabric, self.engine, self.number) = (fabric, engine, number);
                    *self.shared.bell.lock().unwrap_or_else(PoisonError::into_inner) = self.fabric.doorbell();
                    self.reports.tell(Report::Prepared(number, self.fabric.offer()));
                }
                Err(error) => self.reports.tell(Report::Broken(format!("no fabric: {error}"))),
            },
            Order::Link { slot, node, offer } => {
                if let Err(error) = self.fabric.connect(slot, node, &offer, LINK_WITHIN) {
                    let why = LinkDown::Failed(error.to_string());
                    self.reports.tell(Report::Down(self.number, slot, why));
                }
            }
            Order::Install { view, slots } => {
                let shape =
                    SessionShape { ring_bytes: self.config.ring_bytes, guarantee: self.config.guarantee };
                let Some(plan) = view.plan(self.config.id, &slots, &shape) else {
                    return self
                        .reports
                        .tell(Report::Broken(format!("no session for node {} in {view}", self.config.id)));
                };
                match Session::start(plan, &mut *self.fabric) {
                    Ok((session, ring)) => {
                        self.untold.push_back(Untold::View(view.clone()));
                        self.sessions.push(Running { session, view, slots, ended: Vec::new() });
                        self.shared.outbox.open(ring, self.fabric.doorbell());
                    }
                    Err(error) => self.reports.tell(Report::Broken(error.to_string())),
                }
            }
            Order::Wait(absent) => {
                // Only the last word counts.
                self.untold.retain(|untold| !matches!(untold, Untold::Waiting(_)));
                self.untold.push_back(Untold::Waiting(absent));
            }
            Order::Stop(reason) => self.stop(reason),
        }
    }

    fn make_anew(&mut self) -> Result<MadeFabric, Box<dyn Error + Send + Sync>> {
        self.fabric.close(Duration::ZERO);
        (self.make)()
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
        self.closing = Some(Closing { within, until, ended: false, answer });
    }

    /// Goes on with closing. Returns whether it is over.
    fn close(&mut self) -> bool {
        let Some(closing) = &mut self.closing else { return false };
        if !self.sessions.is_empty() && !closing.ended {
            closing.ended = self.shared.outbox.try_end_for_good();
        }
        let open: Vec<_> = self.sessions.iter().flat_map(Running::open).collect();
        self.now = clock::now();
        if open.is_empty() && self.untold.is_empty() {
            // Everything is delivered; what this node has to say of it must reach the others before it goes.
            let left = Duration::from_nanos(closing.until.0.saturating_sub(self.now.0));
            let answer = closing.answer.clone();
            self.settle();
            self.fabric.close(left);
            self.reports.tell(Report::Ended);
            self.stop(Stopped::Closed);
            let _ = answer.send(Ok(()));
            return true;
        }
        if self.now >= closing.until {
            let (answer, within) = (closing.answer.clone(), closing.within);
            self.leave();
            let _ = answer.send(Err(CloseError::Late { within, open }));
            return true;
        }
        false
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
        for running in &mut self.sessions {
            running.session.wedge();
        }
        self.shared.outbox.stop(&reason);
        self.pending.fail(&self.shared.outbox.registry, &reason);
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
        let (phase, waiting) = self.reports.standing();
        let running = self.sessions.first();
        Status {
            phase,
            waiting,
            view: running.map(|running| running.view.clone()),
            ended: running.map(|running| running.ended.clone()).unwrap_or_default(),
            frontiers: running.map(|running| running.session.frontiers()),
            blocked: running.and_then(|running| running.session.blocked()),
        }
    }

    pub(crate) fn shared(&self) -> Arc<Shared> {
        self.shared.clone()
    }
}

/// How it stood stays to be asked for.
impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.shared.last.set((self.stats(), self.status()));
        self.leave();
    }
}

impl Running {
    /// The members that have not ended.
    fn open(&self) -> impl Iterator<Item = NodeId> {
        self.view.data().map(|member| member.node).filter(|node| !self.ended.contains(node))
    }
}

/// Gives the application a delivery, and tells outcomes and endings.
fn deliver(
    delivery: &mut Delivery<'_>,
    app: &mut Application<'_>,
    pending: &mut Pending,
    registry: &Registry,
    ended: &mut Vec<NodeId>,
) -> Verdict {
    match delivery.kind {
        Kind::Data => {
            // Copied before the application has the delivery: it may lend the payload, not change these.
            let own = delivery.ticket.is_some();
            let (place, outcome) =
                (delivery.payload.as_ptr(), Delivered { view: delivery.view, seq: delivery.seq });
            let verdict = app(Incoming::Message(delivery));
            if own && verdict == Verdict::Taken {
                pending.delivered(registry, place, outcome);
            }
            verdict
        }
        _ => {
            let node = delivery.sender;
            let verdict = if ended.contains(&node) { Verdict::Taken } else { app(Incoming::Ended(node)) };
            if verdict == Verdict::Taken && !ended.contains(&node) {
                ended.push(node);
            }
            verdict
        }
    }
}

/// One more. Only the driver's thread counts, so this needs no atomic addition.
fn count(counter: &AtomicU64) {
    counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}
