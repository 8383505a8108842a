//! Asking again for everything that is held.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::{StreamExt, stream};
use serde::Serialize;

use super::failures::is_answer;
use super::flight::{Wish, wait};
use crate::dns_cache::store::{CacheState, Counts};

/// How many entries are asked for at a time.
const AT_ONCE: usize = 32;

/// What a rebuild did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Rebuilt {
    /// Entries that were held.
    pub total: u64,
    /// Those for which the servers had an answer. It is the one that is held now.
    pub done: u64,
    /// Those for which they had none. They stay as they are.
    pub failed: u64,
}

/// Why there was no rebuild.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RebuildError {
    /// No generation asks upstream through the cache.
    #[error("the cache is switched off")]
    Off,
    /// One is enough.
    #[error("the cache is being rebuilt already")]
    Running,
}

/// Marks the end, however it comes.
struct Running<'a>(&'a Counts);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.rebuild.running.store(false, Ordering::Release);
    }
}

impl CacheState {
    /// Asks the servers again for every entry that is held, a bounded number at a time, whatever its age. Entries are served until they are
    /// replaced; flush first should they not be. [`CacheState::stats`] shows how far it is.
    ///
    /// # Errors
    /// When the cache is switched off, or being rebuilt.
    pub async fn rebuild(self: &Arc<Self>) -> Result<Rebuilt, RebuildError> {
        let progress = &self.counts().rebuild;
        if progress.running.swap(true, Ordering::AcqRel) {
            return Err(RebuildError::Running);
        }
        let _running = Running(self.counts());
        if self.newest().is_none() {
            return Err(RebuildError::Off);
        }
        // Before the first answer arrives, so that none is asked for twice.
        let keys: Vec<Box<[u8]>> = self.entries().into_iter().map(|entry| entry.key().into()).collect();
        progress.total.store(keys.len() as u64, Ordering::Relaxed);
        for count in [&progress.done, &progress.failed] {
            count.store(0, Ordering::Relaxed);
        }
        stream::iter(keys)
            .for_each_concurrent(AT_ONCE, |key| async move {
                // The newest each time: there may be a reload meanwhile.
                let waiting = self.newest().and_then(|flights| flights.refresh(&key, Wish::FromServers));
                let well = match waiting {
                    Some(waiting) => is_answer(&wait(waiting).await),
                    None => false,
                };
                let count = if well { &progress.done } else { &progress.failed };
                count.fetch_add(1, Ordering::Relaxed);
            })
            .await;
        let load = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
        let (total, done, failed) = (load(&progress.total), load(&progress.done), load(&progress.failed));
        tracing::info!(total, done, failed, "the DNS cache was rebuilt");
        Ok(Rebuilt { total, done, failed })
    }
}
