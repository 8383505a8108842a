//! Hits, answered where the query was received.

use std::sync::Arc;

use tokio::time::Instant;

use super::rules::Limits;
use super::store::{CacheState, Key};
use crate::wire::{self, HEADER, Parsed};

/// The part of the cache that needs no task: fresh entries.
pub struct QuickCache {
    cache: Arc<CacheState>,
    limits: Limits,
}

impl QuickCache {
    pub(super) fn new(cache: Arc<CacheState>, limits: Limits) -> Self {
        Self { cache, limits }
    }

    /// Appends the finished reply to `out`, in at most `limit` bytes, if there is a fresh entry. Otherwise changes and counts nothing.
    /// `message` is the client's and `query` what it says.
    pub fn answer(
        &self,
        message: &[u8],
        query: &Parsed,
        now: Instant,
        limit: usize,
        out: &mut Vec<u8>,
    ) -> bool {
        let Some(key) = Key::of(query) else { return false };
        let start = out.len();
        let hit = self.cache.hit(&key, &self.limits, now, |entry, age| {
            let whole = wire::finish_into(out, message, query, entry.message(), [None, None], limit);
            if whole && let Some(reply) = out.get_mut(start..) {
                entry.show(reply, self.limits.shown(entry.life(), age));
            }
        });
        debug_assert!(hit.is_none() || out.len() >= start + HEADER, "a hit is a message");
        hit.is_some()
    }
}
