//! The replies, and who is asking for them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use metrics::{counter, gauge};
use moka::sync::Cache;
use serde::Serialize;
use tokio::sync::watch;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::CacheRule;
use crate::session::is_lasting;

/// No reply is given again when it is older, whatever a rule says.
pub(super) const LONGEST: Duration = Duration::from_secs(300);
/// What an entry takes beside its bytes.
const OVERHEAD: usize = 256;

/// Not known to whoever could write into memory or a query.
static SEED: LazyLock<u64> = LazyLock::new(|| fastrand::u64(..));

struct Entry {
    reply: Bytes,
    checksum: u64,
    rule: Arc<CacheRule>,
    /// When the server was asked.
    begun: Instant,
}

fn checksum(key: &[u8], reply: &[u8]) -> u64 {
    xxh3_64_with_seed(reply, xxh3_64_with_seed(key, *SEED))
}

/// The cache. Kept while the filter is off, until its entries are too old.
pub struct QueryCacheState {
    entries: Cache<Bytes, Arc<Entry>>,
    flights: Mutex<HashMap<Bytes, watch::Receiver<()>>>,
    /// How often something was flushed: what was asked before is not kept after.
    flushes: AtomicU64,
    max_reply: usize,
}

impl std::fmt::Debug for QueryCacheState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QueryCacheState")
            .field("entries", &self.entries.entry_count())
            .finish_non_exhaustive()
    }
}

/// What is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct CacheStats {
    /// Replies.
    pub entries: u64,
    /// Bytes of them and their keys.
    pub bytes: u64,
}

/// What there is for a question.
#[derive(Debug)]
pub(super) enum Look {
    Hit(Bytes),
    /// Nobody asks yet: ask, and say what came.
    Ask(Filling),
    /// Somebody asks; look again when this ends.
    Wait(watch::Receiver<()>),
}

/// A question that is being asked. Others wait for it until this is dropped.
pub struct Filling {
    state: Arc<QueryCacheState>,
    key: Bytes,
    rule: Arc<CacheRule>,
    begun: Instant,
    flushes: u64,
    /// Its end wakes those up who wait.
    flight: Option<watch::Sender<()>>,
}

impl std::fmt::Debug for Filling {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Filling").field("rule", &self.rule.name).finish_non_exhaustive()
    }
}

impl QueryCacheState {
    pub(super) fn new(max_bytes: u64, max_reply: usize) -> Self {
        let weigh = |key: &Bytes, entry: &Arc<Entry>| {
            u32::try_from(key.len() + entry.reply.len() + OVERHEAD).unwrap_or(u32::MAX)
        };
        let entries = Cache::builder().max_capacity(max_bytes).weigher(weigh).time_to_live(LONGEST).build();
        Self { entries, flights: Mutex::default(), flushes: AtomicU64::new(0), max_reply }
    }

    fn flights(&self) -> MutexGuard<'_, HashMap<Bytes, watch::Receiver<()>>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What there is for a question, of a session that has changed something at `changed`: no reply from before that.
    pub(super) fn look(
        self: &Arc<Self>,
        key: &Bytes,
        rule: &Arc<CacheRule>,
        changed: Option<Instant>,
        now: Instant,
    ) -> Look {
        if let Some(reply) = self.get(key, rule, changed, now) {
            return Look::Hit(reply);
        }
        let mut flights = self.flights();
        if let Some(flight) = flights.get(key) {
            return Look::Wait(flight.clone());
        }
        // It may have come in this moment.
        if let Some(reply) = self.get(key, rule, changed, now) {
            return Look::Hit(reply);
        }
        let (sender, receiver) = watch::channel(());
        flights.insert(key.clone(), receiver);
        Look::Ask(Filling {
            state: Arc::clone(self),
            key: key.clone(),
            rule: Arc::clone(rule),
            begun: now,
            flushes: self.flushes.load(Relaxed),
            flight: Some(sender),
        })
    }

    fn get(&self, key: &Bytes, rule: &CacheRule, changed: Option<Instant>, now: Instant) -> Option<Bytes> {
        let entry = self.entries.get(key)?;
        let age = now.saturating_duration_since(entry.begun);
        if age >= rule.ttl.0.min(LONGEST) || changed.is_some_and(|changed| entry.begun < changed) {
            return None;
        }
        if checksum(key, &entry.reply) != entry.checksum {
            counter!("qudag_sidecar_db_cache_checksum_failures_total").increment(1);
            self.entries.invalidate(key);
            return None;
        }
        Some(entry.reply.clone())
    }

    /// Forgets what a rule has kept, or what was read from a table by the rules that name it, or all. Returns how many replies.
    pub fn flush(&self, rule: Option<&str>, table: Option<&str>) -> usize {
        self.flushes.fetch_add(1, Relaxed);
        let mut gone = 0;
        for (key, entry) in &self.entries {
            let of_table = |table: &str| entry.rule.tables.iter().any(|known| known == table);
            if rule.is_none_or(|rule| rule == entry.rule.name) && table.is_none_or(of_table) {
                self.entries.invalidate(&*key);
                gone += 1;
            }
        }
        gone
    }

    /// What is held.
    pub fn stats(&self) -> CacheStats {
        CacheStats { entries: self.entries.entry_count(), bytes: self.entries.weighted_size() }
    }
}

impl Filling {
    /// The longest reply that is kept.
    pub(crate) fn most(&self) -> usize {
        self.state.max_reply
    }

    /// The reply has come: it is kept when it lasts, and nothing was flushed since it was asked for.
    pub(crate) fn filled(&self, reply: &[u8]) {
        if reply.len() > self.state.max_reply || !is_lasting(reply) {
            return;
        }
        let reply = Bytes::copy_from_slice(reply);
        let checksum = checksum(&self.key, &reply);
        let entry = Arc::new(Entry { reply, checksum, rule: Arc::clone(&self.rule), begun: self.begun });
        self.state.entries.insert(self.key.clone(), entry);
        // A flush in this moment may have missed it.
        if self.state.flushes.load(Relaxed) != self.flushes {
            self.state.entries.invalidate(&self.key);
        }
        let bytes = self.state.entries.weighted_size();
        gauge!("qudag_sidecar_db_cache_bytes").set(bytes as f64);
    }
}

impl Drop for Filling {
    fn drop(&mut self) {
        self.state.flights().remove(&self.key);
        drop(self.flight.take());
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use qudag_filter_api::Period;

    use super::*;
    use crate::wire::backend::Status;
    use crate::wire::build;

    fn rule(name: &str, tables: &[&str]) -> Arc<CacheRule> {
        let tables = tables.iter().map(|table| (*table).to_owned()).collect();
        Arc::new(CacheRule { name: name.to_owned(), tables, ttl: Period::secs(10), ..CacheRule::default() })
    }

    fn reply() -> BytesMut {
        let mut out = BytesMut::new();
        build::command_complete(&mut out, "SELECT 0");
        out.extend_from_slice(&build::ready(Status::Idle));
        out
    }

    fn fill(state: &Arc<QueryCacheState>, key: &'static str, rule: &Arc<CacheRule>, now: Instant) {
        let Look::Ask(filling) = state.look(&key.into(), rule, None, now) else { panic!("{key}") };
        filling.filled(&reply());
    }

    fn hits(state: &Arc<QueryCacheState>, key: &'static str, rule: &Arc<CacheRule>, now: Instant) -> bool {
        matches!(state.look(&key.into(), rule, None, now), Look::Hit(_))
    }

    #[test]
    fn a_reply_is_given_until_its_time_is_over_or_its_session_has_written() {
        let (state, rule, now) =
            (Arc::new(QueryCacheState::new(1 << 20, 1000)), rule("a", &[]), Instant::now());
        fill(&state, "k", &rule, now);
        let after = |seconds| now + Duration::from_secs(seconds);
        assert!(hits(&state, "k", &rule, after(9)) && !hits(&state, "k", &rule, after(10)));
        assert!(!hits(&state, "other", &rule, now));
        let changed = |at| state.look(&"k".into(), &rule, Some(at), after(2));
        assert!(matches!(changed(after(1)), Look::Ask(_)) && matches!(changed(now), Look::Hit(_)));
    }

    #[test]
    fn one_asks_and_others_wait_for_its_end_whatever_that_is() {
        let (state, rule, now) =
            (Arc::new(QueryCacheState::new(1 << 20, 1000)), rule("a", &[]), Instant::now());
        let Look::Ask(filling) = state.look(&"k".into(), &rule, None, now) else { panic!() };
        let Look::Wait(waiting) = state.look(&"k".into(), &rule, None, now) else { panic!() };
        filling.filled(b"no reply");
        assert!(waiting.has_changed().is_ok());
        drop(filling);
        assert!(waiting.has_changed().is_err());
        assert!(!hits(&state, "k", &rule, now));
        fill(&state, "k", &rule, now);
        assert!(hits(&state, "k", &rule, now));
        let long = Arc::new(QueryCacheState::new(1 << 20, 5));
        fill(&long, "k", &rule, now);
        assert!(!hits(&long, "k", &rule, now), "longer than it may be");
    }

    #[test]
    fn flushes_are_by_rule_and_table_and_reach_what_is_on_its_way() {
        let (a, b) = (rule("a", &["t", "u"]), rule("b", &["u"]));
        let (state, now) = (Arc::new(QueryCacheState::new(1 << 20, 1000)), Instant::now());
        let refill = || {
            for (key, rule) in [("1", &a), ("2", &b)] {
                if !hits(&state, key, rule, now) {
                    fill(&state, key, rule, now);
                }
            }
        };
        for (rule, table, gone) in [
            (Some("a"), None, 1),
            (None, Some("t"), 1),
            (None, Some("u"), 2),
            (Some("b"), Some("t"), 0),
            (None, None, 2),
        ] {
            refill();
            assert_eq!(state.flush(rule, table), gone, "{rule:?} {table:?}");
        }
        let Look::Ask(filling) = state.look(&"1".into(), &a, None, now) else { panic!() };
        state.flush(Some("a"), None);
        filling.filled(&reply());
        drop(filling);
        assert!(!hits(&state, "1", &a, now));
    }

    #[test]
    fn a_damaged_reply_is_not_given() {
        let (state, rule, now) =
            (Arc::new(QueryCacheState::new(1 << 20, 1000)), rule("a", &[]), Instant::now());
        let checksum = checksum(b"k", &reply());
        for bit in 0..reply().len() * 8 {
            let mut damaged = reply();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let reply = damaged.freeze();
            let entry = Entry { reply, checksum, rule: Arc::clone(&rule), begun: now };
            state.entries.insert("k".into(), Arc::new(entry));
            assert!(!hits(&state, "k", &rule, now), "bit {bit}");
        }
    }
}
