//! Membership: which view is installed, as a state machine. Events go in (`on_*`, with the time), decisions come out
//! ([`Membership::poll_decision`]); it opens no socket, reads no clock and draws its random numbers from a seed.
//!
//! For now the members are fixed by the configuration, so there is one view, view 1, of all of them, and no view follows: a
//! member that is lost stops the group. What view changes will replace is in this directory; who feeds the
//! events and carries out the decisions stays as it is.
//!
//! # How view 1 comes about
//! ```text
//!            all hellos are here              linked to all,       all are ready
//!            (or: proposed to)                told the proposer    (or: told so)
//! Gathering ────────────────────► Linking ──────────────────────► Linking ──────► Installed
//!     ▲                             │ a member is lost, or too slow │
//!     └──────── Renewing ◄──────────┴───────────────────────────────┘
//! ```
//! - *Gathering*: control links come up in any order, each with a hello: who the peer is, which
//!   [incarnation](crate::view::Incarnation), what it takes the group to be, and its fabric's offer. A hello that doesn't
//!   agree with this node's configuration is refused, and the difference is named on both sides ([`Terms::judge`]). A peer that
//!   was started again replaces its old incarnation.
//! - The member with the lowest id *proposes* view 1 as soon as it has everyone's hello: all members, by incarnation.
//! - *Linking*: everyone links its fabric to exactly these incarnations, says *ready* when all links are up, and
//!   the proposer, when all have, *commits*: the view is installed.
//! - If anyone is lost on the way, nobody can tell who knows what. So whoever took part *renews* itself: it cuts its links,
//!   takes a new incarnation and a new fabric (fresh memory, new offer), and gathers again.
//!
//! # Why no two different views 1 can be installed
//! An incarnation takes part in one proposal, ever: it leaves *Linking* only by installing that view or by ceasing to be.
//! A view is installed, by anyone, only if every incarnation in it said ready (the proposer's own word included). So if two
//! different views were installed, no incarnation would be in both: their members are different lives of the
//! nodes, and the first view's were all gone, or never delivered an Atomic message together with the second's.
//! The stories in `golden/` show what happens when a node dies at each step, and the simulation of whole planes looks for a
//! counterexample.
//!
//! # After that
//! A control link that breaks, or a fabric link, is proof that the peer is gone (F5), unless it said goodbye after everything was
//! delivered. What a peer can't have done in good faith names it: [`Stopped::PeerMisbehaved`].

mod stop;
mod terms;
mod gathering;
mod linking;
mod installed;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use consort_dataplane::fabric::LinkDown;
use consort_dataplane::names::{NodeId, Slot, Time};

use crate::config::NodeConfig;
use crate::link::message::{Goodbye, Hello, Message};
use crate::link::table::Random;
use crate::view::{Incarnation, View};

pub use stop::{Absent, Stopped};
pub use terms::Terms;

/// Where membership stands (V11). Prints as a phrase.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Phase {
    /// There is no fabric yet for this incarnation; a new one is made at `at`, if it isn't being made already.
    Renewing {
        /// When.
        at: Time,
        /// It is being made.
        asked: bool,
    },
    /// Waiting for all hellos.
    Gathering,
    /// A view was proposed; linking to its members and waiting for the proposer's word.
    Linking {
        /// The view.
        view: View,
        /// Since when.
        since: Time,
        /// This node has said ready.
        ready: bool,
    },
    /// The view is installed.
    Installed(View),
    /// The end.
    Stopped(Stopped),
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Renewing { .. } => f.write_str("renewing itself"),
            Self::Gathering => f.write_str("gathering members"),
            Self::Linking { view, ready: false, .. } => write!(f, "linking for {view}"),
            Self::Linking { view, ready: true, .. } => {
                write!(f, "linked, waiting for the others, for {view}")
            }
            Self::Installed(view) => write!(f, "installed {view}"),
            Self::Stopped(reason) => write!(f, "stopped: {reason}"),
        }
    }
}

/// What is to be done.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Decision {
    /// Cut all control links and let nobody in.
    Isolate,
    /// Make a fabric, instead of the one there may be, and tell [`Membership::on_prepared`].
    Prepare,
    /// Begin with control links: dial, let in, with this hello.
    Greet(Hello),
    /// Say this hello from now on; links stay.
    Reword(Hello),
    /// Say something to a peer.
    Say(NodeId, Message),
    /// Link the fabric to a peer.
    Link {
        /// Where.
        slot: Slot,
        /// To whom.
        node: NodeId,
        /// Its offer.
        offer: Vec<u8>,
    },
    /// The view is agreed: start its session.
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

/// How long the first word about missing members is held back, and how far apart later ones are: nobody wants to
/// read of nodes that start a moment later.
const PATIENCE: Duration = Duration::from_millis(300);

/// The membership of one node. See the [module](self).
pub struct Membership {
    terms: Terms,
    address: SocketAddr,
    start_within: Option<Duration>,
    started: Time,
    incarnation: Incarnation,
    offer: Vec<u8>,
    phase: Phase,
    peers: BTreeMap<NodeId, Peer>,
    /// Proposals that came to nothing, since the start.
    failures: u32,
    told: Vec<Absent>,
    tell_at: Option<Time>,
    random: Random,
    /// A rule to break on purpose, so that tests can show that they would notice: a failed attempt leaves the incarnation
    /// as it is.
    #[cfg(test)]
    pub(crate) keeps_incarnation: bool,
    decisions: VecDeque<Decision>,
}

/// Another member.
#[derive(Default)]
struct Peer {
    /// What it said, while there is a control link.
    hello: Option<Hello>,
    /// Why there is none, as far as is known.
    trouble: Option<String>,
    /// The fabric's link is up.
    linked: bool,
    /// To the proposer: it is ready.
    ready: bool,
    /// It has left in order.
    gone: bool,
    /// The fabric's link is down, since when and why; the control link has the last word.
    severed: Option<(Time, LinkDown)>,
}

impl Membership {
    /// Membership as configured. Begins with [`Phase::Renewing`]: tell [`Membership::on_prepared`] of the first fabric.
    pub fn new(config: &NodeConfig, random: Random, now: Time) -> Self {
        Self {
            terms: Terms::new(config),
            address: config.address(),
            start_within: config.start_within,
            started: now,
            incarnation: Incarnation(0),
            offer: Vec::new(),
            phase: Phase::Renewing { at: now, asked: true },
            peers: config.peers.keys().map(|node| (*node, Peer::default())).collect(),
            failures: 0,
            told: Vec::new(),
            tell_at: Some(now.plus(PATIENCE)),
            random,
            #[cfg(test)]
            keeps_incarnation: false,
            decisions: VecDeque::new(),
        }
    }

    /// Where it stands.
    pub fn phase(&self) -> &Phase {
        &self.phase
    }

    /// Who this node is now.
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// Why this node won't have a link with who said this, if so.
    ///
    /// # Errors
    /// The reason, for both sides.
    pub fn judge(&self, hello: &Hello) -> Result<(), String> {
        self.terms.judge(hello)?;
        match &self.phase {
            Phase::Installed(view)
                if view.member(hello.node).is_none_or(|m| m.incarnation != hello.incarnation) =>
            {
                Err(format!(
                    "{view} runs already, with another start of node {}; its members are fixed: to begin anew start \
                     all of them again",
                    hello.node
                ))
            }
            _ => Ok(()),
        }
    }

    /// The fabric was made; this is its offer.
    pub fn on_prepared(&mut self, now: Time, offer: Vec<u8>) {
        if matches!(self.phase, Phase::Renewing { .. }) {
            self.offer = offer;
            self.renew_incarnation();
            self.phase = Phase::Gathering;
            self.decide(Decision::Greet(self.hello(None)));
            self.gather(now);
        }
    }

    /// The control link to a peer is up; this is its hello, which [`Membership::judge`] found right.
    pub fn on_up(&mut self, now: Time, hello: Hello) {
        let Some(peer) = self.peers.get_mut(&hello.node) else { return };
        peer.trouble = None;
        let node = hello.node;
        peer.hello = Some(hello);
        match self.phase {
            Phase::Gathering => self.gather(now),
            Phase::Linking { .. } => self.link_to(now, node),
            _ => {}
        }
    }

    /// The control link to a peer is gone.
    pub fn on_down(&mut self, now: Time, node: NodeId, why: &str) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        peer.hello = None;
        peer.trouble = Some(why.to_owned());
        match self.phase {
            Phase::Gathering => self.gather(now),
            Phase::Linking { .. } => self.fail(now, node, why),
            Phase::Installed(_) => self.lost(node, format!("its control link broke ({why})")),
            _ => {}
        }
    }

    /// There is still no control link to a peer, and this is why.
    pub fn on_trouble(&mut self, now: Time, node: NodeId, why: String) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        peer.trouble = Some(why);
        if self.phase == Phase::Gathering {
            self.gather(now);
        }
    }

    /// A peer says something.
    pub fn on_said(&mut self, now: Time, node: NodeId, message: Message) {
        match (&self.phase, message) {
            (Phase::Stopped(_), _) => {}
            (Phase::Gathering, Message::Propose(view)) => self.on_proposal(now, node, view),
            (Phase::Linking { .. }, Message::Ready) => self.on_ready(node),
            (Phase::Linking { ready: true, .. }, Message::Commit) => self.on_commit(node),
            (Phase::Installed(_), Message::Goodbye(goodbye)) => self.on_goodbye(node, goodbye),
            (_, Message::Goodbye(_)) => self.on_down(now, node, "it left"),
            (phase, message) => {
                let reason = format!("it said {message:?} while this node was {phase}");
                self.misbehaved(node, reason);
            }
        }
    }

    /// The fabric's link to a peer is up.
    pub fn on_fabric_up(&mut self, slot: Slot) {
        if matches!(self.phase, Phase::Linking { .. })
            && let Some(node) = self.behind(slot)
            && let Some(peer) = self.peers.get_mut(&node)
        {
            peer.linked = true;
            self.link();
        }
    }

    /// The fabric's link to a peer is gone, or never came.
    pub fn on_fabric_down(&mut self, now: Time, slot: Slot, why: LinkDown) {
        let Some(node) = self.behind(slot) else { return };
        match self.phase {
            Phase::Linking { .. } => self.fail(now, node, &format!("fabric {}: {why}", self.terms.fabric)),
            Phase::Installed(_) => self.severed(now, node, why),
            _ => {}
        }
    }

    /// A peer broke the data plane's protocol.
    pub fn on_fault(&mut self, node: NodeId, reason: String) {
        self.misbehaved(node, reason);
    }

    /// This node itself can't go on.
    pub fn on_broken(&mut self, reason: String) {
        self.stop(Goodbye::Broken(reason.clone()), Stopped::Machine(reason));
    }

    /// Everything that any member sent is delivered here, and the fabric is closed: leave in order.
    pub fn on_ended(&mut self) {
        self.stop(Goodbye::Ended, Stopped::Closed);
    }

    /// The application leaves, in order or not.
    pub fn on_left(&mut self) {
        self.stop(Goodbye::Left, Stopped::Closed);
    }

    /// The time is now.
    pub fn on_time(&mut self, now: Time) {
        if self.start_deadline().is_some_and(|at| at <= now) {
            let waiting = self.absent();
            let within = self.start_within.unwrap_or_default();
            return self.stop(Goodbye::Left, Stopped::NotStarted { within, waiting });
        }
        match &mut self.phase {
            Phase::Renewing { at, asked } if !*asked && *at <= now => {
                *asked = true;
                self.decide(Decision::Prepare);
            }
            Phase::Linking { since, .. } if since.plus(linking::WITHIN) <= now => self.too_slow(now),
            Phase::Installed(_) => self.judge_severed(now),
            _ => {}
        }
        if self.tell_at.is_some_and(|at| at <= now) {
            self.tell_at = None;
            self.told = self.absent();
            if !self.told.is_empty() && !self.is_over() {
                self.decide(Decision::Wait(self.told.clone()));
            }
        }
    }

    /// When [`Membership::on_time`] is due at the latest.
    pub fn due(&self) -> Option<Time> {
        let phase = match &self.phase {
            Phase::Renewing { at, asked: false } => Some(*at),
            Phase::Linking { since, .. } => Some(since.plus(linking::WITHIN)),
            Phase::Installed(_) => self.severed_due(),
            _ => None,
        };
        [phase, self.start_deadline(), self.tell_at].into_iter().flatten().min()
    }

    /// What is to be done, in this order.
    pub fn poll_decision(&mut self) -> Option<Decision> {
        self.decisions.pop_front()
    }

    /// For whom the start waits.
    pub fn absent(&self) -> Vec<Absent> {
        let view = match &self.phase {
            Phase::Installed(_) | Phase::Stopped(_) => return Vec::new(),
            Phase::Linking { view, .. } => Some(view),
            _ => None,
        };
        let absent = self.peers.iter().filter_map(|(node, peer)| {
            let fabric = &self.terms.fabric;
            let why = match (&peer.hello, view) {
                (None, _) => peer.trouble.clone().unwrap_or_else(|| "not reached yet".to_owned()),
                (Some(hello), None) if hello.engaged.is_some() => {
                    "it is still bound to an attempt that failed".to_owned()
                }
                (Some(_), Some(_)) if !peer.linked => format!("its {fabric} link isn't up yet"),
                // Only the proposer hears who is ready.
                (Some(_), Some(_)) if self.terms.me == self.terms.proposer() && !peer.ready => {
                    "it isn't linked to everyone yet".to_owned()
                }
                _ => return None,
            };
            Some(Absent { node: *node, why })
        });
        absent.collect()
    }

    fn hello(&self, engaged: Option<Incarnation>) -> Hello {
        self.terms.hello(self.incarnation, engaged, self.address, self.offer.clone())
    }

    fn renew_incarnation(&mut self) {
        #[cfg(test)]
        if self.keeps_incarnation && self.incarnation != Incarnation(0) {
            return;
        }
        self.incarnation = Incarnation(self.random.number());
    }

    fn decide(&mut self, decision: Decision) {
        self.decisions.push_back(decision);
    }

    fn say_all(&mut self, message: &Message) {
        let linked: Vec<_> =
            self.peers.iter().filter(|(_, p)| p.hello.is_some()).map(|(node, _)| *node).collect();
        for node in linked {
            self.decide(Decision::Say(node, message.clone()));
        }
    }

    fn start_deadline(&self) -> Option<Time> {
        self.start_within.filter(|_| !self.is_over()).map(|within| self.started.plus(within))
    }

    fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Installed(_) | Phase::Stopped(_))
    }

    fn misbehaved(&mut self, node: NodeId, reason: String) {
        let goodbye = Goodbye::Misbehaved { node, by: self.terms.me, reason: reason.clone() };
        self.stop(goodbye, Stopped::PeerMisbehaved { node, reason });
    }

    fn stop(&mut self, goodbye: Goodbye, reason: Stopped) {
        if !matches!(self.phase, Phase::Stopped(_)) {
            self.say_all(&Message::Goodbye(goodbye));
            self.tell_at = None;
            self.phase = Phase::Stopped(reason.clone());
            self.decide(Decision::Stop(reason));
        }
    }

    /// The peer whose link is in `slot`: peers have slots in ascending order.
    fn behind(&self, slot: Slot) -> Option<NodeId> {
        self.peers.keys().nth(usize::from(slot.0)).copied()
    }

    fn slots(&self) -> BTreeMap<NodeId, Slot> {
        self.peers.keys().copied().zip((0..).map(Slot)).collect()
    }
}

#[cfg(test)]
mod tests;
