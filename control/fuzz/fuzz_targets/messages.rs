//! Bytes that should be a message (S1): whatever they are, the result is an error, or a message that is within its bounds, fits a
//! frame and is heard as it is said.
//!
//! `cargo +nightly fuzz run --fuzz-dir control/fuzz messages`
#![no_main]

use consort_control::link::frame::PEER_LEN;
use consort_control::link::message::Message;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(message) = Message::decode(data) {
        let bytes = message.encode();
        assert!(bytes.len() + 40 <= PEER_LEN, "no frame is long enough for {} bytes", bytes.len());
        assert_eq!(Message::decode(&bytes), Ok(message));
    }
});
