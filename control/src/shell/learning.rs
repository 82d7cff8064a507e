//! The pupil's side of a state transfer (V7): keeps lessons in files without a name until they are whole, gives the application the
//! snapshot ([`Restore`]) and then what was delivered since, as if it had been a member.
//!
//! ```text
//!            all pieces, digests right      the application has restored        all up to the view that admits
//! Receiving ─────────────────────────► Whole ─────────────────────────► Following ─────────────────────────► (none)
//! ```

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Error, ErrorKind, Result};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use consort_dataplane::fabric::Doorbell;
use consort_dataplane::session::{Delivery, Verdict};

use super::event::Incoming;
use super::restore::{Pieces, Progress, Restore, Source};
use crate::transfer::{CHUNK, Digest, Entry, Lesson, Took, TornTail, digest, whole};

/// So much of what was delivered since the snapshot is told in one turn.
const A_TURN: usize = 256;

/// What this node learns.
#[derive(Default)]
pub(crate) struct Learner {
    /// Pieces of a snapshot, perhaps of several: by number, with what each one's digest is.
    file: Option<Arc<File>>,
    digests: Vec<Digest>,
    course: Option<Course>,
}

/// One attempt.
struct Course {
    attempt: u64,
    /// Pieces that were taught, and those of them that are not here.
    taught: u64,
    missing: BTreeSet<u64>,
    whole: Option<(u64, u64, Digest)>,
    stage: Stage,
    tail: Followed,
    /// Said to be caught up.
    is_caught_up: bool,
}

enum Stage {
    Receiving,
    Whole(Pieces),
    Restoring(Arc<Progress>),
    Following,
    /// It came to nothing: nothing is told before the next attempt.
    Broken,
}

/// What was delivered since, in a file: written at its end, read from its beginning.
struct Followed {
    file: File,
    pieces: u64,
    written: u64,
    read: u64,
    entry: Vec<u8>,
}

/// What the application is told with; it may refuse what it can't take yet.
pub(crate) type Telling<'a> = dyn FnMut(Incoming<'_, '_>) -> Verdict + 'a;

/// What came of a turn.
#[derive(PartialEq, Eq, Debug)]
pub(crate) enum Learned {
    /// Nothing to do.
    Nothing,
    /// Something was told.
    Something,
    /// All that is here was told, for the first time in this attempt, which is this one.
    CaughtUp(u64),
    /// The last was told, of this attempt.
    All(u64),
    /// This attempt came to nothing.
    Broken(u64, String),
    /// The application can't go on.
    GivenUp,
}

impl Learner {
    /// Begins anew, with another source perhaps. Pieces that are here stay as long as they fit.
    pub(crate) fn begin(&mut self, attempt: u64) -> Result<()> {
        self.course = None;
        if self.file.is_none() {
            self.file = Some(Arc::new(nameless()?));
        }
        let tail = Followed { file: nameless()?, pieces: 0, written: 0, read: 0, entry: Vec::new() };
        self.course = Some(Course {
            attempt,
            taught: 0,
            missing: BTreeSet::new(),
            whole: None,
            stage: Stage::Receiving,
            tail,
            is_caught_up: false,
        });
        Ok(())
    }

    /// This incarnation is over. What is here of a snapshot stays for the next.
    pub(crate) fn end(&mut self) {
        self.course = None;
    }

    /// This attempt came to nothing. Nothing is told before the next.
    pub(crate) fn give_up(&mut self) {
        if let Some(course) = &mut self.course {
            course.stage = Stage::Broken;
        }
    }

    /// Whether what is delivered comes from here, not from rings.
    pub(crate) fn is_active(&self) -> bool {
        self.course.is_some()
    }

    /// Whether there is something to tell the application.
    pub(crate) fn has_work(&self) -> bool {
        self.course.as_ref().is_some_and(|course| match &course.stage {
            Stage::Receiving | Stage::Broken => false,
            Stage::Whole(_) => true,
            Stage::Restoring(progress) => progress.is_restored().is_some(),
            Stage::Following => course.tail.has_entry() || !course.is_caught_up,
        })
    }

    /// A lesson came. Returns what is to be said about it.
    ///
    /// # Errors
    /// It can't be, or there is no room for it: the attempt came to nothing.
    pub(crate) fn on_lesson(&mut self, attempt: u64, lesson: &Lesson) -> Result<Option<Took>> {
        let Self { file: Some(file), digests, course: Some(course) } = self else { return Ok(None) };
        if course.attempt != attempt {
            return Ok(None);
        }
        match lesson {
            Lesson::Chunk { number, digest, bytes } => {
                let lacked = course.on_chunk(file, digests, *number, digest, bytes.as_deref())?;
                if let Some(lacked) = lacked {
                    return Ok(Some(Took::Lacks(lacked)));
                }
            }
            Lesson::Whole { chunks, len, digest } => {
                if course.whole.is_some() || *chunks != course.taught || chunks_of(*len) != *chunks {
                    return Err(unsound("a snapshot that doesn't add up"));
                }
                course.whole = Some((*chunks, *len, *digest));
            }
            Lesson::Tail { number, bytes } => {
                course.tail.write(*number, bytes)?;
                return Ok(Some(Took::Tail(number + 1)));
            }
            Lesson::Refused(_) => return Ok(None),
        }
        let here = course.here();
        if let (Stage::Receiving, Some((chunks, len, all))) = (&course.stage, course.whole)
            && here == chunks
        {
            digests.truncate(here as usize);
            if whole(digests) != all {
                digests.clear();
                return Err(unsound("a snapshot whose digest is another"));
            }
            let digests = digests.as_slice().into();
            course.stage = Stage::Whole(Pieces { file: file.clone(), digests, len });
        }
        Ok(Some(Took::Chunks(here)))
    }

    /// Tells the application what is due.
    pub(crate) fn turn(&mut self, app: &mut Telling<'_>, bell: &Doorbell, refused: &mut bool) -> Learned {
        let Some(course) = &mut self.course else { return Learned::Nothing };
        let attempt = course.attempt;
        match &course.stage {
            Stage::Receiving | Stage::Broken => Learned::Nothing,
            Stage::Whole(pieces) => {
                let progress = Progress::new(bell.clone());
                let mut restore = Some(Restore::new(Source::Taught(pieces.clone()), progress.clone()));
                if app(Incoming::Restore(&mut restore)) == Verdict::Later {
                    *refused = true;
                    return Learned::Nothing;
                }
                drop(restore); // if it is still here, nobody will finish it
                course.stage = Stage::Restoring(progress);
                Learned::Something
            }
            Stage::Restoring(progress) => match progress.is_restored() {
                None => Learned::Nothing,
                Some(true) => {
                    course.stage = Stage::Following;
                    Learned::Something
                }
                Some(false) => Learned::GivenUp,
            },
            Stage::Following => match course.follow(app, refused) {
                Ok(Some(Told::Last)) => {
                    let done = std::mem::take(self);
                    // The kernel frees a large file for as long as it takes; by now the group waits for this thread.
                    let name = "consort-free".to_owned();
                    let _ = std::thread::Builder::new().name(name).spawn(move || drop(done));
                    Learned::All(attempt)
                }
                Ok(Some(Told::Some)) => Learned::Something,
                Ok(None) if !course.is_caught_up && !*refused => {
                    course.is_caught_up = true;
                    Learned::CaughtUp(attempt)
                }
                Ok(None) => Learned::Nothing,
                Err(error) => {
                    course.stage = Stage::Broken;
                    Learned::Broken(attempt, error.to_string())
                }
            },
        }
    }
}

/// What of the tail was told in a turn.
enum Told {
    Some,
    Last,
}

impl Course {
    /// So many pieces from the first on are here.
    fn here(&self) -> u64 {
        self.missing.first().copied().unwrap_or(self.taught)
    }

    /// Keeps a piece. Returns its number if its bytes are needed.
    fn on_chunk(
        &mut self,
        file: &File,
        digests: &mut Vec<Digest>,
        number: u64,
        known: &Digest,
        bytes: Option<&[u8]>,
    ) -> Result<Option<u64>> {
        let is_next = number == self.taught && self.whole.is_none();
        if !is_next && !self.missing.contains(&number) {
            return Err(unsound("a piece of the snapshot out of its turn"));
        }
        if is_next {
            self.taught += 1;
        }
        let at = usize::try_from(number).map_err(|_| unsound("a snapshot beyond all bounds"))?;
        let Some(bytes) = bytes else {
            if digests.get(at) == Some(known) {
                return Ok(None);
            }
            self.missing.insert(number);
            return Ok(Some(number));
        };
        if digest(bytes) != *known || bytes.is_empty() {
            return Err(unsound("a piece of the snapshot whose digest is another"));
        }
        file.write_all_at(bytes, number * CHUNK as u64)?;
        if digests.len() <= at {
            digests.resize(at + 1, Digest::default());
        }
        digests[at] = *known;
        self.missing.remove(&number);
        Ok(None)
    }

    fn follow(&mut self, app: &mut Telling<'_>, refused: &mut bool) -> Result<Option<Told>> {
        let mut told = None;
        for _ in 0..A_TURN {
            let Some((entry, payload)) = self.tail.peek()? else { break };
            let verdict = match entry {
                Entry::Message { view, seq, rank, sender } => {
                    app(Incoming::Message(&mut Delivery::of_another(view, seq, (rank, sender), payload)))
                }
                Entry::View(view) => app(Incoming::View(&view)),
                // The view is told as the first of this node's own: see `Driver::tell`.
                Entry::Admitted => return Ok(Some(Told::Last)),
            };
            if verdict == Verdict::Later {
                *refused = true;
                break;
            }
            self.tail.next();
            told = Some(Told::Some);
        }
        Ok(told)
    }
}

impl Followed {
    fn write(&mut self, number: u64, bytes: &[u8]) -> Result<()> {
        if number != self.pieces {
            return Err(unsound("a piece of what was delivered since out of its turn"));
        }
        self.pieces += 1;
        if self.written == self.read {
            (self.written, self.read) = (0, 0);
        }
        self.file.write_all_at(bytes, self.written)?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Whether there may be an entry to read.
    fn has_entry(&self) -> bool {
        self.written > self.read
            && (self.entry.is_empty() || self.written - self.read >= self.entry.len() as u64)
    }

    /// The next entry, if all of it is here.
    fn peek(&mut self) -> Result<Option<(Entry, &[u8])>> {
        let left = self.written - self.read;
        let torn = |error: TornTail| Error::new(ErrorKind::InvalidData, error);
        let mut lengths = [0; 8];
        if left < lengths.len() as u64 {
            return Ok(None);
        }
        self.file.read_exact_at(&mut lengths, self.read)?;
        let Some(len) = Entry::len(&lengths).map_err(torn)? else { return Ok(None) };
        // Remembered, so that nobody looks again before there is enough.
        self.entry.resize(len, 0);
        if left < len as u64 {
            return Ok(None);
        }
        self.file.read_exact_at(&mut self.entry, self.read)?;
        Entry::decode(&self.entry).map(Some).map_err(torn)
    }

    fn next(&mut self) {
        self.read += self.entry.len() as u64;
        self.entry.clear();
    }
}

fn chunks_of(len: u64) -> u64 {
    len.div_ceil(CHUNK as u64)
}

fn unsound(what: &str) -> Error {
    Error::new(ErrorKind::InvalidData, format!("it sent {what}"))
}

/// A file that is gone with its last descriptor.
fn nameless() -> Result<File> {
    tempfile::tempfile()
}
