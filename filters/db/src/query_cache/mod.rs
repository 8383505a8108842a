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
pub(crate) struct Slot(ArcSwapOption<QueryCacheState>);

impl Slot {
    /// The cache that a transaction has passed by.
    pub(crate) fn put(&self, state: &Arc<QueryCacheState>) {
        if !self.0.load().as_ref().is_some_and(|known| Arc::ptr_eq(known, state)) {
            self.0.store(Some(Arc::clone(state)));
        }
    }

    /// The filter is off: what was kept is of no use any more.
    pub(crate) fn clear(&self) {
        if self.0.load().is_some()
            && let Some(state) = self.0.swap(None)
        {
            state.end();
        }
    }

    pub(crate) fn get(&self) -> Option<Arc<QueryCacheState>> {
        self.0.load_full()
    }

    /// Whether somebody wants to know what is written.
    pub(crate) fn watches(&self) -> bool {
        self.0.load().as_ref().is_some_and(|state| state.watches_writes())
    }
}
