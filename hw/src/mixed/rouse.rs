//! One doorbell for several fabrics: it rouses the owner where it sleeps.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

use consort_dataplane::fabric::Doorbell;

use super::{KINDS, Kind};
use crate::beside::Rouse;

/// Where the owner sleeps, and what came elsewhere meanwhile.
#[derive(Default)]
pub(super) struct Bed {
    rouse: [OnceLock<Rouse>; KINDS],
    /// In which fabric. Set before a sleep is announced, by the owner; a ringer reads it after it has seen the announcement.
    lies: AtomicU8,
    /// The fabrics that were watched and have news: bits by number.
    stirred: AtomicU8,
}

impl Bed {
    /// Takes what rouses the owner out of the sleep in a fabric of that kind, and gives that one the doorbell of all.
    pub(super) fn put(&self, kind: Kind, rouse: Rouse, doorbell: &Doorbell) -> Doorbell {
        // Each kind is made once.
        let _ = self.rouse[kind as usize].set(rouse);
        doorbell.clone()
    }

    /// The owner is about to sleep there.
    pub(super) fn lie_down(&self, kind: Kind) {
        self.lies.store(kind as u8, Ordering::Relaxed); // the announcement that follows orders it before what ringers look at
    }

    /// Rouses the owner.
    pub(super) fn rouse(&self) {
        let lies = usize::from(self.lies.load(Ordering::Relaxed)); // see `lie_down`
        if let Some(rouse) = self.rouse.get(lies).and_then(OnceLock::get) {
            rouse();
        }
    }

    /// There is news of a fabric that was watched. The owner must be rung after this.
    pub(super) fn stir(&self, kinds: u8) {
        self.stirred.fetch_or(kinds, Ordering::Release); // pairs with the Acquire in `take_stirred`
    }

    pub(super) fn is_stirred(&self) -> bool {
        self.stirred.load(Ordering::Relaxed) != 0
    }

    /// The fabrics with news since the last call.
    pub(super) fn take_stirred(&self) -> u8 {
        if self.is_stirred() { self.stirred.swap(0, Ordering::Acquire) } else { 0 }
    }
}
