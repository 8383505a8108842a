//! The decisions of the pool: which server is asked, when the next one is, and which are left alone. Nothing here opens a socket or
//! reads a clock.

mod health;
mod latency;
mod plan;

pub(super) use health::{BreakerLimits, BreakerState, Fault, Health, Rank};
pub(super) use latency::{HedgeLimits, Latency};
pub(super) use plan::{Candidate, End, Permit, Plan, Step, Times, Why};

/// A list of servers in the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum List {
    /// Those that are asked first.
    Servers,
    /// Those that are asked when the first ones are of no use.
    Alternative,
    /// The last resort.
    Direct,
}

impl List {
    /// The key in the configuration, and the metric label.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Servers => "servers",
            Self::Alternative => "alternative",
            Self::Direct => "direct",
        }
    }
}
