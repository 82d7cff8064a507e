//! Room in a ring, lent to C: the reservation, and the group that it borrows from, in one place of [`LENT`].
#![allow(unsafe_code)]

use consort::{Outcome, Reservation};

use crate::error::{Error, Status};
use crate::layout::Room;
use crate::lent::{Free, Here, Lent, Loanable};
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

/// Lends what `reserve` finds in a group.
#[inline(always)]
pub(crate) fn lend(
    lease: Lease,
    reserve: impl FnOnce(&Lease) -> Result<Reservation<'_>, Error>,
) -> Result<Room, Error> {
    let vacant = LENT
        .vacant()
        .ok_or(Error::fixed(&(Status::Busy, c"a million rooms are lent: send them, or cancel them")))?;
    let mut room = reserve(&lease)?;
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
