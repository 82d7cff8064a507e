//! What is said on control links, in postcard's encoding. Decoding is total: whatever bytes come, the result is a message
//! within its bounds or an error.

use std::net::SocketAddr;

use consort_dataplane::names::{MAX_NODES, NodeId, ViewId};
use serde::{Deserialize, Serialize};

use super::frame::{PEER_LEN, STRANGER_LEN};
use crate::config::{CLUSTER_LEN, FABRIC_LEN};
use crate::change::Saying;
use crate::view::{GroupId, Role, Incarnation, View, node_id, view_id};

/// The longest offer of a fabric, in bytes. A hello with it fits a stranger's frame.
pub const OFFER_LEN: usize = 2048;

/// Something that one node says to another.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Message {
    /// First on every connection, both ways: the seal shows that the sender may speak.
    Proof,
    /// Who the sender is and what it takes the group to be. Second on every connection, both ways.
    Hello(Hello),
    /// From the lower id: of the connections between us, this one counts.
    Use,
    /// From the proposer: shall this be the view?
    Propose(View),
    /// To the proposer: I am linked to all members of your view, and will install it when you say so.
    Ready,
    /// From the proposer: all are ready, the view is decided.
    Commit,
    /// The sender leaves, for good; nothing follows.
    Goodbye(Goodbye),
    Alive,
    Change { #[serde(with = "view_id")] view: ViewId, saying: Saying },
    Retired(#[serde(with = "view_id")] ViewId),
    Leaving,
    Welcome { view: View },
    Linked { #[serde(with = "view_id")] view: ViewId, to: Vec<Incarnation> },
    Want(Want),
    Part { want: Want, at: u64, bytes: Vec<u8>, last: bool },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Want { #[serde(with = "view_id")] pub view: ViewId, pub group: GroupId, pub rank: u32, pub from: u64, pub to: u64 }

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Standing { Founding { members: Vec<u32> }, Member { #[serde(with = "view_id")] view: ViewId }, Joining }

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
    pub standing: Standing,
    pub role: Role,
    /// The fabric's name.
    pub fabric: String,
    /// When messages are delivered.
    pub guarantee: String,
    /// Bytes of every member's ring.
    pub ring_bytes: u64,
    /// What the fabric must know to link to this node.
    pub offer: Vec<u8>,
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
        let bound = |what: &str, len: usize, most: usize| {
            if len <= most {
                Ok(())
            } else {
                Err(MessageError(format!("{what} of {len}, at most {most} may be")))
            }
        };
        match &message {
            Self::Hello(hello) => {
                bound("a cluster's name", hello.cluster.len(), CLUSTER_LEN)?;
                bound("a fabric's name", hello.fabric.len(), FABRIC_LEN)?;
                bound("a guarantee's name", hello.guarantee.len(), FABRIC_LEN)?;
                bound("an offer", hello.offer.len(), OFFER_LEN)?;
            }
            Self::Propose(view) => bound("a view", view.members.len(), MAX_NODES)?,
            Self::Goodbye(
                Goodbye::Lost { reason, .. } | Goodbye::Misbehaved { reason, .. } | Goodbye::Broken(reason),
            ) => bound("a reason", reason.len(), STRANGER_LEN)?,
            Self::Goodbye(Goodbye::Ended | Goodbye::Left) => {}
            _ => {}
        }
        Ok(message)
    }
}

// A member on the wire: node and address at most 25 bytes, incarnation 10, role 1.
const _: () = assert!(10 + MAX_NODES * 48 + 64 < PEER_LEN, "the largest view fits a frame");
const _: () = assert!(
    OFFER_LEN + CLUSTER_LEN + 2 * FABRIC_LEN + 5 * MAX_NODES + 128 < STRANGER_LEN,
    "the longest hello fits a stranger's frame"
);

