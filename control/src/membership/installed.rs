//! Installed: the view stands until a member is lost.

use std::time::Duration;

use consort_dataplane::fabric::LinkDown;
use consort_dataplane::names::{NodeId, Time};

use super::{Membership, Stopped};

/// A fabric's link ends in an orderly goodbye too, and which of the two is heard of first is chance. So long the
/// control link has to say which it was.
const LAST_WORD: Duration = Duration::from_secs(1);

impl Membership {
    /// A member is gone (F5): unless it left in order, the group can't go on.
    pub(super) fn lost(&mut self, node: NodeId, reason: String) {
        if self.peers.get(&node).is_some_and(|peer| !peer.gone) {
            self.stop(Stopped::PeerLost { node, reason });
        }
    }

    pub(super) fn severed(&mut self, now: Time, node: NodeId, why: LinkDown) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        match why {
            LinkDown::Corrupt(reason) => self.stop(Stopped::PeerMisbehaved { node, reason }),
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
