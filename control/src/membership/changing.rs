//! Changing: carries out what [`crate::change`] wants, and gives it time. Fetches records that are missing below a trim (V3).

use std::collections::BTreeMap;
use std::time::Duration;

use consort_dataplane::names::{NodeId, Time, ViewId};

use super::{Membership, Phase, Stopped, Used};
use crate::change::{Change, Effect, Fetch, Frozen, Next, Place, Report, Saying};
use crate::held::Logs;
use crate::link::message::{Message, Want};
use crate::orders::{Install, Order, Part};
use crate::view::{Member, Role, ShardId};

/// Bytes of a ring in one message.
pub(super) const PIECE: usize = 32 << 10;

/// The bounds of how long a change waits for who does not answer. A bound on silence may be hours; a change must not be held up for as
/// long by a member whose process lives and whose engine hangs.
const LEAST_PATIENCE: Duration = Duration::from_millis(20);
const MOST_PATIENCE: Duration = Duration::from_secs(1);

/// Messages about views to come that are kept until this node has come to them.
const EARLY: usize = 64;

/// What a change waits for.
#[derive(Default)]
pub(super) struct Changing {
    /// Orders to wedge that are not reported yet.
    wedging: usize,
    /// When patience ends.
    patient_until: Option<Time>,
    /// How often it has, in this change.
    rounds: u32,
    /// For how long this node was awake since it began.
    waited: Duration,
    fetches: Vec<Fetching>,
}

/// A part of a ring that is under way.
struct Fetching {
    want: Want,
    bytes: Vec<u8>,
    /// Whom it was asked of.
    asked: Vec<NodeId>,
}

impl Changing {
    pub(super) fn due(&self) -> Option<Time> {
        self.patient_until
    }
}

impl Membership {
    /// A member of some view says something about its end.
    pub(super) fn on_change(&mut self, now: Time, from: NodeId, view: ViewId, saying: Saying) {
        if let Phase::Joining(_) = self.phase {
            if let Saying::Decided(next) = saying {
                self.admitted(now, next);
            }
            return;
        }
        let Some(current) = self.view().map(|view| view.id) else { return };
        if view < current {
            // It has not heard what became of that view.
            if let Some(last) = self.last.clone().filter(|_| !matches!(saying, Saying::Decided(_))) {
                self.say(from, Message::Change { view, saying: Saying::Decided(last) });
            }
            return;
        }
        if let Saying::Decided(next) = &saying
            && next.view.id > current.next()
        {
            // The group is more than one view ahead: whatever this node missed, it is in none of them.
            return self.evicted(now, from, next.view.id);
        }
        if view > current {
            if self.early.len() >= EARLY {
                self.early.pop_front();
            }
            self.early.push_back((from, Message::Change { view, saying }));
            // Whoever is further knows what was decided.
            self.say(from, Message::Change { view: current, saying: Saying::Nudge });
            return;
        }
        if self.is_stranger(from) {
            return;
        }
        if let Some(change) = &mut self.change {
            change.on_said(from, saying);
        }
        self.pump(now, from);
    }

    /// Whether this life of a node is no member of the installed view.
    fn is_stranger(&self, node: NodeId) -> bool {
        let said = self.peers.get(&node).and_then(|peer| peer.hello.as_ref()).map(|hello| hello.incarnation);
        self.incarnation_of(node).is_none() || said != self.incarnation_of(node)
    }

    /// Carries out what the change wants. `from` is who said what led to it, or this node.
    pub(super) fn pump(&mut self, now: Time, from: NodeId) {
        if let Some(accepted) =
            self.change.as_ref().and_then(Change::accepted).map(|(_, next)| next.view.clone())
        {
            self.note(&accepted, None);
        }
        while let Some(effect) = self.change.as_mut().and_then(|change| change.poll_effect()) {
            match effect {
                Effect::Wedge { shards, fence } => self.wedge(shards, fence),
                Effect::Say(node, saying) => {
                    let Some(view) = self.view().map(|view| view.id) else { return };
                    self.say(node, Message::Change { view, saying });
                }
                Effect::Fetch(fetch) => self.fetch(fetch),
                Effect::Decided(next) => {
                    self.decided(now, from, next);
                    return;
                }
            }
        }
        let Some(change) = &self.change else { return };
        if !change.has_begun() {
            return;
        }
        let phase = change.phase();
        if let Phase::Installed(view) | Phase::Changing(view, _) = &self.phase {
            self.phase = Phase::Changing(view.clone(), phase);
        }
        if self.changing.patient_until.is_none() {
            self.changing.patient_until = Some(now.plus(self.patience()));
        }
    }

    /// How long to wait for who does not answer, or for a decision. Longer each time, and not the same at any two nodes: rivals must not
    /// outbid each other for ever.
    fn patience(&mut self) -> Duration {
        let base = (self.detection.interval() * 4).clamp(LEAST_PATIENCE, MOST_PATIENCE);
        let more = base * self.changing.rounds.min(8) / 2;
        let jitter = self.random.number() % (base.as_micros() as u64).max(1);
        base + more + Duration::from_micros(jitter)
    }

    fn wedge(&mut self, shards: Vec<ShardId>, fence: Vec<NodeId>) {
        let Some(current) = self.view() else { return };
        let (view, me) = (current.id, self.terms.me);
        let mine = shards.iter().filter_map(|id| Some((*id, current.shard(*id)?)));
        let mine: Vec<_> =
            mine.filter(|(_, shard)| shard.members.contains(&me)).map(|(id, it)| (id, it.since)).collect();
        self.wedged.extend(mine);
        let fence = fence.into_iter().filter_map(|node| self.links.end(node)).collect();
        self.changing.wedging += 1;
        self.drive(Order::Wedge { view, shards, fence });
    }

    /// V2: everything is frozen, and who was to be fenced is.
    pub(super) fn wedged(&mut self, now: Time, view: ViewId, frozen: Vec<Frozen>) {
        if self.view().map(|view| view.id) != Some(view) || self.changing.wedging == 0 {
            return;
        }
        self.changing.wedging -= 1;
        if self.changing.wedging > 0 {
            return; // more is being fenced; the last report counts
        }
        let lacks = self.lacking.iter().copied().collect();
        let (severed, linked) = (self.severed(), self.joiners_linked());
        let report = Report { frozen, severed, linked, busy: self.busy(), lacks, ..Report::default() };
        if let Some(change) = &mut self.change {
            change.on_wedged(report);
        }
        self.pump(now, self.terms.me);
    }

    /// Members with data that this one has no link to, or won't go on with: one that leads is not cut off as long as it is heard, and may stand
    /// still all the same.
    fn severed(&self) -> Vec<NodeId> {
        let Some(view) = self.view().filter(|_| self.role == Role::Data) else { return Vec::new() };
        let others = view.data().filter(|member| member.node != self.terms.me);
        others
            .filter(|member| {
                self.still.contains(&member.node)
                    || !self.links.is_up(member.node)
                    || self.links.incarnation(member.node) != Some(member.incarnation)
            })
            .map(|member| member.node)
            .collect()
    }

    /// A session is over here: its place is free (V10).
    pub(super) fn retire(&mut self, now: Time, shard: ShardId, since: ViewId) {
        let is_it = |place: &Place, used: &Used| place.shard == shard && used.since == since;
        let Some((place, used)) = self.places.iter_mut().find(|(place, used)| is_it(place, used)) else {
            return;
        };
        used.retired = true;
        let place = *place;
        self.say_all(&Message::Retired(shard, since));
        if let Some(change) = &mut self.change {
            change.on_free(place);
            self.pump(now, self.terms.me);
        }
    }

    pub(super) fn on_peer_retired(&mut self, node: NodeId, shard: ShardId, since: ViewId) {
        if let Some(peer) = self.peers.get_mut(&node).filter(|_| self.terms.has(shard)) {
            let retired = peer.retired.entry(shard).or_insert(since);
            *retired = since.max(*retired);
        }
    }

    /// Time passes in a view that ends; `awake` of it at this node.
    pub(super) fn be_patient(&mut self, now: Time, awake: Duration) {
        let Phase::Changing(view, _) = &self.phase else { return };
        let view = view.clone();
        self.changing.waited += awake;
        if self.changing.waited >= self.quorum_within {
            let reached = |member: &Member| {
                let hello = self.peers.get(&member.node).and_then(|peer| peer.hello.as_ref());
                // A link over which nothing comes is as good as none: it may take the kernel minutes to see that.
                hello.is_some_and(|hello| hello.incarnation == member.incarnation)
                    && self.detection.hears(member.node)
            };
            let others = view.members.iter().filter(|member| member.node != self.terms.me);
            let unreached: Vec<_> = others.filter(|it| !reached(it)).map(|member| member.node).collect();
            // Only for want of a majority, or of one without whom nobody has data to go on with: a change that waits for something else goes on
            // waiting, and says for what.
            let held = self.change.as_ref().map(Change::held_up_by).unwrap_or_default();
            if view.members.len() - unreached.len() < view.majority()
                || held.iter().any(|node| unreached.contains(node))
            {
                let reason = Stopped::NoQuorum { view: view.id, within: self.quorum_within, unreached };
                return self.alone(now, reason);
            }
            // P3: whoever had it comes again as another, whom this view can't take in before it has ended. So all begin again.
            let shards = self.change.as_ref().map(Change::lacking).unwrap_or_default();
            if !shards.is_empty() {
                return self.alone(now, Stopped::NoLog { view: view.id, within: self.quorum_within, shards });
            }
        }
        if self.changing.patient_until.is_none_or(|at| at > now) {
            return;
        }
        self.changing.rounds += 1;
        self.changing.patient_until = Some(now.plus(self.patience()));
        if self.changing.wedging == 0 {
            self.fetch_again();
            if let Some(change) = &mut self.change {
                change.on_patience();
            }
            self.pump(now, self.terms.me);
        }
    }

    /// V1, V4: the next view is decided.
    fn decided(&mut self, now: Time, from: NodeId, next: Next) {
        let me = self.me();
        let stays = next.view.member(me.node).is_some_and(|member| member.incarnation == me.incarnation);
        let leaves = self.leaving.contains(&me.node);
        if stays {
            let old = self.view().cloned();
            self.install(now, next, old, Logs::default());
        } else if leaves && self.has_failed() {
            self.drive(Order::Over(Stopped::Unlearned));
            self.seek_members();
            self.renew(now);
        } else if leaves {
            // All that it sent is delivered. It delivers what else lies below the trim, and tells the view, if it can end there.
            if self.change.as_ref().is_some_and(|change| change.covers(&next)) {
                let view = next.view.clone();
                let renew = Vec::new();
                let Logs { behind, level } = Logs::default();
                let slots = BTreeMap::new();
                let install = Install { view, behind, slots, cut: Some(next.cuts), level, renew };
                self.drive(Order::Install(install));
            }
            self.phase = Phase::Stopped(Stopped::Closed);
            self.drive(Order::Stop(Stopped::Closed));
        } else {
            self.evicted(now, from, next.view.id);
        }
    }

    fn evicted(&mut self, now: Time, by: NodeId, view: ViewId) {
        self.alone(now, Stopped::Evicted { view, by });
    }

    /// V5: this incarnation is over. It delivers nothing more; if it is to repair itself, it joins as a new one.
    pub(super) fn alone(&mut self, now: Time, reason: Stopped) {
        tracing::warn!(%reason, "this node is out of the group");
        if !self.rejoin {
            return self.stop(crate::link::message::Goodbye::Left, reason);
        }
        self.seek_members();
        self.drive(Order::Over(reason));
        self.renew(now);
    }

    /// The members of the view are where the group is to be found.
    fn seek_members(&mut self) {
        let seeds: Vec<_> =
            self.view().into_iter().flat_map(|view| view.members.iter()).map(|it| it.address).collect();
        self.seeds.extend(seeds);
        self.seeds.remove(&self.address);
    }

    /// V3: asks one who has what is missing here.
    fn fetch(&mut self, fetch: Fetch) {
        let since = self.view().and_then(|view| view.shard(fetch.shard)).map(|shard| shard.since);
        let (Some(view), Ok(rank)) = (since, u32::try_from(fetch.rank)) else { return };
        let want = Want { view, shard: fetch.shard, rank, from: fetch.from, to: fetch.to };
        if self.changing.fetches.iter().any(|fetching| fetching.want == want) {
            return;
        }
        self.changing.fetches.push(Fetching { want, bytes: Vec::new(), asked: vec![fetch.holder] });
        self.say(fetch.holder, Message::Want(want));
    }

    /// Whoever was asked may be gone: asks another.
    fn fetch_again(&mut self) {
        let Some(view) = self.view().cloned() else { return };
        for at in 0..self.changing.fetches.len() {
            let fetching = &mut self.changing.fetches[at];
            let (want, me) = (fetching.want, self.terms.me);
            let members = view.shard(want.shard).map(|shard| &shard.members[..]).unwrap_or_default();
            let others = || members.iter().copied().filter(|node| *node != me);
            if others().all(|node| fetching.asked.contains(&node)) {
                fetching.asked.clear();
            }
            if let Some(next) = others().find(|node| !fetching.asked.contains(node)) {
                fetching.asked.push(next);
                fetching.bytes.clear();
                self.say(next, Message::Want(want));
            }
        }
    }

    /// Another member lacks records that this one may have.
    pub(super) fn on_want(&mut self, from: NodeId, want: Want) {
        let Some(part) = part_of(&want) else { return };
        self.changing_wants(from, want);
        self.drive(Order::Read(part));
    }

    fn changing_wants(&mut self, from: NodeId, want: Want) {
        self.wanted.retain(|(node, known)| (*node, *known) != (from, want));
        if self.wanted.len() < EARLY {
            self.wanted.push((from, want));
        }
    }

    /// What was to be read for others.
    pub(super) fn send_part(&mut self, part: Part, bytes: Option<&[u8]>) {
        let (these, others): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.wanted).into_iter().partition(|(_, want)| part_of(want) == Some(part));
        self.wanted = others;
        for (node, want) in these {
            let Some(bytes) = bytes else { continue }; // it asks another, in time
            let pieces = bytes.chunks(PIECE).count();
            for (piece, bytes) in bytes.chunks(PIECE).enumerate() {
                let at = (piece * PIECE) as u64;
                let last = piece + 1 == pieces;
                self.say(node, Message::Part { want, at, bytes: bytes.to_vec(), last });
            }
        }
    }

    pub(super) fn on_part(&mut self, from: NodeId, want: Want, at: u64, bytes: &[u8], last: bool) {
        let Some(place) = self.changing.fetches.iter().position(|fetching| fetching.want == want) else {
            return;
        };
        let fetching = &mut self.changing.fetches[place];
        let most = want.to.saturating_sub(want.from);
        let fits = fetching.bytes.len() as u64 == at && at + bytes.len() as u64 <= most;
        if fetching.asked.last() != Some(&from) || !fits {
            return;
        }
        fetching.bytes.extend_from_slice(bytes);
        if last && fetching.bytes.len() as u64 == most {
            let bytes = self.changing.fetches.swap_remove(place).bytes;
            if let Some(part) = part_of(&want) {
                self.drive(Order::Supply { part, bytes });
            }
        }
    }

    pub(super) fn supplied(&mut self, now: Time, part: Part, sound: bool) {
        let since = self.view().and_then(|view| view.shard(part.shard)).map(|shard| shard.since);
        if since != Some(part.view) || !sound {
            return; // asked for again, of another, when patience ends
        }
        if let Some(change) = &mut self.change {
            change.on_supplied(part.shard, part.rank, part.to);
        }
        self.pump(now, self.terms.me);
    }

    /// What was said early about the view that is installed now.
    pub(super) fn catch_up(&mut self, now: Time) {
        for (from, message) in std::mem::take(&mut self.early) {
            if let Message::Change { view, saying } = message {
                self.on_change(now, from, view, saying);
            }
        }
    }
}

fn part_of(want: &Want) -> Option<Part> {
    let rank = usize::try_from(want.rank).ok()?;
    (want.from < want.to).then_some(Part {
        view: want.view,
        shard: want.shard,
        rank,
        from: want.from,
        to: want.to,
    })
}
