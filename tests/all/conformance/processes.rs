//! Peers that are processes of their own: killed, stopped, closed.
//!
//! The child is this very test binary, started again for the one ignored test [`child`], which finds in its environment
//! which fabric it is to speak. Parent and child exchange offers over its standard input and output, a line each,
//! marked with `@` because the test harness prints there too.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::time::Instant;

use consort_dataplane::fabric::{Fabric, LinkDown, LinkEvent};
use consort_dataplane::memory::WORD;
use consort_dataplane::names::{NodeId, PeerSet};
use rustix::process::{Pid, Signal, kill_process};

use super::traffic::{Reader, SEGMENT, Writer, count, picture};
use super::{HANG, LINK_WITHIN, RealRig, real_now, slot};

const FABRIC: &str = "CONSORT_CONFORMANCE_CHILD";
const SEED: &str = "CONSORT_CONFORMANCE_CHILD_SEED";

/// What the parent, who only reads, has no use for.
const UNUSED: std::ops::Range<usize> = 8192..SEGMENT;

const PARENT: NodeId = NodeId(1);
const CHILD: NodeId = NodeId(2);

/// A child process that writes records as fast as they are acknowledged. It is killed at the latest when this is dropped.
pub(super) struct Peer {
    pub(super) child: Child,
    say: ChildStdin,
    heard: mpsc::Receiver<String>,
}

impl Peer {
    fn start<R: RealRig>(seed: u64) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "conformance::processes::child",
                "--ignored",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(FABRIC, R::NAME)
            .env(SEED, seed.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let say = child.stdin.take().unwrap();
        let heard = listen(child.stdout.take().unwrap());
        Self { child, say, heard }
    }

    fn say(&mut self, word: &str) {
        writeln!(self.say, "{word}").unwrap();
    }

    fn hear(&self) -> String {
        self.heard.recv_timeout(HANG).expect("the child says something")
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// A word of the parent's segment as the child sees it.
    fn peek(&mut self, offset: usize) -> u64 {
        self.say(&format!("peek {offset}"));
        self.hear().parse().unwrap()
    }

    /// The child's number of records written, and so a sign that it is at work.
    fn written(&mut self) -> u64 {
        self.say("written?");
        self.hear().parse().unwrap()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill(); // also where it is stopped
        let _ = self.child.wait();
    }
}

/// The marked lines of a stream, read in a thread so that waiting for them is bounded.
fn listen(stream: ChildStdout) -> mpsc::Receiver<String> {
    let (tell, heard) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            // The harness may have begun the line.
            if let Some((_, word)) = line.split_once('@')
                && tell.send(word.to_owned()).is_err()
            {
                return;
            }
        }
    });
    heard
}

/// A parent's fabric linked to a child, and `enough` records read.
pub(super) fn under_way<R: RealRig>(seed: u64, enough: u64) -> (Peer, R::F, Reader) {
    let mut fabric = R::node(PARENT, SEGMENT);
    let mut peer = Peer::start::<R>(seed);
    let offer = unhex(&peer.hear());
    peer.say(&hex(&fabric.offer()));
    fabric.connect(slot(0), CHILD, &offer, LINK_WITHIN).unwrap();
    let mut reader = Reader::new(seed);
    let begun = Instant::now();
    while reader.read < enough {
        fabric.poll(real_now());
        match fabric.poll_event() {
            None | Some(LinkEvent::Up(_)) => {}
            Some(other) => panic!("{other:?} where the child lives"),
        }
        read::<R>(&mut fabric, &mut reader);
        assert!(begun.elapsed() < HANG, "in vain: records from the child");
    }
    (peer, fabric, reader)
}

fn read<R: RealRig>(fabric: &mut R::F, reader: &mut Reader) {
    let Some(mirror) = fabric.mirror(slot(0)).cloned() else { return };
    if reader.read(&mirror) {
        reader.acknowledge(fabric, PeerSet::EMPTY.with(slot(0)));
        fabric.flush();
    } else {
        std::thread::yield_now();
    }
}

/// Sleeps and reads on until the link is down.
pub(super) fn down<R: RealRig>(fabric: &mut R::F, reader: &mut Reader) -> LinkDown {
    let begun = Instant::now();
    loop {
        fabric.poll(real_now());
        if let Some(LinkEvent::Down(_, why)) = fabric.poll_event() {
            return why;
        }
        read::<R>(fabric, reader);
        let now = real_now();
        fabric.wait(now, now.plus(HANG), &mut || true);
        assert!(begun.elapsed() < HANG, "in vain: word of the link's end");
    }
}

/// F5: SIGKILL in full flow. The end is reported, to one that sleeps; and what is vouched for is there.
pub(super) fn a_killed_process_is_reported<R: RealRig>(seed: u64) {
    let (mut peer, mut fabric, mut reader) = under_way::<R>(seed, 1_000);
    peer.child.kill().unwrap();
    let why = down::<R>(&mut fabric, &mut reader);
    assert!(matches!(why, LinkDown::Dead(_) | LinkDown::Broken(_)), "{why:?} where the process was killed");
    let mirror = fabric.mirror(slot(0)).unwrap().clone();
    reader.read(&mirror);
    let last = picture(&mirror);
    fabric.fence(slot(0));
    assert!(picture(&mirror) == last, "the fence of a dead peer changes nothing");
}

/// F5: an orderly end of a process.
pub(super) fn a_closing_process_is_reported<R: RealRig>(seed: u64) {
    let (mut peer, mut fabric, mut reader) = under_way::<R>(seed, 100);
    peer.say("close");
    let why = down::<R>(&mut fabric, &mut reader);
    assert_eq!(why, LinkDown::Closed);
    reader.read(fabric.mirror(slot(0)).unwrap());
    assert_eq!(reader.read, peer.hear().parse::<u64>().unwrap(), "all that the child wrote has come");
    assert!(peer.child.wait().unwrap().success(), "the child ended well");
}

/// F4: a process that is stopped, fenced, and goes on later: the classic false suspicion.
pub(super) fn a_fenced_process_that_lives_changes_nothing<R: RealRig>(seed: u64) {
    let (mut peer, mut fabric, mut reader) = under_way::<R>(seed, 500);
    peer.signal(Signal::STOP);
    let mirror = fabric.mirror(slot(0)).unwrap().clone();
    fabric.fence(slot(0));
    let frozen = picture(&mirror);
    assert!(count(&mirror) >= reader.read, "a fence loses nothing that was there");
    reader.read(&mirror);
    peer.signal(Signal::CONT);
    // It has seen the end of the link, and it goes on stirring its memory.
    for _ in 0..20 {
        peer.written();
        fabric.poll(real_now());
    }
    assert!(picture(&mirror) == frozen, "the mirror changed after the fence");
}

/// F4, V10: so it is the other way round. What is written where memory was renewed is not for one that was fenced, though
/// it lives and reads.
pub(super) fn a_fenced_process_that_lives_sees_nothing_new<R: RealRig>(seed: u64) {
    let (mut peer, mut fabric, mut reader) = under_way::<R>(seed, 100);
    let tell = |fabric: &mut R::F, value| {
        for offset in UNUSED.step_by(WORD) {
            fabric.segment().store(offset, value);
        }
        fabric.publish_words(UNUSED, PeerSet::EMPTY.with(slot(0)));
        fabric.flush();
    };
    let last = UNUSED.end - WORD;
    tell(&mut fabric, 1);
    let begun = Instant::now();
    while [peer.peek(UNUSED.start), peer.peek(last)] != [1; 2] {
        fabric.poll(real_now());
        read::<R>(&mut fabric, &mut reader);
        assert!(begun.elapsed() < HANG, "in vain: the child sees what is written");
    }
    peer.signal(Signal::STOP);
    fabric.fence(slot(0));
    fabric.renew(UNUSED).unwrap();
    tell(&mut fabric, 2);
    peer.signal(Signal::CONT);
    for _ in 0..20 {
        assert_eq!([peer.peek(UNUSED.start), peer.peek(last)], [1; 2], "the child sees what is not for it");
        fabric.poll(real_now());
    }
}

/// Not a test: the process that the tests above start.
#[test]
#[ignore = "a process that other tests start"]
fn child() {
    let Ok(kind) = std::env::var(FABRIC) else { return };
    let seed = std::env::var(SEED).unwrap().parse().unwrap();
    match kind.as_str() {
        "shm" => live::<super::shm::ShmRig>(seed),
        "tcp-io_uring" => live::<super::tcp::TcpRig<super::tcp::OnUring>>(seed),
        "tcp-epoll" => live::<super::tcp::TcpRig<super::tcp::OnEpoll>>(seed),
        "auto-one-host" => live::<super::mixed::MixedRig<super::mixed::OneHost>>(seed),
        "auto-two-hosts" => live::<super::mixed::MixedRig<super::mixed::TwoHosts>>(seed),
        #[cfg(feature = "verbs")]
        "verbs" => live::<super::verbs::VerbsRig>(seed),
        #[cfg(feature = "verbs")]
        "auto-verbs" => live::<super::mixed::MixedRig<super::verbs::Cards>>(seed),
        other => panic!("{FABRIC}={other}: no such fabric here"),
    }
}

fn live<R: RealRig>(seed: u64) {
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            let _ = tell.send(line);
        }
    });
    let mut fabric = R::node(CHILD, SEGMENT);
    println!("\n@{}", hex(&fabric.offer()));
    let offer = unhex(&told.recv().unwrap());
    fabric.connect(slot(0), PARENT, &offer, LINK_WITHIN).unwrap();
    let mut writer = Writer::new(seed, PeerSet::EMPTY.with(slot(0)));
    loop {
        fabric.poll(real_now());
        while fabric.poll_event().is_some() {} // it goes on whatever happens
        if fabric.mirror(slot(0)).is_some() {
            if writer.has_room(&fabric) {
                writer.write(&mut fabric);
            }
            writer.pulse(&mut fabric);
            fabric.flush();
        }
        match told.try_recv().as_deref() {
            Ok("written?") => println!("@{}", writer.written),
            Ok("close") => {
                fabric.close(HANG);
                println!("@{}", writer.written);
                return;
            }
            Ok(other) if other.starts_with("peek ") => {
                let offset = other["peek ".len()..].parse().unwrap();
                println!("@{}", fabric.mirror(slot(0)).map_or(0, |mirror| mirror.load(offset)));
            }
            Ok(other) => panic!("{other}: not understood"),
            Err(mpsc::TryRecvError::Empty) => std::thread::yield_now(),
            Err(mpsc::TryRecvError::Disconnected) => return, // the parent is gone
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}
