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
//! 5. Node 3's process is killed. The kernel resets its links, nodes 1 and 2 **suspect** it at once (F5; had it only fallen silent, it
//!    would take as long as the configuration says, V9). Node 1 leads, being the lowest, and **prepares**: both wedge their session and
//!    report up to where they have received each member's ring (V2). From the reports follows the next view, of 1 and 2,
//!    and the *trim*: what both have (V3). Both accept it, which makes a majority of view 1, and it is **decided** ([`change`], V1).
//! 6. Each driver **cuts** its session at the trim: it delivers what lies below, tells the application the new view, and starts the
//!    view's session in the other half of the segment, which has been there all the time (V4, V10). Its own messages beyond the trim, which
//!    nobody has delivered, are sent again (D13). Senders that were waiting go on.
//! 7. Node 3 is started again. It asks who is there, is told the view, links to all its members while they go on, gets the application's
//!    state from one of them if there is one ([`transfer`]), and a view **admits** it
//!    ([`membership`], V7). Node 2 wants to **leave**: when all that it sent is delivered, a view goes on without it (V8).
//! 8. A node that the others went on without, or that can't reach a majority, **stops**: it delivers nothing more and says why. If it is
//!    set to, it joins again as another incarnation (V5).
//!
//! 9. Nodes with durable groups write down what is delivered, and each view. When all have crashed, they say in their hellos what they have on
//!    disk, and the first view **follows** the newest of theirs ([`held`], P3); who has less gets the rest from who has it.
//!
//! # Modules, in reading order
//! A module leans only on those above it.
//!
//! | module | |
//! |---|---|
//! | [`view`] | an agreed membership, as a value; what sessions start from |
//! | [`layout`] | who has which shard in the next view. Pure |
//! | [`transfer`] | how a joiner comes to have the application's state. Pure |
//! | [`config`] | what a node is told, as a value or a TOML file |
//! | [`held`] | what nodes have on disk, and how a group begins again from it (P3). Pure |
//! | [`change`] | how a view ends and the next is decided, whatever fails on the way. Pure |
//! | [`link`] | control links: frames, seals, messages, one link for a pair. Pure |
//! | [`stop`] | why a node waits, and why it stopped |
//! | [`membership`] | which view is installed, who is gone, who comes and goes: a state machine. Pure |
//! | [`orders`] | what control thread and driver say to each other |
//! | [`plane`] | both joined: the control plane of a node. Pure |
//! | [`shell`] | threads, sockets, the clock: the driver, [`shell::Node`], [`shell::DrivenNode`] |

pub mod view;
pub mod layout;
pub mod transfer;
pub mod config;
pub mod held;
pub mod change;
pub mod link;
pub mod stop;
pub mod orders;
pub mod membership;
pub mod plane;
#[cfg(test)]
mod wires;
pub mod shell;

pub use shell::{DrivenNode, Event, Node};
