use super::*;
use crate::view::{Domain, Incarnation, Role};

mod storm;

fn member(node: u32) -> Member {
    Member {
        node: NodeId(node),
        incarnation: Incarnation(u64::from(node)),
        address: ([127, 0, 0, 1], 7100).into(),
        role: Role::Data,
        domain: Domain::default(),
    }
}

fn view(id: u64, nodes: &[u32]) -> View {
    View::of(ViewId(id), nodes.iter().copied().map(member).collect())
}

fn held(id: u64, nodes: &[u32], index: u64, damaged: bool) -> Held {
    let damaged = damaged.then_some(id);
    let tips = vec![HeldTip { shard: ShardId::MAIN, view: id, index, chain: 7, damaged }];
    Held { view: view(id, nodes), behind: ViewId(id - 1), next: Vec::new(), tips }
}

/// The newest view, whether enough are there, and what is lacking.
type Told = (u64, bool, Vec<(u32, &'static str)>);

fn told(all: &[(u32, Option<Held>)]) -> Option<Told> {
    let all: BTreeMap<_, _> = all.iter().map(|(node, held)| (NodeId(*node), held.as_ref())).collect();
    let restart = restart(&all, &[ShardId::MAIN].into())?;
    let lacks = restart.lacks.into_iter().map(|(node, why)| (node.0, why)).collect();
    Some((restart.newest.id.0, restart.is_enough, lacks))
}

// P3
#[test]
fn a_majority_of_the_newest_view_is_needed() {
    let full = |id, index| Some(held(id, &[1, 2, 3], index, false));
    assert_eq!(told(&[(1, None), (2, None)]), None, "nobody was ever in a view");
    assert_eq!(
        told(&[(1, full(4, 9))]),
        Some((4, false, vec![(2, "it is not here"), (3, "it is not here")]))
    );
    assert_eq!(told(&[(1, full(4, 9)), (2, full(4, 8))]), Some((4, true, vec![(3, "it is not here")])));
    // One that hadn't got the newest view yet is one of its members all the same.
    assert_eq!(told(&[(1, full(4, 9)), (2, full(3, 8))]), Some((4, true, vec![(3, "it is not here")])));
    let blank = told(&[(1, full(4, 9)), (2, None), (3, None)]).unwrap();
    assert_eq!(blank, (4, false, vec![(2, "its disk is blank"), (3, "its disk is blank")]));
}

// P3
#[test]
fn a_log_that_lacks_something_does_not_tell_what_there_was() {
    let what = "its log is not known to have everything";
    let of = |damaged: bool, index| Some(held(4, &[1, 2, 3], index, damaged));
    let damaged = told(&[(2, of(true, 2)), (3, of(true, 2))]).unwrap();
    assert_eq!(damaged, (4, false, vec![(1, "it is not here"), (2, what), (3, what)]));
    // Its node knows the views all the same, and one log that has begun the session has everything.
    assert!(told(&[(1, of(false, 9)), (2, of(true, 2))]).unwrap().1);
    // One that hasn't, or is being fetched, may lack what the session before left: the others may have it.
    let late = |index| {
        let mut late = of(false, index);
        late.iter_mut().for_each(|held| held.tips[0].view = 3);
        late
    };
    assert!(!told(&[(1, late(5)), (2, of(true, 2))]).unwrap().1);
    assert!(!told(&[(1, late(5)), (2, late(2))]).unwrap().1, "3 may have begun it");
    assert!(!told(&[(1, late(5)), (2, late(2)), (3, of(true, 2))]).unwrap().1, "and lost it");
    assert!(told(&[(1, late(5)), (2, late(2)), (3, late(2))]).unwrap().1, "none has");
    assert!(told(&[(1, late(5)), (2, of(false, 2))]).unwrap().1);
    // What was lost before the session was made does for one whom the others were as far as then.
    let spare = |damaged| {
        let mut spare = late(2);
        spare.iter_mut().for_each(|held| held.tips[0].damaged = Some(damaged));
        spare
    };
    assert!(told(&[(1, late(5)), (2, late(2)), (3, spare(3))]).unwrap().1);
    assert!(!told(&[(1, late(5)), (2, late(2)), (3, spare(4))]).unwrap().1);
    let before = |id| Some(Held { next: vec![view(4, &[1, 2, 3])], ..held(id, &[1, 2, 3], 5, false) });
    assert!(told(&[(1, before(3)), (2, before(2)), (3, spare(3))]).unwrap().1);
    assert!(!told(&[(1, before(2)), (2, before(2)), (3, spare(3))]).unwrap().1, "nobody has what it had");
    assert!(!told(&[(1, spare(3)), (2, spare(3)), (3, spare(3))]).unwrap().1);
}

// P3
#[test]
fn who_was_left_out_brings_nothing_back() {
    let old = || Some(held(2, &[1, 2, 3], 500, false));
    let new = || Some(held(3, &[1, 2], 90, false));
    let all = [(1, new()), (2, new()), (3, old())];
    assert_eq!(told(&all), Some((3, true, vec![])));
    assert_eq!(
        told(&[(3, old()), (4, None)]),
        Some((2, false, vec![(1, "it is not here"), (2, "it is not here")]))
    );
}

// Where all have left, one after the other, the last one's log is the group's.
#[test]
fn a_group_that_has_ended_goes_on_where_it_was() {
    let left = Held { view: view(3, &[1]), ..held(2, &[1, 2], 50, false) };
    let last = Held { next: vec![view(4, &[])], ..held(3, &[1], 60, false) };
    assert_eq!(told(&[(1, Some(last)), (2, Some(left.clone()))]), Some((3, true, vec![])));
    assert!(!told(&[(2, Some(left))]).unwrap().1);
}

// P3: who agreed to a view knows of it.
#[test]
fn a_view_that_was_agreed_to_may_have_had_successors() {
    let five = [1, 2, 3, 4, 5];
    let old = || Some(held(2, &five, 50, false));
    let voter = Held { next: vec![view(3, &[1, 2, 3])], ..old().unwrap() };
    assert!(told(&[(3, old()), (4, old()), (5, old())]).unwrap().1);
    let waits = told(&[(3, Some(voter.clone())), (4, old()), (5, old())]).unwrap();
    assert_eq!((waits.0, waits.1), (3, false), "1 and 2 may have gone on");
    let waits = told(&[(2, old()), (3, Some(voter.clone())), (4, old())]).unwrap();
    assert_eq!(
        (waits.0, waits.1),
        (3, false),
        "1 may have told somebody that it has the end of view 2's messages"
    );
    let void = told(&[(1, old()), (2, old()), (3, Some(voter))]).unwrap();
    assert_eq!((void.0, void.1), (2, true), "nobody has begun it");
}

#[test]
fn numbers_are_not_used_again() {
    let noted = Held { next: vec![view(7, &[1, 2, 3])], ..held(2, &[1, 2, 3], 5, false) };
    let mut begun = held(2, &[1, 2, 3], 5, false);
    begun.tips[0].view = 9;
    let after = |one: &Held, two: &Held| {
        let all = [(NodeId(1), Some(one)), (NodeId(2), Some(two))].into();
        restart(&all, &[ShardId::MAIN].into()).unwrap().after
    };
    let plain = held(2, &[1, 2, 3], 5, false);
    assert_eq!(after(&plain, &plain), ViewId(2));
    assert_eq!(after(&plain, &noted), ViewId(7));
    assert_eq!(after(&begun, &noted), ViewId(9));
    assert!(plain.is_sane());
    begun.tips[0].view = u64::MAX;
    assert!(!begun.is_sane());
}

#[test]
fn the_longest_log_is_the_one_to_have() {
    let (one, two, three) =
        (held(4, &[1, 2, 3], 9, false), held(4, &[1, 2, 3], 12, false), held(4, &[1, 2, 3], 99, true));
    let all =
        [(NodeId(1), Some(&one)), (NodeId(2), Some(&two)), (NodeId(3), Some(&three)), (NodeId(4), None)];
    let nodes = all.map(|(node, _)| node);
    assert_eq!(
        longest(&all.into(), ShardId::MAIN, &nodes),
        [NodeId(2)],
        "one that lacks something doesn't count"
    );
    let (old, new) = (held(2, &[1, 2, 3], 500, false), held(3, &[1, 2], 90, false));
    let all = [(NodeId(1), Some(&new)), (NodeId(3), Some(&old))];
    assert_eq!(longest(&all.into(), ShardId::MAIN, &nodes), [NodeId(1)], "a later view's, however short");
    let fresh = [(NodeId(1), None), (NodeId(2), None)];
    assert_eq!(longest(&fresh.into(), ShardId::MAIN, &nodes[..2]), nodes[..2]);
}
