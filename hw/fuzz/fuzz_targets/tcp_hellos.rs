//! Offers that the control plane brings and hellos of whoever connects.
//!
//! `cargo +nightly fuzz run --fuzz-dir hw/fuzz tcp_hellos`
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| consort_hw::tcp::fuzzing::hellos(data));
