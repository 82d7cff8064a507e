//! [`Fabric`]: the one abstraction under the protocol. A fabric gives a node a [`Segment`] of its own and a
//! [`Mirror`] of each peer's, and carries what is published from the one to the others.
//!
//! # The contract
//!
//! - **F1** *Order between publishes.* What one publish covers becomes visible in a peer's mirror no later than
//!   anything that a later publish to the same peer covers. Inside one publish only aligned 8-byte words are atomic,
//!   and they may land in any order (tearing).
//! - A word of the segment may become visible from the moment in which it is stored, even before it is published
//!   (over shared memory the segment *is* the mirror), but not before what was *published* earlier. So the protocol
//!   stores a word that vouches for ring bytes only after it has published these.
//! - **F2** A mirror is read without blocking and without the peer's doing.
//! - **F3** [`Fabric::poll`] drives I/O; [`Fabric::wait`] sleeps until something may have changed.
//! - **F4** After [`Fabric::fence`] returns, no byte from that peer changes this node's memory any more, and its slot is free.
//! - **F5** A link that the machine knows to be dead is reported at once ([`LinkEvent::Down`]).
//! - **F6** [`Fabric::relay`] passes on ring bytes of a peer's mirror, in order with everything else that this node publishes to
//!   the one that gets them. They land only where [`Fabric::allow_relay`] was told to expect them.
//!
//! # What a fence means where bytes are relayed
//! Bytes of one peer may come over the link to another. F4 is about whose bytes they are as well as about whose link they come over:
//! after [`Fabric::fence`] of their origin none of them lands in its mirror, over whatever link, and after the fence of the one that
//! relays none comes over its link. What is dropped so is dropped without a word, while words that were published behind it over a
//! link that is still there do come. So nobody may take such a word as a proof that relayed bytes have arrived once their origin is
//! fenced.
//!
//! # Memory that is used again
//!
//! Over shared memory a fence stops one direction only. What the fenced peer *reads* is this node's segment itself, and a process
//! that was paused and goes on reads there whatever is written by then, in the belief that it is what it was. So before a
//! part of the segment is used for something else, [`Fabric::renew`] puts other memory in its place for those who are linked.
//!
//! A fabric is used by one thread at a time, its owner; only the [`Doorbell`] is for all.

use std::fmt;
use std::ops::Range;
use std::time::Duration;

use crate::memory::{Mirror, Segment};
use crate::names::{NodeId, PeerSet, Slot, Time};
use crate::sync::{AtomicBool, Ordering, fence};
use std::sync::Arc;

/// The first bytes of every segment belong to the fabric (its epoch and sleeper words live there); sessions start
/// behind them. One page.
pub const FABRIC_PAGE: usize = 4096;

/// How a node's memory reaches its peers'. See the [module's contract](self).
pub trait Fabric {
    /// The name that users choose it by: `shm`, `tcp`, `verbs`, `sim`.
    fn name(&self) -> &'static str;

    /// This node's own segment.
    fn segment(&self) -> &Segment;

    /// What a peer must know to link to this node, carried to it by the control plane. Opaque to all but the same
    /// kind of fabric.
    fn offer(&self) -> Vec<u8>;

    /// Starts linking to `peer`, who made `offer`; both sides call this, in any order. Does not block: the link is
    /// there when [`LinkEvent::Up`] comes. `within` bounds the attempt; after it comes [`LinkEvent::Down`].
    ///
    /// The peer may be a new incarnation of a node to which there was a link, or to whose earlier incarnation there is one
    /// still, in another slot: links are told apart by their offers.
    ///
    /// # Errors
    /// The offer is malformed or of another kind of fabric, or the slot is taken.
    fn connect(
        &mut self,
        slot: Slot,
        peer: NodeId,
        offer: &[u8],
        within: Duration,
    ) -> Result<(), ConnectError>;

    /// The peer's segment, once its link is up and until it is fenced. Handles to it stay readable, after a fence as well.
    fn mirror(&self, slot: Slot) -> Option<&Mirror>;

    /// Makes the *words* in `range` of the segment visible to `peers`. The words may change at any time: what lands is
    /// the value of each at some time from now on. Cheap: queued until [`Fabric::flush`].
    fn publish_words(&mut self, range: Range<usize>, peers: PeerSet);

    /// Whether it costs something to publish, for each peer anew. In shared memory it does not: there a word is published by having
    /// been written, and a session tells all members whatever it has to say at once.
    fn publishing_costs(&self) -> bool {
        true
    }

    /// Makes the *ring bytes* in `range` visible to `peers`. They must not change until every one of `peers` has
    /// released them or was fenced: the fabric may send them from where they are. Queued until [`Fabric::flush`].
    fn publish_ring(&mut self, range: Range<usize>, peers: PeerSet);

    /// Sends on what is queued, with as few system calls as possible. Does not block; what a full link does not take
    /// goes out by later calls of [`Fabric::poll`].
    fn flush(&mut self);

    /// Takes in what has come and goes on with what is under way. Never blocks. Returns whether anything came.
    fn poll(&mut self, now: Time) -> bool;

    /// Sleeps until a peer's publish may have changed a mirror, a link event came, the [`Doorbell`] rang, or `until`.
    ///
    /// Changes since the last [`Fabric::poll`] end the sleep at once; and `idle` is called when the sleep has been
    /// announced (so that who publishes or rings from then on will wake it): if it returns false there is work after
    /// all and the call returns.
    fn wait(&mut self, now: Time, until: Time, idle: &mut dyn FnMut() -> bool);

    /// Rouses the owner out of [`Fabric::wait`], from any thread.
    fn doorbell(&self) -> Doorbell;

    /// Cuts the link to a peer for good (F4), whether it is up, down or being set up, and frees its slot: another
    /// [`Fabric::connect`] may follow at once.
    ///
    /// What was queued for the peer is dropped, and so are the events of its link that were not polled yet: none comes after
    /// this. All that its mirror showed stays as it is behind the handles that were given out. A slot without a link is no harm.
    fn fence(&mut self, slot: Slot);

    /// As [`Fabric::fence`], where of the mirror only what is `kept` is needed any more: the rest stays readable and
    /// frozen too, but may read as zero. Fabrics whose mirrors are the peer's own memory have less to copy then; the time of a
    /// fence is part of every failover.
    ///
    /// Panics if `kept` reaches beyond the mirror.
    fn fence_keeping(&mut self, slot: Slot, kept: &Kept<'_>) {
        let _ = kept;
        self.fence(slot);
    }

    /// Makes the bytes in `range` of the segment fit to be used for something new, though a peer that is linked no more
    /// may still be reading what was there: from now on such a peer sees nothing of what is written there.
    ///
    /// After it the range reads as before or as zero, here and (some time later) at the linked peers. These may see what was
    /// there until something that is written later tells them that it is new: a word in the range must say so. Nothing in
    /// the range may be lent, queued or unreleased. New memory is not touched; see [`Segment::prefault`].
    ///
    /// Does nothing by default, which is right for every fabric in which a mirror is a copy: a peer that was fenced is sent
    /// nothing. Where relays are [carried](Relaying::Carried) nothing changes at the peers: what is written anew may reach them by way of
    /// another, and so before anything that this node publishes straight to them.
    ///
    /// Panics if `range` is not whole pages of the segment behind the [`FABRIC_PAGE`].
    ///
    /// # Errors
    /// See [`RenewError`]; the memory is as it was, and must not be used for anything new.
    fn renew(&mut self, range: Range<usize>) -> Result<(), RenewError> {
        let _ = range;
        Ok(())
    }

    /// Ends the link in an orderly way: what was published is delivered before the peer sees the end. Blocks for at
    /// most `within`.
    fn close(&mut self, within: Duration);

    /// What [`Fabric::relay`] does here; the same for as long as the fabric lives.
    fn relaying(&self) -> Relaying {
        Relaying::Unsupported
    }

    /// Passes on *ring bytes* of the mirror of `origin` to `peers`, into *their* mirrors of `origin` (F6): they become visible there
    /// no later than anything that this node publishes or relays to the same peer afterwards. Queued until [`Fabric::flush`].
    ///
    /// The bytes must be here, and must not change until every one of `peers` has released them or was fenced: the fabric may send them
    /// from where they are. The origin may be fenced meanwhile; what was relayed before that still goes out.
    ///
    /// Returns false, and does nothing, where this can't be done: the fabric has no relays, or there is no mirror of `origin`.
    ///
    /// Panics if `range` is not whole words of the mirror behind the [`FABRIC_PAGE`].
    fn relay(&mut self, origin: Slot, range: Range<usize>, peers: PeerSet) -> bool {
        let _ = (origin, range, peers);
        false
    }

    /// From now on bytes in `range` of the segment of `origin` may come by relay over the link `by`, and over no other; with `None`
    /// over none. Replaces what was said before of any part of `range`. Where nothing was said nothing lands: a peer may say what it
    /// likes, it can't write to another's mirror unless it was asked to (S1, S3).
    ///
    /// Relayed bytes that come before this are lost, so whoever relays must know that it was said. A fence of either ends it.
    ///
    /// Does nothing where nothing is [carried](Relaying::Carried).
    ///
    /// Panics if `range` is not whole words of the mirror behind the [`FABRIC_PAGE`].
    fn allow_relay(&mut self, origin: Slot, range: Range<usize>, by: Option<Slot>) {
        let _ = (origin, range, by);
    }

    /// The kind of fabric that carries the link in `slot`, if it is up or was. Differs from link to link where kinds are mixed.
    fn carrier(&self, slot: Slot) -> Option<&'static str> {
        self.mirror(slot).map(|_| self.name())
    }

    /// What happened to links since the last call, oldest first.
    fn poll_event(&mut self) -> Option<LinkEvent>;

    /// Counts since the start.
    fn stats(&self) -> FabricStats;
}

/// What a relay is on a fabric (F6).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Relaying {
    /// There are none: over RDMA a peer's region is writable over the link to that peer alone, so that no other can write there.
    Unsupported,
    /// There is nothing to carry: every peer sees the origin's memory itself, all of it at the same time. Relays do nothing and cost
    /// nothing, and whoever the origin publishes to, all have the bytes.
    Needless,
    /// The bytes are sent on.
    Carried,
}

/// Something happened to a link.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LinkEvent {
    /// The link is there, and the peer's mirror with it.
    Up(Slot),
    /// The link is gone for good (F5).
    Down(Slot, LinkDown),
}

/// Why a link is gone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LinkDown {
    /// The peer closed it in order: it has left.
    #[error("the peer closed the link")]
    Closed,
    /// The peer's process has ended: the machine says so.
    #[error("the link broke: {0}")]
    Dead(String),
    /// The peer's process or machine is gone, the connection was reset, or the peer has fenced this node.
    #[error("the link broke: {0}")]
    Broken(String),
    /// The peer sent what no sound peer sends. It is not to be trusted further.
    #[error("the peer sent bytes that break the protocol: {0}")]
    Corrupt(String),
    /// The link could not be set up.
    #[error("the link could not be set up: {0}")]
    Failed(String),
    /// What this node itself has its links by is gone, such as a card. The peer is not to blame, and may be well.
    #[error("this node's own end is gone: {0}")]
    Own(String),
}

/// A link can't even be tried.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The offer is not one of this kind of fabric.
    #[error("the peer's offer does not fit this fabric ({0}); give all nodes of the group the same fabric")]
    Offer(String),
    /// There is a link in that slot.
    #[error("there is a link to a peer in {0:?} already")]
    Taken(Slot),
    /// The machine refused a resource.
    #[error("no resources for another link: {0}")]
    Machine(String),
}

/// A part of the segment can't be renewed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RenewError {
    /// What was renewed so far would be in too many pieces.
    #[error(
        "the segment is in {pieces} renewed pieces already, and this would make one more: always renew the same whole parts"
    )]
    Pieces {
        /// How many there are, and may be.
        pieces: usize,
    },
    /// The machine refused a resource.
    #[error("no memory in the place of what a fenced peer may still read: {0}")]
    Machine(String),
}

/// What a fence is to keep of a mirror, as byte ranges. The two kinds are those of [`Fabric::publish_words`] and
/// [`Fabric::publish_ring`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Kept<'a> {
    /// Words, which the peer may be changing: in a copy, no word of a page is older than one that was stored before it.
    pub words: &'a [Range<usize>],
    /// Ring bytes that the peer may not change: published, and not released.
    pub ring: &'a [Range<usize>],
}

/// What a fabric counted since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FabricStats {
    /// System calls made.
    pub system_calls: u64,
    /// Bytes handed to links, frame headers included; nothing is copied over `shm`, so 0 there.
    pub bytes_out: u64,
    /// Bytes that came in from links.
    pub bytes_in: u64,
    /// Sleeps in [`Fabric::wait`].
    pub sleeps: u64,
    /// Sleeping peers woken.
    pub wakes: u64,
    /// Work requests given to a device: writes, over RDMA. This and the following are 0 on fabrics without such a device, and, unlike
    /// times, the same on any.
    pub work_requests: u64,
    /// Times the device's doorbell was rung: lists of work requests.
    pub doorbells: u64,
    /// Work requests that asked for a completion.
    pub signalled: u64,
    /// Work requests that carried their bytes with them.
    pub inline: u64,
    /// Completions taken.
    pub completions: u64,
}

impl FabricStats {
    /// The sum of both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            system_calls: self.system_calls + other.system_calls,
            bytes_out: self.bytes_out + other.bytes_out,
            bytes_in: self.bytes_in + other.bytes_in,
            sleeps: self.sleeps + other.sleeps,
            wakes: self.wakes + other.wakes,
            work_requests: self.work_requests + other.work_requests,
            doorbells: self.doorbells + other.doorbells,
            signalled: self.signalled + other.signalled,
            inline: self.inline + other.inline,
            completions: self.completions + other.completions,
        }
    }
}

/// Rouses the thread that owns a fabric. Clones ring the same bell. Any thread may ring; ringing an owner that is awake
/// costs a memory fence and no system call.
#[derive(Clone)]
pub struct Doorbell {
    bell: Arc<Bell>,
}

struct Bell {
    asleep: AtomicBool,
    wake: Box<dyn Fn() + Send + Sync>,
}

impl Doorbell {
    /// A bell that calls `wake` when it finds the owner asleep. `wake` must make a sleep end that has been announced,
    /// even if it has not quite begun.
    pub fn new(wake: impl Fn() + Send + Sync + 'static) -> Self {
        Self { bell: Arc::new(Bell { asleep: AtomicBool::new(false), wake: Box::new(wake) }) }
    }

    /// Wakes the owner if it sleeps. Call it *after* the change that it should see.
    pub fn ring(&self) {
        // The change before this fence, the owner's `announce` before its own: one of the two sees the other's.
        fence(Ordering::SeqCst);
        if self.bell.asleep.load(Ordering::Relaxed) && self.bell.asleep.swap(false, Ordering::Relaxed) {
            (self.bell.wake)();
        }
    }

    /// Whether the other rouses the same owner.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.bell, &other.bell)
    }

    /// For fabrics: the owner is about to sleep. It must look for work once more after this.
    pub fn announce(&self) {
        self.bell.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst); // pairs with the one in `ring`
    }

    /// For fabrics: the owner is awake again. Returns whether the bell was rung meanwhile.
    pub fn awake(&self) -> bool {
        !self.bell.asleep.swap(false, Ordering::Relaxed)
    }
}

impl fmt::Debug for Doorbell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Doorbell")
    }
}
