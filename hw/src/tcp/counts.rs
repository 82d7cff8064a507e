//! What the fabric counts, always.

use consort_dataplane::fabric::FabricStats;

/// Counts since the start.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    /// Those that every fabric counts.
    pub(super) fabric: FabricStats,
    /// Connections turned away.
    pub(super) strangers: u64,
}

impl Counts {
    pub(super) fn called(&mut self) {
        self.fabric.system_calls += 1;
    }
}
