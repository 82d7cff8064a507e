//! [`Replica`]: an object at one member. A thread of its own takes the node's events, applies updates in their order, and hands out
//! replies; whoever calls waits on a [`Pending`], not on that thread's work.
//!
//! # Whom a reply belongs to
//! A ticket names one send of this node over all views. It is put down under the same lock under which the message is sent, so the reply
//! finds it. A node that is evicted begins another *life*: all that wait are told that nothing is known, and a message that was prepared
//! in the old life and not sent is prepared again.
//!
//! # Replies of all
//! An update of which every member's reply is wanted is a *call* (`calls`): from its delivery on it is called by its place in the order, and the
//! others' answers come as messages. These are no updates: they have no index, and count for no digest, since only who asked is sent them.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Cursor, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::{JoinHandle, ThreadId};
use std::time::{Duration, Instant};

use consort_control::shell::Gate;
use serde::{Deserialize, Serialize};

use super::answers::{Answer, Answers};
use super::calls::{CALLS, Calls, Head, Lost, Over, Replies, lives};
use super::digests::{Digests, Divergence, Place, least_every};
use super::host::Host;
use super::machine::{Context, StateMachine};
use super::pending::{Pending, Promise};
use super::value::{Undecodable, Value};
use crate::{
    CloseError, Departure, Event, Group, Guarantee, Incarnation, Message, Node, NodeBuilder, NodeId,
    ReadPoint, ReadPointError, Reservation, Restore, SendError, Seq, SnapshotRequest, StartError, Status,
    Stopped, Ticket, View, ViewId,
};

/// The first byte of a message: an update. Bytes beyond these are for later versions, and nobody sends them.
const UPDATE: u8 = 0;
/// An update whose sender wants to know what every member answers.
const CALL: u8 = 1;
/// A member's answer to one.
const ANSWER: u8 = 2;

/// How a replica is kept. All members must be told the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Options {
    /// After every so many updates a digest of the state is taken and compared; 0 is never. 4,096 if not set. While it is taken nothing
    /// is applied here, so take it less often of a large state.
    pub digest_every: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { digest_every: 4096 }
    }
}

impl Options {
    /// With a digest after every `updates` updates; 0 is never.
    pub fn digest_every(mut self, updates: u64) -> Self {
        self.digest_every = updates;
        self
    }
}

/// A replica can't be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplicaError {
    /// Without one order members would apply the same updates differently.
    #[error("an object can't be replicated with the guarantee fifo, which has no one order; take atomic")]
    Unordered,
    /// The node can't.
    #[error(transparent)]
    Node(#[from] StartError),
    /// Who comes to the group later would begin with another state than those who are there.
    #[error("group {0} is configured without a state: set `state` at all nodes")]
    Stateless(String),
    /// With so few updates between two digests, members of a group with such rings could take one for another.
    #[error(
        "digests after every {every} updates are too many for rings of {ring_bytes} bytes; take 0 for none, or {least} or more"
    )]
    Digests {
        /// What was asked for.
        every: u64,
        /// Bytes of every member's ring.
        ring_bytes: usize,
        /// What may be.
        least: u64,
    },
    /// Its first state has no snapshot, which is needed when the group is founded anew.
    #[error("the first state can't be read: {0}")]
    State(#[source] io::Error),
    /// The machine has no thread for it.
    #[error("can't get a thread for the replica: {0}")]
    Thread(#[source] io::Error),
}

/// Why a replica does nothing more.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Halted {
    /// Its node stopped.
    #[error("the node stopped: {0}")]
    Node(Stopped),
    /// Its state isn't what the others have, or nobody knows who is right: it is not to be believed.
    #[error("{0}")]
    Diverged(Divergence),
    /// The object's code panicked, so its state may be half changed. It will have done so at every member.
    #[error("the object's code panicked: {0}")]
    Panicked(String),
    /// The state that another member gave can't be restored.
    #[error("the state of another member can't be restored: {0}; run the same program at all members")]
    Restore(String),
}

/// There is no reply to an update.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UpdateError {
    /// It was not sent, so it is applied nowhere.
    #[error("the update was not sent: {0}")]
    NotSent(#[from] SendError),
    /// It was not sent: the replica does nothing more.
    #[error("the update was not sent, because the replica had stopped: {0}")]
    Stopped(Halted),
    /// It was not sent: it has no form as bytes.
    #[error("the update was not sent: {0}")]
    Unencodable(Undecodable),
    /// It was sent and passed over, at every member.
    #[error("the update was not applied: {0}")]
    Refused(Undecodable),
    /// It was sent, and this replica stopped before it was applied here.
    #[error(
        "it isn't known whether the update was applied, because the replica stopped first ({0}); ask another member for the state \
         before you send it again"
    )]
    Unknown(Halted),
    /// It was sent, and the group went on without this node before it was applied here.
    #[error(
        "it isn't known whether the update was applied, because the group went on without this node ({0}); query the state when the node \
         has joined again, before you send it again"
    )]
    Evicted(Stopped),
    /// It was sent, and this node gave its place in the shard to another before it was applied here.
    #[error(
        "it isn't known whether the update was applied, because this node ceased to be a member of the shard; query a member before you \
         send it again"
    )]
    Moved,
    /// The object's own code called, and would wait for itself.
    #[error("an object's code can't wait for an update: it would wait for itself")]
    Within,
}

impl UpdateError {
    /// Whether the update may have been applied. If not, it can be sent again without a thought.
    pub fn may_be_applied(&self) -> bool {
        matches!(self, Self::Unknown(_) | Self::Evicted(_) | Self::Moved)
    }
}

/// There is no answer to a query. Nothing has changed; another member can be asked.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QueryError {
    /// The group has no such queries.
    #[error(transparent)]
    NoPoints(#[from] ReadPointError),
    /// The replica does nothing more.
    #[error("the replica has stopped: {0}")]
    Stopped(Halted),
    /// The group went on without this node; it may have joined again by now.
    #[error(
        "the group went on without this node ({0}); ask again when it has joined again, or ask another member"
    )]
    Evicted(Stopped),
    /// This node isn't a member of the shard: what it has of it grows old.
    #[error("this node is no member of the shard: ask one that is")]
    NotMember,
    /// The object's own code called, and would wait for itself.
    #[error("an object's code can't query itself: it is given the state")]
    Within,
}

/// What [`Replica::update_all`] comes to.
pub type Answered<R> = Result<Replies<R>, UpdateError>;

/// An object at this member. See the [module](crate::object).
///
/// Any number of threads may use it. Dropping it stops its node at once, if it has [one of its own](Replica::start); [`Replica::close`]
/// leaves in order.
pub struct Replica<S: StateMachine> {
    common: Arc<Common<S>>,
    thread: Option<JoinHandle<()>>,
    applier: ThreadId,
}

/// What a group begins with.
fn first<S: StateMachine>(object: &S) -> Result<Vec<u8>, ReplicaError> {
    let mut first = Vec::new();
    object.snapshot().read_to_end(&mut first).map_err(ReplicaError::State)?;
    Ok(first)
}

/// What callers share with the thread.
struct Common<S: StateMachine> {
    me: NodeId,
    host: Host,
    state: RwLock<S>,
    watch: Gate,
    /// Where threads wait for a call to be over, so that they may make theirs.
    calls: Gate,
    desk: Mutex<Desk<S::Reply>>,
}

/// Who waits for what.
struct Desk<R> {
    /// How often the node was evicted.
    life: u64,
    updates: BTreeMap<Ticket, Promise<Result<R, UpdateError>>>,
    /// Calls that have a place, and are not sent yet,
    calling: usize,
    /// those that were sent and not delivered yet,
    sent: BTreeMap<Ticket, Promise<Answered<R>>>,
    /// and those that were.
    calls: Calls<R, UpdateError>,
    points: BTreeMap<ReadPoint, Promise<Result<(), QueryError>>>,
    view: Option<View>,
    applied: u64,
    halted: Option<Halted>,
}

impl<S: StateMachine> Replica<S> {
    /// Starts a node and an object on it, which begins as `object`; the same at all members. Returns before the others are there.
    ///
    /// # Errors
    /// The node can't be started, or its guarantee has no order.
    pub fn start(node: NodeBuilder, object: S) -> Result<Self, ReplicaError> {
        Self::start_with(node, object, Options::default())
    }

    /// As [`Replica::start`], with options.
    ///
    /// # Errors
    /// As there.
    pub fn start_with(node: NodeBuilder, object: S, options: Options) -> Result<Self, ReplicaError> {
        let (me, guarantee) = (node.config().id, node.config().guarantee);
        if guarantee == Guarantee::Fifo {
            return Err(ReplicaError::Unordered);
        }
        let first = first(&object)?;
        let host = Host::own(node.state(true).start()?);
        Self::live_on(host, me, first, object, options)
    }

    /// An object on a group, or one of its shards, of a node that others use too; the same at all its members. Where the node isn't a member
    /// of the shard, or isn't one yet, there is nothing to be had of it; that may change with any view. Configure the group with a
    /// [state](crate::GroupConfig::state).
    ///
    /// There may be one replica of a shard at a node: two would share the shard's events between them. One that can't be believed any more
    /// stops the node. Dropping it does not: the node stays a member of the shard, so drop it
    /// with the node, or soon before.
    ///
    /// # Errors
    /// The group has no order, or no state.
    pub fn on(node: &Arc<Node>, group: &Group, object: S, options: Options) -> Result<Self, ReplicaError> {
        match group.guarantee() {
            Guarantee::Fifo => return Err(ReplicaError::Unordered),
            _ if !group.has_state() => return Err(ReplicaError::Stateless(group.name().to_owned())),
            _ => {}
        }
        let first = first(&object)?;
        let host = Host::shared(node.clone(), group.clone());
        Self::live_on(host, node.id(), first, object, options)
    }

    fn live_on(
        host: Host,
        me: NodeId,
        first: Vec<u8>,
        object: S,
        options: Options,
    ) -> Result<Self, ReplicaError> {
        let (every, ring_bytes) = (options.digest_every, host.ring_bytes());
        let least = least_every(ring_bytes);
        if (1..least).contains(&every) {
            return Err(ReplicaError::Digests { every, ring_bytes, least });
        }
        let desk = Desk {
            life: 0,
            updates: BTreeMap::new(),
            calling: 0,
            sent: BTreeMap::new(),
            calls: Calls::default(),
            points: BTreeMap::new(),
            view: None,
            applied: 0,
            halted: None,
        };
        let answers = Answers::new(me, host.sender()).map_err(ReplicaError::Thread)?;
        let common = Arc::new(Common {
            me,
            host,
            state: RwLock::new(object),
            watch: Gate::default(),
            calls: Gate::default(),
            desk: Mutex::new(desk),
        });
        let applier = Applier {
            common: common.clone(),
            me,
            first,
            is_stale: false,
            applied: 0,
            view: None,
            digests: Digests::new(me, options.digest_every),
            own: None,
            answers,
        };
        let thread = std::thread::Builder::new()
            .name(format!("consort-{me}-object"))
            .spawn(move || applier.run())
            .map_err(ReplicaError::Thread)?;
        Ok(Self { common, applier: thread.thread().id(), thread: Some(thread) })
    }

    /// Does an update: sends it to all members, and returns what it answered here, in its place in the order. Blocks until then, also over
    /// changes of the view; the update is applied once.
    ///
    /// # Errors
    /// See [`UpdateError`]; [`UpdateError::may_be_applied`] tells whether it was possibly applied all the same.
    pub fn update(&self, update: &S::Update) -> Result<S::Reply, UpdateError> {
        self.submit(update)?.wait()
    }

    /// As [`Replica::update`], without waiting for the answer: many updates may be under way at once, and are applied in the order in which
    /// this thread submitted them. Blocks only for room in the ring, and until the group has started.
    ///
    /// # Errors
    /// It was not sent.
    pub fn submit(&self, update: &S::Update) -> Result<Pending<Result<S::Reply, UpdateError>>, UpdateError> {
        let bytes = self.message(UPDATE, update)?;
        self.send(&bytes, |desk, room| {
            let (promise, pending) = Promise::new();
            desk.updates.insert(room.send(), promise);
            pending
        })
    }

    /// Does an update, and returns what it answered at every member of the shard: once each member of the view in which it was delivered has
    /// answered, or is gone from the view or the shard. Blocks until then, also over changes of the view, and as long as a member
    /// that is in the view keeps still: [`Replica::submit_all`] and [`Pending::wait_timeout`] wait for some time only. A node that is a member and
    /// has dropped its replica, never had one, or has ended its sends, answers nothing until it is gone.
    ///
    /// A reply is a message to this member alone (to all, in groups whose guarantee or [topology](crate::Topology) knows no messages for some),
    /// so it costs room in the ring of who answers. One that doesn't fit in a ring is [not said](Lost::Unsaid).
    ///
    /// # Errors
    /// As [`Replica::update`]. What others answered before this replica stopped, was left out, or ceased to be a member, is not told.
    pub fn update_all(&self, update: &S::Update) -> Answered<S::Reply> {
        self.submit_all(update)?.wait()
    }

    /// As [`Replica::update_all`], without waiting for the answers. 64 may be under way at once: further ones block until one is over, which
    /// bounds the replies that wait at the others. One that isn't waited for any more is under way all the same.
    ///
    /// # Errors
    /// It was not sent.
    pub fn submit_all(&self, update: &S::Update) -> Result<Pending<Answered<S::Reply>>, UpdateError> {
        let bytes = self.message(CALL, update)?;
        // A place before room in the ring, for which others would have to wait.
        let place = self.common.calls.wait(None, || {
            let mut desk = self.common.desk();
            match desk.open() {
                Err(why) => Some(Err(why)),
                Ok(_) => desk.may_call().then(|| {
                    desk.calling += 1;
                    Ok(())
                }),
            }
        });
        place.unwrap_or(Ok(())).map_err(UpdateError::Stopped)?; // a wait without a bound has a value
        let sent = self.send(&bytes, |desk, room| {
            let (promise, pending) = Promise::new();
            desk.calling -= 1;
            desk.sent.insert(room.send(), promise);
            pending
        });
        if sent.is_err() {
            self.common.desk().calling -= 1;
            self.common.calls.open();
        }
        sent
    }

    fn message(&self, kind: u8, update: &S::Update) -> Result<Vec<u8>, UpdateError> {
        self.outside(UpdateError::Within)?;
        let mut bytes = vec![kind];
        update.encode(&mut bytes).map_err(UpdateError::Unencodable)?;
        Ok(bytes)
    }

    /// Prepares a message, and has it sent, and put down who waits for it, while the desk is locked.
    fn send<T>(
        &self,
        bytes: &[u8],
        send: impl FnOnce(&mut Desk<S::Reply>, Reservation<'_>) -> T,
    ) -> Result<T, UpdateError> {
        loop {
            let life = self.common.desk().open().map_err(UpdateError::Stopped)?;
            let mut room = self.common.host.reserve(bytes.len())?;
            room.copy_from_slice(bytes);
            let mut desk = self.common.desk();
            if desk.open().map_err(UpdateError::Stopped)? == life {
                return Ok(send(&mut desk, room));
            }
        }
    }

    /// Looks at the state, which has every update that had completed at any member when this was called: linearizable. Blocks for
    /// a round trip between the members. `look` runs on this thread; updates wait meanwhile.
    ///
    /// # Errors
    /// The group's guarantee isn't `Atomic`, the node stopped, or the group went on without it.
    pub fn query<T>(&self, look: impl FnOnce(&S) -> T) -> Result<T, QueryError> {
        self.fresh()?.wait()?;
        self.query_local(look)
    }

    /// Waits for what [`Replica::query`] waits for, without blocking: then [`Replica::query_local`] is as good.
    ///
    /// # Errors
    /// As there.
    pub fn fresh(&self) -> Result<Pending<Result<(), QueryError>>, QueryError> {
        self.outside(QueryError::Within)?;
        let mut desk = self.common.desk();
        desk.open().map_err(QueryError::Stopped)?;
        // Under the lock: the thread can't tell of it before it is put down.
        let point = self.common.host.read_point()?;
        let (promise, pending) = Promise::new();
        desk.points.insert(point, promise);
        Ok(pending)
    }

    /// Looks at the state as it is here, now. It may lack updates that have completed elsewhere; it never lacks what this replica has
    /// shown before, nor this node's own updates that were answered.
    ///
    /// # Errors
    /// The replica has stopped, so its state will only grow older.
    pub fn query_local<T>(&self, look: impl FnOnce(&S) -> T) -> Result<T, QueryError> {
        self.outside(QueryError::Within)?;
        let desk = self.common.desk();
        desk.open().map_err(QueryError::Stopped)?;
        if !self.common.is_member(&desk) {
            return Err(QueryError::NotMember);
        }
        drop(desk);
        // Poisoned: the object's code panicked while it changed the state, which may be half changed.
        let Ok(state) = self.common.state.read() else {
            return Err(QueryError::Stopped(Halted::Panicked("while it changed the state".to_owned())));
        };
        Ok(look(&state))
    }

    /// Whether this node is a member of the shard, as far as the replica has been told; on a node of its own it always is.
    pub fn is_member(&self) -> bool {
        self.common.is_member(&self.common.desk())
    }

    /// Waits until `look` finds something in the state as it is here. It is called once at first, and again after every update and every
    /// change of the view.
    ///
    /// # Errors
    /// The replica has stopped, or does while this waits.
    pub fn wait_for<T>(&self, look: impl FnMut(&S) -> Option<T>) -> Result<T, QueryError> {
        self.wait_until(None, look)?.ok_or(QueryError::Within) // not reached: a wait without a bound has a value
    }

    /// As [`Replica::wait_for`], for at most `within`: `None` if nothing is found by then.
    ///
    /// # Errors
    /// As there.
    pub fn wait_for_timeout<T>(
        &self,
        within: Duration,
        look: impl FnMut(&S) -> Option<T>,
    ) -> Result<Option<T>, QueryError> {
        // A time that is beyond all dates is for ever.
        self.wait_until(Instant::now().checked_add(within), look)
    }

    fn wait_until<T>(
        &self,
        until: Option<Instant>,
        mut look: impl FnMut(&S) -> Option<T>,
    ) -> Result<Option<T>, QueryError> {
        self.outside(QueryError::Within)?;
        self.common.watch.wait(until, || self.query_local(&mut look).transpose()).transpose()
    }

    /// The view that the state is of, once there is one.
    pub fn view(&self) -> Option<View> {
        self.common.desk().view.clone()
    }

    /// How many updates have been applied since the group was founded.
    pub fn applied(&self) -> u64 {
        self.common.desk().applied
    }

    /// Why it does nothing more, if so.
    pub fn halted(&self) -> Option<Halted> {
        self.common.desk().halted.clone()
    }

    /// Where its node stands.
    pub fn status(&self) -> Status {
        self.common.host.status()
    }

    /// Leaves the group in order: what was submitted is applied, then the others agree on a view without this node. Blocks for as long,
    /// `within` at most. On a node that others use too it only takes no more of the shard's events; what is under way is told as unknown.
    ///
    /// # Errors
    /// It wasn't done in time, or the node had stopped before. Either way it is stopped now.
    pub fn close(mut self, within: Duration) -> Result<(), CloseError> {
        let departure = self.common.host.leave(within);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic was told as the reason for the halt
        }
        departure.map_or(Ok(()), Departure::wait)
    }

    /// Ends at once, as dropping it does.
    pub fn stop(&self) {
        self.common.host.stop();
    }

    fn outside<E>(&self, within: E) -> Result<(), E> {
        if std::thread::current().id() == self.applier { Err(within) } else { Ok(()) }
    }
}

impl<S: StateMachine> Drop for Replica<S> {
    fn drop(&mut self) {
        self.common.host.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl<S: StateMachine> fmt::Debug for Replica<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let desk = self.common.desk();
        f.debug_struct("Replica")
            .field("applied", &desk.applied)
            .field("halted", &desk.halted)
            .finish_non_exhaustive()
    }
}

impl<S: StateMachine> Common<S> {
    fn desk(&self) -> MutexGuard<'_, Desk<S::Reply>> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner) // no user's code runs under it
    }

    fn is_member(&self, desk: &Desk<S::Reply>) -> bool {
        let is_in =
            |view: &View| view.shard(self.host.id()).is_some_and(|shard| shard.members.contains(&self.me));
        self.host.is_own() || desk.view.as_ref().is_some_and(is_in)
    }
}

impl<R> Desk<R> {
    /// The life in which something may be begun.
    fn open(&self) -> Result<u64, Halted> {
        self.halted.clone().map_or(Ok(self.life), Err)
    }

    /// Whether one more call may be under way.
    fn may_call(&self) -> bool {
        self.calling + self.sent.len() + self.calls.len() < CALLS
    }

    /// Whoever waits, for whom it is over.
    fn give_up(&mut self) -> GivenUp<R> {
        GivenUp {
            updates: std::mem::take(&mut self.updates),
            sent: std::mem::take(&mut self.sent),
            calls: std::mem::take(&mut self.calls),
            points: std::mem::take(&mut self.points),
        }
    }
}

/// Who waited in vain. They are told when the desk is unlocked: a waker may run the program's code, which may come back to the desk.
#[must_use = "they wait for ever unless they are told"]
struct GivenUp<R> {
    updates: BTreeMap<Ticket, Promise<Result<R, UpdateError>>>,
    sent: BTreeMap<Ticket, Promise<Answered<R>>>,
    calls: Calls<R, UpdateError>,
    points: BTreeMap<ReadPoint, Promise<Result<(), QueryError>>>,
}

impl<R> GivenUp<R> {
    fn tell(self, update: &UpdateError, query: &QueryError) {
        self.updates.into_values().for_each(|promise| promise.keep(Err(update.clone())));
        let calls = self.sent.into_values().chain(self.calls.give_up());
        calls.for_each(|promise| promise.keep(Err(update.clone())));
        self.points.into_values().for_each(|promise| promise.keep(Err(query.clone())));
    }
}

/// What comes before the object's own snapshot.
#[derive(Serialize, Deserialize)]
struct Header {
    applied: u64,
    view: Option<View>,
}

/// The thread.
struct Applier<S: StateMachine> {
    common: Arc<Common<S>>,
    me: NodeId,
    /// The state that a group begins with.
    first: Vec<u8>,
    /// It has a state of a group that this node was left out of: another has to come in its place.
    is_stale: bool,
    applied: u64,
    view: Option<View>,
    digests: Digests,
    /// In which of its lives this node answers calls.
    own: Option<Incarnation>,
    answers: Answers,
}

impl<S: StateMachine> Applier<S> {
    fn run(mut self) {
        let common = self.common.clone();
        let why = catch_unwind(AssertUnwindSafe(|| self.live())).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            Halted::Panicked(
                text.or_else(|| panic.downcast_ref::<&str>().map(|it| (*it).to_owned())).unwrap_or_default(),
            )
        });
        if !matches!(why, Halted::Node(_)) {
            tracing::error!(node = self.me.0, reason = %why, "replica stopped");
        }
        let mut desk = common.desk();
        desk.halted = Some(why.clone());
        let waited = desk.give_up();
        drop(desk);
        waited.tell(&UpdateError::Unknown(why.clone()), &QueryError::Stopped(why.clone()));
        common.watch.open();
        common.calls.open();
        if matches!(why, Halted::Diverged(_)) {
            self.show();
        }
        match why {
            Halted::Node(_) => common.host.stop(),
            _ => common.host.halt(),
        }
        while common.host.recv().is_ok() {} // room for the engine to come to its end
    }

    /// Stays until the others have had the chance to see this member's last digest, so that they know why it goes. A round trip does:
    /// digests are published before the question.
    fn show(&self) {
        let Ok(point) = self.common.host.read_point() else { return };
        while let Ok(event) = self.common.host.recv() {
            if matches!(event, Event::ReadPoint(reached) if reached >= point) {
                return;
            }
        }
    }

    /// Takes events until there are none.
    fn live(&mut self) -> Halted {
        loop {
            let event = match self.common.host.recv() {
                Ok(event) => event,
                Err(reason) => return Halted::Node(reason),
            };
            let done = match event {
                Event::Message(message) => self.apply(message),
                Event::View(view) => self.change(view),
                Event::Snapshot(request) => {
                    self.teach(&request);
                    Ok(())
                }
                Event::Restore(restore) => self.restore(restore),
                Event::ReadPoint(point) => {
                    let mut desk = self.common.desk();
                    let later = desk.points.split_off(&point);
                    let reached = std::mem::replace(&mut desk.points, later);
                    let last = desk.points.remove(&point);
                    drop(desk);
                    reached.into_values().chain(last).for_each(|promise| promise.keep(Ok(())));
                    Ok(())
                }
                Event::Digest { node, digest } => match self.digests.hear(node, digest) {
                    Some(ordinal) => self.judge(ordinal),
                    None => Ok(()),
                },
                Event::Evicted { reason } => {
                    // The log of a durable group goes on where this node was.
                    if !self.common.host.is_durable() {
                        self.is_stale = self.view.take().is_some();
                    }
                    self.common.host.publish_digest(0);
                    let mut desk = self.common.desk();
                    desk.life += 1;
                    let waited = desk.give_up();
                    drop(desk);
                    waited.tell(&UpdateError::Evicted(reason.clone()), &QueryError::Evicted(reason));
                    self.common.calls.open();
                    Ok(())
                }
                _ => Ok(()),
            };
            if let Err(why) = done {
                return why;
            }
        }
    }

    fn apply(&mut self, message: Message) -> Result<(), Halted> {
        let Message { view, seq, sender, ticket, .. } = message;
        let payload = message.payload();
        let (is_call, update) = match payload.split_first() {
            Some((&ANSWER, bytes)) => {
                self.hear(sender, bytes);
                return Ok(());
            }
            Some((&kind @ (UPDATE | CALL), bytes)) => (kind == CALL, S::Update::decode(bytes)),
            _ => (false, Err(Undecodable::of::<S::Update>(payload.len(), &"the message is no update"))),
        };
        drop(message); // its sender may have the room
        let life = self.life_of(sender).unwrap_or(Incarnation(0));
        let context = Context::new((view, seq), (sender, life), self.applied);
        let reply = update.map(|update| self.write(|state| state.apply(&context, update)));
        self.applied += 1;
        if is_call && sender != self.me {
            self.answer((view, seq), (sender, life), reply.as_ref());
        }
        let mut desk = self.common.desk();
        desk.applied = self.applied;
        let promise = ticket.and_then(|ticket| desk.updates.remove(&ticket));
        let call = ticket.and_then(|ticket| desk.sent.remove(&ticket));
        match (promise, call) {
            (Some(promise), _) => {
                drop(desk);
                promise.keep(reply.map_err(UpdateError::Refused));
            }
            (None, Some(told)) => {
                let over = match reply {
                    Ok(reply) => {
                        let shard = (self.view.as_ref(), self.common.host.id());
                        Ok(desk.calls.begin((view, seq), (self.me, reply), shard, told))
                    }
                    Err(why) => Err((told, why)),
                };
                drop(desk);
                match over {
                    Ok(over) => self.finish(over),
                    Err((told, why)) => {
                        told.keep(Err(UpdateError::Refused(why)));
                        self.common.calls.open();
                    }
                }
            }
            (None, None) => drop(desk),
        }
        if self.digests.is_due(self.applied) { self.take_digest(view, seq) } else { Ok(()) }
    }

    /// In which of its lives a node is in the view.
    fn life_of(&self, node: NodeId) -> Option<Incarnation> {
        self.view.as_ref().and_then(|view| view.member(node)).map(|it| it.incarnation)
    }

    /// Whether a life of this node that is in a view is the one that it has now. What a log tells again was answered by a former one (P3).
    fn lives(&self, life: Incarnation) -> bool {
        let now = || self.common.host.status().view;
        let is_it = |view: View| view.member(self.me).is_some_and(|member| member.incarnation == life);
        !self.common.host.is_durable() || now().is_some_and(is_it)
    }

    /// Answers to another member's call.
    fn answer(
        &self,
        place: (ViewId, Seq),
        (to, life): (NodeId, Incarnation),
        reply: Result<&S::Reply, &Undecodable>,
    ) {
        let Some(own) = self.own else { return }; // it comes to be a member, and nobody waits for it yet; or a former life has answered
        let head = Head::new(place, own);
        let mut bytes = head.say(vec![ANSWER], reply);
        let most = self.common.host.ring_bytes();
        if bytes.len() > most {
            let why = format!("a reply of {} bytes is too long for rings of {most}", bytes.len());
            bytes = head.excuse(vec![ANSWER], &why); // so much less waits to be sent
        }
        self.answers.push(Answer { to, life, own, head, bytes });
    }

    /// Another member answers.
    fn hear(&self, from: NodeId, bytes: &[u8]) {
        let Some((head, rest)) = Head::split(bytes) else { return }; // so it is nobody's answer
        if !self.common.desk().calls.is_awaited(from, &head) {
            return;
        }
        let answer: Result<S::Reply, Lost> = head.read(rest); // which is the program's code
        let over = self.common.desk().calls.on_answer(from, &head, answer);
        self.finish(over);
    }

    /// Calls are over: tells those who wait for them, or to make another one.
    fn finish(&self, over: impl IntoIterator<Item = Over<S::Reply, UpdateError>>) {
        let mut any = false;
        for call in over {
            call.tell();
            any = true;
        }
        if any {
            self.common.calls.open();
        }
    }

    fn take_digest(&mut self, view: ViewId, seq: Seq) -> Result<(), Halted> {
        let digest = self.common.state.read().unwrap_or_else(PoisonError::into_inner).digest();
        match digest {
            Ok(digest) => {
                let place = Place { view, seq, index: self.applied - 1 };
                let word = self.digests.take(digest, place);
                self.common.host.publish_digest(word);
                self.judge(self.digests.last())
            }
            Err(error) => {
                tracing::warn!(node = self.me.0, %error, "no digest of the state: its snapshot can't be read");
                Ok(())
            }
        }
    }

    fn judge(&mut self, ordinal: u64) -> Result<(), Halted> {
        for divergence in self.digests.judge(ordinal) {
            match divergence.node {
                Some(node) if node != self.me => {
                    tracing::error!(
                        node = node.0,
                        view = divergence.view.0,
                        seq = divergence.seq.0,
                        update = divergence.index,
                        "{divergence}"
                    );
                }
                _ => return Err(Halted::Diverged(divergence)),
            }
        }
        Ok(())
    }

    fn change(&mut self, view: View) -> Result<(), Halted> {
        if std::mem::take(&mut self.is_stale) {
            // No member gave it another: the group that was is lost, and one is founded that has done nothing yet.
            let first = self.first.clone();
            self.write(|state| state.restore(&mut Cursor::new(first)))
                .map_err(|why| Halted::Restore(why.to_string()))?;
            self.begin(0);
        }
        self.write(|state| state.view_changed(&view));
        let shard = self.common.host.id();
        let members = lives(&view, shard);
        self.digests.set_members(members.keys().copied());
        self.answers.on_view(&members);
        self.own = view.member(self.me).map(|it| it.incarnation).filter(|own| self.lives(*own));
        let mut desk = self.common.desk();
        desk.view = Some(view.clone());
        // What this node has sent and not been told of may have been delivered before; nothing of the shard comes here any more.
        let waited = (!self.common.is_member(&desk)).then(|| {
            desk.life += 1;
            desk.give_up()
        });
        let over = desk.calls.on_view(&view, shard);
        drop(desk);
        over.into_iter().for_each(Over::tell);
        if let Some(waited) = waited {
            waited.tell(&UpdateError::Moved, &QueryError::NotMember);
        }
        self.common.watch.open(); // whoever waits may have to learn that it waits in vain
        self.common.calls.open();
        self.view = Some(view);
        Ok(())
    }

    fn teach(&self, request: &SnapshotRequest) {
        let header = Header { applied: self.applied, view: self.view.clone() };
        let Ok(header) = postcard::to_stdvec(&header) else {
            return request.refuse("its header has no form as bytes");
        };
        let snapshot = self.common.state.read().unwrap_or_else(PoisonError::into_inner).snapshot();
        let len = (header.len() as u64).to_le_bytes();
        request.give(Cursor::new(len).chain(Cursor::new(header)).chain(snapshot));
    }

    fn restore(&mut self, mut restore: Restore) -> Result<(), Halted> {
        let read = |restore: &mut Restore| -> io::Result<Header> {
            let mut len = [0; 8];
            restore.read_exact(&mut len)?;
            let mut header = Vec::new();
            restore.take(u64::from_le_bytes(len)).read_to_end(&mut header)?;
            Header::decode(&header).map_err(|why| io::Error::new(io::ErrorKind::InvalidData, why))
        };
        let restored = read(&mut restore).and_then(|header| {
            self.write(|state| state.restore(&mut restore))?;
            io::copy(&mut restore, &mut io::sink())?;
            Ok(header)
        });
        let header = restored.map_err(|why| Halted::Restore(why.to_string()))?;
        restore.finish();
        self.view = header.view;
        self.own = None;
        self.is_stale = false;
        self.begin(header.applied);
        Ok(())
    }

    /// A state of so many updates is there.
    fn begin(&mut self, applied: u64) {
        self.applied = applied;
        self.common.desk().applied = applied;
        self.digests.restart(applied);
        self.common.host.publish_digest(0);
    }

    fn write<T>(&self, change: impl FnOnce(&mut S) -> T) -> T {
        let changed = change(&mut self.common.state.write().unwrap_or_else(PoisonError::into_inner));
        self.common.watch.open();
        changed
    }
}
