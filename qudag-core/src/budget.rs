//! A retry budget: retries are a share of the requests, so that they cannot multiply the load on an upstream that is
//! already failing.

use std::time::Instant;

/// How many seconds the window spans, the current one included.
pub const WINDOW: u32 = 10;

/// How many retries there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Retries in percent of the requests of the window.
    pub percent: u32,
    /// Retries a second that there may be besides, so that a trickle of requests is retried too. Unused ones of the window add up.
    pub min_per_second: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Second {
    requests: u64,
    retries: u64,
}

/// Requests and retries of the last [`WINDOW`] seconds. The settings are given at every use, so that a change of them keeps
/// the counts.
#[derive(Clone, Debug)]
pub struct Budget {
    start: Instant,
    /// The current second since `start`.
    second: u64,
    window: [Second; WINDOW as usize],
}

impl Budget {
    /// An unused budget.
    pub fn new(now: Instant) -> Self {
        Self { start: now, second: 0, window: Default::default() }
    }

    /// Counts a request; retries are not requests.
    pub fn request(&mut self, now: Instant) {
        self.current(now).requests += 1;
    }

    /// Takes a retry out of the budget, if there is one left.
    pub fn retry(&mut self, settings: &Settings, now: Instant) -> bool {
        self.current(now);
        let sum = |count: fn(&Second) -> u64| self.window.iter().map(count).sum::<u64>();
        let share = sum(|second| second.requests).saturating_mul(settings.percent.into()) / 100;
        let least = u64::from(settings.min_per_second) * u64::from(WINDOW);
        if sum(|second| second.retries) >= share.saturating_add(least) {
            return false;
        }
        self.current(now).retries += 1;
        true
    }

    /// The counts of the current second; those that have left the window are cleared.
    fn current(&mut self, now: Instant) -> &mut Second {
        let second = now.saturating_duration_since(self.start).as_secs().max(self.second);
        let window = u64::from(WINDOW);
        for passed in (self.second + 1..=second).rev().take(WINDOW as usize) {
            if let Some(slot) = self.window.get_mut((passed % window) as usize) {
                *slot = Second::default();
            }
        }
        self.second = second;
        #[allow(clippy::indexing_slicing, reason = "the remainder is below the length")]
        &mut self.window[(second % window) as usize]
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn take(budget: &mut Budget, settings: &Settings, now: Instant, tries: usize) -> usize {
        (0..tries).filter(|_| budget.retry(settings, now)).count()
    }

    #[test]
    fn a_share_of_the_requests_and_a_minimum() {
        let now = Instant::now();
        let settings = Settings { percent: 20, min_per_second: 3 };
        let mut budget = Budget::new(now);
        assert_eq!(take(&mut budget, &settings, now, 100), 30);
        for _ in 0..50 {
            budget.request(now);
        }
        assert_eq!(take(&mut budget, &settings, now, 100), 10);
        // The window has passed: nothing of it is left, neither requests nor retries.
        let later = now + Duration::from_secs(u64::from(WINDOW));
        assert_eq!(take(&mut budget, &settings, later, 100), 30);
    }

    #[test]
    fn counts_leave_second_by_second() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut settings = Settings { percent: 100, min_per_second: 0 };
        let mut budget = Budget::new(start);
        assert!(!budget.retry(&settings, start));
        budget.request(at(0));
        budget.request(at(5));
        assert!(budget.retry(&settings, at(9)));
        // The first request has left, and one retry was taken.
        assert!(!budget.retry(&settings, at(10)));
        budget.request(at(14));
        assert!(budget.retry(&settings, at(14)));
        assert!(!budget.retry(&settings, at(14)));
        settings.percent = 300;
        assert!(budget.retry(&settings, at(14)));
        // Time that goes backwards counts as now.
        assert_eq!(take(&mut budget, &settings, at(3), 10), 3);
    }

    proptest! {
        #[test]
        fn it_is_never_exceeded(
            percent in 0_u32..200,
            min_per_second in 0_u32..5,
            steps in proptest::collection::vec((any::<bool>(), 0_u64..1_500), 0..300),
        ) {
            let start = Instant::now();
            let settings = Settings { percent, min_per_second };
            let mut budget = Budget::new(start);
            let mut millis = 0;
            // The second of every request and of every retry.
            let (mut requests, mut retries) = (Vec::new(), Vec::new());
            for (is_request, pause) in steps {
                // Several steps in the same moment are the interesting case.
                millis += pause.saturating_sub(1_000);
                let now = start + Duration::from_millis(millis);
                let second = millis / 1000;
                let in_window = |seconds: &[u64]| {
                    seconds.iter().filter(|s| **s + u64::from(WINDOW) > second).count() as u64
                };
                if is_request {
                    budget.request(now);
                    requests.push(second);
                } else {
                    let limit = in_window(&requests) * u64::from(percent) / 100
                        + u64::from(min_per_second * WINDOW);
                    let granted = budget.retry(&settings, now);
                    prop_assert_eq!(granted, in_window(&retries) < limit);
                    retries.extend(granted.then_some(second));
                }
            }
        }
    }
}
