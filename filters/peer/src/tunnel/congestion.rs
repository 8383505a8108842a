//! A congestion control for paths that lose packets without being full.
//!
//! CUBIC (RFC 9438) takes every loss for a sign that the path is full: at a round trip of 40 ms and 1 % loss it carries 3 Mbit/s
//! whatever the path could. [`LossTolerant`] grows and shrinks as CUBIC does, but shrinks only when there is another sign:
//!
//! - packets queue up: the shortest round trip of this round lies above the shortest of all by more than a 32nd, at least 1 ms;
//! - more than one packet in twenty was lost lately;
//! - a router says so (ECN), or nothing came through for long (persistent congestion, RFC 9002 section 7.6).
//!
//! A queue that is full has made packets wait before it drops them, so beside other connections at the same queue it behaves as
//! CUBIC does. Slow start ends as in HyStart++ (RFC 9406), since it cannot end with the first loss.

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
/// Packets wait when the round trip lies above the shortest by so much and by more than a 32nd of it: queues that hold less cannot be
/// told from random loss.
const WAITING: Duration = Duration::from_millis(1);
/// In slow start: RFC 9406 section 4.2.
const WAITING_MIN: Duration = Duration::from_millis(4);
const WAITING_MAX: Duration = Duration::from_millis(16);
const SAMPLES: u32 = 8;
const CAREFUL_ROUNDS: u32 = 5;
const CAREFUL_GROWTH: u64 = 4;
/// The share of lost packets that is taken for congestion.
const TOO_MANY: f64 = 0.05;
/// How much of what was counted is left after a round.
const MEMORY: f64 = 0.875;
/// Below so many packets in memory a share says nothing.
const EVIDENCE: f64 = 50.0;

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
    /// Packets sent before were taken into account when the window shrank last.
    shrunk: Option<Instant>,
    /// Bytes acknowledged since the last end of a batch.
    acked: u64,
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

    fn too_many(&self, mtu: u64) -> bool {
        let all = self.acked + self.lost;
        all > EVIDENCE * mtu as f64 && self.lost > TOO_MANY * all
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
        let least = LEAST * self.mtu;
        if persistent {
            self.shrunk = Some(now);
            self.growth = Growth::SlowStart { careful: None };
            self.window = least;
            return;
        }
        if self.shrunk.is_some_and(|shrunk| sent <= shrunk) || !(bytes == 0 || self.is_congested()) {
            return;
        }
        self.shrunk = Some(now);
        let before = match self.growth {
            // Fast convergence (RFC 9438 section 4.7): make room for others when less was reached than the last time.
            Growth::Cubic(cubic) if (self.window as f64) < cubic.before => {
                self.window as f64 * f64::midpoint(1.0, KEPT)
            }
            _ => self.window as f64,
        };
        self.window = ((self.window as f64 * KEPT) as u64).max(least);
        self.growth = Growth::Cubic(Cubic::new(before, self.window, self.mtu));
    }

    fn is_congested(&self) -> bool {
        let queued = self.rounds.waiting().is_some_and(|(waiting, base)| waiting > WAITING.max(base / 32));
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
