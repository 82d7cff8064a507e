//! Group communication: see the crates.
