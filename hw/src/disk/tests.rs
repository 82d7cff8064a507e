//! The log on a real directory, and what a real directory can refuse.

#![allow(clippy::unwrap_used, reason = "a test that can't go on should say where")]

use std::os::unix::fs::MetadataExt;
use std::sync::atomic::AtomicBool;

use consort_dataplane::log::disk::{Batch, Piece};
use consort_dataplane::log::{
    Condition, DiskTrouble, Entry, Index, Log, LogKind, LogOptions, OpenError, Payload, Tip, scan_each,
    snapshot,
};
use consort_dataplane::memory::Segment;
use consort_dataplane::names::{NodeId, Seq, ViewId};

use super::*;

const SMALL: LogOptions =
    LogOptions { shard: 0, segment_bytes: 1 << 16, lying_from: 512, most_waiting: 1 << 20 };

/// A directory that is gone at the end.
struct Temporary(PathBuf);

impl Temporary {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("consort-disk-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        Self(path)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn entry(seq: u64, payload: Payload<'_>) -> Entry<'_> {
    Entry { kind: LogKind::Message, view: ViewId(1), seq: Seq(seq), sent: seq, sender: NodeId(1), payload }
}

fn flush(log: &mut Log) {
    while log.turn().unwrap() || !log.is_idle() {
        thread::yield_now();
    }
}

#[test]
fn a_log_is_there_again_with_every_byte() {
    let place = Temporary::new("again");
    let memory = Segment::private(1 << 16);
    for word in 0..(1 << 13) {
        memory.store(word * 8, (word as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    }
    let mirror = memory.mirror();
    let mut bytes = Vec::new();
    mirror.append_words(0..1 << 16, &mut bytes);
    let range = |seq: usize| seq * 8..seq * 8 + seq * 97 % 6000;
    let mut tip = Tip::default();
    {
        let (mut log, _) = Log::open(Box::new(Directory::open(&place.0).unwrap()), SMALL, Index(0)).unwrap();
        assert!(Directory::is_in_use(&place.0));
        let second = Directory::open(&place.0).map(drop);
        assert_eq!(second.unwrap_err().trouble, DiskTrouble::InUse);
        for seq in 0..500 {
            let lying = Payload::Lying(&bytes[range(seq)], &mirror, range(seq));
            while log.append(&entry(seq as u64, lying.clone())).is_err() {
                flush(&mut log); // the disk was behind
            }
            if seq % 7 == 0 {
                log.turn().unwrap();
            }
            if seq == 99 {
                tip = *log.tip();
            }
        }
        flush(&mut log);
        assert_eq!(log.durable(), Index(500));
        assert!(log.segments().len() > 10, "many segments: {}", log.segments().len());
        let bytes = snapshot::write(log.disk(), &tip, b"a view", &mut |_| Ok(())).unwrap();
        log.on_snapshot(tip, bytes);
        log.append(&entry(500, Payload::Copied(b"the last"))).unwrap();
        flush(&mut log);
    }
    assert!(!Directory::is_in_use(&place.0));
    let mut read = 0;
    let scan = scan_each(&mut Directory::look(&place.0).unwrap(), &mut |header, payload| {
        let seq = header.seq.0 as usize;
        assert_eq!(payload, if seq == 500 { b"the last" } else { &bytes[range(seq)] });
        read += 1;
    });
    let scan = scan.unwrap();
    assert_eq!((scan.condition, scan.tip.index), (Condition::Sound, Index(501)));
    assert!((402..501).contains(&read), "old segments are gone: {read}");
    let (mut log, _) = Log::open(Box::new(Directory::open(&place.0).unwrap()), SMALL, Index(501)).unwrap();
    log.truncate_after(Index(450)).unwrap();
    log.append(&entry(450, Payload::Copied(b"another"))).unwrap();
    flush(&mut log);
    drop(log);
    let (log, _) = Log::open(Box::new(Directory::open(&place.0).unwrap()), SMALL, Index(451)).unwrap();
    assert_eq!(log.tip().index, Index(451));
}

#[test]
fn who_looks_whether_a_directory_is_in_use_is_in_nobodys_way() {
    let place = Temporary::new("looked");
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    Directory::is_in_use(&place.0);
                    thread::yield_now(); // else who waits for a processor has the lock as often as not
                }
            });
        }
        let opened = (0..3000).find_map(|_| Directory::open(&place.0).err());
        is_over.store(true, Ordering::Relaxed);
        assert!(opened.is_none(), "{opened:?}");
    });
}

// A file that is made anew under the same name is another file: what is written must be in the one that is there.
#[test]
fn a_log_that_begins_anew_is_there_again() {
    let place = Temporary::new("anew");
    let (mut log, _) = Log::open(Box::new(Directory::open(&place.0).unwrap()), SMALL, Index(0)).unwrap();
    for seq in 0..2000 {
        while log.append(&entry(seq, Payload::Copied(&[1; 100]))).is_err() {
            flush(&mut log);
        }
    }
    flush(&mut log);
    log.truncate_after(Index(10)).unwrap();
    for seq in 10..1500 {
        while log.append(&entry(seq, Payload::Copied(&[2; 100]))).is_err() {
            flush(&mut log);
        }
    }
    flush(&mut log);
    let there = |index| {
        let scan = scan_each(&mut Directory::look(&place.0).unwrap(), &mut |_, _| {}).unwrap();
        assert_eq!((scan.condition, scan.tip.index), (Condition::Sound, Index(index)));
    };
    there(1500);
    // Another member's snapshot takes its place.
    let other = Temporary::new("other");
    let tip = Tip { index: Index(5000), ..*log.tip() };
    let mut state = vec![7; 300_000];
    let mut next = |part: &mut Vec<u8>| {
        part.append(&mut state);
        Ok(())
    };
    snapshot::write(&mut Directory::open(&other.0).unwrap(), &tip, b"a view", &mut next).unwrap();
    let file = fs::read(other.0.join(snapshot::name(tip.index))).unwrap();
    for (at, part) in (0..).step_by(1 << 16).zip(file.chunks(1 << 16)) {
        log.take_snapshot((tip.index, file.len() as u64), at, part).unwrap();
    }
    while log.turn().unwrap() || log.arrival().is_some() {}
    assert_eq!(fs::read(place.0.join(snapshot::name(tip.index))).unwrap(), file);
    log.append(&entry(5000, Payload::Copied(b"anew"))).unwrap();
    flush(&mut log);
    there(5001);
    drop(log);
    let (log, _) = Log::open(Box::new(Directory::open(&place.0).unwrap()), SMALL, Index(5001)).unwrap();
    assert_eq!((log.first(), log.snapshot()), (Index(5001), Some((tip, file.len() as u64))));
}

// A snapshot that its application doesn't give to its end, say.
#[test]
fn a_file_that_is_not_finished_leaves_nothing() {
    let place = Temporary::new("unfinished");
    let mut here = Directory::open(&place.0).unwrap();
    let mut parts = 3;
    let failed = here.replace_with("state", &mut |part| {
        parts -= 1;
        part.extend_from_slice(&[1; 5000]);
        if parts == 0 { Err(DiskError::new(DiskTrouble::Failed, "there is no more")) } else { Ok(()) }
    });
    assert_eq!(failed.unwrap_err().what, "there is no more");
    assert_eq!(here.list().unwrap().into_iter().map(|(name, _)| name).collect::<Vec<_>>(), [LOCK]);
}

/// How often the device under a file was flushed, where the kernel counts that: it doesn't for a part of a device.
fn device_flushes(path: &Path) -> Option<u64> {
    let device = fs::metadata(path).ok()?.dev();
    let sysfs = format!("/sys/dev/block/{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    let told = |name: &str| fs::read_to_string(format!("{sysfs}/{name}")).ok();
    let has_cache = told("queue/write_cache")?.trim() == "write back" && told("queue/fua")?.trim() == "0";
    has_cache.then(|| told("stat")?.split_whitespace().nth(15)?.parse().ok()).flatten()
}

// P2: a batch that is done has left the device's cache, too.
#[test]
fn every_batch_is_flushed_however_it_is_written() {
    const BATCHES: usize = 20;
    let place = Temporary::new("flushed");
    let mut here = Directory::open(&place.0).unwrap();
    if device_flushes(&place.0).is_none() {
        println!("not run: the kernel doesn't count the flushes of this device");
        return;
    }
    let most = ahead::SMALL as usize;
    for (number, (len, ring)) in
        [100, most, most + 1].into_iter().flat_map(|len| [(len, true), (len, false)]).enumerate()
    {
        let name = format!("{number}");
        here.create(&name, (BATCHES * len) as u64 + 4096).unwrap();
        let mut writer = Writer::with_ring(ring);
        let before = device_flushes(&place.0).unwrap();
        for at in 0..BATCHES {
            let pieces = vec![Piece::Staged(0..len)];
            let mut batch = Batch { name: name.clone(), at: (at * len) as u64, staged: vec![7; len], pieces };
            writer.write(&here.named(&name), &mut batch).unwrap();
        }
        let flushes = device_flushes(&place.0).unwrap() - before;
        assert!(flushes >= BATCHES as u64, "{flushes} flushes for {BATCHES} batches of {len}, ring: {ring}");
        let content = fs::read(here.named(&name)).unwrap();
        assert!(content[..BATCHES * len].iter().all(|byte| *byte == 7));
    }
}

#[test]
fn a_plain_writer_writes_the_same() {
    let place = Temporary::new("plain");
    let mut here = Directory::open(&place.0).unwrap();
    let mut written = Vec::new();
    // Past the kernel's cache where that can be, and through it: the block in which the batch ends isn't whole in the shorter files.
    for (name, size, ring) in
        [("one", 8192, true), ("two", 8192, false), ("three", 4000, true), ("four", 4000, false)]
    {
        here.create(name, size).unwrap();
        let memory = Segment::private(4096);
        memory.store_words(0, &[7; 512]);
        let pieces = vec![Piece::Staged(0..5), Piece::Lying(memory.mirror(), 3..400), Piece::Staged(5..9)];
        let mut batch = Batch { name: name.to_owned(), at: 100, staged: b"abcdefghi".to_vec(), pieces };
        Writer::with_ring(ring).write(&here.named(name), &mut batch).unwrap();
        let content = fs::read(here.named(name)).unwrap();
        assert_eq!(content.len() as u64, size);
        written.push(content[..4000].to_vec());
    }
    assert!(written.iter().all(|content| *content == written[0]));
    assert_eq!((&written[0][100..106], &written[0][500..508]), (&b"abcde\x07"[..], &b"\x07\x07fghi\0\0"[..]));
}

// P2: what was written ahead is flushed as well, and a flush that failed is not passed over.
#[test]
fn a_failed_flush_of_what_was_written_ahead_fails_the_next_batch() {
    let place = Temporary::new("ahead");
    let mut here = Directory::open(&place.0).unwrap();
    here.create("file", 8192).unwrap();
    let batch = |name: &str| Batch {
        name: name.to_owned(),
        at: 0,
        staged: vec![1; 10],
        pieces: vec![Piece::Staged(0..10)],
    };
    // A device that takes all that is written and can't be flushed.
    let mut files = Files::new(PathBuf::from("/dev"));
    files.ahead.on_written(&batch("null"));
    assert_eq!(files.ahead.when(), When::Now);
    files.write_ahead();
    files.path = place.0.clone();
    let failed = files.carry_out(&mut Writer::with_ring(false), &mut Job::Write(batch("file")));
    assert_eq!(failed.unwrap_err().trouble, DiskTrouble::Failed);
    assert_eq!(fs::read(place.0.join("file")).unwrap()[..10], [0; 10]);
}

#[test]
fn a_log_of_little_batches_has_its_blocks_written_before() {
    let place = Temporary::new("blocks");
    let mut here = Directory::open(&place.0).unwrap();
    here.create("file", 4 << 20).unwrap();
    let file = File::open(place.0.join("file")).unwrap();
    // Where room that is reserved is no hole, nothing can be seen.
    let hole = || rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(0)).unwrap();
    if hole() != 0 {
        return;
    }
    let staged = b"something".to_vec();
    let pieces = vec![Piece::Staged(0..staged.len())];
    here.submit(Job::Write(Batch { name: "file".into(), at: 0, staged, pieces }));
    let done = loop {
        match here.poll() {
            Some(done) => break done,
            None => thread::yield_now(),
        }
    };
    done.result.unwrap();
    drop(here); // its thread ends only when it waits for jobs
    assert_eq!(hole(), 1 << 20);
    let content = fs::read(place.0.join("file")).unwrap();
    assert_eq!((&content[..9], content.len()), (&b"something"[..], 4 << 20));
    assert!(content[9..].iter().all(|byte| *byte == 0));
}

/// What batches of all lengths make of a file of `size` bytes, and what they should.
fn batches_in(place: &Path, size: usize, lengths: &[usize], cut_before: usize) -> (Vec<u8>, Vec<u8>) {
    let mut here = Directory::open(place).unwrap();
    here.create("file", size as u64).unwrap();
    let memory = Segment::private(1 << 16);
    for word in 0..(1 << 13) {
        memory.store(word * 8, (word as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 0x0101_0101_0101_0101);
    }
    let mut lent = Vec::new();
    memory.mirror().append_words(0..1 << 16, &mut lent);
    let (mut writer, mut at, mut expected) = (Writer::new(), 0, vec![0; size]);
    for (number, len) in lengths.iter().enumerate() {
        if number == cut_before {
            at -= 10_000;
            here.cut("file", at as u64, size as u64).unwrap();
            expected[at..].fill(0);
        }
        let staged: Vec<u8> = (0..len / 2).map(|byte| (byte + number) as u8 | 1).collect();
        let from = number * 8;
        let to = (from + len - staged.len()).min(lent.len());
        let pieces = vec![Piece::Staged(0..staged.len()), Piece::Lying(memory.mirror(), from..to)];
        let content = [&staged[..], &lent[from..to]].concat();
        expected[at..at + content.len()].copy_from_slice(&content);
        let mut batch = Batch { name: "file".to_owned(), at: at as u64, staged, pieces };
        writer.write(&here.named("file"), &mut batch).unwrap();
        at += content.len();
    }
    (fs::read(place.join("file")).unwrap(), expected)
}

#[test]
fn batches_of_all_lengths_are_written_as_whole_blocks() {
    let place = Temporary::new("direct");
    let lengths =
        [200, 3896, 1, 4095, 4096, 8191, 60_000, 7, 12_288, 300, 20_000_000, 5000, 4096, 100, 8000, 9];
    let check = |size, lengths: &[usize], cut_before| {
        let (found, expected) = batches_in(&place.0, size, lengths, cut_before);
        assert_eq!(found.len(), size, "it is no longer than it was made");
        let other = (0..size).find(|at| found[*at] != expected[*at]);
        assert!(other.is_none(), "other than written at byte {other:?}");
        fs::remove_dir_all(&place.0).unwrap();
    };
    check(12 << 20, &lengths, 13);
    // In the last block, which isn't whole, the kernel's cache has to do.
    check(9000, &[4000, 4100, 800, 90], 9);
}

#[test]
fn a_directory_that_is_not_there_or_not_ours_is_named() {
    let place = Temporary::new("named");
    let error = Directory::look(&place.0).map(drop).unwrap_err();
    assert_eq!(error.trouble, DiskTrouble::Missing);
    assert!(error.to_string().contains("check the path"), "{error}");
    fs::write(&place.0, b"a file").unwrap();
    assert!(Directory::open(&place.0).is_err());
    fs::remove_file(&place.0).unwrap();
}

#[test]
fn a_write_that_fails_ends_the_log() {
    let place = Temporary::new("fails");
    let (mut log, _) = Log::open(Box::new(Directory::open(&place.0).unwrap()), SMALL, Index(0)).unwrap();
    // The segment goes away before it is opened for writing: any failure of the system will do.
    let name = log.segments()[0].name.clone();
    fs::remove_file(place.0.join(name)).unwrap();
    log.append(&entry(0, Payload::Copied(b"lost"))).unwrap();
    let error = loop {
        match log.turn() {
            Ok(_) => thread::yield_now(),
            Err(error) => break error,
        }
    };
    assert_eq!((error.trouble, log.durable()), (DiskTrouble::Missing, Index(0)));
}

#[test]
fn what_was_not_finished_is_cleared_away() {
    let place = Temporary::new("unfinished");
    let mut here = Directory::open(&place.0).unwrap();
    here.replace("meta", b"old").unwrap();
    fs::write(place.0.join("meta.tmp"), b"half").unwrap();
    drop(here);
    let mut here = Directory::open(&place.0).unwrap();
    let mut names: Vec<_> = here.list().unwrap().into_iter().map(|(name, _)| name).collect();
    names.sort();
    assert_eq!(names, ["lock", "meta"]);
    here.replace("meta", b"new").unwrap();
    let mut content = [0; 8];
    assert_eq!((here.read("meta", 1, &mut content), &content[..2]), (Ok(2), &b"ew"[..]));
    let opened = Log::open(Box::new(here), SMALL, Index(9));
    assert!(matches!(opened, Err(OpenError::Damaged { .. })), "nine records were flushed, none is there");
}
