//! The start of a connection against a server that does what the test says.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by a panic"
)]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use qudag_filter_common::testing::{self, PATIENCE, is_logged, metric, nowhere, until};
use qudag_filter_db::PostgresListener;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

type Sidecar = testing::Sidecar<PostgresListener>;

const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
const GSSENC_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 48];
const CANCEL_REQUEST: [u8; 16] = [0, 0, 0, 16, 4, 210, 22, 46, 0, 0, 1, 2, 9, 8, 7, 6];
const STARTUP: &[u8] = b"\0\0\0\x1b\0\x03\0\0user\0ann\0options\0\0\0";

struct Server(TcpListener);

impl Server {
    async fn start() -> Self {
        Self(TcpListener::bind("127.0.0.1:0").await.unwrap())
    }

    fn listener(&self) -> Value {
        json!({ "bind": "127.0.0.1:0", "server": self.0.local_addr().unwrap().to_string() })
    }

    async fn accept(&self) -> TcpStream {
        timeout(PATIENCE, self.0.accept()).await.expect("a session in time").unwrap().0
    }

    /// Whether nobody has connected.
    async fn is_untouched(&self) -> bool {
        timeout(Duration::from_millis(50), self.0.accept()).await.is_err()
    }
}

async fn dial(sidecar: &Sidecar) -> TcpStream {
    TcpStream::connect(sidecar.tcp()).await.unwrap()
}

async fn expect(stream: &mut TcpStream, bytes: &[u8]) {
    let mut seen = vec![0; bytes.len()];
    timeout(PATIENCE, stream.read_exact(&mut seen)).await.expect("bytes in time").unwrap();
    assert_eq!(seen, bytes);
}

async fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut seen = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut seen)).await.expect("the end in time").unwrap();
    seen
}

/// The fields of the ErrorResponse that the stream ends with: (SQLSTATE, message, hint).
async fn refusal(stream: &mut TcpStream) -> (String, String, Option<String>) {
    let bytes = rest(stream).await;
    assert_eq!(bytes.first(), Some(&b'E'), "{bytes:?}");
    assert_eq!(u32::from_be_bytes(bytes[1..5].try_into().unwrap()) as usize, bytes.len() - 1);
    let text = String::from_utf8(bytes[5..].to_vec()).unwrap();
    let field = |code| text.split('\0').find_map(|field| field.strip_prefix(code)).map(str::to_owned);
    assert_eq!(field('S').as_deref(), Some("FATAL"));
    (field('C').unwrap(), field('M').unwrap(), field('H'))
}

fn closed() -> SocketAddr {
    // Nobody listens on the port of a socket that is only bound; it stays bound until the program ends.
    let socket = std::mem::ManuallyDrop::new(
        socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap(),
    );
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    socket.local_addr().unwrap().as_socket().unwrap()
}

#[tokio::test]
async fn a_session_is_passed_through_however_it_is_cut() {
    let server = Server::start().await;
    let sidecar = Sidecar::start(nowhere(), server.listener(), json!({})).await;
    let mut client = dial(&sidecar).await;
    for byte in STARTUP {
        client.write_all(&[*byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    client.write_all(b"\x01anything\xff").await.unwrap();
    let mut session = server.accept().await;
    expect(&mut session, STARTUP).await;
    expect(&mut session, b"\x01anything\xff").await;
    assert!(metric("qudag_sidecar_db_sessions_active", &[]) >= 1.0);
    session.write_all(b"R\0\0").await.unwrap();
    expect(&mut client, b"R\0\0").await;
    client.shutdown().await.unwrap();
    assert_eq!(rest(&mut session).await, b"");
    session.write_all(b"last").await.unwrap();
    drop(session);
    assert_eq!(rest(&mut client).await, b"last");
    let target = format!("target=\"{}\"", server.0.local_addr().unwrap());
    let bytes = |direction| metric("qudag_sidecar_bytes_total", &["kind=\"db\"", &target, direction]);
    until("the session ends", || sidecar.drain.in_flight() == 0).await;
    assert_eq!(bytes("direction=\"up\""), (STARTUP.len() + 10) as f64);
    assert_eq!(bytes("direction=\"down\""), 7.0);
    assert!(is_logged(&["user=ann database=ann", "outcome=\"ok\"", "bytes_up=37 bytes_down=7"]));
}

#[tokio::test]
async fn encryption_is_negotiated_with_the_server_and_then_opaque() {
    let server = Server::start().await;
    let sidecar = Sidecar::start(nowhere(), server.listener(), json!({})).await;
    for (request, answer) in [(SSL_REQUEST, b'S'), (GSSENC_REQUEST, b'G'), (SSL_REQUEST, b'E')] {
        let mut client = dial(&sidecar).await;
        client.write_all(&request).await.unwrap();
        let mut session = server.accept().await;
        expect(&mut session, &request).await;
        session.write_all(&[answer, b'?']).await.unwrap();
        expect(&mut client, &[answer, b'?']).await;
        client.write_all(b"\x16\x03\x01 not a start-up packet").await.unwrap();
        expect(&mut session, b"\x16\x03\x01 not a start-up packet").await;
    }
    // Refused encryption: each kind once, and then in the clear.
    let mut client = dial(&sidecar).await;
    client.write_all(&GSSENC_REQUEST).await.unwrap();
    let mut session = server.accept().await;
    for request in [GSSENC_REQUEST, SSL_REQUEST] {
        expect(&mut session, &request).await;
        session.write_all(b"N").await.unwrap();
        expect(&mut client, b"N").await;
        let next = if request == GSSENC_REQUEST { &SSL_REQUEST[..] } else { STARTUP };
        client.write_all(next).await.unwrap();
    }
    expect(&mut session, STARTUP).await;
    // A handshake without a request.
    let mut client = dial(&sidecar).await;
    client.write_all(b"\x16\x03").await.unwrap();
    let mut session = server.accept().await;
    expect(&mut session, b"\x16\x03").await;
    client.write_all(b"\x01").await.unwrap();
    expect(&mut session, b"\x01").await;
}

#[tokio::test]
async fn what_is_no_start_up_packet_is_refused_and_never_forwarded() {
    let server = Server::start().await;
    let sidecar = Sidecar::start(nowhere(), server.listener(), json!({})).await;
    for garbage in [
        &b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..],
        b"\0\0\0\x07",
        b"\0\0\x27\x15",
        b"\0\0\0\x09\0\x03\0\0x",
        b"\0\0\0\x09\0\x02\0\0\0",
        b"\0\0\0\x09\x04\xd2\x16\x2f\0",
        b"\0\0\0\x0c\x04\xd2\x16\x2e\0\0\0\0",
    ] {
        let mut client = dial(&sidecar).await;
        client.write_all(garbage).await.unwrap();
        let (state, message, hint) = refusal(&mut client).await;
        assert_eq!((state.as_str(), hint), ("08P01", None), "{message}");
    }
    assert!(server.is_untouched().await);
    // A second request of the same kind.
    let mut client = dial(&sidecar).await;
    client.write_all(&SSL_REQUEST).await.unwrap();
    let mut session = server.accept().await;
    expect(&mut session, &SSL_REQUEST).await;
    session.write_all(b"N").await.unwrap();
    expect(&mut client, b"N").await;
    client.write_all(&SSL_REQUEST).await.unwrap();
    assert_eq!(refusal(&mut client).await.0, "08P01");
    assert_eq!(rest(&mut session).await, b"");
}

#[tokio::test]
async fn slow_clients_are_closed_and_gone_ones_are_noticed() {
    let server = Server::start().await;
    let mut listener = server.listener();
    listener["startup_timeout"] = json!("150ms");
    let sidecar = Sidecar::start(nowhere(), listener, json!({})).await;
    let mut client = dial(&sidecar).await;
    client.write_all(&STARTUP[..9]).await.unwrap();
    let started = Instant::now();
    assert_eq!(rest(&mut client).await, b"");
    assert!(started.elapsed() >= Duration::from_millis(100));
    drop(dial(&sidecar).await);
    for outcome in ["outcome=\"startup_timeout\"", "outcome=\"client_gone\""] {
        let counted = || metric("qudag_sidecar_flows_total", &["kind=\"db\"", outcome]) >= 1.0;
        until(outcome, counted).await;
    }
    assert!(server.is_untouched().await);
}

#[tokio::test]
async fn a_server_that_is_down_is_08006_and_then_57p03() {
    let listener = json!({ "bind": "127.0.0.1:0", "server": closed().to_string() });
    let filters = json!({ "circuit_breaker": { "enabled": true, "failures": 2, "open": "60s" } });
    let sidecar = Sidecar::start(nowhere(), listener, filters).await;
    for expected in ["08006", "08006", "57P03"] {
        let mut client = dial(&sidecar).await;
        client.write_all(STARTUP).await.unwrap();
        let (state, message, hint) = refusal(&mut client).await;
        assert_eq!(state, expected, "{message}");
        assert_eq!(hint.is_some_and(|hint| hint.starts_with("retry-after: ")), expected == "57P03");
    }
    // Who asks for encryption is told when there is a packet to answer.
    let mut client = dial(&sidecar).await;
    client.write_all(&SSL_REQUEST).await.unwrap();
    expect(&mut client, b"N").await;
    client.write_all(STARTUP).await.unwrap();
    assert_eq!(refusal(&mut client).await.0, "57P03");
    // Nothing could be said within TLS.
    let mut client = dial(&sidecar).await;
    client.write_all(b"\x16").await.unwrap();
    assert_eq!(rest(&mut client).await, b"");
}

#[tokio::test]
async fn a_server_that_breaks_off_the_negotiation_is_08006() {
    let server = Server::start().await;
    let sidecar = Sidecar::start(nowhere(), server.listener(), json!({})).await;
    let mut client = dial(&sidecar).await;
    client.write_all(&SSL_REQUEST).await.unwrap();
    drop(server.accept().await);
    expect(&mut client, b"N").await;
    client.write_all(STARTUP).await.unwrap();
    assert_eq!(refusal(&mut client).await.0, "08006");
}

/// A cancel gets through to the server, and its client sees the end.
async fn cancel_passes(sidecar: &Sidecar, server: &Server) {
    let mut client = dial(sidecar).await;
    client.write_all(&CANCEL_REQUEST).await.unwrap();
    let mut cancel = server.accept().await;
    expect(&mut cancel, &CANCEL_REQUEST).await;
    drop(cancel);
    assert_eq!(rest(&mut client).await, b"");
}

#[tokio::test]
async fn sessions_over_the_rate_are_53400_and_cancels_pass() {
    let server = Server::start().await;
    let filters = json!({ "rate_limit": { "enabled": true, "per_client": { "rate": 1, "burst": 1 } } });
    let sidecar = Sidecar::start(nowhere(), server.listener(), filters).await;
    let mut first = dial(&sidecar).await;
    first.write_all(STARTUP).await.unwrap();
    let mut session = server.accept().await;
    expect(&mut session, STARTUP).await;
    let mut client = dial(&sidecar).await;
    client.write_all(STARTUP).await.unwrap();
    let (state, message, hint) = refusal(&mut client).await;
    assert_eq!(state, "53400", "{message}");
    assert!(hint.is_some_and(|hint| hint.starts_with("retry-after: ")));
    cancel_passes(&sidecar, &server).await;
    // The way of libpq 17: SSLRequest, and after `N` the CancelRequest.
    let mut client = dial(&sidecar).await;
    client.write_all(&SSL_REQUEST).await.unwrap();
    expect(&mut client, b"N").await;
    client.write_all(&CANCEL_REQUEST).await.unwrap();
    expect(&mut server.accept().await, &CANCEL_REQUEST).await;
    drop((first, session));
}

#[tokio::test]
async fn sessions_over_the_limit_are_53300_and_cancels_pass() {
    let server = Server::start().await;
    let mut listener = server.listener();
    listener["max_sessions"] = json!(1);
    let sidecar = Sidecar::start(nowhere(), listener, json!({})).await;
    let mut first = dial(&sidecar).await;
    first.write_all(STARTUP).await.unwrap();
    let session = server.accept().await;
    let mut client = dial(&sidecar).await;
    client.write_all(STARTUP).await.unwrap();
    assert_eq!(refusal(&mut client).await.0, "53300");
    cancel_passes(&sidecar, &server).await;
    drop((first, session));
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut client = dial(&sidecar).await;
        client.write_all(STARTUP).await.unwrap();
        if timeout(Duration::from_millis(100), server.0.accept()).await.is_ok() {
            break;
        }
        assert!(Instant::now() < deadline, "the place is not free again");
    }
}

#[tokio::test]
async fn a_reload_leads_the_next_session_elsewhere_and_removal_is_57p01() {
    let (one, two) = (Server::start().await, Server::start().await);
    let mut sidecar = Sidecar::start(nowhere(), one.listener(), json!({})).await;
    let mut client = dial(&sidecar).await;
    client.write_all(STARTUP).await.unwrap();
    let mut open = one.accept().await;
    expect(&mut open, STARTUP).await;
    sidecar.reload(two.listener(), json!({ "circuit_breaker": { "enabled": true } }));
    let mut next = dial(&sidecar).await;
    next.write_all(STARTUP).await.unwrap();
    expect(&mut two.accept().await, STARTUP).await;
    sidecar.switch_off();
    let mut refused = dial(&sidecar).await;
    refused.write_all(STARTUP).await.unwrap();
    assert_eq!(refusal(&mut refused).await.0, "57P01");
    client.write_all(b"still here").await.unwrap();
    expect(&mut open, b"still here").await;
}

#[tokio::test]
async fn the_drain_resets_sessions_at_its_deadline_also_during_start_up() {
    let server = Server::start().await;
    let sidecar = Sidecar::start(nowhere(), server.listener(), json!({})).await;
    let mut idle = dial(&sidecar).await;
    idle.write_all(&STARTUP[..5]).await.unwrap();
    let mut client = dial(&sidecar).await;
    client.write_all(STARTUP).await.unwrap();
    let mut session = server.accept().await;
    expect(&mut session, STARTUP).await;
    until("both are there", || sidecar.drain.in_flight() == 2).await;
    assert_eq!(sidecar.drain.finish(Duration::from_millis(50)).await, 2);
    for stream in [&mut idle, &mut client, &mut session] {
        let seen = timeout(PATIENCE, stream.read_u8()).await.unwrap();
        assert!(seen.is_err_and(|why| why.kind() == std::io::ErrorKind::ConnectionReset));
    }
}
