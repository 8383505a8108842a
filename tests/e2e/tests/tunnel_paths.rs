//! Paths and systems that are not as they should be, and what passes between two sidecars as others see it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests report by panicking"
)]

use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use qudag_e2e::tunnels::{
    Changes, DIRECT, DOOR, DOOR_V6, PATIENCE, Pair, TUNNEL, connect, echo, half_close, noise,
};
use qudag_kit::capture::{Packet, UDP, write_pcap};
use qudag_kit::{Capture, Start, eventually};
use qudag_wan::needs_wan;
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

const LEFT: &str = "10.90.0.1";
const RIGHT: &str = "10.90.0.2";
/// What a node says first.
const FIRST: &[u8] = b"\x13/multistream/1.0.0\n\x07/noise\n";
const QUIC: u16 = 4433;
const ICMP: u8 = 1;

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Lost: none, of 5 MB each way with half-close, from clients of both versions of IP.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_megabytes_with_half_close_pass_over_both_versions_of_ip() {
    needs_wan!();
    for to in ["10.90.0.2:4433", "[fd90::2]:4433"] {
        let pair = Pair::start_to("delay=2ms", to).await;
        pair.up().await;
        for door in [DOOR, DOOR_V6] {
            let way = half_close(connect(&pair.left, door), 5_000_000).await;
            assert_eq!(way, TUNNEL, "{door} over {to}");
        }
        let pool = pair.pool().await;
        assert_eq!(pool["connections"][0]["to"], to);
    }
}

/// Lost: none, whether the path is small from the beginning or becomes so, and nobody says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_of_1300_bytes_that_tells_nobody_loses_nothing() {
    needs_wan!();
    let pair = Pair::start("delay=2ms,mtu=1300/silent").await;
    pair.up().await;
    assert_eq!(half_close(connect(&pair.left, DOOR), 2_000_000).await, TUNNEL);
    let mtu = pair.pool().await["connections"][0]["mtu"].as_u64().unwrap();
    assert!((1200..=1272).contains(&mtu), "{mtu} bytes of payload, where 1272 fit");

    let pair = Pair::start("delay=2ms").await;
    pair.up().await;
    assert_eq!(half_close(connect(&pair.left, DOOR), 500_000).await, TUNNEL);
    let found = async || {
        let mtu = pair.pool().await["connections"][0]["mtu"].as_u64().unwrap();
        (mtu > 1400).then_some(mtu)
    };
    // What goes directly meanwhile is TCP's, which finds a way out of a black hole only where it is told to (RFC 4821).
    for namespace in [&pair.left, &pair.right] {
        namespace.run("sh", &["-c", "echo 1 > /proc/sys/net/ipv4/tcp_mtu_probing"]).await.ok();
    }
    let before = eventually(PATIENCE, "the path's size is found", found).await;
    let load = pair.under_load(10, 1).await;
    pair.wan.change_both(|settings| *settings = "delay=2ms,mtu=1300/silent".parse().unwrap()).unwrap();
    assert_eq!(half_close(connect(&pair.left, DOOR), 2_000_000).await, TUNNEL);
    let after = pair.pool().await;
    let black_holes = after["connections"][0]["black_holes"].as_u64().unwrap();
    println!(
        "mtu: {before} bytes before, {} after, {black_holes} black holes",
        after["connections"][0]["mtu"]
    );
    load.stop().await.assert_nothing_lost();
}

/// Lost: none. The device takes smaller packets than a moment ago, and the kernel refuses (EMSGSIZE; EINVAL before Linux 6.9) datagrams
/// and whole batches of them (GSO) that were right before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_of_datagrams_that_the_kernel_refuses_lose_nothing() {
    needs_wan!();
    let pair = Pair::start("delay=2ms").await;
    pair.up().await;
    assert_eq!(half_close(connect(&pair.left, DOOR), 2_000_000).await, TUNNEL);
    let load = pair.under_load(10, 1).await;
    for (namespace, device) in [&pair.left, &pair.right].into_iter().zip(pair.wan.devices()) {
        namespace.ip(&["link", "set", device, "mtu", "1300"]);
    }
    assert_eq!(half_close(connect(&pair.left, DOOR), 2_000_000).await, TUNNEL);
    load.stop().await.assert_nothing_lost();
    let mtu = pair.pool().await["connections"][0]["mtu"].as_u64().unwrap();
    assert!(mtu <= 1272, "{mtu} bytes of payload, where 1272 fit");
}

/// Lost: connections that come while there is no descriptor for them; each is counted. What is open goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_without_descriptors_counts_what_it_refuses_and_recovers() {
    needs_wan!();
    let pair = Pair::start("delay=1ms").await;
    pair.up().await;
    let load = pair.under_load(10, 0).await;
    let limit = async |most: u64| {
        let (pid, most) = (pair.a.pid().to_string(), format!("--nofile={most}:"));
        Start::new("prlimit").args(["--pid", &pid, &most]).output().await.ok();
    };
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", pair.a.pid())).unwrap();
    let limits = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    let before: u64 = limits.split_whitespace().next().unwrap().parse().unwrap();
    let used = std::fs::read_dir(format!("/proc/{}/fd", pair.a.pid())).unwrap().count() as u64;
    limit(used + 12).await;
    let mut waiting = Vec::new();
    for _ in 0..60 {
        waiting.push(connect(&pair.left, DOOR).await.unwrap());
    }
    // Nothing is left for the admin API either, so that only its file tells.
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(load.lost(), 0);
    limit(before).await;
    let errors = async || {
        let errors = pair.metric("qudag_sidecar_accept_errors_total", &[]).await;
        (errors > 0.0).then_some(errors)
    };
    let errors = eventually(PATIENCE, "what was refused is counted", errors).await;
    let mut served = 0;
    for tcp in &mut waiting {
        // Whoever waited in the kernel is served now.
        served += u32::from(timeout(PATIENCE, tcp.read_u8()).await.is_ok_and(|greeting| greeting.is_ok()));
    }
    println!("descriptors: {served} of 60 served in the end, {errors} refusals counted");
    drop(waiting);
    pair.returns().await;
    let report = load.stop().await;
    assert_eq!(report.lost.len(), 0, "steady streams lost; 0 allowed");
}

/// Lost: none of a thousand at once to a living peer; dials stay as few as connections.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_connections_at_once_are_all_served() {
    needs_wan!();
    let pair = Pair::start("delay=1ms").await;
    pair.up().await;
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..1000 {
        let connecting = connect(&pair.left, DOOR);
        clients.spawn(async move {
            let (mut tcp, way) = qudag_e2e::tunnels::greeted(connecting).await.unwrap();
            echo(&mut tcp, &noise(500)).await.unwrap();
            (tcp, way)
        });
    }
    let streams = clients.join_all().await;
    let tunnelled = streams.iter().filter(|(_, way)| *way == TUNNEL).count();
    let dials = pair.metric("qudag_sidecar_peer_dials_total", &[]).await;
    println!("1000 at once: {tunnelled} through the tunnel, {dials} dials");
    assert_eq!(streams.len(), 1000);
    // Four connections with 128 streams each are there at most; what finds no room goes directly.
    assert!((100..=512).contains(&tunnelled), "{tunnelled}");
    assert!(dials <= 5.0, "{dials} dials");
}

/// What passes between the hosts, from the first packet on, is QUIC, and nothing of what the nodes say can be read in it. Without the
/// tunnel it can.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_but_quic_passes_between_the_hosts() {
    needs_wan!();
    let mut pair = Pair::start("delay=2ms").await;
    pair.a.kill();
    let capture = Capture::start(&pair.left).unwrap();
    pair.a.start_again().await;
    pair.up().await;
    let (mut tcp, way) = pair.greeted().await.unwrap();
    assert_eq!(way, TUNNEL);
    let said = [FIRST, &b"and what follows it ".repeat(5000)].concat();
    echo(&mut tcp, &said).await.unwrap();

    // The other way, to see that this would be seen.
    let seen = capture.between(address(LEFT), address(RIGHT));
    capture.clear();
    pair.change(&Changes { pooling: false, ..Changes::default() }).await;
    let (mut tcp, way) = pair.greeted().await.unwrap();
    assert_eq!(way, DIRECT);
    echo(&mut tcp, &said).await.unwrap();
    capture.wait_for(FIRST).await;

    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tunnel.pcap");
    write_pcap(&file, &seen).unwrap();
    let kinds = seen.iter().map(kind).fold(std::collections::BTreeMap::<_, u32>::new(), |mut count, kind| {
        *count.entry(kind).or_default() += 1;
        count
    });
    println!("trace: {} packets {kinds:?} in {}", seen.len(), file.display());
    assert!(kinds["handshake"] >= 4 && kinds["protected"] > 50, "{kinds:?}");
    let others: Vec<_> = seen.iter().filter(|packet| kind(packet) == "other").collect();
    assert!(others.is_empty(), "{:?}", others.first());
    for what in [FIRST, b"/multistream/1.0.0", b"what follows", b"spiffe://", b"kit.test"] {
        assert!(!seen.iter().any(|packet| packet.contains(what)), "{what:?} can be read");
    }
}

/// What a packet between the hosts is.
fn kind(packet: &Packet) -> &'static str {
    let Some((ports, payload)) = packet.datagram().filter(|_| packet.protocol() == Some(UDP)) else {
        // An error of the host that names the packet which caused it.
        return if packet.protocol() == Some(ICMP) { "icmp" } else { "other" };
    };
    if !ports.contains(&QUIC) {
        return "other";
    }
    match payload {
        // RFC 9000 section 17.2, version 1.
        [first, 0, 0, 0, 1, ..] if first & 0x80 != 0 => "handshake",
        // Section 17.3: with what protects a header it has 21 bytes at least. The fixed bit may be greased (RFC 9287).
        [first, ..] if first & 0x80 == 0 && payload.len() >= 21 => "protected",
        [0] => "knock",
        _ => "other",
    }
}

/// Every connection is closed again: nothing is left of 1,000 of them. `tests/run --soak` makes 10,000.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_come_and_go_leave_nothing() {
    needs_wan!();
    let pair = Pair::start("delay=0ms").await;
    pair.up().await;
    let (parts, each) = (5, if qudag_e2e::soak_time().is_some() { 2000 } else { 200 });
    let mut prints = Vec::new();
    let start = Instant::now();
    for _ in 0..parts {
        let rows = (0..8).map(async |_| {
            for _ in 0..each / 8 {
                let (mut tcp, way) = pair.greeted().await.unwrap();
                assert_eq!(way, TUNNEL);
                echo(&mut tcp, b"ping").await.unwrap();
            }
        });
        futures_util::future::join_all(rows).await;
        let none = async || (pair.pool().await["connections"][0]["streams"] == 0).then_some(());
        eventually(PATIENCE, "no stream is left", none).await;
        prints.push([&pair.a, &pair.b].map(|side| qudag_kit::program::footprint(side.pid())));
    }
    println!("{} connections in {:?}: KiB and descriptors {prints:?}", parts * each, start.elapsed());
    for side in 0..2 {
        let (first, last) = (prints[1][side], prints[parts - 1][side]);
        assert!(last.1 <= first.1 + 3, "descriptors: {prints:?}");
        assert!(last.0 <= first.0 + 3 * 1024, "memory: {prints:?}");
    }
}
