//! Taps: who gets them, what comes out, and how they end.

use std::time::Duration;

use qudag_filter_common::{Audience, FlowLine};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Server;
use crate::admin::client::Client;
use crate::admin::tap::MOST;
use crate::resolve::SystemResolver;

const PATIENCE: Duration = Duration::from_secs(30);

/// An open tap, read line by line past the lengths of the chunks.
struct Open {
    stream: BufReader<TcpStream>,
}

impl Open {
    /// Sends the request and reads the head of the answer; the tap listens from then on.
    async fn at(server: &Server, path: &str) -> Self {
        let mut stream = BufReader::new(server.connect().await);
        let port = server.port();
        let request =
            format!("GET {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nauthorization: Bearer reader\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(stream.read_line(&mut head).await.unwrap() > 0, "{head}");
        }
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        assert!(head.contains("content-type: application/x-ndjson"), "{head}");
        assert!(!head.to_ascii_lowercase().contains("access-control"), "{head}");
        Self { stream }
    }

    /// The next line that is an object, or nothing at the end.
    async fn next(&mut self) -> Option<Value> {
        let line = async {
            loop {
                let mut line = String::new();
                if self.stream.read_line(&mut line).await.unwrap() == 0 {
                    return None;
                }
                if line.starts_with('{') {
                    return Some(serde_json::from_str(&line).unwrap());
                }
            }
        };
        timeout(PATIENCE, line).await.expect("no line")
    }
}

fn flow(kind: &'static str, method: &str, outcome: &'static str) {
    let mut line = FlowLine::start(kind, Some("10.0.0.1:5".parse().unwrap()));
    line.detail("method", method);
    line.end(outcome, 1, 2);
}

async fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let wait = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("not in time: {what}"));
}

#[tokio::test]
async fn flows_of_the_kind_that_fit_are_streamed_as_they_end() {
    let server = Server::start("127.0.0.1:0").await;
    let mut tap = Open::at(&server, "/tap/rpc?method=get_status&outcome!=ok").await;
    flow("rpc", "get_status", "ok");
    flow("http", "get_status", "timeout");
    flow("rpc", "list_peers", "timeout");
    flow("rpc", "get_status", "timeout");
    let flow = tap.next().await.unwrap();
    assert_eq!((&flow["kind"], &flow["outcome"]), (&json!("rpc"), &json!("timeout")));
    assert_eq!(flow["detail"], json!({"method": "get_status"}));
    assert_eq!(flow["client"], "10.0.0.1:5");
}

#[tokio::test]
async fn only_who_may_read_gets_a_tap_and_only_of_what_there_is() {
    let server = Server::start("127.0.0.1:0").await;
    for (line, token, status) in [
        ("GET /tap/dns", "", 401),
        ("GET /tap/dns", "Bearer wrong", 401),
        ("POST /tap/dns", "Bearer writer", 405),
        ("GET /tap/nothing", "Bearer reader", 404),
        ("GET /tap/", "Bearer reader", 404),
        ("GET /tap/dns/", "Bearer reader", 404),
        ("GET /tap/dns?nonsense=1", "Bearer reader", 400),
        ("GET /tap/dns?name", "Bearer reader", 400),
        ("GET /tap/dns?client=nobody", "Bearer reader", 400),
        ("GET /tap/dns?name=%61", "Bearer reader", 400),
        ("GET /tap/dns?name=a+b", "Bearer reader", 400),
        ("GET /tap/nothing?name=a", "Bearer reader", 404),
        ("GET /status?name=a", "Bearer reader", 400),
    ] {
        let answer =
            server.send(line, "", |headers| drop(headers.insert("authorization", token.into()))).await;
        assert_eq!(answer.status, status, "{line} {token}: {answer:?}");
    }
    let many = format!("GET /tap/dns?{}", vec!["type=A"; 17].join("&"));
    assert_eq!(server.send(&many, "", |_| ()).await.status, 400);
    let hint = server.send("GET /tap/dns?nam=a", "", |_| ()).await.json();
    assert!(hint["error"].as_str().unwrap().contains("name"), "{hint}");
}

#[tokio::test]
async fn there_are_so_many_taps_and_a_client_that_goes_makes_room() {
    let server = Server::start("127.0.0.1:0").await;
    let audience = Audience::of("db");
    audience.log_takes_ok(false);
    let mut taps = Vec::new();
    for _ in 0..MOST {
        taps.push(Open::at(&server, "/tap/db").await);
    }
    assert!(audience.listens());
    let refused = server.send("GET /tap/db", "", |_| ()).await;
    assert_eq!((refused.status, refused.has("retry-after: 1")), (503, true), "{refused:?}");
    taps.pop();
    let mut again = None;
    let retry = async {
        loop {
            let client = Client::new(server.address.clone(), Some("reader".into()));
            match client.lines("/tap/db", &SystemResolver::new()).await {
                Ok(lines) => break again = Some(lines),
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    };
    timeout(PATIENCE, retry).await.expect("no room was made");
    drop((again, taps));
    eventually("nobody listens", || !audience.listens()).await;
}

#[tokio::test]
async fn who_does_not_read_loses_flows_and_learns_how_many() {
    let server = Server::start("127.0.0.1:0").await;
    let mut tap = Open::at(&server, "/tap/peer").await;
    // No await: what is more than the tap's room is lost, and nothing waits.
    for _ in 0..5000 {
        flow("peer", "m", "ok");
    }
    let (mut seen, mut lost) = (0, 0);
    while seen + lost < 5000 {
        let line = tap.next().await.unwrap();
        match line.get("lost").and_then(Value::as_u64) {
            Some(more) => lost += more,
            None => seen += 1,
        }
    }
    assert_eq!(seen + lost, 5000);
    assert!(lost > 0 && seen > 0, "{seen} {lost}");
}

#[tokio::test]
async fn a_tap_stays_when_others_need_places() {
    let server = Server::start("127.0.0.1:0").await;
    let mut tap = Open::at(&server, "/tap/rpc").await;
    let mut idle = Vec::new();
    for _ in 0..200 {
        idle.push(server.connect().await);
    }
    assert_eq!(server.send("GET /status", "", |_| ()).await.status, 200);
    flow("rpc", "m", "ok");
    assert_eq!(tap.next().await.unwrap()["kind"], "rpc");
}

#[tokio::test(start_paused = true)]
async fn a_tap_that_is_read_outlives_other_connections() {
    let server = Server::start("127.0.0.1:0").await;
    let mut tap = Open::at(&server, "/tap/rpc").await;
    let start = tokio::time::Instant::now();
    // The signs of life come each second.
    while start.elapsed() < Duration::from_secs(400) {
        let mut line = String::new();
        assert!(tap.stream.read_line(&mut line).await.unwrap() > 0, "it ended after {:?}", start.elapsed());
    }
    flow("rpc", "m", "ok");
    assert_eq!(tap.next().await.unwrap()["outcome"], "ok");
}

#[tokio::test]
async fn a_stopping_server_ends_its_taps_and_says_so() {
    let server = Server::start("127.0.0.1:0").await;
    let client = Client::new(server.address.clone(), Some("reader".into()));
    let mut lines = client.lines("/tap/http", &SystemResolver::new()).await.unwrap();
    flow("http", "GET", "ok");
    drop(server);
    let mut last = Value::Null;
    let mut flows = 0;
    while let Some(line) = timeout(PATIENCE, lines.next()).await.expect("it ends").unwrap() {
        if let Ok(value) = serde_json::from_str::<Value>(&line) {
            flows += usize::from(value["kind"] == "http");
            last = value;
        }
    }
    assert!(flows <= 1, "{flows}");
    assert_eq!(last, json!({"end": "the sidecar stops"}));
}

#[tokio::test]
async fn the_client_tells_refusals_from_taps() {
    let server = Server::start("127.0.0.1:0").await;
    let client = Client::new(server.address.clone(), Some("wrong".into()));
    let refused = client.lines("/tap/dns", &SystemResolver::new()).await.unwrap_err();
    assert!(refused.to_string().contains("a valid token is needed"), "{refused}");
}
