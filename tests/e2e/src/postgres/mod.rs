//! Clients of PostgreSQL that send raw messages, and the ways by which they reach the server.

pub mod client;
pub mod login;
pub mod stand;

pub use client::{Batch, Fault, Link, Lost};
pub use login::Login;
pub use stand::{Stand, Way};
