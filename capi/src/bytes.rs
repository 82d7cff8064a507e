//! Bytes that the library made, and lends until the program frees them: replies, texts.

use std::sync::Mutex;

use crate::border::{InOut, export};
use crate::error::{Error, Status};
use crate::layout::Bytes;
use crate::lent::{Free, Here, Lent, Loanable, Vacant};

thread_local! {
    static HERE: Here = const { Here::new(&FREE) };
}

static FREE: Free = Mutex::new(Vec::new());

impl Loanable for Vec<u8> {
    #[inline(always)]
    fn here<R>(body: impl FnOnce(&Here) -> R) -> Option<R> {
        HERE.try_with(body).ok()
    }

    fn free() -> &'static Free {
        &FREE
    }
}

static LENT: Lent<Vec<u8>> = Lent::new();

/// Where bytes may be lent: to be had before what makes them is done, which can't be undone.
pub(crate) struct Place(Vacant<Vec<u8>>);

pub(crate) fn place() -> Result<Place, Error> {
    LENT.vacant().map(Place).ok_or(Error::fixed(&(
        Status::Busy,
        c"a million consort_bytes are lent: free those that you have read with consort_bytes_free",
    )))
}

impl Place {
    /// Lends them, with a zero behind, so that a text is a string.
    pub(crate) fn lend(self, mut bytes: Vec<u8>) -> Bytes {
        let len = bytes.len();
        bytes.push(0);
        // The heap's memory stays where it is when the vector moves.
        let data = bytes.as_ptr();
        Bytes { data, len, lent: self.0.fill(bytes) }
    }
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
