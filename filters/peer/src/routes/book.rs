//! What is known of names and addresses, and when names are asked for again.
//!
//! Asks nobody and reads no clock: who uses this does, and reports what came of it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use qudag_filter_api::{Host, HostPort};

/// The least time between two questions for one name, whoever wants to know.
const APART: Duration = Duration::from_secs(1);
/// The first wait after a failure, of which half is chance; it doubles with each further one.
const AFTER_FAILURE: Duration = Duration::from_secs(2);
/// The longest wait after failures.
const LONGEST: Duration = Duration::from_secs(60);
/// How long an address that failed is tried after the others.
const LAST: Duration = Duration::from_secs(30);
/// The addresses of one name that are kept.
const ADDRESSES: usize = 32;
/// The failed addresses that are kept.
const FAILED: usize = 4096;

/// The bounds of how long an answer is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) min: Duration,
    pub(crate) max: Duration,
}

impl Bounds {
    /// A time within these bounds.
    fn clamp(self, holds: Duration) -> Duration {
        // Not `clamp`, which panics where the bounds are the wrong way round.
        holds.max(self.min).min(self.max)
    }
}

/// How an address is reached. Of two with one address one may fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Over {
    Tcp,
    Udp,
}

/// What is known of a name.
#[derive(Clone, Debug)]
pub(crate) struct Name {
    /// As they were when they last changed.
    pub(crate) ips: Vec<IpAddr>,
    /// When they were last confirmed.
    pub(crate) answered: Option<Instant>,
    /// When it is asked for again.
    pub(crate) next: Instant,
    /// Failures since the last answer.
    pub(crate) failures: u32,
    asked: Option<Instant>,
    asking: bool,
    /// How many questions have come to an end.
    ended: u64,
}

/// A question that is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OnItsWay(u64);

impl Name {
    /// `known`: the last question was answered; `stale`: it was not, but an earlier one; `unknown`.
    pub(crate) fn state(&self) -> &'static str {
        match (self.ips.is_empty(), self.failures) {
            (true, _) => "unknown",
            (false, 0) => "known",
            (false, _) => "stale",
        }
    }
}

/// All names, and the addresses that failed lately.
#[derive(Debug, Default)]
pub(crate) struct Book {
    names: BTreeMap<String, Name>,
    /// Until when they are tried after others.
    failed: HashMap<(Over, SocketAddr), Instant>,
}

impl Book {
    /// Follows these names and forgets all others. Returns whether addresses were forgotten.
    pub(crate) fn keep(&mut self, names: &BTreeSet<String>, now: Instant) -> bool {
        let mut forgot = false;
        self.names.retain(|name, known| {
            let keep = names.contains(name);
            forgot |= !keep && !known.ips.is_empty();
            keep
        });
        for name in names {
            if !self.names.contains_key(name) {
                let new = Name {
                    ips: Vec::new(),
                    answered: None,
                    next: now,
                    failures: 0,
                    asked: None,
                    asking: false,
                    ended: 0,
                };
                self.names.insert(name.clone(), new);
            }
        }
        forgot
    }

    /// All names.
    pub(crate) fn names(&self) -> impl Iterator<Item = (&String, &Name)> {
        self.names.iter()
    }

    /// The addresses of a name as they are known.
    pub(crate) fn ips(&self, name: &str) -> &[IpAddr] {
        self.names.get(name).map_or(&[], |name| &name.ips)
    }

    /// Whether a name was asked for and that has come to an end.
    pub(crate) fn is_settled(&self, name: &str) -> bool {
        self.names.get(name).is_some_and(|name| !name.ips.is_empty() || name.failures > 0)
    }

    /// Whether a question has come to its end.
    pub(crate) fn is_over(&self, name: &str, question: OnItsWay) -> bool {
        self.names.get(name).is_none_or(|name| name.ended > question.0)
    }

    /// How many names are being asked for.
    pub(crate) fn asking(&self) -> usize {
        self.names.values().filter(|name| name.asking).count()
    }

    /// The names to be asked for now, at most so many, those that have waited for longest; each is to be
    /// [`answered`](Self::answered) or [`unanswered`](Self::unanswered).
    pub(crate) fn due(&mut self, most: usize, now: Instant) -> Vec<String> {
        let mut due: Vec<_> =
            self.names.iter_mut().filter(|(_, name)| !name.asking && name.next <= now).collect();
        due.sort_by_key(|(_, name)| name.next);
        due.truncate(most);
        due.into_iter()
            .map(|(key, name)| {
                (name.asking, name.asked) = (true, Some(now));
                key.clone()
            })
            .collect()
    }

    /// When the next name is due, or an address counts as good again.
    pub(crate) fn next(&self) -> Option<Instant> {
        let names = self.names.values().filter(|name| !name.asking).map(|name| name.next);
        names.chain(self.failed.values().copied()).min()
    }

    /// A name has these addresses for so long. Returns whether they are others than before, in whatever order.
    pub(crate) fn answered(
        &mut self,
        name: &str,
        ips: Vec<IpAddr>,
        holds: Duration,
        bounds: Bounds,
        now: Instant,
    ) -> bool {
        let Some(name) = self.names.get_mut(name) else { return false };
        (name.asking, name.failures, name.answered) = (false, 0, Some(now));
        name.ended += 1;
        name.next = now + bounds.clamp(holds);
        let mut distinct = Vec::new();
        for ip in ips.into_iter().take(ADDRESSES) {
            if !distinct.contains(&ip) {
                distinct.push(ip);
            }
        }
        let changed = distinct.len() != name.ips.len() || distinct.iter().any(|ip| !name.ips.contains(ip));
        if changed {
            name.ips = distinct;
        }
        changed
    }

    /// Nobody answered for a name. What was known of it stays.
    pub(crate) fn unanswered(&mut self, name: &str, bounds: Bounds, now: Instant, random: u64) {
        let Some(name) = self.names.get_mut(name) else { return };
        name.asking = false;
        name.ended += 1;
        let wait = AFTER_FAILURE.saturating_mul(1 << name.failures.min(16)).min(LONGEST);
        name.failures = name.failures.saturating_add(1);
        // Half of it at random, so that many sidecars do not ask at once when their resolver is back.
        let half = wait / 2;
        let jitter = half.mul_f64((random % 1024) as f64 / 1024.0);
        name.next = now + (half + jitter).min(bounds.max.max(APART));
    }

    /// Somebody needs to know a name anew: it is due at once, and where it was asked for a moment ago, soon. `None` when an
    /// answer does not come at once.
    pub(crate) fn again(&mut self, name: &str, now: Instant) -> Option<OnItsWay> {
        let name = self.names.get_mut(name)?;
        let on_its_way = OnItsWay(name.ended);
        if name.asking {
            return Some(on_its_way);
        }
        let apart = name.asked.map_or(now, |asked| asked + APART);
        name.next = name.next.min(apart.max(now));
        (apart <= now).then_some(on_its_way)
    }

    /// An address failed. Returns whether it changes places with others.
    pub(crate) fn blame(&mut self, over: Over, address: SocketAddr, now: Instant) -> bool {
        if self.failed.len() >= FAILED && !self.failed.contains_key(&(over, address)) {
            return false;
        }
        self.failed.insert((over, address), now + LAST).is_none()
    }

    /// An address has served. Returns whether it changes places with others.
    pub(crate) fn praise(&mut self, over: Over, address: SocketAddr) -> bool {
        self.failed.remove(&(over, address)).is_some()
    }

    /// Forgets failures that are long ago. Returns whether addresses change places.
    pub(crate) fn forgive(&mut self, now: Instant) -> bool {
        let before = self.failed.len();
        self.failed.retain(|_, until| *until > now);
        self.failed.len() != before
    }

    /// How many addresses are tried after others.
    pub(crate) fn failed(&self) -> usize {
        self.failed.len()
    }

    /// The addresses of these places as they are known, each once; those that failed lately come last.
    pub(crate) fn addresses<'a>(
        &self,
        over: Over,
        places: impl IntoIterator<Item = &'a HostPort>,
    ) -> Vec<SocketAddr> {
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        for HostPort { host, port } in places {
            let ips = match host {
                Host::Ip(ip) => std::slice::from_ref(ip),
                Host::Name(name) => self.ips(name),
            };
            for ip in ips {
                let address = SocketAddr::new(*ip, *port);
                if good.contains(&address) || bad.contains(&address) {
                    continue;
                }
                let side = if self.failed.contains_key(&(over, address)) { &mut bad } else { &mut good };
                side.push(address);
            }
        }
        good.append(&mut bad);
        good
    }
}

#[cfg(test)]
#[path = "book_tests.rs"]
mod tests;
