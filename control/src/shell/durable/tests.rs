//! Logs that are made whole from others', and told again (P3), over the simulated disk.

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
    (disk, ShardLog::new(log, false))
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
        let (bytes, other) = source.serve(NodeId(2), since, behind, chain, at);
        came += bytes.len();
        pupil.on_part(node, behind, at, &bytes, other)?;
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
                _ => String::new(),
            });
            Verdict::Taken
        };
        if log.tell_again(&mut app, &mut refused).unwrap().0 {
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

// P3: who lacks something itself does not know what there is.
#[test]
fn who_fetches_gives_nothing() {
    let (_, mut source) = blank(1);
    live(&mut source, 1, 100, "one");
    let asked = |source: &mut ShardLog, since, behind| source.serve(NodeId(2), ViewId(since), behind, 0, 0);
    assert_eq!(asked(&mut source, 2, 0), (Vec::new(), false), "it has not come to that session");
    assert_eq!(asked(&mut source, 2, 200), (Vec::new(), false));
    source.lack(ViewId(2), vec![NodeId(3)]);
    assert_eq!(asked(&mut source, 1, 0), (Vec::new(), false), "it fetches");
    source.missing = None;
    assert!(!asked(&mut source, 1, 0).0.is_empty());
    assert!(asked(&mut source, 1, 200).1, "a ragged edge");
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
    let (mut bytes, _) = source.serve(NodeId(2), wanted.since, wanted.behind, wanted.chain, wanted.at);
    pupil.on_part(NodeId(1), 0, 0, &bytes, false).unwrap();
    assert!(pupil.fetch().unwrap().1.is_none(), "what was not asked for counts for nothing");
    bytes[4000] ^= 1;
    pupil.on_part(NodeId(3), 0, 0, &bytes, false).unwrap();
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
