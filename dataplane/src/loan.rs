//! Zero-copy delivery past the callback (D10): a [`Loan`] is a record that the application keeps while it lies in ring
//! memory. Dropping the loan, on any thread and in any order, lets the sender reuse the room once everything before
//! it is released too.
#![allow(unsafe_code)]

use std::fmt;
use std::ops::{Deref, Range};

use crate::memory::Mirror;
use crate::sync::{AtomicU8, Ordering};
use std::sync::Arc;

const FREE: u8 = 0;
const LENT: u8 = 1;
const RETURNED: u8 = 2;

/// How many loans of a session may be out at once. Whoever keeps more gets no further messages until some come back.
pub const MAX_LOANS: usize = if cfg!(miri) { 64 } else { 1 << 16 };

struct Shared {
    flags: Arc<[AtomicU8]>,
    /// Where every member's ring is, by rank; the loans' bytes stay mapped while a loan lives.
    rings: Vec<Mirror>,
}

/// A delivered message's payload, lent from ring memory; or a copy, where it never lay in this node's rings.
pub struct Loan(Bytes);

enum Bytes {
    Lent { shared: Arc<Shared>, flag: u32, rank: u8, range: Range<usize> },
    Copied(Box<[u8]>),
}

/// The engine's side: which loans are out.
pub(crate) struct Loans {
    shared: Arc<Shared>,
    /// Loans made and loans seen returned, in all.
    made: u64,
    back: u64,
}

impl Loans {
    pub(crate) fn new(rings: Vec<Mirror>) -> Self {
        let flags = (0..MAX_LOANS).map(|_| AtomicU8::new(FREE)).collect();
        Self { shared: Arc::new(Shared { flags, rings }), made: 0, back: 0 }
    }

    fn flag(&self, number: u64) -> &AtomicU8 {
        &self.shared.flags[number as usize % MAX_LOANS]
    }

    /// Lends `range` of a member's segment. `None` when too many loans are out.
    ///
    /// # Safety
    /// A `head` that covers the range was read, the range lies within that member's ring, and it is not
    /// released before [`Loans::returned`] says so.
    pub(crate) unsafe fn lend(&mut self, rank: u8, range: Range<usize>) -> Option<(Loan, u64)> {
        if self.made - self.back >= MAX_LOANS as u64 {
            return None;
        }
        let number = self.made;
        self.made += 1;
        self.flag(number).store(LENT, Ordering::Relaxed);
        let loan = Bytes::Lent {
            shared: self.shared.clone(),
            flag: u32::try_from(number as usize % MAX_LOANS).unwrap_or(0),
            rank,
            range,
        };
        Some((Loan(loan), number))
    }

    /// What is lent of `rank`'s ring from now on lies in `memory`; what is lent already stays where it is.
    pub(crate) fn move_ring(&mut self, rank: usize, memory: Mirror) {
        let mut rings = self.shared.rings.clone();
        rings[rank] = memory;
        self.shared = Arc::new(Shared { flags: self.shared.flags.clone(), rings });
    }

    /// Whether loan `number`, the oldest that is out, came back; asked once with the answer yes.
    pub(crate) fn returned(&mut self, number: u64) -> bool {
        let came = self.came_back(number);
        if came {
            self.flag(number).store(FREE, Ordering::Relaxed);
            self.back = number + 1;
        }
        came
    }

    /// Whether [`Loans::returned`] would say yes.
    pub(crate) fn came_back(&self, number: u64) -> bool {
        self.flag(number).load(Ordering::Acquire) == RETURNED // pairs with the Release in Loan::drop
    }
}

impl Loan {
    /// A copy of what lies elsewhere.
    pub(crate) fn copied(payload: &[u8]) -> Self {
        Self(Bytes::Copied(payload.into()))
    }

    /// Bytes of the message.
    pub fn payload(&self) -> &[u8] {
        match &self.0 {
            // SAFETY: `Loans::lend`'s caller vouched that the range holds a received record that isn't released before
            // this loan's flag is set, which is when it is dropped.
            Bytes::Lent { shared, rank, range, .. } => unsafe {
                shared.rings[usize::from(*rank)].bytes(range.clone())
            },
            Bytes::Copied(payload) => payload,
        }
    }
}

impl Deref for Loan {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.payload()
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        if let Bytes::Lent { shared, flag, .. } = &self.0 {
            // Release: this thread's reads of the payload come before the room's reuse.
            shared.flags[*flag as usize].store(RETURNED, Ordering::Release);
        }
    }
}

impl fmt::Debug for Loan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Loan({} bytes)", self.payload().len())
    }
}
