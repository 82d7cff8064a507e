//! Installed: the view stands until a member is lost.

use std::time::Duration;

use consort_dataplane::fabric::LinkDown;
use consort_dataplane::names::{NodeId, Time};

use super::{Membership, Stopped};
use crate::link::message::Goodbye;

/// A fabric's link ends in an orderly goodbye too, and which of the two is heard of first is chance. So long the
/// control link has to say which it was.
const LAST_WORD: Duration = Duration::from_secs(1);

impl Membership {
    /// A member is gone (F5): unless it left in order, the group can't go on.
    pub(super) fn lost(&mut self, node: NodeId, reason: String) {
        if self.peers.get(&node).is_some_and(|peer| !peer.gone) {
            let goodbye = Goodbye::Lost { node, by: self.terms.me, reason: reason.clone() };
            self.stop(goodbye, Stopped::PeerLost { node, reason });
        }
    }

    /// A member leaves. If not in order, everyone stops for the same cause, whoever they heard it from.
    pub(super) fn on_goodbye(&mut self, from: NodeId, goodbye: Goodbye) {
        let me = self.terms.me;
        let lost = |reason: &str| Stopped::PeerLost { node: from, reason: reason.to_owned() };
        let reason = match &goodbye {
            Goodbye::Ended => {
                if let Some(peer) = self.peers.get_mut(&from) {
                    peer.gone = true;
                }
                return;
            }
            Goodbye::Left => return self.lost(from, "it left before all members had ended".to_owned()),
            Goodbye::Broken(reason) => return self.lost(from, format!("it couldn't go on: {reason}")),
            Goodbye::Lost { node, by, reason } if *node == me => {
                lost(&format!("node {by} has lost the link to this node ({reason}) and stopped"))
            }
            Goodbye::Lost { node, by, reason } => {
                Stopped::PeerLost { node: *node, reason: format!("{reason}, as node {by} says") }
            }
            Goodbye::Misbehaved { node, by, reason } if *node == me => {
                lost(&format!("node {by} says that this node broke the protocol ({reason}) and stopped"))
            }
            Goodbye::Misbehaved { node, by, reason } => {
                Stopped::PeerMisbehaved { node: *node, reason: format!("{reason}, as node {by} says") }
            }
        };
        self.stop(goodbye, reason);
    }

    pub(super) fn severed(&mut self, now: Time, node: NodeId, why: LinkDown) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        match why {
            LinkDown::Corrupt(reason) => self.misbehaved(node, reason),
            why => peer.severed = Some((now, why)),
        }
    }

    pub(super) fn severed_due(&self) -> Option<Time> {
        let severed = self.peers.values().filter(|peer| !peer.gone).filter_map(|peer| peer.severed.as_ref());
        severed.map(|(since, _)| since.plus(LAST_WORD)).min()
    }

    pub(super) fn judge_severed(&mut self, now: Time) {
        let due = |since: Time| since.plus(LAST_WORD) <= now;
        let lost = self.peers.iter().find_map(|(node, peer)| match &peer.severed {
            Some((since, why)) if !peer.gone && due(*since) => Some((*node, why.to_string())),
            _ => None,
        });
        if let Some((node, why)) = lost {
            self.lost(node, format!("fabric {}: {why}", self.terms.fabric));
        }
    }
}
