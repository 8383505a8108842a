use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const RULES: Rules =
    Rules { max_lag: Duration::from_secs(10), max_lag_bytes: None, stale: Duration::from_secs(3) };

fn report(primary: bool, lsn: Lsn, timeline: u32) -> Option<Report> {
    Some(Report { primary, lsn, timeline, system: 7 })
}

/// A primary and a replica, both at 100.
fn pair() -> (Topology, Instant) {
    let (mut topology, now) = (Topology::new(2), Instant::now());
    assert_eq!(topology.primary(), Some(0));
    topology.probed(0, now, report(true, 100, 1));
    assert!(!topology.is_settled());
    topology.probed(1, now, report(false, 100, 1));
    assert!(topology.is_settled());
    (topology, now)
}

#[test]
fn a_promoted_server_is_the_primary_and_the_old_one_never_again() {
    let (mut topology, now) = pair();
    topology.probed(0, now + SECOND, None);
    assert_eq!(topology.primary(), Some(0), "a primary that does not answer is still the only one");
    topology.probed(1, now + SECOND, report(true, 120, 2));
    assert_eq!(topology.primary(), Some(1));
    topology.probed(0, now + 2 * SECOND, report(true, 500, 1));
    assert_eq!(topology.primary(), Some(1));
    assert_eq!(topology.judge(0, now + 2 * SECOND, None, &RULES), Err(Ban::NoReplica));
    topology.probed(1, now + 3 * SECOND, None);
    topology.probed(0, now + 3 * SECOND, report(true, 600, 1));
    assert_eq!(topology.primary(), Some(1), "also while the new one does not answer");
    // It follows the new one.
    topology.probed(1, now + 4 * SECOND, report(true, 130, 2));
    topology.probed(0, now + 4 * SECOND, report(false, 130, 2));
    assert_eq!(topology.judge(0, now + 4 * SECOND, None, &RULES), Ok(()));
    // And is promoted again.
    topology.probed(0, now + 5 * SECOND, report(true, 130, 3));
    assert_eq!(topology.primary(), Some(0));
}

#[test]
fn of_two_primaries_the_one_with_the_later_timeline_is_it_and_the_other_one_is_old() {
    let (mut topology, now) = pair();
    assert!(!topology.is_old(0) && !topology.is_old(1));
    topology.probed(1, now + SECOND, report(true, 120, 2));
    assert_eq!(topology.primary(), Some(1));
    assert!(topology.is_old(0) && !topology.is_old(1), "as it was heard of last");
    topology.probed(0, now + SECOND, None);
    assert!(topology.is_old(0), "also while it says nothing");
    topology.probed(0, now + 2 * SECOND, report(true, 500, 1));
    assert!(topology.is_old(0));
    topology.probed(0, now + 3 * SECOND, report(false, 130, 2));
    assert!(!topology.is_old(0));
    // Both were promoted from the same: whoever came first.
    topology.probed(0, now + 4 * SECOND, report(true, 130, 2));
    assert_eq!(topology.primary(), Some(1));
    assert!(topology.is_old(0));
}

#[test]
fn a_short_pause_forgets_nothing_and_a_suspect_is_not_used() {
    let (mut topology, now) = pair();
    topology.forget(now + SECOND, 2 * SECOND);
    assert!(topology.is_settled());
    assert_eq!(topology.judge(1, now, None, &RULES), Ok(()));
    topology.suspect(1);
    assert_eq!(topology.judge(1, now, None, &RULES), Err(Ban::Silent));
    topology.forget(now + 3 * SECOND, 2 * SECOND);
    assert!(!topology.is_settled());
}

#[test]
fn there_is_no_primary_while_only_an_old_one_or_a_replica_is_seen() {
    let (mut topology, now) = pair();
    topology.probed(1, now + SECOND, report(false, 100, 2));
    assert_eq!(topology.primary(), None, "a replica follows a primary that was not seen");
    let (mut topology, now) = pair();
    topology.probed(0, now + SECOND, report(false, 100, 1));
    assert_eq!(topology.primary(), None);
    topology.probed(1, now + SECOND, report(true, 100, 2));
    assert_eq!(topology.primary(), Some(1));
}

#[test]
fn what_was_seen_of_timelines_outlives_a_pause_and_other_servers() {
    let (mut topology, now) = pair();
    topology.probed(1, now, report(true, 120, 2));
    topology.forget(now + 5 * SECOND, SECOND);
    topology.probed(1, now + SECOND, None);
    topology.probed(0, now + SECOND, report(true, 500, 1));
    assert_ne!(topology.primary(), Some(0));
    let mut other = Topology::new(3);
    other.inherit(&topology);
    other.probed(0, now + SECOND, report(true, 500, 1));
    assert_eq!(other.primary(), None);
}

#[test]
fn a_server_of_another_cluster_is_not_used() {
    let (mut topology, now) = pair();
    let foreign = Some(Report { primary: true, lsn: 900, timeline: 9, system: 8 });
    topology.probed(1, now + SECOND, foreign);
    assert_eq!(topology.primary(), Some(0));
    assert_eq!(topology.judge(1, now + SECOND, None, &RULES), Err(Ban::Foreign));
    // Also when it answers first.
    let mut topology = Topology::new(2);
    topology.probed(1, now, foreign);
    topology.probed(0, now, report(true, 100, 1));
    assert_eq!(topology.primary(), Some(0));
    assert_eq!(topology.judge(1, now, None, &RULES), Err(Ban::Foreign));
}

#[test]
fn a_replica_is_behind_since_the_primary_has_left_it() {
    let (mut topology, now) = pair();
    assert_eq!(topology.lag(1), Some(Duration::ZERO));
    for second in 1..=12 {
        topology.probed(0, now + second * SECOND, report(true, 100 + u64::from(second), 1));
        topology.probed(1, now + second * SECOND, report(false, 100, 1));
        assert_eq!(topology.lag(1), Some(second * SECOND));
        let expected = if second <= 10 { Ok(()) } else { Err(Ban::Lag) };
        assert_eq!(topology.judge(1, now + second * SECOND, None, &RULES), expected);
    }
    let bytes = Rules { max_lag_bytes: Some(5), max_lag: Duration::from_secs(60), ..RULES };
    assert_eq!(topology.judge(1, now + 12 * SECOND, None, &bytes), Err(Ban::Lag));
    topology.probed(1, now + 12 * SECOND, report(false, 107, 1));
    assert_eq!(topology.judge(1, now + 12 * SECOND, None, &bytes), Ok(()));
    assert_eq!(topology.judge(1, now + 16 * SECOND, None, &RULES), Err(Ban::Silent));
}

#[test]
fn a_write_is_read_back() {
    let (mut topology, now) = pair();
    let wrote = now + SECOND / 2;
    let at = |topology: &Topology, after: u32| topology.replica(1, Some(wrote), now + after * SECOND, &RULES);
    assert_eq!(at(&topology, 1), Err(Ban::Behind), "where the write ended is not known");
    topology.probed(0, now + SECOND, report(true, 150, 1));
    topology.probed(1, now + SECOND, report(false, 149, 1));
    assert_eq!(at(&topology, 1), Err(Ban::Behind));
    topology.probed(0, now + 2 * SECOND, report(true, 190, 1));
    topology.probed(1, now + 2 * SECOND, report(false, 150, 1));
    assert_eq!(at(&topology, 2), Ok(1));
    // After a promotion, positions of the old timeline mean nothing.
    topology.probed(0, now + 3 * SECOND, report(false, 190, 2));
    topology.probed(1, now + 3 * SECOND, report(true, 151, 2));
    assert_eq!(topology.floor(wrote), Some(151));
    assert_eq!(at(&topology, 3), Ok(0));
}

#[test]
fn sessions_stay_with_their_replica_and_spread() {
    let (mut topology, now) = (Topology::new(4), Instant::now());
    topology.probed(0, now, report(true, 100, 1));
    for server in 1..4 {
        topology.probed(server, now, report(false, 100, 1));
    }
    let of = |topology: &Topology, seed| topology.replica(seed, None, now, &RULES).unwrap();
    let before: Vec<_> = (0..300).map(|seed| of(&topology, seed)).collect();
    for server in 1..4 {
        assert!(before.iter().filter(|chosen| **chosen == server).count() > 50);
    }
    topology.probed(3, now, None);
    for (seed, chosen) in (0..300).zip(before) {
        let after = of(&topology, seed);
        assert!(after != 3 && (chosen == 3 || chosen == after));
    }
}

/// A cluster as it can be: one history of log positions, in which promotions begin timelines.
#[derive(Clone, Debug)]
enum Step {
    Write(u64),
    Replay(usize, u64),
    Promote(usize),
    Probe(usize),
    Lose(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let server = 0..3_usize;
    prop_oneof![
        (1..50_u64).prop_map(Step::Write),
        (server.clone(), 1..80_u64).prop_map(|(server, bytes)| Step::Replay(server, bytes)),
        server.clone().prop_map(Step::Promote),
        server.clone().prop_map(Step::Probe),
        server.clone().prop_map(Step::Probe),
        server.prop_map(Step::Lose),
    ]
}

proptest! {
    #[test]
    fn no_read_misses_what_its_session_wrote_and_no_write_goes_to_an_old_primary(
        steps in proptest::collection::vec(step(), 1..120),
        seed: u64,
    ) {
        let mut topology = Topology::new(3);
        let mut now = Instant::now();
        // Position and timeline of each; the real primary; where and when the session wrote last.
        let (mut at, mut primary) = ([(100_u64, 1_u32); 3], 0_usize);
        let mut old = [false; 3];
        let mut latest_seen = 0;
        let mut wrote: Option<(Instant, u64, u32)> = None;
        for step in steps {
            now += Duration::from_millis(100);
            match step {
                Step::Write(bytes) => {
                    at[primary].0 += bytes;
                    wrote = Some((now, at[primary].0, at[primary].1));
                }
                Step::Replay(server, bytes) if server != primary && !old[server] && at[server].1 == at[primary].1 => {
                    at[server].0 = (at[server].0 + bytes).min(at[primary].0);
                }
                Step::Replay(..) => {}
                Step::Promote(server) if server != primary && !old[server] && at[server].1 == at[primary].1 => {
                    old[primary] = true;
                    // Those that have no more than it may follow it.
                    for other in 0..3 {
                        if other != primary && other != server && !old[other] && at[other].0 <= at[server].0 {
                            at[other].1 += 1;
                        }
                    }
                    at[server].1 += 1;
                    primary = server;
                    // What the new primary does not have is lost for everybody.
                    wrote = wrote.filter(|(_, lsn, _)| *lsn <= at[server].0);
                }
                Step::Promote(_) => {}
                Step::Probe(server) => {
                    let (lsn, timeline) = at[server];
                    latest_seen = latest_seen.max(timeline);
                    topology.probed(server, now, report(server == primary || old[server], lsn, timeline));
                }
                Step::Lose(server) => topology.probed(server, now, None),
            }
            if let Some(chosen) = topology.primary()
                && topology.members[chosen].report.is_some()
            {
                prop_assert_eq!(topology.members[chosen].report.unwrap().0.timeline, latest_seen);
            }
            if let Ok(chosen) = topology.replica(seed, wrote.map(|(when, ..)| when), now, &RULES) {
                prop_assert!(topology.members[chosen].report.unwrap().0.timeline == latest_seen);
                if let Some((_, lsn, timeline)) = wrote {
                    // A promotion that no probe has shown yet cannot be known.
                    prop_assert!(latest_seen < timeline || at[chosen].0 >= lsn, "{:?} {}", at[chosen], lsn);
                }
            }
        }
    }
}
