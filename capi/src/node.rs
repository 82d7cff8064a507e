//! Nodes: made, asked, left, freed.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::JoinHandle;
use std::time::Duration;

use consort::config::MAIN;
use consort::{
    DrivenNode, Guarantee, Node, NodeBuilder, NodeStats, Question, SharedKey, Status as Standing, ask,
};

use crate::border::{Handle, In, Out, Text, export, watch_forks};
use crate::bytes;
use crate::callback::inside;
use crate::error::{Error, Status};
use crate::fd::Bell;
use crate::handles::{Kind, Last, Leased, Registry};
use crate::layout::{ASK_EXPLAIN, ASK_STATUS, Bytes, NodeOptions, Stats};
use crate::options::{address, builder};
use crate::seat::{Seat, Seated};

pub(crate) static NODES: Registry<Running> = Registry::new(Kind::Node);

thread_local! {
    static LAST: Last<Running> = const { Cell::new(None) };
}

impl Leased for Running {
    #[inline(always)]
    fn last<R>(body: impl FnOnce(&Last<Self>) -> R) -> Option<R> {
        LAST.try_with(body).ok()
    }
}

/// A call on a node, for what is called over and over.
#[inline(always)]
pub(crate) fn with(handle: Handle, body: impl FnOnce(&Running) -> Result<(), Error>) -> Result<(), Error> {
    NODES.lease(handle)?.call(|running| body(running))
}

/// A node, whoever drives it.
pub(crate) struct Running {
    pub(crate) id: u32,
    pub(crate) engine: Engine,
    pub(crate) threads: Arc<Threads>,
    /// The main group first.
    pub(crate) shapes: Vec<Shape>,
    /// By shard.
    pub(crate) bells: Mutex<BTreeMap<u32, Arc<Bell>>>,
}

/// What a node's configuration says of a group.
#[derive(Clone)]
pub(crate) struct Shape {
    pub(crate) name: String,
    pub(crate) shards: usize,
    pub(crate) guarantee: Guarantee,
    pub(crate) ring_bytes: usize,
    pub(crate) state: bool,
}

/// Who drives it.
pub(crate) enum Engine {
    Own(Own),
    /// `None`: it is no more.
    Driven(Seat<Option<Box<DrivenNode>>>),
}

/// A node whose engine has a thread of its own. Calls hold it by their own, so what ends it stops it first and then waits for them, and
/// a call that comes meanwhile is refused at once: it may be one that the engine waits for.
pub(crate) struct Own {
    /// `None`: it is no more.
    node: Mutex<Option<Arc<Node>>>,
    /// A call is over.
    back: Condvar,
    /// Each replica that lives on the node has a copy, made under the lock of `node`.
    replicas: Arc<Replicas>,
}

/// See [`Own::replicas`].
pub(crate) struct Replicas;

/// A call on a node.
struct Call<'a> {
    own: &'a Own,
    node: Option<Arc<Node>>,
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        let _held = lock(&self.own.node); // who waits has either seen it go or is told
        self.node = None;
        self.own.back.notify_all();
    }
}

impl Own {
    fn new(node: Node) -> Self {
        Self { node: Mutex::new(Some(Arc::new(node))), back: Condvar::new(), replicas: Arc::new(Replicas) }
    }

    /// A call, and what it has besides the node.
    fn call<R, T>(
        &self,
        with: impl FnOnce(&Self) -> T,
        body: impl FnOnce(&Arc<Node>, T) -> R,
    ) -> Result<R, Error> {
        let slot = lock(&self.node);
        let (node, it) = (slot.clone(), with(self));
        drop(slot);
        let call = Call { own: self, node };
        let node = call.node.as_ref().ok_or_else(over)?;
        Ok(body(node, it))
    }
}

/// The threads that call the program with events of this node. `None`: none may any more.
pub(crate) struct Threads(Mutex<Option<Vec<JoinHandle<()>>>>);

impl Threads {
    /// Starts one. Under the lock, so that the node's end either waits for it or prevents it.
    pub(crate) fn start(
        &self,
        start: impl FnOnce() -> io::Result<JoinHandle<()>>,
    ) -> Result<io::Result<()>, Error> {
        let mut threads = lock(&self.0);
        let threads = threads.as_mut().ok_or_else(over)?;
        Ok(start().map(|thread| threads.push(thread)))
    }

    fn join(&self) {
        let threads = lock(&self.0).take();
        for thread in threads.into_iter().flatten() {
            let _ = thread.join(); // a panic in it was told by the hook
        }
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner) // replaced in one piece
}

/// `None`: somebody has it just now.
pub(crate) fn try_lock<T>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    match mutex.try_lock() {
        Ok(it) => Some(it),
        Err(TryLockError::Poisoned(it)) => Some(it.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

#[cold]
pub(crate) fn over() -> Error {
    Error::fixed(&(
        Status::Stopped,
        c"the node has left or was stopped: free it, and make a new one to go on",
    ))
}

#[cold]
pub(crate) fn would_deadlock() -> Error {
    Error::fixed(&(Status::WouldDeadlock, c"this thread runs a callback of the library, which would wait for its own end: do it from another thread, or after the callback"))
}

/// The first argument of a wait: -1 is for ever, `None`.
pub(crate) fn timeout(ms: i64) -> Result<Option<Duration>, Error> {
    match ms {
        -1 => Ok(None),
        ms => match u64::try_from(ms) {
            Ok(ms) => Ok(Some(Duration::from_millis(ms))),
            Err(_) => Err(Error::invalid(format_args!(
                "timeout_ms is {ms}: give milliseconds, or -1 to wait for ever"
            ))),
        },
    }
}

/// As [`timeout`], where the library needs a bound: the longest.
pub(crate) fn bound(ms: i64) -> Result<Duration, Error> {
    const AGES: Duration = Duration::from_secs(100 * 365 * 86_400);
    Ok(timeout(ms)?.unwrap_or(AGES))
}

impl Running {
    fn new(id: u32, shapes: Vec<Shape>, engine: Engine) -> Self {
        let threads = Arc::new(Threads(Mutex::new(Some(Vec::new()))));
        Self { id, engine, shapes, threads, bells: Mutex::default() }
    }

    /// The node whose engine has a thread of its own. Its end waits for `body`.
    pub(crate) fn own<R>(&self, body: impl FnOnce(&Arc<Node>) -> R) -> Result<R, Error> {
        self.engine()?.call(|_| (), |node, ()| body(node))
    }

    /// As [`Running::own`], for what makes a replica: while there is the second argument the node isn't freed.
    pub(crate) fn own_for<R>(&self, body: impl FnOnce(&Arc<Node>, Arc<Replicas>) -> R) -> Result<R, Error> {
        self.engine()?.call(|own| own.replicas.clone(), body)
    }

    fn engine(&self) -> Result<&Own, Error> {
        match &self.engine {
            Engine::Own(own) => Ok(own),
            Engine::Driven(_) => Err(Error::fixed(&(Status::Refused, c"this node is driven by consort_poll, which gives its events: make it with consort_node_new for that"))),
        }
    }

    /// The node that the caller drives.
    pub(crate) fn driven<R>(&self, body: impl FnOnce(&mut DrivenNode) -> R) -> Result<R, Error> {
        let Engine::Driven(node) = &self.engine else {
            return Err(Error::fixed(&(Status::Refused, c"this node has a thread of its own: take its events with consort_next, or make it with consort_driven_new")));
        };
        driver(node)?.as_deref_mut().map(body).ok_or_else(over)
    }

    fn stats(&self) -> Result<NodeStats, Error> {
        match &self.engine {
            Engine::Own(_) => self.own(|node| node.stats()),
            Engine::Driven(_) => self.driven(|node| node.stats()),
        }
    }

    fn standing(&self) -> Result<Standing, Error> {
        match &self.engine {
            Engine::Own(_) => self.own(|node| node.status()),
            Engine::Driven(_) => self.driven(|node| node.status()),
        }
    }

    /// Nobody gets events any more, or waits for some.
    fn release(node: &Node) {
        for group in node.groups() {
            (0..group.shards()).filter_map(|at| group.shard(at)).for_each(|shard| shard.release());
        }
    }

    fn leave(&self, within: Duration) -> Result<(), Error> {
        if inside() {
            return Err(would_deadlock());
        }
        match &self.engine {
            Engine::Own(_) => self.own(|node| {
                let departure = node.leave(within);
                Self::release(node);
                Ok(departure.wait()?)
            })?,
            Engine::Driven(slot) => {
                let node = driver(slot)?.take();
                node.ok_or_else(over)?.close(within, &mut |_| {})?;
                Ok(())
            }
        }
    }
}

/// For people.
fn lines(standing: &Standing) -> String {
    let mut text = format!("phase: {}\n", standing.phase);
    match &standing.view {
        Some(view) => {
            let nodes: Vec<_> = view.members.iter().map(|member| member.node.to_string()).collect();
            text += &format!("view: {} of nodes {}\n", view.id, nodes.join(", "));
        }
        None => text += "view: none yet\n",
    }
    for absent in &standing.waiting {
        text += &format!("waits for: {absent}\n");
    }
    for lost in &standing.lost {
        text += &format!("lost: node {}: {}\n", lost.node, lost.why);
    }
    for session in &standing.sessions {
        text += &format!("session: shard {} since view {}: {}\n", session.shard, session.view, session.stage);
        if let Some(blocked) = &session.blocked {
            text += &format!("blocked: {blocked}\n");
        }
    }
    text
}

fn shapes(builder: &NodeBuilder) -> Vec<Shape> {
    let config = builder.config();
    let (guarantee, ring_bytes, state) = (config.guarantee, config.ring_bytes, config.state);
    let main = Shape { name: MAIN.to_owned(), shards: 1, guarantee, ring_bytes, state };
    let others = config.groups.iter().map(|group| Shape {
        name: group.name.clone(),
        shards: group.shards(),
        guarantee: group.guarantee,
        ring_bytes: group.ring_bytes,
        state: group.state,
    });
    std::iter::once(main).chain(others).collect()
}

fn named(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    let len = name.len().min(15);
    bytes[..len].copy_from_slice(&name.as_bytes()[..len]);
    bytes
}

/// The slot of a driven node, for one thread at a time.
fn driver(slot: &Seat<Option<Box<DrivenNode>>>) -> Result<Seated<'_, Option<Box<DrivenNode>>>, Error> {
    slot.take().ok_or_else(|| Error::fixed(&(Status::WouldDeadlock, c"the node is driven just now, by another thread or by the one whose callback this is: drive it from one thread, and not from within its callbacks")))
}

/// Frees the handle and ends the node, in one step: of two who do only one gets that far. On return none of its threads calls the program.
fn end(handle: Handle, running: &Running) -> Result<(), Error> {
    match &running.engine {
        Engine::Own(own) => {
            let mut slot = lock(&own.node);
            if slot.is_some() && Arc::strong_count(&own.replicas) > 1 {
                return Err(Error::fixed(&(Status::Busy, c"a replica lives on this node: free that first")));
            }
            let _running = NODES.take(handle)?; // the caller has it too
            let node = slot.take();
            drop(slot);
            if let Some(node) = &node {
                node.stop();
                Running::release(node);
            }
            running.threads.join();
            let mut slot = lock(&own.node);
            while node.as_ref().is_some_and(|node| Arc::strong_count(node) > 1) {
                slot = own.back.wait(slot).unwrap_or_else(PoisonError::into_inner);
            }
            drop(slot);
            drop(node);
        }
        Engine::Driven(slot) => {
            let mut slot = driver(slot)?;
            let _running = NODES.take(handle)?;
            drop(slot.take());
        }
    }
    Ok(())
}

export! {
    fn consort_node_new(options: In<NodeOptions>, node: Out<Handle>) {
        watch_forks();
        let node = node.check("node")?;
        let (builder, _) = builder(options)?;
        let (id, shapes) = (builder.config().id.0, shapes(&builder));
        let started = builder.start()?;
        node.set(NODES.put(Running::new(id, shapes, Engine::Own(Own::new(started))))?);
        Ok(())
    }

    fn consort_driven_new(options: In<NodeOptions>, node: Out<Handle>) {
        watch_forks();
        let node = node.check("node")?;
        let (builder, _) = builder(options)?;
        let (id, shapes) = (builder.config().id.0, shapes(&builder));
        let started = Box::new(builder.driven()?);
        node.set(NODES.put(Running::new(id, shapes, Engine::Driven(Seat::new(Some(started)))))?);
        Ok(())
    }

    fn consort_node_id(node: Handle, id: Out<u32>) {
        let id = id.check("id")?;
        NODES.with(node, |running| {
            id.set(running.id);
            Ok(())
        })
    }

    fn consort_node_leave(node: Handle, timeout_ms: i64) {
        let within = bound(timeout_ms)?;
        NODES.with(node, |running| running.leave(within))
    }

    fn consort_node_stop(node: Handle) {
        NODES.with(node, |running| match &running.engine {
            Engine::Own(_) => running.own(|node| node.stop()),
            Engine::Driven(slot) => {
                drop(driver(slot)?.take());
                Ok(())
            }
        })
    }

    fn consort_node_free(node: Handle) {
        if inside() {
            return Err(would_deadlock());
        }
        // Also one that a call ran into a bug in: that is all that can be done with it.
        let running = NODES.find(node)?;
        end(node, &running)
    }

    fn consort_node_stats(node: Handle, stats: Out<Stats>) {
        let known = stats.check("stats")?;
        NODES.with(node, |running| {
            if inside() {
                return Err(would_deadlock()); // it may be the engine's own thread
            }
            let size = known.struct_size("stats")?;
            let it = running.stats()?;
            let value = Stats {
                struct_size: size,
                delivered: it.delivered,
                sent: it.sent,
                system_calls: it.counts.system_calls,
                bytes_out: it.counts.bytes_out,
                bytes_in: it.counts.bytes_in,
                sleeps: it.counts.sleeps,
                wakes: it.counts.wakes,
                fabric: named(it.fabric),
                engine: named(it.engine),
            };
            known.set_sized(size, value);
            Ok(())
        })
    }

    fn consort_node_status(node: Handle, text: Out<Bytes>) {
        let text = text.check("text")?;
        NODES.with(node, |running| {
            if inside() {
                return Err(would_deadlock());
            }
            let place = bytes::place()?;
            text.set(place.lend(lines(&running.standing()?).into_bytes()));
            Ok(())
        })
    }

    fn consort_ask(at: Text, key: In<u8>, key_len: usize, question: u32, timeout_ms: i64, json: Out<Bytes>) {
        let json = json.check("json")?;
        let at = at.required("address")?;
        let key = match key.slice(key_len, "key")? {
            [] => None,
            key => Some(SharedKey::new(key).map_err(|error| Error::new(Status::Config, error))?),
        };
        let question = match question {
            ASK_STATUS => Question::Status,
            ASK_EXPLAIN => Question::Explain,
            other => return Err(Error::invalid(format_args!("`question` is {other}: take CONSORT_ASK_STATUS or CONSORT_ASK_EXPLAIN"))),
        };
        let within = bound(timeout_ms)?;
        if inside() {
            return Err(would_deadlock()); // the node that is asked may be the one that waits for this thread
        }
        let (at, place) = (address("address", at)?, bytes::place()?);
        json.set(place.lend(ask(at, key.as_ref(), question, within)?.into_bytes()));
        Ok(())
    }
}
