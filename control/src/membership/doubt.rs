//! Doubt: the fabric's link to a member broke, and its process still talks (F5, V9).
//!
//! That is no proof that the member is gone. It may have cut the link itself, because it takes this node for gone, which may well stand still or be
//! silent there. A node that took it for gone in return would be believed by those who have heard of neither yet: of three members
//! the slow one would stay, and the one that found it slow would be left out. So the node reports that it has no link, if a change is
//! under way, and waits a moment. Then there is a view that ends the doubt; or the member's control link breaks, which it does at
//! once where its process ended; or the moment is over, and the member taken for gone.

use std::time::Duration;

use consort_dataplane::names::{NodeId, Time};

use super::Membership;
use crate::view::Incarnation;

/// How long to wait for who talks. Whoever cuts a link says why to who leads, who says it to all: two messages.
const MOMENT: Duration = Duration::from_millis(50);

/// A member that can be talked to over its control link at most. If that is gone, too, it is taken for gone already.
pub(super) struct Doubt {
    incarnation: Incarnation,
    until: Time,
    why: String,
}

impl Membership {
    /// The fabric's link to that life of a node broke.
    pub(super) fn doubt(&mut self, now: Time, node: NodeId, incarnation: Incarnation, why: String) {
        if self.incarnation_of(node) != Some(incarnation) {
            return self.gone(now, node, incarnation, &why); // a joiner
        }
        tracing::info!(%node, why, "a link broke; whether the member is gone will show");
        self.doubts.insert(node, Doubt { incarnation, until: now.plus(MOMENT), why });
        if let Some(change) = &mut self.change {
            change.on_severed();
        }
        self.pump(now, node);
    }

    /// Who still has no link when the moment is over is taken for gone.
    pub(super) fn end_doubts(&mut self, now: Time) {
        let due = self.doubts.iter().filter(|(_, doubt)| doubt.until <= now).map(|(node, _)| *node);
        for node in due.collect::<Vec<_>>() {
            if let Some(Doubt { incarnation, why, .. }) = self.doubts.remove(&node) {
                self.gone(now, node, incarnation, &why);
            }
        }
    }

    pub(super) fn doubts_due(&self) -> impl Iterator<Item = Time> {
        self.doubts.values().map(|doubt| doubt.until)
    }

    /// Whether the link to that life of a node broke a moment ago.
    pub(super) fn is_doubted(&self, node: NodeId, incarnation: Incarnation) -> bool {
        self.doubts.get(&node).is_some_and(|doubt| doubt.incarnation == incarnation)
    }
}
