//! One upstream query for all who ask the same at the same time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use qudag_filter_api::{FilterError, Svc};
use tokio::sync::watch;
use tower::ServiceExt;

use super::rules::{Entry, Key, Limits};
use super::state::CacheState;
use crate::{Dns, DnsQuery, DnsReply, Source};

/// The longest that anybody waits. The upstream's own limit is shorter; see `dns_upstream.timeout`.
const LIMIT: Duration = Duration::from_secs(15);

type Outcome = Result<DnsReply, FilterError>;

struct Flight {
    /// The epoch of the cache in which it began; who asks after a flush must not get an answer from before it.
    epoch: u64,
    /// Tells it from a later one of the same key.
    number: u64,
    outcome: watch::Receiver<Option<Outcome>>,
}

#[derive(Default)]
struct Table {
    flights: HashMap<Key, Flight>,
    started: u64,
}

/// The queries under way through one generation's chain. Each is a task of its own, so that it goes on, and its reply is stored,
/// when whoever asked first goes away.
#[derive(Clone)]
pub(super) struct Flights {
    table: Arc<Mutex<Table>>,
    cache: Arc<CacheState>,
    limits: Limits,
    inner: Svc<Dns>,
}

impl Flights {
    pub(super) fn new(cache: Arc<CacheState>, limits: Limits, inner: Svc<Dns>) -> Self {
        Self { table: Arc::default(), cache, limits, inner }
    }

    /// The answer to a query that the cache could not give: the outcome of the query under way for the same key, or of a new one.
    pub(super) async fn ask(&self, key: Key, query: DnsQuery) -> Outcome {
        let mut outcome = match self.join(key, query) {
            Ok(outcome) => outcome,
            Err(reply) => return Ok(reply),
        };
        let ended = outcome.wait_for(Option::is_some).await;
        match ended.as_deref() {
            Ok(Some(outcome)) => outcome.clone(),
            // The task dropped the sender without a word: it panicked, or the runtime is going down.
            _ => Err(FilterError::Internal("the query was lost".into())),
        }
    }

    /// Joins or starts a query; the reply itself when it was stored a moment ago.
    fn join(&self, key: Key, query: DnsQuery) -> Result<watch::Receiver<Option<Outcome>>, DnsReply> {
        let mut table = lock(&self.table);
        let epoch = self.cache.epoch();
        if let Some(flight) = table.flights.get(&key).filter(|flight| flight.epoch == epoch) {
            return Ok(flight.outcome.clone());
        }
        // A query stores its reply before it leaves the table, so between the look-up and here it may have done both.
        if let Some(wire) = self.cache.peek(&key, &self.limits, tokio::time::Instant::now()) {
            return Err(DnsReply { wire, source: Source::Cache, ede: None });
        }
        let (sender, outcome) = watch::channel(None);
        table.started += 1;
        let number = table.started;
        table.flights.insert(key.clone(), Flight { epoch, number, outcome: outcome.clone() });
        drop(table);
        let landing = Landing { table: Arc::clone(&self.table), key: key.clone(), number };
        let (cache, limits, inner) = (Arc::clone(&self.cache), self.limits, self.inner.clone());
        tokio::spawn(async move {
            let result = tokio::time::timeout(LIMIT, inner.oneshot(query)).await;
            let mut result = result.unwrap_or(Err(FilterError::Timeout { after: LIMIT }));
            if let Ok(reply) = &mut result {
                keep(&cache, key, reply, &limits, epoch);
            }
            drop(landing);
            // Nobody listens when all have gone away.
            let _ = sender.send(Some(result));
        });
        Ok(outcome)
    }
}

/// Stores a reply that may be kept, and puts its times to live within the limits at once: a client behind us must not keep it longer
/// than we do.
fn keep(cache: &CacheState, key: Key, reply: &mut DnsReply, limits: &Limits, epoch: u64) {
    let now = tokio::time::Instant::now();
    let Some(entry) = Entry::new(&key, &reply.wire, now) else { return };
    if let Some(wire) = entry.render(limits, now) {
        reply.wire = wire;
        cache.insert(key, entry, epoch);
    }
}

fn lock(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes a query out of the table, however it ends.
struct Landing {
    table: Arc<Mutex<Table>>,
    key: Key,
    number: u64,
}

impl Drop for Landing {
    fn drop(&mut self) {
        let mut table = lock(&self.table);
        if table.flights.get(&self.key).is_some_and(|flight| flight.number == self.number) {
            table.flights.remove(&self.key);
        }
    }
}
