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
//! Where a group has a *chain*, step 2 publishes the bytes to the next member alone, which relays them, and so on ([`session`], D14). The words
//! still go from each to all, and C takes A's bytes for arrived when B says to have received them.
//!
//! Each step takes all that is there and publishes each changed range once, so under load the same words carry more (D9);
//! there are no timers.
//!
//! # One session's life
//! A segment has room for two sessions, and views take turns in it (V10, [`plan`]): view 5 begins where view 3 was. Not
//! everybody begins at once, so what a member sees of a peer may be the words of the earlier session still. They are told
//! apart by a *tag*: a member zeroes its row, publishes that, and then sets the row's last word to its view. Until a peer's
//! tag says this view, the peer is *unborn*, and counts as a row of zeros.
//!
//! A view change ends a session. [`session::Session::wedge`] freezes it (V2); the members agree on the *trim*, the end of each
//! ring; who lacks something below it is given that by another ([`session::Session::supply`], V3);
//! [`session::Session::cut`] delivers exactly what lies below it (V4); and what this node itself sent beyond is handed back, to
//! be sent again in the next view ([`session::Session::resend`], D13). With the last loan back the session is *free*, and when
//! it is so at all its members, its memory is the next view's but one.
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
//! | [`log`] | what a durable group's member writes down |
//! | [`sim`] | a fabric and a disk for tests: seeded delays, tearing, cuts, nodes that come and go, writes that are lost |
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
pub mod log;
#[cfg(not(loom))]
pub mod sim;
