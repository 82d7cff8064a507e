//! The state of all locks, elections and barriers, and what updates and changes of the view do to it. Deterministic: everyone
//! has the same.
//!
//! # Invariants
//! Of each lock: every grant's token is greater than all before it. A grant by an update has the update's view and its place, from
//! one; a grant by a change of the view has the new view and zero; views grow, places grow within a view, and one update or change grants a lock at
//! most once. Whoever holds or waits is in the view, in that life.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io::{self, Read};

use serde::{Deserialize, Serialize};

use crate::object::{Context, Snapshot, StateMachine};
use crate::{NodeId, View};

/// What a grant is known by; a later grant of the same lock has a greater one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Token {
    /// The view in which it was granted,
    pub view: u64,
    /// and the place there: zero where the change of the view granted it, else one more than the granting update's.
    pub place: u64,
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "token {}.{}", self.view, self.place)
    }
}

/// What becomes of a barrier when a party is lost before all have arrived.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum OnLoss {
    /// It breaks, and all who wait are told by whom.
    Break,
    /// It waits for the others only.
    GoOn,
}

/// A barrier broke.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Broken {
    /// A party was lost before all had arrived.
    #[error(
        "node {0} was lost before it arrived at the barrier, or while it waited there; begin anew with those who are left"
    )]
    Lost(NodeId),
    /// This one came with other parties or another policy than those who wait.
    #[error("others wait at this barrier for other parties, or with another policy; all must say the same")]
    Differs,
    /// This node is none of the parties.
    #[error("this node is none of the parties that the barrier waits for")]
    NoParty,
}

/// Who holds or waits: one call of one life of a node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub(super) struct Party {
    pub(super) node: u32,
    pub(super) life: u64,
    pub(super) call: u64,
}

/// Which of the two kinds of queues.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub(super) enum Kind {
    Lock,
    Election,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) enum Command {
    /// Gets in line; or, if it mustn't wait, only where nobody is.
    Enter { kind: Kind, name: String, call: u64, waits: bool },
    /// Leaves the line, from wherever in it.
    Leave { kind: Kind, name: String, call: u64 },
    /// Is at a barrier, of these nodes.
    Arrive { name: String, parties: Vec<u32>, on_loss: OnLoss },
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) enum Reply {
    /// It is this one's turn.
    Granted(Party, Token),
    /// Others come first.
    Queued(Party),
    /// Somebody has it.
    Taken,
    /// It has left, if it was there.
    Left,
    /// It counts for this round of the barrier.
    Arrived(u64),
    /// It doesn't count.
    Refused(Refusal),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) enum Refusal {
    Differs,
    NoParty,
}

/// Who has a turn, and who comes next.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
struct Line {
    holder: Option<(Party, Token)>,
    waiting: VecDeque<Party>,
}

/// Rounds that broke and are remembered: long enough for everyone who waits to look.
const BROKEN: usize = 1024;

/// A round of a barrier that isn't over.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Round {
    /// No other has it, of whatever barrier.
    number: u64,
    on_loss: OnLoss,
    asked: Vec<u32>,
    /// Of each party its life, once it was seen in a view, and whether it has arrived.
    parties: BTreeMap<u32, (Option<u64>, bool)>,
}

/// How a round of a barrier ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ended {
    /// All were there.
    Well,
    /// That party was lost.
    Broken(u32),
    /// Nobody knows: it is too long ago, or was in a group that is no more.
    Unknown,
}

/// See the [module](self).
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(super) struct State {
    lines: BTreeMap<(Kind, String), Line>,
    /// Those at which somebody waits.
    barriers: BTreeMap<String, Round>,
    /// Rounds that were begun, of all barriers.
    rounds: u64,
    /// The last that broke, by whose loss.
    broken: BTreeMap<u64, u32>,
    /// Of a round below this one that isn't among them, nobody knows any more whether it broke.
    forgotten: u64,
    /// Who is in the view, and in which life.
    members: BTreeMap<u32, u64>,
}

impl Line {
    /// The next has its turn, if there is one and nobody has.
    fn go_on(&mut self, token: Token) {
        if self.holder.is_none() {
            self.holder = self.waiting.pop_front().map(|party| (party, token));
        }
    }

    fn is_empty(&self) -> bool {
        self.holder.is_none() && self.waiting.is_empty()
    }

    fn remove(&mut self, goes: impl Fn(&Party) -> bool, token: Token) {
        self.waiting.retain(|party| !goes(party));
        if self.holder.is_some_and(|(party, _)| goes(&party)) {
            self.holder = None;
        }
        self.go_on(token);
    }
}

impl Round {
    fn is_full(&self) -> bool {
        self.parties.values().all(|(_, arrived)| *arrived)
    }

    /// Notes who is in the view, and who isn't any more. Returns whose loss breaks it.
    fn look(&mut self, members: &BTreeMap<u32, u64>) -> Option<u32> {
        let mut lost = None;
        self.parties.retain(|node, (life, _)| match (*life, members.get(node)) {
            (Some(life), now) if now != Some(&life) => {
                lost = lost.or(Some(*node));
                false
            }
            (_, now) => {
                *life = now.copied();
                true
            }
        });
        lost.filter(|_| self.on_loss == OnLoss::Break)
    }
}

impl State {
    fn enter(&mut self, kind: Kind, name: String, party: Party, waits: bool, token: Token) -> Reply {
        let line = self.lines.entry((kind, name)).or_default();
        if !waits && !line.is_empty() {
            return Reply::Taken;
        }
        line.waiting.push_back(party);
        line.go_on(token);
        match line.holder {
            Some((holder, token)) if holder == party => Reply::Granted(party, token),
            _ => Reply::Queued(party),
        }
    }

    fn leave(&mut self, kind: Kind, name: String, party: Party, token: Token) -> Reply {
        let name = (kind, name);
        if let Some(line) = self.lines.get_mut(&name) {
            line.remove(|it| *it == party, token);
            if line.is_empty() {
                self.lines.remove(&name);
            }
        }
        Reply::Left
    }

    fn arrive(&mut self, name: &str, mut parties: Vec<u32>, on_loss: OnLoss, node: u32) -> Reply {
        parties.sort_unstable();
        parties.dedup();
        let members = &self.members;
        if !self.barriers.contains_key(name) {
            if !parties.contains(&node) {
                return Reply::Refused(Refusal::NoParty); // nobody waits in a round that a stranger opens
            }
            let lives = parties.iter().map(|party| (*party, (members.get(party).copied(), false)));
            let round =
                Round { number: self.rounds, on_loss, parties: lives.collect(), asked: parties.clone() };
            self.rounds += 1;
            self.barriers.insert(name.to_owned(), round);
        }
        let Some(round) = self.barriers.get_mut(name) else { return Reply::Refused(Refusal::NoParty) };
        if round.on_loss != on_loss || round.asked != parties {
            return Reply::Refused(Refusal::Differs);
        }
        let Some((_, arrived)) = round.parties.get_mut(&node) else {
            return Reply::Refused(Refusal::NoParty);
        };
        *arrived = true;
        let number = round.number;
        if round.is_full() {
            self.barriers.remove(name);
        }
        Reply::Arrived(number)
    }

    /// Ends the rounds that the view breaks, or that were waiting for who is lost.
    fn look(&mut self) {
        let Self { barriers, members, broken, .. } = self;
        barriers.retain(|_, round| {
            if let Some(node) = round.look(members) {
                broken.insert(round.number, node);
                return false;
            }
            !round.is_full()
        });
        while self.broken.len() > BROKEN {
            self.forgotten = self.broken.pop_first().map_or(self.forgotten, |(number, _)| number + 1);
        }
    }

    /// Whether it is this one's turn: with which token; `None` while it waits, `Some(None)` if it does neither.
    pub(super) fn turn_of(&self, kind: Kind, name: &str, party: Party) -> Option<Option<Token>> {
        let Some(line) = self.lines.get(&(kind, name.to_owned())) else { return Some(None) };
        match line.holder {
            Some((holder, token)) if holder == party => Some(Some(token)),
            _ if line.waiting.contains(&party) => None,
            _ => Some(None),
        }
    }

    pub(super) fn holder(&self, kind: Kind, name: &str) -> Option<(Party, Token)> {
        self.lines.get(&(kind, name.to_owned()))?.holder
    }

    /// How many have arrived in the round of a barrier that is open.
    pub(super) fn arrived(&self, name: &str) -> usize {
        let parties = self.barriers.get(name).into_iter().flat_map(|round| round.parties.values());
        parties.filter(|(_, arrived)| *arrived).count()
    }

    /// How a round of a barrier ended; `None` while it hasn't.
    pub(super) fn end_of(&self, name: &str, number: u64) -> Option<Ended> {
        if self.barriers.get(name).is_some_and(|round| round.number == number) {
            return None;
        }
        Some(match self.broken.get(&number) {
            Some(node) => Ended::Broken(*node),
            None if number >= self.rounds || number < self.forgotten => Ended::Unknown,
            None => Ended::Well,
        })
    }
}

impl StateMachine for State {
    type Update = Command;
    type Reply = Reply;

    fn apply(&mut self, context: &Context, command: Command) -> Reply {
        let party = |call| Party { node: context.sender.0, life: context.life.0, call };
        let token = Token { view: context.view.0, place: context.seq.0 + 1 };
        match command {
            Command::Enter { kind, name, call, waits } => self.enter(kind, name, party(call), waits, token),
            Command::Leave { kind, name, call } => self.leave(kind, name, party(call), token),
            Command::Arrive { name, parties, on_loss } => {
                self.arrive(&name, parties, on_loss, context.sender.0)
            }
        }
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot::of(self)
    }

    fn restore(&mut self, from: &mut dyn Read) -> io::Result<()> {
        *self = Snapshot::read(from)?;
        Ok(())
    }

    fn view_changed(&mut self, view: &View) {
        self.members = view.data().map(|member| (member.node.0, member.incarnation.0)).collect();
        let (members, token) = (&self.members, Token { view: view.id.0, place: 0 });
        self.lines.retain(|_, line| {
            line.remove(|party| members.get(&party.node) != Some(&party.life), token);
            !line.is_empty()
        });
        self.look();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Incarnation, Member, Role, Seq, ViewId};

    struct World {
        state: State,
        view: u64,
        seq: u64,
    }

    impl World {
        fn new() -> Self {
            let mut world = Self { state: State::default(), view: 0, seq: 0 };
            world.view(&[(1, 1), (2, 2), (3, 3)]);
            world
        }

        fn view(&mut self, members: &[(u32, u64)]) {
            (self.view, self.seq) = (self.view + 1, 0);
            let address = "127.0.0.1:1".parse().unwrap();
            let member = |(node, life): &(u32, u64)| Member {
                node: NodeId(*node),
                incarnation: Incarnation(*life),
                address,
                role: Role::Data,
                domain: crate::Domain::default(),
            };
            let view = View::of(ViewId(self.view), members.iter().map(member).collect());
            self.state.view_changed(&view);
        }

        /// A node of that number and life does something.
        fn apply(&mut self, node: u32, command: Command) -> Reply {
            let (at, who) = ((ViewId(self.view), Seq(self.seq)), (NodeId(node), Incarnation(node.into())));
            self.seq += 1;
            self.state.apply(&Context::new(at, who, 0), command)
        }

        fn enter(&mut self, node: u32, waits: bool) -> Reply {
            self.apply(node, Command::Enter { kind: Kind::Lock, name: "it".into(), call: 7, waits })
        }

        fn leave(&mut self, node: u32) {
            self.apply(node, Command::Leave { kind: Kind::Lock, name: "it".into(), call: 7 });
        }

        fn holder(&self) -> Option<(u32, Token)> {
            self.state.holder(Kind::Lock, "it").map(|(party, token)| (party.node, token))
        }

        fn arrive(&mut self, node: u32, on_loss: OnLoss) -> Reply {
            self.apply(node, Command::Arrive { name: "it".into(), parties: vec![3, 1, 2], on_loss })
        }
    }

    fn token(view: u64, place: u64) -> Token {
        Token { view, place }
    }

    #[test]
    fn turns_are_in_order_and_tokens_grow() {
        let mut world = World::new();
        assert!(matches!(world.enter(2, true), Reply::Granted(..)));
        assert!(matches!(world.enter(3, true), Reply::Queued(..)));
        assert!(matches!(world.enter(1, true), Reply::Queued(..)));
        assert_eq!((world.enter(1, false), world.holder()), (Reply::Taken, Some((2, token(1, 1)))));
        world.leave(2);
        assert_eq!(world.holder(), Some((3, token(1, 5))));
        // Who is lost has no turn, and the next has it by the view.
        world.view(&[(1, 1), (2, 2)]);
        assert_eq!(world.holder(), Some((1, token(2, 0))));
        world.leave(1);
        assert_eq!((world.holder(), world.state.lines.len()), (None, 0), "nothing is left of it");
        assert!(matches!(world.enter(2, false), Reply::Granted(_, it) if it == token(2, 2)));
        // It came again, and doesn't remember.
        world.view(&[(1, 1), (2, 9)]);
        assert_eq!(world.holder(), None);
    }

    #[test]
    fn whoever_leaves_the_line_is_passed_over() {
        let mut world = World::new();
        world.enter(1, true);
        world.enter(2, true);
        world.enter(3, true);
        world.leave(2);
        world.leave(1);
        assert_eq!(world.holder().map(|(node, _)| node), Some(3));
    }

    #[test]
    fn a_barrier_waits_for_all() {
        let mut world = World::new();
        for round in 0..100 {
            assert_eq!(world.arrive(1, OnLoss::Break), Reply::Arrived(round));
            assert_eq!(world.arrive(1, OnLoss::Break), Reply::Arrived(round), "twice is as good as once");
            assert_eq!(world.arrive(2, OnLoss::GoOn), Reply::Refused(Refusal::Differs));
            assert_eq!(world.arrive(2, OnLoss::Break), Reply::Arrived(round));
            assert_eq!(world.state.end_of("it", round), None);
            assert_eq!(world.arrive(3, OnLoss::Break), Reply::Arrived(round));
            assert_eq!(world.state.end_of("it", round), Some(Ended::Well));
        }
        assert_eq!(world.arrive(4, OnLoss::Break), Reply::Refused(Refusal::NoParty));
        assert!(world.state.barriers.is_empty());
    }

    #[test]
    fn a_barrier_does_with_losses_as_it_was_told() {
        let mut world = World::new();
        assert_eq!(world.arrive(1, OnLoss::Break), Reply::Arrived(0));
        world.view(&[(1, 1), (2, 2), (4, 4)]);
        assert_eq!(world.state.end_of("it", 0), Some(Ended::Broken(3)));
        // Who wasn't there when the round began is waited for.
        assert_eq!(world.arrive(1, OnLoss::GoOn), Reply::Arrived(1));
        world.view(&[(1, 1), (2, 2), (3, 3)]);
        assert_eq!(world.arrive(3, OnLoss::GoOn), Reply::Arrived(1));
        // One that had arrived is lost, and one that hadn't.
        world.view(&[(1, 1), (2, 2)]);
        assert_eq!(world.state.end_of("it", 1), None);
        world.view(&[(1, 1)]);
        assert_eq!(world.state.end_of("it", 1), Some(Ended::Well));
        assert!(world.state.barriers.is_empty(), "nothing is kept of a barrier at which nobody waits");
        assert_eq!(world.state.end_of("it", 2), Some(Ended::Unknown), "this group has had no such round");
    }

    #[test]
    fn what_is_forgotten_did_not_end_well() {
        let mut world = World::new();
        for number in 0..=BROKEN as u64 {
            assert_eq!(world.arrive(1, OnLoss::Break), Reply::Arrived(number));
            let life = number + 10;
            world.view(&[(1, 1), (2, 2), (3, life)]);
        }
        assert_eq!(world.state.end_of("it", 0), Some(Ended::Unknown));
        assert_eq!(world.state.end_of("it", 1), Some(Ended::Broken(3)));
    }

    #[test]
    fn the_state_comes_back() {
        let mut world = World::new();
        world.enter(1, true);
        world.enter(2, true);
        world.arrive(1, OnLoss::GoOn);
        let mut other = State::default();
        other.restore(&mut world.state.snapshot()).unwrap();
        assert_eq!((&other, other.digest().unwrap()), (&world.state, world.state.digest().unwrap()));
    }
}
