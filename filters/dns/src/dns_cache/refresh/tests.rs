//! Prefetch, stale answers, failures and rebuilds, with paused time.

use std::sync::Arc;
use std::time::Duration;

use qudag_filter_api::{FilterError, FilterSpec, Period};
use tower::ServiceExt;

use super::*;
use crate::dns_cache::testing::{Does, Upstream, ask, chain, pass, reasons, secs, upstream};
use crate::dns_cache::{DnsCache, FlushSelector};
use crate::kind::Trace;
use crate::testing::{env, query};
use crate::wire::{rcode, rtype};
use crate::{Source, TraceStep};

/// Nothing is refreshed by itself.
fn calm() -> DnsCache {
    DnsCache { prefetch: false, ..DnsCache::default() }
}

#[tokio::test(start_paused = true)]
async fn a_warm_name_never_waits() {
    for ttl in [2, 10, 60, 3600] {
        let server = Upstream::new(rcode::NOERROR, ttl);
        let (chain, state) = chain(&DnsCache::default(), &server);
        ask(&chain, "www.example").await;
        let period = secs(u64::from(ttl.min(240)));
        let mut last = 0;
        // Twice in each period, over forty of them.
        for _ in 0..80 {
            pass(period / 2 - Duration::from_millis(50)).await;
            let (number, shown, source) = ask(&chain, "www.example").await;
            assert_eq!(source, Source::Cache);
            assert!(number >= last && shown > 0);
            last = number;
        }
        let stats = state.stats();
        assert_eq!((stats.hits, stats.misses, stats.prefetch_failures), (80, 1, 0));
        assert!(stats.prefetches >= 35 && stats.prefetches <= 60, "{stats:?}");
        assert_eq!(server.refreshes() as u64, stats.prefetches);
    }
}

#[tokio::test(start_paused = true)]
async fn what_nobody_asks_for_is_left_alone() {
    let server = Upstream::new(rcode::NOERROR, 60);
    let (chain, state) = chain(&DnsCache::default(), &server);
    ask(&chain, "once.example").await;
    pass(secs(200)).await;
    assert_eq!((server.asked(), state.stats().prefetches), (1, 0));
    ask(&chain, "once.example").await;
    ask(&chain, "once.example").await;
    pass(secs(1000)).await;
    // After the hit, and once more in case the name is asked for every now and then.
    assert_eq!((server.asked(), state.stats().prefetches), (4, 2));
}

#[tokio::test(start_paused = true)]
async fn a_cache_that_is_off_and_an_old_generation_refresh_nothing() {
    let (old, new) = (Upstream::new(rcode::NOERROR, 60), Upstream::new(rcode::NOERROR, 60));
    let settings = DnsCache::default();
    let (chain, state) = chain(&settings, &old);
    ask(&chain, "www.example").await;
    ask(&chain, "www.example").await;
    let newer = settings.wrap(Arc::clone(&state), new.service());
    pass(secs(59)).await;
    assert_eq!((old.asked(), new.asked()), (1, 1), "the newest one asks");
    ask(&newer, "www.example").await;
    drop(newer);
    pass(secs(59)).await;
    assert_eq!((old.asked(), new.asked()), (2, 1), "the one that is left asks");
    ask(&chain, "www.example").await;
    drop(chain);
    pass(secs(299)).await;
    assert_eq!((old.asked(), new.asked()), (2, 1), "off");
    assert_eq!(state.rebuild().await, Err(RebuildError::Off));
}

#[tokio::test(start_paused = true)]
async fn servers_that_are_down_meet_no_storm() {
    let server = Upstream::new(rcode::NOERROR, 60);
    let (chain, state) = chain(&DnsCache::default(), &server);
    for _ in 0..2 {
        for i in 0..1_000 {
            ask(&chain, &format!("n{i}.example")).await;
        }
    }
    server.down();
    pass(secs(46)).await;
    let before = server.asked();
    pass(secs(30)).await;
    let meanwhile = server.asked() - before;
    // 1000 refreshes are due within 6 seconds; at most 64 go at once, and ever fewer try.
    assert!((3..=400).contains(&meanwhile), "{meanwhile}");
    assert!(state.stats().prefetch_failures >= 3);
    server.now(Does::Answer(rcode::NOERROR, 60));
    pass(secs(60)).await;
    assert!(state.stats().prefetches > 900, "{:?}", state.stats());
}

#[tokio::test(start_paused = true)]
async fn a_name_that_always_fails_keeps_no_other_from_being_refreshed() {
    let server = Upstream::new(rcode::NOERROR, 60);
    let (chain, state) = chain(&DnsCache::default(), &server);
    for _ in 0..2 {
        ask(&chain, "broken.example").await;
    }
    server.break_name("broken.example");
    ask(&chain, "www.example").await;
    for _ in 0..30 {
        pass(secs(7)).await;
        assert_eq!(ask(&chain, "www.example").await.2, Source::Cache);
    }
    let stats = state.stats();
    assert!(stats.prefetch_failures > 10 && stats.misses == 2, "{stats:?}");
}

#[tokio::test(start_paused = true)]
async fn a_stale_answer_is_better_than_none_and_ends_at_300_seconds() {
    let server = Upstream::new(rcode::NOERROR, 60);
    let (chain, state) = chain(&calm(), &server);
    ask(&chain, "www.example").await;
    server.down();
    pass(secs(61)).await;
    assert_eq!(ask(&chain, "www.example").await, (0, 5, Source::Cache));
    assert_eq!(reasons(&chain, "www.example").await, (rcode::NOERROR, Some(3), None));
    assert_eq!(server.asked(), 2, "the failure is remembered");
    pass(secs(236)).await;
    assert_eq!(ask(&chain, "www.example").await, (0, 3, Source::Cache), "300 s in all");
    pass(secs(5)).await;
    assert_eq!(reasons(&chain, "www.example").await, (rcode::SERVFAIL, Some(22), None));
    assert_eq!(reasons(&chain, "www.example").await, (rcode::SERVFAIL, Some(22), Some(13)), "cached");
    let stats = state.stats();
    assert_eq!((stats.stale_failed, stats.failures_served), (3, 1));
    server.now(Does::Answer(rcode::NOERROR, 60));
    pass(secs(5)).await;
    assert_eq!(ask(&chain, "www.example").await.2, upstream());
}

#[tokio::test(start_paused = true)]
async fn who_has_a_stale_answer_waits_for_50_milliseconds() {
    let server = Upstream::new(rcode::NOERROR, 60);
    let (chain, state) = chain(&calm(), &server);
    ask(&chain, "www.example").await;
    pass(secs(61)).await;
    server.now(Does::Late(Duration::from_millis(49), 60));
    assert_eq!(ask(&chain, "www.example").await, (1, 60, upstream()));
    pass(secs(61)).await;
    server.now(Does::Late(Duration::from_millis(500), 60));
    let start = tokio::time::Instant::now();
    assert_eq!(ask(&chain, "www.example").await, (1, 5, Source::Cache));
    assert_eq!(start.elapsed(), Duration::from_millis(50));
    pass(Duration::from_millis(500)).await;
    assert_eq!(ask(&chain, "www.example").await, (2, 60, Source::Cache), "the refresh went on");
    assert_eq!(state.stats().stale_slow, 1);
    let patient = DnsCache { stale_wait: Period::secs(1), ..calm() };
    let chain = patient.wrap(Arc::clone(&state), server.service());
    pass(secs(61)).await;
    assert_eq!(ask(&chain, "www.example").await, (3, 60, upstream()));
}

#[tokio::test(start_paused = true)]
async fn the_soft_limit_is_when_an_answer_is_asked_for_again() {
    let server = Upstream::new(rcode::NOERROR, 200);
    let (chain, state) = chain(&DnsCache { soft_ttl: Period::secs(10), ..calm() }, &server);
    ask(&chain, "www.example").await;
    pass(secs(9)).await;
    assert_eq!(ask(&chain, "www.example").await, (0, 191, Source::Cache));
    pass(secs(1)).await;
    assert_eq!(ask(&chain, "www.example").await, (1, 200, upstream()));
    pass(secs(20)).await;
    let chain = calm().wrap(Arc::clone(&state), server.service());
    assert_eq!(
        ask(&chain, "www.example").await,
        (1, 180, Source::Cache),
        "another limit, what is there already"
    );
}

#[tokio::test(start_paused = true)]
async fn rollback_names_are_never_stale() {
    let server = Upstream::new(rcode::NOERROR, 5);
    let settings =
        DnsCache { fresh_only: vec!["service.example".into(), "*.other.example".into()], ..calm() };
    let (chain, _) = chain(&settings, &server);
    let names = ["service.example", "a.service.example", "b.other.example", "www.example"];
    for name in names {
        ask(&chain, name).await;
    }
    server.down();
    pass(secs(5)).await;
    for name in &names[..3] {
        assert_eq!(reasons(&chain, name).await.0, rcode::SERVFAIL, "{name}");
    }
    assert_eq!(reasons(&chain, "www.example").await.0, rcode::NOERROR);
    let never = DnsCache { serve_stale: false, ..calm() };
    let chain = never.wrap(never.state(&env(), None).unwrap(), server.service());
    assert_eq!(reasons(&chain, "www.example").await.0, rcode::SERVFAIL);
}

#[tokio::test(start_paused = true)]
async fn a_stale_answer_that_was_flushed_meanwhile_is_not_given() {
    let server = Upstream::new(rcode::NOERROR, 60);
    let (chain, state) = chain(&calm(), &server);
    ask(&chain, "www.example").await;
    pass(secs(61)).await;
    server.now(Does::Late(Duration::from_millis(500), 60));
    let waiting = tokio::spawn({
        let chain = chain.clone();
        async move { ask(&chain, "www.example").await }
    });
    pass(Duration::from_millis(10)).await;
    state.flush(&FlushSelector::name("www.example").unwrap());
    assert_eq!(waiting.await.unwrap().0, 1);
}

#[tokio::test(start_paused = true)]
async fn names_that_do_not_exist_are_forgotten_after_30_seconds() {
    let server = Upstream::new(rcode::NXDOMAIN, 5);
    let (chain, _) = chain(&calm(), &server);
    assert_eq!(reasons(&chain, "www.example").await, (rcode::NXDOMAIN, None, None));
    assert_eq!(reasons(&chain, "www.example").await, (rcode::NXDOMAIN, None, None));
    server.down();
    pass(secs(6)).await;
    assert_eq!(reasons(&chain, "www.example").await, (rcode::NXDOMAIN, Some(19), None));
    pass(secs(24)).await;
    assert_eq!(reasons(&chain, "www.example").await.0, rcode::SERVFAIL);
}

#[tokio::test(start_paused = true)]
async fn failures_are_kept_for_longer_and_longer_and_a_flush_forgets_them() {
    let server = Upstream::new(rcode::SERVFAIL, 60);
    let (chain, state) = chain(&calm(), &server);
    let mut asked = Vec::new();
    for second in 0..20 {
        reasons(&chain, "www.example").await;
        if server.asked() > asked.len() {
            asked.push(second);
        }
        pass(secs(1)).await;
    }
    assert_eq!(asked, [0, 1, 3, 7, 12, 17]);
    assert_eq!(state.stats().failures_served, 14);
    state.flush(&FlushSelector::name("other.example").unwrap());
    reasons(&chain, "www.example").await;
    assert_eq!(server.asked(), 7);
    let without = DnsCache { failure_ttl: Period::secs(0), ..calm() };
    let chain = without.wrap(state, server.service());
    for _ in 0..3 {
        reasons(&chain, "www.example").await;
    }
    assert_eq!(server.asked(), 10);
}

#[tokio::test(start_paused = true)]
async fn a_failure_hides_no_answer_that_is_still_good() {
    let server = Upstream::new(rcode::NOERROR, 60);
    let (chain, _) = chain(&calm(), &server);
    ask(&chain, "www.example").await;
    for does in [
        Does::Answer(rcode::SERVFAIL, 60),
        Does::Answer(rcode::REFUSED, 60),
        Does::Answer(rcode::FORMERR, 60),
        Does::Fail(FilterError::Upstream("down".into())),
        Does::Fail(FilterError::Overloaded("full".into())),
    ] {
        server.now(does.clone());
        for _ in 0..5 {
            pass(secs(9)).await;
            assert_eq!(reasons(&chain, "www.example").await.0, rcode::NOERROR, "{does:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_kept_replaces_what_was() {
    let server = Upstream::new(rcode::NOERROR, 60);
    let (chain, _) = chain(&calm(), &server);
    ask(&chain, "www.example").await;
    pass(secs(61)).await;
    server.now(Does::Answer(rcode::NOERROR, 0));
    assert_eq!(ask(&chain, "www.example").await, (1, 0, upstream()));
    server.down();
    assert_eq!(reasons(&chain, "www.example").await.0, rcode::SERVFAIL, "not the one from before");
}

#[tokio::test(start_paused = true)]
async fn data_from_another_cache_keep_their_age() {
    let server = Upstream::new(rcode::NOERROR, 60);
    server.now(Does::Old(200, 100));
    let (chain, _) = chain(&calm(), &server);
    assert_eq!(ask(&chain, "www.example").await, (0, 100, upstream()));
    pass(secs(30)).await;
    assert_eq!(ask(&chain, "www.example").await, (0, 70, Source::Cache));
    pass(secs(11)).await;
    server.down();
    assert_eq!(reasons(&chain, "www.example").await.1, Some(3), "soft at 240 s");
    pass(secs(60)).await;
    assert_eq!(reasons(&chain, "www.example").await.0, rcode::SERVFAIL, "hard at 300 s");
}

#[tokio::test(start_paused = true)]
async fn a_rebuild_asks_again_for_everything() {
    let server = Upstream::new(rcode::NOERROR, 240);
    let (chain, state) = chain(&calm(), &server);
    for i in 0..100 {
        ask(&chain, &format!("n{i}.example")).await;
    }
    let done = state.rebuild().await.unwrap();
    assert_eq!((done.total, done.done, done.failed, server.asked()), (100, 100, 0, 200));
    let (number, ttl, source) = ask(&chain, "n7.example").await;
    assert!(number >= 100 && ttl == 240 && source == Source::Cache);
    server.now(Does::Late(secs(1), 240));
    let (first, second) = tokio::join!(state.rebuild(), async {
        tokio::task::yield_now().await;
        assert!(state.stats().rebuilding);
        state.rebuild().await
    });
    assert_eq!((first.unwrap().done, second), (100, Err(RebuildError::Running)));
    server.down();
    let failed = state.rebuild().await.unwrap();
    assert_eq!((failed.done, failed.failed), (0, 100));
    let stats = state.stats();
    assert_eq!((stats.rebuilding, stats.rebuild_failed, stats.entries), (false, 100, 100), "they stay");
}

#[tokio::test(start_paused = true)]
async fn the_trace_says_what_the_cache_did_and_why() {
    let server = Upstream::new(rcode::NOERROR, 60);
    let (chain, _) = chain(&calm(), &server);
    let traced = async || {
        let trace = Trace::default();
        drop(chain.clone().oneshot(query("www.example", rtype::A).traced(trace.clone())).await);
        let mut steps = trace.steps();
        assert!(steps.iter().all(|step: &TraceStep| step.filter == "dns_cache"));
        steps.pop().unwrap().what
    };
    assert_eq!(traced().await, "miss: nothing is held");
    pass(secs(2)).await;
    assert_eq!(traced().await, "hit, 2s old");
    server.down();
    pass(secs(60)).await;
    assert_eq!(traced().await, "stale, 62s old: the servers failed (timeout)");
    assert_eq!(traced().await, "stale, 62s old: the servers failed (timeout) 0ns ago");
    pass(secs(300)).await;
    assert_eq!(traced().await, "miss: the time of what is held, 362s old, is over");
    assert_eq!(traced().await, "failure of 0ns ago: timeout");
}

#[tokio::test]
async fn the_snapshot_is_written_and_a_flush_removes_it() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("cache");
    let snapshot = Some(crate::dns_cache::SnapshotFile { file: file.clone(), key: None });
    let settings = DnsCache { snapshot, ..DnsCache::default() };
    let server = Upstream::new(rcode::NOERROR, 60);
    let (chain, state) = chain(&settings, &server);
    ask(&chain, "www.example").await;
    drop((chain, state));
    crate::testing::until("it is written at the end", || file.exists()).await;
    let (chain, state) = self::chain(&settings, &server);
    assert_eq!(ask(&chain, "www.example").await.2, Source::Cache);
    assert_eq!((server.asked(), state.stats().snapshot_restored), (1, 1));
    state.flush(&FlushSelector::rtype("MX").unwrap());
    assert!(!file.exists(), "until the next one is written");
    let kept = state.lasting().snapshots.written.lock().unwrap().is_some();
    assert!(!kept);
    drop((chain, state));
}

#[tokio::test(start_paused = true)]
async fn the_snapshot_is_written_every_minute() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("cache");
    let snapshot = Some(crate::dns_cache::SnapshotFile { file: file.clone(), key: None });
    let (_chain, state) =
        chain(&DnsCache { snapshot, ..DnsCache::default() }, &Upstream::new(rcode::NOERROR, 60));
    pass(secs(59)).await;
    assert!(!file.exists());
    pass(secs(2)).await;
    crate::testing::until("it is written", || file.exists()).await;
    assert!(state.stats().snapshot_age_seconds.is_some());
}
