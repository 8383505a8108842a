//! Databases: PostgreSQL sessions, passed through byte for byte; and the protocol machines of pooled sessions ([`wire`]).
//!
//! `LIFECYCLE.md` in the crate's folder tells the life of one connection.

pub mod auth;
mod kind;
mod listener;
mod reply;
pub mod session;
mod settings;
mod startup;
pub mod wire;

pub use kind::{Db, DbFilters, DbSession, DbSettings, DbStates};
pub use settings::PostgresListener;
pub use startup::{StartupError, StartupMessage, StartupPacket, fuzz_startup};
