//! One link: a peer, its mirror, the queue pair and the connection beside it, from the first attempt to the end.

use std::os::fd::OwnedFd;
use std::time::Duration;

use consort_dataplane::memory::{Mirror, Segment};
use consort_dataplane::names::{NodeId, Slot, Time};

use crate::tcp::hello::Offer;

use super::hello::GREETING;
use super::outgoing::Outgoing;
use super::page::{Naps, Sight};
use super::queue::Pair;

/// A link to one peer. See the [module](self).
pub(super) struct Link {
    pub(super) slot: Slot,
    pub(super) peer: NodeId,
    pub(super) offer: Offer,
    pub(super) mirror: Mirror,
    pub(super) phase: Phase,
    /// Gone when the link is over, and with it the peer's way into the mirror.
    pub(super) pair: Option<Pair>,
    /// The first packet sequence number of this end.
    pub(super) sequence: u32,
    pub(super) outgoing: Outgoing,
    /// Flushed and not all posted.
    pub(super) due: bool,
    /// What was last published tells of itself, or an epoch was published after it.
    pub(super) tells: bool,
    pub(super) sight: Sight,
    pub(super) naps: Naps,
    pub(super) within: Duration,
    /// When setting up is given up; counted from the first call that brought the time.
    pub(super) deadline: Option<Time>,
    /// It was up once, so its mirror may be read.
    pub(super) was_up: bool,
}

/// How far a link has come.
pub(super) enum Phase {
    /// This node dials: its greeting goes out, the answer comes in.
    Dialling(Box<Dial>),
    /// The peer dials.
    Expected,
    /// The peer has dialled and was answered; it has yet to say that its queue pair is connected.
    Answered(OwnedFd),
    /// Queue pairs are connected at both ends.
    Up(OwnedFd),
    /// It is over.
    Down,
}

/// A connection that this node opened.
pub(super) struct Dial {
    pub(super) socket: OwnedFd,
    pub(super) greeting: [u8; GREETING],
    /// The greeting has gone, which it can only when the connection is there.
    pub(super) said: bool,
    pub(super) answer: [u8; GREETING],
    pub(super) got: usize,
}

impl Link {
    pub(super) fn new(
        slot: Slot,
        offer: Offer,
        memory: &Segment,
        (pair, sequence): (Pair, u32),
        outgoing: Outgoing,
        within: Duration,
    ) -> Self {
        Self {
            slot,
            peer: offer.node,
            offer,
            mirror: memory.mirror(),
            phase: Phase::Expected,
            pair: Some(pair),
            sequence,
            outgoing,
            due: false,
            tells: true,
            sight: Sight::default(),
            naps: Naps::default(),
            within,
            deadline: None,
            was_up: false,
        }
    }

    pub(super) fn is_up(&self) -> bool {
        matches!(self.phase, Phase::Up(_))
    }

    pub(super) fn is_being_set_up(&self) -> bool {
        matches!(self.phase, Phase::Dialling(_) | Phase::Expected | Phase::Answered(_))
    }

    /// Whether a new link may take its slot.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Down)
    }

    /// Ends it: after this no byte from the peer lands here any more (F4), and the peer sees the end of the connection.
    pub(super) fn cut(&mut self) {
        if let Some(pair) = self.pair.take()
            && let Err(cause) = pair.cut()
        {
            // A device that is gone obeys nothing and writes nothing. The key is revoked with its region, which says so if it can't be.
            tracing::debug!(peer = %self.peer, %cause, "a queue pair did not go to the error state");
        }
        self.phase = Phase::Down;
        self.outgoing.clear();
        self.due = false;
    }
}
