//! Events, as they are lent to C: the struct that the program reads, and in a place of [`LENT`] what the library keeps for it.

use std::ffi::CString;
use std::fmt::Display;
use std::io::{self, Read};
use std::sync::Mutex;

use consort::{Loan, Message, Restore, ShardId, SnapshotRequest, Stopped};

use crate::border::{Context, In, InOut, Out, Text, export};
use crate::callback::{self, Answer, Ask, within};
use crate::error::{Error, Status};
use crate::layout::{
    DIGEST, DoneFn, ENDED, EVICTED, Event, MESSAGE, READ_POINT, RESTORE, ReadFn, SNAPSHOT, STOPPED, VIEW,
    WAITING,
};
use crate::lent::{Free, Here, Lent, Loanable, Vacant};
use crate::view::OwnedView;

/// What is behind an event that a program has.
#[expect(dead_code, reason = "most are there to be dropped")]
pub(crate) enum Held {
    Message(Message),
    /// A message that was kept past a call.
    Loan(Loan),
    View(OwnedView),
    Text(CString),
    Snapshot(SnapshotRequest),
    Restore(Restore),
    Nothing,
}

thread_local! {
    static HERE: Here = const { Here::new(&FREE) };
}

static FREE: Free = Mutex::new(Vec::new());

impl Loanable for Held {
    #[inline(always)]
    fn here<R>(body: impl FnOnce(&Here) -> R) -> Option<R> {
        HERE.try_with(body).ok()
    }

    fn free() -> &'static Free {
        &FREE
    }
}

static LENT: Lent<Held> = Lent::new();

/// Room for an event, to be had before the event is taken from where it is.
#[inline]
pub(crate) fn vacant() -> Result<Vacant<Held>, Error> {
    LENT.vacant().ok_or(Error::fixed(&(
        Status::Busy,
        c"a million events are lent: give them back with consort_release when they are read",
    )))
}

/// Lends an event.
#[inline]
pub(crate) fn lend(vacant: Vacant<Held>, shard: ShardId, event: consort::Event) -> Event {
    let none = Event { shard: shard.0, ..Event::NONE };
    let (mut event, held) = match event {
        consort::Event::Message(message) => {
            let payload = message.payload();
            let event = Event {
                kind: MESSAGE,
                node: message.sender.0,
                view: message.view.0,
                seq: message.seq.0,
                ticket: message.ticket.map_or(0, |ticket| ticket.0.0),
                stamp: message.stamp,
                data: payload.as_ptr(),
                len: payload.len(),
                ..none
            };
            (event, Held::Message(message))
        }
        consort::Event::Waiting { for_whom } => {
            let names: Vec<_> = for_whom.iter().map(ToString::to_string).collect();
            text(Event { kind: WAITING, ..none }, format_args!("waiting for {}", names.join(", ")))
        }
        consort::Event::Evicted { reason } => text(Event { kind: EVICTED, ..none }, reason),
        consort::Event::View(view) => {
            let held = OwnedView::new(&view);
            (Event { kind: VIEW, view: view.id.0, members: held.pointer(), ..none }, Held::View(held))
        }
        consort::Event::Snapshot(request) => {
            (Event { kind: SNAPSHOT, node: request.joiner().0, ..none }, Held::Snapshot(request))
        }
        consort::Event::Restore(restore) => {
            (Event { kind: RESTORE, number: restore.len(), ..none }, Held::Restore(restore))
        }
        consort::Event::Ended { node } => (Event { kind: ENDED, node: node.0, ..none }, Held::Nothing),
        consort::Event::ReadPoint(point) => {
            (Event { kind: READ_POINT, number: point.number(), ..none }, Held::Nothing)
        }
        consort::Event::Digest { node, digest } => {
            (Event { kind: DIGEST, node: node.0, number: digest, ..none }, Held::Nothing)
        }
        // A kind that this version of the border doesn't know: a program may pass it over.
        _ => (none, Held::Nothing),
    };
    event.lent = vacant.fill(held);
    event
}

/// The last event: the node stopped.
pub(crate) fn stopped(vacant: Vacant<Held>, shard: ShardId, reason: Stopped) -> Event {
    let error = Error::from(reason);
    let event = Event { kind: STOPPED, shard: shard.0, status: error.status() as i32, ..Event::NONE };
    let (mut event, held) = text(event, error.text());
    event.lent = vacant.fill(held);
    event
}

/// A message that is lent for a call only.
#[inline]
pub(crate) fn passing(shard: ShardId, message: &consort::Delivery<'_>) -> Event {
    Event {
        kind: MESSAGE,
        shard: shard.0,
        node: message.sender.0,
        view: message.view.0,
        seq: message.seq.0,
        ticket: message.ticket.map_or(0, |ticket| ticket.0.0),
        stamp: message.stamp,
        data: message.payload.as_ptr(),
        len: message.payload.len(),
        ..Event::NONE
    }
}

fn text(event: Event, text: impl Display) -> (Event, Held) {
    let text = CString::new(text.to_string().replace('\0', "?")).unwrap_or_default();
    (Event { text: text.as_ptr(), ..event }, Held::Text(text))
}

/// Takes back what a call was lent, unless it kept it.
pub(crate) fn take_back(event: &Event) {
    drop(LENT.take(event.lent));
}

#[cold]
fn not_lent() -> Error {
    Error::fixed(&(Status::BadHandle, c"this event is not lent (any more): it was released, or kept elsewhere, or its callback has returned"))
}

export! {
    fn consort_release(event: InOut<Event>) {
        let mut event = event;
        let event = event.value("event")?;
        let held = LENT.take(event.lent).ok_or_else(not_lent)?;
        *event = Event::NONE;
        drop(held);
        Ok(())
    }

    fn consort_release_many(events: InOut<Event>, count: usize) {
        let mut events = events;
        let events = events.slice(count, "events")?;
        let mut is_missing = false;
        Message::give_back(events.iter_mut().filter_map(|event| {
            if event.lent == 0 && event.kind == 0 {
                return None; // released before, and cleared
            }
            let held = LENT.take(event.lent);
            is_missing |= held.is_none();
            let held = held?;
            *event = Event::NONE;
            match held {
                Held::Message(message) => Some(message),
                _ => None,
            }
        }));
        if is_missing {
            return Err(Error::fixed(&(Status::BadHandle, c"one of these events is not lent (any more): it was released by a copy of its struct, or finished, or kept elsewhere; the others are released")));
        }
        Ok(())
    }

    fn consort_keep(event: In<Event>, kept: Out<Event>) {
        let (event, kept) = (*event.value("event")?, kept.check("kept")?);
        let vacant = vacant()?;
        let held = match LENT.take(event.lent) {
            Some(held) => held,
            None if event.lent == 0 && event.kind == MESSAGE => match callback::ask(Ask::Keep(event.data)) {
                Some(Answer::Loan(Some(loan))) => Held::Loan(loan),
                Some(Answer::Loan(None)) => {
                    return Err(Error::fixed(&(Status::Busy, c"this message is kept already, or too many are: release some, or copy what you need")));
                }
                _ => return Err(not_lent()),
            },
            None => return Err(not_lent()),
        };
        kept.set(Event { lent: vacant.fill(held), ..event });
        Ok(())
    }

    fn consort_snapshot_give(event: In<Event>, data: In<u8>, len: usize) {
        let state = data.slice(len, "data")?.to_vec();
        let request = request(event.value("event")?)?;
        request.give(io::Cursor::new(state));
        Ok(())
    }

    fn consort_snapshot_stream(event: In<Event>, read: ReadFn, done: DoneFn, context: Context) {
        let read = read.ok_or_else(|| Error::invalid("`read` is NULL: pass a function that gives the state, piece by piece"))?;
        let request = request(event.value("event")?)?;
        request.give(Pieces { read, done, context });
        Ok(())
    }

    fn consort_snapshot_refuse(event: In<Event>, reason: Text) {
        let reason = reason.required("reason")?;
        request(event.value("event")?)?.refuse(reason);
        Ok(())
    }

    fn consort_restore_read(event: In<Event>, buffer: Out<u8>, len: usize, got: Out<usize>) {
        let mut buffer = buffer;
        let (event, got) = (event.value("event")?, got.check("got")?);
        let buffer = buffer.buffer(len, "buffer")?;
        let read = borrow(event, |held| match held {
            Held::Restore(restore) => Ok(restore.read(buffer)),
            _ => Err(Error::invalid("this event brings no state to be restored: use it on CONSORT_RESTORE")),
        })?;
        got.set(read.map_err(|cause| Error::new(
            Status::Machine,
            format_args!("the state can't be read: {cause}; release the event without finishing, and the node stops"),
        ))?);
        Ok(())
    }

    fn consort_restore_finish(event: In<Event>) {
        let event = event.value("event")?;
        let held = LENT.take(event.lent).ok_or_else(not_lent)?;
        match held {
            Held::Restore(restore) => {
                restore.finish();
                Ok(())
            }
            _ => Err(Error::invalid("this event brought no state to be restored, and is released now: use this on CONSORT_RESTORE")),
        }
    }
}

fn request(event: &Event) -> Result<SnapshotRequest, Error> {
    borrow(event, |held| match held {
        Held::Snapshot(request) => Ok(request.clone()),
        _ => Err(Error::invalid("this event asks for no state: use it on CONSORT_SNAPSHOT")),
    })
}

/// Looks at what an event holds, which stays lent under the same ticket. For another thread it is gone meanwhile.
fn borrow<R>(event: &Event, body: impl FnOnce(&mut Held) -> Result<R, Error>) -> Result<R, Error> {
    LENT.with(event.lent, body).ok_or_else(not_lent)?
}

/// A snapshot that the program's function gives.
struct Pieces {
    read: extern "C" fn(Context, Out<u8>, usize, *mut usize) -> i32,
    done: DoneFn,
    context: Context,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut got = 0;
        let to = Out::of(buffer.as_mut_ptr());
        let status = within(|| (self.read)(self.context, to, buffer.len(), &raw mut got));
        match status {
            0 if got <= buffer.len() => Ok(got),
            0 => Err(io::Error::other("its function says that it wrote more than there was room for")),
            status => Err(io::Error::other(format!("its function gave {status}"))),
        }
    }
}

impl Drop for Pieces {
    fn drop(&mut self) {
        if let Some(done) = self.done {
            within(|| done(self.context));
        }
    }
}
