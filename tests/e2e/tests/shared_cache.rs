//! Sidecars that share their replies in a real Redis.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests report by panicking"
)]

use std::time::{Duration, Instant};

use qudag_kit::dns::{self, hickory_proto::op::ResponseCode, hickory_proto::rr::RecordType};
use qudag_kit::{Redis, TestSidecar, Unbound, eventually, needs_program};

const PATIENCE: Duration = Duration::from_secs(20);

fn yaml(unbound: &Unbound, redis: &Redis, more: &str) -> String {
    format!(
        "listeners:\n  dns: {{ bind: \"127.0.0.1:0\" }}\nfilters:\n  dns:\n    dns_cache: {{ enabled: true }}\n    \
         dns_shared_cache: {{ enabled: true, url: \"{}\"{more} }}\n    dns_upstream: {{ servers: [\"{}\"] }}\n",
        redis.url(),
        unbound.addr()
    )
}

/// A sidecar with a connection to Redis.
async fn connected(yaml: &str) -> TestSidecar {
    let sidecar = TestSidecar::start(yaml).await;
    is_connected(&sidecar).await;
    sidecar
}

async fn is_connected(sidecar: &TestSidecar) {
    metric_is(sidecar, "connected", &[], 1.0).await;
}

/// Waits until a metric of the shared cache has a value.
async fn metric_is(sidecar: &TestSidecar, name: &str, labels: &[(&str, &str)], value: f64) {
    let name = format!("qudag_sidecar_dns_shared_cache_{name}");
    eventually(PATIENCE, &format!("{name} is {value}"), async || {
        (sidecar.metric(&name, labels).await == value).then_some(())
    })
    .await;
}

/// Where a sidecar has the address of a name from.
async fn source(sidecar: &TestSidecar, name: &str) -> String {
    let found = sidecar.cli_json(&["dns", "lookup", name]).await;
    assert_eq!(found["records"][0]["data"], "192.0.2.1", "{found}");
    found["source"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_fleet_asks_once_and_is_flushed_at_once() {
    needs_program!("unbound", "redis-server", "redis-cli");
    let unbound = Unbound::start(&["a.test. 300 IN A 192.0.2.1"]).await;
    let redis = Redis::start().await;
    let one = connected(&yaml(&unbound, &redis, "")).await;
    let two = connected(&yaml(&unbound, &redis, "")).await;
    assert!(source(&one, "a.test").await.starts_with("upstream"));
    metric_is(&one, "writes_total", &[("result", "stored")], 1.0).await;
    assert_eq!(source(&two, "a.test").await, "shared_cache");
    assert_eq!(source(&two, "a.test").await, "cache");
    assert_eq!(unbound.queries("a.test."), 1);

    let flushed = one.cli_json(&["cache", "flush", "--name", "a.test"]).await;
    assert_eq!((&flushed["flushed"], &flushed["fleet"]), (&1.into(), &"fleet".into()), "{flushed}");
    metric_is(&two, "flushes_total", &[("direction", "received")], 1.0).await;
    assert!(source(&two, "a.test").await.starts_with("upstream"), "neither its own cache nor the shared one");
    assert_eq!(unbound.queries("a.test."), 2);
    metric_is(&two, "writes_total", &[("result", "stored")], 1.0).await;
    assert_eq!(source(&one, "a.test").await, "shared_cache");
    let people = two.cli(&["cache", "flush"]).await.ok();
    assert!(people.contains("whole fleet"), "{people}");

    // Off: no connection is left, and a flush says so.
    two.toggle("dns.dns_shared_cache", false).await;
    eventually(PATIENCE, "the connections of one sidecar are left", async || {
        (redis.clients().await == 2).then_some(())
    })
    .await;
    let flushed = two.cli_json(&["cache", "flush"]).await;
    assert_eq!(flushed["fleet"], "off", "{flushed}");
    two.toggle("dns.dns_shared_cache", true).await;
    is_connected(&two).await;
    metric_is(&one, "flushes_total", &[("direction", "received")], 2.0).await;
}

#[tokio::test]
async fn a_redis_that_comes_and_goes_fails_no_query() {
    needs_program!("unbound", "redis-server", "redis-cli");
    let unbound = Unbound::start(&["a.test. 300 IN A 192.0.2.1"]).await;
    let mut redis = Redis::start().await;
    let sidecar = connected(&yaml(&unbound, &redis, "")).await;
    let server = sidecar.listener("dns").await;
    let mut number = 0;
    // Names that do not exist, one after the other; the longest that one took.
    let mut load = async |length: Duration| {
        let (start, mut longest) = (Instant::now(), Duration::ZERO);
        while start.elapsed() < length {
            number += 1;
            let asked = Instant::now();
            let answer = dns::ask(server, &format!("n{number}.test."), RecordType::A).await.unwrap();
            assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
            longest = longest.max(asked.elapsed());
        }
        assert!(longest < Duration::from_millis(500), "{longest:?}");
    };
    load(Duration::from_millis(300)).await;
    redis.freeze(true);
    load(Duration::from_secs(1)).await;
    redis.freeze(false);
    load(Duration::from_millis(300)).await;
    redis.kill();
    load(Duration::from_secs(1)).await;
    redis.start_again().await;
    load(Duration::from_millis(300)).await;
    is_connected(&sidecar).await;
    let stored = sidecar.metric("qudag_sidecar_dns_shared_cache_writes_total", &[("result", "stored")]).await;
    eventually(PATIENCE, "replies are stored again", async || {
        load(Duration::from_millis(50)).await;
        let now =
            sidecar.metric("qudag_sidecar_dns_shared_cache_writes_total", &[("result", "stored")]).await;
        (now > stored).then_some(())
    })
    .await;
}

#[tokio::test]
async fn secrets_and_reloads() {
    needs_program!("unbound", "redis-server", "redis-cli");
    let unbound = Unbound::start(&["a.test. 300 IN A 192.0.2.1"]).await;
    let redis = Redis::with(&["--requirepass", "sesame"]).await;
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        std::fs::write(dir.path().join(name), text).unwrap();
        format!("{{ file: \"{}\" }}", dir.path().join(name).display())
    };
    let (password, key) = (file("password", "sesame"), file("key", "a secret of the fleet"));
    let sealed = yaml(&unbound, &redis, &format!(", password: {password}, key: {key}"));
    let one = connected(&sealed).await;
    source(&one, "a.test").await;
    metric_is(&one, "writes_total", &[("result", "stored")], 1.0).await;
    let shown = one.cli(&["config", "show"]).await.ok();
    assert!(shown.contains("dns_shared_cache") && !shown.contains("sesame"), "{shown}");
    // Another secret is another fleet; the right one is the same.
    let other = file("other", "a secret of another fleet");
    let two = connected(&yaml(&unbound, &redis, &format!(", password: {password}, key: {other}"))).await;
    assert!(source(&two, "a.test").await.starts_with("upstream"));
    two.reload_with(&sealed).await.ok();
    two.post("/cache/flush", serde_json::json!({ "name": "b.test" })).await;
    let three = connected(&sealed).await;
    assert_eq!(source(&three, "a.test").await, "shared_cache");
}
