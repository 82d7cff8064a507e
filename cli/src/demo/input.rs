//! The demo's input: any bytes, cut in lines.
//!
//! A line ends at a newline (byte 10), which is not part of it. What follows the last newline is a line only if it isn't
//! empty. So `a\n\nb` and `a\n\nb\n` are both three lines, the second one empty, and an empty file has none. Nothing
//! else is special: carriage returns, zero bytes and broken UTF-8 stay as they are.
//!
//! The file is read several times (once to measure it, once by each member, once per member to check the logs), always
//! as a stream: no more than one line of it is held by anyone. What can't be read twice (a pipe) is spooled to a
//! temporary file without a name, and the order book that ships with the command goes to a memory file, so that members
//! get all of these in the same way, as an inherited descriptor.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use crate::crew::bequeath;
use crate::failure::Failure;
use crate::orders::inherited;

/// The file that ships with the command: see `cli/examples/exchange_day.rs`, which made it.
const SHIPPED: &[u8] = include_bytes!("../../data/exchange-day.log");

/// The longest line that the demo takes, in bytes: each member's ring must hold several of the longest.
pub(crate) const LONGEST_LINE: usize = 64 << 20;

/// An input that can be opened any number of times, here and in member processes.
pub(crate) struct Input {
    file: File,
    /// What to call it before the user.
    pub(crate) name: String,
}

/// What there is to know of an input before it is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Survey {
    pub(crate) lines: u64,
    /// Without newlines.
    pub(crate) bytes: u64,
    pub(crate) longest: usize,
}

impl Input {
    /// Opens `path`, or what ships with the command.
    ///
    /// # Errors
    /// It can't be read, or is neither file nor pipe.
    pub(crate) fn open(path: Option<&Path>) -> Result<Self, Failure> {
        let Some(path) = path else {
            let name = "the order book that ships with consort".to_string();
            let file = shipped().map_err(|cause| Failure::stream("hold", &name, cause))?;
            return Ok(Self { file, name });
        };
        let file = File::open(path).map_err(|cause| Failure::file("open", path, cause))?;
        let kind = file.metadata().map_err(|cause| Failure::file("look at", path, cause))?.file_type();
        let file = if kind.is_file() {
            file
        } else if kind.is_fifo() || kind.is_socket() {
            spool(file).map_err(|cause| Failure::file("spool", path, cause))?
        } else {
            let what = if kind.is_dir() { "a directory" } else { "a device" };
            return Err(Failure::File {
                doing: "take lines from",
                what: path.display().to_string(),
                cause: io::Error::other(format!("it is {what}")),
                remedy:
                    "give a file or a pipe with --input, or none for the order book that ships with consort"
                        .to_string(),
            });
        };
        Ok(Self { file, name: path.display().to_string() })
    }

    /// The number of the descriptor that member processes inherit.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn bequeath(&self) -> Result<i32, Failure> {
        bequeath(&self.file).map_err(|cause| Failure::stream("pass on", &self.name, cause))
    }

    /// Its lines, from the beginning.
    ///
    /// # Errors
    /// It can't be opened again.
    pub(crate) fn lines(&self) -> Result<Lines<File>, Failure> {
        use std::os::fd::AsRawFd as _;
        let file = inherited(self.file.as_fd().as_raw_fd(), false);
        Ok(Lines::new(file.map_err(|cause| Failure::stream("open again", &self.name, cause))?))
    }

    /// Reads it once and counts.
    ///
    /// # Errors
    /// It can't be read, or has a line longer than [`LONGEST_LINE`].
    pub(crate) fn survey(&self) -> Result<Survey, Failure> {
        let mut lines = self.lines()?;
        let mut survey = Survey::default();
        while let Some(length) = lines.skip().map_err(|cause| Failure::stream("read", &self.name, cause))? {
            survey.lines += 1;
            survey.bytes += u64::try_from(length).unwrap_or(u64::MAX);
            survey.longest = survey.longest.max(length);
        }
        if survey.longest > LONGEST_LINE {
            return Err(Failure::usage(
                format!(
                    "{} has a line of {} bytes; the demo takes lines of up to {LONGEST_LINE} bytes",
                    self.name, survey.longest
                ),
                "cut it first, e.g. with `split -b 16M`, or `fold -b -w 1000000`",
            ));
        }
        Ok(survey)
    }
}

fn shipped() -> io::Result<File> {
    let mut file = File::from(rustix::fs::memfd_create("exchange-day.log", rustix::fs::MemfdFlags::CLOEXEC)?);
    file.write_all(SHIPPED)?;
    Ok(file)
}

fn spool(mut from: File) -> io::Result<File> {
    let mut file = tempfile::tempfile()?;
    io::copy(&mut from, &mut file)?;
    Ok(file)
}

/// A stream of lines.
pub(crate) struct Lines<R> {
    from: BufReader<R>,
}

impl<R: Read> Lines<R> {
    pub(crate) fn new(from: R) -> Self {
        Self { from: BufReader::with_capacity(256 << 10, from) }
    }

    /// Puts the next line in place of what `line` held. Returns false at the end.
    ///
    /// # Errors
    /// The stream's. What `line` holds then is undefined.
    pub(crate) fn next_into(&mut self, line: &mut Vec<u8>) -> io::Result<bool> {
        line.clear();
        if self.from.read_until(b'\n', line)? == 0 {
            return Ok(false);
        }
        if line.last() == Some(&b'\n') {
            line.pop();
        }
        Ok(true)
    }

    /// Passes over a line without holding it; returns its length, or `None` at the end.
    ///
    /// # Errors
    /// The stream's.
    fn skip(&mut self) -> io::Result<Option<usize>> {
        let mut length = 0;
        loop {
            let held = match self.from.fill_buf() {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                held => held?,
            };
            if held.is_empty() {
                return Ok((length > 0).then_some(length));
            }
            if let Some(at) = held.iter().position(|&byte| byte == b'\n') {
                self.from.consume(at + 1);
                return Ok(Some(length + at));
            }
            length += held.len();
            let all = held.len();
            self.from.consume(all);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(text: &[u8]) -> Vec<Vec<u8>> {
        let mut lines = Lines::new(text);
        let (mut all, mut line) = (Vec::new(), b"left over".to_vec());
        while lines.next_into(&mut line).unwrap() {
            all.push(line.clone());
        }
        let mut lines = Lines::new(text);
        let lengths: Vec<usize> = std::iter::from_fn(|| lines.skip().unwrap()).collect();
        assert_eq!(
            lengths,
            all.iter().map(Vec::len).collect::<Vec<_>>(),
            "both ways to read see the same lines"
        );
        all
    }

    #[test]
    fn lines_end_at_newlines_and_nowhere_else() {
        let none: [&[u8]; 0] = [];
        assert_eq!(split(b""), none);
        assert_eq!(split(b"\n"), [b""]);
        assert_eq!(split(b"a\n\nb"), [&b"a"[..], b"", b"b"]);
        assert_eq!(split(b"a\n\nb\n"), [&b"a"[..], b"", b"b"]);
        assert_eq!(split(b"\n\n"), [b"", b""]);
        assert_eq!(split(b"cr\r\n\0\xff\xfe\n"), [&b"cr\r"[..], b"\0\xff\xfe"]);
    }

    #[test]
    fn a_line_may_be_longer_than_any_buffer() {
        let mut text = vec![b'x'; 3 << 20];
        text.push(b'\n');
        text.extend(vec![0; 1 << 20]);
        let lines = split(&text);
        assert_eq!(lines.iter().map(Vec::len).collect::<Vec<_>>(), [3 << 20, 1 << 20]);
    }

    #[test]
    fn an_input_is_surveyed_and_can_be_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("in");
        std::fs::write(&path, b"one\n\nthree").unwrap();
        let input = Input::open(Some(&path)).unwrap();
        assert_eq!(input.survey().unwrap(), Survey { lines: 3, bytes: 8, longest: 5 });
        assert_eq!(input.survey().unwrap().lines, 3, "the second reader starts at the beginning");
    }

    #[test]
    fn what_is_no_file_is_refused_with_a_remedy() {
        let directory = tempfile::tempdir().unwrap();
        for path in [directory.path(), Path::new("/dev/zero"), &directory.path().join("missing")] {
            let refused = Input::open(Some(path)).err().unwrap();
            assert_eq!(refused.code(), 3, "{refused}");
            assert!(refused.to_string().contains(&*path.to_string_lossy()) && !refused.remedy().is_empty());
        }
    }

    #[test]
    fn a_pipe_is_spooled_so_that_all_can_read_it() {
        let (from, mut to) = io::pipe().unwrap();
        to.write_all(b"x\ny\n").unwrap();
        drop(to);
        use std::os::fd::AsRawFd as _;
        let path = format!("/proc/self/fd/{}", from.as_raw_fd());
        let input = Input::open(Some(Path::new(&path))).unwrap();
        assert_eq!(input.survey().unwrap().lines, 2);
        assert_eq!(input.survey().unwrap().lines, 2);
    }

    #[test]
    fn the_shipped_file_is_worth_sending() {
        let survey = Input::open(None).unwrap().survey().unwrap();
        assert!(survey.lines > 2_000 && survey.longest < 200, "{survey:?}");
    }
    #[test]
    fn the_longest_line_fits_a_ring_that_can_be() {
        let ring = crate::group::ring_bytes(LONGEST_LINE, 4 << 20);
        assert!(ring <= 1 << 30 && ring / 2 > LONGEST_LINE + 8);
    }
}
