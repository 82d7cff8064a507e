//! Membership: who belongs to the group, view after view, as a state machine. Events go in (`on_*`, with the time), decisions come
//! out ([`Membership::poll_decision`]); it opens no socket, reads no clock and draws its random numbers from a seed.
//!
//! # Phases
//! ```text
//!                 ┌──────────────── founding ────────────────┐
//!            all hellos are here              linked to all,       all are ready
//!            (or: proposed to)                told the proposer    (or: told so)      a member is lost, leaves, joins
//! Gathering ────────────────────► Linking ──────────────────────► Linking ──────► Installed ◄───────────────► Changing
//!   ▲   │                           │ a member is lost, or too slow │                 ▲                         │
//!   │   └──── the group runs ────┐  │                               │                 │ admitted                │ left out, or
//!   │                            ▼  │                               │                 │                         │ no majority
//!   │                          Joining ───────────────────────────────────────────────┘                         ▼
//!   └──────── Renewing ◄────────────┴───────────────────────────────┘ ◄──────── rejoin ──────────────────── Stopped
//! ```
//! - *Founding*: view 1 is of all members that the configuration names; `gathering` and `linking` tell how it comes about and why
//!   no two can be. A node that finds the group running joins it instead.
//! - *Installed*: the view stands (`installed`). Whoever is lost (F5), silent (V9), misbehaves or wants to come or go is a reason for a
//!   change.
//! - *Changing*: [`crate::change`] decides the next view; `changing` carries out what it wants and gives it patience.
//! - *Joining*: `joining`: dial who is known, link to all members, have the state of one (`learning`), be admitted by a view (V7).
//! - *Stopped*, or, if the node is to repair itself, *Renewing* and joining as a new incarnation (V5).
//!
//! # What is remembered
//! Of past views one decision, the last: whoever still asks about an older one is answered with it. Everything else is
//! of this view and the one before, whose memory the next one will use (V10).

mod terms;
mod data_links;
mod detection;
mod doubt;
mod gathering;
mod changing;
mod linking;
mod installed;
mod joining;
mod learning;
mod answer;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use consort_dataplane::fabric::LinkDown;
use consort_dataplane::names::{NodeId, Time, ViewId};

use crate::change::{self, Change, Frozen, Next, Place};
use crate::config::{NodeConfig, SlowPolicy};
use crate::held::Held;
use crate::layout::Ready;
use crate::link::message::{Goodbye, Hello, Message, Standing, Want};
use crate::link::table::Random;
use crate::orders::{LinkNumber, Order, Part, Pulse, SessionState};
use crate::transfer::Pupil;
use crate::view::{Incarnation, Member, Role, ShardId, View};

use data_links::DataLinks;
use detection::Detection;
use learning::Learning;

pub use crate::stop::{Absent, Lost, Stopped};
pub use detection::Beats;
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
    /// Founding: waiting for all hellos.
    Gathering,
    /// Founding: a view was proposed; linking to its members and waiting for the proposer's word.
    Linking {
        /// The view.
        view: View,
        /// Since when.
        since: Time,
        /// This node has said ready.
        ready: bool,
    },
    /// Looking for the group, or linking to its members until a view admits this node; `None` until a member has answered.
    Joining(Option<View>),
    /// The view is installed.
    Installed(View),
    /// The view ends, and the next is being decided.
    Changing(View, change::Phase),
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
            Self::Joining(None) => f.write_str("looking for the group"),
            Self::Joining(Some(view)) => write!(f, "joining after {view}"),
            Self::Installed(view) => write!(f, "installed {view}"),
            Self::Changing(view, phase) => write!(f, "leaving {view}: {phase}"),
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
    /// Dial this node until there is a control link, and again when it is lost.
    Know(NodeId, SocketAddr),
    /// Dial who is at this address, whoever it is.
    Seek(SocketAddr),
    /// Close the control link to a node, and dial it no more.
    Forget(NodeId),
    /// Say something to a peer.
    Say(NodeId, Message),
    /// The driver is to do this.
    Drive(Order),
}

/// How long the first word about missing members is held back, and how far apart later ones are: nobody wants to
/// read of nodes that start a moment later.
const PATIENCE: Duration = Duration::from_millis(300);

/// The membership of one node. See the [module](self).
pub struct Membership {
    terms: Terms,
    address: SocketAddr,
    role: Role,
    start_within: Option<Duration>,
    quorum_within: Duration,
    /// By shard.
    slow: Vec<SlowPolicy>,
    rejoin: bool,
    /// Where the group may be found: what the configuration says, and the members of views since.
    seeds: BTreeSet<SocketAddr>,
    founders: BTreeMap<NodeId, SocketAddr>,
    started: Time,
    incarnation: Incarnation,
    offer: Vec<u8>,
    /// What this node has on disk, until there is a group.
    held: Option<Held>,
    /// What was written down last that it agrees to have next.
    noted: Option<View>,
    /// The durable shards of which its log lacks something.
    lacking: BTreeSet<ShardId>,
    /// Since when there are enough to begin again, but not all (P3).
    enough_since: Option<Time>,
    /// A first view that was proposed, by whom, and until when this node waits to meet all who are in it.
    proposed: Option<(Time, NodeId, View)>,
    phase: Phase,
    peers: BTreeMap<NodeId, Peer>,
    links: DataLinks,
    detection: Detection,
    /// The change that ends the installed view, begun or not.
    change: Option<Change>,
    changing: changing::Changing,
    /// The decision that made the installed view.
    last: Option<Next>,
    /// The view before the installed one.
    before: Option<View>,
    /// The last session of this node in each place of its segment (V10).
    places: BTreeMap<Place, Used>,
    /// Sessions that were wedged here, by shard and the view with which they began.
    wedged: BTreeSet<(ShardId, ViewId)>,
    /// Joiners, by node.
    joiners: BTreeMap<NodeId, Joiner>,
    /// What this node learns, by shard: before it is a member, and for a moment after.
    learning: BTreeMap<ShardId, Learning>,
    /// Who learns from this node.
    teaching: BTreeMap<(ShardId, NodeId), Pupil>,
    /// Learners of shards that have caught up.
    ready: BTreeSet<Ready>,
    /// Since when this node tries to join.
    joining_since: Time,
    /// Members that want to leave, this node perhaps among them.
    leaving: BTreeSet<NodeId>,
    /// Parts of rings that others want and the driver reads.
    wanted: Vec<(NodeId, Want)>,
    /// The data plane's last word, and when that was.
    sessions: Vec<SessionState>,
    pulsed: Option<Time>,
    /// When a joiner last dialled its seeds.
    sought: Time,
    /// What was said about views that this node has not come to yet.
    early: VecDeque<(NodeId, Message)>,
    /// Attempts that came to nothing, since the start.
    failures: u32,
    /// Members that this node found standing still in this view (V9).
    still: BTreeSet<NodeId>,
    /// Members to whom the fabric's link broke.
    doubts: BTreeMap<NodeId, doubt::Doubt>,
    /// Whom this node took for gone last, of each node one life.
    lost: BTreeMap<NodeId, Lost>,
    told: Vec<Absent>,
    tell_at: Option<Time>,
    random: Random,
    /// A rule to break on purpose, so that tests can show that they would notice: a failed attempt leaves the incarnation
    /// as it is.
    #[cfg(test)]
    pub(crate) keeps_incarnation: bool,
    /// Another.
    #[cfg(test)]
    pub(crate) mutant: Option<change::Mutant>,
    decisions: VecDeque<Decision>,
}

/// Another node.
#[derive(Default)]
struct Peer {
    /// What it said, while there is a control link.
    hello: Option<Hello>,
    /// Why there is none, as far as is known.
    trouble: Option<String>,
    /// Founding, to the proposer: it is ready.
    ready: bool,
    /// Of each shard the last session that is over there.
    retired: BTreeMap<ShardId, ViewId>,
}

/// A session that was started in a place of this node's segment.
struct Used {
    since: ViewId,
    members: Vec<(NodeId, Incarnation)>,
    /// It is over here, and nothing of it needed.
    retired: bool,
}

/// A node that wants to become a member.
struct Joiner {
    member: Member,
    /// Whom it is linked to, of which view.
    linked: BTreeSet<Incarnation>,
    /// Whose state it has.
    source: Option<Incarnation>,
    /// When to try (again) to admit it, and how long to wait for the time after.
    try_at: Time,
    pause: Duration,
}

impl Membership {
    /// Membership as configured. Begins with [`Phase::Renewing`]: tell [`Membership::on_prepared`] of the first fabric.
    pub fn new(config: &NodeConfig, random: Random, now: Time) -> Self {
        let seeds = config.join.iter().chain(config.peers.values()).copied().collect();
        Self {
            terms: Terms::new(config),
            address: config.address(),
            role: config.role,
            start_within: config.start_within,
            quorum_within: config.quorum_within,
            slow: config.slow_by_shard(),
            rejoin: config.rejoin,
            seeds,
            founders: config.peers.clone(),
            started: now,
            incarnation: Incarnation(0),
            offer: Vec::new(),
            held: None,
            noted: None,
            lacking: BTreeSet::new(),
            enough_since: None,
            proposed: None,
            phase: Phase::Renewing { at: now, asked: true },
            peers: config.peers.keys().map(|node| (*node, Peer::default())).collect(),
            links: DataLinks::default(),
            detection: Detection::new(config.silence, now),
            change: None,
            changing: changing::Changing::default(),
            last: None,
            before: None,
            places: BTreeMap::new(),
            wedged: BTreeSet::new(),
            joiners: BTreeMap::new(),
            learning: BTreeMap::new(),
            teaching: BTreeMap::new(),
            ready: BTreeSet::new(),
            joining_since: now,
            leaving: BTreeSet::new(),
            wanted: Vec::new(),
            sessions: Vec::new(),
            pulsed: None,
            sought: now,
            early: VecDeque::new(),
            failures: 0,
            still: BTreeSet::new(),
            doubts: BTreeMap::new(),
            lost: BTreeMap::new(),
            told: Vec::new(),
            tell_at: Some(now.plus(PATIENCE)),
            random,
            #[cfg(test)]
            keeps_incarnation: false,
            #[cfg(test)]
            mutant: None,
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

    /// Whom this node has taken for gone: of each node the last life that it did so of.
    pub fn lost(&self) -> impl Iterator<Item = &Lost> {
        self.lost.values()
    }

    /// The view that is installed, or ends.
    pub fn view(&self) -> Option<&View> {
        match &self.phase {
            Phase::Installed(view) | Phase::Changing(view, _) => Some(view),
            _ => None,
        }
    }

    /// Why this node won't have a link with who said this, if so.
    ///
    /// # Errors
    /// The reason, for both sides.
    pub fn judge(&self, hello: &Hello) -> Result<(), String> {
        let founding =
            matches!(self.phase, Phase::Renewing { .. } | Phase::Gathering | Phase::Linking { .. });
        self.terms.judge(hello, founding)
    }

    /// The fabric was made; this is its offer.
    pub fn on_prepared(&mut self, now: Time, offer: Vec<u8>) {
        if !matches!(self.phase, Phase::Renewing { .. }) {
            return;
        }
        self.offer = offer;
        self.proposed = None;
        self.renew_incarnation();
        self.detection.restart(now);
        if self.terms.joins || self.others_go_on() {
            self.phase = Phase::Joining(None);
            self.joining_since = now;
            self.decide(Decision::Greet(self.hello(None)));
            self.seek(now);
        } else {
            self.phase = Phase::Gathering;
            self.decide(Decision::Greet(self.hello(None)));
            for (node, address) in self.founders.clone() {
                self.decide(Decision::Know(node, address));
            }
            self.seek(now);
            self.gather(now);
        }
    }

    /// Whether the group can go on without any founder: then it may run although no founder knows of it, and none may found another.
    fn others_go_on(&self) -> bool {
        let view = self.last.iter().flat_map(|last| &last.view.members);
        view.clone().any(|it| it.node != self.terms.me && !self.founders.contains_key(&it.node))
    }

    /// What this node has on disk. Told before [`Membership::on_prepared`].
    pub fn on_held(&mut self, held: Option<Held>) {
        self.held = held;
    }

    /// P3: this node agrees to have that view next. It says so after that is written down, if anything is written down at all.
    fn note(&mut self, view: &View, behind: Option<View>) {
        if self.noted.as_ref() != Some(view) && !self.terms.durable().is_empty() {
            self.noted = Some(view.clone());
            self.drive(Order::Note { view: view.clone(), behind });
        }
    }

    /// This node's log of a shard lacks something (P3).
    pub fn on_lacks(&mut self, shard: ShardId) {
        self.lacking.insert(shard);
    }

    /// It lacks nothing any more.
    pub fn on_whole(&mut self, now: Time, shard: ShardId) {
        if self.lacking.remove(&shard)
            && let Some(change) = &mut self.change
        {
            change.on_whole(shard);
            self.pump(now, self.terms.me);
        }
    }

    /// The driver has something to say to another's, of a log (P3).
    pub fn on_log_lacked(&mut self, node: NodeId, message: Message) {
        self.say(node, message);
    }

    /// The control link to a peer is up; this is its hello, which [`Membership::judge`] found right.
    pub fn on_up(&mut self, now: Time, hello: Hello) {
        let node = hello.node;
        self.detection.on_heard(node);
        let peer = self.peers.entry(node).or_default();
        peer.trouble = None;
        peer.retired.clear();
        peer.hello = Some(hello);
        match self.phase {
            Phase::Gathering => self.gather(now),
            Phase::Linking { .. } => self.link_to(now, node),
            Phase::Joining(_) => self.meet_again(now, node),
            Phase::Installed(_) | Phase::Changing(..) => self.greeted(now, node),
            Phase::Renewing { .. } | Phase::Stopped(_) => {}
        }
    }

    /// The control link to a peer is gone.
    pub fn on_down(&mut self, now: Time, node: NodeId, incarnation: Incarnation, why: &str) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if peer.hello.as_ref().is_some_and(|hello| hello.incarnation == incarnation) {
            peer.hello = None;
            peer.trouble = Some(why.to_owned());
        }
        match self.phase {
            Phase::Gathering => self.gather(now),
            Phase::Linking { .. } => self.fail(now, node, why),
            Phase::Joining(_) => self.missed(now, node, incarnation),
            Phase::Installed(_) | Phase::Changing(..) => {
                self.gone(now, node, incarnation, &format!("its control link broke ({why})"));
            }
            Phase::Renewing { .. } | Phase::Stopped(_) => {}
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
        self.detection.on_heard(node);
        match (&self.phase, message) {
            (Phase::Stopped(_), _) | (_, Message::Alive) => {}
            (Phase::Gathering | Phase::Joining(_), Message::Welcome { view }) => {
                self.on_welcome(now, node, &view);
            }
            (Phase::Gathering, Message::Propose(view)) => self.on_proposal(now, node, view),
            (Phase::Linking { .. }, Message::Ready) => self.on_ready(now, node),
            (Phase::Linking { ready: true, .. }, Message::Commit) => self.on_commit(now, node),
            (_, Message::Change { view, saying }) => self.on_change(now, node, view, saying),
            (_, Message::Retired(shard, view)) => self.on_peer_retired(node, shard, view),
            (_, Message::Leaving) => self.on_leaving(now, node),
            (_, Message::Linked { to, source, .. }) => self.on_linked(now, node, to, source),
            (_, Message::Caught { shard, source }) => self.on_caught(now, node, shard, source),
            (_, Message::Learn { shard, attempt, held }) => self.on_learn(node, shard, attempt, held),
            (_, Message::Lesson { shard, attempt, lesson }) => {
                self.on_lesson(now, node, shard, attempt, lesson);
            }
            (_, Message::Took { shard, attempt, took }) => self.on_pupil_took(node, shard, attempt, took),
            (_, Message::Want(want)) => self.on_want(node, want),
            (_, Message::Part { want, at, bytes, last }) => self.on_part(node, want, at, &bytes, last),
            (_, Message::WantLog { shard, since, behind, chain, at }) => {
                if self.terms.has(shard) {
                    self.drive(Order::ReadLog { node, shard, since, behind, chain, at });
                }
            }
            (_, Message::LogPart { shard, behind, at, given }) => {
                if self.terms.has(shard) {
                    self.drive(Order::LogPart { node, shard, behind, at, given });
                }
            }
            (_, Message::Goodbye(goodbye)) => self.on_goodbye(now, node, &goodbye),
            // Founding's words that come late, or from who begins anew, say nothing any more.
            (_, Message::Propose(_) | Message::Ready | Message::Commit | Message::Welcome { .. }) => {}
            (phase, message) => {
                let reason = format!("it said {message:?} while this node was {phase}");
                self.misbehaved(now, node, reason);
            }
        }
    }

    /// A link of the fabric is up.
    pub fn on_fabric_up(&mut self, now: Time, number: LinkNumber, carrier: &'static str) {
        if self.links.on_up(number, carrier).is_none() {
            return;
        }
        match self.phase {
            Phase::Linking { .. } => self.link(now),
            Phase::Joining(_) => self.linked(now),
            Phase::Installed(_) | Phase::Changing(..) => self.look_for_reasons(now),
            _ => {}
        }
    }

    /// A link of the fabric is gone, or never came.
    pub fn on_fabric_down(&mut self, now: Time, number: LinkNumber, why: &LinkDown) {
        let Some((node, incarnation)) = self.links.node_of(number) else { return };
        let carrier = self.links.carrier(node).unwrap_or(&self.terms.fabric);
        let words = format!("fabric {carrier}: {why}");
        match self.phase {
            Phase::Linking { .. } => self.fail(now, node, &words),
            Phase::Joining(_) => {
                self.missed(now, node, incarnation);
                self.begin_again(node);
            }
            Phase::Installed(_) | Phase::Changing(..) => {
                // F5: a proof against this node, not against the peer.
                if let LinkDown::Own(what) = why {
                    return self.alone(now, Stopped::NoFabric(format!("{carrier}: {what}")));
                }
                self.sever(node);
                match why {
                    LinkDown::Broken(_) => self.doubt(now, node, incarnation, words),
                    _ => self.gone(now, node, incarnation, &words),
                }
            }
            _ => {}
        }
    }

    /// A peer broke the data plane's protocol (S1).
    pub fn on_fault(&mut self, now: Time, node: NodeId, reason: String) {
        self.misbehaved(now, node, reason);
    }

    /// The sessions of a view are wedged.
    pub fn on_wedged(&mut self, now: Time, view: ViewId, frozen: Vec<Frozen>) {
        self.wedged(now, view, frozen);
    }

    /// A part of a ring that another member wants was read.
    pub fn on_bytes(&mut self, part: Part, bytes: Option<&[u8]>) {
        self.send_part(part, bytes);
    }

    /// A part of a ring that was missing is there, or can't be.
    pub fn on_supplied(&mut self, now: Time, part: Part, sound: bool) {
        self.supplied(now, part, sound);
    }

    /// The session of a shard that began with that view is over here (V10).
    pub fn on_retired(&mut self, now: Time, shard: ShardId, since: ViewId) {
        self.retire(now, shard, since);
    }

    /// The data plane's heartbeat, and how it sees the others' (V9).
    pub fn on_pulse(&mut self, now: Time, pulse: Pulse) {
        self.pulse(now, pulse);
    }

    /// The application wants to leave in order (V8).
    pub fn on_leave(&mut self, now: Time) {
        self.leave(now);
    }

    /// This node itself can't go on.
    pub fn on_broken(&mut self, reason: String) {
        self.stop(Goodbye::Broken(reason.clone()), Stopped::Machine(reason));
    }

    /// The application left without order.
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
        let gathers = self.phase == Phase::Gathering && self.gather_due().is_some_and(|at| at <= now);
        match &mut self.phase {
            Phase::Renewing { at, asked } if !*asked && *at <= now => {
                *asked = true;
                self.decide(Decision::Prepare);
            }
            Phase::Linking { since, .. } if since.plus(linking::WITHIN) <= now => self.too_slow(now),
            Phase::Joining(_) => self.seek_again(now),
            Phase::Gathering if gathers => self.gather(now),
            Phase::Installed(_) | Phase::Changing(..) => self.watch(now),
            _ => {}
        }
        if self.tell_at.is_some_and(|at| at <= now) {
            self.tell_at = None;
            self.told = self.absent();
            if !self.told.is_empty() && !self.has_started() {
                self.decide(Decision::Drive(Order::Wait(self.told.clone())));
            }
        }
    }

    /// When [`Membership::on_time`] is due at the latest.
    pub fn due(&self) -> Option<Time> {
        let phase = match &self.phase {
            Phase::Renewing { at, asked: false } => Some(*at),
            Phase::Linking { since, .. } => Some(since.plus(linking::WITHIN)),
            Phase::Joining(_) | Phase::Installed(_) | Phase::Changing(..) => self.watch_due(),
            Phase::Gathering => self.gather_due(),
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
            Phase::Installed(_) | Phase::Changing(..) | Phase::Stopped(_) | Phase::Joining(_) => {
                return Vec::new();
            }
            Phase::Linking { view, .. } => Some(view),
            _ => None,
        };
        if let Some(absent) = self.lacking() {
            return absent;
        }
        let absent = self.founders.keys().filter_map(|node| {
            let fabric = &self.terms.fabric;
            let peer = self.peers.get(node)?;
            let why = match (&peer.hello, view) {
                (None, _) => peer.trouble.clone().unwrap_or_else(|| "not reached yet".to_owned()),
                (Some(hello), None) if !matches!(hello.standing, Standing::Founding { .. }) => {
                    "its group runs already, and lets this node in".to_owned()
                }
                (Some(hello), None) if hello.engaged.is_some() => {
                    "it is still bound to an attempt that failed".to_owned()
                }
                (Some(_), Some(_)) if self.wants_link(*node) && !self.links.is_up(*node) => {
                    format!("its {fabric} link isn't up yet")
                }
                // Only the proposer hears who is ready.
                (Some(_), Some(view)) if Some(self.terms.me) == proposer_of(view) && !peer.ready => {
                    "it isn't linked to everyone yet".to_owned()
                }
                _ => return None,
            };
            Some(Absent { node: *node, why })
        });
        absent.collect()
    }

    fn hello(&self, engaged: Option<Incarnation>) -> Hello {
        let standing = match &self.phase {
            Phase::Installed(view) | Phase::Changing(view, _) => Standing::Member { view: view.id },
            Phase::Joining(_) => Standing::Joining,
            _ => Standing::Founding { members: self.terms.members.iter().map(|node| node.0).collect() },
        };
        let mut hello = self.terms.hello(
            self.incarnation,
            engaged,
            standing,
            self.role,
            self.address,
            self.offer.clone(),
        );
        if matches!(hello.standing, Standing::Founding { .. }) {
            hello.held = self.held.clone().map(Box::new);
        }
        hello
    }

    fn me(&self) -> Member {
        Member {
            node: self.terms.me,
            incarnation: self.incarnation,
            address: self.address,
            role: self.role,
            domain: self.terms.domain,
        }
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

    fn drive(&mut self, order: Order) {
        self.decide(Decision::Drive(order));
    }

    fn say(&mut self, to: NodeId, message: Message) {
        if self.peers.get(&to).is_some_and(|peer| peer.hello.is_some()) {
            self.decide(Decision::Say(to, message));
        }
    }

    fn say_all(&mut self, message: &Message) {
        let linked: Vec<_> =
            self.peers.iter().filter(|(_, p)| p.hello.is_some()).map(|(node, _)| *node).collect();
        for node in linked {
            self.decide(Decision::Say(node, message.clone()));
        }
    }

    fn start_deadline(&self) -> Option<Time> {
        self.start_within.filter(|_| !self.has_started()).map(|within| self.started.plus(within))
    }

    /// Whether there is a view, was one, or won't be any.
    fn has_started(&self) -> bool {
        self.last.is_some()
            || matches!(self.phase, Phase::Installed(_) | Phase::Changing(..) | Phase::Stopped(_))
    }

    /// A node did what no sound node does (S1).
    fn misbehaved(&mut self, now: Time, node: NodeId, reason: String) {
        match self.phase {
            Phase::Installed(_) | Phase::Changing(..) => {
                tracing::error!(%node, reason, "it breaks the protocol and is cut off");
                self.sever(node);
                if let Some(incarnation) = self.incarnation_of(node) {
                    self.gone(now, node, incarnation, &format!("it breaks the protocol: {reason}"));
                }
                self.decide(Decision::Forget(node));
            }
            Phase::Joining(_) => self.decide(Decision::Forget(node)),
            _ => {
                let goodbye = Goodbye::Misbehaved { node, by: self.terms.me, reason: reason.clone() };
                self.stop(goodbye, Stopped::PeerMisbehaved { node, reason });
            }
        }
    }

    fn stop(&mut self, goodbye: Goodbye, reason: Stopped) {
        if !matches!(self.phase, Phase::Stopped(_)) {
            self.say_all(&Message::Goodbye(goodbye));
            self.tell_at = None;
            self.phase = Phase::Stopped(reason.clone());
            self.drive(Order::Stop(reason));
        }
    }

    /// Whether this node's fabric is to be linked to that member's: both hold data.
    fn wants_link(&self, node: NodeId) -> bool {
        let data = |hello: &Hello| hello.role == Role::Data;
        self.role == Role::Data && self.peers.get(&node).and_then(|it| it.hello.as_ref()).is_some_and(data)
    }
}

/// Who proposes a first view: the first of its members.
fn proposer_of(view: &View) -> Option<NodeId> {
    view.members.first().map(|member| member.node)
}

#[cfg(test)]
mod tests;
