//! What became of batches, counted.

use metrics::{Counter, counter};

use super::connection::Failure;
use super::link::Kept;

/// Every reason for which a batch that was routed is done here all the same.
const FALLBACKS: [&str; 7] = ["busy", "too_large", "timeout", "refused", "disconnected", "garbage", MISMATCH];
const MISMATCH: &str = "mismatch";

pub(super) struct Meters {
    /// Operations by what became of them.
    answered: Counter,
    fell_back: Counter,
    fallbacks: [(&'static str, Counter); FALLBACKS.len()],
    kept: [(Kept, Counter); Kept::ALL.len()],
    pub(super) same: Counter,
    pub(super) different: Counter,
    pub(super) skipped: Counter,
}

impl Meters {
    pub(super) fn new() -> Self {
        let operations = |outcome: &'static str| counter!("qudag_sidecar_crypto_routed_operations_total", "outcome" => outcome);
        let fallbacks = |reason: &'static str| counter!("qudag_sidecar_crypto_routing_fallbacks_total", "reason" => reason);
        let kept = |kept: Kept| counter!("qudag_sidecar_crypto_routing_kept_total", "reason" => kept.label());
        let checks =
            |result: &'static str| counter!("qudag_sidecar_crypto_routing_checks_total", "result" => result);
        Self {
            answered: operations("answered"),
            fell_back: operations("fell_back"),
            fallbacks: FALLBACKS.map(|reason| (reason, fallbacks(reason))),
            kept: Kept::ALL.map(|reason| (reason, kept(reason))),
            same: checks("same"),
            different: checks("different"),
            skipped: checks("skipped"),
        }
    }

    /// A batch had its verdicts from another sidecar.
    pub(super) fn answered(&self, operations: usize) {
        self.answered.increment(operations as u64);
    }

    /// A batch had none.
    pub(super) fn failed(&self, failure: Failure, operations: usize) {
        self.fell_back(failure.label(), operations);
    }

    /// A batch had a wrong one.
    pub(super) fn mismatch(&self, operations: usize) {
        self.fell_back(MISMATCH, operations);
    }

    fn fell_back(&self, reason: &'static str, operations: usize) {
        self.fell_back.increment(operations as u64);
        let counters = self.fallbacks.iter().filter(|(which, _)| *which == reason);
        counters.for_each(|(_, counter)| counter.increment(1));
    }

    /// A batch was not routed.
    pub(super) fn kept(&self, why: Kept) {
        let counters = self.kept.iter().filter(|(which, _)| *which == why);
        counters.for_each(|(_, counter)| counter.increment(1));
    }
}
