//! How long replies and failures are kept, and what is said of them. The time is an argument.

use std::time::Duration;

/// Nothing is ever older.
pub const HARD_LIMIT: Duration = Duration::from_secs(300);
/// No negative answer is ever older.
pub const NEGATIVE_LIMIT: Duration = Duration::from_secs(30);
/// No failure is kept longer (RFC 9520 section 3.2 allows 5 minutes).
pub const FAILURE_LIMIT: Duration = Duration::from_secs(5);
/// The longest time to live that is told of an answer whose time is over (RFC 8767 section 4 recommends 30 s).
pub(crate) const STALE_TTL: u32 = 5;

/// How long a failure is kept the first time.
const FIRST_FAILURE: Duration = Duration::from_secs(1);
/// So many refreshes must fail one after the other before the cache holds its own back.
const PATIENCE: u32 = 3;
/// How long the cache holds back its own refreshes at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What an entry's life depends on besides the settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Life {
    /// The shortest time to live of its records (the whole chain of aliases), for a negative answer also the zone's MINIMUM (RFC
    /// 2308 section 5); in seconds.
    pub lowest: u32,
    /// Whether it says that there is nothing.
    pub negative: bool,
}

/// How long entries live, as the settings say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The longest time to live.
    pub max_ttl: Duration,
    /// The shortest one, of positive answers.
    pub min_ttl: Duration,
    /// The longest one, of negative answers.
    pub negative_ttl: Duration,
    /// The age at which a positive answer is asked for again, whatever its time to live.
    pub soft_ttl: Duration,
    /// Whether an answer whose time is over may be served, should nothing better be had.
    pub serve_stale: bool,
}

/// What may be done with an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// Serve it.
    Fresh,
    /// Serve it when a refresh fails or takes too long (RFC 8767).
    Stale,
    /// Never serve it.
    Gone,
}

impl Limits {
    /// For how long an entry is fresh. Zero when it must not be kept.
    pub fn soft(&self, life: Life) -> Duration {
        let own = Duration::from_secs(life.lowest.into());
        let own = match life.negative {
            true => own.min(self.negative_ttl).min(NEGATIVE_LIMIT),
            false => own.max(self.min_ttl).min(self.soft_ttl),
        };
        own.min(self.max_ttl).min(HARD_LIMIT)
    }

    /// The age at which an entry is of no use to anybody.
    pub fn hard(life: Life) -> Duration {
        if life.negative { NEGATIVE_LIMIT } else { HARD_LIMIT }
    }

    /// What may be done with an entry of an age. `fresh_only`: its name must not be served stale.
    pub fn judge(&self, life: Life, age: Duration, fresh_only: impl FnOnce() -> bool) -> Freshness {
        let soft = self.soft(life);
        if age < soft {
            Freshness::Fresh
        } else if !soft.is_zero() && self.serve_stale && age < Self::hard(life) && !fresh_only() {
            Freshness::Stale
        } else {
            Freshness::Gone
        }
    }

    /// The times to live to tell of a fresh entry.
    pub fn shown(&self, life: Life, age: Duration) -> Shown {
        let soft = self.soft(life);
        let (least, most) = match life.negative {
            true => (0, seconds(soft)),
            false => (seconds(self.min_ttl.min(soft)), seconds(self.max_ttl.min(HARD_LIMIT))),
        };
        Shown { least, most, age: seconds(age), cap: u32::MAX }
    }

    /// The age at which an entry is to be refreshed before its time is over: 75 to 85 % of the time that it is fresh. `dice` spreads
    /// entries that were stored together.
    pub fn prefetch_at(&self, life: Life, dice: u64) -> Duration {
        // Below 1000.
        let thousandth = (dice % 1000) as u32;
        self.soft(life) * (7_500 + thousandth) / 10_000
    }

    /// How long after a failed refresh the cache tries again by itself.
    pub fn retry_after(&self, life: Life) -> Duration {
        (self.soft(life) / 10).clamp(Duration::from_secs(1), FAILURE_LIMIT)
    }
}

/// How a record's time to live is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shown {
    least: u32,
    most: u32,
    age: u32,
    cap: u32,
}

impl Shown {
    /// As for an entry of this age whose time is over.
    pub fn stale(life: Life, age: Duration) -> Self {
        let left = seconds(Limits::hard(life).saturating_sub(age));
        Self { least: 0, most: u32::MAX, age: 0, cap: left.min(STALE_TTL) }
    }

    /// The time to live for a record's own, in seconds.
    pub fn of(self, ttl: u32) -> u32 {
        // RFC 2181 section 8: the top bit makes it zero.
        let ttl = if ttl > i32::MAX as u32 { 0 } else { ttl };
        ttl.max(self.least).min(self.most).saturating_sub(self.age).min(self.cap)
    }
}

fn seconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_secs()).unwrap_or(u32::MAX)
}

/// How long the `count`th failure in a row is kept: 1 s, doubling to `most` and never beyond 5 s (RFC 9520 section 3.2). Zero: not at all.
pub(crate) fn failure_ttl(count: u32, most: Duration) -> Duration {
    let doubled = FIRST_FAILURE * (1 << count.saturating_sub(1).min(8));
    doubled.min(most).min(FAILURE_LIMIT)
}

/// How long the cache refreshes nothing of its own accord after so many refreshes in a row failed: a refresh of everything
/// that is warm must not meet servers that are down again and again.
pub(crate) fn pause(failed: u32) -> Duration {
    if failed < PATIENCE {
        return Duration::ZERO;
    }
    (Duration::from_secs(1) * (1 << (failed - PATIENCE).min(8))).min(LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) const WIDE: Limits = Limits {
        max_ttl: HARD_LIMIT,
        min_ttl: Duration::ZERO,
        negative_ttl: NEGATIVE_LIMIT,
        soft_ttl: Duration::from_secs(240),
        serve_stale: true,
    };
    const SECS: fn(u64) -> Duration = Duration::from_secs;

    fn positive(lowest: u32) -> Life {
        Life { lowest, negative: false }
    }

    fn negative(lowest: u32) -> Life {
        Life { lowest, negative: true }
    }

    #[test]
    fn an_entry_is_fresh_then_stale_then_gone() {
        let judge = |life, secs, fresh_only| WIDE.judge(life, SECS(secs), || fresh_only);
        for (life, soft, hard) in [
            (positive(60), 60, 300),
            (positive(3600), 240, 300),
            (negative(10), 10, 30),
            (negative(3600), 30, 30),
        ] {
            assert_eq!(judge(life, soft - 1, false), Freshness::Fresh, "{life:?}");
            assert_eq!(judge(life, soft - 1, true), Freshness::Fresh, "{life:?}");
            if soft < hard {
                assert_eq!(judge(life, soft, false), Freshness::Stale, "{life:?}");
                assert_eq!(judge(life, soft, true), Freshness::Gone, "{life:?}");
            }
            assert_eq!(judge(life, hard, false), Freshness::Gone, "{life:?}");
        }
        assert_eq!(judge(positive(0), 0, false), Freshness::Gone, "a time to live of 0 is no use later");
        let never = Limits { serve_stale: false, ..WIDE };
        assert_eq!(never.judge(positive(60), SECS(60), || false), Freshness::Gone);
    }

    #[test]
    fn times_to_live_fall_and_a_stale_one_is_short() {
        let shown = |limits: Limits, life, secs, ttl| limits.shown(life, SECS(secs)).of(ttl);
        assert_eq!(shown(WIDE, positive(10), 0, 600), 300);
        assert_eq!(shown(WIDE, positive(10), 9, 600), 291);
        assert_eq!(shown(WIDE, positive(10), 9, 10), 1);
        let long = Limits { min_ttl: SECS(100), ..WIDE };
        assert_eq!((shown(long, positive(10), 90, 300), shown(long, positive(10), 90, 10)), (210, 10));
        assert_eq!(shown(WIDE, negative(3600), 1, 3600), 29);
        assert_eq!(shown(WIDE, positive(10), 0, 0x8000_0001), 0);
        assert_eq!(Shown::stale(positive(60), SECS(100)).of(60), 5);
        assert_eq!(Shown::stale(positive(60), SECS(100)).of(2), 2);
        assert_eq!(Shown::stale(positive(60), SECS(298)).of(60), 2);
        assert_eq!(Shown::stale(negative(5), SECS(28)).of(60), 2);
    }

    #[test]
    fn failures_double_and_pauses_too() {
        let kept: Vec<_> = (1..6).map(|count| failure_ttl(count, SECS(60)).as_secs()).collect();
        assert_eq!(kept, [1, 2, 4, 5, 5]);
        assert_eq!(failure_ttl(9, SECS(3)), SECS(3));
        assert_eq!(failure_ttl(1, SECS(0)), SECS(0));
        let pauses: Vec<_> = [0, 2, 3, 4, 7, 8, 1_000_000].map(|failed| pause(failed).as_secs()).into();
        assert_eq!(pauses, [0, 0, 1, 2, 16, 30, 30]);
    }

    fn limits() -> impl Strategy<Value = Limits> {
        let any_secs = || (0_u64..100_000).prop_map(SECS);
        (any_secs(), any_secs(), any_secs(), any_secs(), any::<bool>()).prop_map(
            |(max_ttl, min_ttl, negative_ttl, soft_ttl, serve_stale)| Limits {
                max_ttl,
                min_ttl,
                negative_ttl,
                soft_ttl,
                serve_stale,
            },
        )
    }

    proptest! {
        #[test]
        fn nothing_is_served_or_kept_by_a_client_beyond_300_seconds(
            limits in limits(), lowest: u32, more: u32, negative: bool, age_ms in 0_u64..400_000, fresh_only: bool,
        ) {
            let life = Life { lowest, negative };
            let age = Duration::from_millis(age_ms);
            let hard = if negative { NEGATIVE_LIMIT } else { HARD_LIMIT };
            let shown = match limits.judge(life, age, || fresh_only) {
                Freshness::Fresh => {
                    prop_assert!(age < limits.max_ttl);
                    prop_assert!(negative || age < limits.soft_ttl);
                    limits.shown(life, age)
                }
                Freshness::Stale => {
                    prop_assert!(limits.serve_stale && !fresh_only);
                    let shown = Shown::stale(life, age);
                    prop_assert!(shown.of(lowest.max(more)) <= STALE_TTL);
                    shown
                }
                Freshness::Gone => return Ok(()),
            };
            prop_assert!(age < hard);
            for ttl in [lowest, lowest.max(more)] {
                prop_assert!(u64::from(shown.of(ttl)) + age.as_secs() <= hard.as_secs());
            }
        }

        #[test]
        fn an_entry_is_refreshed_while_it_is_fresh(limits in limits(), lowest in 1_u32.., negative: bool, dice: u64) {
            let life = Life { lowest, negative };
            let (soft, at) = (limits.soft(life), limits.prefetch_at(life, dice));
            prop_assert!(at >= soft.mul_f64(0.749) && at <= soft.mul_f64(0.851));
            prop_assert!(soft.is_zero() || limits.judge(life, at, || true) == Freshness::Fresh);
        }

        #[test]
        fn no_failure_is_kept_for_longer_than_5_seconds(count: u32, most in 0_u64..100_000) {
            prop_assert!(failure_ttl(count, SECS(most)) <= FAILURE_LIMIT.min(SECS(most)));
        }
    }
}
