//! The source's side of a state transfer (V7): [`SnapshotRequest`], what the application is asked, and the thread that reads what it
//! gives. The engine only records what is delivered meanwhile ([`Tails`]). Snapshots that bound a log (P4) are asked for in the same way, and written
//! by a thread beside it ([`super::keeping`]).

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError, mpsc};

use consort_dataplane::log::Index;
use consort_dataplane::names::NodeId;

use super::control::Reports;
use super::keeping::Keeping;
use crate::orders::Report;
use crate::transfer::{Lesson, Pupil, Tails, Teacher, Took};

/// A joiner needs the application's state, as it is after all that was delivered so far and before all that follows (V7); or this node's log has
/// become long, and a snapshot is to take the place of what is behind it (P4).
///
/// Answer with [`SnapshotRequest::give`], from any thread and in one's own time; what counts is that the snapshot is of this place
/// in the order. So take it at once where that is cheap (share what doesn't change, or write down what does), and write it later. A request
/// that is dropped without an answer is refused; the joiner asks another member then, and the log grows on until it has once more become as long.
#[derive(Clone)]
pub struct SnapshotRequest(Whose);

#[derive(Clone)]
enum Whose {
    Joiner(Arc<Request>),
    Log(Arc<Keeping>),
}

struct Request {
    pupil: Pupil,
    /// Pieces that the pupil has from before.
    held: u64,
    reports: Reports,
    took: Mutex<Option<mpsc::Receiver<Took>>>,
    #[cfg(test)]
    in_turn: InTurn,
}

/// Snapshots that are read in the engine's turns, for tests in virtual time.
#[cfg(test)]
type InTurn = Arc<Mutex<Vec<(Pupil, Teacher<Box<dyn Read + Send>>, mpsc::Receiver<Took>)>>>;

impl SnapshotRequest {
    /// Who joins; this node itself, if the snapshot is for its own log.
    pub fn joiner(&self) -> NodeId {
        match &self.0 {
            Whose::Joiner(request) => request.pupil.node,
            Whose::Log(keeping) => keeping.node(),
        }
    }

    /// Gives the snapshot: everything that the reader yields, until it ends. It is read on a thread of its own, as fast as the joiner takes it, or the
    /// disk; dropped when it was read, or when the joiner is gone. An error of the reader refuses the request. Only the first answer counts.
    pub fn give(&self, snapshot: impl Read + Send + 'static) {
        match &self.0 {
            Whose::Log(keeping) => Keeping::give(keeping, snapshot),
            Whose::Joiner(request) => {
                let Some(took) = request.take() else { return };
                let Request { pupil, held, .. } = **request;
                let reports = request.reports.clone();
                let name = format!("consort-{}-state", pupil.node);
                let body = move || teach(pupil, &reports, Teacher::new(snapshot, held), &took);
                if let Err(cause) = std::thread::Builder::new().name(name).spawn(body) {
                    request.refused(format!("no thread to read the snapshot: {cause}"));
                }
            }
        }
    }

    /// Gives no snapshot, and says why. The joiner asks another member.
    pub fn refuse(&self, reason: &str) {
        match &self.0 {
            Whose::Log(keeping) => keeping.refuse(reason),
            Whose::Joiner(request) => {
                if request.take().is_some() {
                    request.refused(reason.to_owned());
                }
            }
        }
    }

    /// As `give`, read in the engine's turns.
    #[cfg(test)]
    pub(super) fn give_in_turn(&self, snapshot: impl Read + Send + 'static) {
        match &self.0 {
            Whose::Log(keeping) => keeping.give_at_once(snapshot),
            Whose::Joiner(request) => {
                if let Some(took) = request.take() {
                    let teacher = Teacher::new(Box::new(snapshot) as Box<dyn Read + Send>, request.held);
                    request.in_turn.lock().unwrap().push((request.pupil, teacher, took));
                }
            }
        }
    }

    /// For this node's log.
    pub(super) fn for_log(keeping: Arc<Keeping>) -> Self {
        Self(Whose::Log(keeping))
    }

    /// If it is for this node's log: it is told to the application now, behind that record, in that view.
    pub(super) fn told_at(&self, place: impl FnOnce() -> Option<(Index, Vec<u8>)>) {
        if let Whose::Log(keeping) = &self.0 {
            keeping.told_at(place());
        }
    }
}

impl fmt::Debug for SnapshotRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Whose::Joiner(request) => write!(f, "SnapshotRequest(for node {})", request.pupil.node),
            Whose::Log(_) => write!(f, "SnapshotRequest(for the log)"),
        }
    }
}

impl Request {
    fn take(&self) -> Option<mpsc::Receiver<Took>> {
        self.took.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn refused(&self, reason: String) {
        self.reports.tell(Report::Lesson(self.pupil, Lesson::refused(reason)));
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        if self.took.get_mut().unwrap_or_else(PoisonError::into_inner).is_some() {
            self.refused("its application gave no snapshot".to_owned());
        }
    }
}

/// The thread of one snapshot. Ends when the pupil has it, or when the driver lets go of the other end of `took`.
fn teach<R: Read>(pupil: Pupil, reports: &Reports, mut teacher: Teacher<R>, took: &mpsc::Receiver<Took>) {
    while !teacher.is_done() {
        if !step(pupil, reports, &mut teacher) {
            return;
        }
        let Ok(first) = took.recv() else { return };
        for took in std::iter::once(first).chain(took.try_iter()) {
            if let Some(lesson) = teacher.on_took(took) {
                reports.tell(Report::Lesson(pupil, lesson));
            }
        }
    }
}

/// All the lessons that may be sent now. False: there will be no more.
fn step<R: Read>(pupil: Pupil, reports: &Reports, teacher: &mut Teacher<R>) -> bool {
    while teacher.may_go_on() {
        match teacher.next_lesson() {
            Ok(lesson) => reports.tell(Report::Lesson(pupil, lesson)),
            Err(error) => {
                let reason = format!("its snapshot can't be read: {error}");
                reports.tell(Report::Lesson(pupil, Lesson::refused(reason)));
                return false;
            }
        }
    }
    true
}

/// Whom this node teaches.
#[derive(Default)]
pub(crate) struct Teaching {
    /// What is recorded for them.
    pub(crate) tails: Tails,
    snapshots: BTreeMap<NodeId, (Pupil, mpsc::Sender<Took>)>,
    #[cfg(test)]
    in_turn: InTurn,
}

impl Teaching {
    /// What to ask the application for this pupil.
    pub(crate) fn request(&mut self, pupil: Pupil, held: u64, reports: &Reports) -> SnapshotRequest {
        let (to, took) = mpsc::channel();
        self.tails.end(pupil.node);
        self.snapshots.insert(pupil.node, (pupil, to));
        let took = Mutex::new(Some(took));
        let request = Request {
            pupil,
            held,
            reports: reports.clone(),
            took,
            #[cfg(test)]
            in_turn: self.in_turn.clone(),
        };
        SnapshotRequest(Whose::Joiner(Arc::new(request)))
    }

    /// The application has the request: whatever it is given from now on is recorded.
    pub(crate) fn begin(&mut self, request: &SnapshotRequest) {
        let Whose::Joiner(request) = &request.0 else { return };
        let pupil = request.pupil;
        if self.snapshots.get(&pupil.node).is_some_and(|(current, _)| *current == pupil) {
            self.tails.begin(pupil);
        }
    }

    pub(crate) fn on_took(&mut self, pupil: Pupil, took: Took) {
        if let Took::Tail(below) = took {
            self.tails.on_taken(pupil, below);
        } else if let Some((_, to)) = self.snapshots.get(&pupil.node).filter(|(it, _)| *it == pupil) {
            let _ = to.send(took); // its reader may be done
        }
    }

    pub(crate) fn end(&mut self, node: NodeId) {
        self.tails.end(node);
        self.snapshots.remove(&node);
    }

    pub(crate) fn clear(&mut self) {
        self.tails.clear();
        self.snapshots.clear();
    }

    /// Sends what was recorded, as far as the pupils follow.
    pub(crate) fn go_on(&mut self, reports: &Reports) {
        while let Some((pupil, lesson)) = self.tails.poll() {
            reports.tell(Report::Lesson(pupil, lesson));
        }
    }

    /// What a thread does otherwise.
    #[cfg(test)]
    pub(super) fn read_in_turn(&self, reports: &Reports) {
        self.in_turn.lock().unwrap().retain_mut(|(pupil, teacher, took)| {
            loop {
                match took.try_recv() {
                    Ok(took) => {
                        if let Some(lesson) = teacher.on_took(took) {
                            reports.tell(Report::Lesson(*pupil, lesson));
                        }
                    }
                    Err(mpsc::TryRecvError::Empty) => break,
                    Err(mpsc::TryRecvError::Disconnected) => return false,
                }
            }
            step(*pupil, reports, teacher) && !teacher.is_done()
        });
    }
}
