//! A driver with an application around it that takes what it gives, and remembers it.

use std::collections::{BTreeMap, VecDeque};
use std::io::{Cursor, Read};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use consort_dataplane::loan::Loan;
use consort_dataplane::names::{NodeId, Seq, Slot, ViewId};
use consort_dataplane::ring::Ticket;
use consort_dataplane::session::Verdict;

use crate::change::Frozen;
use crate::config::NodeConfig;
use crate::membership::Stopped;
use crate::orders::{LinkNumber, Order, Report};
use crate::shell::control::Reports;
use crate::shell::driver::Driver;
use crate::shell::durable::Data;
use crate::shell::event::Incoming;
use crate::shell::outcome::Outcome;
use crate::shell::points::ReadPoint;
use crate::shell::restore::Restore;
use crate::shell::sender::{SendError, Sender};
use crate::shell::shared::{Ask, Channel, Shared};
use crate::shell::start::{CloseError, MadeFabric};
use crate::view::{ShardId, View};

/// What an application was told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Told {
    View(View),
    /// Message `number` of a sender.
    Message {
        view: u64,
        seq: u64,
        sender: u32,
        number: u64,
    },
    Ended(u32),
    Evicted,
    /// A state, of these messages.
    Restored(Vec<(u32, u64)>),
}

/// What applications were told: of every process the last number, and the view in which it was told.
pub(super) type Reached = BTreeMap<u64, (u64, u64)>;

/// A node: its driver, and the application that takes what it gives.
pub(super) struct Host {
    pub(super) driver: Driver,
    pub(super) shared: Arc<Shared>,
    pub(super) sender: Sender,
    orders: mpsc::Sender<Order>,
    asks: mpsc::Sender<Ask>,
    from: mpsc::Receiver<Report>,
    /// Its reports, but for those of its heart.
    pub(super) reports: Vec<Report>,
    pub(super) pulses: Vec<Vec<(NodeId, u64)>>,
    pub(super) life: u64,
    pub(super) offer: Vec<u8>,
    pub(super) links: BTreeMap<u32, (Slot, LinkNumber)>,
    pub(super) numbers: u64,
    pub(super) installed: Vec<ViewId>,
    pub(super) told: Vec<Told>,
    /// So much its application takes.
    pub(super) room: usize,
    /// It takes no view.
    pub(super) refuses_views: bool,
    /// It keeps what it takes.
    pub(super) keeps: bool,
    pub(super) loans: Vec<Loan>,
    pub(super) sent: u64,
    pub(super) tickets: Vec<Ticket>,
    /// The tickets of its own messages, as they were delivered.
    pub(super) own: Vec<Ticket>,
    pub(super) outcomes: Vec<(u64, Outcome)>,
    pub(super) stopped: Option<Stopped>,
    /// What the application has made of it all: sender and number of every message.
    pub(super) state: Vec<(u32, u64)>,
    /// It gives no snapshot, or doesn't finish what it restores.
    pub(super) is_stubborn: bool,
    /// The shards beside the main group, from number 1.
    pub(super) shards: Vec<App>,
    /// Its application has a state, which is whole whatever view it began in.
    pub(super) is_stateful: bool,
    /// Read points that it has asked for, and what any application had been told by then.
    pub(super) asked: VecDeque<(ReadPoint, Reached)>,
    /// Of every process the last number that its state has.
    pub(super) reached: BTreeMap<u64, u64>,
    /// The first view of this life; 0 while there is none.
    since: u64,
    /// Read points that came.
    pub(super) read: u64,
    /// What it had not been told at a read point, and should have.
    pub(super) stale: Option<(u64, (u64, u64))>,
    /// View and place of the last message of which it was asked for a snapshot.
    pub(super) snapshot_behind: Option<(ViewId, Seq)>,
}

/// What the application makes of a shard beside the main group.
pub(super) struct App {
    sender: Sender,
    pub(super) told: Vec<Told>,
    /// The number of the next message.
    pub(super) next: u64,
    pub(super) outcomes: Vec<(u64, Outcome)>,
    pub(super) state: Vec<(u32, u64)>,
    /// What it has is not lost with the group.
    is_durable: bool,
}

impl App {
    fn new(channel: &Arc<Channel>, is_durable: bool) -> Self {
        let sender = Sender::new(channel.outbox.clone());
        Self { sender, told: Vec::new(), next: 0, outcomes: Vec::new(), state: Vec::new(), is_durable }
    }

    /// Takes an event. A shard's views are of its members alone.
    fn take(&mut self, shard: ShardId, incoming: Incoming<'_, '_>) {
        let told = match incoming {
            Incoming::View(view) => {
                let mut view = view.clone();
                let mine = view.shard(shard).cloned().unwrap_or_default();
                view.members.retain(|member| mine.members.contains(&member.node));
                Told::View(view)
            }
            Incoming::Ended(node) => Told::Ended(node.0),
            Incoming::Message(delivery) => {
                let number = u64::from_le_bytes(delivery.payload[..8].try_into().unwrap());
                let (view, seq, sender) = (delivery.view.0, delivery.seq.0, delivery.sender.0);
                self.state.push((sender, number));
                Told::Message { view, seq, sender, number }
            }
            Incoming::Snapshot(request) => {
                request.give_in_turn(Cursor::new(encode(&self.state)));
                return;
            }
            Incoming::Restore(restore) => {
                self.state = decode(restore.take().unwrap());
                Told::Restored(self.state.clone())
            }
            Incoming::Evicted(_) => {
                if !self.is_durable {
                    self.state.clear();
                }
                Told::Evicted
            }
            Incoming::Waiting(_) | Incoming::ReadPoint(_) | Incoming::Digest(..) => return,
        };
        self.told.push(told);
    }

    /// Sends the next message, if it can. Returns its number.
    pub(super) fn send(&mut self, tracked: bool) -> Result<u64, SendError> {
        let mut room = self.sender.try_reserve(8)?;
        let number = self.next;
        room.copy_from_slice(&number.to_le_bytes());
        if tracked {
            self.outcomes.push((number, room.send_tracked()));
        } else {
            room.send();
        }
        self.next += 1;
        Ok(number)
    }
}

/// A state on its way.
fn encode(state: &[(u32, u64)]) -> Vec<u8> {
    state
        .iter()
        .flat_map(|(sender, number)| [u64::from(*sender), *number])
        .flat_map(u64::to_le_bytes)
        .collect()
}

fn decode(mut restore: Restore) -> Vec<(u32, u64)> {
    let mut bytes = Vec::new();
    restore.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes.len() as u64, restore.len());
    restore.finish();
    let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
    bytes.chunks(16).map(|it| (word(&it[..8]) as u32, word(&it[8..]))).collect()
}

impl Host {
    pub(super) fn new(
        config: NodeConfig,
        make: impl FnMut() -> MadeFabric + Send + 'static,
        life: u64,
    ) -> Self {
        Self::with_data(config, make, life, None)
    }

    /// With what there is on its disk.
    pub(super) fn with_data(
        config: NodeConfig,
        mut make: impl FnMut() -> MadeFabric + Send + 'static,
        life: u64,
        data: Option<Data>,
    ) -> Self {
        let fabric = make();
        let offer = fabric.0.offer();
        let shared = Arc::new(Shared::new(fabric.0.doorbell(), config.shapes().len()));
        let ((orders, ordered), (asks, asked)) = (mpsc::channel(), mpsc::channel());
        let (reports, from) = Reports::apart();
        let make = Box::new(move || Ok(make()));
        let sender = Sender::new(shared.channels[0].outbox.clone());
        let shards = shared.channels[1..].iter().map(|channel| App::new(channel, data.is_some())).collect();
        Self {
            driver: Driver::new(config, make, fabric, shared.clone(), (ordered, asked), reports, data),
            shared,
            sender,
            orders,
            asks,
            from,
            reports: Vec::new(),
            pulses: Vec::new(),
            life,
            offer,
            links: BTreeMap::new(),
            numbers: 0,
            installed: Vec::new(),
            told: Vec::new(),
            room: usize::MAX,
            refuses_views: false,
            keeps: false,
            loans: Vec::new(),
            sent: 0,
            tickets: Vec::new(),
            own: Vec::new(),
            outcomes: Vec::new(),
            stopped: None,
            state: Vec::new(),
            is_stubborn: false,
            shards,
            is_stateful: false,
            asked: VecDeque::new(),
            reached: BTreeMap::new(),
            since: 0,
            read: 0,
            stale: None,
            snapshot_behind: None,
        }
    }

    pub(super) fn order(&self, order: Order) {
        self.orders.send(order).unwrap();
        self.shared.call();
    }

    pub(super) fn close(&self, within: Duration) -> mpsc::Receiver<Result<(), CloseError>> {
        let (answer, answered) = mpsc::channel();
        self.asks.send(Ask::Close(within, answer)).unwrap();
        self.shared.call();
        answered
    }

    /// A turn, whose reports are kept here.
    pub(super) fn turn(&mut self) {
        self.take_turn();
        while let Ok(report) = self.from.try_recv() {
            match report {
                Report::Pulse(pulse) => self.pulses.push(pulse.beats),
                report => self.reports.push(report),
            }
        }
    }

    /// A turn, and a rest if nothing happened. Returns whether anything did.
    pub(super) fn take_turn(&mut self) -> bool {
        let busy = self.poll();
        if !busy && self.stopped.is_none() {
            self.driver.rest(&|| true);
        }
        busy
    }

    /// A turn. Returns whether anything happened.
    pub(super) fn poll(&mut self) -> bool {
        if self.stopped.is_some() {
            return false;
        }
        let Self { driver, told, room, keeps, refuses_views, loans, own, state, is_stubborn, shards, .. } =
            self;
        let Self { asked, reached, since, read, stale, is_stateful, snapshot_behind, .. } = self;
        let turned = driver.turn(&mut |shard: ShardId, incoming: Incoming<'_, '_>| {
            if *room == 0 || *refuses_views && matches!(incoming, Incoming::View(_)) {
                return Verdict::Later;
            }
            if let Some(app) = (shard.0 as usize).checked_sub(1).and_then(|at| shards.get_mut(at)) {
                app.take(shard, incoming);
                return Verdict::Taken;
            }
            *room -= 1;
            told.push(match incoming {
                Incoming::View(view) => {
                    if view.id == ViewId(1) {
                        // A group that is founded has done nothing yet; what another had told when a point was asked for is lost.
                        state.clear();
                        reached.clear();
                        asked.iter_mut().for_each(|(_, reached)| reached.clear());
                    }
                    if *since == 0 {
                        *since = view.id.0;
                    }
                    Told::View(view.clone())
                }
                Incoming::Ended(node) => Told::Ended(node.0),
                Incoming::Message(delivery) => {
                    if *keeps {
                        loans.push(delivery.lend().unwrap());
                    }
                    own.extend(delivery.ticket);
                    let number = u64::from_le_bytes(delivery.payload[..8].try_into().unwrap());
                    assert!(delivery.payload[8..].iter().all(|byte| *byte == delivery.sender.0 as u8));
                    let (view, seq, sender) = (delivery.view.0, delivery.seq.0, delivery.sender.0);
                    state.push((sender, number));
                    reached.insert(number >> 32, number);
                    Told::Message { view, seq, sender, number }
                }
                Incoming::Snapshot(request) => {
                    *snapshot_behind = told.iter().rev().find_map(|told| match told {
                        Told::Message { view, seq, .. } => Some((ViewId(*view), Seq(*seq))),
                        _ => None,
                    });
                    if !*is_stubborn {
                        request.give_in_turn(Cursor::new(encode(state)));
                    }
                    return Verdict::Taken;
                }
                Incoming::Restore(restore) => {
                    let restore = restore.take().unwrap();
                    if *is_stubborn {
                        return Verdict::Taken;
                    }
                    *state = decode(restore);
                    *reached = state.iter().map(|(_, number)| (number >> 32, *number)).collect();
                    Told::Restored(state.clone())
                }
                Incoming::ReadPoint(point) => {
                    while asked.front().is_some_and(|(of, _)| *of <= point) {
                        let Some((_, asked)) = asked.pop_front() else { break };
                        let lacks = asked.into_iter().find(|(life, (number, view))| {
                            (*is_stateful || view >= since) && reached.get(life).is_none_or(|it| it < number)
                        });
                        *stale = stale.take().or(lacks);
                        *read += 1;
                    }
                    return Verdict::Taken;
                }
                Incoming::Evicted(_) => {
                    *since = 0;
                    Told::Evicted
                }
                Incoming::Waiting(_) | Incoming::Digest(..) => return Verdict::Taken,
            });
            Verdict::Taken
        });
        turned.unwrap_or_else(|reason| {
            self.stopped = Some(reason);
            false
        })
    }

    /// What the driver has told since this was asked last.
    pub(super) fn told_membership(&self) -> impl Iterator<Item = Report> {
        self.from.try_iter()
    }

    /// Sends the next message, tracked or not, if there is room.
    pub(super) fn send(&mut self, id: u32, len: usize, tracked: bool) -> Result<(), SendError> {
        self.send_to(None, id, len, tracked)
    }

    /// As [`Host::send`], to all or to these (D12).
    pub(super) fn send_to(
        &mut self,
        to: Option<&[NodeId]>,
        id: u32,
        len: usize,
        tracked: bool,
    ) -> Result<(), SendError> {
        let mut room = match to {
            Some(to) => self.sender.try_reserve_to(to, 8 + len)?,
            None => self.sender.try_reserve(8 + len)?,
        };
        room[..8].copy_from_slice(&self.sent.to_le_bytes());
        room[8..].fill(id as u8);
        if tracked {
            let outcome = room.send_tracked();
            self.tickets.push(outcome.ticket());
            self.outcomes.push((self.sent, outcome));
        } else {
            self.tickets.push(room.send());
        }
        self.sent += 1;
        Ok(())
    }

    /// Whether it has reported this.
    pub(super) fn has(&self, report: &Report) -> bool {
        self.reports.contains(report)
    }

    /// How often it was told this.
    pub(super) fn count(&self, told: &Told) -> usize {
        self.told.iter().filter(|it| *it == told).count()
    }

    /// The messages that it was told of, by sender and number.
    pub(super) fn messages(&self) -> Vec<(u32, u64)> {
        let message = |told: &Told| match told {
            Told::Message { sender, number, .. } => Some((*sender, *number)),
            _ => None,
        };
        self.told.iter().filter_map(message).collect()
    }

    /// The views that it was told of.
    pub(super) fn views(&self) -> Vec<u64> {
        views(&self.told)
    }

    pub(super) fn frozen(&self, view: ViewId) -> Option<Frozen> {
        self.reports.iter().find_map(|report| match report {
            Report::Wedged(of, frozen) if *of == view => frozen.first().cloned(),
            _ => None,
        })
    }
}

pub(super) fn views(told: &[Told]) -> Vec<u64> {
    let view = |told: &Told| match told {
        Told::View(view) => Some(view.id.0),
        _ => None,
    };
    told.iter().filter_map(view).collect()
}
