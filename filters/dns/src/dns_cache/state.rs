//! The cache itself, which outlives reloads and toggles.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};

use arc_swap::ArcSwap;
use bytes::Bytes;
use hickory_proto::rr::RecordType;
use metrics::{Counter, Gauge, counter, gauge};
use moka::notification::RemovalCause;
use moka::sync::Cache;
use serde::Serialize;
use tokio::time::Instant;

use super::rules::{Entry, HARD_LIMIT, Key, Limits};
use crate::wire::{Name, NameError};

/// Which entries are to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FlushSelector {
    /// All of them.
    All,
    /// Those of one name.
    Name(Name),
    /// Those of a name and of every name below it.
    Suffix(Name),
    /// Those of one type.
    Type(u16),
}

impl FlushSelector {
    /// The entries of a name as people write it.
    ///
    /// # Errors
    /// When it is not a name.
    pub fn name(name: &str) -> Result<Self, NameError> {
        Name::from_text(name).map(Self::Name)
    }

    /// The entries of a name as people write it, and of every name below it.
    ///
    /// # Errors
    /// When it is not a name.
    pub fn suffix(name: &str) -> Result<Self, NameError> {
        Name::from_text(name.trim_start_matches("*.")).map(Self::Suffix)
    }

    /// The entries of a type, by its name or as `TYPE123` (RFC 3597 section 5).
    ///
    /// # Errors
    /// When there is no such type.
    pub fn rtype(rtype: &str) -> Result<Self, String> {
        parse_type(rtype).map(Self::Type).ok_or_else(|| format!("{rtype:?} is not a record type"))
    }

    fn matches(&self, key: &Key) -> bool {
        match self {
            Self::All => true,
            Self::Name(name) => key.name == *name,
            Self::Suffix(name) => key.name.is_within(name),
            Self::Type(rtype) => key.qtype == *rtype,
        }
    }
}

/// A record type by its name or number.
pub(crate) fn parse_type(rtype: &str) -> Option<u16> {
    let rtype = rtype.trim().to_ascii_uppercase();
    match rtype.strip_prefix("TYPE") {
        Some(number) => number.parse().ok(),
        None => rtype.parse::<RecordType>().ok().map(u16::from),
    }
}

/// What the cache has done and holds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct CacheStats {
    /// Replies that are held.
    pub entries: u64,
    /// Their memory in bytes, roughly.
    pub bytes: u64,
    /// The most bytes that there may be.
    pub max_bytes: u64,
    /// Queries answered from the cache.
    pub hits: u64,
    /// Queries that had to wait for the upstream server, on their own or together with others.
    pub misses: u64,
    /// Replies that were stored.
    pub inserts: u64,
    /// Replies that went for lack of room.
    pub evictions: u64,
    /// Queries that found a reply whose time was over.
    pub expired: u64,
    /// Flushes.
    pub flushes: u64,
    /// Hits among all queries, from 0 to 1.
    pub hit_ratio: f64,
}

/// A count that is shown in `stats` and as a metric.
struct Count {
    value: AtomicU64,
    metric: Counter,
}

impl Count {
    fn new(metric: Counter) -> Self {
        Self { value: AtomicU64::new(0), metric }
    }

    fn add(&self) {
        self.value.fetch_add(1, Relaxed);
        self.metric.increment(1);
    }

    fn get(&self) -> u64 {
        self.value.load(Relaxed)
    }
}

struct Counts {
    hits: Count,
    misses: Count,
    inserts: Count,
    evictions: Count,
    expired: Count,
    flushes: Count,
    entries: Gauge,
    bytes: Gauge,
}

impl Counts {
    fn new() -> Self {
        Self {
            hits: Count::new(counter!("qudag_sidecar_dns_cache_hits_total")),
            misses: Count::new(counter!("qudag_sidecar_dns_cache_misses_total")),
            inserts: Count::new(counter!("qudag_sidecar_dns_cache_inserts_total")),
            evictions: Count::new(counter!("qudag_sidecar_dns_cache_evictions_total")),
            expired: Count::new(counter!("qudag_sidecar_dns_cache_expired_total")),
            flushes: Count::new(counter!("qudag_sidecar_dns_cache_flushes_total")),
            entries: gauge!("qudag_sidecar_dns_cache_entries"),
            bytes: gauge!("qudag_sidecar_dns_cache_bytes"),
        }
    }
}

/// Hashed with a seed of this process (the standard library's), so that no client can aim at one bucket.
type Store = Cache<Key, Arc<Entry>>;

fn store(max_bytes: u64, counts: &Arc<Counts>) -> Store {
    let counts = Arc::clone(counts);
    Cache::builder()
        .max_capacity(max_bytes)
        .weigher(|key: &Key, entry: &Arc<Entry>| entry.weight(key))
        // Only frees the memory of what is not asked for any more; whether an entry is served is decided when it is read.
        .time_to_live(HARD_LIMIT)
        .eviction_listener(move |_, _, cause| {
            if cause == RemovalCause::Size {
                counts.evictions.add();
            }
        })
        .build()
}

/// The replies, and how often they were of use.
pub struct CacheState {
    store: ArcSwap<Store>,
    max_bytes: u64,
    /// Grows with every flush. Held for reading while an entry is stored and for writing during a flush, so that no reply from before
    /// a flush is stored after it.
    epoch: RwLock<u64>,
    counts: Arc<Counts>,
}

impl CacheState {
    /// An empty cache of at most so many bytes.
    pub fn new(max_bytes: u64) -> Self {
        let counts = Arc::new(Counts::new());
        let store = ArcSwap::from_pointee(store(max_bytes, &counts));
        Self { store, max_bytes, epoch: RwLock::new(0), counts }
    }

    /// A cache of another size with the same entries, as far as they fit, and the same counts.
    pub(super) fn resized(&self, max_bytes: u64) -> Self {
        let resized = store(max_bytes, &self.counts);
        for (key, entry) in self.store.load().iter() {
            resized.insert(Key::clone(&key), entry);
        }
        let (store, epoch) = (ArcSwap::from_pointee(resized), RwLock::new(self.epoch()));
        Self { store, max_bytes, epoch, counts: Arc::clone(&self.counts) }
    }

    /// The most bytes that there may be.
    pub fn max_bytes(&self) -> u64 {
        self.max_bytes
    }

    /// Which flush the cache is at. A reply that was asked for in one epoch is not stored in another.
    pub(super) fn epoch(&self) -> u64 {
        *self.epoch.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The reply as it is to be sent now. Counts nothing.
    pub(super) fn peek(&self, key: &Key, limits: &Limits, now: Instant) -> Option<Bytes> {
        self.store.load().get(key)?.render(limits, now)
    }

    /// The reply as it is to be sent now; counts a hit or a miss.
    pub(super) fn get(&self, key: &Key, limits: &Limits, now: Instant) -> Option<Bytes> {
        let entry = self.store.load().get(key);
        let reply = entry.as_ref().and_then(|entry| entry.render(limits, now));
        match &reply {
            Some(_) => self.counts.hits.add(),
            None => self.counts.misses.add(),
        }
        if entry.is_some() && reply.is_none() {
            self.counts.expired.add();
        }
        reply
    }

    /// Stores a reply that was asked for in an epoch, unless there was a flush since then.
    pub(super) fn insert(&self, key: Key, entry: Entry, epoch: u64) {
        let current = self.epoch.read().unwrap_or_else(PoisonError::into_inner);
        if *current == epoch {
            let store = self.store.load();
            store.insert(key, Arc::new(entry));
            self.counts.inserts.add();
            self.show(&store);
        }
    }

    /// Removes entries and returns how many there were. From the moment when it returns no query is answered with
    /// what was asked for before.
    pub fn flush(&self, selector: &FlushSelector) -> u64 {
        let mut epoch = self.epoch.write().unwrap_or_else(PoisonError::into_inner);
        *epoch += 1;
        self.counts.flushes.add();
        let gone = if *selector == FlushSelector::All {
            let old = self.store.swap(Arc::new(store(self.max_bytes, &self.counts)));
            old.run_pending_tasks();
            old.entry_count()
        } else {
            let store = self.store.load();
            let keys: Vec<_> = store.iter().map(|(key, _)| key).filter(|key| selector.matches(key)).collect();
            keys.iter().for_each(|key| store.invalidate(key.as_ref()));
            store.run_pending_tasks();
            keys.len() as u64
        };
        self.show(&self.store.load());
        gone
    }

    /// What the cache has done and holds.
    pub fn stats(&self) -> CacheStats {
        let store = self.store.load();
        store.run_pending_tasks();
        self.show(&store);
        let (hits, misses) = (self.counts.hits.get(), self.counts.misses.get());
        let all = hits + misses;
        CacheStats {
            entries: store.entry_count(),
            bytes: store.weighted_size(),
            max_bytes: self.max_bytes,
            hits,
            misses,
            inserts: self.counts.inserts.get(),
            evictions: self.counts.evictions.get(),
            expired: self.counts.expired.get(),
            flushes: self.counts.flushes.get(),
            hit_ratio: if all == 0 { 0.0 } else { hits as f64 / all as f64 },
        }
    }

    fn show(&self, store: &Store) {
        self.counts.entries.set(store.entry_count() as f64);
        self.counts.bytes.set(store.weighted_size() as f64);
    }
}

impl std::fmt::Debug for CacheState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CacheState").field("max_bytes", &self.max_bytes).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::testing::{query_wire, reply_wire};
    use crate::wire::{rcode, rtype};
    use crate::{DnsQuery, Transport};

    const LIMITS: Limits =
        Limits { max_ttl: HARD_LIMIT, min_ttl: Duration::ZERO, negative_ttl: Duration::from_secs(30) };

    fn made(name: &str, qtype: u16) -> (Key, Entry) {
        let query = query_wire(name, qtype, None);
        let reply = reply_wire(&query, rcode::NOERROR, &[(qtype, 60, &[192, 0, 2, 1])]).into();
        let client = ([127, 0, 0, 1], 1).into();
        let key = Key::of(&DnsQuery::parse(query.into(), client, Transport::Udp).unwrap()).unwrap();
        let entry = Entry::new(&key, &reply, Instant::now()).unwrap();
        (key, entry)
    }

    fn filled() -> CacheState {
        let cache = CacheState::new(1 << 20);
        for name in ["a.example", "b.example", "example", "badexample"] {
            for qtype in [rtype::A, rtype::AAAA] {
                let (key, entry) = made(name, qtype);
                cache.insert(key, entry, 0);
            }
        }
        cache
    }

    #[test]
    fn a_flush_takes_what_it_names_and_nothing_else() {
        for (selector, gone) in [
            (FlushSelector::All, 8),
            (FlushSelector::name("A.Example.").unwrap(), 2),
            (FlushSelector::suffix("example").unwrap(), 6),
            (FlushSelector::suffix("*.example").unwrap(), 6),
            (FlushSelector::rtype("aaaa").unwrap(), 4),
            (FlushSelector::rtype("TYPE1").unwrap(), 4),
            (FlushSelector::rtype("MX").unwrap(), 0),
        ] {
            let cache = filled();
            assert_eq!(cache.flush(&selector), gone, "{selector:?}");
            assert_eq!(cache.stats().entries, 8 - gone, "{selector:?}");
            for name in ["a.example", "b.example", "example", "badexample"] {
                let (key, _) = made(name, rtype::A);
                assert_eq!(cache.peek(&key, &LIMITS, Instant::now()).is_none(), selector.matches(&key));
            }
        }
        assert!(FlushSelector::rtype("NOSUCH").is_err());
        assert!(FlushSelector::name("a..b").is_err());
    }

    #[test]
    fn what_was_asked_for_before_a_flush_is_not_stored_after_it() {
        let cache = CacheState::new(1 << 20);
        let (key, entry) = made("a.example", rtype::A);
        let before = cache.epoch();
        cache.flush(&FlushSelector::name("other.example").unwrap());
        cache.insert(key.clone(), entry.clone(), before);
        assert_eq!(cache.peek(&key, &LIMITS, Instant::now()), None);
        cache.insert(key.clone(), entry, cache.epoch());
        assert!(cache.peek(&key, &LIMITS, Instant::now()).is_some());
    }

    #[test]
    fn memory_is_bounded_and_evictions_are_counted() {
        let cache = CacheState::new(64 << 10);
        for i in 0..2_000 {
            let (key, entry) = made(&format!("n{i}.example"), rtype::A);
            cache.insert(key, entry, 0);
        }
        let stats = cache.stats();
        assert!(stats.bytes <= 64 << 10, "{stats:?}");
        assert!(stats.entries > 50 && stats.evictions == stats.inserts - stats.entries, "{stats:?}");
    }

    #[test]
    fn another_size_keeps_the_entries_and_the_counts() {
        let cache = filled();
        let (key, _) = made("a.example", rtype::A);
        assert!(cache.get(&key, &LIMITS, Instant::now()).is_some());
        let larger = cache.resized(2 << 20);
        let stats = larger.stats();
        assert_eq!((stats.entries, stats.hits, stats.max_bytes), (8, 1, 2 << 20));
        assert!(larger.peek(&key, &LIMITS, Instant::now()).is_some());
    }
}
