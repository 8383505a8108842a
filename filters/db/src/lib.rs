//! Databases: PostgreSQL sessions, passed through byte for byte; and the protocol machines of pooled sessions ([`wire`]). [`redis`] is Redis and Valkey.
//!
//! `LIFECYCLE.md` in the crate's folder tells the life of one connection.

mod asking;
pub mod auth;
mod kind;
mod listener;
mod listening;
mod load;
pub mod pool;
mod query_cache;
mod rate_limit;
pub mod redis;
mod replicas;
mod reply;
pub mod session;
mod settings;
mod startup;
mod tapped;
pub mod wire;

pub use asking::ProbeSettings;
pub use kind::{Db, DbAnswer, DbFilters, DbRequest, DbSession, DbSettings, DbStates, Pooled};
pub use load::{LoadSettings, LoadStatus};
pub use pool::{Adaptive, DbBackpressure, DbPool, TRANSACTIONS};
pub use query_cache::{Asked, CacheRule, CacheStats, Filling, QueryCache, QueryCacheState, RuleStats};
pub use rate_limit::{DbRateLimit, DbRateLimitState, TransactionLimits};
pub use replicas::{ReadReplicas, ReplicaStatus, Replicas, Routing};
pub use settings::PostgresListener;
pub use startup::{Setting, StartupError, StartupMessage, StartupPacket, fuzz_startup};
