//! Consort: group communication.

mod builder;

pub use builder::{FabricChoice, NodeBuilder, UnknownFabric};
pub use consort_control::config;
pub use consort_control::config::{ConfigError, SharedKey, WaitStrategy};
pub use consort_control::membership::{Absent, Stopped};
pub use consort_control::shell::{
    CloseError, Closed, Delivered, DrivenNode, Event, Incoming, Message, Node, NodeStats, Outcome,
    OutcomeError, Reservation, SendError, Sender, StartError, Status,
};
pub use consort_control::view::{Incarnation, Member, Role, View};
pub use consort_dataplane::fabric::FabricStats;
pub use consort_dataplane::loan::Loan;
pub use consort_dataplane::names::{NodeId, Rank, Seq, ViewId};
pub use consort_dataplane::plan::Guarantee;
pub use consort_dataplane::ring::Ticket;
pub use consort_dataplane::session::{Blocked, Delivery, Frontiers};

/// The README's example is compiled and run with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
