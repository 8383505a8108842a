//! Which connection of a pool carries the next stream, and when connections are opened, left alone and closed.
//!
//! Opens nothing, reads no clock and waits for nothing: who uses this does, and reports what came of it.
//!
//! ```text
//!            dialled            other limits, outlier, silence,          no stream left
//!  (dialling) ─────▶ LIVE ───── new certificate or address ────▶ DRAINING ─────────────▶ (closed)
//! ```

use std::time::{Duration, Instant};

use qudag_core::breaker::{Breaker, Decision, Pass, Settings, Status};

/// How long a connection above the minimum may be without a stream.
const SPARE: Duration = Duration::from_secs(60);
/// A pool that nobody wanted for so long keeps no connection.
pub const UNWANTED: Duration = Duration::from_secs(10);
/// How long a connection with a keep-alive of 5 s can be silent before it counts as dead, beside its round trips.
const SILENCE: Duration = Duration::from_secs(7);
/// The packets that it takes to say which share of them is lost.
const LOSS_OF: u64 = 100;
/// A slow connection is slower than the others by this much at least.
const SLOW_BY: Duration = Duration::from_millis(20);
/// A dial that takes longer is probably in vain: nobody who can go another way waits for it.
const SLOW_DIAL: Duration = Duration::from_secs(1);
/// When a peer that cannot be dialled is tried again.
const BREAKER: Settings =
    Settings { failures: 1, open: Duration::from_secs(1), max_open: Duration::from_secs(60) };

/// What a pool may do. Given at every use, so that a change holds at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections that are kept while the pool is wanted.
    pub min: usize,
    /// Connections at most.
    pub max: usize,
    /// Streams of one connection at most.
    pub streams: u32,
    /// Streams that may wait for a connection.
    pub pending: usize,
    /// Which connections are left.
    pub outliers: Outliers,
}

/// What makes a connection an outlier, which takes no more streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outliers {
    /// The time between two looks.
    pub interval: Duration,
    /// So many streams that failed to open between two looks.
    pub failures: u32,
    /// More lost packets than this, in percent of those sent.
    pub loss_percent: u32,
    /// A round trip so many times that of the others.
    pub rtt_times: u32,
}

/// A connection of the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id(u64);

/// Leave to dial; there is one at a time. To be handed back with [`Rules::dialled`] or [`Rules::undialled`].
#[derive(Debug)]
#[must_use = "nobody else dials before this is handed back"]
pub struct Dial {
    pass: Pass,
}

/// Where a stream goes.
#[derive(Debug)]
pub enum Choice {
    /// To this connection, where it counts until [`Rules::released`].
    Use(Id),
    /// Nowhere yet. It counts as waiting until [`Rules::waited`], and chooses again at the next change, unless [`Rules::failures`] has
    /// grown since, or at this time.
    Wait {
        /// When it is better to go another way than to wait for a dial.
        until: Option<Instant>,
    },
    /// Nowhere.
    Refuse(Refusal),
}

/// Why a stream gets no connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// As many streams wait as may.
    Crowded,
    /// The peer could not be dialled lately.
    Down,
}

/// What is known of a connection at one time. Counts are of its whole life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// The round trip as QUIC has it.
    pub rtt: Duration,
    /// Packets sent.
    pub sent: u64,
    /// Packets lost.
    pub lost: u64,
    /// How often the path stopped to carry large packets.
    pub black_holes: u64,
    /// Datagrams received.
    pub heard: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Live,
    Draining,
}

#[derive(Debug)]
struct Member {
    id: Id,
    state: State,
    streams: u32,
    /// It was dialled with a certificate or address of the past.
    outdated: bool,
    /// Streams that failed to open, in a row and since the last sweep.
    failed_in_row: u32,
    failed: u32,
    /// Since when it has no stream.
    idle: Instant,
    sample: Sample,
    /// The sample of the last sweep.
    swept: Sample,
    /// When something was heard.
    heard: Instant,
}

impl Member {
    /// What a further stream costs, in nanoseconds: those under way times the round trip. One that fails fast is not cheap.
    fn cost(&self) -> u128 {
        let rtt = self.sample.rtt.max(Duration::from_micros(50)).as_nanos();
        rtt * u128::from(self.streams + 1) * u128::from(1 + 4 * self.failed_in_row.min(100))
    }

    fn is_live(&self) -> bool {
        self.state == State::Live
    }

    /// Lost packets since the last sweep, in thousandths; 0 of few.
    fn loss(&self) -> u64 {
        let sent = self.sample.sent.saturating_sub(self.swept.sent);
        let lost = self.sample.lost.saturating_sub(self.swept.lost);
        if sent < LOSS_OF { 0 } else { lost.saturating_mul(1000) / sent }
    }

    /// How bad it was since the last sweep, compared with the others; 0 when nothing is wrong.
    fn badness(&self, usual: &Usual, limits: &Outliers) -> u32 {
        let (now, then) = (&self.sample, &self.swept);
        let loss = self.loss();
        // Where the path loses as much for all, another connection would be no better.
        let lossy = loss > 10 * u64::from(limits.loss_percent) && loss > 2 * usual.loss;
        let slow = now.rtt > usual.rtt.saturating_mul(limits.rtt_times) && now.rtt > usual.rtt + SLOW_BY;
        let holes = now.black_holes > then.black_holes;
        let failing = self.failed >= limits.failures;
        8 * u32::from(failing) + 4 * u32::from(holes) + 2 * u32::from(lossy) + u32::from(slow)
    }
}

/// What the connections of a pool have in common.
struct Usual {
    rtt: Duration,
    /// Lost packets in thousandths.
    loss: u64,
}

/// The middle value; of an even number the lower one: it is the better one that others are compared with.
fn lower_median<T: Ord + Copy + Default>(mut values: Vec<T>) -> T {
    values.sort();
    values.get(values.len().saturating_sub(1) / 2).copied().unwrap_or_default()
}

/// What a pool has to do now.
#[derive(Debug, Default)]
pub struct Work {
    /// Connections without streams, which are to be closed and are forgotten here.
    pub close: Vec<Id>,
    /// A connection is to be opened.
    pub dial: Option<Dial>,
}

/// The state of a pool.
#[derive(Debug)]
pub struct Rules {
    members: Vec<Member>,
    next: u64,
    /// Since when a dial is under way.
    dialling: Option<Instant>,
    waiting: usize,
    /// Dials that failed.
    failures: u64,
    breaker: Breaker,
    wanted: Instant,
    swept: Instant,
    ejected: u64,
}

impl Rules {
    /// A pool without connections.
    pub fn new(now: Instant) -> Self {
        Self {
            members: Vec::new(),
            next: 0,
            dialling: None,
            waiting: 0,
            failures: 0,
            breaker: Breaker::default(),
            wanted: now,
            swept: now,
            ejected: 0,
        }
    }

    fn live(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|member| member.is_live())
    }

    fn member(&mut self, id: Id) -> Option<&mut Member> {
        self.members.iter_mut().find(|member| member.id == id)
    }

    /// Connections that take streams.
    pub fn live_count(&self) -> usize {
        self.live().count()
    }

    /// Connections that finish their streams and take no more.
    pub fn draining_count(&self) -> usize {
        self.members.len() - self.live_count()
    }

    /// The streams of a connection, and whether it takes more.
    pub fn streams(&self, id: Id) -> Option<(u32, bool)> {
        self.members.iter().find(|member| member.id == id).map(|member| (member.streams, member.is_live()))
    }

    /// How many dials have failed.
    pub fn failures(&self) -> u64 {
        self.failures
    }

    /// How many connections were taken out as outliers or dead.
    pub fn ejected(&self) -> u64 {
        self.ejected
    }

    /// Whether the peer can be dialled, as far as is known.
    pub fn breaker(&self) -> Status {
        self.breaker.status()
    }

    /// Says that streams may come.
    pub fn want(&mut self, now: Instant) {
        self.wanted = self.wanted.max(now);
    }

    /// Whether streams may come.
    pub fn is_wanted(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.wanted) < UNWANTED || self.waiting > 0
    }

    /// Chooses for a stream. `patient` streams wait even while the peer is probed; others are refused then and go elsewhere at
    /// once. Ask [`Rules::tend`] for a dial afterwards.
    pub fn choose(&mut self, limits: &Limits, now: Instant, random: u64, patient: bool) -> Choice {
        self.want(now);
        let fresh = self.live().any(|member| !member.outdated && member.streams < limits.streams);
        let usable: Vec<(Id, u128)> = self
            .live()
            .filter(|member| member.streams < limits.streams && (!fresh || !member.outdated))
            .map(|member| (member.id, member.cost()))
            .collect();
        if let Some(id) = cheaper_of_two(&usable, random) {
            if let Some(member) = self.member(id) {
                member.streams += 1;
            }
            return Choice::Use(id);
        }
        let slow = self.dialling.unwrap_or(now) + SLOW_DIAL;
        let troubled = now >= slow || self.breaker.status() != Status::Closed;
        let down = troubled && self.live_count() == 0;
        if down && !(patient && self.may_dial(now)) {
            return Choice::Refuse(Refusal::Down);
        }
        if self.waiting >= limits.pending {
            return Choice::Refuse(Refusal::Crowded);
        }
        self.waiting += 1;
        Choice::Wait { until: (!patient && self.live_count() == 0).then_some(slow) }
    }

    /// Whether a dial is under way.
    pub fn is_dialling(&self) -> bool {
        self.dialling.is_some()
    }

    /// Whether a dial is under way or would be allowed.
    fn may_dial(&self, now: Instant) -> bool {
        if self.is_dialling() {
            return true;
        }
        // A copy: a pass that nobody uses would block the breaker.
        let mut breaker = self.breaker.clone();
        matches!(breaker.admit(&BREAKER, now), Decision::Admit(_))
    }

    /// A stream does not wait any more.
    pub fn waited(&mut self) {
        self.waiting = self.waiting.saturating_sub(1);
    }

    /// A stream has ended on its connection.
    pub fn released(&mut self, id: Id, now: Instant) {
        if let Some(member) = self.member(id) {
            member.streams = member.streams.saturating_sub(1);
            member.idle = now;
        }
    }

    /// The peer has answered on a connection, or a stream failed to open for a reason that lies in the connection.
    pub fn answered(&mut self, id: Id, well: bool) {
        if let Some(member) = self.member(id) {
            member.failed_in_row = if well { 0 } else { member.failed_in_row.saturating_add(1) };
            member.failed = member.failed.saturating_add(u32::from(!well));
        }
    }

    /// A connection is dead: it takes no more streams.
    pub fn dead(&mut self, id: Id) {
        if let Some(member) = self.member(id).filter(|member| member.is_live()) {
            member.state = State::Draining;
            self.ejected += 1;
        }
    }

    /// The other side wants no more streams on a connection.
    pub fn leave(&mut self, id: Id) {
        if let Some(member) = self.member(id) {
            member.state = State::Draining;
        }
    }

    /// A connection was closed by the peer or its time limit.
    pub fn closed(&mut self, id: Id) {
        self.members.retain(|member| member.id != id);
    }

    /// A connection was opened.
    pub fn dialled(&mut self, dial: Dial, rtt: Duration, now: Instant) -> Id {
        self.dialling = None;
        self.breaker.success(dial.pass);
        let id = Id(self.next);
        self.next += 1;
        let sample = Sample { rtt, ..Sample::default() };
        self.members.push(Member {
            id,
            state: State::Live,
            streams: 0,
            outdated: false,
            failed_in_row: 0,
            failed: 0,
            idle: now,
            sample,
            swept: sample,
            heard: now,
        });
        self.drain_outdated();
        id
    }

    /// A connection could not be opened. Returns whether the peer counts as down from now on.
    pub fn undialled(&mut self, dial: Dial, now: Instant, random: u64) -> bool {
        self.dialling = None;
        self.failures += 1;
        self.breaker.failure(dial.pass, &BREAKER, now, random)
    }

    /// The own certificate or the addresses of the peer changed. The next connection replaces all others, whose streams stay where
    /// they are.
    pub fn outdate(&mut self) {
        for member in &mut self.members {
            member.outdated = true;
        }
        self.breaker.forget();
    }

    /// The peer has other addresses, among which those of these connections are not. They serve until there is another one.
    pub fn moved(&mut self, gone: &[Id]) {
        for member in self.members.iter_mut().filter(|member| gone.contains(&member.id)) {
            member.outdated = true;
        }
        if self.live().any(|member| !member.outdated) {
            self.drain_outdated();
        }
        self.breaker.forget();
    }

    /// What was dialled anew makes the outdated connections superfluous.
    fn drain_outdated(&mut self) {
        for old in self.members.iter_mut().filter(|member| member.outdated) {
            old.state = State::Draining;
        }
    }

    /// Looks at a connection.
    pub fn sampled(&mut self, id: Id, sample: Sample, now: Instant) {
        let Some(member) = self.member(id) else { return };
        if sample.heard != member.sample.heard {
            member.heard = now;
        }
        member.sample = sample;
        let patience = SILENCE + sample.rtt.saturating_mul(3);
        if now.saturating_duration_since(member.heard) > patience {
            self.dead(id);
        }
    }

    /// What there is to do. To be called after every [`Rules::choose`] and every second.
    pub fn tend(&mut self, limits: &Limits, now: Instant) -> Work {
        if now.saturating_duration_since(self.swept) >= limits.outliers.interval {
            self.swept = now;
            self.sweep(&limits.outliers);
        }
        let wanted = self.is_wanted(now);
        let max = limits.max.max(1);
        let min = if wanted { limits.min.clamp(1, max) } else { 0 };
        self.shrink(min, max, wanted, now);
        let mut close = Vec::new();
        self.members.retain(|member| {
            let over = !member.is_live() && member.streams == 0;
            if over {
                close.push(member.id);
            }
            !over
        });
        let dial = if self.wants_more(min, max, limits.streams) { self.admit(now) } else { None };
        Work { close, dial }
    }

    /// Those that are too many take no more streams: the ones with the fewest first.
    fn shrink(&mut self, min: usize, max: usize, wanted: bool, now: Instant) {
        let mut live = self.live_count();
        let spare = if wanted { SPARE } else { Duration::ZERO };
        self.members.sort_by_key(|member| (member.streams, std::cmp::Reverse(member.id)));
        for member in self.members.iter_mut().filter(|member| member.is_live()) {
            let idle = member.streams == 0 && now.saturating_duration_since(member.idle) >= spare;
            if live > max || (live > min && idle) {
                member.state = State::Draining;
                live -= 1;
            }
        }
    }

    fn wants_more(&self, min: usize, max: usize, streams: u32) -> bool {
        let live = self.live_count();
        if self.is_dialling() {
            return false;
        }
        // One more than the maximum while connections are replaced: the new one makes the others drain.
        let outdated = live > 0 && self.live().all(|member| member.outdated);
        let crowded = self.live().all(|member| member.streams >= (streams / 2).max(1));
        // Those who wait may not have been told yet of the connection that they waited for.
        let full = self.live().all(|member| member.streams >= streams);
        live < min || (live < max && ((full && self.waiting > 0) || (live > 0 && crowded))) || outdated
    }

    fn admit(&mut self, now: Instant) -> Option<Dial> {
        match self.breaker.admit(&BREAKER, now) {
            Decision::Admit(pass) => {
                self.dialling = Some(now);
                Some(Dial { pass })
            }
            Decision::Reject { .. } => None,
        }
    }

    /// Takes the worst connections out, half of them at most.
    fn sweep(&mut self, limits: &Outliers) {
        let usual = Usual {
            rtt: lower_median(self.live().map(|member| member.sample.rtt).collect()),
            loss: lower_median(self.live().map(Member::loss).collect()),
        };
        let most = self.live_count() / 2;
        let mut bad: Vec<_> = self
            .live()
            .map(|member| (member.badness(&usual, limits), member.id))
            .filter(|(bad, _)| *bad > 0)
            .collect();
        bad.sort();
        for (_, id) in bad.into_iter().rev().take(most) {
            self.dead(id);
        }
        for member in &mut self.members {
            member.failed = 0;
            member.swept = member.sample;
        }
    }
}

/// Two at random, and of these the cheaper one.
fn cheaper_of_two(usable: &[(Id, u128)], random: u64) -> Option<Id> {
    let count = u64::try_from(usable.len()).ok().filter(|count| *count > 0)?;
    let one = random % count;
    // Another one than the first, where there is one.
    let other = (one + 1 + (random >> 32) % (count - 1).max(1)) % count;
    let at = |index: u64| usize::try_from(index).ok().and_then(|index| usable.get(index));
    [at(one), at(other)].into_iter().flatten().min_by_key(|(_, cost)| *cost).map(|(id, _)| *id)
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;
