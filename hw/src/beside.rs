//! What fabrics have in common that can be parts of one ([`mixed`](crate::mixed)).

use std::ops::Range;
use std::os::fd::BorrowedFd;

use consort_dataplane::fabric::{FABRIC_PAGE, Fabric};
use consort_dataplane::memory::LINE;
use consort_dataplane::names::Time;

/// Parts of one fabric publish from one segment, so its first page, which is the fabric's, is divided: here lie the words of shared memory,
pub(crate) const SHM_WORDS: Range<usize> = 0..8 * LINE;

/// and here RDMA's.
#[cfg(feature = "verbs")]
pub(crate) const VERBS_WORDS: Range<usize> = SHM_WORDS.end..FABRIC_PAGE;

const _: () = assert!(SHM_WORDS.end <= FABRIC_PAGE);

/// Rouses the owner of a fabric out of its sleep, from any thread.
pub(crate) type Rouse = Box<dyn Fn() + Send + Sync>;

/// A fabric that can be watched while its owner sleeps over another one.
pub(crate) trait Far: Fabric + Send {
    /// Gets ready to be watched: from then until the next poll, [`Far::news`] can be read when anything comes. Returns until when, or `None`
    /// if there is something to do at once. May take a while, but not beyond `until`, nor much longer once `stop` says so: then it gives up, with `None`.
    fn lie_beside(&mut self, now: Time, until: Time, stop: &dyn Fn() -> bool) -> Option<Time>;

    /// [`Far::news`] could be read: to be told before the next poll.
    fn rise(&mut self);

    /// What to watch; none if the fabric was not made to be watched.
    fn news(&self) -> Option<BorrowedFd<'_>>;

    /// A part of the segment is other memory now.
    fn on_renewed(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
