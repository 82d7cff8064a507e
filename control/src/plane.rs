//! The control plane of a node, whole and still pure: links and membership joined. The shell gives it bytes, times and
//! the driver's [`Report`]s, and carries out [`Request`]s (sockets) and [`Order`]s (driver).

use std::collections::{BTreeMap, VecDeque};

use consort_dataplane::fabric::LinkDown;
use consort_dataplane::names::{NodeId, Slot, Time};

use crate::config::NodeConfig;
use crate::link::message::{Hello, Question};
use crate::link::table::{ConnectionId, LinkNews, Links, Random, Request};
use crate::membership::{Absent, Decision, Membership, Phase, Stopped};
use crate::view::View;

/// Something that the driver has to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Order {
    /// Make a fabric instead of the one there is, and report its offer under this number.
    Prepare(u64),
    /// Link the fabric to a peer.
    Link {
        /// Where.
        slot: Slot,
        /// To whom.
        node: NodeId,
        /// Its offer.
        offer: Vec<u8>,
    },
    /// Start the session of this view.
    Install {
        /// The view.
        view: View,
        /// The links to its other members.
        slots: BTreeMap<NodeId, Slot>,
    },
    /// Tell the application for whom the start waits.
    Wait(Vec<Absent>),
    /// Stop, for good.
    Stop(Stopped),
}

/// Something that the driver tells. What is about a fabric carries the number under which it was ordered: news of an
/// old one is thrown away.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Report {
    /// The fabric is there, with this offer.
    Prepared(u64, Vec<u8>),
    /// A link of it is up.
    Up(u64, Slot),
    /// A link of it is gone.
    Down(u64, Slot, LinkDown),
    /// A peer broke the data plane's protocol.
    Fault(NodeId, String),
    /// This node can't go on.
    Broken(String),
    /// Everything is delivered and the fabric is closed.
    Ended,
    /// The application leaves otherwise.
    Left,
}

/// The control plane of one node.
pub struct Plane {
    membership: Membership,
    links: Links,
    fabric: u64,
    orders: VecDeque<Order>,
}

impl Plane {
    /// As configured; `seed` must be 32 bytes that nobody can guess. Waits for the report of fabric number 0.
    pub fn new(config: &NodeConfig, seed: [u8; 32], now: Time) -> Self {
        let mut seeds = Random::new(seed);
        let membership = Membership::new(config, Random::new(seeds.bytes()), now);
        let mut links = Links::new(config.id, config.key.clone(), Random::new(seeds.bytes()));
        for (node, address) in &config.peers {
            links.know(*node, *address, now);
        }
        Self { membership, links, fabric: 0, orders: VecDeque::new() }
    }

    /// Where membership stands.
    pub fn phase(&self) -> &Phase {
        self.membership.phase()
    }

    /// For whom the start waits.
    pub fn absent(&self) -> Vec<Absent> {
        self.membership.absent()
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
            Report::Up(fabric, slot) if fabric == self.fabric => self.membership.on_fabric_up(slot),
            Report::Down(fabric, slot, why) if fabric == self.fabric => {
                self.membership.on_fabric_down(now, slot, why);
            }
            Report::Prepared(..) | Report::Up(..) | Report::Down(..) => {}
            Report::Fault(node, reason) => self.membership.on_fault(node, reason),
            Report::Broken(reason) => self.membership.on_broken(reason),
            Report::Ended => self.membership.on_ended(),
            Report::Left => self.membership.on_left(),
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
            while let Some(decision) = self.membership.poll_decision() {
                self.carry_out(now, decision);
            }
            let Some(news) = self.links.poll_news() else { return };
            match news {
                LinkNews::Up(hello) => {
                    tracing::debug!(node = %hello.node, incarnation = %hello.incarnation, "control link up");
                    self.membership.on_up(now, *hello);
                }
                LinkNews::Down { node, incarnation, why } => {
                    tracing::debug!(%node, %incarnation, why, "control link down");
                    self.membership.on_down(now, node, &why);
                }
                LinkNews::Said(node, message) => self.membership.on_said(now, node, message),
                LinkNews::Trouble(node, why) => {
                    tracing::debug!(%node, why, "no control link yet");
                    self.membership.on_trouble(now, node, why);
                }
                LinkNews::Unreached(address, why) => tracing::debug!(%address, why, "no seed there yet"),
                LinkNews::Asked(id, Question::Status) => {
                    let answer = format!("{{\"phase\":{}}}", quoted(&self.phase().to_string()));
                    self.links.answer(id, &answer);
                }
                LinkNews::Asked(id, Question::Explain) => {
                    let waiting: Vec<_> =
                        self.absent().iter().map(|absent| quoted(&absent.to_string())).collect();
                    self.links.answer(id, &format!("{{\"waiting\":[{}]}}", waiting.join(",")));
                }
            }
        }
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
            Decision::Say(node, message) => self.links.send(node, &message),
            Decision::Link { slot, node, offer } => self.orders.push_back(Order::Link { slot, node, offer }),
            Decision::Install { view, slots } => {
                tracing::info!(%view, "the group runs");
                self.orders.push_back(Order::Install { view, slots });
            }
            Decision::Wait(absent) => self.orders.push_back(Order::Wait(absent)),
            Decision::Stop(reason) => {
                self.links.restart(now, None);
                self.orders.push_back(Order::Stop(reason));
            }
        }
    }
}

/// A text in JSON.
fn quoted(text: &str) -> String {
    let escaped = text.chars().map(|c| match c {
        '"' | '\\' => format!("\\{c}"),
        c if c.is_control() => format!("\\u{:04x}", u32::from(c)),
        c => c.to_string(),
    });
    format!("\"{}\"", escaped.collect::<String>())
}

#[cfg(test)]
mod tests;
