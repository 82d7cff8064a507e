//! One process: a plane, a driver, an application, and the machine's clock.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use consort_dataplane::fabric::{
    ConnectError, Doorbell, Fabric, FabricStats, Kept, LinkEvent, Relaying, RenewError,
};
use consort_dataplane::memory::{Mirror, Segment};
use consort_dataplane::names::{NodeId, PeerSet, Slot, Time};
use consort_dataplane::sim::{SimFabric, SimNetwork};

use super::history::{Past, Sent};
use crate::change::{self, Frozen};
use crate::orders::{Order, Report};
use crate::plane::Plane;
use crate::shell::start::CloseError;
use crate::shell::tests::host::Host;
use crate::view::{Incarnation, ShardId};

/// A machine's clock: it began anywhere, and goes faster or slower than the others.
#[derive(Clone, Copy)]
pub(super) struct Clock {
    pub(super) began: u64,
    /// In millionths.
    pub(super) rate: u64,
}

const MILLION: u128 = 1_000_000;

impl Clock {
    /// What it shows.
    pub(super) fn shows(self, now: Time) -> Time {
        Time(self.began + (u128::from(now.0) * u128::from(self.rate) / MILLION) as u64)
    }

    /// When it will show that.
    pub(super) fn when(self, shown: Time) -> Time {
        let since = u128::from(shown.0.saturating_sub(self.began));
        Time((since * MILLION).div_ceil(u128::from(self.rate)) as u64)
    }
}

/// A rule that drivers break on purpose.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Disobedience {
    /// V2: it reports where a session stands, and lets it run until the next view is there.
    NotFrozen,
    /// V4: it delivers all that it has, not what lies below the trim.
    BeyondTrim,
    /// F4: it fences nobody.
    NoFence,
    /// P3: it writes down nothing of what it agrees to.
    NoNote,
}

/// Where its last sends went.
#[derive(Clone, Copy)]
pub(super) struct Belonging {
    pub(super) life: Incarnation,
    pub(super) view: u64,
}

/// A process.
pub(super) struct Node {
    pub(super) id: u32,
    pub(super) clock: Clock,
    /// Until its control thread has ended.
    pub(super) plane: Option<Plane>,
    /// Until its driver has stopped.
    pub(super) host: Option<Host>,
    /// Reports under way to the plane, before those that the driver has told since.
    pub(super) inbox: Vec<Report>,
    /// Its fabric was closed in order.
    pub(super) closed: Arc<AtomicBool>,
    pub(super) timer: Option<Time>,
    pub(super) turn_at: Time,
    /// How long it rests when nothing happens.
    pub(super) rest: u64,
    /// Nothing of its control thread, and of its driver, goes on before.
    pub(super) control_until: Time,
    pub(super) engine_until: Time,
    pub(super) send_at: Time,
    /// What the driver's orders since its last turn make of it.
    pub(super) ordered: Option<Option<Belonging>>,
    pub(super) belongs: Option<Belonging>,
    pub(super) sent: Vec<Sent>,
    /// To the shards beside the main group.
    pub(super) sent_to: Vec<Vec<Sent>>,
    pub(super) leaving: Option<mpsc::Receiver<Result<(), CloseError>>>,
    /// The last step of a change in which another fault was thought of.
    pub(super) cascaded: Option<(u64, std::mem::Discriminant<change::Phase>)>,
    /// It has sent something since everything is quiet.
    pub(super) probed: bool,
    /// So many of its outcomes were in when it was looked at last.
    pub(super) settled: usize,
}

impl Node {
    /// Whether anything of it is left.
    pub(super) fn lives(&self) -> bool {
        self.plane.is_some() || self.host.is_some()
    }

    /// Gives its driver an order, which may not obey it.
    pub(super) fn order(&mut self, order: Order, disobedience: Option<Disobedience>) {
        match &order {
            Order::Install(install) => {
                let me = install.view.member(NodeId(self.id));
                let view = install.view.shards[0].since.0;
                self.ordered = Some(me.map(|me| Belonging { life: me.incarnation, view }));
            }
            Order::Over(_) | Order::Prepare(_) => self.ordered = Some(None),
            // Whatever else there is: the driver's business.
            _ => {}
        }
        let Some(host) = &self.host else { return };
        let orders = match disobedience {
            Some(how) => disobey(how, order, host, &mut self.inbox),
            None => vec![order],
        };
        for order in orders {
            host.order(order);
        }
    }

    /// What will be known of it and the shards beside the main group.
    pub(super) fn pasts_of_shards(&mut self) -> Vec<Past> {
        let Some(host) = &mut self.host else { return Vec::new() };
        let stopped = host.stopped.is_some();
        let all = host.shards.iter_mut().zip(std::mem::take(&mut self.sent_to));
        all.map(|(app, sent)| Past {
            node: self.id,
            told: std::mem::take(&mut app.told),
            sent,
            outcomes: app.outcomes.iter().map(|(number, outcome)| (*number, outcome.try_get())).collect(),
            stopped,
            is_last: true,
        })
        .collect()
    }

    /// What will be known of it.
    pub(super) fn past(mut self) -> Past {
        let mut past = Past {
            node: self.id,
            told: Vec::new(),
            sent: std::mem::take(&mut self.sent),
            outcomes: Vec::new(),
            stopped: false,
            is_last: self.host.is_some(),
        };
        if let Some(host) = self.host.take() {
            past.stopped = host.stopped.is_some();
            past.outcomes =
                host.outcomes.iter().map(|(number, outcome)| (*number, outcome.try_get())).collect();
            past.told = host.told;
        }
        past
    }
}

fn disobey(how: Disobedience, order: Order, host: &Host, inbox: &mut Vec<Report>) -> Vec<Order> {
    let received = || {
        let status = host.driver.status();
        let session = status.sessions.into_iter().next_back()?;
        Some(session.frontiers.senders.iter().map(|sender| sender.received.0).collect::<Vec<_>>())
    };
    match (how, order) {
        (Disobedience::NotFrozen, Order::Wedge { view, shards, fence }) => match received() {
            Some(received) => {
                inbox.push(Report::Wedged(view, vec![Frozen { shard: ShardId::MAIN, received }]));
                fence.into_iter().map(Order::Unlink).collect()
            }
            None => vec![Order::Wedge { view, shards, fence }],
        },
        (Disobedience::BeyondTrim, Order::Install(mut install)) => {
            if let (Some(cut), Some(received)) =
                (install.cut.as_mut().and_then(|cuts| cuts.first_mut()), received())
            {
                cut.trim = received;
            }
            vec![Order::Install(install)]
        }
        (Disobedience::NoFence, Order::Wedge { view, shards, .. }) => {
            vec![Order::Wedge { view, shards, fence: Vec::new() }]
        }
        (Disobedience::NoFence, Order::Unlink(_)) => Vec::new(),
        (Disobedience::NoNote, Order::Note { .. }) => {
            inbox.push(Report::Noted);
            Vec::new()
        }
        (_, order) => vec![order],
    }
}

/// The simulated fabric at a machine whose clock is its own: the network's time is the simulation's.
pub(super) struct OnMachine {
    inner: SimFabric,
    closed: Arc<AtomicBool>,
}

impl OnMachine {
    pub(super) fn new(network: &SimNetwork, node: u32, closed: Arc<AtomicBool>) -> Self {
        closed.store(false, Ordering::Relaxed);
        Self { inner: network.add(NodeId(node)), closed }
    }
}

impl Fabric for OnMachine {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn segment(&self) -> &Segment {
        self.inner.segment()
    }

    fn offer(&self) -> Vec<u8> {
        self.inner.offer()
    }

    fn connect(
        &mut self,
        slot: Slot,
        peer: NodeId,
        offer: &[u8],
        within: Duration,
    ) -> Result<(), ConnectError> {
        self.inner.connect(slot, peer, offer, within)
    }

    fn mirror(&self, slot: Slot) -> Option<&Mirror> {
        self.inner.mirror(slot)
    }

    fn publishing_costs(&self) -> bool {
        self.inner.publishing_costs()
    }

    fn publish_words(&mut self, range: Range<usize>, peers: PeerSet) {
        self.inner.publish_words(range, peers);
    }

    fn publish_ring(&mut self, range: Range<usize>, peers: PeerSet) {
        self.inner.publish_ring(range, peers);
    }

    fn flush(&mut self) {
        self.inner.flush();
    }

    fn poll(&mut self, _: Time) -> bool {
        self.inner.poll(Time(0)) // the network knows what time it is
    }

    fn wait(&mut self, now: Time, until: Time, idle: &mut dyn FnMut() -> bool) {
        self.inner.wait(now, until, idle);
    }

    fn doorbell(&self) -> Doorbell {
        self.inner.doorbell()
    }

    fn fence(&mut self, slot: Slot) {
        self.inner.fence(slot);
    }

    fn fence_keeping(&mut self, slot: Slot, kept: &Kept<'_>) {
        self.inner.fence_keeping(slot, kept);
    }

    fn renew(&mut self, range: Range<usize>) -> Result<(), RenewError> {
        self.inner.renew(range)
    }

    fn relaying(&self) -> Relaying {
        self.inner.relaying()
    }

    fn allow_relay(&mut self, origin: Slot, range: Range<usize>, by: Option<Slot>) {
        self.inner.allow_relay(origin, range, by);
    }

    fn close(&mut self, within: Duration) {
        self.closed.store(true, Ordering::Relaxed);
        self.inner.close(within);
    }

    fn relay(&mut self, origin: Slot, range: Range<usize>, peers: PeerSet) -> bool {
        self.inner.relay(origin, range, peers)
    }

    fn poll_event(&mut self) -> Option<LinkEvent> {
        self.inner.poll_event()
    }

    fn stats(&self) -> FabricStats {
        self.inner.stats()
    }
}
