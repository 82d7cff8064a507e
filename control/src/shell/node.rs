//! The two forms of a node: [`Node`], whose engine has a thread of its own, and [`DrivenNode`], which the caller drives.

use std::cell::Cell;
use std::net::TcpListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use consort_dataplane::names::NodeId;
use consort_dataplane::plan::Guarantee;
use consort_dataplane::session::Verdict;

use super::clock;
use super::control::{Control, Reports};
use super::driver::{Driver, PANICKED};
use super::durable::Data;
use super::event::{Event, Inbox, Incoming};
use super::running::Application;
use super::sender::Sender;
use super::shared::{Ask, Shared};
use super::start::{CloseError, Closed, NodeStats, Start, StartError, Status};
use crate::config::{MAIN, NodeConfig};
use crate::membership::Stopped;
use crate::orders::Report;
use crate::view::ShardId;

/// A node, its engine on a thread of its own. Dropping it stops it at once: what was not delivered stays so, and the
/// others are told that it left; [`Node::close`] ends in order.
pub struct Node {
    id: NodeId,
    main: Group,
    /// The groups beside the main one.
    groups: Vec<Group>,
    asking: Asking,
    engine: Option<JoinHandle<()>>,
    control: Option<JoinHandle<()>>,
}

/// A group at this node, or one shard of it: a stream of its own, which waits for no other. Clones are the same stream. The
/// main group is the [`Node`] itself.
///
/// Its events have to be taken by somebody: a group of whose events nobody takes any stands still once some are waiting (D11), for all
/// its members; the other groups go on.
#[derive(Clone)]
pub struct Group {
    family: Arc<Family>,
    /// Which of the group's shards it is.
    index: usize,
}

/// A group with all its shards.
struct Family {
    name: String,
    guarantee: Guarantee,
    ring_bytes: usize,
    state: bool,
    /// The number of its first shard; the others follow it.
    first: u32,
    shards: Vec<(Sender, Arc<Inbox>)>,
}

impl Group {
    /// The group's name.
    pub fn name(&self) -> &str {
        &self.family.name
    }

    /// Which of the group's shards this is, from 0.
    pub fn index(&self) -> usize {
        self.index
    }

    /// How many shards the group has.
    pub fn shards(&self) -> usize {
        self.family.shards.len()
    }

    /// Another shard of the group; `None` if it has none of that number.
    pub fn shard(&self, index: usize) -> Option<Self> {
        (index < self.shards()).then(|| Self { family: self.family.clone(), index })
    }

    /// The shard's number within the cluster, as views have it.
    pub fn id(&self) -> ShardId {
        ShardId(self.family.first + self.index as u32) // there are 64 shards at most
    }

    /// When its messages are delivered.
    pub fn guarantee(&self) -> Guarantee {
        self.family.guarantee
    }

    /// Bytes of every member's ring.
    pub fn ring_bytes(&self) -> usize {
        self.family.ring_bytes
    }

    /// Whether its application has a state, which who comes gets first.
    pub fn has_state(&self) -> bool {
        self.family.state
    }

    fn inbox(&self) -> &Inbox {
        &self.family.shards[self.index].1
    }

    /// A handle to send with, for any thread. Where this node isn't a member of the shard it refuses
    /// ([`SendError::NotMember`](super::SendError::NotMember)).
    pub fn sender(&self) -> Sender {
        self.family.shards[self.index].0.clone()
    }

    /// The next event of this shard. Blocks until there is one. Several threads may call it; each event goes to one of them. Views are told
    /// here when they change who is a member of the shard.
    ///
    /// # Errors
    /// The node stopped, and all events before that were taken.
    pub fn recv(&self) -> Result<Event, Stopped> {
        loop {
            if let Some(event) = self.inbox().take(None)? {
                return Ok(event);
            }
        }
    }

    /// Takes no more events of this shard, for good: those that wait are dropped, as are those that come, and who waits for one is told that
    /// it is [closed](Stopped::Closed). The node stays a member of the shard, and nobody waits for it. It can't get the shard's state
    /// any more, should it need to: that stops the node.
    pub fn release(&self) {
        self.inbox().stop(&Stopped::Closed);
        self.inbox().discard();
    }

    /// The next event, if there is one. Never blocks.
    ///
    /// # Errors
    /// As [`Group::recv`].
    pub fn try_recv(&self) -> Result<Option<Event>, Stopped> {
        self.inbox().try_take()
    }

    /// Gives `take` the events that are there, in their order, `most` of them at most, as long as it says that it takes another; returns how many. What there is once for a batch and not
    /// for each event makes it cheaper than [`Group::try_recv`]; give messages back in the same way, by [`Message::give_back`](super::Message::give_back). Never blocks.
    ///
    /// # Errors
    /// As [`Group::recv`]; none was taken then.
    pub fn try_recv_many(&self, most: usize, take: &mut dyn FnMut(Event) -> bool) -> Result<usize, Stopped> {
        self.inbox().try_take_many(most, take)
    }

    /// The next event, or `None` if there is none within `within`.
    ///
    /// # Errors
    /// As [`Group::recv`].
    pub fn recv_timeout(&self, within: Duration) -> Result<Option<Event>, Stopped> {
        self.inbox().take(Some(within))
    }

    /// Has `wake` called, on the engine's thread, whenever events of this shard have come, and when no more will: for an application that
    /// waits for more than these, in a loop of its own. Look for events once after this call. `wake` must neither block nor call the node.
    /// False: the shard has such a call already, and keeps that one.
    pub fn set_waker(&self, wake: impl Fn() + Send + Sync + 'static) -> bool {
        self.inbox().set_waker(Box::new(wake))
    }
}

impl std::fmt::Debug for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Group({} {} of {})", self.name(), self.index, self.shards())
    }
}

/// The groups of a node, the main one first, each by its first shard.
fn groups(config: &NodeConfig, shared: &Shared) -> Vec<Group> {
    let mut channels = (0..).zip(&shared.channels);
    let mut group = |name: &str, shards, guarantee, ring_bytes, state| {
        let channels: Vec<_> = channels.by_ref().take(shards).collect();
        let first = channels.first().map_or(0, |(id, _)| *id);
        let shards = channels.into_iter().map(|(_, channel)| {
            (Sender::new(channel.outbox.clone()), Arc::new(Inbox::new(shared.bell.clone())))
        });
        let (name, shards) = (name.to_owned(), shards.collect());
        Group { family: Arc::new(Family { name, guarantee, ring_bytes, state, first, shards }), index: 0 }
    };
    let mut all = vec![group(MAIN, 1, config.guarantee, config.ring_bytes, config.state)];
    for it in config.groups_by_name() {
        all.push(group(&it.name, it.shards(), it.guarantee, it.ring_bytes, it.state));
    }
    all
}

/// A node that the caller drives, on the thread that it chooses: no thread of the library ever touches a message.
/// Dropping it stops it at once, like a [`Node`].
pub struct DrivenNode {
    groups: Vec<Group>,
    shared: Arc<Shared>,
    /// `None` once closed.
    driver: Option<Driver>,
    control: Option<JoinHandle<()>>,
}

impl Node {
    /// Starts a node. Returns before its peers are there: [`Event::View`] says that the group runs.
    ///
    /// # Errors
    /// The configuration can't be, the control address is taken, or the machine refuses what the fabric needs.
    pub fn start(start: Start) -> Result<Self, StartError> {
        let (id, config) = (start.config.id, start.config.clone());
        let (driver, asking, control) = prepare(start)?;
        let mut groups = groups(&config, &asking.shared);
        let shards = groups.iter().flat_map(|group| &group.family.shards);
        let inboxes: Vec<_> = shards.map(|(_, inbox)| inbox.clone()).collect();
        let engine = std::thread::Builder::new()
            .name(format!("consort-{id}"))
            .spawn(move || run(driver, &inboxes))
            .map_err(|cause| StartError::Machine { what: "a thread for the engine", cause })?;
        let main = groups.remove(0);
        Ok(Self { id, main, groups, asking, engine: Some(engine), control: Some(control) })
    }

    /// A group beside the main one, by its name; if it is split, its first shard. `None` if the node was configured without it.
    pub fn group(&self, name: &str) -> Option<Group> {
        if name == MAIN {
            return Some(self.main.clone());
        }
        self.groups.iter().find(|group| group.name() == name).cloned()
    }

    /// Its name in the cluster.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// The main group, of all nodes that hold data.
    pub fn main(&self) -> &Group {
        &self.main
    }

    /// All groups that the node was configured with, the main one first; of one that is split, the first shard.
    pub fn groups(&self) -> impl Iterator<Item = &Group> {
        std::iter::once(&self.main).chain(&self.groups)
    }

    /// A handle to send with, for any thread, to the main group.
    pub fn sender(&self) -> Sender {
        self.main.sender()
    }

    /// The next event of the main group. Blocks until there is one. Several threads may call it; each event goes to one of them.
    ///
    /// # Errors
    /// The node stopped, and all events before that were taken.
    pub fn recv(&self) -> Result<Event, Stopped> {
        self.main.recv()
    }

    /// The next event of the main group, if there is one. Never blocks.
    ///
    /// # Errors
    /// As [`Node::recv`].
    pub fn try_recv(&self) -> Result<Option<Event>, Stopped> {
        self.main.try_recv()
    }

    /// The next event of the main group, or `None` if there is none within `within`.
    ///
    /// # Errors
    /// As [`Node::recv`].
    pub fn recv_timeout(&self, within: Duration) -> Result<Option<Event>, Stopped> {
        self.main.recv_timeout(within)
    }

    /// Leaves the group in order (V8): takes no more sends, waits until all that this node has sent is delivered here, and has
    /// the others agree on a view without it, which go on. Blocks for as long, `within` at most. Events that were not taken by
    /// then are dropped: to see all that every member has to say, call [`Sender::end`] and take events until every member has
    /// [ended](Event::Ended), then close.
    ///
    /// # Errors
    /// It wasn't done in time, or the node had stopped before. Either way it is stopped now.
    pub fn close(mut self, within: Duration) -> Result<Closed, CloseError> {
        let (answer, answered) = mpsc::channel();
        let asked = self.asking.ask(Ask::Close(within, answer));
        // Taking makes room: the engine goes on delivering until the last member has ended.
        let inboxes = || self.groups().flat_map(|group| group.family.shards.iter().map(|(_, inbox)| inbox));
        inboxes().for_each(|inbox| inbox.discard());
        let stopped = self.main.inbox().ended();
        let discarded = inboxes().map(|inbox| inbox.discarded()).sum();
        self.join();
        match answered.recv() {
            Ok(result) if asked => result.map(|()| Closed { discarded }),
            _ => Err(CloseError::Stopped(stopped)),
        }
    }

    /// As [`Node::close`], for those who take the events themselves, to the end: begins to leave, and returns. [`Node::recv`] gives
    /// what is still delivered, and fails when it is over; then [`Departure::wait`] says how it went.
    pub fn leave(&self, within: Duration) -> Departure {
        let (answer, answered) = mpsc::channel();
        self.asking.ask(Ask::Close(within, answer));
        Departure(answered)
    }

    /// Stops at once, as dropping it does, without waiting for that: [`Node::recv`] says when it has.
    pub fn stop(&self) {
        self.asking.ask(Ask::Leave);
    }

    /// What was counted so far: asks the engine, and blocks until it has answered.
    pub fn stats(&self) -> NodeStats {
        self.asking.answer(Ask::Stats, |(stats, _)| *stats)
    }

    /// Where the node stands, or stood when it stopped: asks the engine, and blocks until it has answered.
    pub fn status(&self) -> Status {
        self.asking.answer(Ask::Status, |(_, status)| status.clone())
    }

    fn join(&mut self) {
        for thread in [self.engine.take(), self.control.take()].into_iter().flatten() {
            let _ = thread.join(); // a panic in it was told as the reason for the stop
        }
    }
}

/// A node that leaves ([`Node::leave`]).
#[derive(Debug)]
pub struct Departure(mpsc::Receiver<Result<(), CloseError>>);

impl Departure {
    /// Blocks until the node has left. Somebody must take its events meanwhile.
    ///
    /// # Errors
    /// As [`Node::close`].
    pub fn wait(self) -> Result<(), CloseError> {
        self.0.recv().unwrap_or(Err(CloseError::Stopped(Stopped::Closed)))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.asking.ask(Ask::Leave);
        self.join();
    }
}

impl DrivenNode {
    /// Starts a node that the caller drives. Only its control links have a thread of their own. Returns before its peers
    /// are there: keep polling.
    ///
    /// # Errors
    /// As [`Node::start`].
    pub fn start(start: Start) -> Result<Self, StartError> {
        let config = start.config.clone();
        let (driver, Asking { shared, .. }, control) = prepare(start)?;
        let groups = groups(&config, &shared);
        Ok(Self { groups, shared, driver: Some(driver), control: Some(control) })
    }

    /// A handle to send with, for any thread, to the main group.
    pub fn sender(&self) -> Sender {
        self.groups[0].sender() // the main group is always there
    }

    /// A handle to send with to a shard of some group, and its number; `None` if there is no such.
    pub fn sender_of(&self, group: &str, shard: usize) -> Option<(ShardId, Sender)> {
        let group = self.groups.iter().find(|it| it.name() == group)?.shard(shard)?;
        Some((group.id(), group.sender()))
    }

    /// One turn: takes in what has come, sends what was committed, and gives `app` what is due of the main group; what is due of others
    /// waits for [`DrivenNode::poll_groups`]. Never blocks once the group
    /// runs (before, a start that has to be tried again makes a new fabric). Returns whether anything happened; if not,
    /// [`DrivenNode::wait`] may be called. The thread that calls it drives the node: [`Sender::reserve`] refuses there
    /// to wait for itself.
    ///
    /// Where there are more than four groups and shards, a turn may pass over some in which nothing has happened lately. Their turn comes in the next ones;
    /// right after a turn in which nothing happened, and after a sleep, all have it.
    ///
    /// # Errors
    /// The node stopped.
    pub fn poll(&mut self, app: &mut dyn FnMut(Incoming<'_, '_>)) -> Result<bool, Stopped> {
        self.turn(&mut |shard: ShardId, incoming: Incoming<'_, '_>| {
            if shard != ShardId::MAIN {
                return Verdict::Later;
            }
            app(incoming);
            Verdict::Taken
        })
    }

    /// As [`DrivenNode::poll`], of all groups: `app` is told which shard an event is of.
    ///
    /// # Errors
    /// As there.
    pub fn poll_groups(&mut self, app: &mut dyn FnMut(ShardId, Incoming<'_, '_>)) -> Result<bool, Stopped> {
        self.turn(&mut |shard: ShardId, incoming: Incoming<'_, '_>| {
            app(shard, incoming);
            Verdict::Taken
        })
    }

    fn turn(&mut self, app: &mut dyn Application) -> Result<bool, Stopped> {
        let Some(driver) = &mut self.driver else { return Err(Stopped::Closed) };
        if self.shared.driven_here() {
            driver.moved();
        }
        driver.turn(app)
    }

    /// Waits until there may be something to do, as the wait strategy says: spins, yields or sleeps, a tenth of a second
    /// at most. Call it after a turn in which nothing happened.
    pub fn wait(&mut self) {
        if let Some(driver) = &mut self.driver {
            driver.rest(&|| false);
        }
    }

    /// Turns and waits until `app` was told something, or so long has passed: as [`DrivenNode::poll_groups`], and [`DrivenNode::wait`] when there
    /// was nothing to do. Returns whether anything was told. Whoever has nothing else to do meanwhile is told of a message soonest by this. Room
    /// in a ring isn't told: who waits for that with nothing under way to be delivered here says how long.
    ///
    /// # Errors
    /// The node stopped.
    pub fn drive(
        &mut self,
        within: Duration,
        app: &mut dyn FnMut(ShardId, Incoming<'_, '_>),
    ) -> Result<bool, Stopped> {
        /// The clock isn't looked at before so many turns: what one waits for often comes in the first.
        const TURNS: u32 = 32;
        let (mut told, mut turns, mut end) = (false, 0_u32, None);
        loop {
            let busy = self.turn(&mut |shard: ShardId, incoming: Incoming<'_, '_>| {
                told = true;
                app(shard, incoming);
                Verdict::Taken
            })?;
            let Some(driver) = &mut self.driver else { return Err(Stopped::Closed) };
            if told {
                return Ok(true);
            }
            if within.is_zero() || end.is_some_and(|end| driver.now() >= end) {
                return Ok(false);
            }
            turns = turns.saturating_add(1);
            if turns == TURNS {
                end.get_or_insert_with(|| clock::now().plus(within));
            }
            if !busy {
                driver.rest_until(&|| false, &mut |now| *end.get_or_insert(now.plus(within)));
            }
        }
    }

    /// As [`Node::close`], giving `app` what is delivered meanwhile.
    ///
    /// # Errors
    /// As [`Node::close`].
    pub fn close(
        mut self,
        within: Duration,
        app: &mut dyn FnMut(Incoming<'_, '_>),
    ) -> Result<(), CloseError> {
        let (answer, answered) = mpsc::channel();
        if let Some(driver) = &mut self.driver {
            driver.begin_to_close(within, answer);
        }
        let stopped = loop {
            // What other groups have to say is of no interest any more.
            let driven = self.drive(Duration::MAX, &mut |shard, incoming| {
                if shard == ShardId::MAIN {
                    app(incoming);
                }
            });
            if let Err(reason) = driven {
                break reason;
            }
        };
        answered.try_recv().unwrap_or(Err(CloseError::Stopped(stopped)))
    }

    /// What was counted so far.
    pub fn stats(&self) -> NodeStats {
        self.driver.as_ref().map(Driver::stats).unwrap_or_default()
    }

    /// Where the node stands.
    pub fn status(&self) -> Status {
        self.driver.as_ref().map(Driver::status).unwrap_or_default()
    }
}

impl Drop for DrivenNode {
    fn drop(&mut self) {
        drop(self.driver.take()); // it leaves
        if let Some(control) = self.control.take() {
            let _ = control.join();
        }
    }
}

/// The questions' way to an engine on another thread.
struct Asking {
    asks: mpsc::Sender<Ask>,
    shared: Arc<Shared>,
}

impl Asking {
    /// Whether there is an engine to ask.
    fn ask(&self, ask: Ask) -> bool {
        let asked = self.asks.send(ask).is_ok();
        self.shared.call();
        asked
    }

    /// The engine's answer, or how it stood when it ended.
    fn answer<T: Default>(
        &self,
        ask: impl Fn(mpsc::Sender<T>) -> Ask,
        last: impl Fn(&(NodeStats, Status)) -> T,
    ) -> T {
        let (answer, answered) = mpsc::channel();
        self.ask(ask(answer));
        // An engine that ends drops the questions that it has not answered.
        answered.recv().unwrap_or_else(|_| self.shared.last.get().map(last).unwrap_or_default())
    }
}

/// Checks, listens, makes the fabric, and starts the control thread.
fn prepare(start: Start) -> Result<(Driver, Asking, JoinHandle<()>), StartError> {
    let Start { config, listener, fabric: mut make, mut disk } = start;
    config.check()?;
    let data = Data::open(&config, disk.as_mut())?;
    let listener = match listener {
        Some(listener) => listener,
        None => TcpListener::bind(config.listen)
            .map_err(|cause| StartError::Listen { address: config.listen, cause })?,
    };
    let made = make().map_err(StartError::Fabric)?;
    let shared = Arc::new(Shared::new(made.0.doorbell(), config.shapes().len()));
    let ((orders, ordered), (asks, asked)) = (mpsc::channel(), mpsc::channel());
    let (control, reports): (Control, Reports) = Control::new(&config, listener, orders, shared.clone())?;
    let (name, offer) = (format!("consort-{}-ctl", config.id), made.0.offer());
    let driver = Driver::new(config, make, made, shared.clone(), (ordered, asked), reports.clone(), data);
    driver.tell_held();
    reports.tell(Report::Prepared(0, offer));
    let thread = control.spawn(name)?;
    Ok((driver, Asking { asks, shared }, thread))
}

/// The engine's thread. What is told of a shard goes into the inbox of that number.
pub(super) fn run(mut driver: Driver, inboxes: &[Arc<Inbox>]) {
    let ran = catch_unwind(AssertUnwindSafe(move || {
        let watched = inboxes.to_vec();
        driver.set_stands(Box::new(move |ShardId(shard)| {
            watched.get(shard as usize).is_some_and(|inbox| inbox.stands())
        }));
        let full = Cell::new(false);
        // Bit by bit: into which inboxes something was put, and which were full.
        let (told, stuck) = (Cell::new(0_u64), Cell::new(0_u64));
        let each =
            |bits: u64| (0..).zip(inboxes).filter(move |(at, _)| bits >> at & 1 == 1).map(|(_, it)| it);
        loop {
            told.set(0);
            stuck.set(0);
            let turned = driver.turn(&mut |ShardId(shard): ShardId, incoming: Incoming<'_, '_>| {
                let Some(inbox) = inboxes.get(shard as usize) else { return Verdict::Later };
                full.set(false);
                let verdict = inbox.offer(incoming, &full);
                told.set(told.get() | 1 << shard);
                stuck.set(stuck.get() | u64::from(full.get()) << shard);
                verdict
            });
            match turned {
                Ok(true) => each(told.get()).for_each(|inbox| inbox.tell()),
                Ok(false) => driver.rest(&|| each(stuck.get()).any(|inbox| !inbox.is_full())),
                Err(reason) => return reason,
            }
        }
    }));
    // The driver is dropped by now, so who is told can ask how it stood, and senders know.
    let reason = ran.unwrap_or_else(|_| Stopped::Machine(PANICKED.to_owned()));
    inboxes.iter().for_each(|inbox| inbox.stop(&reason));
}
