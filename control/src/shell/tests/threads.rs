//! Drivers, senders and applications on threads of their own, in real time.

use std::collections::BTreeMap;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use consort_dataplane::names::{NodeId, Slot, ViewId};
use consort_dataplane::plan::{Guarantee, SessionPlan};
use consort_dataplane::sim::{SimNetwork, SimOptions};

use super::world::RING;
use crate::change::Cut;
use crate::config::NodeConfig;
use crate::membership::Stopped;
use crate::orders::{Install, LinkNumber, Order, Report};
use crate::shell::clock;
use crate::shell::control::Reports;
use crate::shell::driver::Driver;
use crate::shell::event::{Event, Inbox};
use crate::shell::node::run;
use crate::shell::sender::{SendError, Sender};
use crate::shell::shared::Shared;
use crate::shell::start::MadeFabric;
use crate::view::{Domain, Incarnation, Member, Role, ShardId, View};

/// Sending threads of each node, and messages of each thread. Many times what a ring holds.
const THREADS: u64 = 2;
const MESSAGES: u64 = 400;

struct Host {
    shared: Arc<Shared>,
    inbox: Arc<Inbox>,
    orders: mpsc::Sender<Order>,
    reports: mpsc::Receiver<Report>,
    driver: JoinHandle<()>,
}

impl Host {
    fn order(&self, order: Order) {
        self.orders.send(order).unwrap();
        self.shared.call();
    }

    /// The next report that is one of these.
    fn report<T>(&self, is: impl Fn(Report) -> Option<T>) -> T {
        loop {
            let report = self.reports.recv_timeout(Duration::from_secs(60)).expect("a report");
            if let Some(it) = is(report) {
                return it;
            }
        }
    }
}

fn view(id: u64, members: u32) -> View {
    let member = |id| Member {
        node: NodeId(id),
        incarnation: Incarnation(u64::from(id)),
        address: ([127, 0, 0, 1], 7100).into(),
        role: Role::Data,
        domain: Domain::default(),
    };
    View::of(ViewId(id), (1..=members).map(member).collect())
}

/// View and place in it.
type Place = (u64, u64);

/// Sends and says which message came to be where; ends where the node has stopped.
fn send(sender: &Sender, node: u32, thread: u64) -> Vec<(Place, (u64, u64))> {
    let sent = (0..MESSAGES).map_while(|number| {
        let message = [thread.to_le_bytes(), number.to_le_bytes(), u64::from(node).to_le_bytes()].concat();
        match sender.send_tracked(&message) {
            Ok(outcome) => Some((number, outcome)),
            Err(SendError::Stopped(_)) => None,
            Err(error) => panic!("{error}"),
        }
    });
    let sent: Vec<_> = sent.collect();
    let where_it_is = sent.into_iter().filter_map(|(number, outcome)| {
        let at = outcome.wait().ok()?;
        Some(((at.view.0, at.seq.0), (thread, number)))
    });
    where_it_is.collect()
}

/// What an application takes, until its node has stopped: messages by view and place.
fn take(inbox: &Inbox) -> Vec<(Place, (u32, u64, u64))> {
    let mut taken = Vec::new();
    let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
    while let Ok(event) = inbox.take(None) {
        if let Some(Event::Message(message)) = event {
            let (thread, number) = (word(&message[..8]), word(&message[8..16]));
            taken.push(((message.view.0, message.seq.0), (message.sender.0, thread, number)));
        }
    }
    taken
}

// D3, D12, D13: threads that block in full rings go on in the next view, and every outcome is true.
#[test]
fn senders_on_any_thread_go_on_in_the_next_view() {
    let options = SimOptions {
        delay: (Duration::ZERO, Duration::from_micros(20)),
        tearing: 10,
        segment_bytes: SessionPlan::segment_bytes(RING),
        relays: false,
        publishing_costs: true,
    };
    let network = SimNetwork::empty(1, options);
    network.advance_to(clock::now());
    let fabrics: Vec<MadeFabric> =
        (1..=3).map(|id| (Box::new(network.add(NodeId(id))) as Box<_>, "sim")).collect();
    let offers: Vec<_> = fabrics.iter().map(|(fabric, _)| fabric.offer()).collect();
    let start = |(fabric, id): (MadeFabric, u32)| {
        let mut config = NodeConfig::new(NodeId(id));
        (config.ring_bytes, config.guarantee) = (RING, Guarantee::Atomic);
        let shared = Arc::new(Shared::new(fabric.0.doorbell(), 1));
        let inbox = Arc::new(Inbox::new(shared.bell.clone()));
        let ((orders, ordered), (_, asked)) = (mpsc::channel(), mpsc::channel());
        let (to, reports) = Reports::apart();
        let make = Box::new(|| Err("there is only one".into()));
        let driver = Driver::new(config, make, fabric, shared.clone(), (ordered, asked), to, None);
        let theirs = [inbox.clone()];
        let driver = std::thread::spawn(move || run(driver, &theirs));
        Host { shared, inbox, orders, reports, driver }
    };
    let hosts: Vec<_> = fabrics.into_iter().zip(1..).map(start).collect();
    let slots = |me: u32, members: u32| -> BTreeMap<_, _> {
        (1..=members).filter(|id| *id != me).map(|id| (NodeId(id), Slot(id as u8))).collect()
    };
    for (host, me) in hosts.iter().zip(1..) {
        for (node, slot) in slots(me, 3) {
            let offer = offers[node.0 as usize - 1].clone();
            host.order(Order::Link { slot, number: LinkNumber(u64::from(slot.0)), node, offer });
        }
    }
    for (host, me) in hosts.iter().zip(1..) {
        for _ in 0..2 {
            host.report(|report| matches!(report, Report::Up(..)).then_some(()));
        }
        let slots = slots(me, 3);
        host.order(Order::Install(Install {
            behind: None,
            view: view(1, 3),
            slots,
            cut: None,
            level: Vec::new(),
            renew: Vec::new(),
        }));
    }
    let takers: Vec<_> = hosts
        .iter()
        .map(|host| {
            let inbox = host.inbox.clone();
            std::thread::spawn(move || take(&inbox))
        })
        .collect();
    let senders: Vec<_> = hosts
        .iter()
        .zip(1..)
        .flat_map(|(host, node)| (0..THREADS).map(move |thread| (host, node, thread)))
        .map(|(host, node, thread)| {
            let sender = Sender::new(host.shared.channels[0].outbox.clone());
            (node, std::thread::spawn(move || send(&sender, node, thread)))
        })
        .collect();

    // In the middle of it the third dies; then the two go on to yet another view.
    while hosts[0].shared.channels[0].delivered.load(std::sync::atomic::Ordering::Relaxed) < MESSAGES {
        std::thread::yield_now();
    }
    network.crash(network.end_of(NodeId(3)).unwrap());
    hosts[2].order(Order::Stop(Stopped::Machine("it died".to_owned())));
    for (id, fence) in [(1, vec![Slot(3)]), (2, Vec::new())] {
        let frozen: Vec<_> = hosts[..2]
            .iter()
            .map(|host| {
                host.order(Order::Wedge {
                    view: ViewId(id),
                    shards: vec![ShardId::MAIN],
                    fence: fence.clone(),
                });
                host.report(|report| match report {
                    Report::Wedged(_, frozen) => Some(frozen[0].received.clone()),
                    _ => None,
                })
            })
            .collect();
        let trim: Vec<_> = frozen[0].iter().zip(&frozen[1]).map(|(one, other)| *one.min(other)).collect();
        let cut = Cut { shard: ShardId::MAIN, trim };
        for (host, me) in hosts[..2].iter().zip(1..) {
            let (view, slots, cut) = (view(id + 1, 2), slots(me, 2), Some(vec![cut.clone()]));
            host.order(Order::Install(Install {
                view,
                behind: None,
                slots,
                cut,
                level: Vec::new(),
                renew: Vec::new(),
            }));
        }
        for host in &hosts[..2] {
            host.report(|report| (report == Report::Retired(ShardId::MAIN, ViewId(id))).then_some(()));
        }
    }
    let sent: Vec<_> = senders.into_iter().map(|(node, thread)| (node, thread.join().unwrap())).collect();
    for host in &hosts[..2] {
        host.order(Order::Stop(Stopped::Closed));
    }
    hosts.into_iter().for_each(|host| host.driver.join().unwrap());
    let taken: Vec<_> = takers.into_iter().map(|taker| taker.join().unwrap()).collect();
    for (node, outcomes) in sent {
        assert!(node == 3 || outcomes.len() as u64 == MESSAGES, "node {node}: {} outcomes", outcomes.len());
        for (at, (thread, number)) in outcomes {
            assert!(taken[node as usize - 1].contains(&(at, (node, thread, number))), "D12");
        }
        let own = taken[node as usize - 1].iter().filter(|(_, (sender, ..))| *sender == node);
        assert!(node == 3 || own.count() as u64 == THREADS * MESSAGES, "node {node}: each once");
    }
    let less = taken[0].len().min(taken[1].len());
    assert_eq!(taken[0][..less], taken[1][..less]);
    assert!(taken[0].iter().any(|((view, _), _)| *view > 1), "some were sent in a later view");
}
