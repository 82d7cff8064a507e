//! Floors over TCP: what plain sockets do for processes that poll them.
//!
//! Each pair of processes has one connection. Sockets don't block; a process that finds nothing to do waits as the
//! strategy says (`block`: in poll(2)). No delay of small segments, and the `cubic` congestion control where the kernel
//! has it, because a pacing one (`bbr`) costs loopback much of what it can do.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use hdrhistogram::Histogram;
use rustix::event::{PollFd, PollFlags, poll};

use crate::bench::payload::{fill, sum};
use crate::bench::window::{Idler, Watch};
use crate::clock;
use crate::orders::{FloorReport, FloorTask, Said, Told};
use crate::parent::Parent;

/// An answer in the round trip, unless the message is shorter.
pub(super) const ANSWER: usize = 64;

/// Bytes that are written to a stream at a time: a thousand small messages, or one large one.
const WRITE_BYTES: usize = 64 << 10;

/// Writes that may be under way before the slowest stream has taken the first.
const WRITES: usize = 8;

/// Bytes read at a time.
const READ_BYTES: usize = 256 << 10;

/// A connection to each other process, by index; `None` for this one and for those with which nothing is to be done.
pub(super) struct Mesh {
    links: Vec<Option<TcpStream>>,
}

impl Mesh {
    /// Connects each pair of processes, with the parent as the one who tells addresses.
    pub(super) fn connect(task: &FloorTask, parent: &mut Parent) -> io::Result<Self> {
        let listener = TcpListener::bind((task.listen, 0))?;
        parent.say(&Said::Listening { address: listener.local_addr()? });
        let Some(Told::Peers { addresses }) = parent.told() else {
            return Err(io::Error::other("the parent told no addresses"));
        };
        let mut links: Vec<Option<TcpStream>> = addresses.iter().map(|_| None).collect();
        for (index, &address) in addresses.iter().enumerate().take(task.index) {
            links[index] = Some(dial(address, task.index)?);
        }
        for _ in task.index + 1..addresses.len() {
            let (mut link, _) = listener.accept()?;
            let mut who = [0];
            link.read_exact(&mut who)?;
            match links.get_mut(usize::from(who[0])) {
                Some(place @ None) => *place = Some(link),
                _ => return Err(io::Error::other("a stranger connected")),
            }
        }
        for link in links.iter().flatten() {
            link.set_nodelay(true)?;
            link.set_nonblocking(true)?;
            // Refused where the kernel doesn't have it or doesn't let us: then it is the system's own.
            let _ = rustix::net::sockopt::set_tcp_congestion(link, "cubic");
        }
        Ok(Self { links })
    }

    /// Tells the process `other` something, and hears as much from it, which says it at the same time.
    #[cfg_attr(not(feature = "verbs"), allow(dead_code))]
    pub(super) fn exchange(&self, other: usize, say: &[u8], hear: &mut [u8]) -> io::Result<()> {
        let mut link = self.links.get(other).and_then(Option::as_ref).ok_or(ErrorKind::NotConnected)?;
        link.set_nonblocking(false)?;
        link.write_all(say)?;
        link.read_exact(hear)?;
        link.set_nonblocking(true)
    }

    /// Sleeps until one of the links can be read, or, where `writes` says so, written.
    fn sleep(&self, writes: impl Fn(usize) -> bool) {
        let mut polled: Vec<PollFd<'_>> = self
            .links
            .iter()
            .enumerate()
            .filter_map(|(index, link)| {
                let interest = if writes(index) { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
                link.as_ref().map(|link| PollFd::new(link, interest))
            })
            .collect();
        // An interrupted sleep only costs another look.
        let _ = poll(&mut polled, None);
    }
}

fn dial(address: SocketAddr, me: usize) -> io::Result<TcpStream> {
    let mut link = TcpStream::connect(address)?;
    link.write_all(&[u8::try_from(me).map_err(io::Error::other)?])?;
    Ok(link)
}

/// Writes what the socket takes; 0 if it takes nothing now.
fn write_some(mut link: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    match link.write(bytes) {
        Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(0),
        written => written,
    }
}

/// Reads what is there; `Some(0)` if there is nothing now, `None` at the end.
fn read_some(mut link: &TcpStream, bytes: &mut [u8]) -> io::Result<Option<usize>> {
    match link.read(bytes) {
        Ok(0) => Ok(None),
        Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(Some(0)),
        read => read.map(Some),
    }
}

/// Process 0 sends a message to each, each reads it whole and answers; all answers are one round trip.
pub(super) fn round_trip(
    task: &FloorTask,
    mesh: &Mesh,
    start: u64,
    mut round_trips: Histogram<u64>,
) -> io::Result<FloorReport> {
    let mut idler = Idler::new(task.wait, task.crowded);
    let answer = task.size.min(ANSWER);
    let mut payload = vec![0; task.size];
    if task.index != 0 {
        let checksum = answer_all(task, mesh, &mut idler, &mut payload, answer)?;
        return Ok(FloorReport { checksum, ..FloorReport::default() });
    }
    let watch = Watch::<()>::new(start, task.window);
    let mut answers = vec![0; answer];
    let mut sent = vec![0; mesh.links.len()];
    let mut answered = vec![0; mesh.links.len()];
    let mut began = clock::now();
    let mut stamp = 0;
    while began < watch.end() {
        stamp += 1;
        fill(&mut payload, stamp);
        sent.fill(0);
        answered.fill(0);
        loop {
            let (mut busy, mut left) = (false, false);
            for (index, link) in mesh.links.iter().enumerate() {
                let Some(link) = link else { continue };
                if sent[index] < payload.len() {
                    let written = write_some(link, &payload[sent[index]..])?;
                    sent[index] += written;
                    busy |= written > 0;
                }
                if sent[index] == payload.len() && answered[index] < answer {
                    let rest = &mut answers[answered[index]..];
                    let read = read_some(link, rest)?.ok_or(ErrorKind::UnexpectedEof)?;
                    answered[index] += read;
                    busy |= read > 0;
                }
                left |= answered[index] < answer;
            }
            if !left {
                break;
            }
            if busy {
                idler.busy();
            } else {
                idler.idle(|| mesh.sleep(|index| sent[index] < payload.len()));
            }
        }
        let ended = clock::now();
        if watch.counts(began) {
            round_trips.saturating_record(ended - began);
        }
        began = ended;
    }
    Ok(super::round_trip_report(task, &round_trips))
}

fn answer_all(
    task: &FloorTask,
    mesh: &Mesh,
    idler: &mut Idler,
    payload: &mut [u8],
    answer: usize,
) -> io::Result<u64> {
    let root = mesh.links.first().and_then(Option::as_ref).ok_or(ErrorKind::NotConnected)?;
    let (mut have, mut checksum) = (0, 0_u64);
    loop {
        match read_some(root, &mut payload[have..])? {
            None => return Ok(checksum),
            Some(0) => idler.idle(|| mesh.sleep(|_| false)),
            Some(read) => {
                idler.busy();
                have += read;
                if have == task.size {
                    checksum = checksum.wrapping_add(sum(payload));
                    have = 0;
                    let mut written = 0;
                    while written < answer {
                        written += write_some(root, &payload[written..answer])?;
                    }
                }
            }
        }
    }
}

/// What a sender has under way: a few large pieces of messages, each written to all streams.
struct Outgoing {
    pieces: Vec<Vec<u8>>,
    messages_a_piece: u64,
    size: usize,
    /// Pieces filled.
    filled: u64,
    stamp: u64,
    /// By index of the process: pieces written whole, and bytes of the next.
    written: Vec<(u64, usize)>,
}

impl Outgoing {
    fn new(size: usize, processes: usize) -> Self {
        let messages = (WRITE_BYTES / size).max(1);
        Self {
            pieces: (0..WRITES).map(|_| vec![0; messages * size]).collect(),
            messages_a_piece: u64::try_from(messages).unwrap_or(1),
            size,
            filled: 0,
            stamp: 0,
            written: vec![(0, 0); processes],
        }
    }

    fn place(&self, piece: u64) -> usize {
        usize::try_from(piece).unwrap_or(0) % self.pieces.len()
    }

    /// Pieces that every stream has taken.
    fn taken(&self, mesh: &Mesh) -> u64 {
        let streams = mesh.links.iter().zip(&self.written).filter(|(link, _)| link.is_some());
        streams.map(|(_, (pieces, _))| *pieces).min().unwrap_or(self.filled)
    }

    /// Fills a piece if there is room, and writes what the streams take. Returns whether anything was done.
    fn turn(&mut self, mesh: &Mesh, more: bool) -> io::Result<bool> {
        let mut busy = false;
        if more && self.filled - self.taken(mesh) < self.pieces.len() as u64 {
            let (place, size) = (self.place(self.filled), self.size);
            for message in self.pieces[place].chunks_exact_mut(size) {
                fill(message, self.stamp);
                self.stamp += 1;
            }
            self.filled += 1;
            busy = true;
        }
        for (index, link) in mesh.links.iter().enumerate() {
            let Some(link) = link else { continue };
            let (pieces, bytes) = self.written[index];
            if pieces < self.filled {
                let piece = &self.pieces[self.place(pieces)];
                let written = write_some(link, &piece[bytes..])?;
                busy |= written > 0;
                let bytes = bytes + written;
                self.written[index] = if bytes == piece.len() { (pieces + 1, 0) } else { (pieces, bytes) };
            }
        }
        Ok(busy)
    }
}

/// Every sender streams messages to each other process, many in a write; all are read whole.
pub(super) fn streams(task: &FloorTask, mesh: &Mesh, start: u64) -> io::Result<Option<FloorReport>> {
    let mut idler = Idler::new(task.wait, task.crowded);
    let mut watch = Watch::new(start, task.window);
    let mut outgoing = (task.index < task.senders).then(|| Outgoing::new(task.size, task.processes));
    let mut open: Vec<bool> =
        mesh.links.iter().enumerate().map(|(index, link)| link.is_some() && index < task.senders).collect();
    let mut buffer = vec![0; READ_BYTES];
    let (mut read, mut checksum) = (0_u64, 0_u64);
    let size = u64::try_from(task.size).unwrap_or(1);
    let mut closed = false;
    loop {
        let now = clock::now();
        let mut busy = false;
        if let Some(outgoing) = &mut outgoing {
            watch.look(now, || read / size + outgoing.taken(mesh) * outgoing.messages_a_piece);
            if !closed {
                let more = now < watch.end();
                busy |= outgoing.turn(mesh, more)?;
                if !more && outgoing.taken(mesh) == outgoing.filled {
                    for link in mesh.links.iter().flatten() {
                        link.shutdown(std::net::Shutdown::Write)?;
                    }
                    closed = true;
                }
            }
        } else {
            watch.look(now, || read / size);
            closed = true;
        }
        for (link, open) in mesh.links.iter().zip(&mut open).filter(|(_, open)| **open) {
            let Some(link) = link else { continue };
            match read_some(link, &mut buffer)? {
                None => *open = false,
                Some(count) => {
                    checksum = checksum.wrapping_add(sum(&buffer[..count]));
                    read += u64::try_from(count).unwrap_or(0);
                    busy |= count > 0;
                }
            }
        }
        if closed && !open.contains(&true) {
            break;
        }
        if busy {
            idler.busy();
        } else {
            let waiting = |index: usize| outgoing.as_ref().is_some_and(|o| o.written[index].0 < o.filled);
            idler.idle(|| mesh.sleep(waiting));
        }
    }
    let total = read / size + outgoing.map_or(0, |o| o.filled * o.messages_a_piece);
    watch.look(clock::now(), || total);
    Ok(watch.taken().map(|(elapsed, first, last)| FloorReport {
        messages: last - first,
        elapsed,
        checksum,
        ..FloorReport::default()
    }))
}
