//! The task that keeps a cache warm, its metrics right and its snapshot recent.

use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, sleep_until};

use super::failures::is_answer;
use super::flight::{Wish, wait};
use crate::dns_cache::rules::{Limits, pause};
use crate::dns_cache::store::{CacheState, Entry, lock};

/// How often the metrics are brought up to date.
const PUBLISH: Duration = Duration::from_millis(500);
/// How often the snapshot is written.
const SNAPSHOT: Duration = Duration::from_secs(60);
/// How many refreshes there may be at a time.
const AT_ONCE: usize = 64;
/// When to look again for the end of one, should there be so many.
const CROWDED: Duration = Duration::from_millis(10);
/// When there is nothing to wait for.
const LONG: Duration = Duration::from_secs(3600);

/// How many names that failed are told apart.
const FAILED: usize = 16;

/// How the cache's own refreshes fare.
#[derive(Default)]
struct Health {
    /// The entries for which the servers had no answer, since they last had one for any. A few names that always fail
    /// must not keep the others from being refreshed.
    failed: Vec<u64>,
    /// Until when there are none.
    until: Option<Instant>,
}

/// See the module.
pub(crate) struct Keeper {
    wake: Arc<Notify>,
    seats: Arc<Semaphore>,
    health: Mutex<Health>,
}

impl Default for Keeper {
    fn default() -> Self {
        let seats = Arc::new(Semaphore::new(AT_ONCE));
        Self { wake: Arc::default(), seats, health: Mutex::default() }
    }
}

impl Keeper {
    /// There is something to do earlier than there was.
    pub(crate) fn wake(&self) {
        self.wake.notify_one();
    }

    fn paused(&self, now: Instant) -> Option<Instant> {
        lock(&self.health).until.filter(|until| now < *until)
    }

    fn ended(&self, entry: u64, well: bool, now: Instant) {
        let mut health = lock(&self.health);
        if well {
            *health = Health::default();
        } else if health.until.is_none_or(|until| now >= until) && !health.failed.contains(&entry) {
            // Those that began before a pause and fail within it say nothing new.
            if health.failed.len() == FAILED {
                health.failed.remove(0);
            }
            health.failed.push(entry);
            // At most 16.
            let pause = pause(health.failed.len() as u32);
            health.until = (!pause.is_zero()).then(|| now + pause);
        }
    }

    /// Looks after a cache for as long as there is one.
    pub(crate) async fn run(cache: Weak<CacheState>) {
        let start = Instant::now();
        let (mut publish, mut snapshot) = (start, start + SNAPSHOT);
        loop {
            let (wake, next) = {
                let Some(cache) = cache.upgrade() else { return };
                let now = Instant::now();
                if now >= publish {
                    cache.publish(now);
                    publish = now + PUBLISH;
                }
                if now >= snapshot {
                    save(&cache, now);
                    snapshot = now + SNAPSHOT;
                }
                let next = refresh_due(&cache, now).min(publish).min(snapshot);
                (Arc::clone(&cache.lasting().keeper.wake), next)
            };
            tokio::select! {
                () = sleep_until(next) => {}
                () = wake.notified() => {}
            }
        }
    }
}

fn save(cache: &Arc<CacheState>, now: Instant) {
    let file = cache.newest().and_then(|flights| flights.policy().snapshot.clone());
    if let Some(file) = file {
        let cache = Arc::clone(cache);
        drop(tokio::task::spawn_blocking(move || file.write(&cache, now)));
    }
}

/// Starts the refreshes that are due and returns when to come back.
fn refresh_due(cache: &Arc<CacheState>, now: Instant) -> Instant {
    let (keeper, schedule) = (&cache.lasting().keeper, &cache.lasting().schedule);
    let next = || schedule.next().unwrap_or(now + LONG);
    if let Some(until) = keeper.paused(now) {
        return until;
    }
    if next() > now {
        return next();
    }
    let Some(flights) = cache.newest() else {
        // Switched off: nothing is refreshed, and whoever asks once it is on again is the first to ask.
        std::iter::from_fn(|| schedule.pop(now)).for_each(|entry| entry.forget_asked());
        return next();
    };
    if !flights.policy().prefetch {
        std::iter::from_fn(|| schedule.pop(now)).for_each(drop);
        return next();
    }
    loop {
        let Ok(seat) = Arc::clone(&keeper.seats).try_acquire_owned() else { return now + CROWDED };
        let Some(entry) = schedule.pop(now) else { return next() };
        if !cache.holds(&entry) || entry.age(now) >= Limits::hard(entry.life()) {
            continue;
        }
        let policy = flights.policy();
        let failures = &cache.lasting().failures;
        if failures.get(entry.key(), cache.epoch(), policy.failure_ttl, now).is_some() {
            retry(cache, &entry, &policy.limits, now);
            continue;
        }
        let Some(waiting) = flights.refresh(entry.key(), Wish::Newer) else { continue };
        let (cache, limits) = (Arc::clone(cache), policy.limits);
        drop(tokio::spawn(async move {
            let well = is_answer(&wait(waiting).await);
            refreshed(&cache, &entry, &limits, well);
            drop(seat);
        }));
    }
}

/// A refresh has ended.
fn refreshed(cache: &Arc<CacheState>, old: &Entry, limits: &Limits, well: bool) {
    let now = Instant::now();
    cache.lasting().keeper.ended(old.dice(), well, now);
    if !well {
        cache.counts().prefetch_failures.add();
        if let Some(held) = cache.find(old.key()).filter(|held| std::ptr::eq(&**held, old)) {
            retry(cache, &held, limits, now);
        }
        return;
    }
    cache.counts().prefetches.add();
    // Once more for a name that was asked for since the last time: whoever asks every now and then may just have missed a turn.
    if old.was_asked()
        && let Some(new) = cache.find(old.key())
        && new.plan_unasked()
    {
        cache.plan(&new, new.at_age(limits.prefetch_at(new.life(), new.dice())).max(now + CROWDED));
    }
}

/// Plans another attempt after one that failed, as long as the entry is of use.
fn retry(cache: &Arc<CacheState>, entry: &Arc<Entry>, limits: &Limits, now: Instant) {
    let spread = Duration::from_millis(entry.dice() % 500);
    let at = now + limits.retry_after(entry.life()) + spread;
    if entry.age(at) < Limits::hard(entry.life()) {
        cache.plan(entry, at);
    }
}
