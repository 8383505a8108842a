//! Databases: PostgreSQL sessions, passed through byte for byte.
//!
//! `LIFECYCLE.md` in the crate's folder tells the life of one connection.

pub mod auth;
mod kind;
mod listener;
mod reply;
mod settings;
mod startup;

pub use kind::{Db, DbFilters, DbSession, DbSettings, DbStates};
pub use settings::PostgresListener;
pub use startup::{StartupError, StartupMessage, StartupPacket, fuzz_startup};
