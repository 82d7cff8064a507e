//! Room in a ring, lent to C: the reservation, and the group that it borrows from, in one place of [`LENT`].
#![allow(unsafe_code)]

use consort::{NodeId, Outcome, Reservation, SendError};

use crate::callback::inside;
use crate::error::{Error, Status};
use crate::layout::Room;
use crate::lent::{Free, Here, Lent, Loanable};
use crate::node::would_deadlock;
use crate::stream::{Lease, MINE, ROOMS};

/// A reservation that is out.
pub(crate) struct Held {
    // In this order: the reservation is gone before what it borrows from.
    room: Reservation<'static>,
    _lease: Lease,
}

impl Loanable for Held {
    #[inline(always)]
    fn here<R>(body: impl FnOnce(&Here) -> R) -> Option<R> {
        MINE.try_with(|mine| body(&mine.rooms)).ok()
    }

    fn free() -> &'static Free {
        &ROOMS
    }
}

static LENT: Lent<Held> = Lent::new();

/// Room, if there is some just now; or who blocks waits for it.
#[inline(always)]
pub(crate) fn reserve(lease: &Lease, len: usize, block: bool) -> Result<Reservation<'_>, Error> {
    match lease.sender.try_reserve(len) {
        Ok(room) => Ok(room),
        Err(error) => refused(error, block, || lease.sender.reserve(len)),
    }
}

/// What blocks elsewhere only tries in a callback.
#[cold]
pub(crate) fn refused<'a>(
    error: SendError,
    block: bool,
    wait: impl FnOnce() -> Result<Reservation<'a>, SendError>,
) -> Result<Reservation<'a>, Error> {
    let passes = matches!(error, SendError::Full | SendError::Changing | SendError::NotStarted);
    match error {
        error if !block || !passes => Err(error.into()),
        _ if inside() => Err(would_deadlock()),
        _ => Ok(wait()?),
    }
}

/// As [`reserve`], for some members.
pub(crate) fn reserve_to<'a>(
    lease: &'a Lease,
    to: &[NodeId],
    len: usize,
    block: bool,
) -> Result<Reservation<'a>, Error> {
    match lease.sender.try_reserve_to(to, len) {
        Ok(room) => Ok(room),
        Err(error) => refused(error, block, || lease.sender.reserve_to(to, len)),
    }
}

/// Lends room in a group, for a message to all or to some members.
#[inline(always)]
pub(crate) fn lend(lease: Lease, to: Option<&[NodeId]>, len: usize, block: bool) -> Result<Room, Error> {
    let vacant = LENT
        .vacant()
        .ok_or(Error::fixed(&(Status::Busy, c"a million rooms are lent: send them, or cancel them")))?;
    let mut room = match to {
        None => reserve(&lease, len, block)?,
        Some(to) => reserve_to(&lease, to, len, block)?,
    };
    let (data, len) = (room.as_mut_ptr(), room.len());
    // SAFETY: only the lifetime changes. What it borrows is in the group's object, which doesn't move when the lease does, and which the
    // lease keeps; and the lease is dropped after it, wherever the two are dropped.
    let room = unsafe { std::mem::transmute::<Reservation<'_>, Reservation<'static>>(room) };
    Ok(Room { data, len, lent: vacant.fill(Held { room, _lease: lease }) })
}

/// Takes one back, for good: the struct that named it says nothing any more.
#[inline(always)]
pub(crate) fn take(room: &mut Room) -> Result<Held, Error> {
    let held = LENT.take(room.lent).ok_or(Error::fixed(&(
        Status::BadHandle,
        c"this room is not lent (any more): it was sent or cancelled; reserve another",
    )))?;
    *room = Room { data: std::ptr::null_mut(), len: 0, lent: 0 };
    Ok(held)
}

impl Held {
    /// The ticket's number.
    #[inline(always)]
    pub(crate) fn send(self) -> u64 {
        self.room.send().0.0
    }

    pub(crate) fn send_tracked(self) -> Outcome {
        self.room.send_tracked()
    }
}
