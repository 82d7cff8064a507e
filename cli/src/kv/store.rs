//! What is replicated: [`Store`], one shard's keys with their values, and [`Directory`], where each server's clients are served.
//!
//! # Versions
//! A value has a version, which counts the puts of its key: 1, 2, 3. A key that was deleted and comes again must not get a version that
//! it had before, or a conditional put could mistake the new value for the old one. Nothing is kept of deleted keys but one number for
//! the whole shard, the largest version that any of them had: new keys begin above it. So
//! - a key's versions grow for ever, also over deletions,
//! - 0 is nobody's version, and stands for "not there".

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use consort::View;
use consort::object::{Context, Snapshot, StateMachine};
use serde::{Deserialize, Serialize};

/// What changes a shard.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Update {
    Put { key: String, value: String, if_version: Option<u64> },
    Delete { key: String, if_version: Option<u64> },
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Reply {
    /// The version that was put, or deleted.
    Done(u64),
    /// There is another version than the one that was expected; 0 is none.
    Conflict(u64),
    /// There is nothing to delete.
    Absent,
}

/// A value with its version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Versioned {
    pub(super) version: u64,
    pub(super) value: String,
}

/// What those who watch are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Notice {
    /// A key has this value now; none if it was deleted.
    Change { key: String, version: u64, value: Option<String> },
    /// This server got the shard's state whole: what changed before isn't told one by one.
    Restored { shard: usize },
}

/// Those who watch. Nothing waits for them: who doesn't take its notices is dropped.
#[derive(Debug, Default)]
pub(super) struct Hub(Mutex<Vec<Watcher>>);

#[derive(Debug)]
struct Watcher {
    /// The one key that it watches, in which shard; none is all.
    key: Option<(usize, String)>,
    to: SyncSender<Arc<Notice>>,
    /// Its [`Watch`] is there.
    alive: Weak<()>,
}

/// A watcher's end: what it is told.
#[derive(Debug)]
pub(super) struct Watch {
    pub(super) notices: Receiver<Arc<Notice>>,
    _alive: Arc<()>,
}

/// So many notices may lie for a watcher.
const BACKLOG: usize = 1024;

impl Hub {
    /// Notices of a key of that shard, or of all keys, from here on.
    pub(super) fn watch(&self, key: Option<(usize, String)>) -> Watch {
        let ((to, notices), alive) = (sync_channel(BACKLOG), Arc::new(()));
        let mut watchers = self.lock();
        // Those who went without being told anything since.
        watchers.retain(|watcher| watcher.alive.strong_count() > 0);
        watchers.push(Watcher { key, to, alive: Arc::downgrade(&alive) });
        Watch { notices, _alive: alive }
    }

    fn tell(&self, shard: usize, notice: impl Fn() -> Notice, of: Option<&str>) {
        let mut told = None;
        self.lock().retain(|watcher| {
            let wants = match (&watcher.key, of) {
                (None, _) => true,
                (Some((within, key)), Some(of)) => *within == shard && key == of,
                (Some((within, _)), None) => *within == shard,
            };
            !wants || watcher.to.try_send(told.get_or_insert_with(|| Arc::new(notice())).clone()).is_ok()
        });
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Watcher>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner) // never half changed
    }
}

/// One shard.
#[derive(Debug)]
pub(super) struct Store {
    keys: BTreeMap<String, Versioned>,
    /// The largest version that any deleted key had.
    buried: u64,
    shard: usize,
    hub: Arc<Hub>,
}

impl Store {
    pub(super) fn new(shard: usize, hub: Arc<Hub>) -> Self {
        Self { keys: BTreeMap::new(), buried: 0, shard, hub }
    }

    pub(super) fn look_up(&self, key: &str) -> Option<Versioned> {
        self.keys.get(key).cloned()
    }

    fn version(&self, key: &str) -> u64 {
        self.keys.get(key).map_or(0, |it| it.version)
    }

    fn put(&mut self, key: String, value: String) -> Reply {
        let version = self.keys.get(&key).map_or(self.buried, |it| it.version) + 1;
        self.hub.tell(
            self.shard,
            || Notice::Change { key: key.clone(), version, value: Some(value.clone()) },
            Some(&key),
        );
        self.keys.insert(key, Versioned { version, value });
        Reply::Done(version)
    }

    fn delete(&mut self, key: &str) -> Reply {
        let Some(Versioned { version, .. }) = self.keys.remove(key) else { return Reply::Absent };
        self.buried = self.buried.max(version);
        self.hub.tell(self.shard, || Notice::Change { key: key.to_owned(), version, value: None }, Some(key));
        Reply::Done(version)
    }
}

impl StateMachine for Store {
    type Update = Update;
    type Reply = Reply;

    fn apply(&mut self, _: &Context, update: Update) -> Reply {
        let (Update::Put { key, if_version, .. } | Update::Delete { key, if_version }) = &update;
        let version = self.version(key);
        if if_version.is_some_and(|expected| expected != version) {
            return Reply::Conflict(version);
        }
        match update {
            Update::Put { key, value, .. } => self.put(key, value),
            Update::Delete { key, .. } => self.delete(&key),
        }
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot::of(&(&self.keys, self.buried))
    }

    fn restore(&mut self, from: &mut dyn Read) -> io::Result<()> {
        (self.keys, self.buried) = Snapshot::read(from)?;
        let shard = self.shard;
        self.hub.tell(shard, || Notice::Restored { shard }, None);
        Ok(())
    }
}

/// Where clients find the servers of the view.
#[derive(Debug, Default)]
pub(super) struct Directory(BTreeMap<u32, SocketAddr>);

impl Directory {
    pub(super) fn of(&self, node: u32) -> Option<SocketAddr> {
        self.0.get(&node).copied()
    }
}

impl StateMachine for Directory {
    /// A server's own address.
    type Update = SocketAddr;
    type Reply = ();

    fn apply(&mut self, context: &Context, address: SocketAddr) {
        self.0.insert(context.sender.0, address);
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot::of(&self.0)
    }

    fn restore(&mut self, from: &mut dyn Read) -> io::Result<()> {
        self.0 = Snapshot::read(from)?;
        Ok(())
    }

    fn view_changed(&mut self, view: &View) {
        self.0.retain(|node, _| view.member(consort::NodeId(*node)).is_some());
    }
}

#[cfg(test)]
mod tests {
    use consort::{Incarnation, NodeId, Seq, ViewId};

    use super::*;

    fn apply(store: &mut Store, update: Update) -> Reply {
        store.apply(&Context::new((ViewId(1), Seq(0)), (NodeId(1), Incarnation(1)), 0), update)
    }

    fn put(store: &mut Store, key: &str, value: &str, if_version: Option<u64>) -> Reply {
        apply(store, Update::Put { key: key.to_owned(), value: value.to_owned(), if_version })
    }

    fn delete(store: &mut Store, key: &str, if_version: Option<u64>) -> Reply {
        apply(store, Update::Delete { key: key.to_owned(), if_version })
    }

    #[test]
    fn versions_count_puts_and_guard_them() {
        let mut store = Store::new(0, Arc::default());
        assert_eq!(put(&mut store, "a", "one", Some(0)), Reply::Done(1));
        assert_eq!(put(&mut store, "a", "late", Some(0)), Reply::Conflict(1));
        assert_eq!(put(&mut store, "a", "two", Some(1)), Reply::Done(2));
        assert_eq!(put(&mut store, "a", "three", None), Reply::Done(3));
        assert_eq!(put(&mut store, "b", "one", None), Reply::Done(1));
        assert_eq!(put(&mut store, "c", "none", Some(4)), Reply::Conflict(0));
        assert_eq!(delete(&mut store, "a", Some(2)), Reply::Conflict(3));
        assert_eq!(store.look_up("a"), Some(Versioned { version: 3, value: "three".to_owned() }));
    }

    #[test]
    fn a_key_that_comes_again_has_a_version_that_it_never_had() {
        let mut store = Store::new(0, Arc::default());
        assert_eq!(delete(&mut store, "a", None), Reply::Absent);
        (1..=3).for_each(|version| assert_eq!(put(&mut store, "a", "x", None), Reply::Done(version)));
        assert_eq!(delete(&mut store, "a", Some(3)), Reply::Done(3));
        assert_eq!(put(&mut store, "a", "y", Some(0)), Reply::Done(4));
        // A state that was given to another member says as much.
        assert_eq!(delete(&mut store, "a", None), Reply::Done(4));
        let mut other = Store::new(0, Arc::default());
        other.restore(&mut store.snapshot()).unwrap();
        assert_eq!(put(&mut other, "a", "z", None), Reply::Done(5));
        assert_eq!(put(&mut other, "a", "z", None), Reply::Done(6));
    }

    #[test]
    fn watchers_are_told_what_they_asked_for_and_never_waited_for() {
        let hub = Arc::<Hub>::default();
        let mut store = Store::new(1, hub.clone());
        let (one, all) = (hub.watch(Some((1, "a".to_owned()))), hub.watch(None));
        put(&mut store, "b", "x", None);
        put(&mut store, "a", "y", None);
        delete(&mut store, "a", None);
        let change = |key: &str, value: Option<&str>| Notice::Change {
            key: key.to_owned(),
            version: 1,
            value: value.map(str::to_owned),
        };
        let told: Vec<_> = one.notices.try_iter().map(Arc::unwrap_or_clone).collect();
        assert_eq!(told, [change("a", Some("y")), change("a", None)]);
        assert_eq!(all.notices.try_iter().count(), 3);
        (0..BACKLOG + 5).for_each(|_| {
            put(&mut store, "a", "y", None);
        });
        assert_eq!(all.notices.iter().count(), BACKLOG, "and then it is told no more");
        // Who is gone is forgotten, also if nothing changes that it wanted to know.
        (0..10).for_each(|_| drop(hub.watch(Some((1, "never".to_owned())))));
        let _here = hub.watch(None);
        assert_eq!(hub.lock().len(), 1, "those before fell behind, and the ten are gone");
    }
}
