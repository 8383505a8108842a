//! What operators change while streams are open: nothing of it may cost one.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests report by panicking"
)]

use std::time::{Duration, Instant};

use qudag_e2e::tunnels::{Changes, DIRECT, Load, Pair, TUNNEL, echo};
use qudag_kit::eventually;
use qudag_wan::needs_wan;
use tokio::time::sleep;

const STEADY: usize = 20;
const ROWS: usize = 2;
const DEADLINE: Duration = Duration::from_secs(20);

async fn loaded() -> (Pair, Load) {
    let pair = Pair::start("delay=5ms").await;
    pair.up().await;
    let load = pair.under_load(STEADY, ROWS).await;
    (pair, load)
}

async fn dials(pair: &Pair) -> f64 {
    pair.metric("qudag_sidecar_peer_dials_total", &[("outcome", "ok")]).await
}

/// Lost: none, whichever of the two certificates is replaced.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_certificates_under_load_lose_nothing() {
    needs_wan!();
    let (pair, load) = loaded().await;
    let before = dials(&pair).await;
    pair.pki.renew(&pair.id_b, &[]).await;
    pair.pki.renew(&pair.id_a, &[]).await;
    let renewed = async || (dials(&pair).await > before).then_some(());
    eventually(DEADLINE, "a connection with the new certificate", renewed).await;
    load.goes(TUNNEL, Instant::now()).await;
    let pool = pair.pool().await;
    let states: Vec<_> =
        pool["connections"].as_array().unwrap().iter().map(|it| it["state"].clone()).collect();
    assert!(states.contains(&"draining".into()), "the steady streams stay where they are: {states:?}");
    let report = load.stop().await;
    report.assert_nothing_lost();
    assert_eq!(report.by(DIRECT), 0, "none went past the tunnel");
}

/// Lost: none. The pool grows and shrinks between one connection and four.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_that_changes_its_size_under_load_loses_nothing() {
    needs_wan!();
    let (pair, load) = loaded().await;
    for connections in [4, 1, 4, 1] {
        let more =
            format!("max_connections: {connections}, min_connections: {connections}, max_streams: 32, ");
        pair.change(&Changes { more, ..Changes::default() }).await;
        let so = async || {
            let pool = pair.pool().await;
            let all = pool["connections"].as_array()?.iter();
            (all.filter(|connection| connection["state"] == "live").count() == connections).then_some(())
        };
        eventually(DEADLINE, "the pool has its size", so).await;
        load.goes(TUNNEL, Instant::now()).await;
    }
    load.stop().await.assert_nothing_lost();
}

/// Lost: none. New connections take the other way at once, open ones stay on theirs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn toggles_under_load_lose_nothing() {
    needs_wan!();
    let (pair, load) = loaded().await;
    for _ in 0..10 {
        for (on, way) in [(false, DIRECT), (true, TUNNEL)] {
            pair.a.toggle("peer.connection_pooling", on).await;
            let took = load.goes(way, Instant::now()).await;
            assert!(took < Duration::from_secs(2), "{way} after {took:?}");
        }
    }
    load.stop().await.assert_nothing_lost();
}

/// Lost: none, over reloads of everything that can be changed, on both sides.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reloads_under_load_lose_nothing() {
    needs_wan!();
    let (pair, load) = loaded().await;
    for round in 0..12 {
        let more = match round % 4 {
            0 => "stream_window: 128KiB, ",
            1 => "congestion: bbr, ",
            2 => "max_streams: 16, open_timeout: 500ms, ",
            _ => "",
        };
        pair.change(&Changes { more: more.to_owned(), ..Changes::default() }).await;
        pair.listen(true).await;
        sleep(Duration::from_millis(150)).await;
    }
    load.goes(TUNNEL, Instant::now()).await;
    let report = load.stop().await;
    report.assert_nothing_lost();
    assert_eq!(report.by(DIRECT), 0, "none went past the tunnel");
}

/// Lost: none. The listener keeps its socket for its streams; a new one at the same address comes in by the same door.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_listener_that_goes_and_comes_back_loses_nothing() {
    needs_wan!();
    let (pair, load) = loaded().await;
    for _ in 0..3 {
        let began = Instant::now();
        pair.listen(false).await;
        load.goes(DIRECT, began).await;
        let began = Instant::now();
        pair.listen(true).await;
        load.goes(TUNNEL, began).await;
    }
    load.stop().await.assert_nothing_lost();
    // With nothing left the socket is closed, and the address free.
    pair.listen(false).await;
    pair.listen(true).await;
    pair.returns().await;
    let (mut stream, _) = pair.greeted().await.unwrap();
    echo(&mut stream, b"new").await.unwrap();
}
