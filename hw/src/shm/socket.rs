//! Unix sockets between the nodes of a host: sequenced packets (a hello is one packet or none), never blocking, with the
//! file descriptors of a segment attached to the first.
//!
//! A connection serves twice: its first packets introduce the two ends, and after that it is the proof of life (F5): the
//! kernel closes it with the process, whatever the process died of.
//!
//! `unsafe` is allowed here (S2) for one system call, whose safe wrapper can't tell a process of another PID
//! namespace (number 0) from an invalid value.
#![allow(unsafe_code)]

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

use super::hello::{PACKET_MAX, RENEWALS_MAX};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// Descriptors that come with a packet: those of a segment and all its renewals.
const ATTACHED_MAX: usize = 1 + RENEWALS_MAX;

/// The socket that peers connect to.
#[derive(Debug)]
pub(super) struct Listener(OwnedFd);

/// One end of a connection.
#[derive(Debug)]
pub(super) struct Socket(OwnedFd);

/// Who is at the other end, by the kernel's word: as it was when the connection was made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Credentials {
    /// 0 for a process that this one's PID namespace doesn't show.
    pub(super) process: i32,
    pub(super) user: u32,
}

/// What a connection holds for us.
#[derive(Debug)]
pub(super) enum Received {
    /// Nothing yet.
    Nothing,
    /// A packet, and the file descriptors that came with it.
    Packet(Packet),
    /// More bytes or descriptors than any packet of ours; the excess is never read.
    Oversize,
    /// The other end is closed; or the packet was empty, and then it is none of ours.
    End,
}

/// A packet that was received.
#[derive(Debug)]
pub(super) struct Packet {
    pub(super) bytes: Vec<u8>,
    pub(super) attached: Vec<OwnedFd>,
}

impl Listener {
    /// Listens at the abstract address `name`: it needs no directory, and is gone with the process.
    pub(super) fn at(name: &[u8]) -> Result<Self, Errno> {
        let socket = seqpacket()?;
        rustix::net::bind(&socket, &SocketAddrUnix::new_abstract_name(name)?)?;
        rustix::net::listen(&socket, BACKLOG)?;
        Ok(Self(socket))
    }

    /// The next connection. `WOULDBLOCK`: there is none.
    pub(super) fn accept(&self) -> Result<Socket, Errno> {
        rustix::net::accept_with(&self.0, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK).map(Socket)
    }
}

impl Socket {
    /// Connects to whoever listens at `name`. `WOULDBLOCK`: too many connect just now; `CONNREFUSED`: nobody listens.
    pub(super) fn connect(name: &[u8]) -> Result<Self, Errno> {
        let socket = seqpacket()?;
        rustix::net::connect(&socket, &SocketAddrUnix::new_abstract_name(name)?)?;
        Ok(Self(socket))
    }

    /// Sends one packet, with file descriptors.
    pub(super) fn send(&self, bytes: &[u8], attach: &[BorrowedFd<'_>]) -> Result<(), Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(ATTACHED_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !attach.is_empty() && !control.push(SendAncillaryMessage::ScmRights(attach)) {
            return Err(Errno::MSGSIZE);
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        rustix::net::sendmsg(&self.0, &[IoSlice::new(bytes)], &mut control, flags).map(|_| ())
    }

    /// Takes the next packet, if there is one.
    pub(super) fn receive(&self) -> Result<Received, Errno> {
        match self.try_receive() {
            // The other end closed without having read all of ours: the kernel says so once, ahead of the packets that
            // it had sent before (a goodbye, perhaps).
            Err(Errno::CONNRESET) => self.try_receive(),
            other => other,
        }
    }

    fn try_receive(&self) -> Result<Received, Errno> {
        let mut bytes = [0; PACKET_MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(ATTACHED_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let got = match rustix::net::recvmsg(&self.0, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags)
        {
            Ok(got) => got,
            Err(Errno::WOULDBLOCK | Errno::INTR) => return Ok(Received::Nothing),
            Err(error) => return Err(error),
        };
        // Whatever was attached is ours to close: collected here, so dropped on every path but the good one.
        let mut attached = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                attached.extend(descriptors);
            }
        }
        // Where there was room for more, it is this process that can't have more.
        if got.flags.contains(ReturnFlags::CTRUNC) && attached.len() < ATTACHED_MAX {
            return Err(Errno::MFILE);
        }
        if got.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) || attached.len() > ATTACHED_MAX {
            return Ok(Received::Oversize);
        }
        if got.bytes == 0 {
            return Ok(Received::End);
        }
        Ok(Received::Packet(Packet { bytes: bytes[..got.bytes.min(PACKET_MAX)].to_vec(), attached }))
    }

    /// Who is at the other end.
    pub(super) fn credentials(&self) -> io::Result<Credentials> {
        let mut credentials = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
        let mut length = libc::socklen_t::try_from(size_of::<libc::ucred>()).unwrap_or(0);
        // SAFETY: the kernel writes at most `length` bytes to `credentials`, which has that size and for which any
        // bytes are valid; both pointers are to locals that outlive the call.
        let result = unsafe {
            libc::getsockopt(
                self.0.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERCRED,
                (&raw mut credentials).cast(),
                &raw mut length,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Credentials { process: credentials.pid, user: credentials.uid })
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn seqpacket() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
}

#[cfg(test)]
mod tests {
    use super::super::guests::{own_user, trusted};
    use super::*;

    fn pair(name: &str) -> (Socket, Socket) {
        let name = format!("consort-shm-test-{name}-{}", std::process::id()).into_bytes();
        let listener = Listener::at(&name).unwrap();
        let dialled = Socket::connect(&name).unwrap();
        (dialled, listener.accept().unwrap())
    }

    #[test]
    fn both_ends_know_each_other() {
        let (one, other) = pair("both");
        for end in [&one, &other] {
            let them = end.credentials().unwrap();
            assert_eq!(them.process.unsigned_abs(), std::process::id());
            assert!(trusted(own_user(), them.user));
        }
    }

    /// S3: another user is known by the kernel's word. Only root can play one, so nobody else tries.
    #[test]
    fn another_user_is_not_trusted() {
        const NOBODY: u32 = 65534;
        assert!(trusted(1000, 1000) && trusted(1000, 0) && !trusted(1000, 1001) && !trusted(0, 1000));
        if own_user() != 0 {
            return;
        }
        let name = format!("consort-shm-test-user-{}", std::process::id()).into_bytes();
        let listener = Listener::at(&name).unwrap();
        let dialled = std::thread::spawn(move || {
            // SAFETY: the bare system call changes this thread's user alone (libc's function would change all threads');
            // the thread ends with this closure.
            assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) }, 0);
            Socket::connect(&name).unwrap()
        });
        let _dialled = dialled.join().unwrap();
        let them = listener.accept().unwrap().credentials().unwrap();
        assert_eq!(them.user, NOBODY);
        assert!(!trusted(own_user(), them.user));
    }

    #[test]
    fn a_reset_does_not_hide_what_came_before_it() {
        let (one, other) = pair("reset");
        other.send(b"never read", &[]).unwrap();
        one.send(b"last words", &[]).unwrap();
        drop(one);
        let Ok(Received::Packet(packet)) = other.receive() else { panic!("the last words") };
        assert_eq!(packet.bytes, b"last words");
        assert!(matches!(other.receive(), Ok(Received::End)));
    }

    #[test]
    fn packets_keep_their_borders() {
        let (one, other) = pair("borders");
        assert!(matches!(other.receive(), Ok(Received::Nothing)));
        one.send(b"first", &[]).unwrap();
        one.send(b"second", &[one.as_fd(); ATTACHED_MAX]).unwrap();
        one.send(&[0; PACKET_MAX + 1], &[]).unwrap();
        assert_eq!(one.send(b"", &[one.as_fd(); ATTACHED_MAX + 8]), Err(Errno::MSGSIZE));
        drop(one);
        let Ok(Received::Packet(packet)) = other.receive() else { panic!("the first packet") };
        assert_eq!((&packet.bytes[..], packet.attached.len()), (&b"first"[..], 0));
        let Ok(Received::Packet(packet)) = other.receive() else { panic!("the second packet") };
        assert_eq!((&packet.bytes[..], packet.attached.len()), (&b"second"[..], ATTACHED_MAX));
        assert!(matches!(other.receive(), Ok(Received::Oversize)));
        drop(packet); // it holds the other end open
        assert!(matches!(other.receive(), Ok(Received::End)));
    }
}
