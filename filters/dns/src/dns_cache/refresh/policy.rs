//! What a generation's settings say of the entries.

use std::time::Duration;

use tokio::time::Instant;

use crate::dns_cache::rules::{Freshness, Limits};
use crate::dns_cache::snapshot::SnapshotFile;
use crate::dns_cache::store::{Entry, Parts};
use crate::wire::Name;

/// The settings, as they are needed for each query.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    pub(crate) limits: Limits,
    /// Whether entries are refreshed before their time is over.
    pub(crate) prefetch: bool,
    /// How long a refresh may take before a stale answer is served instead.
    pub(crate) stale_wait: Duration,
    /// The longest that a failure is kept.
    pub(crate) failure_ttl: Duration,
    /// The names that are never served stale, and those below them.
    pub(crate) fresh_only: Vec<Name>,
    pub(crate) snapshot: Option<SnapshotFile>,
}

impl Policy {
    /// What may be done with an entry.
    pub(crate) fn judge(&self, entry: &Entry, now: Instant) -> Freshness {
        self.limits.judge(entry.life(), entry.age(now), || {
            let asked = Parts::of(entry.key());
            self.fresh_only.iter().any(|name| asked.is_within(name))
        })
    }
}
