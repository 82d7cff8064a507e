//! The other end of [`crate::child::Talker`]: a process of a run, which hears and says lines of JSON.

use std::io::{BufRead as _, Write as _};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::failure::Failure;

const REMEDY: &str = "this part is started by the comparison itself";

/// What the process is told, on standard input.
pub(crate) struct Orders(std::io::Lines<std::io::StdinLock<'static>>);

impl Orders {
    /// Begins to listen. From here on the process ends with who started it.
    pub(crate) fn begin() -> Self {
        // Without whom there is nobody to measure for.
        let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
        Self(std::io::stdin().lock().lines())
    }

    /// The next order.
    ///
    /// # Errors
    /// There is none, or another than expected.
    pub(crate) fn next<T: DeserializeOwned>(&mut self) -> Result<T, Failure> {
        let line = self.0.next().unwrap_or_else(|| Err(std::io::ErrorKind::UnexpectedEof.into()));
        let order = line.and_then(|line| serde_json::from_str(&line).map_err(Into::into));
        order.map_err(|cause| Failure::io("hear what to do", cause, REMEDY))
    }
}

/// Says something, on standard output.
///
/// # Errors
/// Nobody listens.
pub(crate) fn say(what: &impl Serialize) -> Result<(), Failure> {
    let failed = |cause| Failure::io("say how it went", cause, REMEDY);
    let mut line = serde_json::to_string(what).map_err(|cause| failed(cause.into()))?;
    line.push('\n');
    let mut out = std::io::stdout().lock();
    out.write_all(line.as_bytes()).and_then(|()| out.flush()).map_err(failed)
}
