//! Groups: found by name, sent to.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use consort::{NodeId, SendError, Ticket};

use crate::border::{Context, Handle, In, InOut, Out, Text, export};
use crate::callback::{inside, within};
use crate::error::{Error, Status};
use crate::fd::Bell;
use crate::layout::{GroupInfo, Message, Room, WriteFn};
use crate::node::{Engine, NODES, lock, over, would_deadlock};
use crate::options::number_of;
use crate::outcome;
use crate::room::{self, refused, reserve, reserve_to};
use crate::stream::{GROUPS, Lease, Stream, forget, lease, with};

#[inline(always)]
fn lend(group: Handle, len: usize, room: Out<Room>, block: bool) -> Result<(), Error> {
    let room = room.check("room")?;
    let lease = lease(group)?;
    room.set(room::lend(lease, None, len, block)?);
    Ok(())
}

#[inline(always)]
fn multicast(group: Handle, data: In<u8>, len: usize, ticket: Out<u64>, block: bool) -> Result<(), Error> {
    let data = data.slice(len, "data")?;
    with(group, |lease| {
        // As a batch of one: a reservation would have to be moved from call to call.
        let sent = lease.sender.try_send_many(std::iter::once(data), |sent| ticket.set(sent.0.0));
        sent.or_else(|error| {
            let mut room = refused(error, block, || lease.sender.reserve(len))?;
            room.copy_from_slice(data);
            ticket.set(room.send().0.0);
            Ok(())
        })
    })
}

/// The messages of a batch that were sent.
struct Told<'a> {
    tickets: &'a Out<u64>,
    done: usize,
}

impl Told<'_> {
    #[inline]
    fn add(&mut self, ticket: Ticket) {
        self.tickets.set_at(self.done, ticket.0.0);
        self.done += 1;
    }
}

/// Sends of a batch as many as there is room for, by `fit`; or who blocks waits for room, as far as that may be waited for, of `len` bytes for the
/// one that `fill` then writes. `wrong` is with the message after the last. What goes wrong is an error only if nothing was sent:
/// else the next call, which begins with that message, runs into it.
#[inline(always)]
fn many(
    lease: &Lease,
    (tickets, sent): (&Out<u64>, Out<usize>),
    block: bool,
    wrong: Option<Error>,
    mut fit: impl FnMut(&mut Told<'_>) -> Result<(), SendError>,
    (len, mut fill): (impl Fn(usize) -> usize, impl FnMut(usize, &mut [u8])),
) -> Result<(), Error> {
    let mut told = Told { tickets, done: 0 };
    let why = loop {
        let Err(error) = fit(&mut told) else { break wrong };
        // The one that has found no room.
        let at = told.done;
        match refused(error, block, || lease.sender.reserve(len(at))) {
            Ok(mut room) => {
                fill(at, &mut room);
                told.add(room.send());
            }
            Err(error) => break Some(error),
        }
    };
    match why {
        Some(error) if told.done == 0 => Err(error),
        _ => {
            sent.set(told.done);
            Ok(())
        }
    }
}

fn multicast_many(
    group: Handle,
    (messages, count): (&In<Message>, usize),
    tickets: Out<u64>,
    sent: Out<usize>,
    block: bool,
) -> Result<(), Error> {
    let sent = sent.check("sent")?;
    let messages = messages.slice(count, "messages")?;
    with(group, |lease| {
        // Found out beforehand, so that it is known how many are to come: room is claimed for many at once.
        let mut wrong = None;
        let mut is_good = |message: &Message| bytes_of(message).map_err(|error| wrong = Some(error)).is_ok();
        let good = &messages[..messages.iter().take_while(|message| is_good(message)).count()];
        many(
            lease,
            (&tickets, sent),
            block,
            wrong,
            |told| {
                lease
                    .sender
                    .try_send_many(good[told.done..].iter().map(good_bytes), |ticket| told.add(ticket))
            },
            (|at| good_bytes(&good[at]).len(), |at, room| room.copy_from_slice(good_bytes(&good[at]))),
        )
    })
}

fn write_many(
    group: Handle,
    (lengths, count): (&In<usize>, usize),
    (write, context): (WriteFn, Context),
    tickets: Out<u64>,
    sent: Out<usize>,
    block: bool,
) -> Result<(), Error> {
    let write =
        write.ok_or_else(|| Error::invalid("`write` is NULL: pass the function that writes a message"))?;
    let sent = sent.check("sent")?;
    let lengths = lengths.slice(count, "lengths")?;
    let fill = |at: usize, room: &mut [u8]| within(|| write(context, at, room.as_mut_ptr(), room.len()));
    with(group, |lease| {
        many(
            lease,
            (&tickets, sent),
            block,
            None,
            |told| {
                let (rest, mut at) = (lengths[told.done..].iter().copied(), told.done);
                let fill = |room: &mut [u8]| {
                    fill(at, room);
                    at += 1;
                };
                lease.sender.try_write_many(rest, fill, |ticket| told.add(ticket))
            },
            (|at| lengths[at], fill),
        )
    })
}

#[inline]
fn bytes_of(message: &Message) -> Result<&[u8], Error> {
    message.data.slice(message.len, "data")
}

/// Of one that was found to be good.
#[inline]
fn good_bytes(message: &Message) -> &[u8] {
    bytes_of(message).unwrap_or_default()
}

/// The most nodes that a list of destinations may name.
const DESTINATIONS: usize = 64;

/// Calls `act` with a list of destinations.
fn with_nodes<T>(
    nodes: &In<u32>,
    count: usize,
    act: impl FnOnce(&[NodeId]) -> Result<T, Error>,
) -> Result<T, Error> {
    if count > DESTINATIONS {
        return Err(Error::invalid(format_args!(
            "`count`: {count} destinations; a group has at most {DESTINATIONS} members, so name each once"
        )));
    }
    let mut list = [NodeId(0); DESTINATIONS];
    for (place, node) in list.iter_mut().zip(nodes.slice(count, "nodes")?) {
        *place = NodeId(*node);
    }
    act(&list[..count])
}

fn lend_to(
    group: Handle,
    (nodes, count): (&In<u32>, usize),
    len: usize,
    room: Out<Room>,
    block: bool,
) -> Result<(), Error> {
    let room = room.check("room")?;
    with_nodes(nodes, count, |to| {
        room.set(room::lend(lease(group)?, Some(to), len, block)?);
        Ok(())
    })
}

export! {
    fn consort_reserve_to(group: Handle, nodes: In<u32>, count: usize, len: usize, room: Out<Room>) {
        lend_to(group, (&nodes, count), len, room, true)
    }

    fn consort_try_reserve_to(group: Handle, nodes: In<u32>, count: usize, len: usize, room: Out<Room>) {
        lend_to(group, (&nodes, count), len, room, false)
    }

    fn consort_multicast_to(group: Handle, nodes: In<u32>, count: usize, data: In<u8>, len: usize, ticket: Out<u64>) {
        let data = data.slice(len, "data")?;
        with_nodes(&nodes, count, |to| {
            with(group, |lease| {
                let mut room = reserve_to(lease, to, len, true)?;
                room.copy_from_slice(data);
                ticket.set(room.send().0.0);
                Ok(())
            })
        })
    }

    fn consort_node_group(node: Handle, name: Text, shard: u32, group: Out<Handle>) {
        let group = group.check("group")?;
        let name = name.optional("name")?.unwrap_or(consort::config::MAIN);
        NODES.with(node, |running| {
            let Some(shape) = running.shapes.iter().find(|shape| shape.name == name) else {
                let names: Vec<_> = running.shapes.iter().map(|shape| &*shape.name).collect();
                return Err(Error::invalid(format_args!(
                    "this node has no group {name:?}: it has {}; others are set in its options",
                    names.join(", ")
                )));
            };
            let index = shard as usize;
            if index >= shape.shards {
                return Err(Error::invalid(format_args!("group {name} has no shard {shard}: it has {}, from 0", shape.shards)));
            }
            let (found, id, sender) = match &running.engine {
                Engine::Own(_) => running.own(|node| {
                    let found = node.group(name).and_then(|group| group.shard(index));
                    found.map(|group| (Some(group.clone()), group.id(), group.sender()))
                })?,
                Engine::Driven(_) => running
                    .driven(|node| node.sender_of(name, index))?
                    .map(|(id, sender)| (None, id, sender)),
            }
            .ok_or_else(|| Error::invalid(format_args!("this node has no shard {shard} of group {name:?}")))?;
            group.set(GROUPS.put(Stream {
                shard: id,
                index: shard,
                shape: shape.clone(),
                sender,
                group: found,
                node,
                bell: OnceLock::new(),
                threads: running.threads.clone(),
                is_listening: AtomicBool::new(false),
            })?);
            Ok(())
        })
    }

    fn consort_group_free(group: Handle) {
        GROUPS.take(group)?;
        forget();
        Ok(())
    }

    fn consort_group_info_of(group: Handle, info: Out<GroupInfo>) {
        let known = info.check("info")?;
        with(group, |lease| {
            let size = known.struct_size("info")?;
            let shape = &lease.shape;
            known.set_sized(size, GroupInfo {
                struct_size: size,
                ring_bytes: shape.ring_bytes as u64,
                shard: lease.shard.0,
                index: lease.index,
                shards: shape.shards as u32,
                guarantee: number_of(shape.guarantee),
                state: u32::from(shape.state),
                reserved: 0,
            });
            Ok(())
        })
    }

    fn consort_group_max_len(group: Handle, max_len: Out<usize>) {
        let max_len = max_len.check("max_len")?;
        with(group, |lease| {
            max_len.set(lease.sender.max_len().ok_or(SendError::NotStarted)?);
            Ok(())
        })
    }

    fn consort_group_fd(group: Handle, fd: Out<i32>) {
        let fd = fd.check("fd")?;
        with(group, |lease| {
            let Some(it) = &lease.group else {
                return Err(Error::fixed(&(Status::Refused, c"a node that the caller drives has no descriptor: call consort_drive, or consort_poll and consort_wait")));
            };
            if lease.bell.get().is_none() {
                let ended = |error: Error| if error.status() == Status::BadHandle { over() } else { error };
                NODES.with(lease.node, |running| {
                    let mut bells = lock(&running.bells);
                    let bell = match bells.get(&lease.shard.0) {
                        Some(bell) => bell.clone(),
                        None => {
                            let bell = Arc::new(Bell::new()?);
                            let raised = bell.clone();
                            it.set_waker(move || raised.raise());
                            bells.insert(lease.shard.0, bell.clone());
                            bell
                        }
                    };
                    bell.raise(); // there may be something already
                    let _ = lease.bell.set(bell);
                    Ok(())
                })
                .map_err(ended)?;
            }
            fd.set(lease.bell.get().map_or(-1, |bell| bell.number()));
            Ok(())
        })
    }

    fn consort_reserve(group: Handle, len: usize, room: Out<Room>) {
        lend(group, len, room, true)
    }

    fn consort_try_reserve(group: Handle, len: usize, room: Out<Room>) {
        lend(group, len, room, false)
    }

    fn consort_send(room: InOut<Room>, ticket: Out<u64>) {
        let mut room = room;
        ticket.set(room::take(room.value("room")?)?.send());
        Ok(())
    }

    fn consort_send_tracked(room: InOut<Room>, outcome: Out<Handle>) {
        let mut room = room;
        let outcome = outcome.check("outcome")?;
        let place = outcome::place()?;
        outcome.set(place.fill(room::take(room.value("room")?)?.send_tracked()));
        Ok(())
    }

    fn consort_cancel(room: InOut<Room>) {
        let mut room = room;
        drop(room::take(room.value("room")?)?);
        Ok(())
    }

    fn consort_multicast(group: Handle, data: In<u8>, len: usize, ticket: Out<u64>) {
        multicast(group, data, len, ticket, true)
    }

    fn consort_try_multicast(group: Handle, data: In<u8>, len: usize, ticket: Out<u64>) {
        multicast(group, data, len, ticket, false)
    }

    fn consort_multicast_many(group: Handle, messages: In<Message>, count: usize, tickets: Out<u64>, sent: Out<usize>) {
        multicast_many(group, (&messages, count), tickets, sent, true)
    }

    fn consort_try_multicast_many(group: Handle, messages: In<Message>, count: usize, tickets: Out<u64>, sent: Out<usize>) {
        multicast_many(group, (&messages, count), tickets, sent, false)
    }

    fn consort_write_many(
        group: Handle,
        lengths: In<usize>,
        count: usize,
        write: WriteFn,
        context: Context,
        tickets: Out<u64>,
        sent: Out<usize>,
    ) {
        write_many(group, (&lengths, count), (write, context), tickets, sent, true)
    }

    fn consort_try_write_many(
        group: Handle,
        lengths: In<usize>,
        count: usize,
        write: WriteFn,
        context: Context,
        tickets: Out<u64>,
        sent: Out<usize>,
    ) {
        write_many(group, (&lengths, count), (write, context), tickets, sent, false)
    }

    fn consort_multicast_tracked(group: Handle, data: In<u8>, len: usize, outcome: Out<Handle>) {
        let outcome = outcome.check("outcome")?;
        let data = data.slice(len, "data")?;
        let place = outcome::place()?;
        with(group, |lease| {
            let mut room = reserve(lease, len, true)?;
            room.copy_from_slice(data);
            outcome.set(place.fill(room.send_tracked()));
            Ok(())
        })
    }

    fn consort_end(group: Handle) {
        with(group, |lease| {
            if inside() {
                return Err(would_deadlock());
            }
            Ok(lease.sender.end()?)
        })
    }

    fn consort_read_point(group: Handle, point: Out<u64>) {
        let point = point.check("point")?;
        with(group, |lease| {
            point.set(lease.sender.read_point()?.number());
            Ok(())
        })
    }

    fn consort_publish_digest(group: Handle, digest: u64) {
        with(group, |lease| {
            lease.sender.publish_digest(digest);
            Ok(())
        })
    }
}
