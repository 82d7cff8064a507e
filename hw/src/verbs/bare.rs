//! Two queue pairs and two pieces of memory: what the verbs do without a fabric, for the benchmarks to stand beside it.
//!
//! A round trip as one writes it by hand: the message is one RDMA WRITE, inline where the device allows, of which one in many is
//! signalled; the other looks at the last word of its memory until that changes, and writes back. There is no completion to wait for, no event,
//! no system call but what the device's library makes. It is the fabric's own calls that open, connect and post, so that what
//! differs is what the fabric adds.
//!
//! A message is whole words, all of them the same *stamp*, which differs from that of the message before; the word that is looked at is the last. That a
//! device writes a message's bytes in ascending order is what all such programs trust in (`ib_write_lat` does); nothing but a benchmark should.
//!
//! The two ends are told of each other by whoever uses this: [`End::hello`] is to be carried to the other, [`End::connect`] takes what came
//! from there, and neither may write before both have connected, nor go before both have ended.

use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::sync::Arc;

use consort_dataplane::memory::{Mirror, Segment, WORD};
use rustix::event::{PollFd, PollFlags, poll};

use super::choose::{self, Outlet};
use super::hello::{self, ENDS, Ends};
use super::options::{VerbsError, VerbsOptions};
use super::queue::{Channel, Completion, Depths, Pair, Requests, Source, Write};
use super::registrable;
use super::setup::RECEIVES;

/// Writes under way, at most.
const DEPTH: usize = 64;

/// One write in so many is signalled.
const SIGNAL_EVERY: usize = DEPTH / 4;

/// Bytes that one end tells the other.
pub const HELLO: usize = ENDS;

/// A device, opened as the fabric opens it.
pub struct Device {
    outlet: Outlet,
    channel: Arc<Channel>,
    options: VerbsOptions,
}

impl Device {
    /// The device that a node with the address `listen` would take.
    ///
    /// # Errors
    /// As those of [`VerbsFabric::new`](super::VerbsFabric::new).
    pub fn open(listen: IpAddr) -> Result<Self, VerbsError> {
        let options = VerbsOptions { listen, ..VerbsOptions::default() };
        let outlet = choose::outlet(&options)?;
        let channel = Channel::new(&outlet.context)
            .map_err(|cause| VerbsError::Machine { what: "completion channel", cause })?;
        Ok(Self { outlet, channel, options })
    }

    /// One end of a connection that is yet to be made. It writes messages of `out` bytes and takes such of `into` bytes, both rounded up to
    /// whole words, of which there is one at least; at the other end it is the other way round.
    ///
    /// # Errors
    /// There is no memory, or the device has no room.
    pub fn end(&self, out: usize, into: usize) -> io::Result<End> {
        let [out, into] = [out, into].map(|bytes| bytes.max(1).next_multiple_of(WORD));
        let bytes = out.max(into);
        let (source, target) = (registrable(bytes)?, registrable(bytes)?);
        let limits = self.outlet.limits;
        let sends = DEPTH.min(limits.queue_depth).max(SIGNAL_EVERY);
        let depths = Depths { sends, receives: RECEIVES, inline: self.options.inline_bytes };
        let pair = Pair::new(&self.channel, (&source, &source, &target), depths)?;
        let sequence = hello::first_sequence().map_err(|cause| io::Error::other(cause.to_string()))?;
        let write = Write { source: Source::Segment, from: 0..out, to: 0, signalled: false, rings: false };
        Ok(End {
            ends: Ends::of(&self.outlet, &pair, sequence),
            pair,
            source,
            target: target.mirror(),
            last: into - WORD,
            write,
            sends,
            posted: 0,
            arrived: 0,
            requests: Requests::default(),
            found: Vec::new(),
        })
    }

    /// Connects an end to the other, whose [`End::hello`] this is. From then on the other may write.
    ///
    /// # Errors
    /// The hello makes no sense, or there is no way to the other.
    pub fn connect(&self, end: &mut End, other: &[u8; HELLO]) -> io::Result<()> {
        let other = Ends::decode(other).map_err(io::Error::other)?;
        let sequence = end.ends.peer.sequence;
        let path = other.path(&self.outlet, &self.options, sequence).map_err(io::Error::other)?;
        end.pair.connect(other.peer, &path, RECEIVES)
    }

    /// Sleeps until one of the ends is woken ([`End::write`]), or has done so with the other. Returns at once if something has come since the
    /// completions were last taken.
    ///
    /// # Errors
    /// A connection failed.
    pub fn sleep<'a>(&self, ends: impl Iterator<Item = &'a mut End>) -> io::Result<()> {
        let mut news = false;
        for end in ends {
            end.pair.arm();
            news |= end.take_completions()?;
        }
        if !news {
            // An interrupted sleep only costs another look.
            let _ = poll(&mut [PollFd::new(&self.channel.as_fd(), PollFlags::IN)], None);
        }
        self.channel.quiet();
        Ok(())
    }
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Device").field("outlet", &self.outlet).finish_non_exhaustive()
    }
}

/// One end of a connection: what is written from here, and the memory into which the other writes.
pub struct End {
    pair: Pair,
    ends: Ends,
    source: Segment,
    target: Mirror,
    /// The last word of what comes.
    last: usize,
    write: Write,
    sends: usize,
    /// Writes posted and arrived, as far as is known, modulo 2³².
    posted: u32,
    arrived: u32,
    requests: Requests,
    found: Vec<Completion>,
}

impl End {
    /// What the other end must know.
    pub fn hello(&self) -> [u8; HELLO] {
        self.ends.encode()
    }

    /// Fills a message with `stamp` and writes it into the other's memory. With `wakes` it ends the other's [sleep](Device::sleep).
    ///
    /// The last message must have been answered: the device may still read it otherwise.
    ///
    /// # Errors
    /// The connection failed.
    #[inline]
    pub fn write(&mut self, stamp: u64, wakes: bool) -> io::Result<()> {
        self.put(stamp, self.posted.wrapping_add(1).is_multiple_of(SIGNAL_EVERY as u32), wakes)
    }

    /// The same for the last message, and waits until it has arrived.
    ///
    /// # Errors
    /// The connection failed.
    pub fn finish(&mut self, stamp: u64, wakes: bool) -> io::Result<()> {
        self.put(stamp, true, wakes)?;
        while self.under_way() > 0 {
            self.take_completions()?;
        }
        Ok(())
    }

    #[inline]
    fn put(&mut self, stamp: u64, signalled: bool, wakes: bool) -> io::Result<()> {
        // Who is woken has receives for a few wakes, and posts them anew with its answers.
        if wakes {
            self.take_completions()?;
        }
        while self.under_way() >= self.sends {
            self.take_completions()?;
        }
        for at in self.write.from.clone().step_by(WORD) {
            self.source.store(at, stamp);
        }
        self.write.signalled = signalled;
        self.write.rings = wakes;
        self.posted = self.posted.wrapping_add(1);
        self.pair.post(std::slice::from_ref(&self.write), &mut self.requests)
    }

    fn under_way(&self) -> usize {
        self.posted.wrapping_sub(self.arrived) as usize
    }

    /// The stamp of the last message that has come; 0 before the first.
    #[inline]
    pub fn stamp(&self) -> u64 {
        self.target.load(self.last)
    }

    /// Reads the whole of the last message that has come: the wrapping sum of its words.
    pub fn sum(&self) -> u64 {
        (0..=self.last).step_by(WORD).fold(0, |sum: u64, at| sum.wrapping_add(self.target.load(at)))
    }

    /// Takes completions; returns whether there were any. Whoever waits in vain for long asks this why. Does not block.
    ///
    /// # Errors
    /// The connection failed.
    pub fn take_completions(&mut self) -> io::Result<bool> {
        self.found.clear();
        self.pair.completions(&mut self.found);
        for completion in &self.found {
            match completion {
                Completion::Written(count) => self.arrived = *count,
                Completion::Rung => self.pair.expect(1)?,
                Completion::Failed(why) => return Err(io::Error::other(why.clone())),
            }
        }
        Ok(!self.found.is_empty())
    }
}

impl std::fmt::Debug for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("End").field("ends", &self.ends).field("posted", &self.posted).finish_non_exhaustive()
    }
}
