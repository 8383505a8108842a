//! Keys of the configuration whose effect no other test sees, each with a value that its default is told apart from.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests report by panicking"
)]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use qudag_kit::dns::{self, hickory_proto::op::ResponseCode, hickory_proto::rr::RecordType};
use qudag_kit::http::{self, Client};
use qudag_kit::rpc::{self, Server};
use qudag_kit::{
    EchoPeer, HttpNode, Setup, TestSidecar, Unbound, eventually, needs_program, peer, ports, within,
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};

/// Shorter than any default that it is compared with.
const PATIENCE: Duration = Duration::from_secs(20);
/// The start-up packet of protocol 3.0 of a user `a`.
const STARTUP: &[u8] = b"\0\0\0\x10\0\x03\0\0user\0a\0\0";

/// A server whose queue is full: it neither accepts nor refuses connections.
struct Mute {
    addr: SocketAddr,
    _listener: TcpListener,
    _queue: Vec<TcpStream>,
}

impl Mute {
    async fn start() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(1).unwrap();
        let addr = listener.local_addr().unwrap();
        let mut queue = Vec::new();
        while let Ok(stream) =
            tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(addr)).await
        {
            queue.push(stream.unwrap());
        }
        Self { addr, _listener: listener, _queue: queue }
    }
}

/// What a database session is told that never comes about.
async fn refused_session(door: SocketAddr) -> String {
    let mut stream = TcpStream::connect(door).await.unwrap();
    stream.write_all(STARTUP).await.unwrap();
    let mut told = Vec::new();
    stream.read_to_end(&mut told).await.unwrap();
    String::from_utf8_lossy(&told).into_owned()
}

async fn call(door: SocketAddr) -> Value {
    rpc::call(&Server::Tcp(door), "get_status", json!({})).await.unwrap()
}

#[tokio::test]
async fn connect_timeouts() {
    let mute = Mute::start().await;
    let yaml = format!(
        "node: {{ rpc: \"{to}\", http: \"{to}\" }}\nlisteners:\n  peer: {{ connect_timeout: 301ms, outbound: [{{ name: \
         mute, bind: \"127.0.0.1:0\", to: \"{to}\" }}] }}\n  rpc: {{ bind: \"127.0.0.1:0\", connect_timeout: 302ms }}\n  \
         http: {{ bind: \"127.0.0.1:0\", connect_timeout: 303ms }}\n  postgres: {{ bind: \"127.0.0.1:0\", server: \
         \"{to}\", connect_timeout: 304ms }}\n",
        to = mute.addr
    );
    let sidecar = TestSidecar::start(&yaml).await;
    peer::echo(sidecar.listener("peer").await, 10).await.unwrap_err();
    let logged = async || sidecar.log().contains("no answer within 301ms").then_some(());
    eventually(PATIENCE, "the stream's end is logged", logged).await;
    let reply = call(sidecar.listener("rpc").await).await;
    assert_eq!(reply["error"]["message"], "no answer within 302ms", "{reply}");
    let reply = http::get(sidecar.listener("http").await, "/health").await.unwrap();
    assert_eq!(reply.json()["detail"], "no answer within 303ms", "{reply:?}");
    let told = refused_session(sidecar.listener("db").await).await;
    assert!(told.contains("no answer within 304ms"), "{told}");
}

#[tokio::test]
async fn answer_timeouts() {
    // It takes connections and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let yaml = format!(
        "node: {{ rpc: \"{to}\", http: \"{to}\" }}\nlisteners:\n  rpc: {{ bind: \"127.0.0.1:0\", request_timeout: 301ms \
         }}\n  http: {{ bind: \"127.0.0.1:0\", first_byte_timeout: 302ms }}\n",
        to = silent.local_addr().unwrap()
    );
    let sidecar = TestSidecar::start(&yaml).await;
    let reply = within(PATIENCE, "the reply", call(sidecar.listener("rpc").await)).await;
    assert_eq!(reply["error"]["message"], "no answer within 301ms", "{reply}");
    let reply = within(PATIENCE, "the reply", http::get(sidecar.listener("http").await, "/health")).await;
    assert_eq!(reply.unwrap().json()["detail"], "no answer within 302ms");
}

#[tokio::test]
async fn times_for_a_beginning() {
    let yaml = "listeners:\n  http: { bind: \"127.0.0.1:0\", header_timeout: 300ms }\n  postgres: { bind: \"127.0.0.1:0\", \
                startup_timeout: 300ms }\n";
    let sidecar = TestSidecar::start(yaml).await;
    for (kind, beginning) in [("http", &b"GET / HTTP/1.1\r\nHost"[..]), ("db", &STARTUP[..9])] {
        let mut client = TcpStream::connect(sidecar.listener(kind).await).await.unwrap();
        client.write_all(beginning).await.unwrap();
        let mut told = Vec::new();
        let end = client.read_to_end(&mut told);
        // Both are 10 s by default.
        within(Duration::from_secs(8), "the end of a slow client", end).await.unwrap();
    }
}

/// A peer's stream or a database session, after what it begins with, and the server's end of it.
async fn opened(sidecar: &TestSidecar, kind: &str, server: &TcpListener) -> (TcpStream, TcpStream) {
    let mut client = TcpStream::connect(sidecar.listener(kind).await).await.unwrap();
    client.write_all(STARTUP).await.unwrap();
    let (mut session, _) = within(PATIENCE, "the server's end", server.accept()).await.unwrap();
    let mut first = vec![0; STARTUP.len()];
    session.read_exact(&mut first).await.unwrap();
    assert_eq!(first, STARTUP);
    (client, session)
}

fn streams(to: SocketAddr, limit: &str) -> String {
    format!(
        "listeners:\n  peer: {{ {limit}, outbound: [{{ name: a, bind: \"127.0.0.1:0\", to: \"{to}\" }}] }}\n  postgres: \
         {{ {limit}, bind: \"127.0.0.1:0\", server: \"{to}\" }}\n"
    )
}

#[tokio::test]
async fn half_close_timeouts() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let yaml = streams(server.local_addr().unwrap(), "half_close_timeout: 300ms");
    let sidecar = TestSidecar::start(&yaml).await;
    for kind in ["peer", "db"] {
        let (mut client, _session) = opened(&sidecar, kind, &server).await;
        client.shutdown().await.unwrap();
        let end = within(PATIENCE, "the end of a stream with one direction", client.read(&mut [0])).await;
        assert!(end.is_err(), "{kind}: {end:?}");
    }
}

#[tokio::test]
async fn stall_timeouts() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let yaml = streams(server.local_addr().unwrap(), "stall_timeout: 300ms");
    let sidecar = TestSidecar::start(&yaml).await;
    for kind in ["peer", "db"] {
        let (mut client, _session) = opened(&sidecar, kind, &server).await;
        let writing = async {
            let block = vec![0; 64 * 1024];
            while client.write_all(&block).await.is_ok() {}
        };
        within(PATIENCE, "the end of a stream that nobody reads", writing).await;
        assert!(client.read(&mut [0]).await.is_err() || client.write_all(b"x").await.is_err(), "{kind}");
    }
}

#[tokio::test]
async fn name_server_timeouts() {
    let (one, two) =
        (UdpSocket::bind("127.0.0.1:0").await.unwrap(), UdpSocket::bind("127.0.0.1:0").await.unwrap());
    // Both are longer than the defaults, so that a busy machine changes nothing.
    let yaml = format!(
        "listeners:\n  dns: {{ bind: \"127.0.0.1:0\" }}\nfilters:\n  dns:\n    dns_upstream: {{ servers: [\"{}\", \"{}\"], \
         timeout: 3s, attempt_timeout: 1s, hedge: {{ min: 1s, max: 1s }}, probe: {{ interval: 1h }} }}\n",
        one.local_addr().unwrap(),
        two.local_addr().unwrap()
    );
    let sidecar = TestSidecar::start(&yaml).await;
    let door = sidecar.listener("dns").await;
    let start = Instant::now();
    let (mut first, mut second) = ([0; 512], [0; 512]);
    let both_asked = async {
        let (one, two) = tokio::join!(one.recv(&mut first), two.recv(&mut second));
        assert!(one.unwrap() > 0 && two.unwrap() > 0);
        start.elapsed()
    };
    let both_asked = within(PATIENCE, "both servers are asked", both_asked);
    let (answer, both_asked) = tokio::join!(dns::ask(door, "a.test.", RecordType::A), both_asked);
    assert_eq!(answer.unwrap().metadata.response_code, ResponseCode::ServFail);
    assert!(both_asked >= Duration::from_millis(950), "the second server is asked after {both_asked:?}");
    assert!(start.elapsed() >= Duration::from_millis(2900), "answered after {:?}", start.elapsed());
}

#[tokio::test]
async fn limits_of_the_cache() {
    needs_program!("unbound");
    let unbound = Unbound::start(&["short.test. 1 IN A 192.0.2.1"]).await;
    let yaml = format!(
        "listeners:\n  dns: {{ bind: \"127.0.0.1:0\" }}\nfilters:\n  dns:\n    dns_cache: {{ enabled: true, max_size: 2MiB, \
         min_ttl: 200s, negative_ttl: 7s }}\n    dns_upstream: {{ servers: [\"{}\"], timeout: 4s, attempt_timeout: 4s, hedge: {{ max: 4s }} }}\n",
        unbound.addr()
    );
    let sidecar = TestSidecar::start(&yaml).await;
    let door = sidecar.listener("dns").await;
    // The second answer is the cache's own.
    for _ in 0..2 {
        let answer = dns::ask(door, "short.test.", RecordType::A).await.unwrap();
        assert!((150..=200).contains(&answer.answers[0].ttl), "{answer:?}");
        let answer = dns::ask(door, "none.test.", RecordType::A).await.unwrap();
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
        assert!(answer.authorities[0].ttl <= 7, "{answer:?}");
    }
    assert_eq!(unbound.queries("short.test."), 1);
    let cache = sidecar.admin("GET", "/cache", Value::Null).await.ok();
    assert_eq!(cache["max_bytes"], 2 << 20, "{cache}");
}

#[tokio::test]
async fn the_dns_cache_outlives_a_restart() {
    needs_program!("unbound");
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("cache");
    let unbound = Unbound::start(&["kept.test. 200 IN A 192.0.2.1"]).await;
    let yaml = format!(
        "listeners:\n  dns: {{ bind: \"127.0.0.1:0\" }}\nfilters:\n  dns:\n    dns_cache: {{ enabled: true, snapshot: {{ file: \
         \"{}\" }} }}\n    dns_upstream: {{ servers: [\"{}\"], timeout: 4s, attempt_timeout: 4s }}\n",
        file.display(),
        unbound.addr()
    );
    let mut sidecar = TestSidecar::start(&yaml).await;
    dns::ask(sidecar.listener("dns").await, "kept.test.", RecordType::A).await.unwrap();
    assert!(sidecar.stop(PATIENCE).await.0.success());
    assert!(file.exists(), "written at the end");
    sidecar.start_again().await;
    let answer = dns::ask(sidecar.listener("dns").await, "kept.test.", RecordType::A).await.unwrap();
    assert_eq!(answer.answers.len(), 1, "{answer:?}");
    assert_eq!(unbound.queries("kept.test."), 1);
}

#[tokio::test]
async fn a_rollout_of_nothing() {
    let node = HttpNode::start().await;
    let yaml = |rollout: u8| {
        format!(
            "node: {{ http: \"{}\" }}\nlisteners:\n  http: {{ bind: \"127.0.0.1:0\" }}\nfilters:\n  http:\n    rate_limit: \
             {{ enabled: true, rollout: {rollout}, per_client: {{ rate: 1, burst: 1 }} }}\n",
            node.addr()
        )
    };
    let sidecar = TestSidecar::start(&yaml(0)).await;
    let mut client = Client::http1(sidecar.listener("http").await).await.unwrap();
    for _ in 0..5 {
        assert_eq!(client.get("/health").await.unwrap().status, 200);
    }
    sidecar.reload_with(&yaml(100)).await.ok();
    let limited = async || (client.get("/health").await.unwrap().status == 429).then_some(());
    eventually(PATIENCE, "the filter is on for everybody", limited).await;
}

#[tokio::test]
async fn flows_of_each_kind() {
    let gone = ports::free();
    let kinds = ["dns", "peer", "rpc", "http", "db", "redis"];
    let yaml = |quiet: &str| {
        let flows = kinds.map(|kind| format!("{kind}: {}", if kind == quiet { "off" } else { "all" }));
        format!(
            "node: {{ rpc: \"{gone}\", http: \"{gone}\" }}\nlisteners:\n  dns: {{ bind: \"127.0.0.1:0\" }}\n  peer: {{ \
             outbound: [{{ name: gone, bind: \"127.0.0.1:0\", to: \"{gone}\" }}] }}\n  rpc: {{ bind: \"127.0.0.1:0\" }}\n  \
             http: {{ bind: \"127.0.0.1:0\" }}\n  postgres: {{ bind: \"127.0.0.1:0\", server: \"{gone}\" }}\n  redis: {{ bind: \"127.0.0.1:0\", server: \"{gone}\" }}\nfilters:\n  \
             dns:\n    dns_upstream: {{ servers: [\"{gone}\"] }}\ntelemetry:\n  log: {{ format: json }}\n  flows: {{ {} \
             }}\n",
            flows.join(", ")
        )
    };
    let sidecar = TestSidecar::start(&yaml("none")).await;
    let logged = |kind: &str| {
        let log = sidecar.log();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.filter(|line| line["target"] == "flow" && line["kind"] == kind).count()
    };
    for (round, quiet) in (1_u32..).zip(kinds) {
        sidecar.reload_with(&yaml(quiet)).await.ok();
        dns::ask(sidecar.listener("dns").await, "a.test.", RecordType::A).await.unwrap();
        peer::echo(sidecar.listener("peer").await, 10).await.unwrap_err();
        call(sidecar.listener("rpc").await).await;
        http::get(sidecar.listener("http").await, "/health").await.unwrap();
        refused_session(sidecar.listener("db").await).await;
        let mut redis = TcpStream::connect(sidecar.listener("redis").await).await.unwrap();
        let mut said = String::new();
        redis.read_to_string(&mut said).await.unwrap();
        assert!(said.starts_with("-LOADING qudag-sidecar: cannot connect"), "{said}");
        for kind in kinds {
            let counted = async || {
                let flows = sidecar.metric("qudag_sidecar_flows_total", &[("kind", kind)]).await;
                (flows >= f64::from(round)).then_some(())
            };
            eventually(PATIENCE, "every flow is counted", counted).await;
        }
        // By now each kind but those that follow was quiet once.
        for (place, kind) in (1_u32..).zip(kinds) {
            let expected = (round - u32::from(place <= round)) as usize;
            let all = async || (logged(kind) >= expected).then_some(());
            eventually(PATIENCE, "the flows are logged", all).await;
            assert_eq!(logged(kind), expected, "{kind}, with {quiet} quiet: {}", sidecar.log());
        }
    }
}

#[tokio::test]
async fn the_level_of_the_log() {
    let told = async |level: &str| {
        let yaml = format!(
            "listeners: {{ dns: {{ bind: \"127.0.0.1:0\" }} }}\ntelemetry: {{ log: {{ level: {level} }} }}\n"
        );
        let mut sidecar = TestSidecar::start(&yaml).await;
        sidecar.stop(PATIENCE).await;
        sidecar.log().lines().filter(|line| line.contains("INFO") && !line.contains("audit")).count()
    };
    assert!(told("info").await > 0);
    assert_eq!(told("error").await, 0);
}

#[tokio::test]
async fn threads_for_traffic() {
    let workers = std::thread::available_parallelism().unwrap().get() + 7;
    let yaml =
        format!("listeners: {{ dns: {{ bind: \"127.0.0.1:0\" }} }}\nruntime: {{ workers: {workers} }}\n");
    let sidecar = TestSidecar::start(&yaml).await;
    let tasks = std::fs::read_dir(format!("/proc/{}/task", sidecar.pid())).unwrap().flatten();
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
    let names: Vec<String> = names.map(|name| name.trim().to_owned()).collect();
    assert!(names.iter().filter(|name| *name == "data").count() >= workers, "{names:?}");
}

#[tokio::test]
async fn core_dumps() {
    for (yaml, limited) in [("", true), ("runtime: { core_dumps: true }\n", false)] {
        let sidecar = TestSidecar::start(yaml).await;
        let of = |process: &str| std::fs::read_to_string(format!("/proc/{process}/limits")).unwrap();
        let soft_and_hard = |limits: String| {
            let line = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
            let words: Vec<_> = line.split_whitespace().skip(4).take(2).map(str::to_owned).collect();
            (words[0].clone(), words[1].clone())
        };
        let (soft, hard) = soft_and_hard(of("self"));
        let least = if hard == "0" { "0" } else { "1" };
        let right = if limited { least.to_owned() } else { soft };
        assert_eq!(soft_and_hard(of(&sidecar.pid().to_string())), (right, hard), "{yaml}");
    }
}

#[tokio::test]
async fn the_drain_has_an_end() {
    let peer = EchoPeer::start().await;
    let yaml = format!(
        "listeners:\n  peer: {{ outbound: [{{ name: a, bind: \"127.0.0.1:0\", to: \"{}\" }}] }}\nruntime: {{ drain_timeout: \
         400ms }}\n",
        peer.addr()
    );
    let mut sidecar = TestSidecar::start(&yaml).await;
    let mut open = TcpStream::connect(sidecar.listener("peer").await).await.unwrap();
    open.write_all(b"x").await.unwrap();
    open.read_exact(&mut [0]).await.unwrap();
    // Less than the default.
    let (_, took) = sidecar.stop(PATIENCE).await;
    assert!(took >= Duration::from_millis(350), "{took:?}");
    assert!(open.read(&mut [0]).await.is_err(), "what is still open is reset");
}

#[tokio::test]
async fn tokens_and_the_name() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    std::fs::write(&file, "the writer's\n").unwrap();
    let yaml = format!(
        "node: {{ name: keyed-7 }}\nlisteners: {{ dns: {{ bind: \"127.0.0.1:0\" }} }}\nadmin:\n  bind: \"127.0.0.1:0\"\n  \
         token: {{ file: \"{}\" }}\n  read_token: {{ env: KEYS_READER }}\n",
        file.display()
    );
    let env = [("KEYS_READER", "the reader's")];
    let sidecar = TestSidecar::with(Setup { yaml: &yaml, env: &env, ..Setup::default() }).await;
    let ask = async |method: &str, path: &str, token: &str| {
        let request = hyper::Request::builder().method(method).uri(path);
        let request = request.header("authorization", format!("Bearer {token}"));
        let request = request.header("content-type", "application/json");
        let request = request.body(http_body_util::Full::default()).unwrap();
        Client::http1(sidecar.admin_addr()).await.unwrap().request(request).await.unwrap()
    };
    for (token, read, change) in
        [("the writer's", 200, 200), ("the reader's", 200, 403), ("nobody's", 401, 401)]
    {
        assert_eq!(ask("GET", "/status", token).await.status, read, "{token}");
        assert_eq!(ask("POST", "/reload", token).await.status, change, "{token}");
    }
    assert_eq!(ask("GET", "/status", "the reader's").await.json()["node"], "keyed-7");
}
