//! What the fuzz targets of `hw/fuzz` reach: every parser of bytes that a peer or a stranger sends.

use super::feed::fuzz_frames;
use super::hello::{HELLO, Hello, Offer, seal};

/// Frames with right checks and any numbers, and bytes that are none, cut anywhere.
pub fn frames(data: &[u8]) {
    fuzz_frames(data);
}

/// Offers and hellos, as they come and with the right sum.
pub fn hellos(data: &[u8]) {
    let mut sealed = data.to_vec();
    if sealed.len() > 4 {
        seal(&mut sealed);
    }
    for data in [data, &sealed] {
        if let Ok(offer) = Offer::decode(data) {
            assert_eq!(offer.encode().as_slice(), data, "what is accepted means one thing only");
        }
        if let Ok(data) = <&[u8; HELLO]>::try_from(data)
            && let Ok(hello) = Hello::decode(data)
        {
            assert_eq!(hello.encode(), *data, "what is accepted means one thing only");
        }
    }
}
