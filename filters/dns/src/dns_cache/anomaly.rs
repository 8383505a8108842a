//! Whether the cache suddenly helps much less than it did: the first sign of entries that are lost, refused or never stored.
//!
//! Compares the hit ratio of the last seconds with that of the last minutes. The time is an argument.

use std::time::Duration;

use tokio::time::Instant;

/// After this time a query counts half in the short average.
const SHORT: Duration = Duration::from_secs(10);
/// The same of the long one.
const LONG: Duration = Duration::from_secs(600);
/// So many queries must be in the short average before it is judged.
const ENOUGH_SHORT: f64 = 100.0;
/// The same of the long one.
const ENOUGH_LONG: f64 = 1_000.0;
/// The alarm begins when the short ratio is so far below the long one, and ends when it is less than half as far.
const DROP: f64 = 0.2;
/// After a flush misses are what is expected.
const QUIET: Duration = Duration::from_secs(60);

/// Counts that fade.
#[derive(Clone, Copy, Debug, Default)]
struct Average {
    hits: f64,
    all: f64,
}

impl Average {
    fn add(&mut self, hits: f64, all: f64, elapsed: Duration, half_life: Duration) {
        let fade = (-elapsed.as_secs_f64() / half_life.as_secs_f64()).exp2();
        self.hits = self.hits * fade + hits;
        self.all = self.all * fade + all;
    }

    fn ratio(&self) -> f64 {
        if self.all > 0.0 { (self.hits / self.all).clamp(0.0, 1.0) } else { 0.0 }
    }
}

/// What there is to say about the hit ratio.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Ratios {
    /// Of the last seconds.
    pub(crate) short: f64,
    /// Of the last minutes.
    pub(crate) long: f64,
    /// Whether the first is far below the second.
    pub(crate) anomaly: bool,
}

/// Follows the hit ratio.
#[derive(Debug, Default)]
pub(crate) struct HitRatio {
    short: Average,
    long: Average,
    last: Option<(Instant, u64, u64)>,
    quiet_until: Option<Instant>,
    anomaly: bool,
}

impl HitRatio {
    /// Takes in how many hits and misses there were up to now.
    pub(crate) fn sample(&mut self, now: Instant, hits: u64, misses: u64) -> Ratios {
        if let Some((then, old_hits, old_misses)) = self.last {
            let elapsed = now.saturating_duration_since(then);
            let (hits, misses) = (hits.saturating_sub(old_hits), misses.saturating_sub(old_misses));
            let (hits, all) = (hits as f64, (hits + misses) as f64);
            self.short.add(hits, all, elapsed, SHORT);
            self.long.add(hits, all, elapsed, LONG);
        }
        self.last = Some((now, hits, misses));
        let (short, long) = (self.short.ratio(), self.long.ratio());
        let quiet = self.quiet_until.is_some_and(|until| now < until);
        let enough = self.short.all >= ENOUGH_SHORT && self.long.all >= ENOUGH_LONG;
        let drop = if self.anomaly { DROP / 2.0 } else { DROP };
        self.anomaly = !quiet && enough && long - short > drop;
        Ratios { short, long, anomaly: self.anomaly }
    }

    /// There was a flush.
    pub(crate) fn flushed(&mut self, now: Instant) {
        self.quiet_until = Some(now + QUIET);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Run {
        ratio: HitRatio,
        now: Instant,
        hits: u64,
        misses: u64,
    }

    impl Run {
        fn new() -> Self {
            let mut run = Self { ratio: HitRatio::default(), now: Instant::now(), hits: 0, misses: 0 };
            run.seconds(0, 0, 1);
            run
        }

        fn seconds(&mut self, seconds: u64, hits: u64, misses: u64) -> Ratios {
            for _ in 0..seconds {
                self.now += Duration::from_secs(1);
                self.hits += hits;
                self.misses += misses;
                self.ratio.sample(self.now, self.hits, self.misses);
            }
            self.ratio.sample(self.now, self.hits, self.misses)
        }
    }

    #[test]
    fn a_sudden_drop_is_noticed_and_its_end_too() {
        let mut run = Run::new();
        let before = run.seconds(300, 95, 5);
        assert!(!before.anomaly && (before.short - 0.95).abs() < 0.01 && (before.long - 0.95).abs() < 0.01);
        let during = run.seconds(10, 0, 100);
        assert!(during.anomaly && during.short < 0.6, "{during:?}");
        let after = run.seconds(120, 95, 5);
        assert!(!after.anomaly && after.short > 0.9, "{after:?}");
    }

    #[test]
    fn a_steady_ratio_little_traffic_and_a_flush_are_no_anomaly() {
        let mut run = Run::new();
        assert!(!run.seconds(300, 10, 90).anomaly, "low, but as always");
        let mut run = Run::new();
        run.seconds(300, 95, 5);
        assert!(!run.seconds(60, 0, 1).anomaly, "too few to say");
        let mut run = Run::new();
        run.seconds(300, 95, 5);
        run.ratio.flushed(run.now);
        assert!(!run.seconds(30, 0, 100).anomaly, "after a flush");
        assert!(run.seconds(60, 0, 100).anomaly, "long after a flush");
    }
}
