//! What a link needs of whatever drives the sockets: batches sent, sleep until something comes.
//!
//! Two engines do it, [`super::uring`] and [`super::epoll`]. Neither knows a frame. Both are driven by the owner of the
//! fabric alone, and neither lets the kernel write into memory of ours behind its back: whatever is received, is
//! received by a call that is over when it returns. So nothing has to be cancelled and awaited before a fence (F4)
//! or before memory goes. What is asked of the kernel and outlives a call is readiness, and the release of memory that
//! a zero-copy send still reads.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use consort_dataplane::memory::Segment;
use consort_dataplane::names::{PeerSet, Slot};

use super::counts::Counts;
use super::outgoing::Outgoing;
use super::parts::Parts;

/// Who is told of what a socket is ready for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token {
    /// A link that is up. The number tells it from earlier links in the same slot.
    Link(Slot, u32),
    /// A connection being set up; numbers are not used again.
    Setup(u32),
    /// The data listener.
    Listener,
    /// The doorbell.
    Bell,
}

/// A socket that a sleep ends for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Watch<'a> {
    pub(super) token: Token,
    pub(super) socket: BorrowedFd<'a>,
    /// When it can be written, rather than when it can be read.
    pub(super) writing: bool,
}

/// What became ready since it was last asked for.
#[derive(Clone, Debug, Default)]
pub(super) struct Ready {
    /// Links with something to receive.
    pub(super) readable: PeerSet,
    /// Links whose sockets take bytes again.
    pub(super) writable: PeerSet,
    /// The listener or a connection being set up.
    pub(super) setup: bool,
    /// The doorbell rang.
    pub(super) bell: bool,
    /// Zero-copy sends whose memory the kernel has let go.
    pub(super) released: Vec<Released>,
}

/// The kernel has let go the memory of a zero-copy send.
#[derive(Clone, Copy, Debug)]
pub(super) struct Released {
    pub(super) slot: Slot,
    pub(super) generation: u32,
    /// It copied the bytes after all.
    pub(super) copied: bool,
}

/// Bytes to send on several links, where they lie.
///
/// Invariant, which the calls that take addresses rest on: the parts of a job are readable memory that nobody changes
/// for `'a`. They come from [`Outgoing::slices`] alone: headers and words, which the borrow keeps as they are; and
/// published ring bytes, which their owner promised not to change before the peer has released them.
pub(super) struct Sends<'a> {
    parts: Parts,
    jobs: Vec<Job<'a>>,
}

/// Bytes to send on one link.
pub(super) struct Job<'a> {
    pub(super) slot: Slot,
    pub(super) generation: u32,
    pub(super) socket: BorrowedFd<'a>,
    /// Without copying, if the engine can.
    pub(super) zero_copy: bool,
    pub(super) result: SendResult,
    parts: std::ops::Range<usize>,
}

impl<'a> Sends<'a> {
    /// Nothing to send. `parts` is memory to use again.
    pub(super) fn new(mut parts: Parts) -> Self {
        parts.0.clear();
        Self { parts, jobs: Vec::new() }
    }

    /// All that the batch of `outgoing` has left.
    pub(super) fn push(
        &mut self,
        (slot, generation): (Slot, u32),
        socket: BorrowedFd<'a>,
        outgoing: &'a Outgoing,
        segment: &'a Segment,
        zero_copy: bool,
    ) {
        let start = self.parts.0.len();
        outgoing.slices(segment, &mut self.parts.0);
        let parts = start..self.parts.0.len();
        let result = SendResult::default();
        self.jobs.push(Job { slot, generation, socket, zero_copy, result, parts });
    }

    pub(super) fn jobs(&mut self) -> &mut [Job<'a>] {
        &mut self.jobs
    }

    /// The parts of a job.
    pub(super) fn parts(&mut self, job: usize) -> &mut [libc::iovec] {
        let range = self.jobs[job].parts.clone();
        &mut self.parts.0[range]
    }

    /// What became of each, and the memory.
    pub(super) fn finish(self) -> (Vec<(Slot, SendResult)>, Parts) {
        (self.jobs.into_iter().map(|job| (job.slot, job.result)).collect(), self.parts)
    }
}

/// What became of a send.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SendResult {
    /// The bytes taken, or the negative error number.
    pub(super) taken: i32,
    /// The kernel still reads the memory; it will be [`Released`].
    pub(super) held: bool,
}

/// Drives the sockets. See the [module](self).
pub(super) trait Engine: Send {
    /// Its name, for people.
    fn name(&self) -> &'static str;

    /// Whether it can send without copying.
    fn can_zero_copy(&self) -> bool;

    /// Whether it is better to send to so many links by one call of [`Engine::send`] than to each by a call of its own.
    fn gathers(&self, links: u32) -> bool;

    /// Sends what each job's socket takes at once, and sets the results. The memory of a job whose result says `held`
    /// is read until it is [`Released`].
    fn send(&mut self, sends: &mut Sends<'_>, counts: &mut Counts);

    /// Whether the engine was made anew since it was last asked this: what it had been asked for before, and what sends
    /// of before still hold, it does not know and will not tell. To be asked before the results of a send are taken in:
    /// holds of before and after must not be counted together.
    fn take_renewed(&mut self) -> bool;

    /// Whether [`Engine::poll`] may have something to tell.
    fn has_news(&self) -> bool;

    /// Tells by [`Ready::writable`], once, when the socket of a link takes bytes again.
    fn watch_writable(&mut self, slot: Slot, generation: u32, socket: BorrowedFd<'_>, counts: &mut Counts);

    /// What became ready. Never blocks, and makes no system call unless something did or [`Engine::watch_writable`]
    /// was asked.
    fn poll(&mut self, counts: &mut Counts) -> Ready;

    /// Sleeps until one of `watches` is ready, what [`Engine::poll`] tells of happens, or `timeout` is over.
    fn sleep(&mut self, watches: &[Watch<'_>], timeout: Duration, counts: &mut Counts) -> Ready;

    /// The socket is about to be closed, or goes on under another token.
    fn forget(&mut self, token: Token, socket: BorrowedFd<'_>);
}

const LINK: u64 = 1;
const SETUP: u64 = 2;
const LISTENER: u64 = 3;
const BELL: u64 = 4;

impl Token {
    /// As a number of 56 bits that the kernel carries: kind, slot, generation.
    pub(super) fn encode(self) -> u64 {
        match self {
            Self::Link(slot, generation) => LINK << 48 | u64::from(slot.0) << 40 | u64::from(generation),
            Self::Setup(number) => SETUP << 48 | u64::from(number),
            Self::Listener => LISTENER << 48,
            Self::Bell => BELL << 48,
        }
    }

    pub(super) fn decode(data: u64) -> Option<Self> {
        let number = data as u32; // the low half
        Some(match data >> 48 & 0xFF {
            LINK => Self::Link(Slot((data >> 40) as u8), number),
            SETUP => Self::Setup(number),
            LISTENER => Self::Listener,
            BELL => Self::Bell,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_back_as_they_were() {
        for token in [
            Token::Link(Slot(63), u32::MAX),
            Token::Link(Slot(0), 0),
            Token::Setup(7),
            Token::Listener,
            Token::Bell,
        ] {
            assert_eq!(Token::decode(token.encode()), Some(token));
            assert_eq!(token.encode() >> 56, 0, "the engine's own byte is free");
        }
        assert_eq!(Token::decode(0), None);
    }
}
