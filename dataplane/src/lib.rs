//! Consort's data plane: what happens to a message between a sender's `reserve` and every member's delivery.
//!
//! Pure by construction: nothing here opens a socket, reads a clock, starts a thread or changes a view. A
//! [`session::Session`] is driven by whoever owns it, over any [`fabric::Fabric`].
//!
//! # One message's life
//!
//! Three members, A, B and C (ranks 0, 1, 2), each with a *ring* for its messages and a *row* of counters, both in memory
//! that the others can read a copy of (their *mirror*). Nobody ever writes to anyone else's memory but by *publishing* a
//! range of its own.
//!
//! 1. A thread at A **reserves** 64 bytes in A's ring and writes its message there ([`ring`], D3). No copy was made and
//!    none will be. It commits; a *mark* beside the ring says so.
//! 2. A's engine finds the mark, **stamps** the record with A's current *round*, say 5 ([`session`], D4), publishes the
//!    record's bytes, and then one word, A's `head`: "my ring is filled up to here, and I send nothing below round 6 any
//!    more" (the *promise*). Bytes first, head after: whoever sees the head has the bytes (D1, D2).
//! 3. B sees A's head change. Everything up to it has **arrived**, so B stores `received[A]` in its own row. B has nothing
//!    to say in round 5, so it raises its own promise to 6: silence never holds the order back (D5). It publishes
//!    these words. So does C.
//! 4. A, B and C each look at all rows. The record (round 5, rank 0) is **ordered** once B and C have both promised more
//!    than round 5 can take from it (D6, [`layout`]'s heads and the arithmetic of the order), and **stable** once every row's
//!    `received[A]` covers it (D7). Then each of them **delivers** it, lent from the ring ([`loan`], D8, D10). That
//!    took two hops: A's publish, and everyone's answer. If B sent a record in round 5 too, all deliver A's first: the rank
//!    breaks the tie.
//! 5. When the application is done with it, the member counts up `released[A]`; when all members have, A's ring **reuses**
//!    the room (D11). Until then A's senders may find the ring full and wait; nothing is overwritten.
//!
//! Each step takes all that is there and publishes each changed range once, so under load the same words carry more (D9);
//! there are no timers.
//!
//! A view change ends a session: [`session::Session::wedge`] freezes it, and [`session::Session::cut`] delivers what the
//! members agreed to be below the *trim* (V2, V4).
//!
//! # Modules, in reading order
//! A module leans only on those above it.
//!
//! | module | |
//! |---|---|
//! | [`names`] | the vocabulary as types |
//! | [`memory`] | segments and mirrors: words, and the bytes between |
//! | [`fabric`] | the one abstraction under the protocol, and its contract |
//! | [`record`] | a message in a ring |
//! | [`layout`] | where words and ring lie, how a head is packed |
//! | [`plan`] | what a session is started from |
//! | [`ring`] | reserving, committing, taking |
//! | [`loan`] | zero-copy delivery past the callback |
//! | `order` | the order as arithmetic |
//! | [`session`] | the engine |
//! | [`sim`] | a fabric for tests: seeded delays, tearing, cuts |
//!
//! # Trust
//! What a peer can write is read once, into a local, and checked before use (S1): a bad word makes the step fail with a
//! [`session::Fault`] that names the peer, and nothing panics or reads out of bounds. `unsafe` is in `memory`, `ring`,
//! `loan` and the slice in `session`'s delivery, nowhere else (S2).

mod sync;
pub mod names;
pub mod memory;
pub mod fabric;
pub mod record;
pub mod layout;
pub mod plan;
pub mod ring;
pub mod loan;
mod order;
pub mod session;
#[cfg(not(loom))]
pub mod sim;
