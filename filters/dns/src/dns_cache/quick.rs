//! Hits, answered where the query was received.

use std::sync::Arc;

use qudag_filter_api::{Look, Quick};

use super::rules::Limits;
use super::store::{CacheState, Key};
use crate::kind::DnsGlance;
use crate::{Dns, Source, wire};

/// The part of the cache that needs no task: fresh entries, straight into the client's reply. Everything else waits for the service,
/// which counts it.
pub(super) struct QuickCache {
    cache: Arc<CacheState>,
    limits: Limits,
}

impl QuickCache {
    pub(super) fn new(cache: Arc<CacheState>, limits: Limits) -> Self {
        Self { cache, limits }
    }
}

impl Quick<Dns> for QuickCache {
    fn look(&self, glance: &mut DnsGlance<'_>) -> Look {
        let Some(key) = Key::of(glance.parsed) else { return Look::Wait };
        let hit = self.cache.hit(&key, &self.limits, glance.now, |entry, age| {
            let start = glance.out.len();
            let (message, known, limit) = (glance.message, glance.parsed, glance.limit);
            let whole = wire::finish_into(glance.out, message, known, entry.message(), [None, None], limit);
            if whole && let Some(reply) = glance.out.get_mut(start..) {
                entry.show(reply, self.limits.shown(entry.life(), age));
            }
        });
        match hit {
            Some(()) => {
                glance.source = Source::Cache;
                // Only answers are held, no failures.
                Look::Answered(None)
            }
            None => Look::Wait,
        }
    }
}

#[cfg(test)]
mod tests;
