//! Whether the members did what they are there to show. The judge trusts no member's word: it reads the logs from the
//! disk and the input from where it came.
//!
//! 1. The first log is held against the input: the k-th record of each sender is the k-th line, byte for byte, and
//!    each sender's records end where the input ends. So every line of every sender is there exactly once, in the
//!    sender's order, and nothing else is.
//! 2. Every other log holds the same bytes as the first (all guarantees but `fifo`), or is itself held against the input
//!    (`fifo`, where members may interleave the senders differently).
//! 3. The digest that each member computed while it delivered is that of its log: what it wrote is what it delivered.
//!
//! One line per sender and two records are in memory at a time.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::input::{Input, Lines};
use super::log::{Header, LogError, LogReader};
use crate::failure::Failure;

/// The logs agree with each other and with the input.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Whether all logs are the same bytes. Always so, unless the order is only `fifo`.
    pub(crate) identical: bool,
    /// Messages in each log, in the order of the members.
    pub(crate) records: Vec<u64>,
}

/// What the members are held to.
pub(crate) struct Expected<'a> {
    pub(crate) input: &'a Input,
    pub(crate) longest: usize,
    pub(crate) members: u32,
    /// One order at all members.
    pub(crate) total_order: bool,
}

/// Judges the logs of members 1, 2, …; `digests` are what these say of their own.
///
/// # Errors
/// [`Failure::Disagreement`] with the first place where something is not as it should be, or a file can't be read.
pub(crate) fn verify(
    expected: &Expected<'_>,
    logs: &[&Path],
    digests: &[String],
) -> Result<Verdict, Failure> {
    let mut verdict = Verdict { identical: true, records: Vec::new() };
    for (index, (log, digest)) in logs.iter().zip(digests).enumerate() {
        let member = index + 1;
        let open = || File::open(log).map_err(|cause| Failure::file("open", log, cause));
        let (records, found) = if index == 0 || !expected.total_order {
            against_input(expected, open()?, member)?
        } else {
            let first = File::open(logs[0]).map_err(|cause| Failure::file("open", logs[0], cause))?;
            against_first(expected.longest, (1, first), (member, open()?))?
        };
        same_digest(member, log, digest, &found)?;
        verdict.records.push(records);
        verdict.identical &= *digest == digests[0];
    }
    Ok(verdict)
}

/// Rule 3.
pub(super) fn same_digest(member: usize, log: &Path, said: &str, found: &str) -> Result<(), Failure> {
    if said == found {
        return Ok(());
    }
    Err(Failure::disagreement(
        format!("member {member} delivered a sequence with digest {said}, but its log has {found}"),
        format!("something else wrote to {}; run the demo again", log.display()),
    ))
}

pub(super) fn unreadable(member: usize, error: LogError) -> Failure {
    match error {
        LogError::Io(cause) => Failure::stream("read", format!("the log of member {member}"), cause),
        damaged => Failure::disagreement(
            format!("the log of member {member} is damaged: {damaged}"),
            "something else wrote to it, or the member did wrong; run the demo again and report it if it lasts",
        ),
    }
}

pub(super) const REPORT: &str = "this must not happen: keep the logs and report it as a bug";

/// Rule 1. Returns the number of records and the digest of the log.
fn against_input(expected: &Expected<'_>, log: impl Read, member: usize) -> Result<(u64, String), Failure> {
    let mut senders: Vec<Lines<File>> =
        (0..expected.members).map(|_| expected.input.lines()).collect::<Result<_, _>>()?;
    let mut sent = vec![0_u64; senders.len()];
    let mut log = LogReader::new(log, expected.longest);
    let (mut payload, mut line) = (Vec::new(), Vec::new());
    let mut last: Option<u64> = None;
    let read = |lines: &mut Lines<File>, line: &mut Vec<u8>| {
        lines.next_into(line).map_err(|cause| Failure::stream("read", &expected.input.name, cause))
    };
    while let Some(header) = log.next_into(&mut payload).map_err(|e| unreadable(member, e))? {
        let Header { seq, sender, .. } = header;
        if last.is_some_and(|last| last >= seq) {
            return Err(Failure::disagreement(
                format!("member {member} delivered sequence number {seq} after {}", last.unwrap_or_default()),
                REPORT,
            ));
        }
        last = Some(seq);
        let place =
            usize::try_from(sender).ok().and_then(|id| id.checked_sub(1)).filter(|&at| at < senders.len());
        let Some(place) = place else {
            return Err(Failure::disagreement(
                format!("member {member} delivered a message of member {sender}, whom there is not"),
                REPORT,
            ));
        };
        if !read(&mut senders[place], &mut line)? {
            return Err(Failure::disagreement(
                format!(
                    "member {member} delivered more messages of member {sender} than {} has lines",
                    expected.input.name
                ),
                REPORT,
            ));
        }
        sent[place] += 1;
        if payload != line {
            return Err(Failure::disagreement(
                format!(
                    "member {member} delivered, as message {} of member {sender}, what is not line {} of {} (sequence number {seq})",
                    sent[place], sent[place], expected.input.name
                ),
                "if the input changed meanwhile run the demo again; else keep the logs and report it as a bug",
            ));
        }
    }
    for (place, lines) in senders.iter_mut().enumerate() {
        if read(lines, &mut line)? {
            return Err(Failure::disagreement(
                format!(
                    "member {member} delivered only {} messages of member {}: line {} of {} is missing",
                    sent[place],
                    place + 1,
                    sent[place] + 1,
                    expected.input.name
                ),
                REPORT,
            ));
        }
    }
    Ok((log.records(), log.digest()))
}

/// Rule 2 for a total order. Returns the number of records and the digest of `log`.
pub(super) fn against_first(
    longest: usize,
    (reference, first): (usize, impl Read),
    (member, log): (usize, impl Read),
) -> Result<(u64, String), Failure> {
    let (mut first, mut log) = (LogReader::new(first, longest), LogReader::new(log, longest));
    let (mut expected, mut payload) = (Vec::new(), Vec::new());
    loop {
        let place = first.records();
        let one = first.next_into(&mut expected).map_err(|e| unreadable(reference, e))?;
        let other = log.next_into(&mut payload).map_err(|e| unreadable(member, e))?;
        if one != other || payload != expected {
            let shown = |header: Option<Header>| {
                header.map_or("nothing".to_string(), |h| {
                    format!("sequence number {} of member {} ({} bytes)", h.seq, h.sender, h.length)
                })
            };
            return Err(Failure::disagreement(
                format!(
                    "members {reference} and {member} part at record {place}: member {reference} delivered {}, member {member} {}",
                    shown(one),
                    shown(other)
                ),
                REPORT,
            ));
        }
        if one.is_none() {
            return Ok((log.records(), log.digest()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::log::LogWriter;
    use super::*;

    struct Case {
        directory: tempfile::TempDir,
        input: Input,
    }

    impl Case {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("in");
            std::fs::write(&path, b"a\n\nc").unwrap();
            let input = Input::open(Some(&path)).unwrap();
            Self { directory, input }
        }

        /// Judges logs given as lists of (sender, payload).
        fn judge(&self, total_order: bool, logs: &[&[(u32, &str)]]) -> Result<Verdict, Failure> {
            let mut paths = Vec::new();
            let mut digests = Vec::new();
            for (index, records) in logs.iter().enumerate() {
                let path = self.directory.path().join(format!("log{index}"));
                let mut writer = LogWriter::new(File::create(&path).unwrap());
                for (seq, (sender, payload)) in (0..).zip(*records) {
                    writer.append(seq, *sender, payload.as_bytes()).unwrap();
                }
                writer.flush().unwrap();
                paths.push(path);
                digests.push(writer.digest());
            }
            let members = u32::try_from(logs.len()).unwrap();
            let expected = Expected { input: &self.input, longest: 10, members, total_order };
            verify(&expected, &paths.iter().map(|p| p.as_path()).collect::<Vec<_>>(), &digests)
        }
    }

    const GOOD: &[(u32, &str)] = &[(1, "a"), (2, "a"), (2, ""), (1, ""), (1, "c"), (2, "c")];
    const OTHER: &[(u32, &str)] = &[(1, "a"), (1, ""), (2, "a"), (2, ""), (1, "c"), (2, "c")];

    #[test]
    fn one_complete_sequence_passes() {
        let case = Case::new();
        assert_eq!(
            case.judge(true, &[GOOD, GOOD]).unwrap(),
            Verdict { identical: true, records: vec![6, 6] }
        );
    }

    #[test]
    fn two_orders_pass_only_where_no_order_is_promised() {
        let case = Case::new();
        let refused = case.judge(true, &[GOOD, OTHER]).unwrap_err();
        assert!(refused.code() == 1 && refused.to_string().contains("part at record 1"), "{refused}");
        assert_eq!(
            case.judge(false, &[GOOD, OTHER]).unwrap(),
            Verdict { identical: false, records: vec![6, 6] }
        );
    }

    #[test]
    fn what_all_do_wrong_together_is_wrong() {
        let case = Case::new();
        let wrong: [(&str, &[(u32, &str)]); 5] = [
            ("is missing", &GOOD[..5]),
            ("is not line 2", &[(1, "a"), (1, "c"), (1, ""), (2, "a"), (2, ""), (2, "c")]),
            ("is not line 2", &[(1, "a"), (1, "a"), (1, ""), (1, "c"), (2, "a"), (2, ""), (2, "c")]),
            ("more messages of member 2", &[(2, "a"), (2, ""), (2, "c"), (2, "c")]),
            ("whom there is not", &[(3, "a")]),
        ];
        for (reason, log) in wrong {
            let refused = case.judge(true, &[log, log]).unwrap_err();
            assert!(refused.code() == 1 && refused.to_string().contains(reason), "{reason}: {refused}");
        }
    }

    #[test]
    fn a_log_changed_after_it_was_written_is_seen() {
        let case = Case::new();
        case.judge(true, &[GOOD]).unwrap_err(); // one member: the second sender's lines are too many
        let path = case.directory.path().join("log");
        let mut writer = LogWriter::new(File::create(&path).unwrap());
        for (seq, line) in ["a", "", "c"].iter().enumerate() {
            writer.append(u64::try_from(seq).unwrap(), 1, line.as_bytes()).unwrap();
        }
        writer.flush().unwrap();
        let expected = Expected { input: &case.input, longest: 10, members: 1, total_order: true };
        assert!(verify(&expected, &[&path], &[writer.digest()]).is_ok());
        let refused = verify(&expected, &[&path], &["0".repeat(64)]).unwrap_err();
        assert!(refused.to_string().contains("its log has"), "{refused}");
    }
}
