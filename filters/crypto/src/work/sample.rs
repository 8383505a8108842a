//! Operations that are done once more, to see whether the result is the same.

use qudag_filter_api::Percent;

use crate::Operations;

/// The places of a request whose verdicts are made twice: each with the same probability.
pub(crate) fn sample(operations: &Operations, share: Percent) -> Vec<usize> {
    let number = match operations {
        Operations::Signatures(checks) => checks.len(),
        Operations::Fingerprints(checks) => checks.len(),
        Operations::Keys(_) | Operations::Hashes(_) | Operations::Status => 0,
    };
    (0..number).filter(|_| share.covers(fastrand::u16(0..10_000))).collect()
}

impl Operations {
    /// Those at some places.
    pub(crate) fn pick(&self, places: &[usize]) -> Self {
        fn those<T: Clone>(all: &[T], places: &[usize]) -> Vec<T> {
            places.iter().filter_map(|place| all.get(*place)).cloned().collect()
        }
        match self {
            Self::Keys(all) => Self::Keys(those(all, places)),
            Self::Signatures(all) => Self::Signatures(those(all, places)),
            Self::Fingerprints(all) => Self::Fingerprints(those(all, places)),
            Self::Hashes(all) => Self::Hashes(those(all, places)),
            Self::Status => Self::Status,
        }
    }
}
