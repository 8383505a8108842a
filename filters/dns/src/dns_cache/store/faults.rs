//! Damage on purpose, to see that it is noticed. Never compiled into the product.

use std::sync::Arc;

use super::{CacheState, table};

impl CacheState {
    /// Flips one bit of every entry in the shared level; `choose` says which, of how many. Returns how many entries were damaged.
    pub fn corrupt(&self, mut choose: impl FnMut(usize) -> usize) -> usize {
        let store = self.store.load();
        let held: Vec<_> = store.iter().collect();
        for (key, entry) in &held {
            store.insert(Box::clone(key), Arc::new(entry.flipped(choose(entry.bits()))));
        }
        held.len()
    }

    /// Flips one bit of every entry in this thread's table, and in no other place.
    pub fn corrupt_table(&self, mut choose: impl FnMut(usize) -> usize) -> usize {
        table::with(self.id, self.max_bytes, &self.lasting.counts, |table| {
            table.replace_each(|entry| entry.flipped(choose(entry.bits())))
        })
        .unwrap_or(0)
    }
}
