//! What may come of one peer over the link to another (F6): whose bytes, to which part of its mirror, over which link. All else that
//! a peer relays is dropped (S1, S3).
//!
//! A frame names the origin by node *and* incarnation, since bytes of an earlier life may be under way still when the slot has
//! another link. What is not expected is dropped and not blamed on anyone: a member that was told late of a view relays what
//! nobody asks for any more, and does no wrong.

use std::ops::Range;

use consort_dataplane::memory::Segment;
use consort_dataplane::names::{MAX_NODES, Slot};

/// One incarnation of a node, as frames name it: the node, and 32 bits of what its offer is told apart by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Origin(pub(super) u64);

/// What this node expects. See the [module](self).
#[derive(Debug)]
pub(super) struct Relays {
    /// By slot: the origins that there are mirrors of.
    origins: Vec<Option<Known>>,
}

#[derive(Debug)]
struct Known {
    origin: Origin,
    /// The memory behind its mirror.
    memory: Segment,
    /// Where bytes may land, and over which link. Ranges don't overlap.
    allowed: Vec<(Range<usize>, Slot)>,
}

/// What is expected over one link.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expected<'a> {
    relays: &'a Relays,
    by: Slot,
}

impl Relays {
    /// Nothing is expected.
    pub(super) fn new() -> Self {
        Self { origins: (0..MAX_NODES).map(|_| None).collect() }
    }

    /// A link is there, and the memory behind the peer's mirror.
    pub(super) fn on_link(&mut self, slot: Slot, origin: Origin, memory: Segment) {
        self.on_fence(slot);
        self.origins[usize::from(slot.0)] = Some(Known { origin, memory, allowed: Vec::new() });
    }

    /// A peer is fenced: nothing of it is expected any more, nor anything over its link (F4).
    pub(super) fn on_fence(&mut self, slot: Slot) {
        for known in self.origins.iter_mut().flatten() {
            known.allowed.retain(|(_, by)| *by != slot);
        }
        if let Some(known) = self.origins.get_mut(usize::from(slot.0)) {
            *known = None;
        }
    }

    /// Replaces what is expected of a part of a mirror.
    pub(super) fn allow(&mut self, origin: Slot, range: Range<usize>, by: Option<Slot>) {
        let Some(known) = self.origins.get_mut(usize::from(origin.0)).and_then(Option::as_mut) else {
            return;
        };
        known.allowed.retain(|(other, _)| other.end <= range.start || range.end <= other.start);
        known.allowed.extend(by.map(|by| (range, by)));
    }

    /// What is expected over the link in `by`.
    pub(super) fn over(&self, by: Slot) -> Expected<'_> {
        Expected { relays: self, by }
    }
}

impl<'a> Expected<'a> {
    /// The memory in which those bytes of `origin` belong, if they are expected.
    pub(super) fn place(self, origin: Origin, range: &Range<usize>) -> Option<&'a Segment> {
        let known = self.relays.origins.iter().flatten().find(|known| known.origin == origin)?;
        let fits = |(allowed, by): &(Range<usize>, Slot)| {
            *by == self.by && allowed.start <= range.start && range.end <= allowed.end
        };
        known.allowed.iter().any(fits).then_some(&known.memory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_asked_for_has_a_place() {
        let mut relays = Relays::new();
        let (origin, by) = (Slot(1), Slot(2));
        relays.on_link(origin, Origin(7), Segment::private(1 << 16));
        relays.on_link(by, Origin(8), Segment::private(1 << 16));
        let has = |relays: &Relays, by: Slot, name: u64, range: Range<usize>| {
            relays.over(by).place(Origin(name), &range).is_some()
        };
        assert!(!has(&relays, by, 7, 4096..4104), "nothing was");
        relays.allow(origin, 4096..8192, Some(by));
        relays.allow(origin, 8192..12288, Some(by));
        assert!(has(&relays, by, 7, 4096..8192) && has(&relays, by, 7, 8184..8192));
        assert!(!has(&relays, by, 7, 8184..8200), "no publish covers two rings");
        assert!(!has(&relays, by, 7, 4088..4104) && !has(&relays, by, 7, 12280..12296));
        assert!(!has(&relays, origin, 7, 4096..4104), "over another link");
        assert!(!has(&relays, by, 8, 4096..4104) && !has(&relays, by, 9, 4096..4104), "of others");
        relays.allow(origin, 4096..8192, None);
        assert!(!has(&relays, by, 7, 4096..4104) && has(&relays, by, 7, 8192..8200));

        // F4: of the origin, and of the one that relays.
        relays.on_fence(by);
        assert!(!has(&relays, by, 7, 8192..8200));
        relays.allow(origin, 4096..8192, Some(by));
        relays.on_fence(origin);
        assert!(!has(&relays, by, 7, 4096..4104));
        relays.on_link(origin, Origin(9), Segment::private(1 << 16));
        assert!(
            !has(&relays, by, 9, 4096..4104),
            "what was said of an incarnation before isn't said of the next"
        );
    }
}
