//! The table of routes at work: which connections use it, and what its settings do.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by a panic"
)]

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use qudag_filter_common::testing::{self, PATIENCE, metric, nowhere, until};
use qudag_filter_peer::PeerListener;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

type Sidecar = testing::Sidecar<PeerListener>;

/// A server that sends a byte to whoever connects.
async fn server(bind: SocketAddr, greeting: u8) -> SocketAddr {
    let listener = TcpListener::bind(bind).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let _ = tcp.write_all(&[greeting]).await;
        }
    });
    address
}

fn on(more: Value) -> Value {
    let mut table = json!({ "enabled": true });
    table.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({ "route_table": table })
}

fn routes(to: &[String], timeout: &str) -> Value {
    let route = |(number, to): (usize, &String)| json!({ "name": format!("r{number}"), "bind": "127.0.0.1:0", "to": to });
    let routes: Vec<_> = to.iter().enumerate().map(route).collect();
    json!({ "outbound": routes, "connect_timeout": timeout })
}

async fn greeted(address: SocketAddr) -> io::Result<u8> {
    timeout(PATIENCE, async { TcpStream::connect(address).await?.read_u8().await })
        .await
        .expect("an answer in time")
}

fn names(sidecar: &Sidecar, state: &str) -> usize {
    let names = sidecar.upstream.as_ref().unwrap().names();
    names.iter().filter(|name| name.state == state).count()
}

/// A sidecar whose one route leads to a name, with the filter on and the name known.
async fn known(to: &str, ips: &[&str], settings: Value) -> Sidecar {
    knows(to, ips, Duration::from_secs(10), settings).await
}

/// The same; answers hold for so long.
async fn knows(to: &str, ips: &[&str], holds: Duration, settings: Value) -> Sidecar {
    let mut sidecar = Sidecar::start(nowhere(), routes(&["127.0.0.1:1".to_owned()], "10s"), json!({})).await;
    sidecar.names.set(to.split(':').next().unwrap(), ips);
    sidecar.names.hold_for(holds);
    sidecar.reload(routes(&[to.to_owned()], "10s"), on(settings));
    until("the name is known", || names(&sidecar, "known") == 1).await;
    sidecar
}

#[tokio::test(flavor = "multi_thread")]
async fn known_addresses_need_no_resolver_and_others_do() {
    let peer = server("127.0.0.1:0".parse().unwrap(), b'p').await;
    let to = format!("peer.test:{}", peer.port());
    let mut sidecar = known(&to, &["127.0.0.1"], json!({})).await;
    let silence = sidecar.names.hold().await;
    assert_eq!(greeted(sidecar.tcp()).await.unwrap(), b'p');
    // Off: each connection resolves, and nobody answers.
    sidecar.reload(routes(std::slice::from_ref(&to), "300ms"), json!({}));
    assert!(greeted(sidecar.tcp()).await.is_err());
    // On again: it was not forgotten.
    sidecar.reload(routes(&[to], "300ms"), on(json!({})));
    assert_eq!(greeted(sidecar.tcp()).await.unwrap(), b'p');
    drop(silence);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_asks_in_advance_while_it_is_off() {
    let peer = server("127.0.0.1:0".parse().unwrap(), b'p').await;
    let to = format!("peer.test:{}", peer.port());
    let sidecar = Sidecar::start(nowhere(), routes(&[to], "10s"), json!({})).await;
    sidecar.names.set("peer.test", &["127.0.0.1"]);
    for connections in 1..4 {
        assert_eq!(greeted(sidecar.tcp()).await.unwrap(), b'p');
        assert_eq!(sidecar.names.lookups(), connections, "once for each connection");
    }
    assert_eq!(sidecar.upstream.as_ref().unwrap().names().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_gives_its_share_of_flows_the_table() {
    let peer = server("127.0.0.1:0".parse().unwrap(), b'p').await;
    let to: Vec<_> = (0..20).map(|number| format!("p{number}.test:{}", peer.port())).collect();
    let sidecar = Sidecar::start(nowhere(), routes(&to, "300ms"), on(json!({ "rollout": 50 }))).await;
    for number in 0..20 {
        sidecar.names.set(&format!("p{number}.test"), &["127.0.0.1"]);
    }
    until("all names are known", || names(&sidecar, "known") == 20).await;
    let _silence = sidecar.names.hold().await;
    let mut served = 0;
    for address in sidecar.tcps() {
        let first = greeted(address).await.is_ok();
        assert_eq!(greeted(address).await.is_ok(), first, "a flow stays on its side");
        served += usize::from(first);
    }
    // One in a million rollouts of fair coins is outside.
    assert!((1..20).contains(&served), "{served} of 20");
}

/// The name's address is another one than before the time to live is over: the first connection finds out, and gets there.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_whose_addresses_all_fail_asks_again_and_goes_on() {
    let peer = server("127.0.0.1:0".parse().unwrap(), b'p').await;
    let sidecar =
        known(&format!("peer.test:{}", peer.port()), &["127.0.0.77", "127.0.0.78"], json!({})).await;
    sidecar.names.set("peer.test", &["127.0.0.78", "127.0.0.1"]);
    let asked = sidecar.names.lookups();
    // Not in the same second: the name was asked for a moment ago.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(greeted(sidecar.tcp()).await.unwrap(), b'p');
    assert_eq!(sidecar.names.lookups(), asked + 1);
    assert_eq!(greeted(sidecar.tcp()).await.unwrap(), b'p');
    assert_eq!(sidecar.names.lookups(), asked + 1, "known by now");
    assert!(metric("qudag_sidecar_peer_resolutions_total", &["outcome=\"changed\""]) >= 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_connections_to_nobody_ask_once_a_second() {
    let sidecar = known("peer.test:1", &["127.0.0.77"], json!({})).await;
    let (asked, start) = (sidecar.names.lookups(), std::time::Instant::now());
    for _ in 0..1000 {
        assert!(greeted(sidecar.tcp()).await.is_err());
    }
    let most = start.elapsed().as_secs() as usize + 2;
    assert!(
        (asked..=asked + most).contains(&sidecar.names.lookups()),
        "{} in {most} s",
        sidecar.names.lookups()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_kept_within_the_bounds_of_the_settings() {
    let started = async |holds: u64, settings: Value| {
        knows("peer.test:1", &["127.0.0.1"], Duration::from_secs(holds), settings).await
    };
    let (least, none) = (started(0, json!({ "min_ttl": "1m" })).await, started(0, json!({})).await);
    let (most, long) = (started(600, json!({ "max_ttl": "1s" })).await, started(600, json!({})).await);
    until("two are asked for again", || none.names.lookups() >= 4 && most.names.lookups() >= 4).await;
    assert_eq!((least.names.lookups(), long.names.lookups()), (1, 1));
}
