//! OmniPaxos 0.2 with its log in memory.
//!
//! Settings: the first member has the priority to lead; entries are not held back to form batches (`batch_size` 1), because
//! the library puts all entries of a turn in one message to each follower anyway.

use bytes::Bytes;
use omnipaxos::messages::Message;
use omnipaxos::messages::sequence_paxos::{PaxosMessage, PaxosMsg};
use omnipaxos::storage::{Entry, NoSnapshot};
use omnipaxos::util::LogEntry;
use omnipaxos::{ClusterConfig, OmniPaxos, OmniPaxosConfig, ServerConfig};
use omnipaxos_storage::memory_storage::MemoryStorage;
use serde::{Deserialize, Serialize};

use super::{Apply, ELECTION_TICKS, Post, Rival, TRIM_EVERY};
use crate::failure::Failure;

/// Counted bytes: the library clones an entry for its log and for each follower, which copies nothing.
#[derive(Clone, Debug, Deserialize, Serialize)]
struct Payload(Bytes);

impl Entry for Payload {
    type Snapshot = NoSnapshot;
}

pub(super) struct OmniPaxosLog {
    inner: OmniPaxos<Payload, MemoryStorage<Payload>>,
    me: u64,
    /// Entries taken out of the log, applied or about to be.
    read: usize,
    trimmed: usize,
    /// Read before a trim could remove them.
    early: Vec<LogEntry<Payload>>,
    outgoing: Vec<Message<Payload>>,
}

impl OmniPaxosLog {
    pub(super) fn new(me: u64, members: u64) -> Result<Self, Failure> {
        let config = OmniPaxosConfig {
            cluster_config: ClusterConfig {
                configuration_id: 1,
                nodes: (1..=members).collect(),
                flexible_quorum: None,
            },
            server_config: ServerConfig {
                pid: me,
                election_tick_timeout: u64::from(ELECTION_TICKS),
                resend_message_tick_timeout: u64::from(ELECTION_TICKS),
                leader_priority: u32::from(me == 1),
                ..ServerConfig::default()
            },
        };
        let inner = config.build(MemoryStorage::default());
        let inner =
            inner.map_err(|cause| Failure::bug(format!("OmniPaxos takes no such setting: {cause}")))?;
        Ok(Self { inner, me, read: 0, trimmed: 0, early: Vec::new(), outgoing: Vec::new() })
    }

    /// Takes what is decided out of the log.
    fn decided(&mut self) -> Vec<LogEntry<Payload>> {
        if self.inner.get_decided_idx() <= self.read {
            return Vec::new();
        }
        let entries = self.inner.read_decided_suffix(self.read).unwrap_or_default();
        self.read += entries.len();
        entries
    }
}

impl Rival for OmniPaxosLog {
    fn tick(&mut self) {
        self.inner.tick();
    }

    fn on_message(&mut self, message: &[u8]) -> Result<(), Failure> {
        let message: Message<Payload> = postcard::from_bytes(message)
            .map_err(|cause| Failure::bug(format!("a message that is none of OmniPaxos: {cause}")))?;
        if let Message::SequencePaxos(PaxosMessage { msg: PaxosMsg::Compaction(_), .. }) = &message {
            // The leader knows only that this member has the entries, not that it has read them.
            let entries = self.decided();
            self.early.extend(entries);
        }
        self.inner.handle_incoming(message);
        Ok(())
    }

    fn leads(&self) -> bool {
        self.inner.get_current_leader() == Some((self.me, true))
    }

    fn propose(&mut self, payload: Bytes) -> Result<(), Failure> {
        self.inner
            .append(Payload(payload))
            .map_err(|cause| Failure::bug(format!("OmniPaxos refuses an entry: {cause:?}")))
    }

    fn poll(&mut self, post: &mut Post<'_>, apply: &mut Apply<'_>) -> Result<bool, Failure> {
        let mut any = false;
        let mut entries = std::mem::take(&mut self.early);
        entries.extend(self.decided());
        for entry in &entries {
            match entry {
                LogEntry::Decided(Payload(payload)) => apply(payload),
                other => return Err(Failure::bug(format!("OmniPaxos decided on {other:?}"))),
            }
            any = true;
        }
        if self.leads() && (self.read - self.trimmed) as u64 >= TRIM_EVERY {
            // What not all have yet stays; the next time will do.
            let _ = self.inner.trim(None);
            self.trimmed = self.read;
        }
        self.inner.take_outgoing_messages(&mut self.outgoing);
        for message in self.outgoing.drain(..) {
            any = true;
            post(message.get_receiver(), &mut |out| {
                let start = std::mem::take(out);
                *out = postcard::to_extend(&message, start).map_err(std::io::Error::other)?;
                Ok(())
            })
            .map_err(|cause| Failure::socket("send a message of OmniPaxos", cause))?;
        }
        Ok(any)
    }
}
