//! Who the members are.
pub mod view;
pub mod config;
pub mod link;
pub mod membership;
pub mod plane;
pub mod shell;
pub use shell::{DrivenNode, Event};
