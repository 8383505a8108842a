//! Why a client keeps its server after a transaction.

use std::fmt;
use std::ops::{BitOr, BitOrAssign};

/// A set of reasons.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Pins(u16);

impl Pins {
    /// `LISTEN`: notifications come to the connection that listens.
    pub const LISTEN: Self = Self(1);
    /// A session-level advisory lock.
    pub const ADVISORY_LOCK: Self = Self(1 << 1);
    /// A temporary table, view or sequence.
    pub const TEMPORARY: Self = Self(1 << 2);
    /// A cursor `WITH HOLD`.
    pub const HOLD: Self = Self(1 << 3);
    /// SQL `PREPARE`.
    pub const PREPARE: Self = Self(1 << 4);
    /// A parameter that the server does not report, or another state set for the session.
    pub const SET: Self = Self(1 << 5);
    /// Code that is not looked into: `DO`, a FunctionCall message, identifiers in Unicode escapes.
    pub const CODE: Self = Self(1 << 6);
    /// A prepared statement that is too long to be remembered for another server.
    pub const LONG_STATEMENT: Self = Self(1 << 7);
    /// `LOAD`: nothing unloads a library, so that the server is closed afterwards.
    pub const LOAD: Self = Self(1 << 8);

    const NAMES: [(Self, &'static str); 9] = [
        (Self::LISTEN, "listen"),
        (Self::ADVISORY_LOCK, "advisory_lock"),
        (Self::TEMPORARY, "temporary"),
        (Self::HOLD, "hold"),
        (Self::PREPARE, "prepare"),
        (Self::SET, "set"),
        (Self::CODE, "code"),
        (Self::LONG_STATEMENT, "long_statement"),
        (Self::LOAD, "load"),
    ];

    /// Whether there is no reason.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether all of `other` are among these.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// As a number.
    pub(crate) fn bits(self) -> u16 {
        self.0
    }

    /// Those of a number that [`Pins::bits`] gave.
    pub(crate) fn of_bits(bits: u16) -> Self {
        Self(bits)
    }

    /// The metric labels, a closed set.
    pub fn labels(self) -> impl Iterator<Item = &'static str> {
        Self::NAMES.into_iter().filter(move |(pin, _)| self.contains(*pin)).map(|(_, name)| name)
    }
}

impl BitOr for Pins {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for Pins {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

impl fmt::Debug for Pins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.labels()).finish()
    }
}
