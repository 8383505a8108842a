//! Stock nodes that know nothing of each other find each other through their sidecars.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests report by panicking"
)]

use std::time::{Duration, Instant};

use qudag_e2e::Cables;
use qudag_e2e::cables::TunnelEnd;
use qudag_kit::node::Host;
use qudag_kit::{
    HostedNode, IdentityFiles, Namespace, Pki, QudagNode, Setup, TestSidecar, eventually, needs_namespaces,
    needs_node, skip,
};
use qudag_wan::{Settings, Wan};
use serde_json::Value;

/// For how long the nodes believe an announcement in these tests.
const TTL: Duration = Duration::from_secs(5);
const DISCOVERY: &str = "    peer_discovery: { enabled: true, interval: 1s, ttl: 5s }\n";
/// How long a peer may be announced after its sidecar was stopped: until its node's records expire. A busy machine has some more.
const STOPPED: Duration = Duration::from_secs(5 + 5);
/// The same after its sidecar was killed: it is noticed after 10 s.
const KILLED: Duration = Duration::from_secs(5 + 10 + 5);

/// Hosts with a node and its sidecar each, and wide-area links between them that carry the sidecars' UDP and nothing else.
struct Hosts {
    _links: Vec<Wan>,
    spaces: Vec<Namespace>,
    identities: Vec<IdentityFiles>,
    _pki: Pki,
}

/// The address of a host on its link with another one.
fn address(host: usize, other: usize) -> String {
    format!("10.94.{}.{}", 16 * host.min(other) + host.max(other), host + 1)
}

impl Hosts {
    async fn new(count: usize) -> Self {
        let pki = Pki::new().await;
        let (mut links, mut identities) = (Vec::new(), Vec::new());
        let spaces: Vec<_> = (0..count).map(|_| Namespace::new()).collect();
        for here in 0..count {
            for there in here + 1..count {
                let ends =
                    [address(here, there), address(there, here)].map(|address| format!("{address}/24"));
                let settings = Settings::both("delay=20ms".parse().unwrap());
                links
                    .push(Wan::connect(&spaces[here], &ends[0], &spaces[there], &ends[1], settings).unwrap());
            }
            // What a node asks on a link is heard on its own host as well.
            let own: Vec<_> =
                (0..count).filter(|there| *there != here).map(|there| address(here, there)).collect();
            let rules = format!(
                "add table inet apart; add chain inet apart in {{ type filter hook input priority 0; policy drop; }}; \
                 add rule inet apart in iifname lo accept; add rule inet apart in ip saddr {{ {} }} accept; \
                 add rule inet apart in udp dport 4433 accept; add rule inet apart in udp sport 4433 accept",
                own.join(", ")
            );
            spaces[here].run("nft", &[&rules]).await.ok();
            identities.push(pki.issue(&format!("host-{here}")).await);
        }
        Self { _links: links, spaces, identities, _pki: pki }
    }

    /// The sidecar of a host, with a route to the node of each other one, and how the node gets to know them.
    async fn sidecar(&self, here: usize) -> TestSidecar {
        let others = || (0..self.spaces.len()).filter(|there| *there != here);
        let routes = others().map(|there| {
            let (to, name) = (address(there, here), &self.identities[there].name);
            format!(
                "{{ name: to-{there}, bind: \"127.0.0.1:0\", to: \"{to}:4001\", sidecar: {{ to: [\"{to}:4433\"], name: \
                 \"{name}\", require_tunnel: true }} }}"
            )
        });
        let allow = others().map(|there| format!("\"{}\"", self.identities[there].name));
        let yaml = format!(
            "node: {{ p2p: \"127.0.0.1:8000\" }}\nlisteners:\n  peer:\n    identity: {}\n    quic: \"0.0.0.0:4433\"\n    \
             allow: [{}]\n    outbound: [{}]\nfilters:\n  peer:\n{DISCOVERY}    connection_pooling: {{ enabled: true }}\n",
            self.identities[here].yaml(),
            allow.collect::<Vec<_>>().join(", "),
            routes.collect::<Vec<_>>().join(", "),
        );
        TestSidecar::with(Setup { yaml: &yaml, namespace: Some(&self.spaces[here]), env: &[] }).await
    }

    /// A stock node with no flag on a host.
    async fn node(&self, here: usize) -> QudagNode {
        QudagNode::start(&self.spaces[here], &format!("node-{here}"), 8000, &[]).await
    }
}

macro_rules! needs_links {
    () => {
        needs_node!();
        needs_namespaces!();
        if let Err(why) = Wan::available() {
            skip!("{why}");
        }
        qudag_kit::needs_program!("nft");
    };
}

async fn peers(side: &TestSidecar) -> Value {
    side.cli_json(&["peers"]).await
}

/// Waits until a sidecar asks for its node, which is not there yet.
async fn awaits_its_node(side: &TestSidecar) {
    let asked = async || {
        let failed = side.metric("qudag_sidecar_peer_node_lookups_total", &[("outcome", "connect")]).await;
        (failed >= 1.0).then_some(())
    };
    eventually(Duration::from_secs(20), "the node is asked", asked).await;
}

/// Waits until a sidecar knows the other one's node, and its own.
async fn knows(side: &TestSidecar, own: &str, other: &str) -> Value {
    let known = async || {
        let told = peers(side).await;
        (told["node"]["peer_id"] == own && told["sidecars"][0]["peer_id"] == other).then_some(told)
    };
    eventually(Duration::from_secs(30), "both nodes are known", known).await
}

/// Waits until a node has forgotten a peer that it was told of.
async fn forgets(node: &QudagNode, peer: &str) {
    let gone = format!("expired peer on address peer={peer}");
    let forgotten = async || node.log().contains(&gone).then_some(());
    eventually(Duration::from_secs(60), "the node forgets the peer", forgotten).await;
}

#[tokio::test]
async fn stock_nodes_without_a_flag_meet_across_a_wide_area_link() {
    needs_links!();
    let hosts = Hosts::new(2).await;
    let (left, right) = tokio::join!(hosts.sidecar(0), hosts.sidecar(1));
    awaits_its_node(&left).await;
    let mut a = hosts.node(0).await;
    let mut b = hosts.node(1).await;
    let (id_a, id_b) = (a.peer_id().to_owned(), b.peer_id().to_owned());
    let start = Instant::now();
    a.wait_connected(&id_b).await;
    b.wait_connected(&id_a).await;
    println!("the nodes are connected {:?} after their start", start.elapsed());

    let told = knows(&left, &id_a, &id_b).await;
    let door = left.listener_named("peer", "to-1").await;
    let multiaddr = format!("/ip4/127.0.0.1/tcp/{}/p2p/{id_b}", door.port());
    assert_eq!(told["routes"][0]["multiaddr"], multiaddr, "{told}");
    assert_eq!(told["node"]["announced"]["to-1"], multiaddr, "{told}");
    let other = &told["sidecars"][0];
    assert_eq!((&other["connected"], &other["tunnel_version"]), (&true.into(), &1.into()), "{told}");
    assert!(other["rtt_ms"].as_f64().unwrap() >= 40.0, "the link alone takes 40 ms: {told}");
    let text = left.cli(&["peers"]).await.ok();
    assert!(text.contains(&multiaddr) && text.contains(&id_a), "{text}");
    // The node goes by what it was told, and not by what it finds out: nothing else passes the link.
    let address = format!("address={multiaddr}");
    assert!(a.log().contains(&address), "{}", a.log());
    assert!(left.metric("qudag_sidecar_peer_announcements_total", &[("outcome", "sent")]).await >= 1.0);
    assert!(
        left.metric("qudag_sidecar_peer_discovery_queries_total", &[]).await >= 1.0,
        "it asks when it starts"
    );
    assert!(left.metric("qudag_sidecar_peer_node_lookups_total", &[("outcome", "ok")]).await >= 1.0);

    // Off, and nothing is left of it.
    left.toggle("peer.peer_discovery", false).await;
    let off = Instant::now();
    forgets(&a, &id_b).await;
    println!("the node has forgotten its peer {:?} after the filter was switched off", off.elapsed());
    assert!(off.elapsed() < STOPPED, "{:?}", off.elapsed());
    assert!(peers(&left).await["node"]["peer_id"].is_null());
    drop(right);
}

#[tokio::test]
async fn three_stock_nodes_all_meet() {
    needs_links!();
    let hosts = Hosts::new(3).await;
    let sidecars: [TestSidecar; 3] =
        tokio::join!(hosts.sidecar(0), hosts.sidecar(1), hosts.sidecar(2)).into();
    // The last one comes to nodes that have met already.
    let start = Instant::now();
    let mut nodes = vec![hosts.node(0).await, hosts.node(1).await];
    let ids = [nodes[0].peer_id().to_owned(), nodes[1].peer_id().to_owned()];
    nodes[0].wait_connected(&ids[1]).await;
    nodes[1].wait_connected(&ids[0]).await;
    println!("the first two nodes are connected after {:?}", start.elapsed());
    nodes.push(hosts.node(2).await);
    let ids = nodes.iter().map(|node| node.peer_id().to_owned()).collect::<Vec<_>>();
    for (at, node) in nodes.iter_mut().enumerate() {
        for id in ids.iter().filter(|id| **id != ids[at]) {
            node.wait_connected(id).await;
        }
    }
    println!("all three are connected after {:?}", start.elapsed());
    for sidecar in &sidecars {
        assert_eq!(sidecar.metric("qudag_sidecar_peer_announced", &[]).await, 2.0);
    }
}

#[tokio::test]
async fn a_peer_is_withdrawn_when_its_sidecar_stops_or_dies() {
    needs_links!();
    let hosts = Hosts::new(2).await;
    let (left, mut right) = tokio::join!(hosts.sidecar(0), hosts.sidecar(1));
    let a = hosts.node(0).await;
    let b = hosts.node(1).await;
    let announced = async || {
        let told = peers(&left).await;
        told["node"]["announced"]["to-1"].as_str().filter(|it| it.ends_with(b.peer_id())).map(str::to_owned)
    };
    eventually(Duration::from_secs(30), "the peer is announced", announced).await;
    right.kill();
    let killed = Instant::now();
    forgets(&a, b.peer_id()).await;
    println!("withdrawn {:?} after the peer's sidecar was killed", killed.elapsed());
    assert!(killed.elapsed() < KILLED, "{:?}", killed.elapsed());

    // A node has another id after each start.
    right.start_again().await;
    drop(b);
    let b = hosts.node(1).await;
    let (id_a, id_b) = (a.peer_id().to_owned(), b.peer_id().to_owned());
    knows(&left, &id_a, &id_b).await;
    let found = format!("discovered peer on address peer={id_b}");
    let discovered = async || a.log().contains(&found).then_some(());
    eventually(Duration::from_secs(30), "the node is told of the new one", discovered).await;
    let (status, _) = right.stop(Duration::from_secs(20)).await;
    assert!(status.success());
    let stopped = Instant::now();
    forgets(&a, &id_b).await;
    println!("withdrawn {:?} after the peer's sidecar was stopped", stopped.elapsed());
    assert!(stopped.elapsed() < STOPPED, "{:?}", stopped.elapsed());
    assert!(TTL < STOPPED);
}

#[tokio::test]
async fn stock_nodes_on_other_hosts_than_their_sidecars_meet() {
    needs_node!();
    needs_namespaces!();
    let cables = Cables::new();
    let pki = Pki::new().await;
    let (a, b) = (pki.issue("a").await, pki.issue("b").await);
    let left = cables.tunnel_a(TunnelEnd { own: &a, other: &b }).await;
    let right = cables.tunnel_b(TunnelEnd { own: &b, other: &a }).await;
    for side in [&left, &right] {
        side.toggle("peer.peer_discovery", true).await;
        awaits_its_node(side).await;
    }
    let mut a = QudagNode::start(&cables.node_a, "node-a", 8000, &[]).await;
    let mut b = QudagNode::start(&cables.node_b, "node-b", 8000, &[]).await;
    let (id_a, id_b) = (a.peer_id().to_owned(), b.peer_id().to_owned());
    a.wait_connected(&id_b).await;
    b.wait_connected(&id_a).await;
    let told = knows(&left, &id_a, &id_b).await;
    assert_eq!(told["node"]["announced"]["there"], format!("/ip4/10.91.1.1/tcp/4001/p2p/{id_b}"), "{told}");
    assert!(left.metric("qudag_sidecar_peer_discovery_queries_total", &[]).await >= 1.0);
    cables.assert_apart().await;
}

#[tokio::test]
async fn the_node_is_asked_who_it_is_after_each_start() {
    needs_node!();
    let first = HostedNode::start(&Host::default()).await;
    let (id, port) = (first.peer_id().to_owned(), first.p2p().port());
    let yaml = format!(
        "node: {{ p2p: \"127.0.0.1:{port}\" }}\nlisteners:\n  peer: {{ inbound: [\"127.0.0.1:0\"] }}\nfilters:\n  peer: {{ \
         peer_discovery: {{ enabled: true, interval: 1s }} }}\n"
    );
    let sidecar = TestSidecar::start(&yaml).await;
    let told = async |id: Value| {
        let told = async || (peers(&sidecar).await["node"]["peer_id"] == id).then_some(());
        eventually(Duration::from_secs(20), "the node is known, or not any more", told).await;
    };
    told(id.clone().into()).await;
    drop(first);
    told(Value::Null).await;
    assert!(peers(&sidecar).await["node"]["failure"].is_string());
    let listen = format!("/ip4/127.0.0.1/tcp/{port}");
    let second = HostedNode::start(&Host { listen: Some(&listen), ..Host::default() }).await;
    assert_ne!(second.peer_id(), id);
    told(second.peer_id().into()).await;
    // Off: the node is not asked any more, and nothing is known.
    sidecar.toggle("peer_discovery", false).await;
    told(Value::Null).await;
    assert!(peers(&sidecar).await["node"]["failure"].is_null());
}
