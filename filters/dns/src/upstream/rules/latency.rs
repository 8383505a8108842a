//! How long a server usually takes.

use std::time::Duration;

/// So many of the last replies are remembered.
const RECENT: usize = 64;
/// With fewer replies, nothing is said about how long they usually take.
const ENOUGH: usize = 8;
/// A reply's share in the smoothed latency is 1 in so many (as in RFC 6298 section 2).
const SHARE: u32 = 8;
/// A datagram is sent again to the same server after at least this time, where there are others: what is lost is rarer than what is slow.
const RESEND: Duration = Duration::from_millis(100);

/// The limits of patience, as configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct HedgeLimits {
    /// The next server is not asked earlier.
    pub(in super::super) min: Duration,
    /// Nor later.
    pub(in super::super) max: Duration,
    /// The time after which a server is silent.
    pub(in super::super) attempt: Duration,
}

/// The latency of one server.
#[derive(Clone, Debug)]
pub(in super::super) struct Latency {
    smoothed: Option<Duration>,
    /// The last replies in microseconds, the oldest of which is overwritten next.
    recent: [u32; RECENT],
    replies: usize,
}

impl Default for Latency {
    fn default() -> Self {
        Self { smoothed: None, recent: [0; RECENT], replies: 0 }
    }
}

impl Latency {
    /// A reply came after so long.
    pub(in super::super) fn record(&mut self, took: Duration) {
        self.smoothed = Some(match self.smoothed {
            None => took,
            Some(smoothed) => (smoothed * (SHARE - 1) + took) / SHARE,
        });
        if let Some(place) = self.recent.get_mut(self.replies % RECENT) {
            *place = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
        }
        self.replies = self.replies.saturating_add(1);
    }

    /// The smoothed latency.
    pub(in super::super) fn smoothed(&self) -> Option<Duration> {
        self.smoothed
    }

    /// The time in which 95 of 100 replies come; `None` while too few are known.
    pub(in super::super) fn p95(&self) -> Option<Duration> {
        let known = self.replies.min(RECENT);
        if known < ENOUGH {
            return None;
        }
        let mut recent = self.recent;
        let recent = recent.get_mut(..known)?;
        let (_, p95, _) = recent.select_nth_unstable(known * 95 / 100);
        Some(Duration::from_micros((*p95).into()))
    }

    /// When the next server is asked as well.
    pub(in super::super) fn patience(&self, limits: &HedgeLimits) -> Duration {
        self.p95().unwrap_or(limits.max).clamp(limits.min, limits.max.max(limits.min))
    }

    /// When the same server is asked again, for the datagram may be lost: sooner where there is no other server, and not while a slow
    /// one may well be about to answer.
    pub(in super::super) fn resend(&self, limits: &HedgeLimits, only: bool) -> Duration {
        let usual = self.p95().map_or(Duration::ZERO, |p95| p95 * 3 / 2);
        let least = if only { Duration::ZERO } else { RESEND };
        let slowest = limits.attempt * 3 / 2;
        least.max(self.patience(limits)).min(limits.attempt).max(usual.min(slowest))
    }

    /// For how long a server may say nothing at all before it is doubted.
    pub(in super::super) fn doubt(&self, limits: &HedgeLimits) -> Duration {
        let usual = self.p95().map_or(Duration::ZERO, |p95| p95 * 2);
        usual.max(self.patience(limits)).min(limits.attempt)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: HedgeLimits = HedgeLimits {
        min: Duration::from_millis(20),
        max: Duration::from_millis(50),
        attempt: Duration::from_millis(400),
    };

    fn of(millis: impl IntoIterator<Item = u64>) -> Latency {
        let mut latency = Latency::default();
        millis.into_iter().for_each(|millis| latency.record(Duration::from_millis(millis)));
        latency
    }

    #[test]
    fn the_95th_of_the_last_replies_counts() {
        let ms = Duration::from_millis;
        assert_eq!(of([1; 7]).p95(), None);
        assert_eq!(of(1..=64).p95(), Some(ms(61)));
        // What is older than 64 replies is forgotten.
        let latency = of(std::iter::repeat_n(500, 64).chain(std::iter::repeat_n(3, 64)));
        assert_eq!(latency.p95(), Some(ms(3)));
        // One slow reply of many does not.
        assert_eq!(of((0..50).map(|i| if i == 20 { 900 } else { 5 })).p95(), Some(ms(5)));
    }

    #[test]
    fn patience_follows_the_server_within_its_limits() {
        let ms = Duration::from_millis;
        assert_eq!(of([]).patience(&LIMITS), ms(50));
        assert_eq!(of([1; 10]).patience(&LIMITS), ms(20));
        assert_eq!(of([30; 10]).patience(&LIMITS), ms(30));
        assert_eq!(of([300; 10]).patience(&LIMITS), ms(50));
        let resend = |latency: Latency| (latency.resend(&LIMITS, false), latency.resend(&LIMITS, true));
        assert_eq!(resend(of([1; 10])), (ms(100), ms(20)));
        assert_eq!(resend(of([])), (ms(100), ms(50)));
        assert_eq!(resend(of([200; 10])), (ms(300), ms(300)));
        // Spread to 80 %, it still comes behind the answer of a server that takes 350 ms.
        assert_eq!(resend(of([350; 10])), (ms(525), ms(525)));
        assert_eq!(resend(of([3500; 10])), (ms(600), ms(600)));
        assert_eq!((of([1; 10]).doubt(&LIMITS), of([150; 10]).doubt(&LIMITS)), (ms(20), ms(300)));
    }

    proptest! {
        #[test]
        fn every_time_lies_within_its_limits(
            replies in proptest::collection::vec(0_u64..10_000_000, 0..200),
            min in 1_u64..100, more in 0_u64..100, attempt in 1_u64..1000
        ) {
            let limits = HedgeLimits {
                min: Duration::from_millis(min),
                max: Duration::from_millis(min + more),
                attempt: Duration::from_millis(attempt),
            };
            let mut latency = Latency::default();
            for micros in &replies {
                latency.record(Duration::from_micros(*micros));
            }
            let patience = latency.patience(&limits);
            prop_assert!(limits.min <= patience && patience <= limits.max);
            prop_assert!(latency.resend(&limits, true) <= latency.resend(&limits, false));
            prop_assert!(latency.resend(&limits, false) <= limits.attempt * 3 / 2);
            prop_assert!(latency.doubt(&limits) <= limits.attempt);
            let smoothed = latency.smoothed().map(|smoothed| smoothed.as_micros() as u64);
            prop_assert_eq!(smoothed.is_some(), !replies.is_empty());
            prop_assert!(smoothed.is_none_or(|smoothed| smoothed <= *replies.iter().max().unwrap()));
        }
    }
}
