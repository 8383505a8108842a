//! Peer traffic: byte streams between nodes.
//!
//! `LIFECYCLE.md` in the crate's folder tells the life of one connection.

pub mod identity;
mod kind;
mod listener;
mod settings;

pub use kind::{Peer, PeerConnect, PeerFilters, PeerSettings, PeerStates, Route};
pub use settings::{Outbound, PeerListener};
