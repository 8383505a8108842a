//! The filter as a whole.

use qudag_filter_api::FilterError;

use super::testing::{Upstream, ask, chain, upstream};
use super::*;
use crate::testing::{env, query, until};
use crate::wire::{rcode, rtype};

#[tokio::test(start_paused = true)]
async fn a_reply_is_kept_until_its_time_is_over_and_grows_older_meanwhile() {
    let server = Upstream::new(rcode::NOERROR, 3600);
    let (chain, state) = chain(&DnsCache { prefetch: false, ..DnsCache::default() }, &server);
    assert_eq!(ask(&chain, "www.example").await, (0, 300, upstream()));
    assert_eq!(ask(&chain, "WWW.example").await, (0, 300, Source::Cache));
    tokio::time::advance(Duration::from_secs(239)).await;
    assert_eq!(ask(&chain, "www.example").await, (0, 61, Source::Cache));
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(ask(&chain, "www.example").await, (1, 300, upstream()));
    let stats = state.stats();
    assert_eq!((stats.hits, stats.misses, stats.inserts, stats.expired), (2, 2, 2, 1));
    assert!((stats.hit_ratio - 0.5).abs() < 1e-9);
}

#[tokio::test]
async fn ten_thousand_that_ask_the_same_at_once_are_one_query() {
    let server = Upstream::new(rcode::NOERROR, 60).closed();
    let (chain, state) = chain(&DnsCache::default(), &server);
    let mut all = tokio::task::JoinSet::new();
    for _ in 0..10_000 {
        let chain = chain.clone();
        all.spawn(async move { ask(&chain, "www.example").await });
    }
    until("all have asked", || state.stats().misses == 10_000).await;
    server.gate.add_permits(1);
    while let Some(reply) = all.join_next().await {
        assert_eq!(reply.unwrap().0, 0);
    }
    assert_eq!(server.asked(), 1);
    assert_eq!(state.stats().inserts, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn queries_that_come_while_others_end_are_no_second_query() {
    let server = Upstream::new(rcode::NOERROR, 60);
    let (chain, _) = chain(&DnsCache::default(), &server);
    for round in 0..50 {
        let mut all = tokio::task::JoinSet::new();
        for _ in 0..50 {
            let chain = chain.clone();
            all.spawn(async move { ask(&chain, &format!("n{round}.example")).await });
        }
        all.join_all().await;
        assert_eq!(server.asked(), round + 1);
    }
}

#[tokio::test]
async fn the_first_to_ask_may_go_away() {
    let server = Upstream::new(rcode::NOERROR, 60).closed();
    let (chain, state) = chain(&DnsCache::default(), &server);
    let first = tokio::spawn({
        let chain = chain.clone();
        async move { ask(&chain, "www.example").await }
    });
    until("the server is asked", || server.asked() == 1).await;
    let second = tokio::spawn({
        let chain = chain.clone();
        async move { ask(&chain, "www.example").await }
    });
    until("both wait", || state.stats().misses == 2).await;
    first.abort();
    server.gate.add_permits(1);
    assert_eq!(second.await.unwrap(), (0, 60, upstream()));
    assert_eq!(server.asked(), 1);
}

#[tokio::test]
async fn after_a_flush_nobody_gets_an_answer_from_before() {
    let server = Upstream::new(rcode::NOERROR, 60).closed();
    let (chain, state) = chain(&DnsCache::default(), &server);
    let spawn = || {
        let chain = chain.clone();
        tokio::spawn(async move { ask(&chain, "www.example").await })
    };
    let before = spawn();
    until("the server is asked", || server.asked() == 1).await;
    state.flush(&FlushSelector::name("other.example").unwrap());
    let after = spawn();
    until("the server is asked again", || server.asked() == 2).await;
    server.gate.add_permits(2);
    assert_eq!((before.await.unwrap().0, after.await.unwrap().0), (0, 1));
    assert_eq!(ask(&chain, "www.example").await, (1, 60, Source::Cache));
    assert_eq!(state.flush(&FlushSelector::All), 1);
    assert_eq!(ask(&chain, "www.example").await.0, 2);
}

#[tokio::test]
async fn errors_reach_everybody_and_a_panic_is_one() {
    let settings = DnsCache::default();
    let state = settings.state(&env(), None).unwrap();
    let inner = service_fn::<Dns, _, _>(|query: DnsQuery| async move {
        assert!(query.parsed().qtype == rtype::A, "an accident");
        Err(FilterError::Upstream("down".into()))
    });
    let chain = settings.wrap(state, inner);
    let error = |qtype| {
        let chain = chain.clone();
        async move { chain.oneshot(query("www.example", qtype)).await.unwrap_err().label() }
    };
    assert_eq!(error(rtype::A).await, "upstream");
    assert_eq!(error(rtype::AAAA).await, "internal");
    assert_eq!(error(rtype::AAAA).await, "internal", "what panicked does not block those who come later");
}

#[test]
fn settings_out_of_range_are_refused_with_a_hint() {
    let check = |text: &str| {
        let settings: DnsCache = serde_json::from_str(text).unwrap();
        let errors = settings.check(&ConfigPath::root());
        assert!(errors.iter().all(|error| error.hint.is_some()));
        errors.into_iter().map(|error| error.at.to_string()).collect::<Vec<_>>()
    };
    assert!(check("{}").is_empty());
    assert_eq!(check(r#"{"max_ttl": "301s"}"#), ["max_ttl"]);
    assert_eq!(check(r#"{"max_ttl": "0s", "min_ttl": "1s"}"#), ["max_ttl", "min_ttl"]);
    assert_eq!(check(r#"{"negative_ttl": "31s", "max_size": "1KiB"}"#), ["max_size", "negative_ttl"]);
    for soft in ["0s", "301s"] {
        assert_eq!(check(&format!(r#"{{"soft_ttl": "{soft}"}}"#)), ["soft_ttl"]);
    }
    assert_eq!(check(r#"{"stale_wait": "3s", "failure_ttl": "6s"}"#), ["stale_wait", "failure_ttl"]);
    assert_eq!(check(r#"{"fresh_only": ["a.example", "*.b", "c..d"]}"#), ["fresh_only.2"]);
    assert_eq!(check(r#"{"snapshot": {"file": "/dev/null/x"}}"#), ["snapshot.file"]);
    assert!(serde_json::from_str::<DnsCache>(r#"{"snapshot": {"path": "x"}}"#).is_err());
    assert!(serde_json::from_str::<DnsCache>(r#"{"ttl": "1s"}"#).is_err());
}

#[tokio::test]
async fn a_reload_keeps_the_entries_and_a_shorter_limit_applies_to_them() {
    let server = Upstream::new(rcode::NOERROR, 300);
    let settings = DnsCache::default();
    let (chain, state) = chain(&settings, &server);
    ask(&chain, "www.example").await;
    let shorter = DnsCache { max_ttl: Period::secs(10), ..settings.clone() };
    let kept = shorter.state(&env(), Some((&settings, Arc::clone(&state)))).unwrap();
    assert!(Arc::ptr_eq(&kept, &state));
    let chain = shorter.wrap(kept, server.service());
    assert_eq!(ask(&chain, "www.example").await, (0, 10, Source::Cache));
    let larger = DnsCache { max_size: ByteSize::mib(64), ..settings.clone() };
    let kept = larger.state(&env(), Some((&settings, state))).unwrap();
    assert_eq!(ask(&larger.wrap(kept, server.service()), "www.example").await.2, Source::Cache);
    assert_eq!(server.asked(), 1);
}
