//! raft-rs 0.7 with its log in memory.
//!
//! Settings: appends of a turn go in one message (`batch_append`), which may be a megabyte, and as many of them may be on the
//! way as the window has entries; the first member campaigns at once.

use bytes::Bytes;
use prost::Message as _;
use raft::eraftpb::{Entry, EntryType, Message};
use raft::storage::MemStorage;
use raft::{Config, RawNode, StateRole};

use super::{Apply, ELECTION_TICKS, Post, Rival, TRIM_EVERY};
use crate::failure::Failure;

pub(super) struct RaftLog {
    node: RawNode<MemStorage>,
    applied: u64,
    compacted: u64,
}

#[allow(clippy::needless_pass_by_value)] // as map_err gives it
fn refused(cause: raft::Error) -> Failure {
    Failure::bug(format!("raft-rs refuses: {cause}"))
}

impl RaftLog {
    pub(super) fn new(me: u64, members: u64) -> Result<Self, Failure> {
        let config = Config {
            id: me,
            election_tick: usize::from(ELECTION_TICKS),
            heartbeat_tick: usize::from(ELECTION_TICKS / 10),
            max_size_per_msg: 1 << 20,
            max_inflight_msgs: 1024,
            batch_append: true,
            ..Config::default()
        };
        let storage = MemStorage::new_with_conf_state(((1..=members).collect::<Vec<_>>(), vec![]));
        // Who reads the report needs nothing that raft-rs logs.
        let log = slog::Logger::root(slog::Discard, slog::o!());
        let mut node = RawNode::new(&config, storage, &log).map_err(refused)?;
        if me == 1 {
            node.campaign().map_err(refused)?;
        }
        Ok(Self { node, applied: 0, compacted: 0 })
    }

    fn apply(&mut self, entries: &[Entry], apply: &mut Apply<'_>) -> Result<(), Failure> {
        for entry in entries {
            self.applied = entry.index;
            // A new leader begins with an empty entry, which is its own.
            if entry.entry_type == EntryType::EntryNormal as i32 && !entry.data.is_empty() {
                apply(&entry.data);
            }
        }
        Ok(())
    }

    /// Removes what all have: who lacks an entry that was removed would need a snapshot.
    fn trim(&mut self) -> Result<(), Failure> {
        if self.applied - self.compacted < TRIM_EVERY {
            return Ok(());
        }
        self.compacted = self.applied;
        let least = if self.leads() {
            self.node.raft.prs().iter().map(|(_, progress)| progress.matched).min().unwrap_or(0)
        } else {
            self.applied
        };
        self.node.store().wl().compact(least.min(self.applied)).map_err(refused)
    }
}

fn post_all(messages: Vec<Message>, post: &mut Post<'_>) -> Result<(), Failure> {
    for message in messages {
        post(message.to, &mut |out| message.encode(out).map_err(std::io::Error::other))
            .map_err(|cause| Failure::socket("send a message of raft-rs", cause))?;
    }
    Ok(())
}

impl Rival for RaftLog {
    fn tick(&mut self) {
        self.node.tick();
    }

    fn on_message(&mut self, message: &[u8]) -> Result<(), Failure> {
        let message = Message::decode(message)
            .map_err(|cause| Failure::bug(format!("a message that is none of raft-rs: {cause}")))?;
        self.node.step(message).map_err(refused)
    }

    fn leads(&self) -> bool {
        // An entry of its own term is committed: from then on it is surely the leader.
        self.node.raft.state == StateRole::Leader && self.node.raft.commit_to_current_term()
    }

    fn propose(&mut self, payload: Bytes) -> Result<(), Failure> {
        self.node.propose(Vec::new(), payload.into()).map_err(refused)
    }

    fn poll(&mut self, post: &mut Post<'_>, apply: &mut Apply<'_>) -> Result<bool, Failure> {
        if !self.node.has_ready() {
            return Ok(false);
        }
        let mut ready = self.node.ready();
        post_all(ready.take_messages(), post)?;
        self.apply(&ready.take_committed_entries(), apply)?;
        {
            let mut store = self.node.store().wl();
            store.append(ready.entries()).map_err(refused)?;
            if let Some(state) = ready.hs() {
                store.set_hardstate(state.clone());
            }
        }
        post_all(ready.take_persisted_messages(), post)?;
        let mut light = self.node.advance(ready);
        if let Some(commit) = light.commit_index() {
            self.node.store().wl().mut_hard_state().commit = commit;
        }
        post_all(light.take_messages(), post)?;
        self.apply(&light.take_committed_entries(), apply)?;
        self.node.advance_apply();
        self.trim()?;
        Ok(true)
    }
}
