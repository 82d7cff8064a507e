//! What the driver, the control thread and the application's threads share, and what they ask of the driver.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, mpsc};
use std::time::Duration;

use consort_dataplane::fabric::Doorbell;

use super::sender::Outbox;
use super::start::{CloseError, NodeStats, Status};

/// What the driver shares with the control thread and the application's threads.
pub(crate) struct Shared {
    pub(crate) outbox: Arc<Outbox>,
    /// There may be orders or asks.
    pub(super) called: AtomicBool,
    /// The bell of the fabric that is in use.
    pub(super) bell: Mutex<Doorbell>,
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
    pub(crate) fn new(bell: Doorbell) -> Self {
        Self {
            outbox: Arc::default(),
            called: AtomicBool::new(false),
            bell: Mutex::new(bell),
            delivered: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            last: OnceLock::new(),
        }
    }

    /// Rouses the driver.
    pub(crate) fn bell(&self) -> Doorbell {
        self.bell.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// There is an order or a question for the driver.
    pub(crate) fn call(&self) {
        self.called.store(true, Ordering::Release); // pairs with the Acquire in `Driver::turn`
        self.bell().ring();
    }
}
