//! Failures of a moment ago (RFC 9520).

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use qudag_filter_api::FilterError;
use tokio::time::Instant;

use super::Outcome;
use crate::dns_cache::rules::{FAILURE_LIMIT, failure_ttl};
use crate::dns_cache::store::lock;
use crate::wire::rcode;

/// The most failures that are remembered.
const MOST: usize = 10_000;
/// For how long a failure counts for the next one of the same query.
const MEMORY: Duration = Duration::from_secs(2 * FAILURE_LIMIT.as_secs());

/// Whether an outcome is an answer: data, no data, or no such name (and not YXDOMAIN's failure to be one; RFC 6672 section 2.2).
pub(crate) fn is_answer(outcome: &Outcome) -> bool {
    match outcome {
        Ok(reply) => matches!(reply.rcode(), rcode::NOERROR | rcode::NXDOMAIN | rcode::YXDOMAIN),
        Err(_) => false,
    }
}

/// Whether an outcome is a failure of the servers to be remembered. What we refuse ourselves, for lack of room for instance, says
/// nothing about them.
fn is_failure(outcome: &Outcome) -> bool {
    match outcome {
        Ok(reply) => matches!(reply.rcode(), rcode::SERVFAIL | rcode::REFUSED),
        Err(error) => matches!(
            error,
            FilterError::Timeout { .. }
                | FilterError::Connect { .. }
                | FilterError::Resolve { .. }
                | FilterError::Upstream(_)
        ),
    }
}

/// What went wrong, for people.
pub(crate) fn reason(outcome: &Outcome) -> &'static str {
    match outcome {
        Ok(reply) => rcode::label(reply.rcode()),
        Err(error) => error.label(),
    }
}

struct Failure {
    count: u32,
    at: Instant,
    /// Flushes forget failures.
    epoch: u64,
    outcome: Outcome,
}

/// The failures by the bytes of their key.
#[derive(Default)]
pub(crate) struct Failures(Mutex<HashMap<Box<[u8]>, Failure>>);

impl Failures {
    /// What a query ended with. A failure is remembered for a while, anything else ends the memory.
    pub(crate) fn ended(&self, key: &[u8], outcome: &Outcome, epoch: u64, now: Instant) {
        let mut failures = lock(&self.0);
        if !is_failure(outcome) {
            failures.remove(key);
            return;
        }
        if failures.len() >= MOST {
            failures.retain(|_, failure| now.saturating_duration_since(failure.at) < MEMORY);
            if failures.len() > MOST / 2 {
                // Better to ask again than to look through all of them at each failure.
                failures.clear();
            }
        }
        let last = failures.get(key);
        let last = last.filter(|last| now.saturating_duration_since(last.at) < MEMORY);
        let count = last.map_or(0, |last| last.count).saturating_add(1);
        failures.insert(key.into(), Failure { count, at: now, epoch, outcome: outcome.clone() });
    }

    /// The failure of this query that need not be tried again yet, and how long ago it was. `most`: the longest that one is kept.
    pub(crate) fn get(
        &self,
        key: &[u8],
        epoch: u64,
        most: Duration,
        now: Instant,
    ) -> Option<(Outcome, Duration)> {
        let failures = lock(&self.0);
        let failure = failures.get(key).filter(|failure| failure.epoch == epoch)?;
        let age = now.saturating_duration_since(failure.at);
        (age < failure_ttl(failure.count, most)).then(|| (failure.outcome.clone(), age))
    }

    pub(crate) fn clear(&self) {
        lock(&self.0).clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed() -> Outcome {
        Err(FilterError::Upstream("down".into()))
    }

    #[test]
    fn failures_in_a_row_are_kept_longer_and_longer() {
        let (failures, most) = (Failures::default(), FAILURE_LIMIT);
        let mut now = Instant::now();
        for kept in [1000, 2000, 4000, 5000, 5000] {
            failures.ended(b"a", &failed(), 0, now);
            assert!(failures.get(b"a", 0, most, now + Duration::from_millis(kept - 1)).is_some(), "{kept}");
            assert!(failures.get(b"a", 1, most, now).is_none(), "not after a flush");
            assert!(failures.get(b"b", 0, most, now).is_none());
            now += Duration::from_millis(kept);
            assert!(failures.get(b"a", 0, most, now).is_none(), "{kept}");
        }
        failures.ended(b"a", &failed(), 0, now + MEMORY);
        let later = now + MEMORY + Duration::from_secs(1);
        assert!(failures.get(b"a", 0, most, later).is_none(), "the first one again");
        assert!(failures.get(b"a", 0, Duration::ZERO, now + MEMORY).is_none(), "switched off");
    }

    #[test]
    fn what_is_our_own_fault_is_no_failure_of_theirs() {
        let (failures, now) = (Failures::default(), Instant::now());
        for error in [
            FilterError::Overloaded("full".into()),
            FilterError::Draining,
            FilterError::ClientGone,
            FilterError::Internal("x".into()),
            FilterError::RateLimited { retry_after: Duration::ZERO },
        ] {
            failures.ended(b"a", &Err(error), 0, now);
            assert!(failures.get(b"a", 0, FAILURE_LIMIT, now).is_none());
        }
    }

    #[test]
    fn there_are_only_so_many() {
        let (failures, now) = (Failures::default(), Instant::now());
        for i in 0..3 * MOST as u64 {
            failures.ended(&i.to_be_bytes(), &failed(), 0, now);
        }
        assert!(lock(&failures.0).len() <= MOST);
    }
}
