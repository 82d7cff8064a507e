//! The client at one host: sends, and checks all that is delivered.
//!
//! A message: `part: u32`, `kind: u32`, `number: u64`, then bytes that only fill it. The first host ends a part with a message; all are over
//! when they deliver it. What was sent before others knew of it is delivered in the next part, and left out there by its number.

use std::cell::RefCell;
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use super::cpg::Group;
use super::{Outcome, Phase};
use crate::failure::Failure;
use crate::figures::{Latencies, as_f64};
use crate::plan::MEMBERS;

const DATA: u32 = 0;
const END: u32 = 1;

/// So many bytes say which message it is.
const HEAD: usize = 16;

/// So many messages are sent between two looks at what came.
const BURST: u32 = 64;

/// As long nothing may be delivered.
const PATIENCE: Duration = Duration::from_secs(20);

/// What was delivered.
#[derive(Debug, Default)]
struct Inbox {
    part: u32,
    size: usize,
    total: u64,
    /// Of each host, from the first.
    counts: [u64; MEMBERS],
    ended: bool,
    wrong: Option<String>,
}

impl Inbox {
    fn take(&mut self, node: u32, message: &[u8]) {
        let word =
            |at: usize| message.get(at..at + 4).and_then(|it| it.try_into().ok()).map(u32::from_le_bytes);
        let (Some(part), Some(kind)) = (word(0), word(4)) else {
            self.wrong.get_or_insert_with(|| "Corosync delivered another's message".to_owned());
            return;
        };
        if part != self.part {
            return;
        }
        if kind == END {
            self.ended = true;
            return;
        }
        let number = message.get(8..HEAD).and_then(|it| it.try_into().ok()).map(u64::from_le_bytes);
        let count = usize::try_from(node).ok().and_then(|node| self.counts.get_mut(node.checked_sub(1)?));
        let filled = message.iter().skip(HEAD).fold(0, |sum: u64, byte| sum + u64::from(*byte));
        let expected = 0x5a * (self.size - HEAD) as u64;
        match count {
            Some(count) if number == Some(*count) && message.len() == self.size && filled == expected => {
                *count += 1;
            }
            _ => {
                self.wrong.get_or_insert_with(|| {
                    format!("Corosync delivered {number:?} of host {node} out of order")
                });
            }
        }
        self.total += 1;
    }
}

pub(super) struct Client {
    group: Group,
    inbox: Rc<RefCell<Inbox>>,
    number: usize,
}

impl Client {
    pub(super) fn join(number: usize) -> Result<Self, Failure> {
        let inbox = Rc::new(RefCell::new(Inbox::default()));
        let sink = Rc::clone(&inbox);
        let sink =
            Rc::new(RefCell::new(move |node: u32, message: &[u8]| sink.borrow_mut().take(node, message)));
        Ok(Self { group: Group::join("consort-peers", sink)?, inbox, number })
    }

    /// Whether so many are in the group.
    pub(super) fn sees(&mut self, members: usize) -> Result<bool, Failure> {
        self.group.dispatch()?;
        Ok(Group::members() == members)
    }

    /// Takes part until the first host's last message.
    pub(super) fn take_part(&mut self, phase: &Phase) -> Result<Outcome, Failure> {
        let size = phase.size.max(HEAD);
        *self.inbox.borrow_mut() = Inbox { part: phase.number, size, ..Inbox::default() };
        let mut message = vec![0x5a; size];
        message[..4].copy_from_slice(&phase.number.to_le_bytes());
        message[4..8].copy_from_slice(&DATA.to_le_bytes());
        let first_host = self.number == 1;
        let window = if phase.one_outstanding { 1 } else { u64::MAX };
        let sends = first_host || !phase.one_outstanding;
        let mut latencies = Latencies::new()?;
        let (mut sent, mut own) = (0_u64, 0_u64);
        let started = Instant::now();
        let (mut at, mut moved) = (started, started);
        let (mut first, mut last, mut end_sent) = (None, None, false);
        loop {
            let before = self.inbox.borrow().total;
            let mut any = false;
            for _ in 0..BURST {
                if !sends || end_sent || sent - own >= window {
                    break;
                }
                message[8..HEAD].copy_from_slice(&sent.to_le_bytes());
                let now = Instant::now();
                if !self.group.send(&message)? {
                    break;
                }
                at = now;
                sent += 1;
                any = true;
            }
            self.group.dispatch()?;
            let now = Instant::now();
            let inbox = self.inbox.borrow();
            if let Some(wrong) = &inbox.wrong {
                return Err(Failure::bug(wrong.clone()));
            }
            let delivered = inbox.counts[self.number - 1];
            if phase.one_outstanding && delivered > own && first.is_some() && last.is_none() {
                latencies.record(now - at);
            }
            own = delivered;
            if inbox.total > before {
                any = true;
                moved = now;
            }
            if first.is_none() && now >= started + phase.warmup {
                first = Some((now, inbox.total));
            } else if last.is_none() && now >= started + phase.warmup + phase.duration {
                last = Some((now, inbox.total));
            }
            if inbox.ended {
                break;
            }
            drop(inbox);
            if first_host && last.is_some() && !end_sent {
                message[4..8].copy_from_slice(&END.to_le_bytes());
                end_sent = self.group.send(&message)?;
                message[4..8].copy_from_slice(&DATA.to_le_bytes());
            }
            if now > moved + PATIENCE + phase.warmup + phase.duration {
                return Err(Failure::run(
                    "Corosync delivers nothing any more",
                    "see what the machine does meanwhile",
                ));
            }
            if !any {
                thread::yield_now();
            }
        }
        let msgs_per_s = match (first, last) {
            (Some((from, before)), Some((until, after))) => {
                as_f64(after - before) / (until - from).as_secs_f64().max(1e-9)
            }
            _ => 0.0, // another host's time was up first, and only the first one's figures count
        };
        let latency = (first_host && phase.one_outstanding).then(|| latencies.quantiles());
        Ok(Outcome { latency, msgs_per_s })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(part: u32, kind: u32, number: u64) -> Vec<u8> {
        let mut message = [part.to_le_bytes(), kind.to_le_bytes()].concat();
        message.extend(number.to_le_bytes());
        message.resize(64, 0x5a);
        message
    }

    #[test]
    fn each_hosts_messages_must_come_in_order() {
        let mut inbox = Inbox { part: 2, size: 64, ..Inbox::default() };
        inbox.take(1, &message(1, DATA, 99)); // of the part before
        inbox.take(1, &message(2, DATA, 0));
        inbox.take(3, &message(2, DATA, 0));
        inbox.take(1, &message(2, DATA, 1));
        assert_eq!((inbox.total, inbox.counts, &inbox.wrong), (3, [2, 0, 1], &None));
        inbox.take(1, &message(2, DATA, 3));
        assert!(inbox.wrong.is_some() && !inbox.ended);
        inbox.take(1, &message(2, END, 0));
        assert!(inbox.ended);
        let mut inbox = Inbox { part: 2, size: 64, ..Inbox::default() };
        inbox.take(9, &message(2, DATA, 0));
        assert!(inbox.wrong.is_some());
    }
}
