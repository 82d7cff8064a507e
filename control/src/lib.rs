//! Consort's control plane: who the members are, and what runs on the way there.
//!
//! # One view's life
//!
//! 1. Each node reads its [`config`]: its own id and address, and those of all others. It listens, and dials.
//! 2. [`link`]: two nodes greet each other over a framed control link: protocol versions, cluster, terms of the group, and
//!    a proof of the shared key where there is one. What doesn't fit is refused, with the reason at both ends.
//! 3. [`membership`] gathers until every configured node is there (`Phase::Gathering`, which names who is missing). The
//!    node with the least id proposes view 1 with the incarnations that it met; all accept, and it is decided once, so
//!    that no two different first views can come to be.
//! 4. The nodes link their fabrics (`Phase::Linking`), from the offers that the control links carried.
//! 5. The [`view`] is installed: the driver in [`shell`] starts the view's sessions, and the application sees the view
//!    as an event before the first message.
//! 6. When a member is lost, or breaks the protocol, the sessions are wedged and the node stops, saying which and why:
//!    with a fixed membership no further view follows. Views that change will replace this source of views, and
//!    nothing else.
//!
//! `membership` and `plane` are pure: events go in, decisions come out, time is an argument. All threads, clocks and
//! sockets are in `shell`. The control plane knows the `Fabric` trait and no fabric.

pub mod view;
pub mod config;
pub mod link;
pub mod membership;
pub mod plane;
pub mod shell;
pub use shell::{DrivenNode, Event};
