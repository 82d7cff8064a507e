//! What a node has on disk (P1, P2): [`ShardLog`], the log of one durable shard, and [`Home`], the file that says whose data this is and
//! which view it was in last.
//!
//! The driver appends what its sessions hand over, takes the logs' turns beside its own, and lets each session know how far its log is flushed. It
//! waits for no disk: a thread of the disk's own writes, and rings the node's bell.
//!
//! # The order of things
//! Everything that the sessions before left is in the log before the view that follows them; the view is in the log, and in the [`Home`],
//! before a message behind it counts as flushed (P3). So whoever says that it has written down a message of a view, has the view, and
//! everything before.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use consort_dataplane::fabric::Doorbell;
use consort_dataplane::log::disk::Job;
use consort_dataplane::log::meta::{self, Mark};
use consort_dataplane::log::snapshot::{Arrival, SnapshotReader};
use consort_dataplane::log::{
    AppendError, Disk, DiskError, Entry, From, Index, Log, LogCounts, LogKind, LogOptions, Meta, Payload,
    Reader, Tip, segment_number, snapshot,
};
use consort_dataplane::names::{NodeId, Rank, Seq, ViewId};
use consort_dataplane::session::{Delivery, Logged, Verdict};

use super::data::{DataError, MakeDisk};
use super::event::Incoming;
use super::keeping::{Keeping, Kept};
use super::restore::{Progress, Restore, Source};
use super::teaching::SnapshotRequest;
use crate::config::NodeConfig;
use crate::held::{Held, HeldTip};
use crate::link::message::{HELD_LEN, PIECE_LEN};
use crate::transfer::Given;
use crate::view::{ShardId, View};

/// Sessions of a shard that are here at once, at most: those that deliver, and the one that runs.
const SESSIONS: usize = 8;

/// Bytes of another's log that may wait to be appended.
const MOST_AHEAD: usize = 4 << 20;

/// What a hello says of 64 logs, at most.
const TIPS_LEN: usize = 64 * 32;

/// Why a node of a group that delivers ahead of its logs can't go on: who was told more than the group has is to begin anew (P3).
const TAKEN_BACK: &str = "after all were lost the group began again without some of what this node's application was told before the logs had it: \
                          start the node again, as a new process, whose application begins with what the group has";

/// Records that are told again in one turn.
const A_TURN: u64 = 256;

/// What segments have where snapshots bound a log, at least.
const LEAST_SEGMENT: u64 = if cfg!(test) { 4 << 10 } else { 256 << 10 };

/// A log goes by whole segments, so these are a part of what it may grow by.
fn segment_bytes(snapshot_every: Option<u64>) -> u64 {
    let most = if cfg!(test) { 16 << 10 } else { LogOptions::default().segment_bytes };
    snapshot_every.map_or(most, |every| (every / 4).clamp(LEAST_SEGMENT, most))
}

/// All that a node has on disk.
pub(crate) struct Data {
    pub(crate) home: Home,
    /// By number of the shard; none for those that aren't durable.
    pub(crate) logs: Vec<Option<ShardLog>>,
}

impl Data {
    /// Opens what there is, or begins with nothing. None if no group is durable. Waits for the disk.
    pub(crate) fn open(config: &NodeConfig, make: Option<&mut MakeDisk>) -> Result<Option<Self>, DataError> {
        let shapes = config.shapes();
        if !shapes.iter().any(|shape| shape.guarantee.durable()) {
            return Ok(None);
        }
        let (Some(make), Some(data)) = (make, &config.data) else { return Err(DataError::Missing) };
        let mut disk = make(data)?;
        let fresh = Meta { cluster: config.cluster.clone(), node: config.id, ..Meta::default() };
        let known = Meta::read(&mut *disk)?;
        let is_new = known.is_none();
        let meta = known.unwrap_or(fresh);
        if meta.cluster != config.cluster || meta.node != config.id {
            let Meta { cluster, node, .. } = meta;
            return Err(DataError::NotOurs { directory: data.clone(), cluster, node });
        }
        if is_new {
            meta.write(&mut *disk)?;
        }
        let mut home =
            Home::new(disk, meta).map_err(|()| DataError::Unreadable { directory: data.clone() })?;
        let mut logs = Vec::new();
        for (id, shape) in (0..).map(ShardId).zip(&shapes) {
            if !shape.guarantee.durable() {
                logs.push(None);
                continue;
            }
            let directory = data.join(format!("shard-{id}"));
            let snapshot_every = shape.state.then_some(config.snapshot_every);
            let segment_bytes = segment_bytes(snapshot_every);
            let most_waiting = shape.ring_bytes * 4;
            let options = LogOptions { shard: id.0, segment_bytes, most_waiting, ..LogOptions::default() };
            let mut disk = make(&directory)?;
            let is_gone = !disk.list()?.iter().any(|(name, _)| segment_number(name).is_some());
            let opened = Log::open(disk, options, Index(0));
            let (log, _) = opened.map_err(|cause| DataError::Log { directory, cause })?;
            // A log is there before its node is in any view.
            if home.is_member(id) && is_gone {
                home.meta.set_damaged(id.0);
            }
            let mut log = ShardLog::new(log, home.meta.damaged.contains_key(&id.0), snapshot_every);
            log.is_ahead = shape.guarantee.ahead_of_logs();
            logs.push(Some(log));
        }
        Ok(Some(Self { home, logs }))
    }

    /// What to ring when something was written.
    pub(crate) fn set_bell(&mut self, bell: &Doorbell) {
        self.home.disk.set_bell(bell.clone());
        for log in self.logs.iter_mut().flatten() {
            log.log.disk().set_bell(bell.clone());
        }
    }
}

/// The file that says whose data this is.
pub(crate) struct Home {
    disk: Box<dyn Disk>,
    meta: Meta,
    /// The view in it; one without members before the first.
    view: View,
    /// Those that this node has agreed to have next, and those that they follow.
    next: Vec<View>,
    /// That of them which it voted for last.
    voted: Option<View>,
    /// The view that is flushed.
    written: ViewId,
    /// Replacements that were submitted, and those that are done.
    submitted: u64,
    done: u64,
    /// Notes that wait for so many to be done.
    notes: VecDeque<u64>,
}

impl Home {
    /// As it was found.
    ///
    /// # Errors
    /// The views in it can't be read.
    fn new(disk: Box<dyn Disk>, meta: Meta) -> Result<Self, ()> {
        let none = View { id: ViewId(0), members: Vec::new(), shards: Vec::new() };
        let view = if meta.view == ViewId(0) {
            none
        } else {
            postcard::from_bytes(&meta.members).map_err(|_| ())?
        };
        let next = if meta.next.is_empty() {
            Vec::new()
        } else {
            postcard::from_bytes(&meta.next).map_err(|_| ())?
        };
        let written = meta.view;
        Ok(Self {
            disk,
            meta,
            view,
            next,
            voted: None,
            written,
            submitted: 0,
            done: 0,
            notes: VecDeque::new(),
        })
    }

    /// Whether its node is a member of a shard in the view that it was in last.
    fn is_member(&self, shard: ShardId) -> bool {
        self.view.shard(shard).is_some_and(|shard| shard.members.contains(&self.meta.node))
    }

    /// A view is installed, which follows that one, or the one before.
    pub(crate) fn on_view(&mut self, me: NodeId, view: &View, behind: Option<ViewId>) {
        if view.members.is_empty() {
            return; // the last have left, and who begins again goes on behind the view that they had
        }
        self.view = view.clone();
        self.meta.view = view.id;
        self.meta.behind = behind.unwrap_or(ViewId(view.id.0.saturating_sub(1)));
        self.meta.members = encode(view);
        self.meta.mark = if view.member(me).is_some() { Mark::Open } else { Mark::Left };
        self.keep_next(self.next.iter().filter(|next| next.id > view.id).cloned().collect());
        self.write();
    }

    /// P3: this node agrees to have that view next: a vote, or a first view behind one that it may know from others alone.
    ///
    /// # Errors
    /// It has agreed to too many that came to nothing.
    pub(crate) fn note(&mut self, view: View, behind: Option<View>) -> Result<(), String> {
        // A vote takes the place of the one before, which can't come to anything any more (V3); nothing else does.
        let before = self.voted.take();
        let mut next = self.next.clone();
        next.retain(|next| Some(next) != before.as_ref());
        self.voted = behind.is_none().then(|| view.clone());
        let newer = behind.filter(|behind| behind.id > self.view.id);
        for view in newer.into_iter().chain([view]) {
            if !next.contains(&view) {
                next.push(view);
            }
        }
        self.keep_next(next);
        if self.meta.members.len() + self.meta.next.len() > HELD_LEN - TIPS_LEN {
            return Err(format!(
                "it has agreed to {} views, of which none came to be, and may forget none of them: if the group runs, start this node with an \
                 empty data directory; it joins the others anew",
                self.next.len()
            ));
        }
        self.write();
        self.notes.push_back(self.submitted);
        Ok(())
    }

    fn keep_next(&mut self, next: Vec<View>) {
        // Nothing in a view fails to encode.
        self.meta.next = postcard::to_allocvec(&next).unwrap_or_default();
        self.next = next;
    }

    /// How many notes were written since this was asked last.
    pub(crate) fn take_noted(&mut self) -> usize {
        let noted = self.notes.iter().take_while(|note| **note <= self.done).count();
        self.notes.drain(..noted);
        noted
    }

    /// A log that lacked something has it all, and has it flushed.
    pub(crate) fn made_whole(&mut self, shard: ShardId) {
        if self.meta.damaged.remove(&shard.0).is_some() {
            self.write();
        }
    }

    /// What this node has on disk, given how far its logs are; none if it never agreed to a view.
    pub(crate) fn held<'a>(&self, logs: impl Iterator<Item = (ShardId, &'a ShardLog)>) -> Option<Held> {
        let (view, next) = (self.view.clone(), self.next.clone());
        if view.id == ViewId(0) && next.is_empty() {
            return None;
        }
        let tip = |(id, log): (ShardId, &ShardLog)| {
            let Tip { index, view: at, chain, .. } = *log.log.tip();
            HeldTip {
                shard: id,
                view: at.0,
                index: index.0,
                chain,
                damaged: self.meta.damaged.get(&id.0).map(|view| view.0),
            }
        };
        let tips = logs.map(tip).collect();
        Some(Held { view, behind: self.meta.behind, next, tips })
    }

    fn write(&mut self) {
        self.submitted += 1;
        self.disk.submit(Job::Replace(meta::NAME.to_owned(), self.meta.encode()));
    }

    /// Takes in what was written. Never waits.
    pub(crate) fn turn(&mut self) -> Result<bool, DiskError> {
        let mut any = false;
        while let Some(done) = self.disk.poll() {
            done.result?;
            any = true;
            self.done += 1;
            if self.done == self.submitted {
                self.written = self.meta.view;
            }
        }
        Ok(any)
    }

    /// The view that is flushed, and those before it.
    pub(crate) fn written(&self) -> ViewId {
        self.written
    }

    /// Whether something was written since the last turn.
    pub(crate) fn has_news(&self) -> bool {
        self.disk.has_news()
    }
}

/// A view as it is kept.
pub(crate) fn encode(view: &View) -> Vec<u8> {
    // Nothing in a view fails to encode.
    postcard::to_allocvec(view).unwrap_or_default()
}

impl View {
    /// The view that is the payload of a log's record ([`LogKind::View`]). `None` if it can't be read, as when another release has written it.
    pub fn of_record(payload: &[u8]) -> Option<Self> {
        postcard::from_bytes(payload).ok()
    }
}

/// The log of one durable shard.
pub(crate) struct ShardLog {
    log: Log,
    /// The newest sessions of which the view is in the log, and where.
    begun: VecDeque<(ViewId, Index)>,
    /// The application was told everything up to here.
    told: Index,
    /// What is told again of what an earlier life had written down.
    replay: Option<Replay>,
    /// What is here of the log of a member that has more.
    missing: Option<Missing>,
    /// On disk it lacks something: until what is fetched is there, with the view behind it.
    lacks: bool,
    /// Who gets this log's records, and how far each is.
    served: BTreeMap<NodeId, Served>,
    keeper: Keeper,
    /// A snapshot that the application restores, and the record behind which it is.
    restoring: Option<(Arc<Progress>, Index)>,
    /// The application is told what no log may have yet.
    is_ahead: bool,
}

/// When the application is asked for a snapshot (P4), and the one that it makes.
struct Keeper {
    /// When so many bytes were written since; `None` if it has no state.
    every: Option<u64>,
    /// What had been written at the last one.
    at: u64,
    /// Bytes that were there when the log was opened, and are in no snapshot.
    before: u64,
    kept: Option<Arc<Kept>>,
    /// The view that the application was told last, as it is kept.
    view: Vec<u8>,
    /// The session of this life that began with it.
    since: ViewId,
}

/// Records that are told again, up to one.
struct Replay {
    reader: Reader,
    upto: Index,
    /// The view that was told last, for its members' ranks.
    view: Option<View>,
}

/// A log that is fetched, up to the view with which a session began.
struct Missing {
    since: ViewId,
    /// The members of that session, and which of them is asked.
    from: Vec<NodeId>,
    turn: usize,
    /// What was asked for: a stream behind this record, and so much of it has come.
    behind: (Index, u32),
    got: u64,
    /// What has come and isn't appended yet.
    bytes: Vec<u8>,
    /// What comes is a snapshot.
    is_snapshot: bool,
    /// An answer is awaited.
    is_asked: bool,
    /// Nothing has come since the last beat.
    is_idle: bool,
}

impl Missing {
    /// Asks for a stream behind what is here now.
    fn begin_again(&mut self, tip: &Tip) {
        (self.behind, self.got) = ((tip.index, tip.chain), 0);
        (self.is_asked, self.is_idle, self.is_snapshot) = (false, false, false);
        self.bytes.clear();
    }
}

/// A stream of this log for another member.
struct Served {
    reader: Reader,
    behind: Index,
    given: u64,
    /// What was read, and how much of it is given.
    pending: Vec<u8>,
    from: usize,
}

/// What to ask another member for.
pub(crate) struct Wanted {
    pub(crate) node: NodeId,
    pub(crate) since: ViewId,
    pub(crate) behind: u64,
    pub(crate) chain: u32,
    pub(crate) at: u64,
}

/// What is told of what was written down, borrowed for a call.
pub(crate) type Telling<'a> = dyn FnMut(Incoming<'_, '_>) -> Verdict + 'a;

impl ShardLog {
    fn new(log: Log, lacks: bool, snapshot_every: Option<u64>) -> Self {
        let (begun, served) = (VecDeque::new(), BTreeMap::new());
        let before = log.segments().iter().map(|segment| segment.end).sum();
        let keeper =
            Keeper { every: snapshot_every, at: 0, before, kept: None, view: Vec::new(), since: ViewId(0) };
        Self {
            log,
            begun,
            told: Index(0),
            replay: None,
            missing: None,
            lacks,
            served,
            keeper,
            restoring: None,
            is_ahead: false,
        }
    }

    /// A message has its place in the order. Returns its stamp; `None` if the disk is behind, or broken, which the next turn says.
    pub(crate) fn append(&mut self, logged: &Logged<'_>) -> Option<u64> {
        // The view first.
        if self.begun.back().is_none_or(|(begun, _)| *begun < logged.view) {
            return None;
        }
        let payload = Payload::Lying(logged.payload, logged.memory, logged.range.clone());
        let Logged { view, seq, sender, sent, .. } = *logged;
        let entry = Entry { kind: LogKind::Message, view, seq, sent, sender, payload };
        self.log.append(&entry).ok().map(|tip| tip.stamp.0)
    }

    /// Whether the view with which that session began is in the log.
    pub(crate) fn has_begun(&self, since: ViewId) -> bool {
        self.begun.back().is_some_and(|(begun, _)| *begun >= since)
    }

    fn begun(&mut self, since: ViewId, at: Index) {
        self.begun.push_back((since, at));
        if self.keeper.since == since {
            self.told = self.told.max(at); // the application was told the view before it was written down
        }
        if self.begun.len() > SESSIONS {
            self.begun.pop_front();
        }
    }

    /// A session begins with this view, and all that came before it in the shard is in the log. Returns false if that isn't so yet: the disk is
    /// behind, or another member has more.
    pub(crate) fn begin(&mut self, view: &View) -> bool {
        if self.missing.is_some() || is_arriving(&self.log) {
            return false;
        }
        let (bytes, kind) = (encode(view), LogKind::View);
        let tip = self.log.tip();
        let (seq, sender) = (Seq(0), NodeId(0));
        // A view has no sender's clock; its stamp is that of what is before it, and one more.
        let sent = tip.stamp.0;
        let entry = Entry { kind, view: view.id, seq, sent, sender, payload: Payload::Copied(&bytes) };
        match self.log.append(&entry) {
            Ok(tip) => {
                self.begun(view.id, tip.index);
                true
            }
            Err(AppendError::Behind(_)) => false,
            Err(_) => true, // the next turn says so
        }
    }

    /// The session that began with that view is the first that this node is in after a while, and others may have more in their logs: it is
    /// fetched from one of these, up to the view.
    pub(crate) fn lack(&mut self, since: ViewId, from: Vec<NodeId>) {
        let behind = (self.log.tip().index, self.log.tip().chain);
        self.lacks = true;
        self.missing = Some(Missing {
            since,
            from,
            turn: 0,
            behind,
            got: 0,
            bytes: Vec::new(),
            is_snapshot: false,
            is_asked: false,
            is_idle: false,
        });
    }

    /// What is fetched is to be had from these now.
    pub(crate) fn lack_from(&mut self, from: Vec<NodeId>) {
        let tip = *self.log.tip();
        let Some(it) = &mut self.missing else { return };
        let asked = it.from.get(it.turn % it.from.len().max(1)).copied();
        it.turn = from.iter().position(|node| Some(*node) == asked).unwrap_or_else(|| {
            it.begin_again(&tip);
            0
        });
        it.from = from;
    }

    /// Goes on with fetching: appends what has come, and says what to ask for.
    ///
    /// # Errors
    /// What has come doesn't follow on this log.
    pub(crate) fn fetch(&mut self) -> Result<(bool, Option<Wanted>), String> {
        let Self { log, missing, .. } = self;
        let Some(it) = missing else { return Ok((false, None)) };
        // All of it may have come before this node was left out, and comes to this fetch then.
        it.is_snapshot |= is_arriving(log);
        if it.is_snapshot {
            match log.arrival() {
                None => it.begin_again(log.tip()), // it is here, and what follows is the next to ask for
                Some(arrival) if arrival.is_complete() || arrival.waiting() > MOST_AHEAD => {
                    return Ok((false, None));
                }
                Some(_) => {}
            }
        }
        let mut view = None;
        let since = it.since;
        let done = log
            .append_copied(&it.bytes, &mut |header| {
                let is_it = header.kind == LogKind::View && header.view >= since;
                view = view.or(is_it.then_some((header.view, header.index)));
                !is_it
            })
            .map_err(|error| error.to_string())?;
        it.bytes.drain(..done);
        if let Some((view, at)) = view {
            if view != since {
                return Err(format!("view {view} follows there, where view {since} was expected"));
            }
            self.missing = None;
            self.begun(since, at);
            return Ok((true, None));
        }
        if it.is_asked || it.bytes.len() > MOST_AHEAD && log.waiting() > 0 {
            return Ok((done > 0, None));
        }
        let Some(node) = it.from.get(it.turn % it.from.len().max(1)) else { return Ok((done > 0, None)) };
        it.is_asked = true;
        let (behind, chain) = it.behind;
        Ok((true, Some(Wanted { node: *node, since, behind: behind.0, chain, at: it.got })))
    }

    /// Some time has passed: whoever was asked and has said nothing may be gone, or has no more itself.
    pub(crate) fn on_beat(&mut self) {
        let tip = *self.log.tip();
        let Some(it) = &mut self.missing else { return };
        if it.is_snapshot && !it.is_asked {
            return; // this disk is slow
        }
        if std::mem::replace(&mut it.is_idle, true) {
            it.turn += 1;
            it.begin_again(&tip);
        }
    }

    /// More of another member's log.
    ///
    /// # Errors
    /// What is here is of another history, and was told already.
    pub(crate) fn on_part(
        &mut self,
        node: NodeId,
        (behind, at): (u64, u64),
        given: &Given,
    ) -> Result<(), String> {
        // What a snapshot has is cut from no log.
        let told = self.log.snapshot().map_or(self.told, |(tip, _)| self.told.max(tip.index));
        let Some(it) = &mut self.missing else { return Ok(()) };
        let is_asked = it.from.get(it.turn % it.from.len().max(1)) == Some(&node);
        if !is_asked || (behind, at) != (it.behind.0.0, it.got) {
            return Ok(());
        }
        if *given == Given::Other {
            // What is beyond is a ragged edge, which was never reported. It is somewhere in the last session here, behind what was told.
            let Tip { index, next_seq, .. } = *self.log.tip();
            if told >= index && self.is_ahead {
                return Err(TAKEN_BACK.to_owned());
            }
            if told >= index {
                return Err("its log is of another history than the group's: start the node with an empty data directory".to_owned());
            }
            if !self.log.is_idle() {
                return Ok(()); // asked again with a beat
            }
            let before = Index(index.0.saturating_sub(next_seq.0 + 1)).max(told);
            self.log.truncate_after(before).map_err(|error| error.to_string())?;
            it.begin_again(self.log.tip());
            return Ok(());
        }
        if given.is_empty() {
            return Ok(()); // asked again with a beat
        }
        if at > 0 && it.is_snapshot != given.is_snapshot() {
            it.begin_again(self.log.tip()); // what was there when it was asked for first has gone
            return Ok(());
        }
        match given {
            Given::Records(bytes) => it.bytes.extend_from_slice(bytes),
            Given::Snapshot { index, .. } if *index <= it.behind.0.0 || at == 0 && !self.log.is_idle() => {
                return Ok(()); // asked again with a beat
            }
            Given::Snapshot { index, len, bytes } => {
                let place = (Index(*index), *len, at);
                if at > 0 && self.log.arrival().is_none_or(|arrival| arrival.place() != place) {
                    it.begin_again(self.log.tip());
                    return Ok(());
                }
                let taken = self.log.take_snapshot((place.0, place.1), at, bytes);
                taken.map_err(|error| format!("the snapshot that node {node} gives: {error}"))?;
                it.is_snapshot = true;
            }
            Given::Other => {}
        }
        it.got += given.len() as u64;
        (it.is_asked, it.is_idle) = (false, false);
        Ok(())
    }

    /// Another member wants more of this log. Returns what there is, and whether what it has is of another history. Reads from the disk, what
    /// was written not long ago mostly.
    pub(crate) fn serve(&mut self, node: NodeId, since: ViewId, behind: u64, chain: u32, at: u64) -> Given {
        let nothing = Given::Records(Vec::new());
        // Who lacks something itself doesn't know yet what the shard had.
        let begun = self.begun.iter().find(|(begun, _)| *begun >= since);
        let Some((_, begun)) = begun.filter(|_| self.missing.is_none()) else { return nothing };
        let behind = Index(behind);
        let tip = *self.log.tip();
        let is_here = behind >= *begun;
        if behind >= tip.index || is_here {
            // Who asks lacks the newest view, so all it has is before that.
            let is_other = is_here || behind == tip.index && chain != tip.chain;
            return if is_other { Given::Other } else { nothing };
        }
        if behind >= self.log.durable() {
            return nothing; // before it is written another log may lie there
        }
        if behind.next() < self.log.first() {
            return self.serve_snapshot(at).unwrap_or(nothing);
        }
        let is_next = |served: &Served| served.behind == behind && served.given == at;
        if !self.served.get(&node).is_some_and(is_next) {
            if at != 0 {
                return nothing;
            }
            let Ok(reader) = Reader::open(self.log.disk().beside(), From::Index(behind.next())) else {
                return nothing;
            };
            self.served.insert(node, Served { reader, behind, given: 0, pending: Vec::new(), from: 0 });
        }
        let Some(served) = self.served.get_mut(&node) else { return nothing };
        if served.pending.len() - served.from < PIECE_LEN {
            served.pending.drain(..std::mem::take(&mut served.from));
            if served.reader.copy(&mut served.pending, PIECE_LEN).is_err() {
                self.served.remove(&node);
                return nothing;
            }
        }
        if at == 0 && chain_before(&served.pending).is_some_and(|before| before != chain) {
            self.served.remove(&node);
            return Given::Other;
        }
        let rest = &served.pending[served.from..];
        let piece = rest[..rest.len().min(PIECE_LEN)].to_vec();
        served.from += piece.len();
        served.given += piece.len() as u64;
        Given::Records(piece)
    }

    /// A part of the snapshot that stands for what is not in the log any more.
    fn serve_snapshot(&mut self, at: u64) -> Option<Given> {
        let (tip, len) = self.log.snapshot()?;
        let index = tip.index;
        let left = usize::try_from(len.saturating_sub(at)).unwrap_or(PIECE_LEN).min(PIECE_LEN);
        let mut bytes = vec![0; left];
        let got = self.log.disk().read(&snapshot::name(index), at, &mut bytes).ok()?;
        (got == left).then_some(Given::Snapshot { index: index.0, len, bytes })
    }

    /// P4: the log has become long. Returns the request for the application, if it has a state. All members of the
    /// session must have begun it: whoever lacks something fetches what is before that.
    pub(crate) fn ask_for_snapshot(&mut self, node: NodeId, bell: &Doorbell) -> Option<SnapshotRequest> {
        let keeper = &mut self.keeper;
        let grown = (self.log.counts().bytes + keeper.before).saturating_sub(keeper.at);
        let is_news = self.log.snapshot().is_none_or(|(tip, _)| tip.index < self.told);
        if keeper.every.is_none_or(|every| grown < every)
            || keeper.kept.is_some()
            || keeper.view.is_empty()
            || self.missing.is_some()
            || !is_news
        {
            return None;
        }
        let (keeping, kept) = Keeping::new(node, self.log.disk().beside(), bell.clone());
        keeper.kept = Some(kept);
        Some(SnapshotRequest::for_log(keeping))
    }

    /// Where the application is told a request.
    pub(crate) fn place(&self) -> Option<(Index, Vec<u8>)> {
        Some((self.told, self.keeper.view.clone()))
    }

    /// The snapshot that is made, unless what it has is still being read, or another member's comes.
    fn kept(&self) -> Option<&Kept> {
        let is_read = self.replay.is_some() || self.restoring.is_some() || self.missing.is_some();
        self.keeper.kept.as_deref().filter(|_| !is_read)
    }

    /// Takes in a snapshot that was made: what it has may go from the log.
    pub(crate) fn keep(&mut self) {
        let Some(made) = self.kept().and_then(Kept::take) else { return };
        self.keeper.kept = None;
        self.keeper.at = self.log.counts().bytes + self.keeper.before;
        match made {
            Ok((tip, bytes)) if self.log.snapshot().is_none_or(|(before, _)| before.index < tip.index) => {
                self.log.on_snapshot(tip, bytes);
                let first = self.log.first();
                tracing::info!(record = %tip.index, bytes, %first, "a snapshot bounds the log");
            }
            Ok(_) => {} // another member's is newer
            Err(why) => tracing::warn!(why, "no snapshot: the log grows on"),
        }
    }

    /// The application was told a view.
    pub(crate) fn on_view_told(&mut self, view: &View) {
        (self.keeper.view, self.keeper.since) = (encode(view), view.id);
        if let Some((_, at)) = self.begun.iter().find(|(begun, _)| *begun == view.id) {
            self.told = self.told.max(*at);
        }
    }

    /// The application was told a message.
    pub(crate) fn on_told(&mut self, view: ViewId, seq: Seq) {
        if let Some((_, at)) = self.begun.iter().find(|(begun, _)| *begun == view) {
            self.told = Index(at.0 + 1 + seq.0);
        }
    }

    /// Tells the application what was written down in earlier lives, or fetched, before the oldest session here. Returns whether all of it is
    /// told, and whether anything was just now.
    ///
    /// # Errors
    /// It can't be read.
    pub(crate) fn tell_again(
        &mut self,
        app: &mut Telling<'_>,
        bell: &Doorbell,
        refused: &mut bool,
    ) -> Result<(bool, bool), String> {
        if self.missing.is_some() {
            return Ok((false, false));
        }
        if let Some((progress, index)) = &self.restoring {
            match progress.is_restored() {
                None => return Ok((false, false)),
                Some(false) => {
                    return Err(
                        "the application did not finish restoring the state that it was given".to_owned()
                    );
                }
                Some(true) => (self.told, self.restoring) = (*index, None),
            }
        }
        if self.replay.is_none() {
            // What comes before the oldest session of this life, of which the view itself is told by that.
            let Some((_, first)) = self.begun.front() else {
                return Ok((self.told == self.log.tip().index, false));
            };
            let upto = Index(first.0 - 1);
            if self.told >= upto {
                return Ok((true, false));
            }
            if let Some((tip, _)) = self.log.snapshot()
                && (self.told == Index(0) || self.told.next() < self.log.first())
                && self.told < tip.index
            {
                return self.restore(tip.index, app, bell, refused).map(|any| (false, any));
            }
            if self.told.next() > self.log.durable() {
                return Ok((false, false)); // before it is written another log may lie there
            }
            let reader = Reader::open(self.log.disk().beside(), From::Index(self.told.next()));
            let reader = reader.map_err(|error| error.to_string())?;
            let view = postcard::from_bytes(&self.keeper.view).ok();
            self.replay = Some(Replay { reader, upto, view });
        }
        let Some(replay) = &mut self.replay else { return Ok((true, false)) };
        let mut any = false;
        // What a turn before has refused is offered again: the reader stands at it.
        while self.told < replay.upto {
            let wanted = self.told.next();
            let Some((header, payload)) = replay.reader.again(wanted).map_err(|error| error.to_string())?
            else {
                break; // appended, and not written yet
            };
            let verdict = match header.kind {
                LogKind::View => {
                    let view = View::of_record(payload)
                        .ok_or_else(|| format!("record {} is no view that can be read", header.index))?;
                    let verdict = app(Incoming::View(&view));
                    payload.clone_into(&mut self.keeper.view);
                    replay.view = Some(view);
                    verdict
                }
                _ => {
                    let rank =
                        replay.view.as_ref().and_then(|view| view.rank_of(header.sender)).unwrap_or(Rank(0));
                    let who = (rank, header.sender);
                    let mut delivery = Delivery::of_another(header.view, header.seq, who, payload);
                    delivery.stamp = header.stamp.0;
                    app(Incoming::Message(&mut delivery))
                }
            };
            if verdict == Verdict::Later {
                *refused = true;
                return Ok((false, any));
            }
            self.told = wanted;
            any = true;
            if self.told.0.is_multiple_of(A_TURN) {
                return Ok((false, true));
            }
        }
        let is_all = self.told >= replay.upto;
        if is_all {
            self.replay = None;
        }
        Ok((is_all, any))
    }

    /// P4: what was told before the log's first record is in a snapshot. Returns whether the application has taken it.
    fn restore(
        &mut self,
        index: Index,
        app: &mut Telling<'_>,
        bell: &Doorbell,
        refused: &mut bool,
    ) -> Result<bool, String> {
        let reader =
            SnapshotReader::open(self.log.disk().beside(), index).map_err(|error| error.to_string())?;
        reader.view().clone_into(&mut self.keeper.view);
        let progress = Progress::new(bell.clone());
        let mut restore = Some(Restore::new(Source::Log(reader), progress.clone()));
        if app(Incoming::Restore(&mut restore)) == Verdict::Later {
            *refused = true;
            return Ok(false);
        }
        drop(restore); // if it is still here, nobody will finish it
        self.restoring = Some((progress, index));
        Ok(true)
    }

    /// This incarnation is over: what comes next is fetched from others.
    pub(crate) fn end(&mut self) {
        self.keeper.since = ViewId(0);
        self.begun.clear();
        self.served.clear();
        (self.replay, self.missing) = (None, None);
    }

    /// Whether it lacks something on disk.
    pub(crate) fn lacks(&self) -> bool {
        self.lacks
    }

    /// Whether it lacks nothing any more, and did when this was asked last.
    pub(crate) fn take_made_whole(&mut self) -> bool {
        let is_begun =
            self.missing.is_none() && self.begun.back().is_some_and(|(_, at)| self.log.durable() >= *at);
        let is_made_whole = self.lacks && is_begun;
        self.lacks &= !is_made_whole;
        is_made_whole
    }

    /// Takes in what was written, and hands over what there is. Never waits.
    pub(crate) fn turn(&mut self) -> Result<bool, DiskError> {
        self.log.turn()
    }

    /// The word `persisted` of that session, given that the home has flushed views up to `home`.
    pub(crate) fn persisted(&self, since: ViewId, home: ViewId) -> u64 {
        match self.begun.back() {
            Some((begun, at)) if *begun == since && home >= since && self.log.durable() >= *at => {
                1 + self.log.durable().0 - at.0
            }
            _ => 0,
        }
    }

    /// The word `persisted`, if what was appended counted.
    #[cfg(test)]
    pub(crate) fn appended(&self, since: ViewId) -> u64 {
        let newest = self.begun.back().filter(|(begun, _)| *begun == since);
        newest.map_or(0, |(_, at)| 1 + self.log.tip().index.0 - at.0)
    }

    /// What was written since it was opened.
    pub(crate) fn counts(&self) -> LogCounts {
        self.log.counts()
    }

    /// Whether all that was appended is flushed.
    pub(crate) fn is_flushed(&self) -> bool {
        self.log.durable() == self.log.tip().index
    }

    /// Whether something was written since the last turn.
    pub(crate) fn has_news(&self) -> bool {
        self.log.has_news()
            || self.kept().is_some_and(Kept::is_over)
            || self.missing.is_none()
                && self.restoring.as_ref().is_some_and(|(progress, _)| progress.is_restored().is_some())
    }
}

/// Whether all of another member's snapshot has come, and takes the log's place when it is written, whatever has become of the fetch that it came for.
fn is_arriving(log: &Log) -> bool {
    log.arrival().is_some_and(Arrival::is_complete)
}

/// The chain before the record that these bytes begin with.
fn chain_before(bytes: &[u8]) -> Option<u32> {
    bytes.get(44..48)?.try_into().ok().map(u32::from_le_bytes)
}

#[cfg(test)]
mod tests;
