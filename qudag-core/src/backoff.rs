//! How long to wait before another attempt: exponential, with full jitter.

use std::time::Duration;

/// Waits that double from attempt to attempt up to a maximum, each drawn uniformly from zero to its limit, so
/// that clients that failed together do not come back together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The limit of the first wait.
    pub min: Duration,
    /// The limit of every wait.
    pub max: Duration,
}

impl Backoff {
    /// The limit of the wait before retry number `retry`, counted from 0.
    pub fn limit(&self, retry: u32) -> Duration {
        let factor = 2_u32.checked_pow(retry).unwrap_or(u32::MAX);
        self.min.saturating_mul(factor).min(self.max)
    }

    /// The wait before retry number `retry`, counted from 0; at most [`Backoff::limit`].
    pub fn wait(&self, retry: u32, random: u64) -> Duration {
        crate::share(self.limit(retry), random)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn limits_double_up_to_the_maximum() {
        let backoff = Backoff { min: Duration::from_millis(100), max: Duration::from_secs(1) };
        let limits: Vec<_> = (0..6).map(|retry| backoff.limit(retry).as_millis()).collect();
        assert_eq!(limits, [100, 200, 400, 800, 1000, 1000]);
        assert_eq!(backoff.limit(u32::MAX), backoff.max);
    }

    #[test]
    fn the_whole_range_is_used() {
        let backoff = Backoff { min: Duration::from_secs(1), max: Duration::from_secs(1) };
        assert_eq!(backoff.wait(0, 0), Duration::ZERO);
        assert_eq!(backoff.wait(0, 1 << 63), Duration::from_millis(500));
        assert_eq!(backoff.wait(0, u64::MAX), Duration::from_nanos(999_999_999));
    }

    proptest! {
        #[test]
        fn waits_stay_within_their_limits(
            min in 0_u64..100_000, max in 0_u64..10_000_000, retry: u32, random: u64,
        ) {
            let backoff = Backoff { min: Duration::from_micros(min), max: Duration::from_micros(max) };
            let wait = backoff.wait(retry, random);
            prop_assert!(wait <= backoff.limit(retry));
            prop_assert!(backoff.limit(retry) <= backoff.max);
            prop_assert!(backoff.limit(retry) <= backoff.limit(retry.saturating_add(1)));
        }
    }
}
