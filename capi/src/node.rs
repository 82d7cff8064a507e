//! Nodes: made, asked, left, freed.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::{JoinHandle, ThreadId};
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
use crate::handles::{Kind, Last, Object, Registry};
use crate::layout::{ASK_EXPLAIN, ASK_STATUS, Bytes, NodeOptions, Stats};
use crate::options::{address, builder};

pub(crate) static NODES: Registry<Running> = Registry::new(Kind::Node);

thread_local! {
    static LAST: Last<Running> = const { Cell::new(None) };
}

/// A call on a node, for what is called over and over.
#[inline(always)]
pub(crate) fn with(handle: Handle, body: impl FnOnce(&Running) -> Result<(), Error>) -> Result<(), Error> {
    NODES.lease(handle, &LAST)?.call(|running| body(running))
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

/// Who drives it. `None`: it is no more.
pub(crate) enum Engine {
    Own(RwLock<Option<Arc<Node>>>),
    Driven(Mutex<Option<Box<DrivenNode>>>),
}

/// The threads that call the program with events of this node.
#[derive(Default)]
pub(crate) struct Threads(Mutex<Vec<JoinHandle<()>>>);

impl Threads {
    pub(crate) fn add(&self, thread: JoinHandle<()>) {
        lock(&self.0).push(thread);
    }

    fn is_one_of_them(&self, me: ThreadId) -> bool {
        lock(&self.0).iter().any(|thread| thread.thread().id() == me)
    }

    fn join(&self) {
        let threads = std::mem::take(&mut *lock(&self.0));
        for thread in threads {
            let _ = thread.join(); // a panic in it was told by the hook
        }
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner) // replaced in one piece
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
        Self { id, engine, shapes, threads: Arc::default(), bells: Mutex::default() }
    }

    /// The node whose engine has a thread of its own. Its end waits for `body`.
    pub(crate) fn own<R>(&self, body: impl FnOnce(&Arc<Node>) -> R) -> Result<R, Error> {
        match &self.engine {
            Engine::Own(node) => {
                node.read().unwrap_or_else(PoisonError::into_inner).as_ref().map(body).ok_or_else(over)
            }
            Engine::Driven(_) => Err(Error::fixed(&(Status::Refused, c"this node is driven by consort_poll, which gives its events: make it with consort_node_new for that"))),
        }
    }

    /// The node that the caller drives.
    pub(crate) fn driven<R>(&self, body: impl FnOnce(&mut DrivenNode) -> R) -> Result<R, Error> {
        let Engine::Driven(node) = &self.engine else {
            return Err(Error::fixed(&(Status::Refused, c"this node has a thread of its own: take its events with consort_next, or make it with consort_driven_new")));
        };
        let mut node = match node.try_lock() {
            Ok(node) => node,
            Err(std::sync::TryLockError::Poisoned(node)) => node.into_inner(),
            Err(std::sync::TryLockError::WouldBlock) => {
                return Err(Error::fixed(&(Status::WouldDeadlock, c"the node is driven just now, by another thread or by the one whose callback this is: drive it from one thread, and not from within its callbacks")));
            }
        };
        node.as_deref_mut().map(body).ok_or_else(over)
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

    /// Whether the calling thread is one that the node's end would wait for.
    fn may_end_here(&self) -> Result<(), Error> {
        if inside() || self.threads.is_one_of_them(std::thread::current().id()) {
            Err(would_deadlock())
        } else {
            Ok(())
        }
    }

    /// Nobody gets events any more, or waits for some.
    fn release(node: &Node) {
        for group in node.groups() {
            (0..group.shards()).filter_map(|at| group.shard(at)).for_each(|shard| shard.release());
        }
    }

    fn leave(&self, within: Duration) -> Result<(), Error> {
        self.may_end_here()?;
        match &self.engine {
            Engine::Own(_) => self.own(|node| {
                let departure = node.leave(within);
                Self::release(node);
                Ok(departure.wait()?)
            })?,
            Engine::Driven(slot) => {
                // Only the thread that drives it may, so nobody else waits meanwhile.
                self.driven(|_| ())?;
                let node = lock(slot).take().ok_or_else(over)?;
                node.close(within, &mut |_| {})?;
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

/// Ends a node that nobody can find any more. On return none of its threads calls the program.
fn end(running: &Object<Running>) {
    match &running.engine {
        Engine::Own(slot) => {
            let node = slot.write().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(node) = node {
                node.stop();
                Running::release(&node);
                running.threads.join();
                drop(node);
            }
            running.threads.join();
        }
        Engine::Driven(slot) => {
            let node = lock(slot).take();
            drop(node);
        }
    }
}

export! {
    fn consort_node_new(options: In<NodeOptions>, node: Out<Handle>) {
        watch_forks();
        let node = node.check("node")?;
        let (builder, _) = builder(options)?;
        let (id, shapes) = (builder.config().id.0, shapes(&builder));
        let started = Arc::new(builder.start()?);
        node.set(NODES.put(Running::new(id, shapes, Engine::Own(RwLock::new(Some(started)))))?);
        Ok(())
    }

    fn consort_driven_new(options: In<NodeOptions>, node: Out<Handle>) {
        watch_forks();
        let node = node.check("node")?;
        let (builder, _) = builder(options)?;
        let (id, shapes) = (builder.config().id.0, shapes(&builder));
        let started = Box::new(builder.driven()?);
        node.set(NODES.put(Running::new(id, shapes, Engine::Driven(Mutex::new(Some(started)))))?);
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
                running.driven(|_| ())?;
                drop(lock(slot).take());
                Ok(())
            }
        })
    }

    fn consort_node_free(node: Handle) {
        NODES.with(node, |running| {
            running.may_end_here()?;
            match &running.engine {
                Engine::Own(slot) => {
                    let slot = slot.read().unwrap_or_else(PoisonError::into_inner);
                    if slot.as_ref().is_some_and(|node| Arc::strong_count(node) > 1) {
                        return Err(Error::fixed(&(Status::Busy, c"a replica lives on this node: free that first")));
                    }
                    Ok(())
                }
                Engine::Driven(_) => match running.driven(|_| ()) {
                    Err(error) if error.status() == Status::WouldDeadlock => Err(error),
                    _ => Ok(()),
                },
            }
        })
        .or_else(|error| if error.status() == Status::Panicked { Ok(()) } else { Err(error) })?;
        let running = NODES.take(node)?;
        end(&running);
        Ok(())
    }

    fn consort_node_stats(node: Handle, stats: Out<Stats>) {
        let known = stats.check("stats")?;
        NODES.with(node, |running| {
            let size = In::<usize>::at(known.cast()).value("stats").copied()?;
            if size < size_of::<usize>() || size > size_of::<Stats>() {
                return Err(Error::invalid(format_args!(
                    "struct_size in `stats` is {size}: set it to sizeof (consort_stats), and install the library that your consort.h came with"
                )));
            }
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
            known.cast::<usize>().set_sized(size, value);
            Ok(())
        })
    }

    fn consort_node_status(node: Handle, text: Out<Bytes>) {
        let text = text.check("text")?;
        NODES.with(node, |running| {
            text.set(bytes::lend(lines(&running.standing()?).into_bytes())?);
            Ok(())
        })
    }

    fn consort_ask(at: Text, key: In<u8>, key_len: usize, question: u32, timeout_ms: i64, json: Out<Bytes>) {
        let json = json.check("json")?;
        let at = address("address", at.required("address")?)?;
        let key = match key.slice(key_len, "key")? {
            [] => None,
            key => Some(SharedKey::new(key).map_err(|error| Error::new(Status::Config, error))?),
        };
        let question = match question {
            ASK_STATUS => Question::Status,
            ASK_EXPLAIN => Question::Explain,
            other => return Err(Error::invalid(format_args!("`question` is {other}: take CONSORT_ASK_STATUS or CONSORT_ASK_EXPLAIN"))),
        };
        let answer = ask(at, key.as_ref(), question, bound(timeout_ms)?)?;
        json.set(bytes::lend(answer.into_bytes())?);
        Ok(())
    }
}
