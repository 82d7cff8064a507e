//! [`Coordinator`]: a member's hand on locks, elections and barriers.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::state::{Broken, Command, Ended, Kind, OnLoss, Party, Refusal, Reply, State, Token};
use crate::object::{QueryError, Replica, ReplicaError, UpdateError};
use crate::{CloseError, NodeBuilder, NodeId, View};

/// A lock, an election or a barrier didn't come to its end.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CoordinationError {
    /// The request wasn't answered. If it was granted all the same, the loss of this node takes the grant back.
    #[error(transparent)]
    Update(#[from] UpdateError),
    /// The replica stopped while this waited.
    #[error(transparent)]
    Query(#[from] QueryError),
    /// The group went on without this node while it waited, so its place in the line is gone.
    #[error("the group went on without this node, which has lost its place; ask again")]
    Lost,
    /// The barrier broke.
    #[error(transparent)]
    Broken(#[from] Broken),
}

/// A leader, as an election knows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leader {
    /// Who.
    pub node: NodeId,
    /// Greater than those of all leaders before.
    pub token: Token,
}

/// A member's hand on the group's locks, elections and barriers. Clones are the same hand; any thread may use one. The node is stopped
/// with the last.
#[derive(Clone)]
pub struct Coordinator {
    common: Arc<Common>,
}

struct Common {
    replica: Replica<State>,
    me: NodeId,
    calls: AtomicU64,
}

/// A lock that is held, or an office. Dropping it gives it to the next, without waiting for that.
#[must_use = "dropping it gives it back"]
pub struct Guard {
    coordinator: Coordinator,
    kind: Kind,
    name: String,
    party: Party,
    token: Token,
}

impl Coordinator {
    /// Starts a node, and coordination on it. Returns before the others are there; whatever is asked waits for them.
    ///
    /// # Errors
    /// The node can't be started.
    pub fn start(node: NodeBuilder) -> Result<Self, ReplicaError> {
        let me = node.config().id;
        let replica = Replica::start(node, State::default())?;
        Ok(Self { common: Arc::new(Common { replica, me, calls: AtomicU64::new(0) }) })
    }

    /// Takes a lock: waits until all who asked before have given it back or are lost.
    ///
    /// Holding it is a promise of the others only while this node is in the group; let the resource look at the [token](Guard::token).
    ///
    /// # Errors
    /// The replica stopped, or this node was left out, before it had the lock.
    pub fn lock(&self, name: &str) -> Result<Guard, CoordinationError> {
        self.enter(Kind::Lock, name, None)?.ok_or(CoordinationError::Lost)
    }

    /// As [`Coordinator::lock`], for at most `within` after the request was answered: `None` if others have it until then.
    ///
    /// # Errors
    /// As there.
    pub fn lock_timeout(&self, name: &str, within: Duration) -> Result<Option<Guard>, CoordinationError> {
        self.enter(Kind::Lock, name, Some(within))
    }

    /// Takes a lock if nobody has it and nobody waits for it.
    ///
    /// # Errors
    /// As [`Coordinator::lock`].
    pub fn try_lock(&self, name: &str) -> Result<Option<Guard>, CoordinationError> {
        let call = self.call();
        let enter = Command::Enter { kind: Kind::Lock, name: name.to_owned(), call, waits: false };
        Ok(match self.common.replica.update(&enter)? {
            Reply::Granted(party, token) => Some(self.guard(Kind::Lock, name, party, token)),
            _ => None,
        })
    }

    /// Who has a lock, as far as this member knows.
    ///
    /// # Errors
    /// The replica has stopped.
    pub fn holder(&self, name: &str) -> Result<Option<Leader>, CoordinationError> {
        self.of(Kind::Lock, name)
    }

    /// Stands for an office, and waits until it is elected: the first who stands is, and then, when that one is lost or
    /// [resigns](Guard), the next. It leads while it keeps the guard and its node is in the group.
    ///
    /// # Errors
    /// As [`Coordinator::lock`].
    pub fn campaign(&self, office: &str) -> Result<Guard, CoordinationError> {
        self.enter(Kind::Election, office, None)?.ok_or(CoordinationError::Lost)
    }

    /// Who leads, as far as this member knows.
    ///
    /// # Errors
    /// The replica has stopped.
    pub fn leader(&self, office: &str) -> Result<Option<Leader>, CoordinationError> {
        self.of(Kind::Election, office)
    }

    /// Waits until another leads than `known`, and says who; `None`: until anybody does.
    ///
    /// # Errors
    /// The replica stopped.
    pub fn next_leader(&self, office: &str, known: Option<Leader>) -> Result<Leader, CoordinationError> {
        let other = |state: &State| leader(state, Kind::Election, office).filter(|it| Some(*it) != known);
        Ok(self.common.replica.wait_for(other)?)
    }

    /// Waits at a barrier until all of `parties` are there, this node among them; all must name the same, and the same policy. It can be used
    /// again at once, for the next round.
    ///
    /// A party is lost when it was in the group, since somebody came to the barrier, and isn't any more. One that was never there is waited for.
    ///
    /// # Errors
    /// The barrier broke, or the replica stopped.
    pub fn barrier(&self, name: &str, parties: &[NodeId], on_loss: OnLoss) -> Result<(), CoordinationError> {
        let parties = parties.iter().map(|node| node.0).collect();
        let arrive = Command::Arrive { name: name.to_owned(), parties, on_loss };
        let round = match self.common.replica.update(&arrive)? {
            Reply::Arrived(round) => round,
            Reply::Refused(Refusal::Differs) => return Err(Broken::Differs.into()),
            _ => return Err(Broken::NoParty.into()),
        };
        match self.common.replica.wait_for(|state| state.end_of(name, round))? {
            Ended::Well => Ok(()),
            Ended::Broken(node) if NodeId(node) != self.common.me => Err(Broken::Lost(NodeId(node)).into()),
            Ended::Broken(_) | Ended::Unknown => Err(CoordinationError::Lost),
        }
    }

    /// The view that it is of, once there is one.
    pub fn view(&self) -> Option<View> {
        self.common.replica.view()
    }

    /// Leaves the group in order; what this node holds goes to the next. Blocks for as long, `within` at most.
    ///
    /// Guards and clones of this hand keep the node: drop them first, or it stops without order when they are dropped.
    ///
    /// # Errors
    /// It wasn't done in time, or had stopped before, or is still in use.
    pub fn close(self, within: Duration) -> Result<(), CloseError> {
        match Arc::try_unwrap(self.common) {
            Ok(common) => common.replica.close(within),
            Err(_) => Err(CloseError::InUse),
        }
    }

    /// Stops the node at once, as a crash would: the others find it lost, and what it holds goes to the next.
    pub fn stop(&self) {
        self.common.replica.stop();
    }

    /// How many parties wait at a barrier, as far as this member knows.
    ///
    /// # Errors
    /// The replica has stopped.
    pub fn waits_at(&self, barrier: &str) -> Result<usize, CoordinationError> {
        Ok(self.common.replica.query_local(|state| state.arrived(barrier))?)
    }

    fn call(&self) -> u64 {
        self.common.calls.fetch_add(1, Ordering::Relaxed)
    }

    fn of(&self, kind: Kind, name: &str) -> Result<Option<Leader>, CoordinationError> {
        Ok(self.common.replica.query_local(|state| leader(state, kind, name))?)
    }

    fn guard(&self, kind: Kind, name: &str, party: Party, token: Token) -> Guard {
        Guard { coordinator: self.clone(), kind, name: name.to_owned(), party, token }
    }

    /// Gets in line and waits for its turn.
    fn enter(
        &self,
        kind: Kind,
        name: &str,
        within: Option<Duration>,
    ) -> Result<Option<Guard>, CoordinationError> {
        let call = self.call();
        let replica = &self.common.replica;
        let enter = Command::Enter { kind, name: name.to_owned(), call, waits: true };
        let party = match replica.update(&enter)? {
            Reply::Granted(party, token) => return Ok(Some(self.guard(kind, name, party, token))),
            Reply::Queued(party) => party,
            _ => return Ok(None),
        };
        let turn = |state: &State| state.turn_of(kind, name, party);
        let turn = match within {
            None => Some(replica.wait_for(turn)?),
            Some(within) => replica.wait_for_timeout(within, turn)?,
        };
        match turn {
            Some(Some(token)) => Ok(Some(self.guard(kind, name, party, token))),
            Some(None) => Err(CoordinationError::Lost),
            None => {
                // It may have its turn by now: then it gives that back.
                replica.update(&Command::Leave { kind, name: name.to_owned(), call })?;
                Ok(None)
            }
        }
    }
}

fn leader(state: &State, kind: Kind, name: &str) -> Option<Leader> {
    state.holder(kind, name).map(|(party, token)| Leader { node: NodeId(party.node), token })
}

impl fmt::Debug for Coordinator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Coordinator(node {})", self.common.me)
    }
}

impl Guard {
    /// What to show to the resource with every request: it grows from holder to holder.
    pub fn token(&self) -> Token {
        self.token
    }

    /// Whether it is held, as far as this member knows. `false` is certain; `true` may be over by the time that it is read.
    pub fn is_held(&self) -> bool {
        let Self { coordinator, kind, name, party, token } = self;
        let held = coordinator
            .common
            .replica
            .query_local(|state| state.holder(*kind, name) == Some((*party, *token)));
        held.unwrap_or(false)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // If it can't be sent, this node is no member any more, and the view without it has given it back.
        let leave =
            Command::Leave { kind: self.kind, name: std::mem::take(&mut self.name), call: self.party.call };
        drop(self.coordinator.common.replica.submit(&leave));
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Guard({} of {:?})", self.token, self.name)
    }
}
