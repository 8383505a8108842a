//! Two nodes that can reach each other only through their sidecars.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests report by panicking"
)]

use std::time::Duration;

use qudag_e2e::Cables;
use qudag_e2e::cables::{B_SEEN_FROM_A, NODE_A, NODE_B, peer_bytes};
use qudag_kit::node::Host;
use qudag_kit::{HostedNode, QudagNode, TestSidecar, eventually, needs_namespaces, needs_node};
use serde_json::json;

/// Starts both stock nodes, the first one with the second one's address at its own sidecar, and waits until each has logged
/// the other one's id.
async fn stock_nodes_meet(cables: &Cables) {
    let mut b = QudagNode::start(&cables.node_b, "node-b", 8000, &[]).await;
    let way = format!("{B_SEEN_FROM_A}/p2p/{}", b.peer_id());
    let mut a = QudagNode::start(&cables.node_a, "node-a", 8000, &[way]).await;
    let (id_a, id_b) = (a.peer_id().to_owned(), b.peer_id().to_owned());
    a.wait_connected(&id_b).await;
    b.wait_connected(&id_a).await;
}

/// Waits until a handshake's bytes are counted: the nodes may have logged each other before the counters are told.
async fn wait_counted(side: &TestSidecar) -> (f64, f64) {
    let counted = async || {
        let (up, down) = peer_bytes(side).await;
        // A handshake alone is longer than this in each direction: 284 and 464 bytes.
        (up > 250.0 && down > 250.0).then_some((up, down))
    };
    eventually(Duration::from_secs(10), "bytes are counted", counted).await
}

#[tokio::test]
async fn stock_nodes_meet_through_two_sidecars() {
    needs_node!();
    needs_namespaces!();
    let cables = Cables::new();
    cables.assert_apart().await;
    let (side_a, side_b) = (cables.sidecar_a().await, cables.sidecar_b().await);
    stock_nodes_meet(&cables).await;
    for side in [&side_a, &side_b] {
        let (up, down) = wait_counted(side).await;
        println!("a sidecar passed on {up} bytes up and {down} down");
    }
    cables.assert_apart().await;
}

#[tokio::test]
async fn stock_nodes_meet_with_bypass_on() {
    needs_node!();
    needs_namespaces!();
    let cables = Cables::new();
    let (side_a, side_b) = (cables.sidecar_a().await, cables.sidecar_b().await);
    for side in [&side_a, &side_b] {
        side.cli(&["bypass", "on"]).await.ok();
        assert_eq!(side.status().await["bypass"], true);
        assert_eq!(side.filter("peer", "retry").await["enabled"], false);
    }
    stock_nodes_meet(&cables).await;
    for side in [&side_a, &side_b] {
        wait_counted(side).await;
    }
}

#[tokio::test]
async fn a_killed_sidecar_recovers() {
    needs_node!();
    needs_namespaces!();
    let cables = Cables::new();
    let (mut side_a, _side_b) = (cables.sidecar_a().await, cables.sidecar_b().await);
    stock_nodes_meet(&cables).await;
    side_a.kill();
    side_a.start_again().await;
    // The stock node does not dial a second time by itself; new ones do.
    stock_nodes_meet(&cables).await;
}

#[tokio::test]
async fn a_node_that_dials_again_finds_its_peer_after_a_kill() {
    needs_node!();
    needs_namespaces!();
    let cables = Cables::new();
    let (_side_a, mut side_b) = (cables.sidecar_a().await, cables.sidecar_b().await);
    let (mut a, mut b) = hosted_nodes(&cables).await;
    let way = format!("{B_SEEN_FROM_A}/p2p/{}", b.peer_id());
    let (id_a, id_b) = (a.peer_id().to_owned(), b.peer_id().to_owned());
    a.dial(&way).await;
    a.next_event("connected", |event| event["event"] == "connected" && event["peer_id"] == id_b).await;
    side_b.kill();
    a.next_event("disconnected", |event| event["event"] == "disconnected").await;
    side_b.start_again().await;
    a.dial(&way).await;
    a.next_event("connected", |event| event["event"] == "connected" && event["peer_id"] == id_b).await;
    b.next_event("connected", |event| event["event"] == "connected" && event["peer_id"] == id_a).await;
}

async fn hosted_nodes(cables: &Cables) -> (HostedNode, HostedNode) {
    let host =
        |namespace, listen| Host { namespace: Some(namespace), listen: Some(listen), ..Host::default() };
    let a = HostedNode::start(&host(&cables.node_a, NODE_A)).await;
    let b = HostedNode::start(&host(&cables.node_b, NODE_B)).await;
    (a, b)
}

#[tokio::test]
async fn a_gossip_message_arrives() {
    needs_node!();
    needs_namespaces!();
    let cables = Cables::new();
    let (_side_a, _side_b) = (cables.sidecar_a().await, cables.sidecar_b().await);
    let (mut a, mut b) = hosted_nodes(&cables).await;
    a.subscribe("weather").await;
    b.subscribe("weather").await;
    let way = format!("{B_SEEN_FROM_A}/p2p/{}", b.peer_id());
    a.dial(&way).await;
    tell(&mut a, &mut b, "rain").await;
    tell(&mut b, &mut a, "sun").await;
}

async fn tell(from: &mut HostedNode, to: &mut HostedNode, text: &str) {
    // Refused until the other one's subscription has arrived.
    let published = async || from.publish("weather", text).await.ok();
    eventually(Duration::from_secs(20), "the message is taken", published).await;
    let event = to.next_event("a message", |event| event["event"] == "message").await;
    let expected = json!({ "event": "message", "from": from.peer_id(), "topic": "weather", "text": text });
    assert_eq!(event, expected);
}
