//! One link: a peer, its mirror, and the connection in between, from the first attempt to the end.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use consort_dataplane::fabric::LinkDown;
use consort_dataplane::memory::{Mirror, Segment};
use consort_dataplane::names::{NodeId, Slot, Time};

use super::engine::Token;
use super::hello::{HELLO, Offer};
use super::incoming::Incoming;
use super::outgoing::Outgoing;
use super::sys::{self, Standing};

/// Probes of a closed window without an answer after which the peer's machine counts as gone. The kernel puts them
/// further and further apart, so here a number says more than a time.
const PROBES: u8 = 4;

/// A link to one peer. See the [module](self).
pub(super) struct Link {
    pub(super) slot: Slot,
    pub(super) peer: NodeId,
    /// Tells this link from others in its slot.
    pub(super) generation: u32,
    pub(super) offer: Offer,
    /// The memory behind the mirror; only `incoming` and the calls that receive for it write there.
    pub(super) memory: Segment,
    pub(super) mirror: Mirror,
    pub(super) phase: Phase,
    pub(super) outgoing: Outgoing,
    pub(super) within: Duration,
    /// When setting up is given up; counted from the first call that brought the time.
    pub(super) deadline: Option<Time>,
    /// It was up once, so its mirror may be read.
    pub(super) was_up: bool,
    /// Flushed and not all sent.
    pub(super) due: bool,
    /// The socket is full; the engine will tell.
    pub(super) blocked: bool,
    /// A send failed. What the peer has sent before it went is still to be read; then this is the cause.
    pub(super) send_failed: Option<i32>,
    /// The peer's process is ending, as its lifeline told. What it has sent before that is still to be read.
    pub(super) dying: bool,
    /// Its end of the stream is written; see [`super::TcpFabric::close`](consort_dataplane::fabric::Fabric::close).
    pub(super) sending_ended: bool,
    /// Polls since something came.
    pub(super) silent_polls: u32,
    pub(super) zero_copy: ZeroCopy,
    /// Bytes were sent since the last look, or were unacknowledged then.
    pub(super) sent_since_vigil: bool,
    vigil: Vigil,
}

/// How far a link has come.
pub(super) enum Phase {
    /// This node dials: its hello goes out, the answer comes in.
    Dialling(Dial),
    /// The peer dials.
    Expected,
    /// Frames are exchanged.
    Up { socket: OwnedFd, incoming: Incoming },
    /// It is over.
    Down,
}

/// A connection that this node opened.
pub(super) struct Dial {
    pub(super) socket: OwnedFd,
    pub(super) token: Token,
    pub(super) hello: [u8; HELLO],
    /// The hello has gone, which it can only when the connection is there.
    pub(super) said: bool,
    pub(super) answer: [u8; HELLO],
    pub(super) got: usize,
}

/// Zero-copy sends of one link.
#[derive(Debug, Default)]
pub(super) struct ZeroCopy {
    /// The kernel copied after all: not tried again on this link.
    pub(super) useless: bool,
    /// The batch now going was sent from, so its headers must stay.
    pub(super) batch_held: bool,
    /// And nobody will tell when they may go: the ring that would have is gone.
    pub(super) batch_lost: bool,
    pub(super) held: Held,
}

impl ZeroCopy {
    /// Keeps the headers of a batch that was sent from as long as the kernel may read them.
    pub(super) fn keep(&mut self, heads: Vec<u8>) {
        self.batch_held = false;
        if std::mem::take(&mut self.batch_lost) {
            std::mem::forget(heads); // never freed: reused, they would go out as other bytes than were summed
        } else if self.held.sends > 0 {
            self.held.heads.push(heads);
        }
    }
}

/// Memory that the kernel still reads for sends of one link.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// Sends not yet released.
    pub(super) sends: usize,
    /// Headers of batches that have gone.
    pub(super) heads: Vec<Vec<u8>>,
}

impl Held {
    /// One send's memory was let go.
    pub(super) fn release(&mut self) {
        self.sends = self.sends.saturating_sub(1);
        if self.sends == 0 {
            self.heads.clear();
        }
    }
}

/// Watches whether the peer's machine answers.
#[derive(Clone, Copy, Debug, Default)]
struct Vigil {
    last: Option<Time>,
    /// Since when something is unacknowledged without any acknowledgement coming.
    unanswered: Option<Time>,
}

impl Link {
    pub(super) fn new(
        (slot, generation): (Slot, u32),
        offer: Offer,
        memory: Segment,
        phase: Phase,
        within: Duration,
    ) -> Self {
        Self {
            slot,
            peer: offer.node,
            generation,
            offer,
            mirror: memory.mirror(),
            memory,
            phase,
            outgoing: Outgoing::new(),
            within,
            deadline: None,
            was_up: false,
            due: false,
            blocked: false,
            send_failed: None,
            dying: false,
            sending_ended: false,
            silent_polls: 0,
            zero_copy: ZeroCopy::default(),
            sent_since_vigil: false,
            vigil: Vigil::default(),
        }
    }

    pub(super) fn token(&self) -> Token {
        Token::Link(self.slot, self.generation)
    }

    /// The socket of a link that is up.
    pub(super) fn socket(&self) -> Option<BorrowedFd<'_>> {
        match &self.phase {
            Phase::Up { socket, .. } => Some(socket.as_fd()),
            _ => None,
        }
    }

    pub(super) fn is_up(&self) -> bool {
        matches!(self.phase, Phase::Up { .. })
    }

    pub(super) fn is_being_set_up(&self) -> bool {
        matches!(self.phase, Phase::Dialling(_) | Phase::Expected)
    }

    /// Whether a new link may take its slot.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Down)
    }

    /// Whether flushed bytes can be sent now.
    pub(super) fn can_send(&self) -> bool {
        self.due && !self.blocked && self.send_failed.is_none() && self.is_up()
    }

    /// Whether the batch to send has so many bytes of ring that it should not be copied.
    pub(super) fn is_worth_zero_copy(&self, from: usize) -> bool {
        !self.zero_copy.useless && self.outgoing.batch_ring_bytes() >= from.max(1)
    }

    /// Looks whether the peer's machine still answers; returns why it is taken for gone.
    pub(super) fn vigil(&mut self, now: Time, bound: Duration) -> Option<LinkDown> {
        let standing = sys::standing(self.socket()?).ok()?;
        self.sent_since_vigil = standing.unacknowledged > 0 || standing.probes > 0;
        self.vigil.look(standing, now, bound)
    }

    /// Whether there may be something that the peer's machine has to acknowledge, as far as is known without asking.
    pub(super) fn awaits_answer(&self) -> bool {
        self.is_up() && self.sent_since_vigil
    }
}

impl Vigil {
    fn look(&mut self, standing: Standing, now: Time, bound: Duration) -> Option<LinkDown> {
        let since_last = self.last.replace(now).map(|last| now.since(last));
        if standing.probes >= PROBES {
            return Some(LinkDown::Broken(format!(
                "the peer's machine left {} questions for room unanswered",
                standing.probes
            )));
        }
        // The clock of the bound starts when bytes are seen unacknowledged, not at the last answer, which may be old
        // for want of questions.
        let silent = since_last.is_some_and(|since_last| standing.last_answer >= since_last);
        if standing.unacknowledged == 0 || !silent {
            self.unanswered = (standing.unacknowledged > 0).then_some(now);
            return None;
        }
        let since = *self.unanswered.get_or_insert(now);
        (now.since(since) >= bound).then(|| {
            LinkDown::Broken(format!(
                "the peer's machine has not acknowledged anything for {:.1} s",
                standing.last_answer.as_secs_f64()
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: Duration = Duration::from_secs(5);

    fn seconds(n: u64) -> Time {
        Time(n * 1_000_000_000)
    }

    fn standing(unacknowledged: u32, last_answer: u64) -> Standing {
        Standing { unacknowledged, probes: 0, last_answer: Duration::from_secs(last_answer) }
    }

    #[test]
    fn a_machine_that_answers_nothing_is_given_up_after_the_bound() {
        let mut vigil = Vigil::default();
        // Idle for a minute, then something is sent: the old answer is no silence.
        assert_eq!(vigil.look(standing(0, 59), seconds(59), BOUND), None);
        for now in 60..65 {
            assert_eq!(vigil.look(standing(1, now), seconds(now), BOUND), None, "at {now} s");
        }
        assert!(vigil.look(standing(1, 65), seconds(65), BOUND).is_some());
    }

    #[test]
    fn a_machine_that_answers_is_not_given_up_however_much_is_under_way() {
        let mut vigil = Vigil::default();
        for now in 0..100 {
            assert_eq!(vigil.look(standing(9, 0), seconds(now), BOUND), None);
        }
    }

    #[test]
    fn a_stopped_member_is_not_given_up_while_its_machine_answers_probes() {
        let mut vigil = Vigil::default();
        for now in 0..100 {
            // A closed window: nothing unacknowledged, each probe answered, ever further apart.
            let standing =
                Standing { unacknowledged: 0, probes: 1, last_answer: Duration::from_secs(now % 60) };
            assert_eq!(vigil.look(standing, seconds(now), BOUND), None);
        }
        let dead = Standing { unacknowledged: 0, probes: PROBES, last_answer: Duration::ZERO };
        assert!(vigil.look(dead, seconds(100), BOUND).is_some());
    }
}
