//! Times of messages, taken by several processes and set against each other later.
//!
//! Every member notes when it delivered each message of each sender, and a sender notes when it sent each of its own,
//! all on the machine's monotonic clock. Message numbers need not travel with the messages: all members deliver a
//! sender's messages in its order and lose none, so the n-th delivered is the n-th sent.
//!
//! A [`Series`] holds times of every `stride`-th message only, in bounded memory: when it is full it drops every other one
//! and doubles the stride. That depends on nothing but the count, so that after the same number of messages all members
//! hold times of the same messages.
//!
//! As a file: for each series the words `stride`, `count`, number of times, times; little-endian.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};

/// The most times that a series holds: 32 MiB.
const MOST: usize = 1 << 22;

/// Times of a sender's messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Series {
    stride: u64,
    count: u64,
    most: usize,
    times: Vec<u64>,
}

impl Series {
    /// An empty series that begins with every `stride`-th message; a power of two.
    pub(crate) fn new(stride: u64) -> Self {
        Self::bounded(stride, MOST)
    }

    fn bounded(stride: u64, most: usize) -> Self {
        debug_assert!(stride.is_power_of_two() && most.is_power_of_two());
        // Reserved whole, so that no message waits for it to move.
        Self { stride, count: 0, most, times: Vec::with_capacity(most) }
    }

    /// One more message; `time` is asked for only if it is held.
    #[inline]
    pub(crate) fn push(&mut self, time: impl FnOnce() -> u64) {
        if self.count & (self.stride - 1) == 0 {
            if self.times.len() == self.most {
                self.thin();
            }
            if self.count & (self.stride - 1) == 0 {
                self.times.push(time());
            }
        }
        self.count += 1;
    }

    fn thin(&mut self) {
        let mut index = 0_usize;
        self.times.retain(|_| {
            index += 1;
            index % 2 == 1
        });
        self.stride *= 2;
    }

    /// How many messages there were.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }
}

/// Writes all series of a member to its file of samples.
///
/// # Errors
/// The file's.
pub(crate) fn write<'a>(to: &File, all: impl IntoIterator<Item = &'a Series>) -> io::Result<()> {
    let mut to = BufWriter::with_capacity(1 << 20, to);
    for series in all {
        for word in [series.stride, series.count, series.times.len() as u64].iter().chain(&series.times) {
            to.write_all(&word.to_le_bytes())?;
        }
    }
    to.flush()
}

/// Reads what [`write()`] wrote.
///
/// # Errors
/// The file's, or it holds something else.
pub(crate) fn read(from: &File) -> io::Result<Vec<Series>> {
    let mut from = BufReader::with_capacity(1 << 20, from);
    let mut all = Vec::new();
    while let Some(stride) = word(&mut from)? {
        let mut next = || word(&mut from)?.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof));
        let (count, length) = (next()?, next()?);
        let length = usize::try_from(length).ok().filter(|&length| length <= MOST);
        let length = length.ok_or_else(|| io::Error::other("no series is so long"))?;
        let times = (0..length).map(|_| next()).collect::<io::Result<_>>()?;
        all.push(Series { stride, count, most: MOST, times });
    }
    Ok(all)
}

fn word(from: &mut impl Read) -> io::Result<Option<u64>> {
    let mut bytes = [0; 8];
    match from.read_exact(&mut bytes) {
        Ok(()) => Ok(Some(u64::from_le_bytes(bytes))),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(e) => Err(e),
    }
}

/// The two latencies of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Latency {
    /// From send to delivery at the sender.
    pub(crate) own: u64,
    /// From send to delivery at the member where it was last.
    pub(crate) last: u64,
}

/// Sets the times of one sender's messages against each other: `sent` by the sender, `own` delivered by the sender,
/// `all` delivered by each member. Messages sent outside `window` are left out.
///
/// # Errors
/// The series are not of the same messages.
pub(crate) fn merge(
    sent: &Series,
    own: &Series,
    all: &[&Series],
    window: std::ops::Range<u64>,
) -> Result<Vec<Latency>, String> {
    for series in all.iter().chain([&own]) {
        if (series.count, series.stride, series.times.len()) != (sent.count, sent.stride, sent.times.len()) {
            return Err(format!("{} messages were sent, {} delivered", sent.count, series.count));
        }
    }
    Ok(sent
        .times
        .iter()
        .enumerate()
        .filter(|(_, at)| window.contains(at))
        .map(|(index, &at)| Latency {
            own: own.times[index].saturating_sub(at),
            last: all.iter().map(|series| series.times[index]).max().unwrap_or(at).saturating_sub(at),
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(stride: u64, most: usize, times: impl IntoIterator<Item = u64>) -> Series {
        let mut series = Series::bounded(stride, most);
        for time in times {
            series.push(|| time);
        }
        series
    }

    #[test]
    fn a_full_series_holds_evenly_spaced_messages() {
        for count in 1..100 {
            let held = series(1, 8, 0..count);
            assert!(held.times.len() <= 8 && held.count() == count);
            let expected: Vec<u64> = (0..count).step_by(usize::try_from(held.stride).unwrap()).collect();
            assert_eq!(held.times, expected, "after {count}");
        }
        assert_eq!(series(4, 8, 0..10).times, [0, 4, 8]);
    }

    #[test]
    fn time_is_taken_only_where_it_is_held() {
        let mut taken = 0;
        let mut series = Series::bounded(8, 16);
        for _ in 0..64 {
            series.push(|| {
                taken += 1;
                0
            });
        }
        assert_eq!(taken, 8);
    }

    #[test]
    fn a_file_brings_back_what_was_written() {
        let all = [series(1, 8, 0..5), series(2, 8, [7; 40]), series(1, 8, [])];
        let mut file = tempfile::tempfile().unwrap();
        write(&file, &all).unwrap();
        io::Seek::rewind(&mut file).unwrap();
        let read = read(&file).unwrap();
        let facts = |s: &Series| (s.stride, s.count, s.times.clone());
        assert_eq!(read.iter().map(facts).collect::<Vec<_>>(), all.iter().map(facts).collect::<Vec<_>>());
    }

    #[test]
    fn a_file_of_something_else_is_refused() {
        let file = |bytes: &[u8]| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(bytes).unwrap();
            io::Seek::rewind(&mut file).unwrap();
            file
        };
        assert!(read(&file(&[1; 12])).is_err());
        assert!(read(&file(&[0xff; 24])).is_err());
        assert!(read(&file(&[])).unwrap().is_empty());
    }

    #[test]
    fn the_last_member_decides_and_the_window_cuts() {
        let sent = series(1, 8, [100, 200, 300, 400]);
        let own = series(1, 8, [110, 250, 310, 410]);
        let other = series(1, 8, [130, 220, 305, 499]);
        let merged = merge(&sent, &own, &[&own, &other], 200..400).unwrap();
        assert_eq!(merged, [Latency { own: 50, last: 50 }, Latency { own: 10, last: 10 }]);
        let all = merge(&sent, &own, &[&own, &other], 0..1000).unwrap();
        assert_eq!((all[0].last, all[3].last), (30, 99));
        let short = series(1, 8, [1, 2, 3]);
        assert!(merge(&sent, &own, &[&own, &short], 0..1000).is_err());
    }
}
