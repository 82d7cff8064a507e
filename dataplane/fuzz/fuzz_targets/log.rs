//! A data directory with whatever the fuzzer likes in it (P4): it is read, opened, repaired and read again. Nothing panics, nothing loops; what is
//! served after the repair is what was served before it; and a log that was repaired is sound and goes on.
//!
//! The input is a script: files of a sound log, and then bytes to put somewhere into them, with the sums made right where the script asks for it (so
//! that what lies behind the sums is tried, too).
#![no_main]

use consort_dataplane::log::disk::Disk;
use consort_dataplane::log::{
    Condition, Entry, From, Index, Log, LogKind, LogOptions, Meta, OpenError, Payload, Reader, repair, scan_each,
    segment_name, snapshot,
};
use consort_dataplane::names::{NodeId, Seq, ViewId};
use consort_dataplane::sim::disk::{DiskFaults, SimDisk};
use libfuzzer_sys::fuzz_target;

const SMALL: LogOptions = LogOptions { shard: 0, segment_bytes: 512, lying_from: 64, most_waiting: 1 << 20 };

fn append(log: &mut Log, view: u64, seq: u64, payload: &[u8]) {
    let (view, seq, sender, kind) = (ViewId(view), Seq(seq), NodeId(1), LogKind::Message);
    let entry = Entry { kind, view, seq, sent: 9, sender, payload: Payload::Copied(payload) };
    log.append(&entry).expect("there is room");
    while log.turn().expect("nothing fails") || !log.is_idle() {}
}

fn served(disk: &SimDisk) -> (Vec<(u64, Vec<u8>)>, Condition) {
    let mut all = Vec::new();
    let scan = scan_each(&mut disk.clone(), &mut |header, payload| all.push((header.index.0, payload.to_vec())));
    (all, scan.expect("it can be read").condition)
}

fuzz_target!(|script: &[u8]| {
    let _ = Meta::parse(script);
    let disk = SimDisk::new(1, DiskFaults::default());
    let (mut log, _) = Log::open(Box::new(disk.clone()), SMALL, Index(0)).expect("an empty directory");
    (0..12).for_each(|seq| append(&mut log, 1, seq, &[seq as u8; 40]));
    drop(log);
    // What the script says: in which file, where, how many bytes, the bytes.
    let mut rest = script;
    while let [file, at, high, len, more @ ..] = rest {
        let name = match file % 6 {
            0 => snapshot::name(Index(u64::from(*at))),
            number => segment_name(u64::from(number)),
        };
        let len = usize::from(*len).min(more.len());
        let mut content = disk.content(&name);
        let at = usize::from(*at) | usize::from(high & 1) << 8;
        let end = (at + len).max(if high & 2 == 0 { content.len() } else { 0 });
        content.resize(end, 0);
        content[at..at + len].copy_from_slice(&more[..len]);
        disk.spoil(&name, &content);
        rest = &more[len..];
    }
    let (before, condition) = served(&disk);
    let _ = snapshot::newest(&mut disk.clone()).expect("it can be read");
    if let Ok(mut reader) = Reader::open(Box::new(disk.clone()), From::Index(Index(0))) {
        while let Ok(Some(_)) = reader.read() {}
    }
    match Log::open(Box::new(disk.clone()), SMALL, Index(0)) {
        Err(OpenError::Damaged { .. }) => {
            assert!(matches!(condition, Condition::Damaged(_)));
            repair(&mut disk.clone(), Index(0)).expect("nothing fails");
        }
        Err(error) => panic!("{error}"),
        Ok(_) => assert!(!matches!(condition, Condition::Damaged(_))),
    }
    let (after, condition) = served(&disk);
    assert_eq!((&before, condition), (&after, Condition::Sound));
    let (mut log, scan) = Log::open(Box::new(disk.clone()), SMALL, Index(0)).expect("it was repaired");
    if scan.tip.index.0 < u64::MAX / 2 && scan.tip.stamp.0 < u64::MAX / 2 {
        append(&mut log, u64::MAX, 0, b"on and on");
        let is_there = disk.clone().list().is_ok() && served(&disk).0.len() == after.len() + 1;
        assert!(is_there, "what is appended to a repaired log is there");
    }
});
