//! Who the members are, and the thread that drives a node: the control plane.
//!
//! The core is pure: [`plane::Plane`] takes bytes, times and reports and gives wishes and orders; it opens no socket, reads
//! no clock, starts no thread. The [`shell`] around it does, and nothing else in this crate. This crate knows the
//! [`Fabric`](consort_dataplane::fabric::Fabric) trait and no fabric: which ones there are, the facade crate knows.
//!
//! # One view's life
//!
//! Three nodes, 1, 2 and 3, are told of each other in their [configuration](config) and started in any order.
//!
//! 1. Each makes a fabric, draws a random *incarnation* for this start, listens, and dials the others until they are there
//!    ([`link::table`]). On each connection both sides prove that they know the shared key, if there is one, and say
//!    *hello*: who they are, what they take the group to be, and what their fabric offers ([`link::connection`]).
//!    A hello that doesn't fit is refused, and both sides print why. Of two connections between the same nodes, the one that the
//!    lower id chooses counts.
//! 2. Node 1, the lowest, has heard from all and **proposes** view 1: these members, these incarnations
//!    ([`membership`]). The others get the order to **link** their fabrics to exactly these.
//! 3. Whoever is linked to everyone says **ready**; when all have, node 1 **commits**. The driver gets the order to
//!    **install**: a session is started from the [`view::View`], the application sees the view as an event, and messages
//!    flow. None of them touches a control link: these only tell, from here on, who is still there.
//! 4. If anyone is lost before that, everyone who took part begins anew as another incarnation, with another fabric. So
//!    nobody is ever in two minds about which view 1 it said yes to.
//! 5. The view **ends** when every member has said that it sends nothing more and everything is delivered: then each closes
//!    its fabric and says goodbye. Or it ends because a member is lost, or breaks the protocol: the session is
//!    **wedged**, senders and outcomes are told, and the application reads who it was and what to do. (For now the members are
//!    fixed, so there is no view 2. What decides views is [`membership`] alone; its events and decisions are made so that
//!    view changes replace nothing else.)
//!
//! # Modules, in reading order
//! A module leans only on those above it.
//!
//! | module | |
//! |---|---|
//! | [`view`] | an agreed membership, as a value; what sessions start from |
//! | [`config`] | what a node is told, as a value or a TOML file |
//! | [`change`] | how a view ends and the next is decided, whatever fails on the way. Pure |
//! | [`link`] | control links: frames, seals, messages, one link for a pair. Pure |
//! | [`membership`] | which view is installed: a state machine. Pure |
//! | [`orders`] | what control thread and driver say to each other |
//! | [`plane`] | both joined: the control plane of a node. Pure |
//! | [`shell`] | threads, sockets, the clock: the driver, [`shell::Node`], [`shell::DrivenNode`] |

pub mod view;
pub mod config;
pub mod change;
pub mod link;
pub mod stop;
pub mod orders;
pub mod membership;
pub mod plane;
// pub mod shell;

// pub use shell::{DrivenNode, Event, Node};
