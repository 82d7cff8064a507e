//! What passes between the control thread and the driver: [`Order`]s one way, [`Report`]s the other. Values; each side has a
//! queue, and neither waits for the other.

use std::collections::BTreeMap;

use consort_dataplane::fabric::LinkDown;
use consort_dataplane::names::{NodeId, Slot, ViewId};
use consort_dataplane::session::{Blocked, Frontiers};

use crate::change::{Cut, Frozen};
use crate::held::Held;
use crate::stop::{Absent, Stopped};
use crate::transfer::{Given, Lesson, Pupil, Took};
use crate::view::{ShardId, View};

/// Names one link of this node's fabric. A slot is used again, a number never: so news of an old link can be told from news of the
/// one that has its slot now.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LinkNumber(pub u64);

/// A view to install.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Install {
    /// The view.
    pub view: View,
    /// Of a group's first the view behind which it goes on, if it does.
    pub behind: Option<ViewId>,
    /// The links to its other members.
    pub slots: BTreeMap<NodeId, Slot>,
    /// Where the sessions of the view before end that end; `None` where there is none to end: the first view, or a joiner's.
    pub cut: Option<Vec<Cut>>,
    /// Durable shards whose log is here as far as it is anywhere: the view stands behind that. Of others this node gets what it lacks from a member first,
    /// unless it was a member just before.
    pub level: Vec<ShardId>,
    /// Shards of which a member that is gone may still read the memory that their new sessions use: take fresh memory (V10).
    pub renew: Vec<ShardId>,
}

/// Something that the driver has to do, in the order in which it is said.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Order {
    /// Make a fabric instead of the one there is, and report its offer under this number.
    Prepare(u64),
    /// Link the fabric to a peer.
    Link {
        /// Where.
        slot: Slot,
        /// What reports about it are to carry.
        number: LinkNumber,
        /// To whom.
        node: NodeId,
        /// Its offer.
        offer: Vec<u8>,
    },
    /// Fence the link in this slot (F4), and give the slot up.
    Unlink(Slot),
    /// Stop the sessions of these shards for good (V2), fence these links, then report [`Report::Wedged`]. May be said again, with more
    /// to stop and to fence.
    Wedge {
        /// The view that ends.
        view: ViewId,
        /// Whose sessions.
        shards: Vec<ShardId>,
        /// Whom to fence.
        fence: Vec<Slot>,
    },
    /// Read a part of a ring, as it was received here in a session that is wedged, for a member that lacks it (V3); report
    /// [`Report::Bytes`].
    Read(Part),
    /// Here is a part of a ring that was missing (V3); report [`Report::Supplied`].
    Supply {
        /// Which part.
        part: Part,
        /// Its bytes.
        bytes: Vec<u8>,
    },
    /// Deliver what lies below the trims, then the view, then start its session (V4).
    Install(Install),
    /// Ask the application for a snapshot for this pupil, which has so many pieces from before, and record what it is given from there
    /// on (V7); report [`Report::Lesson`]s.
    Teach(Pupil, u64),
    /// A pupil says how far it is.
    Took(Pupil, Took),
    /// That node learns no more from here, of this shard.
    EndTeaching(ShardId, NodeId),
    /// Learn a shard's state anew, from somebody else perhaps: the attempt of this number. Pieces that are here stay as long as they fit
    /// (V7).
    Learn(ShardId, u64),
    /// A lesson of that attempt; report [`Report::Took`].
    Lesson(ShardId, u64, Lesson),
    /// Learn no more of a shard: this node is not to have it any longer.
    Unlearn(ShardId),
    /// Tell the application for whom the start waits.
    Wait(Vec<Absent>),
    /// This incarnation is over, and another will begin with [`Order::Prepare`]: nothing of the view's sessions is delivered any more.
    Over(Stopped),
    /// Write down that this node agrees to a view (P3); then report [`Report::Noted`].
    Note {
        /// The view that it agrees to have next.
        view: View,
        /// Of a first view the one that it follows; none of one that is voted for.
        behind: Option<View>,
    },
    /// A node wants more of a shard's log (P3); report [`Report::LogPart`].
    ReadLog {
        /// Who.
        node: NodeId,
        /// Which shard's.
        shard: ShardId,
        /// The session that it wants to come to began with this view.
        since: ViewId,
        /// Behind this record,
        behind: u64,
        /// with this chain,
        chain: u32,
        /// from this byte on.
        at: u64,
    },
    /// More of a log, as [`Report::WantLog`] asked for.
    LogPart {
        /// From whom.
        node: NodeId,
        /// Of which shard.
        shard: ShardId,
        /// Behind this record,
        behind: u64,
        /// from this byte on.
        at: u64,
        /// What lies there.
        given: Given,
    },
    /// Stop, for good.
    Stop(Stopped),
}

/// A part of a member's ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Part {
    /// The view with which the session began.
    pub view: ViewId,
    /// Its shard.
    pub shard: ShardId,
    /// The rank of the ring's owner.
    pub rank: usize,
    /// From here, in bytes since the session began,
    pub from: u64,
    /// to here.
    pub to: u64,
}

/// How the data plane of this node is, and sees the others'.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Pulse {
    /// How often every other member's data plane has beaten (V9).
    pub beats: Vec<(NodeId, u64)>,
    /// How often, in each of its sessions, every other member's application has beaten: it takes what is delivered, or nothing waits for it.
    pub takes: Vec<(ShardId, NodeId, u64)>,
    /// Its sessions, oldest first.
    pub sessions: Vec<SessionState>,
}

/// How far a session is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SessionState {
    /// Its shard.
    pub shard: ShardId,
    /// The view with which it began.
    pub view: ViewId,
    /// It is stopped for good (V2).
    pub wedged: bool,
    /// Its counters.
    pub frontiers: Frontiers,
    /// What keeps its next message from being delivered (V11).
    pub blocked: Option<Blocked>,
    /// The words about the members' states that they have published, of those who have.
    pub digests: Vec<(NodeId, u64)>,
}

/// Something that the driver tells. What is about a fabric or a link carries its number: news of an old one is thrown away.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Report {
    /// The fabric is there, with this offer.
    Prepared(u64, Vec<u8>),
    /// A link is up, over this kind of fabric.
    Up(LinkNumber, &'static str),
    /// A link is gone, or never came.
    Down(LinkNumber, LinkDown),
    /// A peer broke the data plane's protocol.
    Fault(NodeId, String),
    /// What was to be wedged in this view is, who was to be fenced is, and this is where all sessions stand that are wedged and not cut.
    Wedged(ViewId, Vec<Frozen>),
    /// What was to be read; `None` if it isn't all here.
    Bytes(Part, Option<Vec<u8>>),
    /// What was missing is there; `false` if it can't be: it is no part of that ring.
    Supplied(Part, bool),
    /// The session of a shard that began with this view is over here: delivered up to the trim, own messages beyond it sent again, no
    /// memory of it lent to anyone (V10).
    Retired(ShardId, ViewId),
    /// With each heartbeat of this node's data plane.
    Pulse(Pulse),
    /// A lesson for a pupil.
    Lesson(Pupil, Lesson),
    /// In that attempt, this has been learned.
    Took(ShardId, u64, Took),
    /// In that attempt, the application has all that has come.
    CaughtUp(ShardId, u64),
    /// In that attempt, the application has everything up to the view that admits this node.
    Learned(ShardId, u64),
    /// That attempt came to nothing: what the source said was not sound, or there is no room for it.
    Unlearned(ShardId, u64, String),
    /// The application wants to leave, and all that this node sent is delivered (V8).
    Leaving,
    /// The application left without order.
    Left,
    /// What this node has on disk, told before [`Report::Prepared`].
    Held(Option<Held>),
    /// What was to be written down is.
    Noted,
    /// This node's log of a shard lacks something, and gets it.
    Lacks(ShardId),
    /// It has that, on disk.
    Whole(ShardId),
    /// This node wants more of a shard's log.
    WantLog {
        /// From whom.
        node: NodeId,
        /// Which shard's.
        shard: ShardId,
        /// For the session that began with this view,
        since: ViewId,
        /// Behind this record,
        behind: u64,
        /// with this chain,
        chain: u32,
        /// from this byte on.
        at: u64,
    },
    /// What a node wanted of a log.
    LogPart {
        /// Who.
        node: NodeId,
        /// Of which shard.
        shard: ShardId,
        /// Behind this record,
        behind: u64,
        /// from this byte on.
        at: u64,
        /// What lies there.
        given: Given,
    },
    /// This node can't go on.
    Broken(String),
}
