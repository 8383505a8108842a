//! What is granted, over both transports, and what is kept on record of it.

use std::sync::{Arc, Mutex};

use metrics_exporter_prometheus::PrometheusBuilder;
use qudag_filter_api::Address;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

use super::{Answer, Headers, Server};
use crate::admin::client::{Client, ClientError};
use crate::resolve::SystemResolver;

#[tokio::test]
async fn wishes_arrive_and_errors_are_told() {
    let server = Server::start("127.0.0.1:0").await;
    let post = async |path: &str, body: &str| server.send(&format!("POST {path}"), body, |_| ()).await;
    assert_eq!(post("/filters/dns.dns_cache/enable", r#"{"rollout": 12.5, "ttl": "10m"}"#).await.status, 200);
    assert_eq!(post("/filters/dns_cache/disable", "").await.json()["generation"], 2);
    assert_eq!(post("/bypass", "").await.status, 200);
    assert_eq!(post("/bypass", r#"{"on": false}"#).await.status, 200);
    assert_eq!(post("/cache/flush", r#"{"type": "A"}"#).await.json(), json!({"flushed": 3, "left": 3}));
    let servers = server.send("GET /dns/servers", "", |_| ()).await;
    assert_eq!(servers.json(), json!({"servers": [{"server": "192.0.2.1:53"}]}));
    let peers = server.send("GET /peers", "", |_| ()).await;
    assert_eq!(peers.json(), json!({"routes": [{"name": "b"}]}));
    assert_eq!(server.send("GET /db", "", |_| ()).await.json(), json!({"pools": [{"database": "a"}]}));
    assert_eq!(post("/db/pause", "{}").await.json(), json!({"paused": true, "pools": 1}));
    assert_eq!(post("/db/resume", r#"{"database": "a", "kind": "redis"}"#).await.json()["paused"], false);
    assert_eq!(server.send("GET /db/cache", "", |_| ()).await.json(), json!({"entries": 4}));
    for (body, of) in [
        ("{}", json!([null, null])),
        (r#"{"rule": "a"}"#, json!(["a", null])),
        (r#"{"table": "t"}"#, json!([null, "t"])),
    ] {
        assert_eq!(post("/db/cache/flush", body).await.json(), json!({"flushed": 2, "of": of}));
    }
    assert_eq!(server.send("GET /crypto", "", |_| ()).await.json(), json!({"backend": "portable"}));
    for body in ["{}", r#"{"backend": "avx2"}"#] {
        assert_eq!(post("/crypto/selftest", body).await.json(), json!({"backend": "avx2"}), "{body}");
    }
    for body in [r#"{"backend": "mmx"}"#, r#"{"backend": 1}"#, r#"{"backends": []}"#] {
        assert_eq!(post("/crypto/selftest", body).await.status, 400, "{body}");
    }
    let settings = server.send("GET /settings", "", |_| ()).await.json();
    assert_eq!(settings["settings"][0]["expires_in_seconds"], 5);
    for body in [
        r#"{"key": "a.b", "value": "5s", "ttl": "10m"}"#,
        r#"{"key": "a.b", "value": 5}"#,
        r#"{"key": "a.b", "value": {"c": [1]}}"#,
    ] {
        assert_eq!(post("/settings", body).await.status, 200, "{body}");
    }
    assert_eq!(post("/settings/reset", r#"{"key": "a.b"}"#).await.status, 200);
    assert_eq!(post("/settings/reset", r#"{"all": true}"#).await.status, 200);
    for body in
        [r#"{"key": "a.b"}"#, r#"{"key": "a.b", "value": 1, "ttl": "0s"}"#, r#"{"key": 1, "value": 1}"#]
    {
        assert_eq!(post("/settings", body).await.status, 400, "{body}");
    }
    for body in ["{}", r#"{"key": "a", "all": true}"#, r#"{"all": false}"#] {
        assert_eq!(post("/settings/reset", body).await.status, 400, "{body}");
    }
    let rebuild = post("/cache/rebuild", "").await;
    assert_eq!(rebuild.status, 202);
    assert_eq!(rebuild.json(), json!({"rebuilding": true, "total": 3, "done": 1, "failed": 0}));
    assert_eq!(
        server.double.asked(),
        [
            "set dns.dns_cache true Some(12.5) Some(600s)",
            "set dns_cache false None None",
            "bypass true",
            "bypass false",
            "flush Flush { name: None, suffix: None, rtype: Some(\"A\") }",
            "db true None None",
            "db false Some(Redis) Some(\"a\")",
            "db flush None None",
            "db flush Some(\"a\") None",
            "db flush None Some(\"t\")",
            "crypto selftest None",
            "crypto selftest Some(Avx2)",
            "set a.b 5s Some(600s)",
            "set a.b 5 None",
            "set a.b {\"c\":[1]} None",
            "unset Some(\"a.b\")",
            "unset None",
            "rebuild",
        ]
    );
    assert_eq!(
        post("/dns/lookup", r#"{"name": "a.example"}"#).await.json(),
        json!({"asked": ["a.example", "A", false, false, false]})
    );
    assert_eq!(
        post("/dns/lookup", r#"{"name": "a", "type": "TXT", "dnssec": true, "trace": true}"#).await.json(),
        json!({"asked": ["a", "TXT", true, false, true]})
    );
    for body in [r#"{"rollout": 101}"#, r#"{"ttl": "0s"}"#, r#"{"ttl": 5}"#, r#"{"rolout": 1}"#] {
        assert_eq!(post("/filters/dns_cache/enable", body).await.status, 400, "{body}");
    }
    for body in [r#"{"databse": "a"}"#, r#"{"database": 1}"#] {
        assert_eq!(post("/db/pause", body).await.status, 400, "{body}");
    }
    for body in [r#"{"rules": "a"}"#, r#"{"table": ["t"]}"#] {
        assert_eq!(post("/db/cache/flush", body).await.status, 400, "{body}");
    }
    let refused = post("/reload", "{}").await;
    assert_eq!(refused.status, 422);
    assert_eq!(refused.json()["problems"], json!(["x.yaml:1:1: no"]));
    let draining = post("/filters/x/reset", "{}").await;
    assert_eq!((draining.status, draining.has("retry-after: 1")), (503, true));
    assert_eq!(server.send("GET /flags/x", "", |_| ()).await.status, 404);
    let ready = server.send("GET /readyz", "", |_| ()).await;
    assert_eq!((ready.status, ready.json()["reasons"].clone()), (503, json!(["draining"])));
    let status = server.send("GET /status", "", |_| ()).await.json();
    assert_eq!(status["listeners"][0], json!({"kind": "dns", "name": "dns", "addr": "127.0.0.1:53"}));
    let filter = &status["filters"][0];
    assert_eq!(
        filter,
        &json!({"kind": "dns", "name": "dns_cache", "enabled": true, "rollout": 100, "layer": "yaml"})
    );
    assert!(server.send("GET /metrics", "", |_| ()).await.body.contains("process_open_fds"));
}

#[tokio::test]
async fn a_unix_socket_asks_the_kernel_who_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("admin.sock");
    let server = Server::start(&format!("unix:{}", path.display())).await;
    let request = |line: &str, more: &str| {
        format!(
            "{line} HTTP/1.1\r\nhost: any\r\nconnection: close\r\ncontent-type: application/json\r\n{more}\r\n"
        )
    };
    for (line, more, status) in [
        ("GET /status", "", 200),
        ("POST /drain", "", 202),
        ("POST /drain", "origin: http://any\r\n", 403),
        ("POST /drain", "sec-fetch-site: cross-site\r\n", 403),
        ("GET /status/", "", 404),
    ] {
        let mut stream = UnixStream::connect(&path).await.unwrap();
        stream.write_all(request(line, more).as_bytes()).await.unwrap();
        assert_eq!(Answer::read(stream).await.status, status, "{line} {more}");
    }
    assert_eq!(server.double.asked(), ["drain"]);
}

#[tokio::test]
async fn the_client_speaks_both_transports_and_tells_refusals_from_absence() {
    let resolve = SystemResolver::new();
    let dir = tempfile::tempdir().unwrap();
    let unix = Server::start(&format!("unix:{}", dir.path().join("s").display())).await;
    let tcp = Server::start("127.0.0.1:0").await;
    for (server, token) in [(&unix, None), (&tcp, Some("writer".to_owned()))] {
        let client = Client::new(server.address.clone(), token);
        assert_eq!(client.get("/status", &resolve).await.unwrap()["generation"], 1);
        assert_eq!(client.get_text("/config", &resolve).await.unwrap(), "origin: false\n");
        let done = client.post("/bypass", &json!({"on": true}), &resolve).await.unwrap();
        assert_eq!(done["changed"], true);
    }
    let reader = Client::new(tcp.address.clone(), Some("reader".into()));
    let Err(ClientError::Refused(refusal)) = reader.post("/drain", &json!({}), &resolve).await else {
        panic!()
    };
    assert_eq!(refusal.status, 403);
    let stranger = Client::new(tcp.address.clone(), None);
    let Err(ClientError::Refused(refusal)) = stranger.get("/status", &resolve).await else { panic!() };
    assert!(refusal.hint.unwrap().contains("--token-file"));
    let gone = dir.path().join("none");
    for address in [Address::Unix(gone), unused_address().await] {
        let client = Client::new(address, None);
        assert!(matches!(client.get("/status", &resolve).await, Err(ClientError::Unreachable { .. })));
    }
}

async fn unused_address() -> Address {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    Address::Tcp(listener.local_addr().unwrap().into())
}

#[tokio::test]
async fn changes_are_on_record() {
    let server = Server::start("127.0.0.1:0").await;
    let change = async || {
        server.send("POST /filters/dns_cache/disable", r#"{"ttl": "5m"}"#, |_| ()).await;
        let wrong = |headers: &mut Headers| drop(headers.insert("authorization", "Bearer wrong".into()));
        server.send("POST /drain", "{}", wrong).await;
        server.send("POST /settings", r#"{"key": "a", "value": "hunter2", "ttl": "0s"}"#, |_| ()).await;
        server.send("GET /status", "", |_| ()).await;
    };
    let lines = Arc::new(Mutex::new(Vec::<u8>::new()));
    // tracing remembers for a place in the code whether anybody listens, and asks only the thread that comes there first while
    // there is one subscriber: another test's thread may say no for all. A second subscriber makes it ask again.
    for _ in 0..2 {
        lines.lock().unwrap().clear();
        let writer = Arc::clone(&lines);
        let log = tracing_subscriber::fmt().with_writer(move || Line(Arc::clone(&writer))).with_ansi(false);
        let _log = tracing::subscriber::set_default(log.finish());
        change().await;
    }
    let text = String::from_utf8(lines.lock().unwrap().clone()).unwrap();
    let audit: Vec<_> = text.lines().filter(|line| line.contains("audit")).collect();
    assert_eq!(audit.len(), 3, "{text}");
    for part in ["accepted", "role=\"write\"", "who=\"127.0.0.1:", "POST /filters/dns_cache/disable", "5m"] {
        assert!(audit[0].contains(part), "{part} in {text}");
    }
    for part in ["refused", "role=\"none\"", "code=401", "a valid token is needed"] {
        assert!(audit[1].contains(part), "{part} in {text}");
    }
    assert!(audit[2].contains("(not shown)") && !text.contains("hunter2"), "{text}");
    assert!(!text.contains("writer") && !text.contains("wrong"), "a token in the log: {text}");
}

#[tokio::test]
async fn requests_are_counted_by_route_and_not_by_path() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let metrics = recorder.handle();
    // The server's tasks run on this thread.
    let _recorder = metrics::set_default_local_recorder(&recorder);
    let server = Server::start("127.0.0.1:0").await;
    for name in ["a", "b"] {
        server.send(&format!("POST /filters/{name}/disable"), "", |_| ()).await;
        server.send(&format!("GET /{name}"), "", |_| ()).await;
    }
    server.send("GET /status", "", |headers| drop(headers.remove("authorization"))).await;
    let text = metrics.render();
    for series in [
        r#"{route="/filters/{name}/disable",code="200",role="write"} 2"#,
        r#"{route="unmatched",code="404",role="none"} 2"#,
        r#"{route="/status",code="401",role="none"} 1"#,
    ] {
        let series = format!("qudag_sidecar_admin_requests_total{series}");
        assert!(text.lines().any(|line| line == series), "{series} in\n{text}");
    }
}

struct Line(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Line {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
