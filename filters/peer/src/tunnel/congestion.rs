//! A congestion control for paths that lose packets without being full.
//!
//! CUBIC (RFC 9438) takes every loss for a sign that the path is full: at a round trip of 40 ms and 1 % loss it carries 3 Mbit/s
//! whatever the path could. [`LossTolerant`] grows and shrinks as CUBIC does, but shrinks only when there is another sign:
//!
//! - packets queue up: the shortest round trip of this round lies above the shortest of all by more than an eighth, at least 3 ms;
//! - more than one packet in ten was lost lately;
//! - a router says so (ECN), or nothing came through for long (persistent congestion, RFC 9002 section 7.6);
//! - fewer packets are lost when it sends less. It tries that every few seconds when packets are lost without another sign: a queue that
//!   holds a few packets only makes none of them wait long, and drops them all the same.
//!
//! So beside other connections at the same queue it behaves as CUBIC does. Slow start ends as in HyStart++ (RFC 9406), since it cannot end with the first loss.

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::congestion::{Controller, ControllerFactory};
use quinn_proto::RttEstimator;

/// Congestion windows begin with so many packets (RFC 9002 section 7.2) and never have fewer than [`LEAST`].
const FIRST: u64 = 10;
const LEAST: u64 = 2;
/// What is left of a window that was too large (RFC 9438 section 4.6).
const KEPT: f64 = 0.7;
/// How fast a window grows, in packets per second cubed (RFC 9438 section 4.1).
const C: f64 = 0.4;
/// How fast at least, in packets per round trip, so that Reno is no faster (RFC 9438 section 4.3).
const RENO: f64 = 3.0 * (1.0 - KEPT) / (1.0 + KEPT);
/// Packets wait when the round trip lies above the shortest by so much and by more than an eighth of it.
const WAITING: Duration = Duration::from_millis(3);
/// In slow start: RFC 9406 section 4.2.
const WAITING_MIN: Duration = Duration::from_millis(4);
const WAITING_MAX: Duration = Duration::from_millis(16);
const SAMPLES: u32 = 8;
const CAREFUL_ROUNDS: u32 = 5;
const CAREFUL_GROWTH: u64 = 4;
/// The share of lost packets that is taken for congestion.
const TOO_MANY: f64 = 0.1;
/// How much of what was counted is left after a round.
const MEMORY: f64 = 0.875;
/// Below so many packets in memory a share says nothing.
const EVIDENCE: f64 = 200.0;
/// A trial lasts for so many packets, and finds that losses are random when there were so many at least.
const TRIAL: f64 = 2_000.0;
const RANDOM: f64 = 4.0;
/// For how long a trial's verdict holds.
const HOLDS: Duration = Duration::from_secs(10);

/// Makes a [`LossTolerant`] for each connection.
#[derive(Debug)]
pub(crate) struct LossTolerantConfig;

impl ControllerFactory for LossTolerantConfig {
    fn build(self: Arc<Self>, _: Instant, mtu: u16) -> Box<dyn Controller> {
        Box::new(LossTolerant::new(mtu))
    }
}

/// CUBIC that tells loss from congestion.
#[derive(Clone, Debug)]
pub(crate) struct LossTolerant {
    mtu: u64,
    /// Bytes that may be under way.
    window: u64,
    growth: Growth,
    rounds: Rounds,
    losses: Losses,
    verdict: Verdict,
    /// Packets sent before were taken into account when the window shrank last.
    shrunk: Option<Instant>,
    /// Bytes acknowledged since the last end of a batch.
    acked: u64,
}

/// Whether losses without another sign are of this connection's making.
#[derive(Clone, Copy, Debug)]
enum Verdict {
    /// They are, up to this time: the window shrinks.
    Ours(Instant),
    /// They are not, up to this time.
    Random(Instant),
    /// It sends less, to see whether less is lost.
    Trial(Trial),
    /// Not known.
    Open,
}

/// What was lost before a window shrank, and what is lost since.
#[derive(Clone, Copy, Debug)]
struct Trial {
    /// The window before.
    window: u64,
    /// The share that was lost before.
    before: f64,
    since: Losses,
}

/// What lets the window grow.
#[derive(Clone, Copy, Debug)]
enum Growth {
    /// As much as is acknowledged; a quarter of it in careful rounds, of which so many are over.
    SlowStart { careful: Option<u32> },
    /// By time.
    Cubic(Cubic),
}

/// A cubic function of the time since the window shrank, whose turning point is the window before.
#[derive(Clone, Copy, Debug)]
struct Cubic {
    /// Bytes at the turning point.
    before: f64,
    /// Seconds from shrinking to the turning point.
    turn: f64,
    /// Seconds of growth so far; time without data to send does not count.
    time: f64,
    /// What Reno's window would be.
    reno: f64,
    last: Option<Instant>,
}

/// Round trips: from a packet to its acknowledgement.
#[derive(Clone, Debug, Default)]
struct Rounds {
    /// The last packet sent, and the one whose acknowledgement ends the round.
    sent: u64,
    ends: u64,
    /// The shortest of all.
    base: Option<Duration>,
    /// The shortest of this round and of the one before, and how many this one has seen.
    now: Option<Duration>,
    before: Option<Duration>,
    samples: u32,
}

/// Bytes acknowledged and lost, of which older ones count less and less.
#[derive(Clone, Copy, Debug, Default)]
struct Losses {
    acked: f64,
    lost: f64,
}

impl Rounds {
    fn sample(&mut self, rtt: Duration) {
        let shortest = |so_far: Option<Duration>| Some(so_far.map_or(rtt, |so_far| so_far.min(rtt)));
        self.base = shortest(self.base);
        self.now = shortest(self.now);
        self.samples = self.samples.saturating_add(1);
    }

    /// How long packets wait now, and the shortest round trip.
    fn waiting(&self) -> Option<(Duration, Duration)> {
        let base = self.base?;
        let now = self.now.or(self.before)?;
        Some((now.saturating_sub(base), base))
    }

    /// A packet was acknowledged. Returns whether the round is over.
    fn acked(&mut self, packet: u64) -> bool {
        let over = packet >= self.ends;
        if over {
            self.ends = self.sent.max(packet).saturating_add(1);
            self.before = self.now.take().or(self.before);
            self.samples = 0;
        }
        over
    }
}

impl Losses {
    fn round(&mut self) {
        self.acked *= MEMORY;
        self.lost *= MEMORY;
    }

    fn all(&self) -> f64 {
        self.acked + self.lost
    }

    /// The share that was lost.
    fn share(&self) -> f64 {
        self.lost / self.all().max(1.0)
    }

    fn too_many(&self, mtu: u64) -> bool {
        self.all() > EVIDENCE * mtu as f64 && self.share() > TOO_MANY
    }
}

impl Cubic {
    /// After a window of `before` bytes became one of `window`.
    fn new(before: f64, window: u64, mtu: u64) -> Self {
        let packets = (before - window as f64).max(0.0) / mtu as f64;
        Self { before, turn: (packets / C).cbrt(), time: 0.0, reno: window as f64, last: None }
    }

    /// The window after `acked` bytes.
    fn grown(&mut self, now: Instant, window: u64, acked: u64, mtu: u64) -> u64 {
        let last = self.last.replace(now).unwrap_or(now);
        self.time += now.saturating_duration_since(last).as_secs_f64();
        let (window, acked, mtu) = (window as f64, acked as f64, mtu as f64);
        self.reno += RENO * mtu * acked / window;
        let cubic = C.mul_add((self.time - self.turn).powi(3) * mtu, self.before);
        // At most half as much again in a round trip (RFC 9438 section 4.2).
        let target = cubic.max(self.reno).min(1.5 * window);
        let grown = (target - window).max(0.0) * acked / window;
        (window + grown) as u64
    }
}

impl LossTolerant {
    fn new(mtu: u16) -> Self {
        let mtu = u64::from(mtu);
        Self {
            mtu,
            window: FIRST * mtu,
            growth: Growth::SlowStart { careful: None },
            rounds: Rounds::default(),
            losses: Losses::default(),
            verdict: Verdict::Open,
            shrunk: None,
            acked: 0,
        }
    }

    fn sent(&mut self, packet: u64) {
        self.rounds.sent = packet;
    }

    fn acked(&mut self, now: Instant, sent: Instant, bytes: u64) {
        self.rounds.sample(now.saturating_duration_since(sent));
        self.losses.acked += bytes as f64;
        if self.shrunk.is_none_or(|shrunk| sent > shrunk)
            && let Verdict::Trial(trial) = &mut self.verdict
        {
            trial.since.acked += bytes as f64;
        }
        self.acked = self.acked.saturating_add(bytes);
    }

    /// A batch of acknowledgements is over.
    fn end_of_batch(&mut self, now: Instant, limited_by_application: bool, packet: Option<u64>) {
        let acked = std::mem::take(&mut self.acked);
        match &mut self.growth {
            Growth::SlowStart { careful } => {
                if !limited_by_application {
                    let share = if careful.is_some() { CAREFUL_GROWTH } else { 1 };
                    self.window = self.window.saturating_add(acked / share);
                }
                if self.rounds.samples >= SAMPLES
                    && let Some((waiting, base)) = self.rounds.waiting()
                {
                    let queued = waiting >= (base / 8).clamp(WAITING_MIN, WAITING_MAX);
                    *careful = queued.then(|| careful.unwrap_or(0));
                }
            }
            Growth::Cubic(cubic) if limited_by_application => cubic.last = None,
            Growth::Cubic(cubic) => self.window = cubic.grown(now, self.window, acked, self.mtu),
        }
        self.end_trial(now);
        if packet.is_some_and(|packet| self.rounds.acked(packet)) {
            self.losses.round();
            if let Growth::SlowStart { careful: Some(rounds) } = &mut self.growth {
                *rounds += 1;
                if *rounds >= CAREFUL_ROUNDS {
                    self.growth = Growth::Cubic(Cubic::new(self.window as f64, self.window, self.mtu));
                }
            }
        }
    }

    /// Packets were lost, of which the last was sent at `sent`; none when a router reports congestion.
    fn lost(&mut self, now: Instant, sent: Instant, persistent: bool, bytes: u64) {
        self.losses.lost += bytes as f64;
        if persistent {
            self.shrunk = Some(now);
            self.growth = Growth::SlowStart { careful: None };
            self.verdict = Verdict::Open;
            self.window = LEAST * self.mtu;
            return;
        }
        if self.shrunk.is_some_and(|shrunk| sent <= shrunk) {
            return;
        }
        if bytes == 0 || self.is_congested() {
            if matches!(self.verdict, Verdict::Trial(_)) {
                self.verdict = Verdict::Open;
            }
            return self.shrink(now);
        }
        match &mut self.verdict {
            Verdict::Trial(trial) => trial.since.lost += bytes as f64,
            Verdict::Random(until) if now < *until => {}
            Verdict::Ours(until) if now < *until => self.shrink(now),
            // Whoever still finds out what the path can carry has nothing to compare with.
            _ if matches!(self.growth, Growth::SlowStart { .. }) => {}
            _ => {
                let (window, before) = (self.window, self.losses.share());
                self.verdict = Verdict::Trial(Trial { window, before, since: Losses::default() });
                self.shrink(now);
            }
        }
    }

    /// Finds a verdict when enough was sent.
    fn end_trial(&mut self, now: Instant) {
        let Verdict::Trial(Trial { window, before, since }) = self.verdict else { return };
        let mtu = self.mtu as f64;
        if since.all() < TRIAL * mtu {
            return;
        }
        let until = now + HOLDS;
        if since.lost >= RANDOM * mtu && since.share() > before / 2.0 {
            self.verdict = Verdict::Random(until);
            self.window = self.window.max(window);
            self.growth = Growth::Cubic(Cubic::new(self.window as f64, self.window, self.mtu));
        } else {
            self.verdict = Verdict::Ours(until);
        }
    }

    /// Takes back a part of the window.
    fn shrink(&mut self, now: Instant) {
        self.shrunk = Some(now);
        let before = match self.growth {
            // Fast convergence (RFC 9438 section 4.7): make room for others when less was reached than the last time.
            Growth::Cubic(cubic) if (self.window as f64) < cubic.before => {
                self.window as f64 * f64::midpoint(1.0, KEPT)
            }
            _ => self.window as f64,
        };
        self.window = ((self.window as f64 * KEPT) as u64).max(LEAST * self.mtu);
        self.growth = Growth::Cubic(Cubic::new(before, self.window, self.mtu));
    }

    fn is_congested(&self) -> bool {
        let queued = self.rounds.waiting().is_some_and(|(waiting, base)| waiting > WAITING.max(base / 8));
        queued || self.losses.too_many(self.mtu)
    }
}

impl Controller for LossTolerant {
    fn on_sent(&mut self, _: Instant, _: u64, last_packet_number: u64) {
        self.sent(last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, _: bool, _: &RttEstimator) {
        self.acked(now, sent, bytes);
    }

    fn on_end_acks(
        &mut self,
        now: Instant,
        _: u64,
        app_limited: bool,
        largest_packet_num_acked: Option<u64>,
    ) {
        self.end_of_batch(now, app_limited, largest_packet_num_acked);
    }

    fn on_congestion_event(
        &mut self,
        now: Instant,
        sent: Instant,
        is_persistent_congestion: bool,
        lost_bytes: u64,
    ) {
        self.lost(now, sent, is_persistent_congestion, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.mtu = new_mtu.into();
        self.window = self.window.max(LEAST * self.mtu);
    }

    fn window(&self) -> u64 {
        self.window
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        FIRST * self.mtu
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
#[path = "congestion_tests.rs"]
mod tests;
