//! Whom to ask for one query, and when.
//!
//! Servers are asked one after the other: at once where the last one failed, else when it has been silent for longer than it usually
//! takes (a hedge). Those that are silent are asked again while there is nothing better, for a datagram may have been lost. Those with
//! an open breaker come behind the healthy ones of every list but the last resort. The next ones of these groups are asked when all
//! of the earlier ones failed, or were silent for as long as a server may be.
//!
//! Hedges and repetitions need an allowance: where servers or this host are slow because they have too much to do, asking more
//! often makes it worse. Repetitions of the last hope, when nobody is left who was not asked, may have one of their own: they follow each
//! other so closely, and there are so few of them, that a server may be gone for most of the query's time.
//!
//! A server that has no place for the query is passed over, and asked after a pause. Where nobody is being asked, the query stands in the
//! line of each that has none.

use std::time::Duration;

use tokio::time::Instant;

use super::{List, Rank};

/// How many times servers are asked for one query.
const MOST: u32 = 20;
/// How many repetitions of one query may need no allowance but their own.
const MOST_REPEATS: u32 = 16;
/// Where a hedge is not allowed, or a server has no place, it is tried again after this time.
const PAUSE: Duration = Duration::from_millis(25);
/// A server is asked again after this part of the query's time at the latest, if it usually answers sooner,
const REPEATS: u32 = 6;
/// or after this time if that is longer,
const REPEAT: Duration = Duration::from_millis(250);
/// and after this time at the earliest.
const SOONEST: Duration = Duration::from_millis(50);

/// A server that can be asked.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Candidate {
    /// Where it is configured.
    pub(in super::super) list: List,
    /// How well it is.
    pub(in super::super) rank: Rank,
    /// How long it may be silent before the next one is asked as well.
    pub(in super::super) patience: Duration,
    /// How long it may be silent before it is asked again.
    pub(in super::super) resend: Duration,
}

/// The times of a query.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Times {
    /// The time after which the next list is asked.
    pub(in super::super) attempt: Duration,
    /// The time after which it is over.
    pub(in super::super) timeout: Duration,
    /// The percentage of their time after which repetitions come, so that those of many queries do not meet: 80 to 100.
    pub(in super::super) spread: u32,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Step {
    /// Ask the candidate with this number.
    Ask(usize, Why),
    /// Wait for those that were asked, until a time if there is one.
    Wait(Option<Instant>),
    /// Stand in the line of those that are [`busy`](Plan::busy), until a time if there is one.
    Queue(Option<Instant>),
    /// Nobody is left who could answer.
    Over,
}

/// Why a server is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Why {
    /// It is the first.
    First,
    /// The one before failed.
    Failover,
    /// The one before is silent for longer than it usually is.
    Hedge,
    /// It was asked before and is silent, or could not be reached.
    Again,
}

/// A question that may be asked if it is permitted.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Wish {
    /// Which candidate.
    pub(in super::super) number: usize,
    /// Why it is asked.
    pub(in super::super) why: Why,
    /// For repetitions of the last hope that are not too many: when it was asked last.
    pub(in super::super) repeat_of: Option<Instant>,
}

impl Wish {
    /// Whether it needs an allowance.
    pub(in super::super) fn is_extra(&self) -> bool {
        matches!(self.why, Why::Hedge | Why::Again)
    }
}

/// Whether a question may be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Permit {
    /// It may, and it will be.
    Granted,
    /// There is no allowance for it.
    Denied,
    /// The server has no place for it.
    Busy,
}

/// How a question to a server ended, if not well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum End {
    /// It answered with an error that can be passed on.
    Refused,
    /// It is of no use for this query.
    Useless,
    /// It could not be reached, or broke off; that may be over soon.
    Unreachable,
    /// Something came that is no reply to the query; the reply may still come.
    Strange,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    number: usize,
    tier: u8,
    candidate: Candidate,
    /// How many times it was asked.
    asked: u32,
    /// When it was asked first and last.
    first: Option<Instant>,
    last: Option<Instant>,
    /// Questions that are open.
    open: u32,
    /// When it had no place.
    busy: Option<Instant>,
    /// It is not asked again.
    done: bool,
}

/// The plan of one query.
#[derive(Debug)]
pub(in super::super) struct Plan {
    entries: Vec<Entry>,
    times: Times,
    /// The position of the one that was asked for the first time last, and until when it has time; `None` where it ended badly.
    newest: Option<(usize, Option<Instant>)>,
    asks: u32,
    repeats: u32,
    /// Since when an error is in hand that can be passed on.
    refused: Option<Instant>,
}

impl Plan {
    /// A plan for candidates in their configured order.
    pub(in super::super) fn new(candidates: &[Candidate], times: Times) -> Self {
        let tier = |candidate: &Candidate| match (candidate.list, candidate.rank) {
            (List::Servers, Rank::Clean | Rank::Doubtful) => 0,
            (List::Alternative, Rank::Clean | Rank::Doubtful) => 1,
            (List::Servers, Rank::Open) => 2,
            (List::Alternative, Rank::Open) => 3,
            (List::Direct, _) => 4,
        };
        let mut entries: Vec<_> = candidates
            .iter()
            .enumerate()
            .map(|(number, candidate)| Entry {
                number,
                tier: tier(candidate),
                candidate: *candidate,
                asked: 0,
                first: None,
                last: None,
                open: 0,
                busy: None,
                done: false,
            })
            .collect();
        entries.sort_by_key(|entry| (entry.tier, entry.candidate.rank, entry.number));
        Self { entries, times, newest: None, asks: 0, repeats: 0, refused: None }
    }

    /// What to do now. What is to be asked counts as asked. `permit` decides on each question before; one that it grants is asked.
    pub(in super::super) fn next(&mut self, now: Instant, mut permit: impl FnMut(Wish) -> Permit) -> Step {
        let is_open = self.entries.iter().any(|entry| entry.open > 0);
        let next = loop {
            let Some((due, at, why)) = self.best(now, is_open) else { break None };
            if due > now {
                match self.busy().next() {
                    Some(_) => break Some(due),
                    None => return Step::Wait(Some(due)),
                }
            }
            let Some(wish) = self.wish(at, why) else { break None };
            match permit(wish) {
                Permit::Granted => return self.ask(at, why, now),
                Permit::Denied => break Some(now + PAUSE),
                Permit::Busy => {
                    if let Some(entry) = self.entries.get_mut(at) {
                        entry.busy = Some(now);
                    }
                }
            }
        };
        if !is_open {
            let until = self.refused.map(|since| since + self.times.attempt);
            return match self.busy().next() {
                Some(_) if self.asks < MOST && until.is_none_or(|until| until > now) => {
                    Step::Queue(until.into_iter().chain(next).min())
                }
                _ => Step::Over,
            };
        }
        match self.given_up() {
            Some(until) if until <= now => Step::Over,
            Some(until) => Step::Wait(Some(next.map_or(until, |next| next.min(until)))),
            None => Step::Wait(next),
        }
    }

    /// Those that have no place, while nobody is being asked.
    pub(in super::super) fn busy(&self) -> impl Iterator<Item = usize> {
        self.entries.iter().filter(|entry| entry.busy.is_some() && !entry.done).map(|entry| entry.number)
    }

    /// A candidate that had no place has one for this query.
    pub(in super::super) fn placed(&mut self, number: usize) {
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.number == number) {
            entry.busy = None;
        }
    }

    /// A repetition was sent where the question before is open, and ends with it.
    pub(in super::super) fn joined(&mut self, number: usize) {
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.number == number) {
            entry.open = entry.open.saturating_sub(1);
        }
    }

    /// A question to a candidate ended, or it cannot be asked.
    pub(in super::super) fn ended(&mut self, number: usize, end: End, now: Instant) {
        let Some(at) = self.entries.iter().position(|entry| entry.number == number) else { return };
        let Some(entry) = self.entries.get_mut(at) else { return };
        if end != End::Strange {
            entry.open = entry.open.saturating_sub(1);
        }
        match end {
            End::Refused => self.refused = self.refused.or(Some(now)),
            End::Useless | End::Unreachable | End::Strange => {}
        }
        entry.done |= matches!(end, End::Refused | End::Useless);
        // Only the end of the newest question is a reason to go on: otherwise the next one is being asked already.
        let nobody_open = self.entries.iter().all(|entry| entry.open == 0);
        if let Some((newest, until)) = &mut self.newest
            && (*newest == at || nobody_open)
        {
            *until = None;
        }
    }

    /// The next question: when it is due, the position of whom it is for, and why.
    fn best(&self, now: Instant, is_open: bool) -> Option<(Instant, usize, Why)> {
        if self.asks >= MOST {
            return None;
        }
        // One without a place is tried again after a pause; while nobody is being asked, it says itself when it has one.
        let ready = |entry: &Entry| match entry.busy {
            None => Some(None),
            Some(since) => is_open.then_some(Some(since + PAUSE)),
        };
        let unasked = self.entries.iter().enumerate().filter(|(_, entry)| entry.asked == 0 && !entry.done);
        let unasked = unasked.filter_map(|(at, entry)| Some((ready(entry)?, at)));
        let first = unasked.min().and_then(|(ready, at)| {
            let (due, at, why) = self.first_ask(at, now)?;
            Some((ready.map_or(due, |ready| ready.max(due)), at, why))
        });
        let again = self.entries.iter().enumerate().filter_map(|(at, entry)| {
            let due = self.again(entry)?;
            Some((ready(entry)?.map_or(due, |ready| ready.max(due)), at, Why::Again))
        });
        first.into_iter().chain(again).min_by_key(|(due, ..)| *due)
    }

    fn wish(&self, at: usize, why: Why) -> Option<Wish> {
        let entry = self.entries.get(at)?;
        let left = self.entries.iter().any(|entry| entry.asked == 0 && !entry.done && entry.busy.is_none());
        let last_hope = why == Why::Again && !left && self.repeats < MOST_REPEATS;
        Some(Wish { number: entry.number, why, repeat_of: entry.last.filter(|_| last_hope) })
    }

    /// When a candidate is asked for the first time, and why.
    fn first_ask(&self, at: usize, now: Instant) -> Option<(Instant, usize, Why)> {
        let entry = self.entries.get(at)?;
        let Some((newest, until)) = self.newest else { return Some((now, at, Why::First)) };
        let next = match until {
            None => (now, at, Why::Failover),
            Some(until) => (until, at, Why::Hedge),
        };
        let same = self.entries.get(newest).is_some_and(|newest| newest.tier == entry.tier);
        if same {
            return Some(next);
        }
        // The next group is for when the earlier ones give no answer at all.
        let earlier = self.entries.iter().filter(|earlier| earlier.tier < entry.tier);
        // Of one list, those in doubt are not worth waiting for: while one falls silent, another one may have come back.
        let hopeful = |earlier: &&Entry| match earlier.candidate.rank {
            Rank::Clean => true,
            Rank::Doubtful => earlier.candidate.list != entry.candidate.list,
            Rank::Open => false,
        };
        let hopeful = earlier.filter(hopeful).filter(|earlier| earlier.open > 0);
        match hopeful.filter_map(|earlier| earlier.first).max() {
            None => Some(next),
            Some(last) => Some((next.0.max(last + self.times.attempt), at, Why::Hedge)),
        }
    }

    /// When a candidate is asked again.
    fn again(&self, entry: &Entry) -> Option<Instant> {
        if entry.asked == 0 || entry.done {
            return None;
        }
        // With an error in hand there is no point in going on for long: once more, for a datagram may have been lost.
        if self.refused.is_some() && (entry.open == 0 || entry.asked >= 2) {
            return None;
        }
        // Each time a little later, and not before the newest one has had its time. Several take turns.
        let turns = self.entries.iter().filter(|entry| entry.asked > 0 && !entry.done).count();
        let turns = u32::try_from(turns).unwrap_or(MOST).max(1);
        let longest = REPEAT.max(self.times.timeout / REPEATS);
        let resend = entry.candidate.resend.max(SOONEST) * turns.max(2) / 2;
        let power = entry.asked.min(MOST) - 1;
        let pause = (resend * 3_u32.pow(power) / 2_u32.pow(power)).min((longest * turns).max(resend));
        let due = entry.last? + pause * self.times.spread / 100;
        let newest = self.newest.and_then(|(_, until)| until);
        Some(newest.map_or(due, |until| due.max(until)))
    }

    /// When the silent ones have had their time, where an error is in hand.
    fn given_up(&self) -> Option<Instant> {
        self.refused?;
        let open = self.entries.iter().filter(|entry| entry.open > 0);
        open.filter_map(|entry| entry.first).max().map(|first| first + self.times.attempt)
    }

    fn ask(&mut self, at: usize, why: Why, now: Instant) -> Step {
        let Some(entry) = self.entries.get_mut(at) else { return Step::Over };
        if entry.asked == 0 {
            self.newest = Some((at, Some(now + entry.candidate.patience)));
        }
        entry.asked += 1;
        entry.open += 1;
        entry.busy = None;
        entry.first.get_or_insert(now);
        entry.last = Some(now);
        self.asks += 1;
        self.repeats += u32::from(why == Why::Again);
        Step::Ask(entry.number, why)
    }
}

#[cfg(test)]
mod tests;
