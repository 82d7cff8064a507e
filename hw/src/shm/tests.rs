//! Strangers at the socket, peers that cheat, and what the hot path costs. The contract that all fabrics share is tested
//! elsewhere (`tests/all/conformance`).
//!
//! Here the test itself plays the other end, word by word.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use consort_dataplane::fabric::{ConnectError, Fabric, LinkDown, LinkEvent, RenewError};
use consort_dataplane::memory::{Mirror, WORD};
use consort_dataplane::names::{NodeId, PeerSet, Slot, Time};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

use super::guests::GUESTS_MAX;
use super::hello::{GOODBYE, Hello, Offer, RENEWALS_MAX, Renewal, Renewals, Token};
use super::life::Life;
use super::mapping::{OwnMemory, PeerMemory};
use super::sleep::NAP;
use super::socket::{Listener, Packet, Received, Socket};
use super::{ShmFabric, ShmOptions};

const SEGMENT: usize = 16384;
const SLOT: Slot = Slot(0);

/// Pages enough for as many pieces as there may be, and more, none of which touches another.
const PIECES: usize = 2 * RENEWALS_MAX + 4;
const WITHIN: Duration = Duration::from_secs(3600); // of the time that the tests make up

fn fabric(node: u32) -> ShmFabric {
    ShmFabric::new(NodeId(node), ShmOptions { segment_bytes: SEGMENT, ..Default::default() }).unwrap()
}

fn offer_of(fabric: &ShmFabric) -> Offer {
    Offer::decode(&fabric.offer()).unwrap()
}

/// Polls at time 1 until `done`.
fn until(fabric: &mut ShmFabric, what: &str, done: impl FnMut(&mut ShmFabric) -> bool) {
    until_at(Time(1), fabric, what, done);
}

fn until_at(now: Time, fabric: &mut ShmFabric, what: &str, mut done: impl FnMut(&mut ShmFabric) -> bool) {
    let begun = Instant::now();
    loop {
        fabric.poll(now);
        if done(fabric) {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "in vain: {what}");
        std::thread::yield_now();
    }
}

/// The next event.
fn event(fabric: &mut ShmFabric) -> LinkEvent {
    let mut event = None;
    until(fabric, "an event", |fabric| {
        event = fabric.poll_event();
        event.is_some()
    });
    event.unwrap()
}

/// The other end of a link, played by the test.
struct Actor {
    offer: Offer,
    listener: Listener,
    memory: std::sync::Arc<OwnMemory>,
}

impl Actor {
    fn new(node: u32, like: &ShmFabric) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let unique = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("consort-shm-test-{}-{unique}", std::process::id()).into_bytes();
        let listener = Listener::at(&name).unwrap();
        let token = Token(u128::from(unique).to_le_bytes());
        let offer = Offer { node: NodeId(node), token, name, ..offer_of(like) };
        Self { offer, listener, memory: OwnMemory::new(SEGMENT).unwrap() }
    }

    fn hello_to(&self, fabric: &ShmFabric) -> Hello {
        let them = offer_of(fabric);
        Hello {
            from: self.offer.node,
            to: them.node,
            segment: SEGMENT as u64,
            given: them.token,
            own: self.offer.token,
            renewals: Renewals::default(),
        }
    }

    fn file(&self) -> OwnedFd {
        self.memory.file().try_clone_to_owned().unwrap()
    }

    /// Waits for the fabric to dial.
    fn accept(&self) -> Socket {
        self.listener.accept().expect("connect dials at once")
    }
}

fn dial(fabric: &ShmFabric) -> Socket {
    Socket::connect(&offer_of(fabric).name).unwrap()
}

fn memfd(bytes: usize, seals: SealFlags) -> OwnedFd {
    let file = rustix::fs::memfd_create("test", MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&file, bytes as u64).unwrap();
    if !seals.is_empty() {
        rustix::fs::fcntl_add_seals(&file, seals).unwrap();
    }
    file
}

/// All ways in which what comes for a segment is none. The last is right but for its size.
fn bad_files() -> Vec<(&'static str, OwnedFd)> {
    let all = SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE | SealFlags::SEAL;
    let file: OwnedFd = std::fs::File::open("/proc/self/exe").unwrap().into();
    vec![
        ("unsealed memory", memfd(SEGMENT, SealFlags::empty())),
        ("memory that can shrink", memfd(SEGMENT, all - SealFlags::SHRINK)),
        ("memory that can grow", memfd(SEGMENT, all - SealFlags::GROW)),
        ("memory that others can write", memfd(SEGMENT, all - SealFlags::FUTURE_WRITE)),
        ("a file", file),
        ("a device", std::fs::File::open("/dev/zero").unwrap().into()),
        ("a directory", std::fs::File::open("/proc").unwrap().into()),
        ("less memory than promised", memfd(SEGMENT - 4096, all)),
        ("more memory than promised", memfd(SEGMENT + 4096, all)),
    ]
}

fn is_corrupt(event: &LinkEvent) -> bool {
    matches!(event, LinkEvent::Down(SLOT, LinkDown::Corrupt(_)))
}

/// S1: whatever a stranger sends, it is dropped and counted, and the peer that comes after it is let in.
#[test]
fn strangers_are_turned_away() {
    let mut fabric = fabric(2);
    let actor = Actor::new(1, &fabric);
    let good = actor.hello_to(&fabric);
    let noise: Vec<u8> = (0..100u8).collect();
    let no_token = Hello { given: Token([0; 16]), ..good.clone() };
    let mut packets: Vec<(Vec<u8>, usize)> = vec![
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), 0),
        (noise.clone(), 0),
        (noise.repeat(100), 1),
        (GOODBYE.to_vec(), 0),
        (no_token.encode().to_vec(), 1),
        (Hello { to: NodeId(3), ..good.clone() }.encode().to_vec(), 1),
        (good.encode().to_vec(), 0), // no segment
        (good.encode().to_vec(), 2), // two segments
        (good.encode().to_vec(), 9),
        (good.encode()[..63].to_vec(), 1),
        ([&good.encode()[..], &[0]].concat(), 1),
        (Vec::new(), 0), // nothing, and gone
    ];
    // Each bit of the first 24 bytes (magic, version, names) and of the token that we gave.
    for bit in (0..96).chain(128..192).chain(256..384) {
        let mut bytes = good.encode().to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        packets.push((bytes, 1));
    }
    for (count, (packet, files)) in (1..).zip(packets) {
        let socket = dial(&fabric);
        if !packet.is_empty() {
            let copies: Vec<_> = (0..files).map(|_| actor.file()).collect();
            send_with(&socket, &packet, &copies);
        }
        drop(socket);
        until(&mut fabric, "the stranger is turned away", |fabric| fabric.refused() == count);
        assert_eq!(fabric.poll_event(), None);
    }
    // One that knows our token, but is not who made the offer that we were given, is let in by nobody.
    fabric.connect(SLOT, NodeId(1), &actor.offer.encode(), WITHIN).unwrap();
    let impostor = OwnMemory::new(SEGMENT).unwrap();
    impostor.segment().store(4096, 666);
    let first = dial(&fabric);
    first.send(&Hello { own: Token([0; 16]), ..good.clone() }.encode(), &[impostor.file()]).unwrap();
    let socket = dial(&fabric);
    socket.send(&good.encode(), &[actor.memory.file()]).unwrap();
    assert_eq!(event(&mut fabric), LinkEvent::Up(SLOT));
    assert_eq!(fabric.mirror(SLOT).unwrap().load(4096), 0, "the memory is not the impostor's");
}

fn send_with(socket: &Socket, bytes: &[u8], files: &[OwnedFd]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let files: Vec<_> = files.iter().map(AsFd::as_fd).collect();
    if !files.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(&files)));
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL).unwrap();
}

/// S1: the silent are bounded in number, and in time (which is an argument).
#[test]
fn silent_strangers_are_bounded() {
    let mut fabric = fabric(2);
    let mut silent = Vec::new();
    for count in 1..=3 * GUESTS_MAX as u64 {
        silent.push(dial(&fabric));
        let over = count.saturating_sub(GUESTS_MAX as u64);
        until(&mut fabric, "the oldest has to go", |fabric| fabric.refused() == over);
    }
    let later = Time(1).plus(Duration::from_secs(10));
    let all = 3 * GUESTS_MAX as u64;
    until_at(later, &mut fabric, "all have to go", |fabric| fabric.refused() == all);
}

/// S1: so are those who were given our token and whom nobody waits for.
#[test]
fn guests_that_nobody_expects_are_bounded() {
    let mut fabric = fabric(200);
    let actor = Actor::new(1, &fabric);
    let mut waiting = Vec::new();
    for count in 1..=GUESTS_MAX + 20 {
        let own = Token([u8::try_from(count % 251).unwrap(); 16]);
        let mut dialled = None;
        until(&mut fabric, "there is room in the queue", |fabric| {
            dialled = Socket::connect(&offer_of(fabric).name).ok();
            dialled.is_some()
        });
        let socket = dialled.unwrap();
        let from = NodeId(u32::try_from(count).unwrap());
        let hello = Hello { own, from, ..actor.hello_to(&fabric) };
        socket.send(&hello.encode(), &[actor.memory.file()]).unwrap();
        waiting.push(socket);
        fabric.poll(Time(1));
    }
    until(&mut fabric, "those beyond the bound have to go", |fabric| fabric.refused() == 20);
    // The first were kept: one of them is let in once it is expected.
    let offer = Offer { token: Token([1; 16]), ..actor.offer };
    fabric.connect(SLOT, NodeId(1), &offer.encode(), WITHIN).unwrap();
    assert_eq!(event(&mut fabric), LinkEvent::Up(SLOT));
}

/// S3: a peer that dials us with something else than its sealed segment is to blame, and nothing of it is mapped.
#[test]
fn a_dialling_peer_that_cheats_is_corrupt() {
    for (what, file) in bad_files() {
        let mut fabric = fabric(2);
        let actor = Actor::new(1, &fabric);
        fabric.connect(SLOT, NodeId(1), &actor.offer.encode(), WITHIN).unwrap();
        let socket = dial(&fabric);
        socket.send(&actor.hello_to(&fabric).encode(), &[file.as_fd()]).unwrap();
        let event = event(&mut fabric);
        assert!(is_corrupt(&event), "{what}: {event:?}");
        assert!(fabric.mirror(SLOT).is_none(), "{what} was mapped");
    }
}

/// S3: so is one whom we dial.
#[test]
fn an_answering_peer_that_cheats_is_corrupt() {
    for (what, file) in bad_files() {
        let mut fabric = fabric(1);
        let actor = Actor::new(2, &fabric);
        fabric.connect(SLOT, NodeId(2), &actor.offer.encode(), WITHIN).unwrap();
        let socket = actor.accept();
        socket.send(&actor.hello_to(&fabric).encode(), &[file.as_fd()]).unwrap();
        let event = event(&mut fabric);
        assert!(is_corrupt(&event), "{what}: {event:?}");
        assert!(fabric.mirror(SLOT).is_none(), "{what} was mapped");
    }
}

/// Who answers must be who made the offer; one that says anything else is corrupt, one that hangs up has failed.
#[test]
fn an_answer_must_be_by_who_made_the_offer() {
    type Change = fn(Hello) -> Vec<u8>;
    let changes: [Change; 7] = [
        |good| Hello { own: Token([0; 16]), ..good }.encode().to_vec(),
        |good| Hello { given: Token([0; 16]), ..good }.encode().to_vec(),
        |good| Hello { from: NodeId(3), ..good }.encode().to_vec(),
        |good| Hello { to: NodeId(3), ..good }.encode().to_vec(),
        |good| Hello { segment: good.segment + 4096, ..good }.encode().to_vec(),
        |_| vec![7; 1000],
        |_| b"hello".to_vec(),
    ];
    for (at, change) in changes.iter().enumerate() {
        let mut fabric = fabric(1);
        let actor = Actor::new(2, &fabric);
        fabric.connect(SLOT, NodeId(2), &actor.offer.encode(), WITHIN).unwrap();
        let socket = actor.accept();
        socket.send(&change(actor.hello_to(&fabric)), &[actor.memory.file()]).unwrap();
        let event = event(&mut fabric);
        assert!(is_corrupt(&event), "answer {at}: {event:?}");
    }
    let mut fabric = fabric(1);
    let actor = Actor::new(2, &fabric);
    fabric.connect(SLOT, NodeId(2), &actor.offer.encode(), WITHIN).unwrap();
    drop(actor.accept());
    let event = event(&mut fabric);
    assert!(matches!(event, LinkEvent::Down(SLOT, LinkDown::Failed(_))), "{event:?}");
}

/// What we say when we dial: the right hello with a segment that a peer accepts. And over a link that is up there is
/// nothing to say but goodbye and what was renewed.
#[test]
fn a_link_that_is_up_carries_no_other_words() {
    for (last, closed) in [(&GOODBYE[..], true), (b"goodbye!", false), (&[0; 500], false)] {
        let mut fabric = fabric(1);
        let actor = Actor::new(2, &fabric);
        fabric.connect(SLOT, NodeId(2), &actor.offer.encode(), WITHIN).unwrap();
        let socket = actor.accept();
        let Ok(Received::Packet(mut packet)) = socket.receive() else { panic!("the dialler speaks first") };
        let hello = Hello::decode(&packet.bytes).unwrap();
        assert_eq!((hello.given, hello.own), (actor.offer.token, offer_of(&fabric).token));
        let theirs = PeerMemory::map(packet.attached.pop().unwrap(), hello.segment, SEGMENT);
        fabric.segment().store(8192, 7);
        assert_eq!(theirs.unwrap().mirror().load(8192), 7, "the segment that came is the fabric's");
        socket.send(&actor.hello_to(&fabric).encode(), &[actor.memory.file()]).unwrap();
        assert_eq!(event(&mut fabric), LinkEvent::Up(SLOT));
        socket.send(last, &[]).unwrap();
        let event = event(&mut fabric);
        assert_eq!(event == LinkEvent::Down(SLOT, LinkDown::Closed), closed, "{event:?}");
        assert_eq!(is_corrupt(&event), !closed, "{event:?}");
    }
}

/// The range that the tests renew.
const RANGE: std::ops::Range<usize> = 4096..12288;

fn renewal_of(range: &std::ops::Range<usize>) -> Renewal {
    Renewal { start: range.start as u64, bytes: range.len() as u64 }
}

/// A link with an actor in a slot; `fabric` dials it.
fn linked(fabric: &mut ShmFabric, slot: Slot, node: u32) -> (Actor, Socket, Mirror) {
    let actor = Actor::new(node, fabric);
    let (socket, mirror) = introduced(fabric, slot, &actor);
    (actor, socket, mirror)
}

/// A link with that actor.
fn introduced(fabric: &mut ShmFabric, slot: Slot, actor: &Actor) -> (Socket, Mirror) {
    fabric.connect(slot, actor.offer.node, &actor.offer.encode(), WITHIN).unwrap();
    let socket = actor.accept();
    let Ok(Received::Packet(packet)) = socket.receive() else { panic!("the dialler speaks first") };
    let mirror = mapped(packet);
    socket.send(&actor.hello_to(fabric).encode(), &[actor.memory.file()]).unwrap();
    assert_eq!(event(fabric), LinkEvent::Up(slot));
    (socket, mirror)
}

/// The memory that a hello stands for, as a sound peer maps it.
fn mapped(packet: Packet) -> Mirror {
    let hello = Hello::decode(&packet.bytes).unwrap();
    let mut files = packet.attached.into_iter();
    let memory = PeerMemory::map(files.next().unwrap(), hello.segment, SEGMENT).unwrap();
    for (renewal, file) in hello.renewals.as_slice().iter().zip(files) {
        let start = usize::try_from(renewal.start).unwrap();
        memory.renew(&(start..start + usize::try_from(renewal.bytes).unwrap()), &file).unwrap();
    }
    memory.mirror()
}

/// S1, S3: what is said of a renewal is believed when it has been checked, and not before.
#[test]
fn a_peer_that_renews_wrongly_is_corrupt() {
    let sealed = || OwnMemory::new(RANGE.len()).unwrap().file().try_clone_to_owned().unwrap();
    let all = SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE | SealFlags::SEAL;
    let good = renewal_of(&RANGE).encode().to_vec();
    let at = |start, bytes| Renewal { start, bytes }.encode().to_vec();
    let mut bad: Vec<(&str, Vec<u8>, Vec<OwnedFd>)> = vec![
        ("no file", good.clone(), Vec::new()),
        ("two files", good.clone(), vec![sealed(), sealed()]),
        ("too short", good[..23].to_vec(), vec![sealed()]),
        ("too long", [&good[..], &[0]].concat(), vec![sealed()]),
        ("no magic", [&[0], &good[1..]].concat(), vec![sealed()]),
        ("the fabric's page", at(0, 8192), vec![sealed()]),
        ("nothing", at(4096, 0), vec![memfd(0, all)]),
        ("off the page", at(4097, 8192), vec![sealed()]),
        ("half a page", at(4096, 6000), vec![memfd(6000, all)]),
        ("beyond the end", at(12288, 8192), vec![sealed()]),
        ("far beyond the end", at(u64::MAX - 4095, 8192), vec![sealed()]),
        ("larger than the segment", at(4096, 1 << 40), vec![memfd(1 << 40, all)]),
    ];
    for seals in [SealFlags::empty(), all - SealFlags::SHRINK, all - SealFlags::GROW] {
        bad.push(("not sealed", good.clone(), vec![memfd(RANGE.len(), seals)]));
    }
    bad.push(("writable by others", good.clone(), vec![memfd(RANGE.len(), all - SealFlags::FUTURE_WRITE)]));
    bad.push(("too small a file", good.clone(), vec![memfd(4096, all)]));
    bad.push(("too large a file", good.clone(), vec![memfd(SEGMENT, all)]));
    bad.push(("a device", good, vec![std::fs::File::open("/dev/zero").unwrap().into()]));
    for (what, packet, files) in bad {
        let mut fabric = fabric(1);
        let (actor, socket, _) = linked(&mut fabric, SLOT, 2);
        actor.memory.segment().store(8192, 5);
        send_with(&socket, &packet, &files);
        let event = event(&mut fabric);
        assert!(is_corrupt(&event), "{what}: {event:?}");
        assert_eq!(fabric.mirror(SLOT).unwrap().load(8192), 5, "{what} was mapped");
    }
}

/// S3: so it is in a hello, and nothing is left of one that is bad in part.
#[test]
fn a_hello_with_bad_renewals_is_corrupt() {
    let sealed = |bytes: usize| OwnMemory::new(bytes).unwrap().file().try_clone_to_owned().unwrap();
    for (what, range, file) in [
        ("the fabric's page", 0..8192, sealed(8192)),
        ("beyond the end", 12288..20480, sealed(8192)),
        ("another size", RANGE, sealed(4096)),
        ("not sealed", RANGE, memfd(RANGE.len(), SealFlags::empty())),
    ] {
        let mut fabric = fabric(1);
        let actor = Actor::new(2, &fabric);
        fabric.connect(SLOT, NodeId(2), &actor.offer.encode(), WITHIN).unwrap();
        let mut hello = actor.hello_to(&fabric);
        hello.renewals.push(renewal_of(&(4096..8192))).unwrap();
        hello.renewals.push(renewal_of(&range)).unwrap();
        send_with(&actor.accept(), &hello.encode(), &[actor.file(), sealed(4096), file]);
        let event = event(&mut fabric);
        assert!(is_corrupt(&event), "{what}: {event:?}");
        assert!(fabric.mirror(SLOT).is_none(), "{what} was mapped");
    }
    // Fewer and more files than it speaks of.
    for count in [1, 3] {
        let mut fabric = fabric(1);
        let actor = Actor::new(2, &fabric);
        fabric.connect(SLOT, NodeId(2), &actor.offer.encode(), WITHIN).unwrap();
        let mut hello = actor.hello_to(&fabric);
        hello.renewals.push(renewal_of(&(4096..8192))).unwrap();
        let files: Vec<_> = [actor.file(), sealed(4096), sealed(4096)].into_iter().take(count).collect();
        send_with(&actor.accept(), &hello.encode(), &files);
        assert!(is_corrupt(&event(&mut fabric)), "{count} files");
    }
}

/// S3: a peer can't cut a mirror to pieces without end.
#[test]
fn renewals_of_a_peer_are_bounded() {
    let large =
        || ShmFabric::new(NodeId(1), ShmOptions { segment_bytes: PIECES * 4096, ..Default::default() });
    let mut fabric = large().unwrap();
    let mut actor = Actor::new(2, &fabric);
    actor.memory = OwnMemory::new(PIECES * 4096).unwrap();
    fabric.connect(SLOT, NodeId(2), &actor.offer.encode(), WITHIN).unwrap();
    let socket = actor.accept();
    let hello = Hello { segment: (PIECES * 4096) as u64, ..actor.hello_to(&fabric) };
    socket.send(&hello.encode(), &[actor.memory.file()]).unwrap();
    assert_eq!(event(&mut fabric), LinkEvent::Up(SLOT));
    let renew = |page: usize, value| {
        let range = page * 4096..(page + 1) * 4096;
        let file = actor.memory.renew(&range).unwrap();
        actor.memory.segment().store(range.start, value);
        socket.send(&renewal_of(&range).encode(), &[file.as_fd()]).unwrap();
    };
    for turn in 1..=5 {
        for piece in 1..=RENEWALS_MAX {
            renew(2 * piece, turn);
        }
        until(&mut fabric, "the pieces are mapped", |fabric| {
            let mirror = fabric.mirror(SLOT).unwrap();
            (1..=RENEWALS_MAX).all(|piece| mirror.load(2 * piece * 4096) == turn)
        });
        assert_eq!(fabric.poll_event(), None);
    }
    renew(1, 1);
    assert!(is_corrupt(&event(&mut fabric)));
}

/// The mapping of a renewal counts as something that came: its words may have been there before it.
#[test]
fn a_renewal_that_comes_is_something_that_came() {
    let mut fabric = fabric(1);
    let (actor, socket, _) = linked(&mut fabric, SLOT, 2);
    let mirror = fabric.mirror(SLOT).unwrap().clone();
    while fabric.poll(Time(1)) {}
    let file = actor.memory.renew(&RANGE).unwrap();
    actor.memory.segment().store(RANGE.start, 7);
    socket.send(&renewal_of(&RANGE).encode(), &[file.as_fd()]).unwrap();
    let begun = Instant::now();
    while !fabric.poll(Time(1)) {
        assert_eq!(mirror.load(RANGE.start), 0, "mapped in silence");
        assert!(begun.elapsed() < Duration::from_secs(60), "in vain: the renewal");
    }
    assert_eq!(mirror.load(RANGE.start), 7);
}

/// V10: nothing is done while nobody but the linked may read; then those who are linked see the new memory, those
/// who come later as well, and who was fenced the old.
#[test]
fn who_is_linked_gets_what_is_renewed() {
    let mut fabric = fabric(1);
    let segment = fabric.segment().clone();
    let (_two, socket_two, mirror_two) = linked(&mut fabric, SLOT, 2);
    let (_three, socket_three, mirror_three) = linked(&mut fabric, Slot(1), 3);
    segment.store(RANGE.start, 1);
    fabric.renew(RANGE).unwrap();
    assert!(matches!(socket_two.receive(), Ok(Received::Nothing)));
    assert_eq!(segment.load(RANGE.start), 1, "all who were handed it are linked");

    fabric.fence(SLOT);
    let offered = Actor::new(4, &fabric);
    fabric.connect(Slot(2), NodeId(4), &offered.offer.encode(), WITHIN).unwrap();
    let socket_four = offered.accept(); // it was greeted already
    fabric.renew(RANGE).unwrap();
    assert_eq!(segment.load(RANGE.start), 0);
    segment.store(RANGE.start, 2);
    assert_eq!(mirror_two.load(RANGE.start), 1, "the fenced one sees what was there");
    assert!(matches!(socket_two.receive(), Ok(Received::End)));
    let Ok(Received::Packet(packet)) = socket_three.receive() else { panic!("the renewal") };
    assert_eq!(Renewal::decode(&packet.bytes), Ok(renewal_of(&RANGE)));
    assert_eq!((mirror_three.load(RANGE.start), packet.attached.len()), (1, 1));

    // Again, though the one that is fenced lives still: it was never handed what is there now.
    fabric.renew(RANGE).unwrap();
    assert_eq!(segment.load(RANGE.start), 2);
    // But it was handed what lies beside it.
    fabric.renew(RANGE.start..SEGMENT).unwrap();
    assert_eq!(segment.load(RANGE.start), 0);
    segment.store(RANGE.start, 3);
    let Ok(Received::Packet(packet)) = socket_three.receive() else { panic!("the second renewal") };
    assert_eq!(Renewal::decode(&packet.bytes), Ok(renewal_of(&(RANGE.start..SEGMENT))));

    // One that was being set up gets it as soon as it is up, one that comes later right away.
    let Ok(Received::Packet(packet)) = socket_four.receive() else { panic!("the hello") };
    assert_eq!(mapped(packet).load(RANGE.start), 1);
    socket_four.send(&offered.hello_to(&fabric).encode(), &[offered.memory.file()]).unwrap();
    assert_eq!(event(&mut fabric), LinkEvent::Up(Slot(2)));
    let Ok(Received::Packet(packet)) = socket_four.receive() else { panic!("the renewal") };
    assert_eq!(Renewal::decode(&packet.bytes), Ok(renewal_of(&(RANGE.start..SEGMENT))));
    assert!(matches!(socket_four.receive(), Ok(Received::Nothing)), "what it covered is not passed on");
    let (_five, _socket, mirror_five) = linked(&mut fabric, SLOT, 5);
    assert_eq!(mirror_five.load(RANGE.start), 3);
}

/// One that was handed our memory and never answered, and one whose link is down and not fenced, may read it as well.
#[test]
fn who_was_ever_handed_memory_may_read_it() {
    let mut fabric = fabric(1);
    let segment = fabric.segment().clone();
    let greeted = Actor::new(2, &fabric);
    fabric.connect(SLOT, NodeId(2), &greeted.offer.encode(), WITHIN).unwrap();
    drop(greeted.accept());
    assert!(matches!(event(&mut fabric), LinkEvent::Down(SLOT, LinkDown::Failed(_))));
    segment.store(RANGE.start, 1);
    fabric.renew(RANGE).unwrap();
    assert_eq!(segment.load(RANGE.start), 0, "it got a hello");
    // Forgotten by its slot, and not as one that may read.
    let (_actor, socket, _) = linked(&mut fabric, SLOT, 2);
    segment.store(12288, 1);
    fabric.renew(12288..16384).unwrap();
    assert_eq!(segment.load(12288), 0);
    drop(socket);
    assert!(matches!(event(&mut fabric), LinkEvent::Down(SLOT, LinkDown::Broken(_))));
    segment.store(RANGE.start, 2);
    fabric.renew(RANGE).unwrap();
    assert_eq!(segment.load(RANGE.start), 0, "it hung up, and lives");
}

/// One that does not listen for long misses nothing in the end, and nobody waits for it.
#[test]
fn renewals_are_passed_on_when_there_is_room_again() {
    const ROUNDS: u64 = 500; // more than a socket takes
    let mut fabric = fabric(1);
    let segment = fabric.segment().clone();
    let (_actor, socket, _) = linked(&mut fabric, SLOT, 2);
    for round in 1..=ROUNDS {
        linked(&mut fabric, Slot(1), 3);
        fabric.fence(Slot(1));
        fabric.renew(RANGE).unwrap();
        assert_eq!(segment.load(RANGE.start), 0);
        segment.store(RANGE.start, round);
    }
    let mut last = None;
    let mut count = 0;
    for milliseconds in 1.. {
        fabric.poll(Time(1).plus(Duration::from_millis(milliseconds)));
        while let Ok(Received::Packet(packet)) = socket.receive() {
            assert_eq!(Renewal::decode(&packet.bytes), Ok(renewal_of(&RANGE)));
            let file = packet.attached.into_iter().next().unwrap();
            last = PeerMemory::map(file, RANGE.len() as u64, SEGMENT).ok();
            count += 1;
        }
        if last.as_ref().is_some_and(|memory| memory.mirror().load(0) == ROUNDS) {
            break;
        }
        assert!(milliseconds < 10_000, "in vain: the last renewal");
    }
    assert!(count < ROUNDS, "some of them were passed over");
    assert_eq!(fabric.poll_event(), None);
}

/// S4: a range that is none is this node's own mistake; too many pieces are refused.
#[test]
fn pieces_of_our_own_are_bounded() {
    let options = ShmOptions { segment_bytes: PIECES * 4096, ..Default::default() };
    let mut fabric = ShmFabric::new(NodeId(1), options).unwrap();
    for range in [0..4096, 4096..4096, 4096..5000, 4096..(PIECES + 1) * 4096] {
        let renew = std::panic::AssertUnwindSafe(|| fabric.renew(range.clone()));
        assert!(std::panic::catch_unwind(renew).is_err(), "{range:?}");
    }
    for piece in 1..=RENEWALS_MAX + 1 {
        let actor = Actor::new(2, &fabric);
        fabric.connect(SLOT, NodeId(2), &actor.offer.encode(), WITHIN).unwrap();
        fabric.fence(SLOT);
        let done = fabric.renew(2 * piece * 4096..(2 * piece + 1) * 4096);
        let pieces = RENEWALS_MAX;
        assert_eq!(done, if piece > pieces { Err(RenewError::Pieces { pieces }) } else { Ok(()) });
    }
}

/// Too many dial: it is tried again, until there is room.
#[test]
fn a_full_queue_is_dialled_again() {
    let mut fabric = fabric(1);
    let actor = Actor::new(2, &fabric);
    let mut crowd = Vec::new();
    while let Ok(socket) = Socket::connect(&actor.offer.name) {
        crowd.push(socket);
        assert!(crowd.len() < 10_000, "the queue has an end");
    }
    fabric.connect(SLOT, NodeId(2), &actor.offer.encode(), WITHIN).unwrap();
    fabric.poll(Time(1));
    for _ in 0..crowd.len() {
        drop(actor.accept());
    }
    let later = Time(1).plus(Duration::from_secs(1));
    let mut socket = None;
    until_at(later, &mut fabric, "the fabric dials again", |_| {
        socket = actor.listener.accept().ok();
        socket.is_some()
    });
    let socket = socket.unwrap();
    socket.send(&actor.hello_to(&fabric).encode(), &[actor.memory.file()]).unwrap();
    assert_eq!(event(&mut fabric), LinkEvent::Up(SLOT));
}

/// What can be told from the offer alone is told at once.
#[test]
fn offers_from_elsewhere_are_refused() {
    let mut fabric = fabric(1);
    let good = Actor::new(2, &fabric).offer;
    let mut elsewhere = good.clone();
    elsewhere.place.machine[0] ^= 1;
    let mut unreachable = good.clone();
    unreachable.place.network ^= 1;
    let huge = Offer { segment: 1 << 60, ..good.clone() };
    let other = Offer { node: NodeId(3), ..good };
    let own = Offer { node: NodeId(1), ..other.clone() };
    for (offer, peer, says) in [
        (elsewhere, 2, "another machine"),
        (unreachable, 2, "network namespace"),
        (huge, 2, "peer_segment_bytes_max"),
        (other, 2, "made by node 3"),
        (own, 1, "own id"),
    ] {
        let refused = fabric.connect(SLOT, NodeId(peer), &offer.encode(), WITHIN);
        assert!(matches!(&refused, Err(ConnectError::Offer(why)) if why.contains(says)), "{refused:?}");
    }
}

/// Nobody listens any more: that is known at once, not after `within`.
#[test]
fn a_peer_that_is_gone_fails_at_once() {
    let mut fabric = fabric(1);
    let gone = Actor::new(2, &fabric).offer;
    fabric.connect(SLOT, NodeId(2), &gone.encode(), WITHIN).unwrap();
    let event = event(&mut fabric);
    assert!(matches!(event, LinkEvent::Down(SLOT, LinkDown::Failed(_))), "{event:?}");
    // And the slot is free for another attempt.
    fabric.connect(SLOT, NodeId(2), &gone.encode(), WITHIN).unwrap();
}

/// The point of it all: with links up and nobody asleep there is no system call.
#[test]
fn the_hot_path_makes_no_system_call() {
    let (mut one, mut other) = (fabric(1), fabric(2));
    one.connect(SLOT, NodeId(2), &other.offer(), WITHIN).unwrap();
    other.connect(SLOT, NodeId(1), &one.offer(), WITHIN).unwrap();
    until(&mut other, "the second is up", |fabric| fabric.poll_event().is_some());
    assert_eq!(event(&mut one), LinkEvent::Up(SLOT));
    // The watcher may yet report what has been seen to: let it come to rest.
    let mut rest = one.stats().system_calls;
    for _ in 0..10 {
        one.wait(Time(1), Time(10_000_001), &mut || true);
        one.poll(Time(1));
    }
    let slept = one.stats();
    assert!(slept.system_calls > rest, "sleeping is one");
    rest = slept.system_calls;
    for value in 1..=1000 {
        one.segment().store(4096, value);
        one.publish_words(4096..4096 + WORD, PeerSet::EMPTY.with(SLOT));
        one.publish_ring(8192..16384, PeerSet::EMPTY.with(SLOT));
        one.flush();
        assert!(other.poll(Time(1)), "something came");
        assert_eq!(other.mirror(SLOT).unwrap().load(4096), value);
        assert!(!one.poll(Time(1)), "nothing came");
    }
    assert_eq!(one.stats().system_calls, rest);
}

/// What the watcher reported and nobody looked at yet is not slept over.
#[test]
fn what_the_watcher_saw_before_the_sleep_ends_it() {
    let mut fabric = fabric(2);
    for count in 1..=20 {
        drop(dial(&fabric));
        let begun = Instant::now();
        while !fabric.has_attention() {
            assert!(begun.elapsed() < Duration::from_secs(60), "in vain: the watcher's report");
            std::thread::yield_now();
        }
        while fabric.refused() < count {
            fabric.wait(Time(1), Time(1).plus(Duration::from_secs(60)), &mut || true);
            fabric.poll(Time(1));
            assert!(begun.elapsed() < Duration::from_secs(60), "slept over it");
        }
    }
}

/// After `close` there is no new link.
#[test]
fn a_closed_fabric_links_to_nobody() {
    let mut fabric = fabric(1);
    let offer = Actor::new(2, &fabric).offer;
    let name = offer_of(&fabric).name;
    fabric.close(Duration::ZERO);
    assert!(matches!(
        fabric.connect(SLOT, NodeId(2), &offer.encode(), WITHIN),
        Err(ConnectError::Machine(_))
    ));
    assert!(matches!(Socket::connect(&name), Err(Errno::CONNREFUSED)));
}

/// Sizes that no segment can have.
#[test]
fn impossible_segments_are_refused() {
    for segment_bytes in [0, usize::MAX, usize::MAX / 2 + 1] {
        let options = ShmOptions { segment_bytes, ..Default::default() };
        let refused = ShmFabric::new(NodeId(1), options).map(|_| ());
        let says = refused.as_ref().map_err(ToString::to_string);
        assert!(says.is_err_and(|why| why.contains("segment")), "{segment_bytes}: {refused:?}");
    }
}

/// A thread holds the actor's word and ends, as when its process is killed. What would show next, the end of its connection and its
/// process, never comes.
fn dies(actor: &Actor) {
    let memory = actor.memory.clone();
    let begun = std::thread::spawn(move || std::mem::forget(Life::begin(memory).unwrap()));
    begun.join().unwrap();
}

/// F5: before any hang-up. And a peer that sleeps is woken, whether the kernel does it or another peer.
#[test]
fn a_death_shows_before_the_hang_up() {
    let (mut one, mut other) = (fabric(1), fabric(2));
    let actor = Actor::new(7, &one);
    let ends = [&mut one, &mut other].map(|fabric| introduced(fabric, SLOT, &actor));
    std::thread::scope(|scope| {
        let sleepers = [one, other].map(|mut fabric| {
            scope.spawn(move || {
                let begun = Instant::now();
                loop {
                    fabric.poll(Time(1));
                    if let Some(event) = fabric.poll_event() {
                        return event;
                    }
                    fabric.wait(Time(1), Time(60_000_000_001), &mut || true);
                    assert!(begun.elapsed() < Duration::from_secs(60), "slept over it");
                }
            })
        });
        for (_, theirs) in &ends {
            while theirs.load(NAP) & 1 == 0 {
                std::thread::yield_now();
            }
        }
        dies(&actor);
        for sleeper in sleepers {
            let event = sleeper.join().unwrap();
            assert!(matches!(&event, LinkEvent::Down(SLOT, LinkDown::Dead(_))), "{event:?}");
        }
    });
    drop(ends); // the connections were open till here
}

/// What a peer said before it died is heard.
#[test]
fn a_goodbye_before_a_death_is_a_goodbye() {
    let mut fabric = fabric(1);
    let (actor, socket, _) = linked(&mut fabric, SLOT, 7);
    socket.send(&GOODBYE, &[]).unwrap();
    dies(&actor);
    assert_eq!(event(&mut fabric), LinkEvent::Down(SLOT, LinkDown::Closed));
}
