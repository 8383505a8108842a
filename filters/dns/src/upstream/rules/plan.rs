//! Whom to ask for one query, and when.
//!
//! Servers are asked one after the other: at once where the last one failed, else when it has been silent for longer than it usually
//! takes (a hedge). Those that are silent are asked again while there is nothing better, for a datagram may have been lost. Those with
//! an open breaker come behind the healthy ones of every list but the last resort. The next ones of these groups are asked when all
//! of the earlier ones failed, or were silent for as long as a server may be.
//!
//! Hedges and repetitions need an allowance: where servers or this host are slow because they have too much to do, asking more
//! often makes it worse.

use std::time::Duration;

use tokio::time::Instant;

use super::{List, Rank};

/// How many times servers are asked for one query.
const MOST: u32 = 20;
/// How many times a server is asked that cannot be reached.
const MOST_UNREACHABLE: u32 = 3;
/// Where a hedge is not allowed, it is tried again after this time.
const PAUSE: Duration = Duration::from_millis(25);

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

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Step {
    /// Ask the candidate with this number.
    Ask(usize, Why),
    /// Wait for those that were asked, until a time if there is one.
    Wait(Option<Instant>),
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
    /// It is not asked again.
    done: bool,
}

/// The plan of one query.
#[derive(Debug)]
pub(in super::super) struct Plan {
    entries: Vec<Entry>,
    attempt: Duration,
    /// The position of the one that was asked for the first time last, and until when it has time; `None` where it ended badly.
    newest: Option<(usize, Option<Instant>)>,
    asks: u32,
    /// An error is in hand that can be passed on.
    refused: bool,
}

impl Plan {
    /// A plan for candidates in their configured order. `attempt` is the time after which the next list is asked.
    pub(in super::super) fn new(candidates: &[Candidate], attempt: Duration) -> Self {
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
                done: false,
            })
            .collect();
        entries.sort_by_key(|entry| (entry.tier, entry.candidate.rank, entry.number));
        Self { entries, attempt, newest: None, asks: 0, refused: false }
    }

    /// What to do now. What is to be asked counts as asked. `allowed` is asked before a hedge or a repetition.
    pub(in super::super) fn next(&mut self, now: Instant, allowed: impl FnOnce() -> bool) -> Step {
        let is_open = self.entries.iter().any(|entry| entry.open > 0);
        let mut best: Option<(Instant, usize, Why)> = None;
        if self.asks < MOST {
            let unasked = self.entries.iter().position(|entry| entry.asked == 0 && !entry.done);
            let first = unasked.and_then(|at| self.first_ask(at, now));
            let again = self.entries.iter().enumerate().filter_map(|(at, entry)| {
                let due = self.again(entry)?;
                Some((due, at, Why::Again))
            });
            best = first.into_iter().chain(again).min_by_key(|(due, ..)| *due);
        }
        match best {
            Some((due, at, why)) if due <= now => {
                if matches!(why, Why::First | Why::Failover) || allowed() {
                    return self.ask(at, why, now);
                }
                best = Some((now + PAUSE, at, why));
            }
            Some((due, ..)) => return Step::Wait(Some(due)),
            None => {}
        }
        if !is_open {
            return Step::Over;
        }
        let next = best.map(|(due, ..)| due);
        match self.given_up().filter(|_| self.refused) {
            Some(until) if until <= now => Step::Over,
            Some(until) => Step::Wait(Some(next.map_or(until, |next| next.min(until)))),
            None => Step::Wait(next),
        }
    }

    /// A question to a candidate ended.
    pub(in super::super) fn ended(&mut self, number: usize, end: End) {
        let Some(at) = self.entries.iter().position(|entry| entry.number == number) else { return };
        let Some(entry) = self.entries.get_mut(at) else { return };
        if end != End::Strange {
            entry.open = entry.open.saturating_sub(1);
        }
        match end {
            End::Refused => self.refused = true,
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
        let hopeful = earlier.filter(|earlier| earlier.open > 0 && earlier.candidate.rank != Rank::Open);
        match hopeful.filter_map(|earlier| earlier.first).max() {
            None => Some(next),
            Some(last) => Some((next.0.max(last + self.attempt), at, Why::Hedge)),
        }
    }

    /// When a candidate is asked again.
    fn again(&self, entry: &Entry) -> Option<Instant> {
        if entry.asked == 0 || entry.done {
            return None;
        }
        // With an error in hand there is no point in going on for long: once more, for a datagram may have been lost.
        if self.refused && (entry.open == 0 || entry.asked >= 2) {
            return None;
        }
        if entry.open == 0 && entry.asked >= MOST_UNREACHABLE {
            return None;
        }
        // Each time a little later: 1, 1½, 2 … times; and not before the newest one has had its time.
        let due = entry.last? + entry.candidate.resend * (entry.asked + 1) / 2;
        let newest = self.newest.and_then(|(_, until)| until);
        Some(newest.map_or(due, |until| due.max(until)))
    }

    /// When the silent ones have had their time, where an error is in hand.
    fn given_up(&self) -> Option<Instant> {
        let open = self.entries.iter().filter(|entry| entry.open > 0);
        open.filter_map(|entry| entry.first).max().map(|first| first + self.attempt)
    }

    fn ask(&mut self, at: usize, why: Why, now: Instant) -> Step {
        let Some(entry) = self.entries.get_mut(at) else { return Step::Over };
        if entry.asked == 0 {
            self.newest = Some((at, Some(now + entry.candidate.patience)));
        }
        entry.asked += 1;
        entry.open += 1;
        entry.first.get_or_insert(now);
        entry.last = Some(now);
        self.asks += 1;
        Step::Ask(entry.number, why)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ATTEMPT: Duration = Duration::from_millis(400);

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn of(list: List, rank: Rank) -> Candidate {
        Candidate { list, rank, patience: ms(50), resend: ms(100) }
    }

    /// Whom a plan asks, and when in milliseconds, while nobody answers; `ends` says how each question ends at once.
    fn run(
        candidates: &[Candidate],
        ends: impl Fn(usize) -> Option<End>,
    ) -> (Vec<(u64, usize, Why)>, Option<u64>) {
        let start = Instant::now();
        let mut now = start;
        let mut plan = Plan::new(candidates, ATTEMPT);
        let mut asked = Vec::new();
        let at = |now: Instant| (now - start).as_millis() as u64;
        while now < start + ms(1500) {
            match plan.next(now, || true) {
                Step::Ask(number, why) => {
                    asked.push((at(now), number, why));
                    if let Some(end) = ends(number) {
                        plan.ended(number, end);
                    }
                }
                Step::Wait(Some(until)) => now = until,
                Step::Wait(None) => break,
                Step::Over => return (asked, Some(at(now))),
            }
        }
        (asked, None)
    }

    #[test]
    fn the_next_one_is_hedged_and_the_silent_ones_are_asked_again() {
        let servers = [of(List::Servers, Rank::Clean); 2];
        let (asked, over) = run(&servers, |_| None);
        assert_eq!(over, None);
        assert_eq!(
            asked[..6],
            [
                (0, 0, Why::First),
                (50, 1, Why::Hedge),
                (100, 0, Why::Again),
                (150, 1, Why::Again),
                (250, 0, Why::Again),
                (300, 1, Why::Again)
            ]
        );
        // With three of ten lost each way, the chance that all are lost is far below one in a thousand.
        assert!(asked.len() >= 8, "{asked:?}");
    }

    #[test]
    fn after_a_failure_the_next_one_is_asked_at_once() {
        let servers = [of(List::Servers, Rank::Clean); 3];
        let (asked, over) = run(&servers, |_| Some(End::Refused));
        assert_eq!(asked, [(0, 0, Why::First), (0, 1, Why::Failover), (0, 2, Why::Failover)]);
        assert_eq!(over, Some(0));
        // Something strange is a reason to go on, but no end.
        let (asked, over) = run(&servers, |number| (number == 0).then_some(End::Strange));
        assert_eq!(asked[..2], [(0, 0, Why::First), (0, 1, Why::Failover)]);
        assert_eq!(over, None);
    }

    #[test]
    fn with_an_error_in_hand_the_silent_ones_get_their_time_and_no_more() {
        let servers = [of(List::Servers, Rank::Clean); 2];
        let (asked, over) = run(&servers, |number| (number == 1).then_some(End::Refused));
        assert_eq!(asked, [(0, 0, Why::First), (50, 1, Why::Hedge), (100, 0, Why::Again)]);
        assert_eq!(over, Some(400));
    }

    #[test]
    fn who_cannot_be_reached_is_tried_a_few_times() {
        let servers = [of(List::Servers, Rank::Clean); 2];
        let (asked, over) = run(&servers, |_| Some(End::Unreachable));
        assert_eq!(asked.iter().map(|(at, ..)| *at).collect::<Vec<_>>(), [0, 0, 100, 100, 250, 250]);
        assert_eq!(over, Some(250));
    }

    #[test]
    fn servers_that_are_well_come_first() {
        let ranks = [Rank::Open, Rank::Doubtful, Rank::Clean, Rank::Clean];
        let (asked, _) = run(&ranks.map(|rank| of(List::Servers, rank)), |_| Some(End::Useless));
        assert_eq!(asked.iter().map(|(_, number, _)| *number).collect::<Vec<_>>(), [2, 3, 1, 0]);
    }

    #[test]
    fn without_an_allowance_only_failures_lead_to_the_next_one() {
        let start = Instant::now();
        let mut plan = Plan::new(&[of(List::Servers, Rank::Clean); 2], ATTEMPT);
        assert_eq!(plan.next(start, || false), Step::Ask(0, Why::First));
        assert_eq!(plan.next(start, || false), Step::Wait(Some(start + ms(50))));
        assert_eq!(plan.next(start + ms(50), || false), Step::Wait(Some(start + ms(75))));
        plan.ended(0, End::Refused);
        assert_eq!(plan.next(start + ms(60), || false), Step::Ask(1, Why::Failover));
        // It still gets its time, and no more.
        assert_eq!(plan.next(start + ms(459), || false), Step::Wait(Some(start + ms(460))));
        assert_eq!(plan.next(start + ms(460), || false), Step::Over);
    }

    #[test]
    fn a_server_with_an_open_breaker_comes_behind_the_healthy_ones_of_all_lists() {
        let candidates = [
            of(List::Servers, Rank::Clean),
            of(List::Servers, Rank::Open),
            of(List::Alternative, Rank::Clean),
            of(List::Direct, Rank::Clean),
        ];
        let (asked, _) = run(&candidates, |_| Some(End::Useless));
        assert_eq!(asked.iter().map(|(_, number, _)| *number).collect::<Vec<_>>(), [0, 2, 1, 3]);
        let (asked, _) = run(&candidates, |_| None);
        let firsts =
            asked.iter().filter(|(.., why)| *why != Why::Again).map(|(at, number, _)| (*at, *number));
        assert_eq!(firsts.collect::<Vec<_>>(), [(0, 0), (400, 2), (800, 1), (850, 3)]);
    }

    #[test]
    fn the_other_lists_are_for_when_there_is_no_answer() {
        let lists = |rank| {
            [
                of(List::Servers, rank),
                of(List::Servers, rank),
                of(List::Alternative, Rank::Clean),
                of(List::Direct, Rank::Clean),
            ]
        };
        let firsts = |candidates: &[Candidate], ends: fn(usize) -> Option<End>| -> Vec<(u64, usize)> {
            let (asked, _) = run(candidates, ends);
            let firsts = asked.into_iter().filter(|(.., why)| *why != Why::Again);
            firsts.map(|(at, number, _)| (at, number)).collect()
        };
        // All silent: each list has its time.
        assert_eq!(firsts(&lists(Rank::Clean), |_| None), [(0, 0), (50, 1), (450, 2), (850, 3)]);
        // All failed: at once.
        assert_eq!(firsts(&lists(Rank::Clean), |_| Some(End::Refused)), [(0, 0), (0, 1), (0, 2), (0, 3)]);
        assert_eq!(
            firsts(&lists(Rank::Clean), |n| (n < 2).then_some(End::Refused)),
            [(0, 0), (0, 1), (0, 2), (400, 3)]
        );
        // Nobody is well: the alternative comes first.
        assert_eq!(firsts(&lists(Rank::Open), |_| None), [(0, 2), (400, 0), (450, 1), (500, 3)]);
    }

    proptest! {
        #[test]
        fn a_plan_asks_everybody_ends_and_never_waits_for_what_is_past(
            candidates in proptest::collection::vec((0_u8..3, 0_u8..3, 1_u64..100, 1_u64..400), 1..12),
            ends in proptest::collection::vec(0_u8..8, 64),
            allowed in proptest::collection::vec(any::<bool>(), 64),
            delays in proptest::collection::vec(0_u64..300, 64),
        ) {
            let list = |n| [List::Servers, List::Alternative, List::Direct][usize::from(n)];
            let rank = |n| [Rank::Clean, Rank::Doubtful, Rank::Open][usize::from(n)];
            let candidates: Vec<_> = candidates.into_iter().map(|(l, r, patience, resend)| Candidate {
                list: list(l), rank: rank(r), patience: ms(patience), resend: ms(resend)
            }).collect();
            let start = Instant::now();
            let mut now = start;
            let mut plan = Plan::new(&candidates, ATTEMPT);
            // Questions under way: when each ends and how.
            let mut open: Vec<(Instant, usize, End)> = Vec::new();
            let (mut asked, mut failed) = (0_usize, std::collections::HashSet::new());
            let mut steps = 0;
            loop {
                steps += 1;
                prop_assert!(steps < 1000, "it goes on for ever");
                match plan.next(now, || allowed[steps % 64]) {
                    Step::Ask(number, why) => {
                        prop_assert!(allowed[steps % 64] || matches!(why, Why::First | Why::Failover));
                        prop_assert!(number < candidates.len());
                        prop_assert_eq!(why == Why::First, asked == 0);
                        prop_assert!(!failed.contains(&number), "asked although of no use");
                        let end = match ends[asked % 64] {
                            0..=2 => Some(End::Refused),
                            3 => Some(End::Useless),
                            4 => Some(End::Unreachable),
                            _ => None,
                        };
                        open.extend(end.map(|end| (now + ms(delays[asked % 64]), number, end)));
                        asked += 1;
                        prop_assert!(asked <= MOST as usize);
                    }
                    Step::Over => break,
                    Step::Wait(until) => {
                        prop_assert!(until.is_none_or(|until| until > now));
                        open.sort_by_key(|(at, ..)| std::cmp::Reverse(*at));
                        let next = open.last().map(|(at, ..)| *at);
                        if next.is_some_and(|at| until.is_none_or(|until| at <= until)) {
                            let (at, number, end) = open.pop().unwrap();
                            now = now.max(at);
                            plan.ended(number, end);
                            if matches!(end, End::Refused | End::Useless) {
                                failed.insert(number);
                            }
                        } else if let Some(until) = until {
                            now = until;
                        } else {
                            break;
                        }
                    }
                }
            }
            let everybody = plan.entries.iter().all(|entry| entry.asked > 0);
            prop_assert!(everybody || asked == MOST as usize || allowed.contains(&false));
        }
    }
}
