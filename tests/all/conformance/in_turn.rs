//! All nodes in one thread, in turn: what any fabric must do.

use std::time::Duration;

use consort_dataplane::fabric::{ConnectError, Fabric, Kept, LinkDown, LinkEvent};
use consort_dataplane::memory::WORD;
use consort_dataplane::names::PeerSet;
use consort_dataplane::sim::Choices;

use super::traffic::{Reader, SEGMENT, Writer, count, picture};
use super::{Rig, id, linked, others, settle, slot, until};

/// F1: one writes, two read, whenever the dice let them.
pub(super) fn publishes_arrive_in_order<R: Rig>(seed: u64) {
    const RECORDS: u64 = 3_000;
    let mut rig = R::new(seed);
    let mut fabrics = linked(&mut rig, 3, SEGMENT);
    let mut choices = Choices::new(seed);
    let mut writer = Writer::new(seed, others(0, 3));
    let mut readers = [Reader::new(seed), Reader::new(seed)];
    until(&mut rig, &mut fabrics, "all records are read and acknowledged", |at, fabric| {
        if at == 0 {
            for _ in 0..choices.below(4) {
                if writer.written < RECORDS && writer.has_room(fabric) {
                    writer.write(fabric);
                }
            }
            if choices.chance(70) {
                fabric.flush();
            }
            return writer.written == RECORDS && writer.is_acknowledged(fabric);
        }
        let reader = &mut readers[at - 1];
        if choices.chance(50) {
            let mirror = fabric.mirror(slot(0)).unwrap().clone();
            if reader.read(&mirror) {
                reader.acknowledge(fabric, PeerSet::EMPTY.with(slot(0)));
                fabric.flush();
            }
        }
        reader.read == RECORDS
    });
}

/// F1: a word is seen as it was at some time, never mixed.
pub(super) fn words_are_whole<R: Rig>(seed: u64) {
    const WORDS: std::ops::Range<usize> = 4096..4096 + 64 * WORD;
    let mut rig = R::new(seed);
    let mut fabrics = linked(&mut rig, 2, SEGMENT);
    let whole = |high: u64| high << 32 | (high ^ 0x5555_5555);
    let mut round = 0u64;
    until(&mut rig, &mut fabrics, "the last words have come", |at, fabric| {
        if at == 0 {
            round = (round + 1).min(2_000);
            for at in WORDS.step_by(WORD) {
                fabric.segment().store(at, whole(round));
            }
            fabric.publish_words(WORDS, PeerSet::EMPTY.with(slot(1)));
            fabric.flush();
            return true;
        }
        let mirror = fabric.mirror(slot(0)).unwrap();
        let seen = WORDS.step_by(WORD).map(|at| mirror.load(at));
        seen.inspect(|seen| assert!(*seen == 0 || *seen == whole(seen >> 32), "{seen:#x} was never stored"))
            .min()
            == Some(whole(2_000))
    });
}

/// F2: a mirror is there and can be read, all of it, while its owner does nothing.
pub(super) fn mirrors_are_read_without_the_peer<R: Rig>(seed: u64) {
    let mut rig = R::new(seed);
    let fabrics = linked(&mut rig, 2, SEGMENT);
    let mirror = fabrics[1].mirror(slot(0)).unwrap();
    assert!(mirror.size() >= SEGMENT, "all of the peer's {SEGMENT} bytes are mirrored");
    assert_eq!(mirror.size(), fabrics[0].segment().size());
    assert_eq!(count(mirror), 0, "what was never published is zero");
    assert_eq!(picture(mirror).len(), mirror.size() / WORD);
}

/// F4: once fenced, a peer that lives and publishes changes nothing here; and what it had published stays.
pub(super) fn fence_freezes_the_mirror<R: Rig>(seed: u64) {
    let mut rig = R::new(seed);
    let mut fabrics = linked(&mut rig, 3, SEGMENT);
    let mut writer = Writer::new(seed, others(0, 3));
    let mut readers = [Reader::new(seed), Reader::new(seed)];
    for _ in 0..5 {
        writer.write(&mut fabrics[0]);
    }
    fabrics[0].flush();
    until(&mut rig, &mut fabrics, "five records are read", |at, fabric| {
        at == 0 || {
            readers[at - 1].read(fabric.mirror(slot(0)).unwrap());
            readers[at - 1].read == 5
        }
    });
    let mirror = fabrics[1].mirror(slot(0)).unwrap().clone();
    // Under way when the fence comes: it may make it or not, but not later.
    writer.write(&mut fabrics[0]);
    fabrics[0].flush();
    fabrics[1].fence(slot(0));
    let frozen = picture(&mirror);
    assert!((5..=6).contains(&count(&mirror)), "a fence loses nothing that was there");
    readers[0].read(&mirror);
    for _ in 0..3 {
        writer.write(&mut fabrics[0]);
        fabrics[0].flush();
        settle(&mut rig, &mut fabrics);
    }
    assert!(picture(&mirror) == frozen, "the mirror changed after the fence");
    until(&mut rig, &mut fabrics, "the node that did not fence reads on", |at, fabric| {
        at != 2 || {
            readers[1].read(fabric.mirror(slot(0)).unwrap());
            readers[1].read == 9
        }
    });
}

/// F5: a peer that is gone without a word is reported, to all, and its memory stays.
pub(super) fn a_killed_peer_is_reported<R: Rig>(seed: u64) {
    let mut rig = R::new(seed);
    let mut fabrics = linked(&mut rig, 3, SEGMENT);
    let last = fabrics.pop().unwrap();
    rig.kill(2, last);
    let mut told = [false; 2];
    until(&mut rig, &mut fabrics, "the link is reported down", |at, fabric| {
        match fabric.poll_event() {
            None => {}
            Some(LinkEvent::Down(down, LinkDown::Broken(_))) if down == slot(2) => told[at] = true,
            Some(other) => panic!("{other:?} where the link to slot 2 broke"),
        }
        told[at]
    });
    for fabric in &fabrics {
        let mirror = fabric.mirror(slot(2)).unwrap();
        assert_eq!(picture(mirror).len(), mirror.size() / WORD, "the mirror of the dead can be read");
    }
    settle(&mut rig, &mut fabrics);
    assert!(fabrics.iter_mut().all(|fabric| fabric.poll_event().is_none()), "and nothing else happened");
}

/// F5: one that closed is told apart from one that died, and everything it published is there by then.
pub(super) fn a_closed_peer_is_reported_after_all_it_published<R: Rig>(seed: u64) {
    let mut rig = R::new(seed);
    let mut fabrics = linked(&mut rig, 2, SEGMENT);
    let mut writer = Writer::new(seed, others(0, 2));
    let mut reader = Reader::new(seed);
    for _ in 0..7 {
        writer.write(&mut fabrics[0]);
    }
    fabrics[0].close(Duration::from_secs(5));
    let mut rest = fabrics.split_off(1);
    let mut closing = fabrics.pop();
    until(&mut rig, &mut rest, "the peer is reported closed", |_, fabric| {
        drop(closing.take());
        match fabric.poll_event() {
            None => false,
            Some(LinkEvent::Down(_, LinkDown::Closed)) => {
                reader.read(fabric.mirror(slot(0)).unwrap());
                assert_eq!(reader.read, 7, "closed before all had come");
                true
            }
            Some(other) => panic!("{other:?} where the peer closed"),
        }
    });
}

/// `connect` is bounded: whoever is waited for in vain is reported.
pub(super) fn a_link_that_nobody_answers_fails<R: Rig>(seed: u64) {
    let mut rig = R::new(seed);
    let mut fabrics = rig.nodes(3, SEGMENT);
    let offer = fabrics[1].offer();
    let within = Duration::from_millis(20);
    // The one in the middle calls nobody: one of the others dials it, the other waits to be dialled.
    fabrics[0].connect(slot(1), id(1), &offer, within).unwrap();
    fabrics[2].connect(slot(1), id(1), &offer, within).unwrap();
    let mut failed = [false; 3];
    until(&mut rig, &mut fabrics, "both give up", |at, fabric| {
        match fabric.poll_event() {
            None => {}
            Some(LinkEvent::Down(_, LinkDown::Failed(_))) => failed[at] = true,
            Some(other) => panic!("{other:?} where nobody answered"),
        }
        at == 1 || failed[at]
    });
}

/// S1: an offer is foreign bytes.
pub(super) fn garbage_offers_are_refused<R: Rig>(seed: u64) {
    let mut rig = R::new(seed);
    let mut fabrics = rig.nodes(2, SEGMENT);
    let offer = fabrics[1].offer();
    let mut choices = Choices::new(seed);
    let noise: Vec<u8> = (0..4096).map(|_| choices.any() as u8).collect();
    let mut garbage: Vec<&[u8]> = vec![b"", &noise, &noise[..64], &[0; 64], &[0xff; 4096]];
    garbage.extend((0..offer.len()).map(|end| &offer[..end]));
    for bytes in garbage {
        let refused = fabrics[0].connect(slot(1), id(1), bytes, Duration::from_secs(1));
        assert!(matches!(refused, Err(ConnectError::Offer(_))), "{bytes:?} gave {refused:?}");
    }
    // With a bit changed it may be a good offer of somebody else: refused now, or failing later, or (where the bit says
    // nothing) right. Only, never a panic.
    for bit in 0..offer.len() * 8 {
        let mut bytes = offer.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let _ = fabrics[0].connect(slot(1 + bit % 60), id(1), &bytes, Duration::ZERO);
        settle(&mut rig, &mut fabrics[..1]);
        while fabrics[0].poll_event().is_some() {}
    }
}

/// One slot, one link.
pub(super) fn a_taken_slot_is_refused<R: Rig>(seed: u64) {
    let mut rig = R::new(seed);
    let mut fabrics = linked(&mut rig, 2, SEGMENT);
    let offer = fabrics[1].offer();
    let again = fabrics[0].connect(slot(1), id(1), &offer, Duration::from_secs(1));
    assert_eq!(again, Err(ConnectError::Taken(slot(1))));
}

/// Fencing what is fenced or was never there is no harm.
pub(super) fn a_second_fence_and_unknown_slots_do_nothing<R: Rig>(seed: u64) {
    let mut rig = R::new(seed);
    let mut fabrics = linked(&mut rig, 2, SEGMENT);
    for at in [1, 1, 7, 63, 64, 255] {
        fabrics[0].fence(slot(at));
    }
    fabrics[0].publish_words(4096..4104, PeerSet(u64::MAX));
    fabrics[0].flush();
    settle(&mut rig, &mut fabrics);
    assert!(fabrics[0].mirror(slot(9)).is_none());
}

/// F4 for one who names what it still needs: that stays, and the rest does not change either.
pub(super) fn a_fence_keeps_what_is_named<R: Rig>(seed: u64) {
    const RING: std::ops::Range<usize> = 8192..SEGMENT;
    let mut rig = R::new(seed);
    let mut fabrics = linked(&mut rig, 2, SEGMENT);
    let words = 4096..4104;
    let ring = RING.start + 64..RING.start + 4160;
    for offset in RING.step_by(8) {
        fabrics[0].segment().store(offset, offset as u64);
    }
    fabrics[0].publish_ring(RING, PeerSet::EMPTY.with(slot(1)));
    fabrics[0].segment().store(words.start, 7);
    fabrics[0].publish_words(words.clone(), PeerSet::EMPTY.with(slot(1)));
    fabrics[0].flush();
    until(&mut rig, &mut fabrics, "all has come", |at, fabric| {
        at == 0 || fabric.mirror(slot(0)).unwrap().load(words.start) == 7
    });
    let mirror = fabrics[1].mirror(slot(0)).unwrap().clone();
    let kept = Kept { words: std::slice::from_ref(&words), ring: std::slice::from_ref(&ring) };
    fabrics[1].fence_keeping(slot(0), &kept);
    let frozen = picture(&mirror);
    for offset in (4096..SEGMENT).step_by(8) {
        fabrics[0].segment().store(offset, 1);
    }
    fabrics[0].publish_words(4096..SEGMENT, PeerSet::EMPTY.with(slot(1)));
    fabrics[0].flush();
    settle(&mut rig, &mut fabrics);
    assert_eq!(mirror.load(words.start), 7);
    for offset in ring.step_by(8) {
        assert_eq!(mirror.load(offset), offset as u64);
    }
    assert!(picture(&mirror) == frozen, "the mirror changed after the fence");
    assert_eq!(fabrics[1].poll_event(), None);
}
