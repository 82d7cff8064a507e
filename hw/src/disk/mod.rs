//! A directory on a real disk, as a log needs it ([`consort_dataplane::log::disk::Disk`]).
//!
//! What the log submits is done by a thread of the directory's own, which begins with the first job and sleeps while there is none: so neither
//! the write nor the flush is ever the engine's. A write goes past the kernel's cache of files, if that can be. A little is written there and flushed by one call
//! (`RWF_DSYNC`). Any other write and its flush are one call of io_uring, linked: the flush begins only when all was written. Where io_uring is denied,
//! two plain calls do the same.
//!
//! Files are made in their full size (`fallocate`), so that appending changes no length and a full disk is found when a segment is made, not
//! in the middle of a batch; and the blocks in front of a log that takes little at a time are written beforehand, so that a flush is of its own bytes
//! alone. A file is replaced by writing another, flushing it, renaming it, and flushing the directory.
//!
//! Whoever writes holds a lock on the directory (`flock` on the file `lock`); readers need none.

mod direct;

mod ahead;
mod uring;

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use consort_dataplane::fabric::Doorbell;
use consort_dataplane::log::disk::{Disk, DiskError, DiskTrouble, Done, Job, UNFINISHED};
use rustix::fs::{FallocateFlags, FlockOperation, fallocate, flock};
use rustix::io::Errno;

use self::ahead::{Ahead, When};
pub(crate) use uring::Writer;

/// The file whose lock the writer holds.
const LOCK: &str = "lock";

/// With no job for so long, there is nothing else to do.
const IDLE: Duration = Duration::from_millis(2);

/// Bytes rewritten at once.
const PART: usize = 1 << 20;

/// See the [module](self).
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    worker: Option<Worker>,
    bell: Arc<Mutex<Option<Doorbell>>>,
    /// Held for its lock, until the worker has ended; none for readers.
    _lock: Option<File>,
}

/// The thread that carries out jobs.
#[derive(Debug)]
struct Worker {
    /// None when it is to end.
    jobs: Option<mpsc::Sender<Job>>,
    done: mpsc::Receiver<Done>,
    /// How many are done, and how many of these were told.
    finished: Arc<AtomicU64>,
    told: u64,
    thread: Option<JoinHandle<()>>,
}

/// Far longer than anyone who looks whether a directory is in use ([`Directory::is_in_use`]) holds its lock for that.
const LOOK: Duration = Duration::from_millis(100);

impl Directory {
    /// The directory at `path`, to be written by this process alone. Makes it if it isn't there. Blocks for up to a tenth of a second
    /// if another has it.
    ///
    /// # Errors
    /// It can't be made or written, or another process has it.
    pub fn open(path: &Path) -> Result<Self, DiskError> {
        let failed = |doing: &str, cause: &io::Error| error(doing, path, cause);
        fs::create_dir_all(path).map_err(|cause| failed("make", &cause))?;
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(path.join(LOCK));
        let lock = lock.map_err(|cause| failed("write in", &cause))?;
        let until = Instant::now() + LOOK;
        loop {
            match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                // Somebody may only look whether it is in use.
                Err(Errno::WOULDBLOCK) if Instant::now() < until => thread::sleep(LOOK / 100),
                Err(Errno::WOULDBLOCK) => {
                    let what = format!("{} is in use by another process", path.display());
                    return Err(DiskError::new(DiskTrouble::InUse, what));
                }
                Err(cause) => return Err(failed("lock", &cause.into())),
            }
        }
        let mut here = Self { path: path.to_owned(), worker: None, bell: Arc::default(), _lock: Some(lock) };
        for (name, _) in here.list()? {
            if name.ends_with(UNFINISHED) {
                here.delete(&name)?;
            }
        }
        Ok(here)
    }

    /// The directory at `path`, for reading, whoever writes there.
    ///
    /// # Errors
    /// It isn't there.
    pub fn look(path: &Path) -> Result<Self, DiskError> {
        fs::read_dir(path).map_err(|cause| error("read", path, &cause))?;
        Ok(Self { path: path.to_owned(), worker: None, bell: Arc::default(), _lock: None })
    }

    /// Whether a process has the directory at `path` open for writing.
    ///
    /// It holds the lock itself to find out, for an instant.
    pub fn is_in_use(path: &Path) -> bool {
        let Ok(lock) = File::open(path.join(LOCK)) else { return false };
        matches!(flock(&lock, FlockOperation::NonBlockingLockShared), Err(Errno::WOULDBLOCK))
    }

    /// A second handle for the same process, to read and to write files of other names beside the first.
    pub fn beside(&self) -> Self {
        Self { path: self.path.clone(), worker: None, bell: Arc::default(), _lock: None }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What carries out jobs: `io_uring`, or `plain` where that is denied.
    pub fn engine() -> &'static str {
        Writer::new().name()
    }

    fn worker(&mut self) -> Result<&mut Worker, DiskError> {
        if self.worker.is_none() {
            let (jobs, ordered) = mpsc::channel();
            let (tell, done) = mpsc::channel();
            let (path, bell) = (self.path.clone(), self.bell.clone());
            let mut files = Files::new(path);
            let finished = Arc::new(AtomicU64::new(0));
            let counted = finished.clone();
            let body = move || work(&mut files, &ordered, &|done| tell.send(done).is_ok(), &counted, &bell);
            let thread = thread::Builder::new().name("consort-disk".to_owned()).spawn(body);
            let thread = thread.map_err(|cause| error("get a thread to write", &self.path, &cause))?;
            self.worker = Some(Worker { jobs: Some(jobs), done, finished, told: 0, thread: Some(thread) });
        }
        match &mut self.worker {
            Some(worker) => Ok(worker),
            None => Err(DiskError::new(DiskTrouble::Failed, "no thread to write")),
        }
    }

    fn named(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

/// What was being done where, and why it failed.
fn error(doing: &str, path: &Path, cause: &io::Error) -> DiskError {
    let trouble = match cause.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => DiskTrouble::Full,
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => DiskTrouble::ReadOnly,
        ErrorKind::NotFound => DiskTrouble::Missing,
        _ => DiskTrouble::Failed,
    };
    DiskError::new(trouble, format!("can't {doing} {}: {cause}", path.display()))
}

/// The thread's loop: ends when nobody can order anything any more.
fn work(
    files: &mut Files,
    jobs: &mpsc::Receiver<Job>,
    tell: &dyn Fn(Done) -> bool,
    finished: &AtomicU64,
    bell: &Mutex<Option<Doorbell>>,
) {
    let mut writer = Writer::new();
    loop {
        let next = match files.ahead.when() {
            When::Later => jobs.recv().map_err(RecvTimeoutError::from),
            When::Idle => jobs.recv_timeout(IDLE),
            When::Now => Err(RecvTimeoutError::Timeout),
        };
        let mut job = match next {
            Ok(job) => job,
            Err(RecvTimeoutError::Timeout) => {
                files.write_ahead();
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => return,
        };
        let result = files.carry_out(&mut writer, &mut job);
        if !tell(Done { job, result }) {
            return;
        }
        finished.fetch_add(1, Ordering::Release); // pairs with the Acquire in `Directory::has_news`
        if let Some(bell) = &*bell.lock().unwrap_or_else(PoisonError::into_inner) {
            bell.ring();
        }
    }
}

/// The files that the thread writes to.
struct Files {
    path: PathBuf,
    ahead: Ahead,
    /// What was written ahead couldn't be flushed: a failure like that of any other flush, told with the next batch.
    failed: Option<DiskError>,
}

impl Files {
    fn new(path: PathBuf) -> Self {
        Self { path, ahead: Ahead::default(), failed: None }
    }

    fn write_ahead(&mut self) {
        if let Err(cause) = self.ahead.write(&self.path) {
            self.failed = Some(error("flush", &self.path, &cause));
        }
    }

    fn carry_out(&mut self, writer: &mut Writer, job: &mut Job) -> Result<(), DiskError> {
        match job {
            Job::Write(batch) => {
                if let Some(error) = &self.failed {
                    return Err(error.clone());
                }
                let path = self.path.join(&batch.name);
                writer.write(&path, batch).map_err(|cause| error("write", &path, &cause))?;
                self.ahead.on_written(batch);
                Ok(())
            }
            Job::Create(name, bytes) => create(&self.path, name, *bytes),
            Job::Delete(name) => delete(&self.path, name),
            Job::Replace(name, content) => {
                let mut content = Some(std::mem::take(content));
                replace(&self.path, name, &mut |part| {
                    part.extend(content.take().unwrap_or_default());
                    Ok(())
                })
            }
            Job::Rename(from, to) => {
                let path = self.path.join(to);
                fs::rename(self.path.join(from), &path).map_err(|cause| error("name", &path, &cause))?;
                flush_names(&self.path)
            }
            _ => Err(DiskError::new(DiskTrouble::Failed, "a job that this disk doesn't know")),
        }
    }
}

/// Makes what happened to names as lasting as what happened to bytes.
fn flush_names(directory: &Path) -> Result<(), DiskError> {
    let opened = File::open(directory).and_then(|directory| directory.sync_all());
    opened.map_err(|cause| error("flush", directory, &cause))
}

fn create(directory: &Path, name: &str, bytes: u64) -> Result<(), DiskError> {
    let path = directory.join(name);
    let failed = |cause: io::Error| error("make", &path, &cause);
    let file = OpenOptions::new().write(true).create_new(true).open(&path).map_err(failed)?;
    if let Err(cause) = reserve(&file, bytes).and_then(|()| file.sync_all()) {
        // Half a file would be in the way of the next attempt.
        let _ = fs::remove_file(&path);
        return Err(failed(cause));
    }
    flush_names(directory)
}

/// Gives a file its size, and room for all of it where the file system can.
fn reserve(file: &File, bytes: u64) -> io::Result<()> {
    match fallocate(file.as_fd(), FallocateFlags::empty(), 0, bytes) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => file.set_len(bytes),
        other => Ok(other?),
    }
}

fn delete(directory: &Path, name: &str) -> Result<(), DiskError> {
    let path = directory.join(name);
    match fs::remove_file(&path) {
        Err(cause) if cause.kind() != ErrorKind::NotFound => Err(error("delete", &path, &cause)),
        _ => flush_names(directory),
    }
}

fn replace(
    directory: &Path,
    name: &str,
    next: &mut dyn FnMut(&mut Vec<u8>) -> Result<(), DiskError>,
) -> Result<(), DiskError> {
    let (path, unfinished) = (directory.join(name), directory.join(format!("{name}{UNFINISHED}")));
    let failed = |cause: io::Error| error("write", &path, &cause);
    let mut file = File::create(&unfinished).map_err(failed)?;
    let mut part = Vec::new();
    let mut write = || loop {
        part.clear();
        next(&mut part)?;
        if part.is_empty() {
            file.sync_all().map_err(failed)?;
            return fs::rename(&unfinished, &path).map_err(failed);
        }
        file.write_all(&part).map_err(failed)?;
    };
    if let Err(error) = write() {
        let _ = fs::remove_file(&unfinished); // on a full disk it would be in everybody's way
        return Err(error);
    }
    flush_names(directory)
}

impl Disk for Directory {
    fn list(&mut self) -> Result<Vec<(String, u64)>, DiskError> {
        let failed = |cause: io::Error| error("read", &self.path, &cause);
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            match entry.metadata() {
                Ok(metadata) if metadata.is_file() => files.push((name, metadata.len())),
                Err(cause) if cause.kind() != ErrorKind::NotFound => return Err(failed(cause)),
                _ => {} // no file; or gone since, as a segment may be
            }
        }
        Ok(files)
    }

    fn read(&mut self, name: &str, at: u64, into: &mut [u8]) -> Result<usize, DiskError> {
        let path = self.named(name);
        let failed = |cause: io::Error| error("read", &path, &cause);
        let file = File::open(&path).map_err(failed)?;
        let mut got = 0;
        while got < into.len() {
            match file.read_at(&mut into[got..], at + got as u64) {
                Ok(0) => break,
                Ok(more) => got += more,
                Err(cause) if cause.kind() == ErrorKind::Interrupted => {}
                Err(cause) => return Err(failed(cause)),
            }
        }
        Ok(got)
    }

    fn rewrite(&mut self, name: &str, range: Range<u64>) -> Result<(), DiskError> {
        let path = self.named(name);
        let failed = |cause: io::Error| error("write", &path, &cause);
        let file = OpenOptions::new().write(true).open(&path).map_err(failed)?;
        let (mut at, mut part) = (range.start, vec![0; PART]);
        while at < range.end {
            let len = usize::try_from(range.end - at).unwrap_or(PART).min(PART);
            let got = self.read(name, at, &mut part[..len])?;
            if got == 0 {
                break;
            }
            file.write_all_at(&part[..got], at).map_err(failed)?;
            at += got as u64;
        }
        file.sync_all().map_err(failed)
    }

    fn create(&mut self, name: &str, bytes: u64) -> Result<(), DiskError> {
        create(&self.path, name, bytes)
    }

    fn cut(&mut self, name: &str, at: u64, bytes: u64) -> Result<(), DiskError> {
        let path = self.named(name);
        let cut = || {
            let file = OpenOptions::new().write(true).open(&path)?;
            file.set_len(at)?;
            reserve(&file, bytes)?;
            file.sync_all()
        };
        cut().map_err(|cause| error("cut", &path, &cause))
    }

    fn replace(&mut self, name: &str, content: &[u8]) -> Result<(), DiskError> {
        let mut content = Some(content);
        self.replace_with(name, &mut |part| {
            part.extend_from_slice(content.take().unwrap_or_default());
            Ok(())
        })
    }

    fn replace_with(
        &mut self,
        name: &str,
        next: &mut dyn FnMut(&mut Vec<u8>) -> Result<(), DiskError>,
    ) -> Result<(), DiskError> {
        replace(&self.path, name, next)
    }

    fn delete(&mut self, name: &str) -> Result<(), DiskError> {
        delete(&self.path, name)
    }

    fn submit(&mut self, job: Job) {
        let (tell, done) = mpsc::channel();
        let refused = match self.worker() {
            Ok(worker) => match worker.jobs.as_ref().map(|jobs| jobs.send(job)) {
                Some(Ok(())) => return,
                Some(Err(mpsc::SendError(job))) => Done { job, result: Err(ended()) },
                // It was told already that nothing is written any more.
                None => return,
            },
            Err(error) => Done { job, result: Err(error) },
        };
        // Told like any other.
        let _ = tell.send(refused);
        let finished = Arc::new(AtomicU64::new(1));
        self.worker = Some(Worker { jobs: None, done, finished, told: 0, thread: None });
    }

    fn poll(&mut self) -> Option<Done> {
        let worker = self.worker.as_mut()?;
        let done = worker.done.try_recv().ok()?;
        worker.told += 1;
        Some(done)
    }

    fn beside(&self) -> Box<dyn Disk> {
        Box::new(Self::beside(self))
    }

    fn has_news(&self) -> bool {
        self.worker.as_ref().is_some_and(|worker| worker.finished.load(Ordering::Acquire) > worker.told)
    }

    fn set_bell(&mut self, bell: Doorbell) {
        *self.bell.lock().unwrap_or_else(PoisonError::into_inner) = Some(bell);
    }
}

fn ended() -> DiskError {
    DiskError::new(DiskTrouble::Failed, "the thread that writes has ended")
}

/// What is under way is finished: a flush is waited for.
impl Drop for Worker {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // if it panicked, its jobs are never done
        }
    }
}

#[cfg(test)]
mod tests;
