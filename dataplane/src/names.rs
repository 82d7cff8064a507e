//! The vocabulary as types: what counts one thing can't be mistaken for what counts another.

use std::fmt;
use std::time::Duration;

/// The most nodes that one node's membership can hold: a [`PeerSet`] is one machine word.
pub const MAX_NODES: usize = 64;

/// A node's name within its cluster, chosen by the user; 0 is no node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct NodeId(pub u32);

/// A member's place in its view, from 0. The rank breaks ties in the order (D6).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rank(pub u8);

/// Where a node keeps its link to one peer, from 0: local to the node, never sent to anyone.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u8);

/// Number of a view; a later view has a greater number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ViewId(pub u64);

/// Logical (Lamport) time of a record (D4). Unwrapped: it never repeats within a session.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Round(pub u64);

/// A place in a sender's stream of records, in bytes since the session began; the ring holds it modulo its size.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Position(pub u64);

/// A message's place in its session's order, from 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Seq(pub u64);

/// Nanoseconds on the node's monotonic clock. The protocol never reads a clock: time is an argument.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time(pub u64);

impl ViewId {
    /// The number of the view after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl Time {
    /// This instant, `after` later; saturates at the end of time.
    pub fn plus(self, after: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(after.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// How long it has been since `earlier`; zero if `earlier` lies ahead.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

macro_rules! show {
    ($($name:ident $prefix:literal),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    )*};
}
show!(NodeId "n", Rank "k", Slot "slot", ViewId "v", Round "r", Position "@", Seq "#", Time "t");

/// A set of peers, by [`Slot`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct PeerSet(pub u64);

impl PeerSet {
    /// Nobody.
    pub const EMPTY: Self = Self(0);

    /// The set with `slot` in it too. A slot beyond [`MAX_NODES`] is not representable and is left out.
    #[must_use]
    pub const fn with(self, slot: Slot) -> Self {
        if (slot.0 as usize) < MAX_NODES { Self(self.0 | 1 << slot.0) } else { self }
    }

    /// The set with `slot` taken out.
    #[must_use]
    pub const fn without(self, slot: Slot) -> Self {
        if (slot.0 as usize) < MAX_NODES { Self(self.0 & !(1 << slot.0)) } else { self }
    }

    /// Whether `slot` is in it.
    pub const fn contains(self, slot: Slot) -> bool {
        (slot.0 as usize) < MAX_NODES && self.0 >> slot.0 & 1 == 1
    }

    /// Whether nobody is in it.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Its members in ascending order.
    pub fn iter(self) -> impl Iterator<Item = Slot> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            if rest == 0 {
                return None;
            }
            let slot = rest.trailing_zeros();
            rest &= rest - 1;
            u8::try_from(slot).ok().map(Slot)
        })
    }
}

/// A set of members of one session, by [`Rank`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct RankSet(pub u64);

impl RankSet {
    /// The set with `rank` in it too. A rank of [`MAX_NODES`] and more is none and is left out.
    #[must_use]
    pub const fn with(self, rank: Rank) -> Self {
        if (rank.0 as usize) < MAX_NODES { Self(self.0 | 1 << rank.0) } else { self }
    }

    /// Whether `rank` is in it.
    pub const fn contains(self, rank: Rank) -> bool {
        (rank.0 as usize) < MAX_NODES && self.0 >> rank.0 & 1 == 1
    }

    /// Whether nobody is in it.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl FromIterator<Rank> for RankSet {
    fn from_iter<I: IntoIterator<Item = Rank>>(ranks: I) -> Self {
        ranks.into_iter().fold(Self::default(), Self::with)
    }
}

impl FromIterator<Slot> for PeerSet {
    fn from_iter<I: IntoIterator<Item = Slot>>(slots: I) -> Self {
        slots.into_iter().fold(Self::EMPTY, Self::with)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_set_holds_every_slot_once() {
        let all: PeerSet = (0..64).map(Slot).collect();
        assert_eq!(all.iter().count(), MAX_NODES);
        assert_eq!(all.without(Slot(63)).without(Slot(0)).iter().next(), Some(Slot(1)));
        assert!(!all.contains(Slot(64)) && !PeerSet::EMPTY.contains(Slot(0)));
        assert_eq!(PeerSet::EMPTY.with(Slot(64)), PeerSet::EMPTY);
    }

    #[test]
    fn time_saturates() {
        assert_eq!(Time(u64::MAX - 1).plus(Duration::from_secs(1)), Time(u64::MAX));
        assert_eq!(Time(1).since(Time(2)), Duration::ZERO);
    }
}
