//! Whether a noisy series grows.

use std::fmt;

/// The 99 % quantile, both sides, of the normal distribution.
const Z: f64 = 2.576;

/// A robust line through points: the median of the slopes between all pairs (Theil 1950, Sen 1968), with Sen's confidence bounds.
/// Up to 29 % of the points may be anything.
#[derive(Clone, Copy, Debug)]
pub struct Trend {
    /// How much the line rises from the first point to the last.
    pub growth: f64,
    /// The lower bound of that, at 99 % confidence.
    pub at_least: f64,
    /// The median of the values.
    pub median: f64,
    /// How much it rises in a second.
    pub slope: f64,
    /// Where the line is at time 0.
    pub origin: f64,
}

/// How much a series may grow: a share of its median, and something on top.
#[derive(Clone, Copy, Debug)]
pub struct Tolerance {
    /// Of the median.
    pub share: f64,
    /// In the unit of the series.
    pub plus: f64,
}

impl Trend {
    /// The trend of points in the order of time. Fewer than four points have none.
    pub fn of(points: &[(f64, f64)]) -> Self {
        let mut values: Vec<f64> = points.iter().map(|point| point.1).collect();
        let middle = median(&mut values);
        let mut slopes = Vec::with_capacity(points.len() * points.len() / 2);
        for (number, early) in points.iter().enumerate() {
            let later = points[number + 1..].iter().filter(|later| later.0 > early.0);
            slopes.extend(later.map(|later| (later.1 - early.1) / (later.0 - early.0)));
        }
        if points.len() < 4 || slopes.is_empty() {
            return Self { growth: 0.0, at_least: 0.0, median: middle, slope: 0.0, origin: middle };
        }
        let slope = median(&mut slopes);
        let n = points.len() as f64;
        let spread = Z * (n * (n - 1.0) * (2.0 * n + 5.0) / 18.0).sqrt();
        let lowest = ((slopes.len() as f64 - spread) / 2.0).max(0.0) as usize;
        let span = points[points.len() - 1].0 - points[0].0;
        let mut offsets: Vec<f64> = points.iter().map(|(at, value)| value - slope * at).collect();
        Self {
            growth: slope * span,
            at_least: slopes[lowest] * span,
            median: middle,
            slope,
            origin: median(&mut offsets),
        }
    }

    /// Whether it certainly grew by more than is tolerated.
    pub fn exceeds(&self, tolerance: &Tolerance) -> bool {
        self.at_least > self.median * tolerance.share + tolerance.plus
    }
}

impl fmt::Display for Trend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { growth, at_least, median, .. } = self;
        write!(f, "median {median:9.2}, grew by {growth:+8.3} (at least {at_least:+8.3})")
    }
}

/// The median; sorts the values.
fn median(values: &mut [f64]) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        length if length % 2 == 1 => values[length / 2],
        length => f64::midpoint(values[length / 2 - 1], values[length / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::questions::Dice;

    fn noisy(slope: f64) -> Vec<(f64, f64)> {
        let mut dice = Dice::new(5);
        (0..300)
            .map(|at| {
                let noise = dice.below(100) as f64 / 10.0;
                // Every tenth point is far out.
                let outlier = if at % 10 == 3 { 500.0 } else { 0.0 };
                (f64::from(at), 100.0 + slope * f64::from(at) + noise + outlier)
            })
            .collect()
    }

    #[test]
    fn growth_is_seen_through_noise_and_its_absence_too() {
        let tolerance = Tolerance { share: 0.02, plus: 1.0 };
        let steady = Trend::of(&noisy(0.0));
        assert!(!steady.exceeds(&tolerance), "{steady}");
        assert!(steady.growth.abs() < 2.0, "{steady}");
        let leaking = Trend::of(&noisy(0.05));
        assert!(leaking.exceeds(&tolerance), "{leaking}");
        assert!((leaking.growth - 0.05 * 299.0).abs() < 2.0, "{leaking}");
        let shrinking = Trend::of(&noisy(-0.05));
        assert!(!shrinking.exceeds(&tolerance), "{shrinking}");
    }

    #[test]
    fn few_points_have_no_trend() {
        assert_eq!(Trend::of(&[]).growth, 0.0);
        assert_eq!(Trend::of(&[(0.0, 1.0), (1.0, 100.0)]).at_least, 0.0);
        let same_time = [(1.0, 1.0); 10];
        assert_eq!(Trend::of(&same_time).growth, 0.0);
    }
}
