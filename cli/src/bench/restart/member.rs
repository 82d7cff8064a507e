//! A member that fills its log, and one that is told what is in it.
//!
//! In its first life it sends so many messages. In each later one it is told all that was delivered in those before, looks at every byte of it, and
//! knows of each message which it has to be. In every life, the first included, each member sends one new message at the end: a short one, with the
//! life's number in it. When those of all have come, there is nothing more under way, and what the next life is told is certain.

use std::fs;

use consort::{Delivery, Incoming, SendError, Sender};

use crate::bench::payload::{expected, fill, sum};
use crate::clock;
use crate::failure::Failure;
use crate::group;
use crate::orders::{RestartReport, RestartTask, Said};
use crate::parent::Parent;

/// How much is sent between two turns of the engine.
const A_TURN: usize = 64 << 10;

/// Bytes of a new message.
const NEW: usize = size_of::<u64>();

/// What was told.
struct Told<'a> {
    task: &'a RestartTask,
    /// By place of the sender (its number less 1): messages that fill the log.
    filling: Vec<u64>,
    /// New messages, by life.
    new: Vec<u64>,
    total: u64,
    report: RestartReport,
    waiting: Option<Vec<u32>>,
    wrong: Option<String>,
}

impl Told<'_> {
    fn new(task: &RestartTask) -> Told<'_> {
        let lives = usize::try_from(task.life + 1).unwrap_or(1);
        Told {
            task,
            filling: vec![0; task.seat.addresses.len()],
            new: vec![0; lives],
            total: 0,
            report: RestartReport::default(),
            waiting: None,
            wrong: None,
        }
    }

    fn members(&self) -> u64 {
        self.filling.len() as u64
    }

    /// What was delivered in the lives before this one.
    fn before(&self) -> u64 {
        if self.task.life == 0 { 0 } else { self.members() * (self.task.filling + self.task.life) }
    }

    fn take(&mut self, incoming: Incoming<'_, '_>) {
        match incoming {
            Incoming::Message(delivery) => self.message(delivery),
            Incoming::Waiting(absent) => {
                self.waiting = Some(absent.iter().map(|absent| absent.node.0).collect());
            }
            // Those of earlier lives are told again, too, and the last of all is this life's.
            Incoming::View(_) => self.report.viewed = clock::now(),
            _ => {}
        }
    }

    fn message(&mut self, delivery: &Delivery<'_>) {
        let place = (delivery.sender.0 as usize).wrapping_sub(1);
        let Some(filling) = self.filling.get_mut(place) else {
            self.wrong = Some(format!("a message of member {}, whom there is not", delivery.sender));
            return;
        };
        self.total += 1;
        if let Ok(life) = <[u8; NEW]>::try_from(delivery.payload) {
            let life = u64::from_ne_bytes(life);
            match usize::try_from(life).ok().and_then(|life| self.new.get_mut(life)) {
                Some(count) => *count += 1,
                None => self.wrong = Some(format!("a message of life {life}, which has not been")),
            }
            if life == self.task.life && self.report.fresh == 0 {
                self.report.fresh = clock::now();
            }
        } else {
            let number = *filling;
            *filling += 1;
            let is_it = delivery.payload.len() == self.task.size
                && sum(delivery.payload) == expected(self.task.size, number);
            if !is_it {
                self.wrong.get_or_insert_with(|| {
                    format!("message {number} of member {} with another's bytes", delivery.sender)
                });
            }
        }
        if self.total == self.before() {
            self.report.told = clock::now();
        }
    }

    /// Whether everything has come, the new messages of all included. Wrong is what came instead of it.
    fn is_done(&self) -> Result<bool, String> {
        let members = self.members();
        if self.new.last().copied().unwrap_or_default() < members {
            return Ok(false);
        }
        let all = members * (self.task.filling + self.task.life + 1);
        let is_whole = self.filling.iter().all(|count| *count == self.task.filling)
            && self.new.iter().all(|count| *count == members);
        if is_whole && self.total == all {
            return Ok(true);
        }
        Err(format!("{} messages, and {all} had been delivered", self.total))
    }
}

/// What is sent.
struct Load<'a> {
    task: &'a RestartTask,
    sent: u64,
    is_over: bool,
}

impl Load<'_> {
    /// Sends what there is room for. Returns whether that was anything.
    fn turn(&mut self, sender: &Sender) -> Result<bool, SendError> {
        let filling = if self.task.life == 0 { self.task.filling } else { 0 };
        let mut any = false;
        for _ in 0..(A_TURN / self.task.size).max(1) {
            if self.is_over {
                break;
            }
            let is_new = self.sent == filling;
            match sender.try_reserve(if is_new { NEW } else { self.task.size }) {
                Ok(mut place) => {
                    if is_new {
                        place.copy_from_slice(&self.task.life.to_ne_bytes());
                    } else {
                        fill(&mut place, self.sent);
                    }
                    place.send();
                    self.sent += 1;
                    self.is_over = is_new;
                    any = true;
                }
                Err(SendError::Full | SendError::Changing | SendError::NotStarted) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(any)
    }
}

/// Runs one life of the member. It ends when it is killed.
///
/// # Errors
/// The group, or what it was told is not what was delivered.
pub(crate) fn run(task: &RestartTask, parent: &mut Parent) -> Result<(), Failure> {
    let id = task.seat.id;
    let mut node = group::drive_durable(&task.seat, &task.durable)?;
    let mut told = Told::new(task);
    told.report.opened = clock::now();
    let sender = node.sender();
    let mut load = Load { task, sent: 0, is_over: false };
    let mut reported = false;
    while !parent.released() {
        let polled = node.poll(&mut |incoming| told.take(incoming));
        let mut busy = polled.map_err(|stop| group::stopped(id, &stop))?;
        busy |= load.turn(&sender).map_err(|error| {
            Failure::lost(format!("member {id} can't send: {error}"), "run it again with --log debug")
        })?;
        if let Some(for_whom) = told.waiting.take() {
            parent.say(&Said::Waiting { for_whom });
        }
        parent.progress(told.total);
        if !reported {
            let done = match told.wrong.take() {
                Some(wrong) => Err(wrong),
                None => told.is_done(),
            };
            reported = done.map_err(|what| {
                Failure::disagreement(
                    format!("member {id} was told {what}"),
                    "this must not happen: report it as a bug",
                )
            })?;
            if reported {
                let stats = node.stats();
                parent.done(&RestartReport {
                    messages: told.total,
                    log_bytes: stats.logs.bytes,
                    memory: most_resident()?,
                    fabric: stats.fabric.to_owned(),
                    ..told.report.clone()
                })?;
            }
        }
        if !busy {
            node.wait();
        }
    }
    node.close(group::CLOSE_WITHIN, &mut |_| {}).map_err(|error| group::not_closed(id, &error))
}

/// The most memory that was ever resident of this process, in bytes (`VmHWM` in proc(5)).
fn most_resident() -> Result<u64, Failure> {
    let name = "/proc/self/status";
    let status = fs::read_to_string(name).map_err(|cause| Failure::stream("read", name, cause))?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = kib.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.map(|kib| kib * 1024).ok_or_else(|| {
        Failure::lost("the kernel doesn't say how much memory was used", "mount /proc as it usually is")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_resident_is_read() {
        assert!(most_resident().unwrap() > 100_000);
    }
}
