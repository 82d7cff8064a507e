//! A group whose members take turns in one thread.

use std::ops::Range;
use std::time::{Duration, Instant};

use consort_dataplane::fabric::{FABRIC_PAGE, Fabric, LinkEvent};
use consort_dataplane::names::{NodeId, PeerSet, Rank, Slot, Time, ViewId};
use consort_dataplane::plan::{Guarantee, Member, SessionPlan, Topology};
use consort_dataplane::ring::{ReserveError, RingSender};
use consort_dataplane::session::{Delivery, Session, Verdict};

/// Bytes of each ring: the messages of a batch fit it several times over.
pub const RING: usize = 1 << 20;

/// Bytes of a segment with one session in it.
pub const SEGMENT: usize = FABRIC_PAGE + SessionPlan::region_bytes(RING);

/// Whatever takes this long hangs.
const HANG: Duration = Duration::from_secs(30);

/// The group.
pub struct Group<F> {
    members: Vec<One<F>>,
    start: Instant,
}

struct One<F> {
    fabric: F,
    session: Session,
    sender: RingSender,
    delivered: u64,
    /// A sum over what was delivered: the payload is read, as an application would.
    sum: u64,
}

impl<F: Fabric> Group<F> {
    /// Links the fabrics, which node i + 1 owns, and starts a session over them.
    ///
    /// # Panics
    /// They can't be linked, or it takes too long: a benchmark has nothing to do then.
    pub fn over(mut fabrics: Vec<F>, guarantee: Guarantee) -> Self {
        let (count, start) = (fabrics.len(), Instant::now());
        let slots: Vec<Slot> = (0..64).map(Slot).take(count).collect();
        let nodes: Vec<NodeId> = (1..).map(NodeId).take(count).collect();
        let offers: Vec<_> = fabrics.iter().map(Fabric::offer).collect();
        for (me, fabric) in fabrics.iter_mut().enumerate() {
            for peer in (0..count).filter(|peer| *peer != me) {
                fabric
                    .connect(slots[peer], nodes[peer], &offers[peer], HANG)
                    .unwrap_or_else(|e| panic!("node {} can't link: {e}", nodes[me]));
            }
        }
        let mut up = vec![PeerSet::EMPTY; count];
        while up.iter().any(|up| up.iter().count() < count - 1) {
            assert!(start.elapsed() < HANG, "the links don't come up: {up:?}");
            for (fabric, up) in fabrics.iter_mut().zip(&mut up) {
                fabric.poll(since(start));
                while let Some(event) = fabric.poll_event() {
                    match event {
                        LinkEvent::Up(slot) => *up = up.with(slot),
                        other => panic!("while linking: {other:?}"),
                    }
                }
            }
        }
        let members = fabrics.into_iter().zip((0..).map(Rank)).map(|(mut fabric, me)| {
            let member = |(&slot, &node): (&Slot, &NodeId)| Member {
                node,
                slot: (slot.0 != me.0).then_some(slot),
                base: FABRIC_PAGE,
            };
            let members = slots.iter().zip(&nodes).map(member).collect();
            let plan = SessionPlan {
                view: ViewId(1),
                members,
                me,
                ring_bytes: RING,
                guarantee,
                topology: Topology::Direct,
            };
            let (session, sender) =
                Session::start(plan, &mut fabric).unwrap_or_else(|e| panic!("the session can't start: {e}"));
            One { fabric, session, sender, delivered: 0, sum: 0 }
        });
        Self { members: members.collect(), start }
    }

    /// Commits a message of `len` bytes at `member`. False if its ring is full.
    ///
    /// # Panics
    /// The ring takes no message of that length.
    pub fn send(&self, member: usize, len: usize) -> bool {
        match self.members[member].sender.try_reserve(len) {
            Ok(mut room) => {
                room.fill(1);
                room.send();
                true
            }
            Err(ReserveError::Full) => false,
            Err(error) => panic!("{error}"),
        }
    }

    /// Every member takes a turn.
    ///
    /// # Panics
    /// A member broke the protocol.
    pub fn turn(&mut self) {
        let now = since(self.start);
        for One { fabric, session, delivered, sum, .. } in &mut self.members {
            fabric.poll(now);
            let mut sink = |delivery: &mut Delivery<'_>| {
                *delivered += 1;
                // By words: what is measured is not how fast bytes are added.
                let (words, rest) = delivery.payload.as_chunks::<8>();
                let of_words =
                    words.iter().fold(0u64, |sum, word| sum.wrapping_add(u64::from_le_bytes(*word)));
                *sum = rest
                    .iter()
                    .fold(sum.wrapping_add(of_words), |sum, byte| sum.wrapping_add(u64::from(*byte)));
                Verdict::Taken
            };
            session.step(fabric, &mut sink).unwrap_or_else(|fault| panic!("{fault}"));
            session.settle(fabric);
            fabric.flush();
        }
    }

    /// Has `member` multicast `count` messages of `len` bytes and takes turns until all members have delivered all of them.
    ///
    /// # Panics
    /// It takes too long, or anything else was delivered than was sent.
    pub fn multicast(&mut self, member: usize, count: u64, len: usize) {
        self.multicast_of(member..member + 1, count, len);
    }

    /// As [`Group::multicast`], of all members at once.
    ///
    /// # Panics
    /// As there.
    pub fn multicast_all(&mut self, count: u64, len: usize) {
        self.multicast_of(0..self.members.len(), count, len);
    }

    fn multicast_of(&mut self, senders: Range<usize>, count: u64, len: usize) {
        let before = self.progress();
        let all = count * senders.len() as u64;
        let mut left = vec![0; self.members.len()];
        left[senders].fill(count);
        let mut turns = 0u64;
        while self.members.iter().any(|one| one.delivered < before.0 + all) {
            for (member, left) in left.iter_mut().enumerate() {
                while *left > 0 && self.send(member, len) {
                    *left -= 1;
                }
            }
            self.turn();
            turns += 1;
            assert!(!turns.is_multiple_of(1 << 20) || self.start.elapsed() < HANG * 20, "no progress");
        }
        let words = u64::from_le_bytes([1; 8]).wrapping_mul(len as u64 / 8).wrapping_add(len as u64 % 8);
        let sum = before.1.wrapping_add(words.wrapping_mul(all));
        assert_eq!(self.progress(), (before.0 + all, sum), "not what was sent");
    }

    /// Messages that every member has delivered, and the sum over them.
    ///
    /// # Panics
    /// They don't agree.
    fn progress(&self) -> (u64, u64) {
        let first = &self.members[0];
        for one in &self.members {
            assert_eq!((one.delivered, one.sum), (first.delivered, first.sum), "members differ");
        }
        (first.delivered, first.sum)
    }
}

fn since(start: Instant) -> Time {
    Time(u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::here::Here;

    #[test]
    fn a_group_delivers_what_it_sends() {
        let mut group = Group::over(Here::nodes(3, SEGMENT), Guarantee::Atomic);
        group.multicast(1, 100, 64);
        group.multicast(0, 500, 10_240); // more than a ring
        group.multicast_all(10, 67);
        assert_eq!(group.progress().0, 630);
    }
}
