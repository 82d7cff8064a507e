//! Events: taken, or told to a callback.

use std::sync::atomic::Ordering;

use consort::{Event as Told, Group, Stopped};

use crate::border::{Context, Handle, Out, export};
use crate::callback::{inside, within};
use crate::error::{Error, Status, TIMED_OUT};
use crate::event::{lend, stopped, take_back, vacant};
use crate::layout::{Event, OnEvent};
use crate::node::{timeout, would_deadlock};
use crate::stream::{Stream, with};

#[cold]
fn not_here() -> Error {
    Error::fixed(&(
        Status::Refused,
        c"this group's node is driven by consort_poll, which gives its events: take them there",
    ))
}

/// What `take` finds there just now. Lowers the descriptor where nothing is.
#[inline]
fn look<T>(
    stream: &Stream,
    mut take: impl FnMut(&Group) -> Result<Option<T>, Stopped>,
) -> Result<Option<T>, Error> {
    let group = stream.group.as_ref().ok_or_else(not_here)?;
    match take(group)? {
        Some(taken) => Ok(Some(taken)),
        None => {
            let Some(bell) = stream.bell.get() else { return Ok(None) };
            bell.lower();
            let taken = take(group);
            if !matches!(taken, Ok(None)) {
                bell.raise(); // there may be more
            }
            Ok(taken?)
        }
    }
}

/// Takes what is there, `most` at most, and lends it; or waits for one first.
fn next_many(stream: &Stream, timeout_ms: i64, events: Out<Event>, most: usize) -> Result<usize, Error> {
    // A place for each before it is taken: there may be no more of them.
    let mut place = Some(vacant()?);
    let mut taken = 0;
    let mut lent = |told| {
        if let Some(room) = place.take() {
            events.set_at(taken, lend(room, stream.shard, told));
            taken += 1;
        }
        if taken < most {
            place = vacant().ok();
        }
        place.is_some()
    };
    let mut some = |group: &Group, most| match group.try_recv_many(most, &mut lent)? {
        0 => Ok(None),
        taken => Ok(Some(taken)),
    };
    if look(stream, |group| some(group, most))?.is_none() {
        let first = wait(stream, timeout_ms)?.ok_or(TIMED_OUT)?;
        if lent(first)
            && let Some(group) = &stream.group
        {
            let _ = group.try_recv_many(most - 1, &mut lent); // that it stopped, the next call says
        }
    }
    Ok(taken)
}

fn wait(stream: &Stream, timeout_ms: i64) -> Result<Option<Told>, Error> {
    let group = stream.group.as_ref().ok_or_else(not_here)?;
    match timeout(timeout_ms)? {
        Some(within) if within.is_zero() => Ok(None),
        _ if inside() => Err(would_deadlock()),
        Some(within) => Ok(group.recv_timeout(within)?),
        None => Ok(Some(group.recv()?)),
    }
}

export! {
    fn consort_next(group: Handle, timeout_ms: i64, event: Out<Event>) {
        let event = event.check("event")?;
        with(group, |stream| {
            let vacant = vacant()?;
            let told = match look(stream, |group| group.try_recv())? {
                Some(told) => told,
                None => wait(stream, timeout_ms)?.ok_or(TIMED_OUT)?,
            };
            event.set(lend(vacant, stream.shard, told));
            Ok(())
        })
    }

    fn consort_next_many(group: Handle, timeout_ms: i64, events: Out<Event>, most: usize, taken: Out<usize>) {
        let (events, taken) = (events.array(most, "events")?, taken.check("taken")?);
        if most == 0 {
            return Err(Error::invalid("`most` is 0: pass how many events there is room for"));
        }
        with(group, |stream| {
            taken.set(next_many(stream, timeout_ms, events, most)?);
            Ok(())
        })
    }

    fn consort_listen(group: Handle, on_event: OnEvent, context: Context) {
        let on_event = on_event.ok_or_else(|| Error::invalid("`on_event` is NULL: pass the function to be called"))?;
        with(group, |stream| {
            let it = stream.group.clone().ok_or_else(not_here)?;
            if stream.is_listening.swap(true, Ordering::Relaxed) {
                return Err(Error::fixed(&(Status::Busy, c"this group's events go to a callback already")));
            }
            let shard = stream.shard;
            let tell = move |event: &Event| {
                within(|| on_event(context, &raw const *event));
                take_back(event);
            };
            let body = move || loop {
                // A million are lent: the program has to give some back.
                let Ok(room) = vacant() else {
                    std::thread::yield_now();
                    continue;
                };
                match it.recv() {
                    Ok(told) => tell(&lend(room, shard, told)),
                    Err(reason) => {
                        let reason: Stopped = reason;
                        return tell(&stopped(room, shard, reason));
                    }
                }
            };
            let name = format!("consort-c-{shard}");
            let started = stream.threads.start(|| std::thread::Builder::new().name(name).spawn(body));
            if !matches!(started, Ok(Ok(()))) {
                stream.is_listening.store(false, Ordering::Relaxed);
            }
            started?.map_err(|cause| {
                Error::new(Status::Machine, format_args!("can't get a thread to call you from: {cause}; raise the limit of threads"))
            })?;
            Ok(())
        })
    }
}
