//! [`Meta`]: what a data directory says of its node, in one small file that is replaced as a whole.
//!
//! ```text
//! 0   magic "CONSMETA"       32  last view                       52  bytes of that view, m
//! 8   version (1)            40  mark                            56  the name, the view, the next ones,
//! 12  node                   41  zeros                               of each damaged log its shard (4 bytes) and
//! 16  bytes of the next views, p   48  bytes of the name, n          the last view then (8 bytes) …
//! 20  damaged logs, q         24  the view that it follows       …   sum of all before
//! ```

use std::collections::BTreeMap;

use super::disk::{Disk, DiskError, DiskTrouble};
use super::format::sum;
use crate::names::{NodeId, ViewId};

/// The file's name.
pub const NAME: &str = "meta";

const MAGIC: [u8; 8] = *b"CONSMETA";
const HEADER: usize = 56;
/// The largest file that is believed in.
const MOST: usize = 1 << 20;

/// How the node that wrote a data directory ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
#[non_exhaustive]
pub enum Mark {
    /// It runs, or ended without a word: nothing is known of its log's end.
    #[default]
    Open = 0,
    /// It left the group in order: its log is no vote for what the group had (V8).
    Left = 1,
}

/// See the [module](self).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Meta {
    /// The cluster.
    pub cluster: String,
    /// The node.
    pub node: NodeId,
    /// The last view that it installed; 0 before the first.
    pub view: ViewId,
    /// The one that it follows.
    pub behind: ViewId,
    /// That view, as control writes it.
    pub members: Vec<u8>,
    /// The views that it has agreed to have after that one, as control writes them; nothing if there are none.
    pub next: Vec<u8>,
    /// The shards of which a part of the log was damaged and is gone: it lacks something that the group had (P3). With the last view
    /// that its node had installed when that was found.
    pub damaged: BTreeMap<u32, ViewId>,
    /// How it ended.
    pub mark: Mark,
}

impl Meta {
    /// A part of a shard's log is gone.
    pub fn set_damaged(&mut self, shard: u32) {
        self.damaged.insert(shard, self.view);
    }

    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; HEADER];
        // All of them are far below the most: the name is a user's, a view has 64 members.
        let len = |len: usize| (len as u32).to_le_bytes();
        bytes[0..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&1_u32.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.node.0.to_le_bytes());
        bytes[16..20].copy_from_slice(&len(self.next.len()));
        bytes[20..24].copy_from_slice(&len(self.damaged.len()));
        bytes[24..32].copy_from_slice(&self.behind.0.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.view.0.to_le_bytes());
        bytes[40] = self.mark as u8;
        bytes[48..52].copy_from_slice(&len(self.cluster.len()));
        bytes[52..56].copy_from_slice(&len(self.members.len()));
        bytes.extend_from_slice(self.cluster.as_bytes());
        bytes.extend_from_slice(&self.members);
        bytes.extend_from_slice(&self.next);
        for (shard, view) in &self.damaged {
            bytes.extend_from_slice(&shard.to_le_bytes());
            bytes.extend_from_slice(&view.0.to_le_bytes());
        }
        let all = sum(0, &bytes);
        bytes.extend_from_slice(&all.to_le_bytes());
        bytes
    }

    /// From bytes that may be anything.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (bytes, of_these) = bytes.split_last_chunk::<4>()?;
        let (head, rest) = bytes.split_first_chunk::<HEADER>()?;
        let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let number = |at: usize| u64::from(word(at + 4)) << 32 | u64::from(word(at));
        if head[0..8] != MAGIC || word(8) != 1 || sum(0, bytes) != u32::from_le_bytes(*of_these) {
            return None;
        }
        let mark = match head[40] {
            0 => Mark::Open,
            1 => Mark::Left,
            _ => return None,
        };
        let (name, rest) = rest.split_at_checked(word(48) as usize)?;
        let (members, rest) = rest.split_at_checked(word(52) as usize)?;
        let (next, rest) = rest.split_at_checked(word(16) as usize)?;
        let (damaged, rest) = rest.as_chunks::<12>();
        let parts = damaged.iter().map(|[a, b, c, d, view @ ..]| {
            (u32::from_le_bytes([*a, *b, *c, *d]), ViewId(u64::from_le_bytes(*view)))
        });
        let damaged: BTreeMap<_, _> = parts.collect();
        if !rest.is_empty() || damaged.len() != word(20) as usize {
            return None;
        }
        Some(Self {
            cluster: String::from_utf8(name.to_vec()).ok()?,
            node: NodeId(word(12)),
            view: ViewId(number(32)),
            behind: ViewId(number(24)),
            members: members.to_vec(),
            next: next.to_vec(),
            damaged,
            mark,
        })
    }

    /// Reads a directory's; `None` if it has none.
    ///
    /// # Errors
    /// It can't be read, or is not as it was written.
    pub fn read(disk: &mut dyn Disk) -> Result<Option<Self>, DiskError> {
        let Some((_, bytes)) = disk.list()?.into_iter().find(|(name, _)| name == NAME) else {
            return Ok(None);
        };
        let damaged = || {
            let what = "the file meta is damaged: nobody knows whose data this is, and how far it was";
            DiskError::new(DiskTrouble::Failed, what)
        };
        let bytes = usize::try_from(bytes).ok().filter(|bytes| *bytes <= MOST).ok_or_else(damaged)?;
        let mut content = vec![0; bytes];
        let got = disk.read(NAME, 0, &mut content)?;
        content.truncate(got);
        Self::parse(&content).map(Some).ok_or_else(damaged)
    }

    /// Puts it into a directory, in place of the one that is there.
    ///
    /// # Errors
    /// It can't be written. The old one is there still.
    pub fn write(&self, disk: &mut dyn Disk) -> Result<(), DiskError> {
        disk.replace(NAME, &self.encode())
    }
}
