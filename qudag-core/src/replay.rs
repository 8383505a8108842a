//! Ids that were taken once and are not taken again.
//!
//! An id is a UUID (RFC 9562), as a number. It is remembered for a window of time, for each client by itself. Where an id has to carry its own time (UUID version 7,
//! section 5.7), only ids whose time lies within the window are taken, and what is forgotten is too old to be taken: then no id is ever
//! taken twice.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often the ids of clients that are silent are looked at.
const SWEEP: Duration = Duration::from_secs(1);

/// What is asked of ids, and how many are remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// For how long an id is remembered, and how far the time of an id may be from now.
    pub window: Duration,
    /// Whether an id has to carry its time.
    pub require_time: bool,
    /// How many ids of one client are remembered.
    pub per_client: usize,
    /// How many ids are remembered in all.
    pub total: usize,
}

/// Why an id is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotTaken {
    /// It was taken before.
    Replayed,
    /// It carries no time, where it has to.
    Timeless,
    /// Its time is longer ago than the window, before the memory begins, or before that of an id that is forgotten.
    Old,
    /// Its time is further ahead than the window.
    Ahead,
    /// So many ids were taken that another one could not be remembered. Nothing is forgotten to make room for it.
    Full {
        /// Whether the client itself is the one with so many.
        of_client: bool,
        /// When the first of the client's ids is forgotten, or the first of all.
        retry_after: Duration,
    },
}

/// The ids that were taken, by client.
#[derive(Debug, Default)]
pub struct Seen {
    clients: HashMap<Arc<str>, Ids>,
    count: usize,
    /// Ids with an earlier time, in milliseconds since 1970, are not taken where they carry one.
    since: u64,
    swept: Option<Instant>,
}

#[derive(Debug, Default)]
struct Ids {
    known: HashSet<u128>,
    /// In the order in which they came.
    order: VecDeque<Entry>,
}

#[derive(Debug)]
struct Entry {
    id: u128,
    /// From when on it is forgotten.
    until: Instant,
    /// The time that it carries and was asked for, in milliseconds since 1970.
    made: Option<u64>,
}

/// The time of a UUID of version 7, in milliseconds since 1970.
fn time_of(id: u128) -> Option<u64> {
    let (version, variant) = ((id >> 76) & 0xf, (id >> 62) & 0b11);
    (version == 7 && variant == 0b10).then_some((id >> 80) as u64)
}

impl Seen {
    /// Takes no id from now on that carries an earlier time than `time` (since 1970). For a memory that begins: what was taken before is not known.
    pub fn begin(&mut self, time: Duration) {
        self.since = self.since.max(millis(time));
    }

    /// How many ids are remembered.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether no id is remembered.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Takes an id, once. `time` is the time since 1970 at `now`; it may jump.
    ///
    /// # Errors
    /// When it is not taken; nothing is remembered then.
    pub fn take(
        &mut self,
        rule: &Rule,
        client: &Arc<str>,
        id: u128,
        now: Instant,
        time: Duration,
    ) -> Result<(), NotTaken> {
        if self.swept.is_none_or(|swept| now.saturating_duration_since(swept) >= SWEEP) {
            self.sweep(now);
        }
        if let Some(ids) = self.clients.get_mut(client) {
            self.count -= ids.forget(now, &mut self.since);
            if ids.known.contains(&id) {
                return Err(NotTaken::Replayed);
            }
        }
        let made = match rule.require_time {
            true => Some(time_of(id).ok_or(NotTaken::Timeless)?),
            false => None,
        };
        if let Some(made) = made {
            let (window, time) = (millis(rule.window), millis(time));
            if made < self.since || made < time.saturating_sub(window) {
                return Err(NotTaken::Old);
            }
            if made > time.saturating_add(window) {
                return Err(NotTaken::Ahead);
            }
        }
        let full = |of_client, next: Option<Instant>| {
            let retry_after = next.map_or(SWEEP, |until| until.saturating_duration_since(now));
            Err(NotTaken::Full { of_client, retry_after })
        };
        if let Some(ids) = self.clients.get(client)
            && ids.known.len() >= rule.per_client
        {
            return full(true, ids.next());
        }
        if self.count >= rule.total {
            self.sweep(now);
            if self.count >= rule.total {
                return full(false, self.clients.values().filter_map(Ids::next).min());
            }
        }
        // An id from the far end of the window can be taken until its time has gone by a whole window: twice the window from now.
        let keep = if rule.require_time { rule.window.saturating_mul(2) } else { rule.window };
        let ids = self.clients.entry(Arc::clone(client)).or_default();
        ids.known.insert(id);
        // A time that no clock can reach is never.
        let until = now.checked_add(keep).unwrap_or(now + Duration::from_secs(u32::MAX.into()));
        ids.order.push_back(Entry { id, until, made });
        self.count += 1;
        Ok(())
    }

    /// Forgets what may be forgotten of all clients.
    fn sweep(&mut self, now: Instant) {
        self.swept = Some(now);
        let (count, since) = (&mut self.count, &mut self.since);
        self.clients.retain(|_, ids| {
            *count -= ids.forget(now, since);
            !ids.known.is_empty()
        });
    }
}

impl Ids {
    /// When the first is forgotten.
    fn next(&self) -> Option<Instant> {
        self.order.front().map(|entry| entry.until)
    }

    /// Forgets what may be forgotten, and says how many. Ids that were not made after one of these are not taken any more, so that a clock
    /// that is set back brings none of them back.
    fn forget(&mut self, now: Instant, since: &mut u64) -> usize {
        let mut forgotten = 0;
        while let Some(entry) = self.order.pop_front_if(|entry| entry.until <= now) {
            self.known.remove(&entry.id);
            forgotten += 1;
            if let Some(made) = entry.made {
                *since = (*since).max(made.saturating_add(1));
            }
        }
        forgotten
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WINDOW: Duration = Duration::from_secs(60);
    const RULE: Rule = Rule { window: WINDOW, require_time: false, per_client: 3, total: 5 };
    const TIMED: Rule = Rule { require_time: true, per_client: 1000, total: 1000, ..RULE };
    /// What the clock shows when a test begins.
    const START: Duration = Duration::from_secs(1_700_000_000);

    /// An id of version 7.
    fn timed(made: Duration, number: u128) -> u128 {
        (made.as_millis() << 80) | (7 << 76) | (0b10 << 62) | number
    }

    struct Memory {
        seen: Seen,
        rule: Rule,
        start: Instant,
    }

    impl Memory {
        fn new(rule: Rule) -> Self {
            Self { seen: Seen::default(), rule, start: Instant::now() }
        }

        /// After so much time, with the clock right.
        fn take(&mut self, client: &str, id: u128, after: Duration) -> Result<(), NotTaken> {
            self.seen.take(&self.rule, &client.into(), id, self.start + after, START + after)
        }
    }

    const MOMENT: Duration = Duration::from_millis(1);

    /// A time that is moved by so many milliseconds.
    fn moved(time: Duration, by: i64) -> Duration {
        let step = Duration::from_millis(by.unsigned_abs());
        if by < 0 { time - step } else { time + step }
    }

    #[test]
    fn an_id_is_taken_once_in_the_window_of_each_client() {
        let mut memory = Memory::new(RULE);
        assert_eq!(memory.take("a", 1, Duration::ZERO), Ok(()));
        assert_eq!(memory.take("a", 1, Duration::ZERO), Err(NotTaken::Replayed));
        assert_eq!(memory.take("b", 1, Duration::ZERO), Ok(()));
        assert_eq!(memory.take("a", 1, WINDOW - MOMENT), Err(NotTaken::Replayed));
        assert_eq!(memory.take("a", 1, WINDOW), Ok(()));
        assert_eq!(memory.take("c", 1, WINDOW + SWEEP), Ok(()));
        assert_eq!(memory.seen.len(), 2, "what b sent is forgotten although b is silent");
    }

    #[test]
    fn a_full_memory_refuses_and_forgets_nothing() {
        let mut memory = Memory::new(RULE);
        for id in 0..3 {
            assert_eq!(memory.take("a", id, MOMENT * id as u32), Ok(()));
        }
        let full = |of_client, retry_after| Err(NotTaken::Full { of_client, retry_after });
        assert_eq!(memory.take("a", 3, MOMENT * 10), full(true, WINDOW - MOMENT * 10));
        assert_eq!(memory.take("a", 0, MOMENT * 10), Err(NotTaken::Replayed));
        assert_eq!(memory.take("b", 3, MOMENT * 10), Ok(()));
        assert_eq!(memory.take("b", 4, MOMENT * 10), Ok(()));
        assert_eq!(memory.take("c", 5, MOMENT * 20), full(false, WINDOW - MOMENT * 20));
        assert_eq!(memory.seen.len(), 5);
        assert_eq!(memory.take("c", 5, WINDOW), Ok(()), "one of a is forgotten");
        assert_eq!(memory.seen.len(), 5);
        memory.rule.total = 0;
        assert_eq!(memory.take("c", 6, WINDOW), full(false, MOMENT));
    }

    #[test]
    fn the_time_of_an_id_has_to_lie_in_the_window() {
        let mut memory = Memory::new(TIMED);
        assert_eq!(memory.take("a", 1, Duration::ZERO), Err(NotTaken::Timeless));
        // The version or the variant alone makes no time.
        assert_eq!(
            memory.take("a", timed(START, 0) & !(0b10 << 62), Duration::ZERO),
            Err(NotTaken::Timeless)
        );
        assert_eq!(memory.take("a", timed(START, 0) ^ (3 << 76), Duration::ZERO), Err(NotTaken::Timeless));
        assert_eq!(memory.take("a", timed(START - WINDOW - MOMENT, 0), Duration::ZERO), Err(NotTaken::Old));
        assert_eq!(memory.take("a", timed(START + WINDOW + MOMENT, 0), Duration::ZERO), Err(NotTaken::Ahead));
        let (first, last) = (timed(START - WINDOW, 0), timed(START + WINDOW, 0));
        for id in [first, last] {
            assert_eq!(memory.take("a", id, Duration::ZERO), Ok(()));
            assert_eq!(memory.take("a", id, Duration::ZERO), Err(NotTaken::Replayed));
        }
        assert_eq!(memory.take("a", last, WINDOW * 2 - MOMENT), Err(NotTaken::Replayed));
        assert_eq!(memory.take("a", last, WINDOW * 2), Err(NotTaken::Old), "it is forgotten, and too old");
    }

    #[test]
    fn a_memory_that_begins_takes_no_older_ids() {
        let mut memory = Memory::new(TIMED);
        memory.seen.begin(START);
        assert_eq!(memory.take("a", timed(START - MOMENT, 0), Duration::ZERO), Err(NotTaken::Old));
        assert_eq!(memory.take("a", timed(START, 0), Duration::ZERO), Ok(()));
    }

    #[test]
    fn an_absurd_time_that_nobody_asked_for_keeps_nobody_out() {
        let mut memory = Memory::new(RULE);
        assert_eq!(memory.take("a", timed(START * 1000, 0), Duration::ZERO), Ok(()));
        memory.rule = TIMED;
        let later = WINDOW * 3;
        assert_eq!(memory.take("a", timed(START + later, 0), later), Ok(()));
    }

    proptest! {
        /// However the clock jumps, and whatever else is sent.
        #[test]
        fn no_id_with_a_time_is_ever_taken_twice(
            steps in prop::collection::vec((0_u64..3, 0_u64..90_000, -200_000_i64..200_000, 0_usize..40, -90_000_i64..90_000), 1..60),
        ) {
            let mut seen = Seen::default();
            let (start, client): (_, Arc<str>) = (Instant::now(), "a".into());
            let (mut now, mut skew, mut ids, mut taken) = (start, 0_i64, Vec::new(), HashSet::new());
            for (what, wait, jump, which, off) in steps {
                now += Duration::from_millis(wait);
                if what == 0 {
                    skew = jump;
                }
                let clock = moved(START + (now - start), skew);
                let id = match ids.get(which) {
                    Some(id) if what == 1 => *id,
                    _ => timed(moved(clock, off), ids.len() as u128),
                };
                ids.push(id);
                if seen.take(&TIMED, &client, id, now, clock).is_ok() {
                    prop_assert!(taken.insert(id), "{id:x} was taken twice");
                }
            }
        }
    }
}
