//! The simulated network's own stories.
#![allow(clippy::unwrap_used, reason = "a test that can't go on should say where")]

use super::*;

const OPTIONS: SimOptions = SimOptions {
    delay: (Duration::from_nanos(5), Duration::from_nanos(50)),
    tearing: 30,
    segment_bytes: 8192,
    relays: false,
    publishing_costs: true,
};

/// Two words of a segment: the first is published before the second.
const FIRST: usize = 4096;
const SECOND: usize = 4096 + 512;

const FOREVER: Duration = Duration::from_secs(1);

/// So many, or one where each takes long.
fn seeds(count: u64) -> Range<u64> {
    0..if cfg!(miri) { 1 } else { count }
}

fn add(network: &SimNetwork, node: u32) -> SimFabric {
    network.add(NodeId(node))
}

/// Both ask for a link, each in a slot of its own.
fn connect(one: &mut SimFabric, at: u8, other: &mut SimFabric, there: u8) {
    let node = |fabric: &SimFabric| fabric.lock().ends[fabric.end()].id;
    one.connect(Slot(at), node(other), &other.offer(), FOREVER).unwrap();
    other.connect(Slot(there), node(one), &one.offer(), FOREVER).unwrap();
}

/// Everything under way arrives.
fn pass(fabrics: &mut [&mut SimFabric]) {
    let now = fabrics[0].lock().now;
    for step in 1..60 {
        for fabric in &mut *fabrics {
            fabric.poll(Time(now.0 + step));
        }
    }
}

fn publish(fabric: &mut SimFabric, to: u8, value: u64) {
    for offset in [FIRST, SECOND] {
        fabric.segment().store(offset, value);
        fabric.publish_words(offset..offset + WORD, PeerSet::EMPTY.with(Slot(to)));
    }
    fabric.flush();
}

fn sees(fabric: &SimFabric, slot: u8) -> Option<u64> {
    let mirror = fabric.mirror(Slot(slot))?;
    // F1: read in the other order.
    let second = mirror.load(SECOND);
    assert!(mirror.load(FIRST) >= second, "a later publish is seen without an earlier one");
    Some(second)
}

fn events(fabric: &mut SimFabric) -> Vec<LinkEvent> {
    std::iter::from_fn(|| fabric.poll_event()).collect()
}

fn linked(seed: u64) -> (SimNetwork, SimFabric, SimFabric) {
    let network = SimNetwork::empty(seed, OPTIONS);
    let (mut one, mut other) = (add(&network, 1), add(&network, 2));
    connect(&mut one, 40, &mut other, 7);
    pass(&mut [&mut one, &mut other]);
    assert_eq!(
        (events(&mut one), events(&mut other)),
        (vec![LinkEvent::Up(Slot(40))], vec![LinkEvent::Up(Slot(7))])
    );
    (network, one, other)
}

fn is_broken(events: &[LinkEvent], slot: u8) -> bool {
    matches!(events, [LinkEvent::Down(at, LinkDown::Broken(_))] if *at == Slot(slot))
}

#[test]
fn each_node_chooses_its_slots() {
    fn is_send<T: Send + 'static>(_: &T) {}
    let (network, mut one, mut other) = linked(1);
    is_send(&(&network, &one).0.clone());
    publish(&mut one, 40, 3);
    publish(&mut one, 7, 4); // nobody is there
    publish(&mut other, 7, 5);
    pass(&mut [&mut one, &mut other]);
    assert_eq!((sees(&one, 40), sees(&other, 7)), (Some(5), Some(3)), "4 was published to nobody");
    assert_eq!((sees(&one, 7), sees(&other, 40)), (None, None));
}

#[test]
fn a_link_comes_up_at_each_end_in_its_time() {
    let mut first = [0, 0];
    for seed in seeds(50) {
        let network = SimNetwork::empty(seed, OPTIONS);
        let (mut one, mut other) = (add(&network, 1), add(&network, 2));
        connect(&mut one, 1, &mut other, 1);
        let mut now = 0;
        while one.mirror(Slot(1)).is_none() && other.mirror(Slot(1)).is_none() {
            now += 1;
            one.poll(Time(now));
            other.poll(Time(now));
        }
        for (at, fabric) in [&mut one, &mut other].into_iter().enumerate() {
            if fabric.mirror(Slot(1)).is_some() {
                first[at] += 1;
                // What it publishes at once is not lost on the other, who is later.
                publish(fabric, 1, 9);
            }
        }
        pass(&mut [&mut one, &mut other]);
        assert!([sees(&one, 1), sees(&other, 1)].contains(&Some(9)));
    }
    assert!(first.iter().all(|times| *times > 5) || cfg!(miri), "{first:?}");
}

#[test]
fn a_node_that_starts_again_is_another_end() {
    let (network, mut one, other) = linked(2);
    let old_offer = other.offer();
    network.crash(other.end());
    let mut again = add(&network, 2);
    assert_eq!((network.end_of(NodeId(2)), network.end_of(NodeId(3))), (Some(again.end()), None));
    pass(&mut [&mut one, &mut again]);
    assert!(is_broken(&events(&mut one), 40));
    let refused = one.connect(Slot(40), NodeId(2), &again.offer(), FOREVER);
    assert_eq!(refused, Err(ConnectError::Taken(Slot(40))), "the mirror may be in use until the fence");

    one.fence(Slot(40));
    // The dead don't answer.
    one.connect(Slot(3), NodeId(2), &old_offer, Duration::from_nanos(30)).unwrap();
    let twice = one.connect(Slot(4), NodeId(2), &old_offer, FOREVER);
    assert_eq!(twice, Err(ConnectError::Taken(Slot(3))), "one link to an end at a time");
    pass(&mut [&mut one, &mut again]);
    assert!(matches!(&events(&mut one)[..], [LinkEvent::Down(Slot(3), LinkDown::Failed(_))]));
    connect(&mut one, 3, &mut again, 0);
    publish(&mut again, 0, 1); // not up yet
    pass(&mut [&mut one, &mut again]);
    publish(&mut again, 0, 2);
    pass(&mut [&mut one, &mut again]);
    assert_eq!(sees(&one, 3), Some(2));
}

// F4: what was under way to a fenced slot, and what was to be told of it, belongs to no link made there later.
#[test]
fn nothing_of_an_old_link_is_seen_after_a_fence() {
    for seed in seeds(100) {
        let (network, mut one, mut other) = linked(seed);
        publish(&mut other, 7, 1);
        pass(&mut [&mut one, &mut other]);
        let old = one.mirror(Slot(40)).unwrap().clone();
        publish(&mut other, 7, 2);
        if seed % 2 == 0 {
            network.cut(0, 1); // an event that is never to be seen
        }
        one.segment().store(FIRST, 77);
        one.publish_words(FIRST..FIRST + WORD, PeerSet(u64::MAX));
        one.fence(Slot(40));
        assert_eq!((sees(&one, 40), old.load(SECOND)), (None, 1), "frozen, for who has it");
        other.fence(Slot(7));
        connect(&mut one, 40, &mut other, 8);
        pass(&mut [&mut one, &mut other]);
        assert_eq!(events(&mut one), [LinkEvent::Up(Slot(40))], "seed {seed}");
        assert_eq!(events(&mut other), [LinkEvent::Up(Slot(8))], "seed {seed}");
        assert_eq!((sees(&one, 40), old.load(SECOND)), (Some(0), 1));
        publish(&mut other, 8, 3);
        one.flush();
        pass(&mut [&mut one, &mut other]);
        assert_eq!((sees(&one, 40), old.load(SECOND)), (Some(3), 1));
        let mirror = other.mirror(Slot(8)).unwrap();
        assert_eq!(mirror.load(FIRST), 0, "what was queued for the old link is dropped");
        publish(&mut other, 7, 4);
        pass(&mut [&mut one, &mut other]);
        assert_eq!(old.load(FIRST), 1);
    }
}

#[test]
fn a_peer_learns_that_it_was_fenced_and_may_be_linked_again() {
    let (_, mut one, mut other) = linked(3);
    publish(&mut one, 40, 6);
    one.fence(Slot(40));
    pass(&mut [&mut one, &mut other]);
    assert!(is_broken(&events(&mut other), 7));
    assert_eq!(sees(&other, 7), Some(6), "what was published before the fence arrives");
    // The one asks at once; the other has to fence first.
    one.connect(Slot(0), NodeId(2), &other.offer(), FOREVER).unwrap();
    assert!(other.connect(Slot(7), NodeId(1), &one.offer(), FOREVER).is_err());
    other.fence(Slot(7));
    other.connect(Slot(7), NodeId(1), &one.offer(), FOREVER).unwrap();
    pass(&mut [&mut one, &mut other]);
    assert_eq!((events(&mut one).len(), events(&mut other).len()), (1, 1));
}

// F1, F5: a cut that nobody is told of, and what comes after it.
#[test]
fn a_cut_in_one_direction_is_silent_until_it_heals() {
    let mut arrived = 0;
    let mut broke = 0;
    for seed in seeds(40) {
        let (network, mut one, mut other) = linked(seed);
        publish(&mut one, 40, 1);
        network.cut_one_way(NodeId(1), NodeId(2));
        for value in 2..5 {
            publish(&mut one, 40, value);
            publish(&mut other, 7, value);
            pass(&mut [&mut one, &mut other]);
        }
        assert_eq!(sees(&other, 7), Some(1), "what was under way before still came");
        assert_eq!(sees(&one, 40), Some(4), "the other direction is sound");
        assert!(events(&mut one).is_empty() && events(&mut other).is_empty());
        assert_eq!(network.next_due(), None);

        network.heal(NodeId(2), NodeId(1)); // another one
        pass(&mut [&mut one, &mut other]);
        assert_eq!(sees(&other, 7), Some(1));
        network.heal(NodeId(1), NodeId(2));
        publish(&mut one, 40, 5);
        let mut last = 1;
        let now = network.lock().now;
        for step in 1..60 {
            one.poll(Time(now.0 + step));
            other.poll(Time(now.0 + step));
            let sees = sees(&other, 7).unwrap();
            assert!(sees >= last);
            last = sees;
        }
        match (events(&mut one), events(&mut other)) {
            (none, nor) if none.is_empty() && nor.is_empty() => {
                assert_eq!(last, 5);
                arrived += 1;
            }
            (at_one, at_other) => {
                assert!(is_broken(&at_one, 40) && is_broken(&at_other, 7), "{at_one:?} {at_other:?}");
                assert_eq!(last, 1, "nothing without what was before it");
                broke += 1;
            }
        }
    }
    assert!(arrived > 5 && broke > 5 || cfg!(miri), "{arrived} {broke}");
}

#[test]
fn no_link_comes_up_over_a_cut_before_it_heals() {
    let network = SimNetwork::empty(4, OPTIONS);
    let (mut one, mut other) = (add(&network, 1), add(&network, 2));
    network.cut_one_way(NodeId(2), NodeId(1));
    connect(&mut one, 1, &mut other, 1);
    pass(&mut [&mut one, &mut other]);
    assert!(events(&mut one).is_empty() && events(&mut other).is_empty());
    network.heal(NodeId(2), NodeId(1));
    pass(&mut [&mut one, &mut other]);
    assert_eq!((events(&mut one).len(), events(&mut other).len()), (1, 1));
}

// F1: what a cut withheld of a dead node comes late, and not without what was under way before it.
#[test]
fn a_cut_gives_back_nothing_of_the_dead_without_what_was_before_it() {
    let (mut all, mut nothing) = (0, 0);
    for seed in seeds(40) {
        let (network, mut one, mut other) = linked(seed);
        let mut publish_word = |offset: usize| {
            one.segment().store(offset, 1);
            one.publish_words(offset..offset + WORD, PeerSet::EMPTY.with(Slot(40)));
            one.flush();
        };
        publish_word(FIRST);
        network.cut_one_way(NodeId(1), NodeId(2));
        publish_word(SECOND);
        network.crash_silently(one.end());
        network.heal(NodeId(1), NodeId(2));
        pass(&mut [&mut other]);
        match sees(&other, 7) {
            Some(1) => all += 1,
            _ => nothing += 1,
        }
    }
    assert!(all > 2 && nothing > 2 || cfg!(miri), "{all} {nothing}");
}

// F5: proof comes where a machine can give it, and behind what landed.
#[test]
fn crashes_leave_proof_or_silence() {
    for (silent, cut) in [(false, false), (true, false), (false, true)] {
        let mut landed = BTreeSet::new();
        for seed in seeds(40) {
            let (network, mut one, mut other) = linked(seed);
            if cut {
                network.cut_one_way(NodeId(1), NodeId(2));
            }
            for value in 1..4 {
                publish(&mut one, 40, value);
            }
            if silent {
                network.crash_silently(one.end());
            } else {
                network.crash(one.end());
            }
            publish(&mut one, 40, 9);
            assert!(one.connect(Slot(5), NodeId(2), &other.offer(), FOREVER).is_err(), "it is dead");
            pass(&mut [&mut other]);
            landed.insert(sees(&other, 7).unwrap());
            let told = events(&mut other);
            assert_eq!(is_broken(&told, 7), !silent && !cut, "{told:?}");
            if cut {
                // The proof is as lost as all else, and comes when the network is whole again.
                network.heal(NodeId(1), NodeId(2));
                pass(&mut [&mut other]);
                assert!(is_broken(&events(&mut other), 7));
            }
        }
        let all = if cut { BTreeSet::from([0]) } else { BTreeSet::from([0, 1, 2, 3]) };
        assert!(landed == all || cfg!(miri), "a random part lands: {landed:?}");
    }
}

#[test]
fn a_cut_with_proof_tells_both() {
    let (network, mut one, mut other) = linked(5);
    publish(&mut one, 40, 1);
    network.cut(one.end(), other.end());
    assert!(is_broken(&events(&mut one), 40) && is_broken(&events(&mut other), 7));
    pass(&mut [&mut one, &mut other]);
    assert_eq!(sees(&other, 7), Some(0));
}

/// F1 in whatever happens: a reader never sees the second word ahead of the first, nor either fall within a link.
#[test]
fn order_holds_through_all_trouble() {
    for seed in seeds(30) {
        let network = SimNetwork::empty(seed, OPTIONS);
        let mut choices = Choices::new(!seed);
        let mut fabrics = [add(&network, 1), add(&network, 2)];
        let mut last = [0; 2];
        for value in 1..if cfg!(miri) { 50 } else { 2000 } {
            let now = Time(value * 10);
            let at = choices.below(2) as usize;
            let [one, other] = [at, 1 - at];
            let ids = [1, 2].map(NodeId);
            match choices.below(200) {
                0 => network.cut_one_way(ids[one], ids[other]),
                1..4 => network.heal(ids[one], ids[other]),
                4 => network.cut(one, other),
                5..8 => {
                    fabrics[one].fence(Slot(0));
                    let offer = fabrics[other].offer();
                    fabrics[one].connect(Slot(0), ids[other], &offer, FOREVER).unwrap();
                    last[one] = 0;
                }
                _ => publish(&mut fabrics[one], 0, value),
            }
            fabrics[one].poll(now);
            if let Some(seen) = sees(&fabrics[one], 0) {
                assert!(seen >= last[one], "seed {seed}: it fell from {} to {seen}", last[one]);
                last[one] = seen;
            }
        }
        assert!(network.lock().links > 1 || cfg!(miri), "seed {seed} made no second link");
    }
}

// Whatever the contract leaves open is done to who relies on it.
#[test]
fn what_need_not_be_kept_is_lost() {
    let (_, mut one, mut other) = linked(6);
    publish(&mut other, 7, 1);
    pass(&mut [&mut one, &mut other]);
    let mirror = one.mirror(Slot(40)).unwrap().clone();
    let words = FIRST..FIRST + WORD;
    one.fence_keeping(Slot(40), &Kept { words: std::slice::from_ref(&words), ring: &[] });
    assert_eq!((mirror.load(FIRST), mirror.load(SECOND)), (1, 0));
    one.fence_keeping(Slot(40), &Kept { words: &[], ring: &[] });
    assert_eq!(mirror.load(FIRST), 1, "frozen");

    let mut seen = BTreeSet::new();
    for seed in seeds(40) {
        let (_, mut one, mut other) = linked(seed);
        publish(&mut one, 40, 1);
        one.renew(4096..8192).unwrap();
        one.flush();
        one.segment().store(SECOND, 2);
        one.publish_words(SECOND..SECOND + WORD, PeerSet::EMPTY.with(Slot(40)));
        one.flush();
        pass(&mut [&mut one, &mut other]);
        let mirror = other.mirror(Slot(7)).unwrap();
        assert_eq!((mirror.load(FIRST), mirror.load(SECOND)), (one.segment().load(FIRST), 2));
        seen.insert(mirror.load(FIRST));
    }
    assert!(seen == BTreeSet::from([0, 1]) || cfg!(miri), "{seen:?}");
}

/// F6: of a relay that leads beyond what was asked for nothing lands, in however many parts it comes.
#[test]
fn a_relay_is_allowed_as_a_whole() {
    for seed in seeds(300) {
        let network = SimNetwork::empty(seed, SimOptions { relays: true, tearing: 90, ..OPTIONS });
        let [mut origin, mut relayer, mut reader] = [1, 2, 3].map(|node| add(&network, node));
        connect(&mut origin, 1, &mut relayer, 0);
        connect(&mut origin, 2, &mut reader, 0);
        connect(&mut relayer, 2, &mut reader, 1);
        pass(&mut [&mut origin, &mut relayer, &mut reader]);
        let all = FIRST..FIRST + 4 * WORD;
        all.clone().step_by(WORD).for_each(|word| origin.segment().store(word, 1));
        origin.publish_words(all.clone(), PeerSet::EMPTY.with(Slot(1)));
        origin.flush();
        pass(&mut [&mut origin, &mut relayer, &mut reader]);
        reader.allow_relay(Slot(0), FIRST..FIRST + 2 * WORD, Some(Slot(1)));
        assert!(relayer.relay(Slot(0), all.clone(), PeerSet::EMPTY.with(Slot(2))));
        relayer.flush();
        pass(&mut [&mut origin, &mut relayer, &mut reader]);
        let mirror = reader.mirror(Slot(0)).unwrap();
        assert!(all.clone().step_by(WORD).all(|word| mirror.load(word) == 0), "seed {seed}");
    }
}
