//! Handles: what a C program holds instead of a pointer, so that a freed one is known as such.
//!
//! ```text
//!  63      60 59                            20 19              0
//! ┌──────────┬────────────────────────────────┬─────────────────┐
//! │ kind     │ generation of the place        │ place           │
//! └──────────┴────────────────────────────────┴─────────────────┘
//! ```
//! A place that is freed gets another generation before it is given out again, so a handle never comes to mean another thing than it did.
//! Who uses a handle holds the object by an `Arc`: it lives on until the last call in it is over, whoever frees the handle meanwhile.

use std::cell::Cell;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::border::{Handle, panicked};
use crate::error::{Error, Status};

const PLACE_BITS: u32 = 20;
const KIND_SHIFT: u32 = 60;
const CHUNK: usize = 1 << 10;
const CHUNKS: usize = (1 << PLACE_BITS) / CHUNK;

/// What a handle stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Kind {
    Node = 1,
    Group = 2,
    Outcome = 3,
    Replica = 4,
    Pending = 5,
    Writer = 6,
    Reader = 7,
    Bytes = 8,
    Replies = 9,
    Log = 10,
}

impl Kind {
    const ALL: [Self; 10] = [
        Self::Node,
        Self::Group,
        Self::Outcome,
        Self::Replica,
        Self::Pending,
        Self::Writer,
        Self::Reader,
        Self::Bytes,
        Self::Replies,
        Self::Log,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Node => "consort_node",
            Self::Group => "consort_group",
            Self::Outcome => "consort_outcome",
            Self::Replica => "consort_replica",
            Self::Pending => "consort_pending",
            Self::Writer => "consort_writer",
            Self::Reader => "consort_reader",
            Self::Bytes => "consort_bytes",
            Self::Replies => "consort_replies",
            Self::Log => "consort_log",
        }
    }
}

/// An object behind a handle. Once a call ran into a bug in it, no other gets in.
pub(crate) struct Object<T> {
    broken: AtomicBool,
    inner: T,
}

impl<T> Deref for Object<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T> Object<T> {
    /// Whether a call may get in.
    #[inline]
    pub(crate) fn usable(&self) -> Result<(), Error> {
        if self.broken.load(Ordering::Relaxed) { Err(panicked()) } else { Ok(()) }
    }
}

/// Sets the mark unless it is [cut](Fuse::cut): a panic went through.
struct Fuse<'a>(&'a AtomicBool);

impl Fuse<'_> {
    #[inline(always)]
    fn cut(self) {
        std::mem::forget(self);
    }
}

impl Drop for Fuse<'_> {
    #[cold]
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

struct Place<T> {
    /// The handle that is valid for it; 0 is none. Written under the lock of `object`.
    live: AtomicU64,
    object: Mutex<Option<Arc<Object<T>>>>,
}

struct Free {
    /// Places from here on were never used.
    next: usize,
    /// With the generation that it has next.
    back: Vec<(usize, u64)>,
}

/// All handles of one kind.
pub(crate) struct Registry<T> {
    kind: Kind,
    chunks: [OnceLock<Box<[Place<T>; CHUNK]>>; CHUNKS],
    free: Mutex<Free>,
}

impl<T> Registry<T> {
    pub(crate) const fn new(kind: Kind) -> Self {
        let free = Mutex::new(Free { next: 0, back: Vec::new() });
        Self { kind, chunks: [const { OnceLock::new() }; CHUNKS], free }
    }

    /// A handle for it.
    pub(crate) fn put(&self, inner: T) -> Result<Handle, Error> {
        let mut free = lock(&self.free);
        let (at, generation) = match free.back.pop() {
            Some(place) => place,
            None if free.next < CHUNK * CHUNKS => {
                free.next += 1;
                (free.next - 1, 1)
            }
            None => {
                let text = format!(
                    "there are {} of {} in use: free what you need no more",
                    free.next,
                    self.kind.name()
                );
                return Err(Error::new(Status::Busy, text));
            }
        };
        drop(free);
        let token = (self.kind as u64) << KIND_SHIFT | generation << PLACE_BITS | at as u64;
        let chunk = self.chunks[at / CHUNK].get_or_init(|| {
            let place = || Place { live: AtomicU64::new(0), object: Mutex::new(None) };
            let chunk: Box<[_]> = (0..CHUNK).map(|_| place()).collect();
            chunk.try_into().unwrap_or_else(|_| unreachable!("it has as many places as were made"))
        });
        let place = &chunk[at % CHUNK];
        let mut object = lock(&place.object);
        *object = Some(Arc::new(Object { broken: AtomicBool::new(false), inner }));
        place.live.store(token, Ordering::Release); // pairs with the Acquire in `is_live`
        Ok(Handle::of(token))
    }

    #[inline(always)]
    fn place(&self, token: u64) -> Option<&Place<T>> {
        if token >> KIND_SHIFT != self.kind as u64 {
            return None;
        }
        let at = token as usize % (CHUNK * CHUNKS);
        self.chunks[at / CHUNK].get().map(|chunk| &chunk[at % CHUNK])
    }

    /// Whether the handle is still good: for who has its object from before.
    #[inline(always)]
    pub(crate) fn is_live(&self, token: u64) -> bool {
        self.place(token).is_some_and(|place| place.live.load(Ordering::Acquire) == token)
    }

    /// What it stands for.
    pub(crate) fn find(&self, handle: Handle) -> Result<Arc<Object<T>>, Error> {
        let token = handle.token();
        let object = self.place(token).and_then(|place| {
            let object = lock(&place.object);
            object.clone().filter(|_| place.live.load(Ordering::Relaxed) == token)
        });
        object.ok_or_else(|| self.unknown(token))
    }

    /// As [`Registry::find`], and the handle is good no more.
    pub(crate) fn take(&self, handle: Handle) -> Result<Arc<Object<T>>, Error> {
        let token = handle.token();
        let taken = self.place(token).and_then(|place| {
            let mut object = lock(&place.object);
            if place.live.load(Ordering::Relaxed) != token {
                return None;
            }
            place.live.store(0, Ordering::Release);
            object.take()
        });
        let taken = taken.ok_or_else(|| self.unknown(token))?;
        let (at, generation) = (token as usize % (CHUNK * CHUNKS), token << 4 >> (PLACE_BITS + 4));
        let most = u64::MAX >> (PLACE_BITS + 4);
        if generation < most {
            lock(&self.free).back.push((at, generation + 1));
        } // else the place is worn out, after 2^40 uses
        Ok(taken)
    }

    #[cold]
    pub(crate) fn unknown(&self, token: u64) -> Error {
        let wanted = self.kind.name();
        if token == 0 {
            return Error::invalid(format_args!("the {wanted} is NULL: make one first"));
        }
        let other =
            Kind::ALL.into_iter().find(|kind| *kind as u64 == token >> KIND_SHIFT && *kind != self.kind);
        let text = match other {
            Some(other) => format!("a {wanted} is wanted, and this is a {}", other.name()),
            None if token >> KIND_SHIFT == self.kind as u64 => {
                format!("this {wanted} has been freed: use no handle after that, in no thread")
            }
            None => format!("{token:#x} is no {wanted}: pass what the library gave"),
        };
        Error::new(Status::BadHandle, text)
    }

    /// A call with that handle: `body` is given what it stands for. A panic in it breaks the object for good.
    pub(crate) fn with(
        &self,
        handle: Handle,
        body: impl FnOnce(&Object<T>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let object = self.find(handle)?;
        object.usable()?;
        let fuse = Fuse(&object.broken);
        let result = body(&object);
        fuse.cut();
        result
    }
}

/// What a thread used last of a kind: see [`Registry::lease`].
pub(crate) type Last<T> = Cell<Option<(u64, Arc<Object<T>>)>>;

/// What a thread keeps its last of. (Known by its type: a field with the key of it would be a call for each message.)
pub(crate) trait Leased: Sized + 'static {
    /// What this thread used last; `None` if that is gone, while the thread ends.
    fn last<R>(body: impl FnOnce(&Last<Self>) -> R) -> Option<R>;
}

impl<T: Leased> Registry<T> {
    /// As [`Registry::find`], for calls that there is one of for every message, which can't afford a lock or a shared counter: each thread
    /// keeps what it used last, lends it to the call, and gets it back after it. One load tells whether the handle is still good.
    #[inline(always)]
    pub(crate) fn lease(&self, handle: Handle) -> Result<Lease<T>, Error> {
        let token = handle.token();
        let object = match T::last(Cell::take).flatten() {
            Some((known, object)) if known == token && self.is_live(token) => object,
            _ => self.find(handle)?,
        };
        object.usable()?;
        Ok(Lease { token, object: Some(object) })
    }
}

/// An object, from a thread's [`Last`], where it goes back to.
pub(crate) struct Lease<T: Leased> {
    token: u64,
    object: Option<Arc<Object<T>>>,
}

impl<T: Leased> Lease<T> {
    /// A call with it. A panic in it breaks the object for good.
    #[inline(always)]
    pub(crate) fn call<R>(&self, body: impl FnOnce(&Self) -> Result<R, Error>) -> Result<R, Error> {
        let fuse = Fuse(&self.broken);
        let result = body(self);
        fuse.cut();
        result
    }
}

impl<T: Leased> Deref for Lease<T> {
    type Target = Object<T>;

    #[inline]
    fn deref(&self) -> &Object<T> {
        match &self.object {
            Some(object) => object,
            None => unreachable!("a lease is whole until it is dropped"),
        }
    }
}

impl<T: Leased> Drop for Lease<T> {
    #[inline(always)]
    fn drop(&mut self) {
        if let Some(object) = self.object.take() {
            T::last(|last| last.set(Some((self.token, object)))); // a thread that ends needs none
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner) // changed in one step
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::border::call;

    static NUMBERS: Registry<u32> = Registry::new(Kind::Node);

    #[test]
    fn a_freed_handle_is_known_as_such_also_when_its_place_is_used_again() {
        static OWN: Registry<u32> = Registry::new(Kind::Group);
        let first = OWN.put(1).unwrap();
        assert_eq!(**OWN.find(first).unwrap(), 1);
        assert_eq!(**OWN.take(first).unwrap(), 1);
        let second = OWN.put(2).unwrap();
        assert_eq!(first.token() % (1 << PLACE_BITS), second.token() % (1 << PLACE_BITS), "the same place");
        for dead in [OWN.find(first).err(), OWN.take(first).err()] {
            let error = dead.unwrap();
            assert_eq!(error.status(), Status::BadHandle);
            assert!(error.text().contains("has been freed"));
        }
        assert!(OWN.is_live(second.token()) && !OWN.is_live(first.token()));
        let error = NUMBERS.find(second).err().unwrap();
        assert!(error.text().contains("this is a consort_group"), "{error:?}");
        assert_eq!(NUMBERS.find(Handle::of(0)).err().unwrap().status(), Status::Invalid);
        assert_eq!(NUMBERS.find(Handle::of(0xdead_beef)).err().unwrap().status(), Status::BadHandle);
    }

    #[test]
    fn what_a_bug_went_through_is_broken_for_good() {
        let handle = NUMBERS.put(5).unwrap();
        let with = |body: fn(&Object<u32>) -> Result<(), Error>| call(|| NUMBERS.with(handle, body));
        assert_eq!(with(|_| Ok(())), 0);
        assert_eq!(with(|_| std::panic::resume_unwind(Box::new(()))), Status::Panicked as i32);
        assert_eq!(with(|_| Ok(())), Status::Panicked as i32);
        assert!(NUMBERS.take(handle).is_ok(), "it can still be freed");
    }
}
