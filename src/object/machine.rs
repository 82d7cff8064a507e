//! What a user writes: an object's state and what updates do to it.

use std::fmt;
use std::io::{self, Cursor, Read};

use serde::Serialize;

use super::value::Value;
use crate::{Incarnation, NodeId, Seq, View, ViewId};

/// An object that is replicated. Every member has one, begun in the same state, and what happens to it must follow from its state and
/// the arguments alone: no clock, no random numbers, no addresses, no order of a hash map, no `f64` that depends on the machine.
pub trait StateMachine: Send + Sync + 'static {
    /// What changes it: anything that serde can write, or [`Bytes`](super::Bytes).
    type Update: Value;
    /// What an update answers to who sent it. It travels where every member's is asked for
    /// ([`Replica::update_all`](super::Replica::update_all)), where they may differ.
    type Reply: Value + Send + 'static;

    /// Does an update, at every member in the same order.
    fn apply(&mut self, context: &Context, update: Self::Update) -> Self::Reply;

    /// The state, to be read later while updates go on: copy it, or share what doesn't change.
    ///
    /// It should have the same bytes at all members (see [`StateMachine::digest`]).
    fn snapshot(&self) -> Snapshot;

    /// Becomes what [`StateMachine::snapshot`] gave at another member.
    ///
    /// # Errors
    /// It can't be read, or is none: then the replica stops.
    fn restore(&mut self, from: &mut dyn Read) -> io::Result<()>;

    /// A number that is the same for the same state, and almost never for another: the other members' are compared with it. Taken of the
    /// snapshot's bytes if it isn't said otherwise, so these must not depend on anything but the state: take a `BTreeMap` rather than a
    /// `HashMap`, or write a digest of your own.
    ///
    /// # Errors
    /// The snapshot can't be read; it is compared the next time.
    fn digest(&self) -> io::Result<u64> {
        let mut hasher = blake3::Hasher::new();
        io::copy(&mut self.snapshot(), &mut hasher)?;
        let mut word = [0; 8];
        word.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        Ok(u64::from_le_bytes(word))
    }

    /// The members changed, after the last update of the view before and before the first of this one, at every member. Who was in
    /// the view before and isn't in this one is lost; a node that came again is there with another [`Incarnation`].
    fn view_changed(&mut self, _view: &View) {}
}

/// Of which update [`StateMachine::apply`] is called: the same at all members.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Context {
    /// The view in which it is delivered.
    pub view: ViewId,
    /// Its place in that view's order. Pairs of view and place grow with every update.
    pub seq: Seq,
    /// Who sent it,
    pub sender: NodeId,
    /// and in which of its lives.
    pub life: Incarnation,
    /// How many updates were applied before it since the group was founded.
    pub index: u64,
}

impl Context {
    /// As if update `index` came from that life of `sender`; for tests of objects.
    pub fn new((view, seq): (ViewId, Seq), (sender, life): (NodeId, Incarnation), index: u64) -> Self {
        Self { view, seq, sender, life, index }
    }
}

/// A state, as bytes to be read.
pub struct Snapshot(Box<dyn Read + Send>);

impl Snapshot {
    /// Of a value, in postcard's form. A value that has none gives a snapshot that fails when it is read.
    pub fn of(value: &impl Serialize) -> Self {
        match postcard::to_stdvec(value) {
            Ok(bytes) => Self::new(Cursor::new(bytes)),
            Err(why) => Self::new(Broken(Some(io::Error::new(io::ErrorKind::InvalidData, why)))),
        }
    }

    /// Of whatever `reader` yields, in a form of one's own.
    pub fn new(reader: impl Read + Send + 'static) -> Self {
        Self(Box::new(reader))
    }

    /// Reads what [`Snapshot::of`] wrote.
    ///
    /// # Errors
    /// It can't be read, or is something else.
    pub fn read<T: Value>(from: &mut dyn Read) -> io::Result<T> {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes)?;
        T::decode(&bytes).map_err(|why| io::Error::new(io::ErrorKind::InvalidData, why))
    }
}

impl Read for Snapshot {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Snapshot")
    }
}

/// Says why there is nothing to be read.
struct Broken(Option<io::Error>);

impl Read for Broken {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        self.0.take().map_or(Ok(0), Err)
    }
}
