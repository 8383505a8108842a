//! What became of operations.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::wire::Refusal;
use crate::Failure;
use crate::measure::nanos;

/// The end of one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The right rows came.
    Answered,
    /// An error of the sidecar came.
    Refused(Refusal),
    /// Another error came.
    Failed(Refusal),
    /// The client closed its connection at the deadline.
    GivenUp,
    /// No answer had come when the load ended, long after the deadline.
    Unanswered,
    /// The connection ended before an answer.
    Disconnected,
    /// The deadline passed while it waited for a connection in the program, or there was no place to wait.
    Unsent,
}

/// Operations that were due in a slice of time, and those of them that ended well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bin {
    /// Due.
    pub due: u64,
    /// Answered within the deadline.
    pub good: u64,
}

/// The length of a [`Bin`].
pub const BIN: Duration = Duration::from_millis(20);

/// What became of the operations of a step.
pub struct Tally {
    deadline: Duration,
    /// Operations that were due.
    pub due: u64,
    /// Answered within the deadline.
    pub good: u64,
    /// Answered or refused after it.
    pub late: u64,
    /// Refused within it.
    pub refused: u64,
    /// Other errors within it.
    pub failed: u64,
    /// Given up at it, with the connection.
    pub given_up: u64,
    /// Not answered at all.
    pub unanswered: u64,
    /// Whose connection ended.
    pub disconnected: u64,
    /// That never left the program.
    pub unsent: u64,
    /// How often each SQLSTATE came, also in refusals and at opening a connection.
    pub codes: BTreeMap<[u8; 5], u64>,
    /// From when an operation was due to its answer, ns. One that was given up or not answered counts with the deadline at least.
    pub admitted: Histogram<u64>,
    /// From when an operation was due to its refusal, ns.
    pub refusals: Histogram<u64>,
    /// By when they were due.
    pub bins: Vec<Bin>,
}

impl Tally {
    /// Nothing yet, with bins for so long.
    ///
    /// # Errors
    /// Never, with these bounds of a histogram.
    pub fn new(deadline: Duration, length: Duration) -> Result<Self, Failure> {
        let histogram = || Histogram::new_with_bounds(1, 60_000_000_000, 3);
        let bins = length.as_nanos().div_ceil(BIN.as_nanos()) as usize;
        Ok(Self {
            deadline,
            due: 0,
            good: 0,
            late: 0,
            refused: 0,
            failed: 0,
            given_up: 0,
            unanswered: 0,
            disconnected: 0,
            unsent: 0,
            codes: BTreeMap::new(),
            admitted: histogram()?,
            refusals: histogram()?,
            bins: vec![Bin::default(); bins],
        })
    }

    /// Counts one that was due at `due`, which is `at` after the beginning, and ended now.
    pub fn count(&mut self, fate: Fate, due: Instant, at: Duration, now: Instant) {
        let took = now.saturating_duration_since(due);
        self.due += 1;
        let in_time = took <= self.deadline;
        if let Fate::Refused(refusal) | Fate::Failed(refusal) = fate {
            self.code(refusal);
        }
        let good = in_time && fate == Fate::Answered;
        match fate {
            Fate::Answered | Fate::Refused(_) | Fate::Failed(_) if !in_time => self.late += 1,
            Fate::Answered => self.good += 1,
            Fate::Refused(_) => self.refused += 1,
            Fate::Failed(_) => self.failed += 1,
            Fate::GivenUp => self.given_up += 1,
            Fate::Unanswered => self.unanswered += 1,
            Fate::Disconnected => self.disconnected += 1,
            Fate::Unsent => self.unsent += 1,
        }
        match fate {
            Fate::Answered => self.admitted.saturating_record(nanos(took)),
            Fate::GivenUp | Fate::Unanswered => {
                self.admitted.saturating_record(nanos(took.max(self.deadline)));
            }
            Fate::Refused(_) => self.refusals.saturating_record(nanos(took)),
            Fate::Failed(_) | Fate::Disconnected | Fate::Unsent => {}
        }
        if let Some(bin) = self.bins.get_mut((at.as_nanos() / BIN.as_nanos()) as usize) {
            bin.due += 1;
            bin.good += u64::from(good);
        }
    }

    /// Counts an SQLSTATE.
    pub fn code(&mut self, refusal: Refusal) {
        *self.codes.entry(refusal.code).or_default() += 1;
    }

    /// What did not end well.
    pub fn bad(&self) -> u64 {
        self.due - self.good
    }

    /// All in one line.
    pub fn summary(&self) -> String {
        let codes: Vec<_> = self
            .codes
            .iter()
            .map(|(code, count)| format!("{count} × {}", String::from_utf8_lossy(code)))
            .collect();
        format!(
            "of {} good {}, late {}, refused {}, failed {}, given up {}, unanswered {}, disconnected {}, unsent {}; {}",
            self.due,
            self.good,
            self.late,
            self.refused,
            self.failed,
            self.given_up,
            self.unanswered,
            self.disconnected,
            self.unsent,
            codes.join(", ")
        )
    }
}

/// How long after `end` operations succeed again: from then on 95 % of those due in each half second do.
///
/// The whole rest of the time where the last half second is not so.
pub fn recovered(bins: &[Bin], end: Duration) -> Duration {
    /// In bins.
    const WINDOW: usize = 25;
    let first = (end.as_nanos() / BIN.as_nanos()) as usize;
    let rest = bins.get(first..).unwrap_or_default();
    let well = |window: &[Bin]| {
        let (due, good) = window.iter().fold((0, 0), |(due, good), bin| (due + bin.due, good + bin.good));
        good as f64 >= 0.95 * due as f64
    };
    let windows = rest.windows(WINDOW.min(rest.len().max(1)));
    let last = windows.len().saturating_sub(1);
    match windows.into_iter().rposition(|window| !well(window)) {
        None => Duration::ZERO,
        Some(bad) if bad == last => BIN * rest.len() as u32,
        Some(bad) => BIN * (bad as u32 + 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const SHED: Refusal = Refusal { code: *b"53300", fatal: false, ours: true };

    fn tally() -> Tally {
        Tally::new(100 * MS, 1000 * MS).unwrap()
    }

    #[test]
    fn the_deadline_decides() {
        let (mut tally, due) = (tally(), Instant::now());
        let mut end = |fate, after: u32| tally.count(fate, due, 50 * MS, due + MS * after);
        end(Fate::Answered, 100);
        end(Fate::Answered, 101);
        end(Fate::Refused(SHED), 3);
        end(Fate::Refused(SHED), 500);
        end(Fate::Failed(Refusal { ours: false, ..SHED }), 1);
        end(Fate::GivenUp, 100);
        end(Fate::Unanswered, 20);
        end(Fate::Disconnected, 20);
        end(Fate::Unsent, 20);
        assert_eq!((tally.due, tally.good, tally.late, tally.refused, tally.failed), (9, 1, 2, 1, 1));
        assert_eq!((tally.given_up, tally.unanswered, tally.disconnected, tally.unsent), (1, 1, 1, 1));
        assert_eq!((tally.bad(), tally.codes[b"53300"]), (8, 3));
        assert_eq!(tally.bins[2], Bin { due: 9, good: 1 });
        // What was not answered is no quicker than the deadline.
        assert_eq!((tally.admitted.len(), tally.refusals.len()), (4, 2));
        assert!(tally.admitted.min() >= 99_900_000);
    }

    #[test]
    fn it_is_over_when_it_stays_so() {
        let ok = Bin { due: 10, good: 10 };
        let bad = Bin { due: 10, good: 2 };
        let mut bins = vec![ok; 200];
        assert_eq!(recovered(&bins, 1000 * MS), Duration::ZERO);
        bins[40..60].fill(bad);
        // Up to bin 60, 1.2 s; one bin of a half second may be bad.
        assert_eq!(recovered(&bins, 1000 * MS), 180 * MS);
        bins[120] = bad;
        assert_eq!(recovered(&bins, 1000 * MS), 180 * MS);
        bins[120..124].fill(bad);
        assert_eq!(recovered(&bins, 1000 * MS), 1460 * MS);
        assert_eq!(recovered(&[bad; 100], 1000 * MS), 1000 * MS, "to the end");
        assert_eq!(recovered(&[], 1000 * MS), Duration::ZERO);
    }
}
