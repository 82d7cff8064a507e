//! Leading member processes through a measurement: a common start, their reports, an end in order.

use std::io::{IsTerminal as _, Write as _};
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::figures;
use crate::clock;
use crate::crew::{Crew, ShowLine};
use crate::failure::Failure;
use crate::group;
use crate::orders::{self, Said, Told, Window};

/// Starts members together once all are ready, and hears what they report. Returns the reports, and the time of the
/// common start on the machine's clock. For all measurements but the floors.
///
/// # Errors
/// A member failed or died, or they came to no end.
pub(crate) fn conduct<T: DeserializeOwned>(
    mut crew: Crew,
    members: usize,
    window: Window,
) -> Result<(Vec<T>, u64), Failure> {
    let patience = Duration::from_nanos(window.warmup + window.measured) + Duration::from_secs(45);
    let mut ready = 0;
    let mut start = 0;
    let mut reports: Vec<Option<T>> = (0..members).map(|_| None).collect();
    while reports.iter().any(Option::is_none) {
        match crew.hear(patience)? {
            Some((_, Said::Ready)) => {
                ready += 1;
                if ready == members {
                    start = clock::now() + figures::LEAD;
                    crew.tell_all(&Told::Go { at: start })?;
                }
            }
            Some((index, Said::Done { report })) => {
                reports[index] = Some(orders::report(report)?);
            }
            Some(_) => {}
            None => {
                return Err(Failure::lost(
                    format!("the members were not done after {patience:?}"),
                    "with --wait spin give no more members than cores; else run it again with --log debug",
                ));
            }
        }
    }
    crew.close(group::CLOSE_WITHIN + Duration::from_secs(5))?;
    Ok((reports.into_iter().flatten().collect(), start))
}

/// What members log goes to standard error as it is.
pub(crate) fn stderr_line() -> ShowLine {
    Arc::new(|line| {
        // Nothing to be done if standard error is closed.
        let _ = writeln!(std::io::stderr(), "{line}");
    })
}

/// One line that says what is being measured, on a terminal.
pub(crate) struct Status {
    visible: bool,
    /// What the lines begin with: the part of a longer measurement.
    part: String,
}

impl Status {
    pub(crate) fn new() -> Self {
        Self { visible: std::io::stderr().is_terminal(), part: String::new() }
    }

    /// That of a part of the measurement.
    pub(crate) fn within(&self, part: &str) -> Self {
        Self { visible: self.visible, part: format!("{part}: ") }
    }

    pub(crate) fn show(&self, text: &str) {
        if self.visible {
            let _ = write!(std::io::stderr(), "\r\x1b[K{}{text}", self.part);
        }
    }

    pub(crate) fn clear(&self) {
        if self.visible {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}
