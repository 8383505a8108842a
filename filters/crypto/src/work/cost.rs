//! How long operations take, by estimate.

use std::ops::{Add, AddAssign, Sub};
use std::time::Duration;

use qudag_mldsa::Backend;

use crate::{Content, KeyRef, Operations};

/// A time on one processor in nanoseconds. The figures are those of `docs/benchmarks.md`, rounded; other processors differ from them, and from each
/// other, by less than operations do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Cost(u64);

/// A byte to be hashed, by SHAKE256 or BLAKE3.
const BYTE: u64 = 2;
/// A short hash.
const HASH: u64 = 200;

impl Cost {
    /// Nothing.
    pub(crate) const ZERO: Self = Self(0);

    /// So many microseconds.
    pub(crate) const fn micros(micros: u64) -> Self {
        Self(micros * 1_000)
    }

    /// As a time.
    pub(crate) const fn time(self) -> Duration {
        Duration::from_nanos(self.0)
    }

    /// In how many pieces of another cost it can be cut.
    pub(crate) fn in_units_of(self, piece: Self) -> usize {
        usize::try_from(self.0.div_ceil(piece.0.max(1))).unwrap_or(usize::MAX)
    }

    /// A signature of an expanded key.
    const fn signature(backend: Backend) -> Self {
        Self(match backend {
            Backend::Avx512 => 3_000,
            Backend::Avx2 => 5_500,
            Backend::Portable => 25_000,
        })
    }

    /// Expanding a key.
    const fn key(backend: Backend) -> Self {
        Self(match backend {
            Backend::Avx512 => 8_000,
            Backend::Avx2 => 20_000,
            Backend::Portable => 60_000,
        })
    }

    fn bytes(length: usize) -> Self {
        Self(u64::try_from(length).unwrap_or(u64::MAX).saturating_mul(BYTE))
    }

    /// The operation at a place. `fresh` is the share of the keys sent along that have to be expanded, in 256 parts.
    pub(crate) fn of(operations: &Operations, place: usize, backend: Backend, fresh: u8) -> Self {
        let signature = |key: &KeyRef, length: usize| {
            let expanding = match key {
                KeyRef::Id(_) => Self::ZERO,
                KeyRef::Public(_) => Self(Self::key(backend).0 * u64::from(fresh) / 256),
            };
            Self::signature(backend) + expanding + Self::bytes(length)
        };
        let cost = match operations {
            Operations::Keys(_) => Some(Self::key(backend) + Self::micros(2)),
            Operations::Signatures(checks) => checks.get(place).map(|check| {
                let length = match &check.content {
                    Content::Mu(_) => 0,
                    Content::Message { message, .. } => message.len(),
                };
                signature(&check.key, length)
            }),
            Operations::Fingerprints(checks) => {
                checks.get(place).map(|check| signature(&check.key, check.data.len()))
            }
            Operations::Hashes(data) => data.get(place).map(|(data, _)| Self(HASH) + Self::bytes(data.len())),
            Operations::Status => None,
        };
        cost.unwrap_or_default()
    }

    /// All operations of a request.
    pub(crate) fn all(operations: &Operations, backend: Backend, fresh: u8) -> Self {
        (0..operations.len()).fold(Self::ZERO, |sum, place| sum + Self::of(operations, place, backend, fresh))
    }
}

impl Add for Cost {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl AddAssign for Cost {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sub for Cost {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}
