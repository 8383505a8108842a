//! One direction of a link, without sockets, threads or a clock: packets and points in time go in, packets come
//! out.
//!
//! A packet passes, in this order: cut → UDP block → MTU → duplication → queue (tail drop) → transmission at the
//! rate → loss → corruption → delay, jitter and reordering → out. Everything counts bytes of IP, without what an
//! Ethernet would add.

mod counters;
mod loss;
mod packet;
#[cfg(test)]
mod properties;
mod settings;
mod words;

use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, VecDeque};
use std::time::{Duration, Instant};

pub use counters::{Counters, Dropped, Late, Traffic};
use loss::{Losses, chance};
pub use settings::{Jitter, LinkSettings, Loss, Mtu, Queue, Rate, Reorder, Shape, Share};
pub use words::{WordError, duration};

/// The most bytes inside one direction, waiting and on their way: half a second of 1 Gbit/s.
pub const MOST_BYTES: u64 = 64 << 20;

/// One direction of a link.
#[derive(Debug)]
pub struct Link {
    settings: LinkSettings,
    rng: fastrand::Rng,
    losses: Losses,
    /// Waits for the link to be free; empty without a rate.
    queue: VecDeque<Waiting>,
    /// When the packet that is being sent will have been sent.
    free_at: Option<Instant>,
    wire: BinaryHeap<Reverse<Flying>>,
    /// The latest time at which a packet that keeps its place comes out.
    last_due: Option<Instant>,
    next_number: u64,
    /// The highest number that came out.
    newest_out: Option<u64>,
    counters: Counters,
}

#[derive(Debug)]
struct Waiting {
    number: u64,
    arrived: Instant,
    packet: Vec<u8>,
}

#[derive(Debug, PartialEq, Eq)]
struct Flying {
    due: Instant,
    number: u64,
    packet: Vec<u8>,
}

impl Ord for Flying {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.due, self.number).cmp(&(other.due, other.number))
    }
}

impl PartialOrd for Flying {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Link {
    /// An empty link. The same seed gives the same losses, jitter and so on for the same packets.
    pub fn new(settings: LinkSettings, seed: u64) -> Self {
        Self {
            settings,
            rng: fastrand::Rng::with_seed(seed),
            losses: Losses::default(),
            queue: VecDeque::new(),
            free_at: None,
            wire: BinaryHeap::new(),
            last_due: None,
            next_number: 0,
            newest_out: None,
            counters: Counters::default(),
        }
    }

    /// What it does now.
    pub fn settings(&self) -> &LinkSettings {
        &self.settings
    }

    /// What passed until now.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Does something else from now on. What is on its way arrives as it would have; what waits is sent at the
    /// new rate. A cut loses both.
    pub fn set(&mut self, settings: LinkSettings, now: Instant) {
        self.send_waiting(now);
        self.settings = settings;
        if self.settings.cut {
            self.counters.dropped.cut += (self.queue.len() + self.wire.len()) as u64;
            self.queue.clear();
            self.wire.clear();
            (self.free_at, self.last_due) = (None, None);
            self.counters.waiting = Traffic::default();
            self.counters.flying = Traffic::default();
        }
    }

    /// Takes a packet of IP from the sender. Gives back what a router has to say to the sender: an ICMP error, as
    /// a whole packet, or nothing.
    ///
    /// Times must not go back from call to call.
    pub fn push(&mut self, packet: Vec<u8>, now: Instant) -> Option<Vec<u8>> {
        self.send_waiting(now);
        self.counters.received.add(packet.len());
        if packet::version(&packet).is_none() {
            self.counters.dropped.not_ip += 1;
            return None;
        }
        if self.settings.cut {
            self.counters.dropped.cut += 1;
            return None;
        }
        if self.settings.block_udp && packet::is_udp(&packet) {
            self.counters.dropped.udp += 1;
            return None;
        }
        if let Some(mtu) = self.settings.mtu
            && packet.len() > usize::from(mtu.bytes)
        {
            self.counters.dropped.mtu += 1;
            let answer = if mtu.silent { None } else { packet::too_big(&packet, mtu.bytes) };
            self.counters.icmp += u64::from(answer.is_some());
            return answer;
        }
        if chance(self.settings.duplicate, &mut self.rng) {
            self.counters.duplicated += 1;
            self.enter(packet.clone(), now);
        }
        self.enter(packet, now);
        None
    }

    /// The next packet that the receiver gets until `now`.
    pub fn pop(&mut self, now: Instant) -> Option<Vec<u8>> {
        self.send_waiting(now);
        if self.wire.peek()?.0.due > now {
            return None;
        }
        let Reverse(Flying { due, number, packet }) = self.wire.pop()?;
        self.counters.late.add(now.saturating_duration_since(due));
        self.counters.flying.remove(packet.len());
        self.counters.delivered.add(packet.len());
        if self.newest_out.is_some_and(|newest| number < newest) {
            self.counters.reordered += 1;
        } else {
            self.newest_out = Some(number);
        }
        Some(packet)
    }

    /// When to ask [`pop`](Self::pop) next: no packet comes out before. Nothing while the link is empty.
    pub fn next(&self) -> Option<Instant> {
        let flying = self.wire.peek().map(|Reverse(flying)| flying.due);
        let waiting = self.queue.front().map(|waiting| {
            let sent = self.start(waiting.arrived) + self.send_time(waiting.packet.len());
            sent + self.settings.delay.saturating_sub(self.settings.jitter.most())
        });
        flying.into_iter().chain(waiting).min()
    }

    /// Takes back that the last packet from [`pop`](Self::pop), of so many bytes, was delivered: its device did
    /// not take it.
    pub fn refused(&mut self, bytes: usize) {
        self.counters.delivered.remove(bytes);
        self.counters.dropped.refused += 1;
    }

    fn enter(&mut self, packet: Vec<u8>, now: Instant) {
        let bytes = packet.len() as u64;
        let number = self.next_number;
        self.next_number += 1;
        if self.counters.waiting.bytes + self.counters.flying.bytes + bytes > MOST_BYTES {
            self.counters.dropped.overflow += 1;
            return;
        }
        let busy = !self.queue.is_empty() || self.free_at.is_some_and(|free_at| free_at > now);
        if let Some(rate) = self.settings.rate
            && busy
            && self.counters.waiting.bytes + bytes > self.settings.queue.at(rate)
        {
            self.counters.dropped.queue += 1;
            return;
        }
        self.counters.waiting.add(packet.len());
        self.queue.push_back(Waiting { number, arrived: now, packet });
        self.send_waiting(now);
    }

    /// When a packet that came then begins to be sent, if it is the first that waits.
    fn start(&self, arrived: Instant) -> Instant {
        self.free_at.map_or(arrived, |free_at| free_at.max(arrived))
    }

    fn send_time(&self, bytes: usize) -> Duration {
        self.settings.rate.map_or(Duration::ZERO, |rate| rate.time(bytes))
    }

    /// Puts on the wire whatever began to be sent until `now`.
    fn send_waiting(&mut self, now: Instant) {
        while let Some(first) = self.queue.front() {
            let start = self.start(first.arrived);
            if start > now {
                return;
            }
            let Some(Waiting { number, packet, .. }) = self.queue.pop_front() else { return };
            self.counters.waiting.remove(packet.len());
            let sent = start + self.send_time(packet.len());
            self.free_at = Some(sent);
            self.fly(number, packet, sent);
        }
    }

    fn fly(&mut self, number: u64, mut packet: Vec<u8>, sent: Instant) {
        if self.losses.next(self.settings.loss, &mut self.rng) {
            self.counters.lost += 1;
            return;
        }
        if chance(self.settings.corrupt, &mut self.rng) {
            self.corrupt(&mut packet);
        }
        let mut due = sent + self.travel();
        match self.settings.reorder {
            Reorder::Late { share, by } if chance(share, &mut self.rng) => due += by,
            reorder => {
                if !matches!(reorder, Reorder::ByJitter) {
                    due = self.last_due.map_or(due, |last| last.max(due));
                }
                self.last_due = Some(self.last_due.map_or(due, |last| last.max(due)));
            }
        }
        self.counters.flying.add(packet.len());
        self.wire.push(Reverse(Flying { due, number, packet }));
    }

    /// The delay with its jitter.
    fn travel(&mut self) -> Duration {
        let LinkSettings { delay, jitter, .. } = self.settings;
        if jitter.spread.is_zero() {
            return delay;
        }
        let off = match jitter.shape {
            Shape::Uniform => self.rng.f64() * 2.0 - 1.0,
            Shape::Normal => normal(&mut self.rng).clamp(-3.0, 3.0),
        };
        let by = jitter.spread.mul_f64(off.abs());
        if off < 0.0 { delay.saturating_sub(by) } else { delay + by }
    }

    fn corrupt(&mut self, packet: &mut [u8]) {
        let header = packet::header_length(packet);
        // A packet of nothing but its header is hit there.
        let from = if header < packet.len() { header } else { 0 };
        let at = from + self.rng.usize(..(packet.len() - from).max(1));
        if let Some(byte) = packet.get_mut(at) {
            *byte ^= 1 << self.rng.u8(..8);
            self.counters.corrupted += 1;
        }
    }
}

/// A sample of the standard normal distribution (Box and Muller).
fn normal(rng: &mut fastrand::Rng) -> f64 {
    let radius = (-2.0 * (1.0 - rng.f64()).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.f64()).cos()
}
