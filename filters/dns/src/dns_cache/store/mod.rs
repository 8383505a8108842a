//! The cache itself, which outlives reloads and toggles.

mod counts;
mod entry;
#[cfg(any(test, feature = "fault-injection"))]
mod faults;
mod flush;
mod key;
mod table;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use moka::notification::RemovalCause;
use moka::sync::Cache;
use tokio::runtime::Handle;
use tokio::time::Instant;

pub use counts::CacheStats;
pub(crate) use counts::Counts;
pub(crate) use entry::{Entry, SCHEMA};
pub use flush::FlushSelector;
use flush::Flushes;
pub(crate) use flush::parse_type;
pub use key::Key;
pub(crate) use key::Parts;
use key::Seeded;
use table::Hit;

use super::anomaly::{HitRatio, Ratios};
use super::refresh::{Failures, Flights, Keeper, Schedule};
use super::rules::{HARD_LIMIT, Limits};
use super::snapshot::SnapshotFile;

/// A refresh that is due already waits so long, so that data that arrive old are not asked for again and again.
const LEAST_WAIT: Duration = Duration::from_millis(250);

/// More entries than this are taken out after a flush without whoever flushed waiting for it.
const AT_LEISURE: u64 = 1_000;

/// The level that all threads share.
type Store = Cache<Box<[u8]>, Arc<Entry>, Seeded>;

fn store(max_bytes: u64, counts: &Arc<Counts>) -> Store {
    let counts = Arc::clone(counts);
    Cache::builder()
        .max_capacity(max_bytes)
        .weigher(|_, entry: &Arc<Entry>| entry.weight())
        // Only frees the memory of what is not asked for any more; whether an entry is served is decided when it is read.
        .time_to_live(HARD_LIMIT)
        .eviction_listener(move |_, entry: Arc<Entry>, cause| {
            entry.kill();
            if cause == RemovalCause::Size {
                counts.evictions.add();
            }
        })
        .build_with_hasher(Seeded)
}

/// What stays when the cache gets another size.
pub(crate) struct Lasting {
    flushes: Flushes,
    pub(crate) counts: Arc<Counts>,
    pub(crate) failures: Failures,
    pub(crate) schedule: Schedule,
    pub(crate) keeper: Keeper,
    pub(crate) snapshots: Snapshots,
    ratio: Mutex<(HitRatio, Ratios)>,
}

/// What is known of the snapshot on disk.
#[derive(Default)]
pub(crate) struct Snapshots {
    /// Held while the file is written or removed.
    pub(crate) writing: Mutex<()>,
    /// When it was written.
    pub(crate) written: Mutex<Option<Instant>>,
    /// Where the latest generation that has gone kept it.
    pub(crate) last: Mutex<Option<SnapshotFile>>,
}

/// The replies, and how often they were of use.
pub struct CacheState {
    /// Another one for each state, so that no thread takes one's table for another's.
    id: u64,
    store: ArcSwap<Store>,
    max_bytes: u64,
    lasting: Arc<Lasting>,
    /// What asks upstream, of each generation that is alive, the newest last.
    generations: Mutex<Vec<Weak<Flights>>>,
    /// The runtime that the latest query came on; what the cache asks by itself goes out on the same one.
    data: Mutex<Option<Handle>>,
    kept: AtomicBool,
}

/// What became of an entry that a query found.
enum Tried<R> {
    Served(R),
    Over,
    Damaged,
}

impl CacheState {
    /// An empty cache of at most so many bytes.
    pub fn new(max_bytes: u64) -> Self {
        let lasting = Lasting {
            flushes: Flushes::default(),
            counts: Arc::new(Counts::new()),
            failures: Failures::default(),
            schedule: Schedule::default(),
            keeper: Keeper::default(),
            snapshots: Snapshots::default(),
            ratio: Mutex::default(),
        };
        Self::with(max_bytes, Arc::new(lasting))
    }

    fn with(max_bytes: u64, lasting: Arc<Lasting>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            store: ArcSwap::from_pointee(store(max_bytes, &lasting.counts)),
            max_bytes,
            lasting,
            generations: Mutex::default(),
            data: Mutex::default(),
            kept: AtomicBool::new(false),
        }
    }

    /// A cache of another size with the same entries, as far as they fit, and the same counts. Flushes of either concern both.
    pub(super) fn resized(&self, max_bytes: u64) -> Self {
        let resized = Self::with(max_bytes, Arc::clone(&self.lasting));
        for (key, entry) in self.store.load().iter() {
            resized.store.load().insert(Box::clone(&key), entry);
        }
        resized
    }

    /// The most bytes that there may be.
    pub fn max_bytes(&self) -> u64 {
        self.max_bytes
    }

    pub(crate) fn lasting(&self) -> &Lasting {
        &self.lasting
    }

    pub(crate) fn counts(&self) -> &Counts {
        &self.lasting.counts
    }

    /// Which flush the cache is at. A reply that was asked for in one epoch is not stored in another.
    pub(crate) fn epoch(&self) -> u64 {
        self.lasting.flushes.epoch()
    }

    /// Gives the entry of a key and its age to `serve` if it is fresh, and counts a hit then. Otherwise counts nothing.
    pub(crate) fn hit<R>(
        &self,
        key: &Key,
        limits: &Limits,
        now: Instant,
        serve: impl FnOnce(&Entry, Duration) -> R,
    ) -> Option<R> {
        // Before anything is looked up: what is found may be gone when a flush begins after this.
        let generation = self.lasting.flushes.generation();
        let (hash, bytes) = (key.hash(), key.bytes());
        let counts = &self.lasting.counts;
        let mut serve = Some(serve);
        let first = table::with(self.id, self.max_bytes, counts, |table| {
            table.hit(hash, bytes, generation, |entry| {
                let tried = self.try_serve(entry, limits, now, &mut serve);
                let served = matches!(tried, Tried::Served(_));
                (tried, served)
            })
        });
        match first.flatten() {
            Some(Hit { value: Tried::Served(value), touch }) => {
                if touch {
                    self.store.load().get(bytes);
                }
                return Some(value);
            }
            Some(Hit { value: Tried::Over, .. }) => return None,
            Some(Hit { value: Tried::Damaged, .. }) | None => {}
        }
        let entry = self.find(bytes)?;
        let Tried::Served(value) = self.try_serve(&entry, limits, now, &mut serve) else { return None };
        let remembered =
            table::with(self.id, self.max_bytes, counts, |table| table.remember(hash, &entry, generation));
        if remembered.is_none() {
            counts.hit_without_table();
        }
        Some(value)
    }

    fn try_serve<R, F: FnOnce(&Entry, Duration) -> R>(
        &self,
        entry: &Arc<Entry>,
        limits: &Limits,
        now: Instant,
        serve: &mut Option<F>,
    ) -> Tried<R> {
        if !entry.is_sound() {
            self.damaged(entry);
            return Tried::Damaged;
        }
        let age = entry.age(now);
        match serve.take_if(|_| age < limits.soft(entry.life())) {
            Some(serve) => {
                if entry.first_asked() {
                    let at = entry.at_age(limits.prefetch_at(entry.life(), entry.dice()));
                    self.plan(entry, at.max(now + LEAST_WAIT));
                }
                Tried::Served(serve(entry, age))
            }
            None => Tried::Over,
        }
    }

    /// Plans a refresh.
    pub(crate) fn plan(&self, entry: &Arc<Entry>, at: Instant) {
        if self.lasting.schedule.push(at, entry) {
            self.lasting.keeper.wake();
        }
    }

    /// The entry of a key as it was stored, fresh or not, unless it was flushed. Counts nothing.
    pub(crate) fn find(&self, key: &[u8]) -> Option<Arc<Entry>> {
        let entry = self.store.load().get(key)?;
        if !entry.is_sound() || entry.key() != key {
            // The key that it was found by; its own may be what is wrong.
            self.store.load().invalidate(key);
            self.damaged(&entry);
            return None;
        }
        (!self.lasting.flushes.took(&entry)).then_some(entry)
    }

    fn damaged(&self, entry: &Entry) {
        entry.kill();
        self.lasting.counts.checksum_failures.add();
        let name = Parts::of(entry.key()).name();
        tracing::error!(?name, "a reply in the DNS cache is not as it was stored; it is thrown away");
    }

    /// Stores an entry, unless there was a flush since its data were asked for. Returns whether it did.
    pub(crate) fn insert(&self, entry: Entry) -> bool {
        let epoch = self.lasting.flushes.hold();
        if *epoch != entry.epoch() {
            return false;
        }
        self.store.load().insert(entry.key().into(), Arc::new(entry));
        self.lasting.counts.inserts.add();
        true
    }

    /// Removes the entry of a key: its server answered something that cannot be kept.
    pub(crate) fn remove(&self, key: &[u8]) {
        self.store.load().invalidate(key);
    }

    /// Whether an entry that somebody still holds is the cache's.
    pub(crate) fn holds(&self, entry: &Entry) -> bool {
        entry.is_alive() && !self.lasting.flushes.took(entry)
    }

    /// The entries that may be served, fresh or not.
    pub(crate) fn entries(&self) -> Vec<Arc<Entry>> {
        let store = self.store.load();
        let held = store.iter().map(|(_, entry)| entry);
        held.filter(|entry| entry.is_sound() && self.holds(entry)).collect()
    }

    /// Removes entries and returns how many there were. From the moment when it returns, and long before, no query is answered with
    /// what was asked for before.
    pub fn flush(&self, selector: &FlushSelector) -> u64 {
        let now = Instant::now();
        let old = self.forbid(selector, now);
        self.lasting.counts.flushes.add();
        lock(&self.lasting.ratio).0.flushed(now);
        if let Some(file) = self.snapshot_file() {
            // It may hold what was flushed; the next one will not.
            file.remove(&self.lasting.snapshots);
        }
        // Nobody is given them any more; this frees their memory and counts them.
        match old {
            Some(old) => {
                old.run_pending_tasks();
                old.entry_count()
            }
            None => {
                let store = self.store.load_full();
                let gone = store
                    .iter()
                    .filter(|(key, entry)| selector.matches(key) && self.lasting.flushes.took(entry));
                let keys: Vec<_> = gone.map(|(key, _)| key).collect();
                let count = keys.len() as u64;
                let lasting = Arc::clone(&self.lasting);
                let take_out = move || {
                    for key in keys {
                        // There may be a new entry by now.
                        if store.get(key.as_ref()).is_some_and(|entry| lasting.flushes.took(&entry)) {
                            store.invalidate(key.as_ref());
                        }
                    }
                    store.run_pending_tasks();
                };
                match self.runtime().filter(|_| count > AT_LEISURE) {
                    Some(runtime) => drop(runtime.spawn_blocking(take_out)),
                    None => take_out(),
                }
                count
            }
        }
    }

    /// From the moment when this returns nothing that matches and was asked for before is served, stored or restored. What is in the way of
    /// that is taken out afterwards; the whole store, when it is all of it, is returned.
    fn forbid(&self, selector: &FlushSelector, now: Instant) -> Option<Arc<Store>> {
        let empty = (*selector == FlushSelector::All).then(|| store(self.max_bytes, &self.lasting.counts));
        let mut old = None;
        self.lasting.flushes.bury(selector, now, || {
            old = empty.map(|empty| self.store.swap(Arc::new(empty)));
        });
        self.lasting.failures.clear();
        old
    }

    /// A generation that asks upstream from now on.
    pub(crate) fn join(&self, flights: &Arc<Flights>) {
        let mut generations = lock(&self.generations);
        generations.retain(|generation| generation.strong_count() > 0);
        generations.push(Arc::downgrade(flights));
    }

    /// What asks upstream in the newest generation that is alive. `None` when the cache is switched off.
    pub(crate) fn newest(&self) -> Option<Arc<Flights>> {
        lock(&self.generations).iter().rev().find_map(Weak::upgrade)
    }

    fn snapshot_file(&self) -> Option<SnapshotFile> {
        match self.newest() {
            Some(flights) => flights.policy().snapshot.clone(),
            None => lock(&self.lasting.snapshots.last).clone(),
        }
    }

    /// Starts the task that keeps the cache warm and its metrics right, once there is a runtime.
    pub(crate) fn keep(self: &Arc<Self>) {
        if self.kept.load(Ordering::Relaxed) {
            return;
        }
        if let Ok(runtime) = Handle::try_current()
            && !self.kept.swap(true, Ordering::Relaxed)
        {
            drop(runtime.spawn(Keeper::run(Arc::downgrade(self))));
        }
    }

    /// Remembers the runtime that queries come on.
    pub(crate) fn served_here(&self) {
        if let Ok(runtime) = Handle::try_current() {
            *lock(&self.data) = Some(runtime);
        }
    }

    /// The runtime that queries come on, or the current one.
    pub(crate) fn runtime(&self) -> Option<Handle> {
        lock(&self.data).clone().or_else(|| Handle::try_current().ok())
    }

    /// Brings the metrics up to date.
    pub(crate) fn publish(&self, now: Instant) {
        let (store, counts) = (self.store.load(), &self.lasting.counts);
        store.run_pending_tasks();
        counts.entries.set(store.entry_count() as f64);
        counts.bytes.set(store.weighted_size() as f64);
        let mut ratio = lock(&self.lasting.ratio);
        ratio.1 = ratio.0.sample(now, counts.hits(), counts.misses.get());
        counts.hit_ratio_short.set(ratio.1.short);
        counts.hit_ratio_long.set(ratio.1.long);
        counts.anomaly.set(f64::from(u8::from(ratio.1.anomaly)));
        drop(ratio);
        counts.snapshot_age.set(self.snapshot_age(now).unwrap_or(0.0));
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let rebuild = &counts.rebuild;
        let pending = load(&rebuild.total).saturating_sub(load(&rebuild.done) + load(&rebuild.failed));
        let running = rebuild.running.load(Ordering::Relaxed);
        counts.rebuild_pending.set(if running { pending as f64 } else { 0.0 });
    }

    fn snapshot_age(&self, now: Instant) -> Option<f64> {
        let written = *lock(&self.lasting.snapshots.written);
        written.map(|written| now.saturating_duration_since(written).as_secs_f64())
    }

    /// What the cache has done and holds.
    pub fn stats(&self) -> CacheStats {
        let now = Instant::now();
        self.publish(now);
        let (store, counts) = (self.store.load(), &self.lasting.counts);
        let (hits, misses) = (counts.hits(), counts.misses.get());
        let ratios = lock(&self.lasting.ratio).1;
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let all = hits + misses;
        CacheStats {
            entries: store.entry_count(),
            bytes: store.weighted_size(),
            max_bytes: self.max_bytes,
            hits,
            misses,
            inserts: counts.inserts.get(),
            evictions: counts.evictions.get(),
            expired: counts.expired.get(),
            flushes: counts.flushes.get(),
            stale_failed: counts.stale_failed.get(),
            stale_slow: counts.stale_slow.get(),
            prefetches: counts.prefetches.get(),
            prefetch_failures: counts.prefetch_failures.get(),
            failures_served: counts.failures_served.get(),
            checksum_failures: counts.checksum_failures.get(),
            rebuilding: counts.rebuild.running.load(Ordering::Relaxed),
            rebuild_total: load(&counts.rebuild.total),
            rebuild_done: load(&counts.rebuild.done),
            rebuild_failed: load(&counts.rebuild.failed),
            snapshot_restored: counts.snapshot_restored.get(),
            snapshot_failures: counts.snapshots_failed.get() + counts.snapshots_refused.get(),
            snapshot_age_seconds: self.snapshot_age(now),
            hit_ratio: if all == 0 { 0.0 } else { hits as f64 / all as f64 },
            hit_ratio_short: ratios.short,
            hit_ratio_long: ratios.long,
            hit_ratio_anomaly: ratios.anomaly,
        }
    }
}

impl Drop for CacheState {
    fn drop(&mut self) {
        if let Some(file) = self.snapshot_file() {
            file.write(self, Instant::now());
        }
    }
}

impl std::fmt::Debug for CacheState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CacheState").field("max_bytes", &self.max_bytes).finish_non_exhaustive()
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
pub(super) mod tests;
