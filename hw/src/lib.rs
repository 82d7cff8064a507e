//! Fabrics on real machines.
pub mod tcp;
