//! The least that a consensus library needs to run over TCP, and as fast as that can be made simply.
//!
//! Every two members have one connection, without Nagle's delay and with the congestion control that Consort asks for, too
//! (pacing costs loopback much of its bandwidth). All messages of a turn for a member are gathered and go out in one
//! write. Nothing ever blocks: who has nothing to do yields, so that no message waits for a wake-up.
//!
//! On the wire: `length: u32, little-endian`, and as many bytes.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use socket2::SockRef;

/// The longest message that is taken from a peer.
const LONGEST: usize = 256 << 20;

/// How much one turn reads of one member, so that no member starves the others.
const BYTES_A_TURN: usize = 1 << 20;

/// How long the others may take to come.
const PATIENCE: Duration = Duration::from_secs(30);

/// One connection, with what waits to go out and what has come in.
pub(super) struct Link {
    stream: TcpStream,
    out: Vec<u8>,
    written: usize,
    /// What has come lies between `taken` and `filled`; the kernel writes behind it.
    inbox: Vec<u8>,
    taken: usize,
    filled: usize,
    /// The other has closed its end.
    closed: bool,
}

/// Connects all members with each other: `me` is the place of this one in `addresses`. Who comes later in the list connects.
/// Returns a link for each member and none for `me`.
pub(super) fn connect(
    listener: &TcpListener,
    addresses: &[SocketAddr],
    me: usize,
) -> io::Result<Vec<Option<Link>>> {
    let until = Instant::now() + PATIENCE;
    let mut links: Vec<Option<Link>> = addresses.iter().map(|_| None).collect();
    for (place, address) in addresses.iter().enumerate().take(me) {
        let mut stream = TcpStream::connect_timeout(address, PATIENCE)?;
        stream.write_all(&(me as u64).to_le_bytes())?;
        links[place] = Some(Link::new(stream)?);
    }
    listener.set_nonblocking(true)?;
    let mut missing = addresses.len() - me - 1;
    while missing > 0 {
        let mut stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => {
                if Instant::now() > until {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "the other members did not connect"));
                }
                std::thread::sleep(Duration::from_millis(1));
                continue;
            }
            Err(cause) => return Err(cause),
        };
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut place = [0; 8];
        stream.read_exact(&mut place)?;
        let place = usize::try_from(u64::from_le_bytes(place)).unwrap_or(usize::MAX);
        match links.get_mut(place) {
            Some(link @ None) if place > me => *link = Some(Link::new(stream)?),
            _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "somebody else connected")),
        }
        missing -= 1;
    }
    Ok(links)
}

impl Link {
    fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        // Not granted everywhere; what the machine does by itself is right, too, only slower.
        let _ = SockRef::from(&stream).set_tcp_congestion(b"cubic");
        Ok(Self {
            stream,
            out: Vec::new(),
            written: 0,
            inbox: vec![0; BYTES_A_TURN],
            taken: 0,
            filled: 0,
            closed: false,
        })
    }

    /// Puts a message with those that go out next; `encode` appends its bytes.
    pub(super) fn push(&mut self, encode: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) -> io::Result<()> {
        let start = self.out.len();
        self.out.extend([0; 4]);
        encode(&mut self.out)?;
        let length = u32::try_from(self.out.len() - start - 4);
        let length = length.map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "too long a message"))?;
        self.out[start..start + 4].copy_from_slice(&length.to_le_bytes());
        Ok(())
    }

    /// Bytes that wait to go out.
    pub(super) fn waiting(&self) -> usize {
        self.out.len() - self.written
    }

    /// Whether the other has closed its end.
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Writes what the kernel takes. Returns whether it took anything.
    pub(super) fn flush(&mut self) -> io::Result<bool> {
        let before = self.written;
        while self.written < self.out.len() && !self.closed {
            match self.stream.write(&self.out[self.written..]) {
                Ok(0) => self.closed = true,
                Ok(count) => self.written += count,
                Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => break,
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                Err(cause) if is_end(&cause) => self.closed = true,
                Err(cause) => return Err(cause),
            }
        }
        let wrote = self.written > before;
        if self.written == self.out.len() {
            self.out.clear();
            self.written = 0;
        } else if self.written > BYTES_A_TURN {
            self.out.drain(..self.written);
            self.written = 0;
        }
        Ok(wrote)
    }

    /// Reads what has come. Returns whether anything did.
    pub(super) fn fill(&mut self) -> io::Result<bool> {
        self.inbox.copy_within(self.taken..self.filled, 0);
        self.filled -= self.taken;
        self.taken = 0;
        if self.filled == self.inbox.len() {
            // A message longer than all that there was room for.
            self.inbox.resize(self.filled * 2, 0);
        }
        let before = self.filled;
        while self.filled < self.inbox.len() && !self.closed {
            let room = &mut self.inbox[self.filled..];
            let size = room.len();
            match self.stream.read(room) {
                Ok(0) => self.closed = true,
                Ok(count) => {
                    self.filled += count;
                    if count < size {
                        break; // the kernel has no more: one call less to hear that
                    }
                }
                Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => break,
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                Err(cause) if is_end(&cause) => self.closed = true,
                Err(cause) => return Err(cause),
            }
        }
        Ok(self.filled > before)
    }

    /// The next whole message that has come.
    pub(super) fn message(&mut self) -> io::Result<Option<&[u8]>> {
        let rest = &self.inbox[self.taken..self.filled];
        let Some((length, rest)) = rest.split_first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_le_bytes(*length) as usize;
        if length > LONGEST {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a message longer than any that is sent"));
        }
        let Some(message) = rest.get(..length) else { return Ok(None) };
        self.taken += 4 + length;
        Ok(Some(message))
    }
}

/// The other has ended, rather than that something went wrong here.
fn is_end(cause: &io::Error) -> bool {
    matches!(cause.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_all_lengths_arrive_whole_and_in_order() {
        let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let addresses = listeners.each_ref().map(|it| it.local_addr().unwrap());
        let [first, second] = listeners;
        let other = std::thread::spawn(move || {
            let mut link = connect(&second, &addresses, 1).unwrap().remove(0).unwrap();
            let mut lengths = Vec::new();
            while lengths.len() < 3 {
                link.fill().unwrap();
                while let Some(message) = link.message().unwrap() {
                    assert!(message.iter().all(|byte| *byte == 7));
                    lengths.push(message.len());
                }
                assert!(!link.is_closed());
            }
            lengths
        });
        let mut link = connect(&first, &addresses, 0).unwrap().remove(1).unwrap();
        for length in [0, 64, 3 << 20] {
            link.push(|out| {
                out.resize(out.len() + length, 7);
                Ok(())
            })
            .unwrap();
        }
        while link.waiting() > 0 {
            link.flush().unwrap();
        }
        assert_eq!(other.join().unwrap(), [0, 64, 3 << 20]);
    }
}
