//! Binding, accepting and connecting on real sockets.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use qudag_filter_api::{Address, FilterError, Resolve};
use qudag_filter_common::{Drain, Socket, Stream, connect};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);
const LIMIT: Duration = Duration::from_secs(10);

/// Every name has these addresses; a resolver without any fails.
struct Names(&'static [IpAddr]);

impl Resolve for Names {
    fn resolve(&self, name: &str) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        let found = match self.0 {
            [] => Err(io::Error::other(format!("no such name: {name}"))),
            ips => Ok(ips.to_vec()),
        };
        Box::pin(async { found })
    }
}

struct Never;

impl Resolve for Never {
    fn resolve(&self, _: &str) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        Box::pin(std::future::pending())
    }
}

async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, work).await.expect("nothing happened for 10 s")
}

fn address(text: impl AsRef<str>) -> Address {
    text.as_ref().parse().unwrap()
}

async fn bind(text: impl AsRef<str>) -> io::Result<Socket> {
    Socket::bind(&address(text), &Names(&[V4])).await
}

/// Serves an echo and returns where.
async fn echo(at: &str, drain: &Drain) -> Address {
    let socket = bind(at).await.unwrap();
    let address = socket.address();
    tokio::spawn(socket.serve(drain.clone(), |mut stream| async move {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
    }));
    address
}

async fn assert_echoes(mut stream: Stream) {
    stream.write_all(b"hello").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut bytes = Vec::new();
    soon(stream.read_to_end(&mut bytes)).await.unwrap();
    assert_eq!(bytes, b"hello");
}

fn port(address: &Address) -> u16 {
    let Address::Tcp(tcp) = address else { panic!("{address} has no port") };
    tcp.port
}

#[tokio::test]
async fn every_form_of_address_is_served_and_reached() {
    let folder = tempfile::tempdir().unwrap();
    let drain = Drain::new();
    let unix = format!("unix:{}", folder.path().join("s").display());
    for at in ["127.0.0.1:0", "[::1]:0", "node.test:0", &unix] {
        let address = echo(at, &drain).await;
        let stream = connect(&address, &Names(&[]), LIMIT).await.unwrap();
        assert_eq!(stream.peer_addr().map(|addr| addr.port()), (at != unix).then(|| port(&address)));
        if let Stream::Tcp(tcp) = &stream {
            assert!(tcp.nodelay().unwrap());
        }
        assert_echoes(stream).await;
    }
    assert_eq!(soon(drain.finish(LIMIT)).await, 0);
}

#[tokio::test]
async fn a_wildcard_v6_listener_sees_v4_clients_as_v4() {
    let socket = bind("[::]:0").await.unwrap();
    let to = SocketAddr::new(V4, port(&socket.address()));
    let (client, accepted) = soon(async { tokio::join!(TcpStream::connect(to), socket.accept()) }).await;
    let (client, accepted) = (client.unwrap(), accepted.unwrap());
    assert_eq!(accepted.peer_ip(), Some(V4));
    assert_eq!(accepted.peer_addr(), Some(client.local_addr().unwrap()));
    assert_eq!(accepted.local_addr(), Some(to));
    let Stream::Tcp(tcp) = &accepted else { panic!("not TCP") };
    assert!(tcp.nodelay().unwrap());
}

#[tokio::test]
async fn an_address_in_use_is_an_error_and_one_just_closed_is_not() {
    let socket = bind("127.0.0.1:0").await.unwrap();
    let address = socket.address().to_string();
    assert_eq!(bind(&address).await.unwrap_err().kind(), io::ErrorKind::AddrInUse);
    // A connection that this side closes first stays in TIME-WAIT on the port.
    let to = SocketAddr::new(V4, port(&socket.address()));
    let (client, accepted) = soon(async { tokio::join!(TcpStream::connect(to), socket.accept()) }).await;
    drop(accepted.unwrap());
    soon(client.unwrap().read_to_end(&mut Vec::new())).await.unwrap();
    drop(socket);
    bind(&address).await.unwrap();
}

#[tokio::test]
async fn a_name_is_bound_by_the_first_address_that_can_be() {
    // RFC 5737: nobody has this address.
    const NOBODYS: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    let socket = Socket::bind(&address("x.test:0"), &Names(&[NOBODYS, V6])).await.unwrap();
    assert!(socket.address().to_string().starts_with("[::1]:"));
    let error = Socket::bind(&address("x.test:0"), &Names(&[NOBODYS])).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AddrNotAvailable);
    assert!(Socket::bind(&address("x.test:0"), &Names(&[])).await.is_err());
}

#[tokio::test]
async fn a_unix_socket_owns_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let at = format!("unix:{}", path.display());

    let socket = bind(&at).await.unwrap();
    assert_eq!(socket.address().to_string(), at);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let error = bind(&at).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    assert!(error.to_string().contains("somebody listens"), "{error}");
    assert!(connect(&address(&at), &Names(&[]), LIMIT).await.is_ok(), "the refused one took the file");
    drop(socket);
    assert!(!path.exists());

    // Left over from a process that was killed.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let socket = bind(&at).await.unwrap();

    // Somebody else's by now.
    std::fs::remove_file(&path).unwrap();
    let others = std::os::unix::net::UnixListener::bind(&path).unwrap();
    drop(socket);
    assert!(path.exists());
    drop(others);
    std::fs::remove_file(&path).unwrap();

    std::fs::write(&path, "precious").unwrap();
    let error = bind(&at).await.unwrap_err();
    assert!(error.to_string().contains("not a socket"), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}

#[tokio::test]
async fn the_next_address_is_tried() {
    let drain = Drain::new();
    let to = echo("127.0.0.1:0", &drain).await;
    let by_name = address(format!("x.test:{}", port(&to)));
    let start = Instant::now();
    assert_echoes(connect(&by_name, &Names(&[V6, V4]), LIMIT).await.unwrap()).await;
    assert!(start.elapsed() < LIMIT / 2, "a refusal is not waited for");
}

/// A listener whose queue is full, so that it neither accepts nor refuses.
async fn mute(at: SocketAddr) -> io::Result<(socket2::Socket, Vec<tokio::task::JoinHandle<()>>)> {
    use socket2::{Domain, Socket, Type};
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, None)?;
    socket.bind(&at.into())?;
    socket.listen(0)?;
    let at = socket.local_addr()?.as_socket().unwrap();
    let mut waiting = Vec::new();
    loop {
        let mut connecting = Box::pin(TcpStream::connect(at));
        match tokio::time::timeout(Duration::from_millis(300), &mut connecting).await {
            Ok(connected) => waiting.push(tokio::spawn(async move {
                let _held = connected;
                std::future::pending::<()>().await;
            })),
            Err(_) => return Ok((socket, waiting)),
        }
    }
}

#[tokio::test]
async fn an_address_that_does_not_answer_leaves_time_for_the_next() {
    let drain = Drain::new();
    let (to, muted) = loop {
        let to = echo("127.0.0.1:0", &drain).await;
        // The same port may be taken by another test.
        if let Ok(muted) = mute(SocketAddr::new(V6, port(&to))).await {
            break (to, muted);
        }
    };
    let by_name = address(format!("x.test:{}", port(&to)));
    let (start, timeout) = (Instant::now(), Duration::from_secs(3));
    let stream = connect(&by_name, &Names(&[V6, V4]), timeout).await.unwrap();
    // Half of the time was the first address's.
    assert!(start.elapsed() < timeout);
    assert_eq!(stream.peer_ip(), Some(V4));
    assert_echoes(stream).await;

    let start = Instant::now();
    let error = connect(&by_name, &Names(&[V6]), Duration::from_millis(200)).await.unwrap_err();
    assert!(
        matches!(error, FilterError::Timeout { after } if after == Duration::from_millis(200)),
        "{error}"
    );
    assert!(start.elapsed() < LIMIT / 2);
    drop(muted);
}

#[tokio::test]
async fn errors_say_what_was_tried() {
    let free = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap().port()
    };
    let at = address(format!("127.0.0.1:{free}"));
    let error = connect(&at, &Names(&[]), LIMIT).await.unwrap_err();
    assert!(matches!(&error, FilterError::Connect { source, .. }
        if source.kind() == io::ErrorKind::ConnectionRefused));
    assert!(error.to_string().contains(&at.to_string()), "{error}");

    let error = connect(&address("x.test:1"), &Names(&[]), LIMIT).await.unwrap_err();
    assert_eq!(
        (error.label(), error.to_string()),
        ("resolve", "cannot resolve x.test: no such name: x.test".into())
    );
    let error = connect(&address("x.test:1"), &Never, Duration::from_millis(10)).await.unwrap_err();
    assert_eq!(error.label(), "resolve");

    let folder = tempfile::tempdir().unwrap();
    let nowhere = address(format!("unix:{}", folder.path().join("s").display()));
    let error = connect(&nowhere, &Names(&[]), Duration::MAX).await.unwrap_err();
    assert_eq!(error.label(), "connect");
}

#[tokio::test]
async fn a_drain_stops_accepting_and_waits_for_connections() {
    let drain = Drain::new();
    let socket = bind("127.0.0.1:0").await.unwrap();
    let to = socket.address();
    let ended = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&ended);
    let serving = tokio::spawn(socket.serve(drain.clone(), move |mut stream| {
        let ended = Arc::clone(&count);
        async move {
            stream.read_to_end(&mut Vec::new()).await.unwrap();
            ended.fetch_add(1, Ordering::Relaxed);
        }
    }));
    let mut client = connect(&to, &Names(&[]), LIMIT).await.unwrap();
    soon(async {
        while drain.in_flight() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    drain.stop();
    soon(serving).await.unwrap();
    assert_eq!(connect(&to, &Names(&[]), LIMIT).await.unwrap_err().label(), "connect");
    assert_eq!((drain.in_flight(), ended.load(Ordering::Relaxed)), (1, 0));
    client.shutdown().await.unwrap();
    assert_eq!(soon(drain.finish(LIMIT)).await, 0);
    assert_eq!(ended.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_connection_that_ignores_the_abort_is_dropped() {
    let drain = Drain::new();
    let socket = bind("127.0.0.1:0").await.unwrap();
    let to = socket.address();
    tokio::spawn(socket.serve(drain.clone(), |stream| async move {
        let _held = stream;
        std::future::pending::<()>().await;
    }));
    let mut client = connect(&to, &Names(&[]), LIMIT).await.unwrap();
    soon(async {
        while drain.in_flight() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(drain.finish(Duration::from_millis(10)).await, 1);
    assert_eq!(drain.in_flight(), 0);
    assert_eq!(soon(client.read(&mut [0])).await.unwrap(), 0);
}

#[tokio::test]
async fn a_reset_is_seen_as_one() {
    let socket = bind("127.0.0.1:0").await.unwrap();
    let to = socket.address();
    let none = Names(&[]);
    let (client, accepted) = soon(async { tokio::join!(connect(&to, &none, LIMIT), socket.accept()) }).await;
    accepted.unwrap().reset();
    let error = soon(client.unwrap().read(&mut [0])).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}
