use proptest::prelude::*;

use super::*;

const SWEEP: Duration = Duration::from_secs(10);
const OUTLIERS: Outliers = Outliers { interval: SWEEP, failures: 3, loss_percent: 5, rtt_times: 3 };
const LIMITS: Limits = Limits { min: 1, max: 4, streams: 8, pending: 3, outliers: OUTLIERS };
const RTT: Duration = Duration::from_millis(10);

fn connect(rules: &mut Rules, now: Instant) -> Id {
    let dial = rules.tend(&LIMITS, now).dial.expect("a dial");
    rules.dialled(dial, RTT, now)
}

fn used(choice: Choice) -> Id {
    match choice {
        Choice::Use(id) => id,
        other => panic!("{other:?}"),
    }
}

fn choose(rules: &mut Rules, now: Instant) -> Choice {
    rules.choose(&LIMITS, now, fastrand::u64(..), false)
}

/// A pool with so many connections, each of which has one stream.
fn pool(connections: usize, now: Instant) -> (Rules, Vec<Id>) {
    let mut rules = Rules::new(now);
    let mut ids = vec![connect(&mut rules, now)];
    while ids.len() < connections {
        for _ in 0..LIMITS.streams * u32::try_from(ids.len()).unwrap() {
            used(choose(&mut rules, now));
        }
        ids.push(connect(&mut rules, now));
        let held: Vec<_> =
            ids.iter().flat_map(|id| vec![*id; rules.streams(*id).unwrap().0 as usize]).collect();
        held.into_iter().for_each(|id| rules.released(id, now));
    }
    (rules, ids)
}

#[test]
fn one_dial_serves_all_who_wait_and_no_more_than_allowed_wait() {
    let now = Instant::now();
    let mut rules = Rules::new(now);
    for _ in 0..3 {
        assert!(matches!(choose(&mut rules, now), Choice::Wait { .. }));
    }
    assert!(matches!(choose(&mut rules, now), Choice::Refuse(Refusal::Crowded)));
    let dial = rules.tend(&LIMITS, now).dial.unwrap();
    assert!(rules.tend(&LIMITS, now).dial.is_none(), "one at a time");
    let id = rules.dialled(dial, RTT, now);
    for _ in 0..3 {
        rules.waited();
        assert_eq!(used(choose(&mut rules, now)), id);
    }
    assert_eq!(rules.streams(id), Some((3, true)));
}

#[test]
fn a_peer_that_cannot_be_dialled_is_left_alone_and_probed_by_one() {
    let now = Instant::now();
    let mut rules = Rules::new(now);
    assert!(matches!(choose(&mut rules, now), Choice::Wait { .. }));
    let dial = rules.tend(&LIMITS, now).dial.unwrap();
    assert!(rules.undialled(dial, now, 1 << 63), "one failure is enough");
    rules.waited();
    assert_eq!(rules.failures(), 1);
    for _ in 0..1000 {
        assert!(matches!(choose(&mut rules, now), Choice::Refuse(Refusal::Down)));
        assert!(rules.tend(&LIMITS, now).dial.is_none());
    }
    let later = now + Duration::from_secs(2);
    // Whoever has another way does not wait for the probe.
    assert!(matches!(choose(&mut rules, later), Choice::Refuse(Refusal::Down)));
    assert!(matches!(rules.choose(&LIMITS, later, 0, true), Choice::Wait { .. }));
    let probe = rules.tend(&LIMITS, later).dial.expect("a probe");
    assert!(rules.tend(&LIMITS, later).dial.is_none());
    let id = rules.dialled(probe, RTT, later);
    rules.waited();
    assert_eq!(used(choose(&mut rules, later)), id);
}

#[test]
fn nobody_who_has_another_way_waits_longer_for_a_dial_than_a_second_from_its_start() {
    let now = Instant::now();
    let (mut rules, second) = (Rules::new(now), Duration::from_secs(1));
    let until = |choice| match choice {
        Choice::Wait { until } => until.unwrap() - now,
        other => panic!("{other:?}"),
    };
    assert_eq!(until(choose(&mut rules, now)), second);
    let _dial = rules.tend(&LIMITS, now).dial.unwrap();
    assert_eq!(until(choose(&mut rules, now + second * 9 / 10)), second);
    assert!(matches!(choose(&mut rules, now + second), Choice::Refuse(Refusal::Down)));
    // One that has no other way waits.
    assert!(matches!(rules.choose(&LIMITS, now + second, 0, true), Choice::Wait { until: None }));
    // Where there are connections, all of them full, it is not the dial that is waited for.
    let (mut rules, _) = pool(1, now);
    while let Choice::Use(_) = choose(&mut rules, now) {}
    assert!(matches!(choose(&mut rules, now), Choice::Wait { until: None }));
}

#[test]
fn a_crowd_opens_more_connections_up_to_the_maximum() {
    let now = Instant::now();
    let mut rules = Rules::new(now);
    connect(&mut rules, now);
    let mut chosen = 0;
    while let Choice::Use(_) = choose(&mut rules, now) {
        chosen += 1;
        if let Some(dial) = rules.tend(&LIMITS, now).dial {
            rules.dialled(dial, RTT, now);
        }
    }
    assert_eq!((rules.live_count(), chosen), (4, 32));
    assert!(rules.tend(&LIMITS, now).dial.is_none(), "the maximum holds");
}

#[test]
fn the_fast_and_the_idle_are_preferred_and_the_failing_are_not() {
    let now = Instant::now();
    let (mut rules, ids) = pool(2, now);
    let slow = Sample { rtt: RTT * 3, heard: 1, ..Sample::default() };
    rules.sampled(ids[0], slow, now);
    let chosen: Vec<_> = (0..8).map(|_| used(choose(&mut rules, now))).collect();
    assert_eq!(chosen.iter().filter(|id| **id == ids[1]).count(), 6);

    let (mut rules, ids) = pool(2, now);
    rules.sampled(ids[0], Sample { rtt: RTT / 5, heard: 1, ..Sample::default() }, now);
    rules.answered(ids[0], false);
    rules.answered(ids[0], false);
    assert_eq!(used(choose(&mut rules, now)), ids[1], "it fails fast");
    rules.answered(ids[0], true);
    assert_eq!(used(choose(&mut rules, now)), ids[0]);
}

#[test]
fn shrinking_drains() {
    let now = Instant::now();
    let (mut rules, ids) = pool(4, now);
    let busy = used(choose(&mut rules, now));
    let (one, other) = (Limits { max: 1, ..LIMITS }, ids.iter().filter(|id| **id != busy).count());
    let work = rules.tend(&one, now);
    assert_eq!((work.close.len(), other), (3, 3));
    assert!(!work.close.contains(&busy));
    assert_eq!((rules.live_count(), rules.draining_count()), (1, 0));

    let (mut rules, ids) = pool(2, now);
    for _ in 0..16 {
        used(choose(&mut rules, now));
    }
    assert!(rules.tend(&one, now).close.is_empty());
    assert_eq!((rules.live_count(), rules.draining_count()), (1, 1));
    let draining = *ids.iter().find(|id| rules.streams(**id) == Some((8, false))).unwrap();
    for left in (0..8).rev() {
        rules.released(draining, now);
        assert_eq!(rules.tend(&one, now).close, if left == 0 { vec![draining] } else { vec![] });
    }
}

#[test]
fn what_nobody_wants_is_closed() {
    let now = Instant::now();
    let (mut rules, _) = pool(3, now);
    let later = now + SPARE - Duration::from_secs(1);
    rules.want(later);
    assert!(rules.tend(&LIMITS, later).close.is_empty());
    let later = now + SPARE;
    rules.want(later);
    assert_eq!(rules.tend(&LIMITS, later).close.len(), 2, "the minimum stays");
    let later = later + UNWANTED;
    let work = rules.tend(&LIMITS, later);
    assert_eq!((work.close.len(), work.dial.is_some()), (1, false));
}

#[test]
fn new_certificates_replace_connections_and_no_stream() {
    let now = Instant::now();
    let (mut rules, ids) = pool(1, now);
    used(choose(&mut rules, now));
    rules.outdate();
    assert_eq!(used(choose(&mut rules, now)), ids[0], "as long as there is no other");
    let new = connect(&mut rules, now);
    assert_eq!(used(choose(&mut rules, now)), new);
    assert_eq!((rules.streams(ids[0]), rules.live_count()), (Some((2, false)), 1));
    assert!(rules.tend(&LIMITS, now).dial.is_none());
}

#[test]
fn silence_kills_and_the_next_stream_dials() {
    let now = Instant::now();
    let (mut rules, ids) = pool(1, now);
    let sample = Sample { rtt: RTT, heard: 5, ..Sample::default() };
    rules.sampled(ids[0], sample, now);
    rules.sampled(ids[0], sample, now + SILENCE);
    assert_eq!(rules.live_count(), 1);
    let later = now + SILENCE + Duration::from_secs(1);
    rules.sampled(ids[0], sample, later);
    assert_eq!((rules.live_count(), rules.ejected()), (0, 1));
    assert!(matches!(choose(&mut rules, later), Choice::Wait { .. }));
    assert!(rules.tend(&LIMITS, later).dial.is_some());
}

#[test]
fn outliers_go_but_never_more_than_half() {
    let now = Instant::now();
    let good = Sample { rtt: RTT, sent: 1000, lost: 10, black_holes: 0, heard: 1 };
    let swept = |bad: &[Sample]| {
        let (mut rules, ids) = pool(4, now);
        let later = now + SWEEP;
        for (at, id) in ids.iter().enumerate() {
            rules.sampled(*id, *bad.get(at).unwrap_or(&good), later);
            used(choose(&mut rules, later));
        }
        rules.want(later);
        rules.tend(&LIMITS, later);
        ids.iter().filter(|id| rules.streams(**id).is_none_or(|(_, live)| !live)).count()
    };
    assert_eq!(swept(&[]), 0);
    assert_eq!(swept(&[Sample { rtt: RTT * 4, ..good }]), 1);
    assert_eq!(swept(&[Sample { rtt: RTT * 2, ..good }]), 0);
    assert_eq!(swept(&[Sample { lost: 60, ..good }]), 1);
    assert_eq!(
        swept(&[Sample { lost: 60, ..good }; 4]),
        0,
        "the path is bad, and no connection worse than others"
    );
    assert_eq!(swept(&[Sample { black_holes: 1, ..good }, Sample { lost: 60, ..good }]), 2);
    assert_eq!(swept(&[Sample { black_holes: 1, ..good }; 4]), 2);
    let (mut rules, ids) = pool(2, now);
    (0..OUTLIERS.failures).for_each(|_| rules.answered(ids[1], false));
    rules.want(now + SWEEP);
    let close = rules.tend(&LIMITS, now + SWEEP).close;
    assert_eq!(close, [ids[1]]);
}

#[test]
fn what_makes_an_outlier_is_a_setting_that_holds_at_once() {
    let now = Instant::now();
    let good = Sample { rtt: RTT, sent: 1000, lost: 20, black_holes: 0, heard: 1 };
    let ejected = |outliers: Outliers, sample: Sample, failures: u32, after: Duration| {
        let (mut rules, ids) = pool(2, now);
        for id in &ids {
            rules.sampled(*id, if *id == ids[0] { sample } else { good }, now);
        }
        (0..failures).for_each(|_| rules.answered(ids[0], false));
        rules.want(now + after);
        rules.tend(&Limits { outliers, ..LIMITS }, now + after);
        rules.ejected()
    };
    let lossy = Sample { lost: 45, ..good };
    let slow = Sample { rtt: RTT * 5, ..good };
    for (stricter, sample, failures) in [
        (Outliers { loss_percent: 4, ..OUTLIERS }, lossy, 0),
        (Outliers { rtt_times: 4, ..OUTLIERS }, slow, 0),
        (Outliers { failures: 2, ..OUTLIERS }, good, 2),
    ] {
        let lenient = Outliers { rtt_times: 6, ..OUTLIERS };
        assert_eq!(ejected(lenient, sample, failures, SWEEP), 0, "{stricter:?}");
        assert_eq!(ejected(stricter, sample, failures, SWEEP), 1, "{stricter:?}");
        assert_eq!(ejected(stricter, sample, failures, SWEEP / 2), 0, "not yet");
        let often = Outliers { interval: SWEEP / 2, ..stricter };
        assert_eq!(ejected(often, sample, failures, SWEEP / 2), 1);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Choose(u64, bool),
    Release(usize),
    Tend(u64),
    Dialled(bool),
    Answer(usize, bool),
    Sample(usize, u64, u64),
    Die(usize),
    Outdate,
    Limit(usize, u32),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (any::<u64>(), any::<bool>()).prop_map(|(random, patient)| Step::Choose(random, patient)),
        6 => any::<usize>().prop_map(Step::Release),
        6 => (0_u64..4000).prop_map(Step::Tend),
        4 => prop::bool::weighted(0.7).prop_map(Step::Dialled),
        3 => (any::<usize>(), any::<bool>()).prop_map(|(at, well)| Step::Answer(at, well)),
        3 => (any::<usize>(), 1_u64..500, 0_u64..100).prop_map(|(at, rtt, lost)| Step::Sample(at, rtt, lost)),
        1 => any::<usize>().prop_map(Step::Die),
        1 => Just(Step::Outdate),
        1 => (1_usize..5, 1_u32..9).prop_map(|(max, streams)| Step::Limit(max, streams)),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_the_limits_hold(steps in prop::collection::vec(step(), 0..400)) {
        let mut now = Instant::now();
        let mut rules = Rules::new(now);
        let mut limits = LIMITS;
        let (mut streams, mut open, mut waiting) = (Vec::<Id>::new(), Vec::<Id>::new(), 0_usize);
        let mut dial: Option<Dial> = None;
        for step in steps {
            match step {
                Step::Choose(random, patient) => match rules.choose(&limits, now, random, patient) {
                    Choice::Use(id) => {
                        prop_assert!(open.contains(&id));
                        let (count, live) = rules.streams(id).unwrap();
                        prop_assert!(live && count <= limits.streams);
                        streams.push(id);
                    }
                    Choice::Wait { .. } => {
                        waiting += 1;
                        prop_assert!(waiting <= limits.pending);
                    }
                    Choice::Refuse(_) => {}
                },
                Step::Release(at) if !streams.is_empty() => {
                    let id = streams.swap_remove(at % streams.len());
                    rules.released(id, now);
                }
                Step::Tend(millis) => {
                    now += Duration::from_millis(millis);
                    let before = rules.live_count();
                    let work = rules.tend(&limits, now);
                    prop_assert!(rules.live_count() <= limits.max.max(1) + 1);
                    prop_assert!(rules.live_count() <= before);
                    for id in work.close {
                        prop_assert!(!streams.contains(&id), "closed under a stream");
                        open.retain(|other| *other != id);
                    }
                    if let Some(new) = work.dial {
                        prop_assert!(dial.replace(new).is_none(), "two dials at a time");
                    }
                }
                Step::Dialled(well) => if let Some(dial) = dial.take() {
                    for _ in 0..std::mem::take(&mut waiting) {
                        rules.waited();
                    }
                    if well {
                        open.push(rules.dialled(dial, RTT, now));
                    } else {
                        rules.undialled(dial, now, 7);
                    }
                },
                Step::Answer(at, well) if !open.is_empty() => rules.answered(open[at % open.len()], well),
                Step::Sample(at, rtt, lost) if !open.is_empty() => {
                    let sample = Sample { rtt: Duration::from_millis(rtt), sent: 1000, lost, black_holes: 0, heard: now.elapsed().as_nanos() as u64 };
                    rules.sampled(open[at % open.len()], sample, now);
                }
                Step::Die(at) if !open.is_empty() => {
                    let id = open.swap_remove(at % open.len());
                    rules.closed(id);
                    streams.retain(|stream| *stream != id);
                }
                Step::Outdate => rules.outdate(),
                Step::Limit(max, count) => limits = Limits { max, streams: count, ..limits },
                _ => {}
            }
            let counted: u32 = open.iter().filter_map(|id| rules.streams(*id)).map(|(count, _)| count).sum();
            prop_assert_eq!(counted as usize, streams.len());
        }
        // Whatever happened, a pool with a reachable peer serves again.
        for _ in 0..std::mem::take(&mut waiting) {
            rules.waited();
        }
        if let Some(dial) = dial.take() {
            rules.dialled(dial, RTT, now);
        }
        let deadline = now + Duration::from_secs(300);
        loop {
            match rules.choose(&limits, now, 3, true) {
                Choice::Use(_) => break,
                Choice::Wait { .. } => rules.waited(),
                Choice::Refuse(_) => {}
            }
            prop_assert!(now < deadline);
            if let Some(dial) = rules.tend(&limits, now).dial {
                rules.dialled(dial, RTT, now);
            } else if let Some(id) = streams.pop() {
                rules.released(id, now);
            }
            now += Duration::from_secs(1);
        }
    }
}
