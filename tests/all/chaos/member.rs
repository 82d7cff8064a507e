//! The process that the scenarios start: a member that sends numbered messages and writes down its life.
//!
//! What it writes is a file without a name, which it got as its standard output and its parent reads. A line is one write, so
//! what a killed process has written is there, and at most its last line is missing. Lines are marked with `@`, because the
//! test harness writes there too:
//!
//! - `view V NODE:INCARNATION …`, a view, and its members in rank order
//! - `message V PLACE PROCESS NUMBER`, a delivery
//! - `send NUMBER`, before the send
//! - `delivered NUMBER V PLACE` or `failed NUMBER`, its outcome
//! - `evicted KIND …`, `stopped KIND …`, `closed`
//! - `in GROUP …`, any of these of a group beside the main one: a life of its own

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::{Duration, Instant};

use consort::{
    DrivenNode, Event, Group, GroupConfig, Incoming, Node, NodeBuilder, Outcome, SendError, Seq, SlowPolicy,
    Stopped, View, ViewId, WaitStrategy,
};
use rustix::process::{Signal, set_parent_process_death_signal};

/// Node, process, address to listen at, fabric, silence in milliseconds, and more words: `rejoin`, `witness`, `slow=` and the
/// milliseconds after which one whose engine stands still is evicted, `driven` by the thread that takes what is delivered;
/// `group=`, a name, `:` and the nodes of a group beside the main one (unless it is driven).
pub(super) const SELF: &str = "CONSORT_CHAOS_SELF";
/// `NODE=ADDRESS` of each peer.
pub(super) const PEERS: &str = "CONSORT_CHAOS_PEERS";
/// Addresses to join by.
pub(super) const JOIN: &str = "CONSORT_CHAOS_JOIN";

/// Between two sends.
const PACE: Duration = Duration::from_millis(3);

/// Bounds a leave; far beyond what it takes.
const LEAVE_WITHIN: Duration = Duration::from_secs(60);

/// Bytes of a message: the process, the number, and what makes rings turn.
const MESSAGE: usize = 200;

/// Not a test: the process that the scenarios start.
#[test]
#[ignore = "a process that other tests start"]
fn member() {
    let Ok(who) = std::env::var(SELF) else { return };
    // It ends with its parent, also where that is killed. (Had it died before this, standard input is at its end.)
    set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
    let words: Vec<&str> = who.split(' ').collect();
    let [id, process, listen, fabric, silence, more @ ..] = words.as_slice() else { panic!("{who}") };
    let silence = Duration::from_millis(silence.parse().unwrap());
    let mut builder = NodeBuilder::new(id.parse().unwrap())
        .listen(listen.parse().unwrap())
        .fabric(fabric.parse().unwrap())
        .silence(silence)
        .quorum_within(silence * 2)
        .ring_bytes(64 << 10)
        .wait(WaitStrategy::Block)
        .rejoin(more.contains(&"rejoin"));
    if more.contains(&"witness") {
        builder = builder.witness();
    }
    if let Some(after) = more.iter().find_map(|word| word.strip_prefix("slow=")) {
        builder = builder.slow(SlowPolicy::Evict(Duration::from_millis(after.parse().unwrap())));
    }
    for group in more.iter().filter_map(|word| word.strip_prefix("group=")) {
        let (name, nodes) = group.split_once(':').unwrap();
        let nodes: Vec<u32> = nodes.split(',').map(|node| node.parse().unwrap()).collect();
        builder = builder.group(GroupConfig::new(name).nodes(nodes).ring_bytes(16 << 10));
    }
    for peer in std::env::var(PEERS).unwrap().split_whitespace() {
        let (id, address) = peer.split_once('=').unwrap();
        builder = builder.peer(id.parse().unwrap(), address.parse().unwrap());
    }
    for address in std::env::var(JOIN).unwrap().split_whitespace() {
        builder = builder.join(address.parse().unwrap());
    }
    let process = process.parse().unwrap();
    let file = || File::from(std::io::stdout().as_fd().try_clone_to_owned().unwrap());
    file().write_all(b"\n").unwrap(); // the harness has begun a line
    let host = match more.contains(&"driven") {
        true => Host::Driven(Box::new(builder.driven().unwrap())),
        false => Host::Own(builder.start().unwrap()),
    };
    let groups: Vec<Group> = match &host {
        Host::Own(node) => node.groups().skip(1).cloned().collect(),
        _ => Vec::new(),
    };
    let mut told = listen_to_parent(groups.len() + 1);
    for group in groups {
        let history = History { file: file(), mark: format!("@in {} ", group.name()) };
        let (life, told) =
            (Life { host: Host::Group(group), history, process, hangs: false }, told.pop().unwrap());
        std::thread::spawn(move || life.live(&told));
    }
    let history = History { file: file(), mark: "@".to_owned() };
    Life { host, history, process, hangs: false }.live(&told[0]);
}

struct History {
    file: File,
    /// What lines begin with.
    mark: String,
}

impl History {
    fn line(&mut self, words: std::fmt::Arguments<'_>) {
        self.file.write_all(format!("{}{words}\n", self.mark).as_bytes()).unwrap();
    }

    fn event(&mut self, event: &Event) {
        match event {
            Event::View(view) => self.view(view),
            Event::Message(message) => self.message(message.view, message.seq, message.payload()),
            Event::Evicted { reason } => self.evicted(reason),
            _ => {}
        }
    }

    fn incoming(&mut self, incoming: &Incoming<'_, '_>) {
        match incoming {
            Incoming::View(view) => self.view(view),
            Incoming::Message(delivery) => self.message(delivery.view, delivery.seq, delivery.payload),
            Incoming::Evicted(reason) => self.evicted(reason),
            _ => {}
        }
    }

    fn view(&mut self, view: &View) {
        let mut members = String::new();
        for member in &view.members {
            write!(members, " {}:{}", member.node.0, member.incarnation.0).unwrap();
        }
        self.line(format_args!("view {}{members}", view.id.0));
    }

    fn message(&mut self, view: ViewId, place: Seq, payload: &[u8]) {
        let (process, rest) = payload.split_at(4);
        let process = u32::from_le_bytes(process.try_into().unwrap());
        let number = u64::from_le_bytes(rest[..8].try_into().unwrap());
        self.line(format_args!("message {} {} {process} {number}", view.0, place.0));
    }

    fn evicted(&mut self, reason: &Stopped) {
        self.line(format_args!("evicted {} {reason}", kind(reason)));
    }
}

/// Lines of standard input, for so many lives; cut off at its end.
fn listen_to_parent(lives: usize) -> Vec<Receiver<String>> {
    let (tell, told): (Vec<_>, _) = (0..lives).map(|_| channel()).unzip();
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            for tell in &tell {
                let _ = tell.send(line.clone());
            }
        }
    });
    told
}

/// Whose thread the engine has: one of its own, or that which takes what is delivered. Or a group beside another life.
enum Host {
    Own(Node),
    Driven(Box<DrivenNode>),
    Group(Group),
}

struct Life {
    host: Host,
    history: History,
    process: u32,
    /// The next callback doesn't return until it is told to.
    hangs: bool,
}

impl Life {
    /// Takes what comes and sends, until it is told to leave, the node stops, or the parent is gone.
    fn live(mut self, told: &Receiver<String>) {
        let sender = match &self.host {
            Host::Own(node) => node.sender(),
            Host::Driven(node) => node.sender(),
            Host::Group(group) => group.sender(),
        };
        let (mut next, mut due, mut silent) = (0_u64, Instant::now(), false);
        let mut pending: VecDeque<(u64, Outcome)> = VecDeque::new();
        loop {
            let went = self.turn(told, due);
            self.outcomes(&mut pending);
            if let Err(stopped) = went {
                self.history.line(format_args!("stopped {} {stopped}", kind(&stopped)));
                return self.wait_for_the_parent(told);
            }
            match told.try_recv().as_deref() {
                Ok("quiet") => silent = true,
                Ok("leave") => break,
                Ok("hang") => self.hangs = true,
                Ok(other) => panic!("{other}: not understood"),
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => return,
            }
            if Instant::now() < due {
                continue;
            }
            due = Instant::now() + PACE;
            if silent {
                continue;
            }
            match sender.try_reserve(MESSAGE) {
                Ok(mut room) => {
                    self.history.line(format_args!("send {next}"));
                    room.fill(0);
                    room[..4].copy_from_slice(&self.process.to_le_bytes());
                    room[4..12].copy_from_slice(&next.to_le_bytes());
                    pending.push_back((next, room.send_tracked()));
                    next += 1;
                }
                Err(
                    SendError::Full
                    | SendError::NotStarted
                    | SendError::NotMember
                    | SendError::Changing
                    | SendError::Stopped(_),
                ) => {}
                Err(error) => panic!("{error}"),
            }
        }
        let Self { host, mut history, .. } = self;
        let closed = match host {
            Host::Own(node) => node.close(LEAVE_WITHIN).map(drop),
            Host::Driven(node) => node.close(LEAVE_WITHIN, &mut |incoming| history.incoming(&incoming)),
            Host::Group(_) => return, // its node leaves
        };
        match closed {
            Ok(()) => history.line(format_args!("closed")),
            Err(error) => panic!("{error}"),
        }
        for (number, outcome) in pending {
            tell(&mut history, number, &outcome);
        }
    }

    /// Takes what is there, waiting for it until `due` or so.
    fn turn(&mut self, told: &Receiver<String>, due: Instant) -> Result<(), Stopped> {
        let Self { host, history, hangs, .. } = self;
        match host {
            Host::Own(node) => {
                let mut event = node.recv_timeout(due.saturating_duration_since(Instant::now()))?;
                while let Some(one) = event {
                    history.event(&one);
                    event = node.try_recv()?;
                }
            }
            Host::Group(group) => {
                let mut event = group.recv_timeout(due.saturating_duration_since(Instant::now()))?;
                while let Some(one) = event {
                    history.event(&one);
                    event = group.try_recv()?;
                }
            }
            Host::Driven(node) => {
                let busy = node.poll(&mut |incoming| {
                    if std::mem::take(hangs) {
                        let _ = told.recv(); // whatever it says
                    }
                    history.incoming(&incoming);
                })?;
                if !busy {
                    node.wait();
                }
            }
        }
        Ok(())
    }

    fn outcomes(&mut self, pending: &mut VecDeque<(u64, Outcome)>) {
        while let Some((number, outcome)) = pending.front()
            && tell(&mut self.history, *number, outcome)
        {
            pending.pop_front();
        }
    }

    /// A node that has stopped stays a process, as a zombie of the protocol would, until the scenario is over.
    fn wait_for_the_parent(self, told: &Receiver<String>) {
        while told.recv().is_ok() {}
        drop(self);
    }
}

/// Writes down an outcome, if it is in.
fn tell(history: &mut History, number: u64, outcome: &Outcome) -> bool {
    match outcome.try_get() {
        None => return false,
        Some(Ok(at)) => history.line(format_args!("delivered {number} {} {}", at.view.0, at.seq.0)),
        Some(Err(_)) => history.line(format_args!("failed {number}")),
    }
    true
}

fn kind(stopped: &Stopped) -> &'static str {
    match stopped {
        Stopped::Evicted { .. } => "Evicted",
        Stopped::NoQuorum { .. } => "NoQuorum",
        _ => "other",
    }
}
