//! Slots that are used again, for nodes that come again: each incarnation has a fabric of its own and the node's one name.

use consort_dataplane::fabric::{Fabric, LinkEvent};
use consort_dataplane::names::{PeerSet, Slot};

use super::traffic::{Reader, SEGMENT, Writer, picture};
use super::{Anew, LINK_WITHIN, Rig, id, linked, others, settle, slot, until};

/// The node that comes again; its peers are the one that dials it and the one that it dials.
const AGAIN: usize = 1;
const PEERS: [usize; 2] = [0, 2];

/// What is renewed: pages that the tests' records don't use at a node that only reads.
const RANGE: std::ops::Range<usize> = 8192..SEGMENT;

/// Links the last of `fabrics`, a new incarnation, with the node at index `peer`, which has it in `place`.
fn link<F: Fabric>(fabrics: &mut [F], peer: usize, place: Slot) {
    let (anew, rest) = fabrics.split_last_mut().unwrap();
    anew.connect(slot(peer), id(peer), &rest[peer].offer(), LINK_WITHIN).unwrap();
    rest[peer].connect(place, id(AGAIN), &anew.offer(), LINK_WITHIN).unwrap();
}

/// Polls until the link is up at both ends; whatever else is heard of it fails.
fn until_up<R: Rig>(rig: &mut R, fabrics: &mut [R::F], peer: usize, place: Slot) {
    let last = fabrics.len() - 1;
    let mut up = [false; 2];
    until(rig, fabrics, "the new link is up", |at, fabric| {
        let (end, of) = match at {
            at if at == peer => (0, place),
            at if at == last => (1, slot(peer)),
            _ => return true,
        };
        while let Some(event) = fabric.poll_event() {
            assert_eq!((event, up[end]), (LinkEvent::Up(of), false), "where only the new link comes up");
            up[end] = true;
        }
        up[end]
    });
}

/// F4: a fence frees the slot. The old incarnation, which lives and publishes, is not seen in it; and what is
/// published to the slot is not seen by the old incarnation.
pub(super) fn a_fenced_slot_is_free_for_a_new_incarnation<R: Anew>(seed: u64) {
    for peer in PEERS {
        let mut rig = R::new(seed);
        let mut fabrics = linked(&mut rig, 3, SEGMENT);
        let mut old_writer = Writer::new(seed, others(AGAIN, 3));
        let mut old_reader = Reader::new(seed);
        for _ in 0..5 {
            old_writer.write(&mut fabrics[AGAIN]);
        }
        fabrics[AGAIN].flush();
        fabrics[peer].segment().store(RANGE.start, 1);
        fabrics[peer].publish_words(RANGE.start..RANGE.start + 8, others(peer, 3));
        fabrics[peer].flush();
        let old_mirror = fabrics[peer].mirror(slot(AGAIN)).unwrap().clone();
        let sight = fabrics[AGAIN].mirror(slot(peer)).unwrap().clone();
        until(&mut rig, &mut fabrics, "what was published is read", |at, fabric| match at {
            AGAIN => sight.load(RANGE.start) == 1,
            at if at == peer => {
                old_reader.read(fabric.mirror(slot(AGAIN)).unwrap());
                old_reader.read == 5
            }
            _ => true,
        });

        // Queued for the old link, and for nobody after the fence.
        fabrics[peer].segment().store(RANGE.start + 8, 1);
        fabrics[peer].publish_words(RANGE.start + 8..RANGE.start + 16, PeerSet::EMPTY.with(slot(AGAIN)));
        fabrics[peer].fence(slot(AGAIN));
        let frozen = picture(&old_mirror);
        let anew = rig.again(AGAIN, SEGMENT);
        fabrics.push(anew);
        link(&mut fabrics, peer, slot(AGAIN));
        old_writer.write(&mut fabrics[AGAIN]);
        fabrics[AGAIN].flush();
        until_up(&mut rig, &mut fabrics, peer, slot(AGAIN));

        let other_seed = seed.wrapping_add(1);
        let mut writer = Writer::new(other_seed, PeerSet::EMPTY.with(slot(peer)));
        let mut reader = Reader::new(other_seed);
        let old_sight = sight.load(RANGE.start + 8);
        fabrics[peer].renew(RANGE).unwrap();
        fabrics[peer].segment().store(RANGE.start, 2);
        fabrics[peer].publish_words(RANGE.start..RANGE.start + 8, others(peer, 3));
        fabrics[peer].flush();
        until(&mut rig, &mut fabrics, "the new incarnation is read, and reads", |at, fabric| match at {
            AGAIN => {
                if old_writer.written < 12 {
                    old_writer.write(fabric);
                    fabric.flush();
                }
                true
            }
            3 => {
                if writer.written < 40 && writer.has_room(fabric) {
                    writer.write(fabric);
                    fabric.flush();
                }
                fabric.mirror(slot(peer)).unwrap().load(RANGE.start) == 2
            }
            at if at == peer => {
                if reader.read(&fabric.mirror(slot(AGAIN)).unwrap().clone()) {
                    reader.acknowledge(fabric, PeerSet::EMPTY.with(slot(AGAIN)));
                    fabric.flush();
                }
                reader.read == 40
            }
            _ => fabric.mirror(slot(peer)).unwrap().load(RANGE.start) == 2,
        });
        settle(&mut rig, &mut fabrics);
        assert!(picture(&old_mirror) == frozen, "the old mirror changed");
        assert_eq!(sight.load(RANGE.start), 1, "the old incarnation reads what is for the new one");
        assert_eq!(sight.load(RANGE.start + 8), old_sight);
        assert_eq!(fabrics[peer].poll_event(), None, "the end of the old link was heard of");
        assert_eq!(fabrics[3].poll_event(), None);
    }
}

/// F4: what happened to a link before its fence is not told after it.
pub(super) fn a_fence_takes_back_what_was_not_heard<R: Anew>(seed: u64) {
    for (peer, settles) in PEERS.into_iter().zip([3, 0]).chain(PEERS.into_iter().zip([0, 3])) {
        let mut rig = R::new(seed);
        let mut fabrics = linked(&mut rig, 3, SEGMENT);
        // Up and down in one, and perhaps not even seen.
        let dying = fabrics.remove(AGAIN);
        rig.kill(AGAIN, dying);
        let anew = rig.again(AGAIN, SEGMENT);
        fabrics.insert(AGAIN, anew);
        for _ in 0..settles {
            settle(&mut rig, &mut fabrics);
        }
        fabrics[peer].fence(slot(AGAIN));
        assert_eq!(fabrics[peer].poll_event(), None, "told of the end after the fence");

        let brief = rig.again(AGAIN, SEGMENT);
        fabrics.push(brief);
        link(&mut fabrics, peer, slot(AGAIN));
        for _ in 0..settles {
            settle(&mut rig, &mut fabrics);
        }
        fabrics[peer].fence(slot(AGAIN));
        assert_eq!(fabrics[peer].poll_event(), None, "told of the beginning after the fence");
        fabrics.pop();

        let last = rig.again(AGAIN, SEGMENT);
        fabrics.push(last);
        link(&mut fabrics, peer, slot(AGAIN));
        until_up(&mut rig, &mut fabrics, peer, slot(AGAIN));
        settle(&mut rig, &mut fabrics);
        assert_eq!(fabrics[peer].poll_event(), None);
    }
}

/// A new incarnation may call before the end of the old one has been heard of: it waits.
pub(super) fn a_new_incarnation_may_come_early<R: Anew>(seed: u64) {
    for peer in PEERS {
        let mut rig = R::new(seed);
        let mut fabrics = linked(&mut rig, 3, SEGMENT);
        let mut anew = rig.again(AGAIN, SEGMENT);
        anew.connect(slot(peer), id(peer), &fabrics[peer].offer(), LINK_WITHIN).unwrap();
        let offer = anew.offer();
        fabrics.push(anew);
        settle(&mut rig, &mut fabrics);
        assert_eq!(fabrics[peer].poll_event(), None);
        fabrics[peer].fence(slot(AGAIN));
        fabrics[peer].connect(slot(AGAIN), id(AGAIN), &offer, LINK_WITHIN).unwrap();
        until_up(&mut rig, &mut fabrics, peer, slot(AGAIN));
    }
}

/// Two incarnations of one node are two peers, each in its slot.
pub(super) fn two_incarnations_are_linked_at_once<R: Anew>(seed: u64) {
    for peer in PEERS {
        let mut rig = R::new(seed);
        let mut fabrics = linked(&mut rig, 3, SEGMENT);
        let anew = rig.again(AGAIN, SEGMENT);
        fabrics.push(anew);
        link(&mut fabrics, peer, slot(7));
        until_up(&mut rig, &mut fabrics, peer, slot(7));
        for (at, value) in [(AGAIN, 5), (3, 6)] {
            fabrics[at].segment().store(4096, value);
            fabrics[at].publish_words(4096..4104, PeerSet::EMPTY.with(slot(peer)));
            fabrics[at].flush();
        }
        until(&mut rig, &mut fabrics, "both are heard", |at, fabric| {
            at != peer
                || [(slot(AGAIN), 5), (slot(7), 6)]
                    .into_iter()
                    .all(|(of, value)| fabric.mirror(of).unwrap().load(4096) == value)
        });
        fabrics[peer].fence(slot(AGAIN));
        fabrics[3].segment().store(4096, 7);
        fabrics[3].publish_words(4096..4104, PeerSet::EMPTY.with(slot(peer)));
        fabrics[3].flush();
        until(&mut rig, &mut fabrics, "the other link goes on", |at, fabric| {
            at != peer || fabric.mirror(slot(7)).unwrap().load(4096) == 7
        });
    }
}
