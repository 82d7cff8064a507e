//! One member of a group of three: one thread that drives the library, its connections and, where it leads, the client.

use std::net::{SocketAddr, TcpListener};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::transport::connect;
use super::{Library, Rival, rival};
use crate::failure::Failure;
use crate::figures::{Latencies, Quantiles, as_f64};

/// Between two ticks of the library's clock.
const TICK: Duration = Duration::from_millis(10);

/// How long a group may be without a leader at the start, and how long the leader waits for the others at the end.
const PATIENCE: Duration = Duration::from_secs(20);

/// Every word of a payload but the first, which says which message it is.
const FILLING: u64 = 0x5a5a_5a5a_5a5a_5a5a;

/// The last entry, by which all know that it is over. Shorter than any other.
const END: &[u8] = b"end";

/// What a member is to do.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) struct Task {
    pub(crate) library: Library,
    /// From 1.
    pub(crate) me: u64,
    /// Bytes of a message, at least eight.
    pub(crate) size: usize,
    /// As many messages may be under way.
    pub(crate) window: u64,
    pub(crate) warmup: Duration,
    pub(crate) duration: Duration,
    /// It is over after so many messages even if the time isn't.
    pub(crate) most: u64,
}

/// What a member saw.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) struct Outcome {
    /// Messages, each in its place.
    pub(crate) applied: u64,
    /// Of the member that led.
    pub(crate) led: Option<Led>,
}

/// What the leader measured.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) struct Led {
    /// From proposal to application, if one was outstanding at a time.
    pub(crate) latency_us: Option<Quantiles>,
    pub(crate) msgs_per_s: f64,
}

/// What was committed, as this member learns it.
struct Applied {
    size: usize,
    count: u64,
    ended: bool,
    wrong: Option<String>,
}

impl Applied {
    /// Reads all of the entry, as an application would.
    fn take(&mut self, payload: &[u8]) {
        if payload == END {
            self.ended = true;
            return;
        }
        let (words, rest) = payload.as_chunks::<8>();
        let sum = words.iter().fold(0_u64, |sum, word| sum.wrapping_add(u64::from_le_bytes(*word)));
        let expected = FILLING.wrapping_mul((self.size / 8 - 1) as u64).wrapping_add(self.count);
        let filled = rest.iter().all(|byte| *byte == FILLING.to_le_bytes()[0]);
        if payload.len() != self.size || sum != expected || !filled {
            self.wrong.get_or_insert_with(|| format!("entry {} is another, or has other bytes", self.count));
        }
        self.count += 1;
    }
}

/// The client at the leader: a closed loop with a window.
struct Client {
    task: Task,
    proposed: u64,
    since: Option<Instant>,
    /// Of the last proposal, for a window of one.
    at: Instant,
    latencies: Latencies,
    /// When and how many were applied at the ends of the measured time.
    first: Option<(Instant, u64)>,
    last: Option<(Instant, u64)>,
    ended: bool,
}

impl Client {
    fn new(task: Task) -> Result<Self, Failure> {
        Ok(Self {
            task,
            proposed: 0,
            since: None,
            at: Instant::now(),
            latencies: Latencies::new()?,
            first: None,
            last: None,
            ended: false,
        })
    }

    /// Proposes what the window has room for. Returns whether that was anything.
    fn propose(&mut self, rival: &mut dyn Rival, applied: u64, now: Instant) -> Result<bool, Failure> {
        if self.ended {
            return Ok(false);
        }
        let since = match self.since {
            Some(since) => since,
            None if rival.leads() => *self.since.insert(now),
            None => return Ok(false),
        };
        if !rival.leads() {
            return Err(Failure::run(
                "another member became the leader in the midst of it",
                "that happens when the machine stops a process for long: run it again, on a machine with less to do",
            ));
        }
        let from = since + self.task.warmup;
        if self.first.is_none() && now >= from {
            self.first = Some((now, applied));
        }
        let until = from + self.task.duration;
        if self.last.is_none() && now >= until {
            self.last = Some((now, applied));
        }
        if self.last.is_some() || self.proposed == self.task.most {
            rival.propose(Bytes::from_static(END))?;
            self.ended = true;
            return Ok(true);
        }
        let mut any = false;
        while self.proposed - applied < self.task.window && self.proposed < self.task.most {
            if self.task.window == 1 {
                self.at = Instant::now();
            }
            let mut payload = vec![FILLING.to_le_bytes()[0]; self.task.size];
            payload[..8].copy_from_slice(&self.proposed.to_le_bytes());
            rival.propose(payload.into())?;
            self.proposed += 1;
            any = true;
        }
        Ok(any)
    }

    /// The outstanding message was applied.
    fn came_back(&mut self) {
        if self.first.is_some() && self.last.is_none() {
            self.latencies.record(self.at.elapsed());
        }
    }

    fn led(&self) -> Option<Led> {
        self.since?;
        let rate = match (self.first, self.last) {
            (Some((from, first)), Some((until, last))) => {
                as_f64(last - first) / (until - from).as_secs_f64().max(1e-9)
            }
            _ => 0.0, // the number of messages, not the time, was the end
        };
        let latency_us = (self.task.window == 1).then(|| self.latencies.quantiles());
        Some(Led { latency_us, msgs_per_s: rate })
    }
}

/// Takes part until the last entry.
///
/// # Errors
/// The others don't come or go too early, no leader comes about or another one does, or an entry isn't what it should be.
pub(crate) fn take_part(
    task: &Task,
    listener: &TcpListener,
    addresses: &[SocketAddr],
) -> Result<Outcome, Failure> {
    let socket = |cause| Failure::socket("talk with the other members", cause);
    let me = usize::try_from(task.me).ok().and_then(|me| me.checked_sub(1));
    let me = me.filter(|me| *me < addresses.len() && task.size >= 8 && task.window > 0);
    let me = me.ok_or_else(|| Failure::bug("a member's task makes no sense"))?;
    let mut links = connect(listener, addresses, me).map_err(socket)?;
    let mut rival = rival(task.library, task.me, addresses.len() as u64)?;
    let mut applied = Applied { size: task.size, count: 0, ended: false, wrong: None };
    let mut client = Client::new(*task)?;
    let started = Instant::now();
    let mut next_tick = started + TICK;
    let mut since_end: Option<Instant> = None;
    loop {
        let now = Instant::now();
        let mut any = false;
        if now >= next_tick {
            rival.tick();
            next_tick = now + TICK;
        }
        for link in links.iter_mut().flatten() {
            any |= link.fill().map_err(socket)?;
            while let Some(message) = link.message().map_err(socket)? {
                rival.on_message(message)?;
            }
        }
        any |= client.propose(&mut *rival, applied.count, now)?;
        let before = applied.count;
        let mut post = |to: u64, encode: &mut dyn FnMut(&mut Vec<u8>) -> std::io::Result<()>| {
            let place = usize::try_from(to).unwrap_or(0).wrapping_sub(1);
            match links.get_mut(place).and_then(Option::as_mut) {
                Some(link) => link.push(encode),
                None => Ok(()), // to nobody, or to itself, which no library needs
            }
        };
        any |= rival.poll(&mut post, &mut |payload| applied.take(payload))?;
        if task.window == 1 && applied.count > before {
            client.came_back();
        }
        for link in links.iter_mut().flatten() {
            any |= link.flush().map_err(socket)?;
        }
        if let Some(wrong) = applied.wrong.take() {
            return Err(Failure::bug(wrong));
        }
        let open = links.iter().flatten().filter(|link| !link.is_closed()).count();
        if applied.ended {
            let since = *since_end.get_or_insert(now);
            // The leader stays until the others know, too; they go at once, with nothing more to say.
            let done = client.since.is_none() || open == 0;
            if done && links.iter().flatten().all(|link| link.waiting() == 0 || link.is_closed()) {
                return Ok(Outcome { applied: applied.count, led: client.led() });
            }
            if now - since > PATIENCE {
                return Err(Failure::run("the other members did not come to the end", "run it again"));
            }
        } else if open == 0 {
            return Err(Failure::run("the other members ended too early", "see what they say"));
        }
        if client.since.is_none() && applied.count == 0 && now - started > PATIENCE {
            return Err(Failure::run(
                "the group came to nothing: no leader was found in time",
                "run it again, on a machine with less to do",
            ));
        }
        if !any {
            thread::yield_now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three members in three threads, of which each checks what it applies.
    fn group(library: Library, size: usize, window: u64, most: u64) -> Vec<Outcome> {
        let listeners = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let addresses = listeners.each_ref().map(|it| it.local_addr().unwrap());
        let members: Vec<_> = (1..)
            .zip(listeners)
            .map(|(me, listener)| {
                let task = Task {
                    library,
                    me,
                    size,
                    window,
                    warmup: Duration::ZERO,
                    duration: Duration::from_secs(1000),
                    most,
                };
                thread::spawn(move || take_part(&task, &listener, &addresses))
            })
            .collect();
        members.into_iter().map(|member| member.join().unwrap().unwrap()).collect()
    }

    #[test]
    fn all_members_apply_all_entries_in_one_order() {
        for library in [Library::Omnipaxos, Library::Raft] {
            for (size, window, most) in [(64, 1, 200), (64, 256, 1000), (10 << 10, 16, 100)] {
                let outcomes = group(library, size, window, most);
                assert!(outcomes.iter().all(|outcome| outcome.applied == most), "{library:?}: {outcomes:?}");
                assert_eq!(outcomes.iter().filter(|outcome| outcome.led.is_some()).count(), 1);
            }
        }
    }

    #[test]
    fn logs_are_trimmed_and_nothing_is_lost() {
        for library in [Library::Omnipaxos, Library::Raft] {
            let most = super::super::TRIM_EVERY * 10;
            assert!(group(library, 8, 1024, most).iter().all(|outcome| outcome.applied == most));
        }
    }

    #[test]
    fn an_entry_in_the_wrong_place_is_found() {
        let mut applied = Applied { size: 16, count: 1, ended: false, wrong: None };
        applied.take(&[0x5a; 16]);
        assert!(applied.wrong.is_some());
    }
}
