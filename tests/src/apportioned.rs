//! Queries of a chain, model-checked: a state that any member may be asked for, while versions travel along the chain, acknowledgements
//! back, and a view is decided without members that don't know.
//!
//! # The model
//! Three members, ranks 0 to 2. The first of a view sends versions, which are just counted; each of the others takes from its mirror of
//! the one before it what that has. A version is *delivered* where all rows are known to have it, and *dirty* until then. What a
//! member publishes is its row, and a mirror is a row as it was at some time: [`Step::See`] copies it, so every delay is a path
//! of the model. At any moment members may be wedged, one by one; some of those that are, one at least, decide the next view, whose
//! trim is the least that any of them has, and install it one after the other. (A majority decides; but that is one of the whole
//! cluster, and of a shard's members it may hold one only.) Whoever is not in it goes on in the first view as if nothing had been.
//!
//! A query must find every version that anyone had delivered when it began.
//!
//! # The error in the published protocol
//! There a member whose newest version is clean answers at once, and one whose newest is dirty asks the tail which version is committed, and
//! answers that. Both are right as long as nobody is taken for gone who lives. A member that the others have gone on without is clean for
//! ever and answers what was; and the answer of a tail that is the tail no more, or that comes when the view has changed under
//! the one that asked, names a version that was the last one once. [`Rule::Published`] is that protocol, and the others are
//! smaller mistakes of the same kind.

use stateright::{Checker, HasDiscoveries, Model, Property};

/// Members of the chain.
pub const MEMBERS: usize = 3;

/// How queries are answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rule {
    /// As [`consort_dataplane::session`] does: all others confirm that they have not wedged; then what all rows say to have
    /// received is the version that must be there.
    Ours,
    /// A clean member answers at once; a dirty one answers the version that the tail names, whatever has become of the view since.
    Published,
    /// A clean member answers at once; a dirty one does as in `Ours`.
    CleanAtOnce,
    /// The tail alone is asked, and asks nobody.
    TailAlone,
    /// The version is looked up in the rows when the question is asked, not when it is answered.
    EarlyFrontier,
    /// A wedged member answers.
    AnswersWhenWedged,
    /// Answers of the view before count in the next.
    CrossesViews,
}

/// How much happens.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Versions sent in all.
    pub versions: u8,
    /// Queries in all.
    pub queries: u8,
}

/// The model.
pub struct Chain {
    /// How queries are answered.
    pub rule: Rule,
    /// How much happens.
    pub bounds: Bounds,
}

/// What a member publishes of one view's session.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
struct Row {
    received: u8,
    asked: u8,
    answered: [u8; MEMBERS],
}

/// What it publishes: the sessions of two views lie side by side, and the first one's row stays as it was left.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Rows {
    first: Row,
    /// Once it has begun that view.
    second: Option<Row>,
}

impl Rows {
    fn view(&self) -> u8 {
        if self.second.is_some() { 2 } else { 1 }
    }

    /// The newest.
    fn row(&mut self) -> &mut Row {
        self.second.as_mut().unwrap_or(&mut self.first)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Query {
    /// Not asked in this view.
    Wanted,
    /// Asked, with the version that was here then.
    Open(u8),
    /// Due once this version is delivered.
    Confirmed(u8),
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Member {
    rows: Rows,
    /// Others' rows as they were at some time.
    seen: [Rows; MEMBERS],
    delivered: u8,
    wedged: bool,
    /// The query, and what it must find.
    query: Option<(Query, u8)>,
}

/// A state of the model.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct State {
    members: [Member; MEMBERS],
    /// Who is in the second view, as bits, and where the first one's session ends.
    decided: Option<(u8, u8)>,
    sent: u8,
    begun: u8,
    /// What a query found that it mustn't, and what it should have found.
    stale: Option<(u8, u8)>,
    /// A query ended at a member that had more than what was delivered.
    was_dirty: bool,
    /// A query ended in the second view.
    was_second: bool,
}

/// A step of the model.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// The first of its view sends a version.
    Send(usize),
    /// A member sees another's row as it is.
    See(usize, usize),
    /// A member takes what the one before it has, and passes it on.
    Pass(usize),
    /// A member delivers what all have.
    Deliver(usize),
    /// A member stops, for a view to be decided.
    Wedge(usize),
    /// These decide the next view.
    Decide(u8),
    /// A member of it begins it.
    Install(usize),
    /// Somebody wants to know the state at a member.
    Begin(usize),
    /// That one asks the others.
    Ask(usize),
    /// A member answers another.
    Answer(usize, usize),
    /// The same, in a session that was stopped.
    AnswerLate(usize, usize),
    /// All answers are here.
    Confirm(usize),
    /// The query ends.
    End(usize),
}

impl State {
    /// Who is in a view, in rank order.
    fn of_view(&self, view: u8) -> impl DoubleEndedIterator<Item = usize> + '_ {
        let second = self.decided.map_or(0, |(members, _)| members);
        (0..MEMBERS).filter(move |at| view == 1 || second >> at & 1 == 1)
    }

    fn view(&self, at: usize) -> u8 {
        self.members[at].rows.view()
    }

    fn row(&self, at: usize) -> Row {
        let rows = &self.members[at].rows;
        rows.second.unwrap_or(rows.first)
    }

    fn others(&self, at: usize) -> impl Iterator<Item = usize> + '_ {
        self.of_view(self.view(at)).filter(move |other| *other != at)
    }

    /// What `at` knows of another's row in its own view: nothing, until that one has begun it.
    fn known(&self, at: usize, other: usize) -> Row {
        let seen = &self.members[at].seen[other];
        if self.view(at) == 1 { seen.first } else { seen.second.unwrap_or_default() }
    }

    fn before(&self, at: usize) -> Option<usize> {
        self.of_view(self.view(at)).take_while(|other| *other < at).last()
    }

    fn tail(&self, at: usize) -> usize {
        self.of_view(self.view(at)).next_back().unwrap_or(at)
    }

    /// What every member is known to have, at `at`.
    fn stable(&self, at: usize) -> u8 {
        let known = self.others(at).map(|other| self.known(at, other).received);
        known.min().unwrap_or(u8::MAX).min(self.row(at).received)
    }

    fn delivered(&self) -> u8 {
        self.members.iter().map(|it| it.delivered).max().unwrap_or(0)
    }
}

impl Chain {
    fn answers_at_once(&self, state: &State, at: usize) -> bool {
        let it = &state.members[at];
        let is_clean = state.row(at).received == it.delivered && !it.wedged;
        is_clean && matches!(self.rule, Rule::Published | Rule::CleanAtOnce)
    }

    /// The version that a query must wait for, if the answers are here.
    fn confirmed(&self, state: &State, at: usize, here: u8) -> Option<u8> {
        let (it, asked) = (&state.members[at], state.row(at).asked);
        let has_answered = |other: usize| {
            let before = if self.rule == Rule::CrossesViews { it.seen[other].first.answered[at] } else { 0 };
            state.known(at, other).answered[at].max(before) >= asked
        };
        match self.rule {
            Rule::TailAlone | Rule::Published => {
                let tail = state.tail(at);
                match tail == at {
                    true => Some(here),
                    false => has_answered(tail).then(|| state.known(at, tail).received),
                }
            }
            Rule::EarlyFrontier => state.others(at).all(has_answered).then_some(here),
            _ => state.others(at).all(has_answered).then(|| here.min(state.stable(at))),
        }
    }
}

impl Model for Chain {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        // A query was answered long ago.
        let rows = Rows { first: Row { received: 0, asked: 1, answered: [1; MEMBERS] }, second: None };
        let member = Member { rows, seen: [rows; MEMBERS], delivered: 0, wedged: false, query: None };
        let members = [(); MEMBERS].map(|()| member.clone());
        let (decided, stale) = (None, None);
        vec![State { members, decided, sent: 0, begun: 0, stale, was_dirty: false, was_second: false }]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        if state.begun == self.bounds.queries && state.members.iter().all(|it| it.query.is_none()) {
            return; // nothing can be stale any more
        }
        for (at, it) in state.members.iter().enumerate() {
            let (view, row) = (state.view(at), state.row(at));
            let runs = !it.wedged;
            let before = state.before(at);
            if runs && before.is_none() && state.sent < self.bounds.versions {
                steps.push(Step::Send(at));
            }
            // Also of one that it goes on without: that it is fenced makes it safer, and isn't needed here.
            let differs = |other: &usize| *other != at && it.seen[*other] != state.members[*other].rows;
            steps.extend((0..MEMBERS).filter(differs).map(|other| Step::See(at, other)));
            if runs && before.is_some_and(|before| state.known(at, before).received > row.received) {
                steps.push(Step::Pass(at));
            }
            if runs && state.stable(at) > it.delivered {
                steps.push(Step::Deliver(at));
            }
            if runs && view == 1 && state.decided.is_none() {
                steps.push(Step::Wedge(at));
            }
            if view == 1 && state.decided.is_some_and(|(members, _)| members >> at & 1 == 1) {
                steps.push(Step::Install(at));
            }
            for other in state.others(at) {
                if runs && state.known(at, other).asked > row.answered[other] {
                    steps.push(Step::Answer(at, other));
                }
            }
            if self.rule == Rule::AnswersWhenWedged && (!runs || view == 2) {
                // Its old session goes on answering.
                let is_asked = |other: &usize| it.seen[*other].first.asked > it.rows.first.answered[*other];
                let others = (0..MEMBERS).filter(|other| *other != at);
                steps.extend(others.filter(is_asked).map(|other| Step::AnswerLate(at, other)));
            }
            match it.query {
                None if state.begun < self.bounds.queries => steps.push(Step::Begin(at)),
                Some((Query::Wanted, _)) if self.answers_at_once(state, at) => steps.push(Step::End(at)),
                Some((Query::Wanted, _)) if runs => steps.push(Step::Ask(at)),
                Some((Query::Open(here), _)) if runs && self.confirmed(state, at, here).is_some() => {
                    steps.push(Step::Confirm(at));
                }
                Some((Query::Confirmed(upto), _)) if it.delivered >= upto => steps.push(Step::End(at)),
                _ => {}
            }
        }
        let wedged = (0..MEMBERS).filter(|at| state.members[*at].wedged).fold(0, |all, at| all | 1 << at);
        if state.decided.is_none() {
            steps.extend((1..1 << MEMBERS).filter(|members: &u8| members & !wedged == 0).map(Step::Decide));
        }
    }

    fn next_state(&self, state: &State, step: Step) -> Option<State> {
        let mut next = state.clone();
        match step {
            Step::Send(at) => {
                next.sent += 1;
                next.members[at].rows.row().received += 1;
            }
            Step::See(at, other) => next.members[at].seen[other] = state.members[other].rows,
            Step::Pass(at) => {
                next.members[at].rows.row().received = state.known(at, state.before(at)?).received;
            }
            Step::Deliver(at) => next.members[at].delivered = state.stable(at),
            Step::Wedge(at) => next.members[at].wedged = true,
            Step::Decide(members) => {
                let survivors = (0..MEMBERS).filter(|at| members >> at & 1 == 1);
                next.decided = Some((members, survivors.map(|at| state.row(at).received).min()?));
            }
            Step::Install(at) => {
                let (_, trim) = state.decided?;
                let it = &mut next.members[at];
                it.rows.second = Some(Row { received: trim, ..Row::default() });
                (it.delivered, it.wedged) = (trim, false);
                it.query = it.query.map(|(query, expects)| match query {
                    // The rows begin anew, and so does the question; what was confirmed is due now.
                    Query::Confirmed(_) if self.rule != Rule::Published => (Query::Confirmed(0), expects),
                    Query::Open(_) => (Query::Wanted, expects),
                    other => (other, expects),
                });
            }
            Step::Begin(at) => {
                next.begun += 1;
                next.members[at].query = Some((Query::Wanted, state.delivered()));
            }
            Step::Ask(at) => {
                let here = match self.rule {
                    Rule::EarlyFrontier => state.stable(at),
                    _ => state.row(at).received,
                };
                let it = &mut next.members[at];
                it.rows.row().asked += 1;
                it.query = it.query.map(|(_, expects)| (Query::Open(here), expects));
            }
            Step::Answer(at, other) => {
                next.members[at].rows.row().answered[other] = state.known(at, other).asked;
            }
            Step::AnswerLate(at, other) => {
                next.members[at].rows.first.answered[other] = state.members[at].seen[other].first.asked;
            }
            Step::Confirm(at) => {
                let (Query::Open(here), expects) = state.members[at].query? else { return None };
                let upto = self.confirmed(state, at, here)?;
                next.members[at].query = Some((Query::Confirmed(upto), expects));
            }
            Step::End(at) => {
                let it = &mut next.members[at];
                let (query, expects) = it.query.take()?;
                let found = match query {
                    Query::Confirmed(version) if self.rule == Rule::Published => version,
                    _ => it.delivered,
                };
                next.was_dirty |= state.row(at).received > it.delivered;
                next.was_second |= state.view(at) == 2;
                if found < expects {
                    next.stale = Some((found, expects));
                }
            }
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(
                "no query finds less than what was delivered when it began",
                |_, state: &State| state.stale.is_none(),
            ),
            Property::always(
                "what was delivered in the first view lies below its end",
                |_, state: &State| {
                    let Some((_, trim)) = state.decided else { return true };
                    state.members.iter().all(|it| it.rows.view() == 2 || it.delivered <= trim)
                },
            ),
            Property::sometimes("a query ends at a member that is dirty", |_, state: &State| state.was_dirty),
            Property::sometimes("a query ends in the second view", |_, state: &State| state.was_second),
        ]
    }
}

/// Looks at every state. Returns how many there are.
///
/// # Errors
/// What doesn't hold, and the steps that lead there.
pub fn explore(rule: Rule, bounds: Bounds) -> Result<usize, String> {
    let checker = Chain { rule, bounds }.checker().threads(2).finish_when(HasDiscoveries::AnyFailures);
    let checker = checker.spawn_bfs().join();
    let found = checker.discoveries();
    for property in checker.model().properties() {
        let is_wanted = property.expectation == stateright::Expectation::Sometimes;
        match found.get(property.name) {
            Some(path) if !is_wanted => {
                let steps: Vec<_> = path.clone().into_actions().iter().map(|it| format!("{it:?}")).collect();
                return Err(format!("not so: {}, after {}", property.name, steps.join(", ")));
            }
            None if is_wanted => return Err(format!("it never happened that {}", property.name)),
            _ => {}
        }
    }
    Ok(checker.unique_state_count())
}
