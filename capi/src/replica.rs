//! Replicas of the program's state machines.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use consort::object::{Answered, Options, Pending, QueryError, Replica, UpdateError};

use crate::border::{Context, Handle, In, Out, export, watch_forks};
use crate::bytes;
use crate::callback::{holding_state, holds_state, inside};
use crate::error::{Error, Status};
use crate::handles::{Kind, Registry};
use crate::layout::{Bytes, LINEARIZABLE, LOCAL, Look, Machine, NodeOptions, OnFresh, OnReplies, OnReply};
use crate::machine::Foreign;
use crate::node::{NODES, Replicas, bound, lock, over, timeout, would_deadlock};
use crate::options::builder;
use crate::outcome::{Then, lock_to_wait, not_yet, only_looks};
use crate::replies;
use crate::stream;

static REPLICAS: Registry<RwLock<Stage>> = Registry::new(Kind::Replica);

/// Where a replica is. Calls hold it by their own, which they get under the lock for reading: under the lock for writing it is known
/// whether there are any.
enum Stage {
    Works(Arc<Living>),
    /// Somebody ends it just now.
    Ends,
    /// It has left, and its machine is freed.
    Over,
}

struct Living {
    replica: Replica<Foreign>,
    /// On a node that others use too: it isn't freed before. After the replica, so that this goes first.
    node: Option<Arc<Replicas>>,
}

type Reply = Pending<Result<Vec<u8>, UpdateError>>;
type Replies = Pending<Answered<Vec<u8>>>;

/// What is waited for.
enum Awaited {
    /// The reply that was computed here,
    Own(Reply),
    /// or those of all members.
    All(Replies),
    /// It was given out.
    Nothing,
}

static PENDINGS: Registry<Mutex<Awaited>> = Registry::new(Kind::Pending);

/// A call on a replica. It holds the replica by its own, so that what ends it waits for nobody's wait.
fn with(handle: Handle, body: impl FnOnce(&Replica<Foreign>) -> Result<(), Error>) -> Result<(), Error> {
    REPLICAS.with(handle, |slot| {
        let living = match &*slot.read().unwrap_or_else(PoisonError::into_inner) {
            Stage::Works(living) => living.clone(),
            Stage::Ends | Stage::Over => return Err(over()),
        };
        body(&living.replica)
    })
}

fn submit(replica: &Replica<Foreign>, update: &[u8]) -> Result<Reply, Error> {
    if inside() {
        // It may have to wait for room, or for the group to start.
        return Err(would_deadlock());
    }
    Ok(replica.submit(&consort::object::Bytes(update.to_vec()))?)
}

fn submit_all(replica: &Replica<Foreign>, update: &[u8]) -> Result<Replies, Error> {
    if inside() {
        // As there; or for one of those that are under way.
        return Err(would_deadlock());
    }
    Ok(replica.submit_all(&consort::object::Bytes(update.to_vec()))?)
}

/// A handle for what `submit` makes.
fn pending(out: Out<Handle>, submit: impl FnOnce() -> Result<Awaited, Error>) -> Result<(), Error> {
    let handle = PENDINGS.put(Mutex::new(Awaited::Nothing))?;
    match submit() {
        Ok(awaited) => {
            let slot = PENDINGS.find(handle)?;
            *lock(&slot) = awaited;
            out.set(handle);
            Ok(())
        }
        Err(error) => {
            PENDINGS.take(handle)?;
            Err(error)
        }
    }
}

/// How long a call may wait that is here with such a timeout; `None` is for ever.
fn limit(timeout_ms: i64) -> Result<Option<Duration>, Error> {
    let limit = timeout(timeout_ms)?;
    Ok(if only_looks(timeout_ms) { Some(Duration::ZERO) } else { limit })
}

/// The same again if it isn't there by then.
fn wait<T>(it: Pending<T>, limit: Option<Duration>) -> Result<T, Pending<T>> {
    match limit {
        None => Ok(it.wait()),
        Some(limit) => it.wait_timeout(limit),
    }
}

#[cold]
fn given_out() -> Error {
    Error::fixed(&(Status::BadHandle, c"this reply was given out already: free what waited for it"))
}

/// Where a reply goes, if it is wanted: to be had before the update is sent, which can't be undone.
fn place(reply: &Out<Bytes>) -> Result<Option<bytes::Place>, Error> {
    reply.is_wanted().then(bytes::place).transpose()
}

fn give(place: Option<bytes::Place>, answer: Vec<u8>, reply: Out<Bytes>) {
    if let Some(place) = place {
        reply.set(place.lend(answer));
    }
}

/// Ends it: nobody's call is in it when this returns, and its machine is freed.
fn end(handle: Handle, how: impl FnOnce(Replica<Foreign>) -> Result<(), Error>) -> Result<(), Error> {
    struct Over<'a>(&'a RwLock<Stage>);
    impl Drop for Over<'_> {
        fn drop(&mut self) {
            *self.0.write().unwrap_or_else(PoisonError::into_inner) = Stage::Over;
        }
    }
    if inside() {
        return Err(would_deadlock());
    }
    REPLICAS.with(handle, |slot| {
        let mut stage = slot.write().unwrap_or_else(PoisonError::into_inner);
        let living = match std::mem::replace(&mut *stage, Stage::Ends) {
            Stage::Works(living) => match Arc::try_unwrap(living) {
                Ok(living) => living,
                Err(living) => {
                    *stage = Stage::Works(living);
                    return Err(Error::fixed(&(Status::Busy, c"another thread is in a call on this replica: stop it with consort_replica_stop, which lets such calls go, and try again when they are back")));
                }
            },
            Stage::Ends => return Err(Error::fixed(&(Status::Busy, c"another thread ends this replica just now: wait until it has, and free it then"))),
            Stage::Over => {
                *stage = Stage::Over;
                return Err(over());
            }
        };
        drop(stage);
        let _over = Over(slot);
        let Living { replica, node } = living;
        let ended = how(replica);
        drop(node); // the replica is no more, so the node may be freed
        ended
    })
}

/// A machine is taken over with the replica, or not at all.
fn make(
    machine: In<Machine>,
    node: Option<Arc<Replicas>>,
    start: impl FnOnce(Foreign) -> Result<Replica<Foreign>, Error>,
    out: Out<Handle>,
) -> Result<(), Error> {
    let machine = Foreign::new(machine)?;
    let is_taken = machine.is_taken();
    let handle = REPLICAS.put(RwLock::new(Stage::Over))?;
    match (start(machine), REPLICAS.find(handle)) {
        (Ok(replica), Ok(slot)) => {
            let living = Stage::Works(Arc::new(Living { replica, node }));
            *slot.write().unwrap_or_else(PoisonError::into_inner) = living;
            is_taken.store(true, Ordering::Release);
            out.set(handle);
            Ok(())
        }
        (Err(error), _) | (_, Err(error)) => {
            REPLICAS.take(handle)?;
            Err(error)
        }
    }
}

export! {
    fn consort_replica_new(options: In<NodeOptions>, machine: In<Machine>, replica: Out<Handle>) {
        watch_forks();
        let replica = replica.check("replica")?;
        let (builder, every) = builder(options)?;
        let start = |machine| Ok(Replica::start_with(builder, machine, Options::default().digest_every(every))?);
        make(machine, None, start, replica)
    }

    fn consort_replica_on(node: Handle, group: Handle, digest_every: u64, machine: In<Machine>, replica: Out<Handle>) {
        let replica = replica.check("replica")?;
        let of = node.token();
        NODES.with(node, |running| running.own_for(|node, replicas| {
            stream::with(group, |it| {
                let Some(group) = &it.group else { return Err(over()) };
                if it.node.token() != of {
                    return Err(Error::invalid("the group is not this node's: get it from consort_node_group with the same node"));
                }
                let options = Options::default().digest_every(digest_every);
                make(machine, Some(replicas), |machine| Ok(Replica::on(node, group, machine, options)?), replica)
            })
        })?)
    }

    fn consort_replica_update(replica: Handle, update: In<u8>, len: usize, reply: Out<Bytes>) {
        let update = update.slice(len, "update")?;
        with(replica, |it| {
            let place = place(&reply)?;
            give(place, submit(it, update)?.wait()?, reply);
            Ok(())
        })
    }

    fn consort_replica_submit(replica: Handle, update: In<u8>, len: usize, pending: Out<Handle>) {
        let out = pending.check("pending")?;
        let update = update.slice(len, "update")?;
        with(replica, |it| self::pending(out, || Ok(Awaited::Own(submit(it, update)?))))
    }

    fn consort_replica_submit_then(replica: Handle, update: In<u8>, len: usize, on_reply: OnReply, context: Context) {
        let call = on_reply.ok_or_else(|| Error::invalid("`on_reply` is NULL: pass the function to be called"))?;
        let update = update.slice(len, "update")?;
        with(replica, |it| {
            Then::start(submit(it, update)?, move |result: Result<Vec<u8>, UpdateError>| match result {
                Ok(reply) => call(context, Status::Ok as i32, reply.as_ptr().cast(), reply.len()),
                Err(error) => call(context, Error::from(error).tell() as i32, std::ptr::null(), 0),
            });
            Ok(())
        })
    }

    fn consort_replica_update_all(replica: Handle, update: In<u8>, len: usize, replies: Out<Handle>) {
        let out = replies.check("replies")?;
        let update = update.slice(len, "update")?;
        with(replica, |it| {
            let place = replies::place()?;
            out.set(place.fill(submit_all(it, update)?.wait()?));
            Ok(())
        })
    }

    fn consort_replica_submit_all(replica: Handle, update: In<u8>, len: usize, pending: Out<Handle>) {
        let out = pending.check("pending")?;
        let update = update.slice(len, "update")?;
        with(replica, |it| self::pending(out, || Ok(Awaited::All(submit_all(it, update)?))))
    }

    fn consort_replica_submit_all_then(replica: Handle, update: In<u8>, len: usize, on_replies: OnReplies, context: Context) {
        let call = on_replies.ok_or_else(|| Error::invalid("`on_replies` is NULL: pass the function to be called"))?;
        let update = update.slice(len, "update")?;
        with(replica, |it| {
            Then::start(submit_all(it, update)?, move |result: Answered<Vec<u8>>| match result {
                Ok(replies) => {
                    let told = replies::Told::new(replies);
                    call(context, Status::Ok as i32, told.all().as_ptr(), told.all().len());
                }
                Err(error) => call(context, Error::from(error).tell() as i32, std::ptr::null(), 0),
            });
            Ok(())
        })
    }

    fn consort_pending_wait(pending: Handle, timeout_ms: i64, reply: Out<Bytes>) {
        let limit = limit(timeout_ms)?;
        PENDINGS.with(pending, |slot| {
            let mut slot = lock_to_wait(slot, timeout_ms)?;
            let place = place(&reply)?; // before the reply is taken, which there is once
            let it = match std::mem::replace(&mut *slot, Awaited::Nothing) {
                Awaited::Own(it) => it,
                Awaited::All(it) => {
                    *slot = Awaited::All(it);
                    return Err(Error::invalid("this waits for the replies of all members: use consort_pending_wait_all"));
                }
                Awaited::Nothing => return Err(given_out()),
            };
            match wait(it, limit) {
                Ok(result) => give(place, result?, reply),
                Err(it) => {
                    *slot = Awaited::Own(it);
                    return Err(not_yet(timeout_ms));
                }
            }
            Ok(())
        })
    }

    fn consort_pending_wait_all(pending: Handle, timeout_ms: i64, replies: Out<Handle>) {
        let limit = limit(timeout_ms)?;
        let out = replies.check("replies")?;
        PENDINGS.with(pending, |slot| {
            let mut slot = lock_to_wait(slot, timeout_ms)?;
            let place = replies::place()?; // before the replies are taken, which there are once
            let it = match std::mem::replace(&mut *slot, Awaited::Nothing) {
                Awaited::All(it) => it,
                Awaited::Own(it) => {
                    *slot = Awaited::Own(it);
                    return Err(Error::invalid("this waits for the reply that is computed here: use consort_pending_wait"));
                }
                Awaited::Nothing => return Err(given_out()),
            };
            match wait(it, limit) {
                Ok(result) => out.set(place.fill(result?)),
                Err(it) => {
                    *slot = Awaited::All(it);
                    return Err(not_yet(timeout_ms));
                }
            }
            Ok(())
        })
    }

    fn consort_pending_free(pending: Handle) {
        PENDINGS.take(pending).map(drop)
    }

    fn consort_replica_query(replica: Handle, how: u32, look: Look, context: Context) {
        let look = look.ok_or_else(|| Error::invalid("`look` is NULL: pass the function that reads the state"))?;
        with(replica, |it| {
            if holds_state() {
                // A lock for reading that is taken again waits for a writer that waits for this thread.
                return Err(would_deadlock());
            }
            let read = |machine: &Foreign| holding_state(|| look(context, machine.context()));
            match how {
                LOCAL => Ok(it.query_local(read)?),
                LINEARIZABLE if inside() => Err(would_deadlock()),
                LINEARIZABLE => Ok(it.query(read)?),
                other => Err(Error::invalid(format_args!("`how` is {other}: take CONSORT_LOCAL or CONSORT_LINEARIZABLE"))),
            }
        })
    }

    fn consort_replica_fresh_then(replica: Handle, on_fresh: OnFresh, context: Context) {
        let call = on_fresh.ok_or_else(|| Error::invalid("`on_fresh` is NULL: pass the function to be called"))?;
        with(replica, |it| {
            Then::start(it.fresh()?, move |result: Result<(), QueryError>| match result {
                Ok(()) => call(context, Status::Ok as i32),
                Err(error) => call(context, Error::from(error).tell() as i32),
            });
            Ok(())
        })
    }

    fn consort_replica_applied(replica: Handle, applied: Out<u64>) {
        let applied = applied.check("applied")?;
        with(replica, |it| {
            applied.set(it.applied());
            Ok(())
        })
    }

    fn consort_replica_check(replica: Handle) {
        with(replica, |it| match it.halted() {
            Some(why) => Err(UpdateError::Stopped(why).into()),
            None => Ok(()),
        })
    }

    fn consort_replica_leave(replica: Handle, timeout_ms: i64) {
        let within = bound(timeout_ms)?;
        end(replica, |it| Ok(it.close(within)?))
    }

    fn consort_replica_stop(replica: Handle) {
        with(replica, |it| {
            it.stop();
            Ok(())
        })
    }

    fn consort_replica_free(replica: Handle) {
        match end(replica, |it| {
            drop(it);
            Ok(())
        }) {
            Err(error) if !matches!(error.status(), Status::Stopped | Status::Panicked) => Err(error),
            _ => REPLICAS.take(replica).map(drop),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{SHM, Update};

    extern "C" fn apply(_: Context, _: *const Update, _: Handle) -> i32 {
        0
    }

    extern "C" fn nothing(_: Context, _: Handle) -> i32 {
        0
    }

    #[test]
    fn an_update_whose_reply_has_no_place_is_not_sent() {
        let options = NodeOptions { id: 1, fabric: SHM, ring_bytes: 65_536, ..NodeOptions::DEFAULT };
        let machine = Machine {
            apply: Some(apply),
            snapshot: Some(nothing),
            restore: Some(nothing),
            ..Machine::DEFAULT
        };
        let (mut replica, mut pending) = (Handle::of(0), Handle::of(0));
        let mut reply = Bytes { data: std::ptr::null(), len: 0, lent: 0 };
        let made = consort_replica_new(
            In::of(&raw const options),
            In::of(&raw const machine),
            Out::to(&raw mut replica),
        );
        assert_eq!(made, Status::Ok as i32);
        let none = In::of(std::ptr::null());
        let update = |reply| consort_replica_update(replica, none, 0, reply);
        let applied = || {
            let mut applied = 0;
            assert_eq!(consort_replica_applied(replica, Out::to(&raw mut applied)), Status::Ok as i32);
            applied
        };
        assert_eq!(consort_replica_submit(replica, none, 0, Out::to(&raw mut pending)), Status::Ok as i32);
        assert_eq!(update(Out::to(std::ptr::null_mut())), Status::Ok as i32);
        let places: Vec<_> = std::iter::from_fn(|| bytes::place().ok()).collect();
        assert_eq!((update(Out::to(&raw mut reply)), applied()), (Status::Busy as i32, 2));
        assert_eq!(consort_pending_wait(pending, -1, Out::to(&raw mut reply)), Status::Busy as i32);
        drop(places);
        assert_eq!((update(Out::to(&raw mut reply)), applied()), (Status::Ok as i32, 3));
        assert_eq!(
            consort_pending_wait(pending, -1, Out::to(&raw mut reply)),
            Status::Ok as i32,
            "it is there still"
        );
        assert_eq!(consort_replica_free(replica), Status::Ok as i32);
    }
}
