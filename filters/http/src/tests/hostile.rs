//! Clients that are wrong, slow, greedy or malicious.

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::*;
use crate::scanner::SMUGGLING;

#[tokio::test]
async fn ambiguous_requests_are_refused_and_never_forwarded() {
    let node = Upstream::malformed().await;
    let sidecar = Sidecar::plain(node.address).await;
    for (name, request) in SMUGGLING {
        for piece in [request.len(), 7] {
            let mut stream = sidecar.connect().await;
            for part in request.as_bytes().chunks(piece) {
                // Refused before everything was sent is fine.
                if stream.write_all(part).await.is_err() {
                    break;
                }
                tokio::task::yield_now().await;
            }
            // Some requests would be complete for nobody without more.
            let _ = stream.shutdown().await;
            let reply = read_out(&mut stream).await;
            assert!(reply.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{name}: {reply:?}");
            assert_eq!(reply.matches("HTTP/1.1").count(), 1, "{name}: {reply:?}");
        }
    }
    assert_eq!((node.connections(), node.seen()), (0, Vec::new()));
}

#[tokio::test]
async fn a_bad_request_behind_a_good_one_takes_nothing_from_it() {
    let node = Upstream::malformed().await;
    let sidecar = Sidecar::plain(node.address).await;
    let (_, bad) = SMUGGLING[0];
    let reply = sidecar.raw(format!("GET /good HTTP/1.1\r\nHost: a\r\n\r\n{bad}").as_bytes()).await;
    assert!(reply.starts_with("HTTP/1.1 200 OK\r\n"), "{reply}");
    assert_eq!(reply.matches("HTTP/1.1 400 Bad Request\r\n").count(), 1, "{reply}");
    assert_eq!(node.seen().len(), 1);
}

#[tokio::test]
async fn slow_and_idle_clients_are_closed() {
    let node = Upstream::malformed().await;
    let limits = json!({"header_timeout": "400ms", "idle_timeout": "400ms", "body_timeout": "400ms"});
    let sidecar = Sidecar::start(node.address, json!({}), limits).await;
    for start in ["", "P", "PRI * HT", "GET / HTTP/1.1\r\nHost"] {
        assert_eq!(sidecar.raw(start.as_bytes()).await, "", "{start}");
    }
    let reply = sidecar.raw(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(reply.starts_with("HTTP/1.1 200 OK\r\n"), "answered, and closed when idle: {reply}");
    let reply = sidecar.raw(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n").await;
    assert!(reply.starts_with("HTTP/1.1 408 "), "{reply}");
    let reply = sidecar.raw(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhel").await;
    assert!(reply.starts_with("HTTP/1.1 408 "), "{reply}");

    let mut http2 = sidecar.http2().await;
    assert_eq!(http2.get("/").await.0, 200);
    let Client::Http2(send, _) = &http2 else { unreachable!() };
    until("the idle HTTP/2 connection is closed", || send.is_closed()).await;
}

#[tokio::test]
async fn what_is_too_large_is_refused() {
    let node = Upstream::malformed().await;
    let limits = json!({"max_body": "1KiB", "max_header_bytes": "8KiB"});
    let sidecar = Sidecar::start(node.address, json!({}), limits).await;
    let reply =
        sidecar.raw(format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(9000)).as_bytes()).await;
    assert!(reply.starts_with("HTTP/1.1 431 "), "{reply}");
    let reply = sidecar.raw(format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}", "x".repeat(9000)).as_bytes()).await;
    assert!(reply.starts_with("HTTP/1.1 431 "), "{reply}");
    let many = "a: b\r\n".repeat(200);
    let reply = sidecar.raw(format!("GET / HTTP/1.1\r\nHost: a\r\n{many}\r\n").as_bytes()).await;
    assert!(reply.starts_with("HTTP/1.1 431 "), "{reply}");
    let reply = sidecar.raw(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1025\r\n\r\n").await;
    assert!(reply.starts_with("HTTP/1.1 413 "), "{reply}");
    let chunk = format!("400\r\n{}\r\n", "x".repeat(1024));
    let reply = sidecar
        .raw(
            format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}1\r\nx\r\n")
                .as_bytes(),
        )
        .await;
    assert!(reply.starts_with("HTTP/1.1 413 "), "{reply}");
    assert!(
        node.seen().iter().all(|request| request.starts_with("POST / ")),
        "only the start of the last one"
    );
    assert_eq!(sidecar.http2().await.post("/", vec![0; 1025]).await.0, 413);
    assert_eq!(sidecar.http2().await.post("/", vec![0; 1024]).await.0, 200);
}

#[tokio::test]
async fn one_connection_too_many_is_told_so() {
    let node = Upstream::malformed().await;
    let sidecar = Sidecar::start(node.address, json!({}), json!({"max_connections": 1})).await;
    let mut client = sidecar.http1().await;
    assert_eq!(client.get("/").await.0, 200);
    let reply = sidecar.raw(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(reply.starts_with("HTTP/1.1 503 "), "{reply}");
    assert_eq!(client.get("/").await.0, 200);
    drop(client);
    let deadline = Instant::now() + PATIENCE;
    while !sidecar
        .raw(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        .await
        .starts_with("HTTP/1.1 200 ")
    {
        assert!(Instant::now() < deadline, "the place is never free again");
    }
}

#[test]
fn garbage_harms_nobody() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (node, sidecar) = runtime.block_on(async {
        let node = Upstream::malformed().await;
        (node.clone(), Sidecar::start(node.address, json!({}), json!({"header_timeout": "400ms"})).await)
    });
    let piece = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..60),
        proptest::sample::select(SMUGGLING).prop_map(|(_, request)| request.as_bytes().to_vec()),
        Just(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec()),
        Just(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()),
        Just(b"\0\0\0\x04\0\0\0\0\0".to_vec()),
    ];
    let mut runner = TestRunner::new(ProptestConfig { cases: 96, ..ProptestConfig::default() });
    runner
        .run(&proptest::collection::vec(piece, 1..5), |pieces| {
            runtime.block_on(async {
                let mut stream = sidecar.connect().await;
                let _ = stream.write_all(&pieces.concat()).await;
                let _ = stream.shutdown().await;
                read_out(&mut stream).await;
            });
            Ok(())
        })
        .unwrap();
    let (status, _) = runtime.block_on(async { sidecar.http1().await.get("/still-here").await });
    assert_eq!(status, 200);
    drop(node);
}
