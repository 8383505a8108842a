//! What each filter does when it is needed, and that nothing of it happens when it is off.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests report by panicking"
)]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use qudag_kit::dns::{self, hickory_proto::op::ResponseCode, hickory_proto::rr::RecordType};
use qudag_kit::http::{self, Client};
use qudag_kit::node::Host;
use qudag_kit::rpc::{self, Server};
use qudag_kit::{
    EchoPeer, HostedNode, HttpNode, Postgres, TestSidecar, Unbound, eventually, needs_node, needs_program,
    peer, ports, postgres, skip,
};
use serde_json::json;

const PATIENCE: Duration = Duration::from_secs(20);
/// Two at once, and then one a second.
const TIGHT: &str = "per_client: { rate: 1, burst: 2 }";

#[tokio::test]
async fn dns_rate_limit_refuses() {
    needs_program!("unbound");
    let unbound = Unbound::start(&["a.test. 60 IN A 192.0.2.1"]).await;
    let yaml = format!(
        "listeners:\n  dns: {{ bind: \"127.0.0.1:0\" }}\nfilters:\n  dns:\n    rate_limit: {{ enabled: true, {TIGHT} }}\n    \
         dns_upstream: {{ servers: [\"{}\"] }}\n",
        unbound.addr()
    );
    let sidecar = TestSidecar::start(&yaml).await;
    let server = sidecar.listener("dns").await;
    let codes = async || {
        let mut codes = Vec::new();
        for _ in 0..6 {
            codes.push(dns::ask(server, "a.test.", RecordType::A).await.unwrap().metadata.response_code);
        }
        codes
    };
    let limited = codes().await;
    assert_eq!(limited[..2], [ResponseCode::NoError; 2], "{limited:?}");
    assert!(limited[2..].contains(&ResponseCode::Refused), "{limited:?}");
    sidecar.toggle("dns.rate_limit", false).await;
    assert_eq!(codes().await, [ResponseCode::NoError; 6]);
}

#[tokio::test]
async fn http_rate_limit_answers_429() {
    let node = HttpNode::start().await;
    let yaml = format!(
        "node: {{ http: \"{}\" }}\nlisteners:\n  http: {{ bind: \"127.0.0.1:0\" }}\nfilters:\n  http:\n    rate_limit: {{ \
         enabled: true, {TIGHT} }}\n",
        node.addr()
    );
    let sidecar = TestSidecar::start(&yaml).await;
    let mut client = Client::http1(sidecar.listener("http").await).await.unwrap();
    let mut statuses = Vec::new();
    for _ in 0..6 {
        let reply = client.get("/health").await.unwrap();
        if reply.status == 429 {
            let wait = reply.headers["retry-after"].to_str().unwrap().parse::<u64>().unwrap();
            assert!((1..=10).contains(&wait), "{wait}");
        }
        statuses.push(reply.status.as_u16());
    }
    assert_eq!(statuses[..2], [200, 200]);
    assert!(statuses[2..].contains(&429), "{statuses:?}");
    assert!(client.is_reusable(), "a refusal keeps the connection");
    sidecar.toggle("http.rate_limit", false).await;
    for _ in 0..6 {
        assert_eq!(client.get("/health").await.unwrap().status, 200);
    }
}

#[tokio::test]
async fn rpc_rate_limit_answers_with_an_error_frame() {
    needs_node!();
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("rpc.sock");
    let _node = HostedNode::start(&Host { rpc_unix: Some(&socket), ..Host::default() }).await;
    let yaml = format!(
        "node: {{ rpc: \"unix:{}\" }}\nlisteners:\n  rpc: {{ bind: \"127.0.0.1:0\" }}\nfilters:\n  rpc:\n    rate_limit: \
         {{ enabled: true, {TIGHT} }}\n",
        socket.display()
    );
    let sidecar = TestSidecar::start(&yaml).await;
    let server = Server::Tcp(sidecar.listener("rpc").await);
    let mut refused = 0;
    for number in 0..6 {
        let reply = rpc::call(&server, "get_status", json!({})).await.unwrap();
        if !reply["error"].is_null() {
            assert!(number >= 2, "{reply}");
            assert!(reply["error"]["code"].as_i64().is_some_and(|code| code < 0), "{reply}");
            refused += 1;
        }
    }
    assert!(refused > 0);
}

#[tokio::test]
async fn db_rate_limit_answers_in_the_databases_own_words() {
    if let Err(reason) = Postgres::available() {
        skip!("{reason}");
    }
    let server = Postgres::start().await;
    let yaml = format!(
        "listeners:\n  postgres: {{ bind: \"127.0.0.1:0\", server: \"{}\" }}\nfilters:\n  db:\n    rate_limit: {{ enabled: \
         true, {TIGHT} }}\n",
        server.addr()
    );
    let sidecar = TestSidecar::start(&yaml).await;
    let door = sidecar.listener("db").await;
    let mut sessions = tokio::task::JoinSet::new();
    for _ in 0..8 {
        sessions.spawn(async move { postgres::psql(door, &["-Atc", "select 1"]).await });
    }
    let sessions = sessions.join_all().await;
    assert!(sessions.iter().any(|run| run.code == 0), "{sessions:?}");
    let refusal =
        sessions.into_iter().find(|run| run.code != 0).expect("one of eight sessions is refused").stderr;
    assert!(refusal.contains("FATAL:"), "{refusal}");
}

#[tokio::test]
async fn a_dead_node_is_told_in_each_protocol() {
    if let Err(reason) = Postgres::available() {
        skip!("{reason}");
    }
    let gone = ports::free();
    let yaml = format!(
        "node: {{ p2p: \"{gone}\", rpc: \"{gone}\", http: \"{gone}\" }}\nlisteners:\n  dns: {{ bind: \"127.0.0.1:0\" }}\n  \
         peer: {{ inbound: [\"127.0.0.1:0\"] }}\n  rpc: {{ bind: \"127.0.0.1:0\" }}\n  http: {{ bind: \
         \"127.0.0.1:0\" }}\n  postgres: {{ bind: \"127.0.0.1:0\", server: \"{gone}\" }}\nfilters:\n  dns:\n    \
         dns_upstream: {{ servers: [\"{gone}\"] }}\n"
    );
    let sidecar = TestSidecar::start(&yaml).await;
    let reply = http::get(sidecar.listener("http").await, "/health").await.unwrap();
    assert!([502, 503].contains(&reply.status.as_u16()), "{reply:?}");
    let server = Server::Tcp(sidecar.listener("rpc").await);
    let reply = rpc::call(&server, "get_status", json!({})).await.unwrap();
    assert!(reply["error"]["message"].is_string(), "{reply}");
    let answer = dns::ask(sidecar.listener("dns").await, "a.test.", RecordType::A).await.unwrap();
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    let run = postgres::psql(sidecar.listener("db").await, &["-c", "select 1"]).await;
    assert!(run.stderr.contains("FATAL:"), "{run:?}");
    // libp2p tries the next address at once on a reset, and not on a clean end.
    let why = peer::echo(sidecar.listener("peer").await, 10).await.unwrap_err();
    assert!(why.contains("reset") || why.contains("104"), "{why}");
}

#[tokio::test]
async fn a_breaker_opens_and_closes() {
    let gone = ports::free();
    let yaml = format!(
        "node: {{ http: \"{gone}\" }}\nlisteners:\n  http: {{ bind: \"127.0.0.1:0\" }}\nfilters:\n  http:\n    \
         circuit_breaker: {{ enabled: true, failures: 3, open: 1s, max_open: 2s }}\n"
    );
    let sidecar = TestSidecar::start(&yaml).await;
    let door = sidecar.listener("http").await;
    for _ in 0..4 {
        assert!(http::get(door, "/health").await.unwrap().status.is_server_error());
    }
    let labels = [("kind", "http"), ("filter", "circuit_breaker"), ("error", "breaker_open")];
    assert!(sidecar.metric("qudag_sidecar_filter_errors_total", &labels).await >= 1.0);
    let refused = http::get(door, "/health").await.unwrap();
    assert_eq!(refused.status, 503, "{refused:?}");
    assert!(refused.headers.contains_key("retry-after"), "{refused:?}");
    let _node = HttpNode::start_on(gone).await;
    let back = async || (http::get(door, "/health").await.unwrap().status == 200).then_some(());
    eventually(PATIENCE, "the breaker closes", back).await;
    assert_eq!(http::get(door, "/health").await.unwrap().status, 200);
}

#[tokio::test]
async fn a_retry_bridges_a_node_that_is_starting() {
    let gone = ports::free();
    let yaml = |retry: bool| {
        format!(
            "node: {{ http: \"{gone}\" }}\nlisteners:\n  http: {{ bind: \"127.0.0.1:0\" }}\nfilters:\n  http:\n    retry: \
             {{ enabled: {retry}, attempts: 10, backoff: 200ms, max_backoff: 500ms }}\n"
        )
    };
    let sidecar = TestSidecar::start(&yaml(true)).await;
    let door = sidecar.listener("http").await;
    let waiting = tokio::spawn(async move {
        let start = Instant::now();
        (http::get(door, "/health").await.unwrap().status.as_u16(), start.elapsed())
    });
    let tried = async || {
        let calls = sidecar.metric("qudag_sidecar_flows_active", &[("kind", "http")]).await;
        (calls >= 1.0).then_some(())
    };
    eventually(PATIENCE, "the request is under way", tried).await;
    let node = HttpNode::start_on(gone).await;
    let (status, took) = waiting.await.unwrap();
    assert_eq!(status, 200, "after {took:?}");
    drop(node);
    sidecar.reload_with(&yaml(false)).await.ok();
    assert_eq!(http::get(door, "/health").await.unwrap().status.as_u16() / 100, 5);
}

#[tokio::test]
async fn a_peer_stream_is_retried_until_its_peer_is_there() {
    let gone = ports::free();
    let yaml = format!(
        "listeners:\n  peer:\n    outbound: [{{ name: late, bind: \"127.0.0.1:0\", to: \"{gone}\" }}]\nfilters:\n  peer:\n    \
         retry: {{ enabled: true, attempts: 10, backoff: 200ms, max_backoff: 500ms }}\n"
    );
    let sidecar = TestSidecar::start(&yaml).await;
    let door = sidecar.listener("peer").await;
    let waiting = tokio::spawn(peer::echo(door, 50_000));
    let active = async || {
        let flows = sidecar.metric("qudag_sidecar_flows_active", &[("kind", "peer")]).await;
        (flows >= 1.0).then_some(())
    };
    eventually(PATIENCE, "the stream is under way", active).await;
    let _peer = EchoPeer::start_on(gone).await;
    waiting.await.unwrap().unwrap();
}

#[tokio::test]
async fn pooling_keeps_connections_to_a_server_that_allows_it() {
    // The node closes after each reply, so its connections are never kept; the sidecar's own admin API keeps them.
    let behind = TestSidecar::start("listeners: { dns: { bind: \"127.0.0.1:0\" } }\n").await;
    let admin = behind.admin_addr();
    let yaml = format!(
        "node: {{ http: \"{admin}\" }}\nlisteners:\n  http: {{ bind: \"127.0.0.1:0\" }}\nfilters:\n  http:\n    \
         connection_pooling: {{ enabled: true }}\n"
    );
    let sidecar = TestSidecar::start(&yaml).await;
    let door = sidecar.listener("http").await;
    let ask = async || {
        let request = hyper::Request::get("/healthz").header("host", admin.to_string());
        let request = request.body(http_body_util::Full::default()).unwrap();
        Client::http1(door).await.unwrap().request(request).await.unwrap()
    };
    for _ in 0..20 {
        assert_eq!(ask().await.status, 200);
    }
    let pooled = open_to(sidecar.pid(), admin).await;
    assert!((1..=4).contains(&pooled), "{pooled} connections are kept");
}

/// Established connections from a process to an address, from the kernel's table.
async fn open_to(pid: u32, to: SocketAddr) -> usize {
    let SocketAddr::V4(to) = to else { panic!("IPv4 only") };
    let remote = format!("{:08X}:{:04X}", u32::from_le_bytes(to.ip().octets()), to.port());
    let table = std::fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap();
    // Columns: slot, local, remote, state; 01 is ESTABLISHED. The clients of the test itself are of this namespace too, but
    // they are connected to other ports.
    let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.filter(|row| row.get(2) == Some(&remote.as_str()) && row.get(3) == Some(&"01")).count()
}
