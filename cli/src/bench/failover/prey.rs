//! What the machine takes to tell of a death: a bare process, with as much memory as a member, is killed, and its
//! connection ends.

use std::io::Read as _;
use std::net::{Ipv4Addr, TcpListener, TcpStream};

use rustix::process::Signal;

use crate::bench::conduct::stderr_line;
use crate::clock;
use crate::crew::Crew;
use crate::failure::Failure;
use crate::orders::{PreyTask, Task};
use crate::parent::Parent;

/// Bytes of memory that are resident of a process; 0 where `/proc` doesn't tell.
pub(super) fn resident(process: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<usize>().ok());
    kilobytes.unwrap_or(0) * 1024
}

/// Kills a process with `memory` bytes. Returns the nanoseconds until its connection ended.
///
/// # Errors
/// The machine refuses a process or a connection.
pub(super) fn hunt(memory: usize, log: &str) -> Result<u64, Failure> {
    let refused = |cause| Failure::stream("make", "a connection on the loopback interface", cause);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(refused)?;
    let address = listener.local_addr().map_err(refused)?;
    let mut crew = Crew::new(stderr_line());
    let place = crew.start("a bare process", log, &Task::Prey(PreyTask { address, memory }))?;
    let (mut connection, _) = listener.accept().map_err(refused)?;
    let mut word = [0];
    connection.read_exact(&mut word).map_err(refused)?;
    let at = clock::now();
    crew.signal(place, Signal::KILL)?;
    // A reset is an end, too.
    let _ = connection.read(&mut word);
    Ok(clock::now() - at)
}

/// The process: takes its memory, connects, and waits.
///
/// # Errors
/// The connection.
pub(crate) fn run(task: &PreyTask, parent: &mut Parent) -> Result<(), Failure> {
    use std::io::Write as _;
    let memory = std::hint::black_box(vec![1_u8; task.memory]);
    let refused = |cause| Failure::stream("make", "a connection to the parent", cause);
    let mut connection = TcpStream::connect(task.address).map_err(refused)?;
    connection.write_all(&[1]).map_err(refused)?;
    parent.told();
    drop(memory);
    Ok(())
}
