//! Stands in for the floor over RDMA in a build without the feature `verbs`: it says so.

use std::io;

use hdrhistogram::Histogram;

use crate::failure::Failure;
use crate::orders::{FloorReport, FloorTask};
use crate::parent::Parent;

/// There is none.
pub(super) enum Star {}

impl Star {
    /// Refuses.
    pub(super) fn connect(_task: &FloorTask, _parent: &mut Parent) -> Result<Self, Failure> {
        Err(Failure::no_verbs())
    }
}

pub(super) fn round_trip(
    _task: &FloorTask,
    star: &mut Star,
    _start: u64,
    _round_trips: Histogram<u64>,
) -> io::Result<FloorReport> {
    match *star {}
}
