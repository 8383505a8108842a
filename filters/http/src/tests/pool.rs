//! Connections to the node: kept, or not.

use hyper::service::service_fn;

use super::*;

/// A server that follows the rules, and says `number of connection` in its replies.
async fn clean() -> Upstream {
    Upstream::start(|stream, number| async move {
        let service = service_fn(move |request: Request<Incoming>| async move {
            let body = request.into_body().collect().await?.to_bytes();
            hyper::Result::Ok(Response::new(Full::new(Bytes::from(format!("{number} {}", body.len())))))
        });
        let _ =
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
    })
    .await
}

#[tokio::test]
async fn a_connection_is_used_again_with_the_filter_and_not_without() {
    let node = clean().await;
    let sidecar =
        Sidecar::start(node.address, json!({"connection_pooling": {"enabled": true}}), json!({})).await;
    let mut client = sidecar.http1().await;
    for turn in 0..100 {
        // The first two show that the node answers twice on a connection.
        let (status, _) =
            if turn < 2 || turn % 2 == 0 { client.get("/").await } else { client.post("/", "abc").await };
        assert_eq!(status, 200);
    }
    assert_eq!(node.connections(), 1);
    let pool = sidecar.0.states.connection_pooling.as_ref().unwrap();
    assert_eq!(pool.state.idle(), 1);

    let sidecar = Sidecar::plain(node.address).await;
    let mut client = sidecar.http2().await;
    for _ in 0..10 {
        assert_eq!(client.get("/").await.0, 200);
    }
    assert_eq!(node.connections(), 11);
}

#[tokio::test]
async fn no_more_are_kept_than_allowed_nor_for_longer() {
    let together = Arc::new(tokio::sync::Barrier::new(4));
    let closed = Arc::new(AtomicUsize::new(0));
    let ends = Arc::clone(&closed);
    let node = Upstream::start(move |stream, _| {
        let (together, ends) = (Arc::clone(&together), Arc::clone(&ends));
        async move {
            let service = service_fn(|_: Request<Incoming>| {
                let together = Arc::clone(&together);
                async move {
                    together.wait().await;
                    hyper::Result::Ok(Response::new(Full::new(Bytes::from("x"))))
                }
            });
            let server = hyper::server::conn::http1::Builder::new();
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
            ends.fetch_add(1, Ordering::SeqCst);
        }
    })
    .await;
    let four_at_once = async |sidecar: &Sidecar| {
        let one = async || assert_eq!(sidecar.http1().await.get("/").await.0, 200);
        tokio::join!(one(), one(), one(), one());
    };
    let pooling = json!({"enabled": true, "max_idle": 1});
    let sidecar = Sidecar::start(node.address, json!({"connection_pooling": pooling}), json!({})).await;
    four_at_once(&sidecar).await;
    until("three are closed", || closed.load(Ordering::SeqCst) >= 3).await;
    four_at_once(&sidecar).await;
    assert!(node.connections() >= 7, "{}", node.connections());

    let before = node.connections();
    let pooling = json!({"enabled": true, "idle_timeout": "100ms"});
    let sidecar = Sidecar::start(node.address, json!({"connection_pooling": pooling}), json!({})).await;
    four_at_once(&sidecar).await;
    let start = Instant::now();
    until("all but one of before are closed", || closed.load(Ordering::SeqCst) + 1 >= before + 4).await;
    assert!(start.elapsed() < Duration::from_secs(20), "in the usual time");
}

#[tokio::test]
async fn a_connection_that_the_node_closed_costs_no_request() {
    // Two requests on each connection; then it is closed without notice, when the third has been read.
    let node = Upstream::start(|mut stream, _| async move {
        for _ in 0..2 {
            if read_request(&mut stream).await.is_empty() {
                return;
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
        }
        read_request(&mut stream).await;
    })
    .await;
    let sidecar =
        Sidecar::start(node.address, json!({"connection_pooling": {"enabled": true}}), json!({})).await;
    let mut client = sidecar.http1().await;
    for _ in 0..20 {
        assert_eq!(client.get("/").await, (200, Bytes::from_static(b"ok")));
    }
    assert_eq!(node.connections(), 10);
}

#[tokio::test]
async fn a_late_surplus_is_never_taken_for_a_reply() {
    // The surplus comes when the sidecar may have kept the connection already.
    let node = Upstream::start(|mut stream, number| async move {
        read_request(&mut stream).await;
        let body = format!("{number:06}");
        let reply = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        stream.write_all(reply.as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_micros(number as u64 * 50)).await;
        let _ = stream.write_all(b"Connection: keep-alive\r\n").await;
    })
    .await;
    let sidecar =
        Sidecar::start(node.address, json!({"connection_pooling": {"enabled": true}}), json!({})).await;
    let mut client = sidecar.http1().await;
    for number in 0..100 {
        let (status, body) =
            if number % 2 == 0 { client.get("/").await } else { client.post("/", "x").await };
        assert_eq!((status, body.len()), (200, 6), "{number}: {body:?}");
    }
}

#[tokio::test]
async fn a_reply_that_ends_with_its_connection_or_asks_to_close_is_not_kept() {
    let node = Upstream::replying(|request, _| match path(request) {
        "/close" => "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx",
        _ => "HTTP/1.1 200 OK\r\n\r\nx",
    })
    .await;
    let sidecar =
        Sidecar::start(node.address, json!({"connection_pooling": {"enabled": true}}), json!({})).await;
    let mut client = sidecar.http1().await;
    for path in ["/close", "/", "/close"] {
        assert_eq!(client.get(path).await, (200, Bytes::from_static(b"x")));
        assert_eq!(sidecar.0.states.connection_pooling.as_ref().unwrap().state.idle(), 0);
    }
}
