//! A peer that takes more than its share: it costs only itself.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use qudag_filter_common::testing::{PATIENCE, metric, until};
use qudag_filter_peer::identity::pki::Authority;
use qudag_filter_peer::identity::{Identity, SERVER_NAME};
use qudag_filter_peer::tunnel::header::{Class, Header, Status};
use quinn::{ClientConfig, Connection, Endpoint, RecvStream, SendStream};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::support::*;

/// A pair, and a third sidecar that B allows.
struct Three {
    pair: Pair,
    greedy: ClientConfig,
    endpoint: Endpoint,
}

impl Three {
    async fn start(name: &'static str, pooling: Value) -> Self {
        let pair = Pair::start(name, Unusual { pooling, ..Unusual::default() }).await;
        let now = SystemTime::now();
        let out = pair.files.path().join("greedy");
        std::fs::create_dir(&out).unwrap();
        let uri = peer(name, "greedy").parse().unwrap();
        let authority = Authority::open(pair.files.path(), now).unwrap();
        authority.issue("greedy", Some(uri), Duration::from_secs(3600), &out, now).unwrap();
        let files = serde_json::from_value(identity(&pair.files, "greedy")).unwrap();
        let greedy =
            ClientConfig::new(Identity::open(&files).unwrap().client(peer(name, "b").parse().unwrap()));
        let endpoint = Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let mut three = Self { pair, greedy, endpoint };
        three.limit("max_connections", 4096);
        three.pair.returns().await;
        three
    }

    /// Reloads B with a limit, and the others as they are by default.
    fn limit(&mut self, key: &str, limit: usize) {
        let mut listeners = self.pair.listeners_b.clone();
        listeners["allow"] = json!([peer(self.pair.name, "a"), peer(self.pair.name, "greedy")]);
        listeners[key] = json!(limit);
        self.pair.b.reload(listeners, json!({}));
    }

    async fn connect(&self) -> Connection {
        let connecting = self.endpoint.connect_with(self.greedy.clone(), quic(&self.pair.b), SERVER_NAME);
        connecting.unwrap().await.unwrap()
    }
}

/// A stream, if the answer to it was `ok`.
type Opened = Result<(SendStream, RecvStream), Option<Status>>;

async fn ask(connection: &Connection, probe: bool) -> Opened {
    let header = Header { probe, ..Header::to(Class::Interactive, "node".parse().unwrap()) };
    let work = async {
        let (mut send, mut receive) = connection.open_bi().await.map_err(|_| None)?;
        // Both fail where the other side was faster.
        let _ = send.write_all(&header.encode()).await;
        let mut status = [0];
        receive.read_exact(&mut status).await.map_err(|_| None)?;
        match Status::of(status[0]) {
            Some(Status::Ok) => Ok((send, receive)),
            other => Err(other),
        }
    };
    timeout(PATIENCE, work).await.unwrap()
}

async fn is_served((send, receive): &mut (SendStream, RecvStream)) {
    let work = async {
        send.write_all(b"hello").await.unwrap();
        let mut bytes = [0; 5];
        receive.read_exact(&mut bytes).await.unwrap();
        bytes
    };
    assert_eq!(timeout(PATIENCE, work).await.unwrap(), *b"thell", "the greeting, and the echo behind it");
}

fn streams(outcome: &str) -> f64 {
    metric("qudag_sidecar_peer_streams_total", &["side=\"in\"", &format!("outcome=\"{outcome}\"")])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_takes_its_share_of_streams_and_no_more() {
    let mut three = Three::start("streams", json!({})).await;
    three.limit("max_connections_per_peer", 3);
    let greedy = three.connect().await;
    let mut open = Vec::new();
    for _ in 0..3 {
        open.push(ask(&greedy, false).await.unwrap());
    }
    for _ in 0..50 {
        assert_eq!(ask(&greedy, false).await.err(), Some(Some(Status::Overloaded)));
    }
    assert_eq!((streams("over_share"), streams("overloaded")), (50.0, 0.0));
    // The other peer has its own three.
    let mut others = Vec::new();
    for _ in 0..3 {
        let (tcp, way) = three.pair.greeted().await.unwrap();
        assert_eq!(way, 't');
        others.push(tcp);
    }
    assert_eq!(three.pair.greeted().await.unwrap().1, 'd', "goes on without the tunnel");
    assert!(three.pair.fallbacks("overloaded") >= 1.0);

    // Edited live, both ways: nobody's connections notice.
    three.limit("max_connections_per_peer", 5);
    for _ in 0..2 {
        open.push(ask(&greedy, false).await.unwrap());
    }
    assert_eq!(ask(&greedy, false).await.err(), Some(Some(Status::Overloaded)));
    three.limit("max_connections_per_peer", 1);
    assert_eq!(ask(&greedy, false).await.err(), Some(Some(Status::Overloaded)));
    for (stream, tcp) in open.iter_mut().zip(&mut others) {
        is_served(stream).await;
        echo(tcp, b"hello").await.unwrap();
    }
    assert!(greedy.close_reason().is_none());

    // Given back with the streams.
    drop(open);
    let deadline = std::time::Instant::now() + PATIENCE;
    let mut again = loop {
        match ask(&greedy, false).await {
            Ok(stream) => break stream,
            Err(status) => assert_eq!(status, Some(Status::Overloaded)),
        }
        assert!(std::time::Instant::now() < deadline, "never again");
    };
    is_served(&mut again).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_has_so_many_connections_and_is_told_when_it_wants_more() {
    let mut three = Three::start("tunnels", json!({})).await;
    three.limit("max_tunnels_per_peer", 2);
    let held = [three.connect().await, three.connect().await];
    for connection in &held {
        assert!(ask(connection, true).await.is_ok());
    }
    let third = three.connect().await;
    assert_eq!(ask(&third, true).await.err(), Some(Some(Status::Overloaded)));
    timeout(PATIENCE, third.closed()).await.expect("it is closed");
    // A crowd gets nothing either, told or not.
    let crowd: Vec<_> = futures_util::future::join_all((0..30).map(|_| three.connect())).await;
    for connection in &crowd {
        assert!(ask(connection, true).await.is_err());
        timeout(PATIENCE, connection.closed()).await.expect("it is closed");
    }
    let refused = metric("qudag_sidecar_peer_handshakes_total", &["outcome=\"over_share\""]);
    assert_eq!(refused, 31.0);
    assert_eq!(three.pair.greeted().await.unwrap().1, 't', "others have theirs");

    three.limit("max_tunnels_per_peer", 3);
    let third = three.connect().await;
    assert!(ask(&third, true).await.is_ok());
    three.limit("max_tunnels_per_peer", 1);
    for connection in held.iter().chain([&third]) {
        assert!(ask(connection, true).await.is_ok(), "what is there stays");
        connection.close(0_u32.into(), b"");
    }
    let deadline = std::time::Instant::now() + PATIENCE;
    while ask(&three.connect().await, true).await.is_err() {
        assert!(std::time::Instant::now() < deadline, "never again");
    }
}

/// How it looks to the sidecar that has too many.
#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_may_not_grow_goes_on_with_what_it_has() {
    let mut three = Three::start("stunted", json!({})).await;
    three.limit("max_tunnels_per_peer", 1);
    three.pair.reload(pooling(&json!({ "min_connections": 2 })));
    until("it is told why", || three.pair.dials("overloaded") >= 1.0).await;
    for _ in 0..5 {
        assert_eq!(three.pair.greeted().await.unwrap().1, 't');
    }
    assert_eq!(three.pair.connections("live"), 1);
    three.limit("max_tunnels_per_peer", 2);
    until("it has both", || three.pair.connections("live") == 2).await;
}
