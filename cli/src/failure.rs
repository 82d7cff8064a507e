//! Why a command ends other than well: one enum, because each kind is an exit code that scripts may rely on.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done, and what was to be shown holds |
//! | 1 | the members' sequences differ, or are incomplete |
//! | 2 | the command line or the configuration makes no sense |
//! | 3 | a file or stream can't be read or written |
//! | 4 | the group did not start |
//! | 5 | the group ran and was stopped: nothing moved any more, or this member can't go on |
//! | 6 | the group went on without this member |
//! | 7 | this member can't reach a majority |
//! | 8 | the store's answer is no: the key isn't there, or has another version |
//! | 9 | a log is torn or damaged |
//!
//! Every failure carries a remedy: the next thing to do.

use std::io;
use std::path::Path;
use std::process::ExitCode;

/// The table above, for `--help`.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0  done, and what was to be shown holds
  1  the members' sequences differ, or are incomplete
  2  the command line or the configuration makes no sense
  3  a file or stream can't be read or written
  4  the group did not start
  5  the group ran and was stopped: nothing moved any more, or this member can't go on
  6  the group went on without this member, which was taken for gone
  7  this member can't reach a majority of its view
  8  the store's answer is no: the key isn't there, or has another version
  9  a log is torn or damaged";

/// Why the command failed. The number of the kind is the process's exit code.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum Failure {
    /// What the command is there to show does not hold.
    #[error("{message}")]
    Disagreement { message: String, remedy: String },
    /// The user asked for something that makes no sense.
    #[error("{message}")]
    Usage { message: String, remedy: String },
    /// A file or stream.
    #[error("can't {doing} {what}: {cause}")]
    File { doing: &'static str, what: String, cause: io::Error, remedy: String },
    /// The group did not come together.
    #[error("{message}")]
    Start { message: String, remedy: String },
    /// The group was there and is no more.
    #[error("{message}")]
    Lost { message: String, remedy: String },
    /// The group is there, and this member is no part of it any more.
    #[error("{message}")]
    Evicted { message: String, remedy: String },
    /// Too few of the group can be reached for it to go on from here.
    #[error("{message}")]
    NoQuorum { message: String, remedy: String },
    /// The store has no such key, or another version of it than was expected.
    #[error("{message}")]
    NotSo { message: String, remedy: String },
    /// A log is not as it was written, or not to its end.
    #[error("{message}")]
    Unsound { message: String, remedy: String },
}

impl Failure {
    pub(crate) fn disagreement(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Disagreement { message: message.into(), remedy: remedy.into() }
    }

    pub(crate) fn usage(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Usage { message: message.into(), remedy: remedy.into() }
    }

    pub(crate) fn start(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Start { message: message.into(), remedy: remedy.into() }
    }

    /// RDMA was asked for in a build without it.
    #[cfg(not(feature = "verbs"))]
    pub(crate) fn no_verbs() -> Self {
        Self::start(
            "this build has no verbs",
            "build with `--features verbs`, which takes libibverbs-dev, librdmacm-dev and libclang-dev, or take tcp",
        )
    }

    pub(crate) fn lost(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Lost { message: message.into(), remedy: remedy.into() }
    }

    pub(crate) fn evicted(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Evicted { message: message.into(), remedy: remedy.into() }
    }

    pub(crate) fn no_quorum(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::NoQuorum { message: message.into(), remedy: remedy.into() }
    }

    pub(crate) fn not_so(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::NotSo { message: message.into(), remedy: remedy.into() }
    }

    pub(crate) fn unsound(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Unsound { message: message.into(), remedy: remedy.into() }
    }

    /// A file that could not be opened, read or written; the remedy follows from the cause.
    pub(crate) fn file(doing: &'static str, path: &Path, cause: io::Error) -> Self {
        Self::stream(doing, path.display().to_string(), cause)
    }

    /// The same for what has a name but no path (standard output, a pipe).
    pub(crate) fn stream(doing: &'static str, what: impl Into<String>, cause: io::Error) -> Self {
        let remedy = match cause.kind() {
            io::ErrorKind::NotFound => "check the path; relative paths start from the current directory",
            io::ErrorKind::PermissionDenied => "check the permissions of the file and of its directories",
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                "free some space, or give another directory with --out"
            }
            io::ErrorKind::BrokenPipe => "the reader at the other end went away: keep it open until the end",
            io::ErrorKind::AlreadyExists => "move it out of the way, or name another",
            _ => "see the system's reason above",
        };
        Self::File { doing, what: what.into(), cause, remedy: remedy.to_string() }
    }

    /// What to do next.
    pub(crate) fn remedy(&self) -> &str {
        match self {
            Self::Disagreement { remedy, .. }
            | Self::Usage { remedy, .. }
            | Self::File { remedy, .. }
            | Self::Start { remedy, .. }
            | Self::Lost { remedy, .. }
            | Self::Evicted { remedy, .. }
            | Self::NoQuorum { remedy, .. }
            | Self::NotSo { remedy, .. }
            | Self::Unsound { remedy, .. } => remedy,
        }
    }

    /// The exit code of this kind.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Disagreement { .. } => 1,
            Self::Usage { .. } => 2,
            Self::File { .. } => 3,
            Self::Start { .. } => 4,
            Self::Lost { .. } => 5,
            Self::Evicted { .. } => 6,
            Self::NoQuorum { .. } => 7,
            Self::NotSo { .. } => 8,
            Self::Unsound { .. } => 9,
        }
    }

    /// The kind that a member process's exit code stands for, with what it said: a member's failure is its parent's.
    pub(crate) fn from_code(code: u8, message: String, remedy: String) -> Self {
        match code {
            1 => Self::Disagreement { message, remedy },
            2 => Self::Usage { message, remedy },
            3 => Self::File { doing: "go on:", what: message, cause: io::Error::other("see above"), remedy },
            4 => Self::Start { message, remedy },
            6 => Self::Evicted { message, remedy },
            7 => Self::NoQuorum { message, remedy },
            8 => Self::NotSo { message, remedy },
            9 => Self::Unsound { message, remedy },
            _ => Self::Lost { message, remedy },
        }
    }
}

impl From<&Failure> for ExitCode {
    fn from(failure: &Failure) -> Self {
        Self::from(failure.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_the_code_that_help_promises() {
        let all = [
            Failure::disagreement("m", "r"),
            Failure::usage("m", "r"),
            Failure::file("read", Path::new("/x"), io::ErrorKind::NotFound.into()),
            Failure::start("m", "r"),
            Failure::lost("m", "r"),
            Failure::evicted("m", "r"),
            Failure::no_quorum("m", "r"),
            Failure::not_so("m", "r"),
            Failure::unsound("m", "r"),
        ];
        for (index, failure) in all.iter().enumerate() {
            let code = u8::try_from(index).unwrap() + 1;
            assert_eq!(failure.code(), code);
            assert!(EXIT_CODES.contains(&format!("\n  {code}  ")));
            assert!(!failure.remedy().is_empty());
            let told = Failure::from_code(code, failure.to_string(), failure.remedy().to_string());
            assert_eq!(told.code(), code, "a member's failure keeps its kind on the way to the parent");
            assert!(told.to_string().contains(&failure.to_string()));
        }
    }
}
