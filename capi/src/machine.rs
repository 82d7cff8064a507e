//! A state machine whose state and code are the program's: what a replica asks of it, and how its functions answer.

use std::io::{self, Cursor, Read};
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use consort::View;
use consort::object::{Bytes, Context as Place, Snapshot, StateMachine};

use crate::border::{Context, Handle, In, Out, export};
use crate::callback::{self, Answer, Ask, holding_state, on_stage, within};
use crate::error::{Error, Status};
use crate::handles::{Kind, Registry};
use crate::layout::{DoneFn, Machine, Update};
use crate::node::lock;
use crate::view::OwnedView;

/// Where a machine's functions write: open while one of them runs.
static WRITERS: Registry<Mutex<Option<Vec<u8>>>> = Registry::new(Kind::Writer);
/// Where they read from; what they read is on stage.
static READERS: Registry<()> = Registry::new(Kind::Reader);

/// A handle that is freed with its owner.
struct Writer(Handle);

impl Writer {
    fn new() -> Result<Self, Error> {
        Ok(Self(WRITERS.put(Mutex::new(None))?))
    }

    /// What `body` wrote.
    fn collect(&self, body: impl FnOnce(Handle) -> i32) -> (i32, Vec<u8>) {
        let Ok(writer) = WRITERS.find(self.0) else { return (-1, Vec::new()) }; // not reached: only the drop frees it
        *lock(&writer) = Some(Vec::new());
        let status = holding_state(|| body(self.0));
        let written = lock(&writer).take();
        (status, written.unwrap_or_default())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        drop(WRITERS.take(self.0));
    }
}

struct Reader(Handle);

impl Drop for Reader {
    fn drop(&mut self) {
        drop(READERS.take(self.0));
    }
}

/// See the [module](self).
pub(crate) struct Foreign {
    context: Context,
    apply: extern "C" fn(Context, *const Update, Handle) -> i32,
    snapshot: extern "C" fn(Context, Handle) -> i32,
    restore: extern "C" fn(Context, Handle) -> i32,
    view_changed: Option<extern "C" fn(Context, *const crate::layout::View)>,
    free: DoneFn,
    /// The replica has it for good, so that its end is this one's to tell.
    is_taken: Arc<AtomicBool>,
    reply: Writer,
    reader: Reader,
}

impl Foreign {
    pub(crate) fn new(machine: In<Machine>) -> Result<Self, Error> {
        let it = machine.sized(Machine::DEFAULT, "machine")?;
        let lacks = |name| {
            Error::invalid(format_args!(
                "the machine's `{name}` is NULL: without it members can't be kept the same"
            ))
        };
        let (apply, snapshot) =
            (it.apply.ok_or_else(|| lacks("apply"))?, it.snapshot.ok_or_else(|| lacks("snapshot"))?);
        let restore = it.restore.ok_or_else(|| lacks("restore"))?;
        let (reply, reader) = (Writer::new()?, Reader(READERS.put(())?));
        Ok(Self {
            context: it.context,
            apply,
            snapshot,
            restore,
            view_changed: it.view_changed,
            free: it.free,
            is_taken: Arc::default(),
            reply,
            reader,
        })
    }

    pub(crate) fn context(&self) -> Context {
        self.context
    }

    /// To be set when the replica is there.
    pub(crate) fn is_taken(&self) -> Arc<AtomicBool> {
        self.is_taken.clone()
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        if let (Some(free), true) = (self.free, self.is_taken.load(Ordering::Acquire)) {
            within(|| free(self.context));
        }
    }
}

/// What can't be done at one member could not be at the others: the state may be half changed, so the replica stops, as it does after a panic.
/// Told without the hook, for it is no bug of the library.
fn halt(what: &str, status: i32) -> ! {
    resume_unwind(Box::new(format!("the machine's `{what}` gave {status}")));
}

impl StateMachine for Foreign {
    type Update = Bytes;
    type Reply = Vec<u8>;

    fn apply(&mut self, place: &Place, update: Bytes) -> Vec<u8> {
        let update = Update {
            data: update.0.as_ptr(),
            len: update.0.len(),
            view: place.view.0,
            seq: place.seq.0,
            index: place.index,
            incarnation: place.life.0,
            node: place.sender.0,
            reserved: 0,
        };
        match self.reply.collect(|reply| (self.apply)(self.context, &raw const update, reply)) {
            (0, reply) => reply,
            (status, _) => halt("apply", status),
        }
    }

    fn snapshot(&self) -> Snapshot {
        // A writer of its own: digests and joiners may ask at once.
        let (status, state) = match Writer::new() {
            Ok(writer) => writer.collect(|to| (self.snapshot)(self.context, to)),
            Err(_) => (-1, Vec::new()),
        };
        match status {
            0 => Snapshot::new(Cursor::new(state)),
            status => Snapshot::new(Failed(status)),
        }
    }

    fn restore(&mut self, from: &mut dyn Read) -> io::Result<()> {
        let mut actor = |ask: Ask<'_>| match ask {
            Ask::Read(buffer) => Answer::Read(from.read(buffer)),
            Ask::Keep(_) => Answer::Nothing,
        };
        match on_stage(&mut actor, || holding_state(|| (self.restore)(self.context, self.reader.0))) {
            0 => Ok(()),
            status => Err(io::Error::other(format!("the machine's `restore` gave {status}"))),
        }
    }

    fn view_changed(&mut self, view: &View) {
        if let Some(call) = self.view_changed {
            let view = OwnedView::new(view);
            holding_state(|| call(self.context, view.pointer()));
        }
    }
}

/// A state that could not be written.
struct Failed(i32);

impl Read for Failed {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::Error::other(format!("the machine's `snapshot` gave {}", self.0)))
    }
}

export! {
    fn consort_write(writer: Handle, data: In<u8>, len: usize) {
        let data = data.slice(len, "data")?;
        WRITERS.with(writer, |slot| match &mut *lock(slot) {
            Some(written) => {
                written.extend_from_slice(data);
                Ok(())
            }
            None => Err(Error::fixed(&(Status::BadHandle, c"this writer is closed: write only while the function runs that it was given to"))),
        })
    }

    fn consort_read(reader: Handle, buffer: Out<u8>, len: usize, got: Out<usize>) {
        let mut buffer = buffer;
        let got = got.check("got")?;
        let buffer = buffer.buffer(len, "buffer")?;
        READERS.with(reader, |_| match callback::ask(Ask::Read(buffer)) {
            Some(Answer::Read(Ok(len))) => {
                got.set(len);
                Ok(())
            }
            Some(Answer::Read(Err(cause))) => Err(Error::new(
                Status::Machine,
                format_args!("the state can't be read: {cause}; give a number other than 0 from `restore`, and the replica stops"),
            )),
            _ => Err(Error::fixed(&(Status::BadHandle, c"this reader is closed: read only in the machine's `restore`, on the thread that it was called on"))),
        })
    }
}
