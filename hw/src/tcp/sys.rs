//! The kernel as this fabric uses it: sockets and the few calls that take addresses.
//!
//! One of the modules in which `unsafe` is allowed (S2): for bytes of segments, whose contracts say when they may be
//! read, and for gathering and scattering calls. Everything else goes through `rustix`, which is safe.
#![allow(unsafe_code)]

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

use consort_dataplane::memory::Segment;
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};

use super::counts::Counts;
use super::engine::Sends;
use super::incoming::Room;
use super::options::TcpOptions;
use super::outgoing::Outgoing;
use super::parts::Parts;

const PAGE: usize = 4096;

/// Connections that the kernel keeps for us until they are accepted.
const BACKLOG: i32 = 128;

/// Receives what has come, into the mirror and then the stage. Does not block.
pub(super) fn receive(socket: BorrowedFd<'_>, room: &mut Room<'_>) -> io::Result<usize> {
    if room.direct.is_empty() {
        return Ok(rustix::net::recv(socket, &mut *room.stage, RecvFlags::DONTWAIT)?.1);
    }
    assert!(room.direct.end <= room.mirror.size(), "receiving behind the end of a mirror");
    let mut parts = [
        libc::iovec {
            iov_base: room.mirror.as_ptr().wrapping_add(room.direct.start).cast(),
            iov_len: room.direct.len(),
        },
        libc::iovec { iov_base: room.stage.as_mut_ptr().cast(), iov_len: room.stage.len() },
    ];
    let mut message = message(&mut parts);
    // SAFETY: the first part lies inside the mirror (asserted), which nobody else writes and whose bytes there no word
    // vouches for yet; the second is exclusively borrowed. The call keeps no address.
    let got = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
    usize::try_from(got).map_err(|_| io::Error::last_os_error())
}

/// Gathers and sends one job. Does not block. Returns the bytes taken, or the negative error number.
pub(super) fn send(sends: &mut Sends<'_>, job: usize) -> i32 {
    let socket = sends.jobs()[job].socket;
    let message = message(sends.parts(job));
    // SAFETY: the parts are readable and unchanged while `sends` lives (its invariant); the call keeps no address.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, SEND_FLAGS) };
    // A socket takes less than 2 GiB at once, so a length fits.
    i32::try_from(sent).ok().filter(|sent| *sent >= 0).unwrap_or_else(|| -errno())
}

/// Sends jobs one by one, by a call for each.
pub(super) fn send_each(sends: &mut Sends<'_>, counts: &mut Counts) {
    for job in 0..sends.jobs().len() {
        counts.called();
        sends.jobs()[job].result.taken = send(sends, job);
    }
}

/// Sends all that the batch of `outgoing` has left, on one link. Does not block. Returns the bytes taken, or the negative
/// error number. `parts` is memory to use.
pub(super) fn send_one(
    socket: BorrowedFd<'_>,
    outgoing: &Outgoing,
    segment: &Segment,
    parts: &mut Parts,
) -> i32 {
    if let Some(bytes) = outgoing.as_one() {
        let sent = rustix::net::send(socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        return sent
            .map_or_else(|error| -error.raw_os_error(), |sent| i32::try_from(sent).unwrap_or(i32::MAX));
    }
    parts.0.clear();
    outgoing.slices(segment, &mut parts.0);
    let message = message(&mut parts.0);
    // SAFETY: the parts are as in `Sends`: headers and words, which the borrow keeps as they are, and published ring
    // bytes, which nobody changes before the peer has released them. The call keeps no address.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, SEND_FLAGS) };
    i32::try_from(sent).ok().filter(|sent| *sent >= 0).unwrap_or_else(|| -errno())
}

/// Headers of messages: a list like [`Parts`].
#[derive(Default)]
pub(super) struct Messages(pub(super) Vec<libc::msghdr>);

// SAFETY: what is sent to another thread between calls are addresses that are not looked at again: `Uring::send`
// clears them first.
unsafe impl Send for Messages {}

/// How everything is sent: at once or not at all, and a dead peer is an error, not a signal.
pub(super) const SEND_FLAGS: i32 = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;

fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

/// A message that gathers or scatters `parts`.
pub(super) fn message(parts: &mut [libc::iovec]) -> libc::msghdr {
    // SAFETY: a message header of zeros is a valid one: no name, no parts, no control data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = parts.as_mut_ptr();
    message.msg_iovlen = parts.len() as _;
    message
}

/// Sends bytes of setting up, where a short send is an error: they are few and come first on their connection.
pub(crate) fn send_all(socket: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<()> {
    let sent = rustix::net::send(socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?;
    if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Receives bytes of setting up. Does not block.
pub(crate) fn receive_some(socket: BorrowedFd<'_>, bytes: &mut [u8]) -> io::Result<usize> {
    Ok(rustix::net::recv(socket, bytes, RecvFlags::DONTWAIT)?.1)
}

/// A listener on `address` and a port of the kernel's choice, and where it listens.
pub(crate) fn listen(address: IpAddr) -> io::Result<(OwnedFd, SocketAddr)> {
    let socket = socket(address)?;
    rustix::net::bind(&socket, &SocketAddr::new(address, 0))?;
    rustix::net::listen(&socket, BACKLOG)?;
    let bound = SocketAddr::try_from(rustix::net::getsockname(&socket)?)?;
    Ok((socket, bound))
}

/// The next connection of `listener`, if there is one.
pub(crate) fn accept(listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    Ok(rustix::net::accept_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC)?)
}

/// Begins to connect to `to`, from the address `from` where it is given and of the same family.
pub(crate) fn dial(to: SocketAddr, from: Option<IpAddr>) -> io::Result<OwnedFd> {
    let socket = socket(to.ip())?;
    if let Some(from) = from.filter(|from| from.is_ipv4() == to.is_ipv4()) {
        rustix::net::bind(&socket, &SocketAddr::new(from, 0))?;
    }
    match rustix::net::connect(&socket, &to) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(e) => Err(e.into()),
    }
}

fn socket(address: IpAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    Ok(rustix::net::socket_with(family, SocketType::STREAM, flags, Some(rustix::net::ipproto::TCP))?)
}

/// Sets a connection up for what a link is: small frames at once, a dead machine noticed.
pub(super) fn tune(socket: BorrowedFd<'_>, options: &TcpOptions) -> io::Result<()> {
    sockopt::set_tcp_nodelay(socket, true)?;
    keep_alive(socket, options.unanswered)?;
    if let Some(bytes) = options.socket_buffer {
        sockopt::set_socket_send_buffer_size(socket, bytes)?;
        sockopt::set_socket_recv_buffer_size(socket, bytes)?;
    }
    if let Some(congestion) = &options.congestion
        && let Err(cause) = sockopt::set_tcp_congestion(socket, congestion)
    {
        tracing::debug!(%congestion, %cause, "the congestion control asked for is not granted");
    }
    Ok(())
}

/// Has the kernel ask an idle peer's machine whether it is there.
pub(crate) fn keep_alive(socket: BorrowedFd<'_>, unanswered: Duration) -> io::Result<()> {
    // An idle peer is asked after half the time, and given the other half to answer. What is unacknowledged is watched
    // by `Link::unanswered`: TCP_USER_TIMEOUT would also kill the link of a member that is merely stopped or slow, once
    // its window has been closed for so long, though its machine answers every probe.
    let half = (unanswered / 2).max(Duration::from_secs(1));
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, half)?;
    sockopt::set_tcp_keepintvl(socket, Duration::from_secs(1))?;
    sockopt::set_tcp_keepcnt(socket, u32::try_from(half.as_secs()).unwrap_or(1).clamp(1, 100))?;
    Ok(())
}

/// Gives the calling thread a table of descriptors of its own, in which is nothing but `kept`. Returns what these are there: the
/// same numbers, to be used by this thread alone. Those of the table that it leaves are as they were.
pub(super) fn part_descriptors(kept: [BorrowedFd<'_>; 2]) -> io::Result<[OwnedFd; 2]> {
    let numbers = kept.map(|kept| kept.as_raw_fd());
    let mut borders = numbers.map(i32::unsigned_abs);
    borders.sort_unstable();
    let [low, high] = borders;
    for (first, last) in [(0, low.wrapping_sub(1)), (low + 1, high.wrapping_sub(1)), (high + 1, u32::MAX)] {
        if first > last || last == u32::MAX && first == 0 {
            continue; // nothing in between
        }
        // SAFETY: the first such call makes the table this thread's own, or fails and closes nothing; so it is only there that
        // descriptors are closed, where nobody else uses them, and this thread's caller uses none but those returned.
        let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, libc::CLOSE_RANGE_UNSHARE) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: they are open in this thread's table, and nobody else has that.
    Ok(numbers.map(|number| unsafe { OwnedFd::from_raw_fd(number) }))
}

/// Whether a descriptor has none of the numbers of the standard streams.
pub(super) fn is_behind_the_streams(descriptor: &OwnedFd) -> bool {
    descriptor.as_raw_fd() > libc::STDERR_FILENO
}

/// Ends a connection at once and for good: nothing more is sent or received, the peer sees a reset.
pub(super) fn abort(socket: BorrowedFd<'_>) {
    // Not by closing: whoever else holds the file (a poll of io_uring does) would keep the connection up.
    if rustix::net::connect_unspec(socket).is_err() {
        end(socket);
    }
}

/// Ends a connection in order: what was sent goes out, then the end.
pub(super) fn end(socket: BorrowedFd<'_>) {
    // It fails only where the connection is gone already, which is as well.
    let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Both);
}

/// No more is sent; the peer's part stays open.
pub(crate) fn end_sending(socket: BorrowedFd<'_>) {
    let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Write); // as above
}

/// How the kernel's part of a connection stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standing {
    /// Segments sent and not acknowledged.
    pub(super) unacknowledged: u32,
    /// Probes of a closed window without an answer.
    pub(super) probes: u8,
    /// Since the last acknowledgement came.
    pub(super) last_answer: Duration,
}

/// Asks the kernel how a connection stands.
pub(super) fn standing(socket: BorrowedFd<'_>) -> io::Result<Standing> {
    // SAFETY: the structure is plain numbers, for which zeros are valid.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut len = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: `info` is writable for `len` bytes, and the kernel writes at most so many.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut len,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Standing {
        unacknowledged: info.tcpi_unacked,
        probes: info.tcpi_probes,
        last_answer: Duration::from_millis(u64::from(info.tcpi_last_ack_recv)),
    })
}

/// What a large page holds, and is aligned to.
const LARGE: usize = 2 << 20;

/// Zeroed memory for a segment or mirror, whole pages, backed at the first touch: by large pages, where the kernel has them. These
/// cost a tenth of the time to be had and to be freed, which at the death of a process is time that its survivors lack.
///
/// Not the allocator's: what is aligned as large pages are, it would zero itself, page by page, and before any advice.
pub(crate) fn memory(bytes: usize) -> io::Result<Segment> {
    memory_with(bytes, None)
}

/// The same, given back by `give_back` when its last user is gone.
pub(super) fn lent_memory(bytes: usize, give_back: GiveBack) -> io::Result<Segment> {
    memory_with(bytes, Some(give_back))
}

fn memory_with(bytes: usize, give_back: Option<GiveBack>) -> io::Result<Segment> {
    let out_of_range = || io::Error::from(io::ErrorKind::OutOfMemory);
    let len = bytes.checked_next_multiple_of(PAGE).ok_or_else(out_of_range)?;
    let all = len.checked_add(LARGE).ok_or_else(out_of_range)?;
    let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::NORESERVE);
    // SAFETY: a new mapping at an address of the kernel's choice touches no memory that is in use.
    let base = unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), all, protection, flags) }?;
    let base = NonNull::new(base.cast::<u8>()).ok_or_else(out_of_range)?;
    let pages = Pages { base, len: all, give_back };
    let offset = base.as_ptr().align_offset(LARGE).min(LARGE);
    // SAFETY: `offset` is at most the `LARGE` by which the mapping is longer than `len`.
    let start = unsafe { base.add(offset) };
    // SAFETY: the range is part of the new mapping, whole pages of it; the advice does not change what it holds.
    let _ = unsafe { rustix::mm::madvise(start.as_ptr().cast(), len, Advice::LinuxHugepage) };
    // SAFETY: aligned, `len` bytes of the mapping, which is readable, writable and this process's own until `pages` is dropped;
    // nobody else has its address.
    Ok(unsafe { Segment::from_mapping(start, len, Arc::new(pages)) })
}

/// Takes a mapping to where it is to be dropped.
pub(super) type GiveBack = Box<dyn FnOnce(Pages) + Send + Sync>;

/// A mapping of this value's own.
pub(super) struct Pages {
    base: NonNull<u8>,
    len: usize,
    give_back: Option<GiveBack>,
}

// SAFETY: the value only stands for the mapping, which any thread may unmap; its bytes are reached through `Segment`.
unsafe impl Send for Pages {}
// SAFETY: as above; nothing can be done with a shared one.
unsafe impl Sync for Pages {}

impl Drop for Pages {
    fn drop(&mut self) {
        if let Some(give_back) = self.give_back.take() {
            return give_back(Self { base: self.base, len: self.len, give_back: None });
        }
        // SAFETY: the whole of a mapping of our own, whose last user is gone.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// A counter in the kernel that ends a sleep: what rings the doorbell.
pub(crate) fn bell() -> io::Result<OwnedFd> {
    use rustix::event::{EventfdFlags, eventfd};
    Ok(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?)
}

/// Ends the sleep that waits for `bell`, or the next one.
pub(crate) fn ring(bell: BorrowedFd<'_>) {
    // The counter can't be full in earnest: 2⁶⁴ − 1 rings without a sleep.
    let _ = rustix::io::write(bell, &1_u64.to_ne_bytes());
}

/// Takes back the rings so far.
pub(super) fn hush(bell: &OwnedFd) {
    let mut count = [0; 8];
    let _ = rustix::io::read(bell.as_fd(), &mut count); // nothing there: nothing rang
}

/// Whether a call that does not block has to be made again later.
pub(crate) fn is_later(cause: &io::Error) -> bool {
    matches!(cause.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
