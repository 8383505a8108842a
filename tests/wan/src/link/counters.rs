//! What passed a link and what did not.

use std::time::Duration;

use serde::{Serialize, Serializer};

/// Packets and the bytes of IP in them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Traffic {
    /// How many.
    pub packets: u64,
    /// Bytes from the first of the IP header to the end.
    pub bytes: u64,
}

impl Traffic {
    pub(super) fn add(&mut self, bytes: usize) {
        self.packets += 1;
        self.bytes += bytes as u64;
    }

    pub(super) fn remove(&mut self, bytes: usize) {
        self.packets = self.packets.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes as u64);
    }
}

/// One direction since its beginning; the last two are of now.
///
/// No packet is forgotten: `received + duplicated = delivered + lost + dropped.total() + waiting + flying`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// What the sender gave.
    pub received: Traffic,
    /// What the receiver was given.
    pub delivered: Traffic,
    /// Packets lost at random, as the settings ask.
    pub lost: u64,
    /// Second copies made.
    pub duplicated: u64,
    /// Packets of which a bit was changed.
    pub corrupted: u64,
    /// Packets delivered after one that was sent later.
    pub reordered: u64,
    /// Answers to the sender that a packet was too big.
    pub icmp: u64,
    /// Packets that were not let through, by reason.
    pub dropped: Dropped,
    /// How well the link kept its own times.
    pub late: Late,
    /// What waits for its turn on a link with a rate.
    pub waiting: Traffic,
    /// What is on its way.
    pub flying: Traffic,
}

/// Packets not let through, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Dropped {
    /// The queue before the link was full.
    pub queue: u64,
    /// Larger than the MTU.
    pub mtu: u64,
    /// The link was cut.
    pub cut: u64,
    /// UDP while UDP is blocked.
    pub udp: u64,
    /// More than [`MOST_BYTES`](super::MOST_BYTES) would have been inside.
    pub overflow: u64,
    /// Neither IPv4 nor IPv6.
    pub not_ip: u64,
    /// The receiving device did not take it: it is down, or corruption made it unreadable.
    pub refused: u64,
}

impl Dropped {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.queue + self.mtu + self.cut + self.udp + self.overflow + self.not_ip + self.refused
    }
}

/// How much later than at their time packets came out: what a busy machine adds to the settings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Late {
    /// Of all packets that came out together, in seconds.
    #[serde(serialize_with = "seconds")]
    pub sum: Duration,
    /// Of the worst, in seconds.
    #[serde(serialize_with = "seconds")]
    pub most: Duration,
}

impl Late {
    pub(super) fn add(&mut self, late: Duration) {
        self.sum += late;
        self.most = self.most.max(late);
    }
}

impl Counters {
    /// How late packets came out on average.
    pub fn mean_late(&self) -> Duration {
        let packets = u32::try_from(self.delivered.packets + self.dropped.refused).unwrap_or(u32::MAX);
        self.late.sum.checked_div(packets).unwrap_or_default()
    }
}

fn seconds<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_secs_f64())
}
