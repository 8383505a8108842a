//! Sans-io vocabulary of the sidecar: codecs and state machines without sockets, clocks or tasks.
//!
//! Time comes in as a [`std::time::Instant`], randomness as a `u64` that is uniform over its whole range. So every decision
//! can be tested, and replayed, without waiting and without luck.

pub mod backoff;
pub mod breaker;
pub mod bucket;
pub mod budget;
mod frame;
pub mod limit;
pub mod offload;
pub mod queue;
pub mod replay;
pub mod rpc;

use std::time::Duration;

pub use frame::FrameError;

/// A share of a period: uniform in `0..period` for a uniform `random`.
fn share(period: Duration, random: u64) -> Duration {
    let nanos = u64::try_from(period.as_nanos()).unwrap_or(u64::MAX);
    // The high half of the product is below `nanos`.
    Duration::from_nanos(((u128::from(nanos) * u128::from(random)) >> 64) as u64)
}
