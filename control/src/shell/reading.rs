//! The driver's side of read points and digests ([`points`](super::points)): wants them of sessions, tells the application.

use std::collections::VecDeque;

use consort_dataplane::names::NodeId;
use consort_dataplane::session::{Session, Verdict};

use super::event::Incoming;
use super::points::{Asked, ReadPoint};

/// What was asked for, and what became of it.
#[derive(Default)]
pub(crate) struct Reading {
    /// What was asked for, as the last turn saw it.
    seen: (u64, u64),
    /// The greatest point that is due, and that the application was told.
    due: u64,
    told: u64,
    digests: VecDeque<(NodeId, u64)>,
    #[cfg(test)]
    pub(super) is_hasty: bool,
}

impl Reading {
    /// There is another session, of which nothing was wanted yet.
    pub(crate) fn renew(&mut self) {
        self.seen = (u64::MAX, u64::MAX);
    }

    /// Wants of the newest session what was asked for since.
    #[inline]
    pub(crate) fn want(&mut self, asked: &Asked, newest: Option<&mut Session>) {
        let asked = asked.load();
        if asked == self.seen {
            return;
        }
        self.seen = asked;
        let (points, digest) = asked;
        #[cfg(test)]
        if self.is_hasty {
            self.due = points;
        }
        if let Some(session) = newest {
            if points > self.due {
                session.want_read_point(points);
            }
            session.publish_digest(digest);
        }
    }

    /// Whether something was asked for since.
    pub(crate) fn has_work(&self, asked: &Asked) -> bool {
        asked.load() != self.seen
    }

    /// Tells the application what a session has found out, after what it delivered. Returns whether there was anything.
    #[inline]
    pub(crate) fn tell(
        &mut self,
        session: &mut Session,
        app: &mut dyn FnMut(Incoming<'_, '_>) -> Verdict,
        refused: &mut bool,
    ) -> bool {
        if !session.has_read_news() && self.due == self.told && self.digests.is_empty() {
            return false;
        }
        let mut any = false;
        while let Some(changed) = session.poll_digest() {
            self.digests.push_back(changed);
        }
        if let Some(due) = session.poll_read_point() {
            self.due = self.due.max(due);
        }
        if self.due > self.told && !*refused {
            match app(Incoming::ReadPoint(ReadPoint(self.due))) {
                Verdict::Taken => (self.told, any) = (self.due, true),
                Verdict::Later => *refused = true,
            }
        }
        while let Some(&(node, digest)) = self.digests.front().filter(|_| !*refused) {
            match app(Incoming::Digest(node, digest)) {
                Verdict::Taken => any = self.digests.pop_front().is_some(),
                Verdict::Later => *refused = true,
            }
        }
        any
    }
}
