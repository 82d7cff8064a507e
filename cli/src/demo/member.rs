//! A member of the demo: multicasts every line of the input, writes all that is delivered to its log.
//!
//! One thread does it all: it drives the engine, feeds it lines as far as the ring takes them, and writes what comes out
//! to the log from the memory in which it arrived. A full ring or a slow disk is back-pressure: nothing is queued here but
//! the one line that does not fit yet.

use std::collections::VecDeque;
use std::fs::File;

use consort::{Incoming, SendError, Sender};
use hdrhistogram::Histogram;

use super::input::Lines;
use super::log::LogWriter;
use crate::clock;
use crate::failure::Failure;
use crate::group;
use crate::latency;
use crate::orders::{DemoReport, DemoTask, Said, inherited};
use crate::parent::Parent;
use crate::text::as_f64;

/// How much is sent between two turns of the engine: enough to pay for the turn, little enough to go on delivering.
const LINES_A_TURN: usize = 128;
const BYTES_A_TURN: usize = 512 << 10;

/// Feeds the lines of the input to the ring.
struct Feed {
    input: Lines<File>,
    line: Vec<u8>,
    /// `line` was read and not sent yet.
    held: bool,
    /// All lines are sent.
    exhausted: bool,
    /// The group knows that all lines are sent.
    ended: bool,
    sent: u64,
    /// When each message that is under way was sent, oldest first.
    under_way: VecDeque<u64>,
}

impl Feed {
    /// Sends as much as a turn may. Returns whether anything was sent.
    fn turn(&mut self, sender: &Sender, id: u32) -> Result<bool, Failure> {
        let before = self.sent;
        let mut bytes = 0;
        for _ in 0..LINES_A_TURN {
            if !self.held && !self.exhausted {
                let more = self.input.next_into(&mut self.line);
                self.held = more.map_err(|cause| Failure::stream("read", "the input", cause))?;
                self.exhausted = !self.held;
            }
            if self.exhausted {
                if self.ended {
                    break;
                }
                match sender.end() {
                    Ok(()) => self.ended = true,
                    // This thread makes the room that it waits for: it must go on.
                    Err(SendError::WouldDeadlock) => break,
                    Err(error) => return Err(refused(id, &error)),
                }
                return Ok(true);
            }
            match sender.try_reserve(self.line.len()) {
                Ok(mut place) => {
                    place.copy_from_slice(&self.line);
                    self.under_way.push_back(clock::now());
                    place.send();
                }
                Err(SendError::Full | SendError::Changing) => break,
                Err(error) => return Err(refused(id, &error)),
            }
            self.held = false;
            self.sent += 1;
            bytes += self.line.len();
            if bytes > BYTES_A_TURN {
                break;
            }
        }
        Ok(self.sent > before)
    }
}

fn refused(id: u32, error: &SendError) -> Failure {
    Failure::lost(format!("member {id} can't send: {}", group::chain(error)), "run it again with --log debug")
}

/// What comes out of the group.
struct Harvest {
    log: LogWriter<File>,
    me: u32,
    delivered: u64,
    /// Members that have sent all they will.
    ended: usize,
    began: Option<u64>,
    last: u64,
    latency: Histogram<u64>,
    failure: Option<Failure>,
}

impl Harvest {
    fn take(&mut self, incoming: Incoming<'_, '_>, feed: &mut Feed, parent: &mut Parent) {
        match incoming {
            Incoming::Waiting(absent) => {
                let for_whom = absent.iter().map(|absent| absent.node.0).collect();
                parent.say(&Said::Waiting { for_whom });
            }
            Incoming::View(_) => {
                self.began = Some(clock::now());
                parent.say(&Said::Ready);
            }
            Incoming::Message(delivery) => {
                let (seq, sender) = (delivery.seq.0, delivery.sender.0);
                if let Err(cause) = self.log.append(seq, sender, delivery.payload) {
                    let failure = Failure::stream("write", format!("the log of member {}", self.me), cause);
                    self.failure.get_or_insert(failure);
                }
                self.delivered += 1;
                if sender == self.me
                    && let Some(sent) = feed.under_way.pop_front()
                {
                    self.latency.saturating_record(clock::now().saturating_sub(sent));
                }
            }
            Incoming::Ended(_) => self.ended += 1,
            _ => {}
        }
    }
}

/// Plays the part.
///
/// # Errors
/// The group, the input or the log.
pub(crate) fn run(task: &DemoTask, parent: &mut Parent) -> Result<(), Failure> {
    let me = task.seat.id;
    let input = inherited(task.input, false).map_err(|cause| Failure::stream("open", "the input", cause))?;
    let log = File::create(&task.log).map_err(|cause| Failure::file("write", &task.log, cause))?;
    let mut feed = Feed {
        input: Lines::new(input),
        line: Vec::new(),
        held: false,
        exhausted: false,
        ended: false,
        sent: 0,
        under_way: VecDeque::new(),
    };
    let mut harvest = Harvest {
        log: LogWriter::new(log),
        me,
        delivered: 0,
        ended: 0,
        began: None,
        last: 0,
        latency: latency::histogram()?,
        failure: None,
    };
    let mut node = group::drive(&task.seat)?;
    let sender = node.sender();
    let members = task.seat.addresses.len();
    let mut reported = false;
    while !parent.released() {
        let mut busy = node
            .poll(&mut |incoming| harvest.take(incoming, &mut feed, parent))
            .map_err(|stop| group::stopped(me, &stop))?;
        if let Some(failure) = harvest.failure.take() {
            return Err(failure);
        }
        if harvest.began.is_some() {
            busy |= feed.turn(&sender, me)?;
        }
        parent.progress(harvest.delivered);
        if harvest.ended == members && !reported {
            harvest.last = clock::now();
            harvest.log.flush().map_err(|cause| Failure::file("write", &task.log, cause))?;
            parent.done(&report(&harvest, feed.sent, node.stats().fabric))?;
            reported = true;
        }
        if !busy {
            node.wait();
        }
    }
    node.close(group::CLOSE_WITHIN, &mut |_| {}).map_err(|error| group::not_closed(me, &error))?;
    Ok(())
}

fn report(harvest: &Harvest, sent: u64, fabric: impl std::fmt::Display) -> DemoReport {
    let us = |quantile| as_f64(harvest.latency.value_at_quantile(quantile)) / 1e3;
    DemoReport {
        sent,
        delivered: harvest.delivered,
        digest: harvest.log.digest(),
        seconds: as_f64(harvest.last - harvest.began.unwrap_or(harvest.last)) / 1e9,
        p50_us: us(0.5),
        p99_us: us(0.99),
        fabric: fabric.to_string(),
    }
}
