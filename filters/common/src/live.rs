//! Gauges that go away with what they show.
//!
//! A recorder keeps a series for ever, with its last value: a target that was removed would look as it looked last. A
//! [`LiveGauge`] says *not a number* instead when it is dropped, or when nobody touched it for long; `/metrics` leaves such series
//! out.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use metrics::Gauge;
use tokio::time::Instant;

/// Every live gauge, for [`upkeep`].
static ALL: Mutex<Vec<Weak<Inner>>> = Mutex::new(Vec::new());

/// A gauge of something that may go away. Clones are the same gauge.
#[derive(Clone, Debug)]
pub struct LiveGauge(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    gauge: Gauge,
    /// The bits of the value.
    value: AtomicU64,
    /// How long it is shown without a touch, and since when there was none.
    idle: Option<(Duration, Mutex<Instant>)>,
    touched: AtomicBool,
}

impl LiveGauge {
    /// Shows `value` until it is dropped.
    pub fn new(gauge: Gauge, value: f64) -> Self {
        Self::with(gauge, value, None)
    }

    /// Shows `value` until it is dropped, or nobody touched it for `idle`; from the next touch on it is shown again.
    pub fn expiring(gauge: Gauge, value: f64, idle: Duration) -> Self {
        Self::with(gauge, value, Some((idle, Mutex::new(Instant::now()))))
    }

    fn with(gauge: Gauge, value: f64, idle: Option<(Duration, Mutex<Instant>)>) -> Self {
        gauge.set(value);
        let value = AtomicU64::new(value.to_bits());
        let inner = Arc::new(Inner { gauge, value, idle, touched: AtomicBool::new(true) });
        ALL.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(&inner));
        Self(inner)
    }

    /// Shows another value.
    pub fn set(&self, value: f64) {
        self.0.value.store(value.to_bits(), Relaxed);
        self.0.gauge.set(value);
        self.touch();
    }

    /// Shows a value that is larger by so much.
    pub fn add(&self, by: f64) {
        let add = |bits| Some((f64::from_bits(bits) + by).to_bits());
        let before = self.0.value.fetch_update(Relaxed, Relaxed, add).unwrap_or_else(|bits| bits);
        // Two at a time may come in the wrong order: the upkeep puts that right.
        self.0.gauge.set(f64::from_bits(before) + by);
        self.touch();
    }

    /// Says that what it shows is in use. Costs one relaxed load where it was said a moment ago.
    pub fn touch(&self) {
        if !self.0.touched.load(Relaxed) {
            self.0.touched.store(true, Relaxed);
        }
    }
}

impl Inner {
    fn keep_up(&self, now: Instant) {
        let is_idle = self.idle.as_ref().is_some_and(|(idle, since)| {
            let mut since = since.lock().unwrap_or_else(PoisonError::into_inner);
            if self.touched.swap(false, Relaxed) {
                *since = now;
            }
            now.duration_since(*since) >= *idle
        });
        // Again and again: another gauge of the same series may have ended meanwhile.
        self.gauge.set(if is_idle { f64::NAN } else { f64::from_bits(self.value.load(Relaxed)) });
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.gauge.set(f64::NAN);
    }
}

/// Hides gauges that were idle for too long. To be called every second or so.
pub fn upkeep() {
    let now = Instant::now();
    let mut live = Vec::new();
    ALL.lock().unwrap_or_else(PoisonError::into_inner).retain(|gauge| {
        let gauge = gauge.upgrade();
        live.extend(gauge.clone());
        gauge.is_some()
    });
    // Not under the lock: the last clone may be dropped here.
    live.into_iter().for_each(|gauge| gauge.keep_up(now));
}

#[cfg(test)]
mod tests {
    use metrics::gauge;

    use super::*;
    use crate::testing::Metrics;

    const SERIES: &str = r#"live{target="a"}"#;

    fn a() -> Gauge {
        gauge!("live", "target" => "a")
    }

    fn shown(metrics: &Metrics<'_>) -> Option<f64> {
        metrics.get(SERIES).filter(|value| !value.is_nan())
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_gone_is_not_shown() {
        let metrics = Metrics::record();
        let gauge = LiveGauge::new(a(), 1.0);
        tokio::time::advance(Duration::from_secs(100_000)).await;
        upkeep();
        assert_eq!(shown(&metrics), Some(1.0), "without a limit nothing expires");
        // As in a reload: the new one is there before the old one goes.
        let new = LiveGauge::new(a(), 2.0);
        drop(gauge);
        upkeep();
        assert_eq!(shown(&metrics), Some(2.0));
        drop(new);
        assert_eq!(shown(&metrics), None);
        upkeep();
        assert_eq!(shown(&metrics), None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_idle_is_hidden_until_it_is_used_again() {
        let metrics = Metrics::record();
        let gauge = LiveGauge::expiring(a(), 1.0, Duration::from_secs(60));
        upkeep();
        tokio::time::advance(Duration::from_secs(59)).await;
        upkeep();
        assert_eq!(shown(&metrics), Some(1.0));
        gauge.touch();
        upkeep();
        tokio::time::advance(Duration::from_secs(59)).await;
        upkeep();
        assert_eq!(shown(&metrics), Some(1.0));
        tokio::time::advance(Duration::from_secs(1)).await;
        upkeep();
        assert_eq!(shown(&metrics), None);
        gauge.touch();
        upkeep();
        assert_eq!(shown(&metrics), Some(1.0));
        gauge.set(3.0);
        assert_eq!(shown(&metrics), Some(3.0));
        gauge.add(2.0);
        gauge.add(-1.0);
        upkeep();
        assert_eq!(shown(&metrics), Some(4.0));
    }
}
