//! What one direction of a link does to its packets.

use std::time::Duration;

/// One direction of a link. [`LinkSettings::default`] passes everything on at once.
///
/// As text it is a list of `key=value`, which [`FromStr`](std::str::FromStr) reads and `Display` writes:
/// `delay=40ms,jitter=2ms,loss=1%,rate=100mbit,queue=50ms,mtu=1300`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LinkSettings {
    /// How long a packet travels after it left the queue.
    pub delay: Duration,
    /// How much the delay varies.
    pub jitter: Jitter,
    /// Whether packets may overtake each other.
    pub reorder: Reorder,
    /// Packets that vanish on the way. They take their time on a link with a rate like all others.
    pub loss: Loss,
    /// Packets that come twice.
    pub duplicate: Share,
    /// Packets of which one bit changes, behind the IP header if there is anything.
    pub corrupt: Share,
    /// Bits of IP per second; unlimited without.
    pub rate: Option<Rate>,
    /// How much may wait for a link with a rate; what comes then is dropped (tail drop).
    pub queue: Queue,
    /// The largest packet that passes.
    pub mtu: Option<Mtu>,
    /// UDP vanishes, everything else passes: a firewall at the sender's end.
    pub block_udp: bool,
    /// Nothing passes, and what is on the way is gone.
    pub cut: bool,
}

/// How much the delay of a packet differs from that of the settings. It is never below zero in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Jitter {
    /// The width of the distribution.
    pub spread: Duration,
    /// Which distribution.
    pub shape: Shape,
}

impl Jitter {
    /// The furthest from the delay that a packet can be.
    pub fn most(self) -> Duration {
        match self.shape {
            Shape::Uniform => self.spread,
            Shape::Normal => self.spread * 3,
        }
    }
}

/// The distribution of jitter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shape {
    /// Evenly between `delay - spread` and `delay + spread`.
    #[default]
    Uniform,
    /// A bell around `delay` with the standard deviation `spread`, cut at three of them.
    Normal,
}

/// Whether packets may overtake each other.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Reorder {
    /// Never: a packet that jitter would bring too early waits for the one before it, so jitter then raises the
    /// mean delay of packets that follow each other closely.
    #[default]
    Never,
    /// Where jitter brings it about.
    ByJitter,
    /// This share of the packets takes a longer way, so that others overtake them; the others keep their order.
    Late {
        /// How many.
        share: Share,
        /// How much longer their way is.
        by: Duration,
    },
}

/// Which packets are lost.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Loss {
    /// None.
    #[default]
    None,
    /// Each with the same chance, whatever became of the one before.
    Random(Share),
    /// In bursts: the two states of Gilbert, of which one loses everything and one nothing.
    Bursts {
        /// How many of all packets are lost.
        share: Share,
        /// How many in a row, on average; at least 1.
        mean: f64,
    },
    /// The two states of Gilbert and Elliott in full. The state changes, or does not, before each packet.
    GilbertElliott {
        /// The chance to go from the good state to the bad one.
        worsen: Share,
        /// The chance to go from the bad state to the good one.
        recover: Share,
        /// The loss in the bad state.
        bad: Share,
        /// The loss in the good state.
        good: Share,
    },
}

/// A part of a whole, held as the percentage that people write: 0 to 100.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd)]
pub struct Share(f64);

impl Share {
    /// All of them.
    pub const ALL: Self = Self(100.0);

    /// So many of a hundred; nothing outside 0 to 100.
    pub fn percent(percent: f64) -> Option<Self> {
        (0.0..=100.0).contains(&percent).then_some(Self(percent))
    }

    /// Between 0 and 100.
    pub fn as_percent(self) -> f64 {
        self.0
    }

    /// Between 0 and 1.
    pub fn chance(self) -> f64 {
        self.0 / 100.0
    }
}

/// Bits per second, at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rate(u64);

impl Rate {
    /// So many bits per second; nothing for none.
    pub fn bits(bits: u64) -> Option<Self> {
        (bits > 0).then_some(Self(bits))
    }

    /// Bits per second.
    pub fn as_bits(self) -> u64 {
        self.0
    }

    /// How long so many bytes occupy the link, rounded up, so that the rate is never exceeded.
    pub fn time(self, bytes: usize) -> Duration {
        let nanos = (bytes as u128 * 8 * 1_000_000_000).div_ceil(u128::from(self.0));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// How many whole bytes pass in this time.
    pub fn bytes(self, time: Duration) -> u64 {
        u64::try_from(time.as_nanos() * u128::from(self.0) / 8_000_000_000).unwrap_or(u64::MAX)
    }
}

/// How much may wait before a link with a rate. A packet that finds the link free never waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queue {
    /// Bytes of IP.
    Bytes(u64),
    /// As many bytes as pass in this time.
    Time(Duration),
}

impl Default for Queue {
    /// 100 ms: a home router that is neither modern nor the worst.
    fn default() -> Self {
        Self::Time(Duration::from_millis(100))
    }
}

impl Queue {
    /// In bytes, at this rate.
    pub fn at(self, rate: Rate) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Time(time) => rate.bytes(time),
        }
    }
}

/// The largest packet that passes, and what happens to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mtu {
    /// Bytes of IP. Below 1280 nothing large passes over IPv6, whose hosts never send less in a piece.
    pub bytes: u16,
    /// Drop silently, as networks do that lose or filter ICMP (a black hole), instead of telling the sender.
    ///
    /// The sender is told at once, without delay or loss, as by a router beside it. IPv4 without DF is dropped
    /// silently in any case; nothing is cut into fragments.
    pub silent: bool,
}
