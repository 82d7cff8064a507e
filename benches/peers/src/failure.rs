//! Why this command, or one peer's run, ends other than well.

use std::io;
use std::path::Path;
use std::process::ExitCode;

/// The kind says the exit code; each carries what to do next.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The user asked for something that makes no sense.
    #[error("{message}")]
    Usage { message: String, remedy: String },
    /// A file, a stream, or a program that can't be started.
    #[error("can't {doing}: {cause}")]
    Io { doing: String, cause: io::Error, remedy: String },
    /// A peer, or Consort, did not do what was measured.
    #[error("{message}")]
    Run { message: String, remedy: String },
}

impl Failure {
    pub(crate) fn usage(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Usage { message: message.into(), remedy: remedy.into() }
    }

    pub(crate) fn run(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Run { message: message.into(), remedy: remedy.into() }
    }

    pub(crate) fn io(doing: impl Into<String>, cause: io::Error, remedy: impl Into<String>) -> Self {
        Self::Io { doing: doing.into(), cause, remedy: remedy.into() }
    }

    /// Of a file.
    pub(crate) fn file(doing: &str, path: &Path, cause: io::Error) -> Self {
        Self::io(format!("{doing} {}", path.display()), cause, "see that the path is right and may be used")
    }

    /// Of a socket on this machine.
    pub(crate) fn socket(doing: &str, cause: io::Error) -> Self {
        Self::io(doing, cause, "see that loopback is up and that ports and memory are left")
    }

    /// What must not happen.
    pub(crate) fn bug(what: impl Into<String>) -> Self {
        Self::run(what, "report this as a bug of the comparison")
    }

    /// What to do next.
    pub(crate) fn remedy(&self) -> &str {
        match self {
            Self::Usage { remedy, .. } | Self::Io { remedy, .. } | Self::Run { remedy, .. } => remedy,
        }
    }

    pub(crate) fn code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Run { .. } => 1,
            Self::Usage { .. } => 2,
            Self::Io { .. } => 3,
        })
    }
}
