//! A view change in small worlds, for the model checker: every step that can be taken, in every order.
//!
//! What decides is not a model: it is [`Change`] itself, one for each member. The model is what lies around it. Control links
//! carry what members say, in any order, and in some worlds lose it. The data plane is a vector at each member, of how
//! much it has received of every ring: anything that was sent, until a wedge takes effect, which is later than the wedge is asked for.
//! A member's report, the bytes it fetches, its memory that is freed, its patience, its suspicions (true or not) and its crash
//! are steps of their own. A delivery need not be one: what all members may have received, any of them may have delivered.
//!
//! How many crashes, false suspicions, losses and ends of patience there may be is bounded by the [`World`]; without bounds there
//! would be no end to it.

mod world;
mod state;
pub mod properties;

use std::fmt;
use std::time::{Duration, Instant};

use consort_control::change::Change;
use stateright::{Checker, HasDiscoveries, Model, Property};

use properties::*;
pub use state::{Envelope, Node, Shared, State, Step};
use world::node;
pub use world::{Bounds, World};

impl Model for World {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![State::new(self)]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        let left = &state.left;
        for envelope in &state.envelopes {
            steps.push(Step::Arrive(envelope.clone()));
            if left.losses > 0 {
                steps.push(Step::Lose(envelope.clone()));
            }
        }
        for at in state.alive() {
            let it = &state.nodes[at];
            let Some(change) = &it.change else { continue };
            if it.wedging.is_some() {
                let received = state.may_have_received(self, at);
                steps.extend(received.into_iter().map(|received| Step::Wedged(at, received)));
            }
            let due = it.fetches.iter().enumerate().filter(|(_, fetch)| state.can_supply(fetch));
            steps.extend(due.map(|(index, _)| Step::Supply(at, index)));
            if !it.free {
                steps.push(Step::Free(at));
            }
            if left.crashes > 0 {
                steps.push(Step::Crash(at));
            }
            if change.decided().is_some() {
                continue;
            }
            for other in (0..state.nodes.len()).filter(|other| *other != at) {
                let is_new = !change.suspects().contains(&node(other));
                if is_new && (left.suspicions > 0 || !state.is_alive(other)) {
                    steps.push(Step::Suspect(at, other));
                }
                if left.reachable > 0 && change.has_begun() && state.is_alive(other) {
                    steps.push(Step::Reachable(at, other));
                }
            }
            if left.patience > 0 && (change.has_begun() || !change.suspects().is_empty()) {
                steps.push(Step::Patience(at));
            }
            if left.reasons > 0 && !change.has_begun() {
                steps.push(Step::Reason(at));
            }
        }
    }

    fn next_state(&self, before: &State, step: Step) -> Option<State> {
        let mut state = before.clone();
        match step {
            Step::Arrive(envelope) => state.arrive(&envelope),
            Step::Lose(envelope) => {
                state.left.losses -= 1;
                state.take(&envelope);
            }
            Step::Wedged(at, received) => state.wedged(self, at, &received),
            Step::Supply(at, index) => state.supply(at, index),
            Step::Free(at) => state.free(at),
            Step::Suspect(at, other) => {
                if state.is_alive(other) {
                    state.left.suspicions -= 1;
                }
                state.change(at, |change| change.on_suspect(node(other)));
            }
            Step::Crash(at) => {
                state.left.crashes -= 1;
                state.crash(at);
            }
            Step::Patience(at) => {
                state.left.patience -= 1;
                state.change(at, Change::on_patience);
            }
            Step::Reachable(at, other) => {
                state.left.reachable -= 1;
                state.change(at, |change| change.on_reachable(node(other)));
            }
            Step::Reason(at) => {
                state.left.reasons -= 1;
                state.change(at, Change::on_reason);
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(ONE_VIEW, is_one_view),
            Property::always(DELIVERED_BELOW, is_delivered_below),
            Property::always(ALL_HERE, is_all_here),
            Property::always(SPARED, is_spared),
            Property::always(LINKED, is_linked),
            Property::always(MEMORY_FREE, is_memory_free),
            Property::always(HAS_DATA, has_data),
            Property::always(NOT_STUCK, is_not_stuck),
            Property::sometimes(DECIDES, all_decide),
        ]
    }
}

/// What came of looking at a world.
#[derive(Clone, Debug)]
pub struct Found {
    /// Different states.
    pub states: usize,
    /// The most steps that were taken to one of them.
    pub depth: usize,
    /// How long it took.
    pub took: Duration,
    /// The properties that don't hold, each with the steps that show it.
    pub broken: Vec<(&'static str, Vec<String>)>,
    /// Nothing shows that anything is ever decided.
    pub idle: bool,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} states, {} steps deep, {:.1?}", self.states, self.depth, self.took)?;
        for (property, steps) in &self.broken {
            write!(f, "\n  not so: {property}")?;
            for step in steps {
                write!(f, "\n    {step}")?;
            }
        }
        Ok(())
    }
}

/// How to go through a world.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// What takes fewer steps first: what it finds is told in as few steps as can be.
    Shortest,
    /// One run to its end, then the next: takes less memory.
    Deepest,
}

/// Takes every step in every order: all of them, or until a property is broken.
pub fn explore(world: &World, way: Way) -> Found {
    look(world, way, HasDiscoveries::AnyFailures)
}

/// Takes every step in every order, until this property is broken.
pub fn seek(world: &World, property: &'static str) -> Found {
    look(world, Way::Shortest, HasDiscoveries::AllOf([property].into()))
}

fn look(world: &World, way: Way, until: HasDiscoveries) -> Found {
    let began = Instant::now();
    let checker = world.clone().checker().threads(2).finish_when(until);
    match way {
        Way::Shortest => found(&checker.spawn_bfs().join(), began),
        Way::Deepest => found(&checker.spawn_dfs().join(), began),
    }
}

fn found(checker: &impl Checker<World>, began: Instant) -> Found {
    let found = checker.discoveries();
    let broken = found.iter().filter(|(name, _)| **name != DECIDES).map(|(name, path)| {
        let steps = path.clone().into_actions().iter().map(|step| format!("{step:?}")).collect();
        (*name, steps)
    });
    Found {
        states: checker.unique_state_count(),
        depth: checker.max_depth(),
        took: began.elapsed(),
        broken: broken.collect(),
        idle: !found.contains_key(DECIDES),
    }
}
