//! A group as calls find it.
//!
//! A call per message can't afford a lock or a shared counter, so each thread keeps the group that it used last, as its
//! [`Sender`] does with the ring: it is lent to the call, or to the reservation that the call makes, and comes back after it. One load
//! tells whether its handle is still good.

use std::cell::Cell;
use std::ops::Deref;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use consort::{Group, Sender, ShardId};

use crate::border::Handle;
use crate::error::Error;
use crate::fd::Bell;
use crate::handles::{Fuse, Kind, Object, Registry};
use crate::node::{Shape, Threads};

pub(crate) static GROUPS: Registry<Stream> = Registry::new(Kind::Group);

/// A shard of a group, at a node.
pub(crate) struct Stream {
    pub(crate) shard: ShardId,
    pub(crate) index: u32,
    pub(crate) shape: Shape,
    pub(crate) sender: Sender,
    /// `None` of a node that the caller drives.
    pub(crate) group: Option<Group>,
    /// Its node's, and its number there.
    pub(crate) node: Handle,
    pub(crate) bell: OnceLock<Arc<Bell>>,
    pub(crate) threads: Arc<Threads>,
    pub(crate) is_listening: AtomicBool,
}

thread_local! {
    static LAST: Cell<Option<(u64, Arc<Object<Stream>>)>> = const { Cell::new(None) };
}

/// A group, from this thread's [`LAST`], where it goes back to.
pub(crate) struct Lease {
    token: u64,
    stream: Option<Arc<Object<Stream>>>,
}

impl Lease {
    #[inline]
    pub(crate) fn of(handle: Handle) -> Result<Self, Error> {
        let token = handle.token();
        match LAST.try_with(Cell::take) {
            Ok(Some((last, stream))) if last == token && GROUPS.is_live(token) => {
                let lease = Self { token, stream: Some(stream) };
                lease.usable()?;
                Ok(lease)
            }
            _ => Self::anew(handle),
        }
    }

    #[cold]
    fn anew(handle: Handle) -> Result<Self, Error> {
        let stream = GROUPS.find(handle)?;
        stream.usable()?;
        Ok(Self { token: handle.token(), stream: Some(stream) })
    }
}

impl Deref for Lease {
    type Target = Object<Stream>;

    #[inline]
    fn deref(&self) -> &Object<Stream> {
        match &self.stream {
            Some(stream) => stream,
            None => unreachable!("a lease is whole until it is dropped"),
        }
    }
}

impl Drop for Lease {
    #[inline]
    fn drop(&mut self) {
        if let Some(stream) = self.stream.take() {
            let _ = LAST.try_with(|last| last.set(Some((self.token, stream)))); // a thread that ends needs none
        }
    }
}

/// A call on a group.
#[inline]
pub(crate) fn with<R>(handle: Handle, body: impl FnOnce(&Lease) -> Result<R, Error>) -> Result<R, Error> {
    let lease = Lease::of(handle)?;
    let fuse = Fuse::new(&lease);
    let result = body(&lease);
    drop(fuse);
    result
}

/// This thread's last group is let go: it would be kept until the thread uses another.
pub(crate) fn forget() {
    let _ = LAST.try_with(Cell::take);
}
