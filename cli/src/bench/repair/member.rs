//! A node with an object on every shard, which updates those that it has, and takes down when an update was applied and who had the shard.

use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use consort::object::{Bytes, Context, Options, Replica, Snapshot, StateMachine, UpdateError};
use consort::{SendError, ShardId, View};

use crate::bench::replicas::Tally;
use crate::clock;
use crate::failure::Failure;
use crate::gaps::Gaps;
use crate::group;
use crate::orders::{RepairTask, Said, Told};
use crate::parent::Parent;

/// How often the parent's orders are looked for, and it is told what is new. Times are taken before.
const LOOK: Duration = Duration::from_millis(2);

/// What happened to a shard, as told to this node.
#[derive(Default)]
struct Watch {
    gaps: Gaps,
    /// Views with other members, when they were told, and not yet to the parent.
    views: Vec<(u64, u64, Vec<u32>)>,
}

fn lock(watch: &Mutex<Watch>) -> MutexGuard<'_, Watch> {
    watch.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The object: a [`Tally`] whose every update is looked at.
struct Watched {
    shard: ShardId,
    tally: Tally,
    watch: Arc<Mutex<Watch>>,
}

impl StateMachine for Watched {
    type Update = Bytes;
    type Reply = u64;

    fn apply(&mut self, context: &Context, update: Bytes) -> u64 {
        lock(&self.watch).gaps.on_delivery(clock::now());
        self.tally.apply(context, update)
    }

    fn snapshot(&self) -> Snapshot {
        self.tally.snapshot()
    }

    fn restore(&mut self, from: &mut dyn Read) -> std::io::Result<()> {
        self.tally.restore(from)
    }

    fn view_changed(&mut self, view: &View) {
        let members = view.shard(self.shard).map(|shard| shard.members.iter().map(|node| node.0).collect());
        lock(&self.watch).views.push((clock::now(), view.id.0, members.unwrap_or_default()));
    }
}

/// Runs the node.
///
/// # Errors
/// The group.
pub(crate) fn run(task: &RepairTask, parent: &mut Parent) -> Result<(), Failure> {
    let id = task.seat.id;
    let not_started = |error: &dyn std::fmt::Display| {
        let message = format!("node {id} can't start: {error}");
        Failure::start(message, "see the reason above; --log debug tells more")
    };
    let node = Arc::new(group::start_repair(task)?);
    let group = node.group(group::SHARDED).ok_or_else(|| not_started(&"it has no shards"))?;
    let mut objects = Vec::new();
    for index in 0..task.shards {
        let shard = group.shard(index).ok_or_else(|| not_started(&"it lacks a shard"))?;
        let watch = Arc::new(Mutex::new(Watch::default()));
        let object = Watched { shard: shard.id(), tally: Tally::default(), watch: watch.clone() };
        let options = Options::default().digest_every(0); // whoever measures doesn't want to wait for one
        let replica = Replica::on(&node, &shard, object, options).map_err(|error| not_started(&error))?;
        objects.push((replica, watch));
    }
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        for (replica, _) in &objects {
            scope.spawn(|| load(replica, task, &is_over));
        }
        let led = lead(task, &node, &objects, parent);
        is_over.store(true, Ordering::Relaxed);
        if led.is_err() {
            node.stop(); // who waits for room is told
        }
        led
    })?;
    let left = node.leave(group::CLOSE_WITHIN).wait();
    left.map_err(|error| group::not_closed(id, &error))
}

/// Tells the parent what it wants to know, until nobody needs this node.
fn lead(
    task: &RepairTask,
    node: &consort::Node,
    objects: &[(Replica<Watched>, Arc<Mutex<Watch>>)],
    parent: &mut Parent,
) -> Result<(), Failure> {
    while !parent.released() {
        if let Some(Told::ShardGaps { shards, windows }) = parent.try_told() {
            let of = |window: &(u64, u64)| {
                let watched = shards.iter().filter_map(|shard| objects.get(*shard));
                let longest = |watch| lock(watch).gaps.longest_touching(*window, clock::now());
                watched.map(|(_, watch)| longest(watch)).max().unwrap_or(0)
            };
            let longest = windows.iter().map(of).collect();
            parent.say(&Said::Gaps { longest, fabric: node.stats().fabric.to_owned() });
        }
        for (shard, (_, watch)) in objects.iter().enumerate() {
            let views = std::mem::take(&mut lock(watch).views); // told without the lock, for which deliveries wait
            for (at, view, members) in views {
                parent.say(&Said::Shard { shard, view, members, at });
            }
        }
        // Nothing is sent in the main group.
        node.recv_timeout(LOOK).map_err(|stop| group::stopped(task.seat.id, &stop))?;
    }
    Ok(())
}

/// Updates a shard steadily while this node has it.
fn load(replica: &Replica<Watched>, task: &RepairTask, is_over: &AtomicBool) {
    let update = Bytes(vec![7; task.size]);
    let mut due = clock::now();
    while !is_over.load(Ordering::Relaxed) {
        if replica.is_member() {
            match replica.submit(&update) {
                Ok(pending) => drop(pending), // the delivery tells
                Err(UpdateError::NotSent(SendError::NotMember)) => {}
                Err(_) => return, // the node's own thread is told why
            }
        }
        // What was late is not made up for.
        let now = clock::now();
        due = (due + task.interval).max(now);
        thread::sleep(Duration::from_nanos(due - now));
    }
}
