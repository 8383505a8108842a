//! IPv4, IPv6, names and Unix sockets, in front and behind.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests report by panicking"
)]

use qudag_kit::dns::{self, hickory_proto::rr::RecordType};
use qudag_kit::node::Host;
use qudag_kit::rpc::{self, Server};
use qudag_kit::{
    EchoPeer, HostedNode, HttpNode, TestSidecar, Unbound, http, needs_node, needs_program, peer, skip,
};
use serde_json::json;

/// Whether this machine has an IPv6 loopback address.
fn has_ipv6() -> bool {
    std::net::TcpListener::bind("[::1]:0").is_ok()
}

#[tokio::test]
async fn ipv6_in_front_and_behind() {
    needs_program!("unbound");
    if !has_ipv6() {
        skip!("no IPv6 here");
    }
    let peer = EchoPeer::start_on("[::1]:0".parse().unwrap()).await;
    let node = HttpNode::start_on("[::1]:0".parse().unwrap()).await;
    let unbound = Unbound::start(&["a.test. 60 IN A 192.0.2.1"]).await;
    let yaml = format!(
        "node: {{ p2p: \"{peer}\", http: \"{http}\" }}\nlisteners:\n  dns: {{ bind: \"[::1]:0\" }}\n  http: {{ bind: \
         \"[::1]:0\" }}\n  peer:\n    outbound: [{{ name: six, bind: \"[::1]:0\", to: \"{peer}\" }}]\n    inbound: \
         [\"[::1]:0\"]\nfilters:\n  dns:\n    dns_upstream: {{ servers: [\"{dns}\"] }}\n",
        peer = peer.addr(),
        http = node.addr(),
        dns = unbound.addr(),
    );
    let sidecar = TestSidecar::start(&yaml).await;
    let dns = sidecar.listener("dns").await;
    assert!(dns.is_ipv6());
    assert_eq!(dns::ask(dns, "a.test.", RecordType::A).await.unwrap().answers.len(), 1);
    assert_eq!(dns::ask_tcp(dns, "a.test.", RecordType::A).await.unwrap().answers.len(), 1);
    assert_eq!(http::get(sidecar.listener("http").await, "/health").await.unwrap().status, 200);
    let status = sidecar.status().await;
    let peers = status["listeners"].as_array().unwrap().iter().filter(|listener| listener["kind"] == "peer");
    for door in peers {
        peer::echo(door["addr"].as_str().unwrap().parse().unwrap(), 100_000).await.unwrap();
    }
    assert_eq!(peer.accepted(), 2);
}

#[tokio::test]
async fn one_listener_for_both_families() {
    if !has_ipv6() {
        skip!("no IPv6 here");
    }
    let node = HttpNode::start().await;
    let yaml = format!("node: {{ http: \"{}\" }}\nlisteners:\n  http: {{ bind: \"[::]:0\" }}\n", node.addr());
    let sidecar = TestSidecar::start(&yaml).await;
    let port = sidecar.listener("http").await.port();
    for host in ["127.0.0.1", "::1"] {
        let door = std::net::SocketAddr::new(host.parse().unwrap(), port);
        assert_eq!(http::get(door, "/health").await.unwrap().status, 200, "{host}");
    }
}

#[tokio::test]
async fn targets_may_be_names() {
    let peer = EchoPeer::start().await;
    let node = HttpNode::start().await;
    let yaml = format!(
        "node: {{ p2p: \"localhost:{peer}\", http: \"localhost:{http}\" }}\nlisteners:\n  http: {{ bind: \"localhost:0\" \
         }}\n  peer:\n    outbound: [{{ name: named, bind: \"127.0.0.1:0\", to: \"localhost:{peer}\" }}]\n    \
         inbound: [\"127.0.0.1:0\"]\n",
        peer = peer.addr().port(),
        http = node.addr().port(),
    );
    let sidecar = TestSidecar::start(&yaml).await;
    assert_eq!(http::get(sidecar.listener("http").await, "/health").await.unwrap().status, 200);
    let status = sidecar.status().await;
    let peers = status["listeners"].as_array().unwrap().iter().filter(|listener| listener["kind"] == "peer");
    for door in peers {
        peer::echo(door["addr"].as_str().unwrap().parse().unwrap(), 1000).await.unwrap();
    }
}

#[tokio::test]
async fn rpc_from_a_unix_socket_to_a_unix_socket() {
    needs_node!();
    let dir = tempfile::tempdir().unwrap();
    let (behind, front) = (dir.path().join("node.sock"), dir.path().join("front.sock"));
    let _node = HostedNode::start(&Host { rpc_unix: Some(&behind), ..Host::default() }).await;
    let yaml = format!(
        "node: {{ rpc: \"unix:{}\" }}\nlisteners:\n  rpc: {{ bind: \"unix:{}\" }}\n",
        behind.display(),
        front.display()
    );
    let mut sidecar = TestSidecar::start(&yaml).await;
    let server = Server::Unix(front.clone());
    let reply = rpc::call(&server, "get_status", json!({})).await.unwrap();
    assert_eq!(reply["result"]["is_running"], true);
    // A socket file that a killed sidecar left behind is taken over.
    sidecar.kill();
    assert!(front.exists());
    sidecar.start_again().await;
    rpc::call(&server, "get_status", json!({})).await.unwrap();
    sidecar.stop(std::time::Duration::from_secs(10)).await;
    assert!(!front.exists(), "the socket file is removed");
}
