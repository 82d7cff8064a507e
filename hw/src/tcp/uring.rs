//! The io_uring engine.
//!
//! # What goes through the ring, and what does not
//!
//! - *Sleeping*: readiness of all links, the listener and the doorbell is asked for and slept on in one `io_uring_enter`
//!   with a timeout. A poll that did not fire stays armed for the next sleep.
//! - *Sending* to three links and more: one `io_uring_enter` for all, and each send is over when it returns, taken whole,
//!   in part or not at all, like a non-blocking `sendmsg`.
//! - *Zero-copy sends*, whatever the number of links.
//! - *Full sockets*: a poll for writing; whether it fired costs a look at a shared word, not a call.
//! - *Receiving* does not: measured on a machine of this project's kind (two cores, Linux 6.18, 64-byte round trip
//!   between two polling threads, best of five runs beside other load), a non-blocking `recv` in a loop gave 6.8 µs, a
//!   `RECVMSG` armed in the ring 9.4, a multishot receive with provided buffers 9.4 and multishot polls 11.8;
//!   of 10 KiB 7.4, 8.9, 12.1 and 14.0. An asleep receiver pays for the wake-up what all of these cost several times
//!   over. What is received by a call of our own is also over when the call is: no memory of ours is ever the
//!   kernel's between two calls, and a fence (F4) has nothing to wait for.
//! - Sending to one or two links does not: `sendmsg` was 0.5 µs faster than submitting, for one link as for eight, so
//!   the ring only saves calls, which is little for two.
//!
//! # Threads
//!
//! The ring is set up so that completions are worked off only when its owner enters the kernel for it
//! (`DEFER_TASKRUN`), without interrupts between cores. That binds it to the thread that first uses it. A fabric may
//! be moved to another thread; the engine notices and makes itself a new ring there. All that is lost with the old one
//! is armed polls; memory that zero-copy sends still hold is then left to them ([`Engine::take_renewed`]).
//!
//! `unsafe` is allowed here (S2) for submissions: each speaks of a socket that outlives it, or of addresses that are
//! used before `io_uring_enter` returns (the invariant of [`Sends`], and [`Engine::send`]'s contract for zero-copy).
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::thread::ThreadId;
use std::time::Duration;

use consort_dataplane::names::{PeerSet, Slot};
use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, Probe, cqueue, opcode, squeue};

use super::counts::Counts;
use super::engine::{Engine, Ready, Released, SendResult, Sends, Token, Watch};
use super::options::TcpError;
use super::sys::{self, Messages};

/// Submissions queued before they are handed over.
const ENTRIES: u32 = 256;

/// Up to so many links are sent to by `sendmsg`.
const DIRECT_SENDS: u32 = 2;

/// The engine's byte of a submission's number, above the 56 bits of a [`Token`].
const POLL_IN: u64 = 0;
const POLL_OUT: u64 = 1 << 56;
const SEND: u64 = 2 << 56;
const SEND_HELD: u64 = 3 << 56;
const CANCEL: u64 = 4 << 56;
const KIND: u64 = 0xFF << 56;

/// `IORING_SEND_ZC_REPORT_USAGE`: the release tells whether the kernel copied after all.
const REPORT_USAGE: u16 = 1 << 3;

/// `IORING_NOTIF_USAGE_ZC_COPIED`.
const COPIED: u32 = 1 << 31;

/// See the [module](self).
pub(super) struct Uring {
    ring: IoUring,
    /// The thread that the ring is bound to, once it is.
    owner: Option<ThreadId>,
    /// Numbers of the polls that are armed.
    armed: Vec<u64>,
    /// Whether a poll for writing or a release is awaited, so that polling has something to look for.
    expecting: usize,
    can_zero_copy: bool,
    messages: Messages,
    ready: Ready,
    /// There is something in `ready`, or to be told of by `renewed`.
    news: bool,
    /// See [`Engine::take_renewed`].
    renewed: bool,
}

impl Uring {
    /// # Errors
    /// The kernel denies io_uring, or is too old.
    pub(super) fn new() -> Result<Self, TcpError> {
        let SetUp { ring, can } = set_up()?;
        Ok(Self {
            ring,
            owner: None,
            armed: Vec::new(),
            expecting: 0,
            can_zero_copy: can.zero_copy,
            messages: Messages::default(),
            ready: Ready::default(),
            news: false,
            renewed: false,
        })
    }

    /// Binds the ring to this thread, before anything is submitted.
    fn bind(&mut self) {
        let here = std::thread::current().id();
        if self.owner == Some(here) {
            return;
        }
        if self.owner.is_some() {
            // The old ring is freed by its drop, whichever thread does it; the kernel cancels what was armed on it.
            match set_up() {
                Ok(SetUp { ring, .. }) => self.ring = ring,
                Err(cause) => {
                    tracing::error!(%cause, "io_uring can't be set up again on another thread");
                    return;
                }
            }
            self.forget_all();
        }
        match self.ring.submitter().register_enable_rings() {
            Ok(()) => self.owner = Some(here),
            Err(cause) => tracing::error!(%cause, "io_uring can't be enabled"),
        }
    }

    /// Queues a submission. Returns false if the ring takes no more.
    fn push(&mut self, entry: &squeue::Entry, counts: &mut Counts) -> bool {
        loop {
            // SAFETY: polls and their removals speak of no memory; a send's addresses are good until its result is in,
            // as is said where it is made.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return true;
            }
            // Full: hand over what there is.
            if !self.enter(0, None, counts) {
                return false;
            }
        }
    }

    /// Hands over what is queued and works off what is due; with `want`, waits for so many completions, or `timeout`.
    /// Returns false on a failure that would repeat.
    fn enter(&mut self, want: usize, timeout: Option<Duration>, counts: &mut Counts) -> bool {
        counts.called();
        let result = match timeout {
            Some(timeout) => {
                let timeout = Timespec::from(timeout);
                self.ring.submitter().submit_with_args(want, &SubmitArgs::new().timespec(&timeout))
            }
            None => self.ring.submit_and_wait(want),
        };
        let Err(cause) = result else { return true };
        match cause.raw_os_error() {
            Some(libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY) => true,
            _ => {
                tracing::error!(%cause, "io_uring_enter failed");
                false
            }
        }
    }

    /// Arms a poll for one event, unless it is armed already.
    fn arm(&mut self, number: u64, socket: BorrowedFd<'_>, events: i16, counts: &mut Counts) {
        if self.armed.contains(&number) {
            return;
        }
        // A poll holds the socket's file by itself; it speaks of no memory.
        let entry = opcode::PollAdd::new(Fd(socket.as_raw_fd()), events as u32).build().user_data(number);
        if self.push(&entry, counts) {
            self.armed.push(number);
            self.expecting += usize::from(number & KIND == POLL_OUT);
        }
    }

    /// Takes in completions. Results of sends go to `sends`. Returns how many of those there were.
    fn reap(&mut self, mut sends: Option<&mut Sends<'_>>) -> usize {
        let mut done = 0;
        loop {
            let next = self.ring.completion().next();
            let Some(completion) = next else { return done };
            let (number, flags, result) = (completion.user_data(), completion.flags(), completion.result());
            match number & KIND {
                POLL_IN | POLL_OUT => self.on_poll(number, result),
                SEND | SEND_HELD if cqueue::notif(flags) => self.on_release(number, result),
                SEND | SEND_HELD => {
                    done += 1;
                    let held = cqueue::more(flags);
                    self.expecting += usize::from(held);
                    let job = (number >> 48 & 0xFF) as usize;
                    if let Some(job) = sends.as_mut().and_then(|sends| sends.jobs().get_mut(job)) {
                        job.result = SendResult { taken: result, held };
                    }
                }
                _ => {}
            }
        }
    }

    fn on_poll(&mut self, number: u64, result: i32) {
        if let Some(at) = self.armed.iter().position(|armed| *armed == number) {
            self.armed.swap_remove(at);
            if number & KIND == POLL_OUT {
                self.expecting -= 1;
            }
        } else {
            return; // forgotten meanwhile
        }
        if result == -libc::ECANCELED {
            return;
        }
        self.news = true;
        match Token::decode(number & !KIND) {
            Some(Token::Link(slot, _)) if number & KIND == POLL_OUT => {
                self.ready.writable = self.ready.writable.with(slot);
            }
            Some(Token::Link(slot, _)) => self.ready.readable = self.ready.readable.with(slot),
            Some(Token::Bell) => self.ready.bell = true,
            Some(Token::Listener | Token::Setup(_)) => self.ready.setup = true,
            None => {}
        }
    }

    fn on_release(&mut self, number: u64, result: i32) {
        self.expecting = self.expecting.saturating_sub(1);
        let slot = Slot((number >> 40) as u8);
        let copied = result as u32 & COPIED != 0;
        self.news = true;
        self.ready.released.push(Released { slot, generation: number as u32, copied });
    }
}

impl Engine for Uring {
    fn name(&self) -> &'static str {
        "io_uring"
    }

    fn can_zero_copy(&self) -> bool {
        self.can_zero_copy
    }

    fn gathers(&self, links: u32) -> bool {
        links > DIRECT_SENDS
    }

    fn take_renewed(&mut self) -> bool {
        std::mem::take(&mut self.renewed)
    }

    fn has_news(&self) -> bool {
        self.expecting > 0 || self.news
    }

    fn send(&mut self, sends: &mut Sends<'_>, counts: &mut Counts) {
        let jobs = sends.jobs().len();
        self.bind();
        if self.owner.is_none() {
            sys::send_each(sends, counts);
            return;
        }
        self.messages.0.clear();
        for job in 0..jobs {
            let message = sys::message(sends.parts(job));
            self.messages.0.push(message);
        }
        for job in 0..jobs {
            let Some(message) = self.messages.0.get(job).map(|message| &raw const *message) else { break };
            let it = &sends.jobs()[job];
            let who = Token::Link(it.slot, it.generation).encode() & !(0xFF << 48) | (job as u64) << 48;
            let socket = Fd(it.socket.as_raw_fd());
            // Both: the message and its parts live until `io_uring_enter` has returned and all results are in, below;
            // the bytes as `Sends` says, for zero-copy until the release (`Engine::send`).
            let entry = if it.zero_copy && self.can_zero_copy {
                let flags = sys::SEND_FLAGS as u32;
                let build = opcode::SendMsgZc::new(socket, message).flags(flags).ioprio(REPORT_USAGE);
                build.build().user_data(SEND_HELD | who)
            } else {
                let flags = sys::SEND_FLAGS as u32;
                opcode::SendMsg::new(socket, message).flags(flags).build().user_data(SEND | who)
            };
            if !self.push(&entry, counts) {
                self.give_up(sends);
                return;
            }
        }
        // Sends that must not wait are over when they have been submitted; were one not, it is waited for here, since
        // nothing of ours may stay in the kernel's hands.
        let mut done = 0;
        let mut want = 0;
        while done < jobs {
            if !self.enter(want, None, counts) {
                // What was queued can't be taken back, and its addresses must not be used later: a ring that fails so is
                // given up, with all that is on it.
                self.give_up(sends);
                return;
            }
            done += self.reap(Some(sends));
            want = 1;
        }
    }

    fn watch_writable(&mut self, slot: Slot, generation: u32, socket: BorrowedFd<'_>, counts: &mut Counts) {
        self.bind();
        let number = POLL_OUT | Token::Link(slot, generation).encode();
        if !self.armed.contains(&number) {
            self.arm(number, socket, libc::POLLOUT, counts);
            self.enter(0, None, counts);
            self.reap(None);
        }
    }

    fn poll(&mut self, counts: &mut Counts) -> Ready {
        if self.expecting > 0 {
            if self.ring.submission().taskrun() {
                self.bind();
                self.enter(0, None, counts);
            }
            self.reap(None);
        }
        self.news = false;
        std::mem::take(&mut self.ready)
    }

    fn sleep(&mut self, watches: &[Watch<'_>], timeout: Duration, counts: &mut Counts) -> Ready {
        self.bind();
        if self.ring.submission().taskrun() {
            // Events of polls armed by an earlier sleep, most of them received long since. Worked off first, so that they
            // don't end this sleep; the polls are armed again and look for themselves.
            self.enter(0, None, counts);
        }
        self.reap(None);
        self.ready.readable = PeerSet::EMPTY;
        for watch in watches {
            let (kind, events) =
                if watch.writing { (POLL_OUT, libc::POLLOUT) } else { (POLL_IN, libc::POLLIN) };
            let number = kind | watch.token.encode();
            self.arm(number, watch.socket, events, counts);
        }
        let nothing = self.ready.writable.is_empty() && self.ready.released.is_empty() && !self.renewed;
        let timeout = if nothing { timeout } else { Duration::ZERO };
        self.enter(1, Some(timeout), counts);
        self.reap(None);
        self.news = false;
        std::mem::take(&mut self.ready)
    }

    fn forget(&mut self, token: Token, _: BorrowedFd<'_>) {
        let mut counts = Counts::default();
        for kind in [POLL_IN, POLL_OUT] {
            let number = kind | token.encode();
            let Some(at) = self.armed.iter().position(|armed| *armed == number) else { continue };
            self.armed.swap_remove(at);
            self.expecting -= usize::from(kind == POLL_OUT);
            // It goes with the next call; until then the poll holds the file, not the connection.
            self.push(&opcode::PollRemove::new(number).build().user_data(CANCEL), &mut counts);
        }
    }
}

impl Uring {
    /// Replaces a ring whose calls fail. Sends without a result count as failed: nobody knows how much of them went.
    fn give_up(&mut self, sends: &mut Sends<'_>) {
        for job in sends.jobs() {
            if job.result.taken == 0 {
                job.result.taken = -libc::EIO;
            }
        }
        match set_up() {
            Ok(SetUp { ring, .. }) => self.ring = ring,
            Err(cause) => tracing::error!(%cause, "io_uring can't be set up again"),
        }
        self.owner = None;
        self.forget_all();
    }

    /// The ring is another one: what the old one was asked for is forgotten, by its owner too.
    fn forget_all(&mut self) {
        self.armed.clear();
        self.expecting = 0;
        // Told later, they would be taken for those of sends by the new ring.
        self.ready.released.clear();
        self.renewed = true;
        self.news = true;
    }
}

/// A ring with the best set of features that this kernel has, not yet enabled; and what it can do.
fn set_up() -> Result<SetUp, TcpError> {
    let best = || {
        let mut builder = IoUring::builder();
        builder.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag();
        builder
    };
    let middling = || {
        let mut builder = IoUring::builder();
        builder.setup_coop_taskrun().setup_taskrun_flag();
        builder
    };
    let builders = [(true, best()), (false, middling()), (false, IoUring::builder())];
    let mut made = Err(io::ErrorKind::Unsupported.into());
    let mut deferred = false;
    for (defers, mut builder) in builders {
        deferred = defers;
        made = builder.setup_r_disabled().setup_cqsize(4 * ENTRIES).build(ENTRIES);
        // Unknown flags: an older kernel.
        if !matches!(&made, Err(cause) if cause.raw_os_error() == Some(libc::EINVAL)) {
            break;
        }
    }
    let ring = made.map_err(denied)?;
    let mut probe = Probe::new();
    let probed = ring.submitter().register_probe(&mut probe).is_ok();
    let has = |code| probed && probe.is_supported(code);
    if !ring.params().is_feature_ext_arg()
        || !ring.params().is_feature_nodrop()
        || !has(opcode::SendMsg::CODE)
    {
        return Err(TcpError::IoUring {
            cause: io::ErrorKind::Unsupported.into(),
            remedy: "the engine needs Linux 5.11 or later".to_owned(),
        });
    }
    let zero_copy = has(opcode::SendMsgZc::CODE);
    Ok(SetUp { ring, can: Abilities { deferred, zero_copy } })
}

/// A ring, and what it can do.
struct SetUp {
    ring: IoUring,
    can: Abilities,
}

/// What the kernel's io_uring does here beyond what the engine cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Abilities {
    /// Completions are worked off when their owner asks for them (`DEFER_TASKRUN`).
    pub(crate) deferred: bool,
    /// Sends without a copy (`SENDMSG_ZC`).
    pub(crate) zero_copy: bool,
}

/// Sets up a ring as the engine does, and tells what it can do.
///
/// # Errors
/// Those of the engine.
pub(crate) fn probe() -> Result<Abilities, TcpError> {
    set_up().map(|found| found.can)
}

/// What to do where io_uring is denied.
fn denied(cause: io::Error) -> TcpError {
    let switch = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    let remedy = match (cause.raw_os_error(), switch.trim()) {
        (Some(libc::EPERM), "1" | "2") => {
            "run `sysctl -w kernel.io_uring_disabled=0` as root (with 1, membership of the group in \
             kernel.io_uring_group is enough)"
        }
        (Some(libc::EPERM | libc::EACCES), _) => {
            "a seccomp profile forbids it, as containers' defaults do: run with one that allows io_uring_setup, \
             io_uring_enter and io_uring_register (docker run --security-opt seccomp=profile.json)"
        }
        (Some(libc::ENOSYS), _) => {
            "this kernel is built without it, or a sandbox (gVisor, a seccomp profile) hides it: use Linux 5.11 or \
             later, and a profile that allows io_uring_setup, io_uring_enter and io_uring_register"
        }
        (Some(libc::ENOMEM), _) => "raise the limit of locked memory (`ulimit -l`, LimitMEMLOCK=)",
        (Some(libc::EMFILE | libc::ENFILE), _) => "raise the limit of open files (`ulimit -n`, LimitNOFILE=)",
        _ => "use Linux 5.11 or later",
    };
    TcpError::IoUring { cause, remedy: remedy.to_owned() }
}
