//! A replicated counter in twenty lines. Three members, here in one process; elsewhere each is a process of its own.
//!
//! ```text
//! cargo run --example counter
//! ```
#![allow(clippy::print_stdout, reason = "it shows something")]

use std::error::Error;
use std::io::{self, Read};
use std::net::TcpListener;

use consort::NodeBuilder;
use consort::object::{Context, Replica, Snapshot, StateMachine};

#[derive(Default)]
struct Counter(u64);

impl StateMachine for Counter {
    type Update = u64;
    type Reply = u64;

    fn apply(&mut self, _: &Context, by: u64) -> u64 {
        self.0 += by;
        self.0
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
        Replica::start(others.fold(node, |node, (other, at)| node.peer(other, *at)), Counter::default())
    };
    let counters = (1..).zip(listeners).map(start).collect::<Result<Vec<_>, _>>()?;

    println!("one adds 5 and has {}", counters[0].update(&5)?);
    println!("two adds 2 and has {}", counters[1].update(&2)?);
    println!("three reads {}", counters[2].query(|counter| counter.0)?);
    Ok(())
}
