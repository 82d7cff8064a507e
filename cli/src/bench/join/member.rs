//! A member that sends steadily, has a large state, gives it to who joins, and takes down when nothing was delivered.

use std::io::{self, Read};
use std::time::Duration;

use consort::{Event, Restore, SendError, Sender};

use crate::bench::payload::fill;
use crate::clock;
use crate::failure::Failure;
use crate::gaps::Gaps;
use crate::group;
use crate::orders::{JoinReport, JoinTask, Said, Told};
use crate::parent::Parent;

/// Between two messages of one member, in nanoseconds: a light load, and often enough for a gap to be seen to a fraction
/// of a millisecond.
const INTERVAL: u64 = 500_000;

/// Payload of a message.
const SIZE: usize = 64;

/// The state is this many bytes of one pattern, over and over: it costs no more to read than memory does, and no memory.
const BLOCK: usize = 1 << 20;

/// A state as it is given.
struct State {
    block: Vec<u8>,
    at: u64,
    size: u64,
}

impl State {
    fn new(size: u64) -> Self {
        let block = (0..BLOCK).map(|at| u8::try_from(at / 7 % 251).unwrap_or(0)).collect();
        Self { block, at: 0, size }
    }
}

impl Read for State {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.size - self.at).unwrap_or(usize::MAX);
        let within = usize::try_from(self.at).unwrap_or(0) % BLOCK;
        let length = buffer.len().min(left).min(BLOCK - within);
        buffer[..length].copy_from_slice(&self.block[within..within + length]);
        self.at += u64::try_from(length).unwrap_or(0);
        Ok(length)
    }
}

/// Reads a state that was given, all of it.
fn restore(id: u32, size: u64, mut snapshot: Restore) -> Result<(), Failure> {
    let wrong = |what: String| {
        Failure::disagreement(
            format!("member {id} got another state: {what}"),
            "this must not happen: report it as a bug",
        )
    };
    let (mut expected, mut piece, mut other) = (State::new(size), vec![0; BLOCK], vec![0; BLOCK]);
    loop {
        let at = expected.at;
        let length = snapshot.read(&mut piece).map_err(|cause| wrong(cause.to_string()))?;
        if length == 0 {
            break;
        }
        if expected.read_exact(&mut other[..length]).is_err() {
            return Err(wrong(format!("more than its {size} bytes")));
        }
        if piece[..length] != other[..length] {
            return Err(wrong(format!("it differs after byte {at}")));
        }
    }
    if expected.at != size {
        return Err(wrong(format!("{} of its {size} bytes", expected.at)));
    }
    snapshot.finish();
    Ok(())
}

/// Runs the member.
///
/// # Errors
/// The group.
pub(crate) fn run(task: &JoinTask, parent: &mut Parent) -> Result<(), Failure> {
    let id = task.seat.id;
    let mut report = JoinReport { started: clock::now(), ..JoinReport::default() };
    let node = group::start_with_state(&task.seat, task.joins)?;
    let sender = node.sender();
    let (mut gaps, mut members, mut first) = (Gaps::default(), Vec::new(), true);
    let (mut due, mut sent) = (clock::now(), 0);
    while !parent.released() {
        if let Some(Told::Gaps { windows }) = parent.try_told() {
            let longest = windows.iter().map(|window| gaps.longest_touching(*window, clock::now())).collect();
            parent.say(&Said::Gaps { longest, fabric: node.stats().fabric.to_owned() });
        }
        let now = clock::now();
        if now >= due {
            send(id, &sender, &mut sent)?;
            due = now + INTERVAL;
        }
        let left = Duration::from_nanos(due.saturating_sub(clock::now()));
        match node.recv_timeout(left).map_err(|stop| group::stopped(id, &stop))? {
            Some(Event::Message(_)) => {
                let now = clock::now();
                gaps.on_delivery(now);
                if std::mem::take(&mut first) {
                    parent.say(&Said::View { members: members.clone() });
                    if task.joins && report.viewed == 0 && members.contains(&id) {
                        report.viewed = now;
                        parent.done(&report)?;
                    }
                }
            }
            Some(Event::View(view)) => {
                members = view.members.iter().map(|member| member.node.0).collect();
                first = true;
            }
            Some(Event::Snapshot(request)) => request.give(State::new(task.state)),
            Some(Event::Restore(snapshot)) => {
                report.arrived = clock::now();
                restore(id, task.state, snapshot)?;
                report.restored = clock::now();
            }
            Some(Event::Waiting { for_whom }) => {
                let for_whom = for_whom.iter().map(|absent| absent.node.0).collect();
                parent.say(&Said::Waiting { for_whom });
            }
            _ => {}
        }
    }
    node.close(group::CLOSE_WITHIN).map_err(|error| group::not_closed(id, &error))?;
    Ok(())
}

fn send(id: u32, sender: &Sender, sent: &mut u64) -> Result<(), Failure> {
    match sender.try_reserve(SIZE) {
        Ok(mut place) => {
            fill(&mut place, *sent);
            place.send();
            *sent += 1;
        }
        Err(SendError::Full | SendError::Changing | SendError::NotStarted) => {}
        Err(error) => {
            return Err(Failure::lost(
                format!("member {id} can't send: {error}"),
                "run it again with --log debug",
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_has_its_size_and_is_the_same_each_time() {
        for size in [0, 1, 1 << 20, (2 << 20) + 77] {
            let (mut one, mut other) = (Vec::new(), Vec::new());
            State::new(size).read_to_end(&mut one).unwrap();
            State::new(size).read_to_end(&mut other).unwrap();
            assert!(one == other && u64::try_from(one.len()).unwrap() == size);
        }
    }
}
