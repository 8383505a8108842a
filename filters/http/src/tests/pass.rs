//! Ordinary requests, and the filters through the whole chain.

use super::*;

#[tokio::test]
async fn a_strict_client_keeps_its_connection_to_the_malformed_node() {
    let node = Upstream::malformed().await;
    for filters in [json!({}), json!({"connection_pooling": {"enabled": true}})] {
        let sidecar = Sidecar::start(node.address, filters, json!({})).await;
        for mut client in [sidecar.http1().await, sidecar.http2().await] {
            let before = node.connections();
            for number in 0..200 {
                let (status, body) = client.get(&format!("/health?{number}")).await;
                let expected = json!({"number": before + number, "path": format!("/health?{number}")});
                assert_eq!((status, serde_json::from_slice::<Value>(&body).unwrap()), (200, expected));
            }
            assert_eq!(node.connections() - before, 200);
            let (status, _) = client.post("/mcp/rpc", "{}").await;
            assert_eq!(status, 200);
        }
    }
}

#[tokio::test]
async fn the_node_gets_a_simple_request() {
    let node = Upstream::replying(|_, _| "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let sidecar = Sidecar::plain(node.address).await;
    let reply = sidecar
        .raw(
            b"POST http://example.org/mcp/rpc?a=b HTTP/1.1\r\nhost: other\r\nConnection: close, x-gone\r\nX-Gone: 1\r\n\
              Keep-Alive: 5\r\nTE: trailers\r\nX-Forwarded-For: 192.0.2.1\r\nx-kept: 1\r\ncontent-length: 2\r\n\r\n{}",
        )
        .await;
    assert!(reply.starts_with("HTTP/1.1 200 OK\r\n") && reply.ends_with("\r\n\r\nok"), "{reply}");
    let expected = format!(
        "POST /mcp/rpc?a=b HTTP/1.1\r\nHost: {}\r\nContent-Length: 2\r\nConnection: close\r\nX-Forwarded-For: 192.0.2.1\r\n\
         X-Forwarded-For: 127.0.0.1\r\nX-Kept: 1\r\nForwarded: for=127.0.0.1;host=\"example.org\";proto=http\r\n\
         Via: 1.1 qudag-sidecar\r\n\r\n{{}}",
        node.address
    );
    assert_eq!(node.seen(), [expected]);

    let (status, _) = sidecar.http2().await.get("/x").await;
    assert_eq!(status, 200);
    assert!(node.seen()[1].contains("\r\nVia: 2 qudag-sidecar\r\n"), "{:?}", node.seen());
    sidecar.raw(b"OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert!(node.seen()[2].starts_with("OPTIONS * HTTP/1.1\r\n"));
    let reply = sidecar.raw(b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\nConnection: close\r\n\r\n").await;
    assert!(reply.starts_with("HTTP/1.1 501 "), "{reply}");
    assert_eq!(node.seen().len(), 3);
}

#[tokio::test]
async fn replies_without_a_body_leave_the_connection_usable() {
    let node = Upstream::replying(|request, _| match path(request) {
        "/204" => "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n",
        "/304" => "HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n\r\n",
        _ => "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
    })
    .await;
    let sidecar = Sidecar::plain(node.address).await;
    for mut client in [sidecar.http1().await, sidecar.http2().await] {
        for (method, path, status) in
            [("GET", "/204", 204), ("GET", "/304", 304), ("HEAD", "/", 200), ("GET", "/204", 204)]
        {
            let request = Request::builder().method(method).uri(path).body(Full::default()).unwrap();
            let response = client.send(request).await.unwrap();
            if method == "HEAD" {
                assert_eq!(response.headers()["content-length"], "5");
            }
            assert_eq!(whole(response).await, (status, Bytes::new()), "{method} {path}");
        }
    }
}

#[tokio::test]
async fn errors_are_problem_documents_and_keep_the_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nobody = listener.local_addr().unwrap();
    drop(listener);
    let sidecar = Sidecar::plain(nobody).await;
    for mut client in [sidecar.http1().await, sidecar.http2().await] {
        for _ in 0..3 {
            let request = Request::get("/").body(Full::default()).unwrap();
            let response = client.send(request).await.unwrap();
            assert_eq!(response.headers()["content-type"], "application/problem+json");
            let (status, body) = whole(response).await;
            let document: Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(
                (status, &document["status"], &document["title"]),
                (502, &json!(502), &json!("Bad Gateway"))
            );
        }
    }
}

#[tokio::test]
async fn a_node_that_says_nothing_is_a_timeout() {
    let node = Upstream::start(|stream, _| async move {
        tokio::time::sleep(PATIENCE * 3).await;
        drop(stream);
    })
    .await;
    let sidecar = Sidecar::start(node.address, json!({}), json!({"first_byte_timeout": "50ms"})).await;
    assert_eq!(sidecar.http1().await.get("/").await.0, 504);
    assert_eq!(sidecar.http1().await.post("/", "x").await.0, 504);
}

#[tokio::test]
async fn what_can_be_repeated_is_retried_and_nothing_else_is() {
    // Two of three connections are closed without a word.
    let node =
        Upstream::replying(
            |_, number| {
                if number % 3 == 2 { "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n" } else { "" }
            },
        )
        .await;
    let filters = json!({"retry": {"enabled": true, "attempts": 3, "backoff": "1ms"}});
    let sidecar = Sidecar::start(node.address, filters, json!({})).await;
    let mut client = sidecar.http1().await;
    assert_eq!(client.get("/").await.0, 200);
    assert_eq!(node.connections(), 3);
    assert_eq!(client.post("/", "x").await.0, 502);
    assert_eq!(client.post("/", "").await.0, 502);
    assert_eq!(node.connections(), 5);
}

#[tokio::test]
async fn a_failing_node_is_left_alone() {
    let node =
        Upstream::replying(|_, _| "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy").await;
    let filters = json!({"circuit_breaker": {"enabled": true, "failures": 3, "open": "60s"}});
    let sidecar = Sidecar::start(node.address, filters, json!({})).await;
    let mut client = sidecar.http1().await;
    for _ in 0..3 {
        assert_eq!(client.get("/").await, (503, Bytes::from_static(b"busy")));
    }
    let response = client.send(Request::get("/").body(Full::default()).unwrap()).await.unwrap();
    let after: u64 = response.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!(response.status() == 503 && (1..=90).contains(&after), "{after}");
    assert_eq!(node.connections(), 3);
}

#[tokio::test]
async fn a_client_over_its_rate_is_told_when_to_come_back() {
    let node = Upstream::malformed().await;
    let filters = json!({"rate_limit": {"enabled": true, "per_client": {"rate": 1, "burst": 2}}});
    let sidecar = Sidecar::start(node.address, filters, json!({})).await;
    let mut client = sidecar.http1().await;
    let mut passed = 0;
    let refusal = loop {
        let response = client.send(Request::get("/").body(Full::default()).unwrap()).await.unwrap();
        if response.status() != 200 {
            break response;
        }
        whole(response).await;
        passed += 1;
        assert!(passed < 50, "no limit");
    };
    assert_eq!((refusal.status().as_u16(), refusal.headers()["retry-after"].to_str().unwrap()), (429, "1"));
    assert!(passed >= 2);
    assert_eq!(node.connections(), passed);
}

#[tokio::test]
async fn a_unix_socket_serves_as_well() {
    let node = Upstream::malformed().await;
    let dir = tempfile::tempdir().unwrap();
    let bind = format!("unix:{}", dir.path().join("http.sock").display());
    let sidecar = Sidecar::start(node.address, json!({}), json!({"bind": bind})).await;
    let Address::Unix(path) = &sidecar.0.addresses[0] else { panic!("not a Unix socket") };
    let mut stream = tokio::net::UnixStream::connect(path).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await.unwrap();
    assert!(reply.starts_with("HTTP/1.1 200 OK\r\n"), "{reply}");
    assert!(node.seen()[0].contains("Forwarded: for=unknown;host=\"a\";proto=http\r\n"));
    assert!(!node.seen()[0].contains("X-Forwarded-For"));
}

#[tokio::test]
async fn a_drain_finishes_what_is_there_and_closes_what_is_idle() {
    let (release, released) = tokio::sync::watch::channel(false);
    let node = Upstream::start(move |mut stream, _| {
        let mut released = released.clone();
        async move {
            read_request(&mut stream).await;
            released.wait_for(|released| *released).await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
        }
    })
    .await;
    let sidecar = Sidecar::plain(node.address).await;
    let mut idle = sidecar.connect().await;
    let (mut http1, mut http2) = (sidecar.http1().await, sidecar.http2().await);
    let under_way = tokio::spawn(async move { tokio::join!(http1.get("/"), http2.get("/")) });
    until("both requests are with the node", || node.connections() == 2).await;
    sidecar.0.drain.stop();
    assert_eq!(timeout(PATIENCE, idle.read(&mut [0; 9])).await.unwrap().unwrap(), 0);
    release.send(true).unwrap();
    let ok = (200, Bytes::from_static(b"ok"));
    assert_eq!(under_way.await.unwrap(), (ok.clone(), ok));
    assert_eq!(sidecar.0.drain.finish(PATIENCE).await, 0);
}
