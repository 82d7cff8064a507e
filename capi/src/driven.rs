//! Nodes that the program drives, on a thread of its own.

use consort::{Event as Told, Incoming, ShardId};

use crate::border::{Context, Handle, Out, export};
use crate::callback::{Answer, Ask, Calls, calls, inside};
use crate::error::Error;
use crate::event::{lend, passing, take_back, vacant};
use crate::layout::{Event, OnEvent};
use crate::node::{bound, with, would_deadlock};

type Call = extern "C" fn(Context, *const Event);

/// Tells the program of something.
#[inline(always)]
fn tell(calls: &Calls, call: Call, context: Context, shard: ShardId, incoming: Incoming<'_, '_>) {
    let Incoming::Message(delivery) = incoming else {
        return tell_other(calls, call, context, shard, incoming);
    };
    let event = passing(shard, delivery);
    let mut actor = |ask: Ask<'_>| match ask {
        Ask::Keep(data) if data == delivery.payload.as_ptr() => Answer::Loan(delivery.lend()),
        _ => Answer::Nothing,
    };
    calls.on_stage(&mut actor, || calls.within(|| call(context, &raw const event)));
}

#[cold]
fn tell_other(calls: &Calls, call: Call, context: Context, shard: ShardId, incoming: Incoming<'_, '_>) {
    let told = match incoming {
        Incoming::Waiting(absent) => Told::Waiting { for_whom: absent.to_vec() },
        Incoming::Evicted(reason) => Told::Evicted { reason: reason.clone() },
        Incoming::View(view) => Told::View(view.clone()),
        Incoming::Snapshot(request) => Told::Snapshot(request.clone()),
        Incoming::Restore(restore) => match restore.take() {
            Some(restore) => Told::Restore(restore),
            None => return,
        },
        Incoming::Ended(node) => Told::Ended { node },
        Incoming::ReadPoint(point) => Told::ReadPoint(point),
        Incoming::Digest(node, digest) => Told::Digest { node, digest },
        _ => return,
    };
    // A million are lent: this one is dropped unread, and what hangs on it is refused; the next call of the program says so.
    let Ok(vacant) = vacant() else { return };
    let event = lend(vacant, shard, told);
    calls.within(|| call(context, &raw const event));
    take_back(&event);
}

export! {
    fn consort_poll(node: Handle, on_event: OnEvent, context: Context, worked: Out<u32>) {
        let call = on_event.ok_or_else(|| Error::invalid("`on_event` is NULL: pass the function to be called"))?;
        with(node, |running| {
            let polled = running.driven(|node| {
                calls(|calls| node.poll_groups(&mut |shard, incoming| tell(calls, call, context, shard, incoming)))
            })?;
            worked.set(u32::from(polled?));
            Ok(())
        })
    }

    fn consort_drive(node: Handle, timeout_ms: i64, on_event: OnEvent, context: Context, told: Out<u32>) {
        let within = bound(timeout_ms)?;
        let call = on_event.ok_or_else(|| Error::invalid("`on_event` is NULL: pass the function to be called"))?;
        with(node, |running| {
            if inside() {
                return Err(would_deadlock());
            }
            let driven = running.driven(|node| {
                calls(|calls| node.drive(within, &mut |shard, incoming| tell(calls, call, context, shard, incoming)))
            })?;
            told.set(u32::from(driven?));
            Ok(())
        })
    }

    fn consort_wait(node: Handle) {
        with(node, |running| {
            if inside() {
                return Err(would_deadlock());
            }
            running.driven(|node| node.wait())
        })
    }
}
