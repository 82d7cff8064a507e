//! A group as calls find it.

use std::cell::Cell;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock};

use consort::{Group, Sender, ShardId};

use crate::border::Handle;
use crate::error::Error;
use crate::fd::Bell;
use crate::handles::{self, Kind, Last, Leased, Registry};
use crate::lent::{Free, Here};
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

/// A group, for a call or a reservation.
pub(crate) type Lease = handles::Lease<Stream>;

/// What a thread needs for each send, in one place: in a shared library finding it costs a call.
pub(crate) struct Mine {
    last: Last<Stream>,
    /// Places for rooms, see [`room`](crate::room).
    pub(crate) rooms: Here,
}

thread_local! {
    pub(crate) static MINE: Mine = const { Mine { last: Cell::new(None), rooms: Here::new(&ROOMS) } };
}

/// Places for rooms that no thread has.
pub(crate) static ROOMS: Free = Mutex::new(Vec::new());

impl Leased for Stream {
    #[inline(always)]
    fn last<R>(body: impl FnOnce(&Last<Self>) -> R) -> Option<R> {
        MINE.try_with(|mine| body(&mine.last)).ok()
    }
}

#[inline(always)]
pub(crate) fn lease(handle: Handle) -> Result<Lease, Error> {
    GROUPS.lease(handle)
}

/// A call on a group.
#[inline(always)]
pub(crate) fn with<R>(handle: Handle, body: impl FnOnce(&Lease) -> Result<R, Error>) -> Result<R, Error> {
    lease(handle)?.call(body)
}

/// This thread's last group is let go: it would be kept until the thread uses another.
pub(crate) fn forget() {
    drop(Stream::last(Cell::take));
}
