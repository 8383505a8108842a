//! The replies, and who is asking for them.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use metrics::{Counter, Gauge, counter, gauge};
use moka::Expiry;
use moka::notification::RemovalCause;
use moka::sync::Cache;
use serde::Serialize;
use tokio::sync::watch;
use xxhash_rust::xxh3::Xxh3;

use super::rules::{Named, Rule, Rules, plain};
use super::{Asked, QueryCache};
use crate::session::{Fingerprint, Work, Writes, lasting};

/// No reply is given again when it is older, whatever a rule says.
pub(super) const LONGEST: Duration = Duration::from_secs(300);
/// What an entry takes beside its bytes.
const OVERHEAD: usize = 384;
/// What the checksum is of.
const SCHEMA: u64 = 1;

/// Told apart, so that what was made by one cache is not taken for another's.
static NUMBERS: AtomicU64 = AtomicU64::new(0);

pub(super) struct Entry {
    pub(super) reply: Bytes,
    /// When the server was asked.
    pub(super) begun: Instant,
    /// Whether a replica may have been asked, which may not have had everything.
    pub(super) reads: bool,
    /// That of `named` when the server was asked.
    pub(super) stamp: u64,
    pub(super) named: Arc<Named>,
    /// Of the key and all above.
    pub(super) checksum: u64,
}

impl Entry {
    pub(super) fn sum(&self, key: &[u8]) -> u64 {
        let mut sum = Xxh3::with_seed(SCHEMA);
        key.hash(&mut sum);
        self.reply.hash(&mut sum);
        self.begun.hash(&mut sum);
        self.reads.hash(&mut sum);
        self.stamp.hash(&mut sum);
        self.named.rule.settings.name.hash(&mut sum);
        sum.finish()
    }

    fn ttl(&self) -> Duration {
        self.named.rule.settings.ttl.0.min(LONGEST)
    }

    fn is_valid(&self) -> bool {
        self.named.stamp() == self.stamp
    }
}

fn weight(key: &Bytes, entry: &Entry) -> u32 {
    u32::try_from(key.len() + entry.reply.len() + OVERHEAD).unwrap_or(u32::MAX)
}

/// Entries go when the time of their rule is over.
struct Times;

impl Expiry<Bytes, Arc<Entry>> for Times {
    fn expire_after_create(&self, _: &Bytes, entry: &Arc<Entry>, created: Instant) -> Option<Duration> {
        Some(entry.ttl().saturating_sub(created.saturating_duration_since(entry.begun)))
    }

    fn expire_after_update(
        &self,
        key: &Bytes,
        entry: &Arc<Entry>,
        updated: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        self.expire_after_create(key, entry, updated)
    }
}

/// The memory that the replies take, as metrics.
struct Held {
    bytes: Gauge,
    entries: Gauge,
    by_size: Counter,
    by_time: Counter,
}

impl Held {
    fn new() -> Self {
        let evicted =
            |reason: &'static str| counter!("qudag_sidecar_db_cache_evicted_total", "reason" => reason);
        Self {
            bytes: gauge!("qudag_sidecar_db_cache_bytes"),
            entries: gauge!("qudag_sidecar_db_cache_entries"),
            by_size: evicted("size"),
            by_time: evicted("time"),
        }
    }

    fn add(&self, rule: &Rule, weight: u32) {
        rule.entries.fetch_add(1, Relaxed);
        rule.bytes.fetch_add(weight.into(), Relaxed);
        self.bytes.increment(weight);
        self.entries.increment(1);
    }

    fn remove(&self, rule: &Rule, weight: u32, why: RemovalCause) {
        rule.entries.fetch_sub(1, Relaxed);
        rule.bytes.fetch_sub(weight.into(), Relaxed);
        self.bytes.decrement(weight);
        self.entries.decrement(1);
        match why {
            RemovalCause::Size => self.by_size.increment(1),
            RemovalCause::Expired => self.by_time.increment(1),
            RemovalCause::Explicit | RemovalCause::Replaced => {}
        }
    }
}

/// The cache. Kept while the filter is off.
pub struct QueryCacheState {
    pub(super) entries: Cache<Bytes, Arc<Entry>>,
    /// Who asks for what. `true` is said where the reply is not kept.
    flights: Mutex<HashMap<Bytes, watch::Receiver<bool>>>,
    rules: Rules,
    number: u64,
    held: Arc<Held>,
    max_bytes: u64,
    max_reply: usize,
    flush_on_write: bool,
}

impl std::fmt::Debug for QueryCacheState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QueryCacheState")
            .field("entries", &self.entries.entry_count())
            .finish_non_exhaustive()
    }
}

/// What is held, and what became of who asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CacheStats {
    /// Replies.
    pub entries: u64,
    /// Bytes of them and their keys.
    pub bytes: u64,
    /// The most bytes.
    pub max_bytes: u64,
    /// How often a reply was given again since the settings are these.
    pub hits: u64,
    /// How often the server was asked for what a rule names.
    pub misses: u64,
    /// The rules in the order of the configuration.
    pub rules: Vec<RuleStats>,
}

/// The same of a rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RuleStats {
    /// Its name.
    pub rule: String,
    /// How long its replies are given again, in seconds with three decimals.
    pub ttl: String,
    /// Replies.
    pub entries: u64,
    /// Bytes of them and their keys.
    pub bytes: u64,
    /// How often one was given again.
    pub hits: u64,
    /// How often the server was asked.
    pub misses: u64,
    /// How many of its answers were kept.
    pub stored: u64,
}

/// What there is for a question.
#[derive(Debug)]
pub(super) enum Look {
    Hit(Bytes),
    /// Nobody asks yet: ask, and say what came.
    Ask(Filling),
    /// Somebody asks. Look again when this ends; when it says something, the reply is not kept.
    Wait(watch::Receiver<bool>),
}

/// A question that is being asked. Others wait for it until this is dropped.
pub struct Filling {
    state: Arc<QueryCacheState>,
    asked: Asked,
    begun: Instant,
    stamp: u64,
    /// Its end wakes those up who wait.
    flight: Option<watch::Sender<bool>>,
}

impl std::fmt::Debug for Filling {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Filling").field("rule", &self.asked.named.rule.settings.name).finish_non_exhaustive()
    }
}

impl QueryCacheState {
    pub(super) fn new(settings: &QueryCache) -> Self {
        let held = Arc::new(Held::new());
        let gone = Arc::clone(&held);
        let entries = Cache::builder()
            .max_capacity(settings.max_bytes.0)
            .weigher(|key: &Bytes, entry: &Arc<Entry>| weight(key, entry))
            .expire_after(Times)
            .eviction_listener(move |key: Arc<Bytes>, entry: Arc<Entry>, why| {
                gone.remove(&entry.named.rule, weight(&key, &entry), why);
            })
            .build();
        let number = NUMBERS.fetch_add(1, Relaxed);
        Self {
            entries,
            flights: Mutex::default(),
            rules: Rules::new(&settings.rules, number),
            number,
            held,
            max_bytes: settings.max_bytes.0,
            max_reply: usize::try_from(settings.max_reply.0).unwrap_or(usize::MAX),
            flush_on_write: settings.flush_on_write,
        }
    }

    fn flights(&self) -> MutexGuard<'_, HashMap<Bytes, watch::Receiver<bool>>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A statement as a rule names it.
    pub(crate) fn named(&self, statement: Fingerprint, work: &Work<'_>) -> Option<Arc<Named>> {
        self.rules.named(statement, work)
    }

    /// Whether a question was named by the rules of this cache.
    pub(super) fn knows(&self, asked: &Asked) -> bool {
        asked.named.of == self.number
    }

    pub(crate) fn watches_writes(&self) -> bool {
        self.flush_on_write
    }

    /// What there is for a question, of a session that has changed something at `changed`: no reply from before that.
    pub(super) fn look(self: &Arc<Self>, asked: &Asked, changed: Option<Instant>, now: Instant) -> Look {
        let key = asked.question.key();
        if let Some(reply) = self.get(key, changed, now) {
            return Look::Hit(reply);
        }
        let mut flights = self.flights();
        if let Some(flight) = flights.get(key) {
            return Look::Wait(flight.clone());
        }
        // It may have come in this moment.
        if let Some(reply) = self.get(key, changed, now) {
            return Look::Hit(reply);
        }
        let (sender, receiver) = watch::channel(false);
        flights.insert(key.clone(), receiver);
        Look::Ask(Filling {
            state: Arc::clone(self),
            asked: asked.clone(),
            begun: now,
            stamp: asked.named.stamp(),
            flight: Some(sender),
        })
    }

    fn get(&self, key: &Bytes, changed: Option<Instant>, now: Instant) -> Option<Bytes> {
        let entry = self.entries.get(key)?;
        if entry.sum(key) != entry.checksum {
            counter!("qudag_sidecar_db_cache_checksum_failures_total").increment(1);
            let rule = &*entry.named.rule.settings.name;
            tracing::error!(rule, "a reply in the query cache is not as it was stored; it is thrown away");
            self.entries.invalidate(key);
            return None;
        }
        if !entry.is_valid() {
            self.entries.invalidate(key);
            return None;
        }
        // A replica may lack what the session has written, for as long as replicas are behind.
        let slack = if entry.reads { LONGEST } else { Duration::ZERO };
        if now.saturating_duration_since(entry.begun) >= entry.ttl()
            || changed.is_some_and(|changed| entry.begun < changed + slack)
        {
            return None;
        }
        Some(entry.reply.clone())
    }

    /// A transaction has ended that has written; `changed`: by the tags of its commands.
    pub(crate) fn wrote(&self, writes: &Writes, changed: bool) {
        let flushed = match writes.tables(changed) {
            None => {
                self.rules.flush_all();
                true
            }
            Some(tables) => {
                let mut any = false;
                for table in tables {
                    any |= self.rules.flush_table(&plain(table));
                }
                any
            }
        };
        if flushed {
            counter!("qudag_sidecar_db_cache_flushes_total", "by" => "write").increment(1);
        }
    }

    /// A chain begins with it. What was kept before is not given any more: nobody has looked at what was written since.
    pub(super) fn begin(&self) {
        self.rules.flush_all();
    }

    /// No chain has it any more.
    pub(super) fn end(&self) {
        self.rules.flush_all();
        self.sweep(|_| true);
    }

    /// Forgets everything, also what is on its way. Returns how many replies.
    pub fn flush(&self) -> usize {
        self.rules.flush_all();
        counter!("qudag_sidecar_db_cache_flushes_total", "by" => "all").increment(1);
        self.sweep(|_| true)
    }

    /// The same of what a rule has kept; `None` when there is no such rule.
    pub fn flush_rule(&self, name: &str) -> Option<usize> {
        if !self.rules.flush_rule(name) {
            return None;
        }
        counter!("qudag_sidecar_db_cache_flushes_total", "by" => "rule").increment(1);
        Some(self.sweep(|named| named.rule.settings.name == name))
    }

    /// The same of what was read from a table, whatever its schema is.
    pub fn flush_table(&self, name: &str) -> usize {
        let name = plain(name);
        self.rules.flush_table(&name);
        counter!("qudag_sidecar_db_cache_flushes_total", "by" => "table").increment(1);
        self.sweep(|named| named.is_of(&name))
    }

    /// Throws away what is not valid any more; how many of those that are meant.
    fn sweep(&self, meant: impl Fn(&Named) -> bool) -> usize {
        let mut gone = 0;
        for (key, entry) in &self.entries {
            if !entry.is_valid() {
                gone += usize::from(meant(&entry.named));
                self.entries.invalidate(&*key);
            }
        }
        self.entries.run_pending_tasks();
        gone
    }

    /// What is held.
    pub fn stats(&self) -> CacheStats {
        self.entries.run_pending_tasks();
        let rules: Vec<_> = self.rules.iter().map(|rule| rule.stats()).collect();
        let sum = |of: fn(&RuleStats) -> u64| rules.iter().map(of).sum();
        CacheStats {
            entries: sum(|rule| rule.entries),
            bytes: sum(|rule| rule.bytes),
            max_bytes: self.max_bytes,
            hits: sum(|rule| rule.hits),
            misses: sum(|rule| rule.misses),
            rules,
        }
    }
}

/// What nobody is told of the entries that go with it.
impl Drop for QueryCacheState {
    fn drop(&mut self) {
        let CacheStats { entries, bytes, .. } = self.stats();
        self.held.entries.decrement(entries as f64);
        self.held.bytes.decrement(bytes as f64);
    }
}

impl Rule {
    fn stats(&self) -> RuleStats {
        RuleStats {
            rule: self.settings.name.clone(),
            ttl: format!("{:.3}", self.settings.ttl.0.as_secs_f64()),
            entries: self.entries.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            hits: self.hits.load(Relaxed),
            misses: self.misses.load(Relaxed),
            stored: self.stored.load(Relaxed),
        }
    }
}

impl Filling {
    /// The longest reply that is kept.
    pub(crate) fn most(&self) -> usize {
        let own = self.asked.named.rule.settings.max_reply;
        let own = own.map_or(usize::MAX, |most| usize::try_from(most.0).unwrap_or(usize::MAX));
        own.min(self.state.max_reply)
    }

    /// The reply has come whole; `reads`: a replica may have given it. It is kept when it lasts, nothing was flushed since it was asked
    /// for, and there is room.
    pub(crate) fn filled(&self, reply: &[u8], reads: bool, now: Instant) {
        if let Err(reason) = self.keep(reply, reads, now) {
            self.refused(reason);
        }
    }

    /// The reply is longer than what is kept.
    pub(crate) fn too_large(&self) {
        self.refused("large");
    }

    fn refused(&self, reason: &'static str) {
        counter!("qudag_sidecar_db_cache_refused_total", "reason" => reason).increment(1);
        if let Some(flight) = &self.flight {
            // Who waits asks for itself, and not one after the other.
            let _ = flight.send(true);
        }
    }

    fn keep(&self, reply: &[u8], reads: bool, now: Instant) -> Result<(), &'static str> {
        let Self { state, asked, begun, stamp, .. } = self;
        let (rule, key) = (&asked.named.rule, asked.question.key());
        if reply.len() > self.most() {
            return Err("large");
        }
        lasting(reply).map_err(|why| why.label())?;
        let mut entry = Entry {
            reply: Bytes::copy_from_slice(reply),
            begun: *begun,
            reads,
            stamp: *stamp,
            named: Arc::clone(&asked.named),
            checksum: 0,
        };
        entry.checksum = entry.sum(key);
        if !entry.is_valid() {
            return Err("flushed");
        }
        if now.saturating_duration_since(*begun) >= entry.ttl() {
            return Err("late");
        }
        let weight = weight(key, &entry);
        if let Some(most) = rule.settings.max_bytes {
            let has_room = || rule.bytes.load(Relaxed) + u64::from(weight) <= most.0;
            if !has_room() {
                // What is over or was replaced may still be counted.
                state.entries.run_pending_tasks();
                if !has_room() {
                    return Err("rule_full");
                }
            }
        }
        state.held.add(rule, weight);
        state.entries.insert(key.clone(), Arc::new(entry));
        Rule::count(&rule.stored);
        counter!("qudag_sidecar_db_cache_stored_total").increment(1);
        Ok(())
    }
}

impl Drop for Filling {
    fn drop(&mut self) {
        self.state.flights().remove(self.asked.question.key());
        drop(self.flight.take());
    }
}
