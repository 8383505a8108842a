//! Replies to queries that rules name, given again without a server for a short time.
//!
//! `store` holds them and lets one of several who ask the same ask the server; `settings` is the filter. Which batches have a key, and what
//! replies last, is decided in [`crate::session`].

mod settings;
mod store;

pub use settings::{CacheRule, QueryCache};
pub use store::{CacheStats, Filling, QueryCacheState};
