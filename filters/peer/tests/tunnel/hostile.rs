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
async fn garbage_gets_nothing_harms_nobody_and_is_counted() {
    let pair = Pair::start("garbage", Unusual::default()).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut random = fastrand::Rng::with_seed(7);
    let counted = || -> f64 {
        let reasons = ["short", "version", "connection"].map(|reason| format!("reason=\"{reason}\""));
        reasons.iter().map(|reason| metric("qudag_sidecar_peer_strays_total", &[reason])).sum()
    };
    let mut sent = 0.0;
    for length in [1, 20, 1200, 1400, 9000] {
        for _ in 0..50 {
            let datagram: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(length).collect();
            socket.send_to(&datagram, quic(&pair.b)).await.unwrap();
            // One zero byte is what sidecars knock with.
            sent += if datagram == [0] { 0.0 } else { 1.0 };
        }
    }
    until("all are counted", || counted() >= sent).await;
    assert_eq!(pair.greeted().await.unwrap().1, 't');
    assert_eq!(counted(), sent, "what belongs to a connection is none of them");
}

/// A client of TLS as others may have one.
fn stranger(kx: &'static dyn rustls::crypto::SupportedKxGroup, alpn: &[u8]) -> ClientConfig {
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.kx_groups = vec![kx];
    let tls = rustls::ClientConfig::builder_with_provider(Arc::new(provider));
    let mut tls = tls
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Gullible))
        .with_no_client_auth();
    tls.alpn_protocols = vec![alpn.to_vec()];
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
    ClientConfig::new(Arc::new(crypto))
}

/// Believes every server.
#[derive(Debug)]
struct Gullible;

impl rustls::client::danger::ServerCertVerifier for Gullible {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Tries everything that a client can do, and expects to get nothing.
async fn gets_nothing(pair: &Pair, config: ClientConfig) {
    let endpoint = Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let connecting = endpoint.connect_with(config, quic(&pair.b), SERVER_NAME).unwrap();
    // In TLS 1.3 a client believes itself connected before the server has looked at its certificate.
    let Ok(connection) = timeout(PATIENCE, connecting).await.unwrap() else { return };
    let asked = async {
        let (mut send, mut receive) = connection.open_bi().await.ok()?;
        let header = Header {
            class: Class::Interactive,
            probe: false,
            control: false,
            destination: "node".parse().unwrap(),
        };
        let _ = send.write_all(&[header.encode(), b"hello".to_vec()].concat()).await;
        receive.read_to_end(100).await.ok()
    };
    let answer = timeout(PATIENCE, asked).await.unwrap();
    assert_eq!(answer, None, "a stranger was answered");
}

#[tokio::test]
async fn strangers_get_nothing_and_are_counted_by_what_is_wrong() {
    let pair = Pair::start("strangers", Unusual::default()).await;
    pair.warm().await;
    let groups = rustls::crypto::aws_lc_rs::kx_group::X25519MLKEM768;
    let accepted = || metric("qudag_sidecar_peer_streams_total", &["side=\"in\"", "outcome=\"ok\""]);
    let before = accepted();
    let mut wrong_name = pair.files.path().to_owned();
    wrong_name.push("mallory");
    std::fs::create_dir(&wrong_name).unwrap();
    let now = std::time::SystemTime::now();
    let authority = qudag_filter_peer::identity::pki::Authority::open(pair.files.path(), now).unwrap();
    let name = "spiffe://test/mallory".parse().unwrap();
    authority.issue("mallory", Some(name), Duration::from_secs(3600), &wrong_name, now).unwrap();
    let mallory = serde_json::from_value(identity(&pair.files, "mallory")).unwrap();
    let mallory = Identity::open(&mallory).unwrap();
    let mallory = ClientConfig::new(mallory.client(peer(pair.name, "b").parse().unwrap()));
    for (outcome, config) in [
        ("wrong_protocol", stranger(groups, b"h3")),
        ("no_certificate", stranger(groups, b"qst/1")),
        ("wrong_name", mallory),
    ] {
        let label = format!("outcome=\"{outcome}\"");
        let count = || metric("qudag_sidecar_peer_handshakes_total", &[&label]);
        let counted = count();
        gets_nothing(&pair, config).await;
        until(outcome, || count() >= counted + 1.0).await;
    }
    assert_eq!(accepted(), before, "a stranger opened a stream");
    assert_eq!(pair.greeted().await.unwrap().1, 't');
}

#[tokio::test]
async fn who_does_not_show_its_address_gets_hardly_more_than_three_times_what_it_sent() {
    let pair = Pair::start("amplified", Unusual::default()).await;
    let relay = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let (near, server) = (relay.local_addr().unwrap(), quic(&pair.b));
    let groups = rustls::crypto::aws_lc_rs::kx_group::X25519MLKEM768;
    let endpoint = Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let _connecting = endpoint.connect_with(stranger(groups, b"qst/1"), near, SERVER_NAME).unwrap();
    // The beginning of a handshake is passed on, and nothing that comes after the first answer: as from an address that is another's.
    let (mut sent, mut received, mut answers) = (0, 0, 0);
    let mut datagram = [0; 2048];
    let listening = timeout(Duration::from_secs(3), async {
        loop {
            let (length, from) = relay.recv_from(&mut datagram).await.unwrap();
            if from == server {
                received += length;
                answers += 1;
            } else if answers == 0 {
                relay.send_to(&datagram[..length], server).await.unwrap();
                sent += length;
            }
        }
    });
    let listening: Result<(), _> = listening.await;
    assert!(listening.is_err());
    println!("amplification: {received} bytes in {answers} datagrams for {sent} bytes");
    assert!(sent >= 1200 && answers > 0);
    // RFC 9000 section 8.1 allows three times as many. quinn sends a whole datagram while any byte of that is left.
    assert!(received < 3 * sent + 1200, "{received} bytes for {sent}");
    assert_eq!(pair.greeted().await.unwrap().1, 't');
}

#[tokio::test]
async fn classical_cryptography_is_refused_and_counted() {
    let pair = Pair::start("classical", Unusual::default()).await;
    gets_nothing(&pair, stranger(rustls::crypto::aws_lc_rs::kx_group::X25519, b"qst/1")).await;
    let refused = || metric("qudag_sidecar_peer_handshakes_total", &["outcome=\"no_common_key_exchange\""]);
    until("it is counted", || refused() >= 1.0).await;
}
