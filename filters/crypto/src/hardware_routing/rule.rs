//! Where a batch is done sooner, by estimate.
//!
//! ```text
//! here  =               work(backend here)  × slowness here
//! there = round trip + (work(backend there) × (1 + operations that wait there ÷ threads there ÷ operations of the batch)) × slowness there
//! ```
//!
//! *Work* is what [`Cost`] says for keys that are ready, which understates what a fast backend saves. *Slowness* is how much longer the last batches
//! took than was estimated, whatever the reason: load, other processors, keys that had to be expanded, the way there. What is known of it fades,
//! so that a side that was slow is tried again.

use std::time::{Duration, Instant};

use qudag_mldsa::Backend;

use crate::Operations;
use crate::work::Cost;

/// Keys are taken as ready.
const NONE_FRESH: u8 = 0;
/// The weight of a new measurement, as a part of one.
const WEIGHT: f64 = 0.25;
/// After so long, half of what was measured is forgotten.
const HALF_LIFE: Duration = Duration::from_secs(10);
/// What is believed of a measurement.
const FACTORS: (f64, f64) = (0.1, 1_000.0);

/// What a batch takes on one processor, by estimate.
pub(super) fn work(operations: &Operations, backend: Backend) -> Duration {
    Cost::all(operations, backend, NONE_FRESH).time()
}

/// How many times longer work takes than was estimated.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Slowness(Option<(f64, Instant)>);

impl Slowness {
    /// The factor; 1 as long as nothing is known.
    pub(super) fn factor(&self, now: Instant) -> f64 {
        self.0.map_or(1.0, |(factor, at)| {
            let age = now.saturating_duration_since(at).as_secs_f64() / HALF_LIFE.as_secs_f64();
            1.0 + (factor - 1.0) * 0.5_f64.powf(age)
        })
    }

    /// Something took so long, for which less or more was estimated.
    pub(super) fn note(&mut self, took: Duration, estimated: Duration, now: Instant) {
        let before = self.factor(now);
        let seen = took.as_secs_f64() / estimated.as_secs_f64().max(1e-9);
        let (least, most) = FACTORS;
        self.0 = Some((before + WEIGHT * (seen.clamp(least, most) - before), now));
    }
}

/// What waits at another sidecar, as it said last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Queue {
    pub(super) operations: usize,
    pub(super) threads: u32,
}

/// What a batch takes there, with what waits before it; without slowness and the way.
pub(super) fn work_behind(work: Duration, operations: usize, queue: Queue) -> Duration {
    let before = queue.operations as f64 / f64::from(queue.threads.max(1)) / operations.max(1) as f64;
    times(work, 1.0 + before)
}

/// A time, a factor times. What no clock can express is as long as can be.
pub(super) fn times(time: Duration, factor: f64) -> Duration {
    Duration::try_from_secs_f64(time.as_secs_f64() * factor).unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn slowness_follows_what_is_seen_and_fades() {
        let start = Instant::now();
        let mut slowness = Slowness::default();
        assert_eq!(slowness.factor(start), 1.0);
        for _ in 0..40 {
            slowness.note(8 * MS, MS, start);
        }
        assert!((slowness.factor(start) - 8.0).abs() < 0.01, "{slowness:?}");
        assert!((slowness.factor(start + HALF_LIFE) - 4.5).abs() < 0.01);
        assert!(slowness.factor(start + 20 * HALF_LIFE) < 1.01);
        // One odd measurement neither counts alone nor for ever.
        slowness = Slowness::default();
        slowness.note(Duration::from_secs(3_600), Duration::ZERO, start);
        assert!(slowness.factor(start) < 251.0);
        slowness.note(Duration::ZERO, MS, start);
        assert!(slowness.factor(start) < 189.0);
    }

    #[test]
    fn what_waits_there_counts_by_its_threads() {
        let queue = |operations, threads| Queue { operations, threads };
        assert_eq!(work_behind(MS, 64, queue(0, 2)), MS);
        assert_eq!(work_behind(MS, 64, queue(64, 1)), 2 * MS);
        assert_eq!(work_behind(MS, 64, queue(64, 2)), MS + MS / 2);
        assert!(work_behind(Duration::MAX, 0, queue(usize::MAX, 0)) >= Duration::MAX / 2);
    }
}
