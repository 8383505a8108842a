//! Plans of queries, by the clock of the test.

use proptest::prelude::*;

use super::*;

const TIMES: Times =
    Times { attempt: Duration::from_millis(400), timeout: Duration::from_millis(1500), spread: 100 };

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
    let mut plan = Plan::new(candidates, TIMES);
    let mut asked = Vec::new();
    let at = |now: Instant| (now - start).as_millis() as u64;
    while now < start + ms(1500) {
        match plan.next(now, |_| Permit::Granted) {
            Step::Ask(number, why) => {
                asked.push((at(now), number, why));
                if let Some(end) = ends(number) {
                    plan.ended(number, end, now);
                }
            }
            Step::Wait(Some(until)) => now = until,
            Step::Wait(None) | Step::Queue(_) => break,
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
    let times: Vec<_> = asked.iter().map(|(at, ..)| *at).collect();
    assert_eq!(times[..6], [0, 0, 100, 100, 250, 250]);
    assert_eq!(over, None, "it may be back any time");
    assert!(times.len() <= 12, "{times:?}");
}

#[test]
fn the_only_server_is_asked_again_and_again() {
    for (resend, spread) in [(20, 100), (50, 80), (100, 90), (400, 80), (400, 100), (600, 100)] {
        for timeout in [1500, 5000, 10_000] {
            let times = Times { timeout: ms(timeout), spread, ..TIMES };
            let longest = ms(resend).max(ms(250)).max(times.timeout / 6);
            let only = Candidate { resend: ms(resend), ..of(List::Servers, Rank::Open) };
            let start = Instant::now();
            let mut plan = Plan::new(&[only], times);
            let (mut now, mut last, mut count) = (start, start, 0);
            while now < start + times.timeout {
                // No allowance but their own.
                let permit = |wish: Wish| match wish.is_extra() && wish.repeat_of.is_none() {
                    true => Permit::Denied,
                    false => Permit::Granted,
                };
                match plan.next(now, permit) {
                    Step::Ask(..) => {
                        assert!(now - last <= longest, "{resend} {spread} {timeout}: {:?}", now - last);
                        (last, count) = (now, count + 1);
                    }
                    Step::Wait(Some(until)) => now = until,
                    step => panic!("{step:?} after {:?}", now - start),
                }
            }
            assert!(start + times.timeout - last <= longest);
            let least = if resend > 250 { 3 } else { 6 };
            assert!((least..=17).contains(&count), "{resend} {spread} {timeout}: {count} times");
        }
    }
}

#[test]
fn who_has_no_place_is_passed_over_and_waited_for_when_nobody_has_one() {
    let start = Instant::now();
    let mut plan = Plan::new(&[of(List::Servers, Rank::Clean); 2], TIMES);
    let full = |numbers: &'static [usize]| {
        move |wish: Wish| if numbers.contains(&wish.number) { Permit::Busy } else { Permit::Granted }
    };
    assert_eq!(plan.next(start, full(&[0, 1])), Step::Queue(None));
    assert_eq!(plan.busy().collect::<Vec<_>>(), [0, 1]);
    plan.placed(1);
    assert_eq!(plan.next(start + ms(9), full(&[0])), Step::Ask(1, Why::First));
    // The other one is a hedge, when its time has come.
    assert_eq!(plan.next(start + ms(9), full(&[0])), Step::Wait(Some(start + ms(59))));
    assert_eq!(plan.next(start + ms(59), full(&[0])), Step::Wait(Some(start + ms(84))));
    assert_eq!(plan.next(start + ms(84), full(&[])), Step::Ask(0, Why::Hedge));
    // With an error in hand it is waited for no longer than for an answer.
    let mut plan = Plan::new(&[of(List::Servers, Rank::Clean); 2], TIMES);
    assert_eq!(plan.next(start, full(&[0])), Step::Ask(1, Why::First));
    plan.ended(1, End::Refused, start + ms(1));
    assert_eq!(plan.next(start + ms(1), full(&[0])), Step::Queue(Some(start + ms(401))));
    assert_eq!(plan.next(start + ms(401), full(&[0])), Step::Over);
    // One whose line is too long is none.
    let mut plan = Plan::new(&[of(List::Servers, Rank::Clean)], TIMES);
    assert_eq!(plan.next(start, full(&[0])), Step::Queue(None));
    plan.ended(0, End::Useless, start);
    assert_eq!(plan.next(start, full(&[0])), Step::Over);
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
    let mut plan = Plan::new(&[of(List::Servers, Rank::Clean); 2], TIMES);
    let strict = |wish: Wish| if wish.is_extra() { Permit::Denied } else { Permit::Granted };
    assert_eq!(plan.next(start, strict), Step::Ask(0, Why::First));
    assert_eq!(plan.next(start, strict), Step::Wait(Some(start + ms(50))));
    assert_eq!(plan.next(start + ms(50), strict), Step::Wait(Some(start + ms(75))));
    plan.ended(0, End::Refused, start + ms(60));
    assert_eq!(plan.next(start + ms(60), strict), Step::Ask(1, Why::Failover));
    // It still gets its time, and no more.
    assert_eq!(plan.next(start + ms(459), strict), Step::Wait(Some(start + ms(460))));
    assert_eq!(plan.next(start + ms(460), strict), Step::Over);
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
    let firsts = asked.iter().filter(|(.., why)| *why != Why::Again).map(|(at, number, _)| (*at, *number));
    assert_eq!(firsts.collect::<Vec<_>>(), [(0, 0), (400, 2), (800, 1), (850, 3)]);
}

#[test]
fn a_server_with_an_open_breaker_is_a_hedge_when_the_others_are_in_doubt() {
    let candidates =
        [of(List::Servers, Rank::Doubtful), of(List::Servers, Rank::Open), of(List::Direct, Rank::Clean)];
    let (asked, _) = run(&candidates, |_| None);
    let firsts = asked.iter().filter(|(.., why)| *why != Why::Again).map(|(at, number, _)| (*at, *number));
    assert_eq!(firsts.collect::<Vec<_>>(), [(0, 0), (50, 1), (400, 2)]);
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
        permits in proptest::collection::vec(0_u8..4, 64),
        spread in 80_u32..=100,
        delays in proptest::collection::vec(0_u64..300, 64),
    ) {
        let list = |n| [List::Servers, List::Alternative, List::Direct][usize::from(n)];
        let rank = |n| [Rank::Clean, Rank::Doubtful, Rank::Open][usize::from(n)];
        let candidates: Vec<_> = candidates.into_iter().map(|(l, r, patience, resend)| Candidate {
            list: list(l), rank: rank(r), patience: ms(patience), resend: ms(resend)
        }).collect();
        let start = Instant::now();
        let mut now = start;
        let mut plan = Plan::new(&candidates, Times { spread, ..TIMES });
        // Questions under way: when each ends and how.
        let mut open: Vec<(Instant, usize, End)> = Vec::new();
        let (mut asked, mut failed) = (0_usize, std::collections::HashSet::new());
        let mut steps = 0;
        loop {
            steps += 1;
            prop_assert!(steps < 1000, "it goes on for ever");
            let mut wishes = 0;
            let step = plan.next(now, |wish| {
                wishes += 1;
                match permits[(steps + wishes) % 64] {
                    0 => Permit::Busy,
                    1 if wish.is_extra() => Permit::Denied,
                    _ => Permit::Granted,
                }
            });
            prop_assert!(wishes <= candidates.len() + 1, "the same one twice");
            match step {
                Step::Ask(number, why) => {
                    prop_assert!(permits[(steps + wishes) % 64] > 1 || !matches!(why, Why::Hedge | Why::Again));
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
                Step::Queue(until) => {
                    prop_assert!(until.is_none_or(|until| until > now));
                    let busy: Vec<_> = plan.busy().collect();
                    prop_assert!(open.is_empty() && !busy.is_empty());
                    plan.placed(busy[steps % busy.len()]);
                }
                Step::Wait(until) => {
                    prop_assert!(until.is_none_or(|until| until > now));
                    open.sort_by_key(|(at, ..)| std::cmp::Reverse(*at));
                    let next = open.last().map(|(at, ..)| *at);
                    if next.is_some_and(|at| until.is_none_or(|until| at <= until)) {
                        let (at, number, end) = open.pop().unwrap();
                        now = now.max(at);
                        plan.ended(number, end, now);
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
        prop_assert!(everybody || asked == MOST as usize || permits.iter().any(|permit| *permit < 2));
    }
}
