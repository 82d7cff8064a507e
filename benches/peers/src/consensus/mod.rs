//! Consensus libraries, in three processes each over a minimal TCP transport: [`omnipaxos`] and [`raft`].
//!
//! A library is a [`Rival`]: a replicated log that is driven from outside, without clock, sockets or threads. [`transport`]
//! carries its messages, [`member`] drives it in one process, and [`run`] starts the three processes. The client is in the
//! leader's process, and all is counted there: no message of a client travels, which is the best that can be had of a
//! system with a leader.

mod transport;
mod omnipaxos;
mod raft;
pub(crate) mod member;
pub(crate) mod run;

use std::io;

use bytes::Bytes;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::failure::Failure;

/// The libraries.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize, ValueEnum)]
pub(crate) enum Library {
    Omnipaxos,
    Raft,
}

/// A replicated log. Members are numbered from 1, as the libraries want it.
trait Rival {
    /// Time passes: a hundredth of a second.
    fn tick(&mut self);

    /// A message of another member came.
    fn on_message(&mut self, message: &[u8]) -> Result<(), Failure>;

    /// Whether this member leads, and can take proposals.
    fn leads(&self) -> bool;

    /// Proposes an entry. Only a leader is asked to.
    fn propose(&mut self, payload: Bytes) -> Result<(), Failure>;

    /// Does what is to be done, gives `post` every message that is to go out, with the member that it is for, and `apply` every
    /// entry that is committed, in order. Returns whether there was anything.
    fn poll(&mut self, post: &mut Post<'_>, apply: &mut Apply<'_>) -> Result<bool, Failure>;
}

/// Takes a message for a member: its bytes are appended by the closure.
type Post<'a> = dyn FnMut(u64, &mut dyn FnMut(&mut Vec<u8>) -> io::Result<()>) -> io::Result<()> + 'a;

/// Takes a committed entry.
type Apply<'a> = dyn FnMut(&[u8]) + 'a;

/// As many ticks without a leader's heartbeat make an election: half a second, far longer than a busy machine stops a process,
/// because an election in the midst of a measurement measures nothing.
const ELECTION_TICKS: u8 = 50;

/// As many entries are applied between two removals of the log's beginning: what the log frees is used
/// again while it is in the cache, where a log that grows would cost page faults.
const TRIM_EVERY: u64 = 1 << 10;

fn rival(library: Library, me: u64, members: u64) -> Result<Box<dyn Rival>, Failure> {
    Ok(match library {
        Library::Omnipaxos => Box::new(omnipaxos::OmniPaxosLog::new(me, members)?),
        Library::Raft => Box::new(raft::RaftLog::new(me, members)?),
    })
}
