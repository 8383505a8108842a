//! When something is too much, sans-io: figures go in with the time, and what is said does not flicker.

use std::time::{Duration, Instant};

/// How long CPU time or a queue must be too much.
pub(super) const LASTING: Duration = Duration::from_secs(10);

/// What can be too much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    Connections,
    Queue,
    Cpu,
}

impl What {
    pub(super) const ALL: [Self; 3] = [Self::Connections, Self::Queue, Self::Cpu];

    /// The metric label.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Queue => "queue",
            Self::Cpu => "cpu",
        }
    }

    /// What an operator reads in the log.
    pub(super) fn advice(self) -> &'static str {
        match self {
            Self::Connections => {
                "more than 90 % of the database server's connections are in use. Make pools smaller \
                 (`qudag-sidecar set filters.db.db_pool.size=N --for 1h`), look for other programs with `SHOW LOAD` and pg_stat_activity"
            }
            Self::Queue => {
                "more and more transactions wait for the database. Switch db_backpressure on, or limit a statement for a while \
                 (`qudag-sidecar db statements`, `qudag-sidecar set filters.db.rate_limit.… --for 15m`); read_replicas takes reads away"
            }
            Self::Cpu => {
                "the database server's processors are busy. Make pools smaller (`qudag-sidecar set filters.db.db_pool.size=N --for 1h`), switch \
                 db_backpressure on, limit the statements that `qudag-sidecar top db` shows first, or give the server more processors"
            }
        }
    }
}

/// A share that is too much above `on` for a time, and again in order below `off`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Level {
    on: f64,
    off: f64,
    lasting: Duration,
    since: Option<Instant>,
    raised: bool,
}

impl Level {
    pub(super) fn new(on: f64, off: f64, lasting: Duration) -> Self {
        Self { on, off, lasting, since: None, raised: false }
    }

    /// Whether it is too much now. What is not known changes nothing that was said, and counts for nothing.
    pub(super) fn look(&mut self, share: Option<f64>, now: Instant) -> bool {
        match share {
            Some(share) if share > self.on => {
                let since = *self.since.get_or_insert(now);
                self.raised |= now.saturating_duration_since(since) >= self.lasting;
            }
            Some(share) => {
                self.since = None;
                self.raised &= share >= self.off;
            }
            None => self.since = None,
        }
        self.raised
    }
}

/// A queue that grows: for all of the time it has been longer than at its beginning, and never a tenth shorter than it had been.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Growth {
    /// When it began to grow, how long it was then, and how long it has been since at most.
    begun: Option<(Instant, usize, usize)>,
    raised: bool,
}

impl Growth {
    /// Whether it grows now; said until half of it is gone.
    pub(super) fn look(&mut self, length: usize, now: Instant) -> bool {
        let (since, least, most) = match self.begun {
            Some((since, least, most)) if self.raised || length * 10 >= most * 9 => {
                (since, least, most.max(length))
            }
            _ => (now, length, length),
        };
        self.begun = (length > 0).then_some((since, least, most));
        if self.raised {
            self.raised = length > 0 && length * 2 > most;
            if !self.raised {
                self.begun = None;
            }
        } else {
            self.raised = length > least && now.saturating_duration_since(since) >= LASTING;
        }
        self.raised
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_level_lasts_before_it_is_said_and_is_said_until_it_is_well_below() {
        let (mut level, now) = (Level::new(0.8, 0.7, LASTING), Instant::now());
        for second in 0..10 {
            assert!(!level.look(Some(0.9), now + second * SECOND));
        }
        assert!(level.look(Some(0.9), now + 10 * SECOND));
        assert!(level.look(Some(0.75), now + 11 * SECOND));
        assert!(level.look(None, now + 12 * SECOND), "what is not known changes nothing");
        assert!(!level.look(Some(0.69), now + 13 * SECOND));
        assert!(!level.look(Some(0.9), now + 14 * SECOND), "and lasts anew");
        assert!(!level.look(None, now + 20 * SECOND));
        assert!(!level.look(Some(0.9), now + 30 * SECOND), "time in which nothing was known does not count");
        let mut at_once = Level::new(0.9, 0.8, Duration::ZERO);
        assert!(!at_once.look(Some(0.9), now));
        assert!(at_once.look(Some(0.91), now));
    }

    #[test]
    fn a_queue_that_grows_is_told_from_one_that_is_long() {
        let now = Instant::now();
        let run = |lengths: &mut dyn Iterator<Item = usize>| {
            let mut growth = Growth::default();
            (0..)
                .zip(lengths)
                .map(|(second, length)| growth.look(length, now + second * SECOND))
                .collect::<Vec<_>>()
        };
        assert!(run(&mut std::iter::repeat_n(50, 60)).iter().all(|raised| !raised), "long, and no longer");
        let grown = run(&mut (1..=11).map(|second| second * 10));
        assert_eq!(grown.iter().position(|raised| *raised), Some(10));
        // With a little noise.
        assert!(run(&mut [10, 20, 19, 30, 29, 40, 50, 49, 60, 70, 80].into_iter()).last().unwrap());
        assert!(!run(&mut [10, 20, 5, 30, 40, 50, 60, 70, 80, 90, 100].into_iter()).last().unwrap());
        // Until half of it is gone.
        let then = run(&mut (1..=11).map(|second| second * 10).chain([110, 60, 55, 40]));
        assert_eq!(then.get(11..), Some(&[true, true, false, false][..]));
    }
}
