//! Replies from earlier queries.
//!
//! `store` holds them, in a table of each thread over one that all share; `rules` says how long they are of use; `refresh` asks
//! upstream for what is missing or about to be; `quick` answers hits without a task; `snapshot` keeps them over a restart.

mod anomaly;
mod quick;
mod refresh;
pub mod rules;
mod snapshot;
mod store;

use std::sync::Arc;
use std::time::Duration;

use qudag_filter_api::{
    BuildError, ByteSize, ConfigError, ConfigPath, Env, FilterSpec, Period, Quick, Svc, service_fn,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tower::ServiceExt;

use quick::QuickCache;
use refresh::{Flights, Policy};
pub use refresh::{RebuildError, Rebuilt};
pub use rules::HARD_LIMIT;
pub(crate) use rules::NEGATIVE_LIMIT;
use rules::{FAILURE_LIMIT, Limits};
pub use snapshot::SnapshotFile;
pub(crate) use store::parse_type;
pub use store::{CacheState, CacheStats, FlushSelector, Key};

use crate::wire::Name;
use crate::{Dns, DnsQuery, DnsReply, Source};

/// The filter's name.
const NAME: &str = "dns_cache";
/// The smallest cache: the largest reply fits.
const LEAST_SIZE: ByteSize = ByteSize::kib(128);
/// The longest that a client is kept waiting for a refresh while there is a stale answer; its own patience ends soon after.
const LONGEST_STALE_WAIT: Duration = Duration::from_secs(2);

/// Replies from earlier queries, never older than 300 seconds. The same query at the same time goes upstream once. Names that are in use are
/// asked for again before their time is over, and should the servers fail, what is held is served a little longer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DnsCache {
    /// The memory that the replies may take, at least 128KiB.
    pub max_size: ByteSize,
    /// The longest time to live, at most 300s. Longer ones are shortened.
    pub max_ttl: Period,
    /// The shortest time to live of positive answers. Shorter ones are lengthened.
    pub min_ttl: Period,
    /// The longest time to live of negative answers, at most 30s.
    pub negative_ttl: Period,
    /// The age at which a positive answer is asked for again whatever its time to live, 1s to 300s.
    pub soft_ttl: Period,
    /// Whether names that are asked for are refreshed before their time is over.
    pub prefetch: bool,
    /// Whether an answer whose time is over is served while no newer one can be had, up to an age of 300 s (RFC 8767).
    pub serve_stale: bool,
    /// How long a client waits for a newer answer before it gets the one whose time is over, at most 2s.
    pub stale_wait: Period,
    /// The longest that a failure of the servers is kept, at most 5s; 0s keeps none (RFC 9520).
    pub failure_ttl: Period,
    /// Names that are never served once their time is over, nor the names below them.
    pub fresh_only: Vec<String>,
    /// A file that keeps the replies over a restart.
    pub snapshot: Option<SnapshotFile>,
}

impl Default for DnsCache {
    fn default() -> Self {
        Self {
            max_size: ByteSize::mib(32),
            max_ttl: Period::secs(300),
            min_ttl: Period::secs(0),
            negative_ttl: Period::secs(30),
            soft_ttl: Period::secs(240),
            prefetch: true,
            serve_stale: true,
            stale_wait: Period::millis(50),
            failure_ttl: Period::secs(5),
            fresh_only: Vec::new(),
            snapshot: None,
        }
    }
}

/// A name in `fresh_only`; a leading `*.` says nothing that is not so anyway.
fn suffix(name: &str) -> Result<Name, String> {
    Name::from_text(name.trim_start_matches("*.")).map_err(|why| why.to_string())
}

impl DnsCache {
    fn limits(&self) -> Limits {
        Limits {
            max_ttl: self.max_ttl.0,
            min_ttl: self.min_ttl.0,
            negative_ttl: self.negative_ttl.0,
            soft_ttl: self.soft_ttl.0,
            serve_stale: self.serve_stale,
        }
    }

    fn policy(&self) -> Policy {
        Policy {
            limits: self.limits(),
            prefetch: self.prefetch,
            stale_wait: self.stale_wait.0,
            failure_ttl: self.failure_ttl.0,
            // All of them are names; see `check`.
            fresh_only: self.fresh_only.iter().filter_map(|name| suffix(name).ok()).collect(),
            snapshot: self.snapshot.clone(),
        }
    }
}

impl FilterSpec for DnsCache {
    type Kind = Dns;
    type State = CacheState;
    const NAME: &'static str = NAME;

    fn check(&self, at: &ConfigPath) -> Vec<ConfigError> {
        let mut errors = Vec::new();
        if self.max_size < LEAST_SIZE {
            errors.push(at.key("max_size").error("too small for one reply").hint("128KiB or more"));
        }
        if self.max_ttl.0 > HARD_LIMIT {
            errors.push(
                at.key("max_ttl")
                    .error("longer than 300s, the most that an entry may live")
                    .hint("1s to 300s"),
            );
        } else if self.max_ttl.0 < Duration::from_secs(1) {
            errors.push(
                at.key("max_ttl")
                    .error("shorter than 1s, so nothing would be kept")
                    .hint("1s to 300s; to switch the cache off write `enabled: false`"),
            );
        }
        if self.min_ttl > self.max_ttl {
            errors.push(at.key("min_ttl").error("longer than `max_ttl`").hint("0s to `max_ttl`"));
        }
        if self.negative_ttl.0 > NEGATIVE_LIMIT {
            errors.push(
                at.key("negative_ttl")
                    .error("longer than 30s, the most that a negative answer may live")
                    .hint("0s to 30s"),
            );
        }
        if self.soft_ttl.0 > HARD_LIMIT || self.soft_ttl.0 < Duration::from_secs(1) {
            let error = at.key("soft_ttl").error("not between 1s and 300s");
            errors.push(error.hint("240s, which leaves a minute for servers that are down"));
        }
        if self.stale_wait.0 > LONGEST_STALE_WAIT {
            errors.push(at.key("stale_wait").error("longer than 2s").hint("50ms, for instance"));
        }
        if self.failure_ttl.0 > FAILURE_LIMIT {
            errors.push(
                at.key("failure_ttl")
                    .error("longer than 5s, the most that a failure may be kept")
                    .hint("0s to 5s"),
            );
        }
        for (i, name) in self.fresh_only.iter().enumerate() {
            if let Err(why) = suffix(name) {
                errors.push(at.key("fresh_only").index(i).error(why).hint("a name such as service.example"));
            }
        }
        if let Some(snapshot) = &self.snapshot {
            errors.extend(snapshot.check(&at.key("snapshot")));
        }
        errors
    }

    fn state(
        &self,
        _env: &Env,
        previous: Option<(&Self, Arc<CacheState>)>,
    ) -> Result<Arc<CacheState>, BuildError> {
        // Times to live are applied when an entry is read, so only the size concerns the state.
        let state = match previous {
            Some((_, state)) if state.max_bytes() == self.max_size.0 => state,
            Some((_, state)) => Arc::new(state.resized(self.max_size.0)),
            None => {
                let state = Arc::new(CacheState::new(self.max_size.0));
                if let Some(snapshot) = &self.snapshot {
                    snapshot.restore(&state);
                }
                state
            }
        };
        state.keep();
        Ok(state)
    }

    fn wrap(&self, state: Arc<CacheState>, inner: Svc<Dns>) -> Svc<Dns> {
        let limits = self.limits();
        let flights = Flights::new(Arc::clone(&state), Arc::new(self.policy()), inner.clone());
        service_fn::<Dns, _, _>(move |query: DnsQuery| {
            state.keep();
            let key = Key::of(query.parsed());
            let hit = key.as_ref().and_then(|key| hit(&state, key, &limits));
            let (flights, inner) = (Arc::clone(&flights), inner.clone());
            async move {
                match (hit, key) {
                    (Some(reply), _) => {
                        query.note(NAME, || format!("hit, {:?} old", reply.age));
                        Ok(reply)
                    }
                    (None, Some(key)) => flights.answer(key, query).await,
                    (None, None) => {
                        query.note(NAME, || "not a query that the cache answers".to_owned());
                        inner.oneshot(query).await
                    }
                }
            }
        })
    }

    fn quick(&self, state: &Arc<CacheState>) -> Option<Box<dyn Quick<Dns>>> {
        Some(Box::new(QuickCache::new(Arc::clone(state), self.limits())))
    }
}

/// The fresh reply that is held for a key.
fn hit(state: &CacheState, key: &Key, limits: &Limits) -> Option<DnsReply> {
    state.hit(key, limits, tokio::time::Instant::now(), |entry, age| {
        let wire = entry.shown(limits.shown(entry.life(), age));
        DnsReply { age, ..DnsReply::new(wire, Source::Cache) }
    })
}

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
