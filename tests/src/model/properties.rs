//! What must hold in every state.

use consort_control::change::{Cut, Next, Trimming};
use consort_control::view::Shard;

use super::state::State;
use super::world::{World, node};

/// V1: all who decide, decide the same.
pub const ONE_VIEW: &str = "one view, one trim";
/// V4: what was delivered lies below the trim.
pub const DELIVERED_BELOW: &str = "what was delivered lies below the trim";
/// V3, V4: whoever goes on was frozen, and has what lies below the trim.
pub const ALL_HERE: &str = "whoever goes on has what lies below the trim";
/// V2: a session goes on with the members that it had, or is cut.
pub const SPARED: &str = "a session goes on with the members that it had, or is cut";
/// V3, V7: those who go on have links to each other.
pub const LINKED: &str = "those who go on have links to each other";
/// V10: nobody goes on whose memory is in use.
pub const MEMORY_FREE: &str = "those who go on have freed their memory";
/// V6: witnesses alone don't go on.
pub const HAS_DATA: &str = "somebody goes on that has data";
/// It comes to a decision.
pub const NOT_STUCK: &str = "it comes to a decision";
/// A world in which nothing is ever decided would prove nothing.
pub const DECIDES: &str = "all decide";

pub(super) fn is_one_view(_: &World, state: &State) -> bool {
    let mut decided = state.decided();
    let first = decided.next();
    decided.all(|other| Some(other) == first)
}

/// What all may have received, anyone may have delivered, and may be dead by now. Where delivery doesn't wait for that, each of
/// those who go on may have delivered all that it received before it was wedged.
pub(super) fn is_delivered_below(world: &World, state: &State) -> bool {
    let is_below = |next: &Next, cut: &Cut| {
        let of = |at: &usize| state.nodes[*at].received.contains_key(&cut.shard);
        let members: Vec<_> = (0..world.roles.len()).filter(of).collect();
        match world.trimming {
            Trimming::Least => cut.trim.iter().enumerate().all(|(rank, trim)| {
                members.iter().any(|at| {
                    let node = &state.nodes[*at];
                    let most = match node.frozen.contains(&cut.shard) {
                        true => node.received[&cut.shard][rank],
                        false => world.most(*at, cut.shard, rank),
                    };
                    most <= *trim
                })
            }),
            Trimming::Greatest => members
                .iter()
                .filter(|at| next.view.member(node(**at)).is_some())
                .all(|at| lies_below(&state.nodes[*at].delivered[&cut.shard], &cut.trim)),
        }
    };
    state.decided().all(|next| next.cuts.iter().all(|cut| is_below(next, cut)))
}

pub(super) fn is_all_here(world: &World, state: &State) -> bool {
    state.values().all(|next| {
        state.goes_on(world, next).all(|(_, node)| {
            node.reported
                && next.cuts.iter().all(|cut| {
                    let rings = node.received.get(&cut.shard);
                    let is_here = |rings: &Vec<u64>| lies_below(&cut.trim, rings);
                    rings.is_none_or(|rings| node.frozen.contains(&cut.shard) && is_here(rings))
                })
        })
    })
}

pub(super) fn is_spared(world: &World, state: &State) -> bool {
    let before = world.view();
    state.values().all(|next| {
        let both = before.shards.iter().zip(&next.view.shards);
        both.enumerate().all(|(at, (old, new))| {
            let cut = next.cuts.iter().any(|cut| cut.shard.0 as usize == at);
            let goes_on = old.members.iter().all(|node| next.view.member(*node).is_some());
            let ends = new.since != old.since;
            (ends || new.members == old.members && goes_on)
                && (cut == ends || old.members.is_empty() || !any_stays(old, next))
        })
    })
}

fn any_stays(old: &Shard, next: &Next) -> bool {
    old.members.iter().any(|node| next.view.member(*node).is_some())
}

pub(super) fn is_linked(world: &World, state: &State) -> bool {
    let knows = |at: usize| world.joiner.as_ref().is_some_and(|linked| linked.contains(&at));
    state.values().all(|next| {
        let data = state.goes_on(world, next).map(|(at, _)| at).filter(|at| world.is_data(*at));
        let data: Vec<_> = data.collect();
        let joins = next.view.member(node(world.roles.len())).is_some();
        data.iter().all(|at| (!joins || knows(*at)) && data.iter().all(|other| world.has_link(*at, *other)))
    })
}

pub(super) fn is_memory_free(world: &World, state: &State) -> bool {
    let free = |next: &Next| {
        next.view.shards[0].since == world.view().id
            || state.goes_on(world, next).all(|(at, node)| !world.is_data(at) || node.free)
    };
    state.values().all(free)
}

pub(super) fn has_data(world: &World, state: &State) -> bool {
    let all_leave = (0..world.roles.len()).all(|at| !world.is_data(at) || world.leaving.contains(&at));
    state.values().all(|next| next.view.data().count() > 0 || all_leave)
}

pub(super) fn is_not_stuck(world: &World, state: &State) -> bool {
    !state.is_quiet() || state.comes_to_an_end(world)
}

pub(super) fn all_decide(_: &World, state: &State) -> bool {
    state.alive().all(|at| state.nodes[at].decided.is_some())
}

fn lies_below(these: &[u64], those: &[u64]) -> bool {
    these.len() == those.len() && these.iter().zip(those).all(|(this, that)| this <= that)
}
