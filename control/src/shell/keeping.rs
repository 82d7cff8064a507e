//! [`Keeping`]: a snapshot that the application gives for its own node's log (P4), read and written by a thread of its own. The engine asks for it
//! ([`super::durable::ShardLog`]), and lets what it covers go when it is flushed and has its name.

use std::io::{Error, ErrorKind, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use consort_dataplane::fabric::Doorbell;
use consort_dataplane::log::{Disk, DiskError, DiskTrouble, From, Index, Reader, Tip, snapshot};
use consort_dataplane::names::NodeId;

/// Bytes of the state that are read at once.
const PART: usize = 1 << 20;

/// The application's end of one request. See the [module](self).
pub(crate) struct Keeping {
    node: NodeId,
    bell: Doorbell,
    /// Until it is answered.
    open: Mutex<Option<Open>>,
    kept: Arc<Kept>,
}

/// The log's end.
#[derive(Default)]
pub(crate) struct Kept {
    made: Mutex<Option<Made>>,
    is_over: AtomicBool,
}

/// Behind which record there is a snapshot now, and how many bytes its file has; or why there is none.
pub(crate) type Made = Result<(Tip, u64), String>;

struct Open {
    disk: Box<dyn Disk>,
    /// Behind which record, in which view the application was asked.
    place: Option<(Index, Vec<u8>)>,
}

impl Keeping {
    /// A request that is to be told. `disk` is where the log is, for another thread.
    pub(crate) fn new(node: NodeId, disk: Box<dyn Disk>, bell: Doorbell) -> (Arc<Self>, Arc<Kept>) {
        let open = Mutex::new(Some(Open { disk, place: None }));
        let kept = Arc::new(Kept::default());
        (Arc::new(Self { node, bell, open, kept: kept.clone() }), kept)
    }

    pub(crate) fn node(&self) -> NodeId {
        self.node
    }

    /// The application is asked now, behind this record.
    pub(crate) fn told_at(&self, place: Option<(Index, Vec<u8>)>) {
        if let Some(open) = &mut *self.open() {
            open.place = place;
        }
    }

    pub(crate) fn give(keeping: &Arc<Self>, snapshot: impl Read + Send + 'static) {
        let Some(open) = keeping.open().take() else { return };
        let this = keeping.clone();
        let body = move || this.end(write(open, snapshot).map_err(|error| error.to_string()));
        if let Err(cause) = std::thread::Builder::new().name("consort-snapshot".to_owned()).spawn(body) {
            keeping.end(Err(format!("no thread to write it: {cause}")));
        }
    }

    pub(crate) fn refuse(&self, reason: &str) {
        if self.open().take().is_some() {
            self.end(Err(reason.to_owned()));
        }
    }

    /// As `give`, by the calling thread.
    #[cfg(test)]
    pub(crate) fn give_at_once(&self, snapshot: impl Read) {
        let open = self.open().take();
        if let Some(open) = open {
            self.end(write(open, snapshot).map_err(|error| error.to_string()));
        }
    }

    fn open(&self) -> MutexGuard<'_, Option<Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, made: Made) {
        *self.kept.made.lock().unwrap_or_else(PoisonError::into_inner) = Some(made);
        self.kept.is_over.store(true, Ordering::Release);
        self.bell.ring();
    }
}

impl Drop for Keeping {
    fn drop(&mut self) {
        // Or whoever reads it has panicked.
        if !self.kept.is_over() {
            self.end(Err("its application gave none".to_owned()));
        }
    }
}

impl Kept {
    /// Whether it is answered.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire) // pairs with the Release in `end`: what was made is there
    }

    /// What came of it, if it is answered.
    pub(crate) fn take(&self) -> Option<Made> {
        if self.is_over() { self.made.lock().unwrap_or_else(PoisonError::into_inner).take() } else { None }
    }
}

/// Writes it beside the log.
fn write(open: Open, mut state: impl Read) -> Result<(Tip, u64), DiskError> {
    let failed = |what: &str| DiskError::new(DiskTrouble::Failed, what);
    let Open { mut disk, place: Some((index, view)) } = open else {
        return Err(failed("it was not asked for"));
    };
    let mut reader =
        Reader::open(disk.beside(), From::Index(index)).map_err(|error| failed(&error.to_string()))?;
    let is_there = reader.read().map_err(|error| failed(&error.to_string()))?.is_some();
    let tip = *reader.tip();
    if !is_there || tip.index != index {
        return Err(failed(&format!("record {index} can't be read")));
    }
    let bytes = snapshot::write(&mut *disk, &tip, &view, &mut |part| {
        part.resize(PART, 0);
        let mut got = 0;
        while got < part.len() {
            match state.read(&mut part[got..]) {
                Ok(0) => break,
                Ok(more) => got += more.min(part.len() - got),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(unread(&error)),
            }
        }
        part.truncate(got);
        Ok(())
    })?;
    Ok((tip, bytes))
}

fn unread(error: &Error) -> DiskError {
    DiskError::new(DiskTrouble::Failed, format!("what the application gives can't be read: {error}"))
}
