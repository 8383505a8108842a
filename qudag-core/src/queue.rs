//! A queue in front of places that stays useful under overload: it refuses early what would wait in vain, serves the newest first once
//! it has stood for a while, and gives everybody a fair share.
//!
//! A queue that is long because of a burst, or because as many wait as there are clients, is served in the order of arrival. One in which far more wait
//! than have places and whoever comes would wait longer than is tolerable, and that for [`Settings::standing`], is long because more comes than goes: in the
//! order of arrival everybody would wait until it is too late. Then the newest are
//! served, and whoever has waited for [`Settings::age`] is refused: the controlled delay of Nichols and Jacobson (RFC 8289), as servers use it
//! (B. Maurer, "Fail at Scale", ACM Queue 13(8), 2015).
//!
//! ```text
//!             arrive                      next                   finished
//!  (nobody) ─────────▶ waiting ─────────────────────▶ running ─────────────▶ (nobody)
//!      │ refused          │ leave, expired
//!      ▼                  ▼
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// The time over which the drain rate is averaged, as far as somebody waited.
const WINDOW: Duration = Duration::from_millis(500);
/// After so long nothing of it is left that a number could hold.
const FORGOTTEN: Duration = Duration::from_secs(40);
/// Nothing is said of the rate before somebody has waited for so long in all.
const KNOWN: Duration = Duration::from_millis(50);

/// A queue is not overloaded any more when nobody was refused for so long.
const CALM: Duration = Duration::from_secs(1);

/// A queue is not overloaded while no more than so many wait for each place that is in use: what is done in the places takes long then.
const FEW: usize = 2;

/// A time that is as good as never.
const FAR: Duration = Duration::from_secs(86_400);

/// What a queue does. Given at every use, so that a change holds at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The most that wait.
    pub most: usize,
    /// The most bytes that those who wait hold.
    pub bytes: usize,
    /// How long anybody waits.
    pub wait: Duration,
    /// Whoever comes may wait so long in the order of arrival.
    pub tolerable: Duration,
    /// The queue is overloaded when that has not been so for so long.
    pub standing: Duration,
    /// How long anybody waits while it is.
    pub age: Duration,
}

/// Somebody who waits. Later ones are greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(u64);

/// Why somebody gets no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// As many wait as may.
    Full,
    /// Those who wait hold as many bytes as they may.
    Bytes,
    /// By the rate at which others got places it would have been too late.
    Hopeless,
    /// The time to wait is over.
    Late,
    /// It was the oldest in an overloaded queue.
    Overload,
}

impl Refusal {
    /// The label for metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Bytes => "bytes",
            Self::Hopeless => "hopeless",
            Self::Late => "late",
            Self::Overload => "overload",
        }
    }
}

#[derive(Debug)]
struct Entry<K> {
    of: K,
    bytes: usize,
    since: Instant,
    deadline: Instant,
}

/// What one of those who share the places has.
#[derive(Debug, Default)]
struct Share {
    waiting: BTreeSet<Ticket>,
    running: usize,
    /// The number of the place that it got last.
    served: u64,
}

/// The queue. `K` is whose request it is: a user, for instance.
#[derive(Debug)]
pub struct Queue<K> {
    entries: BTreeMap<Ticket, Entry<K>>,
    deadlines: BTreeSet<(Instant, Ticket)>,
    shares: BTreeMap<K, Share>,
    bytes: usize,
    /// Places in use.
    running: usize,
    next: u64,
    served: u64,
    /// Since when whoever comes waits longer than is tolerable.
    since: Option<Instant>,
    /// Overloaded, and when somebody was refused for that last.
    overloaded: Option<Instant>,
    /// When that was looked at last.
    judged: Option<Instant>,
    drain: DrainRate,
}

impl<K> Default for Queue<K> {
    fn default() -> Self {
        Self {
            entries: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            shares: BTreeMap::new(),
            bytes: 0,
            running: 0,
            next: 0,
            served: 0,
            since: None,
            overloaded: None,
            judged: None,
            drain: DrainRate::default(),
        }
    }
}

impl<K: Clone + Ord> Queue<K> {
    /// Somebody wants a place; to be followed by [`Queue::next`] while places are free, and by [`Queue::expired`]. `deadline` is the
    /// caller's own, where it has one.
    ///
    /// # Errors
    /// When waiting is no use, with the time after which it may be.
    pub fn arrive(
        &mut self,
        of: &K,
        bytes: usize,
        deadline: Option<Instant>,
        settings: &Settings,
        now: Instant,
    ) -> Result<Ticket, (Refusal, Duration)> {
        let latest = now.checked_add(settings.wait).unwrap_or(now + FAR);
        let deadline = deadline.map_or(latest, |deadline| deadline.min(latest));
        self.judge(settings, now);
        let overloaded = self.is_overloaded(settings, now);
        let expected = self.expected_wait(now);
        let refused = if self.entries.len() >= settings.most && !overloaded {
            Some(Refusal::Full)
        } else if self.bytes.saturating_add(bytes) > settings.bytes && !self.entries.is_empty() {
            Some(Refusal::Bytes)
        } else if deadline <= now {
            Some(Refusal::Late)
        } else if !overloaded && now.checked_add(expected).is_none_or(|served| served > deadline) {
            // An overloaded queue serves the newest first: what waits says nothing of how long this one would.
            Some(Refusal::Hopeless)
        } else {
            None
        };
        if let Some(refusal) = refused {
            return Err((refusal, self.retry_after(settings, now)));
        }
        let ticket = Ticket(self.next);
        self.next += 1;
        self.tick(now);
        self.bytes += bytes;
        self.deadlines.insert((deadline, ticket));
        self.shares.entry(of.clone()).or_default().waiting.insert(ticket);
        self.entries.insert(ticket, Entry { of: of.clone(), bytes, since: now, deadline });
        self.judge(settings, now);
        Ok(ticket)
    }

    /// A place is free: who gets it, [`Queue::expired`] having been asked. Of those who share the places it is one of who has the fewest, and of these of who has waited for one the
    /// longest; of its own, the first, or in an overloaded queue the last. The place counts as its own until [`Queue::finished`].
    pub fn next(&mut self, settings: &Settings, now: Instant) -> Option<Ticket> {
        self.judge(settings, now);
        let overloaded = self.is_overloaded(settings, now);
        let waiting = self.shares.iter().filter(|(_, share)| !share.waiting.is_empty());
        let (of, _) = waiting.min_by_key(|(_, share)| (share.running, share.served))?;
        let of = of.clone();
        let share = self.shares.get_mut(&of)?;
        let ticket = *if overloaded { share.waiting.last() } else { share.waiting.first() }?;
        self.served += 1;
        self.running += 1;
        share.running += 1;
        share.served = self.served;
        self.tick(now);
        self.drain.one();
        self.remove(ticket);
        Some(ticket)
    }

    /// Somebody gets a place without waiting, since one was free and nobody waited. It counts until [`Queue::finished`].
    pub fn take(&mut self, of: &K) {
        // How fast others got places while none was free says nothing now.
        self.drain = DrainRate::default();
        self.served += 1;
        self.running += 1;
        let share = self.shares.entry(of.clone()).or_default();
        share.running += 1;
        share.served = self.served;
    }

    /// The place of somebody is free again.
    pub fn finished(&mut self, of: &K) {
        self.running = self.running.saturating_sub(1);
        if let Some(share) = self.shares.get_mut(of) {
            share.running = share.running.saturating_sub(1);
            if share.running == 0 && share.waiting.is_empty() {
                self.shares.remove(of);
            }
        }
    }

    /// Somebody waits no longer: it has hung up, or was cancelled. Returns whether it was waiting.
    pub fn leave(&mut self, ticket: Ticket, now: Instant) -> bool {
        self.tick(now);
        self.remove(ticket)
    }

    /// Who is to be refused now, each of whom waits no longer.
    pub fn expired(&mut self, settings: &Settings, now: Instant) -> Vec<(Ticket, Refusal)> {
        self.tick(now);
        self.judge(settings, now);
        let mut out = Vec::new();
        while let Some((_, ticket)) = self.deadlines.first().filter(|(deadline, _)| *deadline <= now).copied()
        {
            self.remove(ticket);
            out.push((ticket, Refusal::Late));
        }
        while self.is_overloaded(settings, now) {
            let (Some((_, oldest)), depth) = (self.entries.first_key_value(), self.entries.len()) else {
                break;
            };
            let old = now.saturating_duration_since(oldest.since) >= settings.age;
            let known = self.drain.rate(self.running).map(|rate| rate * settings.age.as_secs_f64());
            // More than get a place before they are too old; the last one stays in any case.
            let many = known.is_some_and(|room| depth as f64 > room.max(1.0)) || depth > settings.most;
            if !old && !many {
                break;
            }
            let Some(victim) = (if old { self.entries.keys().next().copied() } else { self.victim() }) else {
                break;
            };
            self.remove(victim);
            self.overloaded = Some(now);
            out.push((victim, Refusal::Overload));
        }
        out
    }

    /// When [`Queue::expired`] has to be asked again, if nothing happens before.
    pub fn wake(&self, settings: &Settings) -> Option<Instant> {
        let deadline = self.deadlines.first().map(|(deadline, _)| *deadline);
        let old = self.entries.first_key_value().map(|(_, oldest)| oldest.since + settings.age);
        if self.overloaded.is_some() {
            return deadline.into_iter().chain(old).min();
        }
        let standing = self.since.or(self.judged).map(|since| since + settings.standing);
        deadline.into_iter().chain(standing.zip(old).map(|(standing, old)| standing.max(old))).min()
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Since when the oldest waits.
    pub fn oldest(&self) -> Option<Instant> {
        self.entries.first_key_value().map(|(_, oldest)| oldest.since)
    }

    /// Whether the newest are served first.
    pub fn is_overloaded(&self, settings: &Settings, now: Instant) -> bool {
        self.overloaded.is_some()
            || self.since.is_some_and(|since| now.saturating_duration_since(since) >= settings.standing)
    }

    /// How long one more would wait in the order of arrival; zero while that is not known.
    pub fn expected_wait(&self, now: Instant) -> Duration {
        let mut drain = self.drain;
        drain.tick(now, !self.entries.is_empty());
        let Some(rate) = drain.rate(self.running) else { return Duration::ZERO };
        Duration::try_from_secs_f64(self.entries.len() as f64 / rate).unwrap_or(Duration::MAX)
    }

    /// After how long it may be worth while for whoever is refused to come again: [`Settings::wait`] at most, by which everybody who waits
    /// now has got a place or was refused.
    pub fn retry_after(&self, settings: &Settings, now: Instant) -> Duration {
        self.expected_wait(now).max(settings.age).min(settings.wait)
    }

    /// The oldest of whoever has the most that wait.
    fn victim(&self) -> Option<Ticket> {
        let most = self.shares.values().max_by_key(|share| share.waiting.len())?;
        most.waiting.first().copied()
    }

    /// Looks whether the queue is overloaded. It stays so until nobody was refused for a while: a queue that is short because others are
    /// refused says nothing of how much comes.
    fn judge(&mut self, settings: &Settings, now: Instant) {
        if let Some(refused) = self.overloaded {
            if now.saturating_duration_since(refused) < CALM {
                return;
            }
            self.overloaded = None;
        }
        if self.entries.is_empty() {
            return;
        }
        self.judged = Some(now);
        // Few wait for the end of something long.
        if self.entries.len() <= FEW * self.running || self.expected_wait(now) < settings.tolerable {
            self.since = None;
            return;
        }
        let since = *self.since.get_or_insert(now);
        if now.saturating_duration_since(since) >= settings.standing {
            self.overloaded = Some(now);
        }
    }

    fn tick(&mut self, now: Instant) {
        self.drain.tick(now, !self.entries.is_empty());
    }

    fn remove(&mut self, ticket: Ticket) -> bool {
        let Some(entry) = self.entries.remove(&ticket) else { return false };
        self.deadlines.remove(&(entry.deadline, ticket));
        self.bytes = self.bytes.saturating_sub(entry.bytes);
        if let Some(share) = self.shares.get_mut(&entry.of) {
            share.waiting.remove(&ticket);
            if share.waiting.is_empty() && share.running == 0 {
                self.shares.remove(&entry.of);
            }
        }
        if self.entries.is_empty() {
            self.since = None;
        }
        true
    }
}

/// How many get places in a second while others wait, as an average that forgets exponentially. The time without a queue does not
/// count: what comes then says how much is asked for and not how much can be served.
#[derive(Clone, Copy, Debug, Default)]
struct DrainRate {
    /// The sum of what each one still counts, in seconds to the power of -1.
    sum: f64,
    /// The time in which somebody waited.
    busy: Duration,
    /// The end of that time, in which nobody got a place.
    stalled: Duration,
    last: Option<Instant>,
}

impl DrainRate {
    /// Time has passed, in which somebody waited or not.
    fn tick(&mut self, now: Instant, waiting: bool) {
        let passed =
            self.last.replace(now).map_or(Duration::ZERO, |last| now.saturating_duration_since(last));
        if waiting {
            self.sum *= Self::left(passed);
            self.busy = self.busy.saturating_add(passed);
            self.stalled = self.stalled.saturating_add(passed);
        }
    }

    /// What is left of an average after some time.
    fn left(passed: Duration) -> f64 {
        // What is asked for most costs no exponential function: the same moment, and a queue that has stood for long.
        if passed.is_zero() {
            return 1.0;
        }
        if passed >= FORGOTTEN {
            return 0.0;
        }
        (-passed.as_secs_f64() / WINDOW.as_secs_f64()).exp()
    }

    /// One got a place.
    fn one(&mut self) {
        self.sum += WINDOW.as_secs_f64().recip();
        self.stalled = Duration::ZERO;
    }

    /// How many in a second, while so many places are in use. A stall is taken to last for as long again: the average alone would say after
    /// seconds that it lasts for hours.
    fn rate(&self, places: usize) -> Option<f64> {
        if self.busy < KNOWN {
            return None;
        }
        if self.stalled == self.busy {
            // All places were free before, and all that is known is that none has become so again.
            return Some(places.max(1) as f64 / self.stalled.as_secs_f64());
        }
        // What was before the beginning is missing in the sum.
        let average = self.sum / (1.0 - Self::left(self.busy));
        Some(average.max(self.stalled.max(WINDOW).as_secs_f64().recip()))
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
