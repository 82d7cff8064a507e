//! A member of a demo with crashes and joins: multicasts the input at a pace, again and again until it is told to finish,
//! and writes all that is delivered to its log. The log is its state (V7): what a joiner gets is the file as it is at that
//! place in the order, and it goes on from there.
//!
//! Records are counted from 0 over all views, so that a joiner's log is the same bytes as the others'.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read as _;
use std::thread::JoinHandle;
use std::time::Duration;

use consort::{Event, Node, Restore, SendError, Sender, SnapshotRequest};

use crate::clock;
use crate::demo::input::Lines;
use crate::demo::log::{LogReader, LogWriter};
use crate::failure::Failure;
use crate::gaps::Gaps;
use crate::group;
use crate::orders::{ChurnReport, ChurnTask, Deed, Said, Told, Upheaval, inherited};
use crate::parent::Parent;

/// How much is sent, and taken, before a look at the other.
const AT_ONCE: usize = 128;

/// After a refusal, nanoseconds until the next attempt.
const AGAIN: u64 = 100_000;

/// How often a member that has nothing to send looks for orders.
const LOOK: Duration = Duration::from_millis(5);

/// The input, over and over.
struct Feed<'a> {
    task: &'a ChurnTask,
    lines: Lines<File>,
    line: Vec<u8>,
    /// `line` was read and not sent yet.
    held: bool,
    sent: u64,
    passes: u64,
    due: u64,
    /// This pass is the last.
    last: bool,
    over: bool,
}

impl<'a> Feed<'a> {
    fn new(task: &'a ChurnTask) -> Result<Self, Failure> {
        let lines = open(task)?;
        let (line, due) = (Vec::new(), clock::now());
        Ok(Self { task, lines, line, held: false, sent: 0, passes: 0, due, last: false, over: false })
    }

    /// Sends what is due.
    fn turn(&mut self, sender: &Sender) -> Result<(), Failure> {
        for _ in 0..AT_ONCE {
            let now = clock::now();
            if self.over || now < self.due {
                return Ok(());
            }
            if !self.held {
                let more = self.lines.next_into(&mut self.line);
                self.held = more.map_err(|cause| Failure::stream("read", "the input", cause))?;
            }
            if !self.held {
                self.passes += 1;
                self.over = self.last;
                self.lines = open(self.task)?;
                continue;
            }
            match sender.try_reserve(self.line.len()) {
                Ok(mut place) => {
                    place.copy_from_slice(&self.line);
                    place.send();
                }
                Err(SendError::Full | SendError::Changing | SendError::NotStarted) => {
                    self.due = now + AGAIN;
                    return Ok(());
                }
                Err(error) => return Err(refused(self.task.seat.id, &error)),
            }
            self.held = false;
            self.sent += 1;
            self.due = now + self.task.interval;
        }
        Ok(())
    }

    fn wait(&self) -> Duration {
        if self.over { LOOK } else { Duration::from_nanos(self.due.saturating_sub(clock::now())).min(LOOK) }
    }
}

fn open(task: &ChurnTask) -> Result<Lines<File>, Failure> {
    let input = inherited(task.input, false).map_err(|cause| Failure::stream("open", "the input", cause))?;
    Ok(Lines::new(input))
}

fn refused(id: u32, error: &SendError) -> Failure {
    Failure::lost(format!("member {id} can't send: {}", group::chain(error)), "run it again with --log debug")
}

/// The state.
struct Log<'a> {
    task: &'a ChurnTask,
    writer: LogWriter<File>,
    records: u64,
    restored: u64,
}

impl<'a> Log<'a> {
    fn new(task: &'a ChurnTask) -> Result<Self, Failure> {
        Ok(Self { task, writer: LogWriter::new(create(task)?), records: 0, restored: 0 })
    }

    fn failed(&self) -> impl Fn(std::io::Error) -> Failure + use<'a> {
        let log = &self.task.log;
        move |cause| Failure::file("write", log, cause)
    }

    fn append(&mut self, sender: u32, payload: &[u8]) -> Result<(), Failure> {
        self.writer.append(self.records, sender, payload).map_err(self.failed())?;
        self.records += 1;
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Failure> {
        self.writer.flush().map_err(self.failed())
    }

    /// The file as it is now. It only grows, so it can be read while more is written.
    fn give(&mut self, request: &SnapshotRequest) -> Result<(), Failure> {
        self.flush()?;
        let path = &self.task.log;
        let open = File::open(path).and_then(|file| Ok((file.metadata()?.len(), file)));
        let (length, file) = open.map_err(|cause| Failure::file("open", path, cause))?;
        request.give(file.take(length));
        Ok(())
    }

    /// Another member's log, instead of whatever there was.
    fn restore(&mut self, mut snapshot: Restore) -> Result<(), Failure> {
        *self = Self::new(self.task)?;
        let (mut reader, mut payload) = (LogReader::new(&mut snapshot, self.task.longest), Vec::new());
        loop {
            let header = reader.next_into(&mut payload).map_err(|error| {
                let what = format!("member {} got a log that is none: {error}", self.task.seat.id);
                Failure::disagreement(what, "this must not happen: report it as a bug")
            })?;
            let Some(header) = header else { break };
            self.append(header.sender, &payload)?;
        }
        self.restored = self.records;
        snapshot.finish();
        Ok(())
    }
}

fn create(task: &ChurnTask) -> Result<File, Failure> {
    File::create(&task.log).map_err(|cause| Failure::file("write", &task.log, cause))
}

/// When nothing was delivered, and what views there were.
#[derive(Default)]
struct Stillness {
    gaps: Gaps,
    views: Vec<(Vec<u32>, Option<u64>)>,
}

impl Stillness {
    fn on_view(&mut self, members: Vec<u32>) {
        self.views.push((members, None));
    }

    /// Returns the members of the view if it is the first delivery there.
    fn on_message(&mut self, now: u64) -> Option<&[u32]> {
        self.gaps.on_delivery(now);
        let (members, first) = self.views.last_mut()?;
        first.is_none().then(|| {
            *first = Some(now);
            members.as_slice()
        })
    }

    /// The longest until the first delivery in a view that has it; `None` if there was none since.
    fn around(&self, upheaval: &Upheaval) -> Option<u64> {
        let Upheaval { deed, member, at } = *upheaval;
        let was_there = self.views.iter().any(|(_, first)| first.is_some_and(|first| first < at));
        let shows = |members: &[u32]| members.contains(&member) == (deed == Deed::Join);
        let until = self.views.iter().filter(|(members, _)| shows(members)).filter_map(|(_, first)| *first);
        let until = until.filter(|until| was_there && *until > at).min()?;
        Some(self.gaps.longest(at, until))
    }
}

/// What the parent wants in the end.
struct Finish {
    members: Vec<u32>,
    upheavals: Vec<Upheaval>,
}

struct Life<'a> {
    node: &'a Node,
    log: Log<'a>,
    stillness: Stillness,
    members: Vec<u32>,
    ended: BTreeSet<u32>,
}

impl Life<'_> {
    fn take(&mut self, event: Event, parent: &mut Parent) -> Result<(), Failure> {
        match event {
            Event::Message(message) => {
                self.log.append(message.sender.0, message.payload())?;
                if let Some(members) = self.stillness.on_message(clock::now()) {
                    parent.say(&Said::View { members: members.to_vec() });
                }
            }
            Event::View(view) => {
                self.members = view.members.iter().map(|member| member.node.0).collect();
                self.members.sort_unstable();
                self.stillness.on_view(self.members.clone());
            }
            Event::Snapshot(request) => self.log.give(&request)?,
            Event::Restore(snapshot) => self.log.restore(snapshot)?,
            Event::Ended { node } => {
                self.ended.insert(node.0);
            }
            Event::Waiting { for_whom } => {
                let for_whom = for_whom.iter().map(|absent| absent.node.0).collect();
                parent.say(&Said::Waiting { for_whom });
            }
            _ => {}
        }
        Ok(())
    }

    fn is_through(&self, finish: &Finish) -> bool {
        self.members == finish.members && finish.members.iter().all(|member| self.ended.contains(member))
    }

    fn report(&self, feed: &Feed<'_>, finish: &Finish) -> ChurnReport {
        ChurnReport {
            sent: feed.sent,
            passes: feed.passes,
            records: self.log.records,
            restored: self.log.restored,
            digest: self.log.writer.digest(),
            still: finish.upheavals.iter().map(|it| self.stillness.around(it)).collect(),
            calm: finish.upheavals.first().map_or(0, |first| self.stillness.gaps.longest(0, first.at)),
            fabric: self.node.stats().fabric.to_string(),
        }
    }
}

/// Plays the part.
///
/// # Errors
/// The group, the input or the log.
pub(crate) fn run(task: &ChurnTask, parent: &mut Parent) -> Result<(), Failure> {
    let id = task.seat.id;
    let log = Log::new(task)?;
    let node = group::start_with_state(&task.seat, task.joins)?;
    let mut feed = Feed::new(task)?;
    let sender = node.sender();
    let mut life = Life {
        node: &node,
        log,
        stillness: Stillness::default(),
        members: Vec::new(),
        ended: BTreeSet::new(),
    };
    let mut finish: Option<Finish> = None;
    let mut ending: Option<JoinHandle<Result<(), SendError>>> = None;
    let mut reported = false;
    while !parent.released() {
        if let Some(Told::Finish { members, upheavals }) = parent.try_told() {
            finish = Some(Finish { members, upheavals });
            feed.last = true;
        }
        feed.turn(&sender)?;
        if feed.over && ending.is_none() {
            let sender = node.sender();
            // It may have to wait for room in the ring, and what is delivered must be taken meanwhile.
            ending = Some(std::thread::spawn(move || sender.end()));
        }
        let mut wait = feed.wait();
        for _ in 0..AT_ONCE {
            let event =
                node.recv_timeout(std::mem::take(&mut wait)).map_err(|stop| group::stopped(id, &stop))?;
            let Some(event) = event else { break };
            life.take(event, parent)?;
        }
        // What was delivered is in the file, so that little is torn off by a kill.
        life.log.flush()?;
        parent.progress(life.log.records);
        if let Some(finish) = finish.as_ref().filter(|finish| !reported && life.is_through(finish)) {
            parent.done(&life.report(&feed, finish))?;
            reported = true;
        }
    }
    drop(life);
    if let Some(Err(error)) = ending.filter(JoinHandle::is_finished).and_then(|ending| ending.join().ok()) {
        return Err(refused(id, &error));
    }
    node.close(group::CLOSE_WITHIN).map_err(|error| group::not_closed(id, &error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stillness_is_looked_for_around_an_upheaval() {
        let mut stillness = Stillness::default();
        let us = |n: u64| n * 1_000;
        stillness.on_view(vec![1, 2, 3]);
        assert_eq!(stillness.on_message(us(100)), Some(&[1, 2, 3][..]));
        for at in [900, 1_000, 1_030] {
            assert_eq!(stillness.on_message(us(at)), None);
        }
        let crash = Upheaval { deed: Deed::Crash, member: 3, at: us(1_010) };
        assert_eq!(stillness.around(&crash), None, "the view still stands");
        stillness.on_view(vec![1, 2]);
        stillness.on_message(us(1_400));
        stillness.on_message(us(2_000));
        assert_eq!(stillness.around(&crash), Some(us(370)), "not what was before, nor what was after");
        let join = Upheaval { deed: Deed::Join, member: 4, at: us(1_900) };
        assert_eq!(stillness.around(&join), None);
        stillness.on_view(vec![1, 2, 4]);
        stillness.on_message(us(2_100));
        assert_eq!(stillness.around(&join), Some(us(600)), "it had begun before");
        let mut joiner = Stillness::default();
        joiner.on_view(vec![1, 2, 4]);
        joiner.on_message(us(2_100));
        assert_eq!((joiner.around(&crash), joiner.around(&join)), (None, None), "it wasn't there");
    }
}
