//! What becomes of connections when the tunnel cannot carry them.

use std::time::{Duration, Instant};

use qudag_filter_common::testing::{is_logged, until};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::*;

/// Sends before anything is answered and expects exactly that back, past the tunnel.
async fn falls_back_with_all_bytes(pair: &Pair, reason: &str) {
    let before = pair.fallbacks(reason);
    let sent = noise(40_000);
    let mut tcp = TcpStream::connect(pair.a.tcp()).await.unwrap();
    let (mut read, mut write) = tcp.split();
    let mut received = Vec::new();
    let send = async {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
    };
    tokio::join!(send, read.read_to_end(&mut received)).1.unwrap();
    assert_eq!(received[0], b'd');
    assert!(received[1..] == sent, "{} bytes", received.len());
    assert!(pair.fallbacks(reason) > before, "for another reason than {reason}");
    let line = [format!("route={} ", pair.name), format!("fallback={reason}")];
    until("the line says why", || is_logged(&[&line[0], &line[1], "path=direct"])).await;
}

#[tokio::test]
async fn an_unknown_destination_falls_back_and_loses_nothing() {
    let sidecar = json!({ "destination": "elsewhere" });
    let pair = Pair::start("destination", Unusual { sidecar, ..Unusual::default() }).await;
    pair.warm().await;
    for _ in 0..3 {
        falls_back_with_all_bytes(&pair, "unknown_destination").await;
    }
    assert_eq!(pair.dials("ok"), 1.0, "the connection is not to blame");
}

#[tokio::test]
async fn a_node_that_is_down_is_not_the_tunnels_fault() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let node = Some(listener.local_addr().unwrap());
    drop(listener);
    let pair = Pair::start("node-down", Unusual { node, ..Unusual::default() }).await;
    pair.warm().await;
    for _ in 0..5 {
        falls_back_with_all_bytes(&pair, "node_down").await;
    }
    assert_eq!((pair.dials("ok"), pair.connections("live")), (1.0, 1));
}

#[tokio::test]
async fn a_peer_that_is_not_allowed_falls_back() {
    let allow = Some("spiffe://test/somebody-else");
    let pair = Pair::start("stranger", Unusual { allow, ..Unusual::default() }).await;
    until("the dial is refused", || pair.dials("peer_wrong_name") >= 1.0).await;
    let (_, way) = pair.greeted().await.unwrap();
    assert_eq!(way, 'd');
    until("the breaker is open", || pair.dials("peer_wrong_name") >= 2.0).await;
    falls_back_with_all_bytes(&pair, "down").await;
    assert_eq!(pair.dials("ok"), 0.0);
}

#[tokio::test]
async fn a_sidecar_does_not_tunnel_to_itself() {
    let sidecar = json!({ "name": peer("itself", "a") });
    let pair = Pair::start("itself", Unusual { sidecar, ..Unusual::default() }).await;
    falls_back_with_all_bytes(&pair, "itself").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn blocked_udp_falls_back_in_time_and_then_at_once() {
    let pooling = json!({ "dial_timeout": "2s" });
    let pair = Pair::start("blocked", Unusual { cut: true, pooling, ..Unusual::default() }).await;
    let start = Instant::now();
    let (_, way) = pair.greeted().await.unwrap();
    assert!(way == 'd' && start.elapsed() < Duration::from_millis(1600), "{way} {:?}", start.elapsed());
    until("two dials have failed", || pair.dials("timeout") >= 2.0).await;
    let start = Instant::now();
    for _ in 0..20 {
        assert_eq!(pair.greeted().await.unwrap().1, 'd');
    }
    assert!(start.elapsed() < Duration::from_secs(1), "{:?} for 20", start.elapsed());
    pair.wire.cut(false);
    pair.returns().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_falls_silent_is_noticed_within_a_second_and_found_again() {
    let pair = Pair::start("silent", Unusual::default()).await;
    let (mut open, way) = pair.greeted().await.unwrap();
    assert_eq!(way, 't');
    echo(&mut open, b"ping").await.unwrap();
    pair.wire.cut(true);
    let start = Instant::now();
    let (_, way) = pair.greeted().await.unwrap();
    assert!(way == 'd' && start.elapsed() < Duration::from_secs(1), "{way} {:?}", start.elapsed());
    assert_eq!(pair.fallbacks("silent"), 1.0);
    assert_eq!(pair.connections("live"), 0, "no more streams are put on it");
    pair.wire.cut(false);
    // What was open is not given up.
    echo(&mut open, &noise(100_000)).await.unwrap();
    pair.returns().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_that_requires_the_tunnel_never_goes_past_it() {
    let (sidecar, pooling) = (json!({ "require_tunnel": true }), json!({ "dial_timeout": "500ms" }));
    let mut pair =
        Pair::start("required", Unusual { cut: true, sidecar, pooling, ..Unusual::default() }).await;
    for _ in 0..3 {
        assert!(is_reset(&pair.greeted().await));
    }
    pair.wire.cut(false);
    let deadline = Instant::now() + Duration::from_secs(60);
    while !pair.greeted().await.is_ok_and(|(_, way)| way == 't') {
        assert!(Instant::now() < deadline, "never through");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    pair.reload(json!({}));
    assert!(is_reset(&pair.greeted().await), "with the filter off");
    until("the line says why", || is_logged(&["route=required ", "outcome=\"refused\""])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_connections_to_a_dead_peer_dial_hardly_more_than_one() {
    let pooling = json!({ "dial_timeout": "1s" });
    let pair = Pair::start("dead", Unusual { cut: true, pooling, ..Unusual::default() }).await;
    let address = pair.a.tcp();
    let start = Instant::now();
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..1000 {
        clients.spawn(async move { greeted(address).await.map(|(_, way)| way) });
    }
    let ways = clients.join_all().await;
    let lost: Vec<_> = ways.iter().filter(|way| !way.as_ref().is_ok_and(|way| *way == 'd')).collect();
    assert!(lost.is_empty(), "{} lost: {:?}", lost.len(), lost.first());
    let seconds = start.elapsed().as_secs_f64();
    // As many as one connection would cause, each of which takes a second: whoever asks makes no more of them.
    assert!(pair.dials("timeout") <= seconds * 1.2 + 1.0, "{} dials in {seconds} s", pair.dials("timeout"));
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_of_another_time_are_refused_with_a_reason_until_they_are_replaced() {
    for (name, begin, side) in [
        ("a-expired", [-2, 0], "a"),
        ("b-expired", [0, -2], "b"),
        ("a-from-tomorrow", [1, 0], "a"),
        ("b-from-tomorrow", [0, 1], "b"),
    ] {
        let pair = Pair::start(name, Unusual { begin, ..Unusual::default() }).await;
        // Who is refused says so in the other one's words.
        let outcome = if side == "a" { "peer_expired" } else { "expired" };
        until("the dial is refused", || pair.dials(outcome) >= 1.0).await;
        let (mut tcp, way) = pair.greeted().await.unwrap();
        assert_eq!(way, 'd', "{name}");
        echo(&mut tcp, b"direct").await.unwrap();
        let told = [format!("peer=spiffe://test/{name}-b"), format!("why=\"{outcome}\"")];
        until("the log says why", || is_logged(&[&told[0], &told[1], "cannot open a tunnel"])).await;
        if side == "a" {
            let clocks = ["a tunnel was not accepted", "outcome=\"expired\"", "are the clocks right?"];
            assert!(is_logged(&clocks));
        }
        pair.renew(side);
        pair.returns().await;
        echo(&mut tcp, b"still direct").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_whose_name_gets_another_address_is_found_there() {
    let mut pair = Pair::start("moves", Unusual::default()).await;
    pair.warm().await;
    let port = pair.wire.address.port();
    let other = Wire::between(([127, 0, 0, 2], port).into(), quic(&pair.b)).await;
    pair.a.names.set("b.test", &["127.0.0.1"]);
    pair.moves(&format!("b.test:{port}"));
    let leads_to = |last: u8| {
        let pools = pair.a.upstream.as_ref().unwrap().statuses();
        let mut connections = pools.iter().flat_map(|pool| &pool.connections);
        connections.any(|it| it.state == "live" && it.to == ([127, 0, 0, last], port).into())
    };
    until("the name is used", || leads_to(1) && pair.dials("ok") >= 2.0).await;
    let (mut open, way) = pair.greeted().await.unwrap();
    assert_eq!(way, 't');
    pair.a.names.set("b.test", &["127.0.0.2"]);
    pair.wire.cut(true);
    assert_eq!(pair.greeted().await.unwrap().1, 'd', "the old address does not answer");
    until("the name is resolved again", || leads_to(2)).await;
    pair.returns().await;
    drop(other);
    // What was open waits for the old address.
    pair.wire.cut(false);
    echo(&mut open, &noise(50_000)).await.unwrap();
}
