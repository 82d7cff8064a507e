//! A member that sends steadily, and takes down when what was delivered.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use consort::{Event, Group, SendError};

use crate::bench::payload::fill;
use crate::clock;
use crate::failure::Failure;
use crate::gaps::Gaps;
use crate::group;
use crate::orders::{FailoverTask, Said, Survived, Told};
use crate::parent::Parent;

/// Between two messages of one member, in nanoseconds: often enough for deliveries to tell to a fraction of a millisecond
/// how long there were none, and no more than a machine that is shared can bear.
const INTERVAL: u64 = 200_000;

/// Payload of a message.
const SIZE: usize = 64;

/// How many deliveries are remembered: some seconds' worth.
const REMEMBERED: usize = 1 << 16;

/// When something was delivered here, and in what view.
#[derive(Default)]
struct Deliveries {
    at: VecDeque<u64>,
    members: Vec<u32>,
    /// The first in this view.
    first: Option<u64>,
}

impl Deliveries {
    fn on_view(&mut self, members: Vec<u32>) {
        (self.members, self.first) = (members, None);
    }

    /// Returns whether it is the first in its view.
    fn on_message(&mut self, now: u64) -> bool {
        if self.at.len() == REMEMBERED {
            self.at.pop_front();
        }
        self.at.push_back(now);
        let first = self.first.is_none();
        self.first.get_or_insert(now);
        first
    }

    /// The longest time between two deliveries, from `since` to the first in the view without `victim`, once there is one.
    fn outage(&self, victim: u32, since: u64) -> Option<u64> {
        let until = self.first.filter(|_| !self.members.contains(&victim))?;
        let gaps = self.at.iter().zip(self.at.iter().skip(1));
        gaps.filter(|&(_, &to)| since < to && to <= until).map(|(from, to)| to - from).max()
    }
}

/// Runs the member.
///
/// # Errors
/// The group.
pub(crate) fn run(task: &FailoverTask, parent: &mut Parent) -> Result<(), Failure> {
    let id = task.seat.id;
    let node = group::start_failover(task)?;
    let sender = node.sender();
    let beside = Arc::new(Mutex::new(Gaps::default()));
    for (name, _) in task.groups.iter().filter(|(_, nodes)| nodes.contains(&id)) {
        if let Some(group) = node.group(name) {
            let gaps = beside.clone();
            std::thread::spawn(move || live_beside(&group, &gaps));
        }
    }
    let mut deliveries = Deliveries::default();
    let mut killed: Option<(u32, u64)> = None;
    let (mut due, mut sent) = (clock::now(), 0);
    while !parent.released() {
        match parent.try_told() {
            Some(Told::Killed { node, at }) => killed = Some((node, at)),
            Some(Told::Gaps { windows }) => {
                let gaps = beside.lock().unwrap_or_else(PoisonError::into_inner);
                let longest =
                    windows.iter().map(|window| gaps.longest_touching(*window, clock::now())).collect();
                parent.say(&Said::Gaps { longest, fabric: node.stats().fabric.to_owned() });
            }
            _ => {}
        }
        if let Some((victim, at)) = killed
            && let Some(outage) = deliveries.outage(victim, at)
        {
            killed = None;
            let lost = node.status().lost;
            let detected = lost.iter().find(|lost| lost.node.0 == victim && lost.at.0 >= at);
            let detected = detected.map(|lost| lost.at.0);
            let fabric = node.stats().fabric.to_owned();
            parent.say(&Said::Survived(Survived { detected, outage, fabric }));
        }
        let now = clock::now();
        if now >= due {
            match sender.try_reserve(SIZE) {
                Ok(mut place) => {
                    fill(&mut place, sent);
                    place.send();
                    sent += 1;
                }
                Err(SendError::Full | SendError::Changing | SendError::NotStarted) => {}
                Err(error) => {
                    return Err(Failure::lost(
                        format!("member {id} can't send: {error}"),
                        "run it again with --log debug",
                    ));
                }
            }
            due = now + INTERVAL;
        }
        let left = Duration::from_nanos(due.saturating_sub(clock::now()));
        match node.recv_timeout(left).map_err(|stop| group::stopped(id, &stop))? {
            Some(Event::Message(_)) if deliveries.on_message(clock::now()) => {
                parent.say(&Said::View { members: deliveries.members.clone() });
            }
            Some(Event::View(view)) => {
                deliveries.on_view(view.members.iter().map(|member| member.node.0).collect());
            }
            Some(Event::Waiting { for_whom }) => {
                let for_whom = for_whom.iter().map(|absent| absent.node.0).collect();
                parent.say(&Said::Waiting { for_whom });
            }
            _ => {}
        }
    }
    node.close(group::CLOSE_WITHIN).map_err(|error| group::not_closed(id, &error))?;
    Ok(())
}

/// Sends steadily in a group beside the main one and takes down when nothing was delivered there, until the node stops.
fn live_beside(group: &Group, gaps: &Mutex<Gaps>) {
    let sender = group.sender();
    let (mut due, mut sent) = (clock::now(), 0);
    loop {
        let now = clock::now();
        if now >= due {
            // Whatever is the matter otherwise, the main group's thread is told of it, too.
            if let Ok(mut place) = sender.try_reserve(SIZE) {
                fill(&mut place, sent);
                place.send();
                sent += 1;
            }
            due = now + INTERVAL;
        }
        match group.recv_timeout(Duration::from_nanos(due.saturating_sub(clock::now()))) {
            Ok(Some(Event::Message(_))) => {
                gaps.lock().unwrap_or_else(PoisonError::into_inner).on_delivery(clock::now());
            }
            Ok(_) => {}
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_lasts_until_the_first_delivery_in_the_next_view() {
        let mut deliveries = Deliveries::default();
        deliveries.on_view(vec![1, 2, 3]);
        for at in [100, 900, 1000, 1010] {
            deliveries.on_message(at);
        }
        deliveries.on_message(1040); // what lay below the trim
        assert_eq!(deliveries.outage(3, 1000), None, "the view still stands");
        deliveries.on_view(vec![1, 2]);
        assert_eq!(deliveries.outage(3, 1000), None, "nothing was delivered in the next");
        assert!(deliveries.on_message(1100) && !deliveries.on_message(2000));
        assert_eq!(deliveries.outage(3, 1000), Some(60));
        assert_eq!(deliveries.outage(1, 1000), None, "it lives");
    }
}
