//! The log against a disk that fails: every byte flipped, every length, and crashes by seed.

#![allow(clippy::unwrap_used, reason = "a test that can't go on should say where")]

use super::disk::{Disk, DiskTrouble};
use super::meta::Mark;
use super::snapshot::SnapshotReader;
use super::*;
use crate::memory::Segment;
use crate::names::{NodeId, Seq, ViewId};
use crate::sim::Choices;
use crate::sim::disk::{DiskFaults, SimDisk};

const SMALL: LogOptions = LogOptions { shard: 3, segment_bytes: 1024, lying_from: 64, most_waiting: 1 << 20 };

/// What a record is to a test.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Kept {
    index: Index,
    view: ViewId,
    seq: Seq,
    stamp: Stamp,
    sender: NodeId,
    payload: Vec<u8>,
}

impl Kept {
    fn of(header: &RecordHeader, payload: &[u8]) -> Self {
        let RecordHeader { index, view, seq, stamp, sender, .. } = *header;
        Self { index, view, seq, stamp, sender, payload: payload.to_vec() }
    }
}

fn entry(view: u64, seq: u64, payload: &[u8]) -> Entry<'_> {
    let (sent, sender) = (1000 * seq, NodeId(seq as u32 % 3 + 1));
    let (view, seq) = (ViewId(view), Seq(seq));
    Entry { kind: LogKind::Message, view, seq, sent, sender, payload: Payload::Copied(payload) }
}

fn payload(seq: u64, len: usize) -> Vec<u8> {
    (0..len).map(|at| (seq as usize * 31 + at * 7 + 1) as u8).collect()
}

/// Appends, and says what is to be found again.
fn append(log: &mut Log, view: u64, seq: u64, bytes: &[u8]) -> Kept {
    let entry = entry(view, seq, bytes);
    let tip = log.append(&entry).unwrap();
    let Entry { view, seq, sender, .. } = entry;
    Kept { index: tip.index, view, seq, stamp: tip.stamp, sender, payload: bytes.to_vec() }
}

fn flush(log: &mut Log) {
    while log.turn().unwrap() || !log.is_idle() {}
}

/// A log of some segments, flushed in batches of different lengths.
fn written() -> (SimDisk, Vec<Kept>) {
    let disk = SimDisk::new(1, DiskFaults::default());
    let (mut log, scan) = Log::open(Box::new(disk.clone()), SMALL, Index(0)).unwrap();
    assert_eq!((scan.condition, scan.tip), (Condition::Sound, Tip::default()));
    let mut all = Vec::new();
    for seq in 0..30 {
        all.push(append(&mut log, 1, seq, &payload(seq, seq as usize * 5 % 83)));
        if seq % 4 == 3 {
            flush(&mut log);
        }
    }
    flush(&mut log);
    assert_eq!(log.durable(), Index(30));
    assert!(log.segments().len() >= 3, "{:?}", log.segments());
    (disk, all)
}

fn read_all(disk: &SimDisk) -> (Vec<Kept>, Scan) {
    let mut all = Vec::new();
    let scan =
        scan_each(&mut disk.clone(), &mut |header, payload| all.push(Kept::of(header, payload))).unwrap();
    (all, scan)
}

/// Whatever was done to it, a log serves what was written, or less; says so if it is less and was flushed; and can be made sound.
/// Returns how many records were served.
fn serves_no_more_than(disk: &SimDisk, all: &[Kept], what: &str) -> usize {
    let (read, scan) = read_all(disk);
    assert!(read.len() <= all.len() && read[..] == all[..read.len()], "{what}: served {read:?}");
    let known = super::scan(&mut disk.clone(), Index(30), Tip::default()).unwrap();
    assert_eq!(
        read.len() == all.len(),
        !matches!(known.condition, Condition::Damaged(_)),
        "{what}: {known:?}"
    );
    match Log::open(Box::new(disk.clone()), SMALL, Index(0)) {
        Ok((log, _)) => assert_eq!(log.durable().0 as usize, read.len(), "{what}"),
        Err(OpenError::Damaged { spot, sound }) => {
            assert_eq!((sound as usize, spot.index.0 as usize), (read.len(), read.len() + 1), "{what}");
            assert!(matches!(scan.condition, Condition::Damaged(_)), "{what}");
            assert_eq!(read_all(disk).1, scan, "{what}: a log that is refused is left as it is");
            let _ = repair(&mut disk.clone(), Index(0)).unwrap();
        }
        Err(error) => panic!("{what}: {error}"),
    }
    // Sound now, and goes on.
    let (mut log, scan) = Log::open(Box::new(disk.clone()), SMALL, Index(0)).unwrap();
    assert_eq!((&scan.condition, scan.tip.index.0 as usize), (&Condition::Sound, read.len()), "{what}");
    let more: Vec<_> = (0..9).map(|seq| append(&mut log, 9, seq, &payload(seq, 70))).collect();
    flush(&mut log);
    drop(log);
    let (again, scan) = read_all(disk);
    assert_eq!(scan.condition, Condition::Sound, "{what}");
    let mut expected = read.clone();
    for (kept, index) in more.into_iter().zip(read.len() as u64 + 1..) {
        expected.push(Kept { index: Index(index), stamp: again[index as usize - 1].stamp, ..kept });
    }
    assert_eq!(again, expected, "{what}");
    read.len()
}

fn files(disk: &SimDisk) -> Vec<(String, Vec<u8>)> {
    let names = disk.clone().list().unwrap();
    names.into_iter().map(|(name, _)| (name.clone(), disk.content(&name))).collect()
}

fn spoiled(files: &[(String, Vec<u8>)]) -> SimDisk {
    let disk = SimDisk::new(2, DiskFaults::default());
    files.iter().for_each(|(name, content)| disk.spoil(name, content));
    disk
}

// P4
#[test]
fn every_byte_that_is_not_as_it_was_is_found_or_does_not_matter() {
    let (disk, all) = written();
    let sound = files(&disk);
    let (mut whole, mut less) = (0, 0);
    for at in 0..sound.len() {
        for byte in 0..sound[at].1.len() {
            let mut files = sound.clone();
            files[at].1[byte] ^= 1 << (byte % 8);
            let what = format!("byte {byte} of {}", files[at].0);
            let served = serves_no_more_than(&spoiled(&files), &all, &what);
            *(if served == all.len() { &mut whole } else { &mut less }) += 1;
        }
    }
    assert!(
        whole > 0 && less > 1000,
        "padding behind the last record of a segment, and everything else: {whole}, {less}"
    );
}

// P4
#[test]
fn every_length_that_a_file_can_have_is_lived_with() {
    let (disk, all) = written();
    let sound = files(&disk);
    for at in 0..sound.len() {
        for len in 0..sound[at].1.len() {
            let mut files = sound.clone();
            files[at].1.truncate(len);
            serves_no_more_than(&spoiled(&files), &all, &format!("{} at {len} bytes", files[at].0));
        }
        let mut files = sound.clone();
        let (name, _) = files.remove(at);
        if at > 0 {
            serves_no_more_than(&spoiled(&files), &all, &format!("without {name}"));
        }
    }
}

#[test]
fn what_is_in_the_middle_is_damage_and_what_is_at_the_end_is_torn() {
    let (disk, _) = written();
    let sound = files(&disk);
    let (_, scan) = read_all(&disk);
    let last = scan.segments.last().unwrap();
    let condition = |name: &str, at: usize| {
        let mut files = sound.clone();
        let file = files.iter_mut().find(|(it, _)| it == name).unwrap();
        file.1[at] ^= 4;
        read_all(&spoiled(&files)).1.condition
    };
    assert!(matches!(condition(&scan.segments[0].name, 70), Condition::Damaged(_)));
    assert!(
        matches!(condition(&last.name, last.end as usize - 9), Condition::Torn(_)),
        "nothing says that it was flushed"
    );
    assert!(matches!(condition(&last.name, last.end as usize + 3), Condition::Torn(_)), "nobody wrote that");
}

#[test]
fn long_payloads_are_written_from_where_they_lie() {
    let memory = Segment::private(4096);
    memory.store_words(0, &payload(5, 1600));
    let disk = SimDisk::new(1, DiskFaults::default());
    let (mut log, _) = Log::open(Box::new(disk.clone()), SMALL, Index(0)).unwrap();
    let ranges = [0..1500, 8..71, 16..79 + 64, 0..3, 0..1];
    for (seq, range) in ranges.iter().enumerate() {
        let bytes = &payload(5, 1600)[range.clone()];
        let lying = Payload::Lying(bytes, &memory.mirror(), range.clone());
        log.append(&Entry { payload: lying, ..entry(1, seq as u64, &[]) }).unwrap();
    }
    flush(&mut log);
    let (read, scan) = read_all(&disk.crash());
    assert_eq!(scan.condition, Condition::Sound);
    let expected: Vec<_> = ranges.iter().map(|range| payload(5, 1600)[range.clone()].to_vec()).collect();
    assert_eq!(read.into_iter().map(|kept| kept.payload).collect::<Vec<_>>(), expected);
}

/// Lives of a log on a disk that crashes: what was durable is there, what is there is what was appended, in every life. Returns what
/// was broken, if something was.
fn lives(seed: u64, mutant: Option<u8>) -> Result<(), String> {
    let mut choices = Choices::new(seed);
    // A random half of the faults, each.
    let mut fault = |percent| if choices.chance(50) { percent } else { 0 };
    let faults = DiskFaults { flush_fails: fault(4), write_lost: 0, room: fault(40_000), slow: fault(60) };
    let mut disk = SimDisk::new(seed, faults);
    let mut kept: Vec<Kept> = Vec::new();
    let (mut durable, mut view) = (0, 0);
    for _ in 0..6 {
        disk.set_faults(DiskFaults { flush_fails: 0, room: 0, ..faults });
        let opened = match mutant {
            None => Log::open(Box::new(disk.clone()), SMALL, Index(durable as u64)),
            #[cfg(feature = "mutants")]
            Some(0) => Log::open_mutant(Box::new(disk.clone()), SMALL, Mutant::RetryFlush),
            #[cfg(feature = "mutants")]
            Some(1) => Log::open_mutant(Box::new(disk.clone()), SMALL, Mutant::NoWait),
            Some(_) => return Ok(()),
        };
        let (mut log, _) = opened.map_err(|error| format!("not opened: {error}"))?;
        let (read, scan) = read_all(&disk);
        if read.len() < durable {
            return Err(format!(
                "{durable} records were durable, {} are left: {:?}",
                read.len(),
                scan.condition
            ));
        }
        if read.len() > kept.len() || read[..] != kept[..read.len()] {
            return Err(format!("record {} is another", read.len()));
        }
        kept.truncate(read.len());
        durable = read.len();
        disk.set_faults(faults);
        view += 1;
        let mut seq = 0;
        for _ in 0..choices.below(80) {
            match choices.below(10) {
                0..6 => {
                    let bytes = payload(choices.any() % 1000, choices.below(150) as usize);
                    let entry = entry(view, seq, &bytes);
                    let Ok(tip) = log.append(&entry) else { break };
                    let Entry { view, seq: at, sender, .. } = entry;
                    kept.push(Kept {
                        index: tip.index,
                        view,
                        seq: at,
                        stamp: tip.stamp,
                        sender,
                        payload: bytes,
                    });
                    seq += 1;
                }
                6 if log.is_idle() && choices.chance(20) && kept.len() > 3 => {
                    let less = kept.len() - 1 - choices.below(3) as usize;
                    log.truncate_after(Index(less as u64)).map_err(|error| error.to_string())?;
                    kept.truncate(less);
                    seq = 0;
                    view += 1;
                }
                _ => {
                    if log.turn().is_err() {
                        break;
                    }
                }
            }
            durable = log.durable().0 as usize;
        }
        drop(log);
        disk = if choices.chance(70) { disk.crash() } else { disk.kill() };
    }
    Ok(())
}

/// More of them with CONSORT_LOG_SEEDS.
fn seeds(usual: u64) -> u64 {
    option_env!("CONSORT_LOG_SEEDS").and_then(|seeds| seeds.parse().ok()).unwrap_or(usual)
}

// P1, P2, P4
#[test]
fn what_was_durable_is_there_after_any_crash() {
    for seed in 0..seeds(1000) {
        if let Err(why) = lives(seed, None) {
            panic!("seed {seed}: {why}");
        }
    }
}

// P2
#[cfg(feature = "mutants")]
#[test]
fn a_flush_that_is_tried_again_is_noticed() {
    assert!(
        (0..3000).any(|seed| lives(seed, Some(0)).is_err()),
        "no seed notices that a failed flush was tried again"
    );
    assert!(
        (0..3000).any(|seed| lives(seed, Some(1)).is_err()),
        "no seed notices that a write didn't wait for the flush before"
    );
}

#[test]
fn a_flush_that_fails_ends_the_log() {
    let disk = SimDisk::new(7, DiskFaults::default());
    let (mut log, _) = Log::open(Box::new(disk.clone()), SMALL, Index(0)).unwrap();
    append(&mut log, 1, 0, b"before");
    flush(&mut log);
    disk.set_faults(DiskFaults { flush_fails: 100, ..DiskFaults::default() });
    append(&mut log, 1, 1, b"never");
    let error = loop {
        if let Err(error) = log.turn() {
            break error;
        }
    };
    assert_eq!(error.trouble, DiskTrouble::Failed);
    disk.set_faults(DiskFaults::default());
    assert_eq!(log.turn(), Err(error.clone()), "the disk would flush again; nobody asks it to");
    assert_eq!(log.append(&entry(1, 2, b"after")), Err(AppendError::Broken(error)));
    assert_eq!((log.durable(), disk.counts().flushes_failed), (Index(1), 1));
}

#[test]
fn a_full_disk_is_said_and_the_log_goes_on_when_there_is_room() {
    let disk = SimDisk::new(7, DiskFaults { room: 2500, ..DiskFaults::default() });
    let (mut log, _) = Log::open(Box::new(disk.clone()), SMALL, Index(0)).unwrap();
    let mut seq = 0;
    let error = loop {
        append(&mut log, 1, seq, &[7; 100]);
        seq += 1;
        if let Err(error) = log.turn() {
            break error;
        }
    };
    assert_eq!(error.trouble, DiskTrouble::Full);
    let durable = log.durable();
    assert!(durable.0 > 4);
    let disk = disk.crash();
    disk.set_faults(DiskFaults::default());
    let (mut log, scan) = Log::open(Box::new(disk.clone()), SMALL, durable).unwrap();
    assert!(scan.tip.index >= durable);
    (0..20).for_each(|seq| drop(append(&mut log, 2, seq, &[8; 100])));
    flush(&mut log);
    assert_eq!(read_all(&disk).1.condition, Condition::Sound);
}

#[test]
fn what_is_written_and_flushed_is_counted() {
    let (mut log, _) = Log::open(Box::new(SimDisk::new(1, DiskFaults::default())), SMALL, Index(0)).unwrap();
    append(&mut log, 1, 0, &payload(0, 20)); // with which the segment's header goes
    flush(&mut log);
    let before = log.counts();
    append(&mut log, 1, 1, &payload(1, 20));
    append(&mut log, 1, 2, &payload(2, 8));
    assert_eq!(log.counts(), before, "not before it is flushed");
    flush(&mut log);
    let bytes = (format::record_size(20) + format::record_size(8)) as u64;
    assert_eq!(log.counts(), before.and(LogCounts { bytes, flushes: 1 }));
}

#[test]
fn a_disk_that_is_behind_is_waited_for() {
    let disk = SimDisk::new(7, DiskFaults::default());
    let options = LogOptions { most_waiting: 1000, ..SMALL };
    let (mut log, _) = Log::open(Box::new(disk), options, Index(0)).unwrap();
    let mut seq = 0;
    let refused = loop {
        match log.append(&entry(1, seq, &[1; 100])) {
            Ok(_) => seq += 1,
            Err(refused) => break refused,
        }
    };
    assert_eq!((refused, seq), (AppendError::Behind(160 * 6), 6));
    flush(&mut log);
    assert!(log.append(&entry(1, seq, &[1; 100])).is_ok() && log.waiting() == 160);
}

/// Two logs that went different ways, and one that has a record of the other in its midst, as after a write that a disk lost.
fn with_a_stale_record() -> (SimDisk, Vec<Kept>) {
    let options = LogOptions { segment_bytes: 8192, ..SMALL };
    let run = |second: &[u8]| {
        let disk = SimDisk::new(1, DiskFaults::default());
        let (mut log, _) = Log::open(Box::new(disk.clone()), options, Index(0)).unwrap();
        let mut all = vec![append(&mut log, 1, 0, b"the same")];
        flush(&mut log);
        all.push(append(&mut log, 1, 1, second));
        flush(&mut log);
        for seq in 2..6 {
            all.push(append(&mut log, 1, seq, &payload(seq, 40)));
            flush(&mut log);
        }
        (disk, all, log.segments()[0].name.clone())
    };
    let (mine, all, name) = run(b"one way");
    let (other, ..) = run(b"another");
    // Records 1 and 2 are 64 bytes each; 3 to 6 are 96.
    let (mut content, stale) = (mine.content(&name), other.content(&name));
    content[192..288].copy_from_slice(&stale[192..288]);
    mine.spoil(&name, &content);
    (mine, all)
}

#[test]
fn a_record_that_did_not_follow_is_seen_though_its_sum_is_right() {
    let (disk, all) = with_a_stale_record();
    let (read, scan) = read_all(&disk);
    assert_eq!(read[..], all[..2]);
    let Condition::Damaged(spot) = scan.condition else { panic!("{scan:?}") };
    assert!(spot.why.contains("the chain is broken") && spot.index == Index(3), "{spot}");
}

#[cfg(feature = "mutants")]
#[test]
fn a_log_without_its_chain_or_its_sums_serves_what_was_never_written() {
    let (disk, _) = with_a_stale_record();
    let options = LogOptions { segment_bytes: 8192, ..SMALL };
    assert!(Log::open(Box::new(disk.clone()), options, Index(0)).is_err());
    let (_, scan) = Log::open_mutant(Box::new(disk), options, Mutant::NoChain).unwrap();
    assert_eq!((scan.condition, scan.tip.index), (Condition::Sound, Index(6)), "the test above would fail");

    let (disk, _) = written();
    let (_, scan) = read_all(&disk);
    let last = scan.segments.last().unwrap();
    let mut content = disk.content(&last.name);
    content[last.end as usize - 12] ^= 1;
    disk.spoil(&last.name, &content);
    assert_eq!(read_all(&disk).1.tip.index, Index(29));
    let (_, scan) = Log::open_mutant(Box::new(disk), SMALL, Mutant::NoSum).unwrap();
    assert_eq!(scan.tip.index, Index(30), "a record with a flipped bit is served");
}

#[test]
fn a_log_is_read_from_a_place_or_a_time_and_followed() {
    let (disk, all) = written();
    for (at, kept) in all.iter().enumerate() {
        for from in [From::Index(kept.index), From::Time(kept.stamp)] {
            let mut reader = Reader::open(Box::new(disk.clone()), from).unwrap();
            let mut read = Vec::new();
            while let Some((header, payload)) = reader.read().unwrap() {
                read.push(Kept::of(&header, payload));
            }
            assert_eq!((&read[..], reader.stopped()), (&all[at..], None));
        }
    }
    let mut reader = Reader::open(Box::new(disk.clone()), From::Index(Index(31))).unwrap();
    assert!(reader.read().unwrap().is_none());
    let (mut log, _) = Log::open(Box::new(disk), SMALL, Index(30)).unwrap();
    for seq in 0..20 {
        let kept = append(&mut log, 2, seq, &payload(seq, 60));
        flush(&mut log);
        let (header, payload) = reader.read().unwrap().unwrap();
        assert_eq!(Kept::of(&header, payload), kept);
        assert!(reader.read().unwrap().is_none());
    }
    // What was there before it asked it gets, whatever it had read ahead by then.
    for seq in 20..40 {
        let kept = [seq, seq + 100].map(|seq| append(&mut log, 2, seq, &payload(seq, 60)));
        flush(&mut log);
        assert!(reader.read().unwrap().is_some_and(|(header, _)| header.index == kept[0].index));
        let late = append(&mut log, 2, seq + 200, &payload(seq, 60));
        flush(&mut log);
        for kept in [&kept[1], &late] {
            assert!(reader.read().unwrap().is_some_and(|(header, _)| header.index == kept.index));
        }
        assert!(reader.read().unwrap().is_none());
    }
}

// P3: another member's log is copied, from wherever one is, in pieces of whatever length.
#[test]
fn a_log_is_copied_from_another() {
    let (disk, all) = written();
    for have in [0, 1, 7, 30] {
        let other = SimDisk::new(3, DiskFaults::default());
        let (mut log, _) = Log::open(Box::new(other.clone()), SMALL, Index(0)).unwrap();
        let (mut reader, mut bytes) =
            (Reader::open(Box::new(disk.clone()), From::Index(Index(1))).unwrap(), Vec::new());
        reader.copy(&mut bytes, usize::MAX).unwrap();
        let first = Index(have + 1);
        let mut copied = 0;
        let mut count = |header: &RecordHeader| {
            copied = header.index.0;
            true
        };
        // What it has.
        let mut at = 0;
        while log.tip().index.0 < have {
            let len = bytes.len().min(at + 160);
            at += log.append_copied(&bytes[at..len], &mut |_| false).unwrap();
        }
        flush(&mut log);
        log.truncate_after(Index(have)).unwrap();
        let mut reader = Reader::open(Box::new(disk.clone()), From::Index(first)).unwrap();
        let (mut piece, mut rest) = (Vec::new(), Vec::new());
        loop {
            piece.clear();
            reader.copy(&mut piece, 100).unwrap();
            if piece.is_empty() {
                break;
            }
            for part in piece.chunks(33) {
                rest.extend_from_slice(part);
                let done = log.append_copied(&rest, &mut count).unwrap();
                rest.drain(..done);
                log.turn().unwrap();
            }
        }
        flush(&mut log);
        assert_eq!((rest.len(), copied), (0, if have == 30 { 0 } else { 30 }));
        let (read, scan) = read_all(&other.crash());
        assert_eq!((&read, scan.condition), (&all, Condition::Sound));
        assert_eq!(scan.tip, read_all(&disk).1.tip, "the same chain");
        let again = log.append_copied(&bytes, &mut |_| true);
        assert_eq!(again, Err(CopyError::Other(Index(30))));
        let end = bytes.len() - 1;
        log.truncate_after(Index(29)).unwrap();
        bytes[end - 20] ^= 1;
        let last = bytes.len() - (log_size(&all[29]));
        assert_eq!(log.append_copied(&bytes[last..], &mut |_| true), Err(CopyError::Unsound));
    }
}

fn log_size(kept: &Kept) -> usize {
    format::record_size(kept.payload.len())
}

#[test]
fn snapshots_bound_the_log() {
    let (disk, all) = written();
    let (mut log, scan) = Log::open(Box::new(disk.clone()), SMALL, Index(30)).unwrap();
    let state: Vec<u8> = payload(3, 5000);
    let mut parts = state.chunks(999).map(<[u8]>::to_vec).collect::<std::collections::VecDeque<_>>();
    let mut next = |part: &mut Vec<u8>| {
        part.extend(parts.pop_front().unwrap_or_default());
        Ok(())
    };
    snapshot::write(log.disk(), &scan.tip, b"the view", &mut next).unwrap();
    let before = log.segments().len();
    log.on_snapshot(scan.tip, 0);
    append(&mut log, 2, 0, b"after");
    flush(&mut log);
    assert!(log.segments().len() < before && log.first() > Index(1));
    let disk = disk.crash();
    let gone = Reader::open(Box::new(disk.clone()), From::Index(Index(1))).err();
    assert_eq!(gone, Some(ReadError::Gone(Index(1), log.first())));
    let mut read = Vec::new();
    let tip = snapshot::read(&disk, Index(30), &mut |part| read.extend_from_slice(part)).unwrap();
    assert_eq!((read, tip), (state, scan.tip));
    let (log, scan) = Log::open(Box::new(disk.clone()), SMALL, Index(31)).unwrap();
    assert_eq!((scan.tip.index, log.first().0 > 1), (Index(31), true));
    let (left, _) = read_all(&disk);
    assert_eq!(left[0], all[log.first().0 as usize - 1]);

    // Every bit of it counts.
    let name = snapshot::name(Index(30));
    let content = disk.content(&name);
    for at in 0..content.len() {
        let mut other = content.clone();
        other[at] ^= 1 << (at % 8);
        disk.spoil(&name, &other);
        if (52..60).contains(&at) {
            assert!(snapshot::read(&disk, Index(30), &mut |_| {}).is_err(), "byte {at}: in the header's sum");
        }
        assert_eq!(snapshot::newest(&mut disk.clone()).unwrap(), (None, 1), "byte {at}");
        disk.spoil(&name, &content[..at]);
        assert_eq!(snapshot::newest(&mut disk.clone()).unwrap(), (None, 1), "{at} bytes");
    }
}

#[test]
fn a_log_is_cut_where_it_is_told() {
    for keep in 0..=30 {
        let (disk, all) = written();
        let (mut log, _) = Log::open(Box::new(disk.clone()), SMALL, Index(0)).unwrap();
        log.truncate_after(Index(keep)).unwrap();
        let (read, scan) = read_all(&disk.crash());
        assert_eq!((&read[..], scan.condition), (&all[..keep as usize], Condition::Sound), "{keep}");
        assert_eq!(log.tip(), &Tip { ..scan.tip });
    }
}

#[test]
fn a_reader_that_was_there_before_the_first_record_sees_it() {
    let disk = SimDisk::new(1, DiskFaults::default());
    let (mut log, _) = Log::open(Box::new(disk.clone()), SMALL, Index(0)).unwrap();
    let mut reader = Reader::open(disk.beside(), From::Index(Index(1))).unwrap();
    assert!(reader.again(Index(1)).unwrap().is_none());
    let (kind, payload) = (LogKind::Message, Payload::Copied(b"first"));
    let entry = Entry { kind, view: ViewId(1), seq: Seq(0), sent: 1, sender: NodeId(1), payload };
    log.append(&entry).unwrap();
    while log.turn().unwrap() || !log.is_idle() {}
    assert_eq!(reader.again(Index(1)).unwrap().map(|(_, payload)| payload.to_vec()), Some(b"first".to_vec()));
}

// What it has read ahead was blank then, and the next segment has begun since.
#[test]
fn a_reader_that_is_overtaken_goes_on() {
    let disk = SimDisk::new(1, DiskFaults::default());
    let (mut log, _) = Log::open(Box::new(disk.clone()), SMALL, Index(0)).unwrap();
    let mut append = |seqs: std::ops::Range<u64>| {
        for seq in seqs {
            let (kind, payload) = (LogKind::Message, Payload::Copied(b"some twenty bytes or so"));
            let entry = Entry { kind, view: ViewId(1), seq: Seq(seq), sent: 1, sender: NodeId(1), payload };
            log.append(&entry).unwrap();
        }
        while log.turn().unwrap() || !log.is_idle() {}
        log.segments().len()
    };
    append(0..1);
    let mut reader = Reader::open(disk.beside(), From::Index(Index(1))).unwrap();
    let mut read = 0;
    while reader.read().unwrap().is_some() {
        read += 1;
    }
    append(1..2);
    assert!(reader.read().unwrap().is_some());
    assert!(append(2..200) > 2);
    while reader.read().unwrap().is_some() {
        read += 1;
    }
    assert_eq!(read + 1, 200);
}

#[test]
fn a_meta_reads_as_written_or_not_at_all() {
    let meta = Meta {
        cluster: "north".to_owned(),
        node: NodeId(7),
        view: ViewId(12),
        behind: ViewId(9),
        members: vec![1, 2, 3],
        next: vec![4, 5],
        damaged: [(0, ViewId(11)), (3, ViewId(1 << 40))].into(),
        mark: Mark::Left,
    };
    let mut disk = SimDisk::new(1, DiskFaults::default());
    assert_eq!(Meta::read(&mut disk).unwrap(), None);
    meta.write(&mut disk).unwrap();
    assert_eq!(Meta::read(&mut disk.crash()).unwrap(), Some(meta.clone()));
    let bytes = meta.encode();
    for at in 0..bytes.len() {
        let mut other = bytes.clone();
        other[at] ^= 0x10;
        assert_eq!(Meta::parse(&other), None, "byte {at}");
        assert_eq!(Meta::parse(&bytes[..at]), None, "{at} bytes");
    }
    disk.spoil(meta::NAME, &bytes[1..]);
    assert!(Meta::read(&mut disk).unwrap_err().to_string().contains("the file meta is damaged"));
}

/// A snapshot behind record 30 of [`written`], as the bytes of its file.
fn snapshot_of_another() -> (Tip, Vec<u8>, Vec<Kept>) {
    let (disk, all) = written();
    let (mut log, scan) = Log::open(Box::new(disk.clone()), SMALL, Index(0)).unwrap();
    let mut state = Some(payload(3, 3000));
    let mut next = |part: &mut Vec<u8>| {
        part.extend(state.take().unwrap_or_default());
        Ok(())
    };
    snapshot::write(log.disk(), &scan.tip, b"the view", &mut next).unwrap();
    (scan.tip, disk.content(&snapshot::name(scan.tip.index)), all)
}

/// Takes a snapshot's file in parts; returns whether it is there.
fn take(log: &mut Log, index: Index, file: &[u8]) -> Result<bool, DiskError> {
    for (at, part) in (0..).step_by(700).zip(file.chunks(700)) {
        log.take_snapshot((index, file.len() as u64), at, part)?;
    }
    while log.turn()? || log.arrival().is_some() {}
    Ok(log.snapshot().is_some())
}

// P4
#[test]
fn a_log_takes_another_s_snapshot() {
    let (tip, file, _) = snapshot_of_another();
    let disk = SimDisk::new(2, DiskFaults { slow: 30, ..DiskFaults::default() });
    let (mut log, _) = Log::open(Box::new(disk.clone()), SMALL, Index(0)).unwrap();
    for seq in 0..12 {
        append(&mut log, 1, seq, b"the beginning of the same, or of another");
    }
    flush(&mut log);
    // It is cut short, and begun anew.
    log.take_snapshot((Index(29), 9000), 0, &file[..64]).unwrap();
    log.take_snapshot((tip.index, file.len() as u64), 0, &file[..100]).unwrap();
    assert!(take(&mut log, tip.index, &file).unwrap());
    assert_eq!((*log.tip(), log.first(), log.durable()), (tip, Index(31), Index(30)));
    let mut reader = SnapshotReader::open(disk.beside(), tip.index).unwrap();
    let (mut state, mut part) = (Vec::new(), Vec::new());
    loop {
        reader.read(&mut part).unwrap();
        if part.is_empty() {
            break;
        }
        state.extend_from_slice(&part);
    }
    assert_eq!((reader.view(), reader.len(), state), (&b"the view"[..], 3000, payload(3, 3000)));
    let next = append(&mut log, 1, 30, b"what follows");
    flush(&mut log);
    let mut disk = disk.crash();
    assert!(disk.list().unwrap().iter().all(|(name, _)| !name.ends_with(disk::UNFINISHED)));
    let (log, scan) = Log::open(Box::new(disk.clone()), SMALL, Index(31)).unwrap();
    assert_eq!(
        (scan.condition, log.first(), log.snapshot()),
        (Condition::Sound, Index(31), Some((tip, file.len() as u64)))
    );
    assert_eq!(read_all(&disk).0, [next]);
}

// P4: at every moment there is the old log or the snapshot.
#[test]
fn a_log_that_crashes_while_it_takes_a_snapshot_is_the_old_one_or_that() {
    let (tip, file, _) = snapshot_of_another();
    let mut ends = std::collections::BTreeSet::new();
    for turns in 0..20 {
        let disk = SimDisk::new(turns, DiskFaults::default());
        let (mut log, _) = Log::open(Box::new(disk.clone()), SMALL, Index(0)).unwrap();
        for seq in 0..12 {
            append(&mut log, 1, seq, &payload(seq, 200));
        }
        flush(&mut log);
        for (at, part) in (0..).step_by(700).zip(file.chunks(700)) {
            log.take_snapshot((tip.index, file.len() as u64), at, part).unwrap();
        }
        // Some of the jobs are done; then, if it has its name, what was before is deleted from the back, and a crash may come between.
        for _ in 0..turns.min(8) {
            let _ = disk.clone().poll();
        }
        let disk = disk.crash();
        let gone: Vec<_> = (turns > 8).then(|| disk.clone().list().unwrap()).into_iter().flatten().collect();
        let segments = gone.iter().filter(|(name, _)| segment_number(name).is_some()).rev();
        for (name, _) in segments.take((turns as usize).saturating_sub(8)) {
            disk.clone().delete(name).unwrap();
        }
        let (mut log, scan) = Log::open(Box::new(disk.clone()), SMALL, Index(0)).unwrap();
        assert_eq!(scan.condition, Condition::Sound, "{turns}");
        ends.insert(log.tip().index);
        let next = append(&mut log, 1, 40, b"what follows");
        flush(&mut log);
        assert_eq!(read_all(&disk.crash()).0.last(), Some(&next), "{turns}");
    }
    assert!(ends.contains(&Index(12)) && ends.contains(&tip.index), "{ends:?}");
}

// P4, S1
#[test]
fn another_s_snapshot_that_is_not_as_it_was_written_is_refused() {
    let (tip, file, _) = snapshot_of_another();
    for at in 0..file.len() {
        let mut other = file.clone();
        other[at] ^= 1 << (at % 8);
        let disk = SimDisk::new(2, DiskFaults::default());
        let (mut log, _) = Log::open(Box::new(disk.clone()), SMALL, Index(0)).unwrap();
        let taken = take(&mut log, tip.index, &other);
        // The zeros that are kept for later are in the header's sum.
        assert!(taken.is_err(), "byte {at}");
        assert_eq!(snapshot::list(&mut disk.clone()).unwrap(), [], "byte {at}");
    }
}

// P4: what is before a log's first record has to be in a snapshot.
#[test]
fn a_log_without_its_beginning_is_refused() {
    let (mut disk, _) = written();
    disk.delete(&segment_name(1)).unwrap();
    let opened = Log::open(Box::new(disk.clone()), SMALL, Index(0)).err().unwrap();
    assert!(matches!(&opened, OpenError::Damaged { sound: 0, spot } if spot.index == Index(1)), "{opened}");
    assert!(read_all(&disk).0.is_empty());
    let _ = repair(&mut disk, Index(0)).unwrap();
    let (log, scan) = Log::open(Box::new(disk), SMALL, Index(0)).unwrap();
    assert_eq!((log.tip().index, scan.condition), (Index(0), Condition::Sound));
}
