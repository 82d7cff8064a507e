//! The floor over RDMA: a write into another's memory, who looks at it until it comes, and a write back.
//!
//! The queue pairs are told of each other over the connections of the floor over TCP, which stay to the end. What is
//! written and read is as much as over TCP; it is filled and summed word by word, where the device reads and writes it.

use std::io::{self, ErrorKind};

use consort::bare_verbs::{Device, End, HELLO};
use hdrhistogram::Histogram;

use super::tcp::{ANSWER, Mesh};
use crate::bench::window::{Idler, Watch};
use crate::clock;
use crate::failure::Failure;
use crate::orders::{FloorReport, FloorTask};
use crate::parent::Parent;

/// The stamp that ends the run.
const STOP: u64 = u64::MAX;

/// Looks in vain between two questions whether the connections still stand.
const LOOKS: u32 = 1 << 16;

/// A device, and connections between root and each other.
pub(super) struct Star {
    /// Before the device: they end first.
    ends: Vec<End>,
    device: Device,
    _mesh: Mesh,
}

impl Star {
    /// Opens the device, and connects this process to root, or root to all.
    pub(super) fn connect(task: &FloorTask, parent: &mut Parent) -> Result<Self, Failure> {
        let refused = |cause: &dyn std::fmt::Display| {
            Failure::start(
                format!("floor process {} can't start: {cause}", task.index),
                "see the reason above; `consort hw` tells how the machine stands",
            )
        };
        let device = Device::open(task.listen).map_err(|cause| refused(&cause))?;
        let mesh = Mesh::connect(task, parent).map_err(|cause| refused(&cause))?;
        let ends = Self::ends(task, &device, &mesh).map_err(|cause| refused(&cause))?;
        Ok(Self { ends, device, _mesh: mesh })
    }

    fn ends(task: &FloorTask, device: &Device, mesh: &Mesh) -> io::Result<Vec<End>> {
        let answer = task.size.min(ANSWER);
        let (out, into, others) = match task.index {
            0 => (task.size, answer, 1..task.processes),
            _ => (answer, task.size, 0..1),
        };
        let mut ends = Vec::new();
        for other in others {
            let mut end = device.end(out, into)?;
            let mut hello = [0; HELLO];
            mesh.exchange(other, &end.hello(), &mut hello)?;
            device.connect(&mut end, &hello)?;
            ends.push(end);
        }
        Ok(ends)
    }
}

/// Process 0 writes a message into the memory of each, each reads it whole and writes back; all answers are one round trip.
pub(super) fn round_trip(
    task: &FloorTask,
    star: &mut Star,
    start: u64,
    mut round_trips: Histogram<u64>,
) -> io::Result<FloorReport> {
    let Star { ends, device, .. } = star;
    let mut idler = Idler::new(task.wait, task.crowded);
    let wakes = idler.sleeps();
    if task.index != 0 {
        let root = ends.first_mut().ok_or(ErrorKind::NotConnected)?;
        let (mut stamp, mut checksum) = (0, 0_u64);
        loop {
            stamp = receive(device, std::slice::from_mut(root), stamp, &mut idler)?;
            if stamp == STOP {
                return Ok(FloorReport { checksum, ..FloorReport::default() });
            }
            checksum = checksum.wrapping_add(root.sum());
            root.write(stamp, wakes)?;
        }
    }
    let watch = Watch::<()>::new(start, task.window);
    let mut began = clock::now();
    let mut stamp = 0;
    while began < watch.end() {
        ends.iter_mut().try_for_each(|end| end.write(stamp + 1, wakes))?;
        receive(device, ends, stamp, &mut idler)?;
        stamp += 1;
        let ended = clock::now();
        if watch.counts(began) {
            round_trips.saturating_record(ended - began);
        }
        began = ended;
    }
    ends.iter_mut().try_for_each(|end| end.finish(STOP, wakes))?;
    Ok(super::round_trip_report(task, &round_trips))
}

/// Waits until messages after that with the stamp `last` have come to all of `ends`. Returns the stamp of the first's.
#[inline]
fn receive(device: &Device, ends: &mut [End], last: u64, idler: &mut Idler) -> io::Result<u64> {
    let mut looks = 0_u32;
    while ends.iter().any(|end| end.stamp() == last) {
        looks += 1;
        if looks.is_multiple_of(LOOKS) {
            ends.iter_mut().try_for_each(|end| end.take_completions().map(drop))?;
        }
        let mut slept = Ok(());
        idler.idle(|| slept = device.sleep(ends.iter_mut()));
        slept?;
    }
    idler.busy();
    Ok(ends.first().map_or(last, End::stamp))
}
