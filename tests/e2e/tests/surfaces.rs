//! RPC, HTTP and DNS give through the sidecar what they give directly.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests report by panicking"
)]

use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use hyper::Request;
use qudag_e2e::compare::{dns_answers, http_replies, http_replies_direct, rpc_replies};
use qudag_e2e::world::Doors;
use qudag_e2e::{Filters, World};
use qudag_kit::dns::{self, hickory_proto::rr::RecordType};
use qudag_kit::http::Client;
use qudag_kit::rpc::{self, Server};
use qudag_kit::{TestSidecar, Unbound, needs_node, needs_program, peer, within};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[tokio::test]
async fn rpc_replies_are_the_nodes_own() {
    needs_node!();
    needs_program!("unbound");
    let world = World::start().await;
    let sidecar = world.sidecar(&Filters::all()).await;
    let doors = Doors::of(&sidecar).await;
    let direct = rpc_replies(&world.rpc_direct()).await;
    assert_eq!(rpc_replies(&Server::Tcp(doors.rpc)).await, direct);
    assert_eq!(direct[0].1["result"]["is_running"], true);
    assert_eq!(direct[4].1["error"]["code"], -32601);
}

#[tokio::test]
async fn rpc_clients_may_keep_a_connection_and_pipeline() {
    needs_node!();
    needs_program!("unbound");
    let world = World::start().await;
    let sidecar = world.sidecar(&Filters::all()).await;
    let doors = Doors::of(&sidecar).await;
    let mut stream = rpc::connect(&Server::Tcp(doors.rpc)).await.unwrap();
    let requests: Vec<_> = (0..20).map(|_| rpc::request("get_status", json!({}))).collect();
    for request in &requests {
        rpc::send(&mut stream, request.to_string().as_bytes()).await.unwrap();
    }
    for request in &requests {
        let reply: serde_json::Value =
            serde_json::from_slice(&rpc::receive(&mut stream).await.unwrap()).unwrap();
        assert_eq!(reply["id"], request["id"], "replies come in the order of the requests");
    }
}

#[tokio::test]
async fn rpc_over_tcp_to_the_node_works_too() {
    needs_node!();
    needs_program!("unbound");
    let world = World::start().await;
    let rpc_tcp = world.node.rpc_tcp();
    let yaml = world
        .yaml(&Filters::all())
        .replace(&format!("unix:{}", world.rpc_unix().display()), &rpc_tcp.to_string());
    let sidecar = TestSidecar::start(&yaml).await;
    let doors = Doors::of(&sidecar).await;
    let direct = rpc_replies(&Server::Tcp(rpc_tcp)).await;
    assert_eq!(rpc_replies(&Server::Tcp(doors.rpc)).await, direct);
}

#[tokio::test]
async fn http_replies_are_the_nodes_own_and_well_formed() {
    needs_node!();
    needs_program!("unbound");
    let world = World::start().await;
    let sidecar = world.sidecar(&Filters::all()).await;
    let doors = Doors::of(&sidecar).await;
    let direct = http_replies_direct(world.http.addr()).await;
    let mut one = Client::http1(doors.http).await.unwrap();
    // Twice over one connection: garbage after a body would be read as the next reply.
    assert_eq!(http_replies(&mut one).await, direct);
    assert_eq!(http_replies(&mut one).await, direct);
    assert!(one.is_reusable());
    let mut two = Client::http2(doors.http).await.unwrap();
    assert_eq!(http_replies(&mut two).await, direct);
    assert_eq!(direct[0].1.2, br#"{"status":"healthy","synced":true}"#);
}

#[tokio::test]
async fn events_pass_as_they_come() {
    needs_node!();
    needs_program!("unbound");
    let world = World::start().await;
    let sidecar = world.sidecar(&Filters::all()).await;
    let doors = Doors::of(&sidecar).await;
    for two in [false, true] {
        let client = if two { Client::http2(doors.http).await } else { Client::http1(doors.http).await };
        let request = Request::get("/mcp/events").body(http_body_util::Full::default()).unwrap();
        let reply = client.unwrap().send(request).await.unwrap();
        assert_eq!(reply.headers()["content-type"], "text/event-stream");
        let start = Instant::now();
        let mut body = reply.into_body();
        let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
        // The node lets 900 ms pass before the stream ends; a buffering proxy would hold the first event until then.
        assert!(start.elapsed() < Duration::from_millis(800), "the first event took {:?}", start.elapsed());
        assert!(first.starts_with(b"event: tick\ndata: 1\n"), "{first:?}");
        let rest = body.collect().await.unwrap().to_bytes();
        assert!(rest.ends_with(b"data: 3\n\n"), "{rest:?}");
    }
}

#[tokio::test]
async fn names_resolve_as_they_do_upstream() {
    needs_node!();
    needs_program!("unbound");
    let world = World::start().await;
    let sidecar = world.sidecar(&Filters::all()).await;
    let doors = Doors::of(&sidecar).await;
    let direct = dns_answers(world.unbound.addr()).await;
    assert_eq!(dns_answers(doors.dns).await, direct, "on a miss");
    assert_eq!(dns_answers(doors.dns).await, direct, "on a hit");
}

#[tokio::test]
async fn a_name_is_resolved_through_the_cache() {
    needs_node!();
    needs_program!("unbound");
    let world = World::start().await;
    let sidecar = world.sidecar(&Filters::only(&["dns.hosts", "dns.dns_cache"])).await;
    let doors = Doors::of(&sidecar).await;
    for _ in 0..10 {
        let answer = dns::ask(doors.dns, "kept.test.", RecordType::A).await.unwrap();
        assert_eq!(dns::addresses(&answer), ["192.0.2.77".parse::<std::net::IpAddr>().unwrap()]);
        assert!(answer.answers[0].ttl <= 300);
    }
    assert_eq!(world.unbound.queries("kept.test."), 1);
    sidecar.cli(&["cache", "flush"]).await.ok();
    dns::ask(doors.dns, "kept.test.", RecordType::A).await.unwrap();
    assert_eq!(world.unbound.queries("kept.test."), 2);
    let pinned = dns::ask(doors.dns, "pinned.test.", RecordType::A).await.unwrap();
    assert_eq!(dns::addresses(&pinned), ["192.0.2.50".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(world.unbound.queries("pinned.test."), 0);
    let looked_up = sidecar.cli_json(&["dns", "lookup", "kept.test"]).await;
    assert!(looked_up.to_string().contains("192.0.2.77"), "{looked_up}");
}

#[tokio::test]
async fn peer_streams_keep_every_byte() {
    needs_node!();
    needs_program!("unbound");
    let world = World::start().await;
    let sidecar = world.sidecar(&Filters::all()).await;
    let doors = Doors::of(&sidecar).await;
    for door in [doors.outbound, doors.inbound] {
        for length in [0, 1, 5_000_000] {
            peer::echo(door, length).await.unwrap();
        }
    }
}

#[tokio::test]
async fn an_upgraded_connection_passes_unbuffered() {
    needs_node!();
    needs_program!("unbound");
    let world = World::start().await;
    let sidecar = world.sidecar(&Filters::all()).await;
    let doors = Doors::of(&sidecar).await;
    let mut stream = TcpStream::connect(doors.http).await.unwrap();
    let request = format!(
        "GET /ws HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: \
         13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
        doors.http
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(within(Duration::from_secs(5), "the head of the reply", stream.read_u8()).await.unwrap());
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    for number in 0..20u32 {
        stream.write_u32(number).await.unwrap();
        let back = within(Duration::from_secs(5), "the echo", stream.read_u32()).await.unwrap();
        assert_eq!(back, number);
    }
    stream.shutdown().await.unwrap();
    assert_eq!(within(Duration::from_secs(5), "the end", stream.read(&mut [0])).await.unwrap(), 0);
}

#[tokio::test]
async fn the_next_name_server_is_asked_when_one_is_down() {
    needs_program!("unbound");
    let unbound = Unbound::start(&["a.test. 60 IN A 192.0.2.1"]).await;
    // Bound and never answering.
    let black_hole = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let yaml = format!(
        "listeners:\n  dns: {{ bind: \"127.0.0.1:0\" }}\nfilters:\n  dns:\n    dns_upstream: {{ servers: [\"{}\", \
         \"{}\"] }}\n",
        black_hole.local_addr().unwrap(),
        unbound.addr()
    );
    let sidecar = TestSidecar::start(&yaml).await;
    let dns = sidecar.listener("dns").await;
    for _ in 0..5 {
        let answer = dns::ask(dns, "a.test.", RecordType::A).await.unwrap();
        assert_eq!(dns::addresses(&answer), ["192.0.2.1".parse::<std::net::IpAddr>().unwrap()]);
        let answer = dns::ask_tcp(dns, "a.test.", RecordType::A).await.unwrap();
        assert_eq!(answer.answers.len(), 1);
    }
}
