//! Reloads, toggles, drains and new certificates under streams that must not notice.

use std::time::{Duration, SystemTime};

use qudag_filter_common::testing::{PATIENCE, until};
use qudag_filter_peer::identity::pki::Authority;
use serde_json::json;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::*;

async fn all_echo(streams: &mut [(TcpStream, char)]) {
    for (tcp, _) in streams {
        echo(tcp, &noise(5_000)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_shrinks_resets_no_stream() {
    let four = json!({ "max_streams": 4 });
    let mut pair = Pair::start("shrinks", Unusual { pooling: four, ..Unusual::default() }).await;
    let mut streams = Vec::new();
    for _ in 0..12 {
        streams.push(pair.greeted().await.unwrap());
    }
    assert!(streams.iter().all(|(_, way)| *way == 't'));
    until("there are several connections", || pair.connections("live") >= 3).await;
    pair.reload(pooling(&json!({ "max_connections": 1, "max_streams": 128 })));
    until("one is left", || pair.connections("live") == 1).await;
    assert!(pair.connections("draining") >= 2);
    all_echo(&mut streams).await;
    streams.push(pair.greeted().await.unwrap());
    assert_eq!(streams.last().unwrap().1, 't');
    all_echo(&mut streams).await;
    drop(streams);
    until("the others are closed", || pair.connections("draining") == 0).await;
    assert_eq!(pair.connections("live"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_toggle_moves_new_connections_and_no_open_one() {
    let mut pair = Pair::start("toggle", Unusual::default()).await;
    let mut streams = Vec::new();
    for round in 0..6 {
        let on = round % 2 == 0;
        pair.reload(if on { pooling(&json!({})) } else { json!({}) });
        for _ in 0..4 {
            let (tcp, way) = pair.greeted().await.unwrap();
            assert_eq!(way, if on { 't' } else { 'd' });
            streams.push((tcp, way));
        }
        all_echo(&mut streams).await;
    }
    assert_eq!(pair.dials("ok"), 1.0, "the connection outlives reloads");
    pair.reload(json!({}));
    drop(streams);
    until("nobody wants the pool", || pair.connections("live") == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_whose_route_was_removed_is_forgotten_by_itself() {
    let mut pair = Pair::start("forgotten", Unusual::default()).await;
    let (mut open, way) = pair.greeted().await.unwrap();
    assert_eq!(way, 't');
    pair.forget_route();
    echo(&mut open, &noise(5_000)).await.unwrap();
    assert!(is_reset(&pair.greeted().await));
    drop(open);
    until("nothing is left of it", || pair.a.upstream.as_ref().unwrap().statuses().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn flows_that_the_rollout_leaves_out_go_directly() {
    let mut pair = Pair::start("rollout", Unusual::default()).await;
    pair.warm().await;
    pair.reload(pooling(&json!({ "rollout": 0 })));
    assert_eq!(pair.greeted().await.unwrap().1, 'd');
    pair.reload(pooling(&json!({ "rollout": 100 })));
    assert_eq!(pair.greeted().await.unwrap().1, 't');
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_drains_finishes_its_streams() {
    let pair = Pair::start("drains", Unusual::default()).await;
    let mut streams = Vec::new();
    for _ in 0..5 {
        streams.push(pair.greeted().await.unwrap());
    }
    pair.b.drain.stop();
    assert_eq!(pair.greeted().await.unwrap().1, 'd', "new ones go past it");
    all_echo(&mut streams).await;
    let finish = tokio::spawn({
        let drain = pair.b.drain.clone();
        async move { drain.finish(PATIENCE).await }
    });
    all_echo(&mut streams).await;
    drop(streams);
    assert_eq!(timeout(PATIENCE, finish).await.unwrap().unwrap(), 0, "nothing was aborted");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_that_is_over_resets_what_is_left() {
    let pair = Pair::start("aborts", Unusual::default()).await;
    let (mut tcp, way) = pair.greeted().await.unwrap();
    assert_eq!(way, 't');
    assert!(pair.b.drain.finish(Duration::from_millis(50)).await >= 1);
    assert!(echo(&mut tcp, b"x").await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_certificate_renews_connections_and_no_stream() {
    let pair = Pair::start("renewed", Unusual::default()).await;
    let (mut old, way) = pair.greeted().await.unwrap();
    assert_eq!((way, pair.dials("ok")), ('t', 1.0));
    let now = SystemTime::now();
    let authority = Authority::open(pair.files.path(), now).unwrap();
    let certificate = pair.files.path().join("a/a.pem");
    authority.renew(&certificate, Duration::from_secs(7200), now).unwrap();
    until("a second connection is made", || pair.dials("ok") == 2.0).await;
    echo(&mut old, &noise(50_000)).await.unwrap();
    let (mut new, way) = pair.greeted().await.unwrap();
    assert_eq!((way, pair.connections("live"), pair.connections("draining")), ('t', 1, 1));
    echo(&mut new, b"new").await.unwrap();
    drop(old);
    until("the old one is closed", || pair.connections("draining") == 0).await;
}
