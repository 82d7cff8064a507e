//! The control plane of a node, whole and still pure: links and membership joined. The shell gives it bytes, times and
//! the driver's [`Report`]s, and carries out [`Request`]s (sockets) and [`Order`]s (driver).

use std::collections::VecDeque;

use consort_dataplane::names::Time;

use crate::config::NodeConfig;
use crate::link::message::{Hello, Message};
use crate::link::table::{ConnectionId, LinkNews, Links, Random, Request};
use crate::membership::{Absent, Decision, Lost, Membership, Phase};
use crate::orders::{Order, Report};

/// The control plane of one node.
pub struct Plane {
    membership: Membership,
    links: Links,
    fabric: u64,
    orders: VecDeque<Order>,
    /// What is being written down,
    notes: usize,
    /// and what may not be said or done before it is (P3).
    held_back: VecDeque<Decision>,
}

impl Plane {
    /// As configured; `seed` must be 32 bytes that nobody can guess. Waits for the report of fabric number 0.
    pub fn new(config: &NodeConfig, seed: [u8; 32], now: Time) -> Self {
        let mut seeds = Random::new(seed);
        Self {
            membership: Membership::new(config, Random::new(seeds.bytes()), now),
            links: Links::new(config.id, config.key.clone(), Random::new(seeds.bytes())),
            fabric: 0,
            orders: VecDeque::new(),
            notes: 0,
            held_back: VecDeque::new(),
        }
    }

    /// Where membership stands.
    pub fn phase(&self) -> &Phase {
        self.membership.phase()
    }

    /// Whether it has stopped, and everything is said and done that there was to be.
    pub fn is_over(&self) -> bool {
        matches!(self.phase(), Phase::Stopped(_)) && self.held_back.is_empty()
    }

    /// For whom the start waits.
    pub fn absent(&self) -> Vec<Absent> {
        self.membership.absent()
    }

    /// Whom this node took for gone.
    pub fn lost(&self) -> Vec<Lost> {
        self.membership.lost().cloned().collect()
    }

    /// Somebody dialled this node. `None`: turn it away.
    pub fn on_accepted(&mut self, now: Time) -> Option<ConnectionId> {
        self.links.on_accepted(now)
    }

    /// Bytes came on a connection.
    pub fn on_bytes(&mut self, id: ConnectionId, now: Time, bytes: &[u8]) {
        let membership = &self.membership;
        self.links.on_bytes(id, now, bytes, &|hello: &Hello| membership.judge(hello));
        self.go_on(now);
    }

    /// A connection is gone, or could not be made.
    pub fn on_closed(&mut self, id: ConnectionId, now: Time, why: &str) {
        self.links.on_closed(id, now, why);
        self.go_on(now);
    }

    /// The driver tells something.
    pub fn on_report(&mut self, now: Time, report: Report) {
        match report {
            Report::Prepared(fabric, offer) if fabric == self.fabric => {
                self.membership.on_prepared(now, offer);
            }
            Report::Prepared(..) => {}
            Report::Up(number, carrier) => self.membership.on_fabric_up(now, number, carrier),
            Report::Down(number, why) => self.membership.on_fabric_down(now, number, &why),
            Report::Fault(node, reason) => self.membership.on_fault(now, node, reason),
            Report::Wedged(view, frozen) => self.membership.on_wedged(now, view, frozen),
            Report::Bytes(part, bytes) => self.membership.on_bytes(part, bytes.as_deref()),
            Report::Supplied(part, sound) => self.membership.on_supplied(now, part, sound),
            Report::Lesson(pupil, lesson) => self.membership.on_taught(pupil, lesson),
            Report::Took(shard, attempt, took) => self.membership.on_took(now, shard, attempt, took),
            Report::CaughtUp(shard, attempt) => self.membership.on_caught_up(now, shard, attempt),
            Report::Learned(shard, attempt) => self.membership.on_learned(shard, attempt),
            Report::Unlearned(shard, attempt, reason) => {
                self.membership.on_unlearned(now, shard, attempt, &reason);
            }
            Report::Retired(shard, since) => self.membership.on_retired(now, shard, since),
            Report::Pulse(pulse) => self.membership.on_pulse(now, pulse),
            Report::Leaving => self.membership.on_leave(now),
            Report::Left => {
                self.give_up_notes();
                self.membership.on_left();
            }
            Report::Held(held) => self.membership.on_held(held),
            Report::Lacks(shard) => self.membership.on_lacks(shard),
            Report::Whole(shard) => self.membership.on_whole(now, shard),
            Report::Noted => self.notes = self.notes.saturating_sub(1),
            Report::WantLog { node, shard, since, behind, chain, at } => {
                self.membership.on_log_lacked(node, Message::WantLog { shard, since, behind, chain, at });
            }
            Report::LogPart { node, shard, behind, at, given } => {
                self.membership.on_log_lacked(node, Message::LogPart { shard, behind, at, given });
            }
            Report::Broken(reason) => {
                self.give_up_notes();
                self.membership.on_broken(reason);
            }
        }
        self.go_on(now);
    }

    /// The time is now.
    pub fn on_time(&mut self, now: Time) {
        self.links.on_time(now);
        self.membership.on_time(now);
        self.go_on(now);
    }

    /// When [`Plane::on_time`] is due at the latest.
    pub fn due(&self) -> Option<Time> {
        [self.links.due(), self.membership.due()].into_iter().flatten().min()
    }

    /// What is to be done with the sockets.
    pub fn poll_request(&mut self) -> Option<Request> {
        self.links.poll_request()
    }

    /// What the driver has to do.
    pub fn poll_order(&mut self) -> Option<Order> {
        self.orders.pop_front()
    }

    /// The connections that have something to be written.
    pub fn talkative(&mut self) -> Vec<ConnectionId> {
        self.links.talkative()
    }

    /// What is to be written to a connection's socket. Take away what was.
    pub fn output(&mut self, id: ConnectionId) -> Option<&mut Vec<u8>> {
        self.links.output(id)
    }

    /// Carries decisions to the links and the driver, and news of the links to membership, until there are none.
    fn go_on(&mut self, now: Time) {
        loop {
            self.decide(now);
            let Some(news) = self.links.poll_news() else { return };
            match news {
                LinkNews::Up(hello) => {
                    tracing::debug!(node = %hello.node, incarnation = %hello.incarnation, "control link up");
                    self.membership.on_up(now, *hello);
                }
                LinkNews::Down { node, incarnation, why } => {
                    tracing::debug!(%node, %incarnation, why, "control link down");
                    // As if it had been on its way: it isn't for whoever takes that one's place.
                    self.held_back
                        .retain(|decision| !matches!(decision, Decision::Say(to, _) if *to == node));
                    self.membership.on_down(now, node, incarnation, &why);
                }
                LinkNews::Said(node, message) => self.membership.on_said(now, node, *message),
                LinkNews::Trouble(node, why) => {
                    tracing::debug!(%node, why, "no control link yet");
                    self.membership.on_trouble(now, node, why);
                }
                LinkNews::Unreached(address, why) => tracing::debug!(%address, why, "no seed there yet"),
                LinkNews::Asked(id, question) => {
                    let answer = self.membership.answer(now, question);
                    self.links.answer(id, &answer);
                }
            }
        }
    }

    /// Carries out what membership has decided. What follows on a note waits until that is on disk: if this node ends before, it is as if it had never said so.
    fn decide(&mut self, now: Time) {
        loop {
            while self.notes == 0
                && let Some(decision) = self.held_back.pop_front()
            {
                self.carry_out(now, decision);
            }
            let Some(decision) = self.membership.poll_decision() else { return };
            match decision {
                Decision::Say(_, Message::Alive) => self.carry_out(now, decision),
                decision if self.notes > 0 => self.held_back.push_back(decision),
                decision => self.carry_out(now, decision),
            }
        }
    }

    /// Nothing is written down any more, so nothing that waits for it may be said.
    fn give_up_notes(&mut self) {
        self.notes = 0;
        self.held_back.clear();
    }

    fn carry_out(&mut self, now: Time, decision: Decision) {
        match decision {
            Decision::Isolate => {
                self.links.restart(now, None);
                // What the old fabric still tells is about an incarnation that is no more.
                self.fabric += 1;
            }
            Decision::Prepare => self.orders.push_back(Order::Prepare(self.fabric)),
            Decision::Greet(hello) => self.links.restart(now, Some(&hello)),
            Decision::Reword(hello) => self.links.reword(&hello),
            Decision::Know(node, address) => self.links.know(node, address, now),
            Decision::Seek(address) => self.links.seed(address, now),
            Decision::Forget(node) => self.links.forget(node),
            Decision::Say(node, message) => self.links.send(node, &message),
            Decision::Drive(order) => {
                match &order {
                    Order::Install(install) => {
                        tracing::info!(view = %install.view, "the group runs");
                        self.links.unseed();
                    }
                    Order::Stop(_) => self.links.restart(now, None),
                    Order::Note { .. } => self.notes += 1,
                    _ => {}
                }
                self.orders.push_back(order);
            }
        }
    }
}

#[cfg(test)]
impl Plane {
    /// Breaks a rule from now on, for tests of the tests.
    pub(crate) fn mutate(&mut self, mutant: crate::change::Mutant) {
        self.membership.mutant = Some(mutant);
    }

    /// The view that is installed, or ends.
    pub(crate) fn view(&self) -> Option<&crate::view::View> {
        self.membership.view()
    }

    /// What keeps the next view, or the next message, from coming (V11).
    pub(crate) fn explain(&self, now: Time) -> String {
        self.membership.answer(now, crate::link::message::Question::Explain)
    }
}

#[cfg(test)]
mod tests;
