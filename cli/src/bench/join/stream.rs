//! What the machine can do: as many bytes as the state has, over one bare TCP connection on the loopback interface, from
//! process to process, every byte read.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};

use crate::bench::conduct::stderr_line;
use crate::bench::payload::sum;
use crate::clock;
use crate::crew::Crew;
use crate::failure::Failure;
use crate::group;
use crate::orders::{SinkTask, Task};
use crate::parent::Parent;

/// Bytes that are written, or read, at a time.
const AT_ONCE: usize = 256 << 10;

fn refused(cause: std::io::Error) -> Failure {
    Failure::stream("use", "a connection on the loopback interface", cause)
}

/// Sends so many bytes. Returns the nanoseconds until the other process has read all of them.
///
/// # Errors
/// The machine refuses a process or a connection.
pub(super) fn measure(bytes: u64, log: &str) -> Result<u64, Failure> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(refused)?;
    let address = listener.local_addr().map_err(refused)?;
    let mut crew = Crew::new(stderr_line());
    crew.start("a bare reader", log, &Task::Sink(SinkTask { address, bytes }))?;
    let (mut connection, _) = listener.accept().map_err(refused)?;
    let block = vec![1; AT_ONCE];
    let mut left = bytes;
    let began = clock::now();
    while left > 0 {
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(AT_ONCE);
        connection.write_all(&block[..length]).map_err(refused)?;
        left -= u64::try_from(length).unwrap_or(left);
    }
    connection.read_exact(&mut [0]).map_err(refused)?;
    let took = clock::now() - began;
    crew.close(group::CLOSE_WITHIN)?;
    Ok(took)
}

/// The process that reads.
///
/// # Errors
/// The connection.
pub(crate) fn run(task: &SinkTask, parent: &mut Parent) -> Result<(), Failure> {
    let mut connection = connect(task.address)?;
    let (mut block, mut left, mut total) = (vec![0; AT_ONCE], task.bytes, 0_u64);
    while left > 0 {
        let length = connection.read(&mut block).map_err(refused)?;
        if length == 0 {
            return Err(refused(std::io::ErrorKind::UnexpectedEof.into()));
        }
        total = total.wrapping_add(sum(&block[..length]));
        left = left.saturating_sub(u64::try_from(length).unwrap_or(left));
    }
    std::hint::black_box(total);
    connection.write_all(&[1]).map_err(refused)?;
    parent.told();
    Ok(())
}

fn connect(address: SocketAddr) -> Result<TcpStream, Failure> {
    TcpStream::connect(address).map_err(refused)
}
