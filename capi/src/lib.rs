//! libconsort: the C API, as `include/consort.h` tells it. Programs in C read that; this is for who changes it.
//!
//! Every function of the header is defined in one of these modules, through [`border::export!`](border), and does three
//! things: it checks what came in, calls the facade, and gives out what came of it, last and only if all went well. What it must never do
//! is crash where that can be helped, or unwind into C.
//!
//! # What lies where
//! | | kept in | because |
//! |---|---|---|
//! | nodes, groups, replicas, outcomes, replies of all, logs | [`handles`] | they live long, many threads use one, and a freed one must be known as such |
//! | room to write in, messages, replies | [`lent`] | they live for microseconds, one at a time has them, and each message needs one |
//!
//! # Modules, in reading order
//! [`error`] says what went wrong; [`border`] is where foreign pointers are believed; [`handles`], [`lent`] and [`seat`] keep things;
//! [`layout`] has the structs; [`callback`] knows what is so in a callback; the rest are the functions, by subject.

pub mod error;
pub mod border;
mod handles;
mod seat;
mod lent;
pub mod layout;
mod callback;
mod bytes;
mod view;
mod options;
mod fd;
mod node;
mod stream;
mod room;
mod outcome;
mod group;
mod event;
mod receive;
mod driven;
mod machine;
mod replies;
mod replica;
mod log;
mod about;
