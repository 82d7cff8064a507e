//! What runs over links that are up: bytes out, bytes in, and their end.
//!
//! # Which links are looked at
//!
//! A poll receives from each link that spoke lately, by a call of its own, which is the fastest way there is
//! (see [`super::uring`]); but an idle link costs such a call too, about 0.2 µs. Up to [`ALL`] links all are
//! looked at in each poll; beyond that those silent for [`SILENT`] polls take turns, [`TURNS`] in each.

use std::io;
use std::os::fd::AsFd;

use consort_dataplane::fabric::{LinkDown, LinkEvent};
use consort_dataplane::names::{MAX_NODES, PeerSet, Slot, Time};

use super::TcpFabric;
use super::engine::{Ready, SendResult, Sends};
use super::link::{Held, Phase};
use super::sys::{self, is_later};

/// Up to so many links, each is looked at in every poll.
const ALL: u32 = 4;

/// Polls without anything after which a link is looked at in turn only.
const SILENT: u32 = 256;

/// Silent links looked at in one poll.
const TURNS: u32 = 2;

/// Receives from one link in one poll, so that one that never ends does not keep out the others.
const RECEIVES: usize = 8;

/// Batches sent to one link in one flush, likewise.
const BATCHES: usize = 4;

impl TcpFabric {
    /// Receives from the links that are worth it. Returns whether anything came.
    pub(super) fn receive_some(&mut self) -> bool {
        let now_readable = std::mem::take(&mut self.found_readable);
        let mut chosen = self.up;
        if self.up.0.count_ones() > ALL {
            let silent = self.slots(|link| link.silent_polls >= SILENT);
            let others = PeerSet(silent.0 & self.up.0 & !now_readable.0);
            chosen = PeerSet(self.up.0 & !others.0 | self.next_in_turn(others).0);
        }
        let mut came = false;
        for slot in chosen.iter() {
            came |= self.receive(slot);
        }
        came
    }

    /// The next of the silent links.
    fn next_in_turn(&mut self, silent: PeerSet) -> PeerSet {
        let mut chosen = PeerSet::EMPTY;
        for _ in 0..TURNS {
            let ahead = silent.0 & u64::MAX.checked_shl(self.turn).unwrap_or(0);
            let Some(slot) = PeerSet(ahead).iter().next().or_else(|| silent.iter().next()) else { break };
            chosen = chosen.with(slot);
            self.turn = (u32::from(slot.0) + 1) % MAX_NODES as u32;
        }
        chosen
    }

    /// Receives what has come on a link. Returns whether anything changed.
    pub(super) fn receive(&mut self, slot: Slot) -> bool {
        let Some(link) = self.links[usize::from(slot.0)].as_mut() else { return false };
        let mut changed = false;
        let mut down = None;
        for _ in 0..RECEIVES {
            let Phase::Up { socket, incoming } = &mut link.phase else { break };
            let expected = self.relays.over(slot);
            let mut room = incoming.room(expected);
            let asked = room.len();
            self.counts.called();
            match sys::receive(socket.as_fd(), &mut room) {
                Ok(0) if link.sending_ended => {
                    down = Some(LinkDown::Closed); // the answer to this node's goodbye
                    break;
                }
                Ok(0) => {
                    // F5: the process ended without a word, or it is of another mind than its goodbye would have been.
                    let why = "the peer's process ended, or it dropped the link without closing it";
                    down = Some(LinkDown::Broken(why.to_owned()));
                    break;
                }
                Ok(n) => {
                    self.counts.fabric.bytes_in += n as u64;
                    match incoming.on_received(n, expected) {
                        Ok(progress) => {
                            changed |= progress.changed;
                            if progress.ended {
                                down = Some(LinkDown::Closed);
                                break;
                            }
                        }
                        // S1: nothing that comes after is looked at.
                        Err(damage) => {
                            down = Some(LinkDown::Corrupt(damage.to_string()));
                            break;
                        }
                    }
                    if n < asked && !link.dying {
                        break; // that was all
                    }
                }
                Err(cause) if is_later(&cause) => {
                    // All that the peer sent before a send failed has been read.
                    if let Some(error) = link.send_failed {
                        down = Some(LinkDown::Broken(io::Error::from_raw_os_error(error).to_string()));
                    } else if link.dying {
                        down = Some(LinkDown::Broken("the peer's process ended".to_owned())); // F5
                    }
                    break;
                }
                Err(cause) => {
                    down = Some(LinkDown::Broken(cause.to_string())); // F5
                    break;
                }
            }
        }
        link.silent_polls = if changed { 0 } else { link.silent_polls.saturating_add(1) };
        let more = link.dying && down.is_none() && link.is_up();
        if let Some(why) = down {
            self.take_down(slot, why);
            return true;
        }
        if more {
            self.found_readable = self.found_readable.with(slot); // the rest at the next poll
        }
        changed || more
    }

    /// Takes in which peers' processes are ending (F5).
    pub(super) fn look_at_lifelines(&mut self) {
        let Some(lifeline) = &self.lifeline else { return };
        for (slot, generation) in lifeline.take_ended() {
            let link = self.links.get_mut(usize::from(slot.0)).and_then(Option::as_mut);
            if let Some(link) = link.filter(|link| link.generation == generation && link.is_up()) {
                link.dying = true;
                self.found_readable = self.found_readable.with(slot);
            }
        }
    }

    /// Sends what is due, to all links that take it, as far as a flush goes.
    pub(super) fn pump(&mut self) {
        for _ in 0..BATCHES {
            let mut going = PeerSet::EMPTY;
            let mut zero_copy = PeerSet::EMPTY;
            let from = self.options.zero_copy_from.filter(|_| self.engine.can_zero_copy());
            for slot in self.up.iter() {
                let Some(link) = self.links[usize::from(slot.0)].as_mut() else { continue };
                if !link.can_send() {
                    continue;
                }
                if link.outgoing.fill(&self.segment) {
                    going = going.with(slot);
                    if from.is_some_and(|from| link.is_worth_zero_copy(from)) {
                        zero_copy = zero_copy.with(slot);
                    }
                } else {
                    link.due = false;
                }
            }
            if going.is_empty() {
                return;
            }
            if zero_copy.is_empty() && !self.engine.gathers(going.0.count_ones()) {
                self.send_each(going);
            } else {
                self.send_gathered(going, zero_copy);
            }
        }
    }

    fn send_each(&mut self, going: PeerSet) {
        for slot in going.iter() {
            let Some(link) = self.links[usize::from(slot.0)].as_ref() else { continue };
            let Some(socket) = link.socket() else { continue };
            self.counts.called();
            let taken = sys::send_one(socket, &link.outgoing, &self.segment, &mut self.parts);
            self.on_sent(slot, SendResult { taken, held: false });
        }
    }

    fn send_gathered(&mut self, going: PeerSet, zero_copy: PeerSet) {
        let mut sends = Sends::new(std::mem::take(&mut self.parts));
        for slot in going.iter() {
            let Some(link) = self.links[usize::from(slot.0)].as_ref() else { continue };
            let Some(socket) = link.socket() else { continue };
            let who = (slot, link.generation);
            sends.push(who, socket, &link.outgoing, &self.segment, zero_copy.contains(slot));
        }
        self.engine.send(&mut sends, &mut self.counts);
        let (results, parts) = sends.finish();
        self.parts = parts;
        self.ask_renewed();
        for (slot, result) in results {
            self.on_sent(slot, result);
        }
    }

    fn on_sent(&mut self, slot: Slot, result: SendResult) {
        let Some(link) = self.links[usize::from(slot.0)].as_mut() else { return };
        if result.held {
            link.zero_copy.batch_held = true;
            link.zero_copy.held.sends += 1;
        }
        match usize::try_from(result.taken) {
            Ok(taken) => {
                link.sent_since_vigil = true;
                self.counts.fabric.bytes_out += taken as u64;
                link.blocked = taken < link.outgoing.batch_left();
                link.outgoing.on_sent(taken);
                link.due = link.outgoing.has_work();
                if link.outgoing.batch_left() == 0 && std::mem::take(&mut link.zero_copy.batch_held) {
                    let heads = link.outgoing.take_heads();
                    link.zero_copy.keep(heads);
                }
            }
            Err(_) => match -result.taken {
                libc::EAGAIN => link.blocked = true,
                libc::EINTR => {}
                // No memory for zero-copy: the limit of locked memory. Sending goes on by copying.
                libc::ENOBUFS | libc::ENOMEM if !link.zero_copy.useless => link.zero_copy.useless = true,
                error => {
                    link.send_failed = Some(error);
                    link.blocked = false;
                    self.receive(slot); // the goodbye may be there, or the reason
                    return;
                }
            },
        }
        if link.blocked
            && let Phase::Up { socket, .. } = &link.phase
        {
            self.engine.watch_writable(slot, link.generation, socket.as_fd(), &mut self.counts);
        }
    }

    /// Takes in what the engine tells.
    pub(super) fn on_ready(&mut self, ready: &Ready) {
        for slot in ready.writable.iter() {
            if let Some(link) = self.links[usize::from(slot.0)].as_mut() {
                link.blocked = false;
            }
        }
        for released in &ready.released {
            let link = self.links.get_mut(usize::from(released.slot.0)).and_then(Option::as_mut);
            match link.filter(|link| link.generation == released.generation && !link.is_over()) {
                Some(link) => {
                    link.zero_copy.useless |= released.copied;
                    link.zero_copy.held.release();
                }
                None => {
                    let who = (released.slot, released.generation);
                    if let Some(at) = self.orphans.iter().position(|(of, _)| *of == who) {
                        self.orphans[at].1.release();
                        if self.orphans[at].1.sends == 0 {
                            self.orphans.swap_remove(at);
                        }
                    }
                }
            }
        }
        if ready.bell {
            self.counts.called();
            sys::hush(&self.bell);
        }
        self.found_readable = PeerSet(self.found_readable.0 | ready.readable.0);
        self.found_setup |= ready.setup;
        self.ask_renewed();
    }

    /// If the engine is another one, it has forgotten what it was asked for, and the kernel may still read for sends that
    /// nobody will tell of.
    fn ask_renewed(&mut self) {
        if !self.engine.take_renewed() {
            return;
        }
        let mut held = false;
        for link in self.links.iter_mut().flatten() {
            link.blocked = false;
            link.zero_copy.batch_lost |= link.zero_copy.batch_held && link.zero_copy.held.sends > 0;
            held |= abandon(&mut link.zero_copy.held);
        }
        for (_, orphan) in &mut self.orphans {
            held |= abandon(orphan);
        }
        self.orphans.clear();
        if held {
            std::mem::forget(self.segment.clone()); // never freed: the price of moving in the middle of such a send
        }
    }

    /// Ends a link, tells of it, and keeps what it may not forget.
    pub(super) fn take_down(&mut self, slot: Slot, why: LinkDown) {
        let orderly = why == LinkDown::Closed;
        if self.cut(slot, orderly) {
            self.events.push_back(LinkEvent::Down(slot, why));
        }
    }

    /// Ends a link: in order, or by a reset. From here on no byte of that peer changes its mirror (F4): bytes come in
    /// by [`TcpFabric::receive`] alone, and it has no socket any more. Returns whether there was a link.
    pub(super) fn cut(&mut self, slot: Slot, orderly: bool) -> bool {
        let Some(link) = self.links[usize::from(slot.0)].as_mut() else { return false };
        let socket = match std::mem::replace(&mut link.phase, Phase::Down) {
            Phase::Down => return false,
            Phase::Expected => None,
            Phase::Dialling(dial) => Some((dial.token, dial.socket)),
            Phase::Up { socket, .. } => Some((link.token(), socket)),
        };
        self.up = self.up.without(slot);
        if let (Some(lifeline), true) = (&self.lifeline, socket.is_some()) {
            lifeline.let_go((slot, link.generation));
        }
        let heads = link.outgoing.clear();
        link.due = false;
        link.blocked = false;
        link.zero_copy.keep(heads);
        let held = std::mem::take(&mut link.zero_copy.held);
        if held.sends > 0 {
            self.orphans.push(((slot, link.generation), held));
        }
        if let Some((token, socket)) = socket {
            self.forget(token, socket.as_fd());
            self.counts.called();
            if orderly { sys::end(socket.as_fd()) } else { sys::abort(socket.as_fd()) }
        }
        true
    }

    /// Looks after the peers' machines, from time to time.
    pub(super) fn keep_vigil(&mut self, now: Time) {
        let bound = self.options.unanswered;
        let every = bound / 5;
        if self.vigil_at.is_some_and(|at| now < at) {
            return;
        }
        self.vigil_at = Some(now.plus(every));
        for slot in self.up.iter() {
            let Some(link) = self.links[usize::from(slot.0)].as_mut() else { continue };
            self.counts.called();
            if let Some(why) = link.vigil(now, bound) {
                self.take_down(slot, why); // F5
            }
        }
    }

    /// When the next look at the peers' machines must not be slept over.
    pub(super) fn next_vigil(&self) -> Option<Time> {
        self.links.iter().flatten().any(|link| link.awaits_answer()).then_some(self.vigil_at).flatten()
    }
}

/// Gives memory up to the kernel for good, if it still reads it. Returns whether it does.
fn abandon(held: &mut Held) -> bool {
    let held = std::mem::take(held);
    let any = held.sends > 0;
    if any {
        std::mem::forget(held.heads);
    }
    any
}
