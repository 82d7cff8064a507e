//! The control thread: one thread for all control links of a node. It sleeps in `epoll` until a socket, a report of the
//! driver, or a date of the control plane wakes it.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use mio::event::Event;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token, Waker};

use super::clock;
use super::shared::Shared;
use super::start::StartError;
use crate::config::NodeConfig;
use crate::link::table::{ConnectionId, Request};
use crate::membership::{Absent, Lost, Stopped};
use crate::orders::{Order, Report};
use crate::plane::Plane;

const LISTENER: Token = Token(0);
const REPORTS: Token = Token(1);
/// Connections have the tokens from here.
const CONNECTIONS: usize = 2;

/// How long a silent peer's machine may stay unanswering before the kernel gives the link up.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// The driver's side, and that of whoever reads a snapshot: tells the control thread, and knows where membership stands.
#[derive(Clone)]
pub(crate) struct Reports {
    to: mpsc::Sender<Report>,
    waker: Arc<Waker>,
    standing: Arc<Mutex<Standing>>,
}

#[derive(Default)]
struct Standing {
    phase: String,
    absent: Vec<Absent>,
    lost: Vec<Lost>,
}

impl Reports {
    pub(crate) fn tell(&self, report: Report) {
        // If the thread is gone, so is what it was for; it has ordered to stop.
        if self.to.send(report).is_ok() {
            let _ = self.waker.wake();
        }
    }

    /// Membership's phase, for whom it waits, and whom it took for gone.
    pub(crate) fn standing(&self) -> (String, Vec<Absent>, Vec<Lost>) {
        let standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        (standing.phase.clone(), standing.absent.clone(), standing.lost.clone())
    }
}

#[cfg(test)]
impl Reports {
    /// Reports without a control thread to take them.
    pub(crate) fn apart() -> (Self, mpsc::Receiver<Report>) {
        let poll = Poll::new().expect("epoll");
        let waker = Arc::new(Waker::new(poll.registry(), REPORTS).expect("an eventfd"));
        let (to, reports) = mpsc::channel();
        (Self { to, waker, standing: Arc::default() }, reports)
    }
}

/// What the thread works on.
pub(crate) struct Control {
    poll: Poll,
    listener: TcpListener,
    plane: Plane,
    sockets: HashMap<ConnectionId, TcpStream>,
    reports: mpsc::Receiver<Report>,
    /// Kept open until this thread ends: the driver's last report is followed by the end of the driver, and an eventfd
    /// that is closed before epoll has told of it wakes nobody.
    _waker: Arc<Waker>,
    standing: Arc<Mutex<Standing>>,
    orders: mpsc::Sender<Order>,
    shared: Arc<Shared>,
}

impl Control {
    /// Listens, and seeds the plane.
    pub(crate) fn new(
        config: &NodeConfig,
        listener: std::net::TcpListener,
        orders: mpsc::Sender<Order>,
        shared: Arc<Shared>,
    ) -> Result<(Self, Reports), StartError> {
        let machine = |what| move |cause| StartError::Machine { what, cause };
        let poll = Poll::new().map_err(machine("epoll for the control links"))?;
        listener.set_nonblocking(true).map_err(machine("a non-blocking control listener"))?;
        let mut listener = TcpListener::from_std(listener);
        let registry = poll.registry();
        registry
            .register(&mut listener, LISTENER, Interest::READABLE)
            .map_err(machine("epoll for the control links"))?;
        let waker = Waker::new(registry, REPORTS).map_err(machine("an eventfd for the control thread"))?;
        let waker = Arc::new(waker);
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|error| StartError::Machine {
            what: "random numbers",
            cause: std::io::Error::from(error),
        })?;
        let (to, reports) = mpsc::channel();
        let standing = Arc::new(Mutex::new(Standing::default()));
        let plane = Plane::new(config, seed, clock::now());
        let control = Self {
            poll,
            listener,
            plane,
            sockets: HashMap::new(),
            reports,
            _waker: waker.clone(),
            standing: standing.clone(),
            orders,
            shared,
        };
        Ok((control, Reports { to, waker, standing }))
    }

    /// Starts the thread. It ends when membership has stopped, whoever made it stop.
    pub(crate) fn spawn(mut self, name: String) -> Result<JoinHandle<()>, StartError> {
        let body = move || {
            // Whatever happens here, the driver must not wait for orders that never come.
            let (orders, shared) = (self.orders.clone(), self.shared.clone());
            let run = std::panic::AssertUnwindSafe(|| self.run());
            let reason = match std::panic::catch_unwind(run) {
                Ok(Ok(())) => return,
                Ok(Err(cause)) => format!("the control links' epoll failed: {cause}"),
                Err(_) => "the control thread panicked; this is a bug of Consort".to_owned(),
            };
            let _ = orders.send(Order::Stop(Stopped::Machine(reason)));
            shared.call();
        };
        std::thread::Builder::new()
            .name(name)
            .spawn(body)
            .map_err(|cause| StartError::Machine { what: "a thread for the control links", cause })
    }

    fn run(&mut self) -> std::io::Result<()> {
        let mut events = Events::with_capacity(64);
        let mut buffer = vec![0; 256 << 10];
        loop {
            let now = clock::now();
            self.plane.on_time(now);
            while let Ok(report) = self.reports.try_recv() {
                self.plane.on_report(now, report);
            }
            self.carry_out();
            if self.plane.is_over() {
                return Ok(());
            }
            // Rounded up: a date that has almost come must not be polled for.
            let left = self.plane.due().map(|due| due.since(clock::now()) + Duration::from_millis(1));
            match self.poll.poll(&mut events, left) {
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            for event in &events {
                match event.token() {
                    LISTENER => self.accept(),
                    REPORTS => {}
                    Token(token) => self.on_event(ConnectionId(token - CONNECTIONS), event, &mut buffer),
                }
                self.carry_out();
            }
        }
    }

    fn accept(&mut self) {
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    if let Some(id) = self.plane.on_accepted(clock::now()) {
                        self.watch(id, stream, Interest::READABLE);
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // Nobody more, or no descriptor for them now: who dialled tries again.
                Err(_) => return,
            }
        }
    }

    fn dial(&mut self, id: ConnectionId, address: SocketAddr) {
        match TcpStream::connect(address) {
            Ok(stream) => self.watch(id, stream, Interest::READABLE | Interest::WRITABLE),
            Err(error) => self.plane.on_closed(id, clock::now(), &unreached(address, &error)),
        }
    }

    fn watch(&mut self, id: ConnectionId, mut stream: TcpStream, interest: Interest) {
        let _ = stream.set_nodelay(true);
        let keepalive = socket2::TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE);
        let _ = socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive);
        match self.poll.registry().register(&mut stream, Token(id.0 + CONNECTIONS), interest) {
            Ok(()) => {
                self.sockets.insert(id, stream);
            }
            Err(error) => self.plane.on_closed(id, clock::now(), &error.to_string()),
        }
    }

    fn on_event(&mut self, id: ConnectionId, event: &Event, buffer: &mut [u8]) {
        let now = clock::now();
        if event.is_writable()
            && let Some(stream) = self.sockets.get(&id)
            && let Ok(Some(error)) = stream.take_error()
        {
            let address =
                stream.peer_addr().map_or_else(|_| error.to_string(), |address| unreached(address, &error));
            self.sockets.remove(&id);
            return self.plane.on_closed(id, now, &address);
        }
        while let Some(stream) = self.sockets.get_mut(&id) {
            let why = match stream.read(buffer) {
                Ok(0) => "it closed the connection".to_owned(),
                Ok(len) => {
                    self.plane.on_bytes(id, now, &buffer[..len]);
                    self.carry_out();
                    continue;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => {
                    return;
                }
                Err(error) => plain(&error),
            };
            self.sockets.remove(&id);
            return self.plane.on_closed(id, now, &why);
        }
    }

    /// Does what the plane wants done: sockets, bytes, orders.
    fn carry_out(&mut self) {
        loop {
            for id in self.plane.talkative() {
                self.write(id);
            }
            let Some(request) = self.plane.poll_request() else { break };
            match request {
                Request::Dial(id, address) => self.dial(id, address),
                Request::Close(id, last) => self.close(id, &last),
            }
        }
        while let Some(order) = self.plane.poll_order() {
            // A driver that is gone needs no orders.
            let _ = self.orders.send(order);
            self.shared.call();
        }
        let mut standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        *standing = Standing {
            phase: self.plane.phase().to_string(),
            absent: self.plane.absent(),
            lost: self.plane.lost(),
        };
    }

    fn write(&mut self, id: ConnectionId) {
        let (Some(stream), Some(output)) = (self.sockets.get_mut(&id), self.plane.output(id)) else { return };
        let mut written = 0;
        let failed = loop {
            if written == output.len() {
                break None;
            }
            match stream.write(&output[written..]) {
                Ok(len) => written += len,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // The rest goes when the socket is writable.
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => {
                    break None;
                }
                Err(error) => break Some(error),
            }
        };
        output.drain(..written);
        let blocked = !output.is_empty();
        if let Some(error) = failed {
            self.sockets.remove(&id);
            return self.plane.on_closed(id, clock::now(), &plain(&error));
        }
        let interest = if blocked { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
        let _ = self.poll.registry().reregister(stream, Token(id.0 + CONNECTIONS), interest);
    }

    fn close(&mut self, id: ConnectionId, last: &[u8]) {
        let Some(mut stream) = self.sockets.remove(&id) else { return };
        // What is unread when a socket closes makes the kernel reset the connection, and throw away last words.
        let mut unread = [0; 4096];
        while stream.read(&mut unread).is_ok_and(|len| len > 0) {}
        let _ = stream.write(last);
        let _ = stream.shutdown(Shutdown::Both);
    }
}

fn unreached(address: SocketAddr, error: &std::io::Error) -> String {
    format!("{address}: {}", plain(error))
}

/// The system's words without its number.
fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_lowercase()
}
