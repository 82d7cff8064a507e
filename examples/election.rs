//! An election: two stand for an office, one leads, and when it is lost the other does, by the view that is without it.
//!
//! ```text
//! cargo run --example election
//! ```
#![allow(clippy::print_stdout, reason = "it shows something")]

use std::error::Error;
use std::net::TcpListener;
use std::thread;

use consort::NodeBuilder;
use consort::coordination::{CoordinationError, Coordinator};

fn main() -> Result<(), Box<dyn Error>> {
    let listeners = (0..3).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<Vec<_>, _>>()?;
    let addresses = listeners.iter().map(TcpListener::local_addr).collect::<Result<Vec<_>, _>>()?;
    let start = |(id, listener)| {
        let others = (1..).zip(&addresses).filter(|(other, _)| *other != id);
        Coordinator::start(
            others.fold(NodeBuilder::new(id).listener(listener), |it, (other, at)| it.peer(other, *at)),
        )
    };
    let group = (1..).zip(listeners).map(start).collect::<Result<Vec<_>, _>>()?;

    let (leads, stands) = (&group[2], &group[1]);
    let office = leads.campaign("scheduler")?;
    let first = stands.next_leader("scheduler", None)?;
    println!("node {} leads, with {}", first.node, first.token);
    thread::scope(|scope| -> Result<(), CoordinationError> {
        let next = scope.spawn(|| stands.campaign("scheduler").map(|office| office.token()));
        leads.stop();
        let next = next.join().unwrap_or(Err(CoordinationError::Lost))?;
        println!("it is lost, and node 2 leads, with {next}");
        Ok(())
    })?;
    drop(office); // its token is over by now, and whatever it is shown to says so
    Ok(())
}
