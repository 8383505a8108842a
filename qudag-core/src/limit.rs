//! How much may be under way at a server at a time, found from how long it takes.
//!
//! A server that is given more than it can do at a time takes longer for each piece, and beyond a point does less in all. The limit falls when
//! pieces of the same kind take longer than they usually do, at once when the server says that it has too much, and grows again
//! step by step while it is used up and pieces take as long as usual (additive increase, multiplicative decrease, as in RFC 5681; the comparison of a short with a long average
//! is that of "gradient" limiters, of Netflix's concurrency-limits for one).

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// How often the limit is looked at.
const STEP: Duration = Duration::from_millis(100);
/// So many pieces at least, before something is said of how long they take.
const ENOUGH: u32 = 10;
/// What a new piece counts in the short average of its kind.
const SHORT: f64 = 0.05;
/// So many pieces of a kind go into the short average between two looks of the long one.
const PIECES: u32 = 20;
/// What a short average below the long one counts in that: a server that got faster is believed soon,
const DOWN: f64 = 0.2;
/// and one that got slower not before a while.
const UP: Duration = Duration::from_secs(60);
/// A look cuts the limit to this share at the most.
const CUT: f64 = 0.5;
/// What is left of the limit when the server says that it has too much; once in a while, since it says so to all who are under way.
const TOO_MUCH: f64 = 0.75;
const ONCE_IN: Duration = Duration::from_secs(1);
/// The kinds of pieces that are told apart.
const KINDS: usize = 1024;

/// The bounds of a limit. Given at every use, so that a change holds at once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// The least, 1 at least.
    pub min: usize,
    /// The most, which it is as long as nothing speaks against it.
    pub max: usize,
    /// How many times as long as usual pieces may take.
    pub tolerance: f64,
}

/// The limit. `K` says which pieces are alike: a statement's fingerprint, for instance.
#[derive(Debug)]
pub struct Limit<K> {
    /// `None`: the most.
    value: Option<f64>,
    kinds: HashMap<K, Kind>,
    look: Option<Look>,
    too_much: Option<Instant>,
}

/// How long pieces of a kind take, in seconds.
#[derive(Debug)]
struct Kind {
    short: f64,
    long: f64,
    pieces: u32,
    looked: Instant,
}

/// What was seen since the last step.
#[derive(Debug)]
struct Look {
    since: Instant,
    pieces: u32,
    /// Of the logarithms of short by long averages.
    sum: f64,
    /// The most under way.
    most: usize,
}

impl<K> Default for Limit<K> {
    fn default() -> Self {
        Self { value: None, kinds: HashMap::new(), look: None, too_much: None }
    }
}

impl<K: Eq + Hash> Limit<K> {
    /// How much may be under way.
    pub fn get(&self, settings: &Settings) -> usize {
        self.value.map_or(settings.max, |value| (value as usize).max(settings.min).min(settings.max).max(1))
    }

    /// A piece has taken so long, and so many were under way with it.
    pub fn took(&mut self, kind: K, time: Duration, under_way: usize, settings: &Settings, now: Instant) {
        let ratio = self.ratio(kind, time.as_secs_f64().max(1e-6), now);
        let look = self.look.get_or_insert(Look { since: now, pieces: 0, sum: 0.0, most: 0 });
        look.pieces += 1;
        look.sum += ratio.ln();
        look.most = look.most.max(under_way);
        if look.pieces < ENOUGH || now.saturating_duration_since(look.since) < STEP {
            return;
        }
        let (slower, used_up) = ((look.sum / f64::from(look.pieces)).exp(), look.most >= self.get(settings));
        self.look = None;
        let value = self.get(settings) as f64;
        let tolerance = settings.tolerance.max(1.0);
        if slower > tolerance {
            self.set(value * (tolerance / slower).max(CUT), settings);
        } else if used_up && self.value.is_some() {
            self.set(value + 1.0, settings);
        }
    }

    /// The server says that it has too much, or takes no connection.
    pub fn too_much(&mut self, settings: &Settings, now: Instant) {
        if self.too_much.is_some_and(|last| now.saturating_duration_since(last) < ONCE_IN) {
            return;
        }
        self.too_much = Some(now);
        self.look = None;
        self.set(self.get(settings) as f64 * TOO_MUCH, settings);
    }

    fn set(&mut self, value: f64, settings: &Settings) {
        let value = value.max(settings.min.max(1) as f64);
        self.value = (value < settings.max as f64).then_some(value);
    }

    /// How many times as long as usual pieces of a kind take now; 1 of a new kind.
    fn ratio(&mut self, kind: K, seconds: f64, now: Instant) -> f64 {
        if !self.kinds.contains_key(&kind) && self.kinds.len() >= KINDS {
            // Those that were not seen for longest are forgotten, half of them at once: this is rare.
            let mut seen: Vec<_> = self.kinds.values().map(|kind| kind.looked).collect();
            seen.sort();
            let middle = seen.get(seen.len() / 2).copied().unwrap_or(now);
            self.kinds.retain(|_, kind| kind.looked > middle);
        }
        let new = Kind { short: seconds, long: seconds, pieces: 0, looked: now };
        let kind = self.kinds.entry(kind).or_insert(new);
        kind.short += SHORT * (seconds - kind.short);
        kind.pieces += 1;
        if kind.pieces >= PIECES {
            let passed = now.saturating_duration_since(kind.looked).as_secs_f64();
            let slowly = 1.0 - (-passed / UP.as_secs_f64()).exp();
            let weight = if kind.short < kind.long { DOWN } else { slowly };
            kind.long += weight * (kind.short - kind.long);
            (kind.pieces, kind.looked) = (0, now);
        }
        kind.short / kind.long
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: Settings = Settings { min: 2, max: 64, tolerance: 2.0 };

    /// A server with `cores` that does its work in `base` and, with more than it has cores for, takes more than its share longer. Runs closed:
    /// as much is under way as the limit allows. Returns the pieces done in each second, and the limit after it.
    fn run(limit: &mut Limit<u8>, start: Instant, cores: f64, base: f64, seconds: u32) -> Vec<(u32, usize)> {
        let mut random = fastrand::Rng::with_seed(5);
        let mut now = start;
        (0..seconds)
            .map(|second| {
                let end = start + Duration::from_secs(u64::from(second) + 1);
                let mut done = 0;
                while now < end {
                    let under_way = limit.get(&SETTINGS);
                    let crowd = (under_way as f64 / cores).max(1.0);
                    let takes = base * crowd.powf(1.5);
                    now += Duration::from_secs_f64(takes / under_way as f64);
                    let takes = Duration::from_secs_f64(takes * (0.5 + random.f64()));
                    limit.took((done % 3) as u8, takes, under_way, &SETTINGS, now);
                    done += 1;
                }
                (done, limit.get(&SETTINGS))
            })
            .collect()
    }

    #[test]
    fn a_server_that_has_enough_room_is_used_in_full() {
        let mut limit = Limit::default();
        let seconds = run(&mut limit, Instant::now(), 100.0, 0.01, 20);
        assert!(seconds.iter().all(|(_, limit)| *limit == 64), "{seconds:?}");
    }

    #[test]
    fn a_server_that_gets_slow_is_given_less_and_more_again_when_it_is_well() {
        let (mut limit, start) = (Limit::default(), Instant::now());
        let well = run(&mut limit, start, 100.0, 0.01, 10);
        let slow = run(&mut limit, start + Duration::from_secs(10), 8.0, 0.01, 10);
        println!("well {well:?}\nslow {slow:?}");
        let (done, now) = slow[9];
        assert!((4..=24).contains(&now), "{slow:?}");
        // At 64 it would do 8 cores' work by the root of 8 slower: 800 / 2.83.
        assert!(done > 400, "{slow:?}");
        let again = run(&mut limit, start + Duration::from_secs(20), 100.0, 0.01, 10);
        assert_eq!(again[9].1, 64, "{again:?}");
    }

    #[test]
    fn kinds_of_pieces_are_not_taken_for_each_other() {
        let (mut limit, mut now) = (Limit::default(), Instant::now());
        for round in 0..1000 {
            now += 2 * Duration::from_millis(1);
            // First mostly short ones, then mostly long ones.
            let kind = u8::from(round % 10 < if round < 500 { 1 } else { 9 });
            let takes = Duration::from_millis(if kind == 0 { 1 } else { 200 });
            limit.took(kind, takes, 64, &SETTINGS, now);
        }
        assert_eq!(limit.get(&SETTINGS), 64);
    }

    #[test]
    fn too_much_is_heard_once_in_a_while_and_within_the_bounds() {
        let (mut limit, now) = (Limit::<u8>::default(), Instant::now());
        for _ in 0..100 {
            limit.too_much(&SETTINGS, now);
        }
        assert_eq!(limit.get(&SETTINGS), 48);
        for second in 1..100 {
            limit.too_much(&SETTINGS, now + Duration::from_secs(second));
        }
        assert_eq!(limit.get(&SETTINGS), 2);
        assert_eq!(limit.get(&Settings { min: 5, max: 3, ..SETTINGS }), 3, "never above the most");
    }

    #[test]
    fn memory_is_bounded() {
        let (mut limit, start) = (Limit::default(), Instant::now());
        for kind in 0..10 * KINDS {
            let now = start + Duration::from_millis(kind as u64);
            limit.took(kind, Duration::from_millis(1), 1, &SETTINGS, now);
            assert!(limit.kinds.len() <= KINDS);
        }
    }
}
