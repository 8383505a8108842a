//! Bodies and what is no body: large ones, chunked ones, broken ones, events, another protocol.

use std::io;

use futures_util::stream;
use http_body::Frame;
use http_body_util::StreamBody;
use hyper::service::service_fn;

use super::*;

/// Bytes that look like nothing else.
fn noise(length: usize) -> Bytes {
    let mut rng = fastrand::Rng::with_seed(7);
    (0..length).map(|_| rng.u8(..)).collect::<Vec<_>>().into()
}

/// Gives back each body as it comes, chunked.
async fn echo() -> Upstream {
    Upstream::start(|stream, _| async move {
        let service = service_fn(|request: Request<Incoming>| async move {
            let body = request.into_body().map_frame(|frame| frame);
            hyper::Result::Ok(Response::new(body.boxed()))
        });
        let _ =
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
    })
    .await
}

#[tokio::test]
async fn large_bodies_arrive_as_they_were_sent() {
    let node = echo().await;
    let sidecar = Sidecar::plain(node.address).await;
    let body = noise(5 << 20);
    for mut client in [sidecar.http1().await, sidecar.http2().await] {
        let (status, echoed) = client.post("/", body.clone()).await;
        assert!(status == 200 && echoed == body, "{status}, {} bytes", echoed.len());
    }
}

#[tokio::test]
async fn chunked_bodies_pass_both_ways() {
    let node = echo().await;
    let sidecar = Sidecar::plain(node.address).await;
    let body = noise(1 << 20);
    for pooled in [7, 1000, 60_000] {
        let io = TokioIo::new(sidecar.connect().await);
        let (mut send, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        tokio::spawn(connection);
        let frames: Vec<_> = body
            .chunks(pooled * 13 % 9973 + 1)
            .map(|part| Ok::<_, io::Error>(Frame::data(body.slice_ref(part))))
            .collect();
        let request =
            Request::post("/").header("host", "a").body(StreamBody::new(stream::iter(frames))).unwrap();
        let (status, echoed) = whole(send.send_request(request).await.unwrap()).await;
        assert!(status == 200 && echoed == body, "{status}, {} bytes", echoed.len());
    }
}

#[tokio::test]
async fn a_reply_that_is_cut_off_is_broken_for_the_client_too() {
    let node = Upstream::replying(|request, _| match path(request) {
        "/length" => "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\ntoo short",
        "/chunked" => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\ntoo short\r\n",
        "/garbage" => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\ntoo shortX",
        "/head" => "HTTP/1.1 200 OK\r\nContent-Le",
        "/nonsense" => "220 smtp.example.org ESMTP\r\n\r\n",
        _ => "",
    })
    .await;
    let sidecar = Sidecar::plain(node.address).await;
    for path in ["/length", "/chunked", "/garbage"] {
        for mut client in [sidecar.http1().await, sidecar.http2().await] {
            let request = Request::get(path).body(Full::default()).unwrap();
            // hyper may not even send the head when the body fails at once.
            if let Ok(response) = client.send(request).await {
                assert!(response.into_body().collect().await.is_err(), "{path}");
            }
        }
    }
    for path in ["/head", "/nonsense", "/nothing"] {
        assert_eq!(sidecar.http1().await.get(path).await.0, 502, "{path}");
    }
}

#[tokio::test]
async fn a_body_that_stalls_is_given_up() {
    let node = Upstream::start(|mut stream, _| async move {
        read_request(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nsome").await.unwrap();
        // Until the sidecar closes.
        let _ = stream.read(&mut [0; 9]).await;
    })
    .await;
    let sidecar = Sidecar::start(node.address, json!({}), json!({"body_timeout": "50ms"})).await;
    let response =
        sidecar.http1().await.send(Request::get("/").body(Full::default()).unwrap()).await.unwrap();
    assert!(timeout(PATIENCE, response.into_body().collect()).await.unwrap().is_err());
}

#[tokio::test]
async fn events_arrive_when_they_are_sent_and_a_client_that_goes_is_noticed() {
    let (more, wanted) = tokio::sync::watch::channel(0);
    let gone = Arc::new(AtomicUsize::new(0));
    let left = Arc::clone(&gone);
    let node = Upstream::start(move |mut stream, _| {
        let (mut wanted, left) = (wanted.clone(), Arc::clone(&left));
        async move {
            read_request(&mut stream).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n").await.unwrap();
            for event in 1..=3 {
                wanted.wait_for(|wanted| *wanted >= event).await.unwrap();
                stream.write_all(format!("data: {event}\n\n").as_bytes()).await.unwrap();
            }
            let _ = stream.read(&mut [0; 9]).await;
            left.fetch_add(1, Ordering::SeqCst);
        }
    })
    .await;
    let sidecar =
        Sidecar::start(node.address, json!({}), json!({"body_timeout": "300ms", "idle_timeout": "300ms"}))
            .await;
    for round in 0..2 {
        more.send(0).unwrap();
        let mut client = if round == 0 { sidecar.http1().await } else { sidecar.http2().await };
        let response = client.send(Request::get("/mcp/events").body(Full::default()).unwrap()).await.unwrap();
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let mut body = response.into_body();
        for event in 1..=3 {
            // The next one is sent only when this one has arrived; limits on silence do not apply.
            more.send(event).unwrap();
            let frame = timeout(PATIENCE, body.frame()).await.unwrap().unwrap().unwrap();
            assert_eq!(frame.into_data().unwrap(), format!("data: {event}\n\n"));
            tokio::time::sleep(Duration::from_millis(350)).await;
        }
        assert_eq!(gone.load(Ordering::SeqCst), round);
        drop((body, client));
        until("the node sees that the client has gone", || gone.load(Ordering::SeqCst) == round + 1).await;
    }
}

#[tokio::test]
async fn another_protocol_passes_with_both_of_its_ends() {
    let node = Upstream::start(|mut stream, _| async move {
        let request = read_request(&mut stream).await;
        assert!(
            request.contains("\r\nUpgrade: websocket\r\n") && request.contains("\r\nConnection: Upgrade\r\n"),
            "{request}"
        );
        assert!(request.contains("\r\nSec-Websocket-Key: x\r\n"), "{request}");
        let reply =
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n\x01early";
        stream.write_all(reply.as_bytes()).await.unwrap();
        let mut bytes = vec![0; 70_000];
        stream.read_exact(&mut bytes).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        // The client has finished sending, and still gets this.
        assert_eq!(stream.read(&mut [0; 9]).await.unwrap(), 0);
        stream.write_all(b"goodbye").await.unwrap();
    })
    .await;
    let filters = json!({"connection_pooling": {"enabled": true}});
    let sidecar =
        Sidecar::start(node.address, filters, json!({"idle_timeout": "300ms", "max_connections": 1})).await;
    let mut stream = sidecar.connect().await;
    stream
        .write_all(b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n")
        .await
        .unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\x01early") {
        assert!(timeout(PATIENCE, stream.read_buf(&mut head)).await.unwrap().unwrap() > 0, "{head:?}");
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    assert!(
        head.starts_with("http/1.1 101 ")
            && head.contains("upgrade: websocket\r\n")
            && head.contains("connection: upgrade\r\n")
    );
    let other = sidecar.raw(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(other.starts_with("HTTP/1.1 503 "), "the tunnel still is a connection: {other}");
    tokio::time::sleep(Duration::from_millis(400)).await;
    let sent = noise(70_000);
    stream.write_all(&sent).await.unwrap();
    let mut echoed = vec![0; sent.len()];
    timeout(PATIENCE, stream.read_exact(&mut echoed)).await.unwrap().unwrap();
    assert_eq!(echoed, sent);
    stream.shutdown().await.unwrap();
    assert_eq!(read_out(&mut stream).await, "goodbye");
    assert_eq!(sidecar.0.drain.finish(PATIENCE).await, 0);
}

#[tokio::test]
async fn an_upgrade_that_the_node_does_not_want_is_an_ordinary_request() {
    let node = Upstream::malformed().await;
    let sidecar = Sidecar::plain(node.address).await;
    for protocol in ["websocket", "h2c"] {
        let request = format!(
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: {protocol}\r\nHTTP2-Settings: AAMAAABk\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        );
        let reply = sidecar.raw(request.as_bytes()).await;
        assert_eq!(reply.matches("HTTP/1.1 200 OK").count(), 2, "{reply}");
    }
    assert!(
        node.seen().iter().all(|request| !request.contains("h2c") && !request.contains("Http2-Settings"))
    );
}

#[tokio::test]
async fn a_client_that_expects_100_gets_it() {
    let node = echo().await;
    let sidecar = Sidecar::plain(node.address).await;
    let mut stream = sidecar.connect().await;
    stream
        .write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut interim = [0; 25];
    timeout(PATIENCE, stream.read_exact(&mut interim)).await.unwrap().unwrap();
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"hello").await.unwrap();
    let reply = read_out(&mut stream).await;
    assert!(
        reply.starts_with("HTTP/1.1 200 OK\r\n") && reply.ends_with("\r\n5\r\nhello\r\n0\r\n\r\n"),
        "{reply}"
    );
}
