//! A member's line to its parent: the child's side of [`crate::orders`].

use std::io::{self, BufRead, Write};
use std::sync::mpsc::{Receiver, TryRecvError, channel};

use crate::clock;
use crate::failure::Failure;
use crate::orders::{Said, Told};

/// The line to the parent.
pub(crate) struct Parent {
    told: Receiver<Told>,
    /// An order that was found while looking for another.
    held: Option<Told>,
    /// It has told to close, or is gone.
    released: bool,
    /// When progress was last said, and how much it was.
    progress: (u64, u64),
}

/// Says something to the parent. A parent that can't be reached is gone, and so will this process be.
pub(crate) fn say(said: &Said) {
    if let Ok(mut line) = serde_json::to_string(said) {
        line.push('\n');
        let mut out = io::stdout().lock();
        let _ = out.write_all(line.as_bytes()).and_then(|()| out.flush());
    }
}

impl Parent {
    /// Listens to the parent from here on; the task must have been read.
    pub(crate) fn new() -> Self {
        let (tell, told) = channel();
        std::thread::spawn(move || {
            for line in io::stdin().lock().lines() {
                let Some(order) = line.ok().and_then(|line| serde_json::from_str(&line).ok()) else { break };
                if tell.send(order).is_err() {
                    return;
                }
            }
            let _ = tell.send(Told::Close);
        });
        Self { told, held: None, released: false, progress: (0, 0) }
    }

    /// Says something.
    #[allow(clippy::unused_self)] // whoever speaks has the line
    pub(crate) fn say(&mut self, said: &Said) {
        say(said);
    }

    /// Says how far this member is: at most ten times a second, and only if there is something new.
    pub(crate) fn progress(&mut self, delivered: u64) {
        let (at, last) = self.progress;
        if delivered == last {
            return;
        }
        let now = clock::now();
        if now - at >= 100_000_000 {
            self.progress = (now, delivered);
            self.say(&Said::Progress { delivered });
        }
    }

    /// Says what the task came to.
    ///
    /// # Errors
    /// The report has no JSON form.
    pub(crate) fn done<T: serde::Serialize>(&mut self, report: &T) -> Result<(), Failure> {
        let report = serde_json::to_value(report)
            .map_err(|e| Failure::lost(format!("a report can't be written: {e}"), "report this as a bug"))?;
        self.say(&Said::Done { report });
        Ok(())
    }

    /// The next order, if one is there. The order to close is not given out; see [`Parent::released`].
    pub(crate) fn try_told(&mut self) -> Option<Told> {
        if let Some(told) = self.held.take() {
            return Some(told);
        }
        match self.told.try_recv() {
            Ok(Told::Close) | Err(TryRecvError::Disconnected) => {
                self.released = true;
                None
            }
            Ok(told) => Some(told),
            Err(TryRecvError::Empty) => None,
        }
    }

    /// Waits for the next order; `None` is the order to close.
    pub(crate) fn told(&mut self) -> Option<Told> {
        if let Some(told) = self.held.take() {
            return Some(told);
        }
        match self.told.recv() {
            Ok(Told::Close) | Err(_) => {
                self.released = true;
                None
            }
            Ok(told) => Some(told),
        }
    }

    /// Whether nobody needs this member any more. Another order that it finds is kept for [`Parent::try_told`].
    pub(crate) fn released(&mut self) -> bool {
        if !self.released && self.held.is_none() {
            self.held = self.try_told();
        }
        self.released
    }
}
