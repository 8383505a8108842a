use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);
const SETTINGS: Settings = Settings {
    most: 10_000,
    bytes: 1 << 30,
    wait: Duration::from_secs(1),
    tolerable: Duration::ZERO,
    standing: Duration::from_millis(100),
    age: Duration::from_millis(20),
};

/// As it is used.
const LIVE: Settings = Settings { tolerable: Duration::from_millis(100), ..SETTINGS };

/// A queue that one share waits in.
fn queue() -> (Queue<&'static str>, Instant) {
    (Queue::default(), Instant::now())
}

#[test]
fn a_burst_is_served_in_order_and_a_standing_queue_from_its_end() {
    let (mut queue, start) = queue();
    let arrive = |queue: &mut Queue<_>, at| queue.arrive(&"a", 1, None, &SETTINGS, at).unwrap();
    let tickets: Vec<_> = (0..4).map(|_| arrive(&mut queue, start)).collect();
    assert_eq!(queue.next(&SETTINGS, start), Some(tickets[0]));
    queue.finished(&"a");
    let later = start + 99 * MS;
    assert!(queue.expired(&SETTINGS, later).is_empty());
    assert_eq!(queue.next(&SETTINGS, later), Some(tickets[1]));
    queue.finished(&"a");
    let fresh = arrive(&mut queue, later);
    let standing = start + 100 * MS;
    assert_eq!(queue.wake(&SETTINGS), Some(standing));
    let expired = queue.expired(&SETTINGS, standing);
    assert_eq!(expired, [(tickets[2], Refusal::Overload), (tickets[3], Refusal::Overload)]);
    let newest = arrive(&mut queue, standing);
    assert_eq!(queue.next(&SETTINGS, standing), Some(newest));
    assert_eq!(queue.next(&SETTINGS, standing), Some(fresh));
    assert_eq!((queue.next(&SETTINGS, standing), queue.is_overloaded(&SETTINGS, standing)), (None, true));
    let calm = standing + CALM;
    assert!(queue.expired(&SETTINGS, calm).is_empty());
    assert!(!queue.is_overloaded(&SETTINGS, calm), "nobody was refused for a while");
}

#[test]
fn whoever_has_the_fewest_places_is_next() {
    let (mut queue, now) = queue();
    let mut arrive = |of| queue.arrive(&of, 1, None, &SETTINGS, now).unwrap();
    let greedy: Vec<_> = (0..5).map(|_| arrive("greedy")).collect();
    let modest = [arrive("modest"), arrive("other")];
    let order: Vec<_> = (0..7).map(|_| queue.next(&SETTINGS, now).unwrap()).collect();
    assert_eq!(order[..4], [greedy[0], modest[0], modest[1], greedy[1]]);
    for _ in 0..5 {
        queue.finished(&"greedy");
    }
    let (again, first) = (
        queue.arrive(&"modest", 1, None, &SETTINGS, now).unwrap(),
        queue.arrive(&"greedy", 1, None, &SETTINGS, now),
    );
    assert_eq!(queue.next(&SETTINGS, now), first.ok(), "it has no place now");
    assert_eq!(queue.next(&SETTINGS, now), Some(again));
}

#[test]
fn who_would_wait_in_vain_is_refused_at_once() {
    let (mut queue, start) = queue();
    let arrive = |queue: &mut Queue<_>, at, deadline| queue.arrive(&"a", 1, deadline, &SETTINGS, at);
    // 100 a second, seen while ten wait.
    let mut now = start;
    for _ in 0..10 {
        arrive(&mut queue, now, None).unwrap();
    }
    for _ in 0..9 {
        now += 10 * MS;
        arrive(&mut queue, now, None).unwrap();
        queue.next(&SETTINGS, now).unwrap();
    }
    let expected = queue.expected_wait(now);
    assert!(expected > 80 * MS && expected < 130 * MS, "{expected:?}");
    let refused = arrive(&mut queue, now, Some(now + 50 * MS));
    assert!(matches!(refused, Err((Refusal::Hopeless, after)) if after == expected), "{refused:?}");
    assert!(arrive(&mut queue, now, Some(now + 200 * MS)).is_ok());
    assert!(matches!(arrive(&mut queue, now, Some(now)), Err((Refusal::Late, _))));
}

#[test]
fn a_time_when_nobody_was_served_is_forgotten_once_places_are_free() {
    let (mut queue, start) = queue();
    queue.take(&"a");
    let first = queue.arrive(&"a", 1, None, &SETTINGS, start).unwrap();
    let late = start + Duration::from_secs(60);
    queue.finished(&"a");
    assert_eq!(queue.next(&SETTINGS, late), Some(first));
    queue.finished(&"a");
    queue.take(&"a");
    queue.arrive(&"a", 1, None, &SETTINGS, late).unwrap();
    assert_eq!(queue.expected_wait(late + MS), Duration::ZERO, "nothing is known of this queue yet");
}

#[test]
fn places_that_are_taken_for_long_are_no_reason_to_refuse() {
    let (mut queue, start) = queue();
    (0..20).for_each(|_| queue.take(&"a"));
    let mut now = start;
    // All that came to free places is still under way, and would be done soon.
    for _ in 0..20 {
        now += 20 * MS;
        assert!(queue.arrive(&"a", 1, None, &LIVE, now).is_ok());
        assert!(queue.expired(&LIVE, now).is_empty());
    }
    // After a second more, those under way are taken to need as long again, and the 20 who wait to get their places then.
    now += Duration::from_secs(1);
    let expected = queue.expected_wait(now);
    assert!(expected > 1300 * MS && expected < 1500 * MS, "{expected:?}");
}

#[test]
fn a_stall_is_taken_to_last_for_as_long_again() {
    let (mut queue, start) = queue();
    let mut now = start;
    // 100 a second, seen while one waits.
    queue.arrive(&"a", 1, None, &LIVE, now).unwrap();
    for _ in 0..100 {
        now += 10 * MS;
        queue.arrive(&"a", 1, None, &LIVE, now).unwrap();
        queue.next(&LIVE, now).unwrap();
        queue.finished(&"a");
    }
    let expected = queue.expected_wait(now);
    assert!(expected > 8 * MS && expected < 12 * MS, "{expected:?}");
    for seconds in [5, 60, 600] {
        let stall = Duration::from_secs(seconds);
        let expected = queue.expected_wait(now + stall);
        assert!(expected > stall - MS && expected < stall + MS, "{expected:?} after {stall:?}");
    }
}

#[test]
fn nobody_is_told_to_come_again_later_than_anybody_waits() {
    for stall in [KNOWN, WINDOW, 2 * WINDOW, FORGOTTEN, FAR] {
        for settings in [LIVE, Settings { age: FAR, ..LIVE }, Settings { most: 30, ..LIVE }] {
            let (mut queue, start) = queue();
            queue.take(&"a");
            for _ in 0..30 {
                queue.arrive(&"a", 1, None, &settings, start).unwrap();
            }
            let now = start + stall;
            if let Err((refusal, after)) = queue.arrive(&"a", 1, None, &settings, now) {
                assert!(after <= settings.wait, "{refusal:?} after {stall:?}, with {after:?}");
            }
            let after = queue.retry_after(&settings, now);
            assert!(after >= settings.age.min(settings.wait) && after <= settings.wait, "{after:?}");
        }
    }
}

#[test]
fn count_and_bytes_are_bounded() {
    let (mut queue, now) = queue();
    let settings = Settings { most: 2, bytes: 100, ..SETTINGS };
    let mut arrive = |bytes| queue.arrive(&"a", bytes, None, &settings, now).map_err(|(refusal, _)| refusal);
    let first = arrive(60).unwrap();
    assert_eq!(arrive(41), Err(Refusal::Bytes));
    arrive(40).unwrap();
    assert_eq!(arrive(0), Err(Refusal::Full));
    assert!(queue.leave(first, now) && !queue.leave(first, now));
    assert!(queue.arrive(&"a", 60, None, &settings, now).is_ok());
    let (mut alone, big) = (Queue::default(), 1000);
    assert!(alone.arrive(&"a", big, None, &settings, now).is_ok(), "who waits alone may be large");
}

/// What came of a simulated load.
#[derive(Debug, Default)]
struct Outcome {
    arrived: usize,
    /// Served within the second that its client waits.
    good: usize,
    refused: usize,
    /// How long those that were served and those that were refused waited.
    served_after: Vec<Duration>,
    refused_after: Vec<Duration>,
}

impl Outcome {
    fn p99(times: &[Duration]) -> Duration {
        let mut times = times.to_vec();
        times.sort();
        times.get(times.len() * 99 / 100).copied().unwrap_or_default()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrives,
    Done,
    Look,
}

/// 20 places, 10 ms of work each, and what comes at random `load` times as fast as it can be served. The places stand still in `stall`.
fn simulate(load: f64, seconds: u64, stall: Option<(Duration, Duration)>, counted_from: Duration) -> Outcome {
    let (places, work) = (20_usize, 0.01);
    let mut random = fastrand::Rng::with_seed(11);
    let mut exponential = move |mean: f64| Duration::from_secs_f64(-mean * (1.0 - random.f64()).ln());
    let (start, end) = (Instant::now(), Duration::from_secs(seconds));
    let (mut queue, mut outcome) = (Queue::default(), Outcome::default());
    let mut events = BinaryHeap::from([Reverse((Duration::ZERO, 0_u64, Event::Arrives))]);
    let mut since = HashMap::new();
    let (mut busy, mut number, mut look) = (0, 1, None);
    while let Some(Reverse((at, _, event))) = events.pop() {
        if at > end {
            break;
        }
        let now = start + at;
        let counts = at >= counted_from;
        let mut push = |at, event| {
            events.push(Reverse((at, number, event)));
            number += 1;
        };
        match event {
            Event::Arrives => {
                push(at + exponential(work / (places as f64 * load)), Event::Arrives);
                outcome.arrived += usize::from(counts);
                match queue.arrive(&(), 100, None, &LIVE, now) {
                    Ok(ticket) => drop(since.insert(ticket, at)),
                    Err(_) => {
                        outcome.refused += usize::from(counts);
                        outcome.refused_after.push(Duration::ZERO);
                    }
                }
            }
            Event::Done => {
                busy -= 1;
                queue.finished(&());
            }
            Event::Look => look = None,
        }
        for (ticket, _) in queue.expired(&LIVE, now) {
            outcome.refused += usize::from(counts);
            outcome.refused_after.push(at - since.remove(&ticket).unwrap());
        }
        while busy < places
            && let Some(ticket) = queue.next(&LIVE, now)
        {
            busy += 1;
            let waited = at - since.remove(&ticket).unwrap();
            let begun = stall.filter(|(from, to)| (*from..*to).contains(&at)).map_or(at, |(_, to)| to);
            let done = begun + exponential(work);
            push(done, Event::Done);
            if counts {
                outcome.good += usize::from(waited + (done - at) <= Duration::from_secs(1));
                outcome.served_after.push(waited);
            }
        }
        if let Some(wake) = queue.wake(&LIVE) {
            let wake = (wake - start).max(at + Duration::from_micros(1));
            if look.is_none_or(|look| wake < look) {
                look = Some(wake);
                push(wake, Event::Look);
            }
        }
    }
    outcome
}

#[test]
fn under_overload_all_places_serve_those_who_still_wait() {
    let seconds = 20;
    let can = (2000 * seconds) as f64;
    for load in [2.0, 5.0, 10.0] {
        let outcome = simulate(load, seconds, None, Duration::ZERO);
        let goodput = outcome.good as f64 / can;
        let (served, refused) = (Outcome::p99(&outcome.served_after), Outcome::p99(&outcome.refused_after));
        println!("{load} x: goodput {goodput:.3}, p99 of served {served:?}, of refused {refused:?}");
        assert!(goodput > 0.95, "{load}: {goodput}");
        assert!(served <= 200 * MS, "{load}: {served:?}");
        assert!(refused <= SETTINGS.age + MS, "{load}: {refused:?}");
    }
}

#[test]
fn what_can_be_served_is_not_refused() {
    let outcome = simulate(0.8, 60, None, Duration::ZERO);
    let share = outcome.refused as f64 / outcome.arrived as f64;
    println!("0.8 x: {share:.5} refused of {}", outcome.arrived);
    assert!(share <= 0.001, "{share}");
}

/// Each client asks again as soon as it is served: the queue never grows beyond their number, and all are served in time.
#[test]
fn as_many_clients_as_can_be_served_in_time_are_never_refused() {
    let (places, work, clients) = (20_usize, 10.0, 150);
    let mut random = fastrand::Rng::with_seed(3);
    let (start, mut queue) = (Instant::now(), Queue::default());
    let mut events: BinaryHeap<_> =
        (0..clients).map(|client| Reverse((Duration::ZERO, client, false))).collect();
    let (mut clients_of, mut busy, mut served) = (HashMap::new(), 0, 0);
    while let Some(Reverse((at, client, done))) = events.pop() {
        let now = start + at;
        if at > Duration::from_secs(20) {
            break;
        }
        if done {
            busy -= 1;
            served += 1;
            queue.finished(&());
        }
        clients_of.insert(queue.arrive(&(), 1, None, &LIVE, now).expect("nobody is refused"), client);
        assert!(queue.expired(&LIVE, now).is_empty());
        while busy < places
            && let Some(ticket) = queue.next(&LIVE, now)
        {
            busy += 1;
            let takes = Duration::from_secs_f64(work / 1000.0 * (0.5 + random.f64()));
            events.push(Reverse((at + takes, clients_of.remove(&ticket).unwrap(), true)));
        }
    }
    assert!(served > 39_000, "{served}");
}

#[test]
fn after_a_stall_everything_is_as_before_within_a_second() {
    let stall = (Duration::from_secs(3), Duration::from_secs(8));
    let outcome = simulate(2.0, 12, Some(stall), stall.1 + Duration::from_secs(1));
    let can = 2000.0 * 3.0;
    let goodput = outcome.good as f64 / can;
    println!("after 5 s without an answer: goodput {goodput:.3}");
    assert!(goodput > 0.95, "{goodput}");
}

proptest! {
    /// Everybody gets one answer, and the bounds hold.
    #[test]
    fn nobody_is_lost_and_nobody_is_served_twice(
        steps in prop::collection::vec((0..5_u8, 0..3_u8, 0..40_u64), 1..300),
    ) {
        let settings = Settings { most: 8, bytes: 60, wait: 50 * MS, tolerable: 5 * MS, standing: 30 * MS, age: 10 * MS };
        let (mut queue, mut now) = (Queue::default(), Instant::now());
        let mut waiting: BTreeMap<Ticket, (u8, Instant)> = BTreeMap::new();
        let mut running: Vec<u8> = Vec::new();
        for (what, of, passed) in steps {
            now += Duration::from_millis(passed / 4);
            for (ticket, refusal) in queue.expired(&settings, now) {
                let (_, since) = waiting.remove(&ticket).expect("was waiting");
                prop_assert!(refusal != Refusal::Late || now - since >= settings.wait);
            }
            match what {
                0 | 1 => {
                    if let Ok(ticket) = queue.arrive(&of, usize::from(of) * 10, None, &settings, now) {
                        prop_assert!(waiting.insert(ticket, (of, now)).is_none());
                    }
                }
                2 => {
                    if let Some(ticket) = queue.next(&settings, now) {
                        let (of, since) = waiting.remove(&ticket).expect("was waiting");
                        prop_assert!(now - since < settings.wait);
                        running.push(of);
                    } else {
                        prop_assert!(waiting.is_empty());
                    }
                }
                3 => {
                    if let Some(of) = running.pop() {
                        queue.finished(&of);
                    }
                }
                _ => {
                    if let Some(ticket) = waiting.keys().next().copied() {
                        prop_assert!(queue.leave(ticket, now));
                        waiting.remove(&ticket);
                    }
                }
            }
            prop_assert_eq!(queue.len(), waiting.len());
            prop_assert!(queue.len() <= settings.most + 1);
            prop_assert_eq!(queue.is_empty(), queue.wake(&settings).is_none());
        }
        for of in running {
            queue.finished(&of);
        }
        for ticket in waiting.keys() {
            queue.leave(*ticket, now);
        }
        prop_assert!(queue.shares.is_empty() && queue.deadlines.is_empty() && queue.bytes == 0, "nothing is left");
    }
}
