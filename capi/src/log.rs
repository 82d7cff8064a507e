//! The logs of durable groups, read from some place on: of a node that runs, in whatever process, or of one that doesn't.
//!
//! # What the end means
//! A reader stops where there is no record, or none that is whole. While a node writes there that is the end, or a write under way. Otherwise
//! nobody will write on, and it may be damage: then the whole log is judged, once for a place, and what had been flushed and isn't as it was is an
//! error. A torn tail is none: nobody was told that it is durable.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use consort::View;
use consort::log::{
    Condition, Directory, DiskError, DiskTrouble, From, Index, LogKind, ReadError, Reader, RecordHeader,
    Spot, Stamp, scan_each,
};

use crate::border::{Handle, Out, Text, export};
use crate::error::{Error, Status, TIMED_OUT};
use crate::handles::{Kind, Registry};
use crate::layout::{FROM_INDEX, FROM_STAMP, MESSAGE, Record, VIEW};
use crate::view::OwnedView;

static LOGS: Registry<Mutex<Reading>> = Registry::new(Kind::Log);

/// A log that is read.
struct Reading {
    reader: Reader,
    /// Of whoever writes there: the node's, and its shard's.
    directories: [PathBuf; 2],
    /// What the program has of the last record.
    payload: Vec<u8>,
    view: Option<OwnedView>,
    /// An end was reached.
    has_ended: bool,
    /// Behind this record nothing was damaged, when nobody wrote.
    judged: Option<Index>,
}

impl Reading {
    fn open(data: PathBuf, shard: u32, from: From) -> Result<Self, Error> {
        let path = data.join(format!("shard-{shard}"));
        let disk = Directory::look(&path).map_err(|error| match error.trouble {
            DiskTrouble::Missing => Error::new(
                Status::Machine,
                format_args!(
                    "there is no log of shard {shard} in {}: pass the directory that is `data` in a node's options, and the number that \
                     views and events have for a durable shard",
                    data.display()
                ),
            ),
            _ => error.into(),
        })?;
        let reader = Reader::open(Box::new(disk), from)?;
        let directories = [data, path];
        Ok(Self { reader, directories, payload: Vec::new(), view: None, has_ended: false, judged: None })
    }

    fn next(&mut self) -> Result<Record, Error> {
        self.view = None;
        if let Some(header) = self.step()? {
            return self.lend(&header);
        }
        let Some(spot) = self.damage()? else { return Err(TIMED_OUT) };
        match self.step()? {
            // Somebody has begun to write there since.
            Some(header) => self.lend(&header),
            None => Err(ReadError::Damaged(spot).into()),
        }
    }

    /// Reads a record, if there is one.
    fn step(&mut self) -> Result<Option<RecordHeader>, Error> {
        match self.reader.read() {
            Ok(None) => Ok(None),
            Ok(Some((header, payload))) => {
                payload.clone_into(&mut self.payload);
                Ok(Some(header))
            }
            Err(ReadError::Disk(error)) if error.trouble == DiskTrouble::Missing => Err(Error::new(
                Status::Refused,
                format_args!(
                    "record {} is not here any more: its file has gone, as it does when a snapshot has what was in it; open the log anew, \
                     from index 0 on for all that there is",
                    self.reader.tip().index.next()
                ),
            )),
            Err(error) => Err(error.into()),
        }
    }

    fn lend(&mut self, header: &RecordHeader) -> Result<Record, Error> {
        let record = Record {
            kind: MESSAGE,
            node: header.sender.0,
            index: header.index.0,
            view: header.view.0,
            seq: header.seq.0,
            stamp: header.stamp.0,
            ..Record::NONE
        };
        match header.kind {
            LogKind::Message => Ok(Record { data: self.payload.as_ptr(), len: self.payload.len(), ..record }),
            LogKind::View => {
                let view = View::of_record(&self.payload).ok_or_else(|| {
                    let what = format_args!(
                        "record {} of the log is no view that can be read: another release wrote it; read it with the libconsort \
                         of that one",
                        header.index
                    );
                    Error::new(Status::Machine, what)
                })?;
                let members = self.view.insert(OwnedView::new(&view)).pointer();
                Ok(Record { kind: VIEW, members, ..record })
            }
            // A kind that this version of the border doesn't know: a program may pass it over.
            _ => Ok(Record { kind: 0, ..record }),
        }
    }

    /// What is damaged where the next record would be, if it is known not to be just the end.
    fn damage(&mut self) -> Result<Option<Spot>, DiskError> {
        let tip = self.reader.tip().index;
        let is_unsure = self.reader.stopped().is_some() || !self.has_ended;
        self.has_ended = true;
        if !is_unsure
            || self.judged == Some(tip)
            || self.directories.iter().any(|directory| Directory::is_in_use(directory))
        {
            return Ok(None);
        }
        let mut disk = Directory::look(&self.directories[1])?;
        let condition = scan_each(&mut disk, &mut |_, _| ())?.condition;
        match condition {
            Condition::Damaged(spot) if spot.index == tip.next() || tip.0 == 0 => Ok(Some(spot)),
            _ => {
                self.judged = Some(tip);
                Ok(None)
            }
        }
    }
}

impl std::convert::From<DiskError> for Error {
    fn from(error: DiskError) -> Self {
        Self::new(Status::Machine, error)
    }
}

impl std::convert::From<ReadError> for Error {
    fn from(error: ReadError) -> Self {
        let status = if matches!(error, ReadError::Gone(..)) { Status::Refused } else { Status::Machine };
        Self::new(status, error)
    }
}

export! {
    fn consort_log_open(data: Text, shard: u32, how: u32, from: u64, log: Out<Handle>) {
        let log = log.check("log")?;
        let data = data.required("data")?;
        let from = match how {
            FROM_INDEX => From::Index(Index(from)),
            FROM_STAMP => From::Time(Stamp(from)),
            other => {
                return Err(Error::invalid(format_args!(
                    "`how` is {other}: take CONSORT_FROM_INDEX or CONSORT_FROM_STAMP"
                )));
            }
        };
        log.set(LOGS.put(Mutex::new(Reading::open(PathBuf::from(data), shard, from)?))?);
        Ok(())
    }

    fn consort_log_next(log: Handle, record: Out<Record>) {
        let record = record.check("record")?;
        LOGS.with(log, |reading| {
            record.set(reading.lock().unwrap_or_else(PoisonError::into_inner).next()?);
            Ok(())
        })
    }

    fn consort_log_free(log: Handle) {
        LOGS.take(log).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use consort::log::snapshot;
    use consort::log::{Entry, Log, LogOptions, Payload};
    use consort::{NodeId, Seq, ViewId};

    use super::*;

    const SHARD: u32 = 3;

    /// What a program sees of a record.
    type Seen = (u64, u64, u64, u64, u32, Vec<u8>);

    /// A log of a data directory, with small segments.
    fn log_in(data: &Path) -> Log {
        let disk = Directory::open(&data.join("shard-3")).unwrap();
        let options = LogOptions { shard: SHARD, segment_bytes: 1024, ..LogOptions::default() };
        Log::open(Box::new(disk), options, Index(0)).unwrap().0
    }

    fn append(log: &mut Log, seqs: std::ops::Range<u64>) -> Vec<Seen> {
        let mut all = Vec::new();
        for seq in seqs {
            let bytes: Vec<u8> = (0..seq * 5 % 83).map(|at| (seq * 31 + at * 7 + 1) as u8).collect();
            let (view, sender) = (ViewId(1), NodeId(seq as u32 % 3 + 1));
            let (kind, payload) = (LogKind::Message, Payload::Copied(&bytes));
            let entry = Entry { kind, view, seq: Seq(seq), sent: 1000 * seq, sender, payload };
            let tip = log.append(&entry).unwrap();
            all.push((tip.index.0, 1, seq, tip.stamp.0, sender.0, bytes));
            if seq % 4 == 3 {
                flush(log);
            }
        }
        flush(log);
        all
    }

    fn flush(log: &mut Log) {
        while log.turn().unwrap() || !log.is_idle() {}
    }

    /// Reads to the end, and what that is.
    fn read_on(reading: &mut Reading) -> (Vec<Seen>, Error) {
        let mut all = Vec::new();
        loop {
            match reading.next() {
                Ok(it) => {
                    assert_eq!((it.kind, it.len), (MESSAGE, reading.payload.len()));
                    all.push((it.index, it.view, it.seq, it.stamp, it.node, reading.payload.clone()));
                }
                Err(error) => return (all, error),
            }
        }
    }

    fn open(data: &Path, from: From) -> Result<Reading, Error> {
        Reading::open(data.to_owned(), SHARD, from)
    }

    fn read(data: &Path, from: From) -> (Vec<Seen>, Status) {
        match open(data, from) {
            Ok(mut reading) => {
                let (all, end) = read_on(&mut reading);
                (all, end.status())
            }
            Err(error) => (Vec::new(), error.status()),
        }
    }

    #[test]
    fn a_log_of_many_segments_is_read_from_anywhere_and_followed() {
        let data = tempfile::tempdir().unwrap();
        let mut log = log_in(data.path());
        let mut all = append(&mut log, 0..30);
        assert!(log.segments().len() >= 3);
        for (at, record) in all.iter().enumerate() {
            for from in [From::Index(Index(record.0)), From::Time(Stamp(record.3))] {
                assert_eq!(read(data.path(), from), (all[at..].to_vec(), Status::TimedOut));
            }
        }
        // One that is at the end, and one that begins beyond it, are told what comes, at once.
        let mut readers = [0, 41].map(|index| open(data.path(), From::Index(Index(index))).unwrap());
        assert_eq!(read_on(&mut readers[0]).0, all);
        assert_eq!(read_on(&mut readers[1]).0, []);
        for seq in 30..70 {
            all.extend(append(&mut log, seq..seq + 1));
            let new = &all[seq as usize..];
            assert_eq!(read_on(&mut readers[0]).0, new);
            assert_eq!(read_on(&mut readers[1]).0, if seq >= 40 { new } else { &[] });
        }
    }

    #[test]
    fn a_byte_of_a_log_that_is_another_one_is_found_or_does_not_matter() {
        let data = tempfile::tempdir().unwrap();
        let mut log = log_in(data.path());
        let all = append(&mut log, 0..30);
        drop(log);
        let directory = data.path().join("shard-3");
        let (mut damages, mut whole) = (0, 0);
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let sound = fs::read(&path).unwrap();
            // The crate of the log tries all of them.
            for byte in (0..sound.len()).step_by(7) {
                let mut other = sound.clone();
                other[byte] ^= 1 << (byte % 8);
                fs::write(&path, other).unwrap();
                let (read, end) = read(data.path(), From::Index(Index(0)));
                assert!(all.starts_with(&read), "byte {byte} of {}", path.display());
                match end {
                    Status::Machine => damages += 1,
                    // Nothing that was flushed, or the last batch, of which nobody can say that it was.
                    Status::TimedOut => {
                        assert!(read.len() >= 28, "byte {byte} of {}: {}", path.display(), read.len());
                    }
                    other => panic!("{other:?}"),
                }
                whole += usize::from(read.len() == all.len());
            }
            fs::write(&path, sound).unwrap();
        }
        assert!(damages > 100 && whole > 10, "{damages} {whole}");
        assert_eq!(read(data.path(), From::Index(Index(0))), (all, Status::TimedOut));
    }

    #[test]
    fn what_a_snapshot_has_taken_the_place_of_is_refused() {
        let data = tempfile::tempdir().unwrap();
        let mut log = log_in(data.path());
        append(&mut log, 0..30);
        let mut slow = open(data.path(), From::Index(Index(1))).unwrap();
        assert_eq!(slow.next().unwrap().index, 1);
        let tip = *log.tip();
        let mut state = vec![vec![7; 100]];
        let mut next = |part: &mut Vec<u8>| {
            part.extend(state.pop().unwrap_or_default());
            Ok(())
        };
        snapshot::write(log.disk(), &tip, b"the view", &mut next).unwrap();
        log.on_snapshot(tip, 0);
        let all = append(&mut log, 30..60);
        let first = log.first();
        assert!(first > Index(20));

        let gone = open(data.path(), From::Index(Index(1))).err().unwrap();
        assert_eq!(gone.status(), Status::Refused);
        assert!(gone.text().contains(&format!("the log begins with record {first}")), "{gone:?}");
        let (read, end) = read(data.path(), From::Index(Index(0)));
        assert_eq!((read[0].0, end), (first.0, Status::TimedOut));
        assert!(read.ends_with(&all));
        // Who was reading it is told, after what it had read ahead.
        let (read, end) = read_on(&mut slow);
        assert!(read.len() < 30);
        assert_eq!(end.status(), Status::Refused);
        assert!(end.text().contains("open the log anew"), "{end:?}");
    }

    #[test]
    fn a_view_that_cant_be_read_is_an_error() {
        let data = tempfile::tempdir().unwrap();
        let mut log = log_in(data.path());
        let (kind, view, seq, sender) = (LogKind::View, ViewId(1), Seq(0), NodeId(0));
        let entry = Entry { kind, view, seq, sent: 1, sender, payload: Payload::Copied(&[0xFF; 30]) };
        log.append(&entry).unwrap();
        flush(&mut log);
        let mut reading = open(data.path(), From::Index(Index(0))).unwrap();
        let error = reading.next().err().unwrap();
        assert_eq!(error.status(), Status::Machine);
        assert!(error.text().contains("record 1 of the log is no view"), "{error:?}");
        assert_eq!(reading.next().err().unwrap().status(), Status::TimedOut);
    }
}
