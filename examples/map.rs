//! A replicated key-value map: updates in one order, with replies; queries that see every update that has completed anywhere; and what
//! remains when a member is lost.
//!
//! ```text
//! cargo run --example map
//! ```
#![allow(clippy::print_stdout, reason = "it shows something")]

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{self, Read};
use std::net::TcpListener;

use consort::NodeBuilder;
use consort::object::{Context, Replica, Snapshot, StateMachine};
use serde::{Deserialize, Serialize};

/// Not a `HashMap`: the states' digests are compared, and its order is another in each process.
#[derive(Default)]
struct Map(BTreeMap<String, String>);

#[derive(Serialize, Deserialize)]
enum Update {
    Put(String, String),
    /// Puts the last where the first is what is there.
    Swap(String, String, String),
    Remove(String),
}

impl StateMachine for Map {
    type Update = Update;
    /// What was there before.
    type Reply = Option<String>;

    fn apply(&mut self, _: &Context, update: Update) -> Option<String> {
        match update {
            Update::Put(key, value) => self.0.insert(key, value),
            Update::Swap(key, from, to) if self.0.get(&key) == Some(&from) => self.0.insert(key, to),
            Update::Swap(key, ..) => self.0.get(&key).cloned(),
            Update::Remove(key) => self.0.remove(&key),
        }
    }
    fn snapshot(&self) -> Snapshot {
        Snapshot::of(&self.0)
    }
    fn restore(&mut self, from: &mut dyn Read) -> io::Result<()> {
        self.0 = Snapshot::read(from)?;
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let listeners = (0..3).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<Vec<_>, _>>()?;
    let addresses = listeners.iter().map(TcpListener::local_addr).collect::<Result<Vec<_>, _>>()?;
    let start = |(id, listener)| {
        let others = (1..).zip(&addresses).filter(|(other, _)| *other != id);
        let node = NodeBuilder::new(id).listener(listener);
        Replica::start(others.fold(node, |node, (other, at)| node.peer(other, *at)), Map::default())
    };
    let mut maps = (1..).zip(listeners).map(start).collect::<Result<Vec<_>, _>>()?;
    let text = |text: &str| text.to_owned();

    maps[0].update(&Update::Put(text("colour"), text("red")))?;
    // Both want to change it from red; one comes first.
    let first = maps[1].submit(&Update::Swap(text("colour"), text("red"), text("green")))?;
    let second = maps[2].submit(&Update::Swap(text("colour"), text("red"), text("blue")))?;
    println!("two found {:?}, three found {:?}", first.wait()?, second.wait()?);

    drop(maps.pop()); // three is lost
    println!("one reads {:?}", maps[0].query(|map| map.0.get("colour").cloned())?);
    println!("two removes {:?}", maps[1].update(&Update::Remove(text("colour")))?);
    println!("one reads {:?}", maps[0].query(|map| map.0.get("colour").cloned())?);
    Ok(())
}
