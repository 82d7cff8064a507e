//! Who the members are.
pub mod view;
pub mod config;
pub mod membership;
pub mod shell;
pub use shell::{DrivenNode, Event};
