//! Two and more fabrics in one process, over loopback, on both engines: what this fabric does beside the contract that
//! all fabrics are held to (`tests/all/conformance`).
//!
//! No test measures time; each drives its fabrics until what it waits for has happened, and fails after a bound that no
//! sound run comes near.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use consort_dataplane::fabric::{ConnectError, FABRIC_PAGE, Fabric, LinkDown, LinkEvent};
use consort_dataplane::names::{NodeId, PeerSet, Slot, Time};

use super::{TcpEngine, TcpError, TcpFabric, TcpOptions};

const ENGINES: [TcpEngine; 2] = [TcpEngine::IoUring, TcpEngine::Epoll];
const BOUND: Duration = Duration::from_secs(20);
const SLOT: Slot = Slot(0);
const ROUNDS: u64 = 300;

fn options(engine: TcpEngine) -> TcpOptions {
    TcpOptions { engine, segment_bytes: 4 << 20, prefault_up_to: 0, ..TcpOptions::default() }
}

fn fabric(node: u32, engine: TcpEngine) -> TcpFabric {
    TcpFabric::new(NodeId(node), options(engine)).unwrap()
}

fn now(start: Instant) -> Time {
    Time(u64::try_from(start.elapsed().as_nanos()).unwrap())
}

/// Drives fabrics until `done`.
fn until(fabrics: &mut [&mut TcpFabric], what: &str, done: &mut dyn FnMut(&mut [&mut TcpFabric]) -> bool) {
    let start = Instant::now();
    loop {
        for fabric in fabrics.iter_mut() {
            fabric.poll(now(start));
        }
        if done(fabrics) {
            return;
        }
        if start.elapsed() >= BOUND {
            let events: Vec<_> = fabrics.iter_mut().map(|fabric| fabric.poll_event()).collect();
            panic!("{what}: not within {BOUND:?}: {fabrics:?}, which tell {events:?}");
        }
        std::thread::yield_now();
    }
}

fn next_event(fabrics: &mut [&mut TcpFabric], of: usize) -> LinkEvent {
    let mut event = None;
    until(fabrics, "an event", &mut |fabrics| {
        event = fabrics[of].poll_event();
        event.is_some()
    });
    event.unwrap()
}

fn link(a: &mut TcpFabric, b: &mut TcpFabric) {
    let (of_a, of_b) = (a.offer(), b.offer());
    let (node_a, node_b) = (a.node, b.node);
    a.connect(SLOT, node_b, &of_b, BOUND).unwrap();
    b.connect(SLOT, node_a, &of_a, BOUND).unwrap();
    let mut up = 0;
    until(&mut [a, b], "both up", &mut |fabrics| {
        for fabric in fabrics.iter_mut() {
            match fabric.poll_event() {
                Some(LinkEvent::Up(SLOT)) => up += 1,
                None => {}
                other => panic!("{other:?}"),
            }
        }
        up == 2
    });
}

fn pair(engine: TcpEngine) -> (TcpFabric, TcpFabric) {
    let (mut a, mut b) = (fabric(1, engine), fabric(2, engine));
    link(&mut a, &mut b);
    (a, b)
}

fn all() -> PeerSet {
    PeerSet::EMPTY.with(SLOT)
}

/// Stores a word and publishes it.
fn tell(fabric: &mut TcpFabric, offset: usize, value: u64) {
    fabric.segment().store(offset, value);
    fabric.publish_words(offset..offset + 8, all());
    fabric.flush();
}

fn heard(fabric: &TcpFabric, offset: usize) -> u64 {
    fabric.mirror(SLOT).unwrap().load(offset)
}

const WORD_A: usize = FABRIC_PAGE;
const RING: usize = FABRIC_PAGE + 4096;

#[test]
fn words_and_rings_arrive_both_ways() {
    for engine in ENGINES {
        let (mut a, mut b) = pair(engine);
        assert_eq!(a.engine(), engine.to_string());
        for round in 1..200_usize {
            // From a few words to many frames.
            let len = (round * round * 64).next_multiple_of(8);
            for offset in (RING..RING + len).step_by(8) {
                a.segment().store(offset, (offset * round) as u64);
            }
            a.publish_ring(RING..RING + len, all());
            tell(&mut a, WORD_A, round as u64);
            until(&mut [&mut a, &mut b], "the word", &mut |fabrics| {
                heard(fabrics[1], WORD_A) == round as u64
            });
            for offset in (RING..RING + len).step_by(8) {
                assert_eq!(heard(&b, offset), (offset * round) as u64, "{engine} round {round} at {offset}");
            }
            tell(&mut b, WORD_A, round as u64);
            until(&mut [&mut a, &mut b], "the answer", &mut |fabrics| {
                heard(fabrics[0], WORD_A) == round as u64
            });
        }
        let stats = a.stats();
        assert!(stats.bytes_out > 100 << 20 && stats.bytes_in > 0 && stats.system_calls > 400, "{stats:?}");
    }
}

#[test]
fn a_full_link_takes_up_again_and_words_come_last() {
    for engine in ENGINES {
        let (mut a, mut b) = pair(engine);
        // More than the socket takes while nobody reads at the other end.
        let lap = 2 << 20;
        let mut laps = 0;
        while laps < 40 {
            laps += 1;
            // The same bytes again and again: they must not change while under way.
            a.publish_ring(RING..RING + lap, all());
            tell(&mut a, WORD_A, laps);
            a.poll(Time(0));
        }
        let mut last = 0;
        until(&mut [&mut a, &mut b], "all laps", &mut |fabrics| {
            let now = heard(fabrics[1], WORD_A);
            assert!(now >= last);
            last = now;
            now == laps
        });
        assert_eq!(b.stats().bytes_in, a.stats().bytes_out);
    }
}

#[test]
fn a_close_is_seen_as_one_after_all_that_was_published() {
    for engine in ENGINES {
        let (mut a, mut b) = pair(engine);
        a.publish_ring(RING..RING + (3 << 20), all());
        a.segment().store(WORD_A, 7);
        a.publish_words(WORD_A..WORD_A + 8, all());
        let reader = std::thread::spawn(move || {
            let event = next_event(&mut [&mut b], 0);
            (event, heard(&b, WORD_A))
        });
        a.close(BOUND);
        assert_eq!(reader.join().unwrap(), (LinkEvent::Down(SLOT, LinkDown::Closed), 7));
        assert_eq!(a.poll_event(), Some(LinkEvent::Down(SLOT, LinkDown::Closed)));
    }
}

#[test]
fn both_may_close_at_once() {
    for engine in ENGINES {
        let (mut a, mut b) = pair(engine);
        let other = std::thread::spawn(move || {
            b.close(BOUND);
            b.poll_event()
        });
        a.close(BOUND);
        assert_eq!(a.poll_event(), Some(LinkEvent::Down(SLOT, LinkDown::Closed)));
        assert_eq!(other.join().unwrap(), Some(LinkEvent::Down(SLOT, LinkDown::Closed)));
    }
}

#[test]
fn a_peer_that_goes_without_a_word_broke_the_link() {
    for engine in ENGINES {
        let (a, mut b) = pair(engine);
        drop(a);
        let event = next_event(&mut [&mut b], 0);
        assert!(matches!(event, LinkEvent::Down(SLOT, LinkDown::Broken(_))), "{event:?}");
        assert!(b.mirror(SLOT).is_some(), "what was there stays readable");
    }
}

#[test]
fn a_fenced_peer_changes_nothing_more_and_learns_it() {
    for engine in ENGINES {
        let (mut a, mut b) = pair(engine);
        tell(&mut a, WORD_A, 1);
        until(&mut [&mut a, &mut b], "the first", &mut |fabrics| heard(fabrics[1], WORD_A) == 1);
        // Under way, and perhaps there already, but not taken in.
        tell(&mut a, WORD_A, 2);
        let mirror = b.mirror(SLOT).unwrap().clone();
        b.fence(SLOT);
        let event = next_event(&mut [&mut a, &mut b], 0);
        assert!(matches!(event, LinkEvent::Down(SLOT, LinkDown::Broken(_))), "{event:?}");
        assert_eq!(mirror.load(WORD_A), 1);
        assert_eq!(b.poll_event(), None, "a fence is the owner's own doing");
        b.fence(SLOT);
        b.fence(Slot(200));
    }
}

#[test]
fn a_slot_can_be_used_again_after_its_link_is_gone() {
    for engine in ENGINES {
        let (mut a, b) = pair(engine);
        assert_eq!(
            a.connect(SLOT, NodeId(9), &fabric(9, engine).offer(), BOUND),
            Err(ConnectError::Taken(SLOT))
        );
        let again = b.offer();
        assert_eq!(a.connect(Slot(1), NodeId(2), &again, BOUND), Err(ConnectError::Taken(SLOT)));
        drop(b);
        next_event(&mut [&mut a], 0);
        let mut b = fabric(2, engine);
        link(&mut a, &mut b);
        tell(&mut b, WORD_A, 5);
        until(&mut [&mut a, &mut b], "the new link", &mut |fabrics| heard(fabrics[0], WORD_A) == 5);
    }
}

#[test]
fn a_restarted_peer_is_not_the_one_that_made_the_offer() {
    for engine in ENGINES {
        let mut a = fabric(1, engine);
        let mut b = fabric(2, engine);
        let old = Vec::from(super::Offer { ..super::Offer::decode(&b.offer()).unwrap() }.encode());
        // The same place, another life: a token of before.
        b.token = super::Token128::random().unwrap();
        b.connect(SLOT, NodeId(1), &a.offer(), BOUND).unwrap();
        a.connect(SLOT, NodeId(2), &old, BOUND).unwrap();
        let event = next_event(&mut [&mut a, &mut b], 0);
        assert!(matches!(event, LinkEvent::Down(SLOT, LinkDown::Failed(_))), "{event:?}");
        assert_eq!(b.strangers(), 1);
        assert_eq!(b.poll_event(), None, "the right peer may still come");
    }
}

#[test]
fn nobody_there_is_told_at_once_and_nobody_coming_in_time() {
    for engine in ENGINES {
        let gone = fabric(2, engine).offer();
        let mut a = fabric(1, engine);
        a.connect(SLOT, NodeId(2), &gone, BOUND).unwrap();
        let event = next_event(&mut [&mut a], 0);
        assert!(
            matches!(&event, LinkEvent::Down(SLOT, LinkDown::Failed(why)) if why.contains("refused")),
            "{event:?}"
        );

        let b = fabric(3, engine);
        let mut c = fabric(4, engine);
        c.connect(SLOT, NodeId(3), &b.offer(), Duration::from_nanos(1)).unwrap();
        let event = next_event(&mut [&mut c], 0);
        assert!(
            matches!(&event, LinkEvent::Down(SLOT, LinkDown::Failed(why)) if why.contains("dialled")),
            "{event:?}"
        );
    }
}

#[test]
fn offers_that_do_not_fit_are_refused() {
    let mut a = fabric(1, TcpEngine::Epoll);
    let refused = |result| matches!(result, Err(ConnectError::Offer(_)));
    assert!(refused(a.connect(SLOT, NodeId(2), b"garbage", BOUND)));
    assert!(refused(a.connect(SLOT, NodeId(3), &fabric(2, TcpEngine::Epoll).offer(), BOUND)));
    let own = a.offer();
    assert!(refused(a.connect(SLOT, NodeId(1), &own, BOUND)));
    let huge = TcpFabric::new(NodeId(2), TcpOptions { segment_bytes: 2 << 30, ..options(TcpEngine::Epoll) });
    assert!(refused(a.connect(SLOT, NodeId(2), &huge.unwrap().offer(), BOUND)), "S3: bounded beforehand");
}

#[test]
fn starts_that_can_not_work_are_refused_with_a_reason() {
    let bad = |options| TcpFabric::new(NodeId(1), options).unwrap_err();
    let base = || options(TcpEngine::Epoll);
    assert!(matches!(bad(TcpOptions { segment_bytes: 0, ..base() }), TcpError::SegmentBytes(0)));
    let foreign = bad(TcpOptions { listen: "192.0.2.1".parse().unwrap(), ..base() });
    assert!(matches!(foreign, TcpError::Listen { .. }), "{foreign}");
    let wildcard = bad(TcpOptions { listen: "0.0.0.0".parse().unwrap(), ..base() });
    assert!(matches!(wildcard, TcpError::Wildcard(_)), "{wildcard}");
}

#[test]
fn strangers_are_turned_away_and_do_not_keep_a_peer_out() {
    for engine in ENGINES {
        let few = TcpOptions { max_strangers: 4, ..options(engine) };
        let mut b = TcpFabric::new(NodeId(2), few).unwrap();
        let mut a = fabric(1, engine);
        // Silent ones, more than there is room for.
        let silent: Vec<_> = (0..16).map(|_| TcpStream::connect(b.address()).unwrap()).collect();
        // One that talks another protocol, and goes on at length.
        let mut loud = TcpStream::connect(b.address()).unwrap();
        loud.write_all(&[b"GET / HTTP/1.1\r\n\r\n".as_slice(), &[0xFF; 4096]].concat()).unwrap();
        // One that hangs up in the middle of a hello.
        let mut short = TcpStream::connect(b.address()).unwrap();
        short.write_all(b"CONSORTL").unwrap();
        short.shutdown(Shutdown::Write).unwrap();
        link(&mut a, &mut b);
        tell(&mut a, WORD_A, 3);
        until(&mut [&mut a, &mut b], "the peer's word", &mut |fabrics| heard(fabrics[1], WORD_A) == 3);
        until(&mut [&mut a, &mut b], "strangers counted", &mut |fabrics| fabrics[1].strangers() >= 14);
        let mut gone = [0; 1];
        assert!(!matches!(loud.read(&mut gone), Ok(1..)), "nobody talks to a stranger");
        drop(silent);
    }
}

#[test]
fn garbage_on_a_link_breaks_it_with_a_reason() {
    for engine in ENGINES {
        let (a, mut b) = pair(engine);
        // The peer's own socket, behind the back of its fabric.
        let socket = a.links[0].as_ref().unwrap().socket().unwrap();
        rustix::net::send(socket, &[0x5A; 300], rustix::net::SendFlags::empty()).unwrap();
        let event = next_event(&mut [&mut b], 0);
        assert!(
            matches!(&event, LinkEvent::Down(SLOT, LinkDown::Corrupt(why)) if why.contains("header")),
            "{event:?}"
        );
        assert!(
            (FABRIC_PAGE..4 << 20).step_by(8).all(|offset| heard(&b, offset) == 0),
            "nothing of it is visible"
        );
    }
}

#[test]
fn work_found_when_the_sleep_is_announced_ends_it() {
    for engine in ENGINES {
        let mut a = fabric(1, engine);
        a.wait(Time(0), Time(u64::MAX), &mut || false);
        assert_eq!(a.stats().sleeps, 0);
        // The bell rung between the announcement and the sleep.
        let bell = a.doorbell();
        a.wait(Time(0), Time(u64::MAX), &mut || {
            bell.ring();
            true
        });
        assert_eq!(a.stats().sleeps, 1);
    }
}

#[test]
fn a_ring_ends_a_sleep_whenever_it_comes() {
    for engine in ENGINES {
        let mut a = fabric(1, engine);
        let bell = a.doorbell();
        let asked = Arc::new(AtomicU64::new(0));
        let seen = Arc::new(AtomicU64::new(0));
        let owner = std::thread::spawn({
            let (asked, seen) = (Arc::clone(&asked), Arc::clone(&seen));
            move || {
                let start = Instant::now();
                while seen.load(SeqCst) < ROUNDS {
                    a.wait(now(start), Time(0).plus(BOUND), &mut || asked.load(SeqCst) == seen.load(SeqCst));
                    seen.store(asked.load(SeqCst), SeqCst);
                    assert!(start.elapsed() < BOUND, "{engine}: a ring was lost");
                }
            }
        });
        for round in 1..=ROUNDS {
            asked.store(round, SeqCst);
            bell.ring();
            while seen.load(SeqCst) < round && !owner.is_finished() {
                std::thread::yield_now();
            }
        }
        owner.join().unwrap();
    }
}

#[test]
fn a_publish_ends_a_sleep_whenever_it_comes() {
    for engine in ENGINES {
        let (mut a, mut b) = pair(engine);
        let answer = |fabric: &mut TcpFabric, first: bool| {
            let start = Instant::now();
            for round in 1..=ROUNDS {
                if first {
                    tell(fabric, WORD_A, round);
                }
                loop {
                    fabric.poll(now(start));
                    if heard(fabric, WORD_A) == round {
                        break;
                    }
                    fabric.wait(now(start), Time(0).plus(BOUND), &mut || true);
                    assert!(start.elapsed() < BOUND, "{engine}: a publish was slept over");
                }
                if !first {
                    tell(fabric, WORD_A, round);
                }
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(|| answer(&mut a, true));
            scope.spawn(|| answer(&mut b, false));
        });
    }
}

#[test]
fn a_fabric_may_move_to_another_thread_in_the_middle() {
    for engine in ENGINES {
        let (mut a, mut b) = pair(engine);
        let lap = 2 << 20;
        for laps in 1..=20 {
            // Full, with the engine told to watch for room: it then goes on from another thread.
            a.publish_ring(RING..RING + lap, all());
            tell(&mut a, WORD_A, laps);
            a = std::thread::spawn(move || {
                a.poll(Time(0));
                a.wait(Time(0), Time(1), &mut || true);
                a
            })
            .join()
            .unwrap();
        }
        until(&mut [&mut a, &mut b], "all laps", &mut |fabrics| heard(fabrics[1], WORD_A) == 20);
    }
}

#[test]
fn headers_outlive_the_ring_that_they_were_sent_by_without_copying() {
    let small = || TcpOptions {
        zero_copy_from: Some(1),
        socket_buffer: Some(1 << 20),
        ..options(TcpEngine::IoUring)
    };
    let mut a = TcpFabric::new(NodeId(1), small()).unwrap();
    let mut b = TcpFabric::new(NodeId(2), small()).unwrap();
    link(&mut a, &mut b);
    if !a.engine.can_zero_copy() {
        return; // an older kernel: nothing to send so
    }
    // Apart from each other, so that each has a header; more than the sockets take.
    let frame = 32 << 10;
    let frames = || (RING..RING + (3 << 20)).step_by(frame + 64);
    for offset in frames() {
        a.segment().store(offset, offset as u64);
        a.publish_ring(offset..offset + frame, all());
    }
    tell(&mut a, WORD_A, 1);
    // The kernel still reads the headers of a batch that is not all sent. On another thread there is another ring,
    // which sends the rest, but will not tell when they may be reused.
    assert!(a.links[0].as_ref().unwrap().zero_copy.batch_held);
    a = std::thread::spawn(move || {
        a.wait(Time(0), Time(1), &mut || true);
        a
    })
    .join()
    .unwrap();
    // As if the kernel had told of an earlier send that it copied: the rest goes without the ring.
    a.links[0].as_mut().unwrap().zero_copy.useless = true;
    until(&mut [&mut a, &mut b], "the word", &mut |fabrics| {
        assert_eq!(fabrics[1].poll_event(), None);
        heard(fabrics[1], WORD_A) == 1
    });
    assert!(frames().all(|offset| heard(&b, offset) == offset as u64));
}

#[test]
fn sending_without_copying_is_given_up_where_the_kernel_copies() {
    let eager = || TcpOptions { zero_copy_from: Some(1), ..options(TcpEngine::IoUring) };
    let mut a = TcpFabric::new(NodeId(1), eager()).unwrap();
    let mut b = TcpFabric::new(NodeId(2), eager()).unwrap();
    link(&mut a, &mut b);
    if !a.engine.can_zero_copy() {
        return; // an older kernel: nothing to try
    }
    for offset in (RING..RING + (1 << 20)).step_by(8) {
        a.segment().store(offset, offset as u64);
    }
    let mut tried = false;
    for round in 1..50 {
        a.publish_ring(RING..RING + (1 << 20), all());
        tell(&mut a, WORD_A, round);
        tried |= a.links[0].as_ref().unwrap().zero_copy.held.sends > 0;
        until(&mut [&mut a, &mut b], "the word", &mut |fabrics| heard(fabrics[1], WORD_A) == round);
        assert!((RING..RING + (1 << 20)).step_by(8).all(|offset| heard(&b, offset) == offset as u64));
    }
    // Loopback always copies, and says so.
    until(&mut [&mut a, &mut b], "the kernel's report", &mut |fabrics| {
        let zero_copy = &fabrics[0].links[0].as_ref().unwrap().zero_copy;
        tried && zero_copy.useless && zero_copy.held.sends == 0 && zero_copy.held.heads.is_empty()
    });
}

#[test]
fn many_links_are_all_served() {
    for engine in ENGINES {
        // Enough for the links to take turns, and for sends to go by the ring.
        let mut hub = fabric(1, engine);
        let mut others: Vec<_> = (2..12).map(|node| fabric(node, engine)).collect();
        for (slot, other) in (0..).map(Slot).zip(&mut others) {
            hub.connect(slot, other.node, &other.offer(), BOUND).unwrap();
            other.connect(SLOT, hub.node, &hub.offer(), BOUND).unwrap();
        }
        let everyone: PeerSet = (0..10).map(Slot).collect();
        let mut fabrics: Vec<_> = std::iter::once(&mut hub).chain(&mut others).collect();
        until(&mut fabrics, "all up", &mut |fabrics| {
            fabrics[0].up == everyone && fabrics[1..].iter().all(|other| other.up == all())
        });
        for round in 1..400 {
            fabrics[0].segment().store(WORD_A, round);
            fabrics[0].publish_words(WORD_A..WORD_A + 8, everyone);
            fabrics[0].flush();
            // Only some answer, so that the rest fall silent and take turns.
            let speaking = if round % 50 == 0 { 10 } else { 2 };
            until(&mut fabrics, "the word everywhere", &mut |fabrics| {
                fabrics[1..].iter().all(|other| heard(other, WORD_A) == round)
            });
            for other in &mut fabrics[1..=speaking] {
                tell(other, WORD_A, round);
            }
            until(&mut fabrics, "the answers", &mut |fabrics| {
                (0..speaking).all(|slot| {
                    let slot = Slot(u8::try_from(slot).unwrap());
                    fabrics[0].mirror(slot).unwrap().load(WORD_A) == round
                })
            });
        }
    }
}

/// Denies io_uring to the calling thread, as containers' profiles do.
mod denied {
    #![allow(unsafe_code)]

    /// From now on `io_uring_setup` of this thread fails with `error`.
    pub(super) fn deny_io_uring(error: i32) {
        let statement = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
        let number = libc::SYS_io_uring_setup as u32;
        let mut filter = [
            statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0), // the system call's number
            statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, number),
            statement(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | error as u32),
            statement(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
        ];
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
        // SAFETY: takes no address.
        assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
        // SAFETY: `program` and its filter live through the call, which copies them.
        let result =
            unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
        assert_eq!(result, 0);
    }
}

#[test]
fn where_io_uring_is_denied_auto_goes_on_and_the_explicit_choice_says_what_to_do() {
    for error in [libc::EPERM, libc::ENOSYS] {
        // The denial is for this one thread, and ends with it.
        std::thread::spawn(move || {
            denied::deny_io_uring(error);
            let refused = TcpFabric::new(NodeId(1), options(TcpEngine::IoUring)).unwrap_err().to_string();
            assert!(refused.contains("io_uring") && refused.contains("profile"), "{refused}");
            let mut a = fabric(1, TcpEngine::Auto);
            let mut b = fabric(2, TcpEngine::Auto);
            assert_eq!(a.engine(), "epoll");
            link(&mut a, &mut b);
            tell(&mut a, WORD_A, 4);
            until(&mut [&mut a, &mut b], "the word", &mut |fabrics| heard(fabrics[1], WORD_A) == 4);
        })
        .join()
        .unwrap();
    }
}

/// A pair between which there is a lifeline.
fn pair_with_lifeline(engine: TcpEngine) -> (TcpFabric, TcpFabric) {
    let (mut a, mut b) = pair(engine);
    until(&mut [&mut a, &mut b], "a lifeline", &mut |fabrics| {
        fabrics.iter().all(|fabric| fabric.lifeline.as_ref().unwrap().held() == 1)
    });
    (a, b)
}

/// F5: the link's own connection is open all the while. Whoever dialled, and asleep or awake.
#[test]
fn a_death_shows_before_the_links_end() {
    for (engine, dialler_dies) in ENGINES.into_iter().flat_map(|engine| [(engine, true), (engine, false)]) {
        let (a, b) = pair_with_lifeline(engine);
        let (mut dies, mut lives) = if dialler_dies { (a, b) } else { (b, a) };
        let start = Instant::now();
        std::thread::scope(|scope| {
            let survivor = scope.spawn(move || {
                loop {
                    lives.poll(now(start));
                    if let Some(event) = lives.poll_event() {
                        return event;
                    }
                    lives.wait(now(start), now(start).plus(BOUND), &mut || true);
                    assert!(start.elapsed() < BOUND, "slept over it");
                }
            });
            dies.lifeline.as_mut().unwrap().die();
            let event = survivor.join().unwrap();
            assert!(matches!(&event, LinkEvent::Down(SLOT, LinkDown::Broken(_))), "{event:?}");
        });
        assert_eq!(dies.poll_event(), None, "its own link was open till then");
    }
}

/// What a peer sent before it died comes first; and if that was a goodbye, it is one.
#[test]
fn a_death_does_not_hide_what_came_before_it() {
    for engine in ENGINES {
        let (mut a, mut b) = pair_with_lifeline(engine);
        a.publish_ring(RING..RING + (1 << 20), all());
        tell(&mut a, WORD_A, 7);
        // All of it goes out before the death, more than one look takes in.
        until(&mut [&mut a, &mut b], "the word", &mut |fabrics| heard(fabrics[1], WORD_A) == 7);
        tell(&mut a, WORD_A, 8);
        a.lifeline.as_mut().unwrap().die();
        assert!(matches!(next_event(&mut [&mut b], 0), LinkEvent::Down(SLOT, LinkDown::Broken(_))));
        assert_eq!(heard(&b, WORD_A), 8);

        let (mut a, mut b) = pair_with_lifeline(engine);
        a.close(Duration::ZERO);
        a.lifeline.as_mut().unwrap().die();
        assert_eq!(next_event(&mut [&mut b], 0), LinkEvent::Down(SLOT, LinkDown::Closed));
    }
}

#[test]
fn a_lifeline_that_ends_in_order_is_no_death() {
    let (mut a, mut b) = pair_with_lifeline(TcpEngine::Epoll);
    a.lifeline = None;
    for value in 1..ROUNDS {
        tell(&mut a, WORD_A, value);
        until(&mut [&mut a, &mut b], "a word", &mut |fabrics| heard(fabrics[1], WORD_A) == value);
    }
    assert_eq!(b.poll_event(), None);
    tell(&mut b, WORD_A, 1);
    until(&mut [&mut a, &mut b], "an answer", &mut |fabrics| heard(fabrics[0], WORD_A) == 1);
}

/// S1: who does not know the tokens is nobody, and its end says nothing.
#[test]
fn strangers_at_the_lifelines_are_nobody() {
    let (mut a, mut b) = (fabric(1, TcpEngine::Epoll), fabric(2, TcpEngine::Epoll));
    let lifelines = (b.address().ip(), b.lifeline.as_ref().unwrap().port());
    let silent: Vec<_> = (0..300).map(|_| TcpStream::connect(lifelines).unwrap()).collect();
    for garbage in [&[0; 32][..], &[1; 31], &[2; 4096]] {
        TcpStream::connect(lifelines).unwrap().write_all(garbage).unwrap();
    }
    link(&mut a, &mut b);
    until(&mut [&mut a, &mut b], "a lifeline", &mut |fabrics| {
        fabrics.iter().all(|fabric| fabric.lifeline.as_ref().unwrap().held() == 1)
    });
    drop(silent);
    tell(&mut a, WORD_A, 1);
    until(&mut [&mut a, &mut b], "the word", &mut |fabrics| heard(fabrics[1], WORD_A) == 1);
    assert_eq!((a.poll_event(), b.poll_event()), (None, None));
}

/// The thread that holds the lifelines holds nothing else open: who waits for the end of a pipe gets it.
#[test]
fn lifelines_hold_nothing_of_the_applications() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let fabric = fabric(1, TcpEngine::Epoll);
    assert!(fabric.lifeline.is_some());
    drop(writer);
    assert_eq!(reader.read(&mut [0]).unwrap(), 0);
}
