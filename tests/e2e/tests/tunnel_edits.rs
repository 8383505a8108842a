//! Settings that operators edit, and filters that they switch, while streams run and new ones come: the new value acts, and nothing is
//! lost.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests report by panicking"
)]

use std::io;
use std::time::{Duration, Instant};

use qudag_e2e::tunnels::{
    Changes, DIRECT, Load, PLAIN, PLAIN_DOOR, Pair, TUNNEL, connect, echo, greeted, node,
};
use qudag_kit::eventually;
use qudag_wan::needs_wan;
use tokio::net::TcpStream;
use tokio::time::sleep;

const STEADY: usize = 20;
const ROWS: usize = 2;
const DEADLINE: Duration = Duration::from_secs(20);
/// A peer that comes and goes, without a sidecar of its own.
const PEER: &str = "10.90.0.2:4009";

async fn loaded() -> (Pair, Load) {
    let pair = Pair::start("delay=5ms").await;
    pair.up().await;
    let load = pair.under_load(STEADY, ROWS).await;
    (pair, load)
}

/// Reloads A with other filters, and the route to [`PEER`].
async fn with(pair: &Pair, filters: &str) {
    let filters = format!("    {filters}\n");
    pair.change(&Changes { filters, plain: Some(PEER), ..Changes::default() }).await;
}

/// Reloads A with other settings of `connection_pooling`.
async fn pooling(pair: &Pair, more: &str) {
    pair.change(&Changes { more: format!("{more}, "), ..Changes::default() }).await;
}

/// A connection to [`PEER`].
async fn call(pair: &Pair) -> io::Result<TcpStream> {
    Ok(greeted(connect(&pair.left, PLAIN_DOOR)).await?.0)
}

async fn peer(pair: &Pair) -> impl AsyncFnOnce() + use<> {
    let peer = node(&pair.right, PEER, 'p');
    async move || {
        peer.abort();
        assert!(peer.await.unwrap_err().is_cancelled());
    }
}

/// Waits until a metric of A is as large.
async fn reaches(pair: &Pair, name: &str, labels: &[(&str, &str)], least: f64) {
    let enough = async || (pair.metric(name, labels).await >= least).then_some(());
    eventually(DEADLINE, &format!("{name}{labels:?} is {least}"), enough).await;
}

async fn opened(pair: &Pair) -> f64 {
    pair.metric("qudag_sidecar_breaker_opened_total", &[("target", PLAIN)]).await
}

/// Lost: none. The peer goes and comes back meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_breaker_edited_under_load_acts_as_edited_and_loses_nothing() {
    needs_wan!();
    let (pair, load) = loaded().await;
    with(&pair, "circuit_breaker: { enabled: true, failures: 3, open: 100ms, max_open: 100ms }").await;
    for failures in 1..=3 {
        assert!(call(&pair).await.is_err());
        assert_eq!(opened(&pair).await, f64::from(failures / 3), "after {failures}");
    }

    // The peer is back; then it takes more failures, and it is open for longer.
    let leave = peer(&pair).await;
    let back = async || call(&pair).await.ok();
    let mut open = eventually(DEADLINE, "a probe finds the peer", back).await;
    with(&pair, "circuit_breaker: { enabled: true, failures: 6, open: 1h, max_open: 1h }").await;
    leave().await;
    let before = opened(&pair).await;
    for failures in 1..=6 {
        assert!(call(&pair).await.is_err());
        assert_eq!(opened(&pair).await - before, f64::from(failures / 6), "after {failures}");
    }
    let leave = peer(&pair).await;
    sleep(Duration::from_millis(500)).await;
    let refused = &[("filter", "circuit_breaker"), ("error", "breaker_open")];
    let count = pair.metric("qudag_sidecar_filter_errors_total", refused).await;
    assert!(call(&pair).await.is_err(), "it is left alone for half an hour at least");
    assert_eq!(pair.metric("qudag_sidecar_filter_errors_total", refused).await, count + 1.0);

    // A shorter maximum holds at once.
    with(&pair, "circuit_breaker: { enabled: true, failures: 6, open: 100ms, max_open: 100ms }").await;
    eventually(DEADLINE, "a probe finds the peer", back).await;
    assert_eq!(pair.metric("qudag_sidecar_breaker_open", &[("target", PLAIN)]).await, 0.0);
    leave().await;
    // The connection from before has seen nothing of all this.
    echo(&mut open, b"still here").await.unwrap();
    load.goes(TUNNEL, Instant::now()).await;
    load.stop().await.assert_nothing_lost();
}

async fn retries(pair: &Pair, result: &str) -> f64 {
    pair.metric("qudag_sidecar_retries_total", &[("kind", "peer"), ("result", result)]).await
}

/// Lost: none. The peer is down at first, and comes back between two attempts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retries_edited_under_load_act_as_edited_and_lose_nothing() {
    needs_wan!();
    let (pair, load) = loaded().await;
    let retry = async |attempts: u32, backoff: &str, budget: u32| {
        let more = format!(
            "retry: {{ enabled: true, attempts: {attempts}, backoff: {backoff}, max_backoff: {backoff}, budget_percent: {}, \
             budget_min_per_second: {budget} }}",
            budget.min(100)
        );
        with(&pair, &more).await;
    };
    for attempts in [3, 6, 1, 2] {
        retry(attempts, "1ms", 1000).await;
        let before = retries(&pair, "failure").await;
        assert!(call(&pair).await.is_err());
        assert_eq!(retries(&pair, "failure").await - before, f64::from(attempts - 1));
    }

    // Without a budget there are none, and with one there are some again.
    retry(5, "1ms", 0).await;
    let (failed, refused) = (retries(&pair, "failure").await, retries(&pair, "budget").await);
    assert!(call(&pair).await.is_err());
    assert_eq!((retries(&pair, "failure").await, retries(&pair, "budget").await), (failed, refused + 1.0));
    retry(5, "1ms", 1000).await;
    assert!(call(&pair).await.is_err());
    assert_eq!(
        (retries(&pair, "failure").await, retries(&pair, "budget").await),
        (failed + 4.0, refused + 1.0)
    );

    // Longer waits: the peer comes back in time for a connection that has begun without it.
    retry(10, "1s", 1000).await;
    let before = retries(&pair, "failure").await;
    let waiting = async {
        reaches(
            &pair,
            "qudag_sidecar_retries_total",
            &[("kind", "peer"), ("result", "failure")],
            before + 1.0,
        )
        .await;
        peer(&pair).await
    };
    let (leave, found) = tokio::join!(waiting, call(&pair));
    let mut found = found.expect("the peer came back");
    assert_eq!(retries(&pair, "success").await, 1.0);
    leave().await;
    echo(&mut found, b"found").await.unwrap();
    load.goes(TUNNEL, Instant::now()).await;
    load.stop().await.assert_nothing_lost();
}

async fn fallbacks(pair: &Pair, reason: &str) -> f64 {
    pair.metric("qudag_sidecar_peer_fallbacks_total", &[("reason", reason)]).await
}

/// Lost: none. What the pool has no room for goes the other way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_of_the_pool_edited_under_load_act_as_edited_and_lose_nothing() {
    needs_wan!();
    let (pair, load) = loaded().await;
    let fallback = "qudag_sidecar_peer_fallbacks_total";

    // The steady streams have more than there may be now.
    pooling(&pair, "max_connections: 1, max_streams: 4, max_pending: 64, pending_timeout: 300ms").await;
    let from = Instant::now();
    reaches(&pair, fallback, &[("reason", "pending_timeout")], 3.0).await;
    load.goes(DIRECT, from).await;
    assert_eq!(fallbacks(&pair, "crowded").await, 0.0, "there is room for all that wait");
    let waited = load.slowest(from);
    assert!(waited >= Duration::from_millis(300), "they went on after {waited:?}");

    // Fewer may wait. A long time to wait makes sure that one does.
    pooling(&pair, "max_connections: 1, max_streams: 4, max_pending: 1, pending_timeout: 2s").await;
    reaches(&pair, fallback, &[("reason", "crowded")], 10.0).await;
    let (crowded, late) = (fallbacks(&pair, "crowded").await, fallbacks(&pair, "pending_timeout").await);
    reaches(&pair, fallback, &[("reason", "crowded")], crowded + 20.0).await;
    assert!(fallbacks(&pair, "pending_timeout").await - late <= 3.0, "one waits at a time, for 2 s");

    // Room for all.
    pooling(&pair, "max_connections: 1, max_streams: 128, max_pending: 64, pending_timeout: 1s").await;
    let all = Instant::now();
    load.goes(TUNNEL, all).await;
    // Those of before have gone on by then.
    sleep(Duration::from_millis(2500)).await;
    let now = Instant::now();
    let before = fallbacks(&pair, "crowded").await + fallbacks(&pair, "pending_timeout").await;
    load.goes(TUNNEL, now).await;
    assert_eq!(fallbacks(&pair, "crowded").await + fallbacks(&pair, "pending_timeout").await, before);
    load.stop().await.assert_nothing_lost();
}

/// Lost: none. One of two connections loses packets, and is left alone as soon as the limits say that this is too much.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outliers_edited_under_load_act_as_edited_and_lose_nothing() {
    needs_wan!();
    let (pair, load) = loaded().await;
    // Silence and long round trips, as on a busy machine, are not what is asked here.
    let outliers = async |interval: &str, loss: u32| {
        let more = format!(
            "min_connections: 2, open_timeout: 5s, answer_timeout: 10s, outliers: {{ interval: {interval}, loss_percent: {loss}, \
             rtt_times: 100, failures: 1000 }}"
        );
        pooling(&pair, &more).await;
    };
    outliers("1h", 5).await;
    let live = async || {
        let pool = pair.pool().await;
        let live = pool["connections"].as_array()?.iter().filter(|it| it["state"] == "live").count();
        (live == 2).then_some(())
    };
    eventually(DEADLINE, "there are two connections", live).await;
    // The new one needs streams of its own, over which enough packets go.
    let more = pair.under_load(STEADY, 0).await;

    // Everyone is as good as the other until every eighth packet to one of them is dropped.
    let told = pair.left.run("ss", &["-uanpH"]).await.ok();
    let pid = format!("pid={},", pair.a.pid());
    let ports: Vec<&str> = told
        .lines()
        .filter(|line| line.contains(&pid))
        .filter_map(|line| line.split_whitespace().nth(3)?.rsplit(':').next())
        .collect();
    let port = ports.first().unwrap_or_else(|| panic!("no sockets in {told}"));
    let drop = format!(
        "add table inet lossy; add chain inet lossy in {{ type filter hook prerouting priority 0; }}; \
         add rule inet lossy in udp sport {port} numgen random mod 8 == 0 drop"
    );
    pair.right.run("nft", &[&drop]).await.ok();
    let ejected = async || pair.pool().await["ejected"].as_u64().unwrap();
    let lost = "qudag_sidecar_peer_packets_lost_total";
    let before = pair.metric(lost, &[]).await;
    reaches(&pair, lost, &[], before + 30.0).await;
    assert_eq!(ejected().await, 0, "nobody looks for an hour");
    outliers("1s", 90).await;
    sleep(Duration::from_millis(2500)).await;
    assert_eq!(ejected().await, 0, "so little does not matter");
    outliers("1s", 5).await;
    let out = async || (ejected().await >= 1).then_some(());
    eventually(DEADLINE, "the bad connection takes no more streams", out).await;
    load.goes(TUNNEL, Instant::now()).await;
    more.stop().await.assert_nothing_lost();
    load.stop().await.assert_nothing_lost();
}

/// Lost: none. What one peer may have of the other side falls below what it has, and rises again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_of_a_peer_edited_under_load_act_as_edited_and_lose_nothing() {
    needs_wan!();
    let (pair, load) = loaded().await;
    for _ in 0..2 {
        let began = Instant::now();
        pair.change_b("    max_connections_per_peer: 10\n").await;
        load.goes(DIRECT, began).await;
        assert!(fallbacks(&pair, "overloaded").await >= 1.0);
        let over = [("side", "in"), ("outcome", "over_share")];
        assert!(pair.b.metric("qudag_sidecar_peer_streams_total", &over).await >= 1.0);
        let began = Instant::now();
        pair.change_b("    max_connections_per_peer: 100\n").await;
        load.goes(TUNNEL, began).await;
    }
    // A pool that may not grow goes on with what it has, and grows when it may.
    pair.change_b("    max_tunnels_per_peer: 1\n").await;
    pooling(&pair, "min_connections: 2").await;
    reaches(&pair, "qudag_sidecar_peer_dials_total", &[("outcome", "overloaded")], 1.0).await;
    load.goes(TUNNEL, Instant::now()).await;
    pair.change_b("    max_tunnels_per_peer: 2\n").await;
    reaches(&pair, "qudag_sidecar_peer_pool_connections", &[("state", "live")], 2.0).await;
    load.goes(TUNNEL, Instant::now()).await;
    load.stop().await.assert_nothing_lost();
}

/// Lost: none, whichever filter is switched.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_filter_toggled_under_load_loses_nothing() {
    needs_wan!();
    let (pair, load) = loaded().await;
    let all = ["circuit_breaker", "memory_pooling", "retry", "peer_discovery"];
    let on: Vec<_> = all.iter().map(|name| format!("    {name}: {{ enabled: true }}\n")).collect();
    pair.change(&Changes { filters: on.concat(), ..Changes::default() }).await;
    load.goes(TUNNEL, Instant::now()).await;
    let taken = async || pair.metric("qudag_sidecar_buffers_taken_total", &[("kind", "peer")]).await;
    for name in all.into_iter().chain(["connection_pooling"]) {
        for round in 0..6 {
            let on = round % 2 == 1;
            pair.a.toggle(&format!("peer.{name}"), on).await;
            let way = if name == "connection_pooling" && !on { DIRECT } else { TUNNEL };
            load.goes(way, Instant::now()).await;
            if name != "memory_pooling" {
                continue;
            }
            // Connections that were being opened when it was switched are open by now, or soon.
            if on {
                let before = taken().await;
                reaches(&pair, "qudag_sidecar_buffers_taken_total", &[("kind", "peer")], before + 10.0).await;
            } else {
                let none = async || {
                    let kept = pair.metric("qudag_sidecar_buffers_kept_bytes", &[("kind", "peer")]).await;
                    (kept == 0.0).then_some(())
                };
                eventually(DEADLINE, "all buffers are given back", none).await;
                let before = taken().await;
                load.goes(TUNNEL, Instant::now()).await;
                assert_eq!(taken().await, before, "no connection asks for any");
            }
        }
    }
    load.stop().await.assert_nothing_lost();
}
