//! Replies to queries that rules name, given again without a server for a short time.
//!
//! `settings` is the filter, `rules` finds the rule of a query, `store` holds the replies and lets one of several who ask the same ask the
//! server. Which batches have a key, which replies last, and what tables a text names, is decided in [`crate::session`].

mod rules;
mod settings;
mod store;
#[cfg(test)]
mod store_tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use arc_swap::ArcSwapOption;

pub(crate) use rules::Named;
pub use settings::{CacheRule, QueryCache};
pub use store::{CacheStats, Filling, QueryCacheState, RuleStats};

use crate::session::Question;

/// A question that a rule names.
#[derive(Clone, Debug)]
pub struct Asked {
    pub(crate) question: Question,
    pub(crate) named: Arc<Named>,
}

/// Where the sessions of all pools find the cache; empty while the filter is off.
#[derive(Default)]
pub(crate) struct Slot {
    /// Whether there may be one: all that is looked at while there is none.
    on: AtomicBool,
    state: ArcSwapOption<QueryCacheState>,
}

impl Slot {
    /// The cache that a transaction has passed by.
    pub(crate) fn put(&self, state: &Arc<QueryCacheState>) {
        if !self.state.load().as_ref().is_some_and(|known| Arc::ptr_eq(known, state)) {
            self.state.store(Some(Arc::clone(state)));
            self.on.store(true, Relaxed);
        }
    }

    /// The filter is off: what was kept is of no use any more.
    pub(crate) fn clear(&self) {
        if self.on.load(Relaxed)
            && self.on.swap(false, Relaxed)
            && let Some(state) = self.state.swap(None)
        {
            state.end();
        }
    }

    pub(crate) fn get(&self) -> Option<Arc<QueryCacheState>> {
        self.state.load_full()
    }

    /// Whether somebody wants to know what is written.
    pub(crate) fn watches(&self) -> bool {
        self.on.load(Relaxed) && self.state.load().as_ref().is_some_and(|state| state.watches_writes())
    }
}
