//! Frames from a peer, most of them with right checks and hostile numbers, cut anywhere, into a mirror.
//!
//! `cargo +nightly fuzz run --fuzz-dir hw/fuzz tcp_frames`
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| consort_hw::tcp::fuzzing::frames(data));
