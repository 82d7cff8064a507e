//! Bytes that the library made, and lends until the program frees them: replies, texts.

use std::cell::RefCell;

use crate::border::{InOut, export};
use crate::error::{Error, Status};
use crate::layout::Bytes;
use crate::lent::{Here, Lent};

thread_local! {
    static HERE: Here = const { RefCell::new(Vec::new()) };
}

static LENT: Lent<Vec<u8>> = Lent::new(&HERE);

/// Lends them, with a zero behind, so that a text is a string.
pub(crate) fn lend(mut bytes: Vec<u8>) -> Result<Bytes, Error> {
    let len = bytes.len();
    bytes.push(0);
    let vacant = LENT.vacant().ok_or(Error::fixed(&(
        Status::Busy,
        c"a million consort_bytes are lent: free those that you have read with consort_bytes_free",
    )))?;
    // The heap's memory stays where it is when the vector moves.
    let data = bytes.as_ptr();
    Ok(Bytes { data, len, lent: vacant.fill(bytes) })
}

export! {
    fn consort_bytes_free(bytes: InOut<Bytes>) {
        let mut bytes = bytes;
        let bytes = bytes.value("bytes")?;
        let held = LENT.take(bytes.lent);
        if held.is_none() {
            return Err(Error::fixed(&(Status::BadHandle, c"these bytes are not lent (any more): free them once")));
        }
        *bytes = Bytes { data: std::ptr::null(), len: 0, lent: 0 };
        Ok(())
    }
}
