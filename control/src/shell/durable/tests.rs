//! Logs that are made whole from others', and told again (P3), over the simulated disk.

use std::io::Read as _;

use consort_dataplane::sim::disk::{DiskFaults, SimDisk};

use super::*;
use crate::view::{Domain, Incarnation, Member, Role};

fn view(id: u64) -> View {
    let members = (1..=3).map(|node| Member {
        node: NodeId(node),
        incarnation: Incarnation(u64::from(node) + id * 10),
        address: ([127, 0, 0, 1], 7100).into(),
        role: Role::Data,
        domain: Domain::default(),
    });
    View::of(ViewId(id), members.collect())
}

fn blank(seed: u64) -> (SimDisk, ShardLog) {
    let disk = SimDisk::new(seed, DiskFaults::default());
    let options = LogOptions { segment_bytes: 1 << 16, ..LogOptions::default() };
    let (log, _) = Log::open(Box::new(disk.clone()), options, Index(0)).unwrap();
    (disk, ShardLog::new(log, false, Some(1 << 15)))
}

fn flush(log: &mut ShardLog) {
    while log.turn().unwrap() || !log.is_flushed() {}
}

/// A view, and so many messages in it.
fn live(log: &mut ShardLog, id: u64, messages: u64, text: &str) {
    assert!(log.begin(&view(id)));
    for seq in 0..messages {
        let bytes = format!("{text} {id}/{seq} {}", "x".repeat(seq as usize % 90)).into_bytes();
        let (sender, view) = (NodeId(seq as u32 % 3 + 1), ViewId(id));
        let (kind, payload) = (LogKind::Message, Payload::Copied(&bytes));
        log.log.append(&Entry { kind, view, seq: Seq(seq), sent: seq, sender, payload }).unwrap();
    }
    flush(log);
}

/// One fetches from another until it has that view. Returns how many bytes came.
fn fetch(pupil: &mut ShardLog, source: &mut ShardLog, since: u64) -> Result<usize, String> {
    pupil.lack(ViewId(since), vec![NodeId(1)]);
    let mut came = 0;
    while pupil.missing.is_some() {
        let (_, wanted) = pupil.fetch()?;
        pupil.turn().unwrap();
        let Some(Wanted { node, since, behind, chain, at }) = wanted else { continue };
        let given = source.serve(NodeId(2), since, behind, chain, at);
        came += given.len();
        pupil.on_part(node, (behind, at), &given)?;
    }
    flush(pupil);
    Ok(came)
}

/// Everything that an application is told again.
fn told(log: &mut ShardLog) -> Vec<String> {
    let (mut all, mut refused, mut turns) = (Vec::new(), false, 0);
    loop {
        turns += 1;
        let mut app = |incoming: Incoming<'_, '_>| {
            if (turns + all.len()) % 7 == 0 {
                turns += 1;
                return Verdict::Later; // offered again
            }
            all.push(match incoming {
                Incoming::View(view) => format!("view {}", view.id),
                Incoming::Message(delivery) => {
                    let text = String::from_utf8_lossy(delivery.payload).into_owned();
                    format!(
                        "{} {} {} {} {text}",
                        delivery.view, delivery.seq, delivery.sender, delivery.stamp
                    )
                }
                Incoming::Restore(restore) => {
                    let mut restore = restore.take().unwrap();
                    let mut text = String::new();
                    restore.read_to_string(&mut text).unwrap();
                    restore.finish();
                    format!("state {text}")
                }
                _ => String::new(),
            });
            Verdict::Taken
        };
        if log.tell_again(&mut app, &Doorbell::new(|| {}), &mut refused).unwrap().0 {
            return all;
        }
    }
}

// P3
#[test]
fn a_log_is_made_whole_from_another_s_and_told_again() {
    let (_, mut source) = blank(1);
    live(&mut source, 1, 500, "one");
    live(&mut source, 4, 300, "one");
    live(&mut source, 6, 50, "one");
    // A blank one gets all up to the view, and nothing of what comes behind it, which it gets by the rings.
    let (_, mut pupil) = blank(2);
    let all = fetch(&mut pupil, &mut source, 6).unwrap();
    assert_eq!(pupil.log.tip().index, Index(803));
    assert!(pupil.persisted(ViewId(6), ViewId(6)) == 1 && pupil.persisted(ViewId(6), ViewId(5)) == 0);
    let again = told(&mut pupil);
    assert_eq!((again.len(), &again[0][..], &again[501][..]), (802, "view 1", "view 4"));
    assert!(again[502].starts_with("4 0 1 ") && again[502].ends_with("one 4/0 "), "{}", again[502]);
    assert_eq!(told(&mut pupil), [] as [&str; 0], "once");

    // One that has a part gets the rest.
    let (_, mut pupil) = blank(3);
    fetch(&mut pupil, &mut source, 4).unwrap();
    pupil.end();
    let rest = fetch(&mut pupil, &mut source, 6).unwrap();
    assert!(rest * 2 < all, "{rest} of {all}");
    assert_eq!(told(&mut pupil), again);
}

// P3: the ragged edge.
#[test]
fn what_no_other_has_goes_unless_it_was_told() {
    let (_, mut source) = blank(1);
    live(&mut source, 1, 100, "one");
    live(&mut source, 2, 10, "one");
    let mut all = 0;
    for already in [0, 100, 101, 120, 131] {
        let (_, mut pupil) = blank(2);
        live(&mut pupil, 1, 130, "one");
        pupil.end();
        pupil.told = Index(already);
        let fetched = fetch(&mut pupil, &mut source, 2);
        if already > 101 {
            assert!(fetched.unwrap_err().contains("empty data directory"), "{already}");
            continue;
        }
        let fetched = fetched.unwrap();
        assert_eq!(pupil.log.tip().index, Index(102));
        assert_eq!(told(&mut pupil).len() as u64, 101 - already);
        all = all.max(fetched);
        assert!(already == 0 || fetched * 10 < all, "{fetched} of {all}: what was told is there");
    }
    // Of a long log the last session goes, and no more.
    let (_, mut pupil) = blank(2);
    live(&mut source, 3, 10, "one");
    live(&mut pupil, 1, 100, "one");
    live(&mut pupil, 2, 15, "one");
    pupil.end();
    let fetched = fetch(&mut pupil, &mut source, 3).unwrap();
    assert_eq!(pupil.log.tip(), &Tip { index: Index(113), ..*pupil.log.tip() });
    assert!(fetched * 5 < all, "{fetched} of {all}");
}

// P3: an application that was told ahead of the logs what the group then lost can't be taken back; a process that starts anew can.
#[test]
fn who_was_told_more_than_the_group_has_is_to_begin_anew() {
    let (_, mut source) = blank(1);
    live(&mut source, 1, 100, "one");
    live(&mut source, 2, 10, "one");
    let mut told_ahead = |more: u64| {
        let (_, mut pupil) = blank(2);
        pupil.is_ahead = true;
        live(&mut pupil, 1, 100 + more, "one");
        pupil.on_view_told(&view(1));
        pupil.on_told(ViewId(1), Seq(99 + more));
        pupil.end();
        fetch(&mut pupil, &mut source, 2).map(drop)
    };
    assert_eq!(told_ahead(0), Ok(()));
    assert_eq!(told_ahead(3), Err(TAKEN_BACK.to_owned()));
    // The same disk under a new process: what it has more goes.
    let (disk, mut pupil) = blank(3);
    live(&mut pupil, 1, 103, "one");
    drop(pupil);
    let options = LogOptions { segment_bytes: 1 << 16, ..LogOptions::default() };
    let (log, _) = Log::open(Box::new(disk), options, Index(0)).unwrap();
    let mut pupil = ShardLog::new(log, false, Some(1 << 15));
    pupil.is_ahead = true;
    fetch(&mut pupil, &mut source, 2).unwrap();
    assert_eq!(pupil.log.tip().index, Index(102));
}

// P3: who lacks something itself does not know what there is.
#[test]
fn who_fetches_gives_nothing() {
    let (_, mut source) = blank(1);
    live(&mut source, 1, 100, "one");
    let nothing = || Given::Records(Vec::new());
    let asked = |source: &mut ShardLog, since, behind| source.serve(NodeId(2), ViewId(since), behind, 0, 0);
    assert_eq!(asked(&mut source, 2, 0), nothing(), "it has not come to that session");
    assert_eq!(asked(&mut source, 2, 200), nothing());
    source.lack(ViewId(2), vec![NodeId(3)]);
    assert_eq!(asked(&mut source, 1, 0), nothing(), "it fetches");
    source.missing = None;
    assert!(!asked(&mut source, 1, 0).is_empty());
    assert_eq!(asked(&mut source, 1, 200), Given::Other, "a ragged edge");
}

// A record longer than what may wait comes as a whole.
#[test]
fn the_longest_record_is_fetched() {
    let (_, mut source) = blank(1);
    assert!(source.begin(&view(1)));
    let bytes = vec![7; MOST_AHEAD + 100];
    let (kind, payload) = (LogKind::Message, Payload::Copied(&bytes));
    let entry = Entry { kind, view: ViewId(1), seq: Seq(0), sent: 0, sender: NodeId(1), payload };
    source.log.append(&entry).unwrap();
    flush(&mut source);
    live(&mut source, 2, 1, "one");
    let (_, mut pupil) = blank(2);
    assert!(fetch(&mut pupil, &mut source, 2).unwrap() > MOST_AHEAD);
    assert_eq!(pupil.log.tip().index, Index(3));
}

#[test]
fn a_source_that_is_gone_or_lies_is_found() {
    let (_, mut source) = blank(1);
    live(&mut source, 1, 2000, "one");
    live(&mut source, 2, 10, "one");
    let (_, mut pupil) = blank(2);
    pupil.lack(ViewId(2), vec![NodeId(1), NodeId(3)]);
    let wanted = pupil.fetch().unwrap().1.unwrap();
    assert_eq!((wanted.node, wanted.behind, wanted.at), (NodeId(1), 0, 0));
    assert!(pupil.fetch().unwrap().1.is_none(), "asked once");
    pupil.on_beat();
    pupil.on_beat();
    let wanted = pupil.fetch().unwrap().1.unwrap();
    assert_eq!(wanted.node, NodeId(3), "the first has said nothing for two beats");
    let given = source.serve(NodeId(2), wanted.since, wanted.behind, wanted.chain, wanted.at);
    pupil.on_part(NodeId(1), (0, 0), &given).unwrap();
    assert!(pupil.fetch().unwrap().1.is_none(), "what was not asked for counts for nothing");
    let Given::Records(mut bytes) = given else { panic!("records") };
    bytes[4000] ^= 1;
    pupil.on_part(NodeId(3), (0, 0), &Given::Records(bytes)).unwrap();
    assert!(pupil.fetch().is_err(), "a record that is not as it was written");
}

// P2
#[test]
fn a_flush_that_fails_is_said_once_and_for_all() {
    let (disk, mut log) = blank(1);
    live(&mut log, 1, 3, "one");
    disk.set_faults(DiskFaults { flush_fails: 100, ..DiskFaults::default() });
    let bytes = b"lost";
    let (kind, payload) = (LogKind::Message, Payload::Copied(bytes));
    let entry = Entry { kind, view: ViewId(1), seq: Seq(3), sent: 0, sender: NodeId(1), payload };
    log.log.append(&entry).unwrap();
    let error = std::iter::repeat_with(|| log.turn()).find_map(Result::err).unwrap();
    disk.set_faults(DiskFaults::default());
    assert_eq!(log.turn(), Err(error.clone()));
    assert!(error.to_string().contains("kernel's log"), "{error}");
    assert_eq!(log.persisted(ViewId(1), ViewId(1)), 4, "what was flushed before stays so");
}

/// Its application gives a snapshot, if it is asked for one.
fn snapshot(log: &mut ShardLog, state: &'static str) -> bool {
    let Some(request) = log.ask_for_snapshot(NodeId(1), &Doorbell::new(|| {})) else { return false };
    assert!(log.ask_for_snapshot(NodeId(1), &Doorbell::new(|| {})).is_none(), "asked once");
    request.told_at(|| log.place());
    request.give_in_turn(state.as_bytes());
    assert!(log.has_news());
    log.keep();
    flush(log);
    true
}

/// The log that lies there, in another life.
fn again(disk: &SimDisk) -> ShardLog {
    let options = LogOptions { segment_bytes: 1 << 16, ..LogOptions::default() };
    let (log, _) = Log::open(Box::new(disk.kill()), options, Index(0)).unwrap();
    ShardLog::new(log, false, Some(1 << 15))
}

/// A log whose application was told all of it, and has given a snapshot.
fn with_snapshot(seed: u64) -> (SimDisk, ShardLog) {
    let (disk, mut log) = blank(seed);
    live(&mut log, 1, 100, "one");
    assert!(!snapshot(&mut log, "nothing was told yet"));
    log.on_view_told(&view(1));
    log.on_told(ViewId(1), Seq(99));
    assert!(!snapshot(&mut log, "it is short"));
    log.on_view_told(&view(2));
    live(&mut log, 2, 900, "one");
    assert_eq!(log.place().unwrap().0, Index(102), "the view was told before it was written down");
    log.on_told(ViewId(2), Seq(799));
    assert!(snapshot(&mut log, "of 102 and 800 records"));
    assert!(!snapshot(&mut log, "it has not grown since"));
    let (tip, _) = log.log.snapshot().unwrap();
    assert_eq!((tip.index, tip.view, tip.next_seq), (Index(902), ViewId(2), Seq(800)));
    (disk, log)
}

// P4
#[test]
fn a_snapshot_takes_the_place_of_what_it_has() {
    let (disk, log) = with_snapshot(1);
    assert!(log.log.first() > Index(500) && log.log.first() < Index(903), "{}", log.log.first());
    // In another life it is told first.
    let mut log = again(&disk);
    live(&mut log, 3, 5, "one");
    let all = told(&mut log);
    assert_eq!((all.len(), &all[0][..]), (101, "state of 102 and 800 records"));
    assert!(all[1].starts_with("2 800 3 "), "its view is known: {}", all[1]);
    // Where the life goes on, what was told is not told again.
    log.end();
    assert!(log.begin(&view(4)));
    flush(&mut log);
    let more = told(&mut log);
    assert_eq!((more.len(), &more[0][..]), (6, "view 3"), "{more:?}");
}

// P4: an application that refuses, or gives what can't be read, is asked again when the log has grown once more.
#[test]
fn a_snapshot_that_is_not_given_is_asked_for_again() {
    struct Unreadable;
    impl std::io::Read for Unreadable {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::other("no such state"))
        }
    }
    let (_, mut log) = blank(1);
    for (at, id) in (0..).zip(1..5) {
        live(&mut log, id, 800, "one");
        log.on_view_told(&view(id));
        let request = log.ask_for_snapshot(NodeId(1), &Doorbell::new(|| {})).unwrap();
        request.told_at(|| log.place());
        match at {
            0 => drop(request),
            1 => request.refuse("not now"),
            2 => request.give_in_turn(Unreadable),
            _ => request.give_in_turn(&b"at last"[..]),
        }
        log.keep();
        assert_eq!(log.log.snapshot().is_some(), at == 3, "{at}");
        assert!(log.ask_for_snapshot(NodeId(1), &Doorbell::new(|| {})).is_none());
    }
}

// P4, V7: who lacks what has gone gets the snapshot, and then the rest.
#[test]
fn who_lacks_what_has_gone_gets_the_snapshot() {
    let (_, mut source) = with_snapshot(1);
    live(&mut source, 3, 50, "one");
    for had in [0, 60, 100] {
        let (_, mut pupil) = blank(2);
        if had > 0 {
            live(&mut pupil, 1, had, "one");
            pupil.told = Index(had % 100);
            pupil.end();
        }
        fetch(&mut pupil, &mut source, 3).unwrap();
        assert_eq!((pupil.log.first(), pupil.log.tip().index), (Index(903), Index(1003)), "{had}");
        assert!(pupil.persisted(ViewId(3), ViewId(3)) == 1);
        let told = told(&mut pupil);
        assert_eq!((told.len(), &told[0][..]), (101, "state of 102 and 800 records"), "{had}");
        assert!(told[1].starts_with("2 800 3 "), "{}", told[1]);
    }
}

// P4: the snapshot was all here when the node was left out; it takes the log's place all the same, before anything follows.
#[test]
fn a_snapshot_that_has_come_takes_the_log_s_place_whatever_has_become_of_its_fetch() {
    let (_, mut source) = with_snapshot(1);
    live(&mut source, 3, 5, "one");
    let (_, mut pupil) = blank(2);
    pupil.lack(ViewId(3), vec![NodeId(1)]);
    let wanted = pupil.fetch().unwrap().1.unwrap();
    let given = source.serve(NodeId(2), wanted.since, wanted.behind, wanted.chain, wanted.at);
    pupil.on_part(NodeId(1), (0, 0), &given).unwrap();
    pupil.end();
    assert!(!pupil.begin(&view(4)));
    let came = fetch(&mut pupil, &mut source, 3).unwrap();
    assert!(came < 40_000, "{came} bytes: it is not fetched once more");
    assert_eq!((pupil.log.first(), pupil.log.tip().index), (Index(903), Index(1003)));
    assert_eq!(told(&mut pupil)[0], "state of 102 and 800 records");
}

// P4, S1: a source that is gone, that tells something else on the way, or lies.
#[test]
fn a_snapshot_that_does_not_come_to_its_end_is_begun_anew() {
    let (_, mut source) = with_snapshot(1);
    let (_, mut other) = with_snapshot(3);
    live(&mut source, 3, 5, "one");
    live(&mut other, 3, 5, "one");
    let (_, mut pupil) = blank(2);
    pupil.lack(ViewId(3), vec![NodeId(1), NodeId(3)]);
    let wanted = pupil.fetch().unwrap().1.unwrap();
    let given = source.serve(NodeId(2), wanted.since, wanted.behind, wanted.chain, wanted.at);
    let Given::Snapshot { index, len, bytes } = given else { panic!("{given:?}") };
    // A part of it; then the source says nothing, and another one gives its own.
    let part = |from: usize, to: usize| Given::Snapshot { index, len, bytes: bytes[from..to].to_vec() };
    pupil.on_part(NodeId(1), (0, 0), &part(0, 50)).unwrap();
    let wanted = pupil.fetch().unwrap().1.unwrap();
    assert_eq!((wanted.node, wanted.behind, wanted.at), (NodeId(1), 0, 50));
    pupil.on_part(NodeId(1), (0, 50), &Given::Records(vec![1; 60])).unwrap();
    let wanted = pupil.fetch().unwrap().1.unwrap();
    assert_eq!((wanted.node, wanted.at), (NodeId(1), 0), "what it gave before has gone: from the beginning");
    pupil.on_beat();
    pupil.on_beat();
    let wanted = pupil.fetch().unwrap().1.unwrap();
    assert_eq!((wanted.node, wanted.at), (NodeId(3), 0));
    let mut lie = bytes.clone();
    lie[70] ^= 1;
    let error = pupil.on_part(NodeId(3), (0, 0), &Given::Snapshot { index, len, bytes: lie }).unwrap_err();
    assert!(error.contains("node 3") && error.contains("sum"), "{error}");
    pupil.on_beat();
    pupil.on_beat();
    fetch(&mut pupil, &mut other, 3).unwrap();
    assert_eq!(told(&mut pupil)[0], "state of 102 and 800 records");
}
