//! Peer connections through the listener and the chain, on real sockets.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by a panic"
)]

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use qudag_filter_api::Node;
use qudag_filter_common::testing::{self, PATIENCE, is_logged, metric, nowhere, until};
use qudag_filter_peer::PeerListener;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

type Sidecar = testing::Sidecar<PeerListener>;

/// A server that sends a greeting and then echoes until the client has finished.
async fn echo(bind: &str, greeting: &'static str) -> SocketAddr {
    serve_echo(TcpListener::bind(bind).await.unwrap(), greeting)
}

fn serve_echo(listener: TcpListener, greeting: &'static str) -> SocketAddr {
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            tokio::spawn(async move {
                tcp.write_all(greeting.as_bytes()).await?;
                let (mut read, mut write) = tcp.split();
                tokio::io::copy(&mut read, &mut write).await?;
                write.shutdown().await
            });
        }
    });
    address
}

/// A port that refuses connections until [`Closed::open`].
struct Closed(socket2::Socket);

impl Closed {
    fn new() -> Self {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        Self(socket)
    }

    fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap().as_socket().unwrap()
    }

    fn open(self, greeting: &'static str) {
        self.0.listen(1024).unwrap();
        serve_echo(TcpListener::from_std(self.0.into()).unwrap(), greeting);
    }
}

fn outbound(routes: &[(&str, String)]) -> Value {
    let routes: Vec<_> =
        routes.iter().map(|(name, to)| json!({ "name": name, "bind": "127.0.0.1:0", "to": to })).collect();
    json!({ "outbound": routes })
}

async fn one_route(name: &str, to: String, filters: Value) -> Sidecar {
    Sidecar::start(nowhere(), outbound(&[(name, to)]), filters).await
}

fn is_reset<T>(result: &io::Result<T>) -> bool {
    result.as_ref().is_err_and(|why| why.kind() == io::ErrorKind::ConnectionReset)
}

/// Connects and reads a greeting of one byte.
async fn greeted(address: SocketAddr) -> io::Result<(TcpStream, char)> {
    let work = async {
        let mut tcp = TcpStream::connect(address).await?;
        let byte = tcp.read_u8().await?;
        Ok((tcp, char::from(byte)))
    };
    timeout(PATIENCE, work).await.expect("an answer in time")
}

/// Sends 5 MB, finishes, and only then has everything back.
async fn echoes_with_half_close(address: SocketAddr) {
    let sent: Vec<u8> = (0..5_000_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut tcp = TcpStream::connect(address).await.unwrap();
    let (mut read, mut write) = tcp.split();
    let send = async {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let mut received = Vec::new();
    let both = async { tokio::join!(send, read.read_to_end(&mut received)).1.unwrap() };
    timeout(PATIENCE, both).await.expect("the end in time");
    assert!(received == sent, "{} bytes of {}", received.len(), sent.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_and_half_closes_pass_over_v4_v6_names_and_inbound() {
    let (v4, v6) = (echo("127.0.0.1:0", "").await, echo("[::1]:0", "").await);
    let mut listeners = outbound(&[
        ("pass-v4", v4.to_string()),
        ("pass-v6", v6.to_string()),
        ("pass-name", format!("peer.test:{}", v4.port())),
    ]);
    listeners["inbound"] = json!(["127.0.0.1:0", "[::1]:0"]);
    let sidecar = Sidecar::start(Node { p2p: v6.into(), ..nowhere() }, listeners, json!({})).await;
    // The first address does not answer there; the second one does.
    sidecar.names.set("peer.test", &["127.0.0.77", "127.0.0.1"]);
    for address in sidecar.tcps() {
        echoes_with_half_close(address).await;
    }
    for target in ["pass-v4", "pass-v6", "pass-name", "inbound-0", "inbound-1"] {
        let target = format!("target=\"{target}\"");
        for direction in ["direction=\"up\"", "direction=\"down\""] {
            let labels = ["kind=\"peer\"", &target, direction];
            until("all bytes are counted", || metric("qudag_sidecar_bytes_total", &labels) == 5e6).await;
        }
    }
    for route in ["route=pass-v4 ", "route=pass-name to=peer.test:", "route=inbound-1 to=[::1]:"] {
        let line = [route, "outcome=\"ok\"", "bytes_up=5000000 bytes_down=5000000"];
        until("the line is written", || is_logged(&line)).await;
    }
}

#[tokio::test]
async fn a_peer_that_refuses_or_has_no_address_resets_the_client() {
    let closed = Closed::new();
    let routes = outbound(&[("closed", closed.address().to_string()), ("nameless", "nobody.test:1".into())]);
    let sidecar = Sidecar::start(nowhere(), routes, json!({})).await;
    for address in sidecar.tcps() {
        assert!(is_reset(&greeted(address).await));
    }
    for (outcome, route) in
        [("outcome=\"connect\"", "route=closed"), ("outcome=\"resolve\"", "route=nameless")]
    {
        until("the line is written", || is_logged(&[outcome, route])).await;
        assert!(metric("qudag_sidecar_flows_total", &["kind=\"peer\"", outcome]) >= 1.0);
    }
}

#[tokio::test]
async fn a_peer_that_fails_resets_the_client() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = listener.local_addr().unwrap().to_string();
    let sidecar = one_route("failing", to, json!({})).await;
    let mut client = TcpStream::connect(sidecar.tcp()).await.unwrap();
    let (upstream, _) = listener.accept().await.unwrap();
    socket2::SockRef::from(&upstream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(upstream);
    assert!(is_reset(&timeout(PATIENCE, client.read_u8()).await.unwrap()));
}

#[tokio::test]
async fn what_is_sent_before_the_peer_answers_stays_in_the_kernel_and_arrives() {
    let to = echo("127.0.0.1:0", "").await;
    let sidecar = one_route("early", format!("peer.test:{}", to.port()), json!({})).await;
    sidecar.names.set("peer.test", &["127.0.0.1"]);
    let hold = sidecar.names.hold().await;
    let mut client = TcpStream::connect(sidecar.tcp()).await.unwrap();
    client.write_all(&[7; 3000]).await.unwrap();
    until("the route is looked up", || sidecar.names.lookups() == 1).await;
    assert_eq!(metric("qudag_sidecar_bytes_total", &["target=\"early\"", "direction=\"up\""]), 0.0);
    drop(hold);
    client.shutdown().await.unwrap();
    let mut received = Vec::new();
    timeout(PATIENCE, client.read_to_end(&mut received)).await.unwrap().unwrap();
    assert_eq!(received, [7; 3000]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_breaker_answers_at_once_and_lets_one_probe_through() {
    let closed = Closed::new();
    let filters = json!({
        "circuit_breaker": { "enabled": true, "failures": 3, "open": "400ms", "max_open": "2s" },
    });
    let sidecar = one_route("broken", format!("peer.test:{}", closed.address().port()), filters).await;
    sidecar.names.set("peer.test", &["127.0.0.1"]);
    let address = sidecar.tcp();
    let round = || async move {
        let mut tries = tokio::task::JoinSet::new();
        for _ in 0..20 {
            tries.spawn(greeted(address));
        }
        tries.join_all().await
    };

    for _ in 0..3 {
        assert!(is_reset(&greeted(address).await));
    }
    let opened = Instant::now();
    assert!(round().await.iter().all(is_reset));
    if opened.elapsed() < Duration::from_millis(200) {
        assert_eq!(sidecar.names.lookups(), 3, "an open breaker does not dial");
    }

    // The first window lasts 200 to 600 ms and the next one is longer than a round.
    let deadline = Instant::now() + PATIENCE;
    while sidecar.names.lookups() == 3 {
        assert!(Instant::now() < deadline, "no probe");
        let started = Instant::now();
        assert!(round().await.iter().all(is_reset));
        if started.elapsed() < Duration::from_millis(300) {
            assert!(sidecar.names.lookups() <= 4, "one probe a window");
        }
    }

    closed.open("x");
    while !greeted(address).await.is_ok_and(|(_, byte)| byte == 'x') {
        assert!(Instant::now() < deadline, "no recovery");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let again = round().await;
    assert!(again.iter().all(Result::is_ok), "{again:?}");
}

#[tokio::test]
async fn a_corrected_route_does_not_wait_for_the_breaker_of_the_wrong_one() {
    let (wrong, right) = (Closed::new(), echo("127.0.0.1:0", "x").await);
    let filters = json!({ "circuit_breaker": { "enabled": true, "failures": 2, "open": "60s" } });
    let mut sidecar = one_route("corrected", wrong.address().to_string(), filters.clone()).await;
    let address = sidecar.tcp();
    for _ in 0..3 {
        assert!(is_reset(&greeted(address).await));
    }
    let refused = ["route=corrected", "outcome=\"breaker_open\""];
    until("the breaker is open", || is_logged(&refused)).await;
    let open = || metric("qudag_sidecar_breaker_open", &["kind=\"peer\"", "target=\"corrected\""]);
    assert_eq!(open(), 1.0);

    sidecar.reload(outbound(&[("corrected", right.to_string())]), filters);
    assert_eq!(greeted(address).await.unwrap().1, 'x');
    assert_eq!(open(), 0.0);
}

#[tokio::test]
async fn a_retry_finds_the_peer_that_comes_up_in_time() {
    let closed = Closed::new();
    let retry = json!({ "enabled": true, "attempts": 10, "backoff": "500ms", "deadline": "8s", "budget_min_per_second": 10 });
    let filters = json!({ "retry": retry });
    let sidecar = one_route("late", format!("peer.test:{}", closed.address().port()), filters).await;
    sidecar.names.set("peer.test", &["127.0.0.1"]);
    let client = tokio::spawn(greeted(sidecar.tcp()));
    until("the first attempt", || sidecar.names.lookups() >= 1).await;
    closed.open("x");
    assert_eq!(client.await.unwrap().unwrap().1, 'x');
    assert!(sidecar.names.lookups() >= 2);
}

#[tokio::test]
async fn a_reload_leads_the_next_connection_elsewhere_and_keeps_the_open_one() {
    let (one, two) = (echo("127.0.0.1:0", "1").await, echo("127.0.0.1:0", "2").await);
    let mut sidecar = one_route("moved", one.to_string(), json!({})).await;
    let address = sidecar.tcp();
    let (mut open, greeting) = greeted(address).await.unwrap();
    assert_eq!(greeting, '1');
    sidecar.reload(outbound(&[("moved", two.to_string())]), json!({ "retry": { "enabled": true } }));
    assert_eq!(greeted(address).await.unwrap().1, '2');
    open.write_all(b"!").await.unwrap();
    assert_eq!(timeout(PATIENCE, open.read_u8()).await.unwrap().unwrap(), b'!');

    sidecar.reload(outbound(&[("another", two.to_string())]), json!({}));
    assert!(is_reset(&greeted(address).await), "the route is gone");
    sidecar.switch_off();
    assert!(is_reset(&greeted(address).await), "the kind is gone");
    open.write_all(b"?").await.unwrap();
    assert_eq!(timeout(PATIENCE, open.read_u8()).await.unwrap().unwrap(), b'?');
}

#[tokio::test]
async fn connections_above_the_limit_are_reset() {
    let to = echo("127.0.0.1:0", "x").await;
    let mut listeners = outbound(&[("full", to.to_string())]);
    listeners["max_connections"] = json!(2);
    let sidecar = Sidecar::start(nowhere(), listeners, json!({})).await;
    let address = sidecar.tcp();
    let (one, two) = (greeted(address).await.unwrap(), greeted(address).await.unwrap());
    assert!(is_reset(&greeted(address).await));
    until("the line is written", || is_logged(&["listener=full", "outcome=\"overloaded\""])).await;
    drop((one, two));
    let deadline = Instant::now() + PATIENCE;
    while greeted(address).await.is_err() {
        assert!(Instant::now() < deadline, "the place is not free again");
    }
}

#[tokio::test]
async fn the_drain_waits_for_connections_and_resets_them_at_its_deadline() {
    let to = echo("127.0.0.1:0", "x").await;
    let sidecar = one_route("drained", to.to_string(), json!({})).await;
    let (mut early, _) = greeted(sidecar.tcp()).await.unwrap();
    let (mut late, _) = greeted(sidecar.tcp()).await.unwrap();
    sidecar.drain.stop();
    early.write_all(b"!").await.unwrap();
    assert_eq!(timeout(PATIENCE, early.read_u8()).await.unwrap().unwrap(), b'!');
    early.shutdown().await.unwrap();
    assert_eq!(timeout(PATIENCE, early.read(&mut [0])).await.unwrap().unwrap(), 0);
    until("one connection is left", || sidecar.drain.in_flight() == 1).await;
    assert_eq!(sidecar.drain.finish(Duration::from_millis(50)).await, 1);
    assert!(is_reset(&timeout(PATIENCE, late.read_u8()).await.unwrap()));
}
