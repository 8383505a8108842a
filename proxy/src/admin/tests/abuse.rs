//! What is refused, whoever asks and however.

use std::time::Duration;

use serde_json::json;
use tokio::io::AsyncWriteExt;

use super::{Answer, Headers, Server};

const READS: [&str; 13] = [
    "/version",
    "/status",
    "/config",
    "/filters",
    "/flags/dns_cache",
    "/cache",
    "/bypass",
    "/dns/servers",
    "/peers",
    "/crypto",
    "/db",
    "/db/cache",
    "/settings",
];
const CHANGES: [&str; 15] = [
    "/reload",
    "/bypass",
    "/cache/flush",
    "/cache/rebuild",
    "/filters/dns_cache/enable",
    "/filters/dns_cache/disable",
    "/filters/dns_cache/reset",
    "/dns/lookup",
    "/crypto/selftest",
    "/db/pause",
    "/db/resume",
    "/db/cache/flush",
    "/settings",
    "/settings/reset",
    "/drain",
];

#[tokio::test]
async fn only_a_token_opens_anything_but_the_probes() {
    let server = Server::start("127.0.0.1:0").await;
    for route in READS {
        for token in [None, Some("Bearer wrong"), Some("Bearer "), Some("Basic writer"), Some("writer")] {
            let answer = server
                .send(&format!("GET {route}"), "", |headers| {
                    headers.remove("authorization");
                    headers.extend(token.map(|token| ("authorization", token.to_owned())));
                })
                .await;
            assert_eq!(answer.status, 401, "{route} {token:?}");
            assert!(answer.head.contains("www-authenticate: bearer"), "{answer:?}");
        }
        let answer = server
            .send(&format!("GET {route}"), "", |headers| {
                headers.insert("authorization", "Bearer reader".into());
            })
            .await;
        assert!([200, 404].contains(&answer.status), "{route}: {answer:?}");
    }
    for route in CHANGES {
        for (token, status) in [("Bearer reader", 403), ("Bearer wrong", 401), ("", 401)] {
            let answer = server
                .send(&format!("POST {route}"), "{}", |headers| {
                    headers.insert("authorization", token.into());
                })
                .await;
            assert_eq!(answer.status, status, "{route} {token:?}: {answer:?}");
        }
    }
    for route in ["/healthz", "/readyz", "/metrics"] {
        let answer =
            server.send(&format!("GET {route}"), "", |headers| drop(headers.remove("authorization"))).await;
        assert!([200, 503].contains(&answer.status), "{route}: {answer:?}");
    }
    assert_eq!(server.double.asked(), Vec::<String>::new());
}

#[tokio::test]
async fn off_loopback_the_probes_need_a_token_too() {
    let server = Server::start("0.0.0.0:0").await;
    for route in ["/healthz", "/readyz", "/metrics", "/status"] {
        let answer =
            server.send(&format!("GET {route}"), "", |headers| drop(headers.remove("authorization"))).await;
        assert_eq!(answer.status, 401, "{route}");
    }
    assert_eq!(server.send("GET /healthz", "", |_| ()).await.status, 200);
}

#[tokio::test]
async fn two_authorization_headers_are_none() {
    let server = Server::start("127.0.0.1:0").await;
    let host = format!("127.0.0.1:{}", server.port());
    let headers = [
        ("host", host.as_str()),
        ("authorization", "Bearer writer"),
        ("authorization", "Bearer writer"),
        ("connection", "close"),
    ];
    assert_eq!(server.raw("GET /status", &headers, b"").await.status, 401);
}

#[tokio::test]
async fn other_hosts_and_origins_are_refused_even_with_a_token() {
    let server = Server::start("127.0.0.1:0").await;
    let port = server.port();
    for line in ["GET /healthz", "GET /metrics", "GET /status", "POST /drain", "POST /bypass"] {
        for host in
            ["evil.example".to_owned(), format!("evil.example:{port}"), "127.0.0.1:1".into(), String::new()]
        {
            let answer = server.send(line, "", |headers| drop(headers.insert("host", host.clone()))).await;
            assert_eq!(answer.status, 403, "{line} {host}");
        }
        assert_eq!(server.send(line, "", |headers| drop(headers.remove("host"))).await.status, 400, "{line}");
        for origin in ["http://evil.example", "null", "https://127.0.0.1", "http://localhost:1", ""] {
            let answer = server.send(line, "", |headers| drop(headers.insert("origin", origin.into()))).await;
            assert_eq!(answer.status, 403, "{line} {origin}");
        }
        for site in ["cross-site", "same-site", "nonsense"] {
            let answer =
                server.send(line, "", |headers| drop(headers.insert("sec-fetch-site", site.into()))).await;
            assert_eq!(answer.status, 403, "{line} {site}");
        }
    }
    assert_eq!(server.double.asked(), Vec::<String>::new());
    let own = server
        .send("GET /status", "", |headers| {
            headers.insert("origin", format!("http://127.0.0.1:{port}"));
            headers.insert("sec-fetch-site", "same-origin".into());
        })
        .await;
    assert_eq!(own.status, 200);
    let localhost = format!("localhost:{port}");
    assert_eq!(
        server.send("GET /status", "", |headers| drop(headers.insert("host", localhost))).await.status,
        200
    );
}

#[tokio::test]
async fn paths_are_exact() {
    let server = Server::start("127.0.0.1:0").await;
    for path in [
        "/",
        "/status/",
        "//status",
        "/./status",
        "/metrics/../status",
        "/../../etc/passwd",
        "/%73tatus",
        "/status%00",
        "/filters/%2e%2e/enable",
        "/filters//enable",
        "/STATUS",
        "/status;x=1",
        "/etc/passwd",
        "/flags/",
        "/flags/a/b",
    ] {
        assert_eq!(server.send(&format!("GET {path}"), "", |_| ()).await.status, 404, "{path}");
        let post = server.send(&format!("POST {path}"), "{}", |_| ()).await;
        assert!([404, 405].contains(&post.status), "{path}: {post:?}");
    }
    for path in ["/status?x=1", "/status?", "/metrics?token=writer", "/config?origin=false"] {
        assert_eq!(server.send(&format!("GET {path}"), "", |_| ()).await.status, 400, "{path}");
    }
    let absolute = format!("GET http://127.0.0.1:{}/status", server.port());
    assert_eq!(server.send(&absolute, "", |_| ()).await.status, 404);
    assert_eq!(server.send("GET /config?origin=true", "", |_| ()).await.body, "origin: true\n");
    assert_eq!(server.send("GET /config", "", |_| ()).await.body, "origin: false\n");
    assert_eq!(server.double.asked(), Vec::<String>::new());
}

#[tokio::test]
async fn methods_are_exact_and_a_get_changes_nothing() {
    let server = Server::start("127.0.0.1:0").await;
    for route in CHANGES {
        // These may be read and changed.
        if ["/bypass", "/settings"].contains(&route) {
            continue;
        }
        for method in ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE"] {
            let answer = server.send(&format!("{method} {route}"), "", |_| ()).await;
            assert_eq!(answer.status, 405, "{method} {route}: {answer:?}");
            assert!(answer.has("allow: post"), "{answer:?}");
            if method != "HEAD" {
                assert!(answer.json()["error"].is_string());
            }
        }
    }
    for route in READS {
        // These may be read and changed.
        if ["/bypass", "/settings"].contains(&route) {
            continue;
        }
        let answer = server.send(&format!("POST {route}"), "{}", |_| ()).await;
        assert_eq!((answer.status, answer.has("allow: get,head")), (405, true), "{route}: {answer:?}");
    }
    for route in ["/bypass", "/settings"] {
        let answer = server.send(&format!("DELETE {route}"), "", |_| ()).await;
        assert_eq!((answer.status, answer.has("allow: get,head,post")), (405, true), "{answer:?}");
    }
    assert_eq!(server.send("GET /bypass", "", |_| ()).await.json(), json!({"bypass": false}));
    let body =
        server.send("GET /status", "{}", |headers| drop(headers.insert("content-length", "2".into()))).await;
    assert_eq!(body.status, 400);
    assert_eq!(server.double.asked(), Vec::<String>::new());
}

#[tokio::test]
async fn bodies_are_json_of_a_limited_size() {
    let server = Server::start("127.0.0.1:0").await;
    for kind in
        ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/jsonp", ""]
    {
        let answer = server
            .send("POST /drain", "{}", |headers| drop(headers.insert("content-type", kind.into())))
            .await;
        assert_eq!(answer.status, 415, "{kind}");
    }
    let none = server.send("POST /drain", "", |headers| drop(headers.remove("content-type"))).await;
    assert_eq!(none.status, 415);
    let zipped = server
        .send("POST /drain", "{}", |headers| drop(headers.insert("content-encoding", "gzip".into())))
        .await;
    assert_eq!(zipped.status, 415);
    for body in ["{", "[]", "null", "1", "{\"x\":1}", "{}{}", "\u{0}", &"[".repeat(60_000)] {
        assert_eq!(server.send("POST /drain", body, |_| ()).await.status, 400, "{body:.20}");
    }
    let long = " ".repeat(65 * 1024);
    assert_eq!(server.send("POST /drain", &long, |_| ()).await.status, 413);
    let huge = server
        .send("POST /drain", "", |headers| drop(headers.insert("content-length", "99999999999".into())))
        .await;
    assert_eq!(huge.status, 413);
    let chunked = format!("{:x}\r\n{long}\r\n0\r\n\r\n", long.len());
    let chunked = server
        .send("POST /drain", &chunked, |headers| {
            headers.remove("content-length");
            headers.insert("transfer-encoding", "chunked".into());
        })
        .await;
    assert_eq!(chunked.status, 413);
    assert_eq!(server.double.asked(), Vec::<String>::new());

    let charset = |headers: &mut Headers| {
        drop(headers.insert("content-type", "Application/JSON; charset=UTF-8".into()))
    };
    assert_eq!(server.send("POST /drain", "", charset).await.status, 202);
    assert_eq!(server.double.asked(), ["drain"]);
}

#[tokio::test]
async fn every_answer_forbids_storing_and_sniffing_and_none_allows_other_origins() {
    let server = Server::start("127.0.0.1:0").await;
    for line in
        ["GET /status", "GET /healthz", "GET /nothing", "POST /status", "POST /drain", "OPTIONS /status"]
    {
        let answer = server.send(line, "{}", |headers| drop(headers.insert("host", "evil".into()))).await;
        for answer in [answer, server.send(line, "{}", |_| ()).await] {
            assert!(answer.has("cache-control: no-store"), "{line}: {answer:?}");
            assert!(answer.has("x-content-type-options: nosniff"), "{line}: {answer:?}");
            assert!(!answer.head.contains("access-control"), "{line}: {answer:?}");
        }
    }
}

#[tokio::test]
async fn a_slow_client_is_cut_off_and_stops_nobody() {
    let server = Server::start("127.0.0.1:0").await;
    let mut slow = Vec::new();
    for _ in 0..80 {
        let mut stream = server.connect().await;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nhost:").await.unwrap();
        slow.push(stream);
    }
    let asked = std::time::Instant::now();
    assert_eq!(server.send("GET /healthz", "", |_| ()).await.status, 200);
    assert!(asked.elapsed() < Duration::from_secs(4), "{:?}", asked.elapsed());
    // Those that are left are cut off as well; none hangs.
    for stream in slow {
        let answer = Answer::read(stream).await;
        assert!([0, 408].contains(&answer.status), "{answer:?}");
    }
}

#[tokio::test]
async fn an_idle_connection_is_closed() {
    let server = Server::start("127.0.0.1:0").await;
    let mut stream = server.connect().await;
    let request = format!("GET /healthz HTTP/1.1\r\nhost: localhost:{}\r\n\r\n", server.port());
    stream.write_all(request.as_bytes()).await.unwrap();
    // Read to the end, which comes without the client's doing.
    assert_eq!(Answer::read(stream).await.status, 200);
}

#[tokio::test]
async fn a_slow_body_is_cut_off() {
    let server = Server::start("127.0.0.1:0").await;
    let slow =
        server.send("POST /drain", "{", |headers| drop(headers.insert("content-length", "2".into()))).await;
    assert_eq!(slow.status, 408);
    assert_eq!(server.double.asked(), Vec::<String>::new());
}

#[tokio::test]
async fn garbage_gets_no_answer_but_a_refusal() {
    let server = Server::start("127.0.0.1:0").await;
    for garbage in [
        &b"\x16\x03\x01\x02\x00\x01\x00"[..],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        &[0; 4096],
        b"GET\r\n\r\n",
    ] {
        let mut stream = server.connect().await;
        stream.write_all(garbage).await.unwrap();
        stream.shutdown().await.unwrap();
        let answer = Answer::read(stream).await;
        assert!(answer.status == 0 || answer.status >= 400, "{garbage:?}: {answer:?}");
    }
    let long = "x".repeat(64 * 1024);
    let answer = server.send("GET /status", "", |headers| drop(headers.insert("x-long", long))).await;
    assert!([0, 431].contains(&answer.status), "{answer:?}");
    assert_eq!(server.send("GET /healthz", "", |_| ()).await.status, 200);
}
