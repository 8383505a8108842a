//! Real packets between real sockets, measured against the settings of the link between them.
//!
//! A busy machine delivers late, never early: what must not be exceeded is asserted of every packet, what must be reached
//! is waited for with a deadline.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests report by panicking"
)]

mod chance;
mod change;
mod mtu;
mod pair;
mod program;
mod timing;
