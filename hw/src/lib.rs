//! Fabrics on real machines.
