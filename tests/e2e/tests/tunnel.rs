//! Two nodes that can reach each other only through the tunnel between their sidecars.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests report by panicking"
)]

use std::time::Duration;

use qudag_e2e::Cables;
use qudag_e2e::cables::{B_SEEN_FROM_A, NODE_A, NODE_B, TunnelEnd, peer_bytes};
use qudag_kit::gossip::{Load, Published};
use qudag_kit::node::Host;
use qudag_kit::{HostedNode, Pki, QudagNode, TestSidecar, eventually, needs_namespaces, needs_node};
use serde_json::Value;

/// Both sidecars with certificates from one authority.
async fn sidecars(cables: &Cables) -> (TestSidecar, TestSidecar, Pki) {
    let pki = Pki::new().await;
    let (a, b) = (pki.issue("a").await, pki.issue("b").await);
    let side_a = cables.tunnel_a(TunnelEnd { own: &a, other: &b }).await;
    let side_b = cables.tunnel_b(TunnelEnd { own: &b, other: &a }).await;
    (side_a, side_b, pki)
}

/// What `peers` says.
async fn peers(side: &TestSidecar) -> Value {
    side.cli_json(&["peers"]).await
}

/// Waits until a sidecar has a connection to the other one.
async fn connected(side: &TestSidecar) -> Value {
    let up =
        async || Some(peers(side).await).filter(|told| told["pools"][0]["connections"][0]["state"] == "live");
    eventually(Duration::from_secs(20), "a tunnel is up", up).await
}

#[tokio::test]
async fn stock_nodes_meet_through_the_tunnel() {
    needs_node!();
    needs_namespaces!();
    let cables = Cables::new();
    cables.assert_apart().await;
    let (side_a, side_b, _files) = sidecars(&cables).await;
    let told = connected(&side_a).await;
    assert_eq!(told["identity"]["name"], "spiffe://kit.test/a");
    let route = &told["routes"][0];
    assert_eq!((&route["path"], &route["peer"]), (&"tunnel".into(), &"spiffe://kit.test/b".into()), "{told}");

    let mut b = QudagNode::start(&cables.node_b, "node-b", 8000, &[]).await;
    let way = format!("{B_SEEN_FROM_A}/p2p/{}", b.peer_id());
    let mut a = QudagNode::start(&cables.node_a, "node-a", 8000, &[way]).await;
    let (id_a, id_b) = (a.peer_id().to_owned(), b.peer_id().to_owned());
    a.wait_connected(&id_b).await;
    b.wait_connected(&id_a).await;
    for (side, direction) in [(&side_a, "out"), (&side_b, "in")] {
        let counted = async || {
            let (up, down) = peer_bytes(side).await;
            (up > 250.0 && down > 250.0).then_some((up, down))
        };
        let (up, down) = eventually(Duration::from_secs(10), "bytes are counted", counted).await;
        println!("a sidecar passed on {up} bytes up and {down} down");
        let labels = [("side", direction), ("outcome", "ok")];
        assert!(side.metric("qudag_sidecar_peer_streams_total", &labels).await >= 1.0);
    }
    let text = side_a.cli(&["peers"]).await.ok();
    assert!(text.contains("there") && text.contains("tunnel") && text.contains("10.91.2.2:4433"), "{text}");
    cables.assert_apart().await;
}

#[tokio::test]
async fn a_sidecar_that_was_killed_is_found_again() {
    needs_node!();
    needs_namespaces!();
    let cables = Cables::new();
    let (side_a, mut side_b, _files) = sidecars(&cables).await;
    connected(&side_a).await;
    let host =
        |namespace, listen| Host { namespace: Some(namespace), listen: Some(listen), ..Host::default() };
    let mut a = HostedNode::start(&host(&cables.node_a, NODE_A)).await;
    let b = HostedNode::start(&host(&cables.node_b, NODE_B)).await;
    let way = format!("{B_SEEN_FROM_A}/p2p/{}", b.peer_id());
    a.dial(&way).await;
    a.next_event("connected", |event| event["event"] == "connected").await;
    side_b.kill();
    side_b.start_again().await;
    // The new one does not know the connection and says so (RFC 9000 section 10.3), or nothing comes any more.
    a.next_event("disconnected", |event| event["event"] == "disconnected").await;
    connected(&side_a).await;
    a.dial(&way).await;
    a.next_event("connected", |event| event["event"] == "connected").await;
}

/// Everything that is published arrives, and once.
#[tokio::test]
async fn gossip_under_load_arrives_exactly_once() {
    needs_node!();
    needs_namespaces!();
    let cables = Cables::new();
    let (side_a, _side_b, _files) = sidecars(&cables).await;
    connected(&side_a).await;
    let host =
        |namespace, listen| Host { namespace: Some(namespace), listen: Some(listen), ..Host::default() };
    let mut a = HostedNode::start(&host(&cables.node_a, NODE_A)).await;
    let mut b = HostedNode::start(&host(&cables.node_b, NODE_B)).await;
    a.meet(&mut b, "10.91.1.1:4001".parse().unwrap(), "load").await;
    let load = Load { topic: "load", bytes: 2_000, per_second: 250.0, time: Duration::from_secs(2) };
    assert_eq!(a.load(load).await, Published { taken: 500, refused: 0 });
    let all = async || Some(b.tally("load").await).filter(|tally| tally.received == 500);
    let tally = eventually(Duration::from_secs(10), "all messages arrive", all).await;
    println!("{tally:?}");
    assert_eq!((tally.bytes, tally.duplicates), (500 * 2_000, 0));
    let (up, _) = peer_bytes(&side_a).await;
    assert!(up > 1e6, "{up} bytes through the sidecar");
    let labels = [("side", "out"), ("outcome", "ok")];
    assert_eq!(side_a.metric("qudag_sidecar_peer_streams_total", &labels).await, 1.0);
}
