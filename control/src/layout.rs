//! Who has which shard in the next view: a pure function of the view before, of who comes and goes, and of what the configuration
//! wants. Only who proposes a view asks it; the answer is part of what is decided.
//!
//! - **Only what must move moves.** Who has a shard keeps it as long as it is a member; places that are free are filled, and
//!   nothing else happens. A shard that nothing happens to keeps its session over the change.
//! - **Spread.** A free place goes to a node of a failure domain that has no other replica of the shard, and among those to the one with
//!   the fewest replicas. Where two replicas had to share a domain, one moves once another domain has a node.
//! - **State first.** Where there is a state, who is to have a shard is a learner of it at first, and a member when it has caught up (V7).
//! - **Nothing is made up.** A shard with a state that has lost its last member stays without any: a new one would begin
//!   empty, and be believed.

use std::collections::{BTreeMap, BTreeSet};

use consort_dataplane::names::{NodeId, ViewId};

use crate::view::{Domain, Incarnation, Member, Role, Shard, ShardId, ShardShape, Spread, View};

/// A learner that has caught up (V7).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Ready {
    /// With which shard.
    pub shard: ShardId,
    /// Who.
    pub node: NodeId,
    /// From whom it has the state: who delivers the session to its end, and passes that on.
    pub source: Incarnation,
}

/// The shards of a cluster before its first view.
pub fn none(shapes: &[ShardShape]) -> Vec<Shard> {
    vec![Shard::default(); shapes.len()]
}

/// The shards of the view after `old`, of these members. Sessions in `ended` are over, whether anything else changes for them or not.
pub fn next(
    shapes: &[ShardShape],
    old: &View,
    members: &[Member],
    ready: &BTreeSet<Ready>,
    ended: &BTreeSet<ShardId>,
) -> Vec<Shard> {
    let data: Vec<&Member> = members.iter().filter(|member| member.role == Role::Data).collect();
    let stays = |node: &NodeId| {
        let now = data.iter().find(|member| member.node == *node);
        now.is_some_and(|now| old.member(*node).is_some_and(|it| it.incarnation == now.incarnation))
    };
    let mut shards: Vec<Drawn> = old
        .shards()
        .zip(shapes)
        .map(|((id, shard), shape)| {
            let held: Vec<_> = shard.members.iter().copied().filter(stays).collect();
            let learners = shard.learners.iter().copied().filter(|node| stays(node) && !held.contains(node));
            let mut drawn = Drawn { learners: learners.collect(), held, dropped: None };
            drawn.admit(id, old, ready);
            drawn.drop_one_too_many(shape, &data, ready, id);
            drawn
        })
        .collect();
    let mut load = load(&shards);
    for (at, shape) in shapes.iter().enumerate() {
        let Some(drawn) = shards.get_mut(at) else { continue };
        let before = &old.shards[at];
        if (shape.state || shape.guarantee.durable()) && drawn.held.is_empty() && before.since != ViewId(0) {
            drawn.learners.clear(); // its state is gone
            continue;
        }
        for node in drawn.wanted(shape, &data, &load) {
            // The main group's joiners are taken in with their state.
            let knows = !shape.is_taught() || at == 0 || before.since == ViewId(0);
            if knows {
                drawn.held.push(node);
            } else {
                drawn.learners.push(node);
            }
            *load.entry(node).or_insert(0) += 1;
        }
    }
    let same_members = old.members == members;
    let shards = shards.into_iter().zip(old.shards()).map(|(Drawn { held, learners, .. }, (id, before))| {
        let same = held == before.members && (id != ShardId::MAIN || same_members);
        let goes_on = same && !ended.contains(&id) || held.is_empty() && before.members.is_empty();
        let (since, second) = match goes_on {
            true => (before.since, before.second),
            false => (old.id.next(), !before.second),
        };
        Shard { members: held, learners, since, second }
    });
    shards.collect()
}

/// A shard on its way to the next view.
struct Drawn {
    held: Vec<NodeId>,
    learners: Vec<NodeId>,
    dropped: Option<NodeId>,
}

impl Drawn {
    /// Learners that have caught up become members, if who taught them goes on in the shard.
    fn admit(&mut self, id: ShardId, old: &View, ready: &BTreeSet<Ready>) {
        let life = |node: &NodeId| old.member(*node).map(|member| member.incarnation);
        let sources: Vec<_> = self.held.iter().filter_map(life).collect();
        let is_ready = |node: &NodeId| {
            ready.iter().any(|it| it.shard == id && it.node == *node && sources.contains(&it.source))
        };
        let (admitted, learners) = std::mem::take(&mut self.learners).into_iter().partition(is_ready);
        self.learners = learners;
        self.held.extend::<Vec<_>>(admitted);
    }

    /// A replica that came so that another need not share its domain takes the place of that one.
    fn drop_one_too_many(
        &mut self,
        shape: &ShardShape,
        data: &[&Member],
        ready: &BTreeSet<Ready>,
        id: ShardId,
    ) {
        let Spread::Replicas(replicas) = shape.spread else { return };
        if self.held.len() <= replicas {
            return;
        }
        let life = |node: NodeId| data.iter().find(|it| it.node == node).map(|it| it.incarnation);
        // Who passes the end of the session on can't be the one.
        let teaches = |node: NodeId| ready.iter().any(|it| it.shard == id && Some(it.source) == life(node));
        let shares = |node: NodeId| count(&self.held, data, place(data, node)) > 1;
        let last = self.held.iter().rposition(|node| shares(*node) && !teaches(*node));
        self.dropped = last.map(|at| self.held.remove(at));
    }

    /// Who is to come, in this order.
    fn wanted(&self, shape: &ShardShape, data: &[&Member], load: &BTreeMap<NodeId, usize>) -> Vec<NodeId> {
        let has = |node: NodeId| self.held.contains(&node) || self.learners.contains(&node);
        let free = || data.iter().map(|member| member.node).filter(|node| !has(*node));
        match &shape.spread {
            Spread::All => free().collect(),
            Spread::Nodes(nodes) => free().filter(|node| nodes.contains(node)).collect(),
            Spread::Replicas(replicas) => {
                let mut all: Vec<_> = self.held.iter().chain(&self.learners).copied().collect();
                let mut wanted = Vec::new();
                loop {
                    let fit = free().filter(|node| !wanted.contains(node) && self.dropped != Some(*node));
                    let sharing = |node: NodeId| count(&all, data, place(data, node));
                    let best = fit.min_by_key(|node| (sharing(*node), load.get(node).copied().unwrap_or(0)));
                    let Some(node) = best else { break };
                    let is_full = all.len() >= (*replicas).max(1);
                    // One more than it takes, for a moment, if that mends the spread.
                    let mends = all.len() == *replicas
                        && sharing(node) == 0
                        && all.iter().any(|node| sharing(*node) > 1);
                    if is_full && !mends {
                        break;
                    }
                    all.push(node);
                    wanted.push(node);
                }
                wanted
            }
        }
    }
}

/// What a node fails with: the domain that it declared, or itself.
fn place(data: &[&Member], node: NodeId) -> (Domain, Option<NodeId>) {
    let domain = data.iter().find(|member| member.node == node).map(|it| it.domain).unwrap_or_default();
    (domain, domain.is_none().then_some(node))
}

/// How many of these nodes fail together.
fn count(nodes: &[NodeId], data: &[&Member], of: (Domain, Option<NodeId>)) -> usize {
    nodes.iter().filter(|node| place(data, **node) == of).count()
}

/// How many replicas every node has, or is about to.
fn load(shards: &[Drawn]) -> BTreeMap<NodeId, usize> {
    let mut load = BTreeMap::new();
    for node in shards.iter().flat_map(|it| it.held.iter().chain(&it.learners)) {
        *load.entry(*node).or_insert(0) += 1;
    }
    load
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::{GroupConfig, NodeConfig};

    fn member(id: u32, life: u64, domain: &str) -> Member {
        Member {
            node: NodeId(id),
            incarnation: Incarnation(life),
            address: ([127, 0, 0, 1], 1).into(),
            role: Role::Data,
            domain: Domain::new(domain).unwrap(),
        }
    }

    fn shapes(shards: usize, replicas: usize, state: bool) -> Vec<ShardShape> {
        let mut config = NodeConfig::new(NodeId(1));
        config.groups.push(GroupConfig::new("kv").sharded(shards, replicas).state(state));
        config.shapes()
    }

    /// Views one after the other.
    struct Course {
        shapes: Vec<ShardShape>,
        view: View,
    }

    impl Course {
        fn new(shapes: Vec<ShardShape>, members: &[Member]) -> Self {
            let view = View { id: ViewId(0), members: Vec::new(), shards: none(&shapes) };
            let mut course = Self { shapes, view };
            course.go_on(members, &[], &[]);
            course
        }

        /// The next view; who is caught up has it from the first member of its shard.
        fn go_on(&mut self, members: &[Member], caught_up: &[(u32, u32)], ended: &[u32]) {
            let source = |shard: u32| self.view.member(self.view.shards[shard as usize].members[0]).unwrap();
            let ready = caught_up.iter().map(|(shard, node)| Ready {
                shard: ShardId(*shard),
                node: NodeId(*node),
                source: source(*shard).incarnation,
            });
            let ended = ended.iter().copied().map(ShardId).collect();
            let shards = next(&self.shapes, &self.view, members, &ready.collect(), &ended);
            self.view = View { id: self.view.id.next(), members: members.to_vec(), shards };
        }

        fn nodes(&self, shard: usize) -> (Vec<u32>, Vec<u32>) {
            let ids = |nodes: &[NodeId]| nodes.iter().map(|node| node.0).collect();
            (ids(&self.view.shards[shard].members), ids(&self.view.shards[shard].learners))
        }
    }

    // V2, V7
    #[test]
    fn a_free_place_is_filled_by_who_has_learned_the_state() {
        let all: Vec<_> = (1..=4).map(|id| member(id, id.into(), "")).collect();
        let mut course = Course::new(shapes(1, 3, true), &all);
        assert_eq!(course.nodes(1), (vec![1, 2, 3], vec![]));
        let without_2: Vec<_> = all.iter().copied().filter(|it| it.node != NodeId(2)).collect();
        course.go_on(&without_2, &[], &[]);
        assert_eq!(course.nodes(1), (vec![1, 3], vec![4]), "at first it learns");
        let since = course.view.shards[1].since;
        course.go_on(&without_2, &[], &[]);
        assert_eq!(
            (course.nodes(1), course.view.shards[1].since),
            ((vec![1, 3], vec![4]), since),
            "nothing moves"
        );
        course.go_on(&without_2, &[(1, 4)], &[]);
        assert_eq!(course.nodes(1), (vec![1, 3, 4], vec![]));
        assert_eq!(course.view.shards[1].since, course.view.id);
        assert_ne!(course.view.shards[0].since, course.view.id, "the main group goes on");
    }

    // V7: who was taught by one that does not go on waits for another teacher.
    #[test]
    fn nobody_is_admitted_without_its_source() {
        let all: Vec<_> = (1..=4).map(|id| member(id, id.into(), "")).collect();
        let mut course = Course::new(shapes(1, 3, true), &all[..3]);
        course.go_on(&[all[0], all[2], all[3]], &[], &[]);
        assert_eq!(course.nodes(1), (vec![1, 3], vec![4]));
        course.go_on(&[all[2], all[3]], &[(1, 4)], &[]);
        assert_eq!(course.nodes(1), (vec![3], vec![4]), "node 1 taught it, and is gone");
    }

    #[test]
    fn a_state_that_is_lost_is_not_begun_anew() {
        let one = [member(1, 1, ""), member(2, 2, "")];
        let (mut kept, mut fresh) =
            (Course::new(shapes(1, 1, true), &one), Course::new(shapes(1, 1, false), &one));
        for course in [&mut kept, &mut fresh] {
            assert_eq!(course.nodes(1).0, [1]);
            course.go_on(&one[1..], &[], &[]);
        }
        assert!(kept.view.shards[1].is_lost());
        assert_eq!(fresh.nodes(1).0, [2]);
        // Another life of a member has nothing of what the one before had.
        let again = [member(2, 2, ""), member(1, 9, "")];
        kept.go_on(&again, &[], &[]);
        assert_eq!(kept.nodes(1), (vec![], vec![]));
    }

    #[test]
    fn replicas_are_spread_over_domains_and_move_only_to_mend_that() {
        let all = [member(1, 1, "a"), member(2, 2, "a"), member(3, 3, "b")];
        let mut course = Course::new(shapes(1, 2, true), &all[..2]);
        assert_eq!(course.nodes(1).0, [1, 2], "there is no other domain yet");
        course.go_on(&all, &[], &[]);
        assert_eq!(course.nodes(1), (vec![1, 2], vec![3]));
        course.go_on(&all, &[(1, 3)], &[]);
        assert_eq!(course.nodes(1), (vec![1, 3], vec![]), "node 1 taught node 3, so node 2 goes");
        let since = course.view.shards[1].since;
        course.go_on(&all, &[], &[]);
        assert_eq!((course.nodes(1).0, course.view.shards[1].since), (vec![1, 3], since));
    }

    // V2
    #[test]
    fn a_session_that_was_wedged_does_not_go_on() {
        let all = [member(1, 1, ""), member(2, 2, "")];
        let mut course = Course::new(shapes(2, 1, false), &all);
        let before = course.view.clone();
        course.go_on(&all, &[], &[1]);
        let began = |shard: usize| course.view.shards[shard].since != before.shards[shard].since;
        assert_eq!((0..3).map(began).collect::<Vec<_>>(), [false, true, false]);
        assert_ne!(course.view.shards[1].second, before.shards[1].second, "V10: in the other place");
    }

    proptest! {
        // Whoever comes and goes: nobody is lost to a shard who stays, no domain has two where another has none, the load is even.
        #[test]
        fn only_what_must_move_moves(changes in prop::collection::vec(prop::collection::vec(any::<bool>(), 6), 1..8)) {
            let all: Vec<_> = (1..=6).map(|id| member(id, id.into(), ["a", "b", "c"][id as usize % 3])).collect();
            let mut course = Course::new(shapes(3, 3, false), &all);
            for there in changes {
                let before = course.view.clone();
                let members: Vec<_> = all.iter().zip(&there).filter(|it| *it.1).map(|it| *it.0).collect();
                course.go_on(&members, &[], &[]);
                for (old, new) in before.shards.iter().zip(&course.view.shards).skip(1) {
                    let stays = |node: &NodeId| {
                        before.member(*node).is_some() && members.iter().any(|member| member.node == *node)
                    };
                    let kept: Vec<_> = old.members.iter().copied().filter(stays).collect();
                    prop_assert!(kept.iter().filter(|node| !new.members.contains(node)).count() <= 1);
                    prop_assert!(new.members.len() <= 4 && new.members.len() >= members.len().min(3));
                    let goes_on = new.since == old.since;
                    prop_assert_eq!(goes_on, new.members == old.members);
                }
            }
        }
    }
}
