//! [`Reader`]: a log from some place on, record by record. It can read a log that is being written: at the end it says that there is no
//! more yet, and finds what is there when it is asked again.

use super::disk::{Disk, DiskError, DiskTrouble};
use super::format::{RecordHeader, SEGMENT_HEADER, Stamp, record_size};
use super::scan::{Look, Rules, Tip, Window, follows, look, segment_files, segment_header};
use super::{Index, Spot};

/// Where to begin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum From {
    /// With this record.
    Index(Index),
    /// With the first record that is not older.
    Time(Stamp),
}

/// A log can't be read from there.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The disk refuses.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// What was there has gone, a snapshot has taken its place.
    #[error(
        "record {0} is not here any more: the log begins with record {1}; begin there, or with the snapshot before it"
    )]
    Gone(Index, Index),
    /// It is not as it was written.
    #[error("the log is damaged: {0}; stop the node and run `consort log verify` on its data directory")]
    Damaged(Spot),
}

/// See the [module](self).
pub struct Reader {
    disk: Box<dyn Disk>,
    window: Window,
    from: From,
    /// The segment, its number, name and size; where the next record is.
    segment: Option<(u64, String, u64)>,
    at: u64,
    /// Where the last one was.
    last: u64,
    tip: Tip,
    /// Why there is no more, if it isn't just the end.
    stopped: Option<&'static str>,
}

impl Reader {
    /// Begins to read there.
    ///
    /// # Errors
    /// The directory can't be read, or what is asked for isn't there any more.
    pub fn open(disk: Box<dyn Disk>, from: From) -> Result<Self, ReadError> {
        let mut reader = Self {
            disk,
            window: Window::default(),
            from,
            segment: None,
            at: 0,
            last: 0,
            tip: Tip::default(),
            stopped: None,
        };
        reader.begin()?;
        Ok(reader)
    }

    /// Finds the last segment that may have the first record.
    fn begin(&mut self) -> Result<(), ReadError> {
        let mut first = None;
        self.window.clear(); // of a log that was blank when it was looked at last
        for file in segment_files(&mut *self.disk)? {
            let header = match segment_header(&mut *self.disk, &mut self.window, (file.0, &file.1)) {
                // A snapshot has taken its place just now.
                Err(error) if error.trouble == DiskTrouble::Missing => continue,
                header => header?,
            };
            // A log that another's snapshot has taken the place of may not be gone yet.
            let is_next = self.segment.as_ref().is_none_or(|(before, ..)| file.0 == before + 1);
            let Some(header) = header.filter(|_| is_next) else { break };
            first.get_or_insert(header.first);
            let is_before = match self.from {
                From::Index(index) => header.first <= index,
                From::Time(stamp) => header.stamp < stamp,
            };
            if !is_before && self.segment.is_some() {
                break;
            }
            self.tip = Tip::before(&header);
            (self.at, self.segment) = (SEGMENT_HEADER as u64, Some(file));
        }
        match (self.from, first) {
            (From::Index(index), Some(first)) if index.0 != 0 && index < first => {
                Err(ReadError::Gone(index, first))
            }
            _ => Ok(()),
        }
    }

    /// The next record; `None` if there is none yet.
    ///
    /// # Errors
    /// The log can't be read on, or is not as it was written.
    pub fn read(&mut self) -> Result<Option<(RecordHeader, &[u8])>, ReadError> {
        while self.is_at_one()? {
            let wanted = match self.from {
                From::Index(index) => self.tip.index >= index,
                From::Time(stamp) => self.tip.stamp >= stamp,
            };
            if wanted {
                return self.last();
            }
        }
        Ok(None)
    }

    /// Steps over a record, if there is one.
    fn is_at_one(&mut self) -> Result<bool, ReadError> {
        if self.segment.is_none() {
            self.begin()?;
        }
        // The next segment was there when this one was looked at last.
        let mut is_full = false;
        loop {
            let Some((number, name, bytes)) = self.segment.clone() else { return Ok(false) };
            let rules = Rules::default();
            let is_new = self.window.is_clear();
            let why = match look(&mut *self.disk, &mut self.window, (&name, bytes), self.at, rules)? {
                Look::Record(header, _, content) => match follows(&self.tip, &header, rules) {
                    Ok(()) => {
                        self.last = self.at;
                        self.at += record_size(header.len) as u64;
                        self.tip = Tip::behind(&header, content);
                        self.stopped = None;
                        return Ok(true);
                    }
                    Err(why) => Some(why),
                },
                Look::Nothing => None,
                Look::Bad(why) => Some(why),
            };
            // Not here: perhaps when the window was read, and since then it has been written.
            self.window.clear();
            if !is_new {
                continue;
            }
            // Perhaps the segment is full, and the next has begun. If not, whatever is here may be other by and by.
            let next = segment_files(&mut *self.disk)?.into_iter().find(|(it, ..)| *it == number + 1);
            let header = match &next {
                Some((number, name, _)) => {
                    segment_header(&mut *self.disk, &mut self.window, (*number, name))?
                }
                None => None,
            };
            let Some(header) = header else {
                self.stopped = why;
                self.window.clear();
                return Ok(false);
            };
            if header.first != self.tip.index.next() || header.chain != self.tip.chain {
                // The rest of this one may have been written since, and the next segment after that.
                if !std::mem::replace(&mut is_full, true) {
                    self.window.clear();
                    continue;
                }
                let why = why.unwrap_or("nothing is there").to_owned();
                return Err(ReadError::Damaged(Spot {
                    name,
                    at: self.at,
                    index: self.tip.index.next(),
                    why,
                }));
            }
            (self.segment, self.at) = (next, SEGMENT_HEADER as u64);
        }
    }

    /// The record of that number, which is the next one, or the last that was read.
    ///
    /// # Errors
    /// As [`Reader::read`].
    pub fn again(&mut self, index: Index) -> Result<Option<(RecordHeader, &[u8])>, ReadError> {
        if self.last != 0 && self.tip.index == index { self.last() } else { self.read() }
    }

    /// Adds the next records to `into` as they lie in the log, whole, until it has `most` bytes or more, or there are no more.
    ///
    /// # Errors
    /// As [`Reader::read`].
    pub fn copy(&mut self, into: &mut Vec<u8>, most: usize) -> Result<(), ReadError> {
        while into.len() < most && self.read()?.is_some() {
            let Some((_, name, _)) = &self.segment else { return Ok(()) };
            let len = usize::try_from(self.at - self.last).unwrap_or(0);
            into.extend_from_slice(self.window.get(&mut *self.disk, name, self.last, len)?);
        }
        Ok(())
    }

    /// The record before the place.
    fn last(&mut self) -> Result<Option<(RecordHeader, &[u8])>, ReadError> {
        let Some((_, name, bytes)) = &self.segment else { return Ok(None) };
        match look(&mut *self.disk, &mut self.window, (name, *bytes), self.last, Rules::default())? {
            Look::Record(header, payload, _) => Ok(Some((header, payload))),
            _ => Ok(None),
        }
    }

    /// Behind the last record that was read.
    pub fn tip(&self) -> &Tip {
        &self.tip
    }

    /// What lies where the next record would be, if that is neither a record nor nothing: a write that is under way, or damage;
    /// [`super::scan()`] tells which.
    pub fn stopped(&self) -> Option<&'static str> {
        self.stopped
    }
}
