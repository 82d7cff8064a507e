//! One simulated run: a few members with the real engine over the simulated fabric, everything chosen by one seed: how
//! many members, which guarantee and which topology, sizes and numbers of messages, delays, tearing, who is slow or pauses, who keeps
//! loans, who crashes and when, and who reports at the end.
//!
//! Each kind of trouble is off in about half of the runs, so that none hides another. After the trouble the run must
//! come to an end: everything delivered if nobody crashed, else the survivors' cut (V2 to V4, with the agreement
//! itself left to an oracle: the trim is handed to all). Where a guarantee doesn't wait for stability, survivors are supplied
//! by others with what they lack below the trim.
//!
//! Members want read points now and then. Each must come after all that anyone had delivered when it was wanted; and one that is
//! wanted by a member that the others have gone on without must not come at all, whoever is slow to learn of that.
//!
//! Some messages are for some of the members only (D12). The others must have their places in the order, and not their bytes.
//!
//! In half of these runs the survivors go on in a second session in the memory of the first (V10): they send again what the
//! trim cut off (D13), then what they hadn't sent yet, and all of it must be delivered.

use std::collections::VecDeque;
use std::time::Duration;

use consort_dataplane::fabric::Fabric;
use consort_dataplane::loan::Loan;
use consort_dataplane::names::{NodeId, Position, Rank, RankSet, Slot, Time, ViewId};
use consort_dataplane::plan::{Guarantee, Member, SessionPlan, Topology};
use consort_dataplane::record::Kind;
use consort_dataplane::ring::{Reservation, ReserveError, RingSender};
use consort_dataplane::session::{Delivery, Mutant, Session, Verdict};
use consort_dataplane::sim::{Choices, SimFabric, SimNetwork, SimOptions};

use crate::history::{Delivered, History};

/// How often each kind of trouble happened, over all runs: a campaign in which one never fired proves nothing of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Trouble {
    /// Publishes seen when only some of their words had landed.
    pub torn: u64,
    /// Reservations refused by a full ring.
    pub full: u64,
    /// Members that crashed.
    pub crashed: u64,
    /// Looks that a pausing member skipped.
    pub paused: u64,
    /// Deliveries that were refused at first.
    pub refused: u64,
    /// Messages kept as loans for a while.
    pub lent: u64,
    /// Times that a survivor was supplied with what it lacked below the trim.
    pub supplied: u64,
    /// Messages sent again in the next view.
    pub resent: u64,
    /// Sessions begun where another had been.
    pub reborn: u64,
    /// Messages delivered.
    pub delivered: u64,
    /// Read points that came.
    pub points: u64,
    /// … in another session than the one that they were wanted in.
    pub points_asked_again: u64,
    /// Members that were left out and wanted a read point.
    pub misled: u64,
    /// Messages passed over by members that they weren't for.
    pub passed_over: u64,
    /// Sessions whose rings travel along a chain.
    pub chained: u64,
    /// Members fenced by one whose session ran on.
    pub lost: u64,
}

impl Trouble {
    /// Adds another run's counts.
    pub fn add(&mut self, other: Self) {
        self.torn += other.torn;
        self.full += other.full;
        self.crashed += other.crashed;
        self.paused += other.paused;
        self.refused += other.refused;
        self.lent += other.lent;
        self.supplied += other.supplied;
        self.resent += other.resent;
        self.reborn += other.reborn;
        self.delivered += other.delivered;
        self.points += other.points;
        self.points_asked_again += other.points_asked_again;
        self.misled += other.misled;
        self.passed_over += other.passed_over;
        self.chained += other.chained;
        self.lost += other.lost;
    }
}

/// What a seed chose.
struct Plan {
    members: usize,
    guarantee: Guarantee,
    ring_bytes: usize,
    options: SimOptions,
    messages: Vec<usize>,
    longest: u64,
    /// In how many of 100 turns each member takes a step.
    speed: Vec<u64>,
    pauses: bool,
    lends: bool,
    refuses: bool,
    /// After how many turns the view changes, and how many crash.
    crash: Option<(u64, usize)>,
    /// Who is left goes on in another session.
    goes_on: bool,
    /// Members want read points.
    reads: bool,
    /// In how many of 100 messages it is for some members only.
    addressed: u64,
    /// Which way ring bytes go.
    topology: Topology,
    /// Who crashed is fenced by some while their sessions run.
    loses: bool,
}

/// A read point that a member wants, and what any member had delivered by then, by sender.
struct Wanted {
    number: u64,
    view: ViewId,
    delivered: Vec<usize>,
}

impl Plan {
    fn choose(seed: u64, c: &mut Choices) -> Self {
        let members = 2 + c.below(4) as usize;
        let guarantee = match c.below(5) {
            0 => Guarantee::Fifo,
            1 => Guarantee::Agreed,
            _ => Guarantee::Atomic,
        };
        let ring_bytes = 4096 << c.below(2);
        let most = if c.chance(50) { 1000 } else { 100_000 };
        let most_messages = [3, 40, 120][c.below(3) as usize];
        let uneven = c.chance(50);
        let topology = if c.chance(40) { Topology::Chain } else { Topology::Direct };
        Self {
            members,
            guarantee,
            ring_bytes,
            options: SimOptions {
                delay: (Duration::from_nanos(c.below(most)), Duration::from_nanos(most)),
                tearing: if c.chance(50) { 40 } else { 0 },
                segment_bytes: SessionPlan::segment_bytes(ring_bytes),
                relays: topology == Topology::Chain,
                publishing_costs: seed.is_multiple_of(2),
            },
            messages: (0..members).map(|_| c.below(most_messages + 1) as usize).collect(),
            longest: if c.chance(50) { 64 } else { ring_bytes as u64 / 2 - 64 },
            speed: (0..members).map(|_| if uneven { 2 + c.below(99) } else { 90 }).collect(),
            pauses: c.chance(50),
            lends: c.chance(50),
            refuses: c.chance(50),
            crash: (members > 2 && c.chance(60))
                .then(|| (c.below(600), c.below((members as u64).div_ceil(2)) as usize)),
            goes_on: c.chance(50),
            reads: c.chance(50),
            addressed: if guarantee.stable() && topology == Topology::Direct && c.chance(50) {
                40
            } else {
                0
            },
            topology,
            loses: c.chance(50),
        }
    }
}

/// The view that all begin in, and the next one in the same memory.
const FIRST: ViewId = ViewId(1);
const SECOND: ViewId = ViewId(1 + SessionPlan::REGIONS as u64);

struct Run {
    plan: Plan,
    mutant: Option<Mutant>,
    choices: Choices,
    network: SimNetwork,
    fabrics: Vec<SimFabric>,
    sessions: Vec<Session>,
    senders: Vec<RingSender>,
    now: Time,
    history: History,
    /// Where each message of each sender ends in its ring.
    ends: Vec<Vec<Position>>,
    /// What each member must send again before anything else.
    again: Vec<VecDeque<Vec<u8>>>,
    /// Whom each message of each sender is for.
    to: Vec<Vec<Option<Vec<usize>>>>,
    /// How many messages each member had delivered when its session began.
    before: Vec<usize>,
    loans: Vec<Vec<Loan>>,
    wanted: Vec<VecDeque<Wanted>>,
    points: u64,
    /// How many messages any member has delivered, by sender.
    delivered: Vec<usize>,
    paused_until: Vec<Time>,
    alive: Vec<bool>,
    /// The survivors have agreed to go on.
    second: bool,
    trouble: Trouble,
}

/// Runs one seed, with a rule broken if asked for.
///
/// # Errors
/// What went wrong: a broken guarantee, a fault where all members are sound, or a run that doesn't end.
pub fn run(seed: u64, mutant: Option<Mutant>) -> Result<Trouble, String> {
    let mut run = Run::new(seed, mutant);
    run.go()?;
    run.history.check(run.plan.guarantee)?;
    run.trouble.torn = run.network.torn();
    run.trouble.delivered = run.history.delivered.iter().map(|log| log.len() as u64).sum();
    Ok(run.trouble)
}

impl Run {
    fn new(seed: u64, mutant: Option<Mutant>) -> Self {
        let mut choices = Choices::new(seed);
        let plan = Plan::choose(seed, &mut choices);
        let n = plan.members;
        let nodes: Vec<_> = (0..n).map(node).collect();
        let (network, fabrics) = SimNetwork::linked(choices.any(), &nodes, plan.options);
        let mut run = Self {
            mutant,
            choices,
            network,
            fabrics,
            sessions: Vec::new(),
            senders: Vec::new(),
            now: Time(0),
            history: History {
                sent: vec![0; n],
                delivered: vec![Vec::new(); n],
                survived: vec![true; n],
                complete: false,
            },
            ends: vec![Vec::new(); n],
            again: vec![VecDeque::new(); n],
            to: vec![Vec::new(); n],
            before: vec![0; n],
            loans: (0..n).map(|_| Vec::new()).collect(),
            wanted: (0..n).map(|_| VecDeque::new()).collect(),
            points: 0,
            delivered: vec![0; n],
            paused_until: vec![Time(0); n],
            alive: vec![true; n],
            second: false,
            trouble: Trouble::default(),
            plan,
        };
        (run.sessions, run.senders) = (0..n).map(|at| run.start(FIRST, at)).unzip();
        run
    }

    /// Starts `at`'s session of a view of all who survive.
    fn start(&mut self, view: ViewId, at: usize) -> (Session, RingSender) {
        let members: Vec<_> =
            (0..self.plan.members).filter(|member| self.history.survived[*member]).collect();
        let me = members.iter().position(|member| *member == at).unwrap_or_default();
        let member = |member: &usize| Member {
            node: node(*member),
            slot: (*member != at).then_some(Slot(*member as u8)),
            base: SessionPlan::base(view, self.plan.ring_bytes),
        };
        let plan = SessionPlan {
            view,
            members: members.iter().map(member).collect(),
            me: Rank(me as u8),
            ring_bytes: self.plan.ring_bytes,
            guarantee: self.plan.guarantee,
            topology: self.plan.topology,
        };
        self.trouble.chained += u64::from(plan.topology == Topology::Chain && plan.members.len() > 2);
        let (mut session, sender) = Session::start(plan, &mut self.fabrics[at])
            .unwrap_or_else(|e| panic!("a bad plan was chosen: {e}"));
        if let Some(mutant) = self.mutant {
            session.mutate(mutant);
        }
        (session, sender)
    }

    fn go(&mut self) -> Result<(), String> {
        let mut idle = 0;
        let mut turn = 0u64;
        loop {
            if self.plan.crash.is_some_and(|(at, _)| at == turn) {
                self.crash_and_cut()?;
                if !self.plan.goes_on {
                    return Ok(());
                }
                self.retire()?;
                self.second = true;
            }
            turn += 1;
            let moved = self.turn()?;
            idle = if moved { 0 } else { idle + 1 };
            if (self.plan.crash.is_none() || self.second) && idle > 200 && self.all_sent() {
                let is_read = self.survivors().all(|at| self.wanted[at].is_empty());
                if self.all_delivered() && is_read {
                    self.history.complete = true;
                    return Ok(());
                }
                if self.network.next_due().is_none() && idle > 3000 {
                    let blocked = self.sessions.iter().map(|s| s.blocked().map(|b| b.to_string()));
                    return Err(format!("no progress (D5?): {:?}", blocked.collect::<Vec<_>>()));
                }
            }
            if turn > 3_000_000 {
                return Err("the run doesn't end".into());
            }
        }
    }

    fn survivors(&self) -> impl Iterator<Item = usize> {
        (0..self.plan.members).filter(|at| self.history.survived[*at])
    }

    fn all_sent(&self) -> bool {
        let sent = |at: usize| self.again[at].is_empty() && self.history.sent[at] == self.plan.messages[at];
        self.survivors().all(sent)
    }

    /// Everything that survivors sent is delivered to them all.
    fn all_delivered(&self) -> bool {
        self.survivors().all(|at| {
            let of = |sender| self.history.delivered[at].iter().filter(|one| one.sender == sender).count();
            self.survivors().all(|sender| of(sender) == self.history.sent[sender])
        })
    }

    /// Time passes; some member sends, some member takes a step.
    fn turn(&mut self) -> Result<bool, String> {
        let pace = self.plan.options.delay.1.as_nanos() as u64;
        self.now = Time(self.now.0 + 1 + self.choices.below(pace / 8 + 1));
        if self.choices.chance(3) {
            self.now = self.network.next_due().map_or(self.now, |due| due.max(self.now));
        }
        self.network.advance_to(self.now);
        let at = self.choices.below(self.plan.members as u64) as usize;
        if !self.alive[at] || self.second && !self.history.survived[at] {
            return Ok(false);
        }
        if self.sessions[at].is_wedged() {
            self.fabrics[at].poll(self.now);
            self.sessions[at].exchange(&mut self.fabrics[at]).map_err(|fault| format!("at {at}: {fault}"))?;
            self.fabrics[at].flush();
            let begins = self.second && self.choices.chance(20);
            if begins {
                let base = SessionPlan::base(SECOND, self.plan.ring_bytes);
                let region = base..base + SessionPlan::region_bytes(self.plan.ring_bytes);
                self.fabrics[at].renew(region).map_err(|e| e.to_string())?;
                (self.sessions[at], self.senders[at]) = self.start(SECOND, at);
                self.before[at] = self.history.delivered[at].len();
                self.trouble.reborn += 1;
            }
            return Ok(self.second);
        }
        if self.paused_until[at] > self.now {
            self.trouble.paused += 1;
            return Ok(true);
        }
        if self.plan.pauses && self.choices.below(400) == 0 {
            self.paused_until[at] = Time(self.now.0 + self.choices.below(pace * 20));
        }
        let mut moved = false;
        for _ in 0..=self.choices.below(3) {
            moved |= self.send(at);
        }
        if self.plan.reads && self.choices.chance(5) && !self.all_sent() {
            self.want(at);
        }
        if self.choices.chance(self.plan.speed[at]) {
            moved |= self.step(at)?;
        }
        Ok(moved)
    }

    /// A member wants a read point.
    fn want(&mut self, at: usize) {
        if self.plan.guarantee.stable() {
            self.points += 1;
            let view = self.sessions[at].plan().view;
            let wanted = Wanted { number: self.points, view, delivered: self.delivered.clone() };
            self.wanted[at].push_back(wanted);
        }
    }

    /// Wants in the session that runs what no session gave yet; and looks at what it gives.
    fn read(&mut self, at: usize) -> Result<(), String> {
        while let Some(upto) = self.sessions[at].poll_read_point() {
            while self.wanted[at].front().is_some_and(|wanted| wanted.number <= upto) {
                let Some(wanted) = self.wanted[at].pop_front() else { break };
                let has =
                    |sender| self.history.delivered[at].iter().filter(|one| one.sender == sender).count();
                if let Some(sender) = (0..self.plan.members).find(|it| has(*it) < wanted.delivered[*it]) {
                    return Err(format!(
                        "stale: {at} has delivered {} of {sender} at a read point, and someone {} before it was wanted",
                        has(sender),
                        wanted.delivered[sender]
                    ));
                }
                self.trouble.points += 1;
                self.trouble.points_asked_again += u64::from(wanted.view != self.sessions[at].plan().view);
            }
        }
        Ok(())
    }

    /// A member sends its next message, if there is one and it fits.
    fn send(&mut self, at: usize) -> bool {
        if let Some(payload) = self.again[at].front() {
            // D13: before anything new.
            let index = self.history.sent[at] - self.again[at].len();
            let Ok(mut room) = reserve(
                (&self.sessions[at], &self.senders[at]),
                self.to[at][index].as_deref(),
                payload.len(),
            ) else {
                self.trouble.full += 1;
                return false;
            };
            room.copy_from_slice(payload);
            self.ends[at][index] = room.send().0;
            self.again[at].pop_front();
            self.trouble.resent += 1;
            return true;
        }
        let index = self.history.sent[at];
        if index == self.plan.messages[at] {
            return false;
        }
        let extra = self.choices.below(self.plan.longest) as usize;
        let to = self
            .choices
            .chance(self.plan.addressed)
            .then(|| (0..self.plan.members).filter(|_| self.choices.chance(50)).collect::<Vec<_>>());
        match reserve((&self.sessions[at], &self.senders[at]), to.as_deref(), 8 + extra) {
            Ok(mut room) => {
                room[..4].copy_from_slice(&(at as u32).to_le_bytes());
                room[4..8].copy_from_slice(&(index as u32).to_le_bytes());
                room[8..].fill(filling(at, index));
                let end = room.send().0;
                self.ends[at].push(end);
                self.to[at].push(to);
                self.history.sent[at] += 1;
                true
            }
            Err(ReserveError::Full) => {
                self.trouble.full += 1;
                false
            }
            Err(_) => false,
        }
    }

    fn step(&mut self, at: usize) -> Result<bool, String> {
        // Loans come back in any order.
        while !self.loans[at].is_empty() && self.choices.chance(60) {
            let pick = self.choices.below(self.loans[at].len() as u64) as usize;
            check_payload(&self.loans[at].swap_remove(pick))?;
        }
        if let Some(last) = self.wanted[at].back() {
            self.sessions[at].want_read_point(last.number);
        }
        self.fabrics[at].poll(self.now);
        // What every member has truly received at this moment: nobody else moves during this step.
        let view = self.sessions[at].plan().view;
        let received: Vec<Vec<Position>> =
            self.sessions.iter().map(|session| received(session, view, self.plan.members)).collect();
        let mut wrong = None;
        let Self {
            sessions,
            fabrics,
            history,
            choices,
            trouble,
            loans,
            ends,
            plan,
            delivered,
            to,
            before,
            ..
        } = self;
        let mut sink = |delivery: &mut Delivery<'_>| {
            if plan.refuses && choices.chance(10) {
                trouble.refused += 1;
                return Verdict::Later;
            }
            match check(delivery, at, &history.delivered[at], before[at], to) {
                Ok(one) if node(one.sender) == delivery.sender => {
                    trouble.passed_over += u64::from(delivery.kind == Kind::Addressed);
                    // D7: at this moment every member must have it (a member's own ring it always has).
                    let lacks = |(member, has): (usize, &Vec<Position>)| {
                        (history.survived[member]
                            && member != at
                            && member != one.sender
                            && has[one.sender] < ends[one.sender][one.index])
                            .then_some(member)
                    };
                    if plan.guarantee.stable()
                        && let Some(member) = received.iter().enumerate().find_map(lacks)
                    {
                        wrong = Some(format!("stability (D7): {at} delivered {one:?}, which {member} lacks"));
                    }
                    delivered[one.sender] = delivered[one.sender].max(one.index + 1);
                    history.delivered[at].push(one);
                }
                Ok(one) => wrong = Some(format!("{one:?} came as rank {}'s", delivery.rank)),
                Err(error) => wrong = Some(error),
            }
            if plan.lends
                && delivery.kind == Kind::Data
                && loans[at].len() < 20
                && choices.chance(20)
                && let Some(loan) = delivery.lend()
            {
                trouble.lent += 1;
                loans[at].push(loan);
            }
            Verdict::Taken
        };
        let moved =
            sessions[at].step(&mut fabrics[at], &mut sink).map_err(|fault| format!("at {at}: {fault}"))?;
        if !moved || self.choices.chance(10) {
            self.sessions[at].settle(&mut self.fabrics[at]);
            self.fabrics[at].flush();
        }
        self.sessions[at].frontiers().validate()?;
        self.read(at)?;
        wrong.map_or(Ok(moved), Err)
    }

    /// Some members die; the others wedge one by one while the rest still runs; a majority reports; all of these
    /// deliver to the trim.
    fn crash_and_cut(&mut self) -> Result<(), String> {
        let Some((_, dying)) = self.plan.crash else { return Ok(()) };
        let n = self.plan.members;
        for _ in 0..dying {
            let at = self.choices.below(n as u64) as usize;
            if self.alive[at] {
                self.alive[at] = false;
                self.history.survived[at] = false;
                self.network.crash(at);
                self.trouble.crashed += 1;
            }
        }
        let majority = n / 2 + 1;
        let mut reports: Vec<(usize, Vec<Position>)> = Vec::new();
        let mut waiting: Vec<usize> = (0..n).filter(|at| self.alive[*at]).collect();
        while !waiting.is_empty() {
            for _ in 0..self.choices.below(60) {
                self.turn()?;
                if self.plan.loses && self.choices.chance(5) {
                    self.lose(&waiting);
                }
            }
            let pick = self.choices.below(waiting.len() as u64) as usize;
            let at = waiting.swap_remove(pick);
            let report = self.sessions[at].wedge();
            report.validate()?;
            reports.push((at, report.senders.iter().map(|s| s.received).collect()));
            // V3: who is suspected by then is left out, but a majority reports.
            if reports.len() >= majority && self.choices.chance(30) {
                break;
            }
        }
        self.mislead(&waiting)?;
        for at in waiting {
            self.history.survived[at] = false;
        }
        for (at, _) in &reports {
            for other in (0..n).filter(|other| !self.history.survived[*other]) {
                // Nothing is lost that a cut or another survivor needs.
                let needed = self.sessions[*at].needed(Slot(other as u8));
                self.fabrics[*at].fence_keeping(Slot(other as u8), &needed.kept());
            }
        }
        // V3: per sender the least received over those who go on, or the greatest where delivery didn't wait for all.
        let of = |sender: usize| reports.iter().map(move |(_, received)| received[sender]);
        let stable = self.plan.guarantee.stable();
        let end = |sender: usize| if stable { of(sender).min() } else { of(sender).max() };
        let trim: Vec<Position> = (0..n).map(|sender| end(sender).unwrap_or_default()).collect();
        let survivors: Vec<usize> = reports.iter().map(|(at, _)| *at).collect();
        for at in &survivors {
            self.supply(*at, &survivors, &trim)?;
            self.cut(*at, &trim)?;
        }
        Ok(())
    }

    /// One whose session runs on fences one that crashed (F4).
    fn lose(&mut self, running: &[usize]) {
        let at = running[self.choices.below(running.len() as u64) as usize];
        let other = self.choices.below(self.plan.members as u64) as usize;
        let slot = Slot(other as u8);
        if !self.alive[other] && self.sessions[at].rank_of(slot).is_some() {
            let needed = self.sessions[at].needed(slot);
            self.sessions[at].lose(slot);
            self.fabrics[at].fence_keeping(slot, &needed.kept());
            self.trouble.lost += 1;
        }
    }

    /// The others have decided to go on without these, who don't know yet and want to read: messages may be delivered in a view
    /// that they have never heard of.
    fn mislead(&mut self, left_out: &[usize]) -> Result<(), String> {
        if !self.plan.reads || !self.plan.guarantee.stable() {
            return Ok(());
        }
        let last = self.points;
        for at in left_out {
            self.want(*at);
            self.trouble.misled += 1;
        }
        for _ in 0..300 {
            self.turn()?;
        }
        for at in left_out {
            if self.wanted[*at].back().is_none_or(|wanted| wanted.number <= last) {
                return Err(format!(
                    "stale: {at} has a read point that it wanted when the others had gone on"
                ));
            }
        }
        Ok(())
    }

    /// A survivor gets what it lacks below the trim from whoever has more (V3).
    fn supply(&mut self, at: usize, survivors: &[usize], trim: &[Position]) -> Result<(), String> {
        for (sender, trim) in trim.iter().enumerate() {
            let has = |run: &Self, at: usize| run.sessions[at].frontiers().senders[sender].received;
            while has(self, at) < *trim {
                let from = has(self, at);
                let more: Vec<_> =
                    survivors.iter().copied().filter(|other| has(self, *other) > from).collect();
                let source = more[self.choices.below(more.len() as u64) as usize];
                let rank = Rank(sender as u8);
                let bytes = self.sessions[source]
                    .read(rank, from..has(self, source).min(*trim))
                    .ok_or_else(|| format!("{source} has lost what {at} lacks of {sender} (V3)"))?;
                self.sessions[at].supply(rank, from, &bytes).map_err(|e| format!("supply of {at}: {e}"))?;
                self.trouble.supplied += 1;
            }
        }
        Ok(())
    }

    /// A survivor delivers to the trim (V4), and gets back what it sent beyond (D13).
    fn cut(&mut self, at: usize, trim: &[Position]) -> Result<(), String> {
        let Self { sessions, history, choices, loans, plan, trouble, delivered, to, before, .. } = self;
        let log = &mut history.delivered[at];
        let mut wrong = None;
        for done in [false, true] {
            let mut sink = |delivery: &mut Delivery<'_>| {
                if !done && choices.chance(10) {
                    trouble.refused += 1;
                    return Verdict::Later;
                }
                match check(delivery, at, log, before[at], to) {
                    Ok(one) => {
                        delivered[one.sender] = delivered[one.sender].max(one.index + 1);
                        log.push(one);
                    }
                    Err(error) => wrong = Some(error),
                }
                if plan.lends && delivery.kind == Kind::Data && choices.chance(20) {
                    loans[at].extend(delivery.lend());
                }
                Verdict::Taken
            };
            let cut = sessions[at].cut(trim, &mut sink).map_err(|e| format!("cut at {at}: {e}"))?;
            if done && !cut {
                return Err(format!("{at} lacks records below the trim"));
            }
        }
        // Delivered or handed back to be sent again, each message once.
        let mut own = log.iter().filter(|one| one.sender == at).count();
        let again = &mut self.again[at];
        let drained = sessions[at].resend(trim, |beyond| match check_payload(beyond.payload) {
            Ok(one)
                if one == (Delivered { sender: at, index: own })
                    && beyond.to.map(|ranks| numbers(ranks, plan.members)) == to[at][own] =>
            {
                own += 1;
                again.push_back(beyond.payload.to_vec());
            }
            other => wrong = Some(format!("resend (D13): {at} got {other:?} back, {own} was next")),
        });
        if !drained || own != history.sent[at] {
            wrong = wrong.or(Some(format!("resend (D13): {at} has {own} of {}", history.sent[at])));
        }
        sessions[at].frontiers().validate()?;
        wrong.map_or(Ok(()), Err)?;
        self.read(at)
    }

    /// All loans come back, and with the last one each session is over.
    fn retire(&mut self) -> Result<(), String> {
        for at in self.survivors().collect::<Vec<_>>() {
            while let Some(loan) = self.loans[at].pop() {
                if self.sessions[at].is_free() {
                    return Err(format!("{at} is free with a loan out (V10)"));
                }
                check_payload(&loan)?;
            }
            if !self.sessions[at].is_free() {
                return Err(format!("{at} isn't free though all is done (V10)"));
            }
        }
        Ok(())
    }
}

/// The members of the first view that have these ranks.
fn numbers(ranks: RankSet, members: usize) -> Vec<usize> {
    (0..members).filter(|at| ranks.contains(Rank(*at as u8))).collect()
}

/// Which message a delivery is of, at `at`, which has delivered `log`, `before` of it in earlier sessions. What isn't for it must
/// come without its bytes, in the place of the sender's next one, which must be one that isn't (D12).
fn check(
    delivery: &Delivery<'_>,
    at: usize,
    log: &[Delivered],
    before: usize,
    to: &[Vec<Option<Vec<usize>>>],
) -> Result<Delivered, String> {
    if delivery.seq.0 != (log.len() - before) as u64 {
        return Err(format!("order (D12): {at} delivered {} as {}", log.len() - before, delivery.seq));
    }
    let is_for = |one: &Delivered| {
        to[one.sender].get(one.index).is_none_or(|to| to.as_ref().is_none_or(|to| to.contains(&at)))
    };
    if delivery.kind == Kind::Addressed {
        let sender = delivery.sender.0 as usize - 1;
        let index = log.iter().filter(|one| one.sender == sender).count();
        let one = Delivered { sender, index };
        let is_silent = delivery.payload.is_empty() || sender == at;
        return if is_for(&one) || !is_silent {
            Err(format!("destinations (D12): {one:?} was passed over by {at}, for whom it is"))
        } else {
            Ok(one)
        };
    }
    let one = check_payload(delivery.payload)?;
    if is_for(&one) {
        Ok(one)
    } else {
        Err(format!("destinations (D12): {at} got {one:?}, which isn't for it"))
    }
}

/// Room for a message to some members, of whom a view has those who survived; or to all.
fn reserve<'a>(
    (session, sender): (&Session, &'a RingSender),
    to: Option<&[usize]>,
    len: usize,
) -> Result<Reservation<&'a RingSender>, ReserveError> {
    let Some(to) = to else { return sender.try_reserve(len) };
    let members = session.plan().members.iter().zip(0u8..);
    let ranks = members.filter(|(member, _)| to.iter().any(|it| node(*it) == member.node));
    sender.try_reserve_to(ranks.map(|(_, rank)| Rank(rank)).collect(), len)
}

fn node(at: usize) -> NodeId {
    NodeId(at as u32 + 1)
}

/// What a member has received in a view, by sender; nothing of senders that aren't in it, or if it isn't there itself.
fn received(session: &Session, view: ViewId, members: usize) -> Vec<Position> {
    let mut received = vec![Position(0); members];
    if session.plan().view == view {
        for sender in session.frontiers().senders {
            received[sender.node.0 as usize - 1] = sender.received;
        }
    }
    received
}

fn filling(sender: usize, index: usize) -> u8 {
    (sender * 31 + index * 7 + 1) as u8
}

/// Which message it is; every byte must be as sent.
fn check_payload(payload: &[u8]) -> Result<Delivered, String> {
    let word = |at: usize| payload.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
    let (Some(sender), Some(index)) = (word(0), word(4)) else {
        return Err(format!("creation: a message of {} bytes was delivered", payload.len()));
    };
    let (sender, index) = (sender as usize, index as usize);
    if payload[8..].iter().any(|byte| *byte != filling(sender, index)) {
        return Err(format!("creation: message {index} of {sender} was delivered with other bytes"));
    }
    Ok(Delivered { sender, index })
}
