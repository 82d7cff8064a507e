//! What every run of every system does alike.

use std::path::PathBuf;
use std::time::Duration;

/// Bytes of a small message, and of a large one.
pub(crate) const SMALL: usize = 64;
pub(crate) const LARGE: usize = 10 << 10;

/// As many processes, hosts or servers as each system has.
pub(crate) const MEMBERS: usize = 3;

/// Lengths and places.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) warmup: Duration,
    pub(crate) duration: Duration,
    /// The product's command.
    pub(crate) consort: PathBuf,
    /// Where what is to be on a disk is put, and what is to be in memory.
    pub(crate) disk: PathBuf,
    pub(crate) memory: PathBuf,
}

impl Plan {
    /// How long a run may take before it counts as hanging: starting servers is slow on a busy machine.
    pub(crate) fn patience(&self) -> Duration {
        (self.warmup + self.duration) * 2 + Duration::from_secs(30)
    }
}
