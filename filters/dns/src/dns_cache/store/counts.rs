//! What the cache counts.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use metrics::{Counter, Gauge, counter, gauge};
use serde::Serialize;

/// What the cache has done and holds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct CacheStats {
    /// Replies that are held.
    pub entries: u64,
    /// Their memory in bytes, roughly.
    pub bytes: u64,
    /// The most bytes that there may be.
    pub max_bytes: u64,
    /// Queries answered from the cache.
    pub hits: u64,
    /// Queries that had to wait for the upstream server, on their own or together with others.
    pub misses: u64,
    /// Replies that were stored.
    pub inserts: u64,
    /// Replies that went for lack of room.
    pub evictions: u64,
    /// Queries that found a reply whose time was over.
    pub expired: u64,
    /// Flushes.
    pub flushes: u64,
    /// Queries answered with a reply whose time was over, because a refresh failed.
    pub stale_failed: u64,
    /// Queries answered with a reply whose time was over, because a refresh took too long.
    pub stale_slow: u64,
    /// Refreshes before a reply's time was over that brought a new one.
    pub prefetches: u64,
    /// Refreshes before a reply's time was over that brought none.
    pub prefetch_failures: u64,
    /// Queries answered with a failure of a moment ago.
    pub failures_served: u64,
    /// Replies that were not as they had been stored, and were thrown away.
    pub checksum_failures: u64,
    /// Whether all replies are being asked for again.
    pub rebuilding: bool,
    /// How many replies that concerns, or did the last time.
    pub rebuild_total: u64,
    /// How many of them were asked for again.
    pub rebuild_done: u64,
    /// For how many of them no answer was to be had.
    pub rebuild_failed: u64,
    /// Replies that were read from the snapshot at the start.
    pub snapshot_restored: u64,
    /// Snapshots that could not be written, or were refused when they were read.
    pub snapshot_failures: u64,
    /// How old the snapshot on disk is, in seconds; none where none is kept.
    pub snapshot_age_seconds: Option<f64>,
    /// Hits among all queries, from 0 to 1.
    pub hit_ratio: f64,
    /// The same of the last seconds.
    pub hit_ratio_short: f64,
    /// The same of the last minutes.
    pub hit_ratio_long: f64,
    /// Whether the hit ratio of the last seconds is far below that of the last minutes.
    pub hit_ratio_anomaly: bool,
}

/// A count that is shown in `stats` and as a metric.
pub(crate) struct Count {
    value: AtomicU64,
    metric: Counter,
}

impl Count {
    fn new(metric: Counter) -> Self {
        Self { value: AtomicU64::new(0), metric }
    }

    pub(crate) fn add(&self) {
        self.add_many(1);
    }

    pub(crate) fn add_many(&self, count: u64) {
        self.value.fetch_add(count, Relaxed);
        self.metric.increment(count);
    }

    pub(crate) fn get(&self) -> u64 {
        self.value.load(Relaxed)
    }
}

/// The hits of one thread, on a cache line of its own.
#[derive(Default)]
#[repr(align(128))]
pub(super) struct Shard(AtomicU64);

impl Shard {
    /// Only the thread that the shard belongs to counts here, so a read and a write are enough.
    pub(super) fn hit(&self) {
        self.0.store(self.0.load(Relaxed).wrapping_add(1), Relaxed);
    }
}

/// The hits of all threads.
#[derive(Default)]
struct Hits {
    shards: Vec<Arc<Shard>>,
    /// Those of threads that have ended.
    ended: u64,
    /// How many the metric knows of.
    shown: u64,
}

impl Hits {
    fn sum(&mut self) -> u64 {
        let ended = &mut self.ended;
        self.shards.retain(|shard| {
            let alive = Arc::strong_count(shard) > 1;
            if !alive {
                *ended += shard.0.load(Relaxed);
            }
            alive
        });
        self.ended + self.shards.iter().map(|shard| shard.0.load(Relaxed)).sum::<u64>()
    }
}

/// How far a rebuild is.
#[derive(Default)]
pub(crate) struct Progress {
    pub(crate) running: AtomicBool,
    pub(crate) total: AtomicU64,
    pub(crate) done: AtomicU64,
    pub(crate) failed: AtomicU64,
}

pub(crate) struct Counts {
    hits: Mutex<Hits>,
    hits_metric: Counter,
    pub(crate) misses: Count,
    pub(crate) inserts: Count,
    pub(crate) evictions: Count,
    pub(crate) expired: Count,
    pub(crate) flushes: Count,
    pub(crate) stale_failed: Count,
    pub(crate) stale_slow: Count,
    pub(crate) prefetches: Count,
    pub(crate) prefetch_failures: Count,
    pub(crate) failures_served: Count,
    pub(crate) checksum_failures: Count,
    pub(crate) snapshots_written: Count,
    pub(crate) snapshots_failed: Count,
    pub(crate) snapshots_refused: Count,
    pub(crate) snapshot_restored: Count,
    pub(crate) rebuild: Progress,
    pub(super) entries: Gauge,
    pub(super) bytes: Gauge,
    pub(super) hit_ratio_short: Gauge,
    pub(super) hit_ratio_long: Gauge,
    pub(super) anomaly: Gauge,
    pub(super) snapshot_age: Gauge,
    pub(super) rebuild_pending: Gauge,
}

impl Counts {
    pub(super) fn new() -> Self {
        let of = |metric| Count::new(metric);
        Self {
            hits: Mutex::default(),
            hits_metric: counter!("qudag_sidecar_dns_cache_hits_total"),
            misses: of(counter!("qudag_sidecar_dns_cache_misses_total")),
            inserts: of(counter!("qudag_sidecar_dns_cache_inserts_total")),
            evictions: of(counter!("qudag_sidecar_dns_cache_evictions_total")),
            expired: of(counter!("qudag_sidecar_dns_cache_expired_total")),
            flushes: of(counter!("qudag_sidecar_dns_cache_flushes_total")),
            stale_failed: of(counter!("qudag_sidecar_dns_cache_stale_total", "reason" => "failed")),
            stale_slow: of(counter!("qudag_sidecar_dns_cache_stale_total", "reason" => "slow")),
            prefetches: of(counter!("qudag_sidecar_dns_cache_prefetches_total", "result" => "ok")),
            prefetch_failures: of(counter!("qudag_sidecar_dns_cache_prefetches_total", "result" => "failed")),
            failures_served: of(counter!("qudag_sidecar_dns_cache_failures_served_total")),
            checksum_failures: of(counter!("qudag_sidecar_dns_cache_checksum_failures_total")),
            snapshots_written: of(counter!("qudag_sidecar_dns_cache_snapshots_total", "result" => "written")),
            snapshots_failed: of(counter!("qudag_sidecar_dns_cache_snapshots_total", "result" => "failed")),
            snapshots_refused: of(counter!("qudag_sidecar_dns_cache_snapshots_total", "result" => "refused")),
            snapshot_restored: of(counter!("qudag_sidecar_dns_cache_snapshot_restored_total")),
            rebuild: Progress::default(),
            entries: gauge!("qudag_sidecar_dns_cache_entries"),
            bytes: gauge!("qudag_sidecar_dns_cache_bytes"),
            hit_ratio_short: gauge!("qudag_sidecar_dns_cache_hit_ratio", "window" => "short"),
            hit_ratio_long: gauge!("qudag_sidecar_dns_cache_hit_ratio", "window" => "long"),
            anomaly: gauge!("qudag_sidecar_dns_cache_hit_ratio_anomaly"),
            snapshot_age: gauge!("qudag_sidecar_dns_cache_snapshot_age_seconds"),
            rebuild_pending: gauge!("qudag_sidecar_dns_cache_rebuild_pending"),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Hits> {
        self.hits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for one more thread to count hits in.
    pub(super) fn shard(&self) -> Arc<Shard> {
        let shard = Arc::<Shard>::default();
        self.lock().shards.push(Arc::clone(&shard));
        shard
    }

    /// Counts a hit of a thread that has no table.
    pub(super) fn hit_without_table(&self) {
        self.lock().ended += 1;
    }

    /// The hits of all threads; brings the metric up to date.
    pub(crate) fn hits(&self) -> u64 {
        let mut hits = self.lock();
        let sum = hits.sum();
        self.hits_metric.increment(sum.saturating_sub(hits.shown));
        hits.shown = sum;
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hits_of_threads_that_have_ended_still_count() {
        let counts = Arc::new(Counts::new());
        for _ in 0..3 {
            let counts = Arc::clone(&counts);
            let thread = std::thread::spawn(move || {
                let shard = counts.shard();
                (0..100).for_each(|_| shard.hit());
            });
            thread.join().unwrap();
        }
        counts.shard().hit();
        assert_eq!((counts.hits(), counts.hits()), (301, 301));
        assert!(counts.lock().shards.is_empty());
    }
}
