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
        // A reader reads ahead: the end that it finds first may be that of a while ago, and it looks anew after that.
        let mut found = self.step()?;
        if found.is_none() {
            found = self.step()?;
        }
        if let Some(header) = found {
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
    fn step(&mut self) -> Result<Option<RecordHeader>, ReadError> {
        let Some((header, payload)) = self.reader.read()? else { return Ok(None) };
        payload.clone_into(&mut self.payload);
        Ok(Some(header))
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
    use super::*;

    #[test]
    fn what_has_gone_is_refused_and_what_is_damaged_is_the_machines() {
        let gone = Error::from(ReadError::Gone(Index(3), Index(9)));
        assert_eq!(gone.status(), Status::Refused);
        assert!(gone.text().contains("the log begins with record 9"), "{gone:?}");
        let spot =
            Spot { name: "a.log".to_owned(), at: 64, index: Index(1), why: "its sum is another".to_owned() };
        assert_eq!(Error::from(ReadError::Damaged(spot)).status(), Status::Machine);
    }
}
