//! The two forms of a node: [`Node`], whose engine has a thread of its own, and [`DrivenNode`], which the caller drives.

use std::cell::Cell;
use std::net::TcpListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use consort_dataplane::session::Verdict;

use super::control::{Control, Reports};
use super::driver::{Driver, PANICKED};
use super::event::{Event, Inbox, Incoming};
use super::sender::Sender;
use super::shared::{Ask, Shared};
use super::start::{CloseError, Closed, NodeStats, Start, StartError, Status};
use crate::membership::Stopped;
use crate::orders::Report;

/// A node, its engine on a thread of its own. Dropping it stops it at once: what was not delivered stays so, and the
/// others are told that it left; [`Node::close`] ends in order.
pub struct Node {
    sender: Sender,
    inbox: Arc<Inbox>,
    asking: Asking,
    engine: Option<JoinHandle<()>>,
    control: Option<JoinHandle<()>>,
}

/// A node that the caller drives, on the thread that it chooses: no thread of the library ever touches a message.
/// Dropping it stops it at once, like a [`Node`].
pub struct DrivenNode {
    sender: Sender,
    shared: Arc<Shared>,
    /// `None` once closed.
    driver: Option<Driver>,
    control: Option<JoinHandle<()>>,
}

impl Node {
    /// Starts a node. Returns before its peers are there: [`Event::View`] says that the group runs.
    ///
    /// # Errors
    /// The configuration can't be, the control address is taken, or the machine refuses what the fabric needs.
    pub fn start(start: Start) -> Result<Self, StartError> {
        let id = start.config.id;
        let (driver, asking, control) = prepare(start)?;
        let inbox = Arc::new(Inbox::new(asking.shared.bell.clone()));
        let theirs = inbox.clone();
        let engine = std::thread::Builder::new()
            .name(format!("consort-{id}"))
            .spawn(move || run(driver, &theirs))
            .map_err(|cause| StartError::Machine { what: "a thread for the engine", cause })?;
        let sender = Sender::new(asking.shared.outbox.clone());
        Ok(Self { sender, inbox, asking, engine: Some(engine), control: Some(control) })
    }

    /// A handle to send with, for any thread.
    pub fn sender(&self) -> Sender {
        self.sender.clone()
    }

    /// The next event. Blocks until there is one. Several threads may call it; each event goes to one of them.
    ///
    /// # Errors
    /// The node stopped, and all events before that were taken.
    pub fn recv(&self) -> Result<Event, Stopped> {
        loop {
            if let Some(event) = self.inbox.take(None)? {
                return Ok(event);
            }
        }
    }

    /// The next event, if there is one. Never blocks.
    ///
    /// # Errors
    /// As [`Node::recv`].
    pub fn try_recv(&self) -> Result<Option<Event>, Stopped> {
        self.inbox.try_take()
    }

    /// The next event, or `None` if there is none within `within`.
    ///
    /// # Errors
    /// As [`Node::recv`].
    pub fn recv_timeout(&self, within: Duration) -> Result<Option<Event>, Stopped> {
        self.inbox.take(Some(within))
    }

    /// Leaves the group in order (V8): takes no more sends, waits until all that this node has sent is delivered here, and has
    /// the others agree on a view without it, which go on. Blocks for as long, `within` at most. Events that were not taken by
    /// then are dropped: to see all that every member has to say, call [`Sender::end`] and take events until every member has
    /// [ended](Event::Ended), then close.
    ///
    /// # Errors
    /// It wasn't done in time, or the node had stopped before. Either way it is stopped now.
    pub fn close(mut self, within: Duration) -> Result<Closed, CloseError> {
        let (answer, answered) = mpsc::channel();
        let asked = self.asking.ask(Ask::Close(within, answer));
        // Taking makes room: the engine goes on delivering until the last member has ended.
        let mut discarded = 0;
        let stopped = loop {
            match self.inbox.take(None) {
                Ok(Some(Event::Message(_))) => discarded += 1,
                Ok(_) => {}
                Err(reason) => break reason,
            }
        };
        self.join();
        match answered.recv() {
            Ok(result) if asked => result.map(|()| Closed { discarded }),
            _ => Err(CloseError::Stopped(stopped)),
        }
    }

    /// As [`Node::close`], for those who take the events themselves, to the end: begins to leave, and returns. [`Node::recv`] gives
    /// what is still delivered, and fails when it is over; then [`Departure::wait`] says how it went.
    pub fn leave(&self, within: Duration) -> Departure {
        let (answer, answered) = mpsc::channel();
        self.asking.ask(Ask::Close(within, answer));
        Departure(answered)
    }

    /// Stops at once, as dropping it does, without waiting for that: [`Node::recv`] says when it has.
    pub fn stop(&self) {
        self.asking.ask(Ask::Leave);
    }

    /// What was counted so far: asks the engine, and blocks until it has answered.
    pub fn stats(&self) -> NodeStats {
        self.asking.answer(Ask::Stats, |(stats, _)| *stats)
    }

    /// Where the node stands, or stood when it stopped: asks the engine, and blocks until it has answered.
    pub fn status(&self) -> Status {
        self.asking.answer(Ask::Status, |(_, status)| status.clone())
    }

    fn join(&mut self) {
        for thread in [self.engine.take(), self.control.take()].into_iter().flatten() {
            let _ = thread.join(); // a panic in it was told as the reason for the stop
        }
    }
}

/// A node that leaves ([`Node::leave`]).
#[derive(Debug)]
pub struct Departure(mpsc::Receiver<Result<(), CloseError>>);

impl Departure {
    /// Blocks until the node has left. Somebody must take its events meanwhile.
    ///
    /// # Errors
    /// As [`Node::close`].
    pub fn wait(self) -> Result<(), CloseError> {
        self.0.recv().unwrap_or(Err(CloseError::Stopped(Stopped::Closed)))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.asking.ask(Ask::Leave);
        self.join();
    }
}

impl DrivenNode {
    /// Starts a node that the caller drives. Only its control links have a thread of their own. Returns before its peers
    /// are there: keep polling.
    ///
    /// # Errors
    /// As [`Node::start`].
    pub fn start(start: Start) -> Result<Self, StartError> {
        let (driver, Asking { shared, .. }, control) = prepare(start)?;
        let sender = Sender::new(shared.outbox.clone());
        Ok(Self { sender, shared, driver: Some(driver), control: Some(control) })
    }

    /// A handle to send with, for any thread.
    pub fn sender(&self) -> Sender {
        self.sender.clone()
    }

    /// One turn: takes in what has come, sends what was committed, and gives `app` what is due. Never blocks once the group
    /// runs (before, a start that has to be tried again makes a new fabric). Returns whether anything happened; if not,
    /// [`DrivenNode::wait`] may be called. The thread that calls it drives the node: [`Sender::reserve`] refuses there
    /// to wait for itself.
    ///
    /// # Errors
    /// The node stopped.
    pub fn poll(&mut self, app: &mut dyn FnMut(Incoming<'_, '_>)) -> Result<bool, Stopped> {
        let Some(driver) = &mut self.driver else { return Err(Stopped::Closed) };
        if self.shared.outbox.driven_here() {
            driver.moved();
        }
        driver.turn(&mut |incoming| {
            app(incoming);
            Verdict::Taken
        })
    }

    /// Waits until there may be something to do, as the wait strategy says: spins, yields or sleeps, a tenth of a second
    /// at most. Call it after a turn in which nothing happened.
    pub fn wait(&mut self) {
        if let Some(driver) = &mut self.driver {
            driver.rest(&|| false);
        }
    }

    /// As [`Node::close`], giving `app` what is delivered meanwhile.
    ///
    /// # Errors
    /// As [`Node::close`].
    pub fn close(
        mut self,
        within: Duration,
        app: &mut dyn FnMut(Incoming<'_, '_>),
    ) -> Result<(), CloseError> {
        let (answer, answered) = mpsc::channel();
        if let Some(driver) = &mut self.driver {
            driver.begin_to_close(within, answer);
        }
        let stopped = loop {
            match self.poll(app) {
                Ok(true) => {}
                Ok(false) => self.wait(),
                Err(reason) => break reason,
            }
        };
        answered.try_recv().unwrap_or(Err(CloseError::Stopped(stopped)))
    }

    /// What was counted so far.
    pub fn stats(&self) -> NodeStats {
        self.driver.as_ref().map(Driver::stats).unwrap_or_default()
    }

    /// Where the node stands.
    pub fn status(&self) -> Status {
        self.driver.as_ref().map(Driver::status).unwrap_or_default()
    }
}

impl Drop for DrivenNode {
    fn drop(&mut self) {
        drop(self.driver.take()); // it leaves
        if let Some(control) = self.control.take() {
            let _ = control.join();
        }
    }
}

/// The questions' way to an engine on another thread.
struct Asking {
    asks: mpsc::Sender<Ask>,
    shared: Arc<Shared>,
}

impl Asking {
    /// Whether there is an engine to ask.
    fn ask(&self, ask: Ask) -> bool {
        let asked = self.asks.send(ask).is_ok();
        self.shared.call();
        asked
    }

    /// The engine's answer, or how it stood when it ended.
    fn answer<T: Default>(
        &self,
        ask: impl Fn(mpsc::Sender<T>) -> Ask,
        last: impl Fn(&(NodeStats, Status)) -> T,
    ) -> T {
        let (answer, answered) = mpsc::channel();
        self.ask(ask(answer));
        // An engine that ends drops the questions that it has not answered.
        answered.recv().unwrap_or_else(|_| self.shared.last.get().map(last).unwrap_or_default())
    }
}

/// Checks, listens, makes the fabric, and starts the control thread.
fn prepare(start: Start) -> Result<(Driver, Asking, JoinHandle<()>), StartError> {
    let Start { config, listener, fabric: mut make } = start;
    config.check()?;
    let listener = match listener {
        Some(listener) => listener,
        None => TcpListener::bind(config.listen)
            .map_err(|cause| StartError::Listen { address: config.listen, cause })?,
    };
    let made = make().map_err(StartError::Fabric)?;
    let shared = Arc::new(Shared::new(made.0.doorbell()));
    let ((orders, ordered), (asks, asked)) = (mpsc::channel(), mpsc::channel());
    let (control, reports): (Control, Reports) = Control::new(&config, listener, orders, shared.clone())?;
    reports.tell(Report::Prepared(0, made.0.offer()));
    let name = format!("consort-{}-ctl", config.id);
    let driver = Driver::new(config, make, made, shared.clone(), (ordered, asked), reports);
    let thread = control.spawn(name)?;
    Ok((driver, Asking { asks, shared }, thread))
}

/// The engine's thread.
pub(super) fn run(mut driver: Driver, inbox: &Inbox) {
    let ran = catch_unwind(AssertUnwindSafe(move || {
        let full = Cell::new(false);
        loop {
            full.set(false);
            match driver.turn(&mut |incoming| inbox.offer(incoming, &full)) {
                Ok(true) => inbox.tell(),
                Ok(false) => driver.rest(&|| full.get() && !inbox.is_full()),
                Err(reason) => return reason,
            }
        }
    }));
    // The driver is dropped by now, so who is told can ask how it stood, and senders know.
    let reason = ran.unwrap_or_else(|_| Stopped::Machine(PANICKED.to_owned()));
    inbox.stop(&reason);
}
