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
pub mod loads;
pub mod odd_names;
pub mod world;

pub use cables::Cables;
pub use world::{Filters, World};

/// How many reloads and toggles the load tests do: `$QUDAG_E2E_ROUNDS`, else 1,000.
pub fn rounds() -> usize {
    std::env::var("QUDAG_E2E_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(1000)
}
