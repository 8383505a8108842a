//! Clients of the tunnel's listener that are not a sidecar, or a wrong one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use qudag_filter_common::testing::{PATIENCE, metric, until};
use qudag_filter_peer::identity::{Identity, SERVER_NAME};
use qudag_filter_peer::tunnel::header::{Class, Header, Status};
use quinn::{ClientConfig, Connection, Endpoint};
use tokio::net::UdpSocket;
use tokio::time::timeout;

use crate::support::*;

/// A connection as sidecar A makes it.
pub(crate) async fn connect(pair: &Pair) -> (Endpoint, Connection) {
    let settings = serde_json::from_value(identity(&pair.files, "a")).unwrap();
    let identity = Identity::open(&settings).unwrap();
    let config = ClientConfig::new(identity.client(peer(pair.name, "b").parse().unwrap()));
    let endpoint = Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let connection = endpoint.connect_with(config, quic(&pair.b), SERVER_NAME).unwrap().await.unwrap();
    (endpoint, connection)
}

async fn answer(connection: &Connection, bytes: &[u8]) -> Vec<u8> {
    let (mut send, mut receive) = connection.open_bi().await.unwrap();
    // The other side may have refused before everything is written.
    let _ = send.write_all(bytes).await;
    let _ = send.finish();
    timeout(PATIENCE, receive.read_to_end(100)).await.unwrap().unwrap()
}

#[tokio::test]
async fn every_header_has_its_answer() {
    let pair = Pair::start("headers", Unusual::default()).await;
    let (_endpoint, connection) = connect(&pair).await;
    let header = |destination: &str, probe| {
        Header { probe, ..Header::to(Class::Interactive, destination.parse().unwrap()) }.encode()
    };
    let status = |status: Status| vec![status.byte()];
    assert_eq!(answer(&connection, &header("node", true)).await, status(Status::Ok));
    assert_eq!(answer(&connection, &header("127.0.0.1", false)).await, status(Status::UnknownDestination));
    assert_eq!(answer(&connection, b"\x02whatever").await, status(Status::Version));
    assert_eq!(answer(&connection, b"\x01\x00\x09../../etc").await, status(Status::Refused));
    assert_eq!(answer(&connection, b"\x01\x00\x04no").await, status(Status::Refused), "ends too early");
    assert_eq!(answer(&connection, &[0xff; 50_000]).await, status(Status::Version));
    let echoed = answer(&connection, &[header("node", false), b"hello".to_vec()].concat()).await;
    assert_eq!(echoed, b"\0thello");
    // No uni-directional streams and no datagrams.
    assert!(timeout(Duration::from_millis(100), connection.open_uni()).await.is_err());
    assert!(connection.max_datagram_size().is_none());
}

#[tokio::test]
async fn garbage_gets_nothing_and_harms_nobody() {
    let pair = Pair::start("garbage", Unusual::default()).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut random = fastrand::Rng::with_seed(7);
    for length in [1, 20, 1200, 1400, 9000] {
        for _ in 0..50 {
            let datagram: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(length).collect();
            socket.send_to(&datagram, quic(&pair.b)).await.unwrap();
        }
    }
    assert_eq!(pair.greeted().await.unwrap().1, 't');
}

#[tokio::test]
async fn classical_cryptography_is_refused_and_counted() {
    let pair = Pair::start("classical", Unusual::default()).await;
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.kx_groups = vec![rustls::crypto::aws_lc_rs::kx_group::X25519];
    let mut tls = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"qst/1".to_vec()];
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
    let endpoint = Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let connecting = endpoint.connect_with(ClientConfig::new(Arc::new(crypto)), quic(&pair.b), SERVER_NAME);
    assert!(timeout(PATIENCE, connecting.unwrap()).await.unwrap().is_err());
    let refused = || metric("qudag_sidecar_peer_handshakes_total", &["outcome=\"no_common_key_exchange\""]);
    until("it is counted", || refused() >= 1.0).await;
}
