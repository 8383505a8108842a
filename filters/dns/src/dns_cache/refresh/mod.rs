//! What the cache asks upstream for: what it lacks, and what it is about to lack.

mod failures;
mod flight;
mod keeper;
mod policy;
mod rebuild;
mod schedule;

use qudag_filter_api::FilterError;

use crate::DnsReply;

pub(super) use failures::Failures;
pub(super) use flight::Flights;
pub(super) use keeper::Keeper;
pub(super) use policy::Policy;
pub use rebuild::{RebuildError, Rebuilt};
pub(super) use schedule::Schedule;

/// How a query ended.
type Outcome = Result<DnsReply, FilterError>;

#[cfg(test)]
mod tests;
