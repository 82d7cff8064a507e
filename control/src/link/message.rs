//! What is said on control links, in postcard's encoding. Decoding is total: whatever bytes come, the result is a message
//! within its bounds or an error.

use std::net::SocketAddr;

use consort_dataplane::names::{MAX_NODES, NodeId};
use serde::{Deserialize, Serialize};

use super::frame::{PEER_LEN, STRANGER_LEN};
use crate::config::{CLUSTER_LEN, FABRIC_LEN};
use crate::view::{Incarnation, View, node_id};

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
    /// All members, in ascending order.
    pub members: Vec<u32>,
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
                bound("a list of members", hello.members.len(), MAX_NODES)?;
                bound("an offer", hello.offer.len(), OFFER_LEN)?;
            }
            Self::Propose(view) => bound("a view", view.members.len(), MAX_NODES)?,
            Self::Goodbye(
                Goodbye::Lost { reason, .. } | Goodbye::Misbehaved { reason, .. } | Goodbye::Broken(reason),
            ) => bound("a reason", reason.len(), STRANGER_LEN)?,
            Self::Goodbye(Goodbye::Ended | Goodbye::Left) => {}
            Self::Proof | Self::Use | Self::Ready | Self::Commit => {}
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

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::view::{Member, Role};
    use consort_dataplane::names::ViewId;

    fn text(most: usize) -> impl Strategy<Value = String> {
        proptest::collection::vec(any::<char>(), 0..=most / 4).prop_map(|chars| chars.into_iter().collect())
    }

    fn address() -> impl Strategy<Value = SocketAddr> {
        any::<(std::net::IpAddr, u16)>().prop_map(SocketAddr::from)
    }

    pub(crate) fn message() -> impl Strategy<Value = Message> {
        let hello = (
            (text(CLUSTER_LEN), any::<u32>(), any::<u64>(), any::<Option<u64>>(), address()),
            (proptest::collection::vec(any::<u32>(), 0..=MAX_NODES), text(FABRIC_LEN), text(FABRIC_LEN)),
            (any::<u64>(), proptest::collection::vec(any::<u8>(), 0..=OFFER_LEN)),
        )
            .prop_map(
                |(
                    (cluster, node, incarnation, engaged, address),
                    (members, fabric, guarantee),
                    (ring_bytes, offer),
                )| {
                    Message::Hello(Hello {
                        cluster,
                        node: NodeId(node),
                        incarnation: Incarnation(incarnation),
                        engaged: engaged.map(Incarnation),
                        address,
                        members,
                        fabric,
                        guarantee,
                        ring_bytes,
                        offer,
                    })
                },
            );
        let member =
            (any::<u32>(), any::<u64>(), address(), any::<bool>()).prop_map(|(node, life, address, data)| {
                let role = if data { Role::Data } else { Role::Witness };
                Member { node: NodeId(node), incarnation: Incarnation(life), address, role }
            });
        let view = (any::<u64>(), proptest::collection::vec(member, 0..=MAX_NODES))
            .prop_map(|(id, members)| Message::Propose(View { id: ViewId(id), members }));
        prop_oneof![
            Just(Message::Proof),
            hello,
            Just(Message::Use),
            view,
            Just(Message::Ready),
            Just(Message::Commit),
            Just(Message::Goodbye(Goodbye::Ended)),
            Just(Message::Goodbye(Goodbye::Left)),
            (any::<u32>(), any::<u32>(), text(400)).prop_map(|(node, by, reason)| {
                Message::Goodbye(Goodbye::Lost { node: NodeId(node), by: NodeId(by), reason })
            }),
            text(400).prop_map(|why| Message::Goodbye(Goodbye::Broken(why))),
        ]
    }

    proptest! {
        #[test]
        fn what_is_said_is_heard(message in message()) {
            let bytes = message.encode();
            let most = if matches!(message, Message::Hello(_)) { STRANGER_LEN } else { PEER_LEN };
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
