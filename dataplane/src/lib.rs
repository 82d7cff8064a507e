//! What happens to a message: see the modules in reading order.

#[allow(dead_code, unused_imports)]
mod sync;
pub mod names;
pub mod memory;
pub mod fabric;
