//! Redis and Valkey: sessions passed through byte for byte, or pooled by batches of commands.
//!
//! `resp` finds where commands and replies end, `machine` says which commands form a batch and when a connection has to stay, `pools` are
//! all pools, `pool` makes and keeps the connections of one user, database and version of the protocol, which are taken by `taking`, and
//! `session` drives the machine between two sockets.

mod class;
mod conn;
mod credentials;
mod filters;
mod kind;
mod listener;
mod machine;
mod model;
mod pool;
mod pools;
mod relay;
mod reply;
pub mod resp;
mod session;
mod settings;
mod taking;

pub use filters::{RedisBackpressure, RedisPool};
pub use kind::{
    Pooled, Redis, RedisAnswer, RedisBatch, RedisFilters, RedisRequest, RedisSession, RedisSettings,
    RedisStates,
};
pub use model::fuzz_redis_session;
pub use pool::{Pool, RedisPoolStatus};
pub use pools::{Pools, RedisStatus};
pub use session::BATCHES;
pub use settings::{RedisListener, RedisUpstream};
pub use taking::Lease;
