//! Standard input of `consort node`: every line becomes a message, and every line has an outcome, also one that can't be
//! sent. A line is never held unless it can be sent: one that is too long is passed over as it comes in.

use std::io::{self, BufRead, Read};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use consort::{Outcome, SendError, Sender};

use super::out::Pending;

/// A line of input on its way.
pub(crate) enum Sent {
    /// Its outcome will tell.
    Tracked(Outcome),
    /// It could not be sent.
    Refused(String),
}

/// Sends line after line until the input ends or nothing can be sent any more, then tells the group that this was all.
///
/// # Errors
/// Standard input can't be read.
pub(crate) fn run(
    input: impl BufRead,
    base64: bool,
    sender: &Sender,
    pending: &Pending<(u64, Sent)>,
) -> io::Result<()> {
    let longest = sender.max_len().unwrap_or(usize::MAX);
    let mut input = Input::new(input, if base64 { longest.saturating_mul(4) / 3 + 4 } else { longest });
    let mut number = 0;
    while let Some(line) = input.next()? {
        let sent = match line {
            Err(length) => Sent::Refused(too_long(length, longest)),
            Ok(line) if base64 => match BASE64_STANDARD.decode(line.trim_ascii()) {
                Ok(message) => send(sender, &message, longest)?,
                Err(error) => Sent::Refused(format!(
                    "the line is not base64: {error}; encode it, or leave out --base64"
                )),
            },
            Ok(line) => send(sender, line, longest)?,
        };
        if !pending.push((number, sent)) {
            return Ok(());
        }
        number += 1;
    }
    match sender.end() {
        // A node that has stopped says so itself.
        Ok(()) | Err(SendError::Ended | SendError::Stopped(_)) => Ok(()),
        Err(error) => Err(io::Error::other(error)),
    }
}

fn send(sender: &Sender, message: &[u8], longest: usize) -> io::Result<Sent> {
    match sender.send_tracked(message) {
        Ok(outcome) => Ok(Sent::Tracked(outcome)),
        Err(SendError::TooLong { len, .. }) => Ok(Sent::Refused(too_long(len, longest))),
        Err(error @ (SendError::Ended | SendError::Stopped(_))) => Ok(Sent::Refused(error.to_string())),
        Err(error) => Err(io::Error::other(error)),
    }
}

fn too_long(length: usize, longest: usize) -> String {
    format!(
        "a line of {length} bytes is longer than {longest}, the longest that fits; give all members a larger --ring"
    )
}

/// Lines of bounded length.
struct Input<R> {
    from: R,
    longest: usize,
    line: Vec<u8>,
}

impl<R: BufRead> Input<R> {
    fn new(from: R, longest: usize) -> Self {
        Self { from, longest, line: Vec::new() }
    }

    /// The next line without its newline; its length alone if it is longer than may be.
    fn next(&mut self) -> io::Result<Option<Result<&[u8], usize>>> {
        self.line.clear();
        let most = u64::try_from(self.longest).unwrap_or(u64::MAX).saturating_add(1);
        if self.from.by_ref().take(most).read_until(b'\n', &mut self.line)? == 0 {
            return Ok(None);
        }
        if self.line.last() == Some(&b'\n') {
            self.line.pop();
        } else if self.line.len() > self.longest {
            let held = self.line.len();
            // What `skip_until` counts includes the newline, unless the input ended without one.
            let skipped = skip_line(&mut self.from)?;
            self.line = Vec::new();
            return Ok(Some(Err(held + skipped)));
        }
        Ok(Some(Ok(&self.line)))
    }
}

/// Passes over the rest of a line and its newline; returns its length without that.
fn skip_line(from: &mut impl BufRead) -> io::Result<usize> {
    let mut length = 0;
    loop {
        let held = match from.fill_buf() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            held => held?,
        };
        if held.is_empty() {
            return Ok(length);
        }
        if let Some(at) = held.iter().position(|&byte| byte == b'\n') {
            from.consume(at + 1);
            return Ok(length + at);
        }
        length += held.len();
        let all = held.len();
        from.consume(all);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_too_long_is_passed_over_and_the_next_is_whole() {
        let text = format!("short\n{}\n\nend", "x".repeat(50_000));
        let mut input = Input::new(io::BufReader::with_capacity(64, text.as_bytes()), 10);
        assert_eq!(input.next().unwrap(), Some(Ok(&b"short"[..])));
        assert_eq!(input.next().unwrap(), Some(Err(50_000)));
        assert_eq!(input.next().unwrap(), Some(Ok(&b""[..])));
        assert_eq!(input.next().unwrap(), Some(Ok(&b"end"[..])));
        assert_eq!(input.next().unwrap(), None);
    }

    #[test]
    fn the_longest_line_passes_with_and_without_its_newline() {
        for text in ["0123456789\n", "0123456789"] {
            let mut input = Input::new(text.as_bytes(), 10);
            assert_eq!(input.next().unwrap(), Some(Ok(&b"0123456789"[..])), "{text:?}");
            assert_eq!(input.next().unwrap(), None);
        }
        let mut input = Input::new(&b"0123456789x"[..], 10);
        assert_eq!(input.next().unwrap(), Some(Err(11)));
        assert_eq!(input.next().unwrap(), None);
    }
}
