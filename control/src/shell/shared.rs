//! What the driver, the control thread and the application's threads share, and what they ask of the driver.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::time::Duration;

use consort_dataplane::fabric::Doorbell;

use super::sender::Outbox;
use super::start::{CloseError, NodeStats, Status};

/// What the driver shares with the control thread and the application's threads.
pub(crate) struct Shared {
    /// Each shard's, by number.
    pub(crate) channels: Vec<Arc<Channel>>,
    /// The thread that drives the engine, as senders know it.
    driving: Arc<AtomicU64>,
    /// There may be orders or asks.
    pub(super) called: AtomicBool,
    /// Rouses the driver, whatever fabric it has by then.
    pub(crate) bell: Doorbell,
    /// The bell of the fabric that is in use.
    fabric: Arc<Mutex<Doorbell>>,
    /// How it stood when the driver ended.
    pub(crate) last: OnceLock<(NodeStats, Status)>,
}

/// What the driver shares with the application's threads for one shard.
pub(crate) struct Channel {
    pub(crate) outbox: Arc<Outbox>,
    pub(super) delivered: AtomicU64,
    pub(super) sent: AtomicU64,
}

/// Something that the application wants to know or have done.
pub(crate) enum Ask {
    Status(mpsc::Sender<Status>),
    Stats(mpsc::Sender<NodeStats>),
    /// Close in order within that time.
    Close(Duration, mpsc::Sender<Result<(), CloseError>>),
    /// Stop at once.
    Leave,
}

impl Shared {
    /// For so many shards. `fabric` is the bell of the first fabric.
    pub(crate) fn new(fabric: Doorbell, shards: usize) -> Self {
        let fabric = Arc::new(Mutex::new(fabric));
        let current = fabric.clone();
        // The driver announces its sleeps here first and then on the fabric's bell, and looks for work after both. So who
        // finds it asleep here, and awake there, is seen.
        let bell = Doorbell::new(move || lock(&current).clone().ring());
        let driving = Arc::new(AtomicU64::new(0));
        let channel = |_| {
            Arc::new(Channel {
                outbox: Arc::new(Outbox::new(bell.clone(), driving.clone())),
                delivered: AtomicU64::new(0),
                sent: AtomicU64::new(0),
            })
        };
        Self {
            channels: (0..shards).map(channel).collect(),
            driving,
            called: AtomicBool::new(false),
            bell,
            fabric,
            last: OnceLock::new(),
        }
    }

    /// Another fabric is in use, with this bell.
    pub(super) fn renew(&self, fabric: Doorbell) {
        *lock(&self.fabric) = fabric;
    }

    /// The calling thread drives the engine from now on. Returns whether another did before.
    pub(crate) fn driven_here(&self) -> bool {
        super::sender::drive_here(&self.driving)
    }

    /// There is an order or a question for the driver.
    pub(crate) fn call(&self) {
        self.called.store(true, Ordering::Release); // pairs with the Acquire in `Driver::turn`
        self.bell.ring();
    }
}

fn lock(bell: &Mutex<Doorbell>) -> MutexGuard<'_, Doorbell> {
    bell.lock().unwrap_or_else(PoisonError::into_inner) // it is replaced in one piece
}
