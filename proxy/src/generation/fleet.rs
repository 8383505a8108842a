//! Flushes of the DNS cache that other sidecars of the fleet tell of.

use std::sync::Arc;

use qudag_filter_dns::{CacheState, FlushSelector, SharedCacheState};

use super::{Current, Generation};

impl Generation {
    /// The DNS cache, if it is or was on.
    pub fn dns_cache(&self) -> Option<Arc<CacheState>> {
        Some(Arc::clone(&self.kinds.dns.as_ref()?.states.dns_cache.as_ref()?.state))
    }

    /// The DNS cache that the fleet shares, if it is or was on.
    pub fn shared_cache(&self) -> Option<Arc<SharedCacheState>> {
        Some(Arc::clone(&self.kinds.dns.as_ref()?.states.dns_shared_cache.as_ref()?.state))
    }
}

/// Lets the flushes of the fleet reach the DNS cache of whatever generation is in force when they come.
pub(super) fn follow(current: &Current) {
    let Some(shared) = current.load().shared_cache() else { return };
    // The generation holds the state, which holds this.
    let current = Arc::downgrade(current);
    shared.attach(Arc::new(move |selector: &FlushSelector| {
        let cache = current.upgrade().and_then(|current| current.load().dns_cache());
        if let Some(cache) = cache {
            cache.flush(selector);
        }
    }));
}
