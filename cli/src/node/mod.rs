//! `consort node`: one long-lived member, for shells and for programs in any language. Lines in, ordered messages out.
//!
//! Four threads: this one takes events from the node and prints them; one reads standard input and multicasts; one prints
//! the outcomes; one waits for signals. The engine has a thread of its own inside the library. Back-pressure goes
//! all the way: who does not read standard output stops the printing, the events wait, the engine delivers no more, the
//! rings fill, and every member's sends wait (D11).
//!
//! It lives through changes of the view: whoever leaves or is lost, the rest goes on, and input is read all the while. It
//! ends in one of four ways: it is no member any more (the others went on without it, or it can't reach a majority) and
//! is not to join again; a signal, on which it leaves in order; with `--until-eof`, when all members of the view have
//! come to the end of their input, which includes that all own outcomes are in; or the reader of standard output went
//! away. The last line of output is always why, if there is anyone to read it.

mod out;
mod feed;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufReader, Stdout};
use std::path::Path;
use std::sync::Arc;
use std::sync::OnceLock;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use consort::{
    ConfigError, Delivered, Event, Incarnation, KeyError, Node, NodeBuilder, SharedKey, StartError, Stopped,
};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use self::feed::Sent;
use self::out::{Fate, Line, Out, Pending};
use crate::args::NodeArgs;
use crate::failure::Failure;
use crate::group;

/// How often this thread looks for a signal while no event comes. A tenth of a second is soon enough for people, and costs
/// nothing to speak of.
const LOOK: Duration = Duration::from_millis(100);

/// After a signal, how long it goes on printing until all that it sent is delivered; what is not by then is printed no more.
const GRACE: Duration = Duration::from_secs(2);

/// And how long it then waits for the others to agree on a view without it. All this is less than what supervisors give a
/// process to end.
const LEAVE_WITHIN: Duration = Duration::from_secs(5);

/// After a signal, how long it may take altogether, even if nobody reads standard output.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs the member to its end.
///
/// # Errors
/// It can't start, is stopped, or standard input or output break.
pub(crate) fn run(args: &NodeArgs) -> Result<(), Failure> {
    let builder = configure(args)?;
    let id = builder.config().id.0;
    let signalled = watch_signals()?;
    let node = builder.start().map_err(|error| not_started(id, error))?;
    let out = Arc::new(Out::new(std::io::stdout()));
    let pending = Arc::new(Pending::new());
    let printer = {
        let (out, pending) = (out.clone(), pending.clone());
        let durable = node.main().guarantee().durable();
        std::thread::spawn(move || print_outcomes(&pending, &out, durable))
    };
    let mut member = Member {
        node,
        out: out.clone(),
        pending: pending.clone(),
        me: id,
        base64: args.base64,
        feeder: Feeder::Asleep,
        members: BTreeMap::new(),
        ended: BTreeSet::new(),
    };
    let end = member.serve(args.until_eof, &signalled);
    // The node goes first: that settles every outcome.
    let closed = member.leave(&end);
    pending.close();
    // It panics only if printing does, and then there is nothing left to print.
    let _ = printer.join();
    let (reason, result) = end.verdict(id, closed);
    out.line(&Line::Stopped { reason: &reason });
    out.flush();
    result
}

/// The member's configuration: the file's, changed by what the flags say.
fn configure(args: &NodeArgs) -> Result<NodeBuilder, Failure> {
    let mut builder = match (&args.config, args.id) {
        (Some(file), _) => NodeBuilder::from_toml(file).map_err(not_configured)?,
        (None, Some(id)) => NodeBuilder::new(id),
        (None, None) => return Err(Failure::usage("a member needs a number", "give --id, or --config")),
    };
    if builder.config().state {
        return Err(Failure::usage(
            "`state = true` is for applications that have a state to give to who joins; `consort node` has none",
            "leave `state` out, at all members of the group",
        ));
    }
    if !builder.config().groups.is_empty() {
        return Err(Failure::usage(
            "`[groups]` is for programs that take part in them; `consort node` is a member of the main group alone",
            "leave `[groups]` out, at all members",
        ));
    }
    if let Some(address) = args.listen {
        builder = builder.listen(address);
    }
    if !args.join.is_empty() && !args.peers.is_empty() {
        return Err(Failure::usage(
            "--join and --peer don't go together",
            "give --join with the address of some member to join a group that runs, or --peer for each of the others to found one",
        ));
    }
    for &address in &args.join {
        builder = builder.join(address);
    }
    for &(id, address) in &args.peers {
        if builder.config().peers.iter().any(|(node, known)| node.0 == id && *known != address)
            && args.config.is_none()
        {
            return Err(Failure::usage(
                format!("peer {id} has two addresses"),
                "give each of the others once, with --peer ID=ADDRESS",
            ));
        }
        builder = builder.peer(id, address);
    }
    if let Some(fabric) = args.fabric {
        builder = builder.fabric(fabric.into());
    }
    if let Some(guarantee) = args.guarantee {
        builder = builder.guarantee(guarantee.into());
    }
    if let Some(data) = &args.data {
        builder = builder.data(data);
    }
    if let Some(wait) = args.wait {
        builder = builder.wait(wait.into());
    }
    if let Some(ring) = args.ring {
        builder = builder.ring_bytes(ring);
    }
    if let Some(within) = args.start_within {
        builder = builder.start_within(within);
    }
    if args.rejoin {
        builder = builder.rejoin(true);
    }
    if args.witness {
        builder = builder.witness();
    }
    if let Some(bound) = args.silence {
        builder = builder.silence(bound);
    }
    if let Some(within) = args.quorum_within {
        builder = builder.quorum_within(within);
    }
    if let Some(file) = &args.key_file {
        builder = builder.shared_key(read_key(file)?);
    }
    builder.config().check().map_err(not_configured)?;
    Ok(builder)
}

/// The secret in a file.
///
/// # Errors
/// It can't be read, or is none.
pub(crate) fn read_key(file: &Path) -> Result<SharedKey, Failure> {
    SharedKey::from_file(file).map_err(|error| match error {
        KeyError::Read { cause, .. } => Failure::file("read", file, cause),
        other => Failure::usage(
            format!("--key-file {}: {other}", file.display()),
            "give a file with the secret that all nodes share, which only its owner may read",
        ),
    })
}

fn not_configured(error: ConfigError) -> Failure {
    match error {
        ConfigError::Read { file, cause } => Failure::file("read", &file, cause),
        other => Failure::usage(
            group::chain(&other),
            "write it as the message says; `consort node --help` shows flags and file",
        ),
    }
}

fn not_started(id: u32, error: StartError) -> Failure {
    match error {
        StartError::Config(error) => not_configured(error),
        other => group::not_started(id, &other),
    }
}

/// Which signal asks this process to end, once one does.
pub(crate) type Signalled = Arc<OnceLock<&'static str>>;

/// Waits for SIGTERM and SIGINT, on a thread of its own. A second one ends the process at once, and so does the first if nothing else
/// has within [`PATIENCE`].
///
/// # Errors
/// The system refuses.
pub(crate) fn watch_signals() -> Result<Signalled, Failure> {
    let mut signals = Signals::new([SIGTERM, SIGINT]).map_err(|cause| {
        Failure::start(format!("can't wait for signals: {cause}"), "see the system's reason")
    })?;
    let signalled = Signalled::default();
    let told = signalled.clone();
    std::thread::spawn(move || {
        for signal in signals.forever() {
            let name = if signal == SIGTERM { "SIGTERM" } else { "SIGINT" };
            if told.set(name).is_err() {
                // The second one means it: end as if there were no handler.
                let _ = signal_hook::low_level::emulate_default_handler(signal);
            }
            std::thread::spawn(move || {
                std::thread::sleep(PATIENCE);
                tracing::error!("no end within {PATIENCE:?} of {name}: nobody reads standard output");
                let _ = signal_hook::low_level::emulate_default_handler(signal);
            });
        }
    });
    Ok(signalled)
}

/// Why the member ends.
enum End {
    /// With `--until-eof`.
    AllEnded,
    Signal(&'static str),
    Stopped(Stopped),
    Output(std::io::Error),
    Input(std::io::Error),
}

impl End {
    /// The last line's reason, and the command's result. `closed` is whether the node left in order.
    fn verdict(self, id: u32, closed: Result<(), String>) -> (String, Result<(), Failure>) {
        match self {
            Self::AllEnded => match closed {
                Ok(()) => ("every member has come to the end of its input".to_string(), Ok(())),
                Err(reason) => {
                    let failure = Failure::lost(
                        format!("member {id} did not leave in order: {reason}"),
                        "everything was delivered here; look at the other members",
                    );
                    (reason, Err(failure))
                }
            },
            Self::Signal(name) => {
                // It was told to end, and ends; the others find it lost.
                if let Err(reason) = closed {
                    tracing::warn!("member {id} did not leave in order: {reason}");
                }
                (name.to_string(), Ok(()))
            }
            Self::Stopped(stopped @ Stopped::NotStarted { .. }) => {
                let reason = group::chain(&stopped);
                let remedy = "start the missing members, see that every --peer is another's --listen, or give a longer --start-within";
                (reason.clone(), Err(Failure::start(reason, remedy)))
            }
            Self::Stopped(stopped) => (group::chain(&stopped), Err(group::stopped(id, &stopped))),
            Self::Output(cause) => {
                (cause.to_string(), Err(Failure::stream("write", "standard output", cause)))
            }
            Self::Input(cause) => (cause.to_string(), Err(Failure::stream("read", "standard input", cause))),
        }
    }
}

/// The thread that reads standard input.
enum Feeder {
    /// There is no view yet.
    Asleep,
    Reading(JoinHandle<std::io::Result<()>>),
    Done,
}

struct Member {
    node: Node,
    out: Arc<Out<Stdout>>,
    pending: Arc<Pending<(u64, Sent)>>,
    me: u32,
    base64: bool,
    feeder: Feeder,
    /// Those of the newest view, and which life of theirs is in it.
    members: BTreeMap<u32, Incarnation>,
    /// Who of them sends nothing more.
    ended: BTreeSet<u32>,
}

impl Member {
    /// Prints events until there is a reason to end.
    fn serve(&mut self, until_eof: bool, signalled: &Signalled) -> End {
        let mut leave_by: Option<(Instant, &'static str)> = None;
        loop {
            let event = match self.node.try_recv() {
                Ok(None) => {
                    self.out.flush();
                    self.node.recv_timeout(LOOK)
                }
                taken => taken,
            };
            match event {
                Ok(Some(event)) => self.print(&event),
                Ok(None) => {}
                Err(stopped) => return End::Stopped(stopped),
            }
            if let Some(cause) = self.out.take_failure() {
                return End::Output(cause);
            }
            if let Some(Err(cause)) = self.fed() {
                return End::Input(cause);
            }
            let all_ended = !self.members.is_empty() && self.ended.iter().eq(self.members.keys());
            if all_ended && until_eof {
                return End::AllEnded;
            }
            match leave_by {
                None => {
                    if let Some(name) = signalled.get() {
                        leave_by = Some((Instant::now() + GRACE, name));
                        let sender = self.node.sender();
                        // It may have to wait for room in the ring, and events must go on meanwhile.
                        std::thread::spawn(move || sender.end());
                        if self.members.is_empty() {
                            return End::Signal(name);
                        }
                    }
                }
                Some((until, name)) => {
                    if self.ended.contains(&self.me) || Instant::now() >= until {
                        return End::Signal(name);
                    }
                }
            }
        }
    }

    fn print(&mut self, event: &Event) {
        match event {
            Event::Waiting { for_whom } => {
                self.out.line(&Line::Waiting {
                    for_whom: for_whom.iter().map(|absent| absent.node.0).collect(),
                    why: for_whom.iter().map(|absent| absent.why.clone()).collect(),
                });
                self.out.flush();
            }
            Event::View(view) => {
                let now: BTreeMap<_, _> =
                    view.members.iter().map(|member| (member.node.0, member.incarnation)).collect();
                self.out.line(&Line::View { view: view.id.0, members: now.keys().copied().collect() });
                self.out.flush();
                // Whoever left or was lost is not waited for, and who is there in another life may send again.
                let before = std::mem::replace(&mut self.members, now);
                let members = &self.members;
                self.ended.retain(|node| members.contains_key(node) && members.get(node) == before.get(node));
                self.feed();
            }
            Event::Evicted { reason } => {
                self.members.clear();
                self.ended.clear();
                self.out.line(&Line::Evicted { reason: group::chain(reason) });
                self.out.flush();
            }
            Event::Message(message) => {
                let (view, seq, sender) = (message.view.0, message.seq.0, message.sender.0);
                self.out.line(&Line::message(view, seq, sender, message.payload()));
            }
            Event::Ended { node } => {
                self.ended.insert(node.0);
                self.out.line(&Line::Ended { sender: node.0 });
            }
            _ => {}
        }
    }

    /// Starts to read standard input, once.
    fn feed(&mut self) {
        if let Feeder::Asleep = self.feeder {
            let (sender, pending, base64) = (self.node.sender(), self.pending.clone(), self.base64);
            self.feeder = Feeder::Reading(std::thread::spawn(move || {
                feed::run(BufReader::with_capacity(64 << 10, std::io::stdin()), base64, &sender, &pending)
            }));
        }
    }

    /// How reading ended, when it has; told once.
    fn fed(&mut self) -> Option<std::io::Result<()>> {
        if !matches!(&self.feeder, Feeder::Reading(thread) if thread.is_finished()) {
            return None;
        }
        match std::mem::replace(&mut self.feeder, Feeder::Done) {
            Feeder::Reading(thread) => {
                Some(thread.join().unwrap_or_else(|_| Err(std::io::Error::other("the reader panicked"))))
            }
            _ => None,
        }
    }

    /// Leaves the group.
    fn leave(self, end: &End) -> Result<(), String> {
        let within = match end {
            End::AllEnded => group::CLOSE_WITHIN,
            End::Signal(_) if !self.members.is_empty() => LEAVE_WITHIN,
            // There is nobody to leave, or nobody to tell.
            _ => Duration::ZERO,
        };
        self.node.close(within).map(|_| ()).map_err(|error| group::chain(&error))
    }
}

/// Prints the outcomes in the order of the input, as they come in.
fn print_outcomes(pending: &Pending<(u64, Sent)>, out: &Out<Stdout>, durable: bool) {
    loop {
        let next = pending.try_pop().or_else(|| {
            out.flush();
            pending.pop()
        });
        let Some((send, sent)) = next else { return };
        let fate = match sent {
            Sent::Refused(reason) => Fate::Failed { reason },
            Sent::Tracked(outcome) => {
                if outcome.try_get().is_none() {
                    out.flush();
                }
                match outcome.wait() {
                    Ok(Delivered { view, seq }) if durable => Fate::Durable { view: view.0, seq: seq.0 },
                    Ok(Delivered { view, seq }) => Fate::Delivered { view: view.0, seq: seq.0 },
                    Err(error) => Fate::Failed { reason: group::chain(&error) },
                }
            }
        };
        out.line(&Line::Outcome { send, fate });
    }
}
