//! What the end-to-end tests share: a sidecar in front of one real program of each kind, and the two-sided world in which
//! nodes reach each other through sidecars only. The tests are in `tests/`, one file per story.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests report by panicking"
)]

pub mod cables;
pub mod compare;
pub mod differences;
pub mod ledger;
pub mod loads;
pub mod names;
pub mod odd_names;
pub mod open_loop;
pub mod postgres;
pub mod questions;
pub mod resolver;
pub mod soak;
pub mod token_echo;
pub mod tunnels;
pub mod world;

pub use cables::Cables;
pub use world::{Filters, World};

/// How many reloads and toggles the load tests do: `$QUDAG_E2E_ROUNDS`, else 1,000.
pub fn rounds() -> usize {
    std::env::var("QUDAG_E2E_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(1000)
}

/// How long the soak goes on, if one is asked for: `$QUDAG_SOAK_MINUTES`, which `tests/run --soak` sets.
pub fn soak_time() -> Option<std::time::Duration> {
    let minutes: f64 = std::env::var("QUDAG_SOAK_MINUTES").ok()?.parse().ok()?;
    Some(std::time::Duration::from_secs_f64(minutes * 60.0))
}
