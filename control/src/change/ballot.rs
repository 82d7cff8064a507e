//! Ballots, and what is said about them (V1).

use std::fmt;

use consort_dataplane::names::NodeId;
use serde::{Deserialize, Serialize};

use super::value::{Missing, Next, Report};
use crate::view::{ShardId, node_id, node_ids};

/// One attempt to decide the next view. Ballots are ordered; no two proposers have the same.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Ballot {
    /// Grows with each attempt; 0 is before the first.
    pub round: u64,
    /// Who proposes.
    #[serde(with = "node_id")]
    pub node: NodeId,
}

impl Ballot {
    /// Before every ballot.
    pub const NONE: Self = Self { round: 0, node: NodeId(0) };

    /// No member comes near it by one attempt after the other.
    const MOST_ROUND: u64 = u64::MAX / 2;

    /// Whether a member can have come to it. One that says another is not listened to: so there is always a higher
    /// ballot (S1).
    pub(super) fn is_sane(&self) -> bool {
        (1..=Self::MOST_ROUND).contains(&self.round)
    }
}

impl fmt::Display for Ballot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ballot {} of node {}", self.round, self.node)
    }
}

/// What members of a view say to each other about the next. Each may be said twice, late or never.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum Saying {
    /// To all who may lead: there is a reason for a change.
    Nudge,
    /// From a proposer: stop, promise me this ballot and report (V2).
    Prepare {
        /// The attempt.
        ballot: Ballot,
        /// Whom the proposer takes for gone: for people to read (V11).
        #[serde(with = "node_ids")]
        suspects: Vec<NodeId>,
        /// The shards whose sessions end, as far as the proposer knows.
        ending: Vec<ShardId>,
    },
    /// To the proposer: promised; this is where I stand. Said again whenever that changes.
    Promise {
        /// What it answers.
        ballot: Ballot,
        /// The frozen counters, and who can be reached.
        report: Report,
        /// The value that was accepted last, if any was.
        accepted: Option<(Ballot, Next)>,
    },
    /// To the proposer: a higher ballot is promised already.
    Outbid {
        /// What it answers.
        ballot: Ballot,
        /// The higher one.
        by: Ballot,
    },
    /// From the proposer: get these, then promise again (V3).
    Fill {
        /// The attempt.
        ballot: Ballot,
        /// What the other lacks below the trims that the value will have.
        missing: Vec<Missing>,
    },
    /// From the proposer: accept this value.
    Accept {
        /// The attempt.
        ballot: Ballot,
        /// The value.
        next: Next,
    },
    /// To the proposer: accepted.
    Accepted {
        /// What it answers.
        ballot: Ballot,
    },
    /// This is decided.
    Decided(Next),
}
