//! One upstream query for all who ask the same at the same time, and what they get should it fail.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use qudag_filter_api::{FilterError, Svc};
use tokio::sync::watch;
use tokio::time::Instant;
use tower::ServiceExt;

use super::failures::{is_answer, reason};
use super::{Outcome, Policy};
use crate::dns_cache::NAME;
use crate::dns_cache::rules::{Freshness, Shown};
use crate::dns_cache::store::{CacheState, Entry, Key, Parts, lock};
use crate::wire::{Ede, HEADER, OWN_UDP, flag2, flag3, put, rcode, rtype};
use crate::{Dns, DnsQuery, DnsReply, Source, Transport};

/// The longest that anybody waits. The upstream's own limit is shorter; see `dns_upstream.timeout`.
const LIMIT: Duration = Duration::from_secs(15);

/// Extended errors (RFC 8914 section 4).
const STALE_ANSWER: u16 = 3;
const CACHED_ERROR: u16 = 13;
const STALE_NXDOMAIN: u16 = 19;

struct Flight {
    /// The epoch of the cache in which it began; who asks after a flush must not get an answer from before it.
    epoch: u64,
    /// Tells it from a later one of the same key.
    number: u64,
    outcome: Waiting,
}

/// What those who ask for the same wait for.
pub(super) type Waiting = watch::Receiver<Option<Outcome>>;

#[derive(Default)]
struct Table {
    flights: HashMap<Box<[u8]>, Flight>,
    started: u64,
}

/// Why the chain is asked.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Wish {
    /// For an answer, from whomever.
    Answer,
    /// For a newer one than there is here; a cache that is shared with others may have it.
    Newer,
    /// For what the servers say now.
    FromServers,
}

/// What became of the wish to ask.
enum Started {
    /// A query is under way.
    Waiting(Waiting),
    /// The answer was stored a moment ago.
    Stored(DnsReply),
}

/// The queries under way through one generation's chain. Each is a task of its own, so that it goes on, and its reply is stored,
/// when whoever asked first goes away.
pub(crate) struct Flights {
    table: Arc<Mutex<Table>>,
    cache: Arc<CacheState>,
    policy: Arc<Policy>,
    inner: Svc<Dns>,
}

impl Flights {
    pub(crate) fn new(cache: Arc<CacheState>, policy: Arc<Policy>, inner: Svc<Dns>) -> Arc<Self> {
        let flights = Arc::new(Self { table: Arc::default(), cache, policy, inner });
        flights.cache.join(&flights);
        flights
    }

    pub(crate) fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The answer to a query for which there is nothing fresh.
    pub(crate) async fn answer(&self, key: Key, query: DnsQuery) -> Outcome {
        let (cache, policy, now) = (&self.cache, &self.policy, Instant::now());
        cache.served_here();
        let held = cache.find(key.bytes());
        let stale = held.clone().filter(|entry| policy.judge(entry, now) == Freshness::Stale);
        let failures = &cache.lasting().failures;
        if let Some((outcome, ago)) = failures.get(key.bytes(), cache.epoch(), policy.failure_ttl, now) {
            let why = reason(&outcome);
            if let Some(reply) = stale.and_then(|entry| self.stale(&entry, why)) {
                cache.counts().stale_failed.add();
                query.note(NAME, || {
                    format!("stale, {:?} old: the servers failed ({why}) {ago:?} ago", reply.age)
                });
                return Ok(reply);
            }
            cache.counts().failures_served.add();
            query.note(NAME, || format!("failure of {ago:?} ago: {why}"));
            return Ok(cached(&query, outcome, ago));
        }
        cache.counts().misses.add();
        query.note(NAME, || match &held {
            Some(entry) => format!("miss: the time of what is held, {:?} old, is over", entry.age(now)),
            None => "miss: nothing is held".to_owned(),
        });
        if held.is_some() {
            cache.counts().expired.add();
        }
        let mut asked = pin!(self.ask(&key, query.clone()));
        let Some(entry) = stale else { return asked.await };
        let outcome = match tokio::time::timeout(policy.stale_wait, &mut asked).await {
            Ok(outcome) => outcome,
            Err(_) => {
                if let Some(reply) = self.stale(&entry, "slow") {
                    cache.counts().stale_slow.add();
                    query.note(NAME, || {
                        format!("stale, {:?} old: no answer within {:?}", reply.age, policy.stale_wait)
                    });
                    return Ok(reply);
                }
                asked.await
            }
        };
        if is_answer(&outcome) {
            return outcome;
        }
        let why = reason(&outcome);
        let Some(reply) = self.stale(&entry, why) else { return outcome };
        cache.counts().stale_failed.add();
        query.note(NAME, || format!("stale, {:?} old: the servers failed ({why})", reply.age));
        Ok(reply)
    }

    /// The reply from an entry whose time is over, unless it was flushed or replaced meanwhile or is too old by now (RFC 8767).
    fn stale(&self, entry: &Entry, why: &'static str) -> Option<DnsReply> {
        let now = Instant::now();
        if !self.cache.holds(entry) || self.policy.judge(entry, now) != Freshness::Stale {
            return None;
        }
        let age = entry.age(now);
        let wire = entry.shown(Shown::stale(entry.life(), age));
        let mut reply = DnsReply { age, ..DnsReply::new(wire, Source::Cache) };
        let code = if reply.rcode() == rcode::NXDOMAIN { STALE_NXDOMAIN } else { STALE_ANSWER };
        reply.ede = Some(Ede { code, text: why.into() });
        Some(reply)
    }

    /// The outcome of the query under way for the same key, or of a new one.
    async fn ask(&self, key: &Key, query: DnsQuery) -> Outcome {
        match self.start(key, query, Wish::Answer) {
            Started::Waiting(waiting) => wait(waiting).await,
            Started::Stored(reply) => Ok(reply),
        }
    }

    /// Asks for an answer without a client. `None` when the key is none, or the answer was stored a moment ago.
    pub(super) fn refresh(&self, key: &[u8], wish: Wish) -> Option<Waiting> {
        let key = Key::from_bytes(key)?;
        let client = ([127, 0, 0, 1], 0).into();
        let query = DnsQuery::parse(question(&key), client, Transport::Tcp).ok()?;
        let query = if wish == Wish::FromServers { query.from_servers() } else { query };
        match self.start(&key, query, wish) {
            Started::Waiting(waiting) => Some(waiting),
            Started::Stored(_) => None,
        }
    }

    /// Joins or starts a query; the reply itself when it was stored a moment ago.
    fn start(&self, key: &Key, query: DnsQuery, wish: Wish) -> Started {
        let mut table = lock(&self.table);
        let epoch = self.cache.epoch();
        let under_way = table.flights.get(key.bytes());
        if let Some(flight) = under_way.filter(|flight| flight.epoch == epoch) {
            query.note(NAME, || "waits for the same query of somebody else".to_owned());
            return Started::Waiting(flight.outcome.clone());
        }
        // A query stores its reply before it leaves the table, so between the look-up and here it may have done both.
        if wish == Wish::Answer
            && let Some(entry) = self.cache.find(key.bytes())
            && let now = Instant::now()
            && let Some(wire) = entry.render(&self.policy.limits, now)
        {
            return Started::Stored(DnsReply { age: entry.age(now), ..DnsReply::new(wire, Source::Cache) });
        }
        let (sender, outcome) = watch::channel(None);
        table.started += 1;
        let number = table.started;
        table.flights.insert(key.bytes().into(), Flight { epoch, number, outcome: outcome.clone() });
        drop(table);
        let landing = Landing { table: Arc::clone(&self.table), key: key.clone(), number };
        let (cache, policy, inner) = (Arc::clone(&self.cache), Arc::clone(&self.policy), self.inner.clone());
        let flight = async move {
            let result = tokio::time::timeout(LIMIT, inner.oneshot(query)).await;
            let mut result = result.unwrap_or(Err(FilterError::Timeout { after: LIMIT }));
            settle(&cache, &policy, &landing.key, &mut result, epoch);
            drop(landing);
            // Nobody listens when all have gone away.
            let _ = sender.send(Some(result));
        };
        if let Some(runtime) = self.cache.runtime() {
            drop(runtime.spawn(flight));
        }
        Started::Waiting(outcome)
    }
}

impl Drop for Flights {
    fn drop(&mut self) {
        if self.cache.newest().is_none() {
            (*lock(&self.cache.lasting().snapshots.last)).clone_from(&self.policy.snapshot);
        }
    }
}

/// Waits for the end of a query.
pub(super) async fn wait(mut waiting: Waiting) -> Outcome {
    let ended = waiting.wait_for(Option::is_some).await;
    match ended.as_deref() {
        Ok(Some(outcome)) => outcome.clone(),
        // The task dropped the sender without a word: it panicked, or the runtime is going down.
        _ => Err(FilterError::Internal("the query was lost".into())),
    }
}

/// Stores a reply that may be kept, and puts its times to live within the limits at once: a client behind us must not keep it longer
/// than we do. Remembers a failure; it replaces nothing.
fn settle(cache: &CacheState, policy: &Policy, key: &Key, outcome: &mut Outcome, epoch: u64) {
    let now = Instant::now();
    cache.lasting().failures.ended(key.bytes(), outcome, epoch, now);
    if !is_answer(outcome) {
        return;
    }
    let Ok(reply) = outcome else { return };
    let entry = Entry::new(key, &reply.wire, now, reply.age, epoch);
    let wire = entry.as_ref().and_then(|entry| entry.render(&policy.limits, now));
    match (entry, wire) {
        (Some(entry), Some(wire)) => {
            reply.wire = wire;
            cache.insert(entry);
        }
        // What is held says something else than the servers do now.
        _ if reply.age.is_zero() => cache.remove(key.bytes()),
        _ => {}
    }
}

/// A failure of a moment ago, for a client that asks now: its own reason, and that it was not looked into again (RFC 9520 section 3.4).
fn cached(query: &DnsQuery, outcome: Outcome, ago: Duration) -> DnsReply {
    let mut reply = match outcome {
        Ok(reply) => reply,
        Err(error) => DnsReply::error(query, &error),
    };
    reply.source = Source::Cache;
    reply.age = ago;
    reply.also = Some(Ede { code: CACHED_ERROR, text: "".into() });
    reply
}

/// A query for a key.
fn question(key: &Key) -> Bytes {
    let parts = Parts::of(key.bytes());
    let mut wire = vec![0; HEADER];
    put(&mut wire, 2, &[flag2::RD, if parts.cd() { flag3::CD } else { 0 }, 0, 1]);
    wire.extend_from_slice(parts.name);
    wire.extend(parts.qtype.to_be_bytes());
    wire.extend(parts.qclass.to_be_bytes());
    if parts.dnssec_ok() {
        put(&mut wire, 10, &[0, 1]);
        wire.push(0);
        wire.extend(rtype::OPT.to_be_bytes());
        wire.extend(OWN_UDP.to_be_bytes());
        wire.extend([0, 0, 0x80, 0, 0, 0]);
    }
    wire.into()
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
        if table.flights.get(self.key.bytes()).is_some_and(|flight| flight.number == self.number) {
            table.flights.remove(self.key.bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::query_wire;
    use crate::wire::parse_query;

    #[test]
    fn a_refresh_asks_what_the_key_says() {
        for (edns, bits) in
            [(None, [0, 0]), (Some(1232), [0x80, 0]), (None, [0, 0x10]), (Some(512), [0x80, 0x10])]
        {
            let mut wire = query_wire("www.example", rtype::AAAA, edns);
            if edns.is_some() {
                let at = wire.len() - 4;
                wire[at] |= bits[0];
            }
            wire[3] |= bits[1];
            let key = Key::of(&parse_query(&wire).unwrap()).unwrap();
            assert_eq!(Key::of(&parse_query(&question(&key)).unwrap()), Some(key));
        }
    }
}
