//! What a small world is like: who is in it, and what may go wrong.

use std::fmt;

use consort_control::change::{Candidate, Mutant, Trimming, Wishes};
use consort_control::view::{Incarnation, Member, Role, View};
use consort_dataplane::names::{NodeId, ViewId};

/// How often each kind of trouble may happen in one run.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Bounds {
    /// Members that crash.
    pub crashes: u8,
    /// Suspicions of members that live. Those of the dead are free.
    pub suspicions: u8,
    /// Ends of a member's patience.
    pub patience: u8,
    /// Messages that get lost.
    pub losses: u8,
    /// Times that a member hears that another can be reached again.
    pub reachable: u8,
    /// Reasons for a change that are nobody's failure.
    pub reasons: u8,
}

impl fmt::Display for Bounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { crashes, suspicions, patience, losses, reachable, reasons } = *self;
        let all = [
            (reasons, "reasons"),
            (crashes, "crashes"),
            (suspicions, "suspicions"),
            (patience, "patience"),
            (losses, "losses"),
            (reachable, "reachable"),
        ];
        let some = all.iter().filter(|(bound, _)| *bound > 0).map(|(bound, of)| format!("{of} {bound}"));
        f.write_str(&some.collect::<Vec<_>>().join(" "))
    }
}

/// A world to look at.
#[derive(Clone, Debug)]
pub struct World {
    /// What it is for.
    pub name: &'static str,
    /// The members, in rank order; member `i` is node `i + 1`.
    pub roles: Vec<Role>,
    /// How trims are found.
    pub trimming: Trimming,
    /// By rank: how much that member has sent.
    pub sent: Vec<u64>,
    /// What may go wrong.
    pub bounds: Bounds,
    /// Members between whom there is no data link.
    pub severed: Vec<(usize, usize)>,
    /// A joiner that takes itself for linked to all, and who of the members is linked to it.
    pub joiner: Option<Vec<usize>>,
    /// Who wants to leave.
    pub leaving: Vec<usize>,
    /// Who has not yet freed the memory that the next view needs.
    pub busy: Vec<usize>,
    /// The rule that all members break.
    pub mutant: Option<Mutant>,
}

impl World {
    /// Three members with data, of which the first has sent something, and no trouble.
    pub fn new(name: &'static str, trimming: Trimming) -> Self {
        Self {
            name,
            roles: vec![Role::Data; 3],
            trimming,
            sent: vec![1],
            bounds: Bounds::default(),
            severed: Vec::new(),
            joiner: None,
            leaving: Vec::new(),
            busy: Vec::new(),
            mutant: None,
        }
    }

    /// The same with other bounds.
    #[must_use]
    pub fn within(self, bounds: Bounds) -> Self {
        Self { bounds, ..self }
    }

    /// The same, but all members break a rule.
    #[must_use]
    pub fn breaking(self, mutant: Mutant) -> Self {
        Self { mutant: Some(mutant), ..self }
    }

    pub(super) fn member(&self, at: usize) -> Member {
        let role = self.roles.get(at).copied().unwrap_or(Role::Data);
        let address = ([10, 0, 0, 1], 7101).into();
        Member { node: node(at), incarnation: Incarnation(at as u64 + 1), address, role }
    }

    pub(super) fn view(&self) -> View {
        View { id: ViewId(1), members: (0..self.roles.len()).map(|at| self.member(at)).collect() }
    }

    pub(super) fn wishes(&self) -> Wishes {
        let members = (0..self.roles.len()).map(|at| self.member(at).incarnation);
        let candidate =
            Candidate { member: self.member(self.roles.len()), linked: members.collect(), source: None };
        let joining = self.joiner.iter().map(|_| candidate.clone()).collect();
        Wishes { joining, leaving: self.leaving.iter().map(|at| node(*at)).collect() }
    }

    pub(super) fn is_data(&self, at: usize) -> bool {
        self.roles.get(at) == Some(&Role::Data)
    }

    pub(super) fn has_link(&self, one: usize, other: usize) -> bool {
        !self.severed.contains(&(one, other)) && !self.severed.contains(&(other, one))
    }

    /// The rings, by rank, as the member in place `at` has them when nothing has arrived yet.
    pub(super) fn begun(&self, at: usize) -> Vec<u64> {
        let data = (0..self.roles.len()).filter(|at| self.is_data(*at));
        let sent = |rank: usize| self.sent.get(rank).copied().unwrap_or(0);
        data.enumerate().map(|(rank, owner)| if owner == at { sent(rank) } else { 0 }).collect()
    }

    /// How much the member in place `at` may have received of the ring of a rank.
    pub(super) fn most(&self, at: usize, rank: usize) -> u64 {
        let owner = self.owner(rank);
        let linked = owner == at || self.is_data(at) && self.has_link(at, owner);
        if linked { self.sent.get(rank).copied().unwrap_or(0) } else { 0 }
    }

    /// The place of the member that owns the ring of a rank.
    fn owner(&self, rank: usize) -> usize {
        (0..self.roles.len()).filter(|at| self.is_data(*at)).nth(rank).unwrap_or(0)
    }
}

pub(super) fn node(at: usize) -> NodeId {
    NodeId(at as u32 + 1)
}

pub(super) fn place(node: NodeId) -> usize {
    node.0 as usize - 1
}
