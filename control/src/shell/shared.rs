//! What the driver, the control thread and the application's threads share, and what they ask of the driver.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::time::Duration;

use consort_dataplane::fabric::Doorbell;

use super::sender::Outbox;
use super::start::{CloseError, NodeStats, Status};

/// What the driver shares with the control thread and the application's threads.
pub(crate) struct Shared {
    pub(crate) outbox: Arc<Outbox>,
    /// There may be orders or asks.
    pub(super) called: AtomicBool,
    /// Rouses the driver, whatever fabric it has by then.
    pub(crate) bell: Doorbell,
    /// The bell of the fabric that is in use.
    fabric: Arc<Mutex<Doorbell>>,
    pub(super) delivered: AtomicU64,
    pub(super) sent: AtomicU64,
    /// How it stood when the driver ended.
    pub(crate) last: OnceLock<(NodeStats, Status)>,
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
    /// `fabric` is the bell of the first fabric.
    pub(crate) fn new(fabric: Doorbell) -> Self {
        let fabric = Arc::new(Mutex::new(fabric));
        let current = fabric.clone();
        // The driver announces its sleeps here first and then on the fabric's bell, and looks for work after both. So who
        // finds it asleep here, and awake there, is seen.
        let bell = Doorbell::new(move || lock(&current).clone().ring());
        Self {
            outbox: Arc::new(Outbox::new(bell.clone())),
            called: AtomicBool::new(false),
            bell,
            fabric,
            delivered: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            last: OnceLock::new(),
        }
    }

    /// Another fabric is in use, with this bell.
    pub(super) fn renew(&self, fabric: Doorbell) {
        *lock(&self.fabric) = fabric;
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
