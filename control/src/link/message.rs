//! What is said on control links, in postcard's encoding. Decoding is total: whatever bytes come, the result is a message
//! within its bounds or an error.

use std::net::SocketAddr;

use consort_dataplane::names::{MAX_NODES, NodeId, ViewId};
use serde::{Deserialize, Serialize};

use super::frame::{HELLO_LEN, PEER_LEN, STRANGER_LEN};
use crate::change::{Next, Report, Saying};
use crate::config::{CLUSTER_LEN, FABRIC_LEN, SHARDS};
use crate::held::Held;
use crate::transfer::{CHUNK, Given, Lesson, REASON, Took};
use crate::view::{Domain, Incarnation, Role, ShardId, View, node_id, view_id};

/// The longest offer of a fabric, in bytes. A hello with it fits a stranger's frame.
pub const OFFER_LEN: usize = 2048;

/// The most bytes of a ring, or of an answer, in one message: what is longer goes in pieces.
pub const PIECE_LEN: usize = 64 << 10;

/// The longest reason that a node gives, in bytes.
const REASON_LEN: usize = STRANGER_LEN;

/// The longest that a hello says of what a node has on disk.
pub const HELD_LEN: usize = HELLO_LEN - (8 << 10);

/// Something that one node says to another.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Message {
    /// First on every connection, both ways: the seal shows that the sender may speak.
    Proof,
    /// Who the sender is and what it takes the group to be. Second on every connection between nodes, both ways.
    Hello(Hello),
    /// From the lower id: of the connections between us, this one counts.
    Use,
    /// From the proposer: shall this be the first view?
    Propose(View),
    /// To the proposer: I am linked to all members of your view, and will install it when you say so.
    Ready,
    /// From the proposer: all are ready, the view is decided.
    Commit,
    /// The sender leaves, for good; nothing follows.
    Goodbye(Goodbye),
    /// I live (V9).
    Alive,
    /// About the change that ends this view (V1 to V4).
    Change {
        /// The view that ends.
        #[serde(with = "view_id")]
        view: ViewId,
        /// What is said about it.
        saying: Saying,
    },
    /// The session of a shard that began with this view is over at the sender, and nothing of its memory is lent to anyone there (V10).
    Retired(ShardId, #[serde(with = "view_id")] ViewId),
    /// From a member to all: it leaves, and nothing that it sent is under way any more (V8).
    Leaving,
    /// From a member to a joiner: this is the view; link to its members.
    Welcome {
        /// The view.
        view: View,
    },
    /// From a joiner to all members: it is linked to these, and caught up (V7).
    Linked {
        /// To whom.
        to: Vec<Incarnation>,
        /// From whom it has its state, if there is a state to have.
        source: Option<Incarnation>,
    },
    /// From a learner to all: it has caught up with a shard, whose state it has from that member (V7).
    Caught {
        /// Which.
        shard: ShardId,
        /// From whom.
        source: Incarnation,
    },
    /// From a joiner, or a shard's learner, to a member of it: teach me your state (V7).
    Learn {
        /// Of which shard.
        shard: ShardId,
        /// The how manyth time it asks anyone.
        attempt: u64,
        /// So many pieces of a snapshot it has from before.
        held: u64,
    },
    /// The answer, lesson by lesson.
    Lesson {
        /// As in what it answers.
        shard: ShardId,
        /// As in what it answers.
        attempt: u64,
        /// The lesson.
        lesson: Lesson,
    },
    /// From a pupil to its source: how far it is.
    Took {
        /// As in what it asked.
        shard: ShardId,
        /// As in what it asked.
        attempt: u64,
        /// How far.
        took: Took,
    },
    /// To a member of a durable shard: give me more of your log (P3). A stream of records behind one, from some byte on.
    WantLog {
        /// Which shard's.
        shard: ShardId,
        /// For the session that began with this view,
        #[serde(with = "view_id")]
        since: ViewId,
        /// Behind this record,
        behind: u64,
        /// with this chain,
        chain: u32,
        /// from this byte on.
        at: u64,
    },
    /// The answer.
    LogPart {
        /// As in what it answers.
        shard: ShardId,
        /// As in what it answers.
        behind: u64,
        /// As in what it answers.
        at: u64,
        /// What lies there, at most [`PIECE_LEN`].
        given: Given,
    },
    /// To a member that has it: give me this part of a ring (V3).
    Want(Want),
    /// A piece of what was wanted.
    Part {
        /// What was wanted.
        want: Want,
        /// Where in the part the piece begins, in bytes.
        at: u64,
        /// The piece; at most [`PIECE_LEN`].
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
        /// Nothing of the part follows.
        last: bool,
    },
    /// From who is no node, instead of a hello: an operator's question.
    Ask(Question),
    /// The answer, or a piece of it.
    Answer {
        /// Nothing of the answer follows.
        last: bool,
        /// JSON, or a piece of it; at most [`PIECE_LEN`] bytes.
        text: String,
    },
}

/// Who a node is and what it takes the group to be.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Hello {
    /// The cluster's name.
    pub cluster: String,
    /// The node.
    #[serde(with = "node_id")]
    pub node: NodeId,
    /// Which of its lives.
    pub incarnation: Incarnation,
    /// The proposer for whose view it is spoken for, if it is.
    pub engaged: Option<Incarnation>,
    /// Where its control links are to be dialled.
    pub address: SocketAddr,
    /// How it belongs to the group.
    pub standing: Standing,
    /// What it does, or will.
    pub role: Role,
    /// The fabric's name.
    pub fabric: String,
    /// When messages are delivered.
    pub guarantee: String,
    /// Bytes of every member's ring.
    pub ring_bytes: u64,
    /// Its application has a state that joiners get.
    pub state: bool,
    /// What it fails with.
    pub domain: Domain,
    /// What stands for its groups beside the main one: equal if they are.
    pub groups: u64,
    /// What the fabric must know to link to this node.
    pub offer: Vec<u8>,
    /// What it has on disk from an earlier life (P3).
    pub held: Option<Box<Held>>,
}

/// How a node belongs to its group.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Standing {
    /// It is one of those who make the first view.
    Founding {
        /// All of these, in ascending order.
        members: Vec<u32>,
    },
    /// It is a member of this view, the last that it knows of.
    Member {
        /// The view.
        #[serde(with = "view_id")]
        view: ViewId,
    },
    /// It wants to become one (V7).
    Joining,
}

/// A part of a ring that a member lacks (V3).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Want {
    /// The view with which the session began.
    #[serde(with = "view_id")]
    pub view: ViewId,
    /// Its shard.
    pub shard: ShardId,
    /// The rank of the ring's owner.
    pub rank: u32,
    /// From here, in bytes since the session began,
    pub from: u64,
    /// to here.
    pub to: u64,
}

/// What an operator may ask a node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum Question {
    /// Where it stands.
    Status,
    /// What it waits for: which member, which counter, which rule (V11).
    Explain,
}

/// How a node leaves.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Goodbye {
    /// In order: it delivered everything that every member sent.
    Ended,
    /// Its application left before that.
    Left,
    /// A member was lost. Passed on unchanged by those who stop for it, so that all name the same cause.
    Lost {
        /// Who was lost.
        #[serde(with = "node_id")]
        node: NodeId,
        /// By whom.
        #[serde(with = "node_id")]
        by: NodeId,
        /// How that is known.
        reason: String,
    },
    /// A member broke the protocol. Passed on like `Lost`.
    Misbehaved {
        /// Who did.
        #[serde(with = "node_id")]
        node: NodeId,
        /// Who says so.
        #[serde(with = "node_id")]
        by: NodeId,
        /// What it did.
        reason: String,
    },
    /// It can't go on, and why.
    Broken(String),
}

/// Bytes that are no message.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a message that can't be read: {0}")]
pub struct MessageError(String);

impl Message {
    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        // Nothing in a message fails to encode: no maps, no foreign types.
        postcard::to_stdvec(self).unwrap_or_default()
    }

    /// The message that these bytes are.
    ///
    /// # Errors
    /// They are none, or a field is out of its bounds, or something follows.
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        let (message, rest) =
            postcard::take_from_bytes::<Self>(bytes).map_err(|error| MessageError(error.to_string()))?;
        if !rest.is_empty() {
            return Err(MessageError(format!("{} bytes follow it", rest.len())));
        }
        message.is_bounded()?;
        Ok(message)
    }

    /// Whether every list and text in it has a length that may be.
    fn is_bounded(&self) -> Result<(), MessageError> {
        match self {
            Self::Hello(hello) => {
                bound("a cluster's name", hello.cluster.len(), CLUSTER_LEN)?;
                bound("a fabric's name", hello.fabric.len(), FABRIC_LEN)?;
                bound("a guarantee's name", hello.guarantee.len(), FABRIC_LEN)?;
                if let Standing::Founding { members } = &hello.standing {
                    bound("a list of members", members.len(), MAX_NODES)?;
                }
                bound("an offer", hello.offer.len(), OFFER_LEN)?;
                let Some(held) = &hello.held else { return Ok(()) };
                bound("a list of logs", held.tips.len(), SHARDS)?;
                is_bounded_view(&held.view)
            }
            Self::Propose(view) | Self::Welcome { view } => is_bounded_view(view),
            Self::Goodbye(
                Goodbye::Lost { reason, .. } | Goodbye::Misbehaved { reason, .. } | Goodbye::Broken(reason),
            ) => bound("a reason", reason.len(), REASON_LEN),
            Self::Change { saying, .. } => is_bounded_saying(saying),
            Self::Linked { to, .. } => bound("a list of links", to.len(), MAX_NODES),
            Self::Lesson { lesson, .. } if !lesson.is_bounded() => {
                Err(MessageError("a lesson longer than may be".to_owned()))
            }
            Self::Part { bytes, .. } => bound("a piece", bytes.len(), PIECE_LEN),
            Self::LogPart { given, .. } => bound("a piece", given.len(), PIECE_LEN),
            Self::Answer { text, .. } => bound("a piece of an answer", text.len(), PIECE_LEN),
            Self::Goodbye(Goodbye::Ended | Goodbye::Left)
            | Self::Proof
            | Self::Use
            | Self::Ready
            | Self::Commit
            | Self::Alive
            | Self::Retired(..)
            | Self::Leaving
            | Self::Want(_)
            | Self::WantLog { .. }
            | Self::Caught { .. }
            | Self::Learn { .. }
            | Self::Lesson { .. }
            | Self::Took { .. }
            | Self::Ask(_) => Ok(()),
        }
    }
}

fn bound(what: &str, len: usize, most: usize) -> Result<(), MessageError> {
    if len <= most { Ok(()) } else { Err(MessageError(format!("{what} of {len}, at most {most} may be"))) }
}

fn is_bounded_view(view: &View) -> Result<(), MessageError> {
    bound("a view", view.members.len(), MAX_NODES)?;
    bound("a view's shards", view.shards.len(), SHARDS)?;
    for shard in &view.shards {
        bound("a shard", shard.members.len(), MAX_NODES)?;
        bound("a shard's learners", shard.learners.len(), MAX_NODES)?;
    }
    Ok(())
}

fn is_bounded_saying(saying: &Saying) -> Result<(), MessageError> {
    match saying {
        Saying::Prepare { suspects, ending, .. } => {
            bound("a list of suspects", suspects.len(), MAX_NODES)?;
            bound("a list of sessions", ending.len(), SHARDS)
        }
        Saying::Promise { report, accepted, .. } => {
            is_bounded_report(report)?;
            accepted.as_ref().map_or(Ok(()), |(_, next)| is_bounded_next(next))
        }
        Saying::Accept { next, .. } | Saying::Decided(next) => is_bounded_next(next),
        Saying::Fill { missing, .. } => bound("a list of what is missing", missing.len(), SHARDS * MAX_NODES),
        Saying::Nudge | Saying::Outbid { .. } | Saying::Accepted { .. } => Ok(()),
    }
}

fn is_bounded_report(report: &Report) -> Result<(), MessageError> {
    bound("a list of sessions", report.frozen.len(), SHARDS)?;
    for frozen in &report.frozen {
        bound("a list of counters", frozen.received.len(), MAX_NODES)?;
    }
    bound("a list of lost links", report.severed.len(), MAX_NODES)?;
    bound("a list of suspects", report.suspects.len(), MAX_NODES)?;
    bound("a list of places", report.busy.len(), 2 * SHARDS)?;
    bound("a list of shards", report.lacks.len(), SHARDS)?;
    bound("a list of links", report.linked.len(), MAX_NODES)
}

fn is_bounded_next(next: &Next) -> Result<(), MessageError> {
    is_bounded_view(&next.view)?;
    bound("a list of cuts", next.cuts.len(), SHARDS)?;
    for cut in &next.cuts {
        bound("a list of trims", cut.trim.len(), MAX_NODES)?;
    }
    Ok(())
}

/// Lengths on the wire at most, in bytes: postcard's numbers take seven bits a byte.
mod wire {
    use super::{
        CHUNK, CLUSTER_LEN, Domain, FABRIC_LEN, MAX_NODES, OFFER_LEN, PIECE_LEN, REASON_LEN, SHARDS,
    };

    pub(super) const U16: usize = 3;
    pub(super) const U32: usize = 5;
    pub(super) const U64: usize = 10;
    /// Which of several; the length of a list within its bounds.
    pub(super) const VARIANT: usize = 1;
    pub(super) const LEN: usize = 3;

    const ADDRESS: usize = VARIANT + 16 + U16;
    const NODES: usize = LEN + MAX_NODES * U32;
    const INCARNATIONS: usize = LEN + MAX_NODES * U64;
    const MEMBER: usize = U32 + U64 + ADDRESS + VARIANT + Domain::LEN;
    const SHARD: usize = 2 * NODES + U64 + VARIANT;
    pub(super) const VIEW: usize = U64 + LEN + MAX_NODES * MEMBER + LEN + SHARDS * SHARD;
    const COUNTERS: usize = LEN + MAX_NODES * U64;
    const CUT: usize = U32 + COUNTERS;
    const NEXT: usize = VIEW + LEN + SHARDS * CUT;
    const BALLOT: usize = U64 + U32;
    const PLACE: usize = U32 + VARIANT;
    const REPORT: usize = LEN
        + SHARDS * (U32 + COUNTERS)
        + NODES
        + INCARNATIONS
        + LEN
        + 2 * SHARDS * PLACE
        + LEN
        + SHARDS * U32;
    const WANT: usize = U64 + U32 + U32 + U64 + U64;

    pub(super) const HELLO: usize = VARIANT
        + LEN
        + CLUSTER_LEN
        + U32
        + U64
        + VARIANT
        + U64
        + ADDRESS
        + VARIANT
        + NODES
        + VARIANT
        + 2 * (LEN + FABRIC_LEN)
        + U64
        + VARIANT
        + Domain::LEN
        + U64
        + LEN
        + OFFER_LEN;
    /// A promise with a value that was accepted: the longest that is said about a change.
    pub(super) const PROMISE: usize = VARIANT + U64 + VARIANT + BALLOT + REPORT + VARIANT + BALLOT + NEXT;
    const MISSING: usize = U32 + U64 + U64 + U32;
    pub(super) const FILL: usize = VARIANT + U64 + VARIANT + BALLOT + LEN + SHARDS * MAX_NODES * MISSING;
    pub(super) const PART: usize = VARIANT + WANT + U64 + LEN + PIECE_LEN + VARIANT;
    pub(super) const LESSON: usize = VARIANT + U32 + U64 + VARIANT + U64 + DIGEST + VARIANT + LEN + CHUNK;
    const DIGEST: usize = 32;
    pub(super) const GOODBYE: usize = 2 * VARIANT + 2 * U32 + LEN + REASON_LEN;
}

/// What a frame needs beside its message: kind and tag.
const FRAME: usize = 40;
const _: () = assert!(wire::HELLO + HELD_LEN + FRAME <= HELLO_LEN, "the longest hello fits its frame");
const _: () = assert!(wire::VARIANT + wire::VIEW + FRAME <= PEER_LEN, "the largest view fits a frame");
const _: () = assert!(wire::PROMISE + FRAME <= PEER_LEN, "the largest promise fits a frame");
const _: () = assert!(wire::FILL + FRAME <= PEER_LEN, "the longest list of what is missing fits a frame");
const _: () = assert!(wire::PART + FRAME <= PEER_LEN, "a piece fits a frame");
const _: () = assert!(wire::LESSON + FRAME <= PEER_LEN && REASON < CHUNK, "a lesson fits a frame");
const _: () = assert!(wire::GOODBYE + FRAME <= PEER_LEN, "the longest goodbye fits a frame");
// A list's length takes three bytes.
const _: () = assert!(
    PIECE_LEN < 1 << 21 && CHUNK < 1 << 21 && OFFER_LEN < 1 << 21 && MAX_NODES < 1 << 21 && SHARDS < 1 << 21
);

#[cfg(test)]
pub(crate) mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::change::{Ballot, Cut, Frozen, Missing, Place};
    use crate::view::{Member, Shard};

    fn text(most: usize) -> impl Strategy<Value = String> {
        vec(any::<char>(), 0..=most / 4).prop_map(|chars| chars.into_iter().collect())
    }

    fn address() -> impl Strategy<Value = SocketAddr> {
        any::<(std::net::IpAddr, u16)>().prop_map(SocketAddr::from)
    }

    fn role() -> impl Strategy<Value = Role> {
        prop_oneof![Just(Role::Data), Just(Role::Witness)]
    }

    fn view_number() -> impl Strategy<Value = ViewId> {
        any::<u64>().prop_map(ViewId)
    }

    fn nodes() -> impl Strategy<Value = Vec<NodeId>> {
        vec(any::<u32>().prop_map(NodeId), 0..=MAX_NODES)
    }

    fn incarnations() -> impl Strategy<Value = Vec<Incarnation>> {
        vec(any::<u64>().prop_map(Incarnation), 0..=MAX_NODES)
    }

    fn standing() -> impl Strategy<Value = Standing> {
        prop_oneof![
            vec(any::<u32>(), 0..=MAX_NODES).prop_map(|members| Standing::Founding { members }),
            view_number().prop_map(|view| Standing::Member { view }),
            Just(Standing::Joining),
        ]
    }

    fn hello() -> impl Strategy<Value = Hello> {
        (
            (text(CLUSTER_LEN), any::<u32>(), any::<u64>(), any::<Option<u64>>(), address()),
            (standing(), role(), text(FABRIC_LEN), text(FABRIC_LEN)),
            (any::<u64>(), any::<bool>(), vec(any::<u8>(), 0..=OFFER_LEN)),
        )
            .prop_map(
                |(
                    (cluster, node, incarnation, engaged, address),
                    (standing, role, fabric, guarantee),
                    (ring_bytes, state, offer),
                )| Hello {
                    held: None,
                    domain: Domain::new("rack").unwrap(),
                    groups: ring_bytes ^ 1,
                    cluster,
                    node: NodeId(node),
                    incarnation: Incarnation(incarnation),
                    engaged: engaged.map(Incarnation),
                    address,
                    standing,
                    role,
                    fabric,
                    guarantee,
                    ring_bytes,
                    state,
                    offer,
                },
            )
    }

    fn view() -> impl Strategy<Value = View> {
        let member =
            (any::<u32>(), any::<u64>(), address(), role()).prop_map(|(node, life, address, role)| Member {
                node: NodeId(node),
                incarnation: Incarnation(life),
                address,
                role,
                domain: Domain::default(),
            });
        let shard = (nodes(), nodes(), view_number(), any::<bool>())
            .prop_map(|(members, learners, since, second)| Shard { members, learners, since, second });
        (view_number(), vec(member, 0..=MAX_NODES), vec(shard, 0..4)).prop_map(|(id, members, shards)| View {
            id,
            members,
            shards,
        })
    }

    fn lesson() -> impl Strategy<Value = Lesson> {
        let bytes = || vec(any::<u8>(), 0..100);
        prop_oneof![
            (any::<u64>(), any::<[u8; 32]>(), proptest::option::of(bytes()))
                .prop_map(|(number, digest, bytes)| Lesson::Chunk { number, digest, bytes }),
            any::<(u64, u64, [u8; 32])>().prop_map(|(chunks, len, digest)| Lesson::Whole {
                chunks,
                len,
                digest
            }),
            (any::<u64>(), bytes()).prop_map(|(number, bytes)| Lesson::Tail { number, bytes }),
            text(REASON).prop_map(Lesson::Refused),
        ]
    }

    fn took() -> impl Strategy<Value = Took> {
        prop_oneof![
            any::<u64>().prop_map(Took::Chunks),
            any::<u64>().prop_map(Took::Lacks),
            any::<u64>().prop_map(Took::Tail),
        ]
    }

    fn ballot() -> impl Strategy<Value = Ballot> {
        any::<(u64, u32)>().prop_map(|(round, node)| Ballot { round, node: NodeId(node) })
    }

    fn next() -> impl Strategy<Value = Next> {
        let cut = (any::<u32>(), vec(any::<u64>(), 0..8))
            .prop_map(|(shard, trim)| Cut { shard: ShardId(shard), trim });
        (view(), vec(cut, 0..8)).prop_map(|(view, cuts)| Next { view, cuts })
    }

    fn missing() -> impl Strategy<Value = Missing> {
        any::<(u32, u8, u64, u32)>().prop_map(|(shard, rank, to, holder)| Missing {
            shard: ShardId(shard),
            rank: usize::from(rank),
            to,
            holder: NodeId(holder),
        })
    }

    fn report() -> impl Strategy<Value = Report> {
        let frozen = (any::<u32>(), vec(any::<u64>(), 0..8))
            .prop_map(|(shard, received)| Frozen { shard: ShardId(shard), received });
        let place = any::<(u32, bool)>().prop_map(|(shard, second)| Place { shard: ShardId(shard), second });
        let lacks = vec(any::<u32>().prop_map(ShardId), 0..8);
        (vec(frozen, 0..8), nodes(), nodes(), incarnations(), vec(place, 0..8), lacks).prop_map(
            |(frozen, severed, suspects, linked, busy, lacks)| Report {
                frozen,
                severed,
                suspects,
                linked,
                busy,
                lacks,
            },
        )
    }

    fn saying() -> impl Strategy<Value = Saying> {
        prop_oneof![
            Just(Saying::Nudge),
            (ballot(), nodes(), vec(any::<u32>().prop_map(ShardId), 0..8))
                .prop_map(|(ballot, suspects, ending)| Saying::Prepare { ballot, suspects, ending }),
            (ballot(), report(), proptest::option::of((ballot(), next())))
                .prop_map(|(ballot, report, accepted)| Saying::Promise { ballot, report, accepted }),
            (ballot(), ballot()).prop_map(|(ballot, by)| Saying::Outbid { ballot, by }),
            (ballot(), vec(missing(), 0..8)).prop_map(|(ballot, missing)| Saying::Fill { ballot, missing }),
            (ballot(), next()).prop_map(|(ballot, next)| Saying::Accept { ballot, next }),
            ballot().prop_map(|ballot| Saying::Accepted { ballot }),
            next().prop_map(Saying::Decided),
        ]
    }

    fn goodbye() -> impl Strategy<Value = Goodbye> {
        let named = || (any::<u32>().prop_map(NodeId), any::<u32>().prop_map(NodeId), text(400));
        prop_oneof![
            Just(Goodbye::Ended),
            Just(Goodbye::Left),
            named().prop_map(|(node, by, reason)| Goodbye::Lost { node, by, reason }),
            named().prop_map(|(node, by, reason)| Goodbye::Misbehaved { node, by, reason }),
            text(400).prop_map(Goodbye::Broken),
        ]
    }

    fn want() -> impl Strategy<Value = Want> {
        (view_number(), any::<u32>(), any::<u32>(), any::<u64>(), any::<u64>())
            .prop_map(|(view, shard, rank, from, to)| Want { view, shard: ShardId(shard), rank, from, to })
    }

    pub(crate) fn message() -> impl Strategy<Value = Message> {
        prop_oneof![
            Just(Message::Proof),
            hello().prop_map(Message::Hello),
            Just(Message::Use),
            view().prop_map(Message::Propose),
            Just(Message::Ready),
            Just(Message::Commit),
            goodbye().prop_map(Message::Goodbye),
            Just(Message::Alive),
            (view_number(), saying()).prop_map(|(view, saying)| Message::Change { view, saying }),
            (any::<u32>(), view_number()).prop_map(|(shard, since)| Message::Retired(ShardId(shard), since)),
            any::<(u32, u64)>().prop_map(|(shard, source)| {
                Message::Caught { shard: ShardId(shard), source: Incarnation(source) }
            }),
            Just(Message::Leaving),
            view().prop_map(|view| Message::Welcome { view }),
            (incarnations(), any::<Option<u64>>())
                .prop_map(|(to, source)| { Message::Linked { to, source: source.map(Incarnation) } }),
            any::<(u32, u64, u64)>().prop_map(|(shard, attempt, held)| {
                Message::Learn { shard: ShardId(shard), attempt, held }
            }),
            (any::<u32>(), any::<u64>(), lesson()).prop_map(|(shard, attempt, lesson)| {
                Message::Lesson { shard: ShardId(shard), attempt, lesson }
            }),
            (any::<u32>(), any::<u64>(), took()).prop_map(|(shard, attempt, took)| {
                Message::Took { shard: ShardId(shard), attempt, took }
            }),
            want().prop_map(Message::Want),
            (want(), any::<u64>(), vec(any::<u8>(), 0..400), any::<bool>())
                .prop_map(|(want, at, bytes, last)| Message::Part { want, at, bytes, last }),
            Just(Message::Ask(Question::Status)),
            Just(Message::Ask(Question::Explain)),
            (any::<bool>(), text(400)).prop_map(|(last, text)| Message::Answer { last, text }),
            (any::<(u32, u64, u32, u64)>(), view_number()).prop_map(|((shard, behind, chain, at), since)| {
                Message::WantLog { shard: ShardId(shard), since, behind, chain, at }
            }),
            (any::<(u32, u64, u64)>(), given()).prop_map(|((shard, behind, at), given)| {
                Message::LogPart { shard: ShardId(shard), behind, at, given }
            }),
        ]
    }

    fn given() -> impl Strategy<Value = Given> {
        prop_oneof![
            vec(any::<u8>(), 0..400).prop_map(Given::Records),
            (any::<u64>(), any::<u64>(), vec(any::<u8>(), 0..400))
                .prop_map(|(index, len, bytes)| Given::Snapshot { index, len, bytes }),
            Just(Given::Other),
        ]
    }

    /// As long as can be.
    fn longest() -> Vec<(Message, usize)> {
        let address = SocketAddr::from(([0xffff; 8], u16::MAX));
        let member = Member {
            node: NodeId(u32::MAX),
            incarnation: Incarnation(u64::MAX),
            address,
            role: Role::Witness,
            domain: Domain::new("sixteen-letters!").unwrap(),
        };
        let all = vec![NodeId(u32::MAX); MAX_NODES];
        let shard = Shard { members: all.clone(), learners: all, since: ViewId(u64::MAX), second: true };
        let shards = vec![shard; SHARDS];
        let view = View { id: ViewId(u64::MAX), members: vec![member; MAX_NODES], shards };
        let ballot = Ballot { round: u64::MAX, node: NodeId(u32::MAX) };
        let (shard, counters) = (ShardId(u32::MAX), vec![u64::MAX; MAX_NODES]);
        let cut = Cut { shard, trim: counters.clone() };
        let next = Next { view: view.clone(), cuts: vec![cut; SHARDS] };
        let report = Report {
            frozen: vec![Frozen { shard, received: counters }; SHARDS],
            severed: vec![NodeId(u32::MAX); MAX_NODES],
            suspects: vec![NodeId(u32::MAX); MAX_NODES],
            linked: vec![Incarnation(u64::MAX); MAX_NODES],
            busy: vec![Place { shard, second: true }; 2 * SHARDS],
            lacks: vec![shard; SHARDS],
        };
        let saying = Saying::Promise { ballot, report, accepted: Some((ballot, next)) };
        let want = Want { view: view.id, shard, rank: u32::MAX, from: u64::MAX, to: u64::MAX };
        let hello = Hello {
            cluster: "x".repeat(CLUSTER_LEN),
            node: member.node,
            incarnation: member.incarnation,
            engaged: Some(member.incarnation),
            address,
            standing: Standing::Founding { members: vec![u32::MAX; MAX_NODES] },
            role: member.role,
            fabric: "x".repeat(FABRIC_LEN),
            guarantee: "x".repeat(FABRIC_LEN),
            ring_bytes: u64::MAX,
            state: true,
            domain: member.domain,
            groups: u64::MAX,
            offer: vec![0xff; OFFER_LEN],
            held: None,
        };
        vec![
            (Message::Hello(hello), wire::HELLO),
            (Message::Change { view: view.id, saying }, wire::PROMISE),
            (Message::Welcome { view }, wire::VARIANT + wire::VIEW),
            (Message::Part { want, at: u64::MAX, bytes: vec![0xff; PIECE_LEN], last: true }, wire::PART),
            (Message::Answer { last: true, text: "x".repeat(PIECE_LEN) }, wire::PART),
            (Message::Goodbye(Goodbye::Broken("x".repeat(REASON_LEN))), wire::GOODBYE),
        ]
    }

    proptest! {
        #[test]
        fn what_is_said_is_heard(message in message()) {
            let bytes = message.encode();
            let most = if matches!(message, Message::Hello(_)) { HELLO_LEN } else { PEER_LEN };
            prop_assert!(bytes.len() <= most - 40, "with kind and tag it fits a frame");
            prop_assert_eq!(Message::decode(&bytes), Ok(message));
        }

        // S1: total, and what it accepts it would have said itself within the bounds.
        #[test]
        fn garbage_is_an_error_or_a_message(bytes: Vec<u8>) {
            if let Ok(message) = Message::decode(&bytes) {
                prop_assert_eq!(Message::decode(&message.encode()), Ok(message));
            }
        }

        #[test]
        fn a_message_that_was_cut_or_changed_never_panics(message in message(), at: prop::sample::Index, value: u8) {
            let mut bytes = message.encode();
            let at = at.index(bytes.len());
            let _ = Message::decode(&bytes[..at]);
            bytes[at] = value;
            let _ = Message::decode(&bytes);
        }
    }

    // What the compiler proved of the sizes on paper holds on the wire.
    #[test]
    fn the_longest_is_as_long_as_was_reckoned() {
        for (message, most) in longest() {
            let bytes = message.encode();
            assert!(bytes.len() <= most, "{} of {most}: {message:?}", bytes.len());
            assert_eq!(Message::decode(&bytes).as_ref(), Ok(&message));
        }
    }

    // S1
    #[test]
    fn no_list_is_longer_than_it_may_be() {
        let view = |members| {
            let address = SocketAddr::from(([127, 0, 0, 1], 1));
            let domain = Domain::default();
            let member =
                Member { node: NodeId(1), incarnation: Incarnation(1), address, role: Role::Data, domain };
            View { id: ViewId(1), members: vec![member; members], shards: Vec::new() }
        };
        let of = |shards: usize, members: usize, learners: usize| {
            let nodes = |n| vec![NodeId(1); n];
            let shard = Shard { members: nodes(members), learners: nodes(learners), ..Shard::default() };
            View { shards: vec![shard; shards], ..view(1) }
        };
        let (ballot, shard) = (Ballot::NONE, ShardId::MAIN);
        let next = |cuts: usize, trims: usize| Next {
            view: view(1),
            cuts: vec![Cut { shard, trim: vec![0; trims] }; cuts],
        };
        let report = |frozen: usize, received: usize, severed: usize, linked: usize| Report {
            frozen: vec![Frozen { shard, received: vec![0; received] }; frozen],
            severed: vec![NodeId(1); severed],
            linked: vec![Incarnation(1); linked],
            ..Report::default()
        };
        let suspects = Report { suspects: vec![NodeId(1); 65], ..report(1, 1, 0, 0) };
        let places = Report { busy: vec![Place { shard, second: true }; 129], ..report(1, 1, 0, 0) };
        let lacks = Report { lacks: vec![shard; 65], ..report(1, 1, 0, 0) };
        let promise = |report, next| Saying::Promise { ballot, report, accepted: Some((ballot, next)) };
        let sayings = [
            ("suspects", Saying::Prepare { ballot, suspects: vec![NodeId(1); 65], ending: Vec::new() }),
            ("sessions", Saying::Prepare { ballot, suspects: Vec::new(), ending: vec![shard; 65] }),
            ("suspects", promise(suspects, next(1, 1))),
            ("places", promise(places, next(1, 1))),
            ("shards", promise(lacks, next(1, 1))),
            ("sessions", promise(report(65, 1, 0, 0), next(1, 1))),
            ("counters", promise(report(1, 65, 0, 0), next(1, 1))),
            ("lost links", promise(report(1, 1, 65, 0), next(1, 1))),
            ("links", promise(report(1, 1, 0, 65), next(1, 1))),
            ("cuts", promise(report(1, 1, 0, 0), next(65, 1))),
            ("trims", Saying::Accept { ballot, next: next(1, 65) }),
            ("view", Saying::Decided(Next { view: view(65), cuts: Vec::new() })),
        ];
        let said = sayings.map(|(what, saying)| (what, Message::Change { view: ViewId(1), saying }));
        let want = Want { view: ViewId(1), shard, rank: 0, from: 0, to: 1 };
        let others = [
            ("view", Message::Welcome { view: view(65) }),
            ("shards", Message::Welcome { view: of(65, 1, 1) }),
            ("shard", Message::Welcome { view: of(1, 65, 1) }),
            ("learners", Message::Welcome { view: of(1, 1, 65) }),
            (
                "lesson",
                Message::Lesson { shard, attempt: 1, lesson: Lesson::Refused("x".repeat(REASON + 1)) },
            ),
            (
                "lesson",
                Message::Lesson {
                    shard,
                    attempt: 1,
                    lesson: Lesson::Tail { number: 1, bytes: vec![0; CHUNK + 1] },
                },
            ),
            ("links", Message::Linked { to: vec![Incarnation(1); 65], source: None }),
            ("piece", Message::Part { want, at: 0, bytes: vec![0; PIECE_LEN + 1], last: true }),
            ("answer", Message::Answer { last: true, text: "x".repeat(PIECE_LEN + 1) }),
        ];
        for (what, message) in said.into_iter().chain(others) {
            let error = Message::decode(&message.encode()).unwrap_err().to_string();
            assert!(error.contains(what) && error.contains("may be"), "{what}: {error}");
        }
    }

    #[test]
    fn what_is_out_of_bounds_or_too_much_is_refused() {
        let mut bytes = Message::Goodbye(Goodbye::Broken("x".repeat(STRANGER_LEN + 1))).encode();
        assert!(Message::decode(&bytes).unwrap_err().to_string().contains("a reason of 4097"));
        bytes = Message::Commit.encode();
        bytes.push(0);
        assert!(Message::decode(&bytes).unwrap_err().to_string().contains("1 bytes follow"));
        assert!(Message::decode(&[]).is_err());
    }
}
