//! Bytes that go from member to member (F6): in order with what is published beside, only where they are expected, and never past a
//! fence. A fabric without relays must say so; one where there is nothing to carry shows the same in the end.

use consort_dataplane::fabric::{Fabric, LinkEvent, Relaying};
use consort_dataplane::names::PeerSet;
use consort_dataplane::sim::Choices;

use super::traffic::{
    BYTES, Reader, SEGMENT, SLOTS, Writer, acknowledge, acknowledged, check, count, picture, place, range,
};
use super::{Anew, LINK_WITHIN, Rig, id, linked, settle, slot, until};

fn only(index: usize) -> PeerSet {
    PeerSet::EMPTY.with(slot(index))
}

/// Whether there is anything to be tried; where there is not, a relay does nothing and says so.
fn relays<F: Fabric>(fabrics: &mut [F]) -> bool {
    if fabrics[1].relaying() == Relaying::Unsupported {
        fabrics[2].allow_relay(slot(0), BYTES, Some(slot(1)));
        assert!(!fabrics[1].relay(slot(0), BYTES, only(2)));
        return false;
    }
    true
}

fn is_carried<F: Fabric>(fabrics: &[F]) -> bool {
    fabrics[1].relaying() == Relaying::Carried
}

/// The origin fills its ring with its first records, which reach node 1 alone, and all nodes see this.
fn fill<R: Rig>(rig: &mut R, fabrics: &mut [R::F], seed: u64) -> Writer {
    let mut writer = Writer::new(seed, only(1));
    for _ in 0..SLOTS {
        writer.write(&mut fabrics[0]);
    }
    fabrics[0].flush();
    until(rig, fabrics, "node 1 has the origin's records", |at, fabric| {
        at != 1 || count(fabric.mirror(slot(0)).unwrap()) == SLOTS
    });
    writer
}

/// Node 1 passes on all that there is, and says so behind it.
fn pass_on<F: Fabric>(fabrics: &mut [F], record: u64) {
    assert!(fabrics[1].relay(slot(0), BYTES, only(2)));
    acknowledge(&mut fabrics[1], record, only(2));
    fabrics[1].flush();
}

/// F1, F6: along a chain of four, each word that vouches for relayed bytes comes behind them.
pub(super) fn a_chain_passes_on_in_order<R: Rig>(seed: u64) {
    const RECORDS: u64 = 1_500;
    let mut rig = R::new(seed);
    let mut fabrics = linked(&mut rig, 4, SEGMENT);
    if !relays(&mut fabrics) {
        return;
    }
    for (at, fabric) in fabrics.iter_mut().enumerate().skip(2) {
        fabric.allow_relay(slot(0), BYTES, Some(slot(at - 1)));
    }
    let mut choices = Choices::new(seed);
    let mut writer = Writer::new(seed, only(1));
    let mut passed = [0u64; 4];
    until(&mut rig, &mut fabrics, "all records have come to the end of the chain", |at, fabric| {
        if at == 0 {
            let least = (1..4).map(|peer| acknowledged(fabric, slot(peer))).min().unwrap();
            for _ in 0..choices.below(4) {
                if writer.written < RECORDS && writer.written < least + SLOTS {
                    writer.write(fabric);
                }
            }
            if choices.chance(70) {
                fabric.flush();
            }
            return least == RECORDS;
        }
        if choices.chance(50) {
            return passed[at] == RECORDS;
        }
        let before = fabric.mirror(slot(at - 1)).unwrap();
        let came = if at == 1 { count(before) } else { acknowledged(fabric, slot(at - 1)) };
        let mirror = fabric.mirror(slot(0)).unwrap().clone();
        assert!((passed[at]..=passed[at] + SLOTS).contains(&came), "{came} after {}", passed[at]);
        for record in passed[at]..came {
            check(seed, record, &mirror);
            if at < 3 {
                assert!(fabric.relay(slot(0), range(seed, record), only(at + 1)));
            }
        }
        if came > passed[at] {
            let next = if at < 3 { only(at + 1) } else { PeerSet::EMPTY };
            acknowledge(fabric, came, next.with(slot(0)));
            if choices.chance(70) {
                fabric.flush();
            }
        }
        passed[at] = came;
        if choices.chance(20) {
            fabric.flush();
        }
        came == RECORDS
    });
}

/// F4: bytes of a fenced peer don't come by way of another either, though what that one publishes behind them does.
pub(super) fn a_fence_stops_what_others_relay<R: Rig>(seed: u64) {
    let mut choices = Choices::new(seed);
    for _ in 0..10 {
        let mut rig = R::new(choices.any());
        let mut fabrics = linked(&mut rig, 3, SEGMENT);
        if !relays(&mut fabrics) {
            return;
        }
        fabrics[2].allow_relay(slot(0), BYTES, Some(slot(1)));
        let mirror = fabrics[2].mirror(slot(0)).unwrap().clone();
        fill(&mut rig, &mut fabrics, seed);
        // Under way when the fence comes, whole or in part.
        pass_on(&mut fabrics, 1);
        for _ in 0..choices.below(8) {
            fabrics[2].poll(rig.now());
        }
        fabrics[2].fence(slot(0));
        let frozen = picture(&mirror);
        pass_on(&mut fabrics, 2);
        until(&mut rig, &mut fabrics, "what came behind the relay is there", |at, fabric| {
            at != 2 || acknowledged(fabric, slot(1)) == 2
        });
        settle(&mut rig, &mut fabrics);
        assert!(picture(&mirror) == frozen, "bytes of a fenced peer came by relay");
    }
}

/// F4: one that is fenced relays nothing more.
pub(super) fn a_fenced_peer_relays_nothing<R: Rig>(seed: u64) {
    let mut rig = R::new(seed);
    let mut fabrics = linked(&mut rig, 3, SEGMENT);
    if !relays(&mut fabrics) || !is_carried(&fabrics) {
        return;
    }
    fabrics[2].allow_relay(slot(0), BYTES, Some(slot(1)));
    fill(&mut rig, &mut fabrics, seed);
    fabrics[2].fence(slot(1));
    let mirror = fabrics[2].mirror(slot(0)).unwrap().clone();
    let before = picture(&mirror);
    pass_on(&mut fabrics, 1);
    settle(&mut rig, &mut fabrics);
    assert!(picture(&mirror) == before, "a fenced peer has written to another's mirror");
}

/// F1: what was relayed goes out though its origin is fenced before it has gone, since a word behind it vouches for it.
pub(super) fn what_was_relayed_outlives_a_fence_of_its_origin<R: Rig>(seed: u64) {
    let mut rig = R::new(seed);
    let mut fabrics = linked(&mut rig, 3, SEGMENT);
    if !relays(&mut fabrics) {
        return;
    }
    fabrics[2].allow_relay(slot(0), BYTES, Some(slot(1)));
    fill(&mut rig, &mut fabrics, seed);
    assert!(fabrics[1].relay(slot(0), BYTES, only(2)));
    fabrics[1].fence(slot(0));
    assert!(!fabrics[1].relay(slot(0), BYTES, only(2)), "there is no mirror of it any more");
    acknowledge(&mut fabrics[1], SLOTS, only(2));
    fabrics[1].flush();
    until(&mut rig, &mut fabrics, "what was published behind the relay is there", |at, fabric| {
        at != 2 || acknowledged(fabric, slot(1)) == SLOTS
    });
    let mirror = fabrics[2].mirror(slot(0)).unwrap();
    (0..SLOTS).for_each(|record| check(seed, record, mirror));
}

/// S1, S3: nobody writes to another's mirror who wasn't asked to, or beyond what was asked for.
pub(super) fn what_was_not_asked_for_does_not_land<R: Rig>(seed: u64) {
    let mut rig = R::new(seed);
    let mut fabrics = linked(&mut rig, 4, SEGMENT);
    if !relays(&mut fabrics) || !is_carried(&fabrics) {
        return;
    }
    fill(&mut rig, &mut fabrics, seed);
    let mirror = fabrics[2].mirror(slot(0)).unwrap().clone();
    let before = picture(&mirror);
    let half = BYTES.start..BYTES.start + BYTES.len() / 2;
    for (step, (allowed, by)) in [
        (None, None),
        (Some(BYTES), Some(slot(3))),
        (Some(half.clone()), Some(slot(1))),
        (Some(BYTES), None), // taken back
    ]
    .into_iter()
    .enumerate()
    {
        if let Some(range) = allowed {
            fabrics[2].allow_relay(slot(0), range, by);
        }
        let step = step as u64 + 1;
        pass_on(&mut fabrics, step);
        until(&mut rig, &mut fabrics, "what came behind the relay is there", |at, fabric| {
            at != 2 || acknowledged(fabric, slot(1)) == step
        });
        assert!(picture(&mirror) == before, "step {step}: bytes landed that nobody asked for");
    }
    // And what was asked for does, in the half that was.
    fabrics[2].allow_relay(slot(0), half.clone(), Some(slot(1)));
    assert!(fabrics[1].relay(slot(0), half.clone(), only(2)));
    acknowledge(&mut fabrics[1], 9, only(2));
    fabrics[1].flush();
    until(&mut rig, &mut fabrics, "what came behind the relay is there", |at, fabric| {
        at != 2 || acknowledged(fabric, slot(1)) == 9
    });
    (0..SLOTS)
        .filter(|record| half.contains(&place(*record)))
        .for_each(|record| check(seed, record, &mirror));
    assert_eq!(fabrics[2].poll_event(), None, "and nobody was blamed for what came late or early");
}

/// F4: what is relayed of an incarnation that was fenced isn't seen in the mirror of the next.
pub(super) fn relays_of_one_incarnation_do_not_reach_the_next<R: Anew>(seed: u64) {
    let mut rig = R::new(seed);
    let mut fabrics = linked(&mut rig, 3, SEGMENT);
    if !relays(&mut fabrics) {
        return;
    }
    fabrics[2].allow_relay(slot(0), BYTES, Some(slot(1)));
    fill(&mut rig, &mut fabrics, seed);
    // Node 1 hasn't heard of anything and goes on relaying; nodes 0 and 2 are linked anew.
    fabrics[2].fence(slot(0));
    let mut anew = rig.again(0, SEGMENT);
    anew.connect(slot(2), id(2), &fabrics[2].offer(), LINK_WITHIN).unwrap();
    fabrics[2].connect(slot(0), id(0), &anew.offer(), LINK_WITHIN).unwrap();
    fabrics.push(anew);
    let mut up = false;
    until(&mut rig, &mut fabrics, "the new link is up", |at, fabric| {
        up |= at == 2 && fabric.poll_event() == Some(LinkEvent::Up(slot(0)));
        up
    });
    fabrics[2].allow_relay(slot(0), BYTES, Some(slot(1)));
    pass_on(&mut fabrics, 1);
    until(&mut rig, &mut fabrics, "what came behind the relay is there", |at, fabric| {
        at != 2 || acknowledged(fabric, slot(1)) == 1
    });
    let mirror = fabrics[2].mirror(slot(0)).unwrap().clone();
    assert!(
        BYTES.step_by(8).all(|at| mirror.load(at) == 0),
        "the old one's bytes are in the new one's mirror"
    );
    // The new one's own publishes arrive as ever.
    let mut writer = Writer::new(seed, only(2));
    let mut reader = Reader::new(seed);
    writer.write(&mut fabrics[3]);
    fabrics[3].flush();
    until(&mut rig, &mut fabrics, "the new one is read", |at, fabric| {
        if at == 2 {
            reader.read(fabric.mirror(slot(0)).unwrap());
        }
        reader.read == 1
    });
}
