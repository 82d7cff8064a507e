//! [`Meta`]: what a data directory says of its node, in one small file that is replaced as a whole.
//!
//! ```text
//! 0   magic "CONSMETA"       24  incarnation            48  bytes of the cluster's name, n
//! 8   version (1)            32  last view              52  bytes of the view, m
//! 12  node                   40  mark                   56  the name, then the view …
//! 16  zeros                  41  zeros                  56 + n + m   sum of all before
//! ```

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
    /// A part of its log was damaged and is gone: it lacks something, and is no vote for what the group had (P3).
    Damaged = 2,
}

/// See the [module](self).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Meta {
    /// The cluster.
    pub cluster: String,
    /// The node.
    pub node: NodeId,
    /// Which of its lives wrote last.
    pub incarnation: u64,
    /// The last view that it installed; 0 before the first.
    pub view: ViewId,
    /// That view, as control writes it.
    pub members: Vec<u8>,
    /// How it ended.
    pub mark: Mark,
}

impl Meta {
    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; HEADER];
        bytes[0..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&1_u32.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.node.0.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.incarnation.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.view.0.to_le_bytes());
        bytes[40] = self.mark as u8;
        // Both are far below the most: the name is a user's, the view has 64 members.
        bytes[48..52].copy_from_slice(&(self.cluster.len() as u32).to_le_bytes());
        bytes[52..56].copy_from_slice(&(self.members.len() as u32).to_le_bytes());
        bytes.extend_from_slice(self.cluster.as_bytes());
        bytes.extend_from_slice(&self.members);
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
        let sound = head[0..8] == MAGIC && word(8) == 1 && sum(0, bytes) == u32::from_le_bytes(*of_these);
        let (name, view) = (word(48) as usize, word(52) as usize);
        if !sound || rest.len() != name.checked_add(view)? {
            return None;
        }
        let mark = match head[40] {
            0 => Mark::Open,
            1 => Mark::Left,
            2 => Mark::Damaged,
            _ => return None,
        };
        Some(Self {
            cluster: String::from_utf8(rest[..name].to_vec()).ok()?,
            node: NodeId(word(12)),
            incarnation: number(24),
            view: ViewId(number(32)),
            members: rest[name..].to_vec(),
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
