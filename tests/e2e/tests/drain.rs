//! Stopping: what is under way ends well.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests report by panicking"
)]

use std::time::Duration;

use qudag_e2e::world::Doors;
use qudag_e2e::{Filters, World};
use qudag_kit::dns::{self, hickory_proto::rr::RecordType};
use qudag_kit::http::Client;
use qudag_kit::{TestSidecar, needs_node, needs_program, peer, rpc};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// Starts operations one after another until the sidecar refuses connections. Whatever it has accepted must succeed.
fn traffic(doors: &Doors) -> JoinSet<Result<(), String>> {
    let doors = *doors;
    let mut set = JoinSet::new();
    for door in [doors.outbound, doors.inbound] {
        set.spawn(until_refused(door, "peer", move || peer::echo(door, 200_000)));
    }
    set.spawn(until_refused(doors.http, "http", move || async move {
        let reply = Client::http1(doors.http).await?.get("/large").await?;
        if reply.body.len() == 1 << 20 { Ok(()) } else { Err(format!("{} bytes", reply.body.len())) }
    }));
    set.spawn(until_refused(doors.rpc, "rpc", move || async move {
        let reply = rpc::call(&rpc::Server::Tcp(doors.rpc), "get_status", json!({})).await?;
        if reply["error"].is_null() { Ok(()) } else { Err(reply.to_string()) }
    }));
    set
}

async fn until_refused<F, O>(
    door: std::net::SocketAddr,
    kind: &'static str,
    operation: F,
) -> Result<(), String>
where
    F: Fn() -> O,
    O: Future<Output = Result<(), String>>,
{
    let mut done = 0;
    loop {
        if let Err(why) = operation().await {
            // A connection that the kernel accepted for a listener that is being closed is reset without having been seen.
            let unseen =
                ["Connection refused", "Connection reset", "os error 104", "os error 111", "early eof"];
            if TcpStream::connect(door).await.is_err() && unseen.iter().any(|text| why.contains(text)) {
                println!("{kind}: {done} done before the end");
                return if done > 0 { Ok(()) } else { Err(format!("{kind}: nothing done")) };
            }
            return Err(format!("{kind}, after {done}: {why}"));
        }
        done += 1;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_under_load_fails_nothing_that_was_accepted() {
    needs_node!();
    needs_program!("unbound");
    let world = World::start().await;
    let mut sidecar = world.sidecar(&Filters::all()).await;
    let doors = Doors::of(&sidecar).await;
    // A stream, a request and an event stream that are under way when the drain begins.
    let mut open = TcpStream::connect(doors.outbound).await.unwrap();
    open.write_all(b"before").await.unwrap();
    open.read_exact(&mut [0; 6]).await.unwrap();
    let events = tokio::spawn(async move { Client::http1(doors.http).await?.get("/mcp/events").await });
    let mut traffic = traffic(&doors);
    let busy = async || (world.http.requests() > 5 && world.peer.accepted() > 5).then_some(());
    qudag_kit::eventually(Duration::from_secs(20), "traffic is under way", busy).await;

    sidecar.cli(&["drain"]).await.ok();
    let closed = async || TcpStream::connect(doors.http).await.is_err().then_some(());
    qudag_kit::eventually(Duration::from_secs(10), "no new connections are taken", closed).await;
    // The open stream goes on working and ends as its client wants.
    open.write_all(b"after").await.unwrap();
    let mut back = [0; 5];
    open.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"after");
    open.shutdown().await.unwrap();
    assert_eq!(open.read(&mut [0]).await.unwrap(), 0);

    while let Some(result) = traffic.join_next().await {
        result.unwrap().unwrap();
    }
    let events = events.await.unwrap().unwrap();
    assert!(events.text().contains("data: 3"), "{}", events.text());
    let status = sidecar.program().wait_for_end(Duration::from_secs(30)).await;
    assert!(status.success(), "{status}");
}

#[tokio::test]
async fn an_idle_sidecar_stops_at_once() {
    needs_program!("unbound");
    let mut sidecar = TestSidecar::start("listeners: { dns: { bind: \"127.0.0.1:0\" } }\n").await;
    let dns = sidecar.listener("dns").await;
    let (status, took) = sidecar.stop(Duration::from_secs(10)).await;
    assert!(status.success(), "{status}");
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert!(dns::ask_tcp(dns, "a.test.", RecordType::A).await.is_err());
}
