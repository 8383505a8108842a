//! What the filter counts.

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

/// The figures of the filter.
#[derive(Clone)]
pub(super) struct Counts {
    pub(super) hits: Counter,
    pub(super) damaged: Counter,
    pub(super) queue: Gauge,
    pub(super) connected: Gauge,
    pub(super) seconds: Histogram,
}

impl Counts {
    pub(super) fn new() -> Self {
        let counts = Self {
            hits: counter!("qudag_sidecar_dns_shared_cache_hits_total"),
            damaged: counter!("qudag_sidecar_dns_shared_cache_checksum_failures_total"),
            queue: gauge!("qudag_sidecar_dns_shared_cache_queue"),
            connected: gauge!("qudag_sidecar_dns_shared_cache_connected"),
            seconds: histogram!("qudag_sidecar_dns_shared_cache_read_seconds"),
        };
        // Shown from the start; the states of several settings add up.
        counts.connected.increment(0.0);
        counts.queue.increment(0.0);
        counts
    }

    /// A query that goes on, and why.
    pub(super) fn miss(&self, reason: &'static str) {
        counter!("qudag_sidecar_dns_shared_cache_misses_total", "reason" => reason).increment(1);
    }

    /// Something failed between Redis and us.
    pub(super) fn error(&self, reason: &'static str) {
        counter!("qudag_sidecar_dns_shared_cache_errors_total", "reason" => reason).increment(1);
    }

    /// What became of replies that were to be written.
    pub(super) fn writes(&self, result: &'static str, count: usize) {
        counter!("qudag_sidecar_dns_shared_cache_writes_total", "result" => result).increment(count as u64);
    }

    /// A flush was sent to the fleet, came from it, or may have been missed.
    pub(super) fn flush(&self, direction: &'static str) {
        counter!("qudag_sidecar_dns_shared_cache_flushes_total", "direction" => direction).increment(1);
    }
}
