//! [`Driver`]: the engine of a node. It owns the fabric and the sessions, takes turns, and rests in between; one thread at a
//! time calls it, the node's own or the application's.
//!
//! A turn that finds nothing to do makes no system call beyond the fabric's, takes no lock and allocates nothing.
//! What others want of the driver (the control thread's orders, the application's questions) lies in queues behind one flag,
//! and whoever puts something there rings the node's bell.
//!
//! # A change of the view
//! The driver decides nothing; it obeys. *Wedge*: the sessions of some shards stop, the links to the lost are fenced, and where the
//! sessions stand is reported. *Install*: where they end is known. The next ones start at once, in the other half of their memory (V10), and
//! exchange while the application still takes what lies below the trim. So there may be several [`Running`] sessions of a shard, in
//! view order, and the [`Stream`] that the application sees is theirs one after the other (V4): the messages of a view, the next
//! view, its messages. What this node sent beyond the trim is sent again in the newest (D13), and then its ring opens to senders.
//! An old session that nobody needs here is reported as retired, and only after that its memory may be used again. Sessions that a
//! view doesn't end go on through all of this.

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use consort_dataplane::fabric::{Fabric, LinkDown, LinkEvent};
use consort_dataplane::log::LogCounts;
use consort_dataplane::names::{Slot, Time, ViewId};
use consort_dataplane::session::{Fault, Needed, Session};

use super::clock;
use super::control::Reports;
use super::durable::{Data, Home, ShardLog};
use super::outcome::OutcomeError;
use super::running::{Application, Running};
use super::shared::{Ask, Shared};
use super::start::{CloseError, Leaving, MadeFabric, MakeFabric, NodeStats, Status};
#[cfg(test)]
use super::stream::Mutant;
use super::stream::{Stream, Trouble, Untold, unborn};
use super::wait::{Rest, Waiting};
use crate::change::Frozen;
use crate::config::NodeConfig;
use crate::membership::Stopped;
use crate::orders::{Install, LinkNumber, Order, Part, Pulse, Report};
use crate::view::{ShardId, View};

/// How long the fabric may take to link to a peer. Longer than membership's patience: that one decides.
const LINK_WITHIN: Duration = Duration::from_secs(15);

/// A sleep's bound, and how often a node's heartbeat is counted up.
const BEAT: Duration = Duration::from_millis(100);

/// The bound of the first sleep on another thread than before. A sender on the old one that still takes itself for the
/// driving thread doesn't ring the bell; what it has sent is found then.
const BRIEF: Duration = Duration::from_millis(1);

/// Turns for which a reading of the clock is good enough while there is work.
const TURNS_A_READING: u32 = 32;

/// So many shards in which nothing has happened lately are looked at in a turn, or as many as there are lively ones, if that is more.
pub(super) const QUIET_A_TURN: usize = 4;

/// A shard is looked at in every turn until nothing has happened in so many looks at it.
const LOOKS_UNTIL_QUIET: u16 = 256;

/// After so many turns in a row in which something happened, what is published when nothing does is published all the same: it may be
/// that all this is in another group.
const BUSY_TURNS: u32 = 16;

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
    /// The shards, by number.
    streams: Vec<Stream>,
    /// Those of them that are looked at in every turn; see [`Driver::look`].
    lively: Vec<usize>,
    /// The next of the others whose turn it is, and how many of them have it at once.
    next: usize,
    quiet_a_turn: usize,
    /// The next turn is to look at all, and whether the last one did.
    looks_at_all: bool,
    looked_at_all: bool,
    /// Where the node's last view is kept, if it has a durable shard.
    home: Option<Home>,
    /// The newest view; it may be one without this node.
    view: Option<View>,
    shared: Arc<Shared>,
    orders: mpsc::Receiver<Order>,
    asks: mpsc::Receiver<Ask>,
    reports: Reports,
    waiting: Waiting,
    /// The caller rests after a turn of nothing, or did after the last one.
    rests: bool,
    /// Turns in a row in which something happened, up to [`BUSY_TURNS`].
    busy_turns: u32,
    now: Time,
    turns: u32,
    beat_at: Time,
    /// Whether the application of a shard has taken nothing of what waits for it since this was asked last. Not known where it is called from here: there
    /// it takes what it is told, stands still together with the engine, or polls groups when it likes.
    stands: Option<Stands>,
    /// Another thread drives from now on; see [`BRIEF`].
    moved: bool,
    closing: Option<Closing>,
    stopped: Option<Stopped>,
}

/// Whether a shard's application has stood still since this was asked last.
pub(super) type Stands = Box<dyn Fn(ShardId) -> bool + Send>;

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
        data: Option<Data>,
    ) -> Self {
        let shapes = config.shapes().into_iter().zip(&shared.channels);
        let stream = |(id, (shape, channel))| Stream::new(ShardId(id), shape, Arc::clone(channel));
        let mut streams: Vec<_> = (0..).zip(shapes).map(stream).collect();
        let mut home = None;
        if let Some(mut data) = data {
            data.set_bell(&shared.bell);
            home = Some(data.home);
            for (stream, log) in streams.iter_mut().zip(data.logs) {
                stream.log = log;
            }
        }
        Self {
            waiting: Waiting::new(config.wait, fabric.publishing_costs()),
            streams,
            lively: Vec::new(),
            next: 0,
            quiet_a_turn: QUIET_A_TURN,
            looks_at_all: true,
            looked_at_all: false,
            home,
            config,
            make,
            fabric,
            engine,
            links: BTreeMap::new(),
            view: None,
            shared,
            orders,
            asks,
            reports,
            rests: false,
            busy_turns: 0,
            now: clock::now(),
            turns: 0,
            beat_at: Time(0),
            stands: None,
            moved: false,
            closing: None,
            stopped: None,
        }
    }

    /// From now on `stands` tells of the applications, which take what they are told from elsewhere.
    pub(super) fn set_stands(&mut self, stands: Stands) {
        self.stands = Some(stands);
    }

    /// As [`QUIET_A_TURN`], for worlds with few shards.
    #[cfg(test)]
    pub(super) fn set_quiet_a_turn(&mut self, shards: usize) {
        self.quiet_a_turn = shards;
    }

    /// Breaks a rule from now on.
    #[cfg(test)]
    pub(super) fn mutate(&mut self, mutant: Mutant) {
        self.streams.iter_mut().for_each(|stream| stream.mutate(mutant));
    }

    /// One turn. Never blocks, but for making a fabric while the node is no member. Returns whether anything happened.
    pub(crate) fn turn(&mut self, app: &mut dyn Application) -> Result<bool, Stopped> {
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
        busy |= self.fabric.poll(self.now);
        busy |= self.tell_of_links();
        if let Some(home) = &mut self.home {
            match home.turn() {
                Ok(any) => {
                    busy |= any;
                    (0..home.take_noted()).for_each(|_| self.reports.tell(Report::Noted));
                }
                Err(error) => self.break_off(format!("its last view can't be written down: {error}")),
            }
        }
        busy |= self.look(app);
        if self.closing.is_some() {
            busy |= self.close();
        }
        self.looks_at_all = !busy;
        if busy {
            self.waiting.busy();
            self.busy_turns += 1;
            if self.busy_turns == BUSY_TURNS {
                self.busy_turns = 0;
                self.release(true);
            }
        } else {
            self.busy_turns = 0;
            if !std::mem::take(&mut self.rests) {
                // Nobody says when this thread will be back.
                self.release(true);
            }
        }
        match &self.stopped {
            Some(reason) => Err(reason.clone()),
            None => Ok(busy),
        }
    }

    /// The streams' part of a turn.
    ///
    /// Where there are many, most are quiet, and a message in one of them is not to wait until all of them have been looked at. So a turn
    /// looks at those in which something has happened lately, and at some of the others, one after the other. It looks at all where that is
    /// what the caller goes by: before it [sleeps](Driver::rest_until), after that, and after a turn of nothing without a rest, for who
    /// calls it now and then.
    #[inline]
    fn look(&mut self, app: &mut dyn Application) -> bool {
        let all = self.streams.len();
        let mut busy = false;
        if all <= self.quiet_a_turn {
            self.looked_at_all = true;
            for at in 0..all {
                busy |= self.turn_of(at, app);
                if self.stopped.is_some() {
                    break; // the others have nothing more to tell either
                }
            }
            return busy;
        }
        let mut place = 0;
        while let Some(&at) = self.lively.get(place) {
            busy |= self.turn_of(at, app);
            if self.stopped.is_some() {
                return busy;
            }
            if self.streams[at].looks == 0 {
                self.lively.swap_remove(place);
            } else {
                place += 1;
            }
        }
        let others = if self.looks_at_all { all } else { all.min(self.quiet_a_turn.max(self.lively.len())) };
        self.looked_at_all = others == all;
        for _ in 0..others {
            let at = self.next;
            self.next = if at + 1 == all { 0 } else { at + 1 };
            if self.streams[at].looks > 0 {
                continue;
            }
            busy |= self.turn_of(at, app);
            if self.stopped.is_some() {
                break;
            }
            if self.streams[at].looks > 0 {
                self.lively.push(at);
            }
        }
        busy
    }

    /// A stream's part of a turn.
    #[inline]
    fn turn_of(&mut self, at: usize, app: &mut dyn Application) -> bool {
        let Self { streams, fabric, .. } = self;
        let stream = &mut streams[at];
        stream.refused = false;
        stream.looks = stream.looks.saturating_sub(1);
        if stream.is_absent() {
            return false;
        }
        let outbox = &stream.channel.outbox;
        stream.looked = outbox.take_wanted_here();
        let wanted = outbox.take_wanted();
        stream.want();
        let stepped = stream.is_steady().then(|| stream.step(&mut **fabric, app));
        let mut busy = match stepped {
            Some(Ok(busy)) => busy,
            Some(Err(trouble)) => self.on_trouble(at, trouble),
            None => self.change(at, app),
        };
        if let (Some(home), Some(log)) = (&mut self.home, &mut self.streams[at].log) {
            if log.take_made_whole() {
                home.made_whole(self.streams[at].id);
                self.reports.tell(Report::Whole(self.streams[at].id));
            }
            let written = home.written();
            let persisted = self.streams[at].persist(
                &mut *self.fabric,
                written,
                self.config.quorum_within,
                (self.config.id, &self.reports, &self.shared.bell),
            );
            busy |= persisted.unwrap_or_else(|trouble| self.on_trouble(at, trouble));
        }
        let stream = &mut self.streams[at];
        if !stream.teaching.tails.is_empty() {
            stream.teaching.go_on(&self.reports);
        }
        #[cfg(test)]
        stream.teaching.read_in_turn(&self.reports);
        // Who waits for room looks for itself; here it is enough to say now and then that it may be worth it.
        let gate = &stream.channel.outbox.gate;
        let is_waited_at = gate.is_waited_at();
        if is_waited_at && (busy || wanted || self.turns.is_multiple_of(TURNS_A_READING)) {
            gate.open();
        }
        if busy || wanted || is_waited_at || stream.looked {
            stream.looks = LOOKS_UNTIL_QUIET;
        }
        busy
    }

    /// The time, as it was at the last look at the clock.
    pub(crate) fn now(&self) -> Time {
        self.now
    }

    /// What to do after a turn in which nothing happened, and does it. `room` says whether the application can
    /// take again what it refused.
    pub(crate) fn rest(&mut self, room: &dyn Fn() -> bool) {
        self.rest_until(room, &mut |_| Time(u64::MAX));
    }

    /// As [`Driver::rest`]; before it sleeps, `latest` is told the time, and says until when at most.
    pub(crate) fn rest_until(&mut self, room: &dyn Fn() -> bool, latest: &mut dyn FnMut(Time) -> Time) {
        self.rests = true;
        let rest = self.waiting.idle(|| {
            self.now = clock::now();
            self.now
        });
        self.looks_at_all = rest == Rest::Sleep;
        match rest {
            // What came to a stream that the last turn passed over wakes nobody.
            Rest::Sleep if !self.looked_at_all => {}
            Rest::Spin => std::hint::spin_loop(),
            Rest::Yield => {
                let before = self.now;
                std::thread::yield_now();
                self.now = clock::now();
                self.waiting.yielded(before, self.now);
            }
            Rest::Tell => self.publish(|session, fabric| session.settle_delivered(fabric)),
            Rest::Release => self.release(self.waiting.is_alone()),
            Rest::Settle => self.settle(),
            Rest::Sleep => {
                self.now = clock::now();
                let latest = latest(self.now);
                self.sleep(room, latest);
                self.now = clock::now();
                self.waiting.busy();
            }
        }
    }

    /// Another thread drives than before.
    pub(crate) fn moved(&mut self) {
        self.moved = true;
    }

    /// Publishes room that somebody may wait for, and with `received` what came and not all were told of: they may deliver on it. Where members share
    /// cores it is better left until an exchange is over: the next message tells them, and costs no more for it.
    fn release(&mut self, received: bool) {
        self.publish(|session, fabric| {
            received && session.settle_received(fabric)
                || session.settle_delivered(fabric)
                || session.settle_room(fabric)
        });
    }

    /// Has every session publish something, which says whether it did.
    fn publish(&mut self, settle: impl Fn(&mut Session, &mut dyn Fabric) -> bool) {
        let mut any = false;
        for running in self.streams.iter_mut().flat_map(|stream| &mut stream.sessions) {
            any |= settle(&mut running.session, &mut *self.fabric);
        }
        if any {
            self.fabric.flush();
        }
    }

    fn settle(&mut self) {
        for running in self.streams.iter_mut().flat_map(|stream| &mut stream.sessions) {
            running.session.settle(&mut *self.fabric);
        }
        self.fabric.flush();
    }

    fn sleep(&mut self, room: &dyn Fn() -> bool, latest: Time) {
        self.settle();
        for stream in &self.streams {
            stream.channel.outbox.gate.open();
        }
        let due = self.beat_at.min(latest);
        let mut until = self.closing.as_ref().map_or(due, |closing| closing.until.min(due));
        if std::mem::take(&mut self.moved) {
            until = until.min(self.now.plus(BRIEF));
        }
        let (streams, links, shared, home) = (&self.streams, &self.links, &self.shared, &self.home);
        let has_work = |stream: &Stream| {
            let outbox = &stream.channel.outbox;
            let wants = || {
                outbox.is_wanted()
                    || !stream.looked && outbox.is_wanted_here()
                    || stream.refused && room()
                    || !stream.refused && stream.learner.has_work()
                    || stream.wants()
                    || stream.is_retirable(links)
                    || stream.log.as_ref().is_some_and(ShardLog::has_news)
            };
            stream.has_work() || !stream.is_absent() && wants()
        };
        // The node's own bell before the fabric's, whose announcement is part of the wait: see `Shared::new`.
        shared.bell.announce();
        self.fabric.wait(self.now, until, &mut || {
            !(shared.called.load(Ordering::Relaxed)
                || streams.iter().any(has_work)
                || home.as_ref().is_some_and(Home::has_news))
        });
        shared.bell.awake();
    }

    /// Counts this node's heartbeat up, and tells membership of the others' (V9).
    fn beat(&mut self) {
        self.beat_at = self.now.plus(BEAT);
        for stream in &mut self.streams {
            let takes = !(self.stands.as_ref().is_some_and(|stands| stands(stream.id)) && stream.lends());
            for running in &mut stream.sessions {
                running.session.beat(&mut *self.fabric, takes);
            }
            if let Some(log) = &mut stream.log {
                log.on_beat();
            }
        }
        self.fabric.flush();
        let sessions = || self.streams.iter().flat_map(|stream| &stream.sessions);
        // Every member with data is in the main group.
        let main = self.streams.first().and_then(|main| main.sessions.last());
        let newest = main.filter(|running| running.is_live());
        let live = self.streams.iter().filter_map(|stream| stream.sessions.last().map(|it| (stream.id, it)));
        let takes = live.filter(|(_, running)| running.is_live()).flat_map(|(shard, running)| {
            running.pulse().map(move |(node, beats)| (shard, node, beats.application.into()))
        });
        let beats = newest.into_iter().flat_map(Running::pulse);
        let pulse = Pulse {
            beats: beats.map(|(node, beats)| (node, beats.engine.into())).collect(),
            takes: takes.collect(),
            sessions: sessions().map(Running::state).collect(),
        };
        self.reports.tell(Report::Pulse(pulse));
    }

    /// Tells membership what happened to links.
    fn tell_of_links(&mut self) -> bool {
        let mut any = false;
        while let Some(event) = self.fabric.poll_event() {
            any = true;
            self.waiting.set_learns(self.fabric.publishing_costs());
            let (LinkEvent::Up(slot) | LinkEvent::Down(slot, _)) = &event else { continue };
            let Some(number) = self.links.get(slot).copied() else { continue };
            self.reports.tell(match event {
                LinkEvent::Down(_, why) => Report::Down(number, why),
                _ => Report::Up(number, self.fabric.carrier(*slot).unwrap_or_else(|| self.fabric.name())),
            });
        }
        any
    }

    /// A stream's turn while views change: every session exchanges, the first that isn't over delivers.
    fn change(&mut self, at: usize, app: &mut dyn Application) -> bool {
        let mut busy = false;
        for session in 0..self.streams[at].sessions.len() {
            match self.streams[at].sessions[session].session.exchange(&mut *self.fabric) {
                Ok(any) => busy |= any,
                Err(fault) => busy |= self.on_trouble(at, Trouble::Fault(session, fault)),
            }
        }
        self.fabric.flush();
        let Self { streams, fabric, shared, reports, links, .. } = self;
        let stream = &mut streams[at];
        match stream.go_on(&mut **fabric, app, &shared.bell, reports) {
            Ok(any) => busy |= any,
            Err(trouble) => return self.on_trouble(at, trouble),
        }
        busy | stream.retire(links, reports)
    }

    #[cold]
    fn on_trouble(&mut self, at: usize, trouble: Trouble) -> bool {
        match trouble {
            Trouble::Fault(session, fault) => self.on_fault(at, session, &fault),
            Trouble::Broken(reason) => self.break_off(reason),
        }
        true
    }

    /// A peer broke the protocol: it is cut off (F4) and named, and the session stopped. Its view has to change.
    fn on_fault(&mut self, at: usize, session: usize, fault: &Fault) {
        self.streams[at].wedge(session);
        match fault {
            Fault::Peer { node, blame, .. } => {
                if let Some(slot) = self.streams[at].sessions[session].slot(*node) {
                    self.unlink(slot);
                }
                self.reports.tell(Report::Fault(*node, blame.to_string()));
            }
            fault => self.break_off(fault.to_string()),
        }
    }

    /// This node can't go on, and says so once: what follows is membership's to say.
    fn break_off(&mut self, reason: String) {
        self.reports.tell(Report::Broken(reason.clone()));
        self.stop(Stopped::Machine(reason));
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
            Order::Wedge { view, shards, fence } => self.on_wedge(view, &shards, &fence),
            Order::Read(part) => {
                let bytes = self.sessions_of(&part).find_map(|running| running.read(&part));
                self.reports.tell(Report::Bytes(part, bytes));
            }
            Order::Supply { part, bytes } => {
                let sessions = self.stream(part.shard).into_iter().flat_map(|stream| &mut stream.sessions);
                let running = sessions.into_iter().find(|running| running.since() == part.view);
                let supplied = running.is_some_and(|running| running.supply(&part, &bytes));
                self.reports.tell(Report::Supplied(part, supplied));
            }
            Order::Install(install) => self.install(install),
            Order::Teach(pupil, held) => {
                let reports = self.reports.clone();
                if let Some(stream) = self.stream(pupil.shard) {
                    let request = stream.teaching.request(pupil, held, &reports);
                    stream.untold.push_back(Untold::Snapshot(request));
                }
            }
            Order::Took(pupil, took) => {
                if let Some(stream) = self.stream(pupil.shard) {
                    stream.teaching.on_took(pupil, took);
                }
            }
            Order::EndTeaching(shard, node) => {
                if let Some(stream) = self.stream(shard) {
                    stream.teaching.end(node);
                }
            }
            Order::Learn(shard, attempt) => {
                let Some(Err(error)) = self.stream(shard).map(|stream| stream.learner.begin(attempt)) else {
                    return;
                };
                let reason = format!("no file to keep it in: {error}");
                self.reports.tell(Report::Unlearned(shard, attempt, reason));
            }
            Order::Lesson(shard, attempt, lesson) => {
                let Some(stream) = self.stream(shard) else { return };
                match stream.learner.on_lesson(attempt, &lesson) {
                    Ok(Some(took)) => self.reports.tell(Report::Took(shard, attempt, took)),
                    Ok(None) => {}
                    Err(error) => {
                        stream.learner.give_up();
                        self.reports.tell(Report::Unlearned(shard, attempt, error.to_string()));
                    }
                }
            }
            Order::Unlearn(shard) => {
                if let Some(stream) = self.stream(shard) {
                    stream.learner.end();
                }
            }
            Order::Wait(absent) => {
                let Some(main) = self.streams.first_mut() else { return };
                // Only the last word counts.
                main.untold.retain(|untold| !matches!(untold, Untold::Waiting(_)));
                main.untold.push_back(Untold::Waiting(absent));
            }
            Order::Note { view, behind } => match &mut self.home {
                Some(home) => {
                    if let Err(why) = home.note(view, behind) {
                        self.break_off(why);
                    }
                }
                // A witness that writes nothing down: it counts for nothing when a group begins again.
                None => self.reports.tell(Report::Noted),
            },
            Order::ReadLog { node, shard, since, behind, chain, at } => {
                let Some(log) = self.stream(shard).and_then(|stream| stream.log.as_mut()) else { return };
                let given = log.serve(node, since, behind, chain, at);
                self.reports.tell(Report::LogPart { node, shard, behind, at, given });
            }
            Order::LogPart { node, shard, behind, at, given } => {
                let Some(log) = self.stream(shard).and_then(|stream| stream.log.as_mut()) else { return };
                if let Err(why) = log.on_part(node, (behind, at), &given) {
                    self.break_off(why);
                }
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
        self.view = None;
        for stream in &mut self.streams {
            stream.end(&OutcomeError::Evicted);
            stream.untold.clear();
            stream.untold.push_back(Untold::Evicted(reason.clone()));
        }
    }

    /// This incarnation is over, another begins with another fabric.
    fn prepare(&mut self, number: u64) {
        self.links.clear();
        self.view = None;
        for stream in &mut self.streams {
            stream.end(&OutcomeError::Evicted);
            stream.untold.retain(|untold| !matches!(untold, Untold::View(_) | Untold::Snapshot(_)));
        }
        if let Some(closing) = &mut self.closing {
            closing.stage = Leaving::Delivering;
        }
        match self.make_anew() {
            Ok((fabric, engine)) => {
                (self.fabric, self.engine) = (fabric, engine);
                self.shared.renew(self.fabric.doorbell());
                self.tell_held();
                self.reports.tell(Report::Prepared(number, self.fabric.offer()));
            }
            Err(error) => self.break_off(format!("no fabric: {error}")),
        }
    }

    /// P3: what this node has on disk.
    pub(crate) fn tell_held(&self) {
        if let Some(home) = &self.home {
            let logs = self.streams.iter().filter_map(|stream| Some((stream.id, stream.log.as_ref()?)));
            self.reports.tell(Report::Held(home.held(logs)));
        }
    }

    fn make_anew(&mut self) -> Result<MadeFabric, Box<dyn Error + Send + Sync>> {
        self.fabric.close(Duration::ZERO);
        (self.make)()
    }

    /// Fences a link and gives its slot up (F4).
    fn unlink(&mut self, slot: Slot) {
        // What is known of it is told under its own number: the slot may have another soon.
        self.tell_of_links();
        self.links.remove(&slot);
        let mut needed = Needed::default();
        for stream in &mut self.streams {
            for running in stream.sessions.iter().chain(&stream.past) {
                running.needed(slot, &mut needed);
            }
            for running in &mut stream.sessions {
                running.session.lose(slot);
            }
        }
        self.fabric.fence_keeping(slot, &needed.kept());
    }

    fn on_wedge(&mut self, view: ViewId, shards: &[ShardId], fence: &[Slot]) {
        let is_here = self.view.as_ref().is_some_and(|here| here.id == view);
        for shard in shards.iter().filter(|_| is_here) {
            if let Some(stream) = self.stream(*shard) {
                stream.wedge_newest();
            }
        }
        for slot in fence {
            self.unlink(*slot);
        }
        let newest = self.streams.iter_mut().filter_map(|stream| stream.sessions.last_mut());
        let wedged = newest.filter(|running| is_here && !running.is_live() && !running.is_trimmed());
        let frozen: Vec<Frozen> = wedged.map(|running| running.wedge().clone()).collect();
        self.reports.tell(Report::Wedged(view, frozen));
    }

    fn stream(&mut self, shard: ShardId) -> Option<&mut Stream> {
        self.streams.get_mut(usize::try_from(shard.0).ok()?)
    }

    fn sessions_of(&self, part: &Part) -> impl Iterator<Item = &Running> {
        let stream = self.streams.iter().find(|stream| stream.id == part.shard);
        let all = stream.into_iter().flat_map(|stream| stream.sessions.iter().chain(&stream.past));
        all.filter(|running| running.since() == part.view)
    }

    fn install(&mut self, install: Install) {
        let Install { view, behind, slots, cut, level, renew } = install;
        if self.view.as_ref().is_some_and(|newest| newest.id >= view.id) {
            return; // said twice
        }
        let me = self.config.id;
        for at in 0..self.streams.len() {
            let Self { streams, fabric, .. } = self;
            let stream = &mut streams[at];
            let cut = cut.iter().flatten().find(|cut| cut.shard == stream.id);
            let (trim, renew) = (cut.map(|cut| &cut.trim[..]), renew.contains(&stream.id));
            let is_level = level.contains(&stream.id);
            if let Err(refusal) = stream.install(me, &view, &slots, (trim, is_level, renew), &mut **fabric) {
                return self.break_off(format!("{view}: {refusal}"));
            }
        }
        if let Some(home) = &mut self.home {
            home.on_view(me, &view, behind);
        }
        let lacks = |stream: &&Stream| stream.log.as_ref().is_some_and(ShardLog::lacks);
        for stream in self.streams.iter().filter(lacks) {
            self.reports.tell(Report::Lacks(stream.id));
        }
        if view.rank_of(me).is_none()
            && let Some(closing) = &mut self.closing
        {
            closing.stage = Leaving::Left;
        }
        self.view = Some(view);
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
        let me = self.config.id;
        let mut is_delivered = true;
        for stream in &self.streams {
            stream.channel.outbox.try_end_for_good();
            let has_ended = stream.ended.iter().any(|(node, _)| *node == me);
            is_delivered &= stream.sessions.is_empty() || has_ended;
        }
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
        let has = |stream: &Stream| !stream.untold.is_empty() || stream.sessions.iter().any(is_due);
        self.closing.is_some() && self.streams.iter().any(has)
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
        for stream in &mut self.streams {
            stream.stop(&reason);
        }
        if let Some(closing) = self.closing.take()
            && reason != Stopped::Closed
        {
            let _ = closing.answer.send(Err(CloseError::Stopped(reason.clone())));
        }
        self.stopped = Some(reason);
    }

    pub(crate) fn stats(&self) -> NodeStats {
        let sum = |count: fn(&super::shared::Channel) -> &std::sync::atomic::AtomicU64| {
            self.streams.iter().map(|stream| count(&stream.channel).load(Ordering::Relaxed)).sum()
        };
        let logs = self.streams.iter().filter_map(|stream| stream.log.as_ref());
        NodeStats {
            delivered: sum(|channel| &channel.delivered),
            sent: sum(|channel| &channel.sent),
            fabric: self.fabric.name(),
            engine: self.engine,
            counts: self.fabric.stats(),
            logs: logs.fold(LogCounts::default(), |all, log| all.and(log.counts())),
        }
    }

    /// Whether no log lacks anything.
    #[cfg(test)]
    pub(super) fn is_whole(&self) -> bool {
        self.streams.iter().filter_map(|stream| stream.log.as_ref()).all(|log| !log.lacks())
    }

    pub(crate) fn status(&self) -> Status {
        let (phase, waiting, lost) = self.reports.standing();
        let of = |stream: &Stream| {
            let all = stream.sessions.iter().enumerate();
            all.map(|(at, running)| running.status(unborn(&stream.sessions[at..], &self.links)))
                .collect::<Vec<_>>()
        };
        let main = self.streams.first();
        Status {
            phase,
            waiting,
            lost,
            view: self.view.clone(),
            ended: main.into_iter().flat_map(|main| &main.ended).map(|(node, _)| *node).collect(),
            sessions: self.streams.iter().flat_map(of).collect(),
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
