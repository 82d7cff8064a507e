//! What can't fail: the version, the last error, the names of statuses.

use std::ffi::c_char;

use crate::border::constant;
use crate::error::{Status, last};

constant! {
    fn consort_version() -> *const c_char {
        const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");
        VERSION.as_ptr().cast()
    }

    fn consort_last_error() -> *const c_char {
        last()
    }

    fn consort_status_name(status: i32) -> *const c_char {
        let known = usize::try_from(status).ok().and_then(|at| Status::ALL.get(at));
        known.map_or(c"unknown", |status| status.name()).as_ptr()
    }
}
