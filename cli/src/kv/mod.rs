//! `consort kv`: a replicated, sharded key-value store, which shows what an application of groups and objects looks like, and is of use.
//!
//! [`store`] is what is replicated, [`wire`] what clients and servers say to each other, [`door`] and [`serve`] the server,
//! [`client`], [`ask`] and [`mod@bench`] those who ask it.

mod store;
mod wire;
mod door;
mod serve;
mod client;
mod ask;
mod bench;

use crate::args::KvCommand;
use crate::failure::Failure;

/// Serves, asks or measures.
///
/// # Errors
/// See each.
pub(crate) fn run(command: &KvCommand) -> Result<(), Failure> {
    match command {
        KvCommand::Serve(args) => serve::run(args),
        KvCommand::Put(args) => ask::put(args),
        KvCommand::Get(args) => ask::get(args),
        KvCommand::Delete(args) => ask::delete(args),
        KvCommand::Watch(args) => ask::watch(args),
        KvCommand::Bench(args) => bench::run(args),
    }
}
