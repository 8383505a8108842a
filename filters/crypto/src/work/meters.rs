//! How many operations were done, and with what result.

use metrics::{Counter, counter};
use qudag_mldsa::Rejected;

use crate::{Operations, Verdict};

/// Handles of `qudag_sidecar_crypto_operations_total`.
pub(crate) struct Meters {
    keys: Counter,
    hashes: Counter,
    signatures: Results,
    fingerprints: Results,
}

/// A counter of each [`Verdict`].
struct Results([(Verdict, Counter); VERDICTS.len()]);

/// Every verdict and its label.
const VERDICTS: [(Verdict, &str); 8] = [
    (Verdict::Valid, "valid"),
    (Verdict::Invalid(Rejected::Mismatch), "mismatch"),
    (Verdict::Invalid(Rejected::Range), "range"),
    (Verdict::Invalid(Rejected::Hints), "hints"),
    (Verdict::Invalid(Rejected::Length), "length"),
    (Verdict::Invalid(Rejected::Context), "context"),
    (Verdict::OtherData, "other_data"),
    (Verdict::UnknownKey, "unknown_key"),
];

fn operations(sort: &'static str, result: &'static str) -> Counter {
    counter!("qudag_sidecar_crypto_operations_total", "sort" => sort, "result" => result)
}

impl Results {
    fn new(sort: &'static str) -> Self {
        Self(VERDICTS.map(|(verdict, label)| (verdict, operations(sort, label))))
    }

    fn count(&self, verdicts: &[Verdict]) {
        for (which, counter) in &self.0 {
            let number = verdicts.iter().filter(|verdict| *verdict == which).count();
            if number > 0 {
                counter.increment(number as u64);
            }
        }
    }
}

impl Meters {
    pub(crate) fn new() -> Self {
        Self {
            keys: operations("key", "done"),
            hashes: operations("hash", "done"),
            signatures: Results::new("signature"),
            fingerprints: Results::new("fingerprint"),
        }
    }

    /// Verdicts about a request's signatures or fingerprints.
    pub(crate) fn verdicts(&self, of: &Operations, verdicts: &[Verdict]) {
        match of {
            Operations::Signatures(_) => self.signatures.count(verdicts),
            Operations::Fingerprints(_) => self.fingerprints.count(verdicts),
            Operations::Keys(_) | Operations::Hashes(_) | Operations::Status => {}
        }
    }

    /// Hashes that were made.
    pub(crate) fn hashes(&self, number: usize) {
        self.hashes.increment(number as u64);
    }

    /// Keys that were registered.
    pub(crate) fn keys(&self, number: usize) {
        self.keys.increment(number as u64);
    }
}
