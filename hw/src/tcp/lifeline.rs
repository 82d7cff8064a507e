//! The connections that end as soon as a process dies, before its memory is freed (F5).
//!
//! The kernel takes a killed process apart in an order of its own: it frees the memory, which takes milliseconds if there is
//! much of it, and closes the descriptors after that. So the end of a link's stream tells of a death late. But what holds
//! for a process holds for each of its threads: a thread that dies gives up its share of the memory, which costs
//! nothing as long as another thread has one, and then its share of the descriptors. If it has a *table of descriptors of
//! its own* (`close_range(2)` with `CLOSE_RANGE_UNSHARE`), they are closed then and there.
//!
//! So each fabric has a thread, with a table of its own and nothing in it but the *lifelines*: beside each link a second connection,
//! from the one thread to the other's, over which nothing is said. When it ends, the process at its other end is ending. (If
//! it is the last to give up the memory, and so has to free it, the others have closed the links' own descriptors before that.)
//!
//! # One lifeline
//!
//! The thread listens at a port that the offer names. When a link comes up, the node that dialled the link dials the lifeline, too,
//! and says both tokens out of the offers, the other's first; the other, which knows them of its own link, answers with its own first.
//! From then on:
//!
//! - *The end of the stream, without a word*, is the thread's end, and so the process's: proof. What the peer had sent over the
//!   link by then is taken in first, its goodbye perhaps among it; then the link is down.
//! - *A word* says that the lifeline ends in order, as when a link is cut or a fabric dropped: no proof of anything.
//! - *An error* is the network's, or a firewall's that found the connection idle for too long: no proof either.
//!
//! Where there is no lifeline (the kernel is too old, a filter denies the call, the port can't be reached), links work as
//! they do with one, and the end of their own stream tells.
//!
//! # What the thread must not do
//!
//! A number that names a descriptor elsewhere names another one in it, or none. So no code runs there but this module's: no
//! logging (a subscriber would write to whatever has its file's number), no callbacks. And it holds nothing of the
//! application's open: all but two descriptors are closed before anything else.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use consort_dataplane::names::{MAX_NODES, Slot};
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};

use super::hello::Token;
use super::sys::{self, is_later};
use crate::signals::block_signals;

/// Both tokens.
const GREETING: usize = 32;

/// How long a greeting may take, and how long one that is right waits for its link.
const GREETING_WITHIN: Duration = Duration::from_secs(5);

/// Connections that are no lifelines yet.
const STRANGERS: usize = 2 * MAX_NODES;

/// Connections taken in at once.
const ACCEPTS: usize = 16;

/// How long the listener is left alone when the machine refuses to accept.
const ACCEPT_AGAIN: Duration = Duration::from_millis(200);

/// Said before a lifeline ends in order.
const WORD: [u8; 1] = *b".";

const WAKE: u64 = 0;
const LISTENER: u64 = 1;
/// Connections have the numbers from here.
const CONNECTIONS: u64 = 2;

/// A link, as the fabric tells links apart: its slot and its generation.
pub(super) type Who = (Slot, u32);

/// The thread, which ends when this is dropped.
#[derive(Debug)]
pub(super) struct Lifeline {
    wake: OwnedFd,
    shared: Arc<Shared>,
    port: u16,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    orders: Mutex<Vec<Order>>,
    ended: Mutex<Vec<Who>>,
    /// Something is in `ended`.
    news: AtomicBool,
    #[cfg(test)]
    held: std::sync::atomic::AtomicUsize,
}

#[derive(Debug)]
enum Order {
    Hold(Hold),
    Drop(Who),
    Quit,
    /// End as if the process had been killed.
    #[cfg(test)]
    Die,
}

/// A lifeline to be.
#[derive(Debug)]
pub(super) struct Hold {
    pub(super) who: Who,
    /// Where to dial it; or else it is dialled by the peer.
    pub(super) dial: Option<SocketAddr>,
    pub(super) own: Token,
    pub(super) peer: Token,
}

impl Lifeline {
    /// Starts the thread, which listens at `address`, and rings `bell` when a lifeline has ended.
    pub(super) fn start(address: IpAddr, bell: &Arc<OwnedFd>, unanswered: Duration) -> io::Result<Self> {
        let wake = sys::bell()?;
        let shared = Arc::new(Shared::default());
        let (tell, told) = mpsc::channel();
        let (theirs, bells) = (shared.clone(), [wake.try_clone()?, bell.try_clone()?]);
        let thread = std::thread::Builder::new().name("consort-life".to_owned()).spawn(move || {
            block_signals();
            // What is here of the bells is told apart from what stays behind, which the other end closes.
            let kept = sys::part_descriptors([bells[0].as_fd(), bells[1].as_fd()]);
            let made = kept.and_then(|[wake, bell]| Keeper::new(address, wake, bell, theirs, unanswered));
            match made {
                Ok((mut keeper, port)) => {
                    let _ = tell.send(Ok((port, bells)));
                    keeper.run();
                }
                Err(cause) => drop(tell.send(Err((cause, bells)))),
            }
        })?;
        // The bells that come back are those of this table.
        match told.recv() {
            Ok(Ok((port, _bells))) => Ok(Self { wake, shared, port, thread: Some(thread) }),
            Ok(Err((cause, _bells))) => Err(cause),
            Err(_) => Err(io::Error::other("its thread panicked")),
        }
    }

    /// Where peers dial it.
    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// Makes a lifeline beside a link.
    pub(super) fn hold(&self, hold: Hold) {
        self.order(Order::Hold(hold));
    }

    /// Ends one in order, if there is one.
    pub(super) fn let_go(&self, who: Who) {
        self.order(Order::Drop(who));
    }

    /// Links whose peers have died since the last call. Costs a load if there are none.
    pub(super) fn take_ended(&self) -> Vec<Who> {
        if !self.shared.news.load(Ordering::Relaxed) || !self.shared.news.swap(false, Ordering::Acquire) {
            return Vec::new();
        }
        std::mem::take(&mut *locked(&self.shared.ended))
    }

    fn order(&self, order: Order) {
        locked(&self.shared.orders).push(order);
        sys::ring(self.wake.as_fd());
    }

    /// How many were ever made.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.shared.held.load(Ordering::SeqCst)
    }

    /// What a kill does to its thread, and to nothing else.
    #[cfg(test)]
    pub(super) fn die(&mut self) {
        self.order(Order::Die);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Lifeline {
    fn drop(&mut self) {
        self.order(Order::Quit);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic in it ended the lifelines, and nothing else
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the thread has. All descriptors are of its own table.
struct Keeper {
    epoll: OwnedFd,
    /// In the places of the standard streams, so that no connection gets one of their numbers.
    _stopgaps: Vec<OwnedFd>,
    wake: OwnedFd,
    bell: OwnedFd,
    listener: OwnedFd,
    address: IpAddr,
    shared: Arc<Shared>,
    unanswered: Duration,
    /// Links without a lifeline that the peer is to dial.
    awaited: Vec<Hold>,
    connections: Vec<Connection>,
    ever: u64,
    /// The listener is left alone until then.
    accept_again: Option<Instant>,
}

struct Connection {
    number: u64,
    socket: OwnedFd,
    state: State,
}

enum State {
    /// Somebody dialled, and what it has said so far.
    Stranger { said: [u8; GREETING], got: usize, until: Instant },
    /// This node dials: what it is to say, and what the other has answered.
    Dialling { hold: Hold, greeted: bool, answer: [u8; GREETING], got: usize, until: Instant },
    /// A lifeline.
    Held(Who),
}

impl Keeper {
    fn new(
        address: IpAddr,
        wake: OwnedFd,
        bell: OwnedFd,
        shared: Arc<Shared>,
        unanswered: Duration,
    ) -> io::Result<(Self, u16)> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let mut stopgaps = Vec::new();
        loop {
            let stopgap = rustix::io::fcntl_dupfd_cloexec(&epoll, 0)?;
            if sys::is_behind_the_streams(&stopgap) {
                break;
            }
            stopgaps.push(stopgap);
        }
        let (listener, bound) = sys::listen(address)?;
        epoll::add(&epoll, &wake, EventData::new_u64(WAKE), EventFlags::IN)?;
        epoll::add(&epoll, &listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
        let keeper = Self {
            epoll,
            _stopgaps: stopgaps,
            wake,
            bell,
            listener,
            address,
            shared,
            unanswered,
            awaited: Vec::new(),
            connections: Vec::new(),
            ever: CONNECTIONS,
            accept_again: None,
        };
        Ok((keeper, bound.port()))
    }

    fn run(&mut self) {
        loop {
            let mut room = [const { std::mem::MaybeUninit::<Event>::uninit() }; 16];
            let events = match epoll::wait(&self.epoll, &mut room, self.patience().as_ref()) {
                Ok((events, _)) => &*events,
                Err(rustix::io::Errno::INTR) => &[],
                Err(_) => return, // not to be had any more: links tell by themselves
            };
            for event in events {
                match event.data.u64() {
                    WAKE => sys::hush(&self.wake),
                    LISTENER => self.accept(),
                    number => self.on_ready(number),
                }
            }
            let orders = std::mem::take(&mut *locked(&self.shared.orders));
            for order in orders {
                match order {
                    Order::Hold(hold) => self.hold(hold),
                    Order::Drop(who) => self.let_go(who),
                    Order::Quit => return,
                    #[cfg(test)]
                    Order::Die => return self.connections.clear(),
                }
            }
            self.pass_time();
        }
    }

    /// Until a greeting is late, or the listener is to be looked at again.
    fn patience(&self) -> Option<Timespec> {
        let greetings = self.connections.iter().filter_map(|it| it.state.until());
        let next = greetings.chain(self.accept_again).min()?;
        let left = next.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        Timespec::try_from(left).ok()
    }

    fn pass_time(&mut self) {
        if self.accept_again.is_none() && self.connections.iter().all(|it| it.state.until().is_none()) {
            return;
        }
        let now = Instant::now();
        self.connections.retain(|it| it.state.until().is_none_or(|until| now < until));
        if self.accept_again.take_if(|at| now >= *at).is_some() {
            // If it can't be had, no more lifelines are made.
            let _ = epoll::add(&self.epoll, &self.listener, EventData::new_u64(LISTENER), EventFlags::IN);
        }
    }

    fn accept(&mut self) {
        for _ in 0..ACCEPTS {
            let socket = match sys::accept(self.listener.as_fd()) {
                Ok(socket) => socket,
                Err(cause) => {
                    if !is_later(&cause) && cause.kind() != io::ErrorKind::ConnectionAborted {
                        // No room for it: the listener, which stays ready, must not keep this thread busy.
                        let _ = epoll::delete(&self.epoll, &self.listener);
                        self.accept_again = Some(Instant::now() + ACCEPT_AGAIN);
                    }
                    return;
                }
            };
            let is_stranger = |it: &Connection| matches!(it.state, State::Stranger { .. });
            if self.connections.iter().filter(|it| is_stranger(it)).count() >= STRANGERS
                && let Some(oldest) = self.connections.iter().position(is_stranger)
            {
                self.connections.remove(oldest);
            }
            let until = Instant::now() + GREETING_WITHIN;
            let state = State::Stranger { said: [0; GREETING], got: 0, until };
            let number = self.keep(socket, state, EventFlags::IN);
            self.on_ready(number);
        }
    }

    /// Keeps a connection, and returns its number.
    fn keep(&mut self, socket: OwnedFd, state: State, flags: EventFlags) -> u64 {
        let number = self.ever;
        self.ever += 1;
        if epoll::add(&self.epoll, &socket, EventData::new_u64(number), flags).is_ok() {
            self.connections.push(Connection { number, socket, state });
        }
        number
    }

    fn hold(&mut self, hold: Hold) {
        let Some(address) = hold.dial else {
            self.awaited.push(hold);
            // It may be here already.
            for number in self.connections.iter().map(|it| it.number).collect::<Vec<_>>() {
                self.introduce(number);
            }
            return;
        };
        let from = (!self.address.is_unspecified()).then_some(self.address);
        if let Ok(socket) = sys::dial(address, from) {
            let until = Instant::now() + GREETING_WITHIN;
            let state = State::Dialling { hold, greeted: false, answer: [0; GREETING], got: 0, until };
            self.keep(socket, state, EventFlags::OUT);
        }
    }

    fn let_go(&mut self, who: Who) {
        self.awaited.retain(|hold| hold.who != who);
        self.connections.retain(|it| {
            let is_it = it.state.who() == Some(who);
            if is_it {
                it.say_so();
            }
            !is_it
        });
    }

    /// Something is to be read, or written, or has ended.
    fn on_ready(&mut self, number: u64) {
        let Some(at) = self.connections.iter().position(|it| it.number == number) else { return };
        let Connection { socket, state, .. } = &mut self.connections[at];
        let gone = match state {
            State::Stranger { said, got, .. } => match read_on(socket.as_fd(), said, got) {
                Ok(true) => return self.introduce(number),
                Ok(false) => false,
                Err(_) => true,
            },
            State::Dialling { hold, greeted: greeted @ false, .. } => {
                match sys::send_all(socket.as_fd(), &greeting(&hold.peer, &hold.own)) {
                    Ok(()) => {
                        *greeted = true;
                        epoll::modify(&self.epoll, &*socket, EventData::new_u64(number), EventFlags::IN)
                            .is_err()
                    }
                    Err(cause) => !is_later(&cause),
                }
            }
            State::Dialling { hold, answer, got, .. } => match read_on(socket.as_fd(), answer, got) {
                Ok(true) if Greeting(answer).is(&hold.own, &hold.peer) => {
                    let _ = sys::keep_alive(socket.as_fd(), self.unanswered);
                    *state = State::Held(hold.who);
                    #[cfg(test)]
                    self.shared.held.fetch_add(1, Ordering::SeqCst);
                    return self.on_ready(number); // it may have ended already
                }
                Ok(whole) => whole, // whoever answers so is not the peer
                Err(_) => true,
            },
            State::Held(who) => {
                let mut word = WORD;
                match sys::receive_some(socket.as_fd(), &mut word) {
                    Ok(0) => {
                        locked(&self.shared.ended).push(*who);
                        self.shared.news.store(true, Ordering::Release); // pairs with the Acquire in `take_ended`
                        sys::ring(self.bell.as_fd());
                        true
                    }
                    Ok(_) => true,
                    Err(cause) => !is_later(&cause),
                }
            }
        };
        if gone {
            self.connections.remove(at);
        }
    }

    /// Whether a stranger that has said all is one who is awaited; if so, answers it.
    fn introduce(&mut self, number: u64) {
        let Some(at) = self.connections.iter().position(|it| it.number == number) else { return };
        let Connection { socket, state, .. } = &mut self.connections[at];
        let State::Stranger { said, got: GREETING, .. } = state else { return };
        let is_it = |hold: &Hold| Greeting(said).is(&hold.own, &hold.peer);
        let Some(awaited) = self.awaited.iter().position(is_it) else { return };
        let hold = self.awaited.swap_remove(awaited);
        let answered = sys::send_all(socket.as_fd(), &greeting(&hold.peer, &hold.own));
        let _ = sys::keep_alive(socket.as_fd(), self.unanswered);
        *state = State::Held(hold.who);
        #[cfg(test)]
        self.shared.held.fetch_add(1, Ordering::SeqCst);
        if answered.is_err() {
            self.connections.remove(at);
        } else {
            self.on_ready(number);
        }
    }
}

/// However the thread ends, unless by a death: it is none.
impl Drop for Keeper {
    fn drop(&mut self) {
        for connection in &self.connections {
            connection.say_so();
        }
    }
}

impl Connection {
    /// Tells the peer that this end is no death.
    fn say_so(&self) {
        if matches!(self.state, State::Held(_)) {
            let _ = sys::send_all(self.socket.as_fd(), &WORD); // a peer that is gone needs none
        }
    }
}

impl State {
    fn until(&self) -> Option<Instant> {
        match self {
            Self::Stranger { until, .. } | Self::Dialling { until, .. } => Some(*until),
            Self::Held(_) => None,
        }
    }

    fn who(&self) -> Option<Who> {
        match self {
            Self::Stranger { .. } => None,
            Self::Dialling { hold, .. } => Some(hold.who),
            Self::Held(who) => Some(*who),
        }
    }
}

/// What was said: the hearer's token, and the speaker's.
struct Greeting<'a>(&'a [u8; GREETING]);

impl Greeting<'_> {
    fn is(&self, to: &Token, from: &Token) -> bool {
        let half = |at: usize| Token(std::array::from_fn(|byte| self.0[at + byte]));
        to.matches(&half(0)) & from.matches(&half(GREETING / 2))
    }
}

fn greeting(to: &Token, from: &Token) -> [u8; GREETING] {
    std::array::from_fn(|byte| if byte < GREETING / 2 { to.0[byte] } else { from.0[byte - GREETING / 2] })
}

/// Reads what has come. Returns whether it is all.
fn read_on(socket: BorrowedFd<'_>, bytes: &mut [u8; GREETING], got: &mut usize) -> io::Result<bool> {
    if *got == GREETING {
        // Nothing more is due before the answer: it hung up, or is no peer.
        return Err(io::ErrorKind::InvalidData.into());
    }
    match sys::receive_some(socket, &mut bytes[*got..]) {
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(n) => {
            *got += n;
            Ok(*got == GREETING)
        }
        Err(cause) if is_later(&cause) => Ok(false),
        Err(cause) => Err(cause),
    }
}
