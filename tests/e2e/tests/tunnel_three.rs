//! Three stock nodes behind three sidecars that are joined by three links, of which one loses packets, and one sidecar is bypassed.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests report by panicking"
)]

use std::time::Duration;

use qudag_e2e::tunnels::connect;
use qudag_kit::{
    IdentityFiles, Namespace, Pki, QudagNode, Setup, TestSidecar, eventually, needs_node, within,
};
use qudag_wan::{Settings, Wan, needs_wan};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const DEADLINE: Duration = Duration::from_secs(40);
const SIDES: [usize; 3] = [1, 2, 3];

/// The address of a side on its link to another one.
fn on_link(own: usize, other: usize) -> String {
    let link = own.min(other) * 10 + own.max(other);
    format!("10.92.{link}.{own}")
}

/// Where a node reaches another one: its sidecar.
fn door(own: usize, other: usize) -> String {
    format!("10.93.{own}.1:400{other}")
}

fn yaml(own: usize, identities: &[IdentityFiles]) -> String {
    let others = || SIDES.into_iter().filter(move |other| *other != own);
    let name = |side: usize| identities[side - 1].name.clone();
    let outbound = others().map(|other| {
        format!(
            "      - {{ name: to-{other}, bind: \"{}\", to: \"{at}:4001\", sidecar: {{ to: [\"{at}:4433\"], name: \"{}\" }} }}\n",
            door(own, other),
            name(other),
            at = on_link(other, own),
        )
    });
    let inbound = others().map(|other| format!("\"{}:4001\"", on_link(own, other)));
    let allow = others().map(|other| format!("\"{}\"", name(other)));
    format!(
        "node: {{ name: n{own}, p2p: \"10.93.{own}.2:8000\" }}\nlisteners:\n  peer:\n    identity: {}\n    quic: \"0.0.0.0:4433\"\n    \
         allow: [{}]\n    inbound: [{}]\n    outbound:\n{}filters:\n  peer:\n    circuit_breaker: {{ enabled: true }}\n    retry: {{ \
         enabled: true }}\n    connection_pooling: {{ enabled: true }}\n",
        identities[own - 1].yaml(),
        allow.collect::<Vec<_>>().join(", "),
        inbound.collect::<Vec<_>>().join(", "),
        outbound.collect::<String>(),
    )
}

/// The route of a side to another one, as `peers` has it.
async fn route(side: &TestSidecar, other: usize) -> Value {
    let told = side.cli_json(&["peers"]).await;
    let routes = told["routes"].as_array().unwrap();
    routes.iter().find(|route| route["name"] == format!("to-{other}")).unwrap().clone()
}

/// Says what a node says first, and waits for the answer.
async fn asked(connecting: impl Future<Output = std::io::Result<TcpStream>>) -> (TcpStream, usize) {
    let mut tcp = connecting.await.unwrap();
    tcp.write_all(b"\x13/multistream/1.0.0\n").await.unwrap();
    let mut answer = [0; 20];
    let length = within(DEADLINE, "an answer of the node", tcp.read(&mut answer)).await.unwrap();
    (tcp, length)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_see_each_other_and_every_way_is_told_with_its_reason() {
    needs_node!();
    needs_wan!();
    let nodes = SIDES.map(|_| Namespace::new());
    let places = SIDES.map(|_| Namespace::new());
    for side in SIDES {
        let ends = (format!("10.93.{side}.2/24"), format!("10.93.{side}.1/24"));
        nodes[side - 1].connect(&ends.0, &places[side - 1], &ends.1);
    }
    let mut links = Vec::new();
    for (one, other, how) in [(1, 2, "delay=5ms"), (1, 3, "delay=5ms"), (2, 3, "delay=20ms,loss=3%")] {
        let ends = [on_link(one, other) + "/24", on_link(other, one) + "/24"];
        let settings = Settings::both(how.parse().unwrap());
        let link = Wan::connect(&places[one - 1], &ends[0], &places[other - 1], &ends[1], settings);
        links.push(link.unwrap());
    }
    let pki = Pki::new().await;
    let mut identities = Vec::new();
    for side in SIDES {
        identities.push(pki.issue(&format!("n{side}")).await);
    }
    let mut sidecars = Vec::new();
    for side in SIDES {
        let yaml = yaml(side, &identities);
        sidecars.push(
            TestSidecar::with(Setup { yaml: &yaml, namespace: Some(&places[side - 1]), env: &[] }).await,
        );
    }
    sidecars[2].cli(&["bypass", "on"]).await.ok();
    for (side, other) in [(1, 2), (1, 3), (2, 1), (2, 3)] {
        let tunnelled = async || {
            let route = route(&sidecars[side - 1], other).await;
            (route["path"] == "tunnel" && route["why"] == "1 connection").then_some(())
        };
        eventually(DEADLINE, &format!("a tunnel from {side} to {other}"), tunnelled).await;
    }
    for other in [1, 2] {
        let route = route(&sidecars[2], other).await;
        assert_eq!((&route["path"], &route["why"]), (&"direct".into(), &"connection_pooling is off".into()));
    }
    assert_eq!(sidecars[2].status().await["bypass"], true);
    assert_eq!(sidecars[2].filter("peer", "connection_pooling").await["enabled"], false);

    let way = |own: usize, other: usize, id: &str| {
        let (host, port) =
            door(own, other).rsplit_once(':').map(|(h, p)| (h.to_owned(), p.to_owned())).unwrap();
        format!("/ip4/{host}/tcp/{port}/p2p/{id}")
    };
    let mut first = QudagNode::start(&nodes[0], "node-1", 8000, &[]).await;
    let id1 = first.peer_id().to_owned();
    let mut third = QudagNode::start(&nodes[2], "node-3", 8000, &[way(3, 1, &id1)]).await;
    let id3 = third.peer_id().to_owned();
    let to = [way(2, 1, &id1), way(2, 3, &id3)];
    let mut second = QudagNode::start(&nodes[1], "node-2", 8000, &to).await;
    let id2 = second.peer_id().to_owned();
    for (node, others) in
        [(&mut first, [&id2, &id3]), (&mut second, [&id1, &id3]), (&mut third, [&id1, &id2])]
    {
        for other in others {
            node.wait_connected(other).await;
        }
    }

    let streams = async |side: usize, direction: &str| {
        let labels = [("side", direction), ("outcome", "ok")];
        sidecars[side - 1].metric("qudag_sidecar_peer_streams_total", &labels).await
    };
    let told =
        [streams(1, "in").await, streams(2, "out").await, streams(3, "in").await, streams(3, "out").await];
    println!(
        "three: streams into 1 {}, out of 2 {}, into 3 {}, out of 3 {}",
        told[0], told[1], told[2], told[3]
    );
    assert!(told[0] >= 1.0 && told[1] >= 2.0 && told[2] >= 1.0 && told[3] == 0.0, "{told:?}");
    let direct = async || {
        let bytes = sidecars[2].metric("qudag_sidecar_bytes_total", &[("target", "to-1")]).await;
        (bytes > 500.0).then_some(())
    };
    eventually(DEADLINE, "the bypassed sidecar counts what it passes on directly", direct).await;
    let lossy = async || {
        // A stock node says little; whoever asks it for its protocols makes it say more.
        let (mut tcp, _) = asked(connect(&nodes[1], &door(2, 3))).await;
        let _ = tcp.shutdown().await;
        let labels = [("peer", "spiffe://kit.test/n3")];
        let lost = sidecars[1].metric("qudag_sidecar_peer_packets_lost_total", &labels).await;
        (lost > 0.0).then_some(lost)
    };
    let lost = eventually(DEADLINE, "losses are told", lossy).await;
    println!("three: {lost} packets lost on the link that loses");
    let text = sidecars[2].cli(&["peers"]).await.ok();
    assert!(text.contains("direct") && text.contains("connection_pooling is off"), "{text}");
}
