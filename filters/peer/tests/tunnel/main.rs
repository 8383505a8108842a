//! The tunnel between two sidecars, over loopback, with real certificates.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by a panic"
)]

mod changes;
mod control;
mod failures;
mod greedy;
mod hostile;
mod memory;
mod streams;
mod support;
