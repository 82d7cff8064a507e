//! The border: the types of parameters that C hands over, the calls' frame, and everything that believes a foreign pointer.
//!
//! Nothing else in this crate dereferences what a C program passed. A parameter is one of the types here, which only a caller
//! from outside can make, and which check for NULL before they read or write. What can't be checked is the caller's part of the
//! bargain, as `consort.h` words it: **a pointer that isn't NULL points to what its type says, for as long as the header
//! says, and nobody changes it meanwhile.** Each block below rests on that sentence and on what is checked beside it.
//!
//! Every function is written through [`export!`]: its frame refuses the child of a fork, and turns a panic into
//! `CONSORT_PANICKED`, so that nothing unwinds into C.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_void};
use std::net::TcpListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Status};

/// Defines functions of the C API. The body gives `Result<(), Error>`.
macro_rules! export {
    ($($(#[$meta:meta])* fn $name:ident($($arg:ident: $type:ty),* $(,)?) $body:block)*) => {$(
        $(#[$meta])*
        // The name is this library's own: all of them begin with `consort_`.
        #[allow(unsafe_code, unreachable_pub, missing_docs)]
        #[unsafe(no_mangle)]
        pub extern "C" fn $name($($arg: $type),*) -> i32 {
            $crate::border::call(move || $body)
        }
    )*};
}
pub(crate) use export;

/// Defines functions that can't fail, and may be called anywhere, also in the child of a fork.
macro_rules! constant {
    ($(fn $name:ident($($arg:ident: $type:ty),*) -> $result:ty $body:block)*) => {$(
        // The name is this library's own: all of them begin with `consort_`.
        #[allow(unsafe_code, unreachable_pub, missing_docs)]
        #[unsafe(no_mangle)]
        pub extern "C" fn $name($($arg: $type),*) -> $result $body
    )*};
}
pub(crate) use constant;

/// Set in the child of a fork.
static FORKED: AtomicBool = AtomicBool::new(false);

/// A fork copies this thread alone: engines, locks and links of the parent are not there in the child. (What `fork` can tell costs
/// less than asking for the process's number at each call.)
pub(crate) fn watch_forks() {
    extern "C" fn in_child() {
        FORKED.store(true, Ordering::Relaxed);
    }
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: the function is async-signal-safe (one store) and stays where it is: a library with threads isn't unloaded.
        unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
    });
}

/// The frame of every call.
#[inline(always)]
pub(crate) fn call(body: impl FnOnce() -> Result<(), Error>) -> i32 {
    let status = match catch_unwind(AssertUnwindSafe(|| {
        if FORKED.load(Ordering::Relaxed) { Err(forked()) } else { body() }
    })) {
        Ok(Ok(())) => Status::Ok,
        Ok(Err(error)) => error.tell(),
        Err(_) => panicked().tell(),
    };
    status as i32
}

#[cold]
fn forked() -> Error {
    Error::fixed(&(Status::Forked, c"this process was forked from one that used the library, and has neither its threads nor its links: call exec first, or fork before you use it"))
}

/// What a call says that ran into a bug of the library, and every later call of the same handle.
#[cold]
pub(crate) fn panicked() -> Error {
    Error::fixed(&(Status::Panicked, c"the library ran into a bug of its own, and what the handle stands for may be half changed: free it, go on with a new one, and report the bug"))
}

/// A handle, as C holds it: a number in a pointer's clothes, which nobody follows.
#[repr(transparent)]
#[derive(Clone, Copy, Debug)]
pub struct Handle(usize);

impl Handle {
    pub(crate) fn token(self) -> u64 {
        self.0 as u64
    }

    pub(crate) fn of(token: u64) -> Self {
        Self(token as usize)
    }
}

/// Where a call puts what it gives: `T *`.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct Out<T>(*mut T);

impl<T> Out<T> {
    /// Call it before anything is done, so that a failure leaves nothing half done.
    pub(crate) fn check(self, name: &str) -> Result<Self, Error> {
        if self.0.is_null() || !self.0.is_aligned() { Err(missing(name)) } else { Ok(self) }
    }

    /// Writes it, unless there is nowhere to.
    pub(crate) fn set(self, value: T) {
        if !self.0.is_null() && self.0.is_aligned() {
            // SAFETY: the border's bargain: it points to room for a `T`. What was there may be uninitialised, and is not dropped.
            unsafe { self.0.write(value) };
        }
    }

    /// Writes one of an array's, unless there is none. The caller said that there is room for more than `at` of them.
    #[inline]
    pub(crate) fn set_at(&self, at: usize, value: T) {
        if !self.0.is_null() && self.0.is_aligned() {
            // SAFETY: the border's bargain: so many lie there, in one array. (Of an array that is too long to be, the slice beside it, of as
            // many, was refused: see `In::slice`. Where there is none beside it, `Out::array` has refused it.)
            let place = unsafe { self.0.add(at) };
            // SAFETY: as above; what was there may be uninitialised, and is not dropped.
            unsafe { place.write(value) };
        }
    }

    /// As [`Out::check`], of an array of `len`.
    pub(crate) fn array(self, len: usize, name: &str) -> Result<Self, Error> {
        fits::<T>(len, name)?;
        self.check(name)
    }

    /// Whether the caller wants it: where it may be left out.
    pub(crate) fn is_wanted(&self) -> bool {
        !self.0.is_null()
    }

    #[cfg(test)]
    pub(crate) fn to(pointer: *mut T) -> Self {
        Self(pointer)
    }
}

impl<T: Copy> Out<T> {
    /// Of a struct that begins with its own size, which the program has set: that, if this library has so much to write.
    pub(crate) fn struct_size(&self, name: &str) -> Result<usize, Error> {
        self.fits(In(self.0.cast_const()).struct_size(name)?, name)
    }

    /// Whether a struct of that size can be written: one of a newer header would be left half as it was.
    pub(crate) fn fits(&self, struct_size: usize, name: &str) -> Result<usize, Error> {
        if struct_size < size_of::<usize>() || struct_size > size_of::<T>() {
            return Err(Error::invalid(format_args!(
                "struct_size of `{name}` is {struct_size}, and this library knows {} bytes of that struct: pass its sizeof, and install \
                 the library that your consort.h came with",
                size_of::<T>()
            )));
        }
        Ok(struct_size)
    }

    /// Writes as much of `value` as the caller has room for, by a size that [fits](Self::fits).
    pub(crate) fn set_sized(self, size: usize, value: T) {
        let len = size.min(size_of::<T>());
        // SAFETY: `T` is one of the C structs of layout.rs, which have no padding; the caller said that it has room for `size` bytes.
        unsafe { std::ptr::copy_nonoverlapping((&raw const value).cast::<u8>(), self.0.cast::<u8>(), len) };
    }
}

impl Out<u8> {
    /// For a callback of the program's, which writes there.
    pub(crate) fn of(buffer: *mut u8) -> Self {
        Self(buffer)
    }

    /// The caller's buffer of `len` bytes, to be written to.
    pub(crate) fn buffer(&mut self, len: usize, name: &str) -> Result<&mut [u8], Error> {
        if len == 0 {
            return Ok(&mut []);
        }
        if self.0.is_null() {
            return Err(missing(name));
        }
        // SAFETY: the border's bargain: `len` bytes lie there, initialised (`uint8_t *` of a caller's buffer may be indeterminate, which no
        // machine that this runs on tells from a value), and the borrow ends with the call.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.0, len) })
    }
}

/// What a call reads: `const T *`.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct In<T>(*const T);

impl<T> In<T> {
    pub(crate) const NONE: Self = Self(std::ptr::null());

    pub(crate) fn value(&self, name: &str) -> Result<&T, Error> {
        if self.0.is_null() || !self.0.is_aligned() {
            return Err(missing(name));
        }
        // SAFETY: the border's bargain; and it lives as long as this parameter, which is the call.
        Ok(unsafe { &*self.0 })
    }

    /// `len` of them.
    pub(crate) fn slice(&self, len: usize, name: &str) -> Result<&[T], Error> {
        if len == 0 {
            return Ok(&[]);
        }
        if self.0.is_null() || !self.0.is_aligned() {
            return Err(missing(name));
        }
        fits::<T>(len, name)?;
        // SAFETY: the border's bargain: so many lie there; and they live as long as this parameter, which is the call.
        Ok(unsafe { std::slice::from_raw_parts(self.0, len) })
    }

    /// The first word of a struct that begins with its own size. No more of it is there than that says.
    pub(crate) fn struct_size(&self, name: &str) -> Result<usize, Error> {
        In::<usize>(self.0.cast()).value(name).copied()
    }

    #[cfg(test)]
    pub(crate) fn of(pointer: *const T) -> Self {
        Self(pointer)
    }

    /// What lies `bytes` further: for arrays of structs whose first word says how long they are.
    pub(crate) fn beyond(&self, bytes: usize) -> Self {
        Self(self.0.wrapping_byte_add(bytes))
    }
}

impl<T: Copy> In<T> {
    /// A struct that begins with its own size, as the program that passes it was compiled with: a shorter one, of an older
    /// header, leaves what it lacks as it is in `defaults`; a longer one may say only what this library knows.
    pub(crate) fn sized(&self, defaults: T, name: &str) -> Result<T, Error> {
        let size = self.struct_size(name)?;
        if size < size_of::<usize>() || size > 1 << 16 {
            return Err(Error::invalid(format_args!(
                "`{name}`: its struct_size is {size}, which can't be; set it up with the function that ends in _init"
            )));
        }
        let bytes = In::<u8>(self.0.cast());
        let bytes = bytes.slice(size, name)?;
        let known = size.min(size_of::<T>());
        if bytes[known..].iter().any(|byte| *byte != 0) {
            return Err(Error::invalid(format_args!(
                "`{name}` sets something that this library doesn't know: it is older than the header; install the newer one"
            )));
        }
        let mut value = defaults;
        // SAFETY: `T` is one of the C structs of layout.rs, any bytes of which are a value; `known` bytes are there on both sides.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), (&raw mut value).cast::<u8>(), known) };
        Ok(value)
    }
}

/// A struct that the library gave and takes back: `T *`.
#[repr(transparent)]
pub struct InOut<T>(*mut T);

impl<T> InOut<T> {
    pub(crate) fn value(&mut self, name: &str) -> Result<&mut T, Error> {
        if self.0.is_null() || !self.0.is_aligned() {
            return Err(missing(name));
        }
        // SAFETY: the border's bargain, which for such a parameter says that no other thread has it meanwhile.
        Ok(unsafe { &mut *self.0 })
    }

    /// `len` of them.
    pub(crate) fn slice(&mut self, len: usize, name: &str) -> Result<&mut [T], Error> {
        if len == 0 {
            return Ok(&mut []);
        }
        if self.0.is_null() || !self.0.is_aligned() {
            return Err(missing(name));
        }
        fits::<T>(len, name)?;
        // SAFETY: as in `value`; so many lie there.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.0, len) })
    }
}

/// A string: `const char *`.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct Text(*const c_char);

impl Text {
    pub(crate) const NONE: Self = Self(std::ptr::null());

    #[cfg(test)]
    pub(crate) fn of(text: &'static CStr) -> Self {
        Self(text.as_ptr())
    }

    pub(crate) fn required(&self, name: &str) -> Result<&str, Error> {
        self.optional(name)?.ok_or_else(|| missing(name))
    }

    pub(crate) fn optional(&self, name: &str) -> Result<Option<&str>, Error> {
        if self.0.is_null() {
            return Ok(None);
        }
        // SAFETY: the border's bargain: a string that ends with a zero, and lives as long as this parameter.
        let text = unsafe { CStr::from_ptr(self.0) };
        let text = text.to_str().map_err(|_| {
            Error::invalid(format_args!("`{name}` is not UTF-8: {:?}", text.to_string_lossy()))
        })?;
        Ok(Some(text))
    }
}

/// What a callback is given first: `void *`, of which the library knows nothing.
#[repr(transparent)]
#[derive(Clone, Copy, Debug)]
pub struct Context(*mut c_void);

impl Context {
    pub(crate) const NONE: Self = Self(std::ptr::null_mut());
}

// SAFETY: the header says of each callback on which threads it is called; that its context may go there is the program's to see to.
// The library only carries it.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

/// A value of pointers into memory that goes where the value goes.
pub(crate) struct Owned<T>(pub(crate) T);

// SAFETY: made of pointers into heap memory that its maker keeps beside it, unchanged (see `view.rs`): it may be read from any thread.
unsafe impl<T> Send for Owned<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Owned<T> {}

/// A socket of the program's, by a descriptor of the library's own: the program's stays the program's.
pub(crate) fn listener_of(descriptor: i32) -> Result<TcpListener, Error> {
    use std::os::fd::FromRawFd;
    // SAFETY: only asks the kernel about a number, which may be anything.
    let copy = unsafe { libc::fcntl(descriptor, libc::F_DUPFD_CLOEXEC, 0) };
    if copy >= 0 {
        // SAFETY: it was made here, and nobody else knows of it.
        return Ok(unsafe { TcpListener::from_raw_fd(copy) });
    }
    let cause = std::io::Error::last_os_error();
    Err(match cause.raw_os_error() {
        Some(libc::EBADF) => Error::invalid(format_args!(
            "`listen_fd`: {descriptor} is no open descriptor: pass a TCP socket that listens, or -1"
        )),
        _ => Error::new(
            Status::Machine,
            format_args!(
                "can't have a second descriptor of `listen_fd`: {cause}; raise the limit of open files"
            ),
        ),
    })
}

/// Whether an array of so many can be.
#[inline]
fn fits<T>(len: usize, name: &str) -> Result<(), Error> {
    if len.checked_mul(size_of::<T>()).is_none_or(|bytes| bytes > isize::MAX as usize) {
        return Err(Error::invalid(format_args!("`{name}`: {len} are more than memory holds")));
    }
    Ok(())
}

#[cold]
fn missing(name: &str) -> Error {
    Error::invalid(format_args!("`{name}` is NULL or not aligned: pass a pointer to what the header says"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_stays_inside() {
        assert_eq!(call(|| std::panic::resume_unwind(Box::new("a bug"))), Status::Panicked as i32);
    }

    #[test]
    fn structs_of_other_headers_are_read_as_far_as_they_are_known() {
        #[repr(C)]
        #[derive(Clone, Copy)]
        struct Now {
            size: usize,
            old: u64,
            new: u64,
        }
        let defaults = Now { size: size_of::<Now>(), old: 1, new: 2 };
        let read =
            |words: &[u64]| In::<Now>(words.as_ptr().cast()).sized(defaults, "it").map(|it| (it.old, it.new));
        assert_eq!(read(&[16, 7, 9]).unwrap(), (7, 2), "shorter");
        assert_eq!(read(&[24, 7, 9]).unwrap(), (7, 9));
        assert_eq!(read(&[32, 7, 9, 0]).unwrap(), (7, 9), "longer, and says no more");
        assert_eq!(read(&[32, 7, 9, 1]).unwrap_err().status(), Status::Invalid);
        assert_eq!(read(&[0, 7, 9]).unwrap_err().status(), Status::Invalid);
        assert_eq!(
            In::<Now>(std::ptr::null()).sized(defaults, "it").err().map(|it| it.status()),
            Some(Status::Invalid)
        );
    }
}
