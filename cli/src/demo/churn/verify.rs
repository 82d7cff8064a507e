//! Whether a group that lost and gained members is still one. As for the plain demo, no member's word is trusted: logs are
//! read from the disk, and the input from where it came.
//!
//! 1. The log of one who lived is held against the input: the records are counted from 0 without a gap, and those of each
//!    sender are the lines of the input in their order, the first after the last again. Who lived has sent the input whole
//!    so many times as it says; who was killed, as far as it came.
//! 2. The logs of all others who lived are the same bytes, those of joiners included: what they had not seen themselves they
//!    have from another's log.
//! 3. The log of one that was killed is a beginning of the same bytes. Its last record may be torn: the kill may have come
//!    in the midst of a write.
//! 4. The digest that each computed while it delivered is that of its log.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use crate::demo::input::{Input, Lines};
use crate::demo::log::{Header, LogReader};
use crate::demo::verify::{REPORT, against_first, same_digest, unreadable};
use crate::failure::Failure;

/// What the members are held to.
pub(super) struct Expected<'a> {
    pub(super) input: &'a Input,
    pub(super) lines: u64,
    pub(super) longest: usize,
}

/// A member that lived to the end: its log, and what it says.
pub(super) struct Lived<'a> {
    pub(super) member: u32,
    pub(super) log: &'a Path,
    pub(super) digest: &'a str,
    /// How often it sent the whole input.
    pub(super) passes: u64,
}

/// A member that was killed.
pub(super) struct Killed<'a> {
    pub(super) member: u32,
    pub(super) log: &'a Path,
}

/// The one sequence.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Messages in it.
    pub(super) records: u64,
    /// How many of them each member sent.
    pub(super) sent: BTreeMap<u32, u64>,
    /// Bytes in the log of each that was killed.
    pub(super) killed: Vec<u64>,
}

/// Judges. `lived` is not empty.
///
/// # Errors
/// [`Failure::Disagreement`] with the first place where something is not as it should be, or a file can't be read.
pub(super) fn verify(
    expected: &Expected<'_>,
    lived: &[Lived<'_>],
    killed: &[Killed<'_>],
) -> Result<Verdict, Failure> {
    let open = |log: &Path| File::open(log).map_err(|cause| Failure::file("open", log, cause));
    let mut verdict = Verdict { records: 0, sent: BTreeMap::new(), killed: Vec::new() };
    let first = &lived[0];
    for (place, one) in lived.iter().enumerate() {
        let found = if place == 0 {
            let found;
            (verdict.records, found, verdict.sent) =
                against_input(expected, open(one.log)?, first.member, lived, killed)?;
            found
        } else {
            let reference = (first.member as usize, open(first.log)?);
            against_first(expected.longest, reference, (one.member as usize, open(one.log)?))?.1
        };
        same_digest(one.member as usize, one.log, one.digest, &found)?;
    }
    for one in killed {
        verdict.killed.push(beginning(open(first.log)?, first.member, open(one.log)?, one.member)?);
    }
    Ok(verdict)
}

/// What a sender's records are held against: the input, over and over.
struct Over<'a> {
    input: &'a Input,
    lines: Lines<File>,
    sent: u64,
}

impl<'a> Over<'a> {
    fn new(input: &'a Input) -> Result<Self, Failure> {
        Ok(Self { input, lines: input.lines()?, sent: 0 })
    }

    fn next_into(&mut self, line: &mut Vec<u8>) -> Result<(), Failure> {
        let unread = |cause| Failure::stream("read", &self.input.name, cause);
        if !self.lines.next_into(line).map_err(unread)? {
            self.lines = self.input.lines()?;
            self.lines.next_into(line).map_err(unread)?;
        }
        self.sent += 1;
        Ok(())
    }
}

/// Rule 1. Returns the number of records, the digest of the log, and how many each sent.
fn against_input(
    expected: &Expected<'_>,
    log: impl Read,
    member: u32,
    lived: &[Lived<'_>],
    killed: &[Killed<'_>],
) -> Result<(u64, String, BTreeMap<u32, u64>), Failure> {
    let wrong =
        |what: String| Err(Failure::disagreement(format!("member {member} delivered {what}"), REPORT));
    let all = lived.iter().map(|one| one.member).chain(killed.iter().map(|one| one.member));
    let senders: Result<BTreeMap<u32, Over<'_>>, Failure> =
        all.map(|id| Ok((id, Over::new(expected.input)?))).collect();
    let mut senders = senders?;
    let mut log = LogReader::new(log, expected.longest);
    let (mut payload, mut line) = (Vec::new(), Vec::new());
    loop {
        let due = log.records();
        let header = log.next_into(&mut payload).map_err(|e| unreadable(member as usize, e))?;
        let Some(Header { seq, sender, .. }) = header else { break };
        if seq != due {
            return wrong(format!("record {seq} where record {due} was next"));
        }
        let Some(over) = senders.get_mut(&sender) else {
            return wrong(format!("a message of member {sender}, whom there is not"));
        };
        over.next_into(&mut line)?;
        if payload != line {
            let name = &expected.input.name;
            let (number, nth) = (over.sent, (over.sent - 1) % expected.lines + 1);
            return wrong(format!(
                "as message {number} of member {sender} what is not line {nth} of {name} (record {seq})"
            ));
        }
    }
    for one in lived {
        let sent = senders.get(&one.member).map_or(0, |over| over.sent);
        if sent != one.passes * expected.lines {
            return wrong(format!(
                "{sent} messages of member {}, which sent the {} lines of {} {} times",
                one.member, expected.lines, expected.input.name, one.passes
            ));
        }
    }
    let sent = senders.into_iter().map(|(id, over)| (id, over.sent)).collect();
    Ok((log.records(), log.digest(), sent))
}

/// Rule 3. Returns the bytes of the beginning.
fn beginning(whole: impl Read, of: u32, part: impl Read, member: u32) -> Result<u64, Failure> {
    let unread =
        |member: u32| move |cause| Failure::stream("read", format!("the log of member {member}"), cause);
    let (mut whole, mut part) = (BufReader::new(whole), BufReader::new(part));
    let (mut piece, mut other) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    let mut at = 0_u64;
    loop {
        let length = part.read(&mut piece).map_err(unread(member))?;
        if length == 0 {
            return Ok(at);
        }
        let wanted = u64::try_from(length).unwrap_or(u64::MAX);
        other.clear();
        whole.by_ref().take(wanted).read_to_end(&mut other).map_err(unread(of))?;
        if let Some(differs) = (0..length).find(|&byte| other.get(byte) != Some(&piece[byte])) {
            let byte = at + u64::try_from(differs).unwrap_or(0);
            return Err(Failure::disagreement(
                format!(
                    "what member {member} delivered before it was killed is no beginning of what the others delivered: \
                     its log parts from that of member {of} at byte {byte}"
                ),
                REPORT,
            ));
        }
        at += wanted;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::log::LogWriter;

    /// What becomes of the logs before they are judged.
    type Tamper = fn(&mut [Vec<Record>; 3], &mut Vec<u8>);
    type Record = (u64, u32, &'static str);

    /// Members 2 and 3 lived, 4 joined, 1 was killed. The input is three lines; 2 sent it twice.
    fn judge(tamper: Tamper) -> Result<Verdict, Failure> {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        std::fs::write(path("in"), b"a\n\nc").unwrap();
        let input = Input::open(Some(&path("in"))).unwrap();
        let messages = [
            (1, "a"),
            (2, "a"),
            (3, "a"),
            (2, ""),
            (1, ""),
            (2, "c"),
            (3, ""),
            (4, "a"),
            (2, "a"),
            (2, ""),
            (4, ""),
            (3, "c"),
            (2, "c"),
            (4, "c"),
        ];
        let sequence: Vec<Record> =
            (0..).zip(messages).map(|(seq, (sender, payload))| (seq, sender, payload)).collect();
        let mut logs = [sequence.clone(), sequence.clone(), sequence];
        let bytes = |records: &[Record]| {
            let mut bytes = Vec::new();
            let mut writer = LogWriter::new(&mut bytes);
            records.iter().for_each(|it| writer.append(it.0, it.1, it.2.as_bytes()).unwrap());
            writer.flush().unwrap();
            drop(writer);
            bytes
        };
        // Up to its fourth record, and a torn fifth.
        let mut victim = bytes(&logs[0]);
        victim.truncate(bytes(&logs[0][..4]).len() + 3);
        tamper(&mut logs, &mut victim);
        std::fs::write(path("1"), victim).unwrap();
        let mut digests = Vec::new();
        for (member, records) in (2..).zip(&logs) {
            let bytes = bytes(records);
            std::fs::write(path(&member.to_string()), &bytes).unwrap();
            digests.push(blake3::hash(&bytes).to_hex().to_string());
        }
        let paths: Vec<_> = (1..=4).map(|member| path(&member.to_string())).collect();
        let lived: Vec<_> = (2..)
            .zip(&paths[1..])
            .zip(&digests)
            .zip([2, 1, 1])
            .map(|(((member, log), digest), passes)| Lived { member, log, digest, passes })
            .collect();
        let expected = Expected { input: &input, lines: 3, longest: 10 };
        verify(&expected, &lived, &[Killed { member: 1, log: &paths[0] }])
    }

    #[test]
    fn a_sequence_over_a_crash_and_a_join_passes() {
        let verdict = judge(|_, _| {}).unwrap();
        assert_eq!((verdict.records, verdict.killed.len()), (14, 1));
        assert_eq!(verdict.sent, BTreeMap::from([(1, 2), (2, 6), (3, 3), (4, 3)]));
        judge(|_, victim| victim.clear()).unwrap(); // killed before it had written anything
    }

    /// The same to all logs, as if the group had done it, and numbered anew, so that nothing but the messages tells.
    fn all(logs: &mut [Vec<Record>; 3], change: impl Fn(&mut Vec<Record>)) {
        for log in logs {
            change(log);
            (0..).zip(log).for_each(|(seq, record)| record.0 = seq);
        }
    }

    #[test]
    fn what_was_tampered_with_is_found() {
        let tampered: [(&str, Tamper); 14] = [
            // One member's log.
            ("members 2 and 3 part at record 5", |logs, _| drop(logs[1].drain(5..6))),
            ("members 2 and 4 part at record 2", |logs, _| logs[2].swap(2, 3)),
            ("members 2 and 4 part at record 7", |logs, _| logs[2].insert(7, (7, 3, ""))),
            ("members 2 and 4 part at record 0", |logs, _| drop(logs[2].drain(..5))),
            ("members 2 and 3 part at record 13", |logs, _| logs[1].truncate(13)),
            // The reference alone: its numbers tell.
            ("record 6 where record 5 was next", |logs, _| drop(logs[0].drain(5..6))),
            ("record 3 where record 2 was next", |logs, _| logs[0].swap(2, 3)),
            // All of them together.
            ("message 3 of member 2 what is not line 3", |logs, _| all(logs, |log| drop(log.drain(5..6)))),
            ("message 2 of member 2 what is not line 2", |logs, _| {
                all(logs, |log| log.insert(2, (0, 2, "a")));
            }),
            ("message 2 of member 2 what is not line 2", |logs, _| all(logs, |log| log.swap(3, 5))),
            ("2 messages of member 4", |logs, _| all(logs, |log| log.truncate(13))),
            ("message 2 of member 1 what is not line 2", |logs, victim| {
                victim.clear();
                all(logs, |log| log[4].2 = "c");
            }),
            ("whom there is not", |logs, _| all(logs, |log| log[7].1 = 5)),
            // What the killed one delivered.
            ("no beginning of what the others delivered", |_, victim| victim[5] ^= 1),
        ];
        for (reason, tamper) in tampered {
            let refused = judge(tamper).expect_err(reason);
            assert!(refused.code() == 1 && refused.to_string().contains(reason), "{reason}: {refused}");
        }
    }

    #[test]
    fn a_killed_members_log_that_goes_on_beyond_the_others_is_found() {
        let refused = judge(|logs, victim| {
            victim.clear();
            for (seq, sender, payload) in logs[0].iter().chain(&[(14, 1, "c")]) {
                victim.extend(format!("{seq} {sender} {}\n{payload}\n", payload.len()).bytes());
            }
        });
        assert!(refused.unwrap_err().to_string().contains("no beginning"));
    }
}
