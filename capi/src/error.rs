//! What a call answers: a [`Status`], and for the thread that called a sentence that says what to do.

#![allow(missing_docs, reason = "consort.h says what each status means")]

use std::cell::Cell;
use std::ffi::{CStr, CString, c_char};
use std::fmt::Display;

use consort::object::{Halted, QueryError, ReplicaError, UpdateError};
use consort::{AskError, CloseError, OutcomeError, ReadPointError, SendError, StartError, Stopped};

/// `consort_status`, number by number. A number never changes its meaning.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(i32)]
pub enum Status {
    Ok = 0,
    TimedOut = 1,
    Full = 2,
    Changing = 3,
    NotStarted = 4,
    Invalid = 5,
    BadHandle = 6,
    Stopped = 7,
    Evicted = 8,
    NotMember = 9,
    TooLong = 10,
    Ended = 11,
    WouldDeadlock = 12,
    Config = 13,
    Machine = 14,
    Unknown = 15,
    Late = 16,
    Busy = 17,
    Refused = 18,
    Halted = 19,
    Unreached = 20,
    Forked = 21,
    Panicked = 22,
}

impl Status {
    /// All of them, in order.
    pub const ALL: [Self; 23] = [
        Self::Ok,
        Self::TimedOut,
        Self::Full,
        Self::Changing,
        Self::NotStarted,
        Self::Invalid,
        Self::BadHandle,
        Self::Stopped,
        Self::Evicted,
        Self::NotMember,
        Self::TooLong,
        Self::Ended,
        Self::WouldDeadlock,
        Self::Config,
        Self::Machine,
        Self::Unknown,
        Self::Late,
        Self::Busy,
        Self::Refused,
        Self::Halted,
        Self::Unreached,
        Self::Forked,
        Self::Panicked,
    ];

    /// Its constant's name in the header.
    pub fn name(self) -> &'static CStr {
        match self {
            Self::Ok => c"CONSORT_OK",
            Self::TimedOut => c"CONSORT_TIMED_OUT",
            Self::Full => c"CONSORT_FULL",
            Self::Changing => c"CONSORT_CHANGING",
            Self::NotStarted => c"CONSORT_NOT_STARTED",
            Self::Invalid => c"CONSORT_INVALID",
            Self::BadHandle => c"CONSORT_BAD_HANDLE",
            Self::Stopped => c"CONSORT_STOPPED",
            Self::Evicted => c"CONSORT_EVICTED",
            Self::NotMember => c"CONSORT_NOT_MEMBER",
            Self::TooLong => c"CONSORT_TOO_LONG",
            Self::Ended => c"CONSORT_ENDED",
            Self::WouldDeadlock => c"CONSORT_WOULD_DEADLOCK",
            Self::Config => c"CONSORT_CONFIG",
            Self::Machine => c"CONSORT_MACHINE",
            Self::Unknown => c"CONSORT_UNKNOWN",
            Self::Late => c"CONSORT_LATE",
            Self::Busy => c"CONSORT_BUSY",
            Self::Refused => c"CONSORT_REFUSED",
            Self::Halted => c"CONSORT_HALTED",
            Self::Unreached => c"CONSORT_UNREACHED",
            Self::Forked => c"CONSORT_FORKED",
            Self::Panicked => c"CONSORT_PANICKED",
        }
    }
}

/// Why a call did nothing, or not all. Two words, so that a result of a call goes in registers.
#[derive(Debug)]
pub(crate) enum Error {
    /// What happens in the course of things, so that it must cost nothing: a string that was there before.
    Fixed(&'static (Status, &'static CStr)),
    Made(Box<(Status, CString)>),
}

thread_local! {
    /// What this thread's last call that failed had to say.
    static LAST: Cell<Option<Error>> = const { Cell::new(None) };
}

impl Error {
    #[cold]
    pub(crate) fn new(status: Status, text: impl Display) -> Self {
        let text = text.to_string().replace('\0', "?");
        Self::Made(Box::new((status, CString::new(text).unwrap_or_default())))
    }

    /// One that costs nothing.
    pub(crate) const fn fixed(known: &'static (Status, &'static CStr)) -> Self {
        Self::Fixed(known)
    }

    pub(crate) fn status(&self) -> Status {
        match self {
            Self::Fixed(known) => known.0,
            Self::Made(made) => made.0,
        }
    }

    pub(crate) fn invalid(text: impl Display) -> Self {
        Self::new(Status::Invalid, text)
    }

    /// The sentence. Lives as long as this, wherever it goes.
    fn pointer(&self) -> *const c_char {
        match self {
            Self::Fixed(known) => known.1.as_ptr(),
            Self::Made(made) => made.1.as_ptr(),
        }
    }

    /// The sentence, for who isn't told by a return value.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Fixed(known) => known.1.to_string_lossy().into_owned(),
            Self::Made(made) => made.1.to_string_lossy().into_owned(),
        }
    }

    /// Keeps the sentence for [`last`]. Returns the number for the caller.
    pub(crate) fn tell(self) -> Status {
        let status = self.status();
        let _ = LAST.try_with(|last| last.set(Some(self))); // a thread that ends, in a destructor of its own, can't ask for it
        status
    }
}

/// The sentence of this thread's last failure. Dies with the next.
pub(crate) fn last() -> *const c_char {
    LAST.try_with(|last| {
        let error = last.take();
        let pointer = error.as_ref().map_or(c"".as_ptr(), Error::pointer);
        last.set(error);
        pointer
    })
    .unwrap_or(c"".as_ptr())
}

/// Nothing came in the time that was given.
pub(crate) const TIMED_OUT: Error =
    Error::fixed(&(Status::TimedOut, c"it is not there yet: call again, or give it more time"));

impl From<SendError> for Error {
    fn from(error: SendError) -> Self {
        match error {
            SendError::Full => Self::fixed(&(Status::Full, c"the ring is full: some member has not yet taken what was sent before; try again, or block")),
            SendError::NotStarted => {
                Self::fixed(&(Status::NotStarted, c"the group has not started: wait for the first view"))
            }
            SendError::Changing => {
                Self::fixed(&(Status::Changing, c"the view is changing: try again in a moment, or block"))
            }
            SendError::NotMember | SendError::NoSuchMember(_) => Self::new(Status::NotMember, error),
            SendError::NoDestination => Self::new(Status::Invalid, error),
            SendError::TooLong { .. } => Self::new(Status::TooLong, error),
            SendError::Ended => Self::new(Status::Ended, error),
            SendError::WouldDeadlock => Self::fixed(&(Status::WouldDeadlock, c"this thread would wait for itself, for it drives the node: use consort_try_reserve or consort_try_multicast, and go on polling")),
            SendError::Stopped(_) => Self::new(Status::Stopped, error),
            _ => Self::new(Status::Refused, error),
        }
    }
}

impl From<Stopped> for Error {
    fn from(reason: Stopped) -> Self {
        let status =
            if matches!(reason, Stopped::Evicted { .. }) { Status::Evicted } else { Status::Stopped };
        Self::new(status, format_args!("the node stopped: {reason}"))
    }
}

impl From<OutcomeError> for Error {
    fn from(error: OutcomeError) -> Self {
        let status = match error {
            OutcomeError::Moved | OutcomeError::NoDestination => Status::NotMember,
            _ => Status::Unknown,
        };
        Self::new(status, error)
    }
}

impl From<ReadPointError> for Error {
    fn from(error: ReadPointError) -> Self {
        let status = match error {
            ReadPointError::NotMember => Status::NotMember,
            ReadPointError::Stopped(_) => Status::Stopped,
            _ => Status::Refused,
        };
        Self::new(status, error)
    }
}

impl From<StartError> for Error {
    fn from(error: StartError) -> Self {
        let status = if matches!(error, StartError::Config(_)) { Status::Config } else { Status::Machine };
        Self::new(status, error)
    }
}

impl From<CloseError> for Error {
    fn from(error: CloseError) -> Self {
        let status = match error {
            CloseError::Late { .. } => Status::Late,
            CloseError::InUse => Status::Busy,
            _ => Status::Stopped,
        };
        Self::new(status, error)
    }
}

impl From<AskError> for Error {
    fn from(error: AskError) -> Self {
        let status = match error {
            AskError::Late { .. } => Status::TimedOut,
            AskError::Refused { .. } => Status::Refused,
            AskError::Random(_) => Status::Machine,
            _ => Status::Unreached,
        };
        Self::new(status, error)
    }
}

impl From<ReplicaError> for Error {
    fn from(error: ReplicaError) -> Self {
        match error {
            ReplicaError::Node(error) => error.into(),
            ReplicaError::Thread(_) => Self::new(Status::Machine, error),
            _ => Self::new(Status::Config, error),
        }
    }
}

fn halted(halted: &Halted) -> Status {
    if matches!(halted, Halted::Node(_)) { Status::Stopped } else { Status::Halted }
}

impl From<UpdateError> for Error {
    fn from(error: UpdateError) -> Self {
        let status = match &error {
            UpdateError::NotSent(cause) => return cause.clone().into(),
            UpdateError::Stopped(why) => halted(why),
            UpdateError::Unknown(_) | UpdateError::Evicted(_) | UpdateError::Moved => Status::Unknown,
            UpdateError::Within => Status::WouldDeadlock,
            _ => Status::Refused,
        };
        Self::new(status, error)
    }
}

impl From<QueryError> for Error {
    fn from(error: QueryError) -> Self {
        let status = match &error {
            QueryError::NoPoints(cause) => return cause.clone().into(),
            QueryError::Stopped(why) => halted(why),
            QueryError::Evicted(_) => Status::Evicted,
            QueryError::NotMember => Status::NotMember,
            QueryError::Within => Status::WouldDeadlock,
            _ => Status::Refused,
        };
        Self::new(status, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentence_lasts_until_the_next_failure_of_its_thread() {
        let text = || {
            LAST.with(|last| {
                let error = last.take();
                let text = error.as_ref().map(Error::text);
                last.set(error);
                text.unwrap_or_default()
            })
        };
        assert_eq!((text(), size_of::<Result<(), Error>>()), (String::new(), 2 * size_of::<usize>()));
        assert_eq!(Error::invalid("one\0two").tell(), Status::Invalid);
        assert_eq!(text(), "one?two");
        std::thread::spawn(|| assert_eq!(TIMED_OUT.tell(), Status::TimedOut)).join().unwrap();
        assert_eq!(text(), "one?two", "another thread's failure is its own");
        TIMED_OUT.tell();
        assert!(text().starts_with("it is not there yet"));
    }

    #[test]
    fn a_call_that_fails_in_a_destructor_of_a_thread_that_ends_says_so() {
        struct Late;
        impl Drop for Late {
            fn drop(&mut self) {
                assert_eq!(TIMED_OUT.tell(), Status::TimedOut);
                assert!(!last().is_null());
            }
        }
        thread_local! {
            static BEFORE: Late = const { Late };
            static AFTER: Late = const { Late };
        }
        // Destructors run in an order of the system's choice: one of the two runs when the sentence is gone.
        let thread = std::thread::spawn(|| {
            BEFORE.with(|_| ());
            TIMED_OUT.tell();
            AFTER.with(|_| ());
        });
        thread.join().unwrap();
    }

    #[test]
    fn numbers_are_places() {
        assert!((0..).zip(Status::ALL).all(|(number, status)| status as i32 == number));
    }
}
