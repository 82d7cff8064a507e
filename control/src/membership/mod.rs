//! Membership.
mod stop;
pub use stop::{Absent, Stopped};
