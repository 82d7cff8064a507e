//! A member under a stopwatch: one thread that drives the engine and is the application, so that no message changes
//! threads on its way.
//!
//! Senders write the payload into the ring itself; receivers read all of every payload where it lies, and check it: the
//! words say which message of its sender it should be, so a run that measures nonsense fails. A sender does not read its
//! own messages again; it wrote them.

use consort::{Delivery, DrivenNode, Incoming, SendError, Sender, ShardId};

use crate::args::WaitArg;
use crate::bench::payload::{expected, fill, sum};
use crate::bench::samples::{self, Series};
use crate::bench::window::Watch;
use crate::clock;
use crate::failure::Failure;
use crate::group;
use crate::orders::{Counts, LoadReport, LoadTask, Pace, Said, Told, WhichGroup, inherited};
use crate::parent::Parent;
use crate::text::as_f64;

/// Of a flood, times are taken of one message in so many.
const FLOOD_STRIDE: u64 = 64;

/// How much a flooding sender sends between two turns of the engine: enough to pay for the turn, little enough for the
/// receivers to find it in the cache.
const MESSAGES_A_TURN: usize = 256;
const BYTES_A_TURN: usize = 64 << 10;

/// Who spins reads the clock when something has happened, and once in so many turns of nothing: a reading is a good part of such a turn, and all of it
/// where it takes a system call (in User-mode Linux it does). A turn that may sleep is not counted on.
const TURNS_A_READING: u32 = 32;

/// The counters that a run looks at twice.
#[derive(Clone, Copy)]
struct Counters {
    delivered: u64,
    cpu: u64,
    counts: Counts,
    log_bytes: u64,
    flushes: u64,
    beside: u64,
}

/// What was delivered here.
struct Harvest {
    me: usize,
    size: usize,
    /// By place of the sender (its number less 1): when its messages were delivered here.
    delivered: Vec<Series>,
    total: u64,
    own: u64,
    ended: usize,
    running: bool,
    waiting: Option<Vec<u32>>,
    wrong: Option<Failure>,
}

impl Harvest {
    fn new(task: &LoadTask, stride: u64) -> Self {
        Self {
            me: (task.seat.id as usize).wrapping_sub(1),
            size: task.size,
            delivered: (0..task.seat.addresses.len()).map(|_| Series::new(stride)).collect(),
            total: 0,
            own: 0,
            ended: 0,
            running: false,
            waiting: None,
            wrong: None,
        }
    }

    #[inline]
    fn take(&mut self, incoming: Incoming<'_, '_>) {
        match incoming {
            Incoming::Message(delivery) => self.message(delivery),
            Incoming::Ended(_) => self.ended += 1,
            Incoming::View(_) => self.running = true,
            Incoming::Waiting(absent) => {
                self.waiting = Some(absent.iter().map(|absent| absent.node.0).collect());
            }
            _ => {}
        }
    }

    #[inline]
    fn message(&mut self, delivery: &Delivery<'_>) {
        let place = (delivery.sender.0 as usize).wrapping_sub(1);
        let Some(series) = self.delivered.get_mut(place) else {
            self.wrong = Some(wrong(&format!("a message of member {}, whom there is not", delivery.sender)));
            return;
        };
        if place == self.me {
            self.own += 1;
        } else if delivery.payload.len() != self.size
            || sum(delivery.payload) != expected(self.size, series.count())
        {
            self.wrong.get_or_insert_with(|| {
                wrong(&format!(
                    "message {} of member {} with another's bytes",
                    series.count(),
                    delivery.sender
                ))
            });
        }
        series.push(clock::now);
        self.total += 1;
    }
}

fn wrong(what: &str) -> Failure {
    Failure::disagreement(format!("delivered {what}"), "this must not happen: report it as a bug")
}

/// What is sent from here.
struct Load {
    pace: Pace,
    size: usize,
    sent: Series,
    /// Of a rate: nanoseconds between messages, and when the next is due.
    interval: f64,
    start: u64,
    ended: bool,
}

impl Load {
    fn new(pace: Pace, size: usize, start: u64) -> Self {
        let (stride, interval) = match pace {
            Pace::OneOutstanding => (1, 0.0),
            Pace::Rate(per_second) => (1, 1e9 / per_second),
            Pace::Flood => (FLOOD_STRIDE, 0.0),
        };
        Self { pace, size, sent: Series::new(stride), interval, start, ended: false }
    }

    /// When message `number` of a rate is due.
    fn due(&self, number: u64) -> u64 {
        self.start + whole(as_f64(number) * self.interval)
    }

    /// How many messages of a rate are due by now and not sent.
    fn are_due(&self, now: u64) -> usize {
        let due = whole(as_f64(now.saturating_sub(self.start)) / self.interval);
        // The one that is just due or, as far as it was rounded, not quite.
        let due = due + u64::from(self.due(due) <= now);
        usize::try_from(due.saturating_sub(self.sent.count())).unwrap_or(usize::MAX)
    }

    /// So many are sent in a turn at most.
    fn batch(&self) -> usize {
        MESSAGES_A_TURN.min((BYTES_A_TURN / self.size).max(1))
    }

    /// Sends what the pace allows. Returns whether anything was sent.
    fn turn(&mut self, sender: &Sender, delivered: u64) -> Result<bool, SendError> {
        let before = self.sent.count();
        let most = self.batch();
        let sent = match self.pace {
            Pace::OneOutstanding if before > delivered => return Ok(false),
            Pace::OneOutstanding => self.one(sender),
            Pace::Rate(_) => self.many(sender, self.are_due(clock::now()).min(most)),
            Pace::Flood => self.many(sender, most),
        };
        match sent {
            Ok(()) | Err(SendError::Full | SendError::Changing) => Ok(self.sent.count() > before),
            Err(error) => Err(error),
        }
    }

    /// Latency counts from before the payload is written.
    fn one(&mut self, sender: &Sender) -> Result<(), SendError> {
        let (number, now) = (self.sent.count(), clock::now());
        let mut room = sender.try_reserve(self.size)?;
        self.sent.push(|| now);
        fill(&mut room, number);
        room.send();
        Ok(())
    }

    /// Sends so many, as far as there is room, at once. At a rate latency counts from when a message was due.
    fn many(&mut self, sender: &Sender, most: usize) -> Result<(), SendError> {
        let (pace, size) = (self.pace, self.size);
        let write = |room: &mut [u8]| {
            let number = self.sent.count();
            let at = if pace == Pace::Flood { None } else { Some(self.due(number)) };
            self.sent.push(|| at.unwrap_or_else(clock::now));
            fill(room, number);
        };
        sender.try_write_many(std::iter::repeat_n(size, most), write, |_| ())
    }

    /// Tells the group that this was all. It may take several turns to find room for that.
    fn end(&mut self, sender: &Sender) -> Result<(), SendError> {
        if !self.ended {
            match sender.end() {
                Ok(()) => self.ended = true,
                Err(SendError::WouldDeadlock) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Of what is positive, and far below 2^63.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn whole(value: f64) -> u64 {
    value as u64
}

/// The group beside the one that is measured.
struct Beside {
    shard: ShardId,
    sender: Sender,
    harvest: Harvest,
    load: Option<Load>,
    /// How is sent, if anything is.
    pace: Option<Pace>,
}

impl Beside {
    fn new(task: &LoadTask, node: &DrivenNode) -> Option<Self> {
        let which = task.durable.as_ref()?.which;
        let pace = match which {
            WhichGroup::Measured | WhichGroup::MeasuredAhead => return None,
            WhichGroup::BesideIdle => None,
            WhichGroup::BesideLoaded => Some(Pace::Flood),
            WhichGroup::BesideVolatile(rate) => {
                Some(Pace::Rate(as_f64(rate) / as_f64(task.seat.addresses.len() as u64)))
            }
        };
        let (shard, sender) = node.sender_of(group::BESIDE, 0)?;
        Some(Self { shard, sender, harvest: Harvest::new(task, FLOOD_STRIDE), load: None, pace })
    }

    fn begin(&mut self, task: &LoadTask, start: u64) {
        self.load = self.pace.map(|pace| Load::new(pace, task.size, start));
    }

    /// Sends, until that is over; the time is within the run.
    fn turn(&mut self, now: u64, ends: bool) -> Result<bool, SendError> {
        match &mut self.load {
            Some(load) if ends => load.end(&self.sender).map(|()| false),
            // In batches, as a flood: by ones it would take more of the processors.
            Some(load) if load.pace != Pace::Flood && load.are_due(now) < load.batch() => Ok(false),
            Some(load) => load.turn(&self.sender, self.harvest.own),
            None => Ok(false),
        }
    }

    /// Whether everything that was sent has come, if all are to send.
    fn is_done(&self, members: usize) -> bool {
        self.pace.is_none() || self.harvest.ended == members
    }
}

/// Runs the load.
///
/// # Errors
/// The group, or what it delivered is wrong.
pub(crate) fn run(task: &LoadTask, parent: &mut Parent) -> Result<(), Failure> {
    let id = task.seat.id;
    let members = task.seat.addresses.len();
    let stride = if task.pace == Pace::Flood { FLOOD_STRIDE } else { 1 };
    let mut harvest = Harvest::new(task, stride);
    let lost = |error: &SendError| {
        Failure::lost(format!("member {id} can't send: {error}"), "run it again with --log debug")
    };
    let mut node = match &task.durable {
        None => group::drive(&task.seat)?,
        Some(durable) => group::drive_durable(&task.seat, durable)?,
    };
    let sender = node.sender();
    let mut beside = Beside::new(task, &node);
    let mut load: Option<Load> = None;
    let mut watch: Option<Watch<Counters>> = None;
    let (mut ready, mut reported) = (false, false);
    let spins = task.seat.wait == WaitArg::Spin;
    let (mut now, mut idle) = (0, 0_u32);
    // Before the start and after the report the parent may speak; in between the run is not disturbed.
    while reported || watch.is_some() || !parent.released() {
        let polled = match &mut beside {
            None if task.seat.idle_groups > 0 => node.poll_groups(&mut |shard, incoming| {
                if shard == ShardId::MAIN {
                    harvest.take(incoming);
                }
            }),
            // A message by itself: the whole of it, handed on, would be copied.
            None => node.poll(&mut |incoming| match incoming {
                Incoming::Message(delivery) => harvest.message(delivery),
                other => harvest.take(other),
            }),
            Some(beside) => node.poll_groups(&mut |shard, incoming| {
                if shard == beside.shard { beside.harvest.take(incoming) } else { harvest.take(incoming) }
            }),
        };
        let mut busy = polled.map_err(|stop| group::stopped(id, &stop))?;
        let wrong_beside = beside.as_mut().and_then(|beside| beside.harvest.wrong.take());
        if let Some(failure) = harvest.wrong.take().or(wrong_beside) {
            return Err(failure);
        }
        match (&mut watch, &mut load) {
            (Some(taken), Some(load)) => {
                idle = if busy || !spins { 0 } else { idle.wrapping_add(1) };
                if idle.is_multiple_of(TURNS_A_READING) {
                    now = clock::now();
                }
                taken.look(now, || {
                    let stats = node.stats();
                    Counters {
                        delivered: harvest.total,
                        cpu: clock::cpu(),
                        counts: stats.counts.into(),
                        log_bytes: stats.logs.bytes,
                        flushes: stats.logs.flushes,
                        beside: beside.as_ref().map_or(0, |beside| beside.harvest.total),
                    }
                });
                if let Some(beside) = &mut beside
                    && now >= load.start
                {
                    busy |= beside.turn(now, now >= taken.end()).map_err(|error| lost(&error))?;
                }
                if now < taken.end() && now >= load.start {
                    if task.sends {
                        busy |= load.turn(&sender, harvest.own).map_err(|error| lost(&error))?;
                        // At a rate the next message is due at its time, whatever the group does: no sleep.
                        if !busy && matches!(load.pace, Pace::Rate(_)) {
                            std::thread::yield_now();
                            busy = true;
                        }
                    }
                } else if now >= taken.end() {
                    load.end(&sender).map_err(|error| lost(&error))?;
                }
            }
            _ if harvest.running && !ready && beside.as_ref().is_none_or(|beside| beside.harvest.running) => {
                ready = true;
                parent.say(&Said::Ready);
            }
            _ => {
                if let Some(for_whom) = harvest.waiting.take() {
                    parent.say(&Said::Waiting { for_whom });
                }
                if let Some(Told::Go { at }) = parent.try_told() {
                    load = Some(Load::new(task.pace, task.size, at));
                    if let Some(beside) = &mut beside {
                        beside.begin(task, at);
                    }
                    watch = Some(Watch::new(at, task.window));
                }
            }
        }
        if harvest.ended == members
            && beside.as_ref().is_none_or(|beside| beside.is_done(members))
            && let (Some(taken), Some(load)) = (watch.take(), &load)
        {
            let stats = node.stats();
            let report = report(taken, stats.fabric, stats.engine).ok_or_else(|| {
                Failure::lost(
                    format!("member {id} never saw both ends of the run"),
                    "the machine is too loaded: try again",
                )
            })?;
            save(task, &harvest, task.sends.then_some(&load.sent))?;
            parent.done(&report)?;
            reported = true;
        }
        if reported && parent.released() {
            break;
        }
        if !busy {
            node.wait();
        }
    }
    node.close(group::CLOSE_WITHIN, &mut |_| {}).map_err(|error| group::not_closed(id, &error))?;
    Ok(())
}

fn report(watch: Watch<Counters>, fabric: &str, engine: &str) -> Option<LoadReport> {
    let (elapsed, first, last) = watch.taken()?;
    Some(LoadReport {
        delivered: last.delivered - first.delivered,
        elapsed,
        cpu: last.cpu - first.cpu,
        counts: last.counts.since(first.counts),
        log_bytes: last.log_bytes - first.log_bytes,
        flushes: last.flushes - first.flushes,
        beside: last.beside - first.beside,
        fabric: fabric.to_string(),
        engine: engine.to_string(),
    })
}

/// Writes the times for the parent: of each sender's deliveries, and of the own sends.
fn save(task: &LoadTask, harvest: &Harvest, sent: Option<&Series>) -> Result<(), Failure> {
    inherited(task.samples, true)
        .and_then(|file| samples::write(&file, harvest.delivered.iter().chain(sent)))
        .map_err(|cause| Failure::stream("write", "the samples", cause))
}
