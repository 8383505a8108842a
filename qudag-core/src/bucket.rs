//! Token buckets, one or one for each of many keys.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// How fast tokens come, and how many there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Between two tokens; rounded up, so that the rate is never exceeded.
    interval: Duration,
    /// The time in which an empty bucket becomes full.
    depth: Duration,
}

impl Rate {
    /// `rate` tokens a second, at most `burst` at once. Both are at least 1; 0 counts as 1.
    pub fn new(rate: u32, burst: u32) -> Self {
        let interval = Duration::from_nanos(1_000_000_000_u64.div_ceil(u64::from(rate.max(1))));
        Self { interval, depth: interval.saturating_mul(burst.max(1)) }
    }

    /// The time in which so many tokens come, as far as there is room for them.
    fn of(&self, number: u32) -> Duration {
        self.interval.saturating_mul(number).min(self.depth)
    }
}

/// A token bucket, as the time at which it will be full again (the generic cell rate algorithm). Its rate is given at every
/// use, so a change of the rate keeps what was taken.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    full_at: Instant,
}

impl Bucket {
    /// A full bucket.
    pub fn full(now: Instant) -> Self {
        Self { full_at: now }
    }

    /// Whether a new bucket would be no different.
    pub fn is_full(&self, now: Instant) -> bool {
        self.full_at <= now
    }

    /// Takes a token.
    ///
    /// # Errors
    /// After how long there will be one, if there is none.
    pub fn take(&mut self, rate: &Rate, now: Instant) -> Result<(), Duration> {
        self.take_many(rate, 1, now)
    }

    /// Takes so many tokens, or none; all of a full bucket for more than it can hold.
    ///
    /// # Errors
    /// After how long there will be as many.
    pub fn take_many(&mut self, rate: &Rate, number: u32, now: Instant) -> Result<(), Duration> {
        // Not deeper than empty: the rate may have changed.
        let full_at = self.full_at.clamp(now, now + rate.depth) + rate.of(number);
        match (full_at - now).checked_sub(rate.depth) {
            None | Some(Duration::ZERO) => {
                self.full_at = full_at;
                Ok(())
            }
            Some(missing) => Err(missing),
        }
    }

    /// Gives back so many tokens that were taken together for nothing.
    pub fn give_back(&mut self, rate: &Rate, number: u32) {
        self.full_at = self.full_at.checked_sub(rate.of(number)).unwrap_or(self.full_at);
    }
}

/// A bucket for each key, in bounded memory.
///
/// Two generations: keys in use move to the young one; when that is half the capacity, the old one is forgotten and the young
/// one becomes old. So a key is kept at least until half the capacity of other keys was used after it, and finding room
/// never takes a search.
#[derive(Clone, Debug)]
pub struct Buckets<K> {
    young: HashMap<K, Bucket>,
    old: HashMap<K, Bucket>,
    half: usize,
}

impl<K: Eq + Hash> Buckets<K> {
    /// Buckets for at most `capacity` keys (at least 2).
    pub fn new(capacity: usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), half: (capacity / 2).max(1) }
    }

    /// How many keys have a bucket.
    pub fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }

    /// Whether no key has one.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bucket of a key, a full one if it has none yet.
    pub fn of(&mut self, key: K, now: Instant) -> &mut Bucket {
        let known = self.old.remove(&key);
        if self.young.len() >= self.half && !self.young.contains_key(&key) {
            std::mem::swap(&mut self.young, &mut self.old);
            self.young.clear();
        }
        self.young.entry(key).or_insert_with(|| known.unwrap_or_else(|| Bucket::full(now)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_burst_and_then_the_rate() {
        let start = Instant::now();
        let rate = Rate::new(10, 3);
        let mut bucket = Bucket::full(start);
        for _ in 0..3 {
            assert_eq!(bucket.take(&rate, start), Ok(()));
        }
        assert_eq!(bucket.take(&rate, start), Err(Duration::from_millis(100)));
        let later = start + Duration::from_millis(40);
        assert_eq!(bucket.take(&rate, later), Err(Duration::from_millis(60)));
        let later = start + Duration::from_millis(100);
        assert_eq!(bucket.take(&rate, later), Ok(()));
        assert_eq!(bucket.take(&rate, later), Err(Duration::from_millis(100)));
        bucket.give_back(&rate, 1);
        assert_eq!(bucket.take(&rate, later), Ok(()));
        // Idle time fills it up to the burst and no further.
        let later = later + Duration::from_secs(3600);
        assert!(bucket.is_full(later));
        assert_eq!((0..10).filter(|_| bucket.take(&rate, later).is_ok()).count(), 3);
    }

    #[test]
    fn several_are_taken_together_or_not_at_all() {
        let start = Instant::now();
        let rate = Rate::new(10, 5);
        let mut bucket = Bucket::full(start);
        assert_eq!(bucket.take_many(&rate, 3, start), Ok(()));
        assert_eq!(bucket.take_many(&rate, 3, start), Err(Duration::from_millis(100)));
        assert_eq!(bucket.take_many(&rate, 2, start), Ok(()));
        bucket.give_back(&rate, 2);
        assert_eq!(bucket.take_many(&rate, 2, start), Ok(()));
        assert_eq!(bucket.take_many(&rate, 0, start), Ok(()));
        // More than there can be: all there is, when the bucket is full.
        assert_eq!(bucket.take_many(&rate, 100, start), Err(Duration::from_millis(500)));
        let full = start + Duration::from_millis(500);
        assert_eq!(bucket.take_many(&rate, u32::MAX, full), Ok(()));
        assert_eq!(bucket.take(&rate, full), Err(Duration::from_millis(100)));
    }

    #[test]
    fn a_change_of_the_rate_is_in_force_at_once() {
        let now = Instant::now();
        let mut bucket = Bucket::full(now);
        let slow = Rate::new(1, 1000);
        while bucket.take(&slow, now).is_ok() {}
        let fast = Rate::new(100, 1);
        assert_eq!(bucket.take(&fast, now), Err(Duration::from_millis(10)));
    }

    #[test]
    fn keys_do_not_share_and_memory_is_bounded() {
        let now = Instant::now();
        let rate = Rate::new(1, 1);
        let mut buckets = Buckets::new(100);
        assert!(buckets.is_empty());
        assert!(buckets.of(0, now).take(&rate, now).is_ok());
        for key in 1..10_000 {
            assert!(buckets.of(key, now).take(&rate, now).is_ok());
            // A key that is used stays, whatever comes in between.
            assert!(buckets.of(0, now).take(&rate, now).is_err());
            assert!(buckets.len() <= 100);
        }
        // One that was not used for long is forgotten.
        assert!(buckets.of(1, now).take(&rate, now).is_ok());
    }

    proptest! {
        #[test]
        fn no_window_has_more_than_the_burst_and_the_rate(
            rate in 1_u32..2_000,
            burst in 1_u32..20,
            pauses in proptest::collection::vec(prop_oneof![Just(0), 0_u64..2_000_000, 0_u64..2_000_000_000], 0..200),
        ) {
            let start = Instant::now();
            let limit = Rate::new(rate, burst);
            let mut bucket = Bucket::full(start);
            let mut nanos = 0;
            let mut taken = Vec::new();
            for pause in pauses {
                nanos += pause;
                let now = start + Duration::from_nanos(nanos);
                match bucket.take(&limit, now) {
                    Ok(()) => taken.push(nanos),
                    Err(retry_after) => {
                        prop_assert!(retry_after <= limit.interval);
                        // It is true to its word.
                        let then = now + retry_after;
                        prop_assert!(bucket.clone().take(&limit, then - Duration::from_nanos(1)).is_err());
                        prop_assert!(bucket.take(&limit, then).is_ok());
                        nanos += retry_after.as_nanos() as u64;
                        taken.push(nanos);
                    }
                }
            }
            for (i, from) in taken.iter().enumerate() {
                for (n, to) in taken[i..].iter().enumerate() {
                    let over = (n as u64 + 1).saturating_sub(burst.into());
                    prop_assert!(over * 1_000_000_000 <= u64::from(rate) * (to - from));
                }
            }
        }

        #[test]
        fn buckets_hold_what_they_can_and_lose_only_the_long_unused(
            keys in proptest::collection::vec(0_u8..40, 0..300),
        ) {
            let now = Instant::now();
            let limit = Rate::new(1, 1_000);
            let mut buckets = Buckets::new(20);
            let mut uses: Vec<u8> = Vec::new();
            for key in keys {
                buckets.of(key, now).take(&limit, now).unwrap();
                prop_assert!(buckets.len() <= 20);
                uses.push(key);
                // Among the last ten different keys, each remembers at least its last use.
                let mut recent: Vec<u8> = Vec::new();
                for key in uses.iter().rev() {
                    if !recent.contains(key) {
                        recent.push(*key);
                    }
                    if recent.len() == 10 {
                        break;
                    }
                }
                for key in recent {
                    prop_assert!(!buckets.clone().of(key, now).is_full(now));
                }
            }
        }
    }
}
