//! The thread that has the memory of mirrors backed before it is needed, and gives it back when it no longer is (V10).
//!
//! A kernel that backs a mirror has to find its pages and to zero them, which takes it 20 ms and more where it has few large ones
//! at hand; and it takes a millisecond to give them back. The fabric's own thread delivers messages, to members that don't care who
//! comes or goes. So it only reserves the addresses. This thread, which gets what time others leave, touches the pages.
//! A page that a peer fills before its turn has come is backed then and there.

use std::sync::mpsc;

use consort_dataplane::memory::Segment;

use super::sys::{self, Pages};
use crate::signals::block_signals;

/// How little the thread matters beside others (nice value): what it does has time.
const PRIORITY: i32 = 19;

/// A way to the thread, which ends when the last of them is gone, the mirrors' own included.
#[derive(Debug)]
pub(super) struct Backing(mpsc::Sender<Job>);

enum Job {
    Back(Segment),
    GiveBack(Pages),
}

impl Backing {
    /// Starts the thread.
    ///
    /// # Errors
    /// The machine has no threads left.
    pub(super) fn start() -> std::io::Result<Self> {
        let (jobs, work) = mpsc::channel();
        std::thread::Builder::new().name("consort-memory".to_owned()).spawn(move || {
            block_signals();
            let _ = rustix::process::setpriority_process(None, PRIORITY); // or it takes its share
            for job in work {
                match job {
                    Job::Back(memory) => memory.prefault(0..memory.size()),
                    Job::GiveBack(pages) => drop(pages),
                }
            }
        })?;
        Ok(Self(jobs))
    }

    /// Zeroed memory for a mirror. Unless `prefault` is asked for, it is backed as it is touched.
    ///
    /// # Errors
    /// There is no room for it.
    pub(super) fn mirror(&self, bytes: usize, prefault: bool) -> std::io::Result<Segment> {
        let jobs = self.0.clone();
        let give_back = move |pages| {
            let _ = jobs.send(Job::GiveBack(pages)); // the thread is gone: dropped here
        };
        let memory = sys::lent_memory(bytes, Box::new(give_back))?;
        if prefault {
            let _ = self.0.send(Job::Back(memory.clone()));
        }
        Ok(memory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// V10: a mirror is there at once, all zero, and may be written to while it is backed; nothing that was written is lost.
    #[test]
    fn memory_can_be_used_while_it_is_backed() {
        let backing = Backing::start().unwrap();
        let mirrors: Vec<Segment> = (0..4).map(|_| backing.mirror(8 << 20, true).unwrap()).collect();
        for mirror in &mirrors {
            for page in (0..mirror.size()).step_by(4096) {
                assert_eq!(mirror.load(page), 0);
                mirror.store(page, page as u64 + 1);
            }
        }
        for mirror in &mirrors {
            assert!((0..mirror.size()).step_by(4096).all(|page| mirror.load(page) == page as u64 + 1));
        }
    }

    /// The thread ends with its last user, and memory outlives the fabric as long as somebody reads it.
    #[test]
    fn memory_outlives_the_fabric_it_is_of() {
        let backing = Backing::start().unwrap();
        let memory = backing.mirror(4096, true).unwrap();
        memory.store(8, 7);
        drop(backing);
        assert_eq!(memory.mirror().load(8), 7);
    }
}
