//! Peers that were handed this node's memory and are linked no more: who may still read it.
//!
//! A process that maps our memory maps it for as long as it lives, whatever we think of it. Only its end is known for sure.
//! What it can read are the files that it was handed, by their numbers ([`Layers`](super::layers::Layers)).

use std::time::Duration;

use super::process::Process;

/// Processes kept in sight. Of those beyond it is assumed that they live for ever.
const SIGHT_MAX: usize = 64;

/// All who may still read.
#[derive(Debug, Default)]
pub(super) struct Former {
    seen: Vec<(Process, u64)>,
    /// The newest file of those whose end can't be seen.
    unseen: Option<u64>,
}

impl Former {
    /// One more, who was handed the files up to number `newest`; `None` if it was handed nothing.
    pub(super) fn note(&mut self, process: Option<Process>, newest: Option<u64>) {
        let Some(newest) = newest else { return };
        self.forget_ended();
        match process {
            Some(process) if self.seen.len() < SIGHT_MAX => self.seen.push((process, newest)),
            _ => self.unseen = self.unseen.max(Some(newest)),
        }
    }

    /// Whether anybody may read files from number `oldest` on.
    pub(super) fn may_read(&mut self, oldest: u64) -> bool {
        self.forget_ended();
        self.unseen.is_some_and(|newest| newest >= oldest)
            || self.seen.iter().any(|(_, newest)| *newest >= oldest)
    }

    fn forget_ended(&mut self) {
        self.seen.retain(|(process, _)| !process.has_ended(Duration::ZERO));
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    fn somebody() -> (Child, Process) {
        let child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let process = Process::open(child.id().cast_signed()).unwrap();
        (child, process)
    }

    fn end(mut child: Child) {
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn who_has_ended_reads_no_more() {
        let mut former = Former::default();
        assert!(!former.may_read(0), "nobody was ever linked");
        let (first, process) = somebody();
        former.note(Some(process), Some(2));
        former.note(None, None);
        let (second, process) = somebody();
        former.note(Some(process), Some(1));
        assert_eq!([0, 1, 2, 3].map(|oldest| former.may_read(oldest)), [true, true, true, false]);
        end(first);
        assert_eq!([0, 1, 2].map(|oldest| former.may_read(oldest)), [true, true, false]);
        end(second);
        assert!(!former.may_read(0));
    }

    #[test]
    fn who_is_out_of_sight_lives_for_ever() {
        let mut former = Former::default();
        former.note(None, Some(1));
        former.note(None, Some(0));
        assert!(former.may_read(1) && !former.may_read(2));
        let own = || Process::open(std::process::id().cast_signed());
        for _ in 0..2 * SIGHT_MAX {
            former.note(own(), Some(3));
        }
        assert!(former.seen.len() == SIGHT_MAX && former.may_read(3) && !former.may_read(4));
    }
}
