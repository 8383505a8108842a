//! When operations are due.
//!
//! The times are drawn before anything is known of the server and do not wait for it, so that one that stops answering
//! cannot hide that by slowing the generator down ("coordinated omission").

use std::time::Duration;

/// How operations follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrivals {
    /// As with many programs that know nothing of each other: times between are exponentially distributed.
    Poisson,
    /// The same time between any two.
    Even,
}

/// A rate for a while.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Operations a second.
    pub rate: f64,
    /// At its beginning, what is due is sent, but not counted.
    pub settle: Duration,
    /// Then it is counted.
    pub measure: Duration,
}

/// When one operation is due.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Due {
    /// From the beginning of the load.
    pub after: Duration,
    /// The number of its step.
    pub step: usize,
    /// Whether it is counted.
    pub counted: bool,
}

/// The operations of some steps, in order.
pub struct Schedule<'a> {
    arrivals: Arrivals,
    steps: &'a [Step],
    step: usize,
    /// When the present step began.
    began: f64,
    /// When the last operation was due.
    last: f64,
    /// How many of them there were in this step.
    number: u64,
    random: Random,
}

impl<'a> Schedule<'a> {
    /// The same seed draws the same times.
    pub fn new(arrivals: Arrivals, steps: &'a [Step], seed: u64) -> Self {
        Self { arrivals, steps, step: 0, began: 0.0, last: 0.0, number: 0, random: Random::new(seed) }
    }
}

impl Iterator for Schedule<'_> {
    type Item = Due;

    fn next(&mut self) -> Option<Due> {
        loop {
            let step = self.steps.get(self.step)?;
            self.number += 1;
            let due = match self.arrivals {
                Arrivals::Even => self.began + self.number as f64 / step.rate,
                // Never the logarithm of 0.
                Arrivals::Poisson => self.last - (1.0 - self.random.unit()).ln() / step.rate,
            };
            let end = self.began + (step.settle + step.measure).as_secs_f64();
            if due >= end {
                // An exponential time has no memory, so the next step may begin anew at its own beginning.
                (self.step, self.began, self.last, self.number) = (self.step + 1, end, end, 0);
                continue;
            }
            self.last = due;
            let counted = due >= self.began + step.settle.as_secs_f64();
            return Some(Due { after: Duration::from_secs_f64(due), step: self.step, counted });
        }
    }
}

/// Numbers that look random: splitmix64 (Steele, Lea, Flood 2014).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The same seed gives the same numbers.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// From 0 to below 1.
    fn unit(&mut self) -> f64 {
        // As many bits as a mantissa has.
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// From 1 to `most`.
    pub fn up_to(&mut self, most: u32) -> u32 {
        1 + (self.next() % u64::from(most.max(1))) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn even_arrivals_keep_their_distance_and_steps_follow_each_other() {
        let steps = [
            Step { rate: 10.0, settle: SECOND / 2, measure: SECOND / 2 },
            Step { rate: 100.0, settle: Duration::ZERO, measure: SECOND },
        ];
        let all: Vec<_> = Schedule::new(Arrivals::Even, &steps, 1).collect();
        let of = |step, counted| all.iter().filter(|due| due.step == step && due.counted == counted).count();
        // What is due exactly at an end belongs to nobody.
        assert_eq!((of(0, false), of(0, true), of(1, false), of(1, true)), (4, 5, 0, 99));
        assert!(all.windows(2).all(|pair| pair[0].after < pair[1].after));
        assert!(all.iter().all(|due| (due.after < SECOND) == (due.step == 0)));
    }

    #[test]
    fn poisson_arrivals_have_their_rate_and_spread() {
        let steps = [Step { rate: 2_000.0, settle: Duration::ZERO, measure: 10 * SECOND }];
        let all: Vec<f64> =
            Schedule::new(Arrivals::Poisson, &steps, 7).map(|due| due.after.as_secs_f64()).collect();
        // Five standard deviations, of a number with a fixed seed.
        assert!((19_300..20_700).contains(&all.len()), "{}", all.len());
        let gaps: Vec<f64> = all.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        // Of an exponential distribution they are the same.
        assert!((variance.sqrt() / mean - 1.0).abs() < 0.05, "{} {mean}", variance.sqrt());
        let again: Vec<_> = Schedule::new(Arrivals::Poisson, &steps, 7).map(|due| due.after).collect();
        assert_eq!(again.len(), all.len());
    }

    #[test]
    fn numbers_stay_in_their_range() {
        let mut random = Random::new(3);
        assert!((0..10_000).all(|_| (1..=6).contains(&random.up_to(6)) && random.unit() < 1.0));
    }
}
