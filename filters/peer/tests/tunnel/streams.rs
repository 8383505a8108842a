//! Streams of a tunnel that works.

use std::time::{Duration, Instant};

use qudag_filter_common::testing::{PATIENCE, is_logged, metric, until};
use serde_json::json;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::support::*;

#[tokio::test(flavor = "multi_thread")]
async fn five_megabytes_pass_with_half_close() {
    let pair = Pair::start("exact", Unusual::default()).await;
    pair.warm().await;
    let sent = noise(5_000_000);
    let mut tcp = TcpStream::connect(pair.a.tcp()).await.unwrap();
    let (mut read, mut write) = tcp.split();
    let send = async {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let mut received = Vec::new();
    let both = async { tokio::join!(send, read.read_to_end(&mut received)).1.unwrap() };
    timeout(PATIENCE, both).await.expect("the end in time");
    assert_eq!(received[0], b't');
    assert!(received[1..] == sent, "{} bytes of {}", received.len() - 1, sent.len());
    for (target, line) in [("exact", "route=exact "), ("quic", "listener=quic ")] {
        let target = format!("target=\"{target}\"");
        let labels = |direction| ["kind=\"peer\"", &target, direction].map(str::to_owned);
        for (direction, bytes) in [("direction=\"up\"", 5e6), ("direction=\"down\"", 5e6 + 1.0)] {
            let labels = labels(direction);
            let labels: Vec<_> = labels.iter().map(String::as_str).collect();
            until("all bytes are counted", || metric("qudag_sidecar_bytes_total", &labels) >= bytes).await;
        }
        until("the line is written", || is_logged(&[line, "outcome=\"ok\"", "bytes_up=5000000"])).await;
    }
    assert!(is_logged(&["route=exact ", "path=tunnel"]));
    until("no stream is left", || pair.streams() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_connections_share_few_handshakes_and_leave_nothing() {
    // A busy machine may stand still for longer than a path that is in order.
    let pooling = json!({ "open_timeout": "2s" });
    let pair = Pair::start("thousand", Unusual { pooling, ..Unusual::default() }).await;
    let address = pair.a.tcp();
    let mut clients = JoinSet::new();
    for _ in 0..8 {
        clients.spawn(async move {
            let mut ways = Vec::new();
            for _ in 0..125 {
                let (mut tcp, way) = greeted(address).await.unwrap();
                echo(&mut tcp, b"ping").await.unwrap();
                ways.push(way);
            }
            ways
        });
    }
    let ways: Vec<_> = clients.join_all().await.concat();
    assert_eq!(ways.iter().filter(|way| **way == 't').count(), 1000);
    assert!(pair.dials("ok") <= 4.0, "{} dials", pair.dials("ok"));
    until("no stream is left", || pair.streams() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_of_connections_to_a_cold_pool_dials_once_at_a_time() {
    let pair = Pair::start("burst", Unusual::default()).await;
    let address = pair.a.tcp();
    let mut clients = JoinSet::new();
    for _ in 0..60 {
        clients.spawn(async move { greeted(address).await.unwrap() });
    }
    let streams = clients.join_all().await;
    assert_eq!(streams.iter().filter(|(_, way)| *way == 't').count(), 60);
    assert_eq!(pair.dials("ok"), 1.0, "60 streams fit on one connection");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_place_of_a_connection_can_be_used_again_and_again() {
    let pooling = json!({ "max_connections": 1 });
    let pair = Pair::start("places", Unusual { pooling, ..Unusual::default() }).await;
    pair.warm().await;
    for used_before in [1, 15, 128] {
        let mut open = Vec::new();
        for _ in 0..used_before {
            open.push(pair.greeted().await.unwrap());
        }
        drop(open);
        until("no stream is left", || pair.streams() == 0).await;
        let mut open = Vec::new();
        for _ in 0..128 {
            let (tcp, way) = pair.greeted().await.unwrap();
            assert_eq!(way, 't', "stream {} after {used_before}", open.len());
            open.push(tcp);
        }
        drop(open);
        until("no stream is left", || pair.streams() == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stalled_readers_hold_up_nobody() {
    // Small windows are full sooner.
    let pooling = json!({ "stream_window": "128KiB" });
    let pair = Pair::start("stalled", Unusual { pooling, ..Unusual::default() }).await;
    pair.warm().await;
    let mut stalled = Vec::new();
    for _ in 0..100 {
        // A small buffer, so that it is the tunnel that fills and not the kernel.
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut tcp = socket.connect(pair.a.tcp()).await.unwrap();
        assert_eq!(tcp.read_u8().await.unwrap(), b't');
        tcp.write_all(b"s").await.unwrap();
        stalled.push(tcp);
    }
    let down = || metric("qudag_sidecar_bytes_total", &["target=\"stalled\"", "direction=\"down\""]);
    // Until the windows are full.
    let mut before = -1.0;
    while down() > before {
        before = down();
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    for _ in 0..8 {
        let start = Instant::now();
        let (mut tcp, way) = pair.greeted().await.unwrap();
        echo(&mut tcp, &noise(10_000)).await.unwrap();
        assert!(
            way == 't' && start.elapsed() < Duration::from_millis(500),
            "{way} after {:?}",
            start.elapsed()
        );
    }
    drop(stalled);
    let start = Instant::now();
    until("no stream is left", || pair.streams() == 0).await;
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_reset_passes_both_ways() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let node = Some(listener.local_addr().unwrap());
    let pair = Pair::start("resets", Unusual { node, ..Unusual::default() }).await;
    pair.warm().await;
    for node_resets in [true, false] {
        let mut client = TcpStream::connect(pair.a.tcp()).await.unwrap();
        let (mut upstream, _) = timeout(PATIENCE, listener.accept()).await.unwrap().unwrap();
        client.write_all(b"x").await.unwrap();
        assert_eq!(timeout(PATIENCE, upstream.read_u8()).await.unwrap().unwrap(), b'x');
        let (resets, mut sees) = if node_resets { (upstream, client) } else { (client, upstream) };
        SockRef::from(&resets).set_linger(Some(Duration::ZERO)).unwrap();
        drop(resets);
        assert!(is_reset(&timeout(PATIENCE, sees.read_u8()).await.unwrap()), "node_resets {node_resets}");
        until("no stream is left", || pair.streams() == 0).await;
    }
}

#[tokio::test]
async fn what_the_client_says_first_arrives_in_order_however_much_it_is() {
    let pair = Pair::start("first", Unusual::default()).await;
    for length in [1, 4_000, 16_384, 16_385, 200_000] {
        let mut tcp = TcpStream::connect(pair.a.tcp()).await.unwrap();
        let (sent, mut received) = (noise(length), Vec::new());
        let (mut read, mut write) = tcp.split();
        let send = async {
            write.write_all(&sent).await.unwrap();
            write.shutdown().await.unwrap();
        };
        let both = async { tokio::join!(send, read.read_to_end(&mut received)).1.unwrap() };
        timeout(PATIENCE, both).await.unwrap();
        assert!(received[0] == b't' && received[1..] == sent, "{length}");
    }
}

#[tokio::test]
async fn classes_have_connections_of_their_own() {
    let pair = Pair::start(
        "classes",
        Unusual { sidecar: serde_json::json!({ "class": "bulk" }), ..Unusual::default() },
    )
    .await;
    pair.warm().await;
    assert_eq!(pair.greeted().await.unwrap().1, 't');
    let pools = pair.a.upstream.as_ref().unwrap().statuses();
    assert_eq!(pools.iter().map(|pool| pool.class).collect::<Vec<_>>(), ["bulk"]);
}
