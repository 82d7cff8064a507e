//! The log of a member: what it delivered, in the order of delivery, without loss and without ambiguity.
//!
//! ```text
//! record  = header payload newline
//! header  = SEQ " " SENDER " " LENGTH newline      decimal, no leading zeros or signs
//! payload = LENGTH bytes, whatever they are
//! ```
//! The length says where a payload ends, so payloads may hold newlines, headers, anything; and since there is one way
//! only to write a record, two logs are the same bytes exactly if the members delivered the same sequence. The digest of
//! the sequence is the BLAKE3 of the file.

use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};

/// Writes a log and computes its digest on the way.
pub(crate) struct LogWriter<W: Write> {
    to: BufWriter<W>,
    hasher: blake3::Hasher,
    header: Vec<u8>,
}

impl<W: Write> LogWriter<W> {
    pub(crate) fn new(to: W) -> Self {
        Self {
            to: BufWriter::with_capacity(256 << 10, to),
            hasher: blake3::Hasher::new(),
            header: Vec::new(),
        }
    }

    /// Appends a record.
    ///
    /// # Errors
    /// The stream's.
    pub(crate) fn append(&mut self, seq: u64, sender: u32, payload: &[u8]) -> io::Result<()> {
        self.header.clear();
        writeln!(self.header, "{seq} {sender} {}", payload.len())?;
        if payload.len() <= 4096 {
            // One piece costs less than three.
            self.header.extend_from_slice(payload);
            self.header.push(b'\n');
            self.put_header()
        } else {
            self.put_header()?;
            self.hasher.update(payload);
            self.to.write_all(payload)?;
            self.hasher.update(b"\n");
            self.to.write_all(b"\n")
        }
    }

    fn put_header(&mut self) -> io::Result<()> {
        self.hasher.update(&self.header);
        self.to.write_all(&self.header)
    }

    /// Hands what is held back to the stream.
    ///
    /// # Errors
    /// The stream's.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }

    /// The digest of all that was appended, in hexadecimal.
    pub(crate) fn digest(&self) -> String {
        self.hasher.finalize().to_hex().to_string()
    }
}

/// A record's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) seq: u64,
    pub(crate) sender: u32,
    pub(crate) length: usize,
}

/// A log that is not one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum LogError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("record {record} has no proper header: {found:?}")]
    Header { record: u64, found: String },
    #[error("record {record} claims {length} bytes, more than any line of the input")]
    TooLong { record: u64, length: usize },
    #[error("record {record} is cut short")]
    Short { record: u64 },
}

/// Reads a log, one record at a time.
pub(crate) struct LogReader<R> {
    from: BufReader<R>,
    longest: usize,
    records: u64,
    hasher: blake3::Hasher,
}

/// Longer than any header.
const HEADER_LIMIT: u64 = 64;

impl<R: Read> LogReader<R> {
    /// A reader that takes no payload above `longest` bytes for true.
    pub(crate) fn new(from: R, longest: usize) -> Self {
        let from = BufReader::with_capacity(256 << 10, from);
        Self { from, longest, records: 0, hasher: blake3::Hasher::new() }
    }

    /// Reads the next record's payload in place of what `payload` held; `None` at the end.
    ///
    /// # Errors
    /// The file can't be read, or what it holds is no record.
    pub(crate) fn next_into(&mut self, payload: &mut Vec<u8>) -> Result<Option<Header>, LogError> {
        payload.clear();
        let record = self.records;
        if self.from.by_ref().take(HEADER_LIMIT).read_until(b'\n', payload)? == 0 {
            return Ok(None);
        }
        let header = parse_header(payload).ok_or_else(|| LogError::Header {
            record,
            found: String::from_utf8_lossy(payload).into_owned(),
        })?;
        if header.length > self.longest {
            return Err(LogError::TooLong { record, length: header.length });
        }
        self.hasher.update(payload);
        payload.clear();
        // The newline belongs to the record; a full read of it shows that the payload is complete.
        let wanted = header.length + 1;
        self.from.by_ref().take(u64::try_from(wanted).unwrap_or(u64::MAX)).read_to_end(payload)?;
        self.hasher.update(payload);
        if payload.len() != wanted || payload.pop() != Some(b'\n') {
            return Err(LogError::Short { record });
        }
        self.records += 1;
        Ok(Some(header))
    }

    /// How many records were read.
    pub(crate) fn records(&self) -> u64 {
        self.records
    }

    /// The digest of all that was read, in hexadecimal.
    pub(crate) fn digest(&self) -> String {
        self.hasher.finalize().to_hex().to_string()
    }
}

fn parse_header(line: &[u8]) -> Option<Header> {
    let text = std::str::from_utf8(line.strip_suffix(b"\n")?).ok()?;
    let mut words = text.split(' ');
    let header = Header {
        seq: words.next()?.parse().ok()?,
        sender: words.next()?.parse().ok()?,
        length: words.next()?.parse().ok()?,
    };
    // There is one way only to write a header.
    (words.next().is_none() && format!("{} {} {}", header.seq, header.sender, header.length) == text)
        .then_some(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bytes_come_back_and_the_digest_is_that_of_the_file() {
        let payloads: [&[u8]; 6] = [b"", b"\n", b"0 1 2\n", b"\0\xff", &[7; 5_000], b"end"];
        let mut file = Vec::new();
        let mut writer = LogWriter::new(&mut file);
        for (seq, payload) in (10..).zip(payloads) {
            writer.append(seq, 3, payload).unwrap();
        }
        writer.flush().unwrap();
        let digest = writer.digest();
        drop(writer);
        assert_eq!(digest, blake3::hash(&file).to_hex().to_string());

        let mut reader = LogReader::new(&file[..], 5_000);
        let mut payload = b"left over".to_vec();
        for (seq, expected) in (10..).zip(payloads) {
            let header = reader.next_into(&mut payload).unwrap().unwrap();
            assert_eq!(header, Header { seq, sender: 3, length: expected.len() });
            assert_eq!(payload, expected);
        }
        assert!(reader.next_into(&mut payload).unwrap().is_none());
        assert_eq!((reader.records(), reader.digest()), (6, digest));
    }

    #[test]
    fn damage_is_seen() {
        let mut payload = Vec::new();
        let mut read = |bytes: &[u8]| LogReader::new(bytes, 100).next_into(&mut payload).map(|h| h.is_some());
        assert!(matches!(read(b"0 1 3\nabc\n"), Ok(true)));
        assert!(matches!(read(b"0 1 3\nabc"), Err(LogError::Short { .. })));
        assert!(matches!(read(b"0 1 2\nabc\n"), Err(LogError::Short { .. })));
        assert!(matches!(read(b"0 1 101\n"), Err(LogError::TooLong { .. })));
        for header in ["0 1\n", "0 1 3 4\n", "+0 1 3\n", "00 1 3\n", " 0 1 3\n", "0 1 3", "x", "\u{fffd}\n"] {
            assert!(matches!(read(header.as_bytes()), Err(LogError::Header { .. })), "{header:?}");
        }
    }
}
